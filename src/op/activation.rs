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
    /// g · sigmoid(1.702·g), g at most 7, and up as 1 + up, up between −7 and 7: gpt-oss's.
    Clamped,
    /// sigmoid(g): the gate of attention's output.
    Sigmoid,
}

/// Of [`GateActivation::Clamped`]: what the gate is multiplied by under the sigmoid, and what gate and up are held to.
pub const CLAMPED_ALPHA: f64 = 1.702;
/// See [`CLAMPED_ALPHA`].
pub const CLAMPED_LIMIT: f64 = 7.0;

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
            Self::Clamped => "clamped swish",
            Self::Sigmoid => "sigmoid",
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::GeluTanh => "gelu, by tanh",
            Self::Clamped => "clamped swish",
            Self::Sigmoid => "sigmoid",
        }
    }
}
