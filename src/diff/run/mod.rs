//! Comparisons that run something: two backends in lockstep, two traces, one backend against itself.

pub mod driver;
pub mod lockstep;
pub mod share;
pub mod traces;
pub mod vary;
pub mod verdicts;
