//! `trace` and `import` on the built binary: what they print, what they save, and what they refuse.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{PROMPTS, golden, nmse};
use serde_json::Value as Json;
use twinscope::op::{LayerLayout, STAGES, Site, Stage};
use twinscope::trace::store::Trace;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinscope")).args(args).output().unwrap()
}

fn stdout(args: &[&str]) -> String {
    let out = run(args);
    assert!(out.status.success(), "{args:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// The message of a run that must fail: one line on stderr, nothing on stdout.
fn refused(args: &[&str], code: i32) -> String {
    let out = run(args);
    let message = String::from_utf8(out.stderr).unwrap();
    assert_eq!((out.status.code(), out.stdout.len()), (Some(code), 0), "{args:?}: {message}");
    message
}

fn checked(json: &str, schema: &str) -> Json {
    let json: Json = serde_json::from_str(json).unwrap();
    let schema: Json = serde_json::from_str(schema).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&json).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    json
}

fn document(args: &[&str]) -> Json {
    let mut all = vec!["trace", "--json"];
    all.extend(args);
    checked(&stdout(&all), include_str!("../../schemas/trace.schema.json"))
}

fn temp(name: &str) -> (tempfile::TempDir, PathBuf) {
    let guard = tempfile::tempdir().unwrap();
    let dir = guard.path().join(name);
    (guard, dir)
}

fn list(tokens: &[u32]) -> String {
    tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// transformers in float32 reaches 1e-13 against these goldens; 1e-11 is what every f32 backend here must keep.
fn saved_equals_golden(backend: &str, limit: f64) {
    for prompt in PROMPTS {
        let golden = golden(prompt);
        let (_guard, dir) = temp("trace");
        let (tokens, out) = (list(&golden.tokens), dir.to_str().unwrap());
        // In chunks of 8, so that most files are put together from pieces.
        stdout(&["trace", "--backend", backend, "--tokens", &tokens, "--chunk", "8", "--save", "all", "--out", out]);
        let trace = Trace::open(&dir).unwrap();
        assert_eq!(trace.tensors().map(|(site, _)| site.key()).collect::<std::collections::BTreeSet<_>>(), {
            golden.stages.keys().cloned().collect()
        });
        for (site, _) in trace.tensors() {
            let (key, values) = (site.key(), trace.tensor(site).unwrap().unwrap());
            let expected = &golden.stages[&key];
            if site.stage.is_ids() {
                assert_eq!(values.ids(), expected.ids(), "{backend} {prompt} {key}");
            } else {
                let nmse = nmse(expected, &values);
                assert!(nmse <= limit, "{backend} {prompt} {key}: nmse {nmse:e}");
            }
        }
        // And as any other program reads them.
        let bytes = std::fs::read(dir.join("layer-3.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("layers.3.router_ids").unwrap().dtype(), safetensors::Dtype::U32);
        assert_eq!(file.len(), 24);
    }
}

#[test]
fn saved_tensors_equal_the_goldens_on_the_cpu() {
    saved_equals_golden("cpu:scalar", 1e-11);
    saved_equals_golden("cpu", 1e-11);
}

#[test]
fn saved_tensors_equal_the_goldens_on_the_gpu() {
    saved_equals_golden("gpu", 1e-11);
}

#[test]
fn saved_tensors_equal_the_goldens_on_the_oracle() {
    saved_equals_golden("oracle", 1e-22);
}

#[test]
fn the_document_has_every_stage_of_every_layer() {
    let tokens = list(&golden("main").tokens);
    let json = document(&["--tokens", &tokens, "--decode", "3", "--chunk", "4"]);
    assert_eq!((json["positions"].as_u64(), json["equal_positions"].as_bool()), (Some(14), Some(true)));
    assert_eq!(json["layers"].as_array().unwrap().len(), 4);
    for layer in json["layers"].as_array().unwrap() {
        let whole_model = 3;
        let here = STAGES.iter().filter(|s| s.scope.occurs(LayerLayout::QWEN3MOE)).count() - whole_model;
        assert_eq!((layer["stages"].as_object().unwrap().len(), here), (24, 24));
        for (name, stats) in layer["stages"].as_object().unwrap() {
            assert_eq!((stats["positions"].as_u64(), stats["last_position"].as_u64()), (Some(14), Some(13)), "{name}");
            assert_eq!(stats["all"]["nan_count"], 0);
        }
        // 14 positions of 256; of the scores 1 + 2 + … + 14 for each of 8 heads.
        assert_eq!(layer["stages"]["layer_out"]["all"]["count"], 14 * 256);
        assert_eq!(layer["stages"]["layer_out"]["last"]["count"], 256);
        assert_eq!(layer["stages"]["attn_probs"]["all"]["count"], 8 * 14 * 15 / 2);
        assert_eq!(layer["stages"]["attn_probs"]["last"]["count"], 8 * 14);
        let weights: f64 = layer["experts"].as_array().unwrap().iter().map(|e| e["weight"].as_f64().unwrap()).sum();
        assert!((weights - 1.0).abs() < 1e-6);
    }
    assert_eq!(json["whole"].as_object().unwrap().len(), 3);
    assert_eq!(json["whole"]["logits"]["all"]["count"], 14 * 2048);
    let top = json["logits"]["top"].as_array().unwrap();
    assert!(top.windows(2).all(|w| w[0]["logit"].as_f64() >= w[1]["logit"].as_f64()));
    assert!(json["first_not_finite"].is_null() && json["saved"].is_null());
}

#[test]
fn statistics_agree_with_the_golden_values() {
    let golden = golden("ownership");
    let json = document(&["--tokens", &list(&golden.tokens), "--backend", "oracle"]);
    for (key, values) in
        golden.stages.iter().filter(|(key, _)| !key.contains("attn_scores") && !key.contains("attn_probs"))
    {
        let stats = match key.strip_prefix("layers.").and_then(|k| k.split_once('.')) {
            Some((n, stage)) => &json["layers"][n.parse::<usize>().unwrap()]["stages"][stage],
            None => &json["whole"][key.as_str()],
        };
        let v = values.to_f64();
        let width = v.len() / golden.tokens.len();
        for (which, v) in [("all", &v[..]), ("last", &v[v.len() - width..])] {
            let (s, n) = (&stats[which], v.len() as f64);
            let mean = v.iter().sum::<f64>() / n;
            let expected = [
                ("min", v.iter().copied().fold(f64::INFINITY, f64::min)),
                ("max", v.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
                ("mean", mean),
                ("std", (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt()),
                ("l2", v.iter().map(|x| x * x).sum::<f64>().sqrt()),
            ];
            assert_eq!(s["count"], v.len());
            for (name, expected) in expected {
                let found = s[name].as_f64().unwrap();
                // The oracle keeps nmse 1e-22, so single values and their sums keep about 1e-11 of the largest.
                let scale = v.iter().fold(1.0f64, |m, x| m.max(x.abs()));
                assert!((found - expected).abs() <= 1e-10 * scale, "{key} {which} {name}: {found} is not {expected}");
            }
        }
    }
}

#[test]
fn selections_save_what_they_name() {
    let tokens = list(&golden("main").tokens);
    let (_guard, dir) = temp("trace");
    let out = dir.to_str().unwrap();
    let save = |more: &[&str]| {
        let mut args = vec!["--tokens", &tokens, "--force", "--out", out];
        args.extend(more);
        let json = document(&args);
        let trace = Trace::open(&dir).unwrap();
        checked(
            &std::fs::read_to_string(dir.join("manifest.json")).unwrap(),
            include_str!("../../schemas/manifest.schema.json"),
        );
        assert_eq!(json["saved"]["tensors"], trace.tensors().count());
        let manifest = trace.manifest();
        assert_eq!((manifest.run.model.fingerprint.len(), manifest.run.tokens.len()), (64, 11));
        assert_eq!(manifest.statistics.len(), 4 * 24 + 3, "statistics are of everything");
        trace
    };
    let keys = |trace: &Trace| trace.tensors().map(|(site, _)| site.key()).collect::<Vec<_>>();
    let trace = save(&["--save", "router*,moe_out", "--layers", "-1"]);
    let router = ["router_logits", "router_probs", "router_ids", "router_weights", "moe_out"];
    assert_eq!(keys(&trace), router.map(|s| format!("layers.3.{s}")));
    let trace = save(&["--save", "logits,ffn_inp-2", "--positions", "last"]);
    assert_eq!(keys(&trace), ["logits", "layers.2.attn_residual"]);
    assert_eq!(trace.tensor(Site::model(Stage::Logits)).unwrap().unwrap().shape, [1, 2048]);
    let trace = save(&["--save", "expert_down", "--experts", "2,5", "--positions", "0,3-7"]);
    for layer in 0..4 {
        let rows = trace.expert_rows(layer).unwrap().unwrap();
        let values = trace.tensor(Site::layer(layer as usize, Stage::ExpertDown)).unwrap().unwrap();
        assert_eq!(values.shape, [rows.len(), 256]);
        assert!(rows.iter().all(|[t, _, e]| [0, 3, 4, 5, 6, 7].contains(t) && [2, 5].contains(e)));
    }
}

#[test]
fn the_table_names_every_stage_once_a_layer() {
    let text = stdout(&["trace", "--prompt", "struct"]);
    for row in STAGES.iter().filter(|s| s.scope.occurs(LayerLayout::QWEN3MOE)) {
        let lines = text.lines().filter(|l| l.split_whitespace().next() == Some(row.name)).count();
        let expected = if row.scope == twinscope::op::Scope::Model { 1 } else { 4 };
        assert_eq!(lines, expected, "{}", row.name);
    }
    assert!(text.contains("every stage was seen at the same 1; figures are of the last, 0"));
    assert!(!text.contains("NaN"));
}

#[test]
fn what_cannot_be_traced_is_refused_before_it_is_run() {
    let (_guard, dir) = temp("trace");
    let out = dir.to_str().unwrap();
    let save = |more: &[&str], code| {
        let mut args = vec!["trace", "--prompt", "struct", "--out", out];
        args.extend(more);
        refused(&args, code)
    };
    assert!(
        save(&["--save", "moe_outt"], 2)
            .contains("--save: `moe_outt` is no stage, alias or glob that matches one; the nearest: moe_out")
    );
    assert!(save(&["--save", "ffn_gate"], 2).contains("does not occur in this model"));
    assert!(save(&["--save", "all", "--layers", "4"], 2).contains("there is no layer 4, only 0 to 3"));
    assert!(save(&["--save", "all", "--positions", "1"], 2).contains("there is no position 1"));
    assert!(save(&["--save", "all", "--experts", "8"], 2).contains("there is no expert 8"));
    assert!(save(&["--save", "moe_out", "--experts", "1"], 2).contains("none of these stages is selected"));
    assert!(save(&[], 2).contains("--save"));
    assert!(refused(&["trace", "--save", "all"], 2).contains("--out"));
    assert!(refused(&["trace", "--prompt", "struct", "--decode", "4096"], 2).contains("context length"));
    assert!(refused(&["trace", "--backend", "abacus"], 2).contains("unknown backend"));
    assert!(!dir.exists());

    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("notes"), "mine").unwrap();
    assert!(save(&["--save", "logits", "--force"], 2).contains("is no trace"));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_killed_run_leaves_no_trace_and_the_old_one() {
    let (guard, dir) = temp("trace");
    let out = dir.to_str().unwrap();
    stdout(&["trace", "--prompt", "struct", "--save", "logits", "--out", out]);
    let args = ["trace", "--prompt", "struct", "--decode", "4000", "--save", "all", "--force", "--out", out];
    let mut child = Command::new(env!("CARGO_BIN_EXE_twinscope")).args(args).spawn().unwrap();
    // Until it has begun to write; it has 4000 steps to go.
    let began = || std::fs::read_dir(guard.path()).unwrap().count() > 1;
    for _ in 0..600 {
        if began() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(began(), "the run did not begin to write");
    child.kill().unwrap();
    child.wait().unwrap();
    let trace = Trace::open(&dir).unwrap();
    assert_eq!(trace.tensors().map(|(site, _)| site.key()).collect::<Vec<_>>(), ["logits"]);
}

#[test]
fn imports_say_what_they_took_and_what_not() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let (_guard, dir) = temp("trace");
    let import = |kind: &str, path: &str| {
        let path = data.join(path);
        let args = ["import", kind, path.to_str().unwrap(), "--out", dir.to_str().unwrap(), "--force", "--json"];
        let json = checked(&stdout(&args), include_str!("../../schemas/import.schema.json"));
        checked(
            &std::fs::read_to_string(dir.join("manifest.json")).unwrap(),
            include_str!("../../schemas/manifest.schema.json"),
        );
        let count = |what: &str| json[what].as_array().unwrap().len();
        (count("mapped"), count("unmapped"), count("assumed"))
    };
    assert_eq!(import("aprt", "data/aprt"), (12, 1, 1));
    assert_eq!(import("llama.cpp", "data/llama.cpp"), (1, 0, 1));
    assert_eq!(import("npz", "data/stored.npz"), (4, 2, 1));
    assert_eq!(import("safetensors", "golden/one.safetensors"), (99, 0, 0));
    let path = data.join("golden/dequant.safetensors");
    let args = ["import", "safetensors", path.to_str().unwrap(), "--out", "unused"];
    assert!(refused(&args, 2).contains("nothing in it is a stage"));
}
