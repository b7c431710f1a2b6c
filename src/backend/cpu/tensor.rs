//! The CPU's tensor: values on the host behind a handle that is cheap to clone.
//!
//! Design:
//! - A handle is an `Rc` to a [`HostTensor`]. Every operation makes a new tensor; only a KV cache is written in place, and
//!   for it alone there is the `RefCell`. Borrows last for one operation, and a backend is used by one thread at a time.

use std::cell::{Ref, RefCell, RefMut};
use std::rc::Rc;

use crate::op::{Data, HostTensor};

/// A handle to values on the host. Cloning it copies no values.
#[derive(Clone)]
pub struct CpuTensor(Rc<RefCell<HostTensor>>);

impl CpuTensor {
    /// Takes `values` as they are, but f64 rounded to f32, which is all that this backend computes with.
    pub(super) fn new(values: HostTensor) -> Self {
        let values = match values.data {
            Data::F64(_) => HostTensor::f32(&values.shape, values.to_f32()),
            _ => values,
        };
        Self(Rc::new(RefCell::new(values)))
    }

    /// The values, while no operation writes them.
    pub(super) fn values(&self) -> Ref<'_, HostTensor> {
        self.0.borrow()
    }

    /// The values of a cache, to write into.
    pub(super) fn values_mut(&self) -> RefMut<'_, HostTensor> {
        self.0.borrow_mut()
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
