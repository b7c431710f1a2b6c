//! Kernels that run while nobody looks: an error that only they have is found, at their stages; one that only the kernels of single stages
//! have is known as such; other rounding is none.

use std::sync::Arc;

use twinscope::Error;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::gpu::GpuOptions;
use twinscope::backend::{AnyBackend, Erased};
use twinscope::diff::measure::metrics::Side;
use twinscope::diff::outcome::{Comparison, ProductionVerdict as V};
use twinscope::diff::run::driver::{DiffOptions, Sides, diff};
use twinscope::model::Model;

use super::common::gpu_with;

/// The demo model on `gpu`, of whose `kernel` the text `from` became `to`.
fn compare(kernel: &'static str, from: &'static str, to: &'static str, judged: bool) -> Comparison {
    compared(kernel, from, to, judged, false).unwrap()
}

fn compared(
    kernel: &'static str,
    from: &'static str,
    to: &'static str,
    judged: bool,
    poison: bool,
) -> twinscope::Result<Comparison> {
    let patch = move |name: &str, source: String| {
        if name != kernel {
            return source;
        }
        assert_eq!(source.matches(from).count(), 1, "{kernel}: {from}");
        source.replace(from, to)
    };
    let options = GpuOptions { patch: Some(Arc::new(patch)), poison, ..Default::default() };
    let mut subject: AnyBackend = Box::new(Erased(gpu_with(options)));
    let mut reference: AnyBackend = Box::new(Erased(CpuBackend::new(Some(Level::Scalar), Some(2)).unwrap()));
    let sides = Sides { reference: &mut reference, subject: &mut subject, judged };
    let options = DiffOptions { decode: 1, ..DiffOptions::new(vec![414, 20, 7]) };
    diff(&Model::open(None).unwrap(), sides, &options)
}

fn verdict(c: &Comparison) -> V {
    c.production.as_ref().expect("a GPU has kernels of several stages").verdict
}

#[test]
fn an_error_of_a_fused_kernel_alone_is_found_at_its_stages() {
    // Kernel, text, what becomes of it; the stage at which it is seen, what is hidden before it, a cause.
    type Case = (&'static str, &'static str, &'static str, &'static str, &'static [&'static str], Option<&'static str>);
    let cases: [Case; 4] = [
        ("norm_ropes", "a * turn.x - b * turn.y", "a * turn.x + b * turn.y", "q_rope", &["q_norm"], None),
        (
            "combine_add_norm",
            "a[start + i] + combined(start + i)",
            "combined(start + i)",
            "layer_out",
            &["moe_out"],
            Some("residual"),
        ),
        ("add_norm", "v * scale * weight[i]", "v * scale", "ffn_norm", &[], Some("norm-weight")),
        ("router", "weigh(group.x);", "weigh(group.x); weights[group.x * p.k] *= 1.5;", "router_weights", &[], None),
    ];
    for (kernel, from, to, stage, hidden, cause) in cases {
        let found = compare(kernel, from, to, true);
        assert_eq!(verdict(&found), V::OnlyFusedWrong, "{kernel}");
        assert!(!found.agrees());
        let fault = found.fault().unwrap_or_else(|| panic!("{kernel}: nothing is blamed"));
        assert_eq!((fault.site.layer, fault.verdict.side()), (Some(0), Some(Side::Subject)), "{kernel}");
        assert_eq!(fault.site.stage.name(), stage, "{kernel}");
        let inside: Vec<&str> = fault.segment.iter().flat_map(|s| &s.hidden).map(|s| s.stage.name()).collect();
        assert_eq!(inside, hidden, "{kernel}");
        if let Some(id) = cause {
            assert_eq!(fault.cause.as_ref().filter(|c| c.reproduced).map(|c| c.id), Some(id), "{kernel}");
        }
        let words = found.notes.last().unwrap();
        assert!(
            words.contains("only a kernel of several stages is wrong: each alone, all 198 stages agree"),
            "{words}"
        );
    }
}

#[test]
fn an_error_of_the_single_kernels_alone_is_said_to_be_that() {
    let found = compare("rope", "let norm = p.neighbours == 1u;", "let norm = true;", true);
    assert_eq!(verdict(&found), V::OnlySinglesWrong);
    assert_eq!(found.fault().map(|s| s.site.stage.name()), Some("q_rope"));
}

#[test]
fn other_rounding_is_no_error_and_without_a_judge_nothing_is_said() {
    let (from, to) = (
        "let a = value(start + i) * scale * weight(start, i);",
        "let a = value(start + i) * (scale * weight(start, i));",
    );
    let found = compare("norm_ropes", from, to, true);
    assert!(found.agrees(), "{:?}", found.notes);
    let production = found.production.unwrap();
    assert!(production.differing > 0 && production.positions == 4);
    assert_eq!(production.verdict, V::WithinRounding);
    assert_eq!(verdict(&compare("norm_ropes", from, to, false)), V::NotJudged);
    let same = compare("swiglu", "@compute", "@compute", false);
    assert_eq!((verdict(&same), same.production.unwrap().differing), (V::Same, 0));
}

/// A kernel that runs only while nobody looks, and that poison catches there: an error that ends the comparison, not a note of it.
#[test]
fn a_fused_kernel_that_poison_catches_is_no_note() {
    let (kernel, from) = ("norm_ropes", "if g < p.groups {");
    match compared(kernel, from, "if g + 1u < p.groups {", false, true) {
        Err(e @ Error::Fault(_)) => {
            let found = e.to_string();
            let words = ["layer 0 · ", "kernel norm_ropes left ", "of its output unwritten"];
            assert!(words.iter().all(|word| found.contains(word)), "{found}");
        }
        Err(e) => panic!("no kernel is named: {e}"),
        Ok(found) => panic!("no kernel is caught: {:?}", found.notes),
    }
    let clean = compared(kernel, from, from, false, true).unwrap();
    assert_eq!(verdict(&clean), V::Same, "{:?}", clean.notes);
}
