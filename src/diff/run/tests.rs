//! Comparisons of backends over models that were made for one case.

use std::sync::Arc;

use super::driver::{DiffOptions, Sides, diff};
use crate::backend::cpu::{CpuBackend, Level};
use crate::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use crate::backend::oracle::OracleBackend;
use crate::backend::{AnyBackend, AnyTensor, Backend, Erased, Showing, pass_on};
use crate::diff::measure::metrics::Side;
use crate::diff::outcome::Comparison;
use crate::error::Result;
use crate::gguf::Gguf;
use crate::model::{Ffn, Model};
use crate::op::{At, GgmlType, HostTensor, Op, Site, Stage, Weight};
use crate::synth::{Family, FfnShape, Mix, ModelShape, Plan};

/// A model of one layer whose embeddings are `times` as large, on both sides the scalar backend.
fn with_embeddings(times: f32) -> Comparison {
    let tiny = ModelShape::named("tiny").unwrap();
    let shape = ModelShape { layers: 1, ffn: FfnShape::Dense(256), vocab: 300, ..tiny };
    let bytes = Plan::new("large", &shape, &Mix::from_name("F32").unwrap(), 1).unwrap().to_bytes().unwrap();
    let mut model = Model::from_gguf(Gguf::from_bytes("large", Arc::new(bytes)).unwrap()).unwrap();
    let table = model.weights.token_embd.clone();
    let scaled = |b: &[u8; 4]| (times * f32::from_le_bytes(*b)).to_le_bytes();
    let bytes = table.bytes().as_chunks::<4>().0.iter().flat_map(scaled).collect();
    let dims = [table.cols, table.rows, 1];
    model.weights.token_embd = Weight::from_vec(&table.name, GgmlType::F32, dims, bytes).unwrap();
    let side = || Box::new(Erased(CpuBackend::new(Some(Level::Scalar), None).unwrap()));
    let (mut reference, mut subject) = (side() as _, side() as _);
    let sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
    diff(&model, sides, &DiffOptions { production: false, shares: false, ..DiffOptions::new(vec![3, 5, 7]) }).unwrap()
}

/// Σx² of f32 values of some 1e20 is beyond f32, whose inverse root is then 0: both sides lose the same, neither breaks its contract, and that is
/// no agreement.
#[test]
fn what_overflows_by_contract_is_no_fault_and_no_agreement() {
    let c = with_embeddings(1.0);
    assert!(c.agrees() && c.stages.iter().all(|s| s.overflow.is_none()), "{:?}", c.fault());

    let c = with_embeddings(1e22);
    assert!(!c.agrees() && c.fault().is_none(), "{:?}", c.fault());
    let lost = c.visible().unwrap();
    assert_eq!((lost.site.stage, lost.site.layer), (Stage::AttnNorm, Some(0)));
    let overflow = lost.overflow.as_ref().unwrap();
    assert_eq!((overflow.side, &overflow.index[..], overflow.found), (Side::Subject, &[0, 0][..], 0.0));
    assert!(overflow.exact != 0.0 && overflow.elements > 256, "{overflow:?}");
    assert_eq!((lost.ratio, lost.verdict.is_fault()), (None, false));
    assert!(c.notes.iter().any(|note| note.contains("may overflow on these inputs")), "{:?}", c.notes);
}

/// A backend that, after it has made q, writes over what q was made of: row 1 becomes row 0.
struct Overwriting {
    inner: AnyBackend,
}

impl Backend for Overwriting {
    pass_on!(inner: AnyBackend);

    fn run(&mut self, at: At, op: &Op<'_, AnyTensor>) -> Result<AnyTensor> {
        let result = self.inner.run(at, op)?;
        match (op, at.site.stage) {
            // What every backend may write over is a cache.
            (Op::RmsNorm { .. }, Stage::AttnNorm) => {
                let cache = self.inner.alloc(&self.inner.shape(&result))?;
                self.inner.run(at, &Op::Store { cache, x: result, start: 0 })
            }
            (Op::MatMul { x, .. }, Stage::QProj) => {
                let row = self.inner.read(x)?.take(0, &[0]);
                let row = self.inner.upload(&row)?;
                self.inner.run(at, &Op::Store { cache: x.clone(), x: row, start: 1 })?;
                Ok(result)
            }
            _ => Ok(result),
        }
    }
}

/// A buffer that something else was written to while it was still needed: who reads it is right on what it finds there, and the next reader
/// is not blamed again. On a GPU too, where matrix kernels find activations in buffers or in textures that are copied from them.
#[test]
fn an_operand_that_was_written_over_is_named() {
    let tiny = ModelShape::named("tiny").unwrap();
    let shape = ModelShape { layers: 1, ffn: FfnShape::Dense(256), vocab: 300, ..tiny };
    let bytes = Plan::new("tiny", &shape, &Mix::from_name("F32").unwrap(), 1).unwrap().to_bytes().unwrap();
    let model = Model::from_gguf(Gguf::from_bytes("tiny", Arc::new(bytes)).unwrap()).unwrap();
    let cpu = || -> AnyBackend { Box::new(Erased(CpuBackend::new(Some(Level::Scalar), None).unwrap())) };
    let gpu = |lanes| -> Result<AnyBackend> {
        let options = GpuOptions { lanes: Some(lanes), ..GpuOptions::default() };
        Ok(Box::new(Erased(GpuBackend::new(&AdapterSelector::Best, options)?)))
    };
    let mut sides = vec![("cpu", cpu()), ("gpu, buffers", gpu(false).unwrap())];
    // Only where subgroups are 8 wide.
    sides.extend(gpu(true).ok().map(|side| ("gpu, textures", side)));
    for (name, inner) in sides {
        let mut reference = cpu();
        let mut subject: AnyBackend = Box::new(Overwriting { inner });
        let sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
        let options = DiffOptions { production: false, shares: false, ..DiffOptions::new(vec![3, 5, 7]) };
        let c = diff(&model, sides, &options).unwrap();
        let fault = c.fault().unwrap_or_else(|| panic!("{name}: nothing is blamed"));
        assert_eq!(fault.site, Site::layer(0, Stage::KProj), "{name}");
        let cause = fault.cause.as_ref().unwrap();
        assert_eq!((cause.reproduced, cause.id), (true, "overwritten"), "{name}: {}", cause.name);
        let words = ["attn_norm", "the first [1, 0]", "q_proj"];
        assert!(words.iter().all(|word| cause.name.contains(word)), "{name}: {}", cause.name);
        let faults = c.stages.iter().filter(|s| s.verdict.is_fault()).count();
        assert_eq!(faults, 1, "{name}: v_proj reads what is there by now");
    }
}

/// A backend that chooses the last group's experts in place of the third's.
struct OtherGroup {
    inner: AnyBackend,
}

impl Backend for OtherGroup {
    pass_on!(inner: AnyBackend);

    fn run(&mut self, at: At, op: &Op<'_, AnyTensor>) -> Result<AnyTensor> {
        let result = self.inner.run(at, op)?;
        let Op::RouterTopK { .. } = op else { return Ok(result) };
        let ids = self.inner.read(&result)?;
        let other = ids.ids().iter().map(|id| if (4..12).contains(id) { 12 + id % 4 } else { *id }).collect();
        self.inner.upload(&HostTensor::u32(&ids.shape, other))
    }
}

/// Two groups of experts whose scores are one number in f32, and two in float64, of which the higher is the later group's: an engine that sums in f32
/// keeps the earlier, and its choice is no fault, shown or hidden. That of another group is one.
#[test]
fn groups_whose_scores_round_to_one_number_are_each_right() {
    let tiny = ModelShape::named("tiny").unwrap();
    let shape = ModelShape { family: Family::DeepSeek2, layers: 2, vocab: 300, ..tiny };
    let bytes = Plan::new("groups", &shape, &Mix::from_name("F32").unwrap(), 1).unwrap().to_bytes().unwrap();
    let mut model = Model::from_gguf(Gguf::from_bytes("groups", Arc::new(bytes)).unwrap()).unwrap();
    let Ffn::Moe(moe) = &mut model.weights.layers[1].ffn else { panic!("layer 1 has experts") };
    // Every probability is 0.5. Two of group 0 are chosen whatever else is, and of groups 1 and 2 the same two: 1.5 and 0.25, or 2⁻²⁵ more.
    let zeros = vec![0; moe.router.bytes().len()];
    moe.router = Weight::from_vec(&moe.router.name, GgmlType::F32, [moe.router.cols, 16, 1], zeros).unwrap();
    let of = |first: f32, second: f32| [first, second, -2.0, -2.0];
    let (tie, more) = (of(1.0, -0.25), of(1.0, -0.25 + 2f32.powi(-25)));
    let bias = [of(3.0, 2.75), tie, more, of(-1.0, -1.0)].concat();
    let bytes = bias.into_iter().flat_map(f32::to_le_bytes).collect();
    moe.choice_bias = Some(Weight::from_vec("bias", GgmlType::F32, [16, 1, 1], bytes).unwrap());

    let cpu = || -> AnyBackend { Box::new(Erased(CpuBackend::new(Some(Level::Scalar), None).unwrap())) };
    let run = |mut subject: AnyBackend| {
        let mut reference: AnyBackend = Box::new(Erased(OracleBackend::new()));
        let sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
        let options = DiffOptions { production: false, shares: false, ..DiffOptions::new(vec![3, 5, 7]) };
        diff(&model, sides, &options).unwrap()
    };
    let c = run(cpu());
    assert!(c.fault().is_none(), "{:?}", c.fault());
    let routing = c.routing.iter().find(|r| r.layer == 1).unwrap().routing.as_ref().unwrap();
    assert_eq!((routing.flips.len(), routing.unexplained()), (3, 0), "{:?}", routing.flips);
    let flip = &routing.flips[0];
    assert_eq!((&flip.only_reference[..], &flip.only_subject[..]), (&[8, 9][..], &[4, 5][..]));
    assert_eq!(flip.reference_margin.logits, Some(2f64.powi(-25)));
    // The choice is hidden, and the reconstruction's is the other.
    let c = run(Box::new(Showing::new(cpu(), &[Stage::RouterChoice, Stage::MoeOut, Stage::LayerOut, Stage::Logits])));
    assert!(c.fault().is_none(), "{:?}", c.fault());
    let choices: usize = c.stages.iter().filter_map(|s| s.segment.as_ref()).map(|s| s.choices.len()).sum();
    assert_eq!(choices, 3);
    let c = run(Box::new(OtherGroup { inner: cpu() }));
    let fault = c.fault().expect("no rounding keeps the last group");
    assert_eq!(fault.site, Site::layer(1, Stage::RouterIds));
}
