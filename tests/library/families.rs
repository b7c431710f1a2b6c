//! The families beside Qwen3, each by a tiny random model and the float64 stages that `scripts/goldens.py` computed from transformers'
//! definitions: every stage, on each backend; decoding and chunks; and what keys are read, left to the definition, ignored or refused.

use std::path::{Path, PathBuf};

use crate::common::{Golden, golden_at, nmse, record};
use crate::gpu::common::each_choice;
use twinscope::backend::Backend;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use twinscope::backend::oracle::OracleBackend;
use twinscope::gguf::{self, Array, Gguf, Metadata, TensorSpec, Value};
use twinscope::model::{Config, Ffn, LogitRows, Mixer, Model, Session, Tokenizer, forward};
use twinscope::op::{OpKind, Pairing, Weight, Yarn};

const FAMILIES: [&str; 16] = [
    "llama",
    "llama3",
    "mixtral",
    "qwen2",
    "qwen3-yarn",
    "mistral3",
    "qwen2moe",
    "olmoe",
    "gemma3",
    "gpt-oss",
    "glm4moe",
    "qwen3next",
    "qwen35moe",
    "qwen35",
    "deepseek3",
    "deepseek2",
];

/// As for the bundled model (`model_golden.rs`): float64 rounding, and f32 rounding.
const ORACLE_NMSE: f64 = 1e-22;
const F32_NMSE: f64 = 1e-11;

fn path(name: &str, extension: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/families/{name}.{extension}"))
}

pub fn open(family: &str) -> (Model, Golden) {
    (Model::open(Some(&path(family, "gguf"))).unwrap(), golden_at(&path(family, "safetensors")))
}

fn check_against_goldens<B: Backend>(new: impl Fn() -> B, limit: f64) {
    for family in FAMILIES {
        let (model, golden) = open(family);
        let backend = new();
        let name = backend.info().backend;
        let stages = record(backend, &model, &golden.tokens);
        assert_eq!(stages.keys().collect::<Vec<_>>(), golden.stages.keys().collect::<Vec<_>>(), "{name} {family}");
        let mut worst = (0.0, "");
        for (key, expected) in &golden.stages {
            let found = &stages[key];
            if key.ends_with("router_ids") {
                assert_eq!(found.ids(), expected.ids(), "{name} {family} {key}");
                continue;
            }
            let nmse = nmse(expected, found);
            assert!(nmse <= limit, "{name} {family} {key}: nmse {nmse:e}, limit {limit:e}");
            if nmse > worst.0 {
                worst = (nmse, key);
            }
        }
        println!("{name:12} {family:8} {} stages, worst nmse {:.1e} at {}", stages.len(), worst.0, worst.1);
    }
}

#[test]
fn oracle_equals_the_goldens() {
    check_against_goldens(OracleBackend::new, ORACLE_NMSE);
}

#[test]
fn cpu_equals_the_goldens_at_every_level() {
    for level in Level::available() {
        check_against_goldens(|| CpuBackend::new(Some(level), Some(2)).expect("an available level"), F32_NMSE);
    }
}

#[test]
fn gpu_equals_the_goldens() {
    let gpu =
        || GpuBackend::new(&AdapterSelector::Best, GpuOptions::default()).expect("a Vulkan, Metal or DX12 adapter");
    check_against_goldens(gpu, F32_NMSE);
}

/// Whichever kernels a tuning table chooses.
#[test]
fn gpu_equals_the_goldens_by_either_kernel_of_products() {
    for choice in 0..each_choice().len() {
        check_against_goldens(|| each_choice().swap_remove(choice).1, F32_NMSE);
    }
}

/// Where nobody looks, the GPU runs several operations as one: rope and biases go straight into the cache. The logits are the same bits.
#[test]
fn taps_change_nothing_on_the_gpu() {
    let gpu = || GpuBackend::new(&AdapterSelector::Best, GpuOptions::default()).unwrap();
    for family in FAMILIES {
        let (model, golden) = open(family);
        let tapped = record(gpu(), &model, &golden.tokens);
        let mut plain = gpu();
        let mut session = Session::new(&mut plain, &model.config, golden.tokens.len()).unwrap();
        let logits = forward(&mut plain, &model, &mut session, &golden.tokens, LogitRows::All).unwrap();
        assert!(plain.read(&logits).unwrap() == tapped["logits"], "{family}");
    }
}

/// As for the bundled model: chunks and decode steps are the same computation, row by row.
#[test]
fn chunked_prefill_and_decode_equal_one_call() {
    for family in FAMILIES {
        let (model, golden) = open(family);
        let run = |chunk: usize| {
            let mut backend = CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap();
            let mut session = Session::new(&mut backend, &model.config, golden.tokens.len()).unwrap();
            let parts = golden.tokens.chunks(chunk);
            let logits = parts.map(|part| forward(&mut backend, &model, &mut session, part, LogitRows::Last).unwrap());
            let last = logits.last().unwrap();
            backend.read(&last).unwrap()
        };
        let whole = run(golden.tokens.len());
        assert!(run(1) == whole && run(3) == whole, "{family}");
        // Other tokens from a position on, and back to it: nothing of them is left.
        let mut backend = CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap();
        let mut session = Session::new(&mut backend, &model.config, golden.tokens.len()).unwrap();
        let (first, rest) = golden.tokens.split_at(4);
        let mut last = None;
        for part in [first, &[1, 2], rest] {
            session.rewind(4);
            last = Some(forward(&mut backend, &model, &mut session, part, LogitRows::Last).unwrap());
        }
        assert!(backend.read(&last.unwrap()).unwrap() == whole, "{family}");
    }
}

/// What a backend is asked for before a run names every weight, also those that are parts of a tensor.
#[test]
fn every_weight_of_linear_attention_is_needed() {
    for family in ["qwen3next", "qwen35moe", "qwen35"] {
        let (model, _) = open(family);
        let needs = model.needs();
        let has = |op, name: &str| needs.iter().any(|need| need.op == op && need.name == name);
        let parts = [("attn_q.weight (q)", 1), ("attn_q.weight (gate)", 1), ("ssm_ba.weight (alpha)", 0)];
        for (part, layer) in &parts[..if family == "qwen3next" { 3 } else { 2 }] {
            assert!(has(OpKind::MatMul, &format!("blk.{layer}.{part}")), "{family} {part}: {needs:?}");
        }
        let delta_rule = needs.iter().find(|need| need.op == OpKind::DeltaRule).unwrap();
        let head_dim = model.config.linear.unwrap().head_dim;
        assert_eq!((delta_rule.cols, delta_rule.name.clone()), (head_dim, format!("{family}.ssm.state_size")));
        let all = model.weights.all();
        let missing: Vec<_> = all.iter().filter(|w| !needs.iter().any(|need| need.name == w.name)).collect();
        assert!(missing.is_empty(), "{family}: {missing:?}");
    }
}

/// The keys of a family's file with some changed, and without those whose value is `None`.
pub fn with_keys(family: &str, changes: &[(&str, Option<Value>)]) -> Result<Config, String> {
    let from = Gguf::open(&path(family, "gguf")).unwrap();
    let architecture = from.metadata.str("general.architecture").unwrap().to_string();
    let mut metadata = Metadata::new("changed.gguf");
    let named = |key: &str| changes.iter().find(|(name, _)| key == format!("{architecture}.{name}"));
    for (key, value) in from.metadata.iter().filter(|(key, _)| named(key).is_none()) {
        metadata.set(key, value.clone());
    }
    for (name, value) in changes {
        if let Some(value) = value {
            metadata.set(&format!("{architecture}.{name}"), value.clone());
        }
    }
    let specs: Vec<_> = from.tensors().iter().map(|t| TensorSpec::new(&t.name, t.ty, &t.dims)).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("changed.gguf");
    gguf::write(&file, &metadata, &specs, |t, sink| sink.put(from.data(from.tensor(&t.name).unwrap()))).unwrap();
    Model::open(Some(&file)).map(|model| model.config).map_err(|e| e.to_string())
}

/// What stands for absent keys is the architecture's definition, and is said.
#[test]
fn absent_keys_have_the_definitions_values() {
    let (model, _) = open("llama3");
    let c = &model.config;
    assert_eq!((c.kv_heads, c.head_dim, c.rotation.pairing, c.rotation.base), (4, 16, Pairing::Norm, 5e5));
    let defaults = |c: &Config| c.keys.defaults.iter().map(|d| format!("{} {}", d.key, d.value)).collect::<Vec<_>>();
    assert_eq!(
        defaults(c),
        [
            "attention.head_count_kv 4",
            "attention.key_length 16",
            "attention.value_length 16",
            "rope.dimension_count 16"
        ]
    );
    let (model, _) = open("llama");
    assert_eq!(model.config.rotation.base, 1e4);
    assert!(defaults(&model.config).contains(&"rope.freq_base 10000.0".into()), "{:?}", defaults(&model.config));
    let (model, _) = open("mixtral");
    let moe = model.config.moe.as_ref().unwrap();
    assert_eq!((moe.experts, moe.used, moe.ffn, moe.renormalise), (4, 2, 64, true));
    assert!(defaults(&model.config).contains(&"expert_weights_norm true".into()));
    // Nothing stands for an eps: llama.cpp has no default either.
    let e = with_keys("llama", &[("attention.layer_norm_rms_epsilon", None)]).unwrap_err();
    assert!(e.contains("llama.attention.layer_norm_rms_epsilon") && e.contains("found no such key"), "{e}");
}

#[test]
fn linear_scaling_in_every_way_that_files_write_it() {
    let scale = |changes: &[(&str, Option<Value>)]| with_keys("llama", changes).map(|c| c.rotation.scale);
    let text = |s: &str| Some(Value::String(s.into()));
    assert_eq!(scale(&[]), Ok(0.25), "a factor without a type is linear");
    assert_eq!(scale(&[("rope.scaling.type", text("linear"))]), Ok(0.25));
    assert_eq!(scale(&[("rope.scaling.type", text("none"))]), Ok(1.0));
    assert_eq!(scale(&[("rope.scaling.factor", Some(Value::F32(1.0)))]), Ok(1.0));
    let old = [("rope.scaling.factor", None), ("rope.scale_linear", Some(Value::F32(2.0)))];
    assert_eq!(scale(&old), Ok(0.5), "the key of older files");
    let both = [("rope.scale_linear", Some(Value::F32(2.0)))];
    assert_eq!(scale(&both), Ok(0.25), "the newer key counts");
    let e = scale(&[("rope.scaling.type", text("longrope"))]).unwrap_err();
    assert!(e.contains("llama.rope.scaling.type") && e.contains("longrope"), "{e}");
}

#[test]
fn yarn_has_the_numbers_that_llama_cpp_gives_it() {
    let yarn = |family: &str, changes: &[(&str, Option<Value>)]| {
        with_keys(family, changes).map(|c| (c.rotation.scale, c.rotation.yarn.unwrap()))
    };
    let f32 = |x: f32| Some(Value::F32(x));
    let magnitude = 1.0 + 0.1 * 4f64.ln();
    let plain = Yarn { context: 4096.0, beta_fast: 32.0, beta_slow: 1.0, ramp: 1.0, magnitude, between: false };
    assert_eq!(yarn("qwen3-yarn", &[]), Ok((0.25, plain)));
    let named = [("rope.scaling.type", Some(Value::String("yarn".into())))];
    let whole = Yarn { context: 64.0, ..plain };
    assert_eq!(yarn("llama", &named), Ok((0.25, whole)), "the original context is the context where no key says it");
    // Mistral's multiplier takes the magnitude back; its temperature is 1 within the original context, which is all that is run.
    assert_eq!(yarn("mistral3", &[]), Ok((0.25, Yarn { beta_fast: 64.0, beta_slow: 2.0, magnitude: 1.0, ..plain })));
    let context = |changes: &[(&str, Option<Value>)]| with_keys("mistral3", changes).unwrap().context;
    assert_eq!((context(&[]), context(&[("attention.temperature_scale", f32(0.0))])), (4096, 16_384));
    let more = yarn("qwen3-yarn", &[("rope.scaling.attn_factor", f32(2.0))]).unwrap().1;
    assert_eq!(more.magnitude, 2.0 * magnitude);
    assert_eq!(yarn("qwen3-yarn", &[("rope.scaling.yarn_attn_factor", f32(magnitude as f32))]), Ok((0.25, plain)));
    let e = yarn("qwen3-yarn", &[("rope.scaling.yarn_attn_factor", f32(1.0))]).unwrap_err();
    assert!(e.contains("qwen3.rope.scaling.yarn_attn_factor is 1;") && e.contains("1.138"), "{e}");
    let e = yarn("qwen3-yarn", &[("rope.scaling.yarn_beta_slow", f32(-1.0))]).unwrap_err();
    assert!(e.contains("yarn_beta_slow is -1"), "{e}");
    // Without it, its keys change nothing.
    let off = [("rope.scaling.type", Some(Value::String("linear".into()))), ("rope.scaling.yarn_beta_fast", f32(3.0))];
    let config = with_keys("qwen3-yarn", &off).unwrap();
    assert_eq!((config.rotation.yarn, config.keys.ignored.len()), (None, 2), "{:?}", config.keys.ignored);
    // A temperature is Mistral's alone.
    let e = with_keys("llama", &[("attention.temperature_scale", f32(0.1))]).unwrap_err();
    assert!(e.contains("llama.attention.temperature_scale"), "{e}");
}

#[test]
fn windows_bases_and_scales_of_gemma3() {
    let u32 = |x| Some(Value::U32(x));
    let f32 = |x| Some(Value::F32(x));
    let c = with_keys("gemma3", &[]).unwrap();
    assert_eq!([0, 1, 2].map(|n| c.window_of(n)), [Some(4), None, Some(4)]);
    assert_eq!([0, 1].map(|n| (c.rotation_of(n).base, c.rotation_of(n).scale)), [(1e4, 1.0), (1e6, 0.125)]);
    assert_eq!((c.embedding_scale, c.attention_scale), (8.0, Some(f64::from(0.2f32))));
    // Five to one, and 1/√D, where no key says otherwise.
    let plain = [("attention.sliding_window_pattern", None), ("attention.scale", None), ("rope.freq_base", None)];
    let c = with_keys("gemma3", &plain).unwrap();
    assert_eq!([0, 4, 5, 6, 11].map(|n| c.window_of(n).is_some()), [true, true, false, true, false]);
    assert_eq!((c.attention_scale, c.rotation.base), (None, 1e6));
    let defaults: Vec<&str> = c.keys.defaults.iter().map(|d| d.key.as_str()).collect();
    assert!(["attention.sliding_window_pattern", "rope.freq_base_swa"].iter().all(|key| defaults.contains(key)));
    let c = with_keys("gemma3", &[("attention.sliding_window", u32(0)), ("attention.sliding_window_pattern", None)]);
    assert!(c.unwrap().window.is_none());
    let c = with_keys("gemma3", &[("rope.freq_base_swa", f32(5e4))]).unwrap();
    assert_eq!(c.rotation_of(0).base, f64::from(5e4f32));
    let e = with_keys("gemma3", &[("final_logit_softcapping", f32(30.0))]).unwrap_err();
    assert!(e.contains("gemma3.final_logit_softcapping") && e.contains("could change the result"), "{e}");
}

#[test]
fn windows_yarn_and_tensors_of_gpt_oss() {
    let u32 = |x| Some(Value::U32(x));
    let c = with_keys("gpt-oss", &[]).unwrap();
    assert_eq!([0, 1, 2, 3].map(|n| c.window_of(n)), [Some(4), None, Some(4), None]);
    // Both kinds of layers turn alike: YaRN by 32, whose ramp begins and ends between pairs.
    assert_eq!(c.rotation_of(0), c.rotation_of(1));
    let magnitude = 1.0 + 0.1 * 32f64.ln();
    let yarn = Yarn { context: 4096.0, beta_fast: 32.0, beta_slow: 1.0, ramp: 1.0, magnitude, between: true };
    assert_eq!((c.rotation.yarn, c.rotation.scale, c.rotation.base), (Some(yarn), 1.0 / 32.0, 150_000.0));
    let moe = c.moe.as_ref().unwrap();
    assert_eq!((moe.experts, moe.used, moe.ffn, c.attention_scale), (4, 2, 32, None));
    let other = with_keys("gpt-oss", &[("rope.freq_base_swa", Some(Value::F32(1e4)))]).unwrap();
    assert_eq!((other.rotation_of(0).base, other.rotation_of(0).yarn), (1e4, Some(yarn)));
    // The definition's window where the file has none.
    let c = with_keys("gpt-oss", &[("attention.sliding_window", None)]).unwrap();
    assert_eq!(c.window_of(0), Some(128));
    assert!(c.keys.defaults.iter().any(|d| d.key == "attention.sliding_window" && d.value == 128));
    for (key, value, words) in [
        ("attention.scale", Some(Value::F32(0.5)), "could change the result"),
        ("expert_feed_forward_length", None, "found no such key"),
        ("swiglu_limit", Some(Value::F32(5.0)), "could change the result"),
        ("expert_gating_func", u32(2), "is 2; 3, a softmax over the chosen, is expected"),
    ] {
        let e = with_keys("gpt-oss", &[(key, value)]).unwrap_err();
        assert!(e.contains(key) && e.contains(words), "{key}: {e}");
    }
    let (model, _) = open("gpt-oss");
    let layer = &model.weights.layers[1];
    let Mixer::Attention(attention) = &layer.mixer else { panic!("gpt-oss has attention in each layer") };
    assert_eq!(attention.sinks.as_ref().unwrap().cols, 4);
    assert_eq!(layer.ffn_norm.name, "blk.1.post_attention_norm.weight");
}

#[test]
fn routers_layers_and_rope_of_glm4moe() {
    let u32 = |x| Some(Value::U32(x));
    let f32 = |x| Some(Value::F32(x));
    let (model, _) = open("glm4moe");
    let c = &model.config;
    let moe = c.moe.as_ref().unwrap();
    // Of four layers in the file the last is not run, and its tensors are not asked for.
    assert_eq!((c.layers, c.predicting_layers, moe.leading_dense), (3, 1, 1));
    assert!(model.gguf.tensor("blk.3.nextn.eh_proj.weight").is_some() && c.is_predicting("blk.3.attn_norm.weight"));
    assert!(!model.weights.all().iter().any(|w| w.name.starts_with("blk.3.")));
    assert_eq!([0, 1, 2].map(|n| c.ffn_of(n)), [96, 32, 32]);
    assert_eq!((moe.shared, moe.renormalise, moe.scale), (32, true, 2.5));
    assert_eq!((c.head_dim, c.rotation.dims, c.qk_norm, c.qkv_bias), (16, Some(8), true, true));
    let shared = |n: usize| match &model.weights.layers[n].ffn {
        Ffn::Moe(moe) => moe.shared.as_ref().map(|shared| shared.router.is_some()),
        Ffn::Dense { .. } => None,
    };
    assert_eq!([0, 1, 2].map(shared), [None, Some(false), Some(false)]);
    // What llama.cpp takes where a file says nothing.
    let all = ["expert_weights_scale", "expert_weights_norm", "rope.dimension_count"].map(|key| (key, None));
    let c = with_keys("glm4moe", &all).unwrap();
    let moe = c.moe.as_ref().unwrap();
    assert_eq!((moe.scale, moe.renormalise, c.rotation.dims), (1.0, false, None));
    let defaults: Vec<&str> = c.keys.defaults.iter().map(|d| d.key.as_str()).collect();
    assert!(all.iter().all(|(key, _)| defaults.contains(key)), "{defaults:?}");
    assert_eq!(with_keys("glm4moe", &[("expert_gating_func", None)]).unwrap().moe.unwrap().scale, 2.5);
    for (key, value, words) in [
        ("expert_gating_func", u32(1), "is 1; 2, sigmoids, is expected"),
        ("expert_group_count", u32(4), "could change the result"),
        ("expert_group_used_count", u32(2), "could change the result"),
        ("rope.dimension_sections", Some(Value::Array(Array::I32(vec![8, 12, 12, 0]))), "could change the result"),
        (
            "expert_used_count",
            u32(17),
            "glm4moe.expert_used_count: at most 8 was expected, which is glm4moe.expert_count, found 17",
        ),
        ("rope.dimension_count", u32(7), "an even number up to 16, the size of a head, was expected, found 7"),
        ("rope.dimension_count", u32(32), "an even number up to 16, the size of a head, was expected, found 32"),
        ("leading_dense_block_count", u32(3), "is 3 of 3 layers"),
        ("leading_dense_block_count", u32(2), "blk.1.ffn_gate.weight: is missing"),
        ("nextn_predict_layers", u32(4), "is 4 of 4 layers"),
        ("nextn_predict_layers", u32(0), "tensor blk.3.nextn"),
        ("expert_shared_count", u32(0), "shexp.weight is not part of glm4moe"),
        ("expert_weights_scale", f32(-1.0), "is -1"),
    ] {
        let e = with_keys("glm4moe", &[(key, value)]).unwrap_err();
        assert!(e.contains(words), "{key}: {e}");
    }
    // Another architecture has whole heads.
    let e = with_keys("qwen2", &[("rope.dimension_count", u32(8))]).unwrap_err();
    assert!(
        e.contains(
            "rope.dimension_count: 16, the size of a head, of which rope turns all in qwen2, was expected, found 8"
        ),
        "{e}"
    );
}

#[test]
fn defaults_of_qwen2moe_and_olmoe() {
    let c = with_keys("qwen2moe", &[]).unwrap();
    let moe = c.moe.as_ref().unwrap();
    assert_eq!((moe.ffn, moe.shared, moe.renormalise, c.qkv_bias), (32, 64, false, true));
    let e = with_keys("qwen2moe", &[("expert_shared_feed_forward_length", Some(Value::U32(32)))]).unwrap_err();
    assert!(e.contains("ffn_gate_shexp") && e.contains("expected"), "{e}");
    let moe = with_keys("olmoe", &[]).unwrap().moe.unwrap();
    assert_eq!((moe.ffn, moe.shared, moe.renormalise), (32, 0, false));
    let e = with_keys("olmoe", &[("attention.clamp_kqv", Some(Value::F32(8.0)))]).unwrap_err();
    assert!(e.contains("olmoe.attention.clamp_kqv"), "{e}");
}

#[test]
fn a_key_that_is_not_read_is_harmless_or_refused() {
    let u32 = |x| Some(Value::U32(x));
    let f32 = |x| Some(Value::F32(x));
    for (family, key, value) in [
        ("llama", "attention.causal", Some(Value::Bool(false))),
        ("llama", "attention.sliding_window", u32(4096)),
        ("llama", "attention.scale", f32(0.1)),
        ("llama", "logit_scale", f32(2.0)),
        ("llama", "rope.scaling.attn_factor", f32(1.2)),
        ("llama", "a_key_of_next_year", u32(1)),
        ("llama", "a_key_of_next_year", Some(Value::Array(Array::U32(vec![1, 2])))),
        ("mixtral", "expert_group_count", u32(4)),
        ("mixtral", "expert_group_used_count", u32(2)),
        ("mixtral", "expert_weights_scale", f32(2.5)),
        ("mixtral", "expert_gating_func", u32(2)),
        ("mixtral", "expert_shared_count", u32(1)),
        ("qwen2", "expert_count", u32(4)),
    ] {
        let e = with_keys(family, &[(key, value.clone())]).unwrap_err();
        assert!(e.contains(key) && e.contains("could change the result"), "{family} {key}: {e}");
    }
    let harmless = [
        ("vocab_size", u32(96)),
        ("attention.causal", Some(Value::Bool(true))),
        ("attention.sliding_window", u32(0)),
        ("expert_group_count", u32(1)),
        ("expert_weights_scale", f32(1.0)),
        ("rope.scaling.original_context_length", u32(64)),
        ("a_flag_of_next_year", Some(Value::Bool(false))),
    ];
    let config = with_keys("mixtral", &harmless).unwrap();
    let ignored: Vec<&str> = config.keys.ignored.iter().map(|key| key.key.as_str()).collect();
    assert_eq!(ignored, harmless.map(|(key, _)| key));
}

#[test]
fn linear_attention_of_qwen35_and_qwen3next() {
    let u32 = |x| Some(Value::U32(x));
    let bools = |all: &[bool]| Some(Value::Array(Array::Bool(all.to_vec())));
    let i32s = |all: &[i32]| Some(Value::Array(Array::I32(all.to_vec())));
    for (family, interval, tiled, heads) in
        [("qwen3next", 2, false, 6), ("qwen35moe", 2, true, 6), ("qwen35", 2, true, 4)]
    {
        let (model, _) = open(family);
        let linear = model.config.linear.unwrap();
        assert_eq!((linear.interval, linear.tiled, linear.value_heads), (interval, tiled, heads), "{family}");
        for (n, layer) in model.weights.layers.iter().enumerate() {
            assert_eq!(matches!(layer.mixer, Mixer::Linear(_)), n % 2 == 0, "{family} {n}");
        }
    }
    // The rows of q and of the gate lie in turn, D of each; those of beta and of the decay, as many as a key head has value heads.
    let (model, _) = open("qwen3next");
    let rows =
        |weight: &Weight, rows: &[usize]| rows.iter().flat_map(|r| weight.row(0, *r).to_vec()).collect::<Vec<u8>>();
    let joint = |name: &str| model.gguf.data(model.gguf.tensor(name).unwrap()).to_vec();
    let (Mixer::Linear(linear), Mixer::Attention(attention)) =
        (&model.weights.layers[0].mixer, &model.weights.layers[1].mixer)
    else {
        panic!("a layer of each kind")
    };
    let gate = attention.gate.as_ref().unwrap();
    let all = joint("blk.1.attn_q.weight");
    let sixteen = 16 * gate.row_bytes();
    assert!(
        all[..sixteen] == rows(&attention.q, &Vec::from_iter(0..16))
            && all[sixteen..][..sixteen] == rows(gate, &Vec::from_iter(0..16))
    );
    assert!(all[2 * sixteen..][..sixteen] == rows(&attention.q, &Vec::from_iter(16..32)));
    let all = joint("blk.0.ssm_ba.weight");
    let three = 3 * linear.b.row_bytes();
    assert!(all[..three] == rows(&linear.b, &[0, 1, 2]) && all[three..][..three] == rows(&linear.a, &[0, 1, 2]));
    assert!(all[2 * three..][..three] == rows(&linear.b, &[3, 4, 5]));
    assert_eq!(
        (linear.b.name.as_str(), gate.name.as_str()),
        ("blk.0.ssm_ba.weight (beta)", "blk.1.attn_q.weight (gate)")
    );

    // The array counts, and says the interval, too; without it the definition's is 4, so that layer 1 would have linear attention.
    let interval = |changes: &[(&str, Option<Value>)]| with_keys("qwen35", changes).map(|c| c.linear.unwrap().interval);
    for layers in [bools(&[true; 3]), bools(&[true, true, false]), None] {
        let e = interval(&[("attention.recurrent_layers", layers)]).unwrap_err();
        assert!(e.contains("tensor blk.1.") && e.contains("is missing"), "{e}");
    }
    assert_eq!(interval(&[("attention.recurrent_layers", None), ("full_attention_interval", u32(2))]), Ok(2));
    for (key, value, words) in [
        ("attention.recurrent_layers", bools(&[false, true, false]), "false was expected of layer 1"),
        ("attention.recurrent_layers", bools(&[true]), "true was expected of layer 1, "),
        ("attention.recurrent_layers", u32(2), "an array of bool was expected, found u32 2"),
        ("full_attention_interval", u32(0), "is 0"),
        ("ssm.group_count", u32(3), "ssm.time_step_rank: a multiple of 3 was expected"),
        ("ssm.inner_size", u32(96), "4 heads of 32 were expected, found 96"),
        ("ssm.state_size", None, "ssm.state_size"),
        ("rope.dimension_sections", i32s(&[1, 1, 1, 1]), "leave out pair 3 of 4"),
        ("rope.dimension_count", u32(7), "an even number up to 16"),
        ("attention.sliding_window", u32(8), "could change the result"),
    ] {
        let e = with_keys("qwen35", &[(key, value)]).unwrap_err();
        assert!(e.contains(words), "{key}: {e}");
    }
}

#[test]
fn a_value_for_each_layer_is_one_value_if_they_are_equal() {
    let array = |values: &[i32]| Some(Value::Array(Array::I32(values.to_vec())));
    let config = with_keys("llama", &[("attention.head_count_kv", array(&[2, 2]))]).unwrap();
    assert_eq!(config.kv_heads, 2);
    let e = with_keys("llama", &[("attention.head_count_kv", array(&[2, 4]))]).unwrap_err();
    assert!(e.contains("attention.head_count_kv is 2 in one layer and 4 in another"), "{e}");
    let e = with_keys("llama", &[("attention.head_count_kv", array(&[]))]).unwrap_err();
    assert!(e.contains("empty array"), "{e}");
    let e = with_keys("llama", &[("attention.head_count", Some(Value::U32(0)))]).unwrap_err();
    assert!(e.contains("llama.attention.head_count is 0"), "{e}");
}

/// What SentencePiece, and a plain loop over the merges, make of some texts (`scripts/goldens.py`).
#[test]
fn tokens_equal_the_goldens() {
    let expected = std::fs::read_to_string(path("tokens", "json")).unwrap();
    let expected: std::collections::BTreeMap<String, Vec<(String, Vec<u32>)>> =
        serde_json::from_str(&expected).unwrap();
    assert_eq!(
        expected.keys().collect::<Vec<_>>(),
        ["deepseek-llm", "deepseek-v3", "glm4", "gpt-4o", "kimi-k2", "llama", "llama-bpe", "qwen2", "qwen35", "smollm"]
    );
    for (name, texts) in expected {
        let file = if name == "llama" { "sentencepiece" } else { "byte-level" };
        let mut gguf = Gguf::open(&path(file, "gguf")).unwrap();
        if name != "llama" {
            gguf.metadata.set("tokenizer.ggml.pre", Value::String(name.clone()));
        }
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        for (text, tokens) in texts {
            let found = tokenizer.encode(&text).unwrap();
            assert_eq!(found, tokens, "{name}: {text:?}");
            let bos = tokenizer.bos.iter().count();
            let decoded = tokenizer.decode(&found[bos..]).unwrap();
            // SentencePiece puts a space in front, and has one character for a space and for itself; Qwen has composed characters only.
            match name.as_str() {
                "llama" if text.contains('▁') => {}
                "llama" if text.is_empty() => assert_eq!(decoded, ""),
                "llama" => assert_eq!(decoded, format!(" {text}")),
                _ => assert_eq!(decoded, text),
            }
        }
    }
}

#[test]
fn a_tokenizer_that_is_not_known_is_refused_by_name() {
    let refused = |key: &str, value: &str| {
        let mut gguf = Gguf::open(&path("byte-level", "gguf")).unwrap();
        gguf.metadata.set("tokenizer.ggml.pre", Value::String("qwen2".into()));
        gguf.metadata.set(key, Value::String(value.into()));
        Tokenizer::from_gguf(&gguf).err().expect("refused").to_string()
    };
    let e = refused("tokenizer.ggml.pre", "deepseek-coder");
    assert!(e.contains("\"deepseek-coder\"") && e.contains("\"smollm\""), "{e}");
    let e = refused("tokenizer.ggml.model", "bert");
    assert!(e.contains("\"bert\"") && e.contains("\"llama\""), "{e}");
    // A model without one runs from token ids.
    let (model, _) = open("llama");
    assert!(model.tokenizer().err().unwrap().to_string().contains("--tokens"));
}
