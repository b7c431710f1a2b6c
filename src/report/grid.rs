//! The picture: one character a layer and column of the stage table, the worst of what is there.

use std::collections::{BTreeSet, HashMap};

use crate::diff::measure::metrics::Mismatch;
use crate::diff::outcome::{Comparison, Measured, StageResult, Verdict};
use crate::op::{LayerLayout, STAGES, Scope};

/// What a cell shows, in ascending order of weight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// The layer has no such stage.
    Absent,
    /// A side does not show it: it is judged with the next stage that is shown.
    Hidden,
    Fine,
    NotCompared,
    Inherits,
    /// Over its limit, where nothing tells an own error from an inherited one.
    Differs,
    Injects,
    NonFinite,
}

impl Cell {
    pub fn of(s: &StageResult) -> Self {
        let non_finite = |m: &Measured| {
            matches!(m.mismatch(), Some(Mismatch::NonFinite { .. })) || m.metrics().is_some_and(|m| m.nmse.is_nan())
        };
        match &s.verdict {
            Verdict::NotCompared(_) => Cell::NotCompared,
            Verdict::Hidden => Cell::Hidden,
            _ if non_finite(&s.total) || s.injected.as_ref().is_some_and(non_finite) => Cell::NonFinite,
            _ if s.overflow.is_some() && !s.verdict.is_fault() => Cell::NonFinite,
            Verdict::Differs if s.injected.is_none() => Cell::Differs,
            v if v.is_fault() => Cell::Injects,
            Verdict::Inherits => Cell::Inherits,
            _ if s.visible => Cell::Inherits,
            _ => Cell::Fine,
        }
    }
    pub fn symbol(self) -> char {
        match self {
            Cell::Absent => ' ',
            Cell::Hidden => '~',
            Cell::Fine => '·',
            Cell::NotCompared => '-',
            Cell::Inherits => '▒',
            Cell::Differs => '▓',
            Cell::Injects => '█',
            Cell::NonFinite => '!',
        }
    }
    pub fn meaning(self) -> &'static str {
        match self {
            Cell::Absent => "no such stage",
            Cell::Hidden => "not shown, judged with what is",
            Cell::Fine => "fine",
            Cell::NotCompared => "not compared",
            Cell::Inherits => "inherits",
            Cell::Differs => "differs",
            Cell::Injects => "injects",
            Cell::NonFinite => "not finite",
        }
    }
}

/// Columns of the picture: those of the stage table, each once, in order.
fn columns(whole_model: bool) -> Vec<&'static str> {
    let mut columns: Vec<&str> = Vec::new();
    for s in STAGES.iter().filter(|s| (s.scope == Scope::Model) == whole_model) {
        if !columns.contains(&s.column) {
            columns.push(s.column);
        }
    }
    columns
}

/// The picture: a row for each layer, or run of equal layers.
pub struct Grid {
    pub columns: Vec<&'static str>,
    pub rows: Vec<GridRow>,
    /// The stages of the whole model.
    pub whole: Vec<(&'static str, Cell)>,
}

pub struct GridRow {
    pub from: u32,
    pub to: u32,
    pub cells: Vec<Cell>,
}

impl GridRow {
    pub fn label(&self) -> String {
        let GridRow { from, to, .. } = self;
        if from == to { format!("layer {from}") } else { format!("layers {from}–{to}") }
    }
}

impl Grid {
    pub fn of(c: &Comparison) -> Self {
        let mut worst: HashMap<(Option<u32>, &str), Cell> = HashMap::new();
        for s in &c.stages {
            let cell = worst.entry((s.site.layer, s.site.stage.info().column)).or_insert(Cell::Absent);
            *cell = Cell::of(s).max(*cell);
        }
        let cell = |layer, column| worst.get(&(layer, column)).copied().unwrap_or(Cell::Absent);
        // What only some models have is shown where it is there.
        let usual = |column: &str| {
            STAGES.iter().any(|s| s.column == column && s.scope.occurs(LayerLayout::QWEN3MOE))
                || worst.keys().any(|(layer, named)| layer.is_some() && *named == column)
        };
        let all: Vec<&str> = columns(false).into_iter().filter(|column| usual(column)).collect();
        let layers: BTreeSet<u32> = c.stages.iter().filter_map(|s| s.site.layer).collect();
        let mut rows: Vec<GridRow> = Vec::new();
        for n in layers {
            let cells: Vec<Cell> = all.iter().map(|column| cell(Some(n), *column)).collect();
            match rows.last_mut() {
                Some(row) if row.to + 1 == n && row.cells == cells => row.to = n,
                _ => rows.push(GridRow { from: n, to: n, cells }),
            }
        }
        let whole = columns(true).into_iter().map(|column| (column, cell(None, column)));
        Self { columns: all, rows, whole: whole.filter(|(_, cell)| *cell != Cell::Absent).collect() }
    }

    /// The kinds of cells that occur, ascending.
    pub fn legend(&self) -> impl Iterator<Item = Cell> {
        let cells = self.rows.iter().flat_map(|r| r.cells.iter().copied()).chain(self.whole.iter().map(|w| w.1));
        cells.filter(|c| *c != Cell::Absent).collect::<BTreeSet<_>>().into_iter()
    }

    /// A column's title is its last word: "ffn norm" stands behind a bar that says ffn.
    pub fn title(column: &str) -> &str {
        column.rsplit(' ').next().unwrap_or(column)
    }
    pub fn begins_group(column: &str) -> bool {
        column.contains(' ')
    }
}
