//! `qwen2`: Qwen 1.5, 2 and 2.5, dense.

use super::{Architecture, Occurs};
use crate::op::Pairing;

pub static QWEN2: Architecture = Architecture {
    name: "qwen2",
    pairing: Pairing::Neox,
    qk_norm: false,
    qkv_bias: Occurs::Always,
    experts: Occurs::Never,
    expert_width: false,
    rope_base: 10_000.0,
    rope_freqs: false,
    temperature: false,
};
