//! Summaries of comparisons, and the parts that other tests make them of.

use super::*;
use crate::diff::measure::metrics::{Mask, measure};
use crate::op::{HostTensor, Stage};

pub(crate) fn side(backend: &str, software: bool) -> SideSummary {
    SideSummary {
        info: BackendInfo {
            backend: backend.into(),
            adapter: if software { "llvmpipe (LLVM 15)".into() } else { "a processor".into() },
            driver: "1.0".into(),
            software,
            contract: "f32 activations, f32 sums".into(),
            tuning: None,
        },
        trace: None,
    }
}

pub(crate) fn stage(site: Site, error: f32) -> StageResult {
    let a = HostTensor::f32(&[2, 2], vec![1.0, -1.0, 2.0, 0.5]);
    let b = HostTensor::f32(&[2, 2], vec![1.0, -1.0, 2.0, 0.5 + error]);
    let mut s = StageResult::new(0, site, &[2, 2], measure(&a, &b, Mask::None).into());
    s.injected = Some(s.total.clone());
    s
}

fn comparison(stages: Vec<StageResult>) -> Comparison {
    Comparison {
        kind: ComparisonKind::Diff,
        model: ModelSummary {
            name: "m".into(),
            architecture: "qwen3moe".into(),
            layers: 1,
            experts: 8,
            experts_used: 2,
            fingerprint: None,
        },
        tokens: 2,
        tokens_sha256: "0".repeat(64),
        prompt: None,
        decode: 0,
        reference: side("cpu:scalar", false),
        subject: side("gpu", true),
        judge: None,
        stages,
        first_fault: None,
        first_visible: None,
        routing: vec![],
        logits: None,
        production: None,
        run_stages: None,
        lacking: vec![],
        notes: vec![],
        next: None,
    }
}

#[test]
fn nothing_compared_is_no_agreement() {
    assert!(!comparison(vec![]).agrees());
    let mut s = stage(Site::model(Stage::Logits), 0.0);
    assert!(comparison(vec![s.clone()]).agrees());
    s.verdict = Verdict::NotCompared("the subject's trace lacks it".into());
    assert!(!comparison(vec![s]).agrees());
}

#[test]
fn what_is_hidden_is_compared_with_what_is_shown_after_it_and_else_not() {
    let hidden = |site| StageResult { verdict: Verdict::Hidden, ..stage(site, 0.0) };
    let [norm, context, out] = [Stage::AttnNorm, Stage::AttnContext, Stage::AttnOut].map(|s| Site::layer(0, s));
    let after = Site::layer(0, Stage::FfnNorm);
    let segment = Some(SegmentSummary { hidden: vec![norm, context], ..Default::default() });
    let shown = StageResult { segment, ..stage(out, 0.0) };
    let mut c = comparison(vec![hidden(norm), hidden(context), shown, hidden(after)]);
    assert_eq!((c.counts(), c.hidden()), ((1, 1), 2));
    c.require([norm, context, out]);
    assert!(c.lacking.is_empty() && c.agrees());
    c.require([norm, after]);
    assert!(c.lacking == [after.key()] && !c.agrees(), "{:?}", c.lacking);
}

#[test]
fn a_failed_comparison_is_a_fault() {
    let a = HostTensor::f32(&[1], vec![f32::NAN]);
    let s = StageResult::new(0, Site::model(Stage::Logits), &[1], measure(&a, &a, Mask::None).into());
    let mut c = comparison(vec![s]);
    c.conclude();
    assert!(!c.agrees());
    assert_eq!((c.first_fault, c.first_visible), (None, Some(0)), "without a replay it may be inherited");
}

#[test]
fn what_is_finite_on_neither_side_is_no_agreement() {
    let a = HostTensor::f32(&[1], vec![f32::NAN]);
    let mut s = StageResult::new(0, Site::model(Stage::Logits), &[1], measure(&a, &a, Mask::None).into());
    s.verdict = Verdict::Inherits; // as where the oracle has NaN too
    assert!(!comparison(vec![stage(Site::layer(0, Stage::AttnNorm), 0.0), s]).agrees());
}

#[test]
fn the_first_fault_may_come_before_the_first_visible_difference() {
    let mut early = stage(Site::layer(0, Stage::MoeOut), 1e-3);
    early.verdict = Verdict::SubjectWrong;
    let mut late = stage(Site::layer(0, Stage::LayerOut), 1.0);
    late.visible = true;
    late.verdict = Verdict::Inherits;
    let mut c = comparison(vec![stage(Site::layer(0, Stage::AttnNorm), 0.0), early, late]);
    c.conclude();
    assert_eq!((c.first_fault, c.first_visible), (Some(1), Some(2)));
    assert!(!c.agrees());
}

#[test]
fn unexplained_flips_and_failed_routings_disagree() {
    let mut c = comparison(vec![stage(Site::model(Stage::Logits), 0.0)]);
    let failed = Err(Mismatch::Nothing { shape: vec![0, 2], masked: 0 });
    c.routing = vec![LayerRouting { step: 0, layer: 0, routing: failed }];
    assert!(!c.agrees());
}

#[test]
fn the_worst_element_has_a_position_and_an_expert() {
    let a = HostTensor::f32(&[2, 2, 2], vec![1.0; 8]);
    let mut values = vec![1.0; 8];
    values[5] = 2.0; // token 1, slot 0
    let total = measure(&a, &HostTensor::f32(&[2, 2, 2], values), Mask::None).into();
    let mut s = StageResult::new(0, Site::layer(0, Stage::ExpertDown), &[2, 2, 2], total);
    s.locate(10, Some(&[4, 5, 6, 7]));
    assert_eq!((s.position, s.expert), (Some(11), Some(6)));
    let mut values = vec![1.0; 8];
    values[3] = f32::INFINITY;
    let a = HostTensor::f32(&[2, 4], vec![1.0; 8]);
    let total = measure(&a, &HostTensor::f32(&[2, 4], values), Mask::None).into();
    let mut s = StageResult::new(0, Site::layer(0, Stage::RouterLogits), &[2, 4], total);
    s.locate(0, None);
    assert_eq!((s.position, s.expert), (Some(0), Some(3)));
}

#[test]
fn the_side_follows_from_the_ratios() {
    let v = |reference, subject| Verdict::from_ratios(JudgedRatios { reference, subject }, false);
    assert_eq!(v(0.5, 1.0), Verdict::Ok);
    assert_eq!(v(0.5, 1.1).side(), Some(Side::Subject));
    assert_eq!(v(41.0, 0.2), Verdict::ReferenceWrong);
    assert_eq!(v(2.0, f64::NAN), Verdict::BothWrong);
    let inherits = Verdict::from_ratios(JudgedRatios { reference: 0.1, subject: 0.1 }, true);
    assert_eq!(inherits, Verdict::Inherits);
}
