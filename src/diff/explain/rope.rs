//! Mistakes in the rotary embedding. The stage with its angle and its pairing left open is `Turn`; each hypothesis fills them in.

use super::case::{Case, Point, Variant};
use super::search::round_numbers;
use crate::backend::Precision;
use crate::error::Result;
use crate::formula::rounding::TINY;
use crate::formula::sum::roundoff;
use crate::op::Op;

/// Which dimensions of a head turn together.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pairing {
    /// i with i + D/2: ggml's NEOX.
    Halves,
    /// 2i with 2i + 1: ggml's NORM.
    Neighbours,
}

/// What the operation says.
#[derive(Clone, Copy)]
pub(super) struct Stated {
    start: usize,
    head_dim: usize,
    base: f64,
}

impl Stated {
    pub(super) fn of(case: &Case<'_>) -> Option<Self> {
        match *case.scene.op {
            Op::Rope { start, head_dim, base, .. } => Some(Self { start, head_dim, base }),
            _ => None,
        }
    }
    /// base^(−2i/D): what one position adds to the angle of pair i.
    pub(super) fn step(self, pair: usize) -> f64 {
        self.base.powf(-2.0 * pair as f64 / self.head_dim as f64)
    }
}

/// Where a pair stands.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// In this call.
    token: usize,
    head: usize,
    pub(super) pair: usize,
}

/// The stage with `angle(place)` for (start + t)·base^(−2i/D). The floor is the stage's: (|a·cos| + |b·sin|)·(2⁻²⁴ + u) + u·|y|.
pub(super) fn turn<'a>(
    case: &'a Case<'a>,
    what: impl Into<String>,
    pairing: Pairing,
    angle: impl Fn(Place) -> f64 + 'a,
) -> Variant<'a> {
    let (cols, d) = (case.cols(), case.scene.config.head_dim.max(2));
    let contract = case.scene.contract;
    let u = roundoff(&contract);
    let table = if contract.accumulator == Precision::F64 { u } else { 2f64.powi(-24) };
    Variant::each(what, move |i| {
        let (token, column) = (i / cols, i % cols);
        let (head, within) = (column / d, column % d);
        let (pair, first, partner) = match pairing {
            Pairing::Halves if within < d / 2 => (within, true, i + d / 2),
            Pairing::Halves => (within - d / 2, false, i - d / 2),
            Pairing::Neighbours => (within / 2, within % 2 == 0, i ^ 1),
        };
        let (sin, cos) = angle(Place { token, head, pair }).sin_cos();
        let (a, b) = (case.inputs[0][i] * cos, case.inputs[0][partner] * sin);
        let y = if first { a - b } else { a + b };
        Point::new(y, (a.abs() + b.abs()) * (table + u) + u * y.abs() + 2.0 * TINY)
    })
}

/// The right pairing with another angle.
pub(super) fn angles<'a>(
    case: &'a Case<'a>,
    what: impl Into<String>,
    angle: impl Fn(Stated, Place) -> f64 + 'a,
) -> Vec<Variant<'a>> {
    match Stated::of(case) {
        Some(stated) => vec![turn(case, what, Pairing::Halves, move |place| angle(stated, place))],
        None => vec![],
    }
}

pub(super) fn position(stated: Stated, place: Place) -> f64 {
    (stated.start + place.token) as f64
}

pub fn norm_pairing<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = Stated::of(case) else { return Ok(vec![]) };
    let angle = move |place: Place| position(stated, place) * stated.step(place.pair);
    Ok(vec![turn(case, "rope with NORM pairing (2i with 2i + 1) for NEOX", Pairing::Neighbours, angle)])
}

pub fn first_head_only<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    Ok(angles(case, "rope on head 0 only", |stated, place| {
        if place.head == 0 { position(stated, place) * stated.step(place.pair) } else { 0.0 }
    }))
}

pub fn not_applied<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    Ok(angles(case, "no rope at all", |_, _| 0.0))
}

pub fn twice<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    Ok(angles(case, "rope applied twice", |stated, place| 2.0 * position(stated, place) * stated.step(place.pair)))
}

pub fn backwards<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    Ok(angles(case, "rope turning the other way", |stated, place| -position(stated, place) * stated.step(place.pair)))
}

/// Positions relative to the call, off by a few, or all the same.
pub fn positions<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = Stated::of(case) else { return Ok(vec![]) };
    let mut all = Vec::new();
    if stated.start > 0 {
        let what = format!("rope with positions counted from this call, {} too low", stated.start);
        all.extend(angles(case, what, |stated, place| place.token as f64 * stated.step(place.pair)));
    }
    for off in [1i32, -1, 2, -2, 3, -3, 4, -4] {
        let what = format!("rope with positions off by {off:+}");
        all.extend(angles(case, what, move |stated, place| {
            (position(stated, place) + off as f64) * stated.step(place.pair)
        }));
    }
    let first = "rope of every row with the position of the call's first";
    all.extend(angles(case, first, |stated, place| stated.start as f64 * stated.step(place.pair)));
    let last = (stated.start + case.tokens().saturating_sub(1)) as f64;
    let what = "rope of every row with the position of the call's last";
    all.extend(angles(case, what, move |stated, place| last * stated.step(place.pair)));
    Ok(all)
}

/// Exponents made of other widths than 2i/D.
pub fn exponents<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let heads = case.cols() / case.scene.config.head_dim.max(1);
    let by = move |factor: f64, shift: f64| {
        move |stated: Stated, place: Place| {
            let exponent = -2.0 * factor * (place.pair as f64 + shift) / stated.head_dim as f64;
            position(stated, place) * stated.base.powf(exponent)
        }
    };
    let mut all = angles(case, "rope with exponents i/D for 2i/D", by(0.5, 0.0));
    all.extend(angles(case, "rope with exponents 4i/D for 2i/D", by(2.0, 0.0)));
    all.extend(angles(case, "rope with exponents 2(i + 1)/D for 2i/D", by(1.0, 1.0)));
    let hidden = case.scene.config.hidden as f64 / case.scene.config.heads.max(1) as f64;
    let d = case.scene.config.head_dim as f64;
    all.extend(angles(case, "rope with hidden/heads for the head's width", by(d / hidden, 0.0)));
    all.extend(angles(case, "rope with the whole row as one head's width", by(1.0 / heads.max(1) as f64, 0.0)));
    Ok(all)
}

/// Bases that models use, and the one that fits the output's angles best.
pub fn other_base<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = Stated::of(case) else { return Ok(vec![]) };
    let with = |base: f64| {
        let angle = move |place: Place| position(stated, place) * Stated { base, ..stated }.step(place.pair);
        let what = format!("rope with base {base} for {}", stated.base);
        turn(case, what, Pairing::Halves, angle)
    };
    let known = [1e4, 1e6, 5e5, 1e5, 1e7, 5e6, 1.6e5, 2.5e5, 1.5e5, 1e3, 1e8, 2e6, 8e6];
    let mut all: Vec<Variant<'a>> = known.into_iter().filter(|b| *b != stated.base).map(with).collect();
    if let Some(fitted) = fit_base(case, stated) {
        let new = round_numbers(fitted, 1e-2).into_iter().filter(|b| *b != stated.base && !known.contains(b));
        all.extend(new.map(|base| with(base).with_fitted(1)));
    }
    Ok(all)
}

/// The base that the output's angles say. At one position p, pair i has turned by φ = p·base^(−2i/D). The last pairs turn by less
/// than π and give base = (φ/p)^(−D/2i) without doubt, but coarsely; each pair before gives it more finely, once the
/// whole turns that it has lost are known from the estimate so far.
fn fit_base(case: &Case<'_>, stated: Stated) -> Option<f64> {
    /// How well an angle can be measured in f32 values.
    const NOISE: f64 = 1e-6;
    let (cols, d) = (case.cols(), stated.head_dim);
    let (x, y) = (&case.inputs[0], &case.output);
    // The lowest position that turns at all, of those with wrong elements.
    let token = case.wrong.iter().map(|i| i / cols).find(|t| stated.start + t > 0)?;
    let p = (stated.start + token) as f64;
    let mut log_base: Option<(f64, f64)> = None; // estimate, uncertainty
    for pair in (1..d / 2).rev() {
        // Over all heads: Σ y·conj(x), whose argument is the angle.
        let (mut re, mut im) = (0.0, 0.0);
        for head in 0..cols / d {
            let (a, b) = (token * cols + head * d + pair, token * cols + head * d + pair + d / 2);
            re += x[a] * y[a] + x[b] * y[b];
            im += x[a] * y[b] - x[b] * y[a];
        }
        let measured = im.atan2(re);
        let exponent = d as f64 / (2.0 * pair as f64);
        let angle = match log_base {
            None => measured,
            Some((log_base, _)) => {
                let expected = p * (-log_base / exponent).exp();
                measured + ((expected - measured) / std::f64::consts::TAU).round() * std::f64::consts::TAU
            }
        };
        if angle.is_nan() || angle <= 100.0 * NOISE {
            continue;
        }
        let (estimate, uncertainty) = (-exponent * (angle / p).ln(), exponent * NOISE / angle);
        if log_base.is_none_or(|(_, known)| uncertainty < known) {
            log_base = Some((estimate, uncertainty));
        }
    }
    log_base.map(|(l, _)| l.exp()).filter(|b| b.is_finite() && *b > 1.0)
}
