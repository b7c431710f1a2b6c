//! What two routers chose: compared as sets, never as lists.
//!
//! Design:
//! - **A set per token.** Lists of ids differ when two weights swap places, and sorted weights agree when experts do not;
//!   neither says which experts ran. Weights are compared by expert id, over the experts that both sides chose.
//! - **A flip has a margin.** Each flipped token is in the ledger with the experts on both sides and both margins
//!   z(K) − z(K+1); [`Flip::explain`] judges it by the oracle's logits and both sides' error bounds.
//! - Order-only changes are kept apart: the same experts ran.
//! - After a flip, [`common_experts`] pairs the rows of `expert_*` stages by expert id.

use super::groups;
use crate::diff::measure::metrics::{Mismatch, Side};
use crate::op::{Data, Groups, HostTensor};

/// What one side's router said. Shapes: ids and weights `[T, K]`, probabilities and logits `[T, E]`.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    /// The chosen experts, [T, K].
    pub ids: &'a HostTensor,
    /// Their weights, [T, K].
    pub weights: Option<&'a HostTensor>,
    /// Probabilities of all experts, [T, E].
    pub probs: Option<&'a HostTensor>,
    /// Logits of all experts, [T, E].
    pub logits: Option<&'a HostTensor>,
    /// Groups of experts, of which some are chosen from.
    pub groups: Option<Groups>,
}

/// z(K) − z(K+1) of one side at one token: how far the last chosen expert is above the first one left out; with groups of experts, of the same
/// groups, or how far the last group that is kept is above the first that is not, if that is less. `None` where the values were not captured, or
/// every expert is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Margin {
    /// In units of a probability.
    pub probs: Option<f64>,
    /// In units of a logit.
    pub logits: Option<f64>,
}

/// Why a flip is, or is not, within rounding.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct NearTie {
    /// The oracle's logit of the expert only the reference chose, minus that of the one only the subject chose, for the
    /// pair that is furthest outside its bounds (or nearest to leaving them).
    pub oracle_margin: f64,
    /// The error bound of that difference on each side.
    pub reference_bound: f64,
    /// How far the subject's order may be from the oracle's, in units of a logit.
    pub subject_bound: f64,
    /// The side whose error must be larger than its bound; `None` when the flip is explained.
    pub beyond: Option<Side>,
}

impl NearTie {
    /// Whether rounding explains the flip.
    pub fn explained(&self) -> bool {
        self.beyond.is_none()
    }
}

/// A token whose set of experts differs.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Flip {
    /// The position.
    pub position: usize,
    /// Ascending ids.
    pub only_reference: Vec<u32>,
    /// Experts that only the subject chose.
    pub only_subject: Vec<u32>,
    /// How far the reference was from choosing as the subject did.
    pub reference_margin: Margin,
    /// How far the subject was from choosing as the reference did.
    pub subject_margin: Margin,
    /// `None` until [`Flip::explain`] was called; such a flip counts as unexplained.
    pub near_tie: Option<NearTie>,
}

impl Flip {
    /// Whether rounding explains it.
    pub fn explained(&self) -> bool {
        self.near_tie.is_some_and(|n| n.explained())
    }

    /// Judges the flip. `oracle` are the float64 logits of this token, `[E]`; `reference_bound` and `subject_bound` bound
    /// each side's absolute error of each logit, `[E]`.
    ///
    /// For experts a (only the reference's) and b (only the subject's), the reference held z(a) ≥ z(b) and the subject
    /// z(b) ≥ z(a). With g the oracle's z(a) − z(b), that needs −(e_r(a) + e_r(b)) ≤ g ≤ e_s(a) + e_s(b). The flip is
    /// explained when that holds for every such pair; where it does not, the side whose inequality fails erred by more
    /// than its bound.
    ///
    /// # Panics
    /// If a slice is shorter than the highest expert id of the flip.
    pub fn explain(&mut self, oracle: &[f64], reference_bound: &[f64], subject_bound: &[f64]) -> NearTie {
        let mut worst: Option<(f64, NearTie)> = None;
        for &a in &self.only_reference {
            for &b in &self.only_subject {
                let (a, b) = (a as usize, b as usize);
                let near_tie = judge_pair(
                    oracle[a] - oracle[b],
                    reference_bound[a] + reference_bound[b],
                    subject_bound[a] + subject_bound[b],
                );
                let sides = [
                    near_tie.oracle_margin - near_tie.subject_bound,
                    -near_tie.oracle_margin - near_tie.reference_bound,
                ];
                // A NaN is further outside than any number.
                let excess = if sides.iter().any(|e| e.is_nan()) { f64::INFINITY } else { sides[0].max(sides[1]) };
                if worst.is_none_or(|(e, _)| excess > e) {
                    worst = Some((excess, near_tie));
                }
            }
        }
        let (_, near_tie) = worst.expect("a flip has an expert on each side: both sets have K");
        self.near_tie = Some(near_tie);
        near_tie
    }

    /// [`Flip::explain`] where experts are chosen from some groups: a flip may be one of groups. `chosen` are the experts of the reference and of
    /// the subject at this token, in any order.
    ///
    /// The reference's choice is explained if some groups that hold it have scores which its bounds let be the largest, and its experts are those
    /// of them that its bounds let be the largest; the subject's likewise.
    ///
    /// # Panics
    /// If a slice is shorter than there are experts.
    pub fn explain_in_groups(
        &mut self,
        groups: Groups,
        chosen: [&[u32]; 2],
        oracle: &[f64],
        bounds: [&[f64]; 2],
    ) -> NearTie {
        let near_tie = groups::judge(groups, chosen, oracle, bounds);
        self.near_tie = Some(near_tie);
        near_tie
    }
}

/// Whether an oracle margin g = z(a) − z(b) lets the reference put a first and the subject b.
fn judge_pair(oracle_margin: f64, reference_bound: f64, subject_bound: f64) -> NearTie {
    let beyond = if oracle_margin >= -reference_bound && oracle_margin <= subject_bound {
        None
    } else if oracle_margin < -reference_bound {
        Some(Side::Reference)
    } else {
        Some(Side::Subject) // also a NaN margin or bound: nothing is explained by it
    };
    NearTie { oracle_margin, reference_bound, subject_bound, beyond }
}

/// A token with the same experts in another order.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct OrderChange {
    /// The position.
    pub position: usize,
    /// The reference's experts, in its order.
    pub reference: Vec<u32>,
    /// The subject's experts, in its order.
    pub subject: Vec<u32>,
}

/// The weights of experts that both sides chose.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct WeightError {
    /// (token, expert) pairs compared.
    pub pairs: usize,
    /// √(Σ(subject − reference)² / Σreference²); `None` when the reference's weights are all zero.
    pub rel_l2: Option<f64>,
    /// The largest difference of a common expert's weights.
    pub max_abs: f64,
    /// Where the largest error is: position and expert; `None` when all are equal.
    pub worst: Option<(usize, u32)>,
    /// NaN or infinite weights on either side; they are in no other number here.
    pub non_finite: usize,
}

/// Two routers over the same tokens of one layer.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RouterComparison {
    /// Rows that were compared.
    pub tokens: usize,
    /// Experts per token.
    pub k: usize,
    /// Mean over tokens of |common experts| / K: overlap@K.
    pub overlap: f64,
    /// Share of tokens with the same set.
    pub exact_set_rate: f64,
    /// Share of tokens with the same list.
    pub order_match_rate: f64,
    /// `None` when a side's weights were not captured.
    pub weight_error: Option<WeightError>,
    /// Tokens per expert id.
    pub reference_load: Vec<usize>,
    /// How many slots of the subject each expert has.
    pub subject_load: Vec<usize>,
    /// Positions with other sets of experts.
    pub flips: Vec<Flip>,
    /// Positions with the same set in another order.
    pub order_changes: Vec<OrderChange>,
}

impl RouterComparison {
    /// Flips that no near tie explains.
    pub fn unexplained(&self) -> usize {
        self.flips.iter().filter(|f| !f.explained()).count()
    }
}

/// Compares two routings over `experts` experts. `first_position` is the position of row 0.
///
/// # Errors
/// A [`Mismatch`] when the ids have other shapes or types, name an expert that is not there, or one twice, or when there
/// are none; and when weights, probabilities or logits have another shape than their ids ask for.
pub fn compare_routing(
    reference: Routing<'_>,
    subject: Routing<'_>,
    experts: usize,
    first_position: usize,
) -> Result<RouterComparison, Mismatch> {
    let (tokens, k) = check_ids(reference.ids, subject.ids)?;
    let reference_load = load(reference.ids, Side::Reference, k, experts, first_position)?;
    let subject_load = load(subject.ids, Side::Subject, k, experts, first_position)?;
    for side in [&reference, &subject] {
        for (tensor, cols) in [(side.weights, k), (side.probs, experts), (side.logits, experts)] {
            if let Some(t) = tensor.filter(|t| t.shape != [tokens, cols]) {
                return Err(Mismatch::Shape { reference: vec![tokens, cols], subject: t.shape.clone() });
            }
        }
    }

    let (mut common, mut order_matches) = (0, 0);
    let (mut flips, mut order_changes) = (Vec::new(), Vec::new());
    for t in 0..tokens {
        let (a, b) = (row(reference.ids, t, k), row(subject.ids, t, k));
        let only = |x: &[u32], y: &[u32]| {
            let mut ids: Vec<u32> = x.iter().copied().filter(|id| !y.contains(id)).collect();
            ids.sort_unstable();
            ids
        };
        let only_reference = only(a, b);
        common += k - only_reference.len();
        if a == b {
            order_matches += 1;
        } else if only_reference.is_empty() {
            order_changes.push(OrderChange {
                position: first_position + t,
                reference: a.to_vec(),
                subject: b.to_vec(),
            });
        } else {
            flips.push(Flip {
                position: first_position + t,
                only_reference,
                only_subject: only(b, a),
                reference_margin: margin(&reference, t, k),
                subject_margin: margin(&subject, t, k),
                near_tie: None,
            });
        }
    }
    let weight_error = match (reference.weights, subject.weights) {
        (Some(a), Some(b)) => Some(weight_error(a, b, &common_experts(reference.ids, subject.ids)?, k, first_position)),
        _ => None,
    };
    let share = |n: usize| n as f64 / tokens as f64;
    Ok(RouterComparison {
        tokens,
        k,
        overlap: share(common) / k as f64,
        exact_set_rate: share(tokens - flips.len()),
        order_match_rate: share(order_matches),
        weight_error,
        reference_load,
        subject_load,
        flips,
        order_changes,
    })
}

/// The same expert at the same token, and where each side's `[T, K, …]` tensors have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CommonExpert {
    /// Row of the token in this call.
    pub token: usize,
    /// The expert's slot on the reference.
    pub reference_slot: usize,
    /// The expert's slot on the subject.
    pub subject_slot: usize,
    /// The expert.
    pub expert: u32,
    /// Whether the token's sets differ elsewhere: its weights then differ by renormalisation alone.
    pub flipped: bool,
}

/// The experts chosen on both sides, by token, then by the reference's slot.
///
/// # Errors
/// If the two are not `[T, K]` ids of the same shape.
pub fn common_experts(reference: &HostTensor, subject: &HostTensor) -> Result<Vec<CommonExpert>, Mismatch> {
    let (tokens, k) = check_ids(reference, subject)?;
    let mut rows = Vec::with_capacity(tokens * k);
    for token in 0..tokens {
        let (a, b) = (row(reference, token, k), row(subject, token, k));
        let first = rows.len();
        for (reference_slot, &expert) in a.iter().enumerate() {
            if let Some(subject_slot) = b.iter().position(|&id| id == expert) {
                rows.push(CommonExpert { token, reference_slot, subject_slot, expert, flipped: false });
            }
        }
        if rows.len() - first < k {
            rows[first..].iter_mut().for_each(|r| r.flipped = true);
        }
    }
    Ok(rows)
}

/// Both sides' rows of an `expert_*` stage `[T, K, n]`, paired by expert id: `[rows.len(), n]` each.
///
/// # Errors
/// If a stage is not `[T, K, n]` with the rows that `rows` asks for, or the two differ in n.
pub fn gather_common(
    reference: &HostTensor,
    subject: &HostTensor,
    rows: &[CommonExpert],
) -> Result<(HostTensor, HostTensor), Mismatch> {
    let wrong = || Mismatch::Shape { reference: reference.shape.clone(), subject: subject.shape.clone() };
    let (&[t, k, n], &[t2, k2, n2]) = (&reference.shape[..], &subject.shape[..]) else { return Err(wrong()) };
    let inside = |r: &CommonExpert| r.token < t.min(t2) && r.reference_slot < k && r.subject_slot < k2;
    if n != n2 || !rows.iter().all(inside) {
        return Err(wrong());
    }
    let gather = |x: &HostTensor, slots: usize, slot: fn(&CommonExpert) -> usize| {
        x.gather(vec![rows.len(), n], n, rows.iter().map(|r| (r.token * slots + slot(r)) * n))
    };
    Ok((gather(reference, k, |r| r.reference_slot), gather(subject, k2, |r| r.subject_slot)))
}

/// (T, K) of two id tensors that can be compared.
fn check_ids(reference: &HostTensor, subject: &HostTensor) -> Result<(usize, usize), Mismatch> {
    if reference.shape != subject.shape {
        return Err(Mismatch::Shape { reference: reference.shape.clone(), subject: subject.shape.clone() });
    }
    if !matches!((&reference.data, &subject.data), (Data::U32(_), Data::U32(_))) {
        return Err(Mismatch::Dtype { reference: reference.dtype(), subject: subject.dtype() });
    }
    match reference.shape[..] {
        [t, k] if t > 0 && k > 0 => Ok((t, k)),
        _ => Err(Mismatch::Nothing { shape: reference.shape.clone(), masked: 0 }),
    }
}

fn row(ids: &HostTensor, t: usize, k: usize) -> &[u32] {
    &ids.ids()[t * k..][..k]
}

/// Tokens per expert; checks that each row is a set of experts that exist.
fn load(ids: &HostTensor, side: Side, k: usize, experts: usize, first: usize) -> Result<Vec<usize>, Mismatch> {
    let mut load = vec![0; experts];
    for (t, row) in ids.ids().chunks_exact(k).enumerate() {
        for (slot, &id) in row.iter().enumerate() {
            let Some(count) = load.get_mut(id as usize) else {
                return Err(Mismatch::NoSuchExpert { side, position: first + t, slot, id, experts });
            };
            if row[..slot].contains(&id) {
                return Err(Mismatch::RepeatedExpert { side, position: first + t, id });
            }
            *count += 1;
        }
    }
    Ok(load)
}

fn margin(side: &Routing<'_>, t: usize, k: usize) -> Margin {
    let of = |x: &HostTensor| {
        let cols = x.cols();
        let mut row: Vec<f64> = (t * cols..(t + 1) * cols).map(|i| element(x, i)).collect();
        if let Some(groups) = side.groups {
            return groups::margin(&row, k, groups);
        }
        row.sort_unstable_by(|a, b| b.total_cmp(a));
        row.get(k).map(|next| row[k - 1] - next)
    };
    Margin { probs: side.probs.and_then(of), logits: side.logits.and_then(of) }
}

fn weight_error(a: &HostTensor, b: &HostTensor, rows: &[CommonExpert], k: usize, first: usize) -> WeightError {
    let (mut dd, mut aa, mut pairs, mut non_finite) = (0.0, 0.0, 0, 0);
    let (mut max_abs, mut worst) = (0.0, None);
    for r in rows {
        let x = element(a, r.token * k + r.reference_slot);
        let y = element(b, r.token * k + r.subject_slot);
        if !(x.is_finite() && y.is_finite()) {
            non_finite += 1;
            continue;
        }
        pairs += 1;
        aa += x * x;
        dd += (y - x) * (y - x);
        if (y - x).abs() > max_abs {
            (max_abs, worst) = ((y - x).abs(), Some((first + r.token, r.expert)));
        }
    }
    WeightError { pairs, rel_l2: (aa > 0.0).then(|| (dd / aa).sqrt()), max_abs, worst, non_finite }
}

fn element(x: &HostTensor, i: usize) -> f64 {
    match &x.data {
        Data::F32(v) => f64::from(v[i]),
        Data::F64(v) => v[i],
        Data::U32(v) => f64::from(v[i]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(rows: &[[u32; 2]]) -> HostTensor {
        HostTensor::u32(&[rows.len(), 2], rows.concat())
    }
    fn only_ids(ids: &HostTensor) -> Routing<'_> {
        Routing { ids, weights: None, probs: None, logits: None, groups: None }
    }

    #[test]
    fn sets_order_and_load() {
        let a = ids(&[[3, 1], [0, 2], [1, 2], [0, 1]]);
        let b = ids(&[[3, 1], [2, 0], [1, 3], [2, 3]]);
        let c = compare_routing(only_ids(&a), only_ids(&b), 4, 10).unwrap();
        assert_eq!((c.overlap, c.exact_set_rate, c.order_match_rate), (5.0 / 8.0, 0.5, 0.25));
        assert_eq!((c.reference_load, c.subject_load), (vec![2, 3, 2, 1], vec![1, 2, 2, 3]));
        assert_eq!(c.order_changes, [OrderChange { position: 11, reference: vec![0, 2], subject: vec![2, 0] }]);
        assert_eq!(c.flips.len(), 2);
        assert_eq!(
            (c.flips[0].position, &c.flips[0].only_reference[..], &c.flips[0].only_subject[..]),
            (12, &[2][..], &[3][..])
        );
        assert_eq!((&c.flips[1].only_reference[..], &c.flips[1].only_subject[..]), (&[0, 1][..], &[2, 3][..]));
        assert!(c.weight_error.is_none());
    }

    #[test]
    fn weights_go_by_expert_id_not_by_rank() {
        // The same sorted weights, but expert 1 and 2 exchanged theirs: as lists they would look equal.
        let (a, b) = (ids(&[[1, 2]]), ids(&[[2, 1]]));
        let w = HostTensor::f32(&[1, 2], vec![0.75, 0.25]);
        let side = |ids| Routing { ids, weights: Some(&w), probs: None, logits: None, groups: None };
        let e = compare_routing(side(&a), side(&b), 3, 0).unwrap().weight_error.unwrap();
        assert_eq!((e.pairs, e.max_abs, e.worst), (2, 0.5, Some((0, 1))));
        assert_eq!(e.rel_l2, Some((0.5f64 / 0.625).sqrt()));
    }

    #[test]
    fn margins_are_between_rank_k_and_the_next() {
        let (a, b) = (ids(&[[0, 1]]), ids(&[[0, 2]]));
        let probs = HostTensor::f32(&[1, 4], vec![0.5, 0.25, 0.125, 0.125]);
        let logits = HostTensor::f32(&[1, 4], vec![3.0, 2.0, 2.5, -1.0]);
        let r = Routing { ids: &a, weights: None, probs: Some(&probs), logits: Some(&logits), groups: None };
        let c = compare_routing(r, only_ids(&b), 4, 0).unwrap();
        assert_eq!(c.flips[0].reference_margin, Margin { probs: Some(0.125), logits: Some(0.5) });
        assert_eq!(c.flips[0].subject_margin, Margin::default());
    }

    #[test]
    fn a_flip_is_explained_only_within_both_bounds() {
        let (a, b) = (ids(&[[0, 1]]), ids(&[[0, 2]]));
        let mut c = compare_routing(only_ids(&a), only_ids(&b), 4, 0).unwrap();
        assert_eq!(c.unexplained(), 1, "a flip that nobody judged is unexplained");
        let flip = &mut c.flips[0];
        let tight = [1e-6; 4];
        let near = flip.explain(&[5.0, 1.0, 1.0 - 1e-6, 0.0], &tight, &tight);
        assert!(near.explained() && (near.subject_bound, near.reference_bound) == (2e-6, 2e-6));
        assert_eq!(flip.explain(&[5.0, 1.0, 0.9, 0.0], &tight, &tight).beyond, Some(Side::Subject));
        assert_eq!(flip.explain(&[5.0, 0.9, 1.0, 0.0], &tight, &tight).beyond, Some(Side::Reference));
        assert!(!flip.explain(&[5.0, f64::NAN, 1.0, 0.0], &tight, &tight).explained());
        assert!(!flip.explained() && c.unexplained() == 1);
    }

    #[test]
    fn one_distant_expert_among_near_ties_is_not_explained() {
        let (a, b) = (ids(&[[0, 1]]), ids(&[[2, 3]]));
        let mut c = compare_routing(only_ids(&a), only_ids(&b), 4, 0).unwrap();
        let bound = [1e-3; 4];
        assert!(c.flips[0].explain(&[1.0, 1.0, 1.0, 1.0], &bound, &bound).explained());
        let far = c.flips[0].explain(&[1.0, 1.0, 1.0, 0.0], &bound, &bound);
        assert_eq!((far.beyond, far.oracle_margin), (Some(Side::Subject), 1.0));
    }

    #[test]
    fn ids_that_are_no_set_of_experts_are_mismatches() {
        let good = ids(&[[0, 1]]);
        let (absent, twice) = (ids(&[[0, 9]]), ids(&[[1, 1]]));
        let compare = |b: &HostTensor| compare_routing(only_ids(&good), only_ids(b), 4, 7);
        let Err(Mismatch::NoSuchExpert { position: 7, slot: 1, id: 9, .. }) = compare(&absent) else { panic!() };
        let Err(Mismatch::RepeatedExpert { side: Side::Subject, id: 1, .. }) = compare(&twice) else { panic!() };
        assert!(matches!(compare(&HostTensor::u32(&[1, 1], vec![0])), Err(Mismatch::Shape { .. })));
        assert!(matches!(compare(&HostTensor::f32(&[1, 2], vec![0.0; 2])), Err(Mismatch::Dtype { .. })));
        let none = HostTensor::u32(&[0, 2], vec![]);
        let c = compare_routing(only_ids(&none), only_ids(&none), 4, 0);
        assert!(matches!(c, Err(Mismatch::Nothing { .. })));
        let w = HostTensor::f32(&[1, 3], vec![0.0; 3]);
        let r = Routing { weights: Some(&w), ..only_ids(&good) };
        assert!(matches!(compare_routing(r, only_ids(&good), 4, 0), Err(Mismatch::Shape { .. })));
    }

    #[test]
    fn expert_rows_pair_by_id() {
        let (a, b) = (ids(&[[3, 1], [0, 2]]), ids(&[[1, 3], [2, 1]]));
        let rows = common_experts(&a, &b).unwrap();
        let short: Vec<_> =
            rows.iter().map(|r| (r.token, r.reference_slot, r.subject_slot, r.expert, r.flipped)).collect();
        assert_eq!(short, [(0, 0, 1, 3, false), (0, 1, 0, 1, false), (1, 1, 0, 2, true)]);
        let x = HostTensor::f32(&[2, 2, 1], vec![3.0, 1.0, 0.0, 2.0]);
        let y = HostTensor::f32(&[2, 2, 1], vec![1.0, 3.0, 2.0, 9.0]);
        let (x, y) = gather_common(&x, &y, &rows).unwrap();
        assert_eq!(x, y);
        assert_eq!(x.shape, [3, 1]);
        let short = HostTensor::f32(&[1, 2, 1], vec![1.0, 2.0]);
        assert!(gather_common(&short, &short, &rows).is_err());
    }
}
