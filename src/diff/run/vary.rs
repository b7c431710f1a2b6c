//! One backend against itself: across prefill chunk sizes, and from run to run.
//!
//! - The first run is kept stage by stage; every other run is held against it as it is made, element by element and bit by bit.
//! - Two runs of one thing must be equal to the bit: a backend that is not makes every other comparison a lottery. Across chunk
//!   sizes a backend may choose other kernels, so there the sizes of the differences are told and held against `--tol`'s
//!   default limits.

use std::collections::HashMap;

use crate::backend::AnyBackend;
use crate::diff::measure::metrics::{Mask, Metrics, measure};
use crate::diff::measure::tolerance::Tolerances;
use crate::error::{Error, Result};
use crate::model::{Calls, LogitRows, Model, Runner};
use crate::op::{At, Dim, HostTensor, Site};
use crate::trace::{StageObserver, Traced};

/// The first run's values may take this much.
const MOST_BYTES: usize = 4 << 30;

/// What differs between runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vary {
    /// Prompt tokens at a time; the first is what the others are held against.
    Chunk(Vec<usize>),
    /// The same run so many times.
    Repeat(usize),
}

impl std::str::FromStr for Vary {
    type Err = Error;

    /// `chunk=1,7,64` or `repeat=3`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |what: &str| {
            Error::usage(format!(
                "--vary {text:?}: {what}; expected chunk=N,N,… with at least two sizes, or repeat=N with N ≥ 2"
            ))
        };
        let (kind, values) = text.split_once('=').ok_or_else(|| bad("no '='"))?;
        let numbers: Vec<usize> = values
            .split(',')
            .map(|v| {
                v.trim().parse().ok().filter(|n| *n > 0).ok_or_else(|| bad(&format!("{v:?} is not a positive number")))
            })
            .collect::<Result<_>>()?;
        match (kind, &numbers[..]) {
            ("chunk", [_, _, ..]) => Ok(Self::Chunk(numbers)),
            ("chunk", _) => Err(bad("one size is nothing to compare")),
            ("repeat", [n]) if *n >= 2 => Ok(Self::Repeat(*n)),
            ("repeat", _) => Err(bad("not a number of runs")),
            _ => Err(bad(&format!("unknown kind {kind:?}"))),
        }
    }
}

/// One run held against the first.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Variation {
    /// `chunk=7`, `run 2`.
    pub name: String,
    /// Stages that were compared.
    pub stages: usize,
    /// Stages that are equal to the bit.
    pub equal: usize,
    /// The first stage, in order of execution, that is not.
    pub first_difference: Option<Difference>,
    /// Of all stages, the largest nmse.
    pub worst: Option<Difference>,
    /// Whether this is a failure: any difference between repeats, or one over its limit between chunk sizes.
    pub failed: bool,
}

/// A stage that differs.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Difference {
    /// `None` for a whole-model stage.
    pub layer: Option<u32>,
    /// The stage.
    pub stage: &'static str,
    /// The first position that differs.
    pub position: usize,
    /// `None` for expert ids, or where something is not finite.
    pub nmse: Option<f64>,
    /// The largest difference.
    pub max_abs: Option<f64>,
    /// The same in units in the last place.
    pub max_ulp: Option<u64>,
    /// What varied.
    pub why: String,
}

/// Runs the variations. `open` gives a fresh backend with the model's weights ready.
///
/// # Errors
/// A prompt whose stages do not fit memory, or the backend's.
pub fn vary(
    model: &Model,
    tokens: &[u32],
    what: &Vary,
    mut open: impl FnMut() -> Result<AnyBackend>,
) -> Result<Vec<Variation>> {
    let runs = match what {
        Vary::Chunk(sizes) => sizes.len(),
        Vary::Repeat(runs) => *runs,
    };
    let of = |i: usize| match what {
        Vary::Chunk(sizes) => (format!("chunk={}", sizes[i]), sizes[i]),
        Vary::Repeat(_) => (format!("run {}", i + 1), tokens.len()),
    };
    let base = record(model, tokens, of(0).1, open()?)?;
    let mut variations = Vec::new();
    for (name, chunk) in (1..runs).map(of) {
        let run = record(model, tokens, chunk, open()?)?;
        variations.push(against(name, &base, &run, matches!(what, Vary::Repeat(_))));
    }
    Ok(variations)
}

/// The stages of one run, in order of execution, each put together over its chunks.
struct Recording {
    order: Vec<Site>,
    values: HashMap<Site, HostTensor>,
}

fn against(name: String, base: &Recording, run: &Recording, exact: bool) -> Variation {
    let mut variation =
        Variation { name, stages: base.order.len(), equal: 0, first_difference: None, worst: None, failed: false };
    for site in &base.order {
        let (a, b) = (&base.values[site], &run.values[site]);
        if bits_equal(a, b) {
            variation.equal += 1;
            continue;
        }
        let measured = measure(a, b, Mask::of(site.stage, 0));
        let over = match &measured {
            Ok(m) => !Tolerances::default().judge(site.stage, None, m, None).iter().all(|j| j.passed),
            Err(_) => true,
        };
        let difference = Difference::new(*site, a, b, measured);
        variation.failed |= exact || over;
        if variation
            .worst
            .as_ref()
            .is_none_or(|w| difference.nmse.unwrap_or(f64::INFINITY) > w.nmse.unwrap_or(f64::INFINITY))
        {
            variation.worst = Some(difference.clone());
        }
        variation.first_difference.get_or_insert(difference);
    }
    variation
}

impl Difference {
    fn new(
        site: Site,
        a: &HostTensor,
        b: &HostTensor,
        measured: Result<Metrics, crate::diff::measure::metrics::Mismatch>,
    ) -> Self {
        let axis = site.stage.position_axis();
        let (x, y) = (a.to_f64(), b.to_f64());
        let first = x.iter().zip(&y).position(|(x, y)| x.to_bits() != y.to_bits()).unwrap_or_default();
        let inner: usize = a.shape[axis + 1..].iter().product();
        let position = first / inner.max(1) % a.shape[axis].max(1);
        let (layer, stage) = (site.layer, site.stage.name());
        match measured {
            Ok(m) => Self {
                layer,
                stage,
                position,
                nmse: Some(m.nmse),
                max_abs: Some(m.max_abs),
                max_ulp: Some(m.max_ulp),
                why: "values differ".into(),
            },
            Err(e) => Self { layer, stage, position, nmse: None, max_abs: None, max_ulp: None, why: e.to_string() },
        }
    }
}

/// Bit by bit: −0 is not 0, and a NaN equals the same NaN.
fn bits_equal(a: &HostTensor, b: &HostTensor) -> bool {
    let bits = |t: &HostTensor| t.to_f64().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    a.shape == b.shape && a.dtype() == b.dtype() && bits(a) == bits(b)
}

/// Collects stages chunk by chunk.
struct Collector {
    tokens: usize,
    recording: Recording,
}

impl StageObserver for Collector {
    fn wants(&self, _: Site) -> bool {
        true
    }

    fn observe(&mut self, At { site, start }: At, values: HostTensor) -> Result<()> {
        let recording = &mut self.recording;
        let tokens = self.tokens;
        let dims = site.stage.info().shape;
        let whole = recording.values.entry(site).or_insert_with(|| {
            recording.order.push(site);
            let mut shape = values.shape.clone();
            for (n, d) in shape.iter_mut().zip(dims) {
                if matches!(d, Dim::T | Dim::S) {
                    *n = tokens;
                }
            }
            let n = shape.iter().product();
            match site.stage.is_ids() {
                true => HostTensor::u32(&shape, vec![0; n]),
                false => HostTensor::f64(&shape, vec![0.0; n]),
            }
        });
        let axis = site.stage.position_axis();
        let (outer, rows) = (values.shape[..axis].iter().product::<usize>(), values.shape[axis]);
        let from = values.len() / (outer * rows).max(1);
        let to = whole.len() / (outer * tokens).max(1);
        for o in 0..outer {
            for t in 0..rows {
                let (source, target) = ((o * rows + t) * from, (o * tokens + start + t) * to);
                match (&mut whole.data, &values.data) {
                    (crate::op::Data::U32(w), crate::op::Data::U32(v)) => {
                        w[target..target + from].copy_from_slice(&v[source..source + from]);
                    }
                    (crate::op::Data::F64(w), crate::op::Data::F32(v)) => {
                        let pairs = w[target..target + from].iter_mut().zip(&v[source..source + from]);
                        pairs.for_each(|(w, v)| *w = *v as f64);
                    }
                    (crate::op::Data::F64(w), crate::op::Data::F64(v)) => {
                        w[target..target + from].copy_from_slice(&v[source..source + from]);
                    }
                    _ => return Err(Error::cannot_run(format!("{site}: values of type {}", values.dtype()))),
                }
            }
        }
        Ok(())
    }
}

fn record(model: &Model, tokens: &[u32], chunk: usize, backend: AnyBackend) -> Result<Recording> {
    let c = &model.config;
    let per_layer = 8 * c.hidden
        + 4 * (c.q_width() + c.kv_width())
        + 2 * c.heads * tokens.len()
        + c.moe.as_ref().map_or(3 * c.ffn, |m| m.used * (3 * m.ffn + c.hidden) + 2 * m.experts);
    let bytes = tokens.len().saturating_mul(8 * (per_layer * c.layers + 2 * c.hidden + c.vocab));
    if bytes > MOST_BYTES / 2 {
        return Err(Error::usage(format!(
            "--vary keeps every stage of two runs, {:.1} GB for {} tokens of this model; the limit is {} GB: a shorter prompt fits",
            bytes as f64 * 2e-9,
            tokens.len(),
            MOST_BYTES >> 30
        )));
    }
    let recording = Recording { order: Vec::new(), values: HashMap::new() };
    let mut traced = Traced::new(backend, Collector { tokens: tokens.len(), recording });
    let calls = Calls { prompt: tokens, chunk, decode: 0, forced: &[] };
    let mut runner = Runner::new(&mut traced, model, calls, LogitRows::All)?;
    while runner.step(&mut traced)? {}
    Ok(traced.finish()?.1.recording)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_varies_is_read_from_the_command_line() {
        assert_eq!("chunk=1,7,64".parse::<Vary>().unwrap(), Vary::Chunk(vec![1, 7, 64]));
        assert_eq!("repeat=3".parse::<Vary>().unwrap(), Vary::Repeat(3));
        for bad in ["chunk", "chunk=4", "chunk=0,1", "repeat=1", "repeat=2,3", "seed=1", "chunk=a,b"] {
            let message = bad.parse::<Vary>().unwrap_err().to_string();
            assert!(message.contains(bad) && message.contains("expected chunk="), "{message}");
        }
    }
}
