//! Means, deviations, and whether two sets of samples differ by more than noise.

/// The arithmetic mean; NaN of no samples.
pub fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// The sample standard deviation (divisor n − 1); 0 of fewer than two samples.
pub fn stddev(samples: &[f64]) -> f64 {
    variance(samples).sqrt()
}

fn variance(samples: &[f64]) -> f64 {
    if samples.len() < 2 {
        return 0.0;
    }
    let mean = mean(samples);
    samples.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (samples.len() - 1) as f64
}

/// Welch's test of two sets of times for equal means of their logarithms.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct WelchTest {
    /// The speed of the second over that of the first, by geometric means: 1.1 is 10 % faster.
    pub speed_ratio: f64,
    /// The interval that holds the true ratio with the confidence asked for.
    pub low: f64,
    /// See `low`.
    pub high: f64,
    /// Welch's t, and the degrees of freedom by Welch and Satterthwaite.
    pub t: f64,
    /// See `t`.
    pub degrees_of_freedom: f64,
    /// How often chance alone would make a difference as large or larger.
    pub p: f64,
}

/// Holds the times `b` against the times `a`. Logarithms, because a change of speed is a ratio. `None` if either has
/// fewer than two samples, or one that is not positive: then noise is unknown.
///
/// `alpha` is one less the confidence of the interval.
pub fn welch(a: &[f64], b: &[f64], alpha: f64) -> Option<WelchTest> {
    if a.len() < 2 || b.len() < 2 || a.iter().chain(b).any(|x| !(x.is_finite() && *x > 0.0)) {
        return None;
    }
    let log = |x: &[f64]| x.iter().map(|x| x.ln()).collect::<Vec<_>>();
    let (a, b) = (log(a), log(b));
    // The squared standard errors of the two means.
    let (va, vb) = (variance(&a) / a.len() as f64, variance(&b) / b.len() as f64);
    let difference = mean(&a) - mean(&b);
    let error = (va + vb).sqrt();
    if error == 0.0 {
        // Clocks are coarse: equal samples are no proof of a difference of any size, unless there is one.
        let (ratio, p) = (difference.exp(), if difference == 0.0 { 1.0 } else { 0.0 });
        let (t, degrees_of_freedom) = (0.0, (a.len() + b.len() - 2) as f64);
        return Some(WelchTest { speed_ratio: ratio, low: ratio, high: ratio, t, degrees_of_freedom, p });
    }
    let degrees_of_freedom = (va + vb) * (va + vb) / (va * va / (a.len() - 1) as f64 + vb * vb / (b.len() - 1) as f64);
    let t = difference / error;
    let margin = t_quantile(1.0 - alpha / 2.0, degrees_of_freedom) * error;
    Some(WelchTest {
        speed_ratio: difference.exp(),
        low: (difference - margin).exp(),
        high: (difference + margin).exp(),
        t,
        degrees_of_freedom,
        p: two_sided(t, degrees_of_freedom),
    })
}

/// The probability that |T| is `t` or more, for Student's T of `v` degrees of freedom: I_{v/(v+t²)}(v/2, 1/2).
fn two_sided(t: f64, v: f64) -> f64 {
    incomplete_beta(v / 2.0, 0.5, v / (v + t * t))
}

/// The t below which Student's T of `v` degrees of freedom is with probability `p`, p > 1/2.
fn t_quantile(p: f64, v: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    let above = |t: f64| two_sided(t, v) / 2.0 > 1.0 - p;
    while above(high) && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if above(middle) { low = middle } else { high = middle }
    }
    high
}

/// The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22), evaluated as Lentz
/// does.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges fast below the mean only; beyond it, by symmetry, the other tail does.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    const TINY: f64 = 1e-300;
    let away_from_0 = |x: f64| if x.abs() < TINY { TINY } else { x };
    let mut c = 1.0;
    let mut d = 1.0 / away_from_0(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for m in 1..1000 {
        let m = m as f64;
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for term in [even, odd] {
            d = 1.0 / away_from_0(1.0 + term * d);
            c = away_from_0(1.0 + term / c);
            step = c * d;
            fraction *= step;
        }
        if (step - 1.0).abs() < 1e-15 {
            break;
        }
    }
    let front = (a * x.ln() + b * (1.0 - x).ln() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b)).exp();
    front * fraction / a
}

/// ln Γ(x), x > 0: Stirling's series (DLMF 5.11.1) from 10 on, and Γ(x + 1) = x·Γ(x) below.
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 10.0 {
        shift += x.ln();
        x += 1.0;
    }
    let y = 1.0 / (x * x);
    let series = (1.0 / 12.0 - y * (1.0 / 360.0 - y * (1.0 / 1260.0 - y * (1.0 / 1680.0 - y / 1188.0)))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - shift
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} {b}");
    }

    #[test]
    fn means_and_deviations() {
        let x = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_eq!(mean(&x), 5.0);
        near(stddev(&x), (32.0f64 / 7.0).sqrt(), 1e-15);
        assert_eq!((mean(&[3.0]), stddev(&[3.0])), (3.0, 0.0));
        assert!(mean(&[]).is_nan());
    }

    #[test]
    fn student_s_t_is_that_of_the_tables() {
        // Two-sided 5 % and 1 % points, and exact tails: one degree is Cauchy's, two have a closed form.
        for (t, v, p) in [(12.706_204_736, 1.0, 0.05), (2.776_445_105, 4.0, 0.05), (3.355_387_331, 8.0, 0.01)] {
            near(two_sided(t, v), p, 1e-9);
            near(t_quantile(1.0 - p / 2.0, v), t, 1e-6);
        }
        near(two_sided(1.0, 1.0), 0.5, 1e-14);
        near(two_sided(3.0, 2.0), 1.0 - 3.0 / 11.0f64.sqrt(), 1e-14);
        near(two_sided(1.959_963_985, 1e7), 0.05, 1e-6);
        near(ln_gamma(0.5), std::f64::consts::PI.sqrt().ln(), 1e-13);
        near(ln_gamma(11.0), 3_628_800.0f64.ln(), 1e-12);
    }

    #[test]
    fn welch_tells_a_change_from_noise() {
        // Against scipy.stats.ttest_ind(log a, log b, equal_var=False).
        let a = [1.00, 1.02, 0.98, 1.01, 0.99];
        let b = [0.90, 0.93, 0.91, 0.92, 0.89];
        let test = welch(&a, &b, 0.01).unwrap();
        near(test.speed_ratio, 1.0989, 1e-4);
        assert!(test.p < 1e-4 && test.low > 1.05 && test.high < 1.15, "{test:?}");
        let back = welch(&b, &a, 0.01).unwrap();
        near(back.speed_ratio * test.speed_ratio, 1.0, 1e-14);
        near(back.p, test.p, 1e-15);

        let noisy = [1.0, 1.3, 0.8, 1.1, 0.9];
        let test = welch(&a, &noisy, 0.01).unwrap();
        assert!(test.p > 0.5 && test.low < 1.0 && test.high > 1.0, "{test:?}");
        // The interval and the p-value are of one test: at the p-value's own level the interval ends at 1.
        let edge = welch(&a, &noisy, test.p).unwrap();
        near(if edge.speed_ratio > 1.0 { edge.low } else { edge.high }, 1.0, 1e-6);
    }

    #[test]
    fn noise_that_is_unknown_is_said_to_be() {
        assert_eq!(welch(&[1.0], &[1.0, 2.0], 0.01), None);
        assert_eq!(welch(&[1.0, 0.0], &[1.0, 2.0], 0.01), None);
        assert_eq!(welch(&[1.0, f64::NAN], &[1.0, 2.0], 0.01), None);
        assert_eq!(welch(&[2.0, 2.0], &[2.0, 2.0], 0.01).unwrap().p, 1.0);
        let test = welch(&[2.0, 2.0], &[1.0, 1.0], 0.01).unwrap();
        near(test.speed_ratio, 2.0, 1e-14);
        assert_eq!(test.p, 0.0);
    }
}
