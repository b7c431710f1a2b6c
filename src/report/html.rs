//! The report as one HTML file: no scripts, nothing loaded from elsewhere, readable without styles.
//!
//! Design:
//! - The picture, then the facts, then every stage, a closed section for each layer that opens where something is wrong.
//! - Colour repeats what the characters and words say; light and dark follow the reader's setting.

use super::facts::{count, flip, stage_cells, verdict_facts};
use super::format::{percent, scientific};
use super::grid::{Cell, Grid};
use super::markup::escape;
use crate::diff::outcome::{Comparison, ComparisonKind, SideSummary, StageResult, Verdict};

const STYLE: &str = include_str!("report.css");

/// The whole document.
pub fn render(c: &Comparison) -> String {
    let verb = match c.kind {
        ComparisonKind::Diff => "diff",
        ComparisonKind::Compare => "compare",
    };
    let verdict = if c.agrees() { "agree" } else { "diverged" };
    let title = format!("{} · twinscope {verb} · {verdict}", c.model.name);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        escape(&title)
    );
    out += &header(c, verdict);
    out += &picture(c);
    out += &facts(c);
    out += &stages(c);
    out += &routers(c);
    out += &logits(c);
    out + "</body>\n</html>\n"
}

fn class(cell: Cell) -> &'static str {
    match cell {
        Cell::Absent | Cell::Fine => "fine",
        Cell::Hidden | Cell::NotCompared => "not",
        Cell::Inherits => "inherits",
        Cell::Differs | Cell::Injects | Cell::NonFinite => "injects",
    }
}

/// Rows of a definition table.
fn definitions<'a>(rows: impl Iterator<Item = (&'a str, String)>) -> String {
    let rows: String = rows.map(|(k, v)| format!("<tr><th>{}</th><td>{}</td></tr>\n", escape(k), escape(&v))).collect();
    format!("<table class=\"facts\">\n{rows}</table>\n")
}

fn header(c: &Comparison, verdict: &str) -> String {
    let m = &c.model;
    let side = |s: &SideSummary| {
        let i = &s.info;
        let trace = s.trace.as_ref().map_or(String::new(), |t| format!("trace {t} · "));
        let software = if i.software { ", software adapter" } else { "" };
        format!("{trace}{} · {}{software} · {}", i.backend, i.adapter, i.contract)
    };
    let experts = match m.experts {
        0 => String::new(),
        n => format!(" · {n} experts, {} used", m.experts_used),
    };
    let (compared, not) = c.counts();
    let mut rows = vec![
        ("model", format!("{} · {} · {} layers{experts}", m.name, m.architecture, m.layers)),
        (
            "prompt",
            format!("{}{}", count(c.tokens, "token"), c.prompt.as_ref().map_or(String::new(), |p| format!(": {p}"))),
        ),
        ("reference", side(&c.reference)),
        ("subject", side(&c.subject)),
        ("judge", c.judge.clone().unwrap_or("none".into())),
        ("stages", format!("{compared} compared, {not} not")),
    ];
    if c.decode > 0 {
        rows.push(("decoded", count(c.decode, "token")));
    }
    rows.extend(c.notes.iter().map(|n| ("note", n.clone())));
    let class = if c.agrees() { "agree" } else { "injects" };
    format!("<h1>{} <span class=\"{class}\">{verdict}</span></h1>\n{}", escape(&m.name), definitions(rows.into_iter()))
}

fn picture(c: &Comparison) -> String {
    let grid = Grid::of(c);
    let edge = |column: &str| if Grid::begins_group(column) { " class=\"edge\"" } else { "" };
    let mut out = String::from("<table class=\"picture\">\n");
    if !grid.rows.is_empty() {
        let names: String = grid.columns.iter().map(|n| format!("<th{}>{}</th>", edge(n), Grid::title(n))).collect();
        out += &format!("<tr><th></th>{names}</tr>\n");
    }
    let cell = |column: &str, cell: Cell| {
        let edge = if Grid::begins_group(column) { " edge" } else { "" };
        format!("<td class=\"{}{edge}\" title=\"{column}: {}\">{}</td>", class(cell), cell.meaning(), cell.symbol())
    };
    for row in &grid.rows {
        let cells: String = grid.columns.iter().zip(&row.cells).map(|(n, c)| cell(n, *c)).collect();
        out += &format!("<tr><th>{}</th>{cells}</tr>\n", row.label());
    }
    out += "</table>\n";
    let whole: Vec<String> = grid
        .whole
        .iter()
        .map(|(name, c)| format!("{name} <span class=\"{}\">{}</span>", class(*c), c.symbol()))
        .collect();
    let legend: Vec<String> =
        grid.legend().map(|c| format!("<span class=\"{}\">{}</span> {}", class(c), c.symbol(), c.meaning())).collect();
    out + &format!("<p>{}</p>\n<p>{}</p>\n", whole.join(" · "), legend.join(" · "))
}

fn facts(c: &Comparison) -> String {
    let Some((title, first, facts)) = verdict_facts(c) else { return String::new() };
    let rows = definitions(facts.into_iter());
    format!("<h2><span class=\"injects\">{title}</span> {}</h2>\n{rows}", escape(&first))
}

fn stages(c: &Comparison) -> String {
    let mut out = String::from(
        "<h2>Stages</h2>\n<p>own: nmse of the subject against the reference on the subject's inputs; total: each on its own.</p>\n",
    );
    // Consecutive stages of one layer and step share a section.
    let mut sections: Vec<Vec<&StageResult>> = Vec::new();
    for s in &c.stages {
        match sections.last_mut() {
            Some(section) if (section[0].site.layer, section[0].step) == (s.site.layer, s.step) => section.push(s),
            _ => sections.push(vec![s]),
        }
    }
    for section in sections {
        let (layer, step) = (section[0].site.layer, section[0].step);
        let layer = layer.map_or("whole model".to_string(), |n| format!("layer {n}"));
        let title = if step == 0 { layer } else { format!("decoded token {step} · {layer}") };
        let worst = section.iter().map(|s| Cell::of(s)).max().unwrap_or(Cell::Absent);
        let open = if class(worst) == "injects" { " open" } else { "" };
        out += &format!(
            "<details{open}><summary>{title}: {} <span class=\"{}\">{}</span></summary>\n<table class=\"stages\">\n\
             <tr><th>stage</th><th>type</th><th>shape</th><th>own</th><th>total</th><th>max abs</th><th>× floor</th><th>verdict</th></tr>\n",
            count(section.len(), "stage"),
            class(worst),
            worst.meaning()
        );
        for s in section {
            let [_, cells @ ..] = stage_cells(s);
            let cells: String = cells.iter().map(|t| format!("<td>{}</td>", escape(t))).collect();
            let verdict = match &s.verdict {
                Verdict::NotCompared(why) => format!("not compared: {why}"),
                v => v.to_string(),
            };
            let where_ = s.pattern.as_ref().map_or(String::new(), |p| format!(" · {}", p.description));
            let text = escape(&format!("{verdict}{where_}"));
            out += &format!("<tr>{cells}<td class=\"{}\">{text}</td></tr>\n", class(Cell::of(s)));
        }
        out += "</table></details>\n";
    }
    out
}

fn routers(c: &Comparison) -> String {
    if c.routing.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<h2>Routers</h2>\n<table class=\"stages\">\n<tr><th>layer</th><th>tokens</th><th>overlap</th><th>same set</th><th>same order</th><th>flips</th></tr>\n",
    );
    for r in &c.routing {
        let step = if r.step == 0 { String::new() } else { format!("decoded token {} · ", r.step) };
        out += &format!("<tr><td>{step}layer {}</td>", r.layer);
        match &r.routing {
            Err(m) => out += &format!("<td class=\"injects\" colspan=\"5\">{}</td></tr>\n", escape(&m.to_string())),
            Ok(x) => {
                let class = if x.unexplained() > 0 { "injects" } else { "fine" };
                let flips: Vec<String> =
                    x.flips.iter().map(|f| escape(&format!("position {}: {}", f.position, flip(f)))).collect();
                let flips = if flips.is_empty() { "none".into() } else { flips.join("<br>") };
                out += &format!(
                    "<td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{flips}</td></tr>\n",
                    x.tokens,
                    percent(x.overlap),
                    percent(x.exact_set_rate),
                    percent(x.order_match_rate),
                );
            }
        }
    }
    out + "</table>\n"
}

fn logits(c: &Comparison) -> String {
    let Some(l) = &c.logits else { return String::new() };
    let rows = [
        (
            "KL",
            format!(
                "mean {}, 99.9 % {}, max {} nats",
                scientific(l.kld_mean),
                scientific(l.kld_p999),
                scientific(l.kld_max)
            ),
        ),
        ("same top-1", format!("{} of {}", l.same_top, l.positions)),
        ("RMS Δp", percent(l.rms_delta_p)),
        ("top-10 overlap", percent(l.top_k_overlap)),
    ];
    format!("<h2>Logits</h2>\n{}", definitions(rows.into_iter()))
}

#[cfg(test)]
mod tests {
    use super::super::sample::{agreeing, diverging};
    use super::*;

    /// Every element that is opened is closed, in order.
    fn balanced(html: &str) {
        let mut open: Vec<&str> = Vec::new();
        for tag in html.split('<').skip(1).map(|t| t.split('>').next().unwrap()) {
            let name = tag.split(' ').next().unwrap();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if ["!doctype", "meta", "br"].contains(&name) => {}
                None => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn one_file_that_says_the_same() {
        let html = render(&diverging());
        balanced(&html);
        for text in [
            "diverged</span>",
            "FIRST FAULT</span> layer 2 · expert_down · the subject is wrong · 3.7e4 × floor",
            "expert 3 only (11 of 34 rows)",
            "last block&#39;s scales read from the block before it",
            "title=\"attn: not finite\">!</td>",
            "not compared: the subject&#39;s trace lacks it",
            "<details open><summary>layer 2: 24 stages",
            "position 0: reference 1, subject 2",
        ] {
            assert!(html.contains(text), "{text}");
        }
        for outside in ["<script", "http:", "https:", "src=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn untrusted_text_stays_text() {
        let mut c = agreeing();
        c.model.name = "<script>alert(1)</script>".into();
        c.prompt = Some("</td><script>".into());
        let html = render(&c);
        balanced(&html);
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;alert"));
    }
}
