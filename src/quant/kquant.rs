//! The K-quants: 256 weights a block, with quantized scales of 16 or 32 weights under one or two halves.
//!
//! Weights are cut into groups that share a scale; a loop here runs over groups, then over a group's weights. The bits of
//! neighbouring groups interleave: a byte holds weights that are 32 (64 in Q6_K) apart.

use bytemuck::{Pod, Zeroable};

use super::GgmlType;
use super::block::{Block, check, f16};

/// 16 groups of 16. w = (d · scale) · q − (dmin · min); q of 2 bits, scale and min of 4.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    /// Scale in the low nibble, min in the high one.
    pub scales: [u8; 16],
    pub qs: [u8; 64],
    pub d: [u8; 2],
    pub dmin: [u8; 2],
}

/// 16 groups of 16. w = (d · scale) · q; q in −4..4, scale in −32..32.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ3K {
    /// The third bit of every weight; set means that nothing is subtracted.
    pub hmask: [u8; 32],
    pub qs: [u8; 64],
    pub scales: [u8; 12],
    pub d: [u8; 2],
}

/// 8 groups of 32. w = (d · scale) · q − (dmin · min); q of 4 bits, scale and min of 6.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4K {
    pub d: [u8; 2],
    pub dmin: [u8; 2],
    pub scales: [u8; 12],
    pub qs: [u8; 128],
}

/// 8 groups of 32. w = (d · scale) · q − (dmin · min); q of 5 bits, scale and min of 6.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    pub d: [u8; 2],
    pub dmin: [u8; 2],
    pub scales: [u8; 12],
    /// The fifth bit: bit `g` of byte `l` is that of weight `l` of group `g`.
    pub qh: [u8; 32],
    pub qs: [u8; 128],
}

/// 16 groups of 16. w = (d · scale) · q; q in −32..32, scale a signed byte.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ6K {
    pub ql: [u8; 128],
    pub qh: [u8; 64],
    pub scales: [i8; 16],
    pub d: [u8; 2],
}

const _: () = check::<BlockQ2K, 256>();
const _: () = check::<BlockQ3K, 256>();
const _: () = check::<BlockQ4K, 256>();
const _: () = check::<BlockQ5K, 256>();
const _: () = check::<BlockQ6K, 256>();

impl Block<256> for BlockQ2K {
    const TYPE: GgmlType = GgmlType::Q2_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (f16(self.d), f16(self.dmin));
        for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * (self.scales[g] & 15) as f32;
            let min = dmin * (self.scales[g] >> 4) as f32;
            let (bytes, shift) = two_bits(&self.qs, g);
            for (o, q) in out.iter_mut().zip(bytes) {
                *o = scale * (q >> shift & 3) as f32 - min;
            }
        }
    }
}

impl Block<256> for BlockQ3K {
    const TYPE: GgmlType = GgmlType::Q3_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = f16(self.d);
        let scales = q3k_scales(&self.scales);
        for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * scales[g] as f32;
            let (bytes, shift) = two_bits(&self.qs, g);
            let high = &self.hmask[g % 2 * 16..][..16];
            for ((o, q), h) in out.iter_mut().zip(bytes).zip(high) {
                let offset = if h >> (g / 2) & 1 == 1 { 0 } else { 4 };
                *o = scale * ((q >> shift & 3) as i8 - offset) as f32;
            }
        }
    }
}

impl Block<256> for BlockQ4K {
    const TYPE: GgmlType = GgmlType::Q4_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (f16(self.d), f16(self.dmin));
        let (scales, mins) = scales_and_mins(&self.scales);
        for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let scale = d * scales[g] as f32;
            let min = dmin * mins[g] as f32;
            let (bytes, shift) = nibbles(&self.qs, g);
            for (o, q) in out.iter_mut().zip(bytes) {
                *o = scale * (q >> shift & 15) as f32 - min;
            }
        }
    }
}

impl Block<256> for BlockQ5K {
    const TYPE: GgmlType = GgmlType::Q5_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (f16(self.d), f16(self.dmin));
        let (scales, mins) = scales_and_mins(&self.scales);
        for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let scale = d * scales[g] as f32;
            let min = dmin * mins[g] as f32;
            let (bytes, shift) = nibbles(&self.qs, g);
            for ((o, q), h) in out.iter_mut().zip(bytes).zip(&self.qh) {
                *o = scale * (q >> shift & 15 | (h >> g & 1) << 4) as f32 - min;
            }
        }
    }
}

impl Block<256> for BlockQ6K {
    const TYPE: GgmlType = GgmlType::Q6_K;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = f16(self.d);
        // A scale spans 16 weights, a run of bits 32: so runs first, each with its two scales.
        for (r, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (half, quarter) = (r / 4, r % 4);
            let low = &self.ql[half * 64 + quarter % 2 * 32..][..32];
            let high = &self.qh[half * 32..][..32];
            for (s, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let scale = d * self.scales[r * 2 + s] as f32;
                for ((o, l), h) in out.iter_mut().zip(&low[s * 16..]).zip(&high[s * 16..]) {
                    let q = l >> (quarter / 2 * 4) & 15 | (h >> (quarter * 2) & 3) << 4;
                    *o = scale * (q as i8 - 32) as f32;
                }
            }
        }
    }
}

/// Where the 16 two-bit weights of group `g` are: their bytes, and how far up in each.
fn two_bits(qs: &[u8; 64], g: usize) -> (&[u8], usize) {
    (&qs[g / 8 * 32 + g % 2 * 16..][..16], g / 2 % 4 * 2)
}

/// Where the 32 four-bit weights of group `g` are: their bytes, and how far up in each.
fn nibbles(qs: &[u8; 128], g: usize) -> (&[u8], usize) {
    (&qs[g / 2 * 32..][..32], g % 2 * 4)
}

/// Q3_K's 16 scales. Their low four bits fill 8 bytes nibble by nibble, their high two the next 4 bytes.
pub fn q3k_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|g| {
        let low = packed[g % 8] >> (g / 8 * 4) & 15;
        let high = packed[8 + g % 4] >> (g / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The 8 scales and 8 mins of Q4_K and Q5_K, 6 bits each in 12 bytes: the first four of both lie in the low bits of bytes 0..4 and
/// 4..8, the last four have their low nibbles in bytes 8..12 and their high bits above the first four.
pub fn scales_and_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let scale = |g| if g < 4 { packed[g] & 63 } else { packed[g + 4] & 15 | packed[g - 4] >> 6 << 4 };
    let min = |g| if g < 4 { packed[g + 4] & 63 } else { packed[g + 4] >> 4 | packed[g] >> 6 << 4 };
    (std::array::from_fn(scale), std::array::from_fn(min))
}
