//! `--poison` on the built binary: the same results, a faulty kernel named with exit code 1, and a refusal where nothing is a GPU.

use std::fs;

use super::diff::{expect, refused, valid};

#[test]
fn poisoned_memory_changes_no_result() {
    let results = |more: &[&str]| {
        let run = ["diff", "--prompt", "struct", "--json", "--full"];
        let mut document = valid("diff.schema.json", &expect(0, &[&run[..], more].concat()));
        let document = document.as_object_mut().unwrap();
        document.retain(|key, _| ["stages", "logits", "verdict", "production"].contains(&key.as_str()));
        serde_json::to_string_pretty(document).unwrap()
    };
    assert_eq!(results(&["--poison"]), results(&[]));
    let text = |more: &[&str]| expect(0, &[&["run", "--tokens", "654", "-n", "2", "--backend", "gpu"], more].concat());
    assert_eq!(text(&["--poison"]), text(&[]));
    let trace = |more: &[&str]| expect(0, &[&["trace", "--tokens", "654", "--backend", "gpu"], more].concat());
    assert_eq!(trace(&["--poison"]), trace(&[]));
}

/// A shader of a folder that somebody edited: the kernel is named, where a run without poison may well agree.
#[test]
fn a_kernel_that_goes_too_far_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    let path = folder.to_str().unwrap();
    expect(
        0,
        &["repro", "--tokens", "654,1", "--layer", "1", "--stage", "ffn_norm", "--keep", "--poison", "--out", path],
    );
    expect(0, &["repro", "run", path, "--poison"]);
    let shader = folder.join("shaders").join("rms_norm.wgsl");
    let good = fs::read_to_string(&shader).unwrap();
    for (from, to, words) in [
        ("@compute", "fn unused() {}\n@compute", None),
        (
            "if g < p.groups {",
            "if id.x == 0u { y[p.groups * p.n] = 1.0; }\n    if g < p.groups {",
            Some("wrote 1 words past the end"),
        ),
        ("if g < p.groups {", "if g + 1u < p.groups {", Some("of its output unwritten")),
    ] {
        assert_eq!(good.matches(from).count(), 1, "{from}");
        fs::write(&shader, good.replace(from, to)).unwrap();
        let run = ["repro", "run", path, "--poison"];
        match words {
            Some(words) => {
                refused(1, &run, &["layer 1 · ffn_norm", "kernel rms_norm", words]);
                let document = valid("fault.schema.json", &expect(1, &[&run[..], &["--json"]].concat()));
                let fault = document["fault"].as_str().unwrap();
                assert!(fault.contains("layer 1 · ffn_norm: kernel rms_norm") && fault.contains(words), "{fault}");
            }
            None => drop(expect(0, &run)),
        }
    }
}

#[test]
fn what_only_a_gpu_heeds_is_refused_where_there_is_none() {
    for flag in [&["--poison"][..], &["--gpu-memory", "1GiB"]] {
        let refused =
            |args: &[&str], found: &str| refused(2, &[args, flag].concat(), &[flag[0], "expected a GPU", found]);
        refused(&["run"], "found cpu");
        refused(&["trace", "--backend", "oracle"], "found oracle");
        refused(&["diff", "--subject", "cpu"], "found cpu:scalar and cpu");
        refused(&["diff", "--vary", "repeat=2", "--subject", "cpu"], "found cpu");
        refused(&["diff", "--reference", "trace:gpu", "--subject", "cpu"], "found trace:gpu and cpu");
        refused(
            &["repro", "--layer", "0", "--stage", "q_rope", "--subject", "cpu", "--out", "none"],
            "found cpu:scalar and cpu",
        );
        refused(&["repro", "run", "tests/data/repro_folders/attn_context", "--subject", "cpu"], "found cpu");
    }
    refused(2, &["bench", "--gpu-memory", "1GiB"], &["--gpu-memory", "expected a GPU", "found cpu"]);
    refused(2, &["bench", "ops", "--gpu-memory", "1GiB", "--backend", "gpu"], &["--gpu-memory", "single operations"]);
}
