//! Two results of `bench`, and whether what changed is more than noise.
//!
//! Design:
//! - Rows are held against each other by name: backend, test, and whatever else tells them apart. A row that only one
//!   side has is said, not skipped.
//! - A change is real when Welch's test on the logarithms of the samples gives p below alpha, which is divided by the
//!   number of rows that are compared (Bonferroni): with alpha 0.01, one comparison of equal programs in a hundred has
//!   a false alarm, however many rows it has.
//! - Of fewer than three samples a side nothing is said but the change: with two, the noise is a guess from one difference.
//! - The test knows the noise inside each run only. Two runs of one program may differ by a little more than that
//!   (other pages, another clock), so a change below a smallest one that counts is never called real. What else is
//!   different between the runs, another machine, another file, a limit that moved because a neighbour was busy, is
//!   listed above the rows: a person has to weigh it.
//! - The two agree if every row of either was compared and none is slower. What was not compared is no agreement.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::stats::{WelchTest, mean, welch};
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::text::count;

/// Samples of a side that can tell noise from a change.
pub const LEAST_SAMPLES: usize = 3;

/// What a row came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BenchChange {
    /// The second is faster, by more than noise.
    Faster,
    /// The second is slower, by more than noise.
    Slower,
    /// What differs is within noise.
    Same,
    /// A side has fewer than three samples: too few to tell noise.
    Unknown,
    /// A side has no such row.
    Missing,
}

/// A row of both documents.
#[derive(Clone, Debug, Serialize)]
pub struct ComparedRow {
    /// What is measured.
    pub name: String,
    /// Mean seconds of each side.
    pub seconds: [Option<f64>; 2],
    /// The share of the machine's limit that each side reached.
    pub share_of_limit: [Option<f64>; 2],
    /// The test, where there are three samples a side or more.
    pub test: Option<WelchTest>,
    /// What it says.
    pub change: BenchChange,
}

/// A limit of both documents.
#[derive(Clone, Debug, Serialize)]
pub struct ComparedLimit {
    /// The backend, its threads, and what is limited.
    pub name: String,
    /// Of each side, in units a second.
    pub values: [f64; 2],
}

/// Two documents held against each other.
#[derive(Clone, Debug, Serialize)]
pub struct BenchComparison {
    /// The probability of one false alarm or more, over all rows.
    pub alpha: f64,
    /// The smallest change of speed that counts: 0.02 is 2 %.
    pub min_change: f64,
    /// What else differs between the two runs: `what: this, that`.
    pub differences: Vec<String>,
    /// The machines' limits.
    pub limits: Vec<ComparedLimit>,
    /// In the first document's order, then what only the second has.
    pub rows: Vec<ComparedRow>,
}

impl BenchComparison {
    /// How many rows came to `change`.
    pub fn count(&self, change: BenchChange) -> usize {
        self.rows.iter().filter(|r| r.change == change).count()
    }

    /// Whether every row was compared and none is slower.
    pub fn agrees(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|r| matches!(r.change, BenchChange::Same | BenchChange::Faster))
    }
}

/// A document, as far as it matters here.
struct BenchDocumentRead {
    value: Value,
    rows: Vec<SampledRow>,
}

struct SampledRow {
    name: String,
    seconds: Vec<f64>,
    share: Option<f64>,
}

/// Reads two documents of one schema and compares them.
///
/// # Errors
/// [`Error::Input`] if a file is unreadable, is no document of `bench`, or the two are of different forms.
pub fn compare(a: &Path, b: &Path, alpha: f64, min_change: f64) -> Result<BenchComparison> {
    let (a_path, b_path) = (a, b);
    let (a, b) = (read(a)?, read(b)?);
    let schema = |d: &BenchDocumentRead| d.value["schema"].as_str().unwrap_or_default().to_string();
    if schema(&a) != schema(&b) {
        return Err(Error::input(format!(
            "{} is {}, {} is {}: expected two documents of one form of `bench`",
            a_path.display(),
            schema(&a),
            b_path.display(),
            schema(&b)
        )));
    }
    let in_both = a.rows.iter().filter(|row| b.rows.iter().any(|other| other.name == row.name)).count();
    let each = alpha / in_both.max(1) as f64;
    let mut rows = Vec::new();
    for row in &a.rows {
        rows.push(compared(Some(row), b.rows.iter().find(|other| other.name == row.name), each, min_change));
    }
    for row in b.rows.iter().filter(|row| !a.rows.iter().any(|other| other.name == row.name)) {
        rows.push(compared(None, Some(row), each, min_change));
    }
    let (differences, limits) = (differences(&a.value, &b.value), limits(&a.value, &b.value));
    Ok(BenchComparison { alpha, min_change, differences, limits, rows })
}

fn compared(a: Option<&SampledRow>, b: Option<&SampledRow>, alpha: f64, min_change: f64) -> ComparedRow {
    let sides = [a, b];
    let test = match sides {
        [Some(a), Some(b)] if a.seconds.len().min(b.seconds.len()) >= LEAST_SAMPLES => {
            welch(&a.seconds, &b.seconds, alpha)
        }
        _ => None,
    };
    let change = match (sides, test) {
        ([Some(_), Some(_)], None) => BenchChange::Unknown,
        ([Some(_), Some(_)], Some(test)) if test.p < alpha && test.speed_ratio > 1.0 + min_change => {
            BenchChange::Faster
        }
        ([Some(_), Some(_)], Some(test)) if test.p < alpha && test.speed_ratio < 1.0 / (1.0 + min_change) => {
            BenchChange::Slower
        }
        ([Some(_), Some(_)], Some(_)) => BenchChange::Same,
        _ => BenchChange::Missing,
    };
    ComparedRow {
        name: a.or(b).map_or(String::new(), |row| row.name.clone()),
        seconds: sides.map(|s| s.map(|s| mean(&s.seconds))),
        share_of_limit: sides.map(|s| s.and_then(|s| s.share)),
        test,
        change,
    }
}

fn read(path: &Path) -> Result<BenchDocumentRead> {
    let bad = |what: String| Error::input(format!("{}: {what}", path.display()));
    let value: Value = FileKind::BENCH.or_stdin().read_json(path)?;
    let schema = value["schema"].as_str().unwrap_or_default();
    let forms = ["bench/1", "bench.stages/1", "bench.ops/1", "bench.trace-overhead/1"];
    if !forms.iter().any(|form| schema.strip_prefix("twinscope.") == Some(form)) {
        let forms = forms.map(|form| format!("twinscope.{form}")).join(", ");
        return Err(bad(format!("expected a document of `bench` (schema {forms}), found schema {schema:?}")));
    }
    let results = value["results"].as_array().ok_or_else(|| bad("expected a list of results".into()))?;
    let mut rows: Vec<SampledRow> = Vec::new();
    for (n, result) in results.iter().enumerate() {
        let row = format!("results[{n}]");
        let name = result["name"].as_str().ok_or_else(|| bad(format!("{row}: expected a name")))?.to_string();
        let seconds = result["seconds"].as_array().ok_or_else(|| bad(format!("{row}: expected a list of seconds")))?;
        let seconds: Option<Vec<f64>> =
            seconds.iter().map(|s| s.as_f64().filter(|s| s.is_finite() && *s >= 0.0)).collect();
        let seconds =
            seconds.ok_or_else(|| bad(format!("{row}: expected seconds that are numbers and not negative")))?;
        if rows.iter().any(|other| other.name == name) {
            return Err(bad(format!("{row}: {name:?} is there twice")));
        }
        // What was refused has no samples and is no row.
        if !seconds.is_empty() {
            rows.push(SampledRow { name, seconds, share: result["share_of_limit"].as_f64() });
        }
    }
    Ok(BenchDocumentRead { value, rows })
}

/// Facts that should be equal for times to be comparable, and are not.
fn differences(a: &Value, b: &Value) -> Vec<String> {
    let facts = [
        ("program", "/environment/program"),
        ("build", "/environment/build"),
        ("processor", "/environment/machine/processor"),
        ("cores", "/environment/machine/cores"),
        ("memory", "/environment/machine/memory_bytes"),
        ("model", "/model/fingerprint"),
    ];
    let text = |v: Option<&Value>| match v {
        Some(Value::String(s)) => s.clone(),
        None | Some(Value::Null) => "unknown".into(),
        Some(other) => other.to_string(),
    };
    let mut found = Vec::new();
    for (what, pointer) in facts {
        let (a, b) = (a.pointer(pointer), b.pointer(pointer));
        if a != b {
            found.push(format!("{what}: {}, {}", text(a), text(b)));
        }
    }
    // By which table each GPU chose among its kernels.
    let tables = |v: &Value| {
        let adapters = v.pointer("/environment/machine/adapters").and_then(Value::as_array);
        let table = |one: &Value| {
            let hash = one.pointer("/tuning/sha256").and_then(Value::as_str).unwrap_or_default();
            let hash: String = hash.chars().take(12).collect();
            let table = format!("{} {hash}", text(one.pointer("/tuning/table")));
            format!("{} by {}", text(one.get("backend")), table.trim_end())
        };
        adapters.into_iter().flatten().map(table).collect::<Vec<_>>().join(" and ")
    };
    let (one, other) = (tables(a), tables(b));
    if one != other && !one.is_empty() && !other.is_empty() {
        found.push(format!("kernels: {one}, {other}"));
    }
    // Of each backend that both have: what it runs on.
    let backends = |v: &Value| v["backends"].as_array().cloned().unwrap_or_default();
    let names = |v: &Value| {
        let named = |one: &Value| {
            let threads =
                one["threads"].as_u64().map_or(String::new(), |n| format!(" ({})", count(n as usize, "thread")));
            format!("{}{threads}", text(one.get("backend")))
        };
        backends(v).iter().map(named).collect::<Vec<_>>().join(" and ")
    };
    let (one, other) = (names(a), names(b));
    if one != other {
        found.push(format!("backends: {one}, {other}"));
    }
    for one in backends(a) {
        let same = |other: &Value| other["backend"] == one["backend"] && other["threads"] == one["threads"];
        let Some(other) = backends(b).into_iter().find(same) else { continue };
        for what in ["adapter", "driver", "contract"] {
            if one[what] != other[what] {
                let (one_text, other_text) = (text(one.get(what)), text(other.get(what)));
                found.push(format!("{} {what}: {one_text}, {other_text}", text(one.get("backend"))));
            }
        }
    }
    found
}

fn limits(a: &Value, b: &Value) -> Vec<ComparedLimit> {
    let all = |v: &Value| -> Vec<(String, f64)> {
        let mut found = Vec::new();
        for limit in v["limits"].as_array().into_iter().flatten() {
            let threads = limit["threads"].as_u64();
            let threads = threads.map_or(String::new(), |n| format!(" · {}", count(n as usize, "thread")));
            let backend = limit["backend"].as_str().unwrap_or_default();
            for (key, what) in [("read_gb_per_second", "GB/s read"), ("gflop_per_second", "GFLOP/s")] {
                if let Some(value) = limit[key].as_f64().filter(|v| *v > 0.0) {
                    found.push((format!("{backend}{threads} · {what}"), value));
                }
            }
        }
        found
    };
    let others = all(b);
    all(a)
        .into_iter()
        .filter_map(|(name, value)| {
            let other = others.iter().find(|(other, _)| *other == name)?.1;
            Some(ComparedLimit { name, values: [value, other] })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(rows: &[(&str, &[f64])]) -> Value {
        let results: Vec<Value> = rows
            .iter()
            .map(|(name, seconds)| json!({"name": name, "seconds": seconds, "share_of_limit": 0.5}))
            .collect();
        json!({
            "schema": "twinscope.bench/1",
            "environment": {"program": "twinscope 0.1.0", "machine": {"processor": "A", "cores": 2}},
            "model": {"fingerprint": "f"},
            "backends": [{"backend": "cpu:avx2", "driver": "2 threads"}],
            "limits": [{"backend": "cpu:avx2", "threads": 2, "read_gb_per_second": 20.0, "gflop_per_second": 160.0}],
            "results": results,
        })
    }

    fn against(a: &Value, b: &Value) -> Result<BenchComparison> {
        let dir = tempfile::tempdir().unwrap();
        let paths = [("a.json", a), ("b.json", b)].map(|(name, value)| {
            let path = dir.path().join(name);
            std::fs::write(&path, value.to_string()).unwrap();
            path
        });
        compare(&paths[0], &paths[1], 0.01, 0.02)
    }

    #[test]
    fn changes_are_told_from_noise_by_name() {
        let mut a = document(&[
            ("steady", &[1.00, 1.01, 0.99, 1.00, 1.01]),
            ("noisy", &[1.0, 1.4, 0.8, 1.2, 0.9]),
            ("once", &[1.0]),
            ("twice", &[1.0, 1.1]),
            ("gone", &[1.0, 1.0]),
            ("worse", &[1.00, 1.01, 0.99, 1.00, 1.01]),
        ]);
        let mut b = document(&[
            ("worse", &[1.20, 1.21, 1.19, 1.20, 1.21]),
            ("steady", &[0.50, 0.51, 0.50, 0.49, 0.50]),
            ("noisy", &[1.1, 0.9, 1.3, 1.0, 1.2]),
            ("once", &[2.0]),
            ("twice", &[2.0, 2.1, 2.05]),
            ("new", &[1.0, 1.0]),
        ]);
        b["environment"]["machine"]["processor"] = "B".into();
        b["backends"][0]["driver"] = "1 thread".into();
        b["backends"].as_array_mut().unwrap().push(json!({"backend": "gpu", "threads": 1}));
        b["limits"][0]["read_gb_per_second"] = 10.0.into();
        let by = |tuning: Value| json!([{"backend": "gpu", "tuning": tuning}]);
        a["environment"]["machine"]["adapters"] = by(json!({"table": "built-in"}));
        b["environment"]["machine"]["adapters"] = by(json!({"table": "k.json", "sha256": "0123456789abcdef"}));
        let c = against(&a, &b).unwrap();
        let changes: Vec<_> = c.rows.iter().map(|r| (r.name.as_str(), r.change)).collect();
        use BenchChange::*;
        let expected = [
            ("steady", Faster),
            ("noisy", Same),
            ("once", Unknown),
            ("twice", Unknown),
            ("gone", Missing),
            ("worse", Slower),
            ("new", Missing),
        ];
        assert_eq!(changes, expected);
        let ratio = c.rows[0].test.unwrap().speed_ratio;
        assert!((1.99..2.03).contains(&ratio), "{ratio}");
        let backends = "backends: cpu:avx2, cpu:avx2 and gpu (1 thread)";
        let kernels = "kernels: gpu by built-in, gpu by k.json 0123456789ab";
        assert_eq!(c.differences, ["processor: A, B", kernels, backends, "cpu:avx2 driver: 2 threads, 1 thread"]);
        assert_eq!((c.limits.len(), c.limits[0].values), (2, [20.0, 10.0]));
        assert_eq!((c.count(Missing), c.count(Slower)), (2, 1));
    }

    #[test]
    fn equal_documents_have_no_change() {
        let a = document(&[("x", &[1.0, 1.1, 0.9])]);
        let c = against(&a, &a).unwrap();
        assert!(c.rows[0].change == BenchChange::Same && c.differences.is_empty() && c.agrees());
    }

    #[test]
    fn only_rows_that_were_compared_agree_and_small_changes_do_not_count() {
        let a = document(&[("x", &[1.0, 1.0001, 0.9999])]);
        let times = |x: f64| document(&[("x", &[x, x * 1.0001, x * 0.9999])]);
        let change = |b: &Value| {
            let c = against(&a, b).unwrap();
            (c.rows[0].change, c.agrees())
        };
        assert_eq!(change(&times(1.01)), (BenchChange::Same, true), "more than noise, and less than counts");
        assert_eq!(change(&times(1.03)), (BenchChange::Slower, false));
        assert_eq!(change(&times(0.97)), (BenchChange::Faster, true));
        assert_eq!(change(&document(&[("x", &[1.0])])), (BenchChange::Unknown, false));
        assert_eq!(change(&document(&[("y", &[1.0, 1.0])])), (BenchChange::Missing, false));
        assert!(!against(&document(&[]), &document(&[])).unwrap().agrees(), "nothing was compared");
    }

    #[test]
    fn what_is_no_document_of_bench_is_refused_by_name() {
        let good = document(&[("x", &[1.0])]);
        let wrong = |edit: &dyn Fn(&mut Value)| {
            let mut bad = good.clone();
            edit(&mut bad);
            against(&good, &bad).unwrap_err().to_string()
        };
        assert!(wrong(&|v| v["schema"] = "twinscope.diff/1".into()).contains("found schema \"twinscope.diff/1\""));
        assert!(wrong(&|v| v["schema"] = "twinscope.bench.ops/1".into()).contains("of one form"));
        assert!(wrong(&|v| v["results"] = 3.into()).contains("expected a list of results"));
        assert!(wrong(&|v| v["results"][0]["seconds"] = json!([-1.0])).contains("not negative"));
        assert!(wrong(&|v| v["results"][0]["name"] = json!(null)).contains("results[0]: expected a name"));
        assert!(wrong(&|v| v["results"] = json!([v["results"][0], v["results"][0]])).contains("is there twice"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        std::fs::write(&path, "no").unwrap();
        assert_eq!(compare(&path, &path, 0.01, 0.02).unwrap_err().exit_code(), 2);
        assert!(compare(&dir.path().join("none"), &path, 0.01, 0.02).is_err());
    }
}
