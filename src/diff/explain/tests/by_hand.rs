//! Mistakes made here, by other means than the variants: the oracle on changed operands, or a loop written out.

use std::sync::Arc;

use super::*;
use crate::backend::Precision;
use crate::op::{GateActivation, GgmlType, Rotation};
use crate::synth::{FfnShape, Mix, ModelShape, Moe};

/// The stage's operation on changed operands.
pub(super) fn of(op: Op<'_, &HostTensor>) -> HostTensor {
    f32s(evaluate(&op).unwrap())
}

/// The stage's result with its elements changed.
pub(super) fn edited(w: &World, site: Site, edit: impl Fn(usize, f32) -> f32) -> HostTensor {
    let right = made(&w.op(site));
    HostTensor::f32(&right.shape, right.to_f32().iter().enumerate().map(|(i, x)| edit(i, *x)).collect())
}

#[test]
fn rope_mistakes_are_told_apart() {
    let w = world();
    let site = Site::layer(1, Stage::QRope);
    let op = w.op(site);
    let Op::Rope { x, start, head_dim, rotation } = &op else { unreachable!() };
    let base = rotation.base;
    let turned =
        |start: usize, rotation| f32s(evaluate(&Op::Rope { x: &**x, start, head_dim: *head_dim, rotation }).unwrap());
    let with = |base: f64| turned(*start, Rotation { base, ..*rotation });
    explained(&w, site, &with(1e4), "rope-base", "base 10000 ");
    explained(&w, site, &with(1e7), "rope-base", "base 10000000 ");
    explained(&w, site, &with(123456.0), "rope-base", "base 123456 ");
    let later = turned(1, *rotation);
    explained(&w, site, &later, "rope-position", "off by +1");
    explained(&w, site, &x.as_ref().clone(), "rope-missing", "no rope");
    // NORM pairing, by hand.
    let (xs, d) = (x.to_f64(), *head_dim);
    let mut norm = xs.clone();
    for (t, row) in norm.chunks_exact_mut(x.cols()).enumerate() {
        for head in row.chunks_exact_mut(d) {
            for i in 0..d / 2 {
                let (sin, cos) = (t as f64 * base.powf(-2.0 * i as f64 / d as f64)).sin_cos();
                let (a, b) = (head[2 * i], head[2 * i + 1]);
                (head[2 * i], head[2 * i + 1]) = (a * cos - b * sin, a * sin + b * cos);
            }
        }
    }
    explained(&w, site, &f32s(HostTensor::f64(&x.shape, norm)), "rope-pairing", "NORM");
    // Only head 0.
    let mut first = made(&op).to_f32();
    for (i, y) in first.iter_mut().enumerate().filter(|(i, _)| i % x.cols() >= d) {
        *y = xs[i] as f32;
    }
    explained(&w, site, &HostTensor::f32(&x.shape, first), "rope-first-head", "head 0");
}

#[test]
fn norms() {
    let w = world();
    let site = Site::layer(2, Stage::QNorm);
    let op = w.op(site);
    let Op::RmsNorm { x, weight, .. } = &op else { unreachable!() };
    explained(&w, site, &of(Op::RmsNorm { x, weight, eps: 3.5e-3, keep: 0 }), "norm-eps", "eps 3.5e-3");
    // Values so small that an eps of 1e-6 matters.
    let small = Rc::new(HostTensor::f32(&x.shape, x.to_f32().iter().map(|x| x * 1e-3).collect()));
    let stated = Op::RmsNorm { x: small.clone(), weight, eps: 1e-6, keep: 0 };
    for (eps, words) in
        [(1e-5, "eps 1e-5 for 1e-6"), (0.0, "eps 0, or one too small to tell, for 1e-6"), (2.5e-7, "eps 2.5e-7 ")]
    {
        let e = w.explain_op(site, &stated, &of(Op::RmsNorm { x: &small, weight, eps, keep: 0 }));
        assert!(e.reproduced() && e.fits[0].what.contains(words), "{e}");
        assert!(e.nearest.as_ref().is_none_or(|next| next.residual > 2.0), "{e}");
    }
    explained(&w, site, x, "norm-missing", "the input itself");
    let other = &w.attention(2).qk_norm.as_ref().unwrap().k;
    explained(
        &w,
        site,
        &of(Op::RmsNorm { x, weight: other, eps: 1e-6, keep: 0 }),
        "norm-other-weight",
        "blk.2.attn_k_norm",
    );
    let ones = vec![1f32; 512].iter().flat_map(|x| x.to_le_bytes()).collect();
    let ones = Weight::from_vec("ones", GgmlType::F32, [512, 1, 1], ones).unwrap();
    // One norm over the row, then each head's weight.
    let whole = evaluate(&Op::RmsNorm { x, weight: &ones, eps: 1e-6, keep: 0 }).unwrap().to_f64();
    let bytes = weight.bytes();
    let one = bytes.as_chunks::<4>().0;
    let weighed = whole.iter().enumerate().map(|(i, x)| x * f32::from_le_bytes(one[i % 64]) as f64).collect();
    explained(&w, site, &f32s(HostTensor::f64(&x.shape, weighed)), "norm-group", "whole row");
}

#[test]
fn scales_beside_weights() {
    let moe = FfnShape::Moe(Moe { experts: 8, used: 3, width: 64 });
    let shape = ModelShape { layers: 2, vocab: 300, hidden: 128, ffn: moe, ..ModelShape::named("tiny").unwrap() };
    let w = World::synthetic_in(&shape, &Mix::pure(GgmlType::NVFP4).unwrap());
    let site = Site::layer(1, Stage::QProj);
    let op = w.op(site);
    let Op::MatMul { x, weight } = &op else { unreachable!() };
    let with = |scales: Vec<f32>| of(Op::MatMul { x, weight: &weight.scaled(scales).unwrap() });
    explained(&w, site, &with(vec![]), "scale-tensor", "the weight's scale left out");
    explained(&w, site, &with(vec![weight.scales[0].powi(2)]), "scale-tensor", "applied twice");

    let site = Site::layer(0, Stage::ExpertUp);
    let op = w.op(site);
    let Op::ExpertMatMul { x, ids, weight } = &op else { unreachable!() };
    let with = |scales: Vec<f32>| of(Op::ExpertMatMul { x, ids, weight: &weight.scaled(scales).unwrap() });
    let scales = &weight.scales;
    explained(&w, site, &with(vec![]), "scale-tensor", "the weight's scale left out");
    let turned = |by: usize| (0..8).map(|e| scales[(e + by) % 8]).collect();
    explained(&w, site, &with(turned(1)), "scale-tensor", "the scale of expert e + 1");
    explained(&w, site, &with(turned(7)), "scale-tensor", "the scale of expert e − 1");
    explained(&w, site, &with(vec![scales[2]; 8]), "scale-tensor", "the scale of expert 2 for whatever was chosen");
    let gate = &w.moe(0).gate;
    explained(&w, site, &with(gate.scales.clone()), "scale-tensor", "the scale of blk.0.ffn_gate_exps.weight");
    explained(&w, site, &of(Op::ExpertMatMul { x, ids, weight: gate }), "other-weight", "blk.0.ffn_gate_exps.weight");
    let shifted = HostTensor::u32(&ids.shape, ids.ids().iter().map(|e| (e + 1) % 8).collect());
    explained(&w, site, &of(Op::ExpertMatMul { x, ids: &shifted, weight }), "expert-offset", "expert e + 1");
}

#[test]
fn experts() {
    let w = world();
    let site = Site::layer(1, Stage::ExpertGate);
    let op = w.op(site);
    let Op::ExpertMatMul { x, ids, weight } = &op else { unreachable!() };
    let (n, k) = (weight.rows, ids.cols());
    let shifted = HostTensor::u32(&ids.shape, ids.ids().iter().map(|e| (e + 1) % 8).collect());
    let off = of(Op::ExpertMatMul { x, ids: &shifted, weight });
    explained(&w, site, &off, "expert-offset", "expert e + 1");
    // For one expert only.
    let some = ids.ids()[0];
    let one = off.to_f32();
    let only = edited(&w, site, |i, right| if ids.ids()[i / n] == some { one[i] } else { right });
    explained(&w, site, &only, "expert-offset", &format!("expert {} for those of expert {some}", (some + 1) % 8));
    let up = &w.moe(1).up;
    explained(&w, site, &of(Op::ExpertMatMul { x, ids, weight: up }), "other-weight", "blk.1.ffn_up_exps.weight");
    explained(&w, site, &edited(&w, site, |i, y| if i % n >= 240 { 0.0 } else { y }), "zero", "columns 240–255");
    let nan = edited(&w, site, |i, y| if ids.ids()[i / n] == some { f32::NAN } else { y });
    let e = w.explain(site, &nan);
    assert!(e.reproduced() && e.fits[0].id == "not-finite", "{e}");
    assert!(e.fits[0].what.ends_with(&format!("expert {some} only")), "{e}");
    // Whatever the geometry can name is a place where a mistake may be made.
    let zero_where = |wrong: fn(usize, usize) -> bool, words: &str| {
        let zeros = edited(&w, site, |i, y| if wrong(i / n / k, i % n) { 0.0 } else { y });
        explained(&w, site, &zeros, "zero", words);
    };
    zero_where(|t, _| t % 2 == 1, "odd positions");
    zero_where(|t, _| t % 3 == 0, "positions 0 mod 3");
    zero_where(|_, c| c == 3 || c == 77, "columns 3 and 77 only");
    zero_where(|_, c| c % 32 >= 24, "columns 24–31 of each 32");
    let right = made(&op).to_f32();
    let swapped = edited(&w, site, |i, _| right[(i / n / k * k + k - 1 - i / n % k) * n + i % n]);
    explained(&w, site, &swapped, "expert-offset", "slots");

    let site = Site::layer(3, Stage::ExpertAct);
    let op = w.op(site);
    let Op::SwiGlu { gate, up, .. } = &op else { unreachable!() };
    explained(&w, site, &of(Op::SwiGlu { gate: up, up: gate, activation: GateActivation::Silu }), "gate-up", "swapped");

    let site = Site::layer(3, Stage::MoeOut);
    let op = w.op(site);
    let Op::Combine { down, weights } = &op else { unreachable!() };
    let ones = HostTensor::f32(&weights.shape, vec![1.0; weights.len()]);
    explained(&w, site, &of(Op::Combine { down, weights: &ones }), "combine", "without their weights");
}

#[test]
fn routers() {
    let w = world();
    let site = Site::layer(1, Stage::RouterWeights);
    let op = w.op(site);
    let Op::RouterWeights { probs, ids, .. } = &op else { unreachable!() };
    let raw = of(Op::RouterWeights { probs, ids, renormalise: false, softmax: false, scale: 1.0 });
    explained(&w, site, &raw, "renormalisation", "not renormalised");

    let site = Site::layer(1, Stage::RouterProbs);
    let op = w.op(site);
    let Op::RouterProbs { logits, sigmoid: false } = &op else { unreachable!() };
    let mut over: Vec<f64> = Vec::new();
    for row in logits.to_f64().chunks_exact(8) {
        let mut sorted = row.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let sum: f64 = row.iter().filter(|x| **x >= sorted[1]).map(|x| x.exp()).sum();
        over.extend(row.iter().map(|x| if *x >= sorted[1] { x.exp() / sum } else { 0.0 }));
    }
    let over = f32s(HostTensor::f64(&logits.shape, over));
    explained(&w, site, &over, "router-softmax", "over the chosen");

    let site = Site::layer(1, Stage::RouterIds);
    let Op::RouterTopK { probs, .. } = w.op(site) else { unreachable!() };
    // Two equal leaders at every position.
    let mut tied = probs.to_f32();
    tied.chunks_exact_mut(8).enumerate().for_each(|(t, row)| (row[t % 7], row[t % 7 + 1]) = (2.0, 2.0));
    let tied = Op::RouterTopK { probs: Rc::new(HostTensor::f32(&probs.shape, tied)), k: 1, groups: None };
    let higher = HostTensor::u32(&[probs.shape[0], 1], (0..probs.shape[0] as u32).map(|t| t % 7 + 1).collect());
    let e = w.explain_op(site, &tied, &higher);
    assert!(e.reproduced() && e.fits[0].id == "router-ties", "{e}");
}

#[test]
fn attention() {
    let w = world();
    let site = Site::layer(1, Stage::AttnScores);
    let op = w.op(site);
    let Op::AttnScores { q, k, .. } = &op else { unreachable!() };
    let (t, heads) = (q.shape[0], 8);
    explained(&w, site, &edited(&w, site, |_, y| y * 8.0), "attention-scale", "no scale");
    explained(&w, site, &edited(&w, site, |_, y| y / 8.0), "attention-scale", "twice");
    // KV head h mod 2, written out; and a mask that shows one more key.
    let (qs, ks) = (q.to_f64(), k.to_f64());
    let scores = |kv: fn(usize) -> usize, later: usize| {
        let mut out = vec![0.0; heads * t * t];
        for (i, y) in out.iter_mut().enumerate() {
            let (h, row, s) = (i / t / t, i / t % t, i % t);
            if s <= row + later {
                *y = (0..64).map(|d| qs[row * 512 + h * 64 + d] * ks[s * 128 + kv(h) * 64 + d]).sum::<f64>() / 8.0;
            }
        }
        f32s(HostTensor::f64(&[heads, t, t], out))
    };
    explained(&w, site, &scores(|h| h % 2, 0), "kv-head", "h mod kv_heads");
    explained(&w, site, &scores(|h| h / 4, 1), "mask", "one later key");

    let site = Site::layer(1, Stage::AttnProbs);
    let rows = scores(|h| h / 4, 1);
    let seen = Op::AttnProbs { scores: Rc::new(rows.clone()), start: 0, window: None, sinks: None };
    let mut shown = vec![0.0; rows.len()];
    for (i, row) in rows.to_f64().chunks_exact(t).enumerate() {
        let n = (i % t + 2).min(t);
        let sum: f64 = row[..n].iter().map(|x| x.exp()).sum();
        (0..n).for_each(|s| shown[i * t + s] = row[s].exp() / sum);
    }
    let e = w.explain_op(site, &seen, &f32s(HostTensor::f64(&rows.shape, shown)));
    assert!(e.reproduced() && e.fits[0].id == "mask", "{e}");

    // The trace has no score of the key that the mask lets through, and the side rounded it in f32, term by term.
    let rows = scores(|h| h / 4, 0);
    let masked = Op::AttnProbs { scores: Rc::new(rows.clone()), start: 0, window: None, sinks: None };
    let mut shown = vec![0.0; rows.len()];
    for (i, row) in rows.to_f64().chunks_exact(t).enumerate() {
        let (h, n) = (i / t, (i % t + 2).min(t));
        let mut row = row[..n].to_vec();
        if n == i % t + 2 {
            let product = |d: usize| qs[i % t * 512 + h * 64 + d] as f32 * ks[(n - 1) * 128 + h / 4 * 64 + d] as f32;
            row[n - 1] = ((0..64).map(product).fold(0.0, |sum: f32, p| sum + p) / 8.0) as f64;
        }
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        (0..n).for_each(|s| shown[i * t + s] = row[s].exp() / sum);
    }
    let e = w.explain_op(site, &masked, &f32s(HostTensor::f64(&rows.shape, shown)));
    assert!(e.reproduced() && e.fits[0].what.contains("one later key through, with its score"), "{e}");
}

/// A decode step: one position after `start` others.
#[test]
fn caches() {
    let w = world();
    let site = Site::layer(1, Stage::AttnContext);
    let op = w.op(site);
    let Op::AttnContext { probs, v, .. } = &op else { unreachable!() };
    let (s, start) = (v.shape[0], v.shape[0] - 1);
    let last: Vec<f32> = probs.to_f32().chunks_exact(s * s).flat_map(|head| head[start * s..].to_vec()).collect();
    let last = Rc::new(HostTensor::f32(&[8, 1, s], last));
    let step = Op::AttnContext { probs: last.clone(), v: v.clone(), start, head_dim: 64, window: None };
    let stale = |change: &dyn Fn(&mut [f32])| {
        let mut rows = v.to_f32();
        change(&mut rows);
        let v = HostTensor::f32(&v.shape, rows);
        of(Op::AttnContext { probs: &last, v: &v, start, head_dim: 64, window: None })
    };
    type Change<'a> = &'a dyn Fn(&mut [f32]);
    let cases: [(&str, Change<'_>); 3] = [
        ("not written", &|rows| rows[start * 128..].fill(0.0)),
        ("one row late", &|rows| {
            rows.copy_within(..start * 128, 128);
            rows[..128].fill(0.0);
        }),
        ("row 4 holds row 3", &|rows| rows.copy_within(3 * 128..4 * 128, 4 * 128)),
    ];
    for (words, change) in cases {
        let output = stale(change);
        let e = w.explain_op(site, &step, &output);
        assert!(e.reproduced() && e.fits[0].id == "kv-cache", "{words}: {e}");
        assert!(e.fits.iter().chain(&e.nearest).any(|t| t.what.contains("row")), "{words}: {e}");
    }
    // The same, seen in the scores of a decode step, where rope starts late too.
    let rope = Site::layer(1, Stage::QRope);
    let Op::Rope { x, rotation, .. } = w.op(rope) else { unreachable!() };
    let late = Op::Rope { x: x.clone(), start: 40, head_dim: 64, rotation };
    let e = w.explain_op(rope, &late, &of(Op::Rope { x: &x, start: 0, head_dim: 64, rotation }));
    assert!(e.reproduced() && e.fits[0].what.contains("counted from this call"), "{e}");
    let e =
        w.explain_op(rope, &late, &of(Op::Rope { x: &x, start: 40, head_dim: 64, rotation: Rotation::neox(31000.0) }));
    assert!(e.reproduced() && e.fits[0].what.contains("base 31000 "), "{e}");
}

#[test]
fn residuals() {
    let w = world();
    let site = Site::layer(2, Stage::LayerOut);
    let op = w.op(site);
    let Op::Add { a, b } = &op else { unreachable!() };
    explained(&w, site, b, "residual", "dropped");
    explained(&w, site, a, "residual", "only the residual");
    let input = w.value(Site::layer(2, Stage::AttnNorm), Stage::LayerOut);
    explained(&w, site, &of(Op::Add { a: &input, b }), "residual", "the layer's input as the residual");
    let tripled = edited(&w, site, |_, y| y * 0.7431);
    explained(&w, site, &tripled, "factor", "0.7431 times");
}

/// The product of x [T, K] with rows of f64 weights [N, K].
pub(super) fn product(x: &[f64], rows: &[f64], k: usize, term: impl Fn(usize) -> f64) -> Vec<f64> {
    let (t, n) = (x.len() / k, rows.len() / k);
    let sum = |t: usize, n: usize| (0..k).map(|i| term(i) * x[t * k + i] * rows[n * k + i]).sum();
    (0..t * n).map(|i| sum(i / n, i % n)).collect()
}

/// A weight's values.
pub(super) fn values(w: &Weight) -> Vec<f64> {
    let mut all = vec![0.0; w.rows * w.cols];
    crate::backend::oracle::dequant::row(w.ty, &w.bytes(), &mut all).unwrap();
    all
}

#[test]
fn products() {
    let w = world();
    let site = Site::layer(1, Stage::AttnOut);
    let op = w.op(site);
    let Op::MatMul { x, weight } = &op else { unreachable!() };
    let (xs, ws, k) = (x.to_f64(), values(weight), weight.cols);
    let shape = &made(&op).shape;
    let with = |term: &dyn Fn(usize) -> f64| f32s(HostTensor::f64(shape, product(&xs, &ws, k, term)));
    explained(&w, site, &with(&|i| (i < 480) as u8 as f64), "k-skipped", "only the first 480 of 512");
    explained(&w, site, &with(&|i| 1.0 + (i >= 480) as u8 as f64), "k-twice", "the last 32 of 512");
    explained(&w, site, &with(&|i| (i % 32 < 8) as u8 as f64), "lanes", "lanes 0–7 of 32 summed");
    explained(&w, site, &with(&|i| (i / 4 % 16 < 8) as u8 as f64), "lanes", "lanes 0–31 of 64 summed");

    let half = |x: &f64| half::f16::from_f64(*x).to_f64();
    let brain = |x: &f64| half::bf16::from_f64(*x).to_f64();
    let rounded = |xs: Vec<f64>, ws: &[f64]| f32s(HostTensor::f64(shape, product(&xs, ws, k, |_| 1.0)));
    explained(&w, site, &rounded(xs.iter().map(half).collect(), &ws), "input-precision", "inputs rounded to f16");
    explained(&w, site, &rounded(xs.iter().map(brain).collect(), &ws), "input-precision", "inputs rounded to bf16");
    let halves: Vec<f64> = ws.iter().map(half).collect();
    explained(&w, site, &rounded(xs.clone(), &halves), "input-precision", "weights rounded to f16");
    for block in [32, 256] {
        let mut int8 = xs.clone();
        for x in int8.chunks_exact_mut(block) {
            let d = x.iter().fold(0f64, |m, x| m.max(x.abs())) as f32 / 127.0;
            x.iter_mut().for_each(|x| *x = ((*x as f32 / d).round() * d) as f64);
        }
        explained(&w, site, &rounded(int8, &ws), "int8-activations", &format!("one scale per {block} (an f32"));
    }
    // f16 sums: one after the other, in lanes, and in an order that is not among those tried.
    let f16_sums = |lane: &dyn Fn(usize) -> usize, lanes: usize| {
        let sum = |t: usize, n: usize| {
            let mut sums = vec![half::f16::ZERO; lanes];
            for i in 0..k {
                let s = &mut sums[lane(i)];
                *s = half::f16::from_f32(s.to_f32() + xs[t * k + i] as f32 * ws[n * k + i] as f32);
            }
            sums.iter().map(|s| s.to_f32()).sum::<f32>()
        };
        let n = weight.rows;
        HostTensor::f32(shape, (0..shape[0] * n).map(|i| sum(i / n, i % n)).collect())
    };
    for (what, lane, lanes) in [
        ("one after the other", (|_| 0) as fn(usize) -> usize, 1),
        ("in lanes", |i| i % 32, 32),
        ("in odd lanes", |i| (i * i / 3) % 12, 12),
    ] {
        let e = w.explain(site, &f16_sums(&lane, lanes));
        assert!(e.reproduced() && e.fits[0].id == "sum-precision", "{what}: {e}");
        assert!(e.fits[0].what.starts_with("f16 sums"), "{what}: {e}");
    }
}

/// Under llama.cpp's contract inputs are int8 in blocks of Q8_K. What rounds them in other blocks, or not, or rounds another stage's, begins from the
/// inputs themselves, not from their codes.
#[test]
fn products_of_inputs_that_the_contract_rounds() {
    let w = world();
    let site = Site::layer(1, Stage::AttnOut);
    let op = w.op(site);
    let Op::MatMul { x, weight } = &op else { unreachable!() };
    let (ws, k) = (values(weight), weight.cols);
    let shape = &made(&op).shape;
    let contract = Contract { activations: Precision::Q8_K, ..CONTRACT };
    let of = |xs: &[f64]| f32s(HostTensor::f64(shape, product(xs, &ws, k, |_| 1.0)));
    let in_blocks = |xs: &[f64], block: usize, code: &dyn Fn(f32, f32) -> f32| -> Vec<f64> {
        let largest = |xs: &[f64]| xs.iter().fold(0f64, |m, x| if x.abs() > m.abs() { *x } else { m }) as f32;
        xs.chunks_exact(block).flat_map(|xs| xs.iter().map(|x| code(*x as f32, largest(xs)) as f64)).collect()
    };
    let q8_k = |x: f32, max: f32| (x * (-127.0 / max)).round_ties_even() * (1.0 / (-127.0 / max));
    let q8_0 = |x: f32, max: f32| {
        let d = max.abs() / 127.0;
        (x * (1.0 / d)).round_ties_even() * half::f16::from_f32(d).to_f32()
    };
    let plain = |x: f32, max: f32| (x * (127.0 / max.abs())).round_ties_even() * (max.abs() / 127.0);
    let xs = x.to_f64();
    let as_contracted = w.explain_under(contract, site, &op, &of(&in_blocks(&xs, 256, &q8_k)));
    assert!(as_contracted.fits.is_empty() && as_contracted.nearest.is_none(), "{as_contracted}");
    let other = w.value(site, Stage::QRope).to_f64();
    let halves: Vec<f64> = xs.iter().map(|x| half::f16::from_f64(*x).to_f64()).collect();
    for (made, id, words) in [
        (in_blocks(&xs, 32, &q8_0), "int8-activations", "one scale per 32 (a half"),
        (in_blocks(&xs, 128, &plain), "int8-activations", "one scale per 128 (an f32"),
        (xs.clone(), "input-precision", "inputs as they are, not as the contract has it"),
        (halves, "input-precision", "inputs rounded to f16, not as the contract has it"),
        (in_blocks(&other, 256, &q8_k), "other-input", "q_rope"),
    ] {
        let e = w.explain_under(contract, site, &op, &of(&made));
        assert!(e.reproduced() && e.fits[0].id == id && e.fits[0].what.contains(words), "{words}: {e}");
        assert!(e.nearest.as_ref().is_none_or(|next| next.residual > 2.0), "{words}: {e}");
    }
}

/// The stage's result with the weight's bytes changed, or read otherwise.
fn misread(w: &World, site: Site, ty: GgmlType, edit: impl Fn(&mut [u8])) -> HostTensor {
    let op = w.op(site);
    let weight = op.weight().unwrap();
    let mut bytes = weight.bytes().to_vec();
    edit(&mut bytes);
    let dims = [weight.cols, weight.rows, weight.experts];
    let other: Arc<Weight> = Weight::from_vec("misread", ty, dims, bytes).unwrap();
    match &op {
        Op::MatMul { x, .. } => of(Op::MatMul { x, weight: &other }),
        Op::ExpertMatMul { x, ids, .. } => of(Op::ExpertMatMul { x, ids, weight: &other }),
        Op::Embed { tokens, .. } => of(Op::Embed { table: &other, tokens, scale: 1.0 }),
        _ => unreachable!("it reads a weight"),
    }
}

#[test]
fn weights_misread() {
    use GgmlType::*;
    let w = world();
    let of_type = |ty: GgmlType| {
        let all = [Stage::QProj, Stage::KProj, Stage::VProj, Stage::AttnOut, Stage::ExpertGate, Stage::ExpertDown];
        let sites = (0..4).flat_map(|n| all.map(|s| Site::layer(n, s)));
        sites.into_iter().find(|s| w.weight(*s).ty == ty).unwrap_or_else(|| panic!("no {ty} in the bundled model"))
    };
    let q4 = of_type(Q4_K);
    // 144 bytes hold 256 weights of Q4_K, and as many of Q4_0.
    explained(&w, q4, &misread(&w, q4, Q4_0, |_| ()), "weight-type", "Q4_K weights read as Q4_0");
    let minimum = |b: &mut [u8]| b.chunks_exact_mut(144).for_each(|b| b[2..4].fill(0));
    explained(&w, q4, &misread(&w, q4, Q4_K, minimum), "scale-minimum", "left out");
    // Scale and minimum of the fifth sub-block without their upper bits: of all four, by hand.
    let upper = |b: &mut [u8]| b.chunks_exact_mut(144).for_each(|b| b[4..8].iter_mut().for_each(|s| *s &= 63));
    explained(&w, q4, &misread(&w, q4, Q4_K, upper), "scale-bits", "without their upper two bits");

    let q6 = of_type(Q6_K);
    let doubled = |b: &mut [u8]| b.chunks_exact_mut(210).for_each(|b| b[195] = 0);
    explained(&w, q6, &misread(&w, q6, Q6_K, doubled), "scale-one", "sub-block 3 of every block with scale 0");
    let neighbour = |b: &mut [u8]| b.chunks_exact_mut(210).for_each(|b| b.copy_within(192..207, 193));
    let e = w.explain(q6, &misread(&w, q6, Q6_K, neighbour));
    assert!(!e.fits.is_empty() || e.nearest.is_some(), "{e}");
    let high = |b: &mut [u8]| b.chunks_exact_mut(210).for_each(|b| b[128..192].fill(0));
    explained(&w, q6, &misread(&w, q6, Q6_K, high), "weight-codes", "without their upper two bits");

    let router = Site::layer(1, Stage::RouterLogits);
    let transpose = |b: &mut [u8]| {
        let before: Vec<[u8; 4]> = b.as_chunks::<4>().0.to_vec();
        for (i, w) in b.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *w = before[i % 256 * 8 + i / 256];
        }
    };
    explained(&w, router, &misread(&w, router, F32, transpose), "weight-transposed", "the weight transposed");

    let embedding = Site::model(Stage::Embedding);
    let next: Vec<u32> = w.tokens.iter().map(|t| t + 1).collect();
    let Op::Embed { table, .. } = w.op(embedding) else { unreachable!() };
    explained(&w, embedding, &of(Op::Embed { table, tokens: &next, scale: 1.0 }), "embedding-row", "the row after");
}
