//! Two backends, one forward pass.
//!
//! - [`Lockstep`] is a backend whose tensors are *lanes*: one value of the model as each party has it. The model runs over
//!   it as over any other backend, so both sides meet at every stage.
//! - For a stage with reference c, subject g and inputs x_c, x_g it computes c(x_c) and g(x_g), the reference's replay
//!   c(x_g) on the subject's own inputs, and, with the oracle, its o(x_c) and o(x_g). From these five follow the
//!   total error g(x_g) − c(x_c), the injected g(x_g) − c(x_g), the propagated c(x_g) − c(x_c), and which side is wrong.
//! - The KV cache that a replay reads is filled from the subject's *stage outputs* (k_rope, v_proj), not from the subject's
//!   cache: an entry that the subject stores wrongly is then its own error at the next stage that reads it.
//! - Expert ids that name no expert of the layer would end the run at the next stage, and with it the report of the fault. A side
//!   that chose such ids goes on with the other side's; [`Observation::next`] says so to the observer.
//! - A lane holds only what the rest of its layer still needs; handles are dropped as the model drops them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::backend::{AnyBackend, AnyTensor, Backend, BackendInfo, Contract, HostTickets, Need, Ticket};
use crate::error::Result;
use crate::op::{At, Data, HostTensor, Op, OpKind, Weight};

/// One value of the model, as each party has it.
pub struct Lane {
    /// c(x_c), on the reference.
    reference: AnyTensor,
    /// g(x_g), on the subject.
    subject: AnyTensor,
    /// The subject's value, uploaded to the reference: an operand for replays.
    replay: AnyTensor,
    /// Both sides' values on the oracle: the reference's, the subject's.
    oracle: Option<[AnyTensor; 2]>,
    /// Both sides' values on the host: the reference's, the subject's. Behind a cell because a KV cache is written in place.
    host: RefCell<[Rc<HostTensor>; 2]>,
}

/// Everything that is known about one stage of one call.
pub struct Observation<'a> {
    /// The stage, and the position of its first row.
    pub at: At,
    /// The operation on the reference's own inputs, and on the subject's own inputs.
    pub op_reference: Op<'a, Rc<HostTensor>>,
    pub op_subject: Op<'a, Rc<HostTensor>>,
    /// c(x_c)
    pub reference: Rc<HostTensor>,
    /// g(x_g)
    pub subject: Rc<HostTensor>,
    /// c(x_g); the oracle's o(x_g) where the reference cannot replay.
    pub replayed: Rc<HostTensor>,
    /// o(x_c) and o(x_g).
    pub exact: Option<[Rc<HostTensor>; 2]>,
    /// What the rest of the run computes with, the reference and the subject: their results, unless expert ids were put in
    /// the place of theirs.
    pub next: [Rc<HostTensor>; 2],
}

/// Receives each stage as it is made.
pub trait PairObserver {
    fn observe(&mut self, stage: Observation<'_>) -> Result<()>;
}

/// What may be asked of a lockstep run.
#[derive(Clone, Copy, Debug, Default)]
pub struct LockstepOptions {
    /// Give the subject the reference's expert ids, so that what remains is not routing.
    pub force_routing: bool,
    /// The reference is a recording: replays are the oracle's.
    pub reference_is_recorded: bool,
}

/// Both backends as one; see the module's documentation.
pub struct Lockstep<'s> {
    reference: &'s mut AnyBackend,
    subject: &'s mut AnyBackend,
    oracle: Option<&'s mut AnyBackend>,
    options: LockstepOptions,
    observer: &'s mut dyn PairObserver,
    tickets: HostTickets,
}

impl<'s> Lockstep<'s> {
    /// # Panics
    /// If the reference is recorded and there is no oracle to replay in its place.
    pub fn new(
        reference: &'s mut AnyBackend,
        subject: &'s mut AnyBackend,
        oracle: Option<&'s mut AnyBackend>,
        options: LockstepOptions,
        observer: &'s mut dyn PairObserver,
    ) -> Self {
        assert!(oracle.is_some() || !options.reference_is_recorded, "a recorded reference cannot replay");
        Self { reference, subject, oracle, options, observer, tickets: HostTickets::default() }
    }

    /// A lane from values that both sides have on the host.
    fn lane(&mut self, reference: AnyTensor, subject: AnyTensor, host: [Rc<HostTensor>; 2]) -> Result<Rc<Lane>> {
        let replay = self.reference.upload(&host[1])?;
        let oracle = match &mut self.oracle {
            Some(o) => Some([o.upload(&host[0])?, o.upload(&host[1])?]),
            None => None,
        };
        Ok(Rc::new(Lane { reference, subject, replay, oracle, host: RefCell::new(host) }))
    }

    /// An operation that makes a stage: all five runs, observed.
    fn stage(&mut self, at: At, op: &Op<'_, Rc<Lane>>) -> Result<Rc<Lane>> {
        // The subject goes first: a GPU works on it while the CPU does the reference's share.
        let subject = self.subject.run(at, &op.try_map(|l| Ok(l.subject.clone()))?)?;
        let ticket = self.subject.fetch(&subject)?;
        let reference = self.reference.run(at, &op.try_map(|l| Ok(l.reference.clone()))?)?;
        let exact = match &mut self.oracle {
            None => None,
            Some(oracle) => {
                let mut side = |i: usize| {
                    let op = op.try_map(|l| Ok(l.oracle.as_ref().expect("every lane has the oracle's")[i].clone()))?;
                    let value = oracle.run(at, &op)?;
                    Ok(Rc::new(oracle.read(&value)?))
                };
                Some([side(0)?, side(1)?])
            }
        };
        let replayed = if self.options.reference_is_recorded {
            exact.as_ref().expect("checked when made")[1].clone()
        } else {
            let value = self.reference.run(at, &op.try_map(|l| Ok(l.replay.clone()))?)?;
            Rc::new(self.reference.read(&value)?)
        };
        let host_reference = Rc::new(self.reference.read(&reference)?);
        let host_subject = Rc::new(self.subject.take(ticket)?);
        let results = [host_reference.clone(), host_subject.clone()];
        let next = match op {
            Op::RouterTopK { probs, .. } => self.chosen(probs.host.borrow()[0].cols(), &results),
            _ => results,
        };

        self.observer.observe(Observation {
            at,
            op_reference: op.try_map(|l| Ok(l.host.borrow()[0].clone()))?,
            op_subject: op.try_map(|l| Ok(l.host.borrow()[1].clone()))?,
            reference: host_reference.clone(),
            subject: host_subject.clone(),
            replayed,
            exact,
            next: next.clone(),
        })?;

        let (mut reference, mut subject) = (reference, subject);
        if !Rc::ptr_eq(&next[0], &host_reference) {
            reference = self.reference.upload(&next[0])?;
        }
        if !Rc::ptr_eq(&next[1], &host_subject) {
            subject = self.subject.upload(&next[1])?;
        }
        self.lane(reference, subject, next)
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
        let replay = self.reference.run(at, &op.try_map(|l| Ok(l.replay.clone()))?)?;
        let oracle = match &mut self.oracle {
            None => None,
            Some(oracle) => {
                let mut side = |i: usize| {
                    let op = op.try_map(|l| Ok(l.oracle.as_ref().expect("every lane has the oracle's")[i].clone()))?;
                    oracle.run(at, &op)
                };
                Some([side(0)?, side(1)?])
            }
        };
        match op {
            Op::Store { cache, x, start } => {
                let mut cached = cache.host.borrow_mut();
                for (cached, x) in cached.iter_mut().zip(x.host.borrow().iter()) {
                    write_rows(Rc::make_mut(cached), x, *start);
                }
                Ok(cache.clone())
            }
            Op::Rows { x, start, rows } => {
                let host = x.host.borrow().clone().map(|h| Rc::new(h.take(0, &Vec::from_iter(*start..start + rows))));
                Ok(Rc::new(Lane { reference, subject, replay, oracle, host: RefCell::new(host) }))
            }
            _ => unreachable!("every other operation makes a stage"),
        }
    }
}

/// Rows start.. of `cache` [capacity, n] become `x` [T, n].
fn write_rows(cache: &mut HostTensor, x: &HostTensor, start: usize) {
    let at = start * x.cols();
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
    fn unsupported(&self, needs: &[Need]) -> Vec<String> {
        let oracle = self.oracle.as_ref().map(|o| o.unsupported(needs));
        let sides = [self.reference.unsupported(needs), self.subject.unsupported(needs)];
        sides.into_iter().chain(oracle).flatten().collect()
    }
    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.reference.prepare(weights, &mut |_| ())?;
        self.subject.prepare(weights, progress)?;
        match &mut self.oracle {
            Some(oracle) => oracle.prepare(weights, &mut |_| ()),
            None => Ok(()),
        }
    }
    fn alloc(&mut self, shape: &[usize]) -> Result<Rc<Lane>> {
        let zeros = Rc::new(HostTensor::f32(shape, vec![0.0; shape.iter().product()]));
        let oracle = match &mut self.oracle {
            Some(o) => Some([o.alloc(shape)?, o.alloc(shape)?]),
            None => None,
        };
        Ok(Rc::new(Lane {
            reference: self.reference.alloc(shape)?,
            subject: self.subject.alloc(shape)?,
            replay: self.reference.alloc(shape)?,
            oracle,
            host: RefCell::new([zeros.clone(), zeros]),
        }))
    }
    fn upload(&mut self, values: &HostTensor) -> Result<Rc<Lane>> {
        let (reference, subject) = (self.reference.upload(values)?, self.subject.upload(values)?);
        let host = Rc::new(values.clone());
        self.lane(reference, subject, [host.clone(), host])
    }
    fn shape(&self, tensor: &Rc<Lane>) -> Vec<usize> {
        self.subject.shape(&tensor.subject)
    }
    fn run(&mut self, at: At, op: &Op<'_, Rc<Lane>>) -> Result<Rc<Lane>> {
        if op.makes_stage() { self.stage(at, op) } else { self.moved(at, op) }
    }
    /// The reference's values: the teacher's, where a run is continued from its own logits.
    fn fetch(&mut self, tensor: &Rc<Lane>) -> Result<Ticket> {
        let values = (*tensor.host.borrow()[0]).clone();
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
