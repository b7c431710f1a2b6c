//! `inspect` and `export` on the built binary: output, exit codes, one-line errors, JSON against its schema.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value as Json;
use twinscope::gguf::{self, Array, Gguf, Metadata, TensorSpec, Value};
use twinscope::op::GgmlType;
use twinscope::quant;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-moe-Q4_K_M.gguf")
}

fn twinscope(args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinscope")).args(args.iter().map(|a| a.as_ref())).output().unwrap()
}

fn stdout(out: &Output) -> String {
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout.clone()).unwrap()
}

/// The message of a run that must fail with this exit code: one line on stderr, nothing on stdout.
fn failure(out: &Output, code: i32) -> String {
    let message = String::from_utf8(out.stderr.clone()).unwrap();
    assert_eq!((out.status.code(), out.stdout.len()), (Some(code), 0), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message.trim_end().strip_prefix("error: ").unwrap().to_string()
}

/// The JSON document of a file, checked against the schema.
fn document(args: &[&dyn AsRef<std::ffi::OsStr>]) -> Json {
    let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"inspect", &"--json"];
    all.extend(args);
    let document: Json = serde_json::from_str(&stdout(&twinscope(&all))).unwrap();
    let schema: Json = serde_json::from_str(include_str!("../../schemas/inspect.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    document
}

fn write(path: &Path, metadata: &Metadata, tensors: &[TensorSpec], data: impl Fn(&TensorSpec) -> Vec<u8>) {
    gguf::write(path, metadata, tensors, |t, sink| sink.put(&data(t))).unwrap();
}

fn zeros(t: &TensorSpec) -> Vec<u8> {
    vec![0; t.bytes().unwrap() as usize]
}

#[test]
fn demo_model_as_json() {
    let d = document(&[]);
    assert_eq!(d["schema"], "twinscope.inspect/1");
    assert_eq!(d["architecture"], "qwen3moe");
    assert_eq!(d["hyperparameters"]["rope.freq_base"], 1e6);
    assert_eq!(d["hyperparameters"]["attention.layer_norm_rms_epsilon"], 1e-6);
    assert_eq!(d["tokenizer"]["vocabulary"], 2048);
    assert_eq!(d["tokenizer"]["merges"], 1789);
    assert_eq!(d["tokenizer"]["special"][0]["token"], "<|endoftext|>");
    assert_eq!(d["metadata"].as_array().unwrap().len(), 28);

    let g = Gguf::open(&demo()).unwrap();
    let tensors = d["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), g.tensors().len());
    for (json, t) in tensors.iter().zip(g.tensors()) {
        assert_eq!(
            (&json["name"], &json["offset"], &json["bytes"]),
            (&t.name.as_str().into(), &t.offset.into(), &t.bytes.into())
        );
        assert_eq!((&json["shape"], &json["type"]), (&t.dims.clone().into(), &t.ty.name().into()));
    }
    let total: u64 = g.tensors().iter().map(|t| t.bytes).sum();
    let by_type: u64 = d["totals"]["by_type"].as_array().unwrap().iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!((d["totals"]["bytes"].as_u64(), by_type), (Some(total), total));
    assert_eq!(d["totals"]["elements"], 8_661_760, "gguf-py's sum of n_elements");
    assert_eq!(d["memory"]["cpu"]["mapped_bytes"], g.file_len());
    assert!(d["memory"]["cpu"]["machine_bytes"].as_u64().is_none_or(|all| all > 1 << 28), "{}", d["memory"]["cpu"]);
    // The file's tensors and the GPU's rows differ by padding only: at most 15 bytes a row.
    let rows: u64 = g.tensors().iter().map(|t| t.dims[1..].iter().product::<u64>()).sum();
    let uploaded = d["memory"]["gpu"]["uploaded_bytes"].as_u64().unwrap();
    assert!((total..=total + 15 * rows).contains(&uploaded), "{uploaded} for {total}");
    assert_eq!(
        (&d["memory"]["gpu"]["split"], &d["memory"]["gpu"]["without_kernels"]),
        (&Json::Array(vec![]), &Json::Array(vec![]))
    );
    // 4 layers × 2 KV heads × (64 + 64) × 4 bytes
    assert_eq!(d["memory"]["kv_cache"]["bytes_per_position"], 4096);
    let rows = d["runnable"].as_array().unwrap();
    assert_eq!(rows.iter().map(|r| r["backend"].as_str().unwrap()).collect::<Vec<_>>(), ["oracle", "cpu", "gpu"]);
    assert!(rows[0]["ok"] == true && rows[1]["ok"] == true, "{rows:?}");
    // Wherever there is an adapter that the plan could ask, the demo model runs on it.
    assert_eq!(rows[2]["ok"], d["memory"]["gpu"]["adapter"].is_string(), "{rows:?}");
}

#[test]
fn a_path_and_no_path_give_the_same_document() {
    let (mut bundled, mut file) = (document(&[]), document(&[&demo()]));
    assert_eq!(file["model"]["file"], demo().display().to_string());
    for d in [&mut bundled, &mut file] {
        d["model"]["file"] = Json::Null;
        d["environment"] = Json::Null;
    }
    assert_eq!(bundled, file);
}

#[test]
fn demo_model_as_text() {
    let text = stdout(&twinscope(&[&"inspect"]));
    for part in [
        "qwen3moe · GGUF v3 · 1 file, 5.32 MiB · 51 tensors, 8,661,760 weights",
        "blk.2.ffn_down_exps.weight  [256, 256, 8]  Q6_K",
        "rope.freq_base",
        "eos            0 <|endoftext|>",
        "every tensor fits one binding of",
        "oracle  yes",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    assert!(text.lines().all(|line| line == line.trim_end()), "no trailing blanks");
    assert_eq!(
        text,
        stdout(&twinscope(&[&"inspect", &demo()])).replace(&demo().display().to_string(), "demo-moe-Q4_K_M")
    );
}

/// What a file leaves to its architecture is shown as such.
#[test]
fn defaults_and_ignored_keys_are_said() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families/llama.gguf");
    let text = stdout(&twinscope(&[&"inspect", &file]));
    for part in ["rope.freq_base", "10000.0 (default)", "rope.scaling.factor", "16 (default)"] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    let d = document(&[&file]);
    let base = d["keys"]["defaults"].as_array().unwrap().iter().find(|key| key["key"] == "rope.freq_base").unwrap();
    assert_eq!(base["value"], 10_000.0);
    // 2 layers × 2 KV heads × (16 + 16) × 4 bytes, with a head size that the file does not say.
    assert_eq!(d["memory"]["kv_cache"]["bytes_per_position"], 512);
    let ignored = document(&[])["keys"]["ignored"].clone();
    let ignored: Vec<&str> = ignored.as_array().unwrap().iter().map(|key| key["key"].as_str().unwrap()).collect();
    assert_eq!(ignored, ["feed_forward_length"], "the demo's experts have a width of their own");
}

/// Scales beside weights, and weights that could have one and have none.
#[test]
fn scales_of_weights_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    stdout(&twinscope(&[&"synth", &path, &"--pure", &"NVFP4", &"--layers", &"1", &"--vocab", &"300"]));
    let d = document(&[&path]);
    assert_eq!(d["scales"]["weights"].as_array().unwrap().len(), 8, "output, four of attention, three of the experts");
    assert_eq!(d["scales"]["without"], serde_json::json!(["token_embd.weight"]));
    assert!(d["runnable"].as_array().unwrap().iter().all(|r| r["ok"] == true || r["backend"] == "gpu"), "{d}");
    // The same without them, and with scales of activations.
    let given = Gguf::open(&path).unwrap();
    let mut m = Metadata::new("m");
    given.metadata.iter().for_each(|(key, value)| m.set(key, value.clone()));
    let kept = given.tensors().iter().filter(|t| !t.name.ends_with(".scale"));
    let mut specs: Vec<_> = kept.map(|t| TensorSpec::new(&t.name, t.ty, &t.dims)).collect();
    specs.push(TensorSpec::new("blk.0.attn_q.input_scale", GgmlType::F32, &[1]));
    let without = dir.path().join("without.gguf");
    write(&without, &m, &specs, |t| given.tensor(&t.name).map_or_else(|| zeros(t), |of| given.data(of).to_vec()));
    let text = stdout(&twinscope(&[&"inspect", &without]));
    for part in
        ["of type NVFP4 have none, which is a scale of 1", "blk.0.attn_q.input_scale", "are not read", "oracle  yes"]
    {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    assert_eq!(document(&[])["scales"], Json::Null, "the demo has none");
}

/// Another architecture, odd values and hostile names: shown, not refused.
#[test]
fn any_valid_file_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.gguf");
    let mut m = Metadata::new("odd");
    m.set("general.architecture", Value::String("clip\x1b[2J".into()));
    m.set("clip\x1b[2J.nan", Value::F32(f32::NAN));
    m.set("clip\x1b[2J.list", Value::Array(Array::F64(vec![1.5, f64::NEG_INFINITY])));
    m.set("tokenizer.ggml.model", Value::U32(7));
    m.set("tokenizer.ggml.bos_token_id", Value::U32(9));
    m.set("text", Value::String("a\nb".repeat(1000)));
    m.set("many", Value::Array(Array::Array(vec![Array::String(vec!["x".into()])])));
    let every: Vec<_> = GgmlType::ALL
        .iter()
        .map(|&ty| TensorSpec::new(&format!("t.{ty}\r"), ty, &[ty.block_len() as u64, 1, 2]))
        .collect();
    write(&path, &m, &every, zeros);

    let d = document(&[&path]);
    assert_eq!(d["hyperparameters"]["nan"], "NaN");
    assert_eq!(d["hyperparameters"]["list"], serde_json::json!([1.5, "-inf"]));
    assert_eq!(d["non_finite"], 2);
    assert_eq!(d["tokenizer"]["model"], Json::Null);
    assert_eq!(d["tokenizer"]["special"][0]["token"], Json::Null);
    assert_eq!(d["tensors"].as_array().unwrap().len(), GgmlType::ALL.len());
    for row in d["runnable"].as_array().unwrap() {
        assert_eq!(row["ok"], false);
        assert!(row["why"].as_str().unwrap().contains("architecture"), "{row}");
    }
    let text = stdout(&twinscope(&[&"inspect", &path]));
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "control characters are escaped");
    assert!(text.contains("clip\\u{1b}[2J") && text.contains("t.IQ1_M\\r"), "{text}");

    // The least that is a GGUF file.
    write(&path, &Metadata::new("m"), &[], zeros);
    let d = document(&[&path]);
    assert_eq!((&d["architecture"], &d["tokenizer"]), (&Json::Null, &Json::Null));
    assert!(stdout(&twinscope(&[&"inspect", &path])).contains("no architecture given"));
}

#[test]
fn a_tensor_over_one_binding_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.gguf");
    // 1024 rows of 136 KiB: 136 MiB, over the 128 MiB of an adapter that gives no more than the default.
    let large = TensorSpec::new("token_embd.weight", GgmlType::Q8_0, &[131_072, 1024]);
    let row = vec![0; 139_264];
    gguf::write(&path, &Metadata::new("m"), &[large], |_, sink| (0..1024).try_for_each(|_| sink.put(&row))).unwrap();
    let gpu = &document(&[&path])["memory"]["gpu"];
    let limit = gpu["binding_limit"].as_u64().unwrap();
    let text = stdout(&twinscope(&[&"inspect", &path]));
    if limit < 142_606_336 {
        let bindings = 1024u64.div_ceil(limit / 139_264);
        let split = serde_json::json!([{ "name": "token_embd.weight", "bytes": 142_606_336u64, "bindings": bindings }]);
        assert_eq!(gpu["split"], split);
        assert!(text.contains("1 of 1 tensors need several bindings of"), "{text}");
        assert!(text.contains(&format!("token_embd.weight: 136.00 MiB, {bindings} bindings")), "{text}");
    } else {
        assert_eq!(gpu["split"], serde_json::json!([]));
        assert!(text.contains("every tensor fits one binding of"), "{text}");
    }
}

#[test]
fn unreadable_files_are_one_line_and_exit_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    assert!(failure(&twinscope(&[&"inspect", &path]), 2).contains("x.gguf: "));
    std::fs::write(&path, b"GGUF\x01\0\0\0").unwrap();
    assert!(failure(&twinscope(&[&"inspect", &path]), 2).ends_with("header: expected GGUF version 2 or 3, found 1"));
    assert!(failure(&twinscope(&[&"inspect", &"--json", &dir.path()]), 2).ends_with("found a directory"));
    let out = dir.path().join("x.npy");
    assert!(failure(&twinscope(&[&"export", &path, &"--tensor", &"t", &"--out", &out]), 2).contains("version 2 or 3"));
    assert_eq!(twinscope(&[&"inspect", &"--no-such-flag"]).status.code(), Some(2));
    assert_eq!(twinscope(&[&"export", &demo()]).status.code(), Some(2));
}

/// The document of `inspect --check`, held against its schema, with the exit code.
fn checked(path: &Path) -> (Json, Option<i32>) {
    let out = twinscope(&[&"inspect", &"--check", &"--json", &path]);
    let document: Json = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    let schema: Json = serde_json::from_str(include_str!("../../schemas/check.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    (document, out.status.code())
}

#[test]
fn a_file_is_checked_with_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let text = |code: i32| {
        let out = twinscope(&[&"inspect", &"--check", &path]);
        assert_eq!((out.status.code(), out.stderr.len()), (Some(code), 0), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let (document, code) = checked(&demo());
    assert_eq!((&document["verdict"], &document["findings"], code), (&"sound".into(), &Json::Array(vec![]), Some(0)));
    assert_eq!(
        stdout(&twinscope(&[&"inspect", &"--check"])),
        "demo-moe-Q4_K_M · nothing that llama.cpp would refuse or misread\n"
    );

    // A model of one tensor, with a name that is too long for ggml and would act on a terminal.
    let mut m = Metadata::new("m");
    m.set("general.architecture", Value::String("qwen3moe".into()));
    let name = "\x1b[2J".repeat(20);
    write(&path, &m, &[TensorSpec::new(&name, GgmlType::F32, &[4])], zeros);
    let (document, code) = checked(&path);
    assert_eq!((&document["verdict"], &document["opens_here"], code), (&"refused".into(), &true.into(), Some(1)));
    let rules: Vec<&str> =
        document["findings"].as_array().unwrap().iter().map(|f| f["rule"].as_str().unwrap()).collect();
    assert!(
        ["tensor-name", "key-missing", "tokenizer", "tensor-missing"].iter().all(|rule| rules.contains(rule)),
        "{rules:?}"
    );
    let said = text(1);
    assert!(
        said.contains("refused  tensor-name") && said.contains("63 bytes at most were expected of a name, found 80"),
        "{said}"
    );
    assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "{said}");

    // A thousand such tensors are a few lines.
    let many: Vec<_> =
        (0..1000).map(|n| TensorSpec::new(&format!("{}{n}", "n".repeat(70)), GgmlType::F32, &[4])).collect();
    write(&path, &m, &many, zeros);
    assert_eq!(
        checked(&path).0["more"][0],
        serde_json::json!({ "severity": "refused", "rule": "tensor-name", "count": 992 })
    );
    assert!(text(1).lines().count() < 60);

    std::fs::write(&path, b"GGUF\x01\0\0\0").unwrap();
    let (document, code) = checked(&path);
    assert_eq!((&document["verdict"], &document["opens_here"], code), (&"unreadable".into(), &false.into(), Some(2)));
    assert!(text(2).contains("file: header: expected GGUF version 2 or 3, found 1"));
    assert!(failure(&twinscope(&[&"inspect", &"--check", &dir.path().join("none.gguf")]), 2).contains("none.gguf: "));
}

/// The shape and the values of a .npy file of f32.
fn load_npy(path: &Path) -> (String, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let start = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let header = std::str::from_utf8(&bytes[10..start]).unwrap();
    let rest = header.strip_prefix("{'descr': '<f4', 'fortran_order': False, 'shape': ").unwrap();
    let shape = rest.split_once(", }").unwrap().0.to_string();
    (shape, bytes[start..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

#[test]
fn export_writes_the_tensor_as_numpy_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.npy");
    let g = Gguf::open(&demo()).unwrap();
    for (name, expected_shape) in [
        ("output_norm.weight", "(256,)"),
        ("blk.1.attn_q.weight", "(512, 256)"),
        ("blk.2.ffn_down_exps.weight", "(8, 256, 256)"),
    ] {
        let run = twinscope(&[&"export", &demo(), &"--tensor", &name, &"--out", &out]);
        assert_eq!((stdout(&run).as_str(), run.stderr.len()), ("", 0));
        let t = g.tensor(name).unwrap();
        let mut expected = vec![0.0; t.elements() as usize];
        quant::dequantize(t.ty, g.data(t), &mut expected).unwrap();
        assert_eq!(load_npy(&out), (expected_shape.to_string(), expected), "{name}");
    }
    // Without a model: the bundled one.
    stdout(&twinscope(&[&"export", &"--tensor", &"output_norm.weight", &"--out", &out]));
    assert_eq!(load_npy(&out).0, "(256,)");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn export_of_any_architecture_says_what_it_rounds() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("odd.gguf"), dir.path().join("x.npy"));
    let specs = [TensorSpec::new("a", GgmlType::I32, &[2]), TensorSpec::new("b", GgmlType::Q8_K, &[256])];
    write(&path, &Metadata::new("m"), &specs, |t| match t.ty {
        GgmlType::I32 => [7i32, i32::MAX].iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => zeros(t),
    });
    let run = twinscope(&[&"export", &path, &"--tensor", &"a", &"--out", &out]);
    assert_eq!(stdout(&run), "");
    let warning = String::from_utf8(run.stderr).unwrap();
    assert_eq!(warning, "warning: tensor a: 1 of 2 I32 values are rounded: f32 does not hold them exactly\n");
    assert_eq!(load_npy(&out), ("(2,)".into(), vec![7.0, 2147483648.0]));
    let quiet = twinscope(&[&"-q", &"export", &path, &"--tensor", &"a", &"--out", &out]);
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{quiet:?}");

    let none = dir.path().join("none.npy");
    let message = failure(&twinscope(&[&"export", &path, &"--tensor", &"b", &"--out", &none]), 2);
    assert!(message.ends_with("tensor b: expected a type that has a numeric value, found Q8_K"), "{message}");
    assert!(!none.exists());
}

#[test]
fn export_refuses_what_it_cannot_do() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.npy");
    let message = failure(&twinscope(&[&"export", &"--tensor", &"blk.1.attn_q.weigth", &"--out", &out]), 2);
    assert!(message.contains("no such tensor in demo-moe-Q4_K_M; the nearest: blk.1.attn_q.weight"), "{message}");
    let gone = dir.path().join("no/such/x.npy");
    assert!(failure(&twinscope(&[&"export", &"--tensor", &"output.weight", &"--out", &gone]), 2).contains("x.npy: "));
    let message = failure(&twinscope(&[&"export", &"--tensor", &"output.weight", &"--out", &dir.path()]), 2);
    assert!(message.contains("expected a file to write"), "{message}");

    let copy = dir.path().join("m.gguf");
    std::fs::copy(demo(), &copy).unwrap();
    let before = std::fs::metadata(&copy).unwrap().len();
    let message = failure(&twinscope(&[&"export", &copy, &"--tensor", &"output.weight", &"--out", &copy]), 2);
    assert!(message.ends_with("that is the model itself"), "{message}");
    assert_eq!(std::fs::metadata(&copy).unwrap().len(), before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// A reader that stops early, as `head` does, is no error.
#[cfg(unix)]
#[test]
fn closed_pipe_is_no_error() {
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_twinscope"))
        .args(["inspect", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{out:?}");
    // A Vulkan driver may have a word of its own to say.
    let said = String::from_utf8_lossy(&out.stderr).to_string();
    assert!(!said.contains("panicked") && !said.contains("stdout"), "{said}");
}
