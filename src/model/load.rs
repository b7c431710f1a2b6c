//! Finding a model's weights in a file, each checked against the hyperparameters.

use std::collections::HashSet;
use std::sync::Arc;

use super::arch::{Occurs, QkNorms, Shared};
use super::check::TensorProblem;
use super::weights::{
    AttentionWeights, Ffn, LatentHeads, LatentWeights, LayerWeights, LinearWeights, Mixer, MoeBias, MoeWeights,
    PostNorms, QkNorm, QkvBias, SharedExpert, Weights,
};
use super::{Config, LinearConfig, MlaConfig, MoeConfig};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, TensorInfo};
use crate::op::{GgmlType, Mla, Weight};
use crate::quant::dequantize;

/// So many tensors that are not as the keys say are enough: a file may say that it has as many layers as there are numbers.
const MOST_PROBLEMS: usize = 100;

impl Weights {
    /// Finds every tensor, each of the shape that the hyperparameters say.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen, or not used.
    pub(super) fn from_gguf(gguf: &Gguf, c: &Config) -> Result<Self> {
        Loader { gguf, used: HashSet::new(), input_scales: Vec::new(), taking: Strict }.weights(c)
    }

    /// Every tensor that is not as the hyperparameters say.
    ///
    /// # Errors
    /// Layers in another layout, sizes that are none.
    pub(super) fn problems(gguf: &Gguf, c: &Config) -> Result<Vec<TensorProblem>> {
        let mut load =
            Loader { gguf, used: HashSet::new(), input_scales: Vec::new(), taking: Gathering { problems: Vec::new() } };
        let read = load.weights(c);
        let problems = load.taking.problems;
        match read {
            Err(e) if problems.len() < MOST_PROBLEMS => Err(e),
            _ => Ok(problems),
        }
    }
}

/// What becomes of a tensor that is not as the hyperparameters say.
trait Taking {
    /// A weight, or what stands for one.
    type Taken: Taken;

    /// A weight that was looked for.
    fn take(&mut self, found: std::result::Result<Arc<Weight>, (TensorProblem, Error)>) -> Result<Self::Taken>;

    /// A bias of so many zeros, which the file does not have.
    fn zeros(&self, name: &str, len: usize) -> Result<Self::Taken>;

    /// A tensor that nothing reads; whether that is noted.
    fn unread(&mut self, tensor: &str) -> bool;

    /// Whether what is noted is enough.
    fn is_full(&self) -> bool;

    /// Whether values are looked at, and not the file's form alone.
    const OF_VALUES: bool;
}

/// A weight, or a place where one may be missing.
trait Taken: Clone {
    /// The weight, if there is one.
    fn weight(&self) -> Option<&Arc<Weight>>;

    /// What is made of it, in its place.
    fn map(&self, made: impl FnOnce(&Arc<Weight>) -> Result<Arc<Weight>>) -> Result<Self>;
}

impl Taken for Arc<Weight> {
    fn weight(&self) -> Option<&Arc<Weight>> {
        Some(self)
    }
    fn map(&self, made: impl FnOnce(&Arc<Weight>) -> Result<Arc<Weight>>) -> Result<Self> {
        made(self)
    }
}

impl Taken for Option<Arc<Weight>> {
    fn weight(&self) -> Option<&Arc<Weight>> {
        self.as_ref()
    }
    fn map(&self, made: impl FnOnce(&Arc<Weight>) -> Result<Arc<Weight>>) -> Result<Self> {
        self.as_ref().map(made).transpose()
    }
}

/// The first is an error.
struct Strict;

impl Taking for Strict {
    type Taken = Arc<Weight>;
    const OF_VALUES: bool = true;

    fn take(&mut self, found: std::result::Result<Arc<Weight>, (TensorProblem, Error)>) -> Result<Arc<Weight>> {
        found.map_err(|(_, e)| e)
    }
    fn zeros(&self, name: &str, len: usize) -> Result<Arc<Weight>> {
        Weight::from_vec(name, GgmlType::F32, [len, 1, 1], vec![0; 4 * len])
    }
    fn unread(&mut self, _: &str) -> bool {
        false
    }
    fn is_full(&self) -> bool {
        false
    }
}

/// All are noted, and nothing is where they are.
struct Gathering {
    problems: Vec<TensorProblem>,
}

impl Taking for Gathering {
    type Taken = Option<Arc<Weight>>;
    const OF_VALUES: bool = false;

    fn take(&mut self, found: std::result::Result<Arc<Weight>, (TensorProblem, Error)>) -> Result<Self::Taken> {
        Ok(found.map_err(|(problem, _)| self.problems.push(problem)).ok())
    }
    /// Nothing is made of a width that no tensor bears out.
    fn zeros(&self, _: &str, _: usize) -> Result<Self::Taken> {
        Ok(None)
    }
    fn unread(&mut self, tensor: &str) -> bool {
        self.problems.push(TensorProblem::Unread { tensor: tensor.to_string() });
        true
    }
    fn is_full(&self) -> bool {
        self.problems.len() >= MOST_PROBLEMS
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

/// Reads tensors by name, checks each shape, and remembers which were read.
struct Loader<'a, T> {
    gguf: &'a Gguf,
    used: HashSet<String>,
    taking: T,
    /// Those that stand beside a weight and are left alone.
    input_scales: Vec<String>,
}

impl<T: Taking> Loader<'_, T> {
    fn weights(&mut self, c: &Config) -> Result<Weights<T::Taken>> {
        let gguf = self.gguf;
        let token_embd = self.weight("token_embd.weight", [c.hidden, c.vocab, 1])?;
        let rope_freqs = match c.rotation.factors {
            Some(()) => Some(self.factors("rope_freqs.weight", c.rotation.turned(c.head_dim) / 2)?),
            None => None,
        };
        let mut layers = Vec::with_capacity(c.layers.min(gguf.tensors().len()));
        for n in 0..c.layers {
            layers.push(self.layer(n, c)?);
            if self.taking.is_full() {
                return Err(Error::input(format!("{}: {MOST_PROBLEMS} tensors are not as the keys say", gguf.name())));
            }
        }
        let output_norm = self.vector("output_norm.weight", c.hidden)?;
        let output = match gguf.tensor("output.weight") {
            // As llama.cpp, which looks for the output's scale beside that type alone.
            Some(info) if info.ty == GgmlType::NVFP4 => self.scaled("output.weight", [c.hidden, c.vocab, 1])?,
            Some(_) => self.weight("output.weight", [c.hidden, c.vocab, 1])?,
            None => token_embd.clone(),
        };
        let mut zero_biases = Vec::new();
        for extra in gguf.tensors() {
            if self.used.contains(&extra.name) || c.is_predicting(&extra.name) || self.taking.unread(&extra.name) {
                continue;
            }
            // A bias of zeros that no architecture here adds changes nothing.
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
        let input_scales = std::mem::take(&mut self.input_scales);
        Ok(Weights { token_embd, rope_freqs, layers, output_norm, output, zero_biases, input_scales })
    }

    fn layer(&mut self, n: usize, c: &Config) -> Result<LayerWeights<T::Taken>> {
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
        let experts = match c.moe_of(n) {
            None => None,
            Some(moe) => Some((moe, self.gate_and_up(n, c, moe)?)),
        };
        Ok(LayerWeights {
            attn_norm: self.vector(&name("attn_norm"), c.hidden)?,
            mixer: match c.linear_of(n) {
                Some(linear) => Mixer::Linear(self.linear(n, c, linear)?),
                None => match &c.mla {
                    Some(mla) => Mixer::Latent(self.latent(n, c, mla)?),
                    None => Mixer::Attention(self.attention(n, c)?),
                },
            },
            post_norms: match c.architecture.post_norms {
                true => Some(PostNorms {
                    attn: self.vector(&name("post_attention_norm"), c.hidden)?,
                    ffn: self.vector(&name("post_ffw_norm"), c.hidden)?,
                }),
                false => None,
            },
            ffn_norm: self.vector(&name(c.architecture.ffn_norm), c.hidden)?,
            ffn: match experts {
                None => Ffn::Dense {
                    gate: self.scaled(&name("ffn_gate"), [c.hidden, c.ffn, 1])?,
                    up: self.scaled(&name("ffn_up"), [c.hidden, c.ffn, 1])?,
                    down: self.scaled(&name("ffn_down"), [c.ffn, c.hidden, 1])?,
                },
                Some((moe, [gate, up])) => Ffn::Moe(MoeWeights {
                    router: self.weight(&name("ffn_gate_inp"), [c.hidden, moe.experts, 1])?,
                    gate,
                    up,
                    down: self.scaled(&name("ffn_down_exps"), [moe.ffn, c.hidden, moe.experts])?,
                    bias: match c.architecture.biases {
                        true => Some(MoeBias {
                            router: self.vector(&bias("ffn_gate_inp"), moe.experts)?,
                            gate: self.rows(&bias("ffn_gate_exps"), [moe.ffn, moe.experts])?,
                            up: self.rows(&bias("ffn_up_exps"), [moe.ffn, moe.experts])?,
                            down: self.rows(&bias("ffn_down_exps"), [c.hidden, moe.experts])?,
                        }),
                        false => None,
                    },
                    choice_bias: match moe.choice_bias {
                        true => Some(self.vector(&bias("exp_probs_b"), moe.experts)?),
                        false => None,
                    },
                    groups: moe.groups,
                    used: moe.used,
                    renormalise: moe.renormalise,
                    scale: moe.scale,
                    by: moe.router,
                    shared: match moe.shared {
                        0 => None,
                        width => Some(SharedExpert {
                            router: match c.architecture.shared_expert {
                                Shared::Gated => Some(self.weight(&name("ffn_gate_inp_shexp"), [c.hidden, 1, 1])?),
                                _ => None,
                            },
                            gate: self.scaled(&name("ffn_gate_shexp"), [c.hidden, width, 1])?,
                            up: self.scaled(&name("ffn_up_shexp"), [c.hidden, width, 1])?,
                            down: self.scaled(&name("ffn_down_shexp"), [width, c.hidden, 1])?,
                        }),
                    },
                }),
            },
        })
    }

    /// The experts' gate and up `[H, F, E]`, of a tensor each or of one `[H, 2·F, E]` in which an expert's rows of gate come first, as llama.cpp's
    /// `create_tensor_gate_up_exps` has it.
    fn gate_and_up(&mut self, n: usize, c: &Config, moe: &MoeConfig) -> Result<[T::Taken; 2]> {
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        let joint = name("ffn_gate_up_exps");
        if c.architecture.joint_experts && self.gguf.tensor(&joint).is_some() {
            let rows = moe.ffn.checked_mul(2).ok_or_else(|| {
                Error::input(format!("{}: tensor {joint}: two times {} rows are no size", self.gguf.name(), moe.ffn))
            })?;
            let whole = self.weight(&joint, [c.hidden, rows, moe.experts])?;
            let part = |what: &str, rows| whole.map(|whole| whole.part(&format!("{joint} ({what})"), rows));
            return Ok([part("gate", 0..moe.ffn)?, part("up", moe.ffn..rows)?]);
        }
        let mut of = |part| self.scaled(&name(part), [c.hidden, moe.ffn, moe.experts]);
        Ok([of("ffn_gate_exps")?, of("ffn_up_exps")?])
    }

    fn attention(&mut self, n: usize, c: &Config) -> Result<AttentionWeights<T::Taken>> {
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
                let joint = self.scaled(&name("attn_q"), [c.hidden, rows, 1])?;
                let [q, gate] = alternate(&joint, c.head_dim, ["q", "gate"])?;
                (q, Some(gate))
            }
            None => (self.scaled(&name("attn_q"), [c.hidden, c.q_width(), 1])?, None),
        };
        let always = c.architecture.qkv_bias == Occurs::Always;
        Ok(AttentionWeights {
            q,
            gate,
            k: self.scaled(&name("attn_k"), [c.hidden, c.kv_width(), 1])?,
            v: self.scaled(&name("attn_v"), [c.hidden, c.kv_width(), 1])?,
            qkv_bias: match c.qkv_bias {
                true => Some(QkvBias {
                    q: self.qkv_bias(&bias("attn_q"), c.q_width(), always)?,
                    k: self.qkv_bias(&bias("attn_k"), c.kv_width(), always)?,
                    v: self.qkv_bias(&bias("attn_v"), c.kv_width(), always)?,
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
            output: self.scaled(&name("attn_output"), [c.q_width(), c.hidden, 1])?,
            output_bias: match c.architecture.biases {
                true => Some(self.vector(&bias("attn_output"), c.hidden)?),
                false => None,
            },
        })
    }

    fn linear(&mut self, n: usize, c: &Config, linear: &LinearConfig) -> Result<LinearWeights<T::Taken>> {
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
                self.scaled(&name("ssm_beta"), [c.hidden, heads, 1])?,
                self.scaled(&name("ssm_alpha"), [c.hidden, heads, 1])?,
            ],
        };
        Ok(LinearWeights {
            qkv: self.scaled(&name("attn_qkv"), [c.hidden, linear.channels(), 1])?,
            z: self.scaled(&name("attn_gate"), [c.hidden, linear.value_width(), 1])?,
            b,
            a,
            conv: self.rows(&name("ssm_conv1d"), [linear.kernel, linear.channels()])?,
            dt: self.vector(&format!("blk.{n}.ssm_dt.bias"), heads)?,
            decay: self.vector(&format!("blk.{n}.ssm_a"), heads)?,
            norm: self.vector(&name("ssm_norm"), linear.head_dim)?,
            output: self.scaled(&name("ssm_out"), [linear.value_width(), c.hidden, 1])?,
        })
    }

    fn latent(&mut self, n: usize, c: &Config, mla: &MlaConfig) -> Result<LatentWeights<T::Taken>> {
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        let (heads, rank, unturned) = (c.heads, mla.rank, c.head_dim - mla.turned);
        Ok(LatentWeights {
            kv_a: self.weight(&name("attn_kv_a_mqa"), [c.hidden, mla.row(), 1])?,
            kv_norm: self.vector(&name("attn_kv_a_norm"), rank)?,
            q_a: match mla.q_rank {
                Some(q_rank) => Some([
                    self.weight(&name("attn_q_a"), [c.hidden, q_rank, 1])?,
                    self.vector(&name("attn_q_a_norm"), q_rank)?,
                ]),
                None => None,
            },
            q: match mla.q_rank {
                Some(q_rank) => self.weight(&name("attn_q_b"), [q_rank, c.q_width(), 1])?,
                None => self.scaled(&name("attn_q"), [c.hidden, c.q_width(), 1])?,
            },
            heads: match mla.form {
                Mla::Absorbed => LatentHeads::Absorbed {
                    q: self.weight(&name("attn_k_b"), [unturned, rank, heads])?,
                    v: self.weight(&name("attn_v_b"), [rank, mla.value_dim, heads])?,
                },
                _ => {
                    let of_head = unturned + mla.value_dim;
                    let joint = self.weight(&name("attn_kv_b"), [rank, heads * of_head, 1])?;
                    let part = |what: &str, rows: std::ops::Range<usize>| {
                        joint.map(|joint| {
                            let within = (0..joint.rows).filter(|row| rows.contains(&(row % of_head)));
                            let bytes = within.flat_map(|row| joint.row(0, row).iter().copied()).collect();
                            let name = format!("{} ({what})", joint.name);
                            Weight::from_vec(&name, joint.ty, [rank, rows.len(), heads], bytes)
                        })
                    };
                    LatentHeads::Plain { k: part("keys", 0..unturned)?, v: part("values", unturned..of_head)? }
                }
            },
            output: self.scaled(&name("attn_output"), [c.context_width(), c.hidden, 1])?,
        })
    }

    /// A bias of q, k or v. Where an architecture may have biases, a file may have some of them: those that are not there are zero.
    fn qkv_bias(&mut self, name: &str, len: usize, always: bool) -> Result<T::Taken> {
        match self.gguf.tensor(name) {
            None if !always => self.taking.zeros(name, len),
            _ => self.vector(name, len),
        }
    }

    fn weight(&mut self, name: &str, dims: [usize; 3]) -> Result<T::Taken> {
        let found = self.found(name, dims).map_err(|e| (self.problem(name, "tensor-shape", &e), e));
        self.used.insert(name.to_string());
        self.taking.take(found)
    }

    /// What is wrong with a tensor that cannot be taken.
    fn problem(&self, name: &str, rule: &'static str, e: &Error) -> TensorProblem {
        let (tensor, what) = (name.to_string(), e.to_string());
        if self.gguf.tensor(name).is_none() {
            return TensorProblem::Missing { tensor };
        }
        let prefix = format!("{}: tensor {name}: ", self.gguf.name());
        let what = what.strip_prefix(&prefix).unwrap_or(&what).into();
        TensorProblem::Other { tensor, rule, what }
    }

    fn found(&self, name: &str, dims: [usize; 3]) -> Result<Arc<Weight>> {
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
        Weight::new(name, info.ty, dims, owner, start, info.offset)
    }

    /// A weight whose products may have a scale, as llama.cpp reads it: `.scale` beside `.weight`, a number or one for each expert. What
    /// `.input_scale` beside it says is for engines that round activations to four bits; llama.cpp reads it and makes no use of it.
    fn scaled(&mut self, name: &str, dims: [usize; 3]) -> Result<T::Taken> {
        let weight = self.weight(name, dims)?;
        let beside = name.strip_suffix("weight").unwrap_or(name);
        let input_scale = format!("{beside}input_scale");
        if self.gguf.tensor(&input_scale).is_some() {
            self.finite(&input_scale, dims[2])?;
            self.input_scales.push(input_scale);
        }
        let scale = format!("{beside}scale");
        match self.gguf.tensor(&scale) {
            Some(_) => {
                let scales = self.finite(&scale, dims[2])?;
                weight.map(|weight| weight.scaled(scales))
            }
            None => Ok(weight),
        }
    }

    /// A vector of finite numbers.
    fn finite(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let vector = self.vector(name, len)?;
        let values = vector.weight().map_or(vec![], |vector| vector.f32s().collect());
        match values.iter().position(|x: &f32| !x.is_finite()) {
            Some(i) if T::OF_VALUES => Err(Error::input(format!(
                "{}: tensor {name}: [{i}] is {}; a finite number is expected",
                self.gguf.name(),
                values[i]
            ))),
            _ => Ok(values),
        }
    }

    /// A norm's weight or a bias: a vector of f32.
    fn vector(&mut self, name: &str, len: usize) -> Result<T::Taken> {
        self.rows(name, [len, 1])
    }

    /// Vectors of f32, one for each expert.
    fn rows(&mut self, name: &str, [len, rows]: [usize; 2]) -> Result<T::Taken> {
        let weight = self.weight(name, [len, rows, 1])?;
        match weight.weight().map(|weight| weight.ty) {
            Some(ty) if ty != GgmlType::F32 => {
                let what = format!("F32 was expected, found {ty}");
                let problem = TensorProblem::Other { tensor: name.to_string(), rule: "tensor-type", what };
                let file = self.gguf.name();
                self.taking.take(Err((problem, Error::input(format!("{file}: tensor {name} is {ty}, expected F32")))))
            }
            _ => Ok(weight),
        }
    }

    /// A vector of finite numbers above 0.
    fn factors(&mut self, name: &str, len: usize) -> Result<T::Taken> {
        let weight = self.vector(name, len)?;
        let wrong = |weight: &Arc<Weight>| weight.f32s().enumerate().find(|(_, x)| !(x.is_finite() && *x > 0.0));
        if let Some((i, found)) = weight.weight().and_then(wrong) {
            let file = self.gguf.name();
            return Err(Error::input(format!(
                "{file}: tensor {name}: [{i}] is {found}; a positive number is expected"
            )));
        }
        Ok(weight)
    }
}

/// The two matrices of which one has `together` rows of the one, then as many of the other, in turn; each with its scale.
fn alternate<W: Taken>(joint: &W, together: usize, parts: [&str; 2]) -> Result<[W; 2]> {
    let part = |n: usize| {
        joint.map(|joint| {
            let rows = (0..joint.rows).filter(|row| row / together % 2 == n);
            let bytes: Vec<u8> = rows.flat_map(|row| joint.row(0, row).iter().copied()).collect();
            let name = format!("{} ({})", joint.name, parts[n]);
            Weight::from_vec(&name, joint.ty, [joint.cols, joint.rows / 2, 1], bytes)?.scaled(joint.scales.clone())
        })
    };
    Ok([part(0)?, part(1)?])
}
