//! Operands that do not belong together: every backend refuses them with the same words and the same exit code, before it runs
//! anything.

use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::oracle::OracleBackend;
use twinscope::backend::{AnyBackend, Backend, Erased};
use twinscope::op::{At, GateActivation, GgmlType, GroupScore, Groups, HostTensor, Op, Rotation, Stage, Weight};

use super::gpu::common::gpu;

/// `shape` filled with small numbers.
fn x(shape: &[usize]) -> HostTensor {
    HostTensor::f32(shape, (0..shape.iter().product()).map(|i| (i % 7) as f32).collect())
}

fn ids(shape: &[usize], ids: &[u32]) -> HostTensor {
    HostTensor::u32(shape, ids.to_vec())
}

#[test]
fn are_refused_alike_by_every_backend() {
    let weight = |name: &str, dims: [usize; 3]| {
        Weight::from_vec(name, GgmlType::F32, dims, vec![0; dims.iter().product::<usize>() * 4]).unwrap()
    };
    let (w, stack, empty) = (weight("w", [8, 4, 1]), weight("exps", [8, 4, 2]), weight("empty", [8, 0, 1]));
    let (norm, matrix) = (weight("norm", [4, 1, 1]), weight("matrix", [4, 2, 1]));
    let (good, bad, none) = (x(&[2, 8]), x(&[2, 7]), x(&[0, 8]));
    let (cache, few, cube, pair) = (x(&[4, 8]), x(&[2, 1]), x(&[2, 3, 5]), ids(&[2, 1], &[0, 1]));
    let (kernel, rates) = (weight("kernel", [4, 8, 1]), weight("rates", [8, 1, 1]));
    let delta =
        |q, k, v, decay, beta, head_dim| Op::DeltaRule { q, k, v, decay, beta, start: 1, head_dim, tiled: true };
    let choice = |k, count, used| {
        let groups = Some(Groups { count, used, by: GroupScore::TopTwo });
        Op::RouterTopK { probs: &good, k, groups }
    };
    let (keys, heads, odd) = (x(&[3, 8]), x(&[3, 4]), x(&[3, 3]));
    let (three, long) = (x(&[3, 1, 8]), ids(&[3, 1], &[0, 1, 0]));
    let cases = [
        (Op::Embed { table: &w, tokens: &[], scale: 1.0 }, "tokens is [] where at least one token"),
        (Op::Embed { table: &w, tokens: &[3, 4], scale: 1.0 }, "tokens[1] is 4 where one of the 4 rows of w"),
        (Op::Embed { table: &stack, tokens: &[0], scale: 1.0 }, "exps is [8, 4, 2] where one matrix [cols, rows]"),
        (Op::RmsNorm { x: &bad, weight: &norm, eps: 0.0, keep: 0 }, "x is [2, 7] where [T, groups·4] for norm"),
        (Op::RmsNorm { x: &good, weight: &matrix, eps: 0.0, keep: 0 }, "matrix is [4, 2] where a vector [cols, 1]"),
        (Op::RmsNorm { x: &cube, weight: &norm, eps: 0.0, keep: 0 }, "x is [2, 3, 5] where [T, groups·4] for norm"),
        (Op::RmsNorm { x: &good, weight: &norm, eps: 0.0, keep: 3 }, "x is [2, 8] where [T, groups·4 + 3] for norm"),
        (Op::RmsNorm { x: &good, weight: &norm, eps: 0.0, keep: 8 }, "x is [2, 8] where [T, groups·4 + 8] for norm"),
        (
            Op::RmsNorm { x: &good, weight: &norm, eps: 0.0, keep: usize::MAX },
            "x is [2, 8] where [T, groups·4 + 18446744073709551615] for norm",
        ),
        (
            Op::HeadMatMul { x: &bad, weight: &stack, head_dim: 9, keep: true },
            "x is [2, 7] where [T, 2·9] or [T, 9] for exps [8, 4, 2]",
        ),
        (
            Op::HeadMatMul { x: &cube, weight: &stack, head_dim: 8, keep: false },
            "x is [2, 3, 5] where [T, 2·8] or [T, 8] for exps [8, 4, 2]",
        ),
        (
            Op::HeadMatMul { x: &good, weight: &stack, head_dim: usize::MAX, keep: true },
            "x is [2, 8] where [T, 2·18446744073709551615] or",
        ),
        (
            Op::HeadMatMul { x: &good, weight: &stack, head_dim: 7, keep: false },
            "head_dim is 7 where at least 8 for exps [8, 4, 2]",
        ),
        (Op::HeadMatMul { x: &good, weight: &stack, head_dim: 0, keep: false }, "head_dim is 0 where at least 1"),
        (
            Op::HeadMatMul { x: &pair, weight: &stack, head_dim: 8, keep: false },
            "x is [2, 1] where a tensor of numbers",
        ),
        (Op::HeadMatMul { x: &good, weight: &empty, head_dim: 8, keep: false }, "empty is [8, 0] where a weight with"),
        (Op::MatMul { x: &bad, weight: &w }, "x is [2, 7] where [T, 8] for w [8, 4]"),
        (Op::MatMul { x: &none, weight: &w }, "x is [0, 8] where a tensor with values"),
        (Op::MatMul { x: &pair, weight: &w }, "x is [2, 1] where a tensor of numbers, not ids,"),
        (Op::MatMul { x: &good, weight: &stack }, "exps is [8, 4, 2] where one matrix [cols, rows]"),
        (Op::MatMul { x: &good, weight: &empty }, "empty is [8, 0] where a weight with values"),
        (Op::Rope { x: &bad, start: 0, head_dim: 4, rotation: Rotation::neox(1e4) }, "x is [2, 7] where [T, heads·4]"),
        (Op::Rope { x: &good, start: 0, head_dim: 0, rotation: Rotation::neox(1e4) }, "head_dim is 0 where at least 1"),
        (
            Op::Rope { x: &good, start: 0, head_dim: 1, rotation: Rotation::neox(1e4) },
            "head_dim is 1 where an even number",
        ),
        (
            Op::Rope { x: &good, start: usize::MAX, head_dim: 4, rotation: Rotation::neox(1e4) },
            "a position with room for 2 below",
        ),
        (
            Op::Rope { x: &good, start: 0, head_dim: 4, rotation: Rotation { dims: Some(6), ..Rotation::neox(1e4) } },
            "dims is 6 where an even number from 2 to 4",
        ),
        (
            Op::Rope { x: &good, start: 0, head_dim: 4, rotation: Rotation { dims: Some(0), ..Rotation::neox(1e4) } },
            "dims is 0 where an even number from 2 to 4",
        ),
        (
            Op::Rope {
                x: &good,
                start: 0,
                head_dim: 4,
                rotation: Rotation { dims: Some(2), first: 3, ..Rotation::neox(1e4) },
            },
            "the first dimension that turns is 3 where at most 2",
        ),
        (
            Op::Rope { x: &good, start: 0, head_dim: 4, rotation: Rotation { first: 1, ..Rotation::neox(1e4) } },
            "the first dimension that turns is 1 where at most 0",
        ),
        (
            Op::RouterWeights { probs: &good, ids: &pair, renormalise: true, softmax: true, scale: 2.0 },
            "scale is 2.0 where 1, as a softmax over the chosen has it,",
        ),
        (Op::Store { cache: &cache, x: &bad, start: 0 }, "x is [2, 7] where [T ≤ 4, ≥ 8] at 0 of 4"),
        (Op::Store { cache: &cache, x: &good, start: 3 }, "x is [2, 8] where [T ≤ 1, ≥ 8] at 3 of 4"),
        (Op::Store { cache: &cache, x: &good, start: usize::MAX }, "where [T ≤ 0, ≥ 8]"),
        (
            Op::AttnScores { q: &good, k: &cache, start: 3, head_dim: 4, scale: None, window: None },
            "k is [4, 8] where [S ≥ 5, kv_heads·4]",
        ),
        (
            Op::AttnScores { q: &good, k: &few, start: 0, head_dim: 4, scale: None, window: None },
            "k is [2, 1] where [S ≥ 2, kv_heads·4]",
        ),
        (
            Op::AttnScores { q: &bad, k: &cache, start: 0, head_dim: 4, scale: None, window: None },
            "q is [2, 7] where [T, heads·4]",
        ),
        (
            Op::AttnProbs { scores: &good, start: 0, window: None, sinks: None },
            "scores is [2, 8] where [heads, T, 0 + T]",
        ),
        (
            Op::AttnProbs { scores: &cube, start: 9, window: None, sinks: None },
            "scores is [2, 3, 5] where [heads, T, 9 + T]",
        ),
        (
            Op::AttnProbs { scores: &cube, start: 2, window: None, sinks: Some(&norm) },
            "norm is F32 [4, 1] where an F32 vector [2, 1], one for each head,",
        ),
        (
            Op::AttnContext { probs: &cube, v: &cache, start: 2, head_dim: 4, window: None },
            "v is [4, 8] where [S ≥ 5, kv_heads·4]",
        ),
        (
            Op::AttnContext { probs: &cube, v: &cache, start: 2, head_dim: 0, window: None },
            "head_dim is 0 where at least 1",
        ),
        (Op::Add { a: &good, b: &bad }, "b is [2, 7] where [2, 8], as a is,"),
        (
            Op::SwiGlu { gate: &cube, up: &good, activation: GateActivation::Silu },
            "up is [2, 8] where [2, 3, 5], as gate is,",
        ),
        (Op::RouterProbs { logits: &cube, sigmoid: false }, "logits is [2, 3, 5] where [T, E]"),
        (Op::RouterTopK { probs: &good, k: 9, groups: None }, "k is 9 where 1 to 8, as many as there are experts,"),
        (Op::RouterTopK { probs: &good, k: 0, groups: None }, "k is 0 where 1 to 8"),
        (choice(1, 3, 1), "groups is 3 where a number of groups of two or more of 8 experts"),
        (choice(1, 8, 1), "groups is 8 where a number of groups of two or more of 8 experts"),
        (choice(1, 0, 1), "groups is 0 where a number of groups"),
        (choice(1, 4, 0), "groups used is 0 where 1 to 4 groups, with 1 experts or more,"),
        (choice(1, 4, 5), "groups used is 5 where 1 to 4 groups"),
        (choice(3, 4, 1), "groups used is 1 where 1 to 4 groups, with 3 experts or more,"),
        (
            Op::RouterWeights { probs: &good, ids: &few, renormalise: true, softmax: false, scale: 1.0 },
            "ids is [2, 1] where a tensor of ids",
        ),
        (
            Op::RouterWeights { probs: &cache, ids: &pair, renormalise: true, softmax: false, scale: 1.0 },
            "ids is [2, 1] where [4, K]",
        ),
        (Op::ExpertMatMul { x: &bad, ids: &pair, weight: &stack }, "x is [2, 7] where [2, 8] or [2, 1, 8] for exps"),
        (Op::ExpertMatMul { x: &good, ids: &few, weight: &stack }, "ids is [2, 1] where a tensor of ids, not numbers,"),
        (Op::ExpertMatMul { x: &three, ids: &pair, weight: &stack }, "x is [3, 1, 8] where [2, 8] or [2, 1, 8]"),
        (Op::ExpertBias { x: &good, ids: &pair, weight: &matrix }, "x is [2, 8] where [T, K, 4] for matrix [4, 2]"),
        (Op::ExpertBias { x: &three, ids: &pair, weight: &w }, "ids is [2, 1] where [3, 1]"),
        (
            Op::ExpertBias { x: &three, ids: &long, weight: &stack },
            "exps is F32 [8, 4, 2] where an F32 matrix [N, experts]",
        ),
        (Op::Conv { x: &bad, cache: &cache, weight: &kernel, start: 0 }, "x is [2, 7] where [T, 8] for kernel [4, 8]"),
        (Op::Conv { x: &good, cache: &cache, weight: &kernel, start: 3 }, "cache is [4, 8] where [S ≥ 5, 8]"),
        (Op::Conv { x: &good, cache: &few, weight: &kernel, start: 0 }, "cache is [2, 1] where [S ≥ 2, 8]"),
        (
            Op::Conv { x: &good, cache: &cache, weight: &stack, start: 0 },
            "exps is F32 [8, 4, 2] where an F32 matrix [L, C]",
        ),
        (Op::Conv { x: &good, cache: &cache, weight: &kernel, start: usize::MAX }, "a position with room for 2 below"),
        (
            Op::L2Norm { x: &good, first: 1, heads: 2, head_dim: 4, eps: 0.0 },
            "x is [2, 8] where [T, ≥ 1 + 2·4], of at least one head,",
        ),
        (
            Op::L2Norm { x: &good, first: 0, heads: 0, head_dim: 4, eps: 0.0 },
            "x is [2, 8] where [T, ≥ 0 + 0·4], of at least one head,",
        ),
        (Op::L2Norm { x: &good, first: usize::MAX, heads: 2, head_dim: 4, eps: 0.0 }, "x is [2, 8] where [T, ≥ "),
        (Op::L2Norm { x: &good, first: 0, heads: 2, head_dim: 0, eps: 0.0 }, "head_dim is 0 where at least 1"),
        (Op::Decay { x: &bad, weight: &rates }, "x is [2, 7] where [T, 8] for rates"),
        (Op::Decay { x: &good, weight: &w }, "w is F32 [8, 4] where an F32 vector [N, 1]"),
        (delta(&bad, &keys, &keys, &heads, &heads, 4), "q is [2, 7] where [T, heads·4]"),
        (delta(&good, &good, &keys, &heads, &heads, 4), "k is [2, 8] where [S ≥ 3, 8], as wide as q,"),
        (
            delta(&good, &keys, &keys, &odd, &heads, 4),
            "decay is [3, 3] where [S ≥ 3, value heads], a multiple of the 2 key heads,",
        ),
        (delta(&good, &keys, &keys, &heads, &odd, 4), "beta is [3, 3] where [S ≥ 3, 4], as decay is,"),
        (delta(&good, &keys, &keys, &heads, &heads, 4), "v is [3, 8] where [S ≥ 3, ≥ 4·4]"),
        (delta(&good, &keys, &keys, &heads, &heads, 0), "head_dim is 0 where at least 1"),
        (Op::Combine { down: &good, weights: &few }, "down is [2, 8] where [T, K, H]"),
        (Op::Combine { down: &three, weights: &few }, "weights is [2, 1] where [3, 1]"),
        (Op::Rows { x: &good, start: 1, rows: 2 }, "x is [2, 8] where [T ≥ 1 + 2, n]"),
        (Op::Rows { x: &good, start: 0, rows: 0 }, "rows is 0 where at least 1"),
        (Op::Rows { x: &long, start: 0, rows: 1 }, "x is [3, 1] where a tensor of numbers, not ids,"),
    ];
    let mut backends = backends();
    for (op, expected) in cases {
        let expected = format!("layer 3 · q_proj ({:?}): … {expected}", op.kind());
        for backend in &mut backends {
            let error = refusal(backend, &op);
            let parts = expected.split_once('…').unwrap();
            let said = error.to_string();
            let as_expected = said.starts_with(parts.0) && said.contains(parts.1.trim_start());
            assert!(as_expected && said.ends_with("was expected"), "{expected}\n{}: {said}", backend.info().backend);
            assert_eq!(error.exit_code(), 2, "{}: {said}", backend.info().backend);
        }
    }
}

/// Ids on a device are not looked at before they are used: there the values are NaN (`gpu::ops` holds that).
#[test]
fn an_expert_that_is_not_there_is_refused_where_ids_are_on_the_host() {
    let stack = Weight::from_vec("exps", GgmlType::F32, [8, 4, 2], vec![0; 256]).unwrap();
    let biases = Weight::from_vec("biases", GgmlType::F32, [8, 2, 1], vec![0; 64]).unwrap();
    let (three, x, probs, ids) = (x(&[2, 1, 8]), x(&[2, 8]), x(&[2, 2]), ids(&[2, 1], &[1, 2]));
    for mut backend in backends().into_iter().filter(|b| !b.info().backend.starts_with("gpu")) {
        let error = refusal(&mut backend, &Op::ExpertMatMul { x: &x, ids: &ids, weight: &stack });
        let expected = "ids[1, 0] is 2 where one of the 2 experts of exps was expected";
        assert_eq!(error.to_string(), format!("layer 3 · q_proj (ExpertMatMul): {expected}"));
        let error = refusal(&mut backend, &Op::ExpertBias { x: &three, ids: &ids, weight: &biases });
        let expected = "ids[1, 0] is 2 where one of the 2 experts of biases was expected";
        assert_eq!(error.to_string(), format!("layer 3 · q_proj (ExpertBias): {expected}"));
        let error = refusal(
            &mut backend,
            &Op::RouterWeights { probs: &probs, ids: &ids, renormalise: false, softmax: false, scale: 1.0 },
        );
        let expected = "ids[1, 0] is 2 where one of the 2 experts of probs was expected";
        assert_eq!(error.to_string(), format!("layer 3 · q_proj (RouterWeights): {expected}"));
    }
}

#[test]
fn a_cache_is_not_stored_into_itself() {
    for mut backend in backends() {
        let cache = backend.alloc(&[4, 8]).unwrap();
        let op = Op::Store { cache: cache.clone(), x: cache, start: 0 };
        let error = backend.run(at(), &op).err().unwrap_or_else(|| panic!("a cache was stored into itself"));
        assert_eq!(
            (error.to_string().as_str(), error.exit_code()),
            ("layer 3 · q_proj (Store): x is the cache itself", 2)
        );
    }
}

fn at() -> At {
    At::layer(3, Stage::QProj, 0)
}

fn backends() -> Vec<AnyBackend> {
    let mut all: Vec<AnyBackend> = vec![Box::new(Erased(OracleBackend::new())), Box::new(Erased(gpu()))];
    for level in Level::available() {
        all.push(Box::new(Erased(CpuBackend::new(Some(level), Some(1)).unwrap())));
    }
    all
}

fn refusal(backend: &mut AnyBackend, op: &Op<'_, &HostTensor>) -> twinscope::Error {
    let on_backend = op.try_map(|t| backend.upload(t)).unwrap();
    let result = backend.run(at(), &on_backend);
    result.err().unwrap_or_else(|| panic!("{}: {:?} ran", backend.info().backend, op.kind()))
}
