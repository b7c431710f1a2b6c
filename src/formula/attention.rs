//! Causal attention over a cache: scores, and what they weigh. The softmax between them is in `softmax`.

use std::borrow::Cow;

use super::exact::Emulation;
use super::precision::CoarseSums;
use super::rounding::{TINY, TO_F32, inner, roundoff};
use super::softmax::Seen;
use super::sum::{COLUMNS, Terms, confidence, least_bound};
use super::{Bounded, ByRow, Formula, Values, as_given, by_row};
use crate::backend::Contract;
use crate::error::Result;
use crate::op::{HostTensor, Op};

/// Sizes of a stage that reads the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub heads: usize,
    pub kv_heads: usize,
    /// D, of one head.
    pub head_dim: usize,
    /// Positions in the call, T.
    pub tokens: usize,
    /// Positions so far, S.
    pub keys: usize,
    /// The position of the call's first row.
    pub start: usize,
}

impl Sizes {
    fn new(cols: usize, cache: &HostTensor, [tokens, start, head_dim]: [usize; 3]) -> Self {
        let (heads, kv_heads) = (cols / head_dim, cache.cols() / head_dim);
        Self { heads, kv_heads, head_dim, tokens, keys: start + tokens, start }
    }

    /// The KV head of a query head.
    pub fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    fn reads(&self, window: Option<usize>) -> Cache {
        let kv_head = (0..self.heads).map(|head| self.kv_head(head)).collect();
        Cache { seen: Seen::stated(self.start, window), kv_head, row: (0..self.keys).map(Some).collect() }
    }
}

/// What a stage reads of the cache.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    /// The positions that a row sees.
    pub seen: Seen,
    /// The KV head that a query head reads.
    pub kv_head: Vec<usize>,
    /// The cache's row that is read for a position; `None` reads zeros.
    pub row: Vec<Option<usize>>,
}

/// q·k·scale for the positions seen, 0 beyond. [heads, T, S] The sum's bound times the scale; the rounding of the scale to f32 and of the
/// product with it, (2⁻²⁴ + u)·|y|. Where q·k is rounded to a coarser format before it is scaled, half a step of that at q·k, times
/// the scale.
pub(crate) struct Scores<'a> {
    pub sizes: Sizes,
    /// [T, heads·D]
    pub q: Values<'a>,
    /// [capacity ≥ S, kv_heads·D]
    pub k: Values<'a>,
    /// Stated, 1/√D, or what the operation says.
    pub scale: f64,
    /// How often each of the D terms counts; stated, each once.
    pub times: Option<Vec<f64>>,
    /// As [`Linear`](super::linear::Linear)'s.
    pub coarse: Option<CoarseSums>,
    pub cache: Cache,
    /// What q and k may be off by besides, each in the worst direction, where they were rounded to a code that is undecided.
    pub ties: [Option<Vec<f64>>; 2],
}

impl<'a> Formula<'a> for Scores<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let Op::AttnScores { q, k, start, head_dim, scale, window } = *op else { return Ok(None) };
        let sizes = Sizes::new(q.cols(), k, [q.shape[0], start, head_dim]);
        let scale = scale.unwrap_or(1.0 / (head_dim as f64).sqrt());
        let (cache, ties) = (sizes.reads(window), [None, None]);
        let (q, k) = (as_given(&x[0]), as_given(&x[1]));
        Ok(Some(Self { sizes, q, k, scale, times: None, coarse: None, cache, ties }))
    }
    fn emulate(&mut self, how: &Emulation) {
        self.ties = [0, 1].map(|n| how.undecided(n));
    }
    fn least_share(&self, contract: &Contract) -> f64 {
        least_bound(self.sizes.head_dim, contract, confidence(self.len()))
    }
    by_row!();
}

impl ByRow for Scores<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.sizes.heads * self.sizes.tokens, self.sizes.keys]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let Sizes { heads, kv_heads, head_dim: d, tokens, keys, .. } = self.sizes;
        let (head, token) = (row / tokens, row % tokens);
        let (seen, kv_head) = (self.cache.seen.of(token, keys), self.cache.kv_head[head]);
        let lambda = confidence(self.len());
        let q = &self.q[(token * heads + head) * d..][..d];
        let element = |position: &usize| {
            let Some(row) = self.cache.row[*position].filter(|_| seen.contains(position)) else {
                return (0.0, [0.0; N]);
            };
            let at = (row * kv_heads + kv_head) * d;
            let mut k = Cow::Borrowed(&self.k[at..][..d]);
            if let Some(times) = &self.times {
                k.to_mut().iter_mut().zip(times).for_each(|(k, times)| *k *= times);
            }
            let k = &*k;
            if let Some(coarse) = &self.coarse {
                let sum = coarse.sum(q, k);
                let steps = coarse.steps(q, k, sum) * self.scale.abs();
                let y = sum * self.scale;
                return (y, contracts.map(|c| steps + (roundoff(c) + TO_F32) * y.abs() + TINY));
            }
            let terms = Terms::dot(q, k);
            let y = terms.sum * self.scale;
            let undecided = undecided([q, k], &self.ties, [(token * heads + head) * d, at]) * self.scale.abs();
            let floor = |c: &Contract| {
                let sum = terms.bound(c, lambda) * self.scale.abs();
                let inside = inner(terms.sum, c) * self.scale.abs();
                sum + (roundoff(c) + TO_F32) * y.abs() + (d + 1) as f64 * TINY + undecided + inside
            };
            (y, contracts.map(floor))
        };
        Ok(columns.iter().map(element).collect())
    }
}

/// What the sum of products of two runs of values may be off by, where some of them are undecided: Σ |a·δb| + |δa·b|. The runs begin at
/// `at` of the values that `ties` are of.
fn undecided(values: [&[f64]; 2], ties: &[Option<Vec<f64>>; 2], at: [usize; 2]) -> f64 {
    let of = |n: usize| {
        let Some(ties) = &ties[n] else { return 0.0 };
        values[1 - n].iter().zip(&ties[at[n]..]).map(|(x, step)| (x * step).abs()).sum::<f64>()
    };
    of(0) + of(1)
}

/// Σ p·v over the positions seen. [T, heads·D] The bound on each sum, and what may be flushed.
pub(crate) struct Context<'a> {
    pub sizes: Sizes,
    /// [heads, T, S]
    pub p: Values<'a>,
    /// [capacity ≥ S, kv_heads·D]
    pub v: Values<'a>,
    pub cache: Cache,
    /// Whose probabilities a head uses; stated, its own.
    pub head: Vec<usize>,
    /// How often the term of each position counts; stated, each once.
    pub times: Option<Vec<f64>>,
    /// As [`Linear`](super::linear::Linear)'s.
    pub coarse: Option<CoarseSums>,
    /// As [`Scores::ties`], of p and v.
    pub ties: [Option<Vec<f64>>; 2],
}

impl<'a> Formula<'a> for Context<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let Op::AttnContext { probs, v, start, head_dim, window } = *op else { return Ok(None) };
        let sizes = Sizes::new(probs.shape[0] * head_dim, v, [probs.shape[1], start, head_dim]);
        let head = (0..sizes.heads).collect();
        let (cache, ties) = (sizes.reads(window), [None, None]);
        let (p, v) = (as_given(&x[0]), as_given(&x[1]));
        Ok(Some(Self { sizes, p, v, cache, head, times: None, coarse: None, ties }))
    }
    fn emulate(&mut self, how: &Emulation) {
        self.ties = [0, 1].map(|n| how.undecided(n));
    }
    /// A row's sum has as many terms as it sees keys.
    fn least_share(&self, contract: &Contract) -> f64 {
        let lambda = confidence(self.len());
        (1..=self.sizes.keys).map(|n| least_bound(n, contract, lambda)).fold(f64::INFINITY, f64::min)
    }
    by_row!();
}

impl ByRow for Context<'_> {
    /// A row is one head of one position.
    fn shape(&self) -> [usize; 2] {
        [self.sizes.tokens * self.sizes.heads, self.sizes.head_dim]
    }

    fn row<const N: usize>(&self, row: usize, columns: &[usize], contracts: [&Contract; N]) -> Result<Vec<Bounded<N>>> {
        let Sizes { heads, kv_heads, head_dim: d, tokens, keys, .. } = self.sizes;
        let (token, head) = (row / heads, row % heads);
        let seen = self.cache.seen.of(token, keys);
        let p_row = (self.head[head] * tokens + token) * keys;
        let p = &self.p[p_row..][seen.clone()];
        let kv_head = self.cache.kv_head[head];
        let lambda = confidence(self.len());
        let of_head = |row: &Option<usize>| row.map(|row| (row * kv_heads + kv_head) * d);
        let rows: Vec<Option<usize>> = self.cache.row[seen.clone()].iter().map(of_head).collect();
        let floored = |terms: Terms, magnitudes: f64, undecided: f64| {
            let flushed = TINY * (p.len() as f64 + magnitudes);
            (terms.sum, contracts.map(|c| terms.bound(c, lambda) + flushed + undecided))
        };
        let mut column = vec![0.0; p.len()];
        let mut element = |i: &usize| {
            for (v, row) in column.iter_mut().zip(&rows) {
                *v = row.map_or(0.0, |at| self.v[at + i]);
            }
            if let Some(times) = &self.times {
                column.iter_mut().zip(&times[seen.clone()]).for_each(|(v, times)| *v *= times);
            }
            if let Some(coarse) = &self.coarse {
                let y = coarse.sum(p, &column);
                let steps = coarse.steps(p, &column, y);
                return (y, contracts.map(|c| steps + roundoff(c) * y.abs() + TINY));
            }
            let magnitudes = column.iter().map(|v| v.abs()).sum();
            let step = |n: usize, at: usize| self.ties[n].as_ref().map_or(0.0, |ties| ties[at]);
            let undecided: f64 = if self.ties.iter().all(|t| t.is_none()) {
                0.0
            } else {
                let keys = seen.clone().zip(&rows);
                let each = keys.zip(p.iter().zip(&column)).map(|((position, row), (p, v))| {
                    let kept = row.map_or(0.0, |at| step(1, at + i));
                    (step(0, p_row + position) * v).abs() + (p * kept).abs()
                });
                each.sum()
            };
            floored(Terms::dot(p, &column), magnitudes, undecided)
        };
        let plain = self.times.is_none() && self.coarse.is_none() && self.ties.iter().all(|ties| ties.is_none());
        let mut found = Vec::with_capacity(columns.len());
        for block in columns.chunk_by(|a, b| a / COLUMNS == b / COLUMNS) {
            let first = block[0] / COLUMNS * COLUMNS;
            if plain && first + COLUMNS <= d {
                let of_all = Terms::columns(p, &self.v[first..], &rows);
                found.extend(block.iter().map(|i| floored(of_all[i - first].0, of_all[i - first].1, 0.0)));
            } else {
                found.extend(block.iter().map(&mut element));
            }
        }
        Ok(found)
    }
}
