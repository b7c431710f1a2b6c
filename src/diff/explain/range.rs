//! Numbers beyond the range of their format.

use super::case::{Evidence, Variant};
use crate::error::Result;
use crate::formula::Point;
use crate::formula::norm::Norm;

/// The largest half, and the largest f32.
const F16: f64 = 65504.0;
const F32: f64 = f32::MAX as f64;

/// A sum of squares that overflows, of which the inverse root is 0; values that became infinite or stopped at the end of f16.
pub fn overflow<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let mut all = Vec::new();
    if case.scene.site.stage.is_ids() {
        return Ok(all);
    }
    if let Some(norm) = case.stated::<Norm<'a>>()? {
        let begins: Vec<Option<usize>> = (0..case.output.len()).map(|i| norm.group_of(i)).collect();
        let mut groups: Vec<usize> = begins.iter().flatten().copied().collect();
        groups.dedup();
        // The largest square of each group, and their sum.
        let squares: Vec<(f64, f64)> = groups
            .iter()
            .map(|begin| &norm.x[*begin..][..norm.n])
            .map(|x| x.iter().map(|x| x * x).fold((0.0, 0.0), |(largest, sum), x| (x.max(largest), sum + x)))
            .collect();
        /// Whether the largest square, or the sum, is beyond.
        type Beyond = fn(f64, f64) -> bool;
        let kinds: [(&str, Beyond); 3] = [
            ("Σx² beyond the range of f32 (3.4e38)", |_, sum| sum > F32),
            ("Σx² beyond the range of f16 (65504)", |_, sum| sum > F16),
            ("x² beyond the range of f16 (65504)", |largest, _| largest > F16),
        ];
        for (what, beyond) in kinds {
            let lost: Vec<bool> = squares.iter().map(|(largest, sum)| beyond(*largest, *sum)).collect();
            let count = lost.iter().filter(|lost| **lost).count();
            if count > 0 {
                let what = format!("{what} in {count} of {} sums, whose scale is then 0", lost.len());
                let (begins, groups) = (begins.clone(), groups.clone());
                all.push(Variant::each(what, move |i| match begins[i].map(|begin| groups.binary_search(&begin)) {
                    Some(Ok(group)) if lost[group] => Point::exactly(0.0),
                    _ => case.right(i),
                }));
            }
        }
    }
    let beyond = |limit: f64| case.exact.iter().filter(|x| x.is_finite() && x.abs() > limit).count();
    let (half, single) = (beyond(F16), beyond(F32));
    if single > 0 {
        let what = format!("{single} values beyond the range of f32 (3.4e38) became infinite or NaN");
        all.push(Variant::each(what, |i| match case.exact[i] {
            x if x.abs() > F32 => Point::exactly(f64::INFINITY),
            _ => case.right(i),
        }));
    }
    if half > 0 {
        let of = |what: &str| format!("{half} values beyond the range of f16 (65504) {what}");
        // Where none lies between the two, the narrower format is not what is seen.
        if half > single {
            all.push(Variant::each(of("became infinite"), |i| match case.exact[i] {
                x if x.abs() > F16 => Point::exactly(f64::INFINITY),
                _ => case.right(i),
            }));
        }
        all.push(Variant::each(of("stopped at it"), |i| match case.exact[i] {
            x if x.abs() > F16 => Point::exactly(F16.copysign(x)),
            _ => case.right(i),
        }));
    }
    Ok(all)
}
