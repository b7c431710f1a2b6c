//! The largest error over its floor, for which most floors need not be known.
//!
//! The floor of a sum costs several times what the sum does. But it is at least a share of the sum's own size (`Formula::least_share`), so an
//! error over that is an upper bound of the ratio, for a division. Elements whose upper bound is no more than a ratio that some
//! element has cannot be the worst, and their floors are not computed; nor can they be beyond 1 when that ratio is below it.

use rayon::prelude::*;

use super::exact::Emulation;
use super::floor::{Ratio, floors_of, injected_ratio};
use super::{Formula, first_of};
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
#[derive(Clone, Copy, Debug, PartialEq)]
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

impl Unbounded {
    /// Of elements that ascend, each with its error, its floor and the right value.
    fn among(elements: impl Iterator<Item = (usize, f64, f64, f64)>) -> Option<Self> {
        let mut found: Option<Self> = None;
        for (i, error, floor, exact) in elements {
            if floor != f64::INFINITY || error == 0.0 {
                continue;
            }
            let all = found.get_or_insert(Self { first: i, overflowed: None });
            if !error.is_finite() || error.abs() >= 0.5 * exact.abs() {
                all.overflowed = all.overflowed.map(|(first, n)| (first, n + 1)).or(Some((i, 1)));
            }
        }
        found
    }
}

impl<const N: usize> Claim<'_, N> {
    /// The floor of element `i`, given those of the contracts.
    fn floor(&self, i: usize, floors: [f64; N]) -> f64 {
        let own: f64 = floors.iter().zip(self.of).filter(|(_, of)| *of).map(|(floor, _)| floor).sum();
        own + self.carried.map_or(0.0, |carried| carried[i])
    }

    /// From the floors of all elements.
    fn of_all(&self, floors: &[Vec<f64>; N], exact: &[f64]) -> WorstRatio {
        let each = |i: usize| self.floor(i, std::array::from_fn(|n| floors[n][i]));
        let floors: Vec<f64> = (0..self.error.len()).into_par_iter().map(each).collect();
        let ratio = injected_ratio(self.error, &floors);
        let unbounded = Unbounded::among((0..floors.len()).map(|i| (i, self.error[i], floors[i], exact[i])));
        WorstRatio { ratio, floor: ratio.index.map_or(0.0, |i| floors[i]), unbounded }
    }

    /// From the floors of some elements, ascending, which the first, the worst and all beyond their floor are among.
    fn of_some(&self, known: &[(usize, [f64; N])], exact: &[f64]) -> WorstRatio {
        let own: Vec<f64> = known.iter().map(|(i, floors)| self.floor(*i, *floors)).collect();
        let error: Vec<f64> = known.iter().map(|(i, _)| self.error[*i]).collect();
        let mut ratio = injected_ratio(&error, &own);
        let floor = ratio.index.map_or(0.0, |at| own[at]);
        ratio.index = ratio.index.map(|at| known[at].0);
        let elements = known.iter().zip(&own).map(|((i, _), floor)| (*i, self.error[*i], *floor, exact[*i]));
        WorstRatio { ratio, floor, unbounded: Unbounded::among(elements) }
    }
}

/// Each claim's largest |error| / floor, as [`injected_ratio`] over the floors of [`floors_of`] has it.
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
    if let Some(found) = of_likely(op, contracts, exact, &claims)? {
        return Ok(found);
    }
    let floors = floors_of(op, contracts, exact)?;
    let exact = exact.to_f64();
    Ok(claims.map(|claim| claim.of_all(&floors, &exact)))
}

/// [`worst`] from the floors of those elements that may be the worst; `None` where that saves nothing.
fn of_likely<const N: usize, const C: usize>(
    op: &Op<'_, &HostTensor>,
    contracts: [&Contract; N],
    exact: &HostTensor,
    claims: &[Claim<'_, N>; C],
) -> Result<Option<[WorstRatio; C]>> {
    let is_sum = matches!(
        op.kind(),
        OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul | OpKind::AttnScores | OpKind::AttnContext
    );
    if !is_sum || contracts.iter().any(|c| !Emulation::of(op, c).is_nothing()) {
        return Ok(None);
    }
    let x: Vec<Vec<f64>> = op.inputs().iter().map(|t| t.to_f64()).collect();
    let found = first_of!(op, &x, |formula| among_sums(&formula, contracts, exact, claims));
    Ok(found.transpose()?.flatten())
}

/// Elements of the largest errors whose floors are computed first.
const FIRST: usize = 512;
/// Where more than one element in so many may be the worst, all floors are computed: they share work.
const MOST: usize = 2;

/// Of a formula whose floors have a least share; `None` where too many elements may be the worst.
fn among_sums<'a, F: Formula<'a>, const N: usize, const C: usize>(
    formula: &F,
    contracts: [&Contract; N],
    exact: &HostTensor,
    claims: &[Claim<'_, N>; C],
) -> Result<Option<[WorstRatio; C]>> {
    let shares = contracts.map(|c| formula.least_share(c));
    let exact = exact.to_f64();
    let first = first_candidates(claims);
    let mut known: Vec<(usize, [f64; N])> = first.iter().copied().zip(formula.floors_at(&first, contracts)?).collect();
    let limits: [f64; C] = std::array::from_fn(|n| claims[n].of_some(&known, &exact).ratio.max.min(1.0));
    let may_be_worst = |i: usize| {
        claims.iter().zip(limits).any(|(claim, limit)| {
            let (error, least) = (claim.error[i].abs(), claim.floor(i, shares.map(|share| share * exact[i].abs())));
            // What is not a number is within nothing, and so may be the worst.
            let within = error <= limit * least;
            error != 0.0 && !within
        })
    };
    let unknown = |i: &usize| first.binary_search(i).is_err();
    let rest: Vec<usize> = (0..exact.len()).into_par_iter().filter(|i| may_be_worst(*i) && unknown(i)).collect();
    if rest.len() > exact.len() / MOST {
        return Ok(None);
    }
    known.extend(rest.iter().copied().zip(formula.floors_at(&rest, contracts)?));
    known.sort_unstable_by_key(|(i, _)| *i);
    Ok(Some(std::array::from_fn(|n| claims[n].of_some(&known, &exact))))
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
                spared += usize::from(of_likely(&op, contracts, &right, &claims()).unwrap().is_some());
            }
        }
        assert!(spared > compared / 10, "only {spared} of {compared} were found without all floors");
    }
}
