//! `qwen35` and `qwen35moe`: Qwen 3.5 and 3.6, of which the text is run.

use super::{Architecture, LinearRule, LoaderBeside, Occurs, Shared, qwen3next::QWEN3NEXT};

/// As Qwen3-Next, with tensors of their own for beta and the decay, and value heads in another order. Rope turns by three positions, of time,
/// height and width, which are one and the same for text. As transformers' `modeling_qwen3_5_moe.py` and llama.cpp's `qwen35moe.cpp`.
pub static QWEN35MOE: Architecture = Architecture {
    name: "qwen35moe",
    linear: Some(LinearRule { interval: 4, tiled: true, joint_beta: false, sections: true }),
    llama_cpp: LoaderBeside::USUAL,
    ..QWEN3NEXT
};

/// A plain FFN in every layer.
pub static QWEN35: Architecture =
    Architecture { name: "qwen35", experts: Occurs::Never, shared_expert: Shared::No, ..QWEN35MOE };
