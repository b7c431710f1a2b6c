//! The rotary embedding.

use super::rounding::{TINY, TO_F32, roundoff};
use super::{Bounded, ByRow, Formula, Values, as_given, by_row};
use crate::backend::{Contract, Precision};
use crate::error::Result;
use crate::op::{HostTensor, Op};

/// Which dimensions of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pairing {
    /// i with i + D/2: ggml's NEOX.
    Halves,
    /// 2i with 2i + 1: ggml's NORM.
    Neighbours,
}

/// a·cos φ − b·sin φ and b·cos φ + a·sin φ for each pair (a, b) of a head's dimensions, φ = (first + step·t)·base^(−2(i + shift)/width).
/// cos and sin of the f64 angle are rounded to f32: (|a·cos| + |b·sin|)·(2⁻²⁴ + u) + u·|y|.
/// An angle taken in f32 is off by up to position·2⁻²⁴, which is no rounding of this stage: its contract would have to say so.
#[derive(Clone)]
pub(crate) struct Rope<'a> {
    /// [T, heads·D]
    pub x: Values<'a>,
    pub cols: usize,
    pub head_dim: usize,
    pub pairing: Pairing,
    /// How many of the heads turn, from the first; stated, all.
    pub heads: usize,
    /// The position of the call's first row, and from one row to the next; stated, the call's first and 1.
    pub first: f64,
    pub step: f64,
    pub base: f64,
    /// What a pair's number is divided by in the exponent, and what is added to it; stated, D and 0.
    pub width: f64,
    pub shift: f64,
}

impl<'a> Formula<'a> for Rope<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, values: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let Op::Rope { x, start, head_dim, base } = *op else { return Ok(None) };
        Ok(Some(Self {
            x: as_given(&values[0]),
            cols: x.cols(),
            head_dim,
            pairing: Pairing::Halves,
            heads: x.cols() / head_dim,
            first: start as f64,
            step: 1.0,
            base,
            width: head_dim as f64,
            shift: 0.0,
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
        let (position, half) = (self.first + self.step * row as f64, self.head_dim / 2);
        let turn = |pair: usize| (position * self.base.powf(-2.0 * (pair as f64 + self.shift) / self.width)).sin_cos();
        let mut turns: Vec<Option<(f64, f64)>> = vec![None; half];
        let u = contracts.map(roundoff);
        // What each product is off by: the table, and the product itself.
        let product =
            contracts.map(|c| roundoff(c) + if c.accumulator == Precision::F64 { roundoff(c) } else { TO_F32 });
        let element = |i: &usize| {
            let (head, within) = (i / self.head_dim, i % self.head_dim);
            let (pair, first) = match self.pairing {
                Pairing::Halves => (within % half, within < half),
                Pairing::Neighbours => (within / 2, within % 2 == 0),
            };
            let partner = match (self.pairing, first) {
                (Pairing::Halves, true) => i + half,
                (Pairing::Halves, false) => i - half,
                (Pairing::Neighbours, _) => i ^ 1,
            };
            let (sin, cos) =
                if head < self.heads { *turns[pair].get_or_insert_with(|| turn(pair)) } else { (0.0, 1.0) };
            let (a, b) = (x[*i] * cos, x[partner] * sin);
            let y = if first { a - b } else { a + b };
            let floor = |n: usize| (a.abs() + b.abs()) * product[n] + u[n] * y.abs() + 2.0 * TINY;
            (y, std::array::from_fn(floor))
        };
        Ok(columns.iter().map(element).collect())
    }
}
