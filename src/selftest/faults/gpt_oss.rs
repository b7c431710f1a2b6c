//! Faults in what only `gpt-oss` has: sinks, the clamped activation, biases of router and experts, the softmax over the chosen, YaRN's
//! ramp between pairs.

use super::super::faulty::FaultScope;
use super::attention::{misplaced, operation};
use super::families::{BEYOND_WINDOW, WITHIN_HEADS, yarn};
use super::{By, FAULT, Fault, FaultySide, Shader};
use crate::diff::locate::PatternKind as P;
use crate::op::{GateActivation, HostTensor, Op, Stage, Yarn};

const GPT_OSS: &[usize] = &[8];

pub(super) static FAULTS: &[Fault] = &[
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
        says: &["no sinks"],
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
        says: &["the sink of the next head"],
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
        says: &["a sink that is added to the sum without the largest of scores and sink taken from it"],
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
        says: &["a window of 5 keys"],
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
        says: &["gate and up without their limits"],
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
        says: &["up held to at most 7, not to ±7"],
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
        says: &["silu: the sigmoid of the gate"],
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
        says: &["up without 1 added"],
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
        says: &["silu(gate) · up, without limits and without 1 added to up"],
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
        says: &["the bias left out"],
        ..FAULT
    },
    Fault {
        name: "router-bias-missing",
        what: "the router's bias is not added",
        by: By::Shader(&[Shader { kernel: "bias", edits: &[("x[n] + bias[n % p.cols]", "x[n]")] }]),
        models: GPT_OSS,
        stage: Stage::RouterBias,
        explained: &["bias"],
        says: &["the bias left out"],
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
        says: &["the bias left out"],
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
        says: &["the bias of the expert 1 higher"],
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
        says: &["the biases of expert {e + 1} for those of expert {e}"],
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
        says: &["the bias of the slot's number"],
        ..FAULT
    },
    Fault {
        name: "softmax-over-all",
        what: "the chosen experts have their shares of a softmax over all",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let Op::RouterWeights { probs, ids, .. } = op else { return Err(misplaced(op)) };
                let probs = engine.run(&Op::RouterProbs { logits: probs.clone(), sigmoid: false })?.into();
                engine.run(&Op::RouterWeights {
                    probs,
                    ids: ids.clone(),
                    renormalise: false,
                    softmax: false,
                    scale: 1.0,
                })
            })
        }),
        subject: FaultySide::Cpu,
        models: GPT_OSS,
        stage: Stage::RouterWeights,
        layers: [0, 1],
        explained: &["renormalisation"],
        says: &["a softmax over all experts, of which the chosen have their shares"],
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
        says: &["YaRN's ramp with its ends rounded to whole pairs"],
        ..FAULT
    },
];

/// Whatever is seen of a matrix of scores.
const SEEN: &[P] =
    &[P::WholeTensor, P::Scattered, P::Diagonal, P::PositionRange, P::AllButPosition, P::Heads, P::AllButHead];

/// Values that are beyond a limit.
const HERE_AND_THERE: &[P] = &[P::Scattered, P::WholeTensor, P::Column, P::Position];
