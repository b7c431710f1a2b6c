//! Trying every hypothesis, and saying which count.
//!
//! What reproduces an output is ranked by what it has to assume, in bits: the hypothesis ([`Hypothesis::bits`](super::Hypothesis)), which of
//! its variants, numbers that were fitted, and a region that it is confined to. What assumes as little as the best, but for
//! [`TIE`], cannot be told from it and is named with it.

use super::case::{Evidence, Variant};
use super::list::HYPOTHESES;
use super::{Explanation, StageEval, Tried};
use crate::diff::locate::{ErrorRegion, Geometry, regions};
use crate::error::Result;
use crate::formula::Point;

/// A variant must leave less than this share of the error's energy, where the oracle leaves all of it.
pub const UNACCOUNTED: f64 = 0.1;

/// What a fitted parameter can adapt to, in bits: about as many values as an f32 has steps between two powers of two.
const PARAMETER: f64 = 24.0;

/// A match by chance is held against everything tried with odds of one in this many.
pub const ODDS: f64 = 1000.0;

/// What one wrong element can say at most: ln 2⁴⁰. An error cannot be more telling than its bits.
const ELEMENT: f64 = 27.7;

/// Bits that tell nothing: which of two mistakes is the simpler one is not known better.
const TIE: f64 = 3.0;

/// One wrong element in so many must be one that the variant says something of; of the others it reads nothing real. A quarter lets F16
/// over blocks of 4.5 bits be named (its rows lie within the tensor for 4.5/16 of them) and leaves F32 over them open (4.5/32).
const KNOWN: usize = 4;

/// What reproduces nothing is worth naming if it removes at least this share of the error's energy.
const REMOVED: f64 = 0.5;

/// A variant that reproduces the output.
struct Fit {
    tried: Tried,
    /// Nats that speak for it, less what its fitted parameters and its region can adapt to.
    evidence: f64,
}

/// How far a variant goes where it reproduces the output.
struct Match<'r> {
    residual: f64,
    region: Option<&'r ErrorRegion>,
    /// The energy of what is wrong, and what the variant leaves of it.
    error: f64,
    left: f64,
    elements: usize,
    /// Nats of the wrong elements that the variant says something of, and how many they are.
    nats: f64,
    wrong: usize,
}

pub fn explain(scene: &StageEval<'_>) -> Result<Explanation> {
    let case = Evidence::new(scene)?;
    let mut explanation = Explanation { fits: Vec::new(), nearest: None, undecided: false, tried: 0 };
    if case.wrong.is_empty() {
        return Ok(explanation);
    }
    let geometry = Geometry {
        stage: scene.site.stage,
        shape: &scene.output.shape,
        start: scene.start,
        ids: case.ids().map(|ids| ids.ids()),
        head_dim: Some(scene.config.head_dim_of(scene.site.stage)),
        qtype: scene.op.weight().map(|w| w.ty),
    };
    let regions = regions(&geometry, &case.wrong);
    let mut fits: Vec<Fit> = Vec::new();
    let mut rest: Vec<(f64, Tried, Variant<'_>)> = Vec::new();
    for hypothesis in HYPOTHESES.iter().filter(|h| h.ops.contains(&scene.op.kind())) {
        // A mistake is confined to what its own code could confine it to.
        let places = (hypothesis.places)(scene.op.kind());
        let confined = |r: &&ErrorRegion| r.axes().all(|axis| places.contains(&axis));
        let regions: Vec<&ErrorRegion> = regions.iter().filter(confined).collect();
        let mut best: Option<Fit> = None;
        let mut left: Option<(f64, Tried, Variant<'_>)> = None;
        for (n, variant) in (hypothesis.variants)(&case)?.into_iter().enumerate() {
            explanation.tried += 1;
            let points = variant.at(&case.probe)?;
            let residual = case.residual(&case.probe, &points)?;
            let mut tried = Tried { id: hypothesis.id, what: variant.what.clone(), residual, bits: 0.0, removes: None };
            match fit(&case, &regions, &variant, &points)? {
                Some(found) => {
                    tried.residual = found.residual;
                    if let Some(region) = found.region {
                        tried.what += &format!(", {}", region.describe());
                    }
                    let fitted = variant.fitted as f64 * PARAMETER;
                    let said = variant.bits + found.region.map_or(0.0, ErrorRegion::bits);
                    tried.bits = hypothesis.bits + ((n + 1) as f64).log2() + variant.number.unwrap_or(fitted) + said;
                    let adapted = fitted + said;
                    let evidence = evidence(&variant, &found) - adapted * std::f64::consts::LN_2;
                    if best.as_ref().is_none_or(|b| tried.bits < b.tried.bits) {
                        best = Some(Fit { tried, evidence });
                    }
                }
                None if variant.loose => {}
                None => {
                    let share = energy_left(&case, &case.probe, &points);
                    if left.as_ref().is_none_or(|(l, ..)| share < *l) {
                        left = Some((share, tried, variant));
                    }
                }
            }
        }
        match best {
            Some(fit) => fits.push(fit),
            None => rest.extend(left),
        }
    }
    let needed = (explanation.tried as f64 * ODDS).ln();
    // What may be chance, as a floor so wide that it holds nearly everything, is no reason to doubt what is none.
    if fits.iter().any(|f| f.evidence >= needed) {
        fits.retain(|f| f.evidence >= needed);
    }
    let least = fits.iter().map(|f| f.tried.bits).fold(f64::INFINITY, f64::min);
    // A stable sort: of equally simple ones the first in the list.
    fits.sort_by(|a, b| {
        let rank = |f: &Fit| if f.tried.bits <= least + TIE { least } else { f.tried.bits };
        rank(a).total_cmp(&rank(b))
    });
    explanation.undecided = fits.first().is_some_and(|f| f.evidence < needed);
    explanation.fits = fits.into_iter().map(|f| f.tried).collect();
    explanation.nearest = nearest(&case, rest)?;
    Ok(explanation)
}

impl Explanation {
    /// How many of `fits`, from the first, cannot be told apart.
    pub(super) fn ties(&self) -> usize {
        let least = self.fits.iter().map(|f| f.bits).fold(f64::INFINITY, f64::min);
        self.fits.iter().take_while(|f| f.bits <= least + TIE).count()
    }
}

/// What a wrong element that is `ratio` floors off says for whatever reproduces it.
pub fn nats(ratio: f64) -> f64 {
    ratio.ln().min(ELEMENT)
}

/// How unlikely it is that a wrong variant matches, in nats. An output that is r floors away from the oracle's falls within one floor
/// of an unrelated value of that size with a chance of about 1/r, for each wrong element. Of a variant with a wide floor that says
/// nothing; but of n unrelated errors it would leave a share q of the energy with a chance of about q^(n/2).
fn evidence(variant: &Variant<'_>, found: &Match<'_>) -> f64 {
    if let Some(nats) = variant.evidence {
        nats
    } else if variant.loose {
        0.5 * found.elements as f64 * (found.error / found.left.max(f64::MIN_POSITIVE)).ln()
    } else {
        found.nats
    }
}

/// Where `variant` reproduces the output: everywhere, or in the first region where it does.
fn fit<'r>(
    case: &Evidence<'_>,
    regions: &[&'r ErrorRegion],
    variant: &Variant<'_>,
    probed: &[Point],
) -> Result<Option<Match<'r>>> {
    let fits = |i: usize, p: &Point| p.residual(case.output[i]) <= 1.0;
    let wrong = |i: &usize| case.wrong.binary_search(i).is_ok();
    let sample = || case.probe.iter().zip(probed);
    if sample().any(|(i, p)| wrong(i) && !fits(*i, p)) {
        return Ok(None);
    }
    if sample().all(|(i, p)| fits(*i, p)) {
        let all: Vec<usize> = (0..case.output.len()).collect();
        if let Some(found) = reproduces(case, variant, &all)? {
            return Ok(Some(found));
        }
    }
    for &region in regions {
        if sample().any(|(i, p)| !fits(*i, p) && region.contains(*i)) || !variant.can_be_confined(region) {
            continue;
        }
        if let Some(found) = reproduces(case, variant, &region.elements())? {
            return Ok(Some(Match { region: Some(region), ..found }));
        }
    }
    Ok(None)
}

/// What `variant` does over `elements`, if every one is within its floor, the variant accounts for the error, and says something of enough
/// that is wrong.
fn reproduces<'r>(case: &Evidence<'_>, variant: &Variant<'_>, elements: &[usize]) -> Result<Option<Match<'r>>> {
    const CHUNK: usize = 1 << 20;
    let elements_len = elements.len();
    let mut found =
        Match { residual: 0.0, region: None, error: 0.0, left: 0.0, elements: elements_len, nats: 0.0, wrong: 0 };
    let mut wrong = case.wrong.iter().peekable();
    // A wrong id is one of so many, and a variant that gives ids at all has it by chance now and then.
    let most = if case.scene.site.stage.is_ids() { (case.ids_of().max(2) as f64).ln() } else { f64::INFINITY };
    for chunk in elements.chunks(CHUNK) {
        let points = variant.at(chunk)?;
        found.residual = found.residual.max(case.residual(chunk, &points)?);
        if found.residual > 1.0 {
            return Ok(None);
        }
        for (&i, p) in chunk.iter().zip(&points) {
            while wrong.next_if(|w| **w < i).is_some() {}
            if p.is_unknown() {
                continue;
            }
            let is_wrong = wrong.peek() == Some(&&i);
            if is_wrong {
                found.wrong += 1;
                found.nats += nats(case.right(i).residual(case.output[i])).min(most);
            }
            let (was, is) = (case.output[i] - case.exact[i], case.output[i] - p.value);
            // What is within the floor is rounding, which no variant accounts for.
            if was.is_finite() && is.is_finite() && (is_wrong || variant.loose) {
                found.error += was * was;
                found.left += is * is;
            }
        }
    }
    let accounted = found.left <= UNACCOUNTED * found.error || variant.evidence.is_some();
    Ok((accounted && KNOWN * found.wrong >= case.wrong.len()).then_some(found))
}

/// The share of the error's energy at `indices` that `points` leave there.
fn energy_left(case: &Evidence<'_>, indices: &[usize], points: &[Point]) -> f64 {
    let (mut error, mut left) = (0.0, 0.0);
    for (&i, p) in indices.iter().zip(points) {
        let was = case.output[i] - case.exact[i];
        let is = if p.is_unknown() { was } else { case.output[i] - p.value };
        if was.is_finite() {
            error += was * was;
            left += is * is;
        }
    }
    let share = left / error;
    if share.is_nan() { f64::INFINITY } else { share }
}

/// The best of what does not fit, if it removes most of the error; over the whole stage, or over a larger sample where it is large.
fn nearest(case: &Evidence<'_>, mut rest: Vec<(f64, Tried, Variant<'_>)>) -> Result<Option<Tried>> {
    const MOST: usize = 1 << 16;
    // Ids have no distance.
    if case.scene.site.stage.is_ids() {
        return Ok(None);
    }
    rest.sort_by(|a, b| a.0.total_cmp(&b.0));
    let sample: Vec<usize> = (0..case.output.len()).step_by(case.output.len().div_ceil(MOST).max(1)).collect();
    let mut best: Option<Tried> = None;
    // The first sample flatters some: the best by it need not be the best.
    for (_, mut tried, variant) in rest.into_iter().take(4).filter(|(left, ..)| *left <= REMOVED) {
        let points = variant.at(&sample)?;
        let left = energy_left(case, &sample, &points);
        tried.residual = tried.residual.max(case.residual(&sample, &points)?);
        tried.removes = Some(1.0 - left);
        if left <= REMOVED && best.as_ref().is_none_or(|b| tried.removes > b.removes) {
            best = Some(tried);
        }
    }
    Ok(best)
}
