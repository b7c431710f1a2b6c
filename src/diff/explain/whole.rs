//! Mistakes that any operation may make: what it should have computed, scaled, moved, rounded or left out.

use super::case::{Evidence, Variant};
use super::indices::{OF_COLUMNS, OF_ROWS, neighbour, reversed};
use super::search::{round_numbers, told};
use super::wrapped::endings;
use crate::error::Result;
use crate::formula::Point;

/// Whether the stage's values are numbers, not ids.
fn numbers(case: &Evidence<'_>) -> bool {
    !case.scene.site.stage.is_ids()
}

/// The right values of other elements: `from(i)`, or zero.
fn moved<'a>(
    case: &'a Evidence<'a>,
    what: impl Into<String>,
    from: impl Fn(usize) -> Option<usize> + 'a,
) -> Variant<'a> {
    Variant::each(what, move |i| from(i).map_or(Point::exactly(0.0), |j| case.right(j)))
}

/// The same, where every element has another's place, and an exchange is whole.
fn permuted<'a>(
    case: &'a Evidence<'a>,
    what: impl Into<String>,
    from: impl Fn(usize) -> usize + Copy + 'a,
) -> Variant<'a> {
    moved(case, what, move |i| Some(from(i))).exchanging(from)
}

pub fn zero<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let some = case.unseen || case.wrong.iter().any(|i| case.output[*i] == 0.0);
    Ok(some.then(|| Variant::each("zeros: nothing written", |_| Point::exactly(0.0))).into_iter().collect())
}

pub fn not_finite<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let Some(&first) = case.wrong.iter().find(|i| !case.output[**i].is_finite()) else { return Ok(vec![]) };
    let (cols, shape) = (case.cols(), &case.scene.output.shape);
    let what = format!(
        "{} whatever the input, which is finite; the first in row {}, column {} of {shape:?}",
        if case.output[first].is_nan() { "NaN" } else { "infinity" },
        first / cols,
        first % cols
    );
    Ok(vec![Variant::each(what, |_| Point::exactly(f64::NAN))])
}

/// The same right values times one number.
pub fn factor<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    if !numbers(case) {
        return Ok(vec![]);
    }
    let with =
        |factor: f64, what: String| Variant::each(what, move |i| case.right(i).times(factor, &case.scene.contract));
    let mut all = vec![with(-1.0, "the sign flipped".into())];
    for known in [2.0, 0.5, 4.0, 0.25, 3.0, 8.0, 0.125, 16.0, 0.0625] {
        all.push(with(known, format!("{known} times the right values")));
    }
    let (mut xy, mut xx) = (0.0, 0.0);
    for i in case.wrong.iter().filter(|i| case.exact[**i].is_finite() && case.output[**i].is_finite()) {
        xy += case.exact[*i] * case.output[*i];
        xx += case.exact[*i] * case.exact[*i];
    }
    let fitted = xy / xx;
    if fitted.is_finite() && fitted != 0.0 {
        let config = case.scene.config;
        let roots = [("√D", config.head_dim_of(case.scene.site.stage) as f64), ("√hidden", config.hidden as f64)];
        for (name, n) in roots {
            all.push(with(n.sqrt(), format!("{name} times the right values")));
            all.push(with(1.0 / n.sqrt(), format!("1/{name} times the right values")));
        }
        for factor in round_numbers(fitted, 1e-3).into_iter().filter(|f| *f != 1.0) {
            all.push(with(factor, format!("{} times the right values", told(factor))).with_fitted(factor));
        }
        // Of a number next to 1 what says something is how far from it.
        for off in round_numbers(fitted - 1.0, 0.2).into_iter().filter(|off| off.abs() < 0.1 && *off != 0.0) {
            let factor = 1.0 + off;
            let decimals = (3.0 - off.abs().log10().floor()).min(16.0) as usize;
            let text = format!("{factor:.decimals$}");
            all.push(with(factor, format!("{} times the right values", text.trim_end_matches('0'))).with_fitted(off));
        }
    }
    Ok(all)
}

/// The same right values plus one number.
pub fn offset<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    if !numbers(case) {
        return Ok(vec![]);
    }
    let errors: Vec<f64> =
        case.wrong.iter().map(|i| case.output[*i] - case.exact[*i]).filter(|e| e.is_finite()).collect();
    if errors.is_empty() {
        return Ok(vec![]);
    }
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    let with = |offset: f64| {
        let contract = &case.scene.contract;
        let added = Point::held(offset, contract);
        let what = format!("{} added to the right values", told(offset));
        Variant::each(what, move |i| case.right(i).plus(added, contract)).with_fitted(offset)
    };
    Ok(round_numbers(mean, 1e-3).into_iter().filter(|o| *o != 0.0).map(with).collect())
}

/// Two rows, or two columns, exchanged: those that are wrong.
fn exchanged<'a>(case: &'a Evidence<'a>) -> Vec<Variant<'a>> {
    let cols = case.cols();
    let two = |of: &dyn Fn(usize) -> usize| {
        let mut all: Vec<usize> = case.wrong.iter().map(|i| of(*i)).collect();
        all.sort_unstable();
        all.dedup();
        <[usize; 2]>::try_from(all).ok()
    };
    let other = |[a, b]: [usize; 2], i: usize| match i {
        i if i == a => b,
        i if i == b => a,
        i => i,
    };
    let bits = |n: usize| 2.0 * (n as f64).log2();
    let mut all = Vec::new();
    if let Some(rows) = two(&|i| i / cols) {
        let from = move |i: usize| Some(other(rows, i / cols) * cols + i % cols);
        let variant = moved(case, format!("rows {} and {} exchanged", rows[0], rows[1]), from);
        all.push(variant.assuming(bits(case.output.len() / cols)));
    }
    if let Some(columns) = two(&|i| i % cols) {
        let from = move |i: usize| Some(i / cols * cols + other(columns, i % cols));
        let variant = moved(case, format!("columns {} and {} exchanged", columns[0], columns[1]), from);
        all.push(variant.assuming(bits(cols)));
    }
    all
}

/// Rows or columns that are those of an index which wraps around or stops, and single rows and columns that hold another.
fn repeated<'a>(case: &'a Evidence<'a>) -> Vec<Variant<'a>> {
    /// Rows that are named at most for what one holds.
    const LOOKED_AT: usize = 64;
    let cols = case.cols();
    let ends = |of: &dyn Fn(usize) -> usize| {
        let all = case.wrong.iter().map(|i| of(*i));
        (all.clone().min().unwrap_or(0), all.max().unwrap_or(0))
    };
    let (rows, columns) = (ends(&|i| i / cols), ends(&|i| i % cols));
    let mut all = Vec::new();
    if !case.is_attention_matrix() {
        for ending in endings(rows.0) {
            let from = move |i: usize| Some(ending.of(i / cols) * cols + i % cols);
            all.push(moved(case, format!("the rows of {}", ending.words("rows")), from).along(OF_ROWS));
        }
    }
    for ending in endings(columns.0) {
        let from = move |i: usize| Some(i / cols * cols + ending.of(i % cols));
        all.push(moved(case, format!("the columns of {}", ending.words("columns")), from).along(OF_COLUMNS));
    }
    let n_rows = case.output.len() / cols;
    if let (row, true) = (rows.0, rows.0 == rows.1) {
        let fits = |other: usize, i: usize| case.right(other * cols + i % cols).residual(case.output[i]) <= 1.0;
        let holds = |other: &usize| *other != row && (case.unseen || case.wrong.iter().all(|i| fits(*other, *i)));
        for other in (0..n_rows).filter(holds).take(LOOKED_AT) {
            let from = move |i: usize| Some(if i / cols == row { other * cols + i % cols } else { i });
            all.push(moved(case, format!("row {row} holds row {other}"), from).assuming((n_rows as f64).log2()));
        }
    }
    all.extend(other_columns(case, [columns.0, columns.1]));
    all
}

/// A column that holds another, and columns that have all been turned by as many: looked up in the columns of what is right.
fn other_columns<'a>(case: &'a Evidence<'a>, [first, last]: [usize; 2]) -> Vec<Variant<'a>> {
    /// Columns that are named at most for what one holds.
    const NAMED: usize = 4;
    let cols = case.cols();
    // The wrong elements of the first and of the last wrong column.
    let of = |column: usize| Vec::from_iter(case.wrong.iter().copied().filter(|i| i % cols == column));
    let ends = [of(first), of(last)];
    // One element is some column's value by chance.
    if case.unseen || case.is_attention_matrix() || ends[0].len() < 2 {
        return Vec::new();
    }
    let holds = |wrong: &[usize], other: usize| {
        wrong.iter().all(|i| case.right(i / cols * cols + other).residual(case.output[*i]) <= 1.0)
    };
    let found = (0..cols).filter(|other| *other != first && holds(&ends[0], *other)).take(NAMED);
    let variant = |other: usize| {
        if first == last {
            let from = move |i: usize| Some(if i % cols == first { i / cols * cols + other } else { i });
            return Some(moved(case, format!("column {first} holds column {other}"), from));
        }
        let by = (other + cols - first) % cols;
        holds(&ends[1], (last + by) % cols).then(|| {
            let (by, way) = if by * 2 <= cols { (by, "on") } else { (cols - by, "back") };
            let from = move |i: usize| {
                let to = if way == "on" { i % cols + by } else { i % cols + cols - by };
                i / cols * cols + to % cols
            };
            permuted(case, format!("in every column what belongs {by} {way}, around the row's end"), from)
        })
    };
    found.filter_map(variant).map(|variant| variant.assuming((cols as f64).log2())).collect()
}

/// Rows and columns in other places.
pub fn misplaced<'a>(case: &'a Evidence<'a>) -> Result<Vec<Variant<'a>>> {
    let (cols, n) = (case.cols(), case.output.len());
    let rows = n / cols;
    let mut all = Vec::new();
    if rows > 1 {
        let shifted = [
            moved(case, "every row in the place of the next", move |i| i.checked_sub(cols)),
            moved(case, "every row in the place of the one before", move |i| Some(i + cols).filter(|i| *i < n)),
            moved(case, "the first row in every row", move |i| Some(i % cols)),
            moved(case, "the last row in every row", move |i| Some((rows - 1) * cols + i % cols)),
        ];
        all.extend(shifted.map(|variant| variant.in_runs(OF_ROWS)));
        all.push(permuted(case, "the rows in reverse", move |i| reversed(i / cols, rows) * cols + i % cols));
        all.push(permuted(case, "the result written by columns", move |i| i % rows * cols + i / rows));
    }
    let d = case.scene.config.head_dim_of(case.scene.site.stage);
    if !case.is_attention_matrix() && rows > 1 && d > 0 && cols.is_multiple_of(d) && cols > d {
        let heads = cols / d;
        // [heads, T, D] where [T, heads, D] belongs.
        all.push(permuted(case, "the result written head by head, not position by position", move |i| {
            let (head, token, column) = (i / d / rows, i / d % rows, i % d);
            (token * heads + head) * d + column
        }));
    }
    if d > 0 && cols.is_multiple_of(d) && cols > d {
        let heads = cols / d;
        all.push(permuted(case, "the heads in reverse", move |i| {
            i / cols * cols + reversed(i % cols / d, heads) * d + i % d
        }));
    }
    for by in [1usize, 2, 4, 8, 16, 32, 64, 128].into_iter().filter(|by| *by < cols) {
        let right = move |i: usize| (i % cols >= by).then(|| i - by);
        all.push(moved(case, format!("columns {by} too far right"), right).in_runs(OF_COLUMNS));
        let left = move |i: usize| (i % cols + by < cols).then(|| i + by);
        all.push(moved(case, format!("columns {by} too far left"), left).in_runs(OF_COLUMNS));
    }
    all.extend(exchanged(case));
    all.extend(repeated(case));
    let pair = move |i: usize| i / cols * cols + neighbour(i % cols, cols);
    all.push(permuted(case, "neighbouring columns exchanged", pair));
    if case.scene.output.shape.len() == 3 && !case.is_attention_matrix() {
        let k = case.scene.output.shape[1].max(1);
        all.push(permuted(case, "the slots of each position in reverse", move |i| {
            let (row, column) = (i / cols, i % cols);
            (row / k * k + reversed(row % k, k)) * cols + column
        }));
    }
    Ok(all)
}
