//! Threads that do one piece of work at a time, together.
//!
//! Design:
//! - A token is some hundred operations of a few microseconds each, and waking a thread takes as long as one of them. So a thread that
//!   has nothing to do spins for a while before it sleeps, and the thread that asks for the work does its share of it.
//! - Work is a number of tasks, taken one by one from a counter. A thread that comes late finds none, or the work closed, and is not
//!   waited for: a sleeping thread never delays a small piece of work.
//! - [`Shared::state`] is the only thing that decides: it holds the number of the work, whether it is open, and how many threads have
//!   joined. The work is read by those alone that have joined it, and it stays until all of them have left.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{JoinHandle, yield_now};
use std::time::{Duration, Instant};

/// How long a thread looks for work before it sleeps: longer than what one thread alone does between two operations.
const SPIN: Duration = Duration::from_micros(200);
/// Turns between two looks at the clock, or before a thread that waits for another lets the system have the processor.
const TURNS: u32 = 64;
/// Tasks that a part of a slice is cut into for each thread: enough that nobody waits long for the last.
const TASKS_A_THREAD: usize = 8;

/// In [`Shared::state`]: the work may be joined. Below it the threads that have, above it the work's number.
const OPEN: u64 = 1 << 31;

/// What is to be done with a task's number.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// The work's number << 32 | [`OPEN`] | threads that have joined it.
    state: AtomicU64,
    /// Written while no work is open and nobody is in it; read by who has joined.
    work: UnsafeCell<*const Work<'static>>,
    tasks: AtomicUsize,
    next: AtomicUsize,
    /// Threads that have joined and are done.
    left: AtomicUsize,
    panicked: AtomicBool,
    sleeping: AtomicUsize,
    /// Whether the threads are to end.
    ends: Mutex<bool>,
    wake: Condvar,
}

// SAFETY: `work` is the only part that is not Sync by itself. The one thread that owns the `Team` writes it, only after it has closed
// the work before and seen everybody leave it; the others read it only after they have joined, which `state` orders behind the write.
// What it points to is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is followed only while `Team::run` keeps what it points to alive.
unsafe impl Send for Shared {}

/// The thread that owns it, and others that wait for it to have work.
pub(super) struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One thread at a time asks for work.
    owner: PhantomData<Cell<()>>,
}

impl Team {
    /// `threads`, the one that asks for work among them.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let nothing: &'static Work<'static> = &|_| ();
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(nothing),
            tasks: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            sleeping: AtomicUsize::new(0),
            ends: Mutex::new(false),
            wake: Condvar::new(),
        });
        let mut team = Self { shared, threads: Vec::new(), owner: PhantomData };
        for n in 1..threads {
            let shared = team.shared.clone();
            let thread = std::thread::Builder::new().name(format!("cpu-{n}"));
            team.threads.push(thread.spawn(move || shared.help())?);
        }
        Ok(team)
    }

    /// Threads in all.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `work` with every number below `tasks`, each once, on any thread; returns when all are done.
    ///
    /// # Panics
    /// If a task does.
    pub fn run(&self, tasks: usize, work: &Work<'_>) {
        if self.threads.is_empty() || tasks <= 1 {
            return (0..tasks).for_each(work);
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is lost. `closing`, which is dropped before this returns or unwinds, closes the work and waits for
        // all that have joined it, and nobody reads it without having joined.
        let work = unsafe { std::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
        // SAFETY: no work is open and nobody is in the last one: `closing` saw to that, and one thread at a time owns the team.
        unsafe { *shared.work.get() = work };
        shared.tasks.store(tasks, Relaxed);
        shared.next.store(0, Relaxed);
        shared.left.store(0, Relaxed);
        shared.panicked.store(false, Relaxed);
        let number = (shared.state.load(Relaxed) >> 32).wrapping_add(1);
        let closing = Closing(shared);
        // Ordered with `sleeping`: either the sleeper sees this work before it sleeps, or it is seen to sleep.
        shared.state.store(number << 32 | OPEN, SeqCst);
        if shared.sleeping.load(SeqCst) > 0 {
            let _sleepers = shared.ends.lock().unwrap_or_else(PoisonError::into_inner);
            shared.wake.notify_all();
        }
        shared.take_tasks(work);
        drop(closing);
        assert!(!shared.panicked.load(Relaxed), "a task panicked");
    }

    /// Calls `f(n, part)` for every part of `width` values of `values`, the last may be shorter.
    ///
    /// # Panics
    /// As [`Team::run`].
    pub fn run_parts<V: Send>(&self, values: &mut [V], width: usize, f: impl Fn(usize, &mut [V]) + Sync) {
        let parts = values.len().div_ceil(width);
        let together = parts.div_ceil(self.threads() * TASKS_A_THREAD).max(1);
        let all = Parts { start: values.as_mut_ptr(), len: values.len(), of: PhantomData };
        self.run(parts.div_ceil(together), &|task| {
            // SAFETY: every task has a number of its own.
            let some = unsafe { all.part(task, together * width) };
            some.chunks_mut(width).enumerate().for_each(|(n, part)| f(task * together + n, part));
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        *self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner) = true;
        // Who spins sees that the number is another one, and looks whether it is to end.
        self.shared.state.fetch_add(1 << 32, SeqCst);
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a task's panic was told to who asked for it
        }
    }
}

/// Closes the work, and waits for who has joined it.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let joined = self.0.state.fetch_and(!OPEN, AcqRel) & (OPEN - 1);
        let mut turns = 0u32;
        while self.0.left.load(Acquire) as u64 != joined {
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(TURNS) { yield_now() } else { std::hint::spin_loop() }
        }
    }
}

impl Shared {
    fn take_tasks(&self, work: &Work<'_>) {
        let tasks = self.tasks.load(Relaxed);
        loop {
            let task = self.next.fetch_add(1, Relaxed);
            if task >= tasks {
                return;
            }
            work(task);
        }
    }

    /// What a thread of the team does until it is to end.
    fn help(&self) {
        let mut known = 0; // the last work that it joined, or came too late for
        let mut since = Instant::now();
        let mut turns = 0u32;
        loop {
            let state = self.state.load(Acquire);
            let number = state >> 32;
            if number == known {
                turns = turns.wrapping_add(1);
                std::hint::spin_loop();
                if turns.is_multiple_of(TURNS) && since.elapsed() > SPIN {
                    if self.sleep(known) {
                        return;
                    }
                    since = Instant::now();
                }
                continue;
            }
            if state & OPEN == 0 {
                if *self.ends.lock().unwrap_or_else(PoisonError::into_inner) {
                    return;
                }
                known = number;
                continue;
            }
            if self.state.compare_exchange_weak(state, state + 1, AcqRel, Relaxed).is_err() {
                continue;
            }
            known = number;
            // SAFETY: this thread has joined, so the work is there until it has left.
            let work = unsafe { &**self.work.get() };
            if catch_unwind(AssertUnwindSafe(|| self.take_tasks(work))).is_err() {
                self.panicked.store(true, Relaxed);
            }
            self.left.fetch_add(1, Release);
            since = Instant::now();
        }
    }

    /// Sleeps until there is work other than `known`; true if the thread is to end.
    fn sleep(&self, known: u64) -> bool {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleeping.fetch_add(1, SeqCst);
        while !*ends && self.state.load(SeqCst) >> 32 == known {
            ends = self.wake.wait(ends).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping.fetch_sub(1, SeqCst);
        *ends
    }
}

/// A slice that tasks have parts of.
struct Parts<'a, V> {
    start: *mut V,
    len: usize,
    of: PhantomData<&'a mut [V]>,
}

// SAFETY: the only access is `part`, whose caller promises that no two threads have the same one; values may change threads.
unsafe impl<V: Send> Sync for Parts<'_, V> {}

impl<V> Parts<'_, V> {
    /// Values `n · width` to `(n + 1) · width`, or to the end.
    ///
    /// # Safety
    /// Each part is asked for once.
    #[allow(clippy::mut_from_ref)] // what the caller promises
    unsafe fn part(&self, n: usize, width: usize) -> &mut [V] {
        let first = (n * width).min(self.len);
        let len = width.min(self.len - first);
        // SAFETY: in bounds by the two lines above, and nobody else has these values by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_however_many_there_are() {
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads);
            for round in 0..if cfg!(miri) { 5 } else { 500 } {
                let tasks = [0, 1, 2, 7, 64][round % 5];
                let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                team.run(tasks, &|n| {
                    done[n].fetch_add(1, Relaxed);
                });
                assert!(done.iter().all(|n| n.load(Relaxed) == 1), "{threads} threads, {tasks} tasks, round {round}");
            }
        }
    }

    #[test]
    fn parts_are_whole_in_order_and_the_last_is_what_is_left() {
        let team = Team::new(3).unwrap();
        for (len, width) in [(0, 4), (1, 4), (4, 4), (1000, 7), (1000, 1), (5, 1000)] {
            let mut values = vec![usize::MAX; len];
            team.run_parts(&mut values, width, |n, part| {
                assert!(part.len() == width || n == (len - 1) / width && part.len() == len - n * width);
                part.fill(n);
            });
            assert!(values.iter().enumerate().all(|(i, n)| *n == i / width), "{len} by {width}");
        }
    }

    #[test]
    fn threads_that_sleep_wake_for_work() {
        let team = Team::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(4 * SPIN);
            // Neither task ends before both have begun: one thread alone could not do it.
            let begun = AtomicUsize::new(0);
            team.run(2, &|_| {
                begun.fetch_add(1, SeqCst);
                while begun.load(SeqCst) < 2 {
                    yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panic_reaches_who_asked_and_the_team_goes_on() {
        let team = Team::new(2).unwrap();
        for place in [0, 1, 63] {
            let panics = catch_unwind(AssertUnwindSafe(|| team.run(64, &|n| assert!(n != place, "task {n}"))));
            assert!(panics.is_err());
            let count = AtomicUsize::new(0);
            team.run(64, &|_| {
                count.fetch_add(1, Relaxed);
            });
            assert_eq!(count.load(Relaxed), 64);
        }
    }
}
