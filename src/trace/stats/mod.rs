//! Statistics of a stage's values.
//!
//! Design:
//! - Everything is accumulated in f64, in blocks that stay in the L1 cache: one pass, and a second for the squared deviations
//!   where the first would lose digits to a mean that is large beside them. Blocks and chunks are merged by Chan, Golub and
//!   LeVeque's update (1979). So the variance never cancels, and chunks of any size merge.
//! - `min`, `max`, `mean`, `std` and `l2` are over the finite values only, NaN and infinities are counted apart: one NaN does
//!   not hide what the other values are. With no finite value they are null.
//! - `std` is the population's: divided by n.
//! - Of `attn_scores` and `attn_probs` only the entries that causality allows, s ≤ start + t, are counted: the zeros beyond
//!   them are no results.
//! - Expert ids are counted as numbers.

mod block;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Result;
use crate::op::{At, Data, HostTensor, Site};

use self::block::{Number, Sums};
use super::StageObserver;

/// Elements in a block: 16 KiB of f32, half of a small L1 cache.
const BLOCK: usize = 4096;

/// Running statistics, mergeable.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    finite: u64,
    nan: u64,
    inf: u64,
    zero: u64,
    min: f64,
    max: f64,
    mean: f64,
    /// Σ(x − mean)²
    m2: f64,
    /// Σx²
    squares: f64,
}

/// Statistics as traces and JSON documents state them.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct Summary {
    /// All values, finite or not.
    pub count: u64,
    /// Over the finite values; `None` if there is none. So are the next four.
    pub min: Option<f64>,
    /// The largest finite value.
    pub max: Option<f64>,
    /// The mean of the finite values.
    pub mean: Option<f64>,
    /// Population standard deviation.
    pub std: Option<f64>,
    /// √Σx²
    pub l2: Option<f64>,
    /// Values that are NaN.
    pub nan_count: u64,
    /// Infinities of either sign.
    pub inf_count: u64,
    /// Zeros of either sign.
    pub zero_count: u64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            finite: 0,
            nan: 0,
            inf: 0,
            zero: 0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            mean: 0.0,
            m2: 0.0,
            squares: 0.0,
        }
    }
}

impl Stats {
    /// Statistics of rows `rows` of a stage's `values`, whose first row is position `at.start` of the run.
    ///
    /// Rows are positions: axis 0, or axis 1 of `[heads, T, S]`, where row t counts only its first start + t + 1 entries.
    pub fn of_rows(at: At, values: &HostTensor, rows: std::ops::Range<usize>) -> Self {
        let mut stats = Self::default();
        if at.site.stage.is_attention_matrix() {
            let [heads, t, s] = values.shape[..] else { return stats };
            for head in 0..heads {
                for row in rows.clone() {
                    let from = (head * t + row) * s;
                    stats.add(&values.data, from..from + s.min(at.start + row + 1));
                }
            }
        } else if let Some(&count) = values.shape.first()
            && count > 0
        {
            let width = values.len() / count;
            stats.add(&values.data, rows.start * width..rows.end * width);
        }
        stats
    }

    fn add(&mut self, data: &Data, range: std::ops::Range<usize>) {
        match data {
            Data::F32(v) => self.extend(&v[range]),
            Data::F64(v) => self.extend(&v[range]),
            Data::U32(v) => self.extend(&v[range]),
        }
    }

    fn extend<V: Number>(&mut self, values: &[V]) {
        for block in values.chunks(BLOCK) {
            self.merge(&Self::of_block(block));
        }
    }

    fn of_block<V: Number>(block: &[V]) -> Self {
        let Sums { sum, squares, min, max, zero } = block::sums(block);
        // A NaN or an infinity anywhere makes a sum one; sums that merely overflow are caught here too, and done again.
        if !sum.is_finite() || !squares.is_finite() {
            return Self::of_rough_block(block);
        }
        let n = block.len() as f64;
        let mean = sum / n;
        // Σ(x − mean)² = Σx² − n·mean², where both terms are good to about 10⁻¹³ of Σx²: enough unless almost all cancels.
        let mut m2 = squares - sum * mean;
        if m2 < 1e-3 * squares {
            m2 = block.iter().map(|x| (x.wide() - mean).powi(2)).sum();
        }
        Self { finite: block.len() as u64, nan: 0, inf: 0, zero, min, max, mean, m2, squares }
    }

    /// The same for a block with values that are not finite, one at a time.
    fn of_rough_block<V: Number>(block: &[V]) -> Self {
        let mut stats = Self::default();
        for x in block {
            let x = x.wide();
            if x.is_nan() {
                stats.nan += 1;
            } else if x.is_infinite() {
                stats.inf += 1;
            } else {
                let zero = u64::from(x == 0.0);
                stats.merge(&Self { finite: 1, zero, min: x, max: x, mean: x, squares: x * x, ..Self::default() });
            }
        }
        stats
    }

    /// Adds what `other` has seen.
    pub fn merge(&mut self, other: &Self) {
        self.nan += other.nan;
        self.inf += other.inf;
        self.zero += other.zero;
        if other.finite == 0 {
            return;
        }
        if self.finite == 0 {
            // Not by the formula below, where the square of a huge mean may overflow and its weight 0 would make it NaN.
            let (nan, inf, zero) = (self.nan, self.inf, self.zero);
            *self = Self { nan, inf, zero, ..other.clone() };
            return;
        }
        let (a, b) = (self.finite as f64, other.finite as f64);
        let delta = other.mean - self.mean;
        self.mean += delta * (b / (a + b));
        self.m2 += other.m2 + delta * delta * (a * b / (a + b));
        self.finite += other.finite;
        self.squares += other.squares;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Values seen that are neither NaN nor infinite.
    pub fn finite(&self) -> u64 {
        self.finite
    }
    /// Values seen that are NaN or infinite.
    pub fn non_finite(&self) -> u64 {
        self.nan + self.inf
    }

    /// The statistics of what was added so far.
    pub fn summary(&self) -> Summary {
        // f64 values near the end of their range can overflow a square; such a figure is left out rather than written as inf.
        let some = |x: f64| (self.finite > 0 && x.is_finite()).then_some(x);
        Summary {
            count: self.finite + self.nan + self.inf,
            min: some(self.min),
            max: some(self.max),
            mean: some(self.mean),
            std: some((self.m2 / self.finite.max(1) as f64).sqrt()),
            l2: some(self.squares.sqrt()),
            nan_count: self.nan,
            inf_count: self.inf,
            zero_count: self.zero,
        }
    }
}

/// The statistics of one stage: over its last position, and over all of them.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct StageStats {
    /// Which position `last` is.
    pub last_position: u64,
    /// How many positions `all` is over.
    pub positions: u64,
    /// Of the last position.
    pub last: Summary,
    /// Of all positions.
    pub all: Summary,
}

/// An observer that keeps statistics of every stage.
#[derive(Default)]
pub struct Statistics {
    sites: BTreeMap<Site, Running>,
}

struct Running {
    last_position: usize,
    positions: usize,
    last: Stats,
    all: Stats,
}

impl Statistics {
    /// Adds the values of a call; says how many are NaN or infinite.
    pub fn add(&mut self, at: At, values: &HostTensor) -> u64 {
        let At { site, start } = at;
        let rows = super::positions_in(site.stage, values);
        let Some(final_row) = rows.checked_sub(1) else { return 0 };
        let last = Stats::of_rows(at, values, final_row..rows);
        let mut all = Stats::of_rows(at, values, 0..final_row);
        all.merge(&last);
        let not_finite = all.non_finite();
        match self.sites.entry(site) {
            std::collections::btree_map::Entry::Vacant(e) => {
                e.insert(Running { last_position: start + final_row, positions: rows, last, all });
            }
            std::collections::btree_map::Entry::Occupied(mut e) => {
                let running = e.get_mut();
                running.all.merge(&all);
                running.positions += rows;
                if start + final_row >= running.last_position {
                    running.last_position = start + final_row;
                    running.last = last;
                }
            }
        }
        not_finite
    }

    /// What has been seen: whole-model stages first, then layer by layer in order of execution.
    pub fn sites(&self) -> impl Iterator<Item = (Site, StageStats)> + '_ {
        self.sites.iter().map(|(site, r)| {
            let stats = StageStats {
                last_position: r.last_position as u64,
                positions: r.positions as u64,
                last: r.last.summary(),
                all: r.all.summary(),
            };
            (*site, stats)
        })
    }
}

impl StageObserver for Statistics {
    fn wants(&self, _: Site) -> bool {
        true
    }
    fn observe(&mut self, at: At, values: HostTensor) -> Result<()> {
        self.add(at, &values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Stage;

    fn close(a: f64, b: f64) {
        // Sums of up to 10⁴ terms in f64 in either order: n·2⁻⁵³ is 1e-12 of Σ|x|.
        assert!((a - b).abs() <= 1e-12 * (1.0 + a.abs().max(b.abs())), "{a} is not {b}");
    }

    /// The definition, in two passes over all finite values at once.
    fn plain(values: &[f32]) -> Summary {
        let f: Vec<f64> = values.iter().filter(|x| x.is_finite()).map(|&x| x as f64).collect();
        let n = f.len() as f64;
        let mean = f.iter().sum::<f64>() / n;
        let some = |x: f64| (!f.is_empty()).then_some(x);
        Summary {
            count: values.len() as u64,
            min: some(f.iter().copied().fold(f64::INFINITY, f64::min)),
            max: some(f.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            mean: some(mean),
            std: some((f.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt()),
            l2: some(f.iter().map(|x| x * x).sum::<f64>().sqrt()),
            nan_count: values.iter().filter(|x| x.is_nan()).count() as u64,
            inf_count: values.iter().filter(|x| x.is_infinite()).count() as u64,
            zero_count: values.iter().filter(|x| **x == 0.0).count() as u64,
        }
    }
    fn same(a: &Summary, b: &Summary) {
        assert_eq!(
            (a.count, a.nan_count, a.inf_count, a.zero_count, a.min, a.max),
            (b.count, b.nan_count, b.inf_count, b.zero_count, b.min, b.max)
        );
        for (a, b) in [(a.mean, b.mean), (a.std, b.std), (a.l2, b.l2)] {
            assert_eq!(a.is_some(), b.is_some());
            close(a.unwrap_or(0.0), b.unwrap_or(0.0));
        }
    }
    fn tensor(shape: &[usize], f: impl Fn(usize) -> f32) -> HostTensor {
        HostTensor::f32(shape, (0..shape.iter().product()).map(f).collect())
    }
    fn wobble(i: usize) -> f32 {
        (i as f32 * 0.7).sin() * 3.0 + 100.0
    }

    #[test]
    fn chunks_merge_to_the_whole() {
        let at = |start| At::layer(0, Stage::FfnNorm, start);
        let whole = tensor(&[40, 251], |i| if i % 97 == 0 { -0.0 } else { wobble(i) });
        let mut at_once = Statistics::default();
        at_once.add(at(0), &whole);
        let mut in_parts = Statistics::default();
        let Data::F32(values) = &whole.data else { unreachable!() };
        for (start, rows) in [(0, 1), (1, 30), (31, 9)] {
            let part = HostTensor::f32(&[rows, 251], values[start * 251..(start + rows) * 251].to_vec());
            in_parts.add(at(start), &part);
        }
        let (_, a) = at_once.sites().next().unwrap();
        let (_, b) = in_parts.sites().next().unwrap();
        same(&a.all, &plain(values));
        same(&b.all, &plain(values));
        same(&a.last, &plain(&values[39 * 251..]));
        assert_eq!(a.last, b.last);
        assert_eq!((b.last_position, b.positions), (39, 40));
    }

    #[test]
    fn not_finite_values_are_counted_apart() {
        let at = At::model(Stage::Logits, 0);
        let rough = |i: usize| match i % 5 {
            0 => f32::NAN,
            1 => f32::NEG_INFINITY,
            _ => wobble(i),
        };
        let t = tensor(&[1, 9001], rough);
        same(&Stats::of_rows(at, &t, 0..1).summary(), &plain(&t.to_f32()));
        let none = Stats::of_rows(at, &tensor(&[1, 3], |_| f32::NAN), 0..1);
        assert_eq!(none.non_finite(), 3);
        let json = serde_json::to_value(none.summary()).unwrap();
        assert!(json["mean"].is_null() && json["min"].is_null() && json["nan_count"] == 3, "{json}");
        // Squares that overflow f64 leave a figure out, never an `inf` that JSON cannot say.
        let huge = HostTensor::f64(&[1, 2], vec![1e300, -1e300]);
        let huge = Stats::of_rows(at, &huge, 0..1).summary();
        assert_eq!((huge.max, huge.l2, huge.inf_count), (Some(1e300), None, 0));
        let one = Stats::of_rows(at, &HostTensor::f64(&[1, 1], vec![1e300]), 0..1).summary();
        assert_eq!((one.mean, one.std), (Some(1e300), Some(0.0)));
    }

    #[test]
    fn a_large_mean_does_not_cancel() {
        let t = tensor(&[1, 8192], |i| 16_777_216.0 - (i % 2) as f32);
        let s = Stats::of_rows(At::model(Stage::Logits, 0), &t, 0..1).summary();
        assert_eq!(s.std, Some(0.5));
    }

    #[test]
    fn scores_count_what_causality_allows() {
        // Two heads, positions 3 and 4 of a run: 4 and 5 entries each.
        let at = At::layer(0, Stage::AttnScores, 3);
        let t = tensor(&[2, 2, 5], |i| if i % 10 == 4 { 0.0 } else { 1.0 });
        let s = Stats::of_rows(at, &t, 0..2).summary();
        assert_eq!((s.count, s.zero_count, s.l2), (18, 0, Some(18f64.sqrt())));
        assert_eq!(Stats::of_rows(at, &t, 1..2).summary().count, 10);
    }

    #[test]
    fn ids_are_numbers() {
        let t = HostTensor::u32(&[2, 2], vec![0, 7, 7, 2]);
        let s = Stats::of_rows(At::layer(0, Stage::RouterIds, 0), &t, 0..2).summary();
        assert_eq!((s.count, s.min, s.max, s.mean, s.zero_count), (4, Some(0.0), Some(7.0), Some(4.0), 1));
    }
}
