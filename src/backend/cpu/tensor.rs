//! The CPU's tensor: values on the host behind a handle that is cheap to clone.
//!
//! Design:
//! - A handle is an `Rc` to a [`HostTensor`]. Every operation makes a new tensor; only a KV cache is written in place, and
//!   for it alone there is the `RefCell`. Borrows last for one operation, and a backend is used by one thread at a time.

use std::cell::{Ref, RefCell, RefMut};
use std::rc::Rc;

use crate::op::Site;
use crate::op::{Data, HostTensor};
use crate::{Error, Result};

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

    pub(super) fn shape(&self) -> Vec<usize> {
        self.0.borrow().shape.clone()
    }

    pub(super) fn to_host(&self) -> HostTensor {
        self.0.borrow().clone()
    }

    /// The f32 values, or an error that names `operand`.
    pub(super) fn f32(&self, site: Site, operand: &str) -> Result<Ref<'_, [f32]>> {
        Ref::filter_map(self.0.borrow(), |t| match &t.data {
            Data::F32(v) => Some(v.as_slice()),
            _ => None,
        })
        .map_err(|t| Error::usage(format!("{site}: {operand} is {} where f32 was expected", t.dtype())))
    }

    /// The expert ids, or an error that names `operand`.
    pub(super) fn ids(&self, site: Site, operand: &str) -> Result<Ref<'_, [u32]>> {
        Ref::filter_map(self.0.borrow(), |t| match &t.data {
            Data::U32(v) => Some(v.as_slice()),
            _ => None,
        })
        .map_err(|t| Error::usage(format!("{site}: {operand} is {} where u32 ids were expected", t.dtype())))
    }

    /// The f32 values to write into, or an error that names `operand`.
    pub(super) fn f32_mut(&self, site: Site, operand: &str) -> Result<RefMut<'_, [f32]>> {
        RefMut::filter_map(self.0.borrow_mut(), |t| match &mut t.data {
            Data::F32(v) => Some(v.as_mut_slice()),
            _ => None,
        })
        .map_err(|t| Error::usage(format!("{site}: {operand} is {} where f32 was expected", t.dtype())))
    }

    /// Whether both handles are to the same values.
    pub(super) fn same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}
