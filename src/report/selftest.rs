//! What the self-test found: as a table, and as JSON.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::diff::outcome::Verdict;
use crate::op::{Site, Stage};
use crate::report::format::short;

/// Every run of the self-test.
#[derive(Clone, Debug, Default)]
pub struct SelftestReport {
    pub faults: Vec<FaultResult>,
    pub controls: Vec<Control>,
    /// What some of the faults were made up from.
    pub made_up: Option<MadeUp>,
}

/// From what faults are made up that are in no table: the same again from the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MadeUp {
    pub count: usize,
    pub seed: u64,
}

/// What was planted on a model.
#[derive(Clone, Copy, Debug, Serialize)]
struct ModelTotals {
    model: &'static str,
    planted: usize,
    detected: usize,
    located: usize,
    /// The cause is named, or rightly none.
    explained_ok: usize,
    /// Those of them without one.
    open: usize,
    /// Stages judged that no fault was planted in.
    evaluations: usize,
}

/// One planted run.
#[derive(Clone, Debug)]
pub struct FaultResult {
    pub name: &'static str,
    pub model: &'static str,
    pub subject: &'static str,
    /// Where the first of its faults must be located.
    pub layer: Option<u32>,
    pub stage: Stage,
    pub step: usize,
    pub expert: Option<u32>,
    pub position: Option<usize>,
    /// In rounding floors; `None` for the fault as it is.
    pub strength: Option<f64>,
    /// The planted error over the floor of the side that errs.
    pub planted_ratio: f64,
    /// It is in no table.
    pub made_up: bool,
    pub outcome: TrialOutcome,
}

/// What a case came to.
#[derive(Clone, Debug)]
pub struct TrialOutcome {
    /// The comparison disagrees.
    pub detected: bool,
    /// The first fault is the planted one, with its expert and position; and where several are planted, each is found.
    pub located: bool,
    pub side_ok: bool,
    pub pattern_ok: bool,
    /// The cause is named; or rightly none, where no hypothesis describes the fault, or it is weaker than the mistake is.
    pub explained_ok: bool,
    /// A cause is named that is not the planted one.
    pub wrongly_explained: bool,
    /// Of a subject that shows only some stages: how one of the faults comes to leave what is shown within its floor.
    pub unseen: Option<String>,
    /// Stages that are blamed and are not at fault.
    pub blamed: Vec<String>,
    /// Stages judged, those of the plants aside.
    pub evaluations: usize,
    /// The first fault as it was reported.
    pub found: Option<FoundFault>,
}

impl TrialOutcome {
    /// No cause was named.
    fn open(&self) -> bool {
        self.found.as_ref().is_none_or(|found| !found.explained)
    }
}

/// What a comparison said of a fault.
#[derive(Clone, Debug)]
pub struct FoundFault {
    pub site: Site,
    pub step: usize,
    pub verdict: Verdict,
    pub ratio: f64,
    pub position: Option<usize>,
    pub expert: Option<u32>,
    pub pattern: Option<String>,
    pub cause: Option<String>,
    /// The cause is reproduced.
    pub explained: bool,
}

/// One run without a fault.
#[derive(Clone, Debug, Serialize)]
pub struct Control {
    pub model: &'static str,
    pub reference: String,
    pub subject: String,
    pub adapter: String,
    pub software: bool,
    pub decode: usize,
    /// Whether a router has equal experts.
    pub tied: bool,
    pub agrees: bool,
    pub evaluations: usize,
    pub false_alarms: Vec<String>,
}

impl FaultResult {
    /// Detected, located, the right side named and no wrong cause; or not to be seen in what is shown.
    pub fn passed(&self) -> bool {
        let o = &self.outcome;
        (o.unseen.is_some() || o.detected && o.located && o.side_ok) && o.blamed.is_empty() && !o.wrongly_explained
    }

    fn place(&self) -> String {
        let layer = self.layer.map_or(String::new(), |n| format!("layer {n} · "));
        let step = if self.step == 0 { String::new() } else { format!(" · step {}", self.step) };
        format!("{layer}{}{step}", self.stage)
    }
}

impl SelftestReport {
    /// Stages that were blamed and were not at fault.
    pub fn false_alarms(&self) -> usize {
        let controls = self.controls.iter().map(|c| c.false_alarms.len().max(usize::from(!c.agrees)));
        controls.chain(self.faults.iter().map(|f| f.outcome.blamed.len())).sum()
    }
    /// Stages judged that no fault was planted in.
    pub fn evaluations(&self) -> usize {
        let controls = self.controls.iter().map(|c| c.evaluations);
        controls.chain(self.faults.iter().map(|f| f.outcome.evaluations)).sum()
    }
    /// Whether every fault was detected, located and put on the right side, none explained wrongly, and nothing else was blamed.
    pub fn passed(&self) -> bool {
        self.faults.iter().all(FaultResult::passed) && self.false_alarms() == 0
    }

    /// By model, in the order of the controls: what was planted on it, and what came of it.
    fn by_model(&self) -> Vec<ModelTotals> {
        let mut names: Vec<&'static str> = Vec::new();
        for name in self.controls.iter().map(|c| c.model).chain(self.faults.iter().map(|f| f.model)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let totals = |model| {
            let controls = || self.controls.iter().filter(move |c| c.model == model);
            let seen = || self.seen().filter(move |f| f.model == model);
            let all = self.faults.iter().filter(|f| f.model == model);
            let count = |of: fn(&TrialOutcome) -> bool| seen().filter(|f| of(&f.outcome)).count();
            ModelTotals {
                model,
                planted: all.clone().count(),
                detected: count(|o| o.detected),
                located: count(|o| o.located),
                explained_ok: count(|o| o.explained_ok),
                open: count(|o| o.explained_ok && o.open()),
                evaluations: controls().map(|c| c.evaluations).chain(all.map(|f| f.outcome.evaluations)).sum(),
            }
        };
        names.into_iter().map(totals).collect()
    }

    /// Runs whose faults show.
    fn seen(&self) -> impl Iterator<Item = &FaultResult> {
        self.faults.iter().filter(|f| f.outcome.unseen.is_none())
    }

    /// The document of schema `twinscope.selftest/1`.
    pub fn to_json(&self) -> Json {
        let count = |f: fn(&TrialOutcome) -> bool| self.seen().filter(|r| f(&r.outcome)).count();
        json!({
            "schema": "twinscope.selftest/1",
            "passed": self.passed(),
            "faults": self.faults.iter().map(fault_json).collect::<Vec<_>>(),
            "controls": self.controls,
            "made_up": self.made_up,
            "by_model": self.by_model(),
            "false_alarms": self.false_alarms(),
            "evaluations": self.evaluations(),
            "totals": {
                "planted": self.faults.len(),
                "unseen": self.faults.len() - self.seen().count(),
                "detected": count(|o| o.detected),
                "located": count(|o| o.located),
                "side_ok": count(|o| o.side_ok),
                "pattern_ok": count(|o| o.pattern_ok),
                "explained_ok": count(|o| o.explained_ok),
                "open": count(|o| o.explained_ok && o.open()),
                "wrongly_explained": count(|o| o.wrongly_explained),
            },
        })
    }

    /// For people: a line for each run, what is made up apart, then what went wrong.
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let (made_up, listed): (Vec<_>, Vec<_>) = self.faults.iter().partition(|f| f.made_up);
        if !listed.is_empty() {
            let _ = writeln!(out, "{}", table(&listed));
        }
        if let Some(MadeUp { count, seed }) = self.made_up.filter(|_| !made_up.is_empty()) {
            let _ = writeln!(out, "made up: `selftest --generate {count} --seed {seed}` plants the same again\n");
            let _ = writeln!(out, "{}", table(&made_up));
        }
        for (f, why) in self.faults.iter().filter_map(|f| f.outcome.unseen.as_ref().map(|why| (f, why))) {
            let _ = writeln!(out, "{} on {} at {} is not to be seen: {why}", f.name, f.model, f.place());
        }
        for f in self.seen().filter(|f| !(f.passed() && f.outcome.pattern_ok && f.outcome.explained_ok)) {
            let _ = writeln!(out, "{}", failure(f));
        }
        for c in self.controls.iter().filter(|c| !c.agrees) {
            let _ = writeln!(
                out,
                "control {} · {} and {} · decode {}: {}",
                c.model,
                c.reference,
                c.subject,
                c.decode,
                if c.false_alarms.is_empty() { "disagrees".to_string() } else { c.false_alarms.join("; ") }
            );
        }
        let by_model = self.by_model();
        if by_model.len() > 1 {
            let _ = writeln!(out, "{}", models(&by_model));
        }
        let n = self.faults.len();
        let share = |f: fn(&TrialOutcome) -> bool| self.seen().filter(|r| f(&r.outcome)).count();
        let unseen = n - self.seen().count();
        if unseen > 0 {
            let _ = writeln!(out, "{unseen} of the planted are not to be seen in what is shown");
        }
        let open = match share(|o| o.explained_ok && o.open()) {
            0 => String::new(),
            open => format!(" ({open} left open)"),
        };
        let _ = writeln!(
            out,
            "{n} planted · {} detected · {} located · {} on the right side · {} with the right geometry · {} rightly explained{open}",
            share(|o| o.detected),
            share(|o| o.located),
            share(|o| o.side_ok),
            share(|o| o.pattern_ok),
            share(|o| o.explained_ok),
        );
        let _ = writeln!(
            out,
            "{} controls · {} false alarms in {} stage evaluations · {} wrongly explained",
            self.controls.len(),
            self.false_alarms(),
            self.evaluations(),
            share(|o| o.wrongly_explained),
        );
        out
    }
}

/// A line for each model.
fn models(totals: &[ModelTotals]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["model", "planted", "detected", "located", "explained", "left open", "evaluations"]);
    for t in totals {
        let numbers = [t.planted, t.detected, t.located, t.explained_ok, t.open, t.evaluations].map(|n| n.to_string());
        table.add_row(std::iter::once(t.model.to_string()).chain(numbers));
    }
    table.column_iter_mut().skip(1).for_each(|column| {
        column.set_cell_alignment(CellAlignment::Right);
    });
    let lines = table.lines().map(|line| format!("{}\n", line.trim_end()));
    lines.collect()
}

/// A line for each run.
fn table(faults: &[&FaultResult]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["fault", "model", "on", "planted at", "× floor", "seen", "located", "side", "geometry", "cause"]);
    for f in faults {
        let o = &f.outcome;
        let strength = match (f.strength, f.planted_ratio) {
            (Some(times), _) => short(times),
            (None, r) if r.is_finite() => short(r),
            _ => "—".into(),
        };
        let mark = |ok: bool| match (&o.unseen, ok) {
            (Some(_), _) => "—",
            (None, true) => "yes",
            (None, false) => "NO",
        };
        let mark = |ok| mark(ok).to_string();
        table.add_row([
            f.name.to_string(),
            f.model.to_string(),
            f.subject.to_string(),
            f.place(),
            strength,
            mark(o.detected),
            mark(o.located),
            mark(o.side_ok),
            mark(o.pattern_ok),
            mark(o.explained_ok),
        ]);
    }
    if let Some(column) = table.column_mut(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines = table.lines().map(|line| format!("{}\n", line.trim_end()));
    lines.collect()
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

fn fault_json(f: &FaultResult) -> Json {
    let o = &f.outcome;
    json!({
        "name": f.name,
        "model": f.model,
        "subject": f.subject,
        "made_up": f.made_up,
        "layer": f.layer,
        "stage": f.stage.name(),
        "step": f.step,
        "expert": f.expert,
        "position": f.position,
        "strength": f.strength,
        "planted_ratio": finite(f.planted_ratio),
        "detected": o.detected,
        "located": o.located,
        "side_ok": o.side_ok,
        "pattern_ok": o.pattern_ok,
        "explained_ok": o.explained_ok,
        "wrongly_explained": o.wrongly_explained,
        "unseen": o.unseen,
        "blamed": o.blamed,
        "found": o.found.as_ref().map(found_json),
    })
}

fn found_json(found: &FoundFault) -> Json {
    json!({
        "layer": found.site.layer,
        "stage": found.site.stage.name(),
        "step": found.step,
        "verdict": found.verdict.name(),
        "ratio": finite(found.ratio),
        "position": found.position,
        "expert": found.expert,
        "pattern": found.pattern,
        "cause": found.cause,
    })
}

/// What went wrong with a planted run.
fn failure(f: &FaultResult) -> String {
    let mut out = format!("{} on {} at {}", f.name, f.model, f.place());
    let o = &f.outcome;
    let _ = match &o.found {
        None => write!(out, ": no stage was blamed"),
        Some(found) => {
            let step = if found.step == 0 { String::new() } else { format!(", step {}", found.step) };
            let pattern = found.pattern.as_deref().unwrap_or("no geometry");
            let wanted = match (f.expert, f.position) {
                (None, None) => String::new(),
                (expert, position) => format!(
                    "; expert {:?} and position {:?}, planted {expert:?} and {position:?}",
                    found.expert, found.position
                ),
            };
            let cause = found.cause.as_deref().unwrap_or("no hypothesis applies");
            write!(out, ": found {}{step}, {}; {pattern}{wanted}; {cause}", found.site, found.verdict)
        }
    };
    if !o.blamed.is_empty() {
        let _ = write!(out, "; also blamed: {}", o.blamed.join("; "));
    }
    out
}
