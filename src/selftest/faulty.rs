//! A backend that makes mistakes at chosen sites, and is another backend everywhere else.
//!
//! - A mistake is a function from a stage's operands to a wrong result; it may run any operation on a real backend to make it
//!   ([`Engine`]). What it does not touch ([`FaultScope`]) keeps the right result of the same call.
//! - A mistake that has a strength is scaled: right + α·(wrong − right), α such that the largest error is so many times its
//!   rounding floor.
//! - [`Op::Store`] works in place: there the result of the mistake is the whole cache.
//! - What was planted is recorded, so that a plant that never met its site is an error and not an agreement.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::backend::oracle::evaluate;
use crate::backend::{AnyBackend, AnyTensor, Backend, BackendInfo, Contract, FusedKernel, KernelUse, Need, Ticket};
use crate::error::{Error, Result};
use crate::formula::floor::{floor_of, injected_ratio};
use crate::op::{At, Data, HostTensor, Op, OpKind, Site, Weight};

/// An operation over values on the host.
pub type HostOp<'a> = Op<'a, Rc<HostTensor>>;

/// Computes a wrong result; see the module's documentation.
pub type Mistake = Box<dyn FnMut(&mut Engine<'_>, &HostOp<'_>) -> Result<HostTensor>>;

/// A real backend, at the site of a mistake.
pub struct Engine<'a> {
    backend: &'a mut AnyBackend,
    pub at: At,
    /// The expert that a mistake about one expert is about.
    pub expert: u32,
}

impl<'a> Engine<'a> {
    /// The same place on another backend.
    pub fn on<'b>(&self, backend: &'b mut AnyBackend) -> Engine<'b> {
        Engine { backend, at: self.at, expert: self.expert }
    }

    /// Runs an operation over host values. A cache that it stores into is a copy: the result is the whole of it.
    pub fn run(&mut self, op: &HostOp<'_>) -> Result<HostTensor> {
        let op = op.try_map(|t| self.backend.upload(t))?;
        let result = self.backend.run(self.at, &op)?;
        self.backend.read(&result)
    }
}

/// Which elements of the result a mistake changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultScope {
    All,
    /// One row of the call, counted from its first.
    Row(usize),
    /// The expert that the most rows of the call use, of an operation with expert ids.
    Expert,
    /// That expert, at the first row that uses it.
    ExpertOnce,
}

/// How large the error is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Strength {
    Full,
    /// The largest error is this many times its rounding floor.
    Floors(f64),
    /// The same, where it is more.
    UpTo(f64),
}

/// A mistake and where it is made.
pub struct PlantedFault {
    pub site: Site,
    pub op: OpKind,
    /// First position of the calls that it is made in; `None` for all.
    pub start: Option<usize>,
    pub scope: FaultScope,
    pub strength: Strength,
    pub mistake: Mistake,
    pub done: PlantedRecord,
}

/// What became of a plant.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PlantedRecord {
    /// Calls that it was made in.
    pub calls: usize,
    /// Where its scope is an expert, which.
    pub expert: Option<u32>,
    /// How many experts there are.
    pub experts: u32,
    /// Where its scope is one row, or an expert at one row, its position.
    pub position: Option<usize>,
    /// Its largest error over the floor, in the last call: NaN where a value is not finite or a cache was changed.
    pub ratio: f64,
}

/// The plants of a run. Kept outside of the backend, which a run hides behind its interface.
pub type PlantedFaults = Rc<RefCell<Vec<PlantedFault>>>;

/// `inner`, with mistakes.
pub struct Faulty {
    pub inner: Rc<RefCell<AnyBackend>>,
    pub plants: PlantedFaults,
}

impl Faulty {
    pub fn new(inner: Rc<RefCell<AnyBackend>>, plants: PlantedFaults) -> Self {
        Self { inner, plants }
    }
}

/// The expert that the most slots of `op` use, the lowest of equals.
fn busiest(op: &HostOp<'_>) -> Option<u32> {
    let (Op::ExpertMatMul { ids, .. } | Op::ExpertBias { ids, .. }) = op else { return None };
    let ids = ids.ids();
    ids.iter().copied().max_by_key(|id| (ids.iter().filter(|other| *other == id).count(), std::cmp::Reverse(*id)))
}

/// How many experts `op` chooses from; 0 where it has none.
fn experts(op: &HostOp<'_>) -> u32 {
    match op {
        Op::ExpertMatMul { weight, .. } => weight.experts as u32,
        Op::ExpertBias { weight, .. } => weight.rows as u32,
        _ => 0,
    }
}

/// The one row that is in scope, if it is one.
fn row_of(scope: FaultScope, expert: u32, op: &HostOp<'_>) -> Option<usize> {
    match (scope, op) {
        (FaultScope::Row(row), _) => Some(row),
        (FaultScope::ExpertOnce, Op::ExpertMatMul { ids, .. } | Op::ExpertBias { ids, .. }) => {
            ids.ids().iter().position(|id| *id == expert).map(|slot| slot / ids.cols().max(1))
        }
        _ => None,
    }
}

/// Whether each element of the result is in scope.
fn members(scope: FaultScope, expert: u32, op: &HostOp<'_>, site: Site, result: &HostTensor) -> Result<Vec<bool>> {
    let axis = site.stage.position_axis();
    let row_len: usize = result.shape[axis + 1..].iter().product();
    let of_row = |row: usize| (0..result.len()).map(|i| i / row_len % result.shape[axis] == row).collect();
    match scope {
        FaultScope::All => Ok(vec![true; result.len()]),
        FaultScope::Row(row) => Ok(of_row(row)),
        FaultScope::Expert | FaultScope::ExpertOnce => {
            let (Op::ExpertMatMul { ids, .. } | Op::ExpertBias { ids, .. }) = op else {
                return Err(Error::usage(format!("{site}: {:?} has no experts to err in", op.kind())));
            };
            let cols = result.cols();
            let first = ids.ids().iter().position(|id| *id == expert);
            let once = scope == FaultScope::ExpertOnce;
            let hit = |slot: usize| ids.ids()[slot] == expert && !(once && Some(slot) != first);
            Ok((0..result.len()).map(|i| hit(i / cols)).collect())
        }
    }
}

/// `right` with `wrong` where it is a member, as strong as asked for; and the largest error over its floor.
fn mix(
    plant: &PlantedFault,
    contract: &Contract,
    op: &HostOp<'_>,
    right: &HostTensor,
    wrong: &HostTensor,
    members: &[bool],
) -> Result<(HostTensor, f64)> {
    let at = |what: String| Error::usage(format!("{}: a planted fault {what}", plant.site));
    if right.shape != wrong.shape || right.dtype() != wrong.dtype() {
        let (r, w) = ((right.dtype(), &right.shape), (wrong.dtype(), &wrong.shape));
        return Err(at(format!("is {w:?} where {r:?} was expected")));
    }
    if let (Data::U32(r), Data::U32(w)) = (&right.data, &wrong.data) {
        let ids = members.iter().zip(r.iter().zip(w)).map(|(m, (r, w))| if *m { *w } else { *r }).collect();
        return Ok((HostTensor::u32(&right.shape, ids), f64::INFINITY));
    }
    let (r, w) = (right.to_f32(), wrong.to_f32());
    let delta: Vec<f64> =
        members.iter().zip(r.iter().zip(&w)).map(|(m, (r, w))| if *m { *w as f64 - *r as f64 } else { 0.0 }).collect();
    let op = op.try_map(|t| Ok(&**t))?;
    let floor = floor_of(&op, contract, &evaluate(&op)?)?;
    let ratio = injected_ratio(&delta, &floor).max;
    let alpha = match plant.strength {
        Strength::Full => 1.0,
        Strength::UpTo(times) if ratio.is_finite() => (times / ratio).min(1.0),
        Strength::UpTo(_) => 1.0,
        Strength::Floors(times) if ratio.is_finite() && ratio >= times => times / ratio,
        Strength::Floors(times) => return Err(at(format!("of {ratio:.1} × floor cannot be {times} × floor"))),
    };
    let mixed =
        members.iter().zip(r.iter().zip(w.iter().zip(&delta))).map(|(m, (r, (w, d)))| match (m, plant.strength) {
            (false, _) => *r,
            (true, Strength::Full) => *w,
            (true, _) => (*r as f64 + alpha * d) as f32,
        });
    Ok((HostTensor::f32(&right.shape, mixed.collect()), ratio * alpha))
}

impl Faulty {
    /// The plant of a call, if there is one.
    fn planted(&self, at: At, kind: OpKind) -> Option<usize> {
        let here =
            |p: &PlantedFault| p.site == at.site && p.op == kind && p.start.is_none_or(|start| start == at.start);
        self.plants.borrow().iter().position(here)
    }

    fn err(&self, n: usize, at: At, op: &Op<'_, AnyTensor>) -> Result<AnyTensor> {
        let plant = &mut self.plants.borrow_mut()[n];
        let inner = &mut *self.inner.borrow_mut();
        let operands = op.inputs().into_iter().map(|t| Ok(Rc::new(inner.read(t)?))).collect::<Result<Vec<_>>>()?;
        let mut next = operands.iter();
        let host = op.try_map(|_| Ok(next.next().expect("an operand was read for each").clone()))?;
        let scoped = matches!(plant.scope, FaultScope::Expert | FaultScope::ExpertOnce);
        let expert = busiest(&host).unwrap_or(0);

        let right = inner.run(at, op)?;
        let wrong = (plant.mistake)(&mut Engine { backend: inner, at, expert }, &host)?;
        plant.done.calls += 1;
        plant.done.expert = scoped.then_some(expert);
        plant.done.experts = experts(&host);
        plant.done.position = row_of(plant.scope, expert, &host).map(|row| at.start + row);
        if let Op::Store { cache, .. } = op {
            plant.done.ratio = f64::NAN;
            let x = inner.upload(&wrong)?;
            return inner.run(at, &Op::Store { cache: cache.clone(), x, start: 0 });
        }
        let right = inner.read(&right)?;
        let members = members(plant.scope, expert, &host, at.site, &right)?;
        let contract = inner.contract(op.kind());
        let (mixed, ratio) = mix(plant, &contract, &host, &right, &wrong, &members)?;
        plant.done.ratio = ratio;
        inner.upload(&mixed)
    }
}

impl Backend for Faulty {
    type Tensor = AnyTensor;

    fn info(&self) -> BackendInfo {
        self.inner.borrow().info()
    }
    fn contract(&self, op: OpKind) -> Contract {
        self.inner.borrow().contract(op)
    }
    fn unsupported(&self, needs: &[Need]) -> Vec<String> {
        self.inner.borrow().unsupported(needs)
    }
    fn fused(&self) -> &'static [FusedKernel] {
        self.inner.borrow().fused()
    }
    fn kernels(&self, needs: &[Need]) -> Vec<KernelUse> {
        self.inner.borrow().kernels(needs)
    }
    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.inner.borrow_mut().prepare(weights, progress)
    }
    fn alloc(&mut self, shape: &[usize]) -> Result<AnyTensor> {
        self.inner.borrow_mut().alloc(shape)
    }
    fn upload(&mut self, values: &HostTensor) -> Result<AnyTensor> {
        self.inner.borrow_mut().upload(values)
    }
    fn shape(&self, tensor: &AnyTensor) -> Vec<usize> {
        self.inner.borrow().shape(tensor)
    }
    fn run(&mut self, at: At, op: &Op<'_, AnyTensor>) -> Result<AnyTensor> {
        match self.planted(at, op.kind()) {
            Some(n) => self.err(n, at, op),
            None => self.inner.borrow_mut().run(at, op),
        }
    }
    fn fetch(&mut self, tensor: &AnyTensor) -> Result<Ticket> {
        self.inner.borrow_mut().fetch(tensor)
    }
    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.inner.borrow_mut().take(ticket)
    }
    fn sync(&mut self) -> Result<()> {
        self.inner.borrow_mut().sync()
    }
}
