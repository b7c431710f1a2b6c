//! The SIMD levels' arithmetic in plain Rust: what tests hold the levels against, to the bit.

use std::array::from_fn;
use std::ops::Range;

use super::Line;
use super::blocks::{BlockFormat, block_kernels, prefetch};
use super::fields::field_formats;
use super::lanes::lane_kernels;
use super::unblocked::unblocked_formats;
use super::{PART, Packed, SUM, Strips};
use crate::backend::cpu::kernels::BlockKernels;
use crate::quant::block::{bf16, f16};

type V = [f32; 16];
type Bytes = [u8; 16];

const ROWS: usize = 2;
pub const TILE: usize = 4;
const GEMV_ROWS: usize = 2;
const COLUMNS: usize = 2;
const HEADS_COLUMNS: usize = 1;

lane_kernels!(#[cfg(test)], tokens: [1, 2], registers: [1, 2]);
block_kernels!(#[cfg(test)]);
unblocked_formats!(#[cfg(test)]);
field_formats!(#[cfg(test)]);

/// Other blocks are unpacked by their definition.
pub fn blocks(ty: GgmlType) -> Option<BlockKernels> {
    by_fields(ty).or_else(|| unblocked(ty))
}

fn load(x: &[f32; 16]) -> V {
    *x
}

fn store(out: &mut [f32; 16], v: V) {
    *out = v;
}

fn load_tail(x: &[f32]) -> V {
    let mut padded = [0.0; 16];
    padded[..x.len()].copy_from_slice(x);
    padded
}

fn store_tail(out: &mut [f32], v: V) {
    out.copy_from_slice(&v[..out.len()]);
}

fn splat(x: f32) -> V {
    [x; 16]
}

fn fma(a: V, b: V, c: V) -> V {
    from_fn(|i| a[i].mul_add(b[i], c[i]))
}

fn add(a: V, b: V) -> V {
    from_fn(|i| a[i] + b[i])
}

fn sub(a: V, b: V) -> V {
    from_fn(|i| a[i] - b[i])
}

fn mul(a: V, b: V) -> V {
    from_fn(|i| a[i] * b[i])
}

fn div(a: V, b: V) -> V {
    from_fn(|i| a[i] / b[i])
}

fn min(a: V, b: V) -> V {
    from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
}

fn max(a: V, b: V) -> V {
    from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
}

fn round(x: V) -> V {
    x.map(f32::round_ties_even)
}

/// In f64, where neither the power nor the product leaves the range: only the conversion rounds.
fn times_two_to_the(n: V, x: V) -> V {
    from_fn(|i| (x[i] as f64 * (n[i] as f64).exp2()) as f32)
}

/// a0, b0, a1, b1, … in two registers.
fn interleave(a: V, b: V) -> [V; 2] {
    [0, 8].map(|first| from_fn(|i| if i % 2 == 0 { a[first + i / 2] } else { b[first + i / 2] }))
}

fn reduce(v: V) -> f32 {
    let eight: [f32; 8] = from_fn(|i| v[i] + v[i + 8]);
    let four: [f32; 4] = from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

fn reduce_all(v: [V; ROWS]) -> [f32; ROWS] {
    v.map(reduce)
}

fn scaled(codes: &[i8; 16], scale: f32, min: f32) -> V {
    from_fn(|i| codes[i] as f32 * scale - min)
}

fn from_f16(bytes: &[Bytes; 2]) -> V {
    bytemuck::cast::<_, [[u8; 2]; 16]>(*bytes).map(f16)
}

fn from_bf16(bytes: &[Bytes; 2]) -> V {
    bytemuck::cast::<_, [[u8; 2]; 16]>(*bytes).map(bf16)
}
