//! The SIMD levels: one body, and for each level a file of primitives.
//!
//! Design:
//! - **A level is a type `V` of 16 f32 lanes and some thirty functions on it** (`load`, `fma`, `reduce`, …), in registers of
//!   16 (`avx512`), 8 (`avx2`) or 4 (`neon`). `lane_kernels!` writes the operations over them, `block_kernels!` the reading
//!   of quantized weights. A macro and not a generic function, because `#[target_feature]` takes no parameter: in this form
//!   every function has its level's features, the intrinsics in it are safe to call, and closures inherit the features.
//! - **Two orders for the sums of products**, both within the bound of the scalar order, sums of [`SUM`] terms that are added one after the other. Of few tokens
//!   (`gemv`, narrow strips) term k goes to lane k mod 16 by a fused multiply-add, k ascending, in sums over [`PART`] columns that are added up;
//!   then the lanes are added in a tree, halves first (`reduce`). Of many (wide strips) each lane is a token, whose terms follow each other.
//!   The order depends neither on the weight's type nor on the rows that are worked on together, and is one on every level: a token gets the same
//!   bits in every batch of two to nine, and in every wide strip. One token alone gets those of few, but for block types that are multiplied as
//!   codes (`avx2/codes.rs`, `avx512/codes.rs`): all of them on AVX2, on AVX-512 the K-quants and what it has no unpacking of its own for. These
//!   take the scales out of the sum, within the same bound. `plain`, the same lanes in plain Rust, is what tests hold a level against,
//!   whichever level a processor has.
//! - **Sums of norms, softmax and scores** have term k in lane k mod 16 throughout.
//! - **Weights are what [`crate::quant`] says, to the bit**, so the rounding bound of a product needs nothing but Σ|x·w|, and
//!   there is no floor of its own for each type.
//! - **What must move.** One token (`gemv`): every byte of the matrix once, for 2 flops a weight. Where weights are
//!   cheap to unpack memory is the limit, and `GEMV_ROWS` rows go together to share the loads of x; block types are bound by
//!   arithmetic still, which codes halve on AVX2 and make 0.6 (Q6_K) to 0.9 (Q4_K) of on AVX-512. Many tokens (`add_part`): a part of `TILE` rows is unpacked
//!   into the first-level cache, 12 KiB, and meets all tokens there, so what is unpacked is neither written to memory nor read back. Their sums
//!   fill most of the registers, so arithmetic is the limit: for 32 tokens 16 cycles of multiplying stand beside 3 to 6 of unpacking 16 weights.
//! - **int8 activations** (`int8_kernels!`) meet the codes of block types as bytes, for `cpu:int8`. There is no plain-Rust level of it: its
//!   definition is the contract, which the oracle emulates.
//! - Intrinsics stay out of closures that are handed to the standard library (`array::map`, `from_fn`): those functions are
//!   compiled without the features, so such a closure would be a call for every register.
//! - Every function of a level needs the features of that [`Level`](super::Level) and nothing else: the pointers that loads
//!   and stores take are made from references to arrays, or from slices and their lengths.

// Where no level exists, nothing but the tests uses the body.
#![cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code, unused_imports, unused_macros))]
// Loops over registers count: an iterator over an array of them would keep the array in memory.
#![allow(clippy::needless_range_loop)]

mod blocks;
pub(super) mod exp;
#[cfg(any(test, target_arch = "aarch64"))]
mod fields;
#[cfg(target_arch = "x86_64")]
mod int8;
mod lanes;
mod unblocked;

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
#[cfg(test)]
pub(super) mod plain;

use super::packed::{Packed, Strips};

/// Columns of weights that are unpacked together, of some rows: they stay in the first-level cache while all tokens pass by. Whole blocks of
/// every type.
pub(super) const PART: usize = 256;
/// Terms of a product that one sum takes after the other; then such sums are added. It divides [`PART`]. Of 64 the loads and stores of sums would be
/// 3 % less time, and the bound at 128 columns 1.6 times the scalar one.
pub(super) const SUM: usize = super::scalar::BLOCK;

/// Asks for the memory `ahead` bytes behind these bytes, as much as they are, whether or not it is there.
pub(super) fn prefetch(bytes: &[u8], ahead: usize) {
    (0..bytes.len()).step_by(64).for_each(|line| blocks::prefetch(bytes.as_ptr().wrapping_add(line), ahead));
}

/// Sixteen values in one line of the cache: buffers of these are read with one access a register.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub [f32; 16]);
