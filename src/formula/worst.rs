//! The largest error over its floor, for which most floors need not be known.
//!
//! The floor of a sum costs several times what the sum does. Elements that cannot be the worst are left out, in two steps:
//! - the floor is at least a share of the sum's own size (`Formula::least_share`), so an error over that is an upper bound of the ratio, for a
//!   division;
//! - of those that are left, the floor is at least what two sums of magnitudes in f32 say (`Formula::least_floors`), a tenth of the work.
//!
//! Whose upper bound is no more than a ratio that some element has cannot be the worst; nor can it be beyond 1 when that ratio is below it.

use std::sync::Mutex;

use rayon::prelude::*;

use super::exact::Emulation;
use super::floor::{Ratio, floors_of};
use super::rounding::stored;
use super::{Bounded, Formula, first_of};
use crate::backend::Contract;
use crate::error::Result;
use crate::op::{HostTensor, Op, OpKind};

/// An error that is held against floors.
pub struct Claim<'a, const N: usize> {
    /// Of each element of the result.
    pub error: &'a [f64],
    /// The contracts whose floors it may use, together.
    pub of: [bool; N],
    /// What each element may be off by besides.
    pub carried: Option<&'a [f64]>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WorstRatio {
    pub ratio: Ratio,
    /// The floor of the worst element; 0 when there is none.
    pub floor: f64,
    /// Elements that have no bound, since the arithmetic may overflow, and an error.
    pub unbounded: Option<Unbounded>,
}

/// Elements that have no bound, and an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unbounded {
    /// The first of them.
    pub first: usize,
    /// The first that did overflow: that is not finite, or off by half of its value or more, and how many are.
    pub overflowed: Option<(usize, usize)>,
}

impl WorstRatio {
    /// Adds the next element: its error, its floor and the right value.
    fn add(&mut self, i: usize, error: f64, floor: f64, exact: f64) {
        if self.ratio.add(i, error, floor) {
            self.floor = floor;
        }
        if floor == f64::INFINITY && error != 0.0 {
            let all = self.unbounded.get_or_insert(Unbounded { first: i, overflowed: None });
            if !error.is_finite() || error.abs() >= 0.5 * exact.abs() {
                all.overflowed = all.overflowed.map(|(first, n)| (first, n + 1)).or(Some((i, 1)));
            }
        }
    }

    /// Adds what came of elements that follow.
    fn merge(&mut self, later: &Self) {
        if self.ratio.merge(later.ratio) {
            self.floor = later.floor;
        }
        self.unbounded = match (self.unbounded, later.unbounded) {
            (Some(a), Some(b)) => {
                let overflowed = match (a.overflowed, b.overflowed) {
                    (Some((first, n)), Some((_, more))) => Some((first, n + more)),
                    (a, b) => a.or(b),
                };
                Some(Unbounded { first: a.first, overflowed })
            }
            (a, b) => a.or(b),
        };
    }
}

impl<const N: usize> Claim<'_, N> {
    /// The floor of element `i`, given those of the contracts.
    fn floor(&self, i: usize, floors: [f64; N]) -> f64 {
        let own: f64 = floors.iter().zip(self.of).filter(|(_, of)| *of).map(|(floor, _)| floor).sum();
        own + self.carried.map_or(0.0, |carried| carried[i])
    }

    /// Over elements in order, with their floors.
    fn over(&self, elements: impl Iterator<Item = (usize, [f64; N])>, exact: &[f64]) -> WorstRatio {
        let mut worst = WorstRatio::default();
        elements.for_each(|(i, floors)| worst.add(i, self.error[i], self.floor(i, floors), exact[i]));
        worst
    }

    /// From the floors of all elements.
    fn of_all(&self, floors: &[Vec<f64>; N], exact: &[f64]) -> WorstRatio {
        let n = self.error.len();
        let part = |part: usize| {
            let elements = part * PART..n.min((part + 1) * PART);
            self.over(elements.map(|i| (i, std::array::from_fn(|n| floors[n][i]))), exact)
        };
        let parts: Vec<WorstRatio> = (0..n.div_ceil(PART)).into_par_iter().map(part).collect();
        merged(&parts)
    }

    /// From the floors of some elements, ascending, which the first, the worst and all beyond their floor are among.
    fn of_some(&self, known: &[(usize, [f64; N])], exact: &[f64]) -> WorstRatio {
        self.over(known.iter().copied(), exact)
    }
}

/// Elements that one thread looks at together.
const PART: usize = 1 << 14;

/// Of all parts, in order.
fn merged(parts: &[WorstRatio]) -> WorstRatio {
    let mut all = WorstRatio::default();
    parts.iter().for_each(|part| all.merge(part));
    all
}

/// Each claim's largest |error| / floor, as [`injected_ratio`](super::floor::injected_ratio) over the floors of [`floors_of`] has it.
///
/// # Errors
/// As [`floors_of`].
///
/// # Panics
/// As [`floors_of`], and if an error is not as long as the result.
pub fn worst<const N: usize, const C: usize>(
    op: &Op<'_, &HostTensor>,
    contracts: [&Contract; N],
    exact: &HostTensor,
    claims: [Claim<'_, N>; C],
) -> Result<[WorstRatio; C]> {
    assert!(claims.iter().all(|claim| claim.error.len() == exact.len()), "one error an element");
    let values = exact.f64s();
    if contracts.iter().all(|c| Emulation::of(op, c).is_nothing()) {
        let is_sum = matches!(
            op.kind(),
            OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul | OpKind::AttnScores | OpKind::AttnContext
        );
        let x: Vec<Vec<f64>> = op.inputs().iter().map(|t| t.to_f64()).collect();
        let found = first_of!(op, &x, |formula| {
            assert_eq!(
                formula.len(),
                values.len(),
                "{:?}: the exact values are not this operation's result",
                op.kind()
            );
            let likely = if is_sum { among_sums(&formula, contracts, &values, &claims)? } else { None };
            if likely.is_some() { likely } else { of_rows(&formula, contracts, &values, &claims)? }
        });
        if let Some(found) = found.flatten() {
            return Ok(found);
        }
    }
    let floors = floors_of(op, contracts, exact)?;
    Ok(claims.map(|claim| claim.of_all(&floors, &values)))
}

/// [`worst`] of a formula by rows, whose floors are forgotten when they have been looked at; `None` of another.
fn of_rows<'a, F: Formula<'a>, const N: usize, const C: usize>(
    formula: &F,
    contracts: [&Contract; N],
    exact: &[f64],
    claims: &[Claim<'_, N>; C],
) -> Result<Option<[WorstRatio; C]>> {
    let rows = Mutex::new(Vec::new());
    let by_rows = formula.each_row(contracts, &|first, elements: &[Bounded<N>]| {
        let floors = |(value, floors): &Bounded<N>| std::array::from_fn(|n| stored((*value, floors[n]), contracts[n]));
        let row = claims.each_ref().map(|c| c.over((first..).zip(elements.iter().map(floors)), exact));
        rows.lock().unwrap_or_else(|e| e.into_inner()).push((first, row));
    })?;
    let mut rows = rows.into_inner().unwrap_or_else(|e| e.into_inner());
    rows.sort_unstable_by_key(|(first, _)| *first);
    let of_claim = |n: usize| merged(&Vec::from_iter(rows.iter().map(|(_, row)| row[n])));
    Ok(by_rows.then(|| std::array::from_fn(of_claim)))
}

/// Elements of the largest errors whose floors are computed first.
const FIRST: usize = 512;
/// Where more than one element in so many may be the worst, all floors are computed: they share work.
const MOST: usize = 2;

/// From the floors of those elements that may be the worst; `None` where too many may.
fn among_sums<'a, F: Formula<'a>, const N: usize, const C: usize>(
    formula: &F,
    contracts: [&Contract; N],
    exact: &[f64],
    claims: &[Claim<'_, N>; C],
) -> Result<Option<[WorstRatio; C]>> {
    let shares = contracts.map(|c| formula.least_share(c));
    let first = first_candidates(claims);
    let mut known: Vec<(usize, [f64; N])> = first.iter().copied().zip(formula.floors_at(&first, contracts)?).collect();
    let limits: [f64; C] = std::array::from_fn(|n| claims[n].of_some(&known, exact).ratio.max.min(1.0));
    let may_be_worst = |i: usize, least: [f64; N]| {
        claims.iter().zip(limits).any(|(claim, limit)| {
            let error = claim.error[i].abs();
            // What is not a number is within nothing, and so may be the worst.
            let within = error <= limit * claim.floor(i, least);
            error != 0.0 && !within
        })
    };
    let by_size = |i: &usize| may_be_worst(*i, shares.map(|share| share * exact[*i].abs()));
    let unknown = |i: &usize| first.binary_search(i).is_err();
    let mut rest: Vec<usize> = (0..exact.len()).into_par_iter().filter(|i| by_size(i) && unknown(i)).collect();
    if let Some(least) = formula.least_floors(&rest, exact, contracts)? {
        let left = rest.into_iter().zip(least).filter(|(i, least)| may_be_worst(*i, *least));
        rest = left.map(|(i, _)| i).collect();
    }
    if rest.len() > exact.len() / MOST {
        return Ok(None);
    }
    known.extend(rest.iter().copied().zip(formula.floors_at(&rest, contracts)?));
    known.sort_unstable_by_key(|(i, _)| *i);
    Ok(Some(std::array::from_fn(|n| claims[n].of_some(&known, exact))))
}

/// For each claim, the elements of the largest errors, one a stretch. Ascending.
fn first_candidates<const N: usize>(claims: &[Claim<'_, N>]) -> Vec<usize> {
    let mut all = Vec::from_iter((!claims[0].error.is_empty()).then_some(0)); // the worst where no element has an error
    for claim in claims {
        let stretch = (claim.error.len() / (4 * FIRST)).max(1);
        let largest = |(n, errors): (usize, &[f64])| {
            let (at, error) = errors.iter().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()))?;
            Some((error.abs(), n * stretch + at))
        };
        let mut largest: Vec<(f64, usize)> = claim.error.par_chunks(stretch).enumerate().filter_map(largest).collect();
        largest.sort_by(|a, b| b.0.total_cmp(&a.0));
        all.extend(largest.into_iter().take(FIRST).map(|(_, i)| i));
    }
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Order, cases};
    use crate::formula::exact::exact;
    use crate::formula::floor::floors_of;

    /// Whether not all floors are computed.
    fn is_spared<const C: usize>(
        op: &Op<'_, &HostTensor>,
        contracts: [&Contract; 2],
        right: &HostTensor,
        claims: &[Claim<'_, 2>; C],
    ) -> bool {
        let x: Vec<Vec<f64>> = op.inputs().iter().map(|t| t.to_f64()).collect();
        let found = || -> Result<Option<Option<[WorstRatio; C]>>> {
            Ok(first_of!(op, &x, |formula| among_sums(&formula, contracts, &right.f64s(), claims)?))
        };
        found().unwrap().flatten().is_some()
    }

    /// Over the whole table of operations, with errors of all sizes about the floor, some beyond it, and some that are not finite.
    #[test]
    fn some_floors_say_what_all_of_them_say() {
        let contracts =
            [Contract::ieee_f32(Order::Blocked { block: 32 }), Contract::wgsl_f32(Order::Lanes { lanes: 64 })];
        let (mut compared, mut spared) = (0, 0);
        for (n, row) in cases::table().into_iter().enumerate() {
            let operands = row.build(n as u64).unwrap();
            let (op, contracts) = (operands.op(), [&contracts[0], &contracts[1]]);
            let right = exact(&op, contracts[0]).unwrap();
            let floors = floors_of(&op, contracts, &right).unwrap();
            for largest in [0.0, 0.3, 40.0] {
                let mut state = n as u64 + 1;
                let mut noise = || {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 40) as f64 / (1u64 << 24) as f64
                };
                let mut errors: [Vec<f64>; 2] =
                    std::array::from_fn(|n| floors[n].iter().map(|f| f * largest * noise().powi(4)).collect());
                if largest > 1.0 && n % 3 == 0 && !right.is_empty() {
                    errors[0][right.len() / 2] = f64::NAN;
                }
                let carried: Vec<f64> = floors[0].iter().map(|f| f * noise()).collect();
                let claims = || {
                    [
                        Claim { error: &errors[0], of: [true, false], carried: Some(&carried) },
                        Claim { error: &errors[1], of: [false, true], carried: None },
                        Claim { error: &errors[0], of: [true, true], carried: None },
                    ]
                };
                let found = worst(&op, contracts, &right, claims()).unwrap();
                let expected = claims().map(|claim| claim.of_all(&floors, &right.to_f64()));
                assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{row}, errors up to {largest} floors");
                compared += 1;
                spared += usize::from(is_spared(&op, contracts, &right, &claims()));
            }
        }
        assert!(spared > compared / 10, "only {spared} of {compared} were found without all floors");
    }
}
