//! Rounding floors: for each element of a stage, the error that its arithmetic contract allows.
//!
//! Design:
//! - **Derived, not picked.** A stage's floor is that of its formula as the operation states it ([`super`]). What goes in is the
//!   contract (order of summation, unit roundoff, formats of results, the bounds on exp, division and inverse square root) and the data.
//! - **Per element.** A stage's ratio is the largest |error| / floor over its elements ([`injected_ratio`]), so one wrong
//!   element among millions is seen, at its place. That the largest of N sums is larger than one of them is in
//!   [`sum::confidence`](super::sum::confidence).
//! - **Against the float64 oracle**: the floor bounds |subject − oracle| on the same inputs, rounded as the contract says
//!   ([`exact`](super::exact::exact())). Two f32 sides may differ by the sum of their two floors.
//! - **Any sound kernel passes, not only one order of operations**: one that dequantizes first, one that keeps scales and
//!   offsets out of the sum, one with fused multiply-adds and one without.
//! - Rounding errors of a few operations in a row are added up at their worst; only sums are taken probabilistically.
//! - **No bound where a norm's sum of squares may overflow**: its inverse root is then 0, so the row is zeros, which nothing else tells from a
//!   fault. The floor is infinite there, and no error is one. Elsewhere what overflows is not finite, and is an error.
//! - Where f32 may flush subnormal numbers (WGSL), the smallest normal f32 is allowed for what is lost.
//!
//! Operations that move values have no floor but 0: `Store`, `Rows`, `RouterTopK` (a comparison of numbers that are there; where groups of
//! experts are kept by sums, which round, each choice that follows from the sums' rounding is right: `routing::as_chosen`), and
//! [`Op::Embed`] for types whose weights are exact in f32.

use crate::backend::Contract;
use crate::error::{Error, Result};
use crate::op::{HostTensor, Op, OpKind};

use super::exact::{Emulation, exact};
use super::rounding::{division, exp_error};
use super::{Formula, first_of};

/// For each element of `op`'s result, the largest |error| that `contract` allows against [`exact`](super::exact::exact()): the float64
/// oracle on the same operands, rounded as the contract says. NaN where an operand that enters the element is not finite; infinite where
/// a norm's sum of squares may be beyond what the contract's arithmetic holds.
///
/// # Errors
/// As [`exact`](super::exact::exact()): if the operands do not belong together.
pub fn floor(op: &Op<'_, &HostTensor>, contract: &Contract) -> Result<Vec<f64>> {
    floor_of(op, contract, &exact(op, contract)?)
}

/// [`floor`], for a caller that has the exact result already, so that the operands are not checked again. Only its shape is read.
///
/// # Errors
/// If the weight's type is unreadable.
///
/// # Panics
/// If `exact` is not the result of `op`.
pub fn floor_of(op: &Op<'_, &HostTensor>, contract: &Contract, exact: &HostTensor) -> Result<Vec<f64>> {
    let [floor] = floors_of(op, [contract], exact)?;
    Ok(floor)
}

/// [`floor_of`] for several sides, each around its own exact result. Those that round no operand share one pass over the weights.
///
/// # Errors
/// As [`floor_of`].
///
/// # Panics
/// As [`floor_of`].
pub fn floors_of<const N: usize>(
    op: &Op<'_, &HostTensor>,
    contracts: [&Contract; N],
    exact: &HostTensor,
) -> Result<[Vec<f64>; N]> {
    let floors = match op.kind() {
        OpKind::Store | OpKind::Rows | OpKind::RouterTopK => contracts.map(|_| vec![0.0; exact.len()]),
        _ => stated(op, contracts)?,
    };
    for floor in &floors {
        assert_eq!(floor.len(), exact.len(), "{:?}: the exact values are not this operation's result", op.kind());
    }
    Ok(floors)
}

/// The floors of the operation's formula as it is stated, on operands that are rounded as each contract says.
fn stated<const N: usize>(op: &Op<'_, &HostTensor>, contracts: [&Contract; N]) -> Result<[Vec<f64>; N]> {
    let emulations = contracts.map(|c| Emulation::of(op, c));
    if emulations.iter().all(|e| e.is_nothing()) {
        return on_operands(op, &Emulation::nothing(), contracts);
    }
    let mut floors = [(); N].map(|()| vec![]);
    for ((floors, emulation), contract) in floors.iter_mut().zip(&emulations).zip(contracts) {
        let [own] = on_operands(&emulation.apply(op)?, emulation, [contract])?;
        *floors = own;
    }
    Ok(floors)
}

/// The floors of the operation's formula on operands that have been rounded.
fn on_operands<const N: usize>(
    op: &Op<'_, &HostTensor>,
    emulation: &Emulation,
    contracts: [&Contract; N],
) -> Result<[Vec<f64>; N]> {
    let x: Vec<Vec<f64>> = op.inputs().iter().map(|t| t.to_f64()).collect();
    let floors = first_of!(op, &x, |formula| {
        formula.emulate(emulation);
        formula.floors(contracts)
    });
    floors.unwrap_or_else(|| unreachable!("{:?} has a formula, or moves values", op.kind()))
}

/// An error against its floor.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Ratio {
    /// The largest |error| / floor; infinite where there is an error and no floor, or an error that is not a number. What has no bound
    /// counts as 0.
    pub max: f64,
    /// Where it is; `None` when there are no elements.
    pub index: Option<usize>,
    /// Elements whose error is larger than their floor.
    pub beyond: usize,
    /// Elements whose error is not finite; they are among those beyond.
    pub non_finite: usize,
}

impl Ratio {
    /// Whether rounding explains every element. Nothing is explained by nothing: of no elements, false.
    pub fn explained(&self) -> bool {
        self.index.is_some() && self.beyond == 0
    }

    /// Adds the next element; whether it is the worst so far.
    pub(super) fn add(&mut self, i: usize, error: f64, floor: f64) -> bool {
        // Most errors are so far below their floor that no division is needed to see that they are neither the worst nor beyond it.
        if self.index.is_some() && error.abs() < 0.99 * self.max.min(1.0) * floor {
            return false;
        }
        self.non_finite += !error.is_finite() as usize;
        let r = match error.abs() {
            0.0 => 0.0,
            _ if floor == f64::INFINITY => 0.0,
            e if e.is_finite() && floor.is_finite() => e / floor,
            _ => f64::INFINITY,
        };
        self.beyond += (r > 1.0) as usize;
        let worst = self.index.is_none() || r > self.max;
        if worst {
            (self.max, self.index) = (r, Some(i));
        }
        worst
    }

    /// Adds those of elements that follow; whether the worst is one of them.
    pub(super) fn merge(&mut self, later: Self) -> bool {
        self.non_finite += later.non_finite;
        self.beyond += later.beyond;
        let worst = later.index.is_some() && (self.index.is_none() || later.max > self.max);
        if worst {
            (self.max, self.index) = (later.max, later.index);
        }
        worst
    }
}

/// The largest |error| / floor over elements. An element with no error has ratio 0 whatever its floor.
///
/// # Panics
/// If the two are not of one length.
pub fn injected_ratio(error: &[f64], floor: &[f64]) -> Ratio {
    assert_eq!(error.len(), floor.len(), "one floor an element");
    let mut ratio = Ratio::default();
    for (i, (error, floor)) in error.iter().zip(floor).enumerate() {
        ratio.add(i, *error, *floor);
    }
    ratio
}

/// A stage's result, checked against the oracle.
#[derive(Clone, Debug)]
pub struct OracleCheck {
    /// The oracle's result on the same operands, rounded as the contract says.
    pub exact: HostTensor,
    /// For each element, the error that the contract allows.
    pub floor: Vec<f64>,
    pub ratio: Ratio,
}

/// Checks what a backend made of `op`: its error against the oracle over the floor of its contract. Ids have no floor: one that
/// differs has an infinite ratio, but for a choice that rounding of groups' scores allows.
///
/// # Errors
/// As [`exact`](super::exact::exact()), and if `result` has another shape than the oracle's.
pub fn check_against_oracle(op: &Op<'_, &HostTensor>, contract: &Contract, result: &HostTensor) -> Result<OracleCheck> {
    let mut exact = exact(op, contract)?;
    if let Some(as_chosen) = super::routing::as_chosen(op, contract, &exact, result) {
        exact = as_chosen;
    }
    if exact.shape != result.shape {
        let message = format!("{:?}: the result is {:?}, the oracle's {:?}", op.kind(), result.shape, exact.shape);
        return Err(Error::usage(message));
    }
    let floor = floor_of(op, contract, &exact)?;
    let error: Vec<f64> = result.to_f64().iter().zip(exact.to_f64()).map(|(a, b)| a - b).collect();
    let ratio = injected_ratio(&error, &floor);
    Ok(OracleCheck { exact, floor, ratio })
}

/// How far a side's order of experts may be from that of the oracle's logits, in units of a logit, `[T, E]`: the floor of its router
/// logits, and what its softmax adds before the comparison. Of the softmax only what tells two experts apart counts, not the
/// sum that they share: the relative error of exp, and the division; d log p = dp/p.
///
/// # Errors
/// If `logits_floor` is not as long as the logits.
pub fn logit_bounds(logits: &HostTensor, logits_floor: &[f64], probs: &Contract) -> Result<Vec<f64>> {
    if logits.len() != logits_floor.len() {
        return Err(Error::usage(format!("{} floors for {} router logits", logits_floor.len(), logits.len())));
    }
    let (z, cols) = (logits.to_f64(), logits.cols().max(1));
    let rows = z.chunks_exact(cols).zip(logits_floor.chunks_exact(cols));
    Ok(rows
        .flat_map(|(z, floor)| {
            let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            z.iter().zip(floor).map(move |(z, f)| f + exp_error(max - z, probs) + division(probs))
        })
        .collect())
}
