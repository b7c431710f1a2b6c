//! Runs a comparison: two opened backends, the oracle, a prompt, and some decode steps.

use crate::backend::{AnyBackend, Backend, Contract, NamedContract, Shown};
use crate::diff::measure::logits::LogitsComparison;
use crate::diff::measure::tolerance::Tolerances;
use crate::diff::outcome::{Comparison, ComparisonKind, ModelSummary, SideSummary};
use crate::diff::run::lockstep::{Lockstep, LockstepOptions, PairObserver};
use crate::diff::run::production;
use crate::diff::run::share;
use crate::diff::run::verdicts::ComparisonBuilder;
use crate::error::{Error, Result};
use crate::model::{Calls, LogitRows, Model, Runner, tokens_sha256};
use crate::op::{At, LayerLayout, OpKind, Site, Stage};
use crate::text::count;
use crate::trace::recorded::sites;
use crate::trace::select::Selected;

/// Prompt tokens that are run at a time unless told otherwise.
pub const CHUNK: usize = 512;

/// What to compare. Backends are opened and their weights prepared.
pub struct Sides<'a> {
    /// The side that is compared with.
    pub reference: &'a mut AnyBackend,
    /// The side that is asked about.
    pub subject: &'a mut AnyBackend,
    /// Whether the float64 oracle judges both; without it stages are held against nmse thresholds.
    pub judged: bool,
}

impl Sides<'_> {
    /// The same sides, for a run after which they are used again.
    pub fn reborrow(&mut self) -> Sides<'_> {
        Sides { reference: self.reference, subject: self.subject, judged: self.judged }
    }
}

/// What to run, and how to judge it.
#[derive(Clone, Debug)]
pub struct DiffOptions {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// The prompt's text, where the tokens came from one.
    pub prompt: Option<String>,
    /// Tokens to decode after the prompt, each the reference's choice…
    pub decode: usize,
    /// …or these, where a recording says what was decoded.
    pub forced: Vec<u32>,
    /// Prompt tokens run at a time.
    pub chunk: usize,
    /// What the reference and the subject are held to, where it is not what they promise.
    pub contracts: [Option<NamedContract>; 2],
    /// Limits that decide for stages in place of floors.
    pub tolerances: Tolerances,
    /// Give the subject the reference's expert ids.
    pub force_routing: bool,
    /// The reference is a recording: the oracle replays in its place.
    pub reference_is_recorded: bool,
    /// Work out each stage's share of the logits' error.
    pub shares: bool,
    /// Look for the causes of faults.
    pub explain: bool,
    /// Look at these stages only; the others are run.
    pub select: Option<Selected>,
    /// End the run with the first stage that is wrong.
    pub stop_at_first: bool,
    /// Hold what the subject computes while nobody looks against what was looked at, where that is by other kernels.
    pub production: bool,
}

impl DiffOptions {
    /// A plain comparison over `tokens`.
    pub fn new(tokens: Vec<u32>) -> Self {
        Self {
            tokens,
            prompt: None,
            decode: 0,
            forced: Vec::new(),
            chunk: CHUNK,
            contracts: [None, None],
            tolerances: Tolerances::default(),
            force_routing: false,
            reference_is_recorded: false,
            shares: true,
            explain: true,
            select: None,
            stop_at_first: false,
            production: true,
        }
    }
}

/// How far a comparison is.
#[derive(Clone, Copy, Debug)]
pub struct DiffProgress {
    /// The stage that is about to be run.
    pub at: At,
    /// Stages done so far, of all calls.
    pub done: usize,
    /// Stages of the whole run.
    pub of: usize,
}

/// Runs both sides in lockstep and judges every stage.
///
/// # Errors
/// A prompt that does not fit the model, or what the backends report; stages of a selection that a side does not show.
pub fn diff(model: &Model, sides: Sides<'_>, options: &DiffOptions) -> Result<Comparison> {
    diff_telling(model, sides, options, &mut |_| ())
}

/// As [`diff`], and tells `progress` each stage before it is run.
///
/// # Errors
/// As [`diff`].
pub fn diff_telling(
    model: &Model,
    mut sides: Sides<'_>,
    options: &DiffOptions,
    progress: &mut dyn FnMut(DiffProgress),
) -> Result<Comparison> {
    let (mut comparison, watched) = compare(model, &mut sides, options, progress)?;
    match watched {
        Some(watched) => production::hold(model, sides, options, progress, comparison, &watched),
        None => {
            if options.production && !sides.subject.fused().is_empty() {
                let name = sides.subject.info().backend;
                comparison.notes.push(format!(
                    "{name}'s kernels of several stages, which run while nobody looks, were not held against this: that takes a run of which \
                     everything is looked at"
                ));
            }
            Ok(comparison)
        }
    }
}

/// Looks at the stages that are asked about. Of a run of which everything was looked at, and in which the subject went its own way, also what
/// a run without anybody looking can be held against.
///
/// # Errors
/// As [`diff`].
pub(super) fn compare(
    model: &Model,
    sides: &mut Sides<'_>,
    options: &DiffOptions,
    progress: &mut dyn FnMut(DiffProgress),
) -> Result<(Comparison, Option<Watched>)> {
    let prompt = &options.tokens;
    let contracts = contracts(sides, options);
    let Sides { reference, subject, judged } = &*sides;
    let side = |side: &AnyBackend, contract: &Option<NamedContract>| {
        let mut info = side.info();
        if let Some(contract) = contract {
            info.contract = format!("{}: {}", contract.name, contract.text);
        }
        SideSummary { info, trace: None }
    };
    let of = stages_of(model, options, options.decode);
    let mut comparison = Comparison {
        kind: ComparisonKind::Diff,
        model: summary(model),
        tokens: prompt.len(),
        tokens_sha256: tokens_sha256(prompt),
        prompt: options.prompt.clone(),
        decode: options.decode,
        reference: side(reference, &options.contracts[0]),
        subject: side(subject, &options.contracts[1]),
        judge: judged.then(|| "oracle".to_string()),
        stages: Vec::new(),
        first_fault: None,
        first_visible: None,
        routing: Vec::new(),
        logits: None,
        production: None,
        run_stages: Some(of),
        lacking: Vec::new(),
        notes: Vec::new(),
        next: None,
    };
    comparison.notes = notes([&comparison.reference, &comparison.subject], &contracts);
    let partial = [&**reference, &**subject].map(|side| hides(side, model, prompt.len() + options.decode));
    if options.select.is_some() && partial.contains(&true) {
        return Err(Error::usage(
            "a side does not show all stages: what it hides is judged with what it shows next, so all of them are looked at, not \
             chosen layers or stages",
        ));
    }
    let mut done = 0;
    let mut tell = |at| {
        progress(DiffProgress { at, done, of });
        done += 1;
    };
    let mut builder = ComparisonBuilder::new(model, &contracts, partial, options.tolerances.clone(), prompt);
    builder.tell(&mut tell);
    let select = asked_about(options, model.config.layout());
    builder.select(select.clone());
    if options.stop_at_first {
        builder.stop_at_first();
    }
    // A share is one of the whole, of which every stage's own error is needed.
    let shares = options.shares && options.select.is_none() && !options.stop_at_first;
    if shares {
        builder.keep_injections(share::MOST_BYTES);
    }
    if !options.explain {
        builder.explain_nothing();
    }
    let end = lockstep(model, sides, options, &mut builder)?;
    let found = builder.finish();
    let mut watched = None;
    match end {
        End::Done { tokens } => {
            let whole = options.select.is_none() && !partial[1] && !found.rerouted;
            watched = whole.then_some(Watched { tokens, logits: found.logit_bits });
        }
        // What came before is compared, and is where the cause is to be found.
        End::NoToken { decoded, why } => {
            let asked = options.decode;
            comparison.notes.push(format!("decoding ended after {decoded} of {asked} tokens: the reference's {why}"));
            comparison.decode = decoded;
            comparison.run_stages = Some(stages_of(model, options, decoded));
        }
        End::Stopped { decoded } => {
            let looked_at = found.stages.len();
            comparison
                .notes
                .push(format!("stopped at the first fault: {looked_at} of {} were looked at", count(of, "stage")));
            comparison.decode = decoded;
        }
    }
    if let Some(select) = &select {
        let asked = select.sites().count();
        let all = sites(model).len();
        comparison.notes.push(format!("{asked} of {all} stages of each call were looked at; the others were only run"));
    }
    comparison.notes.extend(coverage(sides.subject, model));
    (comparison.stages, comparison.routing) = (found.stages, found.routing);
    comparison.notes.extend(found.notes);
    comparison.logits = (!found.logits.is_empty()).then(|| LogitsComparison::from_positions(found.logits));
    comparison.notes.extend(comparison.logits.iter().flat_map(LogitsComparison::uniform));
    comparison.notes.extend(model.remarks());
    let one_call = options.tokens.len() <= options.chunk;
    if shares && one_call && !options.reference_is_recorded {
        share::fill(model, sides.reference, &options.tokens, &found.injections, &mut comparison)?;
    }
    comparison.conclude();
    Ok((comparison, watched))
}

/// The stages of all calls of a run that decodes so many tokens.
pub(super) fn stages_of(model: &Model, options: &DiffOptions, decoded: usize) -> usize {
    sites(model).len() * (options.tokens.len().div_ceil(options.chunk.max(1)) + decoded)
}

/// A run of the subject of which every stage was looked at.
pub(super) struct Watched {
    /// The prompt, and what was decoded.
    pub tokens: Vec<u32>,
    /// Of the logits at each position, what tells other bits from these.
    pub logits: Vec<u64>,
}

/// How a lockstep run ended.
pub(super) enum End {
    /// All calls were made, of these tokens.
    Done { tokens: Vec<u32> },
    /// After so many decoded tokens no more could be chosen.
    NoToken { decoded: usize, why: Error },
    /// The observer ended it.
    Stopped { decoded: usize },
}

/// Runs both sides in lockstep.
///
/// # Errors
/// As [`diff`].
pub(super) fn lockstep(
    model: &Model,
    sides: &mut Sides<'_>,
    options: &DiffOptions,
    observer: &mut dyn PairObserver,
) -> Result<End> {
    let contracts = contracts(sides, options);
    let calls =
        Calls { prompt: &options.tokens, chunk: options.chunk, decode: options.decode, forced: &options.forced };
    let asked = LockstepOptions {
        select: asked_about(options, model.config.layout()),
        force_routing: options.force_routing,
        reference_is_recorded: options.reference_is_recorded,
    };
    let judged_by = sides.judged.then_some(&contracts);
    let mut lockstep = Lockstep::new(sides.reference, sides.subject, judged_by, asked, observer);
    let mut runner = Runner::new(&mut lockstep, model, calls, LogitRows::All)?;
    loop {
        match runner.step(&mut lockstep) {
            Ok(true) => {}
            Ok(false) => break,
            Err(_) if lockstep.stopped() => return Ok(End::Stopped { decoded: runner.decoded() }),
            Err(why) => return Err(why),
        }
    }
    let decoded = runner.decoded();
    if decoded < options.decode
        && let Err(why) = runner.choice(&mut lockstep)
    {
        return Ok(End::NoToken { decoded, why });
    }
    Ok(End::Done { tokens: runner.tokens().to_vec() })
}

/// The stages that are asked about: those selected, and the router's logits with its choice. Whether another choice is rounding or a
/// fault depends on them.
fn asked_about(options: &DiffOptions, layout: LayerLayout) -> Option<Selected> {
    let select = options.select.clone()?;
    let chosen = select.sites().filter(|site| site.stage == Stage::RouterIds);
    let logits: Vec<Site> = chosen.map(|ids| Site { stage: Stage::routing_logits(layout), ..ids }).collect();
    Some(select.and(logits))
}

/// Which kernels the subject chooses among and has not run: what was found says nothing of these.
fn coverage(subject: &AnyBackend, model: &Model) -> Option<String> {
    let kernels = subject.kernels(&model.needs());
    let missing: Vec<_> = kernels.iter().filter(|kernel| !kernel.ran).collect();
    let first = missing.first()?;
    let positions = match (*first.positions.start(), *first.positions.end()) {
        (1, 1) => "one position".to_string(),
        (1, most) => format!("up to {most} positions"),
        (least, _) => format!("{least} positions or more"),
    };
    let more = match missing.len() - 1 {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Some(format!(
        "{} of {} matrix kernels of {} were run; not {}, for calls of {positions}{more}",
        kernels.len() - missing.len(),
        kernels.len(),
        subject.info().backend,
        first.name
    ))
}

/// What the two sides are held to.
fn contracts(sides: &Sides<'_>, options: &DiffOptions) -> [NamedContract; 2] {
    let of = |contract: &Option<NamedContract>, side: &AnyBackend| {
        contract.clone().unwrap_or_else(|| NamedContract::of(side))
    };
    [of(&options.contracts[0], sides.reference), of(&options.contracts[1], sides.subject)]
}

/// Whether a side hides some value of a run of `positions` positions.
fn hides(side: &AnyBackend, model: &Model, positions: usize) -> bool {
    sites(model).into_iter().any(|site| side.shown(At::new(site, 0), positions) != Shown::All)
}

/// What a comparison says of `model`.
pub fn summary(model: &Model) -> ModelSummary {
    let moe = model.config.moe.as_ref();
    ModelSummary {
        name: model.gguf.name().to_string(),
        architecture: model.config.architecture.name.to_string(),
        layers: model.config.layers,
        experts: moe.map_or(0, |m| m.experts),
        experts_used: moe.map_or(0, |m| m.used),
        fingerprint: Some(model.gguf.fingerprint()),
    }
}

/// What must be said of the two sides before their numbers are read.
fn notes(sides: [&SideSummary; 2], contracts: &[NamedContract; 2]) -> Vec<String> {
    let mut notes = Vec::new();
    for SideSummary { info, .. } in sides {
        if info.software {
            let note = format!("{} runs on {}, a software adapter: a CPU, not a GPU", info.backend, info.adapter);
            // Both sides may be the one backend.
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    let differ = |op: &OpKind| {
        let formats = |c: &Contract| (c.activations, c.weights, c.cache, c.inner, c.output, c.accumulator);
        formats(contracts[0].get(*op)) != formats(contracts[1].get(*op))
    };
    if OpKind::ALL.iter().any(differ) {
        let [c, g] = sides.map(|side| &side.info.contract);
        notes.push(format!("the sides compute in different precision: {c}; {g}"));
    }
    notes
}
