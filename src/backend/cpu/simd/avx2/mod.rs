//! `cpu:avx2`: 16 f32 lanes in two registers of 8.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Line;
use super::blocks::{BlockFormat, block_kernels, prefetch};
use super::lanes::lane_kernels;
use super::unblocked::unblocked_formats;
use super::{PART, Packed, SUM, Strips};
use crate::backend::cpu::kernels::{BlockKernels, Int8Kernels};

pub(super) mod codes;
pub(super) mod formats;
pub(super) mod grids;
pub(in crate::backend::cpu) mod int8;

/// The first 8 lanes and the last 8.
type V = [__m256; 2];

// Two rows meet three tokens, or six rows 16 tokens: 12 of the 16 registers are sums.
const ROWS: usize = 2;
pub const TILE: usize = 6;
const GEMV_ROWS: usize = 4;
const COLUMNS: usize = 2;
const HEADS_COLUMNS: usize = 1;

lane_kernels!(#[target_feature(enable = "avx2,fma,f16c")], tokens: [1, 2, 3], registers: [1]);
block_kernels!(#[target_feature(enable = "avx2,fma,f16c")]);
unblocked_formats!(#[target_feature(enable = "avx2,fma,f16c")]);

/// What a function of [`codes::Codes`] makes of the type that reads the blocks of `$ty`, if there is one.
macro_rules! of_codes {
    ($ty:expr, $($make:ident)::+) => {{
        use crate::backend::cpu::simd::avx2::{formats::*, grids::*};
        use crate::op::GgmlType;
        Some(match $ty {
            GgmlType::Q4_0 => $($make)::+::<Q4_0>(),
            GgmlType::Q4_1 => $($make)::+::<Q4_1>(),
            GgmlType::Q5_0 => $($make)::+::<Q5_0>(),
            GgmlType::Q5_1 => $($make)::+::<Q5_1>(),
            GgmlType::Q8_0 => $($make)::+::<Q8_0>(),
            GgmlType::Q2_K => $($make)::+::<Q2K>(),
            GgmlType::Q3_K => $($make)::+::<Q3K>(),
            GgmlType::Q4_K => $($make)::+::<Q4K>(),
            GgmlType::Q5_K => $($make)::+::<Q5K>(),
            GgmlType::Q6_K => $($make)::+::<Q6K>(),
            GgmlType::IQ1_S => $($make)::+::<Iq1S>(),
            GgmlType::IQ1_M => $($make)::+::<Iq1M>(),
            GgmlType::IQ2_XXS => $($make)::+::<Iq2Xxs>(),
            GgmlType::IQ2_XS => $($make)::+::<Iq2Xs>(),
            GgmlType::IQ2_S => $($make)::+::<Iq2S>(),
            GgmlType::IQ3_XXS => $($make)::+::<Iq3Xxs>(),
            GgmlType::IQ3_S => $($make)::+::<Iq3S>(),
            GgmlType::IQ4_NL => $($make)::+::<Iq4Nl>(),
            GgmlType::IQ4_XS => $($make)::+::<Iq4Xs>(),
            GgmlType::TQ1_0 => $($make)::+::<Tq1_0>(),
            GgmlType::TQ2_0 => $($make)::+::<Tq2_0>(),
            GgmlType::MXFP4 => $($make)::+::<Mxfp4>(),
            GgmlType::NVFP4 => $($make)::+::<Nvfp4>(),
            GgmlType::Q1_0 => $($make)::+::<Q1_0>(),
            GgmlType::Q2_0 => $($make)::+::<Q2_0>(),
            _ => return None,
        })
    }};
}
pub(super) use of_codes;

/// The kernels for blocks of `ty`, where there are some.
pub fn blocks(ty: GgmlType) -> Option<BlockKernels> {
    by_codes(ty).or_else(|| unblocked(ty))
}

fn by_codes(ty: GgmlType) -> Option<BlockKernels> {
    of_codes!(ty, codes::kernels)
}

/// The kernels for blocks of `ty` with int8 activations.
pub fn int8_blocks(ty: GgmlType) -> Option<Int8Kernels> {
    of_codes!(ty, int8::kernels)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(x: &[f32; 16]) -> V {
    // SAFETY: a reference to 16 floats; no alignment is asked for.
    unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())] }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store(out: &mut [f32; 16], v: V) {
    // SAFETY: a reference to 16 floats; no alignment is asked for.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
        _mm256_storeu_ps(out[8..].as_mut_ptr(), v[1]);
    }
}

/// The first `x.len()` < 16 lanes from `x`, zeros beyond.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_tail(x: &[f32]) -> V {
    let mut padded = [0.0; 16];
    padded[..x.len()].copy_from_slice(x);
    load(&padded)
}

/// Writes the first `out.len()` < 16 lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_tail(out: &mut [f32], v: V) {
    let mut padded = [0.0; 16];
    store(&mut padded, v);
    out.copy_from_slice(&padded[..out.len()]);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn splat(x: f32) -> V {
    [_mm256_set1_ps(x); 2]
}

/// a · b + c.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fma(a: V, b: V, c: V) -> V {
    [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add(a: V, b: V) -> V {
    [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sub(a: V, b: V) -> V {
    [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn mul(a: V, b: V) -> V {
    [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn div(a: V, b: V) -> V {
    [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])]
}

/// The smaller, or `b` where either is NaN.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn min(a: V, b: V) -> V {
    [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])]
}

/// The larger, or `b` where either is NaN.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn max(a: V, b: V) -> V {
    [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])]
}

/// The nearest whole numbers, ties to even.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn round(x: V) -> V {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    [_mm256_round_ps::<NEAREST>(x[0]), _mm256_round_ps::<NEAREST>(x[1])]
}

/// x · 2ⁿ, rounded once. 2ⁿ does not fit a float where the result is subnormal or close to the largest float: two factors do,
/// and only the last product rounds.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn times_two_to_the(n: V, x: V) -> V {
    let power = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
    let times = |n, x| {
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(_mm256_sub_epi32(n, half)))
    };
    [times(n[0], x[0]), times(n[1], x[1])]
}

/// a0, b0, a1, b1, … in two registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn interleave(a: V, b: V) -> [V; 2] {
    let mut out = [splat(0.0); 2];
    for i in 0..2 {
        let (low, high) = (_mm256_unpacklo_ps(a[i], b[i]), _mm256_unpackhi_ps(a[i], b[i]));
        out[i] = [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)];
    }
    out
}

/// [`reduce`] of two.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn reduce_all(v: [V; ROWS]) -> [f32; ROWS] {
    [reduce(v[0]), reduce(v[1])]
}

/// The sum of the lanes: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn reduce(v: V) -> f32 {
    let v = _mm256_add_ps(v[0], v[1]);
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

/// A half as f32, in all lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn splat_f16(d: [u8; 2]) -> V {
    [_mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(u16::from_le_bytes(d) as i32))); 2]
}

/// 16 halves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn from_f16(bytes: &[[u8; 16]; 2]) -> V {
    [_mm256_cvtph_ps(load_bytes(&bytes[0])), _mm256_cvtph_ps(load_bytes(&bytes[1]))]
}

/// 16 bfloats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn from_bf16(bytes: &[[u8; 16]; 2]) -> V {
    let wide = |bytes| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_bytes(bytes))));
    [wide(&bytes[0]), wide(&bytes[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_bytes(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: a reference to 16 bytes; no alignment is asked for.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// 16 signed bytes as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn signed(q: __m128i) -> V {
    let high = _mm_unpackhi_epi64(q, q);
    [_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high))]
}
