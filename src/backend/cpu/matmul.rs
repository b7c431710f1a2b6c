//! Matrix products with a quantized weight: which task computes which part of the result.
//!
//! Design:
//! - The unit is a [`Job`]: one expert's matrix and the rows of x that go through it. A plain matmul is one job; the experts
//!   of a MoE layer are one each, so that a row of weights is unpacked once for all tokens that chose it.
//! - A task is some consecutive weight rows of a job. Tasks are independent and each result belongs to one, so neither
//!   their number nor the threads change a bit.
//! - For one row of x the kernel reads the blocks themselves, where the level has such a kernel. For more, a task unpacks some rows part by part
//!   into the first-level cache, where they meet the rows of x; there are as many of these in a task as stay in the second-level cache.
//! - What tasks read of x is made by each of them, tokens side by side ([`Packed`](super::packed::Packed)): it takes a fortieth of the time of
//!   their products, and what another thread had made would lie in memory. int8 codes are made once.

use std::cell::RefCell;
use std::ops::Range;

use super::Pool;
use super::int8::{Activations, CodePanel, ONE_ROW};
use super::kernels::{Direct, Int8, Kernels, Prepared, Unpacker};
use super::level::second_level_cache;
use super::simd::{self, Line, PART};
use super::tile::{TileBuffers, at_least};
use crate::Result;
use crate::op::Weight;

/// Weight rows in a task at least, and a divisor of all others, where they are not unpacked to f32 by tiles.
const ROWS: usize = 16;
/// Bytes of a task's rows of x, which pass by once for each tile of weights, where half of the second-level cache is no more. Each batch of them
/// unpacks the weights again: of 1 MiB in place of this a product of 512 tokens takes 5 to 9 % less time.
const X_BYTES: usize = 512 << 10;
/// Bytes of a task's results that are written together: a row of the tensor at a time, each in a page of its own, so as much of it at once as
/// there is room for in the second-level cache.
const RESULTS_BYTES: usize = 128 << 10;
/// Bytes of weights in a task as int8 codes, for which there is room in the second-level cache. All tokens pass by once for them, from farther
/// away: part by part, as f32 weights are, it takes 4 % longer.
const CODES_BYTES: usize = 256 << 10;
/// Bytes of weights in a task that does not, a tenth of a millisecond of reading: of two threads that read Q6_K from memory in tasks of 80 KB side
/// by side each gets 10.5 GB/s, of 1.3 MB and more 13.4.
const GEMV_BYTES: usize = 2 << 20;
/// Tasks for each thread at least, where there are rows for so many.
const TASKS_A_THREAD: usize = 4;

/// Rows of x that go through one expert's matrix.
pub(super) struct Job {
    pub expert: usize,
    /// Their numbers.
    pub x: Vec<usize>,
    /// The row of the result that each of `x` makes.
    pub out: Vec<usize>,
}

/// How many rows of x of so many columns a task of f32 weights has at most: a multiple of what any strip has, so that it says nothing of the bits.
pub(super) fn batch_rows(cols: usize) -> usize {
    let rows = X_BYTES.max(second_level_cache() / 2) / size_of::<f32>() / cols.max(1);
    (rows - rows % 32).max(32)
}

/// x · weightᵀ for every job, times its expert's scale. `x` is [_, K], `out` [_, N]; none of its rows is in two jobs or twice in one.
///
/// # Errors
/// If the weight's type has no dequantization.
pub(super) fn run(
    kernels: &Kernels,
    pool: &Pool,
    weight: &Weight,
    x: &[f32],
    jobs: &[Job],
    out: &mut [f32],
) -> Result<()> {
    let unpacker = kernels.unpacker(weight.ty, weight.cols)?;
    jobs.iter().for_each(|job| weight.read_ahead(job.expert * weight.rows, weight.rows));
    let int8 = kernels.int8(weight.ty);
    let direct = kernels.direct(weight.ty, weight.cols).filter(|_| int8.is_none());
    CODES.with_borrow_mut(|codes| {
        if let Some(int8) = int8 {
            quantize(int8, pool, x, weight.cols, codes);
        }
        let most = if int8.is_some() { usize::MAX } else { batch_rows(weight.cols) };
        let mut ready = Vec::new();
        let mut prepared: Option<(usize, Prepared<'_>)> = None; // gate and up of a token's experts read the same row
        for job in jobs {
            for (rows, out) in job.x.chunks(most).zip(job.out.chunks(most)) {
                // Not by the rows of a batch: how many those are is the cache's affair, and one alone has its own order of sums.
                let how = match (int8, direct, &job.x[..]) {
                    (Some(int8), ..) => How::Int8(int8, codes),
                    (None, Some(direct), [row]) => {
                        let own = match &prepared {
                            Some((of, own)) if of == row => own.clone(),
                            _ => direct.prepare(row_of(x, *row, weight.cols)),
                        };
                        prepared = Some((*row, own.clone()));
                        How::Direct(direct, own)
                    }
                    _ => How::Unpacked(unpacker, x),
                };
                ready.push(Ready { expert: job.expert, x: rows, out, how });
            }
        }
        all(kernels, pool, weight, &ready, out);
    });
    Ok(())
}

thread_local! {
    /// Rows of x as int8 codes, kept from one product to the next.
    static CODES: RefCell<Activations> = RefCell::default();
}

/// All tasks of all jobs.
fn all(kernels: &Kernels, pool: &Pool, weight: &Weight, jobs: &[Ready<'_>], out: &mut [f32]) {
    // Of few rows the tasks are smaller, so that every thread has some.
    let fair = jobs.len() * weight.rows / (pool.threads() * TASKS_A_THREAD);
    let tasks: Vec<Task<'_>> = jobs.iter().flat_map(|job| Task::of(kernels, weight, job, fair)).collect();
    let order = in_turns(tasks.len(), pool.threads());
    let out = Scatter::new(out);
    let pairs: usize = jobs.iter().map(|job| job.x.len()).sum();
    pool.for_tasks(pairs * weight.rows * weight.cols, tasks.len(), |n| tasks[order[n]].run(kernels, weight, &out));
}

/// Tasks in an order in which threads that take turns each go through a part of their own, so that each reads on where it stopped.
fn in_turns(tasks: usize, threads: usize) -> Vec<usize> {
    let part = tasks.div_ceil(threads.max(1));
    (0..part).flat_map(|i| (i..tasks).step_by(part)).collect()
}

/// All rows of x as int8 codes.
fn quantize(int8: Int8, pool: &Pool, x: &[f32], k: usize, all: &mut Activations) {
    int8.make_room(all, x.len() / k.max(1), k);
    let mut rows: Vec<_> = all.rows_mut().collect();
    pool.for_chunks(x.len(), &mut rows, 1, |n, rows| {
        rows.iter_mut().for_each(|row| int8.quantize(&x[n * k..][..k], row));
    });
}

/// How a job's products are made.
enum How<'a> {
    /// From f32 weights, unpacked for all of its rows of x, which are among these.
    Unpacked(Unpacker, &'a [f32]),
    /// For its one row of x from blocks, with x as the kernel wants it.
    Direct(Direct, Prepared<'a>),
    /// With x as int8 codes.
    Int8(Int8, &'a Activations),
}

/// A job, or some of its rows of x, and how it is done.
struct Ready<'a> {
    expert: usize,
    x: &'a [usize],
    out: &'a [usize],
    how: How<'a>,
}

impl Ready<'_> {
    /// Whether its only row of int8 codes meets the blocks themselves.
    fn is_one(&self, cols: usize) -> bool {
        self.x.len() == 1 && cols >= ONE_ROW
    }
}

/// Weight rows `first..first + rows` of a job.
struct Task<'a> {
    ready: &'a Ready<'a>,
    first: usize,
    rows: usize,
}

/// What a thread works in.
#[derive(Default)]
struct Buffers {
    packed: Vec<Line>,
    tile: TileBuffers,
    codes: CodePanel,
    results: Vec<f32>,
}

impl<'a> Task<'a> {
    /// Tasks of `fair` rows, of fewer where these are too many.
    fn of(kernels: &Kernels, weight: &Weight, ready: &'a Ready<'a>, fair: usize) -> impl Iterator<Item = Task<'a>> {
        let (most, multiple) = match ready.how {
            How::Unpacked(..) => (weight.rows, kernels.tile()),
            How::Int8(..) if !ready.is_one(weight.cols) => (CODES_BYTES / weight.cols.max(1), ROWS),
            How::Direct(..) | How::Int8(..) => (GEMV_BYTES / weight.row_bytes().max(1), ROWS),
        };
        let step = fair.min(most).max(1).next_multiple_of(multiple);
        let rows = weight.rows;
        (0..rows).step_by(step).map(move |first| Task { ready, first, rows: step.min(rows - first) })
    }

    fn run(&self, kernels: &Kernels, weight: &Weight, out: &Scatter<'_>) {
        thread_local! {
            static BUFFERS: RefCell<Buffers> = RefCell::default();
        }
        let Ready { expert, x: tokens, .. } = *self.ready;
        let (cols, bytes) = (weight.cols, weight.row_bytes());
        let blocks = &weight.expert(expert)[self.first * bytes..][..self.rows * bytes];
        BUFFERS.with_borrow_mut(|Buffers { packed, tile, codes, results }| {
            // Rows `first..first + rows` of this task's; results is [tokens, stride].
            let write = |first: usize, rows: usize, stride: usize, results: &mut [f32]| {
                for (results, row) in results.chunks_exact_mut(stride).zip(self.ready.out) {
                    let results = &mut results[..rows];
                    if let Some(scale) = weight.scale(expert) {
                        results.iter_mut().for_each(|y| *y *= scale);
                    }
                    // SAFETY: this task alone has these weight rows of the job, and no other pair has this row of `out`.
                    unsafe { out.write(row * weight.rows + self.first + first, results) };
                }
            };
            match &self.ready.how {
                How::Int8(int8, x) => {
                    let results = at_least(results, tokens.len() * self.rows, 0.0); // [tokens, rows]
                    match tokens {
                        [token] if self.ready.is_one(cols) => int8.one(blocks, bytes, x.row(*token), results),
                        _ => int8.many(blocks, self.rows, codes, x, tokens, results),
                    }
                    write(0, self.rows, self.rows, results);
                }
                How::Direct(direct, x) => {
                    let results = at_least(results, self.rows, 0.0);
                    direct.run(blocks, bytes, x, results);
                    write(0, self.rows, self.rows, results);
                }
                How::Unpacked(unpacker, x) => {
                    let x: Vec<&[f32]> = tokens.iter().map(|row| row_of(x, *row, cols)).collect();
                    let (x, at_once) = (kernels.pack(&x, packed), kernels.tile());
                    let bytes_of = |column: usize| column / weight.ty.block_len() * weight.ty.block_bytes();
                    let together = RESULTS_BYTES / size_of::<f32>() / tokens.len();
                    let together = (together - together % at_once).max(at_once);
                    for first in (0..self.rows).step_by(together) {
                        let rows = together.min(self.rows - first);
                        let stride = rows.next_multiple_of(at_once);
                        let results = at_least(results, tokens.len() * stride, 0.0); // [tokens, rows]
                        for from in (0..rows).step_by(at_once) {
                            let unpack = |columns: Range<usize>, parts: &mut [[f32; PART]]| {
                                let (start, end) = (bytes_of(columns.start), bytes_of(columns.end));
                                for (row, part) in parts.iter_mut().enumerate() {
                                    let at = (first + from + row) * bytes;
                                    let own = &blocks[at + start..at + end];
                                    // What this row and the one after this tile's need next.
                                    simd::prefetch(own, 2 * own.len());
                                    simd::prefetch(own, at_once * bytes + 2 * own.len());
                                    unpacker.run(own, &mut part[..columns.len()]);
                                }
                            };
                            tile.products(kernels, at_once.min(rows - from), x, unpack, stride, &mut results[from..]);
                        }
                        write(first, rows, stride, results);
                    }
                }
            }
        })
    }
}

/// Row `row` of x, [_, K].
fn row_of(x: &[f32], row: usize, k: usize) -> &[f32] {
    &x[row * k..][..k]
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

#[cfg(test)]
mod tests {
    use super::in_turns;

    #[test]
    fn threads_that_take_turns_go_through_parts_of_their_own() {
        assert_eq!(in_turns(7, 2), [0, 4, 1, 5, 2, 6, 3]);
        assert_eq!(in_turns(3, 4), [0, 1, 2]);
        assert_eq!(in_turns(0, 2), [0usize; 0]);
        for (tasks, threads) in [(1, 1), (8, 3), (9, 3), (10, 3), (100, 7)] {
            let mut all = in_turns(tasks, threads);
            all.sort_unstable();
            assert_eq!(all, Vec::from_iter(0..tasks), "{tasks} tasks, {threads} threads: each once");
        }
    }
}
