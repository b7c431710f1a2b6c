//! `merge`: the shards of a sweep, put together.

use std::path::PathBuf;

use crate::cli::common::stdin_once;
use crate::cli::{Outcome, output};
use crate::diff::sweep::{Sweep, SweepLine, SweepSummary};
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::report::sweep as report;
use crate::text::printable_json;

/// Put the shards of a sweep together: what each `diff --prompts FILE --shard I/N --json` wrote.
///
/// Exit code as that of the whole sweep: 0 if the sides agree at every prompt, 1 if not. Shards of different sweeps, and one that is
/// missing or ended early, are refused.
#[derive(clap::Args)]
pub struct Args {
    /// The shards, in any order; - for standard input
    #[arg(value_name = "SHARD.jsonl", required = true)]
    shards: Vec<PathBuf>,
    /// The lines of the whole sweep on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    stdin_once(&args.shards)?;
    let read = |path: &PathBuf| {
        let kind = FileKind::SWEEP.or_stdin();
        let text = kind.read_text(path)?;
        let path = kind.called(path);
        Ok((path.display().to_string(), Sweep::parse(path, &text)?))
    };
    let shards: Vec<(String, Sweep)> = args.shards.iter().map(read).collect::<Result<_>>()?;
    let Sweep { header, results } = Sweep::merge(&shards)?;
    let summary = SweepSummary::of(&results);
    let agrees = summary.agrees();
    let prompts = results.into_iter().map(SweepLine::Prompt);
    let mut text = String::new();
    for line in [SweepLine::Sweep(header)].into_iter().chain(prompts).chain([SweepLine::Summary(summary)]) {
        if args.json {
            text += &printable_json(&serde_json::to_string(&line).map_err(|e| Error::input(format!("json: {e}")))?);
            text.push('\n');
        } else {
            text += &report::line(&line);
        }
    }
    match args.json {
        true => output::print_data(&text).map(|_| ())?,
        false => output::print(&text)?,
    }
    Ok(if agrees { Outcome::Ok } else { Outcome::Diverged })
}
