//! From where to why: which known mistake computes exactly what the wrong side computed.
//!
//! Design:
//! - **A hypothesis is a variant of the oracle's stage**: the same float64 formula with one thing done otherwise, on the wrong
//!   side's own inputs. [`catalogue`] lists them all; adding one is a row of `list.rs` and a function that builds its variants.
//! - **A variant is evaluated where it is asked.** Each gives a value and a floor for any element, so that hundreds are tried on
//!   a few dozen elements first, and only those that survive are computed everywhere.
//! - **To reproduce is to match every element within its floor**, the rounding that the contract allows in the *variant's* own
//!   arithmetic. A mistake made in one expert, head, or range of positions or columns only is the variant there and the oracle
//!   elsewhere.
//! - **Where the stage is right, too.** A variant that is confined to a region chosen here must be one that its own code would confine so
//!   (`Hypothesis::places`): a wrong map of heads is wrong at every head that it maps wrongly. A rule of indices is named where it is seen at
//!   several of them (`Variant::along`, `in_runs`), an exchange where both are wrong (`exchanging`); of one token, expert or column, what it has
//!   in its place.
//! - **What reads nothing real proves nothing.** Behind a tensor's end a variant says nothing (`Variant::unknown_at`).
//! - **No guess dressed as a finding.** A match counts if the variant accounts for the error, and if the error is so large against
//!   the floors that, with so many variants tried, chance would hardly match it. Of several the one that assumes least is named
//!   (`fit`), with those that assume as little. What does not match is named as the nearest only if it removes most of the error.
//! - Hypotheses share no code with any backend, nor with whatever plants faults in one.

mod attention;
mod bytes;
mod case;
mod delta;
mod fit;
mod heads;
mod indices;
mod linear;
mod linear_attention;
mod list;
mod norm;
mod pointwise;
mod precision;
mod range;
mod reduction;
mod rope;
mod routing;
mod search;
pub mod segment;
mod stride;
mod tokens;
mod weights;
mod whole;
mod wrapped;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::backend::Contract;
use crate::diff::locate::Axis;
use crate::diff::outcome::Cause;
use crate::error::Result;
use crate::model::{Config, Weights};
use crate::op::{HostTensor, Op, OpKind, Site, Stage};

use case::Variant;

/// Everything that a hypothesis may look at: one stage of one call, on the side that is wrong.
pub struct StageEval<'a> {
    pub site: Site,
    /// The first position of the call.
    pub start: usize,
    /// The operation on the wrong side's own inputs.
    pub op: &'a Op<'a, Rc<HostTensor>>,
    /// What the wrong side made of it.
    pub output: &'a HostTensor,
    /// What the oracle makes of it, its operands rounded as `contract` says: [`crate::formula::exact::exact()`].
    pub exact: &'a HostTensor,
    /// The rounding error that `contract` allows in each element of `exact`: [`crate::formula::floor::floor_of`].
    pub floor: &'a [f64],
    /// The wrong side's contract for this operation.
    pub contract: Contract,
    /// The wrong side's other values.
    pub earlier: &'a Upstream,
    pub config: &'a Config,
    pub weights: &'a Weights,
}

/// One side's values of the layer in progress, for hypotheses in which a stage reads another's.
#[derive(Default)]
pub struct Upstream {
    layer: Option<u32>,
    /// What the layer before left, or the embedding.
    input: Option<Rc<HostTensor>>,
    stages: BTreeMap<Stage, Rc<HostTensor>>,
}

impl Upstream {
    pub fn new() -> Self {
        Self::default()
    }

    /// To be told every stage in order of execution, after it has been explained; forgets a layer when the next begins.
    pub fn note(&mut self, site: Site, value: &Rc<HostTensor>) {
        if matches!(site.stage, Stage::Embedding | Stage::LayerOut) {
            self.input = Some(value.clone());
            self.stages.clear();
        } else {
            if site.layer != self.layer {
                self.stages.clear();
            }
            // The attention matrices are by far the largest values, and nothing reads them but the next stage.
            if !matches!(site.stage, Stage::AttnScores | Stage::AttnProbs) {
                self.stages.insert(site.stage, value.clone());
            }
        }
        self.layer = site.layer;
    }

    /// The value of a stage of this layer, if it has been made.
    pub fn get(&self, stage: Stage) -> Option<&Rc<HostTensor>> {
        self.stages.get(&stage)
    }

    /// The residual stream that came into this layer. [T, H]
    pub fn input(&self) -> Option<&Rc<HostTensor>> {
        self.input.as_ref()
    }
}

/// A known kind of mistake: a row of the list.
struct Hypothesis {
    /// Stable, for programs: `rope-pairing`.
    id: &'static str,
    /// For people: what the mistake is.
    description: &'static str,
    /// The operations that it is about.
    ops: &'static [OpKind],
    /// The axes along which the code that has it would confine it.
    places: fn(OpKind) -> &'static [Axis],
    /// How much less than others it is to be expected, in bits.
    bits: f64,
    /// The ways of making it, simplest first; none where it makes no sense.
    variants: for<'a> fn(&'a case::Evidence<'a>) -> Result<Vec<Variant<'a>>>,
}

/// A variant that was tried, and how well it does.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// The hypothesis.
    pub id: &'static str,
    /// What it computes, in words.
    pub what: String,
    /// The largest |output − variant| over the variant's floor; where it was not computed everywhere, over a sample, and the
    /// whole may be larger.
    pub residual: f64,
    /// What it has to assume, in bits, where it reproduces the output.
    pub bits: f64,
    /// The share of the error's energy that it removes, where it does not.
    pub removes: Option<f64>,
}

/// Between the words of causes that cannot be told apart.
pub const SAME_AS: &str = ", which here is the same as ";

/// What came of looking for a cause.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Every hypothesis that reproduces the output; those that assume least first, and of equals the first in the list.
    pub fits: Vec<Tried>,
    /// The best of the hypotheses that do not, if it removes most of the error.
    pub nearest: Option<Tried>,
    /// Why `fits`, if there are some, do not count: what is wrong is too little to tell them from chance.
    pub undecided: bool,
    /// How many variants were tried.
    pub tried: usize,
}

impl Explanation {
    /// Whether something reproduces the output, and not by chance.
    #[cfg(test)]
    pub fn reproduced(&self) -> bool {
        !self.fits.is_empty() && !self.undecided
    }

    /// For the outcome; `None` if nothing reproduces the output, nor comes near.
    pub fn cause(&self) -> Option<Cause> {
        let next = |t: &Tried| crate::diff::outcome::NextBest { name: t.what.clone(), residual_ratio: t.residual };
        let Some(best) = self.fits.first() else {
            let nearest = self.nearest.as_ref()?;
            return Some(Cause {
                reproduced: false,
                id: nearest.id,
                also: Vec::new(),
                name: nearest.what.clone(),
                residual_ratio: nearest.residual,
                removes: nearest.removes,
                next_best: None,
                stages: Vec::new(),
                others: Vec::new(),
            });
        };
        let ties = &self.fits[1..self.ties()];
        let mut name = best.what.clone();
        for other in ties.iter().take(2) {
            name += SAME_AS;
            name += &other.what;
        }
        if self.undecided {
            name += " (too little is wrong to tell this from chance)";
        }
        Some(Cause {
            reproduced: !self.undecided,
            id: best.id,
            also: ties.iter().map(|f| f.id).collect(),
            name,
            residual_ratio: best.residual,
            removes: None,
            next_best: self.nearest.as_ref().map(next),
            stages: Vec::new(),
            others: Vec::new(),
        })
    }
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(cause) = self.cause() else { return write!(f, "none of {} variants comes near", self.tried) };
        if let Some(removes) = cause.removes {
            let (share, name) = (100.0 * removes, &cause.name);
            return write!(
                f,
                "none of {} variants reproduces it; the nearest, {name}, removes {share:.0} % of the error",
                self.tried
            );
        }
        write!(f, "computes exactly what {} gives (residual {} × floor", cause.name, number(cause.residual_ratio))?;
        match &cause.next_best {
            Some(next) => write!(f, "; the next best, {}, leaves {})", next.name, number(next.residual_ratio)),
            None => write!(f, ")"),
        }
    }
}

/// Two digits, and an exponent where the number is large or small.
fn number(x: f64) -> String {
    if x == 0.0 || (0.01..100.0).contains(&x) { format!("{x:.2}") } else { format!("{x:.1e}") }
}

/// Looks for the known mistake that makes the output of a stage from its inputs.
///
/// # Errors
/// If the parts of the evaluation do not belong together.
pub fn explain(scene: &StageEval<'_>) -> Result<Explanation> {
    fit::explain(scene)
}

/// Every hypothesis: its id, what the mistake is, and the operations that it is about.
pub fn catalogue() -> impl Iterator<Item = (&'static str, &'static str, String)> {
    list::HYPOTHESES.iter().map(|h| {
        let ops: Vec<String> = h.ops.iter().map(|op| format!("{op:?}")).collect();
        let applies = if h.ops.len() == list::ANY.len() { "any".to_string() } else { ops.join(", ") };
        (h.id, h.description, applies)
    })
}
