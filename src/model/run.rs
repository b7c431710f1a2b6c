//! A prompt and its decode steps as calls of the forward pass: the one loop that every verb runs.
//!
//! - The caller steps a [`Runner`] and may look at the backend between two calls, time them, or stop.
//! - A decoded token is the one with the largest logit, unless the caller says which it is. Logits are read from the
//!   backend only when a token is chosen by them or the caller asks for them, and then one row.

use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::{Config, LogitRows, Model, Session, forward};
use crate::op::{At, Op, Stage};

/// The SHA-256 of tokens, each as four bytes with the lowest first, in hexadecimal: whether two engines ran the same.
pub fn tokens_sha256(tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    format!("{:x}", Sha256::digest(bytes))
}

/// The calls of a run: a prompt, `chunk` positions at a time, then decoded tokens one by one.
#[derive(Clone, Copy, Debug)]
pub struct Calls<'a> {
    /// The tokens to run first.
    pub prompt: &'a [u32],
    /// Prompt tokens run at a time; 0 is taken for 1.
    pub chunk: usize,
    /// Tokens to decode after the prompt…
    pub decode: usize,
    /// …the first of which are these; the others are chosen.
    pub forced: &'a [u32],
}

impl Calls<'_> {
    /// How many positions the calls have in all.
    ///
    /// # Errors
    /// If there is no prompt, or they are more than the model's context length.
    pub fn positions(&self, config: &Config) -> Result<usize> {
        let (prompt, decode) = (self.prompt.len(), self.decode);
        let positions = prompt.saturating_add(decode);
        if prompt == 0 {
            return Err(Error::usage("no tokens to run: the prompt is empty"));
        }
        if positions > config.context {
            return Err(Error::usage(format!(
                "{prompt} prompt tokens and {decode} to decode are {positions} positions; the context length of {} is {}",
                config.name, config.context
            )));
        }
        Ok(positions)
    }
}

/// A run in progress. Every call takes the backend that the run was begun with.
pub struct Runner<'a, B: Backend> {
    model: &'a Model,
    calls: Calls<'a>,
    rows: LogitRows,
    session: Session<B::Tensor>,
    /// The prompt and what has been decoded after it.
    tokens: Vec<u32>,
    /// The logits of the last call until they are read, [T, V] or [1, V]…
    unread: Option<B::Tensor>,
    /// …and then those of its last position, `[V]`.
    logits: Vec<f64>,
}

impl<'a, B: Backend> Runner<'a, B> {
    /// A run before its first call; each call makes the logits of `rows`.
    ///
    /// # Errors
    /// [`Calls::positions`]'s, or the backend's, which makes room for the KV cache.
    pub fn new(backend: &mut B, model: &'a Model, calls: Calls<'a>, rows: LogitRows) -> Result<Self> {
        let session = Session::new(backend, &model.config, calls.positions(&model.config)?)?;
        Ok(Self { model, calls, rows, session, tokens: calls.prompt.to_vec(), unread: None, logits: Vec::new() })
    }

    /// Positions done so far.
    pub fn position(&self) -> usize {
        self.session.position()
    }

    /// The prompt and what has been decoded after it.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many tokens have been decoded.
    pub fn decoded(&self) -> usize {
        self.tokens.len() - self.calls.prompt.len()
    }

    /// The positions of the next call; `None` after the last.
    pub fn upcoming(&self) -> Option<Range<usize>> {
        let (start, prompt) = (self.position(), self.calls.prompt.len());
        let end = match start < prompt {
            true => prompt.min(start.saturating_add(self.calls.chunk.max(1))),
            false => start + 1,
        };
        (end <= prompt + self.calls.decode).then_some(start..end)
    }

    /// The logits of every row of the last call, [T, V] or [1, V], unless they have been read.
    pub fn unread(&self) -> Option<&B::Tensor> {
        self.unread.as_ref()
    }

    /// Makes the next call. False if there is none: all have been made, or no token can be chosen for it, which
    /// [`Self::choice`] then explains.
    ///
    /// # Errors
    /// [`forward()`]'s.
    pub fn step(&mut self, backend: &mut B) -> Result<bool> {
        let Some(call) = self.upcoming() else { return Ok(false) };
        if call.end > self.tokens.len() {
            let token = match self.calls.forced.get(self.decoded()) {
                Some(&token) => token,
                None => match greedy(self.logits(backend)?) {
                    Ok(token) => token,
                    Err(_) => return Ok(false),
                },
            };
            self.tokens.push(token);
        }
        self.unread = None;
        let logits = forward(backend, self.model, &mut self.session, &self.tokens[call], self.rows)?;
        self.unread = Some(logits);
        Ok(true)
    }

    /// The logits of the last position done, `[V]`.
    ///
    /// # Errors
    /// The backend's.
    pub fn logits(&mut self, backend: &mut B) -> Result<&[f64]> {
        if let Some(logits) = self.unread.take() {
            let last = match backend.shape(&logits)[0] {
                1 => logits,
                rows => {
                    let at = At::model(Stage::Logits, self.position() - 1);
                    backend.run(at, &Op::Rows { x: logits, start: rows - 1, rows: 1 })?
                }
            };
            self.logits = backend.read(&last)?.to_f64();
        }
        Ok(&self.logits)
    }

    /// The token that follows the last position done: the one with the largest logit, the lowest id among equals.
    ///
    /// # Errors
    /// A NaN among the logits, or the backend's.
    pub fn choice(&mut self, backend: &mut B) -> Result<u32> {
        greedy(self.logits(backend)?)
    }
}

/// The index of the largest of `logits`, the lowest among equals.
///
/// # Errors
/// A NaN among them: there is no largest.
fn greedy(logits: &[f64]) -> Result<u32> {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, &x) in logits.iter().enumerate() {
        if x.is_nan() {
            return Err(Error::cannot_run(format!("logit {i} is NaN; `twinscope trace` shows where it first appears")));
        }
        if x > best.1 {
            best = (i as u32, x);
        }
    }
    Ok(best.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::{CpuBackend, Level};

    #[test]
    fn nothing_is_the_largest_beside_a_nan() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0, -1.0]).unwrap(), 1);
        assert_eq!(greedy(&[f64::NEG_INFINITY]).unwrap(), 0);
        assert!(greedy(&[1.0, f64::NAN]).unwrap_err().to_string().contains("logit 1 is NaN"));
    }

    #[test]
    fn calls_are_chunks_then_single_tokens_and_forced_ones_come_first() {
        let model = Model::open(None).unwrap();
        let mut cpu = CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap();
        let prompt = [422, 472, 345, 339, 293];
        let mut run = |chunk, forced: &[u32], rows| {
            let mut runner = Runner::new(&mut cpu, &model, Calls { prompt: &prompt, chunk, decode: 2, forced }, rows)?;
            let mut calls = Vec::new();
            while let Some(call) = runner.upcoming() {
                calls.push(call);
                assert!(runner.step(&mut cpu)?);
            }
            assert!(!runner.step(&mut cpu)?, "there is no other call");
            let choice = runner.choice(&mut cpu)?;
            Ok::<_, Error>((calls, runner.tokens().to_vec(), choice))
        };
        let (calls, chosen, choice) = run(2, &[], LogitRows::All).unwrap();
        assert_eq!(calls, [0..2, 2..4, 4..5, 5..6, 6..7]);
        // Neither the chunks nor the rows of logits that are made change what is chosen.
        let last = run(0, &[], LogitRows::Last).unwrap();
        assert_eq!((last.0.len(), &last.1, last.2), (7, &chosen, choice));
        assert_eq!(run(usize::MAX, &chosen[5..], LogitRows::Last).unwrap(), (vec![0..5, 5..6, 6..7], chosen, choice));
        assert_eq!(run(5, &[7], LogitRows::All).unwrap().1[5], 7);
    }

    #[test]
    fn a_run_has_a_prompt_and_fits_the_context() {
        let config = Model::open(None).unwrap().config;
        let positions = |prompt, decode| Calls { prompt, chunk: 1, decode, forced: &[] }.positions(&config);
        assert_eq!(positions(&[1, 2], config.context - 2).unwrap(), config.context);
        assert!(positions(&[1, 2], usize::MAX).unwrap_err().to_string().contains("the context length of"));
        assert!(positions(&[], 2).unwrap_err().to_string().contains("the prompt is empty"));
    }
}
