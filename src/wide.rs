//! Loops compiled for the vectors that this processor has, and not only for those that every x86-64 has. The additions and their order are the
//! same, so the results are, to the bit: more of them are done at a time.

/// A function, compiled for AVX-512, for AVX2, and for what every processor of the target has. The first of these that this one has is called.
macro_rules! wide {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),*) -> $result:ty $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) -> $result {
            #[inline(always)]
            fn body($($arg: $ty),*) -> $result $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $ty),*) -> $result {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) -> $result {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has what the function asks for.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use wide;

#[cfg(test)]
mod tests {
    wide! {
        fn squares(x: &[f64]) -> f64 {
            let mut sums = [0.0; 8];
            for x in x.as_chunks::<8>().0 {
                for i in 0..8 {
                    sums[i] += x[i] * x[i];
                }
            }
            sums.iter().sum()
        }
    }

    #[test]
    fn the_same_bits_as_without() {
        let x: Vec<f64> = (0..800).map(|i| (i as f64).sin() * 1e3f64.powi(i % 7 - 3)).collect();
        let mut sums = [0.0f64; 8];
        for (i, x) in x.iter().enumerate() {
            let square = std::hint::black_box(x * x); // so that no vector is made of it here
            sums[i % 8] += square;
        }
        assert_eq!(squares(&x).to_bits(), sums.iter().sum::<f64>().to_bits());
    }
}
