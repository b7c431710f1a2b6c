//! The kernels of a level, chosen once.
//!
//! Design:
//! - [`Kernels`] is a table of functions. The scalar one is always there; a SIMD table can only be had through
//!   [`Kernels::of`], which checks the processor. That check is what makes calling its functions sound.
//! - Only what takes time is in the table. The rest (adding, rotating, choosing experts) is [`scalar`]'s on every level.
//! - Kernels work on slices and know neither tensors nor threads.

use std::borrow::Cow;
use std::cell::RefCell;

use super::int8::{self, Activations, CodePanel};
use super::packed::{Packed, pack};
use super::simd::{self, Line, exp};
use super::{Level, scalar};
use crate::backend::{Contract, Order, Precision};
use crate::op::{GgmlType, OpKind};
use crate::quant;
use crate::{Error, Result};

/// Dequantizes whole blocks; the two lengths belong together.
pub(super) type Unpack = unsafe fn(bytes: &[u8], out: &mut [f32]);
/// x · wᵀ for one x, straight from blocks: `w` is as many rows of `row_bytes` as `out` has values, `x` is `[K]`, or what a [`Prepare`]
/// made of it.
pub(super) type Gemv = unsafe fn(w: &[u8], row_bytes: usize, x: &[f32], out: &mut [f32]);
/// Writes x, `[K]`, as a [`Gemv`] wants it.
pub(super) type Prepare = unsafe fn(x: &[f32], out: &mut Vec<f32>);
/// x · wᵀ: `w` is `rows` rows, `stride` apart and as long as each of `x`, which is in strips of the level's tokens; `out` is [tokens, rows].
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
    /// What brings x into the form that `gemv` reads, and the fewest columns for which `gemv` keeps the level's contract.
    pub prepare: Option<(Prepare, usize)>,
}

/// The functions of one level. Each does what [`scalar`]'s function of the same name defines.
pub(super) struct Kernels {
    pub level: Level,
    /// `None`: [`quant::dequantize`] unpacks the type, and rows are unpacked before they are multiplied.
    blocks: fn(GgmlType) -> Option<BlockKernels>,
    /// For int8 activations: `None` where all are f32.
    int8: Option<fn(GgmlType) -> Option<Int8Kernels>>,
    panel: Panel,
    /// Tokens in a strip of `panel`.
    strip: usize,
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
    panel: scalar::panel,
    strip: 1,
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
            panel: $($module)::+::panel,
            strip: $($module)::+::TOKENS,
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
        // Sums along the contiguous axis go to 16 lanes; sums across rows are the scalar ones.
        OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul => Order::Lanes { lanes: 16 },
        OpKind::RmsNorm | OpKind::AttnScores | OpKind::AttnProbs | OpKind::RouterProbs => Order::Lanes { lanes: 16 },
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
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("{level} is of another architecture, whose features this processor cannot have"),
        })
    }

    /// Those for int8 activations at `level` (`None`: the best that this processor has).
    ///
    /// # Errors
    /// [`crate::Error::CannotRun`] if this processor lacks `level`, VNNI beside AVX-512, or every SIMD level.
    pub fn int8_of(level: Option<Level>) -> Result<&'static Self> {
        match level.unwrap_or_else(Level::detect_int8) {
            Level::Scalar => {
                Level::Avx2.require()?;
                Err(Error::usage("cpu:int8 has kernels at AVX2 and AVX-512, none at scalar"))
            }
            level => {
                level.require()?;
                level.require_int8()?;
                #[cfg(target_arch = "x86_64")]
                return Ok(if level == Level::Avx2 { &AVX2_INT8 } else { &AVX512_INT8 });
                #[cfg(not(target_arch = "x86_64"))]
                unreachable!("{level} is of another architecture, whose features this processor cannot have")
            }
        }
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
            Level::Avx2 | Level::Avx512 => "f32 activations, f32 sums in 16 lanes, fused multiply-add",
        }
    }

    /// Dequantizes whole blocks of `ty`.
    ///
    /// # Errors
    /// As [`quant::dequantize`].
    pub fn unpack(&self, ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        match (self.blocks)(ty) {
            // The SIMD formats of unblocked types work 16 weights at a time.
            Some(blocks) if out.len().is_multiple_of(16) => {
                // SAFETY: `of` has checked the processor.
                unsafe { (blocks.unpack)(bytes, out) };
                Ok(())
            }
            _ => quant::dequantize(ty, bytes, out),
        }
    }

    /// The product that reads rows of `cols` weights as they are, if there is one for this type.
    pub fn direct(&self, ty: GgmlType, cols: usize) -> Option<Direct> {
        let enough = |blocks: &BlockKernels| blocks.prepare.is_none_or(|(_, fewest)| cols >= fewest);
        (self.blocks)(ty).filter(|_| cols.is_multiple_of(16)).filter(enough).map(Direct)
    }

    /// The products of int8 activations with blocks of `ty`, if this level takes them.
    pub fn int8(&self, ty: GgmlType) -> Option<Int8> {
        self.int8.and_then(|of| of(ty)).map(Int8)
    }

    /// How many tokens [`Self::packed_panel`] wants side by side.
    pub fn strip(&self) -> usize {
        self.strip
    }

    /// x · wᵀ: `w` is `rows` rows, `stride` apart and as long as each of `x`, which is in strips of [`Self::strip`]; `out` is [tokens, rows].
    pub fn packed_panel(&self, w: &[f32], stride: usize, rows: usize, x: Packed<'_>, out: &mut [f32]) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.panel)(w, stride, rows, x, out) }
    }

    /// The same for rows of x, of one length, as they are.
    pub fn panel(&self, w: &[f32], stride: usize, rows: usize, x: &[&[f32]], out: &mut [f32]) {
        thread_local! {
            static LINES: RefCell<Vec<Line>> = RefCell::default();
        }
        let k = x.first().map_or(0, |x| x.len());
        assert!(x.iter().all(|x| x.len() == k));
        LINES.with_borrow_mut(|lines| {
            lines.resize(lines.len().max(x.len() * Packed::lines_of(k)), Line([0.0; 16]));
            let lines = &mut lines[..x.len() * Packed::lines_of(k)];
            let strips = lines.chunks_mut((self.strip * Packed::lines_of(k)).max(1));
            x.chunks(self.strip).zip(strips).for_each(|(x, out)| pack(x, out));
            self.packed_panel(w, stride, rows, Packed::new(k, x.len(), self.strip, lines), out);
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

/// A product that reads blocks. Only [`Kernels::direct`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Direct(BlockKernels);

impl Direct {
    /// x, `[K]`, as [`Self::run`] wants it.
    pub fn prepare<'x>(self, x: &'x [f32]) -> Cow<'x, [f32]> {
        match self.0.prepare {
            None => Cow::Borrowed(x),
            Some((prepare, _)) => {
                let mut out = Vec::new();
                // SAFETY: `Kernels::of` has checked the processor.
                unsafe { prepare(x, &mut out) };
                Cow::Owned(out)
            }
        }
    }

    /// Whether x needs preparing: then sums are taken in another order than [`Kernels::panel`]'s.
    #[cfg(test)]
    pub fn prepares(self) -> bool {
        self.0.prepare.is_some()
    }

    /// x · wᵀ for one x: `w` is as many rows of `row_bytes` as `out` has values, `x` is [`Self::prepare`]d.
    pub fn run(self, w: &[u8], row_bytes: usize, x: &[f32], out: &mut [f32]) {
        // SAFETY: `Kernels::of` has checked the processor.
        unsafe { (self.0.gemv)(w, row_bytes, x, out) }
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
