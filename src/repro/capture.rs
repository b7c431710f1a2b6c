//! Finds the call in which a stage fails, and takes its operands out of the run.
//!
//! Design:
//! - `CallCapture` is a backend over the subject that passes every call on as it is. At the one site that is looked at it reads
//!   the operands before the call and the result after it.
//! - A KV cache is not read. Its rows are collected from what was stored into it, so an entry that the subject stores in the
//!   wrong place is part of the stage that reads it, as in a comparison.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::case::{FailingCall, KeptRow, Provenance, Slot};
use super::verdict::RerunCheck;
use crate::backend::{Backend, NamedContract, pass_on};
use crate::error::{Error, Result};
use crate::model::{Calls, LogitRows, Model, Runner};
use crate::op::{At, Data, HostTensor, Op, OpParams, Scope, Site, Stage, Weight};
use crate::trace::select::has_expert_rows;

/// What to look at.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub site: Site,
    /// In the call that has this position only, and only there.
    pub position: Option<usize>,
    /// Only in the rows of this expert.
    pub expert: Option<u32>,
}

/// A stage in one call of the run, judged as it was there.
pub struct CapturedCall {
    pub case: FailingCall,
    pub judged: RerunCheck,
    /// The largest ratio among the elements that are looked at, and the element's place.
    pub ratio: f64,
    pub index: Option<usize>,
}

impl CapturedCall {
    pub fn fails(&self) -> bool {
        self.ratio.is_nan() || self.ratio > 1.0
    }
}

/// Makes `calls` until the stage fails under `contracts`, and returns it as it was in that call; in the last call if it never does.
///
/// # Errors
/// The backend's, and [`Error::Usage`] if nothing in the run is the target.
pub fn find<B: Backend>(
    backend: &mut B,
    model: &Model,
    calls: Calls<'_>,
    target: &Target,
    contracts: &NamedContract,
) -> Result<CapturedCall> {
    let rows = match target.site.stage.info().scope {
        Scope::Model => LogitRows::All,
        _ => LogitRows::Last,
    };
    let mut capture = CallCapture::new(backend, target.site);
    let mut runner = Runner::new(&mut capture, model, calls, rows)?;
    let mut last: Option<CapturedCall> = None;
    while let Some(call) = runner.upcoming() {
        capture.awake = target.position.is_none_or(|p| call.contains(&p));
        if !runner.step(&mut capture)? {
            break;
        }
        let Some(captured) = capture.captured.take() else { continue };
        let contract = contracts.at(target.site.stage, captured.params.kind());
        let output = captured.output.clone();
        let case = captured.into_case()?;
        let judged = RerunCheck::new(&case, contract, output)?;
        let (ratio, index) = worst(&case, &judged, target);
        // Nobody may have chosen the expert in this call.
        if index.is_none() {
            continue;
        }
        let found = CapturedCall { case, judged, ratio, index };
        let fails = found.fails();
        last = Some(found);
        if fails {
            break;
        }
    }
    last.ok_or_else(|| {
        let expert = target.expert.map_or(String::new(), |e| format!(" of expert {e}"));
        let position = target.position.map_or(String::new(), |p| format!(" at position {p}"));
        Error::usage(format!("{}: the run has no rows{expert}{position}", target.site))
    })
}

/// The operation that makes `site`, with its operands, as it is in a run of `prompt` in one call.
///
/// # Errors
/// The backend's, and [`Error::Usage`] if nothing in the run is at the site.
pub fn call_of<B: Backend>(backend: &mut B, model: &Model, prompt: &[u32], site: Site) -> Result<FailingCall> {
    let rows = match site.stage.info().scope {
        Scope::Model => LogitRows::All,
        _ => LogitRows::Last,
    };
    let mut capture = CallCapture::new(backend, site);
    let calls = Calls { prompt, chunk: prompt.len(), decode: 0, forced: &[] };
    let mut runner = Runner::new(&mut capture, model, calls, rows)?;
    runner.step(&mut capture)?;
    let captured = capture.captured.take();
    captured.ok_or_else(|| Error::usage(format!("{site}: the run does not have it")))?.into_case()
}

/// The largest ratio among the elements of the target.
fn worst(case: &FailingCall, judged: &RerunCheck, target: &Target) -> (f64, Option<usize>) {
    if target.position.is_none() && target.expert.is_none() {
        return (judged.ratio.max, judged.ratio.index);
    }
    let (mut most, mut index) = (0.0, None);
    let error = crate::diff::run::verdicts::error(&judged.output, &judged.exact);
    for (i, (error, floor)) in error.iter().zip(&judged.floor).enumerate() {
        let place = case.place(i);
        let expert = target.expert.is_none_or(|e| place.expert == Some(e));
        if !expert || target.position.is_some_and(|p| place.position != p) {
            continue;
        }
        let ratio = crate::formula::floor::injected_ratio(&[*error], &[*floor]).max;
        if index.is_none() || ratio > most {
            (most, index) = (ratio, Some(i));
        }
    }
    (most, index)
}

/// What the capture took.
struct Captured {
    at: At,
    params: OpParams,
    inputs: Vec<HostTensor>,
    weight: Option<Arc<Weight>>,
    output: HostTensor,
    /// The router's choice, for stages with a row for each chosen expert.
    ids: Option<HostTensor>,
}

impl Captured {
    fn into_case(self) -> Result<FailingCall> {
        let shape = &self.output.shape;
        let by_head = matches!(self.params, OpParams::AttnScores { .. } | OpParams::AttnProbs { .. });
        let positions = shape.get(usize::from(by_head)).copied().unwrap_or(0);
        let row = |t: usize| {
            let slots = self.ids.iter().flat_map(|ids| {
                let k = ids.cols();
                ids.ids()[t * k..(t + 1) * k].iter().enumerate().map(|(slot, expert)| Slot { slot, expert: *expert })
            });
            KeptRow { position: self.at.start + t, slots: slots.collect() }
        };
        let stack = matches!(self.params, OpParams::ExpertMatMul { .. });
        let blocks = |w: &Arc<Weight>| w.cols.div_ceil(w.ty.block_len().max(32));
        let kept = Provenance {
            rows: (0..positions).map(row).collect(),
            columns: (0..self.output.cols()).collect(),
            heads: (0..if by_head { shape[0] } else { 0 }).collect(),
            experts: (0..self.weight.as_ref().filter(|_| stack).map_or(0, |w| w.experts)).collect(),
            blocks: (0..self.weight.as_ref().map_or(0, blocks)).collect(),
        };
        FailingCall::new(self.at.site, self.params, self.inputs, self.weight, kept)
    }
}

/// A backend that takes the operands and the result of one stage out of what another backend runs.
struct CallCapture<'b, B: Backend> {
    inner: &'b mut B,
    site: Site,
    /// Whether this call is looked at.
    awake: bool,
    captured: Option<Captured>,
    /// What was stored in the caches that the site reads, by position, [S, n], and by the stage that it is of.
    stored: BTreeMap<Stage, HostTensor>,
    ids: Option<B::Tensor>,
}

impl<'b, B: Backend> CallCapture<'b, B> {
    fn new(inner: &'b mut B, site: Site) -> Self {
        Self { inner, site, awake: true, captured: None, stored: BTreeMap::new(), ids: None }
    }

    /// Follows what is stored in the caches that the site reads: of x the columns that the cache has.
    fn store(&mut self, site: Site, cache: &B::Tensor, x: &B::Tensor, start: usize) -> Result<()> {
        let target = self.site.stage;
        let mut caches = (0..target.info().inputs.len()).filter_map(|n| target.cached(n));
        let read = caches.any(|stages| stages.contains(&site.stage));
        if site.layer != self.site.layer || !read {
            return Ok(());
        }
        let cols = self.inner.shape(cache).last().copied().unwrap_or(0);
        let mut x = self.inner.read(x)?;
        if x.cols() > cols {
            x = x.take(1, &(0..cols).collect::<Vec<_>>());
        }
        let stored = self.stored.entry(site.stage).or_insert_with(|| HostTensor {
            shape: vec![0, cols],
            data: match x.data {
                Data::F64(_) => Data::F64(Vec::new()),
                _ => Data::F32(Vec::new()),
            },
        });
        if stored.shape[0] != start {
            let have = stored.shape[0];
            return Err(Error::cannot_run(format!("{site}: stored at position {start}, {have} are there")));
        }
        match (&mut stored.data, &x.data) {
            (Data::F32(all), Data::F32(new)) => all.extend(new),
            (Data::F64(all), Data::F64(new)) => all.extend(new),
            (_, _) => return Err(Error::cannot_run(format!("{site}: the cache changes its type to {}", x.dtype()))),
        }
        stored.shape[0] += x.shape[0];
        Ok(())
    }

    /// Reads the operands of `op`, runs it, reads the result.
    fn capture(&mut self, at: At, op: &Op<'_, B::Tensor>, params: OpParams) -> Result<B::Tensor> {
        let mut inputs = Vec::new();
        for (i, tensor) in op.inputs().into_iter().enumerate() {
            inputs.push(match self.site.stage.cached(i) {
                Some(stages) => stages.iter().find_map(|stage| self.stored.get(stage).cloned()).ok_or_else(|| {
                    Error::cannot_run(format!("{}: no {} was stored before it", self.site, stages[0]))
                })?,
                None => self.inner.read(tensor)?,
            });
        }
        if let Op::Embed { tokens, .. } = op {
            inputs.push(HostTensor::u32(&[tokens.len()], tokens.to_vec()));
        }
        let result = self.inner.run(at, op)?;
        let output = self.inner.read(&result)?;
        let ids = match &self.ids {
            Some(ids) if has_expert_rows(self.site.stage) => Some(self.inner.read(ids)?),
            _ => None,
        };
        self.captured = Some(Captured { at, params, inputs, weight: op.weight().cloned(), output, ids });
        Ok(result)
    }
}

impl<B: Backend> Backend for CallCapture<'_, B> {
    pass_on!(inner: B);

    fn run(&mut self, at: At, op: &Op<'_, B::Tensor>) -> Result<B::Tensor> {
        if let Op::Store { cache, x, start } = op {
            self.store(at.site, cache, x, *start)?;
        }
        match op.makes_stage().then(|| op.params()) {
            Some(params) if self.awake && at.site == self.site => self.capture(at, op, params),
            _ => {
                let result = self.inner.run(at, op)?;
                if at.site == (Site { layer: self.site.layer, stage: Stage::RouterIds }) {
                    self.ids = Some(result.clone());
                }
                Ok(result)
            }
        }
    }
}
