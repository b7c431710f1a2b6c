//! Text that came from somewhere else (a file, the command line, a driver), made safe to print.

/// How many characters of a name are printed.
const LONGEST_NAME: usize = 200;

/// A name from outside as one line that a terminal only shows: [`printable_whole`] of its first 200 characters.
pub fn printable(text: &str) -> String {
    match text.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => printable_whole(&text[..end]) + "…",
        None => printable_whole(text),
    }
}

/// Text from outside as one line that a terminal only shows: control characters (line breaks among them), and marks that
/// have no width or change the direction of the text beside them, stand as escapes such as `\n` and `\u{202e}`.
///
/// The result is as long as the text, which suits what is to be copied whole: a path, a command, a sentence of a report.
pub fn printable_whole(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Unicode's Bidi_Control characters, its line separators, and those of its Default_Ignorable_Code_Points that are
        // formats. Combining marks and variation selectors belong to characters that are seen, and stay.
        let unseen = matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
        if c.is_control() || unseen { out.extend(c.escape_debug()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_or_hides_on_a_terminal_is_escaped() {
        assert_eq!(printable("a\x1b[2Jb\n\u{202e}ü"), "a\\u{1b}[2Jb\\n\\u{202e}ü");
        assert_eq!(printable("\0\r\t\x7f\u{9b}"), "\\0\\r\\t\\u{7f}\\u{9b}");
        for mark in ['\u{ad}', '\u{61c}', '\u{200b}', '\u{2029}', '\u{2060}', '\u{2067}', '\u{feff}', '\u{e0041}'] {
            assert_eq!(printable(&mark.to_string()), format!("\\u{{{:x}}}", mark as u32));
        }
    }

    #[test]
    fn what_is_seen_stays_as_it_is() {
        let text = "naïve \"it's\" a\\b e\u{301} 日本語 ❤\u{fe0f} עברית";
        assert_eq!((printable(text), printable_whole(text)), (text.into(), text.into()));
    }

    #[test]
    fn a_name_is_cut_and_a_text_is_not() {
        assert_eq!(printable(&"x".repeat(200)), "x".repeat(200));
        assert_eq!(printable(&"é".repeat(1000)), "é".repeat(200) + "…");
        assert_eq!(printable(&"\n".repeat(1000)), "\\n".repeat(200) + "…");
        assert_eq!(printable_whole(&"\n".repeat(1000)), "\\n".repeat(1000));
    }
}
