//! Weights as exact numbers, read from the published layouts by index.
//!
//! Design:
//! - **Nothing is shared with `crate::quant`** but the types' names and block sizes: no block structs, no tables. Here a
//!   format is two formulas over a block's bytes, the scale of group g and the code of weight i.
//! - **Every weight is a difference of two exact numbers**, a [`Term`]: `product` = d·s·q and `offset` = dmin·m. d and dmin
//!   are halves (11 significant bits), s has at most 7 bits and q at most 7, and IQ4_XS, the widest, comes to 11 + 6 + 7 = 24:
//!   so each product is exact in f32 and in f64 whatever the order of its factors. In the types that have offsets both are
//!   multiples of 2⁻²⁴ below 2²⁸, so their difference is exact in f64 too.
//! - ggml defines the value as f32 arithmetic. The products round nowhere, so the one rounding is the subtraction, which
//!   only the types with a minimum have (Q4_1, Q5_1, Q2_K, Q4_K, Q5_K). [`Term::value`] does that rounding and no other,
//!   and is therefore the f32 that gguf-py and ggml give, bit for bit, as an f64.
//!
//! Layouts: ggml's `ggml-common.h` and gguf-py's `quants.py`; MXFP4: the OCP Microscaling Formats specification, v1.0; E4M3 of NVFP4's
//! scales: Micikevicius et al. 2022, *FP8 formats for deep learning*.

use super::grids;
use crate::error::{Error, Result};
use crate::op::GgmlType;

/// One weight: `product` − `offset`, both exact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// d·s·q: scale, sub-block scale, code.
    pub product: f64,
    /// dmin·m, the sub-block's minimum; 0 in types that have none.
    pub offset: f64,
}

impl Term {
    /// The weight as ggml defines it: rounded to f32 once.
    pub fn value(self) -> f64 {
        (self.product - self.offset) as f32 as f64
    }
}

/// One weight in its parts: step·code − offset, of group `group` of its block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    pub group: usize,
    /// d·s: the scale of the group.
    pub step: f64,
    pub code: f64,
    /// dmin·m.
    pub offset: f64,
}

impl From<Part> for Term {
    fn from(p: Part) -> Self {
        Self { product: p.step * p.code, offset: p.offset }
    }
}

/// Whether [`each`] can read `ty`.
pub fn supports(ty: GgmlType) -> bool {
    use GgmlType::*;
    !matches!(ty, Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64)
}

/// Calls `f` with the index and the [`Term`] of every weight in `bytes`, which are whole blocks of `ty`, in order.
///
/// # Errors
/// If `ty` is not a weight type that models store, or `bytes` are not whole blocks.
pub fn each(ty: GgmlType, bytes: &[u8], mut f: impl FnMut(usize, Term)) -> Result<()> {
    parts(ty, bytes, |i, part| f(i, part.into()))
}

/// [`each`], with every weight in its parts.
///
/// # Errors
/// As [`each`].
pub fn parts(ty: GgmlType, bytes: &[u8], mut f: impl FnMut(usize, Part)) -> Result<()> {
    if !supports(ty) {
        return Err(Error::cannot_run(format!("the oracle does not read weights of type {ty}")));
    }
    if !bytes.len().is_multiple_of(ty.block_bytes()) {
        return Err(Error::input(format!(
            "{} bytes are not whole {ty} blocks of {} bytes",
            bytes.len(),
            ty.block_bytes()
        )));
    }
    for (n, block) in bytes.chunks_exact(ty.block_bytes()).enumerate() {
        let first = n * ty.block_len();
        one_block(ty, block, |i, part| f(first + i, part));
    }
    Ok(())
}

/// Dequantizes whole blocks to the values that ggml defines, as f64.
///
/// # Errors
/// As [`each`], and if `out` is not as long as the blocks say.
pub fn row(ty: GgmlType, bytes: &[u8], out: &mut [f64]) -> Result<()> {
    let len = bytes.len() / ty.block_bytes() * ty.block_len();
    if out.len() != len {
        return Err(Error::input(format!("{} bytes of {ty} are {len} weights, not {}", bytes.len(), out.len())));
    }
    if ty == GgmlType::F32 {
        // The same values, without a closure for each.
        out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(out, b)| *out = f32::from_le_bytes(*b) as f64);
        return Ok(());
    }
    each(ty, bytes, |i, term| out[i] = term.value())
}

/// The formulas. `b` is one block; `scale(g)` gives (d·s, dmin·m) of group g, `code(i)` the q of weight i.
fn one_block(ty: GgmlType, b: &[u8], f: impl FnMut(usize, Part)) {
    use GgmlType::*;
    let half = |at: usize| half_at(b, at);
    match ty {
        F32 => spread(1, 1, |_| (f32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f64, 0.0), |_| 1.0, f),
        F16 => spread(1, 1, |_| (half(0), 0.0), |_| 1.0, f),
        // A bfloat16 is the upper half of an f32.
        BF16 => spread(1, 1, |_| (f32::from_bits(word(b, 0) << 16) as f64, 0.0), |_| 1.0, f),

        // 32 weights: byte j of the codes holds weight j in its low nibble and weight j + 16 in its high one.
        Q4_0 => spread(32, 32, |_| (half(0), 0.0), |i| nibble(b, 2, i) - 8.0, f),
        Q4_1 => spread(32, 32, |_| (half(0), -half(2)), |i| nibble(b, 4, i), f),
        Q5_0 => spread(32, 32, |_| (half(0), 0.0), |i| nibble(b, 6, i) + 16.0 * bit(b, 2, i) - 16.0, f),
        Q5_1 => spread(32, 32, |_| (half(0), -half(2)), |i| nibble(b, 8, i) + 16.0 * bit(b, 4, i), f),
        Q8_0 => spread(32, 32, |_| (half(0), 0.0), |i| signed(b[2 + i]), f),
        IQ4_NL => spread(32, 32, |_| (half(0), 0.0), |i| IQ4_LEVELS[nibble(b, 2, i) as usize], f),
        MXFP4 => spread(32, 32, |_| (2f64.powi(b[0] as i32 - 127), 0.0), |i| e2m1(nibble(b, 1, i) as u8), f),

        // Under scales of 16, whose 8 bytes hold weight j in the low nibble of byte j and weight j + 8 in the high one.
        NVFP4 => {
            let code = |i: usize| e2m1(half_byte(b[4 + i / 16 * 8 + i % 8], i % 16 / 8) as u8);
            spread(64, 16, |g| (ue4m3(b[g]), 0.0), code, f);
        }
        // Neighbours in a byte.
        Q1_0 => spread(128, 128, |_| (half(0), 0.0), |i| -sign(bit(b, 2, i)), f),
        Q2_0 => spread(64, 64, |_| (half(0), 0.0), |i| ((b[2 + i / 4] as u32 >> (i % 4 * 2)) % 4) as f64 - 1.0, f),

        // 256 weights. `field(b, at, run, bits, i)`: codes of `bits` bits, runs of `run` bytes holding 8/bits runs of weights.
        Q2_K => {
            let scale = |g: usize| (half(80) * (b[g] % 16) as f64, half(82) * (b[g] / 16) as f64);
            spread(256, 16, scale, |i| field(b, 16, 32, 2, i), f);
        }
        Q3_K => {
            // Sixteen 6-bit scales with an offset of 32: low nibbles in bytes 96..104, upper pairs in 104..108.
            let scale = |g: usize| {
                let low = (b[96 + g % 8] >> (g / 8 * 4)) % 16;
                let high = (b[104 + g % 4] >> (g / 4 * 2)) % 4;
                (half(108) * ((high * 16 + low) as f64 - 32.0), 0.0)
            };
            // The mask bit clear means 4 less.
            let code = |i: usize| field(b, 32, 32, 2, i) - 4.0 * (1.0 - field(b, 0, 32, 1, i));
            spread(256, 16, scale, code, f);
        }
        Q4_K => spread(256, 32, |g| six_bit_scale(b, g), |i| field(b, 16, 32, 4, i), f),
        Q5_K => {
            let code = |i: usize| field(b, 48, 32, 4, i) + 16.0 * field(b, 16, 32, 1, i);
            spread(256, 32, |g| six_bit_scale(b, g), code, f);
        }
        Q6_K => {
            let code = |i: usize| field(b, 0, 64, 4, i) + 16.0 * field(b, 128, 32, 2, i) - 32.0;
            spread(256, 16, |g| (half(208) * signed(b[192 + g]), 0.0), code, f);
        }
        IQ4_XS => {
            let scale = |g: usize| {
                let low = (b[4 + g / 2] >> (g % 2 * 4)) % 16;
                let high = (word(b, 2) >> (2 * g)) % 4;
                (half(0) * ((high as u8 * 16 + low) as f64 - 32.0), 0.0)
            };
            // Eight runs of 16 bytes, each laid out as an IQ4_NL block.
            let code = |i: usize| IQ4_LEVELS[nibble(b, 8 + i / 32 * 16, i % 32) as usize];
            spread(256, 32, scale, code, f);
        }

        // Ternary: base-3 digits, most significant first, of the fraction byte / 256.
        TQ1_0 => {
            let code = |i: usize| match i {
                0..160 => trit(b[i % 32], i / 32),
                160..240 => trit(b[32 + (i - 160) % 16], (i - 160) / 16),
                _ => trit(b[48 + (i - 240) % 4], (i - 240) / 4),
            };
            spread(256, 256, |_| (half(52), 0.0), code, f);
        }
        TQ2_0 => spread(256, 256, |_| (half(64), 0.0), |i| field(b, 0, 32, 2, i) - 1.0, f),

        // Vector-quantized: an index into a grid of 8 or 4 magnitudes, and signs.
        IQ2_XXS => {
            let upper = |g: usize| word32(b, 2 + 8 * g + 4);
            let scale = |g: usize| (half(0) * (0.5 + (upper(g) >> 28) as f64) * 0.25, 0.0);
            let code = |i: usize| {
                let index = b[2 + i / 32 * 8 + i % 32 / 8];
                grids::iq2_xxs(index as usize, i % 8) * parity_sign(upper(i / 32) >> (7 * (i % 32 / 8)), i % 8)
            };
            spread(256, 32, scale, code, f);
        }
        IQ2_XS => {
            let scale = |g: usize| (half(0) * (0.5 + half_byte(b[66 + g / 2], g % 2)) * 0.25, 0.0);
            let code = |i: usize| {
                let packed = word(b, 2 + i / 8 * 2);
                grids::iq2_xs(packed as usize % 512, i % 8) * parity_sign(packed >> 9, i % 8)
            };
            spread(256, 16, scale, code, f);
        }
        IQ2_S => {
            let scale = |g: usize| (half(0) * (0.5 + half_byte(b[74 + g / 2], g % 2)) * 0.25, 0.0);
            let code = |i: usize| {
                let high = (b[66 + i / 32] >> (i % 32 / 8 * 2)) as usize % 4;
                grids::iq2_s(high * 256 + b[2 + i / 8] as usize, i % 8) * sign(bit(b, 34, i))
            };
            spread(256, 16, scale, code, f);
        }
        IQ3_XXS => {
            let upper = |g: usize| word32(b, 66 + 4 * g);
            let scale = |g: usize| (half(0) * (0.5 + (upper(g) >> 28) as f64) * 0.5, 0.0);
            let code = |i: usize| {
                grids::iq3_xxs(b[2 + i / 4] as usize, i % 4) * parity_sign(upper(i / 32) >> (7 * (i % 32 / 8)), i % 8)
            };
            spread(256, 32, scale, code, f);
        }
        IQ3_S => {
            let scale = |g: usize| (half(0) * (1.0 + 2.0 * half_byte(b[106 + g / 2], g % 2)), 0.0);
            let code = |i: usize| {
                let index = b[2 + i / 4] as usize + 256 * bit(b, 66, i / 4) as usize;
                grids::iq3_s(index, i % 4) * sign(bit(b, 74, i))
            };
            spread(256, 32, scale, code, f);
        }
        IQ1_S => {
            let upper = |g: usize| word(b, 34 + 2 * g);
            let scale = |g: usize| (half(0) * (2.0 * ((upper(g) >> 12) % 8) as f64 + 1.0), 0.0);
            let code = |i: usize| {
                let high = (upper(i / 32) >> (3 * (i % 32 / 8))) as usize % 8;
                let shift = 0.125 * sign((upper(i / 32) >> 15) as f64);
                grids::iq1(high * 256 + b[2 + i / 8] as usize, i % 8) + shift
            };
            spread(256, 32, scale, code, f);
        }
        IQ1_M => {
            // The half is scattered: its nibbles are the top nibbles of the four scale words, lowest first.
            let bits = (0..4).fold(0, |h, n| h | (word(b, 48 + 2 * n) >> 12) << (4 * n));
            let d = half::f16::from_bits(bits as u16).to_f64();
            let scale = |g: usize| (d * (2.0 * ((word(b, 48 + g / 4 * 2) >> (g % 4 * 3)) % 8) as f64 + 1.0), 0.0);
            let code = |i: usize| {
                let high = half_byte(b[32 + i / 16], i / 8 % 2) as usize;
                grids::iq1(high % 8 * 256 + b[i / 8] as usize, i % 8) + 0.125 * sign((high / 8) as f64)
            };
            spread(256, 16, scale, code, f);
        }
        Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64 => unreachable!("refused by `each`"),
    }
}

/// Pairs each group's scale with its codes.
#[inline]
fn spread(
    len: usize,
    group: usize,
    scale: impl Fn(usize) -> (f64, f64),
    code: impl Fn(usize) -> f64,
    mut f: impl FnMut(usize, Part),
) {
    for g in 0..len / group {
        let (step, offset) = scale(g);
        for i in g * group..(g + 1) * group {
            f(i, Part { group: g, step, code: code(i), offset });
        }
    }
}

#[inline]
fn half_at(b: &[u8], at: usize) -> f64 {
    half::f16::from_le_bytes([b[at], b[at + 1]]).to_f64()
}

fn word(b: &[u8], at: usize) -> u32 {
    b[at] as u32 | (b[at + 1] as u32) << 8
}

fn word32(b: &[u8], at: usize) -> u32 {
    word(b, at) | word(b, at + 2) << 16
}

fn signed(byte: u8) -> f64 {
    byte as i8 as f64
}

/// Nibble code i of 32 in the 16 bytes from `at`: low nibbles first.
#[inline]
fn nibble(b: &[u8], at: usize, i: usize) -> f64 {
    half_byte(b[at + i % 16], i / 16)
}

/// The low (0) or high (1) nibble.
fn half_byte(byte: u8, which: usize) -> f64 {
    ((byte >> (4 * which)) % 16) as f64
}

/// Bit i of the bytes from `at`, least significant first.
#[inline]
fn bit(b: &[u8], at: usize, i: usize) -> f64 {
    (b[at + i / 8] >> (i % 8) & 1) as f64
}

/// Code i of `bits` bits: the bytes from `at` come in runs of `run`; the lowest bits of a run are its first `run` weights,
/// the next bits the next `run`, and so on.
#[inline]
fn field(b: &[u8], at: usize, run: usize, bits: usize, i: usize) -> f64 {
    let span = run * 8 / bits;
    let byte = b[at + i / span * run + i % run];
    ((byte >> (i % span / run * bits)) & ((1u16 << bits) - 1) as u8) as f64
}

/// (d·s, dmin·m) of sub-block g in Q4_K and Q5_K: eight 6-bit pairs in bytes 4..16. The first four lie in the low 6 bits of
/// bytes 4..8 (s) and 8..12 (m); the last four have their low nibbles in bytes 12..16 and their upper two bits above the first four.
fn six_bit_scale(b: &[u8], g: usize) -> (f64, f64) {
    let (s, m) = if g < 4 {
        (b[4 + g] % 64, b[8 + g] % 64)
    } else {
        (b[8 + g] % 16 + b[g] / 64 * 16, b[8 + g] / 16 + b[4 + g] / 64 * 16)
    };
    (half_at(b, 0) * s as f64, half_at(b, 2) * m as f64)
}

/// The OCP FP4 (E2M1) numbers: sign, two exponent bits, one mantissa bit.
fn e2m1(code: u8) -> f64 {
    let (exponent, mantissa) = (code / 2 % 4, (code % 2) as f64);
    let magnitude =
        if exponent == 0 { mantissa * 0.5 } else { (1.0 + mantissa * 0.5) * 2f64.powi(exponent as i32 - 1) };
    // ggml's table holds an integer 0 for code 8, so −0 does not occur.
    if code >= 8 && magnitude != 0.0 { -magnitude } else { magnitude }
}

/// The OCP FP8 (E4M3) numbers without their sign: four exponent bits, three mantissa bits. ggml has 0 for the NaN, 0x7f, of which a set sign bit
/// makes a number like the others.
fn ue4m3(code: u8) -> f64 {
    let (exponent, mantissa) = ((code / 8 % 16) as i32, (code % 8) as f64 / 8.0);
    match exponent {
        _ if code == 0x7f => 0.0,
        0 => mantissa * 2f64.powi(-6),
        _ => (1.0 + mantissa) * 2f64.powi(exponent - 7),
    }
}

/// Digit n, less one, of a byte that holds base-3 digits as a fraction of 256.
fn trit(byte: u8, n: usize) -> f64 {
    let shifted = (byte as u32 * 3u32.pow(n as u32)) % 256;
    (shifted * 3 / 256) as f64 - 1.0
}

fn sign(bit: f64) -> f64 {
    1.0 - 2.0 * bit
}

/// Seven sign bits, and an eighth that makes their number even.
fn parity_sign(bits: u32, i: usize) -> f64 {
    let seven = bits % 128;
    let all = seven | (seven.count_ones() % 2) << 7;
    sign((all >> i & 1) as f64)
}

/// IQ4_NL's and IQ4_XS's sixteen levels.
const IQ4_LEVELS: [f64; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    /// Every golden type, bit for bit, the sign of zero included; NaN where gguf-py has NaN.
    #[test]
    fn equals_gguf_py_bit_for_bit() {
        let file = std::fs::read("tests/golden/dequant.safetensors").unwrap();
        let golden = SafeTensors::deserialize(&file).unwrap();
        let mut types = 0;
        for name in golden.names() {
            let Some(name) = name.strip_suffix(".blocks") else { continue };
            let ty = GgmlType::from_name(name).unwrap();
            let blocks = golden.tensor(&format!("{name}.blocks")).unwrap();
            let values = golden.tensor(&format!("{name}.values")).unwrap();
            let want: Vec<f32> = values.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let mut got = vec![0.0; want.len()];
            row(ty, blocks.data(), &mut got).unwrap();
            for (i, (&g, &w)) in got.iter().zip(&want).enumerate() {
                assert!(
                    (g as f32).to_bits() == w.to_bits() || (g.is_nan() && w.is_nan()),
                    "{name} weight {i}: {g:e}, gguf-py {w:e}"
                );
            }
            types += 1;
        }
        assert_eq!(types, 27, "types in the goldens");
    }

    #[test]
    fn f32_is_itself() {
        let mut out = [0.0; 2];
        row(GgmlType::F32, &[0, 0, 0x80, 0x3f, 1, 0, 0, 0x80], &mut out).unwrap();
        assert_eq!(out, [1.0, -(2f64.powi(-149))]);
    }

    #[test]
    fn refuses_what_is_no_weight_type_or_no_whole_block() {
        assert!(row(GgmlType::Q8_K, &[0; 292], &mut [0.0; 256]).is_err());
        assert!(row(GgmlType::Q4_0, &[0; 17], &mut []).is_err());
        assert!(row(GgmlType::Q4_0, &[0; 18], &mut [0.0; 31]).is_err());
    }
}
