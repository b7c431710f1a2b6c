//! Contracts in words, one line each.

use std::fmt;

use super::{Contract, KeptWeight, Order, Precision};

impl Precision {
    /// As a contract file names it: `f32`, `q8_k`, `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 { .. } => "int8",
            Self::Q8_0 => "q8_0",
            Self::Q8_1 => "q8_1",
            Self::Q8_K => "q8_k",
            Self::VecDot => "vec_dot",
            Self::Q8_K_BesideBlocks => "q8_k_beside_blocks",
        }
    }

    /// `f16`, or `int8 in blocks of 32 (Q8_0)`, said of `what`.
    fn of(self, what: &str) -> String {
        match self {
            Self::Int8 { block } => format!("int8 {what} in blocks of {block}"),
            Self::Q8_0 => format!("int8 {what} in blocks of 32 (Q8_0)"),
            Self::Q8_1 => format!("int8 {what} in blocks of 32 (Q8_1)"),
            Self::Q8_K => format!("int8 {what} in blocks of 256 (Q8_K)"),
            Self::VecDot => format!("{what} as ggml pairs them with what they meet"),
            Self::Q8_K_BesideBlocks => format!("int8 {what} in blocks of 256 (Q8_K) beside quantized weights"),
            float => format!("{} {what}", float.name()),
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequential => write!(f, "first term to last"),
            Self::Blocked { block } => write!(f, "in groups of {block}"),
            Self::Lanes { lanes } => write!(f, "in {lanes} lanes"),
            Self::Unknown => write!(f, "in any order"),
        }
    }
}

/// `int8 activations in blocks of 256 (Q8_K), f32 sums, f16 KV cache`: what differs from f32 throughout, and the sums.
impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} sums {}", self.activations.of("activations"), self.accumulator.name(), self.order)?;
        for (precision, what) in [(self.weights, "weights"), (self.inner, "inner values"), (self.output, "results")] {
            if precision.is_coarse() {
                write!(f, ", {}", precision.of(what))?;
            }
        }
        match self.kept {
            KeptWeight::Itself => {}
            KeptWeight::AboveOne => write!(f, ", weights less 1 kept")?,
            KeptWeight::Logarithm => write!(f, ", logarithms of weights kept")?,
        }
        if self.gelu.is_coarse() {
            write!(f, ", gelu from a table of {}", self.gelu.name())?;
        }
        if self.offsets_apart {
            write!(f, ", offsets of codes apart")?;
        }
        if self.any_tie {
            write!(f, ", any of equals")?;
        }
        if self.cache.is_coarse() {
            write!(f, ", {} KV cache", self.cache.name())?;
        }
        if self.angles != Precision::F64 {
            write!(f, ", {} angles", self.angles.name())?;
        }
        Ok(())
    }
}
