//! The formats of this level.
//!
//! Design:
//! - **Types of 4 bits and less are looked up.** For the weights under one scale, `scale · q − min` for every q is one fused
//!   multiply-add on a register of 0..16. `vpermps` turns 16 bytes, widened to lanes, into weights, and ignores the bits above the
//!   lowest four, so a nibble needs a shift at most. The fifth bit of Q5_K chooses between two registers (`vpermt2ps`).
//! - A lookup is bit-equal to the definition, because the product is exact: a half has 11 significant bits, scale and q at most
//!   11 more together, and only the subtraction rounds, in both. Q6_K: 11 + 8 + 6 bits, where 8 or 6 are reached by powers of
//!   two alone, so 24 suffice.

use super::*;
use crate::quant::kquant::{BlockQ4K, BlockQ5K, BlockQ6K};
use crate::quant::legacy::BlockQ8_0;

/// 16 bytes, each in a lane of its own.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn widen(bytes: &[u8; 16]) -> __m512i {
    // SAFETY: a reference to 16 bytes; no alignment is asked for.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// 16 signed bytes as f32.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn signed(bytes: &[i8; 16]) -> V {
    // SAFETY: a reference to 16 bytes; no alignment is asked for.
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }))
}

/// 0, 1, … 15.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn iota() -> V {
    _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.)
}

/// A half as f32, in all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,f16c")]
pub(super) fn half(d: [u8; 2]) -> V {
    let d = _mm_cvtph_ps(_mm_cvtsi32_si128(u16::from_le_bytes(d) as i32));
    _mm512_broadcastss_ps(d)
}

pub(super) struct F32;

impl BlockFormat<V, 1> for F32 {
    type Block = [[u8; 4]; 16];
    const STEPS: usize = 1;
    type Head = ();
    #[inline]
    unsafe fn head(_: &Self::Block) {}
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn step(block: &Self::Block, (): &(), _: usize) -> [V; 1] {
        // SAFETY: a block is 64 bytes; no alignment is asked for.
        [unsafe { _mm512_loadu_ps(block.as_ptr().cast()) }]
    }
}

pub(super) struct F16;

impl BlockFormat<V, 1> for F16 {
    type Block = [[u8; 2]; 16];
    const STEPS: usize = 1;
    type Head = ();
    #[inline]
    unsafe fn head(_: &Self::Block) {}
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn step(block: &Self::Block, (): &(), _: usize) -> [V; 1] {
        // SAFETY: a block is 32 bytes; no alignment is asked for.
        [_mm512_cvtph_ps(unsafe { _mm256_loadu_si256(block.as_ptr().cast()) })]
    }
}

pub(super) struct Bf16;

impl BlockFormat<V, 1> for Bf16 {
    type Block = [[u8; 2]; 16];
    const STEPS: usize = 1;
    type Head = ();
    #[inline]
    unsafe fn head(_: &Self::Block) {}
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn step(block: &Self::Block, (): &(), _: usize) -> [V; 1] {
        // SAFETY: a block is 32 bytes; no alignment is asked for.
        let bits = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(block.as_ptr().cast()) });
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))]
    }
}

pub(super) struct Q8_0;

impl BlockFormat<V, 2> for Q8_0 {
    type Block = BlockQ8_0;
    const STEPS: usize = 1;
    type Head = ();
    #[inline]
    unsafe fn head(_: &BlockQ8_0) {}
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn step(block: &BlockQ8_0, (): &(), _: usize) -> [V; 2] {
        let d = half(block.d);
        let weights = |i: usize| {
            // SAFETY: 16 of the block's 32 bytes.
            let q = _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(block.qs[i * 16..][..16].as_ptr().cast()) });
            _mm512_mul_ps(_mm512_cvtepi32_ps(q), d)
        };
        [weights(0), weights(1)]
    }
}

/// A block's 16 scales, or 8 scales and 8 mins, in one cache line, so that loads are served by the store that precedes them.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Scales(pub [f32; 16]);

impl Scales {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn of(lanes: V) -> Self {
        let mut out = Self::default();
        store(&mut out.0, lanes);
        out
    }
}

/// The scales d·s and mins dmin·m of Q4_K and Q5_K, four of each in turn: scale g is at [`at`]`(g)`, its min 4 further.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,f16c")]
pub(super) fn scales_and_mins_in_lanes(d: [u8; 2], dmin: [u8; 2], packed: &[u8; 12]) -> V {
    // What quant::kquant::scales_and_mins does to a byte, here to eight at a time: four scales and their four mins.
    let [a, b, c, d4, e, f, g, h, rest @ ..] = *packed;
    let first = u64::from_le_bytes([a, b, c, d4, e, f, g, h]);
    let rest = u32::from_le_bytes(rest) as u64;
    let last = (rest | rest << 28) & 0x0f0f_0f0f_0f0f_0f0f | first >> 2 & 0x3030_3030_3030_3030;
    let first = first & 0x3f3f_3f3f_3f3f_3f3f;
    let q = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_set_epi64x(last as i64, first as i64)));
    let both = i32::from_le_bytes([d[0], d[1], dmin[0], dmin[1]]);
    let both = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_set1_epi32(both))); // d, dmin, d, dmin in the lowest lanes
    let by = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1), both);
    _mm512_mul_ps(q, by)
}

/// Where [`scales_and_mins_in_lanes`] puts scale g.
#[inline]
fn at(g: usize) -> usize {
    g % 4 + g / 4 * 8
}

pub(super) struct Q4K;

impl BlockFormat<V, 4> for Q4K {
    type Block = BlockQ4K;
    const STEPS: usize = 4;
    type Head = Scales;
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn head(block: &BlockQ4K) -> Scales {
        Scales::of(scales_and_mins_in_lanes(block.d, block.dmin, &block.scales))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn step(block: &BlockQ4K, Scales(head): &Scales, step: usize) -> [V; 4] {
        let table = |g: usize| _mm512_fmsub_ps(iota(), _mm512_set1_ps(head[at(g)]), _mm512_set1_ps(head[at(g) + 4]));
        let (low, high) = (table(step * 2), table(step * 2 + 1));
        let bytes = &block.qs.as_chunks::<16>().0[step * 2..][..2];
        let (a, b) = (widen(&bytes[0]), widen(&bytes[1]));
        [
            _mm512_permutexvar_ps(a, low),
            _mm512_permutexvar_ps(b, low),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(a), high),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(b), high),
        ]
    }
}

pub(super) struct Q5K;

impl BlockFormat<V, 4> for Q5K {
    type Block = BlockQ5K;
    const STEPS: usize = 4;
    type Head = Scales;
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn head(block: &BlockQ5K) -> Scales {
        Scales::of(scales_and_mins_in_lanes(block.d, block.dmin, &block.scales))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn step(block: &BlockQ5K, Scales(head): &Scales, step: usize) -> [V; 4] {
        let (bytes, qh) = (block.qs.as_chunks::<16>().0, block.qh.as_chunks::<16>().0);
        let weights = |g: usize, i: usize| {
            let (scale, min) = (_mm512_set1_ps(head[at(g)]), _mm512_set1_ps(head[at(g) + 4]));
            let low = _mm512_fmsub_ps(iota(), scale, min);
            let high = _mm512_fmsub_ps(_mm512_add_ps(iota(), _mm512_set1_ps(16.0)), scale, min);
            // The low four bits, at bit 0, and the fifth, brought to bit 4: the lookup ignores what is above.
            let q = _mm512_srlv_epi32(widen(&bytes[g / 2 * 2 + i]), _mm512_set1_epi32((g % 2 * 4) as i32));
            let fifth = _mm512_srlv_epi32(_mm512_slli_epi32::<4>(widen(&qh[i])), _mm512_set1_epi32(g as i32));
            let index = _mm512_ternarylogic_epi32::<SELECT>(_mm512_set1_epi32(15), q, fifth);
            _mm512_permutex2var_ps(low, index, high)
        };
        let g = step * 2;
        [weights(g, 0), weights(g, 1), weights(g + 1, 0), weights(g + 1, 1)]
    }
}

/// The truth table of `(a & b) | (!a & c)`.
pub(super) const SELECT: i32 = 0xca;
/// The truth table of `(a & b) | c`.
pub(super) const AND_OR: i32 = 0xea;

/// The scales of 16 groups.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,f16c")]
pub(super) fn q6k_scales(block: &BlockQ6K) -> V {
    _mm512_mul_ps(half(block.d), signed(&block.scales))
}

pub(super) struct Q6K;

impl BlockFormat<V, 8> for Q6K {
    type Block = BlockQ6K;
    const STEPS: usize = 2;
    type Head = Scales;
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn head(block: &BlockQ6K) -> Scales {
        Scales::of(q6k_scales(block))
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn step(block: &BlockQ6K, Scales(head): &Scales, step: usize) -> [V; 8] {
        // 64 bytes of low nibbles for weights 0..64 and, above them, 64..128; 32 bytes of two high bits for each quarter.
        // SAFETY: both slices are as long as the loads.
        let (low, high) = unsafe {
            (
                _mm512_loadu_si512(block.ql[step * 64..][..64].as_ptr().cast()),
                _mm512_broadcast_i64x4(_mm256_loadu_si256(block.qh[step * 32..][..32].as_ptr().cast())),
            )
        };
        let (fifteen, top) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
        // The high bits of quarters 0 and 1, then of 2 and 3, moved to bits 4 and 5; what else moved is masked off.
        let counts = |first, second| _mm512_inserti64x4::<1>(_mm512_set1_epi32(first), _mm256_set1_epi32(second));
        let below = _mm512_sllv_epi32(high, counts(4, 2));
        let above = _mm512_srlv_epi32(high, counts(0, 2));
        let below = _mm512_ternarylogic_epi32::<AND_OR>(top, below, _mm512_and_si512(low, fifteen));
        let low = _mm512_and_si512(_mm512_srli_epi32::<4>(low), fifteen);
        let above = _mm512_ternarylogic_epi32::<AND_OR>(top, above, low);
        let minus = _mm512_set1_epi8(32);
        let q = [_mm512_sub_epi8(below, minus), _mm512_sub_epi8(above, minus)];
        let weights = |i: usize, q: __m128i| {
            _mm512_mul_ps(_mm512_set1_ps(head[step * 8 + i]), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)))
        };
        [
            weights(0, _mm512_castsi512_si128(q[0])),
            weights(1, _mm512_extracti32x4_epi32::<1>(q[0])),
            weights(2, _mm512_extracti32x4_epi32::<2>(q[0])),
            weights(3, _mm512_extracti32x4_epi32::<3>(q[0])),
            weights(4, _mm512_castsi512_si128(q[1])),
            weights(5, _mm512_extracti32x4_epi32::<1>(q[1])),
            weights(6, _mm512_extracti32x4_epi32::<2>(q[1])),
            weights(7, _mm512_extracti32x4_epi32::<3>(q[1])),
        ]
    }
}
