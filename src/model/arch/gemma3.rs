//! `gemma3`: Gemma 3, its text model.

use super::{Architecture, LoaderBeside, Occurs, QkNorms, Router, Shared, WindowRule};
use crate::op::{GateActivation, Pairing};

/// The embedding times √H; norms before and after attention and FFN, of which the file's weights have the 1 of `1 + w` in them; five layers
/// with a window and a rope base of their own to one without; q·k by 1/√D, but in the model of 62 layers (27B). As llama.cpp's `gemma3.cpp`.
pub static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    pairing: Pairing::Neox,
    partial_rope: false,
    qk_norm: QkNorms::Heads,
    qkv_bias: Occurs::Never,
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
    activation: GateActivation::GeluTanh,
    scaled_embedding: true,
    ffn_norm: "ffn_norm",
    post_norms: true,
    windows: Some(WindowRule {
        keys: None,
        period: 6,
        rope_base: Some(10_000.0),
        attention_scale: true,
        scaled_by_hidden: Some(62),
    }),
    rope_base: 1_000_000.0,
    rope_freqs: false,
    yarn_between: false,
    temperature: false,
    linear: None,
    latent: false,
    llama_cpp: LoaderBeside { taken: &["dense_*"], ..LoaderBeside::USUAL },
};
