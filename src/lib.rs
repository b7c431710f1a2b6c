//! twinscope runs a quantized GGUF model on two backends in lockstep, reads every sub-stage back, and names the first stage
//! whose own error is more than rounding explains. See `ARCHITECTURE.md` for the map.

pub mod atomic;
pub mod backend;
#[cfg(feature = "cli")]
pub mod cli;
pub mod diff;
pub mod error;
pub mod formula;
pub mod gguf;
pub mod model;
pub mod op;
pub mod quant;
pub mod report;
#[cfg(feature = "gpu")]
pub mod repro;
#[cfg(feature = "cli")]
pub mod selftest;
pub mod synth;
pub mod text;
pub mod trace;

pub use error::{Error, Result};
