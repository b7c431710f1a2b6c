//! Numbers and lines as people read them.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::diff::measure::metrics::Mismatch;
use crate::diff::outcome::Measured;
use crate::text::count;

/// A number to two digits: `0.31`, `41`, `3.7e4`.
pub fn short(x: f64) -> String {
    match x.abs() {
        _ if x.is_nan() => "NaN".into(),
        a if a.is_infinite() => if x > 0.0 { "inf" } else { "-inf" }.into(),
        0.0 => "0".into(),
        a if (0.0995..0.995).contains(&a) => format!("{x:.2}"),
        a if (0.995..9.95).contains(&a) => format!("{x:.1}"),
        a if (9.95..999.5).contains(&a) => format!("{x:.0}"),
        _ => format!("{x:.1e}"),
    }
}

/// A number to three digits, never with an exponent: `0.0123`, `1.26`, `41.3`, `164`, `1,234,567`.
pub fn three(x: f64) -> String {
    match x.abs() {
        _ if !x.is_finite() => short(x),
        0.0 => "0".into(),
        a if a >= 999.5 => {
            let digits = format!("{:.0}", a);
            let (sign, mut out) = (if x < 0.0 { "-" } else { "" }, String::new());
            for (i, c) in digits.chars().enumerate() {
                if i > 0 && (digits.len() - i).is_multiple_of(3) {
                    out.push(',');
                }
                out.push(c);
            }
            format!("{sign}{out}")
        }
        a => {
            // The digits before the point are those of the rounded number: 0.9999 is 1.00.
            let rounded = format!("{a:.2e}");
            let exponent: i32 = rounded.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
            format!("{x:.*}", (2 - exponent).clamp(0, 12) as usize)
        }
    }
}

/// A time in the unit that leaves one to three digits before the point: `4.56 ms`.
pub fn time(seconds: f64) -> String {
    let (scale, unit) = match seconds.abs() {
        0.0 => return "0".into(),
        s if s < 1e-6 => (1e9, "ns"),
        s if s < 1e-3 => (1e6, "µs"),
        s if s < 1.0 => (1e3, "ms"),
        _ => (1.0, "s"),
    };
    format!("{} {unit}", three(seconds * scale))
}

/// A small number, always with an exponent unless it is 0: `4.4e-3`.
pub fn scientific(x: f64) -> String {
    if x == 0.0 { "0".into() } else { format!("{x:.1e}") }
}

/// A share of 1 in per cent: `100 %`, `99.98 %`, `0.3 %`. Only a whole share is printed as 100 %, only none as 0 %.
pub fn percent(share: f64) -> String {
    let p = share * 100.0;
    match p {
        _ if p == 0.0 || p == 100.0 => format!("{p:.0} %"),
        _ if p > 99.9 && p < 100.0 => format!("{:.3} %", p.min(99.999)),
        _ if (10.0..100.0).contains(&p) => format!("{p:.1} %"),
        _ => format!("{} %", short(p)),
    }
}

/// `17×2×256`
pub fn shape(shape: &[usize]) -> String {
    shape.iter().map(|n| n.to_string()).collect::<Vec<_>>().join("×")
}

/// Columns that a terminal gives to `text`.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text`, cut to `columns` with an ellipsis.
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.into();
    }
    let mut used = 1;
    let mut fits = |c: &char| {
        used += c.width().unwrap_or(0);
        used <= columns
    };
    text.chars().take_while(|c| fits(c)).chain(['…']).collect()
}

/// One word for what a comparison gave, in place of a number.
pub fn measured(m: &Measured) -> String {
    match m {
        Measured::Metrics(m) => scientific(m.nmse),
        Measured::Sets { flips: 0, .. } => "equal".into(),
        Measured::Sets { flips, .. } => count(*flips, "flip"),
        Measured::Failed(m) => mismatch_kind(m).into(),
        Measured::Hidden => "-".into(),
    }
}

/// One word for a mismatch.
fn mismatch_kind(m: &Mismatch) -> &'static str {
    match m {
        Mismatch::Shape { .. } => "shape",
        Mismatch::Dtype { .. } => "dtype",
        Mismatch::Ids => "ids",
        Mismatch::Nothing { .. } => "empty",
        Mismatch::NonFinite { .. } => "NaN/inf",
        Mismatch::ZeroNorm { .. } => "all 0",
        Mismatch::NoSuchExpert { .. } | Mismatch::RepeatedExpert { .. } => "bad ids",
        Mismatch::NoSuchToken { .. } => "bad token",
        Mismatch::Mask { .. } => "mask",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let texts: Vec<String> =
            [0.0, 0.314, 0.0314, 0.09999, 1.26, 9.96, 41.3, 999.6, 3.7e4, -2.0].into_iter().map(short).collect();
        assert_eq!(texts, ["0", "0.31", "3.1e-2", "0.10", "1.3", "10", "41", "1.0e3", "3.7e4", "-2.0"]);
        assert_eq!((short(f64::NAN), short(f64::NEG_INFINITY)), ("NaN".into(), "-inf".into()));
        let three: Vec<String> = [0.0, 0.01234, 0.9999, 1.259, 9.999, 41.25, 164.4, 999.7, -1234.6, 1234567.0]
            .into_iter()
            .map(three)
            .collect();
        assert_eq!(three, ["0", "0.0123", "1.00", "1.26", "10.0", "41.2", "164", "1,000", "-1,235", "1,234,567"]);
        let times: Vec<String> = [0.0, 1.5e-9, 2e-6, 4.56e-3, 0.2, 12.0].into_iter().map(time).collect();
        assert_eq!(times, ["0", "1.50 ns", "2.00 µs", "4.56 ms", "200 ms", "12.0 s"]);
        let shares: Vec<String> = [1.0, 0.999999, 0.9995, 0.912, 0.05, 0.00001, 0.0].into_iter().map(percent).collect();
        assert_eq!(shares, ["100 %", "99.999 %", "99.950 %", "91.2 %", "5.0 %", "1.0e-3 %", "0 %"]);
    }

    #[test]
    fn lines_are_measured_and_cut_in_columns() {
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!((width("日本語"), cut("日本語", 4).as_str()), (6, "日…"), "two columns each");
        let combining = "e\u{301}e\u{301}e\u{301}";
        assert_eq!(
            (width(combining), cut(combining, 3).as_str()),
            (3, combining),
            "an accent has no column of its own"
        );
        assert_eq!(cut(combining, 2), "e\u{301}…", "and is not parted from its letter");
        assert_eq!(width("👍🏽"), 2, "nor has a modifier");
    }
}
