//! The kernels of a level, chosen once.
//!
//! Design:
//! - [`Kernels`] is a table of functions. The scalar one is always there; a SIMD table can only be had through
//!   [`Kernels::of`], which checks the processor. That check is what makes calling its functions sound.
//! - Only what takes time is in the table. The rest (adding, rotating, choosing experts) is [`scalar`]'s on every level.
//! - Kernels work on slices and know neither tensors nor threads.

use std::borrow::Cow;

use super::simd::{self, exp};
use super::{Level, scalar};
use crate::Result;
use crate::backend::{Contract, Order};
use crate::op::{GgmlType, OpKind};
use crate::quant;

/// Dequantizes whole blocks; the two lengths belong together.
pub(super) type Unpack = unsafe fn(bytes: &[u8], out: &mut [f32]);
/// x · wᵀ for one x, straight from blocks: `w` is as many rows of `row_bytes` as `out` has values, `x` is `[K]`, or what a [`Prepare`]
/// made of it.
pub(super) type Gemv = unsafe fn(w: &[u8], row_bytes: usize, x: &[f32], out: &mut [f32]);
/// Writes x, `[K]`, as a [`Gemv`] wants it.
pub(super) type Prepare = unsafe fn(x: &[f32], out: &mut Vec<f32>);
/// x · wᵀ: `w` is `rows` rows, `stride` apart and as long as each of `x`; `out` is [x.len(), rows].
pub(super) type Panel = unsafe fn(w: &[f32], stride: usize, rows: usize, x: &[&[f32]], out: &mut [f32]);
/// See [`scalar::attn_context`].
type AttnContext = unsafe fn(probs: &[&[f32]], v: &[f32], stride: usize, out: &mut [f32]);

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
    ($level:ident, $($module:ident)::+) => {
        Kernels {
            level: Level::$level,
            blocks: $($module)::+::blocks,
            panel: $($module)::+::panel,
            rms_norm: $($module)::+::rms_norm,
            softmax: $($module)::+::softmax,
            attn_context: $($module)::+::attn_context,
            swiglu: $($module)::+::swiglu,
            geglu: $($module)::+::geglu,
            multiply_add: $($module)::+::multiply_add,
        }
    };
}

#[cfg(target_arch = "x86_64")]
static AVX2: Kernels = table!(Avx2, simd::avx2);
#[cfg(target_arch = "x86_64")]
static AVX512: Kernels = table!(Avx512, simd::avx512);

/// The SIMD levels' arithmetic in plain Rust, under the name of one of them, whose bits it gives.
#[cfg(test)]
pub(super) static PLAIN: Kernels = table!(Avx2, simd::plain);

/// The arithmetic of `op` at a level, whether or not this processor has it.
pub fn contract(level: Level, op: OpKind) -> Contract {
    let blocked = Order::Blocked { block: scalar::BLOCK as u32 };
    if level == Level::Scalar {
        return Contract::ieee_f32(blocked);
    }
    let order = match op {
        // Sums along the contiguous axis go to 16 lanes; sums across rows are the scalar ones.
        OpKind::MatMul | OpKind::ExpertMatMul | OpKind::RmsNorm | OpKind::AttnScores => Order::Lanes { lanes: 16 },
        OpKind::AttnProbs | OpKind::RouterProbs => Order::Lanes { lanes: 16 },
        _ => blocked,
    };
    Contract { exp_base_ulp: exp::ULP, ..Contract::ieee_f32(order) }
}

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

    /// The arithmetic of `op` at this level.
    pub fn contract(&self, op: OpKind) -> Contract {
        contract(self.level, op)
    }

    /// What [`Self::contract`] says, in one line.
    pub fn describe(&self) -> &'static str {
        match self.level {
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

    /// x · wᵀ: `w` is `rows` rows, `stride` apart and as long as each of `x`; `out` is [x.len(), rows].
    pub fn panel(&self, w: &[f32], stride: usize, rows: usize, x: &[&[f32]], out: &mut [f32]) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.panel)(w, stride, rows, x, out) }
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
