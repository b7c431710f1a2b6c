//! Poisoned memory: the repository's kernels are clean and compute the same bits; one that leaves something out or goes too far is
//! named, at the element, before anybody reads what it left.

use std::sync::Arc;

use super::common::*;
use twinscope::Error;
use twinscope::backend::gpu::{GpuBackend, GpuOptions};
use twinscope::backend::{Backend, Need, cases};
use twinscope::model::{LogitRows, Model, Session, forward};
use twinscope::op::{At, GgmlType, HostTensor, Op, Rotation, Stage};

/// A GPU that poisons, of whose `kernel` the text `from` became `to`.
fn planted(lanes: bool, kernel: &'static str, from: &'static str, to: &'static str) -> GpuBackend {
    let patch = move |name: &str, source: String| {
        if name.split('/').next() != Some(kernel) {
            return source;
        }
        assert_eq!(source.matches(from).count(), 1, "{kernel}: {from}");
        source.replace(from, to)
    };
    gpu_with(GpuOptions { patch: Some(Arc::new(patch)), lanes: Some(lanes), poison: true, ..Default::default() })
}

fn poisoned(lanes: bool) -> GpuBackend {
    gpu_with(GpuOptions { lanes: Some(lanes), poison: true, ..Default::default() })
}

/// The sets of matrix kernels that the adapter can run.
fn sets() -> Vec<&'static str> {
    each_set().into_iter().map(|(set, _)| set).collect()
}

/// What a fault of running `op` says. Nothing is read.
fn fault(gpu: &mut GpuBackend, op: &Op<'_, &HostTensor>) -> String {
    let op = op.try_map(|t| gpu.upload(t)).unwrap();
    told(gpu.run(at(), &op).and_then(|_| gpu.sync()))
}

fn told(result: twinscope::Result<()>) -> String {
    match result {
        Err(e @ Error::Fault(_)) => {
            assert_eq!(e.exit_code(), 1);
            e.to_string()
        }
        other => panic!("no kernel is named: {other:?}"),
    }
}

#[test]
fn every_operation_is_clean_and_has_the_same_bits() {
    for (set, mut plain) in each_set() {
        let mut gpu = poisoned(set == "lanes");
        let mut runs = 0;
        for (i, case) in cases::table().iter().enumerate() {
            let operands = case.build(400 + i as u64).unwrap();
            let need = |ty, cols| Need { op: case.kind(), ty, cols, name: String::new(), experts: None };
            if operands.op().weight().is_some_and(|w| !gpu.unsupported(&[need(w.ty, w.cols)]).is_empty()) {
                continue;
            }
            let got = cases::run(&mut gpu, case.at(), &operands).unwrap_or_else(|e| panic!("{set}: {case}: {e}"));
            let want = cases::run(&mut plain, case.at(), &operands).unwrap();
            assert!(same(&got, &want), "{set}: {case}");
            runs += 1;
        }
        assert!(runs > 100, "{runs}");
    }
}

fn same(a: &HostTensor, b: &HostTensor) -> bool {
    let bits = |t: &HostTensor| t.to_f64().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    (&a.shape, bits(a)) == (&b.shape, bits(b))
}

/// With fused kernels, a KV cache that is written in chunks, pieces of weights and streamed experts.
#[test]
fn a_model_gives_the_same_bits() {
    let model = Model::open(None).unwrap();
    for (set, mut plain) in each_set() {
        let logits = |gpu: &mut GpuBackend| {
            gpu.prepare(&model.weights.all(), &mut |_| ()).unwrap();
            let mut session = Session::new(gpu, &model.config, 16).unwrap();
            [&[414u32, 2, 3, 4, 5, 6][..], &[7], &[9, 10]].map(|tokens| {
                let logits = forward(gpu, &model, &mut session, tokens, LogitRows::All).unwrap();
                gpu.read(&logits).unwrap()
            })
        };
        let want = logits(&mut plain);
        for weight_memory in [None, Some(1 << 20)] {
            let lanes = Some(set == "lanes");
            let got = logits(&mut gpu_with(GpuOptions { lanes, weight_memory, poison: true, ..Default::default() }));
            assert!(got.iter().zip(&want).all(|(got, want)| same(got, want)), "{set}: {weight_memory:?}");
        }
    }
}

#[test]
fn a_kernel_that_leaves_something_out_is_named_with_the_element() {
    let x = HostTensor::f32(&[2, 3], vec![1.0; 6]);
    let add = Op::Add { a: &x, b: &x };
    let mut gpu = planted(false, "add", "if n < p.n {", "if n + 1u < p.n {");
    let found = fault(&mut gpu, &add);
    let expected = "kernel add left 1 of the 6 elements of its output unwritten: [1, 2] (binding 2, of [2, 3])";
    let begin = format!("{}: {}: ", gpu.info().adapter, at().site);
    assert!(found.starts_with(&begin) && found.ends_with(expected), "{found}");

    // The last tile of rows: 32 of 70, so rows 64 to 69 of each position.
    let mut r = Random::new(5);
    let weight = r.weight(GgmlType::Q4_K, [256, 70, 1]);
    let x = r.tensor(&[37, 256]);
    let product = Op::MatMul { x: &x, weight: &weight };
    let sets = sets();
    for (set, kernel, from) in [
        ("threads", "matmul", "if r < p.piece.count &&"),
        ("lanes", "matmul_lanes", "if row + 8u * j < p.piece.count &&"),
    ] {
        if !sets.contains(&set) {
            continue;
        }
        let to = from.replace("p.piece.count", "p.piece.count / TILE * TILE").leak();
        let mut gpu = planted(set == "lanes", kernel, from, to);
        let found = fault(&mut gpu, &product);
        let words = ["kernel matmul", "/Q4_K left 222 of the 2590 elements", "[0, 64] to [36, 69]"];
        assert!(words.iter().all(|word| found.contains(word)), "{set}: {found}");
    }

    // Fewer experts than were asked for: the ids that nobody chose would be those of no expert.
    let probs = HostTensor::f32(&[1, 8], (0..8).map(|i| i as f32 / 28.0).collect());
    let mut gpu = planted(false, "router_topk", "top_k(group.x, id.x);", "");
    let found = fault(&mut gpu, &Op::RouterTopK { probs: &probs, k: 2, groups: None });
    assert!(found.contains("kernel router_topk left 2 of the 2 elements"), "{found}");
}

#[test]
fn a_kernel_that_goes_too_far_is_named_with_how_far() {
    let x = HostTensor::f32(&[2, 3], vec![1.0; 6]);
    let mut gpu = planted(false, "add", "if n < p.n {", "if n < p.n + 5u {");
    let found = fault(&mut gpu, &Op::Add { a: &x, b: &x });
    let expected =
        "kernel add wrote 5 words past the end of its output, the first of them 0 after it (binding 2, of [2, 3])";
    assert!(found.ends_with(expected), "{found}");

    // The last word that is bound: of 32 bytes, which hold the 6 values, and 8 KiB of guards.
    let mut gpu = planted(false, "add", "if n < p.n {", "if n == 0u { y[2055] = 1.0; }\n    if n < p.n {");
    let found = fault(&mut gpu, &Op::Add { a: &x, b: &x });
    assert!(found.contains("wrote 1 words past the end of its output, the first of them 2049 after it"), "{found}");

    // Rows past the end of the weight, of one position: a workgroup makes more than 17.
    let mut r = Random::new(6);
    let weight = r.weight(GgmlType::Q8_0, [64, 17, 1]);
    let x = r.tensor(&[1, 64]);
    let sets = sets();
    for (set, kernel, from, to) in [
        ("threads", "matvec", "min(4u, p.piece.count - min(row, p.piece.count))", "4u"),
        ("lanes", "matvec_lanes", "if row + 8u * j < p.piece.count {", "if row < 9999u {"),
    ] {
        if !sets.contains(&set) {
            continue;
        }
        let found = fault(&mut planted(set == "lanes", kernel, from, to), &Op::MatMul { x: &x, weight: &weight });
        assert!(found.contains("/Q8_0 wrote ") && found.contains("past the end"), "{set}: {found}");
    }

    // A copy whose source goes on too: what it writes there is another tensor's guards.
    let x = HostTensor::f32(&[2, 4], vec![1.0; 8]);
    let mut gpu = planted(false, "copy", "if n < p.words {", "if n < p.words + 9u {");
    let found = fault(&mut gpu, &Op::Rows { x: &x, start: 1, rows: 1 });
    assert!(found.contains("kernel copy wrote 9 words past the end"), "{found}");
}

/// The rows of a cache around those that are stored are what is not to be written.
#[test]
fn a_store_into_the_neighbouring_rows_of_a_cache_is_named() {
    for (from, to, words) in [
        ("y[at] = word;", "y[at] = word; y[p.to - 1u] = 7u;", "wrote 1 words in front of its output"),
        ("y[at] = word;", "y[at] = word; y[p.to + p.words] = 7u;", "wrote 1 words past the end"),
        ("y[at] = word;", "if n != 3u { y[at] = word; }", "left 1 of the 8 elements of its output unwritten: [2, 3]"),
    ] {
        let mut gpu = planted(false, "copy", from, to);
        let cache = gpu.alloc(&[6, 4]).unwrap();
        let x = gpu.upload(&HostTensor::f32(&[2, 4], vec![1.0; 8])).unwrap();
        let stored = gpu.run(at(), &Op::Store { cache, x, start: 2 }).map(drop);
        let found = told(stored.and_then(|()| gpu.sync()));
        assert!(found.contains("kernel copy ") && found.contains(words) && found.contains("of [6, 4]"), "{found}");
    }
}

/// Rows of a cache that nobody has stored are NaN, and whoever copies those has left nothing out.
#[test]
fn what_is_not_stored_is_nan_and_was_not_left_out() {
    let mut gpu = poisoned(false);
    let cache = gpu.alloc(&[6, 4]).unwrap();
    let x = gpu.upload(&HostTensor::f32(&[2, 4], vec![1.0; 8])).unwrap();
    gpu.run(at(), &Op::Store { cache: cache.clone(), x, start: 2 }).unwrap();
    let rows = gpu.run(at(), &Op::Rows { x: cache, start: 1, rows: 4 }).unwrap();
    let rows = gpu.read(&rows).unwrap().to_f32();
    let stored = |i: usize| (4..12).contains(&i);
    assert!(rows.iter().enumerate().all(|(i, v)| if stored(i) { *v == 1.0 } else { v.is_nan() }), "{rows:?}");
}

/// A buffer that was right the first time holds those values no more when it is used again.
#[test]
fn a_buffer_from_the_pool_is_poisoned_again() {
    let mut gpu = planted(false, "add", "if n < p.n {", "if n < p.n && (n != 2u || a[0] < 5.0) {");
    let mut sum = |first: f32| {
        let x = gpu.upload(&HostTensor::f32(&[1, 4], vec![first; 4])).unwrap();
        let made = gpu.run(at(), &Op::Add { a: x.clone(), b: x });
        made.map(drop).and_then(|()| gpu.sync())
    };
    sum(1.0).unwrap();
    assert!(told(sum(9.0)).contains("left 1 of the 4 elements of its output unwritten: [0, 2]"));
}

/// The kernel that runs while nobody looks, by the last of its stages.
#[test]
fn a_fused_kernel_is_named() {
    let mut r = Random::new(7);
    let norm = r.weight(GgmlType::F32, [8, 1, 1]);
    let mut gpu = planted(false, "norm_rope", "if g < p.groups {", "if g + 1u < p.groups {");
    let q = gpu.upload(&r.tensor(&[2, 24])).unwrap();
    let rotation = Rotation::neox(1e4);
    let result = {
        let y =
            gpu.run(At::layer(1, Stage::QNorm, 0), &Op::RmsNorm { x: q, weight: &norm, eps: 1e-6, keep: 0 }).unwrap();
        gpu.run(At::layer(1, Stage::QRope, 0), &Op::Rope { x: y, start: 0, head_dim: 8, rotation }).map(drop)
    };
    let found = told(result.and_then(|()| gpu.sync()));
    let words = ["layer 1 · q_rope", "kernel norm_rope left 8 of the 48 elements", "[1, 16] to [1, 23]"];
    assert!(words.iter().all(|word| found.contains(word)), "{found}");
}

/// What lies beyond an input is NaN, in buffers and in textures; without poison it may be anything, the right values among them.
#[test]
fn what_is_read_beyond_an_input_is_nan() {
    let x = HostTensor::f32(&[2, 3], vec![1.0; 6]);
    let mut gpu = planted(false, "add", "a[n] + b[n]", "a[n + 4u] + b[n]");
    let sums = run(&mut gpu, &Op::Add { a: &x, b: &x }).to_f32();
    assert!(sums[..2].iter().all(|v| *v == 2.0) && sums[2..].iter().all(|v| v.is_nan()), "{sums:?}");

    let mut r = Random::new(8);
    let weight = r.weight(GgmlType::Q8_0, [64, 9, 1]);
    let x = r.tensor(&[1, 64]);
    let sets = sets();
    for (set, kernel) in [("threads", "matvec"), ("lanes", "matvec_lanes")] {
        if !sets.contains(&set) {
            continue;
        }
        let mut gpu = planted(set == "lanes", kernel, "t * p.piece.pairs * 8u", "(t + 1u) * p.piece.pairs * 8u");
        let products = run(&mut gpu, &Op::MatMul { x: &x, weight: &weight }).to_f32();
        assert!(products.iter().all(|v| v.is_nan()), "{set}: {products:?}");
    }
}
