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
//! - **A search ends**: where a segment has so many stages that trying everything would take too long, mistakes at one stage are tried as far
//!   as the budget goes, then those made at every stage that they fit, and it is said how many were not.
//! - All that fit equally well are named, and the one capture that would tell them apart.

mod scope;
mod search;

use std::collections::BTreeSet;

use super::fit::{ODDS, nats};
use crate::backend::NamedContract;
use crate::diff::outcome::{Cause, OtherCause};
use crate::diff::segment::{Changed, Log, Segment};
use crate::error::Result;
use crate::formula::Point;
use crate::model::{Config, Weights};
use crate::op::{HostTensor, Site};

use scope::{HiddenMistake, MistakePart, SegmentScope};
use search::{Searched, capture, hold, shared_expert, try_all};

/// What one search may cost in multiplications ([`Segment::spent`]): half of it for mistakes at one stage, what is left for those made at
/// every stage that they fit. It is some minutes of one core, of a model of 30 layers that shows nothing but logits; what trying all would
/// cost there grows with the square of the layers.
pub const MOST_SPENT: u64 = 300_000_000_000;

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
    /// What each of the two searches, first of the model's structure, then of weights and numbers, may cost: [`MOST_SPENT`].
    pub most_spent: u64,
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
    /// Whether the segment is of several layers, so that words have to say which.
    pub of_several_layers: bool,
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
    /// How many were not, as the segment is too long to try all. Each might have been tried in several parts of its stage, which `tried` counts.
    pub untried: usize,
    /// Hidden stages whose values would tell most: between `fits`, where several fit; else about the middle of the segment.
    pub capture: Vec<Site>,
}

impl SegmentFit {
    /// Each once: a segment over several layers has the same ones in each.
    fn stages(&self) -> Vec<&'static str> {
        let mut stages = Vec::new();
        for site in &self.sites {
            if !stages.contains(&site.stage.name()) {
                stages.push(site.stage.name());
            }
        }
        stages
    }

    /// `q_rope and k_rope: rope with NORM pairing…`
    fn words(&self) -> String {
        let stages = self.stages();
        let places = match &stages[..] {
            [] => String::new(),
            [one] => one.to_string(),
            [first @ .., last] => format!("{} and {last}", first.join(", ")),
        };
        let layers: BTreeSet<u32> = self.sites.iter().filter_map(|site| site.layer).collect();
        let layers = if self.of_several_layers { Vec::from_iter(layers) } else { Vec::new() };
        let place = match &layers[..] {
            [] => places,
            [layer] => format!("layer {layer} · {places}"),
            [layers @ .., last] if layers.len() < 4 => {
                let layers: Vec<String> = layers.iter().map(u32::to_string).collect();
                format!("{places} of layers {} and {last}", layers.join(", "))
            }
            layers => format!("{places} of {} layers", layers.len()),
        };
        format!("{place}: {}", self.what)
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
    let scope = SegmentScope::new(eval, segment.prefix(first + 1));
    let mut parts = vec![MistakePart::Whole];
    if rows.len() < all_rows {
        parts.push(MistakePart::Rows(rows.clone()));
        if rows.len() > 1 {
            parts.push(MistakePart::Rows([first].into()));
        }
        parts.extend(shared_expert(eval.ids, &rows).map(MistakePart::Expert));
    }
    let whole = SegmentScope::new(eval, segment);
    let mut fits: Vec<(HiddenMistake, f64, Changed)> = Vec::new();
    // What is done to weights and numbers is by far the most to try. Nothing of it gives by chance what a mistake in the model's structure
    // gives, so it is tried where none of those does; or only at scattered rows, where structure makes no mistakes.
    let mut searched = Searched::default();
    for structural in [true, false] {
        let near = try_all([&scope, &whole], &parts, structural, &mut searched)?;
        fits.extend(hold(&whole, near)?);
        if fits.iter().any(|(mistake, ..)| !mistake.part.is_scattered()) {
            break;
        }
    }
    (explanation.tried, explanation.untried) = (searched.tried, searched.untried);
    fits.sort_by_key(|(mistake, ..)| mistake.complexity());
    let evidence: f64 = wrong.iter().map(|i| nats(ratio(*i))).sum();
    explanation.undecided = evidence < (explanation.tried as f64 * ODDS).ln();
    explanation.capture = capture(&whole, &fits);
    let layers: BTreeSet<u32> = whole.segment.steps.iter().filter_map(|step| step.at.site.layer).collect();
    explanation.fits = fits
        .into_iter()
        .map(|(mistake, residual, _)| SegmentFit {
            id: mistake.hypothesis.id,
            what: mistake.what + &mistake.part.words(target.at.start),
            sites: mistake.steps.iter().map(|n| whole.segment.steps[*n].at.site).collect(),
            of_several_layers: layers.len() > 1,
            residual,
        })
        .collect();
    Ok(explanation)
}
