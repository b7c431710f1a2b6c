//! Weights in pieces, and weights that pass through a budget, give the bits of those that lie in memory as a whole.

use super::common::*;
use super::ops::expert_case;
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions, WeightLayout};
use twinscope::backend::{Backend, Need};
use twinscope::model::{LogitRows, Model, Session, forward};
use twinscope::op::{GgmlType, HostTensor, Op, OpKind};

#[test]
fn a_weight_in_pieces_gives_the_same_bits() {
    let mut whole = gpu();
    let mut r = Random::new(4);
    for ty in [GgmlType::F32, GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::MXFP4, GgmlType::IQ2_S] {
        let matrix = r.weight(ty, [256, 100, 1]);
        let stack = r.weight(ty, [256, 45, 6]); // of experts, and of heads
        // One row a binding; a few; a cut inside an expert; nearly all.
        let layout = WeightLayout::of(ty).unwrap();
        let plan = |limit| layout.plan(256, 100, limit);
        let table = layout.table_bytes() as u64; // of a grid, behind the rows of each piece
        let row = (plan(u64::MAX).unwrap().0 - table) / 100;
        for rows in [1, 7, 64, 99] {
            let mut cut = gpu_with(GpuOptions { weight_binding: Some(row * rows + table), ..Default::default() });
            let pieces = 100u64.div_ceil(rows);
            assert_eq!(plan(cut.weight_binding()), Some((100 * row + pieces * table, pieces)));
            for positions in [1, 33] {
                let x = r.tensor(&[positions, 256]);
                let [heads, one] = [6 * 260, 260].map(|cols| r.tensor(&[positions, cols]));
                let ids = r.ids(positions, 3, 6);
                let tokens: Vec<u32> = (0..positions).map(|_| r.below(100) as u32).collect();
                for op in [
                    Op::MatMul { x: &x, weight: &matrix },
                    Op::ExpertMatMul { x: &x, ids: &ids, weight: &stack },
                    Op::HeadMatMul { x: &heads, weight: &stack, head_dim: 260, keep: true },
                    Op::HeadMatMul { x: &one, weight: &stack, head_dim: 260, keep: false },
                    Op::Embed { table: &matrix, tokens: &tokens, scale: 1.0 },
                ] {
                    let what = format!("{ty}, {rows} rows a piece, {positions} positions, {:?}", op.kind());
                    assert_eq!(run(&mut cut, &op), run(&mut whole, &op), "{what}");
                }
                if ty == GgmlType::F32 {
                    let (y, ids) = (r.tensor(&[positions, 3, 256]), r.ids(positions, 3, 100));
                    let op = Op::ExpertBias { x: &y, ids: &ids, weight: &matrix };
                    assert_eq!(run(&mut cut, &op), run(&mut whole, &op), "{rows} rows a piece, {positions} positions");
                }
            }
        }
    }
    let mut tiny = gpu_with(GpuOptions { weight_binding: Some(64), ..Default::default() });
    let weight = r.weight(GgmlType::Q4_K, [256, 2, 1]);
    let need = Need { op: OpKind::MatMul, ty: weight.ty, cols: weight.cols, name: weight.name.clone(), experts: None };
    let lines = tiny.unsupported(&[need]);
    let error = tiny.prepare(&[weight], &mut |_| ()).unwrap_err().to_string();
    assert_eq!(lines, std::slice::from_ref(&error), "it is said before the run as well as in it");
    assert!(error.contains("random.Q4_K") && error.contains("144") && error.contains("64"), "{error}");
}

/// Bits, of which NaN has equal ones too.
fn bits(t: &HostTensor) -> Vec<u32> {
    t.to_f32().into_iter().map(f32::to_bits).collect()
}

#[test]
fn streamed_weights_give_the_same_bits() {
    for (set, mut whole) in each_set() {
        let mut r = Random::new(40);
        for ty in [GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::F32] {
            let matrix = r.weight(ty, [256, 3000, 1]);
            let stack = r.weight(ty, [256, 400, 16]);
            let budget = 1 << 20;
            let options = GpuOptions { weight_memory: Some(budget), lanes: Some(set == "lanes"), ..Default::default() };
            let mut streamed = gpu_with(options);
            // None of them is prepared: each passes through.
            for positions in [1, 3, 40] {
                let x = r.tensor(&[positions, 256]);
                let heads = r.tensor(&[positions, 16 * 258]);
                let mut ids = r.ids(positions, 3, 16);
                let tokens: Vec<u32> = (0..positions).map(|_| r.below(3000) as u32).collect();
                for unknown in [false, true] {
                    if let (true, twinscope::op::Data::U32(ids)) = (unknown, &mut ids.data) {
                        ids[0] = 16;
                    }
                    for op in [
                        Op::MatMul { x: &x, weight: &matrix },
                        Op::ExpertMatMul { x: &x, ids: &ids, weight: &stack },
                        Op::HeadMatMul { x: &heads, weight: &stack, head_dim: 258, keep: true },
                        Op::Embed { table: &matrix, tokens: &tokens, scale: 1.0 },
                    ] {
                        let what = format!("{set}: {ty}, {positions} positions, {:?}", op.kind());
                        let [got, want] = [&mut streamed, &mut whole].map(|gpu| bits(&run(gpu, &op)));
                        assert_eq!(got, want, "{what}");
                    }
                }
            }
            let memory = streamed.weight_memory();
            assert!(memory.most <= budget, "{set}: {ty}: {memory:?}");
            assert!(memory.most > budget / 2, "{set}: {ty}: the budget is used: {memory:?}");
            let all = (matrix.bytes().len() + stack.bytes().len()) as u64;
            assert!(memory.uploaded > all, "{set}: {ty}: some went and came again: {memory:?}");
        }
    }
}

#[test]
fn only_experts_that_a_token_chose_are_uploaded() {
    for (set, _) in each_set() {
        let mut r = Random::new(41);
        let stack = r.weight(GgmlType::Q8_0, [256, 1024, 32]); // 8.5 MiB
        let options = GpuOptions { weight_memory: Some(3 << 20), lanes: Some(set == "lanes"), ..Default::default() };
        let mut gpu = gpu_with(options);
        gpu.prepare(std::slice::from_ref(&stack), &mut |_| ()).unwrap();
        let stay = gpu.weight_memory();
        let an_expert = 1024 * 272; // with scales in words of their own
        assert_eq!(stay.now, (3u64 << 18) * 3 / an_expert * an_expert, "{set}: as many as fit stay");
        for positions in [1, 9] {
            let x = r.tensor(&[positions, 256]);
            for (expert, uploads) in [(31, 1), (31, 0), (0, 0)] {
                let before = gpu.weight_memory().uploaded;
                let ids = HostTensor::u32(&[positions, 1], vec![expert; positions]);
                expert_case(&mut gpu, &x, &ids, &stack);
                let uploaded = gpu.weight_memory().uploaded - before;
                // From the second round on the last expert is still there.
                let most = if positions == 1 { uploads * an_expert } else { 0 };
                assert_eq!(uploaded, most, "{set}: expert {expert} of {positions} positions");
            }
        }
    }
}

#[test]
fn a_model_that_is_streamed_gives_the_same_bits() {
    let model = Model::open(None).unwrap();
    let weights = model.weights.all();
    for (set, mut whole) in each_set() {
        let with = |budget| {
            gpu_with(GpuOptions { weight_memory: Some(budget), lanes: Some(set == "lanes"), ..Default::default() })
        };
        let logits = |gpu: &mut GpuBackend| {
            gpu.prepare(&weights, &mut |_| ()).unwrap();
            let mut session = Session::new(gpu, &model.config, 16).unwrap();
            [&[414u32, 2, 3, 4, 5, 6][..], &[7], &[9, 10]].map(|tokens| {
                let logits = forward(gpu, &model, &mut session, tokens, LogitRows::All).unwrap();
                bits(&gpu.read(&logits).unwrap())
            })
        };
        let want = logits(&mut whole);
        let all = whole.weight_memory();
        assert_eq!((all.budget, all.now), (None, all.uploaded), "without a budget each is uploaded once: {all:?}");
        for budget in [1 << 20, 3 << 20] {
            let mut gpu = with(budget);
            assert!(logits(&mut gpu) == want, "{set}: {budget} bytes");
            let memory = gpu.weight_memory();
            assert!(memory.most <= budget && memory.uploaded > all.uploaded / 2, "{set}: {memory:?}");
        }
        let refused = GpuBackend::new(
            &AdapterSelector::Best,
            GpuOptions { weight_memory: Some((1 << 20) - 1), ..Default::default() },
        );
        let Err(refused) = refused else { panic!("a budget below the least") };
        assert!(refused.to_string().contains("1048576") && refused.to_string().contains("1048575"), "{refused}");
        let mut gpu = with(all.now);
        assert!(logits(&mut gpu) == want, "{set}: all fit");
        assert_eq!(gpu.weight_memory().uploaded, all.uploaded, "{set}: what fits stays");
    }
}
