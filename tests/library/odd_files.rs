//! Files that are not quite as llama.cpp's converter writes them: computed as llama.cpp does, or refused by name. `scripts/odd_files.py` wrote
//! what llama.cpp makes of each; what is set, removed or added is in `cases.json`, which both read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::Value as Json;
use twinscope::backend::Backend;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::oracle::OracleBackend;
use twinscope::gguf::{self, Array, Gguf, Metadata, TensorSpec, Value};
use twinscope::model::{LogitRows, Model, Session, forward};
use twinscope::op::GgmlType;
use twinscope::synth::{FfnShape, Mix, ModelShape, Moe, Plan};

/// Both compute in f32 over F32 weights; as for goldens on the backends (`model_golden.rs`).
const F32_NMSE: f64 = 1e-11;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/odd_files").join(name)
}

/// The file that a case starts from, as `synth` makes it from the same numbers.
fn base(plan: &Json, case: &Json) -> Gguf {
    let number = |name: &str| {
        let value = case.get(name).unwrap_or(&plan["synth"][name]);
        value.as_u64().unwrap_or_else(|| panic!("{name}")) as u32
    };
    let shape = ModelShape {
        hidden: number("hidden"),
        layers: number("layers"),
        heads: number("heads"),
        kv_heads: number("kv-heads"),
        head_dim: number("head-dim"),
        ffn: FfnShape::Moe(Moe {
            experts: number("experts"),
            used: number("experts-used"),
            width: number("expert-ffn"),
        }),
        vocab: number("vocab"),
        ..ModelShape::named("tiny").unwrap()
    };
    let plan = Plan::new("base", &shape, &Mix::pure(GgmlType::F32).unwrap(), 0).unwrap();
    Gguf::from_bytes("base", Arc::new(plan.to_bytes().unwrap())).unwrap()
}

/// A metadata value from ["f32", 4.0] and the like.
fn value(json: &Json) -> Value {
    let number = |x: &Json| u32::try_from(x.as_u64().unwrap()).unwrap();
    match (json[0].as_str().unwrap(), &json[1]) {
        ("f32", x) => Value::F32(x.as_f64().unwrap() as f32),
        ("u32", x) => Value::U32(number(x)),
        ("bool", x) => Value::Bool(x.as_bool().unwrap()),
        ("str", x) => Value::String(x.as_str().unwrap().into()),
        ("u32[]", x) => Value::Array(Array::U32(x.as_array().unwrap().iter().map(number).collect())),
        // Written as UTF-8 and broken in the file's bytes, below.
        ("bytes", _) => Value::String("a\u{7f}".into()),
        (other, _) => panic!("{other}"),
    }
}

/// Scales for the experts of a weight, which depend on its name: from 0.5 to 1.9.
fn scales(name: &str, experts: u64) -> Vec<[u8; 4]> {
    (0..experts).map(|e| (0.5 + ((name.len() as u64 * 7 + e * 3) % 15) as f32 / 10.0).to_le_bytes()).collect()
}

/// The file of a case.
fn write(plan: &Json, case: &Json, path: &Path) {
    let base = base(plan, case);
    let removed: Vec<&str> = case["remove"].as_array().into_iter().flatten().map(|key| key.as_str().unwrap()).collect();
    assert!(removed.iter().all(|key| base.metadata.contains(key)), "{removed:?}");
    let mut metadata = Metadata::new("odd");
    for (key, value) in base.metadata.iter().filter(|(key, _)| !removed.contains(key)) {
        metadata.set(key, value.clone());
    }
    for (key, json) in case["set"].as_object().into_iter().flatten() {
        metadata.set(key, value(json));
    }
    let mut specs: Vec<_> = base.tensors().iter().map(|t| TensorSpec::new(&t.name, t.ty, &t.dims)).collect();
    let bias = case["bias"].as_f64();
    let biased = |name: &str| ["attn_q", "attn_k", "attn_v"].iter().any(|m| name.ends_with(&format!("{m}.weight")));
    for matrix in base.tensors().iter().filter(|t| bias.is_some() && biased(&t.name)) {
        let name = matrix.name.replace(".weight", ".bias");
        specs.push(TensorSpec::new(&name, GgmlType::F32, &[matrix.dims[1]]));
    }
    // A number beside a weight, or one for each expert.
    for (key, ending) in [("scales", "scale"), ("input_scales", "input_scale")] {
        for part in case[key].as_array().into_iter().flatten() {
            let part = format!("{}.weight", part.as_str().unwrap());
            for weight in base
                .tensors()
                .iter()
                .filter(|t| t.name.rsplit_once(&part).is_some_and(|(n, _)| n.is_empty() || n.ends_with('.')))
            {
                let experts = weight.dims.get(2).copied().unwrap_or(1);
                specs.push(TensorSpec::new(&weight.name.replace("weight", ending), GgmlType::F32, &[experts]));
            }
        }
    }
    gguf::write(path, &metadata, &specs, |t, sink| match base.tensor(&t.name) {
        Some(tensor) => sink.put(base.data(tensor)),
        None if t.name.ends_with("scale") => sink.put(&scales(&t.name, t.dims[0]).concat()),
        None => sink.put(&(bias.unwrap() as f32).to_le_bytes().repeat(t.dims[0] as usize)),
    })
    .unwrap();
    if case["set"].as_object().is_some_and(|set| set.values().any(|v| v[0] == "bytes")) {
        let mut bytes = std::fs::read(path).unwrap();
        let at = bytes.iter().position(|&b| b == 0x7f).unwrap();
        bytes[at] = 0xff;
        std::fs::write(path, bytes).unwrap();
    }
}

/// The logits of the last of `tokens`. `[V]`
fn logits<B: Backend>(mut backend: B, model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut session = Session::new(&mut backend, &model.config, tokens.len()).unwrap();
    let logits = forward(&mut backend, model, &mut session, tokens, LogitRows::Last).unwrap();
    backend.read(&logits).unwrap().to_f32()
}

fn nmse(expected: &[f32], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let pairs = || expected.iter().zip(found).map(|(&e, &f)| (f64::from(e), f64::from(f)));
    pairs().map(|(e, f)| (e - f).powi(2)).sum::<f64>() / pairs().map(|(e, _)| e * e).sum::<f64>()
}

#[test]
fn computed_as_llama_cpp_does_or_refused_by_name() {
    let plan: Json = serde_json::from_slice(&std::fs::read(data("cases.json")).unwrap()).unwrap();
    let bytes = std::fs::read(data("llama.cpp.safetensors")).unwrap();
    let peer = SafeTensors::deserialize(&bytes).unwrap();
    let tokens: Vec<u32> = plan["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.gguf");
    for case in plan["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        write(&plan, case, &path);
        let model = Model::open(Some(&path));
        if let Some(words) = case["refused"].as_str() {
            let error = model.err().unwrap_or_else(|| panic!("{name}: opened, and expected to be refused")).to_string();
            assert!(error.contains(words) && error.contains("odd.gguf"), "{name}: {error}");
            continue;
        }
        let model = model.unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = peer.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected: Vec<f32> =
            expected.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let oracle = nmse(&expected, &logits(OracleBackend::new(), &model, &tokens));
        if case["differs"].is_string() {
            assert!(oracle > 1e-3, "{name}: nmse {oracle:e}, and llama.cpp is expected to compute something else");
            assert!(!model.config.keys.remarks.is_empty(), "{name}: nothing is said of it");
            continue;
        }
        let scalar = CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap();
        let scalar = nmse(&expected, &logits(scalar, &model, &tokens));
        assert!(oracle <= F32_NMSE && scalar <= F32_NMSE, "{name}: nmse {oracle:e} (oracle), {scalar:e} (scalar)");
        println!("{oracle:8.1e} {scalar:8.1e}  {name}");
    }
}

/// `base` with other metadata and more tensors of f32, every value of which is the one given.
fn rewritten(
    base: &Gguf,
    set: &[(&str, Value)],
    tensors: &[(&str, u64, f32)],
    path: &Path,
) -> twinscope::Result<Model> {
    let mut metadata = base.metadata.clone();
    set.iter().for_each(|(key, value)| metadata.set(key, value.clone()));
    let mut specs: Vec<_> = base.tensors().iter().map(|t| TensorSpec::new(&t.name, t.ty, &t.dims)).collect();
    specs.extend(tensors.iter().map(|(name, len, _)| TensorSpec::new(name, GgmlType::F32, &[*len])));
    gguf::write(path, &metadata, &specs, |spec, sink| match base.tensor(&spec.name) {
        Some(tensor) => sink.put(base.data(tensor)),
        None => {
            let (_, len, value) = tensors.iter().find(|(name, ..)| *name == spec.name).unwrap();
            sink.put(&value.to_le_bytes().repeat(*len as usize))
        }
    })
    .unwrap();
    Model::open(Some(path))
}

#[test]
fn what_says_the_same_in_other_words_is_taken() {
    let plan: Json = serde_json::from_slice(&std::fs::read(data("cases.json")).unwrap()).unwrap();
    let base = base(&plan, &Json::Null);
    let architecture = "qwen3moe";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.gguf");
    let own = rewritten(&base, &[], &[], &path).unwrap();
    let layers = own.config.layers;
    let tokens = [1, 2, 3];
    let expected = logits(OracleBackend::new(), &own, &tokens);
    let key = |name: &str| format!("{architecture}.{name}");
    let number = |name: &str| base.metadata.f32(&key(name)).unwrap();
    let same = |x: f32| Value::Array(Array::F32(vec![x; layers]));

    let (base_key, eps, window, shared) = (
        key("rope.freq_base"),
        key("attention.layer_norm_rms_epsilon"),
        key("attention.sliding_window"),
        key("expert_shared_count"),
    );
    let set = [
        (&base_key[..], same(number("rope.freq_base"))),
        (&eps[..], same(number("attention.layer_norm_rms_epsilon"))),
        (&window[..], Value::Array(Array::U32(vec![0; layers]))),
        (&shared[..], Value::Array(Array::I32(vec![0; layers]))),
    ];
    for one in &set {
        let model = rewritten(&base, std::slice::from_ref(one), &[], &path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(logits(OracleBackend::new(), &model, &tokens), expected, "{}", one.0);
    }
    let mut other = vec![number("rope.freq_base"); layers];
    other[layers - 1] *= 2.0;
    let refused = rewritten(&base, &[(&base_key, Value::Array(Array::F32(other)))], &[], &path).err().unwrap();
    assert!(refused.to_string().contains("rope.freq_base"), "{refused}");

    // Biases of zeros, which are not added, and said; others are refused.
    let hidden = own.config.hidden as u64;
    let zeros = [("blk.0.attn_output.bias", hidden, 0.0), ("blk.1.attn_output.bias", hidden, -0.0)];
    let model = rewritten(&base, &[], &zeros, &path).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(logits(OracleBackend::new(), &model, &tokens), expected);
    assert_eq!(model.remarks(), ["blk.0.attn_output.bias and 1 more: zero, and not added"]);
    let refused = rewritten(&base, &[], &[("blk.0.attn_output.bias", hidden, 1e-3)], &path).err().unwrap();
    assert!(refused.to_string().contains("blk.0.attn_output.bias"), "{refused}");

    // A bias of k alone: those of q and v are zero.
    let (q, kv) = (own.config.q_width() as u64, own.config.kv_width() as u64);
    let of_k = ("blk.0.attn_k.bias", kv, 0.5);
    let alone = rewritten(&base, &[], &[of_k], &path).unwrap_or_else(|e| panic!("{e}"));
    let alone = logits(OracleBackend::new(), &alone, &tokens);
    let of_all = [of_k, ("blk.0.attn_q.bias", q, 0.0), ("blk.0.attn_v.bias", kv, 0.0)];
    let of_all = rewritten(&base, &[], &of_all, &path).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(alone, logits(OracleBackend::new(), &of_all, &tokens));
    assert_ne!(alone, expected);
}
