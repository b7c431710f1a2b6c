//! How the subject's values follow from the expected ones, where they do in a simple way.

use super::layout::Layout;
use crate::diff::locate::{Relation, RelationKind};

/// A relation is named when at most this share of the error's energy remains under it.
const RESIDUAL: f64 = 0.02;
/// Where no more than this does it is said of every element.
const EVERY: f64 = 1e-3;

/// Of what a relation is said that leaves so much of the error.
fn elements_that_are(left: f64) -> String {
    if left <= EVERY {
        return "every element there is".into();
    }
    format!("the elements there are, but for {:.1} % of the error,", 100.0 * left)
}

/// The simplest relation of subject values `s` to expected values `x` that holds over `elements`; `None` if none does.
/// `head_dim` is the model's, whatever the stage.
pub(super) fn find(
    x: &[f64],
    s: &[f64],
    layout: &Layout,
    head_dim: Option<usize>,
    elements: &[usize],
) -> Option<Relation> {
    let cols = layout.cols;
    let error: f64 = elements.iter().map(|&i| (s[i] - x[i]).powi(2)).sum();
    // One element has every relation.
    if elements.len() < 2 || error == 0.0 {
        return None;
    }
    // What remains of the error if the subject's value at an element is `f` of it.
    let residual = |f: &dyn Fn(usize) -> Option<f64>| -> f64 {
        let mut rest = 0.0;
        for &i in elements {
            let Some(y) = f(i) else { return f64::INFINITY };
            rest += (s[i] - y).powi(2);
        }
        rest / error
    };
    let named = |kind, value, residual: f64, description: String| {
        (residual <= RESIDUAL).then_some(Relation { kind, value, residual, description })
    };

    if elements.iter().all(|&i| s[i] == 0.0) {
        return named(RelationKind::Zero, None, 0.0, "the values there are all 0".into());
    }
    let xx: f64 = elements.iter().map(|&i| x[i].powi(2)).sum();
    let xs: f64 = elements.iter().map(|&i| x[i] * s[i]).sum();
    if xx > 0.0 {
        let c = xs / xx;
        let left = residual(&|i| Some(c * x[i]));
        let (kind, text) = match (c + 1.0).abs() < 1e-3 && left <= EVERY {
            true => (RelationKind::SignFlip, "every element there has the other sign".to_string()),
            false => (RelationKind::Scale, format!("{} {} × expected", elements_that_are(left), factor(c, head_dim))),
        };
        if let Some(found) = named(kind, Some(c), left, text) {
            return Some(found);
        }
    }
    let offset = elements.iter().map(|&i| s[i] - x[i]).sum::<f64>() / elements.len() as f64;
    let left = residual(&|i| Some(x[i] + offset));
    let sign = if offset < 0.0 { "−" } else { "+" };
    let text = format!("{} expected {sign} {:.6e}", elements_that_are(left), offset.abs());
    if let Some(found) = named(RelationKind::Offset, Some(offset), left, text) {
        return Some(found);
    }

    // Of an exchange both sides are wrong, but for some that are alike.
    let both = |other: &dyn Fn(usize) -> usize| {
        let there = elements.iter().filter(|i| elements.binary_search(&other(**i)).is_ok()).count();
        10 * there >= 9 * elements.len()
    };
    let (group, what) = if layout.head_dim > 0 { (layout.head_dim, "head") } else { (cols, "row") };
    if group.is_multiple_of(2) {
        let other = |i: usize| i / group * group + (i % group + group / 2) % group;
        let exchanged = |i: usize| Some(x[other(i)]);
        let text = format!("the two halves of each {what} are exchanged");
        if both(&other)
            && let Some(found) = named(RelationKind::HalvesExchanged, None, residual(&exchanged), text)
        {
            return Some(found);
        }
    }
    let neighbour = |i: usize| i / cols * cols + ((i % cols) ^ 1);
    let pairs = |i: usize| x.get(neighbour(i)).filter(|_| neighbour(i) / cols == i / cols).copied();
    let text = "neighbouring columns are exchanged".to_string();
    if both(&neighbour)
        && let Some(found) = named(RelationKind::PairsExchanged, None, residual(&pairs), text)
    {
        return Some(found);
    }
    for (kind, dr, dc, text) in [
        (RelationKind::ShiftedRow, -1, 0, "each row there is the row before it"),
        (RelationKind::ShiftedRow, 1, 0, "each row there is the row after it"),
        (RelationKind::ShiftedColumn, 0, -1, "each element there is the one before it"),
        (RelationKind::ShiftedColumn, 0, 1, "each element there is the one after it"),
    ] {
        // The first or last row (or column) has no neighbour to be taken from; it may hold anything.
        let shifted = |i: usize| {
            let (r, c) = ((i / cols).checked_add_signed(dr)?, (i % cols).checked_add_signed(dc)?);
            x.get(r * cols + c).filter(|_| c < cols).copied()
        };
        let without: f64 = elements.iter().filter(|i| shifted(**i).is_none()).map(|&i| (s[i] - x[i]).powi(2)).sum();
        // What has no neighbour must not be most of the error that is said to be explained.
        if without <= 0.5 * error
            && let Some(found) = named(kind, None, residual(&|i| shifted(i).or(Some(s[i]))), text.into())
        {
            return Some(found);
        }
    }

    // Each row, or each head, by a factor of its own: what a wrong norm or a missing renormalisation leaves.
    let mut sums = vec![(0.0, 0.0); x.len() / group];
    for &i in elements {
        let (xx, xs) = &mut sums[i / group];
        (*xx, *xs) = (*xx + x[i] * x[i], *xs + x[i] * s[i]);
    }
    let used: Vec<f64> = sums.iter().filter(|t| t.0 > 0.0).map(|t| t.1 / t.0).collect();
    // A factor for every group fits a group of one element exactly, and one of two half of the time.
    if elements.len() < 4 * used.len() || used.len() < 2 {
        return None;
    }
    let scale = |(xx, xs): (f64, f64)| if xx > 0.0 { xs / xx } else { 0.0 };
    let (low, high) = used.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), u| (l.min(*u), h.max(*u)));
    let text = format!("each {what} is scaled by a factor of its own, {} to {}", factor(low, None), factor(high, None));
    named(RelationKind::GroupScale, None, residual(&|i| Some(scale(sums[i / group]) * x[i])), text)
}

/// A factor in words; 1 + 1.2e-5 where the plain number would hide it.
fn factor(c: f64, head_dim: Option<usize>) -> String {
    let root = head_dim.map(|d| (d as f64).sqrt());
    let near = |v: f64| ((c / v) - 1.0).abs() < 1e-4;
    match root {
        Some(r) if near(r) => return format!("{c:.6} = √head_dim"),
        Some(r) if near(1.0 / r) => return format!("{c:.6} = 1/√head_dim"),
        _ => {}
    }
    match c - 1.0 {
        d if d.abs() < 1e-3 => format!("(1 {} {:.3e})", if d < 0.0 { "−" } else { "+" }, d.abs()),
        _ if c.abs() >= 1e-3 && c.abs() < 1e4 => format!("{c:.5}"),
        _ => format!("{c:.5e}"),
    }
}
