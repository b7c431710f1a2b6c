//! What of a file contradicts itself as a model: keys against tensors, tensors against what reads them, a vocabulary against its parts.
//!
//! - Which tensors there must be, and of which shape, is what [`super::load`] reads: here it goes on where a tensor is not as it should be.
//! - What is said of llama.cpp is what its `llama-model.cpp`, `llama-vocab.cpp` and loaders (`src/models`) do, of llama-cpp-python 0.3.36;
//!   `tests/library/checked` holds it against that.

mod keys;
mod shapes;
mod vocabulary;

use std::path::Path;

use super::{Architecture, Config, Weights};
use crate::error::Result;
use crate::gguf::FindingSeverity::{Misread, Note, Refused};
use crate::gguf::{Checked, FoundInFile, Gguf, Metadata, Owner, Value, ValueType};
use keys::CheckedKeys;

/// Everything that is wrong with a GGUF file, or with the bundled model.
///
/// # Errors
/// If it cannot be opened: what can be, is a matter of findings.
pub fn check(path: Option<&Path>) -> Result<Checked> {
    match path {
        Some(path) => Checked::open(path).map(as_model),
        #[cfg(feature = "demo-model")]
        None => Ok(check_bytes(super::BUNDLED_NAME, std::sync::Arc::new(super::BUNDLED))),
        #[cfg(not(feature = "demo-model"))]
        None => Err(crate::Error::usage("no model is named, and this build has no demo model (feature `demo-model`)")),
    }
}

/// Everything that is wrong with a file that is in memory; `name` is what messages call it.
pub fn check_bytes(name: &str, owner: Owner) -> Checked {
    as_model(Checked::from_bytes(name, owner))
}

fn as_model(mut checked: Checked) -> Checked {
    if let Ok(gguf) = &checked.gguf {
        model(gguf, &mut checked.found);
    }
    checked
}

/// What is wrong with a tensor that an architecture reads, or with one that it does not read.
#[derive(Debug)]
pub(super) enum TensorProblem {
    Missing {
        tensor: String,
    },
    /// Of another shape or type.
    Other {
        tensor: String,
        rule: &'static str,
        what: String,
    },
    Unread {
        tensor: String,
    },
}

fn model(gguf: &Gguf, found: &mut FoundInFile) {
    let meta = &gguf.metadata;
    keys::general(meta, found);
    vocabulary::check(meta, found);
    const KEY: &str = "general.architecture";
    let architecture = match meta.get(KEY) {
        Some(Value::String(name)) => name,
        other => {
            let is = other.map_or("none".to_string(), ToString::to_string);
            return found.add(
                Refused,
                "architecture",
                &format!("key {KEY}"),
                format!("a string was expected, found {is}"),
            );
        }
    };
    let Some(architecture) = Architecture::named(architecture) else {
        let what = format!("{architecture} is not known here: its keys and tensors were not held against each other");
        return found.add(Note, "not-checked", &format!("key {KEY}"), what);
    };
    let keys = CheckedKeys { meta, architecture };
    keys.types(found);
    keys.numbers(found);
    keys.rows(gguf, found);
    let config = match Config::from_gguf(gguf) {
        Ok(config) => config,
        Err(e) => {
            let what = e.to_string();
            let what = what.strip_prefix(&format!("{}: ", gguf.name())).unwrap_or(&what);
            found.add(Note, "not-run-here", "file", format!("this program does not run it: {what}"));
            keys.widths(gguf, found);
            keys.parts(gguf, found);
            return found.add(
                Note,
                "not-checked",
                "file",
                "tensors were not held against keys that are not understood, but for widths and which layers have which",
            );
        }
    };
    for said in config.keys.elsewhere() {
        found.add(Misread, "key-ignored", &format!("{} keys", architecture.name), said);
    }
    if architecture.llama_cpp.own_output && gguf.tensor("output.weight").is_none() {
        let what = format!("is missing; llama.cpp takes no other one for it in {}", architecture.name);
        found.add(Refused, "tensor-missing", "tensor output.weight", what);
    }
    match Weights::problems(gguf, &config) {
        Ok(problems) => problems.iter().for_each(|problem| tensor(gguf, &config, problem, found)),
        Err(e) => found.add(Note, "not-checked", "file", format!("tensors were not all held against keys: {e}")),
    }
}

/// A key that llama.cpp reads where it is there, of this one type.
fn of_type(meta: &Metadata, key: &str, ty: ValueType, found: &mut FoundInFile) {
    if let Some(value) = meta.get(key).filter(|value| value.value_type() != ty) {
        found.add(Refused, "key-type", &format!("key {key}"), format!("{} was expected, found {value}", ty.name()));
    }
}

/// What a problem with a tensor is to llama.cpp.
fn tensor(gguf: &Gguf, config: &Config, problem: &TensorProblem, found: &mut FoundInFile) {
    let (architecture, keys) = (config.architecture.name, "as the keys have it");
    match problem {
        TensorProblem::Missing { tensor } => {
            let at = format!("tensor {tensor}");
            let part = tensor.split_once('.').and_then(|(_, rest)| rest.split_once('.')).map_or("", |(_, part)| part);
            let layer = || tensor.strip_suffix(part).unwrap_or_default();
            let fused = matches!(part, "attn_q.weight" | "attn_k.weight" | "attn_v.weight")
                && gguf.tensor(&format!("{}attn_qkv.weight", layer())).is_some();
            if fused {
                let what = "is in attn_qkv.weight, which llama.cpp reads and this program does not";
                found.add(Note, "not-run-here", &at, what);
            } else if config.architecture.llama_cpp.does_without(part) {
                found.add(Note, "not-run-here", &at, "is missing; llama.cpp does without it, this program does not");
            } else if tensor == "blk.0.attn_norm.weight" && config.predicting_layers > 0 {
                let what = "is missing: llama.cpp takes the file for the layers alone that guess further tokens";
                found.add(Misread, "tensor-missing", &at, what);
            } else {
                found.add(Refused, "tensor-missing", &at, format!("is missing; {architecture} has it, {keys}"));
            }
        }
        TensorProblem::Other { tensor, rule, what } => found.add(Refused, rule, &format!("tensor {tensor}"), what),
        TensorProblem::Unread { tensor } => {
            let at = format!("tensor {tensor}");
            if is_scale(gguf, tensor) {
                let what = "this program has no product here that it multiplies, and refuses what it does not read";
                return found.add(Note, "not-run-here", &at, what);
            }
            let part =
                tensor.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(&**tensor, |(_, part)| part);
            match config.architecture.llama_cpp.takes(part) {
                true => found.add(Note, "not-run-here", &at, "llama.cpp reads it, this program does not"),
                false => {
                    let what = format!("nothing reads it: {architecture} has no such tensor, {keys}");
                    found.add(Refused, "tensor-unread", &at, what);
                }
            }
        }
    }
}

/// Whether a tensor is a scale of another one of the file.
fn is_scale(gguf: &Gguf, tensor: &str) -> bool {
    let of = tensor.strip_suffix(".input_scale").or_else(|| tensor.strip_suffix(".scale"));
    of.is_some_and(|of| gguf.tensor(&format!("{of}.weight")).is_some())
}
