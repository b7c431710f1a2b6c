//! Mistakes in the router and in what is done with its weights.

use super::case::{Evidence, Variant};
use super::search::round_numbers;
use crate::error::Result;
use crate::formula::pointwise::Sum;
use crate::formula::routing::{ChosenExperts, Combined, ExpertWeights, Weighing, largest};
use crate::formula::softmax::{Form, Seen, Softmax};
use crate::formula::{Formula, Point};
use crate::model::{Ffn, MoeWeights};
use crate::op::{GroupScore, Groups, Op, Stage};

pub fn probs<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    if let Op::RouterProbs { sigmoid: true, .. } = case.scene.op {
        return case.each_changed::<Softmax<'a>, _>([
            ("a softmax over all experts instead of sigmoids", |s| s.form = Form::Softmax),
            ("no sigmoid: the logits themselves", |s| s.form = Form::Itself),
            ("the sigmoid of the logit with its sign turned", |s| s.factor = -1.0),
            ("2^x for e^x", |s| s.factor = 2f64.ln()),
            ("a softmax without its division by the sum", |s| s.form = Form::Undivided),
        ]);
    }
    // Experts used for one token.
    let used = case.scene.config.moe.as_ref().map_or(0, |moe| moe.used);
    let chosen = "a softmax over the chosen experts instead of all";
    let mut all = Vec::from_iter(case.changed(chosen, |s: &mut Softmax<'a>| s.among = Some(used))?);
    all.extend(case.each_changed::<Softmax<'a>, _>([
        ("a sigmoid of each logit instead of a softmax", |s| s.form = Form::Sigmoid),
        ("no softmax: the logits themselves", |s| s.form = Form::Itself),
        ("a softmax without its division by the sum", |s| s.form = Form::Undivided),
        ("2^x for e^x", |s| s.factor = 2f64.ln()),
        ("a softmax that does not subtract the largest logit, overflowing", |s| s.form = Form::Unguarded),
        ("a softmax of the softmax", |s| s.form = Form::Twice),
        ("a softmax over all experts but the last", |s| s.seen = Seen::Causal { from: 0, to: s.cols as isize - 1 }),
    ])?);
    Ok(all)
}

// ---------------------------------------------------------------------------------------------------------------------
// router_ids

/// Experts of equal probability, chosen otherwise than by the lower id.
pub fn ties<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    /// One of each probability, largest first.
    fn distinct(row: &[f64], k: usize, prefer: fn(usize, usize) -> bool) -> Vec<usize> {
        let mut ids: Vec<usize> = Vec::new();
        for _ in 0..k {
            let below = ids.last().map_or(f64::INFINITY, |id| row[*id]);
            let left = (0..row.len()).filter(|e| row[*e] < below);
            let best = left.reduce(|a, b| if row[b] > row[a] || row[b] == row[a] && prefer(b, a) { b } else { a });
            ids.extend(best);
        }
        ids
    }
    let mut all = case.each_changed::<ChosenExperts<'a>, _>([
        ("ties to the higher expert id", |c| {
            c.choose = |row, k| {
                let mut order: Vec<usize> = (0..row.len()).collect();
                order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(b.cmp(a)));
                order.truncate(k);
                order
            }
        }),
        ("ties dropped: of equal experts only the lowest id is taken", |c| {
            c.choose = |row, k| distinct(row, k, |a, b| a < b)
        }),
        ("ties dropped: of equal experts only the highest id is taken", |c| {
            c.choose = |row, k| distinct(row, k, |a, b| a > b)
        }),
        ("ties taken twice: an expert chosen again for its equal", |c| {
            c.choose = |row, k| {
                let ids = largest(row, k);
                ids.iter().map(|id| ids.iter().copied().find(|other| row[*other] == row[*id]).unwrap_or(*id)).collect()
            }
        }),
    ])?;
    // In no order that is known: each slot has an expert as probable as the one that belongs there.
    if let Some(stated) = case.stated::<ChosenExperts<'a>>()?.filter(|_| !case.unseen) {
        let (k, experts) = (stated.k.max(1), stated.experts);
        let p = |i: usize, id: f64| stated.p[i / k * experts..][..experts].get(id as usize).copied();
        if case.wrong.iter().all(|i| p(*i, case.output[*i]) == p(*i, case.exact[*i])) {
            let what = "of experts with equal probabilities others than those of the lowest ids";
            all.push(Variant::each(what, |i| Point::exactly(case.output[i])).assuming(case.wrong.len() as f64));
        }
    }
    Ok(all)
}

pub fn other_choice<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = case.each_changed::<ChosenExperts<'a>, _>([
        ("the experts of least weight", |c| {
            c.choose = |row, k| {
                // What no group lets be chosen stays the last.
                let turned = |p: &f64| if *p == f64::NEG_INFINITY { *p } else { -p };
                largest(&row.iter().map(turned).collect::<Vec<_>>(), k)
            }
        }),
        ("the best expert in every slot", |c| c.choose = |row, k| vec![largest(row, 1)[0]; k]),
        ("the last chosen expert replaced by the one before it", |c| {
            c.choose = |row, k| {
                let mut ids = largest(row, k.saturating_sub(1));
                ids.extend(ids.last().copied());
                ids
            }
        }),
        ("a choice that leaves out the best", |c| c.choose = |row, k| largest(row, k + 1).split_off(1)),
        ("a choice that never takes the last expert", |c| c.choose = |row, k| largest(&row[..row.len() - 1], k)),
        ("a choice that never takes expert 0", |c| {
            c.choose = |row, k| largest(&row[1..], k).into_iter().map(|e| e + 1).collect()
        }),
        ("the first experts, whatever their weights", |c| c.choose = |_, k| (0..k).collect()),
        ("expert ids one too high", |c| {
            c.choose = |row, k| largest(row, k).into_iter().map(|e| (e + 1) % row.len()).collect()
        }),
        ("the first position's experts at every position", |c| {
            c.p = c.p[..c.experts].repeat(c.p.len() / c.experts).into()
        }),
        ("the experts of the position before", |c| {
            c.p = [&c.p[..c.experts], &c.p[..c.p.len() - c.experts]].concat().into()
        }),
    ])?;
    if let Some(logits) = without_bias(case) {
        let what = "a choice by the router's logits without their bias";
        all.extend(case.changed(what, |c: &mut ChosenExperts<'a>| c.p = logits.into())?);
    }
    Ok(all)
}

/// Groups of experts that are left out, or kept otherwise.
pub fn groups<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::RouterTopK { k, groups: Some(stated), .. } = *case.scene.op else { return Ok(vec![]) };
    let experts = case.shapes[0].last().copied().unwrap_or(0);
    let with = |what: String, change: &dyn Fn(&mut ChosenExperts<'a>)| case.changed(what, change);
    let mut all = Vec::from_iter(with("a choice among all experts, without groups".into(), &|c| c.groups = None)?);
    type Score = fn(&[f64]) -> f64;
    let other: (&str, Score) = match stated.by {
        GroupScore::Max => {
            ("groups kept by the sum of their two largest, not by the largest", |group| group.iter().take(2).sum())
        }
        GroupScore::TopTwo => ("groups kept by their largest, not by the sum of two", |group| group[0]),
    };
    let scores: [(&str, Score); 4] = [
        other,
        ("groups kept by the sum of all their experts", |group| group.iter().sum()),
        ("groups kept by their second largest", |group| group.get(1).copied().unwrap_or(f64::NEG_INFINITY)),
        (
            "the groups of the least scores kept",
            match stated.by {
                GroupScore::Max => |group| -group[0],
                GroupScore::TopTwo => |group| -group.iter().take(2).sum::<f64>(),
            },
        ),
    ];
    for (what, score) in scores {
        all.extend(with(what.into(), &|c| c.groups.iter_mut().for_each(|groups| groups.score = score))?);
    }
    for used in [stated.used + 1, stated.used - 1] {
        let left = Groups { used, ..stated }.left(experts);
        if (1..=stated.count).contains(&used) && left >= k {
            let what = format!("{used} of the groups kept for {}", stated.used);
            all.extend(with(what, &|c| c.groups.iter_mut().for_each(|groups| groups.used = used))?);
        }
    }
    for count in (2..=experts / 2).filter(|count| experts.is_multiple_of(*count) && *count != stated.count) {
        let other = Groups { count, ..stated };
        if other.used <= count && other.left(experts) >= k {
            let what = format!("experts in {count} groups where the model has {}", stated.count);
            all.extend(with(what, &|c| c.groups.iter_mut().for_each(|groups| groups.count = count))?);
        }
    }
    let what = "experts of groups that are not kept masked by 0, not by −∞";
    all.extend(with(what.into(), &|c| c.groups.iter_mut().for_each(|groups| groups.masked = 0.0))?);
    let probs = case.scene.earlier.get(Stage::RouterProbs).filter(|_| case.scene.config.layout().choice_bias);
    if let Some(probs) = probs.filter(|probs| probs.len() == case.inputs[0].len()) {
        let probs = probs.to_f64();
        let what = "groups kept by their experts' probabilities without the bias";
        all.extend(with(what.into(), &|c| c.scored_by = Some(probs.clone().into()))?);
    }
    Ok(all)
}

/// The router's logits before their bias, where they have one and are not made a softmax of.
fn without_bias(case: &Evidence<'_>) -> Option<Vec<f64>> {
    let layout = case.scene.config.layout();
    let logits = case.scene.earlier.get(Stage::RouterLogits).filter(|_| layout.biases && layout.logits_choose)?;
    (logits.len() == case.inputs[0].len()).then(|| logits.to_f64())
}

pub fn order<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<ChosenExperts<'a>, _>([
        ("the chosen experts by id, not by weight", |c| {
            c.choose = |row, k| {
                let mut ids = largest(row, k);
                ids.sort_unstable();
                ids
            }
        }),
        ("the chosen experts by weight, ascending", |c| {
            c.choose = |row, k| largest(row, k).into_iter().rev().collect()
        }),
    ])
}

// ---------------------------------------------------------------------------------------------------------------------
// router_weights

pub fn renormalisation<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::RouterWeights { renormalise, softmax, .. } = *case.scene.op else { return Ok(vec![]) };
    if softmax {
        return of_logits(case);
    }
    let first = match renormalise {
        true => ("weights that are not renormalised", Weighing::Copied),
        false => ("weights that are renormalised, which this model does not do", Weighing::BySum),
    };
    let mut all = Vec::new();
    for (what, weighing) in [
        first,
        ("a softmax over the chosen experts' probabilities", Weighing::Softmax),
        ("a softmax over the chosen experts' renormalised weights", Weighing::SoftmaxOfRenormalised),
        ("weights divided by the largest, not by their sum", Weighing::ByLargest),
        ("weights renormalised over all slots but the last", Weighing::BySumOfAllButLast),
        ("weights renormalised by the sum of their squares' root", Weighing::ByRoot),
        ("weights divided by a sum that is at least 6.1e-5", Weighing::BySumAtLeast(6.103515625e-5)),
    ] {
        all.extend(case.changed(what, |w: &mut ExpertWeights<'a>| w.weighing = weighing)?);
    }
    let Some(stated) = case.stated::<ExpertWeights<'a>>()?.filter(|_| renormalise && !case.unseen) else {
        return Ok(all);
    };
    let k = stated.k;
    let with = |what: String, weighing| case.changed(what, |w: &mut ExpertWeights<'a>| w.weighing = weighing);
    let known = [1e-20, 1e-12, 1e-9, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3];
    for eps in known {
        all.extend(with(format!("weights divided by their sum plus {eps:e}"), Weighing::BySumPlus(eps))?);
    }
    for slot in 0..k {
        all.extend(with(format!("only slot {slot} renormalised"), Weighing::BySumIn(slot, slot + 1))?);
        if slot > 1 {
            all.extend(with(format!("only slots 0 to {} renormalised", slot - 1), Weighing::BySumIn(0, slot))?);
        }
        if slot > 0 && slot + 1 < k {
            all.extend(with(format!("only slots from {slot} on renormalised"), Weighing::BySumIn(slot, k))?);
        }
    }
    if let Some(eps) = fit_eps(case, &stated) {
        for eps in round_numbers(eps, 0.2).into_iter().filter(|eps| !known.contains(eps)) {
            let variant = with(format!("weights divided by their sum plus {eps:e}"), Weighing::BySumPlus(eps))?;
            all.extend(variant.map(|variant| variant.with_fitted(eps)));
        }
    }
    Ok(all)
}

/// A share of a weight that rounding may take, beyond which a mistake's value is not known.
const MOST_OFF: f64 = 1e-3;

/// Where the weights are a softmax of the chosen experts' logits: a softmax over all experts, sigmoids, or neither.
fn of_logits<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = Vec::new();
    let Some(stated) = case.stated::<ExpertWeights<'a>>()? else { return Ok(all) };
    let (k, experts) = (stated.k.max(1), stated.experts);
    let made = |form: Form| -> Result<Vec<Point>> {
        let of_all = Softmax::of(form, stated.p.clone(), experts, Seen::All);
        of_all.points(&Vec::from_iter(0..of_all.len()), &case.scene.contract)
    };
    if let Some(logits) = without_bias(case) {
        let what = "a softmax of the chosen experts' logits without their bias";
        all.extend(case.changed(what, |w: &mut ExpertWeights<'a>| w.p = logits.into())?);
    }
    let at = |slot: usize| slot / k * experts + stated.ids[slot];
    for (what, form, weighing) in [
        ("a softmax over all experts, of which the chosen have their shares", Form::Softmax, None),
        ("a softmax of the chosen experts' shares of a softmax over all", Form::Softmax, Some(Weighing::Softmax)),
        ("the sigmoids of the chosen experts' logits", Form::Sigmoid, None),
        ("the sigmoids of the chosen experts' logits, divided by their sum", Form::Sigmoid, Some(Weighing::BySum)),
    ] {
        let points = made(form)?;
        let slots: Vec<Point> = (0..stated.ids.len()).map(|slot| points[at(slot)]).collect();
        let Some(weighing) = weighing else {
            all.push(Variant::each(what, move |i| slots[i]));
            continue;
        };
        let p: Vec<f64> = points.iter().map(|point| point.value).collect();
        let change = |w: &mut ExpertWeights<'a>| (w.p, w.weighing) = (p.into(), weighing);
        // What is weighed is itself off by as much: in absolute terms under an exponential, in relative ones under a division.
        let by_sum = matches!(weighing, Weighing::BySum);
        let off = |slot: usize| {
            let row = &slots[slot / k * k..][..k];
            let each = |p: &Point| 2.0 * if by_sum { p.floor.max(p.floor / p.value.abs()) } else { p.floor };
            row.iter().map(each).fold(0.0, f64::max)
        };
        let more: Vec<f64> = (0..slots.len()).map(off).collect();
        all.extend(case.changed(what, change)?.map(|variant| {
            Variant::new(what, move |indices| {
                let points = variant.at(indices)?.into_iter().zip(indices);
                // What is mostly rounding says nothing.
                let point = |(p, i): (Point, &usize)| match more[*i] {
                    off if off <= MOST_OFF => Point::new(p.value, p.floor + off * p.value.abs()),
                    _ => Point::UNKNOWN,
                };
                Ok(points.map(point).collect())
            })
        }));
    }
    for (what, weighing) in [
        ("the chosen experts' logits themselves", Weighing::Copied),
        ("the chosen experts' logits, divided by their sum", Weighing::BySum),
    ] {
        all.extend(case.changed(what, |w: &mut ExpertWeights<'a>| w.weighing = weighing)?);
    }
    Ok(all)
}

/// y = p/(Σ + eps) where Σ is smallest, which feels eps most.
fn fit_eps(case: &Evidence<'_>, stated: &ExpertWeights<'_>) -> Option<f64> {
    let k = stated.k.max(1);
    let p = |i: usize| stated.p[i / k * stated.experts + stated.ids[i]];
    let sum = |i: usize| (i / k * k..i / k * k + k).map(p).sum::<f64>();
    let at = case.wrong.iter().copied().min_by(|a, b| sum(*a).total_cmp(&sum(*b)))?;
    Some(p(at) * stated.scale / case.output[at] - sum(at)).filter(|eps| eps.is_finite() && *eps > 0.0)
}

/// What the weights are multiplied by.
pub fn scale<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<ExpertWeights<'a>>()?.filter(|stated| stated.scale != 1.0) else {
        return Ok(vec![]);
    };
    let factor = stated.scale;
    let mut all = Vec::new();
    let mut with = |what: String, scale: f64, weighing: Weighing| {
        let change = |w: &mut ExpertWeights<'a>| (w.scale, w.weighing) = (scale, weighing);
        all.extend(case.changed(what, change)?);
        Ok::<_, crate::error::Error>(())
    };
    with(format!("weights that are not multiplied by {factor}"), 1.0, stated.weighing)?;
    with(format!("weights multiplied by {factor} twice"), factor * factor, stated.weighing)?;
    with(format!("weights divided by {factor}"), 1.0 / factor, stated.weighing)?;
    if stated.weighing == Weighing::BySum {
        with(format!("weights neither divided by their sum nor multiplied by {factor}"), 1.0, Weighing::Copied)?;
    }
    Ok(all)
}

/// A bias that is for the choice alone, elsewhere or not there.
pub fn choice_bias<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let layer = case.scene.site.layer.and_then(|n| case.scene.weights.layers.get(n as usize));
    let Some(Ffn::Moe(MoeWeights { choice_bias: Some(weight), .. })) = layer.map(|layer| &layer.ffn) else {
        return Ok(vec![]);
    };
    let bias: Vec<f64> = weight.f32s().map(f64::from).collect();
    let biased = |x: &[f64]| -> Vec<f64> { x.iter().zip(bias.iter().cycle()).map(|(x, b)| x + b).collect() };
    let probs = case.scene.earlier.get(Stage::RouterProbs);
    let one: Option<Variant<'a>> = match case.scene.site.stage {
        Stage::RouterProbs => case.changed("the bias of the choice added to the logits", |s: &mut Softmax<'a>| {
            // One rounding more of what the exponential is taken of.
            s.x = biased(&s.x).into();
        })?,
        Stage::RouterChoice => {
            let logits = case.scene.earlier.get(Stage::RouterLogits);
            let Some(logits) = logits.filter(|l| l.len() == case.inputs[0].len()) else { return Ok(vec![]) };
            case.changed("the bias added to the logits, not to their sigmoids", |s: &mut Sum<'a>| {
                s.operands[0] = logits.to_f64().into();
            })?
        }
        Stage::RouterIds => {
            let Some(probs) = probs.filter(|probs| probs.len() == case.inputs[0].len()) else { return Ok(vec![]) };
            case.changed("a choice by the experts' probabilities without the bias", |c: &mut ChosenExperts<'a>| {
                c.p = probs.to_f64().into();
            })?
        }
        Stage::RouterWeights => case
            .changed("the bias of the choice in the weights", |w: &mut ExpertWeights<'a>| w.p = biased(&w.p).into())?,
        _ => None,
    };
    Ok(one.into_iter().collect())
}

pub fn weight_order<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<ExpertWeights<'a>, _>([
        ("the weights in reverse order of the slots", |w| w.ids.chunks_mut(w.k).for_each(<[usize]>::reverse)),
        ("the weights in the order of the experts' ids", |w| w.ids.chunks_mut(w.k).for_each(<[usize]>::sort_unstable)),
        ("the weights of experts 0, 1, …, not of the chosen", |w| {
            w.ids.iter_mut().enumerate().for_each(|(i, e)| *e = i % w.k)
        }),
        ("the weights of the experts one higher", |w| w.ids.iter_mut().for_each(|e| *e = (*e + 1) % w.experts)),
        ("equal weights 1/K", |w| w.weighing = Weighing::Equal),
    ])
}

// ---------------------------------------------------------------------------------------------------------------------
// moe_out

pub fn combine<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(stated) = case.stated::<Combined<'a>>()? else { return Ok(vec![]) };
    // The weights of each position, changed.
    type Changed = fn(&mut [f64]);
    let changes: [(&str, Changed); 11] = [
        ("the experts' sum without their weights", |w| w.fill(1.0)),
        ("the experts' mean, without their weights", |w| w.fill(1.0 / w.len() as f64)),
        ("the weights in reverse order of the slots", |w| w.reverse()),
        ("the weights of the next slot", |w| w.rotate_left(1)),
        ("the weights of the slot before", |w| w.rotate_right(1)),
        ("the weights of neighbouring slots exchanged", |w| w.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1))),
        ("the weight of the first slot for every slot", |w| w.fill(w[0])),
        ("the weights applied twice", |w| w.iter_mut().for_each(|w| *w *= *w)),
        ("only the first chosen expert, with its weight", |w| w[1..].fill(0.0)),
        ("only the first chosen expert, without its weight", |w| {
            w.fill(0.0);
            w[0] = 1.0;
        }),
        ("only the last chosen expert, with its weight", |w| {
            let last = w.len() - 1;
            w[..last].fill(0.0);
        }),
    ];
    let with = |what: &str, weights: Vec<f64>| case.changed(what, |c: &mut Combined<'a>| c.weights = weights.into());
    let mut all = Vec::new();
    for (what, change) in changes {
        let mut weights = stated.weights.to_vec();
        weights.chunks_mut(stated.k.max(1)).for_each(change);
        all.extend(with(what, weights)?);
    }
    // Weights in the order of the experts' ids, outputs in that of the slots.
    if let Some(ids) = case.ids().filter(|ids| ids.len() == stated.weights.len()) {
        let mut weights = stated.weights.to_vec();
        for (w, ids) in weights.chunks_mut(stated.k.max(1)).zip(ids.ids().chunks(stated.k.max(1))) {
            let mut by_id: Vec<(u32, f64)> = ids.iter().copied().zip(w.iter().copied()).collect();
            by_id.sort_by_key(|(id, _)| *id);
            w.iter_mut().zip(by_id).for_each(|(w, (_, weight))| *w = weight);
        }
        all.extend(with("the weights in the order of the experts' ids", weights)?);
    }
    all.extend(case.changed("the sum without the last chosen expert", |c: &mut Combined<'a>| c.summed -= 1)?);
    if let (Some(probs), Some(ids)) = (case.scene.earlier.get(Stage::RouterProbs), case.ids())
        && ids.len() == stated.weights.len()
    {
        let (experts, probs) = (probs.cols(), probs.to_f64());
        let chosen = ids.ids().iter().enumerate().map(|(i, e)| probs[i / stated.k * experts + *e as usize]);
        all.extend(with("the weights before renormalisation", chosen.collect())?);
    }
    if let Some(residual) = case.scene.earlier.get(Stage::AttnResidual).filter(|r| r.len() == case.output.len()) {
        let (residual, contract) = (residual.to_f64(), &case.scene.contract);
        all.push(Variant::each("the residual added here already", move |i| {
            case.right(i).plus(Point::exactly(residual[i]), contract)
        }));
    }
    Ok(all)
}
