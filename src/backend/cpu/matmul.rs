//! Matrix products with a quantized weight: which task computes which part of the result.
//!
//! Design:
//! - The unit is a [`Job`]: one expert's matrix and the rows of x that go through it. A plain matmul is one job; the experts
//!   of a MoE layer are one each, so that a row of weights is unpacked once for all tokens that chose it.
//! - A task is some consecutive weight rows of a job. Tasks are independent and each result belongs to one, so neither
//!   their number nor the threads change a bit.
//! - For one row of x the kernel reads the blocks themselves, where the level has such a kernel; for more, a task unpacks its
//!   rows into a buffer that stays in the second-level cache (64 rows of 2048 are 512 KiB).
//! - What all tasks of a job read of x is made once: strips of tokens side by side ([`Packed`]), and with int8 activations codes.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use super::Pool;
use super::int8::{Activations, CodePanel, ONE_ROW};
use super::kernels::{Direct, Int8, Kernels};
use super::packed::{Packed, pack};
use super::simd::Line;
use crate::Result;
use crate::op::Weight;

/// Weight rows in a task at least, and a divisor of all others.
const ROWS: usize = 16;
/// Bytes of unpacked weights in a task, for which there is room in the second-level cache. All tokens pass by once for them, from farther away.
const PANEL_BYTES: usize = 512 << 10;
/// Bytes of weights in a task that does not: some microseconds of reading.
const GEMV_BYTES: usize = 64 << 10;
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
    let int8 = kernels.int8(weight.ty);
    let direct = kernels.direct(weight.ty, weight.cols).filter(|_| int8.is_none());
    OPERANDS.with_borrow_mut(|Operands { lines, codes }| {
        let jobs: Vec<Ready<'_>> = match int8 {
            Some(int8) => {
                quantize(int8, pool, x, weight.cols, codes);
                jobs.iter().map(|job| Ready { job, how: How::Int8(int8, codes) }).collect()
            }
            None => {
                let packed = packed(kernels, pool, x, weight.cols, jobs, direct, lines);
                let ready = |(job, packed)| Ready::new(job, x, weight.cols, direct, packed);
                jobs.iter().zip(packed).map(ready).collect()
            }
        };
        all(kernels, pool, weight, &jobs, out)
    })
}

thread_local! {
    /// Kept from one product to the next.
    static OPERANDS: RefCell<Operands> = RefCell::default();
}

/// Rows of x as all tasks read them.
#[derive(Default)]
struct Operands {
    lines: Vec<Line>,
    codes: Activations,
}

/// All tasks of all jobs.
fn all(kernels: &Kernels, pool: &Pool, weight: &Weight, jobs: &[Ready<'_>], out: &mut [f32]) -> Result<()> {
    // Of few rows the tasks are smaller, so that every thread has some.
    let fair = jobs.len() * weight.rows / (pool.threads() * TASKS_A_THREAD);
    let tasks: Vec<Task<'_>> = jobs.iter().flat_map(|job| Task::of(weight, job, fair)).collect();
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

/// All rows of x as int8 codes.
fn quantize(int8: Int8, pool: &Pool, x: &[f32], k: usize, all: &mut Activations) {
    int8.make_room(all, x.len() / k.max(1), k);
    let mut rows: Vec<_> = all.rows_mut().collect();
    pool.for_chunks(x.len(), &mut rows, 1, |n, rows| {
        rows.iter_mut().for_each(|row| int8.quantize(&x[n * k..][..k], row));
    });
}

/// The rows of x of each job side by side; of a job that reads blocks none.
fn packed<'l>(
    kernels: &Kernels,
    pool: &Pool,
    x: &[f32],
    k: usize,
    jobs: &[Job],
    direct: Option<Direct>,
    lines: &'l mut Vec<Line>,
) -> Vec<Packed<'l>> {
    let (each, strip) = (Packed::lines_of(k), kernels.strip());
    let tokens = |job: &Job| if direct.is_some() && job.x.len() == 1 { 0 } else { job.x.len() };
    let total: usize = jobs.iter().map(tokens).sum();
    let lines = at_least(lines, total * each, Line([0.0; 16]));
    let mut strips: Vec<(&[usize], &mut [Line])> = Vec::new();
    let mut rest = &mut *lines;
    for job in jobs {
        for rows in job.x[..tokens(job)].chunks(strip) {
            let (these, others) = rest.split_at_mut(rows.len() * each);
            strips.push((rows, these));
            rest = others;
        }
    }
    pool.for_chunks(total * k, &mut strips, 1, |_, strips| {
        for (rows, out) in strips {
            let rows: Vec<&[f32]> = rows.iter().map(|row| &x[row * k..][..k]).collect();
            pack(&rows, out);
        }
    });
    drop(strips);
    let mut from = 0;
    let of_job = |job: &Job| {
        let first = from;
        from += tokens(job) * each;
        Packed::new(k, tokens(job), strip, &lines[first..from])
    };
    jobs.iter().map(of_job).collect()
}

/// How a job's products are made.
enum How<'a> {
    /// From f32 weights, unpacked for all of its rows of x.
    Unpacked(Packed<'a>),
    /// For its one row of x from blocks, with x as the kernel wants it.
    Direct(Direct, Cow<'a, [f32]>),
    /// With x as int8 codes.
    Int8(Int8, &'a Activations),
}

/// A job, and how it is done.
struct Ready<'a> {
    job: &'a Job,
    how: How<'a>,
}

impl<'a> Ready<'a> {
    fn new(job: &'a Job, x: &'a [f32], k: usize, direct: Option<Direct>, packed: Packed<'a>) -> Self {
        let how = match (direct, &job.x[..]) {
            (Some(direct), [row]) => How::Direct(direct, direct.prepare(&x[row * k..][..k])),
            _ => How::Unpacked(packed),
        };
        Self { job, how }
    }

    /// Whether its only row of int8 codes meets the blocks themselves.
    fn is_one(&self, cols: usize) -> bool {
        self.job.x.len() == 1 && cols >= ONE_ROW
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
    unpacked: Vec<Line>,
    codes: CodePanel,
    results: Vec<f32>,
}

impl<'a> Task<'a> {
    /// Tasks of `fair` rows, of fewer where these are too many bytes.
    fn of(weight: &Weight, ready: &'a Ready<'a>, fair: usize) -> impl Iterator<Item = Task<'a>> {
        let most = match ready.how {
            How::Unpacked(_) => PANEL_BYTES / size_of::<f32>() / weight.cols.max(1),
            How::Int8(..) if !ready.is_one(weight.cols) => PANEL_BYTES / 2 / weight.cols.max(1),
            How::Direct(..) | How::Int8(..) => GEMV_BYTES / weight.row_bytes().max(1),
        };
        let step = fair.min(most).max(1).next_multiple_of(ROWS);
        let rows = weight.rows;
        (0..rows).step_by(step).map(move |first| Task { ready, first, rows: step.min(rows - first) })
    }

    fn run(&self, kernels: &Kernels, weight: &Weight, out: &Scatter<'_>) -> Result<()> {
        thread_local! {
            static BUFFERS: RefCell<Buffers> = RefCell::default();
        }
        let Ready { job, how } = self.ready;
        let (tokens, cols, bytes) = (job.x.len(), weight.cols, weight.row_bytes());
        let start = (job.expert * weight.rows + self.first) * bytes;
        let blocks = &weight.bytes()[start..start + self.rows * bytes];
        BUFFERS.with_borrow_mut(|Buffers { unpacked, codes, results }| {
            let results = at_least(results, tokens * self.rows, 0.0); // [tokens, rows]
            match how {
                How::Int8(int8, x) => match job.x[..] {
                    [token] if self.ready.is_one(cols) => int8.one(blocks, bytes, x.row(token), results),
                    _ => int8.many(blocks, self.rows, codes, x, &job.x, results),
                },
                How::Direct(direct, x) => direct.run(blocks, bytes, x, results),
                How::Unpacked(x) => {
                    let lines = at_least(unpacked, (self.rows * cols).div_ceil(16), Line([0.0; 16]));
                    let unpacked = &mut bytemuck::cast_slice_mut(lines)[..self.rows * cols]; // [rows, K]
                    kernels.unpack(weight.ty, blocks, unpacked)?;
                    kernels.packed_panel(unpacked, cols, self.rows, *x, results);
                }
            }
            if let Some(scale) = weight.scale(job.expert) {
                results.iter_mut().for_each(|y| *y *= scale);
            }
            for (results, row) in results.chunks_exact(self.rows).zip(&job.out) {
                // SAFETY: this task alone has these weight rows of the job, and no other pair has this row of `out`.
                unsafe { out.write(row * weight.rows + self.first, results) };
            }
            Ok(())
        })
    }
}

/// The first `len` values of a buffer that grows as needed, whatever they are.
fn at_least<V: Copy>(buffer: &mut Vec<V>, len: usize, fill: V) -> &mut [V] {
    if buffer.len() < len {
        buffer.resize(len, fill);
    }
    &mut buffer[..len]
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
