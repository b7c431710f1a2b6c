//! One token's products with K-quants: codes in lanes, scales out of the sum.
//!
//! Design:
//! - **A code is found where it stands.** Sixteen 32-bit lanes hold the codes of 64 weights as bytes, or of 128 as nibbles. A lookup (`vpermps`)
//!   or a mask takes each byte of its lane, after a shift where there has to be one; nothing is widened. x is put in that order once for all
//!   rows ([`prepare`]).
//! - **`gemv` takes the scale out of the sum**: Σ w·x = Σ_group scale · (Σ code·x) − Σ_group min · (Σ x). Four registers of codes are multiplied and
//!   added in a sum of their own, which is added to the row's with the scales of their lanes. No term of a row of n goes through more than
//!   9 + 5·n/256 roundings, against 32 + n/32 and the products' in the level's order, whose bound so holds for this one as well.
//! - **Codes beyond five bits are made of their bits**: `code | 2²³` as a float is 2²³ + code, and exactly code after a subtraction. That is two
//!   instructions that either port of the processor has; a conversion is one that only the first has, and takes a shift besides.
//! - Codes and scales are exact. Sums of a group's codes times x, or of x alone, may leave the range where |x| is beyond 2¹²⁰, and of an infinite x
//!   scale · ∞ − min · ∞ is NaN: an infinity of the definition may be a NaN here, as on AVX2.
//! - One row at a time, read from its beginning to its end: memory is asked for [`AHEAD`] bytes ahead, which is as far as it takes to come.
//!   Rows side by side share the loads of x, which are not what binds, and are as many places in memory to read at once.

use super::formats::{AND_OR, SELECT, iota, q6k_scales, scales_and_mins_in_lanes};
use super::tables::{of_three_bits, of_two_bits, q2k_scales_and_mins, q3k_scales_in_lanes};
use super::*;
use crate::quant::kquant::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K};

/// How far ahead of a block memory is asked for: of 1, 2, 4, 8 and 16 KiB the best for Q6_K, of the first three for Q4_K. Two threads that read nothing but
/// Q4_K are 5 to 10 % faster with 4 KiB, but decode of the 30B shape is 1 to 4 % slower.
const AHEAD: usize = 2048;

/// Scales and mins of a block, in lanes.
#[derive(Clone, Copy)]
pub(super) struct LaneHead {
    scales: V,
    /// Those of [`LaneCodes::MIN_LANES`]; what is in other lanes is not read.
    mins: V,
}

impl LaneHead {
    /// Of one register, where the lanes of mins are no scales, or nothing has mins.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn beside(both: V) -> Self {
        Self { scales: both, mins: both }
    }
}

/// How a type's blocks of 256 become codes in lanes: `A` times four registers a step.
///
/// # Safety
/// The functions need this level's features, and a step that the block has.
pub(super) trait LaneCodes<const A: usize> {
    /// A block.
    type Codes: bytemuck::Pod;
    /// Weights that share a scale.
    const GROUP: usize;
    /// The lanes of [`LaneHead::mins`] that are mins, and which group each is of.
    const MIN_LANES: u16 = 0;
    fn group_of_min(lane: usize) -> usize {
        lane
    }
    /// Which weight of a step is in lane `lane` of register `k` of sum `a`.
    fn place(a: usize, k: usize, lane: usize) -> usize {
        a * 64 + 4 * lane + k
    }
    unsafe fn lane_head(block: &Self::Codes) -> LaneHead;
    unsafe fn codes(block: &Self::Codes, step: usize) -> [[V; 4]; A];
    /// The scale of each lane of sum `a` of a step.
    unsafe fn scale(head: LaneHead, step: usize, a: usize) -> V;
}

/// The kernels for the blocks of a type.
pub(super) const fn kernels<F: LaneCodes<A> + BlockFormat<V, N>, const A: usize, const N: usize>() -> BlockKernels {
    BlockKernels { unpack: unpack::<F, N>, gemv: gemv::<F, A>, prepare: Some(prepare::<F, A>) }
}

/// See [`Prepare`](crate::backend::cpu::kernels::Prepare): for each step, x where its codes stand; then for types with mins −Σ x of the group
/// of each lane's min, 16 a block.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn prepare<F: LaneCodes<A>, const A: usize>(x: &[f32], out: &mut [f32]) {
    let blocks = x.as_chunks::<256>().0;
    let (there, sums) = out.split_at_mut(x.len());
    let mut places = [[_mm512_setzero_si512(); 4]; A];
    for (a, places) in places.iter_mut().enumerate() {
        for (k, places) in places.iter_mut().enumerate() {
            let mut lanes = [0i32; 16];
            for (lane, place) in lanes.iter_mut().enumerate() {
                *place = F::place(a, k, lane) as i32;
                assert!((*place as usize) < A * 64);
            }
            // SAFETY: 16 integers; no alignment is asked for.
            *places = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
        }
    }
    for (x, there) in x.chunks_exact(A * 64).zip(there.chunks_exact_mut(A * 64)) {
        for (n, there) in there.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            // SAFETY: every place is below the chunk's length.
            store(there, unsafe { _mm512_i32gather_ps::<4>(places[n / 4][n % 4], x.as_ptr()) });
        }
    }
    // Loops, as a closure in one of the iterator's functions would be a call for every register.
    for (x, sums) in blocks.iter().zip(sums.as_chunks_mut::<16>().0) {
        for lane in 0..16 {
            if F::MIN_LANES >> lane & 1 == 1 {
                let mut sum = splat(0.0);
                for x in x[F::group_of_min(lane) * F::GROUP..][..F::GROUP].as_chunks::<16>().0 {
                    sum = add(sum, load(x));
                }
                sums[lane] = -reduce(sum);
            }
        }
    }
}

/// See [`Gemv`](crate::backend::cpu::kernels::Gemv); x is [`prepare`]d.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
fn gemv<F: LaneCodes<A>, const A: usize>(w: &[u8], row_bytes: usize, x: &[f32], out: &mut [f32]) {
    assert_eq!(w.len(), row_bytes * out.len());
    for (r, out) in out.iter_mut().enumerate() {
        *out = dot::<F, A>(bytemuck::cast_slice(&w[r * row_bytes..][..row_bytes]), x);
    }
}

/// One row with one x.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
fn dot<F: LaneCodes<A>, const A: usize>(row: &[F::Codes], x: &[f32]) -> f32 {
    let (x, sums) = x.split_at(row.len() * 256);
    let (x, sums) = (x.as_chunks::<16>().0, sums.as_chunks::<16>().0);
    assert!(sums.len() >= row.len());
    let mut total = splat(0.0);
    for (b, block) in row.iter().enumerate() {
        prefetch(block, AHEAD);
        // SAFETY: this function has the features.
        let head = unsafe { F::lane_head(block) };
        if F::MIN_LANES != 0 {
            total = _mm512_mask3_fmadd_ps(head.mins, load(&sums[b]), total, F::MIN_LANES);
        }
        for step in 0..4 / A {
            // SAFETY: a block has 4 / A steps.
            let codes = unsafe { F::codes(block, step) };
            for a in 0..A {
                // SAFETY: as above; and x has 16 registers for every block.
                let x = |k: usize| load(unsafe { x.get_unchecked(b * 16 + (step * A + a) * 4 + k) });
                let mut sum = mul(x(0), codes[a][0]);
                for k in 1..4 {
                    sum = fma(x(k), codes[a][k], sum);
                }
                // SAFETY: as above.
                total = fma(unsafe { F::scale(head, step, a) }, sum, total);
            }
        }
    }
    reduce(total)
}

/// Lane `from[n]` of `head` in lanes 4n to 4n + 3.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread(head: V, from: [usize; 4]) -> V {
    let [a, b, c, d] = [from[0] as i32, from[1] as i32, from[2] as i32, from[3] as i32];
    _mm512_permutexvar_ps(_mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d), head)
}

/// The scales of the four groups of 16 in 64 weights, the `n`-th of a block.
#[inline]
#[target_feature(enable = "avx512f")]
fn of_four_groups(scales: V, n: usize) -> V {
    spread(scales, [4 * n, 4 * n + 1, 4 * n + 2, 4 * n + 3])
}

/// `low` in the lower half of the lanes, `high` in the upper.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(low: i32, high: i32) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_set1_epi32(low), _mm256_set1_epi32(high))
}

/// 32 bytes, twice.
#[inline]
#[target_feature(enable = "avx512f")]
fn twice(bytes: &[u8; 32]) -> __m512i {
    // SAFETY: a reference to 32 bytes; no alignment is asked for.
    _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}

/// The four bytes of each lane, the last first shifted to the lowest place; what is above a lookup's own bits is ignored.
#[inline]
#[target_feature(enable = "avx512f")]
fn bytes(lanes: __m512i) -> [__m512i; 4] {
    [lanes, _mm512_srli_epi32::<8>(lanes), _mm512_srli_epi32::<16>(lanes), _mm512_srli_epi32::<24>(lanes)]
}

/// The values of the four bytes of each lane, by the lowest four bits of each.
#[inline]
#[target_feature(enable = "avx512f")]
fn looked_up(lanes: __m512i, table: V) -> [V; 4] {
    let [a, b, c, d] = bytes(lanes);
    [
        _mm512_permutexvar_ps(a, table),
        _mm512_permutexvar_ps(b, table),
        _mm512_permutexvar_ps(c, table),
        _mm512_permutexvar_ps(d, table),
    ]
}

/// The low six bits of the four bytes of each lane, less 32.
#[inline]
#[target_feature(enable = "avx512f")]
fn six_bits(lanes: __m512i) -> [V; 4] {
    // Byte k of a float whose last place is worth 2⁻⁸ᵏ: 2²³, 2¹⁵ and 2⁷. The fourth would be in the exponent.
    let lowest = |lanes: __m512i| {
        let float = _mm512_ternarylogic_epi32::<AND_OR>(lanes, _mm512_set1_epi32(0x3f), _mm512_set1_epi32(0x4b00_0000));
        _mm512_sub_ps(_mm512_castsi512_ps(float), _mm512_set1_ps(8_388_608.0 + 32.0))
    };
    let second = _mm512_ternarylogic_epi32::<AND_OR>(lanes, _mm512_set1_epi32(0x3f00), _mm512_set1_epi32(0x4700_0000));
    let third =
        _mm512_ternarylogic_epi32::<AND_OR>(lanes, _mm512_set1_epi32(0x3f_0000), _mm512_set1_epi32(0x4300_0000));
    [
        lowest(lanes),
        _mm512_sub_ps(_mm512_castsi512_ps(second), _mm512_set1_ps(32_768.0 + 32.0)),
        _mm512_sub_ps(_mm512_castsi512_ps(third), _mm512_set1_ps(128.0 + 32.0)),
        lowest(_mm512_srli_epi32::<24>(lanes)),
    ]
}

/// A lane has eight nibbles of two groups: the low ones of four weights, and the high ones of the four that are 32 further.
impl LaneCodes<2> for Q4K {
    type Codes = BlockQ4K;
    const GROUP: usize = 32;
    const MIN_LANES: u16 = 0xf0f0;
    fn group_of_min(lane: usize) -> usize {
        lane / 8 * 4 + lane % 4
    }
    fn place(a: usize, k: usize, lane: usize) -> usize {
        lane / 8 * 64 + a * 32 + lane % 8 * 4 + k
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn lane_head(block: &BlockQ4K) -> LaneHead {
        LaneHead::beside(scales_and_mins_in_lanes(block.d, block.dmin, &block.scales))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn codes(block: &BlockQ4K, step: usize) -> [[V; 4]; 2] {
        // SAFETY: half of the block's 128 bytes; no alignment is asked for.
        let nibbles = unsafe { _mm512_loadu_si512(block.qs[step * 64..][..64].as_ptr().cast()) };
        [looked_up(nibbles, iota()), looked_up(_mm512_srli_epi32::<4>(nibbles), iota())]
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scale(head: LaneHead, step: usize, a: usize) -> V {
        let first = step * 8 + a;
        spread(head.scales, [first, first, first + 2, first + 2])
    }
}

impl LaneCodes<1> for Q5K {
    type Codes = BlockQ5K;
    const GROUP: usize = 32;
    const MIN_LANES: u16 = 0xf0f0;
    fn group_of_min(lane: usize) -> usize {
        lane / 8 * 4 + lane % 4
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn lane_head(block: &BlockQ5K) -> LaneHead {
        LaneHead::beside(scales_and_mins_in_lanes(block.d, block.dmin, &block.scales))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn codes(block: &BlockQ5K, step: usize) -> [[V; 4]; 1] {
        let low = _mm512_srlv_epi32(twice(&block.qs.as_chunks().0[step]), halves(0, 4));
        // The fifth bits of groups 2·step and 2·step + 1, brought to bit 4 of their bytes.
        let first = 4 - 2 * step as i32;
        let high = _mm512_rolv_epi32(twice(&block.qh), halves(first & 31, (first - 1) & 31));
        let [a, b, c, d] = bytes(_mm512_ternarylogic_epi32::<SELECT>(_mm512_set1_epi8(15), low, high));
        let (from_0, from_16) = (iota(), _mm512_add_ps(iota(), splat(16.0)));
        [[
            _mm512_permutex2var_ps(from_0, a, from_16),
            _mm512_permutex2var_ps(from_0, b, from_16),
            _mm512_permutex2var_ps(from_0, c, from_16),
            _mm512_permutex2var_ps(from_0, d, from_16),
        ]]
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scale(head: LaneHead, step: usize, _: usize) -> V {
        let first = step / 2 * 8 + step % 2 * 2;
        spread(head.scales, [first, first, first + 1, first + 1])
    }
}

impl LaneCodes<2> for Q6K {
    type Codes = BlockQ6K;
    const GROUP: usize = 16;
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn lane_head(block: &BlockQ6K) -> LaneHead {
        LaneHead::beside(q6k_scales(block))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn codes(block: &BlockQ6K, step: usize) -> [[V; 4]; 2] {
        // 64 bytes of low nibbles for weights 0..64 and, above them, 64..128; 32 bytes of two high bits for each quarter.
        // SAFETY: half of the block's 128 bytes; no alignment is asked for.
        let low = unsafe { _mm512_loadu_si512(block.ql[step * 64..][..64].as_ptr().cast()) };
        let high = twice(&block.qh.as_chunks().0[step]);
        // The high bits of quarters 0 and 1, then of 2 and 3, moved to bits 4 and 5; what else moved is beyond the six.
        let fifteen = _mm512_set1_epi8(15);
        let below = _mm512_ternarylogic_epi32::<SELECT>(fifteen, low, _mm512_sllv_epi32(high, halves(4, 2)));
        let above = _mm512_srlv_epi32(high, halves(0, 2));
        let above = _mm512_ternarylogic_epi32::<SELECT>(fifteen, _mm512_srli_epi32::<4>(low), above);
        [six_bits(below), six_bits(above)]
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scale(head: LaneHead, step: usize, a: usize) -> V {
        of_four_groups(head.scales, step * 2 + a)
    }
}

impl LaneCodes<1> for Q3K {
    type Codes = BlockQ3K;
    const GROUP: usize = 16;
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn lane_head(block: &BlockQ3K) -> LaneHead {
        LaneHead::beside(q3k_scales_in_lanes(block))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn codes(block: &BlockQ3K, step: usize) -> [[V; 4]; 1] {
        // Groups of 32 weights 2·step and 2·step + 1: two bits each of one of the halves' bytes, and a third, brought to bit 2.
        let g = 2 * step as i32;
        let low = _mm512_srlv_epi32(twice(&block.qs.as_chunks().0[step / 2]), halves(g % 4 * 2, g % 4 * 2 + 2));
        let third = _mm512_rolv_epi32(twice(&block.hmask), halves((2 - g) & 31, (1 - g) & 31));
        let codes = _mm512_ternarylogic_epi32::<SELECT>(_mm512_set1_epi8(3), low, third);
        [looked_up(codes, of_three_bits())]
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scale(head: LaneHead, step: usize, _: usize) -> V {
        of_four_groups(head.scales, step)
    }
}

impl LaneCodes<1> for Q2K {
    type Codes = BlockQ2K;
    const GROUP: usize = 16;
    const MIN_LANES: u16 = 0xffff;
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,f16c")]
    unsafe fn lane_head(block: &BlockQ2K) -> LaneHead {
        let [scales, mins] = q2k_scales_and_mins(block);
        LaneHead { scales, mins }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn codes(block: &BlockQ2K, step: usize) -> [[V; 4]; 1] {
        let first = (step % 2 * 4) as i32;
        let codes = _mm512_srlv_epi32(twice(&block.qs.as_chunks().0[step / 2]), halves(first, first + 2));
        [looked_up(codes, of_two_bits())]
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scale(head: LaneHead, step: usize, _: usize) -> V {
        of_four_groups(head.scales, step)
    }
}
