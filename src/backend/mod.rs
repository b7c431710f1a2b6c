//! The contract between the forward pass and whatever runs it.
//!
//! Design:
//! - **An operation is data.** [`Op`] lists every operation with its operands. A backend implements one method,
//!   [`Backend::run`]; a wrapper (tracing, lockstep, timing, faults) implements the same one method and sees everything.
//! - **One operation makes one stage.** So a stage can be replayed alone, on any backend, on any inputs. A backend that
//!   fuses does so behind this interface, when nobody holds the value in between.
//! - **Tensors stay where they live.** [`Backend::Tensor`] is a cheap handle. Values cross to the host only through
//!   [`Backend::fetch`] and [`Backend::take`], which are two calls so that a copy can travel while work goes on.
//! - **Every call carries its [`Site`].**
//! - A backend knows neither files nor models: a [`Weight`] is bytes with a type and a shape.

pub mod cases;
mod contract;
pub mod cpu;
mod erased;
pub mod gpu;
pub mod oracle;
mod wrapper;

pub use contract::{Contract, Order, Precision};
pub use erased::{AnyBackend, AnyTensor, Erased};
pub(crate) use wrapper::pass_on;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::quant::GgmlType;
use crate::stage::Site;

// ---------------------------------------------------------------------------------------------------------------------
// Host values

/// The elements of a tensor on the host, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    U32(Vec<u32>),
}

/// A tensor on the host. The last axis is contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    pub shape: Vec<usize>,
    pub data: Data,
}

impl HostTensor {
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::F32(data) }
    }
    pub fn f64(shape: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::F64(data) }
    }
    pub fn u32(shape: &[usize], data: Vec<u32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::U32(data) }
    }
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The length of the contiguous axis.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
    pub fn dtype(&self) -> &'static str {
        match self.data {
            Data::F32(_) => "f32",
            Data::F64(_) => "f64",
            Data::U32(_) => "u32",
        }
    }
    /// The values as f64, whatever they are stored as (exact: f32 and u32 both fit).
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(v) => v.iter().map(|&x| x as f64).collect(),
            Data::F64(v) => v.clone(),
            Data::U32(v) => v.iter().map(|&x| x as f64).collect(),
        }
    }
    /// The values as f32; f64 values are rounded.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(v) => v.clone(),
            Data::F64(v) => v.iter().map(|&x| x as f32).collect(),
            Data::U32(v) => v.iter().map(|&x| x as f32).collect(),
        }
    }
    /// The ids in a u32 tensor.
    ///
    /// # Panics
    /// If the tensor is not u32: which stages are ids is fixed by the stage table.
    pub fn ids(&self) -> &[u32] {
        match &self.data {
            Data::U32(v) => v,
            _ => panic!("a {} tensor where expert ids were expected", self.dtype()),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Weights

/// Bytes that a weight borrows from: a mapped file, or memory.
pub type WeightOwner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A quantized matrix, or a stack of one per expert: `[experts, rows, cols]`, rows of whole blocks, as ggml stores it.
pub struct Weight {
    /// Unique in this process: backends key their own copies by it.
    pub id: usize,
    /// The GGUF tensor name, for messages.
    pub name: String,
    pub ty: GgmlType,
    /// Inputs: the length of the dot products. GGUF's dimension 0.
    pub cols: usize,
    /// Outputs. GGUF's dimension 1; 1 for a vector.
    pub rows: usize,
    /// GGUF's dimension 2; 1 for a plain matrix.
    pub experts: usize,
    /// Offset of the tensor's first byte in its file, for reports.
    pub file_offset: u64,
    owner: WeightOwner,
    start: usize,
    bytes: usize,
}

static NEXT_WEIGHT: AtomicUsize = AtomicUsize::new(0);

impl Weight {
    /// A weight over `owner[start..]`, of exactly `experts·rows` rows of `cols` weights.
    ///
    /// # Errors
    /// If `cols` is not a whole number of blocks or the bytes are not there.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        name: &str,
        ty: GgmlType,
        [cols, rows, experts]: [usize; 3],
        owner: WeightOwner,
        start: usize,
        file_offset: u64,
    ) -> Result<Arc<Self>> {
        let row = ty.row_bytes(cols).ok_or_else(|| {
            Error::input(format!(
                "tensor {name}: rows of {cols} weights are not whole {ty} blocks of {}",
                ty.block_len()
            ))
        })?;
        let bytes = row.checked_mul(rows).and_then(|b| b.checked_mul(experts));
        let have = (*owner).as_ref().len();
        let bytes = bytes.filter(|b| start.checked_add(*b).is_some_and(|end| end <= have)).ok_or_else(|| {
            Error::input(format!(
                "tensor {name}: [{cols}, {rows}, {experts}] {ty} does not fit the {have} bytes it is in"
            ))
        })?;
        let id = NEXT_WEIGHT.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self { id, name: name.into(), ty, cols, rows, experts, file_offset, owner, start, bytes }))
    }

    /// A weight that owns its bytes, for tests and for planted faults.
    pub fn from_vec(name: &str, ty: GgmlType, dims: [usize; 3], bytes: Vec<u8>) -> Result<Arc<Self>> {
        Self::new(name, ty, dims, Arc::new(bytes), 0, 0)
    }

    /// All bytes, in ggml's layout.
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.start..self.start + self.bytes]
    }
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.ty.block_len() * self.ty.block_bytes()
    }
    /// The bytes of one row of one expert.
    pub fn row(&self, expert: usize, row: usize) -> &[u8] {
        let n = self.row_bytes();
        &self.bytes()[(expert * self.rows + row) * n..][..n]
    }
    /// `[cols, rows]` or `[cols, rows, experts]`, in GGUF's order.
    pub fn dims(&self) -> Vec<usize> {
        if self.experts > 1 { vec![self.cols, self.rows, self.experts] } else { vec![self.cols, self.rows] }
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.ty, self.dims())
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Operations

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

// ---------------------------------------------------------------------------------------------------------------------
// What a backend says of itself

/// What a backend is, for reports and traces.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BackendInfo {
    /// As the command line names it: `cpu:avx2`, `gpu`, `oracle`…
    pub backend: String,
    /// The processor or adapter.
    pub adapter: String,
    pub driver: String,
    /// A "GPU" that is a CPU in disguise.
    pub software: bool,
    /// One line: activation type, accumulator type, order of sums.
    pub contract: String,
}

/// An operation on a weight type that a run is going to need, checked before it starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Need {
    pub op: OpKind,
    pub ty: GgmlType,
    pub cols: usize,
    /// The tensor's name, for the message.
    pub name: String,
}

/// A copy to the host under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// Something that can run the forward pass.
pub trait Backend {
    /// A handle to values that live where the backend keeps them. Cloning it copies no values.
    type Tensor: Clone;

    fn info(&self) -> BackendInfo;

    /// The arithmetic that it promises for `op`.
    fn contract(&self, op: OpKind) -> Contract;

    /// Every need that it cannot meet, as one line each naming the tensor and the type. Empty: it can run.
    fn unsupported(&self, needs: &[Need]) -> Vec<String>;

    /// Makes weights ready (uploads them, for a GPU); `progress` is told the bytes done so far. Running an operation on a
    /// weight that was not prepared prepares it.
    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()>;

    /// A zeroed f32 tensor that [`Op::Store`] may write into.
    fn alloc(&mut self, shape: &[usize]) -> Result<Self::Tensor>;

    /// Host values as a tensor of this backend: f64 is rounded where the backend is f32.
    fn upload(&mut self, values: &HostTensor) -> Result<Self::Tensor>;

    fn shape(&self, tensor: &Self::Tensor) -> Vec<usize>;

    /// Runs one operation. `site` says which stage of which layer the result is. Work may be queued and not yet done
    /// when this returns.
    fn run(&mut self, site: Site, op: &Op<'_, Self::Tensor>) -> Result<Self::Tensor>;

    /// Starts copying a tensor to the host, as it is after everything run so far. Never waits for the device
    /// unless the staging memory is full.
    fn fetch(&mut self, tensor: &Self::Tensor) -> Result<Ticket>;

    /// Finishes a copy, waiting for it if need be. Each ticket is taken once.
    fn take(&mut self, ticket: Ticket) -> Result<HostTensor>;

    /// Copies a tensor to the host and waits for it.
    fn read(&mut self, tensor: &Self::Tensor) -> Result<HostTensor> {
        let ticket = self.fetch(tensor)?;
        self.take(ticket)
    }

    /// Waits until everything run so far is done.
    fn sync(&mut self) -> Result<()>;
}

/// Tickets for backends whose values are on the host already: a copy is finished when it is started.
#[derive(Default)]
pub struct HostTickets {
    next: u64,
    ready: HashMap<u64, HostTensor>,
}

impl HostTickets {
    pub fn put(&mut self, values: HostTensor) -> Ticket {
        self.next += 1;
        self.ready.insert(self.next, values);
        Ticket(self.next)
    }
    /// # Errors
    /// If the ticket was taken already or is another backend's.
    pub fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.ready
            .remove(&ticket.0)
            .ok_or_else(|| Error::cannot_run(format!("ticket {} was taken already or is another backend's", ticket.0)))
    }
}
