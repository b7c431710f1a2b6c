//! What linear attention does to a layer's projections before its state: the convolution, and the logarithm of the decay. Queries' and keys'
//! L2 norm is `norm`'s formula, the delta rule has `delta`.

use super::exact::Emulation;
use super::norm::values;
use super::pointwise::Activation;
use super::rounding::{TINY, division, exp_error, inner, ln_error, roundoff};
use super::sum::{Terms, confidence};
use super::{Bounded, ByRow, Formula, Values, as_given, by_row};
use crate::backend::oracle::dequant;
use crate::backend::{Contract, KeptWeight};
use crate::error::Result;
use crate::op::{HostTensor, Op, Weight};

/// activation(Σ_j w[c, j]·x[t + j − L + 1, c]). The sum's bound b goes through silu with its slope, |silu′|·b + ¼·b², as |silu″| ≤ ½; then come
/// silu's own roundings, which are those of [`Gated`](super::pointwise::Gated) without up. What else than silu a mistake may have there has a slope of at most 1.2.
pub(crate) struct Convolution<'a> {
    /// The rows of every position so far, those of earlier calls from the cache. [S, C]
    pub x: Values<'a>,
    /// [C, L]
    pub w: Vec<f64>,
    /// L.
    pub kernel: usize,
    pub channels: usize,
    /// The position of the call's first row.
    pub start: usize,
    /// The row of `x` that is read for a position; `None` reads zeros. Stated, its own.
    pub row: Vec<Option<usize>>,
    /// How many positions later than stated each is read.
    pub later: isize,
    /// Stated, [`Activation::Silu`].
    pub activation: Activation,
}

/// A weight of as many rows as there are channels. [C, L]
///
/// # Errors
/// If its type is unreadable.
pub(crate) fn taps(weight: &Weight) -> Result<Vec<f64>> {
    let mut w = vec![0.0; weight.rows * weight.cols];
    for (channel, row) in w.chunks_exact_mut(weight.cols.max(1)).enumerate() {
        dequant::row(weight.ty, weight.row(0, channel), row)?;
    }
    Ok(w)
}

impl<'a> Formula<'a> for Convolution<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let Op::Conv { x: own, weight, start, .. } = *op else { return Ok(None) };
        let (channels, kernel) = (weight.rows, weight.cols);
        let row = (0..start + own.shape[0]).map(Some).collect();
        let x = match start {
            0 => as_given(&x[0]),
            _ => [&x[1][..start * channels], &x[0]].concat().into(),
        };
        let activation = Activation::Silu;
        Ok(Some(Self { x, w: taps(weight)?, kernel, channels, start, row, later: 0, activation }))
    }
    fn emulate(&mut self, how: &Emulation) {
        how.round_weight(&mut self.w);
    }
    by_row!();
}

impl ByRow for Convolution<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.row.len() - self.start, self.channels]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let lambda = confidence(self.len());
        let rows: Vec<Option<usize>> = (0..self.kernel)
            .map(|j| {
                let position = (self.start + row + j + 1) as isize + self.later - self.kernel as isize;
                usize::try_from(position).ok().and_then(|position| *self.row.get(position)?)
            })
            .collect();
        let mut x = vec![0.0; self.kernel];
        let element = |c: &usize| {
            for (x, row) in x.iter_mut().zip(&rows) {
                *x = row.map_or(0.0, |row| self.x[row * self.channels + c]);
            }
            let terms = Terms::dot(&self.w[c * self.kernel..][..self.kernel], &x);
            let (y, through) = self.activation.of(terms.sum);
            let flushed = TINY * (self.kernel as f64 + 2.0 + terms.sum.abs());
            let floor = |c: &Contract| {
                let sum = terms.bound(c, lambda) + inner(terms.sum, c);
                let carried = match self.activation {
                    Activation::Silu => silu_slope(terms.sum).abs() * sum + 0.25 * sum * sum,
                    _ => 1.2 * sum,
                };
                let own = exp_error(terms.sum.abs(), c) * through.abs() + (division(c) + 3.0 * roundoff(c)) * y.abs();
                carried + own + flushed
            };
            (y, contracts.map(floor))
        };
        Ok(columns.iter().map(element).collect())
    }
}

/// The derivative of x·σ(x), σ·(1 + x·(1 − σ)).
fn silu_slope(x: f64) -> f64 {
    let (up, down) = (1.0 / (1.0 + (-x).exp()), 1.0 / (1.0 + x.exp()));
    if x.is_finite() { up * (1.0 + x * down) } else { 1.0 }
}

/// What a decay's logarithm grows with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Growth {
    /// ln(1 + eˣ).
    Softplus,
    /// eˣ.
    Exp,
    /// max(x, 0).
    Relu,
    /// σ(x), which is softplus's derivative.
    Sigmoid,
    /// x.
    Itself,
}

impl Growth {
    fn of(self, x: f64) -> f64 {
        match self {
            // ln(1 + eˣ) = max(x, 0) + ln(1 + e^−|x|)
            Self::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Self::Exp => x.exp(),
            Self::Relu => x.max(0.0),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Itself => x,
        }
    }
}

/// w·softplus(x), w one for each column. softplus = ln(1 + e), e = eˣ, of a kernel that takes it as it is written: e's relative error comes
/// through as σ(x) times itself; 1 + e is rounded, which is u of the logarithm in absolute terms, however small that is; the logarithm has its
/// own error; and what adds max(x, 0) to ln(1 + e^−|x|) rounds once more. Then the product with the weight. A kernel that has ln_1p, or leaves
/// the logarithm out where x is large, is within that.
pub(crate) struct Decay<'a> {
    /// [T, N]
    pub x: Values<'a>,
    /// `[N]`
    pub w: Vec<f64>,
    /// Stated, [`Growth::Softplus`].
    pub growth: Growth,
    /// The exponential of that; stated, no.
    pub exponential: bool,
}

impl<'a> Formula<'a> for Decay<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let Op::Decay { weight, .. } = *op else { return Ok(None) };
        Ok(Some(Self { x: as_given(&x[0]), w: values(weight)?, growth: Growth::Softplus, exponential: false }))
    }
    fn emulate(&mut self, how: &Emulation) {
        how.round_weight(&mut self.w);
    }
    by_row!();
}

impl ByRow for Decay<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.x.len() / self.w.len().max(1), self.w.len()]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let element = |n: &usize| {
            let (x, w) = (self.x[row * self.w.len() + n], self.w[*n]);
            let growth = self.growth.of(x);
            let y = w * growth;
            let floor = |c: &Contract| {
                let (exp, u) = (exp_error(x.abs(), c), roundoff(c));
                let off = match self.growth {
                    Growth::Softplus => {
                        let sigmoid = 1.0 / (1.0 + (-x).exp());
                        sigmoid * exp + u + ln_error(growth, c) + u * growth
                    }
                    Growth::Exp => exp * growth,
                    Growth::Sigmoid => (exp + division(c) + u) * growth,
                    Growth::Relu | Growth::Itself => 0.0,
                };
                // A weight that is the exponential of what is kept has that one's error.
                let made = if c.kept == KeptWeight::Logarithm { exp_error(w.abs().ln().abs(), c) } else { 0.0 };
                w.abs() * off + (u + made) * y.abs() + TINY * (1.0 + w.abs())
            };
            if self.exponential {
                let kept = y.exp();
                return (kept, contracts.map(|c| (floor(c) + exp_error(y.abs(), c)) * kept + TINY));
            }
            (y, contracts.map(floor))
        };
        Ok(columns.iter().map(element).collect())
    }
}
