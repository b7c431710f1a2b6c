//! Smaller cases of a case: fewer rows, columns, heads, keys, experts, blocks.
//!
//! A cut case is a whole operation of its own, on operands that were gathered from the larger one; nothing is masked. Where an
//! operation ties a row to its position (rope, attention), rows stay consecutive and the first position moves with them.

use std::sync::Arc;

use super::case::{FailingCall, KeptRow, Provenance};
use crate::error::Result;
use crate::op::{HostTensor, OpParams, Weight, unravel};

/// What a case can have fewer of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutAxis {
    /// Positions, or (position, slot) pairs once a case is flat.
    Rows,
    /// Experts chosen for a token.
    Slots,
    /// Columns of the result: rows of the weight where there is one.
    Columns,
    /// Heads, or groups of a norm; for attention, KV heads with all their query heads.
    Heads,
    /// Query heads of each KV head.
    Group,
    /// The oldest positions that are attended to.
    Keys,
    /// Experts that nobody chose.
    Experts,
    /// Blocks of columns of the weight: the length of the dot products.
    Blocks,
}

/// Which parts of an axis may be kept together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutChoice {
    Any,
    /// Consecutive ones.
    Range,
    /// The last ones, or none.
    Suffix,
    /// Any, or none.
    AnyOrNone,
}

/// Columns that are kept or dropped together where the type has no blocks.
const PLAIN_UNIT: usize = 32;

impl FailingCall {
    /// What can be cut, and how; an axis that has nothing to cut is left out.
    pub fn axes(&self) -> Vec<(CutAxis, CutChoice)> {
        use CutAxis::*;
        let axes: &[CutAxis] = match self.params {
            OpParams::Embed { .. } => &[Rows, Blocks],
            OpParams::RmsNorm { .. } => &[Rows, Heads, Blocks],
            OpParams::MatMul { .. } => &[Rows, Columns, Blocks],
            OpParams::HeadMatMul { .. } => &[Rows, Columns, Heads, Blocks],
            OpParams::Bias { .. } => &[Rows],
            OpParams::Rope { .. } => &[Rows, Heads],
            // Sinks stay with their heads.
            OpParams::AttnProbs { sinks: Some(()), .. } => &[Rows, Keys],
            OpParams::AttnProbs { .. } => &[Rows, Heads, Keys],
            OpParams::AttnScores { .. } | OpParams::AttnContext { .. } => &[Rows, Heads, Group, Keys],
            OpParams::Add { .. } | OpParams::SwiGlu { .. } | OpParams::RouterProbs { .. } => &[Rows, Columns],
            OpParams::SigmoidGate { .. } => &[Rows],
            OpParams::RouterTopK { .. } => &[Rows],
            OpParams::RouterWeights { .. } => &[Rows, Slots],
            OpParams::ExpertMatMul { .. } => &[Rows, Columns, Experts, Blocks],
            OpParams::ExpertBias { .. } => &[Rows],
            OpParams::Conv { .. } | OpParams::L2Norm { .. } | OpParams::Decay { .. } | OpParams::DeltaRule { .. } => {
                &[Rows]
            }
            OpParams::Combine { .. } => &[Rows, Slots, Columns],
            OpParams::Store { .. } | OpParams::Rows { .. } => unreachable!("{:?} makes no stage", self.params.kind()),
        };
        let choice = |axis: CutAxis| match axis {
            Rows if self.params.start().is_some() => CutChoice::Range,
            Keys => CutChoice::Suffix,
            Experts => CutChoice::AnyOrNone,
            _ => CutChoice::Any,
        };
        let has_some = |axis: CutAxis| {
            self.count(axis) > usize::from(!matches!(choice(axis), CutChoice::Suffix | CutChoice::AnyOrNone))
        };
        axes.iter().filter(|a| has_some(**a)).map(|a| (*a, choice(*a))).collect()
    }

    /// How many there are along `axis`: of keys, those that can be dropped; of experts, those that nobody chose.
    pub fn count(&self, axis: CutAxis) -> usize {
        let cols = self.shape()[self.shape().len() - 1];
        match (axis, self.params) {
            (CutAxis::Rows, _) => self.positions(),
            (CutAxis::Columns, OpParams::HeadMatMul { .. }) => self.weight.as_ref().map_or(1, |w| w.rows),
            (CutAxis::Heads, OpParams::HeadMatMul { .. }) => self.matrices(),
            (CutAxis::Columns, _) => cols,
            (CutAxis::Slots, _) => self.inputs[1].cols(),
            (CutAxis::Heads, OpParams::RmsNorm { keep, .. }) => (cols - keep) / self.width(),
            (CutAxis::Heads, OpParams::Rope { head_dim, .. }) => cols / head_dim,
            (CutAxis::Heads, OpParams::AttnScores { head_dim, .. } | OpParams::AttnContext { head_dim, .. }) => {
                self.inputs[1].cols() / head_dim
            }
            (CutAxis::Heads, _) => self.shape()[0],
            (CutAxis::Group, _) => self.group(),
            (CutAxis::Keys, _) => self.params.start().unwrap_or(0),
            (CutAxis::Experts, _) => self.unused_experts().len(),
            (CutAxis::Blocks, _) => self.width().div_ceil(self.unit()),
        }
    }

    /// Where element `index` of the result is along `axis`, if it is at one place of it.
    pub fn coordinate(&self, axis: CutAxis, index: usize) -> Option<usize> {
        let at = unravel(index, self.shape());
        let (first, last) = (at[0], at[at.len() - 1]);
        match (axis, self.params) {
            (CutAxis::Rows, OpParams::AttnScores { .. } | OpParams::AttnProbs { .. }) => Some(at[1]),
            (CutAxis::Rows, _) => Some(first),
            (CutAxis::Columns, OpParams::HeadMatMul { .. }) => {
                Some(last % self.columns_a_head()).filter(|row| *row < self.count(axis))
            }
            (CutAxis::Heads, OpParams::HeadMatMul { .. }) => Some(last / self.columns_a_head()),
            // What a norm keeps as it is has no group and no block.
            (_, OpParams::RmsNorm { keep, .. }) if last >= self.inputs[0].cols() - keep => None,
            (CutAxis::Columns, _) | (CutAxis::Slots, OpParams::RouterWeights { .. }) => Some(last),
            (CutAxis::Heads, OpParams::RmsNorm { .. }) => Some(last / self.width()),
            (CutAxis::Heads, OpParams::Rope { head_dim, .. }) => Some(last / head_dim),
            (CutAxis::Heads, OpParams::AttnProbs { .. }) => Some(first),
            (CutAxis::Heads, OpParams::AttnScores { .. }) => Some(first / self.group()),
            (CutAxis::Group, OpParams::AttnScores { .. }) => Some(first % self.group()),
            (CutAxis::Heads, OpParams::AttnContext { head_dim, .. }) => Some(last / head_dim / self.group()),
            (CutAxis::Group, OpParams::AttnContext { head_dim, .. }) => Some(last / head_dim % self.group()),
            (CutAxis::Blocks, OpParams::Embed { .. } | OpParams::RmsNorm { .. }) => {
                Some(last % self.width() / self.unit())
            }
            _ => None,
        }
    }

    /// Matrices of the weight: experts, or heads.
    fn matrices(&self) -> usize {
        self.weight.as_ref().map_or(1, |w| w.experts)
    }

    /// Columns of a head of the result.
    fn columns_a_head(&self) -> usize {
        (self.shape()[self.shape().len() - 1] / self.matrices()).max(1)
    }

    /// Columns of the weight.
    fn width(&self) -> usize {
        self.weight.as_ref().map_or(1, |w| w.cols)
    }

    /// Columns that are kept or dropped together.
    fn unit(&self) -> usize {
        self.weight.as_ref().map_or(1, |w| w.ty.block_len().max(PLAIN_UNIT))
    }

    /// Query heads of a KV head.
    fn group(&self) -> usize {
        match self.params {
            OpParams::AttnScores { .. } => self.inputs[0].cols() / self.inputs[1].cols(),
            OpParams::AttnContext { .. } => self.shape()[1] / self.inputs[1].cols(),
            _ => 1,
        }
    }

    fn unused_experts(&self) -> Vec<usize> {
        let mut used = vec![false; self.weight.as_ref().map_or(0, |w| w.experts)];
        for id in self.inputs[1].ids() {
            used[*id as usize] = true;
        }
        (0..used.len()).filter(|e| !used[*e]).collect()
    }

    /// The case with only `keep` along `axis`; they ascend, and are as [`FailingCall::axes`] allows.
    ///
    /// # Errors
    /// If memory for the gathered weight is not there.
    pub fn cut(&self, axis: CutAxis, keep: &[usize]) -> Result<FailingCall> {
        let mut new = Parts {
            params: self.params,
            inputs: self.inputs.clone(),
            weight: self.weight.clone(),
            kept: self.kept.clone(),
        };
        match axis {
            CutAxis::Rows => self.cut_rows(&mut new, keep)?,
            CutAxis::Slots => {
                new.inputs[1] = self.inputs[1].take(1, keep);
                if matches!(self.params, OpParams::Combine { .. }) {
                    new.inputs[0] = self.inputs[0].take(1, keep);
                } else {
                    new.kept.columns = pick(&self.kept.columns, keep);
                }
            }
            CutAxis::Columns => self.cut_columns(&mut new, keep)?,
            CutAxis::Heads if matches!(self.params, OpParams::HeadMatMul { .. }) => {
                self.cut_matrices(&mut new, keep)?;
            }
            CutAxis::Heads | CutAxis::Group => self.cut_heads(&mut new, axis, keep),
            CutAxis::Keys => {
                // `keep` are the last of those before this call, and all of this call's stay.
                let dropped = self.count(CutAxis::Keys) - keep.len();
                let seen: Vec<usize> = (dropped..self.params.start().unwrap_or(0) + self.positions()).collect();
                cut_seen(&mut new, self.params, &seen);
                new.params = self.params.with_start(keep.len());
            }
            CutAxis::Experts => {
                let mut experts = pick(&self.unused_experts(), keep);
                let unused = self.unused_experts();
                experts.extend((0..self.kept.experts.len()).filter(|e| unused.binary_search(e).is_err()));
                experts.sort_unstable();
                if let Some(w) = &self.weight {
                    new.weight = Some(gather(w, &experts, &all(w.rows), None)?);
                }
                let renamed =
                    self.inputs[1].ids().iter().map(|id| experts.partition_point(|e| e < &(*id as usize)) as u32);
                new.inputs[1] = HostTensor::u32(&self.inputs[1].shape, renamed.collect());
                new.kept.experts = pick(&self.kept.experts, &experts);
            }
            CutAxis::Blocks => {
                let (width, unit) = (self.width(), self.unit());
                if let Some(w) = &self.weight {
                    new.weight = Some(gather(w, &all(w.experts), &all(w.rows), Some(keep))?);
                }
                let within: Vec<usize> = keep.iter().flat_map(|b| b * unit..((b + 1) * unit).min(width)).collect();
                let last =
                    if matches!(self.params, OpParams::Embed { .. }) { self.shape()[1] } else { self.inputs[0].cols() };
                // Where a row is made of groups of more columns than the weight has, the others stay; and so does what is behind the groups.
                let (of_group, behind) = match self.params {
                    OpParams::HeadMatMul { head_dim, .. } => (head_dim, 0),
                    OpParams::RmsNorm { keep, .. } => (width, keep),
                    _ => (width, 0),
                };
                let stay = || within.iter().copied().chain(width..of_group);
                let grouped = (0..(last - behind) / of_group).flat_map(|g| stay().map(move |c| g * of_group + c));
                let columns: Vec<usize> = grouped.chain(last - behind..last).collect();
                if let OpParams::HeadMatMul { head_dim, .. } = &mut new.params {
                    *head_dim = stay().count();
                }
                if !matches!(self.params, OpParams::Embed { .. }) {
                    let axis = self.inputs[0].shape.len() - 1;
                    new.inputs[0] = self.inputs[0].take(axis, &columns);
                }
                if matches!(self.params, OpParams::Embed { .. } | OpParams::RmsNorm { .. }) {
                    new.kept.columns = pick(&self.kept.columns, &columns);
                }
                new.kept.blocks = pick(&self.kept.blocks, keep);
            }
        }
        FailingCall::new(self.site, new.params, new.inputs, new.weight, new.kept)
    }

    fn cut_rows(&self, new: &mut Parts, keep: &[usize]) -> Result<()> {
        new.kept.rows = pick(&self.kept.rows, keep);
        match self.params {
            OpParams::Embed { .. } => {
                // The table keeps the rows that are still looked up.
                let tokens = pick(self.inputs[0].ids(), keep);
                let mut rows: Vec<usize> = tokens.iter().map(|t| *t as usize).collect();
                rows.sort_unstable();
                rows.dedup();
                if let Some(w) = &self.weight {
                    new.weight = Some(gather(w, &[0], &rows, None)?);
                }
                let renamed = tokens.iter().map(|t| rows.partition_point(|r| r < &(*t as usize)) as u32);
                new.inputs[0] = HostTensor::u32(&[keep.len()], renamed.collect());
            }
            OpParams::AttnScores { start, .. }
            | OpParams::AttnProbs { start, .. }
            | OpParams::AttnContext { start, .. } => {
                let (from, to) = (keep[0], keep[keep.len() - 1] + 1);
                let axis = if matches!(self.params, OpParams::AttnScores { .. }) { 0 } else { 1 };
                new.inputs[0] = self.inputs[0].take(axis, keep);
                cut_seen(new, self.params, &all(start + to));
                new.params = self.params.with_start(start + from);
            }
            OpParams::Conv { start, .. } | OpParams::DeltaRule { start, .. } => {
                let (from, to) = (keep[0], keep[keep.len() - 1] + 1);
                new.inputs[0] = self.inputs[0].take(0, keep);
                new.inputs[1..].iter_mut().for_each(|cache| *cache = cache.take(0, &all(start + to)));
                new.params = self.params.with_start(start + from);
            }
            OpParams::Rope { start, .. } => {
                new.inputs[0] = self.inputs[0].take(0, keep);
                new.params = self.params.with_start(start + keep[0]);
            }
            _ => {
                for input in &mut new.inputs {
                    *input = input.take(0, keep);
                }
            }
        }
        Ok(())
    }

    fn cut_columns(&self, new: &mut Parts, keep: &[usize]) -> Result<()> {
        new.kept.columns = match self.params {
            // The same rows of every head's matrix, and the columns that follow them.
            OpParams::HeadMatMul { .. } => {
                let (of_head, rows) = (self.columns_a_head(), self.count(CutAxis::Columns));
                let stay = || keep.iter().copied().chain(rows..of_head);
                let columns = (0..self.matrices()).flat_map(|h| stay().map(move |c| h * of_head + c));
                pick(&self.kept.columns, &columns.collect::<Vec<_>>())
            }
            _ => pick(&self.kept.columns, keep),
        };
        match (&self.weight, self.params) {
            (Some(w), _) => new.weight = Some(gather(w, &all(w.experts), keep, None)?),
            (None, OpParams::Combine { .. }) => new.inputs[0] = self.inputs[0].take(2, keep),
            (None, _) => {
                for input in &mut new.inputs {
                    let axis = input.shape.len() - 1;
                    *input = input.take(axis, keep);
                }
            }
        }
        Ok(())
    }

    /// Heads with a matrix each, and of x those of these where it has more than one.
    fn cut_matrices(&self, new: &mut Parts, keep: &[usize]) -> Result<()> {
        let OpParams::HeadMatMul { head_dim, .. } = self.params else { return Ok(()) };
        if let Some(w) = &self.weight {
            new.weight = Some(gather(w, keep, &all(w.rows), None)?);
        }
        if self.inputs[0].cols() > head_dim {
            new.inputs[0] = self.inputs[0].take(1, &units(keep, head_dim));
        }
        new.kept.columns = pick(&self.kept.columns, &units(keep, self.columns_a_head()));
        Ok(())
    }

    fn cut_heads(&self, new: &mut Parts, axis: CutAxis, keep: &[usize]) {
        let group = self.group();
        // Query heads that stay.
        let heads: Vec<usize> = match axis {
            CutAxis::Heads => keep.iter().flat_map(|kv| kv * group..(kv + 1) * group).collect(),
            _ => (0..self.count(CutAxis::Heads)).flat_map(|kv| keep.iter().map(move |m| kv * group + m)).collect(),
        };
        let kv = if axis == CutAxis::Heads { keep.to_vec() } else { all(self.count(CutAxis::Heads)) };
        match self.params {
            OpParams::AttnScores { head_dim, .. } => {
                new.inputs[0] = self.inputs[0].take(1, &units(&heads, head_dim));
                new.inputs[1] = self.inputs[1].take(1, &units(&kv, head_dim));
                new.kept.heads = pick(&self.kept.heads, &heads);
            }
            OpParams::AttnContext { head_dim, .. } => {
                new.inputs[0] = self.inputs[0].take(0, &heads);
                new.inputs[1] = self.inputs[1].take(1, &units(&kv, head_dim));
                new.kept.columns = pick(&self.kept.columns, &units(&heads, head_dim));
            }
            OpParams::AttnProbs { .. } => {
                new.inputs[0] = self.inputs[0].take(0, keep);
                new.kept.heads = pick(&self.kept.heads, keep);
            }
            OpParams::Rope { head_dim: n, .. } => self.cut_groups(new, keep, n),
            _ => self.cut_groups(new, keep, self.width()),
        }
    }

    fn cut_groups(&self, new: &mut Parts, keep: &[usize], n: usize) {
        let cols = self.inputs[0].cols();
        let behind = if let OpParams::RmsNorm { keep, .. } = self.params { keep } else { 0 };
        let columns: Vec<usize> = units(keep, n).into_iter().chain(cols - behind..cols).collect();
        new.inputs[0] = self.inputs[0].take(1, &columns);
        new.kept.columns = pick(&self.kept.columns, &columns);
    }

    /// Each (position, slot) as a row of its own with one slot, [T, K, n] → [T·K, 1, n]; `None` where that is so already.
    pub fn flat(&self) -> Option<Result<FailingCall>> {
        if !self.per_slot() || self.shape()[1] == 1 {
            return None;
        }
        let (t, k) = (self.shape()[0], self.shape()[1]);
        let flat = |x: &HostTensor| match x.shape[..] {
            [_, _, n] => HostTensor { shape: vec![t * k, 1, n], data: x.data.clone() },
            // Shared by the slots: once for each.
            _ => x.take(0, &(0..t * k).map(|s| s / k).collect::<Vec<_>>()),
        };
        let mut inputs: Vec<HostTensor> = self.inputs.iter().map(flat).collect();
        if matches!(self.params, OpParams::ExpertMatMul { .. } | OpParams::ExpertBias { .. }) {
            inputs[1] = HostTensor { shape: vec![t * k, 1], data: self.inputs[1].data.clone() };
        }
        let rows = self
            .kept
            .rows
            .iter()
            .flat_map(|row| row.slots.iter().map(|slot| KeptRow { position: row.position, slots: vec![*slot] }));
        let kept = Provenance { rows: rows.collect(), ..self.kept.clone() };
        Some(FailingCall::new(self.site, self.params, inputs, self.weight.clone(), kept))
    }
}

/// A case under construction.
struct Parts {
    params: OpParams,
    inputs: Vec<HostTensor>,
    weight: Option<Arc<Weight>>,
    kept: Provenance,
}

/// Keeps the positions `seen` of those that are attended to.
fn cut_seen(new: &mut Parts, params: OpParams, seen: &[usize]) {
    match params {
        OpParams::AttnScores { .. } => new.inputs[1] = new.inputs[1].take(0, seen),
        OpParams::AttnProbs { .. } => new.inputs[0] = new.inputs[0].take(2, seen),
        _ => {
            new.inputs[0] = new.inputs[0].take(2, seen);
            new.inputs[1] = new.inputs[1].take(0, seen);
        }
    }
    if !matches!(params, OpParams::AttnContext { .. }) {
        new.kept.columns = pick(&new.kept.columns, seen);
    }
}

fn all(n: usize) -> Vec<usize> {
    (0..n).collect()
}

fn pick<T: Clone>(of: &[T], keep: &[usize]) -> Vec<T> {
    keep.iter().map(|i| of[*i].clone()).collect()
}

/// The elements of the `keep`-th groups of `n`.
fn units(keep: &[usize], n: usize) -> Vec<usize> {
    keep.iter().flat_map(|i| i * n..(i + 1) * n).collect()
}

/// A weight of these experts and rows, and of these blocks of columns where they are given.
fn gather(w: &Weight, experts: &[usize], rows: &[usize], blocks: Option<&[usize]>) -> Result<Arc<Weight>> {
    let (block, bytes) = (w.ty.block_len(), w.ty.block_bytes());
    let unit = block.max(PLAIN_UNIT);
    let mut out = Vec::new();
    let mut cols = w.cols;
    for (e, r) in experts.iter().flat_map(|e| rows.iter().map(move |r| (*e, *r))) {
        let row = w.row(e, r);
        match blocks {
            None => out.extend_from_slice(row),
            Some(keep) => {
                let before = out.len();
                let parts: Vec<&[u8]> = row.chunks(unit / block * bytes).collect();
                keep.iter().for_each(|b| out.extend_from_slice(parts[*b]));
                cols = (out.len() - before) / bytes * block;
            }
        }
    }
    let scales = experts.iter().filter_map(|e| w.scale(*e)).collect();
    Weight::new(&w.name, w.ty, [cols, rows.len(), experts.len()], Arc::new(out), 0, w.file_offset)?.scaled(scales)
}
