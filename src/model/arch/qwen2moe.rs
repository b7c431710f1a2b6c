//! `qwen2moe`: Qwen 1.5 and 2 with experts in every layer.

use super::{Architecture, LoaderBeside, Occurs, Shared, qwen2::QWEN2};

/// The shares of a softmax over all experts are the weights of the chosen as they are (`norm_topk_prob` is false), and another expert, which
/// every token uses, is added, times the sigmoid of a number of its own.
pub static QWEN2MOE: Architecture = Architecture {
    name: "qwen2moe",
    experts: Occurs::Always,
    expert_width: Occurs::Optional,
    renormalise: false,
    shared_expert: Shared::Gated,
    llama_cpp: LoaderBeside { own_output: true, ..LoaderBeside::USUAL },
    ..QWEN2
};
