//! What a gated FFN does to its gate.

use serde::{Deserialize, Serialize};

/// What is done to the gate before it meets `up`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateActivation {
    /// g · sigmoid(g).
    #[default]
    Silu,
    /// ½g · (1 + tanh(√(2/π)·(g + 0.044715·g³))): gelu by its usual approximation, not by erf.
    GeluTanh,
}

impl GateActivation {
    /// Whether it is the one that an operation has where nothing is said.
    pub fn is_silu(&self) -> bool {
        *self == Self::Silu
    }

    /// In formulas.
    pub fn short(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::GeluTanh => "gelu",
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::GeluTanh => "gelu, by tanh",
        }
    }
}
