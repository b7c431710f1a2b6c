//! `qwen2`: Qwen 1.5, 2 and 2.5, dense.

use super::{Architecture, LoaderBeside, Occurs, QkNorms, Router, Shared};
use crate::op::{GateActivation, Pairing};

pub static QWEN2: Architecture = Architecture {
    name: "qwen2",
    pairing: Pairing::Neox,
    partial_rope: false,
    qk_norm: QkNorms::No,
    qkv_bias: Occurs::Always,
    biases: false,
    sinks: false,
    experts: Occurs::Never,
    expert_width: Occurs::Never,
    joint_experts: false,
    leading_dense: false,
    router: Router::Softmax,
    renormalise: true,
    shared_expert: Shared::No,
    predicts_further: false,
    activation: GateActivation::Silu,
    scaled_embedding: false,
    ffn_norm: "ffn_norm",
    post_norms: false,
    windows: None,
    rope_base: 10_000.0,
    rope_freqs: false,
    yarn_between: false,
    temperature: false,
    linear: None,
    latent: false,
    llama_cpp: LoaderBeside { taken: &["output.bias"], ..LoaderBeside::USUAL },
};
