//! The router: softmax over all experts or sigmoids, the k largest, their weights, and the weighted sum of what the experts said.

use super::attention::softmax;
use super::{matrix, values};
use crate::op::{GroupScore, Groups, HostTensor};

/// Softmax over all experts. [T, E] → same.
pub fn probs(logits: &HostTensor) -> HostTensor {
    let mut out = values(logits).into_owned();
    for row in out.chunks_exact_mut(logits.cols()) {
        softmax(row);
    }
    HostTensor::f64(&logits.shape, out)
}

/// The sigmoid of each logit. [T, E] → same.
pub fn sigmoids(logits: &HostTensor) -> HostTensor {
    let sigmoid = |x: &f64| (1.0 + (-x).exp()).recip();
    HostTensor::f64(&logits.shape, values(logits).iter().map(sigmoid).collect())
}

/// The k largest, by weight descending, ties to the lower id; with groups, of the experts in those of the largest scores. [T, E] → [T, K].
///
/// A NaN is above every number: it is chosen, and so stays visible in what follows.
pub fn topk(probs: &HostTensor, k: usize, groups: Option<Groups>) -> HostTensor {
    let (t, experts) = matrix(probs);
    let probs = values(probs);
    let mut out = Vec::with_capacity(t * k);
    for row in probs.chunks_exact(experts) {
        let mut order = descending(row);
        if let Some(groups) = groups {
            let size = experts / groups.count;
            let scores: Vec<f64> = row.chunks_exact(size).map(|group| score(group, groups.by)).collect();
            let kept = &descending(&scores)[..groups.used];
            order.retain(|e| kept.contains(&(e / size as u32)));
        }
        out.extend(&order[..k]);
    }
    HostTensor::u32(&[t, k], out)
}

/// The places of values, the largest first, NaN before all, of equal ones the first.
fn descending(values: &[f64]) -> Vec<u32> {
    let rank = |i: u32| {
        let value = values[i as usize];
        if value.is_nan() { (true, 0.0) } else { (false, value) }
    };
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|&a, &b| rank(b).partial_cmp(&rank(a)).expect("no NaN is left").then(a.cmp(&b)));
    order
}

/// What a group of experts is kept by.
fn score(group: &[f64], by: GroupScore) -> f64 {
    let order = descending(group);
    let taken = match by {
        GroupScore::Max => 1,
        GroupScore::TopTwo => 2,
    };
    order[..taken].iter().map(|i| group[*i as usize]).sum()
}

/// probs at ids, divided by their sum if `renormalise`, times `scale`. [T, E], [T, K] → [T, K].
pub fn weights(probs: &HostTensor, ids: &HostTensor, renormalise: bool, scale: f64) -> HostTensor {
    let ((t, experts), k, ids) = (matrix(probs), ids.cols(), ids.ids());
    let probs = values(probs);
    let mut out = Vec::with_capacity(t * k);
    for (row, ids) in probs.chunks_exact(experts).zip(ids.chunks_exact(k)) {
        let chosen = ids.iter().map(|id| row[*id as usize]);
        let sum = if renormalise { chosen.clone().sum() } else { 1.0 };
        out.extend(chosen.map(|p| p / sum * scale));
    }
    HostTensor::f64(&[t, k], out)
}

/// The softmax of the values at ids. [T, E], [T, K] → [T, K].
pub fn softmax_of_chosen(logits: &HostTensor, ids: &HostTensor) -> HostTensor {
    let mut out = values(&weights(logits, ids, false, 1.0)).into_owned();
    out.chunks_exact_mut(ids.cols()).for_each(softmax);
    HostTensor::f64(&ids.shape, out)
}

/// Σ_k weights[t, k] · down[t, k, ·]. [T, K, H], [T, K] → [T, H].
pub fn combine(down: &HostTensor, weights: &HostTensor) -> HostTensor {
    let ((t, k), h) = (matrix(weights), down.cols());
    let (down, weights) = (values(down), values(weights));
    let mut out = vec![0.0; t * h];
    for (slot, weight) in weights.iter().enumerate() {
        let sum = &mut out[slot / k * h..][..h];
        for (sum, down) in sum.iter_mut().zip(&down[slot * h..][..h]) {
            *sum += weight * down;
        }
    }
    HostTensor::f64(&[t, h], out)
}
