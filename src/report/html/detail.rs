//! The tables that the map leads to: every stage, the routers' flips, the logits' changes. Each bounded, and says what it leaves out.

use std::collections::BTreeMap;

use super::super::facts::{flip, stage_cells};
use super::super::format::{percent, scientific};
use super::super::grid::Cell;
use super::super::markup::escape;
use super::heat::{WorstStep, anchor, look};
use crate::diff::outcome::{Comparison, Verdict};
use crate::op::Site;
use crate::text::count;

/// Rows of flips, and of changes of the most probable token, that are listed.
const MOST_ROWS: usize = 200;

/// Every stage, a closed part for each layer that is open where something is wrong.
pub fn stages(worst: &BTreeMap<Site, WorstStep<'_>>) -> String {
    let mut out = String::from(
        "<section id=\"stages\"><h2>Stages</h2>\n\
         <form class=\"controls\" role=\"search\"><input type=\"search\" id=\"find\" placeholder=\"Find: expert_down, layer 2, Q4_K, wrong …\" aria-label=\"Find stages\">\n\
         <select id=\"kind\" aria-label=\"Which stages\"><option value=\"\">all stages</option><option value=\"fault\">adds an error</option>\
         <option value=\"inherits\">inherits one</option><option value=\"not\">not compared</option></select>\n\
         <output id=\"found\"></output></form>\n\
         <p class=\"hint\">own: nmse of the subject against the reference on the subject's inputs; total: each on its own inputs.</p>\n",
    );
    let mut parts: BTreeMap<(u8, u32), Vec<&WorstStep<'_>>> = BTreeMap::new();
    for (site, w) in worst {
        let part = match site.layer {
            Some(n) => (1, n),
            None if site.stage == crate::op::Stage::Embedding => (0, 0),
            None => (2, 0),
        };
        parts.entry(part).or_default().push(w);
    }
    for ((kind, layer), rows) in parts {
        let title = match kind {
            0 => "before the layers".to_string(),
            1 => format!("layer {layer}"),
            _ => "after the layers".to_string(),
        };
        let heaviest = rows.iter().map(|w| Cell::of(w.stage)).max().unwrap_or(Cell::Absent);
        let open = if matches!(heaviest, Cell::Differs | Cell::Injects | Cell::NonFinite) { " open" } else { "" };
        out += &format!(
            "<details{open}><summary>{title} <span class=\"{}\">{}</span></summary>\n<div class=\"scroll\"><table class=\"rows\">\n\
             <tr><th>stage</th><th>× floor</th><th>verdict</th><th>own</th><th>total</th><th>max abs</th><th>type</th><th>shape</th></tr>\n",
            if open.is_empty() { "quiet" } else { "bad" },
            if heaviest == Cell::Fine { count(rows.len(), "stage") + ", all fine" } else { heaviest.meaning().into() },
        );
        rows.iter().for_each(|w| out += &row(w, &title));
        out += "</table></div></details>\n";
    }
    out + "</section>\n"
}

fn row(worst: &WorstStep<'_>, part: &str) -> String {
    let s = worst.stage;
    let [_, stage, qtype, shape, own, total, max_abs, ratio] = stage_cells(s).map(|text| escape(&text));
    let kind = match Cell::of(s) {
        Cell::Differs | Cell::Injects | Cell::NonFinite => "fault",
        Cell::Inherits => "inherits",
        Cell::NotCompared | Cell::Hidden => "not",
        Cell::Absent | Cell::Fine => "fine",
    };
    let mut verdict = match &s.verdict {
        Verdict::NotCompared(why) => format!("not compared: {why}"),
        v => v.to_string(),
    };
    if let Some(p) = &s.pattern {
        verdict += &format!(" · {}", p.description);
    }
    if let Some(cause) = s.cause.as_ref().filter(|cause| cause.reproduced) {
        verdict += &format!(" · {}", cause.name);
    }
    if worst.steps > 1 {
        let step = if s.step == 0 { "the prompt".to_string() } else { format!("decoded token {}", s.step) };
        verdict += &format!(" ({step}, the worst of {})", worst.steps);
    }
    let (class, mark) = look(s);
    format!(
        "<tr id=\"{}\" data-kind=\"{kind}\" data-part=\"{part}\"><th scope=\"row\">{stage}</th><td><i class=\"dot {class}\">{mark}</i>{ratio}</td>\
         <td>{}</td><td>{own}</td><td>{total}</td><td>{max_abs}</td><td>{qtype}</td><td>{shape}</td></tr>\n",
        anchor(s.site),
        escape(&verdict),
    )
}

/// What the routers chose otherwise.
pub fn routers(c: &Comparison) -> String {
    if c.routing.is_empty() {
        return String::new();
    }
    let good: Vec<_> = c.routing.iter().filter_map(|r| r.routing.as_ref().ok().map(|x| (r, x))).collect();
    let flips: usize = good.iter().map(|(_, x)| x.flips.len()).sum();
    let unexplained: usize = good.iter().map(|(_, x)| x.unexplained()).sum();
    let tokens: usize = good.iter().map(|(_, x)| x.tokens).sum();
    let mut out = format!(
        "<section id=\"routers\"><h2>Routers</h2>\n<p>{} of experts compared; {}, {unexplained} of them not explained by rounding.</p>\n",
        count(tokens, "choice"),
        count(flips, "flip"),
    );
    let failed = c.routing.iter().filter_map(|r| r.routing.as_ref().err().map(|m| (r, m)));
    for (r, m) in failed.take(MOST_ROWS) {
        out += &format!("<p class=\"bad\">layer {}: {}</p>\n", r.layer, escape(&m.to_string()));
    }
    if flips > 0 {
        out += "<div class=\"scroll\"><table class=\"rows\">\n<tr><th>layer</th><th>position</th><th>flip</th></tr>\n";
        let all = good.iter().flat_map(|(r, x)| x.flips.iter().map(move |f| (r, f)));
        for (r, f) in all.take(MOST_ROWS) {
            let step = if r.step == 0 { String::new() } else { format!(", decoded token {}", r.step) };
            let class = if f.explained() { "" } else { " class=\"bad\"" };
            let words = escape(&flip(f));
            out += &format!(
                "<tr><th scope=\"row\">{}{step}</th><td>{}</td><td{class}>{words}</td></tr>\n",
                r.layer, f.position
            );
        }
        out += "</table></div>\n";
        out += &rest(flips);
    }
    let shares = good.iter().filter(|(_, x)| x.exact_set_rate < 1.0).take(MOST_ROWS).map(|(r, x)| {
        format!(
            "<li>layer {}: {} of sets equal, {} of experts</li>",
            r.layer,
            percent(x.exact_set_rate),
            percent(x.overlap)
        )
    });
    let shares: String = shares.collect();
    if shares.is_empty() { out + "</section>\n" } else { format!("{out}<ul class=\"plain\">{shares}</ul></section>\n") }
}

/// Where the most probable token is another.
pub fn top_changes(c: &Comparison) -> String {
    let Some(l) = &c.logits else { return String::new() };
    let changed: Vec<_> = l.at.iter().filter(|p| p.reference_top != p.subject_top).collect();
    if changed.is_empty() {
        return "<p>The most probable token is the same at every position.</p>\n".into();
    }
    let mut out = String::from(
        "<div class=\"scroll\"><table class=\"rows\">\n<tr><th>position</th><th>reference's top token</th><th>subject's</th><th>KL</th><th>Δp</th></tr>\n",
    );
    for p in changed.iter().take(MOST_ROWS) {
        out += &format!(
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            p.position,
            p.reference_top,
            p.subject_top,
            scientific(p.kld),
            scientific(p.delta_p)
        );
    }
    out + "</table></div>\n" + &rest(changed.len())
}

/// What a bounded table leaves out.
fn rest(all: usize) -> String {
    match all.saturating_sub(MOST_ROWS) {
        0 => String::new(),
        more => format!("<p class=\"hint\">and {more} more; the JSON document has all</p>\n"),
    }
}
