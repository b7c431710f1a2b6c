//! A comparison, for people and for programs.
//!
//! Design:
//! - Every report renders [`crate::diff::outcome::Comparison`] and computes nothing that is not in it, so none can
//!   contradict another.
//! - Text from files and the command line is cleaned of control characters before it reaches a terminal.

pub mod format;
pub mod json;
#[cfg(test)]
mod sample;
pub mod text;
