//! Mistakes in products with a weight: other inputs, terms left out or counted twice, the wrong expert, coarser numbers.
//!
//! What is done to the weights is in `weights`.

use super::case::{Evidence, Variant};
use super::weights;
use crate::error::Result;
use crate::formula::linear::{Linear, as_it_is};
use crate::op::{Op, Stage, Weight};

/// Each term counted `times(k)`.
fn weighed<'a>(
    case: &'a Evidence<'a>,
    what: impl Into<String>,
    times: impl Fn(usize) -> f64,
) -> Result<Option<Variant<'a>>> {
    case.changed(what, |l: &mut Linear<'a>| l.times = Some((0..l.k).map(times).collect()))
}

/// The product with another weight of the same shape.
pub fn other_weight<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(weight) = case.scene.op.weight() else { return Ok(vec![]) };
    let with = |w: &'a Weight| weights::with(case, format!("the product with {}", w.name), as_it_is(w));
    case.other_weights(weight).into_iter().filter_map(|w| with(w).transpose()).collect()
}

/// The product with another stage's value of the same shape.
pub fn other_input<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let shape = case.shapes[0];
    let mut all = Vec::new();
    let mut with = |name: &str, x: &crate::op::HostTensor| {
        if x.shape == shape {
            all.extend(case.changed(format!("the product of {name}"), |l: &mut Linear<'a>| l.x = x.to_f64().into())?);
        }
        Ok(())
    };
    let input = case.scene.site.stage.info().inputs.first().copied();
    use Stage::*;
    for stage in [
        AttnNorm,
        AttnContext,
        AttnOut,
        AttnResidual,
        FfnNorm,
        ExpertGate,
        ExpertUp,
        FfnGate,
        FfnUp,
        QRope,
        QNorm,
        QBias,
        QProj,
    ] {
        if let Some(x) = case.scene.earlier.get(stage).filter(|_| Some(stage) != input) {
            with(stage.name(), x)?;
        }
    }
    if let Some(x) = case.scene.earlier.input() {
        with("the layer's input, not normalised", x)?;
    }
    Ok(all)
}

/// Another expert's weights: by an offset, by the slot, by the position in the batch.
pub fn expert_offset<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::ExpertMatMul { ids, weight, .. } = case.scene.op else { return Ok(vec![]) };
    let Some(stated) = case.stated::<Linear<'a>>()? else { return Ok(vec![]) };
    let (experts, k) = (weight.experts, ids.cols().max(1));
    let map = |what: String, of: &dyn Fn(usize, usize) -> usize| {
        case.changed(what, |l: &mut Linear<'a>| {
            l.slots.iter_mut().enumerate().for_each(|(slot, s)| s.1 = of(slot, s.1) % experts);
        })
    };
    let mut all = Vec::new();
    for off in 1..experts.min(16) {
        all.extend(map(format!("the weights of expert e + {off}"), &|_, e| e + off)?);
        all.extend(map(format!("the weights of expert e − {off}"), &|_, e| e + experts - off)?);
    }
    all.extend(map("the weights of the expert chosen first, in every slot".into(), &|slot, _| {
        stated.slots[slot / k * k].1
    })?);
    all.extend(map("the slot's number as the expert".into(), &|slot, _| slot % k)?);
    all.extend(map("the slots of each position in reverse".into(), &|slot, _| {
        stated.slots[slot / k * k + k - 1 - slot % k].1
    })?);
    all.extend(map("the first position's experts at every position".into(), &|slot, _| stated.slots[slot % k].1)?);
    for expert in 0..experts.min(16) {
        all.extend(map(format!("the weights of expert {expert} for whatever was chosen"), &|_, _| expert)?);
    }
    Ok(all)
}

/// The input of another row.
pub fn other_row<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Linear<'a>>()? else { return Ok(vec![]) };
    let rows = stated.x.len() / stated.k.max(1);
    let per_slot = case.shapes[0].len() == 3;
    let map = |what: &str, of: &dyn Fn(usize, usize) -> usize| {
        case.changed(what, |l: &mut Linear<'a>| {
            l.slots.iter_mut().enumerate().for_each(|(slot, s)| s.0 = of(slot, s.0).min(rows - 1))
        })
    };
    let mut all = Vec::new();
    if rows > 1 {
        all.extend(map("the input of the row before", &|_, row| row.saturating_sub(1))?);
        all.extend(map("the input of the row after", &|_, row| row + 1)?);
        all.extend(map("the input of the first row, in every row", &|_, _| 0)?);
        all.extend(map("the input of the last row, in every row", &|_, _| rows - 1)?);
    }
    if per_slot {
        let k = case.shapes[0][1].max(1);
        all.extend(map("the input of the first slot, in every slot", &|slot, _| slot / k * k)?);
        all.extend(map("the inputs of the position's slots in reverse", &|slot, _| slot / k * k + k - 1 - slot % k)?);
        all.extend(map("the input of the position's number, not the slot's", &|slot, _| slot / k)?);
    }
    Ok(all)
}

/// The end of every sum left out: K as it was summed, in steps of 8 and 32.
pub fn k_skipped<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Linear<'a>>()? else { return Ok(vec![]) };
    let k = stated.k;
    let step = if k <= 1024 { 8 } else { 32 };
    let mut all = Vec::new();
    let fine = [k.saturating_sub(1), k.saturating_sub(2), k.saturating_sub(4)];
    for summed in (step..k).rev().filter(|s| s % step == 0).chain(fine.into_iter().filter(|s| *s > 0)) {
        all.extend(weighed(case, format!("only the first {summed} of {k} terms of each sum"), |i| {
            (i < summed) as u8 as f64
        })?);
    }
    for from in [1, 2, 4, 8, 16, 32, 64, 128, 256].into_iter().filter(|f| *f < k) {
        let what = format!("each sum without its first {from} of {k} terms");
        all.extend(weighed(case, what, |i| (i >= from) as u8 as f64)?);
    }
    Ok(all)
}

/// The end of every sum counted twice.
pub fn k_twice<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Linear<'a>>()? else { return Ok(vec![]) };
    let k = stated.k;
    let mut all = Vec::new();
    for last in [1, 2, 4, 8, 16, 32, 64, 128, 256].into_iter().filter(|l| *l <= k) {
        let what = format!("the last {last} of {k} terms of each sum counted twice");
        all.extend(weighed(case, what, |i| if i + last >= k { 2.0 } else { 1.0 })?);
    }
    Ok(all)
}

/// Lanes, as a reduction written for another subgroup size leaves them: of every `lanes`, which each take turns over runs of `run`
/// terms, only the first `summed` are added up.
pub fn lanes<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Linear<'a>>()? else { return Ok(vec![]) };
    let k = stated.k;
    let mut all = Vec::new();
    for run in [1, 2, 4, 8, 16, 32, 64] {
        for lanes in [64, 32, 16, 8, 128, 256, 4] {
            // A lane without terms is no lane, and one turn of runs is a range.
            if lanes * run > k {
                continue;
            }
            let terms = if run == 1 { String::new() } else { format!(", of {run} terms at a time,") };
            let halves = std::iter::successors(Some(lanes / 2), |n| (*n > 1).then_some(n / 2));
            for summed in halves.chain([lanes - 1]) {
                let what = format!("only lanes 0–{} of {lanes}{terms} summed", summed - 1);
                all.extend(weighed(case, what, |i| (i / run % lanes < summed) as u8 as f64)?);
            }
            let what = format!("only the odd half of {lanes} lanes{terms} summed");
            all.extend(weighed(case, what, |i| (i / run % 2) as f64)?);
        }
    }
    for lanes in [4, 8, 16, 32, 64] {
        let run = k / lanes;
        if run > 64 {
            for summed in std::iter::successors(Some(lanes / 2), |n| (*n > 1).then_some(n / 2)) {
                let what = format!("only lanes 0–{} of {lanes}, of {run} terms each, summed", summed - 1);
                all.extend(weighed(case, what, |i| (i / run < summed) as u8 as f64)?);
            }
        }
    }
    Ok(all)
}
