//! The CPU: `cpu:scalar`, `cpu:avx2`, `cpu:avx512` and `cpu:neon`; and `cpu:int8`, whose activations are int8 where weights are quantized.
//!
//! Design:
//! - `cpu:scalar` is the definition (`scalar.rs`, one plain function for each operation). The SIMD levels are one body over
//!   their primitives (`simd/`). Which level runs is resolved once, when the backend is made (`kernels.rs`).
//! - Activations are f32 everywhere. Weights are read as they are stored: blocks become f32 in registers or in a buffer of a few rows
//!   that is used for every token that needs it, and forgotten. There is never a full f32 copy.
//! - The SIMD levels take sums in the same order and give the same bits, but for one: a single token's product with a block type that
//!   is multiplied as codes (`simd/avx2/codes.rs`), within the same contract.
//! - Every element of a result is computed by one task in a fixed order, so results do not depend on the number of threads.
//! - Attention makes no scores and probabilities that nobody asks for (`attention.rs`).
//! - An operand of the wrong shape or type is an error that names the site, never a panic.

use std::sync::Arc;

mod attention;
mod delta;
mod int8;
mod kernels;
mod level;
mod matmul;
mod ops;
mod packed;
#[cfg(feature = "cli")]
pub(crate) mod probe;
pub(crate) mod scalar;
mod simd;
mod team;
mod tensor;
mod tile;

use kernels::Kernels;
pub use kernels::{INT8, contract, int8_contract};
pub use level::Level;
use team::Team;
pub use tensor::CpuTensor;
use tensor::{Tickets, WaitingTensors};

use super::{Backend, BackendInfo, Contract, FusedKernel, Need, Ticket};
use crate::op::{At, HostTensor, Op, OpKind, Stage, Weight};
use crate::quant;
use crate::{Error, Result};

/// Runs the forward pass on the processor.
pub struct CpuBackend {
    kernels: &'static Kernels,
    pool: Pool,
    tickets: Tickets,
    waiting: WaitingTensors,
    angles: ops::AngleCache,
    states: delta::States,
}

impl CpuBackend {
    /// A backend at `level` (`None`: the best that this processor has) on `threads` threads (`None`: as many as the process
    /// may run at once).
    ///
    /// # Errors
    /// [`Error::CannotRun`] if the processor lacks `level`, naming the missing features, or if threads cannot be started;
    /// [`Error::Usage`] for zero threads.
    pub fn new(level: Option<Level>, threads: Option<usize>) -> Result<Self> {
        Self::with(Kernels::of(level.unwrap_or_else(Level::detect))?, threads)
    }

    /// `cpu:int8`, whose products of quantized weights take int8 activations (Q8_K); otherwise as [`Self::new`].
    ///
    /// # Errors
    /// As [`Self::new`]; `cpu:int8` needs AVX2, or VNNI beside AVX-512 at that level.
    pub fn int8(level: Option<Level>, threads: Option<usize>) -> Result<Self> {
        Self::with(Kernels::int8_of(level)?, threads)
    }

    fn with(kernels: &'static Kernels, threads: Option<usize>) -> Result<Self> {
        Ok(Self {
            kernels,
            pool: Pool::new(kernels.level, threads)?,
            tickets: Tickets::default(),
            waiting: WaitingTensors::default(),
            angles: ops::AngleCache::default(),
            states: delta::States::default(),
        })
    }

    /// The SIMD level that it runs at.
    pub fn level(&self) -> Level {
        self.kernels.level
    }

    /// The threads that it runs on.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// `cpu:scalar`, `cpu:avx2`, `cpu:avx512`, `cpu:neon` or `cpu:int8`.
    pub fn name(&self) -> &'static str {
        if self.kernels.is_int8() { "cpu:int8" } else { self.level().backend_name() }
    }
}

impl Backend for CpuBackend {
    type Tensor = CpuTensor;

    fn info(&self) -> BackendInfo {
        BackendInfo {
            backend: self.name().into(),
            adapter: level::processor(),
            driver: match self.threads() {
                1 => "1 thread".into(),
                n => format!("{n} threads"),
            },
            software: false,
            contract: self.kernels.describe().into(),
            tuning: None,
        }
    }

    fn contract(&self, op: OpKind) -> Contract {
        self.kernels.contract(op)
    }

    fn fused(&self) -> &'static [FusedKernel] {
        &[FusedKernel { name: "attention", hides: &[Stage::AttnScores, Stage::AttnProbs] }]
    }

    fn unsupported(&self, needs: &[Need]) -> Vec<String> {
        needs
            .iter()
            .filter(|need| !quant::dequantizable(need.ty))
            .map(|need| {
                format!("{}: {:?} with {} weights: the type has no dequantization", need.name, need.op, need.ty)
            })
            .collect()
    }

    /// Weights are used where they are: there is nothing to do but to count.
    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut done = 0;
        for weight in weights {
            done += weight.size() as u64;
            progress(done);
        }
        Ok(())
    }

    fn alloc(&mut self, shape: &[usize]) -> Result<CpuTensor> {
        Ok(CpuTensor::new(HostTensor::f32(shape, zeros(shape)?)))
    }

    fn upload(&mut self, values: &HostTensor) -> Result<CpuTensor> {
        Ok(CpuTensor::new(values.clone()))
    }

    fn shape(&self, tensor: &CpuTensor) -> Vec<usize> {
        tensor.values().shape.clone()
    }

    fn run(&mut self, at: At, op: &Op<'_, CpuTensor>) -> Result<CpuTensor> {
        ops::run(self, at.site, op)
    }

    fn fetch(&mut self, tensor: &CpuTensor) -> Result<Ticket> {
        ops::make(self, tensor)?;
        Ok(self.tickets.put(tensor))
    }

    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.tickets.take(ticket)
    }

    /// Everything that is asked for is done when [`Backend::run`] returns.
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Zeros for `shape`; a shape that memory cannot hold is an error, not an abort.
fn zeros(shape: &[usize]) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    let len = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    match len.map(|len| (len, values.try_reserve_exact(len))) {
        Some((len, Ok(()))) => values.resize(len, 0.0),
        _ => return Err(Error::cannot_run(format!("no memory for a tensor of shape {shape:?}"))),
    }
    Ok(values)
}

/// The backend's own threads; with one thread work runs where it is asked for.
struct Pool {
    team: Team,
    /// Work (in multiplications or as many simple steps) below which sharing it costs more than it saves: about a microsecond.
    small: usize,
}

impl Pool {
    fn new(level: Level, threads: Option<usize>) -> Result<Self> {
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
        if threads == 0 {
            return Err(Error::usage("0 threads: at least one is needed"));
        }
        let team = Team::new(threads).map_err(|e| Error::cannot_run(format!("cannot start {threads} threads: {e}")))?;
        Ok(Self { team, small: if level == Level::Scalar { 1 << 13 } else { 1 << 15 } })
    }

    fn threads(&self) -> usize {
        self.team.threads()
    }

    /// Calls `f` with each number below `tasks`, on all threads when `work` is worth it.
    fn for_tasks(&self, work: usize, tasks: usize, f: impl Fn(usize) + Sync) {
        if work >= self.small { self.team.run(tasks, &f) } else { (0..tasks).for_each(f) }
    }

    /// Calls `f(i, chunk)` for each chunk of `width` values of `out`, on all threads when `work` is worth it.
    fn for_chunks<V: Send>(&self, work: usize, out: &mut [V], width: usize, f: impl Fn(usize, &mut [V]) + Sync) {
        if out.is_empty() {
            return; // a row may then have no width
        }
        match work >= self.small {
            true => self.team.run_parts(out, width, f),
            false => out.chunks_mut(width).enumerate().for_each(|(i, chunk)| f(i, chunk)),
        }
    }
}

#[cfg(test)]
mod tests;
