//! Hyperparameters, from the file's metadata and from nothing else.
//!
//! A key that changes the arithmetic is required, never defaulted: a rope base or an eps that is silently 1e4 or 1e-5
//! gives a model that is wrong in a way that is hard to see. What the architecture itself fixes is said where it is used.

use crate::error::{Error, Result};
use crate::gguf::Gguf;

/// The architectures that the forward pass is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Dense Qwen3.
    Qwen3,
    /// Qwen3 with experts in every layer.
    Qwen3Moe,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: &'static [Architecture] = &[Self::Qwen3, Self::Qwen3Moe];

    /// As `general.architecture` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3moe",
        }
    }
}

/// What a layer's router chooses among.
#[derive(Clone, Debug, serde::Serialize)]
pub struct MoeConfig {
    /// E, experts in a layer.
    pub experts: usize,
    /// K, experts used for one token.
    pub used: usize,
    /// F, FFN width of one expert.
    pub ffn: usize,
    /// Whether the chosen experts' weights are divided by their sum. Qwen3-MoE does (`norm_topk_prob`); a file may say
    /// otherwise with `qwen3moe.expert_weights_norm`.
    pub renormalise: bool,
}

/// Hyperparameters.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Config {
    /// `general.architecture`.
    pub architecture: Architecture,
    /// `general.name`, or the file's name.
    pub name: String,
    /// How many layers.
    pub layers: usize,
    /// H.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// D; not hidden / heads.
    pub head_dim: usize,
    /// V.
    pub vocab: usize,
    /// The longest sequence, in positions.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f64,
    /// Added to the mean of squares in norms.
    pub eps: f32,
    /// FFN width of a dense layer; 0 where every layer has experts.
    pub ffn: usize,
    /// What a mixture of experts has besides; `None` in a dense model.
    pub moe: Option<MoeConfig>,
}

impl Config {
    /// Width of a row of q: heads·D.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// Width of a row of k or v: kv_heads·D.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// # Errors
    /// Another architecture, a missing or ill-typed key, a value that makes no sense, or a variation of the architecture
    /// that the forward pass does not compute (rope scaling, sliding windows, shared experts).
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let bad = |what: String| Error::input(format!("{}: {what}", gguf.name()));
        let meta = &gguf.metadata;
        let found = meta.str("general.architecture")?;
        let architecture = Architecture::ALL.iter().copied().find(|a| a.name() == found).ok_or_else(|| {
            let known: Vec<_> = Architecture::ALL.iter().map(|a| a.name()).collect();
            bad(format!("architecture {found:?} is not supported; supported are {}", known.join(", ")))
        })?;
        let key = |name: &str| format!("{found}.{name}");
        let size = |name: &str| -> Result<usize> {
            let value = meta.u32(&key(name))? as usize;
            if value == 0 {
                return Err(bad(format!("{} is 0", key(name))));
            }
            Ok(value)
        };

        let (layers, hidden) = (size("block_count")?, size("embedding_length")?);
        let (heads, kv_heads) = (size("attention.head_count")?, size("attention.head_count_kv")?);
        let (head_dim, value_dim) = (size("attention.key_length")?, size("attention.value_length")?);
        if value_dim != head_dim {
            return Err(bad(format!(
                "{} is {value_dim} and {} is {head_dim}; {found} has heads of one size",
                key("attention.value_length"),
                key("attention.key_length")
            )));
        }
        if heads % kv_heads != 0 {
            return Err(bad(format!("{heads} heads do not share {kv_heads} KV heads evenly")));
        }
        if head_dim % 2 != 0 {
            return Err(bad(format!("{} is {head_dim}; rope rotates pairs", key("attention.key_length"))));
        }
        if let Some(dims) = meta.u32_opt(&key("rope.dimension_count"))?
            && dims as usize != head_dim
        {
            return Err(bad(format!("{} is {dims}, not the head size {head_dim}", key("rope.dimension_count"))));
        }
        if let Some(kind) = meta.str_opt(&key("rope.scaling.type"))?
            && kind != "none"
        {
            return Err(bad(format!("{} is {kind:?}; rope scaling is not supported", key("rope.scaling.type"))));
        }
        for name in ["attention.sliding_window", "expert_shared_count", "expert_shared_feed_forward_length"] {
            if let Some(value) = meta.u32_opt(&key(name))?
                && value != 0
            {
                return Err(bad(format!("{} is {value}; that variation is not supported", key(name))));
            }
        }
        if let Some(scale) = meta.f32_opt(&key("expert_weights_scale"))?
            && scale != 1.0
            && scale != 0.0
        {
            return Err(bad(format!(
                "{} is {scale}; only unscaled weights are supported",
                key("expert_weights_scale")
            )));
        }
        let positive = |name: &str| -> Result<f32> {
            let value = meta.f32(&key(name))?;
            if !(value.is_finite() && value > 0.0) {
                return Err(bad(format!("{} is {value}; a positive number is expected", key(name))));
            }
            Ok(value)
        };

        let moe = match architecture {
            Architecture::Qwen3 => None,
            Architecture::Qwen3Moe => {
                let moe = MoeConfig {
                    experts: size("expert_count")?,
                    used: size("expert_used_count")?,
                    ffn: size("expert_feed_forward_length")?,
                    renormalise: meta.bool_opt(&key("expert_weights_norm"))?.unwrap_or(true),
                };
                if moe.used > moe.experts {
                    return Err(bad(format!("{} of {} experts used", moe.used, moe.experts)));
                }
                Some(moe)
            }
        };
        let embedding =
            gguf.tensor("token_embd.weight").ok_or_else(|| bad("tensor token_embd.weight is missing".into()))?;
        Ok(Self {
            architecture,
            name: meta.str_opt("general.name")?.unwrap_or(gguf.name()).to_string(),
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            vocab: embedding.dims.get(1).copied().unwrap_or(1) as usize,
            context: size("context_length")?,
            rope_base: positive("rope.freq_base")? as f64,
            eps: positive("attention.layer_norm_rms_epsilon")?,
            ffn: if moe.is_some() { 0 } else { size("feed_forward_length")? },
            moe,
        })
    }
}
