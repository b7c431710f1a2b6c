//! The kernels of a level, chosen once.
//!
//! Design:
//! - [`Kernels`] is a table of functions. The scalar one is always there; a SIMD table can only be had through
//!   [`Kernels::of`], which checks the processor. That check is what makes calling its functions sound.
//! - Only what takes time is in the table. The rest (adding, rotating, choosing experts) is [`scalar`]'s on every level.
//! - Kernels work on slices and know neither tensors nor threads.

use super::{Level, scalar};
use crate::Result;
use crate::backend::{Contract, Order};
use crate::op::{GgmlType, OpKind};
use crate::quant;

/// Dequantizes whole blocks; the two lengths belong together.
pub(super) type Unpack = unsafe fn(bytes: &[u8], out: &mut [f32]);
/// x · wᵀ for one x, straight from blocks: `w` is as many rows of `row_bytes` as `out` has values, `x` is `[K]`.
pub(super) type Gemv = unsafe fn(w: &[u8], row_bytes: usize, x: &[f32], out: &mut [f32]);
/// x · wᵀ: `w` is `rows` rows, `stride` apart and as long as each of `x`; `out` is [x.len(), rows].
pub(super) type Panel = unsafe fn(w: &[f32], stride: usize, rows: usize, x: &[&[f32]], out: &mut [f32]);

/// The functions of one level. Each does what [`scalar`]'s function of the same name defines.
pub(super) struct Kernels {
    pub level: Level,
    /// `None`: [`quant::dequantize`] does it.
    unpack: fn(GgmlType) -> Option<Unpack>,
    /// `None`: rows are unpacked first.
    gemv: fn(GgmlType) -> Option<Gemv>,
    panel: Panel,
    rms_norm: unsafe fn(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]),
    softmax: unsafe fn(x: &[f32], out: &mut [f32]),
    attn_context: unsafe fn(probs: &[f32], v: &[f32], stride: usize, out: &mut [f32]),
    swiglu: unsafe fn(gate: &[f32], up: &[f32], out: &mut [f32]),
    multiply_add: unsafe fn(rounds: usize) -> (f32, usize),
}

static SCALAR: Kernels = Kernels {
    level: Level::Scalar,
    unpack: |_| None,
    gemv: |_| None,
    panel: scalar::panel,
    rms_norm: scalar::rms_norm,
    softmax: scalar::softmax,
    attn_context: scalar::attn_context,
    swiglu: scalar::swiglu,
    multiply_add: scalar::multiply_add,
};

/// The table of a SIMD module: the modules have the same form.
#[cfg(target_arch = "x86_64")]
macro_rules! table {
    ($level:ident, $module:ident) => {
        Kernels {
            level: Level::$level,
            unpack: super::$module::unpack,
            gemv: super::$module::gemv,
            panel: super::$module::panel,
            rms_norm: super::$module::rms_norm,
            softmax: super::$module::softmax,
            attn_context: super::$module::attn_context,
            swiglu: super::$module::swiglu,
            multiply_add: super::$module::multiply_add,
        }
    };
}

#[cfg(target_arch = "x86_64")]
static AVX2: Kernels = table!(Avx2, avx2);
#[cfg(target_arch = "x86_64")]
static AVX512: Kernels = table!(Avx512, avx512);

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
            Level::Avx2 | Level::Avx512 => unreachable!("no other architecture has these features"),
        })
    }

    /// The arithmetic of `op` at this level.
    pub fn contract(&self, op: OpKind) -> Contract {
        let blocked = Order::Blocked { block: scalar::BLOCK as u32 };
        if self.level == Level::Scalar {
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
        match (self.unpack)(ty) {
            // The SIMD formats of unblocked types work 16 weights at a time.
            Some(unpack) if out.len().is_multiple_of(16) => {
                // SAFETY: `of` has checked the processor.
                unsafe { unpack(bytes, out) };
                Ok(())
            }
            _ => quant::dequantize(ty, bytes, out),
        }
    }

    /// The product that reads rows of `cols` weights as they are, if there is one for this type.
    pub fn direct(&self, ty: GgmlType, cols: usize) -> Option<Direct> {
        (self.gemv)(ty).filter(|_| cols.is_multiple_of(16)).map(Direct)
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
    pub fn attn_context(&self, probs: &[f32], v: &[f32], stride: usize, out: &mut [f32]) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.attn_context)(probs, v, stride, out) }
    }

    /// See [`scalar::swiglu`].
    pub fn swiglu(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        // SAFETY: `of` has checked the processor.
        unsafe { (self.swiglu)(gate, up, out) }
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
pub(super) struct Direct(Gemv);

impl Direct {
    /// x · wᵀ for one x: `w` is as many rows of `row_bytes` as `out` has values, `x` is `[K]`.
    pub fn run(self, w: &[u8], row_bytes: usize, x: &[f32], out: &mut [f32]) {
        // SAFETY: `Kernels::of` has checked the processor.
        unsafe { (self.0)(w, row_bytes, x, out) }
    }
}

/// Asks for the memory `ahead` bytes behind a block, as much as a block is, whether or not it is there.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn prefetch<B>(block: *const B, ahead: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let at = block.cast::<i8>().wrapping_add(ahead);
    for line in (0..size_of::<B>()).step_by(64) {
        // SAFETY: a hint: it reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line)) };
    }
}

/// What the vector exponentials share: Cephes' `expf`.
pub(super) mod exp {
    /// Bound on the relative error in units of 2⁻²³, for results that are normal numbers. The largest over all f32 is 0.71 (`check` with
    /// a step of 1).
    pub const ULP: f64 = 1.0;
    /// e^MAX is ∞ and e^MIN is 0 in f32.
    pub const MAX: f32 = 89.0;
    pub const MIN: f32 = -104.0;
    /// ln 2 in two parts: n · LN2_HIGH is exact for |n| < 2¹⁵.
    pub const LN2_HIGH: f32 = 0.693_359_4;
    pub const LN2_LOW: f32 = -2.121_944_4e-4;
    /// e^r = 1 + r + r² · (c₀ r⁵ + … + c₅)
    #[allow(clippy::excessive_precision)] // as published
    pub const POLYNOMIAL: [f32; 6] = [
        1.987_569_150_0e-4,
        1.398_199_950_7e-3,
        8.333_451_907_3e-3,
        4.166_579_589_4e-2,
        1.666_666_545_9e-1,
        5.000_000_120_1e-1,
    ];

    /// Holds an exponential against f64 over a sample of all f32 whose result is a normal number.
    #[cfg(test)]
    pub fn check(f: impl Fn(&mut [f32; 16])) {
        const STEP: usize = 1009;
        let mut worst = 0.0f64;
        for sign in [0, 1 << 31] {
            // From 2⁻³⁰, below which e^x rounds to 1, to the bounds of normal results.
            let end: f32 = if sign == 0 { 88.722 } else { 87.336 };
            for bits in (0x3080_0000..end.to_bits()).step_by(16 * STEP) {
                let x: [f32; 16] = std::array::from_fn(|i| f32::from_bits(sign | (bits + (i * STEP) as u32)));
                let mut y = x;
                f(&mut y);
                for (x, y) in x.iter().zip(y).filter(|(x, _)| x.abs() <= end) {
                    let exact = (*x as f64).exp();
                    worst = worst.max((y as f64 / exact - 1.0).abs() * 8388608.0);
                }
            }
        }

        assert!(worst <= ULP, "{worst} units of 2^-23");
        let mut edges = [0.0; 16];
        edges[..6].copy_from_slice(&[f32::NEG_INFINITY, -104.0, 89.0, f32::INFINITY, f32::NAN, 0.0]);
        f(&mut edges);
        assert_eq!(edges[..4], [0.0, 0.0, f32::INFINITY, f32::INFINITY]);
        assert!(edges[4].is_nan() && edges[5] == 1.0);
    }
}
