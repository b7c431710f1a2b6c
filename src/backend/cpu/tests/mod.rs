//! Tests of every level: each operation against its definition in f64 within the bound that its contract gives, the checks on
//! operands, ties and NaN in the router, and independence from the number of threads.

use super::matmul::batch_rows;
use super::*;
use crate::op::{Data, GateActivation, GgmlType, Rotation, Site, Stage};

const AT: At = At { site: Site { layer: Some(3), stage: Stage::QProj }, start: 0 };
const U: f64 = 5.960464477539063e-8; // 2^-24

/// γ_n = n·u / (1 − n·u): Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1.
fn gamma(n: usize) -> f64 {
    n as f64 * U / (1.0 - n as f64 * U)
}

/// Values in [−1, 1), the same on every machine.
fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn scalar() -> CpuBackend {
    CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap()
}

/// A backend of every level that this processor has; those that it lacks are said.
fn backends(threads: usize) -> Vec<CpuBackend> {
    for level in Level::HERE.iter().filter(|level| !level.missing().is_empty()) {
        eprintln!("not tested: {} needs {}", level.backend_name(), level.missing().join(", "));
    }
    Level::available().into_iter().map(|level| CpuBackend::new(Some(level), Some(threads)).unwrap()).collect()
}

/// The n of γ_n for a sum of `n` products: one rounding for the product, then as many as the order of sums allows.
fn depth(b: &CpuBackend, op: OpKind, n: usize) -> usize {
    1 + b.contract(op).order.depth(n)
}

fn weight(name: &str, dims: [usize; 3], values: &[f32]) -> Arc<Weight> {
    Weight::from_vec(name, GgmlType::F32, dims, bytemuck::cast_slice(values).to_vec()).unwrap()
}

fn up(b: &mut CpuBackend, shape: &[usize], v: &[f32]) -> CpuTensor {
    b.upload(&HostTensor::f32(shape, v.to_vec())).unwrap()
}

fn f32s(b: &mut CpuBackend, t: &CpuTensor) -> Vec<f32> {
    match b.read(t).unwrap().data {
        Data::F32(v) => v,
        other => panic!("{other:?}"),
    }
}

fn message(r: Result<CpuTensor>) -> String {
    r.err().expect("an error").to_string()
}

mod attention;
mod int8;
mod packed;
mod simd;

#[test]
fn matmul_is_within_the_derived_bound_and_the_same_on_any_number_of_threads() {
    // More tokens than there are at once of so long rows, 32, and so many that a task's results are written in several times.
    let long = (1..).map(|n| n << 10).find(|k| batch_rows(*k) == 32).unwrap();
    for (t, k, n) in [(1, 1, 1), (1, 256, 9), (5, 77, 33), (40, 300, 17), (64, 512, 64), (75, long, 5), (700, 48, 200)]
    {
        let (x, w) = (values(1, t * k), values(2, n * k));
        let weight = weight("w", [k, n, 1], &w);
        let run = |mut b: CpuBackend| {
            let x = up(&mut b, &[t, k], &x);
            let y = b.run(AT, &Op::MatMul { x, weight: &weight }).unwrap();
            assert_eq!(b.shape(&y), [t, n]);
            f32s(&mut b, &y)
        };
        for (one, (two, three)) in backends(1).into_iter().zip(backends(2).into_iter().zip(backends(3))) {
            let bound = gamma(depth(&one, OpKind::MatMul, k));
            let y = run(one);
            assert_eq!(y, run(two));
            assert_eq!(y, run(three));
            for (i, y) in y.iter().enumerate() {
                let terms = || (0..k).map(|j| x[i / n * k + j] as f64 * w[i % n * k + j] as f64);
                let (exact, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                assert!((*y as f64 - exact).abs() <= bound * size, "{t} {k} {n} at {i}: {y} {exact}");
            }
        }
    }
}

/// What a thread unpacks into is used again: beside fewer columns than a register has, there is what was there before.
#[test]
fn infinite_weights_are_in_no_product_that_comes_next() {
    for mut b in backends(1) {
        let mut product = |k: usize, w: &[f32]| {
            let weight = weight("w", [k, 12, 1], w);
            let x = up(&mut b, &[3, k], &values(2, 3 * k));
            let y = b.run(AT, &Op::MatMul { x, weight: &weight }).unwrap();
            f32s(&mut b, &y)
        };
        assert!(product(32, &[f32::INFINITY; 32 * 12]).iter().all(|y| !y.is_finite()));
        assert!(product(17, &values(3, 17 * 12)).iter().all(|y| y.is_finite()), "{}", b.name());
    }
}

#[test]
fn experts_are_read_by_id_whether_x_is_shared_or_one_per_slot() {
    let (t, slots, k, n, experts) = (5, 2, 32, 11, 4);
    let w = values(3, experts * n * k);
    let stack = weight("w", [k, n, experts], &w);
    let ids = vec![0u32, 3, 3, 0, 0, 3, 3, 1, 0, 1]; // expert 2 is chosen by nobody
    for (mut b, shared) in backends(2).into_iter().zip([true; 3]).chain(backends(2).into_iter().zip([false; 3])) {
        let ids_t = b.upload(&HostTensor::u32(&[t, slots], ids.clone())).unwrap();
        let x = values(4, if shared { t * k } else { t * slots * k });
        let shape: &[usize] = if shared { &[t, k] } else { &[t, slots, k] };
        let x_t = up(&mut b, shape, &x);
        let y = b.run(AT, &Op::ExpertMatMul { x: x_t, ids: ids_t.clone(), weight: &stack }).unwrap();
        assert_eq!(b.shape(&y), [t, slots, n]);
        let y = f32s(&mut b, &y);
        for (i, y) in y.iter().enumerate() {
            let (pair, row) = (i / n, i % n);
            let x = &x[if shared { pair / slots } else { pair } * k..][..k];
            let w = &w[(ids[pair] as usize * n + row) * k..][..k];
            let terms = || x.iter().zip(w).map(|(x, w)| *x as f64 * *w as f64);
            let bound = gamma(depth(&b, OpKind::ExpertMatMul, k)) * terms().map(f64::abs).sum::<f64>();
            assert!((*y as f64 - terms().sum::<f64>()).abs() <= bound, "{} pair {pair} row {row}", b.name());
        }
    }
}

#[test]
fn rope_is_exact_at_a_far_position() {
    let (d, base, start) = (64, 1e6, 4000);
    let x = values(5, 2 * 3 * d); // two positions of three heads
    let mut b = scalar();
    let x_t = up(&mut b, &[2, 3 * d], &x);
    let y = b.run(AT, &Op::Rope { x: x_t, start, head_dim: d, rotation: Rotation::neox(base) }).unwrap();
    let y = f32s(&mut b, &y);
    for (i, y) in y.iter().enumerate() {
        let (t, head, j) = (i / (3 * d), i / d, i % d);
        let pair = j % (d / 2);
        let angle = (start + t) as f64 * base.powf(-2.0 * pair as f64 / d as f64);
        let (lo, hi) = (x[head * d + pair] as f64, x[head * d + pair + d / 2] as f64);
        let (s, c) = angle.sin_cos();
        let (exact, size) = if j < d / 2 {
            (lo * c - hi * s, (lo * c).abs() + (hi * s).abs())
        } else {
            (lo * s + hi * c, (lo * s).abs() + (hi * c).abs())
        };
        // Cosine or sine rounded, product rounded, sum rounded.
        assert!((*y as f64 - exact).abs() <= gamma(3) * size, "{i}: {y} {exact}");
    }
}

#[test]
fn norm_swiglu_and_combine_follow_their_definitions() {
    backends(1).into_iter().for_each(norm_swiglu_and_combine);
}

fn norm_swiglu_and_combine(mut b: CpuBackend) {
    let (n, groups) = (40, 3);
    let (x, w, eps) = (values(6, 2 * groups * n), values(7, n), 1e-6f32);
    let x_t = up(&mut b, &[2, groups * n], &x);
    let norm = b.run(AT, &Op::RmsNorm { x: x_t, weight: &weight("n", [n, 1, 1], &w), eps, keep: 0 }).unwrap();
    let norm = f32s(&mut b, &norm);
    // Σx² to γ(1 + depth), mean and + eps one each, and √ halves their sum; then √, division and two products.
    let bound = gamma((depth(&b, OpKind::RmsNorm, n) + 2).div_ceil(2) + 4);
    for (i, y) in norm.iter().enumerate() {
        let group = &x[i / n * n..][..n];
        let mean = group.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / n as f64;
        let exact = x[i] as f64 / (mean + eps as f64).sqrt() * w[i % n] as f64;
        assert!((*y as f64 - exact).abs() <= bound * exact.abs(), "{y} {exact}");
    }

    let (gate, up_v) = (values(8, 50).iter().map(|x| x * 20.0).collect::<Vec<_>>(), values(9, 50));
    let (g, u) = (up(&mut b, &[5, 10], &gate), up(&mut b, &[5, 10], &up_v));
    let act = b.run(AT, &Op::SwiGlu { gate: g, up: u, activation: GateActivation::Silu }).unwrap();
    for (i, y) in f32s(&mut b, &act).iter().enumerate() {
        let g = gate[i] as f64;
        let exact = g / (1.0 + (-g).exp()) * up_v[i] as f64;
        // exp, whose ULP are two u each; sum, division, product.
        let bound = gamma(2 * b.contract(OpKind::SwiGlu).exp_base_ulp.ceil() as usize + 3);
        assert!((*y as f64 - exact).abs() <= bound * exact.abs(), "{y} {exact}");
    }

    let (down, weights) = (values(10, 3 * 4 * 7), values(11, 3 * 4));
    let (d, w) = (up(&mut b, &[3, 4, 7], &down), up(&mut b, &[3, 4], &weights));
    let out = b.run(AT, &Op::Combine { down: d, weights: w }).unwrap();
    assert_eq!(b.shape(&out), [3, 7]);
    for (i, y) in f32s(&mut b, &out).iter().enumerate() {
        let terms = || (0..4).map(|k| weights[i / 7 * 4 + k] as f64 * down[(i / 7 * 4 + k) * 7 + i % 7] as f64);
        assert!((*y as f64 - terms().sum::<f64>()).abs() <= gamma(5) * terms().map(f64::abs).sum::<f64>());
    }
}

#[test]
fn attention_sees_the_past_only_and_maps_query_heads_to_their_kv_head() {
    for (start, t) in [(3, 2), (0, 1), (0, 19), (40, 1), (31, 7)] {
        backends(2).into_iter().for_each(|b| attention(b, start, t));
    }
}

fn attention(mut b: CpuBackend, start: usize, t: usize) {
    let (heads, kv_heads, d) = (4, 2, 40);
    let seen = start + t;
    let capacity = seen + 4;
    let (q, k, v) = (values(12, t * heads * d), values(13, seen * kv_heads * d), values(14, seen * kv_heads * d));
    let cache = |b: &mut CpuBackend, x: &[f32]| {
        let cache = b.alloc(&[capacity, kv_heads * d]).unwrap();
        for (from, rows) in [(0, start), (start, t)].into_iter().filter(|(_, rows)| *rows > 0) {
            let x = up(b, &[rows, kv_heads * d], &x[from * kv_heads * d..][..rows * kv_heads * d]);
            b.run(AT, &Op::Store { cache: cache.clone(), x, start: from }).unwrap();
        }
        cache
    };
    let (k_t, v_t) = (cache(&mut b, &k), cache(&mut b, &v));
    let q_t = up(&mut b, &[t, heads * d], &q);
    let scores = b.run(AT, &Op::AttnScores { q: q_t, k: k_t, start, head_dim: d, scale: None, window: None }).unwrap();
    let probs = b.run(AT, &Op::AttnProbs { scores: scores.clone(), start, window: None, sinks: None }).unwrap();
    let context =
        b.run(AT, &Op::AttnContext { probs: probs.clone(), v: v_t, start, head_dim: d, window: None }).unwrap();
    assert_eq!(b.shape(&scores), [heads, t, seen]);
    assert_eq!(b.shape(&context), [t, heads * d]);
    let (scores, probs, context) = (f32s(&mut b, &scores), f32s(&mut b, &probs), f32s(&mut b, &context));
    for h in 0..heads {
        let kv = h / 2;
        for row in 0..t {
            let visible = start + row + 1;
            let at = (h * t + row) * seen;
            let exact: Vec<f64> = (0..visible)
                .map(|s| {
                    let dot: f64 = (0..d)
                        .map(|j| q[(row * heads + h) * d + j] as f64 * k[(s * kv_heads + kv) * d + j] as f64)
                        .sum();
                    dot / (d as f64).sqrt()
                })
                .collect();
            let total: f64 = exact.iter().map(|s| s.exp()).sum();
            for s in 0..seen {
                let (score, prob) = (scores[at + s], probs[at + s]);
                if s >= visible {
                    assert_eq!((score, prob), (0.0, 0.0));
                    continue;
                }
                // |q|, |k| ≤ 1, so Σ|q·k|/√D ≤ √D; product, additions, scale and its rounding.
                let score_error = gamma(d + 4) * (d as f64).sqrt();
                assert!((score as f64 - exact[s]).abs() <= score_error);
                // Each exponent moves by the score's error and one rounding of the subtraction, above and below the line.
                let bound = 2.0 * score_error + 2.0 * gamma(8) * (d as f64).sqrt() + gamma(seen + 6);
                let p = exact[s].exp() / total;
                assert!((prob as f64 - p).abs() <= bound * p, "{prob} {p}");
            }
            for j in 0..d {
                let terms = || (0..visible).map(|s| probs[at + s] as f64 * v[(s * kv_heads + kv) * d + j] as f64);
                let y = context[(row * heads + h) * d + j] as f64;
                assert!((y - terms().sum::<f64>()).abs() <= gamma(seen + 2) * terms().map(f64::abs).sum::<f64>());
            }
        }
    }
}

#[test]
fn router_breaks_ties_by_the_lower_id_and_keeps_nan_in_sight() {
    let mut b = scalar();
    let nan = f32::NAN;
    #[rustfmt::skip]
    let probs = vec![
        0.2, 0.3, 0.3, 0.1, 0.1,
        0.2, 0.2, 0.2, 0.2, 0.2,
        0.1, 0.4, nan, 0.2, nan,
        nan, nan, nan, nan, nan,
    ];
    let p = up(&mut b, &[4, 5], &probs);
    let ids = b.run(AT, &Op::RouterTopK { probs: p.clone(), k: 3, groups: None }).unwrap();
    assert_eq!(b.read(&ids).unwrap().ids(), [1, 2, 0, 0, 1, 2, 2, 4, 1, 0, 1, 2]);
    let w = b
        .run(
            AT,
            &Op::RouterWeights { probs: p.clone(), ids: ids.clone(), renormalise: true, softmax: false, scale: 1.0 },
        )
        .unwrap();
    let w = f32s(&mut b, &w);
    assert!((w[0] - 0.375).abs() <= 3.0 * U as f32);
    assert!(w[..6].iter().all(|w| w.is_finite()) && w[6..].iter().all(|w| w.is_nan()));
    let raw = b.run(AT, &Op::RouterWeights { probs: p, ids, renormalise: false, softmax: false, scale: 1.0 }).unwrap();
    assert_eq!(f32s(&mut b, &raw)[..3], [0.3, 0.3, 0.2]);

    let logits = up(&mut b, &[2, 3], &[1.0, nan, 0.0, 1000.0, 1000.0, f32::NEG_INFINITY]);
    let probs = b.run(AT, &Op::RouterProbs { logits, sigmoid: false }).unwrap();
    let probs = f32s(&mut b, &probs);
    assert!(probs[..3].iter().all(|p| p.is_nan()));
    assert_eq!(probs[3..], [0.5, 0.5, 0.0]);
}

#[test]
fn embedding_rows_and_moves() {
    let mut b = scalar();
    let v = values(15, 4 * 6);
    let table = weight("token_embd.weight", [6, 4, 1], &v);
    let e = b.run(AT, &Op::Embed { table: &table, tokens: &[3, 0], scale: 1.0 }).unwrap();
    assert_eq!(f32s(&mut b, &e), [&v[18..24], &v[..6]].concat());
    let last = b.run(AT, &Op::Rows { x: e.clone(), start: 1, rows: 1 }).unwrap();
    assert_eq!(f32s(&mut b, &last), v[..6]);
    let sum = b.run(AT, &Op::Add { a: e.clone(), b: e.clone() }).unwrap();
    assert_eq!(f32s(&mut b, &sum)[0], v[18] * 2.0);
    let m = message(b.run(AT, &Op::Embed { table: &table, tokens: &[1, 4], scale: 1.0 }));
    assert_eq!(m, "layer 3 · q_proj (Embed): tokens[1] is 4 where one of the 4 rows of token_embd.weight was expected");
}

#[test]
fn what_is_not_there_is_an_error() {
    let mut b = scalar();
    assert!(b.alloc(&[usize::MAX, 2]).is_err());
    assert!(b.take(Ticket(99)).is_err());
}

#[test]
fn a_missing_level_and_zero_threads_are_said() {
    assert!(matches!(CpuBackend::new(Some(Level::Scalar), Some(0)), Err(Error::Usage(_))));
    for &level in Level::ALL {
        match CpuBackend::new(Some(level), Some(1)) {
            Ok(b) => assert!(Level::available().contains(&level) && b.name() == level.backend_name()),
            Err(e) => {
                assert_eq!(e.exit_code(), 125);
                assert!(level.missing().iter().all(|f| e.to_string().contains(f)), "{e}");
            }
        }
    }
    let b = CpuBackend::new(None, None).unwrap();
    assert_eq!(b.level(), Level::detect());
    assert_eq!(b.info().backend, b.name());
}

#[test]
fn unsupported_names_the_tensor_and_the_type() {
    let need = |ty, name: &str| Need { op: OpKind::MatMul, ty, cols: 256, name: name.into(), experts: None };
    let lines = scalar().unsupported(&[need(GgmlType::F32, "a"), need(GgmlType::Q8_K, "blk.0.ffn_up.weight")]);
    assert_eq!(lines, ["blk.0.ffn_up.weight: MatMul with Q8_K weights: the type has no dequantization"]);
}
