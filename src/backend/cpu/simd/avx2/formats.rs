//! The types whose codes are fields of bits, or levels of a short list.
//!
//! Every product of a scale is exact (a half's 11 bits by at most 12, or powers of two), so what [`unpack`](super::codes) makes is
//! bit-equal to the definition.

use std::arch::x86_64::*;

use super::codes::{Codes, Head, Stand};
use crate::quant::few_bits::{BlockQ1_0, BlockQ2_0};
use crate::quant::fp4::{BlockMXFP4, BlockNVFP4, E2M1_LEVELS, e8m0_half, ue4m3_half};
use crate::quant::iquant::{BlockIQ4NL, BlockIQ4XS, IQ4_LEVELS};
use crate::quant::kquant::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, q3k_scales};
use crate::quant::legacy::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};
use crate::quant::ternary::{BlockTQ1_0, BlockTQ2_0};

/// A half. The crate that has its definition asks at every call what the processor can.
#[inline]
#[target_feature(enable = "f16c")]
pub(super) fn f16(d: [u8; 2]) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(u16::from_le_bytes(d) as i32)))
}

/// A block's only scale, and its min.
#[inline]
fn one(scale: f32, min: f32) -> Head {
    let mut head = Head { scales: [0.0; 16], mins: [0.0; 16] };
    (head.scales[0], head.mins[0]) = (scale, min);
    head
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: a reference to 32 bytes; no alignment is asked for.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: a reference to 16 bytes; no alignment is asked for.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn splat8(byte: u8) -> __m256i {
    _mm256_set1_epi8(byte as i8)
}

/// Each byte shifted right by `count`, and of that the bits of `mask`, which are at most 8 − `count`.
#[inline]
#[target_feature(enable = "avx2")]
fn bits(bytes: __m256i, count: usize, mask: u8) -> __m256i {
    _mm256_and_si256(_mm256_srl_epi16(bytes, _mm_cvtsi32_si128(count as i32)), splat8(mask))
}

/// Bits `mask << from` of each byte, brought to `mask << to`, where that is inside the byte.
#[inline]
#[target_feature(enable = "avx2")]
fn moved(bytes: __m256i, from: usize, to: usize, mask: u8) -> __m256i {
    let there = if from > to {
        _mm256_srl_epi16(bytes, _mm_cvtsi32_si128((from - to) as i32))
    } else {
        _mm256_sll_epi16(bytes, _mm_cvtsi32_si128((to - from) as i32))
    };
    _mm256_and_si256(there, splat8(mask << to))
}

/// The low nibbles of 16 bytes, then the high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(qs: &[u8; 16]) -> __m256i {
    let qs = load16(qs);
    _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(qs), qs), splat8(15))
}

/// Each nibble's level.
#[inline]
#[target_feature(enable = "avx2")]
fn levels(nibbles: __m256i, levels: &[i8; 16]) -> __m256i {
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(bytemuck::cast_ref(levels))), nibbles)
}

/// A byte of ones for each bit that is set, the lowest first.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn spread(set: u32) -> __m256i {
    let byte = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(set as i32), byte);
    _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit)
}

/// A type, each of whose functions has the features.
macro_rules! codes {
    (
        $name:ident: $block:ty, $(const $constant:ident: $type:ty = $value:expr;)*
        head |$h:ident| $head:expr;
        codes |$b:ident, $g:pat_param| $codes:expr;
        $(standing |$s:ident, $sg:ident| $standing:expr;)?
    ) => {
        pub(in crate::backend::cpu::simd) struct $name;

        impl Codes for $name {
            type Block = $block;
            $(const $constant: $type = $value;)*
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn head($h: &$block) -> Head {
                $head
            }
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn codes($b: &$block, $g: usize) -> __m256i {
                $codes
            }
            $(
                #[inline]
                #[target_feature(enable = "avx2,fma,f16c")]
                unsafe fn standing($s: &$block, $sg: usize) -> __m256i {
                    $standing
                }
            )?
        }
    };
}
pub(super) use codes;

codes! {
    Q4_0: BlockQ4_0,
    const GROUPS: usize = 1;
    const LEAST: i32 = -8;
    const SPREAD: i32 = 15;
    head |b| one(f16(b.d), 0.0);
    codes |b, _| _mm256_sub_epi8(nibbles(&b.qs), splat8(8));
}

codes! {
    Q4_1: BlockQ4_1,
    const GROUPS: usize = 1;
    const MINS: bool = true;
    const STAND: Stand = Stand::Unsigned;
    const SPREAD: i32 = 15;
    head |b| one(f16(b.d), -f16(b.m));
    codes |b, _| nibbles(&b.qs);
}

codes! {
    Q5_0: BlockQ5_0,
    const GROUPS: usize = 1;
    const LEAST: i32 = -16;
    const SPREAD: i32 = 31;
    head |b| one(f16(b.d), 0.0);
    // Without its fifth bit a code is 16 less, which as a signed byte sets all bits above the nibble.
    codes |b, _| {
        let set = spread(u32::from_le_bytes(b.qh));
        _mm256_or_si256(nibbles(&b.qs), _mm256_andnot_si256(set, splat8(0xf0)))
    };
}

codes! {
    Q5_1: BlockQ5_1,
    const GROUPS: usize = 1;
    const MINS: bool = true;
    const STAND: Stand = Stand::Unsigned;
    const SPREAD: i32 = 31;
    head |b| one(f16(b.d), -f16(b.m));
    codes |b, _| {
        let set = spread(u32::from_le_bytes(b.qh));
        _mm256_or_si256(nibbles(&b.qs), _mm256_and_si256(set, splat8(16)))
    };
}

codes! {
    Q8_0: BlockQ8_0,
    const GROUPS: usize = 1;
    const LEAST: i32 = -128;
    const SPREAD: i32 = 255;
    head |b| one(f16(b.d), 0.0);
    codes |b, _| load32(bytemuck::cast_ref(&b.qs));
}

codes! {
    Iq4Nl: BlockIQ4NL,
    const GROUPS: usize = 1;
    const LEAST: i32 = -128;
    const SPREAD: i32 = 255;
    head |b| one(f16(b.d), 0.0);
    codes |b, _| levels(nibbles(&b.qs), &IQ4_LEVELS);
}

codes! {
    Mxfp4: BlockMXFP4,
    const GROUPS: usize = 1;
    const LEAST: i32 = -12;
    const SPREAD: i32 = 24;
    head |b| one(e8m0_half(b.e), 0.0);
    codes |b, _| levels(nibbles(&b.qs), &E2M1_LEVELS);
}

codes! {
    Nvfp4: BlockNVFP4,
    const GROUPS: usize = 2;
    const HALVES: bool = true;
    const LEAST: i32 = -12;
    const SPREAD: i32 = 24;
    head |b| {
        let mut head = Head { scales: [0.0; 16], mins: [0.0; 16] };
        head.scales[..4].copy_from_slice(&b.d.map(ue4m3_half));
        head
    };
    // Of two halves the low nibbles, then the high ones.
    codes |b, g| {
        let qs = load16(bytemuck::cast_ref(&b.qs.as_chunks::<2>().0[g]));
        let high = _mm_srli_epi16::<4>(qs);
        let halves = _mm256_set_m128i(_mm_unpackhi_epi64(qs, high), _mm_unpacklo_epi64(qs, high));
        levels(_mm256_and_si256(halves, splat8(15)), &E2M1_LEVELS)
    };
}

codes! {
    Q1_0: BlockQ1_0,
    const GROUPS: usize = 4;
    const LEAST: i32 = -1;
    const SPREAD: i32 = 2;
    head |b| Head { scales: [f16(b.d); 16], mins: [0.0; 16] };
    codes |b, g| {
        let set = spread(u32::from_le_bytes(b.qs.as_chunks::<4>().0[g]));
        _mm256_blendv_epi8(splat8(0xff), splat8(1), set)
    };
}

codes! {
    Q2_0: BlockQ2_0,
    const GROUPS: usize = 2;
    const LEAST: i32 = -1;
    const SPREAD: i32 = 3;
    head |b| Head { scales: [f16(b.d); 16], mins: [0.0; 16] };
    codes |b, g| {
        // A byte to a lane of four, where two bits more are shifted up to each byte.
        let byte = _mm256_cvtepu8_epi32(_mm_set_epi64x(0, i64::from_le_bytes(b.qs.as_chunks::<8>().0[g])));
        let two = _mm256_or_si256(byte, _mm256_slli_epi32::<12>(byte));
        let four = _mm256_or_si256(two, _mm256_slli_epi32::<6>(two));
        _mm256_sub_epi8(_mm256_and_si256(four, splat8(3)), splat8(1))
    };
}

codes! {
    Iq4Xs: BlockIQ4XS,
    const LEAST: i32 = -128;
    const SPREAD: i32 = 255;
    head |b| {
        let (d, high) = (f16(b.d), u16::from_le_bytes(b.scales_h));
        let mut scales = [0.0; 16];
        for g in 0..8 {
            let low = b.scales_l[g / 2] >> (g % 2 * 4) & 15;
            scales[g] = d * ((low | ((high >> (2 * g) & 3) << 4) as u8) as i8 - 32) as f32;
        }
        Head { scales, mins: [0.0; 16] }
    };
    codes |b, g| levels(nibbles(&b.qs.as_chunks::<16>().0[g]), &IQ4_LEVELS);
}

codes! {
    Tq2_0: BlockTQ2_0,
    const LEAST: i32 = -1;
    const SPREAD: i32 = 3;
    head |b| Head { scales: [f16(b.d); 16], mins: [0.0; 16] };
    codes |b, g| {
        let qs = load32(&b.qs.as_chunks::<32>().0[g / 4]);
        _mm256_sub_epi8(bits(qs, g % 4 * 2, 3), splat8(1))
    };
}

codes! {
    Tq1_0: BlockTQ1_0,
    const LEAST: i32 = -1;
    const SPREAD: i32 = 3;
    head |b| Head { scales: [f16(b.d); 16], mins: [0.0; 16] };
    // Five digits of 32 bytes, five of 16, and four of 4: see the definition.
    codes |b, g| {
        const POWERS: [i16; 5] = [1, 3, 9, 27, 81];
        let (wide, narrow) = b.qs.split_at(32);
        let narrow: &[u8; 16] = narrow.as_chunks().0.first().unwrap_or(&[0; 16]);
        let twice = |low, high| _mm256_set_m128i(_mm_set1_epi16(high), _mm_set1_epi16(low));
        let (bytes, powers) = match g {
            0..5 => (load32(wide.as_chunks().0.first().unwrap_or(&[0; 32])), _mm256_set1_epi16(POWERS[g])),
            5 | 6 => {
                let digit = g * 2 - 10;
                (_mm256_broadcastsi128_si256(load16(narrow)), twice(POWERS[digit], POWERS[digit + 1]))
            }
            _ => {
                let four = _mm_set1_epi32(i32::from_le_bytes(b.qh));
                let powers = _mm256_set_m128i(_mm_setr_epi16(1, 1, 3, 3, 9, 9, 27, 27), _mm_set1_epi16(POWERS[4]));
                (_mm256_set_m128i(four, load16(narrow)), powers)
            }
        };
        // The even bytes and the odd ones, 16 bits each: (byte · 3ⁱ mod 256) · 3 / 256.
        let low = _mm256_set1_epi16(0xff);
        let trit = |byte| {
            let fraction = _mm256_and_si256(_mm256_mullo_epi16(byte, powers), low);
            _mm256_srli_epi16::<8>(_mm256_mullo_epi16(fraction, _mm256_set1_epi16(3)))
        };
        let (even, odd) = (trit(_mm256_and_si256(bytes, low)), trit(_mm256_srli_epi16::<8>(bytes)));
        _mm256_sub_epi8(_mm256_or_si256(even, _mm256_slli_epi16::<8>(odd)), splat8(1))
    };
}

codes! {
    Q2K: BlockQ2K,
    const HALVES: bool = true;
    const MINS: bool = true;
    const STAND: Stand = Stand::Unsigned;
    const SPREAD: i32 = 3;
    head |b| {
        let (d, dmin) = (f16(b.d), f16(b.dmin));
        Head { scales: b.scales.map(|s| d * (s & 15) as f32), mins: b.scales.map(|s| dmin * (s >> 4) as f32) }
    };
    codes |b, g| bits(load32(&b.qs.as_chunks::<32>().0[g / 4]), g % 4 * 2, 3);
}

codes! {
    Q3K: BlockQ3K,
    const HALVES: bool = true;
    const LEAST: i32 = -4;
    const SPREAD: i32 = 7;
    head |b| {
        let d = f16(b.d);
        Head { scales: q3k_scales(&b.scales).map(|s| d * s as f32), mins: [0.0; 16] }
    };
    codes |b, g| {
        let low = bits(load32(&b.qs.as_chunks::<32>().0[g / 4]), g % 4 * 2, 3);
        let third = moved(load32(&b.hmask), g, 2, 1);
        _mm256_sub_epi8(_mm256_or_si256(low, third), splat8(4))
    };
}

/// The scales d·s and mins dmin·m of Q4_K and Q5_K: see [`scales_and_mins`](crate::quant::kquant::scales_and_mins), here four at a time.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4k_head(d: [u8; 2], dmin: [u8; 2], packed: &[u8; 12]) -> Head {
    let [a, b, c]: [u32; 3] = bytemuck::pod_read_unaligned::<[[u8; 4]; 3]>(packed).map(u32::from_le_bytes);
    let (low, high, six) = (0x0f0f_0f0f, 0x0303_0303, 0x3f3f_3f3f);
    let scales = (a & six) as u64 | ((c & low | (a >> 6 & high) << 4) as u64) << 32;
    let mins = (b & six) as u64 | ((c >> 4 & low | (b >> 6 & high) << 4) as u64) << 32;
    let times = |q: u64, d: [u8; 2]| {
        let q = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(q as i64)));
        _mm256_mul_ps(q, _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(u16::from_le_bytes(d) as i32))))
    };
    let zero = _mm256_setzero_ps();
    let mut head = Head { scales: [0.0; 16], mins: [0.0; 16] };
    super::store(&mut head.scales, [times(scales, d), zero]);
    super::store(&mut head.mins, [times(mins, dmin), zero]);
    head
}

codes! {
    Q4K: BlockQ4K,
    const MINS: bool = true;
    const STAND: Stand = Stand::Nibbles;
    const SPREAD: i32 = 15;
    head |b| q4k_head(b.d, b.dmin, &b.scales);
    codes |b, g| bits(load32(&b.qs.as_chunks::<32>().0[g / 2]), g % 2 * 4, 15);
    standing |b, g| load32(&b.qs.as_chunks::<32>().0[g / 2]);
}

codes! {
    Q5K: BlockQ5K,
    const MINS: bool = true;
    const STAND: Stand = Stand::Unsigned;
    const SPREAD: i32 = 31;
    head |b| q4k_head(b.d, b.dmin, &b.scales);
    codes |b, g| {
        let low = bits(load32(&b.qs.as_chunks::<32>().0[g / 2]), g % 2 * 4, 15);
        _mm256_or_si256(low, moved(load32(&b.qh), g, 4, 1))
    };
}

codes! {
    Q6K: BlockQ6K,
    const HALVES: bool = true;
    const LEAST: i32 = -32;
    const SPREAD: i32 = 63;
    head |b| {
        let d = super::splat_f16(b.d);
        let mut head = Head { scales: [0.0; 16], mins: [0.0; 16] };
        super::store(&mut head.scales, super::mul(super::signed(load16(bytemuck::cast_ref(&b.scales))), d));
        head
    };
    codes |b, g| {
        let (half, quarter) = (g / 4, g % 4);
        let low = bits(load32(&b.ql.as_chunks::<32>().0[half * 2 + quarter % 2]), quarter / 2 * 4, 15);
        let high = moved(load32(&b.qh.as_chunks::<32>().0[half]), quarter * 2, 4, 3);
        _mm256_sub_epi8(_mm256_or_si256(low, high), splat8(32))
    };
}
