//! What all block layouts share: the trait that a layout implements, and the conversions of its scales.

use bytemuck::Pod;

use super::GgmlType;

/// One block as files store it: `N` weights in `size_of::<Self>()` bytes, in any alignment, multi-byte fields little-endian.
pub trait Block<const N: usize>: Pod {
    const TYPE: GgmlType;

    /// Writes the block's weights in order.
    ///
    /// This is the definition of the type, to the bit: each operator is one f32 operation rounded to nearest, in the order
    /// written, never fused. It is gguf-py's order, which is what makes subnormal and overflowing scales come out the same.
    fn dequantize(&self, out: &mut [f32; N]);
}

/// Fails the build if a layout is not the size that [`GgmlType`] says, or could not be laid over a file's bytes.
pub(super) const fn check<B: Block<N>, const N: usize>() {
    assert!(size_of::<B>() == B::TYPE.block_bytes());
    assert!(align_of::<B>() == 1);
    assert!(N == B::TYPE.block_len());
}

/// Dequantizes whole blocks. The caller has matched the two lengths.
pub(super) fn dequantize_all<B: Block<N>, const N: usize>(bytes: &[u8], out: &mut [f32]) {
    let blocks: &[B] = bytemuck::cast_slice(bytes);
    let (out, _) = out.as_chunks_mut::<N>();
    for (block, out) in blocks.iter().zip(out) {
        block.dequantize(out);
    }
}

/// An IEEE half as f32: exact, subnormals included; a NaN keeps its payload.
///
/// Without the sign, a half's bits 13 places up are an f32 with an exponent 112 too small, subnormals included, so one exact
/// multiplication by 2¹¹² converts both; only infinity and NaN need their exponent set by hand. No table, no branch, and the same
/// result on machines with and without a conversion instruction.
#[inline]
pub fn f16(bytes: [u8; 2]) -> f32 {
    let bits = u16::from_le_bytes(bytes) as u32;
    let magnitude = (bits & 0x7fff) << 13;
    let finite = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let magnitude = if magnitude < 0x7c00 << 13 { finite.to_bits() } else { magnitude | 0x7f80_0000 };
    f32::from_bits(magnitude | (bits & 0x8000) << 16)
}

/// A bfloat16 as f32: the upper half of its bits.
#[inline]
pub fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits((u16::from_le_bytes(bytes) as u32) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_equals_the_half_crate_on_every_bit_pattern() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16(bits.to_le_bytes()), half::f16::from_bits(bits).to_f32());
            // The crate quiets signalling NaNs where the processor does.
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#06x}");
        }
    }
}
