//! The document that `inspect` makes of a file: the same for people (`text`) and for programs (JSON, described by
//! `schemas/inspect.schema.json`).

mod check;
mod text;

pub use check::{CheckDocument, CheckVerdict};
pub use text::render;

use std::collections::HashSet;

use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::backend::Backend;
use crate::backend::gpu::{GpuBackend, WeightLayout};
use crate::gguf::{Array, Gguf, TensorInfo, Value};
use crate::model::{Config, KeyReport};
use crate::op::GgmlType;

/// What one storage binding may hold where there is no adapter to ask: WebGPU's default, 128 MiB.
const DEFAULT_BINDING_LIMIT: u64 = 128 << 20;

/// Whether one backend can run the model.
#[derive(Debug, PartialEq, serde::Serialize)]
pub struct Runnable {
    pub backend: String,
    pub ok: bool,
    /// What is missing; `None` if nothing is.
    pub why: Option<String>,
}

#[derive(Serialize)]
pub struct InspectDocument {
    pub schema: &'static str,
    pub model: InspectedModel,
    /// `general.architecture`; `None` if the file does not say.
    pub architecture: Option<String>,
    /// The keys under the architecture's name, without it.
    pub hyperparameters: Map<String, Json>,
    /// Keys that the file leaves to the definition of its architecture, and those that are not read. `None` if the architecture is not
    /// known, or the keys are not what it needs.
    pub keys: Option<KeyReport>,
    pub tokenizer: Option<TokenizerInfo>,
    /// Every key of the file; an array is given by its element type and length.
    pub metadata: Vec<Pair>,
    /// NaN and infinite metadata values, which stand as the strings `NaN`, `inf` and `-inf` here: JSON has no such numbers.
    pub non_finite: u64,
    /// Keys with text that is not UTF-8 in the file: U+FFFD stands for what is not.
    pub not_utf8: Vec<String>,
    pub tensors: Vec<Tensor>,
    pub totals: Totals,
    /// `None` where no tensor is a scale and no weight is of the type that has one.
    pub scales: Option<WeightScales>,
    pub memory: Memory,
    pub runnable: Vec<Runnable>,
}

#[derive(Serialize)]
pub struct InspectedModel {
    /// The file's path, or the bundled model's name.
    pub file: String,
    /// `general.name`.
    pub name: Option<String>,
    pub bytes: u64,
    /// Files that it is split into.
    pub parts: usize,
    pub gguf_version: u32,
    pub alignment: u64,
    /// SHA-256 over the headers and both ends of every tensor.
    pub fingerprint: String,
}

#[derive(Serialize)]
pub struct TokenizerInfo {
    pub model: Option<String>,
    pub pre: Option<String>,
    pub vocabulary: Option<usize>,
    pub merges: Option<usize>,
    pub special: Vec<Special>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub chat_template: bool,
}

/// A token with a role.
#[derive(Serialize)]
pub struct Special {
    /// `bos`, `eos`, `padding`…, as in `tokenizer.ggml.bos_token_id`.
    pub role: String,
    pub id: u32,
    /// Its text, if the vocabulary has that id.
    pub token: Option<String>,
}

#[derive(Serialize)]
pub struct Pair {
    pub key: String,
    #[serde(rename = "type")]
    pub ty: &'static str,
    #[serde(flatten)]
    pub content: Content,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum Content {
    Scalar { value: Json },
    Array { element_type: &'static str, length: usize },
}

#[derive(Serialize)]
pub struct Tensor {
    pub name: String,
    /// GGUF's order: the contiguous dimension first.
    pub shape: Vec<u64>,
    #[serde(rename = "type")]
    pub ty: &'static str,
    /// Of its first byte, from the start of its file.
    pub offset: u64,
    pub bytes: u64,
    /// Which part of a split file it is in, from 0.
    pub part: usize,
}

#[derive(Serialize)]
pub struct Totals {
    pub tensors: usize,
    pub elements: u64,
    pub bytes: u64,
    /// Most bytes first.
    pub by_type: Vec<TypeTotal>,
}

/// Tensors that stand beside a weight: `.scale`, by which its products are multiplied, and `.input_scale`, which is not read.
#[derive(Debug, PartialEq, Serialize)]
pub struct WeightScales {
    /// Names of the weights that have a scale.
    pub weights: Vec<String>,
    pub input_scales: Vec<String>,
    /// NVFP4 weights without one, which is 1 for them.
    pub without: Vec<String>,
}

impl WeightScales {
    fn of(gguf: &Gguf) -> Option<Self> {
        let names = || gguf.tensors().iter().map(|t| &t.name[..]);
        let beside = |name: &str, ending: &str| {
            let weight = format!("{}.weight", name.strip_suffix(ending)?);
            gguf.tensor(&weight).map(|w| w.name.clone())
        };
        let weights: Vec<String> = names().filter_map(|name| beside(name, ".scale")).collect();
        let input_scales = names().filter(|name| beside(name, ".input_scale").is_some()).map(Into::into).collect();
        let scaled: HashSet<&String> = weights.iter().collect();
        let without = gguf.tensors().iter().filter(|t| t.ty == GgmlType::NVFP4 && !scaled.contains(&t.name));
        let without = without.map(|t| t.name.clone()).collect();
        let this = Self { weights, input_scales, without };
        (!(this.weights.is_empty() && this.input_scales.is_empty() && this.without.is_empty())).then_some(this)
    }
}

#[derive(Serialize)]
pub struct TypeTotal {
    #[serde(rename = "type")]
    pub ty: &'static str,
    pub tensors: usize,
    pub elements: u64,
    pub bytes: u64,
    pub bits_per_weight: f64,
}

#[derive(Serialize)]
pub struct Memory {
    pub cpu: CpuMemory,
    pub gpu: GpuMemory,
    /// The KV cache; `None` where the file lacks a key that it needs, or has one value a layer.
    pub kv_cache: Option<KvCache>,
}

#[derive(Serialize)]
pub struct CpuMemory {
    /// The files, mapped: pages come in as they are read and can be dropped again. Nothing is copied.
    pub mapped_bytes: u64,
    /// The memory of this machine; `None` where it does not say.
    pub machine_bytes: Option<u64>,
}

#[derive(Serialize)]
pub struct GpuMemory {
    /// The adapter that the plan is for; `None`: there is none here, and WebGPU's default limit stands for it.
    pub adapter: Option<String>,
    /// What one storage binding may hold.
    pub binding_limit: u64,
    /// All tensors that the GPU has kernels for, quantized as they are, in its layout.
    pub uploaded_bytes: u64,
    /// Tensors that are larger than one binding, and so are split between rows.
    pub split: Vec<SplitPart>,
    /// Types of this file that the GPU has no kernels for; their tensors count in none of the above.
    pub without_kernels: Vec<&'static str>,
}

/// What the memory plan needs to know of an adapter.
pub struct Adapter {
    pub name: String,
    pub binding_limit: u64,
}

impl Adapter {
    pub fn of(gpu: &GpuBackend) -> Self {
        Self { name: gpu.info().adapter, binding_limit: gpu.weight_binding() }
    }
}

#[derive(Serialize)]
pub struct SplitPart {
    pub name: String,
    /// In the file.
    pub bytes: u64,
    /// Bindings of whole rows that it takes; `None` if one row alone is too large for one.
    pub bindings: Option<u64>,
}

/// Keys and values of every layer, or what linear attention computes its state from, as f32.
#[derive(Serialize)]
pub struct KvCache {
    pub bytes_per_position: u64,
    /// The longest sequence, in positions.
    pub context_length: u64,
    pub bytes_at_context_length: u64,
}

impl InspectDocument {
    pub fn new(gguf: &Gguf, runnable: Vec<Runnable>, adapter: Option<Adapter>, machine: Option<u64>) -> Self {
        let text = |key: &str| match gguf.metadata.get(key) {
            Some(Value::String(s)) => Some(s.clone()),
            _ => None, // of another type: the metadata list shows it
        };
        let architecture = text("general.architecture");
        let mut non_finite = 0;
        let metadata = gguf.metadata.iter().map(|(key, value)| pair(key, value, &mut non_finite)).collect();
        let prefix = architecture.as_ref().map(|a| format!("{a}."));
        let hyperparameters = gguf
            .metadata
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(prefix.as_deref()?)?.to_string(), json(value))))
            .collect();
        let config = Config::from_gguf(gguf).ok();
        // Of layers that are not run nothing is uploaded.
        let run = |t: &&TensorInfo| config.as_ref().is_none_or(|config| !config.is_predicting(&t.name));
        let gpu = gpu_memory(gguf.tensors().iter().filter(run), adapter);
        Self {
            schema: "twinscope.inspect/1",
            model: InspectedModel {
                file: gguf.name().into(),
                name: text("general.name"),
                bytes: gguf.file_len(),
                parts: gguf.parts(),
                gguf_version: gguf.version(),
                alignment: gguf.alignment(),
                fingerprint: gguf.fingerprint(),
            },
            hyperparameters,
            keys: config.map(|config| config.keys),
            tokenizer: tokenizer(gguf),
            metadata,
            non_finite,
            not_utf8: gguf.metadata.not_utf8().to_vec(),
            tensors: gguf.tensors().iter().map(tensor).collect(),
            totals: totals(gguf.tensors()),
            memory: Memory {
                cpu: CpuMemory { mapped_bytes: gguf.file_len(), machine_bytes: machine },
                gpu,
                kv_cache: kv_cache(gguf),
            },
            scales: WeightScales::of(gguf),
            runnable,
            architecture,
        }
    }
}

/// A number as JSON. An f32 gets the shortest decimal that reads back as the same f32: 1e-6 rather than 9.99999997e-7.
fn float32(x: f32) -> Json {
    match x.is_finite() {
        true => Json::from(x.to_string().parse::<f64>().unwrap_or(x.into())),
        false => float64(x.into()),
    }
}

/// A number as JSON. What is not finite is a string, `NaN`, `inf` or `-inf`.
fn float64(x: f64) -> Json {
    if x.is_finite() { Json::from(x) } else { Json::from(x.to_string()) }
}

fn json(value: &Value) -> Json {
    match value {
        Value::U8(x) => Json::from(*x),
        Value::I8(x) => Json::from(*x),
        Value::U16(x) => Json::from(*x),
        Value::I16(x) => Json::from(*x),
        Value::U32(x) => Json::from(*x),
        Value::I32(x) => Json::from(*x),
        Value::F32(x) => float32(*x),
        Value::Bool(x) => Json::from(*x),
        Value::String(x) => Json::from(x.as_str()),
        Value::Array(x) => array(x),
        Value::U64(x) => Json::from(*x),
        Value::I64(x) => Json::from(*x),
        Value::F64(x) => float64(*x),
    }
}

fn array(array: &Array) -> Json {
    match array {
        Array::U8(v) => Json::from(v.as_slice()),
        Array::I8(v) => Json::from(v.as_slice()),
        Array::U16(v) => Json::from(v.as_slice()),
        Array::I16(v) => Json::from(v.as_slice()),
        Array::U32(v) => Json::from(v.as_slice()),
        Array::I32(v) => Json::from(v.as_slice()),
        Array::F32(v) => v.iter().copied().map(float32).collect(),
        Array::Bool(v) => Json::from(v.as_slice()),
        Array::String(v) => Json::from(v.as_slice()),
        Array::Array(v) => v.iter().map(self::array).collect(),
        Array::U64(v) => Json::from(v.as_slice()),
        Array::I64(v) => Json::from(v.as_slice()),
        Array::F64(v) => v.iter().copied().map(float64).collect(),
    }
}

/// How many numbers in it are NaN or infinite.
fn count_non_finite(value: &Value) -> u64 {
    fn inside(array: &Array) -> u64 {
        match array {
            Array::F32(v) => v.iter().filter(|x| !x.is_finite()).count() as u64,
            Array::F64(v) => v.iter().filter(|x| !x.is_finite()).count() as u64,
            Array::Array(v) => v.iter().map(inside).sum(),
            _ => 0,
        }
    }
    match value {
        Value::F32(x) => (!x.is_finite()).into(),
        Value::F64(x) => (!x.is_finite()).into(),
        Value::Array(a) => inside(a),
        _ => 0,
    }
}

fn pair(key: &str, value: &Value, non_finite: &mut u64) -> Pair {
    *non_finite += count_non_finite(value);
    let content = match value {
        Value::Array(a) => Content::Array { element_type: a.element_type().name(), length: a.len() },
        scalar => Content::Scalar { value: json(scalar) },
    };
    Pair { key: key.into(), ty: value.value_type().name(), content }
}

fn tokenizer(gguf: &Gguf) -> Option<TokenizerInfo> {
    const PREFIX: &str = "tokenizer.ggml.";
    let get = |key: &str| gguf.metadata.get(&format!("{PREFIX}{key}"));
    let text = |key| if let Some(Value::String(s)) = get(key) { Some(s.clone()) } else { None };
    let flag = |key| if let Some(Value::Bool(b)) = get(key) { Some(*b) } else { None };
    let length = |key| if let Some(Value::Array(a)) = get(key) { Some(a.len()) } else { None };
    let tokens = if let Some(Value::Array(Array::String(v))) = get("tokens") { v.as_slice() } else { &[] };
    if !gguf.metadata.iter().any(|(key, _)| key.starts_with("tokenizer.")) {
        return None;
    }
    let special = gguf.metadata.iter().filter_map(|(key, _)| {
        let role = key.strip_prefix(PREFIX)?.strip_suffix("_token_id")?;
        let id = gguf.metadata.u32(key).ok()?; // of another type: the metadata list shows it
        Some(Special { role: role.into(), id, token: tokens.get(id as usize).cloned() })
    });
    Some(TokenizerInfo {
        model: text("model"),
        pre: text("pre"),
        vocabulary: length("tokens"),
        merges: length("merges"),
        special: special.collect(),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        chat_template: gguf.metadata.contains("tokenizer.chat_template"),
    })
}

fn tensor(t: &TensorInfo) -> Tensor {
    Tensor {
        name: t.name.clone(),
        shape: t.dims.clone(),
        ty: t.ty.name(),
        offset: t.offset,
        bytes: t.bytes,
        part: t.part,
    }
}

fn totals(tensors: &[TensorInfo]) -> Totals {
    let mut by_type: Vec<TypeTotal> = GgmlType::ALL
        .iter()
        .filter_map(|&ty| {
            let of: Vec<_> = tensors.iter().filter(|t| t.ty == ty).collect();
            let (elements, bytes) = (of.iter().map(|t| t.elements()).sum(), of.iter().map(|t| t.bytes).sum());
            let bits_per_weight = 8.0 * ty.block_bytes() as f64 / ty.block_len() as f64;
            (!of.is_empty()).then_some(TypeTotal { ty: ty.name(), tensors: of.len(), elements, bytes, bits_per_weight })
        })
        .collect();
    by_type.sort_by_key(|t| std::cmp::Reverse(t.bytes)); // stable: ggml's order among equals
    Totals {
        tensors: tensors.len(),
        elements: by_type.iter().map(|t| t.elements).sum(),
        bytes: by_type.iter().map(|t| t.bytes).sum(),
        by_type,
    }
}

fn gpu_memory<'t>(tensors: impl IntoIterator<Item = &'t TensorInfo>, adapter: Option<Adapter>) -> GpuMemory {
    let binding_limit = adapter.as_ref().map_or(DEFAULT_BINDING_LIMIT, |a| a.binding_limit);
    let mut plan = GpuMemory {
        adapter: adapter.map(|a| a.name),
        binding_limit,
        uploaded_bytes: 0,
        split: Vec::new(),
        without_kernels: Vec::new(),
    };
    for t in tensors {
        let Some(layout) = WeightLayout::of(t.ty) else {
            plan.without_kernels.push(t.ty.name());
            continue;
        };
        let rows = t.dims[1..].iter().product();
        // A row is in memory, so its length fits.
        let (bytes, bindings) = match layout.plan(t.dims[0] as usize, rows, binding_limit) {
            Some((bytes, bindings)) => (bytes, Some(bindings)),
            None => (t.bytes, None),
        };
        plan.uploaded_bytes += bytes;
        if bindings != Some(1) {
            plan.split.push(SplitPart { name: t.name.clone(), bytes: t.bytes, bindings });
        }
    }
    plan.without_kernels.sort_unstable();
    plan.without_kernels.dedup();
    plan
}

/// Bytes that all layers keep of a position; `None` if they are beyond counting.
fn cached_bytes(c: &Config) -> Option<u64> {
    let wide = |n: usize| n as u128;
    let attention = c.cache_widths().into_iter().map(wide).sum::<u128>();
    let (full, linear) = match c.linear {
        None => (c.layers, 0),
        // Keys fit into a width that was checked, that of the values. The convolution's input and output, keys, decays and betas are kept.
        Some(linear) => {
            let [keys, values] =
                [linear.key_heads, linear.value_heads].map(|heads| wide(heads) * wide(linear.head_dim));
            (c.layers / linear.interval, 2 * (2 * keys + values) + keys + 2 * wide(linear.value_heads))
        }
    };
    let linear = linear.checked_mul(wide(c.layers - full))?;
    let values = attention.checked_mul(wide(full))?.checked_add(linear)?;
    values.checked_mul(4)?.try_into().ok()
}

fn kv_cache(gguf: &Gguf) -> Option<KvCache> {
    let [bytes_per_position, context_length] = match Config::from_gguf(gguf) {
        Ok(c) => [cached_bytes(&c)?, c.context as u64],
        // An architecture that is not known here has keys of the same names.
        Err(_) => {
            let architecture = gguf.metadata.str("general.architecture").ok()?;
            let get = |key: &str| gguf.metadata.u64(&format!("{architecture}.{key}")).ok();
            let heads = get("attention.head_count_kv")?;
            let (keys, values) = (get("attention.key_length")?, get("attention.value_length")?);
            let bytes =
                get("block_count")?.checked_mul(heads)?.checked_mul(keys.checked_add(values)?)?.checked_mul(4)?;
            [bytes, get("context_length")?]
        }
    };
    let bytes_at_context_length = bytes_per_position.checked_mul(context_length)?;
    Some(KvCache { bytes_per_position, context_length, bytes_at_context_length })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::gguf::{Metadata, TensorSpec, write_to};

    fn file(metadata: &Metadata, tensors: &[TensorSpec]) -> Gguf {
        let mut out = Vec::new();
        write_to(&mut out, metadata, tensors, |t, sink| sink.put(&vec![0; t.bytes()? as usize])).unwrap();
        Gguf::from_bytes("f.gguf", Arc::new(out)).unwrap()
    }

    #[test]
    fn bindings_hold_whole_rows() {
        let tensors = [
            TensorSpec::new("t", GgmlType::F32, &[32, 7, 3]), // 21 rows of 128 bytes
            TensorSpec::new("u", GgmlType::I32, &[256]),
        ];
        let g = file(&Metadata::default(), &tensors);
        let plan = |binding_limit| gpu_memory(g.tensors(), Some(Adapter { name: "a".into(), binding_limit }));
        assert!(plan(21 * 128).split.is_empty());
        for (limit, bindings) in [(21 * 128 - 1, Some(2)), (3 * 128 - 1, Some(11)), (127, None)] {
            let plan = plan(limit);
            assert_eq!((plan.uploaded_bytes, plan.split.len()), (21 * 128, 1));
            assert_eq!(plan.split[0].bindings, bindings, "{limit}");
            assert_eq!(plan.without_kernels, ["I32"]);
        }
        assert_eq!(gpu_memory(g.tensors(), None).binding_limit, 128 << 20);
        // A grid of 512 bytes behind each binding's rows of 4 · 16 bytes and 2 more, filled up.
        let g = file(&Metadata::default(), &[TensorSpec::new("t", GgmlType::IQ2_XXS, &[256, 6])]);
        for (limit, bindings, bytes) in [(6 * 80 + 512, None, 6 * 80 + 512), (6 * 80 + 511, Some(2), 6 * 80 + 1024)] {
            let plan = gpu_memory(g.tensors(), Some(Adapter { name: "a".into(), binding_limit: limit }));
            assert_eq!(
                (plan.uploaded_bytes, plan.split.first().and_then(|s| s.bindings)),
                (bytes, bindings),
                "{limit}"
            );
        }
    }

    #[test]
    fn floats_are_short_and_non_finite_ones_are_words_and_counted() {
        let mut m = Metadata::default();
        m.set("general.architecture", Value::String("a".into()));
        m.set("a.eps", Value::F32(1e-6));
        m.set("a.big", Value::F32(1e7));
        m.set("a.nan", Value::F32(f32::NAN));
        m.set("a.list", Value::Array(Array::F64(vec![0.5, f64::INFINITY])));
        let d = InspectDocument::new(&file(&m, &[]), vec![], None, None);
        assert_eq!(
            serde_json::to_string(&d.hyperparameters).unwrap(),
            r#"{"eps":1e-6,"big":10000000.0,"nan":"NaN","list":[0.5,"inf"]}"#
        );
        assert_eq!(d.non_finite, 2);
    }

    #[test]
    fn kv_cache_counts_keys_and_values_of_every_layer() {
        let mut m = Metadata::default();
        m.set("general.architecture", Value::String("a".into()));
        for (key, value) in [
            ("block_count", 48),
            ("attention.head_count_kv", 4),
            ("attention.key_length", 128),
            ("attention.value_length", 128),
        ] {
            m.set(&format!("a.{key}"), Value::U32(value));
        }
        assert!(
            InspectDocument::new(&file(&m, &[]), vec![], None, None).memory.kv_cache.is_none(),
            "no context length"
        );
        m.set("a.context_length", Value::U64(40_960));
        let kv = InspectDocument::new(&file(&m, &[]), vec![], None, None).memory.kv_cache.unwrap();
        assert_eq!(kv.bytes_per_position, 48 * 2 * 4 * 128 * 4);
        assert_eq!(kv.bytes_at_context_length, kv.bytes_per_position * 40_960);
        m.set("a.block_count", Value::U64(u64::MAX));
        assert!(InspectDocument::new(&file(&m, &[]), vec![], None, None).memory.kv_cache.is_none(), "overflow");
    }
}
