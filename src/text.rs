//! Text that came from somewhere else (a file, the command line, a driver), made safe to print; and numbers of things in words.
//!
//! Names are cut and made printable where they enter a sentence, so that the sentence stays short; whole messages and reports are
//! made safe once more where they leave the program (`cli/output.rs`), so that no name that was forgotten reaches a terminal.

/// How many characters of a name are printed.
const LONGEST_NAME: usize = 200;
/// How many characters of a message are printed: some screens of it.
const LONGEST_MESSAGE: usize = 4000;

/// `1 stage`, `2 stages`.
pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// A name from outside as one line that a terminal only shows: [`printable_whole`] of its first 200 characters.
pub fn printable(text: &str) -> String {
    cut(text, LONGEST_NAME)
}

/// A message as one line that a terminal only shows: [`printable_whole`] of its first 4000 characters.
pub fn message(text: &str) -> String {
    cut(text, LONGEST_MESSAGE)
}

fn cut(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
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
        if is_unseen(c) { out.extend(c.escape_debug()) } else { out.push(c) }
    }
    out
}

/// Lines for a terminal, which only shows them: as [`printable_whole`], but line breaks, tabs and this program's own colours stay.
pub fn printable_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let colour = colour(rest);
        let n = if colour > 0 { colour } else { c.len_utf8() };
        match colour > 0 || matches!(c, '\n' | '\t') || !is_unseen(c) {
            true => out.push_str(&rest[..n]),
            false => out.extend(c.escape_debug()),
        }
        rest = &rest[n..];
    }
    out
}

/// Bytes of the sequence at the start of the text that sets colours and nothing else, `ESC [ 1 ; 31 m`; 0 if there is none.
fn colour(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("\x1b[") else { return 0 };
    let numbers = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b';').count();
    if rest.as_bytes().get(numbers) == Some(&b'm') { 2 + numbers + 1 } else { 0 }
}

/// A JSON document of the same values, in which what a terminal would not only show stands as JSON's own escapes.
pub fn printable_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Between values these are layout; inside of strings they are escaped already.
            '\n' | '\t' | '\r' => out.push(c),
            c if is_unseen(c) => {
                out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
            }
            c => out.push(c),
        }
    }
    out
}

/// Whether a terminal acts on the character, or hides it, rather than showing it.
fn is_unseen(c: char) -> bool {
    // Unicode's Bidi_Control characters, its line separators, and those of its Default_Ignorable_Code_Points that are
    // formats. Combining marks and variation selectors belong to characters that are seen, and stay.
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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
    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        assert_eq!(message("a\nb\x1b[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(message(&"x".repeat(100_000)), "x".repeat(4000) + "…");
    }

    #[test]
    fn lines_keep_their_breaks_and_colours_and_nothing_else_that_acts() {
        let own = "a\tb\n\x1b[1;31m█\x1b[0m\n";
        assert_eq!(printable_lines(own), own);
        assert_eq!(
            printable_lines("\x1b[2J\x1b]0;t\x07\r\u{9b}\x1b[31\x1b"),
            "\\u{1b}[2J\\u{1b}]0;t\\u{7}\\r\\u{9b}\\u{1b}[31\\u{1b}"
        );
    }

    #[test]
    fn json_keeps_its_values() {
        let value = serde_json::json!({"a\u{9b}": "\u{202e}b\u{e0041}\u{1b}\n", "ü": [1, 2]});
        let text = serde_json::to_string_pretty(&value).unwrap();
        let shown = printable_json(&text);
        assert!(shown.contains(r#""a\u009b": "\u202eb\udb40\udc41\u001b\n""#), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
