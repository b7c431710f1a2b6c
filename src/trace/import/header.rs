//! The header of a capture: the JSON document that a safetensors file has under the key `twinscope.capture`.
//!
//! capture/README.md describes it. Only `schema` and `tokens` must be there; what else is absent is not known.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The key in a file's `__metadata__`.
pub const KEY: &str = "twinscope.capture";
/// What `schema` in it is.
pub const SCHEMA: &str = "twinscope.capture/1";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CaptureHeader {
    schema: String,
    pub engine: String,
    pub engine_version: String,
    pub device: String,
    /// The command line that made it.
    pub command: String,
    pub model: CapturedModel,
    /// Every token that went in, position 0 first.
    pub tokens: Vec<u32>,
    pub prompt: Option<String>,
    /// How many of the tokens are the prompt; absent: all.
    pub prompt_tokens: Option<usize>,
    /// The calls that the run was made of; absent: one call with every token.
    pub calls: Vec<Call>,
    /// The name of an arithmetic contract.
    pub contract: Option<String>,
    /// What is known of single tensors, by key.
    pub tensors: BTreeMap<String, CapturedTensor>,
}

/// The model that ran.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CapturedModel {
    pub name: Option<String>,
    pub architecture: Option<String>,
    /// As [`crate::gguf::Gguf::fingerprint`] makes it.
    pub fingerprint: Option<String>,
}

/// One call of the engine: `tokens` positions from `start` on.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Call {
    /// The first position.
    pub start: usize,
    /// How many.
    pub tokens: usize,
}

/// What a header says of one tensor.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CapturedTensor {
    /// An index into `calls`.
    pub call: Option<usize>,
    /// The position of each row.
    pub positions: Option<Vec<usize>>,
    /// llama.cpp's operation that made it, such as MUL_MAT.
    pub op: String,
    /// The names of that operation's operands.
    pub inputs: Vec<String>,
}

impl CaptureHeader {
    /// Reads the document, and holds its numbers against each other.
    ///
    /// # Errors
    /// What was expected and what was found, as text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let header: Self = serde_json::from_str(text).map_err(|e| format!("{KEY}: {e}"))?;
        if header.schema != SCHEMA {
            return Err(format!("{KEY}: schema {SCHEMA:?} expected, found {:?}", header.schema));
        }
        let tokens = header.tokens.len();
        if tokens == 0 {
            return Err(format!("{KEY}: `tokens` expected, found none"));
        }
        if header.prompt_tokens.is_some_and(|n| n > tokens) {
            return Err(format!("{KEY}: prompt_tokens of at most {tokens} expected, found {:?}", header.prompt_tokens));
        }
        let mut end = 0;
        for (i, call) in header.calls.iter().enumerate() {
            let next = call.start.checked_add(call.tokens).filter(|n| *n <= tokens && call.tokens > 0);
            match next {
                Some(next) if call.start >= end => end = next,
                _ => {
                    return Err(format!(
                        "{KEY}: call {i} of 1 or more of the {tokens} tokens behind the call before it expected, found {} \
                         from position {} on",
                        call.tokens, call.start
                    ));
                }
            }
        }
        for (key, tensor) in &header.tensors {
            if tensor.call.is_some_and(|call| call >= header.calls.len().max(1)) {
                return Err(format!("{KEY}: {key}: call {:?} of {} calls", tensor.call, header.calls.len()));
            }
            let positions = tensor.positions.as_deref().unwrap_or_default();
            let ascend = positions.is_sorted_by(|a, b| a < b) && positions.last().is_none_or(|p| *p < tokens);
            if !ascend {
                return Err(format!("{KEY}: {key}: ascending positions below {tokens} expected"));
            }
        }
        Ok(header)
    }
}
