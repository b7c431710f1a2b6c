//! `compare` of two files of one model: what is worse is ranked first, what is the same costs nothing, and what is no second file of
//! the model is refused. Also where reports and documents go: standard output and input.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use twinscope::gguf::{self, Gguf, TensorSpec};
use twinscope::op::GgmlType;
use twinscope::quant::dequantize;

use super::diff::{expect, refused, twinscope, valid};

const DEMO: &str = "models/demo-moe-Q4_K_M.gguf";

/// The demo with some tensors as Q4_0, which is coarse, or as F32, which is exact.
fn other(path: &Path, types: &[(&str, GgmlType)]) -> String {
    let demo = Gguf::open(Path::new(DEMO)).unwrap();
    let ty = |name: &str| types.iter().find(|(of, _)| *of == name).map(|(_, ty)| *ty);
    let specs: Vec<TensorSpec> =
        demo.tensors().iter().map(|t| TensorSpec::new(&t.name, ty(&t.name).unwrap_or(t.ty), &t.dims)).collect();
    gguf::write(path, &demo.metadata, &specs, |spec, sink| {
        let tensor = demo.tensor(&spec.name).unwrap();
        let data = demo.data(tensor);
        if ty(&spec.name).is_none() {
            return sink.put(data);
        }
        let mut values = vec![0.0f32; tensor.elements() as usize];
        dequantize(tensor.ty, data, &mut values)?;
        match spec.ty {
            GgmlType::F32 => sink.put(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()),
            _ => sink.put(&values.chunks(32).flat_map(q4_0).collect::<Vec<u8>>()),
        }
    })
    .unwrap();
    path.display().to_string()
}

/// A block of Q4_0: the value that is largest is -8 times the scale.
fn q4_0(x: &[f32]) -> Vec<u8> {
    let most = x.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
    let scale = half::f16::from_f32(most / -8.0);
    let code = |x: f32| match scale.to_f32() {
        0.0 => 8,
        d => (x / d + 8.5).clamp(0.0, 15.0) as u8,
    };
    let pairs = (0..16).map(|i| code(x[i]) | code(x[i + 16]) << 4);
    scale.to_le_bytes().into_iter().chain(pairs).collect()
}

#[test]
fn parts_are_ranked_by_what_their_exchange_costs() {
    let dir = tempfile::tempdir().unwrap();
    let (coarse, exact) = ("blk.2.ffn_down_exps.weight", "blk.1.attn_q.weight");
    let file = other(&dir.path().join("other.gguf"), &[(coarse, GgmlType::Q4_0), (exact, GgmlType::F32)]);
    let run = ["compare", DEMO, &file, "--prompt", "fn main() { let x = 5;", "--json"];
    let document = valid("exchange.schema.json", &expect(0, &run));
    let parts = document["parts"].as_array().unwrap();
    let of = |by: &str| -> Vec<_> { parts.iter().filter(|part| part["by"] == by).collect() };
    let names = |by: &str| -> Vec<String> { of(by).iter().map(|p| p["name"].as_str().unwrap().to_string()).collect() };
    assert_eq!(names("tensor"), [coarse, exact]);
    assert_eq!(names("layer"), ["layer 2", "layer 1"]);
    assert_eq!(names("kind"), ["ffn_down_exps.weight", "attn_q.weight"]);
    assert_eq!(of("tensor")[0]["types"][0][1], "Q4_0");
    let kld = |cost: &serde_json::Value| cost["kld_mean"].as_f64().unwrap();
    let whole = kld(&document["whole"]);
    let [worst, least] = [0, 1].map(|n| of("tensor")[n].clone());
    assert!(kld(&worst["alone"]) > 1e-6 && (kld(&worst["alone"]) / whole - 1.0).abs() < 0.01, "{worst}");
    // The same values in another type: nothing but rounding, and nothing to regain.
    assert!(kld(&least["alone"]) < 1e-9 && least["regained"].as_f64().unwrap().abs() < 0.01, "{least}");
    // All of what differs: kept back, nothing is left.
    assert!(worst["regained"].as_f64().unwrap() > 0.99, "{worst}");
    assert_eq!(
        (&document["same"], &document["prompts"]),
        (&(document["tensors"].as_u64().unwrap() - 2).into(), &1.into())
    );

    let text = expect(0, &["compare", DEMO, &file, "--by", "tensor,layer"]);
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}: {text}"));
    assert!(at("LAYERS by the KL") < at("TENSORS by the KL") && at(coarse) < at(exact), "{text}");
    assert!(!text.contains("KINDS"), "{text}");
    assert!(text.contains("11 positions are few"), "{text}");
    let markdown = expect(0, &["compare", DEMO, &file, "--by", "tensor", "--report", "-"]);
    assert!(
        markdown.starts_with("# two files of one model") && markdown.contains("| blk.2.ffn\\_down\\_exps.weight |"),
        "{markdown}"
    );
}

#[test]
fn what_is_no_second_file_of_the_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = other(&dir.path().join("other.gguf"), &[]);
    refused(2, &["compare", DEMO, &file], &["the same weights to the bit"]);
    refused(2, &["compare", DEMO, "tests/families/olmoe.gguf"], &["no two files of one model", "architecture"]);
    refused(2, &["compare", DEMO, "tests"], &["found one of each", "tests is not"]);
    refused(2, &["compare", DEMO, &file, "--tol", "logits:nmse<=1"], &["--tol", "of two traces"]);
    refused(2, &["compare", DEMO, &file, "--report", "a.html"], &[".json, .md or .txt, not as .html"]);
    refused(2, &["compare", "tests", "src", "--by", "layer"], &["--by", "of two GGUF files"]);
}

#[test]
fn a_report_on_standard_output_stands_for_the_text() {
    // One stage is enough to report.
    let one = ["--decode", "0", "--subject", "cpu", "--layers", "0", "--stages", "attn_norm"];
    let run = [&["diff", "--tokens", "654"], &one[..]].concat();
    let with = |code: i32, more: &[&str]| expect(code, &[&run[..], more].concat());
    assert!(with(0, &["--report", "-"]).starts_with("# demo-moe"));
    for (format, begins) in [("html", "<!doctype"), ("xml", "<?xml"), ("json", "{"), ("txt", "demo-moe"), ("md", "# ")]
    {
        let text = with(0, &["--report", "-", "--report-format", format]);
        assert!(text.starts_with(begins) && text.ends_with('\n'), "{format}: {text}");
    }
    valid("diff.schema.json", &with(0, &["--report", "-", "--report-format", "json"]));
    let refused = |more: &[&str], words: &[&str]| refused(2, &[&run[..], more].concat(), words);
    refused(&["--report", "-", "--json"], &["--json and --report -", "standard output"]);
    refused(&["--report", "-", "--report", "-"], &["expected once, found 2 times"]);
    refused(&["--report", "a.md", "--report-format", "md"], &["--report-format is of --report -"]);
    super::diff::refused(2, &["report-issue", "--report", "-"], &["--report -"]);
}

#[test]
fn documents_come_through_a_pipe() {
    let piped = |args: &[&str], input: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_twinscope"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that refuses reads nothing.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.code().unwrap(), text)
    };
    let prompts = "{\"tokens\": [654]}\n{\"tokens\": [1]}\n";
    let sweep = ["diff", "--subject", "cpu", "--prompts", "-", "--json"];
    let (code, lines) = piped(&sweep, prompts);
    assert_eq!(code, 0, "{lines}");
    let (code, merged) = piped(&["merge", "-"], &lines);
    assert!(code == 0 && merged.contains("2 of 2 prompts"), "{merged}");
    let (code, text) = piped(&["diff", "--subject", "cpu", "--prompts", "-"], "{");
    assert!(code == 2 && text.contains("standard input"), "{text}");
    let (code, text) = piped(&["bench", "compare", "-", "-"], "");
    assert!(code == 2 && text.contains("found it 2 times"), "{text}");
    let bench = twinscope(&["bench", "-p", "4", "-n", "1", "-r", "3", "--backend", "cpu:scalar", "--json"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.json");
    std::fs::write(&file, &bench.stdout).unwrap();
    let (code, text) =
        piped(&["bench", "compare", file.to_str().unwrap(), "-"], &String::from_utf8_lossy(&bench.stdout));
    assert_eq!(code, 0, "{text}");
    let (code, text) = piped(&["import", "capture", "-", "--out", "x"], "");
    assert!(code == 2 && text.contains("-: an import reads files here and there"), "{text}");
}
