//! A segment with mistakes made in it: what a variant at one of its steps, or at several, gives at its end.
//!
//! Hundreds of variants are tried on segments of hundreds of rows, and nearly none comes near. So each is computed first as far as one row
//! needs it ([`SegmentScope::may_fit`]): the last row of its own stage, unless that goes into a cache, and of all that follows.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::SegmentEval;
use crate::diff::explain::case::Evidence;
use crate::diff::explain::fit::UNACCOUNTED;
use crate::diff::explain::{Hypothesis, StageEval, Upstream};
use crate::diff::segment::{Changed, Segment, cut};
use crate::error::Result;
use crate::formula::Point;
use crate::op::{HostTensor, OwnedOp, Site, Stage};

/// A mistake that leaves so many floors may fit the floor that it has itself.
pub const NEAR: f64 = 50.0;

/// Where in a stage a mistake is made.
#[derive(Clone, Debug, PartialEq)]
pub enum MistakePart {
    Whole,
    /// In these rows of the call.
    Rows(BTreeSet<usize>),
    /// In the slots of one expert.
    Expert(u32),
}

impl MistakePart {
    /// Rows that are no range.
    pub fn is_scattered(&self) -> bool {
        match self {
            MistakePart::Rows(rows) => {
                rows.last().zip(rows.first()).is_some_and(|(last, first)| last - first >= rows.len())
            }
            MistakePart::Whole | MistakePart::Expert(_) => false,
        }
    }

    pub fn words(&self, start: usize) -> String {
        match self {
            MistakePart::Whole => String::new(),
            MistakePart::Rows(rows) => {
                let names: Vec<String> = rows.iter().take(6).map(|row| (start + row).to_string()).collect();
                let more = if rows.len() > 6 { ", …" } else { "" };
                let s = if rows.len() == 1 { "" } else { "s" };
                format!(", at position{s} {}{more} only", names.join(", "))
            }
            MistakePart::Expert(expert) => format!(", in expert {expert} only"),
        }
    }

    /// `changed` where this is, `right` elsewhere: of rows whose first is `first`, and whose experts are `ids`.
    fn of(
        &self,
        site: Site,
        first: usize,
        ids: Option<&HostTensor>,
        right: &HostTensor,
        changed: HostTensor,
    ) -> HostTensor {
        let axis = site.stage.position_axis();
        let (rows, inner) = (right.shape[axis], right.shape[axis + 1..].iter().product::<usize>().max(1));
        let inside = |i: usize| match self {
            MistakePart::Whole => true,
            MistakePart::Rows(set) => set.contains(&(first + i / inner % rows)),
            MistakePart::Expert(expert) => {
                let cols = right.cols().max(1);
                ids.is_some_and(|ids| ids.ids().get(i / cols) == Some(expert))
            }
        };
        if *self == MistakePart::Whole {
            return changed;
        }
        if right.dtype() == "u32" {
            let pairs = changed.ids().iter().zip(right.ids()).enumerate();
            return HostTensor::u32(&right.shape, pairs.map(|(i, (c, r))| if inside(i) { *c } else { *r }).collect());
        }
        let pairs = changed.to_f64().into_iter().zip(right.to_f64()).enumerate();
        HostTensor::f64(&right.shape, pairs.map(|(i, (c, r))| if inside(i) { c } else { r }).collect())
    }
}

/// A variant at one or several steps.
#[derive(Clone)]
pub struct HiddenMistake {
    pub hypothesis: &'static Hypothesis,
    pub what: String,
    pub steps: Vec<usize>,
    pub part: MistakePart,
}

impl HiddenMistake {
    /// The less the simpler: a part is a choice, and scattered rows are many.
    pub fn complexity(&self) -> usize {
        usize::from(self.part != MistakePart::Whole) + usize::from(self.part.is_scattered())
    }
}

/// The rows of a stage that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantedRows {
    All,
    Last,
}

impl WantedRows {
    /// The elements of a stage's values, in order.
    fn elements(self, stage: Stage, shape: &[usize]) -> Vec<usize> {
        let axis = stage.position_axis();
        let (rows, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
        let outer: usize = shape[..axis].iter().product();
        match self {
            WantedRows::All => (0..outer * rows * inner).collect(),
            WantedRows::Last => {
                (0..outer).flat_map(|o| (o + 1) * rows * inner - inner..(o + 1) * rows * inner).collect()
            }
        }
    }
    /// These rows of a stage's values.
    fn of(self, stage: Stage, t: &HostTensor) -> HostTensor {
        let axis = stage.position_axis();
        match self {
            WantedRows::All => t.clone(),
            WantedRows::Last => t.take(axis, &[t.shape[axis] - 1]),
        }
    }
}

/// Computes a variant's values at some rows.
type Values<'v> = dyn Fn(WantedRows) -> Result<HostTensor> + 'v;

/// A segment over some first rows of the call, with what mistakes in it may look at.
pub struct SegmentScope<'a> {
    pub eval: &'a SegmentEval<'a>,
    pub segment: Segment,
    /// The same as far as its last row needs it, and the rows that it has of each step.
    last: Segment,
    has: Vec<WantedRows>,
    /// All values of the log, cut to the same rows: for mistakes that take one for another.
    values: Vec<(Site, Rc<HostTensor>)>,
    ids: Option<HostTensor>,
    pub output: HostTensor,
    pub exact: HostTensor,
    pub allowed: Vec<f64>,
}

impl<'a> SegmentScope<'a> {
    pub fn new(eval: &'a SegmentEval<'a>, segment: Segment) -> Self {
        let rows = segment.target().rows();
        let (site, start) = (segment.target().at.site, segment.target().at.start);
        let of_target = |t: &HostTensor| cut(site.stage, t, start, 0..rows);
        let values =
            eval.log.steps.iter().map(|s| (s.at.site, Rc::new(cut(s.at.site.stage, &s.value, start, 0..rows))));
        let has = |whole: bool| if whole { WantedRows::All } else { WantedRows::Last };
        Self {
            eval,
            last: segment.last_row(),
            has: segment.feeds_cache().into_iter().map(has).collect(),
            values: values.collect(),
            ids: eval.ids.map(|ids| ids.take(0, &Vec::from_iter(0..rows))),
            output: of_target(eval.output),
            exact: of_target(eval.exact),
            allowed: of_target(&HostTensor::f64(&eval.exact.shape, eval.allowed.to_vec())).to_f64(),
            segment,
        }
    }

    /// What everything that was computed here has cost so far ([`Segment::spent`]).
    pub fn spent(&self) -> u64 {
        self.segment.spent() + self.last.spent()
    }

    /// The side's values before step `n`, with `changed` in the place of some.
    pub fn upstream(&self, n: usize, changed: &Changed) -> Upstream {
        let site = self.segment.steps[n].at.site;
        let mut upstream = Upstream::new();
        for (made, value) in self.values.iter().take_while(|(made, _)| *made != site) {
            upstream.note(*made, changed.get(made).unwrap_or(value));
        }
        upstream
    }

    /// Calls `each` with every variant that some hypotheses have for step `n` as `op` runs it, `right` being the oracle's result: the hypothesis,
    /// the variant's words and its values; until it says no.
    pub fn variants(
        &self,
        n: usize,
        op: &OwnedOp,
        upstream: &Upstream,
        right: &HostTensor,
        hypotheses: impl Iterator<Item = &'static Hypothesis>,
        mut each: impl FnMut(&'static Hypothesis, &str, &Values<'_>) -> Result<bool>,
    ) -> Result<()> {
        let step = &self.segment.steps[n];
        let floor = vec![0.0; right.len()];
        let shared = op.share();
        let scene = StageEval {
            site: step.at.site,
            start: step.at.start,
            op: &shared,
            output: right,
            exact: right,
            floor: &floor,
            contract: *self.eval.contracts.at(step.at.site.stage, op.kind()),
            earlier: upstream,
            config: self.eval.config,
            weights: self.eval.weights,
        };
        let case = Evidence::unseen(&scene)?;
        let stage = step.at.site.stage;
        for hypothesis in hypotheses.filter(|h| h.ops.contains(&op.kind())) {
            for variant in (hypothesis.variants)(&case)? {
                if variant.fitted > 0 || variant.loose {
                    continue;
                }
                let values = |rows: WantedRows| -> Result<HostTensor> {
                    let elements = rows.elements(stage, &right.shape);
                    let values = variant.at(&elements)?.into_iter().map(|p| p.value);
                    let mut shape = right.shape.clone();
                    if rows == WantedRows::Last {
                        shape[stage.position_axis()] = 1;
                    }
                    Ok(match stage.is_ids() {
                        true => HostTensor::u32(&shape, values.map(|id| id as u32).collect()),
                        false => HostTensor::f64(&shape, values.collect()),
                    })
                };
                if !each(hypothesis, &variant.what, &values)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The variant `values` of step `n` in a part of it, `right` elsewhere.
    pub fn in_part(
        &self,
        n: usize,
        part: &MistakePart,
        right: &HostTensor,
        rows: WantedRows,
        values: &Values<'_>,
    ) -> Result<HostTensor> {
        let counted = if rows == WantedRows::Last { &self.last } else { &self.segment };
        counted.spend(n);
        let site = self.segment.steps[n].at.site;
        let first = if rows == WantedRows::Last { self.segment.target().rows() - 1 } else { 0 };
        let ids = self.ids.as_ref().map(|ids| rows.of(Stage::RouterIds, ids));
        Ok(part.of(site, first, ids.as_ref(), &rows.of(site.stage, right), values(rows)?))
    }

    /// The values of a mistake at step `n`, as `op` runs it; `None` if it is not one that can be made there.
    fn altered(
        &self,
        mistake: &HiddenMistake,
        n: usize,
        op: &OwnedOp,
        changed: &Changed,
        right: &HostTensor,
        rows: WantedRows,
    ) -> Result<Option<HostTensor>> {
        let upstream = self.upstream(n, changed);
        let mut found = None;
        self.variants(n, op, &upstream, right, [mistake.hypothesis].into_iter(), |_, what, values| {
            if what == mistake.what {
                found = Some(self.in_part(n, &mistake.part, right, rows, values)?);
            }
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// The values of a mistake at step `n`, as `op` runs it, where it is made there.
    pub fn made(
        &self,
        mistake: &HiddenMistake,
        n: usize,
        op: &OwnedOp,
        changed: &Changed,
    ) -> Result<Option<HostTensor>> {
        if !mistake.steps.contains(&n) {
            return Ok(None);
        }
        let right = self.segment.exact(n, op, self.eval.contracts)?;
        self.altered(mistake, n, op, changed, &right, WantedRows::All)
    }

    /// Runs the segment with a mistake in it.
    pub fn run(&self, mistake: &HiddenMistake) -> Result<Changed> {
        self.segment.rerun(self.eval.contracts, |n, op, changed| self.made(mistake, n, op, changed))
    }

    /// Whether a variant of step `n` comes near at the last row, if it is made in a part; no if it changes nothing there.
    pub fn may_fit(&self, n: usize, part: &MistakePart, right: &HostTensor, values: &Values<'_>) -> Result<bool> {
        let here = self.in_part(n, part, right, self.has[n], values)?;
        if here.data == self.has[n].of(self.segment.steps[n].at.site.stage, right).data {
            return Ok(false);
        }
        let end = self.last.rerun(self.eval.contracts, |m, _, _| Ok((m == n).then(|| here.clone())))?;
        Ok(self.is_near_at_last(&end))
    }

    /// Whether a mistake made at several steps comes near at the last row.
    pub fn run_may_fit(&self, mistake: &HiddenMistake) -> Result<bool> {
        let contracts = self.eval.contracts;
        let end = self.last.rerun(contracts, |n, op, changed| {
            if !mistake.steps.contains(&n) {
                return Ok(None);
            }
            // All rows of what the mistake reads, though of some only the last is right.
            let changed: Changed = changed.iter().map(|(site, value)| (*site, self.padded(*site, value))).collect();
            let all = self.segment.with(n, &changed);
            let all = all.as_ref().unwrap_or(&self.segment.steps[n].op);
            let right = match self.has[n] {
                WantedRows::All => self.segment.exact(n, all, contracts)?,
                WantedRows::Last => {
                    let site = self.segment.steps[n].at.site;
                    (*self.padded(site, &Rc::new(self.last.exact(n, op, contracts)?))).clone()
                }
            };
            self.altered(mistake, n, all, &changed, &right, self.has[n])
        })?;
        Ok(self.is_near_at_last(&end))
    }

    /// A step's values with the last row that `value` has, if that is all that it has.
    fn padded(&self, site: Site, value: &Rc<HostTensor>) -> Rc<HostTensor> {
        let step = self.segment.steps.iter().find(|s| s.at.site == site).expect("a step of the segment");
        if value.shape == step.value.shape {
            return value.clone();
        }
        let places = WantedRows::Last.elements(site.stage, &step.value.shape);
        Rc::new(if site.stage.is_ids() {
            let mut all = step.value.ids().to_vec();
            places.iter().zip(value.ids()).for_each(|(at, id)| all[*at] = *id);
            HostTensor::u32(&step.value.shape, all)
        } else {
            let mut all = step.value.to_f64();
            places.iter().zip(value.to_f64()).for_each(|(at, x)| all[*at] = x);
            HostTensor::f64(&step.value.shape, all)
        })
    }

    /// Whether the last row of a segment's end leaves no more of the error than a mistake may, some of whose floor is not known.
    fn is_near_at_last(&self, end: &Changed) -> bool {
        let target = self.segment.target();
        let Some(end) = end.get(&target.at.site) else { return false };
        let output = WantedRows::Last.of(target.at.site.stage, &self.output).to_f64();
        let places = WantedRows::Last.elements(target.at.site.stage, &self.exact.shape);
        let mut points = end.to_f64().into_iter().zip(places).map(|(end, at)| Point::new(end, self.allowed[at]));
        output.into_iter().all(|output| points.next().is_some_and(|p| p.residual(output) <= NEAR))
    }

    /// The segment's end.
    pub fn end<'c>(&'c self, changed: &'c Changed) -> &'c HostTensor {
        changed.get(&self.segment.target().at.site).map_or(&self.exact, |t| t)
    }

    /// The largest |output − end| over `allowed`, and the share of the error's energy that is left.
    pub fn residual(&self, end: &HostTensor, allowed: &[f64]) -> (f64, f64) {
        let (mut residual, mut was, mut left) = (0f64, 0.0, 0.0);
        let output = self.output.to_f64();
        for (((output, end), exact), allowed) in output.iter().zip(end.to_f64()).zip(self.exact.to_f64()).zip(allowed) {
            residual = residual.max(Point::new(end, *allowed).residual(*output));
            if output.is_finite() && end.is_finite() && exact.is_finite() {
                was += (output - exact) * (output - exact);
                left += (output - end) * (output - end);
            }
        }
        (residual, if was > 0.0 { left / was } else { 1.0 })
    }

    /// What a segment's end leaves of the error in floors, if it accounts for nearly all of it.
    pub fn comes_near(&self, end: &HostTensor) -> Option<f64> {
        let (residual, left) = self.residual(end, &self.allowed);
        (residual <= NEAR && left <= UNACCOUNTED).then_some(residual)
    }
}
