//! Causal attention: its three operations, and all of it at once.
//!
//! Design:
//! - Scores and probabilities are [heads, T, S], more than all else that a call over a long context makes, and mostly made for nobody: their
//!   tensors wait ([`CpuTensor::waiting`]) until somebody asks for their values.
//! - Where nobody has when the context is asked for, [`run`] makes it a few positions at a time, whose scores stay in the cache.
//! - The same functions of the same values in the same order: the bits are those of the three operations, whoever looks at what.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::kernels::Kernels;
use super::ops::f32s;
use super::tensor::Unmade;
use super::tile::at_least;
use super::{CpuBackend, CpuTensor, Pool, scalar};
use crate::op::{HostTensor, Op, Operation, Weight, first_seen};

/// Whether the result is one that waits: scores do, and probabilities of those that do.
pub(super) fn waits(op: &Op<'_, CpuTensor>) -> bool {
    match op {
        Op::AttnScores { .. } => true,
        Op::AttnProbs { scores, .. } => scores.waits(),
        _ => false,
    }
}

/// Whether `op` needs no values of its operand, which waits.
pub(super) fn goes_on(op: &Op<'_, CpuTensor>, operand: &CpuTensor) -> bool {
    match op {
        Op::AttnProbs { scores, .. } => scores.same(operand),
        Op::AttnContext { probs, v, start, head_dim, window } => {
            probs.same(operand)
                && Whole::of(probs).is_some_and(|whole| {
                    // Values may have heads of another width, but as many as keys have.
                    let [q, k] = [&whole.q, &whole.k].map(|t| t.values().cols());
                    let (heads, kv_heads) = (q / whole.head_dim, k / whole.head_dim);
                    v.values().cols() == kv_heads * head_dim
                        && heads.is_multiple_of(kv_heads)
                        && (whole.start, whole.window) == (*start, *window)
                })
        }
        _ => false,
    }
}

/// What probabilities that wait are made of.
struct Whole {
    q: CpuTensor,
    k: CpuTensor,
    start: usize,
    head_dim: usize,
    scale: f32,
    window: Option<usize>,
    sinks: Option<Arc<Weight>>,
}

impl Whole {
    /// `None` unless the scores wait as well, and see the same keys.
    fn of(probs: &CpuTensor) -> Option<Self> {
        let probs = probs.what_waits()?;
        let Unmade { op: Operation::AttnProbs { scores, start, window, sinks }, .. } = &*probs else { return None };
        let scores = scores.what_waits()?;
        let Unmade { op: Operation::AttnScores { q, k, start: from, head_dim, scale, window: seen }, .. } = &*scores
        else {
            return None;
        };
        ((start, window) == (from, seen)).then(|| Self {
            q: q.clone(),
            k: k.clone(),
            start: *start,
            head_dim: *head_dim,
            scale: scalar::attn_scale(*head_dim, *scale),
            window: *window,
            sinks: sinks.clone(),
        })
    }
}

/// All of attention for a context whose probabilities wait: see [`goes_on`].
pub(super) fn run(backend: &CpuBackend, op: &Op<'_, CpuTensor>, out: &mut [f32]) {
    let Op::AttnContext { probs, v, head_dim, .. } = op else { unreachable!("it goes on with probabilities") };
    let whole = Whole::of(probs).expect("they wait");
    let (q, k, v) = (whole.q.values(), whole.k.values(), v.values());
    let of = Attention {
        q: f32s(&q),
        k: f32s(&k),
        v: f32s(&v),
        cols: [&q, &k, &v].map(|t| t.cols()),
        dims: [whole.head_dim, *head_dim],
        start: whole.start,
        scale: whole.scale,
        window: whole.window,
        sinks: whole.sinks.as_ref().map(|sinks| sinks.f32s().collect()),
    };
    of.run(backend.kernels, &backend.pool, q.shape[0], out);
}

/// Operands of attention, and what they are to each other.
struct Attention<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// Of a row of each.
    cols: [usize; 3],
    /// Of a head of queries and keys, and of one of values.
    dims: [usize; 2],
    start: usize,
    scale: f32,
    window: Option<usize>,
    /// `[heads]`
    sinks: Option<Vec<f32>>,
}

/// Queries that go through the keys together where there are many: so many that a key is worth reading, a whole number of registers, and few
/// enough that their scores stay in the second level of cache up to some ten thousand keys.
const QUERIES: usize = 32;
/// Queries that do where there are few, each in a sum of its own.
const FEW: usize = 8;
/// Positions whose values are read once for all of them.
const ROWS_TOGETHER: usize = 8;

/// Which queries go through the keys together. A level adds up the products of many in another order than those of few, so this says the bits: it
/// depends on the shapes alone.
#[derive(Clone, Copy)]
enum Together {
    /// [`QUERIES`]: so many heads of a KV head, at so many positions; at the end of a call at the last so many.
    Many { heads: usize, positions: usize },
    /// Up to [`FEW`]; so many heads of a position, or fewer.
    Few { heads: usize },
}

impl Together {
    /// Of `rows` positions, of which `group` heads read one KV head.
    fn of(rows: usize, group: usize) -> Self {
        let heads = [4, 2, 1].into_iter().find(|heads| group.is_multiple_of(*heads)).unwrap_or(1);
        let positions = QUERIES / heads;
        match rows >= positions {
            true => Self::Many { heads, positions },
            false => Self::Few { heads: (1..=FEW).rfind(|heads| group.is_multiple_of(*heads)).unwrap_or(1) },
        }
    }
}

/// The positions that go through the keys together with those from `first` on, of which there are `new` more: as many as there have to be.
fn at_least_so_many(first: usize, new: usize, positions: usize) -> Range<usize> {
    let end = first + new;
    end - positions.max(new)..end
}

/// What a thread keeps from one task to the next.
#[derive(Default)]
struct Scratch {
    /// [queries, keys]
    scores: Vec<f32>,
    /// `[keys]`, and the sink
    row: Vec<f32>,
    shares: Vec<f32>,
    /// [T, heads, D]
    out: Vec<f32>,
}

impl Attention<'_> {
    /// `out` is [T, heads·D] of `rows` positions.
    fn run(&self, kernels: &Kernels, pool: &Pool, rows: usize, out: &mut [f32]) {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        let ([q_cols, k_cols, _], [head_dim, width]) = (self.cols, self.dims);
        let (all, group) = (q_cols / head_dim, q_cols / k_cols);
        let work = all * rows * (self.start + rows) * (head_dim + width);
        match Together::of(rows, group) {
            Together::Few { heads } => {
                // One head, where some threads would have none.
                let heads = if rows * all / heads >= pool.threads() { heads } else { 1 };
                pool.for_chunks(work, out, heads * width, |i, out| {
                    let (t, head) = (i * heads / all, i * heads % all);
                    SCRATCH.with_borrow_mut(|scratch| {
                        let Scratch { scores, row, shares, .. } = scratch;
                        self.some(kernels, head..head + heads, t..t + 1, [scores, row, shares], out);
                    });
                });
            }
            Together::Many { heads, positions } => pool.for_chunks(work, out, positions * all * width, |i, out| {
                let new = out.len() / (all * width);
                let here = at_least_so_many(i * positions, new, positions);
                SCRATCH.with_borrow_mut(|scratch| {
                    let Scratch { scores, row, shares, out: results } = scratch;
                    for head in (0..all).step_by(heads) {
                        let results = at_least(results, here.len() * heads * width, 0.0);
                        self.some(kernels, head..head + heads, here.clone(), [scores, row, shares], results);
                        let new = results[(here.len() - new) * heads * width..].chunks_exact(heads * width);
                        let rows = out.chunks_exact_mut(all * width).zip(new);
                        rows.for_each(|(out, new)| out[head * width..][..new.len()].copy_from_slice(new));
                    }
                });
            }),
        }
    }

    /// Some heads that read the same keys, at some positions. `out` is [T, heads, D].
    fn some(
        &self,
        kernels: &Kernels,
        heads: Range<usize>,
        positions: Range<usize>,
        [scores, row, shares]: [&mut Vec<f32>; 3],
        mut out: &mut [f32],
    ) {
        let ([q_cols, k_cols, v_cols], [head_dim, width]) = (self.cols, self.dims);
        let kv_head = heads.start / (q_cols / k_cols);
        let first_of = |t: usize| first_seen(self.start + t, self.window);
        let first = first_of(positions.start);
        let keys = self.start + positions.end - first;
        let queries: Vec<(usize, usize)> = positions.flat_map(|t| heads.clone().map(move |h| (t, h))).collect();
        let x: Vec<&[f32]> = queries.iter().map(|(t, h)| &self.q[t * q_cols + h * head_dim..][..head_dim]).collect();
        let scores = at_least(scores, queries.len() * keys, 0.0);
        kernels.panel(&self.k[first * k_cols + kv_head * head_dim..], k_cols, keys, &x, scores);
        // What a query sees, from the first key of all on.
        let seen = |t: usize| first_of(t) - first..self.start + t + 1 - first;
        for ((t, h), scores) in queries.iter().zip(scores.chunks_exact_mut(keys)) {
            let scores = &mut scores[seen(*t)];
            row.clear();
            row.extend(scores.iter().map(|product| product * self.scale));
            row.extend(self.sinks.as_ref().map(|sinks| sinks[*h]));
            let shares = at_least(shares, row.len(), 0.0);
            kernels.softmax(row, shares);
            scores.copy_from_slice(&shares[..scores.len()]);
        }
        // Positions that begin with the same key go through the values together.
        let of_query: Vec<((usize, usize), &[f32])> = queries.iter().copied().zip(scores.chunks_exact(keys)).collect();
        let most = ROWS_TOGETHER * heads.len();
        for run in of_query.chunk_by(|a, b| first_of(a.0.0) == first_of(b.0.0)).flat_map(|run| run.chunks(most)) {
            let from = first_of(run[0].0.0);
            let probs: Vec<&[f32]> = run.iter().map(|((t, _), probs)| &probs[seen(*t)]).collect();
            let (these, rest) = out.split_at_mut(run.len() * width);
            kernels.attn_context(&probs, &self.v[from * v_cols + kv_head * width..], v_cols, these);
            out = rest;
        }
    }
}

/// [T, heads·D], [capacity, kv_heads·D] → [heads, T, S]
#[allow(clippy::too_many_arguments)] // two operands, what they are to each other, and the result
pub(super) fn scores(
    kernels: &Kernels,
    pool: &Pool,
    q: &HostTensor,
    k: &HostTensor,
    [start, head_dim]: [usize; 2],
    scale: f32,
    window: Option<usize>,
    out: &mut [f32],
) {
    let (rows, q_cols, k_cols) = (q.shape[0], q.cols(), k.cols());
    let (seen, group) = (start + rows, q_cols / k_cols);
    let (q, k) = (f32s(q), f32s(k));
    // What some queries, (head, t), of one KV head make of the keys that the last of them sees: [queries, keys].
    let products = |queries: &[(usize, usize)], products: &mut Vec<f32>| {
        let x: Vec<&[f32]> = queries.iter().map(|(h, t)| &q[t * q_cols + h * head_dim..][..head_dim]).collect();
        let keys = queries.iter().map(|(_, t)| start + t + 1).max().unwrap_or(0);
        products.resize(queries.len() * keys, 0.0);
        kernels.panel(&k[queries[0].0 / group * head_dim..], k_cols, keys, &x, products);
        keys
    };
    // Scores beyond one's own position are 0.
    let finish = |t: usize, products: &[f32], out: &mut [f32]| {
        let visible = first_seen(start + t, window)..start + t + 1;
        out[..visible.start].fill(0.0);
        out[visible.end..].fill(0.0);
        for (out, product) in out[visible.clone()].iter_mut().zip(&products[visible]) {
            *out = product * scale;
        }
    };
    let work = out.len() * head_dim;
    let Together::Many { heads, positions } = Together::of(rows, group) else {
        return pool.for_chunks(work, out, FEW * seen, |i, out| {
            let first = i * FEW;
            let queries: Vec<(usize, usize)> =
                (first..first + out.len() / seen).map(|row| (row / rows, row % rows)).collect();
            let (mut out, mut made) = (out.chunks_exact_mut(seen), Vec::new());
            for run in queries.chunk_by(|a, b| a.0 / group == b.0 / group) {
                let keys = products(run, &mut made);
                // `out` comes last: a zip that ends would otherwise have taken the next run's first row.
                for (((_, t), made), out) in run.iter().zip(made.chunks_exact(keys)).zip(out.by_ref()) {
                    finish(*t, made, out);
                }
            }
        });
    };
    pool.for_chunks(work, out, heads * rows * seen, |i, out| {
        let mut made = Vec::new();
        for first in (0..rows).step_by(positions) {
            let new = positions.min(rows - first);
            let here = at_least_so_many(first, new, positions);
            let queries: Vec<(usize, usize)> = here.flat_map(|t| (0..heads).map(move |h| (i * heads + h, t))).collect();
            let keys = products(&queries, &mut made);
            for ((h, t), made) in queries.iter().zip(made.chunks_exact(keys)).filter(|((_, t), _)| *t >= first) {
                finish(*t, made, &mut out[((h % heads) * rows + t) * seen..][..seen]);
            }
        }
    });
}

/// [heads, T, S] → same.
pub(super) fn probs(
    kernels: &Kernels,
    pool: &Pool,
    scores: &HostTensor,
    start: usize,
    window: Option<usize>,
    sinks: Option<&Arc<Weight>>,
    out: &mut [f32],
) {
    let (rows, seen) = (scores.shape[1], scores.shape[2]);
    let scores = f32s(scores);
    let sinks: Option<Vec<f32>> = sinks.map(|sinks| sinks.f32s().collect()); // [heads]
    pool.for_chunks(out.len() * 16, out, seen, |i, out| {
        let position = start + i % rows;
        let visible = first_seen(position, window)..position + 1;
        let x = &scores[i * seen..][visible.clone()];
        out[..visible.start].fill(0.0);
        out[visible.end..].fill(0.0);
        match &sinks {
            None => kernels.softmax(x, &mut out[visible]),
            Some(sinks) => {
                // The sink is the last score of the row; its share is dropped.
                let x = [x, &[sinks[i / rows]]].concat();
                let mut shares = vec![0.0; x.len()];
                kernels.softmax(&x, &mut shares);
                out[visible].copy_from_slice(&shares[..x.len() - 1]);
            }
        }
    });
}

/// [heads, T, S], [capacity, kv_heads·D] → [T, heads·D]
#[allow(clippy::too_many_arguments)] // two operands, what they are to each other, and the result
pub(super) fn context(
    kernels: &Kernels,
    pool: &Pool,
    probs: &HostTensor,
    v: &HostTensor,
    start: usize,
    head_dim: usize,
    window: Option<usize>,
    out: &mut [f32],
) {
    let (heads, rows, seen, v_cols) = (probs.shape[0], probs.shape[1], probs.shape[2], v.cols());
    let group = heads / (v_cols / head_dim);
    let (probs, v) = (f32s(probs), f32s(v));
    // What a row of probabilities sees of the values from position `first` on.
    let seen_from = |first: usize, h: usize, t: usize| &probs[(h * rows + t) * seen..][first..start + t + 1];
    let of_head = |first: usize, head: usize| &v[first * v_cols + head / group * head_dim..];
    // Rows that go through the values together, where that leaves some tasks for each thread: they begin with the same one.
    let chunk = if window.is_none() && rows >= 4 * ROWS_TOGETHER * pool.threads() { ROWS_TOGETHER } else { 1 };
    if chunk == 1 {
        // Heads that read the same values go through them together, unless some threads would have none.
        let together = if rows * heads / group >= pool.threads() { group } else { 1 };
        return pool.for_chunks(probs.len() * head_dim, out, together * head_dim, |i, out| {
            let (t, head) = (i * together / heads, i * together % heads);
            let first = first_seen(start + t, window);
            let probs: Vec<&[f32]> = (head..head + together).map(|h| seen_from(first, h, t)).collect();
            kernels.attn_context(&probs, of_head(first, head), v_cols, out);
        });
    }
    pool.for_chunks(probs.len() * head_dim, out, chunk * heads * head_dim, |i, out| {
        let here = i * chunk..i * chunk + out.len() / (heads * head_dim);
        let mut results = vec![0.0; here.len() * group * head_dim]; // [rows, group, D]
        for head in (0..heads).step_by(group) {
            let of_row = |t: usize| (head..head + group).map(move |h| seen_from(0, h, t));
            let probs: Vec<&[f32]> = here.clone().flat_map(of_row).collect();
            kernels.attn_context(&probs, of_head(0, head), v_cols, &mut results);
            let rows = out.chunks_exact_mut(heads * head_dim).zip(results.chunks_exact(group * head_dim));
            rows.for_each(|(out, results)| out[head * head_dim..][..results.len()].copy_from_slice(results));
        }
    });
}
