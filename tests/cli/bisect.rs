//! `git bisect run` with `repro run`, and by the README's recipe: 0 good, 1 bad, 125 skip, above 127 stop.

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

fn git_is_installed() -> bool {
    let installed = Command::new("git").arg("--version").output().is_ok();
    if !installed {
        eprintln!("skipped: git is not installed");
    }
    installed
}

/// The shell command that README.md gives to `git bisect run`, with other programs in the places of cargo and of this one.
fn recipe(build: &str, program: &str) -> String {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("    git bisect run sh -c '").expect("the README has the recipe");
    let (script, _) = rest.split_once('\'').expect("its quote is closed");
    let parts = ["cargo build --release --locked", "target/release/twinscope diff"];
    assert!(parts.iter().all(|part| script.matches(part).count() == 1), "{script}");
    script.replace(parts[0], build).replace(parts[1], program)
}

/// A history of which every commit's program exits with the next of `codes`; `None`: it does not build.
fn history(dir: &Path, codes: &[Option<i32>]) -> Vec<String> {
    git_ok(dir, &["init", "--quiet"]);
    let commit = |(i, code): (usize, &Option<i32>)| {
        let script = code.map_or("exit 7".into(), |code| format!("[ $1 = build ] || exit {code}"));
        std::fs::write(dir.join("program"), format!("{script} # {i}\n")).unwrap();
        git_ok(dir, &["add", "--all"]);
        git_ok(dir, &["commit", "--quiet", "--message", &format!("Commit {i}")]);
        git_ok(dir, &["rev-parse", "HEAD"])
    };
    codes.iter().enumerate().map(commit).collect()
}

fn bisect(dir: &Path, first: &str) -> (Output, String) {
    git_ok(dir, &["bisect", "start", "HEAD", first]);
    let script = recipe("sh ./program build", "sh ./program run");
    let run = git(dir, &["bisect", "run", "sh", "-c", &script]);
    let words = String::from_utf8_lossy(&[&run.stdout[..], &run.stderr].concat()).into_owned();
    (run, words)
}

#[test]
fn the_recipe_takes_no_failure_for_a_divergence() {
    if !git_is_installed() {
        return;
    }
    // A commit that panics, cannot run, does not build, or was killed is no bad one.
    let codes = [Some(0), Some(101), Some(0), Some(125), None, Some(0), Some(137), Some(0), Some(1), Some(1)];
    let dir = tempfile::tempdir().unwrap();
    let commits = history(dir.path(), &codes);
    let (run, words) = bisect(dir.path(), &commits[0]);
    assert!(run.status.success(), "{words}");
    assert!(words.contains(&format!("{} is the first bad commit", commits[8])), "{words}");

    // An unreadable input, or a wrong command line, is a verdict about none of them: the search stops and names nothing.
    let dir = tempfile::tempdir().unwrap();
    let commits = history(dir.path(), &[Some(0), Some(2), Some(2), Some(2), Some(1)]);
    let (run, words) = bisect(dir.path(), &commits[0]);
    assert!(!run.status.success() && !words.contains("is the first bad commit"), "{words}");
    assert!(words.contains("exit code 128"), "{words}");
}

/// What the program itself exits with where there is no verdict: 2 or 125, which the recipe does not take for bad.
#[test]
fn a_file_that_cannot_be_read_or_written_is_no_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let missing = format!("trace:{}", dir.path().join("none").display());
    let verdict = |program: &str| {
        let status = Command::new("sh").args(["-c", &recipe("true", program)]).output().unwrap().status;
        status.code()
    };
    assert_eq!(verdict(&format!("{TWINSCOPE} diff --subject {missing}")), Some(128), "a missing trace");
    assert_eq!(verdict(&format!("{TWINSCOPE} diff --no-such-option")), Some(128), "a wrong command line");
    assert_eq!(verdict(&format!("{TWINSCOPE} inspect --model-that-is-not-there")), Some(128));
    assert_eq!(verdict(&format!("{TWINSCOPE} inspect >/dev/null")), Some(0));
    #[cfg(target_os = "linux")]
    assert_eq!(verdict(&format!("{TWINSCOPE} inspect >/dev/full")), Some(125), "a full disk");
    assert_eq!(verdict(&format!("{TWINSCOPE} run --backend gpu:no-such-adapter")), Some(125));
    assert_eq!(verdict("/no/such/program"), Some(125));
}

#[test]
fn git_bisect_names_the_commit_that_broke_a_kernel() {
    if !git_is_installed() {
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
