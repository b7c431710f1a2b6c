//! The sums of one block of values, in one pass: what statistics cost is this loop.
//!
//! It is written once, over arrays of lanes that the compiler keeps in vector registers, and compiled for each level of the
//! processor; the order of the sums is the same at each, so are the results, to the bit.

/// Independent accumulators.
const LANES: usize = 16;

/// A number that a stage's values are stored as.
pub trait Number: Copy + PartialOrd {
    const ZERO: Self;
    /// Bounds of every value that is not NaN.
    const LEAST: Self;
    const GREATEST: Self;
    fn wide(self) -> f64;
}

impl Number for f32 {
    const ZERO: f32 = 0.0;
    const LEAST: f32 = f32::NEG_INFINITY;
    const GREATEST: f32 = f32::INFINITY;
    #[inline(always)]
    fn wide(self) -> f64 {
        self as f64
    }
}

impl Number for f64 {
    const ZERO: f64 = 0.0;
    const LEAST: f64 = f64::NEG_INFINITY;
    const GREATEST: f64 = f64::INFINITY;
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
}

impl Number for u32 {
    const ZERO: u32 = 0;
    const LEAST: u32 = 0;
    const GREATEST: u32 = u32::MAX;
    #[inline(always)]
    fn wide(self) -> f64 {
        self as f64
    }
}

/// What one pass finds. With a NaN in the block `min` and `max` mean nothing, and `sum` is NaN.
pub struct Sums {
    pub sum: f64,
    pub squares: f64,
    pub min: f64,
    pub max: f64,
    pub zero: u64,
}

/// The sums of `block`, by the widest vectors that the processor has.
pub fn sums<V: Number>(block: &[V]) -> Sums {
    #[cfg(target_arch = "x86_64")]
    {
        // The standard library keeps the answers, so each is a load and a test.
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
            // SAFETY: the processor has both features.
            return unsafe { sums_avx512(block) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the feature.
            return unsafe { sums_avx2(block) };
        }
    }
    sums_in_lanes(block)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl")]
fn sums_avx512<V: Number>(block: &[V]) -> Sums {
    sums_in_lanes(block)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sums_avx2<V: Number>(block: &[V]) -> Sums {
    sums_in_lanes(block)
}

#[inline(always)]
fn sums_in_lanes<V: Number>(block: &[V]) -> Sums {
    let (mut min, mut max) = ([V::GREATEST; LANES], [V::LEAST; LANES]);
    let (mut sum, mut squares, mut zero) = ([0f64; LANES], [0f64; LANES], [0u32; LANES]);
    let mut add = |i: usize, v: V| {
        let x = v.wide();
        min[i] = if v < min[i] { v } else { min[i] };
        max[i] = if v > max[i] { v } else { max[i] };
        sum[i] += x;
        squares[i] += x * x;
        zero[i] += u32::from(v == V::ZERO);
    };
    let (chunks, tail) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for (i, v) in chunk.iter().enumerate() {
            add(i, *v);
        }
    }
    for (i, v) in tail.iter().enumerate() {
        add(i, *v);
    }
    Sums {
        sum: sum.iter().sum(),
        squares: squares.iter().sum(),
        min: min.iter().fold(f64::INFINITY, |a, b| a.min(b.wide())),
        max: max.iter().fold(f64::NEG_INFINITY, |a, b| a.max(b.wide())),
        zero: zero.iter().map(|&z| z as u64).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_finds_the_same_bits() {
        for n in [1, 15, 16, 17, 256, 4095, 4096] {
            let block: Vec<f32> = (0..n).map(|i| ((i * 7919 % 10007) as f32 - 5000.0) * 1e-3).collect();
            let bits = |s: Sums| [s.sum, s.squares, s.min, s.max, s.zero as f64].map(f64::to_bits);
            assert_eq!(bits(sums(&block)), bits(sums_in_lanes(&block)), "{n} values");
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the feature.
                assert_eq!(bits(unsafe { sums_avx2(&block) }), bits(sums_in_lanes(&block)), "{n} values");
            }
        }
    }
}
