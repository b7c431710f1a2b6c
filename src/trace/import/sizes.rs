//! What the names and shapes of a capture leave open about its model.

use super::names::Name;
use super::rules::Rules;
use super::{About, ImportOptions, Item};
use crate::model::{Architecture, Occurs, Router, Shared};
use crate::op::{LinearLayers, Mla};

/// The sizes of a model that a capture's names and shapes leave open.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSizes {
    /// Query heads.
    pub heads: Option<usize>,
    /// Whether what attention and FFN add is normalised.
    pub post_norms: bool,
    /// Whether the embedding is multiplied by √H, and whether llama.cpp multiplies queries by attention's scale, before their products with
    /// keys.
    #[serde(skip)]
    pub scaled_embedding: bool,
    #[serde(skip)]
    pub scaled_queries: bool,
    /// Key and value heads.
    pub kv_heads: Option<usize>,
    /// D.
    pub head_dim: Option<usize>,
    /// FFN width, of one expert in a mixture of experts.
    pub ffn: Option<usize>,
    /// FFN width of the layers without experts, where that is another.
    pub plain_ffn: Option<usize>,
    /// Whether the feed-forward part is a mixture of experts.
    pub moe: Option<bool>,
    /// Whether q, k and v have biases, which transformers' projections add themselves.
    pub qkv_bias: Option<bool>,
    /// Whether attention's output, router and experts have biases, likewise.
    pub biases: Option<bool>,
    /// Whether the experts are chosen by their logits, and the softmax is over the chosen.
    pub logits_choose: Option<bool>,
    /// How many layers, from the first, have a plain FFN for experts.
    pub leading_dense: Option<usize>,
    /// Which layers have no linear attention, every so-many-th; 0 where all are such.
    pub linear_interval: Option<usize>,
    /// Whether every token uses one more expert, and whether that has a gate.
    pub shared: Option<bool>,
    pub shared_gate: Option<bool>,
    /// Whether the experts' weights are multiplied by a number after they were divided by their sum.
    pub weights_scaled: Option<bool>,
    /// Whether attention is latent, and of which form; what its scores are multiplied by; whether its queries have a rank.
    #[serde(skip)]
    pub latent: Option<Mla>,
    #[serde(skip)]
    pub latent_scale: Option<f64>,
    #[serde(skip)]
    pub q_rank: Option<bool>,
}

impl ModelSizes {
    /// What is known of the model's sizes: from the model, else from the rules, else from the capture itself.
    pub fn of(items: &[Item], about: &About, rules: &Rules, options: &ImportOptions<'_>) -> Self {
        let known = match &options.model {
            Some((config, _)) => Self {
                heads: Some(config.heads),
                scaled_embedding: false,
                scaled_queries: false,
                kv_heads: Some(config.kv_heads),
                head_dim: Some(config.head_dim),
                ffn: Some(config.moe.as_ref().map_or(config.ffn, |moe| moe.ffn)),
                plain_ffn: Some(config.ffn),
                leading_dense: Some(config.layout().leading_dense),
                linear_interval: Some(config.linear.map_or(0, |linear| linear.interval)),
                shared: Some(config.layout().shared),
                shared_gate: Some(config.layout().shared_gate),
                weights_scaled: Some(config.moe.as_ref().is_some_and(|moe| moe.scale != 1.0)),
                moe: Some(config.moe.is_some()),
                qkv_bias: Some(config.qkv_bias),
                post_norms: config.layout().post_norms,
                biases: Some(config.layout().biases),
                logits_choose: Some(config.layout().logits_choose),
                latent: Some(config.layout().mla),
                latent_scale: config.attention_scale.filter(|_| config.mla.is_some()),
                q_rank: Some(config.layout().q_rank),
            },
            None => rules.sizes,
        };
        let architecture = Architecture::named(&about.architecture);
        let architecture = options.model.as_ref().map(|(config, _)| config.architecture).or(architecture);
        let has = |part: &str| items.iter().any(|item| item.label.contains(part));
        let moe = if about.architecture.contains("moe") || has("experts") || has("moe") {
            Some(true)
        } else if !about.architecture.is_empty() || has("gate_proj") || has("ffn_gate") {
            Some(false)
        } else {
            None
        };
        // llama.cpp's normed queries are [T, heads, D], as long as their heads are apart.
        let head_dim = items.iter().find_map(|item| match (Name::of(&item.label).bare, &item.shape[..]) {
            ("Qcur_normed" | "Kcur_normed", [_, _, dim]) => Some(*dim),
            _ => None,
        });
        let biased = || architecture.map(|a| a.qkv_bias == Occurs::Always);
        let qkv_bias = known.qkv_bias.or_else(biased);
        let biases = known.biases.or(architecture.map(|a| a.biases));
        let logits_choose = known.logits_choose.or(architecture.map(|a| a.router == Router::ChosenSoftmax));
        // Which layers have no experts only the model says, or the first layer of the capture that has some.
        let with_experts = |item: &Item| {
            let experts = item.label.contains("expert") || item.label.contains("ffn_moe");
            Name::of(&item.label).layer.filter(|_| experts).map(|n| n as usize)
        };
        let leading_dense = known.leading_dense.or_else(|| match architecture.is_some_and(|a| a.leading_dense) {
            false => Some(0),
            true => items.iter().filter_map(with_experts).min(),
        });
        let shared = known.shared.or(architecture.map(|a| a.shared_expert != Shared::No));
        let shared_gate = known.shared_gate.or(architecture.map(|a| a.shared_expert == Shared::Gated));
        let weights_scaled = known.weights_scaled.or(has("ffn_moe_weights_scaled").then_some(true));
        let post_norms = known.post_norms || has("post_feedforward_layernorm") || has("ffn_post_norm");
        let without = |a: &Architecture| a.linear.is_none().then_some(0);
        let linear_interval = known.linear_interval.or(architecture.and_then(without));
        // llama.cpp multiplies queries by what makes keys, or makes keys and values.
        let form = if has("q_nope_absorbed") {
            Some(Mla::Absorbed)
        } else {
            (has("k_nope_view") || has("Vcur_cont")).then_some(Mla::Plain)
        };
        let latent = known.latent.or(match architecture {
            Some(a) if !a.latent => Some(Mla::No),
            _ => form,
        });
        let (head_dim, moe) = (known.head_dim.or(head_dim), known.moe.or(moe));
        Self {
            head_dim,
            moe,
            qkv_bias,
            biases,
            logits_choose,
            post_norms,
            scaled_embedding: architecture.is_some_and(|a| a.scaled_embedding),
            scaled_queries: architecture.is_some_and(|a| a.name == "gemma3"),
            shared,
            shared_gate,
            weights_scaled,
            leading_dense,
            linear_interval,
            latent,
            ..known
        }
    }

    /// The widths of q, k and v.
    pub fn qkv(&self) -> Option<[usize; 3]> {
        let (heads, kv, dim) = (self.heads?, self.kv_heads?, self.head_dim?);
        Some([heads.checked_mul(dim)?, kv.checked_mul(dim)?, kv.checked_mul(dim)?])
    }

    /// Whether a layer has experts.
    pub fn moe_of(&self, layer: Option<u32>) -> Option<bool> {
        match (self.moe?, layer) {
            (false, _) => Some(false),
            (true, None) => Some(true),
            (true, Some(n)) => self.leading_dense.map(|dense| n as usize >= dense),
        }
    }

    /// Whether a layer has linear attention.
    pub fn linear_of(&self, layer: Option<u32>) -> Option<bool> {
        match (self.linear_interval?, layer) {
            (0, _) => Some(false),
            (interval, Some(n)) => Some(LinearLayers::AllButEach(interval).has(n as usize)),
            _ => None,
        }
    }

    /// Whether a layer has experts and one that every token uses.
    pub fn shared_of(&self, layer: Option<u32>) -> Option<bool> {
        match self.shared? {
            false => Some(false),
            true => self.moe_of(layer),
        }
    }
}
