//! One and two bits a weight under one half: Q1_0, w = ±d, and Q2_0, w = d · (q − 1) with q of 0 to 3. A byte holds neighbours, the first
//! lowest.

use bytemuck::{Pod, Zeroable};

use super::GgmlType;
use super::block::{Block, check, f16};

/// A bit a weight, set for plus.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ1_0 {
    pub d: [u8; 2],
    pub qs: [u8; 16],
}

/// Two bits a weight.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2_0 {
    pub d: [u8; 2],
    pub qs: [u8; 16],
}

const _: () = check::<BlockQ1_0, 128>();
const _: () = check::<BlockQ2_0, 64>();

impl Block<128> for BlockQ1_0 {
    const TYPE: GgmlType = GgmlType::Q1_0;

    fn dequantize(&self, out: &mut [f32; 128]) {
        let d = f16(self.d);
        for (out, q) in out.as_chunks_mut::<8>().0.iter_mut().zip(self.qs) {
            for (i, o) in out.iter_mut().enumerate() {
                *o = if q >> i & 1 == 1 { d } else { -d };
            }
        }
    }
}

impl Block<64> for BlockQ2_0 {
    const TYPE: GgmlType = GgmlType::Q2_0;

    fn dequantize(&self, out: &mut [f32; 64]) {
        let d = f16(self.d);
        for (out, q) in out.as_chunks_mut::<4>().0.iter_mut().zip(self.qs) {
            for (i, o) in out.iter_mut().enumerate() {
                *o = ((q >> (2 * i) & 3) as i8 - 1) as f32 * d;
            }
        }
    }
}
