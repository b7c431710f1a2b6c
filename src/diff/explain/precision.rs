//! Numbers coarser than the contract says: inputs, weights, sums, results.
//!
//! Rounding inputs, weights and results is deterministic, so the variant is exact. What a sum in a coarse format gives depends on
//! its order; the orders that kernels use are tried, each simulated rounding by rounding.

use super::case::{Evidence, Variant};
use crate::backend::oracle::dequant;
use crate::backend::{Contract, Precision};
use crate::error::Result;
use crate::formula::attention::{Context, Scores};
use crate::formula::linear::{Decode, Linear};
use crate::formula::precision::{CoarseSums, FORMATS, FloatFormat, Int8, Int8Row};

pub fn inputs<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = Vec::new();
    for format in FORMATS {
        let rounded = |n: usize| format.rounded(&case.inputs[n]).into();
        let Some(weight) = case.scene.op.weight() else {
            let what = format!("operands rounded to {}", format.name);
            all.extend(case.changed(&*what, |s: &mut Scores<'a>| (s.q, s.k) = (rounded(0), rounded(1)))?);
            all.extend(case.changed(what, |c: &mut Context<'a>| (c.p, c.v) = (rounded(0), rounded(1)))?);
            continue;
        };
        let decode = || -> Decode<'a> {
            Box::new(move |expert, row, product, offset| {
                offset.fill(0.0);
                dequant::each(weight.ty, weight.row(expert, row), |i, term| product[i] = (format.round)(term.value()))
            })
        };
        let what = |which: &str| format!("{which} rounded to {}", format.name);
        all.extend(case.changed(what("inputs"), |l: &mut Linear<'a>| l.x = rounded(0))?);
        all.extend(case.changed(what("weights"), |l: &mut Linear<'a>| l.decode = decode())?);
        let both = |l: &mut Linear<'a>| (l.x, l.decode) = (rounded(0), decode());
        all.extend(case.changed(what("inputs and weights"), both)?);
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

/// An input that could have either of two codes moves every sum that it is in by up to a step times its weight.
pub fn int8<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(Linear { k, .. }) = case.stated()? else { return Ok(vec![]) };
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
            let rows: Vec<Int8Row> = case.inputs[0].chunks(k).map(|row| int8.row(row)).collect();
            let x: Vec<f64> = rows.iter().flat_map(|row| &row.values).copied().collect();
            let steps = rows.iter().flat_map(|row| &row.steps).copied().enumerate();
            let ties = steps.filter(|(_, step)| *step > 0.0).collect();
            all.extend(case.changed(what, |l: &mut Linear<'a>| (l.x, l.ties) = (x.into(), ties))?);
        }
    }
    Ok(all)
}

/// Sums in a coarse format. If the order is one of [`orders`], simulating it rounding by rounding accounts for nearly all of the error;
/// not for all, since a sum that lies between two values of the format falls to one side or the other by an f32 rounding. If it is
/// another, f16 sums still leave a mark: they are multiples of 2⁻²⁴, the smallest half, which f32 sums are only by chance.
pub fn sums<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = Vec::new();
    for format in FORMATS {
        let Some(linear) = case.stated::<Linear<'a>>()? else { continue };
        let (k, contract) = (linear.k, Contract { accumulator: format.precision, ..case.scene.contract });
        let bound = Variant::under(contract, format!("{} sums, in another order", format.name), linear);
        // An error beyond what such sums could leave needs no simulation.
        if case.residual(&case.probe, &bound.at(&case.probe)?)? > 1.0 {
            continue;
        }
        for sums in orders(k, format) {
            let what = format!("{} sums, {}", format.name, words(&sums));
            let simulated = case.changed(what, |l: &mut Linear<'a>| l.coarse = Some(sums))?;
            all.extend(simulated.map(Variant::loosely));
        }
        if format.precision == Precision::F16 {
            all.extend(on_the_grid_of_halves(case, bound));
        }
    }
    Ok(all)
}

/// `bound`, if the wrong values are multiples of 2⁻²⁴, and as evidence the bits that f32 would have had below that.
fn on_the_grid_of_halves<'a>(case: &'a Evidence<'a>, bound: Variant<'a>) -> Option<Variant<'a>> {
    const GRID: i32 = -24;
    let multiple = |y: f64| (y * 2f64.powi(-GRID)).fract() == 0.0;
    if !case.wrong.iter().all(|i| multiple(case.output[*i])) {
        return None;
    }
    let bits = |y: f64| if y == 0.0 { 0 } else { (GRID - (y.abs().log2().floor() as i32 - 23)).max(0) };
    let spare: i32 = case.wrong.iter().map(|i| bits(case.output[*i])).sum();
    let what = "f16 sums (every wrong value is a multiple of the smallest half, and off by what such sums may be)";
    let variant = Variant::new(what, move |indices| bound.at(indices));
    Some(variant.with_evidence(spare as f64 * std::f64::consts::LN_2))
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
