//! Synthetic models: deterministic, readable, and of the types that llama.cpp would give them.

use std::path::Path;

use twinscope::Result;
use twinscope::backend::Backend;
use twinscope::backend::cpu::CpuBackend;
use twinscope::gguf::Gguf;
use twinscope::model::{LogitRows, Model, Session, forward};
use twinscope::op::{At, GgmlType, HostTensor, Site, Stage};
use twinscope::quant::dequantize;
use twinscope::synth::{Family, FfnShape, GlmShape, LatentShape, MIXES, Mix, ModelShape, Moe, Plan, Role};
use twinscope::trace::{StageObserver, Traced};

fn write(path: &Path, shape: &ModelShape, mix: &Mix, seed: u64) {
    Plan::new("test", shape, mix, seed).unwrap().write(path, |_| ()).unwrap();
}

fn types(plan: &Plan) -> Vec<(&str, GgmlType, &[u64])> {
    plan.tensors().iter().map(|t| (t.spec.name.as_str(), t.spec.ty, t.spec.dims.as_slice())).collect()
}

#[test]
fn same_seed_gives_the_same_bytes_on_one_thread_and_on_three() {
    let dir = tempfile::tempdir().unwrap();
    let shape = ModelShape::named("tiny").unwrap();
    let mix = Mix::from_name("Q4_K_M").unwrap();
    let file = |name: &str, threads, seed| {
        let path = dir.path().join(name);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| write(&path, &shape, &mix, seed));
        std::fs::read(path).unwrap()
    };
    let one = file("one", 1, 5);
    assert!(one == file("three", 3, 5));
    assert!(one != file("other", 3, 6));
}

/// The bytes that one seed has always given: a change of the generator changes every model that a report names by its seed.
#[test]
fn a_seed_keeps_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write(&path, &ModelShape::named("tiny").unwrap(), &Mix::from_name("Q4_K_M").unwrap(), 0);
    let model = Gguf::open(&path).unwrap();
    let first = |name: &str| {
        let data = model.data(model.tensor(name).unwrap());
        data[..8].iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let found: Vec<_> =
        ["output.weight", "blk.0.attn_norm.weight", "blk.1.ffn_gate_inp.weight", "blk.1.ffn_up_exps.weight"]
            .map(first)
            .into();
    assert_eq!(found, ["6dc33ca19cf17cf0", "f55f7f3f4bea923f", "905c8cbd29e6c03d", "6c0d1519fce1edbc"]);
}

#[test]
fn every_mix_and_every_type_reads_back_with_finite_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let shape = ModelShape { layers: 1, vocab: 300, ..ModelShape::named("tiny").unwrap() };
    let pure = GgmlType::ALL.iter().filter_map(|ty| Mix::pure(*ty));
    for mix in MIXES.iter().copied().chain(pure) {
        let plan = Plan::new("test", &shape, &mix, 1).unwrap();
        plan.write(&path, |_| ()).unwrap();
        let model = Gguf::open(&path).unwrap();
        assert_eq!(model.metadata.u32("general.file_type").unwrap(), mix.file_type);
        assert_eq!(model.tensors().len(), plan.tensors().len());
        for tensor in model.tensors() {
            let mut weights = vec![0.0; tensor.elements() as usize];
            dequantize(tensor.ty, model.data(tensor), &mut weights).unwrap();
            let square: f64 = weights.iter().map(|&w| w as f64 * w as f64).sum();
            assert!(square.is_finite() && square > 0.0, "{mix:?} {}", tensor.name);
        }
    }
}

#[test]
fn weights_are_scaled_to_their_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let shape = ModelShape::named("tiny").unwrap();
    write(&path, &shape, &Mix::from_name("Q4_K_M").unwrap(), 1);
    let model = Gguf::open(&path).unwrap();
    for (name, expected) in [
        ("blk.1.attn_q.weight", 1.0 / 256f64.sqrt()),
        ("blk.1.attn_output.weight", 1.0 / 512f64.sqrt() / 4f64.sqrt()),
        ("blk.0.ffn_gate_inp.weight", 2.0 / 256f64.sqrt()),
        ("output.weight", 3.0 / 256f64.sqrt()),
        ("token_embd.weight", 1.0),
    ] {
        let tensor = model.tensor(name).unwrap();
        let mut weights = vec![0.0; tensor.elements() as usize];
        dequantize(tensor.ty, model.data(tensor), &mut weights).unwrap();
        let rms = (weights.iter().map(|&w| (w as f64).powi(2)).sum::<f64>() / weights.len() as f64).sqrt();
        // Block scales are drawn from ½ to 3/2, so a few hundred blocks have the rms to some percent.
        assert!((rms / expected - 1.0).abs() < 0.1, "{name}: rms {rms}, expected {expected}");
    }
    // Outliers: in the same channel of every norm over the hidden size, and in none of the others.
    let channel = |name: &str| {
        let data = model.data(model.tensor(name).unwrap());
        let weights = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        weights.enumerate().filter(|(_, w)| *w > 4.0).map(|(i, _)| i).collect::<Vec<_>>()
    };
    let outliers = channel("output_norm.weight");
    assert!(!outliers.is_empty());
    assert_eq!(channel("blk.0.attn_norm.weight"), outliers);
    assert_eq!(channel("blk.1.ffn_norm.weight"), outliers);
    assert!(channel("blk.1.attn_q_norm.weight").is_empty());
}

#[test]
fn types_of_the_demo_shape_are_those_that_llama_cpp_gave_the_demo_model() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-moe-Q4_K_M.gguf");
    let demo = Gguf::open(&demo).unwrap();
    let plan = Plan::new("test", &ModelShape::named("demo").unwrap(), &Mix::from_name("Q4_K_M").unwrap(), 0).unwrap();
    let expected: Vec<_> = demo.tensors().iter().map(|t| (t.name.as_str(), t.ty, t.dims.as_slice())).collect();
    assert_eq!(types(&plan), expected);
}

/// What `llama-quantize` made of the demo model's weights: output, token_embd, and in every layer attn_q, attn_k, attn_v, attn_output,
/// gate and up, down.
#[test]
fn types_of_other_mixes_are_those_that_llama_cpp_gave_the_demo_model() {
    use GgmlType::*;
    for (mix, expected) in [
        ("Q8_0", [Q8_0; 8]),
        ("F16", [F16; 8]),
        ("IQ4_XS", [Q6_K, IQ4_XS, IQ4_XS, Q8_0, Q8_0, Q5_K, IQ4_XS, IQ4_XS]),
        ("Q2_K", [Q6_K, Q2_K, Q2_K, Q8_0, Q8_0, Q5_K, Q2_K, Q3_K]),
        ("MXFP4_MOE", [Q8_0, Q8_0, Q8_0, Q8_0, Q8_0, Q8_0, MXFP4, MXFP4]),
    ] {
        let plan = Plan::new("t", &ModelShape::named("demo").unwrap(), &Mix::from_name(mix).unwrap(), 0).unwrap();
        for tensor in plan.tensors() {
            let expected = match tensor.role {
                Role::Output => expected[0],
                Role::TokenEmbd => expected[1],
                Role::AttnQ => expected[2],
                Role::AttnK => expected[3],
                Role::AttnV => expected[4],
                Role::AttnOutput => expected[5],
                Role::FfnGate | Role::FfnUp => expected[6],
                Role::FfnDown => expected[7],
                Role::Heads => unreachable!("the demo model has no latent attention"),
                Role::Norm | Role::Sinks | Role::Bias | Role::RopeFreqs | Role::Router => F32,
                Role::Conv | Role::Decay | Role::Scale => unreachable!("the demo model has none"),
            };
            assert_eq!(tensor.spec.ty, expected, "{mix} {}", tensor.spec.name);
        }
    }
}

/// Every key of a real file is there, of the same type.
#[test]
fn metadata_has_the_keys_of_the_demo_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write(&path, &ModelShape::named("demo").unwrap(), &Mix::from_name("Q4_K_M").unwrap(), 0);
    let (synth, demo) = (
        Gguf::open(&path).unwrap(),
        Gguf::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-moe-Q4_K_M.gguf")).unwrap(),
    );
    for (key, value) in demo.metadata.iter().filter(|(key, _)| *key != "general.license") {
        let found = synth.metadata.get(key).unwrap_or_else(|| panic!("no key {key}"));
        assert_eq!(found.value_type(), value.value_type(), "{key}");
    }
    for key in ["expert_count", "attention.head_count_kv", "attention.key_length", "embedding_length"] {
        let key = format!("qwen3moe.{key}");
        assert_eq!(synth.metadata.u32(&key).unwrap(), demo.metadata.u32(&key).unwrap());
    }
}

#[test]
fn q4_k_m_of_48_layers_has_half_of_down_and_v_in_q6_k() {
    let plan =
        Plan::new("t", &ModelShape::named("qwen3-30b-a3b").unwrap(), &Mix::from_name("Q4_K_M").unwrap(), 0).unwrap();
    for role in [Role::AttnV, Role::FfnDown] {
        let all: Vec<_> = plan.tensors().iter().filter(|t| t.role == role).map(|t| t.spec.ty).collect();
        let q6 = |ty: &&GgmlType| **ty == GgmlType::Q6_K;
        assert_eq!((all.len(), all.iter().filter(q6).count()), (48, 24), "{role:?}");
        assert!(all[..6].iter().all(|ty| *ty == GgmlType::Q6_K) && all[42..].iter().all(|ty| *ty == GgmlType::Q6_K));
        assert_eq!(all[6..12], [GgmlType::Q4_K, GgmlType::Q4_K, GgmlType::Q6_K].repeat(2));
    }
    let output = plan.tensors().iter().find(|t| t.role == Role::Output).unwrap();
    assert_eq!((output.spec.ty, output.spec.bytes().unwrap()), (GgmlType::Q6_K, 255_252_480));
}

#[test]
fn rows_that_are_not_whole_blocks_get_llama_cpps_substitutes() {
    let odd = |cols| ModelShape { hidden: cols, vocab: 300, layers: 8, ..ModelShape::named("tiny").unwrap() };
    let ty = |shape: &ModelShape, mix: &str, name: &str| {
        let plan = Plan::new("t", shape, &Mix::from_name(mix).unwrap(), 0).unwrap();
        types(&plan).into_iter().find(|t| t.0 == name).unwrap().1
    };
    let name = "blk.1.attn_q.weight";
    assert_eq!(ty(&odd(96), "Q4_K_M", name), GgmlType::Q5_0);
    assert_eq!(ty(&odd(96), "Q5_K_M", name), GgmlType::Q5_1);
    assert_eq!(ty(&odd(96), "Q6_K", name), GgmlType::Q8_0);
    assert_eq!(ty(&odd(96), "Q2_K", name), GgmlType::Q4_0);
    assert_eq!(ty(&odd(96), "IQ4_XS", name), GgmlType::IQ4_NL);
    assert_eq!(ty(&odd(96), "Q4_K_M", "output.weight"), GgmlType::Q8_0);
    assert_eq!(ty(&odd(100), "Q4_K_M", name), GgmlType::F16);
    assert_eq!(ty(&odd(100), "Q8_0", name), GgmlType::F16);
    assert_eq!(ty(&odd(100), "F32", name), GgmlType::F32);
}

#[test]
fn dense_and_tied_models_have_their_tensors() {
    let shape = ModelShape { ffn: FfnShape::Dense(512), tied: true, ..ModelShape::named("tiny").unwrap() };
    let plan = Plan::new("t", &shape, &Mix::from_name("Q4_K_M").unwrap(), 0).unwrap();
    let all = types(&plan);
    let find = |name: &str| all.iter().find(|t| t.0 == name).map(|t| (t.1, t.2));
    assert_eq!(find("output.weight"), None);
    assert_eq!(find("token_embd.weight"), Some((GgmlType::Q6_K, &[256, 512][..])));
    assert_eq!(find("blk.0.ffn_down.weight"), Some((GgmlType::Q4_K, &[512, 256][..])));
    assert!(all.iter().all(|t| !t.0.contains("_exps") && !t.0.contains("gate_inp")));
}

#[test]
fn dimensions_that_make_no_model_are_refused_by_flag() {
    let tiny = ModelShape::named("tiny").unwrap();
    let FfnShape::Moe(moe) = tiny.ffn else { panic!("tiny has experts") };
    let used = |used| ModelShape { ffn: FfnShape::Moe(Moe { used, ..moe }), ..tiny };
    for (shape, message) in [
        (ModelShape { kv_heads: 3, ..tiny }, "--kv-heads: expected a divisor of --heads 8, found 3"),
        (ModelShape { kv_heads: 9, ..tiny }, "--kv-heads: expected 1 to 8, found 9"),
        (ModelShape { head_dim: 65, ..tiny }, "--head-dim: expected an even number (rope turns pairs), found 65"),
        (used(17), "--experts-used: expected 1 to 16, found 17"),
        (used(0), "--experts-used: expected 1 to 16, found 0"),
        (ModelShape { hidden: 0, ..tiny }, "--hidden: expected 1 to 1048576, found 0"),
        (ModelShape { layers: 0, ..tiny }, "--layers: expected 1 to 4096, found 0"),
        (ModelShape { vocab: 258, ..tiny }, "--vocab: expected 259 to 4194304, found 258"),
        (ModelShape { rope_base: f32::NAN, ..tiny }, "--rope-base: expected a number above 1, found NaN"),
        (ModelShape { eps: 0.0, ..tiny }, "--eps: expected a number above 0, found 0"),
    ] {
        let error = Plan::new("t", &shape, &Mix::from_name("Q8_0").unwrap(), 0).err().unwrap();
        assert_eq!((error.to_string().as_str(), error.exit_code()), (message, 2));
    }
}

/// What a forward pass made, by stage, in order of the layers.
#[derive(Default)]
struct Kept(Vec<(Site, HostTensor)>);

impl StageObserver for Kept {
    fn wants(&self, site: Site) -> bool {
        matches!(
            site.stage,
            Stage::AttnOut | Stage::RouterIds | Stage::MoeOut | Stage::FfnOut | Stage::LayerOut | Stage::Logits
        )
    }
    fn observe(&mut self, At { site, .. }: At, values: HostTensor) -> Result<()> {
        self.0.push((site, values));
        Ok(())
    }
}

impl Kept {
    fn of(&self, stage: Stage) -> impl Iterator<Item = &HostTensor> {
        self.0.iter().filter(move |(site, _)| site.stage == stage).map(|(_, values)| values)
    }
}

fn rms(values: &HostTensor) -> f64 {
    (values.to_f64().iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt()
}

fn run(shape: &ModelShape, mix: &str) -> Kept {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write(&path, shape, &Mix::from_name(mix).unwrap(), 2);
    let model = Model::open(Some(&path)).unwrap();
    let mut backend = Traced::new(CpuBackend::new(None, None).unwrap(), Kept::default());
    backend.prepare(&model.weights.all(), &mut |_| ()).unwrap();
    let tokens: Vec<u32> = (0..12).map(|i| i * 23).collect();
    let mut session = Session::new(&mut backend, &model.config, tokens.len()).unwrap();
    forward(&mut backend, &model, &mut session, &tokens, LogitRows::All).unwrap();
    backend.finish().unwrap().1
}

#[test]
fn activations_neither_die_nor_explode_over_48_layers() {
    let moe = Moe { experts: 16, used: 4, width: 256 };
    let shape = ModelShape { layers: 48, vocab: 300, ffn: FfnShape::Moe(moe), ..ModelShape::named("tiny").unwrap() };
    let kept = run(&shape, "Q4_K_M");
    // The stream begins with rms 1, and 2·48 independent parts of rms 1/√(2·48) would bring it to √2.
    assert_eq!(kept.of(Stage::LayerOut).count(), 48);
    for (layer, values) in kept.of(Stage::LayerOut).enumerate() {
        assert!((0.9..2.5).contains(&rms(values)), "layer {layer}: rms {}", rms(values));
    }
    // No layer is lost in the stream that it adds to, and none takes it over.
    for stage in [Stage::AttnOut, Stage::MoeOut] {
        for (layer, (part, stream)) in kept.of(stage).zip(kept.of(Stage::LayerOut)).enumerate() {
            let share = rms(part) / rms(stream);
            assert!((0.02..0.5).contains(&share), "layer {layer} {stage}: {share} of the stream");
        }
    }
    // Every expert has work, and tokens are routed apart.
    let ids: Vec<u32> = kept.of(Stage::RouterIds).flat_map(|v| v.ids()).copied().collect();
    let load: Vec<usize> = (0..16).map(|e| ids.iter().filter(|id| **id == e).count()).collect();
    assert!(load.iter().all(|n| *n * 16 * 4 > ids.len()), "{load:?}");
    let logits = kept.of(Stage::Logits).next().unwrap();
    assert!((2.0..6.0).contains(&rms(logits)), "logits: rms {}", rms(logits));
    let first = |row: &[f64]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    let logits = logits.to_f64();
    let firsts: std::collections::HashSet<_> = logits.chunks(300).map(first).collect();
    assert!(firsts.len() > 6, "12 tokens have {} different first choices", firsts.len());
}

#[test]
fn dense_tied_activations_neither_die_nor_explode_over_48_layers() {
    let shape = ModelShape {
        layers: 48,
        vocab: 300,
        ffn: FfnShape::Dense(512),
        tied: true,
        ..ModelShape::named("tiny").unwrap()
    };
    let kept = run(&shape, "Q5_0");
    for (layer, values) in kept.of(Stage::LayerOut).enumerate() {
        assert!((0.1..2.5).contains(&rms(values)), "layer {layer}: rms {}", rms(values));
    }
    let logits = kept.of(Stage::Logits).next().unwrap();
    assert!((2.0..6.0).contains(&rms(logits)), "logits: rms {}", rms(logits));
}

#[test]
fn tokenizer_of_the_full_vocabulary_keeps_any_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let shape = ModelShape {
        hidden: 32,
        layers: 1,
        vocab: 151_936,
        ffn: FfnShape::Dense(32),
        ..ModelShape::named("tiny").unwrap()
    };
    write(&path, &shape, &Mix::from_name("Q8_0").unwrap(), 0);
    let model = Model::open(Some(&path)).unwrap();
    let text = "fn main() { let x = 1; }\n\tGröße 你好 🦀<|im_end|>";
    let tokens = model.tokenizer().unwrap().encode(text).unwrap();
    assert_eq!(tokens.last(), Some(&151_935));
    // All pairs of bytes are tokens, so there are about half as many as bytes.
    assert!(tokens.len() < text.len() * 2 / 3, "{} tokens of {} bytes", tokens.len(), text.len());
    assert_eq!(model.tokenizer().unwrap().decode(&tokens).unwrap(), text);
}

/// Exit code and stderr of the program.
fn synth(args: &[&str]) -> (i32, String) {
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_twinscope")).arg("synth").args(args).output().unwrap();
    (run.status.code().unwrap(), String::from_utf8(run.stderr).unwrap())
}

#[test]
fn command_line_writes_a_model_says_what_it_replaced_and_keeps_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let out = path.to_str().unwrap();
    let small = ["--layers", "1", "--hidden", "96", "--dense", "64", "--tied", "--vocab", "300", "--quant", "q6_k"];
    let (code, stderr) = synth(&[&[out], &small[..]].concat());
    assert_eq!(code, 0, "{stderr}");
    let note = "note: blk.*.attn_q.weight: rows of 96 are not whole blocks of Q6_K; Q8_0 instead (1 tensor)\n";
    assert!(stderr.contains(note), "{stderr}");
    let model = Gguf::open(&path).unwrap();
    assert_eq!(model.metadata.str("general.architecture").unwrap(), "qwen3");
    let before = std::fs::read(&path).unwrap();
    let (code, stderr) = synth(&[out]);
    assert_eq!((code, stderr), (2, format!("error: {out}: exists already; --force replaces it\n")));
    assert!(before == std::fs::read(&path).unwrap());
    assert_eq!(synth(&[&[out, "--force"], &small[..]].concat()).0, 0);
    assert!(before == std::fs::read(&path).unwrap(), "the same arguments give the same file");
}

/// A named shape of each family, cut to a layer and a small vocabulary, is a model of its architecture, of the tensors that the definition has.
#[test]
fn every_family_is_a_model() {
    for (name, architecture, tensors) in [
        ("llama-3.2-1b", "llama", 12),
        ("mixtral-8x7b", "llama", 13),
        ("qwen2.5-0.5b", "qwen2", 14),
        ("gpt-oss-20b", "gpt-oss", 22),
    ] {
        let named = ModelShape::named(name).unwrap();
        let ffn = match named.ffn {
            FfnShape::Dense(_) => FfnShape::Dense(64),
            FfnShape::Moe(moe) => FfnShape::Moe(Moe { width: 64, ..moe }),
        };
        let heads = named.heads.min(32);
        let shape = ModelShape { layers: 1, vocab: 300, ffn, heads, hidden: 64 * heads, head_dim: 64, ..named };
        let plan = Plan::new(name, &shape, &Mix::from_name("Q8_0").unwrap(), 0).unwrap();
        assert_eq!(plan.tensors().len(), tensors, "{name}");
        let gguf = Gguf::from_bytes(name, std::sync::Arc::new(plan.to_bytes().unwrap())).unwrap();
        let model = Model::from_gguf(gguf).unwrap();
        assert_eq!(model.config.architecture.name, architecture);
        assert_eq!(model.weights.rope_freqs.is_some(), name == "llama-3.2-1b");
        assert_eq!(model.config.qkv_bias, ["qwen2", "gpt-oss"].contains(&architecture));
        assert!(model.tokenizer().is_ok(), "{name}");
    }
}

/// `glm4moe`: a first layer without experts, a last one that is not run, and norms of q and k where the shape has them.
#[test]
fn glm_shapes_are_models() {
    for (name, tensors, norms) in [("glm-4.5-air", 53, false), ("glm-4.6", 87, true)] {
        let named = ModelShape::named(name).unwrap();
        let FfnShape::Moe(moe) = named.ffn else { unreachable!() };
        let ffn = FfnShape::Moe(Moe { width: 64, experts: 16, ..moe });
        let glm = named.glm().map(|glm| GlmShape { dense_width: 96, ..glm });
        let layers = glm.unwrap().dense_layers + 1;
        let shape = ModelShape { layers, vocab: 300, ffn, heads: 8, hidden: 256, head_dim: 64, glm, ..named };
        let plan = Plan::new(name, &shape, &Mix::from_name("Q4_K_M").unwrap(), 0).unwrap();
        assert_eq!(plan.tensors().len(), tensors, "{name}");
        let gguf = Gguf::from_bytes(name, std::sync::Arc::new(plan.to_bytes().unwrap())).unwrap();
        let model = Model::from_gguf(gguf).unwrap();
        let c = &model.config;
        assert_eq!((c.architecture.name, c.layers, c.predicting_layers), ("glm4moe", layers as usize, 1));
        assert_eq!((c.qk_norm, c.qkv_bias, c.rotation.dims, c.ffn), (norms, true, Some(32), 96));
        assert!(model.tokenizer().is_ok(), "{name}");
        let too_few = ModelShape { layers: layers - 1, ..shape };
        let error = Plan::new(name, &too_few, &Mix::from_name("Q8_0").unwrap(), 0).err().unwrap().to_string();
        assert!(error.contains("--layers: expected"), "{error}");
    }
}

/// `qwen3next` and `qwen35`: linear attention in all layers but every fourth, sections of rope that cover what turns.
#[test]
fn shapes_with_linear_attention_are_models() {
    for (name, architecture) in
        [("qwen3-next-80b-a3b", "qwen3next"), ("qwen3.5-35b-a3b", "qwen35moe"), ("qwen3.5-0.8b", "qwen35")]
    {
        let named = ModelShape::named(name).unwrap();
        let ffn = match named.ffn {
            FfnShape::Moe(moe) => FfnShape::Moe(Moe { width: 64, experts: 16, ..moe }),
            FfnShape::Dense(_) => FfnShape::Dense(96),
        };
        let shape = ModelShape { layers: 4, vocab: 300, ffn, heads: 4, hidden: 256, ..named };
        let plan = Plan::new(name, &shape, &Mix::from_name("Q4_K_M").unwrap(), 0).unwrap();
        let gguf = Gguf::from_bytes(name, std::sync::Arc::new(plan.to_bytes().unwrap())).unwrap();
        let model = Model::from_gguf(gguf).unwrap();
        let (c, linear) = (&model.config, model.config.linear.unwrap());
        assert_eq!((c.architecture.name, c.layers, c.rotation.dims), (architecture, 4, Some(64)));
        assert_eq!((linear.interval, linear.key_heads, linear.head_dim, linear.kernel), (4, 16, 128, 4), "{name}");
        assert!(model.tokenizer().is_ok(), "{name}");
        let heads = ModelShape { head_dim: 12, ..shape };
        let error = Plan::new(name, &heads, &Mix::from_name("Q8_0").unwrap(), 0).err().unwrap().to_string();
        assert!(error.contains("--head-dim: expected a multiple of 8"), "{error}");
    }
}

/// `deepseek2`: tensors of the published sizes, and cut to a layer of experts, a model.
#[test]
fn deepseek_shapes_are_models() {
    use GgmlType::*;
    for (name, total, queries) in [
        (
            "deepseek-v3",
            671e9,
            [("blk.3.attn_q_a.weight", Q4_K, &[7168, 1536][..]), ("blk.3.attn_q_b.weight", Q4_K, &[1536, 24_576])],
        ),
        (
            "deepseek-v2-lite",
            15.7e9,
            [("blk.3.attn_q.weight", Q4_K, &[2048, 3072][..]), ("blk.3.ffn_up_shexp.weight", Q4_K, &[2048, 2816])],
        ),
    ] {
        let named = ModelShape::named(name).unwrap();
        let plan = Plan::new(name, &named, &Mix::from_name("Q4_K_M").unwrap(), 0).unwrap();
        let weights: u64 = plan.tensors().iter().map(|t| t.spec.dims.iter().product::<u64>()).sum();
        assert!((weights as f64 / total - 1.0).abs() < 0.005, "{name}: {weights} weights");
        let all = types(&plan);
        let heads = u64::from(named.heads);
        // Rows of 128 are no whole blocks of Q4_K.
        let both = [
            ("blk.3.attn_k_b.weight", Q5_0, &[128, 512, heads][..]),
            ("blk.3.attn_v_b.weight", Q4_K, &[512, 128, heads]),
        ];
        for expected in queries.into_iter().chain(both) {
            assert!(all.contains(&expected), "{name}: {expected:?}");
        }

        let of = named.latent().unwrap();
        let latent = LatentShape {
            q_rank: of.q_rank.map(|_| 96),
            rank: 64,
            nope: 32,
            pe: 16,
            values: 32,
            dense_width: 96,
            ..of
        };
        let FfnShape::Moe(moe) = named.ffn else { unreachable!() };
        let ffn = FfnShape::Moe(Moe { width: 64, experts: 32, ..moe });
        let layers = of.dense_layers + 1;
        let shape = ModelShape { layers, vocab: 300, ffn, heads: 4, hidden: 256, latent: Some(latent), ..named };
        let plan = Plan::new(name, &shape, &Mix::from_name("Q4_K_M").unwrap(), 0).unwrap();
        let gguf = Gguf::from_bytes(name, std::sync::Arc::new(plan.to_bytes().unwrap())).unwrap();
        let model = Model::from_gguf(gguf).unwrap();
        assert_eq!((model.config.architecture.name, model.config.layers), ("deepseek2", layers as usize));
        assert!(model.tokenizer().is_ok(), "{name}");
    }
    let tiny = ModelShape { family: Family::DeepSeek2, ..ModelShape::named("tiny").unwrap() };
    let moe = |experts, used| ModelShape { ffn: FfnShape::Moe(Moe { experts, used, width: 64 }), ..tiny };
    for (shape, message) in [
        (moe(18, 4), "--experts: expected a multiple of 4 groups, of 2 at least, found 18"),
        (moe(16, 9), "--experts-used: expected 1 to 8, found 9"),
        (ModelShape { layers: 1, ..tiny }, "--layers: expected 2 to 4096, found 1"),
        (ModelShape { ffn: FfnShape::Dense(64), ..tiny }, "--family deepseek2: expected experts, found --dense"),
    ] {
        let error = Plan::new("t", &shape, &Mix::from_name("Q8_0").unwrap(), 0).err().unwrap();
        assert_eq!(error.to_string(), message);
    }
}

/// Latent attention adds to the stream what other attention does.
#[test]
fn latent_activations_neither_die_nor_explode() {
    let tiny = ModelShape { family: Family::DeepSeek2, layers: 16, vocab: 300, ..ModelShape::named("tiny").unwrap() };
    for latent in
        [LatentShape::DEFAULT, LatentShape { sigmoid: false, groups: [1, 1], q_rank: None, ..LatentShape::DEFAULT }]
    {
        let kept = run(&ModelShape { latent: Some(latent), ..tiny }, "Q4_K_M");
        for (layer, (part, stream)) in kept.of(Stage::AttnOut).zip(kept.of(Stage::LayerOut)).enumerate() {
            assert!((0.9..4.0).contains(&rms(stream)), "layer {layer}: rms {}", rms(stream));
            let share = rms(part) / rms(stream);
            assert!((0.02..0.5).contains(&share), "layer {layer}: attention is {share} of the stream");
        }
    }
}

#[test]
fn command_line_refuses_what_it_cannot_make() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m.gguf");
    let out = out.to_str().unwrap();
    for (args, message) in [
        (&["--kv-heads", "3"][..], "--kv-heads: expected a divisor of --heads 8, found 3"),
        (&["--quant", "Q9"], "expected one of F32, F16, BF16, Q4_0"),
        (&["--pure", "Q8_K"], "expected one of F32, F16, Q4_0"),
        (&["--shape", "huge"], "tiny, demo, qwen3-30b-a3b, qwen3-235b-a22b"),
        (&["--dense", "64", "--experts", "4"], "--dense"),
        (&["--family", "gemma3"], "--family gemma3: expected --dense, found experts"),
        (&["--family", "olmoe", "--dense", "64"], "--family olmoe: expected experts, found --dense"),
        (&["--family", "gpt2"], "qwen3, llama, qwen2"),
    ] {
        let (code, stderr) = synth(&[&[out], args].concat());
        assert!(code == 2 && stderr.contains(message), "{args:?}: {code} {stderr}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
