//! What stands for the tokenizer in a build without the feature `tokenizer`: prompts are token ids.

use crate::error::{Error, Result};
use crate::gguf::Gguf;

/// Cannot be made.
pub enum Tokenizer {}

impl Tokenizer {
    /// # Errors
    /// Always: this build has no tokenizer.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Err(Error::cannot_run(format!("{}: this build has no tokenizer (feature `tokenizer`)", gguf.name())))
    }

    /// The tokens of `text`.
    ///
    /// # Errors
    /// Never called: there is no such value.
    pub fn encode(&self, _: &str) -> Result<Vec<u32>> {
        match *self {}
    }

    /// The text of `tokens`.
    ///
    /// # Errors
    /// Never called: there is no such value.
    pub fn decode(&self, _: &[u32]) -> Result<String> {
        match *self {}
    }
}
