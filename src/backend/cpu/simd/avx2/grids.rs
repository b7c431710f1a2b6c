//! The types whose codes are points of a grid, with signs (IQ2, IQ3) or a shift by an eighth (IQ1).

use std::arch::x86_64::*;

use super::codes::{Codes, Head};
use super::formats::f16;
use super::formats::{codes, spread};
use crate::quant::iquant::{BlockIQ1M, BlockIQ1S, BlockIQ2S, BlockIQ2XS, BlockIQ2XXS, BlockIQ3S, BlockIQ3XXS};
use crate::quant::iquant_grids as grids;

/// For 7 bits, the same with an eighth that makes the number of ones even.
static EVEN: [u8; 128] = {
    let mut even = [0; 128];
    let mut i = 0;
    while i < 128 {
        even[i] = i as u8 | ((i as u8).count_ones() as u8 & 1) << 7;
        i += 1;
    }
    even
};

/// Nibble `i`, the low one of each byte first.
#[inline]
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (i % 2 * 4) & 15
}

/// The scales d · (½ + s) · `factor`, which no rounding touches.
#[inline]
fn half_steps(d: f32, factor: f32, s: impl Fn(usize) -> u32) -> Head {
    Head { scales: std::array::from_fn(|i| d * (0.5 + s(i) as f32) * factor), mins: [0.0; 16] }
}

/// Four points of 8.
#[inline]
#[target_feature(enable = "avx2")]
fn eights(points: [&[i8; 8]; 4]) -> __m256i {
    let [a, b, c, d] = points.map(|p| i64::from_le_bytes(bytemuck::cast(*p)));
    _mm256_setr_epi64x(a, b, c, d)
}

/// Eight points of 4.
#[inline]
#[target_feature(enable = "avx2")]
fn fours(points: [&[i8; 4]; 8]) -> __m256i {
    let [a, b, c, d, e, f, g, h] = points.map(|p| i32::from_le_bytes(bytemuck::cast(*p)));
    _mm256_setr_epi32(a, b, c, d, e, f, g, h)
}

/// The codes, negative where a bit of `signs` is set.
#[inline]
#[target_feature(enable = "avx2")]
fn signed(codes: __m256i, signs: u32) -> __m256i {
    let minus = spread(signs);
    _mm256_sub_epi8(_mm256_xor_si256(codes, minus), minus)
}

/// Four times 7 bits of signs.
#[inline]
fn even_signs(packed: u32) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| EVEN[(packed >> (7 * i) & 127) as usize]))
}

/// Points of IQ1 as eighths: each value times 8, and the byte of `shifts` for its point, which is 1 or −1, added.
#[inline]
#[target_feature(enable = "avx2")]
fn eighths(points: __m256i, shifts: [i8; 4]) -> __m256i {
    let times_8 = _mm256_and_si256(_mm256_slli_epi16::<3>(points), _mm256_set1_epi8(0xf8u8 as i8));
    let [a, b, c, d] = shifts.map(|s| i64::from_le_bytes([s as u8; 8]));
    _mm256_add_epi8(times_8, _mm256_setr_epi64x(a, b, c, d))
}

codes! {
    Iq2Xxs: BlockIQ2XXS,
    const LEAST: i32 = -43;
    const SPREAD: i32 = 86;
    head |b| half_steps(f16(b.d), 0.25, |g| u32::from_le_bytes(b.groups[g % 8].signs_and_scale) >> 28);
    codes |b, g| {
        let group = &b.groups[g];
        let signs = even_signs(u32::from_le_bytes(group.signs_and_scale));
        signed(eights(group.points.map(|p| &grids::IQ2_XXS[p as usize])), signs)
    };
}

codes! {
    Iq2Xs: BlockIQ2XS,
    const HALVES: bool = true;
    const LEAST: i32 = -43;
    const SPREAD: i32 = 86;
    head |b| half_steps(f16(b.d), 0.25, |h| nibble(&b.scales, h) as u32);
    codes |b, g| {
        let q = b.qs.as_chunks::<4>().0[g].map(u16::from_le_bytes);
        let signs = u32::from_le_bytes(q.map(|q| EVEN[(q >> 9) as usize]));
        signed(eights(q.map(|q| &grids::IQ2_XS[q as usize & 511])), signs)
    };
}

codes! {
    Iq2S: BlockIQ2S,
    const HALVES: bool = true;
    const LEAST: i32 = -43;
    const SPREAD: i32 = 86;
    head |b| half_steps(f16(b.d), 0.25, |h| nibble(&b.scales, h) as u32);
    codes |b, g| {
        let (low, high) = (b.qs.as_chunks::<4>().0[g], b.qh[g] as usize);
        let point = |i: usize| &grids::IQ2_S[low[i] as usize | (high >> (2 * i) & 3) << 8];
        let signs = u32::from_le_bytes(b.signs.as_chunks::<4>().0[g]);
        signed(eights([point(0), point(1), point(2), point(3)]), signs)
    };
}

codes! {
    Iq3Xxs: BlockIQ3XXS,
    const LEAST: i32 = -62;
    const SPREAD: i32 = 124;
    head |b| half_steps(f16(b.d), 0.5, |g| u32::from_le_bytes(b.signs_and_scales[g % 8]) >> 28);
    codes |b, g| {
        let points = b.qs.as_chunks::<8>().0[g].map(|p| &grids::IQ3_XXS[p as usize]);
        signed(fours(points), even_signs(u32::from_le_bytes(b.signs_and_scales[g])))
    };
}

codes! {
    Iq3S: BlockIQ3S,
    const LEAST: i32 = -15;
    const SPREAD: i32 = 30;
    head |b| {
        let d = f16(b.d);
        Head { scales: std::array::from_fn(|g| d * (1 + 2 * nibble(&b.scales, g % 8)) as f32), mins: [0.0; 16] }
    };
    codes |b, g| {
        let (low, high) = (b.qs.as_chunks::<8>().0[g], b.qh[g] as usize);
        let point = |i: usize| &grids::IQ3_S[low[i] as usize | (high >> i & 1) << 8];
        let points = [point(0), point(1), point(2), point(3), point(4), point(5), point(6), point(7)];
        signed(fours(points), u32::from_le_bytes(b.signs.as_chunks::<4>().0[g]))
    };
}

codes! {
    Iq1S: BlockIQ1S,
    const LEAST: i32 = -9;
    const SPREAD: i32 = 18;
    head |b| {
        let d = f16(b.d);
        let scale = |g: usize| 2 * (u16::from_le_bytes(b.qh[g % 8]) >> 12 & 7) + 1;
        Head { scales: std::array::from_fn(|g| d * scale(g) as f32 * 0.125), mins: [0.0; 16] }
    };
    codes |b, g| {
        let (low, packed) = (b.qs.as_chunks::<4>().0[g], u16::from_le_bytes(b.qh[g]) as usize);
        let point = |i: usize| &grids::IQ1[low[i] as usize | (packed >> (3 * i) & 7) << 8];
        let shift = if packed >> 15 == 0 { 1 } else { -1 };
        eighths(eights([point(0), point(1), point(2), point(3)]), [shift; 4])
    };
}

codes! {
    Iq1M: BlockIQ1M,
    const HALVES: bool = true;
    const LEAST: i32 = -9;
    const SPREAD: i32 = 18;
    head |b| {
        let packed = b.scales.map(u16::from_le_bytes);
        let d = packed[0] >> 12 | packed[1] >> 12 << 4 | packed[2] >> 12 << 8 | packed[3] >> 12 << 12;
        let d = f16(d.to_le_bytes());
        let scale = |h: usize| 2 * (packed[h / 4] >> (h % 4 * 3) & 7) + 1;
        Head { scales: std::array::from_fn(|h| d * scale(h) as f32 * 0.125), mins: [0.0; 16] }
    };
    codes |b, g| {
        let low = b.qs.as_chunks::<4>().0[g];
        let high = |i: usize| nibble(&b.qh, g * 4 + i) as usize;
        let point = |i: usize| &grids::IQ1[low[i] as usize | (high(i) & 7) << 8];
        let shift = |i: usize| if high(i) >> 3 == 0 { 1 } else { -1 };
        eighths(eights([point(0), point(1), point(2), point(3)]), [shift(0), shift(1), shift(2), shift(3)])
    };
}
