//! What `selftest --calibrate` prints: error over floor of correct kernels, by operation and backend.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value as Json, json};

use crate::op::OpKind;

/// The median ratio of an operation that rounds, at the least: a floor far above every error would never bite.
pub const LEAST_MEDIAN: f64 = 0.01;

/// What a floor is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FloorOf {
    /// One operation, on inputs that are shown.
    Op(OpKind),
    /// All that lies between the stages of this list, which alone are shown.
    Segment(&'static str),
    /// The stages of whole runs of this model.
    Model(&'static str),
}

impl std::fmt::Display for FloorOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FloorOf::Op(op) => f.pad(&format!("{op:?}")),
            FloorOf::Segment(shown) => f.pad(&format!("segments to {shown}")),
            FloorOf::Model(name) => f.pad(&format!("stages of {name}")),
        }
    }
}

/// The ratios of one operation or segment on one backend.
#[derive(Clone, Debug)]
pub struct Distribution {
    pub backend: String,
    pub of: FloorOf,
    /// Ascending.
    pub ratios: Vec<f64>,
}

/// An evaluation beyond its floor.
#[derive(Clone, Debug)]
pub struct Beyond {
    pub backend: String,
    pub case: String,
    pub seed: u64,
    pub ratio: f64,
}

/// All that was measured.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    pub distributions: Vec<Distribution>,
    pub beyond: Vec<Beyond>,
    /// CPU levels that this processor lacks: not measured.
    pub missing: Vec<String>,
}

/// One judged case.
pub struct Evaluation {
    pub of: FloorOf,
    pub case: String,
    pub seed: u64,
    pub ratio: f64,
}

impl Distribution {
    /// The ratio that a share of them are at most.
    fn quantile(&self, share: f64) -> f64 {
        let last = self.ratios.len().saturating_sub(1);
        self.ratios.get((share * last as f64).round() as usize).copied().unwrap_or(0.0)
    }
    fn max(&self) -> f64 {
        self.ratios.last().copied().unwrap_or(0.0)
    }
    /// Evaluations that round at all.
    fn rounding(&self) -> &[f64] {
        &self.ratios[self.ratios.partition_point(|r| *r <= 0.0)..]
    }
    /// The median of those; `None` if there are none.
    fn median(&self) -> Option<f64> {
        let rounding = self.rounding();
        rounding.get(rounding.len() / 2).copied()
    }
    /// Whether the floor is near enough to what kernels do to mean something.
    fn bites(&self) -> bool {
        use OpKind::*;
        matches!(self.of, FloorOf::Op(Store | Rows | RouterTopK | Embed))
            || self.median().is_some_and(|m| m >= LEAST_MEDIAN)
    }
    /// Counts of the ratios that are 0, and in each tenth up to 1 (at most 1 in the last), and beyond.
    fn histogram(&self) -> [usize; 12] {
        let mut bins = [0; 12];
        for r in &self.ratios {
            let bin = match r {
                r if *r <= 0.0 => 0,
                r if *r <= 1.0 => 1 + ((r * 10.0).ceil() as usize).clamp(1, 10) - 1,
                _ => 11, // NaN too
            };
            bins[bin] += 1;
        }
        bins
    }
}

impl Calibration {
    /// Counts evaluations of `backend`.
    pub fn add(&mut self, backend: &str, judged: impl IntoIterator<Item = Evaluation>) {
        for j in judged {
            let ratio = j.ratio;
            if ratio.is_nan() || ratio > 1.0 {
                self.beyond.push(Beyond { backend: backend.to_string(), case: j.case, seed: j.seed, ratio });
            }
            match self.distributions.iter_mut().find(|d| d.backend == backend && d.of == j.of) {
                Some(d) => d.ratios.push(ratio),
                None => {
                    let backend = backend.to_string();
                    self.distributions.push(Distribution { backend, of: j.of, ratios: vec![ratio] });
                }
            }
        }
    }

    /// Operations judged.
    pub fn evaluations(&self) -> usize {
        self.distributions.iter().map(|d| d.ratios.len()).sum()
    }

    /// Whether no correct kernel is beyond its floor, and every floor bites.
    pub fn passed(&self) -> bool {
        self.evaluations() > 0 && self.beyond.is_empty() && self.distributions.iter().all(Distribution::bites)
    }

    /// The document of schema `twinscope.calibration/1`.
    pub fn to_json(&self) -> Json {
        let finite = |x: f64| x.is_finite().then_some(x);
        let distributions: Vec<Json> = self
            .distributions
            .iter()
            .map(|d| {
                json!({
                    "backend": d.backend,
                    "op": d.of.to_string(),
                    "count": d.ratios.len(),
                    "rounding": d.rounding().len(),
                    "min": finite(d.quantile(0.0)),
                    "median": d.median().and_then(finite),
                    "p99": finite(d.quantile(0.99)),
                    "max": finite(d.max()),
                    "histogram": d.histogram(),
                    "bites": d.bites(),
                })
            })
            .collect();
        let beyond: Vec<Json> = self
            .beyond
            .iter()
            .map(|b| json!({"backend": b.backend, "case": b.case, "seed": b.seed, "ratio": finite(b.ratio)}))
            .collect();
        json!({
            "schema": "twinscope.calibration/1",
            "passed": self.passed(),
            "evaluations": self.evaluations(),
            "beyond": beyond,
            "not_measured": self.missing,
            "distributions": distributions,
        })
    }

    /// For people: a line for each operation and backend, with the shape of its distribution from 0 to 1.
    pub fn render(&self) -> String {
        let mut by_backend: BTreeMap<&str, Vec<&Distribution>> = BTreeMap::new();
        for d in &self.distributions {
            by_backend.entry(&d.backend).or_default().push(d);
        }
        let width = self.distributions.iter().map(|d| d.of.to_string().len()).max().unwrap_or(0).max(14);
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "error of correct kernels / rounding floor, the worst element of each operation\n");
        let _ = writeln!(
            out,
            "{:12} {:width$} {:>8} {:>8} {:>8} {:>8} {:>8}  0 to 1 in tenths",
            "backend", "operation", "count", "exact", "median", "p99", "max"
        );
        for (backend, mut all) in by_backend {
            all.sort_by_key(|d| d.of);
            for d in all {
                let median = d.median().map_or("—".to_string(), |m| format!("{m:.3}"));
                let weak = if d.bites() { "" } else { "  the floor is too wide" };
                let _ = writeln!(
                    out,
                    "{backend:12} {:width$} {:>8} {:>8} {median:>8} {:>8.3} {:>8.3}  {}{weak}",
                    d.of.to_string(),
                    d.ratios.len(),
                    d.ratios.len() - d.rounding().len(),
                    d.quantile(0.99),
                    d.max(),
                    bars(&d.histogram()),
                );
            }
        }
        for b in &self.beyond {
            let _ = writeln!(out, "beyond its floor: {} · {} · seed {} · {:.3}", b.backend, b.case, b.seed, b.ratio);
        }
        for missing in &self.missing {
            let _ = writeln!(out, "not measured: {missing}, which this processor lacks");
        }
        let _ = writeln!(out, "\n{} evaluations · {} beyond their floor", self.evaluations(), self.beyond.len());
        out
    }
}

/// The ten tenths of a histogram as bars of eight heights; a bin with anything in it is never blank.
fn bars(histogram: &[usize; 12]) -> String {
    const HEIGHTS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let tenths = &histogram[1..11];
    let most = tenths.iter().copied().max().unwrap_or(0).max(1);
    tenths.iter().map(|n| HEIGHTS[(n * 8).div_ceil(most)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(op: OpKind, ratios: &[f64]) -> Distribution {
        let of = FloorOf::Op(op);
        Distribution { backend: "b".into(), of, ratios: ratios.to_vec() }
    }

    #[test]
    fn a_floor_must_hold_and_bite() {
        let of =
            |op, ratios: &[f64]| Calibration { distributions: vec![distribution(op, ratios)], ..Default::default() };
        assert!(of(OpKind::MatMul, &[0.0, 0.02, 0.5]).passed());
        assert!(!of(OpKind::MatMul, &[0.0, 0.001, 0.002]).passed(), "the median of those that round is below 0.01");
        assert!(of(OpKind::Rows, &[0.0, 0.0]).passed());
        assert!(!Calibration::default().passed(), "nothing measured proves nothing");
        let mut c = of(OpKind::Add, &[0.5]);
        let judged = |ratio| Evaluation { of: FloorOf::Op(OpKind::Add), case: "c".into(), seed: 1, ratio };
        c.add("b", [judged(1.0)]);
        assert!(c.passed() && c.evaluations() == 2);
        c.add("b", [judged(f64::NAN)]);
        assert!(!c.passed());
    }

    #[test]
    fn histograms_count_everything_once() {
        let d = distribution(OpKind::Add, &[0.0, 0.0, 0.01, 0.1, 0.11, 1.0, 1.5, f64::NAN]);
        let h = d.histogram();
        assert_eq!(h.iter().sum::<usize>(), 8);
        assert_eq!((h[0], h[1], h[2], h[10], h[11]), (2, 2, 1, 1, 2));
        assert_eq!((d.rounding().len(), bars(&h).chars().count()), (6, 10));
    }
}
