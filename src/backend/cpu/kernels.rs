//! The kernels of a level, chosen once.
//!
//! Design:
//! - [`Kernels`] is a table of functions. The scalar one is always there; a SIMD table can only be had through
//!   [`Kernels::of`], which checks the processor. That check is what makes calling its functions sound.
//! - Only what takes time is in the table. The rest (adding, rotating, choosing experts) is [`scalar`]'s on every level.
//! - Kernels work on slices and know neither tensors nor threads.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::int8::{self, Activations, CodePanel};
use super::packed::{Packed, Strips, pack_narrow};
use super::simd::{self, Line, PART, exp};
use super::tile::{TileBuffers, at_least};
use super::{Level, scalar};
use crate::Result;
use crate::backend::{Contract, Order, Precision};
use crate::op::{GgmlType, OpKind};
use crate::quant;

/// Dequantizes whole blocks; the two lengths belong together.
pub(super) type Unpack = unsafe fn(bytes: &[u8], out: &mut [f32]);
/// x · wᵀ for one x, straight from blocks: `w` is as many rows of `row_bytes` as `out` has values, `x` is `[K]`, or what a [`Prepare`]
/// made of it.
pub(super) type Gemv = unsafe fn(w: &[u8], row_bytes: usize, x: &[f32], out: &mut [f32]);
/// Writes x, `[K]`, as a [`Gemv`] wants it: `out` is zeros, K + K/16 of them or more, up to a whole line.
pub(super) type Prepare = unsafe fn(x: &[f32], out: &mut [f32]);
/// Adds the products of some `columns`, which begin with a part, to sums: `w` is these columns of as many rows as the level has in a tile, zeros
/// up to a multiple of 16; `sums` are those of each strip, in the level's own order.
pub(super) type AddPart = unsafe fn(w: &[[f32; PART]], columns: Range<usize>, x: Packed<'_>, sums: &mut [Line]);
/// Writes what sums come to; `out` is [tokens, rows of a tile], its rows `stride` apart.
pub(super) type Results = unsafe fn(x: Packed<'_>, sums: &[Line], stride: usize, out: &mut [f32]);
/// Writes the tokens of a wide strip, each `[K]`; `out` is [K, registers], zeros where a lane has no token.
pub(super) type PackWide = unsafe fn(x: &[&[f32]], registers: usize, out: &mut [Line]);
/// x · wᵀ: `w` is `rows` rows, `stride` apart and as long as each of `x`, which is in narrow strips; `out` is [tokens, rows].
pub(super) type Panel = unsafe fn(w: &[f32], stride: usize, rows: usize, x: Packed<'_>, out: &mut [f32]);
/// See [`scalar::attn_context`].
type AttnContext = unsafe fn(probs: &[&[f32]], v: &[f32], stride: usize, out: &mut [f32]);

/// x, `[K]`, as codes, scales and sums over spans: see [`Activations`].
pub(super) type Quantize = unsafe fn(x: &[f32], out: &mut int8::CodedRowMut<'_>);
/// x · wᵀ for one x, straight from blocks: `w` is as many rows of `row_bytes` as `out` has values.
pub(super) type Int8Gemv = unsafe fn(w: &[u8], row_bytes: usize, x: int8::CodedRow<'_>, out: &mut [f32]);
/// Rows of blocks as codes for an [`Int8Panel`], which has room for them.
pub(super) type Int8Unpack = unsafe fn(w: &[u8], row_bytes: usize, panel: &mut CodePanel);
/// x · wᵀ for some rows of `x`, `tokens`; `out` is [tokens, rows].
pub(super) type Int8Panel = unsafe fn(w: &CodePanel, rows: usize, x: &Activations, tokens: &[usize], out: &mut [f32]);

/// The functions that multiply blocks of one type with int8 activations.
#[derive(Clone, Copy)]
pub(super) struct Int8Kernels {
    /// Weights that share a scale.
    pub span: usize,
    /// The least code of a weight.
    pub least: i32,
    /// Whether the type has mins.
    pub mins: bool,
    pub quantize: Quantize,
    pub gemv: Int8Gemv,
    pub unpack: Int8Unpack,
    pub panel: Int8Panel,
}

/// The functions that read blocks of one type.
#[derive(Clone, Copy)]
pub(super) struct BlockKernels {
    pub unpack: Unpack,
    pub gemv: Gemv,
    /// What brings x into the form that `gemv` reads.
    pub prepare: Option<Prepare>,
}

/// The functions of one level. Each does what [`scalar`]'s function of the same name defines.
pub(super) struct Kernels {
    pub level: Level,
    /// `None`: [`quant::dequantize`] unpacks the type, and rows are unpacked before they are multiplied.
    blocks: fn(GgmlType) -> Option<BlockKernels>,
    /// For int8 activations: `None` where all are f32.
    int8: Option<fn(GgmlType) -> Option<Int8Kernels>>,
    /// What the level makes of tokens, and how many rows of weights they meet at once.
    strips: Strips,
    tile: usize,
    pack_wide: PackWide,
    add_part: AddPart,
    results: Results,
    panel: Panel,
    rms_norm: unsafe fn(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]),
    softmax: unsafe fn(x: &[f32], out: &mut [f32]),
    attn_context: AttnContext,
    swiglu: unsafe fn(gate: &[f32], up: &[f32], out: &mut [f32]),
    geglu: unsafe fn(gate: &[f32], up: &[f32], out: &mut [f32]),
    multiply_add: unsafe fn(rounds: usize) -> (f32, usize),
}

static SCALAR: Kernels = Kernels {
    level: Level::Scalar,
    blocks: |_| None,
    int8: None,
    strips: Strips { narrow: 1, registers: 0 },
    tile: 1,
    pack_wide: |_, _, _| unreachable!("the scalar level has no wide strips"),
    add_part: scalar::add_part,
    results: scalar::results,
    panel: scalar::panel,
    rms_norm: scalar::rms_norm,
    softmax: scalar::softmax,
    attn_context: scalar::attn_context,
    swiglu: scalar::swiglu,
    geglu: scalar::geglu,
    multiply_add: scalar::multiply_add,
};

/// The table of a SIMD module: all of them have the same functions.
macro_rules! table {
    ($level:ident, $($module:ident)::+, $int8:expr, $multiply_add:path) => {
        Kernels {
            level: Level::$level,
            blocks: $($module)::+::blocks,
            int8: $int8,
            strips: $($module)::+::STRIPS,
            tile: $($module)::+::TILE,
            pack_wide: $($module)::+::pack_wide,
            add_part: $($module)::+::add_part,
            results: $($module)::+::results,
            panel: $($module)::+::panel,
            rms_norm: $($module)::+::rms_norm,
            softmax: $($module)::+::softmax,
            attn_context: $($module)::+::attn_context,
            swiglu: $($module)::+::swiglu,
            geglu: $($module)::+::geglu,
            multiply_add: $multiply_add,
        }
    };
}

#[cfg(target_arch = "x86_64")]
static AVX2: Kernels = table!(Avx2, simd::avx2, None, simd::avx2::multiply_add);
#[cfg(target_arch = "x86_64")]
static AVX512: Kernels = table!(Avx512, simd::avx512, None, simd::avx512::multiply_add);
#[cfg(target_arch = "x86_64")]
static AVX2_INT8: Kernels = table!(Avx2, simd::avx2, Some(simd::avx2::int8_blocks), simd::avx2::int8::multiply_add);
#[cfg(target_arch = "x86_64")]
static AVX512_INT8: Kernels =
    table!(Avx512, simd::avx512, Some(simd::avx512::int8_blocks), simd::avx512::int8::multiply_add);

#[cfg(target_arch = "aarch64")]
static NEON: Kernels = table!(Neon, simd::neon, None, simd::neon::multiply_add);

/// The SIMD levels' arithmetic in plain Rust, under the name of one of them, whose bits it gives.
#[cfg(test)]
pub(super) static PLAIN: Kernels = table!(Avx2, simd::plain, None, simd::plain::multiply_add);

/// The arithmetic of `op` with int8 activations at every level: products in an order that depends on the weight's type, and all else as
/// the level has it.
pub fn int8_contract(op: OpKind) -> Contract {
    let f32 = contract(Level::Avx2, op);
    match op {
        OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul => {
            Contract { activations: Precision::Q8_K_BesideBlocks, order: Order::Unknown, ..f32 }
        }
        _ => f32,
    }
}

/// The arithmetic of `op` at a level, whether or not this processor has it.
pub fn contract(level: Level, op: OpKind) -> Contract {
    let blocked = Order::Blocked { block: scalar::BLOCK as u32 };
    if level == Level::Scalar {
        return Contract::ieee_f32(blocked);
    }
    let order = match op {
        // Sums along the contiguous axis go to 16 lanes; sums across rows, and of products, are within the bound of the scalar ones.
        OpKind::RmsNorm | OpKind::AttnProbs | OpKind::RouterProbs => Order::Lanes { lanes: 16 },
        _ => blocked,
    };
    Contract { exp_base_ulp: exp::ULP, ..Contract::ieee_f32(order) }
}

/// What [`int8_contract`] says, in one line.
pub const INT8: &str = "int8 activations in blocks of 256 (Q8_K) with quantized weights, f32 with others; f32 sums of exact ones over 16 or 32";

impl Kernels {
    /// # Errors
    /// [`crate::Error::CannotRun`] if this processor lacks `level`.
    pub fn of(level: Level) -> Result<&'static Self> {
        level.require()?;
        Ok(match level {
            Level::Scalar => &SCALAR,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => &AVX2,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => &AVX512,
            #[cfg(target_arch = "aarch64")]
            Level::Neon => &NEON,
            _ => unreachable!("{level} is of another architecture, whose features this processor cannot have"),
        })
    }

    /// Those for int8 activations at `level` (`None`: the best that this processor has).
    ///
    /// # Errors
    /// [`crate::Error::CannotRun`] if this processor lacks `level`, VNNI beside AVX-512, or every SIMD level.
    pub fn int8_of(level: Option<Level>) -> Result<&'static Self> {
        let level = level.unwrap_or_else(Level::detect_int8);
        if level == Level::Scalar {
            Level::Avx2.require()?;
        }
        level.require()?;
        level.require_int8()?;
        #[cfg(target_arch = "x86_64")]
        return Ok(if level == Level::Avx2 { &AVX2_INT8 } else { &AVX512_INT8 });
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{level} is of another architecture, whose features this processor cannot have")
    }

    /// Whether activations meet block types as int8.
    pub fn is_int8(&self) -> bool {
        self.int8.is_some()
    }

    /// The arithmetic of `op` at this level.
    pub fn contract(&self, op: OpKind) -> Contract {
        if self.is_int8() { int8_contract(op) } else { contract(self.level, op) }
    }

    /// What [`Self::contract`] says, in one line.
    pub fn describe(&self) -> &'static str {
        match self.level {
            _ if self.is_int8() => INT8,
            Level::Scalar => "f32 activations, f32 sums in groups of 32",
            Level::Avx2 | Level::Avx512 | Level::Neon => {
                "f32 activations, f32 sums in groups of 32, fused multiply-add"
            }
        }
    }

    /// What dequantizes whole blocks of `ty`, in rows or parts of rows of `cols` weights.
    ///
    /// # Errors
    /// If `ty` has no dequantization.
    pub fn unpacker(&self, ty: GgmlType, cols: usize) -> Result<Unpacker> {
        match (self.blocks)(ty) {
            // The SIMD formats of unblocked types work 16 weights at a time.
            Some(blocks) if cols.is_multiple_of(16) => Ok(Unpacker(blocks.unpack)),
            _ => quant::dequantizer(ty).map(|plain| Unpacker(plain as Unpack)),
        }
    }

    /// The product that reads rows of `cols` weights as they are, if there is one for this type.
    pub fn direct(&self, ty: GgmlType, cols: usize) -> Option<Direct> {
        (self.blocks)(ty).filter(|_| cols.is_multiple_of(16)).map(Direct)
    }

    /// The products of int8 activations with blocks of `ty`, if this level takes them.
    pub fn int8(&self, ty: GgmlType) -> Option<Int8> {
        self.int8.and_then(|of| of(ty)).map(Int8)
    }

    /// How many rows of weights [`Self::add_part`] takes.
    pub fn tile(&self) -> usize {
        self.tile
    }

    /// Adds the products of a part of a tile's rows: see [`AddPart`].
    pub fn add_part(&self, w: &[[f32; PART]], columns: Range<usize>, x: Packed<'_>, sums: &mut [Line]) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.add_part)(w, columns, x, sums) }
    }

    /// What such sums come to: see [`Results`].
    pub fn results(&self, x: Packed<'_>, sums: &[Line], stride: usize, out: &mut [f32]) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.results)(x, sums, stride, out) }
    }

    /// Rows of x, each `[K]`, side by side in `lines`.
    pub fn pack<'l>(&self, x: &[&[f32]], lines: &'l mut Vec<Line>) -> Packed<'l> {
        let k = x.first().map_or(0, |x| x.len());
        let lines = at_least(lines, Packed::lines_of(self.strips, k, x.len()), Line([0.0; 16]));
        let (mut x_left, mut lines_left) = (x, &mut *lines);
        for strip in self.strips.of(x.len()) {
            let (these, own);
            (these, x_left) = x_left.split_at(strip.tokens);
            (own, lines_left) = lines_left.split_at_mut(strip.lines(k));
            match strip.registers {
                0 => pack_narrow(these, own),
                // SAFETY: `of` has checked the processor.
                registers => unsafe { (self.pack_wide)(these, registers, own) },
            }
        }
        Packed::new(k, x.len(), self.strips, lines)
    }

    /// x · wᵀ for rows of x, of one length: `w` is `rows` rows, `stride` apart and as long as each of them; `out` is [tokens, rows].
    pub fn panel(&self, w: &[f32], stride: usize, rows: usize, x: &[&[f32]], out: &mut [f32]) {
        thread_local! {
            static BUFFERS: RefCell<(Vec<Line>, TileBuffers, Vec<f32>)> = RefCell::default();
        }
        let k = x.first().map_or(0, |x| x.len());
        assert!(x.iter().all(|x| x.len() == k));
        BUFFERS.with_borrow_mut(|(lines, buffers, results)| {
            let packed = self.pack(x, lines);
            if packed.strips().all(|(strip, _)| strip.registers == 0) {
                // SAFETY: `of` has checked the processor.
                return unsafe { (self.panel)(w, stride, rows, packed, out) };
            }
            let row = |row: usize| &w[row * stride..][..k];
            let whole = rows - rows % self.tile;
            let copy_from = |first: usize| {
                move |columns: Range<usize>, parts: &mut [[f32; PART]]| {
                    for (r, part) in parts.iter_mut().enumerate() {
                        part[..columns.len()].copy_from_slice(&row(first + r)[columns.clone()]);
                    }
                }
            };
            for first in (0..whole).step_by(self.tile) {
                buffers.products(self, self.tile, packed, copy_from(first), rows, &mut out[first..]);
            }
            if whole == rows {
                return;
            }
            let results = at_least(results, x.len() * self.tile, 0.0); // [tokens, tile]
            buffers.products(self, rows - whole, packed, copy_from(whole), self.tile, results);
            for (out, results) in out.chunks_exact_mut(rows).zip(results.chunks_exact(self.tile)) {
                out[whole..].copy_from_slice(&results[..rows - whole]);
            }
        });
    }

    /// See [`scalar::rms_norm`].
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.rms_norm)(x, weight, eps, out) }
    }

    /// See [`scalar::softmax`].
    pub fn softmax(&self, x: &[f32], out: &mut [f32]) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.softmax)(x, out) }
    }

    /// See [`scalar::attn_context`].
    pub fn attn_context(&self, probs: &[&[f32]], v: &[f32], stride: usize, out: &mut [f32]) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.attn_context)(probs, v, stride, out) }
    }

    /// See [`scalar::swiglu`].
    pub fn swiglu(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.swiglu)(gate, up, out) }
    }

    /// See [`scalar::geglu`].
    pub fn geglu(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.geglu)(gate, up, out) }
    }

    /// For the probe: multiplies and adds `rounds` times in every lane of some independent sums. Returns their total, so that it is
    /// computed, and the number of lanes.
    pub fn multiply_add(&self, rounds: usize) -> (f32, usize) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.multiply_add)(rounds) }
    }
}

/// Dequantizes whole blocks. Only [`Kernels::unpacker`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Unpacker(Unpack);

impl Unpacker {
    /// `bytes` are whole blocks, and `out` as many values.
    pub fn run(self, bytes: &[u8], out: &mut [f32]) {
        // SAFETY: `Kernels::of` has checked the processor.
        unsafe { (self.0)(bytes, out) }
    }
}

/// A product that reads blocks. Only [`Kernels::direct`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Direct(BlockKernels);

impl Direct {
    /// x, `[K]`, as [`Self::run`] wants it.
    pub fn prepare<'x>(self, x: &'x [f32]) -> Prepared<'x> {
        match self.0.prepare {
            None => Prepared::AsItIs(x),
            Some(prepare) => {
                let mut out = vec![Line([0.0; 16]); (x.len() + x.len() / 16).div_ceil(16)];
                // SAFETY: `Kernels::of` has checked the processor.
                unsafe { prepare(x, bytemuck::cast_slice_mut(&mut out)) };
                Prepared::Lines(out.into())
            }
        }
    }

    /// Whether x needs preparing: then sums are taken in another order than [`Kernels::panel`]'s.
    #[cfg(test)]
    pub fn prepares(self) -> bool {
        self.0.prepare.is_some()
    }

    /// x · wᵀ for one x: `w` is as many rows of `row_bytes` as `out` has values.
    pub fn run(self, w: &[u8], row_bytes: usize, x: &Prepared<'_>, out: &mut [f32]) {
        // SAFETY: `Kernels::of` has checked the processor.
        unsafe { (self.0.gemv)(w, row_bytes, x.values(), out) }
    }
}

/// A row of x as a [`Direct`] reads it. Several matrices may.
#[derive(Clone)]
pub(super) enum Prepared<'x> {
    AsItIs(&'x [f32]),
    /// In an order of its own, each register of it in one line of the cache: of Q6_K a row of x that begins elsewhere takes an eighth longer.
    Lines(Arc<[Line]>),
}

impl Prepared<'_> {
    fn values(&self) -> &[f32] {
        match self {
            Prepared::AsItIs(x) => x,
            Prepared::Lines(lines) => bytemuck::cast_slice(lines),
        }
    }
}

/// Products with int8 activations. Only [`Kernels::int8`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Int8(Int8Kernels);

impl Int8 {
    /// Makes `all` room for `rows` rows of `k` activations.
    pub fn make_room(self, all: &mut Activations, rows: usize, k: usize) {
        all.make_room(rows, k, self.0.span, self.0.least);
    }

    /// A row of activations as codes: see [`Activations`].
    pub fn quantize(self, x: &[f32], out: &mut int8::CodedRowMut<'_>) {
        // SAFETY: `Kernels::int8_of` has checked the processor.
        unsafe { (self.0.quantize)(x, out) }
    }

    /// x · wᵀ for one x: `w` is as many rows of `row_bytes` as `out` has values.
    pub fn one(self, w: &[u8], row_bytes: usize, x: int8::CodedRow<'_>, out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { (self.0.gemv)(w, row_bytes, x, out) }
    }

    /// x · wᵀ for the rows `tokens` of x: `w` is `rows` rows of `row_bytes`, `panel` a buffer; `out` is [tokens, rows].
    pub fn many(
        self,
        w: &[u8],
        rows: usize,
        panel: &mut CodePanel,
        x: &Activations,
        tokens: &[usize],
        out: &mut [f32],
    ) {
        panel.reserve(rows, x.k, self.0.span, self.0.mins);
        // SAFETY: as above.
        unsafe {
            (self.0.unpack)(w, w.len() / rows.max(1), panel);
            (self.0.panel)(panel, rows, x, tokens, out);
        }
    }
}
