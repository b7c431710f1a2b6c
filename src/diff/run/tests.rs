//! Comparisons of backends over models that were made for one case.

use std::sync::Arc;

use super::driver::{DiffOptions, Sides, diff};
use crate::backend::cpu::{CpuBackend, Level};
use crate::backend::{AnyBackend, AnyTensor, Backend, Erased, pass_on};
use crate::diff::measure::metrics::Side;
use crate::diff::outcome::Comparison;
use crate::error::Result;
use crate::gguf::Gguf;
use crate::model::Model;
use crate::op::{At, GgmlType, Op, Site, Stage, Weight};
use crate::synth::{FfnShape, Mix, ModelShape, Plan};

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
        if let (Op::MatMul { x, .. }, Stage::QProj) = (op, at.site.stage) {
            let row = self.inner.read(x)?.take(0, &[0]);
            let row = self.inner.upload(&row)?;
            self.inner.run(at, &Op::Store { cache: x.clone(), x: row, start: 1 })?;
        }
        Ok(result)
    }
}

/// A buffer that something else was written to while it was still needed: who reads it is right on what it finds there, and the next reader
/// is not blamed again.
#[test]
fn an_operand_that_was_written_over_is_named() {
    let tiny = ModelShape::named("tiny").unwrap();
    let shape = ModelShape { layers: 1, ffn: FfnShape::Dense(256), vocab: 300, ..tiny };
    let bytes = Plan::new("tiny", &shape, &Mix::from_name("F32").unwrap(), 1).unwrap().to_bytes().unwrap();
    let model = Model::from_gguf(Gguf::from_bytes("tiny", Arc::new(bytes)).unwrap()).unwrap();
    let side = || -> AnyBackend { Box::new(Erased(CpuBackend::new(Some(Level::Scalar), None).unwrap())) };
    let mut reference = side();
    let mut subject: AnyBackend = Box::new(Overwriting { inner: side() });
    let sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
    let options = DiffOptions { production: false, shares: false, ..DiffOptions::new(vec![3, 5, 7]) };
    let c = diff(&model, sides, &options).unwrap();
    let fault = c.fault().unwrap();
    assert_eq!(fault.site, Site::layer(0, Stage::KProj));
    let cause = fault.cause.as_ref().unwrap();
    assert_eq!((cause.reproduced, cause.id), (true, "overwritten"), "{}", cause.name);
    assert!(
        cause.name.contains("attn_norm") && cause.name.contains("the first [1, 0]") && cause.name.contains("q_proj"),
        "{}",
        cause.name
    );
    assert_eq!(c.stages.iter().filter(|s| s.verdict.is_fault()).count(), 1, "v_proj reads what is there by now");
}
