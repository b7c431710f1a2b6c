//! Products of block types with int8 activations by VNNI: four neighbours' products are added to a 32-bit sum in one instruction. Blocks
//! are read by AVX2, whose registers hold a group.

use std::arch::x86_64::*;

use super::{V, fma, load, splat, store, store_tail, sub};
use crate::backend::cpu::int8::{Activations, BLOCK, CodePanel, CodedRow};
use crate::backend::cpu::kernels::{Int8Kernels, Int8Panel};
use crate::backend::cpu::simd::Line;
use crate::backend::cpu::simd::avx2::codes::Codes;
use crate::backend::cpu::simd::avx2::int8::{gemv, quantize, span, unpack};
use crate::backend::cpu::simd::int8::{CodeForm, int8_kernels};

/// 16 whole numbers.
type I = __m512i;

// 32 rows meet six tokens: 24 of the 32 registers are sums.
int8_kernels!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")], rows: 2, tokens: [1, 2, 3, 4, 5, 6], moved: true, fits: [0]);

/// Four products are added into 32 bits at once.
const fn form<F: Codes>() -> CodeForm {
    CodeForm { span: span::<F>(), mins: F::MINS, offset: F::LEAST != 0, fit: 0 }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn to_f32(whole: I) -> V {
    _mm512_cvtepi32_ps(whole)
}

/// See `int8_kernels`.
///
/// # Safety
/// A span's codes are behind each pointer.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn span_dot<const SPAN: usize, const OFFSET: bool, const FIT: usize, const R: usize, const T: usize>(
    w: [*const [u8; 64]; R],
    codes: [*const [i8; 4]; T],
    x: &[CodedRow<'_>; T],
    s: usize,
) -> [[I; R]; T] {
    let mut sums = [[_mm512_setzero_si512(); R]; T];
    for t in 0..T {
        if OFFSET {
            sums[t] = [_mm512_set1_epi32(x[t].starts[s]); R];
        }
    }
    for q in 0..SPAN / 4 {
        let mut rows = [_mm512_setzero_si512(); R];
        for r in 0..R {
            // SAFETY: 64 bytes of the span; no alignment is asked for.
            rows[r] = unsafe { _mm512_loadu_si512(w[r].add(q).cast()) };
        }
        for t in 0..T {
            // SAFETY: four bytes of the span.
            let four = _mm512_set1_epi32(bytemuck::cast(unsafe { *codes[t].add(q) }));
            for r in 0..R {
                sums[t][r] = _mm512_dpbusd_epi32(sums[t][r], rows[r], four);
            }
        }
    }
    sums
}

/// As the level's `multiply_add`, of bytes: four products for each of 16 sums in a register.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::backend::cpu) fn multiply_add(rounds: usize) -> (f32, usize) {
    let (x, y) = (_mm512_set1_epi8(std::hint::black_box(1)), _mm512_set1_epi8(std::hint::black_box(2)));
    let mut sums = [_mm512_setzero_si512(); 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, x, y);
        }
    }
    let total = sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_add_epi32(a, b));
    (_mm512_reduce_add_epi32(total) as f32, sums.len() * 64)
}
