//! The table of operation cases: what every backend must compute, from which both the correctness test and the benchmark run.
//!
//! Design:
//! - **A case is a description** ([`OpCase`]: operation, weight type, shape, kind of values); its operands are made from a seed
//!   when they are wanted, so the table is cheap to list and any number of seeds can be drawn for it.
//! - **Shapes that break kernels**: one block, one row, one token, several tokens, rows and tokens beside every multiple
//!   of 4, 8, 32 and 64, experts that nobody chose and experts that all chose, heads that share KV heads and heads that do not,
//!   head sizes that are no power of two, caches with more room than positions, positions far from 0.
//! - **What must not be read is poisoned**: cache rows beyond the positions seen, and scores above the diagonal, hold large
//!   numbers.
//! - Values are f32, so that a backend takes them exactly; weights are random valid blocks (`quant::random`).

use std::sync::Arc;

use super::Backend;
use crate::error::{Error, Result};
use crate::op::{
    At, GateActivation, GgmlType, HostTensor, Op, OpKind, Pairing, Rotation, STAGES, Stage, Weight, Yarn, first_seen,
};
use crate::quant::random::{RandomBlocks, Rng};

mod table;

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
    },
    Store {
        tokens: usize,
        cols: usize,
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
            dims: None,
        }
    }

    /// The same on the first `dims` dimensions of a head.
    pub fn turning(mut self, to: Option<usize>) -> Self {
        if let Self::Rope { dims, .. } = &mut self {
            *dims = to;
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
            OpShape::Combine { .. } => OpKind::Combine,
            OpShape::Rows { .. } => OpKind::Rows,
        }
    }

    /// The type of its weight, where a choice of types is part of the case.
    pub fn ty(&self) -> Option<GgmlType> {
        match self.shape {
            OpShape::Embed { ty, .. } | OpShape::MatMul { ty, .. } | OpShape::ExpertMatMul { ty, .. } => Some(ty),
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
            | OpShape::Rows { start, .. } => start,
            _ => 0,
        };
        At::layer(0, stage, start)
    }

    /// Multiply-adds with weights, or elements where there are no weights: the work that a benchmark divides by.
    pub fn work(&self) -> u64 {
        let n = match self.shape {
            OpShape::Embed { cols, tokens, .. } => cols * tokens,
            OpShape::RmsNorm { tokens, groups, n } => tokens * groups * n,
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
        };
        n as u64
    }

    /// Makes the operands. The same seed makes the same operands on every machine.
    ///
    /// # Errors
    /// If no weights are made of the type.
    pub fn build(&self, seed: u64) -> Result<Operands> {
        Maker { rng: Rng::new(seed, 0), seed, values: self.values }.build(self.shape)
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
            OpShape::RmsNorm { .. } => Op::RmsNorm { x: tensor(0), weight: weight(), eps: EPS },
            OpShape::MatMul { .. } => Op::MatMul { x: tensor(0), weight: weight() },
            OpShape::Bias { .. } => Op::Bias { x: tensor(0), weight: weight() },
            OpShape::Rope { start, head_dim, base, pairing, scale, factors, yarn, dims, .. } => {
                let rotation = Rotation { pairing, base, dims, scale, factors: factors.then(weight), yarn };
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
            OpShape::RouterTopK { k, .. } => Op::RouterTopK { probs: tensor(0), k },
            OpShape::RouterWeights { renormalise, softmax, scale, .. } => {
                Op::RouterWeights { probs: tensor(0), ids: tensor(1), renormalise, softmax, scale }
            }
            OpShape::ExpertBias { .. } => Op::ExpertBias { x: tensor(0), ids: tensor(1), weight: weight() },
            OpShape::ExpertMatMul { .. } => Op::ExpertMatMul { x: tensor(0), ids: tensor(1), weight: weight() },
            OpShape::SwiGlu { activation, .. } => Op::SwiGlu { gate: tensor(0), up: tensor(1), activation },
            OpShape::SigmoidGate { .. } => Op::SigmoidGate { x: tensor(0), gate: tensor(1) },
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
        let cache = match self.shape {
            OpShape::Store { .. } => Some(0),
            OpShape::AttnScores { .. } | OpShape::AttnContext { .. } => Some(1),
            _ => None,
        };
        let mut uploaded = Vec::with_capacity(self.tensors.len());
        for (i, tensor) in self.tensors.iter().enumerate() {
            let handle = if cache == Some(i) {
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

struct Maker {
    rng: Rng,
    seed: u64,
    values: OpValues,
}

/// What is written where nothing may read.
const POISON: f32 = 1e9;

impl Maker {
    fn build(mut self, shape: OpShape) -> Result<Operands> {
        let (mut weight, mut tokens) = (None, Vec::new());
        let tensors = match shape {
            OpShape::Embed { ty, cols, rows, tokens: t, .. } => {
                weight = Some(self.weight(ty, [cols, rows, 1])?);
                tokens = (0..t).map(|_| self.rng.below(rows as u64) as u32).collect();
                vec![]
            }
            OpShape::RmsNorm { tokens, groups, n } => {
                let scales: Vec<u8> = (0..n).flat_map(|_| (1.0f32 + 0.3 * self.rng.normal()).to_le_bytes()).collect();
                weight = Some(Weight::from_vec("case.weight", GgmlType::F32, [n, 1, 1], scales)?);
                vec![self.tensor(&[tokens, groups * n])]
            }
            OpShape::MatMul { ty, cols, rows, tokens } => {
                weight = Some(self.weight(ty, [cols, rows, 1])?);
                vec![self.tensor(&[tokens, cols])]
            }
            OpShape::ExpertMatMul { ty, cols, rows, experts, tokens, k, per_slot, choice } => {
                weight = Some(self.weight(ty, [cols, rows, experts])?);
                let x = if per_slot { self.tensor(&[tokens, k, cols]) } else { self.tensor(&[tokens, cols]) };
                vec![x, self.ids(tokens, experts, k, choice)]
            }
            OpShape::Bias { tokens, cols } => {
                let bias: Vec<u8> = (0..cols).flat_map(|_| (2.0 * self.rng.normal()).to_le_bytes()).collect();
                weight = Some(Weight::from_vec("case.bias", GgmlType::F32, [cols, 1, 1], bias)?);
                vec![self.tensor(&[tokens, cols])]
            }
            OpShape::Rope { tokens, heads, head_dim, factors, dims, .. } => {
                if factors {
                    let pairs = dims.unwrap_or(head_dim) / 2;
                    let bytes: Vec<u8> = (0..pairs).flat_map(|_| (1.0 + 7.0 * self.rng.unit()).to_le_bytes()).collect();
                    weight = Some(Weight::from_vec("rope_freqs.weight", GgmlType::F32, [pairs, 1, 1], bytes)?);
                }
                vec![self.tensor(&[tokens, heads * head_dim])]
            }
            OpShape::Store { tokens, cols, capacity, .. } => {
                vec![self.tensor(&[capacity, cols]), self.tensor(&[tokens, cols])]
            }
            OpShape::AttnScores { tokens, heads, kv_heads, head_dim, start, spare, .. } => {
                vec![self.tensor(&[tokens, heads * head_dim]), self.cache(start + tokens, spare, kv_heads * head_dim)]
            }
            OpShape::AttnProbs { tokens, heads, start, window, sinks } => {
                if sinks {
                    // About as large as the scores; in one head larger than nearly all of them.
                    let sink = |head: usize, x: f32| if head % 4 == 3 { 4.0 + x } else { x };
                    let bytes = (0..heads).flat_map(|head| sink(head, self.number(head)).to_le_bytes()).collect();
                    weight = Some(Weight::from_vec("case.sinks", GgmlType::F32, [heads, 1, 1], bytes)?);
                }
                let mut scores = self.causal(heads, tokens, start, POISON);
                outside_window(&mut scores, start, window, POISON);
                vec![scores]
            }
            OpShape::AttnContext { tokens, heads, kv_heads, head_dim, start, spare, window } => {
                let mut probs = self.causal(heads, tokens, start, 0.0);
                outside_window(&mut probs, start, window, 0.0);
                positive(&mut probs, start + tokens);
                vec![probs, self.cache(start + tokens, spare, kv_heads * head_dim)]
            }
            OpShape::Add { tokens, cols } | OpShape::SwiGlu { tokens, cols, .. } => {
                vec![self.tensor(&[tokens, cols]), self.tensor(&[tokens, cols])]
            }
            OpShape::SigmoidGate { tokens, cols } => vec![self.tensor(&[tokens, cols]), self.tensor(&[tokens, 1])],
            OpShape::RouterProbs { tokens, experts, .. } => vec![self.tensor(&[tokens, experts])],
            OpShape::RouterTopK { tokens, experts, ties, .. } => {
                let mut probs = self.tensor(&[tokens, experts]);
                positive(&mut probs, experts);
                vec![if ties { coarse(&probs) } else { probs }]
            }
            OpShape::RouterWeights { tokens, experts, k, softmax, .. } => {
                let mut probs = self.tensor(&[tokens, experts]);
                if !softmax {
                    positive(&mut probs, experts);
                }
                vec![probs, self.ids(tokens, experts, k, Choice::Random)]
            }
            OpShape::ExpertBias { tokens, k, cols, experts, choice } => {
                let bias: Vec<u8> = (0..experts * cols).flat_map(|_| (2.0 * self.rng.normal()).to_le_bytes()).collect();
                weight = Some(Weight::from_vec("case.bias", GgmlType::F32, [cols, experts, 1], bias)?);
                vec![self.tensor(&[tokens, k, cols]), self.ids(tokens, experts, k, choice)]
            }
            OpShape::Combine { tokens, k, hidden } => {
                let mut weights = self.tensor(&[tokens, k]);
                positive(&mut weights, k);
                vec![self.tensor(&[tokens, k, hidden]), weights]
            }
            OpShape::Rows { tokens, cols, .. } => vec![self.tensor(&[tokens, cols])],
        };
        Ok(Operands { shape, weight, tokens, tensors })
    }

    fn weight(&mut self, ty: GgmlType, dims: [usize; 3]) -> Result<Arc<Weight>> {
        let row = ty.row_bytes(dims[0]).ok_or_else(|| {
            Error::usage(format!("rows of {} weights are not whole {ty} blocks of {}", dims[0], ty.block_len()))
        })?;
        let mut bytes = vec![0; row * dims[1] * dims[2]];
        RandomBlocks::new(ty, 0.05, self.seed)?.fill(0, &mut bytes);
        Weight::from_vec("case.weight", ty, dims, bytes)
    }

    fn number(&mut self, channel: usize) -> f32 {
        let x = self.rng.normal();
        match self.values {
            OpValues::Normal => x,
            OpValues::Offset => x + 3.0,
            OpValues::Outliers => x * if channel % 64 == 17 { 300.0 } else { 1.0 },
            OpValues::Small => x * 1e-20,
            OpValues::Large => x * 40.0,
            OpValues::Nan => [x, x, x, f32::NAN][self.rng.below(4) as usize],
        }
    }

    fn tensor(&mut self, shape: &[usize]) -> HostTensor {
        let cols = shape.last().copied().unwrap_or(1).max(1);
        let data = (0..shape.iter().product()).map(|i| self.number(i % cols)).collect();
        HostTensor::f32(shape, data)
    }

    /// [positions + spare, cols], the spare rows poisoned.
    fn cache(&mut self, positions: usize, spare: usize, cols: usize) -> HostTensor {
        let mut data = self.tensor(&[positions, cols]).to_f32();
        data.resize((positions + spare) * cols, POISON);
        HostTensor::f32(&[positions + spare, cols], data)
    }

    /// [heads, T, S] with `beyond` above the diagonal.
    fn causal(&mut self, heads: usize, tokens: usize, start: usize, beyond: f32) -> HostTensor {
        let s = start + tokens;
        let data = (0..heads * tokens * s).map(|i| {
            let (token, position) = (i / s % tokens, i % s);
            if position <= start + token { self.number(position) } else { beyond }
        });
        HostTensor::f32(&[heads, tokens, s], data.collect())
    }

    /// [T, K] ids, different ones in each row.
    fn ids(&mut self, tokens: usize, experts: usize, k: usize, choice: Choice) -> HostTensor {
        let mut draw = || {
            let mut all: Vec<u32> = (0..experts as u32).collect();
            for i in 0..k {
                all.swap(i, i + self.rng.below((experts - i) as u64) as usize);
            }
            all.truncate(k);
            all
        };
        let ids = match choice {
            Choice::Random => (0..tokens).flat_map(|_| draw()).collect(),
            Choice::Same => draw().repeat(tokens),
        };
        HostTensor::u32(&[tokens, k], ids)
    }
}

/// Writes `what` where a row of [heads, T, S] does not see because of its window.
fn outside_window(t: &mut HostTensor, start: usize, window: Option<usize>, what: f32) {
    let (rows, cols, mut values) = (t.shape[1], t.cols(), t.to_f32());
    for (i, row) in values.chunks_exact_mut(cols).enumerate() {
        row[..first_seen(start + i % rows, window)].fill(what);
    }
    *t = HostTensor::f32(&t.shape, values);
}

/// Makes each row of `cols` a distribution over its elements that are neither 0 nor NaN.
fn positive(t: &mut HostTensor, cols: usize) {
    let mut values = t.to_f32();
    for row in values.chunks_exact_mut(cols) {
        let sum: f32 = row.iter().map(|x| x.abs()).filter(|x| !x.is_nan()).sum();
        for x in row {
            *x = x.abs() / sum;
        }
    }
    *t = HostTensor::f32(&t.shape, values);
}

/// The same values in four steps, so that many are equal.
fn coarse(t: &HostTensor) -> HostTensor {
    let values = t.to_f32();
    let max = values.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    HostTensor::f32(&t.shape, values.iter().map(|x| (x / max * 4.0).floor() / 4.0).collect())
}
