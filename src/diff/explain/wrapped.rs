//! Indices that wrap around, or stop at a table's end: of positions, tokens, rows and offsets.
//!
//! What becomes of an index does not depend on where it is used, so none of these is confined along the axis whose indices it is about.

use std::sync::Arc;

use super::case::{Evidence, Variant};
use super::indices::{OF_COLUMNS, OF_ROWS};
use super::{tokens, weights};
use crate::backend::oracle::dequant;
use crate::diff::locate::Axis;
use crate::error::Result;
use crate::formula::attention::{Cache, Context, Scores};
use crate::formula::linear::{Decode, Linear, as_it_is};
use crate::formula::rope::Rope;
use crate::formula::routing::Combined;
use crate::op::{Op, Weight};

/// What becomes of an index behind a table's end.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    Modulo(usize),
    Last(usize),
}

impl Ending {
    pub fn of(self, i: usize) -> usize {
        match self {
            Self::Modulo(n) => i % n,
            Self::Last(n) => i.min(n - 1),
        }
    }

    /// `positions modulo 256`, `positions from 256 on taken as 255`.
    pub fn words(self, of: &str) -> String {
        match self {
            Self::Last(1) => format!("{of} that are all taken as 0"),
            Self::Modulo(n) => format!("{of} modulo {n}"),
            Self::Last(n) => format!("{of} from {n} on taken as {}", n - 1),
        }
    }
}

/// The endings of a table of which `wrong` is the first index that goes wrong: indices below its length are right, so it is at most
/// that long. That length first, then powers of two.
pub(super) fn endings(wrong: usize) -> Vec<Ending> {
    let powers = (1..usize::BITS).map(|bits| 1 << bits).take_while(|n| *n < wrong);
    let mut lengths: Vec<usize> = powers.collect();
    lengths.extend((wrong > 0).then_some(wrong));
    let both = lengths.into_iter().rev().flat_map(|n| [Ending::Modulo(n), Ending::Last(n)]);
    // Modulo 1 is no table's end.
    both.filter(|ending| !matches!(ending, Ending::Modulo(1))).collect()
}

pub fn rope_positions<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Rope<'a>>()? else { return Ok(vec![]) };
    let position = |i: &usize| stated.positions[i / stated.cols] as usize;
    let Some(wrong) = case.wrong.first().map(position) else { return Ok(vec![]) };
    let mut all = Vec::new();
    for ending in endings(wrong) {
        let change = |r: &mut Rope<'a>| r.positions.iter_mut().for_each(|p| *p = ending.of(*p as usize) as f64);
        let variant = case.changed(format!("rope with {}", ending.words("positions")), change)?;
        all.extend(variant.map(|variant| variant.along(OF_ROWS)));
    }
    Ok(all)
}

pub fn operands<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    if case.wrong.is_empty() {
        return Ok(vec![]);
    }
    match case.scene.op {
        Op::Embed { table, tokens, .. } => tokens::wrapped(case, table, tokens),
        Op::MatMul { weight, .. } | Op::ExpertMatMul { weight, .. } => product(case, weight),
        Op::AttnScores { .. } | Op::AttnContext { .. } => cache(case),
        Op::Combine { .. } => combined(case),
        _ => Ok(vec![]),
    }
}

fn product<'a>(case: &'a Evidence<'a>, weight: &'a Weight) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Linear<'a>>()? else { return Ok(vec![]) };
    let (n, k) = (stated.n, stated.k);
    let least = |of: &dyn Fn(usize) -> usize| case.wrong.iter().map(|i| of(*i)).min().unwrap_or(0);
    let mut all = Vec::new();
    for ending in endings(least(&|i| stated.slots[i / n].0)) {
        let what = format!("the input of {}", ending.words("rows"));
        let change = |l: &mut Linear<'a>| l.slots.iter_mut().for_each(|slot| slot.0 = ending.of(slot.0));
        all.extend(case.changed(what, change)?.map(|variant| variant.along(OF_ROWS)));
    }
    for ending in endings(least(&|i| i % n)) {
        let what = format!("the weights of {}", ending.words("rows"));
        let decode: Decode<'a> =
            Box::new(move |expert, row, product, offset| as_it_is(weight)(expert, ending.of(row), product, offset));
        all.extend(weights::with(case, what, decode)?.map(|variant| variant.along(OF_COLUMNS)));
    }
    if weight.experts > 1 {
        for ending in endings(least(&|i| stated.slots[i / n].1)) {
            let what = format!("the weights of {}", ending.words("experts"));
            let change = |l: &mut Linear<'a>| l.slots.iter_mut().for_each(|slot| slot.1 = ending.of(slot.1));
            all.extend(case.changed(what, change)?.map(|variant| variant.along(OF_ROWS)));
        }
    }
    // An offset that is no whole number of rows.
    for modulus in moduli(k, stated.x.len()).filter(|modulus| !modulus.is_multiple_of(k)) {
        let rows = 0..stated.x.len() / k;
        let x: Vec<f64> = rows.flat_map(|row| &stated.x[row * k % modulus..][..k]).copied().collect();
        let what = format!("the input at an offset modulo {modulus}");
        let variant = case.changed(what, |l: &mut Linear<'a>| l.x = x.into())?;
        all.extend(variant.map(|variant| variant.along(OF_ROWS)));
    }
    all.extend(offsets(case, weight, &stated)?);
    Ok(all)
}

/// Where a row of the weight begins, or an expert, as an offset that wraps: counted in elements, bytes or words of 4 bytes, modulo a power of two.
/// An index that has 16 bits, or a float that is exact up to 2²⁴, or 32 bits of a larger tensor. What does not begin at a whole block is
/// unknown: there something is read that is no weight.
fn offsets<'a>(case: &'a Evidence<'a>, weight: &'a Weight, stated: &Linear<'a>) -> Result<Vec<Variant<'a>>> {
    /// Moduli tried for each way of counting.
    const MOST: usize = 4;
    let (ty, rows) = (weight.ty, weight.rows);
    let (row_bytes, block) = (weight.row_bytes(), ty.block_bytes());
    if case.unseen || weight.size() <= row_bytes {
        return Ok(vec![]);
    }
    let slots: Arc<[usize]> = stated.slots.iter().map(|slot| slot.1).collect();
    let (mut all, mut tried) = (Vec::new(), Vec::new());
    // How many bytes some units are, and how many units they are.
    let units = [("elements", block, ty.block_len()), ("bytes", 1, 1), ("words of 4 bytes", 4, 1)];
    for (of, per_expert) in [("rows", false), ("experts", true)] {
        if per_expert && weight.experts < 2 {
            continue;
        }
        // What is asked for begins at so many bytes.
        let begin = move |expert: usize, row: usize| (expert * rows + if per_expert { 0 } else { row }) * row_bytes;
        let first = case.wrong.iter().map(|i| begin(slots[i / rows], i % rows)).min().unwrap_or(0);
        for (unit, bytes, count) in units {
            // No offset below the modulus is wrong, and one that is as large is.
            let powers = (0..usize::BITS - 8).rev().map(|bits| 1usize << bits);
            let fitting = powers.filter(|n| (n * bytes).is_multiple_of(count) && n * bytes / count <= first);
            for modulus in fitting.take(MOST).filter(|n| n * bytes / count >= row_bytes) {
                let wraps = modulus * bytes / count;
                let place = move |expert: usize, row: usize| {
                    let begin = begin(expert, row);
                    let within = if per_expert { row * row_bytes } else { 0 };
                    let at = begin % wraps + within;
                    at.is_multiple_of(block).then_some(at).filter(|at| at + row_bytes <= weight.size())
                };
                // Whole rows of a matrix are known under a simpler name, and two ways of counting may come to the same.
                if weight.experts == 1 && wraps.is_multiple_of(row_bytes) || tried.contains(&(wraps, per_expert)) {
                    continue;
                }
                tried.push((wraps, per_expert));
                let decode: Decode<'a> = Box::new(move |expert, row, product, offset| {
                    let Some(at) = place(expert, row) else { return as_it_is(weight)(expert, row, product, offset) };
                    let bytes = weight.span(at, row_bytes);
                    dequant::each(ty, &bytes, |i, term| (product[i], offset[i]) = (term.product, term.offset))
                });
                let slots = slots.clone();
                let unknown = move |i: usize| place(slots[i / rows], i % rows).is_none();
                let what = format!("the weights of {of} at an offset modulo {modulus} {unit}");
                let axes = if per_expert { OF_ROWS } else { OF_COLUMNS };
                let variant = weights::with(case, what, decode)?;
                all.extend(variant.map(|variant| variant.unknown_at(unknown).along(axes)));
            }
        }
    }
    Ok(all)
}

fn cache<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let scores = case.stated::<Scores<'a>>()?.map(|s| s.sizes);
    let Some(sizes) = scores.map_or_else(|| Ok(case.stated::<Context<'a>>()?.map(|c| c.sizes)), |s| Ok(Some(s)))?
    else {
        return Ok(vec![]);
    };
    // The first key whose score is wrong; or the first position that sees such a key.
    let cols = case.cols();
    let key = |i: &usize| if case.is_attention_matrix() { i % cols } else { sizes.start + i / cols };
    let wrong = case.wrong.iter().map(key).min().unwrap_or(0);
    let mut all = Vec::new();
    for ending in endings(wrong) {
        let what = format!("the cache at {}", ending.words("positions"));
        let change = |cache: &mut Cache| cache.row.iter_mut().flatten().for_each(|row| *row = ending.of(*row));
        let scores = case.changed(what.clone(), |s: &mut Scores<'a>| change(&mut s.cache))?;
        let variant = match scores {
            None => case.changed(what, |c: &mut Context<'a>| change(&mut c.cache))?,
            scores => scores,
        };
        all.extend(variant.map(|variant| variant.along(&[Axis::Position, Axis::Key])));
    }
    Ok(all)
}

fn combined<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Combined<'a>>()? else { return Ok(vec![]) };
    let (k, row) = (stated.k, stated.k * stated.hidden);
    let mut all = Vec::new();
    for modulus in moduli(stated.hidden, stated.down.len()) {
        type Begin = fn(usize, usize, usize, usize) -> usize;
        let kinds: [(&str, Begin); 3] = [
            ("the experts' outputs at the offset of the position", |begin, _, row, m| {
                begin / row * row % m + begin % row
            }),
            ("the experts' outputs at the offset of the slot", |begin, _, _, m| begin % m),
            ("the first slot's outputs at the offset", |begin, slot, _, m| if slot == 0 { begin % m } else { begin }),
        ];
        for (what, of) in kinds {
            let change = |c: &mut Combined<'a>| {
                c.begins.iter_mut().enumerate().for_each(|(slot, begin)| *begin = of(*begin, slot % k, row, modulus));
            };
            let variant = case.changed(format!("{what} modulo {modulus}"), change)?;
            all.extend(variant.map(|variant| variant.along(OF_ROWS)));
        }
    }
    Ok(all)
}

/// Powers of two at which an offset into `len` values, of runs of `run`, may wrap. Largest first.
fn moduli(run: usize, len: usize) -> impl Iterator<Item = usize> {
    let bits = (0..usize::BITS - 1).rev();
    bits.map(|bits| 1usize << bits).filter(move |modulus| *modulus >= run && *modulus < len)
}
