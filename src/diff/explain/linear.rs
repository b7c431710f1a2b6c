//! Mistakes in products with a weight: other inputs, the wrong expert, sums that read on.
//!
//! What is done to the weights is in `weights` and `bytes`, terms left out in `reduction`.

use super::case::{Evidence, Variant};
use super::indices::{OF_ROWS, neighbour, of_few_experts, reversed};
use crate::error::Result;
use crate::formula::Formula;
use crate::formula::linear::{Decode, Linear, as_it_is, scales_of};
use crate::op::{Op, Stage, Weight};

/// The product with another weight of the same shape.
pub fn other_weight<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(weight) = case.scene.op.weight() else { return Ok(vec![]) };
    let with = |w: &'a Weight| {
        let mut decode = as_it_is(w);
        case.emulation.round(&mut decode);
        case.changed(format!("the product with {}", w.name), |l: &mut Linear<'a>| {
            (l.decode, l.scales) = (decode, scales_of(w, &l.slots));
        })
    };
    case.other_weights(weight).into_iter().filter_map(|w| with(w).transpose()).collect()
}

/// The product with another stage's value of the same shape.
pub fn other_input<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let shape = case.shapes[0];
    let mut all = Vec::new();
    let mut with = |name: &str, x: &crate::op::HostTensor| {
        if x.shape == shape {
            let (emulation, values) = case.in_place(0, x)?;
            all.extend(case.changed(format!("the product of {name}"), |l: &mut Linear<'a>| {
                if l.stride() > l.n {
                    l.keep(&values);
                }
                l.read(values.into());
                l.emulate(&emulation);
            })?);
        }
        Ok(())
    };
    let layout = case.scene.config.layout().of(case.scene.site.layer);
    let input = case.scene.site.stage.inputs(layout).next();
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
        QA,
        KRope,
        KvNorm,
        KvA,
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
    // With that expert's scale; where the weight has scales, its own would be another mistake.
    let with = |what: String, of: &dyn Fn(usize, usize) -> usize| {
        case.changed(what, |l: &mut Linear<'a>| {
            l.slots.iter_mut().enumerate().for_each(|(slot, s)| s.1 = of(slot, s.1) % experts);
            l.scales = scales_of(weight, &l.slots);
        })
    };
    let few = |what: String, of: &dyn Fn(usize) -> usize| with(what, &|_, e| of(e));
    if let Some(few) = of_few_experts(case, "the weights", |i| stated.slots[i / stated.n].1, experts, few)? {
        return Ok(vec![few]);
    }
    let map = |what: String, of: &dyn Fn(usize, usize) -> usize| {
        Result::Ok(with(what, of)?.map(|variant| variant.in_runs(OF_ROWS)))
    };
    let mut all = Vec::new();
    for off in 1..experts.min(16) {
        all.extend(map(format!("the weights of expert e + {off}"), &|_, e| e + off)?);
        all.extend(map(format!("the weights of expert e − {off}"), &|_, e| e + experts - off)?);
    }
    if experts > 2 {
        all.extend(map("the weights of the experts in reverse".into(), &|_, e| reversed(e, experts))?);
        all.extend(map("the weights of neighbouring experts exchanged".into(), &|_, e| neighbour(e, experts))?);
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

/// The scale that stands beside a weight: left out, applied otherwise, or another's.
pub fn scale_tensor<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(weight) = case.scene.op.weight().filter(|w| !w.scales.is_empty()) else { return Ok(vec![]) };
    let Some(stated) = case.stated::<Linear<'a>>()? else { return Ok(vec![]) };
    let with = |what: String, scale: &dyn Fn(usize, f64) -> f64| {
        case.changed(what, |l: &mut Linear<'a>| {
            l.scales.iter_mut().enumerate().for_each(|(slot, s)| *s = scale(slot, *s));
        })
    };
    let mut all = Vec::from_iter(with("the weight's scale left out".into(), &|_, _| 1.0)?);
    all.extend(with("the weight's scale applied twice".into(), &|_, s| s * s)?);
    all.extend(with("divided by the weight's scale".into(), &|_, s| 1.0 / s)?);
    let of = |expert: usize| weight.scale(expert % weight.experts).map_or(1.0, f64::from);
    let expert = |slot: usize| stated.slots[slot].1;
    for off in 1..weight.experts.min(16) {
        all.extend(with(format!("the scale of expert e + {off}"), &|slot, _| of(expert(slot) + off))?);
        let before = weight.experts - off;
        all.extend(with(format!("the scale of expert e − {off}"), &|slot, _| of(expert(slot) + before))?);
    }
    if let Op::ExpertMatMul { ids, .. } = case.scene.op {
        let k = ids.cols().max(1);
        all.extend(with("the scale of the slot's number".into(), &|slot, _| of(slot % k))?);
        for expert in 0..weight.experts.min(16) {
            all.extend(with(format!("the scale of expert {expert} for whatever was chosen"), &|_, _| of(expert))?);
        }
    }
    for other in case.other_weights(weight).into_iter().filter(|w| !w.scales.is_empty()) {
        let scales = scales_of(other, &stated.slots);
        all.extend(with(format!("the scale of {}", other.name), &|slot, _| scales[slot])?);
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

/// Sums that run on behind the end of their rows: into the next row of the weight and of the input.
pub fn k_past<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let (Some(weight), Some(stated)) = (case.scene.op.weight(), case.stated::<Linear<'a>>()?) else {
        return Ok(vec![]);
    };
    if case.unseen {
        return Ok(vec![]);
    }
    let (k, n, rows) = (stated.k, stated.n, stated.x.len() / stated.k.max(1));
    let mut all = Vec::new();
    for past in [256, 32, 16, 64, 128, 8, 4, 2, 1].into_iter().filter(|past| *past <= k) {
        let extended = |row: usize| {
            let next = if row + 1 < rows { &stated.x[(row + 1) * k..][..past] } else { &[] };
            let silent = past - next.len();
            stated.x[row * k..][..k].iter().chain(next).copied().chain(std::iter::repeat_n(0.0, silent))
        };
        let x: Vec<f64> = (0..rows).flat_map(extended).collect();
        let mut decode: Decode<'a> = Box::new(move |expert, row, product, offset| {
            as_it_is(weight)(expert, row, &mut product[..k], &mut offset[..k])?;
            let (mut p, mut o) = (vec![0.0; k], vec![0.0; k]);
            let (expert, next) = if row + 1 < n { (expert, row + 1) } else { (expert + 1, 0) };
            if expert < weight.experts {
                as_it_is(weight)(expert, next, &mut p, &mut o)?;
            }
            product[k..].copy_from_slice(&p[..past]);
            offset[k..].copy_from_slice(&o[..past]);
            Ok(())
        });
        case.emulation.round(&mut decode);
        let slots = stated.slots.clone();
        let last = move |i: usize| {
            let (row, expert) = slots[i / n];
            row + 1 == rows || i % n + 1 == n && expert + 1 == weight.experts
        };
        let what = format!("each sum reads on, {past} terms into the next row of the weight and of the input");
        let change = |l: &mut Linear<'a>| {
            (l.k, l.x, l.decode) = (k + past, x.into(), decode);
            (l.ties, l.blocks) = (Vec::new(), None);
        };
        all.extend(case.changed(what, change)?.map(|variant| variant.unknown_at(last)));
    }
    Ok(all)
}
