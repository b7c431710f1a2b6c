//! Single operations: how long each takes, and what of the limit that is.

use serde::Serialize;

use super::super::format::time;
use super::super::table::lines;
use super::{AchievedSpeed, BenchDocument, BenchRow, on_threads};
use crate::bench::ops::{OpBenchResult, OpsResult};
use crate::bench::stats;

/// An operation on a backend.
#[derive(Clone, Debug, Serialize)]
pub struct OpRow {
    /// Tells it from every other row.
    pub name: String,
    /// The backend.
    pub backend: String,
    /// Of a CPU.
    pub threads: Option<usize>,
    /// `mat_mul`…
    pub op: &'static str,
    /// The type of its weight.
    #[serde(rename = "type")]
    pub ty: Option<&'static str>,
    /// What else tells it from others of its kind.
    pub shape: String,
    /// Positions of the call.
    pub tokens: usize,
    /// The stages that it makes in the model.
    pub stages: Vec<&'static str>,
    /// Of one call: a sample is the mean of many. Empty if it was refused.
    pub seconds: Vec<f64>,
    /// Of one call.
    pub bytes: u64,
    /// See `bytes`.
    pub flops: u64,
    /// What it comes to.
    #[serde(flatten)]
    pub speed: AchievedSpeed,
    /// Why the backend cannot run it; `None` if it can.
    pub refused: Option<String>,
}

impl OpRow {
    fn new(of: &OpsResult, result: &OpBenchResult) -> Self {
        let mean = if result.seconds.is_empty() { 0.0 } else { stats::mean(&result.seconds) };
        Self {
            name: format!("{} · {}", on_threads(&of.info.backend, of.threads), result.name),
            backend: of.info.backend.clone(),
            threads: of.threads,
            op: result.op.name(),
            ty: result.ty.map(|ty| ty.name()),
            shape: result.shape.clone(),
            tokens: result.tokens,
            stages: result.stages.iter().map(|s| s.name()).collect(),
            seconds: result.seconds.clone(),
            bytes: result.work.bytes,
            flops: result.work.flops,
            speed: AchievedSpeed::new(result.work, mean, result.bound),
            refused: result.refused.clone(),
        }
    }
}

impl BenchDocument<OpRow> {
    /// Adds a backend and its rows.
    pub fn add(&mut self, result: &OpsResult) {
        self.add_backend(&result.info, result.threads, &result.limits, None);
        self.results.extend(result.results.iter().map(|one| OpRow::new(result, one)));
    }
}

impl BenchRow for OpRow {
    const SCHEMA: &'static str = "twinscope.bench.ops/1";
    const COLUMNS: &'static [&'static str] =
        &["backend", "operation", "type", "shape", "tokens", "time", "GB/s", "GFLOP/s", "of limit"];
    const RIGHT: &'static [usize] = &[4, 5, 6, 7, 8];

    fn cells(&self, _: &BenchDocument<Self>) -> Vec<String> {
        let [gb, gflop, share] = self.speed.cells();
        let time = if self.refused.is_some() { "refused".into() } else { time(stats::mean(&self.seconds)) };
        vec![
            on_threads(&self.backend, self.threads),
            self.op.into(),
            self.ty.unwrap_or_default().into(),
            self.shape.clone(),
            self.tokens.to_string(),
            time,
            gb,
            gflop,
            share,
        ]
    }

    fn text(document: &BenchDocument<Self>) -> String {
        let mut out = lines(&document.plain_table());
        for row in &document.results {
            if let Some(why) = &row.refused {
                out += &format!("\nnote: not run: {}: {why}", row.name);
            }
        }
        if out.ends_with('\n') { out } else { out + "\n" }
    }
}
