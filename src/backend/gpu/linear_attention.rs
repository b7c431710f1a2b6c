//! The dispatches of linear attention.

use std::fmt::Display;
use std::sync::Arc;

use super::attention::{QUAD, attention_scale};
use super::ops::rows_cols;
use super::tensor::GpuTensor;
use super::{COLUMNS, GpuBackend, LANES, STATE_QUADS, kernels, params};
use crate::error::Result;
use crate::op::{Site, Weight};

/// Longest head of delta_rule.wgsl, whose threads hold the state.
const MOST_HEAD_DIM: usize = QUAD * (STATE_QUADS * LANES) as usize;

/// Why there is no delta rule on heads of this size, if there is none; `what` needs it.
pub(super) fn refusal(what: impl Display, head_dim: usize) -> Option<String> {
    let fits = head_dim.is_multiple_of(QUAD) && head_dim <= MOST_HEAD_DIM;
    (!fits).then(|| {
        format!(
            "{what}: the GPU has a delta rule with a head_dim that is a multiple of {QUAD} and at most {MOST_HEAD_DIM}, not {head_dim}"
        )
    })
}

impl GpuBackend {
    pub(super) fn conv(
        &mut self,
        site: Site,
        x: &GpuTensor,
        cache: &GpuTensor,
        weight: &Arc<Weight>,
        start: usize,
        y: &GpuTensor,
    ) -> Result<()> {
        let (positions, channels) = rows_cols(x);
        let planned = self.weight(weight)?;
        let spec = kernels::CONV.spec(self.lanes);
        self.device.watch(spec.bindings, &[x.binding(), cache.binding(), y.binding()], None)?;
        for (number, piece) in planned.pieces.iter().enumerate() {
            let gpu = self.piece(weight, number, false, !self.residents.streams())?;
            let values = positions * piece.count as usize;
            let [n, channels, kernel, start] = [values, channels, weight.cols, start].map(|n| n as u32);
            let (stride, first, count) = (4 * piece.stride, piece.first, piece.count);
            let params = params::Conv { n, channels, kernel, stride, first, count, start };
            let bindings = [gpu.binding(), x.binding(), cache.binding(), y.binding()];
            self.launch(site, kernels::CONV, &bindings, params, self.fold_values(values))?;
        }
        self.device.check_written(site, spec.name)
    }

    pub(super) fn l2_norm(
        &mut self,
        site: Site,
        x: &GpuTensor,
        first: usize,
        [heads, head_dim]: [usize; 2],
        eps: f32,
        y: &GpuTensor,
    ) -> Result<()> {
        let groups = y.len() / head_dim;
        let [n, groups_, heads, cols, first] = [head_dim, groups, heads, rows_cols(x).1, first].map(|n| n as u32);
        let params = params::L2Norm { n, groups: groups_, heads, cols, first, eps };
        self.dispatch(site, kernels::L2_NORM, &[x.binding(), y.binding()], params, self.fold(groups))
    }

    pub(super) fn decay(&mut self, site: Site, x: &GpuTensor, weight: &Arc<Weight>, y: &GpuTensor) -> Result<()> {
        let gpu = self.norm_weight(weight)?;
        let params = params::Decay { n: x.len() as u32, cols: weight.cols as u32 };
        let bindings = [gpu.binding(), x.binding(), y.binding()];
        self.dispatch(site, kernels::DECAY, &bindings, params, self.fold_values(x.len()))
    }

    /// `tensors`: q, and the caches of k, v, decay and beta.
    pub(super) fn delta_rule(
        &mut self,
        site: Site,
        tensors: [&GpuTensor; 5],
        [start, head_dim]: [usize; 2],
        tiled: bool,
        y: &GpuTensor,
    ) -> Result<()> {
        let [q, _, v, decay, _] = tensors;
        let ((positions, key_cols), v_cols, heads) = (rows_cols(q), rows_cols(v).1, rows_cols(decay).1);
        let grid = [(head_dim as u32).div_ceil(COLUMNS), heads as u32, 1];
        let v_first = v_cols - heads * head_dim;
        let [quads, heads, key_heads, start, seen, v_cols, v_first] =
            [head_dim / QUAD, heads, key_cols / head_dim, start, start + positions, v_cols, v_first].map(|n| n as u32);
        let (tiled, scale) = (tiled.into(), attention_scale(None, head_dim));
        let params = params::DeltaRule { quads, heads, key_heads, tiled, start, seen, v_cols, v_first, scale };
        let [q, k, v, decay, beta] = tensors.map(GpuTensor::binding);
        self.dispatch(site, kernels::DELTA_RULE, &[q, k, v, decay, beta, y.binding()], params, grid)
    }
}
