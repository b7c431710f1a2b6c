//! README's commands, pasted in order into one directory, as a reader does: each must end with the right exit code, and print
//! what README shows of it.
//!
//! - A command is an indented line of README; lines belong together until their quotes are closed.
//! - A block of output belongs to the command before it. Its lines must be among those printed, in order and word for word; it
//!   may leave some out.
//! - A command ends with 0, or with 1 where the output that README shows names a first fault.
//! - What this test cannot run as it stands is in [`NOT_AS_WRITTEN`], each with the reason; files that are the reader's own are in
//!   [`THE_READERS`]. Both are checked for entries that README no longer has.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::Command;

/// How a command begins, what is run in its place (nothing, where it is `None`), and why.
const NOT_AS_WRITTEN: &[(&str, Option<&str>, &str)] = &[
    ("scripts/setup && ", None, "builds this program; .ci/run runs both as README prints them"),
    (
        "cargo run --release --locked --example own_backend",
        None,
        "builds in release mode; .ci/run runs the example, and checks what it finds",
    ),
    ("git bisect run", None, "needs a history with a fault in it: tests/cli/bisect.rs makes one and runs it"),
    ("twinscope diff --subject gpu:1", None, "needs two adapters; .ci/run runs it where SwiftShader is the second"),
    ("twinscope diff real-models/", None, "needs two models from PyPI, of 350 MB"),
    ("twinscope diff 30b.gguf", None, "needs a model of 18 GB"),
    (
        "twinscope synth --shape qwen3-30b-a3b",
        Some(
            "twinscope synth --shape qwen3-30b-a3b --layers 1 --experts 4 --experts-used 2 --vocab 320 --quant Q4_K_M 30b.gguf",
        ),
        "1.6 GB are as quickly written as they are in the way",
    ),
    ("twinscope bench 30b.gguf", Some("twinscope bench 30b.gguf -p 4 -n 1 -r 1"), "minutes, as written"),
    ("twinscope compare demo-moe-Q8_0.gguf", None, "needs two quantizations; tests/cli/exchange.rs makes a second one"),
    ("sbatch", None, "needs Slurm"),
    ("twinscope diff --json | jq", Some("twinscope diff --json > diff.json"), "jq is not on a bare Debian"),
    ("python3 capture/", None, "needs llama-cpp-python, or torch and transformers"),
    ("twinscope selftest ", Some("twinscope selftest --list"), "minutes; tests/selftest plants the same faults"),
    (
        "twinscope bench --stages",
        Some("twinscope bench -p 8 -n 2 -r 1 --stages --perfetto trace.json"),
        "fewer tokens, too",
    ),
    (
        "twinscope bench ops",
        Some("twinscope bench ops --only 'rms_norm*' --seconds 0.01 -p 1"),
        "one operation of many",
    ),
    (
        "twinscope devices --tune",
        Some("twinscope devices --tune --quick --out tuning.json"),
        "minutes, and the table would be the user's own",
    ),
    ("twinscope bench --trace-overhead", Some("twinscope bench --trace-overhead -p 8 -n 2 -r 1"), "fewer tokens, too"),
    (
        "twinscope bench --json",
        Some("twinscope bench -p 8 -n 2 -r 3 --json > before.json"),
        "fewer tokens, too, and as few repetitions as tell noise",
    ),
    (
        "twinscope bench MODEL.gguf",
        Some("twinscope bench MODEL.gguf -p 8 -n 2 -r 1 --backend cpu --backend gpu"),
        "fewer tokens, as a debug build is slow",
    ),
];

/// Files that a reader has, and what stands in for them here, of this repository or of an earlier command.
const THE_READERS: &[(&str, &str, &str)] = &[
    ("MODEL.gguf", "models/demo-moe-Q4_K_M.gguf", "a model that the reader has"),
    ("run.safetensors", "tests/data/captures/llama.cpp.safetensors", "what capture/llama_cpp.py writes"),
    ("after.json", "before.json", "the second measurement, once the reader has changed something"),
];

/// A command of README, the line it begins at, and the output that is shown of it.
struct Pasted {
    line: usize,
    command: String,
    shown: Vec<String>,
}

fn commands(readme: &str) -> Vec<Pasted> {
    let mut found: Vec<Pasted> = Vec::new();
    let (mut in_output, mut open) = (false, false);
    for (number, line) in readme.lines().enumerate() {
        if line.starts_with("```") {
            in_output = !in_output;
        } else if in_output {
            // The first picture of the page is of a shader that was edited, and of no command.
            if let Some(command) = found.last_mut() {
                command.shown.push(line.trim().to_string());
            }
        } else if let Some(text) = line.strip_prefix("    ") {
            match found.last_mut() {
                Some(command) if open => command.command += &format!("\n{text}"),
                _ => found.push(Pasted { line: number + 1, command: text.to_string(), shown: Vec::new() }),
            }
            open = found.last().is_some_and(|c| shlex::split(&c.command).is_none());
        }
    }
    found
}

/// The shown lines that are not among those printed, in order.
fn missing(shown: &[String], printed: &str) -> Vec<String> {
    let mut lines = printed.lines().map(str::trim);
    shown.iter().filter(|line| !line.is_empty() && !lines.any(|l| l == line.as_str())).cloned().collect()
}

#[test]
fn readme_commands_work_pasted_in_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().expect("a directory");
    for folder in ["tests", "capture", "scripts"] {
        std::os::unix::fs::symlink(root.join(folder), dir.path().join(folder)).expect("a link");
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_twinscope")).parent().expect("its folder");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let commands = commands(include_str!("../../README.md"));
    assert!(commands.len() > 40, "README has {} commands", commands.len());

    let mut failures = Vec::new();
    let mut slow = Vec::new();
    for Pasted { line, command, shown } in &commands {
        let other = NOT_AS_WRITTEN.iter().find(|(begins, ..)| command.starts_with(begins));
        let command = match other {
            None => command.as_str(),
            Some((_, Some(instead), _)) => instead,
            Some((_, None, _)) => continue,
        };
        for (name, from, _) in THE_READERS {
            let (to, here) = (dir.path().join(name), dir.path().join(from));
            if command.contains(name) && !to.exists() {
                fs::copy(if here.exists() { here } else { root.join(from) }, to).expect("a file of the reader");
            }
        }
        let began = std::time::Instant::now();
        let out = Command::new("bash")
            .args(["-c", command])
            .current_dir(dir.path())
            .env("PATH", &path)
            .output()
            .expect("a shell");
        slow.push((began.elapsed(), command));
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        let expected = i32::from(shown.iter().any(|l| l.starts_with("FIRST FAULT")));
        let missing = missing(shown, &stdout);
        if out.status.code() != Some(expected) || (other.is_none() && !missing.is_empty()) {
            let found = out.status.code();
            failures.push(format!(
                "README.md:{line}: {command}\nexpected exit code {expected}, found {found:?}; not printed: {missing:#?}\n{stdout}{stderr}"
            ));
        }
    }
    slow.sort();
    eprintln!("the slowest: {:.1?}", slow.iter().rev().take(8).collect::<Vec<_>>());
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// An exception that excepts nothing hides the next command that begins as it does.
#[test]
fn every_exception_is_of_a_command_that_readme_has() {
    let commands = commands(include_str!("../../README.md"));
    let unused: Vec<&str> = NOT_AS_WRITTEN
        .iter()
        .filter(|(begins, ..)| !commands.iter().any(|c| c.command.starts_with(begins)))
        .map(|(begins, ..)| *begins)
        .chain(
            THE_READERS
                .iter()
                .map(|(name, ..)| *name)
                .filter(|name| !commands.iter().any(|c| c.command.contains(name))),
        )
        .collect();
    assert!(unused.is_empty(), "README has no command for {unused:?}");
}
