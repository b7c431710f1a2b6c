//! Comparisons that run something: two backends in lockstep, two traces, one backend against itself.

pub mod driver;
pub mod infer;
pub(crate) mod lockstep;
mod production;
pub(crate) mod share;
pub mod traces;
pub mod vary;
pub(crate) mod verdicts;

#[cfg(test)]
mod tests;
