//! What an engine promises of its arithmetic: all that a rounding floor may assume.
//!
//! Design:
//! - **A contract is data**, one [`Contract`] for each operation. Formats of operands and of results, the accumulator, the order of
//!   sums and the bounds on single operations are its fields; floors and emulation (`formula`) read them and know no engine.
//! - **What is rounded on the way in is emulated, what is rounded on the way out is bounded.** `activations`, `weights` and `cache`
//!   say what operands become before they are used, which anyone who sees the operands can repeat exactly. `inner` and `output` say
//!   what results become, which depends on the last bit of a value that only the engine has.
//! - **Engines that people run have names** ([`named()`]), with their sources; others come from a small file ([`from_file`]).
//! - A contract that is read from a file is checked ([`Contract::check`]): no bound is looser than the unit roundoff of bf16.

mod candidates;
mod describe;
mod file;
mod named;

pub use candidates::candidates;
pub use file::from_file;
pub use named::{NamedContract, named, names};

use serde::{Deserialize, Serialize};

/// A number format that a contract names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// int8 codes with one f32 scale, amax/127, for each block of this many values.
    Int8 {
        /// Values that share a scale.
        block: u32,
    },
    /// ggml's Q8_0: blocks of 32 int8 codes, amax/127 as the scale, which is kept as a half.
    Q8_0,
    /// ggml's Q8_1: Q8_0 with the sum of the block's values beside the codes, a half as well, which meets a weight's minimum.
    Q8_1,
    #[allow(non_camel_case_types)] // as ggml writes it
    /// ggml's Q8_K: blocks of 256 int8 codes, an f32 scale with the sign that makes the largest value −127.
    Q8_K,
    /// As ggml's CPU backend pairs it with the other operand (`vec_dot_type`): Q8_K with K- and IQ-quants and ternary types, Q8_1 with
    /// Q4_1 and Q5_1, Q8_0 with the other blocks of fewer than 256 (IQ4_NL, MXFP4 and NVFP4 among them), f16 with F16, bf16 with BF16, f32 with F32.
    #[serde(rename = "vec_dot")]
    VecDot,
    #[allow(non_camel_case_types)]
    /// Q8_K beside weights that are blocks, f32 beside others and beside the KV cache: `cpu:int8`.
    #[serde(rename = "q8_k_beside_blocks")]
    Q8_K_BesideBlocks,
}

impl Precision {
    /// Whether it is a floating-point format.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Whether it is what the other operand makes it.
    pub fn depends_on_other(self) -> bool {
        matches!(self, Self::VecDot | Self::Q8_K_BesideBlocks)
    }

    /// Whether it is narrower than f32, so that a number in f32 may change on its way into it.
    pub fn is_coarse(self) -> bool {
        !matches!(self, Self::F64 | Self::F32)
    }
}

/// In which order a sum of n terms is taken, which is what bounds its rounding error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// One accumulator, first term to last.
    Sequential,
    /// Each block of this many terms on its own accumulator, first to last; then the block sums, first to last.
    Blocked {
        /// Values in a block.
        block: u32,
    },
    /// At least `lanes` accumulators take turns over the terms; then their sums are added in a tree.
    Lanes {
        /// How many running sums.
        lanes: u32,
    },
    /// Nobody says: any order whatever, on terms in any arrangement.
    Unknown,
}

impl Order {
    /// The most additions that any one term goes through in a sum of `n`: the n of γ_n in the rounding bound.
    pub fn depth(self, n: usize) -> usize {
        match self {
            Order::Sequential | Order::Unknown => n,
            Order::Blocked { block } => n.min(block as usize) + n.div_ceil(block as usize),
            Order::Lanes { lanes } => n.div_ceil(lanes as usize) + lanes.next_power_of_two().trailing_zeros() as usize,
        }
    }
}

/// What of a weight is kept, and so rounded to the format of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptWeight {
    /// The weight.
    #[default]
    Itself,
    /// What it is above 1: norms that multiply by 1 + w.
    AboveOne,
    /// ln(−w): the decays of linear attention, which are −eᵃ.
    Logarithm,
}

/// How an engine computes one kind of operation: what a rounding floor may assume, and nothing tighter than it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contract {
    /// What activations are rounded to before they are multiplied: x of a product with a weight, q, and the probabilities of attention.
    pub activations: Precision,
    /// What dequantized weights are rounded to; f32 is how ggml defines their values.
    #[serde(default = "f32", skip_serializing_if = "is_f32")]
    pub weights: Precision,
    /// What of them is rounded so.
    #[serde(default, skip_serializing_if = "is_itself")]
    pub kept: KeptWeight,
    /// What the rows of the KV cache are kept in.
    #[serde(default = "f32", skip_serializing_if = "is_f32")]
    pub cache: Precision,
    /// What values inside the operation are rounded to, where it is made of several: the normalised value before it meets the norm's
    /// weight; cos, sin and their products with x; silu before it meets up; q·k before it is scaled; weight·down before it is summed; beside sinks, scores less the largest;
    /// the number that an embedding is multiplied by.
    #[serde(default = "f32", skip_serializing_if = "is_f32")]
    pub inner: Precision,
    /// What the argument of a gelu and its value are rounded to, where it is looked up in a table; arguments of 10 or more, either way, are not.
    #[serde(default = "f32", skip_serializing_if = "is_f32")]
    pub gelu: Precision,
    /// Whether the offset that all codes of a type have in common, in a product with int8 activations, is kept out of the codes and meets sums of the
    /// activations, which are added in other places than the codes' products: the 32 of Q6_K, the 1 of TQ1_0 and TQ2_0, the eighth of IQ1_S and IQ1_M.
    #[serde(default, skip_serializing_if = "is_false")]
    pub offsets_apart: bool,
    /// Whether of experts with equal values any may be chosen, in any order; where not, the one of the lower index comes first.
    #[serde(default, skip_serializing_if = "is_false")]
    pub any_tie: bool,
    /// What the result is rounded to when it is stored.
    #[serde(default = "f32", skip_serializing_if = "is_f32")]
    pub output: Precision,
    /// What sums are held in.
    pub accumulator: Precision,
    /// The order in which sums are taken.
    pub order: Order,
    /// What rope's angles are computed in, from the frequencies on.
    #[serde(default = "f64", skip_serializing_if = "is_f64")]
    pub angles: Precision,
    /// Bound on the relative error of one +, −, × or fused multiply-add.
    pub unit_roundoff: f64,
    /// Bounds on the relative error of exp (`exp_base` + `exp_slope`·|x|), division and inverse square root, in units of 2⁻²³.
    pub exp_base_ulp: f64,
    /// ULP more for each unit of |x|.
    pub exp_slope_ulp: f64,
    /// ULP that a division may be off.
    pub div_ulp: f64,
    /// ULP that an inverse square root may be off.
    pub rsqrt_ulp: f64,
    /// Bound on the absolute error of a sine or cosine besides its rounding to f32, in units of 2⁻²³.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub trig_ulp: f64,
}

fn f32() -> Precision {
    Precision::F32
}

fn f64() -> Precision {
    Precision::F64
}

// What is as ever is left out of documents, so that those of earlier versions are written as they were read.

fn is_f32(format: &Precision) -> bool {
    *format == Precision::F32
}

fn is_f64(format: &Precision) -> bool {
    *format == Precision::F64
}

fn is_itself(kept: &KeptWeight) -> bool {
    *kept == KeptWeight::Itself
}

fn is_false(x: &bool) -> bool {
    !x
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

impl Contract {
    /// Whether a contract that was read from a file can be one: every sum is of at least one term at a time, every field has a format
    /// that it may have, and no bound exceeds the unit roundoff of bf16, 2⁻⁸, in units of 2⁻²³ where it is in ULP. A looser one would
    /// explain any error.
    ///
    /// # Errors
    /// The field, what was expected and what was found.
    pub fn check(&self) -> std::result::Result<(), String> {
        const LOOSEST: f64 = 1.0 / 256.0;
        const LOOSEST_ULP: f64 = (1 << 15) as f64;
        let terms = match self.order {
            Order::Sequential | Order::Unknown => 1,
            Order::Blocked { block } => block,
            Order::Lanes { lanes } => lanes,
        };
        if !(1..=1 << 16).contains(&terms) {
            return Err(format!("order: expected blocks or lanes from 1 to 65536, found {terms}"));
        }
        let cache = |p: Precision| p.is_float() || p == Precision::Q8_0;
        for (name, precision, fits, expected) in [
            ("activations", self.activations, true, "any format"),
            ("weights", self.weights, self.weights.is_float(), "f64, f32, f16 or bf16"),
            ("cache", self.cache, cache(self.cache), "f64, f32, f16, bf16 or q8_0"),
            ("inner", self.inner, self.inner.is_float(), "f64, f32, f16 or bf16"),
            ("gelu", self.gelu, self.gelu.is_float(), "f64, f32, f16 or bf16"),
            ("output", self.output, self.output.is_float(), "f64, f32, f16 or bf16"),
            ("accumulator", self.accumulator, !self.accumulator.depends_on_other(), "a number format"),
            ("angles", self.angles, self.angles.is_float(), "f64, f32, f16 or bf16"),
        ] {
            if let Precision::Int8 { block } = precision
                && !(1..=1 << 16).contains(&block)
            {
                return Err(format!("{name}: expected blocks of 1 to 65536, found {block}"));
            }
            if !fits {
                return Err(format!("{name}: expected {expected}, found {}", precision.name()));
            }
        }
        for (name, value, most) in [
            ("unit_roundoff", self.unit_roundoff, LOOSEST),
            ("exp_base_ulp", self.exp_base_ulp, LOOSEST_ULP),
            ("exp_slope_ulp", self.exp_slope_ulp, LOOSEST_ULP),
            ("div_ulp", self.div_ulp, LOOSEST_ULP),
            ("rsqrt_ulp", self.rsqrt_ulp, LOOSEST_ULP),
            ("trig_ulp", self.trig_ulp, LOOSEST_ULP),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(format!("{name}: expected 0 to {most}, found {value}"));
            }
        }
        Ok(())
    }

    /// f32 with IEEE rounding and a libm good to 1 ULP: what Rust on a CPU gives.
    pub const fn ieee_f32(order: Order) -> Self {
        Self {
            activations: Precision::F32,
            weights: Precision::F32,
            kept: KeptWeight::Itself,
            cache: Precision::F32,
            inner: Precision::F32,
            gelu: Precision::F32,
            offsets_apart: false,
            any_tie: false,
            output: Precision::F32,
            accumulator: Precision::F32,
            order,
            angles: Precision::F64,
            unit_roundoff: 5.960464477539063e-8, // 2^-24
            exp_base_ulp: 1.0,
            exp_slope_ulp: 0.0,
            div_ulp: 0.5,
            rsqrt_ulp: 1.0, // a square root and a division, each within half an ULP
            trig_ulp: 0.0,
        }
    }
    /// f32 as WGSL promises it: any rounding mode, and the ULP table of the specification's section on floating point accuracy.
    pub const fn wgsl_f32(order: Order) -> Self {
        Self {
            unit_roundoff: 1.1920928955078125e-7, // 2^-23
            exp_base_ulp: 3.0,
            exp_slope_ulp: 2.0,
            div_ulp: 2.5,
            rsqrt_ulp: 2.0,
            ..Self::ieee_f32(order)
        }
    }
    /// f64 throughout.
    pub const fn f64() -> Self {
        Self {
            activations: Precision::F64,
            accumulator: Precision::F64,
            unit_roundoff: 1.1102230246251565e-16, // 2^-53
            ..Self::ieee_f32(Order::Sequential)
        }
    }
}

#[cfg(test)]
mod tests;
