//! `cpu:avx512`: the operations that take time, with 16 f32 lanes.
//!
//! Design:
//! - **One order for every sum over the contiguous axis**: term k goes to lane k mod 16 by a fused multiply-add, k ascending;
//!   then the lanes are added in a tree, halves first ([`reduce`]). It depends neither on the weight's type nor on how many
//!   tokens or rows are worked on together: a token gets the same bits alone and in a batch. `avx2` keeps the same order.
//! - **Weights are what [`crate::quant`] says, to the bit** ([`formats`]): so the rounding bound of a product needs nothing
//!   but Σ|x·w|, and there is no floor of its own for each type.
//! - **What must move.** One token ([`gemv`]): every byte of the matrix once, for 2 flops a weight; memory is the limit, and four
//!   rows go together to share the loads of x. Many tokens ([`panel`]): four rows, unpacked to f32, meet six tokens: 24 sums
//!   stay in registers, and 10 loads feed 24 fused multiply-adds, so arithmetic is the limit.
//! - Intrinsics stay out of closures that are handed to the standard library (`array::map`, `from_fn`): those functions are
//!   compiled without the features, so such a closure would be a call for every register.
//! - Every function here needs the features of [`Level::Avx512`](super::Level) and nothing else: the pointers that loads
//!   and stores take are made from slices or arrays of 16.

// Loops over registers count: an iterator over an array of them would keep the array in memory.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use bytemuck::Pod;

mod formats;
mod tables;

pub(super) use formats::{gemv, unpack};

/// Rows of weights that share the loads of x.
const ROWS: usize = 4;
/// Tokens that share the loads of weights.
const TOKENS: usize = 6;

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; 16]) -> __m512 {
    // SAFETY: a reference to 16 floats; no alignment is asked for.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(out: &mut [f32; 16], v: __m512) {
    // SAFETY: a reference to 16 floats; no alignment is asked for.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
}

/// The first `x.len()` < 16 lanes from `x`, zeros beyond.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_tail(x: &[f32]) -> __m512 {
    debug_assert!(x.len() < 16);
    // SAFETY: masked lanes are not read.
    unsafe { _mm512_maskz_loadu_ps(((1u32 << x.len()) - 1) as u16, x.as_ptr()) }
}

/// Writes the first `out.len()` < 16 lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_tail(out: &mut [f32], v: __m512) {
    debug_assert!(out.len() < 16);
    // SAFETY: masked lanes are not written.
    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), ((1u32 << out.len()) - 1) as u16, v) }
}

/// The sum of the lanes: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn reduce(v: __m512) -> f32 {
    let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

/// x · wᵀ for unpacked weights: see [`Panel`](super::kernels::Panel).
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
pub(super) fn panel(w: &[f32], stride: usize, rows: usize, x: &[&[f32]], out: &mut [f32]) {
    let k = x.first().map_or(0, |x| x.len());
    assert!(x.iter().all(|x| x.len() == k) && out.len() == rows * x.len());
    // Six tokens stay in the first-level cache while all rows pass by.
    for (x, out) in x.chunks(TOKENS).zip(out.chunks_mut((TOKENS * rows).max(1))) {
        match x.len() {
            6 => strip::<6>(w, stride, rows, k, x, out),
            5 => strip::<5>(w, stride, rows, k, x, out),
            4 => strip::<4>(w, stride, rows, k, x, out),
            3 => strip::<3>(w, stride, rows, k, x, out),
            2 => strip::<2>(w, stride, rows, k, x, out),
            _ => strip::<1>(w, stride, rows, k, x, out),
        }
    }
}

/// All rows against `T` tokens; `out` is [T, rows].
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn strip<const T: usize>(w: &[f32], stride: usize, rows: usize, k: usize, x: &[&[f32]], out: &mut [f32]) {
    let x: [&[f32]; T] = std::array::from_fn(|t| x[t]);
    let row = |r: usize| &w[r * stride..][..k];
    let mut first = 0;
    while first + ROWS <= rows {
        for (t, sums) in tile::<ROWS, T>(std::array::from_fn(|r| row(first + r)), x).iter().enumerate() {
            out[t * rows + first..][..ROWS].copy_from_slice(sums);
        }
        first += ROWS;
    }
    for r in first..rows {
        for (t, [sum]) in tile::<1, T>([row(r)], x).iter().enumerate() {
            out[t * rows + r] = *sum;
        }
    }
}

/// Σ x·w for `R` rows and `T` tokens of one length.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn tile<const R: usize, const T: usize>(w: [&[f32]; R], x: [&[f32]; T]) -> [[f32; R]; T] {
    let (w, w_tail) = split(w);
    let (x, x_tail) = split(x);
    let n = w[0].len();
    assert!(w.iter().all(|w| w.len() == n) && x.iter().all(|x| x.len() == n));
    let mut sums = [[_mm512_setzero_ps(); R]; T];
    for i in 0..n {
        let mut row = [_mm512_setzero_ps(); R];
        for r in 0..R {
            // SAFETY: every operand has n chunks.
            row[r] = load(unsafe { w[r].get_unchecked(i) });
        }
        for t in 0..T {
            // SAFETY: as above.
            let x = load(unsafe { x[t].get_unchecked(i) });
            for r in 0..R {
                sums[t][r] = _mm512_fmadd_ps(x, row[r], sums[t][r]);
            }
        }
    }
    if !w_tail[0].is_empty() {
        for t in 0..T {
            for r in 0..R {
                sums[t][r] = _mm512_fmadd_ps(load_tail(x_tail[t]), load_tail(w_tail[r]), sums[t][r]);
            }
        }
    }
    let mut out = [[0.0; R]; T];
    for t in 0..T {
        for r in 0..R {
            out[t][r] = reduce(sums[t][r]);
        }
    }
    out
}

/// Each operand as chunks of 16 and what is left.
#[inline]
fn split<const N: usize>(x: [&[f32]; N]) -> ([&[[f32; 16]]; N], [&[f32]; N]) {
    let parts = x.map(|x| x.as_chunks::<16>());
    (parts.map(|p| p.0), parts.map(|p| p.1))
}

/// See [`scalar::rms_norm`](super::scalar::rms_norm).
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = tile([x], [x])[0][0] / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// See [`scalar::attn_context`](super::scalar::attn_context): the same order of sums, 64 columns at a time.
#[target_feature(enable = "avx512f")]
pub(super) fn attn_context(probs: &[f32], v: &[f32], stride: usize, out: &mut [f32]) {
    const WIDTH: usize = 4;
    let mut column = 0;
    let (wide, rest) = out.as_chunks_mut::<{ WIDTH * 16 }>();
    for out in wide {
        let sums = weighted(probs, |s| {
            let mut row = [_mm512_setzero_ps(); WIDTH];
            for (row, v) in row.iter_mut().zip(v[s * stride + column..][..WIDTH * 16].as_chunks::<16>().0) {
                *row = load(v);
            }
            row
        });
        for (out, sum) in out.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
            store(out, sum);
        }
        column += WIDTH * 16;
    }
    let (narrow, tail) = rest.as_chunks_mut::<16>();
    for out in narrow {
        let [sum] = weighted(probs, |s| [load(&v[s * stride + column..].as_chunks::<16>().0[0])]);
        store(out, sum);
        column += 16;
    }
    if !tail.is_empty() {
        let [sum] = weighted(probs, |s| [load_tail(&v[s * stride + column..][..tail.len()])]);
        store_tail(tail, sum);
    }
}

/// Σ_s `probs[s]` · row(s), in blocks.
#[inline]
#[target_feature(enable = "avx512f")]
fn weighted<const W: usize>(probs: &[f32], row: impl Fn(usize) -> [__m512; W]) -> [__m512; W] {
    const BLOCK: usize = super::scalar::BLOCK;
    let mut total = [_mm512_setzero_ps(); W];
    for (g, probs) in probs.chunks(BLOCK).enumerate() {
        let mut group = [_mm512_setzero_ps(); W];
        for (s, p) in probs.iter().enumerate() {
            let (p, row) = (_mm512_set1_ps(*p), row(g * BLOCK + s));
            for i in 0..W {
                group[i] = _mm512_fmadd_ps(p, row[i], group[i]);
            }
        }
        for (total, group) in total.iter_mut().zip(group) {
            *total = _mm512_add_ps(*total, group);
        }
    }
    total
}

/// e^x within [`exp::ULP`](super::kernels::exp::ULP): x = n·ln 2 + r, |r| ≤ ln 2 / 2, and a polynomial in r (Cephes' `expf`).
#[inline]
#[target_feature(enable = "avx512f")]
fn exp(x: __m512) -> __m512 {
    use super::kernels::exp::*;
    // Beyond these bounds the result is 0 or ∞ anyway; the order of operands lets NaN through.
    let x = _mm512_min_ps(_mm512_set1_ps(MAX), _mm512_max_ps(_mm512_set1_ps(MIN), x));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
        x,
        _mm512_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
    let mut p = _mm512_set1_ps(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
    }
    let p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r);
    _mm512_scalef_ps(_mm512_add_ps(p, _mm512_set1_ps(1.0)), n)
}

/// See [`scalar::softmax`](super::scalar::softmax).
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
pub(super) fn softmax(x: &[f32], out: &mut [f32]) {
    let (chunks, tail) = x.as_chunks::<16>();
    let (outs, out_tail) = out.as_chunks_mut::<16>();
    let max = super::scalar::max(x);
    let max = _mm512_set1_ps(max);
    let mut total = _mm512_setzero_ps();
    for (out, x) in outs.iter_mut().zip(chunks) {
        let e = exp(_mm512_sub_ps(load(x), max));
        total = _mm512_add_ps(total, e);
        store(out, e);
    }
    if !tail.is_empty() {
        store_tail(out_tail, exp(_mm512_sub_ps(load_tail(tail), max)));
        total = _mm512_add_ps(total, load_tail(out_tail));
    }
    let total = reduce(total);
    for out in out {
        *out /= total;
    }
}

/// See [`scalar::swiglu`](super::scalar::swiglu).
#[target_feature(enable = "avx512f")]
pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let one = _mm512_set1_ps(1.0);
    let f = |gate: __m512, up: __m512| {
        let below = _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
        _mm512_mul_ps(_mm512_div_ps(gate, below), up)
    };
    let ((gates, gate), (ups, up)) = (gate.as_chunks::<16>(), up.as_chunks::<16>());
    let (outs, out) = out.as_chunks_mut::<16>();
    for ((out, gate), up) in outs.iter_mut().zip(gates).zip(ups) {
        store(out, f(load(gate), load(up)));
    }
    if !out.is_empty() {
        store_tail(out, f(load_tail(gate), load_tail(up)));
    }
}

/// See [`scalar::multiply_add`](super::scalar::multiply_add); 12 registers keep two units of latency 4 to 6 busy.
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
pub(super) fn multiply_add(rounds: usize) -> (f32, usize) {
    const N: usize = 12;
    let (x, y) = (_mm512_set1_ps(std::hint::black_box(0.5)), _mm512_set1_ps(std::hint::black_box(1.0)));
    let mut sums = [_mm512_setzero_ps(); N];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, x, y);
        }
    }
    (reduce(sums.into_iter().fold(_mm512_setzero_ps(), |a, b| _mm512_add_ps(a, b))), N * 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Level;

    #[test]
    fn exp_is_within_its_bound() {
        if Level::Avx512.missing().is_empty() {
            // SAFETY: the processor has the features.
            crate::backend::cpu::kernels::exp::check(|x| unsafe { exp16(x) });
        }
    }

    #[target_feature(enable = "avx512f")]
    fn exp16(x: &mut [f32; 16]) {
        store(x, exp(load(x)));
    }
}
