//! Each stage of the bundled model computed alone, by the oracle, from the inputs that the stage table names.
//!
//! - Against transformers in float64: the goldens were computed on weights that gguf-py dequantized to f32, with rope's angles
//!   and every softmax and norm in float64, and eps the f32 that the file holds. The two sides differ by float64 rounding alone,
//!   nmse about 1e-31. The bound is 1e-22; a single f32 rounding anywhere would give 1e-15.
//! - Against every backend's own run: each stage, on the activations of the real model that the backend itself made,
//!   is within the rounding floor of the backend's contract.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::{PROMPTS, golden, nmse, record};
use twinscope::backend::Backend;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use twinscope::backend::oracle::evaluate;
use twinscope::formula::floor::check_against_oracle;
use twinscope::model::Model;
use twinscope::op::{
    GateActivation, HostTensor, LayerLayout, Op, OpKind, STAGES, Scope, Site, Stage, StageInfo, Weight,
};

/// The stages of one run, by trace key.
struct Run<'a> {
    model: &'a Model,
    tokens: &'a [u32],
    stages: &'a BTreeMap<String, HostTensor>,
}

impl Run<'_> {
    /// The value that `stage` has in `site`'s layer, or in the layer before where the table means that.
    fn input(&self, site: Site, stage: Stage) -> &HostTensor {
        let key = match (stage, site.layer) {
            (Stage::LayerOut, Some(0)) => Stage::Embedding.name().into(),
            (Stage::LayerOut, Some(n)) => Site::layer(n as usize - 1, stage).key(),
            (Stage::LayerOut, None) => Site::layer(self.model.config.layers - 1, stage).key(),
            (_, Some(n)) => Site::layer(n as usize, stage).key(),
            (_, None) => stage.name().into(),
        };
        &self.stages[&key]
    }

    /// The operation that makes a stage, on this run's values.
    fn op<'a>(&'a self, row: &StageInfo, site: Site, weight: Option<&'a Arc<Weight>>) -> Op<'a, &'a HostTensor> {
        let input = |n: usize| self.input(site, row.inputs[n]);
        let weight = || weight.expect("the table names its weight");
        let config = &self.model.config;
        let moe = || config.moe.as_ref().expect("a model with experts");
        let (start, head_dim) = (0, config.head_dim);
        match row.op {
            OpKind::Embed => Op::Embed { table: weight(), tokens: self.tokens, scale: 1.0 },
            OpKind::HeadMatMul => unreachable!("no stage of the bundled model"),
            OpKind::RmsNorm => Op::RmsNorm { x: input(0), weight: weight(), eps: config.eps, keep: 0 },
            OpKind::Bias => Op::Bias { x: input(0), weight: weight() },
            OpKind::MatMul => Op::MatMul { x: input(0), weight: weight() },
            OpKind::Rope => Op::Rope { x: input(0), start, head_dim, rotation: config.rotation.with_factors(None) },
            OpKind::AttnScores => {
                Op::AttnScores { q: input(0), k: input(1), start, head_dim, scale: None, window: None }
            }
            OpKind::AttnProbs => Op::AttnProbs { scores: input(0), start, window: None, sinks: None },
            OpKind::AttnContext => Op::AttnContext { probs: input(0), v: input(1), start, head_dim, window: None },
            OpKind::Add => Op::Add { a: input(0), b: input(1) },
            OpKind::RouterProbs => Op::RouterProbs { logits: input(0), sigmoid: false },
            OpKind::RouterTopK => Op::RouterTopK { probs: input(0), k: moe().used, groups: None },
            OpKind::RouterWeights => Op::RouterWeights {
                probs: input(0),
                ids: input(1),
                renormalise: moe().renormalise,
                softmax: false,
                scale: 1.0,
            },
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

    /// Calls `f` with each stage's site, operation and value; the number of stages.
    fn each(&self, mut f: impl FnMut(Site, &Op<'_, &HostTensor>, &HostTensor)) -> usize {
        let weights = self.model.weights.all();
        let in_layers = |row: &StageInfo| row.scope != Scope::Model && row.scope.occurs(LayerLayout::QWEN3MOE);
        let layers = (0..self.model.config.layers)
            .flat_map(|n| STAGES.iter().filter(move |r| in_layers(r)).map(move |r| (Site::layer(n, r.stage), r)));
        let whole = STAGES.iter().filter(|r| r.scope == Scope::Model).map(|r| (Site::model(r.stage), r));
        let mut stages = 0;
        for (site, row) in layers.chain(whole) {
            let weight = row.weight.map(|name| {
                let name = site.layer.map_or(name.to_string(), |n| format!("blk.{n}.{name}"));
                weights.iter().find(|w| w.name == name).unwrap_or_else(|| panic!("no tensor {name}"))
            });
            f(site, &self.op(row, site, weight), &self.stages[&site.key()]);
            stages += 1;
        }
        stages
    }
}

#[test]
fn every_stage_alone_equals_transformers() {
    let model = Model::open(None).unwrap();
    for prompt in PROMPTS {
        let golden = golden(prompt);
        let run = Run { model: &model, tokens: &golden.tokens, stages: &golden.stages };
        let checked = run.each(|site, op, want| {
            let got = evaluate(op).unwrap();
            if site.stage.is_ids() {
                assert_eq!(got.ids(), want.ids(), "{prompt}: {site}");
            } else {
                let nmse = nmse(want, &got);
                assert!(nmse <= 1e-22, "{prompt}: {site}: nmse {nmse:e}");
            }
        });
        assert_eq!(checked, golden.stages.len(), "{prompt}: goldens that no stage was checked against");
    }
}

/// Every stage of a backend's own run against its floor.
fn within_the_floor<B: Backend>(new: impl Fn() -> B) {
    let model = Model::open(None).unwrap();
    let (mut worst, mut ratios) = ((0.0, Site::model(Stage::Embedding)), Vec::new());
    for prompt in PROMPTS {
        let tokens = golden(prompt).tokens;
        let backend = new();
        let name = backend.info().backend;
        let contracts: BTreeMap<OpKind, _> = OpKind::ALL.iter().map(|op| (*op, backend.contract(*op))).collect();
        let stages = record(backend, &model, &tokens);
        Run { model: &model, tokens: &tokens, stages: &stages }.each(|site, op, value| {
            let checked = check_against_oracle(op, &contracts[&op.kind()], value).unwrap();
            assert!(checked.ratio.explained(), "{name}: {prompt}: {site}: {:?}", checked.ratio);
            if checked.ratio.max > worst.0 {
                worst = (checked.ratio.max, site);
            }
            ratios.push(checked.ratio.max);
        });
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    println!("{} stages: median {median:.3}, largest {:.3} at {}", ratios.len(), worst.0, worst.1);
    assert!(median >= 0.01, "a floor that never bites: median {median}");
}

#[test]
fn cpu_runs_stay_within_the_floor() {
    for level in Level::available() {
        within_the_floor(|| CpuBackend::new(Some(level), None).expect("an available level"));
    }
}

#[test]
fn gpu_runs_stay_within_the_floor() {
    within_the_floor(|| {
        GpuBackend::new(&AdapterSelector::Best, GpuOptions::default()).expect("a Vulkan, Metal or DX12 adapter")
    });
}
