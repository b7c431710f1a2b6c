//! RMS normalisation, and that to length 1.

use super::exact::Emulation;
use super::rounding::{TINY, division, inner, roundoff, ulp};
use super::sum::{Terms, confidence};
use super::{Bounded, ByRow, Formula, Values, as_given, by_row};
use crate::backend::Contract;
use crate::backend::oracle::dequant;
use crate::error::Result;
use crate::op::{HostTensor, Op, Weight};

/// What the centred values are multiplied by, m being the sum of squares over the divisor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// 1/√(m + eps).
    InverseRoot,
    /// 1/(√m + eps).
    EpsOutside,
    /// 1/max(√m, eps).
    AtLeastEps,
    /// 1.
    One,
}

/// x·w/√(Σx²/divisor + eps) over groups of n. The sum's relative error is halved by the root, as are those of the division by n and of
/// adding eps; then come the inverse root and two products:
/// |y|·(½·(bound(Σx²)/(Σx² + divisor·eps) + div + u) + rsqrt + 2u). Where the normalised value is rounded to a coarser format before it
/// meets the weight, half a step of that at the normalised value, times |w|. A norm to length 1 is the same with a divisor and a weight of 1. What
/// stays as it is after the groups is copied.
#[derive(Clone)]
pub(crate) struct Norm<'a> {
    pub x: Values<'a>,
    /// Values in a group: a whole row, or one head.
    pub n: usize,
    pub eps: f64,
    /// Values in a row: of one group, or where the last ones stay as they are of all groups and these.
    pub cols: usize,
    /// How many of a row's last values stay as they are: their floor is 0.
    pub keep: usize,
    /// `[n]`, or shorter and repeated, or of the whole row where n is a part of it.
    pub weight: Vec<f64>,
    /// What the sum of squares is divided by; stated, n.
    pub divisor: f64,
    /// How often each of a group's values counts in the sum of squares; stated, each once.
    pub times: Option<Vec<f64>>,
    pub scale: Scale,
    /// Subtract the mean first; stated, no. The mean is a sum as well, and its error moves every element; one subtraction.
    pub centred: bool,
}

/// A norm's weight. `[n]`
///
/// # Errors
/// If its type is unreadable.
pub(crate) fn values(weight: &Weight) -> Result<Vec<f64>> {
    let mut w = vec![0.0; weight.cols];
    dequant::row(weight.ty, weight.row(0, 0), &mut w)?;
    Ok(w)
}

/// `width` columns of each row of `cols`, from `first` on.
pub(crate) fn columns(x: &[f64], cols: usize, first: usize, width: usize) -> Values<'_> {
    if width == cols {
        return as_given(x);
    }
    x.chunks_exact(cols).flat_map(|row| &row[first..][..width]).copied().collect::<Vec<f64>>().into()
}

impl<'a> Formula<'a> for Norm<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let mut kept = None;
        let (x, n, eps, weight, divisor) = match *op {
            Op::RmsNorm { x: all, weight, eps, keep } => {
                kept = (keep > 0).then_some((all.cols(), keep));
                (as_given(&x[0]), weight.cols, eps, values(weight)?, weight.cols as f64)
            }
            Op::L2Norm { x: all, first, heads, head_dim, eps } => {
                (columns(&x[0], all.cols(), first, heads * head_dim), head_dim, eps, vec![1.0], 1.0)
            }
            _ => return Ok(None),
        };
        let (eps, scale) = (eps as f64, Scale::InverseRoot);
        let (cols, keep) = kept.unwrap_or((n, 0));
        Ok(Some(Self { x, n, eps, cols, keep, weight, divisor, times: None, scale, centred: false }))
    }
    fn emulate(&mut self, how: &Emulation) {
        if let Some(format) = how.weights {
            self.weight = format.rounded(&self.weight);
        }
    }
    by_row!();
}

impl Norm<'_> {
    /// Normalises over groups of another number of values.
    pub fn over(&mut self, n: usize) {
        (self.n, self.divisor, self.times) = (n, n as f64, None);
        if self.keep == 0 {
            self.cols = n;
        }
    }

    /// Where the group begins that an element is of; `None` of those that stay as they are.
    pub fn group_of(&self, i: usize) -> Option<usize> {
        let (row, column) = (i / self.cols, i % self.cols);
        (column + self.keep < self.cols).then(|| row * self.cols + column / self.n * self.n)
    }

    /// Groups in a row.
    fn groups(&self) -> usize {
        (self.cols - self.keep) / self.n.max(1)
    }
}

impl ByRow for Norm<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.x.len() / self.cols.max(1), self.cols]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let mut all = Vec::with_capacity(columns.len());
        let last = self.groups() - 1;
        for together in columns.chunk_by(|a, b| (a / self.n).min(last) == (b / self.n).min(last)) {
            let group = (together[0] / self.n).min(last);
            all.extend(self.group(row, group, together, contracts));
        }
        Ok(all)
    }
}

impl Norm<'_> {
    /// The elements at `columns` of a row that are of one of its groups, or of the last and what follows it.
    fn group<const N: usize>(
        &self,
        row: usize,
        group: usize,
        columns: &[usize],
        contracts: [&Contract; N],
    ) -> Vec<Bounded<N>> {
        let row_x = &self.x[row * self.cols..][..self.cols];
        let x = &row_x[group * self.n..][..self.n];
        let lambda = confidence(self.shape()[0] * self.groups());
        let mean = if self.centred { x.iter().sum::<f64>() / x.len() as f64 } else { 0.0 };
        let times = |i: usize| self.times.as_ref().map_or(1.0, |times| times[i]);
        let terms = Terms::one_sign(x.iter().enumerate().map(|(i, x)| times(i) * (x - mean) * (x - mean)));
        let square = terms.absolute / self.divisor;
        let (scale, inside) = match self.scale {
            Scale::InverseRoot => (1.0 / (square + self.eps).sqrt(), self.eps),
            Scale::EpsOutside => (1.0 / (square.sqrt() + self.eps), 0.0),
            Scale::AtLeastEps => (1.0 / square.sqrt().max(self.eps), 0.0),
            Scale::One => (1.0, 0.0),
        };
        let relative = contracts.map(|c| {
            let u = roundoff(c);
            let sum =
                (terms.bound_under_root(c, lambda) + self.n as f64 * TINY) / (terms.absolute + self.divisor * inside);
            match self.scale {
                Scale::One => u,
                _ if sum == f64::INFINITY => sum,
                _ => 0.5 * (sum + division(c) + u) + c.rsqrt_ulp * ulp(c) + 2.0 * u,
            }
        });
        // What is subtracted is off by so much.
        let shift = contracts.map(|c| {
            let sum = || Terms::one_sign(x.iter().map(|x| x.abs())).bound(c, lambda) / x.len() as f64;
            if self.centred { sum() } else { 0.0 }
        });
        let element = |i: &usize| {
            if *i >= self.cols - self.keep {
                return (row_x[*i], [0.0; N]);
            }
            let within = i - group * self.n;
            let w = self.weight[((row * self.groups() + group) * self.n + within) % self.weight.len()];
            let y = (x[within] - mean) * scale * w;
            let inside = |n: usize| inner((x[within] - mean) * scale, contracts[n]) * w.abs();
            let floor = |n: usize| match relative[n] {
                f64::INFINITY => f64::INFINITY, // of 0, too
                relative => relative * y.abs() + (shift[n] * scale * w).abs() + TINY + inside(n),
            };
            (y, std::array::from_fn(floor))
        };
        columns.iter().map(element).collect()
    }
}
