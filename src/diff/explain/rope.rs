//! Mistakes in the rotary embedding.

use super::case::{Evidence, Variant};
use super::search::round_numbers;
use crate::error::Result;
use crate::formula::Point;
use crate::formula::precision::{FORMATS, cut_to_bf16, cut_to_f16, to_f32};
use crate::formula::rope::{Angles, Rope};
use crate::op::{Pairing, Yarn};

pub fn other_pairing<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Rope<'a>>()? else { return Ok(vec![]) };
    let other = match stated.pairing {
        Pairing::Neox => Pairing::Norm,
        Pairing::Norm => Pairing::Neox,
    };
    let what = format!("rope with {} pairing ({}) for {}", other.name(), other.formula(), stated.pairing.name());
    Ok(vec![Variant::of(case, what, Rope { pairing: other, ..stated })])
}

/// Another part of each head: all of it for a part, or the other way round.
pub fn other_part<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Rope<'a>>()? else { return Ok(vec![]) };
    let (d, turned, from) = (stated.head_dim, stated.turned, stated.from);
    let mut all = Vec::new();
    let mut with = |what: String, changed: Rope<'a>| all.push(Variant::of(case, what, changed));
    if turned < d {
        let whole = Rope { turned: d, from: 0, apart: d / 2, width: d as f64, ..stated.clone() };
        // Factors and a ramp are of as many pairs as turn.
        if stated.factors.is_none() && d.is_multiple_of(2) {
            with(format!("rope on all {d} dimensions of a head, of which {turned} turn"), whole.clone());
            let what = format!("rope on all {d} dimensions of a head, with the exponents of the {turned} that turn");
            with(what, Rope { width: turned as f64, ..whole });
        }
        if from != d - turned {
            let what = format!("rope on the last {turned} of a head's {d} dimensions, not on the first");
            with(what, Rope { from: d - turned, ..stated.clone() });
        }
        if from > 0 {
            let what = format!("rope on the first {turned} of a head's {d} dimensions, not on the last");
            with(what, Rope { from: 0, ..stated.clone() });
        }
        let what = match d == 2 * turned {
            true => format!("rope with exponents 2i/{d} for 2i/{turned}, or with the root of the base"),
            false => format!("rope with exponents 2i/{d} for 2i/{turned}"),
        };
        with(what, Rope { width: d as f64, ..stated.clone() });
        if stated.pairing == Pairing::Neox && turned <= d / 2 && from == 0 {
            let what = format!("rope with pairs of i and i + {} for i + {}", d / 2, turned / 2);
            with(what, Rope { apart: d / 2, ..stated.clone() });
        }
    } else if d.is_multiple_of(4) && stated.factors.is_none() {
        let part = Rope { turned: d / 2, apart: d / 4, width: d as f64 / 2.0, ..stated.clone() };
        with(format!("rope on the first {} of a head's {d} dimensions", d / 2), part.clone());
        let what = format!("rope on the first {} of a head's {d} dimensions, with exponents 2i/{d}", d / 2);
        with(what, Rope { width: d as f64, ..part });
    }
    Ok(all)
}

/// Without the scaling that is stated, with its inverse, or with one that is not.
pub fn scaling<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Rope<'a>>()? else { return Ok(vec![]) };
    let mut all = Vec::new();
    let mut with = |what: String, changed: Rope<'a>| all.push(Variant::of(case, what, changed));
    if let Some(factors) = &stated.factors {
        with("rope without its frequency factors".into(), Rope { factors: None, ..stated.clone() });
        let turned_over = Some(factors.iter().map(|f| 1.0 / f).collect());
        let what = "rope with frequencies multiplied by their factors, not divided";
        with(what.into(), Rope { factors: turned_over, ..stated.clone() });
    }
    if let Some(yarn) = stated.yarn {
        all.extend(other_yarn(case, &stated, yarn));
    } else if stated.scale != 1.0 {
        let factor = 1.0 / stated.scale;
        with(format!("rope without its linear scaling by {factor}"), Rope { scale: 1.0, ..stated.clone() });
        let what = format!("rope with angles multiplied by {factor}, not divided");
        with(what, Rope { scale: factor, ..stated.clone() });
        // Half of it first, which is the same as a rotation that is made twice.
        let usual = FACTORS.into_iter().filter(|other| *other != factor / 2.0 && *other != factor * 2.0);
        let others = [factor / 2.0, factor * 2.0].into_iter().chain(usual);
        for other in others.filter(|other| *other != factor && *other != 1.0) {
            let what = format!("rope with a linear scaling by {other} for {factor}");
            with(what, Rope { scale: 1.0 / other, ..stated.clone() });
        }
    } else {
        for factor in FACTORS {
            let what = format!("rope with a linear scaling by {factor} where there is none");
            with(what, Rope { scale: 1.0 / factor, ..stated.clone() });
        }
    }
    if stated.yarn.is_none()
        && let Some(scale) = fit_scale(case, &stated)
    {
        let stands = 1.0 / stated.scale;
        let known = |factor: f64| [1.0, stands].iter().chain(&FACTORS).any(|k| (factor / k - 1.0).abs() < 1e-6);
        for factor in round_numbers(1.0 / scale, 1e-3).into_iter().filter(|factor| !known(*factor)) {
            let what = match stated.scale {
                1.0 => format!("rope with a linear scaling by {factor} where there is none"),
                _ => format!("rope with a linear scaling by {factor} for {stands}"),
            };
            let changed = Rope { scale: 1.0 / factor, ..stated.clone() };
            all.push(Variant::of(case, what, changed).with_fitted(factor));
        }
    }
    Ok(all)
}

/// Linear scalings that models use.
const FACTORS: [f64; 7] = [2.0, 4.0, 8.0, 16.0, 32.0, 3.0, 10.0];

/// How well an angle can be measured in f32 values.
const NOISE: f64 = 1e-6;

/// The angle, from −π to π, by which pair `pair` of a position's heads has turned: the argument of Σ y·conj(x) over them.
fn turn(case: &Evidence<'_>, stated: &Rope<'_>, token: usize, pair: usize) -> f64 {
    let (cols, d, (x, y)) = (case.cols(), stated.head_dim, (&case.inputs[0], &case.output));
    let (mut re, mut im) = (0.0, 0.0);
    for head in 0..cols / d {
        let dims = stated.pairing.dims(pair, stated.turned / 2);
        let [a, b] = dims.map(|dim| token * cols + head * d + stated.from + dim);
        re += x[a] * y[a] + x[b] * y[b];
        im += x[a] * y[b] - x[b] * y[a];
    }
    im.atan2(re)
}

/// What positions are multiplied by, as the angles say: coarsely that of the last pair, which has turned the least, and more finely each
/// before it, once its whole turns are known.
fn fit_scale(case: &Evidence<'_>, stated: &Rope<'_>) -> Option<f64> {
    let cols = case.cols();
    let token = case.wrong.iter().map(|i| i / cols).find(|t| stated.positions[*t] > 0.0)?;
    let mut scale: Option<(f64, f64)> = None; // estimate, uncertainty
    for pair in (0..stated.turned / 2).rev() {
        let factor = stated.factors.as_ref().map_or(1.0, |factors| factors[pair]);
        let exponent = -2.0 * pair as f64 / stated.turned as f64;
        let unscaled = stated.positions[token] * stated.base.powf(exponent) / factor;
        let measured = turn(case, stated, token, pair);
        let angle = match scale {
            None => measured,
            Some((scale, _)) => {
                measured + ((unscaled * scale - measured) / std::f64::consts::TAU).round() * std::f64::consts::TAU
            }
        };
        let uncertainty = NOISE / unscaled;
        if angle.is_finite() && angle > 100.0 * NOISE && scale.is_none_or(|(_, known)| uncertainty < known) {
            scale = Some((angle / unscaled, uncertainty));
        }
    }
    scale.map(|(scale, _)| scale).filter(|scale| scale.is_finite() && *scale > 0.0)
}

/// YaRN in parts, with other numbers, or its ramp laid otherwise.
fn other_yarn<'a>(case: &'a Evidence<'a>, stated: &Rope<'a>, yarn: Yarn) -> Vec<Variant<'a>> {
    let (factor, unscaled) = (1.0 / stated.scale, 1.0);
    let mut all = Vec::new();
    let mut with = |what: String, scale: f64, yarn: Yarn| {
        all.push(Variant::of(case, what, Rope { scale, yarn: Some(yarn), ..stated.clone() }));
    };
    let with_magnitude = |magnitude: f64| Yarn { magnitude, ..yarn };
    let none = with_magnitude(1.0);
    if yarn.magnitude != 1.0 {
        with(format!("YaRN without its magnitude {:.4}", yarn.magnitude), stated.scale, none);
        let what = format!("YaRN with its magnitude {:.4} applied twice", yarn.magnitude);
        with(what, stated.scale, with_magnitude(yarn.magnitude * yarn.magnitude));
        with("YaRN divided by its magnitude".into(), stated.scale, with_magnitude(1.0 / yarn.magnitude));
    }
    for usual in
        [1.0 + 0.1 * factor.ln(), factor.sqrt()].into_iter().filter(|m| (m / yarn.magnitude - 1.0).abs() > 1e-9)
    {
        with(
            format!("YaRN with the magnitude {usual:.4} for {:.4}", yarn.magnitude),
            stated.scale,
            with_magnitude(usual),
        );
    }
    // The magnitude goes by the factor, or is stated beside it.
    let of = |factor: f64| 1.0 + 0.1 * factor.ln();
    for other in FACTORS.into_iter().filter(|other| (other / factor - 1.0).abs() > 1e-9) {
        let what = format!("YaRN with a factor of {other} for {factor}");
        with(what, 1.0 / other, with_magnitude(yarn.magnitude * of(other) / of(factor)));
        let what = format!("YaRN with a factor of {other} for {factor}, and its magnitude as it is");
        with(what, 1.0 / other, yarn);
    }
    with(format!("every pair scaled by {factor}, without YaRN's ramp"), stated.scale, Yarn { ramp: 0.0, ..yarn });
    with("frequencies that YaRN does not scale, with its magnitude".into(), unscaled, yarn);
    if yarn.magnitude != 1.0 {
        with(format!("a linear scaling by {factor} for YaRN"), stated.scale, Yarn { ramp: 0.0, ..none });
        with("no YaRN at all".into(), unscaled, none);
    }
    let context = case.scene.config.context as f64;
    // Its ends are rounded to whole pairs, so that a range of numbers gives the same.
    let alike = if yarn.between { "" } else { ", or one with the same ramp," };
    // Lengths that models have, and any other power of two; a segment takes a run for each.
    let powers = (4..20).map(|bits| f64::from(1u32 << bits)).filter(|_| !case.unseen);
    let usual = [context, yarn.context * factor, 2048.0, 4096.0, 8192.0, 16_384.0, 32_768.0, 131_072.0];
    let mut tried = vec![yarn.context];
    for other in usual.into_iter().chain(powers) {
        if !tried.contains(&other) {
            tried.push(other);
            let what = format!("YaRN with an original context of {other}{alike} for {}", yarn.context);
            with(what, stated.scale, Yarn { context: other, ..yarn });
        }
    }
    if yarn.between {
        let what = "YaRN's ramp with its ends rounded to whole pairs, as llama.cpp has it";
        with(what.into(), stated.scale, Yarn { between: false, ..yarn });
    }
    let betas = format!("{} and {}", yarn.beta_fast, yarn.beta_slow);
    for (fast, slow) in
        [(yarn.beta_slow, yarn.beta_fast), (32.0, 1.0), (32.0, 2.0), (16.0, 1.0), (64.0, 1.0), (4.0, 1.0)]
    {
        if (fast, slow) != (yarn.beta_fast, yarn.beta_slow) {
            let what = format!("YaRN with betas {fast} and {slow}{alike} for {betas}");
            with(what, stated.scale, Yarn { beta_fast: fast, beta_slow: slow, ..yarn });
        }
    }
    // Another ramp, as what divides each pair's frequency.
    let half = stated.turned / 2;
    let [first, last] = yarn.bounds(stated.turned, stated.base);
    let kept: Vec<f64> = yarn.kept(stated.turned, stated.base).collect();
    let straight = |i: f64, first: f64, last: f64| 1.0 - ((i - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
    let exact = |turns: f64| half as f64 * (yarn.context / (turns * std::f64::consts::TAU)).ln() / stated.base.ln();
    let mut ramp = |what: &str, kept: Vec<f64>| {
        let given = |i: usize| stated.factors.as_ref().map_or(1.0, |f| f[i]);
        let factors = (0..half).map(|i| given(i) / (stated.scale * (1.0 - kept[i]) + kept[i])).collect();
        let yarn = Some(Yarn { ramp: 0.0, ..yarn });
        all.push(Variant::of(case, what, Rope { scale: 1.0, factors: Some(factors), yarn, ..stated.clone() }));
    };
    ramp("YaRN's ramp the other way: fast pairs scaled, slow ones kept", kept.iter().map(|k| 1.0 - k).collect());
    let by = |at: &dyn Fn(usize) -> f64| (0..half).map(at).collect::<Vec<f64>>();
    ramp("YaRN's ramp by dimension 2i for pair i", by(&|i| straight(2.0 * i as f64, first, last)));
    if !yarn.between {
        let [low, high] = [exact(yarn.beta_fast).max(0.0), exact(yarn.beta_slow).min(stated.turned as f64 - 1.0)];
        ramp("YaRN's ramp between bounds that are not rounded to whole pairs", by(&|i| straight(i as f64, low, high)));
    }
    ramp("YaRN with a step in place of its ramp", by(&|i| if (i as f64) < (first + last) / 2.0 { 1.0 } else { 0.0 }));
    all
}

pub fn first_head_only<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<Rope<'a>, _>([("rope on head 0 only", |r| r.heads = 1)])
}

pub fn not_applied<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<Rope<'a>, _>([("no rope at all", |r| r.heads = 0)])
}

pub fn twice<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<Rope<'a>, _>([("rope applied twice", |r| {
        r.positions.iter_mut().for_each(|p| *p *= 2.0);
        r.yarn.iter_mut().for_each(|yarn| yarn.magnitude *= yarn.magnitude);
    })])
}

pub fn backwards<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<Rope<'a>, _>([("rope turning the other way", |r| {
        r.positions.iter_mut().for_each(|p| *p = -*p)
    })])
}

/// Positions relative to the call, off by a few, or all the same.
pub fn positions<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(Rope { positions: stated, .. }) = case.stated()? else { return Ok(vec![]) };
    let (start, last) = (stated[0], stated[stated.len() - 1]);
    let mut all = Vec::new();
    if start > 0.0 {
        let what = format!("rope with positions counted from this call, {start} too low");
        all.extend(case.changed(what, |r: &mut Rope<'a>| r.positions.iter_mut().for_each(|p| *p -= start))?);
    }
    // The nearest first; farther off, lengths that buffers and windows have. Inside a segment each takes a run of the rest of it.
    let near = (1..=if case.unseen { 4 } else { 64 })
        .chain([128, 256, 512, 1024, 2048, 4096].into_iter().filter(|_| !case.unseen));
    for off in near.flat_map(|off: i32| [off, -off]) {
        let what = format!("rope with positions off by {off:+}");
        all.extend(case.changed(what, |r: &mut Rope<'a>| r.positions.iter_mut().for_each(|p| *p += off as f64))?);
    }
    for (which, position) in [("first", start), ("last", last)] {
        let what = format!("rope of every row with the position of the call's {which}");
        all.extend(case.changed(what, |r: &mut Rope<'a>| r.positions.fill(position))?);
    }
    Ok(all)
}

/// Exponents made of other widths than 2i/D.
pub fn exponents<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = case.each_changed::<Rope<'a>, _>([
        ("rope with exponents i/D for 2i/D", |r| r.width *= 2.0),
        ("rope with exponents 4i/D for 2i/D", |r| r.width /= 2.0),
        ("rope with exponents 2(i + 1)/D for 2i/D", |r| r.shift = 1.0),
    ])?;
    let hidden = case.scene.config.hidden as f64 / case.scene.config.heads.max(1) as f64;
    let row = case.cols() as f64;
    for (what, width) in
        [("rope with hidden/heads for the head's width", hidden), ("rope with the whole row as one head's width", row)]
    {
        all.extend(case.changed(what, |r: &mut Rope<'a>| r.width = width)?);
    }
    Ok(all)
}

/// Bases that models use, and the one that fits the output's angles best.
pub fn other_base<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Rope<'a>>()? else { return Ok(vec![]) };
    let with = |base: f64| {
        Variant::of(case, format!("rope with base {base} for {}", stated.base), Rope { base, ..stated.clone() })
    };
    let known = [1e4, 1e6, 5e5, 1e5, 1e7, 5e6, 1.6e5, 2.5e5, 1.5e5, 1e3, 1e8, 2e6, 8e6];
    let mut all: Vec<Variant<'a>> = known.into_iter().filter(|b| *b != stated.base).map(with).collect();
    if let Some(fitted) = fit_base(case, &stated) {
        let new = round_numbers(fitted, 1e-2).into_iter().filter(|b| *b != stated.base && !known.contains(b));
        all.extend(new.map(|base| with(base).with_fitted(base)));
    }
    Ok(all)
}

/// The base that the output's angles say, where neither factors nor YaRN change them. At one position p (times the linear scaling), pair i has turned
/// by φ = p·base^(−2i/D). The last pairs turn by less
/// than π and give base = (φ/p)^(−D/2i) without doubt, but coarsely; each pair before gives it more finely, once the
/// whole turns that it has lost are known from the estimate so far.
fn fit_base(case: &Evidence<'_>, stated: &Rope<'_>) -> Option<f64> {
    let (cols, turned) = (case.cols(), stated.turned);
    if stated.factors.is_some() || stated.yarn.is_some() {
        return None;
    }
    let position = |token: usize| stated.positions[token] * stated.scale;
    // The lowest position that turns at all, of those with wrong elements.
    let token = case.wrong.iter().map(|i| i / cols).find(|t| position(*t) > 0.0)?;
    let p = position(token);
    let mut log_base: Option<(f64, f64)> = None; // estimate, uncertainty
    for pair in (1..turned / 2).rev() {
        let measured = turn(case, stated, token, pair);
        let exponent = turned as f64 / (2.0 * pair as f64);
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

/// Angles that are rounded on the way, in the ways that engines make them; and angles that are off by what f32 leaves open.
pub fn precision<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    const EXACT: Angles = Angles::EXACT;
    let mut ways = vec![
        (
            "angles as an f32 position times an f32 frequency".to_string(),
            Angles { frequency: to_f32, angle: to_f32, ..EXACT },
        ),
        ("frequencies rounded to f32".into(), Angles { frequency: to_f32, ..EXACT }),
        ("angles rounded to f32".into(), Angles { angle: to_f32, ..EXACT }),
        (
            "angles in f32, frequencies as inverses".into(),
            Angles { frequency: to_f32, inverse: true, angle: to_f32, ..EXACT },
        ),
        ("angles in f32, each from the pair before".into(), Angles { chained: true, ..EXACT }),
    ];
    for format in FORMATS {
        let (name, round) = (format.name, format.round);
        ways.extend([
            (format!("positions in {name}"), Angles { position: round, ..EXACT }),
            (format!("frequencies in {name}"), Angles { frequency: round, ..EXACT }),
            (format!("angles in {name}"), Angles { angle: round, ..EXACT }),
            (format!("sines and cosines in {name}"), Angles { trig: round, ..EXACT }),
            (format!("positions and frequencies in {name}"), Angles { position: round, frequency: round, ..EXACT }),
            (
                format!("positions, frequencies and angles in {name}"),
                Angles { position: round, frequency: round, angle: round, ..EXACT },
            ),
            (format!("frequencies and angles in {name}"), Angles { frequency: round, angle: round, ..EXACT }),
            (
                format!("positions, frequencies, angles, sines and cosines in {name}"),
                Angles { position: round, frequency: round, angle: round, trig: round, ..EXACT },
            ),
        ]);
    }
    for (name, cut) in [("f16", cut_to_f16 as fn(f64) -> f64), ("bf16", cut_to_bf16)] {
        ways.extend([
            (format!("positions cut off to {name}"), Angles { position: cut, ..EXACT }),
            (format!("frequencies cut off to {name}"), Angles { frequency: cut, ..EXACT }),
            (format!("angles cut off to {name}"), Angles { angle: cut, ..EXACT }),
        ]);
    }
    let mut all = Vec::new();
    for (what, angles) in ways {
        all.extend(case.changed(format!("rope with {what}"), |r: &mut Rope<'a>| r.angles = angles)?);
    }
    all.extend(turned(case)?);
    Ok(all)
}

/// Each pair of each position turned further by an angle that is the same in every head and no larger than f32 arithmetic leaves open. One
/// number for each, fitted: what speaks for it are the heads. Of one head alone nothing is said: its own numbers would fit whatever its pairs are
/// turned by, and no other head could contradict them.
fn turned<'a>(case: &'a Evidence<'a>) -> Result<Option<Variant<'a>>> {
    /// How well an angle can be measured in f32 values.
    const MEASURED: f64 = 2.4e-7;
    let Some(stated) = case.stated::<Rope<'a>>()? else { return Ok(None) };
    let (cols, d) = (stated.cols, stated.head_dim);
    let (half, heads) = (stated.turned / 2, cols / d);
    if heads < 2 {
        return Ok(None);
    }
    // Of each dimension that turns: its pair, the other dimension of it, and the sign of that one's part.
    let pairing = stated.pairing;
    let mut of_dimension = vec![None; d];
    for pair in 0..half {
        let [a, b] = pairing.dims(pair, half);
        (of_dimension[a], of_dimension[b]) = (Some((pair, b, -1.0)), Some((pair, a, 1.0)));
    }
    // The angle between output and oracle, over all heads.
    let mut turns = vec![0.0; stated.positions.len() * half];
    for (n, turn) in turns.iter_mut().enumerate() {
        let (token, i) = (n / half, n % half);
        let (mut re, mut im) = (0.0, 0.0);
        for head in 0..heads {
            let [a, b] = pairing.dims(i, half).map(|dimension| token * cols + head * d + dimension);
            re += case.exact[a] * case.output[a] + case.exact[b] * case.output[b];
            im += case.exact[a] * case.output[b] - case.exact[b] * case.output[a];
        }
        *turn = im.atan2(re);
        let angle = stated.positions[token] * stated.base.powf(-2.0 * i as f64 / stated.turned as f64);
        let most = angle.abs() * (2.0 * i as f64 + 8.0) * 2f64.powi(-24);
        if turn.is_nan() || turn.abs() > most + MEASURED {
            return Ok(None);
        }
    }
    let value = move |i: usize| {
        let (token, within) = (i / cols, i % cols % d);
        let Some((pair, other, sign)) = of_dimension[within] else { return (i, case.exact[i]) };
        let turn = turns[token * half + pair];
        let partner = i - within + other;
        (partner, case.exact[i] * turn.cos() + sign * case.exact[partner] * turn.sin())
    };
    let energy =
        |of: &dyn Fn(usize) -> f64| (0..case.output.len()).map(|i| (case.output[i] - of(i)).powi(2)).sum::<f64>();
    if energy(&|i| value(i).1) > super::fit::UNACCOUNTED * energy(&|i| case.exact[i]) {
        return Ok(None);
    }
    // Each number that is fitted takes as much as one element says.
    let nats = |i: &usize| super::fit::nats(case.right(*i).residual(case.output[*i]));
    let evidence: f64 = case.wrong.iter().map(nats).sum();
    let share = (2 * heads - 1) as f64 / (2 * heads) as f64;
    let variant = Variant::each(
        "rope with angles that are off by as much as f32 leaves open, the same in every head",
        move |i| {
            let (partner, value) = value(i);
            // The fit takes up rounding of all heads: a little more than what is left of one.
            Point::new(value, 2.0 * case.scene.floor[i].max(case.scene.floor[partner]))
        },
    );
    Ok(Some(variant.with_evidence(evidence * share).assuming(8.0)))
}
