//! What is done to sums: terms that are left out, counted twice or read past the end, weights that are read wrongly, norms.

use std::rc::Rc;
use std::sync::Arc;

use super::{Draw, Kind, by, changed, each, in_kernels, misplaced};
use crate::backend::oracle::dequant;
use crate::error::Result;
use crate::op::{GgmlType, HostTensor, Op, Stage, Weight};

/// Products, and the length of their sums.
const PRODUCTS: &[(Stage, usize)] = &[
    (Stage::QProj, 256),
    (Stage::VProj, 256),
    (Stage::AttnOut, 512),
    (Stage::RouterLogits, 256),
    (Stage::Logits, 256),
];

/// Those whose weights are quantized, and the columns of their results; of the logits, as many as all models have.
const QUANTIZED: &[(Stage, usize)] =
    &[(Stage::QProj, 512), (Stage::KProj, 128), (Stage::AttnOut, 256), (Stage::Logits, 512)];

/// Terms of a sum that are left out: of products, of norms, of attention.
pub(super) fn terms(draw: &mut Draw) -> Kind {
    let explained = &["k-skipped", "lanes", "scale-one"];
    match draw.below(4) {
        0 => {
            let kept = draw.of(&[1, 2, 4, 8, 16, 32]);
            let edit = format!("cells[lane] += select(0.0, cells[lane + step], step < {kept}u);");
            let by = in_kernels(vec![("rms_norm", vec![("cells[lane] += cells[lane + step];", edit)])]);
            let stage = draw.of(&[Stage::AttnNorm, Stage::FfnNorm, Stage::FinalNorm]);
            let says = format!("only lanes 0–{} of 64 summed", kept - 1);
            let kind = Kind::new(format!("{kept} lanes of {stage}"), stage, by, explained).says([says]);
            return kind.graded().in_decoding_too();
        }
        1 => {
            let tail = draw.of(&[8usize, 16, 32, 64, 100, 128]);
            let stage = draw.of(&[Stage::AttnNorm, Stage::FfnNorm]);
            let edit = format!("squares = fma(select(v, 0.0, i + {tail}u >= p.n), v, squares);");
            let by = in_kernels(vec![("rms_norm", vec![("squares = fma(v, v, squares);", edit)])]);
            let what = format!("a norm without the last {tail} squares at {stage}");
            let says = format!("only the first {} of 256 squares", 256 - tail);
            return Kind::new(what, stage, by, explained).says([says]).graded().in_decoding_too();
        }
        2 => {
            let kept = draw.of(&[1, 2, 4]);
            let from = "partial[at] += partial[at + step * COLUMNS];";
            let edit = format!("partial[at] += select(vec4<f32>(), partial[at + step * COLUMNS], step < {kept}u);");
            let by = in_kernels(vec![("attn_context", vec![(from, edit)])]);
            let says = [format!("only the first {kept} of "), format!("only lanes 0–{} of ", kept - 1)];
            return Kind::new(format!("{kept} lanes of attn_context"), Stage::AttnContext, by, explained).says(says);
        }
        _ => {}
    }
    let (stage, k) = draw.of(PRODUCTS);
    let (run, lanes) = (draw.of(&[1, 4, 8]), draw.of(&[8, 16]));
    let (tail, summed) = (8 * (1 + draw.below(k / 16)), lanes / 2);
    let by_lanes = draw.one_in(2);
    let keeps = move |i: usize| if by_lanes { i / run % lanes < summed } else { i < k - tail };
    let mistake = by(move |engine, op| {
        let Op::MatMul { x, weight } = op else { return Err(misplaced(op)) };
        engine.run(&Op::MatMul { x: changed(x, |_, i, x| if keeps(i) { x } else { 0.0 }), weight })
    });
    let turn = run * lanes;
    // The same terms in every way to divide a turn of the lanes.
    let half_of_turn = |run: usize| {
        let (lanes, of) = (turn / run, if run == 1 { String::new() } else { format!(", of {run} terms at a time,") });
        format!("only lanes 0–{} of {lanes}{of} summed", lanes / 2 - 1)
    };
    let (what, says) = match by_lanes {
        true => {
            let says = [1, 2, 4, 8, 16, 32].into_iter().filter(|run| turn >= 4 * run).map(half_of_turn).collect();
            (format!("{summed} of {lanes} lanes of {run} terms of {stage}"), says)
        }
        false => {
            let says = vec![format!("only the first {} of {k} terms", k - tail)];
            (format!("the last {tail} terms of {stage}"), says)
        }
    };
    Kind::new(what, stage, mistake, explained).says(says).graded().in_decoding_too()
}

/// Terms that are counted twice, or that lie behind the row.
pub(super) fn twice(draw: &mut Draw) -> Kind {
    let (stage, k) = draw.of(PRODUCTS);
    if draw.one_in(2) {
        let last = draw.of(&[1usize, 2, 4, 8, 16, 32, 64, 128]);
        let mistake = by(move |engine, op| {
            let Op::MatMul { x, weight } = op else { return Err(misplaced(op)) };
            engine.run(&Op::MatMul { x: changed(x, |_, i, x| if i + last >= k { 2.0 * x } else { x }), weight })
        });
        let what = format!("the last {last} terms of {stage} twice");
        let says = format!("the last {last} of {k} terms of each sum counted twice");
        return Kind::new(what, stage, mistake, &["k-twice"]).says([says]).graded().in_decoding_too();
    }
    let past = draw.of(&[4usize, 8, 16, 32, 64]);
    let mistake = by(move |engine, op| {
        let Op::MatMul { x, weight } = op else { return Err(misplaced(op)) };
        let values = decoded_as(weight, |_, term| term.value())?;
        let behind = |all: &[f32], row: usize| {
            all.get((row + 1) * k..).map_or(vec![], |rest| rest[..past.min(rest.len())].to_vec())
        };
        let long = |all: &[f32]| -> Vec<f32> {
            let row = |row: usize| {
                let mut one = [&all[row * k..][..k], &behind(all, row)].concat();
                one.resize(k + past, 0.0);
                one
            };
            (0..all.len() / k).flat_map(row).collect()
        };
        let (xs, weight) = (long(&x.to_f32()), of_values(weight, k + past, &long(&values))?);
        let x = Rc::new(HostTensor::f32(&[x.shape[0], k + past], xs));
        engine.run(&Op::MatMul { x, weight: &weight })
    });
    let says = format!("each sum reads on, {past} terms into the next row");
    Kind::new(format!("{past} terms past the end of {stage}"), stage, mistake, &["k-past"]).says([says]).graded()
}

/// A weight's values, each from its term and its place in the row.
fn decoded_as(weight: &Weight, value: impl Fn(usize, dequant::Term) -> f64) -> Result<Vec<f32>> {
    let mut values = vec![0.0; weight.rows * weight.cols];
    for (row, out) in values.chunks_exact_mut(weight.cols).enumerate() {
        dequant::each(weight.ty, weight.row(0, row), |i, term| out[i] = value(i, term) as f32)?;
    }
    Ok(values)
}

/// A matrix of these values in the place of `weight`.
fn of_values(weight: &Weight, cols: usize, values: &[f32]) -> Result<Arc<Weight>> {
    let bytes = values.iter().flat_map(|w| w.to_le_bytes()).collect();
    Weight::from_vec(&weight.name, GgmlType::F32, [cols, values.len() / cols, 1], bytes)
}

/// Weights that are read wrongly: a sub-block's scale, the minimums, other rows.
pub(super) fn decoded(draw: &mut Draw) -> Kind {
    let (stage, cols) = draw.of(QUANTIZED);
    let (group, factor) = (draw.below(8), draw.of(&[0.0, 2.0, 0.5, -1.0]));
    let from = if draw.one_in(2) { cols / 2 } else { 0 };
    let which = draw.below(3);
    let mistake = by(move |engine, op| {
        let Op::MatMul { x, weight } = op else { return Err(misplaced(op)) };
        use GgmlType::*;
        // Weights that share a scale; where a block has but one, its last in the row.
        let (len, last) = match weight.ty {
            Q6_K | Q2_K | Q3_K => (16, false),
            Q4_K | Q5_K | IQ4_XS => (32, false),
            _ => (weight.ty.block_len().min(weight.cols), true),
        };
        let group = if last { weight.cols / len - 1 } else { group };
        let has_minimums = matches!(weight.ty, Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K);
        let row_of = |row: usize| if which == 2 { (row + 1).min(weight.rows - 1) } else { row };
        let per_block = if last { weight.cols } else { 256 };
        let wrong = decoded_as(weight, |i, term| {
            let here = i % per_block / len == group;
            match which {
                0 if here => term.product * factor - term.offset,
                1 if has_minimums => term.product,
                1 => {
                    if here {
                        term.product * factor - term.offset
                    } else {
                        term.value()
                    }
                }
                _ => term.value(),
            }
        })?;
        let right = decoded_as(weight, |_, term| term.value())?;
        let k = weight.cols;
        let rows = (0..weight.rows)
            .flat_map(|row| if row >= from { &wrong[row_of(row) * k..][..k] } else { &right[row * k..][..k] });
        let weight = of_values(weight, k, &rows.copied().collect::<Vec<f32>>())?;
        engine.run(&Op::MatMul { x: x.clone(), weight: &weight })
    });
    let (what, explained): (_, &'static [&'static str]) = match which {
        0 => (format!("sub-block {group} with its scale times {factor}"), SCALES),
        1 => (format!("no minimums, or sub-block {group} with its scale times {factor}"), SCALES),
        _ => ("the weights of the row after".into(), &["weight-row", "misplaced"]),
    };
    // What is done to a scale or to minimums is said in other words for other types.
    let says: &[&str] = if which == 2 { &["the weights of the row after", "columns 1 too far left"] } else { &[] };
    let what = format!("{what} at {stage}, columns from {from}");
    Kind::new(what, stage, mistake, explained).says(says.iter().copied()).graded()
}

/// A sub-block without its scale is left out of its sum.
const SCALES: &[&str] = &["scale-one", "scale-minimum", "k-skipped", "lanes", "scale-neighbour"];

/// Rows of inputs, columns of results, offsets modulo a number.
pub(super) fn wrapped(draw: &mut Draw) -> Kind {
    match draw.below(3) {
        0 => {
            let (stage, _) = draw.of(PRODUCTS);
            let n = 1 + draw.below(6);
            let ends = draw.one_in(2);
            let mistake = by(move |engine, op| {
                let Op::MatMul { x, weight } = op else { return Err(misplaced(op)) };
                let (k, values) = (x.cols(), x.to_f32());
                let of = |row: usize| if ends { row.min(n - 1) } else { row % n };
                engine.run(&Op::MatMul { x: changed(x, |row, i, _| values[of(row) * k + i]), weight })
            });
            let how = if ends { format!("rows from {n} on as {}", n - 1) } else { format!("rows modulo {n}") };
            let what = format!("the input of {how} at {stage}");
            let how = if ends { format!("rows from {n} on taken as {}", n - 1) } else { how };
            let mut says = vec![format!("the input of {how}"), format!("the rows of {how}")];
            // The first of all rows, and what is of the last alone.
            match (n, ends) {
                (1, _) => says.extend(["the input of the first row".into(), "the first row in every row".into()]),
                (6, true) => says.extend(["row 6 holds row 5".into(), "the input of the row before".into()]),
                (6, false) => says.extend(["row 6 holds row 0".into(), "the input of the first row".into()]),
                _ => {}
            }
            Kind::new(what, stage, mistake, WRAPPED).says(says)
        }
        1 => {
            let (stage, _) = draw.of(QUANTIZED);
            let tile = draw.of(&[16usize, 32, 64]);
            let mistake = by(move |engine, op| {
                let right = engine.run(op)?;
                let (n, values) = (right.cols(), right.to_f32());
                Ok(each(&right, |row, column, _| values[row * n + column % tile]))
            });
            let says = ["the weights of rows", "the columns of columns"].map(|of| format!("{of} modulo {tile}"));
            Kind::new(format!("columns modulo {tile} at {stage}"), stage, mistake, WRAPPED).says(says)
        }
        _ => {
            let modulus = draw.of(&[512, 1024, 2048]);
            let from = "down[t * p.k * p.cols + column];";
            let edit = format!("down[(t * p.k * p.cols) % {modulus}u + column];");
            let by = in_kernels(vec![("combine", vec![(from, edit)])]);
            let what = format!("the first slot's offset modulo {modulus} at moe_out");
            // A position's slots have so many values: of any divisor of it the first slot's offset is 0.
            let row = 256 * draw.slots();
            let same = [512, 1024, 2048].into_iter().filter(|n| row.is_multiple_of(*n) && row.is_multiple_of(modulus));
            let says = same.chain([modulus]).map(|n| format!("the first slot's outputs at the offset modulo {n}"));
            Kind::new(what, Stage::MoeOut, by, &["wrapped"]).says(says)
        }
    }
}

/// Of the right values in other rows, that they are moved is as true as that they are read elsewhere.
const WRAPPED: &[&str] = &["wrapped", "misplaced", "input-row"];

/// Norms with another eps or weight, or of other values.
pub(super) fn normalised(draw: &mut Draw) -> Kind {
    let stage = draw.of(&[Stage::AttnNorm, Stage::FfnNorm, Stage::QNorm, Stage::FinalNorm]);
    let wrong = draw.of(&[1e-3f32, 2e-3, 5e-2, 0.1, 1e-4, 0.37]);
    let kind = draw.below(4);
    let mistake = by(move |engine, op| {
        let Op::RmsNorm { ref x, weight, eps, keep } = *op else { return Err(misplaced(op)) };
        let other = |f: fn(f32) -> f32| {
            let values = decoded_as(weight, |_, term| term.value())?;
            of_values(weight, weight.cols, &values.into_iter().map(f).collect::<Vec<_>>())
        };
        match kind {
            0 | 1 => engine.run(&Op::RmsNorm { x: x.clone(), weight, eps: wrong, keep }),
            2 => engine.run(&Op::RmsNorm { x: x.clone(), weight: &other(|_| 1.0)?, eps, keep }),
            _ => engine.run(&Op::RmsNorm { x: x.clone(), weight: &other(|w| w + 1.0)?, eps, keep }),
        }
    });
    let (what, explained, says): (_, &'static [&'static str], _) = match kind {
        0 | 1 => (format!("eps {wrong:e}"), &["norm-eps"], format!("the norm with eps {wrong:e} for")),
        2 => ("no weight".into(), &["norm-weight"], "the norm without its weight".into()),
        _ => ("a weight with 1 added".into(), &["norm-weight"], "the norm with 1 + weight".into()),
    };
    Kind::new(format!("{what} at {stage}"), stage, mistake, explained).says([says]).in_decoding_too()
}
