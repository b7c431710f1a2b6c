//! `glm4moe`: GLM-4.5, GLM-4.5-Air and GLM-4.6.

use super::{Architecture, LoaderBeside, Occurs, QkNorms, Router, Shared};
use crate::op::{GateActivation, Pairing};

/// Experts chosen by the sigmoids of their logits plus a bias, which their weights do without, and these divided by their sum and multiplied by
/// `expert_weights_scale`; a shared expert without a gate; a plain FFN in the first `leading_dense_block_count` layers; rope on the first
/// `rope.dimension_count` dimensions of a head. As transformers' `modeling_glm4_moe.py` and llama.cpp's `glm4-moe.cpp`. The last
/// `nextn_predict_layers` of the file's layers guess further tokens, and no logits depend on them.
pub static GLM4MOE: Architecture = Architecture {
    name: "glm4moe",
    pairing: Pairing::Neox,
    partial_rope: true,
    qk_norm: QkNorms::OfHeadsIfThere,
    qkv_bias: Occurs::Optional,
    biases: false,
    sinks: false,
    experts: Occurs::Always,
    expert_width: Occurs::Always,
    joint_experts: false,
    leading_dense: true,
    router: Router::BiasedSigmoids,
    renormalise: false,
    shared_expert: Shared::Plain,
    predicts_further: true,
    activation: GateActivation::Silu,
    scaled_embedding: false,
    ffn_norm: "post_attention_norm",
    post_norms: false,
    windows: None,
    rope_base: 10_000.0,
    rope_freqs: false,
    yarn_between: false,
    temperature: false,
    linear: None,
    latent: false,
    llama_cpp: LoaderBeside { optional: &["attn_q_norm.weight", "attn_k_norm.weight"], ..LoaderBeside::USUAL },
};
