//! Routers that choose from some groups of experts: how far a choice is from another, and which ones rounding can make.
//!
//! A side chose X from the experts of some groups K. With the oracle's values z and a side's bound e on the error of each, it held
//! S(G) ≥ S(H) for each group G of K and each H that is not, and z(x) ≥ z(y) for x of X and y in the groups of K that is not. What K was nobody
//! has seen: it holds the groups of X, and is that for which the inequalities are the nearest to being met.
//!
//! A score that is the largest value of a group is off by the largest e in it at most, one that is the sum of the two largest by twice that, and
//! by the rounding of the sum: an ULP of f32, 2⁻²³·|S|, the most that a contract here states.

use super::metrics::Side;
use super::router::NearTie;
use crate::formula::routing::Grouping;
use crate::op::{GroupScore, Groups};

/// Groups up to which every K is tried; beyond, that of the largest scores is.
const MOST_TRIED: usize = 16;

/// Why a choice is, or is not, within rounding.
#[derive(Clone, Copy)]
struct Held {
    /// What the side held to be the larger, minus the other, by the oracle.
    margin: f64,
    /// How far the side's error may move that.
    bound: f64,
}

impl Held {
    /// How far it is within its bound; nothing is within a NaN.
    fn slack(self) -> f64 {
        let slack = self.margin + self.bound;
        if slack.is_nan() { f64::NEG_INFINITY } else { slack }
    }
    fn nearer(self, other: Self) -> Self {
        if other.slack() < self.slack() { other } else { self }
    }
}

/// How far a row of values is from another choice of `k`: of the chosen experts the last above the first that is left out of the same groups, or
/// of the groups, whichever is less. `None` where every expert is chosen.
pub(super) fn margin(row: &[f64], k: usize, groups: Groups) -> Option<f64> {
    let grouping = Grouping::stated(groups);
    let descending = |mut values: Vec<f64>| {
        values.sort_unstable_by(|a, b| b.total_cmp(a));
        values
    };
    let scores = grouping.scores(row);
    let kept = descending(grouping.mask(row, &scores).into_iter().filter(|p| *p != grouping.masked).collect());
    let scores = descending(scores);
    let of = |sorted: &[f64], last: usize| Some(sorted.get(last.checked_sub(1)?)? - sorted.get(last)?);
    let both = [of(&kept, k), of(&scores, groups.used)];
    both.into_iter().flatten().reduce(f64::min)
}

/// Judges a token at which the reference chose `chosen[0]` and the subject `chosen[1]`, by the oracle's values and each side's bounds on them.
pub(super) fn judge(groups: Groups, chosen: [&[u32]; 2], oracle: &[f64], bounds: [&[f64]; 2]) -> NearTie {
    let [reference, subject] = [0, 1].map(|side| held(groups, chosen[side], oracle, bounds[side]));
    let beyond =
        [(reference, Side::Reference), (subject, Side::Subject)].into_iter().find(|(held, _)| held.slack() < 0.0);
    // The subject's is a margin of what the reference held, with the other sign.
    let oracle_margin = if subject.slack() < reference.slack() { -subject.margin } else { reference.margin };
    NearTie {
        oracle_margin,
        reference_bound: reference.bound,
        subject_bound: subject.bound,
        beyond: beyond.map(|(_, side)| side),
    }
}

/// The inequality that is the farthest from holding, or the nearest to failing, for the groups that a side most likely kept.
fn held(groups: Groups, chosen: &[u32], z: &[f64], bound: &[f64]) -> Held {
    let Groups { count, used, by } = groups;
    let size = (z.len() / count.max(1)).max(1);
    let scores = Grouping::stated(groups).scores(z);
    let off: Vec<f64> = (0..count)
        .map(|g| {
            let largest = bound[g * size..][..size].iter().copied().fold(0.0, f64::max);
            match by {
                GroupScore::Max => largest,
                GroupScore::TopTwo => 2.0 * largest + f64::from(f32::EPSILON) * scores[g].abs(),
            }
        })
        .collect();
    let is_chosen = |e: usize| chosen.contains(&(e as u32));
    let own: Vec<usize> = (0..count).filter(|g| (g * size..(g + 1) * size).any(is_chosen)).collect();
    let others: Vec<usize> = (0..count).filter(|g| !own.contains(g)).collect();
    let nothing = Held { margin: 0.0, bound: f64::INFINITY };
    let Some(free) = used.checked_sub(own.len()) else {
        // Of more groups than are kept: no rounding does that.
        return Held { margin: f64::NEG_INFINITY, bound: 0.0 };
    };
    let of = |kept: &dyn Fn(usize) -> bool| {
        let mut worst = nothing;
        for g in (0..count).filter(|g| kept(*g)) {
            for h in (0..count).filter(|h| !kept(*h)) {
                worst = worst.nearer(Held { margin: scores[g] - scores[h], bound: off[g] + off[h] });
            }
            for y in (g * size..(g + 1) * size).filter(|e| !is_chosen(*e)) {
                for x in chosen.iter().map(|x| *x as usize) {
                    worst = worst.nearer(Held { margin: z[x] - z[y], bound: bound[x] + bound[y] });
                }
            }
        }
        worst
    };
    let mut tried: Vec<Held> = Vec::new();
    if others.len() <= MOST_TRIED {
        for mask in (0u32..1 << others.len()).filter(|mask| mask.count_ones() as usize == free) {
            let kept =
                |g: usize| own.contains(&g) || others.iter().position(|o| *o == g).is_some_and(|n| mask >> n & 1 == 1);
            tried.push(of(&kept));
        }
    } else {
        let mut order = others.clone();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let kept = |g: usize| own.contains(&g) || order[..free].contains(&g);
        tried.push(of(&kept));
    }
    tried.into_iter().reduce(|a, b| if b.slack() > a.slack() { b } else { a }).unwrap_or(nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_OF_FOUR: Groups = Groups { count: 4, used: 2, by: GroupScore::TopTwo };

    #[test]
    fn a_margin_is_that_of_the_experts_or_of_the_groups() {
        // Scores 1.75, 1.25, 1.1875 and 0; of the first two groups 1, 0.75, 0.75 and 0.5.
        let row = [1.0, 0.75, 0.75, 0.5, 0.6875, 0.5, 0.0, 0.0];
        assert_eq!(margin(&row, 1, TWO_OF_FOUR), Some(0.0625));
        assert_eq!(margin(&row, 2, TWO_OF_FOUR), Some(0.0));
        assert_eq!(margin(&row, 1, Groups { by: GroupScore::Max, ..TWO_OF_FOUR }), Some(0.0625));
        assert_eq!(margin(&row, 1, Groups { used: 4, ..TWO_OF_FOUR }), Some(0.25));
    }

    #[test]
    fn a_flip_between_groups_is_held_against_their_scores() {
        // Groups 1 and 2 are a millionth apart, their experts far: 3 or 4 goes with 0.
        let z = [4.0, 0.0, 1.0, 2.0, 2.5, 0.5 + 1e-6, 0.0, 0.0];
        let bound = |e: f64| vec![e; 8];
        let judged = |reference: &[u32], subject: &[u32], e: f64| {
            judge(TWO_OF_FOUR, [reference, subject], &z, [&bound(e), &bound(e)])
        };
        // By the oracle group 2 is kept.
        assert!(judged(&[0, 4], &[0, 3], 1e-6).explained());
        assert!(judged(&[0, 3], &[0, 4], 1e-6).explained());
        let tight = judged(&[0, 4], &[0, 3], 1e-8);
        assert_eq!(tight.beyond, Some(Side::Subject));
        assert!((tight.oracle_margin - 1e-6).abs() < 1e-12, "{tight:?}");
        assert_eq!(judged(&[0, 3], &[0, 4], 1e-8).beyond, Some(Side::Reference));
        // Of three groups, and the lesser of an own group.
        assert_eq!(judged(&[0, 4], &[3, 4], 1e-6).beyond, Some(Side::Subject));
        assert_eq!(judged(&[0, 4], &[0, 5], 1e-6).beyond, Some(Side::Subject));
        let three = judge(TWO_OF_FOUR, [&[0, 3, 4], &[0, 1, 4]], &z, [&bound(1e-6), &bound(1e-6)]);
        assert_eq!(three.beyond, Some(Side::Reference));
    }
}
