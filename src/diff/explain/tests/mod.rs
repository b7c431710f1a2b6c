//! Stages from the golden activations, with outputs that a mistake would make.

mod by_hand;
mod families;
mod latent;
mod linear_attention;
mod parity;
mod ranked;
mod rules;
mod segments;
mod stride;
mod sweep;

use std::collections::HashMap;

use safetensors::{Dtype, SafeTensors};

use super::*;
use crate::backend::Order;
use crate::backend::oracle::{OracleBackend, evaluate};
use crate::formula::exact::exact;
use crate::formula::floor::floor_of;
use crate::gguf::Gguf;
use crate::model::{
    AttentionWeights, Ffn, LatentHeads, LinearWeights, LogitRows, Mixer, Model, MoeWeights, Router, Session, forward,
};
use crate::op::{At, GateActivation, Rotation, Weight};
use crate::synth::{Family, FfnShape, Mix, ModelShape, Moe, Plan};
use crate::trace::{StageObserver, Traced};

/// A correct GPU's contract, more or less.
const CONTRACT: Contract = Contract::wgsl_f32(Order::Lanes { lanes: 8 });

type Values = HashMap<String, Rc<HostTensor>>;

/// The stages of a golden run, rounded to f32, and its tokens.
fn golden(path: &str) -> (Vec<u32>, Values) {
    let file = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&file).unwrap();
    let tokens = header.metadata().as_ref().unwrap()["tokens"].split(',').map(|t| t.parse().unwrap()).collect();
    let st = SafeTensors::deserialize(&file).unwrap();
    let values = st.iter().map(|(key, view)| {
        let value = match view.dtype() {
            Dtype::F64 => {
                let v = view.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect();
                HostTensor::f32(view.shape(), v)
            }
            Dtype::I32 => {
                let v = view.data().as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
                HostTensor::u32(view.shape(), v)
            }
            other => panic!("{key} is {other:?}"),
        };
        (key.to_string(), Rc::new(value))
    });
    (tokens, values.collect())
}

/// A model on a golden prompt.
struct World {
    model: Model,
    tokens: Vec<u32>,
    values: Values,
}

impl World {
    fn new(prompt: &str) -> Self {
        let (tokens, values) = golden(&format!("tests/golden/{prompt}.safetensors"));
        Self { model: Model::open(None).unwrap(), tokens, values }
    }

    /// A tiny model of another family, one of those that are in the package as well.
    fn family(name: &str) -> Self {
        let packaged = include_str!("../../../../Cargo.toml").contains(&format!("\"tests/families/{name}.*\""));
        assert!(packaged, "{name} is in the repository alone: family_of_repository");
        Self::of_family(name)
    }

    /// The same of one that is in the repository alone, as the registry takes no larger package: `None` where a package is tested.
    fn family_of_repository(name: &str) -> Option<Self> {
        std::path::Path::new("tests/library").exists().then(|| Self::of_family(name))
    }

    fn of_family(name: &str) -> Self {
        let file = |extension: &str| format!("tests/families/{name}.{extension}");
        let (tokens, values) = golden(&file("safetensors"));
        Self { model: Model::open(Some(file("gguf").as_ref())).unwrap(), tokens, values }
    }

    /// A model of random weights, and its stages as the oracle makes them.
    fn synthetic(shape: &ModelShape) -> Self {
        Self::synthetic_in(shape, &Mix::from_name("Q8_0").unwrap())
    }

    /// The same in another mix of types.
    fn synthetic_in(shape: &ModelShape, mix: &Mix) -> Self {
        struct Stages(Values);
        impl StageObserver for Stages {
            fn wants(&self, _: Site) -> bool {
                true
            }
            fn observe(&mut self, At { site, .. }: At, values: HostTensor) -> Result<()> {
                let values = if site.stage.is_ids() { values } else { f32s(values) };
                self.0.insert(site.key(), Rc::new(values));
                Ok(())
            }
        }
        let bytes = Plan::new("synthetic", shape, mix, 1).unwrap().to_bytes().unwrap();
        let model = Model::from_gguf(Gguf::from_bytes("synthetic", std::sync::Arc::new(bytes)).unwrap()).unwrap();
        let tokens = vec![5, 17, 93, 17, 60, 0, 88];
        let mut traced = Traced::new(OracleBackend::new(), Stages(Values::new()));
        let mut session = Session::new(&mut traced, &model.config, tokens.len()).unwrap();
        forward(&mut traced, &model, &mut session, &tokens, LogitRows::All).unwrap();
        let values = traced.finish().unwrap().1.0;
        Self { model, tokens, values }
    }

    fn value(&self, site: Site, stage: Stage) -> Rc<HostTensor> {
        let key = match (stage, site.layer) {
            (Stage::LayerOut, Some(0)) => "embedding".into(),
            (Stage::LayerOut, Some(n)) => format!("layers.{}.layer_out", n - 1),
            (Stage::LayerOut, None) => format!("layers.{}.layer_out", self.model.config.layers - 1),
            (_, Some(n)) => format!("layers.{n}.{stage}"),
            (_, None) => stage.name().into(),
        };
        self.values[&key].clone()
    }

    fn moe(&self, layer: usize) -> &MoeWeights {
        match &self.model.weights.layers[layer].ffn {
            Ffn::Moe(moe) => moe,
            Ffn::Dense { .. } => panic!("the bundled model has experts in every layer"),
        }
    }

    fn attention(&self, layer: usize) -> &AttentionWeights {
        match &self.model.weights.layers[layer].mixer {
            Mixer::Attention(attention) => attention,
            Mixer::Linear(_) | Mixer::Latent(_) => panic!("layer {layer} has another attention"),
        }
    }

    fn linear(&self, layer: usize) -> &LinearWeights {
        match &self.model.weights.layers[layer].mixer {
            Mixer::Linear(linear) => linear,
            Mixer::Attention(_) | Mixer::Latent(_) => panic!("layer {layer} has attention"),
        }
    }

    fn rotation(&self, layer: usize) -> Rotation<&std::sync::Arc<Weight>> {
        self.model.config.rotation_of(layer).with_factors(self.model.weights.rope_freqs.as_ref())
    }

    fn weight(&self, site: Site) -> &std::sync::Arc<Weight> {
        let w = &self.model.weights;
        let Some(n) = site.layer.map(|n| n as usize) else {
            return match site.stage {
                Stage::Embedding => &w.token_embd,
                Stage::FinalNorm => &w.output_norm,
                _ => &w.output,
            };
        };
        let l = &w.layers[n];
        let attention = || self.attention(n);
        let linear = || self.linear(n);
        let bias = || attention().qkv_bias.as_ref().unwrap();
        let qk_norm = || attention().qk_norm.as_ref().unwrap();
        let moe = || self.moe(n);
        match site.stage {
            Stage::AttnNorm => &l.attn_norm,
            Stage::QProj => &attention().q,
            Stage::KProj => &attention().k,
            Stage::VProj => &attention().v,
            Stage::QBias => &bias().q,
            Stage::KBias => &bias().k,
            Stage::VBias => &bias().v,
            Stage::QNorm => &qk_norm().q,
            Stage::KNorm => &qk_norm().k,
            Stage::AttnOut => &attention().output,
            Stage::FfnNorm => &l.ffn_norm,
            Stage::AttnPostNorm => &l.post_norms.as_ref().unwrap().attn,
            Stage::FfnPostNorm => &l.post_norms.as_ref().unwrap().ffn,
            Stage::RouterLogits => &moe().router,
            Stage::RouterChoice => moe().choice_bias.as_ref().unwrap(),
            Stage::ExpertGate => &moe().gate,
            Stage::ExpertUp => &moe().up,
            Stage::ExpertDown => &moe().down,
            Stage::AttnOutBias => attention().output_bias.as_ref().unwrap(),
            Stage::RouterBias => &moe().bias.as_ref().unwrap().router,
            Stage::ExpertGateBias => &moe().bias.as_ref().unwrap().gate,
            Stage::ExpertUpBias => &moe().bias.as_ref().unwrap().up,
            Stage::ExpertDownBias => &moe().bias.as_ref().unwrap().down,
            Stage::QGate => attention().gate.as_ref().unwrap(),
            Stage::LinearAttnQkv => &linear().qkv,
            Stage::LinearAttnZ => &linear().z,
            Stage::LinearAttnB => &linear().b,
            Stage::LinearAttnA => &linear().a,
            Stage::LinearAttnConv => &linear().conv,
            Stage::LinearAttnDt => &linear().dt,
            Stage::LinearAttnDecay => &linear().decay,
            Stage::LinearAttnNorm => &linear().norm,
            Stage::LinearAttnOut => &linear().output,
            Stage::SharedDown => &moe().shared.as_ref().unwrap().down,
            stage => panic!("{stage} has no weight"),
        }
    }

    /// The operation that makes a stage, on the golden inputs.
    fn op(&self, site: Site) -> Op<'_, Rc<HostTensor>> {
        let row = site.stage.info();
        let c = &self.model.config;
        let inputs: Vec<Stage> = site.stage.inputs(c.layout().of(site.layer)).collect();
        let input = |n: usize| self.value(site, inputs[n]);
        let (start, head_dim) = (0, c.head_dim);
        let layer = site.layer.unwrap_or(0) as usize;
        let window = c.window_of(layer);
        if let Some(op) = self.latent_op(site) {
            return op;
        }
        match row.op {
            OpKind::Embed => Op::Embed { table: self.weight(site), tokens: &self.tokens, scale: c.embedding_scale },
            OpKind::HeadMatMul => unreachable!("one of latent attention's"),
            OpKind::RmsNorm => Op::RmsNorm { x: input(0), weight: self.weight(site), eps: c.eps, keep: 0 },
            OpKind::Bias => Op::Bias { x: input(0), weight: self.weight(site) },
            OpKind::MatMul => Op::MatMul { x: input(0), weight: self.weight(site) },
            OpKind::Rope => Op::Rope { x: input(0), start, head_dim, rotation: self.rotation(layer) },
            OpKind::AttnScores => {
                Op::AttnScores { q: input(0), k: input(1), start, head_dim, scale: c.attention_scale, window }
            }
            OpKind::AttnProbs => {
                let sinks = self.attention(layer).sinks.as_ref();
                Op::AttnProbs { scores: input(0), start, window, sinks }
            }
            OpKind::AttnContext => Op::AttnContext { probs: input(0), v: input(1), start, head_dim, window },
            OpKind::Add => Op::Add { a: input(0), b: input(1) },
            OpKind::RouterProbs => {
                let sigmoid = site.stage == Stage::LinearAttnBeta || self.moe(layer).by == Router::BiasedSigmoids;
                Op::RouterProbs { logits: input(0), sigmoid }
            }
            OpKind::RouterTopK => {
                let moe = self.moe(layer);
                Op::RouterTopK { probs: input(0), k: moe.used, groups: moe.groups }
            }
            OpKind::RouterWeights => {
                let moe = self.moe(layer);
                let (renormalise, softmax, scale) =
                    (moe.renormalise, moe.by == Router::ChosenSoftmax, f64::from(moe.scale));
                Op::RouterWeights { probs: input(0), ids: input(1), renormalise, softmax, scale }
            }
            OpKind::ExpertMatMul => Op::ExpertMatMul { x: input(0), ids: input(1), weight: self.weight(site) },
            OpKind::ExpertBias => Op::ExpertBias { x: input(0), ids: input(1), weight: self.weight(site) },
            OpKind::SwiGlu => {
                let activation = match site.stage {
                    Stage::AttnGated => GateActivation::Sigmoid,
                    Stage::LinearAttnGated => GateActivation::Silu,
                    _ => c.architecture.activation,
                };
                Op::SwiGlu { gate: input(0), up: input(1), activation }
            }
            OpKind::Conv => Op::Conv { x: input(0), cache: input(1), weight: self.weight(site), start },
            OpKind::L2Norm => {
                let linear = c.linear.unwrap();
                let first = if site.stage == Stage::LinearAttnQ { 0 } else { linear.key_width() };
                let (heads, head_dim) = (linear.key_heads, linear.head_dim);
                Op::L2Norm { x: input(0), first, heads, head_dim, eps: c.eps }
            }
            OpKind::Decay => Op::Decay { x: input(0), weight: self.weight(site) },
            OpKind::DeltaRule => {
                let linear = c.linear.unwrap();
                let (k, v, decay, beta) = (input(1), input(2), input(3), input(4));
                let (head_dim, tiled) = (linear.head_dim, linear.tiled);
                Op::DeltaRule { q: input(0), k, v, decay, beta, start, head_dim, tiled }
            }
            OpKind::SigmoidGate => Op::SigmoidGate { x: input(0), gate: input(1) },
            OpKind::Combine => Op::Combine { down: input(0), weights: input(1) },
            OpKind::Store | OpKind::Rows => unreachable!("they make no stage"),
        }
    }

    /// That of a stage which multi-head latent attention has otherwise.
    fn latent_op(&self, site: Site) -> Option<Op<'_, Rc<HostTensor>>> {
        let c = &self.model.config;
        let mla = c.mla?;
        let Mixer::Latent(w) = &self.model.weights.layers[site.layer? as usize].mixer else { return None };
        let inputs: Vec<Stage> = site.stage.inputs(c.layout().of(site.layer)).collect();
        let input = |n: usize| self.value(site, inputs[n]);
        let (start, head_dim, window) = (0, c.head_dim_of(site.stage), None);
        let up = |weight, head_dim, keep| Op::HeadMatMul { x: input(0), weight, head_dim, keep };
        use Stage::*;
        Some(match (site.stage, &w.heads) {
            (KvA, _) => Op::MatMul { x: input(0), weight: &w.kv_a },
            (KvNorm, _) => Op::RmsNorm { x: input(0), weight: &w.kv_norm, eps: c.eps, keep: mla.turned },
            (QA, _) => Op::MatMul { x: input(0), weight: &w.q_a.as_ref().unwrap()[0] },
            (QANorm, _) => Op::RmsNorm { x: input(0), weight: &w.q_a.as_ref().unwrap()[1], eps: c.eps, keep: 0 },
            (QProj, _) => Op::MatMul { x: input(0), weight: &w.q },
            (QRope | KRope, _) => {
                let rotation = Rotation { first: head_dim - mla.turned, ..self.rotation(0) };
                Op::Rope { x: input(0), start, head_dim, rotation }
            }
            (QAbsorbed, LatentHeads::Absorbed { q, .. }) => up(q, c.head_dim, true),
            (AttnContext, LatentHeads::Absorbed { v, .. }) => up(v, mla.rank, false),
            (KUp, LatentHeads::Plain { k, .. }) => up(k, mla.row(), true),
            (VUp, LatentHeads::Plain { v, .. }) => up(v, mla.row(), false),
            (AttnScores, _) => {
                let scale = c.attention_scale.or(Some(1.0 / (c.head_dim as f64).sqrt()));
                Op::AttnScores { q: input(0), k: input(1), start, head_dim, scale, window }
            }
            (AttnProbs, _) => Op::AttnProbs { scores: input(0), start, window, sinks: None },
            (AttnLatent, _) => {
                // Of the cache the latents alone.
                let rows = self.value(site, KvNorm);
                let latents = rows.to_f32().chunks(mla.row()).flat_map(|row| row[..mla.rank].to_vec()).collect();
                let v = Rc::new(HostTensor::f32(&[rows.shape[0], mla.rank], latents));
                Op::AttnContext { probs: input(0), v, start, head_dim, window }
            }
            (AttnContext, _) => Op::AttnContext { probs: input(0), v: input(1), start, head_dim, window },
            (AttnOut, _) => Op::MatMul { x: input(0), weight: &w.output },
            _ => return None,
        })
    }

    /// The layer's values before `site`.
    fn earlier(&self, site: Site) -> Upstream {
        let mut earlier = Upstream::new();
        if let Some(n) = site.layer {
            let before =
                Site { layer: n.checked_sub(1), stage: if n == 0 { Stage::Embedding } else { Stage::LayerOut } };
            earlier.note(before, &self.value(site, Stage::LayerOut));
            for row in crate::op::STAGES.iter().filter(|r| r.stage < site.stage) {
                if let Some(value) = self.values.get(&format!("layers.{n}.{}", row.stage)) {
                    earlier.note(Site { layer: Some(n), stage: row.stage }, value);
                }
            }
        }
        earlier
    }

    /// Explains `output` as what the stage made of the golden inputs.
    fn explain(&self, site: Site, output: &HostTensor) -> Explanation {
        self.explain_op(site, &self.op(site), output)
    }

    fn explain_op(&self, site: Site, op: &Op<'_, Rc<HostTensor>>, output: &HostTensor) -> Explanation {
        self.explain_under(CONTRACT, site, op, output)
    }

    fn explain_under(
        &self,
        contract: Contract,
        site: Site,
        op: &Op<'_, Rc<HostTensor>>,
        output: &HostTensor,
    ) -> Explanation {
        let (exact, floor) = judge_under(&contract, op);
        let earlier = self.earlier(site);
        let start = op.start().unwrap_or(0);
        let scene = StageEval {
            site,
            start,
            op,
            output,
            exact: &exact,
            floor: &floor,
            contract,
            earlier: &earlier,
            config: &self.model.config,
            weights: &self.model.weights,
        };
        explain(&scene).unwrap()
    }
}

fn judge(op: &Op<'_, Rc<HostTensor>>) -> (HostTensor, Vec<f64>) {
    judge_under(&CONTRACT, op)
}

fn judge_under(contract: &Contract, op: &Op<'_, Rc<HostTensor>>) -> (HostTensor, Vec<f64>) {
    let host = op.try_map(|t| Ok(t.clone())).unwrap();
    let inputs: Vec<Rc<HostTensor>> = host.inputs().into_iter().cloned().collect();
    let mut next = inputs.iter();
    let host = host.try_map(|_| Ok(&**next.next().unwrap())).unwrap();
    let exact = exact(&host, contract).unwrap();
    let floor = floor_of(&host, contract, &exact).unwrap();
    (exact, floor)
}

/// What an f32 implementation makes of `op`: the oracle's result, rounded.
fn made(op: &Op<'_, Rc<HostTensor>>) -> HostTensor {
    let exact = judge(op).0;
    match exact.data {
        crate::op::Data::U32(_) => exact,
        _ => HostTensor::f32(&exact.shape, exact.to_f32()),
    }
}

fn world() -> World {
    World::new("main")
}

/// Every stage of the model, layer 1 for those of a layer.
fn sites() -> Vec<Site> {
    use crate::op::{LayerLayout, STAGES, Scope};
    STAGES
        .iter()
        .filter(|row| row.scope.occurs(LayerLayout::QWEN3MOE))
        .map(|row| if row.scope == Scope::Model { Site::model(row.stage) } else { Site::layer(1, row.stage) })
        .collect()
}

#[test]
fn what_is_right_or_garbage_is_explained_by_nothing() {
    let w = world();
    for site in sites() {
        let op = w.op(site);
        let right = made(&op);
        let e = w.explain(site, &right);
        assert_eq!((e.fits.len(), e.tried, e.reproduced()), (0, 0, false), "{site}: {e}");
        if site.stage.is_ids() {
            continue;
        }
        // A fixed scramble of the order of magnitude of the values.
        let noise =
            |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
        let largest = right.to_f32().iter().fold(0f32, |m, x| m.max(x.abs()));
        for size in [1.0, 1e-2, 1e-4] {
            let garbage: Vec<f32> =
                right.to_f32().iter().enumerate().map(|(i, x)| x + size * largest * noise(i)).collect();
            let e = w.explain(site, &HostTensor::f32(&right.shape, garbage));
            assert!(!e.reproduced() && e.tried > 0, "{site}, noise {size}: {e}");
        }
    }
}

/// Asserts that the first hypothesis to reproduce `output` is `id`, and that nothing that does not reproduce it comes near.
fn explained(w: &World, site: Site, output: &HostTensor, id: &str, words: &str) {
    let e = w.explain(site, output);
    assert!(e.reproduced(), "{site}: {e}");
    assert_eq!(e.fits[0].id, id, "{site}: {e}");
    assert!(e.fits[0].what.contains(words), "{site}: {e}");
    assert!(e.fits[0].residual <= 1.0, "{site}: {e}");
    assert!(e.nearest.as_ref().is_none_or(|next| next.residual > 2.0), "{site}: {e}");
}

fn f32s(t: HostTensor) -> HostTensor {
    HostTensor::f32(&t.shape, t.to_f32())
}
