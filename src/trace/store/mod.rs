//! A trace on disk: a directory of `manifest.json` and safetensors files.
//!
//! Design:
//! - `layer-N.safetensors` holds layer N, `model.safetensors` the whole-model stages; keys are `layers.N.stage` and `stage`.
//!   f32 stays F32, f64 (the oracle's) F64, expert ids U32.
//! - The manifest says everything that the tensors do not: model, tokens, backend and contracts, statistics, and for each
//!   tensor which positions and experts its rows are. `schemas/manifest.schema.json` describes it.
//! - Values go to disk as they arrive, and a file is put in order when the run is over; memory holds neither a layer nor a
//!   stage of it. A run whose layers arrived in one piece each is put in order by writing the header in front.
//! - The directory is built under a hidden name beside the target, synced, and renamed: what bears the target's name is a whole trace.
//! - A trace that is read is untrusted: the manifest and the files are checked against the stage table and each other.
//!
//! With `--experts`, an `expert_*` tensor is `[rows, F or H]` instead of `[T, K, F or H]`, and `layers.N.expert_rows` (U32,
//! `[rows, 3]`) says for each row its position, its slot in router_ids order, and its expert.

#[doc(hidden)]
pub mod file;
mod layer;
mod reader;
mod writer;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::{BackendInfo, Contract, NamedContract};
use crate::environment::Environment;
use crate::op::{OpKind, STAGES, Site, Stage};

use super::stats::StageStats;

pub use reader::{Stored, Trace};
pub use writer::TraceWriter;

/// What `schema` in a manifest is.
pub const SCHEMA: &str = "twinscope.trace-manifest/1";
/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";

/// What a trace says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceManifest {
    /// What the manifest is, with its version.
    pub schema: String,
    /// The program and version that wrote it.
    pub program: String,
    /// What it was made with and on; absent in traces of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// Where an imported trace came from, and what of it could not be taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
    /// The tokens and how they were run.
    #[serde(flatten)]
    pub run: Run,
    /// Rows were kept of these experts only; absent: of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Vec<u32>>,
    /// Every tensor in the files, whole-model stages first, then layer by layer in order of execution.
    pub tensors: Vec<TraceTensor>,
    /// What was selected and is not there, and why.
    pub missing: Vec<Missing>,
    /// Statistics of every stage that was seen, saved or not.
    pub statistics: Vec<SiteStats>,
}

/// What was run, and on what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The model that was run.
    pub model: ModelInfo,
    /// The text that the tokens came from, where they came from a text.
    pub prompt: Option<String>,
    /// Every token that went in, position 0 first.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt; the rest was decoded.
    pub prompt_tokens: usize,
    /// [`tokens_sha256`](crate::model::tokens_sha256) of the prompt's; traces that were made before it do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_sha256: Option<String>,
    /// What ran it.
    pub backend: BackendInfo,
    /// The arithmetic that the backend promised, by operation.
    pub contracts: BTreeMap<String, Contract>,
}

/// The model, as far as a trace has to know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Tells two files apart; empty for an imported trace.
    pub fingerprint: String,
    /// By their GGUF keys.
    pub hyperparameters: serde_json::Map<String, serde_json::Value>,
}

/// Where an imported trace comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Imported {
    /// `aprt`, `safetensors`, …
    pub kind: String,
    /// The file or directory.
    pub path: String,
    /// The program that made it, with its version and device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// The command that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The name of the engine's arithmetic contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract: Option<String>,
    /// What was found there and has no stage here, one line each.
    pub unmapped: Vec<String>,
    /// What was not said there and was taken to be so, one line each.
    pub assumed: Vec<String>,
    /// What looks wrong in it, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A stored tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceTensor {
    /// `layers.N.stage` or `stage`.
    pub key: String,
    /// `None` for a whole-model stage.
    pub layer: Option<u32>,
    /// The stage.
    pub stage: String,
    /// The file that it is in.
    pub file: String,
    /// The type of its elements.
    pub dtype: String,
    /// Its axes.
    pub shape: Vec<usize>,
    /// Which positions its rows are, such as `0,5-9`.
    pub positions: String,
    /// The tensor that says which position, slot and expert each row is, where rows were kept of some experts only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<String>,
}

/// A stage that was selected and is not in the trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Missing {
    /// What it was called there.
    pub key: String,
    /// Why it has no stage here.
    pub why: String,
}

/// The statistics of one stage of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteStats {
    /// `None` for a whole-model stage.
    pub layer: Option<u32>,
    /// The stage.
    pub stage: String,
    /// Its statistics.
    #[serde(flatten)]
    pub stats: StageStats,
}

impl SiteStats {
    /// The entry of a site.
    pub fn new((site, stats): (Site, StageStats)) -> Self {
        Self { layer: site.layer, stage: site.stage.name().into(), stats }
    }
}

/// The contract of every operation that makes a stage, by the operation's name, and of each stage that has another, by [`stage_key`].
pub fn contracts(of: &NamedContract) -> BTreeMap<String, Contract> {
    let ops = STAGES.iter().map(|row| (op_name(row.op), *of.get(row.op)));
    ops.chain(of.stages.iter().map(|(stage, contract)| (stage_key(*stage), *contract))).collect()
}

/// Where a manifest has the contract of a stage that differs from its operation's.
pub fn stage_key(stage: Stage) -> String {
    format!("stage.{}", stage.name())
}

/// `rms_norm` for [`OpKind::RmsNorm`].
pub fn op_name(op: OpKind) -> String {
    let mut name = String::new();
    for c in format!("{op:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(c.to_lowercase());
    }
    name
}

/// The name of the file that has `layer`'s tensors.
fn file_name(layer: Option<u32>) -> String {
    match layer {
        Some(n) => format!("layer-{n}.safetensors"),
        None => "model.safetensors".into(),
    }
}

/// The key of the tensor that says which rows of `layer` were kept.
fn expert_rows_key(layer: u32) -> String {
    format!("layers.{layer}.expert_rows")
}

/// The site that `layer` and the name `stage` mean, if there is such a stage and it belongs to a layer or not, as said.
fn site_of(layer: Option<u32>, stage: &str) -> Option<Site> {
    let stage = Stage::from_name(stage)?;
    let whole = stage.info().scope == crate::op::Scope::Model;
    (whole == layer.is_none()).then_some(Site { layer, stage })
}

#[cfg(test)]
mod tests;
