//! Comparisons that run something: two backends in lockstep, two traces, one backend against itself.

pub mod driver;
pub mod infer;
#[doc(hidden)]
pub mod lockstep;
mod production;
#[doc(hidden)]
pub mod share;
#[doc(hidden)]
pub mod traces;
pub mod vary;
#[doc(hidden)]
pub mod verdicts;
