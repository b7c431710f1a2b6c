//! `deepseek2`: DeepSeek V2, V3 and R1, and what is built as they are.

use super::{Architecture, LoaderBeside, Occurs, QkNorms, Router, glm4moe::GLM4MOE};
use crate::op::Pairing;

/// Multi-head latent attention: a latent of each position, which is normalised, and a part of a key that turns and that all heads share, are
/// what is stored; heads' keys and values are made of the latent, or queries are taken to where it is. Experts are chosen by a softmax or by
/// sigmoids and a bias, of some groups of experts, their weights multiplied by `expert_weights_scale`; shared experts without a gate; a plain
/// FFN in the first `leading_dense_block_count` layers. As transformers' `modeling_deepseek_v2.py` and `modeling_deepseek_v3.py` and llama.cpp's
/// `deepseek2.cpp`. The last `nextn_predict_layers` of the file's layers guess further tokens, and no logits depend on them.
pub static DEEPSEEK2: Architecture = Architecture {
    name: "deepseek2",
    pairing: Pairing::Norm,
    qk_norm: QkNorms::No,
    qkv_bias: Occurs::Never,
    joint_experts: true,
    router: Router::Stated,
    ffn_norm: "ffn_norm",
    latent: true,
    llama_cpp: LoaderBeside { optional: &["exp_probs_b.bias"], joint_qkv: false, ..LoaderBeside::USUAL },
    ..GLM4MOE
};
