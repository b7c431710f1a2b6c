//! How a quantized row lies in GPU memory: ggml's bytes, moved but not changed.
//!
//! Design:
//! - ggml's blocks have odd sizes (34, 110, 210 bytes); GPUs read 16 aligned bytes at once. So a row becomes two planes: a
//!   *body* of whole `vec4<u32>` for each block, then a *tail* of the few bytes a block that are left, packed without gaps.
//!   A row costs at most 15 bytes more than ggml's (Q3_K, Q5_0, IQ2_XS, IQ3_S and TQ1_0: 2 a block besides).
//! - [`WeightLayout`] says how many of each, [`WeightLayout::pack_row`] moves the bytes. The other side is the type's file in
//!   `shaders/quant/`, which documents the same layout; the golden blocks test the two against each other.
//! - Plain types (F32, F16, BF16) are packed as blocks of 32, the last one filled up with zeros.
//! - The IQ types refer to points of a grid. Its codes, as `quant` lists them, stand behind the rows of each piece of a weight: there is one
//!   list of them, no binding more, and nothing that a driver would unroll or copy for each thread, as it may an array of constants.

use super::wgsl;
use crate::op::GgmlType;
use crate::quant::iquant_grids as grids;

/// Weights in a pair of runs: the unit in which kernels walk a row.
pub const PAIR: usize = 32;

/// The planes of a row of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightLayout {
    ty: GgmlType,
    /// Weights a block here: the type's own block, or 32 for plain types.
    block_len: usize,
    /// Bytes a block in the body: a multiple of 16.
    body: usize,
    /// Bytes a block in the tail.
    tail: usize,
    /// The type's parts of every kernel that reads it.
    parts: &'static [&'static str],
    /// The codes of its grid, in whole `vec4<u32>`s; empty where it has none.
    grid: &'static [u16],
}

impl WeightLayout {
    /// The layout of `ty`, if there is one: which is to say, if the GPU has kernels for it.
    pub fn of(ty: GgmlType) -> Option<WeightLayout> {
        use GgmlType::*;
        const IQ4: &str = wgsl!("lib/iq4");
        const SCALE_MIN: &str = wgsl!("lib/scale_min");
        const GRID: &str = wgsl!("lib/grid");
        const FP4: &str = wgsl!("lib/fp4");
        let (block_len, body, tail, parts): (_, _, _, &[&str]) = match ty {
            F32 => (32, 128, 0, &[wgsl!("quant/f32")]),
            F16 => (32, 64, 0, &[wgsl!("quant/f16")]),
            BF16 => (32, 64, 0, &[wgsl!("quant/bf16")]),
            Q8_0 => (32, 32, 2, &[wgsl!("quant/q8_0")]),
            Q4_0 => (32, 16, 2, &[wgsl!("quant/q4_0")]),
            Q4_1 => (32, 16, 4, &[wgsl!("quant/q4_1")]),
            Q5_0 => (32, 16, 8, &[wgsl!("quant/q5_0")]),
            Q5_1 => (32, 16, 8, &[wgsl!("quant/q5_1")]),
            Q2_K => (256, 80, 4, &[wgsl!("quant/q2_k")]),
            Q3_K => (256, 112, 0, &[wgsl!("quant/q3_k")]),
            Q4_K => (256, 144, 0, &[SCALE_MIN, wgsl!("quant/q4_k")]),
            Q5_K => (256, 176, 0, &[SCALE_MIN, wgsl!("quant/q5_k")]),
            Q6_K => (256, 208, 2, &[wgsl!("quant/q6_k")]),
            IQ4_NL => (32, 16, 2, &[IQ4, wgsl!("quant/iq4_nl")]),
            IQ4_XS => (256, 128, 8, &[IQ4, wgsl!("quant/iq4_xs")]),
            IQ2_XXS => (256, 64, 2, &[GRID, wgsl!("quant/iq2_xxs")]),
            IQ2_XS => (256, 64, 12, &[GRID, wgsl!("quant/iq2_xs")]),
            IQ2_S => (256, 80, 2, &[GRID, wgsl!("quant/iq2_s")]),
            IQ3_XXS => (256, 96, 2, &[GRID, wgsl!("quant/iq3_xxs")]),
            IQ3_S => (256, 112, 0, &[GRID, wgsl!("quant/iq3_s")]),
            IQ1_S => (256, 48, 2, &[GRID, wgsl!("quant/iq1_s")]),
            IQ1_M => (256, 48, 8, &[GRID, wgsl!("quant/iq1_m")]),
            TQ1_0 => (256, 48, 8, &[wgsl!("quant/tq1_0")]),
            TQ2_0 => (256, 64, 2, &[wgsl!("quant/tq2_0")]),
            MXFP4 => (32, 16, 1, &[FP4, wgsl!("quant/mxfp4")]),
            NVFP4 => (64, 32, 4, &[FP4, wgsl!("quant/nvfp4")]),
            Q1_0 => (128, 16, 2, &[wgsl!("quant/q1_0")]),
            Q2_0 => (64, 16, 2, &[wgsl!("quant/q2_0")]),
            _ => return None,
        };
        let grid: &[u16] = match ty {
            IQ2_XXS => &grids::IQ2_XXS_CODES,
            IQ2_XS => &grids::IQ2_XS_CODES,
            IQ2_S => &grids::IQ2_S_CODES,
            IQ3_XXS => &grids::IQ3_XXS_CODES,
            IQ3_S => &grids::IQ3_S_CODES,
            IQ1_S | IQ1_M => &grids::IQ1_CODES,
            _ => &[],
        };
        Some(WeightLayout { ty, block_len, body, tail, parts, grid })
    }

    /// Every type that has one.
    pub fn all() -> impl Iterator<Item = WeightLayout> {
        GgmlType::ALL.iter().filter_map(|&ty| WeightLayout::of(ty))
    }

    /// The type whose rows these are.
    pub fn ty(&self) -> GgmlType {
        self.ty
    }

    /// WGSL that gives a kernel `PAIRS`, `columns`, `block` and `weights` for this type; see `shaders/lib/weight.wgsl`.
    pub fn parts(&self) -> &'static [&'static str] {
        self.parts
    }

    fn blocks(&self, cols: usize) -> usize {
        cols.div_ceil(self.block_len)
    }

    /// Pairs of runs in a row of `cols` weights.
    pub fn pairs(&self, cols: usize) -> usize {
        self.blocks(cols) * (self.block_len / PAIR)
    }

    /// `vec4<u32>`s from a row's start to its tail plane.
    pub fn tail_start(&self, cols: usize) -> usize {
        self.blocks(cols) * self.body / 16
    }

    /// `vec4<u32>`s in a row.
    pub fn stride(&self, cols: usize) -> usize {
        self.tail_start(cols) + (self.blocks(cols) * self.tail).div_ceil(16)
    }

    /// Bytes behind the rows of each piece: the codes of the type's grid, a multiple of 16.
    pub fn table_bytes(&self) -> usize {
        size_of_val(self.grid)
    }

    /// These bytes.
    pub fn tables(&self) -> impl Iterator<Item = u8> {
        self.grid.iter().flat_map(|code| code.to_le_bytes())
    }

    /// Rows of `cols` weights that a piece of `limit` bytes holds.
    pub fn rows_in(&self, cols: usize, limit: u64) -> u64 {
        let row = (self.stride(cols) as u64).saturating_mul(16);
        limit.saturating_sub(self.table_bytes() as u64) / row.max(1)
    }

    /// Bytes of GPU memory that `rows` rows of `cols` weights take, and the pieces of whole rows that they are cut into, if a
    /// binding holds `limit` bytes. `None` if one row is over the limit.
    pub fn plan(&self, cols: usize, rows: u64, limit: u64) -> Option<(u64, u64)> {
        let rows_per_piece = self.rows_in(cols, limit).min(rows.max(1));
        if rows_per_piece == 0 {
            return None;
        }
        let pieces = rows.div_ceil(rows_per_piece);
        let of_rows = (self.stride(cols) as u64).checked_mul(16)?.checked_mul(rows)?;
        Some((of_rows.checked_add(pieces.checked_mul(self.table_bytes() as u64)?)?, pieces))
    }

    /// Moves a row from ggml's layout into this one. `out` is [`Self::stride`] × 16 bytes, all zero.
    pub fn pack_row(&self, row: &[u8], out: &mut [u8]) {
        use GgmlType::*;
        if matches!(self.ty, F32 | F16 | BF16 | Q4_K | Q5_K) {
            // The same bytes; plain rows may end inside a block.
            return out[..row.len()].copy_from_slice(row);
        }
        let n = row.len() / self.ty.block_bytes();
        let (body, tail) = out.split_at_mut(n * self.body);
        let bodies = body.chunks_exact_mut(self.body);
        let tails = tail.chunks_exact_mut(self.tail.max(1));
        // Each arm: the bytes of the body, then those of the tail, in order.
        let place = |block: &[u8], body: &mut [u8], tail: &mut [u8]| match self.ty {
            Q8_0 | Q4_0 | IQ4_NL | IQ2_XXS | IQ2_S | IQ3_XXS | IQ1_S | Q1_0 | Q2_0 => {
                body.copy_from_slice(&block[2..]);
                tail.copy_from_slice(&block[..2]);
            }
            Q4_1 | NVFP4 => {
                body.copy_from_slice(&block[4..]);
                tail.copy_from_slice(&block[..4]);
            }
            Q5_0 => {
                body.copy_from_slice(&block[6..]);
                tail[..4].copy_from_slice(&block[2..6]);
                tail[4..6].copy_from_slice(&block[..2]);
            }
            Q5_1 => {
                body.copy_from_slice(&block[8..]);
                tail[..4].copy_from_slice(&block[4..8]);
                tail[4..].copy_from_slice(&block[..4]);
            }
            Q2_K => {
                body.copy_from_slice(&block[..80]);
                tail.copy_from_slice(&block[80..]);
            }
            Q6_K => {
                body.copy_from_slice(&block[..208]);
                tail.copy_from_slice(&block[208..]);
            }
            IQ4_XS => {
                body.copy_from_slice(&block[8..]);
                tail.copy_from_slice(&block[..8]);
            }
            IQ2_XS => {
                body.copy_from_slice(&block[2..66]);
                tail[..8].copy_from_slice(&block[66..]);
                tail[8..10].copy_from_slice(&block[..2]);
            }
            IQ1_M => {
                body.copy_from_slice(&block[..48]);
                tail.copy_from_slice(&block[48..]);
            }
            TQ1_0 => {
                body.copy_from_slice(&block[..48]);
                tail[..6].copy_from_slice(&block[48..]);
            }
            TQ2_0 => {
                body.copy_from_slice(&block[..64]);
                tail.copy_from_slice(&block[64..]);
            }
            MXFP4 => {
                body.copy_from_slice(&block[1..]);
                tail[0] = block[0];
            }
            _ => unreachable!("{} has no layout", self.ty),
        };
        let blocks = row.chunks_exact(self.ty.block_bytes());
        if self.ty == Q3_K {
            // No tail: the 2 bytes left over in the body's last vec4 stay zero.
            for (block, body) in blocks.zip(bodies) {
                body[..110].copy_from_slice(block);
            }
        } else if self.ty == IQ3_S {
            // As Q3_K, with what does not fill a vec4 last.
            for (block, body) in blocks.zip(bodies) {
                body[..64].copy_from_slice(&block[2..66]);
                body[64..96].copy_from_slice(&block[74..106]);
                body[96..104].copy_from_slice(&block[66..74]);
                body[104..108].copy_from_slice(&block[106..]);
                body[108..110].copy_from_slice(&block[..2]);
            }
        } else {
            for ((block, body), tail) in blocks.zip(bodies).zip(tails) {
                place(block, body, tail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_row_holds_every_byte_and_few_more() {
        for layout in WeightLayout::all() {
            let ty = layout.ty();
            for blocks in [1, 3, 8] {
                let cols = blocks * layout.block_len;
                let bytes = ty.row_bytes(cols).unwrap();
                // Every byte value as often as every other, as far as the length allows; zeros would hide in the padding.
                let row: Vec<u8> = (0..bytes).map(|i| (i % 255 + 1) as u8).collect();
                let mut packed = vec![0; layout.stride(cols) * 16];
                layout.pack_row(&row, &mut packed);
                let mut kept: Vec<u8> = packed.iter().copied().filter(|&b| b != 0).collect();
                let mut row = row;
                kept.sort_unstable();
                row.sort_unstable();
                assert_eq!(kept, row, "{ty}");
                use GgmlType::*;
                let padding = if matches!(ty, Q3_K | Q5_0 | IQ2_XS | IQ3_S | TQ1_0) { 2 * blocks } else { 0 };
                assert!(packed.len() <= bytes + padding + 15, "{ty}: {} bytes for {bytes}", packed.len());
            }
        }
    }
}
