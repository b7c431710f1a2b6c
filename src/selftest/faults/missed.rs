//! Kinds of mistakes that were once told badly: located, but without a cause, with a wrong one, or in a place that is too wide. Some need
//! the long prompt, for more than a tile of positions or of an expert's slots.

use super::super::shader::{Edit, Shader};
use super::reported::{EVERYWHERE, ROUNDED_TO_F16, misplaced};
use super::{By, FAULT, Fault, FaultySide};
use crate::diff::locate::PatternKind as P;
use crate::diff::measure::metrics::Side;
use crate::op::{HostTensor, Op, Stage};

/// The test model with the long prompt.
const LONG: &[usize] = &[10];
/// The one with scales and codes at the ends of their ranges.
const EXTREMES: &[usize] = &[18];

pub static FAULTS: &[Fault] = &[
    Fault {
        name: "probs-f16",
        what: "attention's probabilities rounded to f16, values not",
        by: By::Shader(&[Shader {
            kernel: "attn_context",
            edits: &[
                ROUNDED_TO_F16,
                ("sum = fma(vec4<f32>(probs[row + s])", "sum = fma(vec4<f32>(half_of(probs[row + s]))"),
            ],
        }]),
        stage: Stage::AttnContext,
        layers: [2, 1],
        models: &[0],
        patterns: NOT_FIRST,
        explained: &["input-precision"],
        says: &["probabilities rounded to f16"],
        ..FAULT
    },
    Fault {
        name: "q-f16",
        what: "queries rounded to f16, keys not",
        by: By::Shader(&[Shader {
            kernel: "attn_scores",
            edits: &[ROUNDED_TO_F16, ("sum = fma(q[q_at + i],", "sum = fma(halves_of(q[q_at + i]),")],
        }]),
        stage: Stage::AttnScores,
        layers: [1, 0],
        models: &[1],
        patterns: EVERYWHERE,
        explained: &["input-precision"],
        says: &["q rounded to f16"],
        ..FAULT
    },
    Fault {
        name: "rope-frequencies-f16",
        what: "rope's frequencies rounded to f16",
        by: By::Operation(|_| {
            Box::new(|_, op| {
                let Op::Rope { ref x, start, head_dim, rotation } = *op else { return Err(misplaced(op)) };
                let (half, cols, values) = (head_dim / 2, x.cols(), x.to_f32());
                let frequency =
                    |i: usize| half::f16::from_f64(rotation.base.powf(-2.0 * i as f64 / head_dim as f64)).to_f64();
                let turned = |n: usize| {
                    let (row, within) = (n / cols, n % head_dim);
                    let (sin, cos) = ((start + row) as f64 * frequency(within % half)).sin_cos();
                    let (sin, cos) = (sin as f32, cos as f32);
                    match within < half {
                        true => values[n] * cos - values[n + half] * sin,
                        false => values[n] * cos + values[n - half] * sin,
                    }
                };
                Ok(HostTensor::f32(&x.shape, (0..values.len()).map(turned).collect()))
            })
        }),
        subject: FaultySide::Cpu,
        stage: Stage::QRope,
        layers: [1, 1],
        patterns: NOT_FIRST,
        explained: &["rope-precision"],
        says: &["rope with frequencies in f16"],
        ..FAULT
    },
    Fault {
        name: "rope-positions-bf16",
        what: "positions cut off to bf16, which changes those from 257 on",
        by: By::Shader(&[Shader {
            kernel: "rope",
            edits: &[(
                "(p.start + head / p.heads) * p.turned",
                "u32(bitcast<f32>(bitcast<u32>(f32(p.start + head / p.heads)) & 0xffff0000u)) * p.turned",
            )],
        }]),
        stage: Stage::QRope,
        layers: [0, 0],
        models: LONG,
        patterns: &[P::PositionRange, P::PositionResidue, P::Position, P::LastPosition, P::Scattered],
        explained: &["rope-precision"],
        says: &["rope with positions cut off to bf16"],
        ..FAULT
    },
    Fault {
        name: "rope-table-long",
        what: "positions from 256 on take the angles of position 255",
        by: By::Shader(&[Shader {
            kernel: "rope",
            edits: &[("(p.start + head / p.heads) * p.turned", "min(p.start + head / p.heads, 255u) * p.turned")],
        }]),
        stage: Stage::KRope,
        layers: [0, 0],
        models: LONG,
        patterns: &[P::PositionRange, P::WithinHead],
        explained: &["rope-table"],
        says: &["rope with positions from 256 on taken as 255"],
        ..FAULT
    },
    Fault {
        name: "slots-crossed",
        what: "at every third position the weights of the first two slots are exchanged",
        by: By::Shader(&[Shader {
            kernel: "combine",
            edits: &[
                (
                    "var sum = weights[t * p.k] * down",
                    "var sum = select(weights[t * p.k], weights[t * p.k + 1u], t % 3u == 1u) * down",
                ),
                (
                    "sum = fma(weights[slot], down",
                    "sum = fma(select(weights[slot], weights[t * p.k], t % 3u == 1u && k == 1u), down",
                ),
            ],
        }]),
        stage: Stage::MoeOut,
        layers: [2, 1],
        models: &[0],
        patterns: &[P::PositionResidue, P::PositionRange, P::Scattered],
        explained: &["combine"],
        says: &["the weights in reverse order of the slots", "the weights of the next slot"],
        ..FAULT
    },
    Fault {
        name: "two-columns-offset",
        what: "a bias of 0.01 on two columns of a projection without one",
        by: By::Shader(&[
            Shader {
                kernel: "matmul",
                edits: &[("= sums[j][k];", "= sums[j][k] + select(0.0, 0.01, r == 3u || r == 70u);")],
            },
            Shader {
                kernel: "matmul_lanes",
                edits: &[(
                    "= sums[j][k];",
                    "= sums[j][k] + select(0.0, 0.01, row + 8u * j == 3u || row + 8u * j == 70u);",
                )],
            },
        ]),
        stage: Stage::QProj,
        layers: [2, 0],
        models: &[0],
        patterns: &[P::Column, P::ColumnRange, P::ColumnResidue, P::WithinHead, P::Scattered],
        explained: &["offset"],
        says: &["0.01 added to the right values"],
        ..FAULT
    },
    Fault {
        name: "input-rows-wrapped",
        what: "positions from 32 on multiply the activations of position mod 32",
        by: By::Shader(&[
            Shader {
                kernel: "matmul",
                edits: &[("min(t + load, p.positions - 1u)", "(min(t + load, p.positions - 1u) & 31u)")],
            },
            Shader {
                kernel: "matmul_lanes",
                edits: &[(
                    "min(vec4<u32>(t, t + 1u, t + 2u, t + 3u), vec4<u32>(p.positions - 1u))",
                    "(min(vec4<u32>(t, t + 1u, t + 2u, t + 3u), vec4<u32>(p.positions - 1u)) & vec4<u32>(31u))",
                )],
            },
        ]),
        stage: Stage::KProj,
        layers: [0, 0],
        models: LONG,
        patterns: &[P::PositionRange],
        explained: &["wrapped"],
        says: &["the input of rows modulo 32"],
        ..FAULT
    },
    Fault {
        name: "embeddings-exchanged",
        what: "two tokens have each other's embedding",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let Op::Embed { table, tokens, scale } = *op else { return Err(misplaced(op)) };
                let (a, b) = (tokens[1], tokens[1] + 1);
                let other = |t: &u32| {
                    if *t == a {
                        b
                    } else if *t == b {
                        a
                    } else {
                        *t
                    }
                };
                let exchanged: Vec<u32> = tokens.iter().map(other).collect();
                engine.run(&Op::Embed { table, tokens: &exchanged, scale })
            })
        }),
        stage: Stage::Embedding,
        models: &[1],
        patterns: &[P::Position],
        explained: &["embedding-row"],
        // The other token is not in the prompt, and of one token no rule is seen.
        says: &["row 301 for token 300"],
        ..FAULT
    },
    Fault {
        name: "sum-past-its-end",
        what: "each sum runs on for one block into the next row",
        by: By::Shader(&[
            Shader { kernel: "matmul", edits: &[("i < p.piece.pairs; i++", "i < p.piece.pairs + PAIRS; i++")] },
            Shader {
                kernel: "matmul_lanes",
                edits: &[(
                    "xs: vec4<u32>, lane: u32) -> mat4x4<f32> {
    let tails = rows + vec4<u32>(p.piece.tail);
    var sum = mat4x4<f32>();
    for (var n = 0u; n < p.piece.pairs / PAIRS; n++) {",
                    "xs: vec4<u32>, lane: u32) -> mat4x4<f32> {
    let tails = rows + vec4<u32>(p.piece.tail);
    var sum = mat4x4<f32>();
    for (var n = 0u; n < p.piece.pairs / PAIRS + 1u; n++) {",
                )],
            },
        ]),
        stage: Stage::QProj,
        layers: [0, 1],
        models: &[0],
        patterns: EVERYWHERE,
        explained: &["k-past"],
        says: &["each sum reads on, 256 terms"],
        ..FAULT
    },
    Fault {
        name: "nan-words",
        what: "packed words whose low half is an f16 NaN come back as another NaN",
        by: By::Shader(&[
            Shader { kernel: "matmul", edits: NAN_WORDS },
            Shader { kernel: "matmul_lanes", edits: NAN_WORDS },
        ]),
        stage: Stage::QProj,
        layers: [1, 0],
        models: &[0],
        patterns: EVERYWHERE,
        explained: &["weight-words"],
        says: &["packed codes read as f16: the low half of words"],
        ..FAULT
    },
    Fault {
        name: "tile-late",
        what: "an expert's tiles after its first begin one slot late",
        by: By::Shader(&[Shader {
            kernel: "expert_plan",
            edits: &[("= place + done;", "= place + done + select(0u, 1u, done > 0u);")],
        }]),
        stage: Stage::ExpertGate,
        layers: [0, 0],
        models: LONG,
        patterns: &[P::Scattered, P::Experts, P::Expert, P::Position, P::PositionRange, P::PositionResidue],
        ..FAULT
    },
    Fault {
        name: "tile-last-slot",
        what: "slot 31 of a tile of an expert's slots reads the activations of slot 30",
        by: By::Shader(&[
            Shader {
                kernel: "expert_matmul",
                edits: &[("min(load, length - 1u)", "min(load, min(length - 1u, 30u))")],
            },
            Shader {
                kernel: "expert_matmul_lanes",
                edits: &[("vec4<u32>(length - 1u))", "vec4<u32>(min(length - 1u, 30u)))")],
            },
        ]),
        stage: Stage::ExpertUp,
        layers: [0, 0],
        models: LONG,
        patterns: &[P::Scattered, P::Experts, P::Expert, P::Position, P::PositionRange, P::PositionResidue],
        ..FAULT
    },
    Fault {
        name: "softmax-first-keys",
        what: "the softmax adds up the first 128 keys only",
        by: By::Shader(&[Shader { kernel: "attn_probs", edits: &[("sum += e;", "sum += select(0.0, e, i < 128u);")] }]),
        stage: Stage::AttnProbs,
        layers: [0, 0],
        models: LONG,
        patterns: &[P::PositionRange],
        explained: &["k-skipped", "lanes"],
        says: &["only the first 128 of"],
        ..FAULT
    },
    Fault {
        name: "renormalised-tiny-eps",
        what: "the chosen experts' weights are divided by their sum and 1e-6",
        by: By::Shader(&[Shader {
            kernel: "router_weights",
            edits: &[("chosen(t, k) / sum", "chosen(t, k) / (sum + 1e-6)")],
        }]),
        stage: Stage::RouterWeights,
        layers: [1, 0],
        models: &[0],
        // Next to the floor, and so rightly left open: too little is wrong to tell a cause from chance.
        patterns: &[P::WholeTensor, P::Scattered, P::PositionRange, P::Slot],
        ..FAULT
    },
    Fault {
        name: "eps-subject",
        what: "a norm with eps 1e-5 where the file says 1e-6",
        by: By::Operation(other_eps),
        subject: FaultySide::Cpu,
        stage: Stage::AttnNorm,
        models: &[0],
        patterns: EVERYWHERE,
        explained: &["norm-eps"],
        says: &["the norm with eps 1e-5 for"],
        ..FAULT
    },
    Fault {
        name: "eps-reference",
        what: "the same in the reference, the subject correct",
        by: By::Operation(other_eps),
        subject: FaultySide::Cpu,
        side: Side::Reference,
        stage: Stage::AttnNorm,
        models: &[0],
        patterns: EVERYWHERE,
        explained: &["norm-eps"],
        says: &["the norm with eps 1e-5 for"],
        ..FAULT
    },
    Fault {
        name: "logits-tail",
        what: "the last 40 logits are zero",
        by: By::Shader(&[
            Shader {
                kernel: "matmul",
                edits: &[("= sums[j][k];", "= select(sums[j][k], 0.0, r + 40u >= p.piece.count);")],
            },
            Shader {
                kernel: "matmul_lanes",
                edits: &[("= sums[j][k];", "= select(sums[j][k], 0.0, row + 8u * j + 40u >= p.piece.count);")],
            },
        ]),
        stage: Stage::Logits,
        patterns: &[P::ColumnRange, P::ColumnBlock, P::LastPartialTile],
        explained: &["zero"],
        ..FAULT
    },
    Fault {
        name: "rows-stale",
        what: "the last eighth of the head's rows is not run, and holds what was in the buffer before",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let Op::MatMul { ref x, .. } = *op else { return Err(misplaced(op)) };
                let right = engine.run(op)?;
                let (n, before) = (right.cols(), x.to_f32());
                let stale = |(i, y)| if i % n < n - n / 8 { y } else { before[i % before.len()] };
                let values = right.to_f32().into_iter().enumerate().map(stale);
                Ok(HostTensor::f32(&right.shape, values.collect()))
            })
        }),
        stage: Stage::Logits,
        patterns: &[P::ColumnRange, P::ColumnBlock, P::LastPartialTile],
        ..FAULT
    },
    Fault {
        name: "scales-flushed",
        what: "scales and minimums that are subnormal halves are read as 0",
        by: By::Shader(&[
            Shader { kernel: "matmul", edits: &[FLUSHED] },
            Shader { kernel: "matmul_lanes", edits: &[FLUSHED] },
        ]),
        stage: Stage::QProj,
        layers: [0, 0],
        models: EXTREMES,
        patterns: &[P::ColumnResidue, P::Scattered],
        explained: &["scale-subnormal"],
        ..FAULT
    },
    Fault {
        name: "code-turned",
        what: "the code -128 is read as 128",
        by: By::Shader(&[
            Shader { kernel: "matmul", edits: &[TURNED_CODE] },
            Shader { kernel: "matmul_lanes", edits: &[TURNED_CODE] },
        ]),
        stage: Stage::QProj,
        layers: [0, 1],
        models: EXTREMES,
        patterns: &[P::ColumnResidue],
        ..FAULT
    },
    Fault {
        name: "rope-angles-f32",
        what: "rope's angles as the product of a position and a frequency in f32",
        by: By::Operation(|_| {
            Box::new(|_, op| {
                let Op::Rope { ref x, start, head_dim, rotation } = *op else { return Err(misplaced(op)) };
                let (half, cols, values) = (head_dim / 2, x.cols(), x.to_f32());
                let frequency = |i: usize| rotation.base.powf(-2.0 * i as f64 / head_dim as f64) as f32;
                let turned = |n: usize| {
                    let (row, within) = (n / cols, n % head_dim);
                    let (sin, cos) = f64::from((start + row) as f32 * frequency(within % half)).sin_cos();
                    let (sin, cos) = (sin as f32, cos as f32);
                    match within < half {
                        true => values[n] * cos - values[n + half] * sin,
                        false => values[n] * cos + values[n - half] * sin,
                    }
                };
                Ok(HostTensor::f32(&x.shape, (0..values.len()).map(turned).collect()))
            })
        }),
        subject: FaultySide::Cpu,
        stage: Stage::QRope,
        layers: [0, 0],
        models: LONG,
        patterns: &[P::PositionRange, P::WithinHead, P::Scattered, P::WholeTensor, P::AllButPosition],
        explained: &["rope-precision"],
        says: &["rope with angles as an f32 position times an f32 frequency"],
        ..FAULT
    },
];

/// Subnormal halves read as 0, where scales are unpacked.
const FLUSHED: Edit = ("bitcast<u32>(f32(mantissa) * 5.9604644775390625e-8) | sign", "sign");

/// Bytes as numbers, of which the least changes its sign.
const TURNED_CODE: Edit = (
    "return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));",
    "let codes = vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
    return select(codes, -codes, codes == vec4<f32>(-128.0));",
);

/// Rounding that spares the first position, whose value is exact: one key, or an angle of 0.
pub(super) const NOT_FIRST: &[P] =
    &[P::WholeTensor, P::Scattered, P::AllButPosition, P::PositionRange, P::WithinHead, P::Heads, P::ColumnRange];

const NAN_WORDS: &[Edit] = &[
    (
        "fn weights(s: Block, c: u32, h: u32)",
        "fn through_f16(w: vec4<u32>) -> vec4<u32> {
    let low = w & vec4<u32>(0x7fffu);
    return select(w, (w & vec4<u32>(0xffff0000u)) | vec4<u32>(0x7e00u), low > vec4<u32>(0x7c00u));
}
fn weights(s: Block, c: u32, h: u32)",
    ),
    ("(stored(s.at + 1u + c) >> vec4<u32>(4u * h))", "(through_f16(stored(s.at + 1u + c)) >> vec4<u32>(4u * h))"),
];

/// A norm with an eps ten times as large.
fn other_eps(_: &super::FaultPlace<'_>) -> super::super::faulty::Mistake {
    Box::new(|engine, op| {
        let mut wrong = op.clone();
        let Op::RmsNorm { eps, .. } = &mut wrong else { return Err(misplaced(op)) };
        *eps = 1e-5;
        engine.run(&wrong)
    })
}
