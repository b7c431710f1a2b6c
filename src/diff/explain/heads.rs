//! Mistakes by heads: rows and biases of q, k and v in another order; in products by heads, of latent attention, another head's matrix or columns, rows that are
//! taken apart otherwise, and what is kept beside the products.

use super::case::{Evidence, Variant};
use super::linear_attention::decay_bias;
use super::weights;
use crate::error::Result;
use crate::formula::linear::{Decode, Linear, as_it_is};
use crate::formula::pointwise::Sum;
use crate::model::{LatentHeads, Mixer};
use crate::op::{Op, Stage, Weight};

/// Of a head, whose is taken in its place, among so many.
type Other = fn(usize, usize) -> usize;

const OTHERS: [(&str, Other); 6] = [
    ("the next head", |h, n| (h + 1) % n),
    ("the head before", |h, n| (h + n - 1) % n),
    ("head 0 for every head", |_, _| 0),
    ("the heads in reverse", |h, n| n - 1 - h),
    ("the heads of both halves in turn", |h, n| h % 2 * (n / 2) + h / 2),
    (
        "the even heads and then the odd ones",
        |h, n| if h < n.div_ceil(2) { 2 * h } else { 2 * (h - n.div_ceil(2)) + 1 },
    ),
];

/// Whose row of a weight, or whose bias, is in a row's place, and in words.
pub(super) type RowOrder = (&'static str, Box<dyn Fn(usize) -> usize + Send + Sync>);

/// Orders of the rows of a projection's heads that are not the file's: of another head; and for q and k those of the other pairing of rope,
/// which converters bring about (`permute` of llama.cpp's convert_hf_to_gguf.py) and undo.
pub(super) fn row_orders(case: &Evidence<'_>) -> Vec<RowOrder> {
    use Stage::*;
    let (stage, rows) = (case.scene.site.stage, case.cols());
    let turned = matches!(stage, QProj | KProj | QBias | KBias);
    let d = case.scene.config.head_dim_of(stage);
    if !turned && !matches!(stage, VProj | VBias) || d == 0 || !rows.is_multiple_of(d) {
        return Vec::new();
    }
    let mut all: Vec<RowOrder> = Vec::new();
    if rows > d {
        all.push(("the next head", Box::new(move |row| (row + d) % rows)));
        all.push(("the head before", Box::new(move |row| (row + rows - d) % rows)));
    }
    if turned && d.is_multiple_of(2) && d > 2 {
        let (first, half) = (move |row: usize| row / d * d, d / 2);
        let interleaved = move |row: usize| first(row) + row % d / 2 + row % 2 * half;
        let apart = move |row: usize| first(row) + row % d % half * 2 + row % d / half;
        all.push(("each head's dimensions interleaved, i and i + D/2 as 2i and 2i + 1", Box::new(interleaved)));
        all.push(("each head's dimensions taken apart, 2i and 2i + 1 as i and i + D/2", Box::new(apart)));
    }
    all
}

/// The bias of another head, or of a head's other dimensions.
pub fn head_bias<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    if case.scene.site.stage == Stage::LinearAttnDt {
        return decay_bias(case);
    }
    let mut all = Vec::new();
    for (what, from) in row_orders(case) {
        let reorder =
            |s: &mut Sum<'a>| s.operands[1] = (0..s.operands[1].len()).map(|i| s.operands[1][from(i)]).collect();
        all.extend(case.changed(format!("the bias of {what}"), reorder)?);
    }
    Ok(all)
}

/// The matrix of another head, the columns of another, or rows that heads take in turn.
pub fn other_head<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::HeadMatMul { x, weight, head_dim, .. } = case.scene.op else { return Ok(vec![]) };
    let (weight, heads): (&'a Weight, usize) = (*weight, weight.experts);
    let mut all = Vec::new();
    let distinct = |map: Other| (0..heads).any(|h| map(h, heads) != h);
    for (what, map) in OTHERS.into_iter().filter(|(_, map)| distinct(*map)) {
        let change = |l: &mut Linear<'a>| l.slots.iter_mut().for_each(|slot| slot.1 = map(slot.1, heads));
        all.extend(case.changed(format!("the matrix of {what}"), change)?);
        if x.cols() > *head_dim {
            let change = |l: &mut Linear<'a>| {
                l.slots.iter_mut().for_each(|slot| slot.0 = slot.0 / heads * heads + map(slot.0 % heads, heads));
            };
            all.extend(case.changed(format!("the columns of {what}, with a head's own matrix"), change)?);
        }
    }
    if *head_dim > weight.cols {
        let what = format!("the last {} of a head's {head_dim} columns for its first", weight.cols);
        let last = case.inputs[0].chunks_exact(*head_dim).flat_map(|head| &head[head_dim - weight.cols..]).copied();
        let last: Vec<f64> = last.collect();
        all.extend(case.changed(what, |l: &mut Linear<'a>| l.x = last.into())?);
    }
    let (rows, what) = (weight.rows, "rows of the matrices that heads take in turn");
    let in_turn: Decode<'a> = Box::new(move |head, row, product, offset| {
        let joint = row * heads + head;
        as_it_is(weight)(joint / rows, joint % rows, product, offset)
    });
    all.extend(weights::with(case, what, in_turn)?);
    all.extend(parts(case, weight)?);
    Ok(all)
}

/// Keys' and values' rows where one weight holds both, those of each head together: taken for all keys and then all values, or each for the
/// other.
fn parts<'a>(case: &'a Evidence<'a>, weight: &'a Weight) -> Result<Vec<Variant<'a>>> {
    let layer = case.scene.site.layer.and_then(|layer| case.scene.weights.layers.get(layer as usize));
    let Some(Mixer::Latent(latent)) = layer.map(|layer| &layer.mixer) else { return Ok(vec![]) };
    let LatentHeads::Plain { k, v } = &latent.heads else { return Ok(vec![]) };
    let (k, v): (&'a Weight, &'a Weight) = (k, v);
    let is_key = weight.id == k.id;
    if !is_key && weight.id != v.id {
        return Ok(vec![]);
    }
    let (heads, keys, values) = (k.experts, k.rows, v.rows);
    let mut all = Vec::new();
    let mut with = |what: &str, place: &dyn Fn(usize, usize) -> usize| {
        let places: Vec<Vec<usize>> =
            (0..heads).map(|h| (0..if is_key { keys } else { values }).map(|row| place(h, row)).collect()).collect();
        let decode: Decode<'a> = Box::new(move |head, row, product, offset| {
            let joint = places[head][row];
            let (head, within) = (joint / (keys + values), joint % (keys + values));
            match within.checked_sub(keys) {
                None => as_it_is(k)(head, within, product, offset),
                Some(within) => as_it_is(v)(head, within, product, offset),
            }
        });
        all.extend(weights::with(case, what, decode)?);
        Ok::<_, crate::error::Error>(())
    };
    with("rows of the weight of keys and values as all heads' keys and then all values", &|h, row| match is_key {
        true => h * keys + row,
        false => heads * keys + h * values + row,
    })?;
    with("rows of the weight of keys and values with each head's values before its keys", &|h, row| match is_key {
        true => h * (keys + values) + values + row,
        false => h * (keys + values) + row,
    })?;
    Ok(all)
}

/// What is kept beside the products: in front of them, of another head, or nothing.
pub fn kept<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::HeadMatMul { x, weight, head_dim, keep: true } = case.scene.op else { return Ok(vec![]) };
    let (heads, width) = (weight.experts, head_dim - weight.cols);
    let name = if case.scene.site.stage == Stage::KUp { "the key's" } else { "the query's" };
    let mut all = Vec::new();
    all.extend(case.changed(format!("{name} columns that turn in front of the others"), |l: &mut Linear<'a>| {
        l.heads.iter_mut().for_each(|heads| heads.in_front = true);
    })?);
    all.extend(case.changed(format!("zeros for {name} columns that turn"), |l: &mut Linear<'a>| {
        l.heads.iter_mut().for_each(|heads| heads.kept.fill(0.0));
    })?);
    if width == 0 {
        return Ok(vec![]);
    }
    if x.cols() > *head_dim {
        for (what, map) in OTHERS.into_iter().filter(|(_, map)| (0..heads).any(|h| map(h, heads) != h)) {
            let change = |l: &mut Linear<'a>| {
                if let Some(of) = &mut l.heads {
                    let from = |slot: usize| slot / heads * heads + map(slot % heads, heads);
                    let slots = of.kept.len() / width;
                    of.kept = (0..slots).flat_map(|slot| of.kept[from(slot) * width..][..width].to_vec()).collect();
                }
            };
            all.extend(case.changed(format!("{name} columns that turn of {what}"), change)?);
        }
    } else {
        // As if each head had columns of its own, one after the other from where those of all heads are.
        let rows = case.inputs[0].clone();
        let first = weight.cols;
        let source = {
            let head_dim = *head_dim;
            move |i: usize| {
                let (slot, within) = (i / width, i % width);
                slot / heads * head_dim + first + slot % heads * width + within
            }
        };
        let len = rows.len();
        let stride = weight.rows + width;
        let known = source;
        let unknown = move |i: usize| {
            let column = i % stride;
            column >= stride - width && known(i / stride * width + column + width - stride) >= len
        };
        let change = |l: &mut Linear<'a>| {
            if let Some(of) = &mut l.heads {
                of.kept = (0..of.kept.len()).map(|i| rows.get(source(i)).copied().unwrap_or(0.0)).collect();
            }
        };
        let what = format!("a slice for each head where {name} columns that turn are those of all");
        all.extend(case.changed(what, change)?.map(|variant| variant.unknown_at(unknown)));
    }
    Ok(all)
}
