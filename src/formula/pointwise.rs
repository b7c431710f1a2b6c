//! The residual sum and the gated activation.

use super::exact::Emulation;
use super::rounding::{TINY, division, exp_error, in_f64, inner, looked_up, roundoff};
use super::{Bounded, ByRow, Formula, Values, as_given, by_row};
use crate::backend::Contract;
use crate::error::Result;
use crate::op::{CLAMPED_ALPHA, CLAMPED_LIMIT, Data, GateActivation, HostTensor, Op, Weight};

/// Σ factor·value of two operands, of which a bias is one, repeated for each row, or of experts, that of the row's. One rounding of the sum, u·|y|; and one of each operand that comes in float64, on its way into a side
/// that computes in less: (1 + u)·u·|factor·value|.
pub(crate) struct Sum<'a> {
    pub operands: [Values<'a>; 2],
    /// Stated, 1 and 1. An operand of factor 0 is not read.
    pub factors: [f64; 2],
    /// Which operands come in float64.
    pub wide: [bool; 2],
    pub cols: usize,
    /// Of biases, which are the rows of the second operand: the one that each row of the first has; stated, the only one, or the expert's.
    /// `None`: the second operand has the shape of the first.
    pub rows: Option<Vec<usize>>,
}

impl<'a> Formula<'a> for Sum<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let is_wide = |t: &HostTensor| matches!(t.data, Data::F64(_));
        let biases = |weight: &Weight| -> Values<'a> { weight.f32s().map(f64::from).collect::<Vec<f64>>().into() };
        let (operands, wide, rows) = match *op {
            Op::Add { a, b } => ([0, 1].map(|n| as_given(&x[n])), [a, b].map(is_wide), None),
            Op::Bias { x: a, weight } => {
                let rows = vec![0; a.len() / weight.cols.max(1)];
                ([as_given(&x[0]), biases(weight)], [is_wide(a), false], Some(rows))
            }
            Op::ExpertBias { x: a, ids, weight } => {
                let rows = ids.ids().iter().map(|id| *id as usize).collect();
                ([as_given(&x[0]), biases(weight)], [is_wide(a), false], Some(rows))
            }
            _ => return Ok(None),
        };
        let cols = op.inputs()[0].cols();
        Ok(Some(Self { operands, factors: [1.0; 2], wide, cols, rows }))
    }
    fn emulate(&mut self, how: &Emulation) {
        if self.rows.is_some() {
            how.round_weight(self.operands[1].to_mut());
        }
    }
    by_row!();
}

impl ByRow for Sum<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.operands[0].len() / self.cols.max(1), self.cols]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let rounding = contracts.map(|c| {
            let u = roundoff(c);
            (u, if in_f64(c) { 0.0 } else { (1.0 + u) * u })
        });
        let element = |column: &usize| {
            let term = |n: usize| match self.factors[n] {
                0.0 => 0.0,
                factor => {
                    let row = self.rows.as_ref().filter(|_| n == 1).map_or(row, |rows| rows[row]);
                    factor * self.operands[n][row * self.cols + column]
                }
            };
            let [a, b] = [0, 1].map(term);
            let incoming: f64 = [a, b].iter().zip(self.wide).map(|(x, wide)| if wide { x.abs() } else { 0.0 }).sum();
            let y = a + b;
            (y, rounding.map(|(u, on_the_way)| u * y.abs() + on_the_way * incoming + TINY))
        };
        Ok(columns.iter().map(element).collect())
    }
}

/// What is done to the gate; an operation has [`Activation::Silu`], [`Activation::Sigmoid`], [`Activation::GeluByTanh`] or [`Activation::Swish`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    /// g·σ(g).
    Silu,
    Sigmoid,
    Tanh,
    GeluByTanh,
    GeluByErf,
    /// g·σ(α·g); of α = 1.702, gelu by sigmoid.
    Swish(f64),
    Relu,
    ReluSquared,
    /// g.
    Identity,
    /// 1.
    One,
}

impl From<GateActivation> for Activation {
    fn from(stated: GateActivation) -> Self {
        match stated {
            GateActivation::Silu => Self::Silu,
            GateActivation::GeluTanh => Self::GeluByTanh,
            GateActivation::Clamped => Self::Swish(CLAMPED_ALPHA),
            GateActivation::Sigmoid => Self::Sigmoid,
        }
    }
}

/// 2z of gelu by tanh, which is g·σ(2z).
fn twice_z(g: f64) -> f64 {
    use std::f64::consts::{FRAC_2_SQRT_PI, SQRT_2};
    2.0 * FRAC_2_SQRT_PI / SQRT_2 * (g + 0.044715 * g * g * g)
}

impl Activation {
    /// The value, and how much of exp's relative error comes through, in absolute terms. What tanh and erf are off by is
    /// bounded like an error of 1, which they are near.
    pub(super) fn of(self, g: f64) -> (f64, f64) {
        use std::f64::consts::SQRT_2;
        match self {
            Self::Silu => (g * sigmoid(g), g * sigmoid(g) * sigmoid(-g)),
            Self::Sigmoid => (sigmoid(g), sigmoid(g) * sigmoid(-g)),
            Self::Tanh => (g.tanh(), 1.0),
            Self::GeluByTanh => {
                let twice = twice_z(g);
                (g * sigmoid(twice), g * sigmoid(twice) * sigmoid(-twice))
            }
            Self::GeluByErf => (0.5 * g * (1.0 + erf(g / SQRT_2)), g),
            Self::Swish(alpha) => (g * sigmoid(alpha * g), g * sigmoid(alpha * g) * sigmoid(-alpha * g)),
            Self::Relu => (g.max(0.0), 0.0),
            Self::ReluSquared => (g.max(0.0) * g.max(0.0), 0.0),
            Self::Identity => (g, 0.0),
            Self::One => (1.0, 0.0),
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// erf by its series below 3 and its continued fraction above (Abramowitz and Stegun 7.1.5 and 7.1.14), to about 1e-15.
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 3.0 {
        let (mut term, mut total, mut n) = (z, z, 0.0);
        while term.abs() > 1e-17 * total.abs() && n < 200.0 {
            n += 1.0;
            term *= -z * z / n;
            total += term / (2.0 * n + 1.0);
        }
        total * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..60).rev().fold(z, |f, n| z + n as f64 / 2.0 / f);
        1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

/// activation(g)·u. With silu = g/(1 + e), e = exp(−g): |y|·(ρ·e/(1 + e) + div + 3u), ρ the relative error of e, u for 1 + e and 2u for
/// the two products of a kernel that multiplies by the sigmoid. Where exp overflows f32 the result is 0 instead of
/// |g·u|·exp(−|g|) < |g·u|·2⁻¹²⁶: + that. Where silu is rounded to a coarser format before it meets u, half a step of
/// that at silu, times |u|. gelu by tanh is g·σ(2z): an exponential of 2z, which itself is off by 8u of it; a kernel that takes ½g·(1 + tanh z)
/// loses 2u·|g| where tanh is near −1; one from a table is off by half a step of its format, of an argument that is rounded exactly. g·σ(α·g) has an exponential of α·g, which is off by 2u of it, of α and of the product.
/// Limits are exact; what is added to up is one rounding more. A sigmoid gate is σ(g)·up, or where a
/// row has one σ(g)·x, g repeated along it: the same without the factor g.
pub(crate) struct Gated<'a> {
    pub gate: Values<'a>,
    pub up: Values<'a>,
    pub cols: usize,
    pub activation: Activation,
    /// activation(g) + u for the product.
    pub added: bool,
    /// The least and the most that each is taken for: gate, then up. Stated, no limits, or those of the clamped activation.
    pub limits: [[f64; 2]; 2],
    /// What is added to up, after its limits.
    pub plus: f64,
}

/// No limits.
pub(crate) const UNLIMITED: [f64; 2] = [f64::NEG_INFINITY, f64::INFINITY];

impl<'a> Formula<'a> for Gated<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let (gate, up, cols, activation) = match *op {
            Op::SwiGlu { gate, activation, .. } => (as_given(&x[0]), as_given(&x[1]), gate.cols(), activation.into()),
            Op::SigmoidGate { x: gated, .. } => {
                let cols = gated.cols();
                let gates: Vec<f64> = x[1].iter().flat_map(|g| std::iter::repeat_n(*g, cols)).collect();
                (gates.into(), as_given(&x[0]), cols, Activation::Sigmoid)
            }
            _ => return Ok(None),
        };
        let (limits, plus) = match op {
            Op::SwiGlu { activation: GateActivation::Clamped, .. } => {
                ([[f64::NEG_INFINITY, CLAMPED_LIMIT], [-CLAMPED_LIMIT, CLAMPED_LIMIT]], 1.0)
            }
            _ => ([UNLIMITED; 2], 0.0),
        };
        Ok(Some(Self { gate, up, cols, activation, added: false, limits, plus }))
    }
    by_row!();
}

impl ByRow for Gated<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.gate.len() / self.cols.max(1), self.cols]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let rounded = contracts.map(|c| division(c) + 3.0 * roundoff(c));
        let element = |column: &usize| {
            let i = row * self.cols + column;
            // NaN is within no limits and stays.
            let within = |x: f64, [least, most]: [f64; 2]| match x {
                x if x < least => least,
                x if x > most => most,
                x => x,
            };
            let gate = within(self.gate[i], self.limits[0]);
            let up = self.plus + within(self.up[i], self.limits[1]);
            let (activation, through) = self.activation.of(gate);
            let (y, through) = match self.added {
                false => (activation * up, (through * up).abs()),
                true => (activation + up, activation.abs() + up.abs()),
            };
            let flushed = TINY * (1.0 + up.abs() + (gate * up).abs());
            let met = if self.added { 1.0 } else { up.abs() };
            let floor = |n: usize| {
                let mut inside = inner(activation, contracts[n]) * met;
                if self.activation == Activation::GeluByTanh {
                    inside += looked_up(gate, activation, contracts[n]) * met;
                }
                if let (Activation::Swish(alpha), true) = (self.activation, self.plus != 0.0) {
                    // Of a kernel that keeps each step: α·g, its sigmoid, 1 + up. What α·g is off by is no small number where it is large.
                    let of = |value: f64| inner(value, contracts[n]);
                    let off = of(alpha * gate);
                    let kept = of(sigmoid(alpha * gate)) * gate.abs() * met + of(up) * activation.abs();
                    inside = (inside + kept) * off.exp() + off.exp_m1() * through;
                }
                let exponential = match self.activation {
                    Activation::GeluByTanh => {
                        let (twice, u) = (twice_z(gate).abs(), roundoff(contracts[n]));
                        (exp_error(twice, contracts[n]) + 8.0 * u * twice) * through + 2.0 * u * (gate * met).abs()
                    }
                    Activation::Swish(alpha) => {
                        let (scaled, u) = ((alpha * gate).abs(), roundoff(contracts[n]));
                        (exp_error(scaled, contracts[n]) + 2.0 * u * scaled) * through
                    }
                    _ => exp_error(gate.abs(), contracts[n]) * through,
                };
                let sum = if self.plus == 0.0 { 0.0 } else { roundoff(contracts[n]) * y.abs() };
                exponential + rounded[n] * y.abs() + flushed + inside + sum
            };
            (y, std::array::from_fn(floor))
        };
        Ok(columns.iter().map(element).collect())
    }
}
