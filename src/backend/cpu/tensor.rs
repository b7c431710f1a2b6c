//! The CPU's tensor: values on the host behind a handle that is cheap to clone.
//!
//! Design:
//! - A handle is an `Rc` to a [`HostTensor`]. Every operation makes a new tensor; only a KV cache is written in place, and
//!   for it alone there is the `RefCell`. Borrows last for one operation, and a backend is used by one thread at a time.
//! - Memory of tensors that are done is used again, as it is: new pages from the system, and the zeros in them, would cost as much as a
//!   small model's products.
//! - A tensor may wait: it has a shape and what it is made of, and values once somebody asks for them. Only `attention.rs` makes such.
//! - A copy to the host is a handle, too. Values are copied only if somebody still holds them when it is taken, or writes over them before.

use std::cell::{Ref, RefCell, RefMut};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use crate::backend::Ticket;
use crate::memory::prefer_large;
use crate::op::{Data, HostTensor, Operation, Site, Weight};
use crate::{Error, Result};

/// A handle to values on the host. Cloning it copies no values.
#[derive(Clone)]
pub struct CpuTensor(Rc<RefCell<Held>>);

/// The values of a tensor, whose memory is for the next one when it is dropped.
struct Held {
    /// Of one that waits, the shape.
    values: HostTensor,
    waits: Option<Unmade>,
}

/// What a tensor that waits is made by.
pub(super) struct Unmade {
    pub site: Site,
    pub op: Operation<CpuTensor, Arc<Weight>, Vec<u32>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Data::F32(values) = std::mem::replace(&mut self.values.data, Data::F32(Vec::new())) {
            let _ = MEMORY.try_with(|memory| memory.borrow_mut().keep(values)); // there is none when the thread ends
        }
    }
}

impl CpuTensor {
    /// Takes `values` as they are, but f64 rounded to f32, which is all that this backend computes with.
    pub(super) fn new(values: HostTensor) -> Self {
        let values = match values.data {
            Data::F64(_) => HostTensor::f32(&values.shape, values.to_f32()),
            _ => values,
        };
        Self(Rc::new(RefCell::new(Held { values, waits: None })))
    }

    /// One that has no values until somebody asks for them.
    pub(super) fn waiting(shape: &[usize], what: Unmade) -> Self {
        let values = HostTensor { shape: shape.to_vec(), data: Data::F32(Vec::new()) };
        Self(Rc::new(RefCell::new(Held { values, waits: Some(what) })))
    }

    /// Whether it has no values yet.
    pub(super) fn waits(&self) -> bool {
        self.0.borrow().waits.is_some()
    }

    /// What it is to be made by, while it waits.
    pub(super) fn what_waits(&self) -> Option<Ref<'_, Unmade>> {
        Ref::filter_map(self.0.borrow(), |held| held.waits.as_ref()).ok()
    }

    /// Ends the waiting: whoever calls this gives it its values.
    pub(super) fn wait_over(&self) -> Option<Unmade> {
        self.0.borrow_mut().waits.take()
    }

    /// The values, while no operation writes them; of a tensor that waits no more than its shape.
    pub(super) fn values(&self) -> Ref<'_, HostTensor> {
        Ref::map(self.0.borrow(), |held| &held.values)
    }

    /// The values of a cache, to write into, or of a tensor that has waited.
    pub(super) fn values_mut(&self) -> RefMut<'_, HostTensor> {
        RefMut::map(self.0.borrow_mut(), |held| &mut held.values)
    }

    /// Whether nobody else has a handle to the values.
    pub(super) fn is_last(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }

    /// Whether both handles are to the same values.
    pub(super) fn same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

/// Tensors that wait.
#[derive(Default)]
pub(super) struct WaitingTensors(Vec<Weak<RefCell<Held>>>);

impl WaitingTensors {
    pub fn add(&mut self, tensor: &CpuTensor) {
        self.0.retain(|waiting| waiting.strong_count() > 0);
        self.0.push(Rc::downgrade(&tensor.0));
    }

    /// Those that have still to read `cache`.
    pub fn reading(&self, cache: &CpuTensor) -> Vec<CpuTensor> {
        let alive = self.0.iter().filter_map(Weak::upgrade).map(CpuTensor);
        let reads = |tensor: &CpuTensor| {
            tensor.what_waits().is_some_and(|waiting| waiting.op.inputs().into_iter().any(|input| input.same(cache)))
        };
        alive.filter(reads).collect()
    }
}

/// Bytes that are kept at most: a layer's of a long prompt, and few beside the weights of a model with such layers.
const MOST_KEPT: usize = 512 << 20;
/// Values below which the allocator has memory at hand.
const SMALL: usize = 1 << 12;

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Memory of tensors that are done.
#[derive(Default)]
struct Memory {
    kept: Vec<Vec<f32>>,
    bytes: usize,
}

impl Memory {
    fn keep(&mut self, values: Vec<f32>) {
        let bytes = values.capacity() * size_of::<f32>();
        if values.capacity() >= SMALL && self.bytes + bytes <= MOST_KEPT {
            self.bytes += bytes;
            self.kept.push(values);
        }
    }

    /// The least that has room for `len` values and is not much larger.
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let fits = |values: &&Vec<f32>| (len..=len.saturating_mul(2)).contains(&values.capacity());
        let best = self.kept.iter().filter(fits).map(Vec::capacity).min()?;
        let at = self.kept.iter().rposition(|values| values.capacity() == best)?; // the last to be kept is nearest
        let values = self.kept.swap_remove(at);
        self.bytes -= values.capacity() * size_of::<f32>();
        Some(values)
    }
}

/// Room for the values of `shape`, which are anything: an operation writes all of them.
///
/// # Errors
/// A shape that memory cannot hold.
pub(super) fn room(shape: &[usize]) -> Result<Vec<f32>> {
    let none = || Error::cannot_run(format!("no memory for a tensor of shape {shape:?}"));
    let len = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or_else(none)?;
    let mut values = MEMORY.with_borrow_mut(|memory| memory.take(len)).unwrap_or_default();
    values.truncate(len);
    let had = values.capacity();
    values.try_reserve_exact(len - values.len()).map_err(|_| none())?;
    if values.capacity() > had {
        prefer_large(values.spare_capacity_mut());
    }
    values.resize(len, 0.0);
    if cfg!(debug_assertions) {
        values.fill(f32::NAN); // what is left out is seen
    }
    Ok(values)
}

/// Copies to the host under way.
#[derive(Default)]
pub(super) struct Tickets {
    next: u64,
    ready: HashMap<u64, CpuTensor>,
}

impl Tickets {
    /// The values of `tensor` as they are now.
    pub fn put(&mut self, tensor: &CpuTensor) -> Ticket {
        self.next += 1;
        self.ready.insert(self.next, tensor.clone());
        Ticket(self.next)
    }

    /// `tensor` is about to be written: who has asked for its values gets those of before.
    pub fn before_write(&mut self, tensor: &CpuTensor) {
        for waiting in self.ready.values_mut().filter(|waiting| waiting.same(tensor)) {
            let values = waiting.values().clone();
            *waiting = CpuTensor::new(values);
        }
    }

    /// # Errors
    /// If the ticket was taken already or is another backend's.
    pub fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        let tensor = self.ready.remove(&ticket.0).ok_or_else(|| {
            Error::cannot_run(format!("ticket {} was taken already or is another backend's", ticket.0))
        })?;
        match Rc::try_unwrap(tensor.0) {
            Ok(held) => {
                let held = &mut held.into_inner().values;
                Ok(HostTensor {
                    shape: std::mem::take(&mut held.shape),
                    data: std::mem::replace(&mut held.data, Data::U32(vec![])),
                })
            }
            Err(shared) => Ok(shared.borrow().values.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_has_the_values_of_when_it_was_made() {
        let mut tickets = Tickets::default();
        let tensor = CpuTensor::new(HostTensor::f32(&[2], vec![1.0, 2.0]));
        let (first, second) = (tickets.put(&tensor), tickets.put(&tensor));
        assert_eq!(tickets.take(first).unwrap().to_f32(), [1.0, 2.0]);
        assert!(tickets.take(first).is_err());
        tickets.before_write(&tensor);
        if let Data::F32(values) = &mut tensor.values_mut().data {
            values[0] = 7.0;
        }
        let third = tickets.put(&tensor);
        drop(tensor);
        assert_eq!(tickets.take(second).unwrap().to_f32(), [1.0, 2.0]);
        assert_eq!(tickets.take(third).unwrap().to_f32(), [7.0, 2.0]);
    }

    #[test]
    fn memory_is_used_again() {
        let len = 3 * SMALL;
        let first = room(&[3, SMALL]).unwrap();
        let place = first.as_ptr();
        drop(CpuTensor::new(HostTensor::f32(&[3, SMALL], first)));
        let again = room(&[len - 5]).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (place, len - 5));
        // Neither what is too small for it, nor what it is too small for.
        drop(CpuTensor::new(HostTensor::f32(&[len - 5], again)));
        let (small, large) = (room(&[SMALL]).unwrap(), room(&[2 * len]).unwrap());
        assert!(small.as_ptr() != place && large.as_ptr() != place);
        assert!(room(&[usize::MAX, 2]).is_err() && room(&[usize::MAX / 8]).is_err());
    }
}
