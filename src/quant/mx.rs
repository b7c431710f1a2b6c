//! The OCP microscaling type MXFP4: 32 four-bit floats (E2M1) under one power of two (E8M0).

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

const _: () = check::<BlockMXFP4, 32>();

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

/// 2^(e − 128), which is subnormal in f32 for e of 0 and 1. E8M0's NaN, 255, is 2¹²⁷ here, as in ggml.
pub fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 1 << 21 << e } else { (e as u32 - 1) << 23 })
}
