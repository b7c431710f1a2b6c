//! The weights of a model: views of the mapped file, each checked against the hyperparameters. What holds them is generic over what a weight is: where a
//! file is checked, one that may not be there.

use std::sync::Arc;

use rayon::prelude::*;

use super::arch::Router;
use crate::error::Result;
use crate::op::{GgmlType, Groups, Weight};
use crate::quant::first_not_finite;

/// The weights of one layer.
#[derive(Clone)]
pub struct LayerWeights<W = Arc<Weight>> {
    /// `[H]`.
    pub attn_norm: W,
    /// What mixes positions.
    pub mixer: Mixer<W>,
    /// What normalises what attention and FFN add to the residual, `[H]`, in models that have it.
    pub post_norms: Option<PostNorms<W>>,
    /// `[H]`.
    pub ffn_norm: W,
    /// The feed-forward part.
    pub ffn: Ffn<W>,
}

/// What mixes the positions of a layer.
#[derive(Clone)]
pub enum Mixer<W = Arc<Weight>> {
    /// Attention over the positions up to one's own, or a window of them.
    Attention(AttentionWeights<W>),
    /// A state that each position decays and adds to: a gated delta rule.
    Linear(LinearWeights<W>),
    /// Attention over the latents of the positions up to one's own.
    Latent(LatentWeights<W>),
}

/// The weights of attention.
#[derive(Clone)]
pub struct AttentionWeights<W = Arc<Weight>> {
    /// `[H, heads·D]`.
    pub q: W,
    /// Of the gate that multiplies what attention gives, `[H, heads·D]`, in models that have it.
    pub gate: Option<W>,
    /// `[H, kv_heads·D]`.
    pub k: W,
    /// `[H, kv_heads·D]`.
    pub v: W,
    /// Of q, k and v, in models that have them.
    pub qkv_bias: Option<QkvBias<W>>,
    /// A score for each head, `[heads]`, that takes part in the softmax of attention and has no key, in models that have them.
    pub sinks: Option<W>,
    /// Of q and k, in models that have them.
    pub qk_norm: Option<QkNorm<W>>,
    /// `[heads·D, H]`.
    pub output: W,
    /// `[H]`, in models that have it.
    pub output_bias: Option<W>,
}

/// The weights of linear attention: Hk key heads and Hv value heads of D, C = 2·Hk·D + Hv·D channels.
#[derive(Clone)]
pub struct LinearWeights<W = Arc<Weight>> {
    /// Queries, keys and values, `[H, C]`.
    pub qkv: W,
    /// The gate of the output, `[H, Hv·D]`.
    pub z: W,
    /// What beta is the sigmoid of, `[H, Hv]`.
    pub b: W,
    /// What the decay is made of, `[H, Hv]`.
    pub a: W,
    /// The convolution's, `[L, C]`.
    pub conv: W,
    /// Added to what the decay is made of, `[Hv]`.
    pub dt: W,
    /// What the decay's logarithm is a multiple of, `[Hv]`.
    pub decay: W,
    /// Of the norm of each head of the output, `[D]`.
    pub norm: W,
    /// `[Hv·D, H]`.
    pub output: W,
}

/// The weights of multi-head latent attention.
#[derive(Clone)]
pub struct LatentWeights<W = Arc<Weight>> {
    /// A position's latent and the part of a key that turns, `[H, rank + turned]`.
    pub kv_a: W,
    /// Of the norm of the latent, `[rank]`.
    pub kv_norm: W,
    /// What queries are projected through, `[H, q rank]`, and its norm's, `[q rank]`, in models that have it.
    pub q_a: Option<[W; 2]>,
    /// `[H or q rank, heads·D]`.
    pub q: W,
    /// How heads and latents meet.
    pub heads: LatentHeads<W>,
    /// `[heads·value_dim, H]`.
    pub output: W,
}

/// How the heads of latent attention and its latents meet.
#[derive(Clone)]
pub enum LatentHeads<W = Arc<Weight>> {
    /// Queries are taken to where the latents are, `[D − turned, rank, heads]`, and the latents' weighted sums to values, `[rank, value_dim, heads]`.
    #[allow(missing_docs)] // said above
    Absorbed { q: W, v: W },
    /// Keys `[rank, D − turned, heads]` and values `[rank, value_dim, heads]` are made of the latents.
    #[allow(missing_docs)] // said above
    Plain { k: W, v: W },
}

/// Biases: `[heads·D]`, `[kv_heads·D]` and `[kv_heads·D]`.
#[allow(missing_docs)] // said above
#[derive(Clone)]
pub struct QkvBias<W = Arc<Weight>> {
    pub q: W,
    pub k: W,
    pub v: W,
}

/// Weights of the norms of q and of k: of each head, `[D]`, or of the rows, `[heads·D]` and `[kv_heads·D]`.
#[allow(missing_docs)] // said above
#[derive(Clone)]
pub struct QkNorm<W = Arc<Weight>> {
    pub q: W,
    pub k: W,
}

/// Weights of the norms after attention and after the FFN, `[H]`.
#[allow(missing_docs)] // said above
#[derive(Clone)]
pub struct PostNorms<W = Arc<Weight>> {
    pub attn: W,
    pub ffn: W,
}

/// What follows attention in a layer.
#[derive(Clone)]
pub enum Ffn<W = Arc<Weight>> {
    /// One feed-forward network: gate and up `[H, F]`, down `[F, H]`.
    #[allow(missing_docs)] // said above
    Dense { gate: W, up: W, down: W },
    /// A mixture of experts.
    Moe(MoeWeights<W>),
}

/// A router and its experts, each [E, F, H] or, for down, [E, H, F].
#[derive(Clone)]
pub struct MoeWeights<W = Arc<Weight>> {
    /// `[H, E]`.
    pub router: W,
    /// `[H, F, E]`.
    pub gate: W,
    /// `[H, F, E]`.
    pub up: W,
    /// `[F, H, E]`.
    pub down: W,
    /// Of router and experts, in models that have them.
    pub bias: Option<MoeBias<W>>,
    /// What is added to the experts' probabilities for the choice alone, `[E]`, in models that have it.
    pub choice_bias: Option<W>,
    /// Experts used for one token, and whether their weights are renormalised: [`MoeConfig`](super::MoeConfig)'s.
    pub used: usize,
    /// Whether the chosen experts' probabilities are divided by their sum.
    pub renormalise: bool,
    /// What the chosen experts' probabilities are multiplied by.
    pub scale: f32,
    /// How experts are chosen and weighed.
    pub by: Router,
    /// Groups of experts, of which some are chosen from, in models that have them.
    pub groups: Option<Groups>,
    /// The expert that every token uses.
    pub shared: Option<SharedExpert<W>>,
}

/// Biases of a router, `[E]`, and of its experts, a row for each: of gate and up [E, F], of down [E, H].
#[allow(missing_docs)] // said above
#[derive(Clone)]
pub struct MoeBias<W = Arc<Weight>> {
    pub router: W,
    pub gate: W,
    pub up: W,
    pub down: W,
}

/// An expert beside those behind the router: its gate `[H, 1]`, of which the sigmoid is taken, where it has one, and a feed-forward network,
/// gate and up `[H, F]`, down `[F, H]`.
#[allow(missing_docs)] // said above
#[derive(Clone)]
pub struct SharedExpert<W = Arc<Weight>> {
    pub router: Option<W>,
    pub gate: W,
    pub up: W,
    pub down: W,
}

/// The weights of a model.
#[derive(Clone)]
pub struct Weights<W = Arc<Weight>> {
    /// [V, H]
    pub token_embd: W,
    /// What divides rope's frequencies, `[D/2]`, in models that have it.
    pub rope_freqs: Option<W>,
    /// One for each layer.
    pub layers: Vec<LayerWeights<W>>,
    /// `[H]`.
    pub output_norm: W,
    /// [V, H]; `token_embd` itself where the file has no `output.weight`.
    pub output: W,
    /// Tensors of the file that the architecture does not add, and which are zero.
    pub zero_biases: Vec<String>,
    /// Tensors of scales for activations, which nothing here makes use of.
    pub input_scales: Vec<String>,
}

/// The one list of a layer's weights, in the order of the forward pass, borrowed by `&` and `iter` or by `&mut` and `iter_mut`.
macro_rules! of_layer {
    ($layer:expr, $iter:ident, $($by:tt)+) => {{
        let layer = $layer;
        let mut all = vec![$($by)+ layer.attn_norm];
        match $($by)+ layer.mixer {
            Mixer::Attention(a) => {
                all.push($($by)+ a.q);
                all.extend(a.gate.$iter());
                all.extend([$($by)+ a.k, $($by)+ a.v]);
                all.extend(a.qkv_bias.$iter().flat_map(|b| [$($by)+ b.q, $($by)+ b.k, $($by)+ b.v]));
                all.extend(a.qk_norm.$iter().flat_map(|n| [$($by)+ n.q, $($by)+ n.k]));
                all.extend(a.sinks.$iter());
                all.push($($by)+ a.output);
                all.extend(a.output_bias.$iter());
            }
            Mixer::Linear(l) => all.extend([
                $($by)+ l.qkv, $($by)+ l.z, $($by)+ l.b, $($by)+ l.a, $($by)+ l.conv, $($by)+ l.dt, $($by)+ l.decay, $($by)+ l.norm,
                $($by)+ l.output,
            ]),
            Mixer::Latent(l) => {
                all.extend([$($by)+ l.kv_a, $($by)+ l.kv_norm]);
                all.extend(l.q_a.$iter().flatten());
                all.push($($by)+ l.q);
                match $($by)+ l.heads {
                    LatentHeads::Absorbed { q, v } => all.extend([q, v]),
                    LatentHeads::Plain { k, v } => all.extend([k, v]),
                }
                all.push($($by)+ l.output);
            }
        }
        let (after_attn, after_ffn) = match $($by)+ layer.post_norms {
            Some(PostNorms { attn, ffn }) => (Some(attn), Some(ffn)),
            None => (None, None),
        };
        all.extend(after_attn);
        all.push($($by)+ layer.ffn_norm);
        match $($by)+ layer.ffn {
            Ffn::Dense { gate, up, down } => all.extend([gate, up, down]),
            Ffn::Moe(m) => {
                all.extend([$($by)+ m.router, $($by)+ m.gate, $($by)+ m.up, $($by)+ m.down]);
                all.extend(m.bias.$iter().flat_map(|b| [$($by)+ b.router, $($by)+ b.gate, $($by)+ b.up, $($by)+ b.down]));
                all.extend(m.choice_bias.$iter());
                let of_shared = m.shared.$iter().flat_map(|s| {
                    s.router.$iter().chain([$($by)+ s.gate, $($by)+ s.up, $($by)+ s.down])
                });
                all.extend(of_shared);
            }
        }
        all.extend(after_ffn);
        all
    }};
}

impl LayerWeights {
    /// Every weight of the layer, in the order of the forward pass.
    pub fn all(&self) -> Vec<&Arc<Weight>> {
        of_layer!(self, iter, &)
    }

    /// The same, to be exchanged.
    pub fn all_mut(&mut self) -> Vec<&mut Arc<Weight>> {
        of_layer!(self, iter_mut, &mut)
    }
}

impl Weights {
    /// Every weight once, in the order of the forward pass. `rope_freqs`, from which every backend makes a table of angles, is not
    /// among them.
    pub fn all(&self) -> Vec<Arc<Weight>> {
        let mut all = vec![&self.token_embd];
        all.extend(self.layers.iter().flat_map(LayerWeights::all));
        all.push(&self.output_norm);
        if !Arc::ptr_eq(&self.output, &self.token_embd) {
            all.push(&self.output);
        }
        all.into_iter().cloned().collect()
    }

    /// The vectors and biases that have values that are not finite, a sentence each. A choice of experts hides them: a NaN that is added to a
    /// probability makes its expert be chosen, and is in no value after it.
    pub fn not_finite(&self) -> Vec<String> {
        let words = |w: Arc<Weight>| {
            let mut values = w.f32s().enumerate();
            let (at, value) = values.find(|(_, x)| !x.is_finite())?;
            let more = values.filter(|(_, x)| !x.is_finite()).count();
            let more = if more > 0 { format!(", and {more} more are not finite") } else { String::new() };
            Some(format!("{}: [{at}] is {value}{more}", w.name))
        };
        self.all().into_iter().filter(|w| w.ty == GgmlType::F32).filter_map(words).collect()
    }

    /// The first weight in the order of the forward pass that is not finite, and where; `None` if all are. Reads all of them.
    ///
    /// # Errors
    /// A type that cannot be read.
    pub fn first_not_finite(&self) -> Result<Option<String>> {
        let words = |w: &Arc<Weight>| Ok(first_not_finite(w)?.map(|place| format!("{}, {place}", w.name)));
        let all = self.all();
        all.par_iter().map(words).find_first(|found| !matches!(found, Ok(None))).unwrap_or(Ok(None))
    }
}
