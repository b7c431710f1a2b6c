//! Correct sides agree at every stage; planted errors past a row are found with the row, and with what the rows hold.

use std::sync::Arc;

use super::*;
use crate::backend::cpu::{CpuBackend, Level};
use crate::backend::{Erased, pass_on};
use crate::gguf::Gguf;
use crate::op::{At, Data, Op, Stage};
use crate::synth::{Family, Mix, ModelShape, Plan};
use crate::trace::recorded::sites;

fn cpu(level: Level) -> AnyBackend {
    Box::new(Erased(CpuBackend::new(Some(level), Some(1)).unwrap()))
}

fn run(model: &Model, subject: &mut AnyBackend, site: Site, options: &ProbeOptions) -> Result<Probed> {
    let mut reference = cpu(Level::Scalar);
    let sides = ProbeSides { reference: &mut reference, subject };
    probe(model, sides, &[42, 172, 245, 139, 293], site, options, &mut |_| ())
}

/// A backend that is wrong from a row on.
struct PastARow {
    inner: AnyBackend,
    row: usize,
    /// What a row is given in place of its own values: another's, zeros, or its own times two.
    wrong: fn(&mut [f32], usize, usize),
}

impl Backend for PastARow {
    pass_on!(inner: AnyBackend);

    fn run(&mut self, at: At, op: &Op<'_, Self::Tensor>) -> Result<Self::Tensor> {
        let result = self.inner.run(at, op)?;
        let mut values = self.inner.read(&result)?;
        let rows = values.shape[0];
        let Data::F32(data) = &mut values.data else { return Ok(result) };
        let len = data.len() / rows.max(1);
        (self.row..rows).for_each(|row| (self.wrong)(data, row, len));
        self.inner.upload(&values)
    }
}

fn past(row: usize, wrong: fn(&mut [f32], usize, usize)) -> AnyBackend {
    Box::new(Erased(PastARow { inner: cpu(Level::Scalar), row, wrong }))
}

#[test]
fn every_stage_of_a_model_agrees_with_itself_and_is_judged() {
    every_stage_of(&Model::open(None).unwrap(), |site| site.layer.is_none_or(|layer| layer == 1));
    // Layer 0 has linear attention.
    let shape = ModelShape { family: Family::Qwen35, vocab: 300, ..ModelShape::named("tiny").unwrap() };
    let bytes = Plan::new("qwen35moe", &shape, &Mix::from_name("Q4_K_M").unwrap(), 1).unwrap().to_bytes().unwrap();
    let qwen35moe = Model::from_gguf(Gguf::from_bytes("qwen35moe", Arc::new(bytes)).unwrap()).unwrap();
    every_stage_of(&qwen35moe, |site| site.stage.name().starts_with("linear_attn"));
}

fn every_stage_of(model: &Model, looked_at: impl Fn(&Site) -> bool) {
    let mut subject = cpu(Level::Scalar);
    for site in sites(model).into_iter().filter(looked_at) {
        let options = ProbeOptions { start: 3, judge_all: 0.0, ..ProbeOptions::new(70) };
        let found = run(model, &mut subject, site, &options).unwrap();
        assert!(found.agrees(), "{site}: {:?} {:?}", found.subject, found.reference);
        assert!(found.judged >= 30 && !found.judged_all, "{site}: {}", found.judged);
        assert_eq!(found.differing, 0, "{site}");
        let every = run(model, &mut subject, site, &ProbeOptions::new(9)).unwrap();
        assert!(every.agrees() && every.judged_all, "{site}");
    }
}

#[test]
fn other_kernels_agree_within_their_floors() {
    let model = Model::open(None).unwrap();
    let mut subject: AnyBackend = Box::new(Erased(CpuBackend::new(None, Some(1)).unwrap()));
    for stage in [Stage::ExpertGate, Stage::QProj, Stage::AttnContext, Stage::QRope] {
        let options = ProbeOptions { seed: 7, judge_all: 0.0, ..ProbeOptions::new(300) };
        let found = run(&model, &mut subject, Site::layer(0, stage), &options).unwrap();
        assert!(found.agrees(), "{stage}: {:?}", found.subject);
    }
}

#[test]
fn rows_that_wrap_around_are_found_with_the_row_and_where_they_come_from() {
    let model = Model::open(None).unwrap();
    let mut subject = past(1000, |data, row, len| data.copy_within((row - 1000) * len..(row - 999) * len, row * len));
    let options = ProbeOptions { judge_all: 0.0, ..ProbeOptions::new(1500) };
    let found = run(&model, &mut subject, Site::layer(2, Stage::ExpertGate), &options).unwrap();
    assert_eq!((found.verdict.clone(), found.first_wrong), (Verdict::SubjectWrong, Some(1000)));
    assert_eq!((found.differing, &found.differing_rows[..]), (500, &[[1000, 1499]][..]));
    let misplaced = found.misplaced.unwrap();
    assert!(misplaced.what.starts_with("the values of row r mod 1000"), "{misplaced:?}");
    assert_eq!(misplaced.tried, misplaced.hold);
}

#[test]
fn one_row_among_many_is_found_though_no_judge_is_sent_there() {
    let model = Model::open(None).unwrap();
    let mut subject = past(777, |data, row, len| {
        if row == 777 {
            data[row * len + 5] *= 1.5
        }
    });
    let options = ProbeOptions { judge_all: 0.0, random_rows: 0, ..ProbeOptions::new(2000) };
    let found = run(&model, &mut subject, Site::layer(0, Stage::QProj), &options).unwrap();
    assert_eq!((found.verdict.clone(), found.first_wrong, found.subject.wrong), (Verdict::SubjectWrong, Some(777), 1));
    assert_eq!(found.differing_rows, [[777, 777]]);
}

#[test]
fn what_is_wrong_in_a_row_is_explained_and_nothing_written_is_said() {
    let model = Model::open(None).unwrap();
    let site = Site::layer(1, Stage::QProj);
    let options = ProbeOptions { judge_all: 0.0, ..ProbeOptions::new(600) };
    let doubled = run(
        &model,
        &mut past(500, |data, row, len| data[row * len..][..len].iter_mut().for_each(|x| *x *= 2.0)),
        site,
        &options,
    );
    let cause = doubled.unwrap().cause.unwrap();
    assert!(cause.reproduced && cause.name.contains("2 times"), "{cause:?}");
    let zeros =
        run(&model, &mut past(500, |data, row, len| data[row * len..][..len].fill(0.0)), site, &options).unwrap();
    assert_eq!(zeros.misplaced.unwrap().what, "zeros: nothing was written");
    assert_eq!(zeros.first_wrong, Some(500));
}

#[test]
fn too_little_memory_is_said_before_it_is_taken() {
    let model = Model::open(None).unwrap();
    let options = ProbeOptions::new(1 << 20);
    let error = run(&model, &mut cpu(Level::Scalar), Site::layer(0, Stage::AttnScores), &options).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.exit_code(), 125, "{text}");
    assert!(text.contains("at 1048576 rows needs") && text.contains("are available"), "{text}");
}

/// In the running kernel, as a driver's index that overflows would: from a row on it reads the rows before.
#[test]
fn a_kernel_that_wraps_past_a_row_is_named_with_it() {
    use crate::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};

    let model = Model::open(None).unwrap();
    let edits = [("return x[at];", "return x[at % (4096u * p.n)];"), ("= x[start + i] *", "= value(start + i) *")];
    let patch = move |name: &str, source: String| match name.split('/').next() {
        Some("rms_norm") => edits.iter().fold(source, |source, (from, to)| {
            assert_eq!(source.matches(from).count(), 1, "{source}");
            source.replacen(from, to, 1)
        }),
        _ => source,
    };
    let options = GpuOptions { patch: Some(Arc::new(patch)), ..Default::default() };
    let Ok(gpu) = GpuBackend::new(&AdapterSelector::Best, options) else {
        eprintln!("skipped: no adapter");
        return;
    };
    let mut gpu: AnyBackend = Box::new(Erased(gpu));
    let options = ProbeOptions { judge_all: 0.0, ..ProbeOptions::new(5000) };
    let found = run(&model, &mut gpu, Site::layer(0, Stage::AttnNorm), &options).unwrap();
    assert_eq!((found.verdict.clone(), found.first_wrong), (Verdict::SubjectWrong, Some(4096)), "{found:?}");
    assert_eq!(found.differing_rows, [[4096, 4999]]);
    let misplaced = found.misplaced.unwrap();
    assert!(misplaced.what.starts_with("the values of row r mod 4096"), "{misplaced:?}");
}
