//! Mistakes of public bug reports, and others that were once located and then told badly.

use super::super::faulty::HostOp;
use super::super::shader::{Edit, Shader};
use super::{By, FAULT, Fault, FaultySide};
use crate::diff::locate::PatternKind as P;
use crate::error::{Error, Result};
use crate::op::{HostTensor, Op, Stage};

pub static FAULTS: &[Fault] = &[
    Fault {
        name: "last-row-zero",
        what: "the last row of a weight is not used",
        by: By::Shader(&[
            Shader { kernel: "matmul", edits: &[("= sums[j][k];", "= select(sums[j][k], 0.0, r == 511u);")] },
            Shader {
                kernel: "matmul_lanes",
                edits: &[("= sums[j][k];", "= select(sums[j][k], 0.0, row + 8u * j == 511u);")],
            },
        ]),
        stage: Stage::QProj,
        layers: [1, 1],
        models: &[0],
        patterns: &[P::Column],
        explained: &["zero"],
        ..FAULT
    },
    Fault {
        name: "gqa-thirds",
        what: "query head h reads the values of KV head h / 3",
        by: By::Shader(&[Shader {
            kernel: "attn_context",
            edits: &[("head / (p.heads / p.kv_heads)", "min(head / 3u, p.kv_heads - 1u)")],
        }]),
        stage: Stage::AttnContext,
        layers: [1, 0],
        models: &[0],
        patterns: &[P::Head, P::Heads],
        explained: &["kv-head"],
        says: &["KV head h / 3, up to the last"],
        ..FAULT
    },
    Fault {
        name: "ties-dropped",
        what: "of equal experts only the first is ever chosen",
        by: By::Shader(&[Shader {
            kernel: "router_topk",
            edits: &[(" || (this_key == last_key && e > last_id);", ";")],
        }]),
        stage: Stage::RouterIds,
        layers: [1, 0],
        models: &[0],
        tied: true,
        patterns: &[P::WholeTensor, P::Scattered, P::Slot, P::PositionRange, P::Position],
        explained: &["router-ties"],
        says: &["ties dropped: of equal experts only the lowest id is taken"],
        ..FAULT
    },
    Fault {
        name: "k-f16",
        what: "keys rounded to f16, queries not",
        by: By::Shader(&[Shader {
            kernel: "attn_scores",
            edits: &[
                ROUNDED_TO_F16,
                ("sum = fma(q[q_at + i], k[k_at + i], sum);", "sum = fma(q[q_at + i], halves_of(k[k_at + i]), sum);"),
            ],
        }]),
        stage: Stage::AttnScores,
        layers: [2, 1],
        models: &[0],
        patterns: EVERYWHERE,
        explained: &["input-precision"],
        says: &["k rounded to f16"],
        ..FAULT
    },
    Fault {
        name: "v-f16",
        what: "values rounded to f16, probabilities not",
        by: By::Shader(&[Shader {
            kernel: "attn_context",
            edits: &[
                ROUNDED_TO_F16,
                (
                    "v[(s * p.kv_heads + kv_head) * p.quads + column], sum);",
                    "halves_of(v[(s * p.kv_heads + kv_head) * p.quads + column]), sum);",
                ),
            ],
        }]),
        stage: Stage::AttnContext,
        layers: [0, 1],
        models: &[1],
        patterns: EVERYWHERE,
        explained: &["input-precision"],
        says: &["v rounded to f16"],
        ..FAULT
    },
    Fault {
        name: "k-bf16-cut",
        what: "keys cut off to bf16",
        by: By::Shader(&[Shader {
            kernel: "attn_scores",
            edits: &[(
                "sum = fma(q[q_at + i], k[k_at + i], sum);",
                "sum = fma(q[q_at + i], bitcast<vec4<f32>>(bitcast<vec4<u32>>(k[k_at + i]) & vec4<u32>(0xffff0000u)), sum);",
            )],
        }]),
        stage: Stage::AttnScores,
        layers: [0, 0],
        models: &[1],
        patterns: EVERYWHERE,
        explained: &["input-precision"],
        says: &["k cut off to bf16"],
        ..FAULT
    },
    Fault {
        name: "window",
        what: "only the last 4 keys are seen",
        by: By::Shader(&[Shader {
            kernel: "attn_probs",
            edits: &[(
                "let e = exp_f32(x[start + i] - largest);",
                "let e = select(0.0, exp_f32(x[start + i] - largest), i + 4u >= n);",
            )],
        }]),
        stage: Stage::AttnProbs,
        layers: [0, 1],
        models: &[0],
        patterns: &[P::PositionRange],
        explained: &["window"],
        says: &["a window of 4 keys"],
        ..FAULT
    },
    Fault {
        name: "context-lanes",
        what: "some lanes of the sum over keys are not added",
        by: By::Shader(&[Shader {
            kernel: "attn_context",
            edits: &[("var step = LANES / 2u", "var step = LANES / 8u")],
        }]),
        stage: Stage::AttnContext,
        layers: [2, 1],
        step: 1,
        models: &[1],
        patterns: &[P::WholeTensor, P::Scattered, P::PositionRange, P::Heads, P::WithinHead, P::ColumnRange],
        explained: &["lanes", "k-skipped"],
        says: &["only the first 4 of 8 keys", "only lanes 0–3 of "],
        ..FAULT
    },
    Fault {
        name: "softmax-tail",
        what: "the softmax adds up the first 4 keys only",
        by: By::Shader(&[Shader { kernel: "attn_probs", edits: &[("sum += e;", "sum += select(0.0, e, i < 4u);")] }]),
        stage: Stage::AttnProbs,
        layers: [3, 0],
        models: &[0],
        patterns: &[P::PositionRange],
        explained: &["k-skipped", "lanes"],
        says: &["only the first 4 of"],
        ..FAULT
    },
    Fault {
        name: "renormalised-eps",
        what: "the chosen experts' weights are divided by their sum and 1e-3",
        by: By::Shader(&[Shader {
            kernel: "router_weights",
            edits: &[("chosen(t, k) / sum", "chosen(t, k) / (sum + 1e-3)")],
        }]),
        stage: Stage::RouterWeights,
        layers: [2, 1],
        models: &[1],
        patterns: EVERYWHERE,
        explained: &["renormalisation"],
        says: &["weights divided by their sum plus 1e-3"],
        ..FAULT
    },
    Fault {
        name: "renormalised-slot",
        what: "only the first slot is renormalised",
        by: By::Shader(&[Shader {
            kernel: "router_weights",
            edits: &[("chosen(t, k) / sum", "chosen(t, k) / select(1.0, sum, k == 0u)")],
        }]),
        stage: Stage::RouterWeights,
        layers: [0, 0],
        models: &[0],
        patterns: &[P::Slot],
        explained: &["renormalisation"],
        says: &["only slot 0 renormalised"],
        ..FAULT
    },
    Fault {
        name: "combine-offset",
        what: "where a position's first slot begins wraps around at 1024 elements",
        by: By::Shader(&[Shader {
            kernel: "combine",
            edits: &[("down[t * p.k * p.cols + column];", "down[(t * p.k * p.cols) % 1024u + column];")],
        }]),
        stage: Stage::MoeOut,
        layers: [1, 0],
        models: &[0],
        patterns: &[P::PositionRange],
        explained: &["wrapped"],
        says: &["the first slot's outputs at the offset modulo 1024"],
        ..FAULT
    },
    Fault {
        name: "column-tiles",
        what: "every tile of 64 columns is the first one",
        by: By::Shader(&[
            Shader {
                kernel: "matmul",
                edits: &[(
                    "let w_row = min(row + load, p.piece.count - 1u) * p.piece.stride;",
                    "let w_row = min(row + load, p.piece.count - 1u) % 64u * p.piece.stride;",
                )],
            },
            Shader {
                kernel: "matmul_lanes",
                edits: &[(
                    "vec4<u32>(p.piece.count - 1u)) * p.piece.stride;",
                    "vec4<u32>(p.piece.count - 1u)) % 64u * p.piece.stride;",
                )],
            },
        ]),
        stage: Stage::QProj,
        layers: [3, 0],
        models: &[0],
        patterns: &[P::ColumnRange, P::AllButHead],
        explained: &["wrapped", "misplaced"],
        says: &["the weights of rows modulo 64", "the columns of columns modulo 64"],
        ..FAULT
    },
    Fault {
        name: "token-wrapped",
        what: "the embedding of token mod 256",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let Op::Embed { table, tokens, scale } = *op else { return Err(misplaced(op)) };
                let wrapped: Vec<u32> = tokens.iter().map(|t| t % 256).collect();
                engine.run(&Op::Embed { table, tokens: &wrapped, scale })
            })
        }),
        stage: Stage::Embedding,
        models: &[1],
        patterns: &[P::PositionRange, P::PositionResidue, P::Scattered],
        explained: &["wrapped"],
        says: &["the rows of tokens modulo 256"],
        ..FAULT
    },
    Fault {
        name: "rope-table",
        what: "positions from 4 on take the angles of position 3",
        by: By::Shader(&[Shader {
            kernel: "rope",
            edits: &[("(p.start + head / p.heads) * p.turned", "min(p.start + head / p.heads, 3u) * p.turned")],
        }]),
        stage: Stage::KRope,
        layers: [2, 1],
        models: &[0],
        patterns: &[P::PositionRange, P::WithinHead],
        explained: &["rope-table"],
        says: &["rope with positions from 4 on taken as 3"],
        ..FAULT
    },
    Fault {
        name: "norm-tail",
        what: "a norm's sum of squares leaves out the last 32 values",
        by: By::Shader(&[Shader {
            kernel: "rms_norm",
            edits: &[("squares = fma(v, v, squares);", "squares = fma(select(v, 0.0, i + 32u >= p.n), v, squares);")],
        }]),
        stage: Stage::FfnNorm,
        layers: [1, 0],
        models: &[1],
        patterns: EVERYWHERE,
        explained: &["k-skipped"],
        says: &["only the first 224 of 256 squares"],
        ..FAULT
    },
    Fault {
        name: "halved-odd",
        what: "a projection is halved at odd positions",
        by: By::Operation(|_| {
            Box::new(|engine, op| by_row(engine.run(op)?, |row, x| if row % 2 == 1 { 0.5 * x } else { x }))
        }),
        subject: FaultySide::Cpu,
        stage: Stage::AttnOut,
        layers: [3, 1],
        models: &[0],
        patterns: &[P::PositionResidue],
        explained: &["factor"],
        says: &["0.5 times the right values"],
        ..FAULT
    },
];

pub(super) const EVERYWHERE: &[P] = &[P::WholeTensor, P::Scattered];

/// A function that rounds to the nearest half, ties to even, in integers; numbers below the smallest normal half are rounded to its steps.
pub(super) const ROUNDED_TO_F16: Edit = (
    "@compute",
    "fn half_of(x: f32) -> f32 {
    if abs(x) < 6.103515625e-5 {
        return round(x * 16777216.0) / 16777216.0;
    }
    let bits = bitcast<u32>(x);
    return bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
}
fn halves_of(v: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(half_of(v.x), half_of(v.y), half_of(v.z), half_of(v.w));
}
@compute",
);

fn by_row(right: HostTensor, f: fn(usize, f32) -> f32) -> Result<HostTensor> {
    let cols = right.cols();
    let values = right.to_f32().iter().enumerate().map(|(i, x)| f(i / cols, *x)).collect();
    Ok(HostTensor::f32(&right.shape, values))
}

pub(super) fn misplaced(op: &HostOp<'_>) -> crate::error::Error {
    Error::usage(format!("{:?} is planted with a fault of another operation", op.kind()))
}
