//! Tests of int8 activations: codes against Q8_K's definition, and products that depend neither on level, batch nor threads. That they are
//! within the contract's floor is held by the table of operations.

use super::simd::{bits, blocks, types};
use super::*;
use crate::backend::cpu::int8::Activations;
use crate::backend::cpu::kernels::Int8;

/// The backends of the levels that this processor has; those that it lacks are said.
fn int8_backends(threads: usize) -> Vec<CpuBackend> {
    let of = |level: &Level| match CpuBackend::int8(Some(*level), Some(threads)) {
        Ok(backend) => Some(backend),
        Err(e) => {
            eprintln!("not tested: {e}");
            None
        }
    };
    [Level::Avx2, Level::Avx512].iter().filter_map(of).collect()
}

/// Any type's products: they differ in spans.
fn products() -> Vec<Int8> {
    let of = |b: &CpuBackend| [GgmlType::Q4_K, GgmlType::Q6_K].map(|ty| b.kernels.int8(ty).expect("a type of blocks"));
    int8_backends(1).iter().flat_map(of).collect()
}

#[test]
fn activations_become_the_codes_of_q8_k() {
    let ragged = [32, 256, 288, 512, 544];
    for int8 in products() {
        for k in ragged {
            let mut x: Vec<f32> = values(k as u64, k).iter().map(|x| x * 3.0).collect();
            // The same size with both signs: the first decides. A tie of codes: to even. Zeros, and what is too small to have a scale.
            (x[3], x[7]) = (-5.0, 5.0);
            x[9] = 5.0 / 127.0 * 2.5;
            if k > 300 {
                x[256..].fill(if k == 512 { 0.0 } else { 1e-42 });
            }
            let mut found = Activations::default();
            int8.make_room(&mut found, 1, k);
            found.rows_mut().for_each(|mut row| int8.quantize(&x, &mut row));
            for (b, x) in x.chunks(256).enumerate() {
                // ggml's quantize_row_q8_K_ref.
                let largest = x.iter().fold(0.0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
                let times = -127.0 / largest;
                let code = |x: &f32| if times.is_finite() { (x * times).round_ties_even().min(127.0) as i8 } else { 0 };
                let codes: Vec<i8> = x.iter().map(code).collect();
                assert_eq!(found.codes[b * 256..][..x.len()], codes, "{k}, block {b}");
                assert_eq!(found.scales[b], if times.is_finite() { 1.0 / times } else { 0.0 }, "{k}, block {b}");
            }
            for (sum, codes) in found.sums.iter().zip(found.codes.chunks(k / found.sums.len())) {
                assert_eq!(*sum, codes.iter().map(|c| *c as f32).sum::<f32>());
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_seen_in_every_product() {
    for mut b in int8_backends(1) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for tokens in [1, 3] {
                let weight = Weight::from_vec("w", GgmlType::Q4_K, [512, 5, 1], blocks(GgmlType::Q4_K, 10, 1)).unwrap();
                let mut x = values(2, tokens * 512);
                x[300] = bad;
                let x = up(&mut b, &[tokens, 512], &x);
                let y = b.run(AT, &Op::MatMul { x, weight: &weight }).unwrap();
                let y = f32s(&mut b, &y);
                assert!(y[..5].iter().all(|y| y.is_nan()), "{bad}: {y:?}");
                assert!(y[5..].iter().all(|y| y.is_finite()), "{bad}: {y:?}");
                // And in no product of the same shape that comes next.
                let x = up(&mut b, &[tokens, 512], &values(2, tokens * 512));
                let y = b.run(AT, &Op::MatMul { x, weight: &weight }).unwrap();
                assert!(f32s(&mut b, &y).iter().all(|y| y.is_finite()), "after {bad}");
            }
        }
    }
}

#[test]
fn products_are_the_same_on_every_level_in_every_batch_and_on_any_number_of_threads() {
    if int8_backends(1).is_empty() {
        return;
    }
    for ty in types().filter(|ty| ty.block_len() > 1) {
        let lengths = if ty.block_len() == 32 { &[1, 7, 8, 9, 24][..] } else { &[1, 2, 5] };
        for (k, rows) in lengths.iter().flat_map(|n| [1, 15, 16, 33, 50].map(|rows| (n * ty.block_len(), rows))) {
            let weight =
                Weight::from_vec("w", ty, [k, rows, 1], blocks(ty, rows * k / ty.block_len(), k as u64)).unwrap();
            let x = values(3, 13 * k);
            let product = |mut b: CpuBackend, tokens: usize| {
                let x = up(&mut b, &[tokens, k], &x[..tokens * k]);
                let y = b.run(AT, &Op::MatMul { x, weight: &weight }).unwrap();
                bits(&f32s(&mut b, &y))
            };
            for tokens in [1, 2, 3, 6, 7, 13] {
                let all: Vec<_> = int8_backends(1).into_iter().map(|b| product(b, tokens)).collect();
                assert!(all.windows(2).all(|two| two[0] == two[1]), "{ty} {k} × {rows}: levels differ at {tokens}");
                for b in int8_backends(3) {
                    assert_eq!(product(b, tokens), all[0], "{ty} {k} × {rows}: threads");
                }
                if tokens > 1 {
                    let whole = product(int8_backends(1).remove(0), 13);
                    assert_eq!(all[0], whole[..tokens * rows], "{ty} {k} × {rows}: {tokens} of 13");
                }
            }
        }
    }
}
