//! The search: every variant at every step, in every part, and which of those that come near hold.

use std::collections::BTreeSet;

use super::scope::{HiddenMistake, MistakePart, NEAR, SegmentScope, WantedRows};
use crate::diff::explain::Hypothesis;
use crate::diff::explain::fit::UNACCOUNTED;
use crate::diff::explain::list::HYPOTHESES;
use crate::diff::segment::Changed;
use crate::error::Result;
use crate::op::{Dim, HostTensor, Site};

/// How many of those are held against their own floor: at least these,
const CLOSEST: usize = 12;
/// and all that are within the floor already, up to these. Several stages may have the same mistake with the same effect: a factor of
/// the scores is one of q's or of k's, before rope or after.
const MOST_WITHIN: usize = 48;

/// How far a search came.
#[derive(Default)]
pub struct Searched {
    /// Variants tried.
    pub tried: usize,
    /// Variants that were not, as the search had cost what it may.
    pub untried: usize,
}

/// Operations on weights and roundings, not on the model's structure.
fn is_numeric(hypothesis: &Hypothesis) -> bool {
    let kinds = [
        "weight-",
        "scale-",
        "int8-",
        "input-precision",
        "output-precision",
        "sum-precision",
        "lanes",
        "rope-precision",
    ];
    kinds.iter().any(|kind| hypothesis.id.starts_with(kind)) && hypothesis.id != "weight-order"
}

/// Every mistake that comes near to what the side shows: on the first rows or, if it lets rows see later ones, on all.
pub fn try_all(
    [first, whole]: [&SegmentScope<'_>; 2],
    parts: &[MistakePart],
    structural: bool,
    searched: &mut Searched,
) -> Result<Vec<(f64, HiddenMistake)>> {
    let contracts = first.eval.contracts;
    let mut near: Vec<(f64, HiddenMistake)> = Vec::new();
    let mut seen: Vec<(&'static Hypothesis, String, Vec<usize>)> = Vec::new();
    let sees_later = |hypothesis: &Hypothesis| hypothesis.id == "mask";
    let steps = first.segment.steps.len();
    let most = first.eval.most_spent;
    let began = first.spent() + whole.spent();
    let spent = || first.spent() + whole.spent() - began;
    for (n, later) in (0..steps).flat_map(|n| [(n, false), (n, true)]) {
        let scope = if later { whole } else { first };
        let step = &scope.segment.steps[n];
        let (upstream, right) = (scope.upstream(n, &Changed::new()), &*step.exact);
        let has_experts = step.op.borrow().weight().is_some_and(|w| w.experts > 1);
        let hypotheses = HYPOTHESES.iter().filter(|h| is_numeric(h) != structural && sees_later(h) == later);
        scope.variants(n, &step.op, &upstream, right, hypotheses, |hypothesis, what, values| {
            match seen.iter_mut().find(|(h, w, _)| std::ptr::eq(*h, hypothesis) && *w == what) {
                Some((_, _, steps)) => steps.push(n),
                None => seen.push((hypothesis, what.to_string(), vec![n])),
            }
            if spent() > most / 2 {
                searched.untried += 1;
                return Ok(true); // what may be made at several stages is still collected
            }
            let mut whole_fits = false;
            for part in parts.iter().filter(|part| has_experts || !matches!(part, MistakePart::Expert(_))) {
                // Where the mistake fits as a whole, a part of it says no more.
                if *part != MistakePart::Whole && whole_fits {
                    break;
                }
                searched.tried += 1;
                if !later && !scope.may_fit(n, part, right, values)? {
                    continue;
                }
                let here = scope.in_part(n, part, right, WantedRows::All, values)?;
                if here.data == right.data {
                    continue;
                }
                let end = scope.segment.rerun(contracts, |m, _, _| Ok((m == n).then(|| here.clone())))?;
                let mistake =
                    || HiddenMistake { hypothesis, what: what.to_string(), steps: vec![n], part: part.clone() };
                let residual = scope.comes_near(scope.end(&end));
                whole_fits |= *part == MistakePart::Whole && residual.is_some_and(|residual| residual <= 1.0);
                near.extend(residual.map(|residual| (residual, mistake())));
            }
            Ok(true)
        })?;
    }
    for (hypothesis, what, steps) in seen.into_iter().filter(|(.., steps)| steps.len() > 1) {
        if spent() > most {
            searched.untried += 1;
            continue;
        }
        searched.tried += 1;
        let scope = if sees_later(hypothesis) { whole } else { first };
        let mistake = HiddenMistake { hypothesis, what, steps, part: MistakePart::Whole };
        if sees_later(hypothesis) || scope.run_may_fit(&mistake)? {
            let end = scope.run(&mistake)?;
            near.extend(scope.comes_near(scope.end(&end)).map(|residual| (residual, mistake)));
        }
    }
    // A stable sort: of equally good ones the first stage and the first in the list.
    near.sort_by(|a, b| a.0.total_cmp(&b.0));
    let within = near.iter().take_while(|(residual, _)| *residual <= 1.0).count();
    near.truncate(within.clamp(CLOSEST, MOST_WITHIN));
    Ok(near)
}

/// Those that give what the side shows on all rows, within the floor that the segment has with them in it.
pub fn hold(whole: &SegmentScope<'_>, near: Vec<(f64, HiddenMistake)>) -> Result<Vec<(HiddenMistake, f64, Changed)>> {
    let mut fits: Vec<(HiddenMistake, f64, Changed)> = Vec::new();
    for (_, mistake) in near {
        let run = whole.run(&mistake)?;
        let (mut residual, left) = whole.residual(whole.end(&run), &whole.allowed);
        if residual > 1.0 && residual <= NEAR {
            let floor =
                whole.segment.allowed(whole.eval.contracts, |n, op, changed| whole.made(&mistake, n, op, changed))?;
            let floor: Vec<f64> = floor.iter().zip(&whole.allowed).map(|(own, right)| own.max(*right)).collect();
            residual = whole.residual(whole.end(&run), &floor).0;
        }
        if residual <= 1.0 && left <= UNACCOUNTED {
            fits.push((mistake, residual, run));
        }
    }
    Ok(fits)
}

/// The expert that all wrong rows use and no other row does, if there is one.
pub fn shared_expert(ids: Option<&HostTensor>, rows: &BTreeSet<usize>) -> Option<u32> {
    let ids = ids?;
    let uses = |row: usize, expert: u32| ids.ids()[row * ids.cols()..(row + 1) * ids.cols()].contains(&expert);
    let first = *rows.first()?;
    let candidates = &ids.ids()[first * ids.cols()..(first + 1) * ids.cols()];
    let alone = |e: &&u32| (0..ids.shape[0]).all(|row| uses(row, **e) == rows.contains(&row));
    candidates.iter().find(alone).copied()
}

/// Hidden stages to be captured next. Where several mistakes fit, those at which most pairs of them differ; where none does, the one at
/// about half of the segment, of the width of the residual stream, where there is one.
pub fn capture(scope: &SegmentScope<'_>, fits: &[(HiddenMistake, f64, Changed)]) -> Vec<Site> {
    let steps = &scope.segment.steps;
    let hidden = &steps[..steps.len() - 1];
    if fits.len() > 1 {
        let told_apart = |n: usize| {
            let step = &hidden[n];
            let value = |changed: &Changed| changed.get(&step.at.site).unwrap_or(&step.value).to_f64();
            let differ = |a: &Changed, b: &Changed| {
                let (a, b) = (value(a), value(b));
                a.iter().zip(&b).zip(step.floor.iter()).any(|((a, b), floor)| (a - b).abs() > 4.0 * floor)
            };
            let pairs = (0..fits.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
            pairs.filter(|(i, j)| differ(&fits[*i].2, &fits[*j].2)).count()
        };
        let best = (0..hidden.len()).map(|n| (told_apart(n), n)).max_by_key(|(pairs, n)| (*pairs, usize::MAX - n));
        return best.filter(|(pairs, _)| *pairs > 0).map(|(_, n)| hidden[n].at.site).into_iter().collect();
    }
    if !fits.is_empty() {
        return Vec::new();
    }
    let middle = hidden.len() as f64 / 2.0;
    let distance = |n: usize| ((n as f64 + 0.5 - middle).abs() * 10.0) as usize;
    let streams: Vec<usize> =
        (0..hidden.len()).filter(|n| hidden[*n].at.site.stage.info().shape == [Dim::T, Dim::H]).collect();
    let near: Vec<usize> = streams.iter().copied().filter(|n| distance(*n) <= hidden.len() * 10 / 4).collect();
    let among = if near.is_empty() { (0..hidden.len()).collect() } else { near };
    among.into_iter().min_by_key(|n| distance(*n)).map(|n| hidden[n].at.site).into_iter().collect()
}
