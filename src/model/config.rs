//! Hyperparameters: what a file's keys say, read by the definition of its architecture.
//!
//! A key that changes the arithmetic has a default only where the definition has one ([`Architecture`]): a rope base or an eps that is
//! made up gives a model that is wrong in a way that is hard to see. `attention.layer_norm_rms_epsilon`, for one, has none.

use super::arch::{Architecture, KeyReport, Keys, Occurs, QkNorms, Router, Shared};
use super::mla::MlaConfig;
use super::rotation::{SlidingWindow, rotation, window};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::op::{GroupScore, Groups, LayerLayout, LinearLayers, Mla, Rotation, Scope, Stage};

/// What a layer's router chooses among, as [`Router`] says.
#[derive(Clone, Debug, serde::Serialize)]
pub struct MoeConfig {
    /// E, experts in a layer.
    pub experts: usize,
    /// K, experts used for one token.
    pub used: usize,
    /// F, FFN width of one expert.
    pub ffn: usize,
    /// Whether the chosen experts' weights are divided by their sum: as the architecture has it, or `expert_weights_norm`.
    pub renormalise: bool,
    /// What the chosen experts' weights are multiplied by, `expert_weights_scale`.
    pub scale: f32,
    /// FFN width of the expert that every token uses; 0 where there is none.
    pub shared: usize,
    /// How many layers, from the first, have a plain FFN, `leading_dense_block_count`.
    pub leading_dense: usize,
    /// How experts are chosen and weighed: [`Router::Stated`] is what the file says.
    #[serde(skip)]
    pub router: Router,
    /// Whether a bias is added for the choice.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub choice_bias: bool,
    /// Groups of experts, of which some are chosen from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Groups>,
}

/// Linear attention: a gated delta rule behind a convolution.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct LinearConfig {
    /// Every so-many-th layer has attention over all positions, `full_attention_interval`.
    pub interval: usize,
    /// `ssm.group_count`.
    pub key_heads: usize,
    /// `ssm.time_step_rank`.
    pub value_heads: usize,
    /// Of keys and of values, `ssm.state_size`.
    pub head_dim: usize,
    /// L, positions that the convolution sees, `ssm.conv_kernel`.
    pub kernel: usize,
    /// Which key head a value head has: h mod key heads, or h / (value heads / key heads).
    pub tiled: bool,
}

impl LinearConfig {
    /// Width of a row of queries or keys.
    pub fn key_width(&self) -> usize {
        self.key_heads * self.head_dim
    }
    /// Width of a row of values.
    pub fn value_width(&self) -> usize {
        self.value_heads * self.head_dim
    }
    /// C, width of a row of queries, keys and values.
    pub fn channels(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }
}

/// Hyperparameters.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Config {
    /// What its files mean.
    pub architecture: &'static Architecture,
    /// `general.name`, or the file's name.
    pub name: String,
    /// How many layers are run.
    pub layers: usize,
    /// How many of the file's layers come after these, and guess further tokens.
    pub predicting_layers: usize,
    /// H.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// D; not always hidden / heads.
    pub head_dim: usize,
    /// V.
    pub vocab: usize,
    /// The longest sequence, in positions.
    pub context: usize,
    /// How rope turns q and k; its factors, if it has some, are a weight.
    pub rotation: Rotation<()>,
    /// Layers with a sliding window, and what is theirs.
    pub window: Option<SlidingWindow>,
    /// What q·k is multiplied by; `None`: 1/√D.
    pub attention_scale: Option<f64>,
    /// What the embedding is multiplied by.
    pub embedding_scale: f64,
    /// Added to the mean of squares in norms.
    pub eps: f32,
    /// FFN width of a layer without experts; 0 where every layer has some.
    pub ffn: usize,
    /// What a mixture of experts has besides; `None` in a dense model.
    pub moe: Option<MoeConfig>,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether q and k are normalised.
    pub qk_norm: bool,
    /// Layers with linear attention, in models that have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linear: Option<LinearConfig>,
    /// Multi-head latent attention, in models that have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mla: Option<MlaConfig>,
    /// Keys that the file lacks, and those that are not read.
    #[serde(skip)]
    pub keys: KeyReport,
}

impl Config {
    /// Width of a row of q: heads·D.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// Width of a row of k or v, kv_heads·D, or of what latent attention stores.
    pub fn kv_width(&self) -> usize {
        self.mla.map_or(self.kv_heads * self.head_dim, |mla| mla.row())
    }
    /// Width of a row of what attention gives: heads·D of values.
    pub fn context_width(&self) -> usize {
        self.heads * self.mla.map_or(self.head_dim, |mla| mla.value_dim)
    }
    /// Widths of a row of keys and of values in the caches.
    pub fn cache_widths(&self) -> [usize; 2] {
        match self.mla {
            None => [self.kv_width(); 2],
            Some(mla) if mla.form == Mla::Absorbed => [mla.row(), mla.rank],
            Some(_) => [self.q_width(), self.context_width()],
        }
    }
    /// D of a stage: that of attention's heads, or of linear attention's.
    pub fn head_dim_of(&self, stage: Stage) -> usize {
        let linear = self.linear.filter(|_| stage.info().scope == Scope::LinearLayer);
        match (linear, self.mla) {
            (Some(linear), _) => linear.head_dim,
            (None, Some(mla)) => mla.head_dim_of(stage, self.head_dim),
            (None, None) => self.head_dim,
        }
    }
    /// How many keys a position sees in a layer; `None`: all up to its own.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.sliding(layer).map(|window| window.keys)
    }
    /// How rope turns q and k in a layer.
    pub fn rotation_of(&self, layer: usize) -> Rotation<()> {
        self.sliding(layer).map_or(self.rotation, |window| window.rotation)
    }
    fn sliding(&self, layer: usize) -> Option<&SlidingWindow> {
        self.window.as_ref().filter(|window| layer % window.period + 1 < window.period)
    }
    /// Whether a layer has experts, and which.
    pub fn moe_of(&self, layer: usize) -> Option<&MoeConfig> {
        self.moe.as_ref().filter(|moe| layer >= moe.leading_dense)
    }
    /// Whether a layer has linear attention, and which.
    pub fn linear_of(&self, layer: usize) -> Option<&LinearConfig> {
        self.linear.as_ref().filter(|linear| LinearLayers::AllButEach(linear.interval).has(layer))
    }
    /// FFN width of a layer, of one expert where it has some.
    pub fn ffn_of(&self, layer: usize) -> usize {
        self.moe_of(layer).map_or(self.ffn, |moe| moe.ffn)
    }
    /// Whether a tensor belongs to a layer that guesses further tokens, which is not run.
    pub fn is_predicting(&self, tensor: &str) -> bool {
        let layer = tensor.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(n, _)| n);
        let layer = layer.and_then(|n| n.parse::<usize>().ok().filter(|number| number.to_string() == n));
        layer.is_some_and(|n| (self.layers..self.layers + self.predicting_layers).contains(&n))
    }
    /// Which stages its layers have.
    pub fn layout(&self) -> LayerLayout {
        LayerLayout {
            qkv_bias: self.qkv_bias,
            qk_norm: self.qk_norm,
            moe: self.moe.is_some(),
            post_norms: self.architecture.post_norms,
            biases: self.architecture.biases,
            logits_choose: self.architecture.router == Router::ChosenSoftmax,
            choice_bias: self.moe.as_ref().is_some_and(|moe| moe.choice_bias),
            shared: self.moe.as_ref().is_some_and(|moe| moe.shared > 0),
            shared_gate: self.architecture.shared_expert == Shared::Gated,
            leading_dense: self.moe.as_ref().map_or(0, |moe| moe.leading_dense),
            output_gate: self.linear.is_some(),
            linear: self.linear.map_or(LinearLayers::No, |linear| LinearLayers::of(linear.interval, self.layers)),
            mla: self.mla.map_or(Mla::No, |mla| mla.form),
            q_rank: self.mla.is_some_and(|mla| mla.q_rank.is_some()),
        }
    }

    /// # Errors
    /// Another architecture, a missing or ill-typed key, a value that makes no sense, or a variation of the architecture
    /// that the forward pass does not compute (other rope scaling than linear and YaRN, sliding windows).
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let meta = &gguf.metadata;
        let found = meta.str("general.architecture")?;
        let architecture = Architecture::named(found).ok_or_else(|| {
            let known: Vec<_> = Architecture::ALL.iter().map(|a| a.name).collect();
            let known = known.join(", ");
            Error::input(format!("{}: architecture {found:?} is not supported; supported are {known}", gguf.name()))
        })?;
        let keys = Keys::new(gguf, architecture.name);
        let bad = |what: String| keys.bad(what);

        let (all_layers, hidden) = (keys.size("block_count")?, keys.size("embedding_length")?);
        let predicting_layers = if architecture.predicts_further { keys.count("nextn_predict_layers")? } else { 0 };
        if predicting_layers > 0 {
            keys.remark("nextn_predict_layers", "the last layers guess further tokens, and are not run");
        }
        if predicting_layers >= all_layers {
            return Err(bad(format!(
                "{} is {predicting_layers} of {all_layers} layers",
                keys.full("nextn_predict_layers")
            )));
        }
        let layers = all_layers - predicting_layers;
        let heads = keys.size("attention.head_count")?;
        let mla = if architecture.latent { Some(MlaConfig::read(&keys)?) } else { None };
        let kv_heads = keys.size_or("attention.head_count_kv", || Ok(heads))?;
        let per_head = || match hidden.is_multiple_of(heads) && hidden > 0 {
            true => Ok(hidden / heads),
            false => Err(bad(format!(
                "no {}, and {hidden} of {} is no multiple of {heads} heads",
                keys.full("attention.key_length"),
                keys.full("embedding_length")
            ))),
        };
        let head_dim = match mla {
            Some((_, head_dim)) => head_dim,
            None => keys.size_or("attention.key_length", per_head)?,
        };
        let value_dim = match mla {
            Some(_) => head_dim,
            None => keys.size_or("attention.value_length", per_head)?,
        };
        if value_dim != head_dim {
            return Err(bad(format!(
                "{} is {value_dim} and {} is {head_dim}; {found} has heads of one size",
                keys.full("attention.value_length"),
                keys.full("attention.key_length")
            )));
        }
        if heads % kv_heads != 0 {
            return Err(bad(format!("{heads} heads do not share {kv_heads} KV heads evenly")));
        }
        if head_dim % 2 != 0 {
            return Err(bad(format!("{} is {head_dim}; rope rotates pairs", keys.full("attention.key_length"))));
        }
        // What latent attention stores is read by all heads, or each has its own of it.
        let expected_kv = mla.map(|(mla, _)| if mla.form == Mla::Absorbed { 1 } else { heads });
        if let Some(expected) = expected_kv.filter(|expected| *expected != kv_heads) {
            let key = keys.full("attention.head_count_kv");
            return Err(bad(format!("{key}: {expected} was expected of latent attention, found {kv_heads}")));
        }
        let turned = keys.size_or("rope.dimension_count", || Ok(head_dim))?;
        let part = architecture.partial_rope && turned < head_dim && turned % 2 == 0;
        if turned != head_dim && !part {
            let expected = match architecture.partial_rope {
                true => format!("an even number up to {head_dim}, the size of a head,"),
                false => format!("{head_dim}, the size of a head, of which rope turns all in {},", architecture.name),
            };
            let key = keys.full("rope.dimension_count");
            return Err(bad(format!("{key}: {expected} was expected, found {turned}")));
        }

        let there = |name: &str| gguf.tensor(&format!("blk.{}.{name}", layers - 1)).is_some();
        let moe = moe(architecture, &keys, layers, there("exp_probs_b.bias"))?;
        let rotation = rotation(architecture, &keys, gguf.tensor("rope_freqs.weight").is_some())?;
        let (rotation, scale) = match mla {
            Some((mla, head_dim)) => mla.rotation(&keys, rotation, head_dim)?,
            None => (Rotation { dims: part.then_some(turned), ..rotation }, None),
        };
        let mut context = keys.size("context_length")?;
        if architecture.temperature && keys.positive_or_off("attention.temperature_scale")?.is_some() {
            context = context.min(keys.size("rope.scaling.original_context_length")?);
        }
        let embedding =
            gguf.tensor("token_embd.weight").ok_or_else(|| bad("tensor token_embd.weight is missing".into()))?;
        let there = |name: &str| gguf.tensor(&format!("blk.0.{name}")).is_some();
        Ok(Self {
            architecture,
            name: meta.str_opt("general.name")?.unwrap_or(gguf.name()).to_string(),
            layers,
            predicting_layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            vocab: embedding.dims.get(1).copied().unwrap_or(1) as usize,
            context,
            rotation,
            window: window(architecture, &keys, rotation)?,
            attention_scale: scale.or(attention_scale(architecture, &keys, [layers, hidden, heads])?),
            embedding_scale: if architecture.scaled_embedding { (hidden as f64).sqrt() } else { 1.0 },
            eps: keys.positive("attention.layer_norm_rms_epsilon")?,
            ffn: match &moe {
                Some(moe) if moe.leading_dense == 0 => 0,
                _ => keys.size("feed_forward_length")?,
            },
            moe,
            qkv_bias: match architecture.qkv_bias {
                Occurs::Never => false,
                Occurs::Optional => ["attn_q.bias", "attn_k.bias", "attn_v.bias"].into_iter().any(there),
                Occurs::Always => true,
            },
            qk_norm: match architecture.qk_norm {
                QkNorms::No => false,
                QkNorms::Heads | QkNorms::Row => true,
                QkNorms::OfHeadsIfThere => ["attn_q_norm.weight", "attn_k_norm.weight"].into_iter().any(there),
            },
            linear: linear(architecture, &keys, [layers, turned])?,
            mla: mla.map(|(mla, _)| mla),
            keys: keys.finish()?,
        })
    }
}

/// Linear attention, of architectures that have it.
fn linear(architecture: &Architecture, keys: &Keys<'_>, [layers, turned]: [usize; 2]) -> Result<Option<LinearConfig>> {
    let Some(rule) = architecture.linear else { return Ok(None) };
    let interval = match keys.bools_opt("attention.recurrent_layers")? {
        None => keys.size_or("full_attention_interval", || Ok(rule.interval))?,
        // What it says counts, and it says the interval, too. Layers that guess further tokens have no linear attention.
        Some(linear) => {
            keys.size_opt("full_attention_interval")?;
            let linear = &linear[..layers.min(linear.len())];
            let interval = linear.iter().position(|linear| !linear).map_or(layers + 1, |n| n + 1);
            let layout = LinearLayers::AllButEach(interval);
            if let Some(n) = (0..layers).find(|n| linear.get(*n).copied() != Some(layout.has(*n))) {
                let key = keys.full("attention.recurrent_layers");
                let found = linear.get(n).map_or("nothing".into(), bool::to_string);
                return Err(keys.bad(format!(
                    "{key}: {} was expected of layer {n}, as every layer but each {interval}th has it, found {found}",
                    layout.has(n)
                )));
            }
            interval
        }
    };
    if let Some(sections) = keys.counts_opt("rope.dimension_sections")?.filter(|_| rule.sections) {
        let key = "rope.dimension_sections";
        // Pairs of three sections in turn; a pair of none does not turn with the text's position.
        let all = sections.iter().fold(0, |all: usize, n| all.saturating_add(*n as usize)).max(1);
        let behind = |section: usize| (sections.get(section).map_or(0, |n| *n as usize)).saturating_mul(3) + section;
        let pair = [0, 1, 2].map(behind).into_iter().min().unwrap_or(0);
        if pair < all.min(turned / 2) {
            return Err(keys.bad(format!(
                "{}: {sections:?} leave out pair {pair} of {} that turn",
                keys.full(key),
                turned / 2
            )));
        }
        keys.remark(key, "positions of text are the same in every section");
    }
    let [key_heads, value_heads] = [keys.size("ssm.group_count")?, keys.size("ssm.time_step_rank")?];
    let [head_dim, kernel] = [keys.size("ssm.state_size")?, keys.size("ssm.conv_kernel")?];
    if !value_heads.is_multiple_of(key_heads) {
        let [of, by] = ["ssm.time_step_rank", "ssm.group_count"].map(|key| keys.full(key));
        return Err(
            keys.bad(format!("{of}: a multiple of {key_heads} was expected, which is {by}, found {value_heads}"))
        );
    }
    let inner = keys.size("ssm.inner_size")?;
    if value_heads.checked_mul(head_dim) != Some(inner) {
        let key = keys.full("ssm.inner_size");
        return Err(keys.bad(format!("{key}: {value_heads} heads of {head_dim} were expected, found {inner}")));
    }
    Ok(Some(LinearConfig { interval, key_heads, value_heads, head_dim, kernel, tiled: rule.tiled }))
}

/// What q·k is multiplied by, where it is not 1/√D.
fn attention_scale(
    architecture: &Architecture,
    keys: &Keys<'_>,
    [layers, hidden, heads]: [usize; 3],
) -> Result<Option<f64>> {
    let Some(rule) = architecture.windows.filter(|rule| rule.attention_scale) else { return Ok(None) };
    let stated = keys.positive_or_off("attention.scale")?.map(f64::from);
    let by_hidden = rule.scaled_by_hidden == Some(layers);
    Ok(stated.or(by_hidden.then(|| 1.0 / (hidden as f64 / heads as f64).sqrt())))
}

/// The experts of each layer, if it has some; of `layers`, some of the first may have none.
/// `bias`: the file has one for the choice.
fn moe(architecture: &Architecture, keys: &Keys<'_>, layers: usize, bias: bool) -> Result<Option<MoeConfig>> {
    let experts = match architecture.experts {
        Occurs::Never => 0,
        Occurs::Optional => keys.count("expert_count")?,
        Occurs::Always => keys.size("expert_count")?,
    };
    if experts == 0 {
        return Ok(None);
    }
    // As llama.cpp numbers it, where a file says it.
    let gating = match architecture.router {
        Router::Softmax => None, // `keys` has what it may be
        Router::ChosenSoftmax => Some((3, "3, a softmax over the chosen")),
        Router::BiasedSigmoids => Some((2, "2, sigmoids")),
        Router::Stated => None, // below
    };
    if let Some((number, expected)) = gating {
        let func = keys.count("expert_gating_func")?;
        if func != 0 && func != number {
            let key = keys.full("expert_gating_func");
            return Err(keys.bad(format!("{key} is {func}; {expected}, is expected")));
        }
    }
    let router = match architecture.router {
        Router::Stated => match keys.count("expert_gating_func")? {
            0 | 1 => Router::Softmax,
            2 => Router::BiasedSigmoids,
            func => {
                let key = keys.full("expert_gating_func");
                return Err(keys.bad(format!("{key} is {func}; 1, a softmax, or 2, sigmoids, is expected")));
            }
        },
        router => router,
    };
    let stated = architecture.router == Router::Stated;
    let used = keys.size("expert_used_count")?;
    if used > experts {
        let (key, of) = (keys.full("expert_used_count"), keys.full("expert_count"));
        return Err(keys.bad(format!("{key}: at most {experts} was expected, which is {of}, found {used}")));
    }
    let ffn = match architecture.expert_width {
        // As llama.cpp has it: `feed_forward_length` is that of all experts of a token together.
        Occurs::Optional => {
            keys.size_or("expert_feed_forward_length", || match keys.size("feed_forward_length")? / used {
                0 => Err(keys.bad(format!("{} is less than {used} experts share", keys.full("feed_forward_length")))),
                width => Ok(width),
            })?
        }
        Occurs::Always => keys.size("expert_feed_forward_length")?,
        Occurs::Never => keys.size("feed_forward_length")?,
    };
    let shared = match architecture.shared_expert {
        Shared::Gated => keys.size_or("expert_shared_feed_forward_length", || keys.size("feed_forward_length"))?,
        Shared::Plain => ffn.checked_mul(keys.count("expert_shared_count")?).ok_or_else(|| {
            keys.bad(format!("{}: a shared expert of a width that is no size", keys.full("expert_shared_count")))
        })?,
        Shared::No => 0,
    };
    // A softmax over the chosen leaves nothing to divide by.
    let renormalise = match architecture.router {
        Router::ChosenSoftmax => architecture.renormalise,
        _ => keys.bool_or("expert_weights_norm", architecture.renormalise)?,
    };
    // llama.cpp's graphs of the others have it written out.
    if renormalise != architecture.renormalise && architecture.router == Router::Softmax {
        let is = if architecture.renormalise { "divided by their sum" } else { "not divided by their sum" };
        keys.differs(
            "expert_weights_norm",
            format!("followed, as transformers follows norm_topk_prob; llama.cpp reads no such key of {}: there weights are {is}", architecture.name),
        );
    }
    let scale = match architecture.router {
        Router::BiasedSigmoids | Router::Stated => keys.scale_or_one("expert_weights_scale")?,
        _ => 1.0,
    };
    let leading_dense = if architecture.leading_dense { keys.count("leading_dense_block_count")? } else { 0 };
    if leading_dense >= layers {
        let key = keys.full("leading_dense_block_count");
        return Err(keys.bad(format!("{key} is {leading_dense} of {layers} layers, which leaves none with experts")));
    }
    let choice_bias = if stated { bias } else { router == Router::BiasedSigmoids };
    let groups = if stated { groups(keys, experts, used, router)? } else { None };
    Ok(Some(MoeConfig { experts, used, ffn, renormalise, scale, shared, leading_dense, router, choice_bias, groups }))
}

/// The groups of a layer's experts, if the file has some, of which not all are used.
fn groups(keys: &Keys<'_>, experts: usize, chosen: usize, router: Router) -> Result<Option<Groups>> {
    let names = ["expert_group_count", "expert_group_used_count"];
    let [count, used] = [keys.count(names[0])?, keys.count(names[1])?];
    if count <= 1 {
        return Ok(None);
    }
    let [of, by] = names.map(|name| keys.full(name));
    if !experts.is_multiple_of(count) || experts / count < 2 {
        return Err(keys.bad(format!("{of} is {count}: groups of two or more of {experts} experts are expected")));
    }
    // What one group's score is: of a softmax its largest share, of sigmoids the sum of the two largest.
    let score = if router == Router::Softmax { GroupScore::Max } else { GroupScore::TopTwo };
    let groups = Groups { count, used, by: score };
    if used == 0 || used > count || chosen > groups.left(experts) {
        return Err(keys.bad(format!("{by} is {used}: 1 to {count}, with {chosen} experts or more, is expected")));
    }
    if used == count {
        return Ok(None);
    }
    if score == GroupScore::Max {
        keys.differs(
            names[0],
            "groups are kept by their largest share, as transformers' group_limited_greedy has it; llama.cpp takes the sum of the two largest",
        );
    }
    Ok(Some(groups))
}
