//! A rule of indices is named where it is seen at several of them; of one alone, what it has in its place.

use super::by_hand::{edited, of};
use super::*;

/// Asserts the words of what is named first, and that of all that is named nothing has `never` in its words.
fn named(w: &World, site: Site, op: &Op<'_, Rc<HostTensor>>, output: &HostTensor, words: &str, never: &str) {
    let e = w.explain_op(site, op, output);
    let cause = e.cause().unwrap_or_else(|| panic!("{site}, {words}: {e}"));
    assert!(cause.reproduced && cause.name.contains(words), "{site}, {words}: {e}");
    assert!(!cause.name.contains(never), "{site}: {never} is no more than one of many: {e}");
}

#[test]
fn one_token_has_another_row() {
    let w = world();
    let site = Site::model(Stage::Embedding);
    let Op::Embed { table, .. } = w.op(site) else { unreachable!() };
    let op = Op::Embed { table, tokens: &[5, 1500, 33, 1023, 33, 700], scale: 1.0 };
    // Tokens from 4 on taken as 3 would be wrong at every position.
    let output = of(Op::Embed { table, tokens: &[5, 1500, 3, 1023, 3, 700], scale: 1.0 });
    named(&w, site, &op, &output, "row 3 for token 33", "taken as");
    let output = of(Op::Embed { table, tokens: &[5, 1500, 33, 1023, 3, 700], scale: 1.0 });
    named(&w, site, &op, &output, "row 3 for token 33, position 4 only", "taken as");
    // 1500 − 5 is no multiple of 1023 − 5, and two tokens are not enough for a rule.
    let output = of(Op::Embed { table, tokens: &[5, 12, 33, 90, 33, 700], scale: 1.0 });
    named(&w, site, &op, &output, "row 12 for token 1500 and row 90 for token 1023", "modulo");
}

#[test]
fn one_expert_has_anothers_weights() {
    let w = world();
    let site = Site::layer(1, Stage::ExpertGate);
    let op = w.op(site);
    let Op::ExpertMatMul { x, ids, weight } = &op else { unreachable!() };
    let last = *ids.ids().iter().max().unwrap();
    assert!(last >= 4, "experts modulo 4 would be wrong at others as well");
    for other in [last % 4, last - 2] {
        let swapped = ids.ids().iter().map(|e| if *e == last { other } else { *e }).collect();
        let swapped = HostTensor::u32(&ids.shape, swapped);
        let output = of(Op::ExpertMatMul { x, ids: &swapped, weight });
        let words = format!("the weights of expert {other} for those of expert {last}");
        named(&w, site, &op, &output, &words, "modulo");
    }
}

#[test]
fn one_column_has_anothers_values() {
    let w = world();
    let site = Site::layer(1, Stage::AttnOut);
    let op = w.op(site);
    let right = made(&op).to_f32();
    let cols = made(&op).cols();
    for (column, other) in [(6, 7), (9, 8), (40, 12)] {
        let output = edited(&w, site, |i, y| if i % cols == column { right[i - column + other] } else { y });
        let words = format!("column {column} holds column {other}");
        named(&w, site, &op, &output, &words, "exchanged");
    }
    let output = edited(&w, site, |i, _| right[i / cols * cols + (i % cols + 5) % cols]);
    named(&w, site, &op, &output, "in every column what belongs 5 on", "too far");
    let output = edited(&w, site, |i, _| right[i / cols * cols + (i % cols + cols - 1) % cols]);
    named(&w, site, &op, &output, "in every column what belongs 1 back", "too far");
    // Both of a pair, as an exchange has it, are named as one.
    let output = edited(&w, site, |i, y| if i % cols / 2 == 3 { right[i - i % cols + ((i % cols) ^ 1)] } else { y });
    named(&w, site, &op, &output, "exchanged", "holds");
}

#[test]
fn rows_of_heads() {
    let w = world();
    for (stage, d) in [(Stage::QProj, 64), (Stage::KProj, 64)] {
        let site = Site::layer(1, stage);
        let op = w.op(site);
        let (right, cols) = (made(&op).to_f32(), made(&op).cols());
        let with = |from: &dyn Fn(usize) -> usize| edited(&w, site, |i, _| right[i - i % cols + from(i % cols)]);
        let interleaved = with(&|c| c / d * d + c % d / 2 + c % 2 * (d / 2));
        named(&w, site, &op, &interleaved, "interleaved, i and i + D/2 as 2i and 2i + 1", "taken apart");
        let apart = with(&|c| c / d * d + c % (d / 2) * 2 + c % d / (d / 2));
        named(&w, site, &op, &apart, "taken apart, 2i and 2i + 1 as i and i + D/2", "interleaved");
        named(&w, site, &op, &with(&|c| (c + d) % cols), "the weights of the next head", "taken apart");
    }
    let site = Site::layer(1, Stage::RouterLogits);
    let op = w.op(site);
    let (right, cols) = (made(&op).to_f32(), made(&op).cols());
    let turned = edited(&w, site, |i, _| right[i - i % cols + (i + 1) % cols]);
    named(&w, site, &op, &turned, "the weights of the expert after, of the first for the last", "too far");
    let w = World::family("qwen2");
    let site = Site::layer(1, Stage::QBias);
    let op = w.op(site);
    let Op::Bias { x, weight } = &op else { unreachable!() };
    let (x, bias, d) = (x.to_f64(), Vec::from_iter(weight.f32s()), w.model.config.head_dim);
    let cols = bias.len();
    let next = edited(&w, site, |i, _| (x[i] + f64::from(bias[(i + d) % cols])) as f32);
    named(&w, site, &op, &next, "the bias of the next head", "left out");
}

#[test]
fn another_linear_scaling() {
    let w = World::family("llama"); // a linear scaling by 4
    let site = Site::layer(1, Stage::QRope);
    let op = w.op(site);
    let Op::Rope { x, start, head_dim, rotation } = &op else { unreachable!() };
    for (factor, words) in [
        (8.0, "a linear scaling by 8 for 4"),
        (2.0, "a linear scaling by 2 for 4"),
        (3.0, "a linear scaling by 3 for 4"),
        (5.5, "a linear scaling by 5.5 for 4"),
    ] {
        let rotation = Rotation { scale: 1.0 / factor, ..*rotation };
        let output = f32s(evaluate(&Op::Rope { x: &**x, start: *start, head_dim: *head_dim, rotation }).unwrap());
        named(&w, site, &op, &output, words, "base");
    }
}

/// Infinite where f32 ends, with nothing between that and the end of f16.
#[test]
fn the_range_that_is_seen() {
    let w = world();
    let site = Site::layer(1, Stage::AttnResidual);
    let Op::Add { a, b } = w.op(site) else { unreachable!() };
    let huge = |t: &HostTensor, at: usize| {
        HostTensor::f32(
            &t.shape,
            t.to_f32().iter().enumerate().map(|(i, x)| if i % 97 == at { 3e38 } else { *x }).collect(),
        )
    };
    let (a, b) = (Rc::new(huge(&a, 5)), Rc::new(huge(&b, 5)));
    let op = Op::Add { a: a.clone(), b: b.clone() };
    let sums: Vec<f32> = a.to_f32().iter().zip(b.to_f32()).map(|(a, b)| a + b).collect();
    assert!(sums.iter().any(|x| x.is_infinite()));
    let e = w.explain_op(site, &op, &HostTensor::f32(&a.shape, sums));
    assert!(!e.to_string().contains("f16"), "{e}");
}

/// Of one block, of one row or of each, the scale alone is another: in a file that was changed, or a load that went wrong.
#[test]
fn one_scale() {
    let w = world();
    for (stage, factor, every) in [
        (Stage::QProj, 2.0, false),
        (Stage::QProj, -1.0, false),
        (Stage::AttnOut, 0.0, false),
        (Stage::AttnOut, 1.375, false),
        (Stage::AttnOut, 2.0, true),
    ] {
        let site = Site::layer(1, stage);
        let op = w.op(site);
        let Op::MatMul { x, weight } = &op else { unreachable!() };
        let (k, row, block) = (weight.cols, 7, 0);
        let groups = weight.ty.block_len() / 32;
        // Not the last of the row, which is a tail as well.
        let own = block * weight.ty.block_len() + (groups - 2) * 32..block * weight.ty.block_len() + (groups - 1) * 32;
        let (xs, right, cols) = (x.to_f64(), made(&op).to_f32(), made(&op).cols());
        let output = edited(&w, site, |i, y| {
            let n = i % cols;
            if n != row && !every {
                return y;
            }
            // What is multiplied is the codes' part alone, without minimums.
            let mut products = vec![0.0; k];
            let part = |i: usize, term: crate::backend::oracle::dequant::Term| products[i] = term.product;
            crate::backend::oracle::dequant::each(weight.ty, weight.row(0, n), part).unwrap();
            let sum: f64 = own.clone().map(|j| xs[i / cols * k + j] * products[j]).sum();
            (f64::from(right[i]) + (factor - 1.0) * sum) as f32
        });
        let of_row = if every { "every row".into() } else { format!("row {row}") };
        let words = format!("sub-block {} of block {block} of {of_row} with {factor} times its scale", groups - 2);
        named(&w, site, &op, &output, &words, "column");
    }
}

/// Of two experts or fewer each one's is named: whatever rule gives it, others would as well.
#[test]
fn few_experts_have_others_weights_and_biases() {
    let Some(w) = World::family_of_repository("gpt-oss") else { return };
    for stage in [Stage::ExpertGate, Stage::ExpertGateBias] {
        let site = Site::layer(1, stage);
        let op = w.op(site);
        let (ids, experts) = match &op {
            Op::ExpertMatMul { ids, weight, .. } => (ids.clone(), weight.experts as u32),
            Op::ExpertBias { ids, weight, .. } => (ids.clone(), weight.rows as u32),
            _ => unreachable!(),
        };
        let mut used: Vec<u32> = ids.ids().to_vec();
        used.sort_unstable();
        used.dedup();
        let (a, b) = (used[0], used[1]);
        let thing = if stage == Stage::ExpertGate { "the weights" } else { "the biases" };
        let other = |e: u32| if e == a || e == b { experts - 1 - e } else { e };
        let reversed = Rc::new(HostTensor::u32(&ids.shape, ids.ids().iter().map(|e| other(*e)).collect()));
        let output = match &op {
            Op::ExpertMatMul { x, weight, .. } => of(Op::ExpertMatMul { x, ids: &reversed, weight }),
            Op::ExpertBias { x, weight, .. } => of(Op::ExpertBias { x, ids: &reversed, weight }),
            _ => unreachable!(),
        };
        let words = format!(
            "{thing} of expert {} for those of expert {a} and expert {} for those of expert {b}",
            other(a),
            other(b)
        );
        named(&w, site, &op, &output, &words, "e + ");
    }
}

/// An eps of which the values that are there tell little is not told to its last digit.
#[test]
fn an_eps_is_told_as_far_as_it_shows() {
    let w = world();
    let site = Site::model(Stage::FinalNorm);
    let Op::RmsNorm { x, weight, keep, .. } = w.op(site) else { unreachable!() };
    for (scale, words) in [(0.1, "an eps below "), (1e-3, "the norm with eps 3e-6 for 1e-5")] {
        let x = Rc::new(HostTensor::f32(&x.shape, x.to_f32().iter().map(|x| x * scale).collect()));
        let with = |eps| Op::RmsNorm { x: x.clone(), weight, eps, keep };
        let e = w.explain_op(site, &with(1e-5), &made(&with(3e-6)));
        let told = e.fits.iter().any(|fit| fit.id == "norm-eps" && fit.what.contains(words));
        assert!(e.reproduced() && told, "{scale}: {e}");
    }
}

/// One token's products with scales that are a little off, in f32 sums of 16 lanes: within what f16 sums may be, but multiples of what f32 sums are.
#[test]
fn an_error_of_weights_is_not_f16_sums() {
    let w = world();
    let site = Site::layer(1, Stage::AttnOut);
    let Op::MatMul { x, weight } = w.op(site) else { unreachable!() };
    let (k, ws) = (weight.cols, super::by_hand::values(weight));
    let xs = x.to_f32()[..k].to_vec();
    let product = |n: usize| {
        let mut lanes = [0f32; 16];
        for (i, x) in xs.iter().enumerate() {
            let off = 1.0 + ((n * 7 + i / 32 * 13) % 5) as f32 / 1024.0;
            lanes[i % 16] += x * (ws[n * k + i] as f32 * off);
        }
        lanes.iter().sum::<f32>()
    };
    let output = HostTensor::f32(&[1, weight.rows], (0..weight.rows).map(product).collect());
    let e = w.explain_op(site, &Op::MatMul { x: Rc::new(HostTensor::f32(&[1, k], xs.clone())), weight }, &output);
    assert!(e.fits.is_empty(), "{e}");
}
