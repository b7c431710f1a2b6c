//! `qwen3next`: Qwen3-Next.

use super::{Architecture, LinearRule, LoaderBeside, Occurs, QkNorms, Shared, qwen3moe::QWEN3MOE};

/// Layers of linear attention, a gated delta rule over keys, values and decays that a causal convolution makes, and every fourth with attention
/// over all positions, whose output has a gate and whose rope turns a part of each head; experts as Qwen3-MoE's, and a shared one with a gate.
/// As transformers' `modeling_qwen3_next.py` and llama.cpp's `qwen3next.cpp`. The last `nextn_predict_layers` of the file's layers guess further
/// tokens, and no logits depend on them.
pub static QWEN3NEXT: Architecture = Architecture {
    name: "qwen3next",
    partial_rope: true,
    qk_norm: QkNorms::Heads,
    qkv_bias: Occurs::Never,
    shared_expert: Shared::Gated,
    joint_experts: true,
    predicts_further: true,
    ffn_norm: "post_attention_norm",
    linear: Some(LinearRule { interval: 4, tiled: false, joint_beta: true, sections: false }),
    llama_cpp: LoaderBeside { taken: &["ssm_in.weight"], ..LoaderBeside::USUAL },
    ..QWEN3MOE
};
