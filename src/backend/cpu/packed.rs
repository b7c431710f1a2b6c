//! Rows of activations as the products of many tokens read them.
//!
//! A level's `panel` multiplies some tokens at a time, a strip. Of these it reads sixteen values of each token in turn, so they lie side by
//! side: every register is in one line of the cache, and one stream is read where there would be one for each token. It is done once for all
//! rows of a matrix, which are many tasks.

use super::simd::Line;

/// Rows of x, each `[K]`, in strips of some tokens: `[tokens / strip, K / 16, tokens of the strip, 16]`, zeros beyond K.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    k: usize,
    tokens: usize,
    strip: usize,
    lines: &'a [Line],
}

impl<'a> Packed<'a> {
    /// Lines of one token.
    pub fn lines_of(k: usize) -> usize {
        k.div_ceil(16)
    }

    /// `tokens` rows of `k` values, as [`pack`] has written strip after strip.
    pub fn new(k: usize, tokens: usize, strip: usize, lines: &'a [Line]) -> Self {
        assert!(strip > 0 && lines.len() == tokens * Self::lines_of(k));
        Self { k, tokens, strip, lines }
    }

    /// K.
    pub fn k(self) -> usize {
        self.k
    }

    /// How many rows there are.
    pub fn tokens(self) -> usize {
        self.tokens
    }

    /// Each strip, and how many tokens are in it.
    pub fn strips(self) -> impl Iterator<Item = (&'a [Line], usize)> {
        (0..self.tokens).step_by(self.strip).map(move |first| {
            let (each, tokens) = (Self::lines_of(self.k), self.strip.min(self.tokens - first));
            (&self.lines[first * each..][..tokens * each], tokens)
        })
    }
}

/// Writes the tokens of one strip, each `[K]`; `out` is `[K / 16, tokens]`.
pub(super) fn pack(x: &[&[f32]], out: &mut [Line]) {
    for (t, row) in x.iter().enumerate() {
        let (chunks, tail) = row.as_chunks::<16>();
        let mut lines = out[t..].iter_mut().step_by(x.len());
        lines.by_ref().zip(chunks).for_each(|(line, chunk)| line.0 = *chunk);
        if let (Some(line), [_, ..]) = (lines.next(), tail) {
            line.0 = [0.0; 16];
            line.0[..tail.len()].copy_from_slice(tail);
        }
    }
}
