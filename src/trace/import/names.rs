//! The names that other programs give to the values of a forward pass, and the stages that they are.
//!
//! - llama.cpp's graph: `attn_norm-3`, and `attn_norm-3.0` where nodes of one name are counted. `Qcur-0.0` is the projection,
//!   `.1` the same values with heads apart, `.2` those after rope. Where a capture says what a node's operation reads, the
//!   weight tells the stage: the product with `attn_output.weight` has no name of its own.
//! - transformers' modules: `model.layers.3.self_attn.q_proj`, `model.norm`, `lm_head`.
//! - This program's own: `layers.3.q_proj`, and every alias of the stage table.

use std::ops::Range;

use super::sizes::ModelSizes;
use crate::op::{Mla, OpKind, STAGES, Scope, Site, Stage};
use crate::trace::MOST_LAYERS;
use crate::trace::select::{nearest, stages_named};

/// A name taken apart.
#[derive(Debug, PartialEq)]
pub struct Name<'l> {
    pub layer: Option<u32>,
    /// What is left without the layer, the count, and prefixes such as `model.`.
    pub bare: &'l str,
    /// Which of the nodes of that name in one graph, where llama.cpp's nodes are counted.
    count: Option<u32>,
    /// It has the form of a transformers module's name, within the model or a layer.
    module: bool,
}

/// What the capture says of the operation that made the value.
#[derive(Clone, Copy, Default)]
pub struct NodeKind<'a> {
    /// llama.cpp's name of the operation; empty if not said.
    pub op: &'a str,
    /// The names of its operands.
    pub inputs: &'a [String],
}

/// A stage in a tensor, and how its values are to be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub site: Site,
    /// The axes in the order in which they are to be read; `None`: as they are.
    pub axes: Option<Vec<usize>>,
    /// Which axis (after that) counts positions, where it is not the stage's own.
    pub position: Option<usize>,
    /// The part of the last axis that is the stage.
    pub columns: Option<Range<usize>>,
    /// What the values are multiplied by.
    pub scale: Option<f64>,
    /// Which positions the rows are, where a rule says so: as in `--positions`.
    pub positions: Option<String>,
    /// The call that it belongs to, where a rule says so.
    pub call: Option<usize>,
}

impl Reading {
    /// The whole tensor as it is.
    pub fn whole(site: Site) -> Self {
        Self { site, axes: None, position: None, columns: None, scale: None, positions: None, call: None }
    }
}

/// What a name in the tables below means.
enum Means {
    Is(Stage),
    /// The feed-forward part of either kind of layer.
    FeedForward,
    /// llama.cpp's name of what a plain FFN adds, and of experts' sum with a shared one.
    FfnOut,
    /// A shared expert, with its gate where it has one.
    SharedExpert,
    /// The weights divided by their sum, which is all that is done where they are not scaled.
    NormedWeights,
    /// q, k and v in one.
    Qkv,
    /// gate and up in one, of a plain FFN or of the chosen experts.
    GateUp,
    /// Rows of the table of embeddings.
    EmbeddingRows,
    /// Products of queries and keys, not yet scaled by 1/sqrt(D).
    UnscaledScores,
    /// q, k or v: the projection, that with its bias, and rope, all of the same name.
    Projection(Stage, Stage, Option<Stage>),
    /// llama.cpp's name of each step towards q, where attention is latent.
    Query,
    /// What the weighted sum of values is: of latents where these are the values, else each head's.
    WeightedSum,
    /// The same head by head, [heads, T, D].
    HeadwiseSum,
    /// What attention gives where it is made of latents, likewise.
    HeadwiseContext,
    /// Of layers with linear attention, and of others.
    LinearOr(Stage, Stage),
    /// The norm before the FFN, or in models that have one, that of what attention adds.
    AfterAttention,
    /// The softmax over all experts, where there is one.
    RouterProbs,
    /// What a router's module gives: logits, but of gpt-oss in some versions weights by expert.
    Router,
    /// What attention adds to the residual, with its bias where there is one.
    AttentionOut,
    /// No stage, and why.
    Nothing(&'static str),
}

use Means::*;

/// llama.cpp's names that are no alias of one stage.
static NODES: &[(&str, Means)] = &[
    ("Qcur", Projection(Stage::QProj, Stage::QBias, Some(Stage::QRope))),
    ("Kcur", Projection(Stage::KProj, Stage::KBias, Some(Stage::KRope))),
    ("Vcur", Projection(Stage::VProj, Stage::VBias, None)),
    ("wqkv", Qkv),
    ("embd", EmbeddingRows),
    ("inp_embd", EmbeddingRows),
    ("kq", UnscaledScores),
    ("__fattn__", WeightedSum),
    ("q", Query),
    ("kv_cmpr", Nothing(PART_OF_KV_NORM)),
    ("kv_cmpr_reshape", Nothing(PART_OF_KV_NORM)),
    ("k_pe", Nothing("the last columns of k_rope, or of kv_a before they turn")),
    ("q_pe", Nothing("the last columns of each head of q_rope, or of q_proj before they turn")),
    ("q_nope", Nothing("the first columns of each head of q_proj")),
    ("q_nope_perm", Nothing("the first columns of each head of q_proj")),
    ("q_nope_absorbed", Nothing("the first columns of each head of q_absorbed")),
    ("q_nope_absorbed_perm", Nothing("the first columns of each head of q_absorbed")),
    ("kv", Nothing(KEYS_AND_VALUES)),
    ("k_nope_view", Nothing("the first columns of each head of k_up")),
    ("Vcur_view", Nothing("the values of Vcur_cont")),
    ("Vcur_cont", Is(Stage::VUp)),
    ("v_cont", Nothing("values, each a row for all positions")),
    ("kqv_mla", Nothing("the values of kqv_out, head by head")),
    ("fattn_mla", HeadwiseContext),
    ("ffn_moe_group_topk", Nothing("the groups that experts are chosen from")),
    ("ffn_moe_probs_masked", Nothing("what experts are chosen by, without those of other groups")),
    ("ffn_down", Is(Stage::FfnOut)),
    ("ffn_out", FfnOut),
    ("ffn_shexp_out", SharedExpert),
    ("ffn_moe_weights_norm", NormedWeights),
    // Of gpt-oss and of GLM, which name the norm before the FFN so.
    ("attn_post_norm", AfterAttention),
    ("post_attn_norm", AfterAttention),
    ("ffn_moe_probs", RouterProbs),
    ("attn_out", AttentionOut),
    ("ffn_gate_up", GateUp),
    ("ffn_moe_gate_up", GateUp),
    ("ffn_shexp_gate", Nothing("the sigmoid of ffn_shexp_gate_inp")),
    ("input_embed", Is(Stage::Embedding)),
    ("Qcur_reshaped", Is(Stage::QProj)),
    ("Qcur_view", Is(Stage::QProj)),
    ("Qcur_full", Nothing("q and the gate of attention's output in one, head by head")),
    ("attn_pregate", Is(Stage::AttnContext)),
    ("attn_output", LinearOr(Stage::LinearAttnDelta, Stage::AttnOut)),
    ("gate", LinearOr(Stage::LinearAttnDecay, Stage::QGate)),
    ("gate_sigmoid", Nothing("the sigmoid of the gate of attention's output")),
    ("shared_expert_gate_sigmoid", Nothing("the sigmoid of shared_expert_gate")),
    ("h_nextn", Nothing("the values of result_norm")),
    ("q_conv_predelta", Is(Stage::LinearAttnQ)),
    ("k_conv_predelta", Is(Stage::LinearAttnK)),
    ("linear_attn_mixed_ba", Nothing("linear_attn_b and linear_attn_a in one, by key heads")),
    ("a_softplus", Nothing("softplus, not yet multiplied by ssm_a")),
    ("conv_output_raw", Nothing("the convolution, not yet through silu")),
    ("q_conv", Nothing("columns of conv_output_silu")),
    ("k_conv", Nothing("columns of conv_output_silu")),
    ("v_conv", Nothing("columns of conv_output_silu")),
    ("v_conv_predelta", Nothing("columns of conv_output_silu")),
    ("conv_input", Nothing("rows of linear_attn_qkv_mixed with those of earlier calls")),
    ("conv_states", Nothing("the rows that the convolution keeps of earlier calls")),
    ("conv_state_last", Nothing("the rows that the convolution keeps for the next call")),
    ("state_predelta", Nothing("the state of linear attention, before this call")),
    ("new_state", Nothing("the state of linear attention, after this call")),
    ("norm", Nothing("x / rms, not yet multiplied by the norm's weight")),
    ("kqv", HeadwiseSum),
    ("ffn_moe_argsort", Nothing("every expert in order; its first columns are ffn_moe_topk")),
    (
        "ffn_moe_weights",
        Nothing(
            "the chosen experts' probabilities before they are divided by their sum, or logits before their softmax",
        ),
    ),
    ("ffn_moe_weights_sum", Nothing("the sum of the chosen experts' probabilities")),
    ("ffn_moe_weights_sum_clamped", Nothing("the sum of the chosen experts' probabilities")),
    ("ffn_moe_weighted", Nothing("ffn_moe_down times the experts' weights, not yet summed")),
];

/// llama.cpp's names of experts' products that were multiplied by the experts' scales.
pub static SCALED_EXPERTS: [(&str, Stage); 3] = [
    ("ffn_moe_gate_scaled", Stage::ExpertGate),
    ("ffn_moe_up_scaled", Stage::ExpertUp),
    ("ffn_moe_down_scaled", Stage::ExpertDown),
];

/// What each expert has a module of its own under, in versions of transformers that compute them one by one.
const EXPERTS: [&str; 2] = ["mlp.experts.", "block_sparse_moe.experts."];

/// Why modules inside linear attention are no stages.
const OTHER_ORDER: &str =
    "its heads are in transformers' order, and not in the file's, as capture/hf_transformers.py writes them";

/// Why the norm of the latent is no stage of its own.
const PART_OF_KV_NORM: &str = "the first columns of kv_norm, without those that turn";

/// Why the product that makes keys and values of the latent is no stage.
const KEYS_AND_VALUES: &str = "of each head a key without what turns, and then a value";

/// transformers' modules within a layer. A module with several outputs counts them: `mlp.gate.1`.
static LAYER_MODULES: &[(&str, Means)] = &[
    ("", Is(Stage::LayerOut)),
    ("0", Is(Stage::LayerOut)),
    ("self_attn", Is(Stage::AttnOut)),
    ("self_attn.q_proj", Is(Stage::QProj)),
    ("self_attn.k_proj", Is(Stage::KProj)),
    ("self_attn.v_proj", Is(Stage::VProj)),
    ("self_attn.qkv_proj", Qkv),
    ("self_attn.q_a_proj", Is(Stage::QA)),
    ("self_attn.q_a_layernorm", Is(Stage::QANorm)),
    ("self_attn.q_b_proj", Is(Stage::QProj)),
    ("self_attn.kv_a_proj_with_mqa", Is(Stage::KvA)),
    ("self_attn.kv_a_layernorm", Nothing(PART_OF_KV_NORM)),
    ("self_attn.kv_b_proj", Nothing(KEYS_AND_VALUES)),
    ("self_attn.q_norm", Is(Stage::QNorm)),
    ("self_attn.k_norm", Is(Stage::KNorm)),
    ("self_attn.o_proj", Is(Stage::AttnOut)),
    ("self_attn.attn_weights", Is(Stage::AttnProbs)),
    ("self_attn.1", Is(Stage::AttnProbs)),
    ("self_attn.rotary_emb", Nothing("cosines and sines of the angles")),
    ("linear_attn", Is(Stage::LinearAttnOut)),
    ("linear_attn.out_proj", Is(Stage::LinearAttnOut)),
    ("linear_attn.in_proj_qkv", Nothing(OTHER_ORDER)),
    ("linear_attn.in_proj_qkvz", Nothing(OTHER_ORDER)),
    ("linear_attn.in_proj_z", Nothing(OTHER_ORDER)),
    ("linear_attn.in_proj_b", Nothing(OTHER_ORDER)),
    ("linear_attn.in_proj_a", Nothing(OTHER_ORDER)),
    ("linear_attn.in_proj_ba", Nothing(OTHER_ORDER)),
    ("linear_attn.conv1d", Nothing(OTHER_ORDER)),
    ("linear_attn.norm", Nothing(OTHER_ORDER)),
    ("post_attention_layernorm", AfterAttention),
    ("mlp", FeedForward),
    ("mlp.gate", Is(Stage::RouterLogits)),
    ("mlp.gate.1", Is(Stage::RouterWeights)),
    ("mlp.gate.2", Is(Stage::RouterIds)),
    ("mlp.1", Router),
    ("mlp.router", Router),
    ("mlp.router.1", Router),
    ("mlp.router.2", Router),
    ("mlp.experts", Is(Stage::MoeOut)),
    ("mlp.gate_proj", Is(Stage::FfnGate)),
    ("mlp.up_proj", Is(Stage::FfnUp)),
    ("mlp.gate_up_proj", GateUp),
    ("mlp.down_proj", Is(Stage::FfnOut)),
    ("mlp.act_fn", Nothing("silu(gate), not yet multiplied by up")),
    ("mlp.experts.act_fn", Nothing("silu(gate), of the tokens of one expert")),
    ("mlp.shared_expert", Is(Stage::SharedDown)),
    ("mlp.shared_expert.gate_proj", Is(Stage::SharedGate)),
    ("mlp.shared_expert.up_proj", Is(Stage::SharedUp)),
    ("mlp.shared_expert.down_proj", Is(Stage::SharedDown)),
    ("mlp.shared_expert.act_fn", Nothing("silu(gate), not yet multiplied by up")),
    ("mlp.shared_expert_gate", Is(Stage::SharedRouter)),
    ("block_sparse_moe", Is(Stage::MoeOut)),
    ("block_sparse_moe.gate", Is(Stage::RouterLogits)),
    ("block_sparse_moe.gate.1", Is(Stage::RouterWeights)),
    ("block_sparse_moe.gate.2", Is(Stage::RouterIds)),
    ("block_sparse_moe.1", Is(Stage::RouterLogits)),
    ("block_sparse_moe.experts", Is(Stage::MoeOut)),
    ("mlp.shared_experts", Is(Stage::SharedDown)),
    ("mlp.shared_experts.gate_proj", Is(Stage::SharedGate)),
    ("mlp.shared_experts.up_proj", Is(Stage::SharedUp)),
    ("mlp.shared_experts.down_proj", Is(Stage::SharedDown)),
    ("mlp.shared_experts.act_fn", Nothing("silu(gate), not yet multiplied by up")),
];

/// transformers' modules outside the layers.
static MODEL_MODULES: &[(&str, Means)] = &[
    ("model", Is(Stage::FinalNorm)),
    ("embed_tokens", Is(Stage::Embedding)),
    ("norm", Is(Stage::FinalNorm)),
    ("lm_head", Is(Stage::Logits)),
    ("rotary_emb", Nothing("cosines and sines of the angles")),
];

impl<'l> Name<'l> {
    /// Takes `layers.3.NAME`, `model.layers.3.NAME`, `blk.3.NAME`, `layer-3/NAME`, `NAME-3`, `NAME-3.0` or `NAME` apart.
    pub fn of(label: &'l str) -> Self {
        let mut bare = label;
        let mut module = false;
        while let Some(rest) = ["model.", "language_model.", "transformer."].iter().find_map(|p| bare.strip_prefix(p)) {
            (bare, module) = (rest, true);
        }
        let within =
            [("layers.", '.'), ("h.", '.'), ("blk.", '.'), ("layer-", '/')].iter().find_map(|(prefix, end)| {
                let rest = bare.strip_prefix(prefix)?;
                let (number, name) = rest.split_once(*end).unwrap_or((rest, ""));
                Some((number.parse().ok()?, name))
            });
        if let Some((layer, bare)) = within {
            return Self { layer: Some(layer), bare, count: None, module: true };
        }
        let (bare, count) = match bare.rsplit_once('.').and_then(|(name, n)| Some((name, n.parse().ok()?))) {
            Some((name, count)) => (name, Some(count)),
            None => (bare, None),
        };
        match bare.rsplit_once('-').and_then(|(name, n)| Some((name, n.parse().ok()?))) {
            Some((name, layer)) => Self { layer: Some(layer), bare: name, count, module },
            None => Self { layer: None, bare, count, module },
        }
    }

    /// The stages that the value is, or why it is none.
    pub fn readings(&self, made: NodeKind<'_>, sizes: &ModelSizes) -> Result<Vec<Reading>, String> {
        if let Some((_, stage)) = SCALED_EXPERTS.iter().find(|(name, _)| *name == self.bare) {
            return Ok(vec![Reading::whole(site(self.layer, *stage)?)]);
        }
        // The product with a weight, when it has met the weight's scale; of q and its gate in one it is no stage.
        if made.op == "MUL" && made.inputs.iter().any(|input| input.ends_with(".scale")) && self.bare != "Qcur_full" {
            let scaled = by_weight(made).ok_or_else(|| format!("a product: {}", made.inputs.join(", ")))?;
            return Ok(vec![Reading::whole(scaled)]);
        }
        let named =
            |table: &'static [(&str, Means)], bare: &str| table.iter().find(|(n, _)| *n == bare).map(|(_, m)| m);
        // A module that has several outputs counts them; the first one is its value. `mlp.experts.0` is an expert.
        let first = self.bare.strip_suffix(".0").filter(|_| self.module && !self.is_one_expert());
        let find = |table| named(table, self.bare).or_else(|| named(table, first?));
        let tables: &[&'static [(&str, Means)]] = match (self.module, self.layer) {
            (true, Some(_)) => &[LAYER_MODULES, NODES],
            (true, None) => &[MODEL_MODULES, NODES],
            (false, _) => &[NODES, MODEL_MODULES],
        };
        let means = match tables.iter().find_map(|t| find(t)) {
            // llama.cpp's `norm` has a layer or a count; transformers' has neither.
            Some(Nothing(_)) if self.bare == "norm" && self.layer.is_none() && self.count.is_none() => {
                &Is(Stage::FinalNorm)
            }
            Some(means) => means,
            None => {
                let named = self.by_stage(made)?;
                // llama.cpp's graph has the names of a plain FFN inside the expert that every token uses.
                let stage = match named.stage {
                    Stage::FfnGate if sizes.shared_of(self.layer) == Some(true) => Stage::SharedGate,
                    Stage::FfnUp if sizes.shared_of(self.layer) == Some(true) => Stage::SharedUp,
                    Stage::FfnAct if sizes.shared_of(self.layer) == Some(true) => Stage::SharedAct,
                    stage => stage,
                };
                return Ok(vec![Reading::whole(Site { stage, ..named })]);
            }
        };
        let one = |stage| Ok(vec![Reading::whole(site(self.layer, stage)?)]);
        let headwise =
            |stage| Ok(vec![Reading { axes: Some(vec![1, 0, 2]), ..Reading::whole(site(self.layer, stage)?) }]);
        // A module's output has its bias in it.
        let projected = |stage: Stage| match stage {
            Stage::QProj if self.module && sizes.qkv_bias == Some(true) => Stage::QBias,
            Stage::KProj if self.module && sizes.qkv_bias == Some(true) => Stage::KBias,
            Stage::VProj if self.module && sizes.qkv_bias == Some(true) => Stage::VBias,
            Stage::AttnOut if self.module && sizes.biases == Some(true) => Stage::AttnOutBias,
            Stage::RouterLogits if self.module && sizes.biases == Some(true) => Stage::RouterBias,
            stage => stage,
        };
        match means {
            Is(stage) => one(projected(*stage)),
            Nothing(why) => Err((*why).into()),
            // llama.cpp gives the biased logits this name as well, the last, where they choose the experts.
            RouterProbs if sizes.logits_choose == Some(true) => one(Stage::RouterBias),
            RouterProbs => one(Stage::RouterProbs),
            Router if sizes.logits_choose == Some(true) => {
                Err("logits in some versions of transformers, weights by expert in others: a rule says which".into())
            }
            Router if self.bare == "mlp.router.1" || self.bare == "mlp.router.2" => {
                self.by_stage(made).map(|site| vec![Reading::whole(site)])
            }
            Router => one(projected(Stage::RouterLogits)),
            // This program's own stage, or a node of llama.cpp, which is named when all of it is done.
            AttentionOut => one(match made.op {
                "ADD" if sizes.biases != Some(false) => Stage::AttnOutBias,
                "" | "NONE" if !self.module && sizes.biases == Some(true) => Stage::AttnOutBias,
                _ => Stage::AttnOut,
            }),
            FfnOut => match sizes.shared_of(self.layer) {
                Some(true) => one(Stage::MoeSum),
                None if sizes.shared == Some(true) => {
                    Err("moe_sum or ffn_out: nothing says whether the layer has experts".into())
                }
                _ => one(Stage::FfnOut),
            },
            SharedExpert => one(if sizes.shared_gate == Some(false) { Stage::SharedDown } else { Stage::SharedOut }),
            NormedWeights if sizes.weights_scaled == Some(true) => {
                Err("the experts' weights before they are scaled, which ffn_moe_weights_scaled are".into())
            }
            NormedWeights => one(Stage::RouterWeights),
            LinearOr(linear, other) => match sizes.linear_of(self.layer) {
                Some(true) => one(*linear),
                Some(false) => one(*other),
                None => Err(format!("{linear} or {other}: nothing says which layers have linear attention")),
            },
            AfterAttention => one(if sizes.post_norms { Stage::AttnPostNorm } else { Stage::FfnNorm }),
            FeedForward => match sizes.moe_of(self.layer) {
                Some(true) if sizes.shared == Some(true) => one(Stage::MoeSum),
                Some(true) => one(Stage::MoeOut),
                Some(false) => one(Stage::FfnOut),
                None => Err("moe_out or ffn_out: nothing says whether the layer has experts".into()),
            },
            Qkv => {
                let widths = sizes
                    .qkv()
                    .ok_or("q, k and v in one; their widths are not known: --model, or `sizes` in the rules")?;
                split(self.layer, &[Stage::QProj, Stage::KProj, Stage::VProj].map(projected), &widths)
            }
            GateUp => {
                let experts = self.bare.contains("moe") || self.bare.contains("expert");
                let width = if experts { sizes.ffn } else { sizes.plain_ffn.or(sizes.ffn) };
                let ffn =
                    width.ok_or("gate and up in one; the width is not known: --model, or `sizes` in the rules")?;
                let stages =
                    if experts { [Stage::ExpertGate, Stage::ExpertUp] } else { [Stage::FfnGate, Stage::FfnUp] };
                split(self.layer, &stages, &[ffn, ffn])
            }
            EmbeddingRows if sizes.scaled_embedding => {
                Err("rows of the table, not yet multiplied by √H, which inp_scaled are".into())
            }
            EmbeddingRows => one(Stage::Embedding),
            UnscaledScores if sizes.scaled_queries => one(Stage::AttnScores),
            UnscaledScores if sizes.linear_of(self.layer) == Some(true) => {
                Err("products of keys and queries inside a chunk of linear attention".into())
            }
            UnscaledScores => {
                let by_dim = || sizes.head_dim.filter(|d| *d > 0).map(|dim| 1.0 / (dim as f64).sqrt());
                let scale = sizes.latent_scale.or_else(by_dim).ok_or(
                    "scores before they are scaled by 1/sqrt(D), and D is not known: --model, or `sizes` in the rules",
                )?;
                let reading = Reading::whole(site(self.layer, Stage::AttnScores)?);
                Ok(vec![Reading { scale: Some(scale), ..reading }])
            }
            Query => self.query(made, sizes),
            WeightedSum if sizes.latent == Some(Mla::Absorbed) => one(Stage::AttnLatent),
            WeightedSum => one(Stage::AttnContext),
            HeadwiseSum if sizes.latent == Some(Mla::Absorbed) => headwise(Stage::AttnLatent),
            HeadwiseContext => headwise(Stage::AttnContext),
            HeadwiseSum => Err("the values of kqv_out, head by head".into()),
            // What is stored and read of latents has the names of q and k, when all of it is done.
            Projection(projection, ..) if sizes.latent.is_some_and(|form| form != Mla::No) => {
                match (projection, sizes.latent) {
                    (Stage::QProj, Some(Mla::Absorbed)) => one(Stage::QAbsorbed),
                    (Stage::QProj, _) => one(Stage::QRope),
                    (Stage::KProj, Some(Mla::Absorbed)) => one(Stage::KRope),
                    (Stage::KProj, _) => one(Stage::KUp),
                    _ => Err(PART_OF_KV_NORM.into()),
                }
            }
            Projection(projection, bias, rope) => match (made.op, self.count, rope) {
                ("MUL_MAT", ..) => one(*projection),
                ("ADD", ..) => one(*bias),
                ("ROPE", _, Some(rope)) => one(*rope),
                ("RESHAPE" | "VIEW", ..) => Err(format!("the values of {projection}, with heads apart")),
                ("" | "NONE", Some(0), _) | ("", None, None) => one(*projection),
                ("" | "NONE", Some(1), _) => Err(format!("the values of {projection}, with heads apart")),
                ("" | "NONE", Some(2), Some(rope)) => one(*rope),
                ("", None, Some(rope)) => Err(format!("`{}` could be {projection} or {rope}", self.bare)),
                (op, count, _) => Err(format!(
                    "neither the projection nor rope, but {} of that name",
                    if op.is_empty() { format!("value {}", count.unwrap_or_default()) } else { format!("a {op}") }
                )),
            },
        }
    }

    /// llama.cpp's `q` of latent attention: the product with `attn_q_a`, its norm and the product with `attn_q_b`, or that with `attn_q` alone.
    fn query(&self, made: NodeKind<'_>, sizes: &ModelSizes) -> Result<Vec<Reading>, String> {
        let reads = |weight: &str| made.inputs.iter().any(|input| input.ends_with(weight));
        let apart = || Err(format!("the values of {}, with heads apart", Stage::QProj));
        let stage = match (made.op, self.count, sizes.q_rank) {
            ("MUL_MAT", ..) if reads(".attn_q_a.weight") => Stage::QA,
            ("MUL_MAT", ..) if reads(".attn_q_b.weight") || reads(".attn_q.weight") => Stage::QProj,
            ("MUL", ..) => Stage::QANorm,
            ("RESHAPE" | "VIEW", ..) => return apart(),
            ("" | "NONE", Some(0), Some(true)) => Stage::QA,
            ("" | "NONE", Some(1), Some(true)) => Stage::QANorm,
            ("" | "NONE", Some(2), Some(true)) | ("" | "NONE", Some(0), Some(false)) => Stage::QProj,
            ("" | "NONE", Some(_), Some(_)) => return apart(),
            _ => return Err(format!("`{}` could be {}, {} or {}", self.bare, Stage::QA, Stage::QANorm, Stage::QProj)),
        };
        Ok(vec![Reading::whole(site(self.layer, stage)?)])
    }

    /// Whether it is a module of one expert, or in one.
    fn is_one_expert(&self) -> bool {
        let digit = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
        EXPERTS.iter().any(|prefix| self.bare.strip_prefix(prefix).is_some_and(digit))
    }

    /// A stage's own name, an alias of one stage only, or a node whose operation reads a stage's weight.
    fn by_stage(&self, made: NodeKind<'_>) -> Result<Site, String> {
        let name = self.bare;
        let numbered =
            ["node_", "leaf_"].iter().any(|p| name.strip_prefix(p).is_some_and(|n| n.parse::<u32>().is_ok()));
        if numbered {
            return by_weight(made).ok_or_else(|| match made.inputs {
                [] => "a node without a name, and the capture does not say what it reads".into(),
                inputs => format!("a node without a name: {} of {}", made.op, inputs.join(", ")),
            });
        }
        if name.starts_with("cache_") {
            return Err("the cache of keys and values".into());
        }
        if name.contains(" (") {
            return Err("a view of another node".into());
        }
        if self.is_one_expert() {
            return Err("rows of the tokens that chose this expert, and it is not said which these are".into());
        }
        let stages = if name.contains(['*', '?']) { vec![] } else { stages_named(name) };
        match stages[..] {
            [stage] => site(self.layer, stage),
            [] => Err(format!("no stage is called `{name}`; the nearest: {}", nearest_stage(name))),
            _ => {
                let names: Vec<_> = stages.iter().map(|s| s.name()).collect();
                Err(format!("`{name}` could be {}", names.join(" or ")))
            }
        }
    }
}

/// The last axis in parts: stages of `layer`, of these widths.
pub fn split(layer: Option<u32>, stages: &[Stage], widths: &[usize]) -> Result<Vec<Reading>, String> {
    let mut start = 0usize;
    let mut readings = Vec::new();
    for (stage, width) in stages.iter().zip(widths) {
        let end = start.checked_add(*width).ok_or("the widths are too large")?;
        readings.push(Reading { columns: Some(start..end), ..Reading::whole(site(layer, *stage)?) });
        start = end;
    }
    Ok(readings)
}

/// The site of `stage` in `layer`, if it belongs there.
pub fn site(layer: Option<u32>, stage: Stage) -> Result<Site, String> {
    match (stage.info().scope, layer) {
        (_, Some(n)) if n >= MOST_LAYERS => Err(format!("layer {n}: a layer below {MOST_LAYERS} expected")),
        (Scope::Model, None) => Ok(Site::model(stage)),
        (Scope::Model, Some(_)) => Err(format!("{stage} belongs to no layer")),
        (_, Some(_)) => Ok(Site { layer, stage }),
        (_, None) => Err(format!("{stage} of which layer is not said")),
    }
}

/// The stage whose weight the node's operation reads, or whose weight's scale.
fn by_weight(made: NodeKind<'_>) -> Option<Site> {
    let kinds: &[OpKind] = match made.op {
        "MUL_MAT" => &[OpKind::MatMul],
        "MUL_MAT_ID" => &[OpKind::ExpertMatMul],
        "MUL" => &[OpKind::RmsNorm],
        "ADD" => &[OpKind::Bias],
        "ADD_ID" => &[OpKind::ExpertBias],
        "GET_ROWS" => &[OpKind::Embed],
        _ => return None,
    };
    made.inputs.iter().find_map(|input| {
        let of_scale = input.strip_suffix(".scale").filter(|_| made.op == "MUL").map(|part| format!("{part}.weight"));
        let kinds = if of_scale.is_some() { &[OpKind::MatMul][..] } else { kinds };
        let input = of_scale.as_ref().unwrap_or(input);
        let (layer, weight) = match input.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((n, weight)) => (Some(n.parse().ok()?), weight),
            None => (None, input.as_str()),
        };
        let row = STAGES.iter().find(|s| {
            s.weight == Some(weight) && kinds.contains(&s.op) && (s.scope == Scope::Model) == layer.is_none()
        })?;
        site(layer, row.stage).ok()
    })
}

/// The names nearest to `name`.
pub fn nearest_stage(name: &str) -> String {
    let names = STAGES.iter().flat_map(|s| std::iter::once(s.name).chain(s.aliases.iter().copied()));
    nearest(name, names)
}
