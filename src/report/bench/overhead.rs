//! What tracing costs.

use indicatif::HumanBytes;
use serde::Serialize;

use super::super::format::time;
use super::super::table::lines;
use super::{BenchDocument, BenchRow, on_threads};
use crate::bench::overhead::{OverheadResult, Watching, overhead_name};
use crate::bench::stats;
use crate::bench::subject::BenchSubject;

/// A way of watching a run on a backend.
#[derive(Clone, Debug, Serialize)]
pub struct OverheadRow {
    /// Tells it from every other row.
    pub name: String,
    /// The backend.
    pub backend: String,
    /// Of a CPU.
    pub threads: Option<usize>,
    /// The prompt and the decoded tokens: `pp128+tg4`.
    pub test: String,
    /// How it is watched.
    pub watching: Watching,
    /// Of each repetition.
    pub seconds: Vec<f64>,
    /// How many times as long it takes as the untraced run beside it: the median over the repetitions.
    pub ratio: f64,
    /// Bytes on disk, where the trace is saved.
    pub saved_bytes: Option<u64>,
}

impl OverheadRow {
    /// The rows of a test, one a way of watching.
    pub fn all(subject: &BenchSubject, result: &OverheadResult) -> Vec<Self> {
        let test = overhead_name(result.prompt, result.decode);
        let row = |times: &crate::bench::overhead::WatchedTimes| {
            let how = match times.watching {
                Watching::Run => "run",
                Watching::Untraced => "untraced",
                Watching::Statistics => "statistics",
                Watching::Saved => "saved",
            };
            Self {
                name: format!("{} · {test} · {how}", on_threads(&subject.info.backend, subject.threads)),
                backend: subject.info.backend.clone(),
                threads: subject.threads,
                test: test.clone(),
                watching: times.watching,
                seconds: times.seconds.clone(),
                ratio: OverheadResult::median_ratio(times),
                saved_bytes: (times.watching == Watching::Saved).then_some(result.saved_bytes),
            }
        };
        result.times.iter().map(row).collect()
    }
}

impl BenchRow for OverheadRow {
    const SCHEMA: &'static str = "twinscope.bench.trace-overhead/1";
    const COLUMNS: &'static [&'static str] = &["backend", "test", "watched", "time", "to untraced", "on disk"];
    const RIGHT: &'static [usize] = &[3, 4, 5];

    fn cells(&self, _: &BenchDocument<Self>) -> Vec<String> {
        let how = match self.watching {
            Watching::Run => "not at all, logits of the last position",
            Watching::Untraced => "not at all, logits of every position",
            Watching::Statistics => "statistics of every stage",
            Watching::Saved => "statistics, and every tensor saved",
        };
        vec![
            on_threads(&self.backend, self.threads),
            self.test.clone(),
            how.into(),
            format!("{} ± {}", time(stats::mean(&self.seconds)), time(stats::stddev(&self.seconds))),
            format!("{:.3} ×", self.ratio),
            self.saved_bytes.map_or(String::new(), |bytes| HumanBytes(bytes).to_string()),
        ]
    }

    fn text(document: &BenchDocument<Self>) -> String {
        lines(&document.plain_table())
    }
}
