//! What is wrong in wrong rows: other rows' values, nothing at all, some places, a known mistake.

use std::rc::Rc;

use rayon::prelude::*;

use super::{Judge, Judged};
use crate::diff::explain::{StageEval, Upstream, explain};
use crate::diff::locate::{self, Geometry, Pattern};
use crate::diff::outcome::Cause;
use crate::error::Result;
use crate::model::Model;
use crate::op::Data;

/// Rows beyond the worst of the right ones by less than this are no others.
const FURTHER: f64 = 8.0;
/// Wrong rows that are looked at for where and why.
const LOOKED_AT: usize = 24;
/// Wrong rows that must hold other rows' values for that to be said.
const TRIED: usize = 8;

/// What wrong rows hold in place of their own values.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Misplaced {
    /// In words.
    pub what: String,
    /// Rows that were looked at, and those of them that hold it.
    pub tried: usize,
    pub hold: usize,
}

/// What is known of the wrong rows.
#[derive(Default)]
pub(super) struct WrongRows {
    pub misplaced: Option<Misplaced>,
    pub pattern: Option<Pattern>,
    pub cause: Option<Cause>,
}

/// The rows in which the sides are further apart than in any that is right on both.
pub(super) fn differing(apart: &[f64], judged: &Judged) -> Vec<usize> {
    let most = judged.right().map(|row| apart[row]).filter(|apart| apart.is_finite()).fold(0.0, f64::max);
    (0..apart.len()).filter(|row| apart[*row] > FURTHER * most).collect()
}

impl WrongRows {
    /// Of the wrong rows of a side; `differing` are those that are not judged, too.
    pub fn of(judge: &Judge<'_>, model: &Model, side: usize, wrong: &[usize], differing: &[usize]) -> Result<Self> {
        if wrong.is_empty() {
            return Ok(Self::default());
        }
        let misplaced = misplaced(judge, side, wrong, differing);
        let looked_at: Vec<usize> = match judge.call.params.start() {
            Some(_) => wrong[..1].to_vec(),
            None => wrong.iter().copied().take(LOOKED_AT).collect(),
        };
        let checks = judge.checks(&looked_at)?;
        let (case, check, output) = &checks[side];
        let ids: Vec<u32> = case.kept.rows.iter().flat_map(|row| row.slots.iter().map(|s| s.expert)).collect();
        let start = case.params.start().unwrap_or(0);
        let geometry = Geometry {
            stage: case.site.stage,
            shape: &output.shape,
            start,
            ids: Some(&ids),
            head_dim: Some(model.config.head_dim_of(case.site.stage)),
            qtype: case.weight.as_ref().map(|w| w.ty),
        };
        // Where among the wrong rows they are was found above; here it is where in a row.
        let pattern = locate::find(&geometry, &check.exact.to_f64(), &output.to_f64(), Some(&check.floor));
        let cause = match misplaced {
            Some(_) => None,
            None => {
                let op = case.op().try_map(|t| Ok(Rc::new((*t).clone())))?;
                let scene = StageEval {
                    site: case.site,
                    start,
                    op: &op,
                    output,
                    exact: &check.exact,
                    floor: &check.floor,
                    contract: judge.contracts[side],
                    earlier: &Upstream::new(),
                    config: &model.config,
                    weights: &model.weights,
                };
                explain(&scene)?.cause()
            }
        };
        Ok(Self { misplaced, pattern, cause })
    }
}

/// Whether wrong rows hold what other rows should, or nothing.
fn misplaced(judge: &Judge<'_>, side: usize, wrong: &[usize], differing: &[usize]) -> Option<Misplaced> {
    // Of an attention matrix, rows have other lengths.
    if judge.call.params.start().is_some_and(|_| judge.call.shape().len() == 3) {
        return None;
    }
    let (Data::F32(g), Data::F32(c)) = (&judge.results[side].data, &judge.results[1 - side].data) else { return None };
    let n = judge.call.positions();
    let len = g.len() / n.max(1);
    let mut tried: Vec<usize> = wrong.iter().chain(differing).copied().collect();
    tried.sort_unstable();
    tried.dedup();
    let step = tried.len().div_ceil(TRIED).max(1);
    let tried: Vec<usize> = tried.into_iter().step_by(step).collect();
    let row = |of: &'_ [f32], r: usize| of[r * len..][..len].to_vec();
    if tried.iter().all(|r| row(g, *r).iter().all(|x| *x == 0.0)) {
        let (what, hold) = ("zeros: nothing was written".to_string(), tried.len());
        return Some(Misplaced { what, tried: hold, hold });
    }
    // A row is another's if it is within the rounding of both: a thousandth of its own size, where others' are as far as that size.
    let same = |mine: &[f32], r: usize| {
        let (mut apart, mut size) = (0.0f64, 0.0f64);
        for (a, b) in mine.iter().zip(&c[r * len..][..len]) {
            apart += (f64::from(*a) - f64::from(*b)).powi(2);
            size += f64::from(*b).powi(2);
        }
        size > 0.0 && apart <= 1e-6 * size
    };
    let from: Vec<(usize, Option<usize>)> = tried
        .iter()
        .map(|&r| {
            let mine = row(g, r);
            (r, (0..n).into_par_iter().find_first(|other| *other != r && same(&mine, *other)))
        })
        .collect();
    let found: Vec<(usize, usize)> = from.iter().filter_map(|(r, other)| Some((*r, (*other)?))).collect();
    let (first, other) = *found.first()?;
    let shift = other as i64 - first as i64;
    let modulus = (1..=first).rev().find(|m| found.iter().all(|(r, other)| r % m == *other));
    let what = if let Some(m) = modulus.filter(|_| found.len() > 1 || shift.unsigned_abs().is_power_of_two()) {
        format!("the values of row r mod {m}, row {first} those of row {other}")
    } else if found.iter().all(|(r, other)| *other as i64 - *r as i64 == shift) {
        format!(
            "the values of row r {} {}, row {first} those of row {other}",
            if shift < 0 { "−" } else { "+" },
            shift.abs()
        )
    } else if found.iter().all(|(_, o)| *o == other) {
        format!("the values of row {other}")
    } else {
        format!("other rows' values, row {first} those of row {other}")
    };
    (2 * found.len() > tried.len()).then_some(Misplaced { what, tried: tried.len(), hold: found.len() })
}
