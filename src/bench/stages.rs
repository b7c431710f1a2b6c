//! Where the time of a run goes: by stage, by layer, by kernel, and what is spent around them.
//!
//! Design:
//! - On a CPU an operation is done when its call returns, so the wall clock around it is its time. On a GPU the times
//!   are the adapter's timestamps around each dispatch; an adapter without them is waited for after each operation, and
//!   the report says so.
//! - Timing costs time. So the test is also run without it, and both walls are told: the first is what the stages add
//!   up to, the second what a user sees.
//! - A kernel that makes several stages at once stands at the stage whose operation recorded it. The work of stages
//!   without a dispatch of their own counts at the next that has one.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use serde::Serialize;

use super::limits::{MachineLimit, TimeBound};
use super::subject::BenchSubject;
use super::throughput::{BenchTest, Rerun};
use super::work::{CountedOp, Work};
use super::{Progress, stats};
use crate::backend::gpu::{KernelTime, LaunchCosts};
use crate::backend::{Backend, FusedKernel, pass_on};
use crate::error::Result;
use crate::model::Model;
use crate::op::{At, Op, Site, Stage};

/// What tells the time of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageClock {
    /// The host's clock around an operation that is done when it returns.
    Host,
    /// The adapter's timestamps around a dispatch.
    Timestamps,
    /// The host's clock around an operation and a wait for the device: the adapter has no timestamps.
    Waits,
}

/// A backend that notes when each operation of another began and ended on the host, and changes nothing.
struct Timed<'a, B: Backend> {
    inner: &'a mut B,
    /// Whether an operation ends when the device has done it.
    wait: bool,
    times: Vec<[Instant; 2]>,
}

impl<B: Backend> Backend for Timed<'_, B> {
    pass_on!(inner: B);

    fn run(&mut self, at: At, op: &Op<'_, B::Tensor>) -> Result<B::Tensor> {
        let began = Instant::now();
        let result = self.inner.run(at, op)?;
        if self.wait {
            self.inner.sync()?;
        }
        self.times.push([began, Instant::now()]);
        Ok(result)
    }
}

/// A stage of a layer, over one repetition of the test.
#[derive(Clone, Debug)]
pub struct StageTime {
    /// Where.
    pub site: Site,
    /// The stages before it, that its kernels make as well.
    pub with: Vec<Stage>,
    /// The kernels that made it, in order of their names.
    pub kernels: Vec<Rc<str>>,
    /// Seconds of each timed repetition.
    pub seconds: Vec<f64>,
    /// Dispatches, or operations of a CPU.
    pub dispatches: usize,
    /// What it reads and computes.
    pub work: Work,
    /// The least time that it takes.
    pub bound: Option<TimeBound>,
}

/// A kernel, over one repetition of the test.
#[derive(Clone, Debug)]
pub struct KernelTotal {
    /// `kernel` or `kernel/TYPE`; on a CPU the operation.
    pub kernel: Rc<str>,
    /// As of a [`StageTime`].
    pub seconds: Vec<f64>,
    /// As of a [`StageTime`].
    pub dispatches: usize,
    /// As of a [`StageTime`].
    pub work: Work,
    /// As of a [`StageTime`].
    pub bound: Option<TimeBound>,
}

/// What is spent around the kernels, in seconds of one repetition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AroundKernels {
    /// The sum of the kernels' times.
    pub kernels: f64,
    /// Between one kernel and the next: on a GPU, while it had begun and not ended a call; on a CPU, the forward pass
    /// itself.
    pub between: f64,
    /// The rest of the timed wall: until the first kernel begins, and from the last until the logits are on the host.
    pub outside: f64,
    /// On a GPU, the host's time to record the operations, which runs beside the device's.
    pub recording: Option<f64>,
    /// Dispatches and submissions of a repetition that is not timed by stages.
    pub dispatches: Option<f64>,
    /// See `dispatches`.
    pub submissions: Option<f64>,
}

/// A piece of a timeline, in seconds since the first call of the repetition that it shows.
#[derive(Clone, Debug)]
pub struct TimelineEvent {
    /// The kernel or the operation.
    pub name: Rc<str>,
    /// Where it stands.
    pub site: Site,
    /// On the device rather than the host.
    pub device: bool,
    /// Begin and end.
    pub span: [f64; 2],
}

/// What a test came to, taken apart.
#[derive(Clone, Debug)]
pub struct StagesResult {
    /// The test.
    pub test: BenchTest,
    /// What told the time.
    pub clock: StageClock,
    /// Seconds of each repetition without timing, and with it.
    pub untimed: Vec<f64>,
    /// See `untimed`.
    pub timed: Vec<f64>,
    /// In order of execution.
    pub stages: Vec<StageTime>,
    /// The longest first.
    pub kernels: Vec<KernelTotal>,
    /// What is spent beside the kernels.
    pub around: AroundKernels,
    /// What a dispatch and a submission cost by themselves.
    pub launch: Option<LaunchCosts>,
    /// The first calls of the first repetition that is timed by stages.
    pub timeline: Vec<TimelineEvent>,
    /// Whether the timeline ends before the test does.
    pub timeline_cut: bool,
}

/// Events that a timeline keeps: what a viewer still opens.
const MOST_EVENTS: usize = 100_000;

/// A kernel's run, and what of the work it stands for.
struct KernelRun {
    site: Site,
    kernel: Rc<str>,
    seconds: f64,
    work: Work,
    bound: Option<TimeBound>,
}

/// Sums over the repetitions.
#[derive(Default)]
struct Tally {
    /// Of each repetition.
    seconds: Vec<f64>,
    dispatches: usize,
    work: Work,
    bounds: Vec<TimeBound>,
    kernels: Vec<Rc<str>>,
    with: Vec<Stage>,
}

impl Tally {
    fn add(&mut self, run: &KernelRun, repetition: usize) {
        self.at_least(repetition + 1);
        self.seconds[repetition] += run.seconds;
        self.dispatches += 1;
        self.work += run.work;
        self.bounds.extend(run.bound);
        if !self.kernels.contains(&run.kernel) {
            self.kernels.push(run.kernel.clone());
        }
    }

    /// Zeros for the repetitions in which there was none.
    fn at_least(&mut self, repetitions: usize) {
        self.seconds.resize(self.seconds.len().max(repetitions), 0.0);
    }

    /// The mean over `repeat` repetitions.
    fn bound(&self, limit: Option<&MachineLimit>, repeat: usize) -> Option<TimeBound> {
        limit.map(|_| TimeBound::mean(&self.bounds, repeat))
    }

    fn work(&self, repeat: usize) -> Work {
        Work { bytes: self.work.bytes / repeat as u64, flops: self.work.flops / repeat as u64 }
    }
}

/// Runs `test` as [`super::throughput::throughput`] does, then `repeat` times more with every kernel timed.
///
/// # Errors
/// As there.
pub fn stages(
    subject: &mut BenchSubject,
    model: &Model,
    test: BenchTest,
    chunk: usize,
    repeat: usize,
    progress: Progress<'_>,
) -> Result<StagesResult> {
    let limit = subject.limit().copied();
    let name = format!("{} {test} by stages", subject.info.backend);
    let timer = subject.timer.clone();
    let clock = match &timer {
        None => StageClock::Host,
        Some(timer) if timer.available() => StageClock::Timestamps,
        Some(_) => StageClock::Waits,
    };
    let backend = &mut subject.backend;
    let steps = 2 * repeat + 1;
    progress(&name, 0, steps);
    let mut rerun = Rerun::new(backend, model, test, chunk)?;
    let counted = rerun.count(backend)?;
    let before = timer.as_ref().map(|t| t.counts());
    let mut untimed = Vec::new();
    for n in 0..repeat {
        progress(&name, n + 1, steps);
        untimed.push(rerun.time(backend)?);
    }
    let counts = timer.as_ref().zip(before).map(|(timer, before)| {
        let after = timer.counts();
        [0, 1].map(|i| (after[i] - before[i]) as f64 / repeat as f64)
    });

    let mut names = KernelNames::default();
    let mut by_site: BTreeMap<(u8, Option<u32>, Stage), Tally> = BTreeMap::new();
    let mut by_kernel: BTreeMap<Rc<str>, Tally> = BTreeMap::new();
    let mut around = AroundKernels::default();
    let (mut timed, mut timeline, mut timeline_cut) = (Vec::new(), Vec::new(), false);
    for repetition in 0..repeat {
        progress(&name, repeat + repetition + 1, steps);
        rerun.rewind(backend)?;
        let origin = Instant::now();
        let mut wall = 0.0;
        for (n, ops) in counted.iter().enumerate() {
            if let Some(timer) = &timer {
                timer.take();
                timer.switch(true);
            }
            let began = Instant::now();
            let mut through = Timed { inner: &mut *backend, wait: clock == StageClock::Waits, times: Vec::new() };
            let called = rerun.call(&mut through, n);
            let times = std::mem::take(&mut through.times);
            let ended = called.and_then(|()| backend.sync()).map(|()| Instant::now());
            if let Some(timer) = &timer {
                timer.switch(false);
            }
            let ended = ended?;
            wall += (ended - began).as_secs_f64();

            let on_host = times.iter().map(|[a, b]| (*b - *a).as_secs_f64()).sum::<f64>();
            let (runs, fused, busy, span);
            let since = |t: Instant| (t - origin).as_secs_f64();
            let device = match &timer {
                Some(timer) if clock == StageClock::Timestamps => timer.take(),
                _ => Vec::new(),
            };
            if clock == StageClock::Timestamps {
                (runs, fused) = of_device(&device, ops, limit.as_ref());
                busy = runs.iter().map(|r| r.seconds).sum::<f64>();
                let first = device.iter().map(|t| t.begin).fold(f64::INFINITY, f64::min);
                let last = device.iter().map(|t| t.end).fold(f64::NEG_INFINITY, f64::max);
                span = (last - first).max(0.0);
                around.recording = Some(around.recording.unwrap_or_default() + on_host);
                // The two clocks have nothing in common but that the last kernel ended before the host knew.
                let shift = (since(ended) - last).max(since(began) - first);
                if repetition == 0 {
                    let events = device.iter().map(|t| TimelineEvent {
                        name: t.kernel.clone(),
                        site: t.site,
                        device: true,
                        span: [t.begin + shift, t.end + shift],
                    });
                    timeline.extend(events);
                }
            } else {
                // Who waits for each operation leaves none for a kernel of several.
                let of_several = if clock == StageClock::Host { backend.fused() } else { &[] };
                (runs, fused) = of_host(&times, ops, limit.as_ref(), of_several, &mut names);
                busy = on_host;
                span = match (times.first(), times.last()) {
                    (Some([first, _]), Some([_, last])) => (*last - *first).as_secs_f64(),
                    _ => 0.0,
                };
            }
            if repetition == 0 {
                let events = times.iter().zip(ops).map(|([a, b], op)| TimelineEvent {
                    name: names.of(op),
                    site: op.at.site,
                    device: false,
                    span: [since(*a), since(*b)],
                });
                timeline.extend(events);
                if timeline.len() > MOST_EVENTS {
                    timeline.truncate(MOST_EVENTS);
                    timeline_cut = true;
                }
            }
            around.kernels += busy;
            around.between += (span - busy).max(0.0);
            for run in &runs {
                by_site.entry(place(run.site)).or_default().add(run, repetition);
                by_kernel.entry(run.kernel.clone()).or_default().add(run, repetition);
            }
            for (site, stage) in fused {
                let with = &mut by_site.entry(place(site)).or_default().with;
                if !with.contains(&stage) {
                    with.push(stage);
                }
            }
        }
        timed.push(wall);
    }

    let share = |x: f64| x / repeat as f64;
    let [dispatches, submissions] = counts.map_or([None; 2], |counts| counts.map(Some));
    let around = AroundKernels {
        kernels: share(around.kernels),
        between: share(around.between),
        outside: (stats::mean(&timed) - share(around.kernels + around.between)).max(0.0),
        recording: around.recording.map(share),
        dispatches,
        submissions,
    };
    let stages = by_site.into_iter().map(|((_, layer, stage), mut tally)| {
        tally.kernels.sort();
        tally.at_least(repeat);
        StageTime {
            site: Site { layer, stage },
            dispatches: tally.dispatches / repeat,
            work: tally.work(repeat),
            bound: tally.bound(limit.as_ref(), repeat),
            seconds: tally.seconds,
            kernels: tally.kernels,
            with: tally.with,
        }
    });
    let mut kernels: Vec<KernelTotal> = by_kernel
        .into_iter()
        .map(|(kernel, mut tally)| {
            tally.at_least(repeat);
            KernelTotal {
                kernel,
                dispatches: tally.dispatches / repeat,
                work: tally.work(repeat),
                bound: tally.bound(limit.as_ref(), repeat),
                seconds: tally.seconds,
            }
        })
        .collect();
    kernels.sort_by(|a, b| {
        let longest_first = stats::mean(&b.seconds).total_cmp(&stats::mean(&a.seconds));
        longest_first.then_with(|| a.kernel.cmp(&b.kernel))
    });
    let (stages, launch) = (stages.collect(), subject.launch);
    Ok(StagesResult { test, clock, untimed, timed, stages, kernels, around, launch, timeline, timeline_cut })
}

/// A site's place in the order of execution: what comes before the layers, the layers, what comes after.
fn place(site: Site) -> (u8, Option<u32>, Stage) {
    let part = match site.layer {
        Some(_) => 1,
        None if site.stage == Stage::Embedding => 0,
        None => 2,
    };
    (part, site.layer, site.stage)
}

/// The names of a CPU's kernels: the operation, and the type of the weight that it reads.
#[derive(Default)]
struct KernelNames(BTreeMap<String, Rc<str>>);

impl KernelNames {
    fn of(&mut self, op: &CountedOp) -> Rc<str> {
        let name = match op.ty {
            Some(ty) => format!("{}/{ty}", op.op.name()),
            None => op.op.name().to_string(),
        };
        self.0.entry(name.clone()).or_insert_with(|| name.into()).clone()
    }
}

/// An operation is a kernel's run, but those whose results a kernel of several passes on without writing them: their time and work are its own. Also
/// returns which stages each site so makes besides its own.
fn of_host(
    times: &[[Instant; 2]],
    ops: &[CountedOp],
    limit: Option<&MachineLimit>,
    fused: &[FusedKernel],
    names: &mut KernelNames,
) -> (Vec<KernelRun>, Vec<(Site, Stage)>) {
    let hiding = |op: &CountedOp| fused.iter().find(|kernel| kernel.hides.contains(&op.at.site.stage));
    let (mut runs, mut with) = (Vec::new(), Vec::new());
    let (mut waiting, mut waited): (Vec<&CountedOp>, f64) = (Vec::new(), 0.0);
    for ([began, ended], op) in times.iter().zip(ops) {
        let kernel = waiting.first().and_then(|first| hiding(first));
        waiting.push(op);
        waited += (*ended - *began).as_secs_f64();
        if hiding(op).is_some() {
            continue;
        }
        let mut run = KernelRun {
            site: op.at.site,
            kernel: kernel.map_or_else(|| names.of(op), |kernel| kernel.name.into()),
            seconds: std::mem::take(&mut waited),
            work: Work::default(),
            bound: limit.map(|_| TimeBound::default()),
        };
        settle(&mut run, &mut waiting, limit, &mut with);
        runs.push(run);
    }
    (runs, with)
}

/// A dispatch is a kernel's run. The work of an operation goes to the kernel that takes longest of those at its site;
/// where there is none, to the next site that has one. Also returns which stages each site so makes besides its own.
fn of_device(
    times: &[KernelTime],
    ops: &[CountedOp],
    limit: Option<&MachineLimit>,
) -> (Vec<KernelRun>, Vec<(Site, Stage)>) {
    let mut runs: Vec<KernelRun> = times
        .iter()
        .map(|t| KernelRun {
            site: t.site,
            kernel: t.kernel.clone(),
            seconds: t.end - t.begin,
            work: Work::default(),
            bound: limit.map(|_| TimeBound::default()),
        })
        .collect();
    // By site: the run that stands for its work.
    let mut longest: BTreeMap<Site, usize> = BTreeMap::new();
    let mut sums: BTreeMap<(Site, &str), (f64, usize)> = BTreeMap::new();
    for (i, t) in times.iter().enumerate() {
        let (sum, _) = sums.entry((t.site, &t.kernel)).or_insert((0.0, i));
        *sum += t.end - t.begin;
    }
    for ((site, _), (sum, first)) in &sums {
        let best = longest.entry(*site).or_insert(*first);
        if *sum > sums[&(*site, &*times[*best].kernel)].0 {
            *best = *first;
        }
    }
    let (mut waiting, mut fused): (Vec<&CountedOp>, Vec<(Site, Stage)>) = (Vec::new(), Vec::new());
    let mut last = None;
    for op in ops {
        waiting.push(op);
        if let Some(&run) = longest.get(&op.at.site) {
            last = Some(run);
            settle(&mut runs[run], &mut waiting, limit, &mut fused);
        }
    }
    if let Some(run) = last {
        settle(&mut runs[run], &mut waiting, limit, &mut fused);
    }
    (runs, fused)
}

/// Gives the work of the operations that wait to a run, and notes their stages where they are not its own.
fn settle(
    run: &mut KernelRun,
    ops: &mut Vec<&CountedOp>,
    limit: Option<&MachineLimit>,
    fused: &mut Vec<(Site, Stage)>,
) {
    for op in ops.drain(..) {
        run.work += op.work;
        if let (Some(bound), Some(limit)) = (&mut run.bound, limit) {
            bound.add(limit, op.work);
        }
        if op.at.site != run.site {
            fused.push((run.site, op.at.site.stage));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::OpenOptions;
    use crate::op::OpKind;
    use crate::trace::recorded::sites;

    fn test(prompt: usize, decode: usize) -> BenchTest {
        BenchTest { prompt, decode, depth: 0 }
    }

    #[test]
    fn every_stage_of_every_layer_is_timed_on_the_cpu() {
        let model = Model::open(None).unwrap();
        let mut cpu = BenchSubject::open("cpu", OpenOptions { threads: Some(1), ..Default::default() }, true).unwrap();
        let result = stages(&mut cpu, &model, test(6, 0), 6, 2, &mut |_, _, _| ()).unwrap();
        assert_eq!(result.clock, StageClock::Host);
        assert_eq!((result.untimed.len(), result.timed.len()), (2, 2));
        let hidden = 2 * model.config.layers; // scores and probabilities, which attention makes for nobody
        assert_eq!(result.stages.len(), sites(&model).len() - hidden);
        assert_eq!(result.stages[0].site.stage, Stage::Embedding);
        assert_eq!(result.stages.last().unwrap().site.stage, Stage::Logits);
        // Everything is somewhere, once.
        let (stages, kernels): (f64, f64) = (
            result.stages.iter().map(|s| stats::mean(&s.seconds)).sum(),
            result.kernels.iter().map(|k| stats::mean(&k.seconds)).sum(),
        );
        assert!(
            result.stages.iter().all(|s| s.seconds.len() == 2) && result.kernels.iter().all(|k| k.seconds.len() == 2)
        );
        assert!((stages - kernels).abs() < 1e-9 && (stages - result.around.kernels).abs() < 1e-9);
        let wall = result.around.kernels + result.around.between + result.around.outside;
        assert!((wall - stats::mean(&result.timed)).abs() < 1e-9, "{:?}", result.around);
        let of = |stage| result.stages.iter().find(|s| s.site == Site::layer(1, stage)).unwrap();
        assert_eq!(of(Stage::AttnContext).kernels[..], ["attention".into()]);
        assert_eq!(of(Stage::AttnContext).with, [Stage::AttnScores, Stage::AttnProbs]);
        assert!(of(Stage::QProj).kernels[0].starts_with("mat_mul/Q") && of(Stage::QProj).work.flops > 0);
        // The cache is written at the sites of what is stored.
        assert_eq!((of(Stage::KRope).dispatches, of(Stage::QRope).dispatches), (2, 1));
        assert_eq!(result.timeline.len(), 1 + 4 * (24 + 2) + 3, "stages, two stores a layer, the last row");
        assert!(result.timeline.windows(2).all(|w| w[0].span[1] <= w[1].span[0]) && !result.timeline_cut);
    }

    #[test]
    fn every_stage_of_every_layer_is_timed_on_the_gpu() {
        let model = Model::open(None).unwrap();
        let mut gpu = BenchSubject::open("gpu", OpenOptions::default(), false).unwrap();
        let result = stages(&mut gpu, &model, test(0, 2), 1, 1, &mut |_, _, _| ()).unwrap();
        let made: usize = result.stages.iter().map(|s| 1 + s.with.len()).sum();
        assert!(made >= sites(&model).len(), "{made}");
        assert!(result.stages.iter().all(|s| s.seconds[0] >= 0.0 && s.bound.is_none()));
        if result.clock == StageClock::Timestamps {
            assert!(result.timeline.iter().any(|e| e.device) && result.timeline.iter().any(|e| !e.device));
            let timed = result.timeline.iter().filter(|e| e.device).count() as f64;
            assert_eq!(result.around.dispatches, Some(timed), "timing changes no dispatch");
            assert!(result.around.submissions.unwrap() >= 2.0, "a token's logits are waited for");
            assert!(result.around.recording.unwrap() > 0.0);
        }
        let mut cpu = BenchSubject::open("cpu", OpenOptions { threads: Some(1), ..Default::default() }, false).unwrap();
        let same = stages(&mut cpu, &model, test(0, 2), 1, 1, &mut |_, _, _| ()).unwrap();
        let work = |r: &StagesResult| r.stages.iter().map(|s| s.work).sum::<Work>();
        let (gpu, cpu) = (work(&result), work(&same));
        assert_eq!(gpu, cpu, "no work is lost on the way to kernels");
    }

    #[test]
    fn work_goes_to_the_longest_kernel_of_a_site_and_of_fused_stages_to_the_next() {
        let site = |stage| Site::layer(0, stage);
        let op = |stage, bytes| CountedOp {
            at: At::new(site(stage), 0),
            op: OpKind::MatMul,
            ty: None,
            work: Work { bytes, flops: 0 },
        };
        let time =
            |stage, kernel: &str, begin, end| KernelTime { kernel: kernel.into(), site: site(stage), begin, end };
        let ops = [op(Stage::ExpertGate, 1), op(Stage::ExpertUp, 2), op(Stage::ExpertAct, 4), op(Stage::ExpertDown, 8)];
        // Two short pieces are together longer than the plan beside them.
        let times = [
            time(Stage::ExpertAct, "plan", 0.0, 3.0),
            time(Stage::ExpertAct, "gate_up", 3.0, 5.0),
            time(Stage::ExpertAct, "gate_up", 5.0, 7.0),
        ];
        let limit = MachineLimit { threads: None, read: 1.0, arithmetic: 1.0 };
        let (runs, fused) = of_device(&times, &ops, Some(&limit));
        let work: Vec<u64> = runs.iter().map(|r| r.work.bytes).collect();
        assert_eq!(work, [0, 15, 0], "what follows the last kernel is its too");
        assert_eq!(runs[1].bound.unwrap().seconds(), 15.0);
        let act = site(Stage::ExpertAct);
        assert_eq!(fused, [(act, Stage::ExpertGate), (act, Stage::ExpertUp), (act, Stage::ExpertDown)]);
    }
}
