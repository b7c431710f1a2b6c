//! Comparing two runs, stage by stage.
//!
//! Design:
//! - **Pure functions over host values.** [`metrics`], [`router`], [`logits`] take tensors and give numbers or a
//!   [`metrics::Mismatch`]; they know neither backends nor models, so each is tested by hand-made values.
//! - A comparison that could not be made is data, never agreement.

pub mod floor;
pub mod lockstep;
pub mod logits;
pub mod metrics;
pub mod outcome;
pub mod pattern;
pub mod router;
pub mod tolerance;
