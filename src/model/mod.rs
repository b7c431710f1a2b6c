//! A model: hyperparameters and weights from a GGUF file, its tokenizer, and the forward pass.
//!
//! - Weights are views of the mapped file; nothing is expanded.
//! - Every tensor's shape is checked against the hyperparameters, and a tensor that the forward pass would not use is
//!   an error: a bias that is silently left out is a wrong answer.

mod arch;
#[cfg(feature = "tokenizer")]
mod chat;
mod check;
mod config;
mod exchange;
mod forward;
mod load;
mod mla;
mod rotation;
mod run;
#[cfg_attr(not(feature = "tokenizer"), path = "no_tokenizer.rs")]
mod tokenizer;
mod weights;

use std::path::Path;
use std::sync::Arc;

pub use arch::{
    Architecture, DefaultKey, IgnoredKey, KeyRemark, KeyReport, LinearRule, LoaderBeside, Occurs, QkNorms, Router,
    Shared, WindowRule,
};
pub use check::{check, check_bytes};
pub use config::{Config, LinearConfig, MoeConfig};
pub use exchange::{WeightPair, WeightPlace};
pub use forward::{LogitRows, Session, forward};
pub use mla::MlaConfig;
pub use rotation::SlidingWindow;
pub use run::{Calls, Runner, tokens_sha256};
pub use tokenizer::Tokenizer;
pub use weights::{
    AttentionWeights, Ffn, LatentHeads, LatentWeights, LayerWeights, LinearWeights, Mixer, MoeBias, MoeWeights,
    PostNorms, QkNorm, QkvBias, SharedExpert, Weights,
};

use crate::backend::Need;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::op::{GgmlType, LinearLayers, Mla, OpKind, STAGES, Stage};

/// The model that is used when none is named: four layers of Qwen3-MoE, trained on the Rust documentation.
pub const BUNDLED_NAME: &str = "demo-moe-Q4_K_M";
#[cfg(feature = "demo-model")]
static BUNDLED: &[u8] = include_bytes!("../../models/demo-moe-Q4_K_M.gguf");

/// A model that can be run.
pub struct Model {
    /// Its hyperparameters.
    pub config: Config,
    /// Its weights.
    pub weights: Weights,
    /// Its tokenizer, or why there is none.
    pub tokenizer: Result<Tokenizer>,
    /// The file, for reports.
    pub gguf: Gguf,
}

impl Model {
    /// Opens a GGUF file, or the bundled model when `path` is `None`.
    ///
    /// # Errors
    /// An unreadable or malformed file, another architecture, a missing key, and a missing, misshapen or unknown tensor.
    /// A tokenizer that cannot be used is kept as an error in `tokenizer`, since token ids can be given directly.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        Self::from_gguf(open_gguf(path)?)
    }

    /// What is to be known before its numbers are held against another engine's.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = self.config.keys.elsewhere();
        for (names, what) in [
            (&self.weights.zero_biases, "zero, and not added"),
            (&self.weights.input_scales, "not read: scales for activations of four bits, which no backend here has"),
        ] {
            let [first, others @ ..] = &names[..] else { continue };
            let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            remarks.push(format!("{first}{more}: {what}"));
        }
        remarks
    }

    /// The model in a file that has been read.
    pub fn from_gguf(gguf: Gguf) -> Result<Self> {
        let config = Config::from_gguf(&gguf)?;
        let weights = Weights::from_gguf(&gguf, &config)?;
        let tokenizer = Tokenizer::from_gguf(&gguf);
        Ok(Self { config, weights, tokenizer, gguf })
    }

    /// The tokenizer, or why there is none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().map_err(|e| Error::input(format!("{e}; token ids can be given with --tokens")))
    }

    /// What the file's chat template makes of a user's message, after what the system says, up to where the model answers: the text that a
    /// server runs. What a template may do is bounded; it gets no tools, and nothing that is not said here: `variables` are what a caller of
    /// transformers' `apply_chat_template` says besides, or of llama-server in `chat_template_kwargs`.
    ///
    /// # Errors
    /// A file without a template, a template that is malformed, refuses the messages, or does not end, or a variable that every template has already.
    #[cfg(feature = "tokenizer")]
    pub fn chat(&self, system: Option<&str>, user: &str, variables: &[(String, serde_json::Value)]) -> Result<String> {
        const KEY: &str = "tokenizer.chat_template";
        let (name, meta) = (self.gguf.name(), &self.gguf.metadata);
        let Some(template) = meta.str_opt(KEY)? else {
            return Err(Error::input(format!("{name}: key {KEY} is missing: there is no chat template for --chat")));
        };
        if let Some((name, _)) = variables.iter().find(|(name, _)| chat::OWN.contains(&&**name)) {
            let message =
                format!("the chat template's variable {name:?}: another than {} expected", chat::OWN.join(", "));
            return Err(Error::usage(message));
        }
        let tokens = meta.str_array("tokenizer.ggml.tokens")?;
        let token = |key: &str| -> Result<String> {
            let id = meta.u32_opt(key)?;
            Ok(id.and_then(|id| tokens.get(id as usize)).cloned().unwrap_or_default())
        };
        let chat = chat::Chat {
            template: template.to_string(),
            bos: token("tokenizer.ggml.bos_token_id")?,
            eos: token("tokenizer.ggml.eos_token_id")?,
            system: system.map(str::to_string),
            user: user.to_string(),
            variables: variables.to_vec(),
            now: crate::environment::seconds_now(),
        };
        chat.render().map_err(|what| Error::input(format!("{name}: {KEY}: {what}")))
    }

    /// What a backend must be able to do to run this model.
    pub fn needs(&self) -> Vec<Need> {
        let heads = |op, cols, key: &str| {
            let name = format!("{}.{key}", self.config.architecture.name);
            Need { op, ty: GgmlType::F32, cols, name, experts: None }
        };
        let layers = self.config.layout().linear;
        let of = |stage| self.config.head_dim_of(stage);
        let attention = (layers != LinearLayers::All)
            .then(|| heads(OpKind::AttnScores, of(Stage::AttnScores), "attention.key_length"));
        // Of latent attention, values have a size of their own.
        let values = self.config.mla.map(|mla| {
            let stage = if mla.form == Mla::Absorbed { Stage::AttnLatent } else { Stage::AttnContext };
            heads(OpKind::AttnContext, of(stage), "attention.value_length")
        });
        let linear = self.config.linear.filter(|_| layers != LinearLayers::No);
        let linear = linear.map(|linear| heads(OpKind::DeltaRule, linear.head_dim, "ssm.state_size"));
        let weights = self.weights.all();
        let of_weights = weights.iter().flat_map(|w| {
            let ops = stages_of_weight(&w.name).map(|(_, op)| op);
            let tied =
                (w.name == "token_embd.weight" && Arc::ptr_eq(w, &self.weights.output)).then_some(OpKind::MatMul);
            let moe = self.config.moe.as_ref().map(|moe| [moe.experts, moe.used]);
            let experts = |op| moe.filter(|_| op == OpKind::ExpertMatMul);
            let need = |op| Need { op, ty: w.ty, cols: w.cols, name: w.name.clone(), experts: experts(op) };
            ops.chain(tied).map(need).collect::<Vec<_>>()
        });
        attention.into_iter().chain(values).chain(linear).chain(of_weights).collect()
    }
}

/// Opens a GGUF file, or the bundled one when `path` is `None`.
pub fn open_gguf(path: Option<&Path>) -> Result<Gguf> {
    match path {
        Some(path) => Gguf::open(path),
        #[cfg(feature = "demo-model")]
        None => Gguf::from_bytes(BUNDLED_NAME, Arc::new(BUNDLED)),
        #[cfg(not(feature = "demo-model"))]
        None => Err(Error::usage("no model is named, and this build has no demo model (feature `demo-model`)")),
    }
}

/// `attn_q.weight` of `blk.3.attn_q.weight`; other names as they are.
fn strip_layer(name: &str) -> &str {
    name.strip_prefix("blk.").and_then(|n| n.split_once('.')).map_or(name, |(_, rest)| rest)
}

/// The weights that are parts of a tensor, and the stages that each is the weight of.
const PARTS: [(&str, Stage); 8] = [
    ("attn_q.weight (q)", Stage::QProj),
    ("attn_q.weight (gate)", Stage::QGate),
    ("attn_kv_b.weight (keys)", Stage::KUp),
    ("attn_kv_b.weight (values)", Stage::VUp),
    ("ssm_ba.weight (beta)", Stage::LinearAttnB),
    ("ssm_ba.weight (alpha)", Stage::LinearAttnA),
    ("ffn_gate_up_exps.weight (gate)", Stage::ExpertGate),
    ("ffn_gate_up_exps.weight (up)", Stage::ExpertUp),
];

/// Weights that a stage has in some layouts for that of its row, and the operations that make it of them.
const OTHERS: [(&str, Stage, OpKind); 2] =
    [("attn_q_b.weight", Stage::QProj, OpKind::MatMul), ("attn_v_b.weight", Stage::AttnContext, OpKind::HeadMatMul)];

/// The names of the weights that are parts of this tensor, of a file in which it has any.
pub fn parts_of_tensor(name: &str) -> impl Iterator<Item = &'static str> {
    let start = format!("{} (", strip_layer(name));
    PARTS.iter().map(|(part, _)| *part).filter(move |part| part.starts_with(&start))
}

/// The stages that a weight of this name may be the weight of, and the operations that make them of it. A gate in `attn_q.weight` is a weight
/// by itself.
pub fn stages_of_weight(name: &str) -> impl Iterator<Item = (Stage, OpKind)> {
    let name = strip_layer(name);
    let part = PARTS.iter().find(|(part, _)| *part == name).map(|(_, stage)| *stage);
    let whole = name.to_string();
    let other = OTHERS.iter().find(|(other, ..)| *other == name).map(|&(_, stage, op)| (stage, op));
    let rows = STAGES.iter().filter(move |row| match part {
        Some(stage) => row.stage == stage,
        None => row.weight == Some(&whole) && row.stage != Stage::QGate,
    });
    rows.map(|row| (row.stage, row.op)).chain(other)
}
