//! The report as Markdown: what fits into an issue or a pull request. The picture and the facts as they are printed, the worst
//! stages as a table.

use super::facts::{place, provenance, side, stage_cells, summary, verdict_facts};
use super::text::{picture, worst};
use crate::diff::outcome::{Comparison, Verdict};
use crate::environment::Environment;
use crate::text::{count, printable, printable_whole};

/// The whole document.
pub fn render(c: &Comparison) -> String {
    let verdict = if c.agrees() { "agree" } else { "diverged" };
    let mut out = format!(
        "# {}: {} and {} {verdict}\n\n",
        text(&printable(&c.model.name)),
        code(&c.reference.info.backend),
        code(&c.subject.info.backend)
    );
    if let Some((title, first, facts)) = verdict_facts(c) {
        out += &format!(
            "**{title}** {}\n\n{}\n",
            text(&first),
            table(&["", ""], facts.iter().map(|(name, fact)| vec![name.to_string(), fact.clone()]))
        );
    }
    out += &format!("```text\n{}```\n\n", picture(c));
    let (listed, all) = worst(c);
    let (compared, not) = c.counts();
    out += &format!("{}, {not} not. The worst {} of {all}:\n\n", count(compared, "stage") + " compared", listed.len());
    let rows = listed.into_iter().map(|s| {
        let [_, _, qtype, shape, own, total, max_abs, ratio] = stage_cells(s);
        let verdict = match &s.verdict {
            Verdict::NotCompared(why) => format!("not compared: {why}"),
            verdict => verdict.to_string(),
        };
        vec![place(s), qtype, shape, own, total, max_abs, ratio, verdict]
    });
    out += &table(&["stage", "type", "shape", "own", "total", "max abs", "× floor", "verdict"], rows);
    let mut made = provenance(c, &Environment::here());
    made.extend(c.notes.iter().map(|note| ("note", note.clone())));
    out + "\n" + &table(&["", ""], made.into_iter().map(|(name, fact)| vec![name.to_string(), fact]))
}

/// What an issue needs, to paste: what is wrong, how to make it again, and on what.
pub fn issue(c: &Comparison) -> String {
    let here = Environment::here();
    let (verdict, why) = summary(c);
    let mut out = format!("### What happens\n\n**{verdict}** {}\n\n", text(&why));
    if let Some((title, first, facts)) = verdict_facts(c) {
        let facts = facts.iter().filter(|(name, _)| *name != "next");
        let lines: String = facts.map(|(name, fact)| format!("  {name:<10} {}\n", fenced(fact))).collect();
        out += &format!("```text\n{title}  {}\n{lines}\n{}```\n\n", fenced(&first), picture(c));
    }
    // The command line as it was, but of the verb that compares; then the one that takes the stage apart.
    let again = fenced(&here.command).replacen(" report-issue", " diff", 1);
    let next = c.next.as_deref().map_or(String::new(), |next| format!("{}\n", fenced(next)));
    out += &format!("### How to make it again\n\n```sh\n{again}\n{next}```\n\n### Versions\n\n");
    let mut facts = provenance(c, &here);
    facts.extend([("reference", side(&c.reference)), ("subject", side(&c.subject))]);
    facts.extend(c.notes.iter().map(|note| ("note", note.clone())));
    out + &facts.into_iter().map(|(name, fact)| format!("- {name}: {}\n", text(&fact))).collect::<String>()
}

/// Text inside a block of code, which only three backticks would end.
fn fenced(text: &str) -> String {
    printable_whole(text).replace("```", "'''")
}

fn code(backend: &str) -> String {
    format!("`{}`", printable(backend).replace('`', "'"))
}

/// A table of plain text.
pub(super) fn table(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = columns.iter().map(|c| c.to_string()).collect();
    let rule = vec!["---".to_string(); columns.len()];
    let rows = rows.map(|cells| line(&cells.iter().map(|cell| text(cell)).collect::<Vec<_>>()));
    line(&head) + &line(&rule) + &rows.collect::<String>()
}

/// Text that means nothing to Markdown: neither markup nor HTML, and no bar that would begin a cell. All of it: a command is to be pasted.
pub(super) fn text(text: &str) -> String {
    let mut out = String::new();
    for c in printable_whole(text).chars() {
        if matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' | '&' | '!' | '~') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::sample::{agreeing, diverging};
    use super::*;

    #[test]
    fn a_divergence_names_its_fault_and_the_worst_stages() {
        let text = render(&diverging());
        for part in [
            "# demo-moe-Q4\\_K\\_M: `cpu:scalar` and `gpu` diverged",
            "**FIRST FAULT** layer 2 · expert\\_down",
            "| layer 2 · expert\\_down |",
            "fingerprint 0000",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!render(&agreeing()).contains("FIRST FAULT"));
    }

    #[test]
    fn an_issue_says_what_how_and_on_what() {
        let mut c = diverging();
        c.prompt = Some("```".into());
        c.next = Some("twinscope repro '```'".into());
        let text = issue(&c);
        for part in [
            "### What happens",
            "FIRST FAULT  layer 2 · expert_down",
            "twinscope repro",
            "- adapter: gpu · llvmpipe",
            "- made by: twinscope 0.",
            "fingerprint 0000",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.matches("```").count(), 4, "{text}");
    }

    /// A command that is cut cannot be pasted, and what is not said in the report is said nowhere.
    #[test]
    fn the_next_command_and_notes_are_whole() {
        let mut c = diverging();
        let tokens = vec!["414"; 100].join(",");
        c.next = Some(format!("twinscope repro --tokens {tokens} --out repro"));
        c.notes = vec![format!("a note of {tokens}")];
        for text in [render(&c), issue(&c)] {
            for part in ["twinscope repro --tokens", &tokens, "--out repro", "a note of"] {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert!(!text.contains('…'), "{text}");
        }
    }

    #[test]
    fn untrusted_text_is_neither_markup_nor_a_cell() {
        let mut c = agreeing();
        c.model.name = "<b>|[x](y)`".into();
        assert!(render(&c).starts_with("# \\<b\\>\\|\\[x\\](y)\\`: "));
    }
}
