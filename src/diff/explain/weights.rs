//! Mistakes in reading quantized weights: another row, a neighbour's scale, dropped bits, transposition. What is done to the bytes is in
//! `bytes`.
//!
//! Each is a way of decoding a row; [`with`] makes it a variant of the operation that reads the weight: a product, or the embedding.
//! A row is taken apart by the oracle's [`dequant::parts`] into scales and offsets of groups and codes of weights.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, OnceLock};

use super::case::{Evidence, Variant};
use super::heads;
use super::indices::{OF_COLUMNS, neighbour, reversed};
use super::search::round_numbers;
use crate::backend::oracle::dequant;
use crate::diff::locate::Axis;
use crate::error::Result;
use crate::formula::embed::Embedding;
use crate::formula::linear::{Decode, Linear, as_it_is};
use crate::op::{GgmlType, Op, Stage, Weight};

/// The weight that the stage reads.
pub(super) fn weight<'a>(case: &'a Evidence<'a>) -> Option<&'a Weight> {
    match case.scene.op {
        Op::MatMul { weight, .. }
        | Op::ExpertMatMul { weight, .. }
        | Op::HeadMatMul { weight, .. }
        | Op::Embed { table: weight, .. } => Some(weight),
        _ => None,
    }
}

/// The stage with its weight decoded otherwise.
pub(super) fn with<'a>(
    case: &'a Evidence<'a>,
    what: impl Into<String>,
    mut decode: Decode<'a>,
) -> Result<Option<Variant<'a>>> {
    case.emulation.round(&mut decode);
    match case.scene.op {
        Op::Embed { .. } => case.changed(what, |e: &mut Embedding<'a>| e.decode = decode),
        _ => case.changed(what, |l: &mut Linear<'a>| l.decode = decode),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Which row

/// The stage with row `from(row)` of its weight for each row.
fn by_row<'a>(
    case: &'a Evidence<'a>,
    weight: &'a Weight,
    what: impl Into<String>,
    from: impl Fn(usize) -> usize + Send + Sync + 'a,
) -> Result<Option<Variant<'a>>> {
    let decode: Decode<'a> =
        Box::new(move |expert, row, product, offset| as_it_is(weight)(expert, from(row), product, offset));
    with(case, what, decode)
}

/// Another row's weights.
pub fn other_row<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let (Some(weight), false) = (weight(case), matches!(case.scene.op, Op::Embed { .. })) else { return Ok(vec![]) };
    let rows = weight.rows;
    let after = by_row(case, weight, "the weights of the row after", move |row| (row + 1).min(rows - 1))?;
    let before = by_row(case, weight, "the weights of the row before", |row| row.saturating_sub(1))?;
    let mut all: Vec<Variant<'a>> =
        after.into_iter().chain(before).map(|variant| variant.in_runs(OF_COLUMNS)).collect();
    let mut exchange = |what: &str, from: fn(usize, usize) -> usize| {
        let variant = by_row(case, weight, what, move |row| from(row, rows))?;
        let element = move |i: usize| i / rows * rows + from(i % rows, rows);
        all.extend(variant.map(|variant| variant.exchanging(element)));
        Result::Ok(())
    };
    exchange("the weights' rows in reverse", reversed)?;
    exchange("the weights of neighbouring rows exchanged", neighbour)?;
    Ok(all)
}

/// Rows of a projection by heads, or of a router, in an order that is not the file's.
pub fn row_order<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::MatMul { weight, .. } = case.scene.op else { return Ok(vec![]) };
    let rows = weight.rows;
    let mut all = Vec::new();
    if case.scene.site.stage == Stage::RouterLogits {
        type From = fn(usize, usize) -> usize;
        let orders: [(&str, From); 4] = [
            ("the weights of the expert after, of the first for the last", |row, n| (row + 1) % n),
            ("the weights of the expert before, of the last for the first", |row, n| (row + n - 1) % n),
            ("the weights of the experts in reverse", reversed),
            ("the weights of neighbouring experts exchanged", neighbour),
        ];
        for (what, from) in orders {
            let variant = by_row(case, weight, what, move |row| from(row, rows))?;
            all.extend(variant.map(|variant| variant.in_runs(&[Axis::Expert, Axis::Column])));
        }
    }
    for (what, from) in heads::row_orders(case) {
        all.extend(by_row(case, weight, format!("the weights of {what}"), from)?);
    }
    Ok(all)
}

/// The matrix read by columns: w[k, n] for w[n, k], in rows of its own length or of the other.
pub fn transposed<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    /// Larger matrices are not expanded for the sake of one hypothesis: 128 MiB as f32.
    const LARGEST: usize = 1 << 25;
    let Some(weight) = weight(case).filter(|w| w.rows * w.cols <= LARGEST) else { return Ok(vec![]) };
    let (rows, cols) = (weight.rows, weight.cols);
    let decoded: Arc<Vec<OnceLock<Vec<f32>>>> = Arc::new((0..weight.experts).map(|_| OnceLock::new()).collect());
    let matrix = move |expert: usize| -> Vec<f32> {
        let mut all = vec![0.0; rows * cols];
        for row in 0..rows {
            let put = |i: usize, term: dequant::Term| all[row * cols + i] = term.value() as f32;
            // The type is one that the oracle's own result was computed from.
            if dequant::each(weight.ty, weight.row(expert, row), put).is_err() {
                return vec![f32::NAN; rows * cols];
            }
        }
        all
    };
    let read = |what: &str, index: fn(usize, usize, usize, usize) -> usize| {
        let decoded = decoded.clone();
        let decode: Decode<'a> = Box::new(move |expert, row, product, offset| {
            let all = decoded[expert].get_or_init(|| matrix(expert));
            for (k, p) in product.iter_mut().enumerate() {
                *p = all[index(row, k, rows, cols) % all.len()] as f64;
            }
            offset.fill(0.0);
            Ok(())
        });
        with(case, what, decode)
    };
    let mut all = Vec::from_iter(read("the weight transposed", |row, k, rows, _| k * rows + row)?);
    if rows != cols {
        all.extend(read("the weight transposed, in rows of the untransposed length", |row, k, _, cols| {
            k * cols + row
        })?);
    }
    Ok(all)
}

// ---------------------------------------------------------------------------------------------------------------------
// Scales

/// A row taken apart.
struct Row {
    /// By group of the row.
    steps: Vec<f64>,
    offsets: Vec<f64>,
    /// By weight.
    codes: Vec<f64>,
    /// Groups in a block.
    per_block: usize,
}

impl Row {
    fn of(weight: &Weight, expert: usize, row: usize) -> Result<Self> {
        let len = weight.ty.block_len();
        let per_block = groups(weight.ty);
        let all = weight.cols / len * per_block;
        let mut this =
            Self { steps: vec![0.0; all], offsets: vec![0.0; all], codes: vec![0.0; weight.cols], per_block };
        dequant::parts(weight.ty, weight.row(expert, row), |i, part| {
            let group = i / len * per_block + part.group;
            (this.steps[group], this.offsets[group], this.codes[i]) = (part.step, part.offset, part.code);
        })?;
        Ok(this)
    }
    fn write(&self, product: &mut [f64], offset: &mut [f64]) {
        let len = self.codes.len() / self.steps.len().max(1);
        for (i, code) in self.codes.iter().enumerate() {
            (product[i], offset[i]) = (self.steps[i / len] * code, self.offsets[i / len]);
        }
    }
}

/// Groups in a block that have scales of their own.
fn groups(ty: GgmlType) -> usize {
    let mut groups = 0;
    // Any bytes have the same groups.
    let counted = dequant::parts(ty, &vec![0; ty.block_bytes()], |_, part| groups = groups.max(part.group + 1));
    counted.map_or(1, |()| groups)
}

/// The stage with every row of its weight taken apart, changed by `change` and put together.
fn rebuilt<'a>(
    case: &'a Evidence<'a>,
    what: impl Into<String>,
    change: impl Fn(&mut Row) + Send + Sync + 'a,
) -> Result<Option<Variant<'a>>> {
    let Some(weight) = weight(case) else { return Ok(None) };
    let decode: Decode<'a> = Box::new(move |expert, n, product, offset| {
        let mut row = Row::of(weight, expert, n)?;
        change(&mut row);
        row.write(product, offset);
        Ok(())
    });
    with(case, what, decode)
}

/// Scale and minimum of group g from group `from(g, groups, groups in a block)`.
fn scales_from<'a>(
    case: &'a Evidence<'a>,
    what: impl Into<String>,
    from: impl Fn(usize, usize, usize) -> usize + Send + Sync + 'a,
) -> Result<Option<Variant<'a>>> {
    rebuilt(case, what, move |row| {
        let n = row.steps.len();
        let source: Vec<usize> = (0..n).map(|g| from(g, n, row.per_block).min(n - 1)).collect();
        row.steps = source.iter().map(|g| row.steps[*g]).collect();
        row.offsets = source.iter().map(|g| row.offsets[*g]).collect();
    })
}

/// Types whose weights have a scale at all.
fn scaled<'a>(case: &'a Evidence<'a>) -> Option<&'a Weight> {
    weight(case).filter(|w| w.ty.block_len() > 1)
}

/// A neighbour's scale: of the sub-block beside, of the block beside.
pub fn neighbours_scale<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(weight) = scaled(case) else { return Ok(vec![]) };
    let mut all = Vec::new();
    all.extend(scales_from(case, "the scales of the block before", |g, _, per| g.checked_sub(per).unwrap_or(g))?);
    all.extend(scales_from(case, "the scales of the block after", |g, n, per| if g + per < n { g + per } else { g })?);
    all.extend(scales_from(case, "the last block's scales read from the block before it", |g, n, per| {
        if g + per >= n && g >= per { g - per } else { g }
    })?);
    all.extend(scales_from(case, "the first block's scales for every block", |g, _, per| g % per)?);
    let per = groups(weight.ty);
    if per > 1 {
        all.extend(scales_from(case, "each sub-block with the scale of the one before", |g, _, _| {
            g.saturating_sub(1)
        })?);
        all.extend(scales_from(case, "each sub-block with the scale of the one after", |g, _, _| g + 1)?);
        // Around in the whole block, or in parts of it that are unpacked together.
        for span in [per, 4, 8].into_iter().filter(|span| *span > 2 && per.is_multiple_of(*span)) {
            let place = if span == per { "its block".to_string() } else { format!("its {span}") };
            for (shift, which) in [(span - 1, "before"), (1, "after")] {
                let what = format!("each sub-block with the scale of the one {which}, around in {place}");
                all.extend(scales_from(case, what, move |g, _, _| g / span * span + (g % span + shift) % span)?);
            }
        }
        all.extend(scales_from(case, "neighbouring sub-blocks' scales exchanged", |g, _, _| g ^ 1)?);
        all.extend(scales_from(case, "the block's halves' scales exchanged", |g, _, per| {
            g / per * per + (g + per / 2) % per
        })?);
        all.extend(scales_from(case, "the first sub-block's scale for the whole block", |g, _, per| g / per * per)?);
        all.extend(scales_from(case, "one scale for every two sub-blocks", |g, _, _| g & !1)?);
    }
    Ok(all)
}

/// One sub-block of every block, or of the last block, with a neighbour's scale or a wrong one; or any one, of one row or of all, which is looked up.
pub fn one_scale<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(weight) = scaled(case) else { return Ok(vec![]) };
    let per = groups(weight.ty);
    let mut all = scale_of_one_group(case, weight)?;
    for g in 0..per {
        for last in [false, true] {
            let which = move |group: usize, n: usize| group % per == g && (!last || group + per >= n);
            let place = match (per, last) {
                (1, true) => "the last block".to_string(),
                (1, false) => continue, // every weight: a constant factor
                (_, false) => format!("sub-block {g} of every block"),
                (_, true) => format!("sub-block {g} of the last block"),
            };
            for (factor, with) in
                [(0.0, "scale 0"), (2.0, "twice its scale"), (0.5, "half its scale"), (-1.0, "its scale negated")]
            {
                all.extend(rebuilt(case, format!("{place} with {with}"), move |row| {
                    let n = row.steps.len();
                    row.steps.iter_mut().enumerate().filter(|(i, _)| which(*i, n)).for_each(|(_, s)| *s *= factor);
                })?);
            }
            for (shift, with) in [(1, "the scale of the one after"), (per - 1, "the scale of the one before")] {
                if per > 1 {
                    all.extend(scales_from(case, format!("{place} with {with}"), move |group, n, per| {
                        if which(group, n) { group / per * per + (group + shift) % per } else { group }
                    })?);
                }
            }
        }
    }
    Ok(all)
}

/// The one group of weights, of one row or of every row, that the errors are multiples of, and what its scale is multiplied by.
fn scale_of_one_group<'a>(case: &'a Evidence<'a>, weight: &'a Weight) -> Result<Vec<Variant<'a>>> {
    /// The share of the errors' energy that may be left.
    const LEFT: f64 = 1e-4;
    /// Next to the smallest step of a half, 2⁻¹¹: a scale that is stored as one, or as a whole number, is off by as much or not at all.
    const STEP: f64 = 0.9 / 2048.0;
    // By heads rows are of other lengths than their products.
    let known = !case.unseen && !matches!(case.scene.op, Op::HeadMatMul { .. });
    let Some(stated) = case.stated::<Linear<'a>>()?.filter(|_| known) else { return Ok(vec![]) };
    let place = |i: &usize| (stated.slots[i / stated.n].1, i % stated.n);
    let finite = |i: &&usize| case.output[**i].is_finite();
    let mut wrong: Vec<usize> = case.wrong.iter().filter(finite).copied().collect();
    let Some((expert, n)) = wrong.first().map(place) else { return Ok(vec![]) };
    let one = wrong.iter().all(|i| place(i) == (expert, n));
    if !one {
        wrong = case.probe.iter().filter(|i| case.wrong.binary_search(i).is_ok()).filter(finite).copied().collect();
    }
    // One error alone is a multiple of anything.
    if wrong.len() < 2 {
        return Ok(vec![]);
    }
    let (per_block, groups) = (groups(weight.ty), weight.cols / weight.ty.block_len() * groups(weight.ty));
    let len = weight.cols / groups;
    let mut rows = BTreeMap::new();
    // For each group Σ error·part, Σ part² over the wrong elements, of each of which it makes a part.
    let mut sums = vec![(0.0, 0.0); groups];
    let mut energy = 0.0;
    for i in &wrong {
        let (expert, n) = place(i);
        let row = match rows.entry((expert, n)) {
            Entry::Vacant(new) => new.insert(Row::of(weight, expert, n)?),
            Entry::Occupied(row) => row.into_mut(),
        };
        let x = &stated.x[stated.slots[i / stated.n].0 * stated.k..][..weight.cols];
        let error = case.output[*i] - case.exact[*i];
        energy += error * error;
        for (g, (ep, pp)) in sums.iter_mut().enumerate() {
            let own = g * len..(g + 1) * len;
            let part = row.steps[g] * x[own.clone()].iter().zip(&row.codes[own]).map(|(x, c)| x * c).sum::<f64>();
            (*ep, *pp) = (*ep + error * part, *pp + part * part);
        }
    }
    let left = |&(ep, pp): &(f64, f64)| if pp > 0.0 { energy - ep * ep / pp } else { f64::INFINITY };
    let best = sums.iter().enumerate().min_by(|a, b| left(a.1).total_cmp(&left(b.1)));
    let Some((group, sum)) = best.filter(|(_, sum)| left(sum) <= LEFT * energy) else { return Ok(vec![]) };
    let fitted = 1.0 + sum.0 / sum.1;
    if (fitted - 1.0).abs() < STEP {
        return Ok(vec![]);
    }
    let (block, g) = (group / per_block, group % per_block);
    let of_block = if per_block > 1 { format!("sub-block {g} of block {block}") } else { format!("block {block}") };
    let of_row = match (one, weight.experts) {
        (false, _) => "every row".to_string(),
        (true, 1) => format!("row {n}"),
        (true, _) => format!("row {n} of expert {expert}"),
    };
    let places = if one { groups * weight.rows * weight.experts } else { groups };
    let mut all = Vec::new();
    for factor in if fitted.abs() < 1e-3 { vec![0.0] } else { round_numbers(fitted, 1e-3) } {
        let what = format!("{of_block} of {of_row} with {factor} times its scale");
        let decode: Decode<'a> = Box::new(move |of, at, product, offset| {
            let mut row = Row::of(weight, of, at)?;
            if !one || (of, at) == (expert, n) {
                row.steps[group] *= factor;
            }
            row.write(product, offset);
            Ok(())
        });
        let variant = with(case, what, decode)?;
        all.extend(variant.map(|variant| variant.with_fitted(factor).assuming((places as f64).log2())));
    }
    Ok(all)
}

/// Minimums left out or added, of the types that have them.
pub fn minimums<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    use GgmlType::*;
    let Some(weight) = weight(case).filter(|w| matches!(w.ty, Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K)) else {
        return Ok(vec![]);
    };
    let factor =
        |what: &str, factor: f64| rebuilt(case, what, move |row| row.offsets.iter_mut().for_each(|o| *o *= factor));
    let mut all = Vec::from_iter(factor("the minimums left out", 0.0)?);
    all.extend(factor("the minimums with the wrong sign", -1.0)?);
    if groups(weight.ty) > 1 {
        all.extend(rebuilt(case, "each sub-block with the minimum of the one before", |row| {
            let n = row.offsets.len();
            row.offsets.copy_within(..n - 1, 1);
        })?);
        all.extend(rebuilt(case, "each sub-block with the minimum of the one after", |row| {
            row.offsets.copy_within(1.., 0)
        })?);
    }
    Ok(all)
}

/// Where a type keeps d, its scale over the block's quantized scales.
fn super_scale(ty: GgmlType, block: &[u8]) -> Option<f64> {
    use GgmlType::*;
    let at = match ty {
        Q4_K | Q5_K | IQ4_XS => 0,
        Q2_K => 80,
        Q3_K => 108,
        Q6_K => 208,
        _ => return None,
    };
    Some(half::f16::from_le_bytes([block[at], block[at + 1]]).to_f64())
}

/// Sub-block scales with bits dropped, without their offset, or without their sign.
pub fn scale_bits<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    use GgmlType::*;
    let Some(weight) = weight(case) else { return Ok(vec![]) };
    // (what, scale g of the block → what is read instead)
    type Changed = fn(usize, f64) -> f64;
    let changes: &[(&str, Changed)] = match weight.ty {
        Q4_K | Q5_K => &[
            (
                "the last four scales of each block without their upper two bits",
                |g, s| if g < 4 { s } else { s % 16.0 },
            ),
            ("the scales of each block as 4 bits", |_, s| s % 16.0),
        ],
        Q6_K => &[("the sub-block scales as unsigned bytes", |_, s| if s < 0.0 { s + 256.0 } else { s })],
        Q3_K | IQ4_XS => &[
            ("the sub-block scales without their offset of 32", |_, s| s + 32.0),
            ("the sub-block scales without their upper two bits", |_, s| (s + 32.0) % 16.0 - 32.0),
        ],
        _ => return Ok(vec![]),
    };
    let mut all = Vec::new();
    for &(what, change) in changes {
        all.extend(sub_scales(case, weight, what, move |g, scale, d| d * change(g, scale))?);
    }
    all.extend(sub_scales(case, weight, "the sub-block scales without the block's", |_, scale, _| scale)?);
    Ok(all)
}

/// The stage with the step of sub-block g of each block made by `step(g, its scale, d)`.
fn sub_scales<'a>(
    case: &'a Evidence<'a>,
    weight: &'a Weight,
    what: &str,
    step: impl Fn(usize, f64, f64) -> f64 + Send + Sync + 'a,
) -> Result<Option<Variant<'a>>> {
    let bytes = weight.ty.block_bytes();
    let decode: Decode<'a> = Box::new(move |expert, n, product, offset| {
        let mut row = Row::of(weight, expert, n)?;
        let per = row.per_block;
        for (g, stated) in row.steps.iter_mut().enumerate() {
            let block = &weight.row(expert, n)[g / per * bytes..][..bytes];
            let d = super_scale(weight.ty, block).unwrap_or(0.0);
            // d · scale is exact, so the scale is.
            *stated = if d == 0.0 { 0.0 } else { step(g % per, *stated / d, d) };
        }
        row.write(product, offset);
        Ok(())
    });
    with(case, what, decode)
}

// ---------------------------------------------------------------------------------------------------------------------
// Codes

/// Codes with bits dropped, without their offset, or in another order.
pub fn codes<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    use GgmlType::*;
    let Some(weight) = scaled(case) else { return Ok(vec![]) };
    type Changed = fn(f64) -> f64;
    let changes: &[(&str, Changed)] = match weight.ty {
        Q4_0 => &[("codes without their offset of 8", |c| c + 8.0)],
        Q5_0 => &[
            ("codes without their offset of 16", |c| c + 16.0),
            ("codes without their fifth bit", |c| (c + 16.0) % 16.0 - 16.0),
        ],
        Q5_1 | Q5_K => &[("codes without their fifth bit", |c| c % 16.0)],
        Q8_0 => &[("codes as unsigned bytes", |c| if c < 0.0 { c + 256.0 } else { c })],
        Q3_K => &[
            ("codes without their offset of 4", |c| c + 4.0),
            ("codes without their third bit", |c| (c + 4.0) % 4.0 - 4.0),
        ],
        Q6_K => &[
            ("codes without their offset of 32", |c| c + 32.0),
            ("codes without their upper two bits", |c| (c + 32.0) % 16.0 - 32.0),
        ],
        Q2_0 => &[("codes without their offset of 1", |c| c + 1.0)],
        Q1_0 => &[("bits as 0 and 1", |c| (c + 1.0) / 2.0)],
        _ => &[],
    };
    let mut all = Vec::new();
    for &(what, change) in changes {
        all.extend(rebuilt(case, what, move |row| row.codes.iter_mut().for_each(|c| *c = change(*c)))?);
    }
    // Orders of the codes in runs of `run`: (what, run, weight i of a run → whose code it takes).
    let halves: fn(usize, usize) -> usize = |i, run| (i + run / 2) % run;
    let interleaved: fn(usize, usize) -> usize = |i, run| i / 2 + i % 2 * (run / 2);
    let runs: &[usize] = match weight.ty {
        Q4_0 | Q4_1 | Q5_0 | Q5_1 | IQ4_NL | MXFP4 | IQ4_XS => &[32],
        Q4_K | Q5_K => &[64],
        Q6_K | Q2_K | Q3_K => &[128, 64],
        NVFP4 => &[16],
        _ => &[],
    };
    for &run in runs {
        for (what, order) in
            [("low and high nibbles exchanged", halves), ("nibbles of a byte as neighbours", interleaved)]
        {
            all.extend(rebuilt(case, format!("{what}, in runs of {run}"), move |row| {
                for codes in row.codes.chunks_exact_mut(run) {
                    let before = codes.to_vec();
                    codes.iter_mut().enumerate().for_each(|(i, c)| *c = before[order(i, run)]);
                }
            })?);
        }
    }
    all.extend(interleaved_codes(case, weight)?);
    Ok(all)
}

/// Where a block of a type that engines repack has its codes: first byte and number of bytes of each part.
fn code_parts(ty: GgmlType) -> &'static [(usize, usize)] {
    use GgmlType::*;
    match ty {
        Q4_0 | IQ4_NL => &[(2, 16)],
        MXFP4 => &[(1, 16)],
        Q8_0 => &[(2, 32)],
        Q2_K => &[(16, 64)],
        Q4_K => &[(16, 128)],
        Q5_K => &[(16, 32), (48, 128)],
        Q6_K => &[(0, 128), (128, 64)],
        _ => &[],
    }
}

/// Codes of rows that are repacked together, read with another width than they were written with. llama.cpp repacks 4 or 8 rows at a time for the
/// processor that it finds (`make_block_q4_0x4`, `make_block_q4_Kx8` and their like in ggml-cpu's repack.cpp): their scales side by side, and of
/// their bytes of codes 4 or 8 of each row in turn, which is `blck_size_interleave`. A kernel for the other width (4x4 for 4x8, 8x4 for 8x8)
/// finds the right scales, and mostly bytes of other rows of the same few.
fn interleaved_codes<'a>(case: &'a Evidence<'a>, weight: &'a Weight) -> Result<Vec<Variant<'a>>> {
    let parts = code_parts(weight.ty);
    // An embedding's rows are read one by one, from the file's own blocks.
    if parts.is_empty() || matches!(case.scene.op, Op::Embed { .. }) {
        return Ok(vec![]);
    }
    let mut all = Vec::new();
    for together in [8, 4].into_iter().filter(|n| weight.rows.is_multiple_of(*n) && !(case.unseen && *n == 4)) {
        for [read, written] in [[4, 8], [8, 4]] {
            let what = format!("codes of {together} rows interleaved by {written} bytes, read as if by {read}");
            let decode: Decode<'a> = Box::new(move |expert, row, product, offset| {
                let (first, own) = (row / together * together, row % together);
                let mut bytes = weight.row(expert, row).to_vec();
                for (n, block) in bytes.chunks_exact_mut(weight.ty.block_bytes()).enumerate() {
                    let at = n * weight.ty.block_bytes();
                    for &(from, len) in parts {
                        for byte in 0..len {
                            // Where it is looked for among the bytes of all these rows, and what was written there.
                            let place = byte / read * read * together + own * read + byte % read;
                            let (run, of) = (written * together, place / written % together);
                            let source = place / run * written + place % written;
                            block[from + byte] = weight.row(expert, first + of)[at + from + source];
                        }
                    }
                }
                dequant::each(weight.ty, &bytes, |i, term| (product[i], offset[i]) = (term.product, term.offset))
            });
            all.extend(with(case, what, decode)?);
        }
    }
    Ok(all)
}
