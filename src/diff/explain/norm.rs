//! Mistakes in RMS normalisation. [`Norm`] is the stage with its parts left open.

use super::case::{Case, Point, Variant};
use super::search::round_numbers;
use crate::backend::oracle::dequant;
use crate::error::Result;
use crate::formula::rounding::{TINY, ulp};
use crate::formula::sum::{Terms, confidence, roundoff};
use crate::op::{Op, Weight};

/// (x − mean) · weight / √(Σ(x − mean)²/divisor + eps), over groups of n.
#[derive(Clone)]
pub(super) struct Norm {
    n: usize,
    eps: f64,
    /// `[n]`, or shorter and repeated.
    weight: Vec<f64>,
    /// Subtract the mean.
    centred: bool,
    /// n, unless the mean is taken over another number.
    divisor: f64,
    /// Leave the inverse root out.
    unscaled: bool,
}

impl Norm {
    /// As the operation says.
    pub(super) fn stated(case: &Case<'_>) -> Result<Option<Self>> {
        let Op::RmsNorm { weight, eps, .. } = case.scene.op else { return Ok(None) };
        let n = weight.cols;
        let weight = values(weight)?;
        Ok(Some(Self { n, eps: *eps as f64, weight, centred: false, divisor: n as f64, unscaled: false }))
    }

    /// The floor is the stage's: the relative errors of the sum, halved by the root, of the root and of the products.
    fn points(&self, x: &[f64], case: &Case<'_>) -> Vec<Point> {
        let (contract, lambda) = (&case.scene.contract, confidence(case.output.len() / self.n.max(1)));
        let (u, ulp) = (roundoff(contract), ulp(contract));
        let mean = if self.centred { x.iter().sum::<f64>() / x.len() as f64 } else { 0.0 };
        let terms = Terms::one_sign(x.iter().map(|x| (x - mean) * (x - mean)));
        let scale = if self.unscaled { 1.0 } else { 1.0 / (terms.absolute / self.divisor + self.eps).sqrt() };
        let sum = (terms.bound(contract, lambda) + x.len() as f64 * TINY) / (terms.absolute + self.divisor * self.eps);
        let relative = 0.5 * (sum + contract.div_ulp * ulp + u) + contract.rsqrt_ulp * ulp + 2.0 * u;
        // The mean is a sum as well, and its error moves every element.
        let shift = if self.centred {
            Terms::one_sign(x.iter().map(|x| x.abs())).bound(contract, lambda) / x.len() as f64
        } else {
            0.0
        };
        x.iter()
            .zip(self.weight.iter().cycle())
            .map(|(x, w)| {
                let y = (x - mean) * scale * w;
                Point::new(y, relative * y.abs() + (shift * scale * w).abs() + TINY)
            })
            .collect()
    }

    pub(super) fn variant<'a>(self, case: &'a Case<'a>, what: impl Into<String>) -> Variant<'a> {
        let n = self.n.max(1);
        Variant::rows(what, n, move |group| self.points(&case.inputs[0][group * n..][..n], case))
    }
}

/// A norm's weight.
fn values(weight: &Weight) -> Result<Vec<f64>> {
    let mut w = vec![0.0; weight.cols];
    dequant::row(weight.ty, weight.row(0, 0), &mut w)?;
    Ok(w)
}

/// One variant of the stated norm, with something changed.
fn changed<'a>(case: &'a Case<'a>, what: &str, change: impl Fn(&mut Norm)) -> Result<Vec<Variant<'a>>> {
    let Some(mut norm) = Norm::stated(case)? else { return Ok(vec![]) };
    change(&mut norm);
    Ok(vec![norm.variant(case, what)])
}

pub fn missing<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = vec![Variant::each("no norm: the input itself", |i| Point::exactly(case.inputs[0][i]))];
    all.extend(changed(case, "no division by the root mean square: input · weight", |n| n.unscaled = true)?);
    Ok(all)
}

pub fn without_weight<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = changed(case, "the norm without its weight", |n| n.weight.fill(1.0))?;
    all.extend(changed(case, "the norm with 1 + weight", |n| n.weight.iter_mut().for_each(|w| *w += 1.0))?);
    all.extend(changed(case, "the norm with its weight applied twice", |n| {
        n.weight.iter_mut().for_each(|w| *w *= *w)
    })?);
    Ok(all)
}

pub fn layer_norm<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    changed(case, "LayerNorm: the mean subtracted first", |n| n.centred = true)
}

/// The mean over something else than the group, or no mean.
pub fn divisor<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = changed(case, "the sum of squares for their mean", |n| n.divisor = 1.0)?;
    all.extend(changed(case, "the mean of squares over n − 1", |n| n.divisor -= 1.0)?);
    let hidden = case.scene.config.hidden as f64;
    all.extend(changed(case, "the mean of squares over hidden", |n| n.divisor = hidden)?);
    Ok(all)
}

/// One norm of the whole row where each head has its own, and the other way round.
pub fn groups<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(norm) = Norm::stated(case)? else { return Ok(vec![]) };
    let (cols, head_dim) = (case.cols(), case.scene.config.head_dim);
    let mut all = Vec::new();
    if norm.n < cols {
        let whole = Norm { n: cols, divisor: cols as f64, ..norm.clone() };
        all.push(whole.variant(case, "one norm over the whole row instead of one for each head"));
    } else if head_dim < cols && cols.is_multiple_of(head_dim) {
        let per_head = Norm { n: head_dim, divisor: head_dim as f64, ..norm.clone() };
        all.push(per_head.variant(case, "a norm for each head's width instead of one over the row"));
    }
    let half = norm.n / 2;
    if half > 0 && norm.n.is_multiple_of(2) {
        let n = norm.n;
        let variant = Variant::rows("the mean of squares over the first half of the values only", n, move |group| {
            let x = &case.inputs[0][group * n..][..n];
            let first: Vec<f64> = x.iter().enumerate().map(|(i, x)| if i < half { *x } else { 0.0 }).collect();
            let mean: f64 = first.iter().map(|x| x * x).sum::<f64>() / n as f64;
            let full: f64 = x.iter().map(|x| x * x).sum::<f64>() / n as f64;
            // The same inverse root, moved: √((full + eps)/(mean + eps)).
            let factor = ((full + norm.eps) / (mean + norm.eps)).sqrt();
            norm.points(x, case).into_iter().map(|p| Point::new(p.value * factor, p.floor * factor)).collect()
        });
        all.push(variant);
    }
    Ok(all)
}

pub fn other_weight<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let (Op::RmsNorm { weight, .. }, Some(norm)) = (case.scene.op, Norm::stated(case)?) else { return Ok(vec![]) };
    let with = |other: &Weight| {
        let changed = Norm { weight: values(other)?, ..norm.clone() };
        Ok(changed.variant(case, format!("the norm with {}", other.name)))
    };
    case.other_weights(weight).into_iter().map(with).collect()
}

/// Epsilons that models use, and the one that fits the output best.
pub fn other_eps<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(norm) = Norm::stated(case)? else { return Ok(vec![]) };
    let same = |eps: f64| (eps - norm.eps).abs() <= 1e-6 * norm.eps;
    let with = |eps: f64| {
        let changed = Norm { eps, ..norm.clone() };
        changed.variant(case, format!("the norm with eps {eps:e} for {:e}", norm.eps as f32))
    };
    let known = [1e-5, 1e-6, 0.0, 1e-8, 1e-12, 1e-4, 1e-3];
    let mut all: Vec<Variant<'a>> = known.into_iter().filter(|e| !same(*e)).map(with).collect();
    let outside = {
        let n = norm.n.max(1);
        let norm = Norm { eps: 0.0, ..norm.clone() };
        let eps = Norm::stated(case)?.map_or(0.0, |n| n.eps);
        Variant::rows("the norm with eps added to the root instead of under it", n, move |group| {
            let x = &case.inputs[0][group * n..][..n];
            let root = (x.iter().map(|x| x * x).sum::<f64>() / n as f64).sqrt();
            let factor = root / (root + eps);
            norm.points(x, case).into_iter().map(|p| Point::new(p.value * factor, p.floor)).collect()
        })
    };
    all.push(outside);
    if let Some(fitted) = fit_eps(case, &norm) {
        let new = round_numbers(fitted, 0.2).into_iter().filter(|e| !same(*e) && !known.contains(e));
        all.extend(new.map(|eps| with(eps).with_fitted(1)));
    }
    Ok(all)
}

/// From the group of the smallest mean square, which feels eps most: y = x·w·r, so r = Σy·x·w / Σ(x·w)² and eps = 1/r² − mean.
fn fit_eps(case: &Case<'_>, norm: &Norm) -> Option<f64> {
    let n = norm.n.max(1);
    let mean = |g: &usize| case.inputs[0][g * n..][..n].iter().map(|x| x * x).sum::<f64>() / n as f64;
    let wrong = case.wrong.iter().map(|i| i / n).filter(|g| mean(g) > 0.0);
    let group = wrong.min_by(|a, b| mean(a).total_cmp(&mean(b)))?;
    let x = &case.inputs[0][group * n..][..n];
    let y = &case.output[group * n..][..n];
    let (mut yx, mut xx) = (0.0, 0.0);
    for ((x, y), w) in x.iter().zip(y).zip(norm.weight.iter().cycle()) {
        yx += y * x * w;
        xx += x * w * x * w;
    }
    let r = yx / xx;
    Some(1.0 / (r * r) - mean(&group)).filter(|eps| eps.is_finite() && *eps > 0.0)
}
