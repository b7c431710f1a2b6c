//! The shapes that have a name.

use super::{Family, FfnShape, GlmShape, LatentShape, LinearShape, ModelShape, Moe};

impl ModelShape {
    /// What [`ModelShape::named`] knows.
    pub const NAMES: [&str; 20] = [
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
        "deepseek-v3",
        "deepseek-v2-lite",
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
            latent: None,
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
        let deepseek = LatentShape {
            q_rank: Some(1536),
            rank: 512,
            nope: 128,
            pe: 64,
            values: 128,
            groups: [8, 4],
            dense_layers: 3,
            dense_width: 18_432,
            ..LatentShape::DEFAULT
        };
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
            "deepseek-v3" => ModelShape {
                family: Family::DeepSeek2,
                hidden: 7168,
                layers: 61,
                heads: 128,
                kv_heads: 1,
                head_dim: 192,
                ffn: FfnShape::Moe(Moe { experts: 256, used: 8, width: 2048 }),
                vocab: 129_280,
                context: 163_840,
                rope_base: 1e4,
                yarn: Some(40.0),
                latent: Some(deepseek),
                ..qwen3
            },
            "deepseek-v2-lite" => ModelShape {
                family: Family::DeepSeek2,
                layers: 27,
                heads: 16,
                kv_heads: 1,
                head_dim: 192,
                ffn: FfnShape::Moe(Moe { experts: 64, used: 6, width: 1408 }),
                vocab: 102_400,
                context: 163_840,
                rope_base: 1e4,
                yarn: Some(40.0),
                latent: Some(LatentShape {
                    q_rank: None,
                    groups: [1, 1],
                    sigmoid: false,
                    weights_scale: 1.0,
                    shared: 2,
                    dense_layers: 1,
                    dense_width: 10_944,
                    mscale: 0.707,
                    ..deepseek
                }),
                ..qwen3
            },
            _ => return None,
        })
    }
}
