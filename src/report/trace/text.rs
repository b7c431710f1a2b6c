//! The trace as a person reads it: a row a stage, grouped by layer, or for deep models a row a stage and a column a layer.

use std::fmt::Write;

use super::TraceReport;
use crate::op::{STAGES, Scope};
use crate::report::format::{cut, time};
use crate::report::text::WIDTH;
use crate::text::{count, printable};
use crate::trace::stats::{StageStats, Summary};

/// Layers side by side in the overview: with 15 columns of name, 8 of 11 make 103.
const ABREAST: usize = 8;

pub fn render(report: &TraceReport<'_>, full: bool) -> String {
    let mut out = String::new();
    heading(&mut out, report);
    if full {
        every_figure(&mut out, report);
    } else {
        overview(&mut out, report);
    }
    ending(&mut out, report);
    out
}

fn heading(out: &mut String, report: &TraceReport<'_>) {
    let (config, captured) = (&report.model.config, &report.captured);
    let layers = count(config.layers, "layer");
    let _ = write!(out, "{} · {} · {layers}", printable(&config.name), config.architecture.name);
    if let Some(moe) = &config.moe {
        let _ = write!(out, " · {}, {} used", count(moe.experts, "expert"), moe.used);
    }
    let tokens = captured.tokens.len();
    let _ = write!(out, " · {}", count(tokens, "token"));
    if tokens > report.prompt_tokens {
        let _ = write!(out, ", {} of them decoded", tokens - report.prompt_tokens);
    }
    match &report.prompt {
        Some(prompt) => {
            let short: String = prompt.chars().take(40).collect();
            let more = if short.len() < prompt.len() { "…" } else { "" };
            let _ = writeln!(out, ": \"{}{more}\"", printable(&short));
        }
        None => out.push('\n'),
    }
    let b = &captured.backend;
    let software = if b.software { ", software adapter" } else { "" };
    let _ = writeln!(out, "backend    {} · {}{software} · {}", b.backend, printable(&b.adapter), b.contract);
    let _ = match report.equal_positions() {
        Some(n) => {
            writeln!(out, "positions  every stage was seen at the same {n}; figures are of the last, {}", tokens - 1)
        }
        None => writeln!(out, "positions  NOT THE SAME for every stage, see --json; figures are of each stage's last"),
    };
    if let Some(bad) = &captured.recorder.not_finite {
        let _ = writeln!(
            out,
            "\nNOT FINITE   first at {}, position {}: {} NaN and {} infinite of {}",
            bad.site, bad.position, bad.nan, bad.inf, bad.count
        );
    }
}

/// A row for each stage of each layer.
fn every_figure(out: &mut String, report: &TraceReport<'_>) {
    let columns = |out: &mut String, title: &str| {
        let _ = writeln!(out, "\n{title:<17}{:>11}{:>12}{:>12}{:>12}{:>12}", "l2", "mean", "std", "min", "max");
    };
    let row = |out: &mut String, stage: &str, stats: &StageStats| {
        let s = &stats.last;
        let _ = write!(out, "  {stage:<15}");
        let _ = write!(out, "{:>11}{:>12}{:>12}", figure(s.l2), figure(s.mean), figure(s.std));
        let _ = writeln!(out, "{:>12}{:>12}{}", figure(s.min), figure(s.max), flag(stats));
    };
    for layer in 0..report.model.config.layers as u32 {
        columns(out, &format!("layer {layer}"));
        for (site, stats) in report.of_layer(Some(layer)) {
            // The l2 of ids means nothing; which experts they are does.
            let routing = report.captured.recorder.routing.get(&layer).filter(|_| site.stage.is_ids());
            match routing {
                Some(routing) => {
                    let list: Vec<_> = (routing.experts.iter().zip(&routing.weights))
                        .map(|(id, weight)| format!("{id} ({weight:.3})"))
                        .collect();
                    let _ = writeln!(out, "  {:<15}  {}", site.stage.name(), list.join("  "));
                }
                None => row(out, site.stage.name(), stats),
            }
        }
    }
    columns(out, "whole model");
    for (site, stats) in report.of_layer(None) {
        row(out, site.stage.name(), stats);
    }
}

/// The l2 of each stage, layers side by side.
fn overview(out: &mut String, report: &TraceReport<'_>) {
    let layers = report.model.config.layers;
    let _ = writeln!(out, "\nl2 of the last position; `--full` prints every figure");
    for first in (0..layers).step_by(ABREAST) {
        let abreast = first..(first + ABREAST).min(layers);
        let _ = write!(out, "\n{:<15}", "layer");
        for layer in abreast.clone() {
            let _ = write!(out, "{layer:>11}");
        }
        out.push('\n');
        for stage in STAGES.iter().filter(|s| s.scope != Scope::Model && !s.stage.is_ids()) {
            let of = |layer: usize| report.of_layer(Some(layer as u32)).find(|(site, _)| site.stage == stage.stage);
            if abreast.clone().all(|layer| of(layer).is_none()) {
                continue;
            }
            let _ = write!(out, "{:<15}", stage.name);
            for layer in abreast.clone() {
                let cell = of(layer).map_or("–".to_string(), |(_, stats)| {
                    if bad(&stats.all) > 0 { format!("!{} bad", bad(&stats.all)) } else { figure(stats.last.l2) }
                });
                let _ = write!(out, "{cell:>11}");
            }
            out.push('\n');
        }
    }
    let _ = writeln!(out, "\nwhole model");
    for (site, stats) in report.of_layer(None) {
        let _ = writeln!(out, "{:<15}{:>11}{}", site.stage.name(), figure(stats.last.l2), flag(stats));
    }
}

fn ending(out: &mut String, report: &TraceReport<'_>) {
    let _ = writeln!(out, "\nnext token after position {}", report.captured.tokens.len() - 1);
    if report.top.is_empty() {
        let _ = writeln!(out, "  none: no logit is finite");
    }
    for t in report.top.iter().take(5) {
        let text = t.text.as_ref().map_or(String::new(), |text| format!("  \"{}\"", printable(text)));
        let _ = writeln!(out, "  {:>7}  logit {:>9}  {:>6.2} %{text}", t.id, figure(Some(t.logit)), 100.0 * t.prob);
    }
    if let Some((dir, manifest)) = &report.saved {
        let _ = writeln!(out, "\nsaved      {} in {}", count(manifest.tensors.len(), "tensor"), dir.display());
        for missing in &manifest.missing {
            let _ = writeln!(out, "not saved  {}: {}", missing.key, missing.why);
        }
    }
}

/// One line of many prompts: what goes on, and the first values that are not finite.
pub fn line(report: &TraceReport<'_>, index: usize, id: &str, seconds: f64) -> String {
    let next = report.top.first().map_or("none: no logit is finite".to_string(), |t| {
        let text = t.text.as_ref().map_or(String::new(), |text| format!(" \"{}\"", printable(text)));
        format!("next {}{text} {:.1} %", t.id, 100.0 * t.prob)
    });
    let first = report.statistics.iter().find(|(_, stats)| bad(&stats.all) > 0);
    let first = first.map_or(String::new(), |(site, stats)| {
        format!(" · {}: {} NaN, {} infinite", site.key(), stats.all.nan_count, stats.all.inf_count)
    });
    let id = format!("{:16}", cut(&printable(id), 16));
    let line =
        format!("{:>6}  {id}  {:>6}  {:9}  {next}{first}", index + 1, report.captured.tokens.len(), time(seconds));
    cut(&line, WIDTH) + "\n"
}

fn bad(summary: &Summary) -> u64 {
    summary.nan_count + summary.inf_count
}

/// What is to be said loudly of a stage: values that are not finite, at the last position or at any.
fn flag(stats: &StageStats) -> String {
    let (last, all) = (&stats.last, &stats.all);
    match (bad(last), bad(all)) {
        (_, 0) => String::new(),
        (0, _) => format!("  <-- {} NaN, {} infinite at other positions", all.nan_count, all.inf_count),
        _ => format!("  <-- {} NaN, {} infinite of {}", last.nan_count, last.inf_count, last.count),
    }
}

/// Four significant digits, in at most ten characters.
fn figure(x: Option<f64>) -> String {
    let Some(x) = x else { return "none".into() };
    let magnitude = x.abs();
    if x == 0.0 {
        "0".into()
    } else if (1e-3..1e5).contains(&magnitude) {
        let decimals = 3 - magnitude.log10().floor() as i32;
        format!("{x:.*}", decimals.max(0) as usize)
    } else {
        format!("{x:.3e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_not_finite_are_loud() {
        let summary = |nan_count, inf_count| Summary {
            count: 256,
            min: None,
            max: None,
            mean: None,
            std: None,
            l2: None,
            nan_count,
            inf_count,
            zero_count: 0,
        };
        let flagged = |last, all| flag(&StageStats { last_position: 1, positions: 2, last, all });
        assert_eq!(flagged(summary(0, 0), summary(0, 0)), "");
        assert_eq!(flagged(summary(3, 1), summary(9, 1)), "  <-- 3 NaN, 1 infinite of 256");
        assert_eq!(flagged(summary(0, 0), summary(9, 0)), "  <-- 9 NaN, 0 infinite at other positions");
    }

    #[test]
    fn figures_have_four_digits() {
        let cases = [
            (0.0, "0"),
            (1.0, "1.000"),
            (-12.345678, "-12.35"),
            (99999.4, "99999"),
            (123456.0, "1.235e5"),
            (0.0012345, "0.001234"),
            (-0.00012345, "-1.234e-4"),
            (1e300, "1.000e300"),
        ];
        for (x, text) in cases {
            assert_eq!(figure(Some(x)), text);
        }
        assert_eq!(figure(None), "none");
    }
}
