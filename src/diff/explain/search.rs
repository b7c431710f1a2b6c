//! Parameters that are fitted: what somebody may have meant.

/// `x` to one significant decimal digit, to two, and so on to eight, where that is within `tolerance` (relative) of it, and at last
/// `x` itself: the first of these that reproduces an output is the number to name.
pub fn round_numbers(x: f64, tolerance: f64) -> Vec<f64> {
    // Through decimal text, which gives 1e-6 and not a neighbour of it.
    let rounded = |digits: usize| format!("{x:.digits$e}").parse().unwrap_or(x);
    let mut all: Vec<f64> = (0..8).map(rounded).filter(|r: &f64| ((r - x) / x).abs() <= tolerance).collect();
    all.push(x);
    all.dedup();
    all
}

/// `x` as it is written: to eight digits.
pub fn told(x: f64) -> f64 {
    format!("{x:.7e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::{round_numbers, told};

    #[test]
    fn from_coarse_to_fine() {
        assert_eq!(round_numbers(1.0000004e-6, 1e-3), [1e-6, 1.0000004e-6]);
        let all = round_numbers(123456.00422703, 1e-3);
        assert_eq!((all[0], all[1], all[2]), (123500.0, 123460.0, 123456.0));
        assert_eq!(round_numbers(0.0, 1e-3), [0.0]);
        assert_eq!([2.2101252356375003, -0.5, 1e-30].map(told), [2.2101252, -0.5, 1e-30]);
    }
}
