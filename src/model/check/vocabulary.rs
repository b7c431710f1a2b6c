//! What of a vocabulary llama.cpp would refuse, or read otherwise than it is written.

use std::collections::HashSet;

use super::of_type;
use crate::gguf::FindingSeverity::{Misread, Note, Refused};
use crate::gguf::{Array, FoundInFile, Metadata, Value, ValueType};

/// What `llama_vocab::impl::load` asks of a tokenizer.
pub(super) fn check(meta: &Metadata, found: &mut FoundInFile) {
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
    of_type(meta, &format!("{PREFIX}pre"), ValueType::String, found);
    of_type(meta, &format!("{PREFIX}token_type_count"), ValueType::U32, found);
    if matches!(kind, "no_vocab" | "none") {
        return;
    }
    for key in FLAGS {
        of_type(meta, &format!("{PREFIX}{key}"), ValueType::Bool, found);
    }
    match get("suppress_tokens") {
        None | Some(Value::Array(Array::I32(_))) => {}
        Some(other) => {
            let what = format!("an array of i32 was expected, found {other}");
            found.add(Refused, "key-type", &at("suppress_tokens"), what);
        }
    }
    if let ("t5", Some(charsmap)) = (kind, get("precompiled_charsmap"))
        && !matches!(charsmap, Value::Array(Array::I8(_) | Array::U8(_)))
    {
        let what = format!("an array of i8 or u8 was expected, found {charsmap}");
        found.add(Refused, "key-type", &at("precompiled_charsmap"), what);
    }
    if matches!(kind, "gpt2" | "hybriddna" | "whitespace" | "gemma4") {
        let pre = match get("pre") {
            Some(Value::String(pre)) => Some(pre.as_str()),
            Some(_) => Some("default"), // of another type, which is said above
            None => None,
        };
        match get("merges") {
            Some(Value::Array(Array::String(_))) => {}
            None if pre == Some("kimi-k2") && kind != "gemma4" => {}
            other => {
                let is = other.map_or("none".to_string(), ToString::to_string);
                found.add(Refused, "tokenizer", &at("merges"), format!("an array of strings was expected, found {is}"));
            }
        }
        match pre {
            _ if kind == "gemma4" => {}
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
    for role in ROLES {
        let key = format!("{role}_token_id");
        match get(&key) {
            None => {}
            Some(Value::U32(id)) if (*id as usize) < tokens.len() => {}
            Some(Value::U32(id)) => {
                let what = format!("one of {} tokens was expected, found {id}: llama.cpp takes another", tokens.len());
                found.add(Misread, "tokenizer", &at(&key), what);
            }
            Some(other) => found.add(Refused, "key-type", &at(&key), format!("u32 was expected, found {other}")),
        }
    }
}

/// Tokens with a part of their own that llama.cpp reads, by their keys.
const ROLES: &[&str] = &[
    "bos",
    "eos",
    "eot",
    "eom",
    "unknown",
    "seperator",
    "padding",
    "mask",
    "fim_pre",
    "fim_suf",
    "fim_mid",
    "fim_pad",
    "fim_rep",
    "fim_sep",
    "prefix",
    "suffix",
    "middle",
];

/// Keys of a vocabulary that llama.cpp reads as true or false.
const FLAGS: &[&str] = &[
    "add_bos_token",
    "add_eos_token",
    "add_sep_token",
    "add_space_prefix",
    "remove_extra_whitespaces",
    "normalizer.lowercase",
    "normalizer.strip_accents",
];

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
