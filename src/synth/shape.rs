//! The dimensions of a synthetic model: named shapes, and what dimensions must satisfy.

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
}

impl Family {
    /// What [`Family::named`] knows.
    pub const NAMES: [&str; 9] =
        ["qwen3", "llama", "qwen2", "olmoe", "gemma3", "gpt-oss", "glm4moe", "qwen3next", "qwen35"];

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
    /// What [`ModelShape::named`] knows.
    pub const NAMES: [&str; 18] = [
        "tiny",
        "demo",
        "qwen3-30b-a3b",
        "qwen3-235b-a22b",
        "qwen3-8b-128k",
        "llama-3.2-1b",
        "mixtral-8x7b",
        "qwen2.5-0.5b",
        "qwen1.5-moe-a2.7b",
        "olmoe-1b-7b",
        "gemma-3-1b",
        "gpt-oss-20b",
        "gpt-oss-120b",
        "glm-4.5-air",
        "glm-4.6",
        "qwen3-next-80b-a3b",
        "qwen3.5-35b-a3b",
        "qwen3.5-0.8b",
    ];

    /// A shape by name: `tiny`, for tests of everything but quality; `demo`, the bundled model's; and published ones.
    pub fn named(name: &str) -> Option<Self> {
        let qwen3 = ModelShape {
            family: Family::Qwen3,
            hidden: 2048,
            layers: 48,
            heads: 32,
            kv_heads: 4,
            head_dim: 128,
            ffn: FfnShape::Moe(Moe { experts: 128, used: 8, width: 768 }),
            vocab: 151_936,
            context: 40_960,
            rope_base: 1e6,
            eps: 1e-6,
            tied: false,
            rope_freqs: false,
            yarn: None,
            window: None,
            glm: None,
            linear: None,
        };
        let demo = ModelShape {
            hidden: 256,
            layers: 4,
            heads: 8,
            kv_heads: 2,
            head_dim: 64,
            ffn: FfnShape::Moe(Moe { experts: 8, used: 2, width: 256 }),
            vocab: 2048,
            context: 4096,
            ..qwen3
        };
        let qwen35 = LinearShape { interval: 4, key_heads: 16, value_heads: 32, head_dim: 128, kernel: 4, turned: 4 };
        Some(match name {
            "tiny" => {
                let ffn = FfnShape::Moe(Moe { experts: 16, used: 4, width: 256 });
                ModelShape { layers: 2, ffn, vocab: 512, context: 1024, ..demo }
            }
            "demo" => demo,
            "qwen3-30b-a3b" => qwen3,
            "qwen3-235b-a22b" => {
                let ffn = FfnShape::Moe(Moe { experts: 128, used: 8, width: 1536 });
                ModelShape { hidden: 4096, layers: 94, heads: 64, ffn, ..qwen3 }
            }
            "qwen3-8b-128k" => ModelShape {
                hidden: 4096,
                layers: 36,
                kv_heads: 8,
                ffn: FfnShape::Dense(12_288),
                context: 131_072,
                yarn: Some(4.0),
                ..qwen3
            },
            "llama-3.2-1b" => ModelShape {
                family: Family::Llama,
                layers: 16,
                kv_heads: 8,
                head_dim: 64,
                ffn: FfnShape::Dense(8192),
                vocab: 128_256,
                context: 131_072,
                rope_base: 5e5,
                eps: 1e-5,
                tied: true,
                rope_freqs: true,
                ..qwen3
            },
            "mixtral-8x7b" => ModelShape {
                family: Family::Llama,
                hidden: 4096,
                layers: 32,
                kv_heads: 8,
                ffn: FfnShape::Moe(Moe { experts: 8, used: 2, width: 14_336 }),
                vocab: 32_000,
                context: 32_768,
                eps: 1e-5,
                ..qwen3
            },
            "qwen2.5-0.5b" => ModelShape {
                family: Family::Qwen2,
                hidden: 896,
                layers: 24,
                heads: 14,
                kv_heads: 2,
                head_dim: 64,
                ffn: FfnShape::Dense(4864),
                context: 32_768,
                tied: true,
                ..qwen3
            },
            "qwen1.5-moe-a2.7b" => ModelShape {
                family: Family::Qwen2,
                layers: 24,
                heads: 16,
                kv_heads: 16,
                ffn: FfnShape::Moe(Moe { experts: 60, used: 4, width: 1408 }),
                context: 8192,
                ..qwen3
            },
            "olmoe-1b-7b" => ModelShape {
                family: Family::Olmoe,
                layers: 16,
                heads: 16,
                kv_heads: 16,
                ffn: FfnShape::Moe(Moe { experts: 64, used: 8, width: 1024 }),
                vocab: 50_304,
                context: 4096,
                rope_base: 1e4,
                eps: 1e-5,
                ..qwen3
            },
            "gemma-3-1b" => ModelShape {
                family: Family::Gemma3,
                hidden: 1152,
                layers: 26,
                heads: 4,
                kv_heads: 1,
                head_dim: 256,
                ffn: FfnShape::Dense(6912),
                vocab: 262_144,
                context: 32_768,
                tied: true,
                window: Some([512, 6]),
                ..qwen3
            },
            "gpt-oss-20b" | "gpt-oss-120b" => {
                let [layers, experts] = if name == "gpt-oss-20b" { [24, 32] } else { [36, 128] };
                ModelShape {
                    family: Family::GptOss,
                    hidden: 2880,
                    layers,
                    heads: 64,
                    kv_heads: 8,
                    head_dim: 64,
                    ffn: FfnShape::Moe(Moe { experts, used: 4, width: 2880 }),
                    vocab: 201_088,
                    context: 131_072,
                    rope_base: 1.5e5,
                    eps: 1e-5,
                    yarn: Some(32.0),
                    window: Some([128, 2]),
                    ..qwen3
                }
            }
            "glm-4.5-air" => ModelShape {
                family: Family::Glm4Moe,
                hidden: 4096,
                layers: 46,
                heads: 96,
                kv_heads: 8,
                ffn: FfnShape::Moe(Moe { experts: 128, used: 8, width: 1408 }),
                vocab: 151_552,
                context: 131_072,
                eps: 1e-5,
                glm: Some(GlmShape { dense_width: 10_944, qk_norm: false, weights_scale: 1.0, ..GlmShape::DEFAULT }),
                ..qwen3
            },
            "glm-4.6" => ModelShape {
                family: Family::Glm4Moe,
                hidden: 5120,
                layers: 92,
                heads: 96,
                kv_heads: 8,
                ffn: FfnShape::Moe(Moe { experts: 160, used: 8, width: 1536 }),
                vocab: 151_552,
                context: 202_752,
                eps: 1e-5,
                glm: Some(GlmShape { dense_layers: 3, dense_width: 12_288, ..GlmShape::DEFAULT }),
                ..qwen3
            },
            "qwen3-next-80b-a3b" => ModelShape {
                family: Family::Qwen3Next,
                heads: 16,
                kv_heads: 2,
                head_dim: 256,
                ffn: FfnShape::Moe(Moe { experts: 512, used: 10, width: 512 }),
                context: 262_144,
                rope_base: 1e7,
                linear: Some(qwen35),
                ..qwen3
            },
            "qwen3.5-35b-a3b" => ModelShape {
                family: Family::Qwen35,
                layers: 40,
                heads: 16,
                kv_heads: 2,
                head_dim: 256,
                ffn: FfnShape::Moe(Moe { experts: 256, used: 8, width: 512 }),
                vocab: 248_320,
                context: 262_144,
                rope_base: 1e7,
                linear: Some(qwen35),
                ..qwen3
            },
            "qwen3.5-0.8b" => ModelShape {
                family: Family::Qwen35,
                hidden: 1024,
                layers: 24,
                heads: 8,
                kv_heads: 2,
                head_dim: 256,
                ffn: FfnShape::Dense(3584),
                vocab: 248_320,
                context: 262_144,
                rope_base: 1e7,
                tied: true,
                linear: Some(LinearShape { value_heads: 16, ..qwen35 }),
                ..qwen3
            },
            _ => return None,
        })
    }

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

    /// FFN width of the shared expert: that of as many experts as a token uses, as in Qwen 1.5, or of one, as in GLM.
    pub(super) fn shared_width(&self) -> Option<u64> {
        let moe = self.moe()?;
        match self.family {
            Family::Qwen2 => Some(u64::from(moe.width) * u64::from(moe.used)),
            Family::Glm4Moe | Family::Qwen3Next | Family::Qwen35 => Some(moe.width.into()),
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
        let with_experts = [Family::Olmoe, Family::GptOss, Family::Glm4Moe, Family::Qwen3Next];
        if with_experts.contains(&self.family) && self.moe().is_none() {
            return refuse(format!("--family {}: expected experts, found --dense", self.architecture()));
        }
        if self.family == Family::GptOss && self.window.is_some_and(|[_, period]| period != 2) {
            return refuse("a sliding window: expected one in every other layer of gpt-oss".into());
        }
        if let Some(glm) = self.glm() {
            range("layers", self.layers, glm.dense_layers + 1, 4096)?;
            if !self.head_dim.is_multiple_of(4) {
                return refuse(format!(
                    "--head-dim: expected a multiple of 4 (half of it turns), found {}",
                    self.head_dim
                ));
            }
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
