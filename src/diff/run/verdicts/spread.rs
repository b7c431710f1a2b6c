//! Where along a stage's axes its error is.

use super::{ComparisonBuilder, OracleView, Visible};
use crate::backend::Shown;
use crate::diff::measure::spread::{Spread, SpreadAxis, SpreadOf};
use crate::diff::outcome::{StageResult, Verdict};
use crate::diff::run::lockstep::Observation;
use crate::op::{Dim, Stage};

/// Faults whose error is taken apart at most: those behind them mostly inherit.
pub(super) const MOST_FAULTS: usize = 32;

impl ComparisonBuilder<'_> {
    /// The total error of a layer's output by position, which shows how errors grow; the own error of a stage that is wrong by position,
    /// head and expert, as far as it has them.
    pub(super) fn spread(
        &mut self,
        o: &Observation<'_>,
        visible: &Visible,
        result: &StageResult,
        view: Option<&OracleView>,
    ) -> Vec<Spread> {
        let stage = o.at.site.stage;
        let axis = stage.position_axis();
        let position = |n| o.at.start + visible.row(n);
        let shown = o.shown.iter().all(|shown| *shown != Shown::Nothing);
        let mut spread = Vec::new();
        if stage == Stage::LayerOut && shown {
            let (c, g) = (visible.rows(&o.reference), visible.rows(&o.subject));
            spread.extend(Spread::by_position(SpreadOf::Total, [&c, &g], axis, position));
        }
        if !result.verdict.is_fault() || self.spreads == 0 || !shown || stage == Stage::RouterIds {
            return spread;
        }
        self.spreads -= 1;
        // A reference that errs on its own inputs alone shows nothing on the subject's.
        let own = match (&result.verdict, view, &o.exact) {
            (Verdict::ReferenceWrong, Some(view), Some([exact, _])) if view.only_on_its_own.is_some() => {
                [&exact.value, &o.reference]
            }
            _ => [&o.replayed, &o.subject],
        };
        let [c, g] = own.map(|side| visible.rows(side));
        let sides = [&*c, &*g];
        spread.extend(Spread::by_position(SpreadOf::Own, sides, axis, position));
        let (info, cols) = (stage.info(), g.cols().max(1));
        let by_head = info.shape.iter().any(|dim| dim.is_of_heads());
        let (head_dim, each) = (self.config.head_dim_of(stage).max(1), g.len() / g.shape[0].max(1));
        if info.axis(Dim::Heads).is_some() {
            spread.extend(Spread::new(SpreadOf::Own, SpreadAxis::Head, sides, |i| i / each.max(1)));
        } else if by_head {
            spread.extend(Spread::new(SpreadOf::Own, SpreadAxis::Head, sides, |i| i % cols / head_dim));
        } else if info.axis(Dim::E).is_some() {
            spread.extend(Spread::new(SpreadOf::Own, SpreadAxis::Expert, sides, |i| i % cols));
        } else if info.axis(Dim::K).is_some()
            && let Some(pair) = self.layer.get(&Stage::RouterIds)
        {
            let ids = visible.rows(&pair.subject);
            let width = g.len().checked_div(ids.len()).unwrap_or(0).max(1);
            if ids.len() * width == g.len() {
                spread.extend(Spread::new(SpreadOf::Own, SpreadAxis::Expert, sides, |i| ids.ids()[i / width] as usize));
            }
        }
        spread
    }
}
