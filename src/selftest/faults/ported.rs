//! Mistakes of ports, after public reports: rows at another head count's stride, joint weights taken apart otherwise, repacked codes, offsets that
//! wrap, f16 inside attention, parameters in another order than the host's, workgroups modulo a limit.

use std::sync::Arc;

use super::super::faulty::{HostOp, Mistake};
use super::super::shader::{Edit, Shader};
use super::matrices::exchanged;
use super::missed::NOT_FIRST;
use super::reported::{EVERYWHERE, ROUNDED_TO_F16};
use super::{By, FAULT, Fault, FaultySide};
use crate::diff::locate::PatternKind as P;
use crate::model::{Ffn, Mixer};
use crate::op::{Stage, Weight};

/// The test model with the long prompt.
const LONG: &[usize] = &[10];
/// One that has all its matrices in Q8_0, so that rows of several may be rows of one.
const ONE_TYPE: &[usize] = &[13];

pub static FAULTS: &[Fault] = &[
    Fault {
        name: "q-row-stride",
        what: "queries are read in rows as long as those of keys",
        by: By::Shader(&[Shader {
            kernel: "attn_scores",
            edits: &[("let q_at = (t * p.heads + head)", "let q_at = (t * p.kv_heads + head)")],
        }]),
        stage: Stage::AttnScores,
        layers: [1, 0],
        patterns: &[P::PositionRange, P::AllButPosition, P::WholeTensor, P::Scattered],
        explained: &["row-stride"],
        ..FAULT
    },
    Fault {
        name: "k-row-stride",
        what: "keys are read in rows as long as those of queries, and then behind their end",
        by: By::Shader(&[Shader {
            kernel: "attn_scores",
            edits: &[(
                "let k_at = (s * p.kv_heads + head / (p.heads / p.kv_heads))",
                "let k_at = (s * p.heads + head / (p.heads / p.kv_heads))",
            )],
        }]),
        stage: Stage::AttnScores,
        models: &[0, 10],
        layers: [2, 0],
        // Keys are columns, and the first is right.
        patterns: &[P::ColumnRange, P::AllButColumn, P::PositionRange, P::AllButPosition, P::Scattered, P::WholeTensor],
        explained: &["row-stride"],
        ..FAULT
    },
    Fault {
        name: "v-row-stride",
        what: "values are read in rows as long as those of queries, and then behind their end",
        by: By::Shader(&[Shader {
            kernel: "attn_context",
            edits: &[("v[(s * p.kv_heads + kv_head) * p.quads", "v[(s * p.heads + kv_head) * p.quads")],
        }]),
        stage: Stage::AttnContext,
        models: &[0],
        layers: [3, 0],
        patterns: &[P::PositionRange, P::AllButPosition],
        explained: &["row-stride"],
        // Most sums read something that lies behind the last value, of which nobody knows what it is.
        may_be_open: true,
        ..FAULT
    },
    Fault {
        name: "qkv-by-groups",
        what: "a joint weight of q, k and v by groups of heads is taken for one after the other",
        by: By::Operation(|place| {
            let joint = place.model.config.head_dim;
            let Mixer::Attention(of) = &place.weights().mixer else { return nothing_of_the_kind() };
            let (group, kv_heads) = (of.q.rows / of.k.rows, of.k.rows / joint);
            let head = |w: &Arc<Weight>, head: usize| -> Vec<u8> {
                (0..joint).flat_map(|row| w.row(0, head * joint + row).to_vec()).collect()
            };
            let of_group = |g: usize| -> Vec<u8> {
                let queries = (0..group).flat_map(|h| head(&of.q, g * group + h));
                queries.chain(head(&of.k, g)).chain(head(&of.v, g)).collect()
            };
            let all: Vec<u8> = (0..kv_heads).flat_map(of_group).collect();
            // q, as whoever takes the first rows for it has it.
            with(of.q.ty, [of.q.cols, of.q.rows, 1], all[..of.q.size()].to_vec())
        }),
        subject: FaultySide::Cpu,
        stage: Stage::QProj,
        models: ONE_TYPE,
        // Heads 4 to 7 of 8.
        patterns: &[P::Heads, P::ColumnRange, P::ColumnBlock],
        explained: &["joint-rows"],
        ..FAULT
    },
    Fault {
        name: "gate-up-by-turns",
        what: "a joint weight of gate and up, whose rows take turns, is taken for its halves",
        by: By::Operation(|place| {
            let Ffn::Moe(moe) = &place.weights().ffn else { return nothing_of_the_kind() };
            let (gate, up) = (&moe.gate, &moe.up);
            let row =
                |expert: usize, row: usize| if row.is_multiple_of(2) { gate } else { up }.row(expert, row / 2).to_vec();
            let places = (0..gate.experts).flat_map(|expert| (0..gate.rows).map(move |r| (expert, r)));
            let bytes = places.flat_map(|(expert, r)| row(expert, r)).collect();
            with(gate.ty, [gate.cols, gate.rows, gate.experts], bytes)
        }),
        subject: FaultySide::Cpu,
        stage: Stage::ExpertGate,
        models: &[0, 12, 13],
        layers: [1, 1],
        // Row 0 of one is row 0 of the other.
        patterns: &[P::WholeTensor, P::Scattered, P::AllButColumn, P::ColumnRange],
        explained: &["joint-rows"],
        ..FAULT
    },
    Fault {
        name: "interleave-8",
        what: "rows that are repacked by 8 bytes are read by 4",
        by: By::Operation(|place| {
            let Mixer::Attention(of) = &place.weights().mixer else { return nothing_of_the_kind() };
            let w = &of.q;
            let (block, bytes, mut all) = (w.ty.block_bytes(), w.row_bytes(), w.bytes().to_vec());
            // The codes of a block of Q4_K, and of one of Q8_0.
            let (codes, len) = if block == 144 { (16, 128) } else { (2, 32) };
            for group in all.chunks_exact_mut(8 * bytes) {
                for at in (0..bytes).step_by(block).map(|at| at + codes) {
                    let of_row = |row: usize, run: usize| row * bytes + at + 8 * run;
                    let runs = (0..len).flat_map(|i| group[of_row(i % 8, i / 8)..][..8].to_vec());
                    let packed: Vec<u8> = runs.collect();
                    for (i, four) in packed.chunks_exact(4).enumerate() {
                        group[i % 8 * bytes + at + i / 8 * 4..][..4].copy_from_slice(four);
                    }
                }
            }
            with(w.ty, [w.cols, w.rows, 1], all)
        }),
        subject: FaultySide::Cpu,
        stage: Stage::QProj,
        models: &[0, 13],
        layers: [2, 0],
        patterns: EVERYWHERE,
        explained: &["weight-codes"],
        ..FAULT
    },
    Fault {
        name: "expert-rows-wrapped",
        what: "the offset of an expert's row wraps around at 2^15 elements",
        by: By::Shader(&[
            Shader { kernel: "expert_matmul", edits: &[WRAPPED] },
            Shader { kernel: "expert_matmul_lanes", edits: &[WRAPPED] },
        ]),
        stage: Stage::ExpertUp,
        models: &[0],
        layers: [3, 0],
        patterns: &[P::WholeTensor, P::Scattered, P::AllButExpert, P::Experts, P::ColumnRange],
        explained: &["wrapped"],
        ..FAULT
    },
    Fault {
        name: "scores-f16-sums",
        what: "the sums of scores are held as f16",
        by: By::Shader(&[Shader {
            kernel: "attn_scores",
            edits: &[
                ROUNDED_TO_F16,
                ("sum = fma(q[q_at + i], k[k_at + i], sum);", "sum = halves_of(fma(q[q_at + i], k[k_at + i], sum));"),
            ],
        }]),
        stage: Stage::AttnScores,
        layers: [0, 1],
        patterns: EVERYWHERE,
        explained: &["sum-precision"],
        ..FAULT
    },
    Fault {
        name: "context-f16-sums",
        what: "the sums of values are held as f16",
        by: By::Shader(&[Shader {
            kernel: "attn_context",
            edits: &[
                ROUNDED_TO_F16,
                ("sum = fma(vec4<f32>(probs[row + s]),", "sum = halves_of(fma(vec4<f32>(probs[row + s]),"),
                ("* p.quads + column], sum);", "* p.quads + column], sum));"),
            ],
        }]),
        stage: Stage::AttnContext,
        models: &[0],
        layers: [1, 0],
        patterns: EVERYWHERE,
        explained: &["sum-precision"],
        ..FAULT
    },
    Fault {
        name: "softmax-f16-sum",
        what: "the softmax's sum is held as f16",
        by: By::Shader(&[Shader {
            kernel: "attn_probs",
            edits: &[
                ROUNDED_TO_F16,
                ("sum += e;", "sum = half_of(sum + e);"),
                ("sum = sum_all(lane, sum);", "sum = half_of(sum_all(lane, sum));"),
            ],
        }]),
        stage: Stage::AttnProbs,
        models: &[0, 10],
        layers: [2, 0],
        patterns: NOT_FIRST,
        explained: &["sum-precision"],
        ..FAULT
    },
    Fault {
        name: "softmax-f16",
        what: "the softmax's exponentials are f16",
        by: By::Shader(&[Shader {
            kernel: "attn_probs",
            edits: &[
                ROUNDED_TO_F16,
                ("let e = exp_f32(x[start + i] - largest);", "let e = half_of(exp_f32(x[start + i] - largest));"),
            ],
        }]),
        stage: Stage::AttnProbs,
        layers: [3, 1],
        patterns: NOT_FIRST,
        explained: &["sum-precision"],
        ..FAULT
    },
    Fault {
        name: "softmax-from-zero",
        what: "the largest score is not below 0, and the exponentials are f16",
        by: By::Shader(&[Shader {
            kernel: "attn_probs",
            edits: &[
                ROUNDED_TO_F16,
                ("var largest = x[start];", "var largest = max(x[start], 0.0);"),
                ("let e = exp_f32(x[start + i] - largest);", "let e = half_of(exp_f32(x[start + i] - largest));"),
            ],
        }]),
        stage: Stage::AttnProbs,
        models: &[0],
        layers: [1, 0],
        patterns: NOT_FIRST,
        // Where no row has its scores below 0, it is only the other of the two.
        explained: &["attention-softmax", "sum-precision"],
        may_be_open: true,
        ..FAULT
    },
    Fault {
        name: "parameters-exchanged",
        what: "two numbers of heads come in another order than the kernel has them",
        by: By::Shader(&[Shader {
            kernel: "attn_scores",
            edits: &[("    heads: u32,\n    kv_heads: u32,", "    kv_heads: u32,\n    heads: u32,")],
        }]),
        stage: Stage::AttnScores,
        layers: [3, 1],
        patterns: &[P::WholeTensor, P::Scattered, P::AllButPosition, P::PositionRange, P::AllButHead, P::Heads],
        ..FAULT
    },
    Fault {
        name: "norm-parameters-exchanged",
        what: "the length of a group and the number of groups come in another order than the kernel has them",
        by: By::Shader(&[Shader {
            kernel: "rms_norm",
            edits: &[("    n: u32,\n    groups: u32,", "    groups: u32,\n    n: u32,")],
        }]),
        stage: Stage::AttnNorm,
        layers: [1, 0],
        models: &[0],
        patterns: &[P::WholeTensor, P::Scattered, P::AllButPosition, P::PositionRange, P::AllButColumn, P::ColumnRange],
        ..FAULT
    },
    Fault {
        name: "workgroups-modulo",
        what: "workgroups of rows modulo a number, for the least of the two: the rows behind are not written",
        by: By::Shader(&[
            Shader { kernel: "matmul", edits: &[("let row = group.x * TILE;", "let row = group.x % 7u * TILE;")] },
            Shader {
                kernel: "matmul_lanes",
                edits: &[("let row = group.x * TILE + lane;", "let row = group.x % 7u * TILE + lane;")],
            },
        ]),
        stage: Stage::Logits,
        patterns: &[P::ColumnRange, P::ColumnBlock],
        explained: &["zero"],
        // What no workgroup wrote may be what another operation left in the same memory.
        may_be_open: true,
        ..FAULT
    },
    Fault {
        name: "tiles-in-the-first",
        what: "every tile of an expert's slots is its first one",
        by: By::Shader(&[Shader { kernel: "expert_plan", edits: &[("= place + done;", "= place;")] }]),
        stage: Stage::ExpertGate,
        models: LONG,
        patterns: &[P::Scattered, P::Experts, P::Expert, P::Position, P::PositionRange, P::PositionResidue],
        explained: &["zero"],
        // Which slots are behind an expert's first tile has no name.
        may_be_open: true,
        ..FAULT
    },
];

const WRAPPED: Edit = (
    "return (near + vec4<u32>(e.base) - vec4<u32>(p.piece.first)) * p.piece.stride;",
    "return ((near + vec4<u32>(e.base)) % vec4<u32>(128u) - vec4<u32>(p.piece.first)) * p.piece.stride;",
);

/// The operation with a weight of these bytes.
fn with(ty: crate::op::GgmlType, dims: [usize; 3], bytes: Vec<u8>) -> Mistake {
    let other = Weight::from_vec("otherwise", ty, dims, bytes);
    Box::new(move |engine, op| {
        let other = other.as_ref().map_err(|e| crate::error::Error::usage(e.to_string()))?;
        engine.run(&exchanged(op, other)?)
    })
}

/// Where a model has no such weights.
fn nothing_of_the_kind() -> Mistake {
    Box::new(|_, op: &HostOp<'_>| Err(super::reported::misplaced(op)))
}
