//! What a side does not show: the rows that both sides show, the segment before a shown value, and the choices of experts inside it.

use std::borrow::Cow;

use super::{ComparisonBuilder, OracleView, error};
use crate::backend::Shown;
use crate::backend::oracle::evaluate;
use crate::diff::outcome::{HiddenChoice, SegmentSummary};
use crate::diff::run::lockstep::Observation;
use crate::diff::segment::{Segment, Step};
use crate::error::Result;
use crate::formula::floor::injected_ratio;
use crate::op::{HostTensor, OwnedOp, Site};

/// The rows of a call that both sides show, where they show any.
pub(super) struct Visible {
    axis: usize,
    /// `None` if it is all of them.
    pub(super) rows: Option<Vec<usize>>,
    pub(super) consecutive: bool,
}

impl Visible {
    pub(super) fn of(o: &Observation<'_>) -> Self {
        let axis = o.at.site.stage.position_axis();
        let all = o.subject.shape.get(axis).copied().unwrap_or(0);
        let partial = o.shown.iter().any(|shown| matches!(shown, Shown::Rows(_)));
        let row = |t: &usize| o.shown.iter().all(|shown| matches!(shown, Shown::Nothing) || shown.row(*t));
        let rows = partial.then(|| (0..all).filter(row).collect::<Vec<_>>());
        let consecutive = rows.as_ref().is_none_or(|rows| rows.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        Self { axis, rows, consecutive }
    }
    pub(super) fn rows<'t>(&self, t: &'t HostTensor) -> Cow<'t, HostTensor> {
        match &self.rows {
            Some(rows) => Cow::Owned(t.take(self.axis, rows)),
            None => Cow::Borrowed(t),
        }
    }
    /// The call's row that is the n-th of these.
    pub(super) fn row(&self, n: usize) -> usize {
        self.rows.as_ref().map_or(n, |rows| rows[n])
    }
    pub(super) fn first(&self) -> usize {
        self.rows.as_ref().and_then(|rows| rows.first().copied()).unwrap_or(0)
    }
}

impl ComparisonBuilder<'_> {
    /// Keeps what a later segment may have to be run again with.
    pub(super) fn log(&mut self, o: &Observation<'_>) {
        let Some(exact) = &o.exact else { return };
        for side in 0..2 {
            let Some(log) = &mut self.logs[side] else { continue };
            log.push(Step {
                at: o.at,
                op: [&o.op_reference, &o.op_subject][side].keep(),
                value: o.next[side].clone(),
                exact: exact[side].value.clone(),
                floor: exact[side].floor.clone(),
                shown: o.shown[side].clone(),
                alternatives: exact[side].alternatives.clone(),
            });
        }
    }

    /// What lies between this stage and the values that a side shows before it, if anything does.
    pub(super) fn segment(&self, side: usize, o: &Observation<'_>) -> Option<SegmentSummary> {
        let log = self.logs[side].as_ref().filter(|_| o.shown[side] != Shown::Nothing)?;
        let sites: Vec<Site> = log.segment().iter().map(|step| step.at.site).collect();
        (sites.len() > 1)
            .then(|| SegmentSummary { hidden: sites[..sites.len() - 1].to_vec(), ..SegmentSummary::default() })
    }

    /// Before an error is called a fault: where a hidden router's choice is not decided by rounding, the choices within it are tried, and
    /// those that come nearer to what the side shows are kept. The oracle's result and the ratios become those of the choices kept.
    pub(super) fn choose_again(
        &mut self,
        side: usize,
        o: &mut Observation<'_>,
        view: &mut OracleView,
    ) -> Result<Vec<HiddenChoice>> {
        let ratio = match side {
            1 => view.ratios.subject,
            _ => view.only_on_its_own.unwrap_or(0.0),
        };
        let Some(log) = &self.logs[side] else { return Ok(Vec::new()) };
        let undecided = log.segment().iter().any(|step| !step.alternatives.is_empty());
        if ratio <= 1.0 || !undecided {
            return Ok(Vec::new());
        }
        let floor = &self.floors(o, side, side)?;
        let Some(exact) = &mut o.exact else { return Ok(Vec::new()) };
        let value = [&o.reference, &o.subject][side];
        let segment = Segment::new(log, &self.contracts[side]);
        let mut kept: Vec<(usize, usize, Vec<u32>)> = Vec::new(); // step, row, ids
        let mut best = (injected_ratio(&error(value, &exact[side].value), floor), exact[side].value.clone());
        for (n, step) in segment.steps.iter().enumerate() {
            for (row, ids) in &step.alternatives {
                let mut tried = kept.clone();
                tried.retain(|(m, r, _)| (*m, r) != (n, row));
                tried.push((n, *row, ids.clone()));
                let changed = segment.rerun(&self.contracts[side], |m, op, _| {
                    let OwnedOp::RouterTopK { .. } = op else { return Ok(None) };
                    let chosen = evaluate(&op.borrow())?;
                    let mut ids = chosen.ids().to_vec();
                    let k = chosen.cols();
                    for (_, row, other) in tried.iter().filter(|(step, ..)| *step == m) {
                        ids[row * k..(row + 1) * k].copy_from_slice(other);
                    }
                    Ok(Some(HostTensor::u32(&chosen.shape, ids)))
                })?;
                let Some(result) = changed.get(&o.at.site) else { continue };
                let ratio = injected_ratio(&error(value, result), floor);
                if (ratio.beyond, ratio.max) < (best.0.beyond, best.0.max) {
                    (best, kept) = ((ratio, result.clone()), tried);
                }
            }
        }
        let choices = kept.into_iter().map(|(n, row, chosen)| {
            let step = &segment.steps[n];
            let k = step.value.cols();
            HiddenChoice {
                layer: step.at.site.layer.unwrap_or_default(),
                position: step.at.start + row,
                oracle: step.exact.ids()[row * k..(row + 1) * k].to_vec(),
                chosen,
            }
        });
        let choices: Vec<HiddenChoice> = choices.collect();
        if !choices.is_empty() {
            exact[side].value = best.1.clone();
            if let Some(step) = self.logs[side].as_mut().and_then(|log| log.steps.last_mut()) {
                step.exact = best.1;
            }
            view.unbounded[side] = None; // of the choice that was given up
            match side {
                1 => (view.ratios.subject, view.injected_ratio) = (best.0.max, best.0.max),
                _ => {
                    view.ratios.reference = best.0.max;
                    view.only_on_its_own = view.only_on_its_own.filter(|_| best.0.max > 1.0);
                }
            }
        }
        Ok(choices)
    }
}
