//! The IQ types: weights as points of a fixed grid ([`iquant_grids`](super::iquant_grids)), with signs and a scale, and
//! IQ4_NL and IQ4_XS, whose 16 levels are not evenly spaced.
//!
//! Where a grid is used, a block is read in groups that share a scale, and a group in points of eight weights (IQ3: two points of
//! four). Signs are one bit a weight, set for minus; where only seven bits are stored for eight weights, the eighth makes their
//! number even.

use bytemuck::{Pod, Zeroable};

use super::GgmlType;
use super::block::{Block, check, f16};
use super::iquant_grids as grids;

/// 8 groups of 32. w = (d · (½ + scale) · ¼) · point · sign.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ2XXS {
    pub d: [u8; 2],
    pub groups: [GroupIQ2XXS; 8],
}

/// 32 weights of IQ2_XXS: 4 points, and a u32 with 4 × 7 sign bits and, on top, 4 bits of scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct GroupIQ2XXS {
    pub points: [u8; 4],
    pub signs_and_scale: [u8; 4],
}

/// 16 groups of 16. w = (d · (½ + scale) · ¼) · point · sign.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ2XS {
    pub d: [u8; 2],
    /// 9 bits of point, 7 of signs.
    pub qs: [[u8; 2]; 32],
    /// A nibble a group.
    pub scales: [u8; 8],
}

/// 16 groups of 16. w = (d · (½ + scale) · ¼) · point · sign.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ2S {
    pub d: [u8; 2],
    /// The low 8 bits of the points.
    pub qs: [u8; 32],
    pub signs: [u8; 32],
    /// The high 2 bits of the points, four in a byte.
    pub qh: [u8; 8],
    /// A nibble a group.
    pub scales: [u8; 8],
}

/// 8 groups of 32. w = (d · (½ + scale) · ½) · point · sign.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ3XXS {
    pub d: [u8; 2],
    pub qs: [u8; 64],
    /// A group's 4 × 7 sign bits and, on top, 4 bits of scale.
    pub signs_and_scales: [[u8; 4]; 8],
}

/// 8 groups of 32. w = (d · (1 + 2 · scale)) · point · sign.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ3S {
    pub d: [u8; 2],
    /// The low 8 bits of the points.
    pub qs: [u8; 64],
    /// The high bit of the points, eight in a byte.
    pub qh: [u8; 8],
    pub signs: [u8; 32],
    /// A nibble a group.
    pub scales: [u8; 4],
}

/// 8 groups of 32. w = (d · (2 · scale + 1)) · (point ± ⅛).
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ1S {
    pub d: [u8; 2],
    /// The low 8 bits of the points.
    pub qs: [u8; 32],
    /// A group's 4 × 3 high bits of points, 3 bits of scale, and on top the sign of its ⅛.
    pub qh: [[u8; 2]; 8],
}

/// 16 groups of 16. w = (d · (2 · scale + 1)) · (point ± ⅛).
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ1M {
    /// The low 8 bits of the points.
    pub qs: [u8; 32],
    /// A nibble a point: its high 3 bits, and on top the sign of its ⅛.
    pub qh: [u8; 16],
    /// Four u16: 4 × 3 bits of scale each, and on top a nibble of d, lowest first.
    pub scales: [[u8; 2]; 4],
}

/// w = d · level.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ4NL {
    pub d: [u8; 2],
    pub qs: [u8; 16],
}

/// 8 groups of 32. w = (d · scale) · level, scale in −32..32.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ4XS {
    pub d: [u8; 2],
    /// The high 2 bits of the scales.
    pub scales_h: [u8; 2],
    /// The low 4 bits of the scales.
    pub scales_l: [u8; 4],
    pub qs: [u8; 128],
}

const _: () = check::<BlockIQ2XXS, 256>();
const _: () = check::<BlockIQ2XS, 256>();
const _: () = check::<BlockIQ2S, 256>();
const _: () = check::<BlockIQ3XXS, 256>();
const _: () = check::<BlockIQ3S, 256>();
const _: () = check::<BlockIQ1S, 256>();
const _: () = check::<BlockIQ1M, 256>();
const _: () = check::<BlockIQ4NL, 32>();
const _: () = check::<BlockIQ4XS, 256>();

impl Block<256> for BlockIQ2XXS {
    const TYPE: GgmlType = GgmlType::IQ2_XXS;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = f16(self.d);
        for (out, group) in out.as_chunks_mut::<32>().0.iter_mut().zip(&self.groups) {
            let packed = u32::from_le_bytes(group.signs_and_scale);
            let scale = d * (0.5 + (packed >> 28) as f32) * 0.25;
            for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                put(out, scale, &grids::IQ2_XXS[group.points[i] as usize], even_signs(packed >> (7 * i)));
            }
        }
    }
}

impl Block<256> for BlockIQ2XS {
    const TYPE: GgmlType = GgmlType::IQ2_XS;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = f16(self.d);
        for (p, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scale = d * (0.5 + nibble(&self.scales, p / 2) as f32) * 0.25;
            let q = u16::from_le_bytes(self.qs[p]);
            put(out, scale, &grids::IQ2_XS[q as usize & 511], even_signs(q as u32 >> 9));
        }
    }
}

impl Block<256> for BlockIQ2S {
    const TYPE: GgmlType = GgmlType::IQ2_S;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = f16(self.d);
        for (p, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scale = d * (0.5 + nibble(&self.scales, p / 2) as f32) * 0.25;
            let high = self.qh[p / 4] >> (p % 4 * 2) & 3;
            put(out, scale, &grids::IQ2_S[point(self.qs[p], high)], self.signs[p]);
        }
    }
}

impl Block<256> for BlockIQ3XXS {
    const TYPE: GgmlType = GgmlType::IQ3_XXS;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = f16(self.d);
        for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let packed = u32::from_le_bytes(self.signs_and_scales[g]);
            let scale = d * (0.5 + (packed >> 28) as f32) * 0.5;
            for (p, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let signs = even_signs(packed >> (p / 2 * 7)) >> (p % 2 * 4);
                put(out, scale, &grids::IQ3_XXS[self.qs[g * 8 + p] as usize], signs);
            }
        }
    }
}

impl Block<256> for BlockIQ3S {
    const TYPE: GgmlType = GgmlType::IQ3_S;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = f16(self.d);
        for (p, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let scale = d * (1 + 2 * nibble(&self.scales, p / 8)) as f32;
            let high = self.qh[p / 8] >> (p % 8) & 1;
            put(out, scale, &grids::IQ3_S[point(self.qs[p], high)], nibble(&self.signs, p));
        }
    }
}

impl Block<256> for BlockIQ1S {
    const TYPE: GgmlType = GgmlType::IQ1_S;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = f16(self.d);
        for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let packed = u16::from_le_bytes(self.qh[g]);
            let scale = d * (2 * (packed >> 12 & 7) + 1) as f32;
            let delta = if packed >> 15 == 0 { 0.125 } else { -0.125 };
            for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let high = (packed >> (3 * i) & 7) as u8;
                put_shifted(out, scale, &grids::IQ1[point(self.qs[g * 4 + i], high)], delta);
            }
        }
    }
}

impl Block<256> for BlockIQ1M {
    const TYPE: GgmlType = GgmlType::IQ1_M;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let scales = self.scales.map(u16::from_le_bytes);
        let d = scales[0] >> 12 | scales[1] >> 12 << 4 | scales[2] >> 12 << 8 | scales[3] >> 12 << 12;
        let d = f16(d.to_le_bytes());
        for (p, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scale = d * (2 * (scales[p / 8] >> (p / 2 % 4 * 3) & 7) + 1) as f32;
            let high = nibble(&self.qh, p);
            let delta = if high >> 3 == 0 { 0.125 } else { -0.125 };
            put_shifted(out, scale, &grids::IQ1[point(self.qs[p], high & 7)], delta);
        }
    }
}

impl Block<32> for BlockIQ4NL {
    const TYPE: GgmlType = GgmlType::IQ4_NL;

    fn dequantize(&self, out: &mut [f32; 32]) {
        put_levels(out, f16(self.d), &self.qs);
    }
}

impl Block<256> for BlockIQ4XS {
    const TYPE: GgmlType = GgmlType::IQ4_XS;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = f16(self.d);
        let qs = self.qs.as_chunks::<16>().0;
        for (g, (out, qs)) in out.as_chunks_mut::<32>().0.iter_mut().zip(qs).enumerate() {
            let high = (u16::from_le_bytes(self.scales_h) >> (2 * g) & 3) as u8;
            let scale = (nibble(&self.scales_l, g) | high << 4) as i8 - 32;
            put_levels(out, d * scale as f32, qs);
        }
    }
}

/// The levels of IQ4_NL and IQ4_XS.
pub const IQ4_LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 weights by level: byte `j` holds weight `j` in its low nibble and weight `j + 16` in its high one.
#[inline]
fn put_levels(out: &mut [f32; 32], scale: f32, qs: &[u8; 16]) {
    for (j, q) in qs.iter().enumerate() {
        out[j] = scale * IQ4_LEVELS[(q & 15) as usize] as f32;
        out[j + 16] = scale * IQ4_LEVELS[(q >> 4) as usize] as f32;
    }
}

/// One point of a grid, the lowest bit of `signs` first.
#[inline]
fn put<const N: usize>(out: &mut [f32; N], scale: f32, point: &[i8; N], signs: u8) {
    for i in 0..N {
        let magnitude = scale * point[i] as f32;
        out[i] = if signs >> i & 1 == 1 { -magnitude } else { magnitude };
    }
}

/// One point of IQ1's grid, moved by `delta`.
#[inline]
fn put_shifted(out: &mut [f32; 8], scale: f32, point: &[i8; 8], delta: f32) {
    for i in 0..8 {
        out[i] = scale * (point[i] as f32 + delta);
    }
}

/// The number of a grid point of which the low 8 bits and the others lie apart.
#[inline]
fn point(low: u8, high: u8) -> usize {
    low as usize | (high as usize) << 8
}

/// Nibble `i`, the low one of each byte first.
#[inline]
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (i % 2 * 4) & 15
}

/// The lowest 7 bits of `signs`, and an eighth that makes the number of minus signs even.
#[inline]
fn even_signs(signs: u32) -> u8 {
    let signs = signs as u8 & 127;
    signs | (signs.count_ones() as u8 & 1) << 7
}
