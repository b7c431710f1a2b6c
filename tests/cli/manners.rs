//! How the program speaks: colour, quiet and verbose, completions, man pages, the text of an issue.

use super::diff::{expect, refused, twinscope};

fn both(args: &[&str]) -> (String, String) {
    let out = twinscope(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
}

#[test]
fn colour_quiet_and_verbose_are_as_asked_for() {
    let run = ["diff", "--tokens", "654", "--subject", "cpu", "--layers", "0"];
    let with = |more: &[&str]| both(&[&run[..], more].concat());
    assert!(!with(&[]).0.contains('\x1b') && !with(&["--color", "never"]).0.contains('\x1b'), "a pipe has no colour");
    assert!(with(&["--color=always"]).0.contains("\x1b[1;32mAGREE"));
    refused(2, &[&run[..], &["--color", "pink"]].concat(), &["pink", "always"]);
    let (verbose, quiet) =
        (with(&["-v"]).1, both(&["diff", "--tokens", "654", "--subject", "cpu", "--threads", "900", "-q"]).1);
    for part in ["opened demo-moe-Q4_K_M: 4 layers", "opened cpu:scalar", "took "] {
        assert!(verbose.contains(part), "{part}: {verbose}");
    }
    assert_eq!(quiet, "", "the note on threads is a remark");
    refused(2, &[&run[..], &["-v", "-q"]].concat(), &["--quiet"]);
}

#[test]
fn completions_and_man_pages_name_every_verb() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let text = expect(0, &["completions", shell]);
        assert!(text.contains("report-issue") && text.contains("stop-at"), "{shell}");
    }
    assert!(expect(0, &["man"]).contains(".TH twinscope 1"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("man1");
    expect(0, &["man", "--out", out.to_str().unwrap()]);
    let page = std::fs::read_to_string(out.join("twinscope-diff.1")).unwrap();
    assert!(page.contains("subject") && page.contains("Examples"), "{page}");
    assert!(std::fs::read_dir(&out).unwrap().count() > 14);
    assert!(expect(0, &["trace", "--help"]).contains("Examples:\n  twinscope trace MODEL.gguf --backend gpu --json"));
}

#[test]
fn an_issue_says_all_that_is_asked_for() {
    let run = ["report-issue", "--tokens", "654,3", "--subject", "cpu", "--tol", "k_proj:max_abs<=0"];
    let text = expect(0, &run);
    for part in [
        "### What happens",
        "FIRST FAULT  layer 0 · k_proj",
        "diff --tokens '654,3' --subject cpu --tol",
        "twinscope repro --tokens 654,3 --layer 0 --stage k_proj",
        "- made by: twinscope ",
        "- reference: cpu:scalar · ",
        "- subject: cpu",
        "- machine: ",
        "fingerprint ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    refused(2, &["report-issue", "--json"], &["--json", "report-issue"]);
}
