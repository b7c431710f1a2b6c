//! `diff` on sides that are wrong at one stage, made by a backend that wraps a correct one: the comparison goes on to its end, names the
//! side, and what comes after the fault is judged on its own.

use std::sync::Arc;

use twinscope::Result;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::oracle::OracleBackend;
use twinscope::backend::{AnyBackend, AnyTensor, Backend, BackendInfo, Contract, Erased, Need, Showing, Ticket};
use twinscope::diff::outcome::{Comparison, StageResult, Verdict};
use twinscope::diff::run::driver::{DiffOptions, Sides, diff};
use twinscope::model::Model;
use twinscope::op::{At, HostTensor, Op, OpKind, Site, Stage, Weight};

type Change = fn(HostTensor) -> HostTensor;

/// A backend whose result at one site is changed.
struct Faulty {
    inner: AnyBackend,
    site: Site,
    change: Change,
}

impl Backend for Faulty {
    type Tensor = AnyTensor;

    fn run(&mut self, at: At, op: &Op<'_, AnyTensor>) -> Result<AnyTensor> {
        let result = self.inner.run(at, op)?;
        if at.site != self.site || !op.makes_stage() {
            return Ok(result);
        }
        let values = self.inner.read(&result)?;
        self.inner.upload(&(self.change)(values))
    }
    fn info(&self) -> BackendInfo {
        self.inner.info()
    }
    fn contract(&self, op: OpKind) -> Contract {
        self.inner.contract(op)
    }
    fn unsupported(&self, needs: &[Need]) -> Vec<String> {
        self.inner.unsupported(needs)
    }
    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.inner.prepare(weights, progress)
    }
    fn alloc(&mut self, shape: &[usize]) -> Result<AnyTensor> {
        self.inner.alloc(shape)
    }
    fn upload(&mut self, values: &HostTensor) -> Result<AnyTensor> {
        self.inner.upload(values)
    }
    fn shape(&self, tensor: &AnyTensor) -> Vec<usize> {
        self.inner.shape(tensor)
    }
    fn fetch(&mut self, tensor: &AnyTensor) -> Result<Ticket> {
        self.inner.fetch(tensor)
    }
    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.inner.take(ticket)
    }
    fn sync(&mut self) -> Result<()> {
        self.inner.sync()
    }
}

fn cpu() -> AnyBackend {
    Box::new(Erased(CpuBackend::new(Some(Level::Scalar), Some(2)).unwrap()))
}

fn faulty(site: Site, change: Change) -> AnyBackend {
    Box::new(Faulty { inner: cpu(), site, change })
}

/// The demo model's five tokens, options changed by `set`.
fn compare(mut reference: AnyBackend, mut subject: AnyBackend, set: fn(&mut DiffOptions)) -> Comparison {
    let model = Model::open(None).unwrap();
    let mut options = DiffOptions::new(vec![414, 20, 7, 1000, 33]);
    set(&mut options);
    let sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
    diff(&model, sides, &options).unwrap()
}

fn at(c: &Comparison, site: Site) -> &StageResult {
    c.stages.iter().find(|s| s.site == site).unwrap()
}

const STAGES: usize = 3 + 4 * 24;

#[test]
fn ids_of_no_expert_are_a_fault_and_not_the_end_of_the_run() {
    let ids = Site::layer(1, Stage::RouterIds);
    let absent: Change = |ids| {
        let mut values = ids.ids().to_vec();
        values[3] = 3_214_119_954;
        HostTensor::u32(&ids.shape, values)
    };
    for (sides, verdict, name) in [
        ((cpu(), faulty(ids, absent)), Verdict::SubjectWrong, "the subject computes with the reference's"),
        ((faulty(ids, absent), cpu()), Verdict::ReferenceWrong, "the reference computes with the subject's"),
    ] {
        let c = compare(sides.0, sides.1, |_| ());
        let fault = c.fault().unwrap();
        assert_eq!((fault.site, &fault.verdict), (ids, &verdict));
        assert!(!c.agrees());
        assert_eq!(c.stages.len(), STAGES);
        assert_eq!(c.stages.iter().filter(|s| s.verdict.is_fault()).count(), 1);
        let note = c.notes.iter().find(|n| n.contains("3214119954")).expect("a note on the ids");
        assert!(note.contains(name), "{note}");
        assert!(
            at(&c, Site::layer(1, Stage::MoeOut)).total.metrics().unwrap().is_equal(),
            "both have the same experts"
        );
    }
}

#[test]
fn given_the_references_experts_both_sides_rows_are_those_of_the_same_expert() {
    // The same experts in another order: rows by the subject's own order would pair different experts.
    let swap: Change = |ids| {
        let values = ids.ids().chunks_exact(2).flat_map(|pair| [pair[1], pair[0]]).collect();
        HostTensor::u32(&ids.shape, values)
    };
    let c = compare(cpu(), faulty(Site::layer(0, Stage::RouterIds), swap), |o| o.force_routing = true);
    for stage in [Stage::RouterWeights, Stage::ExpertGate, Stage::ExpertDown, Stage::MoeOut] {
        let s = at(&c, Site::layer(0, stage));
        assert!(s.total.metrics().is_some_and(|m| m.is_equal()) && s.verdict == Verdict::Ok, "{stage}: {:?}", s.total);
    }
}

/// A recording cannot replay, so its error shows on its own inputs only, and is measured and explained there.
#[test]
fn a_recorded_reference_is_measured_and_explained_on_its_own_inputs() {
    let site = Site::layer(1, Stage::FfnNorm);
    let twice: Change = |x| HostTensor::f32(&x.shape, x.to_f32().iter().map(|x| 2.0 * x).collect());
    let c = compare(faulty(site, twice), cpu(), |o| o.reference_is_recorded = true);
    let fault = c.fault().unwrap();
    assert_eq!((fault.site, &fault.verdict), (site, &Verdict::ReferenceWrong));
    assert!(fault.ratio.unwrap() > 1e3, "{:?}", fault.ratio);
    assert!((fault.own().metrics().unwrap().nmse - 0.25).abs() < 1e-3, "half of the reference is error");
    assert!(fault.pattern.is_some());
    let cause = fault.cause.as_ref().unwrap();
    assert!(cause.reproduced && cause.name.starts_with("2 times"), "{cause:?}");
}

/// What stands in for its replay is the oracle under its own contract, not the subject's; also where it does not show a stage.
#[test]
fn a_correct_recorded_reference_of_another_precision_is_not_called_wrong() {
    let int8 = || -> AnyBackend { Box::new(Erased(CpuBackend::int8(None, Some(2)).unwrap())) };
    let oracle = || -> AnyBackend { Box::new(Erased(OracleBackend::new())) };
    let outputs = |b: AnyBackend| -> AnyBackend { Box::new(Showing::new(b, &[Stage::LayerOut, Stage::Logits])) };
    for (name, reference, subject) in [
        ("int8 and f32", int8(), cpu()),
        ("f32 and int8", cpu(), int8()),
        ("f32 and f64", cpu(), oracle()),
        ("outputs of int8, and f32", outputs(int8()), cpu()),
        ("outputs of f32, and int8", outputs(cpu()), int8()),
        ("outputs of f32, and f64", outputs(cpu()), oracle()),
    ] {
        let c = compare(reference, subject, |o| (o.reference_is_recorded, o.shares) = (true, false));
        assert!(c.agrees(), "{name}: {:?}", c.fault());
    }
    // And one that is wrong is, at its stage.
    let site = Site::layer(1, Stage::FfnNorm);
    let twice: Change = |x| HostTensor::f32(&x.shape, x.to_f32().iter().map(|x| 2.0 * x).collect());
    let wrong: AnyBackend = Box::new(Faulty { inner: int8(), site, change: twice });
    let c = compare(wrong, cpu(), |o| o.reference_is_recorded = true);
    assert_eq!(c.fault().map(|fault| (fault.site, &fault.verdict)), Some((site, &Verdict::ReferenceWrong)));
}

#[test]
fn decoding_ends_where_the_reference_has_no_largest_logit() {
    let nan: Change = |x| {
        let mut values = x.to_f32();
        *values.last_mut().unwrap() = f32::NAN;
        HostTensor::f32(&x.shape, values)
    };
    let c = compare(faulty(Site::model(Stage::Logits), nan), cpu(), |o| o.decode = 2);
    let fault = c.fault().unwrap();
    assert_eq!((fault.site.stage, &fault.verdict), (Stage::Logits, &Verdict::ReferenceWrong));
    assert_eq!((c.decode, c.stages.len()), (0, STAGES));
    assert!(c.notes.iter().any(|n| n.contains("decoding ended after 0 of 2 tokens")), "{:?}", c.notes);
}
