//! The architectures: for each, what its files mean.
//!
//! - **Architecture as data.** One file an architecture, and in it one [`Architecture`]: a description, no code. `config.rs` reads a
//!   file's keys by it, `weights.rs` the tensors, and the forward pass what the two have read.
//! - What a file does not say is what the architecture's definition says, here or in [`keys`].
//! - A key that nobody here knows is refused by name, unless its value switches it off: it could change the result.

mod deepseek2;
mod gemma3;
mod glm4moe;
mod gptoss;
mod keys;
mod llama;
mod mistral3;
mod olmoe;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen35;
mod qwen3moe;
mod qwen3next;

pub(super) use keys::Keys;
pub use keys::{DefaultKey, IgnoredKey, KeyRemark, KeyReport};

use crate::op::{GateActivation, Pairing};

/// What files of an architecture mean.
#[derive(Debug)]
pub struct Architecture {
    /// As `general.architecture` has it.
    pub name: &'static str,
    /// Which dimensions of a head rope turns together, in the order in which GGUF stores them.
    pub pairing: Pairing,
    /// Whether `rope.dimension_count` may be less than a head has dimensions: the others stay as they are.
    pub partial_rope: bool,
    /// What of q and k is normalised before rope.
    pub qk_norm: QkNorms,
    /// Whether q, k and v have biases.
    pub qkv_bias: Occurs,
    /// Whether attention's output, the router and the experts have biases.
    pub biases: bool,
    /// Whether each head has a sink in the softmax of attention.
    pub sinks: bool,
    /// Whether layers have experts, and not a plain FFN.
    pub experts: Occurs,
    /// Whether experts have a width of their own, `expert_feed_forward_length`. Where none has, `feed_forward_length` is theirs; where the file
    /// need not say it, that of all experts of a token together.
    pub expert_width: Occurs,
    /// Whether experts' gate and up may be one tensor, `ffn_gate_up_exps`.
    pub joint_experts: bool,
    /// Whether the first layers may have a plain FFN for experts, `leading_dense_block_count`.
    pub leading_dense: bool,
    /// How experts are chosen and weighed.
    pub router: Router,
    /// Whether the chosen experts' weights are divided by their sum, where the file does not say.
    pub renormalise: bool,
    /// Whether layers with experts have one that every token uses.
    pub shared_expert: Shared,
    /// Whether the last layers may be such as guess further tokens, `nextn_predict_layers`, which are not run.
    pub predicts_further: bool,
    /// What the FFN does to its gate.
    pub activation: GateActivation,
    /// Whether the embedding is multiplied by √H.
    pub scaled_embedding: bool,
    /// What the norm before the FFN is called in the file.
    pub ffn_norm: &'static str,
    /// Whether what attention and FFN add to the residual is normalised first.
    pub post_norms: bool,
    /// Sliding windows in some layers.
    pub windows: Option<WindowRule>,
    /// Base of the rotary frequencies where the file has no `rope.freq_base`.
    pub rope_base: f32,
    /// Whether a tensor `rope_freqs.weight` divides the rotary frequencies, if there is one.
    pub rope_freqs: bool,
    /// Whether YaRN's ramp begins and ends between pairs ([`Yarn::between`](crate::op::Yarn::between)).
    pub yarn_between: bool,
    /// Whether attention has a temperature that rises beyond the original context, where the file says so.
    pub temperature: bool,
    /// Linear attention in some layers, whose other ones have a gate of attention's output.
    pub linear: Option<LinearRule>,
    /// Whether attention is multi-head latent attention.
    pub latent: bool,
    /// Where llama.cpp reads other tensors than are read here.
    pub llama_cpp: LoaderBeside,
}

/// Where llama.cpp's loader of an architecture (`src/models` of its source) reads other tensors of a file than are read here: what `inspect --check` says of
/// a tensor that is missing, or that nothing reads.
#[derive(Clone, Copy, Debug)]
pub struct LoaderBeside {
    /// It takes no other tensor for `output.weight`.
    pub own_output: bool,
    /// Tensors that are read here and that it does without, beside the biases of q, k and v: in a layer by what follows `blk.N.`.
    pub optional: &'static [&'static str],
    /// Tensors that it reads and that are not read here; where the last character is `*`, all that begin so.
    pub taken: &'static [&'static str],
    /// Whether q, k and v may be one tensor, `attn_qkv`, which is not read here.
    pub joint_qkv: bool,
}

impl LoaderBeside {
    /// As most.
    pub const USUAL: Self = Self { own_output: false, optional: &[], taken: &[], joint_qkv: true };

    /// Whether it does without a tensor that is read here.
    pub fn does_without(&self, part: &str) -> bool {
        matches!(part, "attn_q.bias" | "attn_k.bias" | "attn_v.bias") || self.optional.contains(&part)
    }

    /// Whether it reads a tensor that is not read here.
    pub fn takes(&self, part: &str) -> bool {
        let named = |name: &&str| match name.strip_suffix('*') {
            Some(beginning) => part.starts_with(beginning),
            None => part == *name,
        };
        self.taken.iter().any(named) || self.joint_qkv && matches!(part, "attn_qkv.weight" | "attn_qkv.bias")
    }
}

/// Linear attention, a gated delta rule, in all layers but every so-many-th, `full_attention_interval`.
#[derive(Clone, Copy, Debug)]
pub struct LinearRule {
    /// The interval, where the file has no `full_attention_interval`.
    pub interval: usize,
    /// Value head h has the key head h mod key heads, and not h / (value heads / key heads): converters put the value heads in that order.
    pub tiled: bool,
    /// beta and the decay come from one tensor, `ssm_ba`: for each key head the rows of its value heads' beta, then those of their decay.
    pub joint_beta: bool,
    /// The file has `rope.dimension_sections`: of text all sections turn alike.
    pub sections: bool,
}

/// Sliding windows of `attention.sliding_window` keys: layer n has one unless it is the last of a period, n mod period = period − 1.
#[derive(Clone, Copy, Debug)]
pub struct WindowRule {
    /// How many keys a position sees, where the file has no `attention.sliding_window`; `None`: then there are no windows.
    pub keys: Option<usize>,
    /// The period, where the file has no `attention.sliding_window_pattern`.
    pub period: usize,
    /// The rope base of layers with a window, where the file has no `rope.freq_base_swa`; they are not scaled. `None`: their rotation is that of
    /// the others.
    pub rope_base: Option<f32>,
    /// Whether the file may say what q·k is multiplied by, `attention.scale`.
    pub attention_scale: bool,
    /// The number of layers of the model that divides q·k by √(H / heads) and not by √D, of which no key tells.
    pub scaled_by_hidden: Option<usize>,
}

/// What of q and k is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorms {
    /// Nothing.
    No,
    /// Each head, by weights that all heads share.
    Heads,
    /// Each head, in models whose files have such weights.
    OfHeadsIfThere,
    /// The whole row.
    Row,
}

/// How a router chooses among experts and weighs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Router {
    /// By the shares of a softmax over all, which are the weights.
    Softmax,
    /// By their logits; the weights are the softmax of the chosen.
    ChosenSoftmax,
    /// By their logits' sigmoids, which are the weights, plus a bias, which is not in these.
    BiasedSigmoids,
    /// As the file says: by a softmax over all or by sigmoids, plus a bias where it has one, and of some groups of experts.
    Stated,
}

/// An expert that every token uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// There is none.
    No,
    /// It is multiplied by the sigmoid of a number of its own.
    Gated,
    /// It is added as it is, in files that count one.
    Plain,
}

/// Whether files of an architecture have something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occurs {
    /// None has.
    Never,
    /// The file says.
    Optional,
    /// Each has.
    Always,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: &'static [&'static Architecture] = &[
        &deepseek2::DEEPSEEK2,
        &gemma3::GEMMA3,
        &glm4moe::GLM4MOE,
        &gptoss::GPT_OSS,
        &llama::LLAMA,
        &mistral3::MISTRAL3,
        &olmoe::OLMOE,
        &qwen2::QWEN2,
        &qwen2moe::QWEN2MOE,
        &qwen3::QWEN3,
        &qwen35::QWEN35,
        &qwen35::QWEN35MOE,
        &qwen3moe::QWEN3MOE,
        &qwen3next::QWEN3NEXT,
    ];

    /// The architecture that `general.architecture` calls `name`.
    pub fn named(name: &str) -> Option<&'static Architecture> {
        Self::ALL.iter().copied().find(|a| a.name == name)
    }
}

impl serde::Serialize for Architecture {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}
