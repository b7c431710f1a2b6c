//! What a backend promises of its arithmetic: all that a rounding floor may assume.

/// A number format that a contract names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F64,
    F32,
    F16,
    Bf16,
    /// int8 with one scale per block of this many activations.
    Int8 {
        block: u32,
    },
}

/// In which order a sum of n terms is taken, which is what bounds its rounding error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// One accumulator, first term to last.
    Sequential,
    /// Each block of this many terms on its own accumulator, first to last; then the block sums, first to last.
    Blocked { block: u32 },
    /// At least `lanes` accumulators take turns over the terms; then their sums are added in a tree.
    Lanes { lanes: u32 },
}

impl Order {
    /// The most additions that any one term goes through in a sum of `n`: the n of γ_n in the rounding bound.
    pub fn depth(self, n: usize) -> usize {
        match self {
            Order::Sequential => n,
            Order::Blocked { block } => n.min(block as usize) + n.div_ceil(block as usize),
            Order::Lanes { lanes } => n.div_ceil(lanes as usize) + lanes.next_power_of_two().trailing_zeros() as usize,
        }
    }
}

/// How a backend computes one kind of operation: what a rounding floor may assume, and nothing tighter than it keeps.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Contract {
    pub activations: Precision,
    pub accumulator: Precision,
    pub order: Order,
    /// Bound on the relative error of one +, −, × or fused multiply-add.
    pub unit_roundoff: f64,
    /// Bounds on the relative error of exp (`exp_base` + `exp_slope`·|x|), division and inverse square root, in units of 2⁻²³.
    pub exp_base_ulp: f64,
    pub exp_slope_ulp: f64,
    pub div_ulp: f64,
    pub rsqrt_ulp: f64,
}

impl Contract {
    /// f32 with IEEE rounding and a libm good to 1 ULP: what Rust on a CPU gives.
    pub const fn ieee_f32(order: Order) -> Self {
        Self {
            activations: Precision::F32,
            accumulator: Precision::F32,
            order,
            unit_roundoff: 5.960464477539063e-8, // 2^-24
            exp_base_ulp: 1.0,
            exp_slope_ulp: 0.0,
            div_ulp: 0.5,
            rsqrt_ulp: 1.0, // a square root and a division, each within half an ULP
        }
    }
    /// f32 as WGSL promises it: any rounding mode, and the ULP table of the specification's section on floating point accuracy.
    pub const fn wgsl_f32(order: Order) -> Self {
        Self {
            activations: Precision::F32,
            accumulator: Precision::F32,
            order,
            unit_roundoff: 1.1920928955078125e-7, // 2^-23
            exp_base_ulp: 3.0,
            exp_slope_ulp: 2.0,
            div_ulp: 2.5,
            rsqrt_ulp: 2.0,
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
