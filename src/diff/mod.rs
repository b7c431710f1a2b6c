//! Comparing two runs, stage by stage.
//!
//! Design:
//! - **Pure functions over host values.** [`metrics`], [`router`], [`logits`], [`geometry`] and [`attribution`] take
//!   tensors and give numbers or a [`metrics::Mismatch`]; they know neither backends nor models, so each is tested by hand-made values.
//! - A comparison that could not be made is data, never agreement.
//! - [`geometry`] names where an error sits, [`attribution`] what it belongs to; [`outcome`] is the model that the drivers
//!   fill and the reports render.

pub mod attribution;
pub mod driver;
pub mod explain;
pub mod floor;
pub mod geometry;
pub mod judge;
pub mod lockstep;
pub mod logits;
pub mod metrics;
pub mod outcome;
pub mod pattern;
pub mod router;
pub mod share;
pub mod tolerance;
pub mod traces;
pub mod vary;
