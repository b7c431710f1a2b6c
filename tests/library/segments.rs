//! Sides that show a part of their values: captures of other engines, and backends of which only some stages are seen.

use std::path::Path;
use std::sync::Arc;

use twinscope::backend::contract::named;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::oracle::OracleBackend;
use twinscope::backend::{AnyBackend, Erased, Showing};
use twinscope::diff::outcome::{Comparison, Verdict};
use twinscope::diff::run::driver::{DiffOptions, DiffProgress, Sides, diff};
use twinscope::diff::run::infer::infer;
use twinscope::gguf::Gguf;
use twinscope::model::Model;
use twinscope::op::{GgmlType, Site, Stage};
use twinscope::synth::{FfnShape, Mix, ModelShape, Moe, Plan};
use twinscope::trace::import::{ImportOptions, Importer, import};
use twinscope::trace::recorded::Recorded;
use twinscope::trace::select::stages_in;
use twinscope::trace::store::Trace;

fn cpu(level: Level) -> AnyBackend {
    Box::new(Erased(CpuBackend::new(Some(level), None).expect("every processor has it")))
}

/// A capture of the fixtures as a side, with what it says was run.
fn captured(model: &Model, name: &str) -> (AnyBackend, DiffOptions) {
    let guard = tempfile::tempdir().unwrap();
    let out = guard.path().join("trace");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/captures/{name}.safetensors"));
    import(Importer::Capture, &[path], &ImportOptions::default(), &out).unwrap();
    let trace = Trace::open(&out).unwrap();
    let run = trace.manifest().run.clone();
    let (prompt, decoded) = run.tokens.split_at(run.prompt_tokens);
    let options = DiffOptions {
        forced: decoded.to_vec(),
        decode: decoded.len(),
        shares: false,
        ..DiffOptions::new(prompt.to_vec())
    };
    // Its files are open, and stay until they are closed.
    (Box::new(Erased(Recorded::new(trace, model).unwrap())), options)
}

/// Holds a capture against the scalar CPU backend.
fn judged(name: &str, contract: Option<&str>) -> Comparison {
    judged_of(&Model::open(None).unwrap(), name, contract)
}

/// The tiny model of a family.
fn family(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/families/{name}.gguf"));
    Model::open(Some(&path)).unwrap()
}

/// Holds a capture of another model against the scalar CPU backend.
fn judged_of(model: &Model, name: &str, contract: Option<&str>) -> Comparison {
    let (mut subject, mut options) = captured(model, name);
    options.contracts[1] = contract.map(|name| named(name).unwrap());
    let mut reference = cpu(Level::Scalar);
    diff(model, Sides { reference: &mut reference, subject: &mut subject, judged: true }, &options).unwrap()
}

/// What transformers 5.24 computed of each family in float32, its own code, as `capture/hf_transformers.py --gguf` took it.
#[test]
fn transformers_is_within_float32_in_every_family() {
    let names = ["llama", "mixtral", "mistral3", "qwen2moe", "qwen3-yarn", "olmoe", "gemma3", "gpt-oss", "glm4moe"];
    for name in names.into_iter().chain(["qwen3next", "qwen35moe", "qwen35", "deepseek3", "deepseek2"]) {
        let found = judged_of(&family(name), &format!("families/{name}"), None);
        let (compared, _) = found.counts();
        assert!(found.agrees() && compared >= 37, "{name}: {compared} compared, {:?}", found.fault());
    }
}

/// In float64 throughout it is what the oracle is, to the rounding of float64.
#[test]
fn transformers_in_float64_is_within_the_rounding_of_float64() {
    for name in ["gemma3", "qwen3-yarn"] {
        let model = family(name);
        let (mut subject, options) = captured(&model, &format!("families/{name}-f64"));
        let mut oracle: AnyBackend = Box::new(Erased(OracleBackend::new()));
        let mut scalar = cpu(Level::Scalar);
        for reference in [&mut oracle, &mut scalar] {
            let wide = reference.info().backend == "oracle";
            let found = diff(&model, Sides { reference, subject: &mut subject, judged: true }, &options).unwrap();
            let (compared, _) = found.counts();
            assert!(found.agrees() && compared >= 41, "{name}: {compared} compared, {:?}", found.fault());
            let nmse = found.stages.iter().filter_map(|s| s.total.metrics()).map(|m| m.nmse).fold(0.0, f64::max);
            assert!(!wide || nmse < 1e-26, "{name}: {nmse:e}");
        }
        // What is right in float64 is not in f32.
        let narrow = judged_of(&model, &format!("families/{}", name), Some("transformers-f64"));
        assert!(!narrow.agrees(), "{name}");
    }
}

/// The same in 16 bits of the families of which its code does something otherwise there, each under the contract of its family.
#[test]
fn transformers_in_16_bits_is_within_the_contract_of_its_family() {
    for (name, dtype, contract) in [
        ("gemma3", "bf16", "gemma3"),
        ("gpt-oss", "bf16", "gpt-oss"),
        ("gpt-oss", "f16", "gpt-oss"),
        ("glm4moe", "bf16", "glm4moe"),
        ("deepseek2", "bf16", "deepseek2"),
        ("deepseek3", "bf16", "deepseek2"),
        ("qwen3next", "bf16", "qwen3next"),
        ("qwen35moe", "bf16", "qwen35moe"),
        ("qwen35", "bf16", "qwen35"),
    ] {
        let model = family(name);
        let found = judged_of(&model, &format!("families/{name}-{dtype}"), None);
        let (compared, _) = found.counts();
        assert!(found.agrees() && compared >= 40, "{name} in {dtype}: {compared} compared, {:?}", found.fault());
        let expected = format!("transformers-{dtype}+{contract}: transformers in ");
        assert!(found.subject.info.contract.starts_with(&expected), "{name}: {}", found.subject.info.contract);
    }
}

/// A mistake in each family, of which only a layer or two are seen, in bf16.
#[test]
fn mistakes_are_found_in_captures_in_16_bits() {
    for (name, mistake, layer, stage, id) in [
        ("gemma3", "no-scale", None, Stage::Embedding, "embedding-scale"),
        ("gpt-oss", "other-sinks", Some(1), Stage::AttnProbs, "attention-sink"),
        ("glm4moe", "no-weight-scale", Some(2), Stage::RouterWeights, "weights-scale"),
        ("deepseek2", "no-latent-norm", Some(0), Stage::KvNorm, "norm-missing"),
        ("deepseek3", "no-latent-norm", Some(0), Stage::KvNorm, "norm-missing"),
        ("qwen3next", "no-dt-bias", Some(0), Stage::LinearAttnDt, "bias"),
        ("qwen35moe", "no-dt-bias", Some(0), Stage::LinearAttnDt, "bias"),
        ("qwen35", "no-dt-bias", Some(0), Stage::LinearAttnDt, "bias"),
    ] {
        let found = judged_of(&family(name), &format!("families/{name}-bf16-{mistake}"), None);
        let fault = found.fault().unwrap_or_else(|| panic!("{name}: {mistake} is not found"));
        let site = layer.map_or(Site::model(stage), |layer| Site::layer(layer, stage));
        let cause = fault.cause.as_ref().map(|cause| (cause.id, cause.reproduced));
        assert_eq!(
            (fault.site, fault.verdict.clone(), cause),
            (site, Verdict::SubjectWrong, Some((id, true))),
            "{name}"
        );
    }
}

/// A bias that a module adds itself is behind its product, which nothing shows: both are in bf16 as what is shown.
#[test]
fn what_nothing_shows_alone_is_inferred_from_the_engine() {
    let model = family("qwen2");
    let (mut subject, mut options) = captured(&model, "families/qwen2-bf16");
    let mut reference = cpu(Level::Scalar);
    let mut sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
    let found = infer(&model, &mut sides, &options, 1, &mut |_| ()).unwrap();
    let hidden = found.lines.iter().find(|line| line.starts_with("as in transformers-bf16"));
    assert!(hidden.is_some_and(|line| line.contains("bias")), "{:?}", found.lines);
    options.contracts[1] = Some(found.contract);
    let judged = diff(&model, sides.reborrow(), &options).unwrap();
    assert!(judged.agrees(), "{:?}", judged.fault());
}

#[test]
fn llama_cpp_is_within_its_contract_and_int8_is_named_under_f32() {
    let own = judged("llama.cpp", None);
    let (compared, _) = own.counts();
    assert!(own.agrees() && compared > 90, "{compared}: {:?}", own.fault());

    let strict = judged("llama.cpp", Some("f32"));
    let fault = strict.fault().unwrap();
    let cause = fault.cause.as_ref().unwrap();
    assert_eq!((fault.site, cause.reproduced, cause.id), (Site::layer(0, Stage::QProj), true, "int8-activations"));
}

/// A model of NVFP4 with scales, which `synth` makes again from the same numbers, as llama.cpp runs it (`scripts/nvfp4.sh`).
#[test]
fn llama_cpp_multiplies_by_the_scales_of_nvfp4() {
    let moe = FfnShape::Moe(Moe { experts: 4, used: 2, width: 64 });
    let small = ModelShape {
        hidden: 128,
        layers: 1,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        ffn: moe,
        vocab: 300,
        ..ModelShape::named("tiny").unwrap()
    };
    let bytes = Plan::new("synth tiny NVFP4 seed 0", &small, &Mix::pure(GgmlType::NVFP4).unwrap(), 0)
        .unwrap()
        .to_bytes()
        .unwrap();
    let mut model = Model::from_gguf(Gguf::from_bytes("nvfp4", Arc::new(bytes)).unwrap()).unwrap();
    let found = judged_of(&model, "nvfp4", None);
    let (compared, _) = found.counts();
    assert!(found.agrees() && compared > 20, "{compared}: {:?}", found.fault());

    // A reference without the scales: it is the one that is wrong.
    for layer in &mut model.weights.layers {
        for weight in layer.all_mut().into_iter().filter(|w| !w.scales.is_empty()) {
            *weight = weight.scaled(vec![]).unwrap();
        }
    }
    let without = judged_of(&model, "nvfp4", None);
    assert_eq!(without.fault().map(|f| f.site), Some(Site::layer(0, Stage::QProj)));
}

#[test]
fn llama_cpp_with_flash_attention_is_judged_in_segments() {
    let flash = judged("llama.cpp-flash", None);
    assert!(flash.agrees(), "{:?}", flash.fault());
    assert!(flash.hidden() > 0);
    let scores = flash.stages.iter().find(|s| s.site == Site::layer(0, Stage::AttnScores)).unwrap();
    assert_eq!(scores.verdict, Verdict::Hidden);
    assert!(!judged("llama.cpp-flash", Some("f32")).agrees());
}

#[test]
fn a_contract_is_inferred_from_errors() {
    let model = Model::open(None).unwrap();
    for (capture, expected) in
        [("llama.cpp", "llama.cpp-cpu"), ("transformers-f32", "f32"), ("transformers-bf16", "transformers-bf16")]
    {
        let (mut subject, options) = captured(&model, capture);
        let mut reference = cpu(Level::Scalar);
        let mut sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
        let mut told = 0;
        let mut progress = |p: DiffProgress| {
            assert!(p.done < p.of, "{capture}: {} of {}", p.done, p.of);
            told += 1;
        };
        let found = infer(&model, &mut sides, &options, 1, &mut progress).unwrap();
        assert!(told > 0, "{capture}: nobody is told how far it is");
        assert!(found.unexplained.is_empty(), "{capture}: {:?}", found.unexplained);
        let all = format!("{} {}", found.contract.text, found.lines.join(" "));
        let named = [format!("within {expected},"), format!("{expected} explains")];
        assert!(named.iter().any(|name| all.contains(name)), "{capture}: {all}");
    }
}

/// Ten bugs in transformers, of which only the layers' outputs and the last logits are seen: the layer, and the mistake inside it.
#[test]
fn bugs_are_named_from_layer_outputs_alone() {
    let right = judged("bugs/none", None);
    assert!(right.agrees(), "{:?}", right.fault());
    for (bug, layer, id, stages) in [
        ("rope-pairing", 0, "rope-pairing", &["q_rope", "k_rope"][..]),
        ("rope-base", 0, "rope-base", &["q_rope", "k_rope"]),
        ("position-offset", 0, "rope-position", &["q_rope"]),
        ("eps", 0, "norm-eps", &["attn_norm"]),
        ("no-q-norm", 1, "norm-missing", &["q_norm"]),
        ("kv-head", 2, "kv-head", &["attn_scores", "attn_context"]),
        ("mask", 0, "mask", &["attn_scores", "attn_probs", "attn_context"]),
        ("no-renormalisation", 1, "renormalisation", &["router_weights"]),
        ("gate-up-swapped", 3, "gate-up", &["expert_act"]),
        ("other-expert", 2, "expert-offset", &["expert_gate", "expert_up", "expert_down"]),
    ] {
        let found = judged(&format!("bugs/{bug}"), None);
        let fault = found.fault().unwrap_or_else(|| panic!("{bug} was not seen"));
        assert_eq!(
            (fault.site, &fault.verdict),
            (Site::layer(layer, Stage::LayerOut), &Verdict::SubjectWrong),
            "{bug}"
        );
        assert!(fault.segment.as_ref().is_some_and(|segment| segment.hidden.len() > 20), "{bug}");
        let cause = fault.cause.as_ref().unwrap_or_else(|| panic!("{bug} was not explained"));
        let mut named =
            std::iter::once((cause.id, &cause.stages)).chain(cause.others.iter().map(|o| (o.id, &o.stages)));
        assert!(cause.reproduced && named.any(|(i, at)| i == id && at == stages), "{bug}: {cause:?}");
    }
}

#[test]
fn a_correct_backend_agrees_whatever_is_shown_of_it() {
    let model = Model::open(None).unwrap();
    // What no later stage shows is not compared: after the layers the norm and the logits, after a layer's last attn_probs v_proj and all that follows.
    let shown = [
        ("logits", 0),
        ("layer_out", 2),
        ("attn_out,moe_out", 3),
        ("q_rope,router_probs,moe_out,logits", 0),
        ("router_ids,layer_out", 2),
        ("attn_probs", 17),
    ];
    for (shown, after) in shown {
        let mut reference = cpu(Level::Scalar);
        let mut subject: AnyBackend = Box::new(Showing::new(cpu(Level::Scalar), &stages_in(shown).unwrap()));
        let options = DiffOptions { decode: 2, shares: false, ..DiffOptions::new(vec![422, 472, 345, 339, 293]) };
        let sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
        let found = diff(&model, sides, &options).unwrap();
        assert!(found.agrees(), "{shown}: {:?}", found.fault());
        assert!(found.stages.iter().all(|s| s.verdict != Verdict::Hidden || s.ratio.is_none()), "{shown}");
        let (compared, not) = found.counts();
        assert_eq!((compared + found.hidden(), not), (3 * (99 - after), 3 * after), "{shown}");
    }
}

#[test]
fn without_the_oracle_nothing_stands_in_for_what_is_hidden() {
    let model = Model::open(None).unwrap();
    let mut reference = cpu(Level::Scalar);
    let mut subject: AnyBackend = Box::new(Showing::new(cpu(Level::Scalar), &[Stage::Logits]));
    let sides = Sides { reference: &mut reference, subject: &mut subject, judged: false };
    let refused = diff(&model, sides, &DiffOptions::new(vec![1, 2])).unwrap_err();
    assert!(refused.to_string().contains("without the oracle"), "{refused}");
}
