//! Mistakes in RMS normalisation.

use super::case::{Evidence, Variant};
use super::search::round_numbers;
use crate::error::Result;
use crate::formula::Point;
use crate::formula::norm::{Norm, Scale, values};
use crate::op::Op;

pub fn missing<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = vec![Variant::each("no norm: the input itself", |i| Point::exactly(case.inputs[0][i]))];
    let unscaled = "no division by the root mean square: input · weight";
    all.extend(case.changed(unscaled, |n: &mut Norm<'a>| n.scale = Scale::One)?);
    Ok(all)
}

pub fn without_weight<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<Norm<'a>, _>([
        ("the norm without its weight", |n| n.weight.fill(1.0)),
        ("the norm with 1 + weight", |n| n.weight.iter_mut().for_each(|w| *w += 1.0)),
        ("the norm with weight − 1", |n| n.weight.iter_mut().for_each(|w| *w -= 1.0)),
        ("the norm with its weight applied twice", |n| n.weight.iter_mut().for_each(|w| *w *= *w)),
    ])
}

pub fn layer_norm<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<Norm<'a>, _>([("LayerNorm: the mean subtracted first", |n| n.centred = true)])
}

/// The mean over something else than the group, or no mean.
pub fn divisor<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = case.each_changed::<Norm<'a>, _>([
        ("the sum of squares for their mean", |n| n.divisor = 1.0),
        ("the mean of squares over n − 1", |n| n.divisor -= 1.0),
    ])?;
    let hidden = case.scene.config.hidden as f64;
    all.extend(case.changed("the mean of squares over hidden", |n: &mut Norm<'a>| n.divisor = hidden)?);
    Ok(all)
}

/// One norm of the whole row where each head has its own, and the other way round.
pub fn groups<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(Norm { n, .. }) = case.stated()? else { return Ok(vec![]) };
    let (cols, head_dim) = (case.cols(), case.scene.config.head_dim_of(case.scene.site.stage));
    let mut all = Vec::new();
    if let Some(keep) = kept(case) {
        return beside(case, cols, keep);
    }
    if n < cols {
        let what = "one norm over the whole row instead of one for each head";
        all.extend(case.changed(what, |n: &mut Norm<'a>| n.over(cols))?);
    } else if head_dim < cols && cols.is_multiple_of(head_dim) {
        let what = "a norm for each head's width instead of one over the row";
        all.extend(case.changed(what, |n: &mut Norm<'a>| n.over(head_dim))?);
    }
    Ok(all)
}

/// How many of a row's last columns stay as they are.
fn kept(case: &Evidence<'_>) -> Option<usize> {
    match case.scene.op {
        Op::RmsNorm { keep, .. } => Some(*keep).filter(|keep| *keep > 0),
        _ => None,
    }
}

/// A norm of the whole row, or of a part of it, where the last columns stay as they are.
fn beside<'a>(case: &'a Evidence<'a>, cols: usize, keep: usize) -> Result<Vec<Variant<'a>>> {
    let whole = |n: &mut Norm<'a>| {
        (n.n, n.divisor, n.keep) = (cols, cols as f64, 0);
        n.weight.resize(cols, 1.0);
    };
    let mut all = Vec::new();
    let what = format!("one norm over the whole row, of the {keep} last columns, too");
    all.extend(case.changed(what, whole)?);
    let what = format!("the {keep} last columns divided by the others' root mean square, too");
    all.extend(case.changed(what, |n: &mut Norm<'a>| {
        let others = cols - keep;
        whole(n);
        n.divisor = others as f64;
        n.times = Some((0..cols).map(|i| f64::from(u8::from(i < others))).collect());
    })?);
    let what = format!("the mean of squares of the whole row, of the {keep} columns that stay as they are, too");
    all.extend(case.changed(what, whole)?.map(|of_all| {
        let words = of_all.what.clone();
        Variant::new(words, move |indices| {
            let mut points = of_all.at(indices)?;
            let stays = |i: &usize| i % cols >= cols - keep;
            let kept = points.iter_mut().zip(indices).filter(|(_, i)| stays(i));
            kept.for_each(|(point, i)| *point = Point::exactly(case.inputs[0][*i]));
            Ok(points)
        })
    }));
    Ok(all)
}

pub fn other_weight<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let (Some(weight), Some(norm)) = (case.scene.op.weight(), case.stated::<Norm<'a>>()?) else { return Ok(vec![]) };
    let with = |other| {
        let changed = Norm { weight: values(other)?, ..norm.clone() };
        Ok(Variant::of(case, format!("the norm with {}", other.name), changed))
    };
    case.other_weights(weight).into_iter().map(with).collect()
}

/// Epsilons that models use, and the one that fits the output best.
pub fn other_eps<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(norm) = case.stated::<Norm<'a>>()? else { return Ok(vec![]) };
    let same = |eps: f64| (eps - norm.eps).abs() <= 1e-6 * norm.eps;
    let with = |eps: f64| {
        let within = told_to(case, &norm, eps);
        let eps_is = match eps {
            0.0 => "eps 0, or one too small to tell,".to_string(),
            _ if within < TELLING * eps => format!("eps {eps:e}"),
            _ if within < eps => format!("an eps between {:.1e} and {:.1e}", eps - within, eps + within),
            _ => format!("an eps below {:.1e}", eps + within),
        };
        let what = format!("the norm with {eps_is} for {:e}", norm.eps as f32);
        Variant::of(case, what, Norm { eps, ..norm.clone() })
    };
    let known = [1e-5, 1e-6, 0.0, 1e-8, 1e-12, 1e-4, 1e-3];
    let mut all: Vec<Variant<'a>> = known.into_iter().filter(|e| !same(*e)).map(with).collect();
    let outside = "the norm with eps added to the root instead of under it";
    all.extend(case.changed(outside, |n: &mut Norm<'a>| n.scale = Scale::EpsOutside)?);
    if let Some(fitted) = fit_eps(case, &norm) {
        let mut groups: Vec<usize> = case.wrong.iter().filter_map(|i| norm.group_of(*i)).collect();
        groups.dedup();
        // Some eps is as good as any number below 1 where only one group is wrong, and so no more to be expected.
        let bits = if groups.len() > 1 { 0.0 } else { super::list::FACTOR };
        let new = round_numbers(fitted, 0.2).into_iter().filter(|e| !same(*e) && !known.contains(e));
        all.extend(new.map(|eps| with(eps).with_fitted(eps).assuming(bits)));
    }
    Ok(all)
}

/// An eps that is told to this share of itself is told.
const TELLING: f64 = 0.3;

/// How far from a value of eps another is that no element tells from it: y = x·w / √(mean + eps) changes by y / 2 for each mean + eps.
fn told_to(case: &Evidence<'_>, norm: &Norm<'_>, eps: f64) -> f64 {
    let (mut group, mut mean, mut least) = (None, 0.0, f64::INFINITY);
    for (i, y) in case.exact.iter().enumerate() {
        let own = norm.group_of(i);
        let Some(begin) = own.filter(|_| *y != 0.0) else { continue };
        if own != group {
            (group, mean) = (own, mean_of_squares(norm, begin));
        }
        least = least.min(2.0 * case.scene.floor[i] / y.abs() * (mean + eps));
    }
    least
}

/// Of the group that begins there.
fn mean_of_squares(norm: &Norm<'_>, begin: usize) -> f64 {
    norm.x[begin..][..norm.n].iter().map(|x| x * x).sum::<f64>() / norm.divisor
}

/// From the group of the smallest mean square, which feels eps most: y = x·w·r, so r = Σy·x·w / Σ(x·w)² and eps = 1/r² − mean.
fn fit_eps(case: &Evidence<'_>, norm: &Norm<'_>) -> Option<f64> {
    let mean = |begin: &usize| mean_of_squares(norm, *begin);
    let wrong = case.wrong.iter().filter_map(|i| norm.group_of(*i)).filter(|g| mean(g) > 0.0);
    let group = wrong.min_by(|a, b| mean(a).total_cmp(&mean(b)))?;
    let x = &norm.x[group..][..norm.n];
    let y = &case.output[group..][..norm.n];
    let (mut yx, mut xx) = (0.0, 0.0);
    for ((x, y), w) in x.iter().zip(y).zip(norm.weight.iter().cycle()) {
        yx += y * x * w;
        xx += x * w * x * w;
    }
    let r = yx / xx;
    Some(1.0 / (r * r) - mean(&group)).filter(|eps| eps.is_finite() && *eps > 0.0)
}
