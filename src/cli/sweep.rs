//! `diff --prompts`: one comparison a prompt of a file, with everything loaded once.

use std::path::Path;
use std::time::Instant;

use crate::cli::common::PromptArgs;
use crate::cli::{Outcome, output};
use crate::diff::outcome::Comparison;
use crate::diff::sweep::{Compared, PromptFile, PromptResult, SCHEMA, Shard, SweepHeader, SweepLine, SweepSummary};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::model::Model;
use crate::report::sweep as report;
use crate::text::printable_json;

/// Prompts of a file, as tokens.
pub struct Prompts {
    /// The file, read.
    pub file: PromptFile,
    /// Those of the shard: place in the file, id, text and tokens.
    pub here: Vec<ReadyPrompt>,
    shard: Shard,
}

/// A prompt that can be run.
pub struct ReadyPrompt {
    /// Its place in the file, from 0.
    pub index: usize,
    pub id: String,
    pub text: Option<String>,
    pub tokens: Vec<u32>,
}

impl Prompts {
    /// Reads the file, and makes tokens of all of it before anything runs.
    ///
    /// # Errors
    /// An unreadable file, what [`PromptFile::parse`] refuses, a prompt that the model cannot run, and a shard without prompts.
    pub fn read(path: &Path, shard: Shard, model: &Model, decode: usize, args: &PromptArgs) -> Result<Self> {
        let kind = FileKind::PROMPTS.or_stdin();
        let text = kind.read_text(path)?;
        let path = kind.called(path);
        let file = PromptFile::parse(path, &text)?;
        let mut here = Vec::new();
        for (index, (number, line)) in file.lines.iter().enumerate() {
            let wrong = |what: String| Error::input(format!("{}: line {number}: {what}", path.display()));
            if args.chat && line.tokens.is_some() {
                return Err(wrong("--chat makes a message of text, found token ids".to_string()));
            }
            let text = line.prompt.clone().map(|text| args.as_run(model, text)).transpose();
            let text = text.map_err(|e| wrong(e.to_string()))?;
            let tokens = match (&text, &line.tokens) {
                (Some(text), _) => model.tokenizer()?.encode(text).map_err(|e| wrong(e.to_string()))?,
                (None, tokens) => tokens.clone().unwrap_or_default(),
            };
            let (vocab, context) = (model.config.vocab, model.config.context);
            if tokens.is_empty() {
                return Err(wrong("the prompt is empty: at least one token is needed".to_string()));
            }
            if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
                return Err(wrong(format!("token {token} is not in the vocabulary (0 to {})", vocab - 1)));
            }
            if tokens.len() + decode > context {
                let n = tokens.len();
                return Err(wrong(format!(
                    "{n} tokens and {decode} to decode are over the context length of {context}"
                )));
            }
            let id = line.id.clone().unwrap_or_default(); // every line of a file that was read has one
            here.extend(shard.has(index).then_some(ReadyPrompt { index, id, text, tokens }));
        }
        if here.is_empty() {
            let n = file.lines.len();
            return Err(Error::usage(format!(
                "--shard {shard}: {} has {n} prompts, none is left for it",
                path.display()
            )));
        }
        Ok(Self { file, here, shard })
    }
}

/// Compares prompt after prompt, and says what each came to as soon as it is known.
///
/// # Errors
/// Those of a comparison, with the prompt.
pub fn run(
    prompts: &Prompts,
    mut compared: Compared,
    json: bool,
    mut compare: impl FnMut(&ReadyPrompt) -> Result<Comparison>,
) -> Result<Outcome> {
    compared.prompts = prompts.file.lines.len();
    compared.prompts_sha256 = prompts.file.sha256.clone();
    let environment = serde_json::to_value(Environment::here()).map_err(|e| Error::input(format!("json: {e}")))?;
    let header = SweepHeader { schema: SCHEMA.to_string(), environment, compared, shard: prompts.shard };
    let print = |line: &SweepLine| match json {
        true => {
            let text = serde_json::to_string(line).map_err(|e| Error::input(format!("json: {e}")))?;
            output::print_data(&(printable_json(&text) + "\n")).map(|_| ())
        }
        false => output::print(&report::line(line)),
    };
    print(&SweepLine::Sweep(header))?;
    let mut results = Vec::new();
    for prompt in &prompts.here {
        let start = Instant::now();
        let comparison = compare(prompt).map_err(|e| e.within(&format!("prompt {:?}", prompt.id)))?;
        let result = PromptResult::of(&prompt.id, prompt.index, &comparison, start.elapsed().as_secs_f64());
        print(&SweepLine::Prompt(result.clone()))?;
        results.push(result);
    }
    let summary = SweepSummary::of(&results);
    print(&SweepLine::Summary(summary.clone()))?;
    Ok(if summary.agrees() { Outcome::Ok } else { Outcome::Diverged })
}
