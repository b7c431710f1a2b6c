//! Many prompts through one comparison: what each came to, what all came to, and shards of them put together.
//!
//! Design:
//! - A sweep is lines of JSON: a header that says what was compared, a line a prompt as soon as it is done, and a summary. What
//!   was written of a sweep that was killed can be read up to there.
//! - A shard is every N-th prompt of the same file, so that shards are alike where prompts grow along the file. Shards belong
//!   together if their headers agree in everything that decides a result; the machine is not part of that.
//! - The summary is made of the prompts' lines alone: that of merged shards is that of the whole.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::diff::outcome::{Comparison, StageResult, Verdict};
use crate::error::{Error, Result};

/// The schema of a header.
pub const SCHEMA: &str = "twinscope.sweep/1";

/// Bytes of a file of prompts, or of a shard, that are read.
pub const MOST_BYTES: u64 = 256 << 20;

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
                wrong(format!("expected an object such as {{\"id\": \"a\", \"prompt\": \"text\"}} or with \"tokens\": {e}"))
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

/// What one prompt came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptResult {
    /// What it is called.
    pub id: String,
    /// Its place in the file, from 0.
    pub index: usize,
    /// Tokens of the prompt, and decoded ones.
    pub tokens: usize,
    /// Tokens decoded after it.
    pub decoded: usize,
    /// Whether the sides agree.
    pub agrees: bool,
    /// The first stage that is wrong.
    pub first_fault: Option<FaultLine>,
    /// The stage with the largest ratio of an error to its floor, and that ratio: `layers.2.q_rope`.
    pub worst: Option<(String, f64)>,
    /// Tokens and layers where the sides chose other experts, and those of them that rounding does not explain.
    pub flips: usize,
    #[allow(missing_docs)] // said above
    pub unexplained_flips: usize,
    /// The logits, of all positions.
    pub logits: Option<LogitsLine>,
    /// What else must be said of it.
    pub notes: Vec<String>,
    /// What it took.
    pub seconds: f64,
}

/// The first stage that is wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultLine {
    /// `layers.2.q_rope`.
    pub stage: String,
    /// 0 for the prompt, n for the n-th decoded token.
    pub step: usize,
    /// What is wrong: `subject wrong`.
    pub verdict: String,
    /// The error over what is allowed.
    pub ratio: Option<f64>,
    /// The mistake, where one reproduces what was found.
    pub cause: Option<String>,
}

/// The logits of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogitsLine {
    /// Positions compared.
    pub positions: usize,
    /// KL(reference ‖ subject): mean and largest, nats.
    pub kld_mean: f64,
    #[allow(missing_docs)] // said above
    pub kld_max: f64,
    /// Positions with the same most probable token.
    pub same_top: usize,
}

impl PromptResult {
    /// Of a comparison.
    pub fn of(id: &str, index: usize, comparison: &Comparison, seconds: f64) -> Self {
        let routing = || comparison.routing.iter().filter_map(|r| r.routing.as_ref().ok());
        let ratio = |s: &StageResult| s.ratio.filter(|r| !r.is_nan()).map(|r| (s.site.key(), r));
        let worst = comparison.stages.iter().filter_map(ratio).max_by(|a, b| a.1.total_cmp(&b.1));
        Self {
            id: id.to_string(),
            index,
            tokens: comparison.tokens,
            decoded: comparison.decode,
            agrees: comparison.agrees(),
            first_fault: comparison.fault().map(FaultLine::of),
            // JSON has no infinity.
            worst: worst.map(|(stage, ratio)| (stage, ratio.min(f64::MAX))),
            flips: routing().map(|r| r.flips.len()).sum(),
            unexplained_flips: routing().map(|r| r.unexplained()).sum(),
            logits: comparison.logits.as_ref().map(|l| LogitsLine {
                positions: l.positions,
                kld_mean: l.kld_mean,
                kld_max: l.kld_max,
                same_top: l.same_top,
            }),
            notes: comparison.notes.clone(),
            seconds,
        }
    }
}

impl FaultLine {
    fn of(fault: &StageResult) -> Self {
        let cause = fault.cause.as_ref().filter(|cause| cause.reproduced);
        Self {
            stage: fault.site.key(),
            step: fault.step,
            verdict: Verdict::to_string(&fault.verdict),
            ratio: fault.ratio.filter(|r| r.is_finite()),
            cause: cause.map(|cause| cause.name.clone()),
        }
    }
}

/// What all prompts came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Prompts, and those of them whose sides agree.
    pub prompts: usize,
    #[allow(missing_docs)] // said above
    pub agree: usize,
    /// Tokens run.
    pub tokens: usize,
    /// First faults that are alike, the most frequent first.
    pub faults: Vec<FaultCount>,
    /// The prompt with the largest ratio of an error to its floor: its id, the stage, the ratio.
    pub worst: Option<(String, String, f64)>,
    /// The prompt whose logits are furthest apart: its id and its largest KL divergence.
    pub worst_logits: Option<(String, f64)>,
    /// Flips in all, and those that rounding does not explain.
    pub flips: usize,
    #[allow(missing_docs)] // said above
    pub unexplained_flips: usize,
    /// Mean KL divergence over all positions, nats.
    pub kld_mean: Option<f64>,
    /// The share of positions with the same most probable token.
    pub same_top_rate: Option<f64>,
    /// Time of all prompts together.
    pub seconds: f64,
}

/// First faults at one stage, on one side, with one cause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultCount {
    /// The fault; its step and ratio are those of the first such prompt.
    #[serde(flatten)]
    pub fault: FaultLine,
    /// In how many prompts it is the first.
    pub prompts: usize,
    /// The first of them.
    pub first: String,
}

impl Summary {
    /// Of prompts in the order of the file.
    pub fn of(results: &[PromptResult]) -> Self {
        let mut faults: Vec<FaultCount> = Vec::new();
        for result in results {
            let Some(fault) = &result.first_fault else { continue };
            let alike = |f: &FaultLine| (&f.stage, &f.verdict, &f.cause) == (&fault.stage, &fault.verdict, &fault.cause);
            match faults.iter_mut().find(|count| alike(&count.fault)) {
                Some(count) => count.prompts += 1,
                None => faults.push(FaultCount { fault: fault.clone(), prompts: 1, first: result.id.clone() }),
            }
        }
        faults.sort_by_key(|count| std::cmp::Reverse(count.prompts)); // stable
        let worst = results.iter().filter_map(|r| r.worst.as_ref().map(|(stage, ratio)| (&r.id, stage, *ratio)));
        let worst = worst.max_by(|a, b| a.2.total_cmp(&b.2)).map(|(id, stage, r)| (id.clone(), stage.clone(), r));
        let logits = || results.iter().filter_map(|r| r.logits.map(|logits| (&r.id, logits)));
        let furthest = logits().max_by(|a, b| a.1.kld_max.total_cmp(&b.1.kld_max));
        let positions = logits().map(|(_, l)| l.positions).sum::<usize>();
        let mean = |sum: f64| (positions > 0).then(|| sum / positions as f64);
        Self {
            prompts: results.len(),
            agree: results.iter().filter(|r| r.agrees).count(),
            tokens: results.iter().map(|r| r.tokens + r.decoded).sum(),
            faults,
            worst,
            worst_logits: furthest.map(|(id, l)| (id.clone(), l.kld_max)),
            flips: results.iter().map(|r| r.flips).sum(),
            unexplained_flips: results.iter().map(|r| r.unexplained_flips).sum(),
            kld_mean: mean(logits().map(|(_, l)| l.kld_mean * l.positions as f64).sum()),
            same_top_rate: mean(logits().map(|(_, l)| l.same_top as f64).sum()),
            seconds: results.iter().map(|r| r.seconds).sum(),
        }
    }

    /// Whether every prompt's sides agree.
    pub fn agrees(&self) -> bool {
        self.prompts > 0 && self.agree == self.prompts
    }
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
    Summary(Summary),
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
        let header = header.ok_or_else(|| Error::input(format!("{}: expected a sweep, found nothing", path.display())))?;
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
        let missing: Vec<usize> = (0..prompts).filter(|n| !all.contains_key(n)).collect();
        if let Some(n) = missing.first() {
            let of = first.header.shard.of;
            return Err(Error::input(format!(
                "{} of {prompts} prompts are in no shard, the first of them in shard {}/{of}",
                missing.len(),
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
