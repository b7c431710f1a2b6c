//! Operations, with and without their operands.

use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use strum::VariantArray;

use crate::error::{Error, Result};
use crate::op::rotation::{is_one, is_zero, one};
use crate::op::{Data, GateActivation, Groups, HostTensor, Rotation, Weight};

/// An operation over tensors `T`, a weight `W` and token ids `I`. A backend runs an [`Op`]; without operands it is an
/// [`OpParams`]. As JSON it is its name and its scalars, whatever the operands are.
///
/// Shapes are `[rows, cols]` with cols contiguous. Sums are over the contiguous axis unless it says otherwise. `T` in shapes is
/// the number of positions in this call, the first of which is position `start`; S = start + T. [`Op::check`] says what the
/// operands must be.
///
/// An expert id that names no expert is an error where the ids are on the host. Where they are on a device nobody waits for
/// them to look: the values that such an id leads to are NaN there, and never another expert's.
#[rustfmt::skip] // an operation a line
#[allow(missing_docs)] // operands and scalars are what the operation's formula says
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, strum::EnumDiscriminants)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[strum_discriminants(name(OpKind), doc = "Which operation, without operands and scalars: an [`Operation`]'s variants.", allow(missing_docs))]
#[strum_discriminants(derive(Hash, PartialOrd, Ord, VariantArray, strum::IntoStaticStr))]
#[strum_discriminants(strum(serialize_all = "snake_case"))]
pub enum Operation<T, W, I> {
    /// Row `tokens[t]` of `table`, dequantized, times `scale`. → [T, H]
    Embed { #[serde(skip)] table: W, #[serde(skip)] tokens: I, #[serde(default = "one", skip_serializing_if = "is_one")] scale: f64 },
    /// x / √(mean(x²) + eps) · weight, over each group of `weight.cols` values (a whole row, or one head); the last `keep` columns stay as
    /// they are. [T, G·n + keep] → same
    RmsNorm { #[serde(skip)] x: T, #[serde(skip)] weight: W, eps: f32, #[serde(default, skip_serializing_if = "is_zero")] keep: usize },
    /// x · weightᵀ. [T, K] × [N, K] → [T, N]
    MatMul { #[serde(skip)] x: T, #[serde(skip)] weight: W },
    /// For each head h the first K of its `head_dim` columns of x · weight\[h\]ᵀ, and where `keep` its others after them; x has a head for each
    /// matrix, [T, heads·D], or one that all read, [T, D]. [K, N, heads] → [T, heads·(N + (D − K where `keep`))]
    HeadMatMul { #[serde(skip)] x: T, #[serde(skip)] weight: W, head_dim: usize, #[serde(default, skip_serializing_if = "std::ops::Not::not")] keep: bool },
    /// x + weight, which is a row, on every row. [T, N] → same
    Bias { #[serde(skip)] x: T, #[serde(skip)] weight: W },
    /// Rotary embedding: each pair of each head turns by the angle of position start + t ([`Rotation`]). [T, heads·D] → same
    Rope { #[serde(skip)] x: T, start: usize, head_dim: usize, #[serde(flatten)] rotation: Rotation<W> },
    /// Writes the first n columns of x [T, ≥ n] over rows start.. of `cache` [capacity, n], in place, and returns the cache. Makes no stage.
    Store { #[serde(skip)] cache: T, #[serde(skip)] x: T, start: usize },
    /// q·k · scale, or / √D where there is none, for each query head and its KV head (query head h reads KV head h / (heads / kv_heads));
    /// 0 where s > start + t, and where s ≤ start + t − window.
    /// [T, heads·D], cache [capacity ≥ S, kv_heads·D] → [heads, T, S]
    AttnScores { #[serde(skip)] q: T, #[serde(skip)] k: T, start: usize, head_dim: usize, #[serde(default, skip_serializing_if = "Option::is_none")] scale: Option<f64>, #[serde(default, skip_serializing_if = "Option::is_none")] window: Option<usize> },
    /// Softmax over s ≤ start + t, of which with a window the last so many; 0 elsewhere. A sink is one more score of its head's rows, which
    /// has its share and no column. [heads, T, S], sinks `[heads]` → same
    AttnProbs { #[serde(skip)] scores: T, start: usize, #[serde(default, skip_serializing_if = "Option::is_none")] window: Option<usize>, #[serde(skip)] sinks: Option<W> },
    /// Σ_s probs · v over the s that the softmax is over. [heads, T, S], cache [capacity ≥ S, kv_heads·D] → [T, heads·D]
    AttnContext { #[serde(skip)] probs: T, #[serde(skip)] v: T, start: usize, head_dim: usize, #[serde(default, skip_serializing_if = "Option::is_none")] window: Option<usize> },
    /// a + b. Same shape as its operands, [T, H] in a model.
    Add { #[serde(skip)] a: T, #[serde(skip)] b: T },
    /// Softmax over all experts, or the sigmoid of each logit. [T, E] → same
    RouterProbs { #[serde(skip)] logits: T, #[serde(default, skip_serializing_if = "std::ops::Not::not")] sigmoid: bool },
    /// The `k` largest, by weight descending; ties to the lower expert id; NaN first. With [`Groups`], of the experts of the best groups.
    /// [T, E] → [T, K] u32
    RouterTopK { #[serde(skip)] probs: T, k: usize, #[serde(default, skip_serializing_if = "Option::is_none")] groups: Option<Groups> },
    /// probs at ids, divided by their sum when `renormalise`, times `scale`; where `softmax`, their softmax. [T, E], [T, K] u32 → [T, K]
    RouterWeights { #[serde(skip)] probs: T, #[serde(skip)] ids: T, renormalise: bool, #[serde(default, skip_serializing_if = "std::ops::Not::not")] softmax: bool, #[serde(default = "one", skip_serializing_if = "is_one")] scale: f64 },
    /// For token t and slot k, x · weight[ids[t, k]]ᵀ; x is shared by the slots, [T, n], or one per slot, [T, K, n]. → [T, K, N]
    ExpertMatMul { #[serde(skip)] x: T, #[serde(skip)] ids: T, #[serde(skip)] weight: W },
    /// x + weight[ids[t, k]] for token t and slot k, the weight a row for each expert. [T, K, N], [T, K] u32, [E, N] → same
    ExpertBias { #[serde(skip)] x: T, #[serde(skip)] ids: T, #[serde(skip)] weight: W },
    /// activation(gate) · up, the activation gate · sigmoid(gate) where it is no other. Same shape as its operands.
    SwiGlu { #[serde(skip)] gate: T, #[serde(skip)] up: T, #[serde(default, skip_serializing_if = "GateActivation::is_silu")] activation: GateActivation },
    /// x · sigmoid(gate), one gate for each row. [T, N], [T, 1] → [T, N]
    SigmoidGate { #[serde(skip)] x: T, #[serde(skip)] gate: T },
    /// silu(Σ_j weight[c, j] · x[t + j − L + 1, c]): a causal convolution of each channel over the last L positions, of which those before the
    /// call's come from the cache, and those before the first are 0. [T, C], cache [capacity ≥ S, C], [C, L] → [T, C]
    Conv { #[serde(skip)] x: T, #[serde(skip)] cache: T, #[serde(skip)] weight: W, start: usize },
    /// x / √(Σx² + eps) of each of `heads` heads, from column `first` of x on. [T, ≥ first + heads·D] → [T, heads·D]
    L2Norm { #[serde(skip)] x: T, first: usize, heads: usize, head_dim: usize, eps: f32 },
    /// weight · ln(1 + eˣ), which is the logarithm of a decay where the weight is below 0. [T, N] × `[N]` → same
    Decay { #[serde(skip)] x: T, #[serde(skip)] weight: W },
    /// The gated delta rule: for each value head a state S [D, D], 0 before the first position, and at each position s from 0 on
    /// S ← e^decay · S, then S ← S + k (beta · (v − Sᵀk))ᵀ, and from `start` on Sᵀq / √D. Value head h has the key head h / (Hv / Hk), or where
    /// `tiled` h mod Hk; v is the last Hv·D columns of its rows.
    /// [T, Hk·D], caches [capacity ≥ S, Hk·D], [.., ≥ Hv·D], [.., Hv] twice → [T, Hv·D]
    DeltaRule { #[serde(skip)] q: T, #[serde(skip)] k: T, #[serde(skip)] v: T, #[serde(skip)] decay: T, #[serde(skip)] beta: T, start: usize, head_dim: usize, #[serde(default, skip_serializing_if = "std::ops::Not::not")] tiled: bool },
    /// Σ_k weights[t, k] · down[t, k, ·], k ascending. [T, K, H], [T, K] → [T, H]
    Combine { #[serde(skip)] down: T, #[serde(skip)] weights: T },
    /// Rows start..start + rows of x. [T, n] → [rows, n]. Makes no stage.
    Rows { #[serde(skip)] x: T, start: usize, rows: usize },
}

/// What a backend runs. `T` is its tensor handle.
pub type Op<'w, T> = Operation<T, &'w Arc<Weight>, &'w [u32]>;

/// An operation that owns what it reads.
pub type OwnedOp = Operation<Rc<HostTensor>, Arc<Weight>, Vec<u32>>;

/// An operation's name and scalars.
pub type OpParams = Operation<(), (), ()>;

impl OpKind {
    /// Every operation.
    pub const ALL: &'static [OpKind] = Self::VARIANTS;

    /// Whether its operand number `operand` is a cache of rows, those of earlier calls among them.
    pub fn reads_cache(self, operand: usize) -> bool {
        match self {
            Self::AttnScores | Self::AttnContext | Self::Conv => operand == 1,
            Self::DeltaRule => operand >= 1,
            _ => false,
        }
    }

    /// `rms_norm` for [`OpKind::RmsNorm`].
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The first of the keys that a position sees, which are its own and those before it, with a window the last so many.
pub fn first_seen(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

impl<T, W, I> Operation<T, W, I> {
    /// Which operation it is.
    pub fn kind(&self) -> OpKind {
        self.into()
    }

    /// Whether the result is the site's stage; `Store` and `Rows` only move values.
    pub fn makes_stage(&self) -> bool {
        !matches!(self, Operation::Store { .. } | Operation::Rows { .. })
    }

    /// The position of the first row, where the result depends on it.
    pub fn start(&self) -> Option<usize> {
        match *self {
            Operation::Rope { start, .. }
            | Operation::AttnScores { start, .. }
            | Operation::AttnProbs { start, .. }
            | Operation::AttnContext { start, .. }
            | Operation::Conv { start, .. }
            | Operation::DeltaRule { start, .. } => Some(start),
            _ => None,
        }
    }

    /// The same with the first row at position `to`, where the result depends on it.
    pub fn with_start(mut self, to: usize) -> Self {
        if let Operation::Rope { start, .. }
        | Operation::AttnScores { start, .. }
        | Operation::AttnProbs { start, .. }
        | Operation::AttnContext { start, .. }
        | Operation::Conv { start, .. }
        | Operation::DeltaRule { start, .. } = &mut self
        {
            *start = to;
        }
        self
    }

    /// The weight that the operation reads, if it reads one.
    pub fn weight(&self) -> Option<W>
    where
        W: Copy,
    {
        match *self {
            Operation::Embed { table: weight, .. }
            | Operation::RmsNorm { weight, .. }
            | Operation::MatMul { weight, .. }
            | Operation::HeadMatMul { weight, .. }
            | Operation::Bias { weight, .. }
            | Operation::ExpertMatMul { weight, .. }
            | Operation::ExpertBias { weight, .. }
            | Operation::Conv { weight, .. }
            | Operation::Decay { weight, .. } => Some(weight),
            Operation::Rope { rotation, .. } => rotation.factors,
            Operation::AttnProbs { sinks, .. } => sinks,
            _ => None,
        }
    }

    /// The one list of every operation's operands: the same operation over what `tensor`, `weight` and `tokens` make of them.
    /// They are called once for each operand, in the order of the fields, tensors with their names. Not generic over what it calls, which every
    /// user of an operation would have a copy of.
    fn try_map_all<'s, T2, W2, I2>(
        &'s self,
        tensor: &mut dyn FnMut(&'static str, &'s T) -> Result<T2>,
        weight: &mut dyn FnMut(&'s W) -> Result<W2>,
        tokens: &mut dyn FnMut(&'s I) -> Result<I2>,
    ) -> Result<Operation<T2, W2, I2>> {
        use Operation::*;
        Ok(match self {
            Embed { table, tokens: ids, scale } => Embed { table: weight(table)?, tokens: tokens(ids)?, scale: *scale },
            RmsNorm { x, weight: w, eps, keep } => {
                RmsNorm { x: tensor("x", x)?, weight: weight(w)?, eps: *eps, keep: *keep }
            }
            MatMul { x, weight: w } => MatMul { x: tensor("x", x)?, weight: weight(w)? },
            HeadMatMul { x, weight: w, head_dim, keep } => {
                HeadMatMul { x: tensor("x", x)?, weight: weight(w)?, head_dim: *head_dim, keep: *keep }
            }
            Bias { x, weight: w } => Bias { x: tensor("x", x)?, weight: weight(w)? },
            Rope { x, start, head_dim, rotation } => {
                Rope { x: tensor("x", x)?, start: *start, head_dim: *head_dim, rotation: rotation.try_map(weight)? }
            }
            Store { cache, x, start } => Store { cache: tensor("cache", cache)?, x: tensor("x", x)?, start: *start },
            &AttnScores { ref q, ref k, start, head_dim, scale, window } => {
                AttnScores { q: tensor("q", q)?, k: tensor("k", k)?, start, head_dim, scale, window }
            }
            &AttnProbs { ref scores, start, window, ref sinks } => {
                let scores = tensor("scores", scores)?;
                AttnProbs { scores, start, window, sinks: sinks.as_ref().map(weight).transpose()? }
            }
            &AttnContext { ref probs, ref v, start, head_dim, window } => {
                AttnContext { probs: tensor("probs", probs)?, v: tensor("v", v)?, start, head_dim, window }
            }
            Add { a, b } => Add { a: tensor("a", a)?, b: tensor("b", b)? },
            &RouterProbs { ref logits, sigmoid } => RouterProbs { logits: tensor("logits", logits)?, sigmoid },
            &RouterTopK { ref probs, k, groups } => RouterTopK { probs: tensor("probs", probs)?, k, groups },
            &RouterWeights { ref probs, ref ids, renormalise, softmax, scale } => {
                RouterWeights { probs: tensor("probs", probs)?, ids: tensor("ids", ids)?, renormalise, softmax, scale }
            }
            ExpertMatMul { x, ids, weight: w } => {
                ExpertMatMul { x: tensor("x", x)?, ids: tensor("ids", ids)?, weight: weight(w)? }
            }
            ExpertBias { x, ids, weight: w } => {
                ExpertBias { x: tensor("x", x)?, ids: tensor("ids", ids)?, weight: weight(w)? }
            }
            SwiGlu { gate, up, activation } => {
                SwiGlu { gate: tensor("gate", gate)?, up: tensor("up", up)?, activation: *activation }
            }
            SigmoidGate { x, gate } => SigmoidGate { x: tensor("x", x)?, gate: tensor("gate", gate)? },
            Conv { x, cache, weight: w, start } => {
                Conv { x: tensor("x", x)?, cache: tensor("cache", cache)?, weight: weight(w)?, start: *start }
            }
            &L2Norm { ref x, first, heads, head_dim, eps } => {
                L2Norm { x: tensor("x", x)?, first, heads, head_dim, eps }
            }
            Decay { x, weight: w } => Decay { x: tensor("x", x)?, weight: weight(w)? },
            &DeltaRule { ref q, ref k, ref v, ref decay, ref beta, start, head_dim, tiled } => {
                let (q, k, v) = (tensor("q", q)?, tensor("k", k)?, tensor("v", v)?);
                DeltaRule {
                    q,
                    k,
                    v,
                    decay: tensor("decay", decay)?,
                    beta: tensor("beta", beta)?,
                    start,
                    head_dim,
                    tiled,
                }
            }
            Combine { down, weights } => Combine { down: tensor("down", down)?, weights: tensor("weights", weights)? },
            Rows { x, start, rows } => Rows { x: tensor("x", x)?, start: *start, rows: *rows },
        })
    }

    /// The tensor operands with their names, in the order of the fields.
    pub fn operands(&self) -> Vec<(&'static str, &T)> {
        let mut all = Vec::new();
        let mut list = |name, tensor| {
            all.push((name, tensor));
            Ok(())
        };
        let listed = self.try_map_all(&mut list, &mut |_| Ok(()), &mut |_| Ok(()));
        debug_assert!(listed.is_ok(), "nothing above fails");
        all
    }

    /// The tensor operands, in the order of the fields.
    pub fn inputs(&self) -> Vec<&T> {
        self.operands().into_iter().map(|(_, tensor)| tensor).collect()
    }

    /// The operation without its operands.
    pub fn params(&self) -> OpParams {
        self.try_map_all(&mut |_, _| Ok(()), &mut |_| Ok(()), &mut |_| Ok(())).expect("nothing here fails")
    }
}

impl<'w, T> Op<'w, T> {
    /// The same operation over other handles: `f` is called once for each operand, in the order of [`Op::inputs`].
    pub fn try_map<'s, U>(&'s self, mut f: impl FnMut(&'s T) -> Result<U>) -> Result<Op<'w, U>> {
        self.try_map_all(&mut |_, tensor| f(tensor), &mut |weight| Ok(*weight), &mut |tokens| Ok(*tokens))
    }
}

impl<T: Clone> Op<'_, T> {
    /// The same operation, keeping its operands alive.
    pub fn keep(&self) -> Operation<T, Arc<Weight>, Vec<u32>> {
        self.try_map_all(&mut |_, t| Ok(t.clone()), &mut |w| Ok((*w).clone()), &mut |t| Ok(t.to_vec()))
            .expect("nothing here fails")
    }
}

impl<T: Clone> Operation<T, Arc<Weight>, Vec<u32>> {
    /// The operation to run, sharing its operands.
    pub fn share(&self) -> Op<'_, T> {
        self.try_map_all(&mut |_, t| Ok(t.clone()), &mut |w| Ok(w), &mut |t| Ok(&t[..])).expect("nothing here fails")
    }
}

impl OwnedOp {
    /// The operation to run.
    pub fn borrow(&self) -> Op<'_, &HostTensor> {
        self.try_map_all(&mut |_, t| Ok(&**t), &mut |w| Ok(w), &mut |t| Ok(&t[..])).expect("nothing here fails")
    }

    /// The same operation over other tensors: `other` is called once for each operand, in the order of [`Op::inputs`].
    pub fn with_operands(&self, mut other: impl FnMut(&Rc<HostTensor>) -> Rc<HostTensor>) -> Self {
        self.try_map_all(&mut |_, t| Ok(other(t)), &mut |w| Ok(w.clone()), &mut |t| Ok(t.clone()))
            .expect("nothing here fails")
    }

    /// The weight that the operation reads, if it reads one.
    pub fn weight_ref(&self) -> Option<&Arc<Weight>> {
        self.borrow().weight()
    }

    /// The same, to be exchanged.
    pub fn weight_mut(&mut self) -> Option<&mut Arc<Weight>> {
        match self {
            Operation::Embed { table: weight, .. }
            | Operation::RmsNorm { weight, .. }
            | Operation::MatMul { weight, .. }
            | Operation::HeadMatMul { weight, .. }
            | Operation::Bias { weight, .. }
            | Operation::ExpertMatMul { weight, .. }
            | Operation::ExpertBias { weight, .. }
            | Operation::Conv { weight, .. }
            | Operation::Decay { weight, .. } => Some(weight),
            Operation::Rope { rotation, .. } => rotation.factors.as_mut(),
            Operation::AttnProbs { sinks, .. } => sinks.as_mut(),
            _ => None,
        }
    }
}

impl OpParams {
    /// The names of the operands that [`OpParams::bind`] takes: the tensors, among which an embedding's tokens count.
    pub fn names(&self) -> Vec<&'static str> {
        match self {
            OpParams::Embed { .. } => vec!["tokens"],
            _ => self.operands().into_iter().map(|(name, ())| name).collect(),
        }
    }

    /// The same, given a `weight` or none: whether rope has factors, and a softmax sinks, is known by there being some.
    pub fn given(self, weight: bool) -> Self {
        match self {
            OpParams::Rope { x, start, head_dim, rotation } => {
                OpParams::Rope { x, start, head_dim, rotation: rotation.with_factors(weight.then_some(())) }
            }
            OpParams::AttnProbs { scores, start, window, .. } => {
                OpParams::AttnProbs { scores, start, window, sinks: weight.then_some(()) }
            }
            other => other,
        }
    }

    /// The operation over `tensors`, in the order of [`OpParams::names`], and `weight`. Whether they fit it is for
    /// [`Op::check`] to say.
    ///
    /// # Errors
    /// [`Error::Usage`] if there are more or fewer operands than the operation has, or if tokens are no list of ids.
    pub fn bind<'a>(
        &self,
        tensors: &'a [HostTensor],
        weight: Option<&'a Arc<Weight>>,
    ) -> Result<Op<'a, &'a HostTensor>> {
        let wrong = |what: String| Error::usage(format!("{:?}: {what}", self.kind()));
        let names = self.names();
        if tensors.len() != names.len() {
            return Err(wrong(format!("{} operands where {} were expected", tensors.len(), names.join(" and "))));
        }
        let params = self.given(weight.is_some());
        if let (None, Some(weight)) = (params.weight(), weight) {
            return Err(wrong(format!("{} is given where no weight was expected", weight.name)));
        }
        let mut next = tensors.iter();
        params.try_map_all(
            &mut |_, ()| Ok(next.next().expect("as many as there are names")),
            &mut |()| weight.ok_or_else(|| wrong("no weight is given where one was expected".into())),
            &mut |()| match (&tensors[0].data, &tensors[0].shape[..]) {
                (Data::U32(tokens), [_]) => Ok(&tokens[..]),
                (_, shape) => {
                    let found = tensors[0].dtype();
                    Err(wrong(format!("tokens is {found} {shape:?} where token ids [T] were expected")))
                }
            },
        )
    }
}
