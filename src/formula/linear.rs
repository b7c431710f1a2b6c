//! Products with a weight: of each token, of each token and chosen expert, or of each token and head.

use std::sync::OnceLock;

use rayon::prelude::*;

use super::exact::Emulation;
use super::precision::CoarseSums;
use super::rounding::{TINY, roundoff, stored};
use super::sum::{Terms, confidence, least_bound};
use super::{BLOCK, Bounded, Formula, Values, as_given};
use crate::backend::Contract;
use crate::backend::oracle::dequant;
use crate::error::{Error, Result};
use crate::op::{GgmlType, HostTensor, Op, Weight};
use crate::wide::wide;

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

/// A weight whose codes are as they are in the file, with the offset that they have in common apart.
fn with_offsets_apart(weight: &Weight) -> Decode<'_> {
    let in_common = |code: f64| match weight.ty {
        GgmlType::Q6_K => 32.0,
        GgmlType::TQ1_0 | GgmlType::TQ2_0 => 1.0,
        // The grid's numbers are whole.
        GgmlType::IQ1_S | GgmlType::IQ1_M => code.round() - code,
        _ => 0.0,
    };
    Box::new(move |expert, row, product, offset| {
        dequant::parts(weight.ty, weight.row(expert, row), |i, part| {
            let in_common = in_common(part.code);
            (product[i], offset[i]) = (part.step * (part.code + in_common), part.offset + part.step * in_common);
        })
    })
}

/// The scale of each slot's expert, if the weight has scales.
pub(crate) fn scales_of(weight: &Weight, slots: &[(usize, usize)]) -> Vec<f64> {
    slots.iter().filter_map(|(_, expert)| weight.scale(*expert).map(f64::from)).collect()
}

/// How a product by heads reads its operand, and what is beside the sums of each slot.
pub(crate) struct Heads {
    /// D, of which the first K are multiplied.
    pub head_dim: usize,
    /// For each slot the D − K values that follow its sums as they are, whose floor is 0; empty where none do.
    pub kept: Vec<f64>,
    /// They are before the sums; stated, no.
    pub in_front: bool,
}

/// Σ_k x·w for each slot and each row of the weight, times the scale of the slot's expert. [slots, N], or [slots, N + (D − K)] where a product by heads keeps columns.
///
/// The floor is [`Terms::bound`] of the products d·s·q·x beside the offsets dmin·m·x, since a kernel may sum them apart; plus a step of x
/// times its weight where its code is undecided, and what a block's sum was rounded by times the block's largest weight (`ties`,
/// `blocks`); plus [`TINY`] for each product and for each weight or activation that may be flushed. A scale multiplies all of that, and rounds
/// once more.
pub(crate) struct Linear<'a> {
    /// K, the length of a sum, and N, the number of rows of the weight.
    pub k: usize,
    pub n: usize,
    /// For each row of the result: the row of x, and the expert.
    pub slots: Vec<(usize, usize)>,
    /// What each slot's sums are multiplied by; empty where by nothing.
    pub scales: Vec<f64>,
    /// [rows, K]
    pub x: Values<'a>,
    pub decode: Decode<'a>,
    /// As the operation has it.
    weight: &'a Weight,
    /// Of a product by heads.
    pub heads: Option<Heads>,
    /// How often each of the K terms counts, where not all do once.
    pub times: Option<Vec<f64>>,
    /// Values of x, ascending by index, that may be off by so much besides, each in the worst direction.
    pub ties: Vec<(usize, f64)>,
    /// The values of x in blocks of this many, and for each block how far its sum, which is kept apart, is from that of its values (Q8_1).
    pub blocks: Option<(usize, Vec<f64>)>,
    /// Products over runs of so many are summed in integers; stated, one.
    pub exact_run: usize,
    /// Sums in a format that is coarser than f32, each rounding of which is simulated. A few that fall the other way are each a step
    /// of the format, at the size of the sum; that is the whole floor.
    pub coarse: Option<CoarseSums>,
}

impl<'a> Formula<'a> for Linear<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, values: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let mut heads = None;
        let (weight, slots): (&'a Weight, Vec<(usize, usize)>) = match *op {
            Op::MatMul { x, weight } => (weight, (0..x.shape[0]).map(|token| (token, 0)).collect()),
            Op::HeadMatMul { x, weight, head_dim, .. } => {
                heads = Some(Heads { head_dim, kept: vec![], in_front: false });
                // Of a head that all read there is one in a row.
                let all = weight.experts;
                let row = move |token, head| if x.cols() == head_dim { token } else { token * all + head };
                (weight, (0..x.shape[0]).flat_map(|t| (0..all).map(move |head| (row(t, head), head))).collect())
            }
            Op::ExpertMatMul { x, ids, weight } => {
                let slots_per_row = if x.shape.len() == 3 { 1 } else { ids.cols().max(1) };
                let slot = |(slot, id): (usize, &u32)| (slot / slots_per_row, *id as usize);
                (weight, ids.ids().iter().enumerate().map(slot).collect())
            }
            _ => return Ok(None),
        };
        let (x, decode) = (as_given(&[]), as_it_is(weight));
        let (times, ties, blocks, exact_run, coarse) = (None, Vec::new(), None, 1, None);
        let (k, n) = (weight.cols, weight.rows);
        let scales = scales_of(weight, &slots);
        let mut this = Self { k, n, slots, scales, x, decode, weight, heads, times, ties, blocks, exact_run, coarse };
        this.read(as_given(&values[0]));
        if let Op::HeadMatMul { keep: true, .. } = op {
            this.keep(&values[0]);
        }
        Ok(Some(this))
    }

    fn emulate(&mut self, how: &Emulation) {
        if how.offsets_apart {
            self.decode = with_offsets_apart(self.weight);
        }
        how.round(&mut self.decode);
        self.ties = how.ties(0);
        if let Some(Heads { head_dim, .. }) = self.heads {
            self.ties.iter_mut().for_each(|(i, _)| *i = *i / head_dim * self.k + *i % head_dim);
        }
        self.blocks = how.sums(0);
        self.exact_run = how.exact_run;
    }

    fn len(&self) -> usize {
        self.slots.len() * self.stride()
    }

    fn evaluate<const N: usize>(
        &self,
        indices: Option<&[usize]>,
        contracts: [&Contract; N],
        put: &mut dyn FnMut(usize, Bounded<N>),
    ) -> Result<()> {
        match indices {
            Some(indices) => self.some::<N, true>(indices, contracts, put),
            None => self.all::<N, true>(contracts, put),
        }
    }

    fn floors<const N: usize>(&self, contracts: [&Contract; N]) -> Result<[Vec<f64>; N]> {
        let mut floors = [(); N].map(|()| vec![0.0; self.len()]);
        let put = &mut |i: usize, (value, element): Bounded<N>| {
            let element = element.into_iter().zip(contracts);
            floors.iter_mut().zip(element).for_each(|(floors, (floor, c))| floors[i] = stored((value, floor), c))
        };
        match needs_values(contracts) {
            true => self.all::<N, true>(contracts, put)?,
            false => self.all::<N, false>(contracts, put)?,
        }
        Ok(floors)
    }

    fn floors_at<const N: usize>(&self, indices: &[usize], contracts: [&Contract; N]) -> Result<Vec<[f64; N]>> {
        let mut floors = vec![[0.0; N]; indices.len()];
        let put = &mut |at: usize, (value, element): Bounded<N>| {
            floors[at] = std::array::from_fn(|n| stored((value, element[n]), contracts[n]));
        };
        match needs_values(contracts) {
            true => self.some::<N, true>(indices, contracts, put)?,
            false => self.some::<N, false>(indices, contracts, put)?,
        }
        Ok(floors)
    }

    fn least_floors<const N: usize>(
        &self,
        indices: &[usize],
        exact: &[f64],
        contracts: [&Contract; N],
    ) -> Result<Option<Vec<[f64; N]>>> {
        let plain = self.coarse.is_none() && self.times.is_none() && self.scales.is_empty() && self.k <= MOST_IN_F32;
        plain.then(|| self.least(indices, exact, contracts)).transpose()
    }

    fn least_share(&self, contract: &Contract) -> f64 {
        match self.coarse {
            Some(_) => 0.0,
            None if self.stride() > self.n => 0.0,
            None => least_bound(self.k, contract, confidence(self.sums())),
        }
    }
}

/// Terms whose magnitudes add up in f32 to within a hundredth: each of the 32 sums rounds once for 32 terms, by 2⁻²⁴.
const MOST_IN_F32: usize = 1 << 22;

wide! {
    /// Σ|p| and Σp² of products of magnitudes, in f32. Of squares that are subnormal less.
    fn magnitudes(x: &[f32], w: &[f32]) -> [f64; 2] {
        const LANES: usize = 32;
        let ((xs, x_tail), (ws, w_tail)) = (x.as_chunks::<LANES>(), w.as_chunks::<LANES>());
        let (mut absolute, mut squares) = ([0f32; LANES], [0f32; LANES]);
        for (x, w) in xs.iter().zip(ws) {
            for i in 0..LANES {
                let p = x[i] * w[i];
                absolute[i] += p;
                squares[i] += p * p;
            }
        }
        for (i, (x, w)) in x_tail.iter().zip(w_tail).enumerate() {
            let p = x * w;
            absolute[i] += p;
            squares[i] += p * p;
        }
        [absolute, squares].map(|sums| sums.iter().map(|x| *x as f64).sum())
    }
}

/// What is stored coarser is rounded at its value; otherwise no values are needed.
fn needs_values<const N: usize>(contracts: [&Contract; N]) -> bool {
    contracts.iter().any(|c| c.output.is_coarse())
}

/// What an element of a product is.
enum Place {
    /// The sum with a row of the weight.
    Sum(usize),
    /// One of the values that are kept.
    Kept(usize),
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
    /// Σ|x| of each.
    absolute: Vec<OnceLock<f64>>,
}

impl<'a> Linear<'a> {
    /// Takes another operand, as the operation has it.
    pub fn read(&mut self, operand: Values<'a>) {
        self.x = match self.heads {
            Some(Heads { head_dim, .. }) if head_dim > self.k => {
                operand.chunks_exact(head_dim).flat_map(|head| &head[..self.k]).copied().collect::<Vec<f64>>().into()
            }
            _ => operand,
        };
    }

    /// Keeps of each slot's head in `operand` what is not multiplied.
    pub fn keep(&mut self, operand: &[f64]) {
        if let Some(Heads { head_dim, kept, .. }) = &mut self.heads {
            let of = |slot: &(usize, usize)| &operand[slot.0 * *head_dim..][self.k..*head_dim];
            *kept = self.slots.iter().flat_map(of).copied().collect();
        }
    }

    /// Sums of products.
    fn sums(&self) -> usize {
        self.slots.len() * self.n
    }

    /// Columns of a slot's result: its sums, and what is kept beside them.
    pub fn stride(&self) -> usize {
        self.n + self.heads.as_ref().map_or(0, |heads| heads.kept.len() / self.slots.len().max(1))
    }

    /// Where a slot's sums begin.
    fn begins(&self, slot: usize) -> usize {
        let stride = self.stride();
        slot * stride + if self.heads.as_ref().is_some_and(|heads| heads.in_front) { stride - self.n } else { 0 }
    }

    /// The slot that an element is of, and the row of the weight, or the place among the kept values.
    fn place(&self, i: usize) -> (usize, Place) {
        let (stride, width) = (self.stride(), self.stride() - self.n);
        let (slot, column) = (i / stride, i % stride);
        match column.checked_sub(self.begins(slot) - slot * stride) {
            Some(row) if row < self.n => (slot, Place::Sum(row)),
            Some(row) => (slot, Place::Kept(slot * width + row - self.n)),
            None => (slot, Place::Kept(slot * width + column)),
        }
    }

    fn pass<'f, const N: usize>(&'f self, contracts: [&'f Contract; N]) -> Pass<'f, 'a, N> {
        let absolute = (0..self.x.len() / self.k.max(1)).map(|_| OnceLock::new()).collect();
        Pass { formula: self, contracts, lambda: confidence(self.sums()), absolute }
    }

    fn scratch(&self) -> Row {
        Row { product: vec![0.0; self.k], offset: vec![0.0; self.k], value: vec![0.0; self.k] }
    }

    /// Every element, without its value unless `VALUES`: each row of the weight is read once, and a block of results held.
    fn all<const N: usize, const VALUES: bool>(
        &self,
        contracts: [&Contract; N],
        put: &mut dyn FnMut(usize, Bounded<N>),
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
                    here.iter().zip(elements).for_each(|((_, slot), element)| put(self.begins(*slot) + row, element));
                }
            }
        }
        let kept = self.heads.as_ref().map_or(0, |heads| heads.kept.len());
        for i in (0..self.len()).filter(|_| kept > 0) {
            if let (_, Place::Kept(kept)) = self.place(i) {
                put(i, self.kept(kept));
            }
        }
        Ok(())
    }

    /// A value that is kept.
    fn kept<const N: usize>(&self, n: usize) -> Bounded<N> {
        (self.heads.as_ref().map_or(0.0, |heads| heads.kept[n]), [0.0; N])
    }

    /// Of the elements at `indices`: the expert, the row of the weight and the place in `indices`, in this order, so that each row is read once. Those that
    /// are kept are told with their place.
    fn by_weight_row(&self, indices: &[usize], tell: &mut dyn FnMut(usize, usize)) -> Vec<(usize, usize, usize)> {
        let mut order: Vec<(usize, usize, usize)> = Vec::with_capacity(indices.len());
        for (at, i) in indices.iter().enumerate() {
            match self.place(*i) {
                (slot, Place::Sum(row)) => order.push((self.slots[slot].1, row, at)),
                (_, Place::Kept(kept)) => tell(at, kept),
            }
        }
        order.par_sort_unstable();
        order
    }

    /// [`Formula::least_floors`]: from Σ|p| and Σp² in f32, and |y| for R, which is no less.
    fn least<const N: usize>(
        &self,
        indices: &[usize],
        exact: &[f64],
        contracts: [&Contract; N],
    ) -> Result<Vec<[f64; N]>> {
        let (k, lambda) = (self.k, confidence(self.sums()));
        let rows: Vec<OnceLock<Vec<f32>>> = (0..self.x.len() / k.max(1)).map(|_| OnceLock::new()).collect();
        let magnitude = |x: &f64| x.abs() as f32;
        let order = self.by_weight_row(indices, &mut |_, _| ());
        let groups: Vec<&[(usize, usize, usize)]> = order.chunk_by(|a, b| a.0 == b.0 && a.1 == b.1).collect();
        let group = |row: &mut Row, group: &&[(usize, usize, usize)]| {
            (self.decode)(group[0].0, group[0].1, &mut row.product, &mut row.offset)?;
            let product: Vec<f32> = row.product.iter().map(magnitude).collect();
            let offset: Vec<f32> = row.offset.iter().map(magnitude).collect();
            let has_offset = offset.iter().any(|o| *o != 0.0);
            let element = |at: usize| {
                let i = indices[at];
                let x = self.slots[self.place(i).0].0;
                let x = rows[x].get_or_init(|| self.x[x * k..][..k].iter().map(magnitude).collect());
                let [mut absolute, mut squares] = magnitudes(x, &product);
                if has_offset {
                    let [more, of_more] = magnitudes(x, &offset);
                    (absolute, squares) = (absolute + more, squares + of_more);
                }
                if !(absolute.is_finite() && squares.is_finite()) {
                    return [0.0; N]; // beyond f32: nothing is known
                }
                let y = exact[i];
                let least = Terms { n: k, sum: y, absolute: 0.99 * absolute, squares: 0.99 * squares, range: y.abs() };
                let least = if self.exact_run > 1 { least.in_exact_runs_of(self.exact_run) } else { least };
                contracts.map(|c| 0.99 * least.bound(c, lambda))
            };
            Ok::<_, Error>(group.iter().map(|(_, _, at)| element(*at)).collect::<Vec<_>>())
        };
        let found: Vec<Vec<[f64; N]>> = groups.par_iter().map_init(|| self.scratch(), group).collect::<Result<_>>()?;
        let mut least = vec![[0.0; N]; indices.len()];
        order.iter().zip(found.into_iter().flatten()).for_each(|((_, _, at), element)| least[*at] = element);
        Ok(least)
    }

    /// The elements at `indices`, without their values unless `VALUES`.
    fn some<const N: usize, const VALUES: bool>(
        &self,
        indices: &[usize],
        contracts: [&Contract; N],
        put: &mut dyn FnMut(usize, Bounded<N>),
    ) -> Result<()> {
        let pass = self.pass(contracts);
        let order = self.by_weight_row(indices, &mut |at, kept| put(at, self.kept(kept)));
        let groups: Vec<&[(usize, usize, usize)]> = order.chunk_by(|a, b| a.0 == b.0 && a.1 == b.1).collect();
        let row = |scratch: &mut Row, group: &&[(usize, usize, usize)]| {
            let slots = group.iter().map(|(_, _, at)| self.place(indices[*at]).0);
            pass.row::<VALUES>(scratch, group[0].0, group[0].1, slots)
        };
        let found: Vec<Vec<Bounded<N>>> = groups.par_iter().map_init(|| self.scratch(), row).collect::<Result<_>>()?;
        for ((_, _, at), element) in order.iter().zip(found.into_iter().flatten()) {
            put(*at, element);
        }
        Ok(())
    }
}

impl<const N: usize> Pass<'_, '_, N> {
    /// A row of x, and its Σ|x|.
    fn input(&self, row: usize) -> (&[f64], f64) {
        let x = &self.formula.x[row * self.formula.k..][..self.formula.k];
        (x, *self.absolute[row].get_or_init(|| x.iter().map(|x| x.abs()).sum()))
    }

    /// One row of the weight with some slots.
    fn row<const VALUES: bool>(
        &self,
        Row { product, offset, value }: &mut Row,
        expert: usize,
        row: usize,
        slots: impl Iterator<Item = usize>,
    ) -> Result<Vec<Bounded<N>>> {
        let Linear { decode, times, slots: of, scales, ties, blocks, exact_run, coarse, k, .. } = self.formula;
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
        // The largest weight of each block whose sum is kept apart.
        let largest: Vec<f64> = blocks.as_ref().map_or(vec![], |(block, _)| {
            let size = |(p, o): (&f64, &f64)| p.abs() + o.abs();
            let each = product.chunks(*block).zip(offset.chunks(*block));
            each.map(|(p, o)| p.iter().zip(o).map(size).fold(0.0, f64::max)).collect()
        });
        let element = |slot: usize| {
            let row = of[slot].0;
            let (x, x_absolute) = self.input(row);
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
            let flushed = TINY * (*k as f64 + absolute + 128.0 * x_absolute);
            let undecided =
                &ties[ties.partition_point(|t| t.0 < row * k)..ties.partition_point(|t| t.0 < (row + 1) * k)];
            let undecided: f64 = undecided.iter().map(|(i, step)| (weights[i - row * k] * step).abs()).sum();
            let rounded_sums: f64 = blocks
                .as_ref()
                .map_or(0.0, |(_, off)| largest.iter().zip(&off[row * largest.len()..]).map(|(w, off)| w * off).sum());
            let rounded = if *exact_run > 1 { terms.in_exact_runs_of(*exact_run) } else { terms };
            let floor = |c: &Contract| rounded.bound(c, self.lambda) + flushed + undecided + rounded_sums;
            (terms.sum, self.contracts.map(floor))
        };
        let scaled = |slot: usize| {
            let (sum, floors) = element(slot);
            let Some(&scale) = scales.get(slot) else { return (sum, floors) };
            let mut contracts = self.contracts.iter();
            let floor = |floor: f64| {
                let (floor, u) = (floor * scale.abs(), contracts.next().map_or(0.0, |c| roundoff(c)));
                floor + u * ((sum * scale).abs() + floor) + TINY
            };
            (sum * scale, floors.map(floor))
        };
        Ok(slots.map(scaled).collect())
    }
}
