//! What a backend promises of its arithmetic: all that a rounding floor may assume.

/// A number format that a contract names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    /// int8 with one scale per block of this many activations.
    Int8 {
        /// Values that share a scale.
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
    Blocked {
        /// Values in a block.
        block: u32,
    },
    /// At least `lanes` accumulators take turns over the terms; then their sums are added in a tree.
    Lanes {
        /// How many running sums.
        lanes: u32,
    },
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
    /// What activations are rounded to before they are multiplied.
    pub activations: Precision,
    /// What sums are held in.
    pub accumulator: Precision,
    /// The order in which sums are taken.
    pub order: Order,
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
}

impl Contract {
    /// Whether a contract that was read from a file can be one: every sum is of at least one term at a time, and no bound
    /// exceeds the unit roundoff of bf16, 2⁻⁸, in units of 2⁻²³ where it is in ULP. A looser one would explain any error.
    ///
    /// # Errors
    /// The field, what was expected and what was found.
    pub fn check(&self) -> std::result::Result<(), String> {
        const LOOSEST: f64 = 1.0 / 256.0;
        const LOOSEST_ULP: f64 = (1 << 15) as f64;
        let terms = match self.order {
            Order::Sequential => 1,
            Order::Blocked { block } => block,
            Order::Lanes { lanes } => lanes,
        };
        if !(1..=1 << 16).contains(&terms) {
            return Err(format!("order: expected blocks or lanes from 1 to 65536, found {terms}"));
        }
        for (name, precision) in [("activations", self.activations), ("accumulator", self.accumulator)] {
            if precision == (Precision::Int8 { block: 0 }) {
                return Err(format!("{name}: expected blocks of at least 1, found 0"));
            }
        }
        for (name, value, most) in [
            ("unit_roundoff", self.unit_roundoff, LOOSEST),
            ("exp_base_ulp", self.exp_base_ulp, LOOSEST_ULP),
            ("exp_slope_ulp", self.exp_slope_ulp, LOOSEST_ULP),
            ("div_ulp", self.div_ulp, LOOSEST_ULP),
            ("rsqrt_ulp", self.rsqrt_ulp, LOOSEST_ULP),
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
