//! Text inside HTML and XML.

use crate::text::printable_whole;

/// `text` for an element or a quoted attribute of HTML or XML 1.0: markup escaped, characters that XML has no place for
/// written out or replaced.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable_whole(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{FFFE}' | '\u{FFFF}' => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_untrusted_becomes_markup() {
        assert_eq!(
            super::escape("<b a='1' c=\"2\">&\u{0}\u{FFFF}"),
            "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;\\0\u{FFFD}"
        );
    }
}
