//! Random blocks of every type, for synthetic models: made directly, without quantizing anything.
//!
//! Design:
//! - A block depends on a key and its own number, nothing else. So the bytes are the same on every machine, with every number
//!   of threads, and however a tensor is cut into pieces. Only arithmetic that IEEE 754 fixes to the bit is used.
//! - Blocks look like those of a real file: scales that vary, mins that fit their scales, signs on both sides, no value that the
//!   quantizer never makes.
//! - Their mean is zero. A type whose levels are not symmetric gets signs at random, because a mean that all rows share would
//!   grow from one matrix to the next: n weights of mean m add m·n·(the input's mean), against √n·rms for the rest.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::block::Block;
use super::{GgmlType, dequantize, few_bits, fp4, iquant, kquant, legacy, ternary};
use crate::{Error, Result};

/// splitmix64 (Steele, Lea and Flood 2014): small, fast, and any state is a good start.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    /// The generator of number `index` under `key`. Neighbouring numbers give unrelated generators.
    pub fn new(key: u64, index: u64) -> Self {
        Self(mix(key ^ mix(index.wrapping_add(GAMMA))))
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }

    /// In 0..n, for n far below 2³².
    pub fn below(&mut self, n: u64) -> u64 {
        ((self.bits() >> 32) * n) >> 32
    }

    /// In [0, 1), 24 bits, exact in f32.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// Nearly normal, mean 0, variance 1: a sum of four uniform values, which needs no function that differs by machine.
    pub fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        // Four uniform values in steps of 2⁻¹⁶ have mean 2 (less half a step each) and variance 4/12.
        ((sum as f32 + 2.0) / 65536.0 - 2.0) * 1.732_050_8
    }

    fn sign(&mut self) -> f32 {
        if self.bits() >> 63 == 0 { 1.0 } else { -1.0 }
    }
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// A random tensor: its type, how large its weights are, and its key.
pub struct RandomBlocks {
    ty: GgmlType,
    /// What blocks are given as their scale, before it varies from block to block.
    scale: f32,
    key: u64,
    fill: Fill,
}

/// Fills blocks from number `first` on: key, first, scale, bytes.
type Fill = fn(u64, u64, f32, &mut [u8]);

impl RandomBlocks {
    /// Blocks of `ty` whose weights have mean 0 and root mean square `rms`.
    ///
    /// # Errors
    /// If `ty` has no dequantization.
    pub fn new(ty: GgmlType, rms: f32, key: u64) -> Result<Self> {
        let fill = filler(ty).ok_or_else(|| Error::usage(format!("{ty}: no weights are made of this type")))?;
        let scale = rms / unit_rms(ty, fill)?;
        Ok(Self { ty, scale, key, fill })
    }

    /// Fills `bytes` with the blocks from number `first` on, on all threads.
    ///
    /// # Panics
    /// If `bytes` is not whole blocks.
    pub fn fill(&self, first: u64, bytes: &mut [u8]) {
        const BLOCKS: usize = 4096; // a task of some tens of microseconds
        assert!(bytes.len().is_multiple_of(self.ty.block_bytes()));
        bytes.par_chunks_mut(BLOCKS * self.ty.block_bytes()).enumerate().for_each(|(i, bytes)| {
            (self.fill)(self.key, first + (i * BLOCKS) as u64, self.scale, bytes);
        });
    }
}

/// The root mean square of weights made with scale 1, to which they are proportional: measured on a sample, once per type.
fn unit_rms(ty: GgmlType, fill: Fill) -> Result<f32> {
    const SAMPLE: usize = 1 << 19;
    static KNOWN: Mutex<BTreeMap<GgmlType, f32>> = Mutex::new(BTreeMap::new());
    // Nothing panics while it holds the lock, and a value in the map is whole in any case.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(rms) = known.get(&ty) {
        return Ok(*rms);
    }
    let mut bytes = vec![0; SAMPLE / ty.block_len() * ty.block_bytes()];
    let mut weights = vec![0.0; SAMPLE];
    fill(0, 0, 1.0, &mut bytes);
    dequantize(ty, &bytes, &mut weights)?;
    let square: f64 = weights.iter().map(|&w| w as f64 * w as f64).sum();
    let rms = (square / SAMPLE as f64).sqrt() as f32;
    known.insert(ty, rms);
    Ok(rms)
}

fn filler(ty: GgmlType) -> Option<Fill> {
    use GgmlType::*;
    Some(match ty {
        F32 => |key, first, scale, bytes| values(key, first, bytes, |x| (x * scale).to_le_bytes()),
        F16 => |key, first, scale, bytes| values(key, first, bytes, |x| half(x * scale)),
        BF16 => |key, first, scale, bytes| {
            values(key, first, bytes, |x| half::bf16::from_f32(x * scale).to_le_bytes());
        },
        Q4_0 => blocks::<legacy::BlockQ4_0, 32>,
        Q4_1 => blocks::<legacy::BlockQ4_1, 32>,
        Q5_0 => blocks::<legacy::BlockQ5_0, 32>,
        Q5_1 => blocks::<legacy::BlockQ5_1, 32>,
        Q8_0 => blocks::<legacy::BlockQ8_0, 32>,
        Q2_K => blocks::<kquant::BlockQ2K, 256>,
        Q3_K => blocks::<kquant::BlockQ3K, 256>,
        Q4_K => blocks::<kquant::BlockQ4K, 256>,
        Q5_K => blocks::<kquant::BlockQ5K, 256>,
        Q6_K => blocks::<kquant::BlockQ6K, 256>,
        IQ1_S => blocks::<iquant::BlockIQ1S, 256>,
        IQ1_M => blocks::<iquant::BlockIQ1M, 256>,
        IQ2_XXS => blocks::<iquant::BlockIQ2XXS, 256>,
        IQ2_XS => blocks::<iquant::BlockIQ2XS, 256>,
        IQ2_S => blocks::<iquant::BlockIQ2S, 256>,
        IQ3_XXS => blocks::<iquant::BlockIQ3XXS, 256>,
        IQ3_S => blocks::<iquant::BlockIQ3S, 256>,
        IQ4_NL => blocks::<iquant::BlockIQ4NL, 32>,
        IQ4_XS => blocks::<iquant::BlockIQ4XS, 256>,
        TQ1_0 => blocks::<ternary::BlockTQ1_0, 256>,
        TQ2_0 => blocks::<ternary::BlockTQ2_0, 256>,
        MXFP4 => blocks::<fp4::BlockMXFP4, 32>,
        NVFP4 => blocks::<fp4::BlockNVFP4, 64>,
        Q1_0 => blocks::<few_bits::BlockQ1_0, 128>,
        Q2_0 => blocks::<few_bits::BlockQ2_0, 64>,
        Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64 => return None,
    })
}

/// The types without blocks.
fn values<const N: usize>(key: u64, first: u64, bytes: &mut [u8], value: impl Fn(f32) -> [u8; N]) {
    for (i, out) in bytes.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        *out = value(Rng::new(key, first + i as u64).normal());
    }
}

fn blocks<B: Finish<N>, const N: usize>(key: u64, first: u64, scale: f32, bytes: &mut [u8]) {
    for (i, bytes) in bytes.chunks_exact_mut(size_of::<B>()).enumerate() {
        let mut rng = Rng::new(key, first + i as u64);
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&rng.bits().to_le_bytes()[..word.len()]);
        }
        let block: &mut B = bytemuck::from_bytes_mut(bytes);
        let d = scale * (0.5 + rng.unit());
        block.finish(d, &mut rng);
    }
}

/// What random bits lack to be a block: its scales.
trait Finish<const N: usize>: Block<N> {
    /// Sets the scales of a block of random bits so that its weights are in proportion to `d`, with mean zero over many blocks.
    fn finish(&mut self, d: f32, rng: &mut Rng);
}

fn half(x: f32) -> [u8; 2] {
    half::f16::from_f32(x).to_le_bytes()
}

/// Blocks whose one half-precision scale takes either sign.
macro_rules! signed_scale {
    ($($block:ty: $len:literal),* $(,)?) => {$(
        impl Finish<$len> for $block {
            fn finish(&mut self, d: f32, rng: &mut Rng) {
                self.d = half(d * rng.sign());
            }
        }
    )*};
}

signed_scale! {
    legacy::BlockQ4_0: 32, legacy::BlockQ5_0: 32, kquant::BlockQ3K: 256, iquant::BlockIQ1S: 256, iquant::BlockIQ2XXS: 256,
    iquant::BlockIQ2XS: 256, iquant::BlockIQ2S: 256, iquant::BlockIQ3XXS: 256, iquant::BlockIQ3S: 256, iquant::BlockIQ4NL: 32,
    iquant::BlockIQ4XS: 256, ternary::BlockTQ1_0: 256, few_bits::BlockQ1_0: 128, few_bits::BlockQ2_0: 64,
}

impl Finish<32> for legacy::BlockQ4_1 {
    fn finish(&mut self, d: f32, rng: &mut Rng) {
        self.d = half(d);
        self.m = half(-d * (7.0 + rng.unit())); // q has mean 7.5
    }
}

impl Finish<32> for legacy::BlockQ5_1 {
    fn finish(&mut self, d: f32, rng: &mut Rng) {
        self.d = half(d);
        self.m = half(-d * (15.0 + rng.unit())); // q has mean 15.5
    }
}

impl Finish<32> for legacy::BlockQ8_0 {
    fn finish(&mut self, d: f32, _: &mut Rng) {
        self.d = half(d);
        // The quantizer never makes −128.
        self.qs = self.qs.map(|q| q.max(-127));
    }
}

impl Finish<256> for kquant::BlockQ2K {
    fn finish(&mut self, d: f32, _: &mut Rng) {
        self.d = half(d);
        self.dmin = half(d * 1.5); // q has mean 1.5
        for byte in &mut self.scales {
            let scale = 8 | *byte & 7;
            let min = scale + (*byte >> 4 & 1) - (*byte >> 5 & 1);
            *byte = scale | min.min(15) << 4;
        }
    }
}

impl Finish<256> for kquant::BlockQ4K {
    fn finish(&mut self, d: f32, rng: &mut Rng) {
        self.d = half(d);
        self.dmin = half(d * 7.5); // q has mean 7.5
        self.scales = six_bit_scales(rng);
    }
}

impl Finish<256> for kquant::BlockQ5K {
    fn finish(&mut self, d: f32, rng: &mut Rng) {
        self.d = half(d);
        self.dmin = half(d * 15.5); // q has mean 15.5
        self.scales = six_bit_scales(rng);
    }
}

impl Finish<256> for kquant::BlockQ6K {
    fn finish(&mut self, d: f32, _: &mut Rng) {
        self.d = half(d);
        // Of either sign and in the upper half, as a quantizer leaves them.
        self.scales = self.scales.map(|s| if s < 0 { -(64 | s & 63) } else { 64 | s });
    }
}

impl Finish<256> for iquant::BlockIQ1M {
    fn finish(&mut self, d: f32, rng: &mut Rng) {
        let d = u16::from_le_bytes(half(d * rng.sign()));
        for (i, scales) in self.scales.iter_mut().enumerate() {
            let low = u16::from_le_bytes(*scales) & 0x0fff;
            *scales = (low | (d >> (4 * i)) << 12).to_le_bytes();
        }
    }
}

impl Finish<256> for ternary::BlockTQ2_0 {
    fn finish(&mut self, d: f32, _: &mut Rng) {
        self.d = half(d);
        // 3 is not a ternary digit; as 1 it keeps the mean.
        self.qs = self.qs.map(|q| q & !(q & q << 1 & 0xaa));
    }
}

impl Finish<32> for fp4::BlockMXFP4 {
    fn finish(&mut self, d: f32, rng: &mut Rng) {
        // The scale is a power of two: the one below d or the next, so often that the mean square is that of d.
        let below = f32::from_bits(d.to_bits() & 0x7f80_0000);
        let ratio = d / below;
        let up = rng.unit() * 3.0 < ratio * ratio - 1.0;
        let exponent = (below.to_bits() >> 23) + up as u32; // of 2^(exponent − 127); E8M0 here means 2^(e − 128)
        self.e = (exponent + 1).min(254) as u8;
    }
}

impl Finish<64> for fp4::BlockNVFP4 {
    fn finish(&mut self, d: f32, rng: &mut Rng) {
        const LARGEST: u8 = 0x7e;
        self.d = std::array::from_fn(|_| {
            let d = d * (0.5 + rng.unit());
            // The scale below d, or the next, so often that the mean square is that of d.
            let below = (0..7).rev().fold(0, |code, bit| {
                let more = code | 1 << bit;
                if more <= LARGEST && fp4::ue4m3_half(more) <= d { more } else { code }
            });
            let square = |code| fp4::ue4m3_half(code) * fp4::ue4m3_half(code);
            let (low, high) = (square(below), square((below + 1).min(LARGEST)));
            below + (below < LARGEST && rng.unit() * (high - low) < d * d - low) as u8
        });
    }
}

/// Scales of 6 bits, packed as [`kquant::scales_and_mins`] reads them: in the upper half, each min near its scale.
fn six_bit_scales(rng: &mut Rng) -> [u8; 12] {
    const JITTER: [i64; 8] = [-3, -2, -1, 0, 0, 1, 2, 3];
    let bits = rng.bits();
    let scale = |g: usize| 32 | (bits >> (8 * g) & 31) as u8;
    let min = |g: usize| (scale(g) as i64 + JITTER[(bits >> (8 * g + 5) & 7) as usize]).min(63) as u8;
    std::array::from_fn(|i| match i {
        0..4 => scale(i) | scale(i + 4) >> 4 << 6,
        4..8 => min(i - 4) | min(i) >> 4 << 6,
        _ => scale(i - 4) & 15 | min(i - 4) << 4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantizable;

    fn types() -> impl Iterator<Item = GgmlType> {
        GgmlType::ALL.iter().copied().filter(|ty| dequantizable(*ty))
    }

    #[test]
    fn weights_have_the_size_asked_for_and_no_mean() {
        const N: usize = 1 << 18;
        for ty in types() {
            let rms = 0.02;
            let mut bytes = vec![0; N / ty.block_len() * ty.block_bytes()];
            RandomBlocks::new(ty, rms, 7).unwrap().fill(0, &mut bytes);
            let mut weights = vec![0.0; N];
            dequantize(ty, &bytes, &mut weights).unwrap();
            let mean = weights.iter().map(|&w| w as f64).sum::<f64>() / N as f64;
            let found = (weights.iter().map(|&w| (w as f64).powi(2)).sum::<f64>() / N as f64).sqrt();
            // A block's mean square varies by 0.54 of its mean for d, which is uniform in ½..3/2, and by 0.9 / √8 at most for the
            // scales within (IQ3_XXS: 8 of them, uniform in ½..31/2): by 0.63 together. Half of that over √1024 blocks is 1 % of
            // the rms here, and 0.7 % over the 2048 of the sample that `unit_rms` measured.
            assert!((found / rms as f64 - 1.0).abs() < 0.04, "{ty}: rms {found}, expected {rms}");
            assert!(mean.abs() < 0.02 * found, "{ty}: mean {mean}, rms {found}");
        }
    }

    #[test]
    fn blocks_do_not_depend_on_how_a_tensor_is_cut() {
        for ty in types() {
            let random = RandomBlocks::new(ty, 1.0, 3).unwrap();
            let mut whole = vec![0; 10_000 * ty.block_bytes()];
            random.fill(5, &mut whole);
            let (a, b) = (3 * ty.block_bytes(), 5003 * ty.block_bytes());
            let mut part = vec![0; b - a];
            random.fill(5 + 3, &mut part);
            assert!(part == whole[a..b], "{ty}");
        }
    }

    #[test]
    fn packed_scales_unpack_to_scales_with_mins_near_them() {
        let (scales, mins) = kquant::scales_and_mins(&six_bit_scales(&mut Rng::new(1, 1)));
        for (s, m) in scales.into_iter().zip(mins) {
            assert!((32..64).contains(&s) && s.abs_diff(m) <= 3, "{s} {m}");
        }
    }

    #[test]
    fn types_without_dequantization_are_refused() {
        assert!(RandomBlocks::new(GgmlType::Q8_K, 1.0, 0).is_err());
    }
}
