//! `manifest.json` of a repro folder. `schemas/repro.schema.json` describes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::case::Provenance;
use super::verdict::Figures;
use crate::backend::{BackendInfo, Contract};
use crate::environment::Environment;
use crate::op::OpParams;

/// What `schema` in a manifest is.
pub const SCHEMA: &str = "twinscope.repro/1";
pub const MANIFEST: &str = "manifest.json";
pub const README: &str = "README.txt";
/// Operands, the oracle's result, the floors, the subject's result.
pub const TENSORS: &str = "tensors.safetensors";
/// The weight's blocks as ggml stores them, `[experts, rows, cols]`.
pub const WEIGHT: &str = "weight.bin";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReproManifest {
    pub schema: String,
    /// The program and version that wrote it.
    pub program: String,
    /// What it was made with and on; absent in folders of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// `null` for the whole-model stages.
    pub layer: Option<u32>,
    pub stage: String,
    pub op: OpParams,
    /// The names of the operands, in the order in which the operation takes them: tensors `input.NAME`.
    pub inputs: Vec<TensorEntry>,
    pub output: TensorEntry,
    pub weight: Option<WeightEntry>,
    /// Where in the whole stage the rows, columns and so on of this case come from.
    pub kept: Provenance,
    /// The model's, for reading columns as heads.
    pub head_dim: usize,
    pub subject: SideEntry,
    pub reference: Reference,
    /// Of this case, run alone.
    pub alone: Figures,
    /// Of the whole stage, in the run.
    pub in_the_run: InTheRun,
    pub shrinking: Shrinking,
    pub origin: OriginEntry,
    pub adapter: Option<AdapterEntry>,
    /// In order; empty unless the subject is a GPU.
    pub dispatches: Vec<DispatchEntry>,
    /// What must not have changed. Shaders are not among them: they are there to be edited.
    pub files: Vec<FileEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightEntry {
    /// The GGUF tensor's name.
    pub name: String,
    #[serde(rename = "type")]
    pub ty: String,
    pub cols: usize,
    pub rows: usize,
    pub experts: usize,
    /// Of the tensor's first byte in the model's file.
    pub file_offset: u64,
    /// What products with each expert are multiplied by; left out where they are by nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scales: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SideEntry {
    pub info: BackendInfo,
    /// What the floors are derived from.
    pub contract: Contract,
    /// The contract's name, where it is not the one that the side promises.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_to: Option<String>,
}

/// The other side, on the same operands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    pub info: BackendInfo,
    pub figures: Figures,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InTheRun {
    pub shape: Vec<usize>,
    pub figures: Figures,
    /// Where the error sits, in words.
    pub pattern: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shrinking {
    pub runs: usize,
    /// Whether the bound on runs ended it.
    pub stopped: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginEntry {
    pub model: String,
    pub architecture: String,
    pub fingerprint: String,
    /// Every token of the run; the first `prompt_tokens` of them went in `chunk` at a time, the others one by one.
    pub tokens: Vec<u32>,
    pub prompt_tokens: usize,
    pub chunk: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterEntry {
    pub name: String,
    pub api: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub driver: String,
    pub vendor: u32,
    pub device: u32,
    pub subgroup_sizes: [u32; 2],
    pub limits: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DispatchEntry {
    /// `kernel` or `kernel/TYPE`.
    pub kernel: String,
    /// The file with its source; entry point `main`.
    pub shader: String,
    /// `var<immediate>`, as 32-bit words.
    pub immediates: Vec<u32>,
    pub workgroups: [u32; 3],
    /// Of `@group(0)`.
    pub bindings: Vec<BindingEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindingEntry {
    pub binding: u32,
    /// `read`: as it was before the dispatch. `write`: as the dispatch left it.
    pub access: String,
    pub bytes: u64,
    pub file: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}
