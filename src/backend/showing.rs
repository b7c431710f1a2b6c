//! A backend of which only some stages can be seen.

use super::{Backend, Shown, Ticket};
use crate::error::Result;
use crate::op::{At, HostTensor, Op, Stage};

/// A backend that runs as it is and shows only some of what it makes: as one does whose kernels are fused, or a capture of a few
/// stages. What lies between is judged as segments.
pub struct Showing<B> {
    inner: B,
    stages: Vec<Stage>,
}

impl<B: Backend> Showing<B> {
    /// `inner`, of which only `stages` can be seen.
    pub fn new(inner: B, stages: &[Stage]) -> Self {
        Self { inner, stages: stages.to_vec() }
    }
}

impl<B: Backend> Backend for Showing<B> {
    type Tensor = B::Tensor;

    fn info(&self) -> super::BackendInfo {
        self.inner.info()
    }
    fn contract(&self, op: crate::op::OpKind) -> super::Contract {
        self.inner.contract(op)
    }
    fn stage_contract(&self, stage: crate::op::Stage) -> Option<super::Contract> {
        self.inner.stage_contract(stage)
    }
    fn unsupported(&self, needs: &[super::Need]) -> Vec<String> {
        self.inner.unsupported(needs)
    }
    fn shown(&self, at: At, rows: usize) -> Shown {
        if self.stages.contains(&at.site.stage) { self.inner.shown(at, rows) } else { Shown::Nothing }
    }
    fn fused(&self) -> &'static [super::FusedKernel] {
        self.inner.fused()
    }
    fn kernels(&self, needs: &[super::Need]) -> Vec<super::KernelUse> {
        self.inner.kernels(needs)
    }
    fn covering(&self, experts: Option<[usize; 2]>) -> usize {
        self.inner.covering(experts)
    }
    fn prepare(&mut self, weights: &[std::sync::Arc<crate::op::Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.inner.prepare(weights, progress)
    }
    fn alloc(&mut self, shape: &[usize]) -> Result<B::Tensor> {
        self.inner.alloc(shape)
    }
    fn upload(&mut self, values: &HostTensor) -> Result<B::Tensor> {
        self.inner.upload(values)
    }
    fn shape(&self, tensor: &B::Tensor) -> Vec<usize> {
        self.inner.shape(tensor)
    }
    fn run(&mut self, at: At, op: &Op<'_, B::Tensor>) -> Result<B::Tensor> {
        self.inner.run(at, op)
    }
    fn fetch(&mut self, tensor: &B::Tensor) -> Result<Ticket> {
        self.inner.fetch(tensor)
    }
    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.inner.take(ticket)
    }
    fn sync(&mut self) -> Result<()> {
        self.inner.sync()
    }
}
