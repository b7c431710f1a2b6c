//! A model: hyperparameters and weights from a GGUF file, its tokenizer, and the forward pass.
//!
//! - Weights are views of the mapped file; nothing is expanded.
//! - Every tensor's shape is checked against the hyperparameters, and a tensor that the forward pass would not use is
//!   an error: a bias that is silently left out is a wrong answer.

mod config;
mod forward;
mod run;
#[cfg_attr(not(feature = "tokenizer"), path = "no_tokenizer.rs")]
mod tokenizer;

use std::path::Path;
use std::sync::Arc;

pub use config::{Architecture, Config, MoeConfig};
pub use forward::{LogitRows, Session, forward};
pub use run::{Calls, Runner};
pub use tokenizer::Tokenizer;

use crate::backend::Need;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::op::{GgmlType, OpKind, STAGES, Weight};

/// The model that is used when none is named: four layers of Qwen3-MoE, trained on the Rust documentation.
pub const BUNDLED_NAME: &str = "demo-moe-Q4_K_M";
#[cfg(feature = "demo-model")]
static BUNDLED: &[u8] = include_bytes!("../../models/demo-moe-Q4_K_M.gguf");

/// The weights of one layer.
pub struct LayerWeights {
    /// `[H]`.
    pub attn_norm: Arc<Weight>,
    /// `[H, heads·D]`.
    pub attn_q: Arc<Weight>,
    /// `[H, kv_heads·D]`.
    pub attn_k: Arc<Weight>,
    /// `[H, kv_heads·D]`.
    pub attn_v: Arc<Weight>,
    /// `[D]`.
    pub attn_q_norm: Arc<Weight>,
    /// `[D]`.
    pub attn_k_norm: Arc<Weight>,
    /// `[heads·D, H]`.
    pub attn_output: Arc<Weight>,
    /// `[H]`.
    pub ffn_norm: Arc<Weight>,
    /// The feed-forward part.
    pub ffn: Ffn,
}

/// What follows attention in a layer.
pub enum Ffn {
    /// One feed-forward network: gate and up `[H, F]`, down `[F, H]`.
    #[allow(missing_docs)] // said above
    Dense { gate: Arc<Weight>, up: Arc<Weight>, down: Arc<Weight> },
    /// A mixture of experts.
    Moe(MoeWeights),
}

/// A router and its experts, each [E, F, H] or, for down, [E, H, F].
pub struct MoeWeights {
    /// `[H, E]`.
    pub router: Arc<Weight>,
    /// `[H, F, E]`.
    pub gate: Arc<Weight>,
    /// `[H, F, E]`.
    pub up: Arc<Weight>,
    /// `[F, H, E]`.
    pub down: Arc<Weight>,
    /// Experts used for one token, and whether their weights are renormalised: [`MoeConfig`]'s.
    pub used: usize,
    /// Whether the chosen experts' probabilities are divided by their sum.
    pub renormalise: bool,
}

/// The weights of a model.
pub struct Weights {
    /// [V, H]
    pub token_embd: Arc<Weight>,
    /// One for each layer.
    pub layers: Vec<LayerWeights>,
    /// `[H]`.
    pub output_norm: Arc<Weight>,
    /// [V, H]; `token_embd` itself where the file has no `output.weight`.
    pub output: Arc<Weight>,
}

impl Weights {
    /// Every weight once, in the order of the forward pass.
    pub fn all(&self) -> Vec<Arc<Weight>> {
        let mut all = vec![&self.token_embd];
        for l in &self.layers {
            all.extend([&l.attn_norm, &l.attn_q, &l.attn_k, &l.attn_v, &l.attn_q_norm, &l.attn_k_norm]);
            all.extend([&l.attn_output, &l.ffn_norm]);
            match &l.ffn {
                Ffn::Dense { gate, up, down } => all.extend([gate, up, down]),
                Ffn::Moe(m) => all.extend([&m.router, &m.gate, &m.up, &m.down]),
            }
        }
        all.push(&self.output_norm);
        if !Arc::ptr_eq(&self.output, &self.token_embd) {
            all.push(&self.output);
        }
        all.into_iter().cloned().collect()
    }
}

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

    /// The model in a file that has been read.
    pub fn from_gguf(gguf: Gguf) -> Result<Self> {
        let config = Config::from_gguf(&gguf)?;
        let weights = load_weights(&gguf, &config)?;
        let tokenizer = Tokenizer::from_gguf(&gguf);
        Ok(Self { config, weights, tokenizer, gguf })
    }

    /// The tokenizer, or why there is none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().map_err(|e| Error::input(format!("{e}; token ids can be given with --tokens")))
    }

    /// What a backend must be able to do to run this model.
    pub fn needs(&self) -> Vec<Need> {
        let attention = Need {
            op: OpKind::AttnScores,
            ty: GgmlType::F32,
            cols: self.config.head_dim,
            name: format!("{}.attention.key_length", self.config.architecture.name()),
        };
        let weights = self.weights.all();
        let of_weights = weights.iter().flat_map(|w| {
            let name = strip_layer(&w.name);
            let ops = STAGES.iter().filter(|s| s.weight == Some(name)).map(|s| s.op);
            let tied = (name == "token_embd.weight" && Arc::ptr_eq(w, &self.weights.output)).then_some(OpKind::MatMul);
            ops.chain(tied).map(|op| Need { op, ty: w.ty, cols: w.cols, name: w.name.clone() }).collect::<Vec<_>>()
        });
        std::iter::once(attention).chain(of_weights).collect()
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

/// Reads tensors by name, checks each shape, and remembers which were read.
struct Loader<'a> {
    gguf: &'a Gguf,
    used: std::collections::HashSet<String>,
}

impl Loader<'_> {
    fn weight(&mut self, name: &str, dims: [usize; 3]) -> Result<Arc<Weight>> {
        let bad = |what: String| Error::input(format!("{}: tensor {name}: {what}", self.gguf.name()));
        let info = self.gguf.tensor(name).ok_or_else(|| bad("is missing".into()))?;
        let mut found = [1; 3];
        if info.dims.len() > 3 {
            return Err(bad(format!("has {} dimensions", info.dims.len())));
        }
        for (slot, &d) in found.iter_mut().zip(&info.dims) {
            *slot = d as usize;
        }
        if found != dims {
            return Err(bad(format!("is {found:?}, expected {dims:?} by the hyperparameters")));
        }
        let (owner, start) = self.gguf.tensor_bytes(info);
        self.used.insert(name.to_string());
        Weight::new(name, info.ty, dims, owner, start, info.offset)
    }

    /// A norm's weight: a vector of f32.
    fn vector(&mut self, name: &str, len: usize) -> Result<Arc<Weight>> {
        let weight = self.weight(name, [len, 1, 1])?;
        if weight.ty != GgmlType::F32 {
            return Err(Error::input(format!("{}: tensor {name} is {}, expected F32", self.gguf.name(), weight.ty)));
        }
        Ok(weight)
    }
}

fn load_weights(gguf: &Gguf, c: &Config) -> Result<Weights> {
    let mut load = Loader { gguf, used: Default::default() };
    let token_embd = load.weight("token_embd.weight", [c.hidden, c.vocab, 1])?;
    let mut layers = Vec::new();
    for n in 0..c.layers {
        let name = |rest: &str| format!("blk.{n}.{rest}.weight");
        layers.push(LayerWeights {
            attn_norm: load.vector(&name("attn_norm"), c.hidden)?,
            attn_q: load.weight(&name("attn_q"), [c.hidden, c.q_width(), 1])?,
            attn_k: load.weight(&name("attn_k"), [c.hidden, c.kv_width(), 1])?,
            attn_v: load.weight(&name("attn_v"), [c.hidden, c.kv_width(), 1])?,
            attn_q_norm: load.vector(&name("attn_q_norm"), c.head_dim)?,
            attn_k_norm: load.vector(&name("attn_k_norm"), c.head_dim)?,
            attn_output: load.weight(&name("attn_output"), [c.q_width(), c.hidden, 1])?,
            ffn_norm: load.vector(&name("ffn_norm"), c.hidden)?,
            ffn: match &c.moe {
                None => Ffn::Dense {
                    gate: load.weight(&name("ffn_gate"), [c.hidden, c.ffn, 1])?,
                    up: load.weight(&name("ffn_up"), [c.hidden, c.ffn, 1])?,
                    down: load.weight(&name("ffn_down"), [c.ffn, c.hidden, 1])?,
                },
                Some(moe) => Ffn::Moe(MoeWeights {
                    router: load.weight(&name("ffn_gate_inp"), [c.hidden, moe.experts, 1])?,
                    gate: load.weight(&name("ffn_gate_exps"), [c.hidden, moe.ffn, moe.experts])?,
                    up: load.weight(&name("ffn_up_exps"), [c.hidden, moe.ffn, moe.experts])?,
                    down: load.weight(&name("ffn_down_exps"), [moe.ffn, c.hidden, moe.experts])?,
                    used: moe.used,
                    renormalise: moe.renormalise,
                }),
            },
        });
    }
    let output_norm = load.vector("output_norm.weight", c.hidden)?;
    let output = match gguf.tensor("output.weight") {
        Some(_) => load.weight("output.weight", [c.hidden, c.vocab, 1])?,
        None => token_embd.clone(),
    };
    if let Some(extra) = gguf.tensors().iter().find(|t| !load.used.contains(&t.name)) {
        return Err(Error::input(format!(
            "{}: tensor {} is not part of {} as it is computed here, and leaving it out would change the result",
            gguf.name(),
            extra.name,
            c.architecture.name()
        )));
    }
    Ok(Weights { token_embd, layers, output_norm, output })
}
