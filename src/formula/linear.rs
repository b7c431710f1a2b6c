//! Products with a weight: of each token, or of each token and chosen expert.

use std::sync::OnceLock;

use rayon::prelude::*;

use super::precision::CoarseSums;
use super::rounding::{TINY, roundoff};
use super::sum::{Terms, activation_error, confidence};
use super::{BLOCK, Bounded, Formula, Values, as_given};
use crate::backend::Contract;
use crate::backend::oracle::dequant;
use crate::error::Result;
use crate::op::{HostTensor, Op, Weight};

/// Reads a row of an expert: `(expert, row, products, offsets)`. A weight is its product less its offset.
pub(crate) type Decode<'a> = Box<dyn Fn(usize, usize, &mut [f64], &mut [f64]) -> Result<()> + Send + Sync + 'a>;

/// A weight as it is.
pub(crate) fn as_it_is(weight: &Weight) -> Decode<'_> {
    Box::new(move |expert, row, product, offset| {
        dequant::each(weight.ty, weight.row(expert, row), |i, term| {
            (product[i], offset[i]) = (term.product, term.offset);
        })
    })
}

/// Σ_k x·w for each slot and each row of the weight. [slots, N]
///
/// The floor is [`Terms::bound`] of the products d·s·q·x beside the offsets dmin·m·x, since a kernel may sum them apart; plus what the
/// activation type loses, e for each x: min(Σ e|w|, λ√(Σ e²w²)), the worst case and Hoeffding's inequality; plus [`TINY`] for each
/// product and for each weight or activation that may be flushed.
pub(crate) struct Linear<'a> {
    /// K, the length of a sum, and N, the number of rows of the weight.
    pub k: usize,
    pub n: usize,
    /// For each row of the result: the row of x, and the expert.
    pub slots: Vec<(usize, usize)>,
    /// [rows, K]
    pub x: Values<'a>,
    pub decode: Decode<'a>,
    /// How often each of the K terms counts, where not all do once.
    pub times: Option<Vec<f64>>,
    /// Values of x, ascending by index, that may be off by so much besides, each in the worst direction.
    pub ties: Vec<(usize, f64)>,
    /// Sums in a format that is coarser than f32, each rounding of which is simulated. A few that fall the other way are each a step
    /// of the format, at the size of the sum; that is the whole floor.
    pub coarse: Option<CoarseSums>,
}

impl<'a> Formula<'a> for Linear<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, values: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let (weight, slots) = match *op {
            Op::MatMul { x, weight } => (weight, (0..x.shape[0]).map(|token| (token, 0)).collect()),
            Op::ExpertMatMul { x, ids, weight } => {
                let slots_per_row = if x.shape.len() == 3 { 1 } else { ids.cols().max(1) };
                let slot = |(slot, id): (usize, &u32)| (slot / slots_per_row, *id as usize);
                (weight, ids.ids().iter().enumerate().map(slot).collect())
            }
            _ => return Ok(None),
        };
        let (x, decode) = (as_given(&values[0]), as_it_is(weight));
        let (times, ties, coarse) = (None, Vec::new(), None);
        Ok(Some(Self { k: weight.cols, n: weight.rows, slots, x, decode, times, ties, coarse }))
    }

    fn len(&self) -> usize {
        self.slots.len() * self.n
    }

    fn evaluate<const N: usize>(
        &self,
        indices: Option<&[usize]>,
        contracts: [&Contract; N],
        put: impl FnMut(usize, Bounded<N>),
    ) -> Result<()> {
        match indices {
            Some(indices) => self.some(indices, contracts, put),
            None => self.all::<N, true>(contracts, put),
        }
    }

    fn floors<const N: usize>(&self, contracts: [&Contract; N]) -> Result<[Vec<f64>; N]> {
        let mut floors = [(); N].map(|()| vec![0.0; self.len()]);
        self.all::<N, false>(contracts, |i, (_, element)| {
            floors.iter_mut().zip(element).for_each(|(floors, floor)| floors[i] = floor)
        })?;
        Ok(floors)
    }
}

/// What a row of x has for every sum that it is in.
struct Input<const N: usize> {
    /// Σ|x|.
    absolute: f64,
    /// How far each contract's activation type may move each value.
    errors: [Option<Vec<f64>>; N],
}

/// A row of the weight.
struct Row {
    product: Vec<f64>,
    offset: Vec<f64>,
    /// The weights, where they are not the products.
    value: Vec<f64>,
}

/// One evaluation of a product: the rows of x that have been looked at.
struct Pass<'f, 'a, const N: usize> {
    formula: &'f Linear<'a>,
    contracts: [&'f Contract; N],
    lambda: f64,
    inputs: Vec<OnceLock<Input<N>>>,
}

impl<'a> Linear<'a> {
    fn pass<'f, const N: usize>(&'f self, contracts: [&'f Contract; N]) -> Pass<'f, 'a, N> {
        let inputs = (0..self.x.len() / self.k.max(1)).map(|_| OnceLock::new()).collect();
        Pass { formula: self, contracts, lambda: confidence(self.len()), inputs }
    }

    fn scratch(&self) -> Row {
        Row { product: vec![0.0; self.k], offset: vec![0.0; self.k], value: vec![0.0; self.k] }
    }

    /// Every element, without its value unless `VALUES`: each row of the weight is read once, and a block of results held.
    fn all<const N: usize, const VALUES: bool>(
        &self,
        contracts: [&Contract; N],
        mut put: impl FnMut(usize, Bounded<N>),
    ) -> Result<()> {
        let pass = self.pass(contracts);
        let mut by_expert: Vec<(usize, usize)> = self.slots.iter().enumerate().map(|(slot, s)| (s.1, slot)).collect();
        by_expert.sort_unstable();
        for here in by_expert.chunk_by(|a, b| a.0 == b.0) {
            let step = (BLOCK / here.len()).max(1);
            for first in (0..self.n).step_by(step) {
                let rows = first..(first + step).min(self.n);
                let row = |scratch: &mut Row, row: usize| {
                    pass.row::<VALUES>(scratch, here[0].0, row, here.iter().map(|(_, slot)| *slot))
                };
                let found: Vec<Vec<Bounded<N>>> =
                    rows.clone().into_par_iter().map_init(|| self.scratch(), row).collect::<Result<_>>()?;
                for (row, elements) in rows.zip(found) {
                    here.iter().zip(elements).for_each(|((_, slot), element)| put(slot * self.n + row, element));
                }
            }
        }
        Ok(())
    }

    /// The elements at `indices`.
    fn some<const N: usize>(
        &self,
        indices: &[usize],
        contracts: [&Contract; N],
        mut put: impl FnMut(usize, Bounded<N>),
    ) -> Result<()> {
        let pass = self.pass(contracts);
        // By row of the weight, so that each is read once.
        let mut order: Vec<(usize, usize, usize)> =
            indices.iter().enumerate().map(|(at, i)| (self.slots[i / self.n].1, i % self.n, at)).collect();
        order.sort_unstable();
        let groups: Vec<&[(usize, usize, usize)]> = order.chunk_by(|a, b| a.0 == b.0 && a.1 == b.1).collect();
        let row = |scratch: &mut Row, group: &&[(usize, usize, usize)]| {
            let slots = group.iter().map(|(_, _, at)| indices[*at] / self.n);
            pass.row::<true>(scratch, group[0].0, group[0].1, slots)
        };
        let found: Vec<Vec<Bounded<N>>> = groups.par_iter().map_init(|| self.scratch(), row).collect::<Result<_>>()?;
        for ((_, _, at), element) in order.iter().zip(found.into_iter().flatten()) {
            put(*at, element);
        }
        Ok(())
    }
}

impl<const N: usize> Pass<'_, '_, N> {
    fn input(&self, row: usize) -> (&[f64], &Input<N>) {
        let x = &self.formula.x[row * self.formula.k..][..self.formula.k];
        let look = || Input {
            absolute: x.iter().map(|x| x.abs()).sum(),
            errors: self.contracts.map(|contract| activation_error(x, contract)),
        };
        (x, self.inputs[row].get_or_init(look))
    }

    /// One row of the weight with some slots.
    fn row<const VALUES: bool>(
        &self,
        Row { product, offset, value }: &mut Row,
        expert: usize,
        row: usize,
        slots: impl Iterator<Item = usize>,
    ) -> Result<Vec<Bounded<N>>> {
        let Linear { decode, times, slots: of, ties, coarse, k, .. } = self.formula;
        decode(expert, row, product, offset)?;
        if let Some(times) = times {
            product.iter_mut().zip(times).for_each(|(p, t)| *p *= t);
            offset.iter_mut().zip(times).for_each(|(o, t)| *o *= t);
        }
        let has_offset = offset.iter().any(|o| *o != 0.0);
        // Only values, and sums that are simulated or undecided, are made of the weights themselves.
        if has_offset && (VALUES || coarse.is_some() || !ties.is_empty()) {
            let weights = product.iter().zip(&*offset).map(|(p, o)| (p - o) as f32 as f64);
            value.iter_mut().zip(weights).for_each(|(value, w)| *value = w);
        }
        let weights = if has_offset { &*value } else { &*product };
        let absolute: f64 = product.iter().map(|p| p.abs()).sum();
        let element = |slot: usize| {
            let row = of[slot].0;
            let (x, input) = self.input(row);
            if let Some(coarse) = coarse {
                let y = coarse.sum(x, weights);
                let steps = coarse.steps(x, weights, y);
                return (y, self.contracts.map(|c| steps + roundoff(c) * y.abs() + TINY));
            }
            let mut terms = Terms::dot(x, product);
            if has_offset {
                terms = terms.less(Terms::dot(x, offset));
                if VALUES {
                    terms.sum = x.iter().zip(weights).map(|(x, w)| x * w).sum();
                }
            }
            // A code is at most 127, so a flushed scale moves a weight by less than 128·TINY.
            let flushed = TINY * (*k as f64 + absolute + 128.0 * input.absolute);
            let undecided =
                &ties[ties.partition_point(|t| t.0 < row * k)..ties.partition_point(|t| t.0 < (row + 1) * k)];
            let undecided: f64 = undecided.iter().map(|(i, step)| (weights[i - row * k] * step).abs()).sum();
            let floor = |n: usize| {
                let errors = input.errors[n].as_deref();
                let lost = errors.map_or(0.0, |e| activation_loss(e, product, offset, self.lambda));
                terms.bound(self.contracts[n], self.lambda) + lost + flushed + undecided
            };
            (terms.sum, std::array::from_fn(floor))
        };
        Ok(slots.map(element).collect())
    }
}

/// Σ e·w for activations that are each off by at most e: min(Σ e|w|, λ√(Σ e²w²)).
fn activation_loss(errors: &[f64], product: &[f64], offset: &[f64], lambda: f64) -> f64 {
    let (mut worst, mut squares) = (0.0, 0.0);
    for (e, (p, o)) in errors.iter().zip(product.iter().zip(offset)) {
        let moved = e * (p - o);
        worst += moved.abs();
        squares += moved * moved;
    }
    worst.min(lambda * squares.sqrt())
}
