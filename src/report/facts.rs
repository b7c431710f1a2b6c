//! What every report says of a fault and of a stage, in words.

use super::format::{measured, percent, scientific, shape, short};
use crate::diff::measure::metrics::{Mismatch, Side};
use crate::diff::measure::router::Flip;
use crate::diff::outcome::{Comparison, ComparisonKind, HiddenChoice, Measured, SideSummary, StageResult, Verdict};
use crate::environment::Environment;
use crate::op::{Site, Stage};
use crate::text::{count, printable, printable_whole};

const GIB: f64 = (1u64 << 30) as f64;
/// How many times the logits' error a stage's own part of it is where the parts cancel, and the error is what they leave.
const CANCELLED: f64 = 100.0;

/// Where a stage is, with its step if it was decoded.
pub fn place(s: &StageResult) -> String {
    let place = match s.segment.as_ref().and_then(|segment| segment.hidden.first().map(|first| (segment, first))) {
        None => s.site.to_string(),
        Some((segment, first)) => {
            let stages = count(segment.hidden.len() + 1, "stage");
            match s.site.layer.filter(|_| first.layer == s.site.layer) {
                _ if *first == s.site => format!("{first} ({stages})"),
                Some(layer) => format!("layer {layer} · {} … {} ({stages})", first.stage, s.site.stage),
                None => format!("{first} … {} ({stages})", s.site),
            }
        }
    };
    if s.step == 0 { place } else { format!("decoded token {} · {place}", s.step) }
}

/// What made the comparison, when, how, and on what: everything that a reader needs to have it made again.
pub fn provenance(c: &Comparison, here: &Environment) -> Vec<(&'static str, String)> {
    let machine = &here.machine;
    let memory = machine.memory_bytes.map_or(String::new(), |bytes| format!(" · {:.1} GiB", bytes as f64 / GIB));
    let cores = count(machine.cores, "core");
    let mut lines = vec![
        ("made by", format!("{} ({}) at {}", here.program, here.build, here.date)),
        ("command", printable_whole(&here.command)),
        ("machine", format!("{} · {cores}{memory} · {}", printable(&machine.processor), printable(&machine.system))),
    ];
    for side in [&c.reference, &c.subject] {
        let i = &side.info;
        if i.backend.starts_with("gpu") {
            let software = if i.software { ", software adapter" } else { "" };
            let text = format!("{} · {}{software} · {}", i.backend, printable(&i.adapter), printable(&i.driver));
            lines.push(("adapter", text));
        }
    }
    let fingerprint =
        c.model.fingerprint.as_deref().unwrap_or("not known: the traces do not say which file they are of");
    lines.push(("model", format!("{} · fingerprint {}", printable(&c.model.name), printable(fingerprint))));
    lines
}

/// A side in one line: what it is, on what it ran, and what it promises.
pub fn side(side: &SideSummary) -> String {
    let i = &side.info;
    let trace = side.trace.as_ref().map_or(String::new(), |trace| format!("trace {} · ", printable_whole(trace)));
    let software = if i.software { ", software adapter" } else { "" };
    format!("{trace}{} · {}{software} · {}", printable(&i.backend), printable(&i.adapter), printable(&i.contract))
}

/// What was compared, of how much.
fn coverage(c: &Comparison) -> String {
    let (compared, not) = c.counts();
    let mut counts = match c.run_stages {
        Some(of) if compared == of => format!("all {} compared", count(of, "stage")),
        Some(of) if compared + c.hidden() < of => format!("{compared} of the run's {} compared", count(of, "stage")),
        _ => format!("{} compared", count(compared, "stage")),
    };
    if c.hidden() > 0 {
        counts += &format!(", with the {} between them that the subject does not show", c.hidden());
    }
    if not > 0 {
        counts += &format!(", {not} not");
    }
    counts
}

/// `AGREE` or `DIVERGED`, and in one sentence why, and of how much.
pub fn summary(c: &Comparison) -> (&'static str, String) {
    let (compared, _) = c.counts();
    let counts = coverage(c);
    if c.agrees() {
        let worst = c.stages.iter().filter_map(|s| s.ratio.map(|r| (r, s))).max_by(|a, b| a.0.total_cmp(&b.0));
        let worst = worst.map_or(String::new(), |(r, s)| {
            format!(", the largest own error {} × its floor at {}", short(r), place(s))
        });
        return ("AGREE", format!("{counts}{worst}"));
    }
    let lost = c.stages.iter().filter(|s| s.verdict.is_fault() && lost_alike(s)).count();
    let faults = c.stages.iter().filter(|s| s.verdict.is_fault()).count() - lost;
    let inherit = c.stages.iter().filter(|s| s.verdict == Verdict::Inherits).count();
    let unexplained: usize = c.routing.iter().filter_map(|r| r.routing.as_ref().ok()).map(|r| r.unexplained()).sum();
    let mut why = match (c.fault(), c.visible()) {
        (Some(s), _) => format!("first fault {}; ", place(s)),
        (None, Some(s)) if s.is_blamelessly_lost() && s.overflow.is_some() => {
            format!("overflow from {} on, which the contract allows; ", place(s))
        }
        (None, Some(s)) if s.is_blamelessly_lost() => format!("not finite from {} on, by nobody's fault; ", place(s)),
        (None, Some(s)) if lost_alike(s) => {
            format!("not finite from {} on, on both sides alike, which nothing judges; ", place(s))
        }
        (None, Some(s)) => format!("first difference {}; ", place(s)),
        (None, None) => String::new(),
    };
    if faults > 0 {
        why += &format!(
            "{}, ",
            match c.kind {
                ComparisonKind::Diff => count(faults, "fault"),
                ComparisonKind::Compare => format!("{} differ", count(faults, "stage")),
            }
        );
    }
    if lost > 0 {
        why += &format!("{} not finite, ", count(lost, "stage"));
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
    if let Some(first) = c.lacking.first() {
        let more = if c.lacking.len() > 1 { format!(" and {} more", c.lacking.len() - 1) } else { String::new() };
        why += &format!("--require asks for {}{more}, not compared; ", printable(first));
    }
    ("DIVERGED", why + &counts)
}

/// A title, where it is, and named facts.
pub type Facts = (&'static str, String, Vec<(&'static str, String)>);

/// The first fault, or the first stage that is not finite by nobody's fault, or the first difference where nothing could say what
/// injects it; `None` where the two agree.
pub fn verdict_facts(c: &Comparison) -> Option<Facts> {
    match (c.fault(), c.visible()) {
        (Some(s), _) => {
            let (first, facts) = first_fault(c, s);
            Some(("FIRST FAULT", first, facts))
        }
        (None, Some(s)) if s.is_blamelessly_lost() => {
            // The weight that this stage reads is not what is wrong; a note names one that is not finite.
            let mut facts = where_facts(s);
            facts.retain(|(what, _)| *what != "weight");
            match s.overflow {
                Some(_) => Some(("OVERFLOW", format!("{} · no bound, and no fault", place(s)), facts)),
                None => Some(("NOT FINITE", place(s), facts)),
            }
        }
        (None, Some(s)) if lost_alike(s) => Some(("NOT FINITE", place(s) + " · on both sides alike", where_facts(s))),
        (None, Some(s)) if !c.agrees() => Some(("FIRST DIFFERENCE", place(s), where_facts(s))),
        _ => None,
    }
}

/// Whether both sides have as many values that are not finite, from the same one on, and nothing says whose fault they are.
fn lost_alike(s: &StageResult) -> bool {
    let alike = match s.total.mismatch() {
        Some(Mismatch::NonFinite { reference, subject }) => reference == subject,
        _ => false,
    };
    alike && !s.is_judged()
}

/// Faults behind the first that are told apart from it and from each other.
const FURTHER: usize = 4;
/// Causes of one of them that are named, where nothing tells them apart.
const NAMED: usize = 3;

/// The faults behind the first at another stage, of another side, or by another mistake, and how many there are besides. A stage that was not
/// explained, as most behind the first are not, is taken to be wrong as it is elsewhere.
pub fn further_faults(c: &Comparison) -> (Vec<String>, usize) {
    let mut faults = c.stages.iter().filter(|s| s.verdict.is_fault() && s.is_judged());
    let known = |s: &StageResult| s.cause.as_ref().filter(|cause| cause.reproduced).map(|cause| cause.name.clone());
    let key = |s: &StageResult| (s.site.stage, s.verdict.clone(), known(s));
    let Some(first) = faults.next() else { return (Vec::new(), 0) };
    let (mut seen, mut lines, mut rest) = (vec![key(first)], Vec::new(), 0);
    for s in faults {
        let (stage, verdict, cause) = key(s);
        let alike = |k: &(Stage, Verdict, Option<String>)| {
            (k.0, &k.1) == (stage, &verdict) && (cause.is_none() || k.2 == cause)
        };
        if lines.len() == FURTHER || seen.iter().any(alike) {
            rest += 1;
            continue;
        }
        let others = s.cause.iter().flat_map(|cause| &cause.others).map(|other| &other.name);
        let names: Vec<String> = cause.iter().chain(others).map(|name| printable(name)).collect();
        let by = match &names[..] {
            [] => String::new(),
            [one] => format!(": {one}"),
            all if all.len() <= NAMED => format!(": one of {}: {}", all.len(), alternatives(all)),
            all => {
                let rest = count(all.len() - NAMED, "other");
                format!(": one of {}: {}; or {rest}", all.len(), alternatives(&all[..NAMED]))
            }
        };
        lines.push(headline(s) + &by);
        seen.push((stage, verdict, cause));
    }
    if lines.is_empty() { (lines, 0) } else { (lines, rest) }
}

/// Where a fault is, whose it is, and how large.
fn headline(s: &StageResult) -> String {
    let who = match &s.verdict {
        Verdict::BothWrong => "both sides are wrong".into(),
        v => match v.side() {
            Some(side) => format!("the {side} is wrong"),
            None => "the sides differ".to_string(),
        },
    };
    let mut first = format!("{} · {who}", place(s));
    // Beyond a format's range there is no bound to hold an error against.
    if s.cause.as_ref().is_some_and(|cause| cause.reproduced && cause.id == "overflow") {
        first += " · no bound: overflow";
    } else if s.verdict == Verdict::Differs && s.ratio.is_some_and(|ratio| ratio <= 1.0) {
        // Within what rounding explains, and beyond what somebody asked for.
        first += " · over the limit that was given";
    } else if s.ratio.is_some_and(f64::is_nan) {
        first += " · not finite";
    } else if let Some(ratio) = s.ratio {
        first += &format!(" · {} × floor", short(ratio));
    }
    first
}

/// A stage's share of the logits' error, and why it is none of 0 to 100 %.
fn of_the_logits_error(share: f64) -> String {
    let why = match share {
        // Of what did not cancel a share says nothing.
        s if s.abs() > CANCELLED => return "errors that cancel at the logits but for a small rest".into(),
        ..0.0 => " (it works against the rest)",
        1.005.. => " (others' errors work against it)",
        _ => "",
    };
    format!("{} of the logits' error{why}", percent(share))
}

fn first_fault(c: &Comparison, s: &StageResult) -> (String, Vec<(&'static str, String)>) {
    let first = headline(s);
    let mut lines = where_facts(s);
    if let Some(cause) = &s.cause {
        let next = cause.next_best.as_ref();
        let next = next.map_or(String::new(), |n| {
            format!("; next best, {}: {} × floor", printable(&n.name), short(n.residual_ratio))
        });
        let (name, rest) = (printable(&cause.name), short(cause.residual_ratio));
        lines.push(match cause.reproduced {
            true if !cause.others.is_empty() => {
                let others = cause.others.iter().map(|other| printable(&other.name));
                let all: Vec<String> = std::iter::once(name).chain(others).collect();
                let n = all.len();
                ("cause", format!("one of {n} that what is shown cannot tell apart: {}", alternatives(&all)))
            }
            true => ("cause", format!("reproduced within {rest} × floor by: {name}{next}")),
            false => {
                let text = match cause.removes {
                    Some(share) => {
                        let share = percent(share);
                        format!("none of the known mistakes reproduces it; the nearest, {name}, removes {share} of the error")
                    }
                    None => format!("not certain: {name}"),
                };
                ("cause", text)
            }
        });
    } else if s.pattern.is_some() && s.segment.is_none() {
        lines.push(("cause", "none of the known mistakes reproduces it, or comes near".into()));
    }
    if let Some(segment) = &s.segment {
        if s.cause.is_none() {
            let tried = if segment.untried == 0 { "" } else { " that was tried" };
            let text = format!("not known: no known mistake{tried} at one of the hidden stages gives what is shown");
            lines.push(("cause", text));
        }
        if segment.untried > 0 {
            let (hidden, untried) = (segment.hidden.len(), segment.untried);
            let text = format!(
                "in part: {hidden} hidden stages are too many to try every mistake at each; {untried} variants were not tried"
            );
            lines.push(("search", text));
        }
        for choice in &segment.choices {
            lines.push(("routing", hidden_choice(choice)));
        }
        if !segment.capture.is_empty() {
            let stages: Vec<String> = segment.capture.iter().map(Site::key).collect();
            let position = s.position.map_or(String::new(), |p| format!(" at position {p}"));
            lines.push(("capture", format!("{}{position} would tell most", stages.join(", "))));
        }
    }
    let mut effect = Vec::new();
    if let Some(m) = s.own().metrics() {
        effect.push(format!("nmse {} here", scientific(m.nmse)));
    }
    if let Some(share) = s.share_of_logits_error {
        effect.push(of_the_logits_error(share));
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
        lines.push(("next", printable_whole(next)));
    }
    (first, lines)
}

/// Causes in words, `STAGES: what` each: what several in turn are of stands once.
fn alternatives(all: &[String]) -> String {
    let mut place = None;
    let mut words = Vec::new();
    for name in all {
        let (at, what) = name.split_once(": ").map_or((None, name.as_str()), |(at, what)| (Some(at), what));
        words.push(if at.is_some() && at == place { what } else { name });
        place = at;
    }
    words.join("; or ")
}

/// A choice of experts that a side does not show and rounding does not decide, in words.
pub fn hidden_choice(c: &HiddenChoice) -> String {
    let ids = |ids: &[u32]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
    format!(
        "layer {}, position {}: taken to be experts {}, where the oracle's {} is within rounding",
        c.layer,
        c.position,
        ids(&c.chosen),
        ids(&c.oracle)
    )
}

/// Where in the tensor, of which weight.
pub fn where_facts(s: &StageResult) -> Vec<(&'static str, String)> {
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
    if let Some(o) = &s.overflow {
        let n = if o.elements == 1 { "one element".to_string() } else { format!("at least {} elements", o.elements) };
        let found = if o.found.is_finite() { scientific(o.found) } else { o.found.to_string() };
        let right = scientific(o.exact);
        let text = format!(
            "the {}: {n}, the first {:?}: {found} for {right}; its contract's arithmetic may overflow here",
            o.side, o.index
        );
        lines.push(("overflow", text));
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
        let text = format!("{} · {} · {:?} · offset {:#x}", printable(&w.name), w.ty, w.dims, w.file_offset);
        lines.push(("weight", text));
    }
    lines
}

/// A stage's row of a table: layer, stage, type, shape, own, total, max abs, ratio.
pub fn stage_cells(s: &StageResult) -> [String; 8] {
    [
        s.site.layer.map_or("-".into(), |n| n.to_string()),
        s.site.stage.name().into(),
        s.qtype().map_or("-", |t| t.name()).into(),
        shape(&s.shape),
        s.injected.as_ref().map_or("-".into(), measured),
        measured(&s.total),
        s.own().metrics().map_or("-".into(), |m| scientific(m.max_abs)),
        s.ratio.map_or(if s.overflow.is_some() { "no bound" } else { "-" }.into(), short),
    ]
}

/// A flip: the experts, the margins, and whether the oracle explains it.
pub fn flip(f: &Flip) -> String {
    let ids = |ids: &[u32]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
    let mut text = format!("reference {}, subject {}", ids(&f.only_reference), ids(&f.only_subject));
    let margins = [
        ("logits", f.reference_margin.logits, f.subject_margin.logits),
        ("probabilities", f.reference_margin.probs, f.subject_margin.probs),
    ];
    if let Some((what, Some(a), Some(b))) = margins.into_iter().find(|m| m.1.is_some() && m.2.is_some()) {
        text += &format!("; margins {} and {} of {what}", scientific(a), scientific(b));
    }
    match &f.near_tie {
        None => text += "; unexplained: nothing judged it",
        Some(n) => {
            let margin = scientific(n.oracle_margin);
            text += &match n.beyond {
                None => format!(
                    "; explained: the oracle's margin is {margin}, bounds {} and {}",
                    scientific(n.reference_bound),
                    scientific(n.subject_bound)
                ),
                Some(side) => {
                    let bound = if side == Side::Reference { n.reference_bound } else { n.subject_bound };
                    format!("; unexplained: the oracle's margin is {margin}, the {side}'s bound {}", scientific(bound))
                }
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_share_beyond_the_whole_says_why() {
        let texts = [0.91, -0.2, 2.25, -1.5e5].map(super::of_the_logits_error);
        assert_eq!(texts[0], "91.0 % of the logits' error");
        assert_eq!(texts[1], "-20 % of the logits' error (it works against the rest)");
        assert_eq!(texts[2], "225 % of the logits' error (others' errors work against it)");
        assert!(texts[3].starts_with("errors that cancel"), "{}", texts[3]);
    }

    #[test]
    fn a_stage_of_several_causes_stands_once() {
        let all = ["q_rope and k_rope: no turn", "q_rope and k_rope: NEOX pairs", "attn_norm: eps 0"].map(String::from);
        assert_eq!(super::alternatives(&all), "q_rope and k_rope: no turn; or NEOX pairs; or attn_norm: eps 0");
    }
}
