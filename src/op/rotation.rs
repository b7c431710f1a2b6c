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

/// Which pairs turn, and how fast: at position p, pair i turns by p · scale · base^(−2i/D) / factors\[i\].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rotation<W> {
    /// Which dimensions are a pair.
    #[serde(default, skip_serializing_if = "is_neox")]
    pub pairing: Pairing,
    /// Base of the frequencies.
    pub base: f64,
    /// What every angle is multiplied by: 1 / factor of a linear scaling.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub scale: f64,
    /// What each pair's frequency is divided by, `[D/2]` (`rope_freqs.weight`); `None`: by 1.
    #[serde(skip)]
    pub factors: Option<W>,
}

fn is_neox(pairing: &Pairing) -> bool {
    *pairing == Pairing::Neox
}

fn one() -> f64 {
    1.0
}

fn is_one(x: &f64) -> bool {
    *x == 1.0
}

impl<W> Rotation<W> {
    /// NEOX pairing, unscaled.
    pub fn neox(base: f64) -> Self {
        Self { pairing: Pairing::Neox, base, scale: 1.0, factors: None }
    }

    /// The same with what `weight` makes of the factors, where there are some.
    ///
    /// # Errors
    /// Those of `weight`.
    pub fn try_map<'s, W2>(&'s self, weight: impl FnOnce(&'s W) -> Result<W2>) -> Result<Rotation<W2>> {
        let Self { pairing, base, scale, ref factors } = *self;
        Ok(Rotation { pairing, base, scale, factors: factors.as_ref().map(weight).transpose()? })
    }

    /// The same with these factors.
    pub fn with_factors<W2>(&self, factors: Option<W2>) -> Rotation<W2> {
        Rotation { pairing: self.pairing, base: self.base, scale: self.scale, factors }
    }
}

/// What the angles of a rotation depend on besides the position: backends keep tables of angles by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AngleKey {
    head_dim: usize,
    base: u64,
    scale: u64,
    factors: Option<usize>,
}

impl Rotation<&Arc<Weight>> {
    /// What the angles of heads of `head_dim` depend on.
    pub fn angle_key(&self, head_dim: usize) -> AngleKey {
        let [base, scale] = [self.base, self.scale].map(f64::to_bits);
        AngleKey { head_dim, base, scale, factors: self.factors.map(|w| w.id) }
    }
}
