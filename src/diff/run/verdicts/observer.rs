//! A stage, as the lockstep shows it, becomes a verdict.

use std::rc::Rc;

use super::hidden::Visible;
use super::{ComparisonBuilder, OracleView, row_bits};
use crate::backend::Shown;
use crate::diff::measure::metrics::{Mask, Mismatch, Side, measure};
use crate::diff::measure::router::{Routing, compare_routing};
use crate::diff::outcome::{Cause, Measured, Overflow, StageResult, Verdict, WeightSummary};
use crate::diff::run::lockstep::{Observation, Overwritten, PairObserver};
use crate::error::Result;
use crate::formula::Point;
use crate::formula::exact::exact;
use crate::formula::floor::floor_of;
use crate::formula::worst::Unbounded;
use crate::op::{At, HostTensor, Stage, unravel};
use crate::quant::first_not_finite;

impl PairObserver for ComparisonBuilder<'_> {
    fn begin(&mut self, at: At) {
        if at.site.stage == Stage::AttnNorm {
            self.layer.clear();
            self.bounds = None;
        }
        if let Some(tell) = &mut self.tell {
            tell(at);
        }
    }

    fn pass(&mut self, at: At, next: &[Rc<HostTensor>; 2], replaced: bool) {
        if replaced {
            self.found.notes.push(format!(
                "{}, which is not asked about: a side chose experts that do not exist, and goes on with the other's",
                at.site
            ));
        }
        self.made(at.site, next.clone());
    }

    fn observe(&mut self, mut o: Observation<'_>) -> Result<bool> {
        let stage = o.at.site.stage;
        self.log(&o);
        let visible = Visible::of(&o);
        let mask = if visible.consecutive { Mask::of(stage, o.at.start + visible.first()) } else { Mask::None };
        let shows = o.shown.clone().map(|shown| shown != Shown::Nothing);
        let total = match (shows[0], shows[1]) {
            (true, true) => self.total(&o, &visible, mask)?,
            _ => Measured::Hidden,
        };
        let mut result = StageResult::new(self.step(o.at.start), o.at.site, &o.subject.shape, total);
        result.weight = o.op_subject.weight().map(|w| WeightSummary::from(&**w));
        if shows[1] {
            result.injected = Some(match stage {
                Stage::RouterIds => compare_routing(
                    Routing { ids: &visible.rows(&o.replayed), weights: None, probs: None, logits: None, groups: None },
                    Routing { ids: &visible.rows(&o.subject), weights: None, probs: None, logits: None, groups: None },
                    self.config.moe.as_ref().map_or(0, |m| m.experts),
                    o.at.start,
                )
                .map_or_else(Measured::Failed, |r| Measured::from(&r)),
                _ => measure(&visible.rows(&o.replayed), &visible.rows(&o.subject), mask).into(),
            });
            result.amplification = self.amplification(&o);
        }

        let mut view = if o.subject.shape == o.replayed.shape { self.against_oracle(&o)? } else { None };
        for side in 0..2 {
            let mut segment = self.segment(side, &o);
            if let (Some(view), Some(segment)) = (&mut view, &mut segment) {
                segment.choices = self.choose_again(side, &mut o, view)?;
            }
            result.segment = result.segment.or(segment);
        }
        if let Some(view) = &view {
            result.judged = Some(view.ratios);
            result.ratio = Some(view.injected_ratio);
            result.floor = Some(view.floor);
        }
        self.decide(&mut result);
        if result.judged.is_none() && result.verdict == Verdict::Differs && result.is_lost() && shows[1] {
            self.pardon(&mut result, [&visible.rows(&o.replayed), &visible.rows(&o.subject)], mask);
        }
        if let (Some(view), Some([exact_c, _]), Verdict::ReferenceWrong) = (&view, &o.exact, &result.verdict)
            && (view.only_on_its_own.is_some() || !shows[1])
        {
            // What the sides do on the subject's inputs says nothing of this fault; c(x_c) against o(x_c) does.
            if stage != Stage::RouterIds {
                result.injected =
                    Some(measure(&visible.rows(&o.reference), &visible.rows(&exact_c.value), mask).into());
            }
        }
        if let Some(view) = &view {
            // A fault is told by the ratio that decided it: two sides that are wrong alike are near to each other.
            let [reference, subject] = [(view.ratios.reference, view.floors[0]), (view.ratios.subject, view.floors[1])];
            let decisive = match result.verdict {
                Verdict::SubjectWrong => Some(subject),
                Verdict::ReferenceWrong => Some(reference),
                Verdict::BothWrong if reference.0 > subject.0 => Some(reference),
                Verdict::BothWrong => Some(subject),
                _ => None,
            };
            if let Some((ratio, floor)) = decisive {
                (result.ratio, result.floor) = (Some(ratio), Some(floor));
            }
        }
        if let Some(view) = &view {
            self.overflowed(&o, &mut result, view);
        }
        if !shows[1] && !result.verdict.is_fault() {
            result.verdict = Verdict::Hidden;
            (result.ratio, result.floor, result.visible) = (None, None, false);
        }
        let ids = self.layer.get(&Stage::RouterIds).map(|ids| visible.rows(&ids.subject));
        result.locate(o.at.start, ids.as_ref().map(|ids| ids.ids()));
        result.position = result.position.map(|p| o.at.start + visible.row(p - o.at.start));
        if let Some(view) = &view {
            if stage == self.decides() {
                self.bound_logits(&o)?;
            }
            if result.verdict.is_fault() {
                self.explained(&o, &mut result, view)?;
                if shows[1] && result.segment.is_none() && result.verdict != Verdict::ReferenceWrong {
                    let operands = (o.reread)()?;
                    self.overwritten(&o, &mut result, &operands)?;
                }
            }
        }
        result.spread = self.spread(&o, &visible, &result, view.as_ref());
        self.keep(&o);
        if stage == Stage::RouterWeights && shows[0] && shows[1] {
            self.weigh(&o);
        }
        if stage == Stage::Logits && shows[0] && shows[1] {
            self.logits(&o, &visible);
        }
        if let Measured::Failed(mismatch @ Mismatch::NoSuchExpert { side, .. }) = &result.total {
            let other = if *side == Side::Reference { Side::Subject } else { Side::Reference };
            self.found
                .notes
                .push(format!("{}: {mismatch}; from here on the {side} computes with the {other}'s", o.at.site));
        }
        if result.is_lost() && !self.found.stages.iter().any(StageResult::is_lost) {
            self.name_weight(&o)?;
        }
        self.found.rerouted |= !Rc::ptr_eq(&o.next[1], &o.subject) && o.next[1] != o.subject;
        if stage == Stage::Logits {
            self.found.logit_bits.extend(row_bits(&o.subject));
        }
        self.made(o.at.site, o.next);
        let ends = self.stops && result.verdict.is_fault();
        self.found.stages.push(result);
        Ok(!ends)
    }
}

/// Said once, of the first stage that has such elements.
const NO_BOUND: &str =
    "elements that no bound is known of, since the arithmetic of a side's contract may overflow on these inputs";

impl ComparisonBuilder<'_> {
    /// Where nothing judges, the same NaN or infinity in the same place on both sides, on the same inputs, is no difference of the sides:
    /// what else there is decides.
    fn pardon(&self, result: &mut StageResult, sides: [&HostTensor; 2], mask: Mask) {
        let [c, g] = sides.map(HostTensor::to_f64);
        let alike =
            |a: &f64, b: &f64| a.is_finite() == b.is_finite() && (a.is_finite() || a == b || a.is_nan() && b.is_nan());
        if sides[0].shape != sides[1].shape || !c.iter().zip(&g).all(|(a, b)| alike(a, b)) {
            return;
        }
        let finite = |values: Vec<f64>| {
            let values = values.into_iter().map(|x| if x.is_finite() { x } else { 0.0 }).collect();
            HostTensor::f64(&sides[0].shape, values)
        };
        let nothing = c.iter().all(|x| !x.is_finite() || *x == 0.0);
        let passes = match measure(&finite(c), &finite(g), mask) {
            Ok(metrics) => {
                self.tolerances.judge(result.site.stage, result.qtype(), &metrics, None).iter().all(|j| j.passed)
            }
            Err(_) => nothing,
        };
        if passes {
            result.verdict = Verdict::Inherits;
        }
    }

    /// Says what has no bound, and what of it a side lost.
    fn overflowed(&mut self, o: &Observation<'_>, result: &mut StageResult, view: &OracleView) {
        let values = [&o.replayed, &o.subject];
        let lost = |side: usize| {
            let (first, elements) = view.unbounded[side]?.overflowed?;
            let exact = o.exact.as_ref()?[1].value.to_f64()[first];
            let (index, found) = (unravel(first, &values[side].shape), values[side].to_f64()[first]);
            Some(Overflow { side: [Side::Reference, Side::Subject][side], elements, index, found, exact })
        };
        result.overflow = lost(1).or_else(|| lost(0));
        if result.overflow.is_some() && !result.verdict.is_fault() {
            (result.ratio, result.floor) = (None, None);
        }
        let said = self.found.notes.iter().any(|note| note.contains(NO_BOUND));
        if let Some(Unbounded { first, .. }) = view.unbounded.iter().flatten().min_by_key(|all| all.first)
            && !said
        {
            let at = unravel(*first, &o.subject.shape);
            self.found.notes.push(format!("{}: {NO_BOUND}, the first at {at:?}", o.at.site));
        }
    }

    /// Names what has written over an operand as the cause, if the stage is right on what the operand holds.
    fn overwritten(&self, o: &Observation<'_>, result: &mut StageResult, operands: &[Overwritten]) -> Result<()> {
        let Some(first) = operands.first() else { return Ok(()) };
        let mut inputs = 0..;
        let op = o.op_subject.try_map(|t| {
            let n = inputs.next();
            Ok(operands
                .iter()
                .find(|operand| Some(operand.operand) == n)
                .map_or_else(|| &**t, |operand| &*operand.values))
        })?;
        let contract = self.contracts[1].at(o.at.site.stage, op.kind());
        let value = exact(&op, contract)?;
        let floor = floor_of(&op, contract, &value)?;
        let points = value.to_f64().into_iter().zip(floor).map(|(value, floor)| Point::new(value, floor));
        let residual = points.zip(o.subject.to_f64()).map(|(point, x)| point.residual(x)).fold(0.0, f64::max);
        if residual > 1.0 {
            return Ok(());
        }
        let since: Vec<&str> = first.since.iter().map(|site| site.stage.name()).collect();
        result.cause = Some(Cause {
            reproduced: true,
            id: "overwritten",
            also: Vec::new(),
            name: format!(
                "what {} holds by now: {} of its {} elements, the first {:?}, were written over after it was made, by one of {}",
                first.site.stage.name(),
                first.elements,
                first.values.len(),
                first.first,
                since.join(", ")
            ),
            residual_ratio: residual,
            removes: None,
            next_best: None,
            stages: Vec::new(),
            others: Vec::new(),
        });
        Ok(())
    }

    /// Says so if the weight of the first stage that is not finite is not finite itself.
    fn name_weight(&mut self, o: &Observation<'_>) -> Result<()> {
        let Some(weight) = o.op_subject.weight() else { return Ok(()) };
        if let Some(place) = first_not_finite(weight)? {
            self.found.notes.push(format!("{}: the file's {} is not finite, first at {place}", o.at.site, weight.name));
        }
        Ok(())
    }
}
