//! Values that are not finite, in weights and in keys: said by every verb that meets them, and by none as somebody's fault.

use std::path::Path;

use twinscope::gguf::{self, Gguf, TensorSpec, Value};

use super::diff::{expect, twinscope, valid};

const DEMO: &str = "models/demo-moe-Q4_K_M.gguf";

/// A copy of `file` in which an f32 of a tensor is NaN.
fn with_nan(file: &str, tensor: &str, at: usize, to: &Path) -> String {
    let gguf = Gguf::open(Path::new(file)).unwrap();
    let offset = gguf.tensor(tensor).unwrap_or_else(|| panic!("{tensor}")).offset as usize;
    let mut bytes = std::fs::read(file).unwrap();
    bytes[offset + 4 * at..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(to, bytes).unwrap();
    to.display().to_string()
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_same_nan_on_both_sides_is_no_difference_without_an_oracle_either() {
    let dir = tempfile::tempdir().unwrap();
    let file = with_nan(DEMO, "blk.1.attn_norm.weight", 5, &dir.path().join("nan.gguf"));
    let run = ["diff", &file, "--tokens", "1,2,3", "--decode", "0", "--subject", "cpu", "--no-oracle"];
    let text = expect(1, &run);
    assert!(text.contains("NOT FINITE  layer 1 · attn_norm") && !text.contains("FIRST DIFFERENCE"), "{text}");
    assert!(
        words(&text).contains("the file's blk.1.attn_norm.weight is not finite, first at row 0, column 5"),
        "{text}"
    );
    let document = valid("diff.schema.json", &expect(1, &[&run[..], &["--json", "--full"]].concat()));
    let stages = document["stages"].as_array().unwrap();
    assert!(stages.iter().all(|stage| stage["verdict"] != "differs"), "{document}");
    // A side that makes a NaN of its own differs as before.
    let good = ["diff", "--tokens", "1,2,3", "--decode", "0", "--subject", "cpu", "--no-oracle"];
    expect(0, &good);
}

/// Of two traces nothing says whether their NaN are right; that they are the same is said, and is no agreement.
#[test]
fn the_same_nan_in_two_traces_is_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    let file = with_nan(DEMO, "blk.1.attn_norm.weight", 5, &dir.path().join("nan.gguf"));
    let [a, b] = ["a", "b"].map(|name| {
        let out = dir.path().join(name).display().to_string();
        expect(0, &["trace", &file, "--tokens", "1,2", "--backend", "cpu", "--save", "all", "--out", &out]);
        out
    });
    let text = expect(1, &["compare", &a, &b]);
    assert!(text.contains("NOT FINITE  layer 1 · attn_norm · on both sides alike"), "{text}");
    let text = words(&text);
    let last = "DIVERGED not finite from layer 1 · attn_norm on, on both sides alike, which nothing judges; ";
    assert!(text.contains(last) && text.contains(" stages not finite, ") && !text.contains("differ,"), "{text}");
}

#[test]
fn a_sweep_says_why_a_prompt_does_not_agree() {
    let dir = tempfile::tempdir().unwrap();
    let file = with_nan(DEMO, "blk.1.attn_norm.weight", 5, &dir.path().join("nan.gguf"));
    let prompts = dir.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"tokens\": [654, 2]}\n").unwrap();
    let run = ["diff", &file, "--subject", "cpu", "--prompts", prompts.to_str().unwrap()];
    let text = expect(1, &run);
    assert!(text.contains("does not agree: not finite from layer 1 · attn_norm on"), "{text}");
    let json = expect(1, &[&run[..], &["--json"]].concat());
    let line = valid("sweep.schema.json", json.lines().nth(1).unwrap());
    assert_eq!(line["first_difference"]["stage"], "layers.1.attn_norm");
    assert_eq!(line["why"], "not finite from layer 1 · attn_norm on, by nobody's fault");
}

#[test]
fn a_run_names_a_vector_that_is_not_finite_though_no_value_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = "tests/families/glm4moe.gguf";
    let file = with_nan(file, "blk.1.exp_probs_b.bias", 3, &dir.path().join("nan.gguf"));
    let out = twinscope(&["run", &file, "--tokens", "1,2", "-n", "1"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("warning: ") && text.contains("blk.1.exp_probs_b.bias: [3] is NaN"), "{text}");
}

/// A scale of a block makes 256 weights NaN: the tensor and the place are named, and that the file is at fault.
#[test]
fn a_matrix_that_is_not_finite_is_named_by_run_and_trace() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nan.gguf");
    let gguf = Gguf::open(Path::new(DEMO)).unwrap();
    let q = gguf.tensor("blk.1.attn_q.weight").unwrap();
    assert_eq!(q.ty.name(), "Q4_K");
    let mut bytes = std::fs::read(DEMO).unwrap();
    bytes[q.offset as usize..][..2].copy_from_slice(&[0, 0x7e]); // the first block's scale, an f16
    std::fs::write(&path, bytes).unwrap();
    let path = path.to_str().unwrap();
    let out = twinscope(&["run", path, "--tokens", "1,2", "-n", "1"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{text}");
    assert!(text.contains("blk.1.attn_q.weight, row 0, column 0 is not finite"), "{text}");
    let out = twinscope(&["trace", path, "--tokens", "1,2"]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("note: the file's blk.1.attn_q.weight, row 0, column 0 is not finite"), "{text}");
}

/// Logits that are all equal are numbers, and say nothing.
#[test]
fn uniform_logits_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zero.gguf");
    let gguf = Gguf::open(Path::new(DEMO)).unwrap();
    let norm = gguf.tensor("output_norm.weight").unwrap();
    let mut bytes = std::fs::read(DEMO).unwrap();
    bytes[norm.offset as usize..][..norm.bytes as usize].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let path = path.to_str().unwrap();
    let out = twinscope(&["diff", path, "--tokens", "1,2,3", "--decode", "0", "--subject", "cpu"]);
    let text = words(&String::from_utf8_lossy(&out.stdout));
    assert_eq!(out.status.code(), Some(0), "{text}");
    let ln = (gguf.metadata.str_array("tokenizer.ggml.tokens").unwrap().len() as f64).ln();
    for side in ["reference", "subject"] {
        let said =
            format!("the {side}'s logits are all equal at 3 of 3 positions: every token has the logarithm −{ln:.4}");
        assert!(text.contains(&said), "{text}");
    }
    let out = twinscope(&["run", path, "--tokens", "1,2", "-n", "1"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("warning: all logits are equal"));
}

#[test]
fn keys_that_are_not_finite_are_printed_as_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nan.gguf");
    let demo = Gguf::open(Path::new(DEMO)).unwrap();
    let mut metadata = demo.metadata.clone();
    metadata.set("a.temperature", Value::F32(f32::NAN));
    metadata.set("a.limit", Value::F64(f64::NEG_INFINITY));
    let specs: Vec<TensorSpec> = demo.tensors().iter().map(|t| TensorSpec::new(&t.name, t.ty, &t.dims)).collect();
    gguf::write(&path, &metadata, &specs, |spec, sink| sink.put(demo.data(demo.tensor(&spec.name).unwrap()))).unwrap();
    let path = path.to_str().unwrap();
    let document = valid("inspect.schema.json", &expect(0, &["inspect", path, "--json"]));
    let metadata = document["metadata"].as_array().unwrap();
    let value = |key: &str| metadata.iter().find(|pair| pair["key"] == key).unwrap()["value"].clone();
    assert_eq!((value("a.temperature"), value("a.limit")), ("NaN".into(), "-inf".into()));
    assert_eq!(document["non_finite"], 2);
    let text = expect(0, &["inspect", path]);
    let line = text.lines().find(|line| line.contains("a.temperature")).unwrap();
    assert!(line.ends_with("NaN"), "{line}");
}

#[test]
fn a_software_adapter_on_both_sides_is_said_once() {
    let text = expect(0, &["diff", "--reference", "gpu", "--subject", "gpu", "--tokens", "654", "--decode", "0"]);
    assert!(words(&text).matches("a software adapter: a CPU, not a GPU").count() <= 1, "{text}");
}
