//! A backend that is lent for one run.

use super::{AnyBackend, Backend, pass_on};
use crate::error::Result;
use crate::op::{At, Op};

/// A backend that a wrapper may own for a while: it is somebody else's.
pub struct Lent<'a> {
    inner: &'a mut AnyBackend,
}

impl<'a> Lent<'a> {
    /// `inner`, to be used by one owner until it is dropped.
    pub fn new(inner: &'a mut AnyBackend) -> Self {
        Self { inner }
    }
}

impl Backend for Lent<'_> {
    pass_on!(inner: AnyBackend);

    fn run(&mut self, at: At, op: &Op<'_, Self::Tensor>) -> Result<Self::Tensor> {
        self.inner.run(at, op)
    }
}
