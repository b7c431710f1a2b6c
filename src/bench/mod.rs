//! How fast a model runs, and how fast it could.
//!
//! Design:
//! - **A speed stands beside its limit.** The bytes that a run must read and the multiply-adds that it must do are
//!   counted from the operations that it is made of ([`work`]), the machine's own limits are probed in the same run
//!   ([`limits`]), and the share of the one in the other is what a person can act on.
//! - **What is timed is what runs.** Rates are taken with nothing attached to the backend ([`throughput`]). Single
//!   stages are timed by a wrapper on the host and by timestamps on a device ([`stages`]), in runs of their own, and
//!   the report says what that cost.
//! - **A mean without its deviation says nothing.** Every result keeps its samples, so that two results can be held
//!   against each other later ([`compare`]).

pub mod compare;
pub mod limits;
pub mod op_cases;
pub mod ops;
pub mod overhead;
pub mod stages;
pub mod stats;
pub mod subject;
pub mod throughput;
pub mod tune;
pub mod work;

/// Told what is being measured, how many steps of it are done, and of how many.
pub type Progress<'a> = &'a mut dyn FnMut(&str, usize, usize);
