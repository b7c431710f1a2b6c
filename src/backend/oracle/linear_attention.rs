//! Linear attention: the convolution, the norms of queries and keys, the decay, and the gated delta rule.

use rayon::prelude::*;

use super::{dequant, matrix, values};
use crate::error::Result;
use crate::op::{HostTensor, Weight};

/// silu(Σ_j w[c, j] · x at position start + t + j − L + 1). [T, C], [capacity, C], [C, L] → [T, C]
pub fn conv(x: &HostTensor, cache: &HostTensor, weight: &Weight, start: usize) -> Result<HostTensor> {
    let (kernel, channels) = (weight.cols, weight.rows);
    let mut w = vec![0.0; kernel * channels];
    for (channel, row) in w.chunks_exact_mut(kernel).enumerate() {
        dequant::row(weight.ty, weight.row(0, channel), row)?;
    }
    let (x, cache) = (values(x), values(cache));
    let positions = x.len() / channels;
    let mut out = vec![0.0; x.len()];
    for t in 0..positions {
        for c in 0..channels {
            let mut sum = 0.0;
            for j in 0..kernel {
                let Some(position) = (start + t + j + 1).checked_sub(kernel) else { continue };
                let of = if position >= start {
                    x[(position - start) * channels + c]
                } else {
                    cache[position * channels + c]
                };
                sum += w[c * kernel + j] * of;
            }
            out[t * channels + c] = sum / (1.0 + (-sum).exp());
        }
    }
    Ok(HostTensor::f64(&[positions, channels], out))
}

/// x / √(Σx² + eps) of each head, from column `first` on. [T, ..] → [T, heads·D]
pub fn l2_norm(x: &HostTensor, first: usize, heads: usize, head_dim: usize, eps: f64) -> HostTensor {
    let (positions, cols) = matrix(x);
    let x = values(x);
    let mut out = Vec::with_capacity(positions * heads * head_dim);
    for row in x.chunks_exact(cols) {
        for head in row[first..][..heads * head_dim].chunks_exact(head_dim) {
            let length = (head.iter().map(|x| x * x).sum::<f64>() + eps).sqrt();
            out.extend(head.iter().map(|x| x / length));
        }
    }
    HostTensor::f64(&[positions, heads * head_dim], out)
}

/// weight · ln(1 + eˣ). [T, N] → same
pub fn decay(x: &HostTensor, weight: &Weight) -> Result<HostTensor> {
    let mut w = vec![0.0; weight.cols];
    dequant::row(weight.ty, weight.row(0, 0), &mut w)?;
    let mut out = values(x).into_owned();
    for row in out.chunks_exact_mut(w.len()) {
        for (x, w) in row.iter_mut().zip(&w) {
            // ln(1 + eˣ) = max(x, 0) + ln(1 + e^−|x|)
            *x = w * (x.max(0.0) + (-x.abs()).exp().ln_1p());
        }
    }
    Ok(HostTensor::f64(&x.shape, out))
}

/// Of each value head: S ← e^decay · S, S ← S + k (beta · (v − Sᵀk))ᵀ, from position 0 on, and Sᵀq / √D from `start` on.
/// [T, Hk·D], [.., Hk·D], [.., ≥ Hv·D], [.., Hv], [.., Hv] → [T, Hv·D]
pub fn delta_rule([q, k, v, decay, beta]: [&HostTensor; 5], start: usize, head_dim: usize, tiled: bool) -> HostTensor {
    let (positions, key_cols) = matrix(q);
    let (heads, v_cols, d) = (decay.cols(), v.cols(), head_dim);
    let (key_heads, first) = (key_cols / d, v_cols - heads * d);
    let [q, k, v, decay, beta] = [q, k, v, decay, beta].map(values);
    let of_head = |head: usize| {
        let key_head = if tiled { head % key_heads } else { head / (heads / key_heads) };
        let mut state = vec![0.0; d * d]; // S [key, value]
        let mut out = Vec::with_capacity(positions * d);
        for s in 0..start + positions {
            let k = &k[s * key_cols + key_head * d..][..d];
            let v = &v[s * v_cols + first + head * d..][..d];
            let fade = decay[s * heads + head].exp();
            state.iter_mut().for_each(|x| *x *= fade);
            for j in 0..d {
                let held: f64 = (0..d).map(|i| state[i * d + j] * k[i]).sum();
                let delta = beta[s * heads + head] * (v[j] - held);
                for i in 0..d {
                    state[i * d + j] += k[i] * delta;
                }
            }
            if let Some(t) = s.checked_sub(start) {
                let q = &q[t * key_cols + key_head * d..][..d];
                out.extend((0..d).map(|j| (0..d).map(|i| state[i * d + j] * q[i]).sum::<f64>() / (d as f64).sqrt()));
            }
        }
        out
    };
    let of_heads: Vec<Vec<f64>> = (0..heads).into_par_iter().map(of_head).collect();
    let mut out = Vec::with_capacity(positions * heads * d);
    for t in 0..positions {
        of_heads.iter().for_each(|head| out.extend(&head[t * d..][..d]));
    }
    HostTensor::f64(&[positions, heads * d], out)
}
