//! Faults in what only some families have: NORM pairing and frequency factors of `llama`, biases of `qwen2`, YaRN,
//! the shared expert of `qwen2moe`, weights that are not renormalised, norms of whole rows, and of
//! `gemma3` the scaled embedding, windows, the rope base of layers with one, norms after attention and FFN, gelu.

use std::sync::Arc;

use super::super::faulty::HostOp;
use super::attention::{NOT_FIRST, misplaced, operation};
use super::{By, FAULT, Fault, FaultySide, Shader};
use crate::diff::locate::PatternKind as P;
use crate::model::Mixer;
use crate::op::{GateActivation, HostTensor, Op, Rotation, Stage, Yarn};

const LLAMA: &[usize] = &[2];
const QWEN2: &[usize] = &[3];
const YARN: &[usize] = &[4];
const QWEN2MOE: &[usize] = &[5];
const OLMOE: &[usize] = &[6];
const GEMMA3: &[usize] = &[7];
/// Those with windows.
const WINDOWS: &[usize] = &[7, 8];

pub(super) static FAULTS: &[Fault] = &[
    Fault {
        name: "rope-neox",
        what: "NEOX pairing (i with i + D/2) where the file has NORM",
        by: By::Shader(&[Shader { kernel: "rope", edits: &[("let norm = p.neighbours == 1u;", "let norm = false;")] }]),
        models: LLAMA,
        stage: Stage::QRope,
        layers: [0, 1],
        patterns: NOT_FIRST,
        explained: &["rope-pairing"],
        ..FAULT
    },
    Fault {
        name: "rope-no-factors",
        what: "rope_freqs.weight not read",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Rope { x, start, head_dim, rotation } => {
                    Some(Op::Rope { x, start, head_dim, rotation: Rotation { factors: None, ..rotation } })
                }
                _ => None,
            })
        }),
        subject: FaultySide::Cpu,
        models: LLAMA,
        stage: Stage::KRope,
        patterns: &[P::PositionRange, P::AllButPosition, P::WithinHead],
        explained: &["rope-scaling"],
        says: &["rope without its frequency factors"],
        ..FAULT
    },
    Fault {
        name: "rope-scaled",
        what: "angles divided by 4 where the file has no linear scaling",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Rope { x, start, head_dim, rotation } => {
                    Some(Op::Rope { x, start, head_dim, rotation: Rotation { scale: 0.25, ..rotation } })
                }
                _ => None,
            })
        }),
        models: LLAMA,
        stage: Stage::QRope,
        layers: [0, 1],
        patterns: NOT_FIRST,
        explained: &["rope-scaling"],
        says: &["rope with a linear scaling by 4"],
        ..FAULT
    },
    Fault {
        name: "bias-missing",
        what: "the bias of q is not added",
        by: By::Shader(&[Shader { kernel: "bias", edits: &[("x[n] + bias[n % p.cols]", "x[n]")] }]),
        models: QWEN2,
        stage: Stage::QBias,
        layers: [0, 1],
        explained: &["bias"],
        says: &["the bias left out"],
        ..FAULT
    },
    Fault {
        name: "bias-first-row",
        what: "the bias of v is added to the first position of a call only",
        by: By::Shader(&[Shader {
            kernel: "bias",
            edits: &[("x[n] + bias[n % p.cols]", "x[n] + select(0.0, bias[n % p.cols], n < p.cols)")],
        }]),
        models: QWEN2,
        stage: Stage::VBias,
        patterns: NOT_FIRST,
        explained: &["bias"],
        says: &["the bias left out"],
        ..FAULT
    },
    Fault {
        name: "bias-of-k",
        what: "the bias of k is added to v",
        by: By::Operation(|place| {
            let other = match &place.weights().mixer {
                Mixer::Attention(w) => w.qkv_bias.as_ref().map(|bias| Arc::clone(&bias.k)),
                Mixer::Linear(_) | Mixer::Latent(_) => None,
            };
            Box::new(move |engine, op| match (op, &other) {
                (Op::Bias { x, .. }, Some(weight)) => engine.run(&Op::Bias { x: x.clone(), weight }),
                _ => engine.run(op),
            })
        }),
        subject: FaultySide::Cpu,
        models: QWEN2,
        stage: Stage::VBias,
        layers: [0, 1],
        explained: &["bias"],
        says: &["blk.1.attn_k.bias as the bias"],
        ..FAULT
    },
    Fault {
        name: "yarn-no-magnitude",
        what: "YaRN's frequencies without its magnitude",
        by: By::Operation(|_| operation(|op| yarn(op, |scale, yarn| (scale, Yarn { magnitude: 1.0, ..yarn })))),
        models: YARN,
        stage: Stage::QRope,
        layers: [0, 1],
        explained: &["rope-scaling"],
        says: &["YaRN without its magnitude"],
        ..FAULT
    },
    Fault {
        name: "yarn-no-ramp",
        what: "every pair scaled by YaRN's factor",
        by: By::Operation(|_| operation(|op| yarn(op, |scale, yarn| (scale, Yarn { ramp: 0.0, ..yarn })))),
        subject: FaultySide::Cpu,
        models: YARN,
        stage: Stage::KRope,
        patterns: WITHIN_HEADS,
        explained: &["rope-scaling"],
        says: &["every pair scaled by 4, without YaRN's ramp"],
        ..FAULT
    },
    Fault {
        name: "yarn-context",
        what: "YaRN's ramp by the extended context in place of the original",
        by: By::Operation(|_| {
            operation(|op| yarn(op, |scale, yarn| (scale, Yarn { context: yarn.context / scale, ..yarn })))
        }),
        models: YARN,
        stage: Stage::KRope,
        layers: [0, 1],
        patterns: WITHIN_HEADS,
        explained: &["rope-scaling"],
        says: &["YaRN with an original context of 16384, or one with the same ramp, for 4096"],
        ..FAULT
    },
    Fault {
        name: "yarn-missing",
        what: "frequencies that YaRN does not scale",
        by: By::Operation(|_| operation(|op| yarn(op, |_, yarn| (1.0, yarn)))),
        subject: FaultySide::Cpu,
        models: YARN,
        stage: Stage::QRope,
        patterns: WITHIN_HEADS,
        explained: &["rope-scaling"],
        says: &["frequencies that YaRN does not scale"],
        ..FAULT
    },
    Fault {
        name: "shared-no-sigmoid",
        what: "the shared expert times its gate, without the sigmoid",
        by: By::Shader(&[Shader { kernel: "sigmoid_gate", edits: &[("y[n] = x[n] * sigmoid;", "y[n] = x[n] * g;")] }]),
        models: QWEN2MOE,
        stage: Stage::SharedOut,
        layers: [0, 1],
        explained: &["shared-gate"],
        says: &["the shared expert times its gate, without the sigmoid"],
        ..FAULT
    },
    Fault {
        name: "shared-ungated",
        what: "the shared expert is added whole",
        by: By::Operation(|_| {
            Box::new(|_, op| match op {
                Op::SigmoidGate { x, .. } => Ok(HostTensor::f32(&x.shape, x.to_f32())),
                _ => Err(misplaced(op)),
            })
        }),
        subject: FaultySide::Cpu,
        models: QWEN2MOE,
        stage: Stage::SharedOut,
        explained: &["shared-gate"],
        says: &["the shared expert without its gate"],
        ..FAULT
    },
    Fault {
        name: "shared-first-gate",
        what: "every position has the gate of the call's first",
        by: By::Shader(&[Shader { kernel: "sigmoid_gate", edits: &[("gate[n / p.cols]", "gate[0]")] }]),
        models: QWEN2MOE,
        stage: Stage::SharedOut,
        patterns: NOT_FIRST,
        explained: &["shared-gate"],
        says: &["the shared expert with the gate of the call's first position"],
        ..FAULT
    },
    Fault {
        name: "shared-missing",
        what: "the shared expert is not added",
        by: By::Operation(|_| {
            Box::new(|_, op| match op {
                Op::Add { a, .. } => Ok(HostTensor::f32(&a.shape, a.to_f32())),
                _ => Err(misplaced(op)),
            })
        }),
        subject: FaultySide::Cpu,
        models: QWEN2MOE,
        stage: Stage::MoeSum,
        layers: [0, 1],
        explained: &["residual"],
        says: &["the shared expert left out"],
        ..FAULT
    },
    Fault {
        name: "renormalised",
        what: "the chosen experts' weights are divided by their sum, which this family does not do",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::RouterWeights { probs, ids, .. } => {
                    Some(Op::RouterWeights { probs, ids, renormalise: true, softmax: false, scale: 1.0 })
                }
                _ => None,
            })
        }),
        models: &[5, 6],
        stage: Stage::RouterWeights,
        layers: [0, 1],
        explained: &["renormalisation"],
        says: &["weights that are renormalised"],
        ..FAULT
    },
    Fault {
        name: "norm-by-heads",
        what: "q is normalised head by head where the norm is over the row",
        by: By::Operation(|place| {
            let head_dim = place.model.config.head_dim;
            Box::new(move |_, op| {
                let Op::RmsNorm { x, weight, eps, .. } = op else { return Err(misplaced(op)) };
                let weights: Vec<f32> = weight.f32s().collect();
                let mut out = x.to_f32();
                for (i, head) in out.chunks_exact_mut(head_dim).enumerate() {
                    let scale = 1.0 / (head.iter().map(|x| x * x).sum::<f32>() / head_dim as f32 + eps).sqrt();
                    let of_head = weights.iter().skip(i * head_dim % weights.len());
                    head.iter_mut().zip(of_head).for_each(|(x, w)| *x *= scale * w);
                }
                Ok(HostTensor::f32(&x.shape, out))
            })
        }),
        subject: FaultySide::Cpu,
        models: OLMOE,
        stage: Stage::QNorm,
        explained: &["norm-group"],
        ..FAULT
    },
    Fault {
        name: "embedding-unscaled",
        what: "the embedding is not multiplied by √H",
        by: By::Shader(&[Shader { kernel: "embed", edits: &[("w[j][k] * p.scale", "w[j][k]")] }]),
        models: GEMMA3,
        stage: Stage::Embedding,
        explained: &["embedding-scale"],
        says: &["the embedding with no scale"],
        ..FAULT
    },
    Fault {
        name: "embedding-twice",
        what: "the embedding is multiplied by H",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Embed { table, tokens, .. } => Some(Op::Embed { table, tokens, scale: table.cols as f64 }),
                _ => None,
            })
        }),
        subject: FaultySide::Cpu,
        models: GEMMA3,
        stage: Stage::Embedding,
        explained: &["embedding-scale"],
        says: &["the embedding with its scale applied twice"],
        ..FAULT
    },
    Fault {
        name: "window-missing",
        what: "a layer with a window sees every key",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::AttnProbs { scores, start, sinks, .. } => {
                    Some(Op::AttnProbs { scores, start, window: None, sinks })
                }
                _ => None,
            })
        }),
        models: WINDOWS,
        stage: Stage::AttnProbs,
        patterns: BEYOND_WINDOW,
        explained: &["window"],
        says: &["no window: every key seen"],
        ..FAULT
    },
    Fault {
        name: "window-off-by-one",
        what: "a window of one key more",
        by: By::Shader(&[Shader {
            kernel: "attn_probs",
            edits: &[("max(visible, p.window) - p.window", "max(visible, p.window + 1u) - p.window - 1u")],
        }]),
        models: GEMMA3,
        stage: Stage::AttnProbs,
        patterns: BEYOND_WINDOW,
        explained: &["window"],
        says: &["a window of 5 keys"],
        ..FAULT
    },
    Fault {
        name: "window-everywhere",
        what: "a layer without a window has that of the others",
        by: By::Operation(|place| {
            let window = place.model.config.window.as_ref().map(|window| window.keys);
            Box::new(move |engine, op| match *op {
                Op::AttnProbs { ref scores, start, sinks, .. } => {
                    engine.run(&Op::AttnProbs { scores: scores.clone(), start, window, sinks })
                }
                _ => Err(misplaced(op)),
            })
        }),
        subject: FaultySide::Cpu,
        models: WINDOWS,
        stage: Stage::AttnProbs,
        layers: [0, 1],
        patterns: BEYOND_WINDOW,
        explained: &["window"],
        says: &["a window of 4 keys"],
        ..FAULT
    },
    Fault {
        name: "rope-base-of-all",
        what: "a layer with a window turns by the base of those without",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Rope { x, start, head_dim, rotation } => {
                    Some(Op::Rope { x, start, head_dim, rotation: Rotation { base: 1e6, ..rotation } })
                }
                _ => None,
            })
        }),
        models: GEMMA3,
        stage: Stage::QRope,
        patterns: WITHIN_HEADS,
        explained: &["rope-base"],
        says: &["rope with base 1000000 for"],
        ..FAULT
    },
    Fault {
        name: "gelu-erf",
        what: "gelu by erf where the model has it by tanh",
        by: By::Operation(|_| {
            Box::new(|_, op| {
                let Op::SwiGlu { gate, up, .. } = op else { return Err(misplaced(op)) };
                let gated = gate.to_f64().into_iter().zip(up.to_f64()).map(|(g, u)| (g * normal(g) * u) as f32);
                Ok(HostTensor::f32(&gate.shape, gated.collect()))
            })
        }),
        subject: FaultySide::Cpu,
        models: GEMMA3,
        stage: Stage::FfnAct,
        layers: [0, 1],
        explained: &["activation"],
        says: &["gelu, by erf,"],
        ..FAULT
    },
    Fault {
        name: "gelu-silu",
        what: "silu where the model has gelu",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::SwiGlu { gate, up, .. } => Some(Op::SwiGlu { gate, up, activation: GateActivation::Silu }),
                _ => None,
            })
        }),
        models: GEMMA3,
        stage: Stage::FfnAct,
        explained: &["activation"],
        says: &["silu for gelu"],
        ..FAULT
    },
    Fault {
        name: "post-norm-skipped",
        what: "what attention adds is not normalised",
        by: By::Operation(|_| {
            Box::new(|_, op| match op {
                Op::RmsNorm { x, .. } => Ok(HostTensor::f32(&x.shape, x.to_f32())),
                _ => Err(misplaced(op)),
            })
        }),
        subject: FaultySide::Cpu,
        models: GEMMA3,
        stage: Stage::AttnPostNorm,
        layers: [0, 1],
        explained: &["norm-missing"],
        says: &["no norm: the input itself"],
        ..FAULT
    },
    Fault {
        name: "post-norm-one-added",
        what: "1 is added to the weight of the norm after the FFN, which has it already",
        by: By::Shader(&[Shader { kernel: "rms_norm", edits: &[("* weight[i]", "* (1.0 + weight[i])")] }]),
        models: GEMMA3,
        stage: Stage::FfnPostNorm,
        explained: &["norm-weight"],
        says: &["the norm with 1 + weight"],
        ..FAULT
    },
];

/// Some pairs of every head, at every position but 0, which does not turn.
pub(super) const WITHIN_HEADS: &[P] = &[P::PositionRange, P::AllButPosition, P::WithinHead];

/// The later positions, or the keys that are seen too many or too few.
pub(super) const BEYOND_WINDOW: &[P] = &[
    P::PositionRange,
    P::AllButPosition,
    P::Diagonal,
    P::Scattered,
    P::Column,
    P::ColumnRange,
    P::Position,
    P::WholeTensor,
];

/// Φ, by Abramowitz and Stegun 7.1.5.
fn normal(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    if z.abs() > 5.0 { f64::from(u8::from(z > 0.0)) } else { 0.5 + sum / std::f64::consts::PI.sqrt() }
}

/// A rotation with another scale and another YaRN.
pub(super) fn yarn<'w>(op: HostOp<'w>, change: fn(f64, Yarn) -> (f64, Yarn)) -> Option<HostOp<'w>> {
    match op {
        Op::Rope { x, start, head_dim, rotation } => {
            let (scale, yarn) = change(rotation.scale, rotation.yarn?);
            Some(Op::Rope { x, start, head_dim, rotation: Rotation { scale, yarn: Some(yarn), ..rotation } })
        }
        _ => None,
    }
}
