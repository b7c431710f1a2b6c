//! twinscope runs a quantized GGUF model on two backends in lockstep, reads every sub-stage back, and names the first stage
//! whose own error is more than rounding explains. See `ARCHITECTURE.md` for the map.
//!
//! An engine of one's own is a side of a comparison once it implements [`backend::Backend`]: `examples/own_backend.rs` is one.
//!
//! - [`op`]: the words. Stages, sites, operations, tensors, weights.
//! - [`backend`]: the trait, the arithmetic contract, this crate's own backends by name.
//! - [`gguf`], [`quant`], [`model`]: files, types of weights, the forward pass.
//! - [`diff`]: two sides in lockstep, and what came of it, the [`diff::outcome::Comparison`]; [`report`] renders it.
//! - [`trace`]: one run's statistics and values, saved, read, imported. [`environment`]: what every document is made with and on.
//!
//! The few modules that are public and not listed here (`cli`, `formula`, `repro`, `synth`, `backend::cases`, `trace::store::file`) are
//! for this package's program, tests and benches, which are crates of their own: no version promises anything of them.

#![warn(missing_docs, unnameable_types)]
// What only the program and the tests of it call has no caller in a build without it.
#![cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]

mod atomic;
pub mod backend;
#[cfg(feature = "cli")]
mod bench;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod diff;
pub mod environment;
pub mod error;
mod files;
#[doc(hidden)]
pub mod formula;
pub mod gguf;
mod memory;
pub mod model;
pub mod op;
#[cfg(feature = "cli")]
mod probe;
pub mod quant;
pub mod report;
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub mod repro;
#[cfg(feature = "cli")]
mod selftest;
#[doc(hidden)]
pub mod synth;
mod text;
pub mod trace;
mod wide;

pub use error::{Error, Result};
