//! Numbers that are coarser than f32: formats, int8 blocks, and sums taken in a format, rounding by rounding.

use crate::backend::Precision;

/// A storage format.
#[derive(Clone, Copy)]
pub(crate) struct FloatFormat {
    pub name: &'static str,
    pub round: fn(f64) -> f64,
    /// Unit roundoff.
    pub u: f64,
    pub precision: Precision,
}

pub(crate) const FORMATS: [FloatFormat; 2] = [
    FloatFormat { name: "f16", round: to_f16, u: 1.0 / 2048.0, precision: Precision::F16 },
    FloatFormat { name: "bf16", round: |x| to_bits::<8>(x), u: 1.0 / 256.0, precision: Precision::Bf16 },
];

/// What sums and operands have where nothing is coarser.
pub(crate) const SINGLE: FloatFormat =
    FloatFormat { name: "f32", round: |x| f64::from(x as f32), u: 1.0 / 16_777_216.0, precision: Precision::F32 };

impl FloatFormat {
    /// The format of a precision that is one and is narrower than f32.
    pub fn of(precision: Precision) -> Option<Self> {
        FORMATS.into_iter().find(|format| format.precision == precision)
    }

    pub fn rounded(self, values: &[f64]) -> Vec<f64> {
        values.iter().map(|x| (self.round)(*x)).collect()
    }
}

/// The unit roundoff of a floating-point format that is narrower than f32, 0 for others.
pub(crate) fn unit(precision: Precision) -> f64 {
    FloatFormat::of(precision).map_or(0.0, |format| format.u)
}

/// Half the distance between two neighbours of a format at |x|, the most that rounding to it moves x; 0 for f32 and wider. Beyond the format's
/// range that of its largest number: there a value that is finite is near, and one that became an infinity is an error.
pub(crate) fn half_step(precision: Precision, x: f64) -> f64 {
    let (smallest, largest) = match precision {
        Precision::F16 => (-14, 15),
        Precision::Bf16 => (-126, 127),
        _ => return 0.0,
    };
    if x.is_nan() {
        return f64::NAN;
    }
    // The exponent of x, as the bits of a double have it.
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).clamp(smallest, largest);
    2f64.powi(exponent) * unit(precision)
}

pub(crate) fn to_f32(x: f64) -> f64 {
    x as f32 as f64
}

/// To the nearest number of `BITS` significant bits: Veltkamp's splitting (Dekker 1971, *A floating-point technique for extending the
/// available precision*), which is a few operations where a conversion is many.
fn to_bits<const BITS: i32>(x: f64) -> f64 {
    let c = x * ((1i64 << (53 - BITS)) + 1) as f64;
    if c.is_finite() { c - (c - x) } else { x }
}

/// To the nearest half, subnormal and infinite ones included.
fn to_f16(x: f64) -> f64 {
    const SMALLEST: f64 = 5.960464477539063e-8; // 2^-24
    if x.abs() < 6.103515625e-5 {
        (x / SMALLEST).round_ties_even() * SMALLEST
    } else if x.abs() >= 65520.0 {
        f64::INFINITY.copysign(x)
    } else {
        to_bits::<11>(x)
    }
}

/// To the next half towards zero.
pub(crate) fn cut_to_f16(x: f64) -> f64 {
    let half = half::f16::from_f64(x);
    match half.to_f64().abs() > x.abs() {
        true => half::f16::from_bits(half.to_bits() - 1).to_f64(),
        false => half.to_f64(),
    }
}

/// The upper half of an f32.
pub(crate) fn cut_to_bf16(x: f64) -> f64 {
    f32::from_bits((x as f32).to_bits() & 0xffff_0000) as f64
}

/// How a block of activations becomes int8.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Int8 {
    pub block: usize,
    /// The scale is kept as a half, as in ggml's Q8_0 and Q8_1; Q8_K keeps an f32.
    pub half_scale: bool,
    /// The element of largest magnitude becomes −127 (Q8_K), so the scale has its sign.
    pub signed: bool,
}

/// A row of activations after the round trip.
#[derive(Default)]
pub(crate) struct Int8Row {
    pub values: Vec<f64>,
    /// For each value how far the next code is, if the value lies so near to the middle of two that the arithmetic of the scale decides.
    pub steps: Vec<f64>,
    /// For each block the difference between d·Σcodes, which Q8_1 keeps beside the codes as a half, and the sum of the values: |s − Σ|.
    pub sums: Vec<f64>,
}

impl Int8 {
    /// Of a precision that is int8 codes and is not to be chosen by a weight's type.
    pub fn of(precision: Precision) -> Option<Self> {
        Some(match precision {
            Precision::Int8 { block } => Self { block: block.max(1) as usize, half_scale: false, signed: false },
            Precision::Q8_0 | Precision::Q8_1 => Self { block: 32, half_scale: true, signed: false },
            Precision::Q8_K => Self { block: 256, half_scale: false, signed: true },
            _ => return None,
        })
    }

    /// A row after the round trip.
    pub fn row(self, x: &[f64]) -> Int8Row {
        let mut row = Int8Row::default();
        x.chunks(self.block).for_each(|x| self.push_block(x, &mut row));
        row
    }

    /// The scale is that of f32 arithmetic on values that are f32, as every engine here has it: amax/127 (AVX2: 127/amax for the codes), or
    /// with sign 1/(−127/max). A code x·(1/d) has two or three roundings of a number up to 127 in whichever way it is computed: nearer than
    /// that to the middle of two, it may be either. Halves are rounded to even here, and away from zero in ggml's generic code.
    fn push_block(self, x: &[f64], row: &mut Int8Row) {
        let largest = x.iter().copied().fold(0.0, |m: f64, x| if x.abs() > m.abs() { x } else { m });
        let all_finite = x.iter().all(|x| x.is_finite());
        let times = -127.0 / largest as f32;
        // Values so small that their scale has no inverse become zeros as well.
        if largest == 0.0 || !all_finite || (self.signed && times.is_infinite()) {
            row.values.extend(x.iter().map(|x| if all_finite { 0.0 } else { x * 0.0 }));
            row.steps.extend(x.iter().map(|_| 0.0));
            row.sums.push(0.0);
            return;
        }
        let d = if self.signed { 1.0 / times } else { largest.abs() as f32 / 127.0 };
        let kept = if self.half_scale { half::f16::from_f32(d).to_f64() } else { d as f64 };
        let mut codes = 0.0;
        for x in x {
            let code = x / d as f64;
            let tie = (code.fract().abs() - 0.5).abs() < 4.0 * 127.0 * 2f64.powi(-24);
            let code = code.round_ties_even().clamp(-128.0, 127.0);
            codes += code;
            row.values.push(code * kept);
            row.steps.push(if tie { kept.abs() } else { 0.0 });
        }
        let sum = half::f16::from_f32(d * codes as f32).to_f64();
        row.sums.push((sum - kept * codes).abs());
    }
}

/// Sums in a format, in an order: `lanes` take turns over runs of `run` terms, and each lane has `width` sums that take turns over
/// single terms. All counts are powers of two.
#[derive(Clone, Copy)]
pub(crate) struct CoarseSums {
    pub format: FloatFormat,
    pub lanes: usize,
    pub run: usize,
    pub width: usize,
    /// Products are rounded to the format before they are added.
    pub rounded_products: bool,
    /// The lanes' sums are added in the format as well, not in f32.
    pub coarse_tree: bool,
}

impl CoarseSums {
    pub fn sum(&self, x: &[f64], w: &[f64]) -> f64 {
        let round = self.format.round;
        let product = |x: f64, w: f64| if self.rounded_products { round(x * w) } else { x * w };
        let join = |x: f64| if self.coarse_tree { round(x) } else { x as f32 as f64 };
        let mut sums = vec![0.0; self.lanes * self.width];
        for (i, (x, w)) in x.iter().zip(w).enumerate() {
            let sum = &mut sums[i / self.run % self.lanes + i % self.width * self.lanes];
            *sum = round(*sum + product(*x, *w));
        }
        while sums.len() > 1 {
            let half = sums.len() / 2;
            sums = (0..half).map(|i| join(sums[i] + sums[i + half])).collect();
        }
        sums[0]
    }

    /// A few steps of the format at the size of the sum, which is `y`.
    pub fn steps(&self, x: &[f64], w: &[f64], y: f64) -> f64 {
        let size = x.iter().zip(w).map(|(x, w)| x * x * w * w).sum::<f64>().sqrt();
        4.0 * self.format.u * y.abs().max(size)
    }
}

#[cfg(test)]
mod tests {
    use super::{cut_to_bf16, cut_to_f16, to_bits, to_f16};

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut x = 1e-9f32;
        while x < 1e6 {
            for x in [x, -x] {
                assert_eq!(to_f16(x as f64), half::f16::from_f32(x).to_f64(), "{x}");
                assert_eq!(to_bits::<8>(x as f64), half::bf16::from_f32(x).to_f64(), "{x}");
            }
            x *= 1.0037;
        }
        assert!(to_f16(f64::NAN).is_nan());
        let step = 2f64.powi(-10);
        let cut = [1.0 + 0.9 * step, -1.0 - 1.9 * step, 1e-9, 1e9].map(cut_to_f16);
        assert_eq!(cut, [1.0, -1.0 - step, 0.0, 65504.0]);
        assert_eq!([257.0, -257.0, 258.0].map(cut_to_bf16), [256.0, -256.0, 258.0]);
    }
}
