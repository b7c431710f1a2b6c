//! Many prompts: `diff --prompts`, shards of it, and `merge`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::diff::{expect, refused, twinscope, valid};

/// A folder of this test with a file of five prompts.
fn prompts(name: &str) -> (PathBuf, String) {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("prompts.jsonl");
    let lines = [
        r#"{"prompt": "struct"}"#,
        r#"{"id": "ids", "tokens": [414, 2, 3]}"#,
        "",
        r#"{"id": "fn", "prompt": "fn main() {"}"#,
        r#"{"id": "one", "tokens": [7]}"#,
        r#"{"id": "let", "prompt": "let x"}"#,
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    (dir.clone(), file.display().to_string())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| valid("sweep.schema.json", line)).collect()
}

/// What does not depend on when and how it was run.
fn results(text: &str) -> Vec<String> {
    let mut lines = lines(text);
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        for key in ["seconds", "environment", "shard"] {
            line.remove(key);
        }
    }
    lines.iter().map(Value::to_string).collect()
}

#[test]
fn shards_of_a_sweep_come_to_what_the_whole_does() {
    let (dir, file) = prompts("sweep");
    let run = ["diff", "--subject", "cpu", "--prompts", &file, "--json"];
    let whole = expect(0, &run);
    let found = lines(&whole);
    let kinds: Vec<&str> = found.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["sweep", "prompt", "prompt", "prompt", "prompt", "prompt", "summary"]);
    let ids: Vec<&str> = found[1..6].iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["1", "ids", "fn", "one", "let"]);
    assert_eq!((&found[6]["agree"], &found[6]["prompts"]), (&5.into(), &5.into()));
    assert_eq!(found[2]["tokens"], 3);

    // A prompt comes to what it does alone; a sweep decodes nothing unless told to.
    let alone = ["diff", "--subject", "cpu", "--tokens", "414,2,3", "--decode", "0", "--json"];
    let alone: Value = serde_json::from_str(&expect(0, &alone)).unwrap();
    assert_eq!(found[2]["logits"]["kld_max"], alone["logits"]["kld_max"]);
    let worst = alone["stages"].as_array().unwrap().iter().filter_map(|s| s["ratio"].as_f64()).fold(0.0, f64::max);
    assert_eq!(found[2]["worst"][1], worst);

    // As any scheduler would: processes that share nothing but the file.
    let shards: Vec<String> = (1..=2).map(|n| dir.join(format!("{n}.jsonl")).display().to_string()).collect();
    let program = env!("CARGO_BIN_EXE_twinscope");
    let script = format!(
        "seq 1 2 | xargs -P 2 -I N sh -c '{program} diff --subject cpu --prompts {file} --shard N/2 --json > {}/N.jsonl'",
        dir.display()
    );
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    let merged = expect(0, &["merge", &shards[1], &shards[0], "--json"]);
    assert_eq!(results(&merged), results(&whole));
    let text = expect(0, &["merge", &shards[0], &shards[1]]);
    assert!(text.contains("AGREE  5 of 5 prompts") && text.contains("SWEEP  5 prompts"), "{text}");

    // The script for Slurm does the same under the names that Slurm gives a task.
    let slurm = Command::new("bash")
        .args([
            &format!("{}/scripts/sweep.slurm", env!("CARGO_MANIFEST_DIR")),
            &file,
            &dir.join("s").display().to_string(),
        ])
        .args(["--subject", "cpu"])
        .envs([("SLURM_ARRAY_TASK_ID", "2"), ("SLURM_ARRAY_TASK_COUNT", "2"), ("TWINSCOPE", program)])
        .status();
    assert!(slurm.unwrap().success());
    let by_script = std::fs::read_to_string(dir.join("s/2.jsonl")).unwrap();
    assert_eq!(results(&by_script), results(&std::fs::read_to_string(&shards[1]).unwrap()));

    refused(2, &["merge", &shards[0]], &["2 of 5 prompts", "shard 2/2"]);
    refused(2, &["merge", &shards[0], &shards[0]], &["\"1\"", "1.jsonl"]);
    let part: String = std::fs::read_to_string(&shards[0]).unwrap().lines().take(2).map(|l| format!("{l}\n")).collect();
    std::fs::write(dir.join("part.jsonl"), part).unwrap();
    refused(2, &["merge", &dir.join("part.jsonl").display().to_string()], &["part.jsonl", "without a summary"]);
}

#[test]
fn a_sweep_says_which_prompts_diverge() {
    let (_, file) = prompts("sweep-diverges");
    let run = ["diff", "--subject", "cpu", "--prompts", &file, "--tol", "k_proj:max_abs<=0", "--stop-at", "first"];
    let text = expect(1, &run);
    assert!(text.contains("DIVERGED  0 of 5 prompts"), "{text}");
    assert!(text.contains("5 × layers.0.k_proj"), "{text}");
    let found = lines(&expect(1, &[&run[..], &["--json"]].concat()));
    assert_eq!(found[1]["first_fault"]["stage"], "layers.0.k_proj");
    assert_eq!(found[6]["faults"][0]["prompts"], 5);
}

#[test]
fn prompts_that_cannot_be_run_are_refused_before_any_is() {
    let (dir, file) = prompts("sweep-refused");
    let with = |text: &str| {
        let path = dir.join("other.jsonl");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let no = |text: &str, words: &[&str]| refused(2, &["diff", "--subject", "cpu", "--prompts", &with(text)], words);
    no("{\"prompt\": \"a\"}\n{\"tokens\": [99999999]}", &["other.jsonl: line 2", "99999999"]);
    no("{\"tokens\": []}", &["line 1", "empty"]);
    no("\n\n", &["other.jsonl", "found none"]);
    no("{\"prompt\": 3}", &["line 1"]);
    refused(2, &["diff", "--prompts", &file, "--shard", "6/5"], &["6/5", "I/N"]);
    refused(2, &["diff", "--prompts", &file, "--shard", "7/9", "--subject", "cpu"], &["7/9", "5 prompts"]);
    refused(2, &["diff", "--shard", "1/2"], &["--prompts"]);
    // Which clap lets pass, as what is required is at odds with what is given.
    refused(2, &["diff", "--tokens", "1,2", "--shard", "1/2"], &["--shard", "--tokens"]);
    refused(2, &["diff", "--prompts", "/no/such/file"], &["/no/such/file"]);
    refused(2, &["diff", "--prompts", &file, "--routing", "reference"], &["--routing"]);
    assert!(Path::new(&file).exists() && twinscope(&["merge"]).status.code() == Some(2));
}

#[test]
fn many_prompts_are_traced_in_one_go() {
    let (dir, file) = prompts("sweep-trace");
    let out = dir.join("traces");
    let run = ["trace", "--prompts", &file, "--save", "logits", "--out", &out.display().to_string()];
    let text = expect(0, &run);
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.lines().all(|line| line.contains("next ") && !line.contains("NaN")), "{text}");
    let one = expect(0, &["compare", &out.join("ids").display().to_string(), &out.join("ids").display().to_string()]);
    assert!(one.contains("AGREE"), "{one}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 5);
    refused(2, &run, &["traces/1"]); // which is there, and --force was not said

    let lines = expect(0, &["trace", "--prompts", &file, "--shard", "2/2", "--json"]);
    let tokens: Vec<u64> =
        lines.lines().map(|l| valid("trace.schema.json", l)["tokens"].as_array().unwrap().len() as u64).collect();
    assert_eq!((tokens.len(), tokens[0], tokens[1]), (2, 3, 1));

    std::fs::write(dir.join("bad.jsonl"), r#"{"id": "../up", "tokens": [1]}"#).unwrap();
    let bad = dir.join("bad.jsonl").display().to_string();
    refused(2, &["trace", "--prompts", &bad, "--save", "logits", "--out", &out.display().to_string()], &["../up"]);
}
