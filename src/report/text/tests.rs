use super::super::sample::{agreeing, diverging};
use super::*;
use crate::diff::outcome::OtherCause;

fn fits(text: &str) {
    for line in text.lines() {
        assert!(width(line) <= WIDTH, "{} columns: {line}", width(line));
        assert_eq!(line, line.trim_end(), "ends in spaces");
    }
}

#[test]
fn a_divergence() {
    let text = render(&diverging(), Style::default());
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn an_agreement() {
    let text = render(&agreeing(), Style::default());
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn everything() {
    let mut c = diverging();
    c.decode = 2;
    c.stages[5].step = 1;
    let text = render(&c, Style { full: true, color: false });
    fits(&text);
    insta::assert_snapshot!(text);
}

#[test]
fn two_traces_that_differ() {
    let mut c = diverging();
    c.kind = ComparisonKind::Compare;
    c.judge = None;
    c.subject.trace = Some("runs/\x1b[31mb".into());
    for s in &mut c.stages {
        s.injected = None;
        (s.ratio, s.floor, s.judged) = (None, None, None);
        if s.visible {
            s.verdict = Verdict::Differs;
        }
    }
    c.conclude();
    let text = render(&c, Style::default());
    fits(&text);
    assert!(!text.contains('\x1b'), "no escape from a path reaches the terminal");
    insta::assert_snapshot!(text);
}

#[test]
fn nothing_compared() {
    let mut c = agreeing();
    c.stages.clear();
    c.logits = None;
    c.conclude();
    let text = render(&c, Style::default());
    assert!(text.contains("DIVERGED") && text.contains("nothing was compared"), "{text}");
}

#[test]
fn colour_only_repeats_what_the_characters_say() {
    for full in [false, true] {
        let plain = render(&diverging(), Style { color: false, full });
        let mut colored = render(&diverging(), Style { color: true, full });
        assert!(colored.contains("\x1b[1;31m█"));
        while let Some(i) = colored.find('\x1b') {
            let end = colored[i..].find('m').unwrap();
            colored.replace_range(i..=i + end, "");
        }
        assert_eq!(colored, plain);
    }
}

#[test]
fn lines_are_wrapped_by_columns_and_lose_nothing() {
    let wrapped = |text: &str| {
        let lines = indented("name  ", text);
        fits(&lines);
        assert!(lines.lines().skip(1).all(|line| line.starts_with("      ")));
        lines.lines().count()
    };
    assert_eq!(indented("name  ", "one two"), "name  one two\n");
    assert_eq!(wrapped(&"four ".repeat(WIDTH)), 6, "19 words of 5 columns in 94");
    assert_eq!(wrapped(&"日本".repeat(47)), 2, "188 columns in 94 each");
    assert_eq!(wrapped(&"e\u{301}".repeat(94)), 1, "accents take no column");
    let path = format!("/{}", "directory/".repeat(30));
    assert_eq!(indented("", &path).replace('\n', ""), path, "a long word is broken, not cut");
    assert_eq!(indented("", "layer-wise --full"), "layer-wise --full\n");
}

/// Of a fault behind the first nothing is said to be its cause that others tie with, unless these are said too.
#[test]
fn a_further_fault_has_its_ties() {
    let cause = |name: &str| OtherCause { id: "factor", name: name.into(), stages: vec![] };
    let with = |others: &[&str]| {
        let mut c = diverging();
        let first = c.stages.iter().position(|s| s.verdict.is_fault()).unwrap();
        let (ratio, cause_of_first) = (c.stages[first].ratio, c.stages[first].cause.clone());
        let further = c.stages.iter().skip(first + 1).position(|s| s.verdict.is_fault()).unwrap() + first + 1;
        let s = &mut c.stages[further];
        (s.ratio, s.cause) = (ratio, cause_of_first);
        let own = s.cause.as_mut().unwrap();
        (own.name, own.others) = ("expert_up: 2 times".into(), others.iter().map(|name| cause(name)).collect());
        let text = render(&c, Style::default());
        text.split("ALSO WRONG").nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(with(&[]).contains(": expert_up: 2 times"));
    let two = with(&["expert_down: 2 times"]);
    assert!(two.contains(": one of 2: expert_up: 2 times; or expert_down: 2 times"), "{two}");
    let many = with(&["a: 2 times", "b: 2 times", "c: 2 times", "d: 2 times"]);
    assert!(many.contains("one of 5: expert_up: 2 times; or a: 2 times; or b: 2 times; or 2 others"), "{many}");
}
