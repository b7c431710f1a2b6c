//! What `bench` writes: one document a form of it, as a table for people, as Markdown, JSON, CSV and JSON lines.
//!
//! Design:
//! - Every form has a type of row ([`BenchRow`]) and shares the rest: the model, the backends with their limits, how it
//!   was measured.
//! - A row has a `name` that tells it from every other of its document, and the `seconds` of each repetition, which is
//!   all that `bench compare` needs.
//! - A line of CSV or JSON lines stands alone: it repeats the model and the machine. The fields of a rate that
//!   llama-bench has too bear llama-bench's names, so that what reads the one reads the other.

pub mod compare;
pub mod ops;
pub mod overhead;
pub mod perfetto;
pub mod rates;
pub mod stages;

use comfy_table::Table;
use indicatif::HumanBytes;
use serde::Serialize;
use serde_json::{Map, Value};

use super::format::{percent, three};
use super::table::{lines, table};
use crate::backend::BackendInfo;
use crate::backend::gpu::LaunchCosts;
use crate::bench::limits::{BoundBy, MachineLimit, TimeBound};
use crate::bench::work::Work;
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::text::{count, printable};

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchFormat {
    /// A table for people, with the machine and its limits above it
    Table,
    /// A Markdown table
    Md,
    /// One JSON document
    Json,
    /// Comma-separated values, a header first
    Csv,
    /// A JSON object a line
    Jsonl,
}

/// The model that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct BenchModel {
    /// The file's path, or the bundled model's name; of a shape, its name and types.
    pub file: String,
    /// `general.name`.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// As `inspect` gives it; `None` for a shape, of which there is no file.
    pub fingerprint: Option<String>,
    /// Of the tensors.
    pub bytes: Option<u64>,
    /// Weights.
    pub parameters: Option<u64>,
}

impl BenchModel {
    /// Of a model that is there.
    pub fn of(model: &Model) -> Self {
        let tensors = model.gguf.tensors();
        Self {
            file: model.gguf.name().into(),
            name: model.config.name.clone(),
            architecture: model.config.architecture.name.into(),
            fingerprint: Some(model.gguf.fingerprint()),
            bytes: Some(tensors.iter().map(|t| t.bytes).sum()),
            parameters: Some(tensors.iter().map(|t| t.elements()).sum()),
        }
    }
}

/// A backend that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchBackend {
    /// As [`crate::backend::BackendInfo`] has them.
    pub backend: String,
    /// See `backend`.
    pub adapter: String,
    /// See `backend`.
    pub driver: String,
    /// See `backend`.
    pub software: bool,
    /// See `backend`.
    pub contract: String,
    /// Of a CPU.
    pub threads: Option<usize>,
    /// What a dispatch and a submission cost a GPU by themselves, in seconds.
    pub launch: Option<LaunchCosts>,
}

/// A limit of a backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LimitRow {
    /// The backend.
    pub backend: String,
    /// Of a CPU.
    pub threads: Option<usize>,
    /// Read from memory.
    pub read_gb_per_second: f64,
    /// In f32, a multiply-add being two.
    pub gflop_per_second: f64,
}

/// Speeds, and what they are of what is possible: in every row that has work.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AchievedSpeed {
    /// Of weights, keys and values.
    pub gb_per_second: f64,
    /// Of matrix products and attention, a multiply-add being two.
    pub gflop_per_second: f64,
    /// The least time that the limits allow over the mean time. `None` where no limits were probed, or there is no
    /// work.
    pub share_of_limit: Option<f64>,
    /// What takes most of the least time.
    pub bound_by: Option<BoundBy>,
}

impl AchievedSpeed {
    /// Of `work` done in `seconds`, for which `bound` is the least time.
    pub fn new(work: Work, seconds: f64, bound: Option<TimeBound>) -> Self {
        let rate = |amount: u64| if seconds > 0.0 { amount as f64 / seconds / 1e9 } else { 0.0 };
        let bound = bound.filter(|b| b.seconds() > 0.0 && seconds > 0.0);
        Self {
            gb_per_second: rate(work.bytes),
            gflop_per_second: rate(work.flops),
            share_of_limit: bound.map(|b| b.seconds() / seconds),
            bound_by: bound.map(|b| b.by()),
        }
    }

    /// GB/s, GFLOP/s and the share of the limit, for a table.
    fn cells(&self) -> [String; 3] {
        let speed = |x: f64| if x > 0.0 { three(x) } else { String::new() };
        let by = |by| if by == BoundBy::Read { "read" } else { "FMA" };
        let share = self.share_of_limit.zip(self.bound_by);
        let share = share.map_or(String::new(), |(share, b)| format!("{} {}", percent(share), by(b)));
        [speed(self.gb_per_second), speed(self.gflop_per_second), share]
    }
}

/// A row of one form of `bench`.
pub trait BenchRow: Serialize + Sized {
    /// The document's schema.
    const SCHEMA: &'static str;
    /// The columns of the Markdown table, and which of them stand to the right.
    const COLUMNS: &'static [&'static str];
    /// See `COLUMNS`.
    const RIGHT: &'static [usize];

    /// What the columns hold.
    fn cells(&self, document: &BenchDocument<Self>) -> Vec<String>;

    /// Everything below the header, for people.
    fn text(document: &BenchDocument<Self>) -> String;

    /// A flat record that stands alone.
    fn record(&self, document: &BenchDocument<Self>) -> Map<String, Value> {
        let mut record = Map::new();
        if let Ok(Value::Object(fields)) = serde_json::to_value(self) {
            let flat = |v: &Value| match v {
                Value::Array(all) if all.iter().all(Value::is_string) => {
                    Value::from(all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))
                }
                other => other.clone(),
            };
            record.extend(fields.iter().map(|(key, value)| (key.clone(), flat(value))));
        }
        let here = Environment::here();
        record.insert("model_filename".into(), document.model.file.clone().into());
        record.insert("model_fingerprint".into(), document.model.fingerprint.clone().into());
        record.insert("cpu_info".into(), here.machine.processor.clone().into());
        record.insert("program".into(), here.program.clone().into());
        record.insert("test_time".into(), here.date.clone().into());
        record
    }
}

/// A result of `bench`.
#[derive(Clone, Debug, Serialize)]
pub struct BenchDocument<R> {
    /// Says which form it is.
    pub schema: &'static str,
    /// What was measured.
    pub model: BenchModel,
    /// How it was measured.
    pub settings: Map<String, Value>,
    /// What it was measured on.
    pub backends: Vec<BenchBackend>,
    /// What the backends could do at most.
    pub limits: Vec<LimitRow>,
    /// What was measured of each test, beside its rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<Value>,
    /// The rows.
    pub results: Vec<R>,
}

impl<R: BenchRow> BenchDocument<R> {
    /// A document without rows yet; `settings` is a JSON object.
    pub fn new(model: BenchModel, settings: Value) -> Self {
        let settings = match settings {
            Value::Object(settings) => settings,
            _ => Map::new(),
        };
        let (backends, limits, tests, results) = Default::default();
        Self { schema: R::SCHEMA, model, settings, backends, limits, tests, results }
    }

    /// Whether a backend with so many threads is noted already.
    pub fn has(&self, info: &BackendInfo, threads: Option<usize>) -> bool {
        self.backends.iter().any(|b| b.backend == info.backend && b.threads == threads)
    }

    /// Notes a backend that is measured, its limits, and what a GPU takes for a dispatch and a submission.
    pub fn add_backend(
        &mut self,
        info: &BackendInfo,
        threads: Option<usize>,
        limits: &[MachineLimit],
        launch: Option<LaunchCosts>,
    ) {
        self.add_limits(&info.backend, limits);
        self.backends.push(BenchBackend {
            backend: info.backend.clone(),
            adapter: info.adapter.clone(),
            driver: info.driver.clone(),
            software: info.software,
            contract: info.contract.clone(),
            threads,
            launch,
        });
    }

    /// Notes limits, those that are there already aside.
    fn add_limits(&mut self, backend: &str, limits: &[MachineLimit]) {
        for limit in limits {
            let row = LimitRow {
                backend: backend.into(),
                threads: limit.threads,
                read_gb_per_second: limit.read / 1e9,
                gflop_per_second: limit.arithmetic / 1e9,
            };
            if !self.limits.iter().any(|l| l.backend == row.backend && l.threads == row.threads) {
                self.limits.push(row);
            }
        }
    }

    /// The document in `format`, with a newline at its end.
    ///
    /// # Errors
    /// None but of JSON's writer, which has nothing here that it could refuse.
    pub fn render(&self, format: BenchFormat) -> Result<String> {
        let json = |e: serde_json::Error| Error::input(format!("json: {e}"));
        Ok(match format {
            BenchFormat::Table => header(self) + "\n" + &R::text(self),
            BenchFormat::Md => self.markdown(),
            BenchFormat::Json => serde_json::to_string_pretty(&Environment::with(self)?).map_err(json)? + "\n",
            BenchFormat::Csv => self.csv(),
            BenchFormat::Jsonl => {
                let records = self.results.iter().map(|row| serde_json::to_string(&row.record(self)).map_err(json));
                records.map(|line| Ok(line? + "\n")).collect::<Result<String>>()?
            }
        })
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let names: Vec<String> = R::COLUMNS.iter().map(|name| name.to_string()).collect();
        let rule = |i: usize| if R::RIGHT.contains(&i) { "---:".to_string() } else { "---".to_string() };
        let mut out = line(&names) + &line(&(0..names.len()).map(rule).collect::<Vec<_>>());
        for row in &self.results {
            // A bar would begin another cell.
            let cells: Vec<String> = row.cells(self).iter().map(|cell| printable(cell).replace('|', "\\|")).collect();
            out += &line(&cells);
        }
        out
    }

    fn csv(&self) -> String {
        let quoted = |value: &Value| match value {
            Value::Null => String::new(),
            Value::String(s) => format!("\"{}\"", s.replace('"', "\"\"")),
            other => format!("\"{other}\""),
        };
        let records: Vec<_> = self.results.iter().map(|row| row.record(self)).collect();
        // What is a list has no cell; which those are, every record of a form says alike.
        let Some(first) = records.first() else { return String::new() };
        let keys: Vec<&String> = first.iter().filter(|(_, value)| !value.is_array()).map(|(key, _)| key).collect();
        let mut out = keys.iter().map(|key| key.as_str()).collect::<Vec<_>>().join(",") + "\n";
        for record in &records {
            let cells: Vec<String> = keys.iter().map(|key| quoted(record.get(*key).unwrap_or(&Value::Null))).collect();
            out += &(cells.join(",") + "\n");
        }
        out
    }

    /// The table that Markdown has, for people.
    fn plain_table(&self) -> Table {
        let mut rows = table(R::COLUMNS, R::RIGHT);
        for row in &self.results {
            rows.add_row(row.cells(self));
        }
        rows
    }
}

/// How a row's backend is called: with the threads of a CPU.
pub fn on_threads(backend: &str, threads: Option<usize>) -> String {
    match threads {
        Some(n) => format!("{backend} · {}", count(n, "thread")),
        None => backend.into(),
    }
}

/// The model, the machine, the backends and their limits.
fn header<R: BenchRow>(document: &BenchDocument<R>) -> String {
    let (model, here) = (&document.model, Environment::here());
    let mut out = format!("{} · {}", printable(&model.name), printable(&model.architecture));
    if let (Some(bytes), Some(parameters)) = (model.bytes, model.parameters) {
        out += &format!(" · {} · {} weights", HumanBytes(bytes), three(parameters as f64));
    }
    if let Some(fingerprint) = &model.fingerprint {
        out += &format!(" · fingerprint {}…", &fingerprint[..fingerprint.len().min(12)]);
    }
    let machine = &here.machine;
    let memory = machine.memory_bytes.map_or(String::new(), |bytes| format!(" · {}", HumanBytes(bytes)));
    let cores = count(machine.cores, "core");
    let mut fields = vec![(
        "machine".to_string(),
        format!("{} · {cores}{memory} · {}", printable(&machine.processor), printable(&machine.system)),
    )];
    fields.push(("program".into(), format!("{} ({}) · {}", here.program, here.build, here.date)));
    for b in &document.backends {
        // Of a CPU the adapter is the processor, which is said above, and the driver its threads.
        let what = match b.threads {
            Some(_) => b.driver.clone(),
            None if b.software => format!("{}, software adapter · {}", b.adapter, b.driver),
            None => format!("{} · {}", b.adapter, b.driver),
        };
        fields.push((b.backend.clone(), printable(&format!("{what} · {}", b.contract))));
    }
    for limit in &document.limits {
        let speeds = [three(limit.read_gb_per_second), three(limit.gflop_per_second)];
        let on = on_threads(&limit.backend, limit.threads);
        fields.push(("limit".into(), format!("{on}: {} GB/s read, {} GFLOP/s", speeds[0], speeds[1])));
    }
    let mut rows = table(&[], &[]);
    for (name, value) in fields {
        rows.add_row([name, value]);
    }
    format!("{out}\n{}", lines(&rows))
}

/// A bar of `share` of `columns` columns, to an eighth of one.
fn bar(share: f64, columns: usize) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * (columns * 8) as f64).round() as usize;
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share() {
        assert_eq!(
            [bar(0.0, 8), bar(0.5, 8), bar(1.0, 2), bar(1.0 / 16.0, 8), bar(9.0, 1)],
            ["", "████", "██", "▌", "█"]
        );
    }

    #[test]
    fn a_share_is_the_least_time_over_the_time() {
        let limit = MachineLimit { threads: None, read: 10e9, arithmetic: 100e9 };
        let work = Work { bytes: 5_000_000_000, flops: 10_000_000_000 };
        let bound = TimeBound::of(&limit, [work].into_iter());
        let speed = AchievedSpeed::new(work, 2.0, Some(bound));
        assert_eq!((speed.gb_per_second, speed.gflop_per_second, speed.share_of_limit), (2.5, 5.0, Some(0.25)));
        assert_eq!(speed.cells(), ["2.50", "5.00", "25.0 % read"]);
        let none = AchievedSpeed::new(Work::default(), 0.0, Some(TimeBound::default()));
        assert_eq!((none.share_of_limit, none.gb_per_second), (None, 0.0));
    }
}
