//! Runs a comparison: two opened backends, the oracle, a prompt, and some decode steps.

use crate::backend::{AnyBackend, Backend, NamedContract, Shown};
use crate::diff::measure::logits::LogitsComparison;
use crate::diff::measure::tolerance::Tolerances;
use crate::diff::outcome::{Comparison, ComparisonKind, ModelSummary, SideSummary};
use crate::diff::run::lockstep::{Lockstep, LockstepOptions};
use crate::diff::run::share;
use crate::diff::run::verdicts::ComparisonBuilder;
use crate::error::Result;
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
        }
    }
}

/// Runs both sides in lockstep and judges every stage.
///
/// # Errors
/// A prompt that does not fit the model, or what the backends report.
pub fn diff(model: &Model, sides: Sides<'_>, options: &DiffOptions) -> Result<Comparison> {
    let DiffOptions { tokens: prompt, chunk, decode, forced, .. } = options;
    let calls = Calls { prompt, chunk: *chunk, decode: *decode, forced };
    let Sides { reference, subject, judged } = sides;
    let mut comparison = Comparison {
        kind: ComparisonKind::Diff,
        model: summary(model),
        tokens: options.tokens.len(),
        prompt: options.prompt.clone(),
        decode: options.decode,
        reference: SideSummary { info: reference.info(), trace: None },
        subject: SideSummary { info: subject.info(), trace: None },
        judge: judged.then(|| "oracle".to_string()),
        stages: Vec::new(),
        first_fault: None,
        first_visible: None,
        routing: Vec::new(),
        logits: None,
        notes: notes(reference, subject),
        next: None,
    };
    let contracts = [0, 1].map(|i| options.contracts[i].clone().unwrap_or_else(|| NamedContract::of([&*reference, &*subject][i])));
    let partial = [&*reference, &*subject].map(|side| hides(side, model, prompt.len() + decode));
    let mut builder = ComparisonBuilder::new(model, &contracts, partial, options.tolerances.clone(), prompt);
    if options.shares {
        builder.keep_injections(share::MOST_BYTES);
    }
    let lockstep_options =
        LockstepOptions { force_routing: options.force_routing, reference_is_recorded: options.reference_is_recorded };
    let mut lockstep = Lockstep::new(&mut *reference, subject, judged.then_some(&contracts), lockstep_options, &mut builder);
    let mut runner = Runner::new(&mut lockstep, model, calls, LogitRows::All)?;
    while runner.step(&mut lockstep)? {}
    let done = runner.decoded();
    if done < *decode
        && let Err(e) = runner.choice(&mut lockstep)
    {
        // What came before is compared, and is where the cause is to be found.
        comparison.notes.push(format!("decoding ended after {done} of {decode} tokens: the reference's {e}"));
        comparison.decode = done;
    }
    drop((runner, lockstep));

    let found = builder.finish();
    (comparison.stages, comparison.routing) = (found.stages, found.routing);
    comparison.notes.extend(found.notes);
    comparison.logits = (!found.logits.is_empty()).then(|| LogitsComparison::from_positions(found.logits));
    let one_call = options.tokens.len() <= options.chunk;
    if options.shares && one_call && !options.reference_is_recorded {
        share::fill(model, reference, &options.tokens, &found.injections, &mut comparison)?;
    }
    comparison.conclude();
    Ok(comparison)
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
        architecture: model.config.architecture.name().to_string(),
        layers: model.config.layers,
        experts: moe.map_or(0, |m| m.experts),
        experts_used: moe.map_or(0, |m| m.used),
    }
}

/// What must be said of the two sides before their numbers are read.
fn notes(reference: &AnyBackend, subject: &AnyBackend) -> Vec<String> {
    let mut notes = Vec::new();
    for side in [reference, subject] {
        let info = side.info();
        if info.software {
            notes.push(format!("{} runs on {}, a software adapter: a CPU, not a GPU", info.backend, info.adapter));
        }
    }
    let differ = |op: &OpKind| {
        let (c, g) = (reference.contract(*op), subject.contract(*op));
        c.activations != g.activations || c.accumulator != g.accumulator
    };
    if OpKind::ALL.iter().any(differ) {
        let (c, g) = (reference.info().contract, subject.info().contract);
        notes.push(format!("the sides compute in different precision: {c}; {g}"));
    }
    notes
}
