//! One element of a stage: its value, and the rounding that a contract allows in it.

use super::rounding::{TINY, roundoff};
use crate::backend::Contract;

/// What a formula says of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub value: f64,
    /// The largest rounding error that the contract allows in it.
    pub floor: f64,
}

impl Point {
    /// Nothing is said of the element: what is read there lies behind a tensor's end.
    pub const UNKNOWN: Self = Self { value: f64::NAN, floor: f64::INFINITY };

    /// Whether nothing is said of it: unknown, or without a bound because the arithmetic may overflow.
    pub fn is_unknown(self) -> bool {
        self.floor == f64::INFINITY
    }

    pub fn new(value: f64, floor: f64) -> Self {
        Self { value, floor }
    }

    /// A value that rounding does not touch.
    pub fn exactly(value: f64) -> Self {
        Self { value, floor: 0.0 }
    }

    /// A number that a kernel holds rounded, u.
    pub fn held(value: f64, contract: &Contract) -> Self {
        Self { value, floor: roundoff(contract) * value.abs() }
    }

    /// The error that `output` has against this, over the floor. Two values that are not finite are alike: which of NaN and
    /// infinity comes out depends on the order of a sum. What is beyond f32's range is infinite. What is unknown contradicts nothing.
    pub fn residual(self, output: f64) -> f64 {
        let finite = |x: f64| x.abs() <= f32::MAX as f64;
        if self.is_unknown() || !finite(output) && !finite(self.value) || output == self.value {
            0.0
        } else if finite(output) && finite(self.value) && self.floor.is_finite() {
            (output - self.value).abs() / self.floor
        } else {
            f64::INFINITY
        }
    }

    /// Times a number that a kernel holds rounded, u, in a product that is rounded, u.
    pub fn times(self, factor: f64, contract: &Contract) -> Self {
        let value = self.value * factor;
        Self { value, floor: self.floor * factor.abs() + 2.0 * roundoff(contract) * value.abs() + TINY }
    }

    /// A sum of two, rounded once.
    pub fn plus(self, other: Self, contract: &Contract) -> Self {
        let value = self.value + other.value;
        Self { value, floor: self.floor + other.floor + roundoff(contract) * value.abs() + TINY }
    }

    /// Rounded to a coarser format. Where the floor reaches the middle between two of its values both are right, and near 0, where it reaches
    /// several, all of them: then it is the one that is `output`, if that is one.
    pub fn rounded(self, round: impl Fn(f64) -> f64, output: f64) -> Self {
        let reached = round(self.value - self.floor)..=round(self.value + self.floor);
        let value = if reached.contains(&output) && round(output) == output { output } else { round(self.value) };
        Self { value, floor: TINY }
    }
}
