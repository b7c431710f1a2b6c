//! Four-bit floats (E2M1) under scales of eight bits: the OCP microscaling type MXFP4, 32 under a power of two (E8M0), and NVIDIA's NVFP4, 16
//! under a float without a sign (UE4M3).

use bytemuck::{Pod, Zeroable};

use super::GgmlType;
use super::block::{Block, check};

/// w = 2^(e − 128) · level: half the scale of the standard, for [`E2M1_LEVELS`] are doubled to be integers.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockMXFP4 {
    pub e: u8,
    /// Byte `j` holds weight `j` in its low nibble and weight `j + 16` in its high one.
    pub qs: [u8; 16],
}

/// 4 groups of 16. w = ½ · scale · level.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockNVFP4 {
    /// A scale for each group: 4 bits of exponent, 3 of mantissa.
    pub d: [u8; 4],
    /// Byte `j` of a group's 8 holds weight `j` in its low nibble and weight `j + 8` in its high one.
    pub qs: [[u8; 8]; 4],
}

const _: () = check::<BlockMXFP4, 32>();
const _: () = check::<BlockNVFP4, 64>();

/// Twice the values of E2M1. Its negative zero is 0 here, as in ggml.
pub const E2M1_LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl Block<32> for BlockMXFP4 {
    const TYPE: GgmlType = GgmlType::MXFP4;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = e8m0_half(self.e);
        for (j, q) in self.qs.iter().enumerate() {
            out[j] = d * E2M1_LEVELS[(q & 15) as usize] as f32;
            out[j + 16] = d * E2M1_LEVELS[(q >> 4) as usize] as f32;
        }
    }
}

impl Block<64> for BlockNVFP4 {
    const TYPE: GgmlType = GgmlType::NVFP4;

    fn dequantize(&self, out: &mut [f32; 64]) {
        for ((out, d), qs) in out.as_chunks_mut::<16>().0.iter_mut().zip(self.d).zip(&self.qs) {
            let d = ue4m3_half(d);
            for (j, q) in qs.iter().enumerate() {
                out[j] = d * E2M1_LEVELS[(q & 15) as usize] as f32;
                out[j + 8] = d * E2M1_LEVELS[(q >> 4) as usize] as f32;
            }
        }
    }
}

/// Half of a UE4M3. Its NaN, 0x7f, is 0 here, and a bit where a sign would be counts for nothing, as in ggml.
#[inline]
pub fn ue4m3_half(d: u8) -> f32 {
    let (exponent, mantissa) = (d >> 3 & 15, (d & 7) as u32);
    match (d, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa as f32 / 1024.0,
        // Of the bias of 7, and the half, to that of f32.
        _ => f32::from_bits((exponent as u32 + 127 - 8) << 23 | mantissa << 20),
    }
}

/// 2^(e − 128), which is subnormal in f32 for e of 0 and 1. E8M0's NaN, 255, is 2¹²⁷ here, as in ggml.
pub fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 1 << 21 << e } else { (e as u32 - 1) << 23 })
}
