//! `llama`: Llama 1 to 3, Mistral, SmolLM, and Mixtral, which is `llama` with experts.

use super::{Architecture, LoaderBeside, Occurs, QkNorms, Router, Shared};
use crate::op::{GateActivation, Pairing};

/// GGUF stores q and k with the rows of each head reordered, so that rope turns neighbours (`permute` in llama.cpp's converter). A softmax
/// over all experts, renormalised over the chosen, is Mixtral's softmax over the chosen.
pub static LLAMA: Architecture = Architecture {
    name: "llama",
    pairing: Pairing::Norm,
    partial_rope: false,
    qk_norm: QkNorms::No,
    qkv_bias: Occurs::Optional,
    biases: false,
    sinks: false,
    experts: Occurs::Optional,
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
    rope_freqs: true,
    yarn_between: false,
    temperature: false,
    linear: None,
    latent: false,
    llama_cpp: LoaderBeside {
        optional: &["ffn_gate_exps.weight"],
        taken: &["attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias", "rope_factors_*"],
        ..LoaderBeside::USUAL
    },
};
