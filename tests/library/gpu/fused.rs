//! Kernels of several operations give the bits of those of the single ones, over shapes that no model of the tests has.

use twinscope::backend::Backend;
use twinscope::backend::gpu::GpuBackend;
use twinscope::op::{At, GgmlType, HostTensor, Op, Rotation, Stage};

use super::common::{Random, each_set};

fn values(random: &mut Random, shape: &[usize]) -> HostTensor {
    let mut one = || random.below(2001) as f32 / 500.0 - 2.0;
    HostTensor::f32(shape, (0..shape.iter().product()).map(|_| one()).collect())
}

/// The context of positions from `start` on, where somebody looks at the scores, or nobody does; and the dispatches that it took.
fn context(
    gpu: &mut GpuBackend,
    [q, k, v]: &[HostTensor; 3],
    head_dim: usize,
    start: usize,
    window: Option<usize>,
    looks: bool,
) -> (Vec<u32>, u64) {
    let at = |stage| At::layer(0, stage, start);
    let [q, k, v] = [q, k, v].map(|t| gpu.upload(t).unwrap());
    let before = gpu.dispatches();
    let scores =
        gpu.run(at(Stage::AttnScores), &Op::AttnScores { q, k, start, head_dim, scale: Some(0.21), window }).unwrap();
    if looks {
        gpu.read(&scores).unwrap();
    }
    let probs = gpu.run(at(Stage::AttnProbs), &Op::AttnProbs { scores, start, window, sinks: None }).unwrap();
    let context = gpu.run(at(Stage::AttnContext), &Op::AttnContext { probs, v, start, head_dim, window }).unwrap();
    let values = gpu.read(&context).unwrap().to_f32();
    (values.iter().map(|x| x.to_bits()).collect(), gpu.dispatches() - before)
}

#[test]
fn attention_in_one_kernel_is_attention_in_three() {
    let mut random = Random::new(5);
    // One key, ragged counts around a workgroup's threads, around what it keeps of scores, and several times that.
    let seen = [(1, 0), (3, 60), (2, 63), (5, 64), (1, 2046), (1, 2047), (3, 2047), (2, 6200)];
    for (name, mut gpu) in each_set() {
        for (heads, kv_heads, head_dim) in [(1, 1, 4), (4, 2, 64), (3, 1, 72), (2, 2, 128), (2, 1, 256), (2, 1, 260)] {
            for (rows, start) in seen.into_iter().filter(|(_, start)| *start < 100 || head_dim < 128) {
                let capacity = rows + start + 3;
                let tensors = [
                    values(&mut random, &[rows, heads * head_dim]),
                    values(&mut random, &[capacity, kv_heads * head_dim]),
                    values(&mut random, &[capacity, kv_heads * head_dim]),
                ];
                // No window, one key, some, more than there are.
                for window in [None, Some(1), Some(37), Some(9000)] {
                    let (three, _) = context(&mut gpu, &tensors, head_dim, start, window, true);
                    let (one, dispatches) = context(&mut gpu, &tensors, head_dim, start, window, false);
                    let what = format!(
                        "{name}: {heads}/{kv_heads} heads of {head_dim}, {rows} rows from {start} on, {window:?}"
                    );
                    assert!(one == three, "{what}");
                    assert_eq!(dispatches, if head_dim > 256 { 3 } else { 1 }, "{what}");
                }
            }
        }
    }
}

#[test]
fn scores_that_nobody_looks_at_take_no_memory() {
    // 32 heads × 2048 × 2048 scores are 512 MiB, four times what a software adapter binds.
    let (heads, head_dim, rows) = (32, 4, 2048);
    let (_, mut gpu) = each_set().remove(0);
    let mut random = Random::new(6);
    let q = gpu.upload(&values(&mut random, &[rows, heads * head_dim])).unwrap();
    let cache = gpu.upload(&values(&mut random, &[rows, head_dim])).unwrap();
    let at = |stage| At::layer(0, stage, 0);
    let mut run = |looks: bool| {
        let scores = Op::AttnScores { q: q.clone(), k: cache.clone(), start: 0, head_dim, scale: None, window: None };
        let scores = gpu.run(at(Stage::AttnScores), &scores)?;
        if looks {
            gpu.read(&scores)?;
        }
        let probs = gpu.run(at(Stage::AttnProbs), &Op::AttnProbs { scores, start: 0, window: None, sinks: None })?;
        let v = cache.clone();
        let context =
            gpu.run(at(Stage::AttnContext), &Op::AttnContext { probs, v, start: 0, head_dim, window: None })?;
        gpu.read(&context)
    };
    assert!(run(false).unwrap().to_f32().iter().all(|x| x.is_finite()));
    if let Err(e) = run(true) {
        assert!(e.to_string().contains("use a smaller chunk"), "{e}");
    }
}

#[test]
fn a_group_that_fails_is_an_error_and_the_backend_goes_on() {
    // Somebody looks at scores that are too many for a binding, and then tries fewer.
    let (heads, head_dim, rows) = (32, 4, 2048);
    let (_, mut gpu) = each_set().remove(0);
    let mut random = Random::new(7);
    let q = gpu.upload(&values(&mut random, &[rows, heads * head_dim])).unwrap();
    let cache = gpu.upload(&values(&mut random, &[rows, head_dim])).unwrap();
    let at = At::layer(0, Stage::AttnScores, 0);
    let scores = Op::AttnScores { q, k: cache.clone(), start: 0, head_dim, scale: None, window: None };
    let scores = gpu.run(at, &scores).unwrap();
    let Ok(ticket) = gpu.fetch(&scores) else { unreachable!("nothing has run yet") };
    if gpu.take(ticket).is_ok() {
        return; // an adapter that binds so much
    }
    let said = gpu.fetch(&scores).unwrap_err().to_string();
    assert!(said.contains("has failed"), "{said}");
    let said = gpu.run(at, &Op::AttnProbs { scores, start: 0, window: None, sinks: None }).err().unwrap().to_string();
    assert!(said.contains("has failed"), "{said}");
    let few = gpu.upload(&values(&mut random, &[2, heads * head_dim])).unwrap();
    let few = Op::AttnScores { q: few, k: cache, start: 0, head_dim, scale: None, window: None };
    let few = gpu.run(at, &few).unwrap();
    assert_eq!(gpu.read(&few).unwrap().shape, [heads, 2, 2]);
}

/// Norms of heads and their rotation, of queries and of keys, some of which go into a cache: each alone where somebody looks, and in one.
#[test]
fn norms_and_rotations_of_queries_and_keys_in_one_kernel_are_those_of_four() {
    let mut random = Random::new(9);
    for (name, mut gpu) in each_set() {
        for (heads, kv_heads, head_dim) in [(1, 1, 4), (4, 2, 64), (3, 1, 72), (2, 3, 128)] {
            let [q_weight, k_weight] = [(); 2].map(|()| random.weight(GgmlType::F32, [head_dim, 1, 1]));
            for (rows, start) in [(1, 0), (1, 32), (5, 64), (70, 0)] {
                let x = [heads, kv_heads].map(|n| values(&mut random, &[rows, n * head_dim]));
                let mut run = |looks: bool| {
                    let cache = gpu.alloc(&[rows + start, kv_heads * head_dim]).unwrap();
                    let [q, k] = x.each_ref().map(|x| gpu.upload(x).unwrap());
                    gpu.sync().unwrap();
                    let before = gpu.dispatches();
                    let mut step = |stage, op: Op<'_, _>| {
                        let made = gpu.run(At::layer(0, stage, start), &op).unwrap();
                        if looks {
                            gpu.read(&made).unwrap();
                        }
                        made
                    };
                    let rotation = Rotation::neox(1e4);
                    let q = step(Stage::QNorm, Op::RmsNorm { x: q, weight: &q_weight, eps: 1e-6, keep: 0 });
                    let k = step(Stage::KNorm, Op::RmsNorm { x: k, weight: &k_weight, eps: 1e-6, keep: 0 });
                    let q = step(Stage::QRope, Op::Rope { x: q, start, head_dim, rotation });
                    let k = step(Stage::KRope, Op::Rope { x: k, start, head_dim, rotation });
                    step(Stage::KRope, Op::Store { cache: cache.clone(), x: k, start });
                    gpu.sync().unwrap();
                    let dispatches = gpu.dispatches() - before;
                    (gpu.read(&q).unwrap(), gpu.read(&cache).unwrap(), dispatches)
                };
                let what = format!("{name}: {heads}/{kv_heads} heads of {head_dim}, {rows} rows from {start} on");
                let (four, one) = (run(true), run(false));
                assert!((&one.0, &one.1) == (&four.0, &four.1), "{what}");
                assert_eq!((four.2, one.2), (5, 1), "{what}");
            }
        }
    }
}

/// What experts combine to, added and normalised, and read by whoever comes next.
#[test]
fn a_combination_added_and_normalised_in_one_kernel_is_that_of_three() {
    let mut random = Random::new(10);
    for (name, mut gpu) in each_set() {
        for (rows, k, cols) in [(1, 1, 4), (1, 8, 256), (3, 2, 260), (70, 4, 64)] {
            let norm = random.weight(GgmlType::F32, [cols, 1, 1]);
            let [down, weights, a] =
                [vec![rows, k, cols], vec![rows, k], vec![rows, cols]].map(|shape| values(&mut random, &shape));
            let mut run = |looks: bool, swapped: bool| {
                let [down, weights, a] = [&down, &weights, &a].map(|t| gpu.upload(t).unwrap());
                gpu.sync().unwrap();
                let before = gpu.dispatches();
                let at = |stage| At::layer(0, stage, 0);
                let moe = gpu.run(at(Stage::MoeOut), &Op::Combine { down, weights }).unwrap();
                if looks {
                    gpu.read(&moe).unwrap();
                }
                let (a, b) = if swapped { (moe, a) } else { (a, moe) };
                let sum = gpu.run(at(Stage::LayerOut), &Op::Add { a, b }).unwrap();
                if looks {
                    gpu.read(&sum).unwrap();
                }
                let y = Op::RmsNorm { x: sum.clone(), weight: &norm, eps: 1e-6, keep: 0 };
                let y = gpu.run(At::layer(1, Stage::AttnNorm, 0), &y).unwrap();
                gpu.sync().unwrap();
                let dispatches = gpu.dispatches() - before;
                (gpu.read(&sum).unwrap(), gpu.read(&y).unwrap(), dispatches)
            };
            for swapped in [false, true] {
                let (three, one) = (run(true, swapped), run(false, swapped));
                let what = format!("{name}: {rows} rows of {k} × {cols}, {swapped}");
                assert!((&one.0, &one.1) == (&three.0, &three.1), "{what}");
                assert_eq!((three.2, one.2), (3, 1), "{what}");
            }
        }
    }
}
