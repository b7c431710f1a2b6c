//! Contracts of engines that people run, by name.
//!
//! A name may carry options, joined by `+`: `llama.cpp-cpu+fa+kv=q8_0`. `fa` is flash attention, `kv=f32|f16|bf16|q8_0` what the KV
//! cache is kept in; both are of llama.cpp's contracts. Without them flash attention is off and the cache is f16, llama.cpp's default. `transformers-bf16`
//! and `-f16` take an architecture that they compute otherwise: `transformers-bf16+gemma3`.
//!
//! # Sources
//! **llama.cpp**, commit 0c1e570 and ggml 0.25:
//! - `ggml-cpu/ggml-cpu.c`, `type_traits_cpu[].vec_dot_type`: what activations become for each type of weight. The rows of a
//!   matrix product are converted before it (`ggml_compute_forward_mul_mat`, `_mul_mat_id`); the repacked kernels
//!   (`arch/x86/repack.cpp`) convert four rows at once to the same codes and scales.
//! - `ggml-cpu/quants.c`, `ggml-quants.c` (`quantize_row_q8_0_ref`, `_q8_1_ref`, `_q8_K_ref`), `arch/x86/quants.c`.
//! - `arch/x86/quants.c`, `ggml_vec_dot_q6_K_q8_K`: each of eight f32 sums takes, of a block, every eighth group of four codes as they are in the file, 0 to 63,
//!   less 32 times the activations' sums over 32 values in a row (`bsums`). These are of other values, so what a lane sums up is not the product
//!   of signed codes but of unsigned ones, and of the offset. `_tq1_0_`, `_tq2_0_` the same with 1 for 32; `_iq1_s_` and `_iq1_m_` sum the eighths in
//!   an accumulator of their own. In `quants.c` and in `arch/arm/quants.c` Q6_K's offset is taken off in integers, and Q3_K's, Q4_0's and Q5_0's
//!   are in the codes everywhere. Minima (Q2_K, Q4_K, Q5_K, Q4_1, Q5_1) are no codes, and apart in all kernels.
//! - `ggml-cpu/vec.cpp`: `ggml_vec_dot_f16` takes halves to f32 and sums there; `ggml_v_expf` is within 1.45 + 0.5 ULP; a softmax sums
//!   eight or sixteen exponentials in f32, and those sums in double. `ops.cpp`: the squares of a norm are f32, their sum a double.
//! - `ggml-cpu/vec.h`, `ggml_vec_geglu_f32`: gelu by tanh of −10 to 10 is looked up in `ggml_table_gelu_f16`, by the argument as f16, whose value
//!   is f16; beyond, it is 0 or the argument. What it meets is f32. silu is computed in f32.
//! - `src/models/gemma3.cpp`: queries are multiplied by attention's scale before their products with keys, and are rounded to the cache's type
//!   after that: the same where the scale is a power of two, as of all of Gemma 3 but 27B.
//! - `ops.cpp`, `ggml_rope_cache_init`: θ ← θ·θ_scale from pair to pair, in f32.
//! - `src/llama-graph.cpp`, `build_attn_mha`: without flash attention K·Q and V·P are matrix products over the cache, whose type
//!   (f16 by default) decides what q and the probabilities become; `ggml_compute_forward_flash_attn_ext_f16_one_chunk` rounds q to the
//!   cache's vec_dot type and sums V in f16 when V is f16.
//! - `src/models/delta-net-base.cpp`, `build_delta_net_chunking`: a prompt's positions in chunks of 64, which is the delta rule's sums in another order.
//! - `ggml-cuda/CMakeLists.txt`: `-use_fast_math`, so the intrinsics of the CUDA C++ Programming Guide's table of mathematical
//!   functions: `__expf` 2 + ⌊|1.173·x|⌋ ULP, division 2 ULP, `rsqrtf` 2 ULP, `__sinf` and `__cosf` 2⁻²¹·⁴ on [−π, π].
//! - `ggml.h`, `ggml_argsort_top_k` and `ggml_top_k`: by `std::sort` and kernels that are not stable, so equals come in any order.
//! - Vulkan specification, *Precision and Operation of SPIR-V Instructions*: exp 3 + 2·|x| ULP, division 2.5 ULP, inverse square root
//!   2 ULP, sin and cos 2⁻¹¹ on [−π, π].
//!
//! **transformers** 5.x, `models/qwen3_moe/modeling_qwen3_moe.py`, and PyTorch's CPU and CUDA kernels:
//! - every operator's result is rounded to the model's type; matrix products and softmax sum in f32.
//! - `torch.topk` does not say which of equal values it takes, and in which order.
//! - `Qwen3MoeRMSNorm` normalises in f32, rounds, then multiplies by the weight. `Qwen3MoeRotaryEmbedding` computes frequencies and
//!   angles in f32 and rounds cos and sin. `eager_attention_forward` rounds q·k, then the product with the scale; its softmax is
//!   f32, rounded after. `Qwen3MoeTopKRouter` keeps probabilities in f32 and rounds the renormalised weights. `Qwen3MoeExperts`
//!   rounds weight·down and adds the experts one after the other in the model's type (`index_add_`).
//! - `models/gpt_oss/modeling_gpt_oss.py`, `eager_attention_forward`: scores and sinks less the largest of them, in the model's type. `GptOssRMSNorm`
//!   multiplies by the weight before it rounds.
//! - `models/gemma3/modeling_gemma3.py`: `Gemma3RMSNorm` is f32 throughout, times 1 + w of a w in the model's type; `Gemma3TextScaledWordEmbedding` rounds √H.
//! - `models/glm4_moe`, `deepseek_v2`, `deepseek_v3`: the router's weight and its bias stay f32 (`_keep_in_fp32_modules_strict`), and with them logits, sigmoids or softmax, and
//!   the weights of experts, which meet what experts give in f32.
//! - `models/qwen3_next`, `qwen3_5`: norms as Gemma's. The convolution and its silu are rounded, β = σ(b) too; a + dt_bias is f32, of a bias in the model's type;
//!   −exp(A_log)·softplus is f32, of an A_log in the model's type; the norm of q and k and the delta rule are f32, the rule's result is rounded; the gated norm rounds before its
//!   weight and after, and its gate is f32.

use std::collections::BTreeMap;

use super::{Contract, KeptWeight, Order, Precision};
use crate::backend::Backend;
use crate::op::{OpKind, STAGES, Stage};

/// The contracts of an engine, one for each operation.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedContract {
    /// As `--contract` takes it, options included.
    pub name: String,
    /// What it is, in one line.
    pub text: String,
    /// Every operation's.
    pub ops: BTreeMap<OpKind, Contract>,
    /// Those of stages that are computed otherwise than others of their operation.
    pub stages: BTreeMap<Stage, Contract>,
}

impl NamedContract {
    /// The contract of one operation.
    pub fn get(&self, op: OpKind) -> &Contract {
        &self.ops[&op]
    }

    /// The contract of a stage that is made by such an operation.
    pub fn at(&self, stage: Stage, op: OpKind) -> &Contract {
        self.stages.get(&stage).unwrap_or_else(|| self.get(op))
    }

    /// What a backend promises.
    pub fn of<B: Backend>(backend: &B) -> Self {
        let info = backend.info();
        let ops = OpKind::ALL.iter().map(|op| (*op, backend.contract(*op))).collect();
        let stages = STAGES.iter().filter_map(|row| Some((row.stage, backend.stage_contract(row.stage)?))).collect();
        Self { name: info.backend, text: info.contract, ops, stages }
    }

    fn new(name: &str, text: impl Into<String>, of: impl Fn(OpKind) -> Contract) -> Self {
        // Only rope has angles.
        let without_angles = |c: Contract| Contract { angles: Precision::F64, trig_ulp: 0.0, ..c };
        let own = |op: OpKind| if op == OpKind::Rope { of(op) } else { without_angles(of(op)) };
        let ops = OpKind::ALL.iter().map(|op| (*op, own(*op))).collect();
        Self { name: name.into(), text: text.into(), ops, stages: BTreeMap::new() }
    }
}

/// One line, which begins with the name.
impl std::fmt::Display for NamedContract {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.text)
    }
}

/// Every name without options, the strictest first.
pub fn names() -> &'static [&'static str] {
    &[
        "oracle",
        "transformers-f64",
        "f32",
        "cpu:scalar",
        "cpu:avx2",
        "cpu:avx512",
        "cpu:neon",
        "cpu:int8",
        #[cfg(feature = "gpu")]
        "gpu",
        "llama.cpp-cpu",
        "llama.cpp-vulkan",
        "llama.cpp-cuda",
        "transformers-f32",
        "transformers-f16",
        "transformers-bf16",
    ]
}

/// The contract called `name`; `None` if there is no such name, or it has not these options.
pub fn named(name: &str) -> Option<NamedContract> {
    let mut parts = name.split('+');
    let base = parts.next()?;
    if let (Some((dtype, text)), Some(family)) = (torch_dtype(base), name.strip_prefix(base)?.strip_prefix('+')) {
        return TorchFamily::parse(family).map(|family| family.contract(name, dtype, &text));
    }
    let options = LlamaOptions::parse(parts)?;
    if options != LlamaOptions::default() && !base.starts_with("llama.cpp-") {
        return None;
    }
    let new = |text: String, of: &dyn Fn(OpKind) -> Contract| Some(NamedContract::new(name, text, of));
    let level = |level| {
        let of = |op| crate::backend::cpu::contract(level, op);
        new(format!("this program's CPU backend, {}", of(OpKind::MatMul)), &of)
    };
    use crate::backend::cpu::Level;
    match base {
        "oracle" => new("float64 throughout".into(), &|_| Contract::f64()),
        "f32" => new("f32 with IEEE rounding, sums in any order".into(), &|_| strict_f32()),
        "cpu:scalar" => level(Level::Scalar),
        "cpu:avx2" => level(Level::Avx2),
        "cpu:avx512" => level(Level::Avx512),
        "cpu:neon" => level(Level::Neon),
        "cpu:int8" => new(
            format!("this program's CPU backend, {}", crate::backend::cpu::INT8),
            &crate::backend::cpu::int8_contract,
        ),
        #[cfg(feature = "gpu")]
        "gpu" => {
            let of = crate::backend::gpu::contract;
            new(format!("this program's GPU backend, {} in WGSL arithmetic", of(OpKind::MatMul)), &of)
        }
        "llama.cpp-cpu" => {
            let text = "llama.cpp on a CPU: int8 activations, as ggml pairs them with a weight's type (Q8_K, Q8_0, Q8_1), f32 sums";
            new(format!("{text}, {options}"), &|op| options.cpu(op))
        }
        "llama.cpp-vulkan" => {
            let text = "llama.cpp on Vulkan: f16 operands in matrix products, f32 sums, Vulkan's bounds on functions";
            new(format!("{text}, {options}"), &|op| options.vulkan(op))
        }
        "llama.cpp-cuda" => {
            let text = "llama.cpp on CUDA: int8 activations in blocks of 32 (Q8_1), f32 sums, fast-math functions";
            new(format!("{text}, {options}"), &|op| options.cuda(op))
        }
        "transformers-f64" => {
            let text = "transformers in float64 throughout, also where it asks for float32, sums in any order";
            new(text.into(), &|op| Contract { any_tie: op == OpKind::RouterTopK, ..torch_f64() })
        }
        "transformers-f32" => new("transformers in float32: f32 throughout".into(), &|op| torch(op, Precision::F32)),
        _ => {
            let (dtype, text) = torch_dtype(base)?;
            new(text, &|op| torch(op, dtype))
        }
    }
}

/// IEEE f32 whose sums come in any order, with the functions of a vectorised library: exp within 2 ULP, as SLEEF, Arm's routines and
/// compilers' vector libraries promise or better.
fn strict_f32() -> Contract {
    Contract { exp_base_ulp: 2.0, angles: Precision::F32, ..Contract::ieee_f32(Order::Unknown) }
}

/// What is chosen when llama.cpp is started.
#[derive(Clone, Copy, Debug, PartialEq)]
struct LlamaOptions {
    flash_attention: bool,
    cache: Precision,
}

impl Default for LlamaOptions {
    fn default() -> Self {
        Self { flash_attention: false, cache: Precision::F16 }
    }
}

impl std::fmt::Display for LlamaOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} KV cache", self.cache.name())?;
        if self.flash_attention { write!(f, ", flash attention") } else { Ok(()) }
    }
}

impl LlamaOptions {
    fn parse<'a>(options: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut all = Self::default();
        for option in options {
            match option {
                "fa" => all.flash_attention = true,
                "kv=f32" => all.cache = Precision::F32,
                "kv=f16" => all.cache = Precision::F16,
                "kv=bf16" => all.cache = Precision::Bf16,
                "kv=q8_0" => all.cache = Precision::Q8_0,
                _ => return None,
            }
        }
        Some(all)
    }

    /// What all backends have alike, on a base that has the engine's functions and sums: attention over the cache, and a choice of experts by sorting.
    fn common(self, op: OpKind, base: Contract) -> Contract {
        let cached = Contract { cache: self.cache, activations: Precision::VecDot, ..base };
        match op {
            OpKind::AttnScores => cached,
            // Flash attention weighs V with f32 exponentials, and holds the sum in V's type where that is f16.
            OpKind::AttnContext if self.flash_attention => {
                let accumulator = if self.cache == Precision::F16 { Precision::F16 } else { Precision::F32 };
                Contract { activations: Precision::F32, accumulator, ..cached }
            }
            OpKind::AttnContext => cached,
            OpKind::RouterTopK => Contract { any_tie: true, ..base },
            _ => base,
        }
    }

    fn cpu(self, op: OpKind) -> Contract {
        let base = strict_f32();
        match op {
            OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul => {
                Contract { activations: Precision::VecDot, offsets_apart: true, ..base }
            }
            // Sums in double (`ggml_float`), of terms in f32.
            OpKind::RmsNorm | OpKind::AttnProbs | OpKind::RouterProbs => {
                Contract { accumulator: Precision::F64, order: Order::Lanes { lanes: 1 }, ..base }
            }
            OpKind::SwiGlu => Contract { gelu: Precision::F16, ..base },
            _ => self.common(op, base),
        }
    }

    fn vulkan(self, op: OpKind) -> Contract {
        let base = Contract { angles: Precision::F32, trig_ulp: 4096.0, ..Contract::wgsl_f32(Order::Unknown) };
        match op {
            OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul => {
                Contract { activations: Precision::F16, weights: Precision::F16, ..base }
            }
            _ => self.common(op, base),
        }
    }

    fn cuda(self, op: OpKind) -> Contract {
        let base = Contract {
            exp_base_ulp: 2.0,
            exp_slope_ulp: 1.173,
            div_ulp: 2.0,
            rsqrt_ulp: 2.0,
            trig_ulp: 4.0, // 2^-21.19, the larger of the two
            ..strict_f32()
        };
        match op {
            OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul => {
                Contract { activations: Precision::Q8_1, ..base }
            }
            _ => self.common(op, base),
        }
    }
}

/// The 16-bit type in a contract's name, and what the contract says.
fn torch_dtype(base: &str) -> Option<(Precision, String)> {
    let (dtype, name) = match base {
        "transformers-f16" => (Precision::F16, "float16"),
        "transformers-bf16" => (Precision::Bf16, "bfloat16"),
        _ => return None,
    };
    let text = format!("transformers in {name}: weights, results and KV cache in it, sums, norms and softmax in f32");
    Some((dtype, text))
}

/// Families of models of which transformers computes something otherwise in 16 bits.
#[derive(Clone, Copy, PartialEq)]
enum TorchFamily {
    Gemma3,
    GptOss,
    /// GLM-4.5, DeepSeek V2 and V3.
    WideRouter,
    /// Qwen3-Next and Qwen 3.5.
    LinearAttention,
}

impl TorchFamily {
    /// By `general.architecture` of its files.
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "gemma3" => Self::Gemma3,
            "gpt-oss" => Self::GptOss,
            "glm4moe" | "deepseek2" => Self::WideRouter,
            "qwen3next" | "qwen35" | "qwen35moe" => Self::LinearAttention,
            _ => return None,
        })
    }

    /// What differs, in words.
    fn text(self) -> &'static str {
        match self {
            Self::Gemma3 => "norms throughout in f32 by 1 + w, the embedding's scale rounded",
            Self::GptOss => "norms throughout in f32",
            Self::WideRouter => "routers in f32",
            Self::LinearAttention => "norms throughout in f32 by 1 + w, the delta rule and its gate in f32",
        }
    }

    fn contract(self, name: &str, dtype: Precision, text: &str) -> NamedContract {
        let of = |op| self.op(op, dtype);
        let mut all = NamedContract::new(name, format!("{text}; {}", self.text()), of);
        all.stages = self.stages(dtype).into_iter().collect();
        all
    }

    fn op(self, op: OpKind, dtype: Precision) -> Contract {
        let (base, f32) = (torch(op, dtype), strict_f32());
        match (self, op) {
            (Self::Gemma3, OpKind::Embed) => Contract { inner: dtype, output: dtype, ..base },
            (Self::Gemma3 | Self::LinearAttention, OpKind::RmsNorm) => {
                Contract { kept: KeptWeight::AboveOne, inner: Precision::F32, ..base }
            }
            // In float16 its norms keep their weights in f32 (`_keep_in_fp32_modules`).
            (Self::GptOss, OpKind::RmsNorm) => {
                let weights = if dtype == Precision::F16 { Precision::F32 } else { dtype };
                Contract { weights, inner: Precision::F32, ..base }
            }
            (Self::WideRouter, OpKind::RouterWeights) => f32,
            (Self::LinearAttention, OpKind::Conv) => Contract { weights: dtype, inner: dtype, output: dtype, ..f32 },
            (Self::LinearAttention, OpKind::Decay) => Contract { weights: dtype, kept: KeptWeight::Logarithm, ..f32 },
            (Self::LinearAttention, OpKind::DeltaRule) => Contract { output: dtype, ..f32 },
            _ => base,
        }
    }

    fn stages(self, dtype: Precision) -> Vec<(Stage, Contract)> {
        let f32 = Contract { angles: Precision::F64, ..strict_f32() };
        match self {
            Self::Gemma3 | Self::GptOss => vec![],
            // Their weights are kept in f32 (`_keep_in_fp32_modules_strict`).
            Self::WideRouter => vec![(Stage::RouterLogits, f32), (Stage::RouterChoice, f32)],
            Self::LinearAttention => vec![
                (Stage::LinearAttnBeta, Contract { output: dtype, ..f32 }),
                (Stage::LinearAttnDt, Contract { weights: dtype, ..f32 }),
                (Stage::LinearAttnNorm, Contract { weights: dtype, inner: dtype, output: dtype, ..f32 }),
                (Stage::LinearAttnGated, Contract { output: dtype, ..f32 }),
            ],
        }
    }
}

/// What PyTorch's operators do in float64, beside a judge that is in float64, too: of all bounds, twice what one of the two may be off by, so that theirs may
/// go either way. Functions are a vector library's, within an ULP.
fn torch_f64() -> Contract {
    let own = Contract::f64();
    Contract {
        order: Order::Unknown,
        unit_roundoff: 2.0 * own.unit_roundoff,
        exp_base_ulp: 2.0,
        div_ulp: 2.0 * own.div_ulp,
        rsqrt_ulp: 2.0 * own.rsqrt_ulp,
        ..own
    }
}

/// What PyTorch's operators do to a model in `dtype`.
fn torch(op: OpKind, dtype: Precision) -> Contract {
    let base = Contract { any_tie: op == OpKind::RouterTopK, ..strict_f32() };
    if dtype == Precision::F32 {
        return base;
    }
    let stored = Contract { output: dtype, ..base };
    match op {
        // Rows of a table that is in the model's type already: nothing more is rounded.
        OpKind::Embed => Contract { weights: dtype, ..base },
        OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul => {
            Contract { activations: dtype, weights: dtype, ..stored }
        }
        OpKind::RmsNorm => Contract { weights: dtype, inner: dtype, ..stored },
        OpKind::AttnScores | OpKind::AttnContext => {
            Contract { activations: dtype, cache: dtype, inner: dtype, ..stored }
        }
        OpKind::Combine => Contract { inner: dtype, accumulator: dtype, ..stored },
        // Linear attention is f32 in part: what it is in 16 bits, its family says.
        OpKind::Conv | OpKind::L2Norm | OpKind::Decay | OpKind::DeltaRule => base,
        OpKind::Rope | OpKind::SwiGlu | OpKind::SigmoidGate => Contract { inner: dtype, ..stored },
        OpKind::RouterProbs => base,
        // Weights and inner values are those of a softmax with sinks: gpt-oss takes the largest from scores and sinks in the model's type.
        OpKind::AttnProbs => Contract { weights: dtype, inner: dtype, ..stored },
        OpKind::RouterWeights | OpKind::Add => stored,
        OpKind::Bias | OpKind::ExpertBias => Contract { weights: dtype, ..stored },
        OpKind::RouterTopK | OpKind::Store | OpKind::Rows => base,
    }
}
