//! The dispatches of routers and experts.

use std::sync::Arc;

use super::device::Bound;
use super::ops::rows_cols;
use super::tensor::{ChosenTiles, GpuTensor, SlotPlan};
use super::{GpuBackend, THREADS, TILE, kernels, params};
use crate::error::{Error, Result};
use crate::op::{GroupScore, Groups, OpKind, Site, Weight};

fn other_experts(site: Site, of: usize, experts: usize) -> Error {
    Error::cannot_run(format!("{site}: expert ids of {of} experts used with {experts} experts"))
}

impl GpuBackend {
    pub(super) fn router_probs(&mut self, site: Site, logits: &GpuTensor, y: &GpuTensor) -> Result<()> {
        let (positions, experts) = rows_cols(logits);
        let grid = [positions as u32, 1, 1];
        let params = params::RouterProbs { experts: experts as u32 };
        self.dispatch(site, kernels::ROUTER_PROBS, &[logits.binding(), y.binding()], params, grid)
    }

    pub(super) fn router_sigmoids(&mut self, site: Site, logits: &GpuTensor, y: &GpuTensor) -> Result<()> {
        let params = params::RouterSigmoids { n: y.len() as u32 };
        let grid = self.fold_values(y.len());
        self.dispatch(site, kernels::ROUTER_SIGMOIDS, &[logits.binding(), y.binding()], params, grid)
    }

    pub(super) fn router_topk(
        &mut self,
        site: Site,
        probs: &GpuTensor,
        groups: Option<Groups>,
        y: &GpuTensor,
    ) -> Result<()> {
        let (experts, &[positions, k]) = (rows_cols(probs).1, y.shape()) else { unreachable!("[T, K]") };
        let ([experts, k], grid) = ([experts, k].map(|n| n as u32), [positions as u32, 1, 1]);
        let bindings = [probs.binding(), y.binding()];
        let Some(Groups { count, used, by }) = groups else {
            return self.dispatch(site, kernels::ROUTER_TOPK, &bindings, params::RouterTopK { experts, k }, grid);
        };
        let two = (by == GroupScore::TopTwo).into();
        let params = params::RouterTopKGroups { experts, k, groups: count as u32, used: used as u32, two };
        self.dispatch(site, kernels::ROUTER_TOPK_GROUPS, &bindings, params, grid)
    }

    pub(super) fn router_weights(
        &mut self,
        site: Site,
        probs: &GpuTensor,
        ids: &GpuTensor,
        (renormalise, scale): (bool, f32),
        y: &GpuTensor,
    ) -> Result<()> {
        let (positions, experts) = rows_cols(probs);
        let k = rows_cols(ids).1;
        let [positions, experts, k] = [positions, experts, k].map(|n| n as u32);
        let params = params::RouterWeights { positions, experts, k, renormalise: renormalise.into(), scale };
        let bindings = [probs.binding(), ids.binding(), y.binding()];
        self.dispatch(site, kernels::ROUTER_WEIGHTS, &bindings, params, [positions.div_ceil(THREADS), 1, 1])
    }

    pub(super) fn router_softmax(
        &mut self,
        site: Site,
        logits: &GpuTensor,
        ids: &GpuTensor,
        y: &GpuTensor,
    ) -> Result<()> {
        let ((positions, experts), k) = (rows_cols(logits), rows_cols(ids).1);
        let [positions, experts, k] = [positions, experts, k].map(|n| n as u32);
        let params = params::RouterSoftmax { positions, experts, k };
        let bindings = [logits.binding(), ids.binding(), y.binding()];
        self.dispatch(site, kernels::ROUTER_SOFTMAX, &bindings, params, [positions.div_ceil(THREADS), 1, 1])
    }

    pub(super) fn expert_matmul(
        &mut self,
        site: Site,
        x: &GpuTensor,
        ids: &GpuTensor,
        weight: &Arc<Weight>,
        y: &GpuTensor,
    ) -> Result<()> {
        let (positions, k) = (y.shape()[0], y.shape()[1]);
        let slots = positions * k;
        // [T, n] is shared by the slots of a token, [T, K, n] has a row for each.
        let shared_by = if x.shape().len() == 2 { k as u32 } else { 1 };
        let x = self.padded(site, x, weight.cols)?;
        let (rows, experts) = (weight.rows as u32, weight.experts as u32);
        // Where all pieces are there, the host does not wait to know which are needed.
        let chosen = match self.residents.streams() {
            true => Some(self.chosen(site, ids, weight.experts)?),
            false => None,
        };
        if positions <= self.tuning.vectors(OpKind::ExpertMatMul, weight.ty, Some([weight.experts, k])) {
            let bindings = [self.activations(site, &x)?, ids.binding(), y.binding()];
            let grid = [rows.div_ceil(self.matvec_rows()), slots as u32, 1];
            let launch = |piece: params::Piece| {
                let needed = chosen.is_none_or(|chosen| !chosen.tiles(&piece).is_empty());
                needed.then_some((params::ExpertMatvec { piece, experts, shared_by }, grid))
            };
            self.dispatch_weight(site, kernels::EXPERT_MATVEC, weight, &bindings, launch)
        } else {
            let plan = self.expert_plan(site, ids, weight.experts)?;
            let plan_bound = Bound::buffer(&plan.memory.buffer, plan.bytes);
            let bindings = [self.activations(site, &x)?, plan_bound, y.binding()];
            let launch = |piece: params::Piece| {
                let tiles = chosen.map_or(0..plan.tiles, |chosen| chosen.tiles(&piece));
                let (slots, first_tile) = (slots as u32, tiles.start);
                let params = params::ExpertMatmul { piece, experts, shared_by, slots, first_tile };
                (!tiles.is_empty()).then_some((params, [rows.div_ceil(TILE), tiles.len() as u32, 1]))
            };
            self.dispatch_weight(site, kernels::EXPERT_MATMUL, weight, &bindings, launch)
        }
    }

    /// What the slots of `ids` chose, read back once for each tensor of ids: the host waits for them.
    pub(super) fn chosen<'t>(&mut self, site: Site, ids: &'t GpuTensor, experts: usize) -> Result<&'t ChosenTiles> {
        if ids.0.chosen.get().is_none() {
            let ticket = self.readback.ticket();
            self.readback.fetch(&mut self.device, ticket, ids)?;
            let values = self.readback.take(&mut self.device, ticket)?;
            let _ = ids.0.chosen.set(ChosenTiles::new(values.ids(), experts)); // it was empty
        }
        match ids.0.chosen.get() {
            Some(chosen) if chosen.experts() == experts => Ok(chosen),
            chosen => Err(other_experts(site, chosen.map_or(0, ChosenTiles::experts), experts)),
        }
    }

    /// The slots of `ids` sorted by expert; made once for each tensor of ids.
    pub(super) fn expert_plan<'t>(&mut self, site: Site, ids: &'t GpuTensor, experts: usize) -> Result<&'t SlotPlan> {
        let slots = ids.len();
        let plan = match ids.0.plan.get() {
            Some(plan) => plan,
            None => {
                // Σ ⌈n_e / TILE⌉ over the experts that are used, of which there are at most `slots`, or E and those unknown.
                let tiles = slots / TILE as usize + slots.min(experts + 1);
                let words = (experts + 1 + slots + 3 * tiles) as u64;
                let (bytes, memory) = (4 * words, self.memory(site, words)?);
                let params = params::ExpertPlan { slots: slots as u32, experts: experts as u32, tiles: tiles as u32 };
                let bindings = [ids.binding(), Bound::buffer(&memory.buffer, bytes)];
                self.dispatch(site, kernels::EXPERT_PLAN, &bindings, params, [1, 1, 1])?;
                ids.0.plan.get_or_init(|| SlotPlan { memory, bytes, experts, tiles: tiles as u32 })
            }
        };
        if plan.experts != experts {
            return Err(other_experts(site, plan.experts, experts));
        }
        Ok(plan)
    }

    /// A piece of the biases at a time, as they are in a buffer: rows of f32, filled up.
    pub(super) fn expert_bias(
        &mut self,
        site: Site,
        x: &GpuTensor,
        ids: &GpuTensor,
        weight: &Arc<Weight>,
        y: &GpuTensor,
    ) -> Result<()> {
        let planned = self.weight(weight)?;
        let spec = kernels::EXPERT_BIAS.spec(self.lanes);
        self.device.watch(spec.bindings, &[x.binding(), ids.binding(), y.binding()], None)?;
        for (number, piece) in planned.pieces.iter().enumerate() {
            let gpu = self.piece(weight, number, false, !self.residents.streams())?;
            let [n, cols, experts] = [x.len(), weight.cols, weight.rows].map(|n| n as u32);
            let (stride, first, count) = (4 * piece.stride, piece.first, piece.count);
            let params = params::ExpertBias { n, cols, stride, first, count, experts };
            let bindings = [gpu.binding(), x.binding(), ids.binding(), y.binding()];
            self.launch(site, kernels::EXPERT_BIAS, &bindings, params, self.fold_values(x.len()))?;
        }
        self.device.check_written(site, spec.name)
    }

    pub(super) fn combine(&mut self, site: Site, down: &GpuTensor, weights: &GpuTensor, y: &GpuTensor) -> Result<()> {
        let (k, cols) = (rows_cols(weights).1, y.shape()[1]);
        let grid = self.fold_values(y.len());
        let params = params::Combine { n: y.len() as u32, cols: cols as u32, k: k as u32 };
        self.dispatch(site, kernels::COMBINE, &[down.binding(), weights.binding(), y.binding()], params, grid)
    }
}
