//! Synthetic models: random weights in any shape of a family that the forward pass knows and any mix of types, as a GGUF file that any engine loads.
//!
//! Design:
//! - **Blocks are made, not quantized** (`quant::random`), so gigabytes take seconds.
//! - **A file is a function of its plan and seed**: the same bytes on every machine and with every number of threads. A tensor's
//!   weights depend on its name, not on its place, so a layer of a deeper model has the same bits but for its scales, if its types are the same.
//! - **Activations keep their size.** A matrix of n inputs has weights of rms 1/√n. The two matrices that write to the residual stream
//!   are smaller by √(2·layers), so that all of them together add to the stream about what it began with.
//! - **Matrices of NVFP4 have scales**, as those of NVIDIA's checkpoints do; without them their blocks' scales would be of few values.
//! - **It looks like a trained model where that matters to a test**: mixed types as llama.cpp mixes them ([`Mix`]), a few channels
//!   that all norms amplify 5 to 20 times, routing that differs from token to token, logits with a clear first.

mod mix;
mod named;
mod shape;
mod vocab;

use std::path::Path;

use crate::Result;
use crate::gguf::{self, Array, Metadata, Sink, TensorSpec, Value};
use crate::op::GgmlType;
use crate::quant::random::{RandomBlocks, Rng};

pub use mix::{MIXES, Mix, Role};
pub use shape::{Family, FfnShape, GlmShape, LatentShape, LinearShape, ModelShape, Moe};

/// A model that can be written: all of it but the weights.
pub struct Plan {
    metadata: Metadata,
    tensors: Vec<Planned>,
    seed: u64,
}

/// A tensor to be made.
pub struct Planned {
    pub spec: TensorSpec,
    pub role: Role,
    /// The type that the mix wanted. Where `spec.ty` is another, rows are not whole blocks of this one.
    pub wanted: GgmlType,
    content: Content,
}

#[derive(Clone, Copy)]
enum Content {
    /// Random weights of mean 0 and this root mean square.
    Random { rms: f32 },
    /// Norm weights near 1, with or without outlier channels.
    Norm { outliers: bool },
    /// Biases of about half the size of what they are added to.
    Bias,
    /// What is added to the shares of experts for the choice.
    ChoiceBias,
    /// A sink for each head, about as large as scores are.
    Sinks,
    /// Minus what decays are multiples of: from a long memory to hardly any.
    Decays,
    /// Llama 3's frequency factors for a rotation of this base.
    RopeFreqs { base: f32 },
    /// Scales about this one.
    Scales { scale: f32 },
}

impl Plan {
    /// Plans a model called `name`.
    ///
    /// # Errors
    /// If the shape is not one of a model, or a tensor would not fit 63 bits.
    pub fn new(name: &str, shape: &ModelShape, mix: &Mix, seed: u64) -> Result<Self> {
        shape.check()?;
        let tensors = tensors(shape, mix);
        for tensor in &tensors {
            tensor.spec.bytes()?;
        }
        Ok(Self { metadata: metadata(name, shape, mix), tensors, seed })
    }

    pub fn tensors(&self) -> &[Planned] {
        &self.tensors
    }

    /// Bytes of all weights, without padding.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().filter_map(|t| t.spec.bytes().ok()).fold(0, u64::saturating_add)
    }

    /// Writes the model at `path`, whole or not at all. `progress` is told of every piece how many bytes it has.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path, progress: impl FnMut(u64)) -> Result<()> {
        let specs: Vec<_> = self.tensors.iter().map(|t| t.spec.clone()).collect();
        gguf::write(path, &self.metadata, &specs, self.filler(progress))
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// If the metadata or the tensors' names are ones that no file can have.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let specs: Vec<_> = self.tensors.iter().map(|t| t.spec.clone()).collect();
        let mut bytes = Vec::new();
        gguf::write_to(&mut bytes, &self.metadata, &specs, self.filler(|_| ()))?;
        Ok(bytes)
    }

    /// Puts the data of each tensor into a writer's sink.
    fn filler(&self, mut progress: impl FnMut(u64)) -> impl FnMut(&TensorSpec, &mut Sink) -> Result<()> {
        let mut next = 0;
        let mut buffer = Vec::new();
        move |spec, sink| {
            let content = self.tensors[next].content; // the writer asks for tensors in the order of `specs`
            next += 1;
            let key = Rng::new(self.seed, fnv1a(&spec.name)).bits();
            match content {
                Content::Random { rms } => put_random(spec, rms, key, &mut buffer, sink, &mut progress),
                Content::Norm { .. }
                | Content::Bias
                | Content::ChoiceBias
                | Content::Sinks
                | Content::Decays
                | Content::RopeFreqs { .. }
                | Content::Scales { .. } => {
                    let n = spec.dims.iter().product();
                    let values = match content {
                        Content::Norm { outliers } => norm_weights(n, key, outliers.then_some(self.seed)),
                        Content::RopeFreqs { base } => rope_freqs(n, base),
                        Content::Scales { scale } => (0..n).map(|i| scale * (0.5 + Rng::new(key, i).unit())).collect(),
                        Content::Sinks => (0..n).map(|i| 1.0 + 2.0 * Rng::new(key, i).normal()).collect(),
                        Content::Decays => (0..n).map(|i| -(Rng::new(key, i).normal() - 1.0).exp()).collect(),
                        // Beside sigmoids: it changes which of near ones are chosen.
                        Content::ChoiceBias => (0..n).map(|i| 0.1 * Rng::new(key, i).normal()).collect(),
                        _ => (0..n).map(|i| 0.5 * Rng::new(key, i).normal()).collect(),
                    };
                    let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
                    progress(bytes.len() as u64);
                    sink.put(&bytes)
                }
            }
        }
    }
}

/// Makes and writes a tensor's blocks piece by piece.
fn put_random(
    spec: &TensorSpec,
    rms: f32,
    key: u64,
    buffer: &mut Vec<u8>,
    sink: &mut Sink,
    progress: &mut impl FnMut(u64),
) -> Result<()> {
    const PIECE: usize = 16 << 20; // enough for all threads, small beside any tensor that takes time
    let random = RandomBlocks::new(spec.ty, rms, key)?;
    let block = spec.ty.block_bytes();
    let piece = (PIECE / block) as u64;
    let blocks = spec.bytes()? / block as u64;
    let mut first = 0;
    while first < blocks {
        let n = piece.min(blocks - first);
        buffer.resize(n as usize * block, 0);
        random.fill(first, buffer);
        sink.put(buffer)?;
        progress(buffer.len() as u64);
        first += n;
    }
    Ok(())
}

/// Weights of a norm: near 1, except for outlier channels, the same in every norm of a model, which are 5 to 20.
fn norm_weights(n: u64, key: u64, outliers: Option<u64>) -> Vec<f32> {
    let mut weights: Vec<f32> = (0..n).map(|i| 1.0 + 0.1 * Rng::new(key, i).normal()).collect();
    if let Some(seed) = outliers {
        let mut channels = Rng::new(seed, 0);
        let mut sizes = Rng::new(key, n);
        for _ in 0..(n / 512).max(1) {
            weights[channels.below(n) as usize] = 5.0 + 15.0 * sizes.unit();
        }
    }
    weights
}

/// What Llama 3.2 divides the frequencies of `n` pairs by (`rope_type: llama3`): 1 where a wave is shorter than 2048 positions, 32 where
/// it is longer than 8192, and something smooth in between.
fn rope_freqs(n: u64, base: f32) -> Vec<f32> {
    let factor = |i: u64| {
        let wave = std::f64::consts::TAU * f64::from(base).powf(i as f64 / n as f64);
        let smooth = ((8192.0 / wave - 1.0) / 3.0).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / 32.0 + smooth)) as f32
    };
    (0..n).map(factor).collect()
}

/// FNV-1a: a tensor's name as a number.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3))
}

/// The root mean square of weights that a scale makes small: in the middle of what scales of blocks can be.
const SCALED: f32 = 16.0;

/// Whether a weight of NVFP4 has a scale beside it: those that llama.cpp looks for one of.
fn has_scale(name: &str, ty: GgmlType) -> bool {
    const PARTS: &[&str] = &[
        "output",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "attn_qkv",
        "attn_gate",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
        "ffn_gate_exps",
        "ffn_up_exps",
        "ffn_down_exps",
        "ffn_gate_shexp",
        "ffn_up_shexp",
        "ffn_down_shexp",
        "ssm_out",
        "ssm_alpha",
        "ssm_beta",
    ];
    let part = name.strip_suffix(".weight").and_then(|name| name.rsplit('.').next());
    ty == GgmlType::NVFP4 && part.is_some_and(|part| PARTS.contains(&part))
}

/// All tensors, in the order in which llama.cpp's tools write them.
fn tensors(shape: &ModelShape, mix: &Mix) -> Vec<Planned> {
    let (hidden, q, kv) = (shape.hidden as u64, shape.q_width(), shape.kv_width());
    let (head_dim, width, vocab) = (shape.head_dim as u64, shape.ffn_width() as u64, shape.vocab as u64);
    let to_residual = 1.0 / (2.0 * shape.layers as f32).sqrt();
    let used = shape.moe().map_or(1.0, |m| m.used as f32);

    let mut out = Vec::new();
    let mut matrix = |name: String, role, layer, dims: &[u64], gain: f32| {
        let wanted = mix.choose(role, layer, shape);
        let ty = mix::fitting(wanted, dims[0]);
        let content = match role {
            Role::Norm => {
                let of_heads = ["_k_norm", "_q_norm", "_a_norm"].iter().any(|part| name.contains(part));
                Content::Norm { outliers: dims[0] == hidden && !of_heads }
            }
            Role::Bias if name.ends_with("exp_probs_b.bias") => Content::ChoiceBias,
            Role::Bias => Content::Bias,
            Role::Sinks => Content::Sinks,
            Role::Decay => Content::Decays,
            Role::RopeFreqs => Content::RopeFreqs { base: shape.rope_base },
            _ if has_scale(&name, ty) => Content::Random { rms: SCALED },
            _ => Content::Random { rms: gain / (dims[0] as f32).sqrt() },
        };
        out.push(Planned { spec: TensorSpec::new(&name, ty, dims), role, wanted, content });
        if has_scale(&name, ty) {
            let (name, experts) = (name.replace(".weight", ".scale"), dims.get(2).copied().unwrap_or(1));
            let content = Content::Scales { scale: gain / (dims[0] as f32).sqrt() / SCALED };
            let spec = TensorSpec::new(&name, GgmlType::F32, &[experts]);
            out.push(Planned { spec, role: Role::Scale, wanted: GgmlType::F32, content });
        }
    };

    // Logits of standard deviation 3: over a vocabulary of 150,000 the first is then some way ahead of the rest.
    const LOGITS: f32 = 3.0;
    if !shape.tied {
        matrix("output.weight".into(), Role::Output, 0, &[hidden, vocab], LOGITS);
    }
    matrix("output_norm.weight".into(), Role::Norm, 0, &[hidden], 1.0);
    // The stream begins with rms 1, unless the embedding has to serve as a head.
    // Gemma's is multiplied by √H on the way.
    let gemma = shape.family == Family::Gemma3;
    let embedding = if shape.tied || gemma { LOGITS } else { (hidden as f32).sqrt() };
    matrix("token_embd.weight".into(), Role::TokenEmbd, 0, &[hidden, vocab], embedding);
    if shape.rope_freqs {
        matrix("rope_freqs.weight".into(), Role::RopeFreqs, 0, &[head_dim / 2], 1.0);
    }
    let (glm, linear, latent) = (shape.glm(), shape.linear(), shape.latent());
    let predicting = glm.map_or(0, |glm| glm.predicting_layers);
    let [dense_layers, dense_width] = shape.dense().unwrap_or([0, 0]);
    let biased_choice = glm.is_some() || latent.is_some_and(|latent| latent.sigmoid);
    for layer in 0..shape.layers + predicting {
        let gpt_oss = shape.family == Family::GptOss;
        if gpt_oss {
            let experts = shape.moe().map_or(0, |m| m.experts as u64);
            for (part, dims) in [
                ("attn_output.bias", &[hidden][..]),
                ("ffn_down_exps.bias", &[hidden, experts]),
                ("ffn_gate_exps.bias", &[width, experts]),
                ("ffn_gate_inp.bias", &[experts]),
                ("ffn_up_exps.bias", &[width, experts]),
            ] {
                matrix(format!("blk.{layer}.{part}"), Role::Bias, layer, dims, 1.0);
            }
        }
        if let (true, Some(moe)) = (biased_choice && layer >= dense_layers, shape.moe()) {
            matrix(format!("blk.{layer}.exp_probs_b.bias"), Role::Bias, layer, &[moe.experts.into()], 1.0);
        }
        if gpt_oss || glm.is_some() || shape.family == Family::Qwen2 {
            for (part, width) in [("k", kv), ("q", q), ("v", kv)] {
                matrix(format!("blk.{layer}.attn_{part}.bias"), Role::Bias, layer, &[width], 1.0);
            }
        }
        if let Some(of) = linear.filter(|linear| linear.has(layer)) {
            let heads = of.value_heads.into();
            matrix(format!("blk.{layer}.ssm_a"), Role::Decay, layer, &[heads], 1.0);
            matrix(format!("blk.{layer}.ssm_dt.bias"), Role::Bias, layer, &[heads], 1.0);
        }
        let mut tensor = |name: &str, role, dims: &[u64], gain| {
            matrix(format!("blk.{layer}.{name}.weight"), role, layer, dims, gain);
        };
        let qk_norm = match shape.family {
            Family::Qwen3 | Family::Gemma3 | Family::Qwen3Next | Family::Qwen35 => Some([head_dim, head_dim]),
            Family::Olmoe => Some([q, kv]),
            Family::Glm4Moe if glm.is_some_and(|glm| glm.qk_norm) => Some([head_dim, head_dim]),
            _ => None,
        };
        match linear.filter(|linear| linear.has(layer)) {
            _ if latent.is_some() => latent_attention(shape, to_residual, &mut tensor),
            Some(of) => {
                let (heads, values) = (u64::from(of.value_heads), of.value_width());
                tensor("attn_gate", Role::AttnQ, &[hidden, values], 1.0);
                tensor("attn_norm", Role::Norm, &[hidden], 1.0);
                tensor("attn_qkv", Role::AttnQ, &[hidden, of.channels()], 1.0);
                if shape.family == Family::Qwen3Next {
                    tensor("ssm_ba", Role::AttnQ, &[hidden, 2 * heads], 1.0);
                } else {
                    tensor("ssm_alpha", Role::AttnQ, &[hidden, heads], 1.0);
                    tensor("ssm_beta", Role::AttnQ, &[hidden, heads], 1.0);
                }
                tensor("ssm_conv1d", Role::Conv, &[of.kernel.into(), of.channels()], 1.0);
                tensor("ssm_norm", Role::Norm, &[of.head_dim.into()], 1.0);
                // silu of a standard normal value has rms 0.6.
                tensor("ssm_out", Role::AttnOutput, &[values, hidden], to_residual / 0.6);
            }
            None => {
                // A gate for each value of q, beside it.
                let queries = if linear.is_some() { 2 * q } else { q };
                tensor("attn_k", Role::AttnK, &[hidden, kv], 1.0);
                if let Some([_, k]) = qk_norm {
                    tensor("attn_k_norm", Role::Norm, &[k], 1.0);
                }
                tensor("attn_norm", Role::Norm, &[hidden], 1.0);
                tensor("attn_output", Role::AttnOutput, &[q, hidden], to_residual);
                tensor("attn_q", Role::AttnQ, &[hidden, queries], 1.0);
                if let Some([q, _]) = qk_norm {
                    tensor("attn_q_norm", Role::Norm, &[q], 1.0);
                }
                tensor("attn_v", Role::AttnV, &[hidden, kv], 1.0);
            }
        }
        if gpt_oss {
            tensor("attn_sinks", Role::Sinks, &[shape.heads as u64], 1.0);
        }
        if gemma {
            tensor("post_attention_norm", Role::Norm, &[hidden], 1.0);
            tensor("post_ffw_norm", Role::Norm, &[hidden], 1.0);
        }
        // silu(g)·u of two standard normal values has rms 0.596, and a mean over K experts takes √K away. gpt-oss's gate and up are three times
        // as large, so that some are beyond their limits, and what it makes of them has rms 6.4.
        let (inward, rms) = if gpt_oss { (3.0, 6.4) } else { (1.0, 0.596) };
        let down = to_residual * used.sqrt() / rms;
        let ffn_norm = if gpt_oss || glm.is_some() || linear.is_some() { "post_attention_norm" } else { "ffn_norm" };
        if layer >= shape.layers {
            tensor("nextn.eh_proj", Role::FfnUp, &[2 * hidden, hidden], 1.0);
            tensor("nextn.enorm", Role::Norm, &[hidden], 1.0);
            tensor("nextn.hnorm", Role::Norm, &[hidden], 1.0);
            tensor("nextn.shared_head_norm", Role::Norm, &[hidden], 1.0);
        }
        // Weights that are multiplied by a number say as much together as those that are not.
        let down = down / glm.map_or(1.0, |glm| glm.weights_scale) / latent.map_or(1.0, |latent| latent.weights_scale);
        let ffn = if layer < dense_layers { FfnShape::Dense(dense_width) } else { shape.ffn };
        match ffn {
            FfnShape::Dense(width) => {
                let (width, down) = (width.into(), if layer < dense_layers { to_residual / rms } else { down });
                tensor("ffn_down", Role::FfnDown, &[width, hidden], down);
                tensor("ffn_gate", Role::FfnGate, &[hidden, width], 1.0);
                tensor(ffn_norm, Role::Norm, &[hidden], 1.0);
                tensor("ffn_up", Role::FfnUp, &[hidden, width], 1.0);
            }
            FfnShape::Moe(Moe { experts, .. }) => {
                let experts = experts as u64;
                tensor("ffn_down_exps", Role::FfnDown, &[width, hidden, experts], down);
                tensor("ffn_gate_exps", Role::FfnGate, &[hidden, width, experts], inward);
                // Router logits of standard deviation 2: of 128 experts the first then has about 8 times the weight of the eighth.
                tensor("ffn_gate_inp", Role::Router, &[hidden, experts], 2.0);
                tensor(ffn_norm, Role::Norm, &[hidden], 1.0);
                tensor("ffn_up_exps", Role::FfnUp, &[hidden, width, experts], inward);
                if let Some(width) = shape.shared_width() {
                    tensor("ffn_down_shexp", Role::FfnDown, &[width, hidden], to_residual / 0.596);
                    if glm.is_none() && latent.is_none() {
                        tensor("ffn_gate_inp_shexp", Role::Router, &[hidden], 1.0);
                    }
                    tensor("ffn_gate_shexp", Role::FfnGate, &[hidden, width], 1.0);
                    tensor("ffn_up_shexp", Role::FfnUp, &[hidden, width], 1.0);
                }
            }
        }
    }
    out
}

/// Latent attention as llama.cpp's converter writes it today: q is multiplied by what would make keys, so that the latent is the one key.
fn latent_attention(shape: &ModelShape, to_residual: f32, tensor: &mut impl FnMut(&str, Role, &[u64], f32)) {
    let Some(of) = shape.latent() else { return };
    let [hidden, heads, rank] = [shape.hidden, shape.heads, of.rank].map(u64::from);
    let [nope, pe, values] = [of.nope, of.pe, of.values].map(u64::from);
    // A key is a sum over the latent, though the rows of this are of the other axis.
    tensor("attn_k_b", Role::Heads, &[nope, rank, heads], (nope as f32 / rank as f32).sqrt());
    tensor("attn_kv_a_mqa", Role::AttnQ, &[hidden, rank + pe], 1.0);
    tensor("attn_kv_a_norm", Role::Norm, &[rank], 1.0);
    tensor("attn_norm", Role::Norm, &[hidden], 1.0);
    tensor("attn_output", Role::AttnOutput, &[heads * values, hidden], to_residual);
    match of.q_rank.map(u64::from) {
        Some(q_rank) => {
            tensor("attn_q_a", Role::AttnQ, &[hidden, q_rank], 1.0);
            tensor("attn_q_a_norm", Role::Norm, &[q_rank], 1.0);
            tensor("attn_q_b", Role::AttnQ, &[q_rank, heads * (nope + pe)], 1.0);
        }
        None => tensor("attn_q", Role::AttnQ, &[hidden, heads * (nope + pe)], 1.0),
    }
    tensor("attn_v_b", Role::Heads, &[rank, values, heads], 1.0);
}

/// The keys that files of the family have.
fn metadata(name: &str, shape: &ModelShape, mix: &Mix) -> Metadata {
    let architecture = shape.architecture();
    let mut m = Metadata::new(name);
    let text = |s: &str| Value::String(s.into());
    m.set("general.architecture", text(architecture));
    m.set("general.type", text("model"));
    m.set("general.name", text(name));
    m.set("general.description", text("random weights, for tests and measurements"));
    let mut set = |key: &str, value| m.set(&format!("{architecture}.{key}"), value);
    set("context_length", Value::U32(shape.context));
    set("embedding_length", Value::U32(shape.hidden));
    let (glm, linear, latent) = (shape.glm(), shape.linear(), shape.latent());
    set("block_count", Value::U32(shape.layers + glm.map_or(0, |glm| glm.predicting_layers)));
    // Qwen's is that of all experts of a token together, the others' that of one.
    let qwen = matches!(shape.family, Family::Qwen3 | Family::Qwen2);
    let all_used = shape.moe().filter(|_| qwen).map_or(1, |m| m.used);
    let ffn_width = shape.dense().map_or(shape.ffn_width().saturating_mul(all_used), |[_, width]| width);
    set("feed_forward_length", Value::U32(ffn_width));
    set("attention.head_count", Value::U32(shape.heads));
    // Of latent attention: what one key and one value for all heads have, and then what heads would have.
    let widths = latent.map(|of| [of.rank + of.pe, of.rank]).unwrap_or([shape.head_dim; 2]);
    set("attention.head_count_kv", Value::U32(latent.map_or(shape.kv_heads, |_| 1)));
    set("attention.key_length", Value::U32(widths[0]));
    set("attention.value_length", Value::U32(widths[1]));
    if let Some(of) = latent {
        set("vocab_size", Value::U32(shape.vocab));
        set("attention.key_length_mla", Value::U32(of.nope + of.pe));
        set("attention.value_length_mla", Value::U32(of.values));
        set("attention.kv_lora_rank", Value::U32(of.rank));
        if let Some(q_rank) = of.q_rank {
            set("attention.q_lora_rank", Value::U32(q_rank));
        }
        set("rope.dimension_count", Value::U32(of.pe));
    }
    set("attention.layer_norm_rms_epsilon", Value::F32(shape.eps));
    set("rope.freq_base", Value::F32(shape.rope_base));
    let windows = matches!(shape.family, Family::Gemma3 | Family::GptOss);
    if let Some([keys, period]) = shape.window.filter(|_| windows) {
        set("attention.sliding_window", Value::U32(keys));
        if shape.family == Family::Gemma3 && period != 6 {
            set("attention.sliding_window_pattern", Value::U32(period));
        }
    }
    if let Some(linear) = linear {
        let turned = shape.head_dim / linear.turned;
        set("rope.dimension_count", Value::U32(turned));
        if shape.family == Family::Qwen35 {
            // Pairs of time, height and width in turn.
            let sections = [0, 1, 2].map(|section| (turned / 2 + 2 - section) as i32 / 3);
            set("rope.dimension_sections", Value::Array(Array::I32([&sections[..], &[0]].concat())));
        }
        set("full_attention_interval", Value::U32(linear.interval));
        set("ssm.conv_kernel", Value::U32(linear.kernel));
        set("ssm.state_size", Value::U32(linear.head_dim));
        set("ssm.group_count", Value::U32(linear.key_heads));
        set("ssm.time_step_rank", Value::U32(linear.value_heads));
        set("ssm.inner_size", Value::U32(linear.value_width() as u32));
    }
    if let Some(factor) = shape.yarn {
        set("rope.scaling.type", text("yarn"));
        set("rope.scaling.factor", Value::F32(factor));
        set("rope.scaling.original_context_length", Value::U32((shape.context as f32 / factor) as u32));
        if let Some(of) = latent {
            set("rope.scaling.yarn_beta_fast", Value::F32(32.0));
            set("rope.scaling.yarn_beta_slow", Value::F32(1.0));
            set("rope.scaling.yarn_log_multiplier", Value::F32(0.1 * of.mscale)); // a tenth, as the converter has it
        }
    }
    if let Some(moe) = shape.moe() {
        set("expert_count", Value::U32(moe.experts));
        set("expert_used_count", Value::U32(moe.used));
        if qwen || glm.is_some() || linear.is_some() || latent.is_some() || shape.family == Family::GptOss {
            set("expert_feed_forward_length", Value::U32(moe.width));
        }
        if let Some(glm) = glm {
            set("rope.dimension_count", Value::U32(shape.head_dim / 2));
            set("expert_shared_count", Value::U32(1));
            set("leading_dense_block_count", Value::U32(glm.dense_layers));
            set("expert_gating_func", Value::U32(2));
            set("expert_weights_scale", Value::F32(glm.weights_scale));
            set("expert_weights_norm", Value::Bool(true));
            set("expert_group_count", Value::U32(1));
            set("expert_group_used_count", Value::U32(1));
            set("nextn_predict_layers", Value::U32(glm.predicting_layers));
        } else if let Some(of) = latent {
            set("expert_shared_count", Value::U32(of.shared));
            set("leading_dense_block_count", Value::U32(of.dense_layers));
            set("expert_gating_func", Value::U32(if of.sigmoid { 2 } else { 1 }));
            set("expert_weights_scale", Value::F32(of.weights_scale));
            if of.sigmoid {
                set("expert_weights_norm", Value::Bool(true));
            }
            set("expert_group_count", Value::U32(of.groups[0]));
            set("expert_group_used_count", Value::U32(of.groups[1]));
        } else if let Some(width) = shape.shared_width() {
            set("expert_shared_feed_forward_length", Value::U32(width as u32));
        }
    }
    let vocab = vocab::vocab(shape.vocab);
    m.set("tokenizer.ggml.model", text("gpt2"));
    let pre = match shape.family {
        Family::Llama => "llama-bpe",
        Family::GptOss => "gpt-4o",
        Family::Glm4Moe => "glm4",
        Family::Qwen35 => "qwen35",
        Family::DeepSeek2 if latent.is_some_and(|of| of.sigmoid) => "deepseek-v3",
        Family::DeepSeek2 => "deepseek-llm",
        _ => "qwen2",
    };
    m.set("tokenizer.ggml.pre", text(pre));
    m.set("tokenizer.ggml.tokens", Value::Array(Array::String(vocab.tokens)));
    m.set("tokenizer.ggml.token_type", Value::Array(Array::I32(vocab.types)));
    m.set("tokenizer.ggml.merges", Value::Array(Array::String(vocab.merges)));
    m.set("tokenizer.ggml.eos_token_id", Value::U32(vocab.im_end));
    m.set("tokenizer.ggml.bos_token_id", Value::U32(vocab.end_of_text));
    m.set("tokenizer.ggml.padding_token_id", Value::U32(vocab.end_of_text));
    m.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    m.set("general.quantization_version", Value::U32(2));
    m.set("general.file_type", Value::U32(mix.file_type));
    m
}
