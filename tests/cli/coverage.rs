//! How much a comparison covers: said where it agrees, demanded by `--require`, and no reason for a document of megabytes.

use super::diff::{expect, refused, valid};

fn last_line(text: &str) -> String {
    let start = ["AGREE", "DIVERGED"].iter().filter_map(|word| text.rfind(word)).max().expect("a verdict");
    text[start..].split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn agreement_says_of_how_much() {
    let run = ["diff", "--tokens", "654", "--decode", "0", "--subject", "cpu"];
    let line = |more: &[&str]| last_line(&expect(0, &[&run[..], more].concat()));
    assert!(line(&[]).starts_with("AGREE all 99 stages compared, the largest own error"), "{}", line(&[]));
    let some = line(&["--layers", "1", "--stages", "attn_*"]);
    assert!(some.starts_with("AGREE 6 of the run's 99 stages compared"), "{some}");
}

#[test]
fn too_little_coverage_is_a_failure() {
    let run = ["diff", "--tokens", "654", "--subject", "cpu", "--layers", "1"];
    expect(0, &run);
    expect(0, &["diff", "--tokens", "654", "--subject", "cpu", "--require", "all"]);
    // What is left out cannot be required: that is said before the run.
    for stages in ["attn_norm,logits", "all"] {
        refused(2, &[&run[..], &["--require", stages]].concat(), &["--require", "--layers 1", "not looked at"]);
    }
    refused(2, &[&run[..], &["--require", "moe_outt"]].concat(), &["moe_outt", "moe_out"]);
    // What is hidden between shown values is judged with them.
    let shows = ["diff", "--tokens", "654", "--subject", "cpu", "--shows", "layer_out,logits", "--require", "all"];
    expect(0, &shows);
}

#[test]
fn partial_traces_are_compared_in_what_they_have() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (whole, part) = (path("whole"), path("part"));
    let trace = |stages: &str, out: &str| {
        expect(0, &["trace", "--tokens", "654", "--backend", "cpu", "--save", stages, "--out", out]);
    };
    trace("all", &whole);
    trace("router*,moe_out", &part);
    let text = expect(0, &["compare", &whole, &part]);
    assert!(text.contains("STAGES  the worst 12 of 20 that were compared"), "{text}");
    let list = text.split("STAGES").nth(1).unwrap().split("own:").next().unwrap();
    assert!(!list.contains("not compared"), "{list}");
    assert!(last_line(&text).starts_with("AGREE 20 of the run's 99 stages compared, 79 not"), "{text}");
    expect(0, &["compare", &whole, &part, "--require", "moe_out"]);
    let text = expect(1, &["compare", &whole, &part, "--require", "all"]);
    let line = last_line(&text);
    assert!(line.starts_with("DIVERGED --require asks for embedding and 78 more, not compared"), "{line}");
    let xml = path("a.xml");
    expect(1, &["compare", &whole, &part, "--require", "ffn_norm", "--report", &xml]);
    let xml = std::fs::read_to_string(xml).unwrap();
    assert!(xml.contains("--require asks for 4 stages that were not compared"), "{xml}");
}

#[test]
fn a_document_is_brief_unless_everything_is_asked_for() {
    let run = ["diff", "--tokens", "654,1,2", "--decode", "3", "--subject", "cpu", "--json"];
    let (brief, full) = (expect(0, &run), expect(0, &[&run[..], &["--full"]].concat()));
    assert!(brief.len() < full.len() / 10, "{} and {} bytes", brief.len(), full.len());
    let (brief, full) = (valid("diff.schema.json", &brief), valid("diff.schema.json", &full));
    assert_eq!((&brief["full"], &full["full"]), (&false.into(), &true.into()));
    assert_eq!((&brief["counts"], &brief["logits"]["kld_max"]), (&full["counts"], &full["logits"]["kld_max"]));
    assert_eq!(full["stages"].as_array().unwrap().len(), 4 * 99);
}

/// Eight experts of which two are used: 129 positions give one of them 33 slots, past a tile of 32.
#[test]
fn cover_repeats_the_prompt_until_every_kernel_runs() {
    let run = ["diff", "--tokens", "422,472,345", "--subject", "gpu", "--no-oracle"];
    let some = expect(0, &[&run[..], &["--decode", "0"]].concat());
    assert!(some.contains("matrix kernels of gpu were run; not "), "{some}");
    let all = expect(0, &[&run[..], &["--cover"]].concat());
    assert!(all.contains("129 tokens and 1 decoded") && !all.contains("matrix kernels of gpu were run"), "{all}");
    // A backend without tiles takes the prompt as it is.
    let cpu = expect(0, &["diff", "--tokens", "422,472,345", "--subject", "cpu", "--cover"]);
    assert!(cpu.contains("3 tokens and 1 decoded"), "{cpu}");
    refused(2, &["diff", "--cover", "--vary", "rows"], &["--cover"]);
}
