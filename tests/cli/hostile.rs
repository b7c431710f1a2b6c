//! What must never pass for agreement, hang or panic: traces that lie, files without an end, disks without room.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn twinscope(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinscope")).args(args).output().expect("the binary runs")
}

fn code(out: &Output) -> (Option<i32>, String) {
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
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

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_of_one_line() {
    for args in [&["run", "-n", "2"][..], &["inspect"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let out = Command::new(env!("CARGO_BIN_EXE_twinscope"))
            .args(args)
            .stdout(Stdio::from(full))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let (status, stderr) = code(&out);
        assert_eq!(status, Some(2), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().filter(|l| l.contains("error: stdout")).count(), 1, "{stderr}");
    }
}

#[test]
fn an_adapter_without_a_name_is_no_backend() {
    let out = twinscope(&["run", "--backend", "gpu:"]);
    assert_eq!(out.status.code(), Some(2));
}

/// Tens of thousands of threads take minutes to start and help nobody.
#[test]
fn more_threads_than_any_machine_has_cores_are_refused() {
    let out = twinscope(&["run", "--threads", "2000", "-n", "1"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("2000 is not in 1..=1024"));
}
