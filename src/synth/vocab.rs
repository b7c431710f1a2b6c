//! A byte-level BPE vocabulary of any size, complete and consistent, so that every loader accepts it.
//!
//! - Tokens 0..256 are the single bytes, in GPT-2's order of their characters.
//! - The others but the last three are token `n / 256` followed by byte `n % 256`, for n = 0, 1, 2…: first all pairs of bytes, then
//!   triples. So all are different, and each has one merge, of two tokens before it.
//! - The last three are Qwen's control tokens.

/// Fewest tokens: the bytes and the control tokens.
pub(super) const MIN: u32 = 256 + CONTROL.len() as u32;

const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// `tokenizer.ggml.token_type`: an ordinary token, and one that is never made from text.
const NORMAL: i32 = 1;
const CONTROL_TYPE: i32 = 3;

pub(super) struct Vocab {
    pub tokens: Vec<String>,
    pub types: Vec<i32>,
    pub merges: Vec<String>,
    /// Begins a document, and pads.
    pub end_of_text: u32,
    /// Ends a turn.
    pub im_end: u32,
}

/// A vocabulary of `size` ≥ [`MIN`] tokens.
pub(super) fn vocab(size: u32) -> Vocab {
    let size = size as usize;
    let merged = size - MIN as usize;
    let mut tokens = byte_characters().map(String::from).to_vec();
    tokens.reserve_exact(size - 256);
    let mut merges = Vec::with_capacity(merged);
    for n in 0..merged {
        let (left, right) = (&tokens[n / 256], &tokens[n % 256]);
        merges.push(format!("{left} {right}"));
        tokens.push(format!("{left}{right}"));
    }
    tokens.extend(CONTROL.map(String::from));
    let mut types = vec![NORMAL; size];
    types[256 + merged..].fill(CONTROL_TYPE);
    let control = (256 + merged) as u32;
    Vocab { tokens, types, merges, end_of_text: control, im_end: control + 2 }
}

/// GPT-2's characters for the 256 bytes, in the order of its vocabulary: the printable bytes of Latin-1 stand for themselves and come
/// first, the others follow as U+0100 on.
fn byte_characters() -> [char; 256] {
    let printable = || ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let mut characters = printable().chain('\u{100}'..);
    std::array::from_fn(|_| characters.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn tokens_are_unique_and_each_merge_makes_the_next_one_of_known_tokens() {
        for size in [MIN, MIN + 1, 512, 70_000, 151_936] {
            let v = vocab(size);
            assert_eq!((v.tokens.len(), v.types.len()), (size as usize, size as usize));
            let mut known: HashSet<&str> = v.tokens[..256].iter().map(String::as_str).collect();
            assert_eq!(known.len(), 256);
            for (merge, token) in v.merges.iter().zip(&v.tokens[256..]) {
                let (left, right) = merge.split_once(' ').unwrap();
                assert!(known.contains(left) && known.contains(right), "{merge}");
                assert_eq!(format!("{left}{right}"), *token);
                assert!(known.insert(token), "{token} twice");
            }
            assert_eq!(v.merges.len() + 256 + 3, size as usize);
            assert_eq!(v.tokens[v.im_end as usize], "<|im_end|>");
            assert_eq!(v.types[v.end_of_text as usize..], [3, 3, 3]);
        }
    }

    #[test]
    fn bytes_have_gpt2s_characters() {
        let characters = byte_characters();
        // Positions in the vocabularies of GPT-2 and Qwen: '!' is 0, the space 220, the newline 198.
        assert_eq!([characters[0], characters[220], characters[198], characters[255]], ['!', 'Ġ', 'Ċ', '\u{143}']);
    }
}
