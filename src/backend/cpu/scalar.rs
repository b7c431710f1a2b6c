//! `cpu:scalar`: the plain definition of every operation, in f32.
//!
//! Design:
//! - One function an operation, in the words of [`Op`](crate::op::Op)'s documentation, over one row, head or group of
//!   values at a time. Who calls it how often, and on which thread, is decided elsewhere and changes no result.
//! - **Order of sums**: `Order::Blocked { block: 32 }`. Each group of 32 terms is added up on its own accumulator, first
//!   to last, then the group sums, first to last. A term of a sum of n goes through at most 32 + n/32 additions, against
//!   n for one running sum, and the order is still one that can be followed by hand.
//! - Multiplication and addition are rounded apart; nothing is fused.
//! - Weights are dequantized to f32 exactly as [`crate::quant`] defines; the activation stays f32.
//! - Angles of the rotary embedding are taken in f64, cosine and sine are rounded to f32: an f32 angle at position 4000
//!   would be off by 2·10⁻⁴ already.

use std::ops::Range;
use std::sync::Arc;

use super::packed::Packed;
use super::simd::{Line, PART};
use crate::op::{CLAMPED_ALPHA, CLAMPED_LIMIT, GroupScore, Groups, Pairing, Rotation, Weight};

/// Terms to an accumulator in every sum.
pub const BLOCK: usize = 32;

/// Σ terms, in blocks.
fn sum(terms: impl ExactSizeIterator<Item = f32>) -> f32 {
    let mut terms = terms;
    let mut total = 0.0;
    while terms.len() > 0 {
        let mut group = 0.0;
        for term in terms.by_ref().take(BLOCK) {
            group += term;
        }
        total += group;
    }
    total
}

/// Σ x·w. `x` and `w` are `[n]`.
pub fn dot(x: &[f32], w: &[f32]) -> f32 {
    sum(x.iter().zip(w).map(|(x, w)| x * w))
}

/// Adds the products of a row's `columns` with every x to its sums, blocks first to last: at the end of the row they are [`dot`]'s. `x` is T times
/// `[n]` in strips of one; a sum is the first of its line.
pub(super) fn add_part(w: &[[f32; PART]], columns: Range<usize>, x: Packed<'_>, sums: &mut [Line]) {
    for ((_, line), total) in x.strips().zip(sums) {
        let x = &bytemuck::cast_slice::<_, f32>(line)[columns.clone()];
        for (x, w) in x.chunks(BLOCK).zip(w[0].chunks(BLOCK)) {
            total.0[0] += dot(x, w);
        }
    }
}

/// The sums of one row with every x, `[T]`, `stride` apart in `out`.
pub(super) fn results(_: Packed<'_>, sums: &[Line], stride: usize, out: &mut [f32]) {
    out.iter_mut().step_by(stride).zip(sums).for_each(|(out, sum)| *out = sum.0[0]);
}

/// The products of `rows` rows of weights, `stride` apart, with every x. `x` is T times `[n]` in strips of one, `out` is [T, rows].
pub(super) fn panel(w: &[f32], stride: usize, rows: usize, x: Packed<'_>, out: &mut [f32]) {
    for (t, (_, line)) in x.strips().enumerate() {
        let x = &bytemuck::cast_slice::<_, f32>(line)[..x.k()];
        for r in 0..rows {
            out[t * rows + r] = dot(x, &w[r * stride..][..x.len()]);
        }
    }
}

/// x / √(mean(x²) + eps) · weight. `x`, `weight` and `out` are `[n]`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = sum(x.iter().map(|x| x * x)) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// The cosine and sine for the pairs of a head at position `pos`, times `magnitude`: angle = pos · frequency. `frequencies` and `out` are
/// [D/2].
pub fn rope_angles(pos: usize, frequencies: &[f64], magnitude: f64, out: &mut [[f32; 2]]) {
    for (out, frequency) in out.iter_mut().zip(frequencies) {
        let angle = pos as f64 * frequency;
        *out = [(angle.cos() * magnitude) as f32, (angle.sin() * magnitude) as f32];
    }
}

/// By what each pair of a head turns from one position to the next, [D/2].
pub fn rope_frequencies(head_dim: usize, rotation: &Rotation<&Arc<Weight>>) -> Vec<f64> {
    let scales = rotation.scales(head_dim).into_iter().enumerate();
    let plain = scales.map(|(i, scale)| scale * rotation.base.powf(-2.0 * i as f64 / rotation.turned(head_dim) as f64));
    match rotation.factors {
        None => plain.collect(),
        Some(factors) => plain.zip(factors.f32s()).map(|(f, factor)| f / f64::from(factor)).collect(),
    }
}

/// Rotates the pairs of one head, which are those of its dimensions `from` on, as many as `angles` has; the other dimensions are copied.
/// `x` and `out` are `[D]`.
pub fn rope(x: &[f32], pairing: Pairing, from: usize, angles: &[[f32; 2]], out: &mut [f32]) {
    for (i, &[cos, sin]) in angles.iter().enumerate() {
        let [first, second] = pairing.dims(i, angles.len()).map(|i| from + i);
        let (a, b) = (x[first], x[second]);
        out[first] = a * cos - b * sin;
        out[second] = a * sin + b * cos;
    }
    let behind = from + 2 * angles.len();
    out[..from].copy_from_slice(&x[..from]);
    out[behind..].copy_from_slice(&x[behind..]);
}

/// What q·k is multiplied by: `scale`, or else 1 / √D.
pub fn attn_scale(head_dim: usize, scale: Option<f64>) -> f32 {
    scale.unwrap_or(1.0 / (head_dim as f64).sqrt()) as f32
}

/// The largest of `x`; NaN if there is one, unlike with `f32::max`.
pub fn max(x: &[f32]) -> f32 {
    x.iter().copied().fold(f32::NEG_INFINITY, |max, x| if max.is_nan() || x <= max { max } else { x })
}

/// exp(x − max x) / Σ exp(x − max x). `x` and `out` are `[n]`.
///
/// A NaN among `x` makes every value NaN, as does +∞: neither has a maximum to subtract.
pub fn softmax(x: &[f32], out: &mut [f32]) {
    let max = max(x);
    for (out, x) in out.iter_mut().zip(x) {
        *out = (x - max).exp();
    }
    let total = sum(out.iter().copied());
    for out in out {
        *out /= total;
    }
}

/// Σ_s `probs[s]` · `v[s]` over the positions of `probs`, for every head that reads these values. `probs` is `[heads][seen]`, row s of `v`
/// starts at s·stride, `out` is `[heads, D]`.
pub fn attn_context(probs: &[&[f32]], v: &[f32], stride: usize, out: &mut [f32]) {
    let head_dim = out.len() / probs.len();
    for (probs, out) in probs.iter().zip(out.chunks_exact_mut(head_dim)) {
        for (d, out) in out.iter_mut().enumerate() {
            *out = sum(probs.iter().enumerate().map(|(s, p)| p * v[s * stride + d]));
        }
    }
}

/// a + b. All are `[n]`.
pub fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a + b;
    }
}

/// The ids of the `out.len()` largest of `probs`, descending; ties to the lower id. `probs` is `[E]`, `out` is `[K]`.
///
/// NaN comes before every number, so that it is chosen and stays visible downstream rather than vanishing here.
pub fn router_topk(probs: &[f32], groups: Option<Groups>, out: &mut [u32]) {
    let mut ids: Vec<u32> = (0..probs.len() as u32).collect();
    if let Some(Groups { count, used, by }) = groups {
        let size = probs.len() / count;
        let score = |group: &[f32]| {
            let mut best: Vec<u32> = (0..size as u32).collect();
            sort_descending(group, &mut best);
            match by {
                GroupScore::Max => group[best[0] as usize],
                GroupScore::TopTwo => group[best[0] as usize] + group[best[1] as usize],
            }
        };
        let scores: Vec<f32> = probs.chunks_exact(size).map(score).collect(); // [count]
        let mut best: Vec<u32> = (0..count as u32).collect();
        sort_descending(&scores, &mut best);
        ids.retain(|id| best[..used].contains(&(id / size as u32)));
    }
    sort_descending(probs, &mut ids);
    out.copy_from_slice(&ids[..out.len()]);
}

/// Sorts ids by their values, the largest first, NaN before all; of equal ones as they are.
fn sort_descending(values: &[f32], ids: &mut [u32]) {
    let rank = |id: u32| {
        let value = values[id as usize];
        (value.is_nan(), value)
    };
    // A stable sort keeps equal values in order of id. `partial_cmp` is None only between two NaNs: they tie.
    ids.sort_by(|&a, &b| rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal));
}

/// The sigmoid of each logit. `logits` and `out` are `[E]`.
pub fn router_sigmoids(logits: &[f32], out: &mut [f32]) {
    for (out, logit) in out.iter_mut().zip(logits) {
        *out = 1.0 / (1.0 + (-logit).exp());
    }
}

/// probs at ids, divided by their sum if `renormalise`, times `scale`. `probs` is `[E]`, `ids` and `out` are `[K]`.
pub fn router_weights(probs: &[f32], ids: &[u32], renormalise: bool, scale: f32, out: &mut [f32]) {
    for (out, &id) in out.iter_mut().zip(ids) {
        *out = probs[id as usize];
    }
    if renormalise {
        let total = sum(out.iter().copied());
        for out in &mut *out {
            *out /= total;
        }
    }
    for out in out {
        *out *= scale;
    }
}

/// gate · sigmoid(gate) · up. All are `[n]`.
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + (-gate).exp()) * up;
    }
}

/// gelu(gate) · up, gelu by tanh: g · sigmoid(2z), z = √(2/π)·(g + 0.044715·g³). All are `[n]`.
pub fn geglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, g), up) in out.iter_mut().zip(gate).zip(up) {
        let twice = GELU_SCALE * (g + GELU_CUBE * (g * g * g));
        *out = g / (1.0 + (-twice).exp()) * up;
    }
}

/// g · sigmoid(1.702·g) · (1 + up), g at most 7, up between −7 and 7. All are `[n]`.
pub fn clamped(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (alpha, limit) = (CLAMPED_ALPHA as f32, CLAMPED_LIMIT as f32);
    for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
        let gate = if gate > limit { limit } else { gate }; // NaN stays NaN
        *out = gate / (1.0 + (-(alpha * gate)).exp()) * (1.0 + up.clamp(-limit, limit));
    }
}

/// 2√(2/π).
pub const GELU_SCALE: f32 = 1.595_769_2;
pub const GELU_CUBE: f32 = 0.044_715;

/// gate's sigmoid · up. All are `[n]`.
pub fn sigmoid_glu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = up / (1.0 + (-gate).exp());
    }
}

/// silu(Σ_j `w[c, j]` · `rows[j][c]`), first row to last. `rows` are those of the last positions that there are, each `[C]`; `w` is [C, L],
/// of which positions that are not there have the first columns; `out` is `[C]`.
pub fn conv(rows: &[&[f32]], w: &[f32], out: &mut [f32]) {
    let kernel = w.len() / out.len();
    for (c, out) in out.iter_mut().enumerate() {
        let w = &w[c * kernel..][kernel - rows.len()..kernel];
        let sum = sum(rows.iter().zip(w).map(|(x, w)| x[c] * w));
        *out = sum / (1.0 + (-sum).exp());
    }
}

/// x / √(Σx² + eps). `x` and `out` are `[D]`.
pub fn l2_norm(x: &[f32], eps: f32, out: &mut [f32]) {
    let scale = 1.0 / (sum(x.iter().map(|x| x * x)) + eps).sqrt();
    for (out, x) in out.iter_mut().zip(x) {
        *out = x * scale;
    }
}

/// weight · ln(1 + eˣ). All are `[n]`.
pub fn decay(x: &[f32], weight: &[f32], out: &mut [f32]) {
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = weight * (x.max(0.0) + (-x.abs()).exp().ln_1p());
    }
}

/// One position of a gated delta rule: S ← `fade` · S, then S ← S + k (beta · (v − Sᵀk))ᵀ. `state` is S, [D, D], a row for each element of a key;
/// `k`, `v` and `delta`, which is written, are `[D]`.
pub fn delta_step(state: &mut [f32], fade: f32, beta: f32, k: &[f32], v: &[f32], delta: &mut [f32]) {
    state.iter_mut().for_each(|x| *x *= fade);
    held(state, k, delta);
    for (delta, v) in delta.iter_mut().zip(v) {
        *delta = beta * (v - *delta);
    }
    for (row, k) in state.chunks_exact_mut(v.len()).zip(k) {
        for (x, delta) in row.iter_mut().zip(&*delta) {
            *x += k * delta;
        }
    }
}

/// What a state holds for a query or a key, Sᵀx: the sums of all columns side by side, each in blocks. `state` is [D, D], `x` and `out` are `[D]`.
pub fn held(state: &[f32], x: &[f32], out: &mut [f32]) {
    let d = out.len();
    let mut group = vec![0.0; d];
    out.fill(0.0);
    for (rows, x) in state.chunks(BLOCK * d).zip(x.chunks(BLOCK)) {
        group.fill(0.0);
        for (row, x) in rows.chunks_exact(d).zip(x) {
            for (group, s) in group.iter_mut().zip(row) {
                *group += s * x;
            }
        }
        for (out, group) in out.iter_mut().zip(&group) {
            *out += group;
        }
    }
}

/// The softmax of the values at ids. `logits` is `[E]`, `ids` and `out` are `[K]`.
pub fn softmax_of_chosen(logits: &[f32], ids: &[u32], out: &mut [f32]) {
    let chosen: Vec<f32> = ids.iter().map(|id| logits[*id as usize]).collect();
    softmax(&chosen, out);
}

/// x · sigmoid(gate). `x` and `out` are `[n]`.
pub fn sigmoid_gate(x: &[f32], gate: f32, out: &mut [f32]) {
    let sigmoid = 1.0 / (1.0 + (-gate).exp());
    for (out, x) in out.iter_mut().zip(x) {
        *out = x * sigmoid;
    }
}

/// Σ_k `weights[k]` · `down[k]`. `down` is [K, H], `weights` is `[K]`, `out` is `[H]`.
pub fn combine(down: &[f32], weights: &[f32], out: &mut [f32]) {
    let hidden = out.len();
    for (h, out) in out.iter_mut().enumerate() {
        *out = sum(weights.iter().enumerate().map(|(k, weight)| weight * down[k * hidden + h]));
    }
}

/// For the probe: s ← s · x + y, `rounds` times, in 16 independent sums. Returns their total and their number.
pub fn multiply_add(rounds: usize) -> (f32, usize) {
    let (mut sums, x, y) = ([0.0f32; 16], std::hint::black_box(0.5f32), std::hint::black_box(1.0f32));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * x + y;
        }
    }
    (sum(sums.into_iter()), sums.len())
}
