//! Sweeps by hand-made values.

use super::summary::LogitsLine;
use super::*;

fn compared(prompts: usize) -> Compared {
    let side = |name: &str| [name.to_string(), "f32".to_string()];
    Compared {
        model: "demo".into(),
        fingerprint: "f".into(),
        reference: side("cpu:scalar"),
        subject: side("gpu"),
        judge: Some("oracle".into()),
        decode: 0,
        chunk: 512,
        options: Vec::new(),
        prompts,
        prompts_sha256: "p".into(),
    }
}

fn result(index: usize, fault: Option<&str>, ratio: f64, logits: (usize, f64)) -> PromptResult {
    let fault = fault.map(|stage| FaultLine {
        stage: stage.into(),
        step: 0,
        verdict: "subject wrong".into(),
        ratio: Some(ratio),
        cause: None,
    });
    let (positions, kld) = logits;
    PromptResult {
        id: format!("p{index}"),
        index,
        tokens: positions,
        decoded: 1,
        agrees: fault.is_none(),
        first_fault: fault,
        first_difference: None,
        why: None,
        worst: Some((format!("layers.{index}.q_rope"), ratio)),
        flips: index,
        unexplained_flips: 0,
        logits: Some(LogitsLine { positions, kld_mean: kld / 2.0, kld_max: kld, same_top: positions - 1 }),
        notes: Vec::new(),
        seconds: 0.5,
    }
}

fn shard(number: usize, of: usize, results: Vec<PromptResult>, prompts: usize) -> Sweep {
    let shard = format!("{number}/{of}").parse().unwrap();
    let header = SweepHeader { schema: SCHEMA.into(), environment: Value::Null, compared: compared(prompts), shard };
    Sweep { header, results }
}

fn text(sweep: &Sweep, summary: bool) -> String {
    let mut lines = vec![SweepLine::Sweep(sweep.header.clone())];
    lines.extend(sweep.results.iter().cloned().map(SweepLine::Prompt));
    lines.extend(summary.then(|| SweepLine::Summary(SweepSummary::of(&sweep.results))));
    lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect()
}

#[test]
fn a_summary_counts_faults_that_are_alike_and_weighs_positions() {
    let results = [
        result(0, None, 0.5, (2, 1e-3)),
        result(1, Some("layers.1.q_rope"), 7.0, (4, 4e-3)),
        result(2, Some("layers.2.moe_out"), 30.0, (2, 2e-3)),
        result(3, Some("layers.1.q_rope"), 9.0, (2, 0.0)),
    ];
    let summary = SweepSummary::of(&results);
    assert_eq!((summary.prompts, summary.agree, summary.tokens, summary.flips), (4, 1, 14, 6));
    assert!(!summary.agrees() && SweepSummary::of(&results[..1]).agrees() && !SweepSummary::of(&[]).agrees());
    let faults: Vec<_> = summary.faults.iter().map(|f| (f.fault.stage.as_str(), f.prompts, f.first.as_str())).collect();
    assert_eq!(faults, [("layers.1.q_rope", 2, "p1"), ("layers.2.moe_out", 1, "p2")]);
    assert_eq!(summary.faults[0].fault.ratio, Some(7.0), "that of the first");
    assert_eq!(summary.worst, Some(("p2".into(), "layers.2.q_rope".into(), 30.0)));
    assert_eq!(summary.worst_logits, Some(("p1".into(), 4e-3)));
    // (2 · 0.5e-3 + 4 · 2e-3 + 2 · 1e-3 + 0) / 10, and 1 + 3 + 1 + 1 of 10.
    assert!((summary.kld_mean.unwrap() - 1.1e-3).abs() < 1e-15);
    assert_eq!((summary.same_top_rate, summary.seconds), (Some(0.6), 2.0));
}

#[test]
fn merged_shards_are_the_whole() {
    let all: Vec<PromptResult> = (0..5).map(|n| result(n, None, 0.1 * n as f64, (3, 1e-9))).collect();
    let part = |number: usize| {
        let here: Shard = format!("{number}/2").parse().unwrap();
        shard(number, 2, all.iter().filter(|r| here.has(r.index)).cloned().collect(), 5)
    };
    let [one, two] = [1, 2].map(part);
    assert_eq!((one.results.len(), two.results.len()), (3, 2));
    let read = |sweep: &Sweep| Sweep::parse(Path::new("s.jsonl"), &text(sweep, true)).unwrap();
    assert_eq!(read(&one), one);
    let merged = Sweep::merge(&[("b".into(), read(&two)), ("a".into(), read(&one))]).unwrap();
    assert_eq!((merged.results.as_slice(), merged.header.shard), (all.as_slice(), Shard::WHOLE));
    assert_eq!(SweepSummary::of(&merged.results), SweepSummary::of(&all));

    let refused = |shards: &[(String, Sweep)]| Sweep::merge(shards).unwrap_err().to_string();
    let missing = refused(&[("a".into(), one.clone())]);
    assert!(missing.contains("2 of 5 prompts") && missing.contains("shard 2/2"), "{missing}");
    let mut endless = one.clone();
    endless.header.compared.prompts = usize::MAX;
    let missing = refused(&[("a".into(), endless)]);
    assert!(missing.contains("18446744073709551612 of 18446744073709551615 prompts"), "{missing}");
    let twice = refused(&[("a".into(), one.clone()), ("b".into(), one.clone())]);
    assert!(twice.contains("\"p0\" is in a and in b"), "{twice}");
    let mut other = two;
    other.header.compared.fingerprint = "g".into();
    let differ = refused(&[("a".into(), one), ("b".into(), other)]);
    assert!(differ.contains("a and b") && differ.contains("fingerprint is \"f\" and \"g\""), "{differ}");
}

#[test]
fn a_shard_that_is_not_whole_is_refused_by_line() {
    let one = shard(1, 2, vec![result(0, None, 0.1, (3, 0.0))], 4);
    let refused = |text: &str| Sweep::parse(Path::new("s.jsonl"), text).unwrap_err().to_string();
    let ended = refused(&text(&one, false));
    assert!(ended.contains("s.jsonl: shard 1/2 ends after 1 prompts"), "{ended}");
    let whole = text(&one, true);
    let lines: Vec<&str> = whole.lines().collect();
    for (lines, expected) in [
        (vec![], "found nothing"),
        (vec![lines[1]], "line 1: expected the header"),
        (vec![lines[0], lines[0]], "line 2: found a second header"),
        (vec![lines[0], lines[1], lines[1]], "line 3: prompt 0 is there twice"),
        (vec![lines[0], lines[2], lines[1]], "line 3: expected nothing behind the summary"),
        (vec!["{\"kind\": \"other\"}"], "line 1: expected a line of a sweep"),
        (vec!["not json"], "line 1: expected a line of a sweep"),
    ] {
        let error = refused(&lines.join("\n"));
        assert!(error.contains(expected), "{error} does not have {expected}");
    }
    let schema = refused(&lines[0].replace(SCHEMA, "twinscope.sweep/9"));
    assert!(schema.contains("sweep/1") && schema.contains("sweep/9"), "{schema}");
    let mut foreign = one;
    foreign.results[0].index = 1;
    assert!(refused(&text(&foreign, true)).contains("prompt 1 is not of shard 1/2"));
}

#[test]
fn shards_and_prompts_are_read_by_their_rules() {
    for text in ["0/2", "3/2", "2", "1/0", "a/b", "1/2/3", "-1/2"] {
        assert!(text.parse::<Shard>().is_err(), "{text}");
    }
    let parse = |text: &str| PromptFile::parse(Path::new("p.jsonl"), text);
    let file = parse("{\"prompt\": \"a\"}\n\n{\"id\": \"x\", \"tokens\": [1, 2]}\n").unwrap();
    let ids: Vec<_> = file.lines.iter().map(|(n, line)| (*n, line.id.as_deref().unwrap())).collect();
    assert_eq!(ids, [(1, "1"), (3, "x")]);
    for (text, expected) in [
        ("", "found none"),
        ("{}", "line 1: expected one of"),
        ("{\"prompt\": \"a\", \"tokens\": [1]}", "line 1: expected one of"),
        ("{\"prompt\": \"a\"}\n{\"promt\": \"a\"}", "line 2: expected an object"),
        ("{\"prompt\": \"a\", \"id\": \"2\"}\n{\"prompt\": \"b\"}", "line 2: the id \"2\" is that of line 1 too"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains("p.jsonl") && error.contains(expected), "{error} does not have {expected}");
    }
}
