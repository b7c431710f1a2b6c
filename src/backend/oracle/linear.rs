//! Operations that read a quantized matrix: embedding, matrix product, expert matrix product.

use rayon::prelude::*;

use super::{dequant, kept, matrix, values};
use crate::error::{Error, Result};
use crate::op::{HostTensor, Weight};
use crate::wide::wide;

wide! {
    /// Σ x·w in eight running sums, added at the end: the compiler may then use vectors, and the error is smaller than one sum's.
    pub fn dot(x: &[f64], w: &[f64]) -> f64 {
        let (xs, x_tail) = x.as_chunks::<8>();
        let (ws, w_tail) = w.as_chunks::<8>();
        let mut sums = [0.0; 8];
        for (x, w) in xs.iter().zip(ws) {
            for i in 0..8 {
                sums[i] += x[i] * w[i];
            }
        }
        let tail: f64 = x_tail.iter().zip(w_tail).map(|(x, w)| x * w).sum();
        sums.iter().sum::<f64>() + tail
    }
}

/// Row `tokens[t]` of the table, times `scale` → [T, H].
pub fn embed(table: &Weight, tokens: &[u32], scale: f64) -> Result<HostTensor> {
    let mut out = vec![0.0; tokens.len() * table.cols];
    for (out, &token) in out.chunks_exact_mut(table.cols).zip(tokens) {
        dequant::row(table.ty, table.row(0, token as usize), out)?;
        out.iter_mut().for_each(|x| *x *= scale);
    }
    Ok(HostTensor::f64(&[tokens.len(), table.cols], out))
}

/// x [T, K] · weightᵀ [K, N] → [T, N].
pub fn matmul(x: &HostTensor, weight: &Weight) -> Result<HostTensor> {
    let t = x.shape[0];
    let x = values(x); // [T, K]
    let all: Vec<usize> = (0..t).collect();
    let mut out = vec![0.0; t * weight.rows]; // [T, N]
    product(weight, 0, &x, &all, &mut |token, row, y| out[token * weight.rows + row] = y)?;
    Ok(HostTensor::f64(&[t, weight.rows], out))
}

/// For token t and slot k, x · weight[ids[t, k]]ᵀ; x is [T, n] or [T, K, n] → [T, K, N].
pub fn expert_matmul(x: &HostTensor, ids: &HostTensor, weight: &Weight) -> Result<HostTensor> {
    let ((t, k), ids) = (matrix(ids), ids.ids());
    let per_slot = x.shape.len() == 3;
    let x = values(x);
    let mut out = vec![0.0; t * k * weight.rows]; // [T, K, N]
    for expert in 0..weight.experts {
        let slots: Vec<usize> = (0..t * k).filter(|s| ids[*s] as usize == expert).collect();
        if slots.is_empty() {
            continue;
        }
        let inputs: Vec<usize> = slots.iter().map(|s| if per_slot { *s } else { s / k }).collect();
        product(weight, expert, &x, &inputs, &mut |j, row, y| out[slots[j] * weight.rows + row] = y)?;
    }
    Ok(HostTensor::f64(&[t, k, weight.rows], out))
}

/// For each head its first K columns · weight\[head\]ᵀ, and where `keep` its others; x is [T, heads·D], or [T, D] for all heads
/// → [T, heads·(N + (D − K where `keep`))].
pub fn head_matmul(x: &HostTensor, weight: &Weight, head_dim: usize, keep: bool) -> Result<HostTensor> {
    let (k, n, heads) = (weight.cols, weight.rows, weight.experts);
    let ((t, cols), x) = (matrix(x), values(x));
    let width = n + if keep { head_dim - k } else { 0 };
    let mut out = vec![0.0; t * heads * width];
    for h in 0..heads {
        let from = if cols == head_dim { 0 } else { h * head_dim };
        let of_head = |token: usize| &x[token * cols + from..][..head_dim];
        let read: Vec<f64> = (0..t).flat_map(|token| &of_head(token)[..k]).copied().collect(); // [T, K]
        let all: Vec<usize> = (0..t).collect();
        product(weight, h, &read, &all, &mut |token, row, y| out[(token * heads + h) * width + row] = y)?;
        for token in (0..t).filter(|_| keep) {
            out[(token * heads + h) * width + n..][..width - n].copy_from_slice(&of_head(token)[k..]);
        }
    }
    Ok(HostTensor::f64(&[t, heads * width], out))
}

/// Calls `put(j, row, x[inputs[j]] · weight[expert][row])`, times the expert's scale, for every row and input; each row is dequantized once.
fn product(
    weight: &Weight,
    expert: usize,
    x: &[f64],
    inputs: &[usize],
    put: &mut dyn FnMut(usize, usize, f64),
) -> Result<()> {
    let k = weight.cols;
    if inputs.is_empty() {
        return Ok(());
    }
    let kept = kept::values(weight, expert)?;
    let scale = weight.scale(expert).map_or(1.0, f64::from);
    let mut products = vec![0.0; weight.rows * inputs.len()]; // [N, inputs]
    products.par_chunks_exact_mut(inputs.len()).enumerate().try_for_each_init(
        || vec![0.0; k],
        |w, (row, products)| {
            let w = match &kept {
                Some(all) => &all[row * k..][..k],
                None => {
                    dequant::row(weight.ty, weight.row(expert, row), w)?;
                    &*w
                }
            };
            products.iter_mut().zip(inputs).for_each(|(y, i)| *y = scale * dot(&x[i * k..][..k], w));
            Ok::<_, Error>(())
        },
    )?;
    for (row, products) in products.chunks_exact(inputs.len()).enumerate() {
        for (j, y) in products.iter().enumerate() {
            put(j, row, *y);
        }
    }
    Ok(())
}
