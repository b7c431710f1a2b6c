//! Where in a tensor an error sits: the simplest region that holds it.
//!
//! Design:
//! - Only elements **beyond their floor** speak; rounding noise has no geometry. Without a floor, elements eight times the
//!   median error speak if they hold 99 % of the energy, else all do.
//! - The error is folded along every axis the stage has (position, slot, expert, head, column, dimension within a head,
//!   key), and each fold suggests sets: one coordinate, a few, all but one, ranges, aligned blocks, the last partial tile,
//!   remainders by powers of two.
//! - **Minimum description length** chooses: a region costs the bits to name it, plus the bits to say which elements inside
//!   and outside it are wrong, n·H(k/n) each. So a region that is larger than the error pays for its innocent elements, and
//!   a contrived one for its name. Sets of different axes combine while that gets cheaper.
//! - A region must hold 95 % of the energy beyond the floor. None cheaper than naming nothing: the whole tensor, or scattered.

mod axis;
pub mod pattern;
mod relation;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::diff::locate::pattern::{Pattern, PatternKind, Region};
use crate::diff::measure::metrics::{NonFinite, unravel};
use crate::op::{Dim, GgmlType, OpKind, Stage};
use axis::{Axis, Candidate, Marginal, Words};

/// The least share of the energy that a named region holds.
const COVERAGE: f64 = 0.95;
/// The best candidates that are kept of each axis.
const PER_AXIS: usize = 3;
/// Below this density of wrong elements an unpatterned error is scattered rather than everywhere.
const WHOLE: f64 = 0.25;

/// A stage's values and what is known of its axes.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub stage: Stage,
    pub shape: &'a [usize],
    /// What the stage should be on the subject's own inputs.
    pub expected: &'a [f64],
    /// What it is.
    pub subject: &'a [f64],
    /// The rounding error allowed to each element, where it is known.
    pub floor: Option<&'a [f64]>,
    /// Position of the first row.
    pub start: usize,
    /// Expert ids `[T, K]`, for `[T, K, n]` stages.
    pub ids: Option<&'a [u32]>,
    /// For stages of `heads·head_dim` columns.
    pub head_dim: Option<usize>,
    /// Type of the weight that the stage reads.
    pub qtype: Option<GgmlType>,
}

/// A row of the tensor, the last axis taken apart.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    position: usize,
    slot: usize,
    expert: usize,
    head: usize,
}

/// The tensor as rows and columns, with the elements that speak.
struct Grid<'a> {
    view: View<'a>,
    rows: Vec<Row>,
    cols: usize,
    head_dim: usize,
    /// Whether columns are keys under a causal mask, so that only those up to the diagonal exist.
    causal: bool,
    speaks: Speaks<'a>,
}

/// Which elements count as wrong.
enum Speaks<'a> {
    /// Not finite where the expected value is, or the other way round.
    NonFinite,
    /// An error beyond its own floor.
    Floor(&'a [f64]),
    /// An error beyond one threshold.
    Over(f64),
}

/// Elements, and those of them beyond the floor with their energy.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    count: usize,
    energy: f64,
    total: usize,
}

impl Tally {
    fn plus(self, o: Tally) -> Tally {
        Tally { count: self.count + o.count, energy: self.energy + o.energy, total: self.total + o.total }
    }
}

/// The pattern of an error; `None` when no element is beyond its floor.
///
/// # Panics
/// If a slice's length is not that of the shape.
pub fn find(view: View<'_>) -> Option<Pattern> {
    let n: usize = view.shape.iter().product();
    assert!(view.expected.len() == n && view.subject.len() == n, "{}: values of shape {:?}", view.stage, view.shape);
    assert!(view.floor.is_none_or(|f| f.len() == n), "{}: floor of shape {:?}", view.stage, view.shape);
    if n == 0 {
        return None;
    }
    let grid = Grid::new(view);
    let all = grid.tally(&[]);
    if all.count == 0 {
        return None;
    }
    let chosen = grid.search(all);
    Some(grid.pattern(all, &chosen))
}

impl<'a> Grid<'a> {
    fn new(view: View<'a>) -> Self {
        let dims = view.stage.info().shape;
        let cols = view.shape.last().copied().unwrap_or(1);
        let n_rows = view.expected.len() / cols.max(1);
        let inner = if view.shape.len() == 3 { view.shape[1] } else { 1 };
        let by_head = dims[0] == Dim::Heads && view.shape.len() == 3;
        let rows = (0..n_rows).map(|r| {
            let (outer, inner_at) = (r / inner.max(1), r % inner.max(1));
            match by_head {
                true => Row { position: inner_at, head: outer, ..Row::default() },
                false => {
                    let expert = view.ids.and_then(|ids| ids.get(r)).map_or(0, |&e| e as usize);
                    Row { position: outer, slot: inner_at, expert, head: 0 }
                }
            }
        });
        let head_dim = view
            .head_dim
            .filter(|d| matches!(dims.last(), Some(Dim::Q | Dim::Kv)) && *d > 0 && cols.is_multiple_of(*d));
        let speaks = Speaks::new(&view);
        let mut grid =
            Self { view, rows: rows.collect(), cols, head_dim: head_dim.unwrap_or(0), causal: false, speaks };
        // Above the diagonal there is nothing, unless the mask itself is what is wrong.
        let above = |r: usize| grid.beyond_diagonal(r)..cols;
        let clean = |r: usize| above(r).all(|c| grid.energy(r * cols + c).is_none());
        grid.causal = by_head && (0..n_rows).all(clean);
        grid
    }

    /// The first column beyond the diagonal in row `r` of an attention matrix.
    fn beyond_diagonal(&self, r: usize) -> usize {
        (self.view.start + self.rows[r].position + 1).min(self.cols)
    }

    /// Columns that exist in row `r`.
    fn visible(&self, r: usize) -> usize {
        if self.causal { self.beyond_diagonal(r) } else { self.cols }
    }

    /// The energy of element `i`, if it speaks.
    fn energy(&self, i: usize) -> Option<f64> {
        let error = self.view.subject[i] - self.view.expected[i];
        match self.speaks {
            Speaks::NonFinite => (self.view.subject[i].is_finite() != self.view.expected[i].is_finite()).then_some(1.0),
            Speaks::Floor(floor) => (error.abs() > floor[i]).then_some(error * error),
            Speaks::Over(least) => (error.abs() > least).then_some(error * error),
        }
    }

    /// The coordinate of an element on an axis.
    fn coordinate(&self, axis: Axis, r: usize, c: usize) -> usize {
        let row = &self.rows[r];
        match axis {
            Axis::Position => row.position,
            Axis::Slot | Axis::Expert if self.along_columns(axis) => c,
            Axis::Slot => row.slot,
            Axis::Expert => row.expert,
            Axis::Head => c.checked_div(self.head_dim).unwrap_or(row.head), // columns are not heads where head_dim is 0
            Axis::WithinHead => c % self.head_dim,
            Axis::Column | Axis::Key => c,
        }
    }

    /// The axes that this stage has and that have more than one coordinate, with their lengths.
    fn axes(&self) -> Vec<(Axis, usize)> {
        let dims = self.view.stage.info().shape;
        let longest = |f: fn(&Row) -> usize| self.rows.iter().map(f).max().map_or(0, |m| m + 1);
        let mut axes = vec![(Axis::Position, longest(|r| r.position))];
        if self.view.ids.is_some() {
            axes.push((Axis::Expert, longest(|r| r.expert)));
        }
        // Of a single position each expert has one slot: the slot then says nothing that the expert does not say better.
        let several = longest(|r| r.position) > 1 || self.view.ids.is_none();
        if dims.len() == 3 && dims[0] != Dim::Heads && several {
            axes.push((Axis::Slot, longest(|r| r.slot)));
        }
        if dims[0] == Dim::Heads {
            axes.push((Axis::Head, longest(|r| r.head)));
        }
        if let Some(heads) = self.cols.checked_div(self.head_dim) {
            axes.push((Axis::Head, heads));
            axes.push((Axis::WithinHead, self.head_dim));
        }
        axes.push(match dims.last() {
            Some(Dim::E) => (Axis::Expert, self.cols),
            Some(Dim::K) => (Axis::Slot, self.cols),
            Some(Dim::S) => (Axis::Key, self.cols),
            _ => (Axis::Column, self.cols),
        });
        axes.retain(|(_, n)| *n > 1);
        axes
    }

    /// Whether an axis runs along columns rather than rows.
    fn along_columns(&self, axis: Axis) -> bool {
        match axis {
            Axis::Position => false,
            Axis::Slot | Axis::Expert => self.view.shape.len() < 3,
            Axis::Head => self.head_dim > 0,
            Axis::WithinHead | Axis::Column | Axis::Key => true,
        }
    }

    /// The tally of the elements that every one of `parts` contains.
    fn tally(&self, parts: &[&Candidate]) -> Tally {
        let holds = |columns: bool, r: usize, c: usize| {
            parts
                .iter()
                .filter(|p| self.along_columns(p.axis) == columns)
                .all(|p| p.contains(self.coordinate(p.axis, r, c)))
        };
        let column_in: Vec<bool> = (0..self.cols).map(|c| holds(true, 0, c)).collect();
        let rows: Vec<Tally> = (0..self.rows.len())
            .into_par_iter()
            .filter(|&r| holds(false, r, 0))
            .map(|r| {
                let mut tally = Tally::default();
                for c in (0..self.visible(r)).filter(|&c| column_in[c]) {
                    let energy = self.energy(r * self.cols + c);
                    tally = tally.plus(Tally {
                        count: usize::from(energy.is_some()),
                        energy: energy.unwrap_or(0.0),
                        total: 1,
                    });
                }
                tally
            })
            .collect();
        rows.into_iter().fold(Tally::default(), Tally::plus)
    }

    /// Folds the error along every axis.
    fn fold(&self) -> Vec<Marginal> {
        let mut marginals: Vec<Marginal> = self.axes().into_iter().map(|(axis, n)| Marginal::new(axis, n)).collect();
        let mut columns = vec![Tally::default(); self.cols];
        for r in 0..self.rows.len() {
            let mut row = Tally::default();
            for (c, column) in columns.iter_mut().enumerate().take(self.visible(r)) {
                let energy = self.energy(r * self.cols + c);
                let one = Tally { count: usize::from(energy.is_some()), energy: energy.unwrap_or(0.0), total: 1 };
                row = row.plus(one);
                *column = column.plus(one);
            }
            for m in marginals.iter_mut().filter(|m| !self.along_columns(m.axis)) {
                m.add(self.coordinate(m.axis, r, 0), row.count, row.energy, row.total);
            }
        }
        for (c, t) in columns.iter().enumerate() {
            for m in marginals.iter_mut().filter(|m| self.along_columns(m.axis)) {
                m.add(self.coordinate(m.axis, 0, c), t.count, t.energy, t.total);
            }
        }
        marginals
    }

    /// The cheapest combination of sets, in the order of axes; empty when none is cheaper than naming nothing.
    fn search(&self, all: Tally) -> Vec<Candidate> {
        let cost = |inside: Tally, names: f64| {
            names
                + surprise(inside)
                + surprise(Tally { count: all.count - inside.count, energy: 0.0, total: all.total - inside.total })
        };
        let mut singles: Vec<(f64, Candidate)> = Vec::new();
        for marginal in self.fold() {
            let mut of_axis: Vec<(f64, Candidate)> = Vec::new();
            for c in marginal.candidates() {
                let (count, energy, total) = marginal.within(&c);
                if energy >= COVERAGE * all.energy {
                    of_axis.push((cost(Tally { count, energy, total }, c.bits()), c));
                }
            }
            of_axis.sort_by(|a, b| a.0.total_cmp(&b.0));
            of_axis.truncate(PER_AXIS);
            singles.extend(of_axis);
        }
        let mut chosen: Vec<Candidate> = Vec::new();
        let mut best = cost(all, 0.0);
        // At most one set an axis; each round adds the one that saves most.
        loop {
            let mut round: Option<(f64, &Candidate)> = None;
            for (alone, c) in &singles {
                if chosen.iter().any(|p| p.axis == c.axis) {
                    continue;
                }
                let bits = if chosen.is_empty() {
                    *alone
                } else {
                    let parts: Vec<&Candidate> = chosen.iter().chain([c]).collect();
                    let inside = self.tally(&parts);
                    if inside.energy < COVERAGE * all.energy {
                        continue;
                    }
                    cost(inside, parts.iter().map(|p| p.bits()).sum())
                };
                if bits < best - 1.0 && round.is_none_or(|(b, _)| bits < b) {
                    round = Some((bits, c));
                }
            }
            let Some((bits, c)) = round else { break };
            best = bits;
            chosen.push(c.clone());
        }
        chosen.sort_by_key(|c| c.axis);
        chosen
    }

    /// The share of the energy that lies above the diagonal of an attention matrix, and the span of key − query there.
    fn above_diagonal(&self, all: Tally) -> Option<(Tally, [i64; 2])> {
        if self.causal || self.view.stage.info().shape[0] != Dim::Heads {
            return None;
        }
        let (mut inside, mut span) = (Tally::default(), [i64::MAX, i64::MIN]);
        for r in 0..self.rows.len() {
            for c in self.beyond_diagonal(r)..self.cols {
                inside.total += 1;
                if let Some(energy) = self.energy(r * self.cols + c) {
                    inside = inside.plus(Tally { count: 1, energy, total: 0 });
                    let offset = c as i64 - (self.view.start + self.rows[r].position) as i64;
                    span = [span[0].min(offset), span[1].max(offset)];
                }
            }
        }
        (inside.energy >= COVERAGE * all.energy).then_some((inside, span))
    }

    fn pattern(&self, all: Tally, chosen: &[Candidate]) -> Pattern {
        let relation = |contains: &(dyn Fn(usize, usize) -> bool + Sync)| match self.speaks {
            Speaks::NonFinite => None,
            _ => relation::find(&self.view, self.cols, self.head_dim, contains),
        };
        let done = |kinds: Vec<PatternKind>, description: String, inside: Tally, region: Region, relation| Pattern {
            kind: kinds[0],
            kinds,
            description: match (&self.speaks, self.non_finite()) {
                (Speaks::NonFinite, Some(n)) if n.any() => format!("{n}: {description}"),
                (Speaks::NonFinite, _) => format!("finite where the expected value is not: {description}"),
                _ => description,
            },
            share: inside.energy / all.energy,
            elements: inside.total,
            elements_share: inside.total as f64 / all.total as f64,
            region,
            relation,
            non_finite: self.non_finite(),
        };
        if let Some((inside, span)) = self.above_diagonal(all) {
            let description = match span {
                [a, b] if a == b => format!("above the diagonal: keys {a} after the query"),
                [a, b] => format!("above the diagonal: keys {a} to {b} after the query"),
            };
            let region = Region { key_minus_query: Some(span), ..Region::default() };
            return done(vec![PatternKind::Diagonal], description, inside, region, None);
        }
        let parts: Vec<&Candidate> = chosen.iter().collect();
        let inside = self.tally(&parts);
        let contains =
            |r: usize, c: usize| c < self.visible(r) && parts.iter().all(|p| p.contains(self.coordinate(p.axis, r, c)));
        if chosen.is_empty() {
            let speaking = || (0..self.view.subject.len()).filter(|i| self.energy(*i).is_some());
            if all.count == 1 {
                let index = speaking().next().map(|i| unravel(i, self.view.shape)).unwrap_or_default();
                let one = Tally { total: 1, ..all };
                return done(
                    vec![PatternKind::Element],
                    format!("one element, {index:?}"),
                    one,
                    Region::default(),
                    None,
                );
            }
            let whole = all.count as f64 >= WHOLE * all.total as f64;
            let (kind, description) = match whole {
                true => (PatternKind::WholeTensor, "whole tensor".to_string()),
                false => {
                    let text = format!("scattered: {} of {} elements, without a common place", all.count, all.total);
                    (PatternKind::Scattered, text)
                }
            };
            return done(vec![kind], description, inside, Region::default(), relation(&contains));
        }
        let mut region = Region::default();
        for p in &parts {
            p.restrict(&mut region, self.view.start);
        }
        let words = Words {
            start: self.view.start,
            qtype: self.view.qtype,
            columns_of_weight: self.view.stage.info().op == OpKind::Embed,
        };
        let mut kinds: Vec<PatternKind> = parts.iter().map(|p| p.kind()).collect();
        if inside.total == 1 {
            kinds.insert(0, PatternKind::Element);
        }
        let description: Vec<String> = parts
            .iter()
            .map(|p| match p.axis {
                // How many rows an expert has says how much there is to see of it.
                Axis::Expert if !self.along_columns(p.axis) => {
                    let rows = self.rows.iter().filter(|r| p.contains(r.expert)).count();
                    format!("{} ({rows} of {} rows)", p.describe(words), self.rows.len())
                }
                _ => p.describe(words),
            })
            .collect();
        done(kinds, description.join("; "), inside, region, relation(&contains))
    }

    /// The subject's non-finite values.
    fn non_finite(&self) -> Option<NonFinite> {
        if !matches!(self.speaks, Speaks::NonFinite) {
            return None;
        }
        let x = self.view.subject;
        Some(NonFinite {
            nan: x.iter().filter(|x| x.is_nan()).count(),
            inf: x.iter().filter(|x| x.is_infinite()).count(),
            first: x.iter().position(|x| !x.is_finite()).map(|i| unravel(i, self.view.shape)),
        })
    }
}

impl<'a> Speaks<'a> {
    fn new(view: &View<'a>) -> Self {
        // What is not finite on both sides came in with the inputs.
        if view.subject.iter().zip(view.expected).any(|(s, x)| s.is_finite() != x.is_finite()) {
            return Speaks::NonFinite;
        }
        if let Some(floor) = view.floor {
            return Speaks::Floor(floor);
        }
        let finite = |e: &f64| e.is_finite();
        let mut errors: Vec<f64> =
            view.subject.iter().zip(view.expected).map(|(s, x)| (s - x).abs()).filter(finite).collect();
        if errors.is_empty() {
            return Speaks::Over(0.0);
        }
        let all = errors.clone();
        let energy = |least: f64| -> f64 { all.iter().filter(|e| **e > least).map(|e| e * e).sum() };
        let middle = errors.len() / 2;
        let median = *errors.select_nth_unstable_by(middle, f64::total_cmp).1;
        let least = 8.0 * median;
        Speaks::Over(if energy(least) >= 0.99 * energy(0.0) { least } else { 0.0 })
    }
}

/// Bits to say which of `total` elements are the `count` that are wrong: total·H(count/total).
fn surprise(t: Tally) -> f64 {
    let (k, n) = (t.count as f64, t.total as f64);
    let part = |x: f64| if x > 0.0 { x * (n / x).log2() } else { 0.0 };
    part(k) + part(n - k)
}
