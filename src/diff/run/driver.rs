//! Runs a comparison: two opened backends, the oracle, a prompt, and some decode steps.

use crate::backend::{AnyBackend, Backend, Contract, NamedContract, Shown};
use crate::diff::measure::logits::LogitsComparison;
use crate::diff::measure::tolerance::Tolerances;
use crate::diff::outcome::{Comparison, ComparisonKind, ModelSummary, SideSummary};
use crate::diff::run::lockstep::{Lockstep, LockstepOptions, PairObserver};
use crate::diff::run::share;
use crate::diff::run::verdicts::ComparisonBuilder;
use crate::error::{Error, Result};
use crate::model::{Calls, LogitRows, Model, Runner};
use crate::op::{At, OpKind};
use crate::trace::recorded::sites;

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
        }
    }
}

/// Runs both sides in lockstep and judges every stage.
///
/// # Errors
/// A prompt that does not fit the model, or what the backends report.
pub fn diff(model: &Model, mut sides: Sides<'_>, options: &DiffOptions) -> Result<Comparison> {
    let prompt = &options.tokens;
    let contracts = contracts(&sides, options);
    let Sides { reference, subject, judged } = &sides;
    let side = |side: &AnyBackend, contract: &Option<NamedContract>| {
        let mut info = side.info();
        if let Some(contract) = contract {
            info.contract = format!("{}: {}", contract.name, contract.text);
        }
        SideSummary { info, trace: None }
    };
    let mut comparison = Comparison {
        kind: ComparisonKind::Diff,
        model: summary(model),
        tokens: prompt.len(),
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
        notes: Vec::new(),
        next: None,
    };
    comparison.notes = notes([&comparison.reference, &comparison.subject], &contracts);
    let partial = [&**reference, &**subject].map(|side| hides(side, model, prompt.len() + options.decode));
    let mut builder = ComparisonBuilder::new(model, &contracts, partial, options.tolerances.clone(), prompt);
    if options.shares {
        builder.keep_injections(share::MOST_BYTES);
    }
    if !options.explain {
        builder.explain_nothing();
    }
    if let Some((done, why)) = lockstep(model, &mut sides, options, &mut builder)? {
        // What came before is compared, and is where the cause is to be found.
        let asked = options.decode;
        comparison.notes.push(format!("decoding ended after {done} of {asked} tokens: the reference's {why}"));
        comparison.decode = done;
    }

    let found = builder.finish();
    (comparison.stages, comparison.routing) = (found.stages, found.routing);
    comparison.notes.extend(found.notes);
    comparison.logits = (!found.logits.is_empty()).then(|| LogitsComparison::from_positions(found.logits));
    let one_call = options.tokens.len() <= options.chunk;
    if options.shares && one_call && !options.reference_is_recorded {
        share::fill(model, sides.reference, &options.tokens, &found.injections, &mut comparison)?;
    }
    comparison.conclude();
    Ok(comparison)
}

/// Runs both sides in lockstep; how many tokens were decoded and why no more, if fewer than asked for.
///
/// # Errors
/// As [`diff`].
pub(super) fn lockstep(
    model: &Model,
    sides: &mut Sides<'_>,
    options: &DiffOptions,
    observer: &mut dyn PairObserver,
) -> Result<Option<(usize, Error)>> {
    let contracts = contracts(sides, options);
    let calls =
        Calls { prompt: &options.tokens, chunk: options.chunk, decode: options.decode, forced: &options.forced };
    let asked =
        LockstepOptions { force_routing: options.force_routing, reference_is_recorded: options.reference_is_recorded };
    let judged_by = sides.judged.then_some(&contracts);
    let mut lockstep = Lockstep::new(sides.reference, sides.subject, judged_by, asked, observer);
    let mut runner = Runner::new(&mut lockstep, model, calls, LogitRows::All)?;
    while runner.step(&mut lockstep)? {}
    let done = runner.decoded();
    match done < options.decode {
        true => Ok(runner.choice(&mut lockstep).err().map(|why| (done, why))),
        false => Ok(None),
    }
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
            notes.push(format!("{} runs on {}, a software adapter: a CPU, not a GPU", info.backend, info.adapter));
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
