//! Where in a tensor an error sits: the simplest region that holds it.
//!
//! Design:
//! - Only elements **beyond their floor** count as wrong; rounding noise has no geometry. Without a floor, those count whose
//!   error is eight times the median error if they hold 99 % of the energy; otherwise all count.
//! - The wrong elements are tallied along every axis that the stage has (position, slot, expert, head, column, dimension
//!   within a head, key), and each tally suggests sets: one coordinate, a few, all but one, ranges, aligned blocks, the last
//!   partial tile of a product, remainders by powers of two, a stride.
//! - **Minimum description length** chooses: a region costs the bits to name it, plus the bits to say which elements inside
//!   and outside it are wrong, n·H(k/n) each. So a region that is larger than the error pays for its innocent elements, and
//!   a contrived one for its name. Sets of different axes combine while that gets cheaper.
//! - **A wrong element counts by its ratio**, as ln r over that of the error's bulk, 1 at most: what is hardly beyond its floor does not make
//!   five rows a hundred. What is left of it outside a region is said.
//! - A region must hold 95 % of the energy beyond the floor ([`find`]); where none is cheaper than naming nothing, the error
//!   is that of the whole tensor, or scattered.
//! - The same sets, with the same words, are offered to hypotheses about the cause as regions that hold **every** wrong
//!   element (`regions`): a mistake that is made in one expert only, or in every second column, needs no hypothesis of its
//!   own.

mod axis;
mod layout;
mod pattern;
mod region;
mod relation;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rayon::prelude::*;

use crate::diff::measure::metrics::NonFinite;
use crate::op::unravel;
pub use axis::Axis;
use axis::{Restriction, Tally};
use layout::Layout;

pub use layout::Geometry;
pub use pattern::{Pattern, PatternKind, Region, Relation, RelationKind, Span};
pub(crate) use region::{ErrorRegion, regions};

/// The least share of the energy that a named region holds.
const COVERAGE: f64 = 0.95;
/// How dense wrong elements are, against their typical density, where a set is looked for.
const DENSITY: f64 = 0.25;
/// How many coordinates are named one by one, of `n`: most of an axis are not a few.
fn few(n: usize) -> usize {
    (n / 4).clamp(4, 24)
}
/// The best candidates that are kept of each axis.
const PER_AXIS: usize = 3;
/// Scattered elements that are all named.
const NAMED: usize = 4;
/// An unpatterned error is everywhere if at least this share of the elements is wrong, and
const MOST: f64 = 0.75;
/// never if less than this is; between, it depends on how many the floor may hide.
const WHOLE: f64 = 0.25;
/// An error whose largest element is fewer floors than this may have others that the floor hides.
const HIDES: f64 = 4.0;

/// A stage's values as rows and columns, with what makes an element count as wrong.
struct Grid<'a> {
    layout: Arc<Layout>,
    shape: &'a [usize],
    expected: &'a [f64],
    subject: &'a [f64],
    /// Whether columns are keys under a causal mask, so that only those up to the diagonal exist.
    causal: bool,
    significant: Significant<'a>,
    /// ln of the ratio at which an element counts in full; 0 where all do.
    bulk: f64,
}

/// Which elements count as wrong.
enum Significant<'a> {
    /// Not finite where the expected value is, or the other way round.
    /// Of elements that have a bound.
    NonFinite(Option<&'a [f64]>),
    /// An error beyond its own floor.
    Floor(&'a [f64]),
    /// An error beyond one threshold.
    Over(f64),
}

/// The pattern of the error of `subject`, which should be `expected`; `None` when no element is beyond its floor. `floor` is
/// the rounding error that is allowed to each element, where it is known.
///
/// # Panics
/// If a slice's length is not that of the shape.
pub fn find(geometry: &Geometry<'_>, expected: &[f64], subject: &[f64], floor: Option<&[f64]>) -> Option<Pattern> {
    let (stage, shape) = (geometry.stage, geometry.shape);
    let n: usize = shape.iter().product();
    assert!(expected.len() == n && subject.len() == n, "{stage}: values of shape {shape:?}");
    assert!(floor.is_none_or(|f| f.len() == n), "{stage}: floor of shape {shape:?}");
    if n == 0 {
        return None;
    }
    let significant = Significant::new(expected, subject, floor);
    let layout = Arc::new(Layout::new(geometry));
    let mut grid = Grid { layout, shape, expected, subject, causal: false, significant, bulk: 0.0 };
    grid.bulk = grid.bulk();
    // Above the diagonal there is nothing, unless the mask itself is what is wrong.
    grid.causal = grid.layout.is_attention_matrix() && grid.above_diagonal().all(|i| grid.energy(i).is_none());
    let all = grid.tally(&grid.region(vec![]));
    (all.count > 0).then(|| grid.pattern(all, geometry.head_dim))
}

impl Grid<'_> {
    fn region(&self, parts: Vec<Restriction>) -> ErrorRegion {
        ErrorRegion { layout: self.layout.clone(), parts }
    }

    /// The first column beyond the diagonal in row `r` of an attention matrix.
    fn beyond_diagonal(&self, r: usize) -> usize {
        (self.layout.start + self.layout.rows[r].position + 1).min(self.layout.cols)
    }

    /// The elements of an attention matrix beyond the diagonal.
    fn above_diagonal(&self) -> impl Iterator<Item = usize> {
        let cols = self.layout.cols;
        (0..self.layout.rows.len()).flat_map(move |r| (self.beyond_diagonal(r)..cols).map(move |c| r * cols + c))
    }

    /// Columns that exist in row `r`.
    fn visible(&self, r: usize) -> usize {
        if self.causal { self.beyond_diagonal(r) } else { self.layout.cols }
    }

    /// The energy of element `i`, if it counts as wrong.
    fn energy(&self, i: usize) -> Option<f64> {
        let error = self.subject[i] - self.expected[i];
        match self.significant {
            Significant::NonFinite(floor) => {
                let bound = floor.is_none_or(|floor| floor[i] != f64::INFINITY);
                (bound && self.subject[i].is_finite() != self.expected[i].is_finite()).then_some(1.0)
            }
            Significant::Floor(floor) => (error.abs() > floor[i]).then_some(error * error),
            Significant::Over(least) => (error.abs() > least).then_some(error * error),
        }
    }

    /// The tally of one element.
    fn one(&self, i: usize) -> Tally {
        let Some(energy) = self.energy(i) else { return Tally { total: 1, ..Tally::default() } };
        let weight = match self.ratio(i, energy) {
            Some(ratio) if self.bulk > 0.0 && ratio.is_finite() => (ratio.ln() / self.bulk).min(1.0),
            _ => 1.0,
        };
        Tally { count: 1, weight, energy, total: 1 }
    }

    /// The ratio to its floor of an element whose error has this energy, where there are floors.
    fn ratio(&self, i: usize, energy: f64) -> Option<f64> {
        let Significant::Floor(floor) = self.significant else { return None };
        Some(energy.sqrt() / floor[i])
    }

    /// ln of the ratio that half of the sum of all ratios lies at or above.
    fn bulk(&self) -> f64 {
        let ratios = self.ratios();
        if ratios.last().is_none_or(|largest| !largest.is_finite()) {
            return 0.0;
        }
        let half = ratios.iter().sum::<f64>() / 2.0;
        let mut above = 0.0;
        let reaches = |ratio: &&f64| {
            above += **ratio;
            above >= half
        };
        // What is far beyond its floor counts in full, however much farther something else is.
        ratios.iter().rev().find(reaches).map_or(0.0, |ratio| ratio.ln().clamp(0.0, 2.0 * HIDES.ln()))
    }

    fn tally(&self, region: &ErrorRegion) -> Tally {
        let (rows, columns) = region.rows_and_columns();
        let row = |r: usize| {
            let visible = columns.iter().take_while(|c| **c < self.visible(r));
            visible.fold(Tally::default(), |sum, c| sum.plus(self.one(r * self.layout.cols + c)))
        };
        let rows: Vec<Tally> = rows.into_par_iter().map(row).collect();
        rows.into_iter().fold(Tally::default(), Tally::plus)
    }

    /// The cheapest region of at most one set an axis; it has no parts when none is cheaper than naming nothing.
    fn search(&self, all: Tally) -> ErrorRegion {
        let cost = |inside: Tally, names: f64| names + inside.surprise() + all.without(inside).surprise();
        let covers = |inside: &Tally| inside.energy >= COVERAGE * all.energy;
        let (mut rows, mut columns) = (Vec::new(), vec![Tally::default(); self.layout.cols]);
        for r in 0..self.layout.rows.len() {
            let mut row = Tally::default();
            for (c, column) in columns.iter_mut().enumerate().take(self.visible(r)) {
                let one = self.one(r * self.layout.cols + c);
                (row, *column) = (row.plus(one), column.plus(one));
            }
            rows.push(row);
        }
        let mut singles: Vec<(f64, Restriction)> = Vec::new();
        for marginal in self.layout.marginals(&rows, &columns) {
            let found = marginal
                .candidates(DENSITY, few(marginal.tallies.len()), self.layout.tiles())
                .into_iter()
                .map(|c| (marginal.within(&c), c));
            let found = found.filter(|(inside, _)| covers(inside));
            let mut of_axis: Vec<_> = found.map(|(inside, c)| (cost(inside, c.bits()), c)).collect();
            of_axis.sort_by(|a, b| a.0.total_cmp(&b.0));
            singles.extend(of_axis.into_iter().take(PER_AXIS));
        }
        let mut chosen = self.region(vec![]);
        let mut best = cost(all, 0.0);
        // Each round adds the set that saves most.
        loop {
            let mut round: Option<(f64, ErrorRegion)> = None;
            for (alone, c) in singles.iter().filter(|(_, c)| chosen.parts.iter().all(|p| p.axis != c.axis)) {
                let mut region = chosen.clone();
                region.parts.push(c.clone());
                let bits = if chosen.parts.is_empty() {
                    *alone
                } else {
                    let inside = self.tally(&region);
                    if !covers(&inside) {
                        continue;
                    }
                    cost(inside, region.bits())
                };
                if bits < best - 1.0 && round.as_ref().is_none_or(|(b, _)| bits < *b) {
                    round = Some((bits, region));
                }
            }
            let Some(better) = round else { break };
            (best, chosen) = better;
        }
        chosen.parts.sort_by_key(|c| c.axis);
        chosen
    }

    /// The elements above the diagonal of an attention matrix if they hold the error, and the span of key − query there.
    fn leak(&self, all: Tally) -> Option<(Tally, [i64; 2])> {
        if self.causal || !self.layout.is_attention_matrix() {
            return None;
        }
        let (mut inside, mut span) = (Tally::default(), [i64::MAX, i64::MIN]);
        for i in self.above_diagonal() {
            let one = self.one(i);
            inside = inside.plus(one);
            if one.count > 0 {
                let (row, key) = (i / self.layout.cols, (i % self.layout.cols) as i64);
                let offset = key - (self.layout.start + self.layout.rows[row].position) as i64;
                span = [span[0].min(offset), span[1].max(offset)];
            }
        }
        (inside.energy >= COVERAGE * all.energy).then_some((inside, span))
    }

    fn pattern(&self, all: Tally, head_dim: Option<usize>) -> Pattern {
        let non_finite = self.non_finite();
        let record = |kinds: Vec<PatternKind>, description: String, inside: Tally, region: Region, relation| Pattern {
            kind: kinds[0],
            kinds,
            description: match (&self.significant, &non_finite) {
                (Significant::NonFinite(_), Some(n)) if n.any() => format!("{n}: {description}"),
                (Significant::NonFinite(_), _) => format!("finite where the expected value is not: {description}"),
                _ => description,
            },
            share: inside.energy / all.energy,
            elements: inside.total,
            elements_share: inside.total as f64 / all.total as f64,
            region,
            relation,
            non_finite: non_finite.clone(),
        };
        if let Some((inside, span)) = self.leak(all) {
            let description = match span {
                [a, b] if a == b => format!("above the diagonal: keys {a} after the query"),
                [a, b] => format!("above the diagonal: keys {a} to {b} after the query"),
            };
            let region = Region { key_minus_query: Some(span), ..Region::default() };
            return record(vec![PatternKind::Diagonal], description, inside, region, None);
        }
        let mut chosen = self.search(all);
        let mut inside = self.tally(&chosen);
        if self.goes_on(&chosen, inside, all) {
            chosen.parts.clear();
            inside = all;
        }
        let few = self.few_places(all);
        if let ([], 1, [_, ..], Some(&(axis, n))) =
            (&chosen.parts[..], self.layout.rows.len(), &few[..], self.layout.axes().last())
        {
            // Of one row a place is a column: nothing is shorter than to list them.
            chosen.parts.push(Restriction { axis, n, origin: 0, set: axis::Set::Few(few.clone()) });
            inside = self.tally(&chosen);
        }
        let relation = || {
            let cols = self.layout.cols;
            let mut elements = chosen.elements();
            elements.retain(|i| i % cols < self.visible(i / cols));
            let finite = !matches!(self.significant, Significant::NonFinite(_));
            finite.then(|| relation::find(self.expected, self.subject, &self.layout, head_dim, &elements)).flatten()
        };
        let mut region = Region::default();
        chosen.parts.iter().for_each(|p| p.restrict(&mut region));
        let mut kinds: Vec<PatternKind> = chosen.parts.iter().map(Restriction::kind).collect();
        if !kinds.is_empty() {
            if inside.total == 1 {
                kinds.insert(0, PatternKind::Element);
            }
            let words = chosen.describe_with_rows();
            let words = if self.hides() || self.fades(&chosen) { format!("at least {words}") } else { words };
            let words = words + &self.elsewhere(&chosen, all.count - inside.count);
            return record(kinds, words, inside, region, relation());
        }
        if all.count == 1 {
            let index = (0..self.subject.len()).find(|i| self.energy(*i).is_some());
            let description = format!("one element, {:?}", unravel(index.unwrap_or_default(), self.shape));
            return record(vec![PatternKind::Element], description, Tally { total: 1, ..all }, region, None);
        }
        let (kind, description) = match all.count as f64 >= self.everywhere() * all.total as f64 {
            true => (PatternKind::WholeTensor, "whole tensor".to_string()),
            false => {
                let least = if self.hides() { "at least " } else { "" };
                let places: Vec<String> = few.iter().map(|i| format!("{:?}", unravel(*i, self.shape))).collect();
                let places = match &places[..] {
                    [] => "without a common place".to_string(),
                    [first @ .., last] => format!("{} and {last}", first.join(", ")),
                };
                (PatternKind::Scattered, format!("scattered: {least}{} of {} elements, {places}", all.count, all.total))
            }
        };
        record(vec![kind], description, inside, region, relation())
    }

    /// The wrong elements, where they are so few of so many that all are named and the floor hides no others; else none.
    fn few_places(&self, all: Tally) -> Vec<usize> {
        if !(2..=NAMED).contains(&all.count) || all.count * 4 * NAMED > all.total || self.hides() {
            return Vec::new();
        }
        (0..self.subject.len()).filter(|i| self.energy(*i).is_some()).collect()
    }

    /// The ratios to their floors of the elements that are wrong, ascending; empty where there are no floors.
    fn ratios(&self) -> Vec<f64> {
        let ratio = |i: usize| self.energy(i).and_then(|energy| self.ratio(i, energy));
        let mut all: Vec<f64> = (0..self.subject.len()).into_par_iter().filter_map(ratio).collect();
        all.par_sort_unstable_by(f64::total_cmp);
        all
    }

    /// The largest ratio among elements; 0 where none is wrong, or where there are no floors.
    fn largest(&self, elements: impl Iterator<Item = usize>) -> f64 {
        elements.filter_map(|i| self.ratio(i, self.energy(i)?)).fold(0.0, f64::max)
    }

    /// Whether a region ends where its error sinks into the floor, so that what lies beyond may be wrong and hidden.
    fn fades(&self, region: &ErrorRegion) -> bool {
        if !matches!(self.significant, Significant::Floor(_)) {
            return false;
        }
        region.parts.iter().any(|part| {
            part.ends().into_iter().any(|end| {
                let mut edge = region.clone();
                edge.parts.retain(|other| other.axis != part.axis);
                edge.parts.push(Restriction { set: axis::Set::One(end), ..part.clone() });
                self.largest(edge.elements().into_iter()) < HIDES
            })
        })
    }

    /// Whether an error goes on outside of a region: more elements are wrong there than the energy allows for, and nearly as wrong.
    fn goes_on(&self, region: &ErrorRegion, inside: Tally, all: Tally) -> bool {
        if (all.count - inside.count) as f64 <= (1.0 - COVERAGE) * all.count as f64 {
            return false;
        }
        let largest = |within: bool| self.largest((0..self.subject.len()).filter(|i| region.contains(*i) == within));
        largest(true) < HIDES * largest(false)
    }

    /// What is beyond its floor outside of a region, in words.
    fn elsewhere(&self, region: &ErrorRegion, count: usize) -> String {
        if count == 0 {
            return String::new();
        }
        let outside = (0..self.subject.len()).filter(|i| !region.contains(*i));
        let n = if count == 1 { "one element".to_string() } else { format!("{count} elements") };
        match self.largest(outside) {
            f64::INFINITY => format!("; elsewhere {n} that should be exact"),
            ratio if ratio > 1000.0 => format!("; elsewhere {n}, by up to {ratio:.1e} × floor"),
            ratio if ratio > 1.0 => format!("; elsewhere {n}, by up to {ratio:.1} × floor"),
            _ => String::new(),
        }
    }

    /// Whether the floor may hide as much as it shows.
    fn hides(&self) -> bool {
        self.ratios().last().is_some_and(|largest| *largest < HIDES)
    }

    /// The share of wrong elements from which an error is that of the whole tensor. Of errors of all sizes up to some, of which the middle
    /// one is r floors, about 1/r lie below the floor. What is not finite is hidden by nothing.
    fn everywhere(&self) -> f64 {
        let ratios = self.ratios();
        match (&self.significant, ratios.get(ratios.len() / 2)) {
            (Significant::NonFinite(_), _) => MOST,
            (_, Some(middle)) => (1.0 - 2.0 / middle).clamp(WHOLE, MOST),
            _ => WHOLE,
        }
    }

    /// The subject's non-finite values, if they are what is wrong.
    fn non_finite(&self) -> Option<NonFinite> {
        matches!(self.significant, Significant::NonFinite(_)).then(|| NonFinite::of(self.subject, self.shape))
    }
}

impl<'a> Significant<'a> {
    fn new(expected: &[f64], subject: &[f64], floor: Option<&'a [f64]>) -> Self {
        // What is not finite on both sides came in with the inputs; of what has no bound nothing is said.
        let mut pairs = subject.iter().zip(expected).enumerate();
        let bounded = |i: usize| floor.is_none_or(|floor| floor[i] != f64::INFINITY);
        if pairs.any(|(i, (s, x))| s.is_finite() != x.is_finite() && bounded(i)) {
            return Significant::NonFinite(floor);
        }
        if let Some(floor) = floor {
            return Significant::Floor(floor);
        }
        let errors = subject.iter().zip(expected).map(|(s, x)| (s - x).abs());
        let mut errors: Vec<f64> = errors.filter(|e| e.is_finite()).collect();
        if errors.is_empty() {
            return Significant::Over(0.0);
        }
        let middle = errors.len() / 2;
        let least = 8.0 * *errors.select_nth_unstable_by(middle, f64::total_cmp).1;
        let energy = |least: f64| -> f64 { errors.iter().filter(|e| **e > least).map(|e| e * e).sum() };
        Significant::Over(if energy(least) >= 0.99 * energy(0.0) { least } else { 0.0 })
    }
}
