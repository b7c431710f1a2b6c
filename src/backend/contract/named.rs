//! Contracts of engines that people run, by name.
//!
//! A name may carry options, joined by `+`: `llama.cpp-cpu+fa+kv=q8_0`. `fa` is flash attention, `kv=f32|f16|bf16|q8_0` what the KV
//! cache is kept in; both are of llama.cpp's contracts. Without them flash attention is off and the cache is f16, llama.cpp's default.
//!
//! # Sources
//! **llama.cpp**, commit 0c1e570 and ggml 0.25:
//! - `ggml-cpu/ggml-cpu.c`, `type_traits_cpu[].vec_dot_type`: what activations become for each type of weight. The rows of a
//!   matrix product are converted before it (`ggml_compute_forward_mul_mat`, `_mul_mat_id`); the repacked kernels
//!   (`arch/x86/repack.cpp`) convert four rows at once to the same codes and scales.
//! - `ggml-cpu/quants.c`, `ggml-quants.c` (`quantize_row_q8_0_ref`, `_q8_1_ref`, `_q8_K_ref`), `arch/x86/quants.c`.
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
//! - Vulkan specification, *Precision and Operation of SPIR-V Instructions*: exp 3 + 2·|x| ULP, division 2.5 ULP, inverse square root
//!   2 ULP, sin and cos 2⁻¹¹ on [−π, π].
//!
//! **transformers** 5.x, `models/qwen3_moe/modeling_qwen3_moe.py`, and PyTorch's CPU and CUDA kernels:
//! - every operator's result is rounded to the model's type; matrix products and softmax sum in f32.
//! - `Qwen3MoeRMSNorm` normalises in f32, rounds, then multiplies by the weight. `Qwen3MoeRotaryEmbedding` computes frequencies and
//!   angles in f32 and rounds cos and sin. `eager_attention_forward` rounds q·k, then the product with the scale; its softmax is
//!   f32, rounded after. `Qwen3MoeTopKRouter` keeps probabilities in f32 and rounds the renormalised weights. `Qwen3MoeExperts`
//!   rounds weight·down and adds the experts one after the other in the model's type (`index_add_`).
//! - `models/gpt_oss/modeling_gpt_oss.py`, `eager_attention_forward`: scores and sinks less the largest of them, in the model's type.

use std::collections::BTreeMap;

use super::{Contract, Order, Precision};
use crate::backend::{AnyBackend, Backend};
use crate::op::OpKind;

/// The contracts of an engine, one for each operation.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedContract {
    /// As `--contract` takes it, options included.
    pub name: String,
    /// What it is, in one line.
    pub text: String,
    /// Every operation's.
    pub ops: BTreeMap<OpKind, Contract>,
}

impl NamedContract {
    /// The contract of one operation.
    pub fn get(&self, op: OpKind) -> &Contract {
        &self.ops[&op]
    }

    /// What a backend promises.
    pub fn of(backend: &AnyBackend) -> Self {
        let info = backend.info();
        let ops = OpKind::ALL.iter().map(|op| (*op, backend.contract(*op))).collect();
        Self { name: info.backend, text: info.contract, ops }
    }

    fn new(name: &str, text: impl Into<String>, of: impl Fn(OpKind) -> Contract) -> Self {
        // Only rope has angles.
        let without_angles = |c: Contract| Contract { angles: Precision::F64, trig_ulp: 0.0, ..c };
        let own = |op: OpKind| if op == OpKind::Rope { of(op) } else { without_angles(of(op)) };
        Self { name: name.into(), text: text.into(), ops: OpKind::ALL.iter().map(|op| (*op, own(*op))).collect() }
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
        "transformers-f32" => new("transformers in float32: f32 throughout".into(), &|op| torch(op, Precision::F32)),
        "transformers-f16" => new(torch_text("float16"), &|op| torch(op, Precision::F16)),
        "transformers-bf16" => new(torch_text("bfloat16"), &|op| torch(op, Precision::Bf16)),
        _ => None,
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

    /// Attention over the cache, on a base that has the engine's functions and sums.
    fn attention(self, op: OpKind, base: Contract) -> Contract {
        let cached = Contract { cache: self.cache, activations: Precision::VecDot, ..base };
        match op {
            OpKind::AttnScores => cached,
            // Flash attention weighs V with f32 exponentials, and holds the sum in V's type where that is f16.
            OpKind::AttnContext if self.flash_attention => {
                let accumulator = if self.cache == Precision::F16 { Precision::F16 } else { Precision::F32 };
                Contract { activations: Precision::F32, accumulator, ..cached }
            }
            OpKind::AttnContext => cached,
            _ => base,
        }
    }

    fn cpu(self, op: OpKind) -> Contract {
        let base = strict_f32();
        match op {
            OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul => {
                Contract { activations: Precision::VecDot, ..base }
            }
            // Sums in double (`ggml_float`), of terms in f32.
            OpKind::RmsNorm | OpKind::AttnProbs | OpKind::RouterProbs => {
                Contract { accumulator: Precision::F64, order: Order::Lanes { lanes: 1 }, ..base }
            }
            OpKind::SwiGlu => Contract { gelu: Precision::F16, ..base },
            _ => self.attention(op, base),
        }
    }

    fn vulkan(self, op: OpKind) -> Contract {
        let base = Contract { angles: Precision::F32, trig_ulp: 4096.0, ..Contract::wgsl_f32(Order::Unknown) };
        match op {
            OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul => {
                Contract { activations: Precision::F16, weights: Precision::F16, ..base }
            }
            _ => self.attention(op, base),
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
            _ => self.attention(op, base),
        }
    }
}

fn torch_text(dtype: &str) -> String {
    format!("transformers in {dtype}: weights, results and KV cache in it, sums, norms and softmax in f32")
}

/// What PyTorch's operators do to a model in `dtype`.
fn torch(op: OpKind, dtype: Precision) -> Contract {
    let base = strict_f32();
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
        // Nothing in 16 bits is stated for linear attention: it is f32 in part, and no capture of its models in 16 bits is made.
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
