//! Ratios to the floor, and relative errors, as steps of a scale: what the style sheet has a colour for.
//!
//! Design:
//! - Steps are decades, not a linear scale: what matters spans fourteen of them.
//! - The floor is a step's border, and the hue changes there: blue is within rounding, orange is not. Within each, lightness goes
//!   one way, so the order can be told without hue (`report.css`, and a test).

/// Upper ends of the steps of own error over floor; the floor is the end of the fourth.
const RATIOS: [f64; 7] = [1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3, 1e6];
/// What the steps are called in the legend.
pub const RATIO_NAMES: [&str; 8] = ["≤ 0.001", "≤ 0.01", "≤ 0.1", "≤ 1, the floor", "≤ 10", "≤ 1,000", "≤ 10⁶", "more"];

/// The step of an own error over its floor. What is no number is beyond all.
pub fn ratio_step(ratio: f64) -> usize {
    if ratio.is_nan() { RATIOS.len() } else { RATIOS.iter().position(|end| ratio <= *end).unwrap_or(RATIOS.len()) }
}

/// Upper ends of the steps of a relative error.
const ERRORS: [f64; 7] = [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1];
pub const ERROR_NAMES: [&str; 8] = ["≤ 10⁻⁷", "≤ 10⁻⁶", "≤ 10⁻⁵", "≤ 10⁻⁴", "≤ 10⁻³", "≤ 10⁻²", "≤ 0.1", "more"];

/// The step of a relative error.
pub fn error_step(error: f64) -> usize {
    if error.is_nan() { ERRORS.len() } else { ERRORS.iter().position(|end| error <= *end).unwrap_or(ERRORS.len()) }
}

/// A legend: a patch of each step's colour with its name, of the classes `prefix` 0 to 7.
pub fn legend(prefix: char, names: &[&str; 8]) -> String {
    let patches = names.iter().enumerate().map(|(i, name)| format!("<li><i class=\"{prefix}{i}\"></i>{name}</li>"));
    format!("<ul class=\"legend\">{}</ul>\n", patches.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_where_blue_ends() {
        let steps = [0.0, 0.001, 0.5, 1.0, 1.0001, 1e5, f64::INFINITY, f64::NAN].map(ratio_step);
        assert_eq!(steps, [0, 0, 3, 3, 4, 6, 7, 7]);
        assert_eq!([0.0, 1e-4, 0.5, f64::NAN].map(error_step), [0, 3, 7, 7]);
    }

    /// In both themes lightness goes one way over the steps, so that they are in order for whoever does not see the hues.
    #[test]
    fn lightness_is_in_order() {
        let style = include_str!("report.css");
        for (prefix, themes) in [("--h", 2), ("--q", 2)] {
            let of = |step: usize| -> Vec<f64> {
                let name = format!("{prefix}{step}: oklch(");
                style.split(&name).skip(1).map(|s| s.split('%').next().unwrap().parse().unwrap()).collect()
            };
            let lightness: Vec<f64> = (0..8).flat_map(of).collect();
            assert_eq!(lightness.len(), 8 * themes, "{prefix}");
            for theme in 0..themes {
                let steps: Vec<f64> = lightness.iter().skip(theme).step_by(themes).copied().collect();
                let ordered = |by: fn(&[f64]) -> bool| steps.windows(2).all(by);
                assert!(ordered(|w| w[0] > w[1]) || ordered(|w| w[0] < w[1]), "{prefix} {theme}: {steps:?}");
            }
        }
    }
}
