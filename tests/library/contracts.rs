//! What engines really did, against the contracts that bear their names: each stage of a capture on its own shown inputs.
//!
//! The captures are one layer of the demo model, and its logits at a few positions: `llama.cpp-cpu` is llama.cpp 0c1e570 on a CPU with AVX2,
//! `transformers-*` transformers 5.24 with PyTorch 2.15 on a CPU, eager attention. Keys are those of traces.

use std::collections::BTreeMap;
use std::path::Path;

use twinscope::backend::contract::{candidates, named};
use twinscope::backend::{Contract, NamedContract, Precision};
use twinscope::formula::exact::exact;
use twinscope::formula::floor::{floor_of, injected_ratio};
use twinscope::model::{Config, Model};
use twinscope::op::{HostTensor, OpKind, OpParams, STAGES, Scope, Stage};

/// A capture's tensors by key.
struct Shown(BTreeMap<String, HostTensor>);

impl Shown {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |view: safetensors::tensor::TensorView<'_>| {
            use safetensors::Dtype;
            let (shape, data) = (view.shape(), view.data());
            let four = || data.chunks_exact(4).map(|b| <[u8; 4]>::try_from(b).unwrap());
            let two = || data.chunks_exact(2).map(|b| u16::from_le_bytes(b.try_into().unwrap()));
            match view.dtype() {
                Dtype::F32 => HostTensor::f32(shape, four().map(f32::from_le_bytes).collect()),
                Dtype::F16 => HostTensor::f32(shape, two().map(|b| half::f16::from_bits(b).to_f32()).collect()),
                Dtype::BF16 => HostTensor::f32(shape, two().map(|b| half::bf16::from_bits(b).to_f32()).collect()),
                Dtype::I32 => HostTensor::u32(shape, four().map(u32::from_le_bytes).collect()),
                other => panic!("{other:?}"),
            }
        };
        Self(file.tensors().into_iter().map(|(key, view)| (key, tensor(view))).collect())
    }

    fn get(&self, layer: Option<usize>, stage: Stage) -> Option<&HostTensor> {
        self.0.get(&layer.map_or(stage.name().to_string(), |n| format!("layers.{n}.{}", stage.name())))
    }
}

/// How one stage fared: the largest ratio under the engine's contract, the median of the ratios there, and the largest under f32.
#[derive(Debug)]
struct Fared {
    key: String,
    stage: Stage,
    largest: f64,
    median: f64,
    under_f32: f64,
}

/// The operation of a stage without its operands.
fn params(op: OpKind, config: &Config) -> OpParams {
    let moe = config.moe.as_ref().unwrap();
    match op {
        OpKind::HeadMatMul => OpParams::HeadMatMul { x: (), weight: (), head_dim: config.head_dim, keep: false },
        OpKind::RmsNorm => OpParams::RmsNorm { x: (), weight: (), eps: config.eps, keep: 0 },
        OpKind::Bias => OpParams::Bias { x: (), weight: () },
        OpKind::MatMul => OpParams::MatMul { x: (), weight: () },
        OpKind::Rope => OpParams::Rope { x: (), start: 0, head_dim: config.head_dim, rotation: config.rotation },
        OpKind::AttnScores => {
            OpParams::AttnScores { q: (), k: (), start: 0, head_dim: config.head_dim, scale: None, window: None }
        }
        OpKind::AttnProbs => OpParams::AttnProbs { scores: (), start: 0, window: None, sinks: None },
        OpKind::AttnContext => {
            OpParams::AttnContext { probs: (), v: (), start: 0, head_dim: config.head_dim, window: None }
        }
        OpKind::Add => OpParams::Add { a: (), b: () },
        OpKind::RouterProbs => OpParams::RouterProbs { logits: (), sigmoid: false },
        OpKind::RouterTopK => OpParams::RouterTopK { probs: (), k: moe.used, groups: None },
        OpKind::RouterWeights => {
            OpParams::RouterWeights { probs: (), ids: (), renormalise: moe.renormalise, softmax: false, scale: 1.0 }
        }
        OpKind::ExpertMatMul => OpParams::ExpertMatMul { x: (), ids: (), weight: () },
        OpKind::SwiGlu => OpParams::SwiGlu { gate: (), up: (), activation: twinscope::op::GateActivation::Silu },
        OpKind::ExpertBias => OpParams::ExpertBias { x: (), ids: (), weight: () },
        OpKind::Conv | OpKind::L2Norm | OpKind::Decay | OpKind::DeltaRule => {
            unreachable!("no model that is looked at here has linear attention")
        }
        OpKind::SigmoidGate => OpParams::SigmoidGate { x: (), gate: () },
        OpKind::Combine => OpParams::Combine { down: (), weights: () },
        OpKind::Embed | OpKind::Store | OpKind::Rows => unreachable!("{op:?} makes no stage that is looked at here"),
    }
}

/// Every stage of a capture whose inputs it shows, on those inputs.
fn fared(shown: &Shown, model: &Model, contract: &NamedContract) -> Vec<Fared> {
    let (config, weights) = (&model.config, model.weights.all());
    let strict = named("f32").unwrap();
    let layers = (0..config.layers).map(Some).chain([None]);
    let sites = layers.flat_map(|layer| STAGES.iter().map(move |row| (layer, row)));
    let mut all = Vec::new();
    for (layer, row) in sites.filter(|(layer, row)| layer.is_none() == (row.scope == Scope::Model)) {
        let Some(output) = shown.get(layer, row.stage) else { continue };
        let input = |stage: &Stage| match (stage, layer, row.stage) {
            (Stage::LayerOut, Some(0), _) => shown.get(None, Stage::Embedding),
            (Stage::LayerOut, Some(n), _) => shown.get(Some(n - 1), Stage::LayerOut),
            (Stage::LayerOut, None, _) => shown.get(Some(config.layers - 1), Stage::LayerOut),
            (stage, layer, _) => shown.get(layer, *stage),
        };
        let inputs: Option<Vec<HostTensor>> = row.inputs.iter().map(|stage| input(stage).cloned()).collect();
        let Some(inputs) = inputs.filter(|inputs| !inputs.is_empty()) else { continue };
        let weight = row.weight.map(|w| layer.map_or(w.to_string(), |n| format!("blk.{n}.{w}")));
        let weight = weight.map(|name| weights.iter().find(|w| w.name == name).unwrap_or_else(|| panic!("{name}")));
        let op = params(row.op, config).bind(&inputs, weight).unwrap();
        let of = |contract: &Contract| {
            let exact = exact(&op, contract).unwrap();
            assert_eq!(exact.shape, output.shape, "{row:?}");
            let floor = floor_of(&op, contract, &exact).unwrap();
            let error: Vec<f64> = output.to_f64().iter().zip(exact.to_f64()).map(|(a, b)| a - b).collect();
            let possible = error.iter().zip(&floor).filter(|(_, floor)| **floor > 0.0);
            let mut ratios: Vec<f64> = possible.map(|(error, floor)| error.abs() / floor).collect();
            ratios.sort_by(f64::total_cmp);
            (injected_ratio(&error, &floor), ratios.get(ratios.len() / 2).copied().unwrap_or(0.0))
        };
        let ((own, median), (f32, _)) = (of(contract.get(row.op)), of(strict.get(row.op)));
        let key = layer.map_or(row.name.to_string(), |n| format!("layers.{n}.{}", row.name));
        all.push(Fared { key, stage: row.stage, largest: own.max, median, under_f32: f32.max });
    }
    all
}

/// Each stage that an engine shows is within the contract of its name on its own inputs, at every element, and near enough to its floor
/// that a fault would not hide under it. The table that it prints is what the contract is worth.
#[test]
fn engines_keep_the_contracts_of_their_names() {
    let model = Model::open(None).unwrap();
    let mut wrong = Vec::new();
    for name in ["llama.cpp-cpu", "transformers-f32", "transformers-f16", "transformers-bf16"] {
        let shown = Shown::read(&Path::new("tests/data/captures/contracts").join(format!("{name}.safetensors")));
        println!("{name:<28} {:>10} {:>10} {:>10}", "largest", "median", "under f32");
        let all = fared(&shown, &model, &named(name).unwrap());
        for f in &all {
            println!("{:<28} {:>10.3} {:>10.4} {:>10.3e}", f.key, f.largest, f.median, f.under_f32);
            if f.largest > 1.0 {
                wrong.push(format!("{name} {}: {:.3e} × floor", f.key, f.largest));
            }
        }
        let mut largest: Vec<f64> = all.iter().filter(|f| f.stage != Stage::RouterIds).map(|f| f.largest).collect();
        largest.sort_by(f64::total_cmp);
        assert!(
            largest[largest.len() / 2] > 0.05 && largest[0] > 0.005,
            "{name}: floors that never bite, {largest:.4?}"
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Of an engine of which nobody says anything, the first candidate that explains a stage is what the engine does there.
#[test]
fn the_tightest_candidate_that_explains_a_stage_is_what_the_engine_does() {
    let model = Model::open(None).unwrap();
    let mut wrong = Vec::new();
    for name in ["llama.cpp-cpu", "transformers-f32", "transformers-f16", "transformers-bf16"] {
        let shown = Shown::read(&Path::new("tests/data/captures/contracts").join(format!("{name}.safetensors")));
        let mut least = BTreeMap::<Stage, Contract>::new();
        for n in 0..OpKind::ALL.iter().map(|op| candidates(*op).len()).max().unwrap() {
            let mut of = named("f32").unwrap();
            let nth = |op: &OpKind| Some((*op, candidates(*op).get(n)?.1));
            let nth: BTreeMap<OpKind, Contract> = OpKind::ALL.iter().filter_map(nth).collect();
            of.ops.extend(&nth);
            for f in fared(&shown, &model, &of).into_iter().filter(|f| f.largest <= 1.0) {
                if let Some(contract) = nth.get(&f.stage.info().op) {
                    least.entry(f.stage).or_insert(*contract);
                }
            }
        }
        let dtype = match name {
            "transformers-f16" => Precision::F16,
            "transformers-bf16" => Precision::Bf16,
            _ => Precision::F32,
        };
        for (stage, contract) in &least {
            println!("{name:<20} {stage:<16} {contract}");
            // Probabilities and ids of a router stay f32, and what is added or chosen has no other contract.
            let (activations, output) = match (name, stage) {
                ("llama.cpp-cpu", Stage::RouterLogits) => (Precision::F32, dtype),
                ("llama.cpp-cpu", stage) if matches!(stage.info().op, OpKind::MatMul | OpKind::ExpertMatMul) => {
                    (contract.activations, Precision::F32) // Q8_K or Q8_0 by the weight's type
                }
                ("llama.cpp-cpu", Stage::AttnScores | Stage::AttnContext) => (Precision::VecDot, dtype),
                (_, Stage::RouterProbs | Stage::RouterIds) => (Precision::F32, Precision::F32),
                _ => (contract.activations, dtype),
            };
            if (contract.activations, contract.output) != (activations, output) {
                wrong.push(format!("{name} {stage}: {contract}"));
            }
            let int8 = matches!(contract.activations, Precision::Q8_K | Precision::Q8_0);
            let product = matches!(stage.info().op, OpKind::MatMul | OpKind::ExpertMatMul);
            if int8 != (name == "llama.cpp-cpu" && product && *stage != Stage::RouterLogits) {
                wrong.push(format!("{name} {stage}: {contract}"));
            }
        }
        // Every stage but the embedding and those of dense layers; layer 0's and 2's inputs are not shown.
        assert_eq!(least.len(), 25, "{name}: a stage that no candidate explains: {least:?}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
