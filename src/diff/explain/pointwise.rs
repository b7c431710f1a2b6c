//! Mistakes in the residual sums and in the activation.

use super::case::{Case, Point, Variant};
use crate::backend::Precision;
use crate::error::Result;
use crate::formula::rounding::{TINY, exp_error, ulp};
use crate::formula::sum::roundoff;
use crate::op::{Data, Op, Stage};

/// The sum of two values, rounded once; and each of them, where it comes in float64, on its way into a side that computes in less.
pub(super) fn sum(case: &Case<'_>, a: f64, b: f64) -> Point {
    let contract = &case.scene.contract;
    let u = roundoff(contract);
    let wide = |i: usize| match case.scene.op.inputs()[i].data {
        Data::F64(_) if contract.activations != Precision::F64 => u,
        _ => 0.0,
    };
    let incoming = (1.0 + u) * (wide(0) * a.abs() + wide(1) * b.abs());
    Point::new(a + b, u * (a + b).abs() + incoming + TINY)
}

pub fn residual<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::Add { .. } = case.scene.op else { return Ok(vec![]) };
    let (a, b) = (&case.inputs[0], &case.inputs[1]);
    let with = |what: &str, of: fn(f64, f64) -> (f64, f64)| {
        Variant::each(what, move |i| {
            let (a, b) = of(a[i], b[i]);
            sum(case, a, b)
        })
    };
    let mut all = vec![
        with("the residual dropped: only what is added to it", |_, b| (b, 0.0)),
        with("only the residual: nothing added to it", |a, _| (a, 0.0)),
        with("the residual added twice", |a, b| (2.0 * a, b)),
        with("the addend added twice", |a, b| (a, 2.0 * b)),
        with("a difference for a sum", |a, b| (a, -b)),
        with("a difference for a sum, the other way round", |a, b| (b, -a)),
        with("a product for a sum", |a, b| (a * b, 0.0)),
    ];
    // Other streams of the layer that could be taken for one of the two.
    let streams = [Stage::AttnNorm, Stage::AttnResidual, Stage::FfnNorm, Stage::AttnOut, Stage::MoeOut, Stage::FfnOut];
    let named = streams.iter().filter_map(|s| Some((s.name().to_string(), case.scene.earlier.get(*s)?)));
    let input = case.scene.earlier.input().map(|x| ("the layer's input".to_string(), x));
    for (name, other) in named.chain(input) {
        if other.shape != case.scene.output.shape {
            continue;
        }
        let other = std::rc::Rc::new(other.to_f64());
        let (first, second) = (other.clone(), other);
        all.push(Variant::each(format!("{name} as the residual"), move |i| sum(case, first[i], b[i])));
        all.push(Variant::each(format!("{name} added to the residual"), move |i| sum(case, a[i], second[i])));
    }
    Ok(all)
}

/// The product of an activation of the gate with `up`, and what rounding may do to it, relative to the result, besides exp's error.
pub(super) fn activation<'a>(
    case: &'a Case<'a>,
    what: &str,
    value: fn(f64, f64) -> f64,
    // The part of exp's relative error that comes through.
    through: fn(f64, f64) -> f64,
) -> Vec<Variant<'a>> {
    activation_of(case, [0, 1], what, value, through)
}

/// [`activation`] with these operands as gate and up.
fn activation_of<'a>(
    case: &'a Case<'a>,
    operands: [usize; 2],
    what: &str,
    value: fn(f64, f64) -> f64,
    through: fn(f64, f64) -> f64,
) -> Vec<Variant<'a>> {
    let Op::SwiGlu { .. } = case.scene.op else { return vec![] };
    let contract = case.scene.contract;
    let (u, ulp) = (roundoff(&contract), ulp(&contract));
    let variant = Variant::each(what, move |i| {
        let [gate, up] = operands.map(|n| case.inputs[n][i]);
        let y = value(gate, up);
        let lost = exp_error(gate.abs(), &contract) * through(gate, up).abs();
        let flushed = TINY * (1.0 + up.abs() + (gate * up).abs());
        Point::new(y, lost + (contract.div_ulp * ulp + 3.0 * u) * y.abs() + flushed)
    });
    vec![variant]
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

/// erf by its series below 3 and its continued fraction above (Abramowitz and Stegun 7.1.5 and 7.1.14), to about 1e-15.
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 3.0 {
        let (mut term, mut total, mut n) = (z, z, 0.0);
        while term.abs() > 1e-17 * total.abs() && n < 200.0 {
            n += 1.0;
            term *= -z * z / n;
            total += term / (2.0 * n + 1.0);
        }
        total * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..60).rev().fold(z, |f, n| z + n as f64 / 2.0 / f);
        1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

pub fn gate_and_up<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let product: fn(f64, f64) -> f64 = |g, u| silu(g) * u;
    let through: fn(f64, f64) -> f64 = |g, u| silu(g) * u * sigmoid(-g);
    let mut all = activation_of(case, [1, 0], "gate and up swapped: gate · silu(up)", product, through);
    all.extend(activation(case, "silu(gate) without up", |g, _| silu(g), |g, _| silu(g) * sigmoid(-g)));
    all.extend(activation(case, "up without silu(gate)", |_, u| u, |_, _| 0.0));
    all.extend(activation(case, "silu(gate) + up", |g, u| silu(g) + u, |g, u| silu(g).abs() + u.abs()));
    all.extend(activation_of(case, [0, 0], "silu(gate) · gate", product, through));
    all.extend(activation_of(case, [1, 1], "silu(up) · up", product, through));
    Ok(all)
}

pub fn other_activation<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    use std::f64::consts::{FRAC_2_SQRT_PI, SQRT_2};
    // The products of gate and up bound what an error of tanh or erf, absolute near 1, can do.
    let whole: fn(f64, f64) -> f64 = |g, u| g * u;
    let gelu_tanh: fn(f64, f64) -> f64 = |g, u| {
        let z = FRAC_2_SQRT_PI / SQRT_2 * (g + 0.044715 * g * g * g);
        0.5 * g * (1.0 + z.tanh()) * u
    };
    let mut all = activation(case, "gelu, by tanh, for silu", gelu_tanh, whole);
    all.extend(activation(case, "gelu, by erf, for silu", |g, u| 0.5 * g * (1.0 + erf(g / SQRT_2)) * u, whole));
    all.extend(activation(case, "gelu, by sigmoid(1.702·x), for silu", |g, u| g * sigmoid(1.702 * g) * u, whole));
    all.extend(activation(case, "relu for silu", |g, u| g.max(0.0) * u, |_, _| 0.0));
    all.extend(activation(case, "relu² for silu", |g, u| g.max(0.0) * g.max(0.0) * u, |_, _| 0.0));
    all.extend(activation(case, "sigmoid for silu", |g, u| sigmoid(g) * u, |g, u| sigmoid(g) * u * sigmoid(-g)));
    all.extend(activation(case, "no activation: gate · up", |g, u| g * u, |_, _| 0.0));
    all.extend(activation(case, "tanh for silu", |g, u| g.tanh() * u, |_, u| u));
    all.extend(activation(case, "silu(−gate)", |g, u| silu(-g) * u, |g, u| silu(-g) * u * sigmoid(g)));
    Ok(all)
}
