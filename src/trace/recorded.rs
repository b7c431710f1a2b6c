//! A saved trace as one side of a comparison.
//!
//! - [`Recorded`] is a backend that computes nothing: it answers each operation with what the trace has for that stage at
//!   those positions, so a comparison with a recording is the same code as one between two backends.
//! - It refuses before the run what it could not answer during it: a stage, a position or an expert that was not saved.

use std::rc::Rc;
use std::sync::Arc;

use crate::backend::{Backend, BackendInfo, Contract, HostTickets, Need, Order, Ticket};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::op::{At, HostTensor, Op, OpKind, STAGES, Scope, Site, Weight};
use crate::trace::store::{Trace, op_name};

/// A trace directory that answers like a backend.
pub struct Recorded {
    trace: Trace,
    tickets: HostTickets,
}

impl Recorded {
    /// A recording of a whole run of `model`: every stage, position and expert.
    ///
    /// # Errors
    /// A trace of another model, or one that lacks a stage, positions or experts.
    pub fn new(trace: Trace, model: &Model) -> Result<Self> {
        let dir = trace.dir().display().to_string();
        let of = &trace.manifest().run.model;
        let ours = model.gguf.fingerprint();
        if !of.fingerprint.is_empty() && of.fingerprint != ours {
            return Err(Error::input(format!(
                "{dir}: a trace of {} ({}…), not of {} ({}…)",
                of.name,
                &of.fingerprint[..of.fingerprint.len().min(12)],
                model.config.name,
                &ours[..12]
            )));
        }
        let positions = trace.manifest().run.tokens.len();
        let mut lacking = Vec::new();
        for site in sites(model) {
            match trace.stored(site) {
                None => lacking.push(site.key()),
                Some(s) if s.limited => lacking.push(format!("{} (saved for some experts only)", site.key())),
                Some(s) if s.positions.count() != positions => {
                    lacking.push(format!("{} (saved at positions {} of {positions})", site.key(), s.positions));
                }
                Some(_) => {}
            }
        }
        if !lacking.is_empty() {
            let shown = lacking.len().min(4);
            let more = lacking.len() - shown;
            return Err(Error::input(format!(
                "{dir}: a side of a comparison needs every stage (`trace --save all`); {}{} not there",
                lacking[..shown].join(", "),
                if more > 0 { format!(" and {more} more are") } else { " is".into() }
            )));
        }
        Ok(Self { trace, tickets: HostTickets::default() })
    }

    /// The stage's values in a call of `rows` positions.
    fn recorded(&self, At { site, start }: At, rows: usize) -> Result<HostTensor> {
        let whole = self
            .trace
            .tensor(site)?
            .ok_or_else(|| Error::input(format!("{}: {} is not there", self.trace.dir().display(), site.key())))?;
        Ok(positions(&whole, site, start, start + rows))
    }
}

/// Every stage of `model`, in order of execution.
pub fn sites(model: &Model) -> Vec<Site> {
    let moe = model.config.moe.is_some();
    let mut sites = Vec::new();
    let layers = STAGES.iter().filter(|s| s.scope != Scope::Model && s.scope.occurs(moe));
    let layers: Vec<_> = layers.map(|s| s.stage).collect();
    let model_stages: Vec<_> = STAGES.iter().filter(|s| s.scope == Scope::Model).map(|s| s.stage).collect();
    let (before, after) = model_stages.split_at(1); // the embedding comes before the layers
    sites.extend(before.iter().map(|s| Site::model(*s)));
    sites.extend((0..model.config.layers).flat_map(|n| layers.iter().map(move |s| Site::layer(n, *s))));
    sites.extend(after.iter().map(|s| Site::model(*s)));
    sites
}

/// Positions from..to of a stage's values; of attention matrices [heads, T, S] also the first `to` keys.
fn positions(whole: &HostTensor, site: Site, from: usize, to: usize) -> HostTensor {
    let axis = site.stage.position_axis();
    let (heads, rows) = (whole.shape[..axis].iter().product::<usize>(), whole.shape[axis]);
    let cols = whole.len() / (heads * rows).max(1);
    let mut shape = whole.shape.clone();
    shape[axis] = to - from;
    let mut kept = cols;
    if site.stage.is_attention_matrix() {
        kept = to.min(cols);
        shape[2] = kept;
    }
    whole.gather(shape, kept, (0..heads).flat_map(|h| (from..to).map(move |t| (h * rows + t) * cols)))
}

impl Backend for Recorded {
    type Tensor = Rc<HostTensor>;

    fn info(&self) -> BackendInfo {
        self.trace.manifest().run.backend.clone()
    }

    /// What the run promised; of a trace that does not say, the loosest f32.
    fn contract(&self, op: OpKind) -> Contract {
        let promised = self.trace.manifest().run.contracts.get(&op_name(op));
        promised.copied().unwrap_or(Contract::wgsl_f32(Order::Sequential))
    }
    fn unsupported(&self, _: &[Need]) -> Vec<String> {
        Vec::new()
    }
    fn prepare(&mut self, _: &[Arc<Weight>], _: &mut dyn FnMut(u64)) -> Result<()> {
        Ok(())
    }
    fn alloc(&mut self, shape: &[usize]) -> Result<Rc<HostTensor>> {
        Ok(Rc::new(HostTensor::f32(shape, vec![0.0; shape.iter().product()])))
    }
    fn upload(&mut self, values: &HostTensor) -> Result<Rc<HostTensor>> {
        Ok(Rc::new(values.clone()))
    }
    fn shape(&self, tensor: &Rc<HostTensor>) -> Vec<usize> {
        tensor.shape.clone()
    }

    fn run(&mut self, at: At, op: &Op<'_, Rc<HostTensor>>) -> Result<Rc<HostTensor>> {
        let rows = match op {
            Op::Store { cache, .. } => return Ok(cache.clone()),
            Op::Rows { x, start, rows } => {
                return Ok(Rc::new(x.take(0, &Vec::from_iter(*start..start + rows))));
            }
            Op::Embed { tokens, .. } => {
                let recorded = self.trace.manifest().run.tokens.get(at.start..at.start + tokens.len());
                if recorded != Some(tokens) {
                    return Err(Error::input(format!(
                        "{}: was recorded with other tokens at positions {} to {}",
                        self.trace.dir().display(),
                        at.start,
                        at.start + tokens.len() - 1
                    )));
                }
                tokens.len()
            }
            // [heads, T, S]
            Op::AttnProbs { scores: x, .. } | Op::AttnContext { probs: x, .. } => x.shape[1],
            // [T, …]
            _ => op.inputs()[0].shape[0],
        };
        self.recorded(at, rows).map(Rc::new)
    }
    fn fetch(&mut self, tensor: &Rc<HostTensor>) -> Result<Ticket> {
        let values = (**tensor).clone();
        Ok(self.tickets.put(values))
    }
    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.tickets.take(ticket)
    }
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}
