//! Rotary embedding, the KV cache, scores, probabilities and context.

use super::super::faulty::{FaultScope, HostOp, Mistake};
use super::super::shader::Shader;
use super::{By, FAULT, Fault, FaultySide};
use crate::diff::locate::PatternKind as P;
use crate::error::{Error, Result};
use crate::op::{HostTensor, Op, OpKind, Rotation, Stage};

pub static FAULTS: &[Fault] = &[
    Fault {
        name: "rope-pairing",
        what: "value 2i turns with 2i + 1 (NORM) where it is i with i + D/2 (NEOX)",
        by: By::Shader(&[Shader {
            kernel: "rope",
            edits: &[("let norm = p.neighbours == 1u;", "let norm = p.neighbours == 0u;")],
        }]),
        stage: Stage::QRope,
        layers: [1, 0],
        patterns: NOT_FIRST,
        explained: &["rope-pairing"],
        ..FAULT
    },
    Fault {
        name: "rope-first-head",
        what: "only head 0 of each position is turned",
        by: By::Shader(&[Shader {
            kernel: "rope",
            edits: &[(
                TURN,
                "let turn = select(vec2<f32>(1.0, 0.0), angles[(p.start + head / p.heads) * p.turned + i], head % p.heads == 0u);",
            )],
        }]),
        stage: Stage::QRope,
        layers: [0, 0],
        patterns: &[P::AllButHead],
        explained: &["rope-first-head"],
        ..FAULT
    },
    Fault {
        name: "rope-base",
        what: "base 1e4 where the file says 1e6",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Rope { x, start, head_dim, rotation } => {
                    Some(Op::Rope { x, start, head_dim, rotation: Rotation { base: 1e4, ..rotation } })
                }
                _ => None,
            })
        }),
        subject: FaultySide::Cpu,
        stage: Stage::KRope,
        layers: [1, 1],
        patterns: &[P::PositionRange, P::AllButPosition, P::WithinHead],
        explained: &["rope-base"],
        says: &["rope with base 10000 for"],
        ..FAULT
    },
    Fault {
        name: "rope-position",
        what: "a decoded token has the position of the one before",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Rope { x, start, head_dim, rotation } => Some(Op::Rope { x, start: start - 1, head_dim, rotation }),
                _ => None,
            })
        }),
        stage: Stage::KRope,
        layers: [3, 1],
        step: 1,
        patterns: &[P::WholeTensor, P::WithinHead],
        explained: &["rope-position"],
        says: &["rope with positions off by -1"],
        ..FAULT
    },
    Fault {
        name: "kv-stale",
        what: "the key of the first decoded token is not written to the cache",
        by: By::Operation(|_| Box::new(|_, op| cache_as_it_was(op))),
        stage: Stage::KRope,
        op: Some(OpKind::Store),
        seen_at: Some(Stage::AttnScores),
        layers: [1, 0],
        step: 1,
        patterns: LAST_KEY,
        explained: &["kv-cache"],
        says: &["a cache to which this call's rows were not written", "a cache whose row 7 is empty"],
        ..FAULT
    },
    Fault {
        name: "kv-off-by-one",
        what: "a decoded token's key is written over the one before",
        by: By::Shader(&[Shader { kernel: "copy", edits: &[("y[at] = word;", "y[at - p.y_row] = word;")] }]),
        stage: Stage::KRope,
        op: Some(OpKind::Store),
        seen_at: Some(Stage::AttnScores),
        layers: [2, 1],
        step: 1,
        patterns: LAST_KEY,
        explained: &["kv-cache"],
        says: &["this call's rows written one row early"],
        ..FAULT
    },
    Fault {
        name: "v-stale",
        what: "the value of the second decoded token is not written to the cache",
        by: By::Operation(|_| Box::new(|_, op| cache_as_it_was(op))),
        subject: FaultySide::Cpu,
        stage: Stage::VProj,
        op: Some(OpKind::Store),
        seen_at: Some(Stage::AttnContext),
        layers: [0, 1],
        step: 2,
        patterns: &[P::WholeTensor, P::Scattered],
        explained: &["kv-cache"],
        says: &["a cache to which this call's rows were not written", "a cache whose row 8 is empty"],
        ..FAULT
    },
    Fault {
        name: "mask-future",
        what: "each position has a score for the one after it",
        by: By::Shader(&[Shader {
            kernel: "attn_scores",
            edits: &[("&& s <= p.start + t {", "&& s <= p.start + t + 1u {")],
        }]),
        stage: Stage::AttnScores,
        layers: [1, 0],
        patterns: &[P::Diagonal],
        explained: &["mask"],
        says: &["a mask that lets one later key through"],
        ..FAULT
    },
    Fault {
        name: "mask-self",
        what: "no position attends to itself but the first",
        by: By::Shader(&[Shader {
            kernel: "attn_probs",
            edits: &[("min(p.start + t + 1u, p.seen)", "min(max(p.start + t, 1u), p.seen)")],
        }]),
        stage: Stage::AttnProbs,
        layers: [2, 1],
        patterns: NOT_FIRST,
        explained: &["mask"],
        says: &["a mask that hides a position's own key"],
        ..FAULT
    },
    Fault {
        name: "gqa-scores",
        what: "query head h reads KV head h mod kv_heads, in decoding",
        by: By::Shader(&[Shader {
            kernel: "attn_scores",
            edits: &[("head / (p.heads / p.kv_heads)", "head % p.kv_heads")],
        }]),
        stage: Stage::AttnScores,
        layers: [3, 0],
        step: 1,
        patterns: HEADS,
        explained: &["kv-head"],
        says: &["KV head h mod kv_heads"],
        ..FAULT
    },
    Fault {
        name: "gqa-context",
        what: "query head h reads the values of KV head h mod kv_heads",
        by: By::Shader(&[Shader {
            kernel: "attn_context",
            edits: &[("head / (p.heads / p.kv_heads)", "head % p.kv_heads")],
        }]),
        stage: Stage::AttnContext,
        layers: [3, 1],
        patterns: HEADS,
        explained: &["kv-head"],
        says: &["KV head h mod kv_heads"],
        ..FAULT
    },
    Fault {
        name: "scale-missing",
        what: "scores without 1/√D",
        by: By::Shader(&[Shader {
            kernel: "attn_scores",
            edits: &[("(sum.z + sum.w)) * p.scale;", "(sum.z + sum.w));")],
        }]),
        stage: Stage::AttnScores,
        layers: [0, 1],
        graded: true,
        patterns: &[P::WholeTensor, P::Scattered],
        explained: &["attention-scale"],
        says: &["no scale at all"],
        ..FAULT
    },
    Fault {
        name: "scale-twice",
        what: "scores with 1/√D twice",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let Op::AttnScores { head_dim, .. } = *op else { return Err(misplaced(op)) };
                let scores = engine.run(op)?;
                let scaled = scores.to_f32().iter().map(|s| s / (head_dim as f32).sqrt()).collect();
                Ok(HostTensor::f32(&scores.shape, scaled))
            })
        }),
        subject: FaultySide::Cpu,
        stage: Stage::AttnScores,
        layers: [3, 1],
        explained: &["attention-scale"],
        says: &["the scale applied twice"],
        ..FAULT
    },
    Fault {
        name: "one-position",
        what: "the wrong KV heads, at one position",
        by: By::Shader(&[Shader {
            kernel: "attn_context",
            edits: &[("head / (p.heads / p.kv_heads)", "head % p.kv_heads")],
        }]),
        stage: Stage::AttnContext,
        layers: [1, 0],
        scope: FaultScope::Row(5),
        patterns: &[P::Head, P::Heads, P::Position],
        explained: &["kv-head"],
        says: &["KV head h mod kv_heads"],
        ..FAULT
    },
];

const TURN: &str = "let turn = angles[(p.start + head / p.heads) * p.turned + i];";

/// Everywhere but at position 0, which rope leaves as it is and which sees only itself.
pub(super) const NOT_FIRST: &[P] = &[P::PositionRange, P::AllButPosition];
const HEADS: &[P] = &[P::Heads];
/// Keys are the columns of a matrix of scores.
const LAST_KEY: &[P] = &[P::Column, P::ColumnRange];

/// The operation that `f` makes of the one that was asked for.
pub(super) fn operation(f: for<'w> fn(HostOp<'w>) -> Option<HostOp<'w>>) -> Mistake {
    Box::new(move |engine, op| {
        let wrong = f(op.clone()).ok_or_else(|| misplaced(op))?;
        engine.run(&wrong)
    })
}

/// The cache that a value was to be stored in, without it.
fn cache_as_it_was(op: &HostOp<'_>) -> Result<HostTensor> {
    match op {
        Op::Store { cache, .. } => Ok((**cache).clone()),
        _ => Err(misplaced(op)),
    }
}

pub(super) fn misplaced(op: &HostOp<'_>) -> Error {
    Error::usage(format!("{:?} is planted with a fault of another operation", op.kind()))
}
