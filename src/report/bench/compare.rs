//! Two results of `bench` held against each other.

use serde::Serialize;

use super::super::format::{percent, three, time};
use super::super::table::{lines, table};
use crate::bench::compare::{BenchChange, BenchComparison, LEAST_SAMPLES};
use crate::text::{count, printable};

/// The document of schema `twinscope.bench.compare/1`.
#[derive(Serialize)]
pub struct BenchComparisonDocument<'a> {
    schema: &'static str,
    verdict: &'static str,
    files: [&'a str; 2],
    #[serde(flatten)]
    comparison: &'a BenchComparison,
}

impl<'a> BenchComparisonDocument<'a> {
    /// Of the comparison of two files.
    pub fn new(comparison: &'a BenchComparison, files: [&'a str; 2]) -> Self {
        let verdict = if comparison.agrees() { "agree" } else { "diverged" };
        Self { schema: "twinscope.bench.compare/1", verdict, files, comparison }
    }
}

/// Ten times as fast: an interval that ends beyond says no more than that little is known.
const WIDEST: f64 = 10.0;

/// A ratio of speeds as a change: `+12.3 %`.
fn change(ratio: f64) -> String {
    format!("{:+.1} %", (ratio - 1.0) * 100.0)
}

/// How much faster the second is by its mean, where there are too few samples for more.
fn ratio_of_means(seconds: [Option<f64>; 2]) -> Option<f64> {
    let [a, b] = [seconds[0]?, seconds[1]?];
    (b > 0.0).then_some(a / b)
}

/// For people: what differs between the two runs, then every row, then the verdict.
pub fn text(comparison: &BenchComparison, files: [&str; 2]) -> String {
    let mut out = format!("A  {}\nB  {}\n", printable(files[0]), printable(files[1]));
    for difference in &comparison.differences {
        out += &format!("differs  {}\n", printable(difference));
    }
    let mut rows = table(&["limit", "A", "B", "B / A"], &[1, 2, 3]);
    for limit in &comparison.limits {
        let [a, b] = limit.values;
        rows.add_row([printable(&limit.name), three(a), three(b), format!("{:.3}", b / a)]);
    }
    if !comparison.limits.is_empty() {
        out += &format!("\n{}", lines(&rows));
    }
    let mut rows = table(&["", "A", "B", "speed of B", "interval", "p", "of limit", ""], &[1, 2, 3, 4, 5, 6]);
    for row in &comparison.rows {
        let seconds = row.seconds.map(|s| s.map_or("-".into(), time));
        let [a, b] = row.share_of_limit.map(|s| s.map_or("-".into(), percent));
        let share = if row.share_of_limit == [None; 2] { String::new() } else { format!("{a} → {b}") };
        let test = row.test.as_ref();
        let said = match row.change {
            BenchChange::Faster => "faster",
            BenchChange::Slower => "SLOWER",
            BenchChange::Same => "same, within noise",
            BenchChange::Unknown => "too few repetitions to tell noise",
            BenchChange::Missing if row.seconds[0].is_none() => "not compared: only in B",
            BenchChange::Missing => "not compared: only in A",
        };
        let [a_time, b_time] = seconds;
        rows.add_row([
            printable(&row.name),
            a_time,
            b_time,
            test.map(|t| t.speed_ratio).or(ratio_of_means(row.seconds)).map_or(String::new(), change),
            test.map_or(String::new(), |t| match t.high {
                high if high > WIDEST => format!("{} to over {:+.0} %", change(t.low), (WIDEST - 1.0) * 100.0),
                high => format!("{:+.1} to {}", (t.low - 1.0) * 100.0, change(high)),
            }),
            test.map_or(String::new(), |t| if t.p < 1e-4 { "< 0.0001".into() } else { format!("{:.4}", t.p) }),
            share,
            said.into(),
        ]);
    }
    out += &format!("\n{}", lines(&rows));
    let slower = comparison.count(BenchChange::Slower);
    let (few, missing) = (comparison.count(BenchChange::Unknown), comparison.count(BenchChange::Missing));
    let verdict = match (slower, few + missing) {
        _ if comparison.rows.is_empty() => "NOTHING COMPARED  neither file has a result".into(),
        (0, 0) => format!("NOT SLOWER  {} compared", count(comparison.rows.len(), "row")),
        (0, n) => {
            let few = match few {
                0 => String::new(),
                n => format!(
                    " ({n} of them with fewer than the {LEAST_SAMPLES} repetitions a side, bench -r, that tell noise)"
                ),
            };
            format!("NOT COMPARED  {}{few}: that is no agreement", count(n, "row"))
        }
        (n, _) => format!("SLOWER  {} of {}", n, count(comparison.rows.len(), "row")),
    };
    let differs = if comparison.differences.is_empty() { "" } else { "; the runs differ in more, as is said above" };
    out += &format!(
        "\n{verdict}; {} faster{differs}; a change counts if it is over {} and chance makes one like it in a comparison in {}\n",
        comparison.count(BenchChange::Faster),
        percent(comparison.min_change),
        three(1.0 / comparison.alpha),
    );
    out
}
