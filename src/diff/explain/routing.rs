//! Mistakes in the router and in what is done with its weights.

use super::attention::{overflowing, softmax};
use super::case::{Case, Point, Variant};
use crate::error::Result;
use crate::formula::rounding::{TINY, exp_error, ulp};
use crate::formula::sum::{Terms, roundoff};
use crate::op::{Op, Stage};

/// The `k` largest of a row, ties to the lower id.
pub(super) fn largest(row: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    order.truncate(k);
    order
}

/// Experts used for one token.
fn used(case: &Case<'_>) -> usize {
    case.scene.config.moe.as_ref().map_or(0, |moe| moe.used)
}

// ---------------------------------------------------------------------------------------------------------------------
// router_probs

pub fn probs<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::RouterProbs { .. } = case.scene.op else { return Ok(vec![]) };
    let (cols, k) = (case.cols(), used(case));
    let (contract, lambda) = (case.scene.contract, case.lambda);
    let row = move |t: usize| &case.inputs[0][t * cols..][..cols];
    let u = roundoff(&contract);
    Ok(vec![
        Variant::rows("a softmax over the chosen experts instead of all", cols, move |t| {
            let chosen = largest(row(t), k);
            let logits: Vec<f64> = chosen.iter().map(|e| row(t)[*e]).collect();
            let mut points = vec![Point::exactly(0.0); cols];
            for (e, p) in chosen.into_iter().zip(softmax(&logits, &contract, lambda)) {
                points[e] = p;
            }
            points
        }),
        Variant::each("a sigmoid of each logit instead of a softmax", move |i| {
            let x = case.inputs[0][i];
            let y = 1.0 / (1.0 + (-x).exp());
            Point::new(
                y,
                y * ((1.0 - y) * exp_error(x.abs(), &contract) + contract.div_ulp * ulp(&contract) + 2.0 * u) + TINY,
            )
        }),
        Variant::each("no softmax: the logits themselves", |i| Point::exactly(case.inputs[0][i])),
        Variant::rows("a softmax without its division by the sum", cols, move |t| {
            let max = row(t).iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e = |x: &f64| Point::new((x - max).exp(), exp_error(max - x, &contract) * (x - max).exp() + TINY);
            row(t).iter().map(e).collect()
        }),
        Variant::rows("2^x for e^x", cols, move |t| {
            let scaled: Vec<f64> = row(t).iter().map(|x| x * 2f64.ln()).collect();
            softmax(&scaled, &contract, lambda)
        }),
        Variant::rows("a softmax that does not subtract the largest logit, overflowing", cols, move |t| {
            overflowing(row(t), &contract, lambda)
        }),
        Variant::rows("a softmax of the softmax", cols, move |t| {
            let once = softmax(row(t), &contract, lambda);
            let values: Vec<f64> = once.iter().map(|p| p.value).collect();
            let moved = once.iter().map(|p| p.floor).fold(0.0, f64::max);
            softmax(&values, &contract, lambda)
                .iter()
                .map(|p| Point::new(p.value, p.floor + 2.0 * moved * p.value))
                .collect()
        }),
        Variant::rows("a softmax over all experts but the last", cols, move |t| {
            let mut points = softmax(&row(t)[..cols - 1], &contract, lambda);
            points.push(Point::exactly(0.0));
            points
        }),
    ])
}

// ---------------------------------------------------------------------------------------------------------------------
// router_ids

/// Another choice: `choose(probabilities of a position, k, position)`.
pub(super) fn choice<'a>(
    case: &'a Case<'a>,
    what: &str,
    choose: impl Fn(&[f64], usize, usize) -> Vec<usize> + 'a,
) -> Vec<Variant<'a>> {
    let Op::RouterTopK { k, .. } = *case.scene.op else { return vec![] };
    let experts = case.shapes[0].last().copied().unwrap_or(0);
    let variant = Variant::rows(what, k, move |t| {
        let mut ids = choose(&case.inputs[0][t * experts..][..experts], k, t);
        ids.resize(k, 0);
        ids.into_iter().map(|id| Point::exactly(id as f64)).collect()
    });
    vec![variant]
}

pub fn ties<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    Ok(choice(case, "ties to the higher expert id", |row, k, _| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(b.cmp(a)));
        order.truncate(k);
        order
    }))
}

pub fn other_choice<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = choice(case, "the experts of least weight", |row, k, _| {
        let negated: Vec<f64> = row.iter().map(|p| -p).collect();
        largest(&negated, k)
    });
    all.extend(choice(case, "the best expert in every slot", |row, k, _| vec![largest(row, 1)[0]; k]));
    all.extend(choice(case, "the last chosen expert replaced by the one before it", |row, k, _| {
        let mut ids = largest(row, k.saturating_sub(1));
        ids.extend(ids.last().copied());
        ids
    }));
    all.extend(choice(case, "a choice that leaves out the best", |row, k, _| largest(row, k + 1).split_off(1)));
    all.extend(choice(case, "a choice that never takes the last expert", |row, k, _| {
        largest(&row[..row.len() - 1], k)
    }));
    all.extend(choice(case, "a choice that never takes expert 0", |row, k, _| {
        largest(&row[1..], k).into_iter().map(|e| e + 1).collect()
    }));
    all.extend(choice(case, "the first experts, whatever their weights", |_, k, _| (0..k).collect()));
    all.extend(choice(case, "expert ids one too high", |row, k, _| {
        largest(row, k).into_iter().map(|e| (e + 1) % row.len()).collect()
    }));
    let experts = case.shapes[0].last().copied().unwrap_or(0);
    all.extend(choice(case, "the first position's experts at every position", move |_, k, _| {
        largest(&case.inputs[0][..experts], k)
    }));
    all.extend(choice(case, "the experts of the position before", move |_, k, t| {
        largest(&case.inputs[0][t.saturating_sub(1) * experts..][..experts], k)
    }));
    Ok(all)
}

pub fn order<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = choice(case, "the chosen experts by id, not by weight", |row, k, _| {
        let mut ids = largest(row, k);
        ids.sort_unstable();
        ids
    });
    all.extend(choice(case, "the chosen experts by weight, ascending", |row, k, _| {
        largest(row, k).into_iter().rev().collect()
    }));
    Ok(all)
}

// ---------------------------------------------------------------------------------------------------------------------
// router_weights

/// Other weights: `weigh(probabilities, ids)` of a position.
pub(super) fn weights<'a>(
    case: &'a Case<'a>,
    what: &str,
    weigh: impl Fn(&[f64], &[usize]) -> Vec<Point> + 'a,
) -> Vec<Variant<'a>> {
    let Op::RouterWeights { ids, .. } = case.scene.op else { return vec![] };
    let (experts, k) = (case.shapes[0].last().copied().unwrap_or(0), ids.cols().max(1));
    let variant = Variant::rows(what, k, move |t| {
        let ids: Vec<usize> = ids.ids()[t * k..][..k].iter().map(|id| *id as usize).collect();
        weigh(&case.inputs[0][t * experts..][..experts], &ids)
    });
    vec![variant]
}

/// p / Σp, with the stage's floor.
pub(super) fn renormalised(p: &[f64], case: &Case<'_>) -> Vec<Point> {
    let contract = &case.scene.contract;
    let terms = Terms::one_sign(p.iter().copied());
    let relative = terms.bound(contract, case.lambda) / terms.absolute + contract.div_ulp * ulp(contract);
    p.iter().map(|p| Point::new(p / terms.absolute, relative * p / terms.absolute + TINY)).collect()
}

pub fn renormalisation<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::RouterWeights { renormalise, .. } = *case.scene.op else { return Ok(vec![]) };
    let contract = case.scene.contract;
    let u = roundoff(&contract);
    let at = |p: &[f64], ids: &[usize]| -> Vec<f64> { ids.iter().map(|e| p[*e]).collect() };
    let mut all = if renormalise {
        weights(case, "weights that are not renormalised", move |p, ids| {
            at(p, ids).into_iter().map(|p| Point::new(p, TINY)).collect()
        })
    } else {
        weights(case, "weights that are renormalised, which this model does not do", move |p, ids| {
            renormalised(&at(p, ids), case)
        })
    };
    all.extend(weights(case, "a softmax over the chosen experts' probabilities", move |p, ids| {
        softmax(&at(p, ids), &contract, case.lambda)
    }));
    all.extend(weights(case, "a softmax over the chosen experts' renormalised weights", move |p, ids| {
        let once: Vec<f64> = renormalised(&at(p, ids), case).iter().map(|p| p.value).collect();
        softmax(&once, &contract, case.lambda)
            .iter()
            .map(|p| Point::new(p.value, p.floor + 8.0 * u * p.value))
            .collect()
    }));
    all.extend(weights(case, "weights divided by the largest, not by their sum", move |p, ids| {
        let chosen = at(p, ids);
        let max = chosen.iter().copied().fold(0.0, f64::max);
        chosen.iter().map(|p| Point::new(p / max, contract.div_ulp * ulp(&contract) * p / max + TINY)).collect()
    }));
    all.extend(weights(case, "weights renormalised over all slots but the last", move |p, ids| {
        let chosen = at(p, ids);
        let sum: f64 = chosen[..chosen.len().saturating_sub(1).max(1)].iter().sum();
        let relative = contract.div_ulp * ulp(&contract) + chosen.len() as f64 * u;
        chosen.iter().map(|p| Point::new(p / sum, relative * p / sum + TINY)).collect()
    }));
    all.extend(weights(case, "weights renormalised by the sum of their squares' root", move |p, ids| {
        let chosen = at(p, ids);
        let norm = chosen.iter().map(|p| p * p).sum::<f64>().sqrt();
        let relative = (contract.div_ulp + contract.rsqrt_ulp) * ulp(&contract) + (chosen.len() + 2) as f64 * u;
        chosen.iter().map(|p| Point::new(p / norm, relative * p / norm + TINY)).collect()
    }));
    Ok(all)
}

pub fn weight_order<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let Op::RouterWeights { renormalise, .. } = *case.scene.op else { return Ok(vec![]) };
    let usual = move |p: Vec<f64>| {
        if renormalise { renormalised(&p, case) } else { p.into_iter().map(|p| Point::new(p, TINY)).collect() }
    };
    let mut all = weights(case, "the weights in reverse order of the slots", move |p, ids| {
        usual(ids.iter().rev().map(|e| p[*e]).collect())
    });
    all.extend(weights(case, "the weights in the order of the experts' ids", move |p, ids| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        usual(ids.iter().map(|e| p[*e]).collect())
    }));
    all.extend(weights(case, "the weights of experts 0, 1, …, not of the chosen", move |p, ids| {
        usual(p[..ids.len()].to_vec())
    }));
    all.extend(weights(case, "the weights of the experts one higher", move |p, ids| {
        usual(ids.iter().map(|e| p[(e + 1) % p.len()]).collect())
    }));
    all.extend(weights(case, "equal weights 1/K", move |_, ids| {
        let (contract, k) = (&case.scene.contract, ids.len() as f64);
        vec![Point::new(1.0 / k, contract.div_ulp * ulp(contract) / k); ids.len()]
    }));
    Ok(all)
}

// ---------------------------------------------------------------------------------------------------------------------
// moe_out

/// The weighted sum with other weights: `weigh(weights of a position)`, one a slot, or of other slots.
pub(super) fn combined<'a>(
    case: &'a Case<'a>,
    what: &str,
    weigh: impl Fn(usize, &[f64]) -> Vec<f64> + 'a,
) -> Vec<Variant<'a>> {
    let Op::Combine { weights, .. } = case.scene.op else { return vec![] };
    let (k, h) = (weights.cols().max(1), case.cols());
    let (contract, lambda) = (case.scene.contract, case.lambda);
    let variant = Variant::each(what, move |i| {
        let (t, column) = (i / h, i % h);
        let weights = weigh(t, &case.inputs[1][t * k..][..k]);
        let down: Vec<f64> = (0..k).map(|slot| case.inputs[0][(t * k + slot) * h + column]).collect();
        let y = weights.iter().zip(&down).map(|(w, d)| w * d).sum();
        let flushed = TINY * (k as f64 + down.iter().map(|d| d.abs()).sum::<f64>());
        Point::new(y, Terms::dot(&weights, &down).bound(&contract, lambda) + flushed)
    });
    vec![variant]
}

pub fn combine<'a>(case: &'a Case<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = combined(case, "the experts' sum without their weights", |_, w| vec![1.0; w.len()]);
    all.extend(combined(case, "the experts' mean, without their weights", |_, w| vec![1.0 / w.len() as f64; w.len()]));
    all.extend(combined(case, "the weights in reverse order of the slots", |_, w| w.iter().rev().copied().collect()));
    all.extend(combined(case, "the weights of the next slot", |_, w| {
        let mut w = w.to_vec();
        w.rotate_left(1);
        w
    }));
    all.extend(combined(case, "the weight of the first slot for every slot", |_, w| vec![w[0]; w.len()]));
    all.extend(combined(case, "the weights applied twice", |_, w| w.iter().map(|w| w * w).collect()));
    let only = |slot: fn(usize) -> usize, weighed: bool| {
        move |_: usize, w: &[f64]| {
            let mut one = vec![0.0; w.len()];
            one[slot(w.len())] = if weighed { w[slot(w.len())] } else { 1.0 };
            one
        }
    };
    all.extend(combined(case, "only the first chosen expert, with its weight", only(|_| 0, true)));
    all.extend(combined(case, "only the first chosen expert, without its weight", only(|_| 0, false)));
    all.extend(combined(case, "only the last chosen expert, with its weight", only(|k| k - 1, true)));
    all.extend(combined(case, "the sum without the last chosen expert", |_, w| {
        let mut w = w.to_vec();
        w.pop();
        w
    }));
    if let Some(probs) = case.scene.earlier.get(Stage::RouterProbs)
        && let (Some(ids), Op::Combine { weights, .. }) = (case.ids(), case.scene.op)
        && ids.shape == weights.shape
    {
        let (experts, k, probs) = (probs.cols(), ids.cols().max(1), probs.to_f64());
        all.extend(combined(case, "the weights before renormalisation", move |t, _| {
            ids.ids()[t * k..][..k].iter().map(|e| probs[t * experts + *e as usize]).collect()
        }));
    }
    if let Some(residual) = case.scene.earlier.get(Stage::AttnResidual).filter(|r| r.len() == case.output.len()) {
        let (residual, u) = (residual.to_f64(), roundoff(&case.scene.contract));
        all.push(Variant::each("the residual added here already", move |i| {
            let right = case.right(i);
            let y = right.value + residual[i];
            Point::new(y, right.floor + u * y.abs() + TINY)
        }));
    }
    Ok(all)
}
