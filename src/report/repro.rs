//! What both commands found, for people.

use crate::backend::BackendInfo;
use crate::diff::locate::Pattern;
use crate::report::format::{shape, short};
use crate::repro::ReproVerdict;
use crate::repro::manifest::{InTheRun, Reference, Shrinking};
use crate::repro::verdict::Figures;
use crate::text::{count, printable, printable_whole};
use serde::Serialize;
use std::path::PathBuf;

/// What both commands found.
#[derive(Serialize)]
pub struct ReproDocument {
    pub schema: &'static str,
    /// `make` or `run`.
    pub action: &'static str,
    pub layer: Option<u32>,
    pub stage: String,
    pub verdict: ReproVerdict,
    pub subject: BackendInfo,
    /// Shape of the result that was run alone.
    pub shape: Vec<usize>,
    /// Alone; `null` where the stage does not fail in the run.
    pub alone: Option<Figures>,
    /// Of the error alone, in the coordinates of the case.
    pub pattern: Option<Pattern>,
    pub in_the_run: InTheRun,
    pub reference: Option<Reference>,
    pub shrinking: Option<Shrinking>,
    pub kernels: Vec<String>,
    /// The folder, where there is one.
    pub folder: Option<PathBuf>,
    pub notes: Vec<String>,
}

pub const SCHEMA: &str = "twinscope.repro-result/1";

pub fn render(d: &ReproDocument) -> String {
    let site = d.layer.map_or(d.stage.clone(), |n| format!("layer {n} · {}", d.stage));
    let figures = d.alone.as_ref().unwrap_or(&d.in_the_run.figures);
    let verdict = match d.verdict {
        ReproVerdict::SubjectWrong => "the subject is wrong",
        ReproVerdict::OnlyInTheRun => "the subject is wrong in the run, and right when the operation runs alone",
        ReproVerdict::Ok => "the subject agrees",
    };
    let headline = if d.verdict == ReproVerdict::OnlyInTheRun { &d.in_the_run.figures } else { figures };
    let mut out = format!("{site} · {verdict} · {}\n", ratio(headline));
    let mut line = |name: &str, text: String| out += &format!("  {name:<11}{text}\n");
    let software = if d.subject.software { " (software adapter)" } else { "" };
    line("subject", format!("{} · {}{software}", printable(&d.subject.backend), printable(&d.subject.adapter)));
    if let Some(pattern) = &d.in_the_run.pattern {
        line(
            "in the run",
            format!(
                "{} of {} values wrong: {}",
                d.in_the_run.figures.beyond,
                shape(&d.in_the_run.shape),
                printable_whole(pattern)
            ),
        );
    }
    if let Some(alone) = &d.alone {
        let pattern =
            d.pattern.as_ref().filter(|_| alone.elements > 1).map_or(String::new(), |p| format!(": {}", p.description));
        line("alone", format!("{} of {} values wrong, {}{pattern}", alone.beyond, shape(&d.shape), ratio(alone)));
    }
    if let Some(worst) = &figures.worst {
        line("worst", worst.to_string());
    }
    if let Some(reference) = &d.reference {
        line(
            "reference",
            format!("{}: {} on the same operands", printable(&reference.info.backend), ratio(&reference.figures)),
        );
    }
    if let Some(s) = d.shrinking.filter(|s| s.runs > 0) {
        let stopped = if s.stopped { ", all that --runs allows: it may be smaller" } else { "" };
        line(
            "shrunk",
            format!("{} → {} in {}{stopped}", shape(&d.in_the_run.shape), shape(&d.shape), count(s.runs, "run")),
        );
    }
    if !d.kernels.is_empty() {
        line("kernels", d.kernels.join(", "));
    }
    for note in &d.notes {
        line("note", printable_whole(note));
    }
    match (d.action, d.verdict, &d.folder) {
        ("make", _, Some(folder)) => {
            line("folder", printable_whole(&folder.display().to_string()));
            line("next", format!("twinscope repro run {}", printable_whole(&folder.display().to_string())));
        }
        ("make", ReproVerdict::Ok, None) => line("", "there is nothing to reproduce; --keep writes it anyway".into()),
        ("make", _, None) => {
            line("", "no folder: what is wrong is not the operation itself but what surrounds it, such as".into());
            line("", "the order of dispatches or a buffer that is used twice; --keep writes it anyway".into());
        }
        _ => {}
    }
    out
}

fn ratio(figures: &Figures) -> String {
    match figures.ratio {
        Some(ratio) => format!("{} × floor", short(ratio)),
        None if figures.non_finite > 0 => "not finite".into(),
        None => "where no error is allowed".into(),
    }
}
