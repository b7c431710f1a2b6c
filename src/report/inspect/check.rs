//! The document of `inspect --check`: what is wrong with a file (described by `schemas/check.schema.json`).

use std::fmt::Write;

use serde::Serialize;

use crate::gguf::{Checked, Finding, FindingSeverity};
use crate::report::table::table;
use crate::text::printable;

/// What llama.cpp makes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckVerdict {
    /// Nothing that it refuses or misreads was found.
    Sound,
    /// It loads the file, and what it runs is not what the file says.
    Misread,
    /// It does not load the file.
    Refused,
    /// Nobody can read the file to its end.
    Unreadable,
}

#[derive(Serialize)]
pub struct CheckDocument<'a> {
    pub schema: &'static str,
    pub verdict: CheckVerdict,
    pub file: &'a str,
    /// Whether this program opens it.
    pub opens_here: bool,
    /// Of all that were found, by severity.
    pub counts: CheckCounts,
    /// The worst first; of a kind the first few.
    pub findings: Vec<&'a Finding>,
    /// Kinds of which there are more.
    pub more: Vec<MoreFindings>,
}

#[derive(Serialize)]
pub struct CheckCounts {
    pub unreadable: u64,
    pub refused: u64,
    pub misread: u64,
    pub note: u64,
}

#[derive(Serialize)]
pub struct MoreFindings {
    pub severity: FindingSeverity,
    pub rule: &'static str,
    pub count: u64,
}

impl<'a> CheckDocument<'a> {
    pub fn new(checked: &'a Checked) -> Self {
        let count = |severity| checked.found.count(severity);
        let counts = CheckCounts {
            unreadable: count(FindingSeverity::Unreadable),
            refused: count(FindingSeverity::Refused),
            misread: count(FindingSeverity::Misread),
            note: count(FindingSeverity::Note),
        };
        let more = checked.found.more().into_iter();
        Self {
            schema: "twinscope.check/1",
            verdict: match counts {
                CheckCounts { unreadable: 1.., .. } => CheckVerdict::Unreadable,
                CheckCounts { refused: 1.., .. } => CheckVerdict::Refused,
                CheckCounts { misread: 1.., .. } => CheckVerdict::Misread,
                _ => CheckVerdict::Sound,
            },
            file: &checked.name,
            opens_here: checked.gguf.is_ok(),
            counts,
            findings: checked.found.all(),
            more: more.map(|(severity, rule, count)| MoreFindings { severity, rule, count }).collect(),
        }
    }

    /// For people: a line in sum, and one for each finding.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let c = &self.counts;
        let verdict = match self.verdict {
            CheckVerdict::Sound if self.findings.iter().any(|f| f.rule == "not-checked") => {
                "nothing found that llama.cpp would refuse or misread, but not all of it was checked".to_string()
            }
            CheckVerdict::Sound => "nothing that llama.cpp would refuse or misread".to_string(),
            CheckVerdict::Unreadable => "cannot be read to its end".to_string(),
            CheckVerdict::Refused | CheckVerdict::Misread => {
                let of = [(c.refused, "llama.cpp would refuse"), (c.misread, "llama.cpp would misread")];
                let all = of.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} that {what}"));
                all.collect::<Vec<_>>().join(", ")
            }
        };
        let notes = if c.note > 0 { format!(", {} to know of", c.note) } else { String::new() };
        let _ = writeln!(out, "{} · {verdict}{notes}", printable(self.file)); // writing to a String cannot fail
        let mut rows = table(&[], &[]);
        for f in &self.findings {
            rows.add_row([f.severity.name(), f.rule, &format!("{}: {}", f.at, f.what)]);
        }
        for more in &self.more {
            rows.add_row([more.severity.name(), more.rule, &format!("and {} more of the kind", more.count)]);
        }
        for line in rows.lines() {
            let _ = writeln!(out, " {}", line.trim_end());
        }
        out
    }
}
