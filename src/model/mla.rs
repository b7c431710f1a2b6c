//! Multi-head latent attention: what a file's keys say of it.

use super::arch::Keys;
use crate::error::Result;
use crate::op::{Mla, Rotation, Stage};

/// The sizes of multi-head latent attention.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct MlaConfig {
    /// Width of a position's latent, `attention.kv_lora_rank`.
    pub rank: usize,
    /// Width of what queries are projected through, `attention.q_lora_rank`; `None`: they are projected in one step.
    pub q_rank: Option<usize>,
    /// How many of a key's last dimensions turn, and are shared by all heads: `rope.dimension_count`.
    pub turned: usize,
    /// Width of a head of values.
    pub value_dim: usize,
    /// How it is computed: as the file has its weights.
    pub form: Mla,
}

impl MlaConfig {
    /// Of an architecture that has it, with D, the size of a head of queries.
    ///
    /// # Errors
    /// A missing or ill-typed key, and sizes that do not belong together.
    pub(super) fn read(keys: &Keys<'_>) -> Result<(Self, usize)> {
        let rank = keys.size("attention.kv_lora_rank")?;
        let turned = keys.size("rope.dimension_count")?;
        let [of_keys, of_values] = [keys.size("attention.key_length")?, keys.size("attention.value_length")?];
        let mla = [keys.size_opt("attention.key_length_mla")?, keys.size_opt("attention.value_length_mla")?];
        let expected = |name: &str, expected: usize, found: usize| {
            let key = keys.full(name);
            keys.bad(format!("{key}: {expected} was expected, the size of what is stored of a position, found {found}"))
        };
        let (head_dim, value_dim, form) = match mla {
            [Some(key), Some(value)] => {
                if of_keys != rank.saturating_add(turned) {
                    return Err(expected("attention.key_length", rank.saturating_add(turned), of_keys));
                }
                if of_values != rank {
                    return Err(expected("attention.value_length", rank, of_values));
                }
                (key, value, Mla::Absorbed)
            }
            [None, None] => (of_keys, of_values, Mla::Plain),
            _ => {
                let [key, value] = ["attention.key_length_mla", "attention.value_length_mla"].map(|key| keys.full(key));
                return Err(keys.bad(format!("one of {key} and {value} is missing: both or neither are expected")));
            }
        };
        let key = keys.full("rope.dimension_count");
        if turned % 2 != 0 || turned >= head_dim {
            return Err(keys.bad(format!("{key}: an even number below {head_dim} was expected, found {turned}")));
        }
        let q_rank = match keys.count("attention.q_lora_rank")? {
            0 => None,
            rank => Some(rank),
        };
        Ok((Self { rank, q_rank, turned, value_dim, form }, head_dim))
    }

    /// What is stored of a position: its latent, and the part of a key that turns.
    pub fn row(&self) -> usize {
        self.rank + self.turned
    }

    /// D of a stage, with heads of queries of `head_dim`.
    pub(super) fn head_dim_of(&self, stage: Stage, head_dim: usize) -> usize {
        match stage {
            Stage::KvA | Stage::KvNorm | Stage::KRope | Stage::QAbsorbed => self.row(),
            Stage::AttnScores | Stage::AttnProbs if self.form == Mla::Absorbed => self.row(),
            Stage::AttnLatent => self.rank,
            Stage::AttnContext | Stage::VUp => self.value_dim,
            _ => head_dim,
        }
    }

    /// How q and k turn, and what q·k is multiplied by: under YaRN the square of its magnitude, which cosines and sines are not multiplied by,
    /// as `mscale` and `mscale_all_dim` are one number in every model.
    ///
    /// # Errors
    /// YaRN without `rope.scaling.yarn_log_multiplier`: engines disagree on what that is.
    pub(super) fn rotation(
        &self,
        keys: &Keys<'_>,
        rotation: Rotation<()>,
        head_dim: usize,
    ) -> Result<(Rotation<()>, Option<f64>)> {
        let rotation = Rotation { dims: Some(self.turned), ..rotation };
        if rotation.yarn.is_none() {
            return Ok((rotation, None));
        }
        let name = "rope.scaling.yarn_log_multiplier";
        // Converters write a tenth of `mscale_all_dim`.
        let Some(tenth) = keys.positive_or_off(name)? else {
            let key = keys.full(name);
            return Err(keys
                .bad(format!("{key} is missing, and engines disagree on YaRN of {} without it", keys.architecture())));
        };
        // Divided in f32, as llama.cpp divides it, `mscale_all_dim` is what it was: 0.1 itself is not in f32.
        let mscale = f64::from(tenth / 0.1_f32);
        let stretch = 1.0 + 0.1 * mscale * (1.0 / rotation.scale).max(1.0).ln();
        Ok((rotation, Some(stretch * stretch / (head_dim as f64).sqrt())))
    }
}
