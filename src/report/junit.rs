//! The report for continuous integration: JUnit XML, a suite for each layer, a case for each stage and each router.
//!
//! Design:
//! - A stage that adds an error of its own is a failure, and so is the first that is not finite by nobody's fault. One that only inherits, or was not compared, is skipped with the
//!   reason: neither is a pass.
//! - A comparison of nothing has one case, which fails.

use super::facts::{flip, place, provenance, stage_cells, where_facts};
use super::markup::escape;
use crate::diff::outcome::{Comparison, LayerRouting, Measured, StageResult, Verdict};
use crate::environment::Environment;
use crate::text::count;

enum Status {
    Passed,
    Skipped(String),
    Failed { message: String, details: String },
}

struct Case {
    suite: String,
    name: String,
    status: Status,
}

/// The whole document.
pub fn render(c: &Comparison) -> String {
    let mut cases: Vec<Case> = c.stages.iter().map(stage).chain(c.routing.iter().map(router)).collect();
    // Values that are lost by no stage's fault are no agreement either.
    if let Some((i, lost)) =
        c.first_visible.and_then(|i| Some((i, c.stages.get(i).filter(|s| s.is_blamelessly_lost())?)))
    {
        let mut details = vec![place(lost)];
        details.extend(where_facts(lost).into_iter().map(|(name, text)| format!("{name}: {text}")));
        details.extend(c.notes.iter().cloned());
        let what = if lost.overflow.is_some() {
            "overflow here, which the contract allows"
        } else {
            "not finite from here on, by nobody's fault"
        };
        cases[i].status = Status::Failed { message: what.into(), details: details.join("\n") };
    }
    if !c.stages.iter().any(|s| s.verdict.was_compared()) {
        let status = Status::Failed { message: "no stage was compared".into(), details: String::new() };
        cases.push(Case { suite: "model".into(), name: "comparison".into(), status });
    }
    if !c.lacking.is_empty() {
        let message = format!("--require asks for {} that were not compared", count(c.lacking.len(), "stage"));
        let status = Status::Failed { message, details: c.lacking.join("\n") };
        cases.push(Case { suite: "model".into(), name: "coverage".into(), status });
    }
    let mut suites: Vec<&str> = Vec::new();
    for case in &cases {
        if !suites.contains(&case.suite.as_str()) {
            suites.push(&case.suite);
        }
    }
    let totals = |cases: &[&Case]| {
        let failures = cases.iter().filter(|c| matches!(c.status, Status::Failed { .. })).count();
        let skipped = cases.iter().filter(|c| matches!(c.status, Status::Skipped(_))).count();
        format!("tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\"", cases.len())
    };
    let all: Vec<&Case> = cases.iter().collect();
    let title = format!("{}: {} against {}", c.model.name, c.subject.info.backend, c.reference.info.backend);
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    out += &format!("<testsuites name=\"{}\" {}>\n", escape(&title), totals(&all));
    let properties = |indent: &str| {
        let rows = provenance(c, &Environment::here());
        let row = |(name, value): &(&str, String)| {
            format!("{indent}  <property name=\"{}\" value=\"{}\"/>\n", escape(name), escape(value))
        };
        format!("{indent}<properties>\n{}{indent}</properties>\n", rows.iter().map(row).collect::<String>())
    };
    // JUnit's readers look for properties in a suite; once is enough for all.
    let mut first = Some(properties("    "));
    for suite in suites {
        let cases: Vec<&Case> = all.iter().copied().filter(|c| c.suite == suite).collect();
        out += &format!("  <testsuite name=\"{}\" {}>\n", escape(suite), totals(&cases));
        out += &first.take().unwrap_or_default();
        for case in cases {
            let head = format!("    <testcase classname=\"{}\" name=\"{}\"", escape(suite), escape(&case.name));
            out += &match &case.status {
                Status::Passed => format!("{head}/>\n"),
                Status::Skipped(why) => {
                    format!("{head}>\n      <skipped message=\"{}\"/>\n    </testcase>\n", escape(why))
                }
                Status::Failed { message, details } => format!(
                    "{head}>\n      <failure message=\"{}\">{}</failure>\n    </testcase>\n",
                    escape(message),
                    details.lines().map(escape).collect::<Vec<_>>().join("\n")
                ),
            };
        }
        out += "  </testsuite>\n";
    }
    out + "</testsuites>\n"
}

fn suite(layer: Option<u32>) -> String {
    layer.map_or("model".into(), |n| format!("layer {n}"))
}

fn name(step: usize, what: &str) -> String {
    if step == 0 { what.into() } else { format!("{what} (decoded token {step})") }
}

fn stage(s: &StageResult) -> Case {
    let [_, _, _, _, own, total, _, ratio] = stage_cells(s);
    let numbers = match s.ratio {
        Some(_) => format!("own error {own}, {ratio} × floor; total {total}"),
        None => format!("own error {own}; total {total}"),
    };
    let status = match &s.verdict {
        Verdict::Hidden => Status::Skipped("not shown: judged with the next stage that is".into()),
        Verdict::NotCompared(why) => Status::Skipped(format!("not compared: {why}")),
        Verdict::Inherits => Status::Skipped(format!("inherits: {numbers}")),
        v if v.is_fault() => {
            let mut details: Vec<String> = vec![place(s)];
            details.extend(where_facts(s).into_iter().map(|(name, text)| format!("{name}: {text}")));
            if let (None, Measured::Failed(m)) = (&s.injected, &s.total) {
                details.push(m.to_string());
            }
            Status::Failed { message: format!("{v}: {numbers}"), details: details.join("\n") }
        }
        _ => Status::Passed,
    };
    Case { suite: suite(s.site.layer), name: name(s.step, s.site.stage.name()), status }
}

fn router(r: &LayerRouting) -> Case {
    let status = match &r.routing {
        Err(m) => Status::Failed { message: "the routings cannot be compared".into(), details: m.to_string() },
        Ok(x) if x.unexplained() > 0 => {
            let flips = x.flips.iter().map(|f| format!("position {}: {}", f.position, flip(f)));
            let message = format!("{} of {} not explained", x.unexplained(), count(x.flips.len(), "flip"));
            Status::Failed { message, details: flips.collect::<Vec<_>>().join("\n") }
        }
        Ok(_) => Status::Passed,
    };
    Case { suite: suite(Some(r.layer)), name: name(r.step, "routing"), status }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{agreeing, diverging};
    use super::*;

    #[test]
    fn failures_are_what_injects() {
        let xml = render(&diverging());
        assert!(xml.contains("<testsuites name=\"demo-moe-Q4_K_M: gpu against cpu:scalar\" tests=\"100\" failures=\"3\" errors=\"0\" skipped=\"27\">"), "{}", &xml[..200]);
        assert!(xml.contains("<failure message=\"subject wrong: own error 4.1e-7, 3.7e4 × floor; total 4.1e-7\">layer 2 · expert_down\nwhere: expert 3 only"));
        assert!(xml.contains("<skipped message=\"not compared: the subject&#39;s trace lacks it\"/>"));
        assert!(xml.contains("<failure message=\"2 of 3 flips not explained\">position 0: reference 1, subject 2;"));
    }

    #[test]
    fn agreement_passes_and_nothing_fails() {
        let mut c = agreeing();
        let xml = render(&c);
        assert!(xml.contains("tests=\"99\" failures=\"0\" errors=\"0\" skipped=\"0\""));
        c.stages.clear();
        assert!(render(&c).contains("<failure message=\"no stage was compared\">"));
        c.model.name = "<evil>".into();
        assert!(!render(&c).contains("<evil>"));
    }
}
