//! The documents for programs: `twinscope.diff/1` and `twinscope.compare/1`, as `schemas/diff.schema.json` describes them.
//!
//! Design:
//! - A document is brief, what a reader looks at first, unless everything is asked for; `full` says which it is.
//! - One shape for both verbs; every key is always there, `null` where there is nothing.
//! - JSON has no NaN: serde_json writes what is not finite as `null`, and each measured error counts the non-finite values
//!   of both sides.

mod brief;

use std::borrow::Cow;

use serde::Serialize;

use crate::diff::locate::Pattern;
use crate::diff::measure::attribution::{TypeError, by_type};
use crate::diff::measure::logits::LogitsComparison;
use crate::diff::measure::metrics::{ElementError, Mismatch, NonFinite, Side};
use crate::diff::measure::router::{Flip, OrderChange, RouterComparison, WeightError};
use crate::diff::measure::spread::Spread;
use crate::diff::outcome::{
    Cause, Comparison, ComparisonKind, HiddenChoice, JudgedRatios, LayerRouting, Measured, ModelSummary, Overflow,
    Production, SegmentSummary, SideSummary, StageResult, Verdict,
};
use crate::op::Site;

/// A `diff` or `compare` document.
#[derive(Serialize)]
pub struct Document<'a> {
    schema: &'static str,
    /// Whether every stage, position and router is listed, or what a reader looks at first.
    full: bool,
    verdict: &'static str,
    model: &'a ModelSummary,
    tokens: usize,
    tokens_sha256: &'a str,
    prompt: Option<&'a str>,
    decode: usize,
    reference: SideDocument<'a>,
    subject: SideDocument<'a>,
    judge: Option<&'a str>,
    notes: &'a [String],
    counts: Counts,
    /// What `--require` asks for and was not compared.
    lacking: &'a [String],
    first_fault: Option<Place<'a>>,
    first_visible: Option<Place<'a>>,
    next: Option<&'a str>,
    stages: Vec<StageDocument<'a>>,
    by_type: Vec<TypeError>,
    router: Option<Router<'a>>,
    logits: Option<Cow<'a, LogitsComparison>>,
    production: Option<&'a Production>,
}

#[derive(Serialize)]
struct SideDocument<'a> {
    backend: &'a str,
    adapter: &'a str,
    driver: &'a str,
    software: bool,
    contract: &'a str,
    trace: Option<&'a str>,
}

#[derive(Serialize)]
struct Counts {
    stages: usize,
    compared: usize,
    not_compared: usize,
    /// Stages that the subject does not show, which are judged in segments.
    hidden: usize,
    faults: usize,
    inherits: usize,
    /// Stages of the whole run, looked at or not; null where nothing says which there are.
    of: Option<usize>,
}

/// The first fault, or the first visible difference.
#[derive(Serialize)]
struct Place<'a> {
    step: usize,
    layer: Option<u32>,
    stage: &'static str,
    position: Option<usize>,
    expert: Option<u32>,
    /// The side that is wrong, or `both`; null where nothing judged it.
    side: Option<&'static str>,
    ratio: Option<f64>,
    segment: Option<SegmentDocument<'a>>,
    pattern: Option<&'a Pattern>,
    cause: Option<&'a Cause>,
}

/// What lies between a stage and the values that a side shows before it.
#[derive(Serialize)]
struct SegmentDocument<'a> {
    hidden: Vec<String>,
    choices: &'a [HiddenChoice],
    capture: Vec<String>,
    untried: usize,
}

#[derive(Serialize)]
struct StageDocument<'a> {
    step: usize,
    layer: Option<u32>,
    stage: &'static str,
    segment: Option<SegmentDocument<'a>>,
    qtype: Option<&'static str>,
    weight: Option<WeightDocument<'a>>,
    shape: &'a [usize],
    elements: usize,
    total: MeasuredDocument<'a>,
    visible: bool,
    injected: Option<MeasuredDocument<'a>>,
    floor: Option<f64>,
    ratio: Option<f64>,
    judged: Option<JudgedRatios>,
    verdict: &'static str,
    /// Why it was not compared.
    reason: Option<&'a str>,
    position: Option<usize>,
    expert: Option<u32>,
    pattern: Option<&'a Pattern>,
    cause: Option<&'a Cause>,
    overflow: Option<&'a Overflow>,
    spread: &'a [Spread],
    amplification: Option<f64>,
    share_of_logits_error: Option<f64>,
    smallest_tolerance: &'a [String],
}

#[derive(Serialize)]
struct WeightDocument<'a> {
    name: &'a str,
    dims: &'a [usize],
    offset: u64,
}

/// An error, flat: the metrics are null where the values had no distance.
#[derive(Default, Serialize)]
struct MeasuredDocument<'a> {
    elements: usize,
    masked: usize,
    nmse: Option<f64>,
    rel_l2: Option<f64>,
    cosine: Option<f64>,
    max_abs: Option<f64>,
    max_abs_at: Option<&'a [usize]>,
    max_ulp: Option<u64>,
    norm_ratio: Option<f64>,
    worst: &'a [ElementError],
    sets: Option<Sets>,
    non_finite: NonFiniteCounts,
    mismatch: Option<MismatchDocument>,
}

#[derive(Serialize)]
struct Sets {
    overlap: f64,
    exact_set_rate: f64,
    flips: usize,
    unexplained: usize,
}

#[derive(Default, Serialize)]
struct NonFiniteCounts {
    reference: usize,
    subject: usize,
}

#[derive(Serialize)]
struct MismatchDocument {
    kind: &'static str,
    message: String,
}

/// All routers together, then one by one.
#[derive(Serialize)]
struct Router<'a> {
    tokens: usize,
    flips: usize,
    explained: usize,
    unexplained: usize,
    order_changes: usize,
    /// Means over tokens; null where no routing could be compared.
    overlap: Option<f64>,
    exact_set_rate: Option<f64>,
    order_match_rate: Option<f64>,
    /// The largest error of a common expert's weight.
    weight_max_abs: Option<f64>,
    layers: Vec<LayerDocument<'a>>,
}

#[derive(Serialize)]
struct LayerDocument<'a> {
    step: usize,
    layer: u32,
    mismatch: Option<MismatchDocument>,
    tokens: usize,
    k: usize,
    overlap: Option<f64>,
    exact_set_rate: Option<f64>,
    order_match_rate: Option<f64>,
    weight_error: Option<&'a WeightError>,
    reference_load: &'a [usize],
    subject_load: &'a [usize],
    flips: Vec<FlipDocument<'a>>,
    order_changes: &'a [OrderChange],
}

#[derive(Serialize)]
struct FlipDocument<'a> {
    explained: bool,
    #[serde(flatten)]
    flip: &'a Flip,
}

impl<'a> From<&'a Comparison> for Document<'a> {
    fn from(c: &'a Comparison) -> Self {
        let (compared, not_compared) = c.counts();
        let count = |test: fn(&Verdict) -> bool| c.stages.iter().filter(|s| test(&s.verdict)).count();
        Self {
            schema: match c.kind {
                ComparisonKind::Diff => "twinscope.diff/1",
                ComparisonKind::Compare => "twinscope.compare/1",
            },
            full: true,
            verdict: if c.agrees() { "agree" } else { "diverged" },
            model: &c.model,
            tokens: c.tokens,
            tokens_sha256: &c.tokens_sha256,
            prompt: c.prompt.as_deref(),
            decode: c.decode,
            reference: (&c.reference).into(),
            subject: (&c.subject).into(),
            judge: c.judge.as_deref(),
            notes: &c.notes,
            counts: Counts {
                stages: c.stages.len(),
                compared,
                not_compared,
                hidden: c.hidden(),
                faults: count(Verdict::is_fault),
                inherits: count(|v| *v == Verdict::Inherits),
                of: c.run_stages,
            },
            lacking: &c.lacking,
            first_fault: c.fault().map(Place::from),
            first_visible: c.visible().map(Place::from),
            next: c.next.as_deref(),
            stages: c.stages.iter().map(StageDocument::from).collect(),
            by_type: by_type(&c.stages),
            router: (!c.routing.is_empty()).then(|| Router::from(&c.routing[..])),
            logits: c.logits.as_ref().map(Cow::Borrowed),
            production: c.production.as_ref(),
        }
    }
}

impl<'a> From<&'a SideSummary> for SideDocument<'a> {
    fn from(s: &'a SideSummary) -> Self {
        let i = &s.info;
        Self {
            backend: &i.backend,
            adapter: &i.adapter,
            driver: &i.driver,
            software: i.software,
            contract: &i.contract,
            trace: s.trace.as_deref(),
        }
    }
}

impl<'a> From<&'a StageResult> for Place<'a> {
    fn from(s: &'a StageResult) -> Self {
        let side = match (&s.verdict, s.verdict.side()) {
            (Verdict::BothWrong, _) => Some("both"),
            (_, Some(Side::Reference)) => Some("reference"),
            (_, Some(Side::Subject)) => Some("subject"),
            _ => None,
        };
        Self {
            step: s.step,
            layer: s.site.layer,
            stage: s.site.stage.name(),
            position: s.position,
            expert: s.expert,
            side,
            ratio: s.ratio,
            segment: s.segment.as_ref().map(SegmentDocument::from),
            pattern: s.pattern.as_ref(),
            cause: s.cause.as_ref(),
        }
    }
}

impl<'a> From<&'a SegmentSummary> for SegmentDocument<'a> {
    fn from(s: &'a SegmentSummary) -> Self {
        let keys = |sites: &[Site]| sites.iter().map(Site::key).collect();
        Self { hidden: keys(&s.hidden), choices: &s.choices, capture: keys(&s.capture), untried: s.untried }
    }
}

impl<'a> From<&'a StageResult> for StageDocument<'a> {
    fn from(s: &'a StageResult) -> Self {
        Self {
            step: s.step,
            layer: s.site.layer,
            stage: s.site.stage.name(),
            segment: s.segment.as_ref().map(SegmentDocument::from),
            qtype: s.qtype().map(|t| t.name()),
            weight: s.weight.as_ref().map(|w| WeightDocument { name: &w.name, dims: &w.dims, offset: w.file_offset }),
            shape: &s.shape,
            elements: s.total.elements(),
            total: (&s.total).into(),
            visible: s.visible,
            injected: s.injected.as_ref().map(MeasuredDocument::from),
            floor: s.floor,
            ratio: s.ratio,
            judged: s.judged,
            verdict: s.verdict.name(),
            reason: match &s.verdict {
                Verdict::NotCompared(why) => Some(why),
                _ => None,
            },
            position: s.position,
            expert: s.expert,
            pattern: s.pattern.as_ref(),
            cause: s.cause.as_ref(),
            overflow: s.overflow.as_ref(),
            spread: &s.spread,
            amplification: s.amplification,
            share_of_logits_error: s.share_of_logits_error,
            smallest_tolerance: &s.smallest_tolerance,
        }
    }
}

impl<'a> From<&'a Measured> for MeasuredDocument<'a> {
    fn from(m: &'a Measured) -> Self {
        match m {
            Measured::Metrics(m) => Self {
                elements: m.elements,
                masked: m.masked,
                nmse: Some(m.nmse),
                rel_l2: Some(m.rel_l2),
                cosine: Some(m.cosine),
                max_abs: Some(m.max_abs),
                max_abs_at: m.worst.first().map(|e| &e.index[..]),
                max_ulp: Some(m.max_ulp),
                norm_ratio: Some(m.norm_ratio),
                worst: &m.worst,
                ..Self::default()
            },
            &Measured::Sets { ids, overlap, exact_set_rate, flips, unexplained } => Self {
                elements: ids,
                sets: Some(Sets { overlap, exact_set_rate, flips, unexplained }),
                ..Self::default()
            },
            Measured::Hidden => Self::default(),
            Measured::Failed(m) => Self { non_finite: m.into(), mismatch: Some(m.into()), ..Self::default() },
        }
    }
}

impl From<&Mismatch> for NonFiniteCounts {
    fn from(m: &Mismatch) -> Self {
        let count = |n: &NonFinite| n.nan + n.inf;
        match m {
            Mismatch::NonFinite { reference, subject } => Self { reference: count(reference), subject: count(subject) },
            _ => Self::default(),
        }
    }
}

impl From<&Mismatch> for MismatchDocument {
    fn from(m: &Mismatch) -> Self {
        let kind = match m {
            Mismatch::Shape { .. } => "shape",
            Mismatch::Dtype { .. } => "dtype",
            Mismatch::Ids => "ids",
            Mismatch::Nothing { .. } => "empty",
            Mismatch::NonFinite { .. } => "non_finite",
            Mismatch::ZeroNorm { .. } => "zero_norm",
            Mismatch::NoSuchExpert { .. } | Mismatch::RepeatedExpert { .. } => "bad_ids",
            Mismatch::NoSuchToken { .. } => "bad_token",
            Mismatch::Mask { .. } => "mask",
        };
        Self { kind, message: m.to_string() }
    }
}

impl<'a> From<&'a [LayerRouting]> for Router<'a> {
    fn from(layers: &'a [LayerRouting]) -> Self {
        let good: Vec<&RouterComparison> = layers.iter().filter_map(|r| r.routing.as_ref().ok()).collect();
        let tokens: usize = good.iter().map(|r| r.tokens).sum();
        let mean = |f: fn(&RouterComparison) -> f64| {
            (tokens > 0).then(|| good.iter().map(|r| f(r) * r.tokens as f64).sum::<f64>() / tokens as f64)
        };
        let flips: usize = good.iter().map(|r| r.flips.len()).sum();
        let unexplained: usize = good.iter().map(|r| r.unexplained()).sum();
        Self {
            tokens,
            flips,
            explained: flips - unexplained,
            unexplained,
            order_changes: good.iter().map(|r| r.order_changes.len()).sum(),
            overlap: mean(|r| r.overlap),
            exact_set_rate: mean(|r| r.exact_set_rate),
            order_match_rate: mean(|r| r.order_match_rate),
            weight_max_abs: good
                .iter()
                .filter_map(|r| r.weight_error.as_ref().map(|w| w.max_abs))
                .max_by(f64::total_cmp),
            layers: layers.iter().map(LayerDocument::from).collect(),
        }
    }
}

impl<'a> From<&'a LayerRouting> for LayerDocument<'a> {
    fn from(r: &'a LayerRouting) -> Self {
        let good = r.routing.as_ref().ok();
        Self {
            step: r.step,
            layer: r.layer,
            mismatch: r.routing.as_ref().err().map(MismatchDocument::from),
            tokens: good.map_or(0, |g| g.tokens),
            k: good.map_or(0, |g| g.k),
            overlap: good.map(|g| g.overlap),
            exact_set_rate: good.map(|g| g.exact_set_rate),
            order_match_rate: good.map(|g| g.order_match_rate),
            weight_error: good.and_then(|g| g.weight_error.as_ref()),
            reference_load: good.map_or(&[], |g| &g.reference_load),
            subject_load: good.map_or(&[], |g| &g.subject_load),
            flips: good.map_or(Vec::new(), |g| {
                g.flips.iter().map(|flip| FlipDocument { explained: flip.explained(), flip }).collect()
            }),
            order_changes: good.map_or(&[], |g| &g.order_changes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::outcome::LayerRouting;
    use crate::report::sample::{agreeing, diverging};
    use serde_json::Value;

    /// The document of a comparison, checked against the schema.
    fn document(c: &Comparison) -> Value {
        let schema = serde_json::from_str(include_str!("../../../schemas/diff.schema.json")).unwrap();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let document = crate::environment::Environment::with(&Document::from(c)).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:#?}");
        document
    }

    #[test]
    fn what_other_programs_rely_on() {
        let d = document(&diverging());
        assert_eq!((&d["schema"], &d["verdict"]), (&"twinscope.diff/1".into(), &"diverged".into()));
        let f = &d["first_fault"];
        assert_eq!((&f["layer"], &f["stage"], &f["side"]), (&2.into(), &"expert_down".into(), &"subject".into()));
        assert_eq!((&f["position"], &f["expert"]), (&2.into(), &3.into()));
        assert_eq!(f["pattern"]["kind"], "expert");
        assert_eq!(f["pattern"]["region"]["columns"]["from"], 224);
        assert_eq!(f["cause"]["reproduced"], true);
        assert_eq!(d["first_visible"]["stage"], "expert_down");
        assert_eq!((&d["router"]["flips"], &d["router"]["unexplained"]), (&3.into(), &2.into()));
        assert_eq!(d["logits"]["same_top"], 1);
        assert_eq!(d["subject"]["software"], true);
        let stage = d["stages"].as_array().unwrap().iter().find(|s| s["verdict"] == "subject_wrong").unwrap();
        assert_eq!((&stage["qtype"], &stage["elements"]), (&"Q6_K".into(), &16.into()));
        assert!(stage["total"]["nmse"].as_f64().unwrap() > 0.0 && stage["ratio"].as_f64().unwrap() > 1e4);
    }

    #[test]
    fn agreement_has_no_fault() {
        let d = document(&agreeing());
        assert_eq!((&d["verdict"], &d["first_fault"], &d["router"]), (&"agree".into(), &Value::Null, &Value::Null));
        assert_eq!(d["counts"]["compared"], 99);
    }

    #[test]
    fn nan_is_null_and_a_count() {
        let c = diverging();
        let whole = crate::environment::Environment::with(&Document::from(&c)).unwrap();
        let text = serde_json::to_string(&whole).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document(&c), "a document that any parser reads");
        let d = document(&c);
        let stage = d["stages"].as_array().unwrap().iter().find(|s| !s["total"]["mismatch"].is_null()).unwrap();
        assert_eq!(
            (&stage["stage"], &stage["total"]["nmse"], &stage["ratio"]),
            (&"attn_probs".into(), &Value::Null, &Value::Null)
        );
        assert_eq!((&stage["total"]["non_finite"]["subject"], &stage["elements"]), (&1.into(), &0.into()));
        assert_eq!(stage["total"]["mismatch"]["kind"], "non_finite");
    }

    #[test]
    fn two_traces_and_a_routing_that_failed() {
        let mut c = diverging();
        c.kind = ComparisonKind::Compare;
        c.subject.trace = Some("runs/b".into());
        c.stages.iter_mut().for_each(|s| (s.injected, s.judged) = (None, None));
        let failed = Err(Mismatch::Nothing { shape: vec![0, 2], masked: 0 });
        c.routing.push(LayerRouting { step: 1, layer: 0, routing: failed });
        c.logits = None;
        c.conclude();
        let d = document(&c);
        assert_eq!((&d["schema"], &d["first_fault"]), (&"twinscope.compare/1".into(), &Value::Null));
        assert_eq!(d["router"]["layers"][1]["mismatch"]["kind"], "empty");
        assert_eq!(d["subject"]["trace"], "runs/b");
    }
}
