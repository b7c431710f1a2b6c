//! Mistakes in the router and in what is done with its weights.

use super::case::{Evidence, Variant};
use crate::error::Result;
use crate::formula::Point;
use crate::formula::routing::{ChosenExperts, Combined, ExpertWeights, Weighing, largest};
use crate::formula::softmax::{Form, Seen, Softmax};
use crate::op::{Op, Stage};

pub fn probs<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
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

pub fn ties<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<ChosenExperts<'a>, _>([("ties to the higher expert id", |c| {
        c.choose = |row, k| {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(b.cmp(a)));
            order.truncate(k);
            order
        }
    })])
}

pub fn other_choice<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    case.each_changed::<ChosenExperts<'a>, _>([
        ("the experts of least weight", |c| {
            c.choose = |row, k| largest(&row.iter().map(|p| -p).collect::<Vec<_>>(), k)
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
    ])
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
    let Op::RouterWeights { renormalise, .. } = *case.scene.op else { return Ok(vec![]) };
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
    ] {
        all.extend(case.changed(what, |w: &mut ExpertWeights<'a>| w.weighing = weighing)?);
    }
    Ok(all)
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
    let changes: [(&str, Changed); 9] = [
        ("the experts' sum without their weights", |w| w.fill(1.0)),
        ("the experts' mean, without their weights", |w| w.fill(1.0 / w.len() as f64)),
        ("the weights in reverse order of the slots", |w| w.reverse()),
        ("the weights of the next slot", |w| w.rotate_left(1)),
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
