//! How the subject's values follow from the expected ones, where they do in a simple way.

use super::View;
use crate::diff::locate::pattern::{Relation, RelationKind};

/// A relation is named when at most this share of the error's energy remains under it.
const RESIDUAL: f64 = 0.02;

/// The simplest relation that holds over the elements for which `contains(row, column)`; `None` if none does.
pub(super) fn find(
    view: &View<'_>,
    cols: usize,
    head_dim: usize,
    contains: &(dyn Fn(usize, usize) -> bool + Sync),
) -> Option<Relation> {
    let (x, s) = (view.expected, view.subject);
    let rows = x.len() / cols;
    let members: Vec<(usize, usize)> =
        (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))).filter(|&(r, c)| contains(r, c)).collect();
    let at = |&(r, c): &(usize, usize)| r * cols + c;
    let error: f64 = members.iter().map(|m| (s[at(m)] - x[at(m)]).powi(2)).sum();
    // One element has every relation.
    if members.len() < 2 || error == 0.0 {
        return None;
    }
    // What remains of the error if the subject's value at a member is `f` of it.
    let residual = |f: &dyn Fn(usize, usize) -> Option<f64>| -> f64 {
        let mut rest = 0.0;
        for m in &members {
            let Some(y) = f(m.0, m.1) else { return f64::INFINITY };
            rest += (s[at(m)] - y).powi(2);
        }
        rest / error
    };
    let named = |kind, value, residual: f64, description: String| {
        (residual <= RESIDUAL).then_some(Relation { kind, value, residual, description })
    };

    if members.iter().all(|m| s[at(m)] == 0.0) {
        return named(RelationKind::Zero, None, 0.0, "the values there are all 0".into());
    }
    let xx: f64 = members.iter().map(|m| x[at(m)].powi(2)).sum();
    let xs: f64 = members.iter().map(|m| x[at(m)] * s[at(m)]).sum();
    if xx > 0.0 {
        let c = xs / xx;
        let rest = residual(&|r, col| Some(c * x[r * cols + col]));
        let kind = if (c + 1.0).abs() < 1e-3 { RelationKind::SignFlip } else { RelationKind::Scale };
        let text = match kind {
            RelationKind::SignFlip => "every element there has the other sign".to_string(),
            _ => format!("every element there is {} × expected", factor(c, view.head_dim)),
        };
        if let Some(found) = named(kind, Some(c), rest, text) {
            return Some(found);
        }
    }
    let offset = members.iter().map(|m| s[at(m)] - x[at(m)]).sum::<f64>() / members.len() as f64;
    let rest = residual(&|r, c| Some(x[r * cols + c] + offset));
    let text = format!("every element there is expected {} {:.6e}", if offset < 0.0 { "−" } else { "+" }, offset.abs());
    if let Some(found) = named(RelationKind::Offset, Some(offset), rest, text) {
        return Some(found);
    }

    let group = if head_dim > 0 { head_dim } else { cols };
    let what = if head_dim > 0 { "head" } else { "row" };
    if group.is_multiple_of(2) {
        let half = group / 2;
        let exchanged = |r: usize, c: usize| Some(x[r * cols + c / group * group + (c % group + half) % group]);
        let text = format!("the two halves of each {what} are exchanged");
        if let Some(found) = named(RelationKind::HalvesExchanged, None, residual(&exchanged), text) {
            return Some(found);
        }
    }
    let pairs = |r: usize, c: usize| (c ^ 1 < cols).then(|| x[r * cols + (c ^ 1)]);
    let text = "neighbouring columns are exchanged".to_string();
    if let Some(found) = named(RelationKind::PairsExchanged, None, residual(&pairs), text) {
        return Some(found);
    }
    for (kind, dr, dc, text) in [
        (RelationKind::ShiftedRow, -1, 0, "each row there is the row before it"),
        (RelationKind::ShiftedRow, 1, 0, "each row there is the row after it"),
        (RelationKind::ShiftedColumn, 0, -1, "each element there is the one before it"),
        (RelationKind::ShiftedColumn, 0, 1, "each element there is the one after it"),
    ] {
        // The first or last row (or column) has no neighbour to be taken from; it may hold anything.
        let shifted = |r: usize, c: usize| {
            let (r2, c2) = (r.checked_add_signed(dr)?, c.checked_add_signed(dc)?);
            (r2 < rows && c2 < cols).then(|| x[r2 * cols + c2])
        };
        let inner = |r: usize, c: usize| shifted(r, c).or(Some(s[r * cols + c]));
        let without: f64 =
            members.iter().filter(|m| shifted(m.0, m.1).is_none()).map(|m| (s[at(m)] - x[at(m)]).powi(2)).sum();
        // What has no neighbour must not be most of the error that is said to be explained.
        if without <= 0.5 * error
            && let Some(found) = named(kind, None, residual(&inner), text.into())
        {
            return Some(found);
        }
    }
    group_scale(view, cols, group, what, &members, error)
}

/// Each row, or each head, by a factor of its own: what a wrong norm or a missing renormalisation leaves.
fn group_scale(
    view: &View<'_>,
    cols: usize,
    group: usize,
    what: &str,
    members: &[(usize, usize)],
    error: f64,
) -> Option<Relation> {
    let (x, s) = (view.expected, view.subject);
    let groups = cols / group;
    let mut sums = vec![(0.0, 0.0, 0usize); view.expected.len() / group];
    for &(r, c) in members {
        let i = r * cols + c;
        let sum = &mut sums[r * groups + c / group];
        *sum = (sum.0 + x[i] * x[i], sum.1 + x[i] * s[i], sum.2 + 1);
    }
    let used: Vec<(f64, usize)> = sums.iter().filter(|t| t.0 > 0.0).map(|t| (t.1 / t.0, t.2)).collect();
    // A factor for every group fits a group of one element exactly, and one of two half of the time.
    if members.len() < 4 * used.len() || used.len() < 2 {
        return None;
    }
    let scale = |r: usize, c: usize| {
        let t = sums[r * groups + c / group];
        if t.0 > 0.0 { t.1 / t.0 } else { 0.0 }
    };
    let rest: f64 = members.iter().map(|&(r, c)| (s[r * cols + c] - scale(r, c) * x[r * cols + c]).powi(2)).sum();
    let (low, high) = used.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), u| (l.min(u.0), h.max(u.0)));
    (rest / error <= RESIDUAL).then(|| Relation {
        kind: RelationKind::GroupScale,
        value: None,
        residual: rest / error,
        description: format!(
            "each {what} is scaled by a factor of its own, {} to {}",
            factor(low, None),
            factor(high, None)
        ),
    })
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
