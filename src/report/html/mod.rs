//! The report as one HTML file, to be looked at: a map of every stage that leads to its figures, how errors grow, where a wrong stage
//! errs, what became of routers and logits.
//!
//! Design:
//! - Nothing is loaded from elsewhere, and the file says so itself: its content security policy forbids it.
//! - Without scripts all of it is there, in the same places. The script adds search, filters and arrow keys, and reads nothing but
//!   the page.
//! - Colour repeats what marks, titles and words say; the scales are in order of lightness. Light and dark follow the reader's setting.
//! - It stays small whatever the model: a cell a layer and stage, and every list has an end that it says (`detail`, `charts`).

mod charts;
mod detail;
mod heat;
mod scale;
#[cfg(test)]
mod tests;

use super::facts::{provenance, side, summary, verdict_facts};
use super::format::{percent, scientific};
use super::markup::escape;
use crate::diff::outcome::{Comparison, ComparisonKind};
use crate::environment::Environment;
use crate::text::count;

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

/// The whole document.
pub fn render(c: &Comparison) -> String {
    let verb = match c.kind {
        ComparisonKind::Diff => "diff",
        ComparisonKind::Compare => "compare",
    };
    let verdict = if c.agrees() { "agree" } else { "diverged" };
    let title = escape(&format!("{} · twinscope {verb} · {verdict}", c.model.name));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<a class=\"skip\" href=\"#map\">To the map</a>\n"
    );
    let worst = heat::worst_of_each(c);
    let parts = [
        ("fault", "Fault", fault(c)),
        ("map", "Map", heat::section(c, &worst)),
        ("growth", "Growth", charts::growth(c, &worst)),
        ("places", "Places", charts::places(c)),
        ("logits", "Logits", logits(c)),
        ("routers", "Routers", detail::routers(c)),
        ("stages", "Stages", detail::stages(&worst)),
        ("made", "Made with", made_with(c)),
    ];
    out += &header(c, verb, verdict);
    let there = parts.iter().filter(|(.., html)| !html.is_empty());
    let links = there.clone().map(|(id, name, _)| format!("<a href=\"#{id}\">{name}</a>"));
    out += &format!("<nav aria-label=\"Parts\">{}</nav>\n<main>\n", links.collect::<String>());
    there.for_each(|(.., html)| out += html);
    out + &format!("</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n")
}

/// A table of names and texts.
fn definitions<'a>(rows: impl Iterator<Item = (&'a str, String)>) -> String {
    let rows: String = rows
        .map(|(name, text)| format!("<tr><th scope=\"row\">{name}</th><td>{}</td></tr>\n", escape(&text)))
        .collect();
    format!("<table class=\"facts\">\n{rows}</table>\n")
}

fn header(c: &Comparison, verb: &str, verdict: &str) -> String {
    let m = &c.model;
    let experts = match m.experts {
        0 => String::new(),
        n => format!(" · {}, {} used", count(n, "expert"), m.experts_used),
    };
    let decoded = if c.decode > 0 { format!(" and {} decoded", c.decode) } else { String::new() };
    let prompt = c.prompt.as_ref().map_or(String::new(), |p| format!(": {p}"));
    let mut rows = vec![
        ("model", format!("{} · {} · {}{experts}", m.name, m.architecture, count(m.layers, "layer"))),
        ("prompt", format!("{}{decoded}{prompt}", count(c.tokens, "token"))),
        ("reference", side(&c.reference)),
        ("subject", side(&c.subject)),
        ("judge", c.judge.clone().unwrap_or("none".into())),
    ];
    rows.extend(c.notes.iter().map(|n| ("note", n.clone())));
    let (class, mark) = if c.agrees() { ("agree", "✓") } else { ("bad", "×") };
    let (_, why) = summary(c);
    format!(
        "<header>\n<p class=\"kicker\">twinscope {verb}</p>\n<h1>{} <span class=\"badge {class}\">{mark} {verdict}</span></h1>\n\
         <p class=\"lead\">{}.</p>\n{}</header>\n",
        escape(&m.name),
        escape(&why),
        definitions(rows.into_iter())
    )
}

fn fault(c: &Comparison) -> String {
    let Some((title, first, facts)) = verdict_facts(c) else { return String::new() };
    let site = c.fault().or(c.visible()).map(|s| heat::anchor(s.site)).unwrap_or_default();
    format!(
        "<section id=\"fault\" class=\"card\"><h2><span class=\"bad\">{title}</span> <a href=\"#{site}\">{}</a></h2>\n{}</section>\n",
        escape(&first),
        definitions(facts.into_iter())
    )
}

fn logits(c: &Comparison) -> String {
    let Some(l) = &c.logits else { return String::new() };
    let kl = format!(
        "mean {}, 99.9 % {}, max {} nats",
        scientific(l.kld_mean),
        scientific(l.kld_p999),
        scientific(l.kld_max)
    );
    let rows = [
        ("KL", kl),
        ("same top-1", format!("{} of {}", l.same_top, l.positions)),
        ("RMS Δp", percent(l.rms_delta_p)),
        ("top-10 overlap", percent(l.top_k_overlap)),
    ];
    format!(
        "<section id=\"logits\"><h2>Logits</h2>\n<div class=\"charts\"><div>{}</div>{}</div>\n{}</section>\n",
        definitions(rows.into_iter()),
        charts::divergences(c),
        detail::top_changes(c)
    )
}

fn made_with(c: &Comparison) -> String {
    let rows = provenance(c, &Environment::here());
    format!("<section id=\"made\"><h2>Made with</h2>\n{}</section>\n", definitions(rows.into_iter()))
}
