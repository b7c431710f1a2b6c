//! The gated delta rule: a state that each position decays and corrects.
//!
//! # Derivation of the floor
//! Column j of a value head's state, s_j(τ), is by itself: with f = e^decay, p = f·s_j(τ − 1) and h = pᵀk,
//!
//! s_j(τ) = p + k·δ, δ = β·(v_j − h), and y_j(t) = s_j(t)ᵀq/√D.
//!
//! To first order a rounding moves y by its size times what y depends on it with, and a position's dependence on all before it goes backwards
//! from the query: w(t) = q/√D is y's gradient by s(t), w′(τ) = w(τ) − β·a(τ)·k(τ) with a(τ) = w(τ)ᵀk(τ) that by p, f·w′(τ) = w(τ − 1), and
//! a(τ) that by δ(τ). None of them depends on j, so they are made once for a query. A position's roundings are
//!
//! - of p's elements, u·|p_i| each, with w′;
//! - of h, the sum of D products in the contract's order ([`Terms::variance`]), with β·a;
//! - of v − h and its product with β, or of a kernel that takes β·v and β·h apart, u·|β·v|, u·|β·h| and u·|δ|, with a;
//! - of k_i·δ, u·|k_i·δ|, and of the additions, u·|s_i(τ)|, with w.
//!
//! They have mean zero given those before, so they add up as [`sum`](super::sum) has it: λ·√(Σ (u·v_e·gradient)²). Adding up their sizes
//! instead would bound any of them, and all of them by as much as 1/(1 − f) steps and by √D elements, of which an error has the roots: a floor that no
//! fault of a few per cent reaches. Σ_i w_i²·s_i² is bounded by ‖w‖₄²·‖s‖₄² (Cauchy and Schwarz), so that no gradient is held against each state.
//!
//! The exponential is another matter: its error is one for all of a head, and where a decay stays the same it is the same at each position. It
//! is taken at its worst, Σ_τ ρ(τ)·|∂y/∂ln f(τ)|, and that derivative is w′(τ)ᵀp(τ) = Σ_{σ<τ} a(σ)·δ_j(σ): y is Σ_σ a(σ)·δ_j(σ), of which
//! what was there before τ is a part. So no gradient needs a state here either.
//!
//! Where nobody states an order of sums, it may be that of a kernel which takes a prompt in chunks, as llama.cpp and transformers do, 64 positions at a time. It
//! adds the decays' logarithms up from a chunk's start and takes exponentials of differences, so that a position's decay is off by u times the
//! sum up to it, relative. That is bounded by the decays of as many positions, wherever a chunk begins.
//!
//! Last come the sum sᵀq and the scale, as in [`Scores`](super::attention::Scores). Where a gradient has shrunk below 2⁻⁷⁰ of what it was the state before counts
//! as wrong altogether, and nothing before it is looked at: what a head forgets costs nothing.
//!
//! Keys may have any length and β any value: the gradients say what that does.

use super::rounding::{TINY, TO_F32, exp_error, roundoff};
use super::sum::{Terms, confidence};
use super::{Bounded, Formula, Values, as_given, in_parallel};
use crate::backend::{Contract, Order};
use crate::error::Result;
use crate::op::{HostTensor, Op};

/// Sizes of the stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeltaSizes {
    /// Of values, Hv.
    pub heads: usize,
    /// Of queries and keys, Hk.
    pub key_heads: usize,
    /// D, of one head.
    pub head_dim: usize,
    /// Positions in the call, T.
    pub tokens: usize,
    /// The position of the call's first row.
    pub start: usize,
    /// Columns of v's rows.
    pub value_cols: usize,
}

impl DeltaSizes {
    /// The key head of a value head.
    pub fn key_head(&self, head: usize, tiled: bool) -> usize {
        if tiled { head % self.key_heads } else { head / (self.heads / self.key_heads) }
    }
}

/// Sᵀq·scale of a state S that each position decays and corrects. [T, Hv·D]
#[derive(Clone)]
pub(crate) struct Delta<'a> {
    pub sizes: DeltaSizes,
    /// [T, Hk·D]
    pub q: Values<'a>,
    /// [capacity ≥ S, Hk·D]
    pub k: Values<'a>,
    /// [capacity ≥ S, value_cols]
    pub v: Values<'a>,
    /// The logarithm of what each position keeps; −∞ begins anew. [capacity ≥ S, Hv]
    pub decay: Values<'a>,
    /// What v is multiplied by, and what the state holds for the key; stated, the same. [capacity ≥ S, Hv] each.
    pub beta: [Values<'a>; 2],
    /// The heads of queries and of keys that a value head reads.
    pub key_head: [Vec<usize>; 2],
    /// The first of a value head's columns in v's rows.
    pub value_column: Vec<usize>,
    /// Stated, 1/√D.
    pub scale: f64,
    /// What q is multiplied by besides; stated, nothing. [T, Hv]
    pub times: Option<Vec<f64>>,
    /// How many positions before its own a query reads the state; stated, none.
    pub lag: usize,
    /// S·q for Sᵀq.
    pub transposed: bool,
}

impl<'a> Formula<'a> for Delta<'a> {
    fn stated(op: &Op<'a, &'a HostTensor>, x: &'a [Vec<f64>]) -> Result<Option<Self>> {
        let Op::DeltaRule { q, v, decay, start, head_dim, tiled, .. } = *op else { return Ok(None) };
        let (heads, key_heads, tokens, value_cols) = (decay.cols(), q.cols() / head_dim, q.shape[0], v.cols());
        let sizes = DeltaSizes { heads, key_heads, head_dim, tokens, start, value_cols };
        let key_head: Vec<usize> = (0..heads).map(|head| sizes.key_head(head, tiled)).collect();
        let beta = as_given(&x[4]);
        Ok(Some(Self {
            sizes,
            q: as_given(&x[0]),
            k: as_given(&x[1]),
            v: as_given(&x[2]),
            decay: as_given(&x[3]),
            beta: [beta.clone(), beta],
            key_head: [key_head.clone(), key_head],
            value_column: (0..heads).map(|head| value_cols - (heads - head) * head_dim).collect(),
            scale: 1.0 / (head_dim as f64).sqrt(),
            times: None,
            lag: 0,
            transposed: false,
        }))
    }

    fn len(&self) -> usize {
        self.sizes.tokens * self.sizes.heads * self.sizes.head_dim
    }

    /// Parallel over heads: a head's elements share its state, and a query's its gradients.
    fn evaluate<const N: usize>(
        &self,
        indices: Option<&[usize]>,
        contracts: [&Contract; N],
        put: &mut dyn FnMut(usize, Bounded<N>),
    ) -> Result<()> {
        let DeltaSizes { heads, head_dim: d, .. } = self.sizes;
        let mut of_heads = vec![Vec::new(); heads]; // places, and which element is asked for there
        match indices {
            Some(indices) => indices.iter().enumerate().for_each(|(at, i)| of_heads[i / d % heads].push((at, *i))),
            None => (0..self.len()).for_each(|i| of_heads[i / d % heads].push((i, i))),
        }
        let found = in_parallel(heads, 1, &|head| {
            let elements: Vec<usize> = of_heads[head].iter().map(|(_, i)| *i).collect();
            Ok(if elements.is_empty() { Vec::new() } else { Head::new(self, head, contracts).elements(&elements) })
        })?;
        for ((at, _), element) in of_heads.into_iter().flatten().zip(found.into_iter().flatten()) {
            put(at, element);
        }
        Ok(())
    }
}

/// Of one column of the state at one position.
struct Step<const N: usize> {
    delta: f64,
    /// δ² + (β·v)² + (β·h)².
    rounded: f64,
    /// β²·[`Terms::variance`] of h.
    held: [f64; N],
    /// ‖p‖₄², ‖s‖₄².
    faded: f64,
    state: f64,
}

/// What a query depends on one position with.
struct Gradient {
    /// By δ.
    a: f64,
    /// ‖w′‖₄², ‖w‖₄².
    by_faded: f64,
    by_state: f64,
    /// Σ (w·k)².
    by_products: f64,
    /// What of its numbers may be flushed, but for those of p.
    flushed: f64,
    /// ‖w′‖₁.
    faded_sum: f64,
}

/// (Σx⁴)^½, which is ‖x‖₄².
fn fourth(x: &[f64]) -> f64 {
    x.iter().map(|x| (x * x) * (x * x)).sum::<f64>().sqrt()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// ‖x‖₁.
fn size(x: &[f64]) -> f64 {
    x.iter().map(|x| x.abs()).sum()
}

/// A gradient that has shrunk by this counts as none.
const FORGOTTEN: f64 = 8.5e-22; // 2^-70

/// Positions that an engine takes at once, at the most.
const CHUNK: usize = 64;

/// One value head.
struct Head<'f, 'a, const N: usize> {
    of: &'f Delta<'a>,
    head: usize,
    contracts: [&'f Contract; N],
}

impl<'f, 'a, const N: usize> Head<'f, 'a, N> {
    fn new(of: &'f Delta<'a>, head: usize, contracts: [&'f Contract; N]) -> Self {
        Self { of, head, contracts }
    }

    /// `[D]`
    fn key(&self, position: usize) -> &'f [f64] {
        let DeltaSizes { head_dim: d, key_heads, .. } = self.of.sizes;
        &self.of.k[(position * key_heads + self.of.key_head[1][self.head]) * d..][..d]
    }

    /// `[D]`, and what the products with it are multiplied by.
    fn query(&self, t: usize) -> (&'f [f64], f64) {
        let DeltaSizes { head_dim: d, key_heads, heads, .. } = self.of.sizes;
        let times = self.of.times.as_ref().map_or(1.0, |times| times[t * heads + self.head]);
        (&self.of.q[(t * key_heads + self.of.key_head[0][self.head]) * d..][..d], self.of.scale * times)
    }

    fn decay(&self, position: usize) -> f64 {
        self.of.decay[position * self.of.sizes.heads + self.head]
    }

    fn beta(&self, position: usize) -> [f64; 2] {
        [0, 1].map(|n| self.of.beta[n][position * self.of.sizes.heads + self.head])
    }

    /// What a decay may be off by, relative. What keeps nothing keeps nothing.
    fn decay_errors(&self, position: usize) -> [f64; N] {
        let decay = self.decay(position);
        if decay == f64::NEG_INFINITY {
            return [0.0; N];
        }
        let before = (position + 1).saturating_sub(CHUNK)..=position;
        let running: f64 = before.map(|position| self.decay(position).abs()).filter(|size| size.is_finite()).sum();
        self.contracts.map(|c| {
            let in_chunks = if c.order == Order::Unknown { roundoff(c) * running } else { 0.0 };
            exp_error(decay.abs(), c) + in_chunks
        })
    }

    /// The position whose state a row reads; `None` where there is none yet.
    fn read_by(&self, t: usize) -> Option<usize> {
        (self.of.sizes.start + t).checked_sub(self.of.lag)
    }

    /// At `indices` of the stage's elements, which are of this head and ascend.
    fn elements(&self, indices: &[usize]) -> Vec<Bounded<N>> {
        let DeltaSizes { heads, head_dim: d, .. } = self.of.sizes;
        let rows: Vec<(usize, Vec<usize>)> = indices
            .chunk_by(|a, b| a / (heads * d) == b / (heads * d))
            .map(|row| (row[0] / (heads * d), row.iter().map(|i| i % d).collect()))
            .collect();
        if self.of.transposed {
            return self.of_rows(&rows);
        }
        let mut columns: Vec<usize> = indices.iter().map(|i| i % d).collect();
        columns.sort_unstable();
        columns.dedup();
        let mut sums: Vec<Vec<Terms>> = Vec::with_capacity(rows.len());
        let mut steps: Vec<Vec<Step<N>>> = Vec::new(); // [position][column]
        let mut next = rows.iter().peekable();
        while next.next_if(|(t, _)| self.read_by(*t).is_none()).is_some() {
            sums.push(Vec::new());
        }
        let last = rows.last().and_then(|(t, _)| self.read_by(*t));
        self.run(&columns, last, |position, step, states| {
            steps.push(step);
            if let Some((t, asked)) = next.next_if(|(t, _)| self.read_by(*t) == Some(position)) {
                let q = self.query(*t).0;
                let of = |j: &usize| Terms::dot(&states[columns.partition_point(|column| column < j)], q);
                sums.push(asked.iter().map(of).collect());
            }
        });
        let errors: Vec<[f64; N]> = (0..steps.len()).map(|position| self.decay_errors(position)).collect();
        let lambda = confidence(self.of.len());
        let mut found = Vec::with_capacity(indices.len());
        for ((t, asked), sums) in rows.iter().zip(&sums) {
            let Some(position) = self.read_by(*t) else {
                found.extend(asked.iter().map(|_| (0.0, [TINY; N])));
                continue;
            };
            let (gradients, left) = self.gradients(*t, position);
            let (scale, first) = (self.query(*t).1, position + 1 - gradients.len());
            for (j, terms) in asked.iter().zip(sums) {
                let column = columns.partition_point(|column| column < j);
                let before = |position: usize| position.checked_sub(1).map_or(0.0, |p| steps[p][column].state.sqrt());
                let (mut part, mut likely, mut flushed) = (0.0, 0.0, left * before(first));
                let (mut held, mut worst) = ([0.0; N], [0.0; N]);
                for (position, of) in (first..).zip(gradients.iter().rev()) {
                    let step = &steps[position][column];
                    for n in 0..N {
                        worst[n] += errors[position][n] * f64::abs(part);
                        held[n] += of.a * of.a * step.held[n];
                    }
                    likely += of.by_faded * step.faded
                        + of.by_state * step.state
                        + of.by_products * step.delta * step.delta
                        + of.a * of.a * step.rounded;
                    flushed += TINY * (of.flushed + of.faded_sum * (1.0 + before(position)));
                    part += of.a * step.delta;
                }
                let y = terms.sum * scale;
                let floor = |n: usize| {
                    let (c, u) = (self.contracts[n], roundoff(self.contracts[n]));
                    let all = u * u * likely + held[n] + scale * scale * terms.variance(c);
                    let ends = (u + TO_F32) * y.abs() + TINY * (self.of.sizes.head_dim + 1) as f64;
                    lambda * all.sqrt() + worst[n] + ends + flushed
                };
                found.push((y, std::array::from_fn(floor)));
            }
        }
        found
    }

    /// Runs the columns' states from position 0 up to `last`, and shows each position's steps and states, [column][D].
    fn run(&self, columns: &[usize], last: Option<usize>, mut show: impl FnMut(usize, Vec<Step<N>>, &[Vec<f64>])) {
        let DeltaSizes { head_dim: d, value_cols, .. } = self.of.sizes;
        let mut states = vec![vec![0.0; d]; columns.len()];
        for position in 0..last.map_or(0, |last| last + 1) {
            let (k, fade, [of_value, of_held]) = (self.key(position), self.decay(position).exp(), self.beta(position));
            let values = &self.of.v[position * value_cols + self.of.value_column[self.head]..][..d];
            let step = |(state, j): (&mut Vec<f64>, &usize)| {
                state.iter_mut().for_each(|x| *x *= fade);
                let faded = fourth(state);
                let terms = Terms::dot(state, k);
                let (taken, held) = (of_value * values[*j], of_held * terms.sum);
                let delta = taken - held;
                state.iter_mut().zip(k).for_each(|(x, k)| *x += k * delta);
                Step {
                    delta,
                    rounded: delta * delta + taken * taken + held * held,
                    held: self.contracts.map(|c| of_held * of_held * terms.variance(c)),
                    faded,
                    state: fourth(state),
                }
            };
            let steps = states.iter_mut().zip(columns).map(step).collect();
            show(position, steps, &states);
        }
    }

    /// What row t, which reads the state of `position`, depends on that and earlier positions with, the last first, and how large the gradient is that is left at the
    /// first: ‖w‖₁.
    fn gradients(&self, t: usize, position: usize) -> (Vec<Gradient>, f64) {
        let (q, scale) = self.query(t);
        let d = q.len() as f64;
        let mut w: Vec<f64> = q.iter().map(|q| q * scale).collect();
        let (mut found, mut left) = (Vec::new(), size(&w));
        let least = left * FORGOTTEN;
        for position in (0..=position).rev() {
            let (k, fade, [_, beta]) = (self.key(position), self.decay(position).exp(), self.beta(position));
            let a = dot(&w, k);
            let (by_state, by_products) = (fourth(&w), w.iter().zip(k).map(|(w, k)| (w * k) * (w * k)).sum());
            let flushed = 2.0 * left + a.abs() * (2.0 + beta.abs() * (d + 1.0));
            w.iter_mut().zip(k).for_each(|(w, k)| *w -= beta * a * k);
            let (by_faded, faded_sum) = (fourth(&w), size(&w));
            found.push(Gradient { a, by_faded, by_state, by_products, flushed, faded_sum });
            w.iter_mut().for_each(|w| *w *= fade);
            left = fade * faded_sum;
            if left <= least {
                break;
            }
        }
        (found, left)
    }

    /// [`Head::elements`] of a state that is read by rows: an element depends on all columns. A column's error as a whole is bounded by the norms of
    /// what moves it, since a step multiplies it by f·(I − β·k·kᵀ), whose norm is at most f·max(1, |1 − β·‖k‖²|).
    fn of_rows(&self, rows: &[(usize, Vec<usize>)]) -> Vec<Bounded<N>> {
        let d = self.of.sizes.head_dim;
        let lambda = confidence(self.of.len());
        let columns: Vec<usize> = (0..d).collect();
        let (mut likely, mut worst) = (vec![[0.0; N]; d], vec![[0.0; N]; d]);
        let mut found = Vec::new();
        let mut next = rows.iter().peekable();
        while let Some((_, asked)) = next.next_if(|(t, _)| self.read_by(*t).is_none()) {
            found.extend(asked.iter().map(|_| (0.0, [TINY; N])));
        }
        let last = rows.last().and_then(|(t, _)| self.read_by(*t));
        self.run(&columns, last, |position, steps, states| {
            let (k, fade, [_, beta]) = (self.key(position), self.decay(position).exp(), self.beta(position));
            let squares = dot(k, k);
            let turned = f64::max(1.0, (1.0 - beta * squares).abs());
            let errors = self.decay_errors(position);
            for ((step, likely), worst) in steps.iter().zip(&mut likely).zip(&mut worst) {
                let moved =
                    turned * turned * step.faded + squares * (step.rounded + step.delta * step.delta) + step.state;
                for n in 0..N {
                    let u = roundoff(self.contracts[n]);
                    likely[n] = (fade * turned) * (fade * turned) * likely[n] + u * u * moved + squares * step.held[n];
                    let length = ((d as f64).sqrt() * step.faded).sqrt();
                    worst[n] = fade * turned * worst[n] + errors[n] * turned * length;
                }
            }
            let Some((t, asked)) = next.next_if(|(t, _)| self.read_by(*t) == Some(position)) else { return };
            let (q, scale) = self.query(*t);
            for i in asked {
                let row: Vec<f64> = states.iter().map(|state| state[*i]).collect();
                let terms = Terms::dot(&row, q);
                let y = terms.sum * scale;
                let floor = |n: usize| {
                    let (c, u) = (self.contracts[n], roundoff(self.contracts[n]));
                    let squares: f64 = likely.iter().zip(q).map(|(likely, q)| likely[n] * q * q).sum();
                    let sizes: f64 = worst.iter().zip(q).map(|(worst, q)| worst[n] * q.abs()).sum();
                    let all = scale * scale * (squares + terms.variance(c));
                    lambda * all.sqrt() + sizes * scale.abs() + (u + TO_F32) * y.abs() + TINY * (d + 1) as f64
                };
                found.push((y, std::array::from_fn(floor)));
            }
        });
        found
    }
}
