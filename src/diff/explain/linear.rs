//! Mistakes in products with a weight: other inputs, terms left out or counted twice, the wrong expert, coarser numbers.
//!
//! [`Linear`] is the stage with its operands left open: for output row n of slot j, Σ_k x[row of j, k] · w[expert of j, n, k]. Terms
//! that are left out count zero times. What is done to the weights is in `weights`.

use std::sync::Arc;

use rayon::prelude::*;

use super::case::{Case, Point, Variant};
use crate::backend::Contract;
use crate::backend::oracle::dequant;
use crate::error::Result;
use crate::formula::rounding::TINY;
use crate::formula::sum::{Terms, activation_error};
use crate::op::{Op, Stage, Weight};

/// Writes row n of an expert: products and offsets, `K` of each. `(expert, n, products, offsets)`.
pub(super) type Decode<'a> = Box<dyn Fn(usize, usize, &mut [f64], &mut [f64]) -> Result<()> + Send + Sync + 'a>;

/// The stage, with its operands left open.
pub(super) struct Linear<'a> {
    pub k: usize,
    pub n: usize,
    /// For each row of the result: the row of x, and the expert.
    pub slots: Vec<(usize, usize)>,
    pub x: Arc<Vec<f64>>,
    /// How often each of the K terms counts, where not all do once.
    pub times: Option<Vec<f64>>,
    pub decode: Decode<'a>,
}

/// A weight as it is.
pub(super) fn as_it_is(weight: &Weight) -> Decode<'_> {
    Box::new(move |expert, row, product, offset| {
        dequant::each(weight.ty, weight.row(expert, row), |i, term| {
            product[i] = term.product;
            offset[i] = term.offset;
        })
    })
}

impl<'a> Linear<'a> {
    /// As the operation says; `None` if it is no product with a weight.
    pub fn stated(case: &'a Case<'a>) -> Option<(Self, &'a Weight)> {
        let (weight, ids) = match case.scene.op {
            Op::MatMul { weight, .. } => (&***weight, None),
            Op::ExpertMatMul { weight, ids, .. } => (&***weight, Some(ids)),
            _ => return None,
        };
        let slots = match ids {
            None => (0..case.shapes[0][0]).map(|t| (t, 0)).collect(),
            Some(ids) => {
                let shared = if case.shapes[0].len() == 3 { 1 } else { ids.cols().max(1) };
                ids.ids().iter().enumerate().map(|(slot, id)| (slot / shared, *id as usize)).collect()
            }
        };
        let (x, decode) = (case.inputs[0].clone(), as_it_is(weight));
        Some((Self { k: weight.cols, n: weight.rows, slots, x, times: None, decode }, weight))
    }

    /// The floor is the stage's: the bound on each sum of products beside the sum of offsets, what the activation type loses,
    /// and what may be flushed.
    pub fn variant(self, case: &'a Case<'a>, what: impl Into<String>) -> Variant<'a> {
        self.under(case, case.scene.contract, what)
    }

    /// With the floor of another contract.
    pub fn under(self, case: &'a Case<'a>, contract: Contract, what: impl Into<String>) -> Variant<'a> {
        let (this, lambda) = (self, case.lambda);
        Variant::new(what, move |indices| {
            let (k, n) = (this.k, this.n);
            // By weight row, so that each is decoded once.
            let mut order: Vec<(usize, usize, usize)> =
                indices.iter().enumerate().map(|(at, i)| (this.slots[i / n].1, i % n, at)).collect();
            order.sort_unstable();
            let groups: Vec<&[(usize, usize, usize)]> = order.chunk_by(|a, b| a.0 == b.0 && a.1 == b.1).collect();
            let evaluate = |(product, offset): &mut (Vec<f64>, Vec<f64>), group: &&[(usize, usize, usize)]| {
                let (expert, row, _) = group[0];
                (this.decode)(expert, row, product, offset)?;
                if let Some(times) = &this.times {
                    product.iter_mut().zip(times).for_each(|(p, t)| *p *= t);
                    offset.iter_mut().zip(times).for_each(|(o, t)| *o *= t);
                }
                let has_offset = offset.iter().any(|o| *o != 0.0);
                let w_sum: f64 = product.iter().map(|p| p.abs()).sum();
                let point = |(_, _, at): &(usize, usize, usize)| {
                    let x = &this.x[this.slots[indices[*at] / n].0 * k..][..k];
                    let value =
                        x.iter().zip(&*product).zip(&*offset).map(|((x, p), o)| x * ((p - o) as f32 as f64)).sum();
                    let mut terms = Terms::dot(x, product);
                    if has_offset {
                        terms = terms.less(Terms::dot(x, offset));
                    }
                    let lost = activation_error(x, &contract).map_or(0.0, |errors| {
                        let moved = errors.iter().zip(product.iter().zip(&*offset)).map(|(e, (p, o))| e * (p - o));
                        let (worst, squares) = moved.fold((0.0, 0.0), |(w, s), m: f64| (w + m.abs(), s + m * m));
                        f64::min(worst, lambda * squares.sqrt())
                    });
                    let x_sum: f64 = x.iter().map(|x| x.abs()).sum();
                    let flushed = TINY * (k as f64 + w_sum + 128.0 * x_sum);
                    (*at, Point::new(value, terms.bound(&contract, lambda) + lost + flushed))
                };
                Ok(group.iter().map(point).collect::<Vec<_>>())
            };
            let scratch = || (vec![0.0; k], vec![0.0; k]);
            let found: Vec<Vec<(usize, Point)>> =
                groups.par_iter().map_init(scratch, evaluate).collect::<Result<_>>()?;
            let mut points = vec![Point::exactly(0.0); indices.len()];
            for (at, point) in found.into_iter().flatten() {
                points[at] = point;
            }
            Ok(points)
        })
    }
}

/// The stated product with something changed; `None` from `change` where it makes no sense.
fn changed<'a>(case: &'a Case<'a>, what: impl Into<String>, change: impl FnOnce(&mut Linear<'a>)) -> Vec<Variant<'a>> {
    let Some((mut linear, _)) = Linear::stated(case) else { return vec![] };
    change(&mut linear);
    vec![linear.variant(case, what)]
}

/// Each term counted `times(k)`.
fn weighed<'a>(case: &'a Case<'a>, what: impl Into<String>, times: impl Fn(usize) -> f64) -> Vec<Variant<'a>> {
    changed(case, what, |linear| linear.times = Some((0..linear.k).map(times).collect()))
}

/// The product with another weight of the same shape.
pub fn other_weight<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some((_, weight)) = Linear::stated(case) else { return Ok(vec![]) };
    let others = case.other_weights(weight).into_iter();
    Ok(others.flat_map(|w| changed(case, format!("the product with {}", w.name), |l| l.decode = as_it_is(w))).collect())
}

/// The product with another stage's value of the same shape.
pub fn other_input<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let shape = case.shapes[0];
    let mut all = Vec::new();
    let mut with = |name: String, x: &crate::op::HostTensor| {
        if x.shape == shape {
            let x = Arc::new(x.to_f64());
            all.extend(changed(case, format!("the product of {name}"), |l| l.x = x));
        }
    };
    let input = case.scene.site.stage.info().inputs.first().copied();
    for stage in [
        Stage::AttnNorm,
        Stage::AttnContext,
        Stage::AttnOut,
        Stage::AttnResidual,
        Stage::FfnNorm,
        Stage::ExpertGate,
        Stage::ExpertUp,
        Stage::FfnGate,
        Stage::FfnUp,
        Stage::QRope,
        Stage::QNorm,
        Stage::QProj,
    ] {
        if let Some(x) = case.scene.earlier.get(stage).filter(|_| Some(stage) != input) {
            with(stage.name().to_string(), x);
        }
    }
    if let Some(x) = case.scene.earlier.input() {
        with("the layer's input, not normalised".into(), x);
    }
    Ok(all)
}

/// Another expert's weights: by an offset, by the slot, by the position in the batch.
pub fn expert_offset<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let (Some((stated, weight)), Op::ExpertMatMul { ids, .. }) = (Linear::stated(case), case.scene.op) else {
        return Ok(vec![]);
    };
    let (experts, k) = (weight.experts, ids.cols().max(1));
    let map = |what: String, of: &dyn Fn(usize, usize) -> usize| {
        changed(case, what, |l| {
            l.slots.iter_mut().enumerate().for_each(|(slot, s)| s.1 = of(slot, s.1) % experts);
        })
    };
    let mut all = Vec::new();
    for off in 1..experts.min(16) {
        all.extend(map(format!("the weights of expert e + {off}"), &|_, e| e + off));
        all.extend(map(format!("the weights of expert e − {off}"), &|_, e| e + experts - off));
    }
    all.extend(map("the weights of the expert chosen first, in every slot".into(), &|slot, _| {
        stated.slots[slot / k * k].1
    }));
    all.extend(map("the slot's number as the expert".into(), &|slot, _| slot % k));
    all.extend(map("the slots of each position in reverse".into(), &|slot, _| {
        stated.slots[slot / k * k + k - 1 - slot % k].1
    }));
    all.extend(map("the first position's experts at every position".into(), &|slot, _| stated.slots[slot % k].1));
    for expert in 0..experts.min(16) {
        all.extend(map(format!("the weights of expert {expert} for whatever was chosen"), &|_, _| expert));
    }
    Ok(all)
}

/// The input of another row.
pub fn other_row<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some((stated, _)) = Linear::stated(case) else { return Ok(vec![]) };
    let rows = stated.x.len() / stated.k.max(1);
    let per_slot = case.shapes[0].len() == 3;
    let map = |what: &str, of: &dyn Fn(usize, usize) -> usize| {
        changed(case, what, |l| l.slots.iter_mut().enumerate().for_each(|(slot, s)| s.0 = of(slot, s.0).min(rows - 1)))
    };
    let mut all = Vec::new();
    if rows > 1 {
        all.extend(map("the input of the row before", &|_, row| row.saturating_sub(1)));
        all.extend(map("the input of the row after", &|_, row| row + 1));
        all.extend(map("the input of the first row, in every row", &|_, _| 0));
        all.extend(map("the input of the last row, in every row", &|_, _| rows - 1));
    }
    if per_slot {
        let k = case.shapes[0][1].max(1);
        all.extend(map("the input of the first slot, in every slot", &|slot, _| slot / k * k));
        all.extend(map("the inputs of the position's slots in reverse", &|slot, _| slot / k * k + k - 1 - slot % k));
        all.extend(map("the input of the position's number, not the slot's", &|slot, _| slot / k));
    }
    Ok(all)
}

/// The end of every sum left out: K as it was summed, in steps of 8 and 32.
pub fn k_skipped<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some((stated, _)) = Linear::stated(case) else { return Ok(vec![]) };
    let k = stated.k;
    let step = if k <= 1024 { 8 } else { 32 };
    let mut all = Vec::new();
    let fine = [k.saturating_sub(1), k.saturating_sub(2), k.saturating_sub(4)];
    for summed in (step..k).rev().filter(|s| s % step == 0).chain(fine.into_iter().filter(|s| *s > 0)) {
        all.extend(weighed(case, format!("only the first {summed} of {k} terms of each sum"), |i| {
            (i < summed) as u8 as f64
        }));
    }
    for from in [1, 2, 4, 8, 16, 32, 64, 128, 256].into_iter().filter(|f| *f < k) {
        let what = format!("each sum without its first {from} of {k} terms");
        all.extend(weighed(case, what, |i| (i >= from) as u8 as f64));
    }
    Ok(all)
}

/// The end of every sum counted twice.
pub fn k_twice<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some((stated, _)) = Linear::stated(case) else { return Ok(vec![]) };
    let k = stated.k;
    let mut all = Vec::new();
    for last in [1, 2, 4, 8, 16, 32, 64, 128, 256].into_iter().filter(|l| *l <= k) {
        let what = format!("the last {last} of {k} terms of each sum counted twice");
        all.extend(weighed(case, what, |i| if i + last >= k { 2.0 } else { 1.0 }));
    }
    Ok(all)
}

/// Lanes, as a reduction written for another subgroup size leaves them: of every `lanes`, which each take turns over runs of `run`
/// terms, only the first `summed` are added up.
pub fn lanes<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Some((stated, _)) = Linear::stated(case) else { return Ok(vec![]) };
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
                all.extend(weighed(case, what, |i| (i / run % lanes < summed) as u8 as f64));
            }
            let what = format!("only the odd half of {lanes} lanes{terms} summed");
            all.extend(weighed(case, what, |i| (i / run % 2) as f64));
        }
    }
    for lanes in [4, 8, 16, 32, 64] {
        let run = k / lanes;
        if run > 64 {
            for summed in std::iter::successors(Some(lanes / 2), |n| (*n > 1).then_some(n / 2)) {
                let what = format!("only lanes 0–{} of {lanes}, of {run} terms each, summed", summed - 1);
                all.extend(weighed(case, what, |i| (i / run < summed) as u8 as f64));
            }
        }
    }
    Ok(all)
}
