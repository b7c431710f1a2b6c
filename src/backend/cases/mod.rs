//! The table of operation cases: what every backend must compute, from which both the correctness test and the benchmark run.
//!
//! Design:
//! - **A case is a description** ([`OpCase`]: operation, weight type, shape, kind of values); its operands are made from a seed
//!   when they are wanted, so the table is cheap to list and any number of seeds can be drawn for it.
//! - **Shapes that break kernels**: one block, one row, one token, several tokens, rows and tokens beside every multiple
//!   of 4, 8, 32 and 64, experts that nobody chose and experts that all chose, heads that share KV heads and heads that do not,
//!   head sizes that are no power of two, caches with more room than positions, positions far from 0.
//! - **What must not be read is poisoned**: cache rows beyond the positions seen, scores above the diagonal, and columns beside those
//!   that an operation takes hold large numbers.
//! - Values are f32, so that a backend takes them exactly; weights are random valid blocks (`quant::random`).

use std::sync::Arc;

use super::Backend;
use crate::error::Result;
use crate::op::{
    At, GateActivation, GgmlType, Groups, HostTensor, Op, OpKind, Pairing, Rotation, STAGES, Stage, Weight, Yarn,
};

mod make;
mod table;

use make::Maker;
pub use table::{bench_table, table};

/// What the numbers of an activation look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpValues {
    /// Nearly normal, variance 1.
    Normal,
    /// Of variance 1 about a mean of 3: sums grow with their length.
    Offset,
    /// One channel in 64 is 300 times the others, as in trained models.
    Outliers,
    /// Of size 1e-20: squares underflow.
    Small,
    /// Of size 40: exp overflows and underflows.
    Large,
    /// One in four is NaN.
    Nan,
}

/// Which experts a token chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Different ones for each token.
    Random,
    /// The same for all tokens: the others are empty.
    Same,
}

/// An operation's shape and what else describes it; the letters are those of [`Op`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OpShape {
    Embed {
        ty: GgmlType,
        cols: usize,
        rows: usize,
        tokens: usize,
        scale: f64,
    },
    RmsNorm {
        tokens: usize,
        groups: usize,
        n: usize,
        /// Columns after the groups that stay as they are.
        keep: usize,
    },
    /// `shared`: x has one head, which all read.
    HeadMatMul {
        ty: GgmlType,
        cols: usize,
        rows: usize,
        heads: usize,
        head_dim: usize,
        tokens: usize,
        keep: bool,
        shared: bool,
    },
    MatMul {
        ty: GgmlType,
        cols: usize,
        rows: usize,
        tokens: usize,
    },
    Bias {
        tokens: usize,
        cols: usize,
    },
    /// `factors`: with frequency factors, from 1 to 8.
    Rope {
        tokens: usize,
        heads: usize,
        head_dim: usize,
        start: usize,
        base: f64,
        pairing: Pairing,
        scale: f64,
        factors: bool,
        yarn: Option<Yarn>,
        /// How many of a head's dimensions turn, where it is not all.
        dims: Option<usize>,
        /// The first of these.
        first: usize,
    },
    /// Of rows that have `beyond` more columns.
    Store {
        tokens: usize,
        cols: usize,
        beyond: usize,
        start: usize,
        capacity: usize,
    },
    AttnScores {
        tokens: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        start: usize,
        spare: usize,
        scale: Option<f64>,
        window: Option<usize>,
    },
    /// `sinks`: with one for each head.
    AttnProbs {
        tokens: usize,
        heads: usize,
        start: usize,
        window: Option<usize>,
        sinks: bool,
    },
    AttnContext {
        tokens: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        start: usize,
        spare: usize,
        window: Option<usize>,
    },
    Add {
        tokens: usize,
        cols: usize,
    },
    RouterProbs {
        tokens: usize,
        experts: usize,
        sigmoid: bool,
    },
    /// `ties`: probabilities of few different values.
    RouterTopK {
        tokens: usize,
        experts: usize,
        k: usize,
        ties: bool,
        /// Of which some are chosen from.
        groups: Option<Groups>,
    },
    RouterWeights {
        tokens: usize,
        experts: usize,
        k: usize,
        renormalise: bool,
        softmax: bool,
        scale: f64,
    },
    ExpertBias {
        tokens: usize,
        k: usize,
        cols: usize,
        experts: usize,
        choice: Choice,
    },
    /// `per_slot`: x is [T, K, n], else [T, n].
    ExpertMatMul {
        ty: GgmlType,
        cols: usize,
        rows: usize,
        experts: usize,
        tokens: usize,
        k: usize,
        per_slot: bool,
        choice: Choice,
    },
    SwiGlu {
        tokens: usize,
        cols: usize,
        activation: GateActivation,
    },
    SigmoidGate {
        tokens: usize,
        cols: usize,
    },
    Conv {
        tokens: usize,
        channels: usize,
        kernel: usize,
        start: usize,
        spare: usize,
    },
    /// Heads of x [T, cols] from column `first` on.
    L2Norm {
        tokens: usize,
        cols: usize,
        first: usize,
        heads: usize,
        head_dim: usize,
    },
    Decay {
        tokens: usize,
        heads: usize,
    },
    /// `heads` are those of values.
    DeltaRule {
        tokens: usize,
        key_heads: usize,
        heads: usize,
        head_dim: usize,
        start: usize,
        spare: usize,
        tiled: bool,
    },
    Combine {
        tokens: usize,
        k: usize,
        hidden: usize,
    },
    Rows {
        tokens: usize,
        cols: usize,
        start: usize,
        rows: usize,
    },
}

impl OpShape {
    /// A rotation as Qwen's.
    pub fn neox(tokens: usize, heads: usize, head_dim: usize, start: usize, base: f64) -> Self {
        Self::Rope {
            tokens,
            heads,
            head_dim,
            start,
            base,
            pairing: Pairing::Neox,
            scale: 1.0,
            factors: false,
            yarn: None,
            first: 0,
            dims: None,
        }
    }

    /// The same on `to` dimensions of a head, from dimension `from` on.
    pub fn turning(mut self, to: Option<usize>, from: usize) -> Self {
        if let Self::Rope { dims, first, .. } = &mut self {
            (*dims, *first) = (to, from);
        }
        self
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OpCase {
    pub shape: OpShape,
    pub values: OpValues,
}

impl OpCase {
    pub fn kind(&self) -> OpKind {
        match self.shape {
            OpShape::Embed { .. } => OpKind::Embed,
            OpShape::RmsNorm { .. } => OpKind::RmsNorm,
            OpShape::MatMul { .. } => OpKind::MatMul,
            OpShape::HeadMatMul { .. } => OpKind::HeadMatMul,
            OpShape::Bias { .. } => OpKind::Bias,
            OpShape::Rope { .. } => OpKind::Rope,
            OpShape::Store { .. } => OpKind::Store,
            OpShape::AttnScores { .. } => OpKind::AttnScores,
            OpShape::AttnProbs { .. } => OpKind::AttnProbs,
            OpShape::AttnContext { .. } => OpKind::AttnContext,
            OpShape::Add { .. } => OpKind::Add,
            OpShape::RouterProbs { .. } => OpKind::RouterProbs,
            OpShape::RouterTopK { .. } => OpKind::RouterTopK,
            OpShape::RouterWeights { .. } => OpKind::RouterWeights,
            OpShape::ExpertMatMul { .. } => OpKind::ExpertMatMul,
            OpShape::ExpertBias { .. } => OpKind::ExpertBias,
            OpShape::SwiGlu { .. } => OpKind::SwiGlu,
            OpShape::SigmoidGate { .. } => OpKind::SigmoidGate,
            OpShape::Conv { .. } => OpKind::Conv,
            OpShape::L2Norm { .. } => OpKind::L2Norm,
            OpShape::Decay { .. } => OpKind::Decay,
            OpShape::DeltaRule { .. } => OpKind::DeltaRule,
            OpShape::Combine { .. } => OpKind::Combine,
            OpShape::Rows { .. } => OpKind::Rows,
        }
    }

    /// The type of its weight, where a choice of types is part of the case.
    pub fn ty(&self) -> Option<GgmlType> {
        match self.shape {
            OpShape::Embed { ty, .. }
            | OpShape::MatMul { ty, .. }
            | OpShape::HeadMatMul { ty, .. }
            | OpShape::ExpertMatMul { ty, .. } => Some(ty),
            _ => None,
        }
    }

    /// Where a call of it stands: at a stage that this kind of operation makes (`Store` and `Rows` make none and borrow
    /// one), and at the position of its first row.
    pub fn at(&self) -> At {
        let stage = STAGES.iter().find(|row| row.op == self.kind()).map_or(Stage::KRope, |row| row.stage);
        let start = match self.shape {
            OpShape::Rope { start, .. }
            | OpShape::Store { start, .. }
            | OpShape::AttnScores { start, .. }
            | OpShape::AttnProbs { start, .. }
            | OpShape::AttnContext { start, .. }
            | OpShape::Conv { start, .. }
            | OpShape::DeltaRule { start, .. }
            | OpShape::Rows { start, .. } => start,
            _ => 0,
        };
        At::layer(0, stage, start)
    }

    /// Multiply-adds with weights, or elements where there are no weights: the work that a benchmark divides by.
    pub fn work(&self) -> u64 {
        let n = match self.shape {
            OpShape::Embed { cols, tokens, .. } => cols * tokens,
            OpShape::RmsNorm { tokens, groups, n, keep } => tokens * (groups * n + keep),
            OpShape::HeadMatMul { cols, rows, heads, tokens, .. } => cols * rows * heads * tokens,
            OpShape::MatMul { cols, rows, tokens, .. } => cols * rows * tokens,
            OpShape::Rope { tokens, heads, head_dim, .. } => tokens * heads * head_dim,
            OpShape::AttnScores { tokens, heads, head_dim, start, .. }
            | OpShape::AttnContext { tokens, heads, head_dim, start, .. } => {
                tokens * heads * head_dim * (start + tokens)
            }
            OpShape::AttnProbs { tokens, heads, start, .. } => tokens * heads * (start + tokens),
            OpShape::RouterProbs { tokens, experts, .. } | OpShape::RouterTopK { tokens, experts, .. } => {
                tokens * experts
            }
            OpShape::RouterWeights { tokens, k, .. } => tokens * k,
            OpShape::ExpertMatMul { cols, rows, tokens, k, .. } => cols * rows * tokens * k,
            OpShape::Combine { tokens, k, hidden } => tokens * k * hidden,
            OpShape::ExpertBias { tokens, k, cols, .. } => tokens * k * cols,
            OpShape::Store { tokens, cols, .. }
            | OpShape::Add { tokens, cols }
            | OpShape::Bias { tokens, cols }
            | OpShape::SigmoidGate { tokens, cols }
            | OpShape::SwiGlu { tokens, cols, .. } => tokens * cols,
            OpShape::Rows { cols, rows, .. } => rows * cols,
            OpShape::Conv { tokens, channels, kernel, .. } => tokens * channels * kernel,
            OpShape::L2Norm { tokens, heads, head_dim, .. } => tokens * heads * head_dim,
            OpShape::Decay { tokens, heads } => tokens * heads,
            // What the state holds for the key, and the key's part of the state, at each position; and for each query what it holds.
            OpShape::DeltaRule { tokens, heads, head_dim, start, .. } => {
                heads * head_dim * head_dim * (2 * (start + tokens) + tokens)
            }
        };
        n as u64
    }

    /// Makes the operands. The same seed makes the same operands on every machine.
    ///
    /// # Errors
    /// If no weights are made of the type.
    pub fn build(&self, seed: u64) -> Result<Operands> {
        Maker::new(seed, self.values).build(self.shape)
    }
}

impl std::fmt::Display for OpCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.values {
            OpValues::Normal => write!(f, "{:?}", self.shape),
            values => write!(f, "{:?} {values:?}", self.shape),
        }
    }
}

/// A case's operands, which its [`Op`] borrows.
pub struct Operands {
    shape: OpShape,
    weight: Option<Arc<Weight>>,
    tokens: Vec<u32>,
    /// In the order of [`Op::inputs`].
    tensors: Vec<HostTensor>,
}

/// The eps of every norm in the table: that of the Qwen3 family.
const EPS: f32 = 1e-6;

impl Operands {
    /// The operation over these operands.
    pub fn op(&self) -> Op<'_, &HostTensor> {
        let tensor = |i: usize| &self.tensors[i];
        let weight = || self.weight.as_ref().expect("made with a weight");
        match self.shape {
            OpShape::Embed { scale, .. } => Op::Embed { table: weight(), tokens: &self.tokens, scale },
            OpShape::RmsNorm { keep, .. } => Op::RmsNorm { x: tensor(0), weight: weight(), eps: EPS, keep },
            OpShape::HeadMatMul { head_dim, keep, .. } => {
                Op::HeadMatMul { x: tensor(0), weight: weight(), head_dim, keep }
            }
            OpShape::MatMul { .. } => Op::MatMul { x: tensor(0), weight: weight() },
            OpShape::Bias { .. } => Op::Bias { x: tensor(0), weight: weight() },
            OpShape::Rope { start, head_dim, base, pairing, scale, factors, yarn, dims, first, .. } => {
                let rotation = Rotation { pairing, base, dims, first, scale, factors: factors.then(weight), yarn };
                Op::Rope { x: tensor(0), start, head_dim, rotation }
            }
            OpShape::Store { start, .. } => Op::Store { cache: tensor(0), x: tensor(1), start },
            OpShape::AttnScores { start, head_dim, scale, window, .. } => {
                Op::AttnScores { q: tensor(0), k: tensor(1), start, head_dim, scale, window }
            }
            OpShape::AttnProbs { start, window, sinks, .. } => {
                Op::AttnProbs { scores: tensor(0), start, window, sinks: sinks.then(weight) }
            }
            OpShape::AttnContext { start, head_dim, window, .. } => {
                Op::AttnContext { probs: tensor(0), v: tensor(1), start, head_dim, window }
            }
            OpShape::Add { .. } => Op::Add { a: tensor(0), b: tensor(1) },
            OpShape::RouterProbs { sigmoid, .. } => Op::RouterProbs { logits: tensor(0), sigmoid },
            OpShape::RouterTopK { k, groups, .. } => Op::RouterTopK { probs: tensor(0), k, groups },
            OpShape::RouterWeights { renormalise, softmax, scale, .. } => {
                Op::RouterWeights { probs: tensor(0), ids: tensor(1), renormalise, softmax, scale }
            }
            OpShape::ExpertBias { .. } => Op::ExpertBias { x: tensor(0), ids: tensor(1), weight: weight() },
            OpShape::ExpertMatMul { .. } => Op::ExpertMatMul { x: tensor(0), ids: tensor(1), weight: weight() },
            OpShape::SwiGlu { activation, .. } => Op::SwiGlu { gate: tensor(0), up: tensor(1), activation },
            OpShape::SigmoidGate { .. } => Op::SigmoidGate { x: tensor(0), gate: tensor(1) },
            OpShape::Conv { start, .. } => Op::Conv { x: tensor(0), cache: tensor(1), weight: weight(), start },
            OpShape::L2Norm { first, heads, head_dim, .. } => {
                Op::L2Norm { x: tensor(0), first, heads, head_dim, eps: EPS }
            }
            OpShape::Decay { .. } => Op::Decay { x: tensor(0), weight: weight() },
            OpShape::DeltaRule { head_dim, start, tiled, .. } => {
                let [q, k, v, decay, beta] = [0, 1, 2, 3, 4].map(tensor);
                Op::DeltaRule { q, k, v, decay, beta, start, head_dim, tiled }
            }
            OpShape::Combine { .. } => Op::Combine { down: tensor(0), weights: tensor(1) },
            OpShape::Rows { start, rows, .. } => Op::Rows { x: tensor(0), start, rows },
        }
    }

    /// The operands as tensors of `backend`, in the order of [`Op::inputs`]. A cache is made as a forward pass makes
    /// it: allocated, then written by [`Op::Store`].
    ///
    /// # Errors
    /// Whatever the backend says.
    pub fn upload<B: Backend>(&self, at: At, backend: &mut B) -> Result<Vec<B::Tensor>> {
        let kind = self.op().kind();
        let is_cache = |n: usize| kind.reads_cache(n) || kind == OpKind::Store && n == 0;
        let mut uploaded = Vec::with_capacity(self.tensors.len());
        for (i, tensor) in self.tensors.iter().enumerate() {
            let handle = if is_cache(i) {
                let rows = backend.upload(tensor)?;
                let cache = backend.alloc(&tensor.shape)?;
                backend.run(At { start: 0, ..at }, &Op::Store { cache, x: rows, start: 0 })?
            } else {
                backend.upload(tensor)?
            };
            uploaded.push(handle);
        }
        Ok(uploaded)
    }
}

/// Runs one case's operation on a backend and reads the result.
///
/// # Errors
/// Whatever the backend says.
pub fn run<B: Backend>(backend: &mut B, at: At, operands: &Operands) -> Result<HostTensor> {
    let tensors = operands.upload(at, backend)?;
    let mut next = tensors.iter();
    let op = operands.op().try_map(|_| Ok(next.next().expect("an upload for each operand").clone()))?;
    let result = backend.run(at, &op)?;
    backend.read(&result)
}
