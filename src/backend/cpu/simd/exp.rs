//! What the vector exponentials share: Cephes' `expf`.

/// Bound on the relative error in units of 2⁻²³, for results that are normal numbers. The largest over all f32 is 0.71
/// (`check` with a step of 1).
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::{Level, simd};

    #[test]
    fn every_level_is_within_the_bound() {
        check(simd::plain::exp_in_place);
        type InPlace = unsafe fn(&mut [f32; 16]);
        let levels: &[(Level, InPlace)] = &[
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, simd::avx2::exp_in_place),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, simd::avx512::exp_in_place),
            #[cfg(target_arch = "aarch64")]
            (Level::Neon, simd::neon::exp_in_place),
        ];
        for (level, exp) in levels {
            if level.missing().is_empty() {
                // SAFETY: the processor has the level's features.
                check(|x| unsafe { exp(x) });
            }
        }
    }
}
