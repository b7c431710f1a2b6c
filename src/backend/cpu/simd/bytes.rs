//! The formats whose weights are bytes, or fields of bytes, under a scale.
//!
//! Design:
//! - Bytes are widened to lanes, converted, and scaled by one multiplication or fused multiply-add. That is bit-equal to the
//!   definition, because the product is exact: a half has 11 significant bits, scale and q at most 11 more together, and only
//!   the subtraction rounds, in both. Q6_K: 11 + 8 + 6 bits, where 8 or 6 are reached by powers of two alone, so 24 suffice.
//! - `avx512` looks most of these weights up instead, and has its own formats.

/// Writes the formats into a level's module, each function with the attribute `features`, and the list of them.
///
/// The module has what `block_kernels` asks for, and the functions on 16 bytes that are called here.
macro_rules! byte_formats {
    (#[$features:meta]) => {
        use crate::op::GgmlType;
        use crate::quant::kquant::{BlockQ4K, BlockQ5K, BlockQ6K, scales_and_mins};
        use crate::quant::legacy::BlockQ8_0;

        /// The kernels for blocks of `ty`, where there are some.
        pub fn blocks(ty: GgmlType) -> Option<BlockKernels> {
            Some(match ty {
                GgmlType::F32 => kernels::<F32, _>(),
                GgmlType::F16 => kernels::<F16, _>(),
                GgmlType::BF16 => kernels::<Bf16, _>(),
                GgmlType::Q8_0 => kernels::<Q8_0, _>(),
                GgmlType::Q4_K => kernels::<Q4K, _>(),
                GgmlType::Q5_K => kernels::<Q5K, _>(),
                GgmlType::Q6_K => kernels::<Q6K, _>(),
                _ => return None,
            })
        }

        struct F32;

        impl BlockFormat<V, 1> for F32 {
            type Block = [[u8; 4]; 16];
            const STEPS: usize = 1;
            type Head = ();
            #[inline]
            unsafe fn head(_: &Self::Block) {}
            #[inline]
            #[$features]
            unsafe fn step(block: &Self::Block, (): &(), _: usize) -> [V; 1] {
                [load(&bytemuck::cast(*block))]
            }
        }

        struct F16;

        impl BlockFormat<V, 1> for F16 {
            type Block = [[u8; 16]; 2];
            const STEPS: usize = 1;
            type Head = ();
            #[inline]
            unsafe fn head(_: &Self::Block) {}
            #[inline]
            #[$features]
            unsafe fn step(block: &Self::Block, (): &(), _: usize) -> [V; 1] {
                [from_f16(block)]
            }
        }

        struct Bf16;

        impl BlockFormat<V, 1> for Bf16 {
            type Block = [[u8; 16]; 2];
            const STEPS: usize = 1;
            type Head = ();
            #[inline]
            unsafe fn head(_: &Self::Block) {}
            #[inline]
            #[$features]
            unsafe fn step(block: &Self::Block, (): &(), _: usize) -> [V; 1] {
                [from_bf16(block)]
            }
        }

        struct Q8_0;

        impl BlockFormat<V, 2> for Q8_0 {
            type Block = BlockQ8_0;
            const STEPS: usize = 1;
            type Head = ();
            #[inline]
            unsafe fn head(_: &BlockQ8_0) {}
            #[inline]
            #[$features]
            unsafe fn step(block: &BlockQ8_0, (): &(), _: usize) -> [V; 2] {
                let d = splat_f16(block.d);
                let qs = bytemuck::cast_ref::<[i8; 32], [[u8; 16]; 2]>(&block.qs);
                [mul(signed(load_bytes(&qs[0])), d), mul(signed(load_bytes(&qs[1])), d)]
            }
        }

        /// The scales d·s and mins dmin·m of Q4_K and Q5_K: 8 and 8.
        #[inline]
        #[$features]
        fn scaled(d: [u8; 2], dmin: [u8; 2], packed: &[u8; 12]) -> [f32; 16] {
            let (scales, mins) = scales_and_mins(packed);
            let q = unsigned(load_bytes(&bytemuck::cast([scales, mins])));
            let mut out = [0.0; 16];
            store(&mut out, mul(halves(splat_f16(d), splat_f16(dmin)), q));
            out
        }

        struct Q4K;

        impl BlockFormat<V, 2> for Q4K {
            type Block = BlockQ4K;
            const STEPS: usize = 8;
            type Head = [f32; 16];
            #[inline]
            #[$features]
            unsafe fn head(block: &BlockQ4K) -> [f32; 16] {
                scaled(block.d, block.dmin, &block.scales)
            }
            #[inline]
            #[$features]
            unsafe fn step(block: &BlockQ4K, head: &[f32; 16], g: usize) -> [V; 2] {
                let qs = &block.qs.as_chunks::<16>().0[g / 2 * 2..][..2];
                let (scale, min) = (splat(head[g]), splat(head[8 + g]));
                let weights = |qs| fms(unsigned(bits(load_bytes(qs), g % 2 * 4, 15)), scale, min);
                [weights(&qs[0]), weights(&qs[1])]
            }
        }

        struct Q5K;

        impl BlockFormat<V, 2> for Q5K {
            type Block = BlockQ5K;
            const STEPS: usize = 8;
            type Head = [f32; 16];
            #[inline]
            #[$features]
            unsafe fn head(block: &BlockQ5K) -> [f32; 16] {
                scaled(block.d, block.dmin, &block.scales)
            }
            #[inline]
            #[$features]
            unsafe fn step(block: &BlockQ5K, head: &[f32; 16], g: usize) -> [V; 2] {
                let qs = &block.qs.as_chunks::<16>().0[g / 2 * 2..][..2];
                let qh = block.qh.as_chunks::<16>().0;
                let (scale, min) = (splat(head[g]), splat(head[8 + g]));
                let weights = |qs, qh| {
                    let (low, fifth) = (bits(load_bytes(qs), g % 2 * 4, 15), bits(load_bytes(qh), g, 1));
                    fms(unsigned(above_nibble(fifth, low)), scale, min)
                };
                [weights(&qs[0], &qh[0]), weights(&qs[1], &qh[1])]
            }
        }

        struct Q6K;

        impl BlockFormat<V, 2> for Q6K {
            type Block = BlockQ6K;
            const STEPS: usize = 8;
            type Head = [f32; 16];
            #[inline]
            #[$features]
            unsafe fn head(block: &BlockQ6K) -> [f32; 16] {
                let q = signed(load_bytes(bytemuck::cast_ref(&block.scales)));
                let mut out = [0.0; 16];
                store(&mut out, mul(q, splat_f16(block.d)));
                out
            }
            #[inline]
            #[$features]
            unsafe fn step(block: &BlockQ6K, head: &[f32; 16], run: usize) -> [V; 2] {
                let (half, quarter) = (run / 4, run % 4);
                let ql = &block.ql.as_chunks::<16>().0[half * 4 + quarter % 2 * 2..][..2];
                let qh = &block.qh.as_chunks::<16>().0[half * 2..][..2];
                let weights = |i: usize| {
                    let low = bits(load_bytes(&ql[i]), quarter / 2 * 4, 15);
                    let high = bits(load_bytes(&qh[i]), quarter * 2, 3);
                    mul(signed(minus_32(above_nibble(high, low))), splat(head[run * 2 + i]))
                };
                [weights(0), weights(1)]
            }
        }
    };
}
pub(super) use byte_formats;
