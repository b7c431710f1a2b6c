//! A sweep for people: a line a prompt as soon as it is done, then what all came to.

use crate::diff::sweep::{FaultLine, PromptResult, Shard, SweepHeader, SweepLine, SweepSummary};
use crate::report::format::{cut, percent, scientific, short, time};
use crate::report::text::WIDTH;
use crate::text::{count, printable};

/// Kinds of faults that the summary lists.
const MOST_FAULTS: usize = 12;
/// Columns of a prompt's name.
const ID_WIDTH: usize = 16;

/// A line of a sweep, as text with its line ends.
pub fn line(line: &SweepLine) -> String {
    match line {
        SweepLine::Sweep(header) => head(header),
        SweepLine::Prompt(result) => prompt(result),
        SweepLine::Summary(found) => summary(found),
    }
}

fn head(header: &SweepHeader) -> String {
    let compared = &header.compared;
    let part = match header.shard {
        Shard::WHOLE => String::new(),
        shard => format!(" · shard {shard}"),
    };
    let [reference, subject] = [&compared.reference, &compared.subject]
        .map(|[name, contract]| cut(&format!("{}  {}", printable(name), printable(contract)), WIDTH - 12));
    format!(
        "SWEEP  {} of {}{part}\n  reference {reference}\n  subject   {subject}\n\n{:>6}  {:ID_WIDTH$}  {:>6}  {:9}  result\n",
        count(compared.prompts, "prompt"),
        cut(&printable(&compared.model), 60),
        "#",
        "prompt",
        "tokens",
        "time",
    )
}

fn prompt(r: &PromptResult) -> String {
    let result = match (&r.first_fault, &r.worst) {
        (Some(fault), _) => words(fault),
        (None, _) if !r.agrees => {
            let why = r.why.as_deref().unwrap_or("see diff of this prompt");
            let cause = r.first_difference.as_ref().and_then(|first| first.cause.as_ref());
            let cause = cause.map_or(String::new(), |cause| format!(" · {}", printable(cause)));
            format!("does not agree: {}{cause}", printable(why))
        }
        (None, Some((stage, ratio))) => format!("agrees · {} × floor, {stage}", short(*ratio)),
        (None, None) => "agrees".to_string(),
    };
    let mut more = String::new();
    if r.flips > 0 {
        more += &format!(" · {}", count(r.flips, "flip"));
    }
    if let Some(logits) = r.logits {
        more += &format!(" · KL {}", scientific(logits.kld_max));
    }
    let id = format!("{:ID_WIDTH$}", cut(&printable(&r.id), ID_WIDTH));
    let line = format!("{:>6}  {id}  {:>6}  {:9}  {result}{more}", r.index + 1, r.tokens + r.decoded, time(r.seconds));
    cut(&line, WIDTH).trim_end().to_string() + "\n"
}

fn words(fault: &FaultLine) -> String {
    let ratio = fault.ratio.map_or(String::new(), |r| format!(" {} × floor", short(r)));
    let cause = fault.cause.as_ref().map_or(String::new(), |cause| format!(" · {}", printable(cause)));
    format!("{} · {}{ratio}{cause}", printable(&fault.stage), printable(&fault.verdict))
}

fn summary(s: &SweepSummary) -> String {
    let mut text = String::from("\n");
    if !s.faults.is_empty() {
        text += "FIRST FAULTS\n";
        for fault in s.faults.iter().take(MOST_FAULTS) {
            let first = cut(&printable(&fault.first), ID_WIDTH);
            let line = format!("{:>6} × {}, first at {first}", fault.prompts, words(&fault.fault));
            text += &(cut(&line, WIDTH) + "\n");
        }
        if s.faults.len() > MOST_FAULTS {
            text += &format!("         and {} other kinds\n", s.faults.len() - MOST_FAULTS);
        }
        text.push('\n');
    }
    if let Some((id, stage, ratio)) = &s.worst {
        let (id, stage) = (cut(&printable(id), ID_WIDTH), printable(stage));
        text += &format!("WORST   {id}: {} × floor at {stage}\n", short(*ratio));
    }
    text += &format!("FLIPS   {}, {} unexplained\n", s.flips, s.unexplained_flips);
    if let (Some(mean), Some(rate), Some((id, max))) = (s.kld_mean, s.same_top_rate, &s.worst_logits) {
        let id = cut(&printable(id), ID_WIDTH);
        text += &format!(
            "LOGITS  KL mean {}, max {} at {id} · same top-1 {}\n",
            scientific(mean),
            scientific(*max),
            percent(rate)
        );
    }
    let verdict = if s.agrees() { "AGREE " } else { "DIVERGED " };
    text + &format!(
        "{verdict} {} of {}, {}, {}\n",
        s.agree,
        count(s.prompts, "prompt"),
        count(s.tokens, "token"),
        time(s.seconds)
    )
}
