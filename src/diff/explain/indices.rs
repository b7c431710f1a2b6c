//! Rules of indices: where one is seen, and what stands in its place where it is not.

use std::collections::BTreeMap;

use super::case::{Evidence, Variant};
use crate::diff::locate::Axis;
use crate::error::Result;

/// Coordinates at which a rule must be seen, to be told from what happened to each of them.
pub const SEEN: usize = 3;

/// The axes of what stands in a row of its own, and in a column.
pub const OF_ROWS: &[Axis] = &[Axis::Position, Axis::Slot, Axis::Expert];
pub const OF_COLUMNS: &[Axis] = &[Axis::Column, Axis::Head, Axis::WithinHead];

/// The `i`-th of `n`, counted from the last.
pub fn reversed(i: usize, n: usize) -> usize {
    n - 1 - i
}

/// The other of a pair; the last of an odd number has none.
pub fn neighbour(i: usize, n: usize) -> usize {
    if (i ^ 1) < n { i ^ 1 } else { i }
}

/// Experts that are tried in the place of one, and elements of it that are looked at.
const MOST_EXPERTS: usize = 512;
const LOOKED_AT: usize = 32;

/// What a few experts have in the place of their own `thing`: fewer than a rule of experts would have to be seen at. `expert` is that of an element,
/// `with` the stage with every expert's taken from another. `None` where more are wrong, or one has no other's.
pub fn of_few_experts<'a>(
    case: &'a Evidence<'a>,
    thing: &str,
    expert: impl Fn(usize) -> usize,
    experts: usize,
    with: impl Fn(String, &dyn Fn(usize) -> usize) -> Result<Option<Variant<'a>>>,
) -> Result<Option<Variant<'a>>> {
    let mut wrong: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    case.wrong.iter().for_each(|i| wrong.entry(expert(*i)).or_default().push(*i));
    if case.unseen || wrong.is_empty() || wrong.len() >= SEEN {
        return Ok(None);
    }
    let mut found = Vec::new();
    for (&one, elements) in &wrong {
        let some: Vec<usize> = elements.iter().step_by(elements.len().div_ceil(LOOKED_AT)).copied().collect();
        let gives = |other: usize| -> Result<bool> {
            let Some(variant) = with(String::new(), &|e| if e == one { other } else { e })? else { return Ok(false) };
            Ok(case.residual(&some, &variant.at(&some)?)? <= 1.0)
        };
        let mut other = None;
        for candidate in (0..experts.min(MOST_EXPERTS)).filter(|other| *other != one) {
            if gives(candidate)? {
                other = Some(candidate);
                break;
            }
        }
        let Some(other) = other else { return Ok(None) };
        found.push((one, other));
    }
    let each: Vec<String> =
        found.iter().map(|(one, other)| format!("expert {other} for those of expert {one}")).collect();
    let what = format!("{thing} of {}", each.join(" and "));
    let of = |e: usize| found.iter().find(|(one, _)| *one == e).map_or(e, |(_, other)| *other);
    let bits = found.len() as f64 * (experts as f64).log2();
    Ok(with(what, &of)?.map(|variant| variant.assuming(bits)))
}
