//! Matrix products with a quantized weight: which task computes which part of the result.
//!
//! Design:
//! - The unit is a [`Job`]: one expert's matrix and the rows of x that go through it. A plain matmul is one job; the experts
//!   of a MoE layer are one each, so that a row of weights is unpacked once for all tokens that chose it.
//! - A task is some consecutive weight rows of a job. Tasks are independent and each result belongs to one, so neither
//!   their number nor the threads change a bit.
//! - For one row of x the kernel reads the blocks themselves, where the level has such a kernel; for more, a task unpacks its
//!   rows into a buffer that stays in the second-level cache (16 rows of 2048 are 128 KiB).

use std::cell::RefCell;

use rayon::prelude::*;

use super::Pool;
use super::kernels::Kernels;
use crate::Result;
use crate::op::Weight;

/// Weight rows in a task that unpacks them.
const PANEL_ROWS: usize = 16;
/// Bytes of weights in a task that does not: some microseconds of reading.
const GEMV_BYTES: usize = 64 << 10;

/// Rows of x that go through one expert's matrix.
pub(super) struct Job<'a> {
    pub expert: usize,
    /// `[K]` each.
    pub x: Vec<&'a [f32]>,
    /// The row of the result that each of `x` makes.
    pub out: Vec<usize>,
}

/// x · weightᵀ for every job. `out` is [_, N]; none of its rows is in two jobs or twice in one.
///
/// # Errors
/// If the weight's type has no dequantization.
pub(super) fn run(kernels: &Kernels, pool: &Pool, weight: &Weight, jobs: &[Job<'_>], out: &mut [f32]) -> Result<()> {
    let tasks: Vec<Task<'_>> = jobs.iter().flat_map(|job| Task::of(kernels, weight, job)).collect();
    let out = Scatter::new(out);
    let pairs: usize = jobs.iter().map(|job| job.x.len()).sum();
    match pool.for_work(pairs * weight.rows * weight.cols) {
        Some(pool) => pool.install(|| tasks.par_iter().try_for_each(|task| task.run(kernels, weight, &out))),
        None => tasks.iter().try_for_each(|task| task.run(kernels, weight, &out)),
    }
}

/// Weight rows `first..first + rows` of a job.
struct Task<'a> {
    job: &'a Job<'a>,
    first: usize,
    rows: usize,
}

impl<'a> Task<'a> {
    fn of(kernels: &Kernels, weight: &Weight, job: &'a Job<'a>) -> impl Iterator<Item = Task<'a>> {
        let direct = job.x.len() == 1 && kernels.direct(weight.ty, weight.cols).is_some();
        let step =
            if direct { (GEMV_BYTES / weight.row_bytes().max(1)).next_multiple_of(PANEL_ROWS) } else { PANEL_ROWS };
        let rows = weight.rows;
        (0..rows).step_by(step).map(move |first| Task { job, first, rows: step.min(rows - first) })
    }

    fn run(&self, kernels: &Kernels, weight: &Weight, out: &Scatter<'_>) -> Result<()> {
        thread_local! {
            static BUFFERS: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
        }
        let (tokens, cols, bytes) = (self.job.x.len(), weight.cols, weight.row_bytes());
        let start = (self.job.expert * weight.rows + self.first) * bytes;
        let blocks = &weight.bytes()[start..start + self.rows * bytes];
        BUFFERS.with_borrow_mut(|(unpacked, results)| {
            results.resize(tokens * self.rows, 0.0); // [tokens, rows]
            match kernels.direct(weight.ty, cols).filter(|_| tokens == 1) {
                Some(direct) => direct.run(blocks, bytes, self.job.x[0], results),
                None => {
                    unpacked.resize(self.rows * cols, 0.0); // [rows, K]
                    kernels.unpack(weight.ty, blocks, unpacked)?;
                    kernels.panel(unpacked, cols, self.rows, &self.job.x, results);
                }
            }
            for (results, row) in results.chunks_exact(self.rows).zip(&self.job.out) {
                // SAFETY: this task alone has these weight rows of the job, and no other pair has this row of `out`.
                unsafe { out.write(row * weight.rows + self.first, results) };
            }
            Ok(())
        })
    }
}

/// A slice that several tasks write into, each at its own places.
struct Scatter<'a> {
    start: *mut f32,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `write`, whose caller promises that no two threads use the same place.
unsafe impl Sync for Scatter<'_> {}

impl<'a> Scatter<'a> {
    fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: std::marker::PhantomData }
    }

    /// Writes `values` from `index` on.
    ///
    /// # Safety
    /// No other thread writes at any of these places.
    unsafe fn write(&self, index: usize, values: &[f32]) {
        assert!(index <= self.len && values.len() <= self.len - index);
        // SAFETY: in bounds by the assertion, unshared by the caller's promise; the slice is borrowed for 'a.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(index), values.len()) };
    }
}
