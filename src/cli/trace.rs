//! `trace`: statistics of every stage of a run, and the values of chosen ones on disk.

use std::path::PathBuf;
use std::time::Instant;

use crate::backend::AnyBackend;
use crate::cli::Outcome;
use crate::cli::common::{BackendArgs, ModelArg, Prompt, PromptArgs, prepare, progress_bar};
use crate::cli::output::{print, print_data, print_json, remark};
use crate::cli::sweep::{Prompts, ReadyPrompt};
use crate::diff::sweep::Shard;
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::model::{Calls, Model};
use crate::report::trace::{self, TraceReport};
use crate::text::printable_json;
use crate::trace::capture::{Recorder, capture};
use crate::trace::select::Selection;
use crate::trace::store::{SiteStats, TraceWriter};

/// Show every stage of a run in figures, and save the values of chosen stages.
///
/// Statistics are of all stages of all layers, over the last position and over all positions. They are over finite values;
/// NaN and infinities are counted apart.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Many prompts, one a line: {"id": "a", "prompt": "text"} or with "tokens": [1, 2]; everything is loaded once, each result is
    /// one line, and traces are saved in DIR under the prompts' ids; - for standard input
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["prompt", "prompt_file", "tokens", "full"])]
    prompts: Option<PathBuf>,
    /// Do every N-th prompt only, from the I-th on
    #[arg(long, value_name = "I/N", requires = "prompts", conflicts_with_all = ["prompt", "prompt_file", "tokens", "full"])]
    shard: Option<Shard>,
    /// The backend: cpu, cpu:scalar, cpu:avx2, cpu:avx512, cpu:neon, cpu:int8, gpu, gpu:N, gpu:NAME, oracle
    #[arg(long, value_name = "BACKEND", default_value = "cpu")]
    backend: String,
    /// Prompt tokens run at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// Tokens to decode greedily after the prompt, one at a time
    #[arg(long, value_name = "N", default_value_t = 0)]
    decode: usize,
    #[command(flatten)]
    backends: BackendArgs,
    /// Print every figure of every stage; so it is for models of up to 8 layers
    #[arg(long, conflicts_with = "json")]
    full: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,

    /// Stages to save: names, aliases and globs such as 'router*,moe_out', with -N for one layer; or `all`
    #[arg(long, value_name = "STAGES", requires = "out", help_heading = "Saving")]
    save: Option<String>,
    /// The trace directory to write
    #[arg(long, value_name = "DIR", requires = "save", help_heading = "Saving")]
    out: Option<PathBuf>,
    /// Layers to save, such as 0-3,7,-1
    #[arg(long, value_name = "LAYERS", default_value = "all", requires = "save", allow_hyphen_values = true)]
    #[arg(help_heading = "Saving")]
    layers: String,
    /// Positions to save: `last`, `all`, or a list such as 0,5-9
    #[arg(long, value_name = "POSITIONS", default_value = "all", requires = "save", allow_hyphen_values = true)]
    #[arg(help_heading = "Saving")]
    positions: String,
    /// Experts whose rows of the expert stages to save, such as 3,17
    #[arg(long, value_name = "EXPERTS", default_value = "all", requires = "save", allow_hyphen_values = true)]
    #[arg(help_heading = "Saving")]
    experts: String,
    /// Replace the trace in DIR
    #[arg(long, requires = "out", help_heading = "Saving")]
    force: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    args.backends.check(&[&args.backend])?;
    let model = args.model.open()?;
    let prompts = match &args.prompts {
        Some(path) => Prompts::read(path, args.shard.unwrap_or(Shard::WHOLE), &model, args.decode, &args.prompt)?.here,
        None => {
            let Prompt { text, tokens } = args.prompt.resolve(&model)?;
            vec![ReadyPrompt { index: 0, id: String::new(), text, tokens }]
        }
    };
    if args.out.is_some()
        && let Some(prompt) = prompts.iter().find(|prompt| args.prompts.is_some() && !is_file_name(&prompt.id))
    {
        return Err(Error::usage(format!(
            "--out: prompt {:?} would be no folder's name; an id of letters, digits, - and _ is expected",
            prompt.id
        )));
    }
    // Before the model is loaded, so that a wrong name costs no time.
    let first = writer(args, &model, &prompts[0])?;
    let mut backend = args.backends.open(&args.backend)?;
    prepare(&mut backend, &model)?;
    model.remarks().iter().for_each(|said| remark(&format!("note: {said}")));
    let mut writers = vec![first];
    for prompt in &prompts {
        let writer = writers.pop().map_or_else(|| writer(args, &model, prompt), Ok)?;
        let start = Instant::now();
        let (report, back) = one(args, &model, prompt, backend, writer)?;
        backend = back;
        match (args.prompts.is_some(), args.json) {
            (false, true) => print_json(&report.json())?,
            (false, false) => print(&trace::render(&report, args.full || model.config.layers <= 8))?,
            (true, true) => {
                let line = Environment::with(&report.json())?.to_string();
                print_data(&(printable_json(&line) + "\n")).map(|_| ())?
            }
            (true, false) => print(&trace::line(&report, prompt.index, &prompt.id, start.elapsed().as_secs_f64()))?,
        }
    }
    Ok(Outcome::Ok)
}

/// Whether a folder may bear `id` as its name.
fn is_file_name(id: &str) -> bool {
    !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// Where a prompt's trace is saved: the directory itself, or one of the prompt's name in it.
fn target(args: &Args, prompt: &ReadyPrompt) -> Option<PathBuf> {
    args.out.as_ref().map(|out| if args.prompts.is_some() { out.join(&prompt.id) } else { out.clone() })
}

/// The trace that a prompt's run will be saved as, if one was asked for.
fn writer(args: &Args, model: &Model, prompt: &ReadyPrompt) -> Result<Option<TraceWriter>> {
    let config = &model.config;
    let positions = calls(args, prompt).positions(config)?;
    let (Some(stages), Some(out)) = (&args.save, target(args, prompt)) else { return Ok(None) };
    let selection = Selection::parse_flag("--save", stages, &args.layers, &args.positions, &args.experts)?;
    let experts = config.moe.as_ref().map_or(0, |m| m.experts);
    let selected = selection.resolve(config.layers, positions, experts, config.layout())?;
    if let Some(parent) = args.prompts.as_ref().and(args.out.as_ref()) {
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    }
    Ok(Some(TraceWriter::create(&out, args.force, selected)?))
}

fn calls<'a>(args: &Args, prompt: &'a ReadyPrompt) -> Calls<'a> {
    Calls { prompt: &prompt.tokens, chunk: args.chunk as usize, decode: args.decode, forced: &[] }
}

/// Runs a prompt, and gives the backend back for the next.
fn one<'m>(
    args: &Args,
    model: &'m Model,
    prompt: &ReadyPrompt,
    backend: AnyBackend,
    writer: Option<TraceWriter>,
) -> Result<(TraceReport<'m>, AnyBackend)> {
    let calls = calls(args, prompt);
    let positions = calls.positions(&model.config)?;
    let bar = progress_bar("tracing {bar:30} {pos}/{len} positions, {eta} left");
    bar.set_length(positions as u64);
    bar.tick();
    let recorder = Recorder::new(writer);
    let (mut captured, backend) = capture(backend, model, calls, recorder, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    if let Some(why) = &captured.stopped {
        remark(&format!("note: {why}"));
    }
    if captured.recorder.not_finite.is_some()
        && let Some(place) = model.weights.first_not_finite()?
    {
        remark(&format!("note: the file's {place} is not finite"));
    }
    let statistics: Vec<_> = captured.recorder.statistics.sites().collect();
    let saved = match (captured.recorder.writer.take(), target(args, prompt)) {
        (Some(writer), Some(out)) => {
            let run = captured.run(model, prompt.text.clone(), prompt.tokens.len());
            let rows = statistics.iter().cloned().map(SiteStats::new).collect();
            Some((out, writer.finish(run, None, rows)?))
        }
        _ => None,
    };
    let top = trace::top(&captured.logits, model);
    let (prompt_tokens, prompt) = (prompt.tokens.len(), prompt.text.clone());
    Ok((TraceReport { model, prompt, prompt_tokens, captured, statistics, top, saved }, backend))
}
