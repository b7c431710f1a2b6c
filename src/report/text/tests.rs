use super::super::sample::{agreeing, diverging};
use super::*;

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
