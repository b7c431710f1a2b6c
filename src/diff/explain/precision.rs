//! Numbers coarser than the contract says: inputs, weights, sums, results.
//!
//! Rounding inputs, weights and results is deterministic, so the variant is exact. What a sum in a coarse format gives depends on
//! its order; the orders that kernels use are tried, each simulated rounding by rounding.

use super::case::{Evidence, Variant};
use crate::backend::oracle::dequant;
use crate::backend::{Contract, Precision};
use crate::error::Result;
use crate::formula::Values;
use crate::formula::attention::{Context, Scores};
use crate::formula::linear::{Decode, Linear};
use crate::formula::norm::Norm;
use crate::formula::pointwise::{Gated, Sum};
use crate::formula::precision::{CoarseSums, FORMATS, FloatFormat, Int8, Int8Row, SINGLE, cut_to_bf16, cut_to_f16};
use crate::formula::rope::Rope;
use crate::formula::routing::Combined;
use crate::formula::softmax::{Form, Softmax};
use crate::op::Op;

/// How an operand is rounded: to which format, and in words.
type Rounding = (&'static str, fn(f64) -> f64);

/// To nearest, as most do; cut off; halves whose subnormals are flushed.
const ROUNDINGS: [Rounding; 6] = [
    ("rounded to f16", FORMATS[0].round),
    ("rounded to bf16", FORMATS[1].round),
    ("cut off to f16", cut_to_f16),
    ("cut off to bf16", cut_to_bf16),
    ("rounded to f16, subnormals to 0", |x| normal((FORMATS[0].round)(x))),
    ("cut off to f16, subnormals to 0", |x| normal(cut_to_f16(x))),
];

/// What a contract rounds, left as it is.
const AS_GIVEN: Rounding = ("as they are", |x| x);

fn normal(half: f64) -> f64 {
    if half.abs() < 6.103515625e-5 { 0.0 } else { half }
}

/// Operands rounded, each alone and all together.
pub fn inputs<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = Vec::new();
    // Inside a segment each variant takes a run of the rest of it: only the usual ones.
    // Factors of rope and sinks of a softmax are no matrix.
    let aside = matches!(case.scene.op, Op::Rope { .. } | Op::AttnProbs { .. });
    let products = !aside && case.scene.op.weight().is_some()
        || matches!(case.scene.op, Op::AttnScores { .. } | Op::AttnContext { .. });
    let roundings = match (case.unseen, products) {
        (true, false) => &[],
        (true, true) => &ROUNDINGS[..2],
        (false, _) => &ROUNDINGS[..],
    };
    // Where the contract rounds an operand already, it may be rounded once more, or otherwise, or not at all.
    let once_more = roundings.iter().map(|(how, round)| (how.to_string(), *round, &case.inputs, false));
    let otherwise = std::iter::once(&AS_GIVEN)
        .chain(roundings)
        .map(|(how, round)| (format!("{how}, not as the contract has it"), *round, &case.given, true));
    let otherwise = otherwise.filter(|_| products && (0..case.inputs.len()).any(|n| case.emulation.rounds(n)));
    for (how, round, from, instead) in once_more.chain(otherwise) {
        let values = |n: usize| -> Vec<f64> { from[n].iter().map(|x| round(*x)).collect() };
        let lost = |n: usize| from[n].iter().filter(|x| x.is_finite() && !round(**x).is_finite()).count();
        let words = |operands: &str, of: &[usize]| match of.iter().map(|n| lost(*n)).sum() {
            0usize => format!("{operands} {how}"),
            lost => format!("{operands} {how}, {lost} of them beyond its range: infinite"),
        };
        if let Some(weight) = case.scene.op.weight()
            && !(aside || matches!(case.scene.op, Op::RmsNorm { .. }))
        {
            let decode = || -> Decode<'a> {
                Box::new(move |expert, row, product, offset| {
                    offset.fill(0.0);
                    dequant::each(weight.ty, weight.row(expert, row), |i, term| product[i] = round(term.value()))
                })
            };
            let read = |l: &mut Linear<'a>| {
                l.read(values(0).into());
                if instead {
                    (l.ties, l.blocks, l.exact_run) = (Vec::new(), None, 1);
                }
            };
            all.extend(case.changed(words("inputs", &[0]), read)?);
            if instead {
                continue;
            }
            all.extend(case.changed(format!("weights {how}"), |l: &mut Linear<'a>| l.decode = decode())?);
            let both = |l: &mut Linear<'a>| {
                l.read(values(0).into());
                l.decode = decode();
            };
            all.extend(case.changed(words("inputs and weights", &[0]), both)?);
            continue;
        }
        let named: &[(&str, &[usize])] = match case.scene.op {
            Op::AttnScores { .. } => &[("k", &[1]), ("q", &[0]), ("q and k", &[0, 1])],
            Op::AttnContext { .. } => &[("v", &[1]), ("probabilities", &[0]), ("probabilities and v", &[0, 1])],
            Op::RmsNorm { .. } | Op::Rope { .. } => &[("inputs", &[0])],
            Op::AttnProbs { .. } => &[("scores", &[0])],
            Op::RouterProbs { .. } => &[("logits", &[0])],
            Op::SwiGlu { .. } => &[("gate and up", &[0, 1]), ("gate", &[0]), ("up", &[1])],
            Op::SigmoidGate { .. } => &[("the shared expert's output", &[0])],
            Op::Combine { .. } => {
                &[("the experts' outputs", &[0]), ("the weights", &[1]), ("outputs and weights", &[0, 1])]
            }
            Op::Add { .. } => &[("both addends", &[0, 1]), ("the residual", &[0]), ("what is added", &[1])],
            _ => &[],
        };
        for (name, of) in named {
            if instead && !of.iter().all(|n| case.emulation.rounds(*n)) {
                continue;
            }
            let what = words(name, of);
            let value = |n: usize| of.contains(&n).then(|| values(n));
            let set = |at: &mut Values<'a>, n: usize| {
                if let Some(values) = value(n) {
                    *at = values.into();
                }
            };
            let variant = match case.scene.op {
                Op::AttnScores { .. } => case.changed(what, |s: &mut Scores<'a>| {
                    set(&mut s.q, 0);
                    set(&mut s.k, 1);
                    of.iter().filter(|_| instead).for_each(|n| s.ties[*n] = None);
                })?,
                Op::AttnContext { .. } => case.changed(what, |c: &mut Context<'a>| {
                    set(&mut c.p, 0);
                    set(&mut c.v, 1);
                    of.iter().filter(|_| instead).for_each(|n| c.ties[*n] = None);
                })?,
                Op::RmsNorm { .. } => case.changed(what, |n: &mut Norm<'a>| set(&mut n.x, 0))?,
                Op::Rope { .. } => case.changed(what, |r: &mut Rope<'a>| set(&mut r.x, 0))?,
                Op::SwiGlu { .. } => {
                    case.changed(what, |g: &mut Gated<'a>| (set(&mut g.gate, 0), set(&mut g.up, 1)).0)?
                }
                Op::SigmoidGate { .. } => case.changed(what, |g: &mut Gated<'a>| set(&mut g.up, 0))?,
                Op::Combine { .. } => {
                    case.changed(what, |c: &mut Combined<'a>| (set(&mut c.down, 0), set(&mut c.weights, 1)).0)?
                }
                Op::Add { .. } => {
                    let change = |s: &mut Sum<'a>| {
                        let [a, b] = &mut s.operands;
                        set(a, 0);
                        set(b, 1);
                    };
                    case.changed(what, change)?
                }
                _ => case.changed(what, |s: &mut Softmax<'a>| set(&mut s.x, 0))?,
            };
            all.extend(variant);
        }
    }
    Ok(all)
}

/// The right result, rounded once more. Where it lies so near to the middle of two values that the stage's own error decides, both
/// are right.
pub fn output<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    if case.scene.site.stage.is_ids() {
        return Ok(vec![]);
    }
    let variant = |format: FloatFormat| {
        Variant::each(format!("the result rounded to {}", format.name), move |i| {
            case.right(i).rounded(format.round, case.output[i])
        })
    };
    Ok(FORMATS.into_iter().map(variant).collect())
}

/// Blocks of another size or with another scale than the contract has, where it has some.
/// An input that could have either of two codes moves every sum that it is in by up to a step times its weight.
pub fn int8<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(mut stated) = case.stated::<Linear<'a>>()? else { return Ok(vec![]) };
    // Of the inputs before any rounding: codes of codes are another engine's.
    stated.read(case.given[0].clone().into());
    let (k, given) = (stated.k, stated.x);
    let mut all = Vec::new();
    let mut blocks = vec![32, 256, 128, 64, 16];
    blocks.push(k);
    blocks.dedup();
    for block in blocks.into_iter().filter(|b| *b <= k) {
        for (half_scale, signed, kind) in
            [(true, false, "a half as scale"), (false, false, "an f32 scale"), (false, true, "a signed f32 scale")]
        {
            let int8 = Int8 { block, half_scale, signed };
            let what = format!("inputs as int8 with one scale per {block} ({kind})");
            let rows: Vec<Int8Row> = given.chunks(k).map(|row| int8.row(row)).collect();
            let x: Vec<f64> = rows.iter().flat_map(|row| &row.values).copied().collect();
            let steps = rows.iter().flat_map(|row| &row.steps).copied().enumerate();
            let ties = steps.filter(|(_, step)| *step > 0.0).collect();
            all.extend(case.changed(what, |l: &mut Linear<'a>| {
                (l.x, l.ties, l.blocks, l.exact_run) = (x.into(), ties, None, l.exact_run.min(block));
            })?);
        }
    }
    Ok(all)
}

/// Sums in a coarse format. If the order is one of [`orders`], simulating it rounding by rounding accounts for nearly all of the error;
/// not for all, since a sum that lies between two values of the format falls to one side or the other by an f32 rounding. If it is
/// another, f16 sums still leave a mark: they are multiples of powers of two that f32 sums are only by chance.
pub fn sums<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    if let Some(stated) = case.stated::<Softmax<'a>>()? {
        return softmax_sums(case, &stated);
    }
    let mut all = Vec::new();
    for format in FORMATS {
        let contract = Contract { accumulator: format.precision, ..case.scene.contract };
        let what = format!("{} sums, in another order", format.name);
        let (terms, bound) = if let Some(linear) = case.stated::<Linear<'a>>()? {
            (linear.k, Variant::under(contract, what, linear))
        } else if let Some(scores) = case.stated::<Scores<'a>>()? {
            (scores.sizes.head_dim, Variant::under(contract, what, scores))
        } else if let Some(context) = case.stated::<Context<'a>>()? {
            (context.sizes.keys, Variant::under(contract, what, context))
        } else {
            continue;
        };
        // An error beyond what such sums could leave needs no simulation.
        if case.residual(&case.probe, &bound.at(&case.probe)?)? > 1.0 {
            continue;
        }
        let simulated = |what: String, sums: CoarseSums| match case.scene.op {
            Op::AttnScores { .. } => case.changed(what, |s: &mut Scores<'a>| s.coarse = Some(sums)),
            Op::AttnContext { .. } => case.changed(what, |c: &mut Context<'a>| c.coarse = Some(sums)),
            _ => case.changed(what, |l: &mut Linear<'a>| l.coarse = Some(sums)),
        };
        for sums in orders(terms, format) {
            let what = format!("{} sums, {}", format.name, words(&sums));
            all.extend(simulated(what, sums)?.map(Variant::loosely));
        }
        if format.precision == Precision::F16 && !matches!(case.scene.op, Op::AttnScores { .. }) {
            let one_by_one = orders(terms, SINGLE).next().map(|sums| simulated("f32 sums".into(), sums)).transpose()?;
            if let Some(in_f32) = one_by_one.flatten() {
                all.extend(on_the_grid_of_halves(case, bound, &in_f32)?);
            }
        }
    }
    Ok(all)
}

/// `bound`, if the wrong values are multiples of larger powers of two than sums of the same terms in f32 are, one after the other (`in_f32`), and as
/// evidence how seldom those would be. What a sum is a multiple of is what its terms and partial sums make it. Of f32 sums a half, a quarter, … are
/// multiples of one power of two more, of two, …, so that of n such the difference to n others is M powers or more on average with a chance of at
/// most (1.5·1.5⁻ᴹ)ⁿ (Chernoff's bound at ln 1.5), beside what another order makes.
fn on_the_grid_of_halves<'a>(
    case: &'a Evidence<'a>,
    bound: Variant<'a>,
    in_f32: &Variant<'_>,
) -> Result<Option<Variant<'a>>> {
    /// The smallest half.
    const LEAST: i32 = -24;
    /// Powers that another order of sums in f32 may make: it was 1.6 with this program's lanes, where f16 in 12 and 32 lanes makes 8 and 4.6.
    const OF_ORDER: f64 = 2.0;
    let (mut more, mut n) = (0, 0);
    for (i, other) in case.wrong.iter().zip(in_f32.at(&case.wrong)?) {
        let (Some(bit), Some(other)) = (lowest_bit(case.output[*i]), lowest_bit(other.value)) else { continue };
        if bit < LEAST {
            return Ok(None);
        }
        (more, n) = (more + bit - other, n + 1);
    }
    let evidence = (f64::from(more) - f64::from(n) * (1.0 + OF_ORDER)) * 1.5f64.ln();
    let what = "f16 sums (the wrong values are multiples of larger powers of two than f32 sums are, and off by what such sums may be)";
    let variant = Variant::new(what, move |indices| bound.at(indices)).with_evidence(evidence);
    Ok((evidence > 0.0).then_some(variant))
}

/// The largest n for which a value is a multiple of 2ⁿ; `None` of 0 and of what is not finite.
fn lowest_bit(value: f64) -> Option<i32> {
    if value == 0.0 || !value.is_finite() {
        return None;
    }
    let bits = value.to_bits();
    let fraction = bits & ((1 << 52) - 1) | 1 << 52; // of a normal f64, as every f32 is one
    Some((bits >> 52 & 0x7ff) as i32 - 1075 + fraction.trailing_zeros() as i32)
}

/// Exponentials of a softmax in a coarse format, their sum, or both. Whatever the order of the sum was, it is a number of its format, and the
/// output says which.
fn softmax_sums<'a>(case: &'a Evidence<'a>, stated: &Softmax<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = Vec::new();
    if stated.form != Form::Softmax {
        return Ok(all);
    }
    for format in FORMATS {
        let name = format.name;
        let what = format!("a softmax of exponentials rounded to {name}");
        all.extend(case.changed(what, |s: &mut Softmax<'a>| s.exponentials = Some(format))?);
        for exponentials in [None, Some(format)] {
            let Some((divisors, evidence)) = divisors(case, stated, exponentials, format) else { continue };
            let also = if exponentials.is_some() { "exponentials and their sum" } else { "the exponentials' sum" };
            let change = |s: &mut Softmax<'a>| (s.exponentials, s.divisors) = (exponentials, Some(divisors));
            let what = format!("a softmax with {also} in {name}");
            all.extend(case.changed(what, change)?.map(|variant| variant.with_evidence(evidence)));
        }
    }
    Ok(all)
}

/// For each row of a softmax, by its largest share, what its exponentials were divided by, if that is a number of `format` that so many
/// roundings of a sum may lead to. And what speaks for it, in nats: any other divisor would lie as near to a number of the format only by
/// chance, which is the share of the step between two of them that the output's rounding takes up.
fn divisors(
    case: &Evidence<'_>,
    stated: &Softmax<'_>,
    exponentials: Option<FloatFormat>,
    format: FloatFormat,
) -> Option<(Vec<f64>, f64)> {
    if case.unseen {
        return None;
    }
    let (cols, round) = (stated.cols, |e: f64| exponentials.map_or(e, |format| (format.round)(e)));
    let mut found = Vec::with_capacity(case.output.len() / cols);
    let mut nats = 0.0;
    let mut wrong = case.wrong.iter().peekable();
    for (row, output) in case.output.chunks(cols).enumerate() {
        let entries = stated.entries(row);
        let max = entries.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let all: Vec<f64> = entries.iter().map(|x| round((x - max).exp())).collect();
        let (begin, sum) = (stated.seen.of(row % stated.tokens, cols).start, all.iter().sum::<f64>());
        let shown = entries.len() - usize::from(stated.sinks.is_some());
        let largest = (0..shown).max_by(|a, b| entries[*a].total_cmp(&entries[*b]))?;
        let divisor = (format.round)(all[largest] / output[begin + largest]);
        let may_be_off = all.len() as f64 * format.u * sum;
        if divisor.is_nan() || (divisor - sum).abs() > may_be_off {
            return None;
        }
        let in_row = std::iter::from_fn(|| wrong.next_if(|i| **i / cols == row)).count();
        if in_row > 0 {
            let rounding = case.scene.floor[row * cols + begin + largest] / case.exact[row * cols + begin + largest];
            nats += (format.u / (2.0 * rounding)).ln().max(0.0);
        }
        found.push(divisor);
    }
    Some((found, nats))
}

/// The orders in which kernels sum.
fn orders(k: usize, format: FloatFormat) -> impl Iterator<Item = CoarseSums> {
    let lanes = [1, 8, 16, 32, 64].into_iter();
    let all = lanes.flat_map(|lanes| [1, 4].into_iter().map(move |run| (lanes, run)));
    let all = all.filter(move |(lanes, run)| lanes * run <= k && (*lanes > 1 || *run == 1));
    let all = all.flat_map(|(lanes, run)| [1, 4].into_iter().map(move |width| (lanes, run, width)));
    all.flat_map(move |(lanes, run, width)| {
        [(false, false), (false, true), (true, false), (true, true)].map(|(rounded_products, coarse_tree)| CoarseSums {
            format,
            lanes,
            run,
            width,
            rounded_products,
            coarse_tree,
        })
    })
}

fn words(sums: &CoarseSums) -> String {
    let mut words = match (sums.lanes, sums.width) {
        (1, 1) => "one term after the other".to_string(),
        (lanes, width) => format!("in {lanes} × {width} lanes of {} terms at a time", sums.run),
    };
    if sums.rounded_products {
        words += ", of rounded products";
    }
    if sums.coarse_tree {
        words += ", the lanes' sums as well";
    }
    words
}
