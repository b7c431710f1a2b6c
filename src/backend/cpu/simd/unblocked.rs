//! The formats whose weights are numbers by themselves.

/// Writes F32, F16 and BF16 into a level's module, each function with the attribute `features`.
///
/// The module has what `block_kernels` asks for, and the conversions of 16 halves that are called here.
macro_rules! unblocked_formats {
    (#[$features:meta]) => {
        use crate::op::GgmlType;

        /// The kernels for values of `ty`, if it has no blocks.
        fn unblocked(ty: GgmlType) -> Option<BlockKernels> {
            Some(match ty {
                GgmlType::F32 => kernels::<F32, _>(),
                GgmlType::F16 => kernels::<F16, _>(),
                GgmlType::BF16 => kernels::<Bf16, _>(),
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
    };
}
pub(super) use unblocked_formats;
