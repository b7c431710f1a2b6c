//! Every document says what it was made with: program, date, command, machine, GPUs, models. And nothing else of it changes when
//! the same is run again.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// 2020-02-02, for the documents' date.
const DATE: (&str, &str) = ("1580601600", "2020-02-02T00:00:00Z");

/// Runs `args` in `dir` at [`DATE`]; its stdout.
fn run(dir: &Path, args: &str) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_twinscope"))
        .args(shlex::split(args).expect("words"))
        .current_dir(dir)
        .env("SOURCE_DATE_EPOCH", DATE.0)
        .output()
        .expect("the binary runs");
    assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

/// What the record has to say, whatever was run.
fn complete(what: &str, document: &Value) {
    let record = &document["environment"];
    assert_eq!(record["program"], concat!("twinscope ", env!("CARGO_PKG_VERSION")), "{what}");
    assert_eq!(record["date"], DATE.1, "{what}");
    assert!(record["command"].as_str().is_some_and(|c| c.contains("twinscope")), "{what}");
    let machine = &record["machine"];
    assert!(machine["processor"].is_string() && machine["cores"].as_u64() > Some(0), "{what}");
    assert!(machine["system"].is_string(), "{what}");
}

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().expect("a list").iter().map(|v| v[key].as_str().expect("a name").to_string()).collect()
}

#[test]
fn every_document_says_what_it_was_made_with() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("prompts.jsonl"), "{\"tokens\": [654]}\n").unwrap();
    run(dir, "trace --tokens 654 --backend cpu --save all --out here");
    // The verb, whether a GPU is in it, whether a model is.
    let verbs = [
        ("diff --tokens 654 --json", true, true),
        ("compare here here --json", false, true),
        ("diff --tokens 654 --vary repeat=2 --json", true, true),
        ("diff --prompts prompts.jsonl --json", true, true),
        ("trace --tokens 654 --backend gpu --json", true, true),
        ("bench -p 1 -n 0 -r 1 --no-limits --json", false, true),
        ("bench -p 1 -n 0 -r 1 --no-limits --backend gpu --json", true, true),
        ("selftest --list --json", false, false),
        ("inspect --json", true, true),
        ("devices --json", false, false),
        ("repro --tokens 654 --layer 0 --stage q_rope --keep --out failing --json", true, true),
        ("repro run failing --json", true, true),
    ];
    for (verb, gpu, model) in verbs {
        let text = run(dir, verb);
        // A sweep is lines, of which the first has the record.
        let text = if verb.contains("--prompts") { text.lines().next().unwrap() } else { &text };
        let document: Value = serde_json::from_str(text).unwrap();
        complete(verb, &document);
        let record = &document["environment"];
        let adapters = names(&record["machine"]["adapters"], "driver");
        assert_eq!(adapters.len(), usize::from(gpu), "{verb}: {adapters:?}");
        let models = names(&record["models"], "fingerprint");
        assert_eq!(models.len(), usize::from(model), "{verb}: {models:?}");
        assert!(models.iter().all(|m| m.len() == 64), "{verb}: {models:?}");
    }
    for manifest in ["here/manifest.json", "failing/manifest.json"] {
        complete(manifest, &serde_json::from_slice(&std::fs::read(dir.join(manifest)).unwrap()).unwrap());
    }
}

#[test]
fn without_the_date_the_same_command_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["a.html", "a.xml", "a.json", "a.md", "a.txt"];
    let reports: String = files.iter().map(|name| format!(" --report {name}")).collect();
    let once = || {
        let printed = run(dir.path(), &format!("diff --tokens 654 --json --full{reports}"));
        let read = |name: &&str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        [vec![printed], files.iter().map(read).collect()].concat()
    };
    let (first, second) = (once(), once());
    for (what, (a, b)) in std::iter::once("stdout").chain(files).zip(first.iter().zip(&second)) {
        assert!(a == b, "{what} is not what it was a moment ago");
        for part in [DATE.1, "twinscope 0.", "--tokens 654"] {
            assert!(a.contains(part), "{what} does not say {part}");
        }
    }
}
