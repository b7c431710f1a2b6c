//! `gpt-oss`: OpenAI's gpt-oss, 20B and 120B.

use super::{Architecture, LoaderBeside, Occurs, QkNorms, Router, Shared, WindowRule};
use crate::op::{GateActivation, Pairing};

/// A sink for each head in the softmax of attention; biases of q, k, v, attention's output, router and experts; experts chosen by their
/// logits, with the softmax over the chosen; a window in every other layer, the first among them, with the same rotation. As transformers'
/// `modeling_gpt_oss.py`, of which llama.cpp's `openai-moe.cpp` differs in one thing: YaRN's ramp begins and ends at whole pairs there, as in
/// all of its models, where the definition has `truncate: false`.
pub static GPT_OSS: Architecture = Architecture {
    name: "gpt-oss",
    pairing: Pairing::Neox,
    partial_rope: false,
    qk_norm: QkNorms::No,
    qkv_bias: Occurs::Always,
    biases: true,
    sinks: true,
    experts: Occurs::Always,
    expert_width: Occurs::Always,
    joint_experts: false,
    leading_dense: false,
    router: Router::ChosenSoftmax,
    renormalise: true,
    shared_expert: Shared::No,
    predicts_further: false,
    activation: GateActivation::Clamped,
    scaled_embedding: false,
    ffn_norm: "post_attention_norm",
    post_norms: false,
    windows: Some(WindowRule {
        keys: Some(128),
        period: 2,
        rope_base: None,
        attention_scale: false,
        scaled_by_hidden: None,
    }),
    rope_base: 10_000.0,
    rope_freqs: false,
    yarn_between: true,
    temperature: false,
    linear: None,
    latent: false,
    llama_cpp: LoaderBeside { own_output: true, ..LoaderBeside::USUAL },
};
