//! What `diff --vary` prints: one backend against itself.

use serde::Serialize;

use crate::backend::BackendInfo;
use crate::diff::run::vary::{Difference, Variation, Vary};
use crate::report::format::scientific;
use crate::text::printable;

/// The document of schema `twinscope.vary/1`.
#[derive(Serialize)]
pub struct VaryDocument<'a> {
    pub schema: &'static str,
    pub verdict: &'static str,
    pub model: &'a str,
    pub fingerprint: String,
    pub tokens: usize,
    pub subject: &'a BackendInfo,
    pub variations: &'a [Variation],
}

/// For people: each variation, and where it first differs.
pub fn render(document: &VaryDocument<'_>, what: &Vary) -> String {
    let software = if document.subject.software { ", software adapter" } else { "" };
    let mut text = format!(
        "{} · {} tokens\nsubject    {} · {}{software}\nagainst    {}\n\n",
        printable(document.model),
        document.tokens,
        document.subject.backend,
        document.subject.adapter,
        match what {
            Vary::Chunk(sizes) => format!("itself with chunk={}", sizes[0]),
            Vary::Repeat(_) => "its first run".into(),
        }
    );
    for v in document.variations {
        text += &format!("{:10} {} of {} stages equal to the bit", v.name, v.equal, v.stages);
        for (what, difference) in [("first", &v.first_difference), ("worst", &v.worst)] {
            if let Some(d) = difference {
                text += &format!("\n           {what}  {}", describe(d));
            }
        }
        text += if v.failed { "\n           FAILED\n" } else { "\n" };
    }
    text
}

fn describe(d: &Difference) -> String {
    let place = match d.layer {
        Some(n) => format!("layer {n} · {} · position {}", d.stage, d.position),
        None => format!("{} · position {}", d.stage, d.position),
    };
    match (d.nmse, d.max_abs, d.max_ulp) {
        (Some(nmse), Some(abs), Some(ulp)) => {
            format!("{place} · nmse {}, at most {} or {ulp} ULP", scientific(nmse), scientific(abs))
        }
        _ => format!("{place} · {}", d.why),
    }
}
