//! The rows of a matrix that meet many tokens at once.

use std::ops::Range;

use super::kernels::Kernels;
use super::packed::Packed;
use super::simd::{Line, PART};

/// What a thread works in.
#[derive(Default)]
pub(super) struct TileBuffers {
    /// A part of the rows. [tile, PART / 16]
    rows: Vec<Line>,
    sums: Vec<Line>,
}

impl TileBuffers {
    /// The products of `rows` rows, at most a tile, with every x; `results` is [tokens, tile], its rows `stride` apart. `fill` writes some
    /// columns of every row, which begin with a part.
    pub fn products(
        &mut self,
        kernels: &Kernels,
        rows: usize,
        x: Packed<'_>,
        mut fill: impl FnMut(Range<usize>, &mut [[f32; PART]]),
        stride: usize,
        results: &mut [f32],
    ) {
        let part = at_least(&mut self.rows, kernels.tile() * PART / 16, Line([0.0; 16]));
        let part: &mut [[f32; PART]] = bytemuck::cast_slice_mut(part);
        let sums = at_least(&mut self.sums, kernels.tile() * x.sums(), Line([0.0; 16]));
        sums.fill(Line([0.0; 16]));
        for first in (0..x.k()).step_by(PART) {
            let columns = first..x.k().min(first + PART);
            fill(columns.clone(), &mut part[..rows]);
            let beyond = columns.len()..columns.len().next_multiple_of(16);
            part[..rows].iter_mut().for_each(|row| row[beyond.clone()].fill(0.0));
            kernels.add_part(part, columns, x, sums);
        }
        kernels.results(x, sums, stride, results);
    }
}

/// The first `len` values of a buffer that grows as needed, whatever they are.
pub(super) fn at_least<V: Copy>(buffer: &mut Vec<V>, len: usize, fill: V) -> &mut [V] {
    if buffer.len() < len {
        buffer.resize(len, fill);
    }
    &mut buffer[..len]
}
