//! The report for people: a picture of every layer, the first fault, the stages, the routers, the logits.
//!
//! Design:
//! - Fits [`WIDTH`] columns. What is longer is wrapped or cut, never left to the terminal.
//! - The picture is one character a layer and column of the stage table, the worst of what is there. Equal layers in a row
//!   share a line.
//! - Colour only repeats what the characters say.

mod picture;
mod routing;
#[cfg(test)]
mod tests;

use super::format::{clean, cut, measured, percent, scientific, shape, short, width};
use crate::diff::attribution::by_type;
use crate::diff::outcome::{Comparison, Kind, Measured, SideSummary, StageResult, Verdict};
use picture::{Cell, picture};
use routing::{logits, routers};

/// Columns that the report keeps to.
pub const WIDTH: usize = 100;
/// Stages, and flips, that are listed unless all are asked for.
const SHORT_LIST: usize = 12;

/// How to print.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    pub color: bool,
    /// Every stage in order of execution, every flip, every expert's load.
    pub full: bool,
}

impl Style {
    /// Coloured if stdout is a terminal and `NO_COLOR` (no-color.org) is not set.
    pub fn for_stdout(full: bool) -> Self {
        use std::io::IsTerminal;
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self { color: std::io::stdout().is_terminal() && !forbidden, full }
    }

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
        picture(c, style),
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
    let mut first = format!("{} · {} · {} layers", clean(&m.name), clean(&m.architecture), m.layers);
    if m.experts > 0 {
        first += &format!(" · {} experts, {} used", m.experts, m.experts_used);
    }
    first += &format!(" · {}", count(c.tokens, "token"));
    if c.decode > 0 {
        first += &format!(" and {} decoded", c.decode);
    }
    if let Some(prompt) = &c.prompt {
        first += &format!(": {prompt:?}");
    }
    let mut out = style.bold(&cut(&first, WIDTH)) + "\n";
    out += &side("reference", &c.reference);
    out += &side("subject", &c.subject);
    let judge = match (&c.judge, c.kind) {
        (Some(judge), _) => clean(judge),
        (None, Kind::Diff) => "none: which side is wrong is not said".into(),
        (None, Kind::Compare) => "none: two recordings, nothing is run again; own errors are not known".into(),
    };
    out += &field("judge", &judge);
    for note in &c.notes {
        out += &field("note", &clean(note));
    }
    out
}

fn side(name: &str, side: &SideSummary) -> String {
    let i = &side.info;
    let software = if i.software { ", software adapter" } else { "" };
    let mut text = format!("{} · {}{software} · {}", clean(&i.backend), clean(&i.adapter), clean(&i.contract));
    if let Some(trace) = &side.trace {
        text = format!("trace {} · {text}", clean(trace));
    }
    field(name, &text)
}

/// A name and a text, wrapped under itself.
fn field(name: &str, text: &str) -> String {
    indented(&format!("{name:<11}"), text)
}

/// `text` after `start`, wrapped under its own beginning.
fn indented(start: &str, text: &str) -> String {
    let indent = width(start);
    let (mut out, mut column) = (start.to_string(), indent);
    for word in text.split(' ') {
        let word = cut(word, WIDTH - indent);
        if column > indent && column + 1 + width(&word) > WIDTH {
            out.push('\n');
            out += &" ".repeat(indent);
            column = indent;
        } else if column > indent {
            out.push(' ');
            column += 1;
        }
        out += &word;
        column += width(&word);
    }
    out + "\n"
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

// ---------------------------------------------------------------------------------------------------------------------
// First fault

/// Where a stage is, with its step if it was decoded.
fn place(s: &StageResult) -> String {
    if s.step == 0 { s.site.to_string() } else { format!("decoded token {} · {}", s.step, s.site) }
}

fn verdict(c: &Comparison, style: Style) -> String {
    match (c.fault(), c.visible()) {
        (Some(fault), _) => first_fault(c, fault, style),
        (None, Some(s)) if !c.agrees() => {
            let mut out = style.red("FIRST DIFFERENCE") + &format!("  {}\n", place(s));
            for (name, text) in where_lines(s) {
                out += &indented(&format!("  {name:<11}"), &text);
            }
            out
        }
        _ => String::new(),
    }
}

fn first_fault(c: &Comparison, s: &StageResult, style: Style) -> String {
    let who = match &s.verdict {
        Verdict::BothWrong => "both sides are wrong".into(),
        v => match v.side() {
            Some(side) => format!("the {side} is wrong"),
            None => "the sides differ".to_string(),
        },
    };
    let mut first = format!("{} · {who}", place(s));
    if let Some(ratio) = s.ratio {
        first += &format!(" · {} × floor", short(ratio));
    }
    let mut out = style.red("FIRST FAULT") + &format!("  {first}\n");
    let mut lines = where_lines(s);
    if let Some(cause) = &s.cause {
        let next = cause.next_best.as_ref();
        let next = next
            .map_or(String::new(), |n| format!("; next best, {}: {} × floor", clean(&n.name), short(n.residual_ratio)));
        let (name, rest) = (clean(&cause.name), short(cause.residual_ratio));
        lines.push(match cause.reproduced {
            true => ("cause", format!("reproduced within {rest} × floor by: {name}{next}")),
            false => (
                "cause",
                format!("none of the known mistakes reproduces it; the nearest, {name}, leaves {rest} × floor"),
            ),
        });
    }
    let mut effect = Vec::new();
    if let Some(m) = s.own().metrics() {
        effect.push(format!("nmse {} here", scientific(m.nmse)));
    }
    if let Some(share) = s.share_of_logits_error {
        effect.push(format!("{} of the logits' error", percent(share)));
    }
    if let Some(a) = s.amplification {
        effect.push(format!("errors that come in leave {} × as large", short(a)));
    }
    if let Some(l) = &c.logits {
        effect.push(format!("KL {}, same top-1 {} of {}", scientific(l.kld_mean), l.same_top, l.positions));
    }
    if !effect.is_empty() {
        lines.push(("effect", effect.join(", ")));
    }
    if let Some(judged) = s.judged {
        let text =
            format!("reference {} × its floor, subject {} × its floor", short(judged.reference), short(judged.subject));
        lines.push(("judge", text));
    }
    if !s.smallest_tolerance.is_empty() {
        let args: Vec<String> = s.smallest_tolerance.iter().map(|t| format!("--tol '{t}'")).collect();
        lines.push(("passes at", args.join(" ")));
    }
    if let Some(v) = c.visible().filter(|v| *v != s) {
        lines.push(("visible", format!("first over its limit in total: {}", place(v))));
    }
    if let Some(next) = &c.next {
        lines.push(("next", clean(next)));
    }
    for (name, text) in lines {
        out += &indented(&format!("  {name:<11}"), &text);
    }
    out
}

/// Where in the tensor, of which weight.
fn where_lines(s: &StageResult) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    match (&s.pattern, s.own()) {
        (Some(p), _) => {
            let share = if p.elements_share < 1.0 {
                format!(": {} of the error in {} of the elements", percent(p.share), percent(p.elements_share))
            } else {
                String::new()
            };
            let relation = p.relation.as_ref().map_or(String::new(), |r| format!("; {}", r.description));
            lines.push(("where", format!("{}{share}{relation}", p.description)));
        }
        (None, Measured::Failed(m)) => lines.push(("where", m.to_string())),
        _ => {}
    }
    if let Some(e) = s.own().metrics().and_then(|m| m.worst.first()) {
        let expert = s.expert.map_or(String::new(), |e| format!(", expert {e}"));
        let position = s.position.map_or(String::new(), |p| format!(" (position {p}{expert})"));
        lines.push((
            "worst",
            format!("{:?}{position}: reference {:.7e}, subject {:.7e}", e.index, e.reference, e.subject),
        ));
    }
    if let Some(w) = &s.weight {
        let text = format!("{} · {} · {:?} · offset {:#x}", clean(&w.name), w.ty, w.dims, w.file_offset);
        lines.push(("weight", text));
    }
    lines
}

// ---------------------------------------------------------------------------------------------------------------------
// Stages

/// How bad a stage is, for the short list: failures, then faults, then by ratio, then by error.
fn badness(s: &StageResult) -> (bool, bool, f64, f64) {
    let nan_last = |x: f64| if x.is_nan() { f64::INFINITY } else { x };
    let nmse = s.own().metrics().map_or(0.0, |m| m.nmse);
    (s.own().mismatch().is_some(), s.verdict.is_fault(), s.ratio.map_or(0.0, nan_last), nan_last(nmse))
}

fn stages(c: &Comparison, style: Style) -> String {
    if c.stages.is_empty() {
        return String::new();
    }
    let mut listed: Vec<&StageResult> = c.stages.iter().collect();
    let title = if style.full || listed.len() <= SHORT_LIST {
        format!("STAGES  all {} in order of execution", listed.len())
    } else {
        listed.sort_by(|a, b| {
            let ((f1, v1, r1, e1), (f2, v2, r2, e2)) = (badness(a), badness(b));
            (f2, v2).cmp(&(f1, v1)).then(r2.total_cmp(&r1)).then(e2.total_cmp(&e1))
        });
        let all = listed.len();
        listed.truncate(SHORT_LIST);
        format!("STAGES  the worst {SHORT_LIST} of {all}; --full lists all")
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
        let layer = s.site.layer.map_or("-".into(), |n| n.to_string());
        let own = s.injected.as_ref().map_or("-".into(), measured);
        let max_abs = s.own().metrics().map_or("-".into(), |m| scientific(m.max_abs));
        let verdict = match Cell::of(s) {
            Cell::Differs | Cell::Injects | Cell::NonFinite => style.red(&s.verdict.to_string()),
            Cell::Inherits => style.yellow(&s.verdict.to_string()),
            _ => s.verdict.to_string(),
        };
        out += &format!(
            "{}{layer:>5} {:<14} {:<7} {:<12} {own:>8} {:>8} {max_abs:>8} {:>8}  {verdict}\n",
            step(s.step.to_string()),
            s.site.stage.name(),
            s.qtype().map_or("-", |t| t.name()),
            cut(&shape(&s.shape), 12),
            measured(&s.total),
            s.ratio.map_or("-".into(), short),
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
        out += &indented(&format!("not compared: {}: ", count(n, "stage")), &clean(why));
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
    let (compared, not) = c.counts();
    let mut counts = format!("{} compared", count(compared, "stage"));
    if not > 0 {
        counts += &format!(", {not} not");
    }
    if c.agrees() {
        let worst = c.stages.iter().filter_map(|s| s.ratio.map(|r| (r, s))).max_by(|a, b| a.0.total_cmp(&b.0));
        let worst = worst.map_or(String::new(), |(r, s)| {
            format!(", the largest own error {} × its floor at {}", short(r), place(s))
        });
        return indented("AGREE  ", &format!("{counts}{worst}")).replacen("AGREE", &style.green("AGREE"), 1);
    }
    let faults = c.stages.iter().filter(|s| s.verdict.is_fault()).count();
    let inherit = c.stages.iter().filter(|s| s.verdict == Verdict::Inherits).count();
    let unexplained: usize = c.routing.iter().filter_map(|r| r.routing.as_ref().ok()).map(|r| r.unexplained()).sum();
    let mut why = match (c.fault(), c.visible()) {
        (Some(s), _) => format!("first fault {}; ", place(s)),
        (None, Some(s)) => format!("first difference {}; ", place(s)),
        (None, None) => String::new(),
    };
    if faults > 0 {
        why += &format!(
            "{}, ",
            match c.kind {
                Kind::Diff => count(faults, "fault"),
                Kind::Compare => format!("{} differ", count(faults, "stage")),
            }
        );
    }
    if inherit > 0 {
        why += &format!("{inherit} inherit, ");
    }
    if unexplained > 0 {
        why += &format!("{}, ", count(unexplained, "unexplained flip"));
    }
    if compared == 0 {
        why += "nothing was compared, which is no agreement; ";
    }
    indented("DIVERGED  ", &format!("{why}{counts}")).replacen("DIVERGED", &style.red("DIVERGED"), 1)
}
