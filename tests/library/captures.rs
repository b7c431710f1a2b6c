//! Captures of llama.cpp and transformers, rules, and what is refused.
//!
//! tests/data/captures has runs of the demo model by the scripts in capture/, made with llama-cpp-python 0.3.36 and transformers
//! 5.24. `nodes.safetensors` is layer 1 of an older dump, without a header. The first four tokens are those of the golden `main`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::tensor::{Dtype, TensorView};

use twinscope::model::Model;
use twinscope::op::{Data, HostTensor, Site, Stage};
use twinscope::trace::import::{ImportOptions, Importer, Report, import};
use twinscope::trace::store::Trace;
use twinscope::trace::store::file::TensorFile;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn imported(kind: Importer, name: &str) -> (Report, Trace, tempfile::TempDir) {
    let guard = tempfile::tempdir().unwrap();
    let out = guard.path().join("trace");
    let report = import(kind, &[data(name)], &ImportOptions::default(), &out).unwrap();
    let trace = Trace::open(&out).unwrap();
    assert_eq!(trace.manifest(), &report.manifest);
    (report, trace, guard)
}

fn unmapped(report: &Report) -> &[String] {
    &report.manifest.imported.as_ref().unwrap().unmapped
}

fn capture(name: &str) -> (Report, Trace, tempfile::TempDir) {
    imported(Importer::Capture, &format!("data/captures/{name}.safetensors"))
}

fn keys(trace: &Trace, layer: u32) -> Vec<&'static str> {
    trace.tensors().filter(|(site, _)| site.layer == Some(layer)).map(|(site, _)| site.stage.name()).collect()
}

/// Every stage of a layer with experts.
fn stages() -> Vec<&'static str> {
    use twinscope::op::{LayerLayout, STAGES, Scope};
    STAGES.iter().filter(|s| s.scope != Scope::Model && s.scope.occurs(LayerLayout::QWEN3MOE)).map(|s| s.name).collect()
}

/// The largest Σ(a−b)² / Σa² of any stage at positions that the golden run `main` has, by stage.
fn against_golden(trace: &Trace) -> f64 {
    let mut golden = TensorFile::open(&data("golden/main.safetensors")).unwrap();
    let mut worst: f64 = 0.0;
    for (site, stored) in trace.tensors() {
        let (ours, right) = (trace.tensor(site).unwrap().unwrap(), golden.read(&site.key()).unwrap());
        let axis = site.stage.position_axis();
        let both: Vec<(usize, usize)> = stored.positions.iter().enumerate().filter(|(_, p)| *p < 4).collect();
        let (rows, positions): (Vec<usize>, Vec<usize>) = both.into_iter().unzip();
        let (mut ours, mut right) = (ours.take(axis, &rows), right.take(axis, &positions));
        if site.stage.is_attention_matrix() {
            (ours, right) = (ours.take(2, &[0, 1, 2, 3]), right.take(2, &[0, 1, 2, 3]));
        }
        assert_eq!(ours.shape, right.shape, "{}", site.key());
        let (ours, right) = (ours.to_f64(), right.to_f64());
        let error: f64 = ours.iter().zip(&right).map(|(a, b)| (a - b) * (a - b)).sum();
        let nmse = error / right.iter().map(|x| x * x).sum::<f64>();
        if nmse > worst {
            eprintln!("{}: {nmse:e}", site.key()); // seen where the test fails
            worst = nmse;
        }
    }
    worst
}

#[test]
fn llama_cpp_shows_every_stage_over_prompt_and_decode() {
    let (report, trace, _guard) = capture("llama.cpp");
    let manifest = trace.manifest();
    assert_eq!((manifest.run.tokens.len(), manifest.run.prompt_tokens), (6, 4));
    assert_eq!(manifest.run.model.fingerprint, Model::open(None).unwrap().gguf.fingerprint());
    let imported = manifest.imported.as_ref().unwrap();
    assert_eq!(imported.contract.as_deref(), Some("llama.cpp-cpu"));
    assert!(
        imported.engine.as_ref().unwrap().starts_with("llama.cpp llama-cpp-python 0.3.36"),
        "{:?}",
        imported.engine
    );
    assert!(imported.command.as_ref().unwrap().starts_with("llama_cpp.py models/demo"), "{:?}", imported.command);
    assert_eq!((&imported.assumed[..], &imported.warnings[..]), (&[][..], &[][..]));
    for layer in [0, 3] {
        assert_eq!(keys(&trace, layer), stages());
    }
    assert_eq!(keys(&trace, 1), [""; 0]);
    for (_, stored) in trace.tensors() {
        assert_eq!(stored.positions.to_string(), "0-5");
    }
    // The cache has room for 256 keys; the run has 6, and scores are scaled.
    assert_eq!(trace.tensor(Site::layer(0, Stage::AttnScores)).unwrap().unwrap().shape, [8, 6, 6]);
    let worst = against_golden(&trace);
    assert!(worst < 2e-3, "int8 activations: {worst:e}");
    let of = |key: &str| report.mapped.iter().find(|(_, site)| site.key() == key).unwrap().0.clone();
    assert_eq!(of("layers.3.q_rope"), "Qcur-3.2");
    assert_eq!(of("layers.3.q_proj"), "Qcur-3.0");
    assert!(of("layers.3.attn_out").starts_with("node_"), "known by the weight that it reads");
    let left = unmapped(&report);
    assert!(left.iter().any(|l| l.starts_with("norm-0.0: x / rms")), "{left:?}");
    assert_eq!(left.iter().filter(|l| l.starts_with("norm-0.0")).count(), 1, "once, not once a call");
}

#[test]
fn flash_attention_hides_scores_and_the_last_layer_shows_the_rows_that_are_wanted() {
    let (_, trace, _guard) = capture("llama.cpp-flash");
    let shown =
        ["q_proj", "k_proj", "v_proj", "q_rope", "k_rope", "attn_context", "attn_out", "attn_residual", "layer_out"];
    assert_eq!((keys(&trace, 0), keys(&trace, 3)), (shown.to_vec(), shown.to_vec()));
    let at = |site| trace.stored(site).unwrap().positions.to_string();
    assert_eq!(at(Site::layer(3, Stage::AttnContext)), "0-3");
    assert_eq!(at(Site::layer(3, Stage::AttnResidual)), "3");
    assert_eq!(at(Site::layer(3, Stage::LayerOut)), "3");
    assert_eq!(at(Site::model(Stage::Logits)), "3");
    assert!(against_golden(&trace) < 2e-3);
}

#[test]
fn a_dump_of_named_nodes_without_a_header() {
    let (report, trace, _guard) = capture("nodes");
    assert_eq!(trace.manifest().run.tokens.len(), 11);
    assert_eq!(trace.manifest().imported.as_ref().unwrap().engine.as_deref(), Some("llama.cpp 0c1e570, CPU"));
    let but_attn_out: Vec<_> = stages().into_iter().filter(|s| *s != "attn_out").collect();
    assert_eq!(keys(&trace, 1), but_attn_out);
    assert!(against_golden(&trace) < 2e-3);
    let left = unmapped(&report).join("\n");
    assert!(left.contains("node_88.0: a node without a name, and the capture does not say what it reads"), "{left}");
    assert!(left.contains("Qcur-1.1: the values of q_proj, with heads apart"), "{left}");
    assert!(left.contains("kqv-1.0: the values of kqv_out"), "{left}");
}

#[test]
fn transformers_in_f32_and_bf16() {
    let (report, trace, _guard) = capture("transformers-f32");
    assert_eq!((keys(&trace, 0), keys(&trace, 3)), (stages(), stages()));
    assert_eq!(unmapped(&report), [""; 0]);
    assert_eq!(trace.manifest().imported.as_ref().unwrap().contract.as_deref(), Some("transformers-f32"));
    assert!(trace.tensors().all(|(_, stored)| stored.positions.to_string() == "0-4"));
    let worst = against_golden(&trace);
    assert!(worst < 1e-11, "{worst:e}");

    let (_, trace, _guard) = capture("transformers-bf16");
    let hidden = ["attn_scores", "attn_probs"]; // sdpa
    let shown: Vec<_> = stages().into_iter().filter(|s| !hidden.contains(s)).collect();
    assert_eq!(keys(&trace, 1), shown);
    assert!(trace.tensors().all(|(_, stored)| stored.positions.to_string() == "0,2-3"));
    assert_eq!(trace.manifest().imported.as_ref().unwrap().contract.as_deref(), Some("transformers-bf16"));
    // bf16 becomes f32 and nothing is lost: the lower half of every word is 0.
    let Data::F32(values) = trace.tensor(Site::layer(1, Stage::LayerOut)).unwrap().unwrap().data else { panic!("f32") };
    assert!(values.iter().all(|x| x.to_bits() & 0xffff == 0) && values.iter().any(|x| *x != 0.0));
    let worst = against_golden(&trace);
    assert!(worst > 1e-7 && worst < 2e-3, "{worst:e}");
}

#[test]
fn bugs_show_from_their_layer_on_in_layer_outputs_and_logits() {
    let layer_out = |bug: &str| {
        let (_, trace, _guard) = capture(&format!("bugs/{bug}"));
        assert_eq!(trace.tensors().count(), 5);
        assert_eq!(trace.manifest().run.tokens.len(), 7);
        [0, 1, 2, 3].map(|n| trace.tensor(Site::layer(n, Stage::LayerOut)).unwrap().unwrap())
    };
    let right = layer_out("none");
    for (bug, layer) in [
        ("rope-pairing", 0),
        ("rope-base", 0),
        ("position-offset", 0),
        ("eps", 0),
        ("no-q-norm", 1),
        ("kv-head", 2),
        ("mask", 0),
        ("no-renormalisation", 1),
        ("gate-up-swapped", 3),
        ("other-expert", 2),
    ] {
        let wrong = layer_out(bug);
        assert_eq!((0..4).find(|n| wrong[*n] != right[*n]), Some(layer), "{bug}");
    }
}

/// A tensor to write: its key, its shape, its values.
type Written<'a> = (&'a str, &'a [usize], Vec<f32>);

fn write(path: &Path, tensors: &[Written<'_>], metadata: &[(&str, &str)]) {
    let bytes: Vec<_> = tensors.iter().map(|t| t.2.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()).collect();
    let views = tensors.iter().zip(&bytes);
    let views = views.map(|(t, bytes)| (t.0, TensorView::new(Dtype::F32, t.1.to_vec(), bytes).unwrap()));
    let metadata: HashMap<_, _> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

fn count(n: usize) -> Vec<f32> {
    (0..n).map(|x| x as f32 + 0.5).collect()
}

#[test]
fn rules_map_names_layouts_and_calls() {
    let dir = tempfile::tempdir().unwrap();
    let (file, rules, out) = (dir.path().join("a.safetensors"), dir.path().join("rules.json"), dir.path().join("t"));
    // Three positions: two in the first call and one in the second.
    let tensors: [Written<'_>; 9] = [
        ("block_1/qkv", &[3, 8], count(24)),
        ("block_1/h", &[2, 3], count(6)),
        ("step0_ctx_0", &[2, 4], count(8)),
        ("step1_ctx_0", &[1, 4], vec![9.0; 4]),
        ("probs_0", &[3, 2, 3], count(18)),
        ("scores_0", &[2, 3, 3], count(18)),
        ("head", &[5], count(5)),
        ("debug_x", &[1], count(1)),
        ("layers.0.attn_norm", &[3, 2], count(6)),
    ];
    write(&file, &tensors, &[("tokens", "7,8,9")]);
    std::fs::write(
        &rules,
        r#"{"schema": "twinscope.rules/1", "sizes": {"heads": 2, "kv_heads": 1, "head_dim": 2}, "rules": [
            {"match": "^block_(\\d+)/qkv$", "stage": ["q_proj", "k_proj", "v_proj"]},
            {"match": "^block_(\\d+)/h$", "stage": "layer_out", "layer_offset": -1, "axes": [1, 0]},
            {"match": "^step(?<call>\\d+)_ctx_(?<layer>\\d+)$", "stage": "attn_context"},
            {"match": "^probs_(\\d+)$", "stage": "attn_probs", "position": 0},
            {"match": "^scores_(\\d+)$", "stage": "attn_scores", "scale": 0.25},
            {"match": "^head$", "stage": "logits", "positions": "last"},
            {"match": "^debug", "ignore": "no value of the pass"}]}"#,
    )
    .unwrap();
    let options = ImportOptions { rules: Some(&rules), ..ImportOptions::default() };
    let report = import(Importer::Capture, &[file], &options, &out).unwrap();
    let trace = Trace::open(&out).unwrap();
    let get = |key: &str| trace.tensors().find(|(s, _)| s.key() == key).map(|(s, _)| trace.tensor(s).unwrap().unwrap());
    assert_eq!(
        get("layers.1.q_proj").unwrap().to_f32(),
        [0.5, 1.5, 2.5, 3.5, 8.5, 9.5, 10.5, 11.5, 16.5, 17.5, 18.5, 19.5]
    );
    assert_eq!(get("layers.1.v_proj").unwrap(), HostTensor::f32(&[3, 2], vec![6.5, 7.5, 14.5, 15.5, 22.5, 23.5]));
    assert_eq!(get("layers.0.layer_out").unwrap(), HostTensor::f32(&[3, 2], vec![0.5, 3.5, 1.5, 4.5, 2.5, 5.5]));
    assert_eq!(get("layers.0.attn_context").unwrap().shape, [3, 4]);
    assert_eq!(get("layers.0.attn_context").unwrap().to_f32()[8..], [9.0; 4]);
    // [T, heads, S] becomes [heads, T, S]: the second head of the first position was the second row.
    assert_eq!(get("layers.0.attn_probs").unwrap().to_f32()[9..12], [3.5, 4.5, 5.5]);
    assert_eq!(get("layers.0.attn_scores").unwrap().to_f32()[..6], [0.125, 0.0, 0.0, 0.875, 1.125, 0.0]);
    assert_eq!(get("logits").unwrap().shape, [1, 5]);
    assert_eq!(trace.stored(Site::model(Stage::Logits)).unwrap().positions.to_string(), "2");
    assert!(get("layers.0.attn_norm").is_some(), "names that no rule matches are looked up");
    let imported = report.manifest.imported.unwrap();
    assert_eq!(imported.unmapped, ["debug_x: ignored by a rule: no value of the pass"]);
    assert_eq!(imported.assumed, ["the calls of step0_ctx_0 follow each other from position 0 on"]);
}

#[test]
fn a_dump_in_several_files_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let part = |name: &str| dir.path().join(name);
    write(&part("a-1.safetensors"), &[("model.layers.0.mlp.gate", &[2, 3], count(6))], &[("tokens", "5,6")]);
    write(&part("a-2.safetensors"), &[("lm_head", &[1, 2, 4], count(8))], &[]);
    let index = part("model.safetensors.index.json");
    let listed = |second: &str| {
        let text = format!(r#"{{"weight_map": {{"x": "a-1.safetensors", "y": "{second}"}}}}"#);
        std::fs::write(&index, text).unwrap();
    };
    listed("a-2.safetensors");
    let out = tempfile::tempdir().unwrap();
    let imported = |paths: &[PathBuf]| {
        let options = ImportOptions { force: true, ..ImportOptions::default() };
        import(Importer::Capture, paths, &options, &out.path().join("t"))
    };
    for paths in [vec![part("a-1.safetensors"), part("a-2.safetensors")], vec![part("")], vec![index.clone()]] {
        let report = imported(&paths).unwrap();
        let sites: Vec<_> = report.mapped.iter().map(|(_, site)| site.key()).collect();
        assert_eq!(sites, ["logits", "layers.0.router_logits"]);
        assert_eq!(report.manifest.run.tokens, [5, 6]);
    }
    let refused = |paths: &[PathBuf]| imported(paths).unwrap_err().to_string();
    listed("../a-2.safetensors");
    assert!(
        refused(std::slice::from_ref(&index))
            .contains(r#"the name of a file beside it expected, found "../a-2.safetensors""#)
    );
    write(&part("b.safetensors"), &[("lm_head", &[1, 2, 4], count(8))], &[]);
    assert!(refused(&[part("a-2.safetensors"), part("b.safetensors")]).contains("lm_head is in "));
    write(&part("b.safetensors"), &[("norm", &[1, 2, 4], count(8))], &[("tokens", "5,7")]);
    let found = refused(&[part("a-1.safetensors"), part("b.safetensors")]);
    assert!(
        found.contains("of another run than the files before it: at position 1, token 6 expected, found 7"),
        "{found}"
    );
    assert!(refused(&[out.path().to_path_buf()]).contains("a directory with .safetensors files expected"));
}

#[test]
fn another_run_or_model_is_refused_and_equal_stages_are_a_warning() {
    let path = data("data/captures/transformers-f32.safetensors");
    let out = tempfile::tempdir().unwrap();
    let imported = |options: ImportOptions<'_>| {
        let options = ImportOptions { force: true, ..options };
        import(Importer::Capture, std::slice::from_ref(&path), &options, &out.path().join("t"))
    };
    let tokens = |tokens: &[u32]| ImportOptions { tokens: Some(tokens.to_vec()), ..ImportOptions::default() };
    let found = imported(tokens(&[422, 472, 345, 340, 293])).unwrap_err().to_string();
    assert!(found.contains("than --tokens says: at position 3, token 340 expected, found 339"), "{found}");
    let found = imported(tokens(&[422, 472, 345, 339])).unwrap_err().to_string();
    assert!(found.contains("4 tokens expected, found 5"), "{found}");

    let model = Model::open(None).unwrap();
    let with =
        |fingerprint: String| ImportOptions { model: Some((&model.config, fingerprint)), ..ImportOptions::default() };
    let report = imported(with(model.gguf.fingerprint())).unwrap();
    assert_eq!(report.mapped.len(), 51);
    assert!(imported(with("another".into())).unwrap_err().to_string().contains("of another model than"));
    let contract = ImportOptions { contract: Some("f32".into()), ..ImportOptions::default() };
    assert_eq!(imported(contract).unwrap().manifest.imported.unwrap().contract.as_deref(), Some("f32"));

    let file = out.path().join("same.safetensors");
    let tensors: [Written<'_>; 5] = [
        ("layers.0.layer_out", &[2, 3], count(6)),
        ("layers.1.layer_out", &[2, 3], count(6)),
        ("layers.0.moe_out", &[2, 3], vec![0.0; 6]),
        ("layers.1.moe_out", &[2, 3], vec![0.0; 6]),
        ("layers.9.moe_out", &[2, 256], count(512)),
    ];
    write(&file, &tensors, &[("tokens", "1,2")]);
    let report =
        import(Importer::Capture, std::slice::from_ref(&file), &ImportOptions::default(), &out.path().join("s"))
            .unwrap();
    let imported = report.manifest.imported.unwrap();
    assert_eq!(imported.warnings.len(), 1);
    assert!(imported.warnings[0].starts_with("layers.0.layer_out and layers.1.layer_out are bit for bit the same"));
    let found =
        import(Importer::Capture, &[file], &with(String::new()), &out.path().join("u")).unwrap_err().to_string();
    assert!(found.contains("layer_out of shape [2, 3] where demo-moe has H = 256"), "{found}");
    assert!(found.contains("layer 9 where demo-moe has 4 layers"), "{found}");
}

#[test]
fn headers_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let found = |header: &str| {
        let tensors: [Written<'_>; 2] =
            [("logits@0", &[2, 3], count(6)), ("layers.0.attn_probs", &[1, 2, 2], count(4))];
        write(&path, &tensors, &[("twinscope.capture", header)]);
        let options = ImportOptions { force: true, ..ImportOptions::default() };
        let report = import(Importer::Capture, std::slice::from_ref(&path), &options, &dir.path().join("t"));
        report.map(|r| r.manifest.imported.unwrap().unmapped.join("\n")).unwrap_or_else(|e| e.to_string())
    };
    let with = |rest: &str| found(&format!(r#"{{"schema": "twinscope.capture/1", "tokens": [1, 2] {rest}}}"#));
    assert_eq!(with(""), "");
    assert!(found("[").contains("twinscope.capture: "));
    assert!(found(r#"{"schema": "other/9"}"#).contains(r#"schema "twinscope.capture/1" expected, found "other/9""#));
    assert!(found(r#"{"schema": "twinscope.capture/1"}"#).contains("`tokens` expected, found none"));
    for (rest, what) in [
        (r#", "tokens": [-1]"#, "twinscope.capture: "),
        (r#", "prompt_tokens": 3"#, "prompt_tokens of at most 2 expected"),
        (r#", "calls": [{"start": 0, "tokens": 3}]"#, "call 0 of 1 or more of the 2 tokens"),
        (r#", "calls": [{"start": 18446744073709551615, "tokens": 18446744073709551615}]"#, "call 0 of 1 or more"),
        (r#", "calls": [{"start": 1, "tokens": 1}, {"start": 0, "tokens": 1}]"#, "call 1 of 1 or more"),
        (r#", "calls": [{"start": 0, "tokens": 1}]"#, "logits: 2 rows where the call has 1 positions"),
        (r#", "tensors": {"logits@0": {"call": 7}}"#, "call Some(7) of 0 calls"),
        (r#", "tensors": {"logits@0": {"positions": [1, 0]}}"#, "ascending positions below 2 expected"),
        (r#", "tensors": {"logits@0": {"positions": [0, 18446744073709551615]}}"#, "ascending positions below 2"),
        (r#", "tensors": {"logits@0": {"positions": [1]}}"#, "logits: 2 rows where 1 positions are said"),
        (r#", "tensors": {"other": {}}"#, "other: no such tensor"),
    ] {
        let said = with(rest);
        assert!(said.contains(what), "{rest}: {said}");
    }
    // A call that there is not, rows that no position is left for, and names that move the cursor.
    let tensors: [Written<'_>; 3] = [
        ("logits@4000000000000", &[2, 3], count(6)),
        ("logits@1", &[2, 3], count(6)),
        ("\u{1b}[2Jx\n", &[1], count(1)),
    ];
    write(&path, &tensors, &[("tokens", "1,2")]);
    let options = ImportOptions { force: true, ..ImportOptions::default() };
    let report = import(Importer::Capture, std::slice::from_ref(&path), &options, &dir.path().join("t")).unwrap();
    assert_eq!(report.mapped, [("logits".to_string(), Site::model(Stage::Logits))]);
    assert_eq!(unmapped(&report).len(), 2);
    // Bytes changed anywhere in a real header: an error or another reading, never a panic.
    let bytes = std::fs::read(data("data/captures/transformers-bf16.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for at in (0..8).chain((8..8 + length).step_by(29)) {
        let mut bytes = bytes.clone();
        bytes[at] = bytes[at].wrapping_add(1);
        std::fs::write(&path, bytes).unwrap();
        let _ = import(Importer::Capture, std::slice::from_ref(&path), &options, &dir.path().join("t"));
    }
}

/// Whether a program of this name can be started.
fn there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success());
    if !there {
        eprintln!("skipped: no {program} here");
    }
    there
}

#[test]
fn examples_in_four_languages_write_captures() {
    let dir = tempfile::tempdir().unwrap();
    let source = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("capture/examples").join(name);
    for (file, compiler, flags, language) in [
        ("capture.c", Some("cc"), &[][..], "C"),
        ("capture.cpp", Some("c++"), &["-std=c++17"][..], "C++"),
        ("capture.rs", Some("rustc"), &[][..], "Rust"),
        ("capture.py", None, &[][..], "Python"),
    ] {
        let binary = dir.path().join(file).with_extension(format!("{}.bin", language.len()));
        let mut command = match compiler {
            Some(compiler) if there(compiler) => {
                let built =
                    Command::new(compiler).args(flags).arg(source(file)).arg("-o").arg(&binary).output().unwrap();
                assert!(built.status.success(), "{file}: {}", String::from_utf8_lossy(&built.stderr));
                Command::new(&binary)
            }
            None if there("python3") => {
                let mut command = Command::new("python3");
                command.arg(source(file));
                command
            }
            _ => continue,
        };
        let capture = dir.path().join(file).with_extension("safetensors");
        assert!(command.arg(&capture).status().unwrap().success(), "{file}");
        let out = dir.path().join(format!("trace-{}", language.len()));
        let options = ImportOptions { force: true, ..ImportOptions::default() };
        let report = import(Importer::Capture, &[capture], &options, &out).unwrap();
        let imported = report.manifest.imported.as_ref().unwrap();
        assert_eq!(imported.engine.as_deref(), Some(&*format!("an example in {language}")));
        assert_eq!(
            (imported.contract.as_deref(), &report.manifest.run.tokens[..]),
            (Some("f32"), &[422, 472, 345][..])
        );
        let trace = Trace::open(&out).unwrap();
        let values = |stage| trace.tensor(Site::layer(0, stage)).unwrap().unwrap();
        assert_eq!(values(Stage::AttnNorm), HostTensor::f32(&[3, 4], (0..12).map(|i| 0.5 * i as f32).collect()));
        assert_eq!(values(Stage::LayerOut), HostTensor::f32(&[3, 4], (0..12).map(|i| 0.25 * i as f32 - 1.0).collect()));
    }
}

/// The parts of the scripts that need neither an engine nor numpy.
#[test]
fn scripts_choose_name_and_identify_as_the_program_does() {
    if !there("python3") {
        return;
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let code = r#"
import ast, pathlib, sys
for script in ("llama_cpp", "hf_transformers", "bugs"):
    ast.parse(pathlib.Path(f"capture/{script}.py").read_text())
sys.path.insert(0, "capture")
import llama_cpp as llama, hf_transformers as hf
for module in (llama, hf):
    assert module.chosen("all", 3) == [0, 1, 2]
    assert module.chosen("last", 3) == [2]
    assert module.chosen("0,2-3,-1", 6) == [0, 2, 3, 5]
    for wrong in ("", "x", "3", "2-1", "-4"):
        try:
            module.chosen(wrong, 3)
        except ValueError:
            continue
        raise AssertionError(wrong)
assert llama.layer_of("attn_norm-12") == 12 and llama.layer_of("result_norm") is None
assert [llama.layer_read(n) for n in ("blk.3.attn_q.weight", "cache_k_l4 (view)", "Qcur-5 (view) (permuted)", "inp_pos")] == [3, 4, 5, None]
assert llama.position_axis("kq-0", (8, 5, 256), 5) == 1 and llama.position_axis("Qcur-0", (5, 8, 64), 5) == 0
assert llama.position_axis("ffn_inp-3", (1, 256), 5) is None
assert llama.contract_name({"CPU": 3, "Vulkan0": 9}) == "llama.cpp-vulkan" and llama.contract_name({"CUDA_Host": 1}) == "llama.cpp-cpu"
assert llama.contract_name({"CPU": 1}, True, ("q8_0", "q8_0")) == "llama.cpp-cpu+fa+kv=q8_0" and llama.contract_name({}, True) == "llama.cpp-cpu+fa"
assert hf.place("model.layers.3.mlp.gate") == (3, "mlp.gate") and hf.place("model.layers.3") == (3, "")
assert hf.place("model.norm") == (None, "norm") and hf.place("lm_head") == (None, "lm_head")
writer = llama.Writer(sys.argv[1])
writer.add("layers.0.moe_out@0", "F32", [1, 1], b"\0\0\0\0")
writer.finish({"schema": llama.SCHEMA, "tokens": [3]})
print(llama.gguf_fingerprint("models/demo-moe-Q4_K_M.gguf"))
"#;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.safetensors");
    let out = Command::new("python3").args(["-B", "-c", code]).arg(&file).current_dir(&root).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let fingerprint = Model::open(None).unwrap().gguf.fingerprint();
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), fingerprint);
    let report = import(Importer::Capture, &[file], &ImportOptions::default(), &dir.path().join("t")).unwrap();
    assert_eq!(report.mapped.len(), 1);
}
