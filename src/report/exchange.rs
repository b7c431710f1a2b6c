//! What `compare A.gguf B.gguf` prints: the parts of two files of one model, by what they cost at the logits.

use serde::Serialize;

use super::format::{cut, percent, scientific};
use super::markdown;
use super::table::{lines, table};
use super::text::{WIDTH, field};
use super::{ReportFormat, json_text};
use crate::backend::BackendInfo;
use crate::diff::exchange::{Exchange, LogitsCost, PartBy, PartCost};
use crate::diff::outcome::ModelSummary;
use crate::error::{Error, Result};
use crate::text::{count, printable, printable_whole};

/// What the columns are.
const LEGEND: [&str; 3] = [
    "KL(reference ‖ subject), in nats, its mean and its largest over the positions; nmse and same top-1 of the logits.",
    "alone: the reference's file with this part of the subject's, against the reference's file.",
    "regained: the share of the whole KL that goes where the subject's file keeps this part of the reference's.",
];

const MIB: f64 = (1u64 << 20) as f64;
/// Parts of a kind that are listed unless all are asked for.
const SHORT_LIST: usize = 16;

/// The document of schema `twinscope.exchange/1`.
#[derive(Serialize)]
pub struct ExchangeDocument<'a> {
    pub schema: &'static str,
    /// The file that logits are held against…
    pub reference: ModelSummary,
    /// …and the one whose parts cost something.
    pub subject: ModelSummary,
    pub backend: &'a BackendInfo,
    pub prompts: usize,
    #[serde(flatten)]
    pub exchange: &'a Exchange,
}

impl<'a> ExchangeDocument<'a> {
    pub fn new(
        [reference, subject]: [ModelSummary; 2],
        backend: &'a BackendInfo,
        prompts: usize,
        exchange: &'a Exchange,
    ) -> Self {
        Self { schema: "twinscope.exchange/1", reference, subject, backend, prompts, exchange }
    }

    /// The document in one of the formats that it has.
    ///
    /// # Errors
    /// A format of comparisons of backends only.
    pub fn render(&self, format: ReportFormat) -> Result<String> {
        Self::check(format)?;
        Ok(match format {
            ReportFormat::Json => json_text(self)?,
            ReportFormat::Markdown => self.markdown(),
            _ => self.text(true),
        })
    }

    /// Refuses what this is not rendered as, before anything is run.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the formats that there are.
    pub fn check(format: ReportFormat) -> Result<()> {
        match format {
            ReportFormat::Html | ReportFormat::Junit => Err(Error::usage(format!(
                "--report: a ranking of two files is written as .json, .md or .txt, not as {}",
                format.ending()
            ))),
            _ => Ok(()),
        }
    }

    /// The kinds of parts that were exchanged, each with its parts, the most expensive first.
    fn kinds(&self) -> impl Iterator<Item = (&'static str, Vec<&'a PartCost>)> {
        let all = [
            (PartBy::Layer, "LAYERS"),
            (PartBy::Kind, "KINDS OF TENSORS"),
            (PartBy::Types, "TYPES"),
            (PartBy::Tensor, "TENSORS"),
        ];
        let parts = &self.exchange.parts;
        all.into_iter()
            .map(move |(by, name)| (name, parts.iter().filter(|cost| cost.part.by == by).collect::<Vec<_>>()))
            .filter(|(_, parts)| !parts.is_empty())
    }

    fn title(&self) -> String {
        let m = &self.reference;
        let mut title =
            format!("two files of one model · {} · {}", printable(&m.architecture), count(m.layers, "layer"));
        if m.experts > 0 {
            title += &format!(" · {}, {} used", count(m.experts, "expert"), m.experts_used);
        }
        let of = if self.prompts > 1 { format!(" of {} prompts", self.prompts) } else { String::new() };
        title + &format!(" · {}{of}", count(self.exchange.positions, "token"))
    }

    /// What all of the subject's file costs, and what is most worth keeping.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let i = self.backend;
        let software = if i.software { ", software adapter" } else { "" };
        let e = self.exchange;
        let [a, b] = e.bytes;
        let differ = e.tensors - e.same;
        let mut facts = vec![
            ("reference", format!("{} · {}", printable_whole(&self.reference.name), mib(a))),
            ("subject", format!("{} · {}", printable_whole(&self.subject.name), mib(b))),
            ("backend", format!("{} · {}{software} · {}", i.backend, printable(&i.adapter), printable(&i.contract))),
            ("weights", format!("{differ} of {} tensors differ", e.tensors)),
            ("all of it", e.whole.as_ref().map_or("logits are not finite".into(), |cost| words(cost, e.positions))),
        ];
        facts.extend(e.notes.iter().map(|note| ("note", note.clone())));
        facts
    }

    /// For people; `full` lists every part.
    pub fn text(&self, full: bool) -> String {
        let mut text = cut(&self.title(), WIDTH) + "\n";
        for (name, fact) in self.facts() {
            text += &field(name, &fact);
        }
        for (name, parts) in self.kinds() {
            let shown = if full { parts.len() } else { parts.len().min(SHORT_LIST) };
            let of =
                if shown < parts.len() { format!(", the first {shown} of {}", parts.len()) } else { String::new() };
            text += &format!("\n{name} by the KL of their exchange alone{of}\n");
            let mut rows = table(&HEAD, &[2, 3, 4, 5, 6, 7]);
            for cost in &parts[..shown] {
                rows.add_row(self.cells(cost));
            }
            text += &lines(&rows);
        }
        LEGEND.iter().for_each(|line| text += &format!("{line}\n"));
        text + "\n" + &self.answer() + "\n"
    }

    fn markdown(&self) -> String {
        let facts = self.facts().into_iter().map(|(name, fact)| vec![name.to_string(), fact]);
        let mut text = format!("# {}\n\n{}", markdown::text(&self.title()), markdown::table(&["", ""], facts));
        for (name, parts) in self.kinds() {
            text += &format!("\n## {name}, by the KL of their exchange alone\n\n");
            text += &markdown::table(&HEAD, parts.into_iter().map(|cost| self.cells(cost)));
        }
        for line in LEGEND {
            text += &format!("\n{}\n", markdown::text(line));
        }
        text + "\n" + &markdown::text(&self.answer()) + "\n"
    }

    fn cells(&self, cost: &PartCost) -> Vec<String> {
        let types: Vec<String> = cost.part.types.iter().map(|[a, b]| format!("{a} → {b}")).collect();
        let [a, b] = cost.part.bytes;
        let [kld, most, nmse, top] = match &cost.alone {
            Some(c) => [
                scientific(c.kld_mean),
                scientific(c.kld_max),
                scientific(c.nmse),
                format!("{} of {}", c.same_top, self.exchange.positions),
            ],
            None => ["not finite", "-", "-", "-"].map(str::to_string),
        };
        let regained = cost.regained.map_or("-".into(), percent);
        vec![cost.part.name.clone(), types.join(", "), saved([a, b]), kld, most, nmse, top, regained]
    }

    /// The last line: the part whose keeping regains most for its bytes.
    fn answer(&self) -> String {
        let gain = |cost: &&&PartCost| {
            let [a, b] = cost.part.bytes;
            cost.regained.unwrap_or(0.0) / (a.saturating_sub(b).max(1) as f64)
        };
        let kinds: Vec<_> = self.kinds().collect();
        // Of the finest parts that were exchanged: of pairs of types nobody can keep one in all of them.
        let finest = kinds.iter().rev().find(|(name, _)| *name != "TYPES").or(kinds.last());
        let best = finest.and_then(|(_, parts)| {
            let worth =
                parts.iter().filter(|c| c.regained.is_some_and(|r| r > 0.0) && c.part.bytes[0] > c.part.bytes[1]);
            worth.max_by(|a, b| gain(a).total_cmp(&gain(b)))
        });
        match best {
            Some(best) => format!(
                "KEEP FIRST  {}: as in the reference's file it regains {} of the KL for {}",
                printable(&best.part.name),
                percent(best.regained.unwrap_or(0.0)),
                mib(best.part.bytes[0] - best.part.bytes[1])
            ),
            None => "KEEP FIRST  none: no part that is larger in the reference's file regains any KL".into(),
        }
    }
}

const HEAD: [&str; 8] = ["part", "types", "saved", "KL", "KL max", "nmse", "same top-1", "regained"];

fn words(c: &LogitsCost, positions: usize) -> String {
    format!(
        "KL mean {}, 99.9 % {}, max {} · nmse {} · same top-1 {} of {positions} · RMS Δp {}",
        scientific(c.kld_mean),
        scientific(c.kld_p999),
        scientific(c.kld_max),
        scientific(c.nmse),
        c.same_top,
        percent(c.rms_delta_p)
    )
}

fn mib(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / MIB)
}

/// What the subject's file saves; a minus where it is larger.
fn saved([a, b]: [u64; 2]) -> String {
    match a >= b {
        true => mib(a - b),
        false => format!("-{}", mib(b - a)),
    }
}
