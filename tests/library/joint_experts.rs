//! Gate and up of the experts in one tensor, `ffn_gate_up_exps`: the bits of two tensors, on every backend, and llama.cpp's logits
//! (`scripts/odd_files.py` wrote them).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use twinscope::backend::Backend;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions, LEAST_WEIGHT_MEMORY};
use twinscope::backend::oracle::OracleBackend;
use twinscope::gguf::{self, Gguf, TensorSpec};
use twinscope::model::{LogitRows, Model, Session, forward};
use twinscope::op::{GgmlType, HostTensor};
use twinscope::quant::dequantize;
use twinscope::synth::{Family, Mix, ModelShape, Plan};

/// Of `scripts/odd_files.py`.
const TOKENS: [u32; 7] = [5, 17, 33, 41, 6, 0, 8];
/// Both compute in f32 over F32 weights; as for goldens on the backends (`model_golden.rs`).
const F32_NMSE: f64 = 1e-11;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// What is kept of a tensor and what is joined.
#[derive(Clone, Copy, PartialEq)]
enum Written {
    Joint,
    /// Up's rows first, as nothing writes them.
    UpFirst,
    /// Joint, and gate and up besides.
    Twice,
}

fn family(name: &str) -> Gguf {
    Gguf::open(&data(&format!("families/{name}.gguf"))).unwrap()
}

/// `base` with its experts' gate and up in one tensor, all weights as they are or as F32.
fn write(base: &Gguf, written: Written, as_f32: bool, path: &Path) {
    let ty = |ty| if as_f32 { GgmlType::F32 } else { ty };
    let mut specs = Vec::new();
    for t in base.tensors() {
        let mut spec = TensorSpec::new(&t.name, ty(t.ty), &t.dims);
        let part = ["ffn_gate_exps.weight", "ffn_up_exps.weight"].iter().position(|part| t.name.ends_with(part));
        if part.is_none() || written == Written::Twice {
            specs.push(spec.clone());
        }
        if part == Some(0) {
            spec.name = t.name.replace("gate", "gate_up");
            spec.dims[1] *= 2;
            specs.push(spec);
        }
    }
    gguf::write(path, &base.metadata, &specs, |spec, sink| {
        let bytes = |name: &str| {
            let tensor = base.tensor(name).unwrap();
            if !as_f32 {
                return base.data(tensor).to_vec();
            }
            let mut values = vec![0.0; tensor.elements() as usize];
            dequantize(tensor.ty, base.data(tensor), &mut values).unwrap();
            values.iter().flat_map(|x| x.to_le_bytes()).collect()
        };
        if !spec.name.contains("gate_up") {
            return sink.put(&bytes(&spec.name));
        }
        let mut parts = ["gate", "up"].map(|part| bytes(&spec.name.replace("gate_up", part)));
        if written == Written::UpFirst {
            parts.reverse();
        }
        let each = parts[0].len() / spec.dims[2] as usize;
        for (first, second) in parts[0].chunks(each).zip(parts[1].chunks(each)) {
            sink.put(first)?;
            sink.put(second)?;
        }
        Ok(())
    })
    .unwrap();
}

fn logits<B: Backend>(backend: &mut B, model: &Model, rows: LogitRows) -> HostTensor {
    backend.prepare(&model.weights.all(), &mut |_| ()).unwrap();
    let mut session = Session::new(backend, &model.config, TOKENS.len()).unwrap();
    let logits = forward(backend, model, &mut session, &TOKENS, rows).unwrap();
    backend.read(&logits).unwrap()
}

fn gpu(weight_memory: Option<u64>) -> GpuBackend {
    let options = GpuOptions { weight_memory, ..Default::default() };
    GpuBackend::new(&AdapterSelector::Best, options).expect("a Vulkan, Metal or DX12 adapter")
}

#[test]
fn experts_in_one_tensor_are_the_bits_of_two() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("joint.gguf");
    // Larger than the least memory that weights may take on the GPU.
    let shape = ModelShape { family: Family::Qwen35, layers: 2, vocab: 300, ..ModelShape::named("tiny").unwrap() };
    let large = Plan::new("large", &shape, &Mix::from_name("Q4_K_M").unwrap(), 1).unwrap().to_bytes().unwrap();
    let large = Gguf::from_bytes("large", Arc::new(large)).unwrap();
    let families = ["qwen35moe", "qwen3next", "deepseek3", "deepseek2"].map(|name| (name, family(name)));
    for (family, base) in families.into_iter().chain([("large", large)]) {
        write(&base, Written::Joint, false, &path);
        let own = Model::from_gguf(base).unwrap();
        let joint = Model::open(Some(&path)).unwrap_or_else(|e| panic!("{family}: {e}"));
        let same = |what: &str, run: &dyn Fn(&Model) -> HostTensor| {
            assert!(run(&own) == run(&joint), "{family} on {what}: two tensors and one differ");
        };
        same("the oracle", &|model| logits(&mut OracleBackend::new(), model, LogitRows::All));
        for level in Level::available() {
            let cpu = || CpuBackend::new(Some(level), Some(2)).unwrap();
            same("the CPU", &|model| logits(&mut cpu(), model, LogitRows::All));
        }
        same("the GPU", &|model| logits(&mut gpu(None), model, LogitRows::All));
        if family == "large" {
            same("the GPU, streamed", &|model| {
                let mut gpu = gpu(Some(LEAST_WEIGHT_MEMORY));
                let logits = logits(&mut gpu, model, LogitRows::All);
                let memory = gpu.weight_memory();
                assert!(memory.uploaded > LEAST_WEIGHT_MEMORY && memory.most <= LEAST_WEIGHT_MEMORY, "{memory:?}");
                logits
            });
        }
    }
}

#[test]
fn experts_in_one_tensor_are_computed_as_llama_cpp_does() {
    let bytes = std::fs::read(data("data/odd_files/llama.cpp.safetensors")).unwrap();
    let peer = SafeTensors::deserialize(&bytes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("joint.gguf");
    for family in ["qwen35moe", "qwen3next", "deepseek3"] {
        let expected = peer.tensor(&format!("joint experts of {family}")).unwrap();
        let expected: Vec<f64> = expected.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect();
        let nmse = |found: HostTensor| {
            let found = found.to_f64();
            assert_eq!(found.len(), expected.len());
            let error: f64 = expected.iter().zip(&found).map(|(e, f)| (e - f).powi(2)).sum();
            error / expected.iter().map(|e| e * e).sum::<f64>()
        };
        let base = self::family(family);
        write(&base, Written::Joint, true, &path);
        let model = Model::open(Some(&path)).unwrap();
        let mut scalar = CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap();
        let found = [
            nmse(logits(&mut OracleBackend::new(), &model, LogitRows::Last)),
            nmse(logits(&mut scalar, &model, LogitRows::Last)),
        ];
        println!("{:8.1e} {:8.1e}  {family}", found[0], found[1]);
        assert!(found.iter().all(|x| *x <= F32_NMSE), "{family}: nmse {found:?}");
        write(&base, Written::UpFirst, true, &path);
        let other = nmse(logits(&mut OracleBackend::new(), &Model::open(Some(&path)).unwrap(), LogitRows::Last));
        assert!(other > 1e-3, "{family}: nmse {other:e} of up before gate, which is another model");
    }
}

/// As in llama.cpp, whose loaders of other architectures miss the two tensors, and which counts the tensors that nothing reads.
#[test]
fn experts_in_one_tensor_are_refused_where_llama_cpp_refuses_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("joint.gguf");
    for (family, written, tensor) in [
        ("qwen2moe", Written::Joint, "blk.0.ffn_gate_exps.weight"),
        ("glm4moe", Written::Joint, "ffn_gate_exps.weight"),
        ("qwen35moe", Written::Twice, "blk.0.ffn_gate_exps.weight"),
    ] {
        write(&self::family(family), written, false, &path);
        let refused = Model::open(Some(&path)).err().unwrap_or_else(|| panic!("{family}: opened")).to_string();
        assert!(refused.contains(tensor), "{family}: {refused}");
    }
}
