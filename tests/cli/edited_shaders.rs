//! `repro run` with shaders that an author has edited and that no adapter can run: the file is named, with what is wrong with it.

use std::path::Path;
use std::process::Command;

fn repro(args: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_twinscope")).arg("repro").args(args).output().unwrap();
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    (out.status.code().unwrap_or(-1), text)
}

#[test]
fn a_shader_that_is_refused_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("repro");
    let out = out.to_str().unwrap();
    let made = ["--tokens", "1,2,3,4,5,6", "--layer", "0", "--stage", "expert_act", "--keep", "--out", out];
    let (status, text) = repro(&made);
    assert_eq!(status, 0, "{text}");
    let shader = Path::new(out).join("shaders/swiglu.wgsl");
    let good = std::fs::read_to_string(&shader).unwrap();
    let line = |part: &str, in_: &str| in_.lines().position(|line| line.contains(part)).unwrap() + 1;
    let edits = [
        // More parameters than naga has bits for, and than this kernel takes.
        ("    n: u32,", "    n: u32, more: array<vec4<u32>, 40>,", "4 bytes at most in var<immediate>, found 656"),
        ("    n: u32,", "    n: u32, more: u32,", "4 bytes at most in var<immediate>, found 8"),
        ("@workgroup_size(THREADS)", "@workgroup_size(65536)", ""),
        ("@compute @workgroup_size(THREADS)", "@compute @workgroup_size(THREADS, 64, 64)", ""),
        ("fn main(", "fn other(", "no entry point is called main"),
        ("@binding(2)", "@binding(7)", ""),
        ("@group(0) @binding(1) var<storage, read>", "@group(0) @binding(1) var<storage, read_write>", ""),
        ("@group(0) @binding(1)", "@group(1) @binding(1)", ""),
    ];
    for (from, to, what) in edits {
        assert!(good.contains(from), "{from}");
        let edited = good.replacen(from, to, 1);
        std::fs::write(&shader, &edited).unwrap();
        let (status, text) = repro(&["run", out]);
        let error = text.lines().find(|line| line.starts_with("error:")).unwrap_or_else(|| panic!("{to}: {text}"));
        assert!(status == 125 && !text.contains("panicked"), "{to}: {status}: {text}");
        assert!(error.contains("swiglu.wgsl: expected") && error.contains(what), "{to}: {error}");
        assert!(error.contains("--shaders built-in"), "{to}: {error}");
        if what.contains("immediate") {
            let line = format!("in line {}", line("var<immediate>", &edited));
            assert!(error.contains(&line), "{line}: {error}");
        }
        assert!(text.lines().filter(|line| line.starts_with("error:")).count() == 1, "{to}: {text}");
    }
    std::fs::write(&shader, good).unwrap();
    assert_eq!(repro(&["run", out]).0, 0);
}
