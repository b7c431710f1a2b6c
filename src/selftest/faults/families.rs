//! Faults in what only some families have: NORM pairing and frequency factors of `llama`, biases of `qwen2`, YaRN,
//! the shared expert of `qwen2moe`, weights that are not renormalised, norms of whole rows, and of
//! `gemma3` the scaled embedding, windows, the rope base of layers with one, norms after attention and FFN, gelu; of `gpt-oss` sinks, the
//! clamped activation, biases of router and experts, the softmax over the chosen, YaRN's ramp.

use std::sync::Arc;

use super::super::faulty::{FaultScope, HostOp};
use super::attention::{NOT_FIRST, misplaced, operation};
use super::{By, FAULT, Fault, FaultySide, Shader};
use crate::diff::locate::pattern::PatternKind as P;
use crate::op::{GateActivation, HostTensor, Op, Rotation, Stage, Yarn};

const LLAMA: &[usize] = &[2];
const QWEN2: &[usize] = &[3];
const YARN: &[usize] = &[4];
const QWEN2MOE: &[usize] = &[5];
const OLMOE: &[usize] = &[6];
const GEMMA3: &[usize] = &[7];
const GPT_OSS: &[usize] = &[8];
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
        ..FAULT
    },
    Fault {
        name: "bias-of-k",
        what: "the bias of k is added to v",
        by: By::Operation(|place| {
            let other = place.weights().qkv_bias.as_ref().map(|bias| Arc::clone(&bias.k));
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
        ..FAULT
    },
    Fault {
        name: "renormalised",
        what: "the chosen experts' weights are divided by their sum, which this family does not do",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::RouterWeights { probs, ids, .. } => {
                    Some(Op::RouterWeights { probs, ids, renormalise: true, softmax: false })
                }
                _ => None,
            })
        }),
        models: &[5, 6],
        stage: Stage::RouterWeights,
        layers: [0, 1],
        explained: &["renormalisation"],
        ..FAULT
    },
    Fault {
        name: "norm-by-heads",
        what: "q is normalised head by head where the norm is over the row",
        by: By::Operation(|place| {
            let head_dim = place.model.config.head_dim;
            Box::new(move |_, op| {
                let Op::RmsNorm { x, weight, eps } = op else { return Err(misplaced(op)) };
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
        ..FAULT
    },
    Fault {
        name: "post-norm-one-added",
        what: "1 is added to the weight of the norm after the FFN, which has it already",
        by: By::Shader(&[Shader { kernel: "rms_norm", edits: &[("* weight[i]", "* (1.0 + weight[i])")] }]),
        models: GEMMA3,
        stage: Stage::FfnPostNorm,
        explained: &["norm-weight"],
        ..FAULT
    },
    Fault {
        name: "sinks-missing",
        what: "the softmax of attention without its sinks",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::AttnProbs { scores, start, window, .. } => {
                    Some(Op::AttnProbs { scores, start, window, sinks: None })
                }
                _ => None,
            })
        }),
        models: GPT_OSS,
        stage: Stage::AttnProbs,
        layers: [0, 1],
        patterns: SEEN,
        explained: &["attention-sink"],
        ..FAULT
    },
    Fault {
        name: "sink-of-next-head",
        what: "each head has the sink of the next",
        by: By::Shader(&[Shader {
            kernel: "attn_probs_sinks",
            edits: &[("sinks[group.y]", "sinks[(group.y + 1u) % grid.y]")],
        }]),
        models: GPT_OSS,
        stage: Stage::AttnProbs,
        patterns: SEEN,
        explained: &["attention-sink"],
        ..FAULT
    },
    Fault {
        name: "sink-unshifted",
        what: "a sink's exponential is added to the sum without the largest score taken from it",
        by: By::Shader(&[Shader {
            kernel: "attn_probs_sinks",
            edits: &[("sum += exp_f32(sink - largest);", "sum += exp_f32(sink);")],
        }]),
        models: GPT_OSS,
        stage: Stage::AttnProbs,
        layers: [0, 1],
        patterns: SEEN,
        explained: &["attention-sink"],
        ..FAULT
    },
    Fault {
        name: "sink-window-off-by-one",
        what: "a window of one key more, with sinks",
        by: By::Shader(&[Shader {
            kernel: "attn_probs_sinks",
            edits: &[("max(visible, p.window) - p.window", "max(visible, p.window + 1u) - p.window - 1u")],
        }]),
        models: GPT_OSS,
        stage: Stage::AttnProbs,
        patterns: BEYOND_WINDOW,
        explained: &["window"],
        ..FAULT
    },
    Fault {
        name: "clamp-missing",
        what: "gate and up are not held to their limits",
        by: By::Shader(&[Shader {
            kernel: "clamped_swish",
            edits: &[
                ("let g = select(gate[n], LIMIT, gate[n] > LIMIT);", "let g = gate[n];"),
                ("let u = select(low, LIMIT, up[n] > LIMIT);", "let u = up[n];"),
            ],
        }]),
        models: GPT_OSS,
        stage: Stage::ExpertAct,
        patterns: HERE_AND_THERE,
        explained: &["clamp"],
        ..FAULT
    },
    Fault {
        name: "clamp-above-only",
        what: "up is held to at most 7 and not to at least −7",
        by: By::Shader(&[Shader {
            kernel: "clamped_swish",
            edits: &[("let low = select(up[n], -LIMIT, up[n] < -LIMIT);", "let low = up[n];")],
        }]),
        models: GPT_OSS,
        stage: Stage::ExpertAct,
        layers: [0, 1],
        patterns: HERE_AND_THERE,
        explained: &["clamp"],
        ..FAULT
    },
    Fault {
        name: "alpha-one",
        what: "the sigmoid of the gate, not of 1.702 times it",
        by: By::Shader(&[Shader { kernel: "clamped_swish", edits: &[("let scaled = ALPHA * g;", "let scaled = g;")] }]),
        models: GPT_OSS,
        stage: Stage::ExpertAct,
        layers: [0, 1],
        explained: &["clamp"],
        ..FAULT
    },
    Fault {
        name: "up-without-one",
        what: "1 is not added to up",
        by: By::Operation(|_| {
            Box::new(|_, op| {
                let Op::SwiGlu { gate, up, .. } = op else { return Err(misplaced(op)) };
                let values = gate.to_f64().into_iter().zip(up.to_f64()).map(|(g, u)| {
                    let g = g.min(7.0);
                    (g / (1.0 + (-1.702 * g).exp()) * u.clamp(-7.0, 7.0)) as f32
                });
                Ok(HostTensor::f32(&gate.shape, values.collect()))
            })
        }),
        subject: FaultySide::Cpu,
        models: GPT_OSS,
        stage: Stage::ExpertAct,
        explained: &["clamp"],
        ..FAULT
    },
    Fault {
        name: "plain-swiglu",
        what: "silu(gate) · up where the model has limits and adds 1",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::SwiGlu { gate, up, .. } => Some(Op::SwiGlu { gate, up, activation: GateActivation::Silu }),
                _ => None,
            })
        }),
        models: GPT_OSS,
        stage: Stage::ExpertAct,
        explained: &["clamp"],
        ..FAULT
    },
    Fault {
        name: "attn-out-bias-missing",
        what: "the bias of attention's output is not added",
        by: By::Operation(|_| {
            Box::new(|_, op| match op {
                Op::Bias { x, .. } => Ok(HostTensor::f32(&x.shape, x.to_f32())),
                _ => Err(misplaced(op)),
            })
        }),
        subject: FaultySide::Cpu,
        models: GPT_OSS,
        stage: Stage::AttnOutBias,
        layers: [0, 1],
        explained: &["bias"],
        ..FAULT
    },
    Fault {
        name: "router-bias-missing",
        what: "the router's bias is not added",
        by: By::Shader(&[Shader { kernel: "bias", edits: &[("x[n] + bias[n % p.cols]", "x[n]")] }]),
        models: GPT_OSS,
        stage: Stage::RouterBias,
        explained: &["bias"],
        ..FAULT
    },
    Fault {
        name: "expert-bias-missing",
        what: "the bias of the experts' gate is not added",
        by: By::Operation(|_| {
            Box::new(|_, op| match op {
                Op::ExpertBias { x, .. } => Ok(HostTensor::f32(&x.shape, x.to_f32())),
                _ => Err(misplaced(op)),
            })
        }),
        subject: FaultySide::Cpu,
        models: GPT_OSS,
        stage: Stage::ExpertGateBias,
        layers: [0, 1],
        explained: &["bias"],
        ..FAULT
    },
    Fault {
        name: "expert-bias-of-next",
        what: "each expert has the bias of the next",
        by: By::Shader(&[Shader {
            kernel: "expert_bias",
            edits: &[("let expert = ids[n / p.cols];", "let expert = (ids[n / p.cols] + 1u) % p.experts;")],
        }]),
        models: GPT_OSS,
        stage: Stage::ExpertDownBias,
        explained: &["expert-bias"],
        ..FAULT
    },
    Fault {
        name: "expert-bias-of-one",
        what: "one expert has the bias of the next",
        by: By::Shader(&[Shader {
            kernel: "expert_bias",
            edits: &[("let expert = ids[n / p.cols];", "let expert = (ids[n / p.cols] + 1u) % p.experts;")],
        }]),
        models: GPT_OSS,
        stage: Stage::ExpertUpBias,
        layers: [0, 1],
        scope: FaultScope::Expert,
        patterns: &[P::Expert],
        explained: &["expert-bias"],
        ..FAULT
    },
    Fault {
        name: "expert-bias-of-slot",
        what: "slot k has the bias of expert k",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let Op::ExpertBias { x, ids, weight } = op else { return Err(misplaced(op)) };
                let slots = (0..ids.len()).map(|i| (i % ids.cols()) as u32).collect();
                let ids = HostTensor::u32(&ids.shape, slots).into();
                engine.run(&Op::ExpertBias { x: x.clone(), ids, weight })
            })
        }),
        subject: FaultySide::Cpu,
        models: GPT_OSS,
        stage: Stage::ExpertGateBias,
        patterns: &[P::WholeTensor, P::Expert, P::Scattered, P::Slot, P::Position],
        explained: &["expert-bias"],
        ..FAULT
    },
    Fault {
        name: "softmax-over-all",
        what: "the chosen experts have their shares of a softmax over all",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let Op::RouterWeights { probs, ids, .. } = op else { return Err(misplaced(op)) };
                let probs = engine.run(&Op::RouterProbs { logits: probs.clone() })?.into();
                engine.run(&Op::RouterWeights { probs, ids: ids.clone(), renormalise: false, softmax: false })
            })
        }),
        subject: FaultySide::Cpu,
        models: GPT_OSS,
        stage: Stage::RouterWeights,
        layers: [0, 1],
        explained: &["renormalisation"],
        ..FAULT
    },
    Fault {
        name: "yarn-whole-pairs",
        what: "YaRN's ramp with its ends rounded to whole pairs",
        by: By::Operation(|_| operation(|op| yarn(op, |scale, yarn| (scale, Yarn { between: false, ..yarn })))),
        models: GPT_OSS,
        stage: Stage::KRope,
        layers: [0, 1],
        patterns: WITHIN_HEADS,
        explained: &["rope-scaling"],
        ..FAULT
    },
];

/// Whatever is seen of a matrix of scores.
const SEEN: &[P] =
    &[P::WholeTensor, P::Scattered, P::Diagonal, P::PositionRange, P::AllButPosition, P::Heads, P::AllButHead];

/// Values that are beyond a limit.
const HERE_AND_THERE: &[P] = &[P::Scattered, P::WholeTensor, P::Column, P::Position];

/// Some pairs of every head, at every position but 0, which does not turn.
const WITHIN_HEADS: &[P] = &[P::PositionRange, P::AllButPosition, P::WithinHead];

/// The later positions, or the keys that are seen too many or too few.
const BEYOND_WINDOW: &[P] = &[
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
fn yarn<'w>(op: HostOp<'w>, change: fn(f64, Yarn) -> (f64, Yarn)) -> Option<HostOp<'w>> {
    match op {
        Op::Rope { x, start, head_dim, rotation } => {
            let (scale, yarn) = change(rotation.scale, rotation.yarn?);
            Some(Op::Rope { x, start, head_dim, rotation: Rotation { scale, yarn: Some(yarn), ..rotation } })
        }
        _ => None,
    }
}
