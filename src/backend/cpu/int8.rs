//! Activations as int8 codes, for `cpu:int8`: ggml's Q8_K.
//!
//! Design:
//! - **The codes are Q8_K's** (`quantize_row_q8_K_ref`): 256 values share a scale, whose sign makes the largest of them −127. Whoever sees
//!   the activations can repeat that exactly, and the contract ([`Precision::Q8_K`](crate::backend::Precision::Q8_K)) says so.
//! - **Sums over a span are exact.** A span is the 32 or 16 weights that share a scale: their products are integers, and so is Σ of the
//!   activations' codes, which meets the span's min and puts right what codes were moved by to have no sign.
//! - One token's products keep the contract from [`ONE_ROW`] columns on; of fewer they are made as those of many.
//! - Weights of types without blocks meet f32 activations, as they do everywhere in ggml.

// Where no level exists, nothing makes use of it.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use super::simd::Line;

/// Activations that share a scale.
pub(super) const BLOCK: usize = 256;

/// The fewest columns for which the nine roundings of one token's product are within those of K/32 terms in any order, and of the five
/// besides that its floor allows.
pub(super) const ONE_ROW: usize = 128;

/// Rows of activations as codes.
#[derive(Default)]
pub(super) struct Activations {
    /// K, the length of a row.
    pub k: usize,
    /// Values whose codes are summed, and the least code of the weights, which those are moved up by.
    span: usize,
    least: i32,
    /// [T, K]
    pub codes: Vec<i8>,
    /// [T, ⌈K/256⌉]
    pub scales: Vec<f32>,
    /// Σ codes of each span, whole numbers. [T, K/span]
    pub sums: Vec<f32>,
    /// These times the least code: what the sums of moved products start at. [T, K/span]
    pub starts: Vec<i32>,
}

impl Activations {
    /// Makes it room for `rows` rows of `k`; what is in them is anything.
    pub fn make_room(&mut self, rows: usize, k: usize, span: usize, least: i32) {
        let (blocks, spans) = (rows * k.div_ceil(BLOCK), rows * (k / span));
        (self.k, self.span, self.least) = (k, span, least);
        self.codes.resize(rows * k, 0);
        self.scales.resize(blocks, 0.0);
        self.sums.resize(spans, 0.0);
        self.starts.resize(spans, 0);
    }

    /// A row's codes, scales and sums.
    pub fn row(&self, row: usize) -> CodedRow<'_> {
        let spans = self.k / self.span;
        CodedRow {
            codes: row_of(&self.codes, row, self.k),
            scales: row_of(&self.scales, row, self.k.div_ceil(BLOCK)),
            sums: row_of(&self.sums, row, spans),
            starts: row_of(&self.starts, row, spans),
        }
    }

    /// All rows, to be written.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = CodedRowMut<'_>> {
        let Self { k, span, least, codes, scales, sums, starts } = self;
        let spans = *k / *span;
        let (span, least) = (*span, *least);
        let codes = codes.chunks_exact_mut((*k).max(1)).zip(scales.chunks_exact_mut(k.div_ceil(BLOCK).max(1)));
        let sums = sums.chunks_exact_mut(spans.max(1)).zip(starts.chunks_exact_mut(spans.max(1)));
        codes.zip(sums).map(move |((codes, scales), (sums, starts))| CodedRowMut {
            span,
            least,
            codes,
            scales,
            sums,
            starts,
        })
    }
}

fn row_of<V>(values: &[V], row: usize, n: usize) -> &[V] {
    &values[row * n..][..n]
}

/// One of [`Activations`]: see there.
#[derive(Clone, Copy)]
pub(super) struct CodedRow<'a> {
    pub codes: &'a [i8],
    pub scales: &'a [f32],
    pub sums: &'a [f32],
    pub starts: &'a [i32],
}

/// One of [`Activations`], to be written.
pub(super) struct CodedRowMut<'a> {
    pub span: usize,
    pub least: i32,
    pub codes: &'a mut [i8],
    pub scales: &'a mut [f32],
    pub sums: &'a mut [f32],
    pub starts: &'a mut [i32],
}

/// Rows of weights as byte codes under scales, sixteen rows side by side.
#[derive(Default)]
pub(super) struct CodePanel {
    /// Four codes of each of 16 rows in a line. [⌈rows/16⌉, K/4]
    pub codes: Vec<Line>,
    /// [⌈rows/16⌉, K/span]
    pub scales: Vec<Line>,
    /// As the scales; empty where a type has none.
    pub mins: Vec<Line>,
}

impl CodePanel {
    /// Makes room for `rows` rows of `k`; what is in them is anything.
    pub fn reserve(&mut self, rows: usize, k: usize, span: usize, mins: bool) {
        let groups = rows.div_ceil(16);
        self.codes.resize(groups * (k / 4), Line([0.0; 16]));
        self.scales.resize(groups * (k / span), Line([0.0; 16]));
        self.mins.resize(if mins { groups * (k / span) } else { 0 }, Line([0.0; 16]));
    }
}
