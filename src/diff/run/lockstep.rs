//! Two backends, one forward pass.
//!
//! - [`Lockstep`] is a backend whose tensors are *lanes*: one value of the model as each party has it. The model runs over
//!   it as over any other backend, so both sides meet at every stage.
//! - For a stage with reference c, subject g and inputs x_c, x_g it computes c(x_c) and g(x_g), the reference's replay
//!   c(x_g) on the subject's own inputs, and, with the oracle, its o(x_c) and o(x_g). From these five follow the
//!   total error g(x_g) − c(x_c), the injected g(x_g) − c(x_g), the propagated c(x_g) − c(x_c), and which side is wrong.
//! - A value that a side does not show is the oracle's, with what is not known of it carried by draws ([`crate::diff::segment`]): the side's
//!   next shown value is then held against the whole segment.
//! - The KV cache that a replay reads is filled from the subject's *stage outputs* (k_rope, v_proj), not from the subject's
//!   cache: an entry that the subject stores wrongly is then its own error at the next stage that reads it.
//! - Expert ids that name no expert of the layer would end the run at the next stage, and with it the report of the fault. A side
//!   that chose such ids goes on with the other side's; [`Observation::next`] says so to the observer.
//! - A lane holds only what the rest of its layer still needs; handles are dropped as the model drops them.
//! - Where only some stages are asked about, the others are run by both sides and no more: neither replayed, nor judged. What an
//!   asked one needs of them is read when it does; in its own layer all are read, as its cause may lie in any of them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::backend::{
    AnyBackend, AnyTensor, Backend, BackendInfo, Contract, HostTickets, NamedContract, Need, Precision, Shown, Ticket,
};
use crate::diff::segment::{self, Draws};
use crate::error::{Error, Result};
use crate::formula::exact::exact;
use crate::formula::floor::floor_of;
use crate::formula::routing::undecided;
use crate::op::{At, Data, HostTensor, Op, OpKind, Site, Stage, Weight, unravel};
use crate::trace::select::Selected;

/// One value of the model, as each party has it.
pub struct Lane {
    /// c(x_c), on the reference.
    reference: AnyTensor,
    /// g(x_g), on the subject.
    subject: AnyTensor,
    /// The subject's value, uploaded to the reference: an operand for replays. Empty until one needs it.
    replay: RefCell<Option<AnyTensor>>,
    /// Both sides' values on the host: the reference's, the subject's. Empty until they are needed; behind a cell because a KV cache
    /// is written in place.
    host: RefCell<Option<[Rc<HostTensor>; 2]>>,
    /// What is not known of each side's value; `None` where it is shown.
    draws: RefCell<[Option<Draws>; 2]>,
    /// The number among the stages run of the one that made it, where the subject's own value was read then.
    made: Option<usize>,
}

/// An operand of the subject that no longer holds what was read when it was made: something has written over it.
pub struct Overwritten {
    /// Its number among the operation's inputs.
    pub operand: usize,
    /// The stage that made it.
    pub site: Site,
    /// What it holds.
    pub values: Rc<HostTensor>,
    /// Elements that are others, and the first.
    pub elements: usize,
    pub first: Vec<usize>,
    /// The stages that have been run since, one of which has written there.
    pub since: Vec<Site>,
}

impl Lane {
    /// One side's values, which [`Lockstep::look`] has read.
    fn host(&self, side: usize) -> Rc<HostTensor> {
        self.host.borrow().as_ref().expect("operands are read before they are looked at")[side].clone()
    }
    /// The operand of a replay, which [`Lockstep::look`] has uploaded.
    fn replay(&self) -> AnyTensor {
        self.replay.borrow().clone().expect("operands are uploaded before they are replayed")
    }
}

/// The oracle on one side's inputs.
#[derive(Clone)]
pub struct OracleResult {
    /// o(x), operands rounded as the side's contract says.
    pub value: Rc<HostTensor>,
    /// How far each element may be off because inputs are not shown; `None` where all are.
    pub carried: Option<Rc<Vec<f64>>>,
    /// The floor of the operation itself, where the side does not show the result.
    pub floor: Rc<Vec<f64>>,
    /// Expert ids that rounding could have led to instead: the row, and its ids.
    pub alternatives: Vec<(usize, Vec<u32>)>,
}

/// Everything that is known about one stage of one call.
pub struct Observation<'a> {
    /// The stage, and the position of its first row.
    pub at: At,
    /// The operation on the reference's own inputs, and on the subject's own inputs.
    pub op_reference: Op<'a, Rc<HostTensor>>,
    pub op_subject: Op<'a, Rc<HostTensor>>,
    /// How much each side shows of the result.
    pub shown: [Shown; 2],
    /// c(x_c), and o(x_c) where it is not shown.
    pub reference: Rc<HostTensor>,
    /// g(x_g), and o(x_g) where it is not shown.
    pub subject: Rc<HostTensor>,
    /// c(x_g); the oracle's o(x_g) where the reference cannot replay.
    pub replayed: Rc<HostTensor>,
    /// o(x_c) and o(x_g).
    pub exact: Option<[OracleResult; 2]>,
    /// What the rest of the run computes with, the reference and the subject: their results, unless expert ids were put in
    /// the place of theirs.
    pub next: [Rc<HostTensor>; 2],
    /// Reads the subject's operands again: those that are others by now. The run goes on with what they hold.
    pub reread: &'a mut dyn FnMut() -> Result<Vec<Overwritten>>,
}

/// Receives each stage as it is made.
pub trait PairObserver {
    /// A stage is about to be run.
    fn begin(&mut self, _at: At) {}
    /// A stage that is asked about. False ends the run.
    fn observe(&mut self, stage: Observation<'_>) -> Result<bool>;
    /// A stage that is not asked about, in a layer of which another is, or where experts are chosen: what the rest of the run
    /// computes with, the reference and the subject, and whether ids that name no expert were replaced in it.
    fn pass(&mut self, _at: At, _next: &[Rc<HostTensor>; 2], _replaced: bool) {}
}

/// What may be asked of a lockstep run.
#[derive(Clone, Debug, Default)]
pub struct LockstepOptions {
    /// The stages that are asked about; all, unless said.
    pub select: Option<Selected>,
    /// Give the subject the reference's expert ids, so that what remains is not routing.
    pub force_routing: bool,
    /// The reference is a recording: replays are the oracle's.
    pub reference_is_recorded: bool,
}

/// Both backends as one; see the module's documentation.
pub struct Lockstep<'s> {
    reference: &'s mut AnyBackend,
    subject: &'s mut AnyBackend,
    /// The contracts of both sides, where the oracle takes part.
    judged_by: Option<&'s [NamedContract; 2]>,
    options: LockstepOptions,
    observer: &'s mut dyn PairObserver,
    tickets: HostTickets,
    /// Every stage that was run, in order.
    ran: Vec<Site>,
    stopped: bool,
}

impl<'s> Lockstep<'s> {
    /// `judged_by` are the contracts that the oracle holds the reference and the subject to; `None` leaves it out.
    ///
    /// # Panics
    /// If the reference is recorded and there is no oracle to replay in its place.
    pub fn new(
        reference: &'s mut AnyBackend,
        subject: &'s mut AnyBackend,
        judged_by: Option<&'s [NamedContract; 2]>,
        options: LockstepOptions,
        observer: &'s mut dyn PairObserver,
    ) -> Self {
        assert!(judged_by.is_some() || !options.reference_is_recorded, "a recorded reference cannot replay");
        Self {
            reference,
            subject,
            judged_by,
            options,
            observer,
            tickets: HostTickets::default(),
            ran: Vec::new(),
            stopped: false,
        }
    }

    /// Whether the observer ended the run, which then ended in an error that nobody needs to read.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Whether a stage is asked about.
    fn is_asked(&self, site: Site) -> bool {
        self.options.select.as_ref().is_none_or(|select| select.wants(site))
    }

    /// Whether a stage's values are read whoever needs them: where a stage of its layer is asked about, or one of the layer that it
    /// is the input of.
    fn is_read(&self, site: Site) -> bool {
        let feeds = |asked: Site| match site.stage {
            Stage::Embedding => asked.layer == Some(0),
            Stage::LayerOut => asked.layer == site.layer.map(|n| n + 1),
            _ => false,
        };
        let select = self.options.select.as_ref();
        select.is_none_or(|select| select.sites().any(|asked| asked.layer == site.layer || feeds(asked)))
    }

    /// Sees to it that the operands' values are on the host, and the subject's on the reference for a replay.
    fn look(&mut self, op: &Op<'_, Rc<Lane>>) -> Result<()> {
        for lane in op.inputs() {
            if lane.host.borrow().is_none() {
                let read = [self.reference.read(&lane.reference)?, self.subject.read(&lane.subject)?];
                *lane.host.borrow_mut() = Some(read.map(Rc::new));
            }
            if lane.replay.borrow().is_none() && !self.options.reference_is_recorded {
                *lane.replay.borrow_mut() = Some(self.reference.upload(&lane.host(1))?);
            }
        }
        Ok(())
    }

    /// A lane from values that both sides have on the host.
    fn lane(
        &mut self,
        reference: AnyTensor,
        subject: AnyTensor,
        host: [Rc<HostTensor>; 2],
        draws: [Option<Draws>; 2],
        made: Option<usize>,
    ) -> Result<Rc<Lane>> {
        let replay = RefCell::new(Some(self.reference.upload(&host[1])?));
        let (host, draws) = (RefCell::new(Some(host)), RefCell::new(draws));
        Ok(Rc::new(Lane { reference, subject, replay, host, draws, made }))
    }

    /// The oracle on the inputs of side `i`, and the draws of a result that is hidden.
    fn oracle(
        &self,
        i: usize,
        at: At,
        op: &Op<'_, Rc<Lane>>,
        shown: &Shown,
    ) -> Result<Option<(OracleResult, Option<Draws>)>> {
        let Some(contracts) = self.judged_by else { return Ok(None) };
        let contract = contracts[i].at(at.site.stage, op.kind());
        let host = op.try_map(|l| Ok(l.host(i)))?;
        let of_operands: Vec<Option<Draws>> = op.inputs().iter().map(|l| l.draws.borrow()[i].clone()).collect();
        let by_reference = host.try_map(|t| Ok(&**t))?;
        let value = Rc::new(exact(&by_reference, contract)?);
        let drawn = segment::drawn(&host, &of_operands, contract)?;
        let mut result =
            OracleResult { value: value.clone(), carried: None, floor: Rc::default(), alternatives: Vec::new() };
        if at.site.stage.is_ids() {
            // The choice is held while the rest is drawn; what else it could have been is tried where it matters.
            if *shown != Shown::All {
                let mut others = drawn.unwrap_or_default();
                others.extend(undecided(&by_reference, contract, &value));
                result.alternatives = segment::alternatives(&value, &others);
                result.alternatives.retain(|(row, _)| !shown.row(*row));
            }
            return Ok(Some((result, None)));
        }
        result.carried = drawn.as_ref().map(|drawn| Rc::new(segment::carried(&value, drawn)));
        if *shown == Shown::All {
            return Ok(Some((result, None)));
        }
        result.floor = Rc::new(floor_of(&by_reference, contract, &value)?);
        let draws = segment::disturbed(at, &value, drawn, &result.floor, contract, shown);
        Ok(Some((result, Some(draws))))
    }

    /// An operation that makes a stage: all five runs, observed.
    fn stage(&mut self, at: At, op: &Op<'_, Rc<Lane>>) -> Result<Rc<Lane>> {
        let stage = at.site.stage;
        self.look(op)?;
        let host = |i: usize| op.try_map(|l| Ok(l.host(i)));
        let rows = host(1)?.check(at.site, |t| t.operand())?[stage.position_axis()];
        let shown = [self.reference.shown(at, rows), self.subject.shown(at, rows)];
        if self.judged_by.is_none() && shown.iter().any(|shown| *shown != Shown::All) {
            return Err(Error::usage(format!(
                "{}: one of the sides does not show all of it, and without the oracle nothing can stand in for what it hides",
                at.site
            )));
        }
        // The subject goes first: a GPU works on it while the CPU does the reference's share.
        let subject = self.subject.run(at, &op.try_map(|l| Ok(l.subject.clone()))?)?;
        let ticket = match shown[1] {
            Shown::Nothing => None,
            _ => Some(self.subject.fetch(&subject)?),
        };
        let reference = self.reference.run(at, &op.try_map(|l| Ok(l.reference.clone()))?)?;
        let oracle = match (self.oracle(0, at, op, &shown[0])?, self.oracle(1, at, op, &shown[1])?) {
            (Some(reference), Some(subject)) => Some([reference, subject]),
            _ => None,
        };
        let replayed = if self.options.reference_is_recorded {
            let of_subject = &oracle.as_ref().expect("checked when made")[1].0.value;
            let contracts = self.judged_by.expect("checked when made").each_ref().map(|c| c.at(stage, op.kind()));
            let host = host(1)?;
            exact_replay(&host.try_map(|t| Ok(&**t))?, of_subject, contracts)?.0
        } else {
            let value = self.reference.run(at, &op.try_map(|l| Ok(l.replay()))?)?;
            Rc::new(self.reference.read(&value)?)
        };
        let read_reference = match shown[0] {
            Shown::Nothing => None,
            _ => Some(self.reference.read(&reference)?),
        };
        let read_subject = ticket.map(|ticket| self.subject.take(ticket)).transpose()?;
        let (exact, draws) = match oracle {
            Some([(c, c_draws), (g, g_draws)]) => (Some([c, g]), [c_draws, g_draws]),
            None => (None, [None, None]),
        };
        let side = |i: usize, read: Option<HostTensor>| match (&exact, read) {
            (Some(exact), read) if shown[i] == Shown::All => Rc::new(read.unwrap_or_else(|| (*exact[i].value).clone())),
            (Some(exact), read) => {
                let wide = self.judged_by.is_some_and(|c| c[i].at(stage, op.kind()).activations == Precision::F64);
                let hidden = if wide { exact[i].value.clone() } else { segment::to_f32(&exact[i].value) };
                segment::mixed(stage, &shown[i], read, &hidden)
            }
            (None, read) => Rc::new(read.expect("without the oracle everything is shown")),
        };
        let results = [side(0, read_reference), side(1, read_subject)];
        let [host_reference, host_subject] = results.clone();
        let next = match op {
            Op::RouterTopK { probs, .. } => self.chosen(probs.host(0).cols(), &results),
            _ => results,
        };

        let made = (shown[1] == Shown::All).then(|| self.ran.len() - 1);
        let (backend, ran) = (&mut *self.subject, &self.ran);
        let mut reread = || overwritten(backend, op, ran);
        let goes_on = self.observer.observe(Observation {
            at,
            op_reference: host(0)?,
            op_subject: host(1)?,
            shown,
            reference: host_reference.clone(),
            subject: host_subject.clone(),
            replayed,
            exact,
            next: next.clone(),
            reread: &mut reread,
        })?;
        if !goes_on {
            self.stopped = true;
            return Err(Error::usage("stopped"));
        }
        self.go_on([reference, subject], [host_reference, host_subject], next, draws, made)
    }

    /// A lane of the sides' own results where they are what the run goes on with, of what it does otherwise.
    fn go_on(
        &mut self,
        [mut reference, mut subject]: [AnyTensor; 2],
        results: [Rc<HostTensor>; 2],
        next: [Rc<HostTensor>; 2],
        draws: [Option<Draws>; 2],
        made: Option<usize>,
    ) -> Result<Rc<Lane>> {
        if !Rc::ptr_eq(&next[0], &results[0]) {
            reference = self.reference.upload(&next[0])?;
        }
        if !Rc::ptr_eq(&next[1], &results[1]) {
            subject = self.subject.upload(&next[1])?;
        }
        self.lane(reference, subject, next, draws, made)
    }

    /// An operation that makes a stage that is not asked about.
    fn pass(&mut self, at: At, op: &Op<'_, Rc<Lane>>) -> Result<Rc<Lane>> {
        let subject = self.subject.run(at, &op.try_map(|l| Ok(l.subject.clone()))?)?;
        let reference = self.reference.run(at, &op.try_map(|l| Ok(l.reference.clone()))?)?;
        // A choice is always read: the run could not go on with one that does not exist.
        let choice = at.site.stage == Stage::RouterIds;
        if !choice && !self.is_read(at.site) {
            let (replay, host, draws) = Default::default();
            return Ok(Rc::new(Lane { reference, subject, replay, host, draws, made: None }));
        }
        let ticket = self.subject.fetch(&subject)?;
        let read_reference = self.reference.read(&reference)?;
        let results = [read_reference, self.subject.take(ticket)?].map(Rc::new);
        let next = match op {
            Op::RouterTopK { probs, .. } => {
                let experts = self.subject.shape(&probs.subject).last().copied().unwrap_or(0);
                self.chosen(experts, &results)
            }
            _ => results.clone(),
        };
        let replaced = !self.options.force_routing && (0..2).any(|i| !Rc::ptr_eq(&next[i], &results[i]));
        self.observer.pass(at, &next, replaced);
        self.go_on([reference, subject], results, next, [None, None], None)
    }

    /// The expert ids that each side goes on with, of what both chose among `experts`.
    fn chosen(&self, experts: usize, [reference, subject]: &[Rc<HostTensor>; 2]) -> [Rc<HostTensor>; 2] {
        let exist = |ids: &HostTensor| {
            ids.dtype() == "u32" && ids.shape == reference.shape && ids.ids().iter().all(|id| (*id as usize) < experts)
        };
        match (exist(reference), exist(subject)) {
            (true, true) if self.options.force_routing => [reference.clone(), reference.clone()],
            (true, false) => [reference.clone(), reference.clone()],
            (false, true) => [subject.clone(), subject.clone()],
            _ => [reference.clone(), subject.clone()],
        }
    }

    /// An operation that only moves values: done by every party, and on the host copies.
    fn moved(&mut self, at: At, op: &Op<'_, Rc<Lane>>) -> Result<Rc<Lane>> {
        let reference = self.reference.run(at, &op.try_map(|l| Ok(l.reference.clone()))?)?;
        let subject = self.subject.run(at, &op.try_map(|l| Ok(l.subject.clone()))?)?;
        if matches!(op, Op::Store { .. }) && !self.is_read(at.site) {
            return Ok(op.inputs()[0].clone()); // nobody will look at this layer's cache
        }
        self.look(op)?;
        let replay = match self.options.reference_is_recorded {
            true => RefCell::default(),
            false => RefCell::new(Some(self.reference.run(at, &op.try_map(|l| Ok(l.replay()))?)?)),
        };
        match op {
            Op::Store { cache, x, start } => {
                let (mut cached, mut cached_draws) = (cache.host.borrow_mut(), cache.draws.borrow_mut());
                let cached = cached.as_mut().expect("a cache has values from the start");
                let (x, x_draws) = ([0, 1].map(|i| x.host(i)), x.draws.borrow());
                for i in 0..2 {
                    if let (None, Some(_)) = (&cached_draws[i], &x_draws[i]) {
                        cached_draws[i] = Some(Rc::new(vec![(*cached[i]).clone(); segment::DRAWS]));
                    }
                    for (n, draw) in cached_draws[i].as_mut().map(Rc::make_mut).into_iter().flatten().enumerate() {
                        write_rows(draw, x_draws[i].as_ref().map_or(&*x[i], |draws| &draws[n]), *start);
                    }
                    write_rows(Rc::make_mut(&mut cached[i]), &x[i], *start);
                }
                Ok(cache.clone())
            }
            Op::Rows { x, start, rows } => {
                let taken = |t: &HostTensor| t.take(0, &Vec::from_iter(*start..start + rows));
                let host = [0, 1].map(|i| Rc::new(taken(&x.host(i))));
                let draws = x.draws.borrow().clone().map(|d| d.map(|d| Rc::new(d.iter().map(taken).collect())));
                let (host, draws) = (RefCell::new(Some(host)), RefCell::new(draws));
                Ok(Rc::new(Lane { reference, subject, replay, host, draws, made: None }))
            }
            _ => unreachable!("every other operation makes a stage"),
        }
    }
}

/// The subject's operands that are others than when they were made, which their lanes then have.
fn overwritten(subject: &mut AnyBackend, op: &Op<'_, Rc<Lane>>, ran: &[Site]) -> Result<Vec<Overwritten>> {
    let mut found = Vec::new();
    for (operand, lane) in op.inputs().into_iter().enumerate() {
        let Some(made) = lane.made else { continue };
        let (then, values) = (lane.host(1), Rc::new(subject.read(&lane.subject)?));
        let (was, is) = (then.to_f64(), values.to_f64());
        let others: Vec<usize> = (0..was.len()).filter(|i| was[*i].to_bits() != is[*i].to_bits()).collect();
        let Some(first) = others.first() else { continue };
        if let Some(host) = &mut *lane.host.borrow_mut() {
            host[1] = values.clone();
        }
        *lane.replay.borrow_mut() = None;
        found.push(Overwritten {
            operand,
            site: ran[made],
            elements: others.len(),
            first: unravel(*first, &values.shape),
            values,
            since: ran[made + 1..].to_vec(),
        });
    }
    Ok(found)
}

/// Rows start.. of `cache` [capacity, n] become the first n columns of `x` [T, ≥ n].
fn write_rows(cache: &mut HostTensor, x: &HostTensor, start: usize) {
    let n = cache.cols();
    if x.cols() > n {
        let first: Vec<f64> = x.to_f64().chunks_exact(x.cols()).flat_map(|row| &row[..n]).copied().collect();
        let shape = [x.shape[0], n];
        let first = match x.data {
            Data::F32(_) => HostTensor::f32(&shape, first.into_iter().map(|x| x as f32).collect()),
            _ => HostTensor::f64(&shape, first),
        };
        return write_rows(cache, &first, start);
    }
    let at = start * n;
    match (&mut cache.data, &x.data) {
        (Data::F32(c), Data::F32(x)) => c[at..at + x.len()].copy_from_slice(x),
        (c, _) => {
            // Sides of different precision (an oracle as one of them): the cache takes the wider type.
            let mut wide = match c {
                Data::F32(c) => c.iter().map(|&v| v as f64).collect(),
                Data::F64(c) => std::mem::take(c),
                Data::U32(_) => unreachable!("a cache holds numbers"),
            };
            let x = x.to_f64();
            wide[at..at + x.len()].copy_from_slice(&x);
            *c = Data::F64(wide);
        }
    }
}

impl Backend for Lockstep<'_> {
    type Tensor = Rc<Lane>;

    /// The subject's: the reference is the yardstick.
    fn info(&self) -> BackendInfo {
        self.subject.info()
    }
    fn contract(&self, op: OpKind) -> Contract {
        self.subject.contract(op)
    }
    fn stage_contract(&self, stage: Stage) -> Option<Contract> {
        self.subject.stage_contract(stage)
    }
    fn unsupported(&self, needs: &[Need]) -> Vec<String> {
        [self.reference.unsupported(needs), self.subject.unsupported(needs)].concat()
    }
    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.reference.prepare(weights, &mut |_| ())?;
        self.subject.prepare(weights, progress)
    }
    fn alloc(&mut self, shape: &[usize]) -> Result<Rc<Lane>> {
        let zeros = Rc::new(HostTensor::f32(shape, vec![0.0; shape.iter().product()]));
        Ok(Rc::new(Lane {
            reference: self.reference.alloc(shape)?,
            subject: self.subject.alloc(shape)?,
            replay: RefCell::new(Some(self.reference.alloc(shape)?)),
            host: RefCell::new(Some([zeros.clone(), zeros])),
            draws: RefCell::default(),
            made: None,
        }))
    }
    fn upload(&mut self, values: &HostTensor) -> Result<Rc<Lane>> {
        let (reference, subject) = (self.reference.upload(values)?, self.subject.upload(values)?);
        let host = Rc::new(values.clone());
        self.lane(reference, subject, [host.clone(), host], [None, None], None)
    }
    fn shape(&self, tensor: &Rc<Lane>) -> Vec<usize> {
        self.subject.shape(&tensor.subject)
    }
    fn run(&mut self, at: At, op: &Op<'_, Rc<Lane>>) -> Result<Rc<Lane>> {
        if !op.makes_stage() {
            return self.moved(at, op);
        }
        self.observer.begin(at);
        self.ran.push(at.site);
        if self.is_asked(at.site) { self.stage(at, op) } else { self.pass(at, op) }
    }
    /// The reference's values: the teacher's, where a run is continued from its own logits.
    fn fetch(&mut self, tensor: &Rc<Lane>) -> Result<Ticket> {
        let read = tensor.host.borrow().as_ref().map(|host| (*host[0]).clone());
        let values = read.map_or_else(|| self.reference.read(&tensor.reference), Ok)?;
        Ok(self.tickets.put(values))
    }
    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.tickets.take(ticket)
    }
    fn sync(&mut self) -> Result<()> {
        self.reference.sync()?;
        self.subject.sync()
    }
}

/// What the reference would make of the subject's operands if it rounded nothing but these, and whether that is what the subject would, `of_subject`, too.
/// `contracts` are theirs, the reference's first.
///
/// # Errors
/// The oracle's.
pub fn exact_replay(
    op: &Op<'_, &HostTensor>,
    of_subject: &Rc<HostTensor>,
    [reference, subject]: [&Contract; 2],
) -> Result<(Rc<HostTensor>, bool)> {
    // Where the sides round operands differently, each has an exact result of its own on the same inputs.
    let mut same = reference == subject || !rounds_operands(reference) && !rounds_operands(subject);
    // Of operands in double a reference in f32 has what is left of them when it takes them.
    let taken = op.try_map(|t| {
        let narrows = reference.activations != Precision::F64 && matches!(t.data, Data::F64(_));
        same &= !narrows;
        Ok(narrows.then(|| HostTensor::f32(&t.shape, t.to_f32())))
    })?;
    if same {
        return Ok((of_subject.clone(), true));
    }
    let mut taken = taken.inputs().into_iter();
    let op = op.try_map(|t| Ok(taken.next().and_then(|t| t.as_ref()).unwrap_or(*t)))?;
    Ok((Rc::new(exact(&op, reference)?), false))
}

/// Whether operands, or the argument of a gelu, are rounded before they are used.
fn rounds_operands(contract: &Contract) -> bool {
    [contract.activations, contract.weights, contract.cache, contract.gelu].iter().any(|format| format.is_coarse())
}
