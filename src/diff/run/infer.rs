//! `--contract SIDE=infer`: the least that must be assumed of an engine's arithmetic, from its errors.
//!
//! Design:
//! - **By operation, from the stages whose inputs the side shows.** Each is held against [`candidates`], from the tightest to the weakest; the
//!   contract of an operation is the first candidate that explains every stage of it, those aside that none explains: these are faults.
//! - **By engine, where no stage has all its inputs shown**: the first of the named contracts under which the comparison has the fewest
//!   faults.

use std::collections::{BTreeMap, BTreeSet};

use crate::backend::contract::{candidates, named, names};
use crate::backend::{Contract, NamedContract, Shown};
use crate::diff::run::driver::{DiffOptions, DiffProgress, Sides, diff_telling, lockstep, stages_of};
use crate::diff::run::lockstep::{Observation, PairObserver};
use crate::diff::run::verdicts::error;
use crate::error::Result;
use crate::formula::exact::exact;
use crate::formula::floor::{floor_of, injected_ratio};
use crate::model::Model;
use crate::op::{At, OpKind, STAGES, Site};

/// What a contract is called that was put together by operation, which no name stands for.
pub const INFERRED: &str = "inferred";

/// What an engine's errors say of its arithmetic.
#[derive(Clone, Debug)]
pub struct Inference {
    /// What the side may be held to.
    pub contract: NamedContract,
    /// One line for each operation, or for the engine.
    pub lines: Vec<String>,
    /// Stages that no contract explains, each with the number of calls.
    pub unexplained: Vec<Site>,
}

/// What was seen of one operation.
#[derive(Default)]
struct Seen {
    /// For each stage, the candidates that explain it.
    explained: Vec<BTreeSet<usize>>,
    unexplained: BTreeSet<Site>,
}

struct Inferring<'p> {
    side: usize,
    candidates: BTreeMap<OpKind, Vec<(String, Contract)>>,
    seen: BTreeMap<OpKind, Seen>,
    /// The named contracts that explain every stage so far that any candidate explains.
    engines: Vec<NamedContract>,
    /// Told each stage before it is run; those done so far, and all.
    progress: &'p mut dyn FnMut(DiffProgress),
    done: usize,
    of: usize,
}

impl PairObserver for Inferring<'_> {
    fn begin(&mut self, at: At) {
        (self.progress)(DiffProgress { at, done: self.done, of: self.of });
        self.done += 1;
    }

    fn observe(&mut self, o: Observation<'_>) -> Result<bool> {
        let Some(result) = o.exact.as_ref().map(|exact| &exact[self.side]) else { return Ok(true) };
        let stage = o.at.site.stage;
        if o.shown[self.side] != Shown::All || result.carried.is_some() || stage.is_ids() {
            return Ok(true);
        }
        let op = [&o.op_reference, &o.op_subject][self.side].try_map(|t| Ok(&**t))?;
        let value = [&o.reference, &o.subject][self.side];
        let kind = op.kind();
        let mut explained = BTreeSet::new();
        for (n, (_, contract)) in self.candidates.entry(kind).or_insert_with(|| candidates(kind)).iter().enumerate() {
            let exact = exact(&op, contract)?;
            if exact.shape == value.shape
                && injected_ratio(&error(value, &exact), &floor_of(&op, contract, &exact)?).explained()
            {
                explained.insert(n);
            }
        }
        let seen = self.seen.entry(kind).or_default();
        match explained.is_empty() {
            true => drop(seen.unexplained.insert(o.at.site)),
            false => seen.explained.push(explained),
        }
        if !self.seen[&kind].unexplained.contains(&o.at.site) {
            let mut left = Vec::new();
            for engine in std::mem::take(&mut self.engines) {
                let contract = engine.at(stage, kind);
                let exact = exact(&op, contract)?;
                if injected_ratio(&error(value, &exact), &floor_of(&op, contract, &exact)?).explained() {
                    left.push(engine);
                }
            }
            self.engines = left;
        }
        Ok(true)
    }
}

/// Works out the contract of side `side`, 0 for the reference and 1 for the subject, and tells `progress` each stage before it is run.
///
/// # Errors
/// As [`super::driver::diff`].
pub fn infer(
    model: &Model,
    sides: &mut Sides<'_>,
    options: &DiffOptions,
    side: usize,
    progress: &mut dyn FnMut(DiffProgress),
) -> Result<Inference> {
    let strict = named("f32").expect("f32 is a contract");
    let (candidates, seen) = (BTreeMap::new(), BTreeMap::new());
    let of = stages_of(model, options, options.decode);
    let engines = engines().collect();
    let mut inferring = Inferring { side, candidates, seen, engines, progress: &mut *progress, done: 0, of };
    lockstep(model, sides, options, &mut inferring)?;
    let Inferring { candidates, seen, engines, .. } = inferring;
    let unexplained: BTreeSet<Site> = seen.values().flat_map(|seen| seen.unexplained.clone()).collect();
    if seen.values().all(|seen| seen.explained.is_empty()) {
        return by_engine(model, sides, options, side, progress, unexplained.into_iter().collect());
    }
    // An operation that the side never shows alone is taken to be as in the strictest engine that all the others are within: such operations are
    // behind others of its kernels, whose rounding is theirs, too.
    let (unseen, mut ops) = match engines.first() {
        Some(engine) => (Some(&engine.name), engine.ops.clone()),
        None => (None, strict.ops.clone()),
    };
    let mut lines: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
    for (kind, seen) in &seen {
        let all = &candidates[kind];
        // The first that explains the most stages, each of which some candidate explains.
        let count = |n: usize| seen.explained.iter().filter(|explained| explained.contains(&n)).count();
        let best = (0..all.len()).map(|n| (count(n), n)).max_by_key(|(count, n)| (*count, usize::MAX - n));
        let Some((count, n)) = best.filter(|(count, _)| *count > 0) else { continue };
        ops.insert(*kind, all[n].1);
        let mut words = all[n].0.clone();
        if count < seen.explained.len() {
            words += &format!(" at {count} of {} stages", seen.explained.len());
        }
        lines.entry(words).or_default().push(kind.name());
    }
    let layout = model.config.layout();
    let run: BTreeSet<OpKind> = STAGES.iter().filter(|row| row.scope.occurs(layout)).map(|row| row.op).collect();
    let hidden: Vec<&str> = run.into_iter().filter(|kind| !seen.contains_key(kind)).map(OpKind::name).collect();
    if let (Some(engine), false) = (unseen, hidden.is_empty()) {
        lines.entry(format!("as in {engine}, since nothing shows them alone")).or_default().extend(hidden);
    }
    let lines: Vec<String> = lines.into_iter().map(|(words, kinds)| format!("{words}: {}", kinds.join(", "))).collect();
    let text = match engines.first() {
        Some(engine) => format!("within {}, which is {}", engine.name, engine.text),
        None => "by operation, as no named contract has it".to_string(),
    };
    Ok(Inference {
        contract: NamedContract { name: INFERRED.into(), text, ops, stages: BTreeMap::new() },
        lines,
        unexplained: unexplained.into_iter().collect(),
    })
}

/// The named contracts of what people run, the strictest first. This program's own in f32 are `f32`; float64 is what they compare with.
fn engines() -> impl Iterator<Item = NamedContract> {
    let run = |name: &&&str| {
        let of_people = name.contains("llama") || name.contains("transformers");
        ["f32", "cpu:int8"].contains(*name) || of_people && **name != "transformers-f64"
    };
    names().iter().filter(run).filter_map(|name| named(name))
}

/// The named contract with the fewest faults, the strictest of equals.
fn by_engine(
    model: &Model,
    sides: &mut Sides<'_>,
    options: &DiffOptions,
    side: usize,
    progress: &mut dyn FnMut(DiffProgress),
    unexplained: Vec<Site>,
) -> Result<Inference> {
    let mut best: Option<(usize, NamedContract)> = None;
    let engines: Vec<NamedContract> = engines().collect();
    for (n, contract) in engines.iter().enumerate() {
        let mut options = DiffOptions { shares: false, explain: false, production: false, ..options.clone() };
        options.contracts[side] = Some(contract.clone());
        // One run an engine, unless one explains everything: then the others are not tried.
        let mut tell = |DiffProgress { at, done, of }: DiffProgress| {
            progress(DiffProgress { at, done: n * of + done, of: engines.len() * of });
        };
        let comparison = diff_telling(model, sides.reborrow(), &options, &mut tell)?;
        let faults = comparison.stages.iter().filter(|s| s.verdict.is_fault()).count();
        if best.as_ref().is_none_or(|(least, _)| faults < *least) {
            let done = faults == 0;
            best = Some((faults, contract.clone()));
            if done {
                break;
            }
        }
    }
    let (faults, contract) = best.expect("there are named contracts");
    let line = match faults {
        0 => format!("{} explains every segment: {}", contract.name, contract.text),
        n => format!("no known contract explains every segment; {} leaves the fewest faults, {n}", contract.name),
    };
    Ok(Inference { contract, lines: vec![line], unexplained })
}
