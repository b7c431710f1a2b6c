//! The report for people: a picture of every layer, the first fault, the stages, the routers, the logits.
//!
//! Design:
//! - Fits [`WIDTH`] columns. What is longer is wrapped or cut, never left to the terminal.
//! - The picture is one character a layer and column of the stage table, the worst of what is there. Equal layers in a row
//!   share a line.
//! - Colour only repeats what the characters say.

mod routing;
#[cfg(test)]
mod tests;

use textwrap::WordSplitter;

use super::facts::{further_faults, provenance, side, stage_cells, summary as summary_of, verdict_facts};
use super::format::{cut, scientific, short, width};
use super::grid::{Cell, Grid};
use crate::diff::measure::attribution::by_type;
use crate::diff::outcome::{Comparison, ComparisonKind, StageResult, Verdict};
use crate::environment::Environment;
use crate::text::{count, printable, printable_whole};
use routing::{logits, routers};

/// Columns that the report keeps to.
pub const WIDTH: usize = 100;
/// Stages, and flips, that are listed unless all are asked for.
const SHORT_LIST: usize = 12;

/// How to print.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Whether to colour it.
    pub color: bool,
    /// Every stage in order of execution, every flip, every expert's load.
    pub full: bool,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
    fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }
    fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }
    fn green(self, text: &str) -> String {
        self.paint("1;32", text)
    }
    fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }
}

/// The whole report, with a newline at its end.
pub fn render(c: &Comparison, style: Style) -> String {
    let parts = [
        header(c, style),
        painted_picture(c, style),
        verdict(c, style),
        stages(c, style),
        types(c, style),
        routers(c, style),
        logits(c, style),
    ];
    let mut text = parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("\n");
    // The short answer comes last, where a reader of a long listing is.
    text.push('\n');
    text.push_str(&summary(c, style));
    text
}

// ---------------------------------------------------------------------------------------------------------------------
// Header

fn header(c: &Comparison, style: Style) -> String {
    let m = &c.model;
    let mut first = format!("{} · {} · {}", printable(&m.name), printable(&m.architecture), count(m.layers, "layer"));
    if m.experts > 0 {
        first += &format!(" · {}, {} used", count(m.experts, "expert"), m.experts_used);
    }
    first += &format!(" · {}", count(c.tokens, "token"));
    if c.decode > 0 {
        first += &format!(" and {} decoded", c.decode);
    }
    if let Some(prompt) = &c.prompt {
        first += &format!(": \"{}\"", printable(prompt));
    }
    let mut out = style.bold(&cut(&first, WIDTH)) + "\n";
    out += &field("reference", &side(&c.reference));
    out += &field("subject", &side(&c.subject));
    let judge = match (&c.judge, c.kind) {
        (Some(judge), _) => printable_whole(judge),
        (None, ComparisonKind::Diff) => "none: which side is wrong is not said".into(),
        (None, ComparisonKind::Compare) => {
            "none: two recordings, nothing is run again; own errors are not known".into()
        }
    };
    out += &field("judge", &judge);
    for note in &c.notes {
        out += &field("note", &printable_whole(note));
    }
    out
}

/// A name and a text, wrapped under itself.
pub(in crate::report) fn field(name: &str, text: &str) -> String {
    indented(&format!("{name:<11}"), text)
}

/// `text` after `start`, wrapped under its own beginning.
fn indented(start: &str, text: &str) -> String {
    let under = " ".repeat(width(start));
    let options = textwrap::Options::new(WIDTH).initial_indent(start).subsequent_indent(&under);
    textwrap::fill(text, options.word_splitter(WordSplitter::NoHyphenation)) + "\n"
}

/// What made the comparison, when, how and on what: for a report that is kept, and for whom it is given to.
pub fn made_with(c: &Comparison) -> String {
    provenance(c, &Environment::here()).iter().map(|(name, text)| field(name, text)).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Picture

fn mark(cell: Cell, style: Style) -> String {
    let symbol = cell.symbol().to_string();
    match cell {
        Cell::Inherits => style.yellow(&symbol),
        Cell::Differs | Cell::Injects | Cell::NonFinite => style.red(&symbol),
        _ => symbol,
    }
}

/// The picture without colour.
pub(super) fn picture(c: &Comparison) -> String {
    painted_picture(c, Style::default())
}

fn painted_picture(c: &Comparison, style: Style) -> String {
    let grid = Grid::of(c);
    let margin = grid.rows.iter().map(|r| width(&r.label())).max().unwrap_or(0).max(10);
    let bar = |column: &str| if Grid::begins_group(column) { " | " } else { " " };
    let mut out = String::new();
    if !grid.rows.is_empty() {
        let names: String = grid.columns.iter().map(|c| format!("{}{}", bar(c), Grid::title(c))).collect();
        out += &format!("{:margin$}{names}\n", "");
    }
    for row in &grid.rows {
        let label = row.label();
        out += &format!("{label}{:pad$}", "", pad = margin - width(&label));
        for (column, cell) in grid.columns.iter().zip(&row.cells) {
            // The mark stands in the middle of the column's name.
            let (room, bar) = (Grid::title(column).len(), bar(column));
            let (left, mark) = (room / 2, mark(*cell, style));
            out += &format!("{bar}{:left$}{mark}{:right$}", "", "", right = room - left - 1);
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    if !grid.whole.is_empty() {
        let cells: Vec<String> =
            grid.whole.iter().map(|(name, cell)| format!("{name} {}", mark(*cell, style))).collect();
        out += &format!("{:<margin$} {}\n", "model", cells.join("   "));
    }
    let legend: Vec<String> = grid.legend().map(|cell| format!("{} {}", cell.symbol(), cell.meaning())).collect();
    if !legend.is_empty() {
        out += &format!("{:margin$} {}\n", "", legend.join("   "));
    }
    out
}

// ---------------------------------------------------------------------------------------------------------------------
// First fault

fn verdict(c: &Comparison, style: Style) -> String {
    let Some((title, first, facts)) = verdict_facts(c) else { return String::new() };
    let mut out = style.red(title) + &format!("  {first}\n");
    for (name, text) in facts {
        let start = format!("  {name:<11}");
        // A command is to be pasted, so it is one line, however long.
        out += &if name == "next" { format!("{start}{text}\n") } else { indented(&start, &text) };
    }
    let (further, rest) = further_faults(c);
    for (n, text) in further.iter().enumerate() {
        let title = "ALSO WRONG";
        let start = if n == 0 { style.red(title) } else { " ".repeat(width(title)) };
        // Colours take no columns.
        let wrapped = indented(&" ".repeat(width(title) + 2), text);
        out += &(start + &wrapped[width(title)..]);
    }
    if rest > 0 {
        out += &format!("{:12}and {}\n", "", count(rest, "more fault"));
    }
    out
}

// ---------------------------------------------------------------------------------------------------------------------
// Stages

/// How bad a stage is, for the short list: failures, then faults, then by ratio, then by error.
fn badness(s: &StageResult) -> (bool, bool, f64, f64) {
    let nan_last = |x: f64| if x.is_nan() { f64::INFINITY } else { x };
    let nmse = s.own().metrics().map_or(0.0, |m| m.nmse);
    (s.own().mismatch().is_some(), s.verdict.is_fault(), s.ratio.map_or(0.0, nan_last), nan_last(nmse))
}

/// The worst of the stages that were compared, and how many were; of all, where none was. What a trace lacks is counted below the
/// list, and would only push what there is to see out of it.
pub(super) fn worst(c: &Comparison) -> (Vec<&StageResult>, usize) {
    let mut listed: Vec<&StageResult> = c.stages.iter().filter(|s| s.verdict.was_compared()).collect();
    if listed.is_empty() {
        listed = c.stages.iter().filter(|s| s.verdict != Verdict::Hidden).collect();
    }
    let all = listed.len();
    if all > SHORT_LIST {
        listed.sort_by(|a, b| {
            let ((f1, v1, r1, e1), (f2, v2, r2, e2)) = (badness(a), badness(b));
            (f2, v2).cmp(&(f1, v1)).then(r2.total_cmp(&r1)).then(e2.total_cmp(&e1))
        });
        listed.truncate(SHORT_LIST);
    }
    (listed, all)
}

fn stages(c: &Comparison, style: Style) -> String {
    let (mut listed, mut all) = worst(c);
    let (compared, not) = c.counts();
    let partial = not > 0 && compared > 0 && !style.full;
    if style.full {
        listed = c.stages.iter().filter(|s| s.verdict != Verdict::Hidden).collect();
        all = listed.len();
    }
    if listed.is_empty() {
        return String::new();
    }
    let shown = match (partial, c.hidden() > 0) {
        (true, _) => " that were compared",
        (false, true) => " that are shown",
        (false, false) => "",
    };
    let title = if listed.len() == all {
        format!("STAGES  all {all}{shown} in order of execution")
    } else {
        format!("STAGES  the worst {SHORT_LIST} of {all}{shown}; --full lists all")
    };
    let steps = c.decode > 0;
    let step = |text: String| if steps { format!("{text:>4} ") } else { String::new() };
    let mut out = style.bold(&title) + "\n";
    out += &format!(
        "{}{:>5} {:<14} {:<7} {:<12} {:>8} {:>8} {:>8} {:>8}  verdict\n",
        step("step".into()),
        "layer",
        "stage",
        "type",
        "shape",
        "own",
        "total",
        "max abs",
        "× floor"
    );
    for s in listed {
        let verdict = match Cell::of(s) {
            Cell::Differs | Cell::Injects | Cell::NonFinite => style.red(&s.verdict.to_string()),
            Cell::Inherits => style.yellow(&s.verdict.to_string()),
            _ => s.verdict.to_string(),
        };
        let [layer, stage, qtype, shape, own, total, max_abs, ratio] = stage_cells(s);
        let shape = cut(&shape, 12);
        out += &step(s.step.to_string());
        out += &format!(
            "{layer:>5} {stage:<14} {qtype:<7} {shape:<12} {own:>8} {total:>8} {max_abs:>8} {ratio:>8}  {verdict}\n"
        );
    }
    out += "own: nmse of the subject against the reference on the subject's inputs; total: each on its own\n";
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for s in &c.stages {
        if let Verdict::NotCompared(why) = &s.verdict {
            match reasons.iter_mut().find(|(r, _)| *r == why) {
                Some((_, n)) => *n += 1,
                None => reasons.push((why, 1)),
            }
        }
    }
    for (why, n) in reasons {
        out += &indented(&format!("not compared: {}: ", count(n, "stage")), &printable_whole(why));
    }
    out
}

fn types(c: &Comparison, style: Style) -> String {
    if c.first_fault.is_none() && !style.full {
        return String::new();
    }
    let mut out = style.bold("BY TYPE OF WEIGHT") + "\n";
    for t in by_type(&c.stages) {
        let worst = match (t.worst_ratio, t.worst_stage) {
            (Some(ratio), Some(stage)) => {
                let layer = t.worst_layer.map_or(String::new(), |n| format!("layer {n} · "));
                format!(" · worst {} × floor, {layer}{stage}", short(ratio))
            }
            _ => String::new(),
        };
        let nmse = t.nmse.map_or("-".into(), scientific);
        let stages = count(t.stages, "stage");
        out += &format!(
            "{:<8} {stages:>12} · {} · nmse {nmse}{worst}\n",
            t.qtype.unwrap_or("none"),
            count(t.faults, "fault")
        );
    }
    out
}

// ---------------------------------------------------------------------------------------------------------------------
// Summary

fn summary(c: &Comparison, style: Style) -> String {
    let (verdict, text) = summary_of(c);
    let painted = if c.agrees() { style.green(verdict) } else { style.red(verdict) };
    indented(&format!("{verdict}  "), &text).replacen(verdict, &painted, 1)
}
