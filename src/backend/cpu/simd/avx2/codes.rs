//! Blocks as signed byte codes under scales: w = scale · code − min, for 32 weights at a time.
//!
//! Design:
//! - **A type is a [`Codes`]**: its 32 codes of a group as bytes in their natural order, and its scales and mins. `unpack` makes f32
//!   weights of them, `gemv` multiplies them; `formats.rs` and `grids.rs` hold the types.
//! - **`gemv` takes the scale out of the sum**: Σ w·x = Σ_group scale · (Σ code·x) − Σ_group min · (Σ x). A weight then costs an eighth of
//!   a mask, a conversion and a fused multiply-add, and nothing for its scale. No term goes through more than 9 + n/32 roundings,
//!   one in place of the weight's own included, against 32 + n/32 and the products' in the level's order, whose bound so holds for this one
//!   as well. Offsets are what a floor of a product counts apart.
//! - **A code stays where it is in its 32-bit lane**: byte k of the lanes is masked and converted as code · 2⁸ᵏ, without a shift. x is
//!   permuted to fit (`prepare`, once for all rows) and scaled by the opposite power of two. Conversion and powers are exact, unless
//!   |x| is beyond 2¹¹⁶ or so small (2⁻¹¹⁰) that what is lost is below what a flushed activation would be.
//! - One row at a time: its sums, masks and scales are about what 16 registers hold. More rows sharing the loads of x were slower.

use std::arch::x86_64::*;

use bytemuck::Pod;

use super::{prefetch, splat, store};
use crate::backend::cpu::kernels::BlockKernels;

/// How the codes of a group stand in the 32 bytes that `gemv` reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::cpu::simd) enum Stand {
    /// Signed bytes.
    Signed,
    /// Bytes below 128.
    Unsigned,
    /// In the low nibble for even groups, in the high one for odd groups, the other nibble being anything.
    Nibbles,
}

/// Scales and mins of a block: one for each group, or for each half of one.
pub(in crate::backend::cpu::simd) struct Head {
    pub scales: [f32; 16],
    pub mins: [f32; 16],
}

/// How a type's blocks become codes, scales and mins.
///
/// # Safety
/// The functions need this level's features, and a group that the block has.
pub(in crate::backend::cpu::simd) trait Codes {
    type Block: Pod;
    /// Groups of 32 weights in a block.
    const GROUPS: usize = 8;
    /// Whether a scale spans 16 weights instead of a group.
    const HALVES: bool = false;
    const MINS: bool = false;
    const STAND: Stand = Stand::Signed;
    /// The least code.
    const LEAST: i32 = 0;
    /// The largest code less the least.
    const SPREAD: i32;
    unsafe fn head(block: &Self::Block) -> Head;
    /// The codes of a group as bytes, in the order of its weights.
    unsafe fn codes(block: &Self::Block, group: usize) -> __m256i;
    /// The same as they stand.
    #[inline]
    unsafe fn standing(block: &Self::Block, group: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { Self::codes(block, group) }
    }
}

/// The kernels for the blocks of a type.
pub(super) const fn kernels<F: Codes>() -> BlockKernels {
    BlockKernels { unpack: unpack::<F>, gemv: gemv::<F>, prepare: Some(prepare::<F>) }
}

/// See [`Unpack`](crate::backend::cpu::kernels::Unpack).
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack<F: Codes>(bytes: &[u8], out: &mut [f32]) {
    let blocks: &[F::Block] = bytemuck::cast_slice(bytes);
    assert_eq!(blocks.len() * F::GROUPS * 32, out.len());
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(F::GROUPS * 32)) {
        // SAFETY: this function has the features.
        let head = unsafe { F::head(block) };
        for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            // SAFETY: as above; a block has GROUPS groups.
            let codes = unsafe { F::codes(block, g) };
            let halves = [_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes)];
            for h in 0..2 {
                let at = if F::HALVES { g * 2 + h } else { g };
                let (scale, min) = (splat(head.scales[at])[0], splat(head.mins[at])[0]);
                let wide = |bytes| {
                    let codes = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                    // The product is exact, so only the subtraction rounds, as in the definition.
                    if F::MINS { _mm256_fmsub_ps(codes, scale, min) } else { _mm256_mul_ps(codes, scale) }
                };
                let v = [wide(halves[h]), wide(_mm_unpackhi_epi64(halves[h], halves[h]))];
                store(&mut out.as_chunks_mut::<16>().0[h], v);
            }
        }
    }
}

/// What `gemv` multiplies the sums of signed codes, which stand in the highest byte of their lanes, by: half of 2⁻²⁴, so that neither
/// x nor a sum leaves the range; `prepare` multiplies x by the other half.
const HALF_SHIFT: f32 = 1.0 / 4096.0;

/// What x is multiplied by where it meets byte `k` of the lanes.
const fn factor(stand: Stand, odd: bool, k: usize) -> f32 {
    const POWERS: [f32; 4] = [256.0, 1.0, 1.0 / 256.0, 1.0 / 65536.0];
    match (stand, odd, k) {
        (Stand::Signed, ..) => HALF_SHIFT,
        // The highest nibble is shifted down: as a mask it would be the sign.
        (Stand::Nibbles, true, 3) => POWERS[0],
        (Stand::Nibbles, true, _) => POWERS[k] / 16.0,
        _ => POWERS[k],
    }
}

/// What `gemv` multiplies its whole sum by.
const fn rest(stand: Stand) -> f32 {
    match stand {
        Stand::Signed => HALF_SHIFT,
        _ => 1.0 / 256.0,
    }
}

/// See [`Prepare`](crate::backend::cpu::kernels::Prepare): for each group, x where its codes stand, four by eight lanes; then for types
/// with mins the sums of x over groups, or halves of them.
#[target_feature(enable = "avx2,fma,f16c")]
fn prepare<F: Codes>(x: &[f32], out: &mut [f32]) {
    let groups = x.as_chunks::<32>().0;
    let (there, sums) = out.split_at_mut(x.len());
    for (g, (group, there)) in groups.iter().zip(there.as_chunks_mut::<32>().0).enumerate() {
        let factors: [f32; 4] = std::array::from_fn(|k| factor(F::STAND, F::GROUPS > 1 && g % 2 == 1, k));
        for i in 0..8 {
            for k in 0..4 {
                there[k * 8 + i] = group[i * 4 + k] * factors[k];
            }
        }
    }
    if F::MINS {
        for (g, group) in groups.iter().enumerate() {
            let halves = group.as_chunks::<16>().0;
            let [a, b] = [sum16(&halves[0]), sum16(&halves[1])];
            if F::HALVES {
                sums[g * 2..][..2].copy_from_slice(&[a, b]);
            } else {
                sums[g] = a + b;
            }
        }
    }
}

/// The sum of 16 values in a tree.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum16(x: &[f32; 16]) -> f32 {
    super::reduce(super::load(x))
}

/// See [`Gemv`](crate::backend::cpu::kernels::Gemv); x is [`prepare`]d.
#[target_feature(enable = "avx2,fma,f16c")]
fn gemv<F: Codes>(w: &[u8], row_bytes: usize, x: &[f32], out: &mut [f32]) {
    assert_eq!(w.len(), row_bytes * out.len());
    for (r, out) in out.iter_mut().enumerate() {
        *out = dot::<F>(bytemuck::cast_slice(&w[r * row_bytes..][..row_bytes]), x);
    }
}

/// One row with one x.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<F: Codes>(row: &[F::Block], x: &[f32]) -> f32 {
    let per_block = F::GROUPS * if F::HALVES { 2 } else { 1 };
    let (x, sums) = x.split_at(row.len() * F::GROUPS * 32);
    let x = x.as_chunks::<32>().0;
    assert!(x.len() == row.len() * F::GROUPS && (!F::MINS || sums.len() >= row.len() * per_block));
    let ahead = size_of_val(row);
    let zero = _mm256_setzero_ps();
    let (mut even, mut odd, mut mins) = (zero, zero, zero);
    for (b, block) in row.iter().enumerate() {
        // The same place in the next row: it follows this one, but in pages that the processor does not look into by itself.
        prefetch(block, ahead);
        // SAFETY: this function has the features.
        let head = unsafe { F::head(block) };
        if F::MINS {
            let sums = &sums[b * per_block..][..per_block];
            if per_block == 1 {
                mins = _mm256_fmadd_ps(_mm256_zextps128_ps256(_mm_set_ss(head.mins[0])), splat(sums[0])[0], mins);
            }
            for (sums, these) in sums.as_chunks::<8>().0.iter().zip(head.mins.as_chunks::<8>().0) {
                // SAFETY: references to 8 floats each.
                unsafe {
                    mins = _mm256_fmadd_ps(_mm256_loadu_ps(these.as_ptr()), _mm256_loadu_ps(sums.as_ptr()), mins)
                };
            }
        }
        for g in 0..F::GROUPS {
            // SAFETY: a block has GROUPS groups, and x as many for every block.
            let (codes, x) = unsafe { (F::standing(block, g), x.get_unchecked(b * F::GROUPS + g)) };
            let total = if g % 2 == 0 { &mut even } else { &mut odd };
            *total = _mm256_fmadd_ps(group::<F>(codes, g % 2 == 1, x), scale::<F>(&head.scales, g), *total);
        }
    }
    let total = reduce(_mm256_add_ps(even, odd)) * rest(F::STAND);
    if F::MINS { total - reduce(mins) } else { total }
}

/// Σ code·x of a group, in 8 lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn group<F: Codes>(codes: __m256i, odd: bool, x: &[f32; 32]) -> __m256 {
    let bytes = |mask: u32| _mm256_set1_epi32(mask as i32);
    let at = match (F::STAND, odd) {
        // As the highest byte, where it has its sign.
        (Stand::Signed, _) => {
            let highest = bytes(0xff00_0000);
            [
                _mm256_slli_epi32::<24>(codes),
                _mm256_and_si256(_mm256_slli_epi32::<16>(codes), highest),
                _mm256_and_si256(_mm256_slli_epi32::<8>(codes), highest),
                _mm256_and_si256(codes, highest),
            ]
        }
        (Stand::Unsigned, _) => [
            _mm256_and_si256(codes, bytes(0x7f)),
            _mm256_and_si256(codes, bytes(0x7f00)),
            _mm256_and_si256(codes, bytes(0x7f_0000)),
            _mm256_and_si256(codes, bytes(0x7f00_0000)),
        ],
        (Stand::Nibbles, false) => [
            _mm256_and_si256(codes, bytes(0xf)),
            _mm256_and_si256(codes, bytes(0xf00)),
            _mm256_and_si256(codes, bytes(0xf_0000)),
            _mm256_and_si256(codes, bytes(0xf00_0000)),
        ],
        (Stand::Nibbles, true) => [
            _mm256_and_si256(codes, bytes(0xf0)),
            _mm256_and_si256(codes, bytes(0xf000)),
            _mm256_and_si256(codes, bytes(0xf0_0000)),
            _mm256_srli_epi32::<28>(codes),
        ],
    };
    let mut sum = _mm256_setzero_ps();
    for k in 0..4 {
        // SAFETY: four times 8 of 32 floats.
        let x = unsafe { _mm256_loadu_ps(x.as_ptr().add(k * 8)) };
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(at[k]), x, sum);
    }
    sum
}

/// The scale of a group in all lanes, or those of its halves in the lanes of their weights: lane i has weights 4i to 4i + 3.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn scale<F: Codes>(scales: &[f32; 16], g: usize) -> __m256 {
    if F::HALVES {
        let both = _mm256_castpd_ps(_mm256_set1_pd(bytemuck::cast([scales[g * 2], scales[g * 2 + 1]])));
        _mm256_permutevar_ps(both, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1))
    } else {
        splat(scales[g])[0]
    }
}

/// The sum of the lanes: 4 + 4, 2 + 2, 1 + 1.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn reduce(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}
