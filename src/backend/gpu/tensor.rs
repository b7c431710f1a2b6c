//! Tensors in GPU memory, and the pool that their buffers come from.
//!
//! Design:
//! - A tensor owns its buffer and gives it back to the pool when the last handle is dropped. Reuse is safe without waiting: a
//!   queue executes in order, so a later command that overwrites a buffer comes after the earlier ones that read it.
//! - Sizes are rounded up to eighths of a power of two, so that growing attention scores find buffers again.
//! - The pool keeps at most [`KEPT_BYTES`] of unused buffers; the one unused longest goes first.

use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use super::TILE;
use super::device::Bound;
use super::params;
use super::texture::PooledTexture;
use crate::op::{Elements, Operand};

/// Unused bytes that the pool holds on to.
const KEPT_BYTES: u64 = 512 << 20;

/// The unused buffers, longest unused first.
#[derive(Default)]
pub struct Pool {
    unused: RefCell<VecDeque<wgpu::Buffer>>,
}

impl Pool {
    /// The size of the buffer that holds `bytes`.
    pub fn rounded(bytes: u64) -> u64 {
        let step = (bytes.next_power_of_two() / 8).max(256);
        bytes.max(1).next_multiple_of(step)
    }

    /// An unused buffer of exactly `size` bytes.
    pub fn take(&self, size: u64) -> Option<wgpu::Buffer> {
        let mut unused = self.unused.borrow_mut();
        // The one used last: the likeliest to be in a cache.
        let at = unused.iter().rposition(|b| b.size() == size)?;
        unused.remove(at)
    }

    fn give(&self, buffer: wgpu::Buffer) {
        let mut unused = self.unused.borrow_mut();
        unused.push_back(buffer);
        let mut bytes: u64 = unused.iter().map(|b| b.size()).sum();
        while bytes > KEPT_BYTES {
            let Some(oldest) = unused.pop_front() else { break };
            bytes -= oldest.size();
        }
    }
}

/// A buffer that goes back to its pool.
pub struct Pooled {
    pub buffer: wgpu::Buffer,
    pool: Rc<Pool>,
}

impl Pooled {
    pub fn new(buffer: wgpu::Buffer, pool: &Rc<Pool>) -> Self {
        Self { buffer, pool: pool.clone() }
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.give(self.buffer.clone());
    }
}

/// A handle to a tensor in GPU memory: f32, or u32 for expert ids.
#[derive(Clone)]
pub struct GpuTensor(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub shape: Vec<usize>,
    pub ids: bool,
    /// Empty until a kernel is to write it: a value that nobody holds, and that a kernel of several operations passes on, needs none.
    pub memory: OnceCell<Pooled>,
    /// Whether [`Op::Store`](crate::op::Op::Store) may write into it.
    pub changes: bool,
    /// For expert ids: their slots sorted by expert, made when first needed and shared by the layer's three matmuls.
    pub plan: OnceCell<SlotPlan>,
    /// For expert ids: what was chosen, as the host knows it where experts are streamed.
    pub chosen: OnceCell<ChosenTiles>,
    /// The same values in a texture, for kernels that read them there: made when first needed, and only of values that do not change.
    pub texture: OnceCell<PooledTexture>,
}

/// Slots sorted by expert; see `shaders/expert_plan.wgsl`.
pub struct SlotPlan {
    pub memory: Pooled,
    pub bytes: u64,
    pub experts: usize,
    pub tiles: u32,
}

/// Which experts slots chose, as tiles of their [`SlotPlan`].
pub struct ChosenTiles {
    /// The first tile of each expert, then that of ids that name none, then the number of tiles: E + 2.
    first_tiles: Vec<u32>,
}

impl ChosenTiles {
    /// Of `ids`, of `experts` experts.
    pub fn new(ids: &[u32], experts: usize) -> Self {
        let mut slots = vec![0; experts + 1];
        for &id in ids {
            slots[(id as usize).min(experts)] += 1;
        }
        let mut first_tiles = vec![0];
        for (expert, n) in slots.into_iter().enumerate() {
            first_tiles.push(first_tiles[expert] + u32::div_ceil(n, TILE));
        }
        Self { first_tiles }
    }

    /// The experts that ids may name.
    pub fn experts(&self) -> usize {
        self.first_tiles.len() - 2
    }

    /// The tiles that the experts of a piece have a part in. Those of ids that name no expert go to the last piece.
    pub fn tiles(&self, piece: &params::Piece) -> Range<u32> {
        let (first, end) = (piece.first as usize, (piece.first + piece.count) as usize);
        let rows = piece.rows as usize;
        let last = match end == rows * self.experts() {
            true => self.experts() + 1,
            false => end.div_ceil(rows),
        };
        self.first_tiles[first / rows]..self.first_tiles[last]
    }
}

impl GpuTensor {
    pub(super) fn new(shape: &[usize], ids: bool, memory: Option<Pooled>, changes: bool) -> Self {
        let memory = memory.map_or_else(OnceCell::new, OnceCell::from);
        let (plan, chosen, texture) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
        Self(Rc::new(Inner { shape: shape.to_vec(), ids, memory, changes, plan, chosen, texture }))
    }
    /// The axes.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.0.shape.iter().product()
    }
    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// What [`Op::check`](crate::op::Op::check) looks at. Ids are on the device, where nobody waits to look at them.
    pub(super) fn operand(&self) -> Operand<'_> {
        let elements = if self.0.ids { Elements::Ids(None) } else { Elements::Numbers };
        Operand { shape: &self.0.shape, elements }
    }
    /// Whether both handles are to the same values.
    pub(super) fn same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
    /// The buffer and the bytes of it to bind: the values, filled up to a whole vec4.
    pub(super) fn binding(&self) -> Bound<'_> {
        let (words, shape) = (self.len() as u64, self.shape());
        Bound::Buffer { buffer: self.buffer(), offset: 0, size: self.bytes(), words, shape }
    }
    /// The buffer.
    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.0.memory.get().expect("a kernel writes a tensor after it was given memory").buffer
    }
    /// Bytes of the values, filled up to a whole vec4.
    pub(super) fn bytes(&self) -> u64 {
        (self.len() as u64 * 4).next_multiple_of(16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_has_the_tiles_of_its_experts() {
        // Of 4 experts with 10 rows: expert 1 has TILE + 1 slots, expert 3 one, and two ids name none.
        let ids: Vec<u32> = std::iter::repeat_n(1, TILE as usize + 1).chain([3, 4, u32::MAX]).collect();
        let chosen = ChosenTiles::new(&ids, 4);
        let tiles = |first, count| {
            let piece = params::Piece { pairs: 1, stride: 1, tail: 0, rows: 10, first, count, scales: 0 };
            chosen.tiles(&piece)
        };
        assert_eq!((tiles(0, 10), tiles(10, 10), tiles(20, 10)), (0..0, 0..2, 2..2));
        assert_eq!((tiles(30, 10), tiles(0, 40)), (2..4, 0..4), "ids that name none are with the last piece");
        assert_eq!((tiles(5, 10), tiles(12, 3), tiles(15, 10)), (0..2, 0..2, 0..2), "pieces are cut anywhere");
    }

    #[test]
    fn rounding_wastes_at_most_a_quarter_above_the_smallest_buffers() {
        for bytes in [1, 255, 256, 257, 4096, 4097, 100_000, 1 << 20, (1 << 20) + 1, 3_000_000] {
            let rounded = Pool::rounded(bytes);
            assert!(rounded >= bytes && rounded.is_multiple_of(256));
            assert!(rounded <= (bytes + bytes / 4).max(bytes + 256), "{bytes} → {rounded}");
        }
    }
}
