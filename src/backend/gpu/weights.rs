//! Weights in GPU memory: uploaded once, quantized as they are, in pieces that fit a binding.
//!
//! Design:
//! - A weight is cut by rows, counted through all experts, into pieces of whole rows under the adapter's
//!   `max_storage_buffer_binding_size`. A kernel runs once for each piece and makes the outputs of that piece's rows, so an
//!   expert, or the row tile of one, may lie in two pieces.
//! - Rows are repacked on the way (see [`super::layout`]) through one bounded chunk of host memory; every few dozen chunks
//!   the queue is submitted and waited for, so that the driver's staging memory is bounded too.

use std::sync::Arc;

use super::device::{Bound, Device};
use super::layout::WeightLayout;
use super::params;
use super::texture::{TEXEL_ROW, WordTexture};
use crate::error::{Error, Result};
use crate::op::{GgmlType, Weight};

/// Bytes repacked and written at a time.
const CHUNK: usize = 4 << 20;
/// Chunks written before the queue is submitted and waited for.
const CHUNKS_PER_SUBMIT: usize = 24;

/// Where a piece is.
enum Memory {
    Buffer(wgpu::Buffer),
    Texture(WordTexture),
}

/// Whole rows of a weight, and what kernels are told of them.
pub struct Piece {
    memory: Memory,
    pub params: params::Piece,
}

impl Piece {
    pub fn binding(&self) -> Bound<'_> {
        match &self.memory {
            Memory::Buffer(buffer) => Bound::buffer(buffer, buffer.size()),
            Memory::Texture(texture) => Bound::Texture(texture),
        }
    }
}

/// A weight in GPU memory.
pub struct GpuWeight {
    pub layout: WeightLayout,
    pub pieces: Vec<Piece>,
}

impl GpuWeight {
    /// The layout of a weight with rows of `cols`, of which a binding of `limit` bytes must hold one; or why there is none.
    pub fn layout(name: &str, ty: GgmlType, cols: usize, limit: u64) -> Result<WeightLayout, String> {
        let layout = WeightLayout::of(ty).ok_or_else(|| format!("tensor {name}: the GPU has no kernels for {ty}"))?;
        match layout.stride(cols) as u64 * 16 {
            row if row > limit => {
                Err(format!("tensor {name}: a row takes {row} bytes of GPU memory, a binding holds {limit}"))
            }
            _ => Ok(layout),
        }
    }

    /// Uploads a weight to buffers or textures; `progress` is told the source bytes done so far.
    ///
    /// # Errors
    /// `CannotRun` if its type has no kernels, one row is over `limit` bytes, or the device has no memory for it.
    pub fn upload(
        device: &mut Device,
        weight: &Arc<Weight>,
        limit: u64,
        texture: bool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let name = &weight.name;
        let layout = Self::layout(name, weight.ty, weight.cols, limit).map_err(Error::cannot_run)?;
        let stride = layout.stride(weight.cols);
        let row_bytes = stride * 16;
        let rows = weight.rows * weight.experts;
        if u32::try_from(rows).is_err() {
            return Err(Error::cannot_run(format!("tensor {name}: expected fewer than 2^32 rows, found {rows}")));
        }
        let rows_per_piece = (limit / row_bytes.max(1) as u64).min(rows.max(1) as u64) as usize;
        let rows_per_chunk = (CHUNK / row_bytes).max(1);
        let mut pieces = Vec::new();
        let mut chunk = Vec::new();
        let mut chunks = 0;
        for first in (0..rows).step_by(rows_per_piece) {
            let count = rows_per_piece.min(rows - first);
            let bytes = (count * row_bytes) as u64;
            let memory = match texture {
                true => Memory::Texture(WordTexture::new(device, name, bytes)?),
                false => {
                    // The source of a copy only where dispatches are recorded.
                    let usage =
                        wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
                    Memory::Buffer(device.create_buffer(name, bytes, usage)?)
                }
            };
            let mut written = 0; // bytes of the piece
            chunk.clear();
            for start in (0..count).step_by(rows_per_chunk) {
                let n = rows_per_chunk.min(count - start);
                let before = chunk.len();
                chunk.resize(before + n * row_bytes, 0);
                for (i, out) in chunk[before..].chunks_exact_mut(row_bytes).enumerate() {
                    // `row(0, r)` counts through all experts: they lie one after another.
                    layout.pack_row(weight.row(0, first + start + i), out);
                }
                match &memory {
                    Memory::Buffer(buffer) => {
                        device.queue.write_buffer(buffer, written, &chunk);
                        written += chunk.len() as u64;
                        chunk.clear();
                    }
                    Memory::Texture(texture) => {
                        // Whole rows of texels; what is left goes with the next chunk, and the last row is filled up.
                        if start + n == count {
                            chunk.resize(chunk.len().next_multiple_of(TEXEL_ROW as usize), 0);
                        }
                        let whole = chunk.len() / TEXEL_ROW as usize * TEXEL_ROW as usize;
                        if whole > 0 {
                            texture.write_rows(device, (written / TEXEL_ROW) as u32, &chunk[..whole]);
                        }
                        written += whole as u64;
                        chunk.drain(..whole);
                    }
                }
                chunks += 1;
                if chunks % CHUNKS_PER_SUBMIT == 0 {
                    device.queue.submit([]);
                    device.wait(None)?;
                }
                progress(((first + start + n) * weight.row_bytes()) as u64);
            }
            let params = params::Piece {
                pairs: layout.pairs(weight.cols) as u32,
                stride: stride as u32,
                tail: layout.tail_start(weight.cols) as u32,
                rows: weight.rows as u32,
                first: first as u32,
                count: count as u32,
            };
            pieces.push(Piece { memory, params });
        }
        device.check()?;
        Ok(Self { layout, pieces })
    }
}
