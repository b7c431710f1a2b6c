//! One operation with its operands on the host: all that is needed to run it alone, anywhere.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::op::{At, HostTensor, Op, OpParams, Site, Stage, Weight};

/// Positions beyond this are refused: no model's context is that long, and tables of angles grow with it.
const MOST_POSITIONS: usize = 1 << 20;
const MOST_EXPERTS: u32 = 1 << 16;

/// A row of the stage that a case still has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRow {
    pub position: usize,
    /// For stages with a value for each chosen expert: which of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<Slot>,
}

/// Place of an expert among those chosen for a token, and the expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub slot: usize,
    pub expert: u32,
}

/// Where in the whole stage each row, column, head and so on of a case comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    pub rows: Vec<KeptRow>,
    /// Of the result's last axis.
    pub columns: Vec<usize>,
    /// Of a `[heads, T, S]` result.
    pub heads: Vec<usize>,
    /// Of the weight, where it is a stack of experts.
    pub experts: Vec<usize>,
    /// Blocks of columns that the weight still has.
    pub blocks: Vec<usize>,
}

/// Where an element of a case's result is in the whole stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementPlace {
    pub position: usize,
    pub slot: Option<usize>,
    pub expert: Option<u32>,
    pub head: Option<usize>,
    pub column: usize,
}

impl std::fmt::Display for ElementPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "position {}", self.position)?;
        if let (Some(slot), Some(expert)) = (self.slot, self.expert) {
            write!(f, ", slot {slot}, expert {expert}")?;
        }
        if let Some(head) = self.head {
            return write!(f, ", head {head}, key {}", self.column);
        }
        write!(f, ", column {}", self.column)
    }
}

/// An operation that can be run alone. What it holds belongs together: [`FailingCall::new`] checked it.
#[derive(Clone, Debug)]
pub struct FailingCall {
    pub site: Site,
    pub params: OpParams,
    /// In the order of [`OpParams::names`]; a cache has exactly the S positions seen.
    pub inputs: Vec<HostTensor>,
    pub weight: Option<Arc<Weight>>,
    pub kept: Provenance,
    /// Shape of the result.
    shape: Vec<usize>,
}

impl FailingCall {
    /// # Errors
    /// [`Error::Input`] if the operands do not belong together, or `kept` does not describe the result.
    pub fn new(
        site: Site,
        params: OpParams,
        inputs: Vec<HostTensor>,
        weight: Option<Arc<Weight>>,
        kept: Provenance,
    ) -> Result<Self> {
        let wrong = |e: String| Error::input(format!("{site}: {e}"));
        let checked = params.bind(&inputs, weight.as_ref()).and_then(|op| op.check(site, |t| t.operand()));
        let shape = checked.map_err(|e| Error::input(e.to_string()))?;
        let params = params.given(weight.is_some());
        let case = Self { site, params, inputs, weight, kept, shape };
        case.check_kept().map_err(wrong)?;
        Ok(case)
    }

    /// Shape of the result.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Positions: T.
    pub fn positions(&self) -> usize {
        self.shape[self.position_axis()]
    }

    fn position_axis(&self) -> usize {
        matches!(self.params, OpParams::AttnScores { .. } | OpParams::AttnProbs { .. }).into()
    }

    /// Whether the result has a row for each chosen expert, [T, K, n].
    pub fn per_slot(&self) -> bool {
        self.shape.len() == 3 && self.position_axis() == 0
    }

    pub fn op(&self) -> Op<'_, &HostTensor> {
        self.params.bind(&self.inputs, self.weight.as_ref()).expect("checked when it was made")
    }

    /// Runs it on `backend`. A cache is filled by [`Op::Store`], the positions before this call first, as the model does.
    ///
    /// # Errors
    /// The backend's.
    pub fn run<B: Backend>(&self, backend: &mut B) -> Result<HostTensor> {
        let mut operands = 0..;
        let op = self.op().try_map(|t| match operands.next().and_then(|n| self.site.stage.cached(n)) {
            Some(stages) => self.stored(backend, t, stages[0]),
            None => backend.upload(t),
        })?;
        let start = self.kept.rows.first().map_or(0, |row| row.position);
        let result = backend.run(At::new(self.site, start), &op)?;
        backend.read(&result)
    }

    /// A cache that holds `rows`.
    fn stored<B: Backend>(&self, backend: &mut B, rows: &HostTensor, stage: Stage) -> Result<B::Tensor> {
        let site = Site { layer: self.site.layer, stage };
        let mut cache = backend.alloc(&rows.shape)?;
        let start = self.params.start().unwrap_or(0);
        for part in [0..start, start..rows.shape[0]] {
            if !part.is_empty() {
                let x = backend.upload(&rows.take(0, &part.clone().collect::<Vec<_>>()))?;
                cache = backend.run(At::new(site, part.start), &Op::Store { cache, x, start: part.start })?;
            }
        }
        Ok(cache)
    }

    /// Where element `index` of the result is in the whole stage.
    pub fn place(&self, index: usize) -> ElementPlace {
        let at = crate::op::unravel(index, &self.shape);
        let row = &self.kept.rows[at[self.position_axis()]];
        let slot = self.per_slot().then(|| row.slots[at[1]]);
        ElementPlace {
            position: row.position,
            slot: slot.map(|s| s.slot),
            expert: slot.map(|s| s.expert),
            head: (self.position_axis() == 1).then(|| self.kept.heads[at[0]]),
            column: self.kept.columns[at[at.len() - 1]],
        }
    }

    fn check_kept(&self) -> Result<(), String> {
        let kept = &self.kept;
        if !self.params.makes_stage() {
            return Err(format!("{:?} makes no stage", self.params.kind()));
        }
        let start = self.params.start().unwrap_or(0);
        if start > MOST_POSITIONS {
            return Err(format!("the first position is {start} where at most {MOST_POSITIONS} was expected"));
        }
        let seen = start + self.positions();
        let cached = |(n, x): &(usize, &HostTensor)| self.params.kind().reads_cache(*n) && x.shape[0] != seen;
        if let Some((_, cache)) = self.inputs.iter().enumerate().find(cached) {
            let found = cache.shape[0];
            return Err(format!("the cache has {found} rows where one for each of {seen} positions was expected"));
        }
        let heads = if self.position_axis() == 1 { self.shape[0] } else { 0 };
        let stack = matches!(self.params, OpParams::ExpertMatMul { .. });
        let experts = self.weight.as_ref().filter(|_| stack).map_or(0, |w| w.experts);
        let slots = if self.per_slot() { self.shape[1] } else { 0 };
        let counts = [
            ("rows", kept.rows.len(), self.positions()),
            ("columns", kept.columns.len(), self.shape[self.shape.len() - 1]),
            ("heads", kept.heads.len(), heads),
            ("experts", kept.experts.len(), experts),
        ];
        for (what, found, expected) in counts {
            if found != expected {
                return Err(format!("{found} {what} are said to be kept, the result has {expected}"));
            }
        }
        for row in &kept.rows {
            if slots > 0 && row.slots.len() != slots {
                return Err(format!("{} slots are said to be kept of a row that has {slots}", row.slots.len()));
            }
            // Reports count by position and by expert.
            if row.position > MOST_POSITIONS || row.slots.iter().any(|s| s.expert > MOST_EXPERTS) {
                return Err(format!("a row is said to be of {row:?}: no model has so many"));
            }
        }
        Ok(())
    }
}
