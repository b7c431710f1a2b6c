//! How far a stage may be off, when a person sets it: `--tol STAGE:METRIC<=VALUE`.
//!
//! Design:
//! - STAGE is whatever selects stages elsewhere: a name, an alias, a glob, `all`. Where several tolerances name a stage
//!   and metric, the last one counts. A stage with a tolerance of the user's own is judged by those alone.
//! - Without one, the limits are ggml's own for its backends (`test-backend-ops`): nmse 5e-4 for products with quantized
//!   weights, 1e-7 for everything else.
//! - What was found is returned beside each limit, and the tightest tolerance that would have passed is printed in the same
//!   syntax, so it can be pasted.

use crate::diff::measure::metrics::Metrics;
use crate::error::{Error, Result};
use crate::op::{GgmlType, OpKind, STAGES, Stage};
use crate::trace::select;

/// ggml's limit for a matrix product over quantized weights.
pub const QUANTIZED_NMSE: f64 = 5e-4;
/// ggml's limit for everything else.
pub const ELEMENTWISE_NMSE: f64 = 1e-7;

/// A number that a tolerance can bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Σ(s − r)² / Σr².
    Nmse,
    /// Its square root.
    RelL2,
    /// Bounded from below.
    Cosine,
    /// The largest |s − r|.
    MaxAbs,
    /// The largest distance in units in the last place.
    MaxUlp,
    /// Injected error over its rounding floor.
    Ratio,
}

impl Metric {
    /// Every metric.
    pub const ALL: &'static [Metric] =
        &[Metric::Nmse, Metric::RelL2, Metric::Cosine, Metric::MaxAbs, Metric::MaxUlp, Metric::Ratio];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Nmse => "nmse",
            Metric::RelL2 => "rel_l2",
            Metric::Cosine => "cosine",
            Metric::MaxAbs => "max_abs",
            Metric::MaxUlp => "max_ulp",
            Metric::Ratio => "ratio",
        }
    }

    /// How a limit on it is written: `>=` for the cosine, `<=` for what is an error.
    pub fn operator(self) -> &'static str {
        if self == Metric::Cosine { ">=" } else { "<=" }
    }

    /// Its value; `None` for a ratio that was not computed.
    pub fn of(self, metrics: &Metrics, ratio: Option<f64>) -> Option<f64> {
        match self {
            Metric::Nmse => Some(metrics.nmse),
            Metric::RelL2 => Some(metrics.rel_l2),
            Metric::Cosine => Some(metrics.cosine),
            Metric::MaxAbs => Some(metrics.max_abs),
            Metric::MaxUlp => Some(metrics.max_ulp as f64),
            Metric::Ratio => ratio,
        }
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A bound on one metric.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Limit {
    /// What is limited.
    pub metric: Metric,
    /// The largest value that passes.
    pub value: f64,
}

impl Limit {
    /// Whether `found` keeps the limit; NaN and a missing value do not.
    pub fn passes(&self, found: Option<f64>) -> bool {
        found.is_some_and(|f| if self.metric == Metric::Cosine { f >= self.value } else { f <= self.value })
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}{}", self.metric, self.metric.operator(), short(self.value))
    }
}

/// One `--tol`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    /// The stages that it decides for.
    pub stages: Vec<Stage>,
    /// The limit.
    pub limit: Limit,
}

impl std::str::FromStr for Tolerance {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: String| Error::usage(format!("--tol {text}: {why}"));
        let form = "expected STAGE:METRIC<=VALUE, such as expert_down:nmse<=1e-6";
        let (stage, rest) = text.split_once(':').ok_or_else(|| wrong(form.into()))?;
        let at = rest.find(['<', '>', '=']).ok_or_else(|| wrong(form.into()))?;
        let (name, rest) = (rest[..at].trim(), &rest[at..]);
        let metric = Metric::ALL.iter().copied().find(|m| m.name() == name).ok_or_else(|| {
            let names = Metric::ALL.iter().map(|m| m.name());
            wrong(format!("`{name}` is no metric; the nearest: {}", select::nearest(name, names)))
        })?;
        let value = rest
            .strip_prefix(metric.operator())
            .ok_or_else(|| wrong(format!("a limit on {metric} is written {metric}{}VALUE", metric.operator())))?;
        let value: f64 = value.trim().parse().map_err(|_| wrong(format!("`{}` is not a number", value.trim())))?;
        let range = if metric == Metric::Cosine { -1.0..=1.0 } else { 0.0..=f64::MAX };
        if !range.contains(&value) {
            return Err(wrong(format!("a limit on {metric} lies in {:?} to {:?}", range.start(), range.end())));
        }
        let stage = stage.trim();
        let stages = match stage {
            "all" => STAGES.iter().map(|s| s.stage).collect(),
            _ => select::stages_named(stage),
        };
        if stages.is_empty() {
            let names = STAGES.iter().flat_map(|s| std::iter::once(s.name).chain(s.aliases.iter().copied()));
            return Err(wrong(format!(
                "`{stage}` is no stage, alias or glob that matches one; the nearest: {}",
                select::nearest(stage, names)
            )));
        }
        Ok(Self { stages, limit: Limit { metric, value } })
    }
}

/// All of a command's tolerances, over the default limits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tolerances(Vec<Tolerance>);

/// One limit and what was found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LimitCheck {
    /// The limit.
    pub limit: Limit,
    /// What was measured; `None` where nothing could be.
    pub found: Option<f64>,
    /// Whether it is within the limit.
    pub passed: bool,
}

impl Tolerances {
    /// # Errors
    /// [`Error::Usage`] for the first argument that is not a tolerance.
    pub fn parse<S: AsRef<str>>(args: &[S]) -> Result<Self> {
        args.iter().map(|a| a.as_ref().parse()).collect::<Result<_>>().map(Self)
    }

    /// Whether the user set a tolerance for `stage`.
    pub fn names(&self, stage: Stage) -> bool {
        self.0.iter().any(|t| t.stages.contains(&stage))
    }

    /// The limits for `stage`, whose weight is of type `qtype`: the user's, in the order given, or the default one.
    pub fn limits(&self, stage: Stage, qtype: Option<GgmlType>) -> Vec<Limit> {
        let mut limits: Vec<Limit> = Vec::new();
        for t in self.0.iter().filter(|t| t.stages.contains(&stage)) {
            limits.retain(|l| l.metric != t.limit.metric);
            limits.push(t.limit);
        }
        if limits.is_empty() {
            limits.push(default_limit(stage, qtype));
        }
        limits
    }

    /// Holds `metrics` (and the ratio of error to floor, where there is one) against each limit for `stage`.
    pub fn judge(
        &self,
        stage: Stage,
        qtype: Option<GgmlType>,
        metrics: &Metrics,
        ratio: Option<f64>,
    ) -> Vec<LimitCheck> {
        let judge = |limit: Limit| {
            let found = limit.metric.of(metrics, ratio);
            LimitCheck { limit, found, passed: limit.passes(found) }
        };
        self.limits(stage, qtype).into_iter().map(judge).collect()
    }

    /// The tightest tolerances, to two digits, that would have passed: one for each limit in force, as `--tol` takes them.
    /// A ratio that was not computed has none.
    pub fn smallest(
        &self,
        stage: Stage,
        qtype: Option<GgmlType>,
        metrics: &Metrics,
        ratio: Option<f64>,
    ) -> Vec<Tolerance> {
        let tightest = |limit: Limit| {
            let found = limit.metric.of(metrics, ratio).filter(|f| f.is_finite())?;
            // Digits of a cosine near 1 are in its distance from 1.
            let value = match limit.metric {
                Metric::Cosine => (1.0 - round_up(1.0 - found)).clamp(-1.0, found),
                _ => round_up(found),
            };
            Some(Tolerance { stages: vec![stage], limit: Limit { value, ..limit } })
        };
        self.limits(stage, qtype).into_iter().filter_map(tightest).collect()
    }
}

impl std::fmt::Display for Tolerance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.stages.iter().map(|s| s.name()).collect();
        write!(f, "{}:{}", names.join(","), self.limit)
    }
}

/// ggml's limit for the operation that makes `stage`.
fn default_limit(stage: Stage, qtype: Option<GgmlType>) -> Limit {
    let product = matches!(stage.info().op, OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul);
    let quantized = qtype.is_some_and(|t| t.block_len() > 1);
    Limit { metric: Metric::Nmse, value: if product && quantized { QUANTIZED_NMSE } else { ELEMENTWISE_NMSE } }
}

/// `x` rounded up to two significant decimal digits; `x` ≥ 0 and finite.
fn round_up(x: f64) -> f64 {
    let mut rounded: f64 = format!("{x:.1e}").parse().expect("a formatted f64 is one");
    if rounded < x {
        // Half-way rounding went down: one step of the last digit up, printed and read back so that it is a short decimal.
        let step = 10f64.powi(x.log10().floor() as i32 - 1);
        rounded = format!("{:.1e}", rounded + step).parse().expect("a formatted f64 is one");
    }
    rounded.max(x)
}

/// The shortest decimal that reads back as `x`, in scientific notation where that is shorter.
fn short(x: f64) -> String {
    let (plain, scientific) = (format!("{x}"), format!("{x:e}"));
    if scientific.len() < plain.len() { scientific } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::measure::metrics::{Mask, measure};
    use crate::op::HostTensor;

    fn parse(text: &str) -> Result<Tolerance> {
        text.parse()
    }
    fn refusal(text: &str) -> String {
        let error = parse(text).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }
    fn metrics(error: f32) -> Metrics {
        let a = HostTensor::f32(&[2], vec![1.0, 1.0]);
        measure(&a, &HostTensor::f32(&[2], vec![1.0 + error, 1.0]), Mask::None).unwrap()
    }

    #[test]
    fn names_aliases_globs() {
        let t = parse("expert_down:nmse<=1e-6").unwrap();
        assert_eq!((t.stages, t.limit), (vec![Stage::ExpertDown], Limit { metric: Metric::Nmse, value: 1e-6 }));
        assert_eq!(parse("qkv_matmul:max_abs<=0").unwrap().stages, [Stage::QProj, Stage::KProj, Stage::VProj]);
        assert_eq!(parse("router_p*:rel_l2<=0.5").unwrap().stages, [Stage::RouterProbs]);
        assert_eq!(parse("all : ratio <= 2").unwrap().stages.len(), STAGES.len());
        assert_eq!(parse("logits:cosine>=0.999").unwrap().limit.to_string(), "cosine>=0.999");
        assert_eq!(parse("logits:max_ulp<=4").unwrap().to_string(), "logits:max_ulp<=4");
    }

    #[test]
    fn mistakes_name_what_was_expected() {
        assert!(refusal("expert_down").contains("expected STAGE:METRIC<=VALUE"));
        assert!(refusal("expert_down:nmse").contains("expected STAGE:METRIC<=VALUE"));
        assert!(refusal("expert_dwn:nmse<=1").contains("nearest: expert_down"));
        assert!(refusal("logits:nmsee<=1").contains("nearest: nmse"));
        assert!(refusal("logits:nmse>=1").contains("nmse<=VALUE"));
        assert!(refusal("logits:cosine<=1").contains("cosine>=VALUE"));
        assert!(refusal("logits:nmse<1").contains("nmse<=VALUE"));
        assert!(refusal("logits:nmse<=x").contains("`x` is not a number"));
        for bad in ["nmse<=-1", "nmse<=NaN", "nmse<=inf", "cosine>=1.5"] {
            assert!(refusal(&format!("logits:{bad}")).contains("lies in"), "{bad}");
        }
        assert!(refusal("").contains("expected"));
    }

    #[test]
    fn defaults_come_from_the_operation_and_the_type() {
        let none = Tolerances::default();
        let limit = |stage, ty| none.limits(stage, ty)[0].value;
        assert_eq!(limit(Stage::QProj, Some(GgmlType::Q4_K)), QUANTIZED_NMSE);
        assert_eq!(limit(Stage::ExpertDown, Some(GgmlType::Q8_0)), QUANTIZED_NMSE);
        assert_eq!(limit(Stage::RouterLogits, Some(GgmlType::F32)), ELEMENTWISE_NMSE);
        assert_eq!(limit(Stage::Embedding, Some(GgmlType::Q4_K)), ELEMENTWISE_NMSE);
        assert_eq!(limit(Stage::AttnProbs, None), ELEMENTWISE_NMSE);
    }

    #[test]
    fn the_users_own_limits_replace_the_default_and_the_last_counts() {
        let t = Tolerances::parse(&["all:nmse<=1", "logits:max_abs<=0.1", "logits:nmse<=1e-9"]).unwrap();
        let limits: Vec<String> = t.limits(Stage::Logits, None).iter().map(|l| l.to_string()).collect();
        assert_eq!(limits, ["max_abs<=0.1", "nmse<=1e-9"]);
        let judged = t.judge(Stage::Logits, None, &metrics(0.05), None);
        assert_eq!(judged.iter().map(|j| j.passed).collect::<Vec<_>>(), [true, false]);
        assert!(t.names(Stage::QProj) && !Tolerances::default().names(Stage::QProj));
    }

    #[test]
    fn a_ratio_that_is_missing_does_not_pass() {
        let t = Tolerances::parse(&["logits:ratio<=1"]).unwrap();
        assert!(!t.judge(Stage::Logits, None, &metrics(0.0), None)[0].passed);
        assert!(t.judge(Stage::Logits, None, &metrics(0.0), Some(0.5))[0].passed);
        assert!(!t.judge(Stage::Logits, None, &metrics(0.0), Some(f64::NAN))[0].passed);
        assert!(t.smallest(Stage::Logits, None, &metrics(0.0), None).is_empty());
    }

    #[test]
    fn the_smallest_tolerance_passes_and_is_close() {
        for error in [0.0, 1e-7, 3.3e-5, 0.0123, 0.5, 7.77, 9.96] {
            for metric in Metric::ALL {
                let first = format!("logits:{}{}{}", metric, metric.operator(), if error > 0.0 { 0.5 } else { 1.0 });
                let (m, ratio) = (metrics(error), Some(f64::from(error)));
                let smallest = Tolerances::parse(&[first]).unwrap().smallest(Stage::Logits, None, &m, ratio);
                let [tolerance] = &smallest[..] else { panic!("{smallest:?}") };
                let again = Tolerances::parse(&[tolerance.to_string()]).unwrap();
                assert!(again.judge(Stage::Logits, None, &m, ratio)[0].passed, "{tolerance} for error {error}");
                let found = metric.of(&m, ratio).unwrap();
                let excess = match metric {
                    Metric::Cosine => (1.0 - tolerance.limit.value) / (1.0 - found).max(1e-15),
                    _ => tolerance.limit.value / found.max(f64::MIN_POSITIVE),
                };
                assert!(excess <= 1.11, "{tolerance} is {excess} times the {found} found");
            }
        }
    }
}
