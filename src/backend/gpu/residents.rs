//! Which pieces of weights are in GPU memory, and for how long.
//!
//! Design:
//! - Without a budget every piece is uploaded once and stays; so it is where the prepared weights fit the budget.
//! - Otherwise weights are *streamed*. A forward pass goes through them in a circle, for which "the one used longest ago goes" alone
//!   would never find anything again: so the first of them stay, as many as fill three quarters of the budget, those that every
//!   token needs before experts. The others pass through the last quarter: uploaded when an operation needs them, from the mapped
//!   file, and given up for the next, the one used longest ago first. What is recorded before runs meanwhile.
//! - Streamed stacks of experts are cut into pieces of one expert, of which only those are uploaded that a token chose.
//! - A piece is in use until the last submission that reads it is done. It counts until then: giving it up waits for that submission,
//!   which is mostly long done.
//! - Values do not depend on it: kernels run over pieces, and each makes the outputs of its own rows.

use std::collections::HashMap;
use std::rc::Rc;

use super::device::{Device, Submission};
use super::weights::Piece;
use crate::error::Result;

/// A piece: its weight's id, whether it is in a texture, and its number in the weight.
pub type PieceKey = (usize, bool, usize);

/// The smallest budget: in it, what a texture is rounded up to is small beside a piece.
pub const LEAST_WEIGHT_MEMORY: u64 = 1 << 20;

/// Streamed weights are cut into pieces of at most this share of the budget, so that the quarter that they pass through holds two.
const PIECES_IN_BUDGET: u64 = 8;

struct Held {
    piece: Rc<Piece>,
    bytes: u64,
    stays: bool,
    /// When it was used last, in uses of any piece, and the submission that does.
    used: u64,
    submission: Submission,
}

/// What weights take of GPU memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightMemory {
    /// Bytes that they may take, if there is a limit.
    pub budget: Option<u64>,
    /// Bytes that they take, and the most that they took.
    pub now: u64,
    #[allow(missing_docs)] // said above
    pub most: u64,
    /// Bytes uploaded in all.
    pub uploaded: u64,
}

/// The pieces in GPU memory.
pub struct Residents {
    held: HashMap<PieceKey, Held>,
    uses: u64,
    memory: WeightMemory,
    streams: bool,
}

impl Residents {
    pub fn new(budget: Option<u64>) -> Self {
        let memory = WeightMemory { budget, ..Default::default() };
        Self { held: HashMap::new(), uses: 0, memory, streams: budget.is_some() }
    }

    pub fn memory(&self) -> WeightMemory {
        self.memory
    }

    /// Whether weights pass through instead of staying.
    pub fn streams(&self) -> bool {
        self.streams
    }

    /// Bytes of the largest piece that a weight may be cut into, of a binding that holds `binding`.
    pub fn most_a_piece(&self, binding: u64) -> u64 {
        match self.memory.budget {
            Some(budget) if self.streams => binding.min(budget / PIECES_IN_BUDGET),
            _ => binding,
        }
    }

    /// Says that weights of `bytes` in all will be used, before any is uploaded: they stay if they fit.
    pub fn expect(&mut self, bytes: u64) {
        self.streams = self.memory.budget.is_some_and(|budget| bytes > budget);
    }

    /// Whether another piece of `bytes` may stay.
    pub fn may_stay(&self, bytes: u64) -> bool {
        match self.memory.budget {
            Some(budget) if self.streams => self.memory.now + bytes <= budget - budget / 4,
            _ => true,
        }
    }

    /// Whether a piece is there.
    pub fn holds(&self, key: PieceKey) -> bool {
        self.held.contains_key(&key)
    }

    /// A piece that is there; it is about to be used.
    pub fn get(&mut self, key: PieceKey, device: &Device) -> Option<Rc<Piece>> {
        let held = self.held.get_mut(&key)?;
        self.uses += 1;
        held.used = self.uses;
        held.submission = device.submission();
        Some(held.piece.clone())
    }

    /// Makes room for a piece of `bytes`.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn make_room(&mut self, device: &mut Device, bytes: u64) -> Result<()> {
        let Some(budget) = self.memory.budget.filter(|_| self.streams) else { return Ok(()) };
        while self.memory.now + bytes > budget {
            let passing = self.held.iter().filter(|(_, held)| !held.stays);
            let Some((&key, _)) = passing.min_by_key(|(_, held)| held.used) else { break };
            let Some(Held { bytes, submission, piece, .. }) = self.held.remove(&key) else { break };
            drop(piece);
            if submission.get().is_none() {
                device.submit();
            }
            // The cell of an encoder that was never submitted stays empty: nothing reads the piece then.
            if let Some(index) = submission.get() {
                device.wait(Some(index))?;
            }
            self.memory.now -= bytes;
        }
        Ok(())
    }

    /// Keeps a piece that was uploaded; it is about to be used.
    pub fn put(&mut self, key: PieceKey, piece: &Rc<Piece>, bytes: u64, stays: bool, device: &Device) {
        self.uses += 1;
        let held = Held { piece: piece.clone(), bytes, stays, used: self.uses, submission: device.submission() };
        self.held.insert(key, held);
        self.memory.now += bytes;
        self.memory.most = self.memory.most.max(self.memory.now);
        self.memory.uploaded += bytes;
    }

    /// Gives up every piece of a weight.
    pub fn forget(&mut self, weight: usize) {
        self.held.retain(|&(id, ..), held| {
            if id == weight {
                self.memory.now -= held.bytes;
            }
            id != weight
        });
    }
}
