//! Many prompts through one comparison: what each came to, what all came to, and shards of them put together.
//!
//! Design:
//! - A sweep is lines of JSON: a header that says what was compared, a line a prompt as soon as it is done, and a summary. What
//!   was written of a sweep that was killed can be read up to there.
//! - A shard is every N-th prompt of the same file, so that shards are alike where prompts grow along the file. Shards belong
//!   together if their headers agree in everything that decides a result; the machine is not part of that.
//! - The summary is made of the prompts' lines alone: that of merged shards is that of the whole.

mod prompts;
mod summary;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::prompts::{PromptFile, Shard};
pub use self::summary::{FaultLine, PromptResult, SweepSummary};
use crate::error::{Error, Result};

/// The schema of a header.
pub const SCHEMA: &str = "twinscope.sweep/1";

/// The first line of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepHeader {
    /// [`SCHEMA`].
    pub schema: String,
    /// The program, its command line and the machine.
    pub environment: Value,
    /// What decides the results.
    pub compared: Compared,
    /// The part of it that was done.
    pub shard: Shard,
}

/// What decides the results of a sweep: the same in every shard of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// The model's name and fingerprint.
    pub model: String,
    /// See [`crate::gguf::Gguf::fingerprint`].
    pub fingerprint: String,
    /// The reference's name and contract.
    pub reference: [String; 2],
    /// The subject's.
    pub subject: [String; 2],
    /// What judged: `oracle`, or nothing.
    pub judge: Option<String>,
    /// Tokens decoded after each prompt.
    pub decode: usize,
    /// Prompt tokens run at a time.
    pub chunk: usize,
    /// Further options that change what is judged, as on the command line.
    pub options: Vec<String>,
    /// Prompts in the file.
    pub prompts: usize,
    /// The file's SHA-256.
    pub prompts_sha256: String,
}

/// A line of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SweepLine {
    /// The first.
    Sweep(SweepHeader),
    /// One a prompt.
    Prompt(PromptResult),
    /// The last.
    Summary(SweepSummary),
}

/// A sweep that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// Its header.
    pub header: SweepHeader,
    /// Its prompts, in the order of the file.
    pub results: Vec<PromptResult>,
}

impl Sweep {
    /// Reads the lines of `path`.
    ///
    /// # Errors
    /// A line that is none of a sweep's, none of the shard's prompts or one twice, and an end before the summary.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let wrong = |n: usize, what: String| Error::input(format!("{}: line {}: {what}", path.display(), n + 1));
        let mut header = None;
        let mut results = BTreeMap::new();
        let mut ended = false;
        for (n, line) in text.lines().enumerate() {
            let line: SweepLine =
                serde_json::from_str(line).map_err(|e| wrong(n, format!("expected a line of a sweep: {e}")))?;
            match (&header, line) {
                (_, _) if ended => return Err(wrong(n, "expected nothing behind the summary".to_string())),
                (None, SweepLine::Sweep(found)) if found.schema == SCHEMA => header = Some(found),
                (None, SweepLine::Sweep(found)) => {
                    return Err(wrong(n, format!("expected the schema {SCHEMA}, found {:?}", found.schema)));
                }
                (None, _) => return Err(wrong(n, "expected the header of a sweep".to_string())),
                (Some(_), SweepLine::Sweep(_)) => return Err(wrong(n, "found a second header".to_string())),
                (Some(header), SweepLine::Prompt(result)) => {
                    if result.index >= header.compared.prompts || !header.shard.has(result.index) {
                        let what = format!("prompt {} is not of shard {}", result.index, header.shard);
                        return Err(wrong(n, what));
                    }
                    if let Some(twice) = results.insert(result.index, result) {
                        return Err(wrong(n, format!("prompt {} is there twice", twice.index)));
                    }
                }
                (Some(_), SweepLine::Summary(_)) => ended = true,
            }
        }
        let header =
            header.ok_or_else(|| Error::input(format!("{}: expected a sweep, found nothing", path.display())))?;
        if !ended {
            return Err(Error::input(format!(
                "{}: shard {} ends after {} prompts, without a summary: its process did not finish",
                path.display(),
                header.shard,
                results.len()
            )));
        }
        Ok(Self { header, results: results.into_values().collect() })
    }

    /// Puts shards together, each with where it came from.
    ///
    /// # Errors
    /// Shards of different sweeps, a prompt that two have, or one that none has.
    pub fn merge(shards: &[(String, Sweep)]) -> Result<Self> {
        let Some((first_name, first)) = shards.first() else { return Err(Error::usage("no shards to merge")) };
        let mut all: BTreeMap<usize, (&str, &PromptResult)> = BTreeMap::new();
        for (name, shard) in shards {
            if let Some(what) = first.header.compared.differs(&shard.header.compared) {
                return Err(Error::input(format!("{first_name} and {name} are of different sweeps: {what}")));
            }
            for result in &shard.results {
                if let Some((other, _)) = all.insert(result.index, (name, result)) {
                    return Err(Error::input(format!("prompt {:?} is in {other} and in {name}", result.id)));
                }
            }
        }
        let prompts = first.header.compared.prompts;
        // Every index is below `prompts`, so the first that is missing is at most as many as there are.
        if let Some(n) = (0..prompts).find(|n| !all.contains_key(n)) {
            let of = first.header.shard.of;
            return Err(Error::input(format!(
                "{} of {prompts} prompts are in no shard, the first of them in shard {}/{of}",
                prompts - all.len(),
                n % of + 1
            )));
        }
        let header = SweepHeader { shard: Shard::WHOLE, ..first.header.clone() };
        Ok(Self { header, results: all.into_values().map(|(_, result)| result.clone()).collect() })
    }
}

impl Compared {
    /// The first thing that is not the same in both, in words.
    fn differs(&self, other: &Self) -> Option<String> {
        let values = |compared: &Self| serde_json::to_value(compared).unwrap_or_default();
        let (a, b) = (values(self), values(other));
        let keys = a.as_object().into_iter().flat_map(|object| object.keys());
        keys.filter(|key| a[*key] != b[*key]).map(|key| format!("{key} is {} and {}", a[key], b[key])).next()
    }
}
