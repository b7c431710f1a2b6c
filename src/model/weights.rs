//! The weights of a model: views of the mapped file, each checked against the hyperparameters.

use std::collections::HashSet;
use std::sync::Arc;

use rayon::prelude::*;

use super::arch::{Occurs, QkNorms, Router, Shared};
use super::{Config, LinearConfig};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, TensorInfo};
use crate::op::{GgmlType, Weight};
use crate::quant::{dequantize, first_not_finite};

/// The weights of one layer.
#[derive(Clone)]
pub struct LayerWeights {
    /// `[H]`.
    pub attn_norm: Arc<Weight>,
    /// What mixes positions.
    pub mixer: Mixer,
    /// What normalises what attention and FFN add to the residual, `[H]`, in models that have it.
    pub post_norms: Option<PostNorms>,
    /// `[H]`.
    pub ffn_norm: Arc<Weight>,
    /// The feed-forward part.
    pub ffn: Ffn,
}

/// What mixes the positions of a layer.
#[derive(Clone)]
pub enum Mixer {
    /// Attention over the positions up to one's own, or a window of them.
    Attention(AttentionWeights),
    /// A state that each position decays and adds to: a gated delta rule.
    Linear(LinearWeights),
}

/// The weights of attention.
#[derive(Clone)]
pub struct AttentionWeights {
    /// `[H, heads·D]`.
    pub q: Arc<Weight>,
    /// Of the gate that multiplies what attention gives, `[H, heads·D]`, in models that have it.
    pub gate: Option<Arc<Weight>>,
    /// `[H, kv_heads·D]`.
    pub k: Arc<Weight>,
    /// `[H, kv_heads·D]`.
    pub v: Arc<Weight>,
    /// Of q, k and v, in models that have them.
    pub qkv_bias: Option<QkvBias>,
    /// A score for each head, `[heads]`, that takes part in the softmax of attention and has no key, in models that have them.
    pub sinks: Option<Arc<Weight>>,
    /// Of q and k, in models that have them.
    pub qk_norm: Option<QkNorm>,
    /// `[heads·D, H]`.
    pub output: Arc<Weight>,
    /// `[H]`, in models that have it.
    pub output_bias: Option<Arc<Weight>>,
}

/// The weights of linear attention: Hk key heads and Hv value heads of D, C = 2·Hk·D + Hv·D channels.
#[derive(Clone)]
pub struct LinearWeights {
    /// Queries, keys and values, `[H, C]`.
    pub qkv: Arc<Weight>,
    /// The gate of the output, `[H, Hv·D]`.
    pub z: Arc<Weight>,
    /// What beta is the sigmoid of, `[H, Hv]`.
    pub b: Arc<Weight>,
    /// What the decay is made of, `[H, Hv]`.
    pub a: Arc<Weight>,
    /// The convolution's, `[L, C]`.
    pub conv: Arc<Weight>,
    /// Added to what the decay is made of, `[Hv]`.
    pub dt: Arc<Weight>,
    /// What the decay's logarithm is a multiple of, `[Hv]`.
    pub decay: Arc<Weight>,
    /// Of the norm of each head of the output, `[D]`.
    pub norm: Arc<Weight>,
    /// `[Hv·D, H]`.
    pub output: Arc<Weight>,
}

/// Biases: `[heads·D]`, `[kv_heads·D]` and `[kv_heads·D]`.
#[allow(missing_docs)] // said above
#[derive(Clone)]
pub struct QkvBias {
    pub q: Arc<Weight>,
    pub k: Arc<Weight>,
    pub v: Arc<Weight>,
}

/// Weights of the norms of q and of k: of each head, `[D]`, or of the rows, `[heads·D]` and `[kv_heads·D]`.
#[allow(missing_docs)] // said above
#[derive(Clone)]
pub struct QkNorm {
    pub q: Arc<Weight>,
    pub k: Arc<Weight>,
}

/// Weights of the norms after attention and after the FFN, `[H]`.
#[allow(missing_docs)] // said above
#[derive(Clone)]
pub struct PostNorms {
    pub attn: Arc<Weight>,
    pub ffn: Arc<Weight>,
}

/// What follows attention in a layer.
#[derive(Clone)]
pub enum Ffn {
    /// One feed-forward network: gate and up `[H, F]`, down `[F, H]`.
    #[allow(missing_docs)] // said above
    Dense { gate: Arc<Weight>, up: Arc<Weight>, down: Arc<Weight> },
    /// A mixture of experts.
    Moe(MoeWeights),
}

/// A router and its experts, each [E, F, H] or, for down, [E, H, F].
#[derive(Clone)]
pub struct MoeWeights {
    /// `[H, E]`.
    pub router: Arc<Weight>,
    /// `[H, F, E]`.
    pub gate: Arc<Weight>,
    /// `[H, F, E]`.
    pub up: Arc<Weight>,
    /// `[F, H, E]`.
    pub down: Arc<Weight>,
    /// Of router and experts, in models that have them.
    pub bias: Option<MoeBias>,
    /// What is added to the experts' probabilities for the choice alone, `[E]`, in models that have it.
    pub choice_bias: Option<Arc<Weight>>,
    /// Experts used for one token, and whether their weights are renormalised: [`MoeConfig`](super::MoeConfig)'s.
    pub used: usize,
    /// Whether the chosen experts' probabilities are divided by their sum.
    pub renormalise: bool,
    /// What the chosen experts' probabilities are multiplied by.
    pub scale: f32,
    /// How experts are chosen and weighed.
    pub by: Router,
    /// The expert that every token uses.
    pub shared: Option<SharedExpert>,
}

/// Biases of a router, `[E]`, and of its experts, a row for each: of gate and up [E, F], of down [E, H].
#[allow(missing_docs)] // said above
#[derive(Clone)]
pub struct MoeBias {
    pub router: Arc<Weight>,
    pub gate: Arc<Weight>,
    pub up: Arc<Weight>,
    pub down: Arc<Weight>,
}

/// An expert beside those behind the router: its gate `[H, 1]`, of which the sigmoid is taken, where it has one, and a feed-forward network,
/// gate and up `[H, F]`, down `[F, H]`.
#[allow(missing_docs)] // said above
#[derive(Clone)]
pub struct SharedExpert {
    pub router: Option<Arc<Weight>>,
    pub gate: Arc<Weight>,
    pub up: Arc<Weight>,
    pub down: Arc<Weight>,
}

/// The weights of a model.
#[derive(Clone)]
pub struct Weights {
    /// [V, H]
    pub token_embd: Arc<Weight>,
    /// What divides rope's frequencies, `[D/2]`, in models that have it.
    pub rope_freqs: Option<Arc<Weight>>,
    /// One for each layer.
    pub layers: Vec<LayerWeights>,
    /// `[H]`.
    pub output_norm: Arc<Weight>,
    /// [V, H]; `token_embd` itself where the file has no `output.weight`.
    pub output: Arc<Weight>,
    /// Tensors of the file that the architecture does not add, and which are zero.
    pub zero_biases: Vec<String>,
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

    /// Finds every tensor, each of the shape that the hyperparameters say.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen, or not used.
    pub(super) fn from_gguf(gguf: &Gguf, c: &Config) -> Result<Self> {
        let mut load = Loader { gguf, used: HashSet::new() };
        let token_embd = load.weight("token_embd.weight", [c.hidden, c.vocab, 1])?;
        let rope_freqs = match c.rotation.factors {
            Some(()) => Some(load.factors("rope_freqs.weight", c.rotation.turned(c.head_dim) / 2)?),
            None => None,
        };
        let mut layers = Vec::with_capacity(c.layers.min(gguf.tensors().len()));
        for n in 0..c.layers {
            layers.push(load.layer(n, c)?);
        }
        let output_norm = load.vector("output_norm.weight", c.hidden)?;
        let output = match gguf.tensor("output.weight") {
            Some(_) => load.weight("output.weight", [c.hidden, c.vocab, 1])?,
            None => token_embd.clone(),
        };
        // A bias of zeros that no architecture here adds changes nothing.
        let unused = |t: &&TensorInfo| !load.used.contains(&t.name) && !c.is_predicting(&t.name);
        let mut zero_biases = Vec::new();
        for extra in gguf.tensors().iter().filter(unused) {
            if extra.name.ends_with(".bias") && is_zero(gguf, extra)? {
                zero_biases.push(extra.name.clone());
                continue;
            }
            return Err(Error::input(format!(
                "{}: tensor {} is not part of {} as it is computed here, and leaving it out would change the result",
                gguf.name(),
                extra.name,
                c.architecture.name
            )));
        }
        Ok(Self { token_embd, rope_freqs, layers, output_norm, output, zero_biases })
    }
}

/// Whether every value of a tensor is 0.
fn is_zero(gguf: &Gguf, tensor: &TensorInfo) -> Result<bool> {
    let mut values = vec![0.0; tensor.ty.block_len()];
    for block in gguf.data(tensor).chunks(tensor.ty.block_bytes()) {
        dequantize(tensor.ty, block, &mut values).map_err(|e| e.map(|m| format!("{}: {m}", tensor.name)))?;
        if values.iter().any(|x| *x != 0.0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A bias of q, k or v. Where an architecture may have biases, a file may have some of them: those that are not there are zero.
fn qkv_bias(load: &mut Loader<'_>, name: &str, len: usize, always: bool) -> Result<Arc<Weight>> {
    match load.gguf.tensor(name) {
        None if !always => Weight::from_vec(name, GgmlType::F32, [len, 1, 1], vec![0; 4 * len]),
        _ => load.vector(name, len),
    }
}

/// Reads tensors by name, checks each shape, and remembers which were read.
struct Loader<'a> {
    gguf: &'a Gguf,
    used: HashSet<String>,
}

impl Loader<'_> {
    fn layer(&mut self, n: usize, c: &Config) -> Result<LayerWeights> {
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        let bias = |part: &str| format!("blk.{n}.{part}.bias");
        // Older files have a tensor for each expert.
        if c.moe.is_some() && self.gguf.tensor(&name("ffn_gate.0")).is_some() {
            return Err(Error::input(format!(
                "{}: tensor {} is one expert's; experts in one tensor, {}, are supported",
                self.gguf.name(),
                name("ffn_gate.0"),
                name("ffn_gate_exps")
            )));
        }
        Ok(LayerWeights {
            attn_norm: self.vector(&name("attn_norm"), c.hidden)?,
            mixer: match c.linear_of(n) {
                Some(linear) => Mixer::Linear(self.linear(n, c, linear)?),
                None => Mixer::Attention(self.attention(n, c)?),
            },
            post_norms: match c.architecture.post_norms {
                true => Some(PostNorms {
                    attn: self.vector(&name("post_attention_norm"), c.hidden)?,
                    ffn: self.vector(&name("post_ffw_norm"), c.hidden)?,
                }),
                false => None,
            },
            ffn_norm: self.vector(&name(c.architecture.ffn_norm), c.hidden)?,
            ffn: match c.moe_of(n) {
                None => Ffn::Dense {
                    gate: self.weight(&name("ffn_gate"), [c.hidden, c.ffn, 1])?,
                    up: self.weight(&name("ffn_up"), [c.hidden, c.ffn, 1])?,
                    down: self.weight(&name("ffn_down"), [c.ffn, c.hidden, 1])?,
                },
                Some(moe) => Ffn::Moe(MoeWeights {
                    router: self.weight(&name("ffn_gate_inp"), [c.hidden, moe.experts, 1])?,
                    gate: self.weight(&name("ffn_gate_exps"), [c.hidden, moe.ffn, moe.experts])?,
                    up: self.weight(&name("ffn_up_exps"), [c.hidden, moe.ffn, moe.experts])?,
                    down: self.weight(&name("ffn_down_exps"), [moe.ffn, c.hidden, moe.experts])?,
                    bias: match c.architecture.biases {
                        true => Some(MoeBias {
                            router: self.vector(&bias("ffn_gate_inp"), moe.experts)?,
                            gate: self.rows(&bias("ffn_gate_exps"), [moe.ffn, moe.experts])?,
                            up: self.rows(&bias("ffn_up_exps"), [moe.ffn, moe.experts])?,
                            down: self.rows(&bias("ffn_down_exps"), [c.hidden, moe.experts])?,
                        }),
                        false => None,
                    },
                    choice_bias: match c.architecture.router {
                        Router::BiasedSigmoids => Some(self.vector(&bias("exp_probs_b"), moe.experts)?),
                        _ => None,
                    },
                    used: moe.used,
                    renormalise: moe.renormalise,
                    scale: moe.scale,
                    by: c.architecture.router,
                    shared: match moe.shared {
                        0 => None,
                        width => Some(SharedExpert {
                            router: match c.architecture.shared_expert {
                                Shared::Gated => Some(self.weight(&name("ffn_gate_inp_shexp"), [c.hidden, 1, 1])?),
                                _ => None,
                            },
                            gate: self.weight(&name("ffn_gate_shexp"), [c.hidden, width, 1])?,
                            up: self.weight(&name("ffn_up_shexp"), [c.hidden, width, 1])?,
                            down: self.weight(&name("ffn_down_shexp"), [width, c.hidden, 1])?,
                        }),
                    },
                }),
            },
        })
    }

    fn attention(&mut self, n: usize, c: &Config) -> Result<AttentionWeights> {
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        let bias = |part: &str| format!("blk.{n}.{part}.bias");
        let (q, gate) = match c.linear {
            // For each head D rows of q, then D of the gate.
            Some(_) => {
                let rows = c.q_width().checked_mul(2).ok_or_else(|| {
                    Error::input(format!(
                        "{}: {} rows of q and as many of its gate are no size",
                        self.gguf.name(),
                        c.q_width()
                    ))
                })?;
                let joint = self.weight(&name("attn_q"), [c.hidden, rows, 1])?;
                let [q, gate] = alternate(&joint, c.head_dim, ["q", "gate"])?;
                (q, Some(gate))
            }
            None => (self.weight(&name("attn_q"), [c.hidden, c.q_width(), 1])?, None),
        };
        let always = c.architecture.qkv_bias == Occurs::Always;
        Ok(AttentionWeights {
            q,
            gate,
            k: self.weight(&name("attn_k"), [c.hidden, c.kv_width(), 1])?,
            v: self.weight(&name("attn_v"), [c.hidden, c.kv_width(), 1])?,
            qkv_bias: match c.qkv_bias {
                true => Some(QkvBias {
                    q: qkv_bias(self, &bias("attn_q"), c.q_width(), always)?,
                    k: qkv_bias(self, &bias("attn_k"), c.kv_width(), always)?,
                    v: qkv_bias(self, &bias("attn_v"), c.kv_width(), always)?,
                }),
                false => None,
            },
            qk_norm: match c.architecture.qk_norm {
                _ if !c.qk_norm => None,
                QkNorms::No => None,
                QkNorms::Heads | QkNorms::OfHeadsIfThere => Some([c.head_dim, c.head_dim]),
                QkNorms::Row => Some([c.q_width(), c.kv_width()]),
            }
            .map(|[q, k]| {
                let (q, k) = (self.vector(&name("attn_q_norm"), q)?, self.vector(&name("attn_k_norm"), k)?);
                Ok::<_, Error>(QkNorm { q, k })
            })
            .transpose()?,
            sinks: match c.architecture.sinks {
                true => Some(self.vector(&name("attn_sinks"), c.heads)?),
                false => None,
            },
            output: self.weight(&name("attn_output"), [c.q_width(), c.hidden, 1])?,
            output_bias: match c.architecture.biases {
                true => Some(self.vector(&bias("attn_output"), c.hidden)?),
                false => None,
            },
        })
    }

    fn linear(&mut self, n: usize, c: &Config, linear: &LinearConfig) -> Result<LinearWeights> {
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        let heads = linear.value_heads;
        if self.gguf.tensor(&name("ssm_in")).is_some() {
            return Err(Error::input(format!(
                "{}: tensor {} is in the layout of older files; {} and {} are supported",
                self.gguf.name(),
                name("ssm_in"),
                name("attn_qkv"),
                name("attn_gate")
            )));
        }
        let [b, a] = match c.architecture.linear.is_some_and(|rule| rule.joint_beta) {
            true => {
                let joint = self.weight(&name("ssm_ba"), [c.hidden, 2 * heads, 1])?;
                alternate(&joint, heads / linear.key_heads, ["beta", "alpha"])?
            }
            false => [
                self.weight(&name("ssm_beta"), [c.hidden, heads, 1])?,
                self.weight(&name("ssm_alpha"), [c.hidden, heads, 1])?,
            ],
        };
        Ok(LinearWeights {
            qkv: self.weight(&name("attn_qkv"), [c.hidden, linear.channels(), 1])?,
            z: self.weight(&name("attn_gate"), [c.hidden, linear.value_width(), 1])?,
            b,
            a,
            conv: self.rows(&name("ssm_conv1d"), [linear.kernel, linear.channels()])?,
            dt: self.vector(&format!("blk.{n}.ssm_dt.bias"), heads)?,
            decay: self.vector(&format!("blk.{n}.ssm_a"), heads)?,
            norm: self.vector(&name("ssm_norm"), linear.head_dim)?,
            output: self.weight(&name("ssm_out"), [linear.value_width(), c.hidden, 1])?,
        })
    }

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

    /// A norm's weight or a bias: a vector of f32.
    fn vector(&mut self, name: &str, len: usize) -> Result<Arc<Weight>> {
        self.rows(name, [len, 1])
    }

    /// Vectors of f32, one for each expert.
    fn rows(&mut self, name: &str, [len, rows]: [usize; 2]) -> Result<Arc<Weight>> {
        let weight = self.weight(name, [len, rows, 1])?;
        if weight.ty != GgmlType::F32 {
            return Err(Error::input(format!("{}: tensor {name} is {}, expected F32", self.gguf.name(), weight.ty)));
        }
        Ok(weight)
    }

    /// A vector of finite numbers above 0.
    fn factors(&mut self, name: &str, len: usize) -> Result<Arc<Weight>> {
        let weight = self.vector(name, len)?;
        let wrong = weight.f32s().enumerate().find(|(_, x)| !(x.is_finite() && *x > 0.0));
        if let Some((i, found)) = wrong {
            let file = self.gguf.name();
            return Err(Error::input(format!(
                "{file}: tensor {name}: [{i}] is {found}; a positive number is expected"
            )));
        }
        Ok(weight)
    }
}

/// The two matrices of which one has `together` rows of the one, then as many of the other, in turn.
fn alternate(joint: &Weight, together: usize, parts: [&str; 2]) -> Result<[Arc<Weight>; 2]> {
    let part = |n: usize| {
        let rows = (0..joint.rows).filter(|row| row / together % 2 == n);
        let bytes: Vec<u8> = rows.flat_map(|row| joint.row(0, row).iter().copied()).collect();
        Weight::from_vec(&format!("{} ({})", joint.name, parts[n]), joint.ty, [joint.cols, joint.rows / 2, 1], bytes)
    };
    Ok([part(0)?, part(1)?])
}
