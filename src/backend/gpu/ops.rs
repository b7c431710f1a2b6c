//! Each operation as dispatches: shapes checked, result allocated, kernels recorded.
//!
//! Design:
//! - Shapes are checked on the host ([`Op::check`]) before a kernel is recorded, because kernels trust them.
//! - A weight in several pieces is one dispatch a piece over the same output.
//! - Few positions go to the matrix-vector kernels, many to the tiled ones, as [`super::tuning`] says; both keep the contract of [`contract`].

use std::sync::Arc;

use super::attention::{QUAD, attention_params, attention_scale, in_window};
use super::copies::Places;
use super::device::Bound;
use super::fuse::{self, Launch, Turned, Waiting};
use super::kernels::{self, Kernel, Pipeline, Spec};
use super::layout::{PAIR, WeightLayout};
use super::linear_attention;
use super::params::{self, Params};
use super::tensor::{GpuTensor, Pooled};
use super::{GpuBackend, LANES, LANES_MATVEC_ROWS, MATVEC_ROWS, THREADS, TILE};
use crate::backend::{Contract, Order};
use crate::error::{Error, Result};
use crate::op::{GateActivation, GgmlType, Op, OpKind, Pairing, Rotation, Site, Weight};

/// Operations that wait at most: more than a layer has in a row, so that no group is torn apart.
const MOST_WAITING: usize = 32;

/// What the kernels promise. WGSL's own bounds on single operations; the orders are those that each .wgsl file states.
pub fn contract(op: OpKind) -> Contract {
    Contract::wgsl_f32(match op {
        // gemv.wgsl, tile.wgsl and lanes.wgsl: at most 8·⌈pairs / 16⌉ + 6, 10 + pairs and 10 + pairs additions, pairs = n / 32.
        // All are within 32 + n / 32, which is what blocks of 32 come to.
        OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul => Order::Blocked { block: 32 },
        OpKind::RmsNorm | OpKind::L2Norm | OpKind::AttnProbs | OpKind::RouterProbs => Order::Lanes { lanes: THREADS },
        OpKind::AttnScores => Order::Lanes { lanes: QUAD as u32 },
        // Of delta_rule.wgsl, whose threads take quads in turn and then add the four sums of one: ⌈D / 64⌉ + 2 + 4 additions at most, and
        // while D is below 64 fewer threads have any.
        OpKind::AttnContext | OpKind::DeltaRule => Order::Lanes { lanes: LANES },
        _ => Order::Sequential,
    })
}

/// The product of all axes but the last, and the last.
pub(super) fn rows_cols(t: &GpuTensor) -> (usize, usize) {
    let cols = t.shape().last().copied().unwrap_or(1);
    (t.len() / cols.max(1), cols)
}

impl GpuBackend {
    /// Workgroups of a one-dimensional kernel, folded into two dimensions under the adapter's limit.
    pub(super) fn fold(&self, groups: usize) -> [u32; 3] {
        let limit = self.device.limits.max_compute_workgroups_per_dimension as usize;
        let x = groups.clamp(1, limit);
        [x as u32, groups.div_ceil(x) as u32, 1]
    }

    /// Workgroups of THREADS threads that make `values` values, one a thread, folded likewise.
    pub(super) fn fold_values(&self, values: usize) -> [u32; 3] {
        self.fold(values.div_ceil(THREADS as usize))
    }

    /// Records a kernel without weights.
    pub(super) fn dispatch<P: Params>(
        &mut self,
        site: Site,
        kernel: Kernel<P>,
        bindings: &[Bound<'_>],
        params: P,
        grid: [u32; 3],
    ) -> Result<()> {
        let spec = kernel.spec(self.lanes);
        self.device.watch(spec.bindings, bindings, None)?;
        self.launch(site, kernel, bindings, params, grid)?;
        self.device.check_written(site, spec.name)
    }

    /// Records a kernel without weights, one of several that write the same output.
    pub(super) fn launch<P: Params>(
        &mut self,
        site: Site,
        kernel: Kernel<P>,
        bindings: &[Bound<'_>],
        params: P,
        grid: [u32; 3],
    ) -> Result<()> {
        let spec = kernel.spec(self.lanes);
        self.check_grid(site, spec.name, grid)?;
        let pipeline = self.pipeline(spec, None)?;
        self.device.timing.at(site);
        self.device.dispatch(&pipeline, bindings, bytemuck::cast_slice(&[params]), grid)
    }

    /// The pipeline of a kernel's file.
    fn pipeline(&mut self, spec: &'static Spec, layout: Option<&WeightLayout>) -> Result<Arc<Pipeline>> {
        let pipeline = self.pipelines.get(spec, layout);
        match &self.pipelines.refused {
            Some((name, why)) => Err(self.device.fail(format!("kernel {name}: {why}"))),
            None => Ok(pipeline),
        }
    }

    /// Records a kernel for the pieces of a weight. `launch` gives the parameters and the grid for a piece, or nothing where the
    /// piece has no part in the result.
    pub(super) fn dispatch_weight<P: Params>(
        &mut self,
        site: Site,
        kernel: Kernel<P>,
        weight: &Arc<Weight>,
        bindings: &[Bound<'_>],
        launch: impl Fn(params::Piece) -> Option<(P, [u32; 3])>,
    ) -> Result<()> {
        self.device.watch(kernel.spec(self.lanes).bindings, bindings, None)?;
        let name = self.launch_weight(site, kernel, weight, bindings, launch)?;
        self.device.check_written(site, &name)
    }

    /// The same, of several that write the same output. Returns the kernel's name.
    pub(super) fn launch_weight<P: Params>(
        &mut self,
        site: Site,
        kernel: Kernel<P>,
        weight: &Arc<Weight>,
        bindings: &[Bound<'_>],
        launch: impl Fn(params::Piece) -> Option<(P, [u32; 3])>,
    ) -> Result<String> {
        let spec = kernel.spec(self.lanes);
        let planned = self.weight(weight)?;
        let pipeline = self.pipeline(spec, Some(&planned.layout))?;
        self.device.timing.at(site);
        let needed = planned.pieces.iter().enumerate();
        let needed = Vec::from_iter(needed.filter_map(|(number, &piece)| Some((number, launch(piece)?))));
        if self.residents.streams() {
            let absent = needed.iter().filter(|(number, _)| !self.residents.holds((weight.id, self.lanes, *number)));
            let absent = absent.map(|(number, _)| &planned.pieces[*number]);
            absent.for_each(|piece| weight.read_ahead(piece.first as usize, piece.count as usize));
        }
        for (number, (params, grid)) in needed {
            self.check_grid(site, spec.name, grid)?;
            let piece = self.piece(weight, number, self.lanes, !self.residents.streams())?;
            let mut all = vec![piece.binding()];
            all.extend(bindings);
            self.device.dispatch(&pipeline, &all, bytemuck::cast_slice(&[params]), grid)?;
        }
        Ok(pipeline.name.clone())
    }

    fn check_grid(&self, site: Site, kernel: &str, grid: [u32; 3]) -> Result<()> {
        let limit = self.device.limits.max_compute_workgroups_per_dimension;
        if grid.iter().any(|&n| n > limit) {
            return Err(Error::cannot_run(format!(
                "{site}: {kernel} needs {grid:?} workgroups, the adapter allows {limit} in a dimension; use a smaller chunk"
            )));
        }
        Ok(())
    }

    /// Rows that a workgroup of the matrix-vector kernels makes.
    pub(super) fn matvec_rows(&self) -> u32 {
        if self.lanes { LANES_MATVEC_ROWS } else { MATVEC_ROWS }
    }

    /// Runs `op` and returns its result: now, or with what follows (see [`fuse`]).
    pub(super) fn run_op(&mut self, site: Site, op: &Op<'_, GpuTensor>) -> Result<GpuTensor> {
        let shape = &op.check(site, GpuTensor::operand)?[..];
        let failed = |t: &GpuTensor| t.0.memory.get().is_none() && !self.waiting.iter().any(|w| w.result.same(t));
        if op.inputs().into_iter().any(failed) {
            return Err(Error::cannot_run(format!("{site}: an operand's operation has failed")));
        }
        let result = match op {
            Op::Store { cache, x, .. } if cache.same(x) => {
                return Err(Error::usage(format!("{site} (Store): x is the cache itself")));
            }
            Op::Store { cache, .. } => cache.clone(),
            Op::RmsNorm { weight, .. } if weight.ty != GgmlType::F32 => {
                return Err(Error::cannot_run(format!(
                    "tensor {}: the GPU has norms with F32 weights, not {}",
                    weight.name, weight.ty
                )));
            }
            Op::AttnScores { head_dim, .. } | Op::AttnContext { head_dim, .. } if !head_dim.is_multiple_of(QUAD) => {
                return Err(Error::cannot_run(format!(
                    "{site}: the GPU has attention with a head_dim that is a multiple of {QUAD}, not {head_dim}"
                )));
            }
            &Op::DeltaRule { head_dim, .. } if linear_attention::refusal(site, head_dim).is_some() => {
                return Err(Error::cannot_run(linear_attention::refusal(site, head_dim).unwrap_or_default()));
            }
            _ => GpuTensor::new(shape, op.kind() == OpKind::RouterTopK, None, false),
        };
        // Rope's factors are in its table of angles.
        if let Some(weight) = op.weight().filter(|_| op.kind() != OpKind::Rope) {
            // Whether it can be uploaded is said now, not when the operation has waited.
            let matrix =
                matches!(op.kind(), OpKind::Embed | OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul);
            self.upload_weight(weight, self.lanes && matrix)?;
        }
        if let Op::Store { cache, start, .. } = op {
            self.states.written(cache, *start);
        }
        if fuse::waits(op.kind()) {
            self.waiting.push(Waiting { site, op: op.keep(), result: result.clone() });
            if self.waiting.len() >= MOST_WAITING {
                self.run_waiting()?;
            }
        } else {
            self.run_waiting()?;
            self.run_alone(site, op, &result)?;
        }
        Ok(result)
    }

    /// Runs the operations that wait.
    pub(super) fn run_waiting(&mut self) -> Result<()> {
        let all = std::mem::take(&mut self.waiting);
        // Handles of those who look, until it is decided what runs; gone with an error, as what they would copy is.
        let asked = std::mem::take(&mut self.asked);
        let stores = |store: usize| self.in_cache(&all[store].op.share()).is_some();
        for launch in fuse::launches(&all, stores) {
            self.run_launch(&all, &launch)?;
        }
        for (ticket, tensor) in asked {
            self.readback.fetch(&mut self.device, ticket, &tensor)?;
        }
        Ok(())
    }

    fn run_launch(&mut self, all: &[Waiting], launch: &Launch) -> Result<()> {
        let op = |i: usize| all[i].op.share();
        let site = |i: usize| all[i].site;
        let result = |i: usize| &all[i].result;
        match *launch {
            Launch::Alone(i) => self.run_alone(site(i), &op(i), result(i)),
            Launch::Attention { scores, probs: _, context } => {
                let (Op::AttnScores { q, k, start, head_dim, scale, window }, Op::AttnContext { v, .. }) =
                    (op(scores), op(context))
                else {
                    unreachable!("scores and a context")
                };
                let &[heads, positions, seen] = result(scores).shape() else { unreachable!("[heads, T, S]") };
                self.make(site(context), result(context))?;
                let of_op = [start, head_dim, in_window(window)];
                let params = attention_params([heads, seen, rows_cols(&k).1], of_op, attention_scale(scale, head_dim));
                let bindings = [q.binding(), k.binding(), v.binding(), result(context).binding()];
                let grid = [heads as u32, positions as u32, 1];
                self.dispatch(site(context), kernels::ATTENTION, &bindings, params, grid)
            }
            Launch::Stored { made, store } => {
                let store = op(store);
                let y = self.in_cache(&store).expect("only such stores join");
                match op(made) {
                    Op::MatMul { x, weight } => self.matmul(site(made), result(made).shape(), &x, weight, y),
                    Op::Bias { x, weight } => self.bias(site(made), &x, weight, y),
                    Op::Rope { x, start, head_dim, rotation } => {
                        self.rope(site(made), &x, start, head_dim, &rotation, y)
                    }
                    _ => unreachable!("products and rotations are stored"),
                }
            }
            Launch::NormRope(turned) => self.norm_rope(all, turned),
            Launch::NormRopes(both) => self.norm_ropes(all, both),
            Launch::AddNorm { add, norm } => {
                let (Op::Add { a, b }, Op::RmsNorm { weight, eps, .. }) = (op(add), op(norm)) else {
                    unreachable!("an addition and a norm")
                };
                let gpu = self.norm_weight(weight)?;
                let groups = a.len() / weight.cols;
                let params = params::AddNorm { n: weight.cols as u32, groups: groups as u32, eps };
                self.make(site(add), result(add))?;
                self.make(site(norm), result(norm))?;
                let (sum, y) = (result(add).binding(), result(norm).binding());
                let bindings = [gpu.binding(), a.binding(), b.binding(), sum, y];
                self.dispatch(site(norm), kernels::ADD_NORM, &bindings, params, self.fold(groups))
            }
            Launch::CombineAdd { combine, add } => {
                let (Op::Combine { down, weights }, Op::Add { a, b }) = (op(combine), op(add)) else {
                    unreachable!("a combination and an addition")
                };
                let other = if b.same(result(combine)) { a } else { b };
                self.make(site(add), result(add))?;
                let (y, k) = (result(add), rows_cols(&weights).1);
                let params = params::Combine { n: y.len() as u32, cols: rows_cols(y).1 as u32, k: k as u32 };
                let bindings = [other.binding(), down.binding(), weights.binding(), y.binding()];
                self.dispatch(site(add), kernels::COMBINE_ADD, &bindings, params, self.fold_values(y.len()))
            }
            Launch::CombineAddNorm { combine, add, norm } => {
                let (Op::Combine { down, weights }, Op::Add { a, b }, Op::RmsNorm { weight, eps, .. }) =
                    (op(combine), op(add), op(norm))
                else {
                    unreachable!("a combination, an addition and a norm")
                };
                let other = if b.same(result(combine)) { a } else { b };
                let gpu = self.norm_weight(weight)?;
                self.make(site(add), result(add))?;
                self.make(site(norm), result(norm))?;
                let (sum, y) = (result(add), result(norm));
                let (groups, k) = (sum.len() / weight.cols, rows_cols(&weights).1);
                let [n, rows, k] = [weight.cols, groups, k].map(|n| n as u32);
                let params = params::CombineAddNorm { n, groups: rows, cols: n, k, eps };
                let read = [gpu.binding(), other.binding(), down.binding(), weights.binding()];
                let bindings = [read[0], read[1], read[2], read[3], sum.binding(), y.binding()];
                self.dispatch(site(norm), kernels::COMBINE_ADD_NORM, &bindings, params, self.fold(groups))
            }
            Launch::Router { probs, ids, weights } => {
                let (Op::RouterProbs { logits, .. }, Op::RouterWeights { renormalise, scale, .. }) =
                    (op(probs), op(weights))
                else {
                    unreachable!("probabilities and weights")
                };
                let (positions, experts) = rows_cols(&logits);
                let k = rows_cols(result(ids)).1 as u32;
                let (experts, renormalise, scale) = (experts as u32, renormalise.into(), scale as f32);
                let params = params::Router { experts, k, renormalise, scale };
                for i in [probs, ids, weights] {
                    self.make(site(i), result(i))?;
                }
                let made = [probs, ids, weights].map(|i| result(i).binding());
                let bindings = [logits.binding(), made[0], made[1], made[2]];
                self.dispatch(site(weights), kernels::ROUTER, &bindings, params, [positions as u32, 1, 1])
            }
        }
    }

    /// Heads that are normalised and turned.
    fn norm_rope(&mut self, all: &[Waiting], Turned { norm, rope, store }: Turned) -> Result<()> {
        let (store, result, site) = (store.map(|at| all[at].op.share()), &all[rope].result, all[rope].site);
        if store.is_none() {
            self.make(site, result)?;
        }
        let y = match &store {
            Some(store) => self.in_cache(store).expect("only such stores join"),
            None => result.binding(),
        };
        let (Op::RmsNorm { x, weight, eps, .. }, Op::Rope { start, head_dim, rotation, .. }) =
            (all[norm].op.share(), all[rope].op.share())
        else {
            unreachable!("a norm and a rotation")
        };
        let (positions, cols) = rows_cols(&x);
        let angles = self.angles(site, head_dim, &rotation, start + positions)?;
        let gpu = self.norm_weight(weight)?;
        let groups = x.len() / head_dim;
        let [n, heads, start] = [head_dim, cols / head_dim, start].map(|n| n as u32);
        let params = params::NormRope { n, groups: groups as u32, heads, start, eps };
        let angles = Bound::buffer(&angles, angles.size());
        let bindings = [gpu.binding(), angles, x.binding(), y];
        self.dispatch(site, kernels::NORM_ROPE, &bindings, params, self.fold(groups))
    }

    /// Those of queries and of keys, at the same positions.
    fn norm_ropes(&mut self, all: &[Waiting], both: [Turned; 2]) -> Result<()> {
        let stores = both.map(|t| t.store.map(|at| all[at].op.share()));
        for (turned, store) in both.iter().zip(&stores) {
            if store.is_none() {
                self.make(all[turned.rope].site, &all[turned.rope].result)?;
            }
        }
        let [q_y, k_y] = [0, 1].map(|i| match &stores[i] {
            Some(store) => self.in_cache(store).expect("only such stores join"),
            None => all[both[i].rope].result.binding(),
        });
        let norms = both.map(|t| all[t.norm].op.share());
        let (Op::RmsNorm { x: q, weight: q_weight, eps, .. }, Op::RmsNorm { x: k, weight: k_weight, .. }) =
            (&norms[0], &norms[1])
        else {
            unreachable!("two norms")
        };
        let Op::Rope { start, head_dim, rotation, .. } = all[both[0].rope].op.share() else {
            unreachable!("a rotation")
        };
        let site = all[both[1].rope].site;
        let (positions, heads, kv_heads) = (q.shape()[0], rows_cols(q).1 / head_dim, rows_cols(k).1 / head_dim);
        let angles = self.angles(site, head_dim, &rotation, start + positions)?;
        let weights = [self.norm_weight(q_weight)?, self.norm_weight(k_weight)?];
        let groups = positions * (heads + kv_heads);
        let [n, heads, kv_heads, start] = [head_dim, heads, kv_heads, start].map(|n| n as u32);
        let params = params::NormRopes { n, groups: groups as u32, heads, kv_heads, start, eps: *eps };
        let angles = Bound::buffer(&angles, angles.size());
        let [of_q, of_k] = [weights[0].binding(), weights[1].binding()];
        let bindings = [of_q, of_k, angles, q.binding(), k.binding(), q_y, k_y];
        self.dispatch(site, kernels::NORM_ROPES, &bindings, params, self.fold(groups))
    }

    /// The rows of the cache that a `Store` writes, as the binding of a kernel that makes them; `None` if they have not all of their columns,
    /// or the adapter cannot bind where they start.
    fn in_cache<'t>(&self, store: &'t Op<'_, GpuTensor>) -> Option<Bound<'t>> {
        let Op::Store { cache, x, start } = store else { return None };
        let offset = (start * rows_cols(x).1) as u64 * 4;
        let buffer = cache.buffer();
        let (size, words, shape) = (x.bytes(), x.len() as u64, cache.shape());
        let whole = rows_cols(x).1 == rows_cols(cache).1;
        let fits = whole && offset.is_multiple_of(self.device.limits.min_storage_buffer_offset_alignment.into());
        fits.then_some(Bound::Buffer { buffer, offset, size, words, shape })
    }

    /// Records one operation, whose result goes to `y`.
    fn run_alone(&mut self, site: Site, op: &Op<'_, GpuTensor>, y: &GpuTensor) -> Result<()> {
        self.make(site, y)?;
        match op {
            Op::Embed { table, tokens, scale } => self.embed(site, table, tokens, *scale, y),
            &Op::RmsNorm { ref x, weight, eps, keep } => self.rms_norm(site, x, weight, eps, keep, y),
            Op::MatMul { x, weight } => self.matmul(site, y.shape(), x, weight, y.binding()),
            Op::Bias { x, weight } => self.bias(site, x, weight, y.binding()),
            Op::Rope { x, start, head_dim, rotation } => self.rope(site, x, *start, *head_dim, rotation, y.binding()),
            Op::Store { cache, x, start } => self.store(site, cache, x, *start),
            Op::AttnScores { q, k, start, head_dim, scale, window } => {
                let of_op = [*start, *head_dim, in_window(*window)];
                self.attn_scores(site, q, k, of_op, attention_scale(*scale, *head_dim), y)
            }
            Op::AttnProbs { scores, start, window, sinks } => {
                self.attn_probs(site, scores, *start, in_window(*window), *sinks, y)
            }
            Op::AttnContext { probs, v, start, head_dim, window } => {
                self.attn_context(site, probs, v, [*start, *head_dim, in_window(*window)], y)
            }
            Op::Add { a, b } => self.elementwise(site, kernels::ADD, a, b, y),
            Op::SwiGlu { gate, up, activation } => {
                let kernel = match activation {
                    GateActivation::Silu => kernels::SWIGLU,
                    GateActivation::GeluTanh => kernels::GEGLU,
                    GateActivation::Clamped => kernels::CLAMPED_SWISH,
                    GateActivation::Sigmoid => kernels::SIGMOID_GLU,
                };
                self.elementwise(site, kernel, gate, up, y)
            }
            Op::SigmoidGate { x, gate } => self.sigmoid_gate(site, x, gate, y),
            Op::RouterProbs { logits, sigmoid: false } => self.router_probs(site, logits, y),
            Op::RouterProbs { logits, sigmoid: true } => self.router_sigmoids(site, logits, y),
            Op::RouterTopK { probs, groups, .. } => self.router_topk(site, probs, *groups, y),
            Op::RouterWeights { probs, ids, softmax: true, .. } => self.router_softmax(site, probs, ids, y),
            Op::RouterWeights { probs, ids, renormalise, scale, .. } => {
                self.router_weights(site, probs, ids, (*renormalise, *scale as f32), y)
            }
            &Op::HeadMatMul { ref x, weight, head_dim, .. } => self.head_matmul(site, x, weight, head_dim, y),
            Op::ExpertMatMul { x, ids, weight } => self.expert_matmul(site, x, ids, weight, y),
            Op::ExpertBias { x, ids, weight } => self.expert_bias(site, x, ids, weight, y),
            Op::Combine { down, weights } => self.combine(site, down, weights, y),
            Op::Rows { x, start, .. } => self.rows(site, x, *start, y),
            &Op::Conv { ref x, ref cache, weight, start } => self.conv(site, x, cache, weight, start, y),
            &Op::L2Norm { ref x, first, heads, head_dim, eps } => {
                self.l2_norm(site, x, first, [heads, head_dim], eps, y)
            }
            Op::Decay { x, weight } => self.decay(site, x, weight, y),
            &Op::DeltaRule { ref q, ref k, ref v, ref decay, ref beta, start, head_dim, tiled } => {
                self.delta_rule(site, [q, k, v, decay, beta], [start, head_dim], tiled, y)
            }
        }
    }

    fn embed(&mut self, site: Site, table: &Arc<Weight>, tokens: &[u32], scale: f64, y: &GpuTensor) -> Result<()> {
        let ids = self.tensor(site, &[tokens.len()], true)?;
        self.device.write(ids.buffer(), 0, bytemuck::cast_slice(tokens));
        // A thread makes 16 values.
        let grid = [(table.cols.div_ceil(16) as u32).div_ceil(THREADS), tokens.len() as u32, 1];
        let launch = |piece: params::Piece| {
            let here = tokens.iter().any(|token| (piece.first..piece.first + piece.count).contains(token));
            here.then(|| (params::Embed { piece, cols: table.cols as u32, scale: scale as f32 }, grid))
        };
        self.dispatch_weight(site, kernels::EMBED, table, &[ids.binding(), y.binding()], launch)
    }

    fn rms_norm(
        &mut self,
        site: Site,
        x: &GpuTensor,
        weight: &Arc<Weight>,
        eps: f32,
        keep: usize,
        y: &GpuTensor,
    ) -> Result<()> {
        let n = weight.cols;
        let gpu = self.norm_weight(weight)?;
        let (rows, row) = rows_cols(x);
        let in_row = (row - keep) / n;
        let groups = rows * in_row;
        let bindings = [gpu.binding(), x.binding(), y.binding()];
        let params = {
            let [n, groups, in_row, row] = [n, groups, in_row, row].map(|n| n as u32);
            params::RmsNorm { n, groups, in_row, row, eps }
        };
        self.dispatch(site, kernels::RMS_NORM, &bindings, params, self.fold(groups))
    }

    /// `x` [R, K] with rows filled up with zeros to whole pairs, which is how weights are stored; `x` itself if they are, unless they
    /// are to be read from a texture and may change.
    pub(super) fn padded(&mut self, site: Site, x: &GpuTensor, cols: usize) -> Result<GpuTensor> {
        let padded = cols.next_multiple_of(PAIR);
        if padded == cols && !(self.lanes && x.0.changes) {
            return Ok(x.clone());
        }
        let rows = x.len() / cols;
        let y = self.tensor(site, &[rows, padded], false)?;
        self.copy(site, Places::of(x), cols, Places::of(&y), padded, rows)?;
        Ok(y)
    }

    /// `x` where kernels of the table's [`Access::Activations`](super::Access::Activations) find it.
    pub(super) fn activations<'x>(&mut self, site: Site, x: &'x GpuTensor) -> Result<Bound<'x>> {
        if !self.lanes {
            return Ok(x.binding());
        }
        if x.0.texture.get().is_none() {
            let texture = self.textures.take(&self.device, &site.to_string(), x.bytes())?;
            self.device.poison_texture(&texture.texture);
            texture.texture.copy_from(&mut self.device, x.buffer(), x.bytes());
            let _ = x.0.texture.set(texture); // it was empty
        }
        Ok(x.0.texture.get().map_or_else(|| x.binding(), |made| Bound::Texture(&made.texture)))
    }

    /// `shape` is that of the result, [T, N].
    fn matmul(&mut self, site: Site, shape: &[usize], x: &GpuTensor, weight: &Arc<Weight>, y: Bound<'_>) -> Result<()> {
        let positions = shape[0];
        let x = self.padded(site, x, weight.cols)?;
        let bindings = [self.activations(site, &x)?, y];
        let t = positions as u32;
        if positions <= self.tuning.vectors(OpKind::MatMul, weight.ty, None) {
            let rows = self.matvec_rows();
            let launch = |piece: params::Piece| Some((params::Matvec { piece }, [piece.count.div_ceil(rows), t, 1]));
            self.dispatch_weight(site, kernels::MATVEC, weight, &bindings, launch)
        } else {
            let grid = |count: u32| [count.div_ceil(TILE), t.div_ceil(TILE), 1];
            let launch = |piece: params::Piece| Some((params::Matmul { piece, positions: t }, grid(piece.count)));
            self.dispatch_weight(site, kernels::MATMUL, weight, &bindings, launch)
        }
    }

    fn bias(&mut self, site: Site, x: &GpuTensor, weight: &Arc<Weight>, y: Bound<'_>) -> Result<()> {
        let gpu = self.norm_weight(weight)?;
        let params = params::Bias { n: x.len() as u32, cols: weight.cols as u32 };
        self.dispatch(site, kernels::BIAS, &[gpu.binding(), x.binding(), y], params, self.fold_values(x.len()))
    }

    fn rope(
        &mut self,
        site: Site,
        x: &GpuTensor,
        start: usize,
        head_dim: usize,
        rotation: &Rotation<&Arc<Weight>>,
        y: Bound<'_>,
    ) -> Result<()> {
        let (positions, cols) = rows_cols(x);
        let angles = self.angles(site, head_dim, rotation, start + positions)?;
        let neighbours = (rotation.pairing == Pairing::Norm).into();
        let turned = rotation.turned(head_dim) / 2;
        let [pairs, heads, half_dim, turned, first, start] =
            [x.len() / 2, cols / head_dim, head_dim / 2, turned, rotation.first, start].map(|n| n as u32);
        let params = params::Rope { pairs, heads, half_dim, turned, first, start, neighbours };
        let bindings = [Bound::buffer(&angles, angles.size()), x.binding(), y];
        self.dispatch(site, kernels::ROPE, &bindings, params, self.fold_values(x.len() / 2))
    }

    fn elementwise(
        &mut self,
        site: Site,
        kernel: Kernel<params::Elementwise>,
        a: &GpuTensor,
        b: &GpuTensor,
        y: &GpuTensor,
    ) -> Result<()> {
        let params = params::Elementwise { n: a.len() as u32 };
        let bindings = [a.binding(), b.binding(), y.binding()];
        self.dispatch(site, kernel, &bindings, params, self.fold_values(a.len()))
    }

    fn sigmoid_gate(&mut self, site: Site, x: &GpuTensor, gate: &GpuTensor, y: &GpuTensor) -> Result<()> {
        let params = params::SigmoidGate { n: x.len() as u32, cols: rows_cols(x).1 as u32 };
        let bindings = [x.binding(), gate.binding(), y.binding()];
        self.dispatch(site, kernels::SIGMOID_GATE, &bindings, params, self.fold_values(x.len()))
    }

    /// Memory for so many words, filled up to a whole vec4, from the pool if it has it.
    ///
    /// # Errors
    /// `CannotRun` if it is over what the adapter can bind at once, or the device has no memory for it.
    pub(super) fn memory(&mut self, what: impl std::fmt::Display, words: u64) -> Result<Pooled> {
        let bytes = (4 * words).next_multiple_of(16);
        let limit = self.device.limits.max_storage_buffer_binding_size;
        if bytes > limit {
            return Err(Error::cannot_run(format!(
                "{what}: a tensor of {bytes} bytes is over the adapter's max_storage_buffer_binding_size of {limit}; use a \
                 smaller chunk"
            )));
        }
        let size = super::tensor::Pool::rounded(self.device.with_guards(bytes));
        let buffer = match self.pool.take(size) {
            Some(buffer) => buffer,
            None => {
                let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
                self.device.create_buffer(&what.to_string(), size, usage)?
            }
        };
        self.device.guard_tensor(&buffer, words);
        Ok(Pooled::new(buffer, &self.pool))
    }
}
