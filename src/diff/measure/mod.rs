//! Measures of the difference between two values of a stage: pure functions over host tensors.

pub mod attribution;
mod groups;
pub mod logits;
pub mod metrics;
pub mod router;
pub mod spread;
pub mod tolerance;
