//! `cpu:avx512`: 16 f32 lanes in one register.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Line;
use super::avx2::of_codes;
use super::blocks::{BlockFormat, block_kernels, prefetch};
use super::lanes::lane_kernels;
use super::{PART, Packed, SUM, Strips};
use crate::backend::cpu::kernels::{BlockKernels, Int8Kernels};
use crate::op::GgmlType;

mod codes;
mod formats;
pub(in crate::backend::cpu) mod int8;
mod tables;

use formats::{Bf16, F16, F32, Q4K, Q5K, Q6K, Q8_0};
use tables::{Iq4Nl, Iq4Xs, Mxfp4, Nvfp4, Q1_0, Q2_0, Q2K, Q3K, Q4_0, Q4_1, Q5_0, Q5_1};

type V = __m512;

// Four rows meet six tokens, or twelve rows 32 tokens: 24 of the 32 registers are sums, and 10 or 14 loads feed 24 fused multiply-adds.
const ROWS: usize = 4;
pub const TILE: usize = 12;
const GEMV_ROWS: usize = 4;
const COLUMNS: usize = 4;
const HEADS_COLUMNS: usize = 2;

lane_kernels!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")], tokens: [1, 2, 3, 4, 5, 6], registers: [1, 2]);
block_kernels!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]);

/// The kernels for blocks of `ty`, where there are some.
pub fn blocks(ty: GgmlType) -> Option<BlockKernels> {
    Some(match ty {
        GgmlType::F32 => kernels::<F32, _>(),
        GgmlType::F16 => kernels::<F16, _>(),
        GgmlType::BF16 => kernels::<Bf16, _>(),
        GgmlType::Q8_0 => kernels::<Q8_0, _>(),
        GgmlType::Q4_K => codes::kernels::<Q4K, _, _>(),
        GgmlType::Q5_K => codes::kernels::<Q5K, _, _>(),
        GgmlType::Q6_K => codes::kernels::<Q6K, _, _>(),
        GgmlType::Q2_K => codes::kernels::<Q2K, _, _>(),
        GgmlType::Q3_K => codes::kernels::<Q3K, _, _>(),
        GgmlType::Q4_0 => kernels::<Q4_0, _>(),
        GgmlType::Q4_1 => kernels::<Q4_1, _>(),
        GgmlType::Q5_0 => kernels::<Q5_0, _>(),
        GgmlType::Q5_1 => kernels::<Q5_1, _>(),
        GgmlType::IQ4_NL => kernels::<Iq4Nl, _>(),
        GgmlType::IQ4_XS => kernels::<Iq4Xs, _>(),
        GgmlType::MXFP4 => kernels::<Mxfp4, _>(),
        GgmlType::NVFP4 => kernels::<Nvfp4, _>(),
        GgmlType::Q1_0 => kernels::<Q1_0, _>(),
        GgmlType::Q2_0 => kernels::<Q2_0, _>(),
        // Types that are worked on as bytes have nothing to gain from wider registers here.
        _ => return super::avx2::blocks(ty),
    })
}

/// The kernels for blocks of `ty` with int8 activations: they need VNNI besides.
pub fn int8_blocks(ty: GgmlType) -> Option<Int8Kernels> {
    of_codes!(ty, int8::kernels)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; 16]) -> V {
    // SAFETY: a reference to 16 floats; no alignment is asked for.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(out: &mut [f32; 16], v: V) {
    // SAFETY: a reference to 16 floats; no alignment is asked for.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
}

/// The first `x.len()` < 16 lanes from `x`, zeros beyond.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_tail(x: &[f32]) -> V {
    debug_assert!(x.len() < 16);
    // SAFETY: masked lanes are not read.
    unsafe { _mm512_maskz_loadu_ps(((1u32 << x.len()) - 1) as u16, x.as_ptr()) }
}

/// Writes the first `out.len()` < 16 lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_tail(out: &mut [f32], v: V) {
    debug_assert!(out.len() < 16);
    // SAFETY: masked lanes are not written.
    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), ((1u32 << out.len()) - 1) as u16, v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn splat(x: f32) -> V {
    _mm512_set1_ps(x)
}

/// a · b + c.
#[inline]
#[target_feature(enable = "avx512f")]
fn fma(a: V, b: V, c: V) -> V {
    _mm512_fmadd_ps(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: V, b: V) -> V {
    _mm512_add_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sub(a: V, b: V) -> V {
    _mm512_sub_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn mul(a: V, b: V) -> V {
    _mm512_mul_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn div(a: V, b: V) -> V {
    _mm512_div_ps(a, b)
}

/// The smaller, or `b` where either is NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn min(a: V, b: V) -> V {
    _mm512_min_ps(a, b)
}

/// The larger, or `b` where either is NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn max(a: V, b: V) -> V {
    _mm512_max_ps(a, b)
}

/// The nearest whole numbers, ties to even.
#[inline]
#[target_feature(enable = "avx512f")]
fn round(x: V) -> V {
    _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
}

/// x · 2ⁿ, rounded once.
#[inline]
#[target_feature(enable = "avx512f")]
fn times_two_to_the(n: V, x: V) -> V {
    _mm512_scalef_ps(x, n)
}

/// a0, b0, a1, b1, … in two registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn interleave(a: V, b: V) -> [V; 2] {
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    [_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b)]
}

/// [`reduce`] of four, whose trees are climbed side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn reduce_all(v: [V; ROWS]) -> [f32; ROWS] {
    // Halves of two, then quarters of four, in one register: 8 + 8 and 4 + 4.
    let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(v[0], v[1]), _mm512_shuffle_f32x4::<0xEE>(v[0], v[1]));
    let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(v[2], v[3]), _mm512_shuffle_f32x4::<0xEE>(v[2], v[3]));
    let v = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xDD>(ab, cd));
    // 2 + 2 and 1 + 1 in each quarter, whose first lane is the sum.
    let v = _mm512_add_ps(v, _mm512_permute_ps::<0b1110>(v));
    let v = _mm512_add_ps(v, _mm512_movehdup_ps(v));
    let firsts = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), v);
    let mut out = [0.0; ROWS];
    // SAFETY: four floats; no alignment is asked for.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(firsts)) };
    out
}

/// The sum of the lanes: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn reduce(v: V) -> f32 {
    let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}
