//! `cpu:avx2`: the operations that take time, with 16 f32 lanes in two registers of 8.
//!
//! Design:
//! - **The order of every sum is `avx512`'s**: term k goes to lane k mod 16 by a fused multiply-add, k ascending; then the lanes
//!   are added in a tree, halves first ([`reduce`]). So the two levels give the same bits, and a test says so.
//! - **Weights are what [`crate::quant`] says, to the bit** ([`formats`]): so the rounding bound of a product needs nothing
//!   but Σ|x·w|.
//! - **What must move.** One token ([`gemv`]): every byte of the matrix once, for 2 flops a weight; four rows go together to share
//!   the loads of x. Many tokens ([`panel`]): two rows, unpacked to f32, meet three tokens: 12 of the 16 registers are sums.
//! - Intrinsics stay out of closures that are handed to the standard library (`array::map`, `from_fn`): those functions are
//!   compiled without the features, so such a closure would be a call for every register.
//! - Every function here needs the features of [`Level::Avx2`](super::Level) and nothing else: the pointers that loads
//!   and stores take are made from slices or arrays of 16.

// Loops over registers count: an iterator over an array of them would keep the array in memory.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use bytemuck::Pod;

mod formats;

pub(super) use formats::{gemv, unpack};

/// Rows of unpacked weights that share the loads of x.
const ROWS: usize = 2;
/// Tokens that share the loads of weights.
const TOKENS: usize = 3;

/// 16 lanes: the first 8 and the last 8.
type V = [__m256; 2];

#[inline]
#[target_feature(enable = "avx")]
fn load(x: &[f32; 16]) -> V {
    // SAFETY: a reference to 16 floats; no alignment is asked for.
    unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())] }
}

#[inline]
#[target_feature(enable = "avx")]
fn store(out: &mut [f32; 16], v: V) {
    // SAFETY: a reference to 16 floats; no alignment is asked for.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
        _mm256_storeu_ps(out[8..].as_mut_ptr(), v[1]);
    }
}

/// The first `x.len()` < 16 lanes from `x`, zeros beyond.
#[inline]
#[target_feature(enable = "avx")]
fn load_tail(x: &[f32]) -> V {
    let mut padded = [0.0; 16];
    padded[..x.len()].copy_from_slice(x);
    load(&padded)
}

/// Writes the first `out.len()` < 16 lanes.
#[inline]
#[target_feature(enable = "avx")]
fn store_tail(out: &mut [f32], v: V) {
    let mut padded = [0.0; 16];
    store(&mut padded, v);
    out.copy_from_slice(&padded[..out.len()]);
}

#[inline]
#[target_feature(enable = "avx")]
fn splat(x: f32) -> V {
    [_mm256_set1_ps(x); 2]
}

/// a · b + c.
#[inline]
#[target_feature(enable = "avx,fma")]
fn fma(a: V, b: V, c: V) -> V {
    [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
}

#[inline]
#[target_feature(enable = "avx")]
fn add(a: V, b: V) -> V {
    [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
}

/// The sum of the lanes: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
#[inline]
#[target_feature(enable = "avx")]
fn reduce(v: V) -> f32 {
    let v = _mm256_add_ps(v[0], v[1]);
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

/// x · wᵀ for unpacked weights: see [`Panel`](super::kernels::Panel).
#[target_feature(enable = "avx2,fma")]
pub(super) fn panel(w: &[f32], stride: usize, rows: usize, x: &[&[f32]], out: &mut [f32]) {
    let k = x.first().map_or(0, |x| x.len());
    assert!(x.iter().all(|x| x.len() == k) && out.len() == rows * x.len());
    // Three tokens stay in the first-level cache while all rows pass by.
    for (x, out) in x.chunks(TOKENS).zip(out.chunks_mut((TOKENS * rows).max(1))) {
        match x.len() {
            3 => strip::<3>(w, stride, rows, k, x, out),
            2 => strip::<2>(w, stride, rows, k, x, out),
            _ => strip::<1>(w, stride, rows, k, x, out),
        }
    }
}

/// All rows against `T` tokens; `out` is [T, rows].
#[target_feature(enable = "avx2,fma")]
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
#[target_feature(enable = "avx2,fma")]
fn tile<const R: usize, const T: usize>(w: [&[f32]; R], x: [&[f32]; T]) -> [[f32; R]; T] {
    let (w, w_tail) = split(w);
    let (x, x_tail) = split(x);
    let n = w[0].len();
    assert!(w.iter().all(|w| w.len() == n) && x.iter().all(|x| x.len() == n));
    let mut sums = [[splat(0.0); R]; T];
    for i in 0..n {
        let mut row = [splat(0.0); R];
        for r in 0..R {
            // SAFETY: every operand has n chunks.
            row[r] = load(unsafe { w[r].get_unchecked(i) });
        }
        for t in 0..T {
            // SAFETY: as above.
            let x = load(unsafe { x[t].get_unchecked(i) });
            for r in 0..R {
                sums[t][r] = fma(x, row[r], sums[t][r]);
            }
        }
    }
    if !w_tail[0].is_empty() {
        for t in 0..T {
            for r in 0..R {
                sums[t][r] = fma(load_tail(x_tail[t]), load_tail(w_tail[r]), sums[t][r]);
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
#[target_feature(enable = "avx2,fma")]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = tile([x], [x])[0][0] / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// See [`scalar::attn_context`](super::scalar::attn_context): the same order of sums, 32 columns at a time.
#[target_feature(enable = "avx2,fma")]
pub(super) fn attn_context(probs: &[f32], v: &[f32], stride: usize, out: &mut [f32]) {
    const WIDTH: usize = 2;
    let mut column = 0;
    let (wide, rest) = out.as_chunks_mut::<{ WIDTH * 16 }>();
    for out in wide {
        let sums = weighted(probs, |s| {
            let mut row = [splat(0.0); WIDTH];
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
#[target_feature(enable = "avx2,fma")]
fn weighted<const W: usize>(probs: &[f32], row: impl Fn(usize) -> [V; W]) -> [V; W] {
    const BLOCK: usize = super::scalar::BLOCK;
    let mut total = [splat(0.0); W];
    for (g, probs) in probs.chunks(BLOCK).enumerate() {
        let mut group = [splat(0.0); W];
        for (s, p) in probs.iter().enumerate() {
            let (p, row) = (splat(*p), row(g * BLOCK + s));
            for i in 0..W {
                group[i] = fma(p, row[i], group[i]);
            }
        }
        for (total, group) in total.iter_mut().zip(group) {
            *total = add(*total, group);
        }
    }
    total
}

/// e^x within [`exp::ULP`](super::kernels::exp::ULP): x = n·ln 2 + r, |r| ≤ ln 2 / 2, and a polynomial in r (Cephes' `expf`).
#[inline]
#[target_feature(enable = "avx2,fma")]
fn exp(x: V) -> V {
    [exp8(x[0]), exp8(x[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn exp8(x: __m256) -> __m256 {
    use super::kernels::exp::*;
    // Beyond these bounds the result is 0 or ∞ anyway; the order of operands lets NaN through.
    let x = _mm256_min_ps(_mm256_set1_ps(MAX), _mm256_max_ps(_mm256_set1_ps(MIN), x));
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_HIGH), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_LOW), r);
    let mut p = _mm256_set1_ps(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
    }
    let p = _mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r);
    let p = _mm256_add_ps(p, _mm256_set1_ps(1.0));
    // 2ⁿ does not fit a float where the result is subnormal or close to the largest: two factors do, and only the last product
    // rounds.
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    let power = |n: __m256i| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
    _mm256_mul_ps(_mm256_mul_ps(p, power(half)), power(_mm256_sub_epi32(n, half)))
}

/// See [`scalar::softmax`](super::scalar::softmax).
#[target_feature(enable = "avx2,fma")]
pub(super) fn softmax(x: &[f32], out: &mut [f32]) {
    let (chunks, tail) = x.as_chunks::<16>();
    let (outs, out_tail) = out.as_chunks_mut::<16>();
    let max = super::scalar::max(x);
    let minus_max = splat(-max);
    let mut total = splat(0.0);
    for (out, x) in outs.iter_mut().zip(chunks) {
        let e = exp(add(load(x), minus_max));
        total = add(total, e);
        store(out, e);
    }
    if !tail.is_empty() {
        store_tail(out_tail, exp(add(load_tail(tail), minus_max)));
        total = add(total, load_tail(out_tail));
    }
    let total = reduce(total);
    for out in out {
        *out /= total;
    }
}

/// See [`scalar::swiglu`](super::scalar::swiglu).
#[target_feature(enable = "avx2,fma")]
pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let f = |gate: V, up: V| {
        let zero = _mm256_setzero_ps();
        let below = add(splat(1.0), exp([_mm256_sub_ps(zero, gate[0]), _mm256_sub_ps(zero, gate[1])]));
        [_mm256_mul_ps(_mm256_div_ps(gate[0], below[0]), up[0]), _mm256_mul_ps(_mm256_div_ps(gate[1], below[1]), up[1])]
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
#[target_feature(enable = "avx2,fma")]
pub(super) fn multiply_add(rounds: usize) -> (f32, usize) {
    const N: usize = 6;
    let (x, y) = (splat(std::hint::black_box(0.5)), splat(std::hint::black_box(1.0)));
    let mut sums = [splat(0.0); N];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = fma(*sum, x, y);
        }
    }
    (reduce(sums.into_iter().fold(splat(0.0), |a, b| add(a, b))), N * 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Level;

    #[test]
    fn exp_is_within_its_bound() {
        if Level::Avx2.missing().is_empty() {
            // SAFETY: the processor has the features.
            crate::backend::cpu::kernels::exp::check(|x| unsafe { exp16(x) });
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn exp16(x: &mut [f32; 16]) {
        store(x, exp(load(x)));
    }
}
