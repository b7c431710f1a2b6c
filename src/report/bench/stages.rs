//! Where the time goes: a chart by stage, by layer and by kernel, and what is spent around the kernels.

use serde::Serialize;
use serde_json::{Value, json};

use super::super::format::{cut, percent, time};
use super::super::table::{lines, table};
use super::{AchievedSpeed, BenchDocument, BenchRow, bar, on_threads};
use crate::bench::limits::TimeBound;
use crate::bench::stages::StagesResult;
use crate::bench::stats;
use crate::bench::subject::BenchSubject;
use crate::bench::work::Work;
use crate::op::{STAGES, Stage};
use crate::text::count;

/// Columns of a bar.
const BAR: usize = 20;
/// Columns of a list of kernels.
const KERNELS: usize = 40;

/// What a row is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TimedPart {
    /// The test, run without timing its parts.
    Test,
    /// A stage of a layer.
    Stage,
    /// A kernel, at all stages together.
    Kernel,
}

/// A part of a test.
#[derive(Clone, Debug, Serialize)]
pub struct StageRow {
    /// Tells it from every other row.
    pub name: String,
    /// What it is of.
    pub part: TimedPart,
    /// The backend.
    pub backend: String,
    /// Of a CPU.
    pub threads: Option<usize>,
    /// As of a [`super::rates::RateRow`].
    pub test: String,
    /// Of a stage; `None` outside the layers.
    pub layer: Option<u32>,
    /// Of a stage.
    pub stage: Option<&'static str>,
    /// Stages that its kernels make besides.
    pub with: Vec<&'static str>,
    /// The kernels that make it.
    pub kernels: Vec<String>,
    /// Dispatches of a repetition; operations of a CPU.
    pub dispatches: usize,
    /// Of each repetition.
    pub seconds: Vec<f64>,
    /// Of all kernels' time.
    pub share_of_time: f64,
    /// Of a repetition.
    pub bytes: u64,
    /// See `bytes`.
    pub flops: u64,
    /// What it comes to.
    #[serde(flatten)]
    pub speed: AchievedSpeed,
    /// For the sums that the chart makes.
    #[serde(skip)]
    bound: Option<TimeBound>,
    #[serde(skip)]
    place: Option<Stage>,
}

impl StageRow {
    /// The rows of a test: itself, its stages in order of execution, its kernels, the longest first.
    pub fn all(subject: &BenchSubject, result: &StagesResult) -> Vec<Self> {
        let test = result.test.to_string();
        let prefix = format!("{} · {test}", on_threads(&subject.info.backend, subject.threads));
        let of_kernels = result.around.kernels;
        let part = |part, name: String, seconds: &[f64], work: Work, bound: Option<TimeBound>, dispatches| {
            let mean = stats::mean(seconds);
            Self {
                name,
                part,
                backend: subject.info.backend.clone(),
                threads: subject.threads,
                test: test.clone(),
                layer: None,
                stage: None,
                with: Vec::new(),
                kernels: Vec::new(),
                dispatches,
                seconds: seconds.to_vec(),
                share_of_time: if of_kernels > 0.0 { mean / of_kernels } else { 0.0 },
                bytes: work.bytes,
                flops: work.flops,
                speed: AchievedSpeed::new(work, mean, bound),
                bound,
                place: None,
            }
        };
        let work: Work = result.stages.iter().map(|s| s.work).sum();
        let bounds: Vec<TimeBound> = result.stages.iter().filter_map(|s| s.bound).collect();
        let bound = (!bounds.is_empty()).then(|| TimeBound::mean(&bounds, 1));
        let dispatches = result.stages.iter().map(|s| s.dispatches).sum();
        let mut whole = part(TimedPart::Test, prefix.clone(), &result.untimed, work, bound, dispatches);
        whole.share_of_time = 1.0;
        let mut rows = vec![whole];
        for s in &result.stages {
            let name = format!("{prefix} · {}", s.site);
            let mut row = part(TimedPart::Stage, name, &s.seconds, s.work, s.bound, s.dispatches);
            row.layer = s.site.layer;
            row.stage = Some(s.site.stage.name());
            row.place = Some(s.site.stage);
            row.with = s.with.iter().map(|stage| stage.name()).collect();
            row.kernels = s.kernels.iter().map(|k| k.to_string()).collect();
            rows.push(row);
        }
        for k in &result.kernels {
            let name = format!("{prefix} · kernel {}", k.kernel);
            let mut row = part(TimedPart::Kernel, name, &k.seconds, k.work, k.bound, k.dispatches);
            row.kernels = vec![k.kernel.to_string()];
            rows.push(row);
        }
        rows
    }

    fn mean(&self) -> f64 {
        stats::mean(&self.seconds)
    }
}

/// What is known of a test beside its rows.
pub fn test_of(subject: &BenchSubject, result: &StagesResult) -> Value {
    let around = &result.around;
    // What dispatches and submissions cost by themselves, whatever they do.
    let overhead =
        result.launch.zip(around.dispatches.zip(around.submissions)).map(|(launch, (dispatches, submissions))| {
            json!({
                "dispatches_seconds": launch.dispatch * dispatches,
                "submissions_seconds": launch.submission * submissions,
            })
        });
    json!({
        "backend": subject.info.backend,
        "threads": subject.threads,
        "test": result.test.to_string(),
        "clock": result.clock,
        "untimed_seconds": result.untimed,
        "timed_seconds": result.timed,
        "around_kernels": around,
        "launch_overhead": overhead,
    })
}

impl BenchRow for StageRow {
    const SCHEMA: &'static str = "twinscope.bench.stages/1";
    const COLUMNS: &'static [&'static str] =
        &["backend", "threads", "test", "part", "dispatches", "time", "of kernels", "GB/s", "GFLOP/s", "of limit"];
    const RIGHT: &'static [usize] = &[1, 2, 4, 5, 6, 7, 8, 9];

    fn cells(&self, _: &BenchDocument<Self>) -> Vec<String> {
        let part = match (self.layer, self.stage) {
            (Some(layer), Some(stage)) => format!("layer {layer} · {stage}"),
            (None, Some(stage)) => stage.into(),
            _ if self.part == TimedPart::Kernel => format!("kernel {}", self.kernels.join(" ")),
            _ => "whole test".into(),
        };
        let [gb, gflop, share] = self.speed.cells();
        vec![
            self.backend.clone(),
            self.threads.map_or(String::new(), |n| n.to_string()),
            self.test.clone(),
            part,
            self.dispatches.to_string(),
            time(self.mean()),
            percent(self.share_of_time),
            gb,
            gflop,
            share,
        ]
    }

    fn text(document: &BenchDocument<Self>) -> String {
        let tests = document.results.iter().filter(|row| row.part == TimedPart::Test);
        tests.zip(&document.tests).map(|(test, more)| chart(document, test, more)).collect::<Vec<_>>().join("\n")
    }
}

/// One test: its stages over all layers, its layers, its kernels, what is around them.
fn chart(document: &BenchDocument<StageRow>, test: &StageRow, more: &Value) -> String {
    let of = |part| {
        let same = |r: &&StageRow| (&r.backend, r.threads, &r.test) == (&test.backend, test.threads, &test.test);
        document.results.iter().filter(same).filter(move |r| r.part == part).collect::<Vec<_>>()
    };
    let number = |at: &str| more.pointer(at).and_then(Value::as_f64);
    let timed: Vec<f64> = more["timed_seconds"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let (untimed, timed) = (test.mean(), stats::mean(&timed));
    let clock = match serde_json::from_value::<String>(more["clock"].clone()).as_deref() {
        Ok("timestamps") => "the adapter's timestamps",
        Ok("waits") => "the host's clock, waiting for every operation: the adapter has no timestamps",
        _ => "the host's clock",
    };
    let mut out = format!(
        "{} · {} · {} a repetition; {} with each kernel timed ({:+.1} %), by {clock}\n",
        on_threads(&test.backend, test.threads),
        test.test,
        time(untimed),
        time(timed),
        (timed / untimed - 1.0) * 100.0
    );

    // By stage, over all layers.
    let stages = of(TimedPart::Stage);
    let total: f64 = stages.iter().map(|r| r.mean()).sum();
    let mut rows =
        table(&["stage", "", "time", "share", "", "GB/s", "GFLOP/s", "of limit", "kernels"], &[2, 3, 5, 6, 7]);
    for info in STAGES {
        let here: Vec<_> = stages.iter().filter(|r| r.place == Some(info.stage)).collect();
        if here.is_empty() {
            continue;
        }
        let seconds: f64 = here.iter().map(|r| r.mean()).sum();
        let work = here.iter().map(|r| Work { bytes: r.bytes, flops: r.flops }).sum();
        let bounds: Vec<TimeBound> = here.iter().filter_map(|r| r.bound).collect();
        let bound = (!bounds.is_empty()).then(|| TimeBound::mean(&bounds, 1));
        let [gb, gflop, share] = AchievedSpeed::new(work, seconds, bound).cells();
        let names = |all: &mut dyn Iterator<Item = &str>| {
            let mut names: Vec<&str> = Vec::new();
            all.for_each(|name| {
                if !names.contains(&name) {
                    names.push(name);
                }
            });
            names.join(" ")
        };
        let with = names(&mut here.iter().flat_map(|r| r.with.iter().copied()));
        let kernels = names(&mut here.iter().flat_map(|r| r.kernels.iter().map(String::as_str)));
        let kernels = cut(&kernels, KERNELS);
        let of_all = if total > 0.0 { seconds / total } else { 0.0 };
        rows.add_row([
            info.name.to_string(),
            if with.is_empty() { String::new() } else { format!("with {}", cut(&with, KERNELS)) },
            time(seconds),
            percent(of_all),
            bar(of_all, BAR),
            gb,
            gflop,
            share,
            kernels,
        ]);
    }
    out += &lines(&rows);

    // By layer: a bar is long where a layer is the slowest.
    let mut layers: Vec<(String, f64)> = Vec::new();
    for row in &stages {
        let name = row.layer.map_or("outside".into(), |n| format!("layer {n}"));
        match layers.iter_mut().find(|(other, _)| *other == name) {
            Some((_, seconds)) => *seconds += row.mean(),
            None => layers.push((name, row.mean())),
        }
    }
    // What is outside the layers comes first in the order of execution and belongs last here.
    layers.sort_by_key(|(name, _)| name == "outside");
    let most = layers.iter().map(|l| l.1).fold(0.0, f64::max);
    let mut rows = table(&["layer", "time", "share", ""], &[1, 2]);
    for (name, seconds) in layers {
        let share = |of: f64| if of > 0.0 { seconds / of } else { 0.0 };
        rows.add_row([name, time(seconds), percent(share(total)), bar(share(most), BAR)]);
    }
    out += &format!("\n{}", lines(&rows));

    let mut rows = table(&["kernel", "runs", "time", "share", "", "GB/s", "GFLOP/s", "of limit"], &[1, 2, 3, 5, 6, 7]);
    for row in of(TimedPart::Kernel) {
        let [gb, gflop, share] = row.speed.cells();
        rows.add_row([
            cut(&row.kernels.join(" "), KERNELS),
            row.dispatches.to_string(),
            time(row.mean()),
            percent(row.share_of_time),
            bar(row.share_of_time, BAR),
            gb,
            gflop,
            share,
        ]);
    }
    out += &format!("\n{}", lines(&rows));

    // What is spent beside the kernels.
    let mut rows = table(&["around the kernels", "time", "of the timed run"], &[1, 2]);
    let share = |seconds: f64| if timed > 0.0 { percent(seconds / timed) } else { String::new() };
    let mut line = |name: &str, seconds: Option<f64>| {
        if let Some(seconds) = seconds {
            rows.add_row([name.to_string(), time(seconds), share(seconds)]);
        }
    };
    line("kernels", number("/around_kernels/kernels"));
    line("between one kernel and the next", number("/around_kernels/between"));
    line("before the first and after the last", number("/around_kernels/outside"));
    line("recording on the host, beside the device's work", number("/around_kernels/recording"));
    out += &format!("\n{}", lines(&rows));
    if let (Some(dispatches), Some(submissions)) =
        (number("/around_kernels/dispatches"), number("/around_kernels/submissions"))
    {
        out += &format!(
            " {} and {} a repetition",
            count(dispatches.round() as usize, "dispatch").replace("dispatchs", "dispatches"),
            count(submissions.round() as usize, "submission")
        );
        if let (Some(d), Some(s)) =
            (number("/launch_overhead/dispatches_seconds"), number("/launch_overhead/submissions_seconds"))
        {
            out += &format!(
                ", which by themselves cost {} and {}: {} and {} of the untimed run",
                time(d),
                time(s),
                percent(d / untimed),
                percent(s / untimed)
            );
        }
        out += "\n";
    }
    out
}
