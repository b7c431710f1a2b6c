//! A comparison with one of everything, for the tests of every report.

use crate::backend::BackendInfo;
use crate::diff::locate::{Pattern, PatternKind, Region, Span};
use crate::diff::measure::logits::compare_logits;
use crate::diff::measure::metrics::{Mask, measure};
use crate::diff::measure::router::{Routing, compare_routing};
use crate::diff::outcome::{
    Cause, Comparison, ComparisonKind, JudgedRatios, LayerRouting, Measured, ModelSummary, NextBest, SideSummary,
    StageResult, Verdict, WeightSummary,
};
use crate::op::{GgmlType, HostTensor, LayerLayout, STAGES, Scope, Site, Stage};

fn side(backend: &str, adapter: &str, software: bool) -> SideSummary {
    SideSummary {
        info: BackendInfo {
            backend: backend.into(),
            adapter: adapter.into(),
            driver: "1.0".into(),
            software,
            contract: "f32 activations, f32 sums".into(),
            tuning: None,
        },
        trace: None,
    }
}

/// A stage of 4 × 4 values, one of them off by `error`.
fn stage(site: Site, error: f32) -> StageResult {
    let values: Vec<f32> = (0..16).map(|i| i as f32 / 4.0 - 1.0).collect();
    let reference = HostTensor::f32(&[4, 4], values);
    let mut off = reference.to_f32();
    off[9] += error;
    let total = measure(&reference, &HostTensor::f32(&[4, 4], off), Mask::None);
    let mut s = StageResult::new(0, site, &[4, 4], total.into());
    s.injected = Some(s.total.clone());
    s.floor = Some(1e-7);
    s.ratio = Some(f64::from(error) / 1e-7);
    if let Some(weight) = site.stage.info().weight {
        let name = site.layer.map_or(weight.to_string(), |n| format!("blk.{n}.{weight}"));
        let ty = if weight.ends_with("norm.weight") { GgmlType::F32 } else { GgmlType::Q6_K };
        s.weight = Some(WeightSummary { name, ty, dims: vec![256, 256, 8], file_offset: 0x2f1a40 });
    }
    s
}

/// Four layers that agree.
pub fn agreeing() -> Comparison {
    let whole = |s: Stage| stage(Site::model(s), 1e-8);
    let mut stages = vec![whole(Stage::Embedding)];
    for layer in 0..4 {
        for row in STAGES.iter().filter(|s| s.scope != Scope::Model && s.scope.occurs(LayerLayout::QWEN3MOE)) {
            stages.push(stage(Site::layer(layer, row.stage), 1e-8 * (row.stage as u8 + 1) as f32 / 31.0));
        }
    }
    stages.extend([whole(Stage::FinalNorm), whole(Stage::Logits)]);
    let logits = HostTensor::f32(&[2, 4], vec![0.0, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 0.0]);
    let mut c = Comparison {
        kind: ComparisonKind::Diff,
        model: ModelSummary {
            name: "demo-moe-Q4_K_M".into(),
            architecture: "qwen3moe".into(),
            layers: 4,
            experts: 8,
            experts_used: 2,
            fingerprint: Some("0".repeat(64)),
        },
        tokens: 17,
        tokens_sha256: "0".repeat(64),
        prompt: Some("fn main() {\n    let x".into()),
        decode: 0,
        reference: side("cpu:scalar", "AMD EPYC", false),
        subject: side("gpu", "llvmpipe (LLVM 15.0.6, 256 bits)", true),
        judge: Some("oracle".into()),
        stages,
        first_fault: None,
        first_visible: None,
        routing: vec![],
        logits: Some(compare_logits(&logits, &logits, &[Some(3)], 0).unwrap()),
        production: None,
        run_stages: None,
        lacking: vec![],
        notes: vec![],
        next: None,
    };
    c.conclude();
    c
}

/// The same with a fault in layer 2, seen from there on, a NaN, a stage that was not compared, and three flips.
pub fn diverging() -> Comparison {
    let mut c = agreeing();
    let at = |c: &Comparison, layer, stage| c.stages.iter().position(|s| s.site == Site::layer(layer, stage)).unwrap();
    let fault = at(&c, 2, Stage::ExpertDown);
    for s in &mut c.stages[fault + 1..] {
        *s = StageResult {
            injected: s.injected.clone(),
            floor: s.floor,
            ratio: s.ratio,
            weight: s.weight.clone(),
            ..stage(s.site, 0.25)
        };
        s.visible = true;
        s.verdict = Verdict::Inherits;
    }
    let s = &mut c.stages[fault];
    *s = stage(s.site, 3.7e-3);
    s.visible = true;
    s.judged = Some(JudgedRatios { reference: 0.2, subject: 37_000.0 });
    s.verdict = Verdict::from_ratios(s.judged.unwrap(), true);
    (s.position, s.expert) = (Some(2), Some(3));
    s.pattern = Some(Pattern {
        kind: PatternKind::Expert,
        kinds: vec![PatternKind::Expert, PatternKind::ColumnBlock],
        description: "expert 3 only (11 of 34 rows); columns 224–255, the last block of 32".into(),
        share: 1.0,
        elements: 352,
        elements_share: 352.0 / (34.0 * 256.0),
        region: Region {
            experts: Some(vec![3]),
            columns: Some(Span { from: 224, to: 255, modulus: None, residues: None, except: vec![] }),
            ..Region::default()
        },
        relation: None,
        non_finite: None,
    });
    s.cause = Some(Cause {
        reproduced: true,
        id: "scale-neighbour",
        also: vec![],
        name: "last block's scales read from the block before it".into(),
        residual_ratio: 0.7,
        removes: None,
        next_best: Some(NextBest { name: "read as Q4_K".into(), residual_ratio: 2.1e5 }),
        stages: vec![],
        others: vec![],
    });
    s.amplification = Some(1.3);
    s.share_of_logits_error = Some(0.91);
    s.smallest_tolerance = vec!["expert_down:nmse<=5.7e-7".into()];

    let nan = at(&c, 3, Stage::AttnProbs);
    let a = HostTensor::f32(&[2], vec![1.0, 2.0]);
    let b = HostTensor::f32(&[2], vec![1.0, f32::NAN]);
    let failed: Measured = measure(&a, &b, Mask::None).into();
    let s = &mut c.stages[nan];
    *s = StageResult {
        total: failed.clone(),
        injected: Some(failed),
        verdict: Verdict::SubjectWrong,
        ratio: Some(f64::NAN),
        ..s.clone()
    };
    let missing = at(&c, 3, Stage::RouterProbs);
    c.stages[missing].verdict = Verdict::NotCompared("the subject's trace lacks it".into());

    let ids = |x: [u32; 8]| HostTensor::u32(&[4, 2], x.to_vec());
    let (ra, rb) = (ids([0, 1, 2, 3, 4, 5, 6, 7]), ids([0, 2, 3, 2, 4, 6, 7, 5]));
    let weights = HostTensor::f32(&[4, 2], vec![0.5; 8]);
    let other = HostTensor::f32(&[4, 2], vec![0.5, 0.5, 0.5, 0.25, 0.5, 0.5, 0.5, 0.5]);
    let logits = HostTensor::f32(&[4, 8], (0..32).map(|i| i as f32 / 8.0).collect());
    let reference = Routing { ids: &ra, weights: Some(&weights), probs: None, logits: Some(&logits), groups: None };
    let subject = Routing { ids: &rb, weights: Some(&other), probs: None, logits: Some(&logits), groups: None };
    let mut routing = compare_routing(reference, subject, 8, 0).unwrap();
    let bound = [1e-6; 8];
    routing.flips[0].explain(&[1.0, 0.5, 0.5 - 1e-7, 0.0, 0.0, 0.0, 0.0, 0.0], &bound, &bound);
    routing.flips[1].explain(&[0.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.25, 0.0], &bound, &bound);
    let ids_at = at(&c, 3, Stage::RouterIds);
    c.stages[ids_at].total = Measured::from(&routing);
    c.routing = vec![LayerRouting { step: 0, layer: 3, routing: Ok(routing) }];

    let a = HostTensor::f32(&[2, 4], vec![0.0, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 0.0]);
    let b = HostTensor::f32(&[2, 4], vec![0.0, 1.0, 3.1, 3.0, 3.0, 2.0, 1.0, 0.5]);
    c.logits = Some(compare_logits(&a, &b, &[Some(3)], 15).unwrap());
    c.notes = vec![
        "gpu runs on llvmpipe (LLVM 15.0.6, 256 bits), a software adapter: a CPU, not a GPU, and this note is long"
            .into(),
    ];
    c.next = Some("twinscope repro --layer 2 --stage expert_down --expert 3".into());
    c.conclude();
    c
}
