//! `cpu:neon`: 16 f32 lanes in four registers of 4.

use std::arch::aarch64::*;
use std::ops::Range;

use super::blocks::{BlockFormat, block_kernels, prefetch};
use super::fields::field_formats;
use super::lanes::lane_kernels;
use super::unblocked::unblocked_formats;
use super::{Line, PART, Packed, SUM, Strips};
use crate::backend::cpu::kernels::BlockKernels;
use crate::quant::block::f16;

/// Lanes 0 to 3, 4 to 7, 8 to 11, 12 to 15.
type V = [float32x4_t; 4];
type Bytes = [u8; 16];

// Two rows meet two tokens, or six rows 16 tokens: 16 or 24 of the 32 registers are sums.
const ROWS: usize = 2;
pub const TILE: usize = 6;
const GEMV_ROWS: usize = 2;
const COLUMNS: usize = 4;
const HEADS_COLUMNS: usize = 1;

lane_kernels!(#[target_feature(enable = "neon")], tokens: [1, 2], registers: [1]);
block_kernels!(#[target_feature(enable = "neon")]);
unblocked_formats!(#[target_feature(enable = "neon")]);
field_formats!(#[target_feature(enable = "neon")]);

/// The kernels for blocks of `ty`, where there are some.
pub fn blocks(ty: GgmlType) -> Option<BlockKernels> {
    by_fields(ty).or_else(|| unblocked(ty))
}

/// What a function makes of each register.
macro_rules! each {
    (|$i:ident| $value:expr) => {{
        let mut out = splat(0.0);
        for $i in 0..4 {
            out[$i] = $value;
        }
        out
    }};
}

#[inline]
#[target_feature(enable = "neon")]
fn load(x: &[f32; 16]) -> V {
    let at = x.as_ptr();
    // SAFETY: four times 4 of 16 floats.
    unsafe { [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))] }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(out: &mut [f32; 16], v: V) {
    for (out, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(v) {
        // SAFETY: a reference to 4 floats.
        unsafe { vst1q_f32(out.as_mut_ptr(), v) };
    }
}

/// The first `x.len()` < 16 lanes from `x`, zeros beyond.
#[inline]
#[target_feature(enable = "neon")]
fn load_tail(x: &[f32]) -> V {
    let mut padded = [0.0; 16];
    padded[..x.len()].copy_from_slice(x);
    load(&padded)
}

/// Writes the first `out.len()` < 16 lanes.
#[inline]
#[target_feature(enable = "neon")]
fn store_tail(out: &mut [f32], v: V) {
    let mut padded = [0.0; 16];
    store(&mut padded, v);
    out.copy_from_slice(&padded[..out.len()]);
}

#[inline]
#[target_feature(enable = "neon")]
fn splat(x: f32) -> V {
    [vdupq_n_f32(x); 4]
}

/// a · b + c.
#[inline]
#[target_feature(enable = "neon")]
fn fma(a: V, b: V, c: V) -> V {
    each!(|i| vfmaq_f32(c[i], a[i], b[i]))
}

#[inline]
#[target_feature(enable = "neon")]
fn add(a: V, b: V) -> V {
    each!(|i| vaddq_f32(a[i], b[i]))
}

#[inline]
#[target_feature(enable = "neon")]
fn sub(a: V, b: V) -> V {
    each!(|i| vsubq_f32(a[i], b[i]))
}

#[inline]
#[target_feature(enable = "neon")]
fn mul(a: V, b: V) -> V {
    each!(|i| vmulq_f32(a[i], b[i]))
}

#[inline]
#[target_feature(enable = "neon")]
fn div(a: V, b: V) -> V {
    each!(|i| vdivq_f32(a[i], b[i]))
}

/// The smaller, or `b` where either is NaN.
#[inline]
#[target_feature(enable = "neon")]
fn min(a: V, b: V) -> V {
    each!(|i| vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]))
}

/// The larger, or `b` where either is NaN.
#[inline]
#[target_feature(enable = "neon")]
fn max(a: V, b: V) -> V {
    each!(|i| vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]))
}

/// The nearest whole numbers, ties to even.
#[inline]
#[target_feature(enable = "neon")]
fn round(x: V) -> V {
    each!(|i| vrndnq_f32(x[i]))
}

/// x · 2ⁿ, rounded once. 2ⁿ does not fit a float where the result is subnormal or close to the largest float: two factors do,
/// and only the last product rounds.
#[inline]
#[target_feature(enable = "neon")]
fn times_two_to_the(n: V, x: V) -> V {
    let power = |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))));
    let times = |n, x| {
        let n = vcvtnq_s32_f32(n);
        let half = vshrq_n_s32::<1>(n);
        vmulq_f32(vmulq_f32(x, power(half)), power(vsubq_s32(n, half)))
    };
    each!(|i| times(n[i], x[i]))
}

/// a0, b0, a1, b1, … in two registers.
#[inline]
#[target_feature(enable = "neon")]
fn interleave(a: V, b: V) -> [V; 2] {
    let mut out = [splat(0.0); 2];
    for i in 0..4 {
        out[i / 2][i % 2 * 2] = vzip1q_f32(a[i], b[i]);
        out[i / 2][i % 2 * 2 + 1] = vzip2q_f32(a[i], b[i]);
    }
    out
}

/// [`reduce`] of two.
#[inline]
#[target_feature(enable = "neon")]
fn reduce_all(v: [V; ROWS]) -> [f32; ROWS] {
    [reduce(v[0]), reduce(v[1])]
}

/// The sum of the lanes: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
#[inline]
#[target_feature(enable = "neon")]
fn reduce(v: V) -> f32 {
    let four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
    let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
}

/// Sixteen codes times a scale, less a min.
#[inline]
#[target_feature(enable = "neon")]
fn scaled(codes: &[i8; 16], scale: f32, min: f32) -> V {
    // SAFETY: a reference to 16 bytes.
    let codes = unsafe { vld1q_s8(codes.as_ptr()) };
    let (low, high) = (vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes));
    let whole =
        [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)];
    each!(|i| vsubq_f32(vmulq_f32(vcvtq_f32_s32(whole[i]), vdupq_n_f32(scale)), vdupq_n_f32(min)))
}

#[inline]
#[target_feature(enable = "neon")]
fn from_f16(bytes: &[Bytes; 2]) -> V {
    let halves: [[u8; 2]; 16] = bytemuck::cast(*bytes);
    let mut values = [0.0; 16];
    for i in 0..16 {
        values[i] = f16(halves[i]);
    }
    load(&values)
}

#[inline]
#[target_feature(enable = "neon")]
fn from_bf16(bytes: &[Bytes; 2]) -> V {
    let halves: [[u16; 4]; 4] = bytemuck::cast(*bytes);
    // SAFETY: references to four halves each.
    each!(|i| vreinterpretq_f32_u32(vshll_n_u16::<16>(unsafe { vld1_u16(halves[i].as_ptr()) })))
}
