//! `mistral3`: Ministral 3, which is `llama` with YaRN and a temperature that rises with the position.

use super::{Architecture, llama::LLAMA};

/// The temperature, 1 + `attention.temperature_scale` · ln(1 + ⌊position / `rope.scaling.original_context_length`⌋) on q, is 1 within the
/// original context. Only that much of the context is run.
pub static MISTRAL3: Architecture = Architecture { name: "mistral3", temperature: true, ..LLAMA };
