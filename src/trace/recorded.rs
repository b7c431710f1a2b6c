//! A saved trace as one side of a comparison.
//!
//! - [`Recorded`] is a backend that computes nothing: it answers each operation with what the trace has for that stage at
//!   those positions, so a comparison with a recording is the same code as one between two backends.
//! - It shows what was saved, of all stages or some, at all positions or some ([`Backend::shown`]); what lies between is judged as
//!   segments. It refuses before the run what it could not answer during it: another model, shapes that do not fit.

use std::rc::Rc;
use std::sync::Arc;

use crate::backend::{Backend, BackendInfo, Contract, HostTickets, Need, Order, Shown, Ticket};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::op::{
    At, Data, Dim, Elements, HostTensor, LayerLayout, Op, OpKind, Operand, STAGES, Scope, Site, Stage, Weight,
};
use crate::trace::store::{Stored, Trace, op_name, stage_key};

/// A trace directory that answers like a backend.
pub struct Recorded {
    trace: Trace,
    tickets: HostTickets,
    /// A directory that is removed with it.
    _dir: Option<tempfile::TempDir>,
}

impl Recorded {
    /// A recording of a run of `model`: of every stage, or of some stages and positions.
    ///
    /// # Errors
    /// A trace of another model, one of no stage of it, one of the rows of some experts only, or one that does not say its tokens.
    pub fn new(trace: Trace, model: &Model) -> Result<Self> {
        let dir = trace.dir().display().to_string();
        let run = &trace.manifest().run;
        let ours = model.gguf.fingerprint();
        if !run.model.fingerprint.is_empty() && run.model.fingerprint != ours {
            return Err(Error::input(format!(
                "{dir}: a trace of {} ({}…), not of {} ({}…)",
                run.model.name,
                &run.model.fingerprint[..run.model.fingerprint.len().min(12)],
                model.config.name,
                &ours[..12]
            )));
        }
        if run.tokens.is_empty() {
            return Err(Error::input(format!(
                "{dir}: does not say which tokens were run; a side of a comparison needs them (`import` with --tokens)"
            )));
        }
        let sites = sites(model);
        if !trace.tensors().any(|(site, _)| sites.contains(&site)) {
            return Err(Error::input(format!("{dir}: has the values of no stage of {}", model.config.name)));
        }
        for (site, stored) in trace.tensors() {
            if stored.limited {
                return Err(Error::input(format!(
                    "{dir}: {} was saved for some experts only; a side of a comparison shows the rows of all experts or none",
                    site.key()
                )));
            }
            if !sites.contains(&site) {
                return Err(Error::input(format!("{dir}: {}: {} has no such stage", site.key(), model.config.name)));
            }
            let expected = width(site, model, run.tokens.len());
            let axis = site.stage.position_axis();
            let found = stored.shape.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, n)| *n);
            if !found.clone().eq(expected.iter().copied()) {
                return Err(Error::input(format!(
                    "{dir}: {} has {:?} values for each position where {} has {expected:?}",
                    site.key(),
                    found.collect::<Vec<_>>(),
                    model.config.name
                )));
            }
        }
        let trace = trace.of_experts(model.config.moe.as_ref().map_or(0, |moe| moe.experts));
        for site in sites.iter().filter(|site| site.stage.is_ids()) {
            trace.tensor(*site)?; // whose ids are those of experts, or it says which is not
        }
        Ok(Self { trace, tickets: HostTickets::default(), _dir: None })
    }

    /// As [`Recorded::new`], of a trace in a directory that is removed when it is done with.
    ///
    /// # Errors
    /// As [`Recorded::new`].
    pub fn kept(trace: Trace, model: &Model, dir: tempfile::TempDir) -> Result<Self> {
        Ok(Self { _dir: Some(dir), ..Self::new(trace, model)? })
    }

    /// How many of the model's stages it shows, at all positions or some, and how many there are.
    pub fn coverage(&self, model: &Model) -> (usize, usize) {
        let sites = sites(model);
        (sites.iter().filter(|site| self.trace.stored(**site).is_some()).count(), sites.len())
    }

    /// The stage's values in a call of `rows` positions; zeros at positions that it does not show.
    fn recorded(&self, At { site, start }: At, rows: usize, stored: &Stored) -> Result<HostTensor> {
        let whole = self
            .trace
            .tensor(site)?
            .ok_or_else(|| Error::input(format!("{}: {} is not there", self.trace.dir().display(), site.key())))?;
        let axis = site.stage.position_axis();
        let (heads, have) = (whole.shape[..axis].iter().product::<usize>(), whole.shape[axis]);
        let cols = whole.len() / (heads * have).max(1);
        let mut shape = whole.shape.clone();
        shape[axis] = rows;
        let mut kept = cols;
        if site.stage.is_attention_matrix() {
            kept = (start + rows).min(cols);
            shape[2] = kept;
        }
        let all = stored.positions.count() == self.trace.manifest().run.tokens.len();
        let place = |position: usize| match all {
            true => Some(position),
            false => stored.positions.iter().position(|p| p == position),
        };
        let places: Vec<Option<usize>> = (start..start + rows).map(place).collect();
        // A row that is not there is any row's values for now, and zeros below.
        let row = |h: usize, place: &Option<usize>| (h * have + place.unwrap_or(0)) * cols;
        let places = &places;
        let mut values = whole.gather(shape, kept, (0..heads).flat_map(|h| places.iter().map(move |p| row(h, p))));
        for (t, place) in places.iter().enumerate().filter(|(_, place)| place.is_none()) {
            debug_assert!(place.is_none());
            for h in 0..heads {
                let at = (h * rows + t) * kept..(h * rows + t + 1) * kept;
                match &mut values.data {
                    Data::F32(v) => v[at].fill(0.0),
                    Data::F64(v) => v[at].fill(0.0),
                    Data::U32(v) => v[at].fill(0),
                }
            }
        }
        Ok(values)
    }
}

/// The lengths of a stage's axes besides that of its positions, in a run of `tokens` positions.
fn width(Site { layer, stage }: Site, model: &Model, tokens: usize) -> Vec<usize> {
    let c = &model.config;
    let moe = c.moe.as_ref();
    let length = |dim: &Dim| match dim {
        Dim::T => None,
        Dim::S => Some(tokens),
        Dim::H => Some(c.hidden),
        Dim::Heads => Some(c.heads),
        Dim::Q => Some(c.q_width()),
        Dim::Kv => Some(c.kv_width()),
        Dim::Context => Some(c.context_width()),
        Dim::QRank => c.mla.and_then(|mla| mla.q_rank),
        Dim::Absorbed => c.mla.map(|mla| c.heads * mla.row()),
        Dim::Latent => c.mla.map(|mla| c.heads * mla.rank),
        Dim::E => moe.map(|m| m.experts),
        Dim::K => moe.map(|m| m.used),
        Dim::F => Some(c.ffn_of(layer.unwrap_or(0) as usize)),
        Dim::V => Some(c.vocab),
        Dim::Shared => moe.map(|m| m.shared),
        Dim::One => Some(1),
        Dim::Channels => c.linear.map(|linear| linear.channels()),
        Dim::KeyHeads => c.linear.map(|linear| linear.key_width()),
        Dim::ValueHeads => c.linear.map(|linear| linear.value_width()),
        Dim::Values => c.linear.map(|linear| linear.value_heads),
    };
    stage.info().shape.iter().filter_map(length).collect()
}

/// Every stage of `model`, in order of execution.
pub fn sites(model: &Model) -> Vec<Site> {
    sites_of(model.config.layers, model.config.layout())
}

/// Every stage of a model of so many layers of one layout, in order of execution.
pub fn sites_of(layers_of_it: usize, layout: LayerLayout) -> Vec<Site> {
    let mut sites = Vec::new();
    let of_layer = |n: u32| {
        let here = layout.of(Some(n));
        let stages = STAGES.iter().filter(move |s| s.scope != Scope::Model && s.scope.occurs(here));
        stages.map(move |s| Site { layer: Some(n), stage: s.stage })
    };
    let model_stages: Vec<_> = STAGES.iter().filter(|s| s.scope == Scope::Model).map(|s| s.stage).collect();
    let (before, after) = model_stages.split_at(1); // the embedding comes before the layers
    sites.extend(before.iter().map(|s| Site::model(*s)));
    sites.extend((0..layers_of_it as u32).flat_map(of_layer));
    sites.extend(after.iter().map(|s| Site::model(*s)));
    sites
}

/// A value of the recording, or what is known of one that it does not show.
pub struct Answer {
    shape: Vec<usize>,
    is_ids: bool,
    values: Option<HostTensor>,
}

impl Backend for Recorded {
    type Tensor = Rc<Answer>;

    fn info(&self) -> BackendInfo {
        self.trace.manifest().run.backend.clone()
    }

    /// What the run promised; of a trace that does not say, the loosest f32.
    fn contract(&self, op: OpKind) -> Contract {
        let promised = self.trace.manifest().run.contracts.get(&op_name(op));
        promised.copied().unwrap_or(Contract::wgsl_f32(Order::Sequential))
    }
    fn stage_contract(&self, stage: Stage) -> Option<Contract> {
        self.trace.manifest().run.contracts.get(&stage_key(stage)).copied()
    }
    fn unsupported(&self, _: &[Need]) -> Vec<String> {
        Vec::new()
    }
    fn prepare(&mut self, _: &[Arc<Weight>], _: &mut dyn FnMut(u64)) -> Result<()> {
        Ok(())
    }
    fn shown(&self, At { site, start }: At, rows: usize) -> Shown {
        let Some(stored) = self.trace.stored(site) else { return Shown::Nothing };
        let flags: Vec<bool> = (start..start + rows).map(|position| stored.positions.contains(position)).collect();
        match (flags.iter().all(|shown| *shown), flags.iter().any(|shown| *shown)) {
            (true, _) => Shown::All,
            (false, true) => Shown::Rows(flags),
            (false, false) => Shown::Nothing,
        }
    }
    fn alloc(&mut self, shape: &[usize]) -> Result<Rc<Answer>> {
        Ok(Rc::new(Answer { shape: shape.to_vec(), is_ids: false, values: None }))
    }
    fn upload(&mut self, values: &HostTensor) -> Result<Rc<Answer>> {
        Ok(Rc::new(Answer {
            shape: values.shape.clone(),
            is_ids: values.dtype() == "u32",
            values: Some(values.clone()),
        }))
    }
    fn shape(&self, tensor: &Rc<Answer>) -> Vec<usize> {
        tensor.shape.clone()
    }

    fn run(&mut self, at: At, op: &Op<'_, Rc<Answer>>) -> Result<Rc<Answer>> {
        match op {
            Op::Store { cache, .. } => return Ok(cache.clone()),
            Op::Rows { x, start, rows } => {
                let values = x.values.as_ref().map(|x| x.take(0, &Vec::from_iter(*start..start + rows)));
                let shape = [&[*rows], &x.shape[1..]].concat();
                return Ok(Rc::new(Answer { shape, is_ids: x.is_ids, values }));
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
            }
            _ => {}
        }
        let elements = |t: &Answer| if t.is_ids { Elements::Ids(None) } else { Elements::Numbers };
        let shape = op.check(at.site, |t| Operand { shape: &t.shape, elements: elements(t) })?;
        let rows = shape[at.site.stage.position_axis()];
        let values = match self.trace.stored(at.site) {
            Some(stored) if self.shown(at, rows) != Shown::Nothing => Some(self.recorded(at, rows, stored)?),
            _ => None,
        };
        let is_ids = at.site.stage.is_ids();
        Ok(Rc::new(Answer { shape: values.as_ref().map_or(shape, |v| v.shape.clone()), values, is_ids }))
    }
    fn fetch(&mut self, tensor: &Rc<Answer>) -> Result<Ticket> {
        let values = tensor.values.clone();
        let values = values.ok_or_else(|| Error::usage("a value that a recording does not show was asked for"))?;
        Ok(self.tickets.put(values))
    }
    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.tickets.take(ticket)
    }
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}
