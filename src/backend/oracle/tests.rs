use super::*;
use crate::op::{GgmlType, Rotation, Stage};

fn f64s(shape: &[usize], v: &[f64]) -> HostTensor {
    HostTensor::f64(shape, v.to_vec())
}

fn f32_weight(dims: [usize; 3], v: &[f32]) -> Arc<Weight> {
    let bytes = v.iter().flat_map(|x| x.to_le_bytes()).collect();
    Weight::from_vec("w", GgmlType::F32, dims, bytes).unwrap()
}

fn numbers(t: HostTensor) -> Vec<f64> {
    match t.data {
        Data::F64(v) => v,
        _ => panic!("{} result", t.dtype()),
    }
}

#[test]
fn matmul_and_experts_by_hand() {
    let w = f32_weight([2, 3, 2], &[1., 2., 3., 4., 5., 6., -1., 0., 0., -1., 1., 1.]);
    let plain = f32_weight([2, 3, 1], &[1., 2., 3., 4., 5., 6.]);
    let x = f64s(&[2, 2], &[1., 10., 2., 20.]);
    let y = evaluate(&Op::MatMul { x: &x, weight: &plain }).unwrap();
    assert_eq!((y.shape.clone(), numbers(y)), (vec![2, 3], vec![21., 43., 65., 42., 86., 130.]));

    let ids = HostTensor::u32(&[2, 1], vec![1, 0]);
    let y = evaluate(&Op::ExpertMatMul { x: &x, ids: &ids, weight: &w }).unwrap();
    assert_eq!((y.shape.clone(), numbers(y)), (vec![2, 1, 3], vec![-1., -10., 11., 42., 86., 130.]));
    let both = HostTensor::u32(&[1, 2], vec![1, 0]);
    let per_slot = f64s(&[1, 2, 2], &[1., 10., 2., 20.]);
    let y = evaluate(&Op::ExpertMatMul { x: &per_slot, ids: &both, weight: &w }).unwrap();
    assert_eq!(numbers(y), [-1., -10., 11., 42., 86., 130.]);

    let none = HostTensor::u32(&[1, 1], vec![2]);
    let e = evaluate(&Op::ExpertMatMul { x: &f64s(&[1, 2], &[0., 0.]), ids: &none, weight: &w }).unwrap_err();
    assert_eq!(e.to_string(), "ExpertMatMul: ids[0, 0] is 2 where one of the 2 experts of w was expected");
}

#[test]
fn attention_masks_and_groups_heads() {
    // Two query heads of one dimension share one KV head; position 1 is the first of this call.
    let q = f64s(&[1, 2], &[1., 2.]);
    let k = f64s(&[3, 1], &[3., 5., 1e9]);
    let scores = evaluate(&Op::AttnScores { q: &q, k: &k, start: 1, head_dim: 1, scale: None, window: None }).unwrap();
    assert_eq!((scores.shape.clone(), numbers(scores)), (vec![2, 1, 2], vec![3., 5., 6., 10.]));
    let two = f64s(&[1, 2, 2], &[0., 7., 1., 1.]);
    let probs = evaluate(&Op::AttnProbs { scores: &two, start: 0, window: None, sinks: None }).unwrap();
    assert_eq!(numbers(probs.clone()), [1., 0., 0.5, 0.5]);
    let v = f64s(&[2, 1], &[2., 4.]);
    let context = evaluate(&Op::AttnContext { probs: &probs, v: &v, start: 0, head_dim: 1, window: None }).unwrap();
    assert_eq!(numbers(context), [2., 3.]);
}

#[test]
fn rope_turns_pairs_half_a_head_apart() {
    let x = f64s(&[1, 4], &[1., 0., 0., 1.]);
    let y = numbers(evaluate(&Op::Rope { x: &x, start: 3, head_dim: 4, rotation: Rotation::neox(100.0) }).unwrap());
    // Frequencies 1 and 100^(−1/2) = 0.1: angles 3 and 0.3.
    let want = [3f64.cos(), -(0.3f64.sin()), 3f64.sin(), 0.3f64.cos()];
    assert!(y.iter().zip(want).all(|(y, w)| (y - w).abs() < 1e-15), "{y:?}");
}

#[test]
fn ties_go_to_the_lower_expert_and_nan_is_first() {
    let p = f64s(&[3, 3], &[0.2, 0.4, 0.4, f64::NAN, 0.1, 0.0, -0.0, 0.0, -1.0]);
    let ids = evaluate(&Op::RouterTopK { probs: &p, k: 2, groups: None }).unwrap();
    assert_eq!(ids.ids(), [1, 2, 0, 1, 0, 1]);
}

#[test]
fn router_weights_and_combination() {
    let p = f64s(&[1, 3], &[0.1, 0.6, 0.3]);
    let ids = HostTensor::u32(&[1, 2], vec![1, 2]);
    let w =
        evaluate(&Op::RouterWeights { probs: &p, ids: &ids, renormalise: true, softmax: false, scale: 1.0 }).unwrap();
    let sum: f64 = numbers(w.clone()).iter().sum();
    assert!((sum - 1.0).abs() < 1e-15);
    let plain =
        evaluate(&Op::RouterWeights { probs: &p, ids: &ids, renormalise: false, softmax: false, scale: 1.0 }).unwrap();
    assert_eq!(numbers(plain), [0.6, 0.3]);
    let down = f64s(&[1, 2, 2], &[1., 2., 10., 20.]);
    let weights = f64s(&[1, 2], &[0.5, 0.25]);
    assert_eq!(numbers(evaluate(&Op::Combine { down: &down, weights: &weights }).unwrap()), [3., 6.]);
}

#[test]
fn a_cache_is_written_in_place_and_clones_see_it() {
    let mut oracle = OracleBackend::new();
    let at = |start| At::layer(0, Stage::KRope, start);
    let cache = oracle.alloc(&[3, 2]).unwrap();
    let handle = cache.clone();
    let x = oracle.upload(&HostTensor::f32(&[1, 2], vec![1.0, 2.0])).unwrap();
    oracle.run(at(1), &Op::Store { cache: cache.clone(), x: x.clone(), start: 1 }).unwrap();
    assert_eq!(oracle.read(&handle).unwrap(), f64s(&[3, 2], &[0., 0., 1., 2., 0., 0.]));
    let e = oracle.run(at(3), &Op::Store { cache, x, start: 3 }).err().unwrap();
    assert_eq!(e.exit_code(), 2);
    assert!(e.to_string().starts_with("layer 0 · k_rope (Store): "), "{e}");
}

#[test]
fn says_which_weight_it_cannot_read() {
    let need = |ty| Need { op: OpKind::MatMul, ty, cols: 256, name: "blk.0.attn_q.weight".into(), experts: None };
    let lines = OracleBackend::new().unsupported(&[need(GgmlType::Q4_K), need(GgmlType::Q8_K)]);
    assert_eq!(lines, ["blk.0.attn_q.weight: the oracle does not read weights of type Q8_K"]);
}
