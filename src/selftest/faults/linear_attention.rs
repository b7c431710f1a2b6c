//! Faults in what only `qwen3next` and `qwen35moe` have: the convolution, norms of length, decays, the delta rule and its state, the gate of attention's
//! output, and projections that are one weight in the file.

use std::sync::Arc;

use super::super::faulty::HostOp;
use super::attention::{misplaced, operation};
use super::{By, FAULT, Fault, FaultySide, Shader};
use crate::diff::locate::PatternKind as P;
use crate::model::Mixer;
use crate::op::{HostTensor, Op, Stage, Weight};

const LINEAR: &[usize] = &[11, 12];
const QWEN3NEXT: &[usize] = &[11];

/// Value heads that have another key head in the other order.
const SOME_HEADS: &[P] = &[P::Heads];
/// All but the first position, where the state is empty.
const LATER: &[P] = &[P::PositionRange];

/// Rows of a cache moved on by one position, of which the first is zeros.
fn later(t: &HostTensor) -> HostTensor {
    let (cols, values) = (t.cols(), t.to_f32());
    let rows = [&vec![0.0; cols][..], &values[..values.len() - cols]].concat();
    HostTensor::f32(&t.shape, rows)
}

/// A matrix of the first half of the rows of two matrices of which `together` rows take turns in the file.
fn first_half(pair: [&Arc<Weight>; 2], together: usize) -> crate::error::Result<Arc<Weight>> {
    let [a, _] = pair;
    let row = |joint: usize| {
        let of = pair[joint / together % 2];
        of.row(0, joint / (2 * together) * together + joint % together).to_vec()
    };
    Weight::from_vec("halves.weight", a.ty, [a.cols, a.rows, 1], (0..a.rows).flat_map(row).collect())
}

pub(super) static FAULTS: &[Fault] = &[
    Fault {
        name: "conv-reversed",
        what: "the convolution's kernel is reversed in time",
        by: By::Shader(&[Shader {
            kernel: "conv",
            edits: &[("fma(weight[w + i], value, sum)", "fma(weight[row * p.stride + taps - 1u - i], value, sum)")],
        }]),
        models: LINEAR,
        stage: Stage::LinearAttnConv,
        explained: &["conv-kernel"],
        says: &["the kernel reversed in time"],
        ..FAULT
    },
    Fault {
        name: "conv-late",
        what: "the convolution ends with the position before",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Conv { x, cache, weight, start } => {
                    let x = later(&x).into();
                    Some(Op::Conv { x, cache, weight, start })
                }
                _ => None,
            })
        }),
        subject: FaultySide::Cpu,
        models: LINEAR,
        stage: Stage::LinearAttnConv,
        explained: &["conv-kernel"],
        says: &["a convolution that is a position late"],
        ..FAULT
    },
    Fault {
        name: "conv-linear",
        what: "the convolution is not followed by silu",
        by: By::Shader(&[Shader { kernel: "conv", edits: &[("sum * sigmoid;", "sum;")] }]),
        models: LINEAR,
        stage: Stage::LinearAttnConv,
        explained: &["conv-activation"],
        says: &["a convolution without its silu"],
        ..FAULT
    },
    Fault {
        name: "conv-state-lost",
        what: "a decoded token's convolution finds zeros for the positions before",
        by: By::Shader(&[Shader {
            kernel: "conv",
            edits: &[("cache[position * p.channels + channel]", "0.0 * cache[position * p.channels + channel]")],
        }]),
        models: LINEAR,
        stage: Stage::LinearAttnConv,
        step: 1,
        explained: &["conv-state", "conv-kernel"],
        says: &[
            "a convolution that begins anew with the call",
            "no convolution: the position's own values times the last weight",
        ],
        ..FAULT
    },
    Fault {
        name: "l2-mean",
        what: "queries are divided by the root of the mean of squares, not of their sum",
        by: By::Shader(&[Shader {
            kernel: "l2_norm",
            edits: &[("sum_all(id.x, squares) + p.eps", "sum_all(id.x, squares) / f32(p.n) + p.eps")],
        }]),
        models: LINEAR,
        stage: Stage::LinearAttnQ,
        explained: &["l2-norm"],
        says: &["an RMS norm"],
        ..FAULT
    },
    Fault {
        name: "keys-from-queries",
        what: "the keys are the queries' columns",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::L2Norm { x, heads, head_dim, eps, .. } => Some(Op::L2Norm { x, first: 0, heads, head_dim, eps }),
                _ => None,
            })
        }),
        subject: FaultySide::Cpu,
        models: LINEAR,
        stage: Stage::LinearAttnK,
        explained: &["l2-norm"],
        says: &["the norm of the queries"],
        ..FAULT
    },
    Fault {
        name: "decay-exponential",
        what: "e^x for softplus in the decay",
        by: By::Shader(&[Shader {
            kernel: "decay",
            edits: &[("(above + log1p_f32(exp_f32(-abs(x[n]))))", "exp_f32(x[n])")],
        }]),
        models: LINEAR,
        stage: Stage::LinearAttnDecay,
        explained: &["decay"],
        says: &["exp(x) for softplus(x)"],
        ..FAULT
    },
    Fault {
        name: "decay-unweighted",
        what: "−softplus for the decay, without the heads' rates",
        by: By::Operation(|_| {
            Box::new(|_, op| {
                let Op::Decay { x, .. } = op else { return Err(misplaced(op)) };
                let values = x.to_f32().into_iter().map(|x| -(x.exp().ln_1p()));
                Ok(HostTensor::f32(&x.shape, values.collect()))
            })
        }),
        subject: FaultySide::Cpu,
        models: LINEAR,
        stage: Stage::LinearAttnDecay,
        explained: &["decay"],
        says: &["−softplus"],
        ..FAULT
    },
    Fault {
        name: "dt-bias-missing",
        what: "the decay's bias is not added",
        by: By::Shader(&[Shader { kernel: "bias", edits: &[("x[n] + bias[n % p.cols]", "x[n]")] }]),
        models: LINEAR,
        stage: Stage::LinearAttnDt,
        explained: &["bias"],
        says: &["the bias left out"],
        ..FAULT
    },
    Fault {
        name: "delta-key-heads",
        what: "value heads read the key heads of models in which they have another order",
        by: By::Shader(&[Shader {
            kernel: "delta_rule",
            edits: &[("head % p.key_heads, p.tiled != 0u)", "head % p.key_heads, p.tiled == 0u)")],
        }]),
        models: LINEAR,
        stage: Stage::LinearAttnDelta,
        patterns: SOME_HEADS,
        explained: &["delta-heads"],
        says: &["key head h "],
        ..FAULT
    },
    Fault {
        name: "delta-undecayed",
        what: "the state is not decayed",
        by: By::Shader(&[Shader {
            kernel: "delta_rule",
            edits: &[("exp_f32(decay[s * p.heads + head])", "exp_f32(0.0 * decay[s * p.heads + head])")],
        }]),
        models: LINEAR,
        stage: Stage::LinearAttnDelta,
        patterns: LATER,
        explained: &["delta-decay"],
        says: &["no decay of the state"],
        ..FAULT
    },
    Fault {
        name: "delta-beta-on-values",
        what: "beta multiplies the value, and not what the state holds",
        by: By::Shader(&[Shader {
            kernel: "delta_rule",
            edits: &[(
                "(v[s * p.v_cols + v_at] - sum_column(cell, lane, held))",
                "v[s * p.v_cols + v_at] - sum_column(cell, lane, held)",
            )],
        }]),
        models: LINEAR,
        stage: Stage::LinearAttnDelta,
        patterns: LATER,
        explained: &["delta-beta"],
        says: &["beta on the values alone"],
        ..FAULT
    },
    Fault {
        name: "delta-uncorrected",
        what: "plain linear attention: what the state holds is not taken from the value",
        by: By::Shader(&[Shader {
            kernel: "delta_rule",
            edits: &[("- sum_column(cell, lane, held))", "- 0.0 * sum_column(cell, lane, held))")],
        }]),
        models: LINEAR,
        stage: Stage::LinearAttnDelta,
        patterns: LATER,
        explained: &["delta-beta"],
        says: &["no correction: beta · v"],
        ..FAULT
    },
    Fault {
        name: "delta-unscaled",
        what: "the output is not divided by √D",
        by: By::Shader(&[Shader { kernel: "delta_rule", edits: &[("sum * p.scale;", "sum;")] }]),
        models: LINEAR,
        stage: Stage::LinearAttnDelta,
        explained: &["delta-scale", "factor"],
        says: &["no scale 1/√D", "8 times the right values", "√D times"],
        ..FAULT
    },
    Fault {
        name: "delta-before-update",
        what: "the output is read from the state before the position has updated it",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::DeltaRule { q, k, v, decay, beta, start, head_dim, tiled } => {
                    let [k, v, decay, beta] = [k, v, decay, beta].map(|t| later(&t).into());
                    Some(Op::DeltaRule { q, k, v, decay, beta, start, head_dim, tiled })
                }
                _ => None,
            })
        }),
        subject: FaultySide::Cpu,
        models: LINEAR,
        stage: Stage::LinearAttnDelta,
        explained: &["delta-state"],
        says: &["the output of the state before the position's update"],
        ..FAULT
    },
    Fault {
        name: "delta-state-lost",
        what: "a decoded token begins with an empty state",
        by: By::Operation(|_| {
            Box::new(|engine, op: &HostOp<'_>| {
                let Op::DeltaRule { q, k, v, decay, beta, start, head_dim, tiled } = op.clone() else {
                    return Err(misplaced(op));
                };
                let (heads, mut values) = (decay.cols(), decay.to_f32());
                values[start * heads..][..heads].fill(-1e4);
                let decay = HostTensor::f32(&decay.shape, values).into();
                engine.run(&Op::DeltaRule { q, k, v, decay, beta, start, head_dim, tiled })
            })
        }),
        models: LINEAR,
        stage: Stage::LinearAttnDelta,
        step: 1,
        explained: &["delta-state"],
        says: &["a state that begins anew with the call", "a state of the position alone"],
        ..FAULT
    },
    Fault {
        name: "gate-silu",
        what: "silu for the sigmoid of attention's gate",
        by: By::Shader(&[Shader { kernel: "sigmoid_glu", edits: &[("sigmoid * up[n]", "g * sigmoid * up[n]")] }]),
        models: LINEAR,
        stage: Stage::AttnGated,
        layers: [1, 1],
        explained: &["activation"],
        says: &["silu for "],
        ..FAULT
    },
    Fault {
        name: "q-gate-halves",
        what: "q is the first half of the rows that it shares with its gate, where heads take turns",
        by: By::Operation(|place| {
            let half = match &place.weights().mixer {
                Mixer::Attention(w) => {
                    let head_dim = place.model.config.head_dim;
                    w.gate.as_ref().and_then(|gate| first_half([&w.q, gate], head_dim).ok())
                }
                Mixer::Linear(_) | Mixer::Latent(_) => None,
            };
            Box::new(move |engine, op| match (op, &half) {
                (Op::MatMul { x, .. }, Some(weight)) => engine.run(&Op::MatMul { x: x.clone(), weight }),
                _ => Err(misplaced(op)),
            })
        }),
        subject: FaultySide::Cpu,
        models: LINEAR,
        stage: Stage::QProj,
        layers: [1, 1],
        patterns: &[P::AllButHead, P::Heads],
        explained: &["joint-rows"],
        says: &["the joint weight's halves, where the rows of heads take turns"],
        ..FAULT
    },
    Fault {
        name: "beta-alpha-halves",
        what: "beta is the first half of the rows that it shares with the decay, where key heads take turns",
        by: By::Operation(|place| {
            let half = match (&place.weights().mixer, place.model.config.linear) {
                (Mixer::Linear(w), Some(linear)) => {
                    first_half([&w.b, &w.a], linear.value_heads / linear.key_heads).ok()
                }
                _ => None,
            };
            Box::new(move |engine, op| match (op, &half) {
                (Op::MatMul { x, .. }, Some(weight)) => engine.run(&Op::MatMul { x: x.clone(), weight }),
                _ => Err(misplaced(op)),
            })
        }),
        subject: FaultySide::Cpu,
        models: QWEN3NEXT,
        stage: Stage::LinearAttnB,
        patterns: &[P::ColumnRange, P::ColumnBlock],
        explained: &["joint-rows"],
        says: &["the joint weight's halves, where the rows of heads take turns"],
        ..FAULT
    },
];
