//! What `probe` found: one stage alone, at any number of rows.

use indicatif::HumanBytes;
use serde::Serialize;

use super::format::{cut, shape, short, time};
use super::text::{WIDTH, field};
use crate::diff::outcome::{ModelSummary, Verdict};
use crate::op::OpParams;
use crate::probe::{Misplaced, ProbeMemory, ProbeOptions, Probed, ProbedSide, ProbedWeight, RowRange};
use crate::text::{count, printable, printable_whole};

/// Ranges of rows that are printed.
const SHOWN: usize = 8;

/// The document of schema `twinscope.probe/1`.
#[derive(Serialize)]
pub struct ProbeDocument<'a> {
    pub schema: &'static str,
    /// `agree` or `diverged`.
    pub verdict: &'static str,
    pub model: &'a ModelSummary,
    pub layer: Option<u32>,
    pub stage: &'static str,
    pub op: &'a OpParams,
    pub weight: Option<&'a ProbedWeight>,
    pub tokens: usize,
    /// The position of the first row.
    pub start: usize,
    pub seed: u64,
    pub shape: &'a [usize],
    pub memory: ProbeMemory,
    /// Rows that the oracle judged.
    pub judged: usize,
    pub judged_all: bool,
    pub judged_rows: &'a [RowRange],
    pub reference: &'a ProbedSide,
    pub subject: &'a ProbedSide,
    /// Which side is wrong, and from which row on.
    pub fault: Option<ProbeFault<'a>>,
    /// Rows in which the sides differ by more than in any that is right on both.
    pub differing: usize,
    pub differing_rows: &'a [RowRange],
    pub notes: &'a [String],
}

/// What is wrong.
#[derive(Serialize)]
pub struct ProbeFault<'a> {
    /// `subject wrong`, `reference wrong` or `both wrong`.
    pub verdict: String,
    pub first_wrong: Option<usize>,
    pub misplaced: Option<&'a Misplaced>,
    /// Where in wrong rows, in words.
    pub pattern: Option<&'a str>,
    pub cause: Option<ProbeCause<'a>>,
}

/// The mistake, or the one that comes nearest.
#[derive(Serialize)]
pub struct ProbeCause<'a> {
    pub id: &'a str,
    pub name: &'a str,
    pub reproduced: bool,
    pub residual_ratio: Option<f64>,
    pub removes: Option<f64>,
}

impl<'a> ProbeDocument<'a> {
    pub fn new(model: &'a ModelSummary, options: &ProbeOptions, found: &'a Probed) -> Self {
        let cause = found.cause.as_ref().map(|cause| ProbeCause {
            id: cause.id,
            name: &cause.name,
            reproduced: cause.reproduced,
            residual_ratio: Some(cause.residual_ratio).filter(|ratio| ratio.is_finite()),
            removes: cause.removes,
        });
        Self {
            schema: "twinscope.probe/1",
            verdict: if found.agrees() { "agree" } else { "diverged" },
            model,
            layer: found.site.layer,
            stage: found.site.stage.name(),
            op: &found.op,
            weight: found.weight.as_ref(),
            tokens: options.tokens,
            start: options.start,
            seed: options.seed,
            shape: &found.shape,
            memory: found.memory,
            judged: found.judged,
            judged_all: found.judged_all,
            judged_rows: &found.judged_rows,
            reference: &found.reference,
            subject: &found.subject,
            fault: (found.verdict != Verdict::Ok).then(|| ProbeFault {
                verdict: found.verdict.to_string(),
                first_wrong: found.first_wrong,
                misplaced: found.misplaced.as_ref(),
                pattern: found.pattern.as_ref().map(|pattern| pattern.description.as_str()),
                cause,
            }),
            differing: found.differing,
            differing_rows: &found.differing_rows,
            notes: &found.notes,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let site = self.layer.map_or(self.stage.to_string(), |n| format!("layer {n} · {}", self.stage));
        let name = printable(&self.model.name);
        let mut text =
            cut(&format!("{name} · {site} · {} of synthetic operands", count(self.tokens, "row")), WIDTH) + "\n";
        for (name, side) in [("reference", self.reference), ("subject", self.subject)] {
            let software = if side.info.software { ", software adapter" } else { "" };
            let i = &side.info;
            let adapter = printable(&i.adapter);
            text += &field(name, &format!("{} · {adapter}{software} · {}", i.backend, time(side.seconds)));
        }
        let from = if self.start > 0 { format!(", from position {}", self.start) } else { String::new() };
        let weight = self.weight.map_or(String::new(), |w| format!(" · {} {} {:?}", printable(&w.name), w.ty, w.dims));
        text += &field("call", &format!("seed {}{from} → {}{weight}", self.seed, shape(self.shape)));
        let available =
            self.memory.available_bytes.map_or(String::new(), |bytes| format!(" of {} available", HumanBytes(bytes)));
        text += &field("memory", &format!("{}{available}", HumanBytes(self.memory.needed_bytes)));
        let rows = match self.judged_all {
            true => "oracle, every row".to_string(),
            false => format!(
                "oracle, {} rows of {}: {}; the others are compared",
                self.judged,
                self.tokens,
                ranges(self.judged_rows)
            ),
        };
        text += &field("judged", &rows);
        for note in self.notes {
            text += &field("note", &printable_whole(note));
        }
        text += &match &self.fault {
            None => format!(
                "\nAGREE  {} judged, the largest error {} × floor of the subject, {} of the reference\n",
                count(self.judged, "row"),
                ratio(self.subject),
                ratio(self.reference)
            ),
            Some(fault) => self.fault(fault),
        };
        text
    }

    fn fault(&self, fault: &ProbeFault<'_>) -> String {
        let first = fault.first_wrong.map_or(String::new(), |row| format!(", first in row {row}"));
        let side = if fault.verdict == "reference wrong" { self.reference } else { self.subject };
        let who = match fault.verdict.as_str() {
            "both wrong" => "both sides are wrong".to_string(),
            verdict => format!("the {}", verdict.replacen(" wrong", " is wrong", 1)),
        };
        let mut text = format!("\nFAULT  {who}{first} · {} × floor\n", ratio(side));
        let mut line = |name: &str, what: String| text += &field(&format!("  {name}"), &what);
        line("rows", format!("{} judged wrong of {} judged", side.wrong, self.judged));
        if self.differing > 0 {
            let of = self.tokens;
            line(
                "differ",
                format!("{} of {of} rows, unlike any right one: {}", self.differing, ranges(self.differing_rows)),
            );
        }
        if let Some(misplaced) = fault.misplaced {
            line("hold", format!("{} ({} of {} rows tried)", misplaced.what, misplaced.hold, misplaced.tried));
        }
        if let Some(pattern) = fault.pattern {
            line("in a row", printable_whole(pattern));
        }
        if let Some(cause) = &fault.cause {
            let how = match (cause.reproduced, cause.residual_ratio) {
                (true, Some(ratio)) => format!("reproduced within {} × floor by: ", short(ratio)),
                (true, None) => "reproduced by: ".to_string(),
                (false, _) => "not reproduced; the nearest: ".to_string(),
            };
            line("cause", how + cause.name);
        }
        text + &format!("\nDIVERGED  {} of {} judged rows wrong\n", side.wrong, self.judged)
    }
}

fn ratio(side: &ProbedSide) -> String {
    side.ratio.map_or("not finite".into(), short)
}

/// `0–2, 15–17, 4095 and 3 more`
fn ranges(rows: &[RowRange]) -> String {
    let one = |[from, to]: &RowRange| if from == to { from.to_string() } else { format!("{from}–{to}") };
    let shown: Vec<String> = rows.iter().take(SHOWN).map(one).collect();
    match rows.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more ranges", shown.join(", ")),
    }
}
