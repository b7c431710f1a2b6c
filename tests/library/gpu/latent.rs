//! What latent attention asks of the GPU: products by heads, and models of both forms, in chunks, poisoned and with each set of matrix kernels.

use std::sync::Arc;

use super::common::*;
use crate::common::nmse;
use crate::families::open;
use twinscope::backend::gpu::{GpuBackend, GpuOptions};
use twinscope::backend::{Backend, KernelUse};
use twinscope::model::{LogitRows, Model, Session, forward};
use twinscope::op::{HostTensor, Op, OpKind, Weight};

/// Matrix `h` of a stack.
fn matrix(stack: &Weight, h: usize) -> Arc<Weight> {
    let bytes = stack.bytes().len() / stack.experts;
    let of_head = stack.bytes()[h * bytes..][..bytes].to_vec();
    Weight::from_vec("head", stack.ty, [stack.cols, stack.rows, 1], of_head).unwrap()
}

/// Whatever a head lies beside, and wherever it begins: its columns are those of a product of its own, bit for bit, and its others are copied.
#[test]
fn a_product_by_heads_is_one_of_each_head() {
    for (set, mut gpu) in each_set() {
        let mut r = Random::new(60);
        for ty in TYPES {
            let cols = |blocks: usize| blocks * ty.block_len().max(32);
            // Rows, columns, heads, columns of a head beyond those, positions, heads of x.
            let mut shapes = vec![
                (1, cols(1), 1, 0, 1, 1),
                (17, cols(2), 3, 4, 1, 3),
                (33, cols(1), 4, 64, 4, 1),
                (5, cols(1), 2, 3, 5, 2), // no head begins at a vec4
                (70, cols(2), 2, 8, 37, 2),
            ];
            if ty.block_len() == 1 {
                shapes.extend([(18, 33, 3, 15, 2, 3), (40, 100, 2, 0, 33, 1)]); // no whole pairs
            }
            for (rows, k, heads, beyond, positions, of_x) in shapes {
                let (weight, head_dim) = (r.weight(ty, [k, rows, heads]), k + beyond);
                let x = r.tensor(&[positions, of_x * head_dim]);
                let what = format!("{set}: {ty} [{positions}, {of_x}·{head_dim}] × [{heads}, {rows}, {k}]");
                for keep in [false, true] {
                    let got = run(&mut gpu, &Op::HeadMatMul { x: &x, weight: &weight, head_dim, keep });
                    let width = rows + if keep { beyond } else { 0 };
                    assert_eq!(got.shape, [positions, heads * width], "{what}");
                    for h in 0..heads {
                        let columns = |from: usize, n: usize| (from..from + n).collect::<Vec<_>>();
                        let of_head = h % of_x * head_dim;
                        let read = x.take(1, &columns(of_head, k));
                        let product = run(&mut gpu, &Op::MatMul { x: &read, weight: &matrix(&weight, h) });
                        assert_eq!(got.take(1, &columns(h * width, rows)), product, "{what}, head {h}");
                        let kept = columns(h * width + rows, width - rows);
                        let expected = x.take(1, &columns(of_head + k, width - rows));
                        assert_eq!(got.take(1, &kept), expected, "{what}, what head {h} keeps");
                    }
                }
            }
        }
    }
}

fn logits(gpu: &mut GpuBackend, model: &Model, tokens: &[u32], chunk: usize) -> Vec<HostTensor> {
    gpu.prepare(&model.weights.all(), &mut |_| ()).unwrap();
    let mut session = Session::new(gpu, &model.config, tokens.len()).unwrap();
    let mut all = Vec::new();
    for part in tokens.chunks(chunk) {
        let logits = forward(gpu, model, &mut session, part, LogitRows::All).unwrap();
        all.push(gpu.read(&logits).unwrap());
    }
    all
}

/// Few positions have other kernels than many, which add in another order: the same within what f32 rounds.
#[test]
fn chunks_and_decoding_are_one_call() {
    for family in ["deepseek3", "deepseek2"] {
        let (model, golden) = open(family);
        for (set, mut gpu) in each_set() {
            let rows = |logits: Vec<HostTensor>| logits.iter().flat_map(HostTensor::to_f64).collect::<Vec<_>>();
            let expected = &golden.stages["logits"];
            for chunk in [golden.tokens.len(), 1, 3, 5] {
                let found = HostTensor::f64(&expected.shape, rows(logits(&mut gpu, &model, &golden.tokens, chunk)));
                let nmse = nmse(expected, &found);
                assert!(nmse <= 1e-11, "{family}, {set}, chunks of {chunk}: nmse {nmse:e}");
            }
        }
    }
}

/// Poisoned, and with weights in pieces or passing through, the same bits.
#[test]
fn every_kernel_writes_all_of_its_output() {
    for family in ["deepseek3", "deepseek2"] {
        let (model, golden) = open(family);
        for (set, mut plain) in each_set() {
            let lanes = Some(set == "lanes");
            for chunk in [1, 5] {
                let want = logits(&mut plain, &model, &golden.tokens, chunk);
                let options = [
                    GpuOptions { lanes, poison: true, ..Default::default() },
                    GpuOptions { lanes, weight_binding: Some(2048), ..Default::default() },
                ];
                for options in options {
                    let got = logits(&mut gpu_with(options), &model, &golden.tokens, chunk);
                    assert!(got == want, "{family}, {set}, chunks of {chunk}");
                }
            }
        }
    }
}

/// What is asked for before a run names every weight and the size of heads, and both kernels of a product by heads count.
#[test]
fn every_weight_of_latent_attention_is_needed() {
    for (family, products, sizes) in [
        ("deepseek3", ["attn_k_b.weight", "attn_v_b.weight"], [80, 64]),
        ("deepseek2", ["attn_kv_b.weight (keys)", "attn_kv_b.weight (values)"], [48, 32]),
    ] {
        let (model, golden) = open(family);
        let needs = model.needs();
        let all = model.weights.all();
        let missing: Vec<_> = all.iter().filter(|w| !needs.iter().any(|need| need.name == w.name)).collect();
        assert!(missing.is_empty(), "{family}: {missing:?}");
        for name in products.map(|name| format!("blk.1.{name}")) {
            assert!(needs.iter().any(|need| need.op == OpKind::HeadMatMul && need.name == name), "{name}: {needs:?}");
        }
        let size = |op| needs.iter().find(|need| need.op == op).map(|need| need.cols);
        assert_eq!([OpKind::AttnScores, OpKind::AttnContext].map(size), sizes.map(Some), "{family}");

        let mut gpu = gpu();
        let by_heads = |gpu: &GpuBackend| -> Vec<KernelUse> {
            gpu.kernels(&needs).into_iter().filter(|kernel| kernel.name.starts_with("head_mat")).collect()
        };
        logits(&mut gpu, &model, &golden.tokens, golden.tokens.len());
        let ran = |gpu: &GpuBackend| by_heads(gpu).iter().filter(|kernel| kernel.ran).count();
        let (one, kernels) = (ran(&gpu), by_heads(&gpu).len());
        assert!(kernels >= 2 && 2 * one == kernels, "{family}: {:?}", by_heads(&gpu));
        logits(&mut gpu, &model, &golden.tokens, 1);
        assert_eq!(ran(&gpu), kernels, "{family}: {:?}", by_heads(&gpu));
    }
}
