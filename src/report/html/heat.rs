//! The heat map: layers × stages, own error over its floor as colour, or the difference where there is no floor, each cell a link to its row in the tables below.

use std::collections::BTreeMap;

use super::super::facts::place;
use super::super::format::{scientific, short};
use super::super::grid::{Cell, Grid};
use super::super::markup::escape;
use super::scale::{ERROR_NAMES, RATIO_NAMES, error_step, legend, ratio_step};
use crate::diff::outcome::{Comparison, StageResult};
use crate::op::{STAGES, Scope, Site, Stage};

/// The worst of a site's steps, and how many there are.
pub struct WorstStep<'c> {
    pub stage: &'c StageResult,
    pub steps: usize,
}

/// Each site's worst step: what a cell, and a row of the tables, is of. Decoding makes a result a token, of which a page cannot have
/// all.
pub fn worst_of_each(c: &Comparison) -> BTreeMap<Site, WorstStep<'_>> {
    let mut worst: BTreeMap<Site, WorstStep<'_>> = BTreeMap::new();
    let key = |s: &StageResult| (Cell::of(s), s.ratio.map_or(-1.0, |r| if r.is_nan() { f64::INFINITY } else { r }));
    for stage in &c.stages {
        let entry = worst.entry(stage.site).or_insert(WorstStep { stage, steps: 0 });
        entry.steps += 1;
        let (old, new) = (key(entry.stage), key(stage));
        if new.0.cmp(&old.0).then(new.1.total_cmp(&old.1)).is_gt() {
            entry.stage = stage;
        }
    }
    worst
}

/// The name of a site's row.
pub fn anchor(site: Site) -> String {
    match site.layer {
        Some(n) => format!("s-{n}-{}", site.stage),
        None => format!("s-{}", site.stage),
    }
}

/// How a cell is shown: the class of its colour, and the mark that says the same.
pub fn look(s: &StageResult) -> (String, &'static str) {
    let step = |otherwise| s.ratio.map_or(otherwise, ratio_step);
    // Where nothing is known of floors, by how far the sides are apart.
    let apart = s.total.metrics().filter(|_| s.ratio.is_none()).map(|m| format!("q{}", error_step(m.nmse.sqrt())));
    match Cell::of(s) {
        Cell::Absent => (String::new(), ""),
        Cell::Hidden => ("hidden".into(), "~"),
        Cell::NotCompared => ("not".into(), "–"),
        Cell::Fine => (apart.unwrap_or_else(|| format!("h{}", step(0))), ""),
        Cell::Inherits => (format!("h{} inh", step(0)), "↓"),
        Cell::Differs => (apart.unwrap_or_else(|| "h5".into()), "≠"),
        Cell::Injects => (format!("h{}", step(6).max(4)), "×"),
        Cell::NonFinite => ("h7".into(), "!"),
    }
}

/// What the cell says when it is pointed at or read out.
fn words(worst: &WorstStep<'_>) -> String {
    let s = worst.stage;
    let amount = match (s.ratio, s.total.metrics()) {
        (Some(ratio), _) => format!("{} × floor, ", short(ratio)),
        (None, Some(m)) => format!("nmse {}, ", scientific(m.nmse)),
        (None, None) => String::new(),
    };
    let of = if worst.steps > 1 { format!(", the worst of {}", worst.steps) } else { String::new() };
    format!("{}: {amount}{}{of}", place(s), Cell::of(s).meaning())
}

fn cell(worst: Option<&WorstStep<'_>>, edge: bool, first: Option<Site>) -> String {
    let edge = if edge { " e" } else { "" };
    let Some(worst) = worst else { return format!("<td class=\"no{edge}\"></td>") };
    let (class, mark) = look(worst.stage);
    let site = worst.stage.site;
    let ring = if first == Some(site) { " first" } else { "" };
    let text = escape(&words(worst));
    // A mark alone would be what is read out.
    let label = if mark.is_empty() { String::new() } else { format!(" aria-label=\"{text}\"") };
    format!("<td class=\"{class}{edge}{ring}\"><a href=\"#{}\" title=\"{text}\"{label}>{mark}</a></td>", anchor(site))
}

/// The section.
pub fn section(c: &Comparison, worst: &BTreeMap<Site, WorstStep<'_>>) -> String {
    let first = c.fault().or(c.visible().filter(|_| !c.agrees())).map(|s| s.site);
    let occurs = |stage: Stage| worst.keys().any(|site| site.stage == stage && site.layer.is_some());
    let columns: Vec<_> = STAGES.iter().filter(|s| s.scope != Scope::Model && occurs(s.stage)).collect();
    // A group of columns begins where the column of the text's picture does.
    let edge = |i: usize| {
        let before = i.checked_sub(1).map(|i| columns[i].column);
        Grid::begins_group(columns[i].column) && before != Some(columns[i].column)
    };
    let mut layers: Vec<u32> = worst.keys().filter_map(|site| site.layer).collect();
    layers.dedup();
    let floors = worst.values().any(|w| w.stage.ratio.is_some());
    let (title, scale) = match floors {
        true => ("Own error of every stage, over its floor", "Up to 1 × floor is what rounding explains."),
        false => ("How far every stage is apart", "The colour is the relative error, each side on its own inputs."),
    };
    let mut out = format!(
        "<section id=\"map\"><h2>{title}</h2>\n\
         <p class=\"hint\">A row a layer, a column a stage, in order of execution. {scale} \
         A cell leads to its figures; with the keyboard, arrows move and Enter follows.</p>\n",
    );
    let whole = |stages: &[Stage]| {
        let of = stages.iter().filter_map(|stage| worst.get(&Site::model(*stage)));
        let chip = |w: &WorstStep<'_>| {
            format!("<td class=\"name\">{}</td>{}", w.stage.site.stage, cell(Some(w), false, first))
        };
        let cells: String = of.map(chip).collect();
        if cells.is_empty() { cells } else { format!("<table class=\"heat whole\"><tr>{cells}</tr></table>\n") }
    };
    out += &whole(&[Stage::Embedding]);
    if !columns.is_empty() {
        let names = columns.iter().enumerate().map(|(i, s)| {
            let edge = if edge(i) { " class=\"e\"" } else { "" };
            format!("<th scope=\"col\"{edge}><span>{}</span></th>", s.name)
        });
        out += &format!(
            "<table class=\"heat\" id=\"heat\">\n<thead><tr><td></td>{}</tr></thead>\n<tbody>\n",
            names.collect::<String>()
        );
        for layer in &layers {
            let cells = columns
                .iter()
                .enumerate()
                .map(|(i, s)| cell(worst.get(&Site { layer: Some(*layer), stage: s.stage }), edge(i), first));
            out += &format!("<tr><th scope=\"row\">{layer}</th>{}</tr>\n", cells.collect::<String>());
        }
        out += "</tbody></table>\n";
    }
    out += &whole(&[Stage::FinalNorm, Stage::Logits]);
    out += &if floors { legend('h', &RATIO_NAMES) } else { legend('q', &ERROR_NAMES) };
    let marks: Vec<String> = marks(worst).into_iter().map(|(mark, what)| format!("<b>{mark}</b> {what}")).collect();
    if !marks.is_empty() {
        out += &format!("<p class=\"hint\">{}</p>\n", marks.join(" · "));
    }
    out + "</section>\n"
}

/// The marks that occur, with what they mean.
fn marks(worst: &BTreeMap<Site, WorstStep<'_>>) -> BTreeMap<&'static str, &'static str> {
    let of = worst.values().map(|w| (look(w.stage).1, Cell::of(w.stage).meaning()));
    of.filter(|(mark, _)| !mark.is_empty()).collect()
}
