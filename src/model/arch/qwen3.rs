//! `qwen3`: dense Qwen 3.

use super::{Architecture, LoaderBeside, Occurs, QkNorms, Router, Shared};
use crate::op::{GateActivation, Pairing};

pub static QWEN3: Architecture = Architecture {
    name: "qwen3",
    pairing: Pairing::Neox,
    partial_rope: false,
    qk_norm: QkNorms::Heads,
    // transformers: `attention_bias`, which no released model sets. llama.cpp adds them where the file has them.
    qkv_bias: Occurs::Optional,
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
    llama_cpp: LoaderBeside { taken: &["cls.output.weight"], ..LoaderBeside::USUAL },
};
