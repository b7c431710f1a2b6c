//! Which of the kernels that a run may choose have been run.

use std::collections::BTreeMap;

use super::{GpuBackend, THREADS, TILE, kernels};
use crate::backend::{KernelUse, Need};
use crate::op::OpKind;

/// See [`Backend::covering`](crate::backend::Backend::covering). A workgroup of attention has a thread for each of so many keys or positions. However a
/// router shares out T tokens, one of its E experts gets T·used/E of their slots or more.
pub(super) fn positions(experts: Option<[usize; 2]>) -> usize {
    let tile = TILE as usize;
    let of_an_expert = experts.map_or(0, |[experts, used]| tile * experts / used.max(1) + 1);
    (THREADS as usize + 1).max(tile + 1).max(of_an_expert)
}

impl GpuBackend {
    /// The matrix kernels for the weights of `needs`: of each operation and type one for few positions and one for many.
    pub(super) fn kernel_uses(&self, needs: &[Need]) -> Vec<KernelUse> {
        let mut uses = BTreeMap::new();
        for need in needs {
            let (few, many) = match need.op {
                OpKind::MatMul => (kernels::MATVEC.spec(self.lanes), kernels::MATMUL.spec(self.lanes)),
                OpKind::ExpertMatMul => {
                    (kernels::EXPERT_MATVEC.spec(self.lanes), kernels::EXPERT_MATMUL.spec(self.lanes))
                }
                OpKind::HeadMatMul => (kernels::HEAD_MATVEC.spec(self.lanes), kernels::HEAD_MATMUL.spec(self.lanes)),
                _ => continue,
            };
            let most = self.tuning.vectors(need.op, need.ty, need.experts);
            for (spec, positions) in [(few, 1..=most), (many, most.saturating_add(1)..=usize::MAX)] {
                if positions.is_empty() {
                    continue;
                }
                let name = format!("{}/{}", spec.name, need.ty);
                let ran = self.pipelines.has(spec, need.ty);
                uses.insert(name.clone(), KernelUse { name, ran, positions });
            }
        }
        uses.into_values().collect()
    }
}
