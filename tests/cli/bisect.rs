//! `git bisect run` with `repro run`: its exit codes are those that git wants. 0 good, 1 bad, 125 skip.

use std::path::Path;
use std::process::{Command, Output};

const TWINSCOPE: &str = env!("CARGO_BIN_EXE_twinscope");
const SHADER: &str = "shaders/swiglu.wgsl";

/// git in `dir`, with no configuration but this.
fn git(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new("git");
    command.current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(variable);
    }
    for setting in ["user.name=A", "user.email=a@example.invalid", "core.autocrlf=false", "commit.gpgsign=false"] {
        command.args(["-c", setting]);
    }
    command.args(args).output().expect("git runs")
}

fn git_ok(dir: &Path, args: &[&str]) -> String {
    let out = git(dir, args);
    assert!(out.status.success(), "git {args:?}: {out:?}");
    String::from_utf8_lossy(&out.stdout).trim().to_string()
}

#[test]
fn git_bisect_names_the_commit_that_broke_a_kernel() {
    if Command::new("git").arg("--version").output().is_err() {
        eprintln!("skipped: git is not installed");
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("kernels");
    let stage = ["--tokens", "1,2,3,4,5,6", "--layer", "0", "--stage", "expert_act", "--keep", "--out"];
    let made = Command::new(TWINSCOPE).arg("repro").args(stage).arg(&dir).output().unwrap();
    assert_eq!(made.status.code(), Some(0), "{made:?}");

    git_ok(&dir, &["init", "--quiet"]);
    let shader = dir.join(SHADER);
    let mut source = std::fs::read_to_string(&shader).unwrap();
    let mut replace = |from: &str, to: &str| {
        assert_eq!(source.matches(from).count(), 1, "{from}");
        source = source.replace(from, to);
        std::fs::write(&shader, &source).unwrap();
    };
    let commit = |message: &str| {
        git_ok(&dir, &["add", "--all"]);
        git_ok(&dir, &["commit", "--quiet", "--message", message]);
        git_ok(&dir, &["rev-parse", "HEAD"])
    };
    let first = commit("A kernel");
    replace("@compute", "// Elementwise.\n@compute");
    commit("A comment");
    replace("let g = gate[n];", "let g = gate[n]; // before the sigmoid");
    commit("Another comment");
    replace("fn main(", "fn main((");
    let unbuildable = commit("A kernel that does not compile");
    replace("y[n] = g * sigmoid * up[n];", "y[n] = up[n] * (g * sigmoid);");
    commit("Another order, which still does not compile");
    replace("fn main((", "fn main(");
    commit("It compiles again");
    replace("g >= 0.0", "g >= 9.0");
    let bad = commit("Simplify the sigmoid");
    replace("// Elementwise.\n", "");
    commit("No comment");

    git_ok(&dir, &["bisect", "start", "HEAD", &first]);
    let run = git(&dir, &["bisect", "run", TWINSCOPE, "repro", "run", "."]);
    let output = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
    assert!(run.status.success(), "{output}");
    assert!(output.contains(&format!("{bad} is the first bad commit")), "{output}");
    let log = git_ok(&dir, &["bisect", "log"]);
    assert!(log.contains("git bisect skip"), "a commit that does not compile was skipped: {log}");

    // And each code by itself.
    for (at, expected) in [(&first, 0), (&bad, 1), (&unbuildable, 125)] {
        git_ok(&dir, &["checkout", "--quiet", at]);
        let run = Command::new(TWINSCOPE).args(["repro", "run"]).arg(&dir).output().unwrap();
        assert_eq!(run.status.code(), Some(expected), "{run:?}");
    }
}
