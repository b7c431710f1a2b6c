//! What arithmetic rounds besides sums, as a contract bounds it.

use crate::backend::{Contract, Precision};

pub(crate) use super::precision::half_step;
pub(crate) use super::sum::roundoff;

/// The smallest normal f32, 2⁻¹²⁶: what flushing a subnormal result can lose.
pub const TINY: f64 = f32::MIN_POSITIVE as f64;

/// Half an ULP of f32, 2⁻²⁴, relative: a number that is rounded to f32 once, whatever the contract.
pub(crate) const TO_F32: f64 = f32::EPSILON as f64 / 2.0;

/// The unit of the contract's ULP bounds.
pub(crate) fn ulp(contract: &Contract) -> f64 {
    if in_f64(contract) { f64::EPSILON } else { f32::EPSILON as f64 }
}

/// Whether single operations are in double, and not only sums.
pub(crate) fn in_f64(contract: &Contract) -> bool {
    contract.activations == Precision::F64
}

/// The most that a value inside an operation moves when it is rounded to the contract's inner format, besides the arithmetic's own rounding.
pub(crate) fn inner(value: f64, contract: &Contract) -> f64 {
    half_step(contract.inner, value.abs())
}

/// An argument of a gelu that is taken from a table of the contract's: beyond this there is no table.
pub(crate) const LOOKED_UP: f64 = 10.0;

/// The most that a gelu moves when it is a value of the contract's table.
pub(crate) fn looked_up(argument: f64, value: f64, contract: &Contract) -> f64 {
    if argument.abs() < LOOKED_UP { half_step(contract.gelu, value.abs()) } else { 0.0 }
}

/// The floor of a value that is then stored in the contract's output format: rounding moves it by half a step of the format, of the format's
/// step at the largest value that it may have. NaN of a value that is not finite: none is said of it.
pub(crate) fn stored((value, floor): (f64, f64), contract: &Contract) -> f64 {
    if !value.is_finite() {
        f64::NAN
    } else if contract.output.is_coarse() && floor.is_finite() {
        floor + half_step(contract.output, value.abs() + floor)
    } else {
        floor
    }
}

/// The relative error of a division.
pub(crate) fn division(contract: &Contract) -> f64 {
    contract.div_ulp * ulp(contract)
}

/// The relative error of exp(x − max), by the `distance` |x − max|: the subtraction moves the argument by u·|x − max|, and exp itself
/// is good to base + slope·|x − max| ULP. With the product by log₂e that an exp made of exp2 has: another u·|x − max|.
pub(crate) fn exp_error(distance: f64, contract: &Contract) -> f64 {
    2.0 * roundoff(contract) * distance + (contract.exp_base_ulp + contract.exp_slope_ulp * distance) * ulp(contract)
}

/// The absolute error of the logarithm of a number that is at least 1. WGSL states 2⁻²¹ up to 2 and 3 ULP beyond, and a libm's is good to its
/// last place, which near 1 is one of 1's, as what it is taken of was rounded: an ULP of 1, and as many as exp's for each unit of 1 + |ln|.
pub(crate) fn ln_error(ln: f64, contract: &Contract) -> f64 {
    (1.0 + contract.exp_base_ulp * (1.0 + ln.abs())) * ulp(contract)
}
