//! `trace`: statistics of every stage of a run, and the values of chosen ones on disk.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use crate::Result;
use crate::cli::Outcome;
use crate::cli::common::{BackendArgs, ModelArg, PromptArgs, prepare};
use crate::cli::output::{print, print_json};
use crate::model::Calls;
use crate::report::trace::{self, TraceReport};
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
    /// The backend: cpu, cpu:scalar, cpu:avx2, cpu:avx512, gpu, gpu:N, gpu:NAME, oracle
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
    let model = args.model.open()?;
    let prompt = args.prompt.resolve(&model)?;
    let config = &model.config;
    let calls = Calls { prompt: &prompt.tokens, chunk: args.chunk as usize, decode: args.decode, forced: &[] };
    let positions = calls.positions(config)?;
    // Before the model is loaded, so that a wrong name costs no time.
    let writer = match (&args.save, &args.out) {
        (Some(stages), Some(out)) => {
            let selection = Selection::parse(stages, &args.layers, &args.positions, &args.experts)?;
            let experts = config.moe.as_ref().map_or(0, |m| m.experts);
            let selected = selection.resolve(config.layers, positions, experts, config.layout())?;
            Some(TraceWriter::create(out, args.force, selected)?)
        }
        _ => None,
    };
    let mut backend = args.backends.open(&args.backend)?;
    prepare(&mut backend, &model)?;

    let bar = ProgressBar::new(positions as u64).with_style(
        ProgressStyle::with_template("tracing {bar:30} {pos}/{len} positions, {eta} left").expect("a valid template"),
    );
    bar.tick();
    let recorder = Recorder::new(writer);
    let mut captured = capture(backend, &model, calls, recorder, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    if let Some(why) = &captured.stopped {
        eprintln!("note: {why}");
    }

    let statistics: Vec<_> = captured.recorder.statistics.sites().collect();
    let saved = match (captured.recorder.writer.take(), &args.out) {
        (Some(writer), Some(out)) => {
            let run = captured.run(&model, prompt.text.clone(), prompt.tokens.len());
            let rows = statistics.iter().cloned().map(SiteStats::new).collect();
            Some((out.clone(), writer.finish(run, None, rows)?))
        }
        _ => None,
    };
    let top = trace::top(&captured.logits, &model);
    let (prompt_tokens, prompt) = (prompt.tokens.len(), prompt.text);
    let report = TraceReport { model, prompt, prompt_tokens, captured, statistics, top, saved };
    if args.json {
        print_json(&report.json())?;
    } else {
        print(&trace::render(&report, args.full || report.model.config.layers <= 8))?;
    }
    Ok(Outcome::Ok)
}
