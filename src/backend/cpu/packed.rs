//! Rows of activations as the products of many tokens read them.
//!
//! Some tokens at a time are a strip, of which a level's kernel reads one place after the other, so they lie side by side: every register is in
//! one line of the cache, and one stream is read where there would be one for each token.
//!
//! A strip is **wide** or **narrow**. In a wide one a register holds one column of 16 tokens; each is a lane, and a sum takes its terms one after the
//! other. In a narrow one it holds 16 columns of one token, which go to 16 lanes of its sum. Of 32 tokens the first reads a quarter as much for
//! the same products; of three, five sixths of its lanes would be empty.

use super::simd::Line;

/// The fewest tokens for which a wide strip with empty lanes takes less time than narrow ones: a lane costs about 0.6 of a narrow token.
const WIDE: usize = 10;
/// Empty lanes in the last of several registers for which that takes less time than a strip of one register less and others.
const EMPTY: usize = 5;

/// What a level makes of some tokens.
#[derive(Clone, Copy)]
pub(super) struct Strips {
    /// The most tokens of a narrow strip.
    pub narrow: usize,
    /// The most registers of a wide one; 0: there are none.
    pub registers: usize,
}

impl Strips {
    /// The strips of `tokens` tokens, in order.
    pub fn of(self, tokens: usize) -> impl Iterator<Item = Strip> {
        let mut left = tokens;
        std::iter::from_fn(move || {
            let strip = match left {
                0 => return None,
                WIDE.. if self.registers > 0 => {
                    let registers = ((left + EMPTY) / 16).clamp(1, self.registers);
                    Strip { tokens: left.min(16 * registers), registers }
                }
                // As many each, so that none is much narrower than the others.
                _ => Strip { tokens: left.div_ceil(left.div_ceil(self.narrow)), registers: 0 },
            };
            left -= strip.tokens;
            Some(strip)
        })
    }
}

/// Tokens side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Strip {
    pub tokens: usize,
    /// Registers of a wide strip, whose last lanes may be empty; 0 of a narrow one.
    pub registers: usize,
}

impl Strip {
    /// Lines of `k` columns: [k, registers] if wide, [k / 16, tokens] if narrow.
    pub fn lines(self, k: usize) -> usize {
        if self.registers > 0 { k * self.registers } else { k.div_ceil(16) * self.tokens }
    }

    /// Lines of the sums with one row of weights.
    pub fn sums(self) -> usize {
        if self.registers > 0 { self.registers } else { self.tokens }
    }
}

/// Rows of x, each `[K]`, strip after strip.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    k: usize,
    tokens: usize,
    strips: Strips,
    lines: &'a [Line],
}

impl<'a> Packed<'a> {
    /// Lines of `tokens` rows of `k` values.
    pub fn lines_of(strips: Strips, k: usize, tokens: usize) -> usize {
        strips.of(tokens).map(|strip| strip.lines(k)).sum()
    }

    /// `tokens` rows of `k` values, as [`Kernels::pack`](super::kernels::Kernels::pack) has written strip after strip.
    pub fn new(k: usize, tokens: usize, strips: Strips, lines: &'a [Line]) -> Self {
        assert!(lines.len() == Self::lines_of(strips, k, tokens));
        Self { k, tokens, strips, lines }
    }

    /// K.
    pub fn k(self) -> usize {
        self.k
    }

    /// How many rows there are.
    pub fn tokens(self) -> usize {
        self.tokens
    }

    /// Lines of the sums of all tokens with one row of weights.
    pub fn sums(self) -> usize {
        self.strips.of(self.tokens).map(Strip::sums).sum()
    }

    /// Each strip and its lines.
    pub fn strips(self) -> impl Iterator<Item = (Strip, &'a [Line])> {
        let mut lines = self.lines;
        self.strips.of(self.tokens).map(move |strip| {
            let (these, rest) = lines.split_at(strip.lines(self.k));
            lines = rest;
            (strip, these)
        })
    }
}

/// Writes the tokens of a narrow strip, each `[K]`; `out` is `[K / 16, tokens]`, zeros beyond K.
pub(super) fn pack_narrow(x: &[&[f32]], out: &mut [Line]) {
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
