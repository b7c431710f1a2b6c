//! Prefill and decode, in tokens a second.
//!
//! Design:
//! - A test is llama-bench's: `pp512` runs a prompt of 512 tokens, `tg128` decodes 128 tokens one by one, `@ d4096`
//!   does so behind 4096 positions that are already in the cache. Tokens are random, and the same in every repetition.
//! - A decoded token's logits are read back before the next token goes in, as somebody has to who wants to choose it.
//! - The first run of a test warms up, and counts its work; it is not timed.

use std::time::Instant;

use super::limits::TimeBound;
use super::subject::BenchSubject;
use super::work::{Counted, CountedOp, Work};
use super::{Progress, stats};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::{LogitRows, Model, Session, forward};
use crate::quant::random::Rng;

/// What is run: a prompt, or a text decoded, behind some positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BenchTest {
    /// Tokens of the prompt; 0 if the test decodes.
    pub prompt: usize,
    /// Tokens decoded; 0 if the test runs a prompt.
    pub decode: usize,
    /// Positions that are in the cache before.
    pub depth: usize,
}

impl BenchTest {
    /// Tokens that are timed.
    pub fn tokens(&self) -> usize {
        self.prompt + self.decode
    }
}

/// As llama-bench writes it.
impl std::fmt::Display for BenchTest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.decode {
            0 => write!(f, "pp{}", self.prompt)?,
            n => write!(f, "tg{n}")?,
        }
        if self.depth > 0 { write!(f, " @ d{}", self.depth) } else { Ok(()) }
    }
}

/// The sequence that a test runs again and again: its positions before are run once.
pub(super) struct Rerun<'m, B: Backend> {
    model: &'m Model,
    session: Session<B::Tensor>,
    depth: usize,
    /// The token before the first call's, if the model has states that a call begins with.
    before: Option<u32>,
    /// The tokens of each call.
    calls: Vec<Vec<u32>>,
}

/// The seed of the tokens of every benchmark.
const SEED: u64 = 0x62656e6368;

impl<'m, B: Backend> Rerun<'m, B> {
    /// Makes room for the test on `backend` and runs the positions before it, `chunk` at a time.
    ///
    /// # Errors
    /// More positions than the model's context, or the backend's.
    pub(super) fn new(backend: &mut B, model: &'m Model, test: BenchTest, chunk: usize) -> Result<Self> {
        let config = &model.config;
        if test.depth.saturating_add(test.tokens()) > config.context {
            return Err(Error::usage(format!(
                "{test}: {} positions; the context length of {} is {}",
                test.depth.saturating_add(test.tokens()),
                config.name,
                config.context
            )));
        }
        let mut random = Rng::new(SEED, 0);
        let mut tokens = |n| (0..n).map(|_| random.below(config.vocab as u64) as u32).collect::<Vec<_>>();
        let (before, timed) = (tokens(test.depth), tokens(test.tokens()));
        let size = if test.decode > 0 { 1 } else { chunk };
        let calls = timed.chunks(size).map(<[u32]>::to_vec).collect();
        let mut session = Session::new(backend, config, test.depth + test.tokens())?;
        for call in before.chunks(chunk) {
            forward(backend, model, &mut session, call, LogitRows::Last)?;
        }
        backend.sync()?;
        let before = before.last().copied().filter(|_| config.linear.is_some());
        Ok(Self { model, session, depth: test.depth, before, calls })
    }

    /// Back to before the first call, which finds the state of linear attention that the call before it has left.
    pub(super) fn rewind(&mut self, backend: &mut B) -> Result<()> {
        if let Some(token) = self.before {
            self.session.rewind(self.depth - 1);
            forward(backend, self.model, &mut self.session, &[token], LogitRows::Last)?;
        }
        self.session.rewind(self.depth);
        backend.sync()
    }

    /// How many calls the test makes.
    pub(super) fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Makes one call; the logits of a decoded token, and of the prompt's last, are read.
    pub(super) fn call<C: Backend<Tensor = B::Tensor>>(&mut self, backend: &mut C, n: usize) -> Result<()> {
        let logits = forward(backend, self.model, &mut self.session, &self.calls[n], LogitRows::Last)?;
        if self.calls[n].len() == 1 || n + 1 == self.calls.len() {
            backend.read(&logits)?;
        }
        Ok(())
    }

    /// Seconds of all calls.
    pub(super) fn time(&mut self, backend: &mut B) -> Result<f64> {
        self.rewind(backend)?;
        let began = Instant::now();
        for n in 0..self.calls() {
            self.call(backend, n)?;
        }
        Ok(began.elapsed().as_secs_f64())
    }

    /// The operations of each call with their work; the run that tells it also warms up.
    pub(super) fn count(&mut self, backend: &mut B) -> Result<Vec<Vec<CountedOp>>> {
        self.rewind(backend)?;
        let mut counted = Counted::new(backend);
        let mut calls = Vec::with_capacity(self.calls());
        for n in 0..self.calls() {
            self.call(&mut counted, n)?;
            calls.push(counted.take());
        }
        Ok(calls)
    }
}

/// What a test came to.
#[derive(Clone, Debug)]
pub struct Throughput {
    /// The test.
    pub test: BenchTest,
    /// Seconds of each repetition.
    pub seconds: Vec<f64>,
    /// Of one repetition.
    pub work: Work,
    /// The least time that a repetition takes here, if limits were probed.
    pub bound: Option<TimeBound>,
}

impl Throughput {
    /// Tokens a second, of each repetition.
    pub fn rates(&self) -> Vec<f64> {
        self.seconds.iter().map(|s| self.test.tokens() as f64 / s).collect()
    }

    /// The mean time of a repetition.
    pub fn mean_seconds(&self) -> f64 {
        stats::mean(&self.seconds)
    }
}

/// Runs `test` once to warm up and `repeat` times for time; a prompt in calls of `chunk` positions.
///
/// # Errors
/// More positions than the model's context, or the backend's.
pub fn throughput(
    subject: &mut BenchSubject,
    model: &Model,
    test: BenchTest,
    chunk: usize,
    repeat: usize,
    progress: Progress<'_>,
) -> Result<Throughput> {
    let limit = subject.limit().copied();
    let name = format!("{} {test}", subject.info.backend);
    let backend = &mut subject.backend;
    progress(&name, 0, repeat + 1);
    let mut rerun = Rerun::new(backend, model, test, chunk)?;
    let counted: Vec<Work> = rerun.count(backend)?.iter().flatten().map(|op| op.work).collect();
    let bound = limit.map(|limit| TimeBound::of(&limit, counted.iter().copied()));
    let mut seconds = Vec::with_capacity(repeat);
    for n in 0..repeat {
        progress(&name, n + 1, repeat + 1);
        seconds.push(rerun.time(backend)?);
    }
    Ok(Throughput { test, seconds, work: counted.into_iter().sum(), bound })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::OpenOptions;

    fn test(prompt: usize, decode: usize, depth: usize) -> BenchTest {
        BenchTest { prompt, decode, depth }
    }

    #[test]
    fn tests_have_llama_bench_s_names() {
        let names = [test(512, 0, 0), test(0, 128, 0), test(0, 16, 4096)].map(|t| t.to_string());
        assert_eq!(names, ["pp512", "tg128", "tg16 @ d4096"]);
    }

    #[test]
    fn every_repetition_is_timed_and_work_is_that_of_one() {
        let model = Model::open(None).unwrap();
        let mut cpu = BenchSubject::open("cpu", OpenOptions { threads: Some(1), ..Default::default() }, false).unwrap();
        let mut steps = Vec::new();
        let mut progress = |_: &str, n, of| steps.push((n, of));
        let result = throughput(&mut cpu, &model, test(10, 0, 3), 4, 2, &mut progress).unwrap();
        assert_eq!(steps, [(0, 3), (1, 3), (2, 3)]);
        assert_eq!((result.seconds.len(), result.rates().len(), result.bound), (2, 2, None));
        assert!(result.seconds.iter().all(|s| *s > 0.0));
        // Three calls read the matrices three times, attention sees the positions before it.
        let decode = throughput(&mut cpu, &model, test(0, 1, 3), 4, 1, &mut |_, _, _| ()).unwrap();
        let share = result.work.bytes as f64 / decode.work.bytes as f64;
        assert!((3.0..12.0).contains(&share), "{share}");
        let at_0 = throughput(&mut cpu, &model, test(0, 1, 0), 4, 1, &mut |_, _, _| ()).unwrap();
        assert_eq!(decode.work.bytes - at_0.work.bytes, 4 * 2 * 3 * 128 * 4, "keys and values of 3 positions");
        let error = throughput(&mut cpu, &model, test(0, 1, model.config.context), 4, 1, &mut |_, _, _| ());
        assert!(error.unwrap_err().to_string().contains("the context length of"));
    }
}
