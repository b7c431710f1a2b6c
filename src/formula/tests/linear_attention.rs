//! The floors of linear attention, measured: of the CPU backend's kernels over the table of operations, and of a delta rule that takes positions in
//! chunks, as engines do with a prompt.

use std::collections::BTreeMap;

use super::*;
use crate::backend::Backend;
use crate::backend::cases;
use crate::backend::cpu::{CpuBackend, Level};
use crate::op::OpKind;

const KINDS: [OpKind; 4] = [OpKind::Conv, OpKind::L2Norm, OpKind::Decay, OpKind::DeltaRule];

/// Whether no ratio is above 1, and the median of those that round not below 0.01.
fn assert_sound(kind: OpKind, mut ratios: Vec<f64>) {
    ratios.retain(|r| *r > 0.0);
    ratios.sort_by(f64::total_cmp);
    let (n, worst) = (ratios.len(), ratios[ratios.len() - 1]);
    let median = ratios[n / 2];
    println!("{kind:?}: {n} stages, median {median:.4}, least {:.2e}, largest {worst:.3}", ratios[0]);
    assert!(worst <= 1.0 && median >= 0.01, "{kind:?}: {worst} {median}");
}

#[test]
fn scalar_kernels_stay_below_their_floors_and_near_them() {
    let mut backend = CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap();
    let mut ratios = BTreeMap::<OpKind, Vec<f64>>::new();
    for case in cases::table().into_iter().filter(|case| KINDS.contains(&case.kind())) {
        for seed in 0..6 {
            let operands = case.build(seed).unwrap();
            let result = cases::run(&mut backend, case.at(), &operands).unwrap();
            let checked = check_against_oracle(&operands.op(), &backend.contract(case.kind()), &result).unwrap();
            assert!(checked.ratio.max <= 1.0, "{case}, seed {seed}: {:?}", checked.ratio);
            ratios.entry(case.kind()).or_default().push(checked.ratio.max);
        }
    }
    ratios.into_iter().for_each(|(kind, ratios)| assert_sound(kind, ratios));
}

/// Positions that an engine takes at once.
const CHUNK: usize = 64;

/// Σ over `n` terms, one after the other.
fn sum(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    (0..n).fold(0.0, |sum, i| sum + term(i))
}

/// A delta rule as transformers' `torch_chunk_gated_delta_rule` has it, and llama.cpp's graph after it: of each chunk of positions a triangular system, and
/// the state from chunk to chunk.
pub fn in_chunks(op: &Op<'_, &HostTensor>) -> Vec<f32> {
    let Op::DeltaRule { q, v, decay, start, head_dim: d, tiled, .. } = *op else { unreachable!() };
    let (tokens, key_cols, heads, v_cols) = (q.shape[0], q.cols(), decay.cols(), v.cols());
    let x: Vec<Vec<f32>> = op.inputs().iter().map(|t| t.to_f32()).collect();
    let (seen, key_heads, scale) = (start + tokens, key_cols / d, 1.0 / (d as f32).sqrt());
    let mut out = vec![0.0; tokens * heads * d];
    for head in 0..heads {
        let key_head = if tiled { head % key_heads } else { head / (heads / key_heads) };
        let mut state = vec![0.0f32; d * d]; // [key, value]
        for first in (0..seen).step_by(CHUNK) {
            let n = CHUNK.min(seen - first);
            let k = |i: usize| &x[1][(first + i) * key_cols + key_head * d..][..d];
            let v = |i: usize| &x[2][(first + i) * v_cols + v_cols - heads * d + head * d..][..d];
            let beta = |i: usize| x[4][(first + i) * heads + head];
            let mut g = vec![0.0f32; n];
            for i in 0..n {
                g[i] = x[3][(first + i) * heads + head] + if i > 0 { g[i - 1] } else { 0.0 };
            }
            let product = |a: &[f32], b: &[f32]| sum(d, |i| a[i] * b[i]);
            let kept = |i: usize, j: usize| (g[i] - g[j]).exp();
            // (I + L)⁻¹, L's rows solved one after the other.
            let mut solved = vec![0.0f32; n * n];
            for i in 0..n {
                let own: Vec<f32> = (0..i)
                    .map(|j| -product(&k(i).iter().map(|k| k * beta(i)).collect::<Vec<f32>>(), k(j)) * kept(i, j))
                    .collect();
                for j in 0..i {
                    solved[i * n + j] = own[j] + sum(i, |m| own[m] * solved[m * n + j] * (m > j) as u8 as f32);
                }
                solved[i * n + i] = 1.0;
            }
            let through = |i: usize, of: &dyn Fn(usize) -> f32| sum(i + 1, |m| solved[i * n + m] * of(m));
            let mut new = vec![0.0f32; n * d];
            for i in 0..n {
                let decayed: Vec<f32> = (0..d).map(|e| through(i, &|m| k(m)[e] * beta(m) * g[m].exp())).collect();
                for j in 0..d {
                    let held = sum(d, |e| decayed[e] * state[e * d + j]);
                    new[i * d + j] = through(i, &|m| v(m)[j] * beta(m)) - held;
                }
            }
            for i in (0..n).filter(|i| first + i >= start) {
                let t = first + i - start;
                let q: Vec<f32> = x[0][t * key_cols + key_head * d..][..d].iter().map(|q| q * scale).collect();
                let weights: Vec<f32> = (0..=i).map(|m| product(&q, k(m)) * kept(i, m)).collect();
                for j in 0..d {
                    let before = sum(d, |e| q[e] * g[i].exp() * state[e * d + j]);
                    out[(t * heads + head) * d + j] = before + sum(i + 1, |m| weights[m] * new[m * d + j]);
                }
            }
            for e in 0..d {
                for j in 0..d {
                    let added = sum(n, |m| k(m)[e] * kept(n - 1, m) * new[m * d + j]);
                    state[e * d + j] = state[e * d + j] * g[n - 1].exp() + added;
                }
            }
        }
    }
    out
}

/// How far positions in chunks are from the floor of the same sums in any order.
#[test]
fn a_delta_rule_in_chunks_stays_below_its_floor() {
    let contract = Contract::ieee_f32(Order::Unknown);
    let mut ratios = Vec::new();
    for case in cases::table().into_iter().filter(|case| case.kind() == OpKind::DeltaRule) {
        for seed in 0..3 {
            let operands = case.build(seed).unwrap();
            let op = operands.op();
            let result = in_chunks(&op);
            let exact = exact(&op, &contract).unwrap();
            let result = HostTensor::f32(&exact.shape, result);
            let checked = check_against_oracle(&op, &contract, &result).unwrap();
            ratios.push(checked.ratio.max);
        }
    }
    assert_sound(OpKind::DeltaRule, ratios);
}
