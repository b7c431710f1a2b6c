//! `olmoe`: OLMoE, with experts in every layer.

use super::{Architecture, LoaderBeside, Occurs, QkNorms, Router, Shared};
use crate::op::{GateActivation, Pairing};

/// q and k are normalised over their whole rows, not head by head; the weights of the chosen experts are not divided by their sum.
pub static OLMOE: Architecture = Architecture {
    name: "olmoe",
    pairing: Pairing::Neox,
    partial_rope: false,
    qk_norm: QkNorms::Row,
    qkv_bias: Occurs::Never,
    biases: false,
    sinks: false,
    experts: Occurs::Always,
    expert_width: Occurs::Never,
    joint_experts: false,
    leading_dense: false,
    router: Router::Softmax,
    renormalise: false,
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
    llama_cpp: LoaderBeside { own_output: true, ..LoaderBeside::USUAL },
};
