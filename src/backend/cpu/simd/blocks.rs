//! Reading quantized blocks as registers of f32 weights.
//!
//! Design:
//! - A [`BlockFormat`] yields a block's weights; `unpack` stores them and `gemv` multiplies them. There is no other reader of the
//!   bits in a level.

use bytemuck::Pod;

/// How a type's blocks become weights, in their natural order: `N` registers of 16 a step.
///
/// # Safety
/// Both functions need the features of the level whose registers `V` are.
pub(super) trait BlockFormat<V, const N: usize> {
    type Block: Pod;
    /// Steps in a block.
    const STEPS: usize;
    /// What all steps of a block share.
    type Head: Copy + Default;
    unsafe fn head(block: &Self::Block) -> Self::Head;
    unsafe fn step(block: &Self::Block, head: &Self::Head, step: usize) -> [V; N];
}

/// Writes the functions that read blocks into a level's module, each with the attribute `features`.
///
/// The module has what `lane_kernels` asks for, and the constant `GEMV_ROWS`: how many rows of blocks share the loads of x.
macro_rules! block_kernels {
    (#[$features:meta]) => {
        /// The kernels for the blocks of a format.
        const fn kernels<F: BlockFormat<V, N>, const N: usize>() -> BlockKernels {
            BlockKernels { unpack: unpack::<F, N>, gemv: gemv::<F, N>, prepare: None }
        }

        /// See [`Unpack`](crate::backend::cpu::kernels::Unpack).
        #[$features]
        fn unpack<F: BlockFormat<V, N>, const N: usize>(bytes: &[u8], out: &mut [f32]) {
            let blocks: &[F::Block] = bytemuck::cast_slice(bytes);
            let width = F::STEPS * N * 16;
            assert_eq!(blocks.len() * width, out.len());
            for (block, out) in blocks.iter().zip(out.chunks_exact_mut(width)) {
                // SAFETY: this function has the features.
                let head = unsafe { F::head(block) };
                for (step, out) in out.chunks_exact_mut(N * 16).enumerate() {
                    // SAFETY: as above.
                    let weights = unsafe { F::step(block, &head, step) };
                    for (out, v) in out.as_chunks_mut::<16>().0.iter_mut().zip(weights) {
                        store(out, v);
                    }
                }
            }
        }

        /// See [`Gemv`](crate::backend::cpu::kernels::Gemv).
        #[$features]
        fn gemv<F: BlockFormat<V, N>, const N: usize>(w: &[u8], row_bytes: usize, x: &[f32], out: &mut [f32]) {
            assert_eq!(w.len(), row_bytes * out.len());
            let row = |r: usize| bytemuck::cast_slice::<u8, F::Block>(&w[r * row_bytes..][..row_bytes]);
            let (groups, rest) = out.as_chunks_mut::<GEMV_ROWS>();
            let grouped = groups.len() * GEMV_ROWS;
            for (g, out) in groups.iter_mut().enumerate() {
                *out = gemv_rows::<F, N, GEMV_ROWS>(std::array::from_fn(|r| row(g * GEMV_ROWS + r)), x);
            }
            for (r, out) in rest.iter_mut().enumerate() {
                [*out] = gemv_rows::<F, N, 1>([row(grouped + r)], x);
            }
        }

        /// Σ x·w for `R` rows.
        #[inline]
        #[$features]
        fn gemv_rows<F: BlockFormat<V, N>, const N: usize, const R: usize>(w: [&[F::Block]; R], x: &[f32]) -> [f32; R] {
            let blocks = w[0].len();
            let x = x.as_chunks::<16>().0;
            assert!(w.iter().all(|w| w.len() == blocks) && x.len() == blocks * F::STEPS * N);
            // The same place in the next rows: they follow these, but in pages that the processor does not look into by itself.
            let ahead = R * blocks * size_of::<F::Block>();
            let (mut total, mut sums) = ([splat(0.0); R], [splat(0.0); R]);
            let in_part = PART / (F::STEPS * N * 16);
            for b in 0..blocks {
                let mut heads = [F::Head::default(); R];
                for r in 0..R {
                    // SAFETY: b is below every row's number of blocks; this function has the features.
                    heads[r] = unsafe { F::head(w[r].get_unchecked(b)) };
                    prefetch(w[r][b..].as_ptr(), ahead);
                }
                for step in 0..F::STEPS {
                    let mut chunks = [splat(0.0); N];
                    for i in 0..N {
                        // SAFETY: there are STEPS · N chunks of x for every block.
                        chunks[i] = load(unsafe { x.get_unchecked((b * F::STEPS + step) * N + i) });
                    }
                    for r in 0..R {
                        // SAFETY: as for the heads.
                        let weights = unsafe { F::step(w[r].get_unchecked(b), &heads[r], step) };
                        for i in 0..N {
                            sums[r] = fma(chunks[i], weights[i], sums[r]);
                        }
                    }
                }
                if (b + 1) % in_part == 0 || b + 1 == blocks {
                    for r in 0..R {
                        total[r] = add(total[r], sums[r]);
                        sums[r] = splat(0.0);
                    }
                }
            }
            let mut out = [0.0; R];
            for r in 0..R {
                out[r] = reduce(total[r]);
            }
            out
        }
    };
}
pub(super) use block_kernels;

/// Asks for the memory `ahead` bytes behind a block, as much as a block is, whether or not it is there. Only x86 has a stable
/// intrinsic for it; elsewhere the processor is left to itself.
#[inline]
pub(super) fn prefetch<B>(block: *const B, ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of::<B>()).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint: it reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(block.cast::<i8>().wrapping_add(ahead).wrapping_add(line)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (block, ahead);
}
