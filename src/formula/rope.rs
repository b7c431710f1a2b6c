//! The rotary embedding.

use super::precision::unit;
use super::rounding::{TINY, TO_F32, exp_error, in_f64, inner, roundoff};
use super::{Bounded, ByRow, Formula, Values, as_given, by_row};
use crate::backend::{Contract, Precision};
use crate::error::Result;
use crate::op::{HostTensor, Op, Pairing, Yarn};

/// a·cos φ − b·sin φ and b·cos φ + a·sin φ for each pair (a, b) of a head's dimensions that turn,
/// φ = position·scale·base^(−2(i + shift)/width) / factors\[i\].
/// cos and sin of the f64 angle are rounded to f32: (|a·cos| + |b·sin|)·(2⁻²⁴ + u) + u·|y|.
/// A sine and cosine that the contract bounds apart are each off by `trig_ulp`·2⁻²³ more. In double a sine or cosine is off by
/// an ULP, as libraries have it, where in f32 the rounding hides that. Where cos, sin and the two products are rounded to
/// a coarser format, half a step of it at each, that of cos times |a| and that of sin times |b|.
///
/// An angle that is taken in a coarser format than double is off by Δ, and the result by Δ·|y'| + ½Δ²·(|a| + |b|), y' being the pair's other
/// element, which is the derivative. In f32, u = 2⁻²⁴: ggml multiplies θ by θ_scale from pair to pair, so that pair i has i roundings of
/// the product, and i times that of θ_scale, a power good to an ULP; PyTorch takes a power, an inverse and a product. Both are within
/// Δ ≤ |φ|·((2i + 4)·u + ρ), and one more u for a scale and one for factors, ρ the contract's bound on exp at ln(base)·2i/D for a power that is made of it. In a coarser format three
/// of its units more: of the frequency, of the position and of their product. Under YaRN the ramp, made of a quotient and a difference, is
/// off by 4u, and the angle by as much of the angle without scaling; cos and sin come with the magnitude, which is rounded, and so is the product.
#[derive(Clone)]
pub(crate) struct Rope<'a> {
    /// [T, heads·D]
    pub x: Values<'a>,
    pub cols: usize,
    pub head_dim: usize,
    /// How many of a head's dimensions turn, R, from which on, and how far apart the two of a NEOX pair are; stated, as many as the operation has,
    /// the operation's first, and R/2. The others are copied.
    pub turned: usize,
    pub from: usize,
    pub apart: usize,
    pub pairing: Pairing,
    /// How many of the heads turn, from the first; stated, all.
    pub heads: usize,
    /// The position of each row; stated, the call's first and those that follow.
    pub positions: Vec<f64>,
    pub base: f64,
    /// What a pair's number is divided by in the exponent, and what is added to it; stated, R and 0.
    pub width: f64,
    pub shift: f64,
    /// What every angle is multiplied by.
    pub scale: f64,
    /// What the frequency of each pair is divided by; none: 1.
    pub factors: Option<Vec<f64>>,
    pub yarn: Option<Yarn>,
    /// How the angles are rounded on the way; stated, not at all.
    pub angles: Angles,
}

/// Roundings of an angle, in the order in which they are made.
#[derive(Clone, Copy)]
pub(crate) struct Angles {
    pub frequency: fn(f64) -> f64,
    /// The frequency is the inverse of a rounded power.
    pub inverse: bool,
    /// The angle of a pair is that of the pair before times one number, in f32, as ggml makes it.
    pub chained: bool,
    pub position: fn(f64) -> f64,
    /// The product of the two.
    pub angle: fn(f64) -> f64,
    /// Its cosine and its sine.
    pub trig: fn(f64) -> f64,
}

impl Angles {
    /// In float64.
    pub const EXACT: Self =
        Self { frequency: |x| x, inverse: false, chained: false, position: |x| x, angle: |x| x, trig: |x| x };
}

impl Rope<'_> {
    /// The pair that a head's dimension is in, and whether it is the first of the two; `None`: it does not turn.
    fn pair_of(&self, dimension: usize) -> Option<(usize, bool)> {
        let (within, half) = (dimension.checked_sub(self.from)?, self.turned / 2);
        match self.pairing {
            Pairing::Neox if within < half => Some((within, true)),
            Pairing::Neox => within.checked_sub(self.apart).filter(|pair| *pair < half).map(|pair| (pair, false)),
            Pairing::Norm => (within < self.turned).then_some((within / 2, within % 2 == 0)),
        }
    }

    /// What a pair's frequency is divided by.
    fn factor(&self, pair: usize) -> f64 {
        self.factors.as_ref().map_or(1.0, |f| f[pair])
    }

    /// What a pair's angle is multiplied by.
    fn stretched(&self, pair: usize) -> f64 {
        let Some(yarn) = self.yarn else { return self.scale };
        let kept = yarn.kept(self.turned, self.base).nth(pair).unwrap_or(0.0);
        1.0 - (1.0 - self.scale) * (1.0 - kept)
    }

    /// What cosine and sine are multiplied by.
    fn magnitude(&self) -> f64 {
        self.yarn.map_or(1.0, |yarn| yarn.magnitude)
    }

    /// Sine and cosine of a pair at a position, times the magnitude.
    fn turn(&self, pair: usize, position: f64) -> (f64, f64) {
        let Angles { frequency, inverse, chained, angle, trig, .. } = self.angles;
        let position = (self.angles.position)(position) * self.stretched(pair);
        let power = 2.0 * (pair as f64 + self.shift) / self.width;
        let factor = self.factor(pair);
        let turned = if chained {
            let scale = self.base.powf(-2.0 / self.width) as f32;
            (0..pair).fold(position as f32, |theta, _| theta * scale) as f64 / factor
        } else if inverse {
            angle(position * (frequency(1.0 / frequency(self.base.powf(power))) / factor))
        } else {
            angle(position * (frequency(self.base.powf(-power)) / factor))
        };
        let (sin, cos) = turned.sin_cos();
        (trig(sin * self.magnitude()), trig(cos * self.magnitude()))
    }
}

impl<'a> Formula<'a> for Rope<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, values: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let Op::Rope { x, start, head_dim, rotation } = *op else { return Ok(None) };
        let turned = rotation.turned(head_dim);
        Ok(Some(Self {
            x: as_given(&values[0]),
            cols: x.cols(),
            head_dim,
            turned,
            from: rotation.first,
            apart: turned / 2,
            pairing: rotation.pairing,
            heads: x.cols() / head_dim,
            positions: (0..x.shape[0]).map(|row| (start + row) as f64).collect(),
            base: rotation.base,
            width: turned as f64,
            shift: 0.0,
            scale: rotation.scale,
            factors: rotation.factors.map(|w| w.f32s().map(f64::from).collect()),
            yarn: rotation.yarn,
            angles: Angles::EXACT,
        }))
    }
    by_row!();
}

impl ByRow for Rope<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.x.len() / self.cols.max(1), self.cols]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let x = &self.x[row * self.cols..][..self.cols];
        let (position, half) = (self.positions[row], self.turned / 2);
        let mut turns: Vec<Option<(f64, f64)>> = vec![None; half];
        let u = contracts.map(roundoff);
        // What each product is off by: the table, and the product itself.
        // A magnitude in f32 is rounded, and its product.
        let scaled = if self.yarn.is_some() { 3.0 } else { 1.0 };
        let product = contracts.map(|c| roundoff(c) + scaled * if in_f64(c) { 2.0 * roundoff(c) } else { TO_F32 });
        let magnitude = self.magnitude().abs();
        let trig = contracts.map(|c| c.trig_ulp * f32::EPSILON as f64 * magnitude);
        // Beside the judge's angles those in double are exact, but where all is in double.
        let apart = contracts.map(|c| c.angles != Precision::F64 || in_f64(c));
        // A scaling is a product more, factors are a quotient more.
        let more = f64::from(u8::from(self.scale != 1.0) + u8::from(self.factors.is_some()));
        let angle = |pair: usize, c: &Contract| {
            let exponent = 2.0 * (pair as f64 + self.shift) / self.width * self.base.ln();
            let u = if c.angles == Precision::F64 { roundoff(c) } else { TO_F32 };
            let steps = (2.0 * pair as f64 + 4.0 + more) * u + exp_error(exponent.abs(), c) + 3.0 * unit(c.angles);
            let plain = (position * (-exponent).exp() / self.factor(pair)).abs();
            // YaRN mixes two frequencies by a ramp.
            let mixed = if self.yarn.is_some() { 4.0 * u } else { 0.0 };
            plain * (self.stretched(pair).abs() * (steps + mixed) + mixed)
        };
        let element = |i: &usize| {
            let (head, within) = (i / self.head_dim, i % self.head_dim);
            let Some((pair, first)) = self.pair_of(within) else { return (x[*i], [TINY; N]) };
            let partner = match (self.pairing, first) {
                (Pairing::Neox, true) => i + self.apart,
                (Pairing::Neox, false) => i - self.apart,
                (Pairing::Norm, true) => i + 1,
                (Pairing::Norm, false) => i - 1,
            };
            let (sin, cos) = if head < self.heads {
                *turns[pair].get_or_insert_with(|| self.turn(pair, position))
            } else {
                (0.0, 1.0)
            };
            let (a, b) = (x[*i] * cos, x[partner] * sin);
            let y = if first { a - b } else { a + b };
            let sizes = x[*i].abs() + x[partner].abs();
            let inside = |n: usize| {
                let of = |value: f64| inner(value, contracts[n]);
                of(a) + of(b) + x[*i].abs() * of(cos) + x[partner].abs() * of(sin)
            };
            let floor = |n: usize| {
                let turned = if apart[n] && head < self.heads {
                    let off = angle(pair, contracts[n]);
                    let other = x[*i].abs() * sin.abs() + x[partner].abs() * cos.abs();
                    off * other + 0.5 * off * off * sizes * magnitude
                } else {
                    0.0
                };
                (a.abs() + b.abs()) * product[n] + u[n] * y.abs() + 2.0 * TINY + turned + trig[n] * sizes + inside(n)
            };
            (y, std::array::from_fn(floor))
        };
        Ok(columns.iter().map(element).collect())
    }
}
