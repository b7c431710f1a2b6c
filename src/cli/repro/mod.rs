//! `repro`: a failing stage as a folder that fails alone; `repro run`: that folder again, anywhere.

mod rerun;

use std::path::{Path, PathBuf};

use crate::Result;
use crate::backend::gpu::GpuBackend;
use crate::backend::gpu_selector;
use crate::backend::{AnyBackend, Backend, NamedContract};
use crate::cli::Outcome;
use crate::cli::common::{
    BackendArgs, ModelArg, PromptArgs, check_layer, contract_called, prepare, say_tuning, stage_called,
};
use crate::cli::output::{print, print_json};
use crate::environment::Environment;
use crate::error::Error;
use crate::model::{Calls, LogitRows, Model, Runner};
use crate::op::{Scope, Site};
use crate::report;
use crate::report::repro::{ReproDocument, SCHEMA};
use crate::repro::capture::Target;
use crate::repro::{RUNS, ReproOptions, ReproVerdict, Subject, check_out, held, make};
use crate::trace::select::has_expert_rows;

/// Put a failing stage into a folder that fails alone, cut down to as little as still shows the error; `repro run DIR` runs
/// it again.
///
/// The folder has the operation, its operands, the float64 oracle's result with the floor of each element, and, for a GPU,
/// each kernel's WGSL source with its parameters and buffers. Exit code 1: the stage fails; 0: there is nothing to reproduce.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    prompt: PromptArgs,
    /// The layer; none for the whole-model stages
    #[arg(long, value_name = "N")]
    layer: Option<u32>,
    /// The stage, by its name or an alias
    #[arg(long, value_name = "STAGE", required = true)]
    stage: Option<String>,
    /// Only the rows of this expert
    #[arg(long, value_name = "E")]
    expert: Option<u32>,
    /// Only this position, in the call that has it
    #[arg(long, value_name = "P")]
    position: Option<usize>,
    /// The side to examine
    #[arg(long, value_name = "BACKEND", default_value = "gpu")]
    subject: String,
    /// The side that chooses decoded tokens, and runs the folder's operands too
    #[arg(long, value_name = "BACKEND", default_value = "cpu:scalar")]
    reference: String,
    /// Decode this many tokens after the prompt, each the reference's choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    decode: usize,
    /// Prompt tokens run at a time
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// What the subject's arithmetic is held to: a contract's NAME, or FILE.json [default: what it promises]
    #[arg(long, value_name = "NAME")]
    contract: Option<String>,
    /// Runs that the search for the smallest failing case may take; 0 keeps all of it
    #[arg(long, value_name = "N", default_value_t = RUNS)]
    runs: usize,
    /// The folder to write
    #[arg(long, value_name = "DIR", required = true)]
    out: Option<PathBuf>,
    /// Replace the repro folder in DIR
    #[arg(long)]
    force: bool,
    /// Write the stage even if it does not fail
    #[arg(long)]
    keep: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backends: BackendArgs,
}

#[derive(clap::Subcommand)]
enum Command {
    Run(rerun::Args),
}

pub fn run(args: &Args) -> Result<Outcome> {
    match &args.command {
        Some(Command::Run(args)) => rerun::run(args),
        None => from_model(args),
    }
}

fn emit(document: &ReproDocument, json: bool) -> Result<()> {
    if json { print_json(document) } else { print(&report::repro::render(document)) }
}

fn from_model(args: &Args) -> Result<Outcome> {
    let (Some(stage), Some(out)) = (&args.stage, &args.out) else {
        return Err(Error::usage("--stage and --out are needed"));
    };
    args.backends.check(&[&args.reference, &args.subject])?;
    let contract = args.contract.as_deref().map(|name| contract_called(name, &[])).transpose()?;
    let model = args.model.open()?;
    let prompt = args.prompt.resolve(&model)?;
    let target = target(args, stage, &model)?;
    let calls = Calls { prompt: &prompt.tokens, chunk: args.chunk as usize, decode: args.decode, forced: &[] };
    let positions = calls.positions(&model.config)?;
    if let Some(p) = args.position.filter(|p| *p >= positions) {
        return Err(Error::usage(format!("--position {p}: the run has positions 0 to {}", positions - 1)));
    }
    check_out(out, args.force)?;
    let mut reference = args.backends.open(&args.reference)?;
    let tokens = decoded(calls, &model, &mut reference)?;
    let calls = Calls { forced: &tokens, ..calls };
    let job = Job { args, model: &model, calls, target, contract, out };
    match gpu_selector(&args.subject) {
        Some(selector) => {
            let gpu = GpuBackend::new(&selector, args.backends.options().of_gpu())?;
            Environment::used_backend(&gpu.info());
            say_tuning(&gpu.info());
            job.finish(gpu, reference)
        }
        None => job.finish(args.backends.open(&args.subject)?, reference),
    }
}

/// The stage that the arguments name, held against the model.
fn target(args: &Args, name: &str, model: &Model) -> Result<Target> {
    let moe = model.config.moe.as_ref();
    let stage = stage_called(name, model)?;
    if args.layer.is_none() && stage.info().scope != Scope::Model {
        return Err(Error::usage(format!("--stage {stage}: --layer is needed, 0 to {}", model.config.layers - 1)));
    }
    check_layer(args.layer, stage, model)?;
    if let Some(expert) = args.expert {
        let experts = moe.map_or(0, |m| m.experts);
        if !has_expert_rows(stage) {
            return Err(Error::usage(format!("--expert {expert}: {stage} has no rows of single experts")));
        }
        if expert as usize >= experts {
            return Err(Error::usage(format!("--expert {expert}: a layer has experts 0 to {}", experts - 1)));
        }
    }
    Ok(Target { site: Site { layer: args.layer, stage }, position: args.position, expert: args.expert })
}

/// What the reference decodes after the prompt.
fn decoded(calls: Calls<'_>, model: &Model, reference: &mut AnyBackend) -> Result<Vec<u32>> {
    if calls.decode == 0 {
        return Ok(Vec::new());
    }
    prepare(reference, model)?;
    // The last token is chosen but not run.
    let calls = Calls { decode: calls.decode - 1, ..calls };
    let mut runner = Runner::new(reference, model, calls, LogitRows::Last)?;
    while runner.step(reference)? {}
    let last = runner.choice(reference)?;
    Ok([&runner.tokens()[calls.prompt.len()..], &[last]].concat())
}

/// A folder to be made.
struct Job<'a> {
    args: &'a Args,
    model: &'a Model,
    calls: Calls<'a>,
    target: Target,
    contract: Option<NamedContract>,
    out: &'a Path,
}

impl Job<'_> {
    fn finish<S: Subject>(self, mut subject: S, mut reference: AnyBackend) -> Result<Outcome> {
        let Job { args, model, calls, target, contract, out } = self;
        prepare(&mut subject, model)?;
        let options = ReproOptions { runs: args.runs, keep: args.keep, contract: contract.clone() };
        let made = make(&mut subject, &mut reference, model, calls, &target, options, (out, args.force))?;
        let verdict = made.verdict;
        let written = made.written.as_ref();
        let document = ReproDocument {
            schema: SCHEMA,
            action: "make",
            layer: target.site.layer,
            stage: target.site.stage.name().into(),
            verdict,
            subject: held(subject.info(), contract.as_ref()),
            reference: written.map(|w| w.reference.clone()),
            shrinking: written.map(|w| w.shrinking),
            kernels: written.map_or(Vec::new(), |w| w.kernels.clone()),
            notes: written.map_or(Vec::new(), |w| w.notes.clone()),
            folder: written.map(|_| out.to_path_buf()),
            shape: made.shape,
            alone: made.alone,
            pattern: made.pattern,
            in_the_run: made.in_the_run,
        };
        emit(&document, args.json)?;
        Ok(if verdict == ReproVerdict::Ok { Outcome::Ok } else { Outcome::Diverged })
    }
}
