//! The router: softmax over all experts or sigmoids, the k largest, their weights, and the weighted sum of what the experts said.

use super::attention::softmax;
use super::{matrix, values};
use crate::op::HostTensor;

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

/// The k largest, by weight descending, ties to the lower id. [T, E] → [T, K].
///
/// A NaN is above every number: it is chosen, and so stays visible in what follows.
pub fn topk(probs: &HostTensor, k: usize) -> HostTensor {
    let (t, experts) = matrix(probs);
    let probs = values(probs);
    let mut out = Vec::with_capacity(t * k);
    for row in probs.chunks_exact(experts) {
        let rank = |e: u32| {
            let p = row[e as usize];
            if p.is_nan() { (true, 0.0) } else { (false, p) }
        };
        let mut order: Vec<u32> = (0..experts as u32).collect();
        order.sort_by(|&a, &b| rank(b).partial_cmp(&rank(a)).expect("no NaN is left").then(a.cmp(&b)));
        out.extend(&order[..k]);
    }
    HostTensor::u32(&[t, k], out)
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
