//! The picture: one character a layer and column of the stage table.

use super::super::format::width;
use super::Style;
use crate::diff::metrics::Mismatch;
use crate::diff::outcome::{Comparison, Measured, StageResult, Verdict};
use crate::stage::{STAGES, Scope};

/// What a cell shows, in ascending order of weight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cell {
    /// The layer has no such stage.
    Absent,
    Fine,
    NotCompared,
    Inherits,
    /// Over its limit, where nothing tells an own error from an inherited one.
    Differs,
    Injects,
    NonFinite,
}

impl Cell {
    pub(super) fn of(s: &StageResult) -> Self {
        let non_finite = |m: &Measured| {
            matches!(m.mismatch(), Some(Mismatch::NonFinite { .. })) || m.metrics().is_some_and(|m| m.nmse.is_nan())
        };
        match &s.verdict {
            Verdict::NotCompared(_) => Cell::NotCompared,
            _ if non_finite(&s.total) || s.injected.as_ref().is_some_and(non_finite) => Cell::NonFinite,
            Verdict::Differs if s.injected.is_none() => Cell::Differs,
            v if v.is_fault() => Cell::Injects,
            Verdict::Inherits => Cell::Inherits,
            _ if s.visible => Cell::Inherits,
            _ => Cell::Fine,
        }
    }
    fn mark(self, style: Style) -> String {
        match self {
            Cell::Absent => " ".into(),
            Cell::Fine => "·".into(),
            Cell::NotCompared => "-".into(),
            Cell::Inherits => style.yellow("▒"),
            Cell::Differs => style.red("▓"),
            Cell::Injects => style.red("█"),
            Cell::NonFinite => style.red("!"),
        }
    }
    fn meaning(self) -> &'static str {
        match self {
            Cell::Absent => "",
            Cell::Fine => "· fine",
            Cell::NotCompared => "- not compared",
            Cell::Inherits => "▒ inherits",
            Cell::Differs => "▓ differs",
            Cell::Injects => "█ injects",
            Cell::NonFinite => "! not finite",
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

pub(super) fn picture(c: &Comparison, style: Style) -> String {
    let cell = |layer: Option<u32>, column: &str| {
        let here = c.stages.iter().filter(|s| s.site.layer == layer && s.site.stage.info().column == column);
        here.map(Cell::of).max().unwrap_or(Cell::Absent)
    };
    let all = columns(false);
    let mut layers: Vec<u32> = c.stages.iter().filter_map(|s| s.site.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let mut rows: Vec<(u32, u32, Vec<Cell>)> = Vec::new();
    for n in layers {
        let cells: Vec<Cell> = all.iter().map(|column| cell(Some(n), column)).collect();
        match rows.last_mut() {
            Some((_, to, same)) if *to + 1 == n && *same == cells => *to = n,
            _ => rows.push((n, n, cells)),
        }
    }
    let label = |from: u32, to: u32| if from == to { format!("layer {from}") } else { format!("layers {from}–{to}") };
    let margin = rows.iter().map(|r| width(&label(r.0, r.1))).max().unwrap_or(0).max(10);
    // A column's name is its last word: "ffn norm" stands behind a bar that says ffn.
    let name = |column: &'static str| column.rsplit(' ').next().unwrap_or(column);
    let bar = |column: &str| if column.contains(' ') { " | " } else { " " };
    let mut out = String::new();
    if !rows.is_empty() {
        let names: String = all.iter().map(|column| format!("{}{}", bar(column), name(column))).collect();
        out += &format!("{:margin$}{names}\n", "");
    }
    let mut seen: Vec<Cell> = Vec::new();
    for (from, to, cells) in &rows {
        let label = label(*from, *to);
        out += &label;
        out += &" ".repeat(margin - width(&label));
        for (column, cell) in all.iter().zip(cells) {
            // The mark stands in the middle of the column's name.
            let (room, bar) = (name(column).len(), bar(column));
            let (left, mark) = (room / 2, cell.mark(style));
            out += &format!("{bar}{:left$}{mark}{:right$}", "", "", right = room - left - 1);
            seen.push(*cell);
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    let whole: Vec<(&str, Cell)> = columns(true)
        .into_iter()
        .map(|column| (column, cell(None, column)))
        .filter(|(_, cell)| *cell != Cell::Absent)
        .collect();
    if !whole.is_empty() {
        let cells: Vec<String> = whole.iter().map(|(name, cell)| format!("{name} {}", cell.mark(style))).collect();
        out += &format!("{:<margin$} {}\n", "model", cells.join("   "));
        seen.extend(whole.iter().map(|(_, cell)| *cell));
    }
    seen.sort_unstable();
    seen.dedup();
    let legend: Vec<&str> = seen.iter().map(|c| c.meaning()).filter(|m| !m.is_empty()).collect();
    if !legend.is_empty() {
        out += &format!("{:margin$} {}\n", "", legend.join("   "));
    }
    out
}
