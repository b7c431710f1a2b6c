//! The cases of single operations: those of a model or of a published shape.
//!
//! Design:
//! - The cases are those of a forward pass: every different (operation, type, shape) once, for each number of positions
//!   asked for. They come from a model's own tensors, or from a published shape with random weights.
//! - A weight is read from memory in a model, because the others have pushed it out of the caches meanwhile. So a case
//!   goes round several weights of one shape, `COLD_BYTES` together: the model's layers, or copies.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backend::cases::{OpCase, OpShape, OpValues};
use crate::error::{Error, Result};
use crate::model::{LinearConfig, MlaConfig, Model, Router, parts_of_tensor, stages_of_weight};
use crate::op::{GateActivation, GgmlType, GroupScore, Groups, Mla, OpKind, Stage, Weight};
use crate::quant::random::RandomBlocks;
use crate::synth::{Family, FfnShape, Mix, ModelShape, Plan};

/// Bytes of weights that a case goes round: several times the caches of the machines at hand.
const COLD_BYTES: usize = 96 << 20;
/// A weight below this is in a cache in a model too.
const SMALL_BYTES: usize = 64 << 10;
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
    /// Of which some are chosen from.
    groups: Option<Groups>,
    /// How many of a head's dimensions rope turns, where it is not all.
    turned: Option<usize>,
    /// The sizes of latent attention.
    mla: Option<MlaConfig>,
    /// Whether heads have sinks.
    sinks: bool,
    /// The heads of linear attention.
    linear: Option<LinearConfig>,
}

/// What an operation has beside the shape of its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Beside {
    /// Groups that a norm takes of a row, and the columns behind them.
    pub(super) groups: usize,
    pub(super) kept: usize,
    /// Of a product by heads: columns of a head of x, whether those that are no factors follow the product, and whether all read one head.
    pub(super) head_dim: usize,
    pub(super) keep: bool,
    pub(super) shared: bool,
}

/// The weights of a case: those of a model, or random ones.
pub(super) enum CaseWeights {
    /// Of one type and shape.
    Given(Vec<Arc<Weight>>),
    /// Of no model.
    Random { ty: GgmlType, dims: [usize; 3] },
}

impl CaseWeights {
    pub(super) fn ty(&self) -> GgmlType {
        match self {
            Self::Given(all) => all[0].ty,
            Self::Random { ty, .. } => *ty,
        }
    }

    pub(super) fn dims(&self) -> [usize; 3] {
        match self {
            Self::Given(all) => [all[0].cols, all[0].rows, all[0].experts],
            Self::Random { dims, .. } => *dims,
        }
    }

    /// As many as are `COLD_BYTES`, or as there are.
    pub(super) fn make(&self) -> Result<Vec<Arc<Weight>>> {
        let count = |bytes: usize| if bytes < SMALL_BYTES { 1 } else { COLD_BYTES.div_ceil(bytes) };
        match self {
            Self::Given(all) => Ok(all.iter().take(count(all[0].size())).cloned().collect()),
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
    pub(super) op: OpKind,
    /// The stages that they make, in order of execution.
    pub(super) stages: Vec<Stage>,
    pub(super) tokens: usize,
    /// For people, and to tell cases apart.
    pub(super) shape: String,
    /// `None`: as the operation table makes its operands.
    pub(super) weights: Option<CaseWeights>,
    pub(super) table: Option<OpCase>,
    /// Experts used for a token.
    pub(super) used: usize,
    pub(super) beside: Beside,
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
        sigmoid: c.moe.as_ref().is_some_and(|m| m.router == Router::BiasedSigmoids),
        scale: c.moe.as_ref().map_or(1.0, |m| m.scale.into()),
        groups: c.moe.as_ref().and_then(|m| m.groups),
        turned: c.rotation.dims,
        mla: c.mla,
        sinks: c.architecture.sinks,
        linear: c.linear,
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
                (op, weight.ty, [weight.cols, weight.rows, weight.experts], per_slot(stage), beside(stage, &widths));
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
    let linear = shape.linear().map(|of| {
        let [interval, key_heads, value_heads, head_dim, kernel] =
            [of.interval, of.key_heads, of.value_heads, of.head_dim, of.kernel].map(|n| n as usize);
        // Each architecture has its own order of value heads.
        let tiled = shape.family == Family::Qwen35;
        LinearConfig { interval, key_heads, value_heads, head_dim, kernel, tiled }
    });
    let latent = shape.latent();
    let mla = latent.map(|of| MlaConfig {
        rank: of.rank as usize,
        q_rank: of.q_rank.map(|rank| rank as usize),
        turned: of.pe as usize,
        value_dim: of.values as usize,
        form: Mla::Absorbed,
    });
    let head_dim = latent.map_or(head_dim, |of| (of.nope + of.pe) as usize);
    let turned = match (shape.linear(), mla) {
        (Some(linear), _) => Some(head_dim / linear.turned as usize),
        (None, Some(mla)) => Some(mla.turned),
        (None, None) => glm.map(|_| head_dim / 2),
    };
    let scale = glm.map(|glm| glm.weights_scale).or(latent.map(|of| of.weights_scale)).map_or(1.0, f64::from);
    let (logits_choose, sinks) = (gpt_oss, gpt_oss);
    let sigmoid = glm.is_some() || latent.is_some_and(|of| of.sigmoid);
    let groups = latent.and_then(|of| {
        let [count, used] = of.groups.map(|n| n as usize);
        let by = if of.sigmoid { GroupScore::TopTwo } else { GroupScore::Max };
        (used < count).then_some(Groups { count, used, by })
    });
    let widths = Widths {
        hidden,
        heads,
        kv_heads,
        head_dim,
        ffn,
        moe,
        logits_choose,
        sigmoid,
        scale,
        groups,
        turned,
        mla,
        sinks,
        linear,
    };
    let mut groups: BTreeMap<_, Vec<Stage>> = BTreeMap::new();
    for planned in plan.tensors() {
        let mut dims = [1; 3];
        for (slot, d) in dims.iter_mut().zip(&planned.spec.dims) {
            *slot = *d as usize;
        }
        let mut names: Vec<&str> = linear.iter().flat_map(|_| parts_of_tensor(&planned.spec.name)).collect();
        if names.is_empty() {
            names.push(&planned.spec.name);
        }
        dims[1] /= names.len();
        for (stage, op) in names.into_iter().flat_map(made_by) {
            let stages: &mut Vec<Stage> =
                groups.entry((op, planned.spec.ty, dims, per_slot(stage), beside(stage, &widths))).or_default();
            if !stages.contains(&stage) {
                stages.push(stage);
            }
        }
    }
    let weighted = groups
        .into_iter()
        .map(|((op, ty, dims, _, beside), stages)| (op, beside, stages, CaseWeights::Random { ty, dims }))
        .collect();
    Ok(cases(weighted, widths, tokens, depth))
}

/// The stages that the tensor `name` is the weight of, and the operations that make them, but for those whose weights the operation table
/// makes.
fn made_by(name: &str) -> impl Iterator<Item = (Stage, OpKind)> {
    stages_of_weight(name).filter(|(_, op)| !matches!(op, OpKind::Conv | OpKind::Decay))
}

/// Whether an expert's matrix is given a row for each slot rather than one for all.
pub(super) fn per_slot(stage: Stage) -> bool {
    stage == Stage::ExpertDown
}

fn beside(stage: Stage, widths: &Widths) -> Beside {
    let groups = match stage {
        Stage::QNorm => widths.heads,
        Stage::KNorm => widths.kv_heads,
        Stage::LinearAttnNorm => widths.linear.map_or(1, |linear| linear.value_heads),
        _ => 1,
    };
    let none = Beside { groups, ..Default::default() };
    match (widths.mla, stage) {
        (Some(mla), Stage::KvNorm) => Beside { kept: mla.turned, ..none },
        (Some(_), Stage::QAbsorbed) => Beside { head_dim: widths.head_dim, keep: true, ..none },
        (Some(mla), Stage::KUp) => Beside { head_dim: mla.row(), keep: true, shared: true, ..none },
        (Some(mla), Stage::VUp) => Beside { head_dim: mla.row(), shared: true, ..none },
        (Some(mla), Stage::AttnContext) => Beside { head_dim: mla.rank, ..none },
        _ => none,
    }
}

fn cases(
    weighted: Vec<(OpKind, Beside, Vec<Stage>, CaseWeights)>,
    w: Widths,
    tokens: &[usize],
    depth: usize,
) -> Vec<OpBenchCase> {
    let used = w.moe.map_or(0, |[_, used]| used);
    let mut all = Vec::new();
    for (op, beside, stages, weights) in weighted {
        let [cols, rows, experts] = weights.dims();
        let shape = match op {
            OpKind::RmsNorm if beside.kept > 0 => format!("{}×{cols} before {}", beside.groups, beside.kept),
            OpKind::RmsNorm => format!("{}×{cols}", beside.groups),
            OpKind::HeadMatMul => {
                let x = if beside.shared { "one head" } else { "heads" };
                let rest = if beside.keep { ", the rest kept" } else { "" };
                format!("[{cols}, {rows}, {experts}], of {x} of {}{rest}", beside.head_dim)
            }
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
            all.push(OpBenchCase { op, stages, tokens, shape, weights: Some(weights), table: None, used, beside });
        }
    }
    for &tokens in tokens {
        let Widths { hidden, heads, ffn, moe, turned, sinks, groups, .. } = w;
        let (softmax, sigmoid, scale) = (w.logits_choose, w.sigmoid, w.scale);
        let start = depth;
        let seen = start + tokens;
        // Heads of keys and of values, and of what is turned for them: how many, and their width.
        let [[kv_heads, head_dim], [v_heads, value_dim], [k_heads, k_dim]] = match w.mla {
            None => [[w.kv_heads, w.head_dim]; 3],
            Some(mla) if mla.form == Mla::Absorbed => [[1, mla.row()], [1, mla.rank], [1, mla.row()]],
            Some(mla) => [[heads, w.head_dim], [heads, mla.value_dim], [1, mla.row()]],
        };
        let context =
            if w.mla.is_some_and(|mla| mla.form == Mla::Absorbed) { Stage::AttnLatent } else { Stage::AttnContext };
        let attention = |head_dim, kv_heads| format!("{heads} heads of {head_dim} over {kv_heads}, S = {seen}");
        let rope = |heads, head_dim| {
            // Of latent attention the last dimensions of a head turn.
            let first = w.mla.map_or(0, |mla| head_dim - mla.turned);
            OpShape::neox(tokens, heads, head_dim, start, BASE).turning(turned, first)
        };
        let slots = used.max(1);
        let mut plain = vec![
            (vec![Stage::QRope], format!("{heads} heads of {}", w.head_dim), rope(heads, w.head_dim)),
            (vec![Stage::KRope], format!("{k_heads} heads of {k_dim}"), rope(k_heads, k_dim)),
            (
                vec![Stage::AttnScores],
                attention(head_dim, kv_heads),
                OpShape::AttnScores { tokens, heads, kv_heads, head_dim, start, spare: 0, scale: None, window: None },
            ),
            (
                vec![Stage::AttnProbs],
                format!("{heads} heads, S = {seen}"),
                OpShape::AttnProbs { tokens, heads, start, window: None, sinks },
            ),
            (
                vec![context],
                attention(value_dim, v_heads),
                OpShape::AttnContext {
                    tokens,
                    heads,
                    kv_heads: v_heads,
                    head_dim: value_dim,
                    start,
                    spare: 0,
                    window: None,
                },
            ),
            (vec![Stage::AttnResidual, Stage::LayerOut], format!("{hidden}"), OpShape::Add { tokens, cols: hidden }),
            (
                vec![if moe.is_some() { Stage::ExpertAct } else { Stage::FfnAct }],
                format!("{slots}×{ffn}"),
                OpShape::SwiGlu { tokens, cols: slots * ffn, activation: GateActivation::Silu },
            ),
        ];
        if let Some(linear) = w.linear {
            plain.extend(linear_cases(linear, tokens, start));
            plain.push((
                vec![Stage::AttnGated],
                format!("{heads}×{}", w.head_dim),
                OpShape::SwiGlu { tokens, cols: heads * w.head_dim, activation: GateActivation::Sigmoid },
            ));
        }
        if let Some([experts, k]) = moe {
            let of = format!("{k} of {experts}");
            let choice = match groups {
                Some(Groups { count, used, .. }) => format!("{of}, in {used} of {count} groups"),
                None => of.clone(),
            };
            if !softmax {
                plain.push((
                    vec![Stage::RouterProbs],
                    format!("{experts}"),
                    OpShape::RouterProbs { tokens, experts, sigmoid },
                ));
            }
            plain.extend([
                (vec![Stage::RouterIds], choice, OpShape::RouterTopK { tokens, experts, k, ties: false, groups }),
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
            let beside = Beside::default();
            OpBenchCase { op: table.kind(), stages, tokens, shape, weights: None, table: Some(table), used, beside }
        }));
    }
    // In order of execution, decode before prefill.
    all.sort_by_key(|case| (case.stages.iter().min().copied(), case.tokens));
    all
}

/// What linear attention has besides products, biases and norms.
fn linear_cases(c: LinearConfig, tokens: usize, start: usize) -> Vec<(Vec<Stage>, String, OpShape)> {
    let LinearConfig { key_heads, value_heads: heads, head_dim, kernel, tiled, .. } = c;
    let (channels, first, seen) = (c.channels(), c.key_width(), start + tokens);
    vec![
        (
            vec![Stage::LinearAttnConv],
            format!("[{kernel}, {channels}]"),
            OpShape::Conv { tokens, channels, kernel, start, spare: 0 },
        ),
        (
            vec![Stage::LinearAttnQ, Stage::LinearAttnK],
            format!("{key_heads}×{head_dim}"),
            OpShape::L2Norm { tokens, cols: channels, first, heads: key_heads, head_dim },
        ),
        (
            vec![Stage::LinearAttnBeta],
            format!("{heads} sigmoids"),
            OpShape::RouterProbs { tokens, experts: heads, sigmoid: true },
        ),
        (vec![Stage::LinearAttnDecay], format!("{heads}"), OpShape::Decay { tokens, heads }),
        (
            vec![Stage::LinearAttnDelta],
            format!("{heads} heads of {head_dim} over {key_heads}, S = {seen}"),
            OpShape::DeltaRule { tokens, key_heads, heads, head_dim, start, spare: 0, tiled },
        ),
        (
            vec![Stage::LinearAttnGated],
            format!("{heads}×{head_dim}"),
            OpShape::SwiGlu { tokens, cols: c.value_width(), activation: GateActivation::Silu },
        ),
    ]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{LayerLayout, STAGES};

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
    fn the_gate_in_the_tensor_of_queries_is_a_product_of_its_own() {
        let shape = ModelShape::named("qwen3-next-80b-a3b").unwrap();
        let cases = of_shape(&shape, &Mix::from_name("Q4_K_M").unwrap(), &[1], 0).unwrap();
        let name = |stage| cases.iter().find(|case| case.stages.contains(&stage)).map(OpBenchCase::name).unwrap();
        assert_eq!(name(Stage::QGate), "mat_mul Q4_K [2048, 4096] T=1");
        assert_eq!(name(Stage::QGate), name(Stage::QProj));
        assert_eq!(name(Stage::LinearAttnDelta), "delta_rule 32 heads of 128 over 16, S = 1 T=1");
        assert_eq!(name(Stage::LinearAttnNorm), "rms_norm F32 32×128 T=1");
    }

    #[test]
    fn latent_attention_has_cases_of_both_forms() {
        let shape = ModelShape::named("deepseek-v3").unwrap();
        let cases = of_shape(&shape, &Mix::from_name("Q4_K_M").unwrap(), &[1], 15).unwrap();
        let names: Vec<String> = cases.iter().map(OpBenchCase::name).collect();
        let has = |stage: Stage, part: &str| {
            let found = cases.iter().find(|case| case.stages.contains(&stage)).map(OpBenchCase::name);
            assert!(found.as_ref().is_some_and(|name| name.contains(part)), "{stage}: {part}: {found:?}: {names:#?}");
        };
        has(Stage::KvNorm, "rms_norm F32 1×512 before 64 T=1");
        has(Stage::QProj, "[1536, 24576] T=1");
        has(Stage::QAbsorbed, "[128, 512, 128], of heads of 192, the rest kept T=1");
        has(Stage::AttnContext, "[512, 128, 128], of heads of 512 T=1");
        has(Stage::KRope, "rope 1 heads of 576 T=1");
        has(Stage::AttnScores, "attn_scores 128 heads of 576 over 1, S = 16 T=1");
        has(Stage::AttnLatent, "attn_context 128 heads of 512 over 1, S = 16 T=1");
        has(Stage::RouterIds, "router_top_k 8 of 256, in 4 of 8 groups T=1");
        for family in ["deepseek2", "deepseek3"] {
            if !std::path::Path::new("tests/library").exists() {
                continue; // a published package, which has no room for these models
            }
            let path = crate::files::beside_the_sources(format!("tests/families/{family}.gguf"));
            let model = Model::open(Some(&path)).unwrap();
            let cases = of_model(&model, &[1], 0);
            let made: std::collections::BTreeSet<Stage> = cases.iter().flat_map(|c| c.stages.clone()).collect();
            let layout = model.config.layout();
            let missing = STAGES.iter().filter(|row| row.scope.occurs(layout) && !made.contains(&row.stage));
            let missing: Vec<_> = missing.map(|row| row.name).collect();
            // Those of shared experts and of leading layers are of the kinds and near the sizes of others.
            assert!(missing.iter().all(|name| ["shared_act", "moe_sum", "ffn_act"].contains(name)), "{missing:?}");
        }
    }

    /// An operation of each stage that has no weight, or one that the operation table makes.
    #[test]
    fn linear_attention_has_its_own_cases() {
        let c = LinearConfig { interval: 4, key_heads: 16, value_heads: 32, head_dim: 128, kernel: 4, tiled: false };
        let cases = linear_cases(c, 1, 448);
        let mut made: Vec<Stage> = cases.iter().flat_map(|(stages, ..)| stages.clone()).collect();
        made.sort_unstable();
        use Stage::*;
        let expected = [
            LinearAttnConv,
            LinearAttnQ,
            LinearAttnK,
            LinearAttnBeta,
            LinearAttnDecay,
            LinearAttnDelta,
            LinearAttnGated,
        ];
        assert_eq!(made, expected);
        for (stages, shape, table) in cases {
            let case = OpCase { shape: table, values: OpValues::Normal };
            assert!(stages.iter().all(|stage| stage.info().op == case.kind()), "{stages:?}: {shape}");
        }
        assert_eq!(made_by("blk.0.ssm_conv1d.weight").count(), 0);
        let stages = |name| made_by(name).map(|(stage, _)| stage).collect::<Vec<_>>();
        assert_eq!(stages("blk.3.attn_q.weight"), [QProj]);
        assert_eq!(stages("blk.3.attn_q.weight (gate)"), [QGate]);
        assert_eq!(stages("blk.0.ssm_ba.weight (alpha)"), [LinearAttnA]);
    }
}
