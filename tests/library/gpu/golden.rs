//! The GPU against transformers in float64: every stage of every golden prompt, each computed alone from the golden inputs
//! that the stage table names. nmse at most 1e-11; router ids equal.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::common::*;

use safetensors::{Dtype, SafeTensors};
use twinscope::gguf::Gguf;
use twinscope::op::{
    GateActivation, HostTensor, LayerLayout, Op, OpKind, Rotation, STAGES, Scope, Site, Stage, StageInfo, Weight,
};

const LAYERS: usize = 4;
const HEAD_DIM: usize = 64;
const USED: usize = 2;
const LIMIT: f64 = 1e-11;

struct Golden {
    tokens: Vec<u32>,
    values: HashMap<String, HostTensor>,
}

impl Golden {
    fn open(prompt: &str) -> Self {
        let file = std::fs::read(format!("tests/golden/{prompt}.safetensors")).unwrap();
        let (_, header) = SafeTensors::read_metadata(&file).unwrap();
        let tokens = &header.metadata().as_ref().unwrap()["tokens"];
        let tokens = tokens.split(',').map(|t| t.parse().unwrap()).collect();
        let st = SafeTensors::deserialize(&file).unwrap();
        let values = st.iter().map(|(key, view)| {
            let tensor = match view.dtype() {
                Dtype::F64 => {
                    let v = view.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
                    HostTensor::f64(view.shape(), v)
                }
                Dtype::I32 => {
                    let v = view.data().as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
                    HostTensor::u32(view.shape(), v)
                }
                other => panic!("{key} is {other:?}"),
            };
            (key.to_string(), tensor)
        });
        Self { tokens, values: values.collect() }
    }

    /// The value that `stage` of `site`'s layer has, or of the layer before where the table means that.
    fn input(&self, site: Site, stage: Stage) -> &HostTensor {
        let key = match (stage, site.layer) {
            (Stage::LayerOut, Some(0)) => "embedding".into(),
            (Stage::LayerOut, Some(n)) => format!("layers.{}.layer_out", n - 1),
            (Stage::LayerOut, None) => format!("layers.{}.layer_out", LAYERS - 1),
            (_, Some(n)) => format!("layers.{n}.{stage}"),
            (_, None) => stage.name().into(),
        };
        &self.values[&key]
    }
}

struct Model {
    gguf: Gguf,
    eps: f32,
    rope_base: f64,
}

impl Model {
    fn open() -> Self {
        let gguf = Gguf::open(Path::new("models/demo-moe-Q4_K_M.gguf")).unwrap();
        let eps = gguf.metadata.f32("qwen3moe.attention.layer_norm_rms_epsilon").unwrap();
        let rope_base = gguf.metadata.f32("qwen3moe.rope.freq_base").unwrap() as f64;
        Self { gguf, eps, rope_base }
    }

    fn weight(&self, site: Site, name: &str) -> Arc<Weight> {
        let name = site.layer.map_or(name.to_string(), |n| format!("blk.{n}.{name}"));
        let info = self.gguf.tensor(&name).unwrap_or_else(|| panic!("no tensor {name}"));
        let dim = |i: usize| info.dims.get(i).map_or(1, |d| *d as usize);
        let (owner, start) = self.gguf.tensor_bytes(info);
        Weight::new(&name, info.ty, [dim(0), dim(1), dim(2)], owner, start, info.offset).unwrap()
    }

    fn op<'a>(
        &self,
        row: &StageInfo,
        golden: &'a Golden,
        site: Site,
        weight: &'a Option<Arc<Weight>>,
    ) -> Op<'a, &'a HostTensor> {
        let input = |n: usize| golden.input(site, row.inputs[n]);
        let weight = || weight.as_ref().unwrap();
        let (start, head_dim) = (0, HEAD_DIM);
        match row.op {
            OpKind::Embed => Op::Embed { table: weight(), tokens: &golden.tokens, scale: 1.0 },
            OpKind::HeadMatMul => unreachable!("no stage of the bundled model"),
            OpKind::RmsNorm => Op::RmsNorm { x: input(0), weight: weight(), eps: self.eps, keep: 0 },
            OpKind::Bias => Op::Bias { x: input(0), weight: weight() },
            OpKind::MatMul => Op::MatMul { x: input(0), weight: weight() },
            OpKind::Rope => Op::Rope { x: input(0), start, head_dim, rotation: Rotation::neox(self.rope_base) },
            OpKind::AttnScores => {
                Op::AttnScores { q: input(0), k: input(1), start, head_dim, scale: None, window: None }
            }
            OpKind::AttnProbs => Op::AttnProbs { scores: input(0), start, window: None, sinks: None },
            OpKind::AttnContext => Op::AttnContext { probs: input(0), v: input(1), start, head_dim, window: None },
            OpKind::Add => Op::Add { a: input(0), b: input(1) },
            OpKind::RouterProbs => Op::RouterProbs { logits: input(0), sigmoid: false },
            OpKind::RouterTopK => Op::RouterTopK { probs: input(0), k: USED, groups: None },
            OpKind::RouterWeights => {
                Op::RouterWeights { probs: input(0), ids: input(1), renormalise: true, softmax: false, scale: 1.0 }
            }
            OpKind::ExpertMatMul => Op::ExpertMatMul { x: input(0), ids: input(1), weight: weight() },
            OpKind::SwiGlu => Op::SwiGlu { gate: input(0), up: input(1), activation: GateActivation::Silu },
            OpKind::ExpertBias => unreachable!("the bundled model has no biases"),
            OpKind::Conv | OpKind::L2Norm | OpKind::Decay | OpKind::DeltaRule => {
                unreachable!("the bundled model has no linear attention")
            }
            OpKind::SigmoidGate => Op::SigmoidGate { x: input(0), gate: input(1) },
            OpKind::Combine => Op::Combine { down: input(0), weights: input(1) },
            OpKind::Store | OpKind::Rows => unreachable!("they make no stage"),
        }
    }
}

/// Σ(a−b)² / Σb²; a NaN stays one.
fn nmse(got: &HostTensor, want: &HostTensor) -> f64 {
    let (got, want) = (got.to_f64(), want.to_f64());
    let error: f64 = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum();
    error / want.iter().map(|b| b * b).sum::<f64>()
}

/// The sites of a model without dense layers.
fn sites() -> Vec<(Site, &'static StageInfo)> {
    let in_layers = |row: &StageInfo| row.scope != Scope::Model && row.scope.occurs(LayerLayout::QWEN3MOE);
    let layers = (0..LAYERS)
        .flat_map(|n| STAGES.iter().filter(move |r| in_layers(r)).map(move |r| (Site::layer(n, r.stage), r)));
    let whole = STAGES.iter().filter(|r| r.scope == Scope::Model).map(|r| (Site::model(r.stage), r));
    layers.chain(whole).collect()
}

#[test]
fn every_stage_alone_equals_transformers() {
    let model = Model::open();
    let mut backend = gpu();
    for prompt in ["main", "ownership", "one"] {
        let golden = Golden::open(prompt);
        let mut checked = 0;
        for (site, row) in sites() {
            let want = &golden.values[&site.key()];
            let weight = row.weight.map(|name| model.weight(site, name));
            let got = run(&mut backend, &model.op(row, &golden, site, &weight));
            assert_eq!(got.shape, want.shape, "{prompt}: {site}");
            if row.stage.is_ids() {
                assert_eq!(got.ids(), want.ids(), "{prompt}: {site}");
            } else {
                let nmse = nmse(&got, want);
                assert!(nmse <= LIMIT, "{prompt}: {site}: nmse {nmse:e}");
            }
            checked += 1;
        }
        assert_eq!(checked, golden.values.len(), "{prompt}: goldens that no stage was checked against");
    }
}
