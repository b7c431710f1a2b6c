//! Numbers coarser than the contract says: inputs, weights, sums, results.
//!
//! Rounding inputs, weights and results is deterministic, so the variant is exact. What a sum in a coarse format gives depends on
//! its order; the orders that kernels use are tried, each simulated rounding by rounding.

use std::sync::Arc;

use super::super::floor::TINY;
use super::super::floor::sum::roundoff;
use super::attention;
use super::case::{Case, Point, Variant};
use super::linear::{Decode, Linear};
use crate::backend::oracle::dequant;
use crate::error::Result;

/// A storage format.
#[derive(Clone, Copy)]
struct Format {
    name: &'static str,
    round: fn(f64) -> f64,
    /// Unit roundoff.
    u: f64,
}

const FORMATS: [Format; 2] = [
    Format { name: "f16", round: |x| half::f16::from_f32(x as f32).to_f64(), u: 1.0 / 2048.0 },
    Format { name: "bf16", round: |x| half::bf16::from_f32(x as f32).to_f64(), u: 1.0 / 256.0 },
];

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

/// Sums in a coarse format: one after the other, in blocks, and in lanes that a tree or a wider sum adds up.
pub fn sums<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some((stated, weight)) = Linear::stated(case) else { return Ok(vec![]) };
    let (k, n) = (stated.k, stated.n);
    let slots = Arc::new(stated.slots);
    let u = roundoff(&case.scene.contract);
    let mut all = Vec::new();
    for format in FORMATS {
        for order in ORDERS.iter().filter(|o| o.lanes * o.run <= k) {
            let (slots, x) = (slots.clone(), case.inputs[0].clone());
            let variant = Variant::new(format!("{} sums, {}", format.name, order.what), move |indices| {
                let mut w = vec![0.0; k];
                let mut here = None;
                let mut points = Vec::with_capacity(indices.len());
                for i in indices {
                    let (row, expert) = slots[i / n];
                    if here != Some((expert, i % n)) {
                        dequant::row(weight.ty, weight.row(expert, i % n), &mut w)?;
                        here = Some((expert, i % n));
                    }
                    let y = order.sum(format, &x[row * k..][..k], &w);
                    // One rounding that falls the other way is one step of the format at the size of the sum.
                    let size = x[row * k..][..k].iter().zip(&w).map(|(x, w)| (x * w).abs()).fold(0.0, f64::max);
                    points.push(Point::new(y, format.u * y.abs().max(size) + u * y.abs() + TINY));
                }
                Ok(points)
            });
            all.push(variant.loosely());
        }
    }
    Ok(all)
}

/// An order of summation: `lanes` sums take turns over runs of `run` terms.
struct Order {
    what: &'static str,
    lanes: usize,
    run: usize,
}

const ORDERS: [Order; 7] = [
    Order { what: "one term after the other", lanes: 1, run: 1 },
    Order { what: "in 8 lanes", lanes: 8, run: 1 },
    Order { what: "in 16 lanes", lanes: 16, run: 1 },
    Order { what: "in 32 lanes", lanes: 32, run: 1 },
    Order { what: "in 64 lanes", lanes: 64, run: 1 },
    Order { what: "in 8 lanes of 4 terms", lanes: 8, run: 4 },
    Order { what: "in 32 lanes of 4 terms", lanes: 32, run: 4 },
];

impl Order {
    fn sum(&self, format: Format, x: &[f64], w: &[f64]) -> f64 {
        let mut lanes = vec![0.0; self.lanes];
        for (i, (x, w)) in x.iter().zip(w).enumerate() {
            let lane = &mut lanes[i / self.run % self.lanes];
            *lane = (format.round)(*lane + x * w);
        }
        while lanes.len() > 1 {
            let half = lanes.len() / 2;
            lanes = (0..half).map(|i| (format.round)(lanes[i] + lanes[i + half])).collect();
        }
        lanes[0]
    }
}
