//! The dispatches that only move words.

use super::ops::rows_cols;
use super::tensor::GpuTensor;
use super::{GpuBackend, kernels, params};
use crate::error::Result;
use crate::op::Site;

/// Places of a tensor, as far apart as its rows are.
#[derive(Clone, Copy)]
pub(super) struct Places<'t> {
    tensor: &'t GpuTensor,
    /// In words: the first, and from one to the next.
    first: usize,
    stride: usize,
}

impl<'t> Places<'t> {
    /// Where the rows of a tensor begin.
    pub(super) fn of(tensor: &'t GpuTensor) -> Self {
        Self { tensor, first: 0, stride: rows_cols(tensor).1 }
    }

    /// Word `first` and every `stride`-th after it.
    pub(super) fn every(tensor: &'t GpuTensor, first: usize, stride: usize) -> Self {
        Self { tensor, first, stride }
    }
}

impl GpuBackend {
    /// `x_cols` words from each of `rows` places of `x` on, to the `y_cols` words from those of `y` on, which fill what is between them; what x lacks is 0.
    pub(super) fn copy(
        &mut self,
        site: Site,
        x: Places<'_>,
        x_cols: usize,
        y: Places<'_>,
        y_cols: usize,
        rows: usize,
    ) -> Result<()> {
        let bindings = [x.tensor.binding(), y.tensor.binding()];
        let written = y.first as u64..(y.first + rows * y_cols) as u64;
        let spec = kernels::COPY.spec(self.lanes);
        self.device.watch(spec.bindings, &bindings, Some(written))?;
        self.launch_copy(site, x, x_cols, y, [y_cols, rows, 1])?;
        self.device.check_written(site, spec.name)
    }

    /// The same where others write the rest of `y`. Every `shared_by` places of y get what is at one of x.
    pub(super) fn launch_copy(
        &mut self,
        site: Site,
        x: Places<'_>,
        x_cols: usize,
        y: Places<'_>,
        [y_cols, rows, shared_by]: [usize; 3],
    ) -> Result<()> {
        let params = {
            let numbers = [rows * y_cols, y_cols, x_cols, y.stride, x.stride, shared_by, x.first, y.first];
            let [words, y_cols, x_cols, y_row, x_row, shared_by, from_, to] = numbers.map(|n| n as u32);
            params::Copy { words, y_cols, x_cols, y_row, x_row, shared_by, from_, to }
        };
        let bindings = [x.tensor.binding(), y.tensor.binding()];
        self.launch(site, kernels::COPY, &bindings, params, self.fold_values(rows * y_cols))
    }

    /// The first columns of x, as many as the cache has.
    pub(super) fn store(&mut self, site: Site, cache: &GpuTensor, x: &GpuTensor, start: usize) -> Result<()> {
        let (positions, n) = (rows_cols(x).0, rows_cols(cache).1);
        self.copy(site, Places::of(x), n, Places::every(cache, start * n, n), n, positions)
    }

    pub(super) fn rows(&mut self, site: Site, x: &GpuTensor, start: usize, y: &GpuTensor) -> Result<()> {
        let (rows, cols) = rows_cols(y);
        self.copy(site, Places::every(x, start * cols, cols), cols, Places::of(y), cols, rows)
    }
}
