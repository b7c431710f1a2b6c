//! The embedding: a row of a table for each token.

use super::exact::Emulation;
use super::linear::{Decode, as_it_is};
use super::rounding::{TINY, TO_F32, roundoff};
use super::{Bounded, ByRow, Formula, by_row};
use crate::backend::Contract;
use crate::error::Result;
use crate::op::{HostTensor, Op};

/// w = product − offset of one row for each token. The oracle rounds the difference to f32 once, 2⁻²⁴, the side once, u: (2⁻²⁴ + u)·|w|.
/// Rows without an offset are exact. A scale that is not 1 is rounded to f32, and so is the product.
pub(crate) struct Embedding<'a> {
    /// The table's row, by token.
    pub rows: Vec<usize>,
    pub cols: usize,
    pub decode: Decode<'a>,
    /// What the row is multiplied by.
    pub scale: f64,
}

impl<'a> Formula<'a> for Embedding<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, _: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let Op::Embed { table, tokens, scale } = *op else { return Ok(None) };
        let rows = tokens.iter().map(|token| *token as usize).collect();
        Ok(Some(Self { rows, cols: table.cols, decode: as_it_is(table), scale }))
    }
    fn emulate(&mut self, how: &Emulation) {
        how.round(&mut self.decode);
        if let Some(format) = how.scale {
            self.scale = (format.round)(self.scale);
        }
    }
    by_row!();
}

impl ByRow for Embedding<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.rows.len(), self.cols]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let (mut product, mut offset) = (vec![0.0; self.cols], vec![0.0; self.cols]);
        (self.decode)(0, self.rows[row], &mut product, &mut offset)?;
        let has_offset = offset.iter().any(|o| *o != 0.0);
        let scaled = self.scale != 1.0;
        let relative = contracts.map(|c| {
            let times = |yes: bool| if yes { roundoff(c) + TO_F32 } else { 0.0 };
            times(has_offset) + times(scaled)
        });
        let element = |i: &usize| {
            let w = (product[*i] - offset[*i]) as f32 as f64 * self.scale;
            (w, relative.map(|r| r * w.abs() + TINY))
        };
        Ok(columns.iter().map(element).collect())
    }
}
