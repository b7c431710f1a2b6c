//! Matrix products with a quantized weight: which task computes which part of the result.
//!
//! Design:
//! - The unit is a [`Job`]: one expert's matrix and the rows of x that go through it. A plain matmul is one job; the experts
//!   of a MoE layer are one each, so that a row of weights is unpacked once for all tokens that chose it.
//! - A task is some consecutive weight rows of a job. Tasks are independent and each result belongs to one, so neither
//!   their number nor the threads change a bit.
//! - For one row of x the kernel reads the blocks themselves, where the level has such a kernel; for more, a task unpacks its
//!   rows into a buffer that stays in the second-level cache (16 rows of 2048 are 128 KiB).

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use super::Pool;
use super::kernels::{Direct, Kernels};
use crate::Result;
use crate::op::Weight;

/// Weight rows in a task that unpacks them.
const PANEL_ROWS: usize = 16;
/// Bytes of weights in a task that does not: some microseconds of reading.
const GEMV_BYTES: usize = 64 << 10;
/// Tasks for each thread at least, where there are rows for so many.
const TASKS_A_THREAD: usize = 4;

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
    let direct = kernels.direct(weight.ty, weight.cols);
    let jobs: Vec<Ready<'_>> = jobs.iter().map(|job| Ready::new(job, direct)).collect();
    // Of few bytes the tasks are smaller, so that every thread has some.
    let bytes = jobs.len() * weight.rows * weight.row_bytes() / (pool.threads() * TASKS_A_THREAD);
    let tasks: Vec<Task<'_>> = jobs.iter().flat_map(|job| Task::of(weight, job, bytes.min(GEMV_BYTES))).collect();
    let out = Scatter::new(out);
    let pairs: usize = jobs.iter().map(|job| job.job.x.len()).sum();
    let failed = Mutex::new(None);
    pool.for_tasks(pairs * weight.rows * weight.cols, tasks.len(), |n| {
        if let Err(e) = tasks[n].run(kernels, weight, &out) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// A job, and for one row of x the kernel that reads blocks, with x as it wants it.
struct Ready<'a> {
    job: &'a Job<'a>,
    direct: Option<(Direct, Cow<'a, [f32]>)>,
}

impl<'a> Ready<'a> {
    fn new(job: &'a Job<'a>, direct: Option<Direct>) -> Self {
        let direct = match job.x[..] {
            [x] => direct.map(|direct| (direct, direct.prepare(x))),
            _ => None,
        };
        Self { job, direct }
    }
}

/// Weight rows `first..first + rows` of a job.
struct Task<'a> {
    ready: &'a Ready<'a>,
    first: usize,
    rows: usize,
}

impl<'a> Task<'a> {
    fn of(weight: &Weight, ready: &'a Ready<'a>, gemv_bytes: usize) -> impl Iterator<Item = Task<'a>> {
        let step = match ready.direct {
            Some(_) => (gemv_bytes / weight.row_bytes().max(1)).max(1).next_multiple_of(PANEL_ROWS),
            None => PANEL_ROWS,
        };
        let rows = weight.rows;
        (0..rows).step_by(step).map(move |first| Task { ready, first, rows: step.min(rows - first) })
    }

    fn run(&self, kernels: &Kernels, weight: &Weight, out: &Scatter<'_>) -> Result<()> {
        thread_local! {
            static BUFFERS: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
        }
        let Ready { job, direct } = self.ready;
        let (tokens, cols, bytes) = (job.x.len(), weight.cols, weight.row_bytes());
        let start = (job.expert * weight.rows + self.first) * bytes;
        let blocks = &weight.bytes()[start..start + self.rows * bytes];
        BUFFERS.with_borrow_mut(|(unpacked, results)| {
            results.resize(tokens * self.rows, 0.0); // [tokens, rows]
            match direct {
                Some((direct, x)) => direct.run(blocks, bytes, x, results),
                None => {
                    unpacked.resize(self.rows * cols, 0.0); // [rows, K]
                    kernels.unpack(weight.ty, blocks, unpacked)?;
                    kernels.panel(unpacked, cols, self.rows, &job.x, results);
                }
            }
            for (results, row) in results.chunks_exact(self.rows).zip(&job.out) {
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
