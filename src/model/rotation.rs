//! The rotary embedding: what a file's keys say of it, as llama.cpp reads them.

use super::arch::{Architecture, Keys};
use crate::error::Result;
use crate::op::{Rotation, Yarn};

/// The rotation; `factors`: the file has a tensor of them.
pub(super) fn rotation(architecture: &Architecture, keys: &Keys<'_>, factors: bool) -> Result<Rotation<()>> {
    let base = keys.positive_or("rope.freq_base", architecture.rope_base)? as f64;
    let factors = (architecture.rope_freqs && factors).then_some(());
    let (scale, yarn) = scaling(architecture, keys)?;
    Ok(Rotation { pairing: architecture.pairing, base, dims: None, first: 0, scale, factors, yarn })
}

/// What layers with a sliding window have of their own.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct SlidingWindow {
    /// How many keys a position sees, its own among them.
    pub keys: usize,
    /// Every so manieth layer has none, and sees all.
    pub period: usize,
    /// Their rotation.
    pub rotation: Rotation<()>,
}

/// The windows, if the architecture and the file have some; `others` is the rotation of layers without.
pub(super) fn window(
    architecture: &Architecture,
    keys: &Keys<'_>,
    others: Rotation<()>,
) -> Result<Option<SlidingWindow>> {
    let Some(rule) = architecture.windows else { return Ok(None) };
    let seen = match rule.keys {
        Some(seen) => keys.size_or("attention.sliding_window", || Ok(seen))?,
        None => keys.count("attention.sliding_window")?,
    };
    let seen = match seen {
        0 => {
            // What says more of a window that is not there changes nothing.
            keys.size_opt("attention.sliding_window_pattern")?;
            keys.positive_opt("rope.freq_base_swa")?;
            return Ok(None);
        }
        seen => seen,
    };
    let period = keys.size_or("attention.sliding_window_pattern", || Ok(rule.period))?;
    let rotation = match rule.rope_base {
        Some(base) => {
            let base = f64::from(keys.positive_or("rope.freq_base_swa", base)?);
            Rotation { base, scale: 1.0, factors: None, yarn: None, ..others }
        }
        None => {
            let base = keys.positive_opt("rope.freq_base_swa")?.map_or(others.base, f64::from);
            Rotation { base, ..others }
        }
    };
    Ok(Some(SlidingWindow { keys: seen, period, rotation }))
}

/// What the angles are multiplied by, and YaRN. A factor without a type is linear, as in llama.cpp.
fn scaling(architecture: &Architecture, keys: &Keys<'_>) -> Result<(f64, Option<Yarn>)> {
    let kind = keys.str_opt("rope.scaling.type")?;
    let factor = match keys.positive_opt("rope.scaling.factor")? {
        None => keys.positive_opt("rope.scale_linear")?,
        factor => {
            keys.positive_opt("rope.scale_linear")?; // the older key counts only where there is no other
            factor
        }
    };
    let factor = f64::from(factor.unwrap_or(1.0));
    match kind.unwrap_or("linear") {
        "none" => Ok((1.0, None)),
        "linear" => Ok((1.0 / factor, None)),
        "yarn" => {
            let yarn = yarn(architecture, keys, factor)?;
            Ok((1.0 / factor, Some(Yarn { between: architecture.yarn_between, ..yarn })))
        }
        other => {
            let key = keys.full("rope.scaling.type");
            Err(keys.bad(format!("{key} is {other:?}; none, linear and yarn are supported")))
        }
    }
}

fn yarn(architecture: &Architecture, keys: &Keys<'_>, factor: f64) -> Result<Yarn> {
    let context = keys.size_or("rope.scaling.original_context_length", || keys.size("context_length"))? as f64;
    // 1 + m·0.1·ln factor, of which llama.cpp takes the ratio for m = 1 and m = `yarn_log_multiplier`, where a file has that.
    let stretch = |m: f64| if factor <= 1.0 { 1.0 } else { 1.0 + 0.1 * m * factor.ln() };
    let less = keys.positive_or_off("rope.scaling.yarn_log_multiplier")?.map_or(1.0, |m| stretch(m.into()));
    // With latent attention both are one number, and q·k is multiplied by it ([`MlaConfig::rotation`](super::MlaConfig)).
    let magnitude = if architecture.latent { 1.0 } else { stretch(1.0) / less };
    // transformers takes this in place of its own number, llama.cpp takes its own: a model is certain where they are equal.
    if let Some(stated) = keys.positive_opt("rope.scaling.yarn_attn_factor")?
        && (f64::from(stated) / magnitude - 1.0).abs() > 1e-5
    {
        let key = keys.full("rope.scaling.yarn_attn_factor");
        return Err(keys.bad(format!(
            "{key} is {stated}; {magnitude}, which follows from the factor, is expected, and engines disagree on another"
        )));
    }
    let more = f64::from(keys.positive_opt("rope.scaling.attn_factor")?.unwrap_or(1.0));
    Ok(Yarn {
        context,
        beta_fast: keys.positive_or("rope.scaling.yarn_beta_fast", 32.0)?.into(),
        beta_slow: keys.positive_or("rope.scaling.yarn_beta_slow", 1.0)?.into(),
        ramp: keys.positive_or("rope.scaling.yarn_ext_factor", 1.0)?.into(),
        magnitude: magnitude * more,
        between: false,
    })
}
