//! Tests of the SIMD levels: unpacking against the definition to the bit, sums against f64 within the bound that their order
//! gives, and everything against the same lanes in plain Rust to the bit.

use safetensors::SafeTensors;

use super::*;
use crate::backend::cpu::kernels::PLAIN;
use crate::backend::oracle::dequant;
use crate::quant::{dequantizable, dequantize};

/// The kernels of the SIMD levels that this processor has.
fn levels() -> Vec<&'static Kernels> {
    backends(1).iter().skip(1).map(|b| b.kernels).collect()
}

pub(super) fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| dequantizable(*ty))
}

/// Random blocks of `ty` whose values are neither tiny nor huge, so that no product leaves the range of normal numbers.
pub(super) fn blocks(ty: GgmlType, n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let mut values = vec![0.0; ty.block_len()];
    (0..n)
        .flat_map(|_| {
            loop {
                let block: Vec<u8> = (0..ty.block_bytes()).map(|_| byte()).collect();
                dequantize(ty, &block, &mut values).unwrap();
                let max = values.iter().fold(0.0f32, |m, v| if v.is_finite() { m.max(v.abs()) } else { f32::INFINITY });
                if (1e-6..1e6).contains(&max) {
                    break block;
                }
            }
        })
        .collect()
}

/// The bits, with every NaN alike.
pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { f32::NAN } else { *v }.to_bits()).collect()
}

#[test]
fn unpacking_is_the_definition_to_the_bit() {
    let file = std::fs::read("tests/golden/dequant.safetensors").unwrap();
    let golden = SafeTensors::deserialize(&file).unwrap();
    for kernels in levels().into_iter().chain([&PLAIN]) {
        for ty in types() {
            // Subnormal, zero, negative and large scales; then random bytes, infinite and NaN scales among them.
            let edge = golden.tensor(&format!("{ty}.blocks")).map_or(Vec::new(), |t| t.data().to_vec());
            let any: Vec<u8> = values(7, 16 * 40 * ty.block_bytes()).iter().map(|v| (v.to_bits() >> 8) as u8).collect();
            for bytes in [edge, any] {
                // The unblocked types go 16 at a time.
                let whole = bytes.len() / ty.block_bytes() / 16 * 16 * ty.block_bytes();
                for len in [bytes.len(), whole] {
                    let n = len / ty.block_bytes() * ty.block_len();
                    let (mut expected, mut found) = (vec![0.0; n], vec![0.0; n]);
                    dequantize(ty, &bytes[..len], &mut expected).unwrap();
                    kernels.unpacker(ty, n).unwrap().run(&bytes[..len], &mut found);
                    assert_eq!(bits(&expected), bits(&found), "{} {ty}", kernels.level);
                }
            }
        }
    }
}

/// Every result of a matmul against Σ x·w in f64 over the dequantized weights. A level may sum products and offsets of a weight apart,
/// so both count.
fn check(kernels: &Kernels, weight: &Weight, x: &[f32], out: &[f32], what: &str) {
    let (k, rows, ty) = (weight.cols, weight.rows, weight.ty);
    let bound = gamma(1 + kernels.contract(OpKind::MatMul).order.depth(k));
    for (i, y) in out.iter().enumerate() {
        let x = &x[i / rows * k..][..k];
        let (mut exact, mut size) = (0.0, 0.0);
        dequant::each(ty, weight.row(0, i % rows), |j, term| {
            exact += x[j] as f64 * ((term.product - term.offset) as f32) as f64;
            size += (x[j] as f64).abs() * (term.product.abs() + term.offset.abs());
        })
        .unwrap();
        let error = (*y as f64 - exact).abs();
        assert!(error <= bound * size, "{} {ty} {what} at {i}: {y} {exact}: {}", kernels.level, error / size / bound);
    }
}

/// Whether one token takes its sums in another order than a few.
fn alone_is_another_order(kernels: &Kernels, ty: GgmlType, k: usize) -> bool {
    kernels.direct(ty, k).is_some_and(|direct| direct.prepares())
}

#[test]
fn products_are_within_the_bound_for_every_type_and_shape_and_the_same_in_every_batch_of_few_and_of_many() {
    for kernels in levels() {
        for ty in types() {
            let unblocked = [16, 48, 256, 17, 1, 77];
            let shapes = if ty.block_len() == 1 { &unblocked[..] } else { &[1, 3, 4, 5] };
            for &blocks_in_row in shapes {
                let k = blocks_in_row * ty.block_len();
                for rows in [1, 3, 4, 21] {
                    let bytes = blocks(ty, rows * blocks_in_row, (k * rows) as u64);
                    let weight = Weight::from_vec("w", ty, [k, rows, 1], bytes).unwrap();
                    // Few go to the lanes of a sum, of many each is a lane: two orders, but no third one.
                    let mut first: [Option<Vec<f32>>; 2] = [None, None];
                    for tokens in [1, 2, 6, 7, 9, 10, 13, 16, 50] {
                        let x = values(9, tokens * k);
                        let mut b = CpuBackend::new(Some(kernels.level), Some(2)).unwrap();
                        let x_t = up(&mut b, &[tokens, k], &x);
                        let y = b.run(AT, &Op::MatMul { x: x_t, weight: &weight }).unwrap();
                        let y = f32s(&mut b, &y);
                        check(kernels, &weight, &x, &y, &format!("{tokens} × {k} × {rows}"));
                        if tokens > 1 || !alone_is_another_order(kernels, ty, k) {
                            let first = first[(tokens > 9) as usize].get_or_insert_with(|| y.clone());
                            assert_eq!(bits(&first[..rows]), bits(&y[..rows]), "{} {ty}: of {tokens}", kernels.level);
                        }
                    }
                }
            }
        }
    }
}

/// Rows of more columns than the other tests have, and of parts in no round number.
#[test]
fn products_of_long_rows_are_within_the_bound() {
    for kernels in levels() {
        for ty in types() {
            let (k, rows) = (11 * 256, 2);
            let k = if ty.block_len() == 1 { k + 13 } else { k };
            let bytes = blocks(ty, rows * k / ty.block_len(), 21);
            let weight = Weight::from_vec("w", ty, [k, rows, 1], bytes).unwrap();
            for tokens in [1, 3, 11] {
                let x = values(22, tokens * k);
                let mut b = CpuBackend::new(Some(kernels.level), Some(1)).unwrap();
                let x_t = up(&mut b, &[tokens, k], &x);
                let y = b.run(AT, &Op::MatMul { x: x_t, weight: &weight }).unwrap();
                check(kernels, &weight, &x, &f32s(&mut b, &y), &format!("{tokens} × {k}"));
            }
        }
    }
}

/// A token that is alone in the last of several batches is not one token alone: how many there are in a batch is the cache's affair.
#[test]
fn a_token_has_the_same_bits_whatever_is_left_of_its_batch() {
    let k = (1..).map(|n| n << 10).find(|k| batch_rows(*k) == 32).unwrap();
    for kernels in levels() {
        for ty in [GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0, GgmlType::IQ4_NL] {
            let weight = Weight::from_vec("w", ty, [k, 3, 1], blocks(ty, 3 * k / ty.block_len(), 23)).unwrap();
            let x = values(24, 33 * k);
            let of = |tokens: usize| {
                let mut b = CpuBackend::new(Some(kernels.level), Some(1)).unwrap();
                let x = up(&mut b, &[tokens, k], &x[(33 - tokens) * k..]);
                let y = b.run(AT, &Op::MatMul { x, weight: &weight }).unwrap();
                f32s(&mut b, &y)[(tokens - 1) * 3..].to_vec()
            };
            assert_eq!(of(33), of(2), "{ty:?} on {:?}", kernels.level);
        }
    }
}

#[test]
fn experts_of_one_token_multiply_the_row_that_is_theirs() {
    const EXPERTS: usize = 4;
    let ids = [2u32, 0, 3];
    for kernels in levels() {
        for ty in types() {
            let (k, rows) = (ty.block_len().max(16) * 2, 5);
            let bytes = blocks(ty, EXPERTS * rows * k / ty.block_len(), 11);
            let weight = Weight::from_vec("w", ty, [k, rows, EXPERTS], bytes).unwrap();
            let mut b = CpuBackend::new(Some(kernels.level), Some(2)).unwrap();
            for shared in [true, false] {
                let x = values(12, if shared { k } else { ids.len() * k });
                let shape = if shared { vec![1, k] } else { vec![1, ids.len(), k] };
                let ids_t = b.upload(&HostTensor::u32(&[1, ids.len()], ids.to_vec())).unwrap();
                let x_t = up(&mut b, &shape, &x);
                let y = b.run(AT, &Op::ExpertMatMul { x: x_t, ids: ids_t, weight: &weight }).unwrap();
                let y = f32s(&mut b, &y);
                for (slot, expert) in ids.iter().enumerate() {
                    let own = weight.expert(*expert as usize).to_vec();
                    let own = Weight::from_vec("e", ty, [k, rows, 1], own).unwrap();
                    let x_t = up(&mut b, &[1, k], &x[if shared { 0 } else { slot * k }..][..k]);
                    let alone = b.run(AT, &Op::MatMul { x: x_t, weight: &own }).unwrap();
                    let alone = f32s(&mut b, &alone);
                    assert_eq!(bits(&alone), bits(&y[slot * rows..][..rows]), "{} {ty} {shared} {slot}", kernels.level);
                }
            }
        }
    }
}

#[test]
fn a_power_of_two_times_x_is_that_times_the_product() {
    for kernels in levels() {
        for ty in types() {
            let k = ty.block_len().max(16) * 5;
            let Some(direct) = kernels.direct(ty, k) else { continue };
            let w = blocks(ty, k / ty.block_len() * 3, 5);
            let x = values(6, k);
            let product = |power: f32| {
                let x: Vec<f32> = x.iter().map(|x| x * power).collect();
                let mut out = [0.0; 3];
                direct.run(&w, w.len() / 3, &direct.prepare(&x), &mut out);
                out
            };
            let one = product(1.0);
            for power in [80, 60, -60, -80].map(|n| 2f32.powi(n)) {
                assert_eq!(bits(&one.map(|y| y * power)), bits(&product(power)), "{} {ty} {power}", kernels.level);
            }
        }
    }
}

#[test]
fn every_level_gives_the_bits_of_the_same_lanes_in_plain_rust() {
    for kernels in levels() {
        let level = kernels.level;
        for n in [1, 7, 16, 33, 64, 100, 259] {
            let (x, w) = (values(1, n).iter().map(|x| x * 30.0).collect::<Vec<_>>(), values(2, n * 5));
            let same = |len: usize, f: &dyn Fn(&Kernels, &mut [f32])| {
                let (mut expected, mut found) = (vec![0.0; len], vec![0.0; len]);
                f(&PLAIN, &mut expected);
                f(kernels, &mut found);
                assert_eq!(bits(&expected), bits(&found), "{level} {n}");
            };
            same(5, &|k, out| k.panel(&w, n, 5, &[&x], out));
            same(35, &|k, out| k.panel(&w, n, 5, &[&x[..]; 7], out));
            same(n, &|k, out| k.rms_norm(&x, &w[..n], 1e-6, out));
            same(n, &|k, out| k.softmax(&x, out));
            same(n, &|k, out| k.swiglu(&x, &w[..n], out));
            same(n, &|k, out| k.attn_context(&[&x[..1]], &w, n, out));
            // One head, two, four, and some of each.
            for heads in [1, 2, 3, 4, 5, 7, 8] {
                let probs: Vec<&[f32]> = (0..heads).map(|h| &w[h % n..][..5.min(n)]).collect();
                same(heads * n, &|k, out| k.attn_context(&probs, &w, n, out));
            }
        }
        for ty in types() {
            let (k, rows) = (ty.block_len().max(16) * 3, 29);
            let w = blocks(ty, k / ty.block_len() * rows, 3);
            let x = values(4, 53 * k);
            let weight = Weight::from_vec("w", ty, [k, rows, 1], w).unwrap();
            let plain = |tokens: usize| {
                let (all, mut out) = (|| (0..tokens).collect(), vec![0.0; tokens * rows]);
                let job = matmul::Job { expert: 0, x: all(), out: all() };
                matmul::run(&PLAIN, &Pool::new(level, Some(1)).unwrap(), &weight, &x[..tokens * k], &[job], &mut out)
                    .unwrap();
                out
            };
            if let Some(direct) = PLAIN.direct(ty, k) {
                let mut found = vec![0.0; rows];
                direct.run(weight.expert(0), weight.row_bytes(), &direct.prepare(&x[..k]), &mut found);
                assert_eq!(bits(&plain(2)[..rows]), bits(&found), "plain {ty}");
            }
            let mut b = CpuBackend::new(Some(level), Some(1)).unwrap();
            // One token by itself, where that is the same order, a few, and as many as are lanes.
            for tokens in [1, 2, 7, 16, 53].into_iter().filter(|n| *n > 1 || !alone_is_another_order(kernels, ty, k)) {
                let x = up(&mut b, &[tokens, k], &x[..tokens * k]);
                let y = b.run(AT, &Op::MatMul { x, weight: &weight }).unwrap();
                assert_eq!(bits(&plain(tokens)), bits(&f32s(&mut b, &y)), "{level} {ty} {tokens}");
            }
        }
    }
}

#[test]
fn context_of_rows_that_see_more_or_less_is_that_of_each_alone() {
    for d in [16, 24, 40, 128] {
        let lengths = [100, 100, 100, 100, 99, 99, 99, 3, 33, 64, 1, 32, 300];
        let (v, weights) = (values(7, 300 * (d + 5)), values(8, 300));
        let probs: Vec<&[f32]> = lengths.iter().map(|n| &weights[300 - n..]).collect();
        let of = |kernels: &Kernels, probs: &[&[f32]]| {
            let mut out = vec![f32::NAN; probs.len() * d];
            kernels.attn_context(probs, &v, d + 5, &mut out);
            out
        };
        for b in backends(1) {
            let all = of(b.kernels, &probs);
            for (probs, found) in probs.iter().zip(all.chunks(d)) {
                assert_eq!(bits(&of(b.kernels, &[probs])), bits(found), "{} {d}: of {}", b.name(), probs.len());
                for (column, found) in found.iter().enumerate() {
                    let terms = || probs.iter().enumerate().map(|(s, p)| *p as f64 * v[s * (d + 5) + column] as f64);
                    let bound =
                        gamma(1 + depth(&b, OpKind::AttnContext, probs.len())) * terms().map(f64::abs).sum::<f64>();
                    assert!((*found as f64 - terms().sum::<f64>()).abs() <= bound, "{} {d} {column}", b.name());
                }
            }
            if b.level() != Level::Scalar {
                assert_eq!(bits(&of(&PLAIN, &probs)), bits(&all), "{} {d}", b.name());
            }
        }
    }
}

#[test]
fn softmax_keeps_its_bound_on_every_level_and_nan_in_sight() {
    for b in backends(1) {
        for n in [1, 2, 15, 16, 17, 100] {
            let x: Vec<f32> = values(n as u64, n).iter().map(|x| x * 60.0).collect();
            let mut out = vec![0.0; n];
            b.kernels.softmax(&x, &mut out);
            let max = scalar::max(&x) as f64;
            let total: f64 = x.iter().map(|x| (*x as f64 - max).exp()).sum();
            for (x, y) in x.iter().zip(&out) {
                let p = (*x as f64 - max).exp() / total;
                // The exponent's rounding, u·|x − max|, and exp's ULP (two u each), above and below the line; the sum; the
                // division. What is subnormal keeps half of f32's smallest step instead.
                let exp = 2.0 * U * b.contract(OpKind::AttnProbs).exp_base_ulp;
                let bound = 2.0 * (U * 120.0 + exp) + gamma(depth(&b, OpKind::AttnProbs, n) + 1);
                assert!((*y as f64 - p).abs() <= bound * p + 1e-45, "{} {n}: {y} {p}", b.name());
            }
            let mut with_nan = x.clone();
            with_nan[n / 2] = f32::NAN;
            b.kernels.softmax(&with_nan, &mut out);
            assert!(out.iter().all(|y| y.is_nan()), "{} {n}", b.name());
        }
    }
}

#[test]
fn swiglu_reaches_its_limits_and_keeps_nan() {
    for b in backends(1) {
        let gate = [f32::NEG_INFINITY, -200.0, -0.0, 0.0, 200.0, f32::INFINITY, f32::NAN, -87.5];
        let mut out = [0.0; 8];
        b.kernels.swiglu(&gate, &[1.0; 8], &mut out);
        assert!(out[0].is_nan() && out[6].is_nan(), "−∞ · 0 and NaN: {out:?}");
        assert_eq!(out[1..6], [0.0, 0.0, 0.0, 200.0, f32::INFINITY]);
        assert!((out[7] as f64 / (-87.5 / (1.0 + 87.5f64.exp())) - 1.0).abs() < 1e-6);
    }
}
