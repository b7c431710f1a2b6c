//! The dispatches of attention.

use std::sync::Arc;

use super::ops::rows_cols;
use super::tensor::GpuTensor;
use super::{GpuBackend, THREADS, kernels, params};
use crate::error::Result;
use crate::op::{Site, Weight};

/// The kernels of attention read a head this many values at a time.
pub const QUAD: usize = 4;

/// 1 / √D where the model has no scale of its own.
pub(super) fn attention_scale(scale: Option<f64>, head_dim: usize) -> f32 {
    scale.unwrap_or(1.0 / (head_dim as f64).sqrt()) as f32
}

/// Of a head_dim that is a multiple of [`QUAD`], and keys of `kv_width` values a position.
pub(super) fn attention_params(
    [heads, seen, kv_width]: [usize; 3],
    [start, head_dim, window]: [usize; 3],
    scale: f32,
) -> params::AttnScores {
    let kv_heads = kv_width / head_dim;
    let [quads, heads, kv_heads, start, seen, window] =
        [head_dim / QUAD, heads, kv_heads, start, seen, window].map(|n| n as u32);
    params::AttnScores { quads, heads, kv_heads, start, seen, window, scale }
}

/// How many keys a position sees, as the kernels count: more than there are where there is no window.
pub(super) fn in_window(window: Option<usize>) -> usize {
    window.unwrap_or(u32::MAX as usize)
}

impl GpuBackend {
    pub(super) fn attn_scores(
        &mut self,
        site: Site,
        q: &GpuTensor,
        k: &GpuTensor,
        [start, head_dim, window]: [usize; 3],
        scale: f32,
        y: &GpuTensor,
    ) -> Result<()> {
        let &[heads, positions, seen] = y.shape() else { unreachable!("[heads, T, S]") };
        let grid = [seen.div_ceil(THREADS as usize), positions, heads].map(|n| n as u32);
        let params = attention_params([heads, seen, rows_cols(k).1], [start, head_dim, window], scale);
        self.dispatch(site, kernels::ATTN_SCORES, &[q.binding(), k.binding(), y.binding()], params, grid)
    }

    pub(super) fn attn_probs(
        &mut self,
        site: Site,
        scores: &GpuTensor,
        start: usize,
        window: usize,
        sinks: Option<&Arc<Weight>>,
        y: &GpuTensor,
    ) -> Result<()> {
        let &[heads, positions, seen] = scores.shape() else { unreachable!("[heads, T, S]") };
        let grid = [positions as u32, heads as u32, 1];
        let params = params::AttnProbs { start: start as u32, seen: seen as u32, window: window as u32 };
        let (x, y) = (scores.binding(), y.binding());
        let Some(sinks) = sinks else { return self.dispatch(site, kernels::ATTN_PROBS, &[x, y], params, grid) };
        let gpu = self.norm_weight(sinks)?;
        self.dispatch(site, kernels::ATTN_PROBS_SINKS, &[gpu.binding(), x, y], params, grid)
    }

    pub(super) fn attn_context(
        &mut self,
        site: Site,
        probs: &GpuTensor,
        v: &GpuTensor,
        [start, head_dim, window]: [usize; 3],
        y: &GpuTensor,
    ) -> Result<()> {
        let &[heads, positions, seen] = probs.shape() else { unreachable!("[heads, T, S]") };
        let (quads, kv_heads) = (head_dim / QUAD, rows_cols(v).1 / head_dim);
        let grid = [heads as u32, positions as u32, 1];
        let [quads, heads, kv_heads, start, seen, window] =
            [quads, heads, kv_heads, start, seen, window].map(|n| n as u32);
        let params = params::AttnContext { quads, heads, kv_heads, start, seen, window };
        self.dispatch(site, kernels::ATTN_CONTEXT, &[probs.binding(), v.binding(), y.binding()], params, grid)
    }
}
