//! Faults in what only `glm4moe` has: sigmoids for a softmax, a bias that is for the choice alone, scaled weights, rope on a part of each
//! head, a shared expert without a gate, and a first layer without experts.

use super::attention::{misplaced, operation};
use super::families::WITHIN_HEADS;
use super::{By, FAULT, Fault, FaultySide, Shader};
use crate::diff::locate::PatternKind as P;
use crate::model::{Ffn, Model};
use crate::op::{GateActivation, HostTensor, Op, Rotation, Stage};

const GLM4MOE: &[usize] = &[9];

/// Experts where the choice differs, in some positions and slots.
const OTHER_CHOICE: &[P] = &[P::WholeTensor, P::Scattered, P::Position, P::Slot, P::PositionRange, P::AllButPosition];

/// The bias of the choice in a layer.
fn bias_of(model: &Model, layer: usize) -> Vec<f32> {
    match &model.weights.layers[layer].ffn {
        Ffn::Moe(moe) => moe.choice_bias.iter().flat_map(|weight| weight.f32s()).collect(),
        Ffn::Dense { .. } => Vec::new(),
    }
}

pub(super) static FAULTS: &[Fault] = &[
    Fault {
        name: "softmax-for-sigmoids",
        what: "a softmax over all experts where the model has sigmoids",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::RouterProbs { logits, .. } => Some(Op::RouterProbs { logits, sigmoid: false }),
                _ => None,
            })
        }),
        models: GLM4MOE,
        stage: Stage::RouterProbs,
        layers: [0, 1],
        explained: &["router-softmax"],
        says: &["a softmax over all experts instead of sigmoids"],
        ..FAULT
    },
    Fault {
        name: "sigmoid-turned",
        what: "the sigmoid of the logit with its sign turned",
        by: By::Shader(&[Shader {
            kernel: "router_sigmoids",
            edits: &[("select(e, 1.0, x[n] >= 0.0)", "select(e, 1.0, x[n] < 0.0)")],
        }]),
        models: GLM4MOE,
        stage: Stage::RouterProbs,
        layers: [0, 1],
        explained: &["router-softmax"],
        says: &["the sigmoid of the logit with its sign turned"],
        ..FAULT
    },
    Fault {
        name: "choice-bias-on-logits",
        what: "the bias of the choice is added to the logits, before their sigmoids",
        by: By::Operation(|place| {
            let bias = bias_of(place.model, place.layer);
            Box::new(move |engine, op| {
                let Op::RouterProbs { logits, sigmoid } = op else { return Err(misplaced(op)) };
                let biased = logits.to_f32().into_iter().zip(bias.iter().cycle()).map(|(x, b)| x + b).collect();
                let logits = HostTensor::f32(&logits.shape, biased).into();
                engine.run(&Op::RouterProbs { logits, sigmoid: *sigmoid })
            })
        }),
        subject: FaultySide::Cpu,
        models: GLM4MOE,
        stage: Stage::RouterProbs,
        layers: [0, 1],
        explained: &["choice-bias"],
        says: &["the bias of the choice added to the logits"],
        ..FAULT
    },
    Fault {
        name: "choice-bias-missing",
        what: "the bias of the choice is not added",
        by: By::Shader(&[Shader { kernel: "bias", edits: &[("x[n] + bias[n % p.cols]", "x[n]")] }]),
        models: GLM4MOE,
        stage: Stage::RouterChoice,
        layers: [0, 1],
        explained: &["bias"],
        says: &["the bias left out"],
        ..FAULT
    },
    Fault {
        name: "choice-bias-subtracted",
        what: "the bias of the choice is subtracted",
        by: By::Operation(|place| {
            let bias = bias_of(place.model, place.layer);
            Box::new(move |_, op| {
                let Op::Bias { x, .. } = op else { return Err(misplaced(op)) };
                let values = x.to_f32().into_iter().zip(bias.iter().cycle()).map(|(x, b)| x - b);
                Ok(HostTensor::f32(&x.shape, values.collect()))
            })
        }),
        subject: FaultySide::Cpu,
        models: GLM4MOE,
        stage: Stage::RouterChoice,
        layers: [0, 1],
        explained: &["bias"],
        says: &["the bias subtracted"],
        ..FAULT
    },
    Fault {
        name: "choice-unbiased",
        what: "the experts are chosen by their probabilities without the bias",
        by: By::Operation(|place| {
            let bias = bias_of(place.model, place.layer);
            Box::new(move |engine, op| {
                let Op::RouterTopK { probs, k, groups } = op else { return Err(misplaced(op)) };
                let values = probs.to_f32().into_iter().zip(bias.iter().cycle()).map(|(x, b)| x - b).collect();
                let probs = HostTensor::f32(&probs.shape, values).into();
                engine.run(&Op::RouterTopK { probs, k: *k, groups: *groups })
            })
        }),
        subject: FaultySide::Cpu,
        models: GLM4MOE,
        stage: Stage::RouterIds,
        layers: [0, 1],
        patterns: OTHER_CHOICE,
        explained: &["choice-bias"],
        ..FAULT
    },
    Fault {
        name: "choice-bias-in-weights",
        what: "the bias of the choice is in the weights",
        by: By::Operation(|place| {
            let bias = bias_of(place.model, place.layer);
            Box::new(move |engine, op| {
                let Op::RouterWeights { probs, ids, renormalise, softmax, scale } = op else {
                    return Err(misplaced(op));
                };
                let values = probs.to_f32().into_iter().zip(bias.iter().cycle()).map(|(x, b)| x + b).collect();
                let probs = HostTensor::f32(&probs.shape, values).into();
                let (renormalise, softmax, scale) = (*renormalise, *softmax, *scale);
                engine.run(&Op::RouterWeights { probs, ids: ids.clone(), renormalise, softmax, scale })
            })
        }),
        subject: FaultySide::Cpu,
        models: GLM4MOE,
        stage: Stage::RouterWeights,
        layers: [0, 1],
        explained: &["choice-bias"],
        ..FAULT
    },
    Fault {
        name: "weights-unscaled",
        what: "the experts' weights are not multiplied by their scale",
        by: By::Shader(&[Shader {
            kernel: "router_weights",
            edits: &[("chosen(t, k) / sum * p.scale", "chosen(t, k) / sum")],
        }]),
        models: GLM4MOE,
        stage: Stage::RouterWeights,
        layers: [0, 1],
        explained: &["weights-scale"],
        says: &["weights that are not multiplied by"],
        ..FAULT
    },
    Fault {
        name: "weights-scaled-twice",
        what: "the experts' weights are multiplied by their scale twice",
        by: By::Shader(&[Shader {
            kernel: "router_weights",
            edits: &[("chosen(t, k) / sum * p.scale", "chosen(t, k) / sum * p.scale * p.scale")],
        }]),
        models: GLM4MOE,
        stage: Stage::RouterWeights,
        layers: [0, 1],
        explained: &["weights-scale"],
        says: &["weights multiplied by"],
        ..FAULT
    },
    Fault {
        name: "sigmoids-not-renormalised",
        what: "the experts' weights are multiplied by their scale and not divided by their sum",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::RouterWeights { probs, ids, softmax, scale, .. } => {
                    Some(Op::RouterWeights { probs, ids, renormalise: false, softmax, scale })
                }
                _ => None,
            })
        }),
        models: GLM4MOE,
        stage: Stage::RouterWeights,
        layers: [0, 1],
        explained: &["renormalisation"],
        says: &["weights that are not renormalised"],
        ..FAULT
    },
    Fault {
        name: "rope-whole-head",
        what: "all of each head turns where the first half does",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Rope { x, start, head_dim, rotation } => {
                    Some(Op::Rope { x, start, head_dim, rotation: Rotation { dims: None, ..rotation } })
                }
                _ => None,
            })
        }),
        models: GLM4MOE,
        stage: Stage::QRope,
        patterns: TURNED,
        explained: &["rope-part"],
        says: &["rope on all 64 dimensions of a head, of which"],
        ..FAULT
    },
    Fault {
        name: "rope-last-half",
        what: "the last half of each head turns, not the first",
        by: By::Shader(&[Shader {
            kernel: "rope",
            edits: &[
                ("start + p.first", "start + 2u * (p.half_dim - p.turned)"),
                ("vec2<u32>(p.first)", "vec2<u32>(2u * (p.half_dim - p.turned))"),
            ],
        }]),
        models: GLM4MOE,
        stage: Stage::KRope,
        layers: [0, 1],
        patterns: TURNED,
        explained: &["rope-part"],
        says: &["rope on the last 32 of a head's 64 dimensions"],
        ..FAULT
    },
    Fault {
        name: "rope-exponents-of-the-head",
        what: "the exponents of rope are made of the whole head's width",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Rope { x, start, head_dim, rotation } => {
                    // 2i/D for 2i/R, R = D/2, is the base's root.
                    let rotation = Rotation { base: rotation.base.sqrt(), ..rotation };
                    Some(Op::Rope { x, start, head_dim, rotation })
                }
                _ => None,
            })
        }),
        models: GLM4MOE,
        stage: Stage::QRope,
        layers: [0, 1],
        patterns: TURNED,
        explained: &["rope-part", "rope-exponent", "rope-base"],
        says: &["rope with exponents 2i/64 for 2i/32"],
        ..FAULT
    },
    Fault {
        name: "rest-of-head-lost",
        what: "the dimensions of a head that do not turn are not written",
        by: By::Shader(&[Shader {
            kernel: "rope",
            edits: &[(
                "y[at.x] = x[at.x];\n            y[at.y] = x[at.y];",
                "y[at.x] = 0.0;\n            y[at.y] = 0.0;",
            )],
        }]),
        models: GLM4MOE,
        stage: Stage::KRope,
        patterns: TURNED,
        explained: &["zero"],
        ..FAULT
    },
    Fault {
        name: "plain-shared-missing",
        what: "the shared expert is not added",
        by: By::Operation(|_| {
            Box::new(|_, op| match op {
                Op::Add { a, .. } => Ok(HostTensor::f32(&a.shape, a.to_f32())),
                _ => Err(misplaced(op)),
            })
        }),
        subject: FaultySide::Cpu,
        models: GLM4MOE,
        stage: Stage::MoeSum,
        layers: [0, 1],
        explained: &["residual"],
        says: &["the shared expert left out"],
        ..FAULT
    },
    Fault {
        name: "plain-shared-gelu",
        what: "the shared expert has gelu for silu",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::SwiGlu { gate, up, .. } => Some(Op::SwiGlu { gate, up, activation: GateActivation::GeluTanh }),
                _ => None,
            })
        }),
        models: GLM4MOE,
        stage: Stage::SharedAct,
        layers: [0, 1],
        explained: &["activation"],
        says: &["gelu, by tanh,"],
        ..FAULT
    },
    Fault {
        name: "dense-up-missing",
        what: "the plain FFN of the first layer has silu(gate) without up",
        by: By::Shader(&[Shader { kernel: "swiglu", edits: &[("up[n]", "1.0")] }]),
        models: GLM4MOE,
        stage: Stage::FfnAct,
        explained: &["gate-up"],
        says: &["silu(gate) without up"],
        ..FAULT
    },
];

/// Columns of each head, from position 1 on where rope turns at all.
const TURNED: &[P] = WITHIN_HEADS;
