//! Causal attention in three stages. Query head h reads KV head h / (heads / kv_heads).

use std::sync::Arc;

use rayon::prelude::*;

use super::linear::dot;
use super::{dequant, matrix, values};
use crate::error::Result;
use crate::op::{HostTensor, Weight};

/// Positions that position p sees: up to itself, with a window no more than so many.
fn seen(p: usize, window: Option<usize>) -> std::ops::Range<usize> {
    match window {
        Some(keys) if p >= keys => p + 1 - keys..p + 1,
        _ => 0..p + 1,
    }
}

/// q·k · scale, or / √D, where s is seen, 0 elsewhere. [T, heads·D], [capacity, kv_heads·D] → [heads, T, S].
pub fn scores(
    q: &HostTensor,
    k: &HostTensor,
    start: usize,
    head_dim: usize,
    scale: Option<f64>,
    window: Option<usize>,
) -> HostTensor {
    let divisor = scale.map_or((head_dim as f64).sqrt(), |scale| 1.0 / scale);
    let (t, cols) = matrix(q);
    let (s, heads, kv_cols) = (start + t, cols / head_dim, k.cols());
    let group = cols / kv_cols;
    let (q, k) = (values(q), values(k));
    let mut out = vec![0.0; heads * t * s];
    out.par_chunks_exact_mut(s).enumerate().for_each(|(i, row)| {
        let (head, token) = (i / t, i % t);
        let q = &q[token * cols + head * head_dim..][..head_dim];
        for position in seen(start + token, window) {
            let k = &k[position * kv_cols + head / group * head_dim..][..head_dim];
            row[position] = dot(q, k) / divisor;
        }
    });
    HostTensor::f64(&[heads, t, s], out)
}

/// Softmax over the s that are seen, 0 elsewhere. With sinks, it is over one more score, the head's own, whose share is dropped.
/// [heads, T, S], sinks `[heads]` → same.
pub fn probs(
    scores: &HostTensor,
    start: usize,
    window: Option<usize>,
    sinks: Option<&Arc<Weight>>,
) -> Result<HostTensor> {
    let (heads, t, s) = (scores.shape[0], scores.shape[1], scores.shape[2]);
    let mut of_head = vec![0.0; heads];
    if let Some(sinks) = sinks {
        dequant::row(sinks.ty, sinks.row(0, 0), &mut of_head)?;
    }
    let mut out = values(scores).into_owned();
    out.par_chunks_exact_mut(s).enumerate().for_each(|(i, row)| {
        let seen = seen(start + i % t, window);
        let mut shares = row[seen.clone()].to_vec();
        shares.extend(sinks.map(|_| of_head[i / t]));
        softmax(&mut shares);
        row.fill(0.0);
        let keys = seen.len();
        row[seen].copy_from_slice(&shares[..keys]);
    });
    Ok(HostTensor::f64(&scores.shape, out))
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
pub fn context(probs: &HostTensor, v: &HostTensor, start: usize, head_dim: usize, window: Option<usize>) -> HostTensor {
    let (heads, t, s, kv_cols) = (probs.shape[0], probs.shape[1], probs.shape[2], v.cols());
    let (cols, group) = (heads * head_dim, heads * head_dim / kv_cols);
    let (p, v) = (values(probs), values(v));
    let mut out = vec![0.0; t * cols];
    out.par_chunks_exact_mut(head_dim).enumerate().for_each(|(i, out)| {
        let (token, head) = (i / heads, i % heads);
        for position in seen(start + token, window) {
            let p = p[(head * t + token) * s + position];
            let v = &v[position * kv_cols + head / group * head_dim..][..head_dim];
            for (out, v) in out.iter_mut().zip(v) {
                *out += p * v;
            }
        }
    });
    HostTensor::f64(&[t, cols], out)
}
