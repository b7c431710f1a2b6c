//! How the source is laid out: imports point down only, and no two types that more than one module sees share a name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The modules of the crate from the lowest floor to the highest. A module may use those before it; `lib.rs` and `main.rs` use all.
const FLOORS: &[&str] = &[
    "error",
    "text",
    "files",
    "atomic",
    "wide",
    "memory",
    "op",
    "quant",
    "gguf",
    "synth",
    "backend",
    "environment",
    "model",
    "trace",
    "formula",
    "diff",
    "repro",
    "probe",
    "bench",
    "report",
    "selftest",
    "cli",
];

/// Inside `backend`, the implementations do not know each other, and none of them knows files or models.
const BACKENDS: &[&str] = &["cpu", "gpu", "oracle"];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&src, &mut found);
    found.iter_mut().for_each(|(path, _)| *path = path.strip_prefix(&src).unwrap().to_path_buf());
    found.sort();
    found
}

/// Tests, in a file of their own or at the end of one, may use whatever they like.
fn without_tests(path: &Path, text: &str) -> String {
    if path.components().any(|c| matches!(c.as_os_str().to_str(), Some("tests" | "tests.rs"))) {
        return String::new();
    }
    text.split("#[cfg(test)]\n").next().unwrap_or_default().to_string()
}

/// The first two names of every path that begins at the crate's root, with the modules of `use crate::{…}` one by one.
fn roots(text: &str) -> Vec<String> {
    let code = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let name = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        let first = name(rest);
        match rest[first.len()..].strip_prefix("::") {
            Some(rest) => found.push(format!("{first}::{}", name(rest))),
            None => found.push(first),
        }
    }
    found
}

#[test]
fn imports_point_down_only() {
    let floor = |module: &str| FLOORS.iter().position(|f| *f == module);
    let mut up = Vec::new();
    for (path, text) in sources() {
        let mut parts = path.iter().map(|p| p.to_str().unwrap().trim_end_matches(".rs"));
        let (module, part) = (parts.next().unwrap(), parts.next().unwrap_or_default());
        let Some(here) = floor(module) else {
            assert!(matches!(module, "lib" | "main"), "{}: a module without a floor in {}", path.display(), file!());
            continue;
        };
        for root in roots(&without_tests(&path, &text)) {
            let (first, second) = root.split_once("::").unwrap_or((&root, ""));
            let above = floor(first).is_some_and(|there| there > here);
            let beside = BACKENDS.contains(&part) && BACKENDS.contains(&second) && part != second && first == "backend";
            let from_backend = module == "backend" && matches!(first, "gguf" | "synth");
            if above || beside || from_backend {
                up.push(format!("{}: crate::{root}", path.display()));
            }
        }
    }
    assert!(up.is_empty(), "imports that do not point down:\n{}", up.join("\n"));
}

#[test]
fn no_two_types_share_a_name() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in sources() {
        for line in without_tests(&path, &text).lines() {
            let line = line.trim_start();
            let Some(rest) = ["pub(crate) ", "pub(super) ", "pub "].iter().find_map(|p| line.strip_prefix(p)) else {
                continue;
            };
            let Some(rest) = ["struct ", "enum ", "trait ", "type "].iter().find_map(|k| rest.strip_prefix(k)) else {
                continue;
            };
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            // A macro names none. Every verb has its `Args`, and every reader its `Result`; a build has one of the two tokenizers.
            if !matches!(name.as_str(), "" | "Args" | "Result") && !path.ends_with("no_tokenizer.rs") {
                places.entry(name).or_default().push(path.display().to_string());
            }
        }
    }
    let shared: Vec<String> =
        places.iter().filter(|(_, at)| at.len() > 1).map(|(name, at)| format!("{name}: {}", at.join(", "))).collect();
    assert!(shared.is_empty(), "types that share a name:\n{}", shared.join("\n"));
}
