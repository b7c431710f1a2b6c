//! What must never pass for agreement, hang or panic: traces that lie, files without an end, disks without room.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn twinscope(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinscope")).args(args).output().expect("the binary runs")
}

fn code(out: &Output) -> (Option<i32>, String) {
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// The exit code and stderr of a run that has to end soon, and without much memory.
fn bounded(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinscope"));
    let mut child =
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{args:?} did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    code(&child.wait_with_output().unwrap())
}

#[test]
fn a_trace_cannot_promise_what_no_arithmetic_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let name = trace.to_str().unwrap();
    let saved = twinscope(&["trace", "--tokens", "1", "--save", "all", "--out", name]);
    assert_eq!(saved.status.code(), Some(0));
    let manifest = trace.join("manifest.json");
    let good: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    for (field, value) in [
        ("unit_roundoff", 1e9.into()),
        ("exp_base_ulp", (-1).into()),
        ("order", serde_json::json!({ "lanes": { "lanes": 0 } })),
        ("order", serde_json::json!({ "blocked": { "block": 0 } })),
    ] {
        let mut bad = good.clone();
        bad["contracts"]["router_probs"][field] = value;
        std::fs::write(&manifest, bad.to_string()).unwrap();
        let out = twinscope(&["diff", "--reference", "cpu", "--subject", &format!("trace:{name}")]);
        let (status, stderr) = code(&out);
        assert_eq!(status, Some(2), "{field}: {stderr}");
        assert!(stderr.contains("manifest.json") && stderr.contains(field), "{stderr}");
    }
}

#[test]
fn float64_values_on_one_side_are_no_fault_of_the_other() {
    let out = twinscope(&["diff", "--reference", "cpu:scalar", "--subject", "oracle"]);
    assert_eq!(code(&out), (Some(0), String::new()), "{}", String::from_utf8_lossy(&out.stdout));
}

#[cfg(unix)]
#[test]
fn files_without_an_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let zero = dir.path().join("layer-0.safetensors");
    std::os::unix::fs::symlink("/dev/zero", &zero).unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("manifest.json")).unwrap();
    let (dir, zero) = (dir.path().to_str().unwrap(), zero.to_str().unwrap());
    let out = dir.to_string() + "/out";
    for args in [
        &["compare", dir, dir][..],
        &["import", "safetensors", zero, "--out", &out],
        &["import", "npz", zero, "--out", &out],
        &["run", "--prompt-file", "/dev/zero"],
    ] {
        let (status, stderr) = code(&twinscope(args));
        assert_eq!(status, Some(2), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    }
}

/// A trace of three tokens with one stage saved.
fn saved(dir: &Path, stage: &str) -> String {
    let trace = dir.join(stage).to_str().unwrap().to_string();
    let made = twinscope(&["trace", "--tokens", "1,2,3", "--save", stage, "--out", &trace]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    trace
}

fn edit(manifest: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(manifest, json.to_string()).unwrap();
}

/// It made the comparison make room for as many experts as the largest id, 34 GB.
#[test]
fn an_id_of_no_expert_is_refused_at_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let npz = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/big-id.npz");
    let (status, stderr) = bounded(&["import", "npz", npz, "--out", out.to_str().unwrap()]);
    let expected = "layers.0.router_ids: position 0: an expert id below 65536 expected, found 4294967294";
    assert_eq!((status, stderr), (Some(2), format!("error: {npz}: {expected}\n")));
    assert!(!out.exists());

    let trace = saved(dir.path(), "router_ids");
    let file = Path::new(&trace).join("layer-1.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() - 2 * 4; // [3, 2] ids end the file: the first slot of position 2
    for (id, manifest_says) in [(8u32, "8"), (u32::MAX, "8"), (65_536, "65536")] {
        bytes[at..at + 4].copy_from_slice(&id.to_le_bytes());
        std::fs::write(&file, &bytes).unwrap();
        if manifest_says != "8" {
            edit(&Path::new(&trace).join("manifest.json"), |json| {
                json["model"]["hyperparameters"] = serde_json::json!({})
            });
        }
        let what = format!("layers.1.router_ids: position 2: an expert id below {manifest_says} expected, found {id}");
        let found = bounded(&["compare", &trace, &trace]); // that both say the same is no agreement
        assert_eq!(found, (Some(2), format!("error: {}: {what}\n", file.display())));
    }
    // With the model at hand it is the model that says how many there are.
    let (status, stderr) = bounded(&["diff", "--subject", &format!("trace:{trace}")]);
    assert_eq!(status, Some(2), "{stderr}");
    assert!(stderr.contains("layers.1.router_ids: position 2: an expert id below 8 expected, found 65536"), "{stderr}");
}

#[test]
fn numbers_that_no_model_has_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let trace = saved(dir.path(), "final_norm");
    let manifest = Path::new(&trace).join("manifest.json");
    let good = std::fs::read(&manifest).unwrap();
    for (key, number) in [
        ("layers", "1e300"),
        ("layers", "10001"),
        ("experts", "65537"),
        ("used", "-1"),
        ("experts", "18446744073709551615"),
    ] {
        edit(&manifest, |json| {
            let sizes = &mut json["model"]["hyperparameters"];
            let sizes = if key == "layers" { sizes } else { &mut sizes["moe"] };
            sizes[key] = serde_json::from_str(number).unwrap();
        });
        let (status, stderr) = bounded(&["compare", &trace, &trace]);
        assert_eq!(status, Some(2), "{stderr}");
        assert!(stderr.contains(&format!("manifest.json: hyperparameters: {key} of at most")), "{stderr}");
        std::fs::write(&manifest, &good).unwrap();
    }
    // Four thousand million positions of no width, in a file of no length.
    let rows = 4_294_967_294u64;
    let header = format!(r#"{{"final_norm":{{"dtype":"F32","shape":[{rows},0],"data_offsets":[0,0]}}}}"#);
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    std::fs::write(Path::new(&trace).join("model.safetensors"), file).unwrap();
    for (shape, what) in
        [([rows, 0], "shape [4294967294, 0]: one or more values expected"), ([rows, 1], "positions 0-4294967293")]
    {
        edit(&manifest, |json| {
            json["tokens"] = serde_json::json!([]);
            json["prompt_tokens"] = 0.into();
            json["tokens_sha256"] = serde_json::Value::Null;
            json["tensors"][0]["shape"] = shape.to_vec().into();
            json["tensors"][0]["positions"] = "0-4294967293".into();
        });
        let (status, stderr) = bounded(&["compare", &trace, &trace]);
        assert_eq!(status, Some(2), "{stderr}");
        assert!(stderr.contains(&format!("manifest.json: tensor final_norm: {what}")), "{stderr}");
    }
}

#[test]
fn a_manifest_larger_than_any_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = dir.path().join("manifest.json");
    std::fs::File::create(&manifest).unwrap().set_len(1 << 40).unwrap();
    let name = dir.path().to_str().unwrap();
    let shown = manifest.display();
    let found = format!("of at most 33554432 bytes, found {}", 1u64 << 40);
    assert_eq!(
        bounded(&["compare", name, name]),
        (Some(2), format!("error: {shown}: expected a trace's manifest {found}\n"))
    );
    let refused = format!("error: {shown}: expected a repro folder's manifest {found}\n");
    assert_eq!(bounded(&["repro", "run", name]), (Some(2), refused));
    // Many small values take a hundred times their bytes.
    std::fs::write(&manifest, format!("[{}0]", "0,".repeat(5 << 20))).unwrap();
    let many = "at most 4194304 values expected, found 5242882";
    assert_eq!(
        bounded(&["compare", name, name]),
        (Some(2), format!("error: {shown}: expected a trace's manifest: {many}\n"))
    );
}

#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = |name: &str| {
        let path = dir.path().join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path.to_str().unwrap().to_string()
    };
    let manifest = pipe("manifest.json");
    std::fs::write(dir.path().join("run.bin"), 1.5f32.to_le_bytes()).unwrap();
    let (prompt, logits) = (pipe("run-prompt.txt"), dir.path().join("run.bin").to_str().unwrap().to_string());
    let (index, contract, model, npy) = (pipe("x.index.json"), pipe("c.json"), pipe("m.gguf"), pipe("a.npy"));
    let name = dir.path().to_str().unwrap();
    let out = dir.path().join("out").to_str().unwrap().to_string();
    let by_file = format!("subject={contract}");
    let cases: &[(&[&str], &str)] = &[
        (&["compare", name, name], &manifest),
        (&["repro", "run", name], &manifest),
        (&["import", "llama.cpp", &logits, "--out", &out], &prompt),
        (&["import", "capture", &index, "--out", &out], &index),
        (&["import", "npz", name, "--out", &out], &npy),
        (&["import", "capture", &model, "--rules", &contract, "--out", &out], &model),
        (&["diff", "--subject", "cpu", "--contract", &by_file], &contract),
        (&["bench", "compare", &contract, &contract], &contract),
        (&["inspect", &model], &model),
    ];
    for (args, path) in cases {
        let (status, stderr) = bounded(args);
        assert_eq!(status, Some(2), "{args:?}: {stderr}");
        assert!(stderr.starts_with(&format!("error: {path}: expected ")), "{args:?}: {stderr}");
        assert!(stderr.ends_with("found something that is not a regular file\n"), "{args:?}: {stderr}");
    }
    // What has a pipe for a manifest is no trace, and is not replaced.
    let (status, stderr) = bounded(&["trace", "--tokens", "1", "--save", "logits", "--out", name, "--force"]);
    assert_eq!(status, Some(2), "{stderr}");
    assert!(stderr.contains("is no trace; it is left as it is"), "{stderr}");
}

/// A file's text is shown, not obeyed.
#[test]
fn no_control_character_of_a_file_reaches_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let trace = saved(dir.path(), "final_norm");
    let manifest = Path::new(&trace).join("manifest.json");
    let good = std::fs::read(&manifest).unwrap();
    let nasty = "a\u{1b}[2J\u{1b}]0;x\u{7}\nb\r\u{9b}\u{202e}";
    let quiet = |out: &Output| {
        for text in [&out.stdout, &out.stderr] {
            let text = String::from_utf8_lossy(text);
            assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text:?}");
            assert!(text.chars().count() < 20_000, "{} characters", text.chars().count());
        }
    };
    let places: [fn(&mut Value) -> &mut Value; 8] = [
        |json| &mut json["schema"],
        |json| &mut json["tensors"][0]["key"],
        |json| &mut json["tensors"][0]["file"],
        |json| &mut json["tensors"][0]["positions"],
        |json| &mut json["prompt_tokens"], // a string where a number is expected: serde's message has it
        |json| &mut json["backend"]["adapter"],
        |json| &mut json["model"]["name"],
        |json| &mut json["prompt"],
    ];
    for place in places {
        for text in [nasty.to_string(), nasty.repeat(10_000)] {
            edit(&manifest, |json| *place(json) = text.into());
            for json in [&["--json"][..], &[]] {
                let out = twinscope(&[&["compare", &trace, &trace], json].concat());
                // A value of a valid trace is in the JSON document whole.
                if json.is_empty() || out.status.code() != Some(0) {
                    quiet(&out);
                } else {
                    assert!(!String::from_utf8_lossy(&out.stdout).contains(['\u{1b}', '\u{9b}', '\u{202e}']));
                    serde_json::from_slice::<Value>(&out.stdout).unwrap();
                }
            }
            std::fs::write(&manifest, &good).unwrap();
        }
    }
}

/// The same of a model's names and tokens, and of a member of an npz file.
#[test]
fn nor_does_one_of_a_model() {
    use twinscope::gguf::{self, Array, Gguf, TensorSpec, Value as Entry};
    let dir = tempfile::tempdir().unwrap();
    let nasty = "a\u{1b}[2J\u{7}\nb\r\u{9b}\u{202e}";
    let demo = Gguf::open(Path::new("models/demo-moe-Q4_K_M.gguf")).unwrap();
    let path = dir.path().join("nasty.gguf");
    let path = path.to_str().unwrap();
    let quiet = |args: &[&str]| {
        let out = twinscope(args);
        for text in [&out.stdout, &out.stderr] {
            let text = String::from_utf8_lossy(text);
            assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{args:?}: {text:?}");
        }
        out.status.code()
    };
    let write = |change: &dyn Fn(&mut gguf::Metadata, &mut Vec<TensorSpec>)| {
        let mut metadata = demo.metadata.clone();
        let mut specs: Vec<_> = demo.tensors().iter().map(|t| TensorSpec::new(&t.name, t.ty, &t.dims)).collect();
        change(&mut metadata, &mut specs);
        gguf::write(Path::new(path), &metadata, &specs, |spec, sink| {
            let tensor = demo.tensors().iter().find(|t| t.name == spec.name || nasty == spec.name).unwrap();
            sink.put(demo.data(tensor))
        })
        .unwrap();
    };
    let strings = |key: &str, at: usize| {
        let Some(Entry::Array(Array::String(all))) = demo.metadata.get(key) else { panic!("{key}") };
        let mut all = all.clone();
        all[at] = nasty.into();
        Entry::Array(Array::String(all))
    };
    // A tensor's name, an unknown key's text, a merge.
    let first = demo.tensors()[0].clone();
    write(&|_, specs| specs.push(TensorSpec::new(nasty, first.ty, &first.dims)));
    assert_eq!((quiet(&["inspect", path]), quiet(&["diff", path])), (Some(0), Some(2)));
    write(&|metadata, _| metadata.set("qwen3moe.other", Entry::String(nasty.into())));
    assert_eq!((quiet(&["inspect", path]), quiet(&["diff", path])), (Some(0), Some(2)));
    write(&|metadata, _| metadata.set("general.name", Entry::String(nasty.into())));
    assert_eq!(
        (quiet(&["inspect", path]), quiet(&["diff", path, "--tokens", "1", "--decode", "0"])),
        (Some(0), Some(0))
    );
    write(&|metadata, _| metadata.set("tokenizer.ggml.merges", strings("tokenizer.ggml.merges", 0)));
    assert_eq!(quiet(&["run", path, "--prompt", "fn", "-n", "1"]), Some(2));
    // Text that is generated: every token has such a name, so that whichever is chosen is printed, but for its line feeds.
    let all = demo.metadata.str_array("tokenizer.ggml.tokens").unwrap().len();
    let tokens = (0..all).map(|n| format!("{n}\u{9b}\u{202e}")).collect();
    write(&|metadata, _| metadata.set("tokenizer.ggml.tokens", Entry::Array(Array::String(Vec::clone(&tokens)))));
    quiet(&["run", path, "--tokens", "1,2", "-n", "2"]);
    // A member of an archive.
    let npz = dir.path().join("nasty.npz");
    std::fs::write(&npz, stored_zip(nasty, b"no array")).unwrap();
    assert_eq!(
        quiet(&["import", "npz", npz.to_str().unwrap(), "--tokens", "1", "--out", &format!("{path}.d")]),
        Some(2)
    );
}

/// A zip file of one member that is stored as it is.
fn stored_zip(name: &str, data: &[u8]) -> Vec<u8> {
    let crc = data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    });
    let (len, crc) = ((data.len() as u32).to_le_bytes(), (!crc).to_le_bytes());
    let common =
        [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &crc, &len, &len, &(name.len() as u16).to_le_bytes(), &[0, 0]].concat();
    let local = [b"PK\x03\x04", &common[..], name.as_bytes(), data].concat();
    let central = [b"PK\x01\x02\x14\x00", &common[..], &[0; 14], name.as_bytes()].concat();
    let (size, at) = ((central.len() as u32).to_le_bytes(), (local.len() as u32).to_le_bytes());
    let end = [b"PK\x05\x06", &[0, 0, 0, 0, 1, 0, 1, 0][..], &size, &at, &[0, 0]].concat();
    [local, central, end].concat()
}

/// What may not be read or written is a lack of the machine, not of the models' agreement.
#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read_is_an_error_of_one_line() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::copy("models/demo-moe-Q4_K_M.gguf", &path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(&path).is_ok() {
        eprintln!("not tested: permissions, which this user stands above");
        return;
    }
    let (code, text) = code(&twinscope(&["diff", path.to_str().unwrap(), "--tokens", "1"]));
    assert_eq!((code, text.lines().count()), (Some(125), 1), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_of_one_line() {
    for args in [&["run", "-n", "2"][..], &["inspect"], &["--help"], &["diff", "--help"], &["--version"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let out = Command::new(env!("CARGO_BIN_EXE_twinscope"))
            .args(args)
            .stdout(Stdio::from(full))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let (status, stderr) = code(&out);
        assert_eq!(status, Some(125), "{args:?}: {stderr}"); // no verdict: git's bisect skips
        assert_eq!(stderr.lines().filter(|l| l.contains("error: stdout")).count(), 1, "{stderr}");
    }
}

/// What is said beside the result has nowhere to go; that is no reason to fail, and no reason to panic.
#[cfg(target_os = "linux")]
#[test]
fn a_full_stderr_changes_no_exit_code() {
    for (args, expected) in [
        (&["run", "-n", "2"][..], 0),
        (&["run", "-n", "1", "--threads", "65535"], 0),
        (&["inspect", "/no/such/file"], 2),
        (&["inspect", "--no-such-option"], 2),
        (&[], 2),
    ] {
        let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
        let run = |stderr| {
            Command::new(env!("CARGO_BIN_EXE_twinscope")).args(args).stdout(Stdio::null()).stderr(stderr).status()
        };
        assert_eq!(run(full()).unwrap().code(), Some(expected), "{args:?}");
    }
    for (redirect, expected) in [("2>&-", 2), ("2>&- >&-", 2)] {
        let line = format!("exec {} inspect /no/such/file {redirect}", env!("CARGO_BIN_EXE_twinscope"));
        let status = Command::new("sh").args(["-c", &line]).status().unwrap();
        assert_eq!(status.code(), Some(expected), "{redirect}");
    }
}

/// A place that cannot be written is found before the run, which may take hours.
#[test]
fn an_output_that_cannot_be_written_is_refused_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let place = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (report, below, dense) = (place("none/r.html"), place("file/out"), place("none/p.json"));
    // None of these models is there: whoever speaks of it looked for the place of its output too late.
    for args in [
        &["diff", "no-model.gguf", "--report", &report][..],
        &["compare", "no-trace", "no-trace", "--report", &report],
        &["import", "npz", "no-array.npz", "--out", &below],
        &["bench", "no-model.gguf", "--stages", "--perfetto", &dense],
    ] {
        let (status, stderr) = bounded(args);
        assert_eq!(status, Some(2), "{args:?}: {stderr}");
        let [report, below, file, dense] = [&report, &below, &place("file"), &dense].map(|p| format!("error: {p}: "));
        let named = [report, below, file, dense].iter().any(|p| stderr.starts_with(p));
        assert!(named && stderr.lines().count() == 1, "{args:?}: {stderr}");
        assert!(
            stderr.ends_with("(os error 2)\n") || stderr.ends_with("(os error 20)\n"),
            "the system's words alone: {stderr}"
        );
    }
}

#[test]
fn an_adapter_without_a_name_is_no_backend() {
    let out = twinscope(&["run", "--backend", "gpu:"]);
    assert_eq!(out.status.code(), Some(2));
}

/// Tens of thousands of threads take minutes to start and help nobody.
#[test]
fn threads_are_as_many_as_there_are_cores_at_most() {
    let cores = std::thread::available_parallelism().unwrap();
    for verb in [&["run", "-n", "1"][..], &["bench", "-p", "1", "-n", "0", "--no-limits", "--repeat", "1"]] {
        for asked in ["65535", "18446744073709551615"] {
            let (status, stderr) = bounded(&[verb, &["--threads", asked]].concat());
            assert_eq!(status, Some(0), "{stderr}");
            let note = format!("note: --threads {asked}: {cores} threads, one a core, are used");
            assert_eq!(stderr.lines().filter(|line| line.contains("--threads")).collect::<Vec<_>>(), [note]);
        }
        let (status, stderr) = bounded(&[verb, &["--threads", "0"]].concat());
        assert_eq!(status, Some(2), "{stderr}");
    }
}

#[test]
fn a_machine_without_threads_to_give_is_said() {
    let out = Command::new(env!("CARGO_BIN_EXE_twinscope"))
        .arg("inspect")
        .env("RUST_MIN_STACK", (1u64 << 47).to_string()) // a stack as large as the address space
        .output()
        .unwrap();
    let (status, stderr) = code(&out);
    assert_eq!(status, Some(125), "{stderr}");
    assert!(stderr.starts_with("error: cannot start ") && stderr.lines().count() == 1, "{stderr}");
}

/// A model is mapped: cut short by another process, its pages are gone.
#[cfg(target_os = "linux")]
#[test]
fn a_model_that_is_cut_short_during_a_run_ends_it_with_words() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo-moe-Q4_K_M.gguf"), &model).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_twinscope"))
        .args(["run", "-n", "4000", "--backend", "cpu:scalar"])
        .arg(&model)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 64]).unwrap(); // past the prompt: it decodes
    std::fs::File::options().write(true).open(&model).unwrap().set_len(4096).unwrap();
    std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    let (status, stderr) = code(&child.wait_with_output().unwrap());
    assert_eq!(status, Some(125), "{stderr}");
    assert!(stderr.contains("error: a file that is in use, such as the model, has become shorter"), "{stderr}");
}
