//! Trying every hypothesis, and saying which count.

use super::case::{Evidence, Variant};
use super::list::HYPOTHESES;
use super::{Explanation, StageEval, Tried};
use crate::diff::locate::{ErrorRegion, Geometry, regions};
use crate::error::Result;
use crate::formula::Point;

/// A variant must leave less than this share of the error's energy, where the oracle leaves all of it.
pub const UNACCOUNTED: f64 = 0.1;

/// What a fitted parameter can adapt to: about as many values as an f32 has steps between two powers of two, ln 2²⁴.
const PARAMETER: f64 = 16.6;

/// A match by chance is held against everything tried with odds of one in this many.
pub const ODDS: f64 = 1000.0;

/// What one wrong element can say at most: ln 2⁴⁰. An error cannot be more telling than its bits.
const ELEMENT: f64 = 27.7;

/// A variant that reproduces the output.
struct Fit {
    tried: Tried,
    /// Restricted coordinates and fitted parameters: the fewer the simpler.
    complexity: usize,
    /// Nats that speak for it, less what its fitted parameters can adapt to.
    evidence: f64,
}

/// How far a variant goes where it reproduces the output.
struct Match<'r> {
    residual: f64,
    region: Option<&'r ErrorRegion>,
    /// The error's energy, and what the variant leaves of it.
    error: f64,
    left: f64,
    elements: usize,
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
        head_dim: Some(scene.config.head_dim),
        qtype: scene.op.weight().map(|w| w.ty),
    };
    let regions = regions(&geometry, &case.wrong);
    let mut fits: Vec<Fit> = Vec::new();
    let mut rest: Vec<(Tried, Variant<'_>)> = Vec::new();
    for hypothesis in HYPOTHESES.iter().filter(|h| h.ops.contains(&scene.op.kind())) {
        let mut best: Option<Fit> = None;
        let mut left: Option<(Tried, Variant<'_>)> = None;
        for variant in (hypothesis.variants)(&case)? {
            explanation.tried += 1;
            let points = variant.at(&case.probe)?;
            let residual = case.residual(&case.probe, &points)?;
            let mut tried = Tried { id: hypothesis.id, what: variant.what.clone(), residual };
            match fit(&case, &regions, &variant, &points)? {
                Some(found) => {
                    tried.residual = found.residual;
                    if let Some(region) = found.region {
                        tried.what += &format!(", {}", region.describe());
                    }
                    let complexity = found.region.map_or(0, ErrorRegion::restricted) + variant.fitted;
                    let evidence = evidence(&case, &variant, &found);
                    if best.as_ref().is_none_or(|b| complexity < b.complexity) {
                        best = Some(Fit { tried, complexity, evidence });
                    }
                }
                None if variant.loose => {}
                None if left.as_ref().is_none_or(|(l, _)| residual < l.residual) => left = Some((tried, variant)),
                None => {}
            }
        }
        match best {
            Some(fit) => fits.push(fit),
            None => rest.extend(left),
        }
    }
    // A stable sort: of equally simple ones the first in the list.
    fits.sort_by_key(|f| f.complexity);
    let needed = (explanation.tried as f64 * ODDS).ln();
    explanation.undecided = fits.first().is_some_and(|f| f.evidence < needed);
    explanation.fits = fits.into_iter().map(|f| f.tried).collect();
    explanation.nearest = nearest(&case, rest)?;
    Ok(explanation)
}

/// What a wrong element that is `ratio` floors off says for whatever reproduces it.
pub fn nats(ratio: f64) -> f64 {
    ratio.ln().min(ELEMENT)
}

/// How unlikely it is that a wrong variant matches, in nats. An output that is r floors away from the oracle's falls within one floor
/// of an unrelated value of that size with a chance of about 1/r, for each wrong element. Of a variant with a wide floor that says
/// nothing; but of n unrelated errors it would leave a share q of the energy with a chance of about q^(n/2).
fn evidence(case: &Evidence<'_>, variant: &Variant<'_>, found: &Match<'_>) -> f64 {
    let nats = |i: &usize| nats(case.right(*i).residual(case.output[*i]));
    let evidence: f64 = if let Some(nats) = variant.evidence {
        nats
    } else if variant.loose {
        0.5 * found.elements as f64 * (found.error / found.left.max(f64::MIN_POSITIVE)).ln()
    } else {
        case.wrong.iter().map(nats).sum()
    };
    evidence - variant.fitted as f64 * PARAMETER
}

/// Where `variant` reproduces the output: everywhere, or in the first region where it does.
fn fit<'r>(
    case: &Evidence<'_>,
    regions: &'r [ErrorRegion],
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
    for region in regions {
        if sample().any(|(i, p)| !fits(*i, p) && region.contains(*i)) {
            continue;
        }
        if let Some(found) = reproduces(case, variant, &region.elements())? {
            return Ok(Some(Match { region: Some(region), ..found }));
        }
    }
    Ok(None)
}

/// What `variant` does over `elements`, if every one is within its floor and the variant accounts for the error.
fn reproduces<'r>(case: &Evidence<'_>, variant: &Variant<'_>, elements: &[usize]) -> Result<Option<Match<'r>>> {
    const CHUNK: usize = 1 << 20;
    let (mut residual, mut error, mut left) = (0f64, 0.0, 0.0);
    for chunk in elements.chunks(CHUNK) {
        let points = variant.at(chunk)?;
        residual = residual.max(case.residual(chunk, &points)?);
        if residual > 1.0 {
            return Ok(None);
        }
        for (&i, p) in chunk.iter().zip(&points) {
            let (was, is) = (case.output[i] - case.exact[i], case.output[i] - p.value);
            if was.is_finite() && is.is_finite() {
                error += was * was;
                left += is * is;
            }
        }
    }
    let found = Match { residual, region: None, error, left, elements: elements.len() };
    let accounted = left <= UNACCOUNTED * error || variant.evidence.is_some();
    Ok(accounted.then_some(found))
}

/// The best of what does not fit, its residual taken over the whole stage, or over a larger sample where the stage is large.
fn nearest(case: &Evidence<'_>, mut rest: Vec<(Tried, Variant<'_>)>) -> Result<Option<Tried>> {
    const MOST: usize = 1 << 16;
    rest.sort_by(|a, b| a.0.residual.total_cmp(&b.0.residual));
    let sample: Vec<usize> = (0..case.output.len()).step_by(case.output.len().div_ceil(MOST).max(1)).collect();
    // The first sample underestimates: the best by it need not be the best.
    let mut best: Option<Tried> = None;
    for (mut tried, variant) in rest.into_iter().take(4) {
        if best.as_ref().is_some_and(|b| b.residual <= tried.residual) {
            break;
        }
        tried.residual = tried.residual.max(case.residual(&sample, &variant.at(&sample)?)?);
        if best.as_ref().is_none_or(|b| tried.residual < b.residual) {
            best = Some(tried);
        }
    }
    Ok(best)
}
