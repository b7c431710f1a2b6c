//! Each stage's rounding floor, derived from its operation, its data and the contract of whoever computes it.

pub mod floor;
pub mod sum;

#[cfg(test)]
mod tests;
