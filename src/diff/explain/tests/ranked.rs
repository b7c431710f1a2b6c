//! Several mistakes may reproduce an output: the one that assumes least is named, and none that contradicts what is right.

use super::by_hand::{edited, of};
use super::*;
use crate::formula::precision::{FORMATS, cut_to_bf16};
use crate::op::GgmlType;

/// Asserts what is named first, and that nothing else is named with it that is not in `ties`.
fn named(
    w: &World,
    site: Site,
    op: &Op<'_, Rc<HostTensor>>,
    output: &HostTensor,
    id: &str,
    words: &str,
    ties: &[&str],
) {
    let e = w.explain_op(site, op, output);
    let cause = e.cause().unwrap_or_else(|| panic!("{site}, {id}, {words}: {e}"));
    assert!(cause.reproduced && cause.id == id && cause.name.contains(words), "{site}, {id}, {words}: {e}");
    assert!(cause.also.iter().all(|also| ties.contains(also)), "{site}, {id}: also {:?}: {e}", cause.also);
}

fn here(w: &World, site: Site, output: &HostTensor, id: &str, words: &str, ties: &[&str]) {
    named(w, site, &w.op(site), output, id, words, ties);
}

fn f32s_of(shape: &[usize], values: Vec<f64>) -> HostTensor {
    f32s(HostTensor::f64(shape, values))
}

/// Zeros were once explained by types whose rows lie behind the tensor's end.
#[test]
fn rows_that_are_not_written_are_zeros() {
    let w = world();
    let q = Site::layer(1, Stage::QProj);
    let cols = made(&w.op(q)).cols();
    let last = edited(&w, q, |i, y| if i % cols == cols - 1 { 0.0 } else { y });
    here(&w, q, &last, "zero", &format!("column {} only", cols - 1), &[]);
    let logits = Site::model(Stage::Logits);
    let cols = made(&w.op(logits)).cols();
    let tail = edited(&w, logits, |i, y| if i % cols >= cols - 40 { 0.0 } else { y });
    here(&w, logits, &tail, "zero", &format!("columns ≥ {}", cols - 40), &[]);
}

/// h / 3 is wrong at head 3 alone; h mod 2 fits head 3, and would be wrong at heads 1 and 6.
#[test]
fn a_map_of_heads_holds_for_every_head() {
    let w = world();
    let site = Site::layer(1, Stage::AttnContext);
    let op = w.op(site);
    let Op::AttnContext { probs, v, .. } = &op else { unreachable!() };
    let (ps, vs, t) = (probs.to_f64(), v.to_f64(), probs.shape[1]);
    let context = |kv: &dyn Fn(usize) -> usize,
                   p: &dyn Fn(f64) -> f64,
                   x: &dyn Fn(f64) -> f64,
                   key: &dyn Fn(usize, usize) -> f64| {
        let element = |i: usize| {
            let (token, h, d) = (i / 512, i / 64 % 8, i % 64);
            let term = |s: usize| key(token, s) * p(ps[(h * t + token) * t + s]) * x(vs[s * 128 + kv(h) * 64 + d]);
            (0..=token).map(term).sum::<f64>()
        };
        f32s_of(&[t, 512], (0..t * 512).map(element).collect())
    };
    let (right, itself, all) = (|h: usize| h / 4, |x: f64| x, |_: usize, _: usize| 1.0);
    let third = context(&|h| (h / 3).min(1), &itself, &itself, &all);
    here(&w, site, &third, "kv-head", "KV head h / 3", &[]);
    let (half, brain) = (FORMATS[0].round, FORMATS[1].round);
    here(&w, site, &context(&right, &itself, &half, &all), "input-precision", "v rounded to f16", &[]);
    here(&w, site, &context(&right, &half, &itself, &all), "input-precision", "probabilities rounded to f16", &[]);
    here(&w, site, &context(&right, &itself, &cut_to_bf16, &all), "input-precision", "v cut off to bf16", &[]);
    here(
        &w,
        site,
        &context(&right, &brain, &brain, &all),
        "input-precision",
        "probabilities and v rounded to bf16",
        &[],
    );
    let lanes = context(&right, &itself, &itself, &|_, s| (s % 8 < 4) as u8 as f64);
    here(&w, site, &lanes, "lanes", "lanes 0–3 of 8", &["k-skipped", "k-twice"]);
    let window = context(&right, &itself, &itself, &|token, s| (s + 5 > token) as u8 as f64);
    here(&w, site, &window, "window", "window of 5 keys", &[]);
}

#[test]
fn scores_and_softmaxes() {
    let w = world();
    let site = Site::layer(1, Stage::AttnScores);
    let op = w.op(site);
    let Op::AttnScores { q, k, .. } = &op else { unreachable!() };
    let (qs, ks, t) = (q.to_f64(), k.to_f64(), q.shape[0]);
    let scores = |f: &dyn Fn(f64) -> f64, g: &dyn Fn(f64) -> f64, terms: usize, row: &dyn Fn(usize) -> usize| {
        let element = |i: usize| {
            let (h, token, s) = (i / t / t, i / t % t, i % t);
            let term = |d: usize| f(qs[token * 512 + h * 64 + d]) * g(ks[row(s) * 128 + h / 4 * 64 + d]);
            if s <= token { (0..terms).map(term).sum::<f64>() / 8.0 } else { 0.0 }
        };
        f32s_of(&[8, t, t], (0..8 * t * t).map(element).collect())
    };
    let (itself, half, same) = (|x: f64| x, FORMATS[0].round, |s: usize| s);
    here(&w, site, &scores(&itself, &half, 64, &same), "input-precision", "k rounded to f16", &[]);
    here(&w, site, &scores(&half, &itself, 64, &same), "input-precision", "q rounded to f16", &[]);
    here(&w, site, &scores(&itself, &cut_to_bf16, 64, &same), "input-precision", "k cut off to bf16", &[]);
    here(&w, site, &scores(&itself, &itself, 48, &same), "k-skipped", "only the first 48 of 64", &["lanes"]);
    here(&w, site, &scores(&itself, &itself, 64, &|s| s.min(5)), "wrapped", "positions from 6 on taken as 5", &[]);

    let site = Site::layer(1, Stage::AttnProbs);
    let Op::AttnProbs { scores, .. } = w.op(site) else { unreachable!() };
    let xs = scores.to_f64();
    let softmax = |counted: &dyn Fn(usize, usize) -> bool, written: bool, plus: f64| {
        let mut all = vec![0.0; xs.len()];
        for (i, row) in xs.chunks_exact(t).enumerate() {
            let token = i % t;
            let max = row[..=token].iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..=token).filter(|s| counted(token, *s)).map(|s| (row[s] - max).exp()).sum();
            for s in (0..=token).filter(|s| !written || counted(token, *s)) {
                all[i * t + s] = (row[s] - max).exp() / (sum + plus);
            }
        }
        f32s_of(&scores.shape, all)
    };
    here(&w, site, &softmax(&|_, s| s < 7, false, 0.0), "k-skipped", "only the first 7 of", &["lanes"]);
    here(&w, site, &softmax(&|token, s| s + 4 > token, true, 0.0), "window", "window of 4 keys", &[]);
    here(&w, site, &softmax(&|_, _| true, false, 0.01), "softmax-sum", "plus 1e-2", &[]);
}

#[test]
fn tables_of_positions_and_coarse_angles() {
    let w = world();
    let site = Site::layer(1, Stage::QRope);
    let op = w.op(site);
    let Op::Rope { x, head_dim, rotation, .. } = &op else { unreachable!() };
    let base = &rotation.base;
    let (xs, d, start) = (x.to_f64(), *head_dim, 250);
    let late = Op::Rope { x: x.clone(), start, head_dim: d, rotation: *rotation };
    let turned = |angle: &dyn Fn(f64, f64) -> f64| {
        let mut all = xs.clone();
        for (t, row) in all.chunks_exact_mut(x.cols()).enumerate() {
            for head in row.chunks_exact_mut(d) {
                for i in 0..d / 2 {
                    let frequency = base.powf(-2.0 * i as f64 / d as f64);
                    let (sin, cos) = angle((start + t) as f64, frequency).sin_cos();
                    let (a, b) = (head[i], head[i + d / 2]);
                    (head[i], head[i + d / 2]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
        }
        f32s_of(&x.shape, all)
    };
    let named = |angle: &dyn Fn(f64, f64) -> f64, id: &str, words: &str, ties: &[&str]| {
        named(&w, site, &late, &turned(angle), id, words, ties);
    };
    let (half, brain) = (FORMATS[0].round, FORMATS[1].round);
    named(&|p, f| p.min(255.0) * f, "rope-table", "positions from 256 on taken as 255", &[]);
    named(&|p, f| p % 256.0 * f, "rope-table", "positions modulo 256", &[]);
    named(&|p, f| brain(p) * f, "rope-precision", "positions in bf16", &["rope-table"]);
    named(&|p, f| p * half(f), "rope-precision", "frequencies in f16", &[]);
    named(&|p, f| brain(p * f), "rope-precision", "angles in bf16", &[]);
    let single = |x: f64| x as f32 as f64;
    named(&|p, f| single(p * single(f)), "rope-precision", "an f32 position times an f32 frequency", &[]);
    // In an order that is not among those tried.
    named(&|p, f| single(single(p * single(f)) * (1.0 + 3e-7)), "rope-precision", "as f32 leaves open", &[]);
}

#[test]
fn norms_lose_lanes_tails_and_range() {
    let w = world();
    let site = Site::layer(1, Stage::AttnNorm);
    let op = w.op(site);
    let Op::RmsNorm { x, weight, eps, .. } = &op else { unreachable!() };
    let (n, xs) = (x.cols(), x.to_f64());
    let weights: Vec<f64> = weight.bytes().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect();
    let norm = |counted: &dyn Fn(usize) -> bool| {
        let mut all = Vec::new();
        for row in xs.chunks_exact(n) {
            let sum: f64 = row.iter().enumerate().filter(|(i, _)| counted(*i)).map(|(_, x)| x * x).sum();
            let scale = 1.0 / (sum / n as f64 + *eps as f64).sqrt();
            all.extend(row.iter().zip(&weights).map(|(x, w)| x * scale * w));
        }
        f32s_of(&x.shape, all)
    };
    here(&w, site, &norm(&|i| i % 64 < 8), "lanes", "lanes 0–7 of 64", &[]);
    here(&w, site, &norm(&|i| i < 192), "k-skipped", "only the first 192 of 256 squares", &["lanes"]);
    here(&w, site, &norm(&|i| i < 157), "k-skipped", "only the first 157 of 256 squares", &[]);
    here(&w, site, &norm(&|i| i >= 100), "k-skipped", "the 256 squares without the first 100", &[]);

    // Squares that a half cannot hold the sum of, in one row: about 256 · 20² a value.
    let mut large = x.to_f32();
    large[n..2 * n].iter_mut().for_each(|x| *x *= 1e3);
    let large = Rc::new(HostTensor::f32(&x.shape, large));
    let sums: Vec<f32> = large.to_f32().chunks(n).map(|row| row.iter().map(|x| x * x).sum()).collect();
    assert!(sums.iter().enumerate().all(|(row, sum)| (*sum > 65504.0) == (row == 1)), "{sums:?}");
    let beyond = Op::RmsNorm { x: large, weight, eps: *eps, keep: 0 };
    let mut output = made(&beyond).to_f32();
    output[n..2 * n].fill(0.0);
    named(&w, site, &beyond, &HostTensor::f32(&x.shape, output), "overflow", "Σx² beyond the range of f16", &[]);

    // Squares that f32 cannot hold, which its contract allows: there is no bound, and nothing to explain.
    let mut large = x.to_f32();
    large[n..2 * n].iter_mut().for_each(|x| *x *= 1e22);
    let large = Rc::new(HostTensor::f32(&x.shape, large));
    let beyond = Op::RmsNorm { x: large, weight, eps: *eps, keep: 0 };
    let mut output = made(&beyond).to_f32();
    output[n..2 * n].fill(0.0);
    let e = w.explain_op(site, &beyond, &HostTensor::f32(&x.shape, output));
    assert_eq!((e.tried, e.fits.len()), (0, 0), "{e}");
}

#[test]
fn routers_with_ties_and_sums() {
    let w = world();
    let site = Site::layer(1, Stage::RouterIds);
    let Op::RouterTopK { probs, k, .. } = w.op(site) else { unreachable!() };
    // At every position the leader has an equal.
    let mut tied = probs.to_f32();
    tied.chunks_exact_mut(8).enumerate().for_each(|(t, row)| (row[t % 5], row[t % 5 + 2]) = (2.0, 2.0));
    let tied = HostTensor::f32(&probs.shape, tied);
    let right = evaluate(&Op::RouterTopK { probs: &tied, k, groups: None }).unwrap();
    let next = |t: usize| {
        let row = &tied.to_f32()[t * 8..][..8];
        (0..8u32)
            .filter(|e| row[*e as usize] < 2.0)
            .max_by(|a, b| row[*a as usize].total_cmp(&row[*b as usize]))
            .unwrap()
    };
    let op = Op::RouterTopK { probs: Rc::new(tied.clone()), k, groups: None };
    let ids = |of: &dyn Fn(usize, u32, u32) -> [u32; 2]| {
        let all = right.ids().chunks_exact(2).enumerate().flat_map(|(t, ids)| of(t, ids[0], ids[1]));
        HostTensor::u32(&right.shape, all.collect())
    };
    named(&w, site, &op, &ids(&|t, a, _| [a, next(t)]), "router-ties", "only the lowest id", &[]);
    named(&w, site, &op, &ids(&|t, _, b| [b, next(t)]), "router-ties", "only the highest id", &["router-choice"]);
    named(&w, site, &op, &ids(&|_, a, b| [b, a]), "router-ties", "ties to the higher", &["router-order"]);
    let some = ids(&|t, a, b| if t % 2 == 0 { [b, a] } else { [a, b] });
    let e = w.explain_op(site, &op, &some);
    assert_eq!(e.cause().map(|c| (c.reproduced, c.id)), Some((true, "router-ties")), "{e}");

    let site = Site::layer(1, Stage::RouterWeights);
    let op = w.op(site);
    let raw = |site| {
        made(&{
            let Op::RouterWeights { probs, ids, .. } = w.op(site) else { unreachable!() };
            Op::RouterWeights { probs, ids, renormalise: false, softmax: false, scale: 1.0 }
        })
        .to_f64()
    };
    let raw = raw(site);
    let shape = &made(&op).shape;
    let plus = |eps: f64| {
        f32s_of(
            shape,
            raw.chunks_exact(2).flat_map(|p| p.iter().map(|x| x / (p[0] + p[1] + eps)).collect::<Vec<_>>()).collect(),
        )
    };
    here(&w, site, &plus(1e-3), "renormalisation", "their sum plus 1e-3", &[]);
    here(&w, site, &plus(2.5e-2), "renormalisation", "their sum plus 2.5e-2", &[]);
    let first = raw.chunks_exact(2).flat_map(|p| [p[0] / (p[0] + p[1]), p[1]]).collect();
    here(&w, site, &f32s_of(shape, first), "renormalisation", "only slot 0 renormalised", &[]);

    let site = Site::layer(1, Stage::MoeOut);
    let op = w.op(site);
    let Op::Combine { down, weights } = &op else { unreachable!() };
    let (ds, ws, h) = (down.to_f64(), weights.to_f64(), down.cols());
    let wrapped = |i: usize| {
        let (t, c) = (i / h, i % h);
        ws[2 * t] * ds[(t * 2 * h) % 4096 + c] + ws[2 * t + 1] * ds[(2 * t + 1) * h + c]
    };
    let wrapped = f32s_of(&made(&op).shape, (0..made(&op).len()).map(wrapped).collect());
    here(&w, site, &wrapped, "wrapped", "the first slot's outputs at the offset modulo 4096", &[]);
}

#[test]
fn sums_and_tables_that_read_elsewhere() {
    let w = world();
    let site = Site::layer(1, Stage::QProj);
    let op = w.op(site);
    let Op::MatMul { x, weight } = &op else { unreachable!() };
    let (k, n, xs) = (weight.cols, weight.rows, x.to_f64());
    let mut ws = vec![0.0; n * k];
    crate::backend::oracle::dequant::row(weight.ty, &weight.bytes(), &mut ws).unwrap();
    let shape = made(&op).shape;
    let product = |past: usize, x_row: &dyn Fn(usize) -> usize, w_row: &dyn Fn(usize) -> usize| {
        let element = |i: usize| {
            let (at, of) = (x_row(i / n) * k, w_row(i % n) * k);
            let term = |j: usize| xs.get(at + j).unwrap_or(&0.0) * ws.get(of + j).unwrap_or(&0.0);
            (0..k + past).map(term).sum::<f64>()
        };
        f32s_of(&shape, (0..shape[0] * n).map(element).collect())
    };
    here(&w, site, &product(32, &|t| t, &|r| r), "k-past", "32 terms into the next row", &[]);
    here(&w, site, &product(0, &|t| t, &|r| r % 64), "wrapped", "the weights of rows modulo 64", &["misplaced"]);
    here(&w, site, &product(0, &|t| t % 8, &|r| r), "wrapped", "the input of rows modulo 8", &["misplaced"]);

    let site = Site::model(Stage::Embedding);
    let Op::Embed { table, .. } = w.op(site) else { unreachable!() };
    let tokens: Vec<u32> = vec![5, 1500, 30, 1023, 1024, 700];
    let op = Op::Embed { table, tokens: &tokens, scale: 1.0 };
    let wrapped: Vec<u32> = tokens.iter().map(|t| t % 1024).collect();
    named(&w, site, &op, &of(Op::Embed { table, tokens: &wrapped, scale: 1.0 }), "wrapped", "tokens modulo 1024", &[]);
    // No token of the prompt is right, and the modulus is no power of two.
    let op = Op::Embed { table, tokens: &[999, 1403, 731], scale: 1.0 };
    let wrapped = of(Op::Embed { table, tokens: &[199, 3, 131], scale: 1.0 });
    named(&w, site, &op, &wrapped, "wrapped", "tokens modulo 200", &[]);
    let before = of(Op::Embed { table, tokens: &[899, 1303, 631], scale: 1.0 });
    named(&w, site, &op, &before, "embedding-row", "the row 100 before the token's", &["wrapped"]);
    let ended = of(Op::Embed { table, tokens: &[99, 99, 99], scale: 1.0 });
    named(&w, site, &op, &ended, "wrapped", "tokens from 100 on taken as 99", &["misplaced"]);
    let op = Op::Embed { table, tokens: &tokens, scale: 1.0 };
    let exchanged = [5, 1500, 1023, 30, 1024, 700];
    named(
        &w,
        site,
        &op,
        &of(Op::Embed { table, tokens: &exchanged, scale: 1.0 }),
        "misplaced",
        "rows 2 and 3 exchanged",
        &[],
    );
}

/// Of blocks whose scale is a subnormal half.
#[test]
fn subnormal_scales_are_not_zeros() {
    let w = world();
    let site = Site::layer(1, Stage::QProj);
    let op = w.op(site);
    let Op::MatMul { x, weight } = &op else { unreachable!() };
    assert_eq!(weight.ty, GgmlType::Q4_K, "the test takes its blocks apart");
    let with = |scale: u16| {
        let mut bytes = weight.bytes().to_vec();
        for (n, block) in bytes.chunks_exact_mut(144).enumerate() {
            if n % 3 == 0 {
                block[..2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        Weight::from_vec("scaled", weight.ty, [weight.cols, weight.rows, 1], bytes).unwrap()
    };
    let (subnormal, flushed) = (with(0x0123), with(0));
    let stated = Op::MatMul { x: x.clone(), weight: &subnormal };
    let output = of(Op::MatMul { x, weight: &flushed });
    named(&w, site, &stated, &output, "scale-subnormal", "subnormal f16 scales flushed to 0", &[]);
}

/// What removes little is not named at all.
#[test]
fn nothing_is_named_that_removes_little() {
    let w = world();
    let site = Site::layer(1, Stage::QProj);
    let noise = |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
    let e = w.explain(site, &edited(&w, site, |i, y| y + noise(i)));
    assert_eq!((e.cause(), e.fits.len()), (None, 0), "{e}");
    // Halved but for some noise: near, and said how near.
    let e = w.explain(site, &edited(&w, site, |i, y| 0.5 * y + 0.05 * y * noise(i)));
    let cause = e.cause().unwrap();
    assert!(!cause.reproduced && cause.name.contains("times the right values") && cause.removes.unwrap() > 0.9, "{e}");
}
