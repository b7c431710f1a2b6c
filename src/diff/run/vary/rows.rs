//! Whether a stage's rows depend on how many rows a call has.
//!
//! Every stage of the run is computed again on its first few rows alone, on the operands that it had in the run, so that each stage is
//! looked at by itself: one that passes on what another made otherwise is equal.

use crate::backend::{AnyBackend, AnyTensor, Backend, pass_on};
use crate::diff::measure::metrics::{Mask, measure};
use crate::diff::run::vary::{Difference, Variation, bits_equal};
use crate::error::Result;
use crate::model::{Calls, LogitRows, Model, Runner};
use crate::op::{At, Dim, HostTensor, Op, OpKind, Stage};

/// A stage with one type of weight, over all layers.
#[derive(Clone, Debug, serde::Serialize)]
pub struct StageRows {
    /// The stage.
    pub stage: &'static str,
    /// The type of its weight.
    pub ty: Option<&'static str>,
    /// Calls that were looked at: one a layer.
    pub calls: usize,
    /// Numbers of rows at which its values change; none: it is invariant.
    pub changes: Vec<RowChange>,
}

/// Two numbers of rows, next to each other among those tried, whose common rows are not the same.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RowChange {
    /// The smaller.
    pub below: usize,
    /// The larger.
    pub rows: usize,
    /// Calls in which they are not.
    pub calls: usize,
    /// The worst of these.
    pub worst: Difference,
}

/// Runs the prompt in one call and each stage of it on its first `sizes` rows, ascending; how each size compares with the whole, and what
/// each stage does.
///
/// # Errors
/// The backend's.
pub(super) fn vary_rows(
    model: &Model,
    tokens: &[u32],
    sizes: &[usize],
    inner: AnyBackend,
) -> Result<(Vec<Variation>, Vec<StageRows>)> {
    let mut sizes: Vec<usize> = sizes.iter().copied().filter(|n| *n < tokens.len()).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let variations = sizes.iter().map(|n| Variation::new(format!("rows={n}"), 0)).collect();
    let mut backend = FewRows { inner, sizes, variations, stages: Vec::new() };
    let calls = Calls { prompt: tokens, chunk: tokens.len(), decode: 0, forced: &[] };
    let mut runner = Runner::new(&mut backend, model, calls, LogitRows::All)?;
    while runner.step(&mut backend)? {}
    Ok((backend.variations, backend.stages))
}

/// A backend that computes each stage several times.
struct FewRows {
    inner: AnyBackend,
    sizes: Vec<usize>,
    variations: Vec<Variation>,
    stages: Vec<StageRows>,
}

impl Backend for FewRows {
    pass_on!(inner: AnyBackend);

    fn run(&mut self, at: At, op: &Op<'_, AnyTensor>) -> Result<AnyTensor> {
        let whole = self.inner.run(at, op)?;
        if matches!(op, Op::Store { .. } | Op::Rows { .. }) {
            return Ok(whole);
        }
        let mut operands = Vec::new();
        op.try_map(|t| {
            let cache = op.kind().reads_cache(operands.len());
            operands.push(if cache { None } else { Some(self.inner.read(t)?) });
            Ok(())
        })?;
        let all = self.inner.read(&whole)?;
        let rows = all.shape[at.site.stage.position_axis()];
        let mut results = Vec::with_capacity(self.sizes.len() + 1);
        for few in self.sizes.clone().into_iter().filter(|few| *few < rows) {
            let op = self.on_first_rows(op, &operands, at.start, few)?;
            let result = self.inner.run(at, &op)?;
            results.push((few, self.inner.read(&result)?));
        }
        results.push((rows, all));
        self.note(at, weight_type(op), &results);
        Ok(whole)
    }
}

impl FewRows {
    /// The operation on the first `few` positions of its operands; a cache is what it is.
    fn on_first_rows<'w>(
        &mut self,
        op: &Op<'w, AnyTensor>,
        operands: &[Option<HostTensor>],
        start: usize,
        few: usize,
    ) -> Result<Op<'w, AnyTensor>> {
        let (kind, mut operand) = (op.kind(), 0);
        let mut cut = op.try_map(|t| {
            operand += 1;
            let Some(values) = &operands[operand - 1] else { return Ok(t.clone()) };
            self.inner.upload(&match kind {
                OpKind::AttnProbs | OpKind::AttnContext => first_rows(Stage::AttnProbs, values, start, few),
                _ => values.take(0, &Vec::from_iter(0..few)),
            })
        })?;
        if let Op::Embed { tokens, .. } = &mut cut {
            *tokens = &tokens[..few];
        }
        Ok(cut)
    }

    /// Takes in what a stage came to with each number of rows, ascending, the whole last.
    fn note(&mut self, at: At, ty: Option<&'static str>, results: &[(usize, HostTensor)]) {
        let stage = at.site.stage;
        let compare = |(few, a): &(usize, HostTensor), (_, b): &(usize, HostTensor)| {
            let b = first_rows(stage, b, at.start, *few);
            (!bits_equal(a, &b)).then(|| {
                let measured = measure(&b, a, Mask::of(stage, at.start));
                Difference::new(at.site, &b, a, measured)
            })
        };
        let whole = results.last().expect("the whole is among them");
        for (variation, result) in self.variations.iter_mut().zip(&results[..results.len() - 1]) {
            variation.stages += 1;
            match compare(result, whole) {
                None => variation.equal += 1,
                Some(difference) => variation.add(difference, false),
            }
        }
        let name = stage.name();
        let place = self.stages.iter().position(|s| s.stage == name && s.ty == ty).unwrap_or_else(|| {
            self.stages.push(StageRows { stage: name, ty, calls: 0, changes: Vec::new() });
            self.stages.len() - 1
        });
        let of_stage = &mut self.stages[place];
        of_stage.calls += 1;
        for pair in results.windows(2) {
            let Some(difference) = compare(&pair[0], &pair[1]) else { continue };
            let (below, rows) = (pair[0].0, pair[1].0);
            match of_stage.changes.iter_mut().find(|c| c.rows == rows) {
                Some(change) => {
                    change.calls += 1;
                    if difference.size() > change.worst.size() {
                        change.worst = difference;
                    }
                }
                None => of_stage.changes.push(RowChange { below, rows, calls: 1, worst: difference }),
            }
        }
        of_stage.changes.sort_by_key(|c| c.rows);
    }
}

/// The first `few` positions of a stage's values; of keys, those that the last of them sees.
pub(super) fn first_rows(stage: Stage, values: &HostTensor, start: usize, few: usize) -> HostTensor {
    let rows = values.take(stage.position_axis(), &Vec::from_iter(0..few));
    match stage.info().shape.iter().position(|d| *d == Dim::S) {
        Some(keys) => rows.take(keys, &Vec::from_iter(0..start + few)),
        None => rows,
    }
}

fn weight_type(op: &Op<'_, AnyTensor>) -> Option<&'static str> {
    match op {
        Op::Embed { table: weight, .. }
        | Op::MatMul { weight, .. }
        | Op::HeadMatMul { weight, .. }
        | Op::ExpertMatMul { weight, .. } => Some(weight.ty.name()),
        _ => None,
    }
}
