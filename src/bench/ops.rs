//! Single operations, over the types and shapes of a real model.
//!
//! Design:
//! - What is timed is listed in [`super::op_cases`].
//! - A sample is as many calls as fill a tenth of a second or so, and one wait for the device at their end.

use std::time::Instant;

use super::limits::{self, MachineLimit, TimeBound};
use super::op_cases::{Beside, OpBenchCase, per_slot};
use super::subject::BenchSubject;
use super::work::{Work, work};
use super::{Progress, stats};
use crate::backend::cases::{OpCase, OpShape, OpValues};
use crate::backend::gpu::GpuBackend;
use crate::backend::{Backend, BackendInfo, Need, OpenOptions, gpu_selector};
use crate::error::{Error, Result};
use crate::op::{At, GgmlType, HostTensor, Op, OpKind, Stage, Weight};
use crate::quant::random::Rng;

/// Samples of a case.
const SAMPLES: usize = 5;
/// The eps of every norm: that of the Qwen3 family.
const EPS: f32 = 1e-6;

/// How long an operation takes.
#[derive(Clone, Debug)]
pub struct OpBenchResult {
    /// `mat_mul Q4_K [2048, 4096] T=1`
    pub name: String,
    /// `mat_mul`…
    pub op: OpKind,
    /// The type of its weight.
    pub ty: Option<GgmlType>,
    /// What else tells it from others of its kind.
    pub shape: String,
    /// Positions of the call.
    pub tokens: usize,
    /// The stages that it makes in the model.
    pub stages: Vec<Stage>,
    /// Seconds of one call: a sample is the mean of many.
    pub seconds: Vec<f64>,
    /// Of one call.
    pub work: Work,
    /// The least time of one call.
    pub bound: Option<TimeBound>,
    /// Why it was not run; nothing else counts then.
    pub refused: Option<String>,
}

impl OpBenchResult {
    /// Of a case that is yet to be timed.
    pub(super) fn of(case: &OpBenchCase) -> Self {
        Self {
            name: case.name(),
            op: case.op,
            ty: case.ty(),
            shape: case.shape.clone(),
            tokens: case.tokens,
            stages: case.stages.clone(),
            seconds: Vec::new(),
            work: Work::default(),
            bound: None,
            refused: None,
        }
    }
}

/// What was measured of a backend's operations.
pub struct OpsResult {
    /// The backend.
    pub info: BackendInfo,
    /// Threads of a CPU.
    pub threads: Option<usize>,
    /// Its limits, as of a [`BenchSubject`].
    pub limits: Vec<MachineLimit>,
    /// One for each case.
    pub results: Vec<OpBenchResult>,
}

/// Times every case on the backend called `name`, each for about `seconds`.
///
/// # Errors
/// As [`BenchSubject::open`], and the backend's. A case that the backend has no kernel for is refused by name,
/// and is no error.
pub fn ops(
    name: &str,
    threads: Option<usize>,
    probe: bool,
    cases: &[OpBenchCase],
    seconds: f64,
    progress: Progress<'_>,
) -> Result<OpsResult> {
    // A GPU keeps what it was given until it is told to forget it, which a backend whose type is hidden cannot be.
    if let Some(selector) = gpu_selector(name) {
        let mut gpu = GpuBackend::new(&selector, OpenOptions::default().of_gpu())?;
        let limits = if probe { vec![limits::of_gpu(&mut gpu)?] } else { Vec::new() };
        let info = gpu.info();
        let forget = |gpu: &mut GpuBackend, weight: &Weight| gpu.forget(weight);
        let results = on(&mut gpu, &info, limits.last(), cases, seconds, forget, progress)?;
        return Ok(OpsResult { info, threads: None, limits, results });
    }
    let BenchSubject { mut backend, info, threads, limits, .. } =
        BenchSubject::open(name, OpenOptions { threads, ..Default::default() }, probe)?;
    let results = on(&mut backend, &info, limits.last(), cases, seconds, |_, _| (), progress)?;
    Ok(OpsResult { info, threads, limits, results })
}

fn on<B: Backend>(
    backend: &mut B,
    info: &BackendInfo,
    limit: Option<&MachineLimit>,
    cases: &[OpBenchCase],
    seconds: f64,
    forget: impl Fn(&mut B, &Weight),
    progress: Progress<'_>,
) -> Result<Vec<OpBenchResult>> {
    let mut results = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        progress(&format!("{} {}", info.backend, case.name()), n, cases.len());
        let mut result = OpBenchResult::of(case);
        let need = case.weights.as_ref().map(|w| Need {
            op: case.op,
            ty: w.ty(),
            cols: w.dims()[0],
            // Of those with a weight, only what is made of latents has none in its row.
            name: case.stages[0].info().weight.unwrap_or("attn_v_b.weight").to_string(),
            experts: None,
        });
        let refusals = backend.unsupported(need.as_slice());
        if refusals.is_empty() {
            time(backend, case, seconds, &forget, &mut result)?;
            result.bound = limit.map(|limit| TimeBound::of(limit, [result.work].into_iter()));
        } else {
            result.refused = Some(refusals.join("; "));
        }
        results.push(result);
    }
    Ok(results)
}

/// Times one case and counts its work.
pub(super) fn time<B: Backend>(
    backend: &mut B,
    case: &OpBenchCase,
    seconds: f64,
    forget: &impl Fn(&mut B, &Weight),
    result: &mut OpBenchResult,
) -> Result<()> {
    let Some(source) = &case.weights else {
        let table = case.table.expect("a case without weights is the table's");
        let operands = table.build(1)?;
        let tensors = operands.upload(table.at(), backend)?;
        let mut next = tensors.iter();
        let op = operands.op().try_map(|_| Ok(next.next().expect("an upload for each operand").clone()))?;
        result.work = work(&op, |t| backend.shape(t), 0);
        result.seconds = samples(backend, table.at(), &[op], seconds)?;
        return Ok(());
    };
    let weights = source.make()?;
    backend.prepare(&weights, &mut |_| ())?;
    let at = At::layer(0, case.stages[0], 0);
    let [cols, rows, experts] = source.dims();
    let (tokens, mut random) = (case.tokens, Rng::new(1, 0));
    let ids: Vec<u32> = (0..tokens).map(|_| random.below(rows as u64) as u32).collect();
    let mut upload = |backend: &mut B, shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|_| random.normal()).collect();
        backend.upload(&HostTensor::f32(shape, values))
    };
    let mut all = Vec::new();
    let mut chosen = 0;
    match case.op {
        OpKind::Embed => all.extend(weights.iter().map(|table| Op::Embed { table, tokens: &ids, scale: 1.0 })),
        OpKind::RmsNorm => {
            let Beside { groups, kept: keep, .. } = case.beside;
            let x = upload(backend, &[tokens, groups * cols + keep])?;
            all.extend(weights.iter().map(|weight| Op::RmsNorm { x: x.clone(), weight, eps: EPS, keep }));
        }
        OpKind::Bias => {
            let x = upload(backend, &[tokens, cols])?;
            all.extend(weights.iter().map(|weight| Op::Bias { x: x.clone(), weight }));
        }
        OpKind::HeadMatMul => {
            let Beside { head_dim, keep, shared, .. } = case.beside;
            let x = upload(backend, &[tokens, if shared { head_dim } else { experts * head_dim }])?;
            all.extend(weights.iter().map(|weight| Op::HeadMatMul { x: x.clone(), weight, head_dim, keep }));
        }
        OpKind::ExpertMatMul => {
            let k = case.used;
            let x = if case.stages.iter().any(|s| per_slot(*s)) {
                upload(backend, &[tokens, k, cols])?
            } else {
                upload(backend, &[tokens, cols])?
            };
            let drawn = drawn_ids(tokens, experts, k)?;
            chosen = drawn.ids().iter().collect::<std::collections::BTreeSet<_>>().len();
            let ids = backend.upload(&drawn)?;
            let op = |weight| Op::ExpertMatMul { x: x.clone(), ids: ids.clone(), weight };
            all.extend(weights.iter().map(op));
        }
        OpKind::ExpertBias => {
            let k = case.used;
            let x = upload(backend, &[tokens, k, cols])?;
            let drawn = drawn_ids(tokens, rows, k)?;
            chosen = drawn.ids().iter().collect::<std::collections::BTreeSet<_>>().len();
            let ids = backend.upload(&drawn)?;
            all.extend(weights.iter().map(|weight| Op::ExpertBias { x: x.clone(), ids: ids.clone(), weight }));
        }
        _ => {
            let x = upload(backend, &[tokens, cols])?;
            all.extend(weights.iter().map(|weight| Op::MatMul { x: x.clone(), weight }));
        }
    }
    result.work = work(&all[0], |t| backend.shape(t), chosen);
    let timed = samples(backend, at, &all, seconds);
    drop(all);
    weights.iter().for_each(|weight| forget(backend, weight));
    result.seconds = timed?;
    Ok(())
}

/// Ids of `k` of `experts` experts for each position.
fn drawn_ids(tokens: usize, experts: usize, k: usize) -> Result<HostTensor> {
    let choice = OpShape::RouterWeights { tokens, experts, k, renormalise: true, softmax: false, scale: 1.0 };
    let drawn = OpCase { shape: choice, values: OpValues::Normal }.build(1)?;
    let Op::RouterWeights { ids, .. } = drawn.op() else { unreachable!("as it was made") };
    Ok(ids.clone())
}

/// Seconds of one operation, [`SAMPLES`] times, going round `ops`.
fn samples<B: Backend>(backend: &mut B, at: At, ops: &[Op<'_, B::Tensor>], seconds: f64) -> Result<Vec<f64>> {
    let mut next = ops.iter().cycle();
    let mut run = |backend: &mut B, count: usize| {
        backend.sync()?;
        let began = Instant::now();
        for op in next.by_ref().take(count) {
            backend.run(at, op)?;
        }
        backend.sync()?;
        Ok::<_, Error>(began.elapsed().as_secs_f64())
    };
    run(backend, 1)?; // compiles, touches
    let once = stats::mean(&[run(backend, 1)?, run(backend, 1)?]).max(1e-9);
    let count = (seconds / SAMPLES as f64 / once).clamp(1.0, 1e5) as usize;
    (0..SAMPLES).map(|_| Ok(run(backend, count)? / count as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::op_cases::of_model;
    use crate::model::Model;

    #[test]
    fn operations_are_timed_and_their_work_counted() {
        let model = Model::open(None).unwrap();
        let cases = of_model(&model, &[2], 6);
        for backend in ["cpu", "gpu"] {
            let result = ops(backend, Some(1), false, &cases, 1e-3, &mut |_, _, _| ()).unwrap();
            assert_eq!(result.results.len(), cases.len());
            for r in &result.results {
                assert!(r.refused.is_none() && r.seconds.len() == SAMPLES, "{r:?}");
                assert!(r.seconds.iter().all(|s| *s > 0.0), "{r:?}");
            }
            let of = |stage| result.results.iter().find(|r| r.stages.contains(&stage)).unwrap();
            assert_eq!(of(Stage::QProj).work.flops, 2 * 2 * 256 * 512);
            assert_eq!(of(Stage::AttnScores).work, Work { bytes: 8 * 128 * 4, flops: 2 * 512 * (7 + 8) });
            assert_eq!(of(Stage::ExpertDown).work.flops, 2 * 2 * 2 * 256 * 256);
        }
    }
}
