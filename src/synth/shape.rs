//! The dimensions of a synthetic model, and what they must satisfy.

use super::vocab;
use crate::{Error, Result};

/// The family and the dimensions of a model. [`ModelShape::check`] says whether they make one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelShape {
    pub family: Family,
    pub hidden: u32,
    pub layers: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub ffn: FfnShape,
    pub vocab: u32,
    pub context: u32,
    pub rope_base: f32,
    pub eps: f32,
    /// The token embedding is the output head too.
    pub tied: bool,
    /// `rope_freqs.weight` with Llama 3's factors; of the family `llama` only.
    pub rope_freqs: bool,
    /// YaRN by this factor, from the context length divided by it.
    pub yarn: Option<f32>,
    /// Sliding windows of so many keys, and the period of the layers without; of the families `gemma3` and `gpt-oss` only.
    pub window: Option<[u32; 2]>,
    /// What only `glm4moe` has; [`GlmShape::DEFAULT`] where nothing is said.
    pub glm: Option<GlmShape>,
    /// What families with linear attention have; [`LinearShape::DEFAULT`] where nothing is said.
    pub linear: Option<LinearShape>,
    /// What only `deepseek2` has; [`LatentShape::DEFAULT`] where nothing is said.
    pub latent: Option<LatentShape>,
}

/// Latent attention, and what else `deepseek2` has. Heads are of these widths, whatever [`ModelShape::head_dim`] is, and one KV head is
/// in the file: the latent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentShape {
    /// Of queries, where they have one.
    pub q_rank: Option<u32>,
    /// Of keys and values.
    pub rank: u32,
    /// The columns of a head that do not turn, and those that do.
    pub nope: u32,
    pub pe: u32,
    /// Width of a head's values.
    pub values: u32,
    /// Groups of experts, and how many of them a token's are chosen from.
    pub groups: [u32; 2],
    /// Experts are chosen by sigmoids and a bias, and their weights divided by their sum. Else by a softmax, and they are as they are.
    pub sigmoid: bool,
    /// What the experts' weights are multiplied by.
    pub weights_scale: f32,
    /// Experts that every token uses.
    pub shared: u32,
    /// The first layers, which have a plain FFN, and its width.
    pub dense_layers: u32,
    pub dense_width: u32,
    /// With YaRN, how much of it is in the scale of q·k (`mscale_all_dim`).
    pub mscale: f32,
}

impl LatentShape {
    pub const DEFAULT: Self = Self {
        q_rank: Some(128),
        rank: 128,
        nope: 64,
        pe: 32,
        values: 64,
        groups: [4, 2],
        sigmoid: true,
        weights_scale: 2.5,
        shared: 1,
        dense_layers: 1,
        dense_width: 512,
        mscale: 1.0,
    };
}

/// Linear attention in all layers but every so-many-th.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearShape {
    /// `full_attention_interval`.
    pub interval: u32,
    pub key_heads: u32,
    pub value_heads: u32,
    /// Of keys and of values.
    pub head_dim: u32,
    /// Positions that the convolution sees.
    pub kernel: u32,
    /// What part of each head of the other layers turns: one in so many dimensions.
    pub turned: u32,
}

impl LinearShape {
    pub const DEFAULT: Self = Self { interval: 2, key_heads: 2, value_heads: 8, head_dim: 32, kernel: 4, turned: 4 };

    pub(super) fn key_width(&self) -> u64 {
        u64::from(self.key_heads) * u64::from(self.head_dim)
    }

    pub(super) fn value_width(&self) -> u64 {
        u64::from(self.value_heads) * u64::from(self.head_dim)
    }

    pub(super) fn channels(&self) -> u64 {
        2 * self.key_width() + self.value_width()
    }

    /// Whether a layer has linear attention.
    pub(super) fn has(&self, layer: u32) -> bool {
        !(layer + 1).is_multiple_of(self.interval)
    }
}

/// What `glm4moe` has besides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GlmShape {
    /// The first layers, which have a plain FFN, and its width.
    pub dense_layers: u32,
    pub dense_width: u32,
    /// Layers after the others that guess further tokens.
    pub predicting_layers: u32,
    /// Norms of q and k.
    pub qk_norm: bool,
    /// What the experts' weights are multiplied by.
    pub weights_scale: f32,
}

impl GlmShape {
    pub const DEFAULT: Self =
        Self { dense_layers: 1, dense_width: 512, predicting_layers: 1, qk_norm: true, weights_scale: 2.5 };
}

/// What kind of model: with [`FfnShape`], its architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `qwen3`, and `qwen3moe` with experts.
    Qwen3,
    /// `llama`, with experts or without.
    Llama,
    /// `qwen2`, and `qwen2moe` with experts and a shared one.
    Qwen2,
    /// `olmoe`, with experts.
    Olmoe,
    /// `gemma3`, without experts.
    Gemma3,
    /// `gpt-oss`, with experts.
    GptOss,
    /// `glm4moe`, with experts and a shared one.
    Glm4Moe,
    /// `qwen3next`, with linear attention, experts and a shared one.
    Qwen3Next,
    /// `qwen35`, with linear attention, and `qwen35moe` with experts and a shared one.
    Qwen35,
    /// `deepseek2`, with latent attention, experts and shared ones.
    DeepSeek2,
}

impl Family {
    /// What [`Family::named`] knows.
    pub const NAMES: [&str; 10] =
        ["qwen3", "llama", "qwen2", "olmoe", "gemma3", "gpt-oss", "glm4moe", "qwen3next", "qwen35", "deepseek2"];

    /// A family by name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [
            Self::Qwen3,
            Self::Llama,
            Self::Qwen2,
            Self::Olmoe,
            Self::Gemma3,
            Self::GptOss,
            Self::Glm4Moe,
            Self::Qwen3Next,
            Self::Qwen35,
            Self::DeepSeek2,
        ];
        all.into_iter().zip(Self::NAMES).find(|(_, n)| *n == name).map(|(f, _)| f)
    }
}

/// The feed-forward part of every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FfnShape {
    /// One, of this width.
    Dense(u32),
    /// Experts behind a router.
    Moe(Moe),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moe {
    pub experts: u32,
    /// Experts per token.
    pub used: u32,
    /// FFN width of one expert.
    pub width: u32,
}

impl ModelShape {
    /// `general.architecture`.
    pub fn architecture(&self) -> &'static str {
        match (self.family, self.ffn) {
            (Family::Qwen3, FfnShape::Dense(_)) => "qwen3",
            (Family::Qwen3, FfnShape::Moe(_)) => "qwen3moe",
            (Family::Llama, _) => "llama",
            (Family::Qwen2, FfnShape::Dense(_)) => "qwen2",
            (Family::Qwen2, FfnShape::Moe(_)) => "qwen2moe",
            (Family::Olmoe, _) => "olmoe",
            (Family::Gemma3, _) => "gemma3",
            (Family::GptOss, _) => "gpt-oss",
            (Family::Glm4Moe, _) => "glm4moe",
            (Family::Qwen3Next, _) => "qwen3next",
            (Family::Qwen35, FfnShape::Dense(_)) => "qwen35",
            (Family::Qwen35, FfnShape::Moe(_)) => "qwen35moe",
            (Family::DeepSeek2, _) => "deepseek2",
        }
    }

    pub(super) fn moe(&self) -> Option<Moe> {
        match self.ffn {
            FfnShape::Dense(_) => None,
            FfnShape::Moe(moe) => Some(moe),
        }
    }

    /// FFN width, of one expert where there are experts.
    pub(super) fn ffn_width(&self) -> u32 {
        match self.ffn {
            FfnShape::Dense(width) => width,
            FfnShape::Moe(moe) => moe.width,
        }
    }

    /// FFN width of the shared expert: that of as many experts as a token uses, as in Qwen 1.5, of one, as in GLM, or of some, as in DeepSeek.
    pub(super) fn shared_width(&self) -> Option<u64> {
        let moe = self.moe()?;
        match self.family {
            Family::Qwen2 => Some(u64::from(moe.width) * u64::from(moe.used)),
            Family::Glm4Moe | Family::Qwen3Next | Family::Qwen35 => Some(moe.width.into()),
            Family::DeepSeek2 => self.latent().map(|latent| u64::from(moe.width) * u64::from(latent.shared)),
            _ => None,
        }
    }

    /// What `glm4moe` has besides, of that family.
    pub fn glm(&self) -> Option<GlmShape> {
        (self.family == Family::Glm4Moe).then(|| self.glm.unwrap_or(GlmShape::DEFAULT))
    }

    /// Linear attention, of the families that have it.
    pub fn linear(&self) -> Option<LinearShape> {
        matches!(self.family, Family::Qwen3Next | Family::Qwen35).then(|| self.linear.unwrap_or(LinearShape::DEFAULT))
    }

    /// Latent attention, of the family that has it.
    pub fn latent(&self) -> Option<LatentShape> {
        (self.family == Family::DeepSeek2).then(|| self.latent.unwrap_or(LatentShape::DEFAULT))
    }

    /// The first layers, which have a plain FFN where the others have experts, and its width.
    pub(super) fn dense(&self) -> Option<[u32; 2]> {
        let latent = self.latent().map(|latent| [latent.dense_layers, latent.dense_width]);
        self.glm().map(|glm| [glm.dense_layers, glm.dense_width]).or(latent)
    }

    /// Width of the query projection, which need not be the hidden size.
    pub(super) fn q_width(&self) -> u64 {
        self.heads as u64 * self.head_dim as u64
    }

    pub(super) fn kv_width(&self) -> u64 {
        self.kv_heads as u64 * self.head_dim as u64
    }

    /// # Errors
    /// If the dimensions do not make a model, naming the first flag that is wrong.
    pub fn check(&self) -> Result<()> {
        let range = |flag: &str, value: u32, least: u32, most: u32| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(Error::usage(format!("--{flag}: expected {least} to {most}, found {value}")))
            }
        };
        // The bounds keep every product of two dimensions in 64 bits, and the directory and vocabulary in memory.
        const WIDTH: u32 = 1 << 20;
        range("hidden", self.hidden, 1, WIDTH)?;
        range("layers", self.layers, 1, 4096)?;
        range("heads", self.heads, 1, 4096)?;
        range("kv-heads", self.kv_heads, 1, self.heads)?;
        range("head-dim", self.head_dim, 2, 4096)?;
        range("vocab", self.vocab, vocab::MIN, 1 << 22)?;
        range("ctx", self.context, 1, 1 << 30)?;
        match self.ffn {
            FfnShape::Dense(width) => range("dense", width, 1, WIDTH)?,
            FfnShape::Moe(moe) => {
                range("experts", moe.experts, 1, 4096)?;
                range("experts-used", moe.used, 1, moe.experts)?;
                range("expert-ffn", moe.width, 1, WIDTH)?;
            }
        }
        let refuse = |message: String| Err(Error::usage(message));
        if self.family == Family::Gemma3 && self.moe().is_some() {
            return refuse("--family gemma3: expected --dense, found experts".into());
        }
        if self.window.is_some_and(|[keys, period]| keys == 0 || period == 0) {
            return refuse("a sliding window: expected at least one key, and a period of at least one layer".into());
        }
        let with_experts = [Family::Olmoe, Family::GptOss, Family::Glm4Moe, Family::Qwen3Next, Family::DeepSeek2];
        if with_experts.contains(&self.family) && self.moe().is_none() {
            return refuse(format!("--family {}: expected experts, found --dense", self.architecture()));
        }
        if self.family == Family::GptOss && self.window.is_some_and(|[_, period]| period != 2) {
            return refuse("a sliding window: expected one in every other layer of gpt-oss".into());
        }
        if let Some([dense_layers, _]) = self.dense() {
            range("layers", self.layers, dense_layers + 1, 4096)?;
        }
        if let (Some(LatentShape { groups: [groups, used], .. }), Some(moe)) = (self.latent(), self.moe()) {
            if !moe.experts.is_multiple_of(groups) || moe.experts < 2 * groups {
                let found = moe.experts;
                return refuse(format!(
                    "--experts: expected a multiple of {groups} groups, of 2 at least, found {found}"
                ));
            }
            range("experts-used", moe.used, 1, moe.experts / groups * used)?;
        }
        if self.glm().is_some() && !self.head_dim.is_multiple_of(4) {
            return refuse(format!("--head-dim: expected a multiple of 4 (half of it turns), found {}", self.head_dim));
        }
        if let Some(linear) = self.linear()
            && !self.head_dim.is_multiple_of(2 * linear.turned)
        {
            let (of, found) = (2 * linear.turned, self.head_dim);
            return refuse(format!("--head-dim: expected a multiple of {of} (a part of it turns), found {found}"));
        }
        if self.rope_freqs && self.family != Family::Llama {
            return refuse(format!("--family: expected llama with rope_freqs.weight, found {}", self.architecture()));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv) = (self.heads, self.kv_heads);
            return refuse(format!("--kv-heads: expected a divisor of --heads {heads}, found {kv}"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse(format!("--head-dim: expected an even number (rope turns pairs), found {}", self.head_dim));
        }
        if !(self.rope_base.is_finite() && self.rope_base > 1.0) {
            return refuse(format!("--rope-base: expected a number above 1, found {}", self.rope_base));
        }
        if let Some(factor) = self.yarn.filter(|factor| !(*factor > 1.0 && *factor <= self.context as f32)) {
            return refuse(format!("--yarn: expected a number above 1 and at most --ctx, found {factor}"));
        }
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return refuse(format!("--eps: expected a number above 0, found {}", self.eps));
        }
        Ok(())
    }
}
