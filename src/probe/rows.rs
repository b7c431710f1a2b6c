//! Rows of a call: grown from a few captured ones, taken out again, and held against another side's.

use rayon::prelude::*;

use super::ProbeOptions;
use crate::error::{Error, Result};
use crate::op::{Data, HostTensor, OpParams, first_seen};
use crate::quant::random::Rng;
use crate::repro::case::{FailingCall, KeptRow, Provenance, Slot};

/// The axes of an operand that are as long as the call has rows, and as it sees positions.
#[derive(Clone, Copy, Default)]
struct Axes {
    rows: Option<usize>,
    seen: Option<usize>,
}

/// Those of operand `n` of an operation.
fn axes(op: &OpParams, n: usize) -> Axes {
    let axes = |rows, seen| Axes { rows, seen };
    match (op, n) {
        (op, n) if op.kind().reads_cache(n) => axes(None, Some(0)),
        (OpParams::AttnProbs { .. }, _) | (OpParams::AttnContext { .. }, 0) => axes(Some(1), Some(2)),
        _ => axes(Some(0), None),
    }
}

/// Those of its result.
fn axes_of_result(op: &OpParams) -> Axes {
    match op {
        OpParams::AttnScores { .. } | OpParams::AttnProbs { .. } => Axes { rows: Some(1), seen: Some(2) },
        _ => Axes { rows: Some(0), seen: None },
    }
}

/// `shape` with as many rows, and positions seen, as are asked for.
fn lengthened(shape: &[usize], axes: Axes, options: &ProbeOptions) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(axis) = axes.rows {
        shape[axis] = options.tokens;
    }
    if let Some(axis) = axes.seen {
        shape[axis] = options.start + options.tokens;
    }
    shape
}

/// Bytes of all operands and of the result, four an element; `None` where that is beyond counting.
pub(super) fn bytes(short: &FailingCall, options: &ProbeOptions) -> Option<(u64, u64)> {
    options.start.checked_add(options.tokens)?;
    let size = |shape: Vec<usize>| shape.iter().try_fold(4u64, |bytes, n| bytes.checked_mul(*n as u64));
    let mut operands =
        short.inputs.iter().enumerate().map(|(n, x)| size(lengthened(&x.shape, axes(&short.params, n), options)));
    let operands = operands.try_fold(0u64, |sum, bytes| sum.checked_add(bytes?))?;
    Some((operands, size(lengthened(short.shape(), axes_of_result(&short.params), options))?))
}

/// The call with as many rows as are asked for.
///
/// # Errors
/// If the operands do not belong together, which they do in the captured call.
pub(super) fn grown(short: &FailingCall, options: &ProbeOptions) -> Result<FailingCall> {
    let params = short.params.with_start(options.start);
    let mut inputs: Vec<HostTensor> =
        short.inputs.iter().enumerate().map(|(n, _)| operand(short, n, options)).collect::<Result<_>>()?;
    if let (OpParams::Conv { .. }, [x, cache]) = (&params, &mut inputs[..])
        && let (Data::F32(x), Data::F32(cache)) = (&x.data, &mut cache.data)
    {
        // The call's own rows are in the cache, too: a later row that stands alone reads them there.
        let before = cache.len() - x.len();
        cache[before..].copy_from_slice(x);
    }
    let slots = |t: usize| -> Vec<Slot> {
        if !short.per_slot() {
            return Vec::new();
        }
        let k = short.shape()[1];
        let ids = inputs.iter().find(|x| matches!(x.data, Data::U32(_)));
        (0..k).map(|slot| Slot { slot, expert: ids.map_or(0, |ids| ids.ids()[t * k + slot]) }).collect()
    };
    let rows = (0..options.tokens).map(|t| KeptRow { position: options.start + t, slots: slots(t) }).collect();
    let mut kept = Provenance { rows, ..short.kept.clone() };
    if axes_of_result(&params).seen.is_some() {
        kept.columns = (0..options.start + options.tokens).collect();
    }
    FailingCall::new(short.site, params, inputs, short.weight.clone(), kept)
}

/// Operand `n` of the grown call.
fn operand(short: &FailingCall, n: usize, options: &ProbeOptions) -> Result<HostTensor> {
    let x = &short.inputs[n];
    let axes = axes(&short.params, n);
    let shape = lengthened(&x.shape, axes, options);
    let seed = options.seed ^ (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    if let Data::U32(_) = x.data {
        return ids(short, shape, seed);
    }
    let values = x.to_f32();
    let len: usize = shape.iter().product();
    let mut out = Vec::new();
    out.try_reserve_exact(len)
        .map_err(|_| Error::cannot_run(format!("{}: no memory for {} bytes of operands", short.site, 4 * len)))?;
    out.resize(len, 0.0f32);
    match (axes.rows, axes.seen) {
        (Some(1), Some(2)) => matrix(short, &x.shape, &values, &shape, options, seed, &mut out),
        _ => {
            // Rows along the first axis, each with another captured row's values.
            let cols = len / shape[0].max(1);
            let have = x.shape[0].max(1);
            out.par_chunks_mut(cols.max(1)).enumerate().for_each(|(r, row)| {
                let mut rng = Rng::new(seed, r as u64);
                let from = rng.below(have as u64) as usize * cols;
                // A longer key would make the state of a delta rule grow without end.
                let size =
                    |unit: f32| if matches!(short.params, OpParams::DeltaRule { .. }) { 1.0 } else { 0.5 + unit };
                row.iter_mut().zip(&values[from..]).for_each(|(y, x)| *y = x * size(rng.unit()));
            });
        }
    }
    Ok(HostTensor::f32(&shape, out))
}

/// A `[heads, T, S]` operand: of scores values that the head had, of probabilities some that sum to 1, and 0 where nothing is seen.
fn matrix(
    short: &FailingCall,
    had: &[usize],
    values: &[f32],
    shape: &[usize],
    options: &ProbeOptions,
    seed: u64,
    out: &mut [f32],
) {
    let [_, rows, seen] = shape else { return };
    let (sums, window) = match short.params {
        OpParams::AttnContext { window, .. } => (true, window),
        OpParams::AttnProbs { window, .. } => (false, window),
        _ => (false, None),
    };
    let most = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let of_head = had[1] * had[2];
    out.par_chunks_mut((*seen).max(1)).enumerate().for_each(|(i, row)| {
        let (head, t) = (i / rows, i % rows);
        let mut rng = Rng::new(seed, i as u64);
        let position = options.start + t;
        let visible = &mut row[first_seen(position, window)..=position];
        // The last captured row sees all of its keys.
        let last = &values[head * of_head + of_head - had[2]..][..had[2]];
        for y in visible.iter_mut() {
            *y = match sums {
                true => (4.0 * rng.normal()).exp(),
                false => last[rng.below(had[2] as u64) as usize] * (0.5 + rng.unit()) + 0.01 * most * rng.normal(),
            };
        }
        if sums {
            let sum: f64 = visible.iter().map(|y| f64::from(*y)).sum();
            visible.iter_mut().for_each(|y| *y = (f64::from(*y) / sum) as f32);
        }
    });
}

/// Ids: tokens of the vocabulary, or different experts in each row.
fn ids(short: &FailingCall, shape: Vec<usize>, seed: u64) -> Result<HostTensor> {
    let n = match (&short.params, &short.weight) {
        (OpParams::Embed { .. }, Some(table)) => table.rows,
        (OpParams::RouterWeights { .. }, _) => short.inputs[0].cols(),
        (OpParams::ExpertMatMul { .. }, Some(w)) => w.experts,
        // A row for each expert.
        (OpParams::ExpertBias { .. }, Some(w)) => w.rows,
        _ => return Err(Error::usage(format!("{}: no ids can be made for it", short.site))),
    };
    let k = shape.get(1).copied().unwrap_or(1);
    let mut out = vec![0u32; shape.iter().product()];
    out.par_chunks_mut(k.max(1)).enumerate().for_each(|(r, row)| {
        let mut rng = Rng::new(seed, r as u64);
        for slot in 0..row.len() {
            let mut id = rng.below(n as u64) as u32;
            while row[..slot].contains(&id) {
                id = (id + 1) % n as u32;
            }
            row[slot] = id;
        }
    });
    Ok(HostTensor::u32(&shape, out))
}

/// The call of some of its rows: of a stage that depends on the position, of one.
///
/// # Errors
/// If the rows are several, and their positions matter.
pub(super) fn of(call: &FailingCall, rows: &[usize]) -> Result<FailingCall> {
    let params = match (call.params.start(), rows) {
        (None, _) => call.params,
        (Some(start), &[row]) => call.params.with_start(start + row),
        (Some(_), _) => return Err(Error::usage(format!("{}: its rows are taken one by one", call.site))),
    };
    let seen: Vec<usize> = (0..params.start().unwrap_or(0) + 1).collect();
    let take = |x: &HostTensor, axes: Axes| {
        let x = match axes.rows {
            Some(axis) => x.take(axis, rows),
            None => x.take(0, &seen),
        };
        // Of an attention matrix its rows first: they are few.
        if axes.rows.is_some()
            && let Some(axis) = axes.seen
        {
            x.take(axis, &seen)
        } else {
            x
        }
    };
    let inputs = call.inputs.iter().enumerate().map(|(n, x)| take(x, axes(&call.params, n))).collect();
    let mut kept = Provenance {
        rows: rows.iter().map(|r| call.kept.rows[*r].clone()).collect(),
        columns: Vec::new(),
        heads: call.kept.heads.clone(),
        experts: call.kept.experts.clone(),
        blocks: call.kept.blocks.clone(),
    };
    kept.columns = match axes_of_result(&call.params).seen {
        Some(_) => seen,
        None => call.kept.columns.clone(),
    };
    FailingCall::new(call.site, params, inputs, call.weight.clone(), kept)
}

/// The same rows of a result.
pub(super) fn result(call: &FailingCall, result: &HostTensor, rows: &[usize]) -> HostTensor {
    match axes_of_result(&call.params) {
        Axes { rows: Some(axis), seen: Some(keys) } => {
            let seen: Vec<usize> = (0..call.params.start().unwrap_or(0) + rows.last().map_or(0, |r| r + 1)).collect();
            result.take(axis, rows).take(keys, &seen)
        }
        _ => result.take(0, rows),
    }
}

/// How far the sides are apart in each row: the largest |g − c|, infinite where one is not a number and the other is.
pub(super) fn apart(call: &FailingCall, c: &HostTensor, g: &HostTensor) -> Vec<f64> {
    let axis = axes_of_result(&call.params).rows.unwrap_or(0);
    let (rows, inner) = (c.shape[axis], c.shape[axis + 1..].iter().product::<usize>());
    let outer: usize = c.shape[..axis].iter().product();
    let starts = |r: usize| (0..outer).map(move |o| (o * rows + r) * inner);
    let far = |a: f64, b: f64| match (a.is_finite(), b.is_finite()) {
        (true, true) => (a - b).abs(),
        // The same infinity, or NaN on both sides, is no difference of the sides.
        _ if a == b || (a.is_nan() && b.is_nan()) => 0.0,
        _ => f64::INFINITY,
    };
    let row = |r: usize| -> f64 {
        let runs = starts(r).map(|start| match (&c.data, &g.data) {
            (Data::F32(c), Data::F32(g)) => (c[start..start + inner].iter().zip(&g[start..start + inner]))
                .fold(0.0, |most, (a, b)| far(f64::from(*a), f64::from(*b)).max(most)),
            (Data::U32(c), Data::U32(g)) if c[start..start + inner] == g[start..start + inner] => 0.0,
            (Data::F64(c), Data::F64(g)) => (c[start..start + inner].iter().zip(&g[start..start + inner]))
                .fold(0.0, |most, (a, b)| far(*a, *b).max(most)),
            (Data::U32(_), Data::U32(_)) => f64::INFINITY,
            _ => (start..start + inner).fold(0.0, |most, i| far(at(c, i), at(g, i)).max(most)),
        });
        runs.fold(0.0, f64::max)
    };
    (0..rows).into_par_iter().map(row).collect()
}

/// One value of a tensor.
fn at(x: &HostTensor, i: usize) -> f64 {
    match &x.data {
        Data::F32(v) => v[i].into(),
        Data::F64(v) => v[i],
        Data::U32(v) => v[i].into(),
    }
}
