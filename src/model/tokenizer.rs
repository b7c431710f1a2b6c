//! Text to tokens and back, from the metadata of the model file: byte-level BPE as Qwen uses it.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::error::{Error, Result};
use crate::gguf::Gguf;

/// How Qwen2 and Qwen3 cut text before the merges (`tokenizer.ggml.pre` = qwen2).
const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// ggml's token types that are matched whole in the text: control and user-defined.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Text to tokens and back, as the file says.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// End of text, where the file names one.
    pub eos: Option<u32>,
}

impl Tokenizer {
    /// # Errors
    /// A tokenizer that is not byte-level BPE with Qwen's pre-tokenizer, or whose lists do not belong together.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let bad = |what: String| Error::input(format!("{}: {what}", gguf.name()));
        let meta = &gguf.metadata;
        for (key, expected) in [("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "qwen2")] {
            let found = meta.str(key)?;
            if found != expected {
                return Err(bad(format!("{key} is {found:?}; the tokenizer that is supported is {expected:?}")));
            }
        }
        let tokens = meta.str_array("tokenizer.ggml.tokens")?;
        let merges = meta.str_array("tokenizer.ggml.merges")?;
        let types = meta.i32_array("tokenizer.ggml.token_type")?;
        if types.len() != tokens.len() {
            return Err(bad(format!(
                "tokenizer.ggml.token_type has {} entries for {} tokens",
                types.len(),
                tokens.len()
            )));
        }

        let vocabulary: Vocab = tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id as u32)).collect();
        let merges = merges
            .iter()
            .map(|m| {
                let (a, b) = m.split_once(' ').ok_or_else(|| bad(format!("merge {m:?} is not two tokens")))?;
                Ok((a.to_string(), b.to_string()))
            })
            .collect::<Result<Vec<_>>>()?;
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary, merges)
            .build()
            .map_err(|e| bad(format!("tokenizer.ggml.merges: {e}")))?;

        let mut inner = tokenizers::Tokenizer::new(bpe);
        let split = Split::new(SplitPattern::Regex(QWEN2_PATTERN.into()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| bad(format!("pre-tokenizer: {e}")))?;
        let byte_level = ByteLevel::new(false, false, false);
        inner.with_normalizer(Some(NFC));
        inner.with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Split(split),
            PreTokenizerWrapper::ByteLevel(byte_level),
        ])));
        inner.with_decoder(Some(byte_level));
        let special: Vec<AddedToken> = tokens
            .iter()
            .zip(&types)
            .filter(|(_, ty)| matches!(**ty, CONTROL | USER_DEFINED))
            .map(|(token, ty)| AddedToken::from(token.to_string(), *ty == CONTROL).normalized(false))
            .collect();
        inner.add_tokens(&special);
        Ok(Self { inner, eos: meta.u32_opt("tokenizer.ggml.eos_token_id")? })
    }

    /// The tokens of `text`; special tokens written in it are taken as such. Nothing is added in front.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, false).map_err(|e| Error::input(format!("the prompt: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `tokens`. Bytes that are not UTF-8 on their own come out as U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, false).map_err(|e| Error::input(format!("tokens {tokens:?}: {e}")))
    }
}
