//! `diff`, `compare` and `run` on the built binary: results, exit codes, one-line errors, documents against their schemas.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

pub(crate) fn twinscope(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinscope")).args(args).output().expect("the binary runs")
}

/// Runs, checks the exit code, gives stdout.
pub(crate) fn expect(code: i32, args: &[&str]) -> String {
    let out = twinscope(args);
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{args:?}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// Fails with `code` and one line on stderr that has every one of `words`; nothing on stdout.
pub(crate) fn refused(code: i32, args: &[&str], words: &[&str]) {
    let out = twinscope(args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(out.stdout.is_empty(), "{args:?} wrote to stdout");
    assert_eq!(stderr.lines().filter(|l| l.starts_with("error:")).count(), 1, "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: {word:?} is not in: {stderr}");
    }
}

pub(crate) fn valid(schema: &str, document: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(schema);
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let document: Value = serde_json::from_str(document).expect("one JSON document on stdout");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let errors: Vec<String> = validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    document
}

#[test]
fn the_demo_agrees_at_every_stage() {
    let document = valid("diff.schema.json", &expect(0, &["diff", "--json", "--full"]));
    assert_eq!(document["verdict"], "agree");
    // The prompt, and one decoded token, whose kernels are others.
    assert_eq!(document["stages"].as_array().unwrap().len(), 2 * (3 + 4 * 24));
    // What runs while nobody looks gives the same bits, or was judged too.
    assert!(["same", "within_rounding"].contains(&document["production"]["verdict"].as_str().unwrap()));
    assert_eq!(document["production"]["positions"], 12);
    assert!(
        document["stages"].as_array().unwrap().iter().all(|s| s["verdict"] == "ok" && s["ratio"].as_f64().is_some())
    );
    assert_eq!(document["first_fault"], Value::Null);
    assert_eq!(document["judge"], "oracle");
    assert!(document["logits"]["kld_max"].as_f64().unwrap() < 1e-9);
}

#[test]
fn decode_steps_are_compared_too() {
    let json = expect(0, &["diff", "--prompt", "struct", "--decode", "3", "--subject", "cpu", "--json", "--full"]);
    let document = valid("diff.schema.json", &json);
    let steps: Vec<u64> = document["stages"].as_array().unwrap().iter().map(|s| s["step"].as_u64().unwrap()).collect();
    assert_eq!((steps[0], *steps.last().unwrap(), steps.len()), (0, 3, 4 * 99));
    assert_eq!(document["logits"]["positions"], 4);
}

/// Every family, prompt and decoded tokens, judged by the oracle: as many stages as its layers have.
#[test]
fn every_family_agrees_on_cpu_and_gpu() {
    for (family, stages) in [
        ("llama", 2 * 17 + 3),
        ("llama3", 2 * 17 + 3),
        ("mixtral", 2 * 22 + 3),
        ("qwen2", 2 * 20 + 3),
        // A layer without experts and two with some.
        ("glm4moe", 22 + 2 * 33 + 3),
        // A layer of linear attention and one of attention, whose output has a gate.
        ("qwen3next", 34 + 33 + 3),
        ("qwen35moe", 34 + 33 + 3),
        ("qwen35", 2 * 22 + 21 + 3),
    ] {
        let model = format!("{}/tests/families/{family}.gguf", env!("CARGO_MANIFEST_DIR"));
        for subject in ["cpu", "gpu"] {
            let json = expect(
                0,
                &["diff", &model, "--tokens", "5,17,93,17,60,0,88,3", "--decode", "2", "--subject", subject, "--json"],
            );
            let document = valid("diff.schema.json", &json);
            assert_eq!(
                (document["verdict"].as_str(), document["judge"].as_str()),
                (Some("agree"), Some("oracle")),
                "{family}"
            );
            assert_eq!(document["counts"]["compared"], 3 * stages, "{family} {subject}");
        }
    }
}

/// int8 activations keep their own contract at every stage, and under that of f32 they do not.
#[test]
fn int8_activations_are_within_their_contract_and_not_within_that_of_f32() {
    if !twinscope::backend::cpu::Level::Avx2.missing().is_empty() {
        eprintln!("not tested: this processor lacks AVX2");
        return;
    }
    let sides = ["diff", "--reference", "cpu:scalar", "--subject", "cpu:int8", "--json", "--decode", "2"];
    let document = valid("diff.schema.json", &expect(0, &sides));
    assert_eq!(document["verdict"], "agree");
    assert_eq!(document["subject"]["backend"], "cpu:int8");
    let strict = valid("diff.schema.json", &expect(1, &[&sides[..], &["--contract", "subject=f32"]].concat()));
    assert_eq!(strict["first_fault"]["stage"], "q_proj");
    let inferred = expect(0, &["diff", "--subject", "cpu:int8", "--decode", "0", "--contract", "subject=infer"]);
    assert!(inferred.contains("within cpu:int8"), "{inferred}");
}

/// What a shell makes of a command that a report prints, in a folder of its own.
fn shell(command: &str, dir: &Path) -> (Option<i32>, String) {
    let command = command.replacen("twinscope", env!("CARGO_BIN_EXE_twinscope"), 1);
    let out = Command::new("sh").args(["-c", &command]).current_dir(dir).output().expect("a shell");
    (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

/// The command that goes on from a fault finds it again: under the contract, and at the prompt that came through a pipe. A folder keeps what it
/// was held to.
#[test]
fn the_next_command_finds_the_fault_again() {
    if !twinscope::backend::cpu::Level::Avx2.missing().is_empty() {
        eprintln!("not tested: this processor lacks AVX2");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let prompt = dir.path().join("prompt");
    std::fs::write(&prompt, "fn main").unwrap();
    let held =
        ["diff", "--subject", "cpu:int8", "--contract", "subject=f32", "--decode", "0", "--stop-at", "first", "--json"];
    let out = Command::new(env!("CARGO_BIN_EXE_twinscope"))
        .args([&held[..], &["--prompt-file", "-"]].concat())
        .stdin(std::fs::File::open(&prompt).unwrap())
        .output()
        .unwrap();
    let document = valid("diff.schema.json", &String::from_utf8_lossy(&out.stdout));
    let next = document["next"].as_str().unwrap();
    assert!(next.contains(" --tokens ") && next.contains(" --contract f32 "), "{next}");
    let (code, text) = shell(next, dir.path());
    assert!(code == Some(1) && text.contains("layer 0 · q_proj · the subject is wrong"), "{code:?} {text}");
    let (code, text) = shell("twinscope repro run repro", dir.path());
    assert!(code == Some(1) && text.contains("held to f32, as the folder was"), "{code:?} {text}");
    let (code, text) = shell("twinscope repro run repro --contract cpu:int8", dir.path());
    assert!(code == Some(0) && text.contains("the subject agrees"), "{code:?} {text}");
    // As it promises, its operands rounded, it is right.
    let (code, text) = shell("twinscope repro --layer 0 --stage q_proj --subject cpu:int8 --out own", dir.path());
    assert!(code == Some(0) && text.contains("there is nothing to reproduce"), "{code:?} {text}");

    // What lies between two values that are shown is looked into first; a stage over a limit is kept, whatever its floor says.
    let shows = [&held[..], &["--prompt", "fn main", "--shows", "attn_out,logits"]].concat();
    let document = valid("diff.schema.json", &expect(1, &shows));
    let next = document["next"].as_str().unwrap();
    assert!(
        next.starts_with("twinscope diff --prompt 'fn main' --subject cpu:int8 ") && !next.contains("--shows"),
        "{next}"
    );
    let (code, text) = shell(next, dir.path());
    assert!(code == Some(1) && text.contains("FIRST FAULT  layer 0 · q_proj"), "{code:?} {text}");
    let limit = [
        "diff",
        "--prompt",
        "fn main",
        "--subject",
        "cpu",
        "--tol",
        "k_proj:max_abs<=0",
        "--stop-at",
        "first",
        "--json",
    ];
    let document = valid("diff.schema.json", &expect(1, &limit));
    std::fs::remove_dir_all(dir.path().join("repro")).unwrap();
    let (code, text) = shell(document["next"].as_str().unwrap(), dir.path());
    assert!(code == Some(0) && text.contains("next       twinscope repro run repro"), "{code:?} {text}");
}

/// Two sides that err alike would be told apart by nothing but what is said of them.
#[test]
fn a_contract_is_said_once_a_side_and_hinted_at_where_none_is_stated() {
    let twice =
        ["diff", "--contract", "subject=f32", "--contract", "reference=f32", "--contract", "subject=llama.cpp-cpu"];
    refused(2, &twice, &["--contract subject=", "expected once", "f32 and llama.cpp-cpu"]);

    let dir = tempfile::tempdir().unwrap();
    let silent = dir.path().join("silent.safetensors");
    let bytes = std::fs::read("tests/data/captures/llama.cpp.safetensors").unwrap();
    // The key's name becomes one that nobody reads; the file is as long as before.
    let (key, other) = (br#"\"contract\": \"llama.cpp-cpu\""#, br#"\"contrast\": \"llama.cpp-cpu\""#);
    let at = bytes.windows(key.len()).position(|w| w == key).expect("the capture states its contract");
    let bytes = [&bytes[..at], other, &bytes[at + key.len()..]].concat();
    std::fs::write(&silent, bytes).unwrap();
    let (silent, trace) = (silent.display().to_string(), dir.path().join("trace").display().to_string());
    expect(0, &["import", "capture", &silent, "--out", &trace]);
    let side = format!("trace:{trace}");
    let diff = ["diff", "--subject", &side, "--stop-at", "first"];
    let words = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = words(expect(1, &diff));
    assert!(
        text.contains("the subject does not state its arithmetic") && text.contains("--contract subject=infer"),
        "{text}"
    );
    // Whoever says it is told nothing of that, and one who promises too little accuracy is.
    let text = words(expect(1, &[&diff[..], &["--contract", "subject=f32"]].concat()));
    assert!(!text.contains("does not state"), "{text}");
    let exact = [
        "diff",
        "--subject",
        "cpu:scalar",
        "--contract",
        "subject=llama.cpp-cpu",
        "--stop-at",
        "first",
        "--prompt",
        "fn main",
    ];
    let text = words(expect(1, &exact));
    assert!(text.contains("it is more exact there than llama.cpp-cpu"), "{text}");
}

/// Values that the file itself makes no numbers of are nobody's fault, and the weight is named; int8's rounding before them is no difference.
#[test]
fn a_weight_that_is_not_finite_is_named_as_such() {
    let mut bytes = std::fs::read("tests/families/gpt-oss.gguf").unwrap();
    let inspected = valid("inspect.schema.json", &expect(0, &["inspect", "tests/families/gpt-oss.gguf", "--json"]));
    let tensors = inspected["tensors"].as_array().unwrap();
    let sinks = tensors.iter().find(|t| t["name"] == "blk.0.attn_sinks.weight").expect("a tensor of the model");
    let offset = sinks["offset"].as_u64().unwrap() as usize;
    bytes[offset + 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nan.gguf");
    std::fs::write(&path, bytes).unwrap();
    let path = path.to_str().unwrap();
    for subject in ["gpu", "cpu", "cpu:int8"] {
        if subject == "cpu:int8" && !twinscope::backend::cpu::Level::Avx2.missing().is_empty() {
            eprintln!("not tested: {subject} on this processor");
            continue;
        }
        let text = expect(1, &["diff", path, "--tokens", "1,2,3,4", "--decode", "0", "--subject", subject]);
        assert!(text.contains("NOT FINITE  layer 0 · attn_probs"), "{subject}: {text}");
        assert!(
            text.split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .contains("the file's blk.0.attn_sinks.weight is not finite, first at row 0, column 1"),
            "{subject}: {text}"
        );
        assert!(text.contains("DIVERGED  not finite from layer 0 · attn_probs on"), "{subject}: {text}");
        assert!(!text.contains("FIRST"), "{subject}: {text}");
    }
}

/// What no kernel can do is said before anything is run.
#[test]
fn a_head_of_another_size_is_refused_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wide.gguf");
    let path = path.to_str().unwrap();
    let shape =
        ["--shape", "tiny", "--layers", "1", "--heads", "1", "--kv-heads", "1", "--head-dim", "2050", "--quant", "F32"];
    expect(0, &[&["synth", path][..], &shape].concat());
    refused(125, &["diff", path, "--tokens", "1,2"], &["2050"]);
    let document = valid("inspect.schema.json", &expect(0, &["inspect", path, "--json"]));
    let gpu =
        document["runnable"].as_array().unwrap().iter().find(|r| r["backend"].as_str().unwrap().starts_with("gpu"));
    assert!(gpu.is_some_and(|gpu| gpu.to_string().contains("2050")), "{document}");
}

#[test]
fn weights_streamed_through_a_budget_change_nothing() {
    let agreed = |more: &[&str]| {
        let json = expect(0, &[&["diff", "--prompt", "struct", "--decode", "1", "--json", "--full"], more].concat());
        let mut document = valid("diff.schema.json", &json);
        let document = document.as_object_mut().unwrap();
        document.retain(|key, _| ["stages", "logits", "verdict", "first_fault"].contains(&key.as_str()));
        serde_json::to_string_pretty(document).unwrap()
    };
    assert_eq!(agreed(&["--gpu-memory", "1MiB"]), agreed(&[]));
    refused(2, &["diff", "--gpu-memory", "lots"], &["--gpu-memory", "lots", "2GiB"]);
    refused(2, &["diff", "--gpu-memory", "0"], &["--gpu-memory"]);
    refused(2, &["diff", "--gpu-memory", "1000"], &["1000", "1048576"]);
}

#[test]
fn chosen_layers_and_stages_are_judged_as_in_the_whole() {
    let run = ["diff", "--prompt", "struct", "--decode", "2", "--subject", "cpu", "--json", "--full"];
    let stages = |more: &[&str]| {
        let document = valid("diff.schema.json", &expect(0, &[&run[..], more].concat()));
        document["stages"].as_array().unwrap().clone()
    };
    let whole = stages(&[]);
    // What is left of a stage without what needs the whole run.
    let alone = |mut stage: Value| {
        for of_the_whole in ["share_of_logits_error", "amplification"] {
            stage.as_object_mut().unwrap().remove(of_the_whole).unwrap();
        }
        stage.to_string()
    };
    let those = |wanted: &dyn Fn(&Value) -> bool| -> Vec<String> {
        whole.iter().filter(|s| wanted(s)).cloned().map(alone).collect()
    };
    let found = |more: &[&str]| -> Vec<String> { stages(more).into_iter().map(alone).collect() };
    let same = |found: Vec<String>, those: Vec<String>| {
        assert_eq!(found.len(), those.len());
        found.iter().zip(&those).for_each(|(found, that)| assert_eq!(found, that));
    };
    // Of each call the stages of two layers; the last reads what its KV cache got in the calls before.
    same(found(&["--layers", "1,-1"]), those(&|s| s["layer"] == 1 || s["layer"] == 3));
    // Inputs of a stage that is asked about come from stages that are not.
    same(found(&["--stages", "moe_out,logits"]), those(&|s| s["stage"] == "moe_out" || s["stage"] == "logits"));
    // Whether a choice is right depends on the logits that it was made of.
    let routed = those(&|s| s["layer"] == 2 && (s["stage"] == "router_ids" || s["stage"] == "router_logits"));
    same(found(&["--layers", "2", "--stages", "router_ids"]), routed);

    let text = expect(0, &["diff", "--prompt", "struct", "--subject", "cpu", "--layers", "2"]);
    assert!(text.contains("24 of 99 stages of each call were looked at"), "{text}");
    let text = expect(0, &["diff", "--subject", "cpu", "--layers", "2", "--stages", "router_ids"]);
    assert!(text.contains("2 of 99 stages of each call were looked at"), "the logits that they depend on too: {text}");
    refused(2, &["diff", "--layers", "7"], &["--layers", "7"]);
    refused(2, &["diff", "--stages", "moe_outt"], &["--stages: `moe_outt`", "moe_out"]);
    refused(2, &["diff", "--shows", "moe_outt"], &["--shows: `moe_outt`", "moe_out"]);
    refused(2, &["diff", "--shows", "ffn_gate"], &["--shows", "ffn_gate"]); // which the model has not
    refused(2, &["diff", "--shows", "layer_out,logits", "--layers", "1"], &["does not show"]);
}

/// What is asked of stages that are not there, or are not looked at, would go unheard.
#[test]
fn limits_and_what_is_required_are_of_stages_that_are_compared() {
    let (tol, logits) = (["diff", "--subject", "cpu", "--tol"], "logits:nmse<=1");
    let with = |more: &[&'static str]| [&tol[..], more].concat();
    refused(2, &with(&["ffn_gate:nmse<=1"]), &["--tol", "ffn_gate", "does not occur"]); // which the model has not
    refused(2, &with(&["conv*:nmse<=1"]), &["--tol", "conv*"]);
    refused(2, &with(&[logits, "--layers", "0"]), &["--tol logits:nmse<=1", "--layers 0"]);
    let require = ["diff", "--subject", "cpu", "--prompt", "struct", "--require"];
    let with = |more: &[&'static str]| [&require[..], more].concat();
    refused(2, &with(&["logits", "--layers", "0"]), &["--require logits", "--layers 0"]);
    refused(2, &with(&["moe_out", "--layers", "0"]), &["--require moe_out", "layer 1 · moe_out"]);
    refused(2, &with(&["moe_out", "--stages", "attn_*"]), &["--require moe_out", "--stages attn_*"]);
    let text = expect(0, &with(&["moe_out", "--stages", "moe_out,logits", "--tol", "moe_out:ratio<=9"]));
    assert!(text.contains("5 of 99 stages of each call were looked at"), "{text}");
}

#[test]
fn the_first_fault_can_end_the_run() {
    let run = ["diff", "--prompt", "struct", "--subject", "cpu", "--tol", "k_proj:max_abs<=0", "--stop-at", "first"];
    let document = valid("diff.schema.json", &expect(1, &[&run[..], &["--json"]].concat()));
    let stages: Vec<&str> =
        document["stages"].as_array().unwrap().iter().map(|s| s["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["embedding", "attn_norm", "q_proj", "k_proj"]);
    assert_eq!(document["first_fault"]["stage"], "k_proj");
    let text = expect(1, &run);
    assert!(text.contains("stopped at the first fault: 4 of 198 stages were looked at"), "{text}");
    // Without a fault the run is whole.
    let text = expect(0, &["diff", "--prompt", "struct", "--subject", "cpu", "--stop-at", "first"]);
    assert!(text.contains("AGREE") && !text.contains("stopped"), "{text}");
}

#[test]
fn tolerances_decide_where_they_are_given() {
    let one = ["diff", "--prompt", "struct", "--subject", "cpu", "--reference", "oracle"];
    let with = |tol: &'static str| [&one[..], &["--tol", tol]].concat();
    expect(0, &one);
    expect(0, &with("all:ratio<=1"));
    let text = expect(1, &with("q_proj:max_abs<=0"));
    assert!(text.contains("FIRST FAULT  layer 0 · q_proj"), "{text}");
    expect(0, &[&one[..], &["--no-oracle"]].concat());
    refused(2, &with("q_prj:nmse<=1"), &["q_prj", "q_proj"]);
    refused(2, &with("q_proj:nmse=1"), &["q_proj:nmse=1"]);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    refused(2, &["diff", "--subject", "tpu"], &["tpu", "cpu:avx2"]);
    refused(2, &["diff", "--subject", "cpu:sse9"], &["cpu:sse9"]);
    refused(125, &["diff", "--subject", "gpu:no such adapter"], &["no such adapter"]);
    refused(125, &["diff", "--subject", "gpu:99"], &["99"]);
    refused(2, &["diff", "/no/such/model.gguf"], &["/no/such/model.gguf"]);
    refused(2, &["diff", "--prompt", ""], &["empty"]);
    refused(2, &["diff", "--tokens", "1,2048"], &["2048", "vocabulary"]);
    refused(2, &["diff", "--decode", "5000"], &["context length"]);
    refused(2, &["diff", "--prompt-file", "/no/such/prompt"], &["/no/such/prompt"]);
    refused(2, &["diff", "--reference", "trace:/no/such/trace"], &["/no/such/trace"]);
    refused(2, &["diff", "--report", "out.pdf"], &["out.pdf", ".html"]);
    refused(2, &["diff", "--vary", "seed=3"], &["seed=3", "chunk["]);
    refused(2, &["diff", "Cargo.toml"], &["Cargo.toml"]);
    let usage = twinscope(&["diff", "--no-such-flag"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn a_model_that_a_backend_cannot_run_is_refused_before_it_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("narrow.gguf");
    let model = model.to_str().unwrap();
    expect(0, &["synth", model, "--pure", "F16", "--layers", "1", "--head-dim", "6"]);
    let narrow = ["diff", model, "--tokens", "1,2,3"];
    let words = ["gpu cannot run", "qwen3moe.attention.key_length", "head_dim", "multiple of 4, not 6"];
    refused(125, &narrow, &words);
    // A backend that is not asked for lacks nothing, and the others can run the model.
    expect(0, &[&narrow[..], &["--subject", "cpu"]].concat());
}

#[test]
fn traces_are_sides_and_can_be_compared() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let save = |name: &str, backend: &str, prompt: &str| {
        expect(0, &["trace", "--prompt", prompt, "--backend", backend, "--save", "all", "--out", &path(name)]);
        path(name)
    };
    let (a, b) = (save("a", "cpu:scalar", "fn main"), save("b", "gpu", "fn main"));
    let document = valid("diff.schema.json", &expect(0, &["compare", &a, &b, "--json"]));
    assert_eq!(
        (document["schema"].as_str(), document["verdict"].as_str()),
        (Some("twinscope.compare/1"), Some("agree"))
    );
    assert_eq!(document["counts"]["compared"], 99);
    expect(1, &["compare", &a, &b, "--tol", "all:max_abs<=0"]);

    let (side_a, side_b) = (format!("trace:{a}"), format!("trace:{b}"));
    let document = expect(0, &["diff", "--reference", &side_a, "--subject", &side_b, "--json"]);
    let document = valid("diff.schema.json", &document);
    assert_eq!(document["reference"]["trace"].as_str(), Some(&*a));
    expect(0, &["diff", "--subject", &side_b]);
    refused(2, &["diff", "--subject", &side_b, "--prompt", "x"], &["--prompt"]);
    // The comparison is made twice there; a recorded subject cannot compute with other experts than it did.
    expect(0, &["diff", "--reference", &side_a, "--subject", "cpu", "--routing", "reference"]);
    refused(2, &["diff", "--subject", &side_b, "--routing", "reference"], &["--routing reference", "recorded"]);

    let other = save("other", "cpu", "fn other");
    refused(2, &["compare", &a, &other], &["other tokens"]);
    let part = path("part");
    expect(0, &["trace", "--prompt", "fn main", "--save", "logits", "--out", &part]);
    let document = valid("diff.schema.json", &expect(0, &["compare", &a, &part, "--json"]));
    assert_eq!(
        (document["counts"]["compared"].as_u64(), document["counts"]["not_compared"].as_u64()),
        (Some(1), Some(98))
    );
    // What a side does not show is judged with what it does.
    let document = valid("diff.schema.json", &expect(0, &["diff", "--subject", &format!("trace:{part}"), "--json"]));
    assert_eq!((document["counts"]["compared"].as_u64(), document["counts"]["hidden"].as_u64()), (Some(1), Some(98)));
}

#[test]
fn a_backend_equals_itself() {
    let json = expect(0, &["diff", "--vary", "repeat=2", "--prompt", "fn main", "--json"]);
    let document = valid("vary.schema.json", &json);
    assert_eq!(document["variations"][0]["equal"], 99);
    let text = expect(0, &["diff", "--vary", "chunk=3,1", "--subject", "cpu", "--prompt", "let x = 1;"]);
    assert!(text.contains("chunk=1 "), "{text}");
    let text = expect(0, &["diff", "--vary", "reuse", "--prompt", "fn main() {"]);
    assert!(
        text.contains("used before           99 of 99 stages") && text.contains("another prompt before 99 of 99"),
        "{text}"
    );
    assert!(text.ends_with("AGREE  every stage of every run is equal to the bit\n"), "{text}");
    let text = expect(0, &["diff", "--vary", "order", "--prompt", "fn main() {"]);
    assert!(
        text.contains("after a shorter prompt 99 of 99 stages") && text.contains("after a longer prompt  99 of 99"),
        "{text}"
    );
    let text = expect(0, &["diff", "--vary", "threads=1,1", "--subject", "cpu", "--prompt", "fn main() {"]);
    assert!(text.contains("against    itself with threads=1") && text.contains("99 of 99 stages"), "{text}");
    refused(2, &["diff", "--vary", "threads=1,2"], &["--vary threads", "gpu", "only a CPU backend"]);
    refused(2, &["diff", "--vary", "length=3..9", "--tokens", "1,2,3"], &["length=3..9", "3 tokens"]);
    refused(2, &["diff", "--vary", "rows=4", "--tokens", "1,2,3"], &["3 tokens", "nothing that is asked for"]);
}

/// The CPU's scalar kernels take a row at a time; the GPU has other kernels for one row than for many.
#[test]
fn stages_that_depend_on_the_number_of_rows_are_named() {
    let json = expect(
        0,
        &["diff", "--vary", "rows", "--subject", "cpu:scalar", "--prompt", "fn main() { let x = 5;", "--json"],
    );
    let document = valid("vary.schema.json", &json);
    let equal = |v: &serde_json::Value| v["equal"] == v["stages"] && v["stages"] == 99;
    assert!(document["equal"] == true && document["variations"].as_array().unwrap().iter().all(equal), "{document}");
    assert!(document["stages"].as_array().unwrap().iter().all(|s| s["changes"] == serde_json::json!([])));

    let text = expect(0, &["diff", "--vary", "rows=1,2", "--prompt", "fn main() { let x = 5;"]);
    let line = text.lines().find(|l| l.starts_with("q_proj")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("other bits") && line.contains("ULP"), "{text}");
    assert!(!text.lines().any(|l| l.starts_with("attn_norm")), "a norm's rows are each their own: {text}");
    assert!(text.contains("\nAGREE  not invariant: "), "{text}");

    let text = expect(0, &["diff", "--vary", "length=1..2", "--subject", "cpu:scalar", "--tokens", "1,2,3"]);
    assert!(text.contains("length=2   99 of 99 stages equal"), "{text}");
}

#[test]
fn every_backend_writes_the_same_text() {
    let run = |backend| expect(0, &["run", "--prompt", "In Rust, ownership", "-n", "12", "--backend", backend]);
    let text = run("oracle");
    assert!(text.starts_with("In Rust, ownership"));
    for backend in ["cpu:scalar", "cpu", "gpu"] {
        assert_eq!(run(backend), text, "{backend}");
    }
    refused(2, &["run", "-n", "5000"], &["context length"]);
}

#[test]
fn reports_are_written_beside_the_output() {
    let dir = tempfile::tempdir().unwrap();
    let (html, xml) = (dir.path().join("r.html"), dir.path().join("r.xml"));
    let (html, xml) = (html.to_str().unwrap(), xml.to_str().unwrap());
    expect(0, &["diff", "--prompt", "struct", "--subject", "cpu", "--report", html, "--report", xml]);
    assert!(std::fs::read_to_string(html).unwrap().contains("expert_down"));
    assert!(std::fs::read_to_string(xml).unwrap().contains("<testsuite"));
}
