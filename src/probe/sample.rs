//! Which rows are judged.

use std::collections::BTreeSet;

use super::ProbeOptions;
use crate::op::OpParams;
use crate::quant::random::Rng;
use crate::repro::case::FailingCall;

/// Rows, or ranges of rows, that are listed.
pub const MOST_LISTED: usize = 256;
/// Rows in which the sides are furthest apart that are judged.
const FURTHEST: usize = 16;
/// Sizes of bytes at which something ends: bindings of 128 MiB and of other adapters, and what 31 and 32 bits count.
const BYTES: [u64; 7] = [1 << 27, 1 << 28, 1 << 29, 1 << 30, 1 << 31, 1 << 32, 1 << 33];
/// Workgroups that every adapter has in a dimension, which tiles of up to so many rows multiply.
const WORKGROUPS: usize = 65_535;
const TILES: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// The rows to judge, ascending: all of them where `all` says so.
pub(super) fn rows(call: &FailingCall, apart: &[f64], options: &ProbeOptions, all: bool) -> Vec<usize> {
    let n = call.positions();
    if all {
        return (0..n).collect();
    }
    let mut found = BTreeSet::new();
    let mut beside = |row: usize| found.extend((row.saturating_sub(1)..=row.saturating_add(1)).filter(|r| *r < n));
    beside(0);
    beside(n - 1);
    (0..usize::BITS).map(|bit| 1usize << bit).take_while(|row| *row <= n).for_each(&mut beside);
    TILES.iter().map(|tile| tile * WORKGROUPS).filter(|row| *row <= n).for_each(&mut beside);
    // Where an operand or the result has so many bytes, or as many elements as bytes.
    for elements in row_lengths(call) {
        for bytes in BYTES {
            for size in [4 * elements as u64, elements as u64] {
                beside((bytes / size.max(1)) as usize);
            }
        }
    }
    let mut rng = Rng::new(options.seed, u64::MAX);
    found.extend((0..options.random_rows.min(n)).map(|_| rng.below(n as u64) as usize));
    let mut furthest: Vec<usize> = (0..n).filter(|r| apart[*r] > 0.0).collect();
    furthest.sort_by(|a, b| apart[*b].total_cmp(&apart[*a]).then(a.cmp(b)));
    found.extend(furthest.into_iter().take(FURTHEST));
    found.into_iter().collect()
}

/// Elements of a row of each operand and of the result, each length once.
fn row_lengths(call: &FailingCall) -> BTreeSet<usize> {
    let n = call.positions().max(1);
    let lengths = call.inputs.iter().map(|x| x.len() / n).chain([call.shape().iter().product::<usize>() / n]);
    lengths.filter(|len| *len > 0).collect()
}

/// Multiplications that the oracle makes for a row.
pub(super) fn work_of_a_row(call: &FailingCall) -> f64 {
    let elements = call.shape().iter().product::<usize>() as f64 / call.positions().max(1) as f64;
    match (&call.weight, &call.params) {
        (Some(w), OpParams::MatMul { .. } | OpParams::HeadMatMul { .. } | OpParams::ExpertMatMul { .. }) => {
            elements * w.cols as f64
        }
        (_, OpParams::AttnScores { head_dim, .. }) => elements * *head_dim as f64,
        (_, OpParams::AttnContext { .. }) => elements * call.inputs[1].shape[0] as f64,
        // A row that stands alone has the state of all before it.
        (_, OpParams::DeltaRule { head_dim, .. }) => elements * (3 * head_dim * call.inputs[1].shape[0]) as f64,
        // Angles of a rotation are worked out anew for a row that stands alone.
        _ => elements * 16.0,
    }
}

/// Ascending rows as ranges, the first [`MOST_LISTED`] of them.
pub(super) fn ranges(rows: &[usize]) -> Vec<[usize; 2]> {
    let mut found: Vec<[usize; 2]> = Vec::new();
    for &row in rows {
        let full = found.len() == MOST_LISTED;
        match found.last_mut() {
            Some([_, to]) if *to + 1 == row => *to = row,
            _ if full => break,
            _ => found.push([row, row]),
        }
    }
    found
}
