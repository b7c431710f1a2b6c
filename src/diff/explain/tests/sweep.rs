//! Every hypothesis finds itself: what one of its variants computes, rounded to f32, is explained by it.

use std::collections::BTreeSet;

use super::super::case::Evidence;
use super::super::list::{ANY, HYPOTHESES};
use super::*;

/// Ids are unique and stable in form, and the catalogue has a line for each.
#[test]
fn the_catalogue_lists_every_hypothesis_once() {
    let ids: BTreeSet<&str> = catalogue().map(|(id, _, _)| id).collect();
    assert_eq!(ids.len(), HYPOTHESES.len());
    for (id, description, applies) in catalogue() {
        assert!(id.bytes().all(|b| b.is_ascii_lowercase() || b == b'-' || b.is_ascii_digit()), "{id}");
        assert!(!description.is_empty() && !applies.is_empty(), "{id}");
    }
    let stages: BTreeSet<OpKind> = crate::op::STAGES.iter().map(|s| s.op).collect();
    assert_eq!(stages, ANY.iter().copied().collect(), "the operations that make stages");
}

/// What has variants at these stages, and what of that explains what one of its variants makes.
fn finding_themselves(w: &World, sites: impl Iterator<Item = Site>) -> [BTreeSet<&'static str>; 2] {
    let mut seen = BTreeSet::new();
    let mut rest = BTreeSet::new();
    for site in sites {
        let op = w.op(site);
        let (exact, floor) = judge(&op);
        let earlier = w.earlier(site);
        // Some output that is wrong everywhere, for variants to be made at all.
        let wrong = match &exact.data {
            crate::op::Data::U32(ids) => HostTensor::u32(&exact.shape, ids.iter().map(|i| i ^ 1).collect()),
            _ => HostTensor::f32(&exact.shape, exact.to_f32().iter().map(|x| x * 1.5 + 0.25).collect()),
        };
        let scene = StageEval {
            site,
            start: 0,
            op: &op,
            output: &wrong,
            exact: &exact,
            floor: &floor,
            contract: CONTRACT,
            earlier: &earlier,
            config: &w.model.config,
            weights: &w.model.weights,
        };
        let case = Evidence::new(&scene).unwrap();
        let all: Vec<usize> = (0..exact.len()).collect();
        for h in HYPOTHESES.iter().filter(|h| h.ops.contains(&op.kind())) {
            rest.insert(h.id);
            let variants = (h.variants)(&case).unwrap();
            let step = variants.len().div_ceil(3).max(1);
            for v in variants.iter().filter(|v| v.fitted == 0 && !v.loose).step_by(step) {
                let points = v.at(&all).unwrap();
                // Behind a tensor's end there may be anything.
                if 3 * points.iter().filter(|p| p.is_unknown()).count() > points.len() {
                    continue;
                }
                let values: Vec<f64> = points.iter().map(|p| if p.is_unknown() { 0.0 } else { p.value }).collect();
                let output = match &exact.data {
                    crate::op::Data::U32(_) => {
                        HostTensor::u32(&exact.shape, values.iter().map(|x| *x as u32).collect())
                    }
                    _ => HostTensor::f32(&exact.shape, values.iter().map(|x| *x as f32).collect()),
                };
                let e = w.explain(site, &output);
                if e.tried == 0 || e.undecided {
                    continue; // On these inputs the mistake changes nothing, or too little.
                }
                assert!(e.fits.iter().any(|f| f.id == h.id), "{site}: {}, {}: {e}", h.id, v.what);
                seen.insert(h.id);
            }
        }
    }
    [rest, seen]
}

#[test]
fn every_hypothesis_finds_itself() {
    // One stage of each kind, and of each type of weight.
    use Stage::*;
    let again = [AttnNorm, QProj, VProj, KNorm, KRope, AttnOut, AttnResidual, FfnNorm, ExpertUp, FinalNorm, Logits];
    let [rest, seen] = finding_themselves(&world(), sites().into_iter().filter(|s| !again.contains(&s.stage)));
    let never: Vec<_> = rest.difference(&seen).collect();
    // Fitted, simulated, or about outputs, numbers and ties that are not here: they are tested by hand.
    let by_hand = ["not-finite", "offset", "overflow", "rope-table", "router-ties", "scale-subnormal"];
    // Of stages that this model has in another form: they are planted in models that have it (`selftest`).
    let of_families =
        ["attention-sink", "choice-bias", "clamp", "gate-place", "router-groups", "scale-tensor", "weights-scale"];
    let expected: BTreeSet<_> = by_hand.iter().chain(&of_families).collect();
    assert_eq!(never, expected.into_iter().collect::<Vec<_>>(), "hypotheses that explained nothing");
}

#[test]
fn every_hypothesis_of_latent_attention_finds_itself() {
    use Stage::*;
    let absorbed = [KvNorm, QANorm, QRope, KRope, QAbsorbed, AttnScores, AttnLatent, AttnContext, RouterIds];
    let plain = [KvNorm, KRope, KUp, VUp, AttnScores, AttnContext, RouterIds];
    for (family, stages) in [("deepseek3", &absorbed[..]), ("deepseek2", &plain)] {
        let Some(world) = World::family_of_repository(family) else { return };
        let [_, seen] = finding_themselves(&world, stages.iter().map(|s| Site::layer(1, *s)));
        let of_latent = [
            "attention-operand",
            "attention-scale",
            "head-kept",
            "head-matrix",
            "norm-group",
            "rope-part",
            "router-groups",
        ];
        let never: Vec<_> = of_latent.iter().filter(|id| !seen.contains(*id)).collect();
        let none: &[&&str] = if family == "deepseek3" { &[] } else { &[&"attention-operand"] };
        assert!(never.iter().all(|id| none.contains(id)), "{family}: {never:?}");
    }
}

#[test]
fn every_hypothesis_of_linear_attention_finds_itself() {
    use Stage::*;
    let w = linear_attention::world_of(Family::Qwen3Next);
    let of_linear = [LinearAttnB, LinearAttnConv, LinearAttnK, LinearAttnDt, LinearAttnDecay, LinearAttnDelta];
    let sites = of_linear.map(|stage| Site::layer(0, stage)).into_iter().chain([Site::layer(1, AttnGated)]);
    let [rest, seen] = finding_themselves(&w, sites);
    let of_linear = |id: &&&str| {
        let stems = ["conv-", "l2-", "decay", "delta-", "gate-place", "head-bias", "joint-"];
        stems.iter().any(|stem| id.starts_with(stem))
    };
    let never: Vec<_> = rest.difference(&seen).filter(of_linear).collect();
    // Of a later call: tested by hand.
    assert_eq!(never, [&"conv-state"]);
}
