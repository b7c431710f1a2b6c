//! Operations that run together.
//!
//! Design:
//! - Operations of a few kinds wait until one of another kind comes or somebody asks for values. Where one kernel then does what
//!   several of them ask for, and nobody holds a value that this kernel does not make, they run as one dispatch.
//! - Nobody holds a value when its only handles are here: the forward pass lets go of a value once its operations have been run, and
//!   a tap asks for it before that. So whoever looks at a stage gets it from the kernel of that stage alone.
//! - A kernel of several operations rounds as theirs do, in the same order: the results are the same bit for bit, which
//!   `tests/library/tap_purity.rs` holds it to.
//! - A group runs in the place of its last operation, and only if nothing in between reads what it makes or overwrites what it reads.

use std::rc::Rc;
use std::sync::Arc;

use super::tensor::GpuTensor;
use crate::backend::FusedKernel;
use crate::op::{Op, OpKind, Operation, Pairing, Site, Stage, Weight};

/// What the kernels of a [`Launch`] pass on without writing it, or write into the KV cache alone.
pub const FUSED: &[FusedKernel] = &[
    FusedKernel { name: "norm_rope", hides: &[Stage::QNorm, Stage::KNorm] },
    FusedKernel { name: "norm_ropes", hides: &[Stage::QNorm, Stage::KNorm] },
    FusedKernel { name: "what goes into the KV cache", hides: &[Stage::KRope, Stage::VProj, Stage::VBias] },
    FusedKernel { name: "attention", hides: &[Stage::AttnScores, Stage::AttnProbs] },
    FusedKernel { name: "add_norm", hides: &[] },
    FusedKernel { name: "router", hides: &[] },
    FusedKernel { name: "combine_add", hides: &[Stage::MoeOut] },
    FusedKernel { name: "combine_add_norm", hides: &[Stage::MoeOut] },
];

/// Longest head of attention.wgsl, whose threads hold the sums of all of its columns.
const MOST_HEAD_DIM: usize = 256;

/// An operation that owns what it reads.
pub type KeptOp = Operation<GpuTensor, Arc<Weight>, Vec<u32>>;

/// An operation that waits, and the tensor that it is to make.
pub struct Waiting {
    pub site: Site,
    pub op: KeptOp,
    pub result: GpuTensor,
}

/// A norm of heads and the rotation of the result, which goes into the cache of `store` if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turned {
    pub norm: usize,
    pub rope: usize,
    pub store: Option<usize>,
}

impl Turned {
    fn members(self) -> impl Iterator<Item = usize> {
        [self.norm, self.rope].into_iter().chain(self.store)
    }
}

/// What runs in one place: the operations by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launch {
    Alone(usize),
    NormRope(Turned),
    /// Of queries, and of keys.
    NormRopes([Turned; 2]),
    /// A product, a product with its bias, or a rotation whose result goes into a cache.
    Stored {
        made: usize,
        store: usize,
    },
    AddNorm {
        add: usize,
        norm: usize,
    },
    CombineAdd {
        combine: usize,
        add: usize,
    },
    CombineAddNorm {
        combine: usize,
        add: usize,
        norm: usize,
    },
    /// Scores that are all that the probabilities are made of, and these all that the context is.
    Attention {
        scores: usize,
        probs: usize,
        context: usize,
    },
    Router {
        probs: usize,
        ids: usize,
        weights: usize,
    },
}

impl Launch {
    /// The operations, in order.
    fn members(&self) -> Vec<usize> {
        match *self {
            Launch::Alone(i) => vec![i],
            Launch::NormRope(turned) => turned.members().collect(),
            Launch::NormRopes(both) => {
                let mut members: Vec<usize> = both.into_iter().flat_map(Turned::members).collect();
                members.sort_unstable();
                members
            }
            Launch::Stored { made, store } => vec![made, store],
            Launch::AddNorm { add, norm } => vec![add, norm],
            Launch::CombineAdd { combine, add } => vec![combine, add],
            Launch::CombineAddNorm { combine, add, norm } => vec![combine, add, norm],
            Launch::Attention { scores, probs, context } => vec![scores, probs, context],
            Launch::Router { probs, ids, weights } => vec![probs, ids, weights],
        }
    }
}

/// Whether operations of this kind wait for others that may join them.
pub fn waits(kind: OpKind) -> bool {
    use OpKind::*;
    matches!(
        kind,
        RmsNorm
            | MatMul
            | Bias
            | Rope
            | Store
            | AttnScores
            | AttnProbs
            | AttnContext
            | Add
            | Combine
            | RouterProbs
            | RouterTopK
            | RouterWeights
    )
}

/// Every operation of `all`, once, in an order in which they may run. `stores` says whether a result may be written straight into
/// the cache of that [`Operation::Store`].
pub fn launches(all: &[Waiting], stores: impl Fn(usize) -> bool) -> Vec<Launch> {
    let mut taken = vec![false; all.len()];
    let mut last: Vec<Option<Launch>> = vec![None; all.len()]; // what runs in the place of each operation
    for first in 0..all.len() {
        if taken[first] {
            continue;
        }
        let launch = groups(all, first, &stores)
            .into_iter()
            .flatten()
            .find(|launch| launch.members().iter().all(|&i| !taken[i]) && undisturbed(all, &launch.members()))
            .unwrap_or(Launch::Alone(first));
        let members = launch.members();
        for &i in &members {
            taken[i] = true;
        }
        last[members[members.len() - 1]] = Some(launch);
    }
    last.into_iter().flatten().collect()
}

/// The groups that begin with `first`, the largest first.
fn groups(all: &[Waiting], first: usize, stores: &impl Fn(usize) -> bool) -> [Option<Launch>; 2] {
    let one = group(all, first, stores);
    let more = match one {
        Some(Launch::NormRope(turned)) => {
            let others = (first + 1..all.len()).filter_map(|at| turned_at(all, at, stores));
            let alike = |other: &Turned| are_turned_alike(all, turned, *other);
            others.into_iter().find(alike).map(|other| Launch::NormRopes([turned, other]))
        }
        Some(Launch::CombineAdd { combine, add }) => {
            norm_of(all, add).map(|norm| Launch::CombineAddNorm { combine, add, norm })
        }
        _ => None,
    };
    [more, one]
}

/// The norm of the rows that an addition makes.
fn norm_of(all: &[Waiting], add: usize) -> Option<usize> {
    let norm = users(all, add).next()?;
    let Operation::RmsNorm { weight, keep: 0, .. } = &all[norm].op else { return None };
    (all[add].result.shape().last() == Some(&weight.cols)).then_some(norm)
}

/// The store that takes the result of `made`, which is made of what `first` reads: not of that cache.
fn into_cache(all: &[Waiting], first: usize, made: usize, stores: &impl Fn(usize) -> bool) -> Option<usize> {
    hidden_in(all, made).filter(|&at| {
        let Operation::Store { cache, .. } = &all[at].op else { return false };
        !all[first].op.inputs().iter().any(|input| input.same(cache)) && stores(at)
    })
}

/// The norm of heads at `norm`, if that is one, with the rotation of its result.
fn turned_at(all: &[Waiting], norm: usize, stores: &impl Fn(usize) -> bool) -> Option<Turned> {
    let Operation::RmsNorm { weight, keep: 0, .. } = &all[norm].op else { return None };
    let rope = hidden_in(all, norm)?;
    let Operation::Rope { head_dim, rotation, .. } = &all[rope].op else { return None };
    // The kernel turns whole heads.
    let whole = *head_dim == weight.cols && rotation.turned(*head_dim) == *head_dim;
    let store = into_cache(all, norm, rope, stores);
    (whole && rotation.pairing == Pairing::Neox).then_some(Turned { norm, rope, store })
}

/// Whether heads of the same positions are normalised and turned alike, but for the norm's weight.
fn are_turned_alike(all: &[Waiting], a: Turned, b: Turned) -> bool {
    let of = |t: Turned| match (&all[t.norm].op.share(), &all[t.rope].op.share()) {
        (Op::RmsNorm { x, eps, .. }, Op::Rope { start, head_dim, rotation, .. }) => {
            (x.shape().first().copied(), *eps, *start, rotation.angle_key(*head_dim), *head_dim)
        }
        _ => unreachable!("a norm and a rotation"),
    };
    of(a) == of(b)
}

/// The smallest group that begins with `first`, if one does.
fn group(all: &[Waiting], first: usize, stores: &impl Fn(usize) -> bool) -> Option<Launch> {
    match &all[first].op {
        Operation::RmsNorm { .. } => turned_at(all, first, stores).map(Launch::NormRope),
        Operation::MatMul { .. } | Operation::Bias { .. } | Operation::Rope { .. } => {
            into_cache(all, first, first, stores).map(|store| Launch::Stored { made: first, store })
        }
        Operation::Combine { .. } => {
            let add = hidden_in(all, first)?;
            matches!(all[add].op, Operation::Add { .. }).then_some(Launch::CombineAdd { combine: first, add })
        }
        Operation::Add { .. } => {
            let norm = users(all, first).next()?;
            matches!(all[norm].op, Operation::RmsNorm { keep: 0, .. }).then_some(Launch::AddNorm { add: first, norm })
        }
        Operation::AttnScores { k, start, head_dim, window, .. } => {
            let probs = hidden_in(all, first)?;
            // Sinks have a kernel of their own.
            let Operation::AttnProbs { start: from, window: in_probs, sinks: None, .. } = &all[probs].op else {
                return None;
            };
            let context = hidden_in(all, probs)?;
            let Operation::AttnContext { probs: weights, v, start: at, head_dim: d, window: in_context } =
                &all[context].op
            else {
                return None;
            };
            let one = weights.same(&all[probs].result)
                && (from, at, d) == (start, start, head_dim)
                && (in_probs, in_context) == (window, window)
                && k.shape().last() == v.shape().last(); // as many KV heads
            (one && *d <= MOST_HEAD_DIM).then_some(Launch::Attention { scores: first, probs, context })
        }
        // Sigmoids have kernels of their own.
        Operation::RouterProbs { sigmoid: false, .. } => {
            let mut users = users(all, first);
            let (ids, weights) = (users.next()?, users.next()?);
            // So have groups.
            let Operation::RouterTopK { groups: None, .. } = all[ids].op else { return None };
            let Operation::RouterWeights { ids: chosen, .. } = &all[weights].op else { return None };
            chosen.same(&all[ids].result).then_some(Launch::Router { probs: first, ids, weights })
        }
        _ => None,
    }
}

/// The operations that read the result of `made`.
fn users(all: &[Waiting], made: usize) -> impl Iterator<Item = usize> {
    let reads = move |at: &usize| all[*at].op.inputs().iter().any(|input| input.same(&all[made].result));
    (made + 1..all.len()).filter(reads)
}

/// The one operation that reads the result of `made`, if nobody else has a handle to it.
fn hidden_in(all: &[Waiting], made: usize) -> Option<usize> {
    // One handle is here, one is that operation's.
    (Rc::strong_count(&all[made].result.0) == 2).then(|| users(all, made).next()).flatten()
}

/// Whether `members` may all run in the place of the last of them.
fn undisturbed(all: &[Waiting], members: &[usize]) -> bool {
    let (first, last) = (members[0], members[members.len() - 1]);
    (first..last).filter(|at| !members.contains(at)).all(|at| {
        let between = &all[at];
        members.iter().all(|&member| {
            let reads_it = between.op.inputs().iter().any(|input| input.same(&all[member].result));
            let overwrites = matches!(between.op, Operation::Store { .. })
                && all[member].op.inputs().iter().any(|input| input.same(&between.result));
            member > at || !(reads_it || overwrites)
        })
    })
}
