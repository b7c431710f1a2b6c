//! Products of block types with int8 activations: the codes of [`codes`](super::codes), multiplied as the bytes that they are.
//!
//! Design:
//! - **Bytes are multiplied by bytes** (`maddubs`: two neighbours, into 16 bits). It wants one side without a sign: codes are moved up by
//!   their least one, and the sum is put right by that times Σ of the activations' codes. Types that need all 256 values keep their
//!   sign; there the activation takes it over. As many products as 16 bits hold are added before they are widened.
//! - Scales meet sums of codes before the activations' scale: one above 2¹¹⁰, which no model has, may overflow on the way.
//! - One token (`gemv`) reads the blocks as they are in the file; for many, rows are unpacked to bytes, sixteen side by side (`unpack`), for
//!   AVX-512 as well.

use std::arch::x86_64::*;

use super::codes::{Codes, reduce, scale};
use super::{V, fma, load, prefetch, splat, store, store_tail, sub};
use crate::backend::cpu::int8::{Activations, BLOCK, CodePanel, CodedRow, CodedRowMut};
use crate::backend::cpu::kernels::{Int8Kernels, Int8Panel};
use crate::backend::cpu::simd::Line;
use crate::backend::cpu::simd::int8::{CodeForm, int8_kernels};

/// 16 whole numbers.
type I = [__m256i; 2];

int8_kernels!(#[target_feature(enable = "avx2,fma,f16c")], rows: 1, tokens: [1, 2, 3], moved: false, fits: [0, 1, 2, 4, 8]);

/// Weights that share a scale.
pub(in crate::backend::cpu::simd) const fn span<F: Codes>() -> usize {
    if F::HALVES { 16 } else { 32 }
}

/// Whether codes keep their sign: moved up, they would not leave room for a sign bit.
const fn keeps_sign<F: Codes>() -> bool {
    F::SPREAD > i8::MAX as i32
}

/// Codes that keep their sign have no offset, and their products, of up to 128 · 127, are widened one sum at a time.
const fn form<F: Codes>() -> CodeForm {
    let (span, mins) = (span::<F>(), F::MINS);
    if keeps_sign::<F>() {
        return CodeForm { span, mins, offset: false, fit: 0 };
    }
    let most = (i16::MAX as i32 / (2 * 127 * F::SPREAD)) as usize;
    let fit = match most {
        8.. => span / 4,
        4.. => 4,
        2.. => 2,
        _ => 1,
    };
    CodeForm { span, mins, offset: F::LEAST != 0, fit }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn to_f32(whole: I) -> V {
    [_mm256_cvtepi32_ps(whole[0]), _mm256_cvtepi32_ps(whole[1])]
}

/// See `int8_kernels`.
///
/// # Safety
/// A span's codes are behind each pointer.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn span_dot<const SPAN: usize, const OFFSET: bool, const FIT: usize, const R: usize, const T: usize>(
    w: [*const [u8; 64]; R],
    codes: [*const [i8; 4]; T],
    x: &[CodedRow<'_>; T],
    s: usize,
) -> [[I; R]; T] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[[_mm256_setzero_si256(); 2]; R]; T];
    for t in 0..T {
        if OFFSET {
            sums[t] = [[_mm256_set1_epi32(x[t].starts[s]); 2]; R];
        }
    }
    let fit = FIT.max(1);
    for first in (0..SPAN / 4).step_by(fit) {
        let mut pairs = [[[_mm256_setzero_si256(); 2]; R]; T];
        for q in first..first + fit {
            for r in 0..R {
                for half in 0..2 {
                    // SAFETY: half of 64 bytes of the span; no alignment is asked for.
                    let w = unsafe { _mm256_loadu_si256(w[r].add(q).cast::<__m256i>().add(half)) };
                    for t in 0..T {
                        // SAFETY: four bytes of the span.
                        let four = _mm256_set1_epi32(bytemuck::cast(unsafe { *codes[t].add(q) }));
                        let products = if FIT == 0 {
                            _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(four, w))
                        } else {
                            _mm256_maddubs_epi16(w, four)
                        };
                        pairs[t][r][half] = _mm256_add_epi16(pairs[t][r][half], products);
                    }
                }
            }
        }
        for t in 0..T {
            for r in 0..R {
                for half in 0..2 {
                    let whole = _mm256_madd_epi16(pairs[t][r][half], ones);
                    sums[t][r][half] = _mm256_add_epi32(sums[t][r][half], whole);
                }
            }
        }
    }
    sums
}

/// See [`Int8Unpack`](crate::backend::cpu::kernels::Int8Unpack). With `MOVED` all codes are moved up by their least one; otherwise those that
/// fit into seven bits.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::backend::cpu::simd) fn unpack<F: Codes, const MOVED: bool>(
    w: &[u8],
    row_bytes: usize,
    panel: &mut CodePanel,
) {
    let blocks = row_bytes / size_of::<F::Block>();
    let (rows, groups) = (w.len() / row_bytes.max(1), blocks * F::GROUPS);
    let up = _mm256_set1_epi8(if MOVED || !keeps_sign::<F>() { F::LEAST.wrapping_neg() as i8 } else { 0 });
    let parts = if F::HALVES { 2 } else { 1 };
    for first in (0..rows).step_by(16) {
        let here = (rows - first).min(16);
        // Of rows that are not there the scales are zero, and the codes those of the last.
        let mut of_rows: [&[F::Block]; 16] = [&[]; 16];
        for r in 0..16 {
            of_rows[r] = &bytemuck::cast_slice(&w[(first + r.min(here - 1)) * row_bytes..][..row_bytes])[..blocks];
        }
        let codes = &mut panel.codes[first / 16 * groups * 8..][..groups * 8];
        let codes: &mut [[u8; 64]] = bytemuck::cast_slice_mut(codes);
        let scales = &mut panel.scales[first / 16 * groups * parts..][..groups * parts];
        let mins = if F::MINS { &mut panel.mins[first / 16 * groups * parts..][..groups * parts] } else { &mut [] };
        for b in 0..blocks {
            let spans = b * F::GROUPS * parts..(b + 1) * F::GROUPS * parts;
            for r in 0..16 {
                let mut scales = scales[spans.clone()].iter_mut();
                let mut mins = if F::MINS { mins[spans.clone()].iter_mut() } else { [].iter_mut() };
                // The same place sixteen rows on: one of as many streams, which the processor does not follow by itself.
                prefetch(&of_rows[r][b], 16 * row_bytes);
                if r < here {
                    // SAFETY: this function has the features.
                    let head = unsafe { F::head(&of_rows[r][b]) };
                    scales.zip(head.scales).for_each(|(line, scale)| line.0[r] = scale);
                    mins.zip(head.mins).for_each(|(line, min)| line.0[r] = min);
                } else {
                    scales.by_ref().for_each(|line| line.0[r] = 0.0);
                    mins.by_ref().for_each(|line| line.0[r] = 0.0);
                }
            }
            for g in 0..F::GROUPS {
                let lines = &mut codes[(b * F::GROUPS + g) * 8..][..8];
                for half in 0..2 {
                    let mut eight = [_mm256_setzero_si256(); 8];
                    for r in 0..8 {
                        // SAFETY: as above; a block has GROUPS groups.
                        let these = unsafe { F::codes(&of_rows[half * 8 + r][b], g) };
                        eight[r] = _mm256_add_epi8(these, up);
                    }
                    let quads = transposed(eight);
                    for q in 0..8 {
                        // SAFETY: half of 64 bytes; no alignment is asked for.
                        unsafe { _mm256_storeu_si256(lines[q].as_mut_ptr().add(half * 32).cast(), quads[q]) };
                    }
                }
            }
        }
    }
}

/// Eight rows of eight 32-bit lanes as columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transposed(r: [__m256i; 8]) -> [__m256i; 8] {
    let mut pairs = [r[0]; 8];
    for i in 0..4 {
        pairs[i * 2] = _mm256_unpacklo_epi32(r[i * 2], r[i * 2 + 1]);
        pairs[i * 2 + 1] = _mm256_unpackhi_epi32(r[i * 2], r[i * 2 + 1]);
    }
    // Rows 0 to 3 (then 4 to 7) of columns c and c + 4.
    let mut fours = [r[0]; 8];
    for i in 0..2 {
        fours[i * 4] = _mm256_unpacklo_epi64(pairs[i * 4], pairs[i * 4 + 2]);
        fours[i * 4 + 1] = _mm256_unpackhi_epi64(pairs[i * 4], pairs[i * 4 + 2]);
        fours[i * 4 + 2] = _mm256_unpacklo_epi64(pairs[i * 4 + 1], pairs[i * 4 + 3]);
        fours[i * 4 + 3] = _mm256_unpackhi_epi64(pairs[i * 4 + 1], pairs[i * 4 + 3]);
    }
    let mut out = [r[0]; 8];
    for c in 0..4 {
        out[c] = _mm256_permute2x128_si256::<0x20>(fours[c], fours[c + 4]);
        out[c + 4] = _mm256_permute2x128_si256::<0x31>(fours[c], fours[c + 4]);
    }
    out
}

/// See [`Int8Gemv`](crate::backend::cpu::kernels::Int8Gemv).
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::backend::cpu::simd) fn gemv<F: Codes>(w: &[u8], row_bytes: usize, x: CodedRow<'_>, out: &mut [f32]) {
    assert_eq!(w.len(), row_bytes * out.len());
    for (r, out) in out.iter_mut().enumerate() {
        *out = dot::<F>(bytemuck::cast_slice(&w[r * row_bytes..][..row_bytes]), x);
    }
}

/// One row with one x. Eight lanes for the products of four neighbours, times scales; two such sums take turns over the groups of a block of
/// activations, then its scale: no term goes through more than 9 + K/256 roundings, the mins' subtraction included.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<F: Codes>(row: &[F::Block], x: CodedRow<'_>) -> f32 {
    let per_group = if F::HALVES { 2 } else { 1 };
    let codes = x.codes.as_chunks::<32>().0;
    assert!(codes.len() == row.len() * F::GROUPS && x.sums.len() == codes.len() * per_group);
    assert_eq!(x.scales.len(), codes.len().div_ceil(BLOCK / 32));
    let ahead = size_of_val(row);
    let zero = _mm256_setzero_ps();
    let (mut total, mut total_mins) = (zero, zero);
    for (n, blocks) in row.chunks((BLOCK / 32 / F::GROUPS).max(1)).enumerate() {
        let (mut even, mut odd, mut mins) = (zero, zero, zero);
        for (b, block) in blocks.iter().enumerate() {
            // The same place in the next row: it follows this one, but in pages that the processor does not look into by itself.
            prefetch(block, ahead);
            // SAFETY: this function has the features.
            let head = unsafe { F::head(block) };
            let first = n * (BLOCK / 32) + b * F::GROUPS;
            if F::MINS {
                let sums = &x.sums[first * per_group..][..F::GROUPS * per_group];
                if sums.len() == 1 {
                    mins = _mm256_fmadd_ps(_mm256_zextps128_ps256(_mm_set_ss(head.mins[0])), splat(sums[0])[0], mins);
                }
                for (sums, these) in sums.as_chunks::<8>().0.iter().zip(head.mins.as_chunks::<8>().0) {
                    // SAFETY: references to 8 floats each.
                    unsafe {
                        mins = _mm256_fmadd_ps(_mm256_loadu_ps(these.as_ptr()), _mm256_loadu_ps(sums.as_ptr()), mins)
                    };
                }
            }
            for g in 0..F::GROUPS {
                // SAFETY: a block has GROUPS groups, and x as many for every block.
                let (w, x) = unsafe { (F::codes(block, g), codes.get_unchecked(first + g)) };
                let total = if (b * F::GROUPS + g).is_multiple_of(2) { &mut even } else { &mut odd };
                *total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(fours::<F>(w, x)), scale::<F>(&head.scales, g), *total);
            }
        }
        let d = splat(x.scales[n])[0];
        total = _mm256_fmadd_ps(_mm256_add_ps(even, odd), d, total);
        total_mins = _mm256_fmadd_ps(mins, d, total_mins);
    }
    let total = reduce(total);
    if F::MINS { total - reduce(total_mins) } else { total }
}

/// The sums of four neighbours' products, in 8 lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fours<F: Codes>(w: __m256i, x: &[i8; 32]) -> __m256i {
    // SAFETY: a reference to 32 bytes; no alignment is asked for.
    let x = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
    let pairs = if F::LEAST == 0 {
        _mm256_maddubs_epi16(w, x)
    } else {
        _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
    };
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// See [`Quantize`](crate::backend::cpu::kernels::Quantize).
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::backend::cpu::simd) fn quantize(x: &[f32], out: &mut CodedRowMut<'_>) {
    let CodedRowMut { span, least, codes, scales, sums, starts } = out;
    assert!(x.len() == codes.len() && x.len().is_multiple_of(32) && scales.len() == x.len().div_ceil(BLOCK));
    let absolute = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
    for ((x, codes), scale) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales.iter_mut()) {
        let (x, codes) = (x.as_chunks::<32>().0, codes.as_chunks_mut::<32>().0);
        let (mut most, mut finite) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for x in x {
            for x in x.as_chunks::<8>().0 {
                // SAFETY: a reference to 8 floats.
                let x = unsafe { _mm256_loadu_ps(x.as_ptr()) };
                most = _mm256_max_ps(most, _mm256_and_ps(x, absolute));
                // 0 · x is NaN for what is not finite, and stays so.
                finite = _mm256_fmadd_ps(x, _mm256_setzero_ps(), finite);
            }
        }
        let largest = to_array(most).into_iter().fold(0.0, f32::max);
        let times = if to_array(finite).iter().any(|x| x.is_nan()) {
            // No code stands for it: every product with the block is NaN.
            *scale = f32::NAN;
            0.0
        } else {
            // The first of the largest decides the sign.
            let first = x.as_flattened().iter().find(|x| x.abs() == largest).copied().unwrap_or(0.0);
            let times = -127.0 / first;
            *scale = if times.is_finite() { 1.0 / times } else { 0.0 };
            if times.is_finite() { times } else { 0.0 }
        };
        let times = splat(times)[0];
        for (x, codes) in x.iter().zip(codes) {
            let mut whole = [_mm256_setzero_si256(); 4];
            for (whole, x) in whole.iter_mut().zip(x.as_chunks::<8>().0) {
                // SAFETY: a reference to 8 floats.
                let x = unsafe { _mm256_loadu_ps(x.as_ptr()) };
                *whole = _mm256_cvtps_epi32(_mm256_mul_ps(x, times));
            }
            let bytes =
                _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
            let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            // What is no number would be −128, which has no negative for `sign`; its block's scale is NaN.
            let bytes = _mm256_max_epi8(bytes, _mm256_set1_epi8(-127));
            // SAFETY: a reference to 32 bytes; no alignment is asked for.
            unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), bytes) };
        }
    }
    for ((sum, start), codes) in sums.iter_mut().zip(starts.iter_mut()).zip(codes.chunks_exact(*span)) {
        let whole: i32 = codes.iter().map(|c| *c as i32).sum();
        (*sum, *start) = (whole as f32, whole * *least);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn to_array(v: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: a reference to 8 floats.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
    out
}

/// As the level's `multiply_add`, of bytes: two products and an addition for each of 16 sums in a register.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::backend::cpu) fn multiply_add(rounds: usize) -> (f32, usize) {
    let (x, y) = (_mm256_set1_epi8(std::hint::black_box(1)), _mm256_set1_epi8(std::hint::black_box(2)));
    let mut sums = [x; 12];
    for _ in 0..rounds {
        for sum in &mut sums {
            // What is multiplied is the sum, or it would be multiplied once.
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(*sum, y));
        }
    }
    let total = sums.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi16(a, b));
    (_mm256_extract_epi16::<0>(total) as f32, sums.len() * 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::avx2::of_codes;
    use crate::op::GgmlType;

    /// Whether every code of some random blocks is in the range that the type states, which is what keeps 16 bits from overflowing.
    fn in_range<F: Codes>() -> bool {
        let mut state = 1u64;
        let mut byte = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        (0..500).all(|_| {
            let bytes: Vec<u8> = (0..size_of::<F::Block>()).map(|_| byte()).collect();
            let block: F::Block = bytemuck::pod_read_unaligned(&bytes);
            (0..F::GROUPS).all(|g| {
                // SAFETY: the caller has AVX2; a block has GROUPS groups.
                let codes: [i8; 32] = bytemuck::cast(unsafe { F::codes(&block, g) });
                codes.iter().all(|c| (F::LEAST..=F::LEAST + F::SPREAD).contains(&(*c as i32)))
            })
        })
    }

    #[test]
    fn codes_are_in_the_range_that_their_type_states() {
        if !crate::backend::cpu::Level::Avx2.missing().is_empty() {
            eprintln!("not tested: this processor lacks AVX2");
            return;
        }
        for ty in GgmlType::ALL {
            let holds: Option<bool> = (|| of_codes!(ty, in_range))();
            assert!(holds.is_none_or(|holds| holds), "{ty}");
        }
    }
}
