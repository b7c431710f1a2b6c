//! Segments: what lies between the values that a side shows.
//!
//! Design:
//! - A value that a side does not show is **reconstructed**: the oracle computes it from the side's own values before it, shown or
//!   reconstructed, with operands rounded as the side's contract says. So at the next stage that is shown, the oracle's result is that
//!   of the whole segment on the side's own shown inputs, and everything that holds of a stage holds of the segment. A segment
//!   of one stage needs none of this.
//! - **What a reconstruction does not know is carried by draws.** The side's own value may be off by as much as the stage's floor allows.
//!   [`DRAWS`] times each hidden value is disturbed, every element by a number between −floor and floor from a seeded generator, and
//!   the rest of the segment is computed from that. [`carried`] is what comes of it at the stage that is shown.
//! - Draws choose the experts that the reconstruction chooses. Where a draw would choose others, the choice is within rounding: these are
//!   the [`Step::alternatives`], which are tried before an error is called a fault.
//! - [`Log`] keeps the steps of the segments in progress, so that one can be run again with something changed: another choice of experts,
//!   or a mistake ([`crate::diff::explain`]).

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use rayon::prelude::*;

use crate::backend::{Contract, NamedContract, Precision, Shown};
use crate::error::Result;
use crate::formula::exact::{exact, used_with, weight_format};
use crate::formula::precision::FloatFormat;
use crate::formula::sum::confidence;
use crate::op::{At, Data, GgmlType, HostTensor, LayerLayout, Op, OwnedOp, Site, Stage, Weight};
use crate::quant::random::Rng;

/// How often a hidden value is drawn.
pub const DRAWS: usize = 12;

/// How large an operation's drawn errors are, as a part of its floor.
///
/// A drawn error is uniform between −spread·floor and spread·floor, so its deviation is spread·floor/√3, and what is allowed is [`confidence`]
/// λ times the deviation of all that was drawn. If errors are independent, have mean zero and are at most the floor, their sum is below
/// λ·√(Σ floor²) but for a probability of 2·exp(−λ²/2) (Hoeffding), which is √3 times what a spread of 1 allows; but the floor of a sum in
/// f32 is λ (6.5 or more) of its own deviations already, so that an error drawn from all of it is 3.7 times as large as one that occurs.
/// Half of it is enough there, and covers that [`DRAWS`] draws only estimate a deviation. Rounding to a coarser format has no such
/// slack: its errors reach their bound, and whole. `selftest --calibrate` measures segments with the rest.
fn spread(contract: &Contract) -> f64 {
    let Contract { activations, weights, cache, inner, output, accumulator, .. } = contract;
    if [activations, weights, cache, inner, output, accumulator].iter().any(|format| format.is_coarse()) {
        1.0
    } else {
        0.5
    }
}

/// The drawn values of a tensor.
pub type Draws = Rc<Vec<HostTensor>>;

/// [`exact`] of each draw; `None` if no operand has draws. `draws` are those of the operands, in the order of [`Op::inputs`].
///
/// # Errors
/// As [`exact`].
pub fn drawn(
    op: &Op<'_, Rc<HostTensor>>,
    draws: &[Option<Draws>],
    contract: &Contract,
) -> Result<Option<Vec<HostTensor>>> {
    if draws.iter().all(Option::is_none) {
        return Ok(None);
    }
    let op = op.try_map(|t| Ok(&**t))?;
    let draws: Vec<Option<&[HostTensor]>> = draws.iter().map(|d| d.as_ref().map(|d| &d[..])).collect();
    let one = |n: usize| {
        let mut next = draws.iter();
        let op = op.try_map(|t| Ok(next.next().copied().flatten().map_or(*t, |draws| &draws[n])))?;
        exact(&op, contract)
    };
    (0..DRAWS).into_par_iter().map(one).collect::<Result<_>>().map(Some)
}

/// How far each element may be off because of what was drawn before it: λ times the root mean square of the draws' deviations.
pub fn carried(exact: &HostTensor, draws: &[HostTensor]) -> Vec<f64> {
    let mut squares = vec![0.0; exact.len()];
    let exact = exact.to_f64();
    for draw in draws {
        for ((square, draw), exact) in squares.iter_mut().zip(draw.to_f64()).zip(&exact) {
            *square += (draw - exact) * (draw - exact);
        }
    }
    let lambda = confidence(exact.len());
    let off = |(square, exact): (&f64, &f64)| match square.is_finite() || !exact.is_finite() {
        true => lambda * (square / draws.len() as f64).sqrt(),
        false => f64::INFINITY,
    };
    squares.iter().zip(&exact).map(off).collect()
}

/// Draws of a hidden value: `drawn`, or the value itself where nothing before it was drawn, each element off by up to its floor as far as
/// `contract` makes that likely. Rows that are shown are as they are.
pub fn disturbed(
    at: At,
    value: &HostTensor,
    drawn: Option<Vec<HostTensor>>,
    floor: &[f64],
    contract: &Contract,
    shown: &Shown,
) -> Draws {
    let spread = spread(contract);
    let axis = at.site.stage.position_axis();
    let inner: usize = value.shape[axis + 1..].iter().product();
    let rows = value.shape[axis];
    let key = (at.site.layer.map_or(u64::MAX, u64::from) << 32 | at.site.stage as u64) ^ (at.start as u64) << 40;
    let exact = value.to_f64();
    let one = |n: usize| {
        let mut values = drawn.as_ref().map_or_else(|| exact.clone(), |drawn| drawn[n].to_f64());
        let mut random = Rng::new(key, n as u64);
        for (i, value) in values.iter_mut().enumerate() {
            let unit = (random.bits() >> 11) as f64 / (1u64 << 53) as f64;
            if shown.row(i / inner.max(1) % rows.max(1)) {
                *value = exact[i];
            } else if floor[i] == f64::INFINITY {
                *value = f64::NAN; // no bound: nor has what is made of it one
            } else if floor[i].is_finite() {
                *value += (2.0 * unit - 1.0) * spread * floor[i];
            }
        }
        HostTensor::f64(&value.shape, values)
    };
    Rc::new((0..DRAWS).map(one).collect())
}

/// A reconstructed value as the side would hold it: rounded to f32, which is less than any floor.
pub fn to_f32(value: &Rc<HostTensor>) -> Rc<HostTensor> {
    match value.data {
        Data::F64(_) => Rc::new(HostTensor::f32(&value.shape, value.to_f32())),
        _ => value.clone(),
    }
}

/// `shown` where a row is shown, `hidden` elsewhere: a value as far as a side shows it.
pub fn mixed(stage: Stage, shown: &Shown, value: Option<HostTensor>, hidden: &Rc<HostTensor>) -> Rc<HostTensor> {
    let Some(value) = value else { return hidden.clone() };
    let Shown::Rows(rows) = shown else { return Rc::new(value) };
    let axis = stage.position_axis();
    let (outer, inner) =
        (value.shape[..axis].iter().product::<usize>(), value.shape[axis + 1..].iter().product::<usize>());
    let from = |o: usize, t: usize| (o * rows.len() + t) * inner..(o * rows.len() + t + 1) * inner;
    let places = || (0..outer).flat_map(|o| (0..rows.len()).map(move |t| (o, t)));
    Rc::new(match (&value.data, &hidden.data) {
        (Data::U32(shown), Data::U32(hidden)) => {
            let pick = |(o, t)| if rows[t] { &shown[from(o, t)] } else { &hidden[from(o, t)] };
            HostTensor::u32(&value.shape, places().flat_map(pick).copied().collect())
        }
        _ => {
            let (shown, hidden) = (value.to_f64(), hidden.to_f64());
            let pick = |(o, t)| if rows[t] { &shown[from(o, t)] } else { &hidden[from(o, t)] };
            HostTensor::f64(&value.shape, places().flat_map(pick).copied().collect())
        }
    })
}

/// One operation of a side, as far as the side shows it.
pub struct Step {
    /// The stage, and the position of its first row.
    pub at: At,
    /// On the side's own inputs, shown or reconstructed.
    pub op: OwnedOp,
    /// What the rest of the run computes with.
    pub value: Rc<HostTensor>,
    /// The oracle's result.
    pub exact: Rc<HostTensor>,
    /// The stage's own floor; empty where the stage is shown.
    pub floor: Rc<Vec<f64>>,
    pub shown: Shown,
    /// Other expert ids that rounding could have led to: the row, and its ids.
    pub alternatives: Vec<(usize, Vec<u32>)>,
}

impl Step {
    /// Rows of the call.
    pub fn rows(&self) -> usize {
        self.value.shape[self.at.site.stage.position_axis()]
    }

    /// The same for `rows` of the call's rows: the first ones do not depend on what comes after them, and others on those before them
    /// only through a cache.
    fn part(&self, rows: Range<usize>, layers: Layers) -> Step {
        let At { site, start } = self.at;
        let cut = |stage: Stage, t: &HostTensor| cut(stage, t, start, rows.clone());
        let sources = sources(site, layers);
        let mut next = sources.iter();
        let op = self.op.with_operands(|t| match next.next() {
            Some(source) if !source.cache => Rc::new(cut(source.site.stage, t)),
            _ => t.clone(),
        });
        let mut op = op.with_start(start + rows.start);
        if let OwnedOp::Embed { tokens, .. } = &mut op {
            *tokens = tokens[rows.clone()].to_vec();
        }
        let floor = if self.floor.is_empty() {
            self.floor.clone()
        } else {
            let floor = HostTensor::f64(&self.value.shape, self.floor.to_vec());
            Rc::new(cut(site.stage, &floor).to_f64())
        };
        let of_part = |(row, ids): &(usize, Vec<u32>)| rows.contains(row).then(|| (row - rows.start, ids.clone()));
        Step {
            at: At { site, start: start + rows.start },
            op,
            value: Rc::new(cut(site.stage, &self.value)),
            exact: Rc::new(cut(site.stage, &self.exact)),
            floor,
            shown: match &self.shown {
                Shown::Rows(shown) => Shown::Rows(shown[rows.clone()].to_vec()),
                shown => shown.clone(),
            },
            alternatives: self.alternatives.iter().filter_map(of_part).collect(),
        }
    }
}

/// `rows` of the rows of a stage's values, and of an attention matrix the keys that they see.
pub fn cut(stage: Stage, t: &HostTensor, start: usize, rows: Range<usize>) -> HostTensor {
    let seen = start + rows.end;
    let t = t.take(stage.position_axis(), &Vec::from_iter(rows));
    if stage.is_attention_matrix() { t.take(2, &Vec::from_iter(0..seen)) } else { t }
}

/// Where an operand comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperandSource {
    /// The stage that makes it.
    pub site: Site,
    /// It is the KV cache that this call's values were stored in.
    pub cache: bool,
}

/// A model's layers: which stages they have, and how many there are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layers {
    pub layout: LayerLayout,
    pub count: usize,
}

/// The operands of the operation that makes `site`, in the order of [`Op::inputs`].
pub fn sources(site: Site, layers: Layers) -> Vec<OperandSource> {
    let of = |(n, input): (usize, Stage)| OperandSource {
        site: producer(site, input, layers.count),
        cache: site.stage.cached(n).is_some(),
    };
    site.stage.inputs(layers.layout.of(site.layer)).enumerate().map(of).collect()
}

/// The site that makes `input` of `site`'s stage in a model of so many layers: of the same layer, or what the layer before left, after the last one
/// what that did.
pub fn producer(site: Site, input: Stage, layers: usize) -> Site {
    if input != Stage::LayerOut {
        return Site { layer: site.layer, stage: input };
    }
    match site.layer.map_or(layers, |n| n as usize).checked_sub(1) {
        Some(before) => Site { layer: Some(before as u32), stage: input },
        None => Site::model(Stage::Embedding),
    }
}

/// The steps of one side since the last value that hid nothing behind it.
#[derive(Default)]
pub struct Log {
    pub steps: Vec<Step>,
    layers: Layers,
}

/// Values that differ from those of the log, by the stage that made them.
pub type Changed = BTreeMap<Site, Rc<HostTensor>>;

impl Log {
    pub fn new(layers: Layers) -> Self {
        Self { steps: Vec::new(), layers }
    }

    /// Adds a step, after forgetting what no later segment begins in.
    pub fn push(&mut self, step: Step) {
        let last_shown = |s: &Step| s.at.site.stage == Stage::LayerOut && s.shown == Shown::All;
        if step.at.site.stage == Stage::Embedding {
            self.steps.clear();
        } else if self.steps.last().is_some_and(last_shown) {
            // It stays as the input of what follows.
            self.steps.drain(..self.steps.len() - 1);
        }
        self.steps.push(step);
    }

    /// The segment that ends at the last step: the hidden steps that it depends on and which no shown value stands between, and
    /// itself. In order of execution.
    pub fn segment(&self) -> Vec<&Step> {
        let Some(target) = self.steps.last() else { return Vec::new() };
        let mut wanted: BTreeSet<Site> = self.hidden_inputs(target).collect();
        let mut inside: Vec<&Step> = vec![target];
        for step in self.steps[..self.steps.len() - 1].iter().rev() {
            if wanted.contains(&step.at.site) {
                wanted.extend(self.hidden_inputs(step));
                inside.push(step);
            }
        }
        inside.reverse();
        inside
    }

    fn hidden_inputs(&self, step: &Step) -> impl Iterator<Item = Site> {
        let hidden = |site: Site| self.steps.iter().any(|s| s.at.site == site && s.shown != Shown::All);
        sources(step.at.site, self.layers).into_iter().map(|s| s.site).filter(move |s| hidden(*s))
    }
}

/// A segment, ready to be run again with something changed.
pub struct Segment {
    /// In order of execution; the last is the stage that is shown.
    pub steps: Vec<Step>,
    /// The steps' weights as f32, which is exact, where they are not too many: a segment is run hundreds of times.
    plain: Vec<Option<Arc<Weight>>>,
    layers: Layers,
    /// Multiplications that steps were computed with so far, about.
    spent: Cell<u64>,
}

impl Segment {
    /// The steps that end at the log's last, of a side that computes under `contracts`.
    pub fn new(log: &Log, contracts: &NamedContract) -> Self {
        /// Weights that are kept as f32, all together: 512 MiB.
        const MOST: usize = 1 << 27;
        let target = log.steps.last().map_or(0, Step::rows);
        let steps: Vec<Step> = log.segment().iter().map(|step| step.part(0..target, log.layers)).collect();
        let mut room = MOST;
        let plain = steps.iter().map(|step| {
            let weight = step.op.weight_ref()?;
            let elements = weight.cols * weight.rows * weight.experts;
            if weight.ty == GgmlType::F32 || elements > room {
                return None;
            }
            room -= elements;
            plain(weight, weight_format(contracts.at(step.at.site.stage, step.op.kind())))
        });
        Self { plain: plain.collect(), steps, layers: log.layers, spent: Cell::default() }
    }

    /// The same for the first `rows` rows of the call.
    pub fn prefix(&self, rows: usize) -> Self {
        let steps = self.steps.iter().map(|step| step.part(0..rows, self.layers)).collect();
        Self { steps, plain: self.plain.clone(), layers: self.layers, spent: Cell::default() }
    }

    /// The same as far as its last row needs it: all rows of what goes into a cache, of the rest the last one alone.
    pub fn last_row(&self) -> Self {
        let last = self.target().rows() - 1;
        let feeds_cache = self.feeds_cache();
        let steps = self.steps.iter().zip(feeds_cache);
        let part =
            |(step, whole): (&Step, bool)| step.part(if whole { 0..last + 1 } else { last..last + 1 }, self.layers);
        let steps = steps.map(part).collect();
        Self { steps, plain: self.plain.clone(), layers: self.layers, spent: Cell::default() }
    }

    /// Which steps make what a later step of the segment reads from a cache.
    pub fn feeds_cache(&self) -> Vec<bool> {
        let mut found = BTreeSet::new();
        for step in self.steps.iter().rev() {
            let whole = found.contains(&step.at.site);
            found.extend(sources(step.at.site, self.layers).into_iter().filter(|s| s.cache || whole).map(|s| s.site));
        }
        self.steps.iter().map(|step| found.contains(&step.at.site)).collect()
    }

    /// Multiplications that steps were computed with so far, about: a measure of what a search has cost that is the same on every machine.
    pub fn spent(&self) -> u64 {
        self.spent.get()
    }

    /// Counts that step `n` is computed once.
    pub fn spend(&self, n: usize) {
        /// Of an element that reads no weight; of unpacking a weight; and of any step.
        const AN_ELEMENT: u64 = 16;
        const A_WEIGHT: u64 = 8;
        const A_STEP: u64 = 10_000;
        let step = &self.steps[n];
        let elements = step.value.len() as u64;
        let work = step.op.weight_ref().map_or(elements * AN_ELEMENT, |w| {
            let rows = elements.min(w.rows as u64 * w.experts as u64); // each is unpacked once for all tokens
            (elements + rows * A_WEIGHT) * w.cols as u64
        });
        self.spent.set(self.spent.get() + A_STEP + work);
    }

    /// The oracle's result of step `n` as `op` runs it.
    ///
    /// # Errors
    /// The oracle's.
    pub fn exact(&self, n: usize, op: &OwnedOp, contracts: &NamedContract) -> Result<HostTensor> {
        self.spend(n);
        let mut contract = *contracts.at(self.steps[n].at.site.stage, op.kind());
        match &self.plain[n] {
            None => exact(&op.borrow(), &contract),
            Some(plain) => {
                // What goes with a weight goes with the type that it has in the file.
                let weight = self.steps[n].op.weight_ref();
                contract.weights = Precision::F32; // they are rounded already
                contract.activations = weight.map_or(contract.activations, |w| used_with(contract.activations, w.ty));
                let mut op = op.clone();
                op.weight_mut().expect("a step whose weight was read has one").clone_from(plain);
                exact(&op.borrow(), &contract)
            }
        }
    }

    pub fn target(&self) -> &Step {
        self.steps.last().expect("a segment ends somewhere")
    }

    /// The operation of step `n` where the values before it are `changed`; `None` if none of its operands is.
    pub fn with(&self, n: usize, changed: &Changed) -> Option<OwnedOp> {
        let step = &self.steps[n];
        let sources = sources(step.at.site, self.layers);
        if !sources.iter().any(|s| changed.contains_key(&s.site)) {
            return None;
        }
        let mut next = sources.iter();
        Some(step.op.with_operands(|t| match next.next().and_then(|s| changed.get(&s.site).map(|v| (s, v))) {
            Some((source, value)) if source.cache => {
                let made = self.steps.iter().find(|s| s.at.site == source.site);
                let mut cache = HostTensor::f64(&t.shape, t.to_f64());
                write_rows(&mut cache, value, made.unwrap_or(step).at.start);
                Rc::new(cache)
            }
            Some((source, value)) => {
                let axis = source.site.stage.position_axis();
                let (has, takes) = (value.shape[axis], t.shape[axis]);
                if has == takes { value.clone() } else { Rc::new(value.take(axis, &Vec::from_iter(has - takes..has))) }
            }
            None => t.clone(),
        }))
    }

    /// Runs the segment again. `alter` may give another result for a step, from its number, its operation on the values so far and all that
    /// has changed before it; every step behind a change is the oracle's. Returns all values that differ, that of the target among them if
    /// it does.
    ///
    /// # Errors
    /// The oracle's, or `alter`'s.
    pub fn rerun(
        &self,
        contracts: &NamedContract,
        mut alter: impl FnMut(usize, &OwnedOp, &Changed) -> Result<Option<HostTensor>>,
    ) -> Result<Changed> {
        let mut changed = Changed::new();
        for (n, step) in self.steps.iter().enumerate() {
            let op = self.with(n, &changed);
            let altered = alter(n, op.as_ref().unwrap_or(&step.op), &changed)?;
            let value = match (altered, &op) {
                (Some(value), _) => value,
                (None, Some(op)) => self.exact(n, op, contracts)?,
                (None, None) => continue,
            };
            let value = match (&step.shown, n + 1 == self.steps.len()) {
                (Shown::Rows(_), false) => {
                    mixed(step.at.site.stage, &step.shown, Some((*step.value).clone()), &Rc::new(value))
                }
                _ => Rc::new(value),
            };
            changed.insert(step.at.site, value);
        }
        Ok(changed)
    }

    /// The floor of the target's values, what is carried to it included, where the segment is run as `alter` says.
    ///
    /// # Errors
    /// As [`Segment::rerun`].
    pub fn allowed(
        &self,
        contracts: &NamedContract,
        alter: impl Fn(usize, &OwnedOp, &Changed) -> Result<Option<HostTensor>>,
    ) -> Result<Vec<f64>> {
        let right = self.rerun(contracts, |n, op, changed| alter(n, op, changed))?;
        let target = self.target();
        let exact = right.get(&target.at.site).cloned().unwrap_or_else(|| target.exact.clone());
        let mut draws = Vec::with_capacity(DRAWS);
        for n in 0..DRAWS {
            let run = self.rerun(contracts, |i, op, changed| {
                let step = &self.steps[i];
                if i + 1 == self.steps.len() || step.at.site.stage.is_ids() {
                    return match step.at.site.stage.is_ids() {
                        // The choice is held while the rest is drawn.
                        true => Ok(Some((**right.get(&step.at.site).unwrap_or(&step.value)).clone())),
                        false => alter(i, op, changed),
                    };
                }
                let value = match alter(i, op, changed)? {
                    Some(value) => value,
                    None => self.exact(i, op, contracts)?,
                };
                let contract = contracts.at(step.at.site.stage, op.kind());
                let drawn = disturbed(step.at, &value, None, &step.floor, contract, &Shown::Nothing);
                Ok(Some(drawn[n].clone()))
            })?;
            draws.push((**run.get(&target.at.site).unwrap_or(&exact)).clone());
        }
        Ok(carried(&exact, &draws))
    }
}

/// Rows start.. of `cache` [capacity, n] become the first n columns of `x` [T, ≥ n].
fn write_rows(cache: &mut HostTensor, x: &HostTensor, start: usize) {
    let n = cache.cols();
    if let Data::F64(cache) = &mut cache.data {
        let rows = cache[start * n..].chunks_exact_mut(n.max(1));
        rows.zip(x.to_f64().chunks_exact(x.cols().max(1))).for_each(|(row, x)| row.copy_from_slice(&x[..n]));
    }
}

/// A weight's values as f32, which is exact: those of every type are, and those of coarser formats. `None` if its type is unreadable.
fn plain(weight: &Arc<Weight>, format: Option<FloatFormat>) -> Option<Arc<Weight>> {
    let rows = weight.rows * weight.experts;
    let row = |n: usize| {
        let mut values = vec![0.0; weight.cols];
        let bytes = weight.row(n / weight.rows, n % weight.rows);
        crate::backend::oracle::dequant::row(weight.ty, bytes, &mut values).ok()?;
        let stored = |x: f64| format.map_or(x, |format| (format.round)(x)) as f32;
        Some(values.into_iter().flat_map(|x| stored(x).to_le_bytes()).collect::<Vec<u8>>())
    };
    let bytes: Vec<Vec<u8>> = (0..rows).into_par_iter().map(row).collect::<Option<_>>()?;
    let dims = [weight.cols, weight.rows, weight.experts];
    Weight::from_vec(&weight.name, GgmlType::F32, dims, bytes.concat())
        .and_then(|w| w.scaled(weight.scales.clone()))
        .ok()
}

/// What each draw chose, where it is not what the reconstruction chose: the row, and its ids, each set once.
pub fn alternatives(ids: &HostTensor, draws: &[HostTensor]) -> Vec<(usize, Vec<u32>)> {
    let k = ids.cols().max(1);
    let sorted = |ids: &[u32]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    let mut found: Vec<(usize, Vec<u32>)> = Vec::new();
    for draw in draws {
        for (row, (drawn, own)) in draw.ids().chunks(k).zip(ids.ids().chunks(k)).enumerate() {
            let known = found.iter().any(|(r, ids)| *r == row && sorted(ids) == sorted(drawn));
            if sorted(drawn) != sorted(own) && !known {
                found.push((row, drawn.to_vec()));
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_layers_reads_what_the_last_one_left() {
        let of = |site, layers| sources(site, Layers { layout: LayerLayout::default(), count: layers })[0].site;
        let norm = Site::model(Stage::FinalNorm);
        assert_eq!(of(norm, 4), Site::layer(3, Stage::LayerOut));
        assert_eq!(of(norm, 0), Site::model(Stage::Embedding));
        assert_eq!(of(Site::layer(2, Stage::AttnNorm), 4), Site::layer(1, Stage::LayerOut));
        assert_eq!(of(Site::layer(0, Stage::AttnNorm), 4), Site::model(Stage::Embedding));
        assert_eq!(of(Site::model(Stage::Logits), 4), norm);
    }
}
