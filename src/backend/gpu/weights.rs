//! Weights in GPU memory: quantized as they are, in pieces that fit a binding.
//!
//! Design:
//! - A weight is cut by rows, counted through all experts, into pieces of whole rows under the adapter's
//!   `max_storage_buffer_binding_size`. A kernel runs once for each piece and makes the outputs of that piece's rows, so an
//!   expert, or the row tile of one, may lie in two pieces.
//! - Rows are repacked on the way (see [`super::layout`]) through one bounded chunk of host memory, and what the driver holds on the
//!   way is bounded too ([`Device::staged`]).
//! - Behind its rows a piece has the grid of its type, where there is one, and then the weight's scales, of all experts, where it has some.
//! - Which pieces are there, and for how long, is [`super::residents`]' concern.

use std::sync::Arc;

use super::device::{Bound, Device};
use super::layout::WeightLayout;
use super::params;
use super::texture::{TEXEL_ROW, WordTexture};
use crate::error::{Error, Result};
use crate::op::{GgmlType, Weight};

/// Bytes repacked and written at a time.
const CHUNK: usize = 4 << 20;

/// How a weight lies in GPU memory, and the pieces that it is cut into.
pub struct GpuWeight {
    pub layout: WeightLayout,
    pub pieces: Vec<params::Piece>,
    /// What is behind the rows of each: the codes of the type's grid and the weight's scales, each filled up to whole vec4.
    tables: Vec<u8>,
}

impl GpuWeight {
    /// The layout of a weight with rows of `cols`, of which a binding of `limit` bytes must hold one; or why there is none.
    pub fn layout(name: &str, ty: GgmlType, cols: usize, limit: u64) -> Result<WeightLayout, String> {
        let layout = WeightLayout::of(ty).ok_or_else(|| format!("tensor {name}: the GPU has no kernels for {ty}"))?;
        match layout.stride(cols) as u64 * 16 + layout.table_bytes() as u64 {
            row if row > limit => Err(format!(
                "tensor {name}: a row takes {row} bytes of GPU memory, a piece of a weight may take {limit}"
            )),
            _ => Ok(layout),
        }
    }

    /// Cuts a weight into pieces of at most `limit` bytes, and of at most one expert if `by_expert`.
    ///
    /// # Errors
    /// `CannotRun` if its type has no kernels, one row is over `limit` bytes, or there are too many rows.
    pub fn plan(weight: &Weight, limit: u64, by_expert: bool) -> Result<Self> {
        let name = &weight.name;
        let layout = Self::layout(name, weight.ty, weight.cols, limit).map_err(Error::cannot_run)?;
        let stride = layout.stride(weight.cols);
        let rows = weight.rows * weight.experts;
        if u32::try_from(rows).is_err() {
            return Err(Error::cannot_run(format!("tensor {name}: expected fewer than 2^32 rows, found {rows}")));
        }
        let most = if by_expert { weight.rows } else { rows };
        let mut tables = Vec::from_iter(layout.tables());
        let scales = tables.len();
        tables.extend(weight.scales.iter().flat_map(|scale| scale.to_le_bytes()));
        tables.resize(tables.len().next_multiple_of(16), 0);
        let room = limit.saturating_sub((tables.len() - scales) as u64);
        let rows_per_piece = layout.rows_in(weight.cols, room).min(most.max(1) as u64) as usize;
        if rows_per_piece == 0 {
            return Err(Error::cannot_run(format!(
                "tensor {name}: a row and {} bytes of scales are more than the {limit} that a piece of a weight may take",
                tables.len() - scales
            )));
        }
        let piece = |first: usize| params::Piece {
            pairs: layout.pairs(weight.cols) as u32,
            stride: stride as u32,
            tail: layout.tail_start(weight.cols) as u32,
            rows: weight.rows as u32,
            first: first as u32,
            count: rows_per_piece.min(rows - first) as u32,
            scales: match weight.scales.len() {
                0 => 0,
                _ => (rows_per_piece.min(rows - first) * stride + scales / 16) as u32,
            },
        };
        Ok(Self { layout, pieces: (0..rows).step_by(rows_per_piece).map(piece).collect(), tables })
    }

    /// Bytes that a piece takes of a buffer or, of whole rows of texels, of a texture.
    pub fn bytes(&self, piece: &params::Piece, texture: bool) -> u64 {
        let bytes = u64::from(piece.count) * u64::from(piece.stride) * 16 + self.tables.len() as u64;
        if texture { bytes.next_multiple_of(TEXEL_ROW) } else { bytes }
    }
}

/// Where a piece is.
enum Memory {
    Buffer(wgpu::Buffer),
    Texture(WordTexture),
}

/// Whole rows of a weight in GPU memory.
pub struct Piece {
    memory: Memory,
}

impl Piece {
    pub fn binding(&self) -> Bound<'_> {
        match &self.memory {
            Memory::Buffer(buffer) => Bound::buffer(buffer, buffer.size()),
            Memory::Texture(texture) => Bound::Texture(texture),
        }
    }

    /// Uploads the rows of a piece of `planned`, and what is behind them, to a buffer or a texture.
    ///
    /// # Errors
    /// `CannotRun` if the device has no memory for them.
    pub fn upload(
        device: &mut Device,
        weight: &Arc<Weight>,
        planned: &GpuWeight,
        number: usize,
        texture: bool,
    ) -> Result<Self> {
        let GpuWeight { layout, pieces, tables } = planned;
        let piece = &pieces[number];
        let name = &weight.name;
        let (first, count, row_bytes) = (piece.first as usize, piece.count as usize, piece.stride as usize * 16);
        let bytes = (count * row_bytes + tables.len()) as u64;
        let rows_per_chunk = (CHUNK / row_bytes).max(1);
        let memory = match texture {
            true => Memory::Texture(WordTexture::new(device, name, bytes)?),
            false => {
                // The source of a copy only where dispatches are recorded.
                let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
                Memory::Buffer(device.create_buffer(name, bytes, usage)?)
            }
        };
        let mut written = 0; // bytes of the piece
        let mut chunk = Vec::new();
        for start in (0..count).step_by(rows_per_chunk) {
            let n = rows_per_chunk.min(count - start);
            let before = chunk.len();
            chunk.resize(before + n * row_bytes, 0);
            for (i, out) in chunk[before..].chunks_exact_mut(row_bytes).enumerate() {
                // `row(0, r)` counts through all experts: they lie one after another.
                layout.pack_row(weight.row(0, first + start + i), out);
            }
            let last = start + n == count;
            if last {
                chunk.extend_from_slice(tables);
            }
            let sent = match &memory {
                Memory::Buffer(buffer) => {
                    device.queue.write_buffer(buffer, written, &chunk);
                    chunk.len()
                }
                Memory::Texture(texture) => {
                    // Whole rows of texels; what is left goes with the next chunk, and the last row is filled up.
                    if last {
                        chunk.resize(chunk.len().next_multiple_of(TEXEL_ROW as usize), 0);
                    }
                    let whole = chunk.len() / TEXEL_ROW as usize * TEXEL_ROW as usize;
                    if whole > 0 {
                        texture.write_rows(device, (written / TEXEL_ROW) as u32, &chunk[..whole]);
                    }
                    whole
                }
            };
            chunk.drain(..sent);
            written += sent as u64;
            device.staged(sent as u64)?;
        }
        device.check()?;
        Ok(Self { memory })
    }
}
