//! One operation with its operands on the host: all that is needed to run it alone, anywhere.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cut::take;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::op::{At, Data, HostTensor, Op, Site, Stage, Weight};

/// Positions beyond this are refused: no model's context is that long, and tables of angles grow with it.
const MOST_POSITIONS: usize = 1 << 20;
const MOST_EXPERTS: u32 = 1 << 16;

/// An operation's name and scalars; its tensors are listed by [`Params::operands`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Params {
    Embed,
    RmsNorm { eps: f32 },
    MatMul,
    Rope { start: usize, head_dim: usize, base: f64 },
    AttnScores { start: usize, head_dim: usize },
    AttnProbs { start: usize },
    AttnContext { start: usize, head_dim: usize },
    Add,
    RouterProbs,
    RouterTopK { k: usize },
    RouterWeights { renormalise: bool },
    ExpertMatMul,
    SwiGlu,
    Combine,
}

impl Params {
    /// `None` for operations that make no stage.
    pub fn of<T>(op: &Op<'_, T>) -> Option<Self> {
        Some(match *op {
            Op::Embed { .. } => Params::Embed,
            Op::RmsNorm { eps, .. } => Params::RmsNorm { eps },
            Op::MatMul { .. } => Params::MatMul,
            Op::Rope { start, head_dim, base, .. } => Params::Rope { start, head_dim, base },
            Op::AttnScores { start, head_dim, .. } => Params::AttnScores { start, head_dim },
            Op::AttnProbs { start, .. } => Params::AttnProbs { start },
            Op::AttnContext { start, head_dim, .. } => Params::AttnContext { start, head_dim },
            Op::Add { .. } => Params::Add,
            Op::RouterProbs { .. } => Params::RouterProbs,
            Op::RouterTopK { k, .. } => Params::RouterTopK { k },
            Op::RouterWeights { renormalise, .. } => Params::RouterWeights { renormalise },
            Op::ExpertMatMul { .. } => Params::ExpertMatMul,
            Op::SwiGlu { .. } => Params::SwiGlu,
            Op::Combine { .. } => Params::Combine,
            Op::Store { .. } | Op::Rows { .. } => return None,
        })
    }

    /// The names of the tensors, in the order of [`Op::inputs`]; an embedding's tokens count as one.
    pub fn operands(&self) -> &'static [&'static str] {
        match self {
            Params::Embed => &["tokens"],
            Params::RmsNorm { .. } | Params::MatMul | Params::Rope { .. } => &["x"],
            Params::AttnScores { .. } => &["q", "k"],
            Params::AttnProbs { .. } => &["scores"],
            Params::AttnContext { .. } => &["probs", "v"],
            Params::Add => &["a", "b"],
            Params::RouterProbs => &["logits"],
            Params::RouterTopK { .. } => &["probs"],
            Params::RouterWeights { .. } => &["probs", "ids"],
            Params::ExpertMatMul => &["x", "ids"],
            Params::SwiGlu => &["gate", "up"],
            Params::Combine => &["down", "weights"],
        }
    }

    pub fn reads_weight(&self) -> bool {
        matches!(self, Params::Embed | Params::RmsNorm { .. } | Params::MatMul | Params::ExpertMatMul)
    }

    /// The operand that is a KV cache, and the stage whose values are stored in it.
    pub fn cache(&self) -> Option<(usize, Stage)> {
        match self {
            Params::AttnScores { .. } => Some((1, Stage::KRope)),
            Params::AttnContext { .. } => Some((1, Stage::VProj)),
            _ => None,
        }
    }

    /// The position of the first row, where the operation depends on it.
    pub fn start(&self) -> Option<usize> {
        match *self {
            Params::Rope { start, .. }
            | Params::AttnScores { start, .. }
            | Params::AttnProbs { start }
            | Params::AttnContext { start, .. } => Some(start),
            _ => None,
        }
    }

    /// The same with the first row at another position.
    pub(super) fn at(self, start: usize) -> Self {
        match self {
            Params::Rope { head_dim, base, .. } => Params::Rope { start, head_dim, base },
            Params::AttnScores { head_dim, .. } => Params::AttnScores { start, head_dim },
            Params::AttnProbs { .. } => Params::AttnProbs { start },
            Params::AttnContext { head_dim, .. } => Params::AttnContext { start, head_dim },
            other => other,
        }
    }

    fn is_ids(&self, operand: usize) -> bool {
        matches!((self, operand), (Params::Embed, 0) | (Params::RouterWeights { .. } | Params::ExpertMatMul, 1))
    }
}

/// A row of the stage that a case still has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
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
pub struct Kept {
    pub rows: Vec<Row>,
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
pub struct Place {
    pub position: usize,
    pub slot: Option<usize>,
    pub expert: Option<u32>,
    pub head: Option<usize>,
    pub column: usize,
}

impl std::fmt::Display for Place {
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

/// An operation that can be run alone. What it holds belongs together: [`Case::new`] checked it.
#[derive(Clone, Debug)]
pub struct Case {
    pub site: Site,
    pub params: Params,
    /// In the order of [`Params::operands`]; a cache has exactly the S positions seen.
    pub inputs: Vec<HostTensor>,
    pub weight: Option<Arc<Weight>>,
    pub kept: Kept,
    /// Shape of the result.
    shape: Vec<usize>,
}

impl Case {
    /// # Errors
    /// [`Error::Input`] if the operands do not belong together, or `kept` does not describe the result.
    pub fn new(
        site: Site,
        params: Params,
        inputs: Vec<HostTensor>,
        weight: Option<Arc<Weight>>,
        kept: Kept,
    ) -> Result<Self> {
        let wrong = |e| Error::input(format!("{site}: {e}"));
        let shape = Shapes { params, inputs: &inputs, weight: weight.as_deref() }.check().map_err(wrong)?;
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
        matches!(self.params, Params::AttnScores { .. } | Params::AttnProbs { .. }).into()
    }

    /// Whether the result has a row for each chosen expert, [T, K, n].
    pub fn per_slot(&self) -> bool {
        self.shape.len() == 3 && self.position_axis() == 0
    }

    pub fn op(&self) -> Op<'_, &HostTensor> {
        let (x, y) = (&self.inputs[0], self.inputs.last().unwrap_or(&self.inputs[0]));
        let weight = || self.weight.as_ref().expect("checked when it was made");
        match self.params {
            Params::Embed => Op::Embed { table: weight(), tokens: x.ids() },
            Params::RmsNorm { eps } => Op::RmsNorm { x, weight: weight(), eps },
            Params::MatMul => Op::MatMul { x, weight: weight() },
            Params::Rope { start, head_dim, base } => Op::Rope { x, start, head_dim, base },
            Params::AttnScores { start, head_dim } => Op::AttnScores { q: x, k: y, start, head_dim },
            Params::AttnProbs { start } => Op::AttnProbs { scores: x, start },
            Params::AttnContext { start, head_dim } => Op::AttnContext { probs: x, v: y, start, head_dim },
            Params::Add => Op::Add { a: x, b: y },
            Params::RouterProbs => Op::RouterProbs { logits: x },
            Params::RouterTopK { k } => Op::RouterTopK { probs: x, k },
            Params::RouterWeights { renormalise } => Op::RouterWeights { probs: x, ids: y, renormalise },
            Params::ExpertMatMul => Op::ExpertMatMul { x, ids: y, weight: weight() },
            Params::SwiGlu => Op::SwiGlu { gate: x, up: y },
            Params::Combine => Op::Combine { down: x, weights: y },
        }
    }

    /// Runs it on `backend`. A cache is filled by [`Op::Store`], the positions before this call first, as the model does.
    ///
    /// # Errors
    /// The backend's.
    pub fn run<B: Backend>(&self, backend: &mut B) -> Result<HostTensor> {
        let cache = self.params.cache();
        let mut operand = 0;
        let op = self.op().try_map(|t| {
            operand += 1;
            match cache {
                Some((at, stage)) if at + 1 == operand => self.stored(backend, t, stage),
                _ => backend.upload(t),
            }
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
                let x = backend.upload(&take(rows, 0, &part.clone().collect::<Vec<_>>()))?;
                cache = backend.run(At::new(site, part.start), &Op::Store { cache, x, start: part.start })?;
            }
        }
        Ok(cache)
    }

    /// Where element `index` of the result is in the whole stage.
    pub fn place(&self, index: usize) -> Place {
        let at = crate::diff::measure::metrics::unravel(index, &self.shape);
        let row = &self.kept.rows[at[self.position_axis()]];
        let slot = self.per_slot().then(|| row.slots[at[1]]);
        Place {
            position: row.position,
            slot: slot.map(|s| s.slot),
            expert: slot.map(|s| s.expert),
            head: (self.position_axis() == 1).then(|| self.kept.heads[at[0]]),
            column: self.kept.columns[at[at.len() - 1]],
        }
    }

    fn check_kept(&self) -> Result<(), String> {
        let kept = &self.kept;
        let heads = if self.position_axis() == 1 { self.shape[0] } else { 0 };
        let stack = matches!(self.params, Params::ExpertMatMul);
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

/// Operands that are held against each other.
struct Shapes<'a> {
    params: Params,
    inputs: &'a [HostTensor],
    weight: Option<&'a Weight>,
}

impl Shapes<'_> {
    /// The shape of the result.
    fn check(&self) -> Result<Vec<usize>, String> {
        let names = self.params.operands();
        if self.inputs.len() != names.len() {
            return Err(format!("{} operands, expected {}", self.inputs.len(), names.join(" and ")));
        }
        for (i, (tensor, name)) in self.inputs.iter().zip(names).enumerate() {
            let ids = matches!(tensor.data, Data::U32(_));
            if ids != self.params.is_ids(i) {
                let expected = if ids { "numbers are" } else { "u32 is" };
                return Err(format!("{name} is {}, {expected} expected", tensor.dtype()));
            }
            if tensor.shape.is_empty() || tensor.shape.contains(&0) {
                return Err(format!("{name} is {:?}, which has no values", tensor.shape));
            }
        }
        if self.params.reads_weight() != self.weight.is_some() {
            return Err(match self.weight {
                Some(w) => format!("the operation reads no weight, {} is given", w.name),
                None => "the operation reads a weight, none is given".into(),
            });
        }
        if let Some(w) = self.weight.filter(|w| w.cols * w.rows * w.experts == 0) {
            return Err(format!("weight {} is {:?}, which has no values", w.name, w.dims()));
        }
        self.result()
    }

    fn axes<const N: usize>(&self, operand: usize) -> Result<[usize; N], String> {
        let shape = &self.inputs[operand].shape;
        shape[..]
            .try_into()
            .map_err(|_| format!("{} is {shape:?}, a shape of {N} axes is expected", self.params.operands()[operand]))
    }

    /// A weight of one expert: its columns and rows.
    fn matrix(&self) -> Result<[usize; 2], String> {
        match self.weight {
            Some(w) if w.experts == 1 => Ok([w.cols, w.rows]),
            Some(w) => Err(format!("weight {} is {:?}, one matrix is expected", w.name, w.dims())),
            None => Err("no weight".into()),
        }
    }

    fn result(&self) -> Result<Vec<usize>, String> {
        let ensure = |ok: bool, what: &str| {
            let shapes: Vec<_> = self.inputs.iter().map(|t| &t.shape).collect();
            if ok { Ok(()) } else { Err(format!("operands {shapes:?} of {:?}: expected {what}", self.params)) }
        };
        let below = |operand: usize, n: usize, of: &str| match self.inputs[operand].ids().iter().max() {
            Some(&id) if id as usize >= n => Err(format!("{of} {id} where there are {n}")),
            _ => Ok(()),
        };
        let whole = |cols: usize, unit: usize| unit > 0 && cols.is_multiple_of(unit);
        let seen = |start: usize, positions: usize| {
            let seen = start.checked_add(positions).filter(|seen| *seen <= MOST_POSITIONS);
            seen.ok_or_else(|| format!("{positions} positions from {start} on, {MOST_POSITIONS} are the most"))
        };
        // Query heads and KV heads, checked against each other.
        let heads = |query: usize, kv: usize, head_dim: usize| {
            let fits = whole(query, head_dim) && whole(kv, head_dim) && whole(query, kv);
            ensure(fits, "whole heads, as many for each KV head")?;
            Ok::<_, String>(query / head_dim)
        };
        Ok(match self.params {
            Params::Embed => {
                let ([t], [cols, rows]) = (self.axes(0)?, self.matrix()?);
                below(0, rows, "token")?;
                vec![t, cols]
            }
            Params::RmsNorm { .. } => {
                let ([t, cols], [n, rows]) = (self.axes(0)?, self.matrix()?);
                ensure(rows == 1 && whole(cols, n), &format!("rows of whole groups of {n}"))?;
                vec![t, cols]
            }
            Params::MatMul => {
                let ([t, cols], [n, rows]) = (self.axes(0)?, self.matrix()?);
                ensure(cols == n, &format!("rows of {n}"))?;
                vec![t, rows]
            }
            Params::Rope { start, head_dim, .. } => {
                let [t, cols] = self.axes(0)?;
                ensure(whole(cols, head_dim) && head_dim.is_multiple_of(2), "whole heads of an even size")?;
                seen(start, t)?;
                vec![t, cols]
            }
            Params::AttnScores { start, head_dim } => {
                let ([t, query], [s, kv]) = (self.axes(0)?, self.axes(1)?);
                ensure(seen(start, t)? == s, "a key for each position seen")?;
                vec![heads(query, kv, head_dim)?, t, s]
            }
            Params::AttnProbs { start } => {
                let [heads, t, s] = self.axes(0)?;
                ensure(seen(start, t)? == s, "a score for each position seen")?;
                vec![heads, t, s]
            }
            Params::AttnContext { start, head_dim } => {
                let ([n, t, s], [rows, kv]) = (self.axes(0)?, self.axes(1)?);
                ensure(seen(start, t)? == s && rows == s, "a value for each position seen")?;
                let query = n.checked_mul(head_dim).ok_or("too many heads")?;
                heads(query, kv, head_dim)?;
                vec![t, query]
            }
            Params::Add => {
                let ([t, n], other) = (self.axes(0)?, self.axes::<2>(1)?);
                ensure([t, n] == other, "two of one shape")?;
                vec![t, n]
            }
            Params::SwiGlu => {
                let (gate, up) = (&self.inputs[0].shape, &self.inputs[1].shape);
                ensure(gate == up && matches!(gate.len(), 2 | 3), "two of one shape")?;
                gate.clone()
            }
            Params::RouterProbs => self.axes::<2>(0)?.to_vec(),
            Params::RouterTopK { k } => {
                let [t, experts] = self.axes(0)?;
                ensure((1..=experts).contains(&k), &format!("at least {k} experts, and at least one to choose"))?;
                vec![t, k]
            }
            Params::RouterWeights { .. } => {
                let ([t, experts], [rows, k]) = (self.axes(0)?, self.axes(1)?);
                ensure(t == rows, "ids for each row")?;
                below(1, experts, "expert")?;
                vec![t, k]
            }
            Params::ExpertMatMul => {
                let ([t, k], x, w) = (self.axes(1)?, &self.inputs[0].shape, self.weight.ok_or("no weight")?);
                ensure(x[..] == [t, w.cols] || x[..] == [t, k, w.cols], &format!("rows of {}", w.cols))?;
                below(1, w.experts, "expert")?;
                vec![t, k, w.rows]
            }
            Params::Combine => {
                let ([t, k, n], other) = (self.axes(0)?, self.axes::<2>(1)?);
                ensure([t, k] == other, "a weight for each row")?;
                vec![t, n]
            }
        })
    }
}
