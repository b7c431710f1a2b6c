//! Rows at other strides, joint weights taken apart otherwise, offsets that wrap, and softmaxes in coarse formats, all made by hand.

use super::by_hand::{edited, product, values};
use super::*;

fn scores_of(w: &World) -> (Site, Vec<f64>, Vec<f64>, usize) {
    let site = Site::layer(1, Stage::AttnScores);
    let Op::AttnScores { q, k, .. } = w.op(site) else { unreachable!() };
    (site, q.to_f64(), k.to_f64(), q.shape[0])
}

/// Eight query heads and two KV heads of 64 values: 512 values of q for 128 of k at each position.
#[test]
fn rows_at_the_stride_of_another_head_count() {
    let w = world();
    let (site, q, k, t) = scores_of(&w);
    // What lies behind the keys' end is anything.
    let key = |at: usize| k.get(at).copied().unwrap_or((at as f64).sin());
    let scores = |q_stride: usize, k_stride: usize| {
        let mut all = vec![0.0; 8 * t * t];
        for (i, y) in all.iter_mut().enumerate() {
            let (h, token, s) = (i / t / t, i / t % t, i % t);
            if s <= token {
                let term = |d: usize| {
                    let q = q.get(token * q_stride + h * 64 + d).copied().unwrap_or(0.5);
                    q * key(s * k_stride + h / 4 * 64 + d)
                };
                *y = (0..64).map(term).sum::<f64>() / 8.0;
            }
        }
        f32s(HostTensor::f64(&[8, t, t], all))
    };
    explained(&w, site, &scores(128, 128), "row-stride", "q in rows of 2 heads, the KV heads', for 8");
    explained(&w, site, &scores(512, 512), "row-stride", "k in rows of 8 heads, the query heads', for 2");

    // q read in rows of its own length from a tensor whose rows have q, k and v.
    let norm = Site::layer(1, Stage::QNorm);
    let Op::RmsNorm { x, weight, eps, .. } = w.op(norm) else { unreachable!() };
    let parts = [Stage::QProj, Stage::KProj, Stage::VProj].map(|s| w.values[&Site::layer(1, s).key()].to_f32());
    let joint: Vec<f32> = (0..t)
        .flat_map(|t| parts.iter().zip([512, 128, 128]).flat_map(move |(p, n)| p[t * n..][..n].to_vec()))
        .collect();
    let read = HostTensor::f32(&x.shape, joint[..x.len()].to_vec());
    let normed = f32s(evaluate(&Op::RmsNorm { x: &read, weight, eps, keep: 0 }).unwrap());
    explained(&w, norm, &normed, "row-stride", "its own stride in a tensor that has q, k and v");

    let act = Site::layer(2, Stage::ExpertAct);
    let Op::SwiGlu { gate, up, activation } = w.op(act) else { unreachable!() };
    let (gates, ups, f) = (gate.to_f32(), up.to_f32(), gate.cols());
    let turns: Vec<f32> = gates.iter().zip(&ups).flat_map(|(g, u)| [*g, *u]).collect();
    let half = |part: usize| {
        let values = (0..gates.len()).map(|i| turns[i / f * 2 * f + part * f + i % f]).collect();
        HostTensor::f32(&gate.shape, values)
    };
    let made = f32s(evaluate(&Op::SwiGlu { gate: &half(0), up: &half(1), activation }).unwrap());
    explained(&w, act, &made, "row-stride", "by turns in one tensor, read as its halves");
}

#[test]
fn joint_weights_taken_apart_otherwise() {
    let w = world();
    let site = Site::layer(1, Stage::QProj);
    let op = w.op(site);
    let Op::MatMul { x, weight } = &op else { unreachable!() };
    let of = w.attention(1);
    let [q, k, v] = [&of.q, &of.k, &of.v].map(|w| values(w));
    let (n, row) =
        (weight.cols, |from: &[f64], head: usize| from[head * 64 * weight.cols..][..64 * weight.cols].to_vec());
    // By groups: four heads of q, one of k, one of v, twice.
    let grouped: Vec<f64> = (0..2)
        .flat_map(|g| (0..4).map(move |h| (0, g * 4 + h)).chain([(1, g), (2, g)]))
        .flat_map(|(part, head)| row([&q, &k, &v][part], head))
        .collect();
    let taken = |rows: &[f64]| f32s(HostTensor::f64(&made(&op).shape, product(&x.to_f64(), rows, n, |_| 1.0)));
    explained(&w, site, &taken(&grouped[..512 * n]), "joint-rows", "by groups of heads, taken for one after the other");

    let site = Site::layer(1, Stage::ExpertUp);
    let op = w.op(site);
    let Op::ExpertMatMul { x, ids, .. } = &op else { unreachable!() };
    let (xs, moe) = (x.to_f64(), w.moe(1));
    let (rows, cols) = (moe.up.rows, moe.up.cols);
    let decoded = |w: &Weight, expert: usize| {
        let mut all = vec![0.0; rows * cols];
        crate::backend::oracle::dequant::row(
            w.ty,
            &w.bytes()[expert * w.row_bytes() * rows..][..w.row_bytes() * rows],
            &mut all,
        )
        .unwrap();
        all
    };
    let both: Vec<[Vec<f64>; 2]> = (0..8).map(|e| [decoded(&moe.gate, e), decoded(&moe.up, e)]).collect();
    // The second half of rows that take turns.
    let element = |i: usize| {
        let (slot, r) = (i / rows, rows + i % rows);
        let of = &both[ids.ids()[slot] as usize][r % 2][r / 2 * cols..][..cols];
        xs[slot / ids.cols() * cols..][..cols].iter().zip(of).map(|(x, w)| x * w).sum::<f64>()
    };
    let shape = &made(&op).shape;
    let turns = HostTensor::f64(shape, (0..shape.iter().product()).map(element).collect());
    explained(&w, site, &f32s(turns), "joint-rows", "whose rows take turns, taken for its halves");
}

/// An expert's first byte modulo a power of two: of the bundled model's experts, each as long as some multiple of that.
#[test]
fn offsets_of_experts_that_wrap() {
    let w = world();
    let site = Site::layer(1, Stage::ExpertGate);
    let op = w.op(site);
    let Op::ExpertMatMul { x, ids, weight } = &op else { unreachable!() };
    let (rows, cols, bytes) = (weight.rows, weight.cols, weight.row_bytes());
    let stride = rows * cols;
    // Half an expert more than two experts, in elements, if that is a power of two; otherwise whatever is next below.
    let modulus = 1 << (2 * stride + stride / 2).ilog2();
    let xs = x.to_f64();
    let element = |i: usize| {
        let (slot, r) = (i / rows, i % rows);
        let at = (ids.ids()[slot] as usize * rows + r) * cols % modulus;
        let row = &weight.bytes()[at / cols * bytes..][..bytes];
        let mut of = vec![0.0; cols];
        crate::backend::oracle::dequant::row(weight.ty, row, &mut of).unwrap();
        xs[slot / ids.cols() * cols..][..cols].iter().zip(of).map(|(x, w)| x * w).sum::<f64>()
    };
    let shape = &made(&op).shape;
    let wrapped = HostTensor::f64(shape, (0..shape.iter().product()).map(element).collect());
    let e = w.explain(site, &f32s(wrapped));
    assert!(e.reproduced() && e.fits.iter().any(|f| f.id == "wrapped"), "{e}");
}

#[test]
fn softmaxes_in_halves() {
    let w = world();
    let site = Site::layer(1, Stage::AttnProbs);
    let Op::AttnProbs { scores, .. } = w.op(site) else { unreachable!() };
    let t = scores.cols();
    let half = |x: f64| half::f16::from_f64(x).to_f64();
    let exactly = |x: f64| x;
    type Round<'a> = &'a dyn Fn(f64) -> f64;
    let softmax = |xs: &[f64], start: f64, round: Round<'_>, add: Round<'_>, order: &dyn Fn(usize) -> usize| {
        let mut all = vec![0.0; xs.len()];
        for (i, row) in xs.chunks_exact(t).enumerate() {
            let row = &row[..=i % t];
            let max = row.iter().copied().fold(start, f64::max);
            let e: Vec<f64> = row.iter().map(|x| round((x - max).exp())).collect();
            let mut turns: Vec<usize> = (0..e.len()).collect();
            turns.sort_by_key(|s| order(*s));
            let sum = turns.into_iter().fold(0.0, |sum, s| add(sum + e[s]));
            e.iter().enumerate().for_each(|(s, e)| all[i * t + s] = e / sum);
        }
        f32s(HostTensor::f64(&scores.shape, all))
    };
    let (xs, none) = (scores.to_f64(), f64::NEG_INFINITY);
    let sums = softmax(&xs, none, &exactly, &half, &|s| s * 5 % 7);
    explained(&w, site, &sums, "sum-precision", "the exponentials' sum in f16");
    let exponentials = softmax(&xs, none, &half, &exactly, &|s| s);
    explained(&w, site, &exponentials, "sum-precision", "exponentials rounded to f16");
    let both = softmax(&xs, none, &half, &half, &|s| s);
    explained(&w, site, &both, "sum-precision", "exponentials and their sum in f16");

    // Scores that are all negative, whose largest is taken for 0.
    let low: Vec<f32> = xs.iter().map(|x| (x - 9.0) as f32).collect();
    let op = Op::AttnProbs {
        scores: Rc::new(HostTensor::f32(&scores.shape, low.clone())),
        start: 0,
        window: None,
        sinks: None,
    };
    let low: Vec<f64> = low.into_iter().map(f64::from).collect();
    let e = w.explain_op(site, &op, &softmax(&low, 0.0, &half, &exactly, &|s| s));
    assert!(e.reproduced() && e.fits[0].id == "attention-softmax", "{e}");
    assert!(e.fits[0].what.contains("not below 0, and exponentials in f16"), "{e}");
    // In f32 nothing is lost.
    let right = w.explain_op(site, &op, &softmax(&low, 0.0, &exactly, &exactly, &|s| s));
    assert_eq!(right.tried, 0, "{right}");
}

/// llama.cpp's repacked rows, written with one width and read with the other.
#[test]
fn codes_interleaved_by_another_width() {
    let w = world();
    let site = Site::layer(1, Stage::QProj);
    let op = w.op(site);
    let Op::MatMul { x, weight } = &op else { unreachable!() };
    assert_eq!(weight.ty, crate::op::GgmlType::Q4_K);
    for [written, read] in [[8, 4], [4, 8]] {
        let (bytes, blocks) = (weight.row_bytes(), weight.cols / 256);
        let mut misread = weight.bytes().to_vec();
        for first in (0..weight.rows).step_by(8) {
            for block in 0..blocks {
                let code = |row: usize, byte: usize| (first + row) * bytes + block * 144 + 16 + byte;
                let mut packed = vec![0; 128 * 8];
                for (i, to) in packed.chunks_exact_mut(written).enumerate() {
                    let from = code(i % 8, i / 8 * written);
                    to.copy_from_slice(&weight.bytes()[from..][..written]);
                }
                for (i, from) in packed.chunks_exact(read).enumerate() {
                    misread[code(i % 8, i / 8 * read)..][..read].copy_from_slice(from);
                }
            }
        }
        let other = Weight::from_vec("misread", weight.ty, [weight.cols, weight.rows, 1], misread).unwrap();
        let output = f32s(evaluate(&Op::MatMul { x: &**x, weight: &other }).unwrap());
        let words = format!("codes of 8 rows interleaved by {written} bytes, read as if by {read}");
        explained(&w, site, &output, "weight-codes", &words);
    }
    // Two columns wrong by chance are no such thing.
    let few = edited(&w, site, |i, y| if i % 512 == 3 { y * 1.1 } else { y });
    assert!(w.explain(site, &few).fits.iter().all(|f| f.id != "weight-codes"));
}

/// Angles that are off by what f32 leaves open, where the pairs are neighbours.
#[test]
fn angles_of_norm_pairs() {
    let w = World::family("llama");
    let site = Site::layer(1, Stage::QRope);
    let Op::Rope { x, head_dim, rotation, .. } = w.op(site) else { unreachable!() };
    let (start, single) = (250, |x: f64| x as f32 as f64);
    let mut all = x.to_f64();
    for (t, row) in all.chunks_exact_mut(x.cols()).enumerate() {
        for head in row.chunks_exact_mut(head_dim) {
            for (i, pair) in head.chunks_exact_mut(2).enumerate() {
                let frequency = single(rotation.base.powf(-2.0 * i as f64 / head_dim as f64));
                let angle = single(single((start + t) as f64 * rotation.scale * frequency) * (1.0 + 3e-7));
                let ((sin, cos), [a, b]) = (angle.sin_cos(), [pair[0], pair[1]]);
                (pair[0], pair[1]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
    let late = Op::Rope { x: x.clone(), start, head_dim, rotation };
    let e = w.explain_op(site, &late, &f32s(HostTensor::f64(&x.shape, all)));
    assert!(e.reproduced() && e.fits[0].what.contains("as f32 leaves open"), "{e}");
}
