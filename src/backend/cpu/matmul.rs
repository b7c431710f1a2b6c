//! Matrix products with a quantized weight: which task computes which part of the result.
//!
//! Design:
//! - The unit is a [`Job`]: one expert's matrix and the rows of x that go through it. A plain matmul is one job; the
//!   experts of a MoE layer are one each, so that a row of weights is dequantized once for all tokens that chose it.
//! - A task is a job's [`ROWS`] consecutive weight rows. Tasks are independent and each result belongs to one.

use rayon::prelude::*;

use super::{Pool, scalar};
use crate::Result;
use crate::backend::Weight;
use crate::quant;

/// Weight rows in one task.
const ROWS: usize = 8;

/// Rows of x that go through one expert's matrix.
pub(super) struct Job {
    pub expert: usize,
    pub pairs: Vec<Pair>,
}

/// A row of x and the row of the result that it makes.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub x: usize,
    pub out: usize,
}

/// x · weightᵀ for every job. `x` is [_, K], `out` is [_, N]; no row of `out` is in two pairs.
///
/// # Errors
/// If the weight's type has no dequantization.
pub(super) fn run(pool: &Pool, weight: &Weight, jobs: &[Job], x: &[f32], out: &mut [f32]) -> Result<()> {
    let pairs: usize = jobs.iter().map(|job| job.pairs.len()).sum();
    let out = Scatter::new(out);
    let tasks: Vec<(&Job, usize)> =
        jobs.iter().flat_map(|job| (0..weight.rows).step_by(ROWS).map(move |row| (job, row))).collect();
    let task = |buffer: &mut Vec<f32>, &(job, row): &(&Job, usize)| rows(weight, job, row, x, &out, buffer);
    match pool.for_work(pairs * weight.rows * weight.cols) {
        Some(pool) => pool.install(|| tasks.par_iter().try_for_each_init(Vec::new, task)),
        None => tasks.iter().try_for_each(|t| task(&mut Vec::new(), t)),
    }
}

/// One task: weight rows `first..first + ROWS` of a job.
fn rows(weight: &Weight, job: &Job, first: usize, x: &[f32], out: &Scatter<'_>, row: &mut Vec<f32>) -> Result<()> {
    row.resize(weight.cols, 0.0);
    for n in first..weight.rows.min(first + ROWS) {
        quant::dequantize(weight.ty, weight.row(job.expert, n), row)?;
        for pair in &job.pairs {
            let x = &x[pair.x * weight.cols..][..weight.cols];
            // SAFETY: this task alone has row n of this job, and no row of `out` is in two pairs.
            unsafe { out.set(pair.out * weight.rows + n, scalar::dot(x, row)) };
        }
    }
    Ok(())
}

/// A slice that several tasks write into, each at its own places.
struct Scatter<'a> {
    start: *mut f32,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `set`, whose caller promises that no two threads use the same place.
unsafe impl Sync for Scatter<'_> {}

impl<'a> Scatter<'a> {
    fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: std::marker::PhantomData }
    }

    /// Writes one value.
    ///
    /// # Safety
    /// No other thread writes at `index`.
    unsafe fn set(&self, index: usize, value: f32) {
        assert!(index < self.len);
        // SAFETY: in bounds by the assertion, unshared by the caller's promise; the slice is borrowed for 'a.
        unsafe { self.start.add(index).write(value) };
    }
}
