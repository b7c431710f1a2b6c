//! The contract between the forward pass and whatever runs it.
//!
//! Design:
//! - **An operation is data.** [`Op`] lists every operation with its operands. A backend implements one method,
//!   [`Backend::run`]; a wrapper (tracing, lockstep, timing, faults) implements the same one method and sees everything.
//! - **One operation makes one stage.** So a stage can be replayed alone, on any backend, on any inputs. A backend that
//!   fuses does so behind this interface, when nobody holds the value in between.
//! - **Tensors stay where they live.** [`Backend::Tensor`] is a cheap handle. Values cross to the host only through
//!   [`Backend::fetch`] and [`Backend::take`], which are two calls so that a copy can travel while work goes on.
//! - **Every call says where it stands** ([`At`]): its stage, its layer, and the position of its first row.
//! - A backend knows neither files nor models: a [`Weight`] is bytes with a type and a shape.

#[doc(hidden)]
pub mod cases;
pub mod contract;
pub mod cpu;
mod erased;
#[cfg(feature = "gpu")]
pub mod gpu;
mod lent;
mod open;
pub mod oracle;
mod showing;
mod tickets;
mod wrapper;

pub use contract::{Contract, KeptWeight, NamedContract, Order, Precision};
pub use erased::{AnyBackend, AnyTensor, Erased};
pub use lent::Lent;
#[cfg(feature = "gpu")]
pub use open::gpu_selector;
pub use open::{OpenOptions, open};
pub use showing::Showing;
pub use tickets::{HostTickets, Ticket};
pub(crate) use wrapper::pass_on;

use std::sync::Arc;

use crate::error::Result;
use crate::op::{At, GgmlType, HostTensor, Op, OpKind, Stage, Weight};

/// What a backend is, for reports and traces.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BackendInfo {
    /// As the command line names it: `cpu:avx2`, `gpu`, `oracle`…
    pub backend: String,
    /// The processor or adapter.
    pub adapter: String,
    /// The driver and its version; of a processor, the threads.
    pub driver: String,
    /// A "GPU" that is a CPU in disguise.
    pub software: bool,
    /// One line: activation type, accumulator type, order of sums.
    pub contract: String,
    /// Of a GPU, the table by which it chooses among kernels; documents have it in their environment.
    #[serde(skip)]
    pub tuning: Option<TuningUsed>,
}

/// The table by which a backend chooses among its kernels.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TuningUsed {
    /// `built-in`, `given` by a caller, or the name of the file.
    pub table: String,
    /// The SHA-256 of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// A file that there is, of another adapter or driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_used: Option<String>,
}

impl TuningUsed {
    fn called(table: &str) -> Self {
        Self { table: table.into(), sha256: None, not_used: None }
    }
    /// That of the backend itself.
    pub fn built_in() -> Self {
        Self::called("built-in")
    }
    /// One that a caller gave.
    pub fn given() -> Self {
        Self::called("given")
    }
}

/// An operation that a run is going to need, checked before it starts: on the rows of a weight, or of attention and of a delta rule on heads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Need {
    /// The operation.
    pub op: OpKind,
    /// The weight's type; F32 for heads.
    pub ty: GgmlType,
    /// The length of the weight's rows, or head_dim.
    pub cols: usize,
    /// For the message: the tensor's name, or the hyperparameter's.
    pub name: String,
    /// Of a product with experts: how many there are, and how many a position uses, where that is known.
    pub experts: Option<[usize; 2]>,
}

/// How much of a stage's values can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// All of them.
    All,
    /// None: a kernel makes them on its way to a later stage, or a recording lacks them.
    Nothing,
    /// Those of some of the call's positions: one flag for each.
    Rows(Vec<bool>),
}

impl Shown {
    /// Whether the values of row `t` of the call can be seen.
    pub fn row(&self, t: usize) -> bool {
        match self {
            Shown::All => true,
            Shown::Nothing => false,
            Shown::Rows(rows) => rows[t],
        }
    }
}

/// A kernel that does the work of several operations while nobody looks at what is between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FusedKernel {
    /// Its name.
    pub name: &'static str,
    /// The stages that it passes on without writing them where they could be read.
    pub hides: &'static [Stage],
}

/// A kernel of which a run's shapes decide whether it is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelUse {
    /// Its name, with the type of its weights.
    pub name: String,
    /// Whether it has been run.
    pub ran: bool,
    /// Calls of so many positions choose it.
    pub positions: std::ops::RangeInclusive<usize>,
}

/// Something that can run the forward pass.
pub trait Backend {
    /// A handle to values that live where the backend keeps them. Cloning it copies no values.
    type Tensor: Clone;

    /// What it is, for reports.
    fn info(&self) -> BackendInfo;

    /// The arithmetic that it promises for `op`.
    fn contract(&self, op: OpKind) -> Contract;

    /// The arithmetic that it promises for a stage that it makes otherwise than others of its operation. Unless said, there is none.
    fn stage_contract(&self, stage: Stage) -> Option<Contract> {
        let _ = stage;
        None
    }

    /// Every need that it cannot meet, as one line each naming the tensor and the type. Empty: it can run. Unless said, it can
    /// meet all of them.
    fn unsupported(&self, needs: &[Need]) -> Vec<String> {
        let _ = needs;
        Vec::new()
    }

    /// How much can be seen of the values that a call of `rows` positions makes at `at`. What cannot be seen is not fetched: whoever
    /// compares judges the *segment* between the values that are shown. Unless said, everything can be seen.
    fn shown(&self, at: At, rows: usize) -> Shown {
        let _ = (at, rows);
        Shown::All
    }

    /// Its kernels that do the work of several operations. A comparison looks at every stage, and so at the kernels of single ones;
    /// what a run does while nobody looks is then held against that. Unless said, there are none.
    fn fused(&self) -> &'static [FusedKernel] {
        &[]
    }

    /// The kernels among which it chooses by the number of positions of a call, for these needs, and which of them have been run since
    /// it was opened. Unless said, it does not choose.
    fn kernels(&self, needs: &[Need]) -> Vec<KernelUse> {
        let _ = needs;
        Vec::new()
    }

    /// The fewest positions of a call that go past the first tile and the first workgroup of each of its kernels, in a model with so many
    /// experts, of which a token uses so many. Unless said, it has no tiles.
    fn covering(&self, experts: Option<[usize; 2]>) -> usize {
        let _ = experts;
        1
    }

    /// Makes weights ready (uploads them, for a GPU); `progress` is told the bytes done so far. Running an operation on a
    /// weight that was not prepared prepares it. Unless said, nothing has to be made ready.
    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        let _ = (weights, progress);
        Ok(())
    }

    /// An f32 tensor that [`Op::Store`] may write into: zeroed; on a GPU whose memory is poisoned, NaN until something is stored.
    fn alloc(&mut self, shape: &[usize]) -> Result<Self::Tensor>;

    /// Host values as a tensor of this backend: f64 is rounded where the backend is f32.
    fn upload(&mut self, values: &HostTensor) -> Result<Self::Tensor>;

    /// The axes of a tensor.
    fn shape(&self, tensor: &Self::Tensor) -> Vec<usize>;

    /// Runs one operation. `at` says which stage of which layer the result is, and which position its first row is. Work
    /// may be queued and not yet done when this returns.
    fn run(&mut self, at: At, op: &Op<'_, Self::Tensor>) -> Result<Self::Tensor>;

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

    /// Waits until everything run so far is done. Unless said, it is done when [`Backend::run`] returns.
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}
