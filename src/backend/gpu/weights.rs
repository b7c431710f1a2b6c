//! Weights in GPU memory: uploaded once, quantized as they are, in pieces that fit a binding.
//!
//! Design:
//! - A weight is cut by rows, counted through all experts, into pieces of whole rows under the adapter's
//!   `max_storage_buffer_binding_size`. A kernel runs once for each piece and makes the outputs of that piece's rows, so an
//!   expert, or the row tile of one, may lie in two pieces.
//! - Rows are repacked on the way (see [`super::layout`]) through one bounded chunk of host memory; every few dozen chunks
//!   the queue is submitted and waited for, so that the driver's staging memory is bounded too.

use std::sync::Arc;

use super::device::Device;
use super::layout::Layout;
use crate::error::{Error, Result};
use crate::op::Weight;

/// Bytes repacked and written at a time.
const CHUNK: usize = 4 << 20;
/// Chunks written before the queue is submitted and waited for.
const CHUNKS_A_SUBMIT: usize = 24;

/// Rows `first..first + count` of a weight, counted through all experts.
pub struct Piece {
    pub buffer: wgpu::Buffer,
    pub first: u32,
    pub count: u32,
}

/// A weight in GPU memory.
pub struct GpuWeight {
    pub layout: Layout,
    pub pieces: Vec<Piece>,
    /// Pairs of runs of 16 weights in a row.
    pub pairs: u32,
    /// `vec4<u32>`s in a row.
    pub stride: u32,
    /// `vec4<u32>`s from a row's start to its tail plane.
    pub tail: u32,
}

impl GpuWeight {
    /// Bytes of GPU memory that `weight` takes, and the pieces it takes them in, if a binding holds `limit` bytes. `None` if
    /// its type has no kernels or a row is over the limit.
    pub fn plan(weight: &Weight, limit: u64) -> Option<(u64, usize)> {
        let rows = (weight.rows * weight.experts) as u64;
        let (bytes, pieces) = Layout::of(weight.ty)?.plan(weight.cols, rows, limit)?;
        Some((bytes, pieces as usize))
    }

    /// Uploads a weight; `progress` is told the source bytes done so far.
    ///
    /// # Errors
    /// `CannotRun` if its type has no kernels, one row is over `limit` bytes, or the device has no memory for it.
    pub fn upload(
        device: &mut Device,
        weight: &Arc<Weight>,
        limit: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let name = &weight.name;
        let layout = Layout::of(weight.ty)
            .ok_or_else(|| Error::cannot_run(format!("tensor {name}: the GPU has no kernels for {}", weight.ty)))?;
        let stride = layout.stride(weight.cols);
        let row_bytes = stride * 16;
        let rows = weight.rows * weight.experts;
        let rows_a_piece = (limit / row_bytes.max(1) as u64).min(rows as u64) as usize;
        if rows_a_piece == 0 || u32::try_from(rows).is_err() {
            return Err(Error::cannot_run(format!(
                "tensor {name}: {rows} rows of {row_bytes} bytes cannot be bound {limit} bytes at a time"
            )));
        }
        let rows_a_chunk = (CHUNK / row_bytes).max(1);
        let mut pieces = Vec::new();
        let mut chunk = Vec::new();
        let mut chunks = 0;
        for first in (0..rows).step_by(rows_a_piece) {
            let count = rows_a_piece.min(rows - first);
            // The source of a copy only where dispatches are recorded.
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
            let buffer = device.create_buffer(name, (count * row_bytes) as u64, usage)?;
            for start in (0..count).step_by(rows_a_chunk) {
                let n = rows_a_chunk.min(count - start);
                chunk.clear();
                chunk.resize(n * row_bytes, 0);
                for (i, out) in chunk.chunks_exact_mut(row_bytes).enumerate() {
                    // `row(0, r)` counts through all experts: they lie one after another.
                    layout.pack_row(weight.row(0, first + start + i), out);
                }
                device.queue.write_buffer(&buffer, (start * row_bytes) as u64, &chunk);
                chunks += 1;
                if chunks % CHUNKS_A_SUBMIT == 0 {
                    device.queue.submit([]);
                    device.wait(None)?;
                }
                progress(((first + start + n) * weight.row_bytes()) as u64);
            }
            pieces.push(Piece { buffer, first: first as u32, count: count as u32 });
        }
        device.check()?;
        Ok(Self {
            layout,
            pieces,
            pairs: layout.pairs(weight.cols) as u32,
            stride: stride as u32,
            tail: layout.tail_start(weight.cols) as u32,
        })
    }
}
