//! The ternary types, w = d · (q − 1) with q of 0, 1, 2: TQ1_0 packs five weights in a byte, TQ2_0 four.

use bytemuck::{Pod, Zeroable};

use super::GgmlType;
use super::block::{Block, check, f16};

/// A byte holds five base-3 digits as a fraction of 256, the last four bytes four.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockTQ1_0 {
    pub qs: [u8; 48],
    pub qh: [u8; 4],
    pub d: [u8; 2],
}

/// Two bits a weight; a byte's weights are 32 apart.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockTQ2_0 {
    pub qs: [u8; 64],
    pub d: [u8; 2],
}

const _: () = check::<BlockTQ1_0, 256>();
const _: () = check::<BlockTQ2_0, 256>();

impl Block<256> for BlockTQ1_0 {
    const TYPE: GgmlType = GgmlType::TQ1_0;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = f16(self.d);
        // Three runs of bytes; within a run the first digits of all its bytes come first, then the second digits, and so on.
        let (five, four) = out.split_at_mut(240);
        let (wide, narrow) = five.split_at_mut(160);
        for (out, bytes) in [(wide, &self.qs[..32]), (narrow, &self.qs[32..]), (four, &self.qh[..])] {
            for (digit, out) in out.chunks_exact_mut(bytes.len()).enumerate() {
                for (o, byte) in out.iter_mut().zip(bytes) {
                    *o = d * (trit(*byte, digit) as i8 - 1) as f32;
                }
            }
        }
    }
}

impl Block<256> for BlockTQ2_0 {
    const TYPE: GgmlType = GgmlType::TQ2_0;

    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = f16(self.d);
        for (r, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (o, q) in out.iter_mut().zip(&self.qs[r / 4 * 32..]) {
                *o = d * ((q >> (r % 4 * 2) & 3) as i8 - 1) as f32;
            }
        }
    }
}

/// Base-3 digit `i` of `byte`, the most significant first: byte / 256 is a fraction 0.abcde in base 3, so multiplying by 3ⁱ and
/// dropping the whole part (the wrap) leaves digit `i` first behind the point, and one more factor of 3 brings it before.
#[inline]
fn trit(byte: u8, i: usize) -> u8 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    ((byte.wrapping_mul(POWERS[i]) as u16 * 3) >> 8) as u8
}
