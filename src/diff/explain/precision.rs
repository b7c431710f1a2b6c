//! Numbers coarser than the contract says: inputs, weights, sums, results.
//!
//! Rounding inputs, weights and results is deterministic, so the variant is exact. What a sum in a coarse format gives depends on
//! its order; the orders that kernels use are tried, each simulated rounding by rounding.

use std::sync::Arc;

use super::attention;
use super::case::{Case, Point, Variant};
use super::linear::{Decode, Linear};
use crate::backend::oracle::dequant;
use crate::backend::{Contract, Precision};
use crate::error::Result;
use crate::formula::rounding::TINY;
use crate::formula::sum::roundoff;

/// A storage format.
#[derive(Clone, Copy)]
struct Format {
    name: &'static str,
    round: fn(f64) -> f64,
    /// Unit roundoff.
    u: f64,
    precision: Precision,
}

const FORMATS: [Format; 2] = [
    Format { name: "f16", round: to_f16, u: 1.0 / 2048.0, precision: Precision::F16 },
    Format { name: "bf16", round: |x| to_bits::<8>(x), u: 1.0 / 256.0, precision: Precision::Bf16 },
];

/// To the nearest number of `BITS` significant bits: Veltkamp's splitting (Dekker 1971, *A floating-point technique for extending the
/// available precision*), which is a few operations where a conversion is many.
fn to_bits<const BITS: i32>(x: f64) -> f64 {
    let c = x * ((1i64 << (53 - BITS)) + 1) as f64;
    if c.is_finite() { c - (c - x) } else { x }
}

/// To the nearest half, subnormal and infinite ones included.
fn to_f16(x: f64) -> f64 {
    const SMALLEST: f64 = 5.960464477539063e-8; // 2^-24
    if x.abs() < 6.103515625e-5 {
        (x / SMALLEST).round_ties_even() * SMALLEST
    } else if x.abs() >= 65520.0 {
        f64::INFINITY.copysign(x)
    } else {
        to_bits::<11>(x)
    }
}

pub fn inputs<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = Vec::new();
    for format in FORMATS {
        let rounded = |x: &[f64]| -> Vec<f64> { x.iter().map(|x| (format.round)(*x)).collect() };
        let Some((mut linear, weight)) = Linear::stated(case) else {
            let operands = [rounded(&case.inputs[0]), rounded(&case.inputs[1])];
            all.extend(attention::with_operands(case, format!("operands rounded to {}", format.name), operands));
            continue;
        };
        let x = Arc::new(rounded(&case.inputs[0]));
        let decode = || -> Decode<'a> {
            Box::new(move |expert, row, product, offset| {
                offset.fill(0.0);
                dequant::each(weight.ty, weight.row(expert, row), |i, term| product[i] = (format.round)(term.value()))
            })
        };
        linear.x = x.clone();
        all.push(linear.variant(case, format!("inputs rounded to {}", format.name)));
        for (x, what) in [(case.inputs[0].clone(), "weights"), (x, "inputs and weights")] {
            if let Some((linear, _)) = Linear::stated(case) {
                let linear = Linear { x, decode: decode(), ..linear };
                all.push(linear.variant(case, format!("{what} rounded to {}", format.name)));
            }
        }
    }
    Ok(all)
}

/// The right result, rounded once more. Where it lies so near to the middle of two values that the stage's own error decides, both
/// are right.
pub fn output<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    if case.scene.site.stage.is_ids() {
        return Ok(vec![]);
    }
    let variant = |format: Format| {
        Variant::each(format!("the result rounded to {}", format.name), move |i| {
            let right = case.right(i);
            let y = (format.round)(right.value);
            let (low, high) = ((format.round)(right.value - right.floor), (format.round)(right.value + right.floor));
            let out = case.output[i];
            // The neighbour that the stage's own error can reach, if that is where the output is.
            let y = if out == low || out == high { out } else { y };
            Point::new(y, TINY)
        })
    };
    Ok(FORMATS.into_iter().map(variant).collect())
}

/// How a block of activations becomes int8.
#[derive(Clone, Copy)]
struct Int8 {
    block: usize,
    /// The scale is kept as a half: ggml's Q8_0 and Q8_1. Q8_K keeps f32.
    half_scale: bool,
    /// The element of largest magnitude becomes −127 (Q8_K), so the scale has its sign.
    signed: bool,
}

impl Int8 {
    /// The block's values after the round trip, and for each how far the next code is if the value lies so near to the middle of two
    /// that the arithmetic of the scale decides.
    fn round(self, x: &[f64]) -> Vec<(f64, f64)> {
        let largest = x.iter().copied().fold(0.0, |m: f64, x| if x.abs() > m.abs() { x } else { m });
        if largest == 0.0 || !largest.is_finite() {
            return x.iter().map(|x| (*x * 0.0, 0.0)).collect();
        }
        let step = if self.signed { -largest / 127.0 } else { largest.abs() / 127.0 };
        let kept = if self.half_scale { half::f16::from_f32(step as f32).to_f64() } else { step as f32 as f64 };
        x.iter()
            .map(|x| {
                let code = x / step;
                // Two f32 roundings of a number up to 127.
                let tie = (code.fract().abs() - 0.5).abs() < 4.0 * 127.0 * 2f64.powi(-24);
                (code.round() * kept, if tie { kept.abs() } else { 0.0 })
            })
            .collect()
    }
}

pub fn int8<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some((stated, _)) = Linear::stated(case) else { return Ok(vec![]) };
    let k = stated.k;
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
            let rounded: Vec<(f64, f64)> =
                case.inputs[0].chunks(k).flat_map(|row| row.chunks(int8.block).flat_map(|x| int8.round(x))).collect();
            let Some((linear, weight)) = Linear::stated(case) else { continue };
            let (slots, n) = (linear.slots.clone(), linear.n);
            let x: Vec<f64> = rounded.iter().map(|r| r.0).collect();
            let undecided: Vec<(usize, f64)> =
                rounded.iter().enumerate().filter(|(_, r)| r.1 > 0.0).map(|(i, r)| (i, r.1)).collect();
            let exact = Linear { x: Arc::new(x), ..linear }.variant(case, &*what);
            all.push(Variant::new(what, move |indices| {
                let mut points = exact.at(indices)?;
                if undecided.is_empty() {
                    return Ok(points);
                }
                // An input that could have either of two codes moves every sum that it is in by up to a step times its weight.
                let mut w = vec![0.0; k];
                let mut here = None;
                for (point, i) in points.iter_mut().zip(indices) {
                    let (row, expert) = slots[i / n];
                    let from = undecided.partition_point(|(at, _)| *at < row * k);
                    let to = undecided.partition_point(|(at, _)| *at < (row + 1) * k);
                    if from < to {
                        if here != Some((expert, i % n)) {
                            dequant::row(weight.ty, weight.row(expert, i % n), &mut w)?;
                            here = Some((expert, i % n));
                        }
                        point.floor +=
                            undecided[from..to].iter().map(|(at, step)| (w[at - row * k] * step).abs()).sum::<f64>();
                    }
                }
                Ok(points)
            }));
        }
    }
    Ok(all)
}

/// Sums in a coarse format. If the order is one of [`orders`], simulating it rounding by rounding accounts for nearly all of the error;
/// not for all, since a sum that lies between two values of the format falls to one side or the other by an f32 rounding. If it is
/// another, f16 sums still leave a mark: they are multiples of 2⁻²⁴, the smallest half, which f32 sums are only by chance.
pub fn sums<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some((stated, weight)) = Linear::stated(case) else { return Ok(vec![]) };
    let (k, n) = (stated.k, stated.n);
    let slots = Arc::new(stated.slots);
    let u = roundoff(&case.scene.contract);
    // The sample's weights, which every order needs.
    let mut sampled: Vec<(usize, usize, Vec<f64>)> = Vec::new();
    for (row, expert) in case.probe.iter().map(|i| (i % n, slots[i / n].1)) {
        if sampled.iter().all(|(r, e, _)| (*r, *e) != (row, expert)) {
            let mut w = vec![0.0; k];
            dequant::row(weight.ty, weight.row(expert, row), &mut w)?;
            sampled.push((row, expert, w));
        }
    }
    let sampled = Arc::new(sampled);
    let mut all = Vec::new();
    for format in FORMATS {
        let Some((linear, _)) = Linear::stated(case) else { continue };
        let coarse = Contract { accumulator: format.precision, ..case.scene.contract };
        let bound = linear.under(case, coarse, format!("{} sums, in another order", format.name));
        // An error beyond what such sums could leave needs no simulation.
        if case.residual(&case.probe, &bound.at(&case.probe)?)? > 1.0 {
            continue;
        }
        for order in orders(k) {
            let (slots, x, sampled) = (slots.clone(), case.inputs[0].clone(), sampled.clone());
            let variant = Variant::new(format!("{} sums, {order}", format.name), move |indices| {
                let mut decoded = vec![0.0; k];
                let mut points = Vec::with_capacity(indices.len());
                for i in indices {
                    let (row, expert) = slots[i / n];
                    let w = match sampled.iter().find(|(r, e, _)| (*r, *e) == (i % n, expert)) {
                        Some((_, _, w)) => w,
                        None => {
                            dequant::row(weight.ty, weight.row(expert, i % n), &mut decoded)?;
                            &decoded
                        }
                    };
                    let x = &x[row * k..][..k];
                    let y = order.sum(format, x, w);
                    // A few roundings that fall the other way are each a step of the format, at the size of the sum.
                    let size = x.iter().zip(w).map(|(x, w)| x * x * w * w).sum::<f64>().sqrt();
                    points.push(Point::new(y, 4.0 * format.u * y.abs().max(size) + u * y.abs() + TINY));
                }
                Ok(points)
            });
            all.push(variant.loosely());
        }
        if format.precision == Precision::F16 {
            all.extend(on_the_grid_of_halves(case, bound));
        }
    }
    Ok(all)
}

/// `bound`, if the wrong values are multiples of 2⁻²⁴, and as evidence the bits that f32 would have had below that.
fn on_the_grid_of_halves<'a>(case: &'a Case<'a>, bound: Variant<'a>) -> Option<Variant<'a>> {
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

/// An order of summation: `lanes` take turns over runs of `run` terms, each lane with `width` sums that take turns over single terms.
#[derive(Clone, Copy)]
struct Order {
    lanes: usize,
    run: usize,
    width: usize,
    /// Products are rounded to the format before they are added.
    rounded_products: bool,
    /// The lanes' sums are added in the format as well, not in f32.
    coarse_tree: bool,
}

fn orders(k: usize) -> impl Iterator<Item = Order> {
    let lanes = [1, 8, 16, 32, 64].into_iter();
    let all = lanes.flat_map(|lanes| [1, 4].into_iter().map(move |run| (lanes, run)));
    let all = all.filter(move |(lanes, run)| lanes * run <= k && (*lanes > 1 || *run == 1));
    let all = all.flat_map(|(lanes, run)| [1, 4].into_iter().map(move |width| (lanes, run, width)));
    all.flat_map(|(lanes, run, width)| {
        [(false, false), (false, true), (true, false), (true, true)].map(|(rounded_products, coarse_tree)| Order {
            lanes,
            run,
            width,
            rounded_products,
            coarse_tree,
        })
    })
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.lanes, self.width) {
            (1, 1) => write!(f, "one term after the other")?,
            (lanes, width) => write!(f, "in {lanes} × {width} lanes of {} terms at a time", self.run)?,
        }
        if self.rounded_products {
            write!(f, ", of rounded products")?;
        }
        if self.coarse_tree {
            write!(f, ", the lanes' sums as well")?;
        }
        Ok(())
    }
}

impl Order {
    fn sum(self, format: Format, x: &[f64], w: &[f64]) -> f64 {
        let product = |x: f64, w: f64| if self.rounded_products { (format.round)(x * w) } else { x * w };
        let join = |x: f64| if self.coarse_tree { (format.round)(x) } else { x as f32 as f64 };
        let mut sums = vec![0.0; self.lanes * self.width];
        for (i, (x, w)) in x.iter().zip(w).enumerate() {
            let sum = &mut sums[i / self.run % self.lanes + i % self.width * self.lanes];
            *sum = (format.round)(*sum + product(*x, *w));
        }
        // All counts are powers of two.
        while sums.len() > 1 {
            let half = sums.len() / 2;
            sums = (0..half).map(|i| join(sums[i] + sums[i + half])).collect();
        }
        sums[0]
    }
}

#[cfg(test)]
mod tests {
    use super::{to_bits, to_f16};

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut x = 1e-9f32;
        while x < 1e6 {
            for x in [x, -x] {
                assert_eq!(to_f16(x as f64), half::f16::from_f32(x).to_f64(), "{x}");
                assert_eq!(to_bits::<8>(x as f64), half::bf16::from_f32(x).to_f64(), "{x}");
            }
            x *= 1.0037;
        }
        assert!(to_f16(f64::NAN).is_nan());
    }
}
