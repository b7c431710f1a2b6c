//! Mistakes in the bytes of quantized weights: read as another type, or changed before they are read.

use super::case::{Evidence, Variant};
use super::weights::{weight, with};
use crate::backend::oracle::dequant;
use crate::error::Result;
use crate::formula::linear::Decode;
use crate::op::{GgmlType, Op, Weight};

/// The same bytes in another type's layout, with rows where they are and with rows where that type would have them. What lies
/// behind the tensor's end is not known.
pub fn other_type<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(weight) = weight(case) else { return Ok(vec![]) };
    let mut all = Vec::new();
    for &ty in GgmlType::ALL.iter().filter(|ty| **ty != weight.ty && dequant::supports(**ty)) {
        let Some(row_bytes) = ty.row_bytes(weight.cols) else { continue };
        let mut strides = vec![(weight.row_bytes(), "")];
        if row_bytes != weight.row_bytes() {
            strides.push((row_bytes, ", rows by that type's size"));
        }
        for (stride, note) in strides {
            let decode: Decode<'a> = Box::new(move |expert, row, product, offset| {
                let at = (expert * weight.rows + row) * stride;
                let mut bytes = weight.span(at, row_bytes).into_owned();
                bytes.resize(row_bytes, 0);
                dequant::each(ty, &bytes, |i, term| (product[i], offset[i]) = (term.product, term.offset))
            });
            let end = weight.size();
            let beyond = move |expert: usize, row: usize| (expert * weight.rows + row) * stride + row_bytes > end;
            let variant = with(case, format!("{} weights read as {ty}{note}", weight.ty), decode)?;
            all.extend(variant.map(|variant| of_rows(case, weight, variant, beyond)));
        }
    }
    Ok(all)
}

/// `variant`, which says nothing of the elements that are made of rows `unknown(expert, row)`.
fn of_rows<'a>(
    case: &'a Evidence<'a>,
    weight: &'a Weight,
    variant: Variant<'a>,
    unknown: impl Fn(usize, usize) -> bool + 'a,
) -> Variant<'a> {
    let cols = case.cols();
    match case.scene.op {
        Op::Embed { tokens, .. } => variant.unknown_at(move |i| unknown(0, tokens[i / cols] as usize)),
        Op::ExpertMatMul { ids, .. } => {
            variant.unknown_at(move |i| unknown(ids.ids()[i / weight.rows] as usize, i % weight.rows))
        }
        Op::HeadMatMul { .. } => {
            // Of a head its sums, and after them what it keeps.
            let (heads, stride) = (weight.experts, cols / weight.experts.max(1));
            variant.unknown_at(move |i| i % stride < weight.rows && unknown(i / stride % heads, i % stride))
        }
        _ => variant.unknown_at(move |i| unknown(0, i % weight.rows)),
    }
}

/// The stage with the bytes of every block of its weight changed: `(block, what is changed of it)`.
fn edited<'a>(
    case: &'a Evidence<'a>,
    weight: &'a Weight,
    what: &str,
    edit: impl Fn(&mut [u8]) + Send + Sync + 'a,
) -> Result<Option<Variant<'a>>> {
    let block = weight.ty.block_bytes();
    let decode: Decode<'a> = Box::new(move |expert, row, product, offset| {
        let mut bytes = weight.row(expert, row).to_vec();
        bytes.chunks_exact_mut(block).for_each(&edit);
        dequant::each(weight.ty, &bytes, |i, term| (product[i], offset[i]) = (term.product, term.offset))
    });
    with(case, what, decode)
}

/// Where a block keeps halves: its scale, and its minimum.
fn halves_at(ty: GgmlType) -> &'static [usize] {
    use GgmlType::*;
    match ty {
        Q4_0 | Q5_0 | Q8_0 | IQ4_NL | IQ4_XS | F16 | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ1_S | Q1_0
        | Q2_0 => &[0],
        Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
        Q2_K => &[80, 82],
        Q3_K => &[108],
        Q6_K => &[208],
        _ => &[],
    }
}

/// A half changed in place.
fn change_half(bytes: &mut [u8], change: impl Fn(u16) -> u16) {
    let half = change(u16::from_le_bytes([bytes[0], bytes[1]]));
    bytes[..2].copy_from_slice(&half.to_le_bytes());
}

/// Subnormal halves read as 0.
pub fn subnormal<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some((weight, at)) = weight(case).map(|w| (w, halves_at(w.ty))).filter(|(_, at)| !at.is_empty()) else {
        return Ok(vec![]);
    };
    let flush = |half: u16| if half & 0x7c00 == 0 { half & 0x8000 } else { half };
    let what = if weight.ty == GgmlType::F16 { "weights" } else { "scales" };
    let every = edited(case, weight, &format!("subnormal f16 {what} flushed to 0"), move |block| {
        at.iter().for_each(|at| change_half(&mut block[*at..], flush));
    })?;
    let mut all = Vec::from_iter(every);
    if let [scale, minimum] = at {
        for (at, what) in [(scale, "scales"), (minimum, "minimums")] {
            let what = format!("subnormal f16 {what} flushed to 0, the others not");
            all.extend(edited(case, weight, &what, move |block| change_half(&mut block[*at..], flush))?);
        }
    }
    Ok(all)
}

/// Packed words that pass through a buffer of floats: those that are NaN come back as the canonical one.
pub fn canonical_nan<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(weight) = weight(case).filter(|w| w.ty.block_len() > 1) else { return Ok(vec![]) };
    let is_nan = |half: u16| half & 0x7fff > 0x7c00;
    let mut all = Vec::new();
    // Codes begin behind the scales of those types that have them in front; others are taken whole.
    let codes = match weight.ty {
        GgmlType::Q4_K | GgmlType::Q5_K => 16,
        GgmlType::Q4_0 | GgmlType::Q8_0 | GgmlType::IQ4_NL => 2,
        GgmlType::Q4_1 => 4,
        _ => 0,
    };
    let starts = if codes > 0 { vec![codes, 0] } else { vec![0] };
    for start in starts {
        let of = if start > 0 { "packed codes" } else { "packed blocks" };
        for (step, which) in [(4, "the low half of words"), (2, "halves")] {
            for (kept, sign) in [(0u16, ""), (0x8000, ", with their sign")] {
                let what = format!("{of} read as f16: {which} that are NaN come back as 0x7E00{sign}");
                all.extend(edited(case, weight, &what, move |block| {
                    for half in block[start..].chunks_mut(step).filter(|half| half.len() >= 2) {
                        change_half(half, |h| if is_nan(h) { 0x7e00 | h & kept } else { h });
                    }
                })?);
            }
        }
        let what = format!("{of} read as f32: words that are NaN come back as 0x7FC00000");
        all.extend(edited(case, weight, &what, move |block| {
            for word in block[start..].as_chunks_mut::<4>().0 {
                if f32::from_le_bytes(*word).is_nan() {
                    *word = 0x7fc0_0000u32.to_le_bytes();
                }
            }
        })?);
    }
    Ok(all)
}
