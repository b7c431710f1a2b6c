//! What every wrapper over a backend has in common.

/// The methods of a [`Backend`](super::Backend) over another that only pass the call on: all but `run`.
/// `pass_on!(inner: B)` for a wrapper whose field `inner` is, or refers to, a backend of type `B`.
macro_rules! pass_on {
    ($inner:ident: $backend:ty) => {
        type Tensor = <$backend as $crate::backend::Backend>::Tensor;

        fn info(&self) -> $crate::backend::BackendInfo {
            self.$inner.info()
        }
        fn contract(&self, op: $crate::op::OpKind) -> $crate::backend::Contract {
            self.$inner.contract(op)
        }
        fn stage_contract(&self, stage: $crate::op::Stage) -> Option<$crate::backend::Contract> {
            self.$inner.stage_contract(stage)
        }
        fn unsupported(&self, needs: &[$crate::backend::Need]) -> Vec<String> {
            self.$inner.unsupported(needs)
        }
        fn shown(&self, at: $crate::op::At, rows: usize) -> $crate::backend::Shown {
            self.$inner.shown(at, rows)
        }
        fn fused(&self) -> &'static [$crate::backend::FusedKernel] {
            self.$inner.fused()
        }
        fn kernels(&self, needs: &[$crate::backend::Need]) -> Vec<$crate::backend::KernelUse> {
            self.$inner.kernels(needs)
        }
        fn covering(&self, experts: Option<[usize; 2]>) -> usize {
            self.$inner.covering(experts)
        }
        fn prepare(
            &mut self,
            weights: &[std::sync::Arc<$crate::op::Weight>],
            progress: &mut dyn FnMut(u64),
        ) -> $crate::Result<()> {
            self.$inner.prepare(weights, progress)
        }
        fn alloc(&mut self, shape: &[usize]) -> $crate::Result<Self::Tensor> {
            self.$inner.alloc(shape)
        }
        fn upload(&mut self, values: &$crate::op::HostTensor) -> $crate::Result<Self::Tensor> {
            self.$inner.upload(values)
        }
        fn shape(&self, tensor: &Self::Tensor) -> Vec<usize> {
            self.$inner.shape(tensor)
        }
        fn fetch(&mut self, tensor: &Self::Tensor) -> $crate::Result<$crate::backend::Ticket> {
            self.$inner.fetch(tensor)
        }
        fn take(&mut self, ticket: $crate::backend::Ticket) -> $crate::Result<$crate::op::HostTensor> {
            self.$inner.take(ticket)
        }
        fn sync(&mut self) -> $crate::Result<()> {
            self.$inner.sync()
        }
    };
}

pub(crate) use pass_on;
