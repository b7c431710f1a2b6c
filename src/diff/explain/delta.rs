//! Mistakes in the gated delta rule: heads, gates, what the state holds and when, and what is read from it.

use super::case::{Evidence, Variant};
use super::linear_attention::orders;
use crate::error::Result;
use crate::formula::delta::{Delta, DeltaSizes};
use crate::formula::norm::columns;
use crate::op::Stage;

/// Heads of keys, of values and of gates.
pub fn heads<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(Delta { sizes, key_head, value_column, decay, .. }) = case.stated()? else { return Ok(vec![]) };
    let DeltaSizes { heads, key_heads, head_dim: d, value_cols, .. } = sizes;
    let mut all = Vec::new();
    if key_heads > 1 {
        let each = heads / key_heads;
        let stated = &key_head[0];
        type Head = fn(usize, DeltaSizes) -> usize;
        let mut maps: Vec<(String, Vec<usize>)> = [
            ("key head h mod Hk for value head h", (|h, s| s.key_head(h, true)) as Head),
            ("key head h / (Hv / Hk) for value head h", |h, s| s.key_head(h, false)),
            ("key head 0 for every value head", |_, _| 0),
            ("key head h, up to the last, for value head h", |h, s| h.min(s.key_heads - 1)),
            ("key head h / Hk for value head h", |h, s| (h / s.key_heads).min(s.key_heads - 1)),
        ]
        .map(|(what, of)| (what.to_string(), (0..heads).map(|h| of(h, sizes)).collect()))
        .into();
        maps.push(("the next key head".into(), stated.iter().map(|h| (h + 1) % key_heads).collect()));
        maps.retain(|(_, map)| map != stated);
        for (what, map) in maps {
            let [of_queries, of_keys] = [map.clone(), map.clone()];
            all.extend(case.changed(what.clone(), |s: &mut Delta<'a>| s.key_head = [map.clone(), map])?);
            if each > 1 {
                let queries = format!("{what}, of queries alone");
                all.extend(case.changed(queries, |s: &mut Delta<'a>| s.key_head[0] = of_queries)?);
                let keys = format!("{what}, of keys alone");
                all.extend(case.changed(keys, |s: &mut Delta<'a>| s.key_head[1] = of_keys)?);
            }
        }
    }
    // Value heads that read another's columns or gates.
    let mut maps: Vec<(String, Vec<usize>)> = Vec::new();
    if heads > 1 {
        maps.push(("of the next head".into(), (0..heads).map(|h| (h + 1) % heads).collect()));
        maps.push(("of the head before".into(), (0..heads).map(|h| (h + heads - 1) % heads).collect()));
        maps.push(("of head 0 for every head".into(), vec![0; heads]));
        maps.push(("of the heads in reverse".into(), (0..heads).rev().collect()));
    }
    maps.extend(orders(case, heads).into_iter().map(|(what, order)| (format!("of the heads {what}"), order)));
    let gate = |values: &[f64], map: &[usize]| -> Vec<f64> {
        values.chunks_exact(heads).flat_map(|row| map.iter().map(|h| row[*h])).collect()
    };
    for (what, map) in &maps {
        let from: Vec<usize> = map.iter().map(|h| value_column[*h]).collect();
        all.extend(case.changed(format!("the values {what}"), |s: &mut Delta<'a>| s.value_column = from)?);
        let (decays, betas) = (gate(&decay, map), gate(&case.inputs[4], map));
        let both = (decays.clone(), betas.clone());
        let what = |gates: &str| format!("the {gates} {what}");
        all.extend(case.changed(what("decays"), |s: &mut Delta<'a>| s.decay = decays.into())?);
        let of_beta = |s: &mut Delta<'a>, betas: Vec<f64>| s.beta = [betas.clone().into(), betas.into()];
        all.extend(case.changed(what("betas"), |s: &mut Delta<'a>| of_beta(s, betas))?);
        all.extend(case.changed(what("decays and betas"), |s: &mut Delta<'a>| {
            s.decay = both.0.into();
            of_beta(s, both.1);
        })?);
    }
    for (what, first) in [("queries", 0), ("keys", key_heads * d)] {
        if first + heads * d <= value_cols && first != value_column[0] {
            let from = (0..heads).map(|h| first + h * d).collect();
            let what = format!("values that begin where the {what} do");
            all.extend(case.changed(what, |s: &mut Delta<'a>| s.value_column = from)?);
        }
    }
    Ok(all)
}

/// The decay of the state.
pub fn decay<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Delta<'a>>()? else { return Ok(vec![]) };
    let DeltaSizes { heads, start, tokens, .. } = stated.sizes;
    let own: Vec<f64> = stated.decay[start * heads..][..tokens * heads].iter().map(|decay| decay.exp()).collect();
    // The decay of the position before, which is that of a state that is decayed when it has been updated.
    let late = |s: &mut Delta<'a>| {
        let decay = s.decay.to_mut();
        decay.rotate_right(heads);
        decay[..heads].fill(0.0);
    };
    let mut all = case.each_changed::<Delta<'a>, _>([
        ("no decay of the state", |s| s.decay.to_mut().fill(0.0)),
        ("a state that grows: the decay's sign turned", |s| s.decay.to_mut().iter_mut().for_each(|x| *x = -*x)),
        ("2^x for e^x in the decay", |s| s.decay.to_mut().iter_mut().for_each(|x| *x *= std::f64::consts::LN_2)),
        ("the decay's logarithm for the decay", |s| s.decay.to_mut().iter_mut().for_each(|x| *x = x.ln())),
        ("the decay applied twice", |s| s.decay.to_mut().iter_mut().for_each(|x| *x *= 2.0)),
        ("a correction by what the state held before its decay", |s| {
            let held = s.beta[1].to_mut();
            held.iter_mut().zip(&*s.decay).for_each(|(beta, decay)| *beta /= decay.exp());
        }),
    ])?;
    all.extend(case.changed("the decay after the update, and before the output", |s: &mut Delta<'a>| {
        late(s);
        s.times = Some(own.clone());
    })?);
    all.extend(case.changed("the decay after the output", late)?);
    all.extend(case.changed("the output decayed once more", |s: &mut Delta<'a>| s.times = Some(own.clone()))?);
    Ok(all)
}

/// How much of a correction is made.
pub fn beta<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<Delta<'a>, _>([
        ("no beta: whole corrections", |s| s.beta.iter_mut().for_each(|beta| beta.to_mut().fill(1.0))),
        ("beta on the values alone", |s| s.beta[1].to_mut().fill(1.0)),
        ("beta on what the state holds alone", |s| s.beta[0].to_mut().fill(1.0)),
        ("beta applied twice", |s| {
            s.beta.iter_mut().for_each(|beta| beta.to_mut().iter_mut().for_each(|x| *x *= *x));
        }),
        ("no correction: beta · v is added whatever the state holds", |s| s.beta[1].to_mut().fill(0.0)),
        ("no correction and no beta: v is added whatever the state holds", |s| {
            s.beta[0].to_mut().fill(1.0);
            s.beta[1].to_mut().fill(0.0);
        }),
        ("what the state holds added to the value, not taken from it", |s| {
            s.beta[1].to_mut().iter_mut().for_each(|beta| *beta = -*beta);
        }),
        ("the logit of beta, without its sigmoid", |s| {
            s.beta.iter_mut().for_each(|beta| beta.to_mut().iter_mut().for_each(|x| *x = (*x / (1.0 - *x)).ln()));
        }),
        ("2 · beta: corrections that may overshoot", |s| {
            s.beta.iter_mut().for_each(|beta| beta.to_mut().iter_mut().for_each(|x| *x *= 2.0));
        }),
        ("beta and decay exchanged", |s| {
            let decay: Vec<f64> = s.decay.iter().map(|x| x.exp()).collect();
            s.decay = s.beta[0].iter().map(|x| x.ln()).collect();
            s.beta = [decay.clone().into(), decay.into()];
        }),
    ])
}

/// When the state is read, and when it begins anew.
pub fn state<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(Delta { sizes, .. }) = case.stated()? else { return Ok(vec![]) };
    let DeltaSizes { heads, start, tokens, .. } = sizes;
    let anew = |what: String, at: &dyn Fn(usize) -> bool| {
        case.changed(what, |s: &mut Delta<'a>| {
            let rows = s.decay.to_mut().chunks_exact_mut(heads).enumerate();
            rows.filter(|(position, _)| at(*position)).for_each(|(_, row)| row.fill(f64::NEG_INFINITY));
        })
    };
    let mut all = case.each_changed::<Delta<'a>, _>([
        ("the output of the state before the position's update", |s| s.lag = 1),
        ("the state read by rows, S·q for Sᵀq", |s| s.transposed = true),
    ])?;
    if start > 0 {
        all.extend(anew("a state that begins anew with the call".into(), &|position| position == start)?);
        // Of earlier calls, which had one position each where a text was being written.
        let lost = "a state without the position before the call";
        all.extend(case.changed(lost, |s: &mut Delta<'a>| {
            s.beta.iter_mut().for_each(|beta| beta.to_mut()[(start - 1) * heads..][..heads].fill(0.0));
            s.decay.to_mut()[(start - 1) * heads..][..heads].fill(0.0);
        })?);
    }
    all.extend(anew("a state of the position alone".into(), &|_| true)?);
    for n in [64, 32, 16, 128, 256, 8, 4, 2].into_iter().filter(|n| *n < sizes.start + tokens) {
        all.extend(anew(format!("a state that begins anew every {n} positions"), &|position| position % n == 0)?);
        if start % n != 0 && n < tokens {
            let of_call = |position: usize| position > start && (position - start).is_multiple_of(n);
            all.extend(anew(format!("a state that begins anew every {n} positions of the call"), &of_call)?);
        }
    }
    Ok(all)
}

/// What the output is multiplied by.
pub fn scale<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<Delta<'a>, _>([
        ("no scale 1/√D", |s| s.scale = 1.0),
        ("the scale 1/√D applied twice", |s| s.scale *= s.scale),
        ("√D for 1/√D", |s| s.scale = 1.0 / s.scale),
    ])
}

/// Another tensor for q, k or v, or another position's.
pub fn operand<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(Delta { sizes, value_column, .. }) = case.stated()? else { return Ok(vec![]) };
    let DeltaSizes { key_heads, head_dim: d, tokens, start, .. } = sizes;
    let width = key_heads * d;
    let seen = (start + tokens) * width;
    let before = |rows: &[f64], cols: usize| [&vec![0.0; cols][..], &rows[..rows.len() - cols]].concat();
    let (q, k) = (&case.inputs[0], &case.inputs[1]);
    let mut all = Vec::new();
    let q_before = match start.checked_sub(1) {
        None => before(q, width),
        Some(_) => [&q[..width], &q[..q.len() - width]].concat(), // what is before the call is not there
    };
    let unknown = move |i: usize| start > 0 && i < sizes.heads * d;
    let late = case.changed("the query of the position before", |s: &mut Delta<'a>| s.q = q_before.into())?;
    all.extend(late.map(|variant| variant.unknown_at(unknown)));
    let k_before = before(&k[..seen], width);
    all.extend(case.changed("the key of the position before", |s: &mut Delta<'a>| s.k = k_before.into())?);
    let v_before = before(&case.inputs[2], sizes.value_cols);
    all.extend(case.changed("the value of the position before", |s: &mut Delta<'a>| s.v = v_before.into())?);
    let own = k[start * width..seen].to_vec();
    all.extend(case.changed("the key for the query", |s: &mut Delta<'a>| s.q = own.into())?);
    let conv = case.scene.earlier.get(Stage::LinearAttnConv).filter(|conv| conv.shape[0] == tokens);
    let conv = conv.filter(|conv| conv.cols() >= 2 * width).map(|conv| (conv.to_f64(), conv.cols()));
    if let Some((values, cols)) = &conv {
        let of = columns(values, *cols, 0, width).into_owned();
        all.extend(case.changed("queries before their norm", |s: &mut Delta<'a>| s.q = of.into())?);
    }
    // This call's rows are all that there are only in the first call.
    if start == 0 {
        let queries = q.clone();
        all.extend(case.changed("the query for the key", |s: &mut Delta<'a>| s.k = queries.into())?);
        let (queries, keys) = (q.clone(), k[..seen].to_vec());
        all.extend(case.changed("queries and keys exchanged", |s: &mut Delta<'a>| {
            (s.q, s.k) = (keys.into(), queries.into());
        })?);
        if let Some((values, cols)) = &conv {
            let of = columns(values, *cols, width, width).into_owned();
            all.extend(case.changed("keys before their norm", |s: &mut Delta<'a>| s.k = of.into())?);
            let [queries, keys] = [0, width].map(|first| columns(values, *cols, first, width).into_owned());
            all.extend(case.changed("queries and keys before their norms", |s: &mut Delta<'a>| {
                (s.q, s.k) = (queries.into(), keys.into());
            })?);
        }
        let qkv = case.scene.earlier.get(Stage::LinearAttnQkv);
        if let Some(qkv) = qkv.filter(|qkv| qkv.cols() == sizes.value_cols && value_column[0] > 0) {
            let what = "values before their convolution";
            all.extend(case.changed(what, |s: &mut Delta<'a>| s.v = qkv.to_f64().into())?);
        }
    }
    Ok(all)
}
