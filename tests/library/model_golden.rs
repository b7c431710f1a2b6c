//! The forward pass of the bundled model against float64 goldens from an independent implementation, at every stage, on each
//! backend; its tokenizer; and what it refuses.

use crate::common::{PROMPTS, golden, nmse, record};
use twinscope::backend::Backend;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use twinscope::backend::oracle::OracleBackend;
use twinscope::model::{LogitRows, Model, Session, forward};

/// transformers in float32 reaches 1e-13; 1e-11 leaves room for another order of sums, and nothing else.
const F32_NMSE: f64 = 1e-11;
/// The oracle differs from the goldens only by the rounding of float64.
const ORACLE_NMSE: f64 = 1e-22;

fn check_against_goldens<B: Backend>(new: impl Fn() -> B, limit: f64) {
    let model = Model::open(None).expect("the bundled model");
    for prompt in PROMPTS {
        let golden = golden(prompt);
        let backend = new();
        let name = backend.info().backend;
        let stages = record(backend, &model, &golden.tokens);
        assert_eq!(stages.keys().collect::<Vec<_>>(), golden.stages.keys().collect::<Vec<_>>(), "{name} {prompt}");
        for (key, expected) in &golden.stages {
            let found = &stages[key];
            if key.ends_with("router_ids") {
                assert_eq!(found.ids(), expected.ids(), "{name} {prompt} {key}");
            } else {
                let nmse = nmse(expected, found);
                assert!(nmse <= limit, "{name} {prompt} {key}: nmse {nmse:e}, limit {limit:e}");
            }
        }
    }
}

#[test]
fn oracle_equals_the_goldens() {
    check_against_goldens(OracleBackend::new, ORACLE_NMSE);
}

#[test]
fn cpu_equals_the_goldens_at_every_level() {
    for level in Level::available() {
        check_against_goldens(|| CpuBackend::new(Some(level), None).expect("an available level"), F32_NMSE);
    }
}

#[test]
fn gpu_equals_the_goldens() {
    let gpu =
        || GpuBackend::new(&AdapterSelector::Best, GpuOptions::default()).expect("a Vulkan, Metal or DX12 adapter");
    check_against_goldens(gpu, F32_NMSE);
}

#[test]
fn tokens_equal_the_goldens() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/prompts.json");
    let prompts: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let model = Model::open(None).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    for (name, prompt) in prompts.as_object().unwrap() {
        let text = prompt["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(prompt["tokens"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{name}");
        assert_eq!(tokenizer.decode(&expected).unwrap(), text, "{name}");
    }
}

/// Chunks and decode steps are the same computation, row by row: on a backend whose result for a row does not depend on
/// the other rows they are equal to the bit.
#[test]
fn chunked_prefill_and_decode_equal_one_call() {
    let model = Model::open(None).unwrap();
    let tokens = golden("ownership").tokens;
    let run = |chunk: usize| {
        let mut backend = CpuBackend::new(Some(Level::Scalar), None).unwrap();
        let mut session = Session::new(&mut backend, &model.config, tokens.len()).unwrap();
        let mut logits = None;
        for part in tokens.chunks(chunk) {
            logits = Some(forward(&mut backend, &model, &mut session, part, LogitRows::Last).unwrap());
        }
        assert_eq!(session.position(), tokens.len());
        backend.read(&logits.unwrap()).unwrap()
    };
    let whole = run(tokens.len());
    for chunk in [1, 7, 20] {
        assert!(run(chunk) == whole, "chunks of {chunk}");
    }
}

#[test]
fn what_cannot_be_run_is_refused() {
    let model = Model::open(None).unwrap();
    let mut backend = CpuBackend::new(Some(Level::Scalar), None).unwrap();
    let context = model.config.context;
    fn message<T>(r: twinscope::Result<T>) -> String {
        r.err().expect("an error").to_string()
    }
    assert!(message(Session::new(&mut backend, &model.config, context + 1)).contains("context length"));
    let mut session = Session::new(&mut backend, &model.config, 4).unwrap();
    let mut try_run = |tokens: &[u32]| message(forward(&mut backend, &model, &mut session, tokens, LogitRows::All));
    assert!(try_run(&[]).contains("empty"));
    assert!(try_run(&[1, 2048]).contains("token 2048 is not in the vocabulary"));
    assert!(try_run(&[1, 2, 3, 4, 5]).contains("room for 4"));
}
