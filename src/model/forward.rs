//! The forward pass, once.
//!
//! - It is written over [`Backend`], so what is traced, compared and timed is what runs.
//! - It reads like the architecture: one function a block, one line a stage, each line naming its stage.
//! - It knows nothing of tracing, comparing, timing or faults: those are wrappers over the backend.

use std::sync::Arc;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::{
    AttentionWeights, Config, Ffn, LatentHeads, LatentWeights, LayerWeights, LinearConfig, LinearWeights, Mixer, Model,
    MoeWeights, Router, SharedExpert,
};
use crate::op::{At, GateActivation, Op, Rotation, Stage, Weight};

/// One sequence in progress: its caches, and how many positions are in it.
pub struct Session<T> {
    /// One for each layer.
    cache: Vec<Cache<T>>,
    capacity: usize,
    position: usize,
}

/// What a layer keeps of earlier positions.
enum Cache<T> {
    /// Keys after rope and values, each [capacity, kv_heads·D], or latents with the part of a key that turns and latents.
    Attention { k: T, v: T },
    /// What the convolution reads and what it gives, each [capacity, C], keys [capacity, Hk·D], decays and betas, each [capacity, Hv]: the state is
    /// a function of these, and is computed from them.
    Linear { qkv: T, conv: T, k: T, decay: T, beta: T },
}

/// Which positions' logits a call is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// Every position of the call: [T, V].
    All,
    /// The last position only: [1, V].
    Last,
}

impl<T: Clone> Session<T> {
    /// An empty sequence with room for `capacity` positions.
    ///
    /// # Errors
    /// If `capacity` is zero or past the model's context length.
    pub fn new<B: Backend<Tensor = T>>(backend: &mut B, config: &Config, capacity: usize) -> Result<Self> {
        if capacity == 0 || capacity > config.context {
            return Err(Error::usage(format!(
                "{capacity} positions asked for; the context length of {} is {}, and at least one is needed",
                config.name, config.context
            )));
        }
        let mut cache = Vec::with_capacity(config.layers);
        for n in 0..config.layers {
            let mut rows = |width| backend.alloc(&[capacity, width]);
            cache.push(match config.linear_of(n) {
                None => {
                    let [k, v] = config.cache_widths();
                    Cache::Attention { k: rows(k)?, v: rows(v)? }
                }
                Some(c) => Cache::Linear {
                    qkv: rows(c.channels())?,
                    conv: rows(c.channels())?,
                    k: rows(c.key_width())?,
                    decay: rows(c.value_heads)?,
                    beta: rows(c.value_heads)?,
                },
            });
        }
        Ok(Self { cache, capacity, position: 0 })
    }

    /// Positions done so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Goes back to `position`, so that the next call runs there; nothing happens if the session is not that far.
    pub fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
    }
}

/// Runs `tokens` at the session's next positions and returns their logits, [T, V] or [1, V].
///
/// # Errors
/// No tokens, a token that is not in the vocabulary, more positions than the session has room for, or the backend's.
pub fn forward<B: Backend>(
    backend: &mut B,
    model: &Model,
    session: &mut Session<B::Tensor>,
    tokens: &[u32],
    rows: LogitRows,
) -> Result<B::Tensor> {
    let (config, weights) = (&model.config, &model.weights);
    let start = session.position;
    if tokens.is_empty() {
        return Err(Error::usage("no tokens to run: the prompt is empty"));
    }
    if let Some(&token) = tokens.iter().find(|&&t| t as usize >= config.vocab) {
        return Err(Error::usage(format!(
            "token {token} is not in the vocabulary of {} ({} tokens)",
            config.name, config.vocab
        )));
    }
    if tokens.len() > session.capacity - start {
        return Err(Error::usage(format!(
            "{} tokens at position {start}: the session has room for {} positions",
            tokens.len(),
            session.capacity
        )));
    }

    let embed = Op::Embed { table: &weights.token_embd, tokens, scale: config.embedding_scale };
    let mut x = backend.run(At::model(Stage::Embedding, start), &embed)?;
    for (n, layer) in weights.layers.iter().enumerate() {
        let rotation = config.rotation_of(n).with_factors(weights.rope_freqs.as_ref());
        let residual = mixed(backend, config, rotation, layer, n, &session.cache[n], start, x)?;
        x = feed_forward(backend, config, layer, n, start, residual)?;
    }
    let mut first = start; // the position of x's first row
    if rows == LogitRows::Last && tokens.len() > 1 {
        let last = Op::Rows { x, start: tokens.len() - 1, rows: 1 };
        first += tokens.len() - 1;
        x = backend.run(At::layer(config.layers - 1, Stage::LayerOut, first), &last)?;
    }
    let x = norm(backend, At::model(Stage::FinalNorm, first), x, &weights.output_norm, config)?; // [rows, H]
    let logits = matmul(backend, At::model(Stage::Logits, first), &x, &weights.output)?; // [rows, V]
    session.position += tokens.len();
    Ok(logits)
}

/// x [T, H] → x + what mixes positions(norm(x)) [T, H].
#[allow(clippy::too_many_arguments)] // the model's, the layer's, the call's
fn mixed<B: Backend>(
    b: &mut B,
    config: &Config,
    rotation: Rotation<&Arc<Weight>>,
    w: &LayerWeights,
    n: usize,
    cache: &Cache<B::Tensor>,
    start: usize,
    x: B::Tensor,
) -> Result<B::Tensor> {
    let at = |stage| At::layer(n, stage, start);
    let h = norm(b, at(Stage::AttnNorm), x.clone(), &w.attn_norm, config)?; // [T, H]
    let mut out = match (&w.mixer, cache, config.linear) {
        (Mixer::Attention(w), Cache::Attention { k, v }, _) => attention(b, config, rotation, w, n, [k, v], start, h)?,
        (Mixer::Latent(w), Cache::Attention { k, v }, _) => {
            latent_attention(b, config, rotation, w, n, [k, v], start, h)?
        }
        (Mixer::Linear(w), Cache::Linear { qkv, conv, k, decay, beta }, Some(linear)) => {
            linear_attention(b, config, linear, w, n, [qkv, conv, k, decay, beta], start, h)?
        }
        _ => unreachable!("a layer's weights and its cache are made by one configuration"),
    };
    if let Some(weight) = &w.post_norms {
        out = norm(b, at(Stage::AttnPostNorm), out, &weight.attn, config)?;
    }
    b.run(at(Stage::AttnResidual), &Op::Add { a: x, b: out })
}

/// h [T, H] → attention(h) [T, H].
#[allow(clippy::too_many_arguments)] // the model's, the layer's, the call's
fn attention<B: Backend>(
    b: &mut B,
    config: &Config,
    rotation: Rotation<&Arc<Weight>>,
    w: &AttentionWeights,
    n: usize,
    [k_cache, v_cache]: [&B::Tensor; 2],
    start: usize,
    h: B::Tensor,
) -> Result<B::Tensor> {
    let at = |stage| At::layer(n, stage, start);
    let (head_dim, scale, window) = (config.head_dim, config.attention_scale, config.window_of(n));

    let mut q = matmul(b, at(Stage::QProj), &h, &w.q)?; // [T, heads·D]
    let gate = match &w.gate {
        Some(gate) => Some(matmul(b, at(Stage::QGate), &h, gate)?), // [T, heads·D]
        None => None,
    };
    let mut k = matmul(b, at(Stage::KProj), &h, &w.k)?; // [T, kv_heads·D]
    let mut v = matmul(b, at(Stage::VProj), &h, &w.v)?; // [T, kv_heads·D]
    let mut v_stage = Stage::VProj;
    if let Some(bias) = &w.qkv_bias {
        q = b.run(at(Stage::QBias), &Op::Bias { x: q, weight: &bias.q })?;
        k = b.run(at(Stage::KBias), &Op::Bias { x: k, weight: &bias.k })?;
        v = b.run(at(Stage::VBias), &Op::Bias { x: v, weight: &bias.v })?;
        v_stage = Stage::VBias;
    }
    if let Some(weight) = &w.qk_norm {
        q = norm(b, at(Stage::QNorm), q, &weight.q, config)?;
        k = norm(b, at(Stage::KNorm), k, &weight.k, config)?;
    }
    let q = b.run(at(Stage::QRope), &Op::Rope { x: q, start, head_dim, rotation })?;
    let k = b.run(at(Stage::KRope), &Op::Rope { x: k, start, head_dim, rotation })?;
    b.run(at(Stage::KRope), &Op::Store { cache: k_cache.clone(), x: k, start })?;
    b.run(at(v_stage), &Op::Store { cache: v_cache.clone(), x: v, start })?;

    let scores = Op::AttnScores { q, k: k_cache.clone(), start, head_dim, scale, window };
    let scores = b.run(at(Stage::AttnScores), &scores)?; // [heads, T, S]
    let probs = Op::AttnProbs { scores, start, window, sinks: w.sinks.as_ref() };
    let probs = b.run(at(Stage::AttnProbs), &probs)?; // [heads, T, S]
    let context = Op::AttnContext { probs, v: v_cache.clone(), start, head_dim, window };
    let mut context = b.run(at(Stage::AttnContext), &context)?; // [T, heads·D]
    if let Some(gate) = gate {
        let gated = Op::SwiGlu { gate, up: context, activation: GateActivation::Sigmoid };
        context = b.run(at(Stage::AttnGated), &gated)?; // [T, heads·D]
    }
    let out = matmul(b, at(Stage::AttnOut), &context, &w.output)?; // [T, H]
    match &w.output_bias {
        Some(weight) => b.run(at(Stage::AttnOutBias), &Op::Bias { x: out, weight }),
        None => Ok(out),
    }
}

/// h [T, H] → latent attention(h) [T, H].
#[allow(clippy::too_many_arguments)] // the model's, the layer's, the call's
fn latent_attention<B: Backend>(
    b: &mut B,
    config: &Config,
    rotation: Rotation<&Arc<Weight>>,
    w: &LatentWeights,
    n: usize,
    [k_cache, v_cache]: [&B::Tensor; 2],
    start: usize,
    h: B::Tensor,
) -> Result<B::Tensor> {
    let at = |stage| At::layer(n, stage, start);
    let head_dim = |stage| config.head_dim_of(stage);
    let (rank, row) = (w.kv_norm.cols, w.kv_a.rows);
    let (scale, window) = (config.attention_scale.or(Some(1.0 / (config.head_dim as f64).sqrt())), None);

    let kv = matmul(b, at(Stage::KvA), &h, &w.kv_a)?; // [T, rank + turned]
    let norm_latent = Op::RmsNorm { x: kv, weight: &w.kv_norm, eps: config.eps, keep: row - rank };
    let kv = b.run(at(Stage::KvNorm), &norm_latent)?; // [T, rank + turned]
    let q = match &w.q_a {
        Some([q_a, weight]) => {
            let x = matmul(b, at(Stage::QA), &h, q_a)?; // [T, q rank]
            norm(b, at(Stage::QANorm), x, weight, config)?
        }
        None => h,
    };
    let q = matmul(b, at(Stage::QProj), &q, &w.q)?; // [T, heads·D]
    let turn = |x, stage| {
        let head_dim = head_dim(stage);
        Op::Rope { x, start, head_dim, rotation: Rotation { first: head_dim - rotation.turned(head_dim), ..rotation } }
    };
    let q = b.run(at(Stage::QRope), &turn(q, Stage::QRope))?; // [T, heads·D]
    let k = b.run(at(Stage::KRope), &turn(kv.clone(), Stage::KRope))?; // [T, rank + turned]

    let up = |b: &mut B, stage, x: &B::Tensor, weight, head_dim, keep| {
        b.run(at(stage), &Op::HeadMatMul { x: x.clone(), weight, head_dim, keep })
    };
    let (q, context, d) = match &w.heads {
        LatentHeads::Absorbed { q: absorb, .. } => {
            b.run(at(Stage::KRope), &Op::Store { cache: k_cache.clone(), x: k, start })?;
            b.run(at(Stage::KvNorm), &Op::Store { cache: v_cache.clone(), x: kv, start })?; // the latents
            let q = up(b, Stage::QAbsorbed, &q, absorb, config.head_dim, true)?; // [T, heads·(rank + turned)]
            (q, Stage::AttnLatent, row)
        }
        LatentHeads::Plain { k: of_k, v: of_v } => {
            let key = up(b, Stage::KUp, &k, of_k, row, true)?; // [T, heads·D]
            let value = up(b, Stage::VUp, &k, of_v, row, false)?; // [T, heads·value_dim]
            b.run(at(Stage::KUp), &Op::Store { cache: k_cache.clone(), x: key, start })?;
            b.run(at(Stage::VUp), &Op::Store { cache: v_cache.clone(), x: value, start })?;
            (q, Stage::AttnContext, config.head_dim)
        }
    };
    let scores = Op::AttnScores { q, k: k_cache.clone(), start, head_dim: d, scale, window };
    let scores = b.run(at(Stage::AttnScores), &scores)?; // [heads, T, S]
    let probs = b.run(at(Stage::AttnProbs), &Op::AttnProbs { scores, start, window, sinks: None })?; // [heads, T, S]
    let sum = Op::AttnContext { probs, v: v_cache.clone(), start, head_dim: head_dim(context), window };
    let mut sum = b.run(at(context), &sum)?; // [T, heads·rank] or [T, heads·value_dim]
    if let LatentHeads::Absorbed { v, .. } = &w.heads {
        sum = up(b, Stage::AttnContext, &sum, v, rank, false)?; // [T, heads·value_dim]
    }
    matmul(b, at(Stage::AttnOut), &sum, &w.output)
}

/// h [T, H] → linear attention(h) [T, H]: a gated delta rule.
#[allow(clippy::too_many_arguments)] // the model's, the layer's, the call's
fn linear_attention<B: Backend>(
    b: &mut B,
    config: &Config,
    c: LinearConfig,
    w: &LinearWeights,
    n: usize,
    [qkv_cache, conv_cache, k_cache, decay_cache, beta_cache]: [&B::Tensor; 5],
    start: usize,
    h: B::Tensor,
) -> Result<B::Tensor> {
    let at = |stage| At::layer(n, stage, start);
    let (heads, head_dim, eps) = (c.key_heads, c.head_dim, config.eps);
    let keep = |b: &mut B, stage, cache: &B::Tensor, x: &B::Tensor| {
        b.run(at(stage), &Op::Store { cache: cache.clone(), x: x.clone(), start }).map(drop)
    };

    let qkv = matmul(b, at(Stage::LinearAttnQkv), &h, &w.qkv)?; // [T, C]
    let z = matmul(b, at(Stage::LinearAttnZ), &h, &w.z)?; // [T, Hv·D]
    let beta = matmul(b, at(Stage::LinearAttnB), &h, &w.b)?; // [T, Hv]
    let decay = matmul(b, at(Stage::LinearAttnA), &h, &w.a)?; // [T, Hv]
    keep(b, Stage::LinearAttnQkv, qkv_cache, &qkv)?;
    let conv = Op::Conv { x: qkv, cache: qkv_cache.clone(), weight: &w.conv, start };
    let conv = b.run(at(Stage::LinearAttnConv), &conv)?; // [T, C]: q, k and v
    keep(b, Stage::LinearAttnConv, conv_cache, &conv)?;
    let q = Op::L2Norm { x: conv.clone(), first: 0, heads, head_dim, eps };
    let q = b.run(at(Stage::LinearAttnQ), &q)?; // [T, Hk·D]
    let k = Op::L2Norm { x: conv, first: c.key_width(), heads, head_dim, eps };
    let k = b.run(at(Stage::LinearAttnK), &k)?; // [T, Hk·D]
    keep(b, Stage::LinearAttnK, k_cache, &k)?;
    let beta = b.run(at(Stage::LinearAttnBeta), &Op::RouterProbs { logits: beta, sigmoid: true })?; // [T, Hv]
    keep(b, Stage::LinearAttnBeta, beta_cache, &beta)?;
    let decay = b.run(at(Stage::LinearAttnDt), &Op::Bias { x: decay, weight: &w.dt })?; // [T, Hv]
    let decay = b.run(at(Stage::LinearAttnDecay), &Op::Decay { x: decay, weight: &w.decay })?; // [T, Hv]
    keep(b, Stage::LinearAttnDecay, decay_cache, &decay)?;

    let (k, v, decay, beta) = (k_cache.clone(), conv_cache.clone(), decay_cache.clone(), beta_cache.clone());
    let delta = Op::DeltaRule { q, k, v, decay, beta, start, head_dim, tiled: c.tiled };
    let delta = b.run(at(Stage::LinearAttnDelta), &delta)?; // [T, Hv·D]
    let up = norm(b, at(Stage::LinearAttnNorm), delta, &w.norm, config)?; // [T, Hv·D]
    let gated = Op::SwiGlu { gate: z, up, activation: GateActivation::Silu };
    let gated = b.run(at(Stage::LinearAttnGated), &gated)?; // [T, Hv·D]
    matmul(b, at(Stage::LinearAttnOut), &gated, &w.output)
}

/// x [T, H] → x + ffn(norm(x)) [T, H].
fn feed_forward<B: Backend>(
    b: &mut B,
    config: &Config,
    w: &LayerWeights,
    n: usize,
    start: usize,
    x: B::Tensor,
) -> Result<B::Tensor> {
    let at = |stage| At::layer(n, stage, start);
    let activation = config.architecture.activation;
    let h = norm(b, at(Stage::FfnNorm), x.clone(), &w.ffn_norm, config)?; // [T, H]
    let mut out = match &w.ffn {
        Ffn::Dense { gate, up, down } => {
            let gate = matmul(b, at(Stage::FfnGate), &h, gate)?; // [T, F]
            let up = matmul(b, at(Stage::FfnUp), &h, up)?; // [T, F]
            let act = b.run(at(Stage::FfnAct), &Op::SwiGlu { gate, up, activation })?; // [T, F]
            matmul(b, at(Stage::FfnOut), &act, down)? // [T, H]
        }
        Ffn::Moe(moe) => experts(b, config, moe, n, start, h)?,
    };
    if let Some(weight) = &w.post_norms {
        out = norm(b, at(Stage::FfnPostNorm), out, &weight.ffn, config)?;
    }
    b.run(at(Stage::LayerOut), &Op::Add { a: x, b: out })
}

/// h [T, H] → Σ over the chosen experts of weight · expert(h) [T, H].
fn experts<B: Backend>(
    b: &mut B,
    config: &Config,
    w: &MoeWeights,
    n: usize,
    start: usize,
    h: B::Tensor,
) -> Result<B::Tensor> {
    let activation = config.architecture.activation;
    let at = |stage| At::layer(n, stage, start);
    let bias = w.bias.as_ref();
    let mut probs = matmul(b, at(Stage::RouterLogits), &h, &w.router)?; // [T, E]
    if let Some(bias) = bias {
        probs = b.run(at(Stage::RouterBias), &Op::Bias { x: probs, weight: &bias.router })?;
    }
    let (softmax, sigmoid) = (w.by == Router::ChosenSoftmax, w.by == Router::BiasedSigmoids);
    if !softmax {
        probs = b.run(at(Stage::RouterProbs), &Op::RouterProbs { logits: probs, sigmoid })?; // [T, E]
    }
    let choice = match &w.choice_bias {
        Some(weight) => b.run(at(Stage::RouterChoice), &Op::Bias { x: probs.clone(), weight })?, // [T, E]
        None => probs.clone(),
    };
    let choice = Op::RouterTopK { probs: choice, k: w.used, groups: w.groups };
    let ids = b.run(at(Stage::RouterIds), &choice)?; // [T, K]
    let (renormalise, scale) = (w.renormalise, w.scale.into());
    let weights = Op::RouterWeights { probs, ids: ids.clone(), renormalise, softmax, scale };
    let weights = b.run(at(Stage::RouterWeights), &weights)?; // [T, K]

    let gate = expert_matmul(b, at(Stage::ExpertGate), &h, &ids, &w.gate)?; // [T, K, F]
    let gate = expert_bias(b, at(Stage::ExpertGateBias), gate, &ids, bias.map(|bias| &bias.gate))?;
    let up = expert_matmul(b, at(Stage::ExpertUp), &h, &ids, &w.up)?; // [T, K, F]
    let up = expert_bias(b, at(Stage::ExpertUpBias), up, &ids, bias.map(|bias| &bias.up))?;
    let act = b.run(at(Stage::ExpertAct), &Op::SwiGlu { gate, up, activation })?; // [T, K, F]
    let down = expert_matmul(b, at(Stage::ExpertDown), &act, &ids, &w.down)?; // [T, K, H]
    let down = expert_bias(b, at(Stage::ExpertDownBias), down, &ids, bias.map(|bias| &bias.down))?;
    let out = b.run(at(Stage::MoeOut), &Op::Combine { down, weights })?; // [T, H]
    match &w.shared {
        Some(shared) => shared_expert(b, config, shared, n, start, h, out),
        None => Ok(out),
    }
}

/// routed [T, H], h [T, H] → routed + expert(h) [T, H], of the expert that every token uses, times sigmoid(gate) where it has one.
fn shared_expert<B: Backend>(
    b: &mut B,
    config: &Config,
    w: &SharedExpert,
    n: usize,
    start: usize,
    h: B::Tensor,
    routed: B::Tensor,
) -> Result<B::Tensor> {
    let at = |stage| At::layer(n, stage, start);
    let router = match &w.router {
        Some(router) => Some(matmul(b, at(Stage::SharedRouter), &h, router)?), // [T, 1]
        None => None,
    };
    let gate = matmul(b, at(Stage::SharedGate), &h, &w.gate)?; // [T, F]
    let up = matmul(b, at(Stage::SharedUp), &h, &w.up)?; // [T, F]
    let activation = config.architecture.activation;
    let act = b.run(at(Stage::SharedAct), &Op::SwiGlu { gate, up, activation })?; // [T, F]
    let mut shared = matmul(b, at(Stage::SharedDown), &act, &w.down)?; // [T, H]
    if let Some(gate) = router {
        shared = b.run(at(Stage::SharedOut), &Op::SigmoidGate { x: shared, gate })?;
    }
    b.run(at(Stage::MoeSum), &Op::Add { a: routed, b: shared })
}

fn norm<B: Backend>(b: &mut B, at: At, x: B::Tensor, weight: &Arc<Weight>, config: &Config) -> Result<B::Tensor> {
    b.run(at, &Op::RmsNorm { x, weight, eps: config.eps, keep: 0 })
}

fn matmul<B: Backend>(b: &mut B, at: At, x: &B::Tensor, weight: &Arc<Weight>) -> Result<B::Tensor> {
    b.run(at, &Op::MatMul { x: x.clone(), weight })
}

fn expert_matmul<B: Backend>(
    b: &mut B,
    at: At,
    x: &B::Tensor,
    ids: &B::Tensor,
    weight: &Arc<Weight>,
) -> Result<B::Tensor> {
    b.run(at, &Op::ExpertMatMul { x: x.clone(), ids: ids.clone(), weight })
}

/// x [T, K, N] plus its experts' biases, where there are some.
fn expert_bias<B: Backend>(
    b: &mut B,
    at: At,
    x: B::Tensor,
    ids: &B::Tensor,
    weight: Option<&Arc<Weight>>,
) -> Result<B::Tensor> {
    match weight {
        Some(weight) => b.run(at, &Op::ExpertBias { x, ids: ids.clone(), weight }),
        None => Ok(x),
    }
}
