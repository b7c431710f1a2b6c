//! A scene made ready for hypotheses, and what a hypothesis makes of it: variants.
//!
//! - [`Case`] has the operands as f64, the elements that are wrong, and a sample of elements to try variants on.
//! - [`Variant`] gives a [`Point`] (value and floor) for any elements asked for. Nothing is computed before.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Scene;
use crate::error::{Error, Result};
use crate::formula::sum::confidence;
use crate::op::{HostTensor, Op, Stage, Weight};

/// Elements in the sample that are wrong, and that are not.
const PROBE_WRONG: usize = 48;
const PROBE_RIGHT: usize = 24;

/// What a variant says of one element.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub value: f64,
    /// The rounding error that the contract allows in it.
    pub floor: f64,
}

impl Point {
    pub fn new(value: f64, floor: f64) -> Self {
        Self { value, floor }
    }
    /// A value that rounding does not touch.
    pub fn exactly(value: f64) -> Self {
        Self { value, floor: 0.0 }
    }
    /// The error that `output` has against this, over the floor. Two values that are not finite are alike: which of NaN and
    /// infinity comes out depends on the order of a sum. What is beyond f32's range is infinite.
    pub fn residual(self, output: f64) -> f64 {
        let finite = |x: f64| x.abs() <= f32::MAX as f64;
        if !finite(output) && !finite(self.value) || output == self.value {
            0.0
        } else if finite(output) && finite(self.value) && self.floor.is_finite() {
            (output - self.value).abs() / self.floor
        } else {
            f64::INFINITY
        }
    }
}

/// Gives the points at the elements asked for.
type At<'a> = dyn Fn(&[usize]) -> Result<Vec<Point>> + 'a;

/// One way of making a mistake.
pub struct Variant<'a> {
    /// What is computed, in words: "rope with base 10000".
    pub what: String,
    /// How many continuous parameters were fitted to the output.
    pub fitted: usize,
    /// Its floor allows for more than rounding in the contract's arithmetic, so that only how much of the error it accounts for tells
    /// anything, and its residual cannot be held against others'.
    pub loose: bool,
    /// What speaks for it, in nats, where that is neither its floor nor the error that it accounts for.
    pub evidence: Option<f64>,
    at: Box<At<'a>>,
}

impl<'a> Variant<'a> {
    /// From a function of many elements at once, asked for in ascending order.
    pub fn new(what: impl Into<String>, at: impl Fn(&[usize]) -> Result<Vec<Point>> + 'a) -> Self {
        Self { what: what.into(), fitted: 0, loose: false, evidence: None, at: Box::new(at) }
    }

    /// From a function of one element.
    pub fn each(what: impl Into<String>, point: impl Fn(usize) -> Point + 'a) -> Self {
        Self::new(what, move |indices| Ok(indices.iter().map(|i| point(*i)).collect()))
    }

    /// From a function of one row of `cols` elements, computed once for those of its elements that are asked for.
    pub fn rows(what: impl Into<String>, cols: usize, row: impl Fn(usize) -> Vec<Point> + 'a) -> Self {
        let cols = cols.max(1);
        Self::new(what, move |indices| {
            let mut here: (usize, Vec<Point>) = (usize::MAX, Vec::new());
            let point = |i: &usize| {
                if here.0 != i / cols {
                    here = (i / cols, row(i / cols));
                }
                here.1[i % cols]
            };
            Ok(indices.iter().map(point).collect())
        })
    }

    /// Notes that `n` continuous parameters were fitted.
    pub fn with_fitted(mut self, n: usize) -> Self {
        self.fitted = n;
        self
    }

    /// Says that its floor is wide.
    pub fn loosely(mut self) -> Self {
        self.loose = true;
        self
    }

    /// Says what speaks for it besides its floor, which is wide.
    pub fn with_evidence(mut self, nats: f64) -> Self {
        self.loose = true;
        self.evidence = Some(nats);
        self
    }

    /// Value and floor at each of `indices`, which ascend.
    pub fn at(&self, indices: &[usize]) -> Result<Vec<Point>> {
        (self.at)(indices)
    }
}

/// A scene made ready.
pub struct Case<'a> {
    pub scene: &'a Scene<'a>,
    /// The operands as f64, in the order of `Op::inputs`; ids as numbers.
    pub inputs: Vec<Arc<Vec<f64>>>,
    pub shapes: Vec<&'a [usize]>,
    pub exact: Vec<f64>,
    pub output: Vec<f64>,
    /// Elements that rounding does not explain, ascending.
    pub wrong: Vec<usize>,
    /// The sample to try variants on, ascending; those of it that are wrong, and that are not.
    pub probe: Vec<usize>,
    /// λ for as many sums as this stage has: one a row in a softmax or a renormalisation, elsewhere one an element.
    pub lambda: f64,
}

impl<'a> Case<'a> {
    /// # Errors
    /// If output, oracle's result and floor are not of one shape.
    pub fn new(scene: &'a Scene<'a>) -> Result<Self> {
        let (exact, output) = (scene.exact.to_f64(), scene.output.to_f64());
        if scene.exact.shape != scene.output.shape || scene.floor.len() != exact.len() {
            return Err(Error::usage(format!(
                "{}: the output is {:?}, the oracle's {:?}, with {} floors",
                scene.site,
                scene.output.shape,
                scene.exact.shape,
                scene.floor.len()
            )));
        }
        let operands = scene.op.inputs();
        let ratio = |i: usize| Point::new(exact[i], scene.floor[i]).residual(output[i]);
        let wrong: Vec<usize> = (0..exact.len()).filter(|i| ratio(*i) > 1.0).collect();
        let mut probe = BTreeSet::new();
        let mut worst = wrong.clone();
        worst.sort_by(|a, b| ratio(*b).total_cmp(&ratio(*a)).then(a.cmp(b)));
        probe.extend(&worst[..worst.len().min(PROBE_WRONG / 2)]);
        probe.extend(spread(&wrong, PROBE_WRONG - PROBE_WRONG / 2));
        let sums = match scene.op {
            Op::AttnProbs { .. } | Op::RouterProbs { .. } | Op::RouterWeights { .. } => {
                exact.len() / scene.exact.cols().max(1)
            }
            _ => exact.len(),
        };
        let right: Vec<usize> = {
            let mut bad = wrong.iter().copied().peekable();
            (0..exact.len()).filter(|i| bad.next_if_eq(i).is_none()).collect()
        };
        probe.extend(spread(&right, PROBE_RIGHT));
        Ok(Self {
            scene,
            inputs: operands.iter().map(|t| Arc::new(t.to_f64())).collect(),
            shapes: operands.iter().map(|t| &t.shape[..]).collect(),
            lambda: confidence(sums),
            exact,
            output,
            wrong,
            probe: probe.into_iter().collect(),
        })
    }

    /// The largest residual of points at `indices`.
    pub fn residual(&self, indices: &[usize], points: &[Point]) -> Result<f64> {
        if indices.len() != points.len() {
            let (asked, got) = (indices.len(), points.len());
            return Err(Error::usage(format!("{}: {got} points for {asked} elements", self.scene.site)));
        }
        Ok(indices.iter().zip(points).map(|(i, p)| p.residual(self.output[*i])).fold(0.0, f64::max))
    }

    /// The oracle's own point of an element.
    pub fn right(&self, i: usize) -> Point {
        Point::new(self.exact[i], self.scene.floor[i])
    }

    pub fn cols(&self) -> usize {
        self.scene.output.cols().max(1)
    }

    /// Positions in this call, T.
    pub fn tokens(&self) -> usize {
        let shape = &self.scene.output.shape;
        if self.is_attention_matrix() { shape[1] } else { shape.first().copied().unwrap_or(0) }
    }

    /// Whether the output is [heads, T, S].
    pub fn is_attention_matrix(&self) -> bool {
        matches!(self.scene.op, Op::AttnScores { .. } | Op::AttnProbs { .. })
    }

    /// The expert ids that the router chose, [T, K], if this operation or this layer has them.
    pub fn ids(&self) -> Option<&'a HostTensor> {
        match self.scene.op {
            Op::ExpertMatMul { ids, .. } | Op::RouterWeights { ids, .. } => Some(ids),
            _ => self.scene.earlier.get(Stage::RouterIds).map(|ids| &**ids),
        }
    }

    /// The other weights of the model that have the shape of `weight`: those of this layer, and the same of the layers beside.
    pub fn other_weights(&self, weight: &Weight) -> Vec<&'a Weight> {
        let all = |n: usize| self.scene.weights.layers.get(n).map(layer_weights).unwrap_or_default();
        let whole = [&*self.scene.weights.token_embd, &*self.scene.weights.output, &*self.scene.weights.output_norm];
        let kind = |w: &Weight| w.name.rsplit_once('.').map_or(w.name.clone(), |(stem, _)| stem.to_string());
        let stem = |w: &Weight| kind(w).rsplit('.').next().unwrap_or_default().to_string();
        let mut found: Vec<&Weight> = Vec::new();
        if let Some(n) = self.scene.site.layer.map(|n| n as usize) {
            found.extend(all(n));
            for beside in [n.checked_sub(1), n.checked_add(1)].into_iter().flatten() {
                found.extend(all(beside).into_iter().filter(|w| stem(w) == stem(weight)));
            }
        } else {
            found.extend(self.scene.weights.layers.last().map(layer_weights).unwrap_or_default());
        }
        found.extend(whole);
        let same = |w: &&Weight| {
            w.id != weight.id && (w.cols, w.rows, w.experts) == (weight.cols, weight.rows, weight.experts)
        };
        found.retain(same);
        found
    }
}

fn layer_weights(l: &crate::model::LayerWeights) -> Vec<&Weight> {
    use crate::model::Ffn;
    let mut all: Vec<&Weight> = vec![
        &l.attn_norm,
        &l.attn_q,
        &l.attn_k,
        &l.attn_v,
        &l.attn_q_norm,
        &l.attn_k_norm,
        &l.attn_output,
        &l.ffn_norm,
    ];
    match &l.ffn {
        Ffn::Dense { gate, up, down } => all.extend([&**gate, &**up, &**down]),
        Ffn::Moe(m) => all.extend([&*m.router, &*m.gate, &*m.up, &*m.down]),
    }
    all
}

/// At most `n` of `all`, first and last among them, evenly spread, with a step that shares no small factor with a row's length.
fn spread(all: &[usize], n: usize) -> Vec<usize> {
    if all.len() <= n {
        return all.to_vec();
    }
    let mut chosen: Vec<usize> = (0..n).map(|i| all[i * (all.len() - 1) / (n - 1)]).collect();
    chosen.dedup();
    chosen
}
