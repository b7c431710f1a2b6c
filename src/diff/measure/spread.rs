//! An error along one axis of a stage: by position, by head, by expert.
//!
//! Design:
//! - Relative: ‖error‖ over ‖reference‖, of all values at that place. What is not finite is not finite here either.
//! - Bounded: at most [`MOST`] places are kept. Along an axis that has more, neighbours share one, of which the largest counts, so
//!   nothing is averaged away.

use crate::op::HostTensor;

/// Places that are kept of an axis.
pub const MOST: usize = 48;

/// What the places are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SpreadAxis {
    /// Absolute positions.
    Position,
    /// Heads: of queries, or in what has the width of keys and values, of those.
    Head,
    /// Experts that the subject's router chose.
    Expert,
}

/// Which error is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SpreadOf {
    /// The stage's own.
    Own,
    /// With what came in.
    Total,
}

/// An error by place.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Spread {
    /// Which error.
    pub of: SpreadOf,
    /// What the places are.
    pub axis: SpreadAxis,
    /// The places, ascending; where neighbours share one, the first of them.
    pub at: Vec<usize>,
    /// ‖error‖ / ‖reference‖ at each.
    pub relative: Vec<f64>,
}

impl Spread {
    /// Of `subject` against `reference`, element i of which is at `place(i)`. `None` where shapes differ or nothing is there.
    pub fn new(
        of: SpreadOf,
        axis: SpreadAxis,
        [reference, subject]: [&HostTensor; 2],
        place: impl Fn(usize) -> usize,
    ) -> Option<Self> {
        if reference.shape != subject.shape || reference.is_empty() {
            return None;
        }
        let mut sums: std::collections::BTreeMap<usize, [f64; 2]> = Default::default();
        let (mut last, mut sum) = (place(0), [0.0; 2]);
        // Elements of a place mostly lie side by side: the map is asked once a run.
        for (i, (c, g)) in reference.to_f64().into_iter().zip(subject.to_f64()).enumerate() {
            let here = place(i);
            if here != last {
                let old = sums.entry(last).or_default();
                *old = [old[0] + sum[0], old[1] + sum[1]];
                (last, sum) = (here, [0.0; 2]);
            }
            sum = [sum[0] + (g - c) * (g - c), sum[1] + c * c];
        }
        let old = sums.entry(last).or_default();
        *old = [old[0] + sum[0], old[1] + sum[1]];
        let all: Vec<(usize, f64)> =
            sums.into_iter().map(|(at, [e, c])| (at, if e == 0.0 { 0.0 } else { (e / c).sqrt() })).collect();
        // NaN is worse than any number.
        let worst = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
        let shared = all
            .chunks(all.len().div_ceil(MOST))
            .map(|part| (part[0].0, part.iter().map(|(_, relative)| *relative).fold(0.0, worst)));
        let (at, relative) = shared.unzip();
        Some(Self { of, axis, at, relative })
    }

    /// By position: `axis` counts rows, the n-th of which is position `position(n)`.
    pub fn by_position(
        of: SpreadOf,
        sides: [&HostTensor; 2],
        axis: usize,
        position: impl Fn(usize) -> usize,
    ) -> Option<Self> {
        let (rows, inner) = (sides[1].shape[axis], sides[1].shape[axis + 1..].iter().product::<usize>());
        Self::new(of, SpreadAxis::Position, sides, |i| position(i / inner.max(1) % rows.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_where_it_is_and_relative_to_what_is_there() {
        let c = HostTensor::f32(&[2, 3], vec![1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
        let g = HostTensor::f32(&[2, 3], vec![1.0, 1.0, 1.0, 2.0, 2.0, 8.0]);
        let spread = Spread::by_position(SpreadOf::Own, [&c, &g], 0, |n| 10 + n).unwrap();
        assert_eq!((spread.at, spread.relative), (vec![10, 11], vec![0.0, 3.0f64.sqrt()]));
        let columns = Spread::new(SpreadOf::Own, SpreadAxis::Head, [&c, &g], |i| i % 3).unwrap();
        assert_eq!(columns.relative[..2], [0.0, 0.0]);
        assert!((columns.relative[2] - (36.0f64 / 5.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn many_places_are_shared_and_the_largest_error_stays() {
        let c = HostTensor::f32(&[1000, 1], vec![1.0; 1000]);
        let mut values = vec![1.0; 1000];
        (values[700], values[41]) = (3.0, f32::NAN);
        let g = HostTensor::f32(&[1000, 1], values);
        let spread = Spread::by_position(SpreadOf::Total, [&c, &g], 0, |n| n).unwrap();
        assert!(spread.at.len() <= MOST && spread.at[0] == 0);
        assert_eq!(spread.relative.iter().filter(|r| **r == 2.0).count(), 1);
        assert_eq!(spread.relative.iter().filter(|r| r.is_nan()).count(), 1);
        assert_eq!(Spread::by_position(SpreadOf::Own, [&c, &c.take(0, &[0])], 0, |n| n), None);
    }
}
