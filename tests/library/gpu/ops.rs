//! Every operation against float64 over ragged shapes. The bounds are derived: γ of the number of roundings that the contract
//! allows, times the sum of the magnitudes, with WGSL's unit roundoff and ULP table.

use std::sync::Arc;

use super::common::*;
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions, GpuTensor};
use twinscope::backend::{Backend, Need};
use twinscope::model::{LogitRows, Model, Session, forward};
use twinscope::op::{GateActivation, GgmlType, HostTensor, Op, OpKind, Rotation, Weight};

/// One multiplication and one rounding of the weight's own on top of the sum's additions.
fn matmul_bound(gpu: &GpuBackend, op: OpKind, n: usize, magnitudes: &[f64]) -> impl Fn(usize) -> f64 {
    let factor = gamma(gpu.contract(op).order.depth(n) as f64 + 2.0);
    move |i| factor * magnitudes[i]
}

#[test]
fn matrices_of_every_type_and_shape() {
    each_set().iter_mut().for_each(|(set, gpu)| matrices(set, gpu));
}

fn matrices(set: &str, gpu: &mut GpuBackend) {
    let mut r = Random::new(1);
    for ty in TYPES {
        let block = ty.block_len();
        // Rows around a workgroup's 16 and a tile's 32; positions around the switch to tiles and around a tile.
        let blocks = |n: usize| if block == 1 { 32 * n } else { block * n };
        let shapes =
            [(1, blocks(1), 1), (17, blocks(2), 1), (33, blocks(3), 4), (5, blocks(1), 5), (70, blocks(2), 37)];
        // Plain rows need not be whole pairs.
        let ragged = [(3, 1, 1), (18, 33, 2), (40, 100, 33)];
        for (rows, cols, positions) in shapes.into_iter().chain(ragged.into_iter().filter(|_| block == 1)) {
            let weight = r.weight(ty, [cols, rows, 1]);
            let x = r.tensor(&[positions, cols]);
            let op = Op::MatMul { x: &x, weight: &weight };
            let got = run(gpu, &op);
            assert_eq!(got.shape, [positions, rows]);
            let magnitudes = magnitude(&op);
            let bound = matmul_bound(gpu, OpKind::MatMul, cols, &magnitudes);
            within(&format!("{set}: {ty} [{positions}, {cols}] × [{rows}]"), &got, &exact(&op), bound);
        }
    }
}

pub(crate) fn expert_case(gpu: &mut GpuBackend, x: &HostTensor, ids: &HostTensor, weight: &Arc<Weight>) -> HostTensor {
    let op = Op::ExpertMatMul { x, ids, weight };
    let got = run(gpu, &op);
    let magnitudes = magnitude(&op);
    let bound = matmul_bound(gpu, OpKind::ExpertMatMul, weight.cols, &magnitudes);
    within(&format!("{weight:?} × {:?} by {:?}", x.shape, ids.shape), &got, &exact(&op), bound);
    got
}

#[test]
fn experts_of_every_type_and_routing() {
    each_set().iter_mut().for_each(|(_, gpu)| experts(gpu));
}

fn experts(gpu: &mut GpuBackend) {
    let mut r = Random::new(2);
    for ty in TYPES {
        let cols = ty.block_len().max(32) * 2;
        let weight = r.weight(ty, [cols, 19, 5]);
        for (positions, k) in [(1, 2), (3, 2), (40, 3)] {
            let ids = r.ids(positions, k, 5);
            expert_case(gpu, &r.tensor(&[positions, cols]), &ids, &weight);
            expert_case(gpu, &r.tensor(&[positions, k, cols]), &ids, &weight);
        }
    }
    // Every expert chosen by every position; one expert chosen by all and the others by none.
    let weight = r.weight(GgmlType::Q4_K, [256, 33, 4]);
    for positions in [1, 70] {
        let x = r.tensor(&[positions, 256]);
        let all = HostTensor::u32(&[positions, 4], (0..positions * 4).map(|i| (i % 4) as u32).collect());
        expert_case(gpu, &x, &all, &weight);
        for e in 0..4 {
            expert_case(gpu, &x, &HostTensor::u32(&[positions, 1], vec![e; positions]), &weight);
        }
    }
}

#[test]
fn an_id_that_names_no_expert_gives_nan_and_nothing_else() {
    let mut r = Random::new(3);
    let weight = r.weight(GgmlType::Q8_0, [64, 40, 3]);
    let pieces = gpu_with(GpuOptions { weight_binding: Some(1024), ..Default::default() });
    let backends = each_set().into_iter().map(|(_, gpu)| gpu).chain([pieces]);
    for mut gpu in backends {
        for positions in [1, 9] {
            let x = r.tensor(&[positions, 64]);
            let mut ids = r.ids(positions, 2, 3);
            let good = run(&mut gpu, &Op::ExpertMatMul { x: &x, ids: &ids, weight: &weight }).to_f32();
            let twinscope::op::Data::U32(list) = &mut ids.data else { unreachable!() };
            let last = list.len() - 1;
            list[last] = if positions == 1 { 3 } else { u32::MAX };
            let got = run(&mut gpu, &Op::ExpertMatMul { x: &x, ids: &ids, weight: &weight }).to_f32();
            for (i, (got, good)) in got.iter().zip(&good).enumerate() {
                assert!(if i / 40 == last { got.is_nan() } else { got == good }, "[{i}] is {got}");
            }
            let (y, bias) = (r.tensor(&[positions, 2, 40]), r.weight(GgmlType::F32, [40, 3, 1]));
            let got = run(&mut gpu, &Op::ExpertBias { x: &y, ids: &ids, weight: &bias }).to_f32();
            assert!(got.iter().enumerate().all(|(i, got)| got.is_nan() == (i / 40 == last)));
            // The sum of a position's weights has the NaN in it.
            let logits = r.tensor(&[positions, 3]);
            let op = Op::RouterWeights { probs: &logits, ids: &ids, renormalise: true, softmax: true, scale: 1.0 };
            let got = run(&mut gpu, &op).to_f32();
            assert!(got.iter().enumerate().all(|(i, got)| got.is_nan() == (i / 2 == last / 2)));
        }
    }
}

#[test]
fn norms() {
    let mut gpu = gpu();
    let mut r = Random::new(5);
    for (positions, groups, n) in [(1, 1, 1), (2, 1, 63), (3, 4, 64), (1, 1, 2048), (33, 5, 100)] {
        let x = r.tensor(&[positions, groups * n]);
        let weight = r.weight(GgmlType::F32, [n, 1, 1]);
        let op = Op::RmsNorm { x: &x, weight: &weight, eps: 1e-6, keep: 0 };
        let contract = gpu.contract(OpKind::RmsNorm);
        // Half of the relative error of mean + eps (squares, sum, division, sum), the root, two multiplications.
        let under_root = contract.order.depth(n) as f64 + 1.0 + contract.div_ulp + 1.0;
        let factor = gamma(under_root / 2.0 + contract.rsqrt_ulp + 2.0);
        let want = exact(&op);
        within(&format!("[{positions}, {groups}·{n}]"), &run(&mut gpu, &op), &want, |i| factor * want[i].abs());
    }
    let zeros = HostTensor::f32(&[1, 64], vec![0.0; 64]);
    let weight = r.weight(GgmlType::F32, [64, 1, 1]);
    let got = run(&mut gpu, &Op::RmsNorm { x: &zeros, weight: &weight, eps: 1e-6, keep: 0 });
    assert!(got.to_f32().iter().all(|v| *v == 0.0));
}

#[test]
fn rope_at_every_position() {
    let mut gpu = gpu();
    let mut r = Random::new(6);
    for (positions, heads, head_dim, start) in [(1, 1, 2, 0), (5, 3, 64, 0), (2, 8, 128, 254), (1, 2, 64, 40_000)] {
        let x = r.tensor(&[positions, heads * head_dim]);
        let op = Op::Rope { x: &x, start, head_dim, rotation: Rotation::neox(1e6) };
        // |x cos| + |y sin| at most |x| + |y|; the table's rounding, a product and a sum for each.
        let v = x.to_f64();
        let half = head_dim / 2;
        let bound = |i: usize| {
            let partner = if i % head_dim < half { i + half } else { i - half };
            gamma(3.0) * (v[i].abs() + v[partner].abs())
        };
        within(&format!("[{positions}, {heads}·{head_dim}] from {start}"), &run(&mut gpu, &op), &exact(&op), bound);
    }
}

/// q, a cache with more room than is used, and the shape of their scores.
fn attention_cases(r: &mut Random) -> Vec<(HostTensor, HostTensor, usize, usize)> {
    let shapes = [(1, 1, 1, 4, 0), (3, 4, 2, 64, 0), (1, 8, 2, 64, 130), (70, 6, 3, 128, 5), (2, 2, 1, 256, 300)];
    let case = |(positions, heads, kv_heads, head_dim, start): (usize, usize, usize, usize, usize)| {
        let q = r.tensor(&[positions, heads * head_dim]);
        let cache = r.tensor(&[start + positions + 3, kv_heads * head_dim]);
        (q, cache, start, head_dim)
    };
    shapes.map(case).into()
}

#[test]
fn attention() {
    let mut gpu = gpu();
    let mut r = Random::new(7);
    for (q, cache, start, head_dim) in attention_cases(&mut r) {
        let what = format!("q {:?}, cache {:?}, from {start}", q.shape, cache.shape);
        let op = Op::AttnScores { q: &q, k: &cache, start, head_dim, scale: None, window: None };
        let scores = run(&mut gpu, &op);
        let magnitudes = magnitude(&op);
        // A product, the sum, the scale and its own rounding.
        let factor = gamma(gpu.contract(OpKind::AttnScores).order.depth(head_dim) as f64 + 3.0);
        within(&format!("scores, {what}"), &scores, &exact(&op), |i| factor * magnitudes[i]);

        let seen = scores.cols();
        let op = Op::AttnProbs { scores: &scores, start, window: None, sinks: None };
        let probs = run(&mut gpu, &op);
        let want = exact(&op);
        let contract = gpu.contract(OpKind::AttnProbs);
        let values = scores.to_f64();
        let bound = |i: usize| {
            // exp of a rounded difference from the largest, their sum, a division. Below 2^-126 a result may be 0.
            let row = &values[i / seen * seen..][..start + i / seen % q.shape[0] + 1];
            let largest = row.iter().cloned().fold(f64::MIN, f64::max);
            let lowest = row.iter().cloned().fold(f64::MAX, f64::min);
            let exp = contract.exp_base_ulp + (contract.exp_slope_ulp + 1.0) * (largest - lowest).min(103.0);
            let factor = gamma(2.0 * exp + contract.order.depth(seen) as f64 + contract.div_ulp);
            factor * want[i] + f64::from(f32::MIN_POSITIVE)
        };
        within(&format!("probs, {what}"), &probs, &want, bound);

        let op = Op::AttnContext { probs: &probs, v: &cache, start, head_dim, window: None };
        let magnitudes = magnitude(&op);
        let factor = gamma(gpu.contract(OpKind::AttnContext).order.depth(seen) as f64 + 1.0);
        let floor = f64::from(f32::MIN_POSITIVE) * seen as f64 * 100.0; // products below 2^-126 may be 0
        within(&format!("context, {what}"), &run(&mut gpu, &op), &exact(&op), |i| factor * magnitudes[i] + floor);
    }
}

#[test]
fn elementwise_and_combine() {
    let mut gpu = gpu();
    let mut r = Random::new(8);
    for shape in [&[1usize, 1][..], &[3, 65], &[2, 3, 257], &[700, 100]] {
        let (a, b) = (r.tensor(shape), r.tensor(shape));
        let op = Op::Add { a: &a, b: &b };
        let want = exact(&op);
        within("add", &run(&mut gpu, &op), &want, |i| U * want[i].abs());
        let op = Op::SwiGlu { gate: &a, up: &b, activation: GateActivation::Silu };
        let contract = gpu.contract(OpKind::SwiGlu);
        let (want, gate) = (exact(&op), a.to_f64());
        let bound = |i: usize| {
            // exp, a sum, a division, two products. Below 2^-126 a factor may be 0.
            let exp = contract.exp_base_ulp + contract.exp_slope_ulp * gate[i].abs();
            gamma(exp + 1.0 + contract.div_ulp + 2.0) * want[i].abs() + f64::from(f32::MIN_POSITIVE) * 1e4
        };
        within("swiglu", &run(&mut gpu, &op), &want, bound);
    }
    for (positions, k, cols) in [(1, 1, 1), (1, 8, 100), (37, 2, 65)] {
        let down = r.tensor(&[positions, k, cols]);
        let weights = r.tensor(&[positions, k]);
        let op = Op::Combine { down: &down, weights: &weights };
        let magnitudes = magnitude(&op);
        within("combine", &run(&mut gpu, &op), &exact(&op), |i| gamma(k as f64 + 1.0) * magnitudes[i]);
    }
}

#[test]
fn router() {
    let mut gpu = gpu();
    let mut r = Random::new(9);
    for (positions, experts, k) in [(1, 1, 1), (1, 128, 8), (9, 8, 2), (65, 130, 130), (3, 300, 10)] {
        let what = format!("{positions} positions, {k} of {experts} experts");
        let logits = r.tensor(&[positions, experts]);
        let op = Op::RouterProbs { logits: &logits, sigmoid: false };
        let probs = run(&mut gpu, &op);
        let contract = gpu.contract(OpKind::RouterProbs);
        let want = exact(&op);
        let bound = |i: usize| {
            let exp = contract.exp_base_ulp + (contract.exp_slope_ulp + 1.0) * 103.0; // underflow is at -103
            gamma(2.0 * exp + contract.order.depth(experts) as f64 + contract.div_ulp) * want[i]
                + f64::from(f32::MIN_POSITIVE)
        };
        within(&format!("probs, {what}"), &probs, &want, bound);
        let op = Op::RouterTopK { probs: &probs, k, groups: None };
        let ids = run(&mut gpu, &op);
        let want: Vec<u32> = exact(&op).iter().map(|v| *v as u32).collect();
        assert_eq!(ids.ids(), want, "{what}");
        for renormalise in [false, true] {
            let op = Op::RouterWeights { probs: &probs, ids: &ids, renormalise, softmax: false, scale: 1.0 };
            let want = exact(&op);
            let factor = gamma(k as f64 + contract.div_ulp);
            let bound = |i: usize| factor * want[i] + f64::from(f32::MIN_POSITIVE);
            within(&format!("weights, {what}"), &run(&mut gpu, &op), &want, bound);
        }
    }
}

#[test]
fn top_k_takes_nan_first_and_ties_go_to_the_lower_id() {
    let mut gpu = gpu();
    let mut top = |values: &[f32], k: usize| {
        let probs = HostTensor::f32(&[1, values.len()], values.to_vec());
        run(&mut gpu, &Op::RouterTopK { probs: &probs, k, groups: None }).ids().to_vec()
    };
    assert_eq!(top(&[0.25; 100], 5), [0, 1, 2, 3, 4]);
    assert_eq!(top(&[0.1, 0.3, 0.2, 0.3, 0.2, 0.1], 6), [1, 3, 2, 4, 0, 5]);
    assert_eq!(top(&[-0.0, 0.0, -1.0, -2.0], 4), [0, 1, 2, 3]);
    assert_eq!(top(&[f32::NEG_INFINITY, f32::INFINITY, 0.0], 3), [1, 2, 0]);
    assert_eq!(top(&[f32::NAN; 70], 8), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(top(&[0.5, f32::NAN, f32::INFINITY, -f32::NAN, f32::NEG_INFINITY], 5), [1, 3, 2, 0, 4]);
}

#[test]
fn nan_never_vanishes() {
    let mut gpu = gpu();
    let mut r = Random::new(10);
    let poisoned = |t: &HostTensor, at: usize| {
        let mut values = t.to_f32();
        values[at] = f32::NAN;
        HostTensor::f32(&t.shape, values)
    };
    let weight = r.weight(GgmlType::Q6_K, [256, 20, 1]);
    let norm = r.weight(GgmlType::F32, [256, 1, 1]);
    for positions in [2, 40] {
        let x = poisoned(&r.tensor(&[positions, 256]), 256 + 9);
        for op in [
            Op::MatMul { x: &x, weight: &weight },
            Op::RmsNorm { x: &x, weight: &norm, eps: 1e-6, keep: 0 },
            Op::RouterProbs { logits: &x, sigmoid: false },
        ] {
            let got = run(&mut gpu, &op);
            let cols = got.cols();
            for (i, v) in got.to_f32().iter().enumerate() {
                assert_eq!(v.is_nan(), i / cols == 1, "{:?} [{i}] is {v}", op.kind());
            }
        }
        let clean = r.tensor(&[positions, 256]);
        for op in [
            Op::SwiGlu { gate: &x, up: &clean, activation: GateActivation::Silu },
            Op::SwiGlu { gate: &clean, up: &x, activation: GateActivation::Silu },
            Op::Add { a: &clean, b: &x },
        ] {
            let got = run(&mut gpu, &op).to_f32();
            assert!(got.iter().enumerate().all(|(i, v)| v.is_nan() == (i == 256 + 9)), "{:?}", op.kind());
        }
    }
    // Position 2 of head 1 attends to a NaN score; a later one that it must not see changes nothing.
    let scores = poisoned(&poisoned(&r.tensor(&[2, 4, 4]), 16 + 2 * 4 + 1), 16 + 4 + 3);
    let got = run(&mut gpu, &Op::AttnProbs { scores: &scores, start: 0, window: None, sinks: None }).to_f32();
    for (i, v) in got.iter().enumerate() {
        let seen = i % 4 <= i / 4 % 4;
        assert_eq!(v.is_nan(), i / 4 == 6 && seen, "[{i}] is {v}");
    }
    // A NaN in the cache past the end of what is seen changes nothing.
    let q = r.tensor(&[1, 64]);
    let cache = poisoned(&r.tensor(&[5, 64]), 3 * 64);
    let got = run(&mut gpu, &Op::AttnScores { q: &q, k: &cache, start: 2, head_dim: 64, scale: None, window: None });
    assert!(got.to_f32().iter().all(|v| v.is_finite()));
}

#[test]
fn caches_keep_what_is_stored_and_copies_see_their_moment() {
    // Room for two of the copies below, so that the third waits for the first.
    let mut gpu = gpu_with(GpuOptions { staging_bytes: Some(12_000), ..Default::default() });
    let mut r = Random::new(11);
    let cache = gpu.alloc(&[10, 100]).unwrap();
    let mut expected = vec![0f32; 1000];
    let mut tickets = vec![(gpu.fetch(&cache).unwrap(), expected.clone())];
    for (start, rows) in [(0, 1), (1, 4), (9, 1), (3, 5)] {
        let x = r.tensor(&[rows, 100]);
        expected[start * 100..(start + rows) * 100].copy_from_slice(&x.to_f32());
        let x = gpu.upload(&x).unwrap();
        gpu.run(at(), &Op::Store { cache: cache.clone(), x, start }).unwrap();
        tickets.push((gpu.fetch(&cache).unwrap(), expected.clone()));
    }
    let middle = gpu.run(at(), &Op::Rows { x: cache.clone(), start: 3, rows: 2 }).unwrap();
    assert_eq!(gpu.read(&middle).unwrap(), HostTensor::f32(&[2, 100], expected[300..500].to_vec()));
    // Out of order.
    for at in [3, 0, 2, 0, 0] {
        let (ticket, want) = tickets.remove(at);
        assert_eq!(gpu.take(ticket).unwrap(), HostTensor::f32(&[10, 100], want));
        assert!(gpu.take(ticket).unwrap_err().to_string().contains("taken already"));
    }
    let too_much = gpu.upload(&r.tensor(&[2, 100])).unwrap();
    let error = gpu.run(at(), &Op::Store { cache, x: too_much, start: 9 }).err().unwrap();
    assert!(error.to_string().contains("at 9 of 10"), "{error}");
}

/// A cache's values change under the same handle: whatever a backend keeps of a tensor, it keeps nothing of a cache.
#[test]
fn a_product_over_a_cache_reads_what_is_stored_by_then() {
    for (set, mut gpu) in each_set() {
        let mut r = Random::new(23);
        let weight = r.weight(GgmlType::Q8_0, [64, 8, 1]);
        let cache = gpu.alloc(&[2, 64]).unwrap();
        let product = |gpu: &mut GpuBackend| {
            let y = gpu.run(at(), &Op::MatMul { x: cache.clone(), weight: &weight }).unwrap();
            gpu.read(&y).unwrap().to_f32()
        };
        assert_eq!(product(&mut gpu), [0.0; 16], "{set}");
        let x = gpu.upload(&r.tensor(&[2, 64])).unwrap();
        gpu.run(at(), &Op::Store { cache: cache.clone(), x: x.clone(), start: 0 }).unwrap();
        let y = gpu.run(at(), &Op::MatMul { x, weight: &weight }).unwrap();
        assert_eq!(product(&mut gpu), gpu.read(&y).unwrap().to_f32(), "{set}");
    }
}

/// What runs together leaves out no value that somebody has a handle to, and writes nothing beside its rows of a cache.
#[test]
fn values_that_somebody_holds_are_made() {
    let (head_dim, base, start) = (64, 1e6, 1);
    let mut r = Random::new(24);
    let weight = r.weight(GgmlType::F32, [head_dim, 1, 1]);
    let matrix = r.weight(GgmlType::Q8_0, [256, 256, 1]);
    let x = r.tensor(&[2, 256]);
    // Holding the normed values or not, reading after each operation or not.
    let run = |holds: bool, reads: bool| {
        let mut gpu = gpu();
        let x = gpu.upload(&x).unwrap();
        let cache = gpu.alloc(&[4, 256]).unwrap();
        let mut held = Vec::new();
        let mut step = |gpu: &mut GpuBackend, op: Op<'_, GpuTensor>| {
            let y = gpu.run(at(), &op).unwrap();
            if holds {
                held.push(y.clone());
            }
            if reads {
                gpu.read(&y).unwrap();
            }
            y
        };
        let before = gpu.dispatches();
        let y = step(&mut gpu, Op::MatMul { x, weight: &matrix });
        let y = step(&mut gpu, Op::RmsNorm { x: y, weight: &weight, eps: 1e-6, keep: 0 });
        let y = step(&mut gpu, Op::Rope { x: y, start, head_dim, rotation: Rotation::neox(base) });
        step(&mut gpu, Op::Store { cache: cache.clone(), x: y, start });
        gpu.sync().unwrap();
        let dispatches = gpu.dispatches() - before;
        let held: Vec<_> = held.iter().map(|t| gpu.read(t).unwrap()).collect();
        (dispatches, gpu.read(&cache).unwrap(), held)
    };
    let (together, expected, _) = run(false, false);
    assert_eq!(together, 2, "a product, and the rest at once");
    let (alone, cache, held) = run(true, false);
    assert_eq!((alone, &cache), (4, &expected));
    assert_eq!(run(true, true), (4, expected, held));
}

/// Counted so that nobody undoes it unknowingly; see `src/backend/gpu/fuse.rs`.
#[test]
fn an_untapped_layer_takes_14_dispatches() {
    let model = Model::open(None).unwrap();
    let layers = model.config.layers as u64;
    let mut gpu = gpu();
    for tokens in [&[414u32, 2, 3, 4, 5, 6][..], &[7]] {
        // Prefill: also a plan of the experts.
        let a_layer = if tokens.len() == 1 { 14 } else { 15 };
        let mut session = Session::new(&mut gpu, &model.config, 8).unwrap();
        let before = gpu.dispatches();
        let logits = forward(&mut gpu, &model, &mut session, tokens, LogitRows::All).unwrap();
        gpu.read(&logits).unwrap();
        // Besides: the embedding, the first norm, the logits.
        assert_eq!(gpu.dispatches() - before, 3 + a_layer * layers, "{} tokens", tokens.len());
    }
}

#[test]
fn reading_in_between_changes_nothing() {
    let mut gpu = gpu();
    let mut r = Random::new(12);
    let weight = r.weight(GgmlType::Q5_K, [256, 256, 1]);
    let norm = r.weight(GgmlType::F32, [256, 1, 1]);
    let x = r.tensor(&[3, 256]);
    let mut chain = |read: bool| {
        let mut t = gpu.upload(&x).unwrap();
        // More dispatches than go into one submission.
        for _ in 0..100 {
            let y = gpu.run(at(), &Op::MatMul { x: t.clone(), weight: &weight }).unwrap();
            let y = gpu.run(at(), &Op::Add { a: t, b: y }).unwrap();
            t = gpu.run(at(), &Op::RmsNorm { x: y, weight: &norm, eps: 1e-6, keep: 0 }).unwrap();
            if read {
                gpu.read(&t).unwrap();
            }
        }
        gpu.read(&t).unwrap()
    };
    let (quiet, read) = (chain(false), chain(true));
    assert_eq!(quiet, read); // which no NaN would
}

#[test]
fn what_has_no_kernels_is_named_before_the_run() {
    let mut gpu = gpu();
    let need = |op, ty| Need { op, ty, cols: 256, name: "blk.0.x".into(), experts: None };
    let needs = [
        need(OpKind::MatMul, GgmlType::Q4_K),
        need(OpKind::MatMul, GgmlType::IQ2_S),
        need(OpKind::MatMul, GgmlType::Q8_1),
        need(OpKind::RmsNorm, GgmlType::F16),
        need(OpKind::RmsNorm, GgmlType::F32),
        need(OpKind::AttnScores, GgmlType::F32),
        Need { cols: 6, name: "key_length".into(), ..need(OpKind::AttnScores, GgmlType::F32) },
    ];
    let lines = gpu.unsupported(&needs);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].contains("blk.0.x") && lines[0].contains("Q8_1"), "{lines:?}");
    assert!(lines[1].contains("blk.0.x") && lines[1].contains("F16"), "{lines:?}");
    assert!(lines[2].contains("key_length") && lines[2].contains("multiple of 4, not 6"), "{lines:?}");
    let weight = Weight::from_vec("blk.0.x", GgmlType::Q8_1, [256, 1, 1], vec![0; 8 * 36]).unwrap();
    let error = gpu.prepare(&[weight], &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("Q8_1"), "{error}");
}

#[test]
fn an_adapter_that_is_not_there_is_an_error_that_lists_those_that_are() {
    for selector in ["99", "no such adapter"] {
        let selector = AdapterSelector::parse(selector);
        let error = GpuBackend::new(&selector, GpuOptions::default()).err().unwrap();
        assert_eq!(error.exit_code(), 125);
        assert!(error.to_string().contains("gpu:0 "), "{error}");
    }
    let first = GpuBackend::new(&AdapterSelector::Index(0), GpuOptions::default()).unwrap().info();
    let part = first.adapter[..4].to_uppercase();
    assert_eq!(
        GpuBackend::new(&AdapterSelector::Name(part), GpuOptions::default()).unwrap().info().adapter,
        first.adapter
    );
}

#[test]
fn a_patch_changes_a_kernel() {
    let patch = |name: &str, source: String| match name {
        "add" => source.replace("a[n] + b[n]", "a[n] - b[n]"),
        _ => source,
    };
    let mut gpu = gpu_with(GpuOptions { patch: Some(Arc::new(patch)), ..Default::default() });
    let (a, b) = (HostTensor::f32(&[1, 2], vec![1.0, 2.0]), HostTensor::f32(&[1, 2], vec![5.0, 3.0]));
    assert_eq!(run(&mut gpu, &Op::Add { a: &a, b: &b }).to_f32(), [-4.0, -1.0]);
    let broken = |_: &str, source: String| source.replace("@compute", "@comp");
    let mut gpu = gpu_with(GpuOptions { patch: Some(Arc::new(broken)), ..Default::default() });
    let a = gpu.upload(&a).unwrap();
    let result = gpu.run(at(), &Op::Add { a: a.clone(), b: a }).and_then(|t| gpu.read(&t));
    assert!(result.unwrap_err().to_string().contains("comp"), "a shader that does not compile is an error");
}
