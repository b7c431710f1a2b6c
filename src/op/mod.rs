//! The vocabulary: what a forward pass is made of. It imports nothing of the crate above it.
//!
//! - [`Stage`] and [`STAGES`]: every named value, in the one table that everything else reads.
//! - [`Site`] and [`At`]: where in the model a call stands, and where in the sequence.
//! - [`Op`]: every operation with its operands, as data, and what its operands must be ([`Op::check`]).
//! - [`HostTensor`] and [`Weight`]: the values that operations take and give.

mod activation;
mod ggml_type;
mod groups;
mod operands;
mod operation;
mod rotation;
mod site;
mod stage;
mod tensor;
mod weight;

pub use activation::{CLAMPED_ALPHA, CLAMPED_LIMIT, GateActivation};
pub use ggml_type::GgmlType;
pub use groups::{GroupScore, Groups};
pub use operands::{Elements, Operand};
pub use operation::{Op, OpKind, OpParams, Operation, OwnedOp, first_seen};
pub use rotation::{AngleKey, Pairing, Rotation, Yarn};
pub use site::{At, Site};
pub use stage::{Dim, LayerLayout, LinearLayers, Mla, STAGES, Scope, Stage, StageInfo};
pub use tensor::{Data, HostTensor, unravel};
pub use weight::{Weight, WeightOwner};
