//! `qwen3moe`: Qwen 3 with experts in every layer.

use super::{Architecture, Occurs, QkNorms};
use crate::op::{GateActivation, Pairing};

pub static QWEN3MOE: Architecture = Architecture {
    name: "qwen3moe",
    pairing: Pairing::Neox,
    qk_norm: QkNorms::Heads,
    qkv_bias: Occurs::Never,
    experts: Occurs::Always,
    expert_width: true,
    renormalise: true,
    shared_expert: false,
    activation: GateActivation::Silu,
    scaled_embedding: false,
    post_norms: false,
    windows: None,
    rope_base: 10_000.0,
    rope_freqs: false,
    temperature: false,
};
