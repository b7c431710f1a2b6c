//! What several tests share: goldens, and a recorder of stages.
#![allow(dead_code)] // each test binary uses its own part

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use twinscope::backend::Backend;
use twinscope::model::{LogitRows, Model, Session, forward};
use twinscope::op::{At, HostTensor, Site};
use twinscope::trace::{StageObserver, Traced};

/// The prompts with golden activations.
pub const PROMPTS: [&str; 3] = ["main", "ownership", "one"];

/// A golden run: transformers in float64 over weights that gguf-py dequantized.
pub struct Golden {
    pub tokens: Vec<u32>,
    /// By trace key: `layers.N.stage` or `stage`.
    pub stages: BTreeMap<String, HostTensor>,
}

pub fn golden(prompt: &str) -> Golden {
    golden_at(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{prompt}.safetensors")))
}

pub fn golden_at(path: &Path) -> Golden {
    let bytes = std::fs::read(path).expect("a golden file");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a safetensors header");
    let tokens =
        header.metadata().as_ref().expect("metadata")["tokens"].split(',').map(|t| t.parse().unwrap()).collect();
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let stages = file
        .iter()
        .map(|(key, view)| {
            let shape = view.shape();
            let value = match view.dtype() {
                safetensors::Dtype::F64 => {
                    let values = view.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
                    HostTensor::f64(shape, values)
                }
                safetensors::Dtype::I32 => {
                    let ids = view.data().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
                    HostTensor::u32(shape, ids)
                }
                other => panic!("{key} is {other:?}"),
            };
            (key.to_string(), value)
        })
        .collect();
    Golden { tokens, stages }
}

/// Σ(a−b)² / Σa², a the reference.
pub fn nmse(reference: &HostTensor, subject: &HostTensor) -> f64 {
    assert_eq!(reference.shape, subject.shape);
    let (a, b) = (reference.to_f64(), subject.to_f64());
    let error: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    let norm: f64 = a.iter().map(|a| a * a).sum();
    if error == 0.0 { 0.0 } else { error / norm }
}

/// Keeps every stage of one call.
#[derive(Default)]
pub struct Recorder(pub BTreeMap<String, HostTensor>);

impl StageObserver for Recorder {
    fn wants(&self, _: Site) -> bool {
        true
    }
    fn observe(&mut self, At { site, .. }: At, values: HostTensor) -> twinscope::Result<()> {
        assert!(self.0.insert(site.key(), values).is_none(), "{site} was observed twice in one call");
        Ok(())
    }
}

/// Every stage of a run of `tokens` in one call.
pub fn record<B: Backend>(backend: B, model: &Model, tokens: &[u32]) -> BTreeMap<String, HostTensor> {
    let mut traced = Traced::new(backend, Recorder::default());
    let mut session = Session::new(&mut traced, &model.config, tokens.len()).expect("a session");
    forward(&mut traced, model, &mut session, tokens, LogitRows::All).expect("a forward pass");
    traced.finish().expect("every tap").1.0
}
