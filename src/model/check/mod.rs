//! What of a file contradicts itself as a model: keys against tensors, tensors against what reads them, a vocabulary against its parts.
//!
//! - Which tensors there must be, and of which shape, is what [`super::load`] reads: here it goes on where a tensor is not as it should be.
//! - What is said of llama.cpp is what its `llama-model.cpp`, `llama-vocab.cpp` and loaders (`src/models`) do, of llama-cpp-python 0.3.36;
//!   `tests/library/checked.rs` holds it against that.

mod vocabulary;

use std::path::Path;

use super::{Architecture, Config, Weights};
use crate::error::Result;
use crate::gguf::FindingSeverity::{Misread, Note, Refused};
use crate::gguf::{Array, Checked, FoundInFile, Gguf, Metadata, Owner, Value, ValueType};

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
    of_type(meta, "general.name", ValueType::String, found);
    of_type(meta, "general.file_type", ValueType::U32, found);
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
    let keys = Keys { meta, architecture };
    keys.types(found);
    keys.numbers(found);
    if gguf.tensor("token_embd.weight").is_none() {
        found.add(Refused, "tensor-missing", "tensor token_embd.weight", "is missing");
    }
    let config = match Config::from_gguf(gguf) {
        Ok(config) => config,
        Err(e) => {
            let what = e.to_string();
            let what = what.strip_prefix(&format!("{}: ", gguf.name())).unwrap_or(&what);
            found.add(Note, "not-run-here", "file", format!("this program does not run it: {what}"));
            keys.widths(gguf, found);
            return found.add(
                Note,
                "not-checked",
                "file",
                "tensors were not held against keys that are not understood, but for their widths",
            );
        }
    };
    for said in config.keys.elsewhere() {
        found.add(Misread, "key-ignored", &format!("{} keys", architecture.name), said);
    }
    let rows = gguf.tensor("token_embd.weight").and_then(|t| t.dims.get(1)).copied().unwrap_or(1);
    if let Some(tokens) = tokens(meta, architecture.name).filter(|tokens| *tokens != rows) {
        let what = format!("a row for each of {tokens} tokens was expected, found {rows}");
        found.add(Refused, "tensor-shape", "tensor token_embd.weight", what);
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

struct Keys<'a> {
    meta: &'a Metadata,
    architecture: &'static Architecture,
}

/// Keys that llama.cpp reads in every architecture, of this one type.
const TYPES: &[(ValueType, &[&str])] = &[
    (
        ValueType::U32,
        &[
            "context_length",
            "embedding_length",
            "block_count",
            "nextn_predict_layers",
            "expert_count",
            "expert_group_count",
            "expert_group_used_count",
            "attention.key_length",
            "attention.value_length",
            "rope.dimension_count",
            "rope.scaling.original_context_length",
        ],
    ),
    (
        ValueType::F32,
        &["rope.freq_base", "rope.scaling.factor", "rope.scaling.attn_factor", "attention.layer_norm_rms_epsilon"],
    ),
    (ValueType::Bool, &["attention.causal", "rope.scaling.finetuned"]),
    (ValueType::String, &["rope.scaling.type"]),
];

/// Keys that llama.cpp reads as a number, or as an array of one for each layer.
const FOR_LAYERS: &[&str] =
    &["expert_used_count", "feed_forward_length", "attention.head_count", "attention.head_count_kv"];

/// Keys that llama.cpp reads in every architecture and does not do without.
const REQUIRED: &[&str] =
    &["context_length", "embedding_length", "block_count", "attention.head_count", "attention.layer_norm_rms_epsilon"];

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.meta.get(&self.full(key))
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(Value::as_integer).and_then(|n| u64::try_from(n).ok())
    }

    fn refused(&self, found: &mut FoundInFile, rule: &'static str, key: &str, what: String) {
        found.add(Refused, rule, &format!("key {}", self.full(key)), what);
    }

    fn types(&self, found: &mut FoundInFile) {
        for (ty, keys) in TYPES {
            for key in *keys {
                if let Some(value) = self.get(key).filter(|value| value.value_type() != *ty) {
                    self.refused(found, "key-type", key, format!("{} was expected, found {value}", ty.name()));
                }
            }
        }
        let layers = self.number("block_count");
        for key in FOR_LAYERS {
            match self.get(key) {
                None | Some(Value::U32(_)) => {}
                Some(Value::Array(all @ (Array::U32(_) | Array::I32(_)))) => {
                    if layers.is_some_and(|layers| all.len() as u64 != layers) {
                        let what =
                            format!("as many as layers were expected, {}, found {}", layers.unwrap_or(0), all.len());
                        self.refused(found, "key-length", key, what);
                    }
                }
                Some(other) => {
                    self.refused(found, "key-type", key, format!("u32 was expected, or an array, found {other}"))
                }
            }
        }
        for key in REQUIRED.iter().filter(|key| self.get(key).is_none()) {
            self.refused(found, "key-missing", key, "is missing; llama.cpp has nothing for it".into());
        }
    }

    /// What `llama_model_base::load_hparams` asserts.
    fn numbers(&self, found: &mut FoundInFile) {
        /// Its `LLAMA_MAX_LAYERS` and `LLAMA_MAX_EXPERTS`.
        const MOST: [(&str, u64); 2] = [("block_count", 512), ("expert_count", 1024)];
        for (key, most) in MOST {
            if let Some(n) = self.number(key).filter(|n| *n > most) {
                self.refused(found, "key-value", key, format!("{most} at most was expected, found {n}"));
            }
        }
        if self.number("block_count") == Some(0) {
            self.refused(found, "key-value", "block_count", "1 or more was expected, found 0".into());
        }
        for key in ["embedding_length", "attention.head_count"].into_iter().filter(|key| self.number(key) == Some(0)) {
            self.refused(found, "key-value", key, "1 or more was expected, found 0".into());
        }
        let [experts, used] = ["expert_count", "expert_used_count"].map(|key| self.number(key).unwrap_or(0));
        let few = u64::from(experts > 0);
        let single = matches!(self.get("expert_used_count"), None | Some(Value::U32(_)));
        if single && !(few..=experts).contains(&used) {
            self.refused(
                found,
                "key-value",
                "expert_used_count",
                format!("{few} to {experts} was expected, found {used}"),
            );
        }
        let [groups, kept] = ["expert_group_count", "expert_group_used_count"].map(|key| self.number(key).unwrap_or(0));
        if groups > 0 && groups >= experts {
            let what = format!("fewer than {experts} were expected, which is expert_count, found {groups}");
            self.refused(found, "key-value", "expert_group_count", what);
        } else if groups > 1 {
            if !experts.is_multiple_of(groups) {
                let what = format!("a divisor of {experts} was expected, which is expert_count, found {groups}");
                self.refused(found, "key-value", "expert_group_count", what);
            }
            if !(1..groups).contains(&kept) {
                let what = format!("1 to {} was expected, found {kept}", groups - 1);
                self.refused(found, "key-value", "expert_group_used_count", what);
            }
        }
        if let (Some(heads), Some(kv_heads)) =
            (self.number("attention.head_count"), self.number("attention.head_count_kv"))
            && kv_heads > 0
            && !heads.is_multiple_of(kv_heads)
        {
            let what = format!("a divisor of {heads} was expected, which is attention.head_count, found {kv_heads}");
            self.refused(found, "key-value", "attention.head_count_kv", what);
        }
        let head = self
            .number("attention.key_length")
            .or_else(|| self.number("embedding_length")?.checked_div(self.number("attention.head_count")?));
        if let (Some(head), Some(turned)) = (head, self.number("rope.dimension_count")) {
            let (part, whole) = (self.architecture.partial_rope, turned == head);
            if turned > head || !(part || whole) {
                let up_to = if part { " at most" } else { "" };
                let what = format!("{head}{up_to} was expected, the size of a head, found {turned}");
                self.refused(found, "key-value", "rope.dimension_count", what);
            }
        }
    }
}

/// Architectures of which llama.cpp takes q and k to be as wide as heads × `attention.key_length`.
const PLAIN_HEADS: &[&str] = &["llama", "mistral3", "qwen3", "qwen3moe", "gemma3", "glm4moe"];

impl Keys<'_> {
    /// What can be held against tensors in a file that is not understood as a whole: the width of what goes from layer to layer, and that of
    /// q and k.
    fn widths(&self, gguf: &Gguf, found: &mut FoundInFile) {
        let Some(hidden) = self.number("embedding_length") else { return };
        let mut hold = |tensor: String, axis: usize, expected: u64, keys: &str| {
            let Some(dim) = gguf.tensor(&tensor).and_then(|t| t.dims.get(axis)).copied() else { return };
            if dim != expected {
                let what = format!("{expected} was expected in dimension {axis}, as {keys} says, found {dim}");
                found.add(Refused, "tensor-shape", &format!("tensor {tensor}"), what);
            }
        };
        hold("token_embd.weight".into(), 0, hidden, "embedding_length");
        hold("output_norm.weight".into(), 0, hidden, "embedding_length");
        // Of several numbers, one for each layer, nothing is said here.
        let heads = self.number("attention.head_count").filter(|heads| *heads > 0);
        let kv_heads = match self.get("attention.head_count_kv") {
            Some(_) => self.number("attention.head_count_kv"),
            None => heads,
        };
        let key = self.number("attention.key_length").or_else(|| hidden.checked_div(heads?));
        let plain = PLAIN_HEADS.contains(&self.architecture.name);
        let (Some(heads), Some(kv_heads), Some(key), true) = (heads, kv_heads, key, plain) else { return };
        // Layers that guess further tokens are not read. Of those that are not there nothing is said: a file has no more than tensors.
        let guess = self.number("nextn_predict_layers").unwrap_or(0);
        let layers = self.number("block_count").unwrap_or(0).saturating_sub(guess).min(gguf.tensors().len() as u64);
        for layer in 0..layers {
            let blk = |part: &str| format!("blk.{layer}.{part}.weight");
            hold(blk("attn_norm"), 0, hidden, "embedding_length");
            for (part, heads, keys) in [
                ("attn_q", heads, "attention.head_count times the length of a head"),
                ("attn_k", kv_heads, "attention.head_count_kv times the length of a head"),
            ] {
                hold(blk(part), 0, hidden, "embedding_length");
                if let Some(width) = heads.checked_mul(key) {
                    hold(blk(part), 1, width, keys);
                }
            }
        }
    }
}

/// How many tokens llama.cpp counts, where it can.
fn tokens(meta: &Metadata, architecture: &str) -> Option<u64> {
    match meta.get("tokenizer.ggml.model")? {
        Value::String(kind) if kind == "no_vocab" || kind == "none" => {
            meta.get(&format!("{architecture}.vocab_size"))?.as_integer()?.try_into().ok()
        }
        _ => meta.str_array("tokenizer.ggml.tokens").ok().map(|tokens| tokens.len() as u64),
    }
}
