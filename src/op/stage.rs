//! The stage table: every value that the forward pass makes, once.
//!
//! Selection, comparison, replay, rounding floors, reports, documentation and tests read this table; nothing restates it.
//! The order of [`Stage`]'s variants is the order of execution.

use super::OpKind;

/// A named value of the forward pass. Order of variants = order of execution inside a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)] // the table says of each what makes it
pub enum Stage {
    Embedding,
    AttnNorm,
    KvA,
    KvNorm,
    QA,
    QANorm,
    QProj,
    QGate,
    KProj,
    VProj,
    QBias,
    KBias,
    VBias,
    QNorm,
    KNorm,
    QRope,
    KRope,
    QAbsorbed,
    KUp,
    VUp,
    AttnScores,
    AttnProbs,
    AttnLatent,
    AttnContext,
    AttnGated,
    AttnOut,
    AttnOutBias,
    LinearAttnQkv,
    LinearAttnZ,
    LinearAttnB,
    LinearAttnA,
    LinearAttnConv,
    LinearAttnQ,
    LinearAttnK,
    LinearAttnBeta,
    LinearAttnDt,
    LinearAttnDecay,
    LinearAttnDelta,
    LinearAttnNorm,
    LinearAttnGated,
    LinearAttnOut,
    AttnPostNorm,
    AttnResidual,
    FfnNorm,
    RouterLogits,
    RouterBias,
    RouterProbs,
    RouterChoice,
    RouterIds,
    RouterWeights,
    ExpertGate,
    ExpertGateBias,
    ExpertUp,
    ExpertUpBias,
    ExpertAct,
    ExpertDown,
    ExpertDownBias,
    MoeOut,
    SharedRouter,
    SharedGate,
    SharedUp,
    SharedAct,
    SharedDown,
    SharedOut,
    MoeSum,
    FfnGate,
    FfnUp,
    FfnAct,
    FfnOut,
    FfnPostNorm,
    LayerOut,
    FinalNorm,
    Logits,
}

/// One axis of a stage's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Positions in this run.
    T,
    /// Positions seen so far, the keys attended to.
    S,
    /// Hidden size.
    H,
    /// Query heads.
    Heads,
    /// Query heads × head_dim.
    Q,
    /// Width of a row of keys or values: KV heads × head_dim, or under MLA what is stored of a position, its latent and the part of a key that turns.
    Kv,
    /// Width of a row of what attention gives: query heads × head_dim of values.
    Context,
    /// Rank of the queries' projection.
    QRank,
    /// Query heads × Kv, queries that read latents.
    Absorbed,
    /// Query heads × rank of the latent.
    Latent,
    /// Experts.
    E,
    /// Experts used per token.
    K,
    /// FFN width, of one expert in a MoE layer.
    F,
    /// Vocabulary.
    V,
    /// FFN width of the shared expert.
    Shared,
    /// Channels of the convolution of linear attention: those of its queries, keys and values.
    Channels,
    /// Key heads of linear attention × head size.
    KeyHeads,
    /// Value heads of linear attention × head size.
    ValueHeads,
    /// Value heads of linear attention.
    Values,
    /// A single number.
    One,
}

impl Dim {
    /// Whether it is a number of heads times what each of them has, in its order.
    pub fn is_of_heads(self) -> bool {
        use Dim::{Absorbed, Context, KeyHeads, Kv, Latent, Q, ValueHeads};
        matches!(self, Q | Kv | Context | Absorbed | Latent | KeyHeads | ValueHeads)
    }
}

/// Where a stage occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Once, outside the layers.
    Model,
    /// In every layer.
    Layer,
    /// In layers with attention over all positions, or a window of them.
    AttentionLayer,
    /// In those of them that project keys and values each from the input.
    KvLayer,
    /// In those with multi-head latent attention.
    MlaLayer,
    /// In those where the latents are what queries read.
    AbsorbedLayer,
    /// In those where keys and values are made of the latents.
    ExpandedLayer,
    /// In those whose queries are projected in two steps.
    QRankLayer,
    /// In those whose attention output has a gate.
    GatedLayer,
    /// In layers with linear attention: a gated delta rule.
    LinearLayer,
    /// In layers whose q, k and v have biases.
    BiasLayer,
    /// In layers whose attention output, router and experts have biases.
    BiasesLayer,
    /// In layers that normalise q and k.
    QkNormLayer,
    /// In layers that normalise what attention and FFN add to the residual.
    PostNormLayer,
    /// In layers with experts.
    MoeLayer,
    /// In layers with experts whose probabilities are made before they are chosen.
    ProbsLayer,
    /// In layers with experts that are chosen by their probabilities and a bias, which the weights do without.
    ChoiceBiasLayer,
    /// In layers with an expert that every token uses, besides those behind the router.
    SharedLayer,
    /// In those where a gate of its own multiplies it.
    SharedGateLayer,
    /// In layers with a plain FFN.
    DenseLayer,
}

/// Which stages the layers of a model have: all of its layers are alike, but that the first ones may have a plain FFN where the others have
/// experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerLayout {
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// q and k are normalised before rope.
    pub qk_norm: bool,
    /// Experts behind a router; a plain FFN otherwise.
    pub moe: bool,
    /// A shared expert beside them.
    pub shared: bool,
    /// What attention and FFN add to the residual is normalised first.
    pub post_norms: bool,
    /// Attention's output, the router and the experts have biases.
    pub biases: bool,
    /// The experts are chosen by their logits, and the softmax is over the chosen.
    pub logits_choose: bool,
    /// A bias is added to the experts' probabilities for the choice alone.
    pub choice_bias: bool,
    /// The shared expert has a gate.
    pub shared_gate: bool,
    /// How many layers, from the first, have a plain FFN for experts.
    pub leading_dense: usize,
    /// What attention gives is multiplied by the sigmoid of a gate.
    pub output_gate: bool,
    /// Which layers have linear attention for attention.
    pub linear: LinearLayers,
    /// Multi-head latent attention, and how it is computed.
    pub mla: Mla,
    /// Queries are projected in two steps.
    pub q_rank: bool,
}

/// How multi-head latent attention is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mla {
    /// It is another attention.
    #[default]
    No,
    /// Queries are taken to where the latents are, which are all heads' keys and values.
    Absorbed,
    /// Each head's keys and values are made of the latents.
    Plain,
}

/// Which layers have linear attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinearLayers {
    /// None.
    #[default]
    No,
    /// Every one but each so-many-th: of a period of 4, not layer 3, 7, 11, …
    AllButEach(usize),
    /// All: what [`LayerLayout::of`] says of one that has.
    All,
}

impl LinearLayers {
    /// All of `layers` but each `interval`-th, which may be none of them, or all.
    pub fn of(interval: usize, layers: usize) -> Self {
        match interval {
            1 => Self::No,
            _ if interval > layers => Self::All,
            _ => Self::AllButEach(interval),
        }
    }

    /// Whether a layer has linear attention.
    pub fn has(self, layer: usize) -> bool {
        match self {
            Self::No => false,
            Self::AllButEach(period) => !(layer + 1).is_multiple_of(period),
            Self::All => true,
        }
    }
}

impl LayerLayout {
    /// That of Qwen3-MoE, for which the stage table names inputs.
    pub const QWEN3MOE: Self = Self {
        qkv_bias: false,
        qk_norm: true,
        moe: true,
        shared: false,
        post_norms: false,
        biases: false,
        logits_choose: false,
        choice_bias: false,
        shared_gate: false,
        leading_dense: 0,
        output_gate: false,
        linear: LinearLayers::No,
        mla: Mla::No,
        q_rank: false,
    };

    /// That of one layer, or of what is in no layer.
    pub fn of(self, layer: Option<u32>) -> Self {
        let Some(n) = layer.map(|n| n as usize) else { return Self { leading_dense: 0, ..self } };
        let linear = if self.linear.has(n) { LinearLayers::All } else { LinearLayers::No };
        match n < self.leading_dense {
            true => Self {
                moe: false,
                shared: false,
                shared_gate: false,
                choice_bias: false,
                logits_choose: false,
                leading_dense: 0,
                linear,
                ..self
            },
            false => Self { leading_dense: 0, linear, ..self },
        }
    }
}

/// `layers with experts, norms of q and k, no biases`.
impl std::fmt::Display for LayerLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let no = |there: bool| if there { "" } else { "no " };
        let ffn = match (self.moe, self.shared) {
            (true, true) => "layers with experts and a shared one",
            (true, false) => "layers with experts",
            _ => "plain FFN layers",
        };
        write!(f, "{ffn}, {}norms of q and k, {}biases of q, k and v", no(self.qk_norm), no(self.qkv_bias))?;
        for (there, what) in [
            (self.post_norms, ", norms after attention and FFN"),
            (self.biases, ", biases of attention's output, router and experts"),
            (self.logits_choose, ", a softmax over the chosen experts"),
            (self.choice_bias, ", a bias that experts are chosen with"),
            (self.output_gate, ", a gate of attention's output"),
            (self.linear != LinearLayers::No, ", linear attention"),
            (self.mla == Mla::Absorbed, ", latent attention"),
            (self.mla == Mla::Plain, ", latent attention with keys and values of each head"),
        ] {
            f.write_str(if there { what } else { "" })?;
        }
        match self.leading_dense {
            0 => {}
            1 => f.write_str(", a plain FFN in the first")?,
            n => write!(f, ", plain FFNs in the first {n}")?,
        }
        Ok(())
    }
}

impl Scope {
    /// Whether such a stage occurs in a layer of this layout, or of a model, in some layer.
    pub fn occurs(self, layout: LayerLayout) -> bool {
        match self {
            Self::Model | Self::Layer => true,
            Self::AttentionLayer => layout.linear != LinearLayers::All,
            Self::KvLayer => layout.mla == Mla::No && layout.linear != LinearLayers::All,
            Self::MlaLayer => layout.mla != Mla::No,
            Self::AbsorbedLayer => layout.mla == Mla::Absorbed,
            Self::ExpandedLayer => layout.mla == Mla::Plain,
            Self::QRankLayer => layout.q_rank,
            Self::GatedLayer => layout.output_gate && layout.linear != LinearLayers::All,
            Self::LinearLayer => layout.linear != LinearLayers::No,
            Self::BiasLayer => layout.qkv_bias && layout.linear != LinearLayers::All,
            Self::BiasesLayer => layout.biases,
            Self::QkNormLayer => layout.qk_norm && layout.linear != LinearLayers::All,
            Self::MoeLayer => layout.moe,
            Self::ProbsLayer => layout.moe && !layout.logits_choose,
            Self::ChoiceBiasLayer => layout.choice_bias,
            Self::SharedLayer => layout.shared,
            Self::SharedGateLayer => layout.shared_gate,
            Self::PostNormLayer => layout.post_norms,
            Self::DenseLayer => !layout.moe || layout.leading_dense > 0,
        }
    }
}

/// A row of the stage table.
#[derive(Debug)]
pub struct StageInfo {
    /// The stage.
    pub stage: Stage,
    /// Its name here.
    pub name: &'static str,
    /// Names that other programs use; an alias may name several stages.
    pub aliases: &'static [&'static str],
    /// Where it occurs.
    pub scope: Scope,
    /// Its axes.
    pub shape: &'static [Dim],
    /// The operation that makes it…
    pub op: OpKind,
    /// …from these stages (of the same layer, or for a layer's first stage and the residual, the layer before), in a layer of
    /// [`LayerLayout::QWEN3MOE`]; [`Stage::inputs`] says from which in another.
    pub inputs: &'static [Stage],
    /// The GGUF name of its weight, without the `blk.N.` in front, where it has one.
    pub weight: Option<&'static str>,
    /// The column that it shares in the overview picture.
    pub column: &'static str,
}

use Dim::*;
use Scope::{
    AbsorbedLayer, AttentionLayer, BiasLayer, BiasesLayer, ChoiceBiasLayer, DenseLayer, ExpandedLayer, GatedLayer,
    KvLayer, Layer, LinearLayer, MlaLayer, Model, MoeLayer, PostNormLayer, ProbsLayer, QRankLayer, QkNormLayer,
    SharedGateLayer, SharedLayer,
};
use Stage::*;

macro_rules! table {
    ($($stage:ident $name:literal [$($alias:literal),*] $scope:ident [$($dim:ident),*] $op:ident($($input:ident),*) $weight:expr, $column:literal;)*) => {
        /// The table itself, in order of execution.
        pub static STAGES: &[StageInfo] = &[$(StageInfo {
            stage: $stage, name: $name, aliases: &[$($alias),*], scope: $scope, shape: &[$($dim),*],
            op: OpKind::$op, inputs: &[$($input),*], weight: $weight, column: $column,
        }),*];
    };
}

table! {
    Embedding     "embedding"      ["embd", "inp_embd", "inp_scaled"]                   Model      [T, H]        Embed()                              Some("token_embd.weight"),  "embed";
    AttnNorm      "attn_norm"      ["input_layernorm"]                          Layer      [T, H]        RmsNorm(LayerOut)                    Some("attn_norm.weight"),   "norm";
    KvA           "kv_a"           ["kv_cmpr_pe"]                               MlaLayer   [T, Kv]       MatMul(AttnNorm)                     Some("attn_kv_a_mqa.weight"), "qkv";
    KvNorm        "kv_norm"        []                                           MlaLayer   [T, Kv]       RmsNorm(KvA)                         Some("attn_kv_a_norm.weight"), "qkv";
    QA            "q_a"            []                                           QRankLayer [T, QRank]    MatMul(AttnNorm)                     Some("attn_q_a.weight"),    "qkv";
    QANorm        "q_a_norm"       []                                           QRankLayer [T, QRank]    RmsNorm(QA)                          Some("attn_q_a_norm.weight"), "qkv";
    QProj         "q_proj"         ["qkv_matmul", "Qcur"]                       AttentionLayer  [T, Q]        MatMul(AttnNorm)                     Some("attn_q.weight"),      "qkv";
    QGate         "q_gate"         ["gate_reshaped"]                             GatedLayer [T, Q]        MatMul(AttnNorm)                     Some("attn_q.weight"),      "qkv";
    KProj         "k_proj"         ["qkv_matmul", "Kcur"]                       KvLayer  [T, Kv]       MatMul(AttnNorm)                     Some("attn_k.weight"),      "qkv";
    VProj         "v_proj"         ["qkv_matmul", "Vcur"]                       KvLayer  [T, Kv]       MatMul(AttnNorm)                     Some("attn_v.weight"),      "qkv";
    QBias         "q_bias"         []                                           BiasLayer  [T, Q]        Bias(QProj)                          Some("attn_q.bias"),        "qkv";
    KBias         "k_bias"         []                                           BiasLayer  [T, Kv]       Bias(KProj)                          Some("attn_k.bias"),        "qkv";
    VBias         "v_bias"         []                                           BiasLayer  [T, Kv]       Bias(VProj)                          Some("attn_v.bias"),        "qkv";
    QNorm         "q_norm"         ["Qcur_normed"]                              QkNormLayer [T, Q]        RmsNorm(QProj)                       Some("attn_q_norm.weight"), "qkv";
    KNorm         "k_norm"         ["Kcur_normed"]                              QkNormLayer [T, Kv]       RmsNorm(KProj)                       Some("attn_k_norm.weight"), "qkv";
    QRope         "q_rope"         ["q_post_rope", "Qcur"]                      AttentionLayer  [T, Q]        Rope(QNorm)                          None,                       "rope";
    KRope         "k_rope"         ["k_post_rope", "Kcur"]                      AttentionLayer  [T, Kv]       Rope(KNorm)                          None,                       "rope";
    QAbsorbed     "q_absorbed"     []                                           AbsorbedLayer [T, Absorbed] HeadMatMul(QRope)                 Some("attn_k_b.weight"),    "attn";
    KUp           "k_up"           []                                           ExpandedLayer [T, Q]      HeadMatMul(KRope)                   Some("attn_kv_b.weight"),   "attn";
    VUp           "v_up"           []                                           ExpandedLayer [T, Context] HeadMatMul(KRope)                  Some("attn_kv_b.weight"),   "attn";
    AttnScores    "attn_scores"    ["kq"]                                       AttentionLayer  [Heads, T, S] AttnScores(QRope, KRope)             None,                       "attn";
    AttnProbs     "attn_probs"     ["kq_soft_max", "attn_softmax"]              AttentionLayer  [Heads, T, S] AttnProbs(AttnScores)                None,                       "attn";
    AttnLatent    "attn_latent"    []                                           AbsorbedLayer [T, Latent]  AttnContext(AttnProbs, VProj)      None,                       "attn";
    AttnContext   "attn_context"   ["kqv_out", "attention"]                     AttentionLayer  [T, Context]        AttnContext(AttnProbs, VProj)        None,                       "attn";
    AttnGated     "attn_gated"     []                                           GatedLayer [T, Q]        SwiGlu(QGate, AttnContext)           None,                       "attn";
    AttnOut       "attn_out"       []                                           AttentionLayer  [T, H]        MatMul(AttnContext)                  Some("attn_output.weight"), "out";
    AttnOutBias   "attn_out_bias"  []                                           BiasesLayer [T, H]       Bias(AttnOut)                        Some("attn_output.bias"),   "out";
    LinearAttnQkv "linear_attn_qkv" ["linear_attn_qkv_mixed"]                   LinearLayer [T, Channels] MatMul(AttnNorm)                    Some("attn_qkv.weight"),    "qkv";
    LinearAttnZ   "linear_attn_z"  ["z"]                                        LinearLayer [T, ValueHeads] MatMul(AttnNorm)                  Some("attn_gate.weight"),   "qkv";
    LinearAttnB   "linear_attn_b"  ["beta"]                                     LinearLayer [T, Values]  MatMul(AttnNorm)                     Some("ssm_beta.weight"),    "qkv";
    LinearAttnA   "linear_attn_a"  ["alpha"]                                    LinearLayer [T, Values]  MatMul(AttnNorm)                     Some("ssm_alpha.weight"),   "qkv";
    LinearAttnConv "linear_attn_conv" ["conv_output_silu"]                      LinearLayer [T, Channels] Conv(LinearAttnQkv, LinearAttnQkv)  Some("ssm_conv1d.weight"),  "attn";
    LinearAttnQ   "linear_attn_q"  []                                           LinearLayer [T, KeyHeads] L2Norm(LinearAttnConv)              None,                       "attn";
    LinearAttnK   "linear_attn_k"  []                                           LinearLayer [T, KeyHeads] L2Norm(LinearAttnConv)              None,                       "attn";
    LinearAttnBeta "linear_attn_beta" ["beta_sigmoid"]                          LinearLayer [T, Values]  RouterProbs(LinearAttnB)             None,                       "attn";
    LinearAttnDt  "linear_attn_dt" []                                           LinearLayer [T, Values]  Bias(LinearAttnA)                    Some("ssm_dt.bias"),        "attn";
    LinearAttnDecay "linear_attn_decay" []                                LinearLayer [T, Values]  Decay(LinearAttnDt)                  Some("ssm_a"),              "attn";
    LinearAttnDelta "linear_attn_delta" []                                      LinearLayer [T, ValueHeads] DeltaRule(LinearAttnQ, LinearAttnK, LinearAttnConv, LinearAttnDecay, LinearAttnBeta) None, "attn";
    LinearAttnNorm "linear_attn_norm" []                                        LinearLayer [T, ValueHeads] RmsNorm(LinearAttnDelta)          Some("ssm_norm.weight"),    "attn";
    LinearAttnGated "linear_attn_gated" ["final_output"]                        LinearLayer [T, ValueHeads] SwiGlu(LinearAttnZ, LinearAttnNorm) None,                     "attn";
    LinearAttnOut "linear_attn_out" []                                          LinearLayer [T, H]       MatMul(LinearAttnGated)              Some("ssm_out.weight"),     "out";
    AttnPostNorm  "attn_post_norm" []                                           PostNormLayer [T, H]     RmsNorm(AttnOut)                     Some("post_attention_norm.weight"), "out";
    AttnResidual  "attn_residual"  ["ffn_inp", "post_attn_residual", "sa_out"]  Layer      [T, H]        Add(LayerOut, AttnOut)               None,                       "out";
    FfnNorm       "ffn_norm"       ["post_attention_layernorm", "pre_feedforward_layernorm"]                 Layer      [T, H]        RmsNorm(AttnResidual)                Some("ffn_norm.weight"),    "ffn norm";
    RouterLogits  "router_logits"  ["ffn_moe_logits"]                           MoeLayer   [T, E]        MatMul(FfnNorm)                      Some("ffn_gate_inp.weight"), "route";
    RouterBias    "router_bias"    ["ffn_moe_logits_biased"]                    BiasesLayer [T, E]       Bias(RouterLogits)                   Some("ffn_gate_inp.bias"),  "route";
    RouterProbs   "router_probs"   ["ffn_moe_probs"]                            ProbsLayer [T, E]        RouterProbs(RouterLogits)            None,                       "route";
    RouterChoice  "router_choice"  ["ffn_moe_probs_biased"]                     ChoiceBiasLayer [T, E]   Bias(RouterProbs)                    Some("exp_probs_b.bias"),   "route";
    RouterIds     "router_ids"     ["ffn_moe_topk", "moe_router_indices"]       MoeLayer   [T, K]        RouterTopK(RouterProbs)              None,                       "route";
    RouterWeights "router_weights" ["ffn_moe_weights_norm", "ffn_moe_weights_softmax", "ffn_moe_weights_scaled", "moe_router"] MoeLayer   [T, K]        RouterWeights(RouterProbs, RouterIds) None,                      "route";
    ExpertGate    "expert_gate"    ["ffn_moe_gate"]                             MoeLayer   [T, K, F]     ExpertMatMul(FfnNorm, RouterIds)     Some("ffn_gate_exps.weight"), "gate";
    ExpertGateBias "expert_gate_bias" ["ffn_moe_gate_biased"]                   BiasesLayer [T, K, F]    ExpertBias(ExpertGate, RouterIds)    Some("ffn_gate_exps.bias"), "gate";
    ExpertUp      "expert_up"      ["ffn_moe_up"]                               MoeLayer   [T, K, F]     ExpertMatMul(FfnNorm, RouterIds)     Some("ffn_up_exps.weight"), "up";
    ExpertUpBias  "expert_up_bias" ["ffn_moe_up_biased"]                        BiasesLayer [T, K, F]    ExpertBias(ExpertUp, RouterIds)      Some("ffn_up_exps.bias"),   "up";
    ExpertAct     "expert_act"     ["ffn_moe_swiglu", "ffn_moe_swiglu_oai", "ffn_moe_geglu"]          MoeLayer   [T, K, F]     SwiGlu(ExpertGate, ExpertUp)         None,                       "act";
    ExpertDown    "expert_down"    ["ffn_moe_down"]                             MoeLayer   [T, K, H]     ExpertMatMul(ExpertAct, RouterIds)   Some("ffn_down_exps.weight"), "down";
    ExpertDownBias "expert_down_bias" ["ffn_moe_down_biased"]                   BiasesLayer [T, K, H]    ExpertBias(ExpertDown, RouterIds)    Some("ffn_down_exps.bias"), "down";
    MoeOut        "moe_out"        ["ffn_moe_out", "moe_ffn_out"]               MoeLayer   [T, H]        Combine(ExpertDown, RouterWeights)   None,                       "moe";
    SharedRouter  "shared_router"  ["ffn_shexp_gate_inp", "shared_expert_gate"] SharedGateLayer [T, One]     MatMul(FfnNorm)                      Some("ffn_gate_inp_shexp.weight"), "shared";
    SharedGate    "shared_gate"    ["shared_expert.gate_proj", "shared_experts.gate_proj"]                  SharedLayer [T, Shared]  MatMul(FfnNorm)                      Some("ffn_gate_shexp.weight"), "shared";
    SharedUp      "shared_up"      ["shared_expert.up_proj", "shared_experts.up_proj"]                    SharedLayer [T, Shared]  MatMul(FfnNorm)                      Some("ffn_up_shexp.weight"), "shared";
    SharedAct     "shared_act"     []                                           SharedLayer [T, Shared]  SwiGlu(SharedGate, SharedUp)         None,                       "shared";
    SharedDown    "shared_down"    ["ffn_shexp", "shared_expert", "shared_experts"]               SharedLayer [T, H]       MatMul(SharedAct)                    Some("ffn_down_shexp.weight"), "shared";
    SharedOut     "shared_out"     ["ffn_shexp_out", "ffn_shexp_gated"]         SharedGateLayer [T, H]       SigmoidGate(SharedDown, SharedRouter) None,                      "shared";
    MoeSum        "moe_sum"        []                                           SharedLayer [T, H]       Add(MoeOut, SharedOut)               None,                       "shared";
    FfnGate       "ffn_gate"       []                                           DenseLayer [T, F]        MatMul(FfnNorm)                      Some("ffn_gate.weight"),    "gate";
    FfnUp         "ffn_up"         []                                           DenseLayer [T, F]        MatMul(FfnNorm)                      Some("ffn_up.weight"),      "up";
    FfnAct        "ffn_act"        ["ffn_swigl", "ffn_swiglu", "ffn_geglu"]     DenseLayer [T, F]        SwiGlu(FfnGate, FfnUp)               None,                       "act";
    FfnOut        "ffn_out"        []                                           DenseLayer [T, H]        MatMul(FfnAct)                       Some("ffn_down.weight"),    "down";
    FfnPostNorm   "ffn_post_norm"  ["post_feedforward_layernorm"]               PostNormLayer [T, H]     RmsNorm(FfnOut)                      Some("post_ffw_norm.weight"), "down";
    LayerOut      "layer_out"      ["l_out", "post_ffn_residual", "layer_output"] Layer    [T, H]        Add(AttnResidual, MoeOut)            None,                       "layer out";
    FinalNorm     "final_norm"     ["result_norm"]                              Model      [T, H]        RmsNorm(LayerOut)                    Some("output_norm.weight"), "final";
    Logits        "logits"         ["result_output"]                            Model      [T, V]        MatMul(FinalNorm)                    Some("output.weight"),      "logits";
}

/// Stages that make one value step by step, or one in place of another: who reads one reads the last that occurs before itself.
static CHAINS: &[&[Stage]] = &[
    &[AttnNorm, QANorm],
    &[QProj, QBias, QNorm],
    &[KProj, KBias, KNorm, KvA, KvNorm],
    &[VProj, VBias, KvNorm, VUp],
    &[QRope, QAbsorbed],
    &[KRope, KUp],
    &[MoeOut, MoeSum, FfnOut, FfnPostNorm],
    &[AttnContext, AttnGated],
    &[AttnOut, AttnOutBias, LinearAttnOut, AttnPostNorm],
    &[RouterLogits, RouterBias, RouterProbs, RouterChoice],
    &[SharedDown, SharedOut],
    &[ExpertGate, ExpertGateBias],
    &[ExpertUp, ExpertUpBias],
    &[ExpertDown, ExpertDownBias],
];

impl StageInfo {
    /// Which axis of the stage's shape counts `dim`; `None` where it has no such axis.
    pub fn axis(&self, dim: Dim) -> Option<usize> {
        self.shape.iter().position(|d| *d == dim)
    }
}

impl Stage {
    /// This stage's row of the table.
    pub fn info(self) -> &'static StageInfo {
        &STAGES[self as usize]
    }
    /// Its name here.
    pub fn name(self) -> &'static str {
        self.info().name
    }
    /// The stage whose own name (not alias) is `name`.
    pub fn from_name(name: &str) -> Option<Stage> {
        STAGES.iter().find(|s| s.name == name).map(|s| s.stage)
    }
    /// The stages that its operation reads in a layer of this layout, in the order of the operands.
    pub fn inputs(self, layout: LayerLayout) -> impl Iterator<Item = Stage> {
        // Of latents, what attention gives is made of their weighted sums.
        let latent = self == AttnContext && layout.mla == Mla::Absorbed;
        let inputs = if latent { &[AttnLatent] } else { self.info().inputs };
        inputs.iter().map(move |input| {
            let Some(chain) = CHAINS.iter().find(|chain| chain.contains(input)) else { return *input };
            // What is added for the choice is not in the weights, and values are not made of keys.
            let other = |s: Stage| matches!((self, s), (RouterWeights, RouterChoice) | (VUp, KUp));
            let before = |s: &&Stage| **s < self && s.info().scope.occurs(layout) && !other(**s);
            *chain.iter().rfind(before).unwrap_or(input)
        })
    }
    /// Whether operation `op` makes this stage, in some layout: what attention gives is made of latents where these are what queries read.
    pub fn is_made_by(self, op: OpKind) -> bool {
        op == self.info().op || self == AttnContext && op == OpKind::HeadMatMul
    }
    /// The numbers from which the experts follow, the largest or those of the largest shares, in a layer of this layout: the router's logits, or
    /// what the choice is made by.
    pub fn routing_logits(layout: LayerLayout) -> Stage {
        match (layout.choice_bias, layout.biases) {
            (true, _) => RouterChoice,
            (false, true) => RouterBias,
            (false, false) => RouterLogits,
        }
    }
    /// Where operand number `operand` of this stage's operation is a cache, the stages of which one is stored there: the last that a layer has.
    pub fn cached(self, operand: usize) -> Option<&'static [Stage]> {
        let StageInfo { op, inputs, .. } = self.info();
        let input = inputs.get(operand).filter(|_| op.reads_cache(operand))?;
        let chain = CHAINS.iter().find(|chain| chain.contains(input));
        Some(chain.copied().unwrap_or(std::slice::from_ref(input)))
    }
    /// Whether the values are expert ids (u32) rather than numbers.
    pub fn is_ids(self) -> bool {
        self == RouterIds
    }
    /// The axis that counts the positions of a call: every stage has one.
    pub fn position_axis(self) -> usize {
        self.info().axis(T).expect("every stage has an axis of positions")
    }
    /// Whether the values are an attention matrix, [heads, T, S], of which row t means nothing beyond column start + t.
    pub fn is_attention_matrix(self) -> bool {
        self.info().axis(S).is_some()
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_variant_order_and_names_are_unique() {
        for (i, row) in STAGES.iter().enumerate() {
            assert_eq!(row.stage as usize, i, "{}", row.name);
            assert_eq!(STAGES.iter().filter(|s| s.name == row.name).count(), 1);
            assert_eq!(row.stage.position_axis(), usize::from(row.stage.is_attention_matrix()), "{}", row.name);
        }
    }
}
