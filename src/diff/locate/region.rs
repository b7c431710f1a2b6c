//! Parts of a stage, each a set of coordinates on one axis or on several.

use std::sync::Arc;

use super::axis::{Axis, Restriction, Tally};
use super::layout::{Geometry, Layout};

/// The regions that are offered at most.
const MOST_REGIONS: usize = 32;
/// How many coordinates are named one by one.
const FEW: usize = 8;
/// Sets that are offered at most of each axis.
const MOST_PER_AXIS: usize = 4;

/// A part of a stage: the elements that every one of its restrictions contains.
#[derive(Clone, Debug)]
pub struct ErrorRegion {
    pub(super) layout: Arc<Layout>,
    pub(super) parts: Vec<Restriction>,
}

impl ErrorRegion {
    /// Whether row `i`, or column `i`, may hold elements of the region.
    fn holds(&self, columns: bool, i: usize) -> bool {
        let parts = self.parts.iter().filter(|p| self.layout.along_columns(p.axis) == columns);
        parts.into_iter().all(|p| p.contains(self.layout.coordinate(p.axis, i)))
    }

    /// The rows and the columns whose elements it has, ascending.
    pub(super) fn rows_and_columns(&self) -> (Vec<usize>, Vec<usize>) {
        let rows = (0..self.layout.rows.len()).filter(|r| self.holds(false, *r)).collect();
        (rows, (0..self.layout.cols).filter(|c| self.holds(true, *c)).collect())
    }

    /// Whether element `i`, counted in row-major order, belongs to it.
    pub fn contains(&self, i: usize) -> bool {
        let row = i / self.layout.cols;
        row < self.layout.rows.len() && self.holds(false, row) && self.holds(true, i % self.layout.cols)
    }

    /// Its elements, ascending.
    pub fn elements(&self) -> Vec<usize> {
        let (rows, columns) = self.rows_and_columns();
        rows.iter().flat_map(|r| columns.iter().map(move |c| r * self.layout.cols + c)).collect()
    }

    /// How many coordinates along `axis` its elements have.
    pub fn coordinates(&self, axis: Axis) -> usize {
        let (rows, columns) = self.rows_and_columns();
        let indices = if self.layout.along_columns(axis) { columns } else { rows };
        let mut all: Vec<usize> = indices.into_iter().map(|i| self.layout.coordinate(axis, i)).collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    }

    /// The axes that it restricts.
    pub fn axes(&self) -> impl Iterator<Item = Axis> {
        self.parts.iter().map(|p| p.axis)
    }

    /// Bits to name it.
    pub fn bits(&self) -> f64 {
        self.parts.iter().map(Restriction::bits).sum()
    }

    /// In words: "expert 93 only; columns 224–255, the last block of 32".
    pub fn describe(&self) -> String {
        let words: Vec<String> = self.parts.iter().map(|p| p.describe(self.layout.words)).collect();
        words.join("; ")
    }

    /// As [`ErrorRegion::describe`], with the number of rows that an expert has, which says how much there was to see of it.
    pub(super) fn describe_with_rows(&self) -> String {
        let part = |p: &Restriction| match p.axis {
            Axis::Expert if !self.layout.along_columns(p.axis) => {
                let rows = &self.layout.rows;
                let inside = rows.iter().filter(|r| p.contains(r.expert)).count();
                format!("{} ({inside} of {} rows)", p.describe(self.layout.words), rows.len())
            }
            _ => p.describe(self.layout.words),
        };
        self.parts.iter().map(part).collect::<Vec<_>>().join("; ")
    }
}

/// The regions that hold every wrong element and not the whole stage: those of one axis, then those of two, each by what it
/// costs to say which elements are wrong by way of them. `wrong` are elements counted in row-major order.
///
/// Of one axis, a set is offered only if no cheaper one is a part of it.
pub fn regions(geometry: &Geometry<'_>, wrong: &[usize]) -> Vec<ErrorRegion> {
    let layout = Arc::new(Layout::new(geometry));
    let (n_rows, cols) = (layout.rows.len(), layout.cols);
    let mut rows = vec![Tally { total: cols, ..Tally::default() }; n_rows];
    let mut columns = vec![Tally { total: n_rows, ..Tally::default() }; cols];
    for i in wrong {
        for tally in [&mut rows[i / cols], &mut columns[i % cols]] {
            (tally.count, tally.weight) = (tally.count + 1, tally.weight + 1.0);
        }
    }
    let (count, weight) = (wrong.len(), wrong.len() as f64);
    let cost = |bits: f64, total: usize| bits + Tally { count, weight, total, energy: 0.0 }.surprise();

    // The cost, the number of elements and the restriction.
    let mut singles: Vec<(f64, usize, Restriction)> = Vec::new();
    for marginal in layout.marginals(&rows, &columns) {
        let with_cost = |r: Restriction| (marginal.within(&r), r);
        let holds_all = |(inside, _): &(Tally, _)| inside.count == wrong.len() && inside.total < n_rows * cols;
        let found = marginal.candidates(0.0, FEW, layout.tiles()).into_iter().map(with_cost).filter(holds_all);
        let mut found: Vec<_> = found.map(|(inside, r)| (cost(r.bits(), inside.total), inside.total, r)).collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        let first = singles.len();
        for single in found {
            let repeats = singles[first..].iter().any(|(_, _, cheaper)| cheaper.is_within(&single.2, &marginal));
            if !repeats && singles.len() - first < MOST_PER_AXIS {
                singles.push(single);
            }
        }
    }
    let region = |parts: Vec<Restriction>| ErrorRegion { layout: layout.clone(), parts };
    let mut pairs = Vec::new();
    for (i, (_, size, a)) in singles.iter().enumerate() {
        for (_, other_size, b) in singles[i + 1..].iter().filter(|(_, _, b)| b.axis != a.axis) {
            let mut parts = vec![a.clone(), b.clone()];
            parts.sort_by_key(|p| p.axis);
            let pair = region(parts);
            let (rows, columns) = pair.rows_and_columns();
            let total = rows.len() * columns.len();
            if total < *size.min(other_size) {
                pairs.push((cost(pair.bits(), total), pair));
            }
        }
    }
    singles.sort_by(|a, b| a.0.total_cmp(&b.0));
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let singles = singles.into_iter().map(|(_, _, r)| region(vec![r]));
    singles.chain(pairs.into_iter().map(|(_, pair)| pair)).take(MOST_REGIONS).collect()
}
