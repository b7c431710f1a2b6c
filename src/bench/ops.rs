//! Single operations, over the types and shapes of a real model.
//!
//! Design:
//! - The cases are those of a forward pass: every different (operation, type, shape) once, for each number of positions
//!   asked for. They come from a model's own tensors, or from a published shape with random weights.
//! - A weight is read from memory in a model, because the others have pushed it out of the caches meanwhile. So a case
//!   goes round several weights of one shape, `COLD_BYTES` together: the model's layers, or copies.
//! - A sample is as many calls as fill a tenth of a second or so, and one wait for the device at their end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::limits::{self, MachineLimit, TimeBound};
use super::subject::BenchSubject;
use super::work::{Work, work};
use super::{Progress, stats};
use crate::backend::cases::{OpCase, OpShape, OpValues};
use crate::backend::gpu::{GpuBackend, GpuOptions};
use crate::backend::{Backend, BackendInfo, Need, OpenOptions, gpu_selector};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::op::{At, GateActivation, GgmlType, HostTensor, Op, OpKind, STAGES, Stage, Weight};
use crate::quant::random::{RandomBlocks, Rng};
use crate::synth::{Family, FfnShape, Mix, ModelShape, Plan};

/// Bytes of weights that a case goes round: several times the caches of the machines at hand.
const COLD_BYTES: usize = 96 << 20;
/// A weight below this is in a cache in a model too.
const SMALL_BYTES: usize = 64 << 10;
/// Samples of a case.
const SAMPLES: usize = 5;
/// The eps of every norm: that of the Qwen3 family.
const EPS: f32 = 1e-6;
/// The base of every rotation.
const BASE: f64 = 1e6;

/// What the operations without weights depend on.
#[derive(Clone, Copy, Debug)]
struct Widths {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// FFN width, of one expert where there are experts.
    ffn: usize,
    /// Experts, and those used for a token.
    moe: Option<[usize; 2]>,
    /// Whether the experts are chosen by their logits.
    logits_choose: bool,
    /// Whether the router has sigmoids for a softmax.
    sigmoid: bool,
    /// What its weights are multiplied by.
    scale: f64,
    /// How many of a head's dimensions rope turns, where it is not all.
    turned: Option<usize>,
    /// Whether heads have sinks.
    sinks: bool,
}

/// The weights of a case: those of a model, or random ones.
enum CaseWeights {
    /// Of one type and shape.
    Given(Vec<Arc<Weight>>),
    /// Of no model.
    Random { ty: GgmlType, dims: [usize; 3] },
}

impl CaseWeights {
    fn ty(&self) -> GgmlType {
        match self {
            Self::Given(all) => all[0].ty,
            Self::Random { ty, .. } => *ty,
        }
    }

    fn dims(&self) -> [usize; 3] {
        match self {
            Self::Given(all) => [all[0].cols, all[0].rows, all[0].experts],
            Self::Random { dims, .. } => *dims,
        }
    }

    /// As many as are `COLD_BYTES`, or as there are.
    fn make(&self) -> Result<Vec<Arc<Weight>>> {
        let count = |bytes: usize| if bytes < SMALL_BYTES { 1 } else { COLD_BYTES.div_ceil(bytes) };
        match self {
            Self::Given(all) => Ok(all.iter().take(count(all[0].bytes().len())).cloned().collect()),
            &Self::Random { ty, dims } => {
                let [cols, rows, experts] = dims;
                let bytes = ty.row_bytes(cols).and_then(|b| b.checked_mul(rows)?.checked_mul(experts));
                let bytes = bytes.ok_or_else(|| Error::usage(format!("{dims:?} is no shape of {ty} weights")))?;
                let mut first = Vec::new();
                first
                    .try_reserve_exact(bytes)
                    .map_err(|_| Error::cannot_run(format!("no memory for {bytes} bytes of {ty} weights")))?;
                first.resize(bytes, 0);
                RandomBlocks::new(ty, 0.05, 1)?.fill(0, &mut first);
                (0..count(bytes)).map(|_| Weight::from_vec("case.weight", ty, dims, first.clone())).collect()
            }
        }
    }
}

/// Operations of one kind, type and shape.
pub struct OpBenchCase {
    op: OpKind,
    /// The stages that they make, in order of execution.
    stages: Vec<Stage>,
    tokens: usize,
    /// For people, and to tell cases apart.
    shape: String,
    /// `None`: as the operation table makes its operands.
    weights: Option<CaseWeights>,
    table: Option<OpCase>,
    /// Experts used for a token.
    used: usize,
}

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

/// The cases of a model, of its own weights.
pub fn of_model(model: &Model, tokens: &[usize], depth: usize) -> Vec<OpBenchCase> {
    let c = &model.config;
    let widths = Widths {
        hidden: c.hidden,
        heads: c.heads,
        kv_heads: c.kv_heads,
        head_dim: c.head_dim,
        ffn: c.moe.as_ref().map_or(c.ffn, |m| m.ffn),
        moe: c.moe.as_ref().map(|m| [m.experts, m.used]),
        logits_choose: c.layout().logits_choose,
        sigmoid: c.layout().choice_bias,
        scale: c.moe.as_ref().map_or(1.0, |m| m.scale.into()),
        turned: c.rotation.dims,
        sinks: c.architecture.sinks,
    };
    let all = model.weights.all();
    let mut named: Vec<(String, Arc<Weight>)> = all.iter().map(|w| (w.name.clone(), w.clone())).collect();
    if Arc::ptr_eq(&model.weights.output, &model.weights.token_embd) {
        named.push(("output.weight".into(), model.weights.output.clone()));
    }
    let mut groups: BTreeMap<_, (Vec<Stage>, Vec<Arc<Weight>>)> = BTreeMap::new();
    for (name, weight) in named {
        for (stage, op) in made_by(&name) {
            let key =
                (op, weight.ty, [weight.cols, weight.rows, weight.experts], per_slot(stage), groups_of(stage, &widths));
            let (stages, weights) = groups.entry(key).or_default();
            if !stages.contains(&stage) {
                stages.push(stage);
            }
            weights.push(weight.clone());
        }
    }
    let weighted = groups.into_iter().map(|(key, (stages, all))| (key.0, key.4, stages, CaseWeights::Given(all)));
    cases(weighted.collect(), widths, tokens, depth)
}

/// The cases of a published shape in the types of a mix, with random weights.
///
/// # Errors
/// If the shape is not one of a model.
pub fn of_shape(shape: &ModelShape, mix: &Mix, tokens: &[usize], depth: usize) -> Result<Vec<OpBenchCase>> {
    let plan = Plan::new("bench", shape, mix, 0)?;
    let (ffn, moe) = match shape.ffn {
        FfnShape::Dense(width) => (width, None),
        FfnShape::Moe(moe) => (moe.width, Some([moe.experts, moe.used].map(|n| n as usize))),
    };
    let [hidden, heads, kv_heads, head_dim, ffn] =
        [shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, ffn].map(|n| n as usize);
    let gpt_oss = shape.family == Family::GptOss;
    let glm = shape.glm();
    let turned = glm.map(|_| head_dim / 2);
    let scale = glm.map_or(1.0, |glm| glm.weights_scale.into());
    let (logits_choose, sinks, sigmoid) = (gpt_oss, gpt_oss, glm.is_some());
    let widths = Widths { hidden, heads, kv_heads, head_dim, ffn, moe, logits_choose, sigmoid, scale, turned, sinks };
    let mut groups: BTreeMap<_, Vec<Stage>> = BTreeMap::new();
    for planned in plan.tensors() {
        let mut dims = [1; 3];
        for (slot, d) in dims.iter_mut().zip(&planned.spec.dims) {
            *slot = *d as usize;
        }
        for (stage, op) in made_by(&planned.spec.name) {
            let stages: &mut Vec<Stage> =
                groups.entry((op, planned.spec.ty, dims, per_slot(stage), groups_of(stage, &widths))).or_default();
            if !stages.contains(&stage) {
                stages.push(stage);
            }
        }
    }
    let weighted = groups
        .into_iter()
        .map(|((op, ty, dims, _, groups), stages)| (op, groups, stages, CaseWeights::Random { ty, dims }))
        .collect();
    Ok(cases(weighted, widths, tokens, depth))
}

/// The stages that the tensor `name` is the weight of, and the operations that make them.
fn made_by(name: &str) -> impl Iterator<Item = (Stage, OpKind)> {
    let name = name.strip_prefix("blk.").and_then(|n| n.split_once('.')).map_or(name, |(_, rest)| rest).to_string();
    STAGES.iter().filter(move |row| row.weight == Some(&name)).map(|row| (row.stage, row.op))
}

/// Whether an expert's matrix is given a row for each slot rather than one for all.
fn per_slot(stage: Stage) -> bool {
    stage == Stage::ExpertDown
}

/// Groups that a norm takes of a row.
fn groups_of(stage: Stage, widths: &Widths) -> usize {
    match stage {
        Stage::QNorm => widths.heads,
        Stage::KNorm => widths.kv_heads,
        _ => 1,
    }
}

fn cases(
    weighted: Vec<(OpKind, usize, Vec<Stage>, CaseWeights)>,
    w: Widths,
    tokens: &[usize],
    depth: usize,
) -> Vec<OpBenchCase> {
    let used = w.moe.map_or(0, |[_, used]| used);
    let mut all = Vec::new();
    for (op, groups, stages, weights) in weighted {
        let [cols, rows, experts] = weights.dims();
        let shape = match op {
            OpKind::RmsNorm => format!("{groups}×{cols}"),
            OpKind::Bias => format!("{cols}"),
            OpKind::ExpertMatMul => {
                let x = if stages.iter().any(|s| per_slot(*s)) { ", a row for each" } else { "" };
                format!("[{cols}, {rows}, {experts}], {used} used{x}")
            }
            OpKind::ExpertBias => format!("[{cols}, {rows}], {used} used"),
            _ => format!("[{cols}, {rows}]"),
        };
        // The same tensor type and shape at every number of positions, made when it is its turn.
        for &tokens in tokens {
            let weights = match &weights {
                CaseWeights::Given(all) => CaseWeights::Given(all.clone()),
                &CaseWeights::Random { ty, dims } => CaseWeights::Random { ty, dims },
            };
            let (stages, shape) = (stages.clone(), shape.clone());
            all.push(OpBenchCase { op, stages, tokens, shape, weights: Some(weights), table: None, used });
        }
    }
    for &tokens in tokens {
        let Widths { hidden, heads, kv_heads, head_dim, ffn, moe, turned, sinks, .. } = w;
        let (softmax, sigmoid, scale) = (w.logits_choose, w.sigmoid, w.scale);
        let start = depth;
        let seen = start + tokens;
        let attention = format!("{heads} heads of {head_dim} over {kv_heads}, S = {seen}");
        let rope = |heads| OpShape::neox(tokens, heads, head_dim, start, BASE).turning(turned);
        let slots = used.max(1);
        let mut plain = vec![
            (vec![Stage::QRope], format!("{heads} heads of {head_dim}"), rope(heads)),
            (vec![Stage::KRope], format!("{kv_heads} heads of {head_dim}"), rope(kv_heads)),
            (
                vec![Stage::AttnScores],
                attention.clone(),
                OpShape::AttnScores { tokens, heads, kv_heads, head_dim, start, spare: 0, scale: None, window: None },
            ),
            (
                vec![Stage::AttnProbs],
                format!("{heads} heads, S = {seen}"),
                OpShape::AttnProbs { tokens, heads, start, window: None, sinks },
            ),
            (
                vec![Stage::AttnContext],
                attention,
                OpShape::AttnContext { tokens, heads, kv_heads, head_dim, start, spare: 0, window: None },
            ),
            (vec![Stage::AttnResidual, Stage::LayerOut], format!("{hidden}"), OpShape::Add { tokens, cols: hidden }),
            (
                vec![if moe.is_some() { Stage::ExpertAct } else { Stage::FfnAct }],
                format!("{slots}×{ffn}"),
                OpShape::SwiGlu { tokens, cols: slots * ffn, activation: GateActivation::Silu },
            ),
        ];
        if let Some([experts, k]) = moe {
            let of = format!("{k} of {experts}");
            if !softmax {
                plain.push((
                    vec![Stage::RouterProbs],
                    format!("{experts}"),
                    OpShape::RouterProbs { tokens, experts, sigmoid },
                ));
            }
            plain.extend([
                (vec![Stage::RouterIds], of.clone(), OpShape::RouterTopK { tokens, experts, k, ties: false }),
                (
                    vec![Stage::RouterWeights],
                    of,
                    OpShape::RouterWeights { tokens, experts, k, renormalise: true, softmax, scale },
                ),
                (vec![Stage::MoeOut], format!("{k}×{hidden}"), OpShape::Combine { tokens, k, hidden }),
            ]);
        }
        all.extend(plain.into_iter().map(|(stages, shape, of)| {
            let table = OpCase { shape: of, values: OpValues::Normal };
            OpBenchCase { op: table.kind(), stages, tokens, shape, weights: None, table: Some(table), used }
        }));
    }
    // In order of execution, decode before prefill.
    all.sort_by_key(|case| (case.stages.iter().min().copied(), case.tokens));
    all
}

impl OpBenchCase {
    /// The type of its weight.
    pub fn ty(&self) -> Option<GgmlType> {
        self.weights.as_ref().map(CaseWeights::ty)
    }

    /// `mat_mul Q4_K [2048, 4096] T=1`
    pub fn name(&self) -> String {
        let ty = self.ty().map_or(String::new(), |ty| format!(" {ty}"));
        format!("{}{ty} {} T={}", self.op.name(), self.shape, self.tokens)
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
        let mut gpu = GpuBackend::new(&selector, GpuOptions::default())?;
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
        let mut result = OpBenchResult {
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
        };
        let need = case.weights.as_ref().map(|w| Need {
            op: case.op,
            ty: w.ty(),
            cols: w.dims()[0],
            name: case.stages[0].info().weight.unwrap_or_default().to_string(),
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
fn time<B: Backend>(
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
            let groups: usize = case.shape.split('×').next().and_then(|n| n.parse().ok()).unwrap_or(1);
            let x = upload(backend, &[tokens, groups * cols])?;
            all.extend(weights.iter().map(|weight| Op::RmsNorm { x: x.clone(), weight, eps: EPS }));
        }
        OpKind::Bias => {
            let x = upload(backend, &[tokens, cols])?;
            all.extend(weights.iter().map(|weight| Op::Bias { x: x.clone(), weight }));
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
    use crate::op::LayerLayout;

    #[test]
    fn the_cases_of_the_demo_are_its_tensors_types_and_shapes() {
        let model = Model::open(None).unwrap();
        let cases = of_model(&model, &[1, 4], 16);
        let made: std::collections::BTreeSet<Stage> = cases.iter().flat_map(|c| c.stages.clone()).collect();
        let expected =
            STAGES.iter().filter(|row| row.scope.occurs(LayerLayout::QWEN3MOE)).map(|row| row.stage).collect();
        assert_eq!(made, expected, "every stage is made by a case");
        let names: std::collections::BTreeSet<String> = cases.iter().map(OpBenchCase::name).collect();
        assert_eq!(names.len(), cases.len(), "no case twice: {names:#?}");
        assert!(names.contains("expert_mat_mul Q4_K [256, 256, 8], 2 used T=4"), "{names:#?}");
        assert!(names.contains("rms_norm F32 8×64 T=1"), "{names:#?}");
    }

    #[test]
    fn gpt_oss_has_its_own_cases() {
        let shape = ModelShape::named("gpt-oss-20b").unwrap();
        let cases = of_shape(&shape, &Mix::from_name("MXFP4").unwrap(), &[1], 0).unwrap();
        let names: Vec<String> = cases.iter().map(OpBenchCase::name).collect();
        assert!(names.iter().any(|name| name == "expert_mat_mul MXFP4 [2880, 2880, 32], 4 used T=1"), "{names:#?}");
        assert!(names.iter().any(|name| name == "expert_bias F32 [2880, 32], 4 used T=1"), "{names:#?}");
        assert!(!names.iter().any(|name| name.starts_with("router_probs")), "{names:#?}");
    }

    #[test]
    fn published_shapes_have_cases_too() {
        let shape = ModelShape::named("qwen3-30b-a3b").unwrap();
        let cases = of_shape(&shape, &Mix::from_name("Q4_K_M").unwrap(), &[1], 0).unwrap();
        let names: Vec<String> = cases.iter().map(OpBenchCase::name).collect();
        for name in [
            "mat_mul Q4_K [2048, 4096] T=1",
            "mat_mul Q6_K [2048, 151936] T=1",
            "expert_mat_mul Q6_K [768, 2048, 128], 8 used, a row for each T=1",
            "attn_scores 32 heads of 128 over 4, S = 1 T=1",
        ] {
            assert!(names.iter().any(|n| n == name), "{name}: {names:#?}");
        }
    }

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
