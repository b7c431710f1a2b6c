//! A scene made ready for hypotheses, and what a hypothesis makes of it: variants.
//!
//! - [`Evidence`] has the operands as f64, the elements that are wrong, and a sample of elements to try variants on.
//! - [`Variant`] gives a [`Point`] (value and floor) for any elements asked for, and computes nothing before. Nearly every one is the
//!   stage's [`Formula`] with a parameter changed ([`Evidence::changed`]).

use std::collections::BTreeSet;

use super::StageEval;
use super::indices::SEEN;
use crate::backend::Contract;
use crate::diff::locate::{Axis, ErrorRegion};
use crate::error::{Error, Result};
use crate::formula::exact::Emulation;
use crate::formula::{Formula, Point};
use crate::model::LayerWeights;
use crate::op::{HostTensor, Op, Stage, Weight};

/// Elements in the sample that are wrong, and that are not.
const PROBE_WRONG: usize = 48;
const PROBE_RIGHT: usize = 24;

/// What is computed, in words, and what it changes in the formula.
pub type Change<'s, F> = (&'s str, fn(&mut F));

/// Gives the points at the elements asked for.
type At<'a> = dyn Fn(&[usize]) -> Result<Vec<Point>> + 'a;

/// Whether a mistake can be confined to a region.
type InRegion<'a> = dyn Fn(&ErrorRegion) -> bool + 'a;

/// One way of making a mistake.
pub struct Variant<'a> {
    /// What is computed, in words: "rope with base 10000".
    pub what: String,
    /// How many continuous parameters were fitted to the output.
    pub fitted: usize,
    /// Bits to say the number that was fitted, where it is one.
    pub number: Option<f64>,
    /// Its floor allows for more than rounding in the contract's arithmetic, so that only how much of the error it accounts for tells
    /// anything, and its residual cannot be held against others'.
    pub loose: bool,
    /// What speaks for it, in nats, where that is neither its floor nor the error that it accounts for.
    pub evidence: Option<f64>,
    /// What it assumes besides its place in its hypothesis's list and its fitted parameters, in bits.
    pub bits: f64,
    /// The elements of which it says nothing, because it reads behind a tensor's end for them.
    unknown: Option<Box<dyn Fn(usize) -> bool + 'a>>,
    /// Of the regions that its hypothesis could be confined to, those that this one could.
    confined: Option<Box<InRegion<'a>>>,
    at: Box<At<'a>>,
}

impl<'a> Variant<'a> {
    /// From a function of many elements at once, asked for in ascending order.
    pub fn new(what: impl Into<String>, at: impl Fn(&[usize]) -> Result<Vec<Point>> + 'a) -> Self {
        Self {
            what: what.into(),
            fitted: 0,
            number: None,
            loose: false,
            evidence: None,
            bits: 0.0,
            unknown: None,
            confined: None,
            at: Box::new(at),
        }
    }

    /// From a function of one element.
    pub fn each(what: impl Into<String>, point: impl Fn(usize) -> Point + 'a) -> Self {
        Self::new(what, move |indices| Ok(indices.iter().map(|i| point(*i)).collect()))
    }

    /// From a formula, under the contract of the case.
    pub fn of(case: &Evidence<'_>, what: impl Into<String>, formula: impl Formula<'a> + 'a) -> Self {
        Self::under(case.scene.contract, what, formula)
    }

    /// From a formula, under another contract.
    pub fn under(contract: Contract, what: impl Into<String>, formula: impl Formula<'a> + 'a) -> Self {
        Self::new(what, move |indices| formula.points(indices, &contract))
    }

    /// Notes that a number was fitted: the fewer digits it has, the less is said by it.
    pub fn with_fitted(mut self, x: f64) -> Self {
        let digits = format!("{x:e}").split('e').next().map_or(0, |m| m.bytes().filter(u8::is_ascii_digit).count());
        (self.fitted, self.number) = (1, Some(2.0 + digits.min(8) as f64 * std::f64::consts::LOG2_10));
        self
    }

    /// Says that its floor is wide.
    pub fn loosely(mut self) -> Self {
        self.loose = true;
        self
    }

    /// Says what speaks for it besides its floor, which is wide.
    pub fn with_evidence(mut self, nats: f64) -> Self {
        self.loose = true;
        self.evidence = Some(nats);
        self
    }

    /// Says of which elements it says nothing.
    pub fn unknown_at(mut self, unknown: impl Fn(usize) -> bool + 'a) -> Self {
        self.unknown = Some(Box::new(unknown));
        self
    }

    /// Says that it is a rule of the indices along `axes`: where it holds for some of them, it holds for all.
    pub fn along(mut self, axes: &'static [Axis]) -> Self {
        self.confined = Some(Box::new(move |region| region.axes().all(|axis| !axes.contains(&axis))));
        self
    }

    /// Says that it is a rule of the indices along `axes`, which a part of a kernel may have: of fewer than [`SEEN`] of them it is none.
    pub fn in_runs(mut self, axes: &'static [Axis]) -> Self {
        let seen = |region: &ErrorRegion, axis| region.coordinates(axis) >= SEEN;
        self.confined =
            Some(Box::new(move |region| region.axes().all(|axis| !axes.contains(&axis) || seen(region, axis))));
        self
    }

    /// Says that element `i` has what belongs to `from(i)`, and that what belongs to `i` has a place as well: in the same region.
    pub fn exchanging(mut self, from: impl Fn(usize) -> usize + 'a) -> Self {
        self.confined = Some(Box::new(move |region| region.elements().iter().all(|i| region.contains(from(*i)))));
        self
    }

    /// Whether a mistake like this can be confined to `region`.
    pub fn can_be_confined(&self, region: &ErrorRegion) -> bool {
        self.confined.as_ref().is_none_or(|confined| confined(region))
    }

    /// Says what it assumes besides.
    pub fn assuming(mut self, bits: f64) -> Self {
        self.bits = bits;
        self
    }

    /// Value and floor at each of `indices`, which ascend.
    pub fn at(&self, indices: &[usize]) -> Result<Vec<Point>> {
        let mut points = (self.at)(indices)?;
        if let Some(unknown) = &self.unknown {
            points.iter_mut().zip(indices).filter(|(_, i)| unknown(**i)).for_each(|(p, _)| *p = Point::UNKNOWN);
        }
        Ok(points)
    }
}

/// A scene made ready.
pub struct Evidence<'a> {
    pub scene: &'a StageEval<'a>,
    op: Op<'a, &'a HostTensor>,
    /// What the contract rounds before it is used.
    pub emulation: Emulation,
    /// The operands as f64, rounded as the contract says, in the order of `Op::inputs`; ids as numbers.
    pub inputs: Vec<Vec<f64>>,
    /// The same, as the side that is wrong has them: what it rounds otherwise than its contract, it rounds from these.
    pub given: Vec<Vec<f64>>,
    pub shapes: Vec<&'a [usize]>,
    pub exact: Vec<f64>,
    pub output: Vec<f64>,
    /// The output is not seen: what is asked of it has no answer.
    pub unseen: bool,
    /// Elements that rounding does not explain, ascending.
    pub wrong: Vec<usize>,
    /// The sample to try variants on, ascending; those of it that are wrong, and that are not.
    pub probe: Vec<usize>,
}

impl<'a> Evidence<'a> {
    /// # Errors
    /// If output, oracle's result and floor are not of one shape.
    pub fn new(scene: &'a StageEval<'a>) -> Result<Self> {
        let (exact, output) = (scene.exact.to_f64(), scene.output.to_f64());
        if scene.exact.shape != scene.output.shape || scene.floor.len() != exact.len() {
            return Err(Error::usage(format!(
                "{}: the output is {:?}, the oracle's {:?}, with {} floors",
                scene.site,
                scene.output.shape,
                scene.exact.shape,
                scene.floor.len()
            )));
        }
        let operands = scene.op.inputs();
        let ratio = |i: usize| Point::new(exact[i], scene.floor[i]).residual(output[i]);
        let wrong: Vec<usize> = (0..exact.len()).filter(|i| ratio(*i) > 1.0).collect();
        let mut probe = BTreeSet::new();
        let mut worst = wrong.clone();
        worst.sort_by(|a, b| ratio(*b).total_cmp(&ratio(*a)).then(a.cmp(b)));
        probe.extend(&worst[..worst.len().min(PROBE_WRONG / 2)]);
        probe.extend(spread(&wrong, PROBE_WRONG - PROBE_WRONG / 2));
        let right: Vec<usize> = {
            let mut bad = wrong.iter().copied().peekable();
            (0..exact.len()).filter(|i| bad.next_if_eq(i).is_none()).collect()
        };
        probe.extend(spread(&right, PROBE_RIGHT));
        let op = scene.op.try_map(|t| Ok(&**t))?;
        let emulation = Emulation::of(&op, &scene.contract);
        let inputs = emulation.apply(&op)?.inputs().iter().map(|t| t.to_f64()).collect();
        let given = operands.iter().map(|t| t.to_f64()).collect();
        Ok(Self {
            scene,
            op,
            emulation,
            inputs,
            given,
            shapes: operands.iter().map(|t| &t.shape[..]).collect(),
            exact,
            output,
            unseen: false,
            wrong,
            probe: probe.into_iter().collect(),
        })
    }

    /// The stage's formula as the operation says; `None` if `F` is another stage's.
    ///
    /// # Errors
    /// If a weight cannot be read.
    pub fn stated<F: Formula<'a>>(&'a self) -> Result<Option<F>> {
        let mut formula = F::stated(&self.op, &self.inputs)?;
        if let Some(formula) = &mut formula {
            formula.emulate(&self.emulation);
        }
        Ok(formula)
    }

    /// What the contract makes of a tensor in the place of operand `n`, which has its shape.
    ///
    /// # Errors
    /// If they do not belong together.
    pub fn in_place(&self, n: usize, x: &HostTensor) -> Result<(Emulation, Vec<f64>)> {
        let mut at = 0;
        let op = self.op.try_map(|given| {
            at += 1;
            Ok(if at == n + 1 { x } else { *given })
        })?;
        let emulation = Emulation::of(&op, &self.scene.contract);
        let values = emulation.apply(&op)?.inputs().get(n).map(|t| t.to_f64()).unwrap_or_default();
        Ok((emulation, values))
    }

    /// The stage's formula with something changed; `None` if `F` is another stage's.
    ///
    /// # Errors
    /// As [`Evidence::stated`].
    pub fn changed<F: Formula<'a> + 'a>(
        &'a self,
        what: impl Into<String>,
        change: impl FnOnce(&mut F),
    ) -> Result<Option<Variant<'a>>> {
        let Some(mut formula) = self.stated::<F>()? else { return Ok(None) };
        change(&mut formula);
        Ok(Some(Variant::of(self, what, formula)))
    }

    /// The stage's formula changed in each of these ways; none if `F` is another stage's.
    ///
    /// # Errors
    /// As [`Evidence::stated`].
    pub fn each_changed<F: Formula<'a> + 'a, const N: usize>(
        &'a self,
        changes: [Change<'_, F>; N],
    ) -> Result<Vec<Variant<'a>>> {
        changes.into_iter().filter_map(|(what, change)| self.changed(what, change).transpose()).collect()
    }

    /// Of a stage whose output is not seen, `scene.output` being the oracle's: nothing is known to be wrong.
    ///
    /// # Errors
    /// As [`Evidence::new`].
    pub fn unseen(scene: &'a StageEval<'a>) -> Result<Self> {
        Ok(Self { unseen: true, ..Self::new(scene)? })
    }

    /// The largest residual of points at `indices`.
    pub fn residual(&self, indices: &[usize], points: &[Point]) -> Result<f64> {
        if indices.len() != points.len() {
            let (asked, got) = (indices.len(), points.len());
            return Err(Error::usage(format!("{}: {got} points for {asked} elements", self.scene.site)));
        }
        Ok(indices.iter().zip(points).map(|(i, p)| p.residual(self.output[*i])).fold(0.0, f64::max))
    }

    /// The oracle's own point of an element.
    pub fn right(&self, i: usize) -> Point {
        Point::new(self.exact[i], self.scene.floor[i])
    }

    /// How many there are to choose from, where the output is ids.
    pub fn ids_of(&self) -> usize {
        self.shapes.first().and_then(|shape| shape.last()).copied().unwrap_or(0)
    }

    pub fn cols(&self) -> usize {
        self.scene.output.cols().max(1)
    }

    /// Whether the output is [heads, T, S].
    pub fn is_attention_matrix(&self) -> bool {
        matches!(self.scene.op, Op::AttnScores { .. } | Op::AttnProbs { .. })
    }

    /// The expert ids that the router chose, [T, K], if this operation or this layer has them.
    pub fn ids(&self) -> Option<&'a HostTensor> {
        match self.scene.op {
            Op::ExpertMatMul { ids, .. } | Op::RouterWeights { ids, .. } | Op::ExpertBias { ids, .. } => Some(ids),
            _ => self.scene.earlier.get(Stage::RouterIds).map(|ids| &**ids),
        }
    }

    /// The other weights of the model that have the shape of `weight`: those of this layer, and the same of the nearest layers that have it.
    pub fn other_weights(&self, weight: &Weight) -> Vec<&'a Weight> {
        let layer = |l: &'a LayerWeights| l.all().into_iter().map(|w| &**w).collect::<Vec<_>>();
        let all = |n: usize| self.scene.weights.layers.get(n).map(layer).unwrap_or_default();
        let whole = [&*self.scene.weights.token_embd, &*self.scene.weights.output, &*self.scene.weights.output_norm];
        // `attn_q (gate)` of `blk.3.attn_q.weight (gate)`, and `attn_k` of its weight and of its bias.
        let stem = |w: &Weight| {
            let in_layer = w.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            in_layer.map_or(&*w.name, |(_, name)| name).replace(".weight", "").replace(".bias", "")
        };
        let named = |n: usize| -> Option<Vec<&'a Weight>> {
            let same: Vec<_> = all(n).into_iter().filter(|w| stem(w) == stem(weight)).collect();
            (!same.is_empty()).then_some(same)
        };
        let mut found: Vec<&Weight> = Vec::new();
        if let Some(n) = self.scene.site.layer.map(|n| n as usize) {
            found.extend(all(n));
            let last = self.scene.weights.layers.len();
            found.extend((0..n.min(last)).rev().find_map(named).into_iter().flatten());
            found.extend((n.saturating_add(1)..last).find_map(named).into_iter().flatten());
        } else {
            found.extend(self.scene.weights.layers.last().map(layer).unwrap_or_default());
        }
        found.extend(whole);
        let same = |w: &&Weight| {
            w.id != weight.id && (w.cols, w.rows, w.experts) == (weight.cols, weight.rows, weight.experts)
        };
        found.retain(same);
        found
    }
}

/// At most `n` of `all`, first and last among them, evenly spread, with a step that shares no small factor with a row's length.
fn spread(all: &[usize], n: usize) -> Vec<usize> {
    if all.len() <= n {
        return all.to_vec();
    }
    let mut chosen: Vec<usize> = (0..n).map(|i| all[i * (all.len() - 1) / (n - 1)]).collect();
    chosen.dedup();
    chosen
}
