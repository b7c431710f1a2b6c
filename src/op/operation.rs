//! Operations, with and without their operands.

use std::sync::Arc;

use crate::error::Result;
use crate::op::Weight;

/// An operation with its operands. `T` is a backend's tensor handle. Shapes are `[rows, cols]` with cols contiguous.
///
/// Sums are over the contiguous axis unless it says otherwise. `T` in shapes is the number of positions in this call, the
/// first of which is position `start`; S = start + T.
#[derive(Clone, Debug)]
pub enum Op<'w, T> {
    /// Row `tokens[t]` of `table`, dequantized. → [T, H]
    Embed { table: &'w Arc<Weight>, tokens: &'w [u32] },
    /// x / √(mean(x²) + eps) · weight, over each group of `weight.cols` values (a whole row, or one head). [T, G·n] → same
    RmsNorm { x: T, weight: &'w Arc<Weight>, eps: f32 },
    /// x · weightᵀ. [T, K] × [N, K] → [T, N]
    MatMul { x: T, weight: &'w Arc<Weight> },
    /// Rotary embedding, NEOX pairing (i with i + head_dim/2), angle = (start + t) · base^(−2i/head_dim), on each head.
    /// [T, heads·D] → same
    Rope { x: T, start: usize, head_dim: usize, base: f64 },
    /// Writes x [T, n] over rows start.. of `cache` [capacity, n], in place, and returns the cache. Makes no stage.
    Store { cache: T, x: T, start: usize },
    /// q·k / √D for each query head and its KV head (query head h reads KV head h / (heads / kv_heads)); 0 where s > start + t.
    /// [T, heads·D], cache [capacity ≥ S, kv_heads·D] → [heads, T, S]
    AttnScores { q: T, k: T, start: usize, head_dim: usize },
    /// Softmax over s ≤ start + t; 0 beyond. [heads, T, S] → same
    AttnProbs { scores: T, start: usize },
    /// Σ_s probs · v. [heads, T, S], cache [capacity ≥ S, kv_heads·D] → [T, heads·D]
    AttnContext { probs: T, v: T, start: usize, head_dim: usize },
    /// a + b. [T, H]
    Add { a: T, b: T },
    /// Softmax over all experts. [T, E] → same
    RouterProbs { logits: T },
    /// The `k` largest, by weight descending; ties to the lower expert id; NaN first. [T, E] → [T, K] u32
    RouterTopK { probs: T, k: usize },
    /// probs at ids, divided by their sum when `renormalise`. [T, E], [T, K] u32 → [T, K]
    RouterWeights { probs: T, ids: T, renormalise: bool },
    /// For token t and slot k, x · weight[ids[t, k]]ᵀ; x is shared by the slots, [T, n], or one per slot, [T, K, n]. → [T, K, N]
    ExpertMatMul { x: T, ids: T, weight: &'w Arc<Weight> },
    /// gate · sigmoid(gate) · up. Same shape as its operands.
    SwiGlu { gate: T, up: T },
    /// Σ_k weights[t, k] · down[t, k, ·], k ascending. [T, K, H], [T, K] → [T, H]
    Combine { down: T, weights: T },
    /// Rows start..start + rows of x. [T, n] → [rows, n]. Makes no stage.
    Rows { x: T, start: usize, rows: usize },
}

/// Which operation, without operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OpKind {
    Embed,
    RmsNorm,
    MatMul,
    Rope,
    Store,
    AttnScores,
    AttnProbs,
    AttnContext,
    Add,
    RouterProbs,
    RouterTopK,
    RouterWeights,
    ExpertMatMul,
    SwiGlu,
    Combine,
    Rows,
}

impl OpKind {
    pub const ALL: &'static [OpKind] = &[
        OpKind::Embed,
        OpKind::RmsNorm,
        OpKind::MatMul,
        OpKind::Rope,
        OpKind::Store,
        OpKind::AttnScores,
        OpKind::AttnProbs,
        OpKind::AttnContext,
        OpKind::Add,
        OpKind::RouterProbs,
        OpKind::RouterTopK,
        OpKind::RouterWeights,
        OpKind::ExpertMatMul,
        OpKind::SwiGlu,
        OpKind::Combine,
        OpKind::Rows,
    ];
}

impl<'w, T> Op<'w, T> {
    pub fn kind(&self) -> OpKind {
        match self {
            Op::Embed { .. } => OpKind::Embed,
            Op::RmsNorm { .. } => OpKind::RmsNorm,
            Op::MatMul { .. } => OpKind::MatMul,
            Op::Rope { .. } => OpKind::Rope,
            Op::Store { .. } => OpKind::Store,
            Op::AttnScores { .. } => OpKind::AttnScores,
            Op::AttnProbs { .. } => OpKind::AttnProbs,
            Op::AttnContext { .. } => OpKind::AttnContext,
            Op::Add { .. } => OpKind::Add,
            Op::RouterProbs { .. } => OpKind::RouterProbs,
            Op::RouterTopK { .. } => OpKind::RouterTopK,
            Op::RouterWeights { .. } => OpKind::RouterWeights,
            Op::ExpertMatMul { .. } => OpKind::ExpertMatMul,
            Op::SwiGlu { .. } => OpKind::SwiGlu,
            Op::Combine { .. } => OpKind::Combine,
            Op::Rows { .. } => OpKind::Rows,
        }
    }

    /// Whether the result is the site's stage; `Store` and `Rows` only move values.
    pub fn makes_stage(&self) -> bool {
        !matches!(self, Op::Store { .. } | Op::Rows { .. })
    }

    /// The weight that the operation reads, if it reads one.
    pub fn weight(&self) -> Option<&'w Arc<Weight>> {
        match *self {
            Op::Embed { table: weight, .. }
            | Op::RmsNorm { weight, .. }
            | Op::MatMul { weight, .. }
            | Op::ExpertMatMul { weight, .. } => Some(weight),
            _ => None,
        }
    }

    /// The tensor operands, in the order of the fields.
    pub fn inputs(&self) -> Vec<&T> {
        match self {
            Op::Embed { .. } => vec![],
            Op::RmsNorm { x, .. } | Op::MatMul { x, .. } | Op::Rope { x, .. } | Op::Rows { x, .. } => vec![x],
            Op::Store { cache, x, .. } => vec![cache, x],
            Op::AttnScores { q, k, .. } => vec![q, k],
            Op::AttnProbs { scores, .. } => vec![scores],
            Op::AttnContext { probs, v, .. } => vec![probs, v],
            Op::Add { a, b } => vec![a, b],
            Op::RouterProbs { logits } => vec![logits],
            Op::RouterTopK { probs, .. } => vec![probs],
            Op::RouterWeights { probs, ids, .. } => vec![probs, ids],
            Op::ExpertMatMul { x, ids, .. } => vec![x, ids],
            Op::SwiGlu { gate, up } => vec![gate, up],
            Op::Combine { down, weights } => vec![down, weights],
        }
    }

    /// The same operation over other handles: `f` is called once for each operand, in the order of [`Op::inputs`].
    pub fn try_map<'s, U>(&'s self, mut f: impl FnMut(&'s T) -> Result<U>) -> Result<Op<'w, U>> {
        Ok(match *self {
            Op::Embed { table, tokens } => Op::Embed { table, tokens },
            Op::RmsNorm { ref x, weight, eps } => Op::RmsNorm { x: f(x)?, weight, eps },
            Op::MatMul { ref x, weight } => Op::MatMul { x: f(x)?, weight },
            Op::Rope { ref x, start, head_dim, base } => Op::Rope { x: f(x)?, start, head_dim, base },
            Op::Store { ref cache, ref x, start } => Op::Store { cache: f(cache)?, x: f(x)?, start },
            Op::AttnScores { ref q, ref k, start, head_dim } => Op::AttnScores { q: f(q)?, k: f(k)?, start, head_dim },
            Op::AttnProbs { ref scores, start } => Op::AttnProbs { scores: f(scores)?, start },
            Op::AttnContext { ref probs, ref v, start, head_dim } => {
                Op::AttnContext { probs: f(probs)?, v: f(v)?, start, head_dim }
            }
            Op::Add { ref a, ref b } => Op::Add { a: f(a)?, b: f(b)? },
            Op::RouterProbs { ref logits } => Op::RouterProbs { logits: f(logits)? },
            Op::RouterTopK { ref probs, k } => Op::RouterTopK { probs: f(probs)?, k },
            Op::RouterWeights { ref probs, ref ids, renormalise } => {
                Op::RouterWeights { probs: f(probs)?, ids: f(ids)?, renormalise }
            }
            Op::ExpertMatMul { ref x, ref ids, weight } => Op::ExpertMatMul { x: f(x)?, ids: f(ids)?, weight },
            Op::SwiGlu { ref gate, ref up } => Op::SwiGlu { gate: f(gate)?, up: f(up)? },
            Op::Combine { ref down, ref weights } => Op::Combine { down: f(down)?, weights: f(weights)? },
            Op::Rows { ref x, start, rows } => Op::Rows { x: f(x)?, start, rows },
        })
    }
}
