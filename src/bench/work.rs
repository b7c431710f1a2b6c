//! The work of an operation: the bytes that it must read and the multiply-adds that it must do.
//!
//! Design:
//! - Bytes are those of weights, as the file stores them, and of cached keys and values: what is too much for a cache
//!   to keep from one call to the next. A matrix is read once a call, however many positions the call has. Of experts
//!   only the chosen ones are read, each once. Activations are not counted: they are small and were just written.
//! - Operations are those of matrix products, convolutions and attention, a multiply-add being two. Attention is causal: row t sees
//!   start + t + 1 positions. A delta rule has its state, which
//!   it reads once: a backend that computes it from the first position on does more than it must. Norms, softmax and elementwise operations count as none; together they are a thousandth.
//! - Which experts are chosen is data, so a run is counted by running it: [`Counted`] is a backend over a backend.

use std::collections::BTreeSet;
use std::ops::AddAssign;

use crate::backend::{Backend, pass_on};
use crate::error::Result;
use crate::op::{At, GgmlType, Op, OpKind, Operation};

/// Bytes and floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Work {
    /// Of weights, keys and values.
    pub bytes: u64,
    /// Of products; a multiply-add is two.
    pub flops: u64,
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.flops += other.flops;
    }
}

impl std::iter::Sum for Work {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let mut sum = Self::default();
        all.for_each(|work| sum += work);
        sum
    }
}

/// Bytes of a cached key or value.
const CACHED: usize = 4;

/// The work of `op` on operands whose axes `shape` tells, of which `experts` different experts are chosen.
pub fn work<T>(op: &Op<'_, T>, shape: impl Fn(&T) -> Vec<usize>, experts: usize) -> Work {
    let rows = |t: &T| shape(t).first().copied().unwrap_or(0);
    let cols = |t: &T| shape(t).last().copied().unwrap_or(0);
    // Pairs of a query and a key that it sees.
    let pairs = |start: usize, positions: usize| start * positions + positions * (positions + 1) / 2;
    let (bytes, flops) = match op {
        Operation::Embed { table, tokens, .. } => (tokens.len() * table.row_bytes(), 0),
        Operation::RmsNorm { weight, .. } | Operation::Bias { weight, .. } => (weight.row_bytes(), 0),
        Operation::MatMul { x, weight } => (weight.rows * weight.row_bytes(), 2 * rows(x) * weight.rows * weight.cols),
        Operation::HeadMatMul { x, weight, .. } => {
            let matrices = weight.experts * weight.rows;
            (matrices * weight.row_bytes(), 2 * rows(x) * matrices * weight.cols)
        }
        Operation::ExpertMatMul { ids, weight, .. } => {
            let slots: usize = shape(ids).iter().product();
            (experts * weight.rows * weight.row_bytes(), 2 * slots * weight.rows * weight.cols)
        }
        Operation::ExpertBias { weight, .. } => (experts * weight.row_bytes(), 0),
        Operation::AttnScores { q, k, start, .. } => {
            ((start + rows(q)) * cols(k) * CACHED, 2 * cols(q) * pairs(*start, rows(q)))
        }
        Operation::AttnContext { probs, v, start, head_dim, .. } => {
            let (heads, positions) = (rows(probs), shape(probs).get(1).copied().unwrap_or(0));
            ((start + positions) * cols(v) * CACHED, 2 * heads * head_dim * pairs(*start, positions))
        }
        Operation::Conv { x, weight, start, .. } => {
            let (taps, before) = (weight.cols, (*start).min(weight.cols.saturating_sub(1)));
            let cached = before * weight.rows * CACHED;
            (weight.rows * weight.row_bytes() + cached, 2 * rows(x) * weight.rows * taps)
        }
        Operation::Decay { weight, .. } => (weight.row_bytes(), 0),
        &Operation::DeltaRule { ref q, ref decay, head_dim, .. } => {
            // Sᵀk, k times what is added, and Sᵀq.
            let of_state = cols(decay) * head_dim * head_dim;
            (of_state * CACHED, 2 * 3 * of_state * rows(q))
        }
        _ => (0, 0),
    };
    Work { bytes: bytes as u64, flops: flops as u64 }
}

/// An operation of a run and its work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CountedOp {
    /// Where it stands.
    pub at: At,
    /// Which operation.
    pub op: OpKind,
    /// The type of its weight, if it has one.
    pub ty: Option<GgmlType>,
    /// What it does.
    pub work: Work,
}

/// A backend that counts the work of another, and changes nothing. It waits for the ids of experts, so its time means
/// nothing.
pub struct Counted<'a, B: Backend> {
    inner: &'a mut B,
    counted: Vec<CountedOp>,
}

impl<'a, B: Backend> Counted<'a, B> {
    /// Counts what is run on `inner` through it.
    pub fn new(inner: &'a mut B) -> Self {
        Self { inner, counted: Vec::new() }
    }

    /// What was run since the last call, in order.
    pub fn take(&mut self) -> Vec<CountedOp> {
        std::mem::take(&mut self.counted)
    }
}

impl<B: Backend> Backend for Counted<'_, B> {
    pass_on!(inner: B);

    fn run(&mut self, at: At, op: &Op<'_, B::Tensor>) -> Result<B::Tensor> {
        let experts = match op {
            Operation::ExpertMatMul { ids, .. } | Operation::ExpertBias { ids, .. } => {
                self.inner.read(ids)?.ids().iter().collect::<BTreeSet<_>>().len()
            }
            _ => 0,
        };
        let work = work(op, |t| self.inner.shape(t), experts);
        self.counted.push(CountedOp { at, op: op.kind(), ty: op.weight().map(|w| w.ty), work });
        self.inner.run(at, op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::model::{LogitRows, Model, Session, forward};
    use crate::op::Stage;

    /// The demo model by hand: H 256, 4 layers, 8 heads of 64 over 2, 8 experts of width 256 of which 2 are used, V
    /// 2048.
    #[test]
    fn a_decoded_token_of_the_demo_is_counted_as_by_hand() {
        let model = Model::open(None).unwrap();
        let mut cpu = CpuBackend::new(None, Some(1)).unwrap();
        let mut session = Session::new(&mut cpu, &model.config, 8).unwrap();
        let mut counted = Counted::new(&mut cpu);
        forward(&mut counted, &model, &mut session, &[422, 472, 345, 339, 293], LogitRows::Last).unwrap();
        counted.take();
        forward(&mut counted, &model, &mut session, &[473], LogitRows::Last).unwrap();
        let ops = counted.take();

        let bytes = |name: &str, parts: usize| -> u64 {
            let tensor = model.gguf.tensor(name).unwrap();
            tensor.bytes / parts as u64
        };
        let mut expected =
            bytes("token_embd.weight", 2048) + bytes("output_norm.weight", 1) + bytes("output.weight", 1);
        for n in 0..4 {
            for name in
                ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_q_norm", "attn_k_norm", "attn_output", "ffn_norm"]
            {
                expected += bytes(&format!("blk.{n}.{name}.weight"), 1);
            }
            expected += bytes(&format!("blk.{n}.ffn_gate_inp.weight"), 1);
            for name in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
                expected += bytes(&format!("blk.{n}.{name}.weight"), 8) * 2; // 2 of 8 experts
            }
            expected += 2 * 6 * 2 * 64 * 4; // keys and values of 6 positions
        }
        let layer = 256 * 512 + 2 * 256 * 128 + 512 * 256 + 256 * 8 + 3 * 2 * 256 * 256 + 2 * 6 * 8 * 64;
        let total: Work = ops.iter().map(|op| op.work).sum();
        assert_eq!(total, Work { bytes: expected, flops: 2 * (4 * layer + 256 * 2048) });
    }

    #[test]
    fn a_prompt_reads_each_chosen_expert_once_and_sees_backwards_only() {
        let model = Model::open(None).unwrap();
        let mut cpu = CpuBackend::new(None, Some(1)).unwrap();
        let mut session = Session::new(&mut cpu, &model.config, 16).unwrap();
        let mut counted = Counted::new(&mut cpu);
        forward(&mut counted, &model, &mut session, &[422, 472, 345], LogitRows::Last).unwrap();
        counted.take();
        forward(&mut counted, &model, &mut session, &[339, 293, 473, 588], LogitRows::Last).unwrap();
        let ops = counted.take();
        let of = |stage| ops.iter().find(|op| op.at.site.stage == stage).unwrap();
        // Four queries at positions 3 to 6 see 4 + 5 + 6 + 7 keys of 64 for each of 8 heads.
        assert_eq!(of(Stage::AttnScores).work, Work { bytes: 7 * 128 * 4, flops: 2 * 8 * 64 * (4 + 5 + 6 + 7) });
        assert_eq!(of(Stage::AttnContext).work, of(Stage::AttnScores).work);
        let (gate, slots) = (of(Stage::ExpertGate), 4 * 2);
        assert_eq!(gate.work.flops, 2 * slots * 256 * 256);
        let expert = model.weights.layers[0].ffn.gate_bytes_of_an_expert();
        assert!(gate.work.bytes % expert == 0 && (2..=8).contains(&(gate.work.bytes / expert)));
        // The last position's logits only.
        assert_eq!(of(Stage::Logits).work.flops, 2 * 256 * 2048);
        assert_eq!(of(Stage::AttnNorm).work.flops, 0);
    }

    #[test]
    fn a_delta_rule_reads_its_state_once() {
        use crate::backend::cases::{OpCase, OpShape, OpValues};
        let of = |shape| {
            let operands = OpCase { shape, values: OpValues::Normal }.build(1).unwrap();
            work(&operands.op(), |t| t.shape.clone(), 0)
        };
        let (tokens, key_heads, heads, head_dim, start, spare) = (2, 2, 6, 16, 5, 3);
        let delta = of(OpShape::DeltaRule { tokens, key_heads, heads, head_dim, start, spare, tiled: true });
        assert_eq!(delta.bytes, 6 * 16 * 16 * 4);
        assert_eq!(delta.flops, 2 * 3 * (6 * 16 * 16) * 2);
        let conv = of(OpShape::Conv { tokens, channels: 10, kernel: 4, start, spare });
        assert_eq!(conv, Work { bytes: 10 * 4 * 4 + 3 * 10 * 4, flops: 2 * 2 * 10 * 4 });
    }

    #[test]
    fn a_product_by_heads_reads_every_head_once() {
        use crate::backend::cases::{OpCase, OpShape, OpValues};
        let (ty, cols, rows, heads, head_dim, tokens, keep) = (GgmlType::Q8_0, 64, 5, 3, 80, 4, true);
        for shared in [false, true] {
            let shape = OpShape::HeadMatMul { ty, cols, rows, heads, head_dim, tokens, keep, shared };
            let operands = OpCase { shape, values: OpValues::Normal }.build(1).unwrap();
            let work = work(&operands.op(), |t| t.shape.clone(), 0);
            assert_eq!(work, Work { bytes: 3 * 5 * 2 * 34, flops: 2 * 4 * 3 * 5 * 64 });
        }
    }

    impl crate::model::Ffn {
        fn gate_bytes_of_an_expert(&self) -> u64 {
            match self {
                Self::Moe(moe) => (moe.gate.size() / moe.gate.experts) as u64,
                Self::Dense { .. } => panic!("the demo model has experts"),
            }
        }
    }
}
