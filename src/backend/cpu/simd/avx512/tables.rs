//! More types by lookup: those of one scale for 16 or 32 weights and at most five bits.
//!
//! Design:
//! - Where 32 weights share a scale, byte j holds weight j in its low nibble and weight j + 16 in its high one, so that 16 bytes are
//!   two registers of weights in their natural order.
//! - Types of two and three bits repeat their 4 or 8 values through the register: what is above an index's own bits is ignored then.
//! - Every product here is exact (a half's 11 bits by at most 12), so a lookup is bit-equal to the definition.

use super::formats::{SELECT, Scales, half, iota, signed, widen};
use super::*;
use crate::quant::few_bits::{BlockQ1_0, BlockQ2_0};
use crate::quant::fp4::{BlockMXFP4, BlockNVFP4, E2M1_LEVELS, e8m0_half, ue4m3_half};
use crate::quant::iquant::{BlockIQ4NL, BlockIQ4XS, IQ4_LEVELS};
use crate::quant::kquant::{BlockQ2K, BlockQ3K, q3k_scales};
use crate::quant::legacy::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1};

/// 32 nibbles by one table.
#[inline]
#[target_feature(enable = "avx512f")]
fn four_bits(qs: &[u8; 16], table: V) -> [V; 2] {
    let q = widen(qs);
    [_mm512_permutexvar_ps(q, table), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(q), table)]
}

/// 32 nibbles, each by the table that its bit of `qh` chooses.
#[inline]
#[target_feature(enable = "avx512f")]
fn five_bits(qs: &[u8; 16], qh: [u8; 4], clear: V, set: V) -> [V; 2] {
    let (low, bits) = (widen(qs), u32::from_le_bytes(qh));
    let high = _mm512_srli_epi32::<4>(low);
    [
        _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(low, clear), bits as u16, low, set),
        _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(high, clear), (bits >> 16) as u16, high, set),
    ]
}

/// 0, 1, … 15, each plus `offset`.
#[inline]
#[target_feature(enable = "avx512f")]
fn from(offset: f32) -> V {
    _mm512_add_ps(iota(), _mm512_set1_ps(offset))
}

/// A type whose block is 32 weights under one scale.
macro_rules! format32 {
    ($name:ident, |$block:ident: $layout:ident| $weights:expr) => {
        pub(super) struct $name;

        impl BlockFormat<V, 2> for $name {
            type Block = $layout;
            const STEPS: usize = 1;
            type Head = ();
            #[inline]
            unsafe fn head(_: &$layout) {}
            #[inline]
            #[target_feature(enable = "avx512f,avx512vl,f16c")]
            unsafe fn step($block: &$layout, (): &(), _: usize) -> [V; 2] {
                $weights
            }
        }
    };
}

format32!(Q4_0, |b: BlockQ4_0| four_bits(&b.qs, _mm512_mul_ps(from(-8.0), half(b.d))));
format32!(Q4_1, |b: BlockQ4_1| four_bits(&b.qs, _mm512_fmadd_ps(iota(), half(b.d), half(b.m))));
format32!(Q5_0, |b: BlockQ5_0| {
    let d = half(b.d);
    five_bits(&b.qs, b.qh, _mm512_mul_ps(from(-16.0), d), _mm512_mul_ps(iota(), d))
});
format32!(Q5_1, |b: BlockQ5_1| {
    let (d, m) = (half(b.d), half(b.m));
    five_bits(&b.qs, b.qh, _mm512_fmadd_ps(iota(), d, m), _mm512_fmadd_ps(from(16.0), d, m))
});
format32!(Iq4Nl, |b: BlockIQ4NL| four_bits(&b.qs, _mm512_mul_ps(signed(&IQ4_LEVELS), half(b.d))));
format32!(Mxfp4, |b: BlockMXFP4| {
    four_bits(&b.qs, _mm512_mul_ps(signed(&E2M1_LEVELS), _mm512_set1_ps(e8m0_half(b.e))))
});

pub(super) struct Nvfp4;

impl BlockFormat<V, 4> for Nvfp4 {
    type Block = BlockNVFP4;
    const STEPS: usize = 1;
    type Head = ();
    #[inline]
    unsafe fn head(_: &BlockNVFP4) {}
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn step(block: &BlockNVFP4, (): &(), _: usize) -> [V; 4] {
        let levels = signed(&E2M1_LEVELS);
        let mut out = [_mm512_setzero_ps(); 4];
        for g in 0..4 {
            // Eight bytes twice: their low nibbles, and their high ones.
            let q = _mm512_cvtepu8_epi32(_mm_set1_epi64x(i64::from_le_bytes(block.qs[g])));
            let q = _mm512_mask_srli_epi32::<4>(q, 0xff00, q);
            let table = _mm512_mul_ps(levels, _mm512_set1_ps(ue4m3_half(block.d[g])));
            out[g] = _mm512_permutexvar_ps(q, table);
        }
        out
    }
}

pub(super) struct Q1_0;

impl BlockFormat<V, 8> for Q1_0 {
    type Block = BlockQ1_0;
    const STEPS: usize = 1;
    type Head = ();
    #[inline]
    unsafe fn head(_: &BlockQ1_0) {}
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn step(block: &BlockQ1_0, (): &(), _: usize) -> [V; 8] {
        let d = half(block.d);
        let minus = _mm512_sub_ps(_mm512_set1_ps(-0.0), d);
        let mut out = [minus; 8];
        for (out, bits) in out.iter_mut().zip(block.qs.as_chunks::<2>().0) {
            *out = _mm512_mask_blend_ps(u16::from_le_bytes(*bits), minus, d);
        }
        out
    }
}

pub(super) struct Q2_0;

impl BlockFormat<V, 4> for Q2_0 {
    type Block = BlockQ2_0;
    const STEPS: usize = 1;
    type Head = ();
    #[inline]
    unsafe fn head(_: &BlockQ2_0) {}
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn step(block: &BlockQ2_0, (): &(), _: usize) -> [V; 4] {
        let values = _mm512_setr_ps(-1., 0., 1., 2., -1., 0., 1., 2., -1., 0., 1., 2., -1., 0., 1., 2.);
        let table = _mm512_mul_ps(values, half(block.d));
        let counts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let mut out = [table; 4];
        for (out, word) in out.iter_mut().zip(block.qs.as_chunks::<4>().0) {
            let q = _mm512_srlv_epi32(_mm512_set1_epi32(i32::from_le_bytes(*word)), counts);
            *out = _mm512_permutexvar_ps(q, table);
        }
        out
    }
}

pub(super) struct Iq4Xs;

impl BlockFormat<V, 2> for Iq4Xs {
    type Block = BlockIQ4XS;
    const STEPS: usize = 8;
    type Head = ();
    #[inline]
    unsafe fn head(_: &BlockIQ4XS) {}
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn step(block: &BlockIQ4XS, (): &(), g: usize) -> [V; 2] {
        let low = block.scales_l[g / 2] >> (g % 2 * 4) & 15;
        let high = (u16::from_le_bytes(block.scales_h) >> (2 * g) & 3) as u8;
        let scale = _mm512_mul_ps(half(block.d), _mm512_set1_ps(((low | high << 4) as i8 - 32) as f32));
        four_bits(&block.qs.as_chunks::<16>().0[g], _mm512_mul_ps(signed(&IQ4_LEVELS), scale))
    }
}

/// The scales and the mins of 16 groups.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,f16c")]
pub(super) fn q2k_scales_and_mins(block: &BlockQ2K) -> [V; 2] {
    let packed = widen(&block.scales);
    let (scales, mins) = (_mm512_and_si512(packed, _mm512_set1_epi32(15)), _mm512_srli_epi32::<4>(packed));
    [
        _mm512_mul_ps(half(block.d), _mm512_cvtepi32_ps(scales)),
        _mm512_mul_ps(half(block.dmin), _mm512_cvtepi32_ps(mins)),
    ]
}

/// The values of two bits, four times over: what is above an index's own bits is ignored then.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn of_two_bits() -> V {
    _mm512_setr_ps(0., 1., 2., 3., 0., 1., 2., 3., 0., 1., 2., 3., 0., 1., 2., 3.)
}

pub(super) struct Q2K;

impl BlockFormat<V, 8> for Q2K {
    type Block = BlockQ2K;
    const STEPS: usize = 2;
    /// The scales and the mins of 16 groups.
    type Head = [Scales; 2];
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn head(block: &BlockQ2K) -> [Scales; 2] {
        let [scales, mins] = q2k_scales_and_mins(block);
        [Scales::of(scales), Scales::of(mins)]
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn step(block: &BlockQ2K, [Scales(scales), Scales(mins)]: &[Scales; 2], step: usize) -> [V; 8] {
        let values = of_two_bits();
        let bytes = block.qs.as_chunks::<16>().0;
        let mut out = [_mm512_setzero_ps(); 8];
        for i in 0..8 {
            let g = step * 8 + i;
            let table = _mm512_fmsub_ps(values, _mm512_set1_ps(scales[g]), _mm512_set1_ps(mins[g]));
            let q = _mm512_srlv_epi32(widen(&bytes[step * 2 + i % 2]), _mm512_set1_epi32((i / 2 * 2) as i32));
            out[i] = _mm512_permutexvar_ps(q, table);
        }
        out
    }
}

/// The scales of 16 groups.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,f16c")]
pub(super) fn q3k_scales_in_lanes(block: &BlockQ3K) -> V {
    _mm512_mul_ps(half(block.d), signed(&q3k_scales(&block.scales)))
}

/// The values of Q3_K's three bits, twice.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn of_three_bits() -> V {
    _mm512_setr_ps(-4., -3., -2., -1., 0., 1., 2., 3., -4., -3., -2., -1., 0., 1., 2., 3.)
}

pub(super) struct Q3K;

impl BlockFormat<V, 8> for Q3K {
    type Block = BlockQ3K;
    const STEPS: usize = 2;
    type Head = Scales;
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn head(block: &BlockQ3K) -> Scales {
        Scales::of(q3k_scales_in_lanes(block))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn step(block: &BlockQ3K, Scales(scales): &Scales, step: usize) -> [V; 8] {
        let values = of_three_bits();
        let (low, high) = (block.qs.as_chunks::<16>().0, block.hmask.as_chunks::<16>().0);
        let mut out = [_mm512_setzero_ps(); 8];
        for i in 0..8 {
            let g = step * 8 + i;
            let q = _mm512_srlv_epi32(widen(&low[step * 2 + i % 2]), _mm512_set1_epi32((i / 2 * 2) as i32));
            // The third bit, brought to bit 2.
            let third = _mm512_slli_epi32::<2>(widen(&high[i % 2]));
            let third = _mm512_srlv_epi32(third, _mm512_set1_epi32((g / 2) as i32));
            let index = _mm512_ternarylogic_epi32::<SELECT>(_mm512_set1_epi32(3), q, third);
            out[i] = _mm512_permutexvar_ps(index, _mm512_mul_ps(values, _mm512_set1_ps(scales[g])));
        }
        out
    }
}
