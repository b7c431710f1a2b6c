//! What of a file contradicts itself as a model: keys against tensors, tensors against what reads them, a vocabulary against its parts.
//!
//! - Which tensors there must be, and of which shape, is what [`super::load`] reads: here it goes on where a tensor is not as it should be.
//! - What is said of llama.cpp is what its `llama-model.cpp`, `llama-vocab.cpp` and loaders (`src/models`) do, of llama-cpp-python 0.3.36;
//!   `tests/library/checked.rs` holds it against that.

use std::collections::HashSet;
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
    vocabulary(meta, found);
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
            return found.add(
                Note,
                "not-checked",
                "file",
                "tensors were not held against keys that are not understood",
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

/// How many tokens llama.cpp counts, where it can.
fn tokens(meta: &Metadata, architecture: &str) -> Option<u64> {
    match meta.get("tokenizer.ggml.model")? {
        Value::String(kind) if kind == "no_vocab" || kind == "none" => {
            meta.get(&format!("{architecture}.vocab_size"))?.as_integer()?.try_into().ok()
        }
        _ => meta.str_array("tokenizer.ggml.tokens").ok().map(|tokens| tokens.len() as u64),
    }
}

/// What `llama_vocab::impl::load` asks of a tokenizer.
fn vocabulary(meta: &Metadata, found: &mut FoundInFile) {
    const PREFIX: &str = "tokenizer.ggml.";
    let get = |key: &str| meta.get(&format!("{PREFIX}{key}"));
    let at = |key: &str| format!("key {PREFIX}{key}");
    let kind = match get("model") {
        Some(Value::String(kind)) => kind.as_str(),
        None => return found.add(Refused, "tokenizer", &at("model"), "is missing"),
        Some(other) => {
            return found.add(Refused, "tokenizer", &at("model"), format!("a string was expected, found {other}"));
        }
    };
    const KINDS: &[&str] = &[
        "llama",
        "bert",
        "gpt2",
        "hybriddna",
        "whitespace",
        "t5",
        "rwkv",
        "test",
        "plamo2",
        "gemma4",
        "no_vocab",
        "none",
    ];
    if !KINDS.contains(&kind) {
        return found.add(
            Refused,
            "tokenizer",
            &at("model"),
            format!("one that llama.cpp knows was expected, found {kind:?}"),
        );
    }
    if matches!(kind, "no_vocab" | "none") {
        return;
    }
    if matches!(kind, "gpt2" | "hybriddna" | "whitespace") {
        let pre = match get("pre") {
            Some(Value::String(pre)) => Some(pre.as_str()),
            _ => None,
        };
        match get("merges") {
            Some(Value::Array(Array::String(_))) => {}
            None if pre == Some("kimi-k2") => {}
            other => {
                let is = other.map_or("none".to_string(), ToString::to_string);
                found.add(Refused, "tokenizer", &at("merges"), format!("an array of strings was expected, found {is}"));
            }
        }
        match pre {
            Some(pre) if PRE.contains(&pre) => {}
            Some("") => found.add(
                Misread,
                "tokenizer",
                &at("pre"),
                "is empty: llama.cpp cuts text by rules of its own for that",
            ),
            Some(pre) => found.add(
                Refused,
                "tokenizer",
                &at("pre"),
                format!("one that llama.cpp knows was expected, found {pre:?}"),
            ),
            None => found.add(
                Misread,
                "tokenizer",
                &at("pre"),
                "is missing: llama.cpp cuts text by rules of its own for that",
            ),
        }
    }
    let tokens = match get("tokens") {
        Some(Value::Array(Array::String(tokens))) => tokens,
        other => {
            let is = other.map_or("none".to_string(), ToString::to_string);
            return found.add(
                Refused,
                "tokenizer",
                &at("tokens"),
                format!("an array of strings was expected, found {is}"),
            );
        }
    };
    for (key, expected) in [("scores", "f32"), ("token_type", "i32")] {
        match get(key) {
            None => {}
            Some(Value::Array(all @ (Array::F32(_) | Array::I32(_))))
                if expected == "f32" || all.element_type() == ValueType::I32 =>
            {
                let what = format!("one for each of {} tokens was expected, found {}", tokens.len(), all.len());
                if all.len() < tokens.len() {
                    found.add(Refused, "tokenizer", &at(key), what);
                }
            }
            Some(other) => {
                found.add(Refused, "tokenizer", &at(key), format!("an array of {expected} was expected, found {other}"))
            }
        }
    }
    // Text that is not UTF-8 is not itself here: two tokens may have become one.
    let exact = !meta.not_utf8().iter().any(|key| key == &format!("{PREFIX}tokens"));
    let mut seen = HashSet::new();
    for (id, token) in tokens.iter().enumerate() {
        if token.is_empty() {
            let what = format!("token {id} is empty: llama.cpp calls it [EMPTY_{id}]");
            found.add(Note, "tokenizer", &at("tokens"), what);
        } else if !seen.insert(token) && exact {
            found.add(Refused, "tokenizer", &at("tokens"), format!("token {id} is another one's text, {token:?}"));
        }
    }
    for (key, value) in meta.iter() {
        let Some(role) = key.strip_prefix(PREFIX).and_then(|key| key.strip_suffix("_token_id")) else { continue };
        match value {
            Value::U32(id) if (*id as usize) < tokens.len() => {}
            Value::U32(id) => {
                let what = format!("one of {} tokens was expected, found {id}: llama.cpp takes another", tokens.len());
                found.add(Misread, "tokenizer", &at(&format!("{role}_token_id")), what);
            }
            other => {
                let what = format!("u32 was expected, found {other}");
                found.add(Refused, "key-type", &at(&format!("{role}_token_id")), what);
            }
        }
    }
}

/// The pre-tokenizers of llama.cpp's `llama-vocab.cpp`.
const PRE: &[&str] = &[
    "default",
    "minicpm5",
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "spark2_5",
    "youtu",
    "falcon",
    "mpt",
    "starcoder",
    "gpt-2",
    "phi-2",
    "jina-es",
    "jina-de",
    "gigachat",
    "jina-v2-es",
    "jina-v2-de",
    "a.x-4.0",
    "mellum",
    "modern-bert",
    "jais-2",
    "gemma4",
    "granite-embed-multi-311m",
    "sarvam-moe",
    "jina-v1-en",
    "jina-v2-code",
    "roberta-bpe",
    "whitespace",
    "refact",
    "command-r",
    "qwen2",
    "deepseek-r1-qwen",
    "kormo",
    "f2llmv2",
    "qwen35",
    "stablelm2",
    "olmo",
    "dbrx",
    "smaug-bpe",
    "poro-chat",
    "chatglm-bpe",
    "glm4",
    "glm5",
    "viking",
    "jais",
    "tekken",
    "smollm",
    "codeshell",
    "bloom",
    "gpt3-finnish",
    "exaone",
    "exaone4",
    "exaone-moe",
    "chameleon",
    "minerva-7b",
    "megrez",
    "gpt-4o",
    "llama4",
    "kanana2",
    "talkie",
    "granite-embed-multi-97m",
    "tiny_aya",
    "cohere2moe",
    "superbpe",
    "trillion",
    "granite-docling",
    "bailingmoe",
    "bailingmoe2",
    "llada-moe",
    "seed-coder",
    "hunyuan",
    "hunyuan-dense",
    "hy_v4",
    "joyai-llm",
    "kimi-k2",
    "ufakzeka",
    "grok-2",
    "afmoe",
    "laguna",
    "minimax-m2",
    "solar-open",
    "mellum2",
];
