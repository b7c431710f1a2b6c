//! Mistakes in attention: heads, masks, scales, cache rows, the softmax.

use super::case::{Evidence, Variant};
use super::search::round_numbers;
use crate::error::Result;
use crate::formula::attention::{Cache, Context, Scores, Sizes};
use crate::formula::precision::FORMATS;
use crate::formula::softmax::{Form, Seen, SinkPlace, Softmax};
use crate::formula::{Formula, Point};
use crate::op::{LayerLayout, Mla, Op, OpKind, Stage};

/// Sizes of a stage that reads the cache.
fn sizes<'a>(case: &'a Evidence<'a>) -> Result<Option<Sizes>> {
    let context = || Ok(case.stated::<Context<'a>>()?.map(|c| c.sizes));
    case.stated::<Scores<'a>>()?.map_or_else(context, |s| Ok(Some(s.sizes)))
}

/// Either stage that reads the cache, reading something else of it.
fn reading<'a>(case: &'a Evidence<'a>, what: &str, change: impl Fn(&mut Cache)) -> Result<Option<Variant<'a>>> {
    match case.changed(what, |s: &mut Scores<'a>| change(&mut s.cache))? {
        None => case.changed(what, |c: &mut Context<'a>| change(&mut c.cache)),
        scores => Ok(scores),
    }
}

/// Another KV head than h / (heads / kv_heads).
pub fn kv_head<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(sizes) = sizes(case)? else { return Ok(vec![]) };
    type Other = fn(usize, Sizes) -> usize;
    let maps: [(&str, Other); 6] = [
        ("KV head h mod kv_heads for query head h", |h, s| h % s.kv_heads),
        ("KV head 0 for every query head", |_, _| 0),
        ("the last KV head for every query head", |_, s| s.kv_heads - 1),
        ("the next KV head", |h, s| (s.kv_head(h) + 1) % s.kv_heads),
        ("KV head h, up to the last, for query head h", |h, s| h.min(s.kv_heads - 1)),
        ("KV head h / kv_heads for query head h", |h, s| (h / s.kv_heads).min(s.kv_heads - 1)),
    ];
    let mapped = |map: Other| -> Vec<usize> { (0..sizes.heads).map(|h| map(h, sizes)).collect() };
    let mut all = Vec::new();
    for (what, map) in maps.into_iter().filter(|_| sizes.kv_heads > 1) {
        all.extend(reading(case, what, |cache| cache.kv_head = mapped(map))?);
    }
    // A group of another size.
    let group = sizes.heads / sizes.kv_heads.max(1);
    for n in (2..sizes.heads).filter(|n| sizes.kv_heads > 1 && *n != group && !case.unseen) {
        for (what, wraps) in [("up to the last", false), ("modulo kv_heads", true)] {
            let of = |h: usize| if wraps { h / n % sizes.kv_heads } else { (h / n).min(sizes.kv_heads - 1) };
            let what = format!("KV head h / {n}, {what}, for query head h, which belongs to h / {group}");
            all.extend(reading(case, &what, |cache| cache.kv_head = (0..sizes.heads).map(of).collect())?);
        }
    }
    for (what, map) in [
        ("the probabilities of the next head", (|h, s| (h + 1) % s.heads) as Other),
        ("the probabilities of head 0 in every head", |_, _| 0),
        ("the probabilities of the heads in reverse", |h, s| s.heads - 1 - h),
    ] {
        all.extend(case.changed(what, |c: &mut Context<'a>| c.head = mapped(map))?);
    }
    Ok(all)
}

/// Keys that are seen but should not be, and the other way round.
pub fn mask<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let (start, keys, window) = match *case.scene.op {
        Op::AttnScores { start, window, .. } | Op::AttnProbs { start, window, .. } => {
            (start as isize, case.cols(), window)
        }
        Op::AttnContext { start, window, .. } => (start as isize, case.shapes[0][2], window),
        _ => return Ok(vec![]),
    };
    let mut offsets = vec![
        (1, "a mask that lets one later key through".to_string()),
        (-1, "a mask that hides a position's own key".into()),
        (keys as isize, "no mask: every key seen".into()),
    ];
    offsets.extend([2, -2, 3, -3].map(|off| (off, format!("a mask off by {off:+} keys"))));
    if start > 0 {
        offsets.push((-start, "a mask that counts positions from this call's first".into()));
    }
    let mut all = Vec::new();
    for (off, what) in offsets {
        // The first key seen is that of the window, wherever the last is.
        let seen = match window {
            Some(window) if off < keys as isize => {
                let width = (window as isize + off).max(0) as usize;
                Seen::Window { width, to: start + 1 + off }
            }
            _ => Seen::Causal { from: 0, to: start + 1 + off },
        };
        all.extend(reading(case, &what, |cache| cache.seen = seen)?);
        all.extend(case.changed(what, |s: &mut Softmax<'a>| (s.seen, s.written) = (seen, seen))?);
    }
    // What a mask lets through is there before it hides it, though no trace has it.
    if let (Op::AttnProbs { window: None, .. }, 0) = (case.scene.op, start)
        && let Some(hidden) = hidden_scores(case)?
    {
        for (off, what) in [(1, "one later key"), (2, "two later keys"), (keys as isize, "every key")] {
            let what = format!("a mask that lets {what} through, with its score");
            all.extend(letting_through(case, what, &hidden, Seen::Causal { from: 0, to: 1 + off })?);
        }
    }
    if window.is_none() {
        let hidden = Seen::Causal { from: 1, to: start + 1 };
        all.extend(case.changed("a mask that hides the first key", |s: &mut Softmax<'a>| s.seen = hidden)?);
    }
    all.extend(case.each_changed::<Softmax<'a>, _>([(
        "a softmax over the scores of masked keys as well, which are 0, dropped afterwards",
        |s| s.seen = Seen::All,
    )])?);
    Ok(all)
}

/// Only the last keys seen, or where a model has that, all or another number. Where a row of probabilities is seen, the width is how many of
/// them are not 0.
pub fn window<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    /// Widths tried where the output does not say it.
    const WIDTHS: usize = 96;
    let (start, keys, stated) = match *case.scene.op {
        Op::AttnScores { start, window, .. } | Op::AttnProbs { start, window, .. } => {
            (start as isize, case.cols(), window)
        }
        Op::AttnContext { start, window, .. } => (start as isize, case.shapes[0][2], window),
        _ => return Ok(vec![]),
    };
    let last = &case.output[case.output.len() - case.cols()..];
    let said = last.iter().filter(|p| **p != 0.0).count();
    let mut widths: Vec<usize> = match case.is_attention_matrix() && !case.unseen {
        true => Vec::from_iter((said > 0 && said < keys).then_some(said)),
        false => (1..keys).collect(),
    };
    if case.unseen {
        widths.retain(|w| w.is_power_of_two());
    } else if widths.len() > WIDTHS {
        widths.retain(|w| w.is_power_of_two() || (w + 1).is_power_of_two() || *w <= WIDTHS / 2);
    }
    let mut all = Vec::new();
    // The number of the model's own layers, where this one has none: that of another layer.
    let others = case.scene.config.window.as_ref().map(|window| window.keys);
    widths.extend(
        stated.or(others).into_iter().flat_map(|keys| [keys, keys + 1, keys.saturating_sub(1), keys / 2, 2 * keys]),
    );
    widths.sort_unstable();
    widths.dedup();
    // One of as many keys as there are is none: but of the first rows of a call, none so far.
    widths.retain(|width| (1..keys + usize::from(case.unseen)).contains(width) && Some(*width) != stated);
    let mut seen: Vec<(Seen, String)> = widths
        .into_iter()
        .map(|width| {
            let instead = stated.map_or("those before them are not seen".into(), |own| format!("this layer has {own}"));
            (Seen::Window { width, to: start + 1 }, format!("a window of {width} keys: {instead}"))
        })
        .collect();
    if let Some(own) = stated.filter(|own| *own < keys) {
        let none = format!("no window: every key seen, where this layer has {own}");
        seen.insert(0, (Seen::Causal { from: 0, to: start + 1 }, none));
    }
    for (seen, what) in seen {
        all.extend(reading(case, &what, |cache| cache.seen = seen)?);
        all.extend(case.changed(&*what, |s: &mut Softmax<'a>| (s.seen, s.written) = (seen, seen))?);
    }
    Ok(all)
}

/// The exponentials divided by more than their sum: the number that fits, and those that are used.
pub fn softmax_sum<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let with = |plus: f64| {
        let what = format!("a softmax whose exponentials are divided by their sum plus {plus:e}");
        case.changed(what, |s: &mut Softmax<'a>| s.plus = plus)
    };
    let known = [1.0, 1e-6, 1e-5, 1e-8, 1e-3];
    let mut all = Vec::new();
    for plus in known {
        all.extend(with(plus)?);
    }
    // The largest of a row is 1/(Σ + plus), and 1/Σ where it is right.
    let largest = case.wrong.iter().max_by(|a, b| case.exact[**a].total_cmp(&case.exact[**b]));
    let Some((right, output)) = largest.map(|i| (case.exact[*i], case.output[*i])) else { return Ok(all) };
    let cols = case.cols();
    let row = largest.map_or(0, |i| i / cols);
    let most = case.exact[row * cols..][..cols].iter().copied().fold(0.0, f64::max);
    let plus = (right / output - 1.0) / most;
    if plus.is_finite() && plus > 0.0 {
        for plus in round_numbers(plus, 0.2).into_iter().filter(|plus| !known.contains(plus)) {
            all.extend(with(plus)?.map(|variant| variant.with_fitted(plus)));
        }
    }
    Ok(all)
}

/// The scores of a call that starts at position 0, as if no key were masked. [heads, T, T]
fn hidden_scores(case: &Evidence<'_>) -> Result<Option<Vec<Point>>> {
    let config = case.scene.config;
    let mut inputs = Stage::AttnScores.inputs(config.layout().of(case.scene.site.layer));
    let [q, k] = [inputs.next(), inputs.next()].map(|stage| case.scene.earlier.get(stage?));
    let (Some(q), Some(k)) = (q, k) else { return Ok(None) };
    let own = config.mla.map(|_| 1.0 / (config.head_dim as f64).sqrt());
    let (head_dim, scale) = (config.head_dim_of(Stage::AttnScores), config.attention_scale.or(own));
    let op = Op::AttnScores { q: &**q, k: &**k, start: 0, head_dim, scale, window: None };
    let values = [q.to_f64(), k.to_f64()];
    let Some(mut scores) = Scores::stated(&op, &values)? else { return Ok(None) };
    scores.cache.seen = Seen::All;
    if scores.len() != case.output.len() {
        return Ok(None);
    }
    let all: Vec<usize> = (0..scores.len()).collect();
    scores.points(&all, &case.scene.contract).map(Some)
}

/// A softmax of a call that starts at position 0 over more keys than the stated mask shows: of those that it shows the scores are as they are, of the
/// others they are `hidden`. [heads, T, T]
///
/// Nobody has seen the scores that the side computed there: each is off by up to its floor δ. A share of the softmax is p, dp = p·(dx − Σ p·dx), so
/// it is off by up to 2·p·δ, of the largest δ in the row.
fn letting_through<'a>(
    case: &'a Evidence<'a>,
    what: String,
    hidden: &[Point],
    seen: Seen,
) -> Result<Option<Variant<'a>>> {
    let Some(mut softmax) = case.stated::<Softmax<'a>>()? else { return Ok(None) };
    let (cols, tokens, shown) = (softmax.cols, softmax.tokens, softmax.seen);
    let mut scores = case.inputs[0].clone();
    let mut slack = vec![0.0; scores.len() / cols.max(1)];
    for (row, slack) in slack.iter_mut().enumerate() {
        let (t, start) = (row % tokens, row * cols);
        let shown = shown.of(t, cols);
        for key in seen.of(t, cols).filter(|key| !shown.contains(key)) {
            scores[start + key] = hidden[start + key].value;
            *slack = hidden[start + key].floor.max(*slack);
        }
    }
    (softmax.x, softmax.seen, softmax.written) = (scores.into(), seen, seen);
    let contract = case.scene.contract;
    Ok(Some(Variant::new(what, move |indices| {
        let mut points = softmax.points(indices, &contract)?;
        points.iter_mut().zip(indices).for_each(|(p, i)| p.floor += 2.0 * p.value.abs() * slack[i / cols]);
        Ok(points)
    })))
}

/// Of latent attention, whose scale is that of a head's width whatever is multiplied, and has YaRN's magnitude twice: other widths, and another part
/// of that.
fn latent_scale<'a>(case: &'a Evidence<'a>, stated: f64) -> Result<Vec<Variant<'a>>> {
    let config = case.scene.config;
    let Some(mla) = config.mla else { return Ok(vec![]) };
    let width = |n: usize| 1.0 / (n as f64).sqrt();
    let own = width(config.head_dim);
    let nope = config.head_dim - mla.turned;
    let mut ways = vec![
        (format!("the scale 1/√{}, of the columns that do not turn, for 1/√{}", nope, config.head_dim), width(nope)),
        (
            format!("the scale 1/√{}, of the columns that turn, for 1/√{}", mla.turned, config.head_dim),
            width(mla.turned),
        ),
        (format!("the scale 1/√{}, of the latent, for 1/√{}", mla.rank, config.head_dim), width(mla.rank)),
        (
            format!("the scale 1/√{}, of what is stored of a key, for 1/√{}", mla.row(), config.head_dim),
            width(mla.row()),
        ),
    ];
    let stretch = stated / own;
    if (stretch - 1.0).abs() > 1e-9 {
        for (_, scale) in &mut ways {
            *scale *= stretch;
        }
        ways.push((format!("the scale 1/√{} without YaRN's {stretch:.4}", config.head_dim), own));
        ways.push((
            format!("YaRN's magnitude {:.4} in the scale once, not twice", stretch.sqrt()),
            own * stretch.sqrt(),
        ));
        ways.push((format!("the scale divided by YaRN's {stretch:.4}"), own / stretch));
        let row = mla.row();
        ways.push((format!("the scale 1/√{row}, of what is stored of a key, without YaRN's {stretch:.4}"), width(row)));
    }
    ways.retain(|(_, scale)| (scale / stated - 1.0).abs() > 1e-12);
    let with = |(what, scale): (String, f64)| case.changed(what, |s: &mut Scores<'a>| s.scale = scale).transpose();
    ways.into_iter().filter_map(with).collect()
}

/// Another scale than 1/√D.
pub fn scale<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let config = case.scene.config;
    let mut all = Vec::new();
    if let Some(Scores { sizes, scale: stated, .. }) = case.stated()? {
        let d = sizes.head_dim as f64;
        all.extend(latent_scale(case, stated)?);
        let hidden_per_head = config.hidden as f64 / config.heads.max(1) as f64;
        for (what, scale) in [
            ("the scale 1/√D", 1.0 / d.sqrt()),
            ("no scale at all", 1.0),
            ("the scale applied twice", stated * stated),
            ("√D for 1/√D", d.sqrt()),
            ("the scale 1/√(hidden/heads)", 1.0 / hidden_per_head.sqrt()),
            ("the scale 1/√hidden", 1.0 / (config.hidden as f64).sqrt()),
            ("the scale 1/√(D/2)", 1.0 / (d / 2.0).sqrt()),
            ("the scale 1/√(2D)", 1.0 / (d * 2.0).sqrt()),
        ] {
            // Of latent attention it is said what D is.
            let said = config.mla.is_some() && scale == 1.0 / d.sqrt();
            if scale != stated && !said {
                all.extend(case.changed(what, |s: &mut Scores<'a>| s.scale = scale)?);
            }
        }
    }
    let d = config.head_dim as f64;
    for (what, factor) in [
        ("scores scaled by 1/√D once more", 1.0 / d.sqrt()),
        ("scores with their scale taken back, times √D", d.sqrt()),
    ] {
        all.extend(case.changed(what, |s: &mut Softmax<'a>| s.factor = factor)?);
    }
    all.extend(case.changed("2^x for e^x", |s: &mut Softmax<'a>| {
        s.factor = std::f64::consts::LN_2;
        s.sinks.iter_mut().flatten().for_each(|sink| *sink *= std::f64::consts::LN_2);
    })?);
    Ok(all)
}

/// A cache that does not hold what was stored.
pub fn cache<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    /// Single rows tried.
    const ROWS: usize = 64;
    let Some(sizes) = sizes(case)? else { return Ok(vec![]) };
    let Sizes { keys, tokens, start, .. } = sizes;
    let mut all = Vec::new();
    type Row = fn(usize, Sizes) -> Option<usize>;
    let mut whole: Vec<(&str, Row)> = vec![
        ("a cache written one row late", |p, _| p.checked_sub(1)),
        ("a cache written one row early", |p, s| Some(p + 1).filter(|p| *p < s.keys)),
        ("the cache's first row for every position", |_, _| Some(0)),
    ];
    if start > 0 {
        whole.push(("a cache to which this call's rows were not written", |p, s| Some(p).filter(|p| *p < s.start)));
        whole.push(("a cache that this call overwrote from row 0", |p, s| {
            if p < s.tokens { Some(s.start + p) } else { Some(p).filter(|p| *p < s.start) }
        }));
        whole.push(("this call's rows written one row late", |p, s| match p {
            p if p < s.start => Some(p),
            p if p == s.start => None,
            p => Some(p - 1),
        }));
        whole.push(("this call's rows written one row early", |p, s| {
            if p + 1 < s.start { Some(p) } else { Some(p + 1).filter(|p| *p < s.keys) }
        }));
        whole.push(("a cache whose last row is still that of the position before", |p, s| Some(p.min(s.keys - 2))));
    }
    for (what, row) in whole {
        all.extend(reading(case, what, |cache| cache.row = (0..keys).map(|p| row(p, sizes)).collect())?);
    }
    // Scores say which keys are wrong; a context does not, so all rows are tried, or the first and the latest.
    let mut rows: Vec<usize> = match case.is_attention_matrix() {
        true => case.wrong.iter().map(|i| i % keys).collect(),
        false => (0..keys).collect(),
    };
    rows.sort_unstable();
    rows.dedup();
    if rows.len() > ROWS {
        rows.drain(ROWS / 4..rows.len() - ROWS * 3 / 4);
    }
    for p in rows {
        all.extend(reading(case, &format!("a cache whose row {p} is empty"), |cache| cache.row[p] = None)?);
        let mut others = Vec::from_iter(p.checked_sub(1));
        others.extend(Some(p + 1).filter(|after| *after < keys));
        others.extend((p >= tokens && p >= start && start > 0).then(|| p - tokens));
        for other in others {
            let what = format!("a cache whose row {p} holds row {other}");
            all.extend(reading(case, &what, |cache| cache.row[p] = Some(other))?);
        }
    }
    Ok(all)
}

/// The stages that lead up to rope, the last first, of a chain of projection, bias and norm; and what the values of each are.
fn before_rope(name: &str, chain: [Stage; 3], layout: LayerLayout) -> Vec<(Stage, String)> {
    let mut found = Vec::new();
    let mut before = vec!["rope"];
    for stage in chain.into_iter().rev().filter(|s| s.info().scope.occurs(layout)) {
        found.push((stage, format!("{name} before {}", before.join(" and "))));
        before.insert(0, if stage.info().op == OpKind::Bias { "its bias" } else { "its norm" });
    }
    found
}

/// Another tensor for q, k or v.
pub fn other_operand<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = Vec::new();
    let earlier = |stage: Stage| case.scene.earlier.get(stage);
    let layout = case.scene.config.layout();
    for (stage, what) in before_rope("q", [Stage::QProj, Stage::QBias, Stage::QNorm], layout) {
        if let Some(q) = earlier(stage).filter(|q| q.len() == case.inputs[0].len()) {
            let (emulation, values) = case.in_place(0, q)?;
            all.extend(case.changed(what, |s: &mut Scores<'a>| (s.q = values.into(), s.emulate(&emulation)).1)?);
        }
    }
    all.extend(latents(case)?);
    // This call's rows are the whole cache only in the first call.
    if case.scene.start == 0 {
        let v = if layout.qkv_bias { Stage::VBias } else { Stage::VProj };
        let mut stages = before_rope("k", [Stage::KProj, Stage::KBias, Stage::KNorm], layout);
        stages.push((v, "v in the keys' place".into()));
        stages.push((Stage::KRope, "k after rope".into()));
        if layout.qkv_bias {
            stages.push((Stage::VProj, "v before its bias".into()));
        }
        for (stage, what) in stages {
            let Some(rows) =
                earlier(stage).filter(|rows| case.shapes.get(1).is_some_and(|of| of.last() == Some(&rows.cols())))
            else {
                continue;
            };
            // What is stored is of the cache's format, whatever it is.
            let (emulation, values) = case.in_place(1, rows)?;
            if stage != Stage::KRope {
                let values = values.clone();
                let change = |s: &mut Scores<'a>| (s.k = values.into(), s.emulate(&emulation)).1;
                all.extend(case.changed(what.clone(), change)?);
            }
            if stage != v {
                let what = format!("{what} in the values' place");
                let change = |c: &mut Context<'a>| (c.v = values.into(), c.emulate(&emulation)).1;
                all.extend(case.changed(what, change)?);
            }
        }
    }
    Ok(all)
}

/// Of latent attention: what is stored of a key from before its rope or its norm, and other columns of that for the latent.
fn latents<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(mla) = case.scene.config.mla.filter(|mla| mla.form == Mla::Absorbed && case.scene.start == 0) else {
        return Ok(vec![]);
    };
    let (row, rank) = (mla.row(), mla.rank);
    let mut all = Vec::new();
    let stored =
        |stage: Stage| case.scene.earlier.get(stage).filter(|rows| rows.cols() == row).map(|rows| rows.to_f64());
    for (stage, what) in [
        (Stage::KvNorm, "keys from before their rope"),
        (Stage::KvA, "keys from before the latent's norm and their rope"),
    ] {
        if let Some(rows) = stored(stage) {
            all.extend(case.changed(what, |s: &mut Scores<'a>| s.k = rows.into())?);
        }
    }
    // [T, rank], from the columns that `first` begins with, or from rows of rank columns.
    let from = |rows: &[f64], first: usize| -> Vec<f64> {
        rows.chunks_exact(row).flat_map(|row| row[first..][..rank].to_vec()).collect()
    };
    for (stage, first, what) in [
        (Stage::KvA, 0, "latents from before their norm".to_string()),
        (Stage::KRope, mla.turned, format!("the last {rank} columns of what is stored of a key for its first")),
        (Stage::KvNorm, mla.turned, format!("the last {rank} columns of latent and key for the first, before rope")),
    ] {
        if let Some(rows) = stored(stage) {
            all.extend(case.changed(what, |c: &mut Context<'a>| c.v = from(&rows, first).into())?);
        }
    }
    if let Some(rows) = stored(Stage::KRope) {
        let packed: Vec<f64> = rows[..rows.len() / row * rank].to_vec();
        let what = format!("latents in rows of {rank}, of what is stored in rows of {row}");
        all.extend(case.changed(what, |c: &mut Context<'a>| c.v = packed.into())?);
    }
    Ok(all)
}

/// A sink that is not its head's, or is not where it belongs.
pub fn sinks<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::AttnProbs { sinks: Some(weight), .. } = case.scene.op else { return Ok(vec![]) };
    let Some(stated) = case.stated::<Softmax<'a>>()? else { return Ok(vec![]) };
    let own = stated.sinks.unwrap_or_default();
    let (heads, config) = (own.len().max(1), case.scene.config);
    let group = (config.heads / config.kv_heads.max(1)).max(1);
    let mut all = case.each_changed::<Softmax<'a>, _>([
        ("no sinks", |s| s.sinks = None),
        ("a sink that is added to the sum without the largest score taken from it", |s| s.sink = SinkPlace::Added),
        ("a sink that is added to the sum without the largest of scores and sink taken from it", |s| {
            s.sink = SinkPlace::AddedOfAll;
        }),
    ])?;
    let of = |map: &dyn Fn(usize) -> usize| (0..own.len()).map(|head| own[map(head)]).collect::<Vec<f64>>();
    let with = |change: &dyn Fn(f64) -> f64| own.iter().map(|sink| change(*sink)).collect::<Vec<f64>>();
    let per_head = 1.0 / (config.head_dim as f64).sqrt();
    for (what, values) in [
        ("the sink of the next head".to_string(), of(&|head| (head + 1) % heads)),
        ("the sink of the head before".into(), of(&|head| (head + heads - 1) % heads)),
        ("the sink of head 0 for every head".into(), of(&|_| 0)),
        ("the sinks of the heads in reverse".into(), of(&|head| heads - 1 - head)),
        ("the sink of the KV head's number".into(), of(&|head| head / group)),
        ("the sink of the first head that shares the KV head".into(), of(&|head| head / group * group)),
        ("sinks of 0: one more exponential of 0 in the sum".into(), with(&|_| 0.0)),
        ("sinks with the other sign".into(), with(&|sink| -sink)),
        ("sinks scaled by 1/√D".into(), with(&|sink| sink * per_head)),
        ("sinks times √D".into(), with(&|sink| sink / per_head)),
        (
            "sinks times ln 2, as in a kernel of 2^x that scales the scores alone".into(),
            with(&|sink| sink * std::f64::consts::LN_2),
        ),
        ("sinks times log₂ e".into(), with(&|sink| sink * std::f64::consts::LOG2_E)),
        ("sinks that count twice in the sum".into(), with(&|sink| sink + 2f64.ln())),
        ("exponentials of sinks taken for sinks".into(), with(&f64::exp)),
    ] {
        all.extend(case.changed(what, |s: &mut Softmax<'a>| s.sinks = Some(values))?);
    }
    for other in case.other_weights(weight) {
        if other.name.contains("attn_sinks") {
            let values: Vec<f64> = other.f32s().map(f64::from).collect();
            let what = format!("{} as the sinks", other.name);
            all.extend(case.changed(what, |s: &mut Softmax<'a>| s.sinks = Some(values))?);
        }
    }
    Ok(all)
}

/// A softmax that is none, or not over the largest score.
pub fn softmax_kind<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = case.each_changed::<Softmax<'a>, _>([
        ("a softmax without its division by the sum", |s| s.form = Form::Undivided),
        ("no softmax: the scores themselves", |s| s.form = Form::Itself),
        ("a softmax that does not subtract the largest score, overflowing", |s| s.form = Form::Unguarded),
        ("equal weights for every key seen", |s| s.form = Form::Equal),
    ])?;
    all.extend(largest_from(case)?);
    Ok(all)
}

/// A search for the largest score that begins at a finite number, and keeps it where every score is below. What is subtracted cancels in the
/// division, but for exponentials that are no normal numbers: in f32 those of scores that lie 87 below it, in f16 those that lie 10 below.
fn largest_from<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    /// 0 as memory is cleared to, and what kernels write for −∞: −1e4, and of the most negative half one half and the whole.
    const STARTS: [f64; 4] = [0.0, -1e4, -32752.0, -65504.0];
    let Some(stated) = case.stated::<Softmax<'a>>()? else { return Ok(vec![]) };
    let largest = |row: usize| stated.entries(row).into_iter().fold(f64::NEG_INFINITY, f64::max);
    let least = (0..case.output.len() / case.cols()).map(largest).fold(f64::INFINITY, f64::min);
    let mut all = Vec::new();
    for start in STARTS.into_iter().filter(|start| least < *start) {
        let what = format!("a largest score that is not below {start}");
        let coarse = format!("{what}, and exponentials in f16");
        // Its floor is wide where exponentials nearly vanish.
        all.extend(case.changed(what, |s: &mut Softmax<'a>| s.least = start)?.map(Variant::loosely));
        let change = |s: &mut Softmax<'a>| (s.least, s.exponentials) = (start, Some(FORMATS[0]));
        all.extend(case.changed(coarse, change)?);
    }
    Ok(all)
}
