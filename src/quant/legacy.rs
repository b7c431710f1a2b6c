//! The types of one scale per 32 weights: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Byte `j` of `qs` holds weight `j` in its low nibble and weight `j + 16` in its high one. A fifth bit, where there is one, is bit
//! `j` of `qh` taken as a little-endian u32.

use bytemuck::{Pod, Zeroable};

use super::GgmlType;
use super::block::{Block, check, f16};

/// w = d · (q − 8), q of 4 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    pub d: [u8; 2],
    pub qs: [u8; 16],
}

/// w = d · q + m, q of 4 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    pub d: [u8; 2],
    pub m: [u8; 2],
    pub qs: [u8; 16],
}

/// w = d · (q − 16), q of 5 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    pub d: [u8; 2],
    pub qh: [u8; 4],
    pub qs: [u8; 16],
}

/// w = d · q + m, q of 5 bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    pub d: [u8; 2],
    pub m: [u8; 2],
    pub qh: [u8; 4],
    pub qs: [u8; 16],
}

/// w = d · q, q a signed byte.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    pub d: [u8; 2],
    pub qs: [i8; 32],
}

const _: () = check::<BlockQ4_0, 32>();
const _: () = check::<BlockQ4_1, 32>();
const _: () = check::<BlockQ5_0, 32>();
const _: () = check::<BlockQ5_1, 32>();
const _: () = check::<BlockQ8_0, 32>();

impl Block<32> for BlockQ4_0 {
    const TYPE: GgmlType = GgmlType::Q4_0;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = f16(self.d);
        for (j, q) in self.qs.iter().enumerate() {
            out[j] = d * ((q & 15) as i8 - 8) as f32;
            out[j + 16] = d * ((q >> 4) as i8 - 8) as f32;
        }
    }
}

impl Block<32> for BlockQ4_1 {
    const TYPE: GgmlType = GgmlType::Q4_1;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (f16(self.d), f16(self.m));
        for (j, q) in self.qs.iter().enumerate() {
            out[j] = d * (q & 15) as f32 + m;
            out[j + 16] = d * (q >> 4) as f32 + m;
        }
    }
}

impl Block<32> for BlockQ5_0 {
    const TYPE: GgmlType = GgmlType::Q5_0;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = f16(self.d);
        let (low, high) = five_bits(&self.qs, self.qh);
        for j in 0..16 {
            out[j] = d * (low[j] as i8 - 16) as f32;
            out[j + 16] = d * (high[j] as i8 - 16) as f32;
        }
    }
}

impl Block<32> for BlockQ5_1 {
    const TYPE: GgmlType = GgmlType::Q5_1;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (f16(self.d), f16(self.m));
        let (low, high) = five_bits(&self.qs, self.qh);
        for j in 0..16 {
            out[j] = d * low[j] as f32 + m;
            out[j + 16] = d * high[j] as f32 + m;
        }
    }
}

impl Block<32> for BlockQ8_0 {
    const TYPE: GgmlType = GgmlType::Q8_0;

    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = f16(self.d);
        for (o, q) in out.iter_mut().zip(self.qs) {
            *o = q as f32 * d;
        }
    }
}

/// The 5-bit values of weights 0..16 and of weights 16..32.
fn five_bits(qs: &[u8; 16], qh: [u8; 4]) -> ([u8; 16], [u8; 16]) {
    let qh = u32::from_le_bytes(qh);
    let bit = |j: usize| ((qh >> j & 1) << 4) as u8;
    (std::array::from_fn(|j| qs[j] & 15 | bit(j)), std::array::from_fn(|j| qs[j] >> 4 | bit(j + 16)))
}
