//! Quantized blocks as registers of f32 weights, 16 in two.
//!
//! Design:
//! - A [`Format`] yields a block's weights in their natural order, `N` times 16 a step. [`unpack`] stores them, [`gemv`]
//!   multiplies them; there is no other reader of the bits.
//! - Bytes are widened to lanes, converted, and scaled by one multiplication or fused multiply-add. That is bit-equal to the
//!   definition, because the product is exact: a half has 11 significant bits, scale and q at most 11 more together, and only
//!   the subtraction rounds, in both. Q6_K: 11 + 8 + 6 bits, where 8 or 6 are reached by powers of two alone, so 24 suffice.

use super::*;
use crate::backend::cpu::kernels::{Gemv, Unpack, prefetch};
use crate::op::GgmlType;
use crate::quant::kquant::{BlockQ4K, BlockQ5K, BlockQ6K, scales_and_mins};
use crate::quant::legacy::BlockQ8_0;

/// Rows of blocks that share the loads of x.
const GEMV_ROWS: usize = 4;

/// How a type's blocks become weights.
///
/// # Safety
/// Both functions need the features of [`Level::Avx2`](crate::backend::cpu::Level).
trait Format<const N: usize> {
    type Block: Pod;
    /// Steps in a block; a step is N times 16 weights.
    const STEPS: usize;
    /// What all steps of a block share.
    type Head: Copy + Default;
    unsafe fn head(block: &Self::Block) -> Self::Head;
    unsafe fn step(block: &Self::Block, head: &Self::Head, step: usize) -> [V; N];
}

/// The function that unpacks `ty`, where there is one.
pub(in super::super) fn unpack(ty: GgmlType) -> Option<Unpack> {
    Some(match ty {
        GgmlType::F32 => unpack_blocks::<F32, 1>,
        GgmlType::F16 => unpack_blocks::<F16, 1>,
        GgmlType::BF16 => unpack_blocks::<Bf16, 1>,
        GgmlType::Q8_0 => unpack_blocks::<Q8_0, 2>,
        GgmlType::Q4_K => unpack_blocks::<Q4K, 2>,
        GgmlType::Q5_K => unpack_blocks::<Q5K, 2>,
        GgmlType::Q6_K => unpack_blocks::<Q6K, 2>,
        _ => return None,
    })
}

/// The function that multiplies rows of `ty` with one x, where there is one.
pub(in super::super) fn gemv(ty: GgmlType) -> Option<Gemv> {
    Some(match ty {
        GgmlType::F32 => gemv_blocks::<F32, 1>,
        GgmlType::F16 => gemv_blocks::<F16, 1>,
        GgmlType::BF16 => gemv_blocks::<Bf16, 1>,
        GgmlType::Q8_0 => gemv_blocks::<Q8_0, 2>,
        GgmlType::Q4_K => gemv_blocks::<Q4K, 2>,
        GgmlType::Q5_K => gemv_blocks::<Q5K, 2>,
        GgmlType::Q6_K => gemv_blocks::<Q6K, 2>,
        _ => return None,
    })
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_blocks<F: Format<N>, const N: usize>(bytes: &[u8], out: &mut [f32]) {
    let blocks: &[F::Block] = bytemuck::cast_slice(bytes);
    let width = F::STEPS * N * 16;
    assert_eq!(blocks.len() * width, out.len());
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(width)) {
        // SAFETY: this function has the features.
        let head = unsafe { F::head(block) };
        for (step, out) in out.chunks_exact_mut(N * 16).enumerate() {
            // SAFETY: as above.
            let weights = unsafe { F::step(block, &head, step) };
            for (out, v) in out.as_chunks_mut::<16>().0.iter_mut().zip(weights) {
                store(out, v);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn gemv_blocks<F: Format<N>, const N: usize>(w: &[u8], row_bytes: usize, x: &[f32], out: &mut [f32]) {
    assert_eq!(w.len(), row_bytes * out.len());
    let row = |r: usize| bytemuck::cast_slice::<u8, F::Block>(&w[r * row_bytes..][..row_bytes]);
    let (groups, rest) = out.as_chunks_mut::<GEMV_ROWS>();
    let done = groups.len() * GEMV_ROWS;
    for (g, out) in groups.iter_mut().enumerate() {
        *out = gemv_rows::<F, N, GEMV_ROWS>(std::array::from_fn(|r| row(g * GEMV_ROWS + r)), x);
    }
    for (r, out) in rest.iter_mut().enumerate() {
        [*out] = gemv_rows::<F, N, 1>([row(done + r)], x);
    }
}

/// Σ x·w for `R` rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn gemv_rows<F: Format<N>, const N: usize, const R: usize>(w: [&[F::Block]; R], x: &[f32]) -> [f32; R] {
    let blocks = w[0].len();
    let x = x.as_chunks::<16>().0;
    assert!(w.iter().all(|w| w.len() == blocks) && x.len() == blocks * F::STEPS * N);
    // The same place in the next rows: they follow these, but in pages that the processor does not look into by itself.
    let ahead = R * blocks * size_of::<F::Block>();
    let mut sums = [splat(0.0); R];
    for b in 0..blocks {
        let mut heads = [F::Head::default(); R];
        for r in 0..R {
            // SAFETY: b is below every row's number of blocks; this function has the features.
            heads[r] = unsafe { F::head(w[r].get_unchecked(b)) };
            prefetch(w[r][b..].as_ptr(), ahead);
        }
        for step in 0..F::STEPS {
            for r in 0..R {
                // SAFETY: as above.
                let weights = unsafe { F::step(w[r].get_unchecked(b), &heads[r], step) };
                for i in 0..N {
                    // SAFETY: there are STEPS · N chunks of x for every block.
                    let x = load(unsafe { x.get_unchecked((b * F::STEPS + step) * N + i) });
                    sums[r] = fma(x, weights[i], sums[r]);
                }
            }
        }
    }
    let mut out = [0.0; R];
    for r in 0..R {
        out[r] = reduce(sums[r]);
    }
    out
}

/// A half as f32, in all lanes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn half(d: [u8; 2]) -> __m256 {
    _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(u16::from_le_bytes(d) as i32)))
}

/// 16 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: a reference to 16 bytes; no alignment is asked for.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// 16 unsigned bytes as f32.
#[inline]
#[target_feature(enable = "avx2")]
fn unsigned(q: __m128i) -> V {
    let high = _mm_unpackhi_epi64(q, q);
    [_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(q)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high))]
}

/// 16 signed bytes as f32.
#[inline]
#[target_feature(enable = "avx2")]
fn signed(q: __m128i) -> V {
    let high = _mm_unpackhi_epi64(q, q);
    [_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high))]
}

/// a · b in both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn times(a: V, b: __m256) -> V {
    [_mm256_mul_ps(a[0], b), _mm256_mul_ps(a[1], b)]
}

/// The bits of `mask` in each byte, after a shift right by `count`.
#[inline]
#[target_feature(enable = "avx2")]
fn bits(bytes: __m128i, count: usize, mask: i8) -> __m128i {
    _mm_and_si128(_mm_srl_epi16(bytes, _mm_cvtsi32_si128(count as i32)), _mm_set1_epi8(mask))
}

struct F32;

impl Format<1> for F32 {
    type Block = [[u8; 4]; 16];
    const STEPS: usize = 1;
    type Head = ();
    #[inline]
    unsafe fn head(_: &Self::Block) {}
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn step(block: &Self::Block, (): &(), _: usize) -> [V; 1] {
        // SAFETY: a block is 64 bytes; no alignment is asked for.
        [unsafe { [_mm256_loadu_ps(block.as_ptr().cast()), _mm256_loadu_ps(block[8..].as_ptr().cast())] }]
    }
}

struct F16;

impl Format<1> for F16 {
    type Block = [[u8; 16]; 2];
    const STEPS: usize = 1;
    type Head = ();
    #[inline]
    unsafe fn head(_: &Self::Block) {}
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn step(block: &Self::Block, (): &(), _: usize) -> [V; 1] {
        [[_mm256_cvtph_ps(load_bytes(&block[0])), _mm256_cvtph_ps(load_bytes(&block[1]))]]
    }
}

struct Bf16;

impl Format<1> for Bf16 {
    type Block = [[u8; 16]; 2];
    const STEPS: usize = 1;
    type Head = ();
    #[inline]
    unsafe fn head(_: &Self::Block) {}
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn step(block: &Self::Block, (): &(), _: usize) -> [V; 1] {
        let wide = |halves| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_bytes(halves))));
        [[wide(&block[0]), wide(&block[1])]]
    }
}

struct Q8_0;

impl Format<2> for Q8_0 {
    type Block = BlockQ8_0;
    const STEPS: usize = 1;
    type Head = ();
    #[inline]
    unsafe fn head(_: &BlockQ8_0) {}
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn step(block: &BlockQ8_0, (): &(), _: usize) -> [V; 2] {
        let d = half(block.d);
        let qs = bytemuck::cast_ref::<[i8; 32], [[u8; 16]; 2]>(&block.qs);
        [times(signed(load_bytes(&qs[0])), d), times(signed(load_bytes(&qs[1])), d)]
    }
}

/// The scales d·s and mins dmin·m of Q4_K and Q5_K: 8 and 8.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn scaled(d: [u8; 2], dmin: [u8; 2], packed: &[u8; 12]) -> [f32; 16] {
    let (scales, mins) = scales_and_mins(packed);
    let q = unsigned(_mm_set_epi64x(i64::from_le_bytes(mins), i64::from_le_bytes(scales)));
    let mut out = [0.0; 16];
    store(&mut out, [_mm256_mul_ps(half(d), q[0]), _mm256_mul_ps(half(dmin), q[1])]);
    out
}

/// scale · q − min.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn affine(q: V, scale: f32, min: f32) -> V {
    let (scale, min) = (_mm256_set1_ps(scale), _mm256_set1_ps(min));
    [_mm256_fmsub_ps(q[0], scale, min), _mm256_fmsub_ps(q[1], scale, min)]
}

struct Q4K;

impl Format<2> for Q4K {
    type Block = BlockQ4K;
    const STEPS: usize = 8;
    type Head = [f32; 16];
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn head(block: &BlockQ4K) -> [f32; 16] {
        scaled(block.d, block.dmin, &block.scales)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn step(block: &BlockQ4K, head: &[f32; 16], g: usize) -> [V; 2] {
        let qs = &block.qs.as_chunks::<16>().0[g / 2 * 2..][..2];
        let weights = |qs| affine(unsigned(bits(load_bytes(qs), g % 2 * 4, 15)), head[g], head[8 + g]);
        [weights(&qs[0]), weights(&qs[1])]
    }
}

struct Q5K;

impl Format<2> for Q5K {
    type Block = BlockQ5K;
    const STEPS: usize = 8;
    type Head = [f32; 16];
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn head(block: &BlockQ5K) -> [f32; 16] {
        scaled(block.d, block.dmin, &block.scales)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn step(block: &BlockQ5K, head: &[f32; 16], g: usize) -> [V; 2] {
        let qs = &block.qs.as_chunks::<16>().0[g / 2 * 2..][..2];
        let qh = block.qh.as_chunks::<16>().0;
        let weights = |qs, qh| {
            let low = bits(load_bytes(qs), g % 2 * 4, 15);
            let fifth = _mm_slli_epi16::<4>(bits(load_bytes(qh), g, 1));
            affine(unsigned(_mm_or_si128(low, fifth)), head[g], head[8 + g])
        };
        [weights(&qs[0], &qh[0]), weights(&qs[1], &qh[1])]
    }
}

struct Q6K;

impl Format<2> for Q6K {
    type Block = BlockQ6K;
    const STEPS: usize = 8;
    type Head = [f32; 16];
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn head(block: &BlockQ6K) -> [f32; 16] {
        let d = half(block.d);
        let q = signed(load_bytes(bytemuck::cast_ref(&block.scales)));
        let mut out = [0.0; 16];
        store(&mut out, times(q, d));
        out
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn step(block: &BlockQ6K, head: &[f32; 16], run: usize) -> [V; 2] {
        let (half, quarter) = (run / 4, run % 4);
        let ql = &block.ql.as_chunks::<16>().0[half * 4 + quarter % 2 * 2..][..2];
        let qh = &block.qh.as_chunks::<16>().0[half * 2..][..2];
        let weights = |i: usize| {
            let low = bits(load_bytes(&ql[i]), quarter / 2 * 4, 15);
            let high = _mm_slli_epi16::<4>(bits(load_bytes(&qh[i]), quarter * 2, 3));
            let q = _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
            times(signed(q), _mm256_set1_ps(head[run * 2 + i]))
        };
        [weights(0), weights(1)]
    }
}
