//! Tokens a second: llama-bench's table, with the share of the machine's limit beside each rate.

use indicatif::HumanBytes;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::super::format::three;
use super::super::table::lines;
use super::{AchievedSpeed, BenchDocument, BenchRow, on_threads};
use crate::bench::stats;
use crate::bench::subject::BenchSubject;
use crate::bench::throughput::Throughput;
use crate::environment::Environment;

/// A test on a backend.
#[derive(Clone, Debug, Serialize)]
pub struct RateRow {
    /// Tells it from every other row.
    pub name: String,
    /// The backend.
    pub backend: String,
    /// The processor or adapter.
    pub adapter: String,
    /// Of a CPU.
    pub threads: Option<usize>,
    /// As llama-bench writes it: `pp512`, `tg128 @ d4096`.
    pub test: String,
    /// Tokens of the prompt, of the text, and positions in the cache before them.
    pub prompt: usize,
    /// See `prompt`.
    pub decode: usize,
    /// See `prompt`.
    pub depth: usize,
    /// The mean over the repetitions.
    pub tokens_per_second: f64,
    /// Of `tokens_per_second`, between repetitions.
    pub stddev: f64,
    /// Of each repetition.
    pub seconds: Vec<f64>,
    /// The mean over the tokens of a repetition.
    pub bytes_per_token: f64,
    /// See `bytes_per_token`.
    pub flop_per_token: f64,
    /// What it comes to.
    #[serde(flatten)]
    pub speed: AchievedSpeed,
}

impl RateRow {
    /// Of a test on `subject`.
    pub fn new(subject: &BenchSubject, result: &Throughput) -> Self {
        let rates = result.rates();
        let tokens = result.test.tokens().max(1) as f64;
        Self {
            name: format!("{} · {}", on_threads(&subject.info.backend, subject.threads), result.test),
            backend: subject.info.backend.clone(),
            adapter: subject.info.adapter.clone(),
            threads: subject.threads,
            test: result.test.to_string(),
            prompt: result.test.prompt,
            decode: result.test.decode,
            depth: result.test.depth,
            tokens_per_second: stats::mean(&rates),
            stddev: stats::stddev(&rates),
            bytes_per_token: result.work.bytes as f64 / tokens,
            flop_per_token: result.work.flops as f64 / tokens,
            speed: AchievedSpeed::new(result.work, result.mean_seconds(), result.bound),
            seconds: result.seconds.clone(),
        }
    }
}

impl BenchRow for RateRow {
    const SCHEMA: &'static str = "twinscope.bench/1";
    const COLUMNS: &'static [&'static str] =
        &["model", "size", "params", "backend", "threads", "test", "t/s", "GB/s", "GFLOP/s", "of limit"];
    const RIGHT: &'static [usize] = &[1, 2, 4, 5, 6, 7, 8, 9];

    fn cells(&self, document: &BenchDocument<Self>) -> Vec<String> {
        let model = &document.model;
        let [gb, gflop, share] = self.speed.cells();
        vec![
            format!("{} {}", model.architecture, model.name),
            model.bytes.map_or(String::new(), |bytes| HumanBytes(bytes).to_string()),
            model.parameters.map_or(String::new(), |n| format!("{:.2} M", n as f64 / 1e6)),
            self.backend.clone(),
            self.threads.map_or(String::new(), |n| n.to_string()),
            self.test.clone(),
            format!("{:.2} ± {:.2}", self.tokens_per_second, self.stddev),
            gb,
            gflop,
            share,
        ]
    }

    fn text(document: &BenchDocument<Self>) -> String {
        // The model stands in the header.
        const HEADER: [&str; 9] =
            ["backend", "threads", "test", "tokens/s", "MB/token", "MFLOP/token", "GB/s", "GFLOP/s", "of limit"];
        let mut rows = super::table(&HEADER, &[1, 2, 3, 4, 5, 6, 7, 8]);
        for row in &document.results {
            let [gb, gflop, share] = row.speed.cells();
            rows.add_row([
                row.backend.clone(),
                row.threads.map_or(String::new(), |n| n.to_string()),
                row.test.clone(),
                format!("{} ± {}", three(row.tokens_per_second), three(row.stddev)),
                three(row.bytes_per_token / 1e6),
                three(row.flop_per_token / 1e6),
                gb,
                gflop,
                share,
            ]);
        }
        let mut out = lines(&rows);
        // More than a memory gives is no mistake where the model is small.
        if document.results.iter().any(|r| r.speed.share_of_limit.is_some_and(|share| share > 1.0)) {
            out += "\nnote: over 100 % of a limit: some of what is counted came from a cache, or the machine was busier while the\n\
                    probe ran; which of the two is not known\n";
        }
        out
    }

    /// llama-bench's fields by llama-bench's names, then ours.
    fn record(&self, document: &BenchDocument<Self>) -> Map<String, Value> {
        let (model, here) = (&document.model, Environment::here());
        let ns: Vec<f64> = self.seconds.iter().map(|s| s * 1e9).collect();
        let tokens = (self.prompt + self.decode) as f64;
        let software = document.backends.iter().any(|b| b.backend == self.backend && b.software);
        let record = json!({
            "program": here.program,
            "build": here.build,
            "cpu_info": here.machine.processor,
            "gpu_info": if self.threads.is_some() { "" } else { self.adapter.as_str() },
            "software_adapter": software,
            "backends": self.backend,
            "model_filename": model.file,
            "model_type": format!("{} {}", model.architecture, model.name),
            "model_size": model.bytes,
            "model_n_params": model.parameters,
            "model_fingerprint": model.fingerprint,
            "n_ubatch": document.settings.get("chunk"),
            "n_threads": self.threads,
            "n_prompt": self.prompt,
            "n_gen": self.decode,
            "n_depth": self.depth,
            "test_time": here.date,
            "avg_ns": stats::mean(&ns).round() as u64,
            "stddev_ns": stats::stddev(&ns).round() as u64,
            "avg_ts": self.tokens_per_second,
            "stddev_ts": self.stddev,
            "samples_ns": ns.iter().map(|ns| ns.round() as u64).collect::<Vec<_>>(),
            "samples_ts": self.seconds.iter().map(|s| tokens / s).collect::<Vec<_>>(),
            "test": self.test,
            "bytes_per_token": self.bytes_per_token,
            "flop_per_token": self.flop_per_token,
            "gb_per_second": self.speed.gb_per_second,
            "gflop_per_second": self.speed.gflop_per_second,
            "share_of_limit": self.speed.share_of_limit,
            "bound_by": self.speed.bound_by,
        });
        match record {
            Value::Object(record) => record,
            _ => Map::new(),
        }
    }
}
