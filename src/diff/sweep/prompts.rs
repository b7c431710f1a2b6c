//! A file of prompts, and the part of it that a process does.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Which part of a sweep a process does: prompts `number`, `number + of`, … counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// From 1.
    pub number: NonZero<usize>,
    /// How many shards there are.
    pub of: NonZero<usize>,
}

impl Shard {
    /// The whole of it.
    pub const WHOLE: Self = Self { number: NonZero::<usize>::MIN, of: NonZero::<usize>::MIN };

    /// Whether the prompt at `index`, from 0, is in it.
    pub fn has(self, index: usize) -> bool {
        index % self.of == self.number.get() - 1
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected I/N with I from 1 to N, such as 2/8";
        let (number, of) = text.split_once('/').ok_or(expected)?;
        let read = |text: &str| text.parse::<NonZero<usize>>().map_err(|_| expected.to_string());
        let (number, of) = (read(number)?, read(of)?);
        if number > of { Err(expected.to_string()) } else { Ok(Self { number, of }) }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// A line of a file of prompts: text or token ids.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptLine {
    /// What it is called; its line's number unless said.
    #[serde(default)]
    pub id: Option<String>,
    /// Its text…
    #[serde(default)]
    pub prompt: Option<String>,
    /// …or its token ids.
    #[serde(default)]
    pub tokens: Option<Vec<u32>>,
}

/// A file of prompts.
#[derive(Clone, Debug)]
pub struct PromptFile {
    /// Its lines that are not empty, with their numbers from 1.
    pub lines: Vec<(usize, PromptLine)>,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

impl PromptFile {
    /// Reads lines of JSON, of `path`.
    ///
    /// # Errors
    /// A line that is not such an object, has both or neither of `prompt` and `tokens`, or an id that an earlier one has; no lines.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let mut lines = Vec::new();
        let mut ids = BTreeMap::new();
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let number = n + 1;
            let wrong = |what: String| Error::input(format!("{}: line {number}: {what}", path.display()));
            let line: PromptLine = serde_json::from_str(line).map_err(|e| {
                wrong(format!(
                    "expected an object such as {{\"id\": \"a\", \"prompt\": \"text\"}} or with \"tokens\": {e}"
                ))
            })?;
            if line.prompt.is_some() == line.tokens.is_some() {
                return Err(wrong("expected one of \"prompt\" and \"tokens\"".to_string()));
            }
            let id = line.id.clone().unwrap_or_else(|| number.to_string());
            if let Some(earlier) = ids.insert(id.clone(), number) {
                return Err(wrong(format!("the id {id:?} is that of line {earlier} too")));
            }
            lines.push((number, PromptLine { id: Some(id), ..line }));
        }
        if lines.is_empty() {
            return Err(Error::input(format!("{}: expected a prompt a line, found none", path.display())));
        }
        Ok(Self { lines, sha256: format!("{:x}", Sha256::digest(text)) })
    }
}
