//! The dispatches of products by heads.

use std::sync::Arc;

use super::attention::QUAD;
use super::copies::Places;
use super::layout::PAIR;
use super::ops::rows_cols;
use super::tensor::GpuTensor;
use super::{GpuBackend, TILE, kernels, params};
use crate::error::Result;
use crate::op::{OpKind, Site, Weight};

impl GpuBackend {
    /// Of heads of x of `head_dim` columns; those that `y` has besides a product's rows follow it.
    pub(super) fn head_matmul(
        &mut self,
        site: Site,
        x: &GpuTensor,
        weight: &Arc<Weight>,
        head_dim: usize,
        y: &GpuTensor,
    ) -> Result<()> {
        let ((positions, cols), k, heads) = (rows_cols(x), weight.cols, weight.experts);
        let (of_x, width) = (cols / head_dim, rows_cols(y).1 / heads); // heads of x: as many, or one that all read
        // Kernels read whole pairs from places that are multiples of a vec4.
        let in_place = k.is_multiple_of(PAIR) && head_dim.is_multiple_of(QUAD) && !(self.lanes && x.0.changes);
        let (read, d) = if in_place {
            (x.clone(), head_dim)
        } else {
            let padded = k.next_multiple_of(PAIR);
            let read = self.tensor(site, &[positions * of_x, padded], false)?;
            self.copy(site, Places::every(x, 0, head_dim), k, Places::of(&read), padded, positions * of_x)?;
            (read, padded)
        };
        let bindings = [self.activations(site, &read)?, y.binding()];
        let few = positions <= self.tuning.vectors(OpKind::HeadMatMul, weight.ty, None);
        let kernel = if few { kernels::HEAD_MATVEC } else { kernels::HEAD_MATMUL };
        self.device.watch(kernel.spec(self.lanes).bindings, &bindings, None)?;
        let kept = width - weight.rows;
        if kept > 0 {
            let (from, to) = (Places::every(x, k, head_dim), Places::every(y, weight.rows, width));
            self.launch_copy(site, from, kept, to, [kept, positions * heads, heads / of_x])?;
        }
        let (tile, of_positions) =
            if few { (self.matvec_rows(), positions as u32) } else { (TILE, (positions as u32).div_ceil(TILE)) };
        let row = (of_x * d / QUAD) as u32;
        let head = if of_x == 1 { 0 } else { (d / QUAD) as u32 };
        let [rows, experts, width, positions] = [weight.rows, heads, width, positions].map(|n| n as u32);
        let launch = |piece: params::Piece| {
            // The heads of which the piece has rows.
            let (first, last) = (piece.first / rows, (piece.first + piece.count - 1) / rows);
            let params = params::HeadMatmul { piece, experts, first, row, head, width, positions };
            Some((params, [rows.div_ceil(tile), of_positions, last - first + 1]))
        };
        let name = self.launch_weight(site, kernel, weight, &bindings, launch)?;
        let name = if kept > 0 { format!("{name} with {}", kernels::COPY.spec(self.lanes).name) } else { name };
        self.device.check_written(site, &name)
    }
}
