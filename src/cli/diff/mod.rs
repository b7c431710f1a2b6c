//! `diff`: two backends in lockstep over one prompt; the first stage whose own error is more than rounding explains.

mod next;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::backend::{AnyBackend, Contract, Erased, NamedContract, Precision, Showing};
use crate::cli::common::{
    BackendArgs, ModelArg, PromptArgs, contract_called, prepare, progress_bar, tell, tuning_note,
};
use crate::cli::reports::ReportArgs;
use crate::cli::sweep::{self, Prompts};
use crate::cli::{Outcome, output, vary};
use crate::diff::measure::metrics;
use crate::diff::measure::tolerance::Tolerances;
use crate::diff::outcome::{Comparison, ProductionVerdict};
use crate::diff::run::driver::{DiffOptions, DiffProgress, Sides, diff_telling};
use crate::diff::run::infer::{Inference, infer};
use crate::diff::run::vary::Vary;
use crate::diff::sweep::{Compared, Shard};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::op::{LayerLayout, Site, Stage};
use crate::report::format::percent;
use crate::report::json::Document;
use crate::report::text;
use crate::text::count;
use crate::trace::MOST_EXPERTS;
use crate::trace::recorded::Recorded;
use crate::trace::select::{Selected, Selection, stages_in};
use crate::trace::store::{Imported, Run, Trace};
use next::{capture_next, next};

/// Compare two backends stage by stage.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Many prompts, one a line: {"id": "a", "prompt": "text"} or with "tokens": [1, 2]; everything is loaded once, and each result
    /// is a line as soon as it is there (with --json, one of JSON); - for standard input
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["prompt", "prompt_file", "tokens", "vary", "report", "require", "full"])]
    prompts: Option<PathBuf>,
    /// Do every N-th prompt only, from the I-th on, for N processes that share a sweep; `merge` puts their results together
    #[arg(long, value_name = "I/N", requires = "prompts", conflicts_with_all = ["prompt", "prompt_file", "tokens", "vary", "report", "require", "full"])]
    shard: Option<Shard>,
    /// The side to compare with: a backend, or trace:DIR
    #[arg(long, value_name = "BACKEND", default_value = "cpu:scalar")]
    reference: String,
    /// The side to examine: a backend, or trace:DIR
    #[arg(long, value_name = "BACKEND", default_value = "gpu")]
    subject: String,
    /// Decode this many tokens after the prompt, each the reference's choice; other kernels make one position than many
    /// [default: 1 where the context has room for it; 0 with --prompts]
    #[arg(long, value_name = "N")]
    decode: Option<usize>,
    /// Prompt tokens run at a time
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// What a side's arithmetic is held to: SIDE=NAME, SIDE=FILE.json, or SIDE=infer to work it out; SIDE is reference or subject
    #[arg(long, value_name = "SIDE=NAME", value_parser = side_contract)]
    contract: Vec<(usize, String)>,
    /// Look at these stages of the subject only, such as 'layer_out,logits', as if its kernels were fused between them
    #[arg(long, value_name = "STAGES")]
    shows: Option<String>,
    /// A limit that decides for a stage in place of its rounding floor, such as 'expert_down:nmse<=5e-4'; several allowed
    #[arg(long, value_name = "STAGE:METRIC<=VALUE")]
    tol: Vec<String>,
    /// Judge by nmse thresholds alone, without the float64 oracle
    #[arg(long)]
    no_oracle: bool,
    /// Look at these layers only, such as 3,10-12,-1; the others are run
    #[arg(long, value_name = "LAYERS", default_value = "all", allow_hyphen_values = true)]
    layers: String,
    /// Look at these stages only, such as 'attn_*,moe_out'; the others are run
    #[arg(long, value_name = "STAGES", default_value = "all")]
    stages: String,
    /// End the run with the first stage that is wrong
    #[arg(long, value_name = "WHEN", value_parser = ["first"])]
    stop_at: Option<String>,
    /// Stages that must have been compared, in every layer, for the sides to agree: `all`, or such as 'attn_*,moe_out'
    #[arg(long, value_name = "STAGES", conflicts_with = "stop_at")]
    require: Option<String>,
    /// Whose choice of experts the subject computes with
    #[arg(long, value_name = "SIDE", default_value = "own", value_parser = ["own", "reference"])]
    routing: String,
    /// Repeat the prompt until one call takes the second tile and workgroup of every kernel of the subject
    #[arg(long, conflicts_with_all = ["prompts", "vary", "chunk"])]
    cover: bool,
    /// Hold the subject against itself instead: rows or rows=1,4 (which stages depend on how many rows a call has), chunk or chunk=1,7,64 (prefill
    /// chunk sizes), length=3..9 (shorter prompts), threads=1,2, repeat=3 (runs), reuse (a backend that has run something else), order (the prompt and its first half, in either order)
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["reference", "contract", "shows", "decode", "chunk", "tol", "no_oracle", "routing", "layers", "stages", "stop_at", "require", "full", "report"])]
    vary: Option<Vary>,
    /// Every stage, not only the worst; in a document every position and router, too
    #[arg(long)]
    full: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reports: ReportArgs,
    #[command(flatten)]
    backends: BackendArgs,
}

impl Args {
    /// Refuses what is no single comparison, for a verb that is of one.
    pub fn is_of_one_comparison(&self, verb: &str) -> Result<()> {
        let stdout = self.reports.to_stdout();
        let many = [
            ("--prompts", self.prompts.is_some()),
            ("--vary", self.vary.is_some()),
            ("--json", self.json),
            ("--report -", stdout),
        ];
        match many.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Error::usage(format!("{flag}: {verb} is of one comparison, and writes Markdown"))),
            None => Ok(()),
        }
    }
}

pub fn run(args: &Args) -> Result<Outcome> {
    run_and(args, |comparison| print_comparison(comparison, args.json, args.full))
}

/// Compares, writes reports, and gives the comparison to `print`.
pub fn run_and(args: &Args, print: impl FnOnce(&Comparison) -> Result<()>) -> Result<Outcome> {
    once_a_side(&args.contract)?;
    let tolerances = Tolerances::parse(&args.tol)?;
    let reports = args.reports.open(args.json)?;
    match &args.vary {
        Some(_) => args.backends.check(&[&args.subject])?,
        None => args.backends.check(&[&args.reference, &args.subject])?,
    }
    let model = args.model.open()?;
    if let Some(what) = &args.vary {
        let prompt = args.prompt.resolve(&model)?;
        return vary::run(&model, &prompt, what, &args.subject, &args.backends, args.json);
    }
    let layout = (model.config.layers, model.config.layout());
    let (mut reference, mut subject) =
        (Side::open(args, &model, &args.reference)?, Side::open(args, &model, &args.subject)?);
    if let Some(text) = &args.shows {
        sites_of("--shows", text, layout)?; // stages that the model has not are refused
        subject.backend = Box::new(Showing::new(subject.backend, &stages_in(text).map_err(|e| e.within("--shows"))?));
    }
    let select = selected(args, &model)?;
    // Before the run, which may be long.
    check_tolerances(&args.tol, layout)?;
    let require = args.require.as_deref().map(|stages| required(stages, layout)).transpose()?;
    heard(args, select.as_ref(), layout, require.as_deref())?;
    let judged = !args.no_oracle;
    if judged {
        // Refuses a type of weight that the oracle does not read before anything runs.
        Side::open(args, &model, "oracle")?;
    }
    if !judged && reference.recorded.is_some() {
        return Err(Error::usage("--no-oracle with a recorded reference: nothing could replay a stage"));
    }
    if args.routing == "reference" && subject.recorded.is_some() {
        return Err(Error::usage(
            "--routing reference with a recorded subject: what it made of other experts was not saved",
        ));
    }
    let mut options = DiffOptions {
        chunk: args.chunk as usize,
        tolerances,
        force_routing: args.routing == "reference",
        reference_is_recorded: reference.recorded.is_some(),
        select,
        stop_at_first: args.stop_at.is_some(),
        ..DiffOptions::new(Vec::new())
    };
    let prompts = match &args.prompts {
        Some(_) if reference.recorded.is_some() || subject.recorded.is_some() => {
            return Err(Error::usage("--prompts with a trace as a side: a trace is of one prompt"));
        }
        Some(_) if options.force_routing || args.contract.iter().any(|(_, name)| name == "infer") => {
            return Err(Error::usage("--prompts: --routing reference and --contract infer are of one prompt"));
        }
        Some(path) => Some(Prompts::read(
            path,
            args.shard.unwrap_or(Shard::WHOLE),
            &model,
            args.decode.unwrap_or(0),
            &args.prompt,
        )?),
        None => None,
    };
    // A recording says what was run; otherwise the command line does.
    match reference.recorded.as_ref().or(subject.recorded.as_ref()) {
        Some(run) if args.prompt.is_given() || args.decode.is_some() || args.cover => {
            return Err(Error::usage(format!(
                "a trace of {} is a side, so --prompt, --prompt-file, --tokens, --chat, --decode and --cover have nothing to say",
                count(run.tokens.len(), "token")
            )));
        }
        Some(run) => {
            let (prompt, decoded) = run.tokens.split_at(run.prompt_tokens);
            options.tokens = prompt.to_vec();
            options.forced = decoded.to_vec();
            options.decode = decoded.len();
            options.prompt = run.prompt.clone();
        }
        None if prompts.is_some() => options.decode = args.decode.unwrap_or(0),
        None => {
            let prompt = args.prompt.resolve(&model)?;
            options.tokens =
                if args.cover { covering(&model, &subject.backend, &prompt.tokens)? } else { prompt.tokens };
            if args.cover {
                options.chunk = options.chunk.max(options.tokens.len());
            }
            options.prompt = prompt.text;
            options.decode = args.decode.unwrap_or(usize::from(options.tokens.len() < model.config.context));
        }
    }
    let mut sides = Sides { reference: &mut reference.backend, subject: &mut subject.backend, judged };
    let mut inferred = Vec::new();
    for (side, name) in &args.contract {
        options.contracts[*side] = Some(match name.as_str() {
            "infer" if !judged => {
                return Err(Error::usage("--contract infer needs the oracle: --no-oracle leaves it out"));
            }
            "infer" => {
                let bar =
                    progress_bar("{spinner} inferring {bar:30} {pos}/{len} stages, {elapsed}, {eta} left · {msg}");
                let mut tell = |DiffProgress { at, done, of }: DiffProgress| tell(&bar, &at.site.to_string(), done, of);
                let found = infer(&model, &mut sides, &options, *side, &mut tell);
                bar.finish_and_clear();
                let found = found?;
                inferred.extend(words(SIDES[*side], &found));
                found.contract
            }
            name => contract_called(name, &["infer"])?,
        });
    }
    let compared = prompts.as_ref().map(|_| compared(args, &model, &sides, &options));
    let mut run = |options: &DiffOptions| {
        let bar = progress_bar("{spinner} comparing {bar:30} {pos}/{len} stages, {elapsed}, {eta} left · {msg}");
        let mut tell = |DiffProgress { at, done, of }: DiffProgress| tell(&bar, &at.site.to_string(), done, of);
        let result = diff_telling(&model, sides.reborrow(), options, &mut tell);
        bar.finish_and_clear();
        result
    };
    if let (Some(prompts), Some(compared)) = (&prompts, compared) {
        return sweep::run(prompts, compared, args.json, |prompt| {
            let (tokens, prompt) = (prompt.tokens.clone(), prompt.text.clone());
            run(&DiffOptions { tokens, prompt, ..options.clone() })
        });
    }
    let mut comparison = run(&options)?;
    comparison.notes.extend(inferred);
    let tunings = [&comparison.reference, &comparison.subject].map(|side| tuning_note(&side.info));
    comparison.notes.extend(tunings.into_iter().flatten());
    let mut unforced = None;
    if options.force_routing {
        let own = run(&DiffOptions { force_routing: false, shares: false, ..options.clone() })?;
        match only_fused(&own) {
            // Of the subject's own run, which is what tells it.
            true => comparison = own,
            false => {
                comparison.notes.push(vanished(&own, &comparison));
                let faults = own.stages.iter().filter(|s| s.verdict.is_fault());
                unforced = Some(faults.map(|s| (s.step, s.site)).collect::<Vec<_>>());
                comparison.production = comparison.production.or(own.production);
            }
        }
    }
    if let Some(stages) = require {
        comparison.require(stages);
    }
    comparison.reference.trace = args.reference.strip_prefix("trace:").map(str::to_string);
    comparison.subject.trace = args.subject.strip_prefix("trace:").map(str::to_string);
    comparison.notes.extend(unstated([&reference, &subject], &options.contracts, &comparison));
    comparison.notes.extend(more_exact(&reference.backend, options.contracts[1].as_ref(), &comparison));
    let imported = subject.imported.as_ref();
    comparison.next = comparison.fault().and_then(|fault| match imported {
        Some(imported) => capture_next(args, imported, &options, fault),
        None if only_fused(&comparison) => None, // of one stage no such kernel is run
        // Made with the reference's experts and fine with its own: there is no command that gives a stage those alone.
        None if unforced.as_ref().is_some_and(|faults| !faults.contains(&(fault.step, fault.site))) => None,
        None => next(args, &options, fault),
    });
    if !reports.write(|format| format.render(&comparison))? {
        print(&comparison)?;
    }
    Ok(if comparison.agrees() { Outcome::Ok } else { Outcome::Diverged })
}

/// A prompt repeated until it is long enough for every kernel of the subject, in one call.
fn covering(model: &Model, subject: &AnyBackend, prompt: &[u32]) -> Result<Vec<u32>> {
    let experts = model.config.moe.as_ref().map(|moe| [moe.experts, moe.used]);
    let positions = subject.covering(experts).max(prompt.len());
    let (name, context) = (&model.config.name, model.config.context);
    if positions > context {
        return Err(Error::usage(format!(
            "--cover: every kernel takes {positions} positions; the context length of {name} is {context}"
        )));
    }
    Ok(prompt.iter().copied().cycle().take(positions).collect())
}

/// Whether what is wrong is wrong only while nobody looks.
fn only_fused(comparison: &Comparison) -> bool {
    comparison.production.as_ref().is_some_and(|production| production.verdict == ProductionVerdict::OnlyFusedWrong)
}

/// What decides the results of a sweep, but for its prompts.
fn compared(args: &Args, model: &Model, sides: &Sides<'_>, options: &DiffOptions) -> Compared {
    let side = |side: &AnyBackend, contract: &Option<NamedContract>| {
        let info = side.info();
        [
            info.backend,
            contract.as_ref().map_or(info.contract, |contract| format!("{}: {}", contract.name, contract.text)),
        ]
    };
    let mut further: Vec<String> = args.tol.iter().map(|tol| format!("--tol {tol}")).collect();
    for (flag, value) in [("--shows", &args.shows), ("--stop-at", &args.stop_at)] {
        further.extend(value.iter().map(|value| format!("{flag} {value}")));
    }
    further.extend(args.prompt.chat.then(|| "--chat".to_string()));
    further.extend(args.prompt.system.iter().map(|text| format!("--system {text}")));
    further.extend(args.prompt.variables.iter().map(|(name, value)| format!("--chat-var {name}={value}")));
    for (flag, value) in [("--layers", &args.layers), ("--stages", &args.stages)] {
        further.extend((value != "all").then(|| format!("{flag} {value}")));
    }
    Compared {
        model: model.gguf.name().to_string(),
        fingerprint: model.gguf.fingerprint(),
        reference: side(sides.reference, &options.contracts[0]),
        subject: side(sides.subject, &options.contracts[1]),
        judge: sides.judged.then(|| "oracle".to_string()),
        decode: options.decode,
        chunk: options.chunk,
        options: further,
        prompts: 0,
        prompts_sha256: String::new(),
    }
}

/// What `--layers` and `--stages` ask about; `None` is everything.
fn selected(args: &Args, model: &Model) -> Result<Option<Selected>> {
    if (args.layers.as_str(), args.stages.as_str()) == ("all", "all") {
        return Ok(None);
    }
    let moe = model.config.moe.as_ref();
    let selection = Selection::parse_flag("--stages", &args.stages, &args.layers, "all", "all")?;
    let selected =
        selection.resolve(model.config.layers, 1, moe.map_or(0, |moe| moe.experts), model.config.layout())?;
    // Stages outside of layers are asked about where they are named.
    let whole_model = args.stages == "all";
    Ok(Some(Selected::of(selected.sites().filter(|site| !whole_model || site.layer.is_some()), 1)))
}

/// What `--require` asks for of a model of so many layers.
pub fn required(stages: &str, model: (usize, LayerLayout)) -> Result<Vec<Site>> {
    sites_of("--require", stages, model)
}

/// Refuses tolerances of stages that a model of so many layers has not.
///
/// # Errors
/// [`Error::Usage`] that names the flag, the stage and the nearest.
pub fn check_tolerances(args: &[String], model: (usize, LayerLayout)) -> Result<()> {
    args.iter().try_for_each(|tol| sites_of("--tol", tol_stage(tol), model).map(drop))
}

fn tol_stage(tol: &str) -> &str {
    tol.split_once(':').map_or(tol, |(stage, _)| stage).trim()
}

/// Refuses what is asked of stages that `--layers` and `--stages` leave out: a limit that decides nothing, and what must be compared and is not.
fn heard(args: &Args, select: Option<&Selected>, model: (usize, LayerLayout), require: Option<&[Site]>) -> Result<()> {
    let Some(select) = select else { return Ok(()) };
    let looked_at: BTreeSet<Site> = select.sites().collect();
    let given = [("--layers", &args.layers), ("--stages", &args.stages)];
    let given = given.iter().filter(|(_, value)| value.as_str() != "all");
    let given = given.map(|(flag, value)| format!("{flag} {value}")).collect::<Vec<_>>().join(" and ");
    if let (Some(text), Some(sites)) = (&args.require, require)
        && let Some(missed) = sites.iter().find(|site| !looked_at.contains(site))
    {
        let what = format!("--require {text} with {given}: {missed} is not looked at, and so not compared");
        return Err(Error::usage(what + "; `--require` asks for stages that are, in every layer"));
    }
    for tol in &args.tol {
        if !sites_of("--tol", tol_stage(tol), model)?.iter().any(|site| looked_at.contains(site)) {
            return Err(Error::usage(format!("--tol {tol} with {given}: no stage that it is of is looked at")));
        }
    }
    Ok(())
}

/// Where a model of so many layers has the stages that a flag lists.
fn sites_of(flag: &'static str, stages: &str, (layers, layout): (usize, LayerLayout)) -> Result<Vec<Site>> {
    let selection = Selection::parse_flag(flag, stages, "all", "all", "all")?;
    Ok(selection.resolve(layers, 1, MOST_EXPERTS, layout)?.sites().collect())
}

const SIDES: [&str; 2] = ["reference", "subject"];

/// Reads SIDE=NAME.
fn side_contract(text: &str) -> std::result::Result<(usize, String), String> {
    let expected = "expected reference=NAME or subject=NAME";
    let (side, name) = text.split_once('=').ok_or(expected)?;
    let side = SIDES.iter().position(|s| *s == side).ok_or_else(|| format!("{expected}, found the side {side:?}"))?;
    Ok((side, name.to_string()))
}

/// Refuses two contracts of one side: the first would go unheard.
fn once_a_side(contracts: &[(usize, String)]) -> Result<()> {
    for (side, of) in SIDES.iter().enumerate() {
        let names: Vec<&str> = contracts.iter().filter(|(s, _)| *s == side).map(|(_, name)| name.as_str()).collect();
        if names.len() > 1 {
            let names = names.join(" and ");
            return Err(Error::usage(format!("--contract {of}=NAME: expected once, found {names}")));
        }
    }
    Ok(())
}

/// The kinds of mistakes that are none where a side promises no more than it keeps.
const OF_PRECISION: [&str; 4] = ["int8-activations", "input-precision", "output-precision", "sum-precision"];
/// The largest nmse that int8 and 16-bit activations leave in a stage, and that a wrong formula seldom stays below.
const OF_ROUNDING: f64 = 1e-3;

/// What to try where a recording does not state its arithmetic, so that it was held to f32, and errs by about as much as int8 or 16 bits leave.
fn unstated(sides: [&Side; 2], contracts: &[Option<NamedContract>; 2], comparison: &Comparison) -> Option<String> {
    let fault = comparison.fault().filter(|_| comparison.judge.is_some())?;
    let side = match fault.verdict.side() {
        Some(metrics::Side::Reference) => 0,
        _ => 1,
    };
    let silent = sides[side].recorded.as_ref().is_some_and(|run| run.contracts.is_empty()) && contracts[side].is_none();
    let known = fault.cause.as_ref().filter(|cause| cause.reproduced);
    let small = fault.own().metrics().is_some_and(|m| m.nmse <= OF_ROUNDING);
    if !silent || !known.map_or(small, |cause| OF_PRECISION.contains(&cause.id)) {
        return None;
    }
    let of = SIDES[side];
    Some(format!(
        "the {of} does not state its arithmetic and is held to f32; its error is about what int8, f16 or bf16 leave: --contract {of}=infer works \
         out what it keeps, --contract {of}=NAME holds it to llama.cpp-cpu, transformers-bf16 or another"
    ))
}

/// The most nmse that f32 leaves, and the least that operands rounded to 16 bits or fewer do, lie far to both sides of this.
const OF_F32: f64 = 1e-10;

/// What to say of a subject that is held to a contract that rounds operands, and is as near to a reference that rounds none as f32 is.
fn more_exact(reference: &AnyBackend, held_to: Option<&NamedContract>, comparison: &Comparison) -> Option<String> {
    let (fault, held_to) = (comparison.fault()?, held_to?);
    let exact =
        |c: &Contract| [c.activations, c.weights, c.cache].iter().all(|p| matches!(p, Precision::F32 | Precision::F64));
    let (stage, op) = (fault.site.stage, fault.site.stage.info().op);
    let right = fault.judged.is_some_and(|judged| judged.reference <= 1.0);
    let near = fault.own().metrics().is_some_and(|m| m.nmse <= OF_F32);
    let wrong = fault.verdict.side() == Some(metrics::Side::Subject);
    (wrong && right && near && exact(&reference.contract(op)) && !exact(held_to.at(stage, op))).then(|| {
        format!(
            "the subject's own error at the first fault is that of f32: it is more exact there than {}, which rounds operands that the \
             subject does not; --contract subject=infer works out what it keeps",
            held_to.name
        )
    })
}

/// What was inferred of a side, one line each.
fn words(side: &str, found: &Inference) -> Vec<String> {
    let mut lines = vec![format!("the {side}'s errors are {}", found.contract.text)];
    lines.extend(found.lines.iter().map(|line| format!("the {side}: {line}")));
    if !found.unexplained.is_empty() {
        let sites: Vec<String> = found.unexplained.iter().take(8).map(|site| site.key()).collect();
        let more = found.unexplained.len() - sites.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        lines.push(format!("no contract explains the {side}'s {}{more}", sites.join(", ")));
    }
    lines
}

/// What is left of the logits' error when the subject computes with the reference's choice of experts.
fn vanished(own: &Comparison, forced: &Comparison) -> String {
    let error = |c: &Comparison| -> f64 {
        let logits = c.stages.iter().filter(|s| s.site.stage == Stage::Logits);
        logits.filter_map(|s| s.total.metrics()).map(|m| m.error_norm * m.error_norm).sum()
    };
    let flips =
        |c: &Comparison| c.routing.iter().filter_map(|r| r.routing.as_ref().ok()).map(|r| r.flips.len()).sum::<usize>();
    let (before, after) = (error(own), error(forced));
    let share = match before > 0.0 {
        true => format!("{} of the logits' squared error vanishes", percent(1.0 - after / before)),
        false => "the logits have no error to begin with".into(),
    };
    format!(
        "the subject computes with the reference's experts: {share}; its own routing has {}",
        count(flips(own), "flip")
    )
}

/// A side of the comparison: a backend, or a trace that answers like one.
struct Side {
    backend: AnyBackend,
    recorded: Option<Run>,
    /// Where a recording came from, if it is another program's.
    imported: Option<Imported>,
}

impl Side {
    fn open(args: &Args, model: &Model, name: &str) -> Result<Self> {
        if let Some(dir) = name.strip_prefix("trace:") {
            let trace = Trace::open(Path::new(dir))?;
            let (run, imported) = (trace.manifest().run.clone(), trace.manifest().imported.clone());
            let backend = Box::new(Erased(Recorded::new(trace, model)?));
            return Ok(Self { backend, recorded: Some(run), imported });
        }
        // One comparison says it in its report; lines of many have no place for it.
        let mut backend = match args.prompts.is_some() {
            true => args.backends.open(name)?,
            false => args.backends.open_unsaid(name)?,
        };
        prepare(&mut backend, model)?;
        Ok(Self { backend, recorded: None, imported: None })
    }
}

/// Prints a comparison: one JSON document, or the report for people.
pub fn print_comparison(comparison: &Comparison, json: bool, full: bool) -> Result<()> {
    if json {
        output::print_json(&if full { Document::from(comparison) } else { Document::brief(comparison) })
    } else {
        let made_with = if full { "\n".to_string() + &text::made_with(comparison) } else { String::new() };
        output::print(
            &(text::render(comparison, text::Style { color: output::stdout_is_colored(), full }) + &made_with),
        )
    }
}
