//! Which known mistake, made inside a segment, gives what the side shows at its end.
//!
//! Design:
//! - **Every hypothesis at every hidden stage.** Its variant is computed on the reconstructed inputs of that stage, and the oracle computes the
//!   rest of the segment from it. Variants whose parameters are fitted to an output are left out: inside a segment no output is seen.
//! - **A port makes a mistake wherever it uses the code that has it.** So the same variant is tried at one stage alone, and at all stages of the
//!   segment that it fits: rope of q and of k, all norms.
//! - **In a part of the stage** only where the error says so: at the positions that are wrong, or in the one expert that the wrong positions
//!   share.
//! - First on the call's rows up to the first wrong one, which do not depend on later ones; what fits there is computed on all rows, and held
//!   against the floor that the segment has with that mistake in it.
//! - All that fit equally well are named, and the one capture that would tell them apart.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::case::Evidence;
use super::fit::{ODDS, UNACCOUNTED, nats};
use super::list::HYPOTHESES;
use super::{Hypothesis, StageEval, Upstream};
use crate::backend::NamedContract;
use crate::diff::outcome::{Cause, OtherCause};
use crate::diff::segment::{Changed, Log, Segment, cut};
use crate::error::Result;
use crate::formula::Point;
use crate::model::{Config, Weights};
use crate::op::{Dim, HostTensor, OwnedOp, Site};

/// Everything that is known of a segment whose end is wrong.
pub struct SegmentEval<'a> {
    /// The side's steps; the last is the stage that is shown.
    pub log: &'a Log,
    /// The side's.
    pub contracts: &'a NamedContract,
    /// What the side shows.
    pub output: &'a HostTensor,
    /// What the oracle makes of the segment.
    pub exact: &'a HostTensor,
    /// How far each element may be from `exact`.
    pub allowed: &'a [f64],
    /// The ids that the side's router chose in this layer, where they are known. [T, K]
    pub ids: Option<&'a HostTensor>,
    pub config: &'a Config,
    pub weights: &'a Weights,
}

/// A mistake that makes the segment's end what the side shows.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentFit {
    /// The hypothesis.
    pub id: &'static str,
    /// What is computed, in words.
    pub what: String,
    /// Where it is computed so.
    pub sites: Vec<Site>,
    /// The largest |output − variant| over what may be between them.
    pub residual: f64,
}

/// What came of looking for a cause inside a segment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SegmentExplanation {
    /// What reproduces the segment's end, simplest first.
    pub fits: Vec<SegmentFit>,
    /// What is wrong is too little to tell `fits` from chance.
    pub undecided: bool,
    /// How many variants were tried.
    pub tried: usize,
    /// Hidden stages whose values would tell most: between `fits`, where several fit; else about the middle of the segment.
    pub capture: Vec<Site>,
}

impl SegmentFit {
    fn stages(&self) -> Vec<&'static str> {
        self.sites.iter().map(|site| site.stage.name()).collect()
    }

    /// `q_rope and k_rope: rope with NORM pairing…`
    fn words(&self) -> String {
        let stages = self.stages();
        let places = match &stages[..] {
            [] => String::new(),
            [one] => one.to_string(),
            [first @ .., last] => format!("{} and {last}", first.join(", ")),
        };
        format!("{places}: {}", self.what)
    }
}

impl SegmentExplanation {
    /// For the outcome; `None` if nothing reproduces the segment's end.
    pub fn cause(&self) -> Option<Cause> {
        let best = self.fits.first()?;
        let mut name = best.words();
        if self.undecided {
            name += " (too little is wrong to tell this from chance)";
        }
        let other = |f: &SegmentFit| OtherCause { id: f.id, name: f.words(), stages: f.stages() };
        Some(Cause {
            reproduced: !self.undecided,
            id: best.id,
            also: self.fits[1..].iter().map(|f| f.id).collect(),
            name,
            residual_ratio: best.residual,
            removes: None,
            next_best: None,
            stages: best.stages(),
            others: self.fits[1..].iter().map(other).collect(),
        })
    }
}

/// Where in a stage a mistake is made.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    Whole,
    /// In these rows of the call.
    Rows(BTreeSet<usize>),
    /// In the slots of one expert.
    Expert(u32),
}

impl Part {
    fn words(&self, start: usize) -> String {
        match self {
            Part::Whole => String::new(),
            Part::Rows(rows) => {
                let names: Vec<String> = rows.iter().take(6).map(|row| (start + row).to_string()).collect();
                let more = if rows.len() > 6 { ", …" } else { "" };
                let s = if rows.len() == 1 { "" } else { "s" };
                format!(", at position{s} {}{more} only", names.join(", "))
            }
            Part::Expert(expert) => format!(", in expert {expert} only"),
        }
    }

    /// `changed` where this is, `right` elsewhere.
    fn of(&self, site: Site, ids: Option<&HostTensor>, right: &HostTensor, changed: HostTensor) -> HostTensor {
        let axis = site.stage.position_axis();
        let (rows, inner) = (right.shape[axis], right.shape[axis + 1..].iter().product::<usize>().max(1));
        let inside = |i: usize| match self {
            Part::Whole => true,
            Part::Rows(set) => set.contains(&(i / inner % rows)),
            Part::Expert(expert) => {
                let cols = right.cols().max(1);
                ids.is_some_and(|ids| ids.ids().get(i / cols) == Some(expert))
            }
        };
        if *self == Part::Whole {
            return changed;
        }
        if right.dtype() == "u32" {
            let pairs = changed.ids().iter().zip(right.ids()).enumerate();
            return HostTensor::u32(&right.shape, pairs.map(|(i, (c, r))| if inside(i) { *c } else { *r }).collect());
        }
        let pairs = changed.to_f64().into_iter().zip(right.to_f64()).enumerate();
        HostTensor::f64(&right.shape, pairs.map(|(i, (c, r))| if inside(i) { c } else { r }).collect())
    }
}

/// A variant at one or several steps.
#[derive(Clone)]
struct Mistake {
    hypothesis: &'static Hypothesis,
    what: String,
    steps: Vec<usize>,
    part: Part,
}

impl Mistake {
    /// The fewer the simpler: a part is a choice, and so is one stage of several alike.
    fn complexity(&self) -> usize {
        usize::from(self.part != Part::Whole)
    }
}

/// A segment over some first rows of the call, with what mistakes in it may look at.
struct Scope<'a> {
    eval: &'a SegmentEval<'a>,
    segment: Segment,
    /// All values of the log, cut to the same rows: for mistakes that take one for another.
    values: Vec<(Site, Rc<HostTensor>)>,
    ids: Option<HostTensor>,
    output: HostTensor,
    exact: HostTensor,
    allowed: Vec<f64>,
}

impl<'a> Scope<'a> {
    fn new(eval: &'a SegmentEval<'a>, segment: Segment) -> Self {
        let rows = segment.target().rows();
        let (site, start) = (segment.target().at.site, segment.target().at.start);
        let of_target = |t: &HostTensor| cut(site.stage, t, start, rows);
        let values = eval.log.steps.iter().map(|s| (s.at.site, Rc::new(cut(s.at.site.stage, &s.value, start, rows))));
        Self {
            eval,
            values: values.collect(),
            ids: eval.ids.map(|ids| ids.take(0, &Vec::from_iter(0..rows))),
            output: of_target(eval.output),
            exact: of_target(eval.exact),
            allowed: of_target(&HostTensor::f64(&eval.exact.shape, eval.allowed.to_vec())).to_f64(),
            segment,
        }
    }

    /// The side's values before step `n`, with `changed` in the place of some.
    fn upstream(&self, n: usize, changed: &Changed) -> Upstream {
        let site = self.segment.steps[n].at.site;
        let mut upstream = Upstream::new();
        for (made, value) in self.values.iter().take_while(|(made, _)| *made != site) {
            upstream.note(*made, changed.get(made).unwrap_or(value));
        }
        upstream
    }

    /// Calls `each` with every variant that a hypothesis has for step `n` as `op` runs it: its words and its values.
    fn variants(
        &self,
        n: usize,
        op: &OwnedOp,
        upstream: &Upstream,
        right: &HostTensor,
        hypothesis: &'static Hypothesis,
        mut each: impl FnMut(String, &mut dyn FnMut() -> Result<HostTensor>) -> Result<bool>,
    ) -> Result<()> {
        if !hypothesis.ops.contains(&op.kind()) {
            return Ok(());
        }
        let (step, exact) = (&self.segment.steps[n], right);
        let floor = vec![0.0; exact.len()];
        let shared = op.share();
        let scene = StageEval {
            site: step.at.site,
            start: step.at.start,
            op: &shared,
            output: exact,
            exact,
            floor: &floor,
            contract: *self.eval.contracts.get(op.kind()),
            earlier: upstream,
            config: self.eval.config,
            weights: self.eval.weights,
        };
        let case = Evidence::unseen(&scene)?;
        let all: Vec<usize> = (0..exact.len()).collect();
        for variant in (hypothesis.variants)(&case)? {
            if variant.fitted > 0 || variant.loose {
                continue;
            }
            let mut values = || -> Result<HostTensor> {
                let values: Vec<f64> = variant.at(&all)?.into_iter().map(|p| p.value).collect();
                Ok(match step.at.site.stage.is_ids() {
                    true => HostTensor::u32(&exact.shape, values.into_iter().map(|id| id as u32).collect()),
                    false => HostTensor::f64(&exact.shape, values),
                })
            };
            if !each(variant.what.clone(), &mut values)? {
                break;
            }
        }
        Ok(())
    }

    /// The values of a mistake at step `n`, as `op` runs it; `None` if it is not one that can be made there.
    fn altered(&self, mistake: &Mistake, n: usize, op: &OwnedOp, changed: &Changed) -> Result<Option<HostTensor>> {
        if !mistake.steps.contains(&n) {
            return Ok(None);
        }
        let upstream = self.upstream(n, changed);
        let right = self.segment.exact(n, op, self.eval.contracts)?;
        let mut found = None;
        self.variants(n, op, &upstream, &right, mistake.hypothesis, |what, values| {
            if what == mistake.what {
                found = Some(values()?);
            }
            Ok(found.is_none())
        })?;
        let Some(values) = found else { return Ok(None) };
        Ok(Some(mistake.part.of(self.segment.steps[n].at.site, self.ids.as_ref(), &right, values)))
    }

    /// Runs the segment with a mistake in it.
    fn run(&self, mistake: &Mistake) -> Result<Changed> {
        self.segment.rerun(self.eval.contracts, |n, op, changed| self.altered(mistake, n, op, changed))
    }

    /// The segment's end.
    fn end<'c>(&'c self, changed: &'c Changed) -> &'c HostTensor {
        changed.get(&self.segment.target().at.site).map_or(&self.exact, |t| t)
    }

    /// The largest |output − end| over `allowed`, and the share of the error's energy that is left.
    fn residual(&self, end: &HostTensor, allowed: &[f64]) -> (f64, f64) {
        let (mut residual, mut was, mut left) = (0f64, 0.0, 0.0);
        let output = self.output.to_f64();
        for (((output, end), exact), allowed) in output.iter().zip(end.to_f64()).zip(self.exact.to_f64()).zip(allowed) {
            residual = residual.max(Point::new(end, *allowed).residual(*output));
            if output.is_finite() && end.is_finite() && exact.is_finite() {
                was += (output - exact) * (output - exact);
                left += (output - end) * (output - end);
            }
        }
        (residual, if was > 0.0 { left / was } else { 1.0 })
    }
}

impl Scope<'_> {
    /// What a segment's end leaves of the error in floors, if it accounts for nearly all of it.
    fn comes_near(&self, end: &HostTensor) -> Option<f64> {
        let (residual, left) = self.residual(end, &self.allowed);
        (residual <= NEAR && left <= UNACCOUNTED).then_some(residual)
    }
}

/// Looks for the mistake.
///
/// # Errors
/// The oracle's.
pub fn explain_segment(eval: &SegmentEval<'_>) -> Result<SegmentExplanation> {
    let mut explanation = SegmentExplanation::default();
    let Some(target) = eval.log.steps.last() else { return Ok(explanation) };
    let (axis, all_rows) = (target.at.site.stage.position_axis(), target.rows());
    let inner: usize = target.value.shape[axis + 1..].iter().product::<usize>().max(1);
    let (output, exact) = (eval.output.to_f64(), eval.exact.to_f64());
    let ratio = |i: usize| Point::new(exact[i], eval.allowed[i]).residual(output[i]);
    let wrong: Vec<usize> = (0..exact.len()).filter(|i| ratio(*i) > 1.0).collect();
    let rows: BTreeSet<usize> = wrong.iter().map(|i| i / inner % all_rows).collect();
    let Some(&first) = rows.first() else { return Ok(explanation) };

    let segment = Segment::new(eval.log, eval.contracts);
    let scope = Scope::new(eval, segment.prefix(first + 1));
    let mut parts = vec![Part::Whole];
    if rows.len() < all_rows {
        parts.push(Part::Rows(rows.clone()));
        if rows.len() > 1 {
            parts.push(Part::Rows([first].into()));
        }
        parts.extend(shared_expert(eval.ids, &rows).map(Part::Expert));
    }
    let whole = Scope::new(eval, segment);
    let mut fits: Vec<(Mistake, f64, Changed)> = Vec::new();
    // What is done to weights and numbers is by far the most to try. Nothing of it gives by chance what a mistake in the model's structure
    // gives, so it is tried where none of those does.
    for structural in [true, false] {
        let near = try_all([&scope, &whole], &parts, structural, &mut explanation.tried)?;
        fits.extend(hold(&whole, near)?);
        if !fits.is_empty() {
            break;
        }
    }
    fits.sort_by_key(|(mistake, ..)| mistake.complexity());
    let evidence: f64 = wrong.iter().map(|i| nats(ratio(*i))).sum();
    explanation.undecided = evidence < (explanation.tried as f64 * ODDS).ln();
    explanation.capture = capture(&whole, &fits);
    explanation.fits = fits
        .into_iter()
        .map(|(mistake, residual, _)| SegmentFit {
            id: mistake.hypothesis.id,
            what: mistake.what + &mistake.part.words(target.at.start),
            sites: mistake.steps.iter().map(|n| whole.segment.steps[*n].at.site).collect(),
            residual,
        })
        .collect();
    Ok(explanation)
}

/// A mistake that leaves so many floors may fit the floor that it has itself.
const NEAR: f64 = 50.0;
/// How many of those are held against their own floor: at least these,
const CLOSEST: usize = 12;
/// and all that are within the floor already, up to these. Several stages may have the same mistake with the same effect: a factor of
/// the scores is one of q's or of k's, before rope or after.
const MOST_WITHIN: usize = 48;

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
fn try_all(
    [first, whole]: [&Scope<'_>; 2],
    parts: &[Part],
    structural: bool,
    tried: &mut usize,
) -> Result<Vec<(f64, Mistake)>> {
    let contracts = first.eval.contracts;
    let mut near: Vec<(f64, Mistake)> = Vec::new();
    let mut seen: Vec<(&'static Hypothesis, String, Vec<usize>)> = Vec::new();
    let scope_of = |hypothesis: &Hypothesis| if hypothesis.id == "mask" { whole } else { first };
    for n in 0..first.segment.steps.len() {
        for hypothesis in HYPOTHESES.iter().filter(|h| is_numeric(h) != structural) {
            let scope = scope_of(hypothesis);
            let step = &scope.segment.steps[n];
            let (upstream, right) = (scope.upstream(n, &Changed::new()), &*step.exact);
            scope.variants(n, &step.op, &upstream, right, hypothesis, |what, values| {
                match seen.iter_mut().find(|(h, w, _)| std::ptr::eq(*h, hypothesis) && *w == what) {
                    Some((_, _, steps)) => steps.push(n),
                    None => seen.push((hypothesis, what.clone(), vec![n])),
                }
                let values = values()?;
                let mut whole_fits = false;
                for part in parts {
                    // Where the mistake fits as a whole, a part of it says no more.
                    if *part != Part::Whole && whole_fits {
                        break;
                    }
                    if matches!(part, Part::Expert(_)) && step.op.borrow().weight().is_none_or(|w| w.experts == 1) {
                        continue;
                    }
                    *tried += 1;
                    let here = part.of(step.at.site, scope.ids.as_ref(), right, values.clone());
                    if here.data == right.data {
                        continue;
                    }
                    let end = scope.segment.rerun(contracts, |m, _, _| Ok((m == n).then(|| here.clone())))?;
                    let mistake = || Mistake { hypothesis, what: what.clone(), steps: vec![n], part: part.clone() };
                    let residual = scope.comes_near(scope.end(&end));
                    whole_fits |= *part == Part::Whole && residual.is_some_and(|residual| residual <= 1.0);
                    near.extend(residual.map(|residual| (residual, mistake())));
                }
                Ok(true)
            })?;
        }
    }
    for (hypothesis, what, steps) in seen.into_iter().filter(|(.., steps)| steps.len() > 1) {
        *tried += 1;
        let scope = scope_of(hypothesis);
        let mistake = Mistake { hypothesis, what, steps, part: Part::Whole };
        let end = scope.run(&mistake)?;
        near.extend(scope.comes_near(scope.end(&end)).map(|residual| (residual, mistake)));
    }
    // A stable sort: of equally good ones the first stage and the first in the list.
    near.sort_by(|a, b| a.0.total_cmp(&b.0));
    let within = near.iter().take_while(|(residual, _)| *residual <= 1.0).count();
    near.truncate(within.clamp(CLOSEST, MOST_WITHIN));
    Ok(near)
}

/// Those that give what the side shows on all rows, within the floor that the segment has with them in it.
fn hold(whole: &Scope<'_>, near: Vec<(f64, Mistake)>) -> Result<Vec<(Mistake, f64, Changed)>> {
    let mut fits: Vec<(Mistake, f64, Changed)> = Vec::new();
    for (_, mistake) in near {
        let run = whole.run(&mistake)?;
        let (mut residual, left) = whole.residual(whole.end(&run), &whole.allowed);
        if residual > 1.0 && residual <= NEAR {
            let floor = whole
                .segment
                .allowed(whole.eval.contracts, |n, op, changed| whole.altered(&mistake, n, op, changed))?;
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
fn shared_expert(ids: Option<&HostTensor>, rows: &BTreeSet<usize>) -> Option<u32> {
    let ids = ids?;
    let uses = |row: usize, expert: u32| ids.ids()[row * ids.cols()..(row + 1) * ids.cols()].contains(&expert);
    let first = *rows.first()?;
    let candidates = &ids.ids()[first * ids.cols()..(first + 1) * ids.cols()];
    let alone = |e: &&u32| (0..ids.shape[0]).all(|row| uses(row, **e) == rows.contains(&row));
    candidates.iter().find(alone).copied()
}

/// Hidden stages to be captured next. Where several mistakes fit, those at which most pairs of them differ; where none does, the one at
/// about half of the segment, of the width of the residual stream, where there is one.
fn capture(scope: &Scope<'_>, fits: &[(Mistake, f64, Changed)]) -> Vec<Site> {
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
