//! What this machine allows: bytes read from memory and floating-point operations, a second.
//!
//! Design:
//! - A limit is the best of several short rounds, because everything that disturbs a round makes it slower. A probe takes well
//!   under a second, so it can stand beside what is measured against it.
//! - Reading: each thread adds up the next slice of one buffer that no cache holds.
//! - Arithmetic: as many independent fused multiply-adds in registers as keep the units busy, at the level's width.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::Level;
use super::kernels::Kernels;
use crate::memory::prefer_large;
use crate::{Error, Result};

/// The buffer's bytes: several times the caches of the machines at hand.
const BYTES: usize = 256 << 20;
/// Bytes that a thread reads in a round: some tenths of a millisecond, in which with luck nobody else gets the processor.
const SLICE: usize = 8 << 20;
/// After this much time no further round starts, once there were so many: a system may be slow for the first tenths of a second.
const TIME: Duration = Duration::from_millis(400);
const ROUNDS: usize = 32;
/// Fused multiply-adds of each register in a round: some tenths of a millisecond.
const ROUND: usize = 1 << 17;

/// Bytes a second that `threads` threads together read from memory.
///
/// # Errors
/// If there is no memory for the probe's buffer; [`Error::Usage`] for zero threads.
pub fn read_bandwidth(threads: usize) -> Result<f64> {
    let mut buffer: Vec<u64> = Vec::new();
    let words = BYTES / size_of::<u64>();
    buffer
        .try_reserve_exact(words)
        .map_err(|_| Error::cannot_run(format!("no memory for the bandwidth probe's {BYTES} bytes")))?;
    prefer_large(buffer.spare_capacity_mut());
    buffer.extend(0..words as u64); // written, so that every page is there
    let slices: Vec<&[u64]> = buffer.chunks(SLICE / size_of::<u64>()).collect();
    let seconds = best_round(threads, |round, thread| {
        let slice = slices[(round * threads + thread) % slices.len()];
        std::hint::black_box(slice.iter().fold(0u64, |sum, x| sum.wrapping_add(*x)));
    })?;
    Ok((SLICE * threads) as f64 / seconds)
}

/// Operations a second (a fused multiply-add is two) that `threads` threads together reach: in f32 at `level`, or with bytes, as `cpu:int8`
/// multiplies them, at the best.
///
/// # Errors
/// [`Error::CannotRun`] if the processor lacks `level`; [`Error::Usage`] for zero threads.
pub fn arithmetic_peak(level: Option<Level>, threads: usize) -> Result<f64> {
    let kernels = level.map_or_else(|| Kernels::int8_of(None), Kernels::of)?;
    let seconds = best_round(threads, |_, _| {
        std::hint::black_box(kernels.multiply_add(ROUND));
    })?;
    Ok((kernels.multiply_add(0).1 * 2 * ROUND * threads) as f64 / seconds)
}

/// Seconds of the shortest round of `work(round, thread)`. All threads start together, and a round ends with the last of them.
fn best_round(threads: usize, work: impl Fn(usize, usize) + Sync) -> Result<f64> {
    if threads == 0 {
        return Err(Error::usage("0 threads: at least one is needed"));
    }
    let barrier = Barrier::new(threads);
    let begin = Instant::now();
    let (mut best, mut round) = (f64::INFINITY, 0);
    while round < ROUNDS || begin.elapsed() < TIME {
        // Each thread's own start and end: starting threads takes longer than a round may.
        let times = std::thread::scope(|scope| {
            let run = |thread: usize| {
                barrier.wait();
                let start = Instant::now();
                work(round, thread);
                (start, Instant::now())
            };
            let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || run(thread))).collect();
            let mut times = vec![run(0)];
            times.extend(others.into_iter().filter_map(|other| other.join().ok()));
            times
        });
        let first = times.iter().map(|t| t.0).min().unwrap_or(begin);
        let last = times.iter().map(|t| t.1).max().unwrap_or(begin);
        best = best.min((last - first).as_secs_f64());
        round += 1;
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive_and_zero_threads_an_error() {
        for level in Level::available() {
            assert!(arithmetic_peak(Some(level), 2).unwrap() > 1e6, "{level}");
        }
        assert!(read_bandwidth(1).unwrap() > 1e6);
        assert!(read_bandwidth(0).is_err() && arithmetic_peak(Some(Level::Scalar), 0).is_err());
    }
}
