//! Causal attention in three stages. Query head h reads KV head h / (heads / kv_heads).

use rayon::prelude::*;

use super::{matrix, values};
use crate::op::HostTensor;

/// q·k / √D where s ≤ start + t, 0 beyond. [T, heads·D], [capacity, kv_heads·D] → [heads, T, S].
pub fn scores(q: &HostTensor, k: &HostTensor, start: usize, head_dim: usize) -> HostTensor {
    let (t, cols) = matrix(q);
    let (s, heads, kv_cols) = (start + t, cols / head_dim, k.cols());
    let group = cols / kv_cols;
    let (q, k) = (values(q), values(k));
    let mut out = vec![0.0; heads * t * s];
    out.par_chunks_exact_mut(s).enumerate().for_each(|(i, row)| {
        let (head, token) = (i / t, i % t);
        let q = &q[token * cols + head * head_dim..][..head_dim];
        for (position, score) in row[..start + token + 1].iter_mut().enumerate() {
            let k = &k[position * kv_cols + head / group * head_dim..][..head_dim];
            *score = q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt();
        }
    });
    HostTensor::f64(&[heads, t, s], out)
}

/// Softmax over s ≤ start + t, 0 beyond. [heads, T, S] → same.
pub fn probs(scores: &HostTensor, start: usize) -> HostTensor {
    let (t, s) = (scores.shape[1], scores.shape[2]);
    let mut out = values(scores).into_owned();
    for (i, row) in out.chunks_exact_mut(s).enumerate() {
        let (seen, beyond) = row.split_at_mut(start + i % t + 1);
        softmax(seen);
        beyond.fill(0.0);
    }
    HostTensor::f64(&scores.shape, out)
}

/// exp(x − max) / Σ, in place. The largest is subtracted so that nothing overflows; mathematically it changes nothing.
pub fn softmax(row: &mut [f64]) {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for x in row.iter_mut() {
        *x = (*x - max).exp();
    }
    let sum: f64 = row.iter().sum();
    for x in row {
        *x /= sum;
    }
}

/// Σ_s probs · v. [heads, T, S], [capacity, kv_heads·D] → [T, heads·D].
pub fn context(probs: &HostTensor, v: &HostTensor, start: usize, head_dim: usize) -> HostTensor {
    let (heads, t, s, kv_cols) = (probs.shape[0], probs.shape[1], probs.shape[2], v.cols());
    let (cols, group) = (heads * head_dim, heads * head_dim / kv_cols);
    let (p, v) = (values(probs), values(v));
    let mut out = vec![0.0; t * cols];
    out.par_chunks_exact_mut(head_dim).enumerate().for_each(|(i, out)| {
        let (token, head) = (i / heads, i % heads);
        for position in 0..start + token + 1 {
            let p = p[(head * t + token) * s + position];
            let v = &v[position * kv_cols + head / group * head_dim..][..head_dim];
            for (out, v) in out.iter_mut().zip(v) {
                *out += p * v;
            }
        }
    });
    HostTensor::f64(&[t, cols], out)
}
