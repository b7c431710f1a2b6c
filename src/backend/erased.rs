//! Backends chosen at run time: the tensor type hidden behind [`std::any::Any`].

use std::rc::Rc;
use std::sync::Arc;

use super::{Backend, BackendInfo, Contract, FusedKernel, KernelUse, Need, Shown, Ticket};
use crate::error::Result;
use crate::op::{At, HostTensor, Op, OpKind, Stage, Weight};

/// A handle to a tensor of a backend whose type is not known here.
pub type AnyTensor = Rc<dyn std::any::Any>;

/// A backend whose type is not known here.
pub type AnyBackend = Box<dyn Backend<Tensor = AnyTensor>>;

/// Hides a backend's tensor type, so that backends can be chosen at run time.
pub struct Erased<B: Backend>(pub B);

impl<B: Backend> Erased<B>
where
    B::Tensor: 'static,
{
    fn unwrap(tensor: &AnyTensor) -> &B::Tensor {
        tensor.downcast_ref().expect("a tensor is only used with the backend that made it")
    }
}

impl<B: Backend> Backend for Erased<B>
where
    B::Tensor: 'static,
{
    type Tensor = AnyTensor;
    fn info(&self) -> BackendInfo {
        self.0.info()
    }
    fn contract(&self, op: OpKind) -> Contract {
        self.0.contract(op)
    }
    fn stage_contract(&self, stage: Stage) -> Option<Contract> {
        self.0.stage_contract(stage)
    }
    fn unsupported(&self, needs: &[Need]) -> Vec<String> {
        self.0.unsupported(needs)
    }
    fn shown(&self, at: At, rows: usize) -> Shown {
        self.0.shown(at, rows)
    }
    fn fused(&self) -> &'static [FusedKernel] {
        self.0.fused()
    }
    fn kernels(&self, needs: &[Need]) -> Vec<KernelUse> {
        self.0.kernels(needs)
    }
    fn covering(&self, experts: Option<[usize; 2]>) -> usize {
        self.0.covering(experts)
    }
    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.0.prepare(weights, progress)
    }
    fn alloc(&mut self, shape: &[usize]) -> Result<AnyTensor> {
        Ok(Rc::new(self.0.alloc(shape)?))
    }
    fn upload(&mut self, values: &HostTensor) -> Result<AnyTensor> {
        Ok(Rc::new(self.0.upload(values)?))
    }
    fn shape(&self, tensor: &AnyTensor) -> Vec<usize> {
        self.0.shape(Self::unwrap(tensor))
    }
    fn run(&mut self, at: At, op: &Op<'_, AnyTensor>) -> Result<AnyTensor> {
        let op = op.try_map(|t| Ok(Self::unwrap(t).clone()))?;
        Ok(Rc::new(self.0.run(at, &op)?))
    }
    fn fetch(&mut self, tensor: &AnyTensor) -> Result<Ticket> {
        self.0.fetch(Self::unwrap(tensor))
    }
    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.0.take(ticket)
    }
    fn sync(&mut self) -> Result<()> {
        self.0.sync()
    }
}

impl Backend for AnyBackend {
    type Tensor = AnyTensor;
    fn info(&self) -> BackendInfo {
        (**self).info()
    }
    fn contract(&self, op: OpKind) -> Contract {
        (**self).contract(op)
    }
    fn stage_contract(&self, stage: Stage) -> Option<Contract> {
        (**self).stage_contract(stage)
    }
    fn unsupported(&self, needs: &[Need]) -> Vec<String> {
        (**self).unsupported(needs)
    }
    fn shown(&self, at: At, rows: usize) -> Shown {
        (**self).shown(at, rows)
    }
    fn fused(&self) -> &'static [FusedKernel] {
        (**self).fused()
    }
    fn kernels(&self, needs: &[Need]) -> Vec<KernelUse> {
        (**self).kernels(needs)
    }
    fn covering(&self, experts: Option<[usize; 2]>) -> usize {
        (**self).covering(experts)
    }
    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        (**self).prepare(weights, progress)
    }
    fn alloc(&mut self, shape: &[usize]) -> Result<AnyTensor> {
        (**self).alloc(shape)
    }
    fn upload(&mut self, values: &HostTensor) -> Result<AnyTensor> {
        (**self).upload(values)
    }
    fn shape(&self, tensor: &AnyTensor) -> Vec<usize> {
        (**self).shape(tensor)
    }
    fn run(&mut self, at: At, op: &Op<'_, AnyTensor>) -> Result<AnyTensor> {
        (**self).run(at, op)
    }
    fn fetch(&mut self, tensor: &AnyTensor) -> Result<Ticket> {
        (**self).fetch(tensor)
    }
    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        (**self).take(ticket)
    }
    fn sync(&mut self) -> Result<()> {
        (**self).sync()
    }
}
