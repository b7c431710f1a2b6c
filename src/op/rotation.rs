//! How rope turns the pairs of a head.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::op::Weight;

/// Which dimensions of a head turn together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pairing {
    /// i with i + D/2.
    #[default]
    Neox,
    /// 2i with 2i + 1.
    Norm,
}

impl Pairing {
    /// As ggml calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Neox => "NEOX",
            Self::Norm => "NORM",
        }
    }

    /// The pair, (2i, 2i + 1) or (i, i + D/2).
    pub fn formula(self) -> &'static str {
        match self {
            Self::Neox => "i with i + D/2",
            Self::Norm => "2i with 2i + 1",
        }
    }

    /// The dimensions of pair `i`, of `half` pairs.
    pub fn dims(self, i: usize, half: usize) -> [usize; 2] {
        match self {
            Self::Neox => [i, i + half],
            Self::Norm => [2 * i, 2 * i + 1],
        }
    }
}

/// Which pairs turn, and how fast: at position p, pair i turns by p · scale · base^(−2i/D) / factors\[i\], where there is no YaRN. With it,
/// the pairs that [`Yarn::kept`] names keep their frequency and are not scaled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rotation<W> {
    /// Which dimensions are a pair.
    #[serde(default, skip_serializing_if = "is_neox")]
    pub pairing: Pairing,
    /// Base of the frequencies.
    pub base: f64,
    /// How many of a head's dimensions turn, the others staying as they are; `None`: all. D below is that number then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dims: Option<usize>,
    /// The first of these: 0, or behind those of a head that have no position, as MLA has it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first: usize,
    /// What every angle is multiplied by: 1 / factor of a linear scaling.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub scale: f64,
    /// What each pair's frequency is divided by, `[D/2]` (`rope_freqs.weight`); `None`: by 1.
    #[serde(skip)]
    pub factors: Option<W>,
    /// YaRN, where the file has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yarn: Option<Yarn>,
}

/// YaRN: pairs that turn often within the original context keep their frequency, those that turn seldom are scaled, and between the two
/// is a ramp (`rope_yarn` in ggml, `_compute_yarn_parameters` in transformers).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Yarn {
    /// How many positions the model was first trained on.
    pub context: f64,
    /// A pair with as many turns in the original context, or more, keeps its frequency…
    pub beta_fast: f64,
    /// …and one with as few, or fewer, is scaled.
    pub beta_slow: f64,
    /// How much of the ramp applies: 1, or 0 to scale every pair.
    pub ramp: f64,
    /// What cosines and sines are multiplied by: what the file and llama.cpp's defaults come to, in one number.
    pub magnitude: f64,
    /// The ramp begins and ends where the turns say, between two pairs, and not at the whole pairs next to them (`truncate: false` in
    /// transformers).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub between: bool,
}

impl Yarn {
    /// The first and the last pair of the ramp, in heads of `head_dim`.
    pub fn bounds(&self, head_dim: usize, base: f64) -> [f64; 2] {
        let pair =
            |turns: f64| head_dim as f64 * (self.context / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
        let (first, last) = (pair(self.beta_fast), pair(self.beta_slow));
        let (first, last) = if self.between { (first, last) } else { (first.floor(), last.ceil()) };
        [first.max(0.0), last.min(head_dim as f64 - 1.0)]
    }

    /// How much of its own frequency each pair keeps, [D/2]: the rest of it is scaled.
    pub fn kept(&self, head_dim: usize, base: f64) -> impl Iterator<Item = f64> {
        let ([first, last], ramp) = (self.bounds(head_dim, base), self.ramp);
        (0..head_dim / 2).map(move |i| ramp * (1.0 - ((i as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0)))
    }
}

fn is_neox(pairing: &Pairing) -> bool {
    *pairing == Pairing::Neox
}

pub(super) fn one() -> f64 {
    1.0
}

pub(super) fn is_zero(n: &usize) -> bool {
    *n == 0
}

pub(super) fn is_one(x: &f64) -> bool {
    *x == 1.0
}

impl<W> Rotation<W> {
    /// NEOX pairing, unscaled.
    pub fn neox(base: f64) -> Self {
        Self { pairing: Pairing::Neox, base, dims: None, first: 0, scale: 1.0, factors: None, yarn: None }
    }

    /// The same with what `weight` makes of the factors, where there are some.
    ///
    /// # Errors
    /// Those of `weight`.
    pub fn try_map<'s, W2>(&'s self, weight: impl FnOnce(&'s W) -> Result<W2>) -> Result<Rotation<W2>> {
        let Self { pairing, base, dims, first, scale, ref factors, yarn } = *self;
        Ok(Rotation { pairing, base, dims, first, scale, factors: factors.as_ref().map(weight).transpose()?, yarn })
    }

    /// The same with these factors.
    pub fn with_factors<W2>(&self, factors: Option<W2>) -> Rotation<W2> {
        let Self { pairing, base, dims, first, scale, yarn, .. } = *self;
        Rotation { pairing, base, dims, first, scale, factors, yarn }
    }

    /// How many of the dimensions of a head of `head_dim` turn.
    pub fn turned(&self, head_dim: usize) -> usize {
        self.dims.unwrap_or(head_dim)
    }

    /// What cosines and sines are multiplied by.
    pub fn magnitude(&self) -> f64 {
        self.yarn.map_or(1.0, |yarn| yarn.magnitude)
    }

    /// What the angles of each pair are multiplied by, [D/2].
    pub fn scales(&self, head_dim: usize) -> Vec<f64> {
        let turned = self.turned(head_dim);
        match self.yarn {
            None => vec![self.scale; turned / 2],
            Some(yarn) => yarn.kept(turned, self.base).map(|kept| self.scale * (1.0 - kept) + kept).collect(),
        }
    }
}

/// What the angles of a rotation depend on besides the position: backends keep tables of angles by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AngleKey {
    turned: usize,
    base: u64,
    scale: u64,
    factors: Option<usize>,
    yarn: Option<([u64; 5], bool)>,
}

impl Rotation<&Arc<Weight>> {
    /// What the angles of heads of `head_dim` depend on.
    pub fn angle_key(&self, head_dim: usize) -> AngleKey {
        let [base, scale] = [self.base, self.scale].map(f64::to_bits);
        let numbers = |y: Yarn| [y.context, y.beta_fast, y.beta_slow, y.ramp, y.magnitude].map(f64::to_bits);
        let yarn = self.yarn.map(|y| (numbers(y), y.between));
        AngleKey { turned: self.turned(head_dim), base, scale, factors: self.factors.map(|w| w.id), yarn }
    }
}
