//! `bench` on the built binary: every form on both backends, documents against their schemas, formats, and what counts
//! as a change.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinscope")).arg("bench").args(args).output().expect("the binary runs")
}

/// Runs, checks the exit code, gives stdout.
fn expect(code: i32, args: &[&str]) -> String {
    let out = bench(args);
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{args:?}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// Fails with `code` and one line on stderr that has every one of `words`; nothing on stdout.
fn refused(code: i32, args: &[&str], words: &[&str]) {
    let out = bench(args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), out.stdout.is_empty()), (Some(code), true), "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: {word:?} is not in: {stderr}");
    }
}

fn valid(schema: &str, document: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(schema);
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let document: Value = serde_json::from_str(document).expect("one JSON document on stdout");
    let validator = jsonschema::draft202012::new(&schema).expect("a schema");
    let errors: Vec<String> = validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    document
}

const BOTH: [&str; 4] = ["--backend", "cpu", "--backend", "gpu"];

#[test]
fn rates_stand_beside_the_limits_of_the_machine() {
    let args = [&BOTH[..], &["-t", "1", "-p", "6", "-n", "2", "-d", "0,3", "--repeat", "2", "--json"]].concat();
    let document = valid("bench.schema.json", &expect(0, &args));
    let rows = document["results"].as_array().unwrap();
    let tests: Vec<&str> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["pp6", "tg2", "pp6 @ d3", "tg2 @ d3"].repeat(2));
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap();
        assert_eq!(row["seconds"].as_array().unwrap().len(), 2);
        let tokens = number("prompt") + number("decode");
        let rates: Vec<f64> = row["seconds"].as_array().unwrap().iter().map(|s| tokens / s.as_f64().unwrap()).collect();
        assert!((number("tokens_per_second") - (rates[0] + rates[1]) / 2.0).abs() < 1e-6 * rates[0], "{row}");
        assert!(number("share_of_limit") > 0.0 && number("gb_per_second") > 0.0 && number("gflop_per_second") > 0.0);
    }
    let limits = document["limits"].as_array().unwrap();
    assert_eq!(limits.len(), 2, "one thread of the processor, and the adapter");
    let launch = &document["backends"][1]["launch"];
    assert!(launch["submission"].as_f64().unwrap() > 0.0 && document["backends"][0]["launch"].is_null());
    let environment = &document["environment"];
    assert!(environment["command"].as_str().unwrap().contains(" bench --backend cpu "), "{environment}");
    let inspected = Command::new(env!("CARGO_BIN_EXE_twinscope")).args(["inspect", "--json"]).output().unwrap();
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(document["model"]["fingerprint"], inspected["model"]["fingerprint"]);
}

#[test]
fn every_format_has_every_row() {
    let run =
        |format: &str| expect(0, &["-t", "1", "-p", "4,5", "-n", "0", "--repeat", "1", "--no-limits", "-o", format]);
    let text = run("table");
    assert!(text.starts_with("demo-moe · qwen3moe · ") && text.contains("fingerprint"), "{text}");
    assert!(text.contains("pp4") && text.contains("pp5") && text.contains("machine"), "{text}");

    let md = run("md");
    let mut lines = md.lines();
    assert!(lines.next().unwrap().starts_with("| model | size | params | backend | threads | test | t/s |"), "{md}");
    assert!(lines.next().unwrap().starts_with("| --- | ---: |") && lines.count() == 2, "{md}");

    let jsonl: Vec<Value> = run("jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(jsonl.len(), 2);
    // llama-bench's names for what llama-bench has.
    assert_eq!((&jsonl[1]["n_prompt"], &jsonl[1]["n_gen"], &jsonl[1]["n_threads"]), (&5.into(), &0.into(), &1.into()));
    let rate = 5e9 / jsonl[1]["avg_ns"].as_f64().unwrap();
    assert!((jsonl[1]["avg_ts"].as_f64().unwrap() / rate - 1.0).abs() < 1e-3, "{:?}", jsonl[1]);

    let csv = run("csv");
    let lines: Vec<&str> = csv.lines().collect();
    let columns = lines[0].split(',').count();
    assert!(lines.len() == 3 && lines[0].contains(",n_prompt,") && lines[0].contains(",avg_ts,"), "{csv}");
    for line in &lines[1..] {
        // No cell of a rate of the bundled model has a quote, so a comma between quotes is all that could mislead.
        let commas = line.split('"').step_by(2).map(|outside| outside.matches(',').count()).sum::<usize>();
        assert_eq!(commas + 1, columns, "{line}");
    }
}

#[test]
fn time_is_taken_apart_by_stage_layer_and_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let timeline = dir.path().join("timeline.json");
    let base = [&BOTH[..], &["-t", "1", "-p", "5", "-n", "1", "--repeat", "2", "--stages"]].concat();
    let args = [&base[..], &["--perfetto", timeline.to_str().unwrap(), "--json"]].concat();
    let document = valid("bench.schema.json", &expect(0, &args));
    let rows = document["results"].as_array().unwrap();
    let of = |part: &str, backend: &str| {
        let same = |row: &&Value| row["part"] == part && row["backend"].as_str().unwrap().starts_with(backend);
        rows.iter().filter(same).collect::<Vec<_>>()
    };
    let names: std::collections::BTreeSet<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), rows.len(), "every row has a name of its own");
    assert_eq!((of("test", "cpu").len(), of("test", "gpu").len()), (2, 2));
    for backend in ["cpu", "gpu"] {
        let stages = of("stage", backend);
        let named =
            |stage: &str| stages.iter().any(|row| row["stage"] == stage || row["with"].to_string().contains(stage));
        assert!(named("attn_scores") && named("expert_down") && named("logits"), "{backend}");
        let share: f64 = of("kernel", backend).iter().map(|row| row["share_of_time"].as_f64().unwrap()).sum();
        assert!((share - 2.0).abs() < 1e-6, "{backend}: the kernels of two tests are all of their time, found {share}");
        assert!(stages.iter().any(|row| row["share_of_limit"].as_f64().is_some_and(|s| s > 0.0)), "{backend}");
    }
    let device = &document["tests"][2];
    assert!(device["around_kernels"]["dispatches"].as_f64().unwrap() > 10.0, "{device}");
    assert!(device["launch_overhead"]["submissions_seconds"].as_f64().unwrap() > 0.0, "{device}");

    let trace: Value = serde_json::from_str(&std::fs::read_to_string(&timeline).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let spans: Vec<&Value> = events.iter().filter(|e| e["ph"] == "X").collect();
    assert!(spans.len() > 4 * 100, "four tests of about a hundred operations: {}", spans.len());
    assert!(spans.iter().all(|e| e["dur"].as_f64().unwrap() >= 0.0 && e["ts"].is_number() && e["pid"].is_u64()));
    assert!(spans.iter().any(|e| e["name"] == "q_rope" && e["args"]["layer"] == 3));
    assert_eq!(events.iter().filter(|e| e["name"] == "process_name").count(), 4);
    assert!(trace["otherData"]["command"].as_str().unwrap().contains("--perfetto"));

    let text = expect(0, &base);
    for word in ["layer 3", "q_rope", "expert_down", "around the kernels", "submission", "of limit", "█"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
}

#[test]
fn single_operations_are_timed_on_every_backend() {
    let args = [&BOTH[..], &["-t", "1", "-p", "1,3", "-d", "4", "--seconds", "0.001", "--json"]].concat();
    let document = valid("bench.schema.json", &expect(0, &[&["ops"][..], &args].concat()));
    let rows = document["results"].as_array().unwrap();
    let find = |backend: &str, op: &str| {
        let same = |row: &&Value| row["op"] == op && row["backend"].as_str().unwrap().starts_with(backend);
        rows.iter().filter(same).count()
    };
    for op in ["embed", "mat_mul", "expert_mat_mul", "attn_scores", "router_top_k"] {
        assert!(find("cpu", op) >= 2 && find("cpu", op) == find("gpu", op), "{op}");
    }
    let text = expect(0, &["ops", "--only", "mat_mul Q4_K*T=1", "--seconds", "0.001", "--no-limits", "-t", "1"]);
    assert!(text.contains("mat_mul") && !text.contains("rms_norm"), "{text}");
    let shape =
        ["ops", "--shape", "tiny", "--quant", "IQ4_XS", "-p", "2", "--seconds", "0.001", "--no-limits", "--json"];
    let document = valid("bench.schema.json", &expect(0, &shape));
    assert_eq!(document["model"]["fingerprint"], Value::Null);
    refused(2, &["ops", "--only", "mat_mull*"], &["--only mat_mull*", "no operation of"]);
}

#[test]
fn tracing_is_measured_against_the_untraced_run() {
    let args = [&BOTH[..], &["--trace-overhead", "-p", "6", "-n", "1", "-t", "1", "--repeat", "2"]].concat();
    let document = valid("bench.schema.json", &expect(0, &[&args[..], &["--json"]].concat()));
    let rows = document["results"].as_array().unwrap();
    assert_eq!(rows.len(), 2 * 2 * 4, "two backends, two tests, four ways");
    for row in rows {
        assert!(row["ratio"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["ratio"] == 1.0, row["watching"] == "untraced", "{row}");
        assert_eq!(row["saved_bytes"].as_u64().is_some_and(|n| n > 10_000), row["watching"] == "saved", "{row}");
    }
    let text = expect(0, &args);
    assert!(text.contains("statistics, and every tensor saved") && text.contains("pp1+tg1"), "{text}");
}

#[test]
fn a_change_is_told_from_noise() {
    let dir = tempfile::tempdir().unwrap();
    let run = ["-t", "1", "-p", "4", "-n", "1", "--repeat", "4", "--json"];
    let document: Value = serde_json::from_str(&expect(0, &run)).unwrap();
    // The times of a real run are what the machine makes them; a test needs to know them.
    let write = |name: &str, edit: &dyn Fn(&mut Value)| {
        let mut document = document.clone();
        for row in document["results"].as_array_mut().unwrap() {
            row["seconds"] = serde_json::json!([1.00, 1.01, 0.99, 1.00]);
        }
        edit(&mut document);
        let path = dir.path().join(name);
        std::fs::write(&path, document.to_string()).unwrap();
        path.to_str().unwrap().to_string()
    };
    let same = write("same.json", &|_| ());
    let slower = write("slower.json", &|d| d["results"][1]["seconds"] = serde_json::json!([1.50, 1.51, 1.49, 1.50]));
    let noisy = write("noisy.json", &|d| d["results"][1]["seconds"] = serde_json::json!([1.5, 0.7, 1.2, 0.9]));
    let elsewhere = write("elsewhere.json", &|d| d["environment"]["machine"]["processor"] = "another".into());
    let twice = write("twice.json", &|d| d["results"][1]["seconds"] = serde_json::json!([1.5, 0.7]));
    let fewer = write("fewer.json", &|d| {
        d["results"].as_array_mut().unwrap().pop();
    });
    let compare = |code: i32, a: &str, b: &str| {
        let text = expect(code, &["compare", a, b]);
        let document = valid("bench-compare.schema.json", &expect(code, &["compare", a, b, "--json"]));
        assert_eq!(document["verdict"], if code == 0 { "agree" } else { "diverged" });
        (text, document)
    };
    compare(0, &same, &same);
    compare(0, &same, &noisy);
    let (text, document) = compare(1, &same, &slower);
    assert!(text.contains("SLOWER  1 of 2 rows") && text.contains("-33."), "{text}");
    assert_eq!(document["rows"][1]["change"], "slower");
    assert_eq!(compare(0, &slower, &same).1["rows"][1]["change"], "faster");
    // Two repetitions are a change without noise to hold it against.
    let (text, document) = compare(1, &same, &twice);
    for part in [
        "-9.1 %",
        "too few repetitions to tell noise",
        "NOT COMPARED  1 row (1 of them with fewer than the 3 repetitions",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!((&document["rows"][1]["change"], &document["rows"][1]["test"]), (&"unknown".into(), &Value::Null));
    let (text, _) = compare(1, &same, &fewer);
    assert!(text.contains("only in A") && text.contains("NOT COMPARED  1 row"), "{text}");
    let (text, document) = compare(0, &same, &elsewhere);
    assert!(text.contains("differs  processor: ") && document["differences"].as_array().unwrap().len() == 1, "{text}");
    expect(0, &["compare", &same, &slower, "--min-change", "0.6"]);
    refused(2, &["compare", &same, &dir.path().join("none.json").to_string_lossy()], &["none.json"]);
    refused(2, &["compare", &same, &slower, "--alpha", "1"], &["--alpha"]);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    refused(2, &["-p", "0", "-n", "0"], &["-p and -n are both 0"]);
    refused(2, &["-p", "5000", "--no-limits"], &["pp5000", "the context length of"]);
    refused(2, &["--backend", "tpu"], &["tpu"]);
    refused(2, &["--perfetto", "timeline.json"], &["--stages"]);
    refused(2, &["--stages", "--trace-overhead"], &["cannot be used with"]);
    refused(125, &["--backend", "gpu:nobody's"], &["nobody's"]);
}

/// What one verb says of the machine, every verb says in the same words.
#[test]
fn the_environment_is_one_record_in_every_schema() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).expect("a schema is JSON")
    };
    let record = read("bench.schema.json")["$defs"]["environment"].clone();
    assert!(record["properties"]["machine"].is_object());
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // These are of files that are read again, not of documents that a verb prints.
        if matches!(name.as_str(), "contract.schema.json" | "manifest.schema.json" | "repro.schema.json") {
            continue;
        }
        assert_eq!(read(&name)["$defs"]["environment"], record, "{name}");
    }
}
