//! Two saved traces, without the model: each stage's total error.
//!
//! - Nothing can be replayed without the weights, so a stage that differs may have inherited its error; with the model at hand
//!   the traces are the two sides of an ordinary comparison instead ([`crate::trace::recorded`]).
//! - What only one of them has is listed as not compared; different tokens are an error, since nothing could agree.

use crate::diff::measure::logits::{LogitsComparison, compare_logits};
use crate::diff::measure::metrics::{Mask, measure};
use crate::diff::measure::router::{Routing, compare_routing};
use crate::diff::measure::spread::{Spread, SpreadOf};
use crate::diff::measure::tolerance::Tolerances;
use crate::diff::outcome::{
    Comparison, ComparisonKind, LayerRouting, Measured, ModelSummary, SideSummary, StageResult, Verdict,
};
use crate::error::{Error, Result};
use crate::model::{Architecture, QkNorms, Router, Shared, tokens_sha256};
use crate::op::{HostTensor, LayerLayout, LinearLayers, Mla, Site, Stage};
use crate::trace::MOST_LAYERS;
use crate::trace::recorded::sites_of;
use crate::trace::store::Trace;

/// Compares two traces stage by stage, at the positions that both have.
///
/// # Errors
/// Traces of other tokens or models, or an unreadable file.
pub fn compare(reference: &Trace, subject: &Trace, tolerances: &Tolerances) -> Result<Comparison> {
    let (c, g) = (&reference.manifest().run, &subject.manifest().run);
    let named = |t: &Trace| t.dir().display().to_string();
    for (trace, run, other) in [(reference, c, g), (subject, g, c)] {
        if run.tokens.is_empty() && !other.tokens.is_empty() {
            return Err(Error::input(format!(
                "{}: expected the {} tokens of the other trace, found none: what it was imported from does not say them; \
                 `import` with --tokens does",
                named(trace),
                other.tokens.len()
            )));
        }
    }
    if c.tokens != g.tokens {
        let at = c.tokens.iter().zip(&g.tokens).position(|(a, b)| a != b).unwrap_or(c.tokens.len().min(g.tokens.len()));
        return Err(Error::input(format!(
            "{} and {} are of other tokens: {} and {} of them, the first difference at position {at}",
            named(reference),
            named(subject),
            c.tokens.len(),
            g.tokens.len()
        )));
    }
    let mut notes = Vec::new();
    let fingerprints = (&c.model.fingerprint, &g.model.fingerprint);
    if fingerprints.0 != fingerprints.1 {
        let unknown = fingerprints.0.is_empty() || fingerprints.1.is_empty();
        notes.push(match unknown {
            true => "one trace does not say which file it is of; that both are of one model is assumed".into(),
            false => format!("the traces are of different files: {} and {}", c.model.name, g.model.name),
        });
    }
    if c.contracts != g.contracts {
        let (one, other) = (&c.backend.contract, &g.backend.contract);
        notes.push(format!("the sides promise different arithmetic: {one}; {other}"));
        if c.contracts.is_empty() || g.contracts.is_empty() {
            notes.push(
                "what a trace that states no arithmetic keeps, `diff` with the model and --contract reference=infer or subject=infer works out"
                    .into(),
            );
        }
    }
    let size = |key: &str| c.model.hyperparameters.get(key).and_then(|v| v.as_u64()).unwrap_or(0) as usize;
    let of_moe = |key: &str| {
        let moe = c.model.hyperparameters.get("moe");
        moe.and_then(|m| m.get(key)).and_then(|v| v.as_u64()).unwrap_or(0) as usize
    };
    let mut comparison = Comparison {
        kind: ComparisonKind::Compare,
        model: ModelSummary {
            name: c.model.name.clone(),
            architecture: c.model.architecture.clone(),
            layers: size("layers"),
            experts: of_moe("experts"),
            experts_used: of_moe("used"),
            fingerprint: Some(c.model.fingerprint.clone()).filter(|f| !f.is_empty()),
        },
        tokens: c.prompt_tokens,
        tokens_sha256: tokens_sha256(&c.tokens[..c.prompt_tokens]),
        prompt: c.prompt.clone(),
        decode: c.tokens.len() - c.prompt_tokens,
        reference: SideSummary { info: c.backend.clone(), trace: Some(named(reference)) },
        subject: SideSummary { info: g.backend.clone(), trace: Some(named(subject)) },
        judge: None,
        stages: Vec::new(),
        first_fault: None,
        first_visible: None,
        routing: Vec::new(),
        logits: None,
        production: None,
        run_stages: model_of(reference).map(|(layers, layout)| sites_of(layers, layout).len()),
        lacking: Vec::new(),
        notes,
        next: None,
    };
    for site in in_order(reference, subject) {
        let result = stage(reference, subject, site, tolerances, &mut comparison)?;
        comparison.stages.push(result);
    }
    comparison.conclude();
    Ok(comparison)
}

/// How many layers the model of a trace has, and of which stages; `None` where the trace does not say it.
pub fn model_of(trace: &Trace) -> Option<(usize, LayerLayout)> {
    let model = &trace.manifest().run.model;
    let architecture = Architecture::named(&model.architecture)?;
    let said = |key: &str| model.hyperparameters.get(key);
    let layers = usize::try_from(said("layers")?.as_u64()?).ok().filter(|n| *n < MOST_LAYERS as usize)?;
    let moe = said("moe")?;
    let layout = LayerLayout {
        qkv_bias: said("qkv_bias")?.as_bool()?,
        // Of those who have it where the file says so, the trace says it.
        qk_norm: match said("qk_norm") {
            Some(said) => said.as_bool()?,
            None => architecture.qk_norm != QkNorms::No,
        },
        moe: !moe.is_null(),
        shared: moe.get("shared").and_then(|shared| shared.as_u64()).is_some_and(|shared| shared > 0),
        post_norms: architecture.post_norms,
        biases: architecture.biases,
        logits_choose: architecture.router == Router::ChosenSoftmax,
        choice_bias: architecture.router == Router::BiasedSigmoids
            || moe.get("choice_bias").and_then(|there| there.as_bool()).unwrap_or(false),
        shared_gate: architecture.shared_expert == Shared::Gated,
        leading_dense: moe.get("leading_dense").and_then(|n| n.as_u64()).map_or(0, |n| n as usize),
        output_gate: architecture.linear.is_some(),
        linear: match said("linear").and_then(|linear| linear.get("interval")?.as_u64()) {
            Some(interval) => LinearLayers::of(usize::try_from(interval).ok().filter(|n| *n > 0)?, layers),
            None => LinearLayers::No,
        },
        mla: match said("mla") {
            None => Mla::No,
            Some(mla) => match mla.get("form")?.as_str()? {
                "absorbed" => Mla::Absorbed,
                "plain" => Mla::Plain,
                _ => return None,
            },
        },
        q_rank: said("mla").and_then(|mla| mla.get("q_rank")).is_some_and(|rank| !rank.is_null()),
    };
    Some((layers, layout))
}

/// Every site that either trace has, in order of execution.
fn in_order(a: &Trace, b: &Trace) -> Vec<Site> {
    let mut sites: Vec<Site> = a.tensors().chain(b.tensors()).map(|(site, _)| site).collect();
    let place = |s: &Site| match s.layer {
        Some(n) => n as u64 + 1,
        None if s.stage == Stage::Embedding => 0,
        None => u64::MAX,
    };
    sites.sort_by_key(|s| (place(s), s.stage));
    sites.dedup();
    sites
}

fn stage(
    reference: &Trace,
    subject: &Trace,
    site: Site,
    tolerances: &Tolerances,
    comparison: &mut Comparison,
) -> Result<StageResult> {
    let not_compared = |why: String| {
        let total = measure(&HostTensor::f32(&[0], vec![]), &HostTensor::f32(&[0], vec![]), Mask::None);
        let mut result = StageResult::new(0, site, &[], total.into());
        result.visible = false;
        result.verdict = Verdict::NotCompared(why);
        result
    };
    let (Some(a), Some(b)) = (reference.stored(site), subject.stored(site)) else {
        let lacks = if reference.stored(site).is_none() { "the reference" } else { "the subject" };
        return Ok(not_compared(format!("{lacks}'s trace does not have it")));
    };
    if a.limited || b.limited {
        let rows = |t: &Trace| site.layer.map_or(Ok(None), |n| t.expert_rows(n));
        if a.limited != b.limited || rows(reference)? != rows(subject)? {
            return Ok(not_compared("the traces have other rows of it: some experts only".into()));
        }
    }
    let positions: Vec<usize> = a.positions.iter().filter(|p| b.positions.contains(*p)).collect();
    let Some(&start) = positions.first() else {
        return Ok(not_compared(format!("no position in common: {} and {}", a.positions, b.positions)));
    };
    let read = |trace: &Trace, limited: bool, have: Vec<usize>| -> Result<HostTensor> {
        let tensor = trace.tensor(site)?.expect("it is listed");
        if limited || have == positions {
            return Ok(tensor);
        }
        let rows: Vec<usize> = positions.iter().map(|p| have.partition_point(|h| h < p)).collect();
        Ok(tensor.take(site.stage.position_axis(), &rows))
    };
    let c = read(reference, a.limited, a.positions.iter().collect())?;
    let g = read(subject, b.limited, b.positions.iter().collect())?;
    // Rows that are not consecutive positions have no common diagonal: zeros beyond it then count as equal.
    let consecutive = positions.len() == positions[positions.len() - 1] - start + 1;
    let mask = if consecutive { Mask::of(site.stage, start) } else { Mask::None };

    let total = if site.stage == Stage::RouterIds {
        let side = |ids| Routing { ids, weights: None, probs: None, logits: None, groups: None };
        let experts = reference.experts().max(subject.experts());
        let mut routing = compare_routing(side(&c), side(&g), experts, start);
        if let Ok(routing) = &mut routing {
            let flips = routing.flips.iter_mut().map(|f| &mut f.position);
            let changes = routing.order_changes.iter_mut().map(|c| &mut c.position);
            flips.chain(changes).for_each(|position| *position = positions[*position - start]);
        }
        let total = routing.as_ref().map_or_else(|m| Measured::Failed(m.clone()), Measured::from);
        comparison.routing.push(LayerRouting { step: 0, layer: site.layer.unwrap_or_default(), routing });
        total
    } else {
        measure(&c, &g, mask).into()
    };
    if site.stage == Stage::Logits {
        let tokens = &reference.manifest().run.tokens;
        let next: Vec<Option<u32>> = positions.iter().map(|p| tokens.get(p + 1).copied()).collect();
        comparison.logits = compare_logits(&c, &g, &next, start).ok().map(|mut l: LogitsComparison| {
            l.at.iter_mut().zip(&positions).for_each(|(at, p)| at.position = *p);
            l
        });
        comparison.notes.extend(comparison.logits.iter().flat_map(LogitsComparison::uniform));
    }
    let mut result = StageResult::new(0, site, &g.shape, total);
    let passed = match &result.total {
        Measured::Metrics(m) => tolerances.judge(site.stage, None, m, None).iter().all(|j| j.passed),
        Measured::Sets { flips, .. } => *flips == 0,
        Measured::Failed(_) | Measured::Hidden => false,
    };
    if site.stage == Stage::LayerOut && !a.limited {
        let axis = site.stage.position_axis();
        result.spread.extend(Spread::by_position(SpreadOf::Total, [&c, &g], axis, |n| positions[n]));
    }
    result.visible = !passed;
    result.verdict = if passed { Verdict::Ok } else { Verdict::Differs };
    if let Some(metrics) = result.total.metrics() {
        let smallest = tolerances.smallest(site.stage, None, metrics, None);
        result.smallest_tolerance = smallest.iter().map(|t| t.to_string()).collect();
    }
    // Rows of some experts only are not rows of positions, and rows of positions need not be consecutive ones.
    if !a.limited {
        result.locate(start, None);
        result.position = result.position.map(|p| positions[p - start]);
    }
    Ok(result)
}
