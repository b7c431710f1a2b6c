//! How much of the final logits' error each stage's own error accounts for.
//!
//! - **Measured, not modelled**: the reference runs once more with the stage's injected error δ = g(x_g) − c(x_g) added to its
//!   output, and the shift of its logits, d, is projected on the whole difference D between the two sides: d·D / D·D.
//!   To first order the shares of all stages add up to 1; a negative one works against the rest.
//! - One more run a stage: for small models of every stage, otherwise of the faults alone. The choice depends on the work, not on
//!   the clock, so that the same command prints the same columns everywhere.

use std::collections::HashMap;

use crate::backend::{AnyBackend, AnyTensor, Backend, pass_on};
use crate::diff::outcome::Comparison;
use crate::error::Result;
use crate::model::{LogitRows, Model, Session, forward};
use crate::op::{At, Data, HostTensor, Op, Site, Stage};

/// Injected errors are kept while they take no more than this.
pub const MOST_BYTES: usize = 256 << 20;
/// Multiplications that may go into shares beside the faults'.
const MOST_WORK: f64 = 1e10;
/// Faults whose share is worked out whatever it costs.
const MOST_FAULTS: usize = 8;

/// The prompt's injected errors, by site.
#[derive(Default)]
pub struct Injections {
    /// δ, or the subject's ids for the router's choice.
    pub by_site: HashMap<Site, HostTensor>,
    /// The logits of the two sides, [T, V].
    pub logits: Option<[Vec<f64>; 2]>,
}

/// Fills in `share_of_logits_error` for the stages of the prompt.
///
/// # Errors
/// The reference's.
pub fn fill(
    model: &Model,
    reference: &mut AnyBackend,
    tokens: &[u32],
    injections: &Injections,
    comparison: &mut Comparison,
) -> Result<()> {
    let Some([c, g]) = &injections.logits else { return Ok(()) };
    let whole: Vec<f64> = g.iter().zip(c).map(|(g, c)| g - c).collect();
    let norm: f64 = whole.iter().map(|d| d * d).sum();
    if !(norm.is_finite() && norm > 0.0) {
        return Ok(()); // no error to share out, or none that has a size
    }
    let weights: usize = model.weights.all().iter().map(|w| w.cols * w.rows * w.experts.min(8)).sum();
    let affordable = weights as f64 * tokens.len() as f64 * injections.by_site.len() as f64 <= MOST_WORK;
    let mut faults = 0;
    for stage in comparison.stages.iter_mut().filter(|s| s.step == 0) {
        faults += stage.verdict.is_fault() as usize;
        if !affordable && (!stage.verdict.is_fault() || faults > MOST_FAULTS) {
            continue;
        }
        let Some(injected) = injections.by_site.get(&stage.site) else { continue };
        let mut run = Injecting { inner: reference, site: stage.site, injected };
        let mut session = Session::new(&mut run, &model.config, tokens.len())?;
        let logits = forward(&mut run, model, &mut session, tokens, LogitRows::All)?;
        let logits = run.read(&logits)?.to_f64();
        let along: f64 = logits.iter().zip(c).zip(&whole).map(|((l, c), d)| (l - c) * d).sum();
        let share = along / norm;
        stage.share_of_logits_error = share.is_finite().then_some(share);
    }
    Ok(())
}

/// A backend whose result at one site has an error added.
struct Injecting<'a> {
    inner: &'a mut AnyBackend,
    site: Site,
    injected: &'a HostTensor,
}

impl Backend for Injecting<'_> {
    pass_on!(inner: AnyBackend);

    fn run(&mut self, at: At, op: &Op<'_, AnyTensor>) -> Result<AnyTensor> {
        let out = self.inner.run(at, op)?;
        if at.site != self.site || !op.makes_stage() {
            return Ok(out);
        }
        if at.site.stage == Stage::RouterIds {
            return self.inner.upload(self.injected);
        }
        let values = self.inner.read(&out)?;
        let sum = values.to_f64().iter().zip(self.injected.to_f64()).map(|(v, d)| v + d).collect();
        self.inner.upload(&HostTensor { shape: values.shape, data: Data::F64(sum) })
    }
}
