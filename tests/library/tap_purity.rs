//! Tracing only observes: logits with every tap on are those with none, bit for bit, on each backend, in one call, in
//! chunks and while decoding.

use crate::common::golden;
use crate::gpu::common::{each_choice, each_set};
use twinscope::backend::Backend;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::oracle::OracleBackend;
use twinscope::model::{LogitRows, Model, Session, forward};
use twinscope::op::{At, HostTensor, Site};
use twinscope::trace::{StageObserver, Traced};

/// Wants the sites that a rule picks, and looks at every value.
struct Taps {
    rule: Rule,
    seen: usize,
}

impl StageObserver for Taps {
    fn wants(&self, site: Site) -> bool {
        (self.rule)(site)
    }
    fn observe(&mut self, _: At, values: HostTensor) -> twinscope::Result<()> {
        assert!(!values.is_empty());
        self.seen += 1;
        Ok(())
    }
}

/// The bits of the logits of each call: the prompt in chunks, then two more tokens one at a time.
fn logits<B: Backend>(backend: &mut B, model: &Model, chunk: usize) -> Vec<Vec<u64>> {
    let tokens = golden("ownership").tokens;
    let mut session = Session::new(backend, &model.config, tokens.len() + 2).unwrap();
    let mut all = Vec::new();
    for (part, rows) in tokens.chunks(chunk).map(|c| (c, LogitRows::All)).chain([(&[414u32][..], LogitRows::Last); 2]) {
        let logits = forward(backend, model, &mut session, part, rows).unwrap();
        all.push(backend.read(&logits).unwrap().to_f64().into_iter().map(f64::to_bits).collect());
    }
    all
}

type Rule = fn(Site) -> bool;

fn check<B: Backend>(new: impl Fn() -> B) {
    let model = Model::open(None).unwrap();
    let rules: [(&str, Rule); 3] = [
        ("every stage", |_| true),
        ("one stage in the middle of a layer", |site| site.stage.name() == "expert_act"),
        ("every other site", |site| (site.layer.unwrap_or(0) as usize + site.stage as usize).is_multiple_of(2)),
    ];
    for chunk in [21, 8] {
        let mut plain = new();
        let name = plain.info().backend;
        let untapped = logits(&mut plain, &model, chunk);
        for (what, rule) in rules {
            let mut traced = Traced::new(new(), Taps { rule, seen: 0 });
            let tapped = logits(&mut traced, &model, chunk);
            let (_, taps) = traced.finish().unwrap();
            assert!(taps.seen > 0, "{name}: no tap was on");
            assert!(tapped == untapped, "{name}, chunks of {chunk}: logits differ with taps on {what}");
        }
    }
}

#[test]
fn oracle() {
    check(OracleBackend::new);
}

#[test]
fn cpu_at_every_level() {
    for level in Level::available() {
        check(|| CpuBackend::new(Some(level), None).unwrap());
    }
}

#[test]
fn gpu_with_each_set_of_matrix_kernels() {
    for set in 0..each_set().len() {
        check(|| each_set().swap_remove(set).1);
    }
}

/// As a tuning table may have it.
#[test]
fn gpu_with_each_kernel_of_products_forced() {
    for choice in 0..each_choice().len() {
        check(|| each_choice().swap_remove(choice).1);
    }
}
