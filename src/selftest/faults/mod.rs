//! The faults that are planted: one table, in several files.
//!
//! - Each is a mistake that was made in a public engine, or is like one, at its real depth: a kernel's WGSL made wrong, or an
//!   operation run with the wrong operands, weights or constants on a real backend.
//! - Nothing is shared with the hypotheses that explain faults: those are variants of the oracle's formulas. A row only says
//!   which of them, by name, is the right explanation; none, for a mistake that is in no list.
//! - A row says what must be found: the stage, the side, and the kinds of geometry that describe the error truly.

mod attention;
mod deepseek;
mod experts;
mod families;
mod glm4moe;
mod gpt_oss;
mod linear_attention;
mod matrices;
mod missed;
#[cfg(test)]
mod once_missed;
mod ported;
mod reported;
mod unlisted;

use super::faulty::{FaultScope, Mistake};
use super::shader::Shader;
use crate::diff::locate::PatternKind;
use crate::diff::measure::metrics::Side;
use crate::model::{LayerWeights, Model};
use crate::op::{OpKind, Stage};

/// How a mistake is made.
#[derive(Clone, Copy)]
pub enum By {
    /// By a kernel whose source is changed: the one of these that the adapter runs.
    Shader(&'static [Shader]),
    /// By an operation run otherwise than it was asked for.
    Operation(fn(&FaultPlace<'_>) -> Mistake),
    /// The same, made by a generator with numbers of its own.
    Generated(&'static Generated),
}

/// Makes a mistake, each time anew.
pub type Generated = dyn Fn(&FaultPlace<'_>) -> Mistake + Sync;

/// What a mistake may know of where it is made.
pub struct FaultPlace<'a> {
    pub model: &'a Model,
    pub layer: usize,
}

impl<'a> FaultPlace<'a> {
    pub fn weights(&self) -> &'a LayerWeights {
        &self.model.weights.layers[self.layer]
    }
}

/// The backend that errs, or beside which the reference errs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultySide {
    Cpu,
    Gpu,
}

impl FaultySide {
    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            FaultySide::Cpu => "cpu",
            FaultySide::Gpu => "gpu",
        }
    }
}

/// A row of the table.
#[derive(Clone, Copy)]
pub struct Fault {
    pub name: &'static str,
    /// What is wrong, in a line.
    pub what: &'static str,
    pub by: By,
    pub subject: FaultySide,
    pub side: Side,
    /// The stage of the operation that errs.
    pub stage: Stage,
    /// Set where it is not the one that makes the stage.
    pub op: Option<OpKind>,
    /// The stage that must be named, where it is another: a wrong cache shows where it is read.
    pub seen_at: Option<Stage>,
    /// The models that it is planted on, by their numbers in `test_model`.
    pub models: &'static [usize],
    /// The layer on the demo model, and on each of the others, which have two. Without meaning for stages of the whole model.
    pub layers: [usize; 2],
    /// 0 in the prompt, n at the n-th decoded token.
    pub step: usize,
    pub scope: FaultScope,
    /// It has a strength: it is planted at 8 and at 64 times the rounding floor too.
    pub graded: bool,
    /// Needs router logits that are equal.
    pub tied: bool,
    /// Kinds of geometry of which the one that is named must be one.
    pub patterns: &'static [PatternKind],
    /// Hypotheses of which one must be named; none: no explanation is right.
    pub explained: &'static [&'static str],
    /// Words of which the cause that is named must have one, where a hypothesis has variants that are different mistakes; none: that it is
    /// this hypothesis says enough. `{e}` is the one expert in its scope, `{e + 1}` the next.
    pub says: &'static [&'static str],
    /// So little may be wrong that nothing can be told from chance: none is right as well.
    pub may_be_open: bool,
}

/// What most rows have in common.
pub(super) const FAULT: Fault = Fault {
    name: "",
    what: "",
    by: By::Shader(&[]),
    subject: FaultySide::Gpu,
    side: Side::Subject,
    stage: Stage::Embedding,
    op: None,
    seen_at: None,
    models: &[0, 1],
    layers: [0, 0],
    step: 0,
    scope: FaultScope::All,
    graded: false,
    tied: false,
    patterns: &[PatternKind::WholeTensor],
    explained: &[],
    says: &[],
    may_be_open: false,
};

impl Fault {
    /// The kind of the operation that errs.
    pub fn op(&self) -> OpKind {
        self.op.unwrap_or(self.stage.info().op)
    }
    /// The layer on a model.
    pub fn layer(&self, test_model: usize) -> usize {
        self.layers[test_model.min(1)]
    }
    /// The stage that must be named.
    pub fn seen_at(&self) -> Stage {
        self.seen_at.unwrap_or(self.stage)
    }
}

/// The whole table, in order.
pub fn all() -> impl Iterator<Item = &'static Fault> {
    let tables = [
        matrices::FAULTS,
        attention::FAULTS,
        experts::FAULTS,
        reported::FAULTS,
        missed::FAULTS,
        ported::FAULTS,
        unlisted::FAULTS,
        families::FAULTS,
        gpt_oss::FAULTS,
        glm4moe::FAULTS,
        linear_attention::FAULTS,
        deepseek::FAULTS,
    ];
    tables.into_iter().flatten()
}

/// Faults that are planted together in one run: in other stages, layers, steps, or on both sides.
pub static TOGETHER: &[(&str, &[&str])] = &[
    ("two-stages", &["rope-pairing", "expert-offset"]),
    ("two-sides", &["int8-reference", "residual-dropped"]),
    ("both-wrong", &["int8-reference", "down-k-tail"]),
    ("both-eps", &["eps-subject", "eps-reference"]),
    // In three layers of the demo model, each on its own stage.
    ("three-stages", &["scale-missing", "rope-pairing", "expert-offset"]),
    ("three-sides", &["gate-up-swapped", "int8-reference", "residual-dropped"]),
    // In the prompt, at the first decoded token and at the second.
    ("three-steps", &["k-tail", "kv-stale", "down-k-tail-decode"]),
];

/// The fault called `name`.
///
/// # Panics
/// If there is none: the names are the table's own.
pub fn named(name: &str) -> &'static Fault {
    all().find(|f| f.name == name).unwrap_or_else(|| panic!("no fault {name:?} in the table"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_those_of_a_run_exist() {
        let names: Vec<&str> = all().map(|f| f.name).chain(TOGETHER.iter().map(|t| t.0)).collect();
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        assert!(names.len() >= 24);
        TOGETHER.iter().flat_map(|t| t.1).for_each(|name| assert!(!named(name).what.is_empty()));
        assert!(all().all(|f| f.layers[0] < 4 && f.layers[1] < 2 && !f.patterns.is_empty()));
    }
}
