//! What each stage computes and how much its arithmetic may round: one formula a stage, with its parameters open.
//!
//! Design:
//! - **A formula is a struct**: operands as float64 slices, and parameters as data where they can be (numbers, enums, index maps).
//!   `Formula::stated` fills it in as an operation says. Its floor is the floor that verdicts are made with
//!   ([`floor::floors_of`]); a hypothesis of `diff::explain` is the same struct with a parameter changed; a [`Contract`] says how
//!   a side computes it.
//! - **A value and its floor come from one place**, so that no two derivations can come apart. `tests/parity.rs` holds the values
//!   to the oracle's over the whole table of operations.
//! - **Operands that a contract rounds are rounded** ([`exact`]) before the formula, and the oracle, see them; a floor bounds what is
//!   left: the arithmetic, codes that could be either, and results that are rounded to be stored.
//! - **Evaluated where it is asked**: at a few dozen elements, or at all of them under several contracts in one pass over the
//!   weights.
//! - Apart from the oracle, which judges: only its reading of quantized weights is used here.
//!
//! [`sum`] bounds sums, `rounding` what else rounds; `linear`, `embed`, `norm`, `rope`, `attention`, `softmax`, `linear_attention`, `delta`,
//! `pointwise` and `routing` are the formulas.

pub(crate) mod attention;
pub(crate) mod delta;
pub(crate) mod embed;
pub mod exact;
pub mod floor;
pub(crate) mod linear;
pub(crate) mod linear_attention;
pub(crate) mod norm;
pub(crate) mod point;
pub(crate) mod pointwise;
pub(crate) mod precision;
pub(crate) mod rope;
pub(crate) mod rounding;
pub(crate) mod routing;
pub(crate) mod softmax;
pub mod sum;
pub mod worst;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use rayon::prelude::*;

use crate::backend::Contract;
use crate::error::Result;
use crate::op::{HostTensor, Op};

pub(crate) use point::Point;
use rounding::stored;

/// An operand's values, or others in their place.
pub(crate) type Values<'a> = Cow<'a, [f64]>;

/// An operand that is used as it is.
pub(crate) fn as_given(values: &[f64]) -> Values<'_> {
    Cow::Borrowed(values)
}

/// A value, and its floor under each of N contracts.
pub(crate) type Bounded<const N: usize> = (f64, [f64; N]);

/// A stage's formula over its operands.
pub(crate) trait Formula<'a>: Sized + Sync {
    /// As `op` says, on operands whose values are `x`, in the order of [`Op::inputs`]; `None` if `op` is another stage's. The
    /// operands belong together: the oracle, or whoever checks operands, has said so.
    ///
    /// # Errors
    /// If a weight that is read here is of an unreadable type.
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>>;

    /// Takes over what the rounding of operands, as a contract says, leaves open, and rounds the weight. The operands themselves come
    /// rounded. Nothing for formulas without a product.
    fn emulate(&mut self, _: &exact::Emulation) {}

    /// How many elements the result has.
    fn len(&self) -> usize;

    /// Calls `put` with the place in `indices`, which ascend, and the element; without `indices`, with the index of every element.
    /// In any order.
    ///
    /// # Errors
    /// If a weight cannot be read.
    fn evaluate<const N: usize>(
        &self,
        indices: Option<&[usize]>,
        contracts: [&Contract; N],
        put: &mut dyn FnMut(usize, Bounded<N>),
    ) -> Result<()>;

    /// Value and floor at each of `indices`, which ascend, as they are stored.
    ///
    /// # Errors
    /// As [`Formula::evaluate`].
    fn points(&self, indices: &[usize], contract: &Contract) -> Result<Vec<Point>> {
        let mut points = vec![Point::exactly(0.0); indices.len()];
        self.evaluate(Some(indices), [contract], &mut |at, (value, [floor])| {
            points[at] = Point::new(value, stored((value, floor), contract));
        })?;
        Ok(points)
    }

    /// The floor at each of `indices`, which ascend, under each contract, as it is stored.
    ///
    /// # Errors
    /// As [`Formula::evaluate`].
    fn floors_at<const N: usize>(&self, indices: &[usize], contracts: [&Contract; N]) -> Result<Vec<[f64; N]>> {
        let mut floors = vec![[0.0; N]; indices.len()];
        self.evaluate(Some(indices), contracts, &mut |at, (value, element)| {
            floors[at] = std::array::from_fn(|n| stored((value, element[n]), contracts[n]));
        })?;
        Ok(floors)
    }

    /// The floor of each element is at least this times its |value|; 0 where nothing is known.
    fn least_share(&self, _: &Contract) -> f64 {
        0.0
    }

    /// The floor at each of `indices`, which ascend, is at least this, for a fraction of its cost; `exact` are the values of all elements. `None` where
    /// nothing is known.
    ///
    /// # Errors
    /// As [`Formula::evaluate`].
    fn least_floors<const N: usize>(
        &self,
        _indices: &[usize],
        _exact: &[f64],
        _: [&Contract; N],
    ) -> Result<Option<Vec<[f64; N]>>> {
        Ok(None)
    }

    /// Calls `see` with the elements of each row of the result and the index of the first, rows in parallel; false, and does nothing, where the
    /// formula is not by rows.
    ///
    /// # Errors
    /// As [`Formula::evaluate`].
    fn each_row<const N: usize>(
        &self,
        _: [&Contract; N],
        _see: &(dyn Fn(usize, &[Bounded<N>]) + Sync),
    ) -> Result<bool> {
        Ok(false)
    }

    /// The floor of every element under each contract, as it is stored.
    ///
    /// # Errors
    /// As [`Formula::evaluate`].
    fn floors<const N: usize>(&self, contracts: [&Contract; N]) -> Result<[Vec<f64>; N]> {
        let mut floors = [(); N].map(|()| vec![0.0; self.len()]);
        self.evaluate(None, contracts, &mut |i, (value, element)| {
            let element = element.into_iter().zip(contracts);
            floors.iter_mut().zip(element).for_each(|(floors, (floor, c))| floors[i] = stored((value, floor), c))
        })?;
        Ok(floors)
    }
}

/// A formula whose elements share work by rows of its result.
pub(crate) trait ByRow {
    /// Rows, and elements in a row.
    fn shape(&self) -> [usize; 2];

    /// The elements at `columns` of a row.
    ///
    /// # Errors
    /// As [`Formula::evaluate`].
    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>>;
}

/// Elements that are made before they are handed out.
const BLOCK: usize = 1 << 18;

/// [`Formula::evaluate`] of a formula that is one by rows: parallel over rows, a block of them at a time.
fn evaluate_by_row<F: ByRow + Sync, const N: usize>(
    formula: &F,
    indices: Option<&[usize]>,
    contracts: [&Contract; N],
    put: &mut dyn FnMut(usize, Bounded<N>),
) -> Result<()> {
    let [rows, cols] = formula.shape();
    let mut at = 0;
    let mut hand_out = |elements: Vec<Vec<Bounded<N>>>| {
        for element in elements.into_iter().flatten() {
            put(at, element);
            at += 1;
        }
    };
    let Some(indices) = indices else {
        let columns: Vec<usize> = (0..cols).collect();
        let rows: Vec<usize> = (0..rows).collect();
        for block in rows.chunks((BLOCK / cols.max(1)).max(1)) {
            hand_out(in_parallel(block.len(), 1, &|i| formula.row(block[i], &columns, contracts))?);
        }
        return Ok(());
    };
    let groups: Vec<&[usize]> = indices.chunk_by(|a, b| a / cols == b / cols).collect();
    let row = |group: &[usize]| {
        let columns: Vec<usize> = group.iter().map(|i| i % cols).collect();
        formula.row(group[0] / cols, &columns, contracts)
    };
    hand_out(in_parallel(groups.len(), 16, &|i| row(groups[i]))?);
    Ok(())
}

/// `each` of 0 to `n`, in parallel, at least `together` by one thread. Not generic over what it calls: the code of a parallel loop is long, and
/// there are formulas times contracts of them.
fn in_parallel<T: Send>(
    n: usize,
    together: usize,
    each: &(dyn Fn(usize) -> Result<Vec<T>> + Sync),
) -> Result<Vec<Vec<T>>> {
    (0..n).into_par_iter().with_min_len(together).map(each).collect()
}

/// The methods of [`Formula`] that a formula by rows has from being one.
macro_rules! by_row {
    () => {
        fn len(&self) -> usize {
            let [rows, cols] = crate::formula::ByRow::shape(self);
            rows * cols
        }
        fn evaluate<const N: usize>(
            &self,
            indices: Option<&[usize]>,
            contracts: [&crate::backend::Contract; N],
            put: &mut dyn FnMut(usize, crate::formula::Bounded<N>),
        ) -> crate::error::Result<()> {
            crate::formula::evaluate_by_row(self, indices, contracts, put)
        }
        fn each_row<const N: usize>(
            &self,
            contracts: [&crate::backend::Contract; N],
            see: &(dyn Fn(usize, &[crate::formula::Bounded<N>]) + Sync),
        ) -> crate::error::Result<bool> {
            let [rows, cols] = crate::formula::ByRow::shape(self);
            let columns: Vec<usize> = (0..cols).collect();
            crate::formula::in_parallel(rows, 1, &|row| {
                see(row * cols, &crate::formula::ByRow::row(self, row, &columns, contracts)?);
                Ok(Vec::<()>::new())
            })?;
            Ok(true)
        }
    };
}
use by_row;

/// `$body` with the formula of an operation as it is stated, on operands whose values are `$x`; `None` of an operation that moves values.
macro_rules! first_of {
    ($op:expr, $x:expr, |$formula:ident| $body:expr) => {
        $crate::formula::first_of!(
            @ $op, $x, |$formula| $body,
            linear::Linear, embed::Embedding, norm::Norm, rope::Rope, attention::Scores, softmax::Softmax, attention::Context,
            linear_attention::Convolution, linear_attention::Decay, delta::Delta, pointwise::Sum, routing::ExpertWeights, pointwise::Gated,
            routing::Combined
        )
    };
    (@ $op:expr, $x:expr, |$formula:ident| $body:expr, $($file:ident::$of:ident),*) => {'found: {
        $(
            #[allow(unused_mut)]
            if let Some(mut $formula) = <$crate::formula::$file::$of<'_> as $crate::formula::Formula<'_>>::stated($op, $x)? {
                break 'found Some($body);
            }
        )*
        None
    }};
}
use first_of;
