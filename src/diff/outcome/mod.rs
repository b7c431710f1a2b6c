//! What a comparison found: the one model that `diff` and `compare` fill and every report renders.
//!
//! Design:
//! - **Stages are in order of execution**, step by step; the first fault and the first visible difference are places in
//!   that list, so no report can contradict it.
//! - A stage that could not be compared carries the reason; only [`Verdict::Ok`] and [`Verdict::Inherits`] let a run agree,
//!   and a run that compared nothing does not agree.
//! - Numbers here are as computed; rounding, colour and `null` for what is not finite belong to the reports.

use std::collections::BTreeSet;

use crate::backend::BackendInfo;
use crate::diff::locate::Pattern;
use crate::diff::measure::logits::LogitsComparison;
use crate::diff::measure::metrics::{Metrics, Mismatch, Side};
use crate::diff::measure::router::RouterComparison;
use crate::diff::measure::spread::Spread;
use crate::op::{Dim, GgmlType, Site, Weight};

/// A whole comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Which verb filled it.
    pub kind: ComparisonKind,
    /// The model that was run.
    pub model: ModelSummary,
    /// Tokens of the prompt, and their text where it is known.
    pub tokens: usize,
    /// [`tokens_sha256`](crate::model::tokens_sha256) of the prompt's.
    pub tokens_sha256: String,
    /// The prompt as text, where it was text.
    pub prompt: Option<String>,
    /// Decode steps after the prompt.
    pub decode: usize,
    /// The side that is compared with.
    pub reference: SideSummary,
    /// The side that is asked about.
    pub subject: SideSummary,
    /// What judged which side is wrong: the oracle's name, if there was one.
    pub judge: Option<String>,
    /// In order of execution, step by step.
    pub stages: Vec<StageResult>,
    /// The first stage that injects more error than it may, as a place in `stages`.
    pub first_fault: Option<usize>,
    /// The first stage whose total error is over its limit, as a place in `stages`.
    pub first_visible: Option<usize>,
    /// Each call's and layer's choice of experts.
    pub routing: Vec<LayerRouting>,
    /// The logits of every position.
    pub logits: Option<LogitsComparison>,
    /// What the subject computes while nobody looks, where that is by other kernels.
    pub production: Option<Production>,
    /// Stages of the whole run, looked at or not, where that is known.
    pub run_stages: Option<usize>,
    /// What was required to be compared and was not, one name each.
    pub lacking: Vec<String>,
    /// What else must be said: differing contracts, a software adapter, what a trace lacks. One line each.
    pub notes: Vec<String>,
    /// The command that goes on from the first fault.
    pub next: Option<String>,
}

/// Which verb filled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComparisonKind {
    /// Two backends in lockstep.
    Diff,
    /// Two saved traces.
    Compare,
}

/// The model, as far as reports name it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ModelSummary {
    /// The file's name.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// How many layers were run.
    pub layers: usize,
    /// 0 for a dense model.
    pub experts: usize,
    /// Experts chosen for a token; 0 in a dense model.
    pub experts_used: usize,
    /// Tells two files apart, as `inspect` gives it; `None` where a trace does not say which file it is of.
    pub fingerprint: Option<String>,
}

/// One side of a comparison.
#[derive(Clone, Debug)]
pub struct SideSummary {
    /// What the side is.
    pub info: BackendInfo,
    /// The trace directory that the values came from, if they were not computed here.
    pub trace: Option<String>,
}

impl PartialEq for SideSummary {
    fn eq(&self, other: &Self) -> bool {
        let key = |s: &Self| {
            let i = &s.info;
            (i.backend.clone(), i.adapter.clone(), i.driver.clone(), i.software, i.contract.clone(), s.trace.clone())
        };
        key(self) == key(other)
    }
}

/// One stage at one step.
#[derive(Clone, Debug, PartialEq)]
pub struct StageResult {
    /// 0 for the prompt, n for the n-th decoded token.
    pub step: usize,
    /// The layer and stage.
    pub site: Site,
    /// The stages before it that a side does not show, which are judged with it.
    pub segment: Option<SegmentSummary>,
    /// The weight that it reads, if it reads one.
    pub weight: Option<WeightSummary>,
    /// Of the whole stage, over all calls.
    pub shape: Vec<usize>,
    /// Each side on its own inputs.
    pub total: Measured,
    /// Whether the total error is over its limit.
    pub visible: bool,
    /// The subject against the reference on the subject's own inputs; `None` where nothing could replay the stage.
    pub injected: Option<Measured>,
    /// The rounding error that the contract allows, in the measure of `ratio`; `None` where no floor was derived.
    pub floor: Option<f64>,
    /// Injected error over the floor.
    pub ratio: Option<f64>,
    /// Each side's own error against the oracle, over its floor.
    pub judged: Option<JudgedRatios>,
    /// Which side is wrong.
    pub verdict: Verdict,
    /// Absolute position and expert of the worst element, where the stage has them.
    pub position: Option<usize>,
    /// The expert that alone is wrong, if one is.
    pub expert: Option<u32>,
    /// Where the error is.
    pub pattern: Option<Pattern>,
    /// Which mistake makes it.
    pub cause: Option<Cause>,
    /// What a side lost to a number beyond the range of its arithmetic, which its contract allows: no fault, and no agreement.
    pub overflow: Option<Overflow>,
    /// Where along its axes the error is: that of a layer's output by position, and that of a stage that is wrong by everything that it has.
    pub spread: Vec<Spread>,
    /// ‖propagated error out‖ / ‖total error in‖, both relative to the reference's norms.
    pub amplification: Option<f64>,
    /// Share of the final logits' error that this stage's injection accounts for.
    pub share_of_logits_error: Option<f64>,
    /// The tightest `--tol` arguments that would have passed.
    pub smallest_tolerance: Vec<String>,
}

/// Values that have no bound, since the arithmetic that a side's contract states may overflow on the inputs, and that did.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Overflow {
    /// The side.
    pub side: Side,
    /// How many at least: not finite, or off by half of the right value or more.
    pub elements: usize,
    /// The first of them.
    pub index: Vec<usize>,
    /// What the side made of it; null where it is not finite.
    pub found: f64,
    /// What it should be.
    pub exact: f64,
}

/// What lies between a stage and the values that a side shows before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SegmentSummary {
    /// The stages that are not shown, in order of execution.
    pub hidden: Vec<Site>,
    /// Choices of experts within rounding that had to be made otherwise for the side to be right.
    pub choices: Vec<HiddenChoice>,
    /// The hidden stages that would tell most if they were shown, where the segment is wrong.
    pub capture: Vec<Site>,
    /// Variants of known mistakes that were not tried, as the segment is too long to try all.
    pub untried: usize,
}

/// A router's choice that a side does not show, and that rounding does not decide.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct HiddenChoice {
    /// The layer.
    pub layer: u32,
    /// The position.
    pub position: usize,
    /// What the oracle would choose.
    pub oracle: Vec<u32>,
    /// What the side seems to have chosen.
    pub chosen: Vec<u32>,
}

/// The weight that a stage reads.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSummary {
    /// The GGUF tensor's name.
    pub name: String,
    /// Its type.
    pub ty: GgmlType,
    /// In GGUF's order.
    pub dims: Vec<usize>,
    /// Of its first byte in the file.
    pub file_offset: u64,
}

impl From<&Weight> for WeightSummary {
    fn from(w: &Weight) -> Self {
        Self { name: w.name.clone(), ty: w.ty, dims: w.dims(), file_offset: w.file_offset }
    }
}

/// What comparing two tensors gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Measured {
    /// Numbers.
    Metrics(Metrics),
    /// Expert ids, compared as sets; the details are in [`Comparison::routing`].
    Sets {
        /// Expert ids.
        ids: usize,
        /// The mean share of common experts.
        overlap: f64,
        /// The share of positions with the same set.
        exact_set_rate: f64,
        /// Positions with another set.
        flips: usize,
        /// Flips that rounding does not explain.
        unexplained: usize,
    },
    /// They could not be compared, which is a failure.
    Failed(Mismatch),
    /// A side does not show them.
    Hidden,
}

impl From<Result<Metrics, Mismatch>> for Measured {
    fn from(result: Result<Metrics, Mismatch>) -> Self {
        result.map_or_else(Measured::Failed, Measured::Metrics)
    }
}

impl From<&RouterComparison> for Measured {
    fn from(r: &RouterComparison) -> Self {
        Measured::Sets {
            ids: r.tokens * r.k,
            overlap: r.overlap,
            exact_set_rate: r.exact_set_rate,
            flips: r.flips.len(),
            unexplained: r.unexplained(),
        }
    }
}

impl Measured {
    /// The metrics, where numbers were compared.
    pub fn metrics(&self) -> Option<&Metrics> {
        match self {
            Measured::Metrics(m) => Some(m),
            _ => None,
        }
    }
    /// Why there are none, where nothing could be compared.
    pub fn mismatch(&self) -> Option<&Mismatch> {
        match self {
            Measured::Failed(m) => Some(m),
            _ => None,
        }
    }
    /// Elements compared.
    pub fn elements(&self) -> usize {
        match self {
            Measured::Metrics(m) => m.elements,
            Measured::Sets { ids, .. } => *ids,
            Measured::Failed(_) | Measured::Hidden => 0,
        }
    }
}

/// Each side's own error over its own floor, on the subject's inputs, against the oracle.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct JudgedRatios {
    /// The reference's largest |error| / floor.
    pub reference: f64,
    /// The subject's largest |error| / floor.
    pub subject: f64,
}

/// What a stage's numbers mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both sides are within their floors.
    Ok,
    /// The subject is beyond its floor.
    SubjectWrong,
    /// The reference is beyond its floor.
    ReferenceWrong,
    /// Both are.
    BothWrong,
    /// Over its limit, and nothing judged which side is wrong.
    Differs,
    /// Its total error is over its limit, its own is not.
    Inherits,
    /// Not compared, and why. Never agreement.
    NotCompared(String),
    /// The subject does not show it: it is judged with the segment that it lies in.
    Hidden,
}

impl Verdict {
    /// The name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::SubjectWrong => "subject_wrong",
            Verdict::ReferenceWrong => "reference_wrong",
            Verdict::BothWrong => "both_wrong",
            Verdict::Differs => "differs",
            Verdict::Inherits => "inherits",
            Verdict::NotCompared(_) => "not_compared",
            Verdict::Hidden => "hidden",
        }
    }
    /// By the ratios of each side's error to its floor; more than 1 is wrong, and so is NaN.
    pub fn from_ratios(ratios: JudgedRatios, visible: bool) -> Self {
        let wrong = |r: f64| r.is_nan() || r > 1.0;
        match (wrong(ratios.reference), wrong(ratios.subject)) {
            (false, false) if visible => Verdict::Inherits,
            (false, false) => Verdict::Ok,
            (false, true) => Verdict::SubjectWrong,
            (true, false) => Verdict::ReferenceWrong,
            (true, true) => Verdict::BothWrong,
        }
    }
    /// Whether a stage with this verdict adds an error of its own, or cannot be said not to.
    pub fn is_fault(&self) -> bool {
        matches!(self, Verdict::SubjectWrong | Verdict::ReferenceWrong | Verdict::BothWrong | Verdict::Differs)
    }
    /// The side that is wrong, where it is one of the two.
    pub fn side(&self) -> Option<Side> {
        match self {
            Verdict::SubjectWrong => Some(Side::Subject),
            Verdict::ReferenceWrong => Some(Side::Reference),
            _ => None,
        }
    }
    /// Whether two sides' values were held against each other.
    pub fn was_compared(&self) -> bool {
        !matches!(self, Verdict::NotCompared(_) | Verdict::Hidden)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Verdict::Ok => "ok",
            Verdict::SubjectWrong => "subject wrong",
            Verdict::ReferenceWrong => "reference wrong",
            Verdict::BothWrong => "both wrong",
            Verdict::Differs => "differs",
            Verdict::Inherits => "inherits",
            Verdict::NotCompared(_) => "not compared",
            Verdict::Hidden => "hidden",
        })
    }
}

/// The hypothesis that comes nearest to the wrong side's output.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Cause {
    /// Whether it reproduces the output within the floor; if not, it is only the nearest of those tried.
    pub reproduced: bool,
    /// The hypothesis, as [`super::catalogue`] lists it: `rope-pairing`.
    pub id: &'static str,
    /// Other hypotheses that reproduce the output as well: on these inputs they cannot be told apart.
    pub also: Vec<&'static str>,
    /// What the wrong side computes, in words: "rope with NORM pairing".
    pub name: String,
    /// The error that remains under it, over the floor.
    pub residual_ratio: f64,
    /// The share of the error's energy that it removes, where it does not reproduce the output.
    pub removes: Option<f64>,
    /// The hypothesis that came next, for comparison.
    pub next_best: Option<NextBest>,
    /// The hidden stages at which the mistake is made, of a segment; empty where it is made in the stage itself.
    pub stages: Vec<&'static str>,
    /// Other mistakes, or the same at other stages, that give the segment's end as well.
    pub others: Vec<OtherCause>,
}

/// A mistake that cannot be told from the one that is named, by what is shown.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct OtherCause {
    /// The hypothesis.
    pub id: &'static str,
    /// In words.
    pub name: String,
    /// The stages at which it is made.
    pub stages: Vec<&'static str>,
}

/// The hypothesis that came next.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct NextBest {
    /// In words.
    pub name: String,
    /// The largest |error| / floor that it leaves.
    pub residual_ratio: f64,
}

/// The routing of one layer at one step.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerRouting {
    /// The call, counted from 0.
    pub step: usize,
    /// The layer.
    pub layer: u32,
    /// The comparison, or why there is none.
    pub routing: Result<RouterComparison, Mismatch>,
}

/// The subject's run while nobody looks, held against the one of which every stage was looked at.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Production {
    /// The kernels that do the work of several stages.
    pub kernels: Vec<&'static str>,
    /// Positions whose logits were held against each other.
    pub positions: usize,
    /// Those of them that differ in some bit.
    pub differing: usize,
    /// What came of it.
    pub verdict: ProductionVerdict,
}

/// What became of the kernels of several stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProductionVerdict {
    /// The same logits, bit for bit.
    Same,
    /// Other bits, and no error beyond rounding.
    WithinRounding,
    /// The kernels of the single stages are right, those of several are not: the comparison is that of production.
    OnlyFusedWrong,
    /// The kernels of the single stages are wrong, and production is not.
    OnlySinglesWrong,
    /// Both are wrong, and differ.
    BothWrong,
    /// Other bits, and no oracle to judge them.
    NotJudged,
}

impl Comparison {
    /// Finds the first fault and the first visible difference; without a fault, the first stage that was judged and whose values are
    /// not finite, if there is one. To be called when `stages` is complete.
    ///
    /// Only a stage with an injected error can be a fault: without one, a difference may be inherited.
    pub fn conclude(&mut self) {
        self.first_fault = self.stages.iter().position(|s| s.verdict.is_fault() && s.is_judged());
        // What is within rounding is no difference to begin with where values are lost and nobody is at fault. Without a judge, nothing
        // says that what differs before is within rounding.
        let lost = self.stages.iter().position(StageResult::is_blamelessly_lost).filter(|_| self.first_fault.is_none());
        self.first_visible = lost.or_else(|| self.stages.iter().position(|s| s.visible));
    }

    /// Holds the comparison to what has to be compared: `required` says of which sites. A stage that a side hides is judged with the next
    /// one that it shows, and so is compared, if there is such a one; one that was not looked at, or that a trace lacks, is not.
    pub fn require(&mut self, required: impl IntoIterator<Item = Site>) {
        let within = self.within_segments();
        let is_seen = |s: &&StageResult| match s.verdict {
            Verdict::NotCompared(_) => false,
            Verdict::Hidden => within.contains(&(s.step, s.site)),
            _ => true,
        };
        let (seen, missed): (Vec<&StageResult>, Vec<&StageResult>) = self.stages.iter().partition(is_seen);
        let sites = |of: Vec<&StageResult>| of.iter().map(|s| s.site).collect::<BTreeSet<Site>>();
        let (seen, missed) = (sites(seen), sites(missed));
        let lacks = |site: &Site| !seen.contains(site) || missed.contains(site);
        self.lacking = required.into_iter().filter(lacks).map(|site| site.key()).collect();
    }

    /// Whether the two sides agree: something was compared, all that had to be, no stage adds an error of its own, no flip is unexplained,
    /// every routing could be compared. Values that are not finite on both sides, and in the oracle too, come from the model
    /// or from the inputs; they are no stage's fault, and no agreement.
    pub fn agrees(&self) -> bool {
        self.stages.iter().any(|s| s.verdict.was_compared())
            && self.lacking.is_empty()
            && !self.stages.iter().any(|s| s.verdict.is_fault() || s.is_lost())
            && self.routing.iter().all(|r| r.routing.as_ref().is_ok_and(|r| r.unexplained() == 0))
    }

    /// The first stage that injects an error.
    pub fn fault(&self) -> Option<&StageResult> {
        self.first_fault.and_then(|i| self.stages.get(i))
    }
    /// The first stage with a visible difference; where values are not finite and nobody is at fault, the first of these.
    pub fn visible(&self) -> Option<&StageResult> {
        self.first_visible.and_then(|i| self.stages.get(i))
    }
    /// What a segment judges of the stages that a side hides: each with its step.
    fn within_segments(&self) -> BTreeSet<(usize, Site)> {
        let ends = self.stages.iter().filter(|s| s.verdict.was_compared());
        let segments = ends.filter_map(|s| Some((s.step, s.segment.as_ref()?)));
        segments.flat_map(|(step, segment)| segment.hidden.iter().map(move |site| (step, *site))).collect()
    }
    /// Stages compared, and not; those that a side hides and a segment judges count as neither.
    pub fn counts(&self) -> (usize, usize) {
        let compared = self.stages.iter().filter(|s| s.verdict.was_compared()).count();
        (compared, self.stages.len() - compared - self.hidden())
    }
    /// Stages that a side does not show, and that are judged with one that it shows: none of those after the last.
    pub fn hidden(&self) -> usize {
        let within = self.within_segments();
        self.stages.iter().filter(|s| s.verdict == Verdict::Hidden && within.contains(&(s.step, s.site))).count()
    }
}

impl StageResult {
    /// A stage with its total error and nothing else known yet: visible if a comparison failed.
    pub fn new(step: usize, site: Site, shape: &[usize], total: Measured) -> Self {
        let failed = total.mismatch().is_some();
        Self {
            step,
            site,
            segment: None,
            weight: None,
            shape: shape.to_vec(),
            total,
            visible: failed,
            injected: None,
            floor: None,
            ratio: None,
            judged: None,
            verdict: if failed { Verdict::Differs } else { Verdict::Ok },
            position: None,
            expert: None,
            pattern: None,
            cause: None,
            overflow: None,
            spread: Vec::new(),
            amplification: None,
            share_of_logits_error: None,
            smallest_tolerance: Vec::new(),
        }
    }

    /// The type of the weight, if it reads one.
    pub fn qtype(&self) -> Option<GgmlType> {
        self.weight.as_ref().map(|w| w.ty)
    }

    /// Sets `position` and `expert` to those of the worst element of the stage's own error, or of the first that is not
    /// finite. `start` is the position of row 0; `ids` are the subject's expert ids `[T, K]`, for `[T, K, n]` stages.
    pub fn locate(&mut self, start: usize, ids: Option<&[u32]>) {
        let index = match self.own() {
            Measured::Metrics(m) => m.worst.first().map(|e| e.index.clone()),
            Measured::Failed(Mismatch::NonFinite { reference, subject }) => {
                subject.first.clone().or_else(|| reference.first.clone())
            }
            _ => None,
        };
        let Some(index) = index else { return };
        let of = |dim| self.site.stage.info().axis(dim).and_then(|axis| index.get(axis).copied());
        self.position = of(Dim::T).map(|t| start + t);
        self.expert = match (of(Dim::E), of(Dim::T), of(Dim::K), self.shape.get(1)) {
            (Some(expert), ..) => u32::try_from(expert).ok(),
            (None, Some(t), Some(k), Some(slots)) => ids.and_then(|ids| ids.get(t * slots + k)).copied(),
            _ => None,
        };
    }

    /// Whether a side has values that are not finite, or that it lost to an overflow.
    pub fn is_lost(&self) -> bool {
        self.overflow.is_some() || matches!(self.total.mismatch(), Some(Mismatch::NonFinite { .. }))
    }

    /// Whether the error that the stage itself makes is known, alone or with the stages before it that a side hides.
    pub fn is_judged(&self) -> bool {
        self.injected.is_some() || self.judged.is_some()
    }

    /// Whether a side has values that are not finite, and the judge says that they are no stage's fault.
    pub fn is_blamelessly_lost(&self) -> bool {
        self.is_lost() && self.is_judged() && !self.verdict.is_fault()
    }

    /// The error to judge the stage by: its own where it is known, else the total.
    pub fn own(&self) -> &Measured {
        self.injected.as_ref().unwrap_or(&self.total)
    }
}

#[cfg(test)]
pub(crate) mod tests;
