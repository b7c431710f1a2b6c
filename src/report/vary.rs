//! What `diff --vary` prints: one backend against itself.

use serde::Serialize;

use crate::backend::BackendInfo;
use crate::diff::run::vary::{Difference, RowChange, StageRows, Variation, Varied, Vary};
use crate::report::format::scientific;
use crate::text::{count, printable};

/// The document of schema `twinscope.vary/1`.
#[derive(Serialize)]
pub struct VaryDocument<'a> {
    pub schema: &'static str,
    pub verdict: &'static str,
    /// Whether every stage of every run is equal to the bit.
    pub equal: bool,
    pub model: &'a str,
    pub fingerprint: String,
    pub tokens: usize,
    pub subject: &'a BackendInfo,
    pub variations: &'a [Variation],
    /// Of `--vary rows`; else empty.
    pub stages: &'a [StageRows],
}

impl<'a> VaryDocument<'a> {
    pub fn new(
        (model, fingerprint): (&'a str, String),
        tokens: usize,
        subject: &'a BackendInfo,
        varied: &'a Varied,
    ) -> Self {
        Self {
            schema: "twinscope.vary/1",
            verdict: if varied.failed() { "diverged" } else { "agree" },
            equal: varied.variations.iter().all(|v| v.equal == v.stages),
            model,
            fingerprint,
            tokens,
            subject,
            variations: &varied.variations,
            stages: &varied.stages,
        }
    }
}

/// For people: each variation, where it first differs, and what that comes to.
pub fn render(document: &VaryDocument<'_>, what: &Vary) -> String {
    let software = if document.subject.software { ", software adapter" } else { "" };
    let mut text = format!(
        "{} · {}\nsubject    {} · {}{software}\nagainst    {}\n\n",
        printable(document.model),
        count(document.tokens, "token"),
        document.subject.backend,
        document.subject.adapter,
        match what {
            Vary::Chunk(sizes) if sizes[0] >= document.tokens => "itself in one chunk".into(),
            Vary::Chunk(sizes) => format!("itself with chunk={}", sizes[0]),
            Vary::Threads(numbers) => format!("itself with threads={}", numbers[0]),
            Vary::Rows(_) => "itself, each stage with all rows".into(),
            Vary::Length(_) => "itself on the whole prompt".into(),
            Vary::Repeat(_) => "its first run".into(),
            Vary::Reuse | Vary::Order => "itself, freshly opened".to_string(),
        }
    );
    let width = document.variations.iter().map(|v| v.name.len()).max().unwrap_or(0).max(10);
    for v in document.variations {
        text += &format!("{:width$} {} of {} stages equal to the bit", v.name, v.equal, v.stages);
        for (what, difference) in [("first", &v.first_difference), ("worst", &v.worst)] {
            if let Some(d) = difference {
                text += &format!("\n{:width$} {what}  {}", "", describe(d));
            }
        }
        if v.failed {
            text += &format!("\n{:width$} FAILED", "");
        }
        text.push('\n');
    }
    let changing: Vec<&StageRows> = document.stages.iter().filter(|s| !s.changes.is_empty()).collect();
    if !changing.is_empty() {
        text += "\nSTAGES that depend on the number of rows, each on the same operands\n";
        for stage in &changing {
            let ty = stage.ty.map_or(String::new(), |ty| format!(" · {ty}"));
            text += &format!("{:26} other bits {}\n", format!("{}{ty}", stage.stage), changes(stage));
        }
    }
    text + &verdict(document, what, changing.len())
}

/// `from 2 rows on, in 3 of 4 calls: at most 1.2e-7 or 3 ULP`
fn changes(stage: &StageRows) -> String {
    let at = match &stage.changes[..] {
        [c] if c.rows == c.below + 1 => format!("from {} on", count(c.rows, "row")),
        [c] => format!("between {} and {} rows", c.below, c.rows),
        several => {
            let rows = several.iter().map(|c| match c.rows - c.below {
                1 => c.rows.to_string(),
                _ => format!("{}–{}", c.below + 1, c.rows),
            });
            format!("at {} rows", rows.collect::<Vec<_>>().join(", "))
        }
    };
    let calls = stage.changes.iter().map(|c| c.calls).max().unwrap_or(0);
    let of = if calls == stage.calls { String::new() } else { format!(", in {calls} of {} calls", stage.calls) };
    let worst = |c: &&RowChange| c.worst.nmse.unwrap_or(f64::INFINITY);
    let worst = stage.changes.iter().max_by(|a, b| worst(a).total_cmp(&worst(b)));
    let size = worst.map_or(String::new(), |c| match (c.worst.max_abs, c.worst.max_ulp) {
        (Some(abs), Some(ulp)) => format!(": at most {} or {ulp} ULP", scientific(abs)),
        _ => format!(": {}", c.worst.why),
    });
    format!("{at}{of}{size}")
}

/// The last lines.
fn verdict(document: &VaryDocument<'_>, what: &Vary, changing: usize) -> String {
    let word = if document.verdict == "agree" { "AGREE" } else { "DIVERGED" };
    let first = document.variations.iter().find_map(|v| Some((&v.name, v.first_difference.as_ref()?)));
    let over = document.variations.iter().find_map(|v| Some((&v.name, v.first_over.as_ref()?)));
    let within = match over {
        None => "; all are within their nmse thresholds, those of --no-oracle".to_string(),
        Some((name, d)) => format!("; {name} is beyond its nmse threshold, that of --no-oracle, from {} on", place(d)),
    };
    let why = match (first, what) {
        (None, _) => "every stage of every run is equal to the bit".to_string(),
        (Some(_), Vary::Rows(_)) => {
            format!(
                "not invariant: {changing} of {} stages depend on the number of rows{within}",
                document.stages.len()
            )
        }
        (Some((name, d)), _) if what.is_exact() => format!("{name} has other bits from {} on", place(d)),
        (Some((name, d)), _) => {
            let next = "; --vary rows says which stages do so by themselves";
            format!("not invariant: {name} has other bits from {} on{within}{next}", place(d))
        }
    };
    format!("\n{word}  {why}\n")
}

fn place(d: &Difference) -> String {
    match d.layer {
        Some(n) => format!("layer {n} · {} · position {}", d.stage, d.position),
        None => format!("{} · position {}", d.stage, d.position),
    }
}

fn describe(d: &Difference) -> String {
    let place = place(d);
    match (d.nmse, d.max_abs, d.max_ulp) {
        (Some(nmse), Some(abs), Some(ulp)) => {
            let at = if d.largest_at == d.position { String::new() } else { format!(" at position {}", d.largest_at) };
            format!("{place} · nmse {}, at most {} or {ulp} ULP{at}", scientific(nmse), scientific(abs))
        }
        _ => format!("{place} · {}", d.why),
    }
}
