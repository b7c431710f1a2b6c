//! What follows a router's probabilities: the choice of experts, their weights, and the weighted sum of what they say. The softmax before
//! it is in `softmax`.

use super::precision::unit;
use super::rounding::{TINY, division, inner, roundoff, ulp};
use super::softmax::softmax;
use super::sum::{Terms, confidence};
use super::{Bounded, ByRow, Formula, Values, as_given, by_row};
use crate::backend::Contract;
use crate::error::Result;
use crate::op::{GroupScore, Groups, HostTensor, Op};

/// The `k` largest of a row, by value descending, ties to the lower index.
pub(crate) fn largest(row: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    order.truncate(k);
    order
}

/// Every choice that rounding of the groups' scores allows, the exact one first. A score that is a sum of two is off by δ = u·|S|, and by half a
/// step where it is kept in a coarser format; so group G is before H for certain only where S(G) − S(H) > δ(G) + δ(H), or where both are the
/// same number, which rounds to one, and G is the first. Any groups can be kept of which none is behind one that is not for certain.
fn within_rounding(row: &[f64], k: usize, groups: Groups, contract: &Contract) -> Vec<Vec<usize>> {
    /// Groups that are undecided, of which all subsets are tried.
    const MOST: usize = 12;
    let (grouping, count) = (Grouping::stated(groups), groups.count);
    let scores = grouping.scores(row);
    let chosen = |scores: &[f64]| largest(&grouping.mask(row, scores), k);
    let mut all = vec![chosen(&scores)];
    if groups.by == GroupScore::Max || !scores.iter().all(|score| score.is_finite()) {
        return all;
    }
    let off: Vec<f64> = scores.iter().map(|s| roundoff(contract) * s.abs() + inner(*s, contract)).collect();
    let before = |g: usize, h: usize| scores[g] - scores[h] > off[g] + off[h] || scores[g] == scores[h] && g < h;
    let (mut certain, mut undecided) = (Vec::new(), Vec::new());
    for g in 0..count {
        let ahead = (0..count).filter(|h| before(*h, g)).count();
        let behind = (0..count).filter(|h| before(g, *h)).count();
        if behind >= count - groups.used {
            certain.push(g);
        } else if ahead < groups.used {
            undecided.push(g);
        }
    }
    if undecided.len() > MOST {
        return all;
    }
    let free = groups.used.saturating_sub(certain.len());
    for mask in (0u32..1 << undecided.len()).filter(|mask| mask.count_ones() as usize == free) {
        let mut kept = vec![false; count];
        certain.iter().for_each(|g| kept[*g] = true);
        undecided.iter().enumerate().for_each(|(n, g)| kept[*g] = mask >> n & 1 == 1);
        let is_held = (0..count).all(|g| !kept[g] || (0..count).all(|h| kept[h] || !before(h, g)));
        let ids = chosen(&kept.iter().map(|kept| f64::from(u8::from(*kept))).collect::<Vec<_>>());
        if is_held && !all.contains(&ids) {
            all.push(ids);
        }
    }
    all
}

/// Every choice that is right: what rounding of the groups' scores allows, the exact one first, and where any of equal experts may be chosen, those with
/// others of them.
fn allowed(row: &[f64], k: usize, groups: Option<Groups>, contract: &Contract) -> Vec<Vec<usize>> {
    let mut all = match groups {
        Some(groups) => within_rounding(row, k, groups, contract),
        None => vec![largest(row, k)],
    };
    if contract.any_tie {
        let others: Vec<_> = all.iter().flat_map(|chosen| with_equals(row, chosen, groups)).collect();
        for other in others {
            if !all.contains(&other) {
                all.push(other);
            }
        }
    }
    all
}

/// Choices with some of those that equal the last one chosen, of its group where there are groups, in the places of such.
fn with_equals(row: &[f64], chosen: &[usize], groups: Option<Groups>) -> Vec<Vec<usize>> {
    /// Equals of which all subsets are tried, and choices that are made.
    const MOST: usize = 12;
    let Some(last) = chosen.last() else { return vec![] };
    let equal = |e: usize| row[e] == row[*last];
    let in_reach = |e: usize| chosen.iter().any(|c| equal(*c) && are_together(*c, e, row.len(), groups));
    let certain = chosen.iter().filter(|e| !equal(**e));
    let equals: Vec<usize> = (0..row.len()).filter(|e| equal(*e) && in_reach(*e)).take(MOST).collect();
    let free = chosen.len() - certain.clone().count();
    let some = (0u32..1 << equals.len()).filter(|mask| mask.count_ones() as usize == free);
    let these = |mask: u32| equals.iter().enumerate().filter(move |(n, _)| mask >> n & 1 == 1).map(|(_, e)| e);
    some.map(|mask| certain.clone().chain(these(mask)).copied().collect()).take(MOST).collect()
}

/// Whether two experts are of one group, which all are where there are none.
fn are_together(a: usize, b: usize, experts: usize, groups: Option<Groups>) -> bool {
    let size = groups.map_or(experts, |groups| experts / groups.count.max(1)).max(1);
    a / size == b / size
}

/// The exact choice of experts with the rows of `ids` that are right, too, in the place of its own ([`allowed`], and where any of equal experts may be
/// chosen these in any order): against them a choice has no error. `None` where only the exact one is right.
pub(crate) fn as_chosen(
    op: &Op<'_, &HostTensor>,
    contract: &Contract,
    exact: &HostTensor,
    ids: &HostTensor,
) -> Option<HostTensor> {
    let Op::RouterTopK { probs, k, groups } = *op else { return None };
    let by_sums = groups.is_some_and(|groups| groups.by != GroupScore::Max);
    if !(by_sums || contract.any_tie) || ids.dtype() != exact.dtype() || ids.shape != exact.shape {
        return None;
    }
    let (p, mut all) = (probs.to_f64(), exact.ids().to_vec());
    for (row, own) in all.chunks_exact_mut(k).enumerate() {
        let given = &ids.ids()[row * k..][..k];
        let row = &p[row * probs.cols()..][..probs.cols()];
        let alike = |a: usize, b: usize| {
            let equal = contract.any_tie && row.get(b).is_some_and(|p| *p == row[a]);
            a == b || equal && are_together(a, b, row.len(), groups)
        };
        let is_given = |ids: &Vec<usize>| ids.iter().zip(given).all(|(a, b)| alike(*a, *b as usize));
        let differ = given.iter().enumerate().all(|(n, id)| !given[..n].contains(id));
        if own != given && differ && allowed(row, k, groups, contract).iter().any(is_given) {
            own.copy_from_slice(given);
        }
    }
    Some(HostTensor::u32(&exact.shape, all))
}

/// Other choices than `exact` that are right ([`allowed`]): in each, rows that have one have another.
pub(crate) fn undecided(op: &Op<'_, &HostTensor>, contract: &Contract, exact: &HostTensor) -> Vec<HostTensor> {
    let Op::RouterTopK { probs, k, groups } = *op else { return vec![] };
    let p = probs.to_f64();
    let rows: Vec<_> = p.chunks_exact(probs.cols()).map(|row| allowed(row, k, groups, contract)).collect();
    let most = rows.iter().map(Vec::len).max().unwrap_or(1);
    let choice = |n: usize| {
        let row =
            |choices: &Vec<Vec<usize>>| choices[n.min(choices.len() - 1)].iter().map(|e| *e as u32).collect::<Vec<_>>();
        HostTensor::u32(&exact.shape, rows.iter().flat_map(row).collect())
    };
    (1..most).map(choice).collect()
}

/// The experts that each row of probabilities chooses. [T, K] A comparison of numbers that are there: nothing is rounded, but for the sum that a
/// group's score may be.
pub(crate) struct ChosenExperts<'a> {
    /// [T, E]
    pub p: Values<'a>,
    pub experts: usize,
    pub k: usize,
    /// From a row and K; stated, [`largest`].
    pub choose: fn(&[f64], usize) -> Vec<usize>,
    /// Of which groups of experts, where there are groups.
    pub groups: Option<Grouping>,
    /// What groups are scored by, where it is not what experts are chosen by. [T, E]
    pub scored_by: Option<Values<'a>>,
}

/// Which groups of experts can be chosen from.
#[derive(Clone, Copy)]
pub(crate) struct Grouping {
    pub count: usize,
    pub used: usize,
    /// A group's score, of its values from the largest on; stated, the first or the sum of two.
    pub score: fn(&[f64]) -> f64,
    /// What is in the place of a value that cannot be chosen; stated, −∞.
    pub masked: f64,
}

impl Grouping {
    /// As the operation says.
    pub fn stated(Groups { count, used, by }: Groups) -> Self {
        let score: fn(&[f64]) -> f64 = match by {
            GroupScore::Max => |group| group[0],
            GroupScore::TopTwo => |group| group.iter().take(2).sum(),
        };
        Self { count, used, score, masked: f64::NEG_INFINITY }
    }

    /// Each group's score. A sum with a NaN is one, whatever its sign.
    pub fn scores(&self, row: &[f64]) -> Vec<f64> {
        let of = |group: &[f64]| {
            let sorted: Vec<f64> = largest(group, group.len()).into_iter().map(|e| group[e]).collect();
            let score = (self.score)(&sorted);
            if score.is_nan() { f64::NAN } else { score }
        };
        row.chunks((row.len() / self.count.max(1)).max(1)).map(of).collect()
    }

    /// A row whose values are masked but for those of the groups with the largest scores.
    pub fn mask(&self, row: &[f64], scores: &[f64]) -> Vec<f64> {
        let kept = largest(scores, self.used);
        let size = (row.len() / self.count.max(1)).max(1);
        row.iter().enumerate().map(|(e, p)| if kept.contains(&(e / size)) { *p } else { self.masked }).collect()
    }
}

impl<'a> Formula<'a> for ChosenExperts<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let Op::RouterTopK { probs, k, groups } = *op else { return Ok(None) };
        let groups = groups.map(Grouping::stated);
        Ok(Some(Self { p: as_given(&x[0]), experts: probs.cols(), k, choose: largest, groups, scored_by: None }))
    }
    by_row!();
}

impl ByRow for ChosenExperts<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.p.len() / self.experts.max(1), self.k]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], _: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let p = &self.p[row * self.experts..][..self.experts];
        let ids = match self.groups {
            Some(groups) => {
                let scored = self.scored_by.as_ref().map_or(p, |of| &of[row * self.experts..][..self.experts]);
                (self.choose)(&groups.mask(p, &groups.scores(scored)), self.k)
            }
            None => (self.choose)(p, self.k),
        };
        // A slot for which nothing was chosen has expert 0.
        let id = |slot: &usize| ids.get(*slot).map_or(0.0, |id| *id as f64);
        Ok(columns.iter().map(|slot| (id(slot), [0.0; N])).collect())
    }
}

/// What is made of the chosen experts' probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weighing {
    /// p: copied.
    Copied,
    /// p/Σp: |y|·(bound(Σp)/Σp + div).
    BySum,
    /// p/(Σp + eps).
    BySumPlus(f64),
    /// p/max(Σp, least).
    BySumAtLeast(f64),
    /// p/Σp of the slots but the last.
    BySumOfAllButLast,
    /// p/Σp in the slots from one to another, p in the others.
    BySumIn(usize, usize),
    /// p/max p.
    ByLargest,
    /// p/√Σp².
    ByRoot,
    /// The softmax of p, which are logits where an operation has it, or of p/Σp.
    Softmax,
    SoftmaxOfRenormalised,
    /// 1/K.
    Equal,
}

/// The weights of the chosen experts. [T, K]
pub(crate) struct ExpertWeights<'a> {
    /// [T, E]
    pub p: Values<'a>,
    pub experts: usize,
    pub k: usize,
    /// Whose probability each slot has. [T, K]
    pub ids: Vec<usize>,
    pub weighing: Weighing,
    /// What they are multiplied by after that: one rounding more, where it is not 1.
    pub scale: f64,
}

impl<'a> Formula<'a> for ExpertWeights<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let Op::RouterWeights { probs, ids, renormalise, softmax, scale } = *op else { return Ok(None) };
        let weighing = match (softmax, renormalise) {
            (true, _) => Weighing::Softmax,
            (false, true) => Weighing::BySum,
            (false, false) => Weighing::Copied,
        };
        let (k, ids) = (ids.cols(), ids.ids().iter().map(|id| *id as usize).collect());
        Ok(Some(Self { p: as_given(&x[0]), experts: probs.cols(), k, ids, weighing, scale }))
    }
    by_row!();
}

impl ByRow for ExpertWeights<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.ids.len() / self.k.max(1), self.k]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let ids = &self.ids[row * self.k..][..self.k];
        let p: Vec<f64> = ids.iter().map(|e| self.p[row * self.experts + e]).collect();
        let mut all = self.weighing.of(&p, confidence(self.shape()[0]), contracts);
        if self.scale != 1.0 {
            for (y, floors) in &mut all {
                let unscaled = y.abs();
                *y *= self.scale;
                // What the scale and the product are off by: both are rounded, the product's operand may be kept in a coarser format.
                let more = |n: usize| {
                    2.0 * roundoff(contracts[n]) * y.abs() + inner(unscaled, contracts[n]) * self.scale.abs()
                };
                *floors = std::array::from_fn(|n| floors[n] * self.scale.abs() + more(n) + TINY);
            }
        }
        Ok(columns.iter().map(|slot| all[*slot]).collect())
    }
}

impl Weighing {
    fn of<const N: usize>(self, p: &[f64], lambda: f64, contracts: [&Contract; N]) -> Vec<Bounded<N>> {
        let k = p.len() as f64;
        let over = |divisor: f64, relative: [f64; N]| -> Vec<Bounded<N>> {
            p.iter().map(|p| (p / divisor, relative.map(|r| r * (p / divisor).abs() + TINY))).collect()
        };
        match self {
            Self::Copied => over(1.0, [0.0; N]),
            Self::BySum => {
                let terms = Terms::one_sign(p.iter().copied());
                over(terms.sum, contracts.map(|c| terms.bound(c, lambda) / terms.absolute + division(c)))
            }
            Self::BySumPlus(eps) => {
                let terms = Terms::one_sign(p.iter().copied());
                let relative = |c| terms.bound(c, lambda) / terms.absolute + division(c) + roundoff(c);
                over(terms.sum + eps, contracts.map(relative))
            }
            Self::BySumAtLeast(least) => {
                let sum: f64 = p.iter().sum();
                if sum >= least { Self::BySum } else { Self::BySumPlus(least - sum) }.of(p, lambda, contracts)
            }
            Self::BySumIn(from, to) => {
                let renormalised = Self::BySum.of(p, lambda, contracts);
                let copied = Self::Copied.of(p, lambda, contracts);
                let slot = |k: usize| if (from..to).contains(&k) { renormalised[k] } else { copied[k] };
                (0..p.len()).map(slot).collect()
            }
            Self::BySumOfAllButLast => {
                let sum = p[..p.len().saturating_sub(1).max(1)].iter().sum();
                over(sum, contracts.map(|c| division(c) + k * roundoff(c)))
            }
            Self::ByLargest => over(p.iter().copied().fold(0.0, f64::max), contracts.map(division)),
            Self::ByRoot => {
                let root = p.iter().map(|p| p * p).sum::<f64>().sqrt();
                over(root, contracts.map(|c| division(c) + c.rsqrt_ulp * ulp(c) + (k + 2.0) * roundoff(c)))
            }
            Self::Softmax => softmax(p, [0.0; N], lambda, contracts),
            Self::SoftmaxOfRenormalised => {
                let once = Self::BySum.of(p, lambda, contracts);
                let moved = once.iter().fold([0f64; N], |m, (_, floor)| std::array::from_fn(|n| m[n].max(floor[n])));
                let once: Vec<f64> = once.iter().map(|(p, _)| *p).collect();
                softmax(&once, moved, lambda, contracts)
            }
            Self::Equal => vec![(1.0 / k, contracts.map(|c| division(c) / k)); p.len()],
        }
    }
}

/// Σ_k weight·down: the bound on each sum, and what may be flushed. [T, H]
///
/// Where products are rounded to a coarser format before they are summed, half a step of that at each more; where the sum is held in a coarser format
/// and so rounded after each addition but the first, which adds to nothing, the worst case γ_(K−1) of that format in place of the probable
/// one: there are few.
pub(crate) struct Combined<'a> {
    /// [T, K, H]
    pub down: Values<'a>,
    /// [T, K]
    pub weights: Values<'a>,
    pub k: usize,
    /// How many of a position's slots, from the first, are summed; stated, K.
    pub summed: usize,
    pub hidden: usize,
    /// Where the values of each slot of each position begin in `down`; stated, one after the other. [T, K]
    pub begins: Vec<usize>,
}

impl<'a> Formula<'a> for Combined<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let Op::Combine { down, weights } = *op else { return Ok(None) };
        let (k, hidden) = (weights.cols(), down.cols());
        let begins = (0..weights.len()).map(|slot| slot * hidden).collect();
        Ok(Some(Self { down: as_given(&x[0]), weights: as_given(&x[1]), k, summed: k, hidden, begins }))
    }
    by_row!();
}

impl ByRow for Combined<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.weights.len() / self.k.max(1), self.hidden]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let weights = &self.weights[row * self.k..][..self.summed];
        let begins = &self.begins[row * self.k..][..self.summed];
        let lambda = confidence(self.len());
        let mut column = vec![0.0; self.summed];
        let element = |i: &usize| {
            column.iter_mut().zip(begins).for_each(|(c, begin)| *c = self.down[begin + i]);
            let terms = Terms::dot(weights, &column);
            let flushed = TINY * (self.summed as f64 + column.iter().map(|c| c.abs()).sum::<f64>());
            let floor = |c: &Contract| {
                let held = unit(c.accumulator);
                let inside: f64 = weights.iter().zip(&column).map(|(w, d)| inner(w * d, c)).sum();
                if held == 0.0 {
                    return terms.bound(c, lambda) + flushed + inside;
                }
                let m = self.summed.saturating_sub(1) as f64 * held + 2.0 * c.unit_roundoff;
                m / (1.0 - m) * (terms.absolute + inside) + flushed + inside
            };
            (terms.sum, contracts.map(floor))
        };
        Ok(columns.iter().map(element).collect())
    }
}
