//! Comparing two runs, stage by stage.
//!
//! Design:
//! - [`measure`] takes host values and gives numbers, or a [`measure::metrics::Mismatch`]: it knows neither backends nor models, so each
//!   measure is tested by hand-made values. A comparison that could not be made is data, never agreement.
//! - `segment` stands in for what a side does not show.
//! - [`locate`] names where an error sits, `explain` which known mistake computes it.
//! - [`run`] drives two backends in lockstep and judges every stage.
//! - [`outcome`] is what the runs fill and the reports render; `sweep` is many of them, in a line each.
//! - `exchange` ranks what two files of one model differ in by what it costs at the logits.

#[cfg(feature = "cli")]
pub(crate) mod exchange;
pub(crate) mod explain;
pub mod locate;
pub mod measure;
pub mod outcome;
pub mod run;
pub(crate) mod segment;
#[cfg(feature = "cli")]
pub(crate) mod sweep;

pub use explain::catalogue;
