//! The dispatches of linear attention, and the states that delta rules leave.
//!
//! Design:
//! - A delta rule is a function of its operands, from position 0 on: that is what is judged, replayed and recorded.
//! - **The state that a call ends with is kept**, so that the next one, which begins where it ended, does not compute it again. It is the
//!   state of the same steps on the same rows, to the bit; once a row before it is written again, it is forgotten.
//! - A state is no part of a tensor's memory: it is kept beside caches as long as somebody else holds them.

use std::fmt::Display;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::attention::{QUAD, attention_scale};
use super::ops::rows_cols;
use super::tensor::{GpuTensor, Inner};
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

/// States by the caches that they are of.
#[derive(Default)]
pub(super) struct DeltaStates(Vec<KeptState>);

/// The state before a position.
struct KeptState {
    /// Of keys, values, decays and betas; a state keeps none of them alive.
    caches: [Weak<Inner>; 4],
    position: usize,
    sizes: StateSizes,
    /// [Hv, D / 4, D, 4]
    states: GpuTensor,
}

/// What a call is besides its operands.
#[derive(Clone, Copy, PartialEq)]
struct StateSizes {
    head_dim: usize,
    key_heads: usize,
    value_heads: usize,
    tiled: bool,
}

fn is(own: &Weak<Inner>, cache: &GpuTensor) -> bool {
    std::ptr::eq(own.as_ptr(), Rc::as_ptr(&cache.0)) // no other tensor has the place of one that is pointed to
}

impl DeltaStates {
    /// Forgets those of sequences that are done.
    pub(super) fn tidy(&mut self) {
        self.0.retain(|kept| kept.caches.iter().all(|cache| cache.strong_count() > 0));
    }

    /// Forgets what depends on rows of `cache` from `start` on, which are written.
    pub(super) fn written(&mut self, cache: &GpuTensor, start: usize) {
        self.0.retain(|kept| start >= kept.position || !kept.caches.iter().any(|own| is(own, cache)));
    }

    /// The state before `position`, which is taken out.
    fn take(&mut self, caches: [&GpuTensor; 4], position: usize, sizes: StateSizes) -> Option<GpuTensor> {
        let of = |kept: &KeptState| kept.caches.iter().zip(caches).all(|(own, cache)| is(own, cache));
        let at = self.0.iter().position(of)?;
        let kept = self.0.swap_remove(at);
        (kept.position == position && kept.sizes == sizes).then_some(kept.states)
    }

    fn keep(&mut self, caches: [&GpuTensor; 4], position: usize, sizes: StateSizes, states: GpuTensor) {
        self.tidy();
        let caches = caches.map(|cache| Rc::downgrade(&cache.0));
        self.0.push(KeptState { caches, position, sizes, states });
    }
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
        let [q, k, v, decay, beta] = tensors;
        let caches = [k, v, decay, beta];
        let ((positions, key_cols), v_cols, heads) = (rows_cols(q), rows_cols(v).1, rows_cols(decay).1);
        let sizes = StateSizes { head_dim, key_heads: key_cols / head_dim, value_heads: heads, tiled };
        let before = self.states.take(caches, start, sizes);
        let after = self.tensor(site, &[heads, head_dim / QUAD, head_dim, QUAD], false)?;
        let grid = [(head_dim as u32).div_ceil(COLUMNS), heads as u32, 1];
        let v_first = v_cols - heads * head_dim;
        let kept = if before.is_some() { start } else { 0 };
        let seen = start + positions;
        let params = {
            let numbers = [head_dim / QUAD, heads, sizes.key_heads, kept, start, seen, v_cols, v_first];
            let [quads, heads, key_heads, kept, start, seen, v_cols, v_first] = numbers.map(|n| n as u32);
            let (tiled, scale) = (tiled.into(), attention_scale(None, head_dim));
            params::DeltaRule { quads, heads, key_heads, tiled, kept, start, seen, v_cols, v_first, scale }
        };
        let [q, k, v, decay, beta] = tensors.map(GpuTensor::binding);
        // Without a state anything may be bound, which is not read.
        let from = before.as_ref().map_or(q, GpuTensor::binding);
        let bindings = [q, k, v, decay, beta, from, after.binding(), y.binding()];
        self.dispatch(site, kernels::DELTA_RULE, &bindings, params, grid)?;
        self.states.keep(caches, seen, sizes, after);
        Ok(())
    }
}
