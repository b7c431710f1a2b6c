//! Rounding floors: for each element of a stage, the error that its arithmetic contract allows.
//!
//! Design:
//! - **Derived, not picked.** Each operation has one function, with its formula. What goes in is the contract (order of
//!   summation, unit roundoff, activation type, the bounds on exp, division and inverse square root) and the data.
//! - **Per element.** A stage's ratio is the largest |error| / floor over its elements ([`injected_ratio`]), so one wrong
//!   element among millions is seen, at its place. That the largest of N sums is larger than one of them is in
//!   [`sum::confidence`].
//! - **Against the float64 judge**: the floor bounds |subject − judge| on the same inputs. Two f32 sides may differ by the
//!   sum of their two floors.
//! - **Any sound kernel passes, not only one order of operations**: one that dequantizes first, one that keeps scales and
//!   offsets out of the sum, one with fused multiply-adds and one without.
//! - Rounding errors of a few operations in a row are added up at their worst; only sums are taken probabilistically.
//! - Where f32 may flush subnormal numbers (WGSL), [`TINY`] is allowed for what is lost.
//!
//! Operations that move values have no floor but 0: `Store`, `Rows`, `RouterTopK` (a comparison of numbers that are there), and
//! [`Op::Embed`] for types whose weights are exact in f32.

use rayon::prelude::*;

use crate::backend::oracle::{dequant, evaluate};
use crate::backend::{Contract, Precision};
use crate::error::{Error, Result};
use crate::op::{Data, HostTensor, Op, Weight};

use super::sum::{Terms, activation_error, confidence, roundoff};

/// The smallest normal f32, 2⁻¹²⁶: what flushing a subnormal result can lose.
pub const TINY: f64 = f32::MIN_POSITIVE as f64;

/// The unit of the contract's ULP bounds.
pub(crate) fn ulp(contract: &Contract) -> f64 {
    if contract.accumulator == Precision::F64 { f64::EPSILON } else { f32::EPSILON as f64 }
}

/// For each element of `op`'s result, the largest |error| that `contract` allows against the float64 oracle on the same
/// operands. NaN where an operand that enters the element is not finite.
///
/// # Errors
/// As [`evaluate`]: if the operands do not belong together.
pub fn floor(op: &Op<'_, &HostTensor>, contract: &Contract) -> Result<Vec<f64>> {
    let exact = evaluate(op)?;
    floor_of(op, contract, &exact)
}

/// [`floor`], for a caller that has the oracle's result already: `exact` is what [`evaluate`] made of `op`, so the operands
/// are not checked again.
///
/// # Errors
/// If the weight's type is unreadable.
///
/// # Panics
/// If `exact` is not the result of `op`.
pub fn floor_of(op: &Op<'_, &HostTensor>, contract: &Contract, exact: &HostTensor) -> Result<Vec<f64>> {
    let [floor] = floors_of(op, [contract], exact)?;
    Ok(floor)
}

/// [`floor_of`] for several sides, of which one pass over the weights makes all.
///
/// # Errors
/// As [`floor_of`].
///
/// # Panics
/// As [`floor_of`].
pub fn floors_of<const N: usize>(
    op: &Op<'_, &HostTensor>,
    contracts: [&Contract; N],
    exact: &HostTensor,
) -> Result<[Vec<f64>; N]> {
    let floors = match *op {
        Op::MatMul { x, weight } => matmul(x, None, weight, contracts)?,
        Op::ExpertMatMul { x, ids, weight } => matmul(x, Some(ids), weight, contracts)?,
        _ => {
            let y = exact.to_f64();
            contracts.map(|contract| without_matrix(op, contract, &y))
        }
    };
    for floor in &floors {
        assert_eq!(floor.len(), exact.len(), "{:?}: the exact values are not this operation's result", op.kind());
    }
    Ok(floors)
}

/// The floor of an operation that is no matrix product; `y` is its exact result.
fn without_matrix(op: &Op<'_, &HostTensor>, contract: &Contract, y: &[f64]) -> Vec<f64> {
    match *op {
        Op::MatMul { .. } | Op::ExpertMatMul { .. } => unreachable!("`floors_of` has taken it"),
        Op::Store { .. } | Op::Rows { .. } | Op::RouterTopK { .. } => vec![0.0; y.len()],
        Op::Embed { table, .. } => embed(table, y, contract),
        Op::RmsNorm { x, weight, eps } => rms_norm(x, weight.cols, eps as f64, y, contract),
        Op::Rope { x, start, head_dim, base } => rope(x, start, head_dim, base, y, contract),
        Op::AttnScores { q, k, start, head_dim } => attn_scores(q, k, start, head_dim, y, contract),
        Op::AttnProbs { scores, start } => {
            let (t, s) = (scores.shape[1].max(1), scores.cols());
            softmax(&scores.to_f64(), s, |row| start + row % t + 1, y, contract)
        }
        Op::AttnContext { probs, v, start, head_dim } => attn_context(probs, v, start, head_dim, contract),
        Op::Add { a, b } => add(a, b, y, contract),
        Op::RouterProbs { logits } => softmax(&logits.to_f64(), logits.cols(), |_| logits.cols(), y, contract),
        Op::RouterWeights { probs, ids, renormalise } => router_weights(probs, ids, renormalise, y, contract),
        Op::SwiGlu { gate, up } => swiglu(gate, up, y, contract),
        Op::Combine { down, weights } => combine(down, weights, contract),
    }
}

/// One rounding of the sum; and one of each operand on its way into a side that computes in less than the float64 it came in.
fn add(a: &HostTensor, b: &HostTensor, y: &[f64], contract: &Contract) -> Vec<f64> {
    let u = roundoff(contract);
    let incoming = |t: &HostTensor| match t.data {
        Data::F64(_) if contract.activations != Precision::F64 => t.to_f64().iter().map(|x| u * x.abs()).collect(),
        _ => vec![0.0; t.len()],
    };
    let operands = incoming(a).into_iter().zip(incoming(b)).map(|(a, b)| (1.0 + u) * (a + b));
    y.iter().zip(operands).map(|(y, operands)| u * y.abs() + operands + TINY).collect()
}

/// A row of a table. The judge rounds product − offset to f32 once, 2⁻²⁴, the subject once, u. Types without an offset are exact.
fn embed(table: &Weight, y: &[f64], contract: &Contract) -> Vec<f64> {
    use crate::op::GgmlType::*;
    let rounds = matches!(table.ty, Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K);
    let relative = if rounds { roundoff(contract) + 2f64.powi(-24) } else { 0.0 };
    y.iter().map(|y| relative * y.abs() + TINY).collect()
}

/// x · weightᵀ, for each token or for each token and chosen expert: [`Terms::bound`] of the products d·s·q·x beside the
/// offsets dmin·m·x, since a kernel may sum them apart; plus what the activation type loses, e for each x: min(Σ e|w|, λ√(Σ e²w²)),
/// the worst case and Hoeffding's inequality; plus TINY for each product and for each weight or activation that may be flushed.
fn matmul<const N: usize>(
    x: &HostTensor,
    ids: Option<&HostTensor>,
    weight: &Weight,
    contracts: [&Contract; N],
) -> Result<[Vec<f64>; N]> {
    let (k, n) = (weight.cols, weight.rows);
    let tokens = x.len().checked_div(k).unwrap_or(0);
    let xs = x.to_f64();
    // Which row of x and which expert each row of the result is made of.
    let slots: Vec<(usize, usize)> = match ids {
        None => (0..tokens).map(|t| (t, 0)).collect(),
        Some(ids) => {
            let per_token = if x.shape.len() == 3 { 1 } else { ids.cols().max(1) };
            ids.ids().iter().enumerate().map(|(slot, id)| (slot / per_token, *id as usize)).collect()
        }
    };
    let lambda = confidence(slots.len() * n);
    // For each side, what its activation type loses of each row of x.
    let errors: [Vec<Option<Vec<f64>>>; N] =
        contracts.map(|contract| xs.chunks_exact(k.max(1)).map(|x| activation_error(x, contract)).collect());
    let x_sums: Vec<f64> = xs.chunks_exact(k.max(1)).map(|x| x.iter().map(|x| x.abs()).sum()).collect();
    let mut floors = [(); N].map(|()| vec![0.0; slots.len() * n]);
    for expert in 0..weight.experts {
        let here: Vec<usize> = (0..slots.len()).filter(|s| slots[*s].1 == expert).collect();
        if here.is_empty() {
            continue;
        }
        let by_row: Vec<Vec<[f64; N]>> = (0..n)
            .into_par_iter()
            .map_init(
                || (vec![0.0; k], vec![0.0; k]),
                |(product, offset), row| {
                    dequant::each(weight.ty, weight.row(expert, row), |i, term| {
                        product[i] = term.product;
                        offset[i] = term.offset;
                    })?;
                    let has_offset = offset.iter().any(|o| *o != 0.0);
                    let w_sum: f64 = product.iter().map(|p| p.abs()).sum();
                    let bound = |slot: &usize| {
                        let token = slots[*slot].0;
                        let x = &xs[token * k..][..k];
                        let mut terms = Terms::dot(x, product);
                        if has_offset {
                            terms = terms.less(Terms::dot(x, offset));
                        }
                        // A code is at most 127, so a flushed scale moves a weight by less than 128·TINY.
                        let flushed = TINY * (k as f64 + w_sum + 128.0 * x_sums[token]);
                        std::array::from_fn(|side| {
                            let errors = errors[side][token].as_deref();
                            let lost = errors.map_or(0.0, |e| activation_loss(e, product, offset, lambda));
                            terms.bound(contracts[side], lambda) + lost + flushed
                        })
                    };
                    Ok(here.iter().map(bound).collect())
                },
            )
            .collect::<Result<_>>()?;
        for (row, bounds) in by_row.iter().enumerate() {
            for (slot, bounds) in here.iter().zip(bounds) {
                for (floor, bound) in floors.iter_mut().zip(bounds) {
                    floor[slot * n + row] = *bound;
                }
            }
        }
    }
    Ok(floors)
}

/// Σ e·w for activations that are each off by at most e: min(Σ e|w|, λ√(Σ e²w²)).
fn activation_loss(errors: &[f64], product: &[f64], offset: &[f64], lambda: f64) -> f64 {
    let (mut worst, mut squares) = (0.0, 0.0);
    for (e, (p, o)) in errors.iter().zip(product.iter().zip(offset)) {
        let moved = e * (p - o);
        worst += moved.abs();
        squares += moved * moved;
    }
    worst.min(lambda * squares.sqrt())
}

/// x·w / √(mean(x²) + eps). The sum's relative error is halved by the root, as are those of the division by n and of adding eps;
/// then the inverse root and two products:
/// |y|·(½·(bound(Σx²)/(Σx² + n·eps) + div + u) + rsqrt + 2u).
fn rms_norm(x: &HostTensor, n: usize, eps: f64, y: &[f64], contract: &Contract) -> Vec<f64> {
    let (u, ulp) = (roundoff(contract), ulp(contract));
    let xs = x.to_f64();
    let lambda = confidence(xs.len() / n.max(1));
    let groups = xs.chunks_exact(n).zip(y.chunks_exact(n));
    groups
        .flat_map(|(x, y)| {
            let terms = Terms::one_sign(x.iter().map(|x| x * x));
            let sum = (terms.bound(contract, lambda) + n as f64 * TINY) / (terms.absolute + n as f64 * eps);
            let relative = 0.5 * (sum + contract.div_ulp * ulp + u) + contract.rsqrt_ulp * ulp + 2.0 * u;
            y.iter().map(move |y| relative * y.abs() + TINY)
        })
        .collect()
}

/// a·cos − b·sin, where cos and sin of the f64 angle are rounded to f32: (|a·cos| + |b·sin|)·(2⁻²⁴ + u) + u·|y|.
/// An angle taken in f32 is off by up to position·2⁻²⁴, which is no rounding of this stage: its contract would have to say so.
fn rope(x: &HostTensor, start: usize, head_dim: usize, base: f64, y: &[f64], contract: &Contract) -> Vec<f64> {
    let u = roundoff(contract);
    let table = if contract.accumulator == Precision::F64 { u } else { 2f64.powi(-24) };
    let (xs, cols, half) = (x.to_f64(), x.cols(), head_dim / 2);
    let mut floor = Vec::with_capacity(xs.len());
    for (i, y) in y.iter().enumerate() {
        let (token, within) = (i / cols, i % cols % head_dim);
        let pair = within % half;
        let partner = if within < half { i + half } else { i - half };
        let angle = (start + token) as f64 * base.powf(-2.0 * pair as f64 / head_dim as f64);
        let products = (xs[i] * angle.cos()).abs() + (xs[partner] * angle.sin()).abs();
        floor.push(products * (table + u) + u * y.abs() + 2.0 * TINY);
    }
    floor
}

/// q·k/√D: [`Terms::bound`] of the products over √D; the rounding of 1/√D to f32 and the product with it: + (2⁻²⁴ + u)·|y|.
/// Beyond the diagonal: 0.
fn attn_scores(
    q: &HostTensor,
    k: &HostTensor,
    start: usize,
    head_dim: usize,
    y: &[f64],
    contract: &Contract,
) -> Vec<f64> {
    let (q_cols, k_cols) = (q.cols(), k.cols());
    let (t, s) = (q.shape[0], start + q.shape[0]);
    let group = q_cols / k_cols;
    let (qs, ks) = (q.to_f64(), k.to_f64());
    let (u, lambda) = (roundoff(contract), confidence(y.len()));
    let mut floor = vec![0.0; y.len()];
    floor.par_chunks_exact_mut(s.max(1)).enumerate().for_each(|(row, floor)| {
        let (head, token) = (row / t, row % t);
        let q = &qs[token * q_cols + head * head_dim..][..head_dim];
        for (position, floor) in floor[..start + token + 1].iter_mut().enumerate() {
            let k = &ks[position * k_cols + head / group * head_dim..][..head_dim];
            let sum = Terms::dot(q, k).bound(contract, lambda) / (head_dim as f64).sqrt();
            *floor = sum + (u + 2f64.powi(-24)) * y[row * s + position].abs() + (head_dim + 1) as f64 * TINY;
        }
    });
    floor
}

/// The relative error of exp(x − max): the subtraction moves the argument by u·|x − max|, and exp itself is good to
/// base + slope·|x − max| ULP. With the product by log₂e that an exp made of exp2 has: another u·|x − max|.
pub(crate) fn exp_error(distance: f64, contract: &Contract) -> f64 {
    2.0 * roundoff(contract) * distance + (contract.exp_base_ulp + contract.exp_slope_ulp * distance) * ulp(contract)
}

/// p = e/Σe with e = exp(x − max), over the first `visible(row)` of `cols`:
/// p·(ρ + Σpρ + bound(Σe)/Σe + div) + TINY, ρ the relative error of each e, Σpρ what those do to the sum.
fn softmax(x: &[f64], cols: usize, visible: impl Fn(usize) -> usize, y: &[f64], contract: &Contract) -> Vec<f64> {
    let lambda = confidence(x.len() / cols.max(1));
    let mut floor = vec![0.0; y.len()];
    let rows = x.chunks_exact(cols.max(1)).zip(y.chunks_exact(cols.max(1))).zip(floor.chunks_exact_mut(cols.max(1)));
    for (row, ((x, y), floor)) in rows.enumerate() {
        let seen = visible(row);
        let (x, y) = (&x[..seen], &y[..seen]);
        let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let error = |x: &f64| exp_error(max - x, contract);
        let in_sum: f64 = x.iter().zip(y).map(|(x, p)| if *p == 0.0 { 0.0 } else { p * error(x) }).sum();
        let sum = Terms::one_sign(y.iter().copied()).bound(contract, lambda) + seen as f64 * TINY;
        let shared = in_sum + sum + contract.div_ulp * ulp(contract);
        for ((x, p), floor) in x.iter().zip(y).zip(floor) {
            *floor = if *p == 0.0 { TINY } else { p * (error(x) + shared) + TINY };
        }
    }
    floor
}

/// Σ_s p·v: [`Terms::bound`] over the positions seen.
fn attn_context(probs: &HostTensor, v: &HostTensor, start: usize, head_dim: usize, contract: &Contract) -> Vec<f64> {
    let &[heads, t, s] = &probs.shape[..] else { return Vec::new() };
    let (cols, v_cols) = (heads * head_dim, v.cols());
    let group = cols / v_cols;
    let (ps, vs) = (probs.to_f64(), v.to_f64());
    let lambda = confidence(t * cols);
    let mut floor = vec![0.0; t * cols];
    floor.par_chunks_exact_mut(head_dim).enumerate().for_each(|(i, floor)| {
        let (token, head) = (i / heads, i % heads);
        let seen = start + token + 1;
        let p = &ps[(head * t + token) * s..][..seen];
        let mut column = vec![0.0; seen];
        for (d, floor) in floor.iter_mut().enumerate() {
            for (position, v) in column.iter_mut().enumerate() {
                *v = vs[position * v_cols + head / group * head_dim + d];
            }
            let flushed = TINY * (seen as f64 + column.iter().map(|v| v.abs()).sum::<f64>());
            *floor = Terms::dot(p, &column).bound(contract, lambda) + flushed;
        }
    });
    floor
}

/// p/Σp over the chosen: |y|·(bound(Σp)/Σp + div). Without renormalisation the values are copied.
fn router_weights(probs: &HostTensor, ids: &HostTensor, renormalise: bool, y: &[f64], contract: &Contract) -> Vec<f64> {
    if !renormalise {
        return vec![TINY; y.len()];
    }
    let (k, experts, ps) = (ids.cols().max(1), probs.cols(), probs.to_f64());
    let lambda = confidence(y.len() / k);
    let rows = ids.ids().chunks_exact(k).zip(y.chunks_exact(k)).enumerate();
    rows.flat_map(|(t, (ids, y))| {
        let terms = Terms::one_sign(ids.iter().map(|id| ps[t * experts + *id as usize]));
        let relative = terms.bound(contract, lambda) / terms.absolute + contract.div_ulp * ulp(contract);
        y.iter().map(move |y| relative * y.abs() + TINY)
    })
    .collect()
}

/// g·u/(1 + e), e = exp(−g): |y|·(ρ·e/(1+e) + u + div + 2u), ρ the relative error of e; the two products are a kernel's that
/// multiplies by the sigmoid. Where exp overflows f32 the result is 0 instead of |g·u|·exp(−|g|) < |g·u|·2⁻¹²⁶: + that.
fn swiglu(gate: &HostTensor, up: &HostTensor, y: &[f64], contract: &Contract) -> Vec<f64> {
    let (u, ulp) = (roundoff(contract), ulp(contract));
    gate.to_f64()
        .iter()
        .zip(up.to_f64())
        .zip(y)
        .map(|((g, up), y)| {
            let share = 1.0 / (1.0 + g.exp()); // e/(1 + e)
            let relative = share * exp_error(g.abs(), contract) + contract.div_ulp * ulp + 3.0 * u;
            relative * y.abs() + TINY * (1.0 + up.abs() + (g * up).abs())
        })
        .collect()
}

/// Σ_k weight·down: [`Terms::bound`] over the chosen experts.
fn combine(down: &HostTensor, weights: &HostTensor, contract: &Contract) -> Vec<f64> {
    let (k, h) = (weights.cols().max(1), down.cols());
    let (ds, ws) = (down.to_f64(), weights.to_f64());
    let lambda = confidence(ws.len() / k * h);
    let mut floor = Vec::with_capacity(ws.len() / k * h);
    let mut column = vec![0.0; k];
    for (w, down) in ws.chunks_exact(k).zip(ds.chunks_exact(k * h)) {
        for i in 0..h {
            for (slot, c) in column.iter_mut().enumerate() {
                *c = down[slot * h + i];
            }
            let flushed = TINY * (k as f64 + column.iter().map(|c| c.abs()).sum::<f64>());
            floor.push(Terms::dot(w, &column).bound(contract, lambda) + flushed);
        }
    }
    floor
}

/// An error against its floor.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Ratio {
    /// The largest |error| / floor; infinite where there is an error and no floor, or an error that is not a number.
    pub max: f64,
    /// Where it is; `None` when there are no elements.
    pub index: Option<usize>,
    /// Elements whose error is larger than their floor.
    pub beyond: usize,
    /// Elements whose error is not finite; they are among those beyond.
    pub non_finite: usize,
}

impl Ratio {
    /// Whether rounding explains every element. Nothing is explained by nothing: of no elements, false.
    pub fn explained(&self) -> bool {
        self.index.is_some() && self.beyond == 0
    }
}

/// The largest |error| / floor over elements. An element with no error has ratio 0 whatever its floor.
///
/// # Panics
/// If the two are not of one length.
pub fn injected_ratio(error: &[f64], floor: &[f64]) -> Ratio {
    assert_eq!(error.len(), floor.len(), "one floor an element");
    let mut ratio = Ratio { max: 0.0, index: None, beyond: 0, non_finite: 0 };
    for (i, (error, floor)) in error.iter().zip(floor).enumerate() {
        ratio.non_finite += !error.is_finite() as usize;
        let r = match error.abs() {
            0.0 => 0.0,
            e if e.is_finite() && floor.is_finite() => e / floor,
            _ => f64::INFINITY,
        };
        ratio.beyond += (r > 1.0) as usize;
        if ratio.index.is_none() || r > ratio.max {
            (ratio.max, ratio.index) = (r, Some(i));
        }
    }
    ratio
}

/// A stage's result, judged.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The oracle's result on the same operands.
    pub exact: HostTensor,
    /// For each element, the error that the contract allows.
    pub floor: Vec<f64>,
    pub ratio: Ratio,
}

/// Judges what a backend made of `op`: its error against the oracle over the floor of its contract. Ids have no floor: one that
/// differs has an infinite ratio.
///
/// # Errors
/// As [`evaluate`], and if `result` has another shape than the oracle's.
pub fn judge(op: &Op<'_, &HostTensor>, contract: &Contract, result: &HostTensor) -> Result<Judged> {
    let exact = evaluate(op)?;
    if exact.shape != result.shape {
        let message = format!("{:?}: the result is {:?}, the oracle's {:?}", op.kind(), result.shape, exact.shape);
        return Err(Error::usage(message));
    }
    let floor = floor_of(op, contract, &exact)?;
    let error: Vec<f64> = result.to_f64().iter().zip(exact.to_f64()).map(|(a, b)| a - b).collect();
    let ratio = injected_ratio(&error, &floor);
    Ok(Judged { exact, floor, ratio })
}

/// Where a router's decision is closest: the last expert chosen and the first left out.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct RouterMargin {
    /// z(K) − z(K+1) ≥ 0, in the oracle's logits.
    pub margin: f64,
    pub last_in: u32,
    pub first_out: u32,
    /// How far the two sides' errors together may move that difference.
    pub bound: f64,
}

impl RouterMargin {
    /// Whether rounding explains that two sides decide differently here.
    pub fn near_tie(&self) -> bool {
        self.margin <= self.bound // false for NaN
    }
}

/// The margin of one token. `logits` are the oracle's, `[E]`; `reference` and `subject` bound each side's error of each logit,
/// `[E]` ([`logit_bounds`]). `None` when all experts are chosen, or none.
///
/// # Panics
/// If a bound is shorter than the logits.
pub fn router_margin(logits: &[f64], k: usize, reference: &[f64], subject: &[f64]) -> Option<RouterMargin> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let (last, first) = (*order.get(k.checked_sub(1)?)?, *order.get(k)?);
    let side = |bound: &[f64]| bound[last] + bound[first];
    let margin = logits[last] - logits[first];
    Some(RouterMargin { margin, last_in: last as u32, first_out: first as u32, bound: side(reference) + side(subject) })
}

/// How far a side's order of experts may be from that of the oracle's logits, in units of a logit, `[T, E]`: the floor of its router
/// logits, and what its softmax adds before the comparison. Of the softmax only what tells two experts apart counts, not the
/// sum that they share: the relative error of exp, and the division; d log p = dp/p.
///
/// # Errors
/// If `logits_floor` is not as long as the logits.
pub fn logit_bounds(logits: &HostTensor, logits_floor: &[f64], probs: &Contract) -> Result<Vec<f64>> {
    if logits.len() != logits_floor.len() {
        return Err(Error::usage(format!("{} floors for {} router logits", logits_floor.len(), logits.len())));
    }
    let (z, cols) = (logits.to_f64(), logits.cols().max(1));
    let rows = z.chunks_exact(cols).zip(logits_floor.chunks_exact(cols));
    Ok(rows
        .flat_map(|(z, floor)| {
            let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            z.iter().zip(floor).map(move |(z, f)| f + exp_error(max - z, probs) + probs.div_ulp * ulp(probs))
        })
        .collect())
}

#[test]
fn old_and_new() {
    use crate::backend::Order;
    let mut worst = std::collections::BTreeMap::<String, (f64, String)>::new();
    for (n, row) in crate::backend::cases::table().into_iter().enumerate() {
        let operands = row.build(n as u64).unwrap();
        let host = operands.op();
        let exact = evaluate(&host).unwrap();
        let ieee = Contract::ieee_f32(Order::Sequential);
        let cs = [
            ieee,
            Contract::wgsl_f32(Order::Lanes { lanes: 8 }),
            Contract::f64(),
            Contract { activations: Precision::Int8 { block: 32 }, ..ieee },
        ];
        let [a, b, c, d] = &cs;
        let old = floors_of(&host, [a, b, c, d], &exact).unwrap();
        let new = super::floor::floors_of(&host, [a, b, c, d], &exact).unwrap();
        for (old, new) in old.iter().zip(&new) {
            assert_eq!(old.len(), new.len());
            for (o, n) in old.iter().zip(new) {
                let r = if o == n { 0.0 } else { (n / o - 1.0).abs() };
                let w = worst.entry(format!("{:?}", row.kind())).or_default();
                if !(r <= w.0) {
                    *w = (r, row.to_string());
                }
            }
        }
    }
    println!("{worst:#?}");
    assert!(worst.values().all(|w| w.0 < 1e-11));
}
