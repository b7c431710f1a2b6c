//! Routers and logits.

use super::super::facts::flip;
use super::super::format::{percent, scientific};
use super::{SHORT_LIST, Style, indented};
use crate::diff::measure::router::{Flip, RouterComparison, WeightError};
use crate::diff::outcome::Comparison;
use crate::text::count;

pub(super) fn routers(c: &Comparison, style: Style) -> String {
    if c.routing.is_empty() {
        return String::new();
    }
    let mut out = style.bold("ROUTERS");
    let good: Vec<_> = c.routing.iter().filter_map(|r| r.routing.as_ref().ok().map(|x| (r, x))).collect();
    let flips: usize = good.iter().map(|(_, r)| r.flips.len()).sum();
    let unexplained: usize = good.iter().map(|(_, r)| r.unexplained()).sum();
    let tokens: usize = good.iter().map(|(_, r)| r.tokens).sum();
    if tokens > 0 {
        let mean = |f: &dyn Fn(&RouterComparison) -> f64| {
            good.iter().map(|(_, r)| f(r) * r.tokens as f64).sum::<f64>() / tokens as f64
        };
        let k = good.iter().map(|(_, r)| r.k).max().unwrap_or(0);
        out += &format!(
            "  {} of {tokens} sets, {unexplained} unexplained · overlap@{k} {} · same set {} · same order {}\n",
            count(flips, "flip"),
            percent(mean(&|r| r.overlap)),
            percent(mean(&|r| r.exact_set_rate)),
            percent(mean(&|r| r.order_match_rate)),
        );
    } else {
        out += "\n";
    }
    let at = |step: usize, layer: u32| {
        if step == 0 { format!("layer {layer}") } else { format!("decoded token {step} · layer {layer}") }
    };
    for r in &c.routing {
        if let Err(m) = &r.routing {
            out += &indented(&format!("  {}: ", at(r.step, r.layer)), &m.to_string());
        }
    }
    let worst = good
        .iter()
        .filter_map(|(r, x)| x.weight_error.as_ref().map(|w| (r, w)))
        .max_by(|(_, a), (_, b)| a.max_abs.total_cmp(&b.max_abs));
    if let Some((r, WeightError { max_abs, worst: Some((position, expert)), .. })) = worst {
        let text = format!(
            "off by at most {}: {}, position {position}, expert {expert}",
            scientific(*max_abs),
            at(r.step, r.layer)
        );
        out += &indented("  weights of common experts ", &text);
    }
    let mut ledger: Vec<(String, &Flip)> =
        good.iter().flat_map(|(r, x)| x.flips.iter().map(|f| (at(r.step, r.layer), f))).collect();
    ledger.sort_by_key(|(_, f)| f.explained()); // unexplained first, each kind in order
    let shown = if style.full { ledger.len() } else { ledger.len().min(SHORT_LIST) };
    for (at, f) in &ledger[..shown] {
        let start = format!("  {at}, position {}: ", f.position);
        let text = flip(f);
        out += &if f.explained() {
            indented(&start, &text)
        } else {
            indented(&start, &text).replace("unexplained", &style.red("unexplained"))
        };
    }
    if shown < ledger.len() {
        out += &format!("  and {} more; --full lists all\n", ledger.len() - shown);
    }
    if style.full {
        for (r, x) in good.iter().filter(|(_, x)| x.reference_load != x.subject_load) {
            let moved = x.reference_load.iter().zip(&x.subject_load).enumerate().filter(|(_, (a, b))| a != b);
            let moved: Vec<String> = moved.map(|(e, (a, b))| format!("expert {e} {a} → {b}")).collect();
            out += &indented(&format!("  {}: tokens per expert: ", at(r.step, r.layer)), &moved.join(", "));
        }
    }
    out
}

pub(super) fn logits(c: &Comparison, style: Style) -> String {
    let Some(l) = &c.logits else { return String::new() };
    let mut out = style.bold("LOGITS");
    out += &format!(
        "  KL mean {}, 99.9 % {}, max {} nats · same top-1 {} of {} · RMS Δp {}\n",
        scientific(l.kld_mean),
        scientific(l.kld_p999),
        scientific(l.kld_max),
        l.same_top,
        l.positions,
        percent(l.rms_delta_p)
    );
    let changed: Vec<_> = l.at.iter().filter(|p| p.reference_top != p.subject_top).collect();
    let shown = if style.full { changed.len() } else { changed.len().min(SHORT_LIST) };
    for p in &changed[..shown] {
        let (a, b) = (p.reference_top, p.subject_top);
        out += &format!(
            "  position {}: top token {a} in the reference, {b} in the subject; KL {}\n",
            p.position,
            scientific(p.kld)
        );
    }
    if shown < changed.len() {
        out += &format!("  and {} more; --full lists all\n", changed.len() - shown);
    }
    out
}
