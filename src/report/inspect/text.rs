//! The document for people.

use std::collections::HashMap;
use std::fmt::Write;

use comfy_table::Table;
use indicatif::{HumanBytes, HumanCount};

use super::{InspectDocument, TokenizerInfo};
use crate::report::table::table;
use crate::text::{count, printable};

/// Values longer than this are cut: the JSON has them whole.
const MAX_VALUE: usize = 80;

fn section(out: &mut String, title: &str, table: &Table) {
    let _ = writeln!(out, "\n{title}"); // writing to a String cannot fail
    for line in table.lines() {
        let _ = writeln!(out, " {}", line.trim_end());
    }
}

fn shape(dims: &[u64]) -> String {
    format!("[{}]", dims.iter().map(u64::to_string).collect::<Vec<_>>().join(", "))
}

fn value(json: &serde_json::Value) -> String {
    let text = match json {
        serde_json::Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let text = printable(&text);
    if text.chars().count() <= MAX_VALUE { text } else { text.chars().take(MAX_VALUE).chain(['…']).collect() }
}

pub fn render(d: &InspectDocument) -> String {
    let mut out = String::new();
    let m = &d.model;
    let files = count(m.parts, "file");
    let architecture = d.architecture.as_ref().map_or("no architecture given".to_string(), |a| printable(a));
    let _ = writeln!(
        out,
        "{} · {architecture} · GGUF v{} · {files}, {} · {}, {} weights",
        m.file,
        m.gguf_version,
        HumanBytes(m.bytes),
        count(d.totals.tensors, "tensor"),
        HumanCount(d.totals.elements),
    );
    let _ = writeln!(out, "fingerprint {}", m.fingerprint);
    for key in &d.not_utf8 {
        let _ = writeln!(out, "not UTF-8   key {}; U+FFFD stands for those bytes", printable(key));
    }

    // The keys of the architecture first and by their short names, then the others; the tokenizer's have their own lines.
    let mut rows = table(&[], &[]);
    let ignored = d.keys.iter().flat_map(|keys| &keys.ignored);
    let ignored: HashMap<&str, &str> = ignored.map(|key| (key.key.as_str(), key.why)).collect();
    for (key, json) in &d.hyperparameters {
        let remark = || d.keys.iter().flat_map(|keys| &keys.remarks).find(|remark| remark.key == *key);
        let why = match ignored.get(key.as_str()) {
            Some(why) => format!(" (ignored: {why})"),
            None => remark().map_or(String::new(), |r| format!(" ({})", r.remark)),
        };
        rows.add_row([printable(key), value(json) + &why]);
    }
    for default in d.keys.iter().flat_map(|keys| &keys.defaults) {
        rows.add_row([default.key.clone(), value(&default.value) + " (default)"]);
    }
    if !rows.is_empty() {
        section(&mut out, "Hyperparameters", &rows);
    }
    let prefix = d.architecture.as_ref().map(|a| format!("{a}."));
    let mut rows = table(&[], &[]);
    for pair in &d.metadata {
        let shown = prefix.as_ref().is_some_and(|p| pair.key.starts_with(p)) || pair.key.starts_with("tokenizer.");
        if !shown {
            rows.add_row([
                printable(&pair.key),
                match &pair.content {
                    super::Content::Scalar { value: json } => value(json),
                    super::Content::Array { element_type, length } => {
                        format!("array of {length} {element_type}")
                    }
                },
            ]);
        }
    }
    if !rows.is_empty() {
        section(&mut out, "Other keys", &rows);
    }
    if let Some(t) = &d.tokenizer {
        section(&mut out, "Tokenizer", &tokenizer(t));
    }

    let mut rows = table(&["name", "shape", "type", "offset", "bytes"], &[3, 4]);
    for t in &d.tensors {
        let part = if m.parts > 1 { format!("{}:", t.part + 1) } else { String::new() };
        rows.add_row([
            printable(&t.name),
            shape(&t.shape),
            t.ty.to_string(),
            format!("{part}{:#x}", t.offset),
            HumanCount(t.bytes).to_string(),
        ]);
    }
    if !d.tensors.is_empty() {
        let title = if m.parts > 1 { "Tensors (offset: part and offset in its file)" } else { "Tensors" };
        section(&mut out, title, &rows);
        let mut rows = table(&["type", "tensors", "weights", "bytes", "bits/weight", "share"], &[1, 2, 3, 4, 5]);
        for t in &d.totals.by_type {
            rows.add_row([
                t.ty.to_string(),
                t.tensors.to_string(),
                HumanCount(t.elements).to_string(),
                HumanCount(t.bytes).to_string(),
                format!("{:.4}", t.bits_per_weight),
                format!("{:.1} %", 100.0 * t.bytes as f64 / d.totals.bytes as f64),
            ]);
        }
        section(&mut out, "Totals by type", &rows);
    }
    if let Some(scales) = &d.scales {
        let mut rows = table(&[], &[]);
        for (names, what) in [
            (&scales.weights, "have a .scale, by which their products are multiplied"),
            (&scales.input_scales, "beside them are not read: they are for activations of four bits"),
            (&scales.without, "of type NVFP4 have none, which is a scale of 1"),
        ] {
            if let [first, others @ ..] = &names[..] {
                let of = if others.is_empty() { printable(first) } else { format!("{} …", printable(first)) };
                rows.add_row([names.len().to_string(), what.to_string(), of]);
            }
        }
        section(&mut out, "Scales of weights", &rows);
    }
    section(&mut out, "Memory", &memory(d));

    let mut rows = table(&[], &[]);
    for r in &d.runnable {
        let why = r.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        rows.add_row([r.backend.clone(), format!("{}{why}", if r.ok { "yes" } else { "no" })]);
    }
    section(&mut out, "Runnable", &rows);
    out
}

fn tokenizer(t: &TokenizerInfo) -> Table {
    let mut rows = table(&[], &[]);
    let text = |s: &Option<String>| s.as_ref().map_or("not given".to_string(), |s| printable(s));
    let number = |n: Option<usize>| n.map_or("not given".to_string(), |n| HumanCount(n as u64).to_string());
    rows.add_row(["model", &text(&t.model)]);
    rows.add_row(["pre", &text(&t.pre)]);
    rows.add_row(["vocabulary", &number(t.vocabulary)]);
    rows.add_row(["merges", &number(t.merges)]);
    for s in &t.special {
        let token = s.token.as_ref().map_or("outside the vocabulary".to_string(), |s| printable(s));
        rows.add_row([printable(&s.role), format!("{} {token}", s.id)]);
    }
    for (name, flag) in [("add bos", t.add_bos), ("add eos", t.add_eos)] {
        if let Some(flag) = flag {
            rows.add_row([name, if flag { "yes" } else { "no" }]);
        }
    }
    rows.add_row(["chat template", if t.chat_template { "yes" } else { "no" }]);
    rows
}

fn memory(d: &InspectDocument) -> Table {
    let mut rows = table(&[], &[]);
    let (cpu, gpu) = (&d.memory.cpu, &d.memory.gpu);
    let of = cpu.machine_bytes.map_or(String::new(), |all| {
        let less = if all < cpu.mapped_bytes { ", which is less: pages are read again and again" } else { "" };
        format!("; this machine has {}{less}", HumanBytes(all))
    });
    rows.add_row(["CPU".to_string(), format!("{} mapped, read in place{of}", HumanBytes(cpu.mapped_bytes))]);
    let adapter = gpu.adapter.as_ref().map_or("no adapter here".to_string(), |a| printable(a));
    let limit = HumanBytes(gpu.binding_limit);
    let fits = if gpu.split.is_empty() {
        format!("every tensor fits one binding of {limit}")
    } else {
        format!("{} of {} tensors need several bindings of {limit}:", gpu.split.len(), d.totals.tensors)
    };
    rows.add_row([
        "GPU".to_string(),
        format!("{} uploaded, quantized as stored ({adapter}); {fits}", HumanBytes(gpu.uploaded_bytes)),
    ]);
    for s in &gpu.split {
        let bindings =
            s.bindings.map_or("one row alone is larger than a binding".to_string(), |n| format!("{n} bindings"));
        rows.add_row([String::new(), format!("{}: {}, {bindings}", printable(&s.name), HumanBytes(s.bytes))]);
    }
    if !gpu.without_kernels.is_empty() {
        rows.add_row([String::new(), format!("not counted, no kernels: {}", gpu.without_kernels.join(", "))]);
    }
    if let Some(kv) = &d.memory.kv_cache {
        rows.add_row([
            "KV cache".to_string(),
            format!(
                "f32, {} a position, {} at the context length of {}",
                HumanBytes(kv.bytes_per_position),
                HumanBytes(kv.bytes_at_context_length),
                HumanCount(kv.context_length)
            ),
        ]);
    }
    rows
}
