//! One backend against itself: in other chunks, with other threads, on shorter prompts, from run to run.
//!
//! - The first run is kept stage by stage; every other run is held against it, element by element and bit by bit.
//! - Two runs of one thing must be equal to the bit: a backend that is not makes every other comparison a lottery. So must runs on other
//!   numbers of threads, and a run on a backend that has run something else before. For another number of rows a backend may choose
//!   other kernels, so there the sizes of the differences are told and held against the nmse thresholds of `--no-oracle`.
//! - A stage that differs passes that on to all that follow; which stages do so by themselves [`Vary::Rows`] finds.

mod rows;

use std::collections::HashMap;

use crate::backend::{AnyBackend, Lent};
use crate::diff::measure::metrics::{Mask, Metrics, measure};
use crate::diff::measure::tolerance::Tolerances;
use crate::error::{Error, Result};
use crate::model::{Calls, LogitRows, Model, Runner};
use crate::op::{At, Dim, HostTensor, Site};
use crate::trace::{StageObserver, Traced};
use rows::first_rows;

pub use rows::{RowChange, StageRows};

/// The first run's values may take this much.
const MOST_BYTES: usize = 4 << 30;

/// What differs between runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vary {
    /// Prompt tokens at a time; the first is what the others are held against.
    Chunk(Vec<usize>),
    /// Each stage on so many of its first rows, held against all of them.
    Rows(Vec<usize>),
    /// The first so many tokens, from the one to the other number, held against the whole prompt.
    Length([usize; 2]),
    /// Threads of a CPU backend; the first is what the others are held against.
    Threads(Vec<usize>),
    /// The same run so many times, each on a backend of its own.
    Repeat(usize),
    /// The same run on a backend that has run the prompt and decoded, and on one that has run another prompt.
    Reuse,
    /// The prompt and its first half, in either order on one backend.
    Order,
}

impl Vary {
    /// Whether the kernels are the same in every run, so that every bit has to be.
    pub fn is_exact(&self) -> bool {
        matches!(self, Self::Repeat(_) | Self::Threads(_) | Self::Reuse | Self::Order)
    }
}

/// Sizes to try where none are said: where kernels for few rows end, and no multiples of tiles.
const SIZES: [usize; 5] = [1, 2, 3, 5, 8];

/// Tokens that are decoded before a backend is used again.
const DECODED: usize = 2;

impl std::str::FromStr for Vary {
    type Err = Error;

    /// `chunk=1,7,64`, `rows=1,2`, `length=3..9`, `threads=1,2`, `repeat=3`, `reuse`, `order`; `chunk` and `rows` have sizes of their own.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |what: &str| {
            Error::usage(format!(
                "--vary {text:?}: {what}; expected chunk[=N,N,…] or threads=N,N,… with at least two numbers, rows[=N,…], length=A..B, \
                 repeat=N with N ≥ 2, reuse, or order"
            ))
        };
        let number = |v: &str| -> Result<usize> {
            let n = v.trim().parse().ok().filter(|n| *n > 0);
            n.ok_or_else(|| bad(&format!("{v:?} is not a positive number")))
        };
        let Some((kind, values)) = text.split_once('=') else {
            return match text {
                "chunk" => Ok(Self::Chunk(std::iter::once(WHOLE).chain(SIZES).collect())),
                "rows" => Ok(Self::Rows(SIZES.to_vec())),
                "reuse" => Ok(Self::Reuse),
                "order" => Ok(Self::Order),
                "threads" | "length" | "repeat" => Err(bad("no '='")),
                _ => Err(bad(&format!("unknown kind {text:?}"))),
            };
        };
        if kind == "length" {
            let (from, to) = values.split_once("..").ok_or_else(|| bad("no '..'"))?;
            let (from, to) = (number(from)?, number(to)?);
            return if from <= to { Ok(Self::Length([from, to])) } else { Err(bad("it ends before it begins")) };
        }
        let numbers: Vec<usize> = values.split(',').map(number).collect::<Result<_>>()?;
        match (kind, &numbers[..]) {
            ("chunk", [_, _, ..]) => Ok(Self::Chunk(numbers)),
            ("threads", [_, _, ..]) => Ok(Self::Threads(numbers)),
            ("chunk" | "threads", _) => Err(bad("one number is nothing to compare")),
            ("rows", _) => Ok(Self::Rows(numbers)),
            ("repeat", [n]) if *n >= 2 => Ok(Self::Repeat(*n)),
            ("repeat", _) => Err(bad("not a number of runs")),
            ("reuse" | "order", _) => Err(bad("it takes no number")),
            _ => Err(bad(&format!("unknown kind {kind:?}"))),
        }
    }
}

/// A chunk that every prompt fits into.
const WHOLE: usize = usize::MAX;

/// What came of it.
#[derive(Debug, Default)]
pub struct Varied {
    /// Each run, held against the first.
    pub variations: Vec<Variation>,
    /// Of [`Vary::Rows`]: each stage, and at which numbers of rows its values change.
    pub stages: Vec<StageRows>,
}

impl Varied {
    /// Whether a run differs more than it may.
    pub fn failed(&self) -> bool {
        self.variations.iter().any(|v| v.failed)
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
    /// The first stage that is over its threshold.
    pub first_over: Option<Difference>,
    /// Whether this is a failure: any difference where the kernels are the same, one over its limit where they may be others.
    pub failed: bool,
}

impl Variation {
    fn new(name: String, stages: usize) -> Self {
        Self { name, stages, equal: 0, first_difference: None, worst: None, first_over: None, failed: false }
    }

    /// Takes in a stage that differs; where `exact`, it may not.
    fn add(&mut self, difference: Difference, exact: bool) {
        self.failed |= exact || difference.over;
        if difference.over && self.first_over.is_none() {
            self.first_over = Some(difference.clone());
        }
        if self.worst.as_ref().is_none_or(|w| difference.size() > w.size()) {
            self.worst = Some(difference.clone());
        }
        self.first_difference.get_or_insert(difference);
    }
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
    /// The position of the largest difference.
    pub largest_at: usize,
    /// `None` for expert ids, or where something is not finite.
    pub nmse: Option<f64>,
    /// The largest difference.
    pub max_abs: Option<f64>,
    /// The same in units in the last place.
    pub max_ulp: Option<u64>,
    /// What varied.
    pub why: String,
    /// Whether it is over the stage's nmse threshold, that of `--no-oracle`.
    #[serde(skip)]
    pub over: bool,
}

/// One run.
struct Setting {
    name: String,
    chunk: usize,
    threads: Option<usize>,
    /// How many of the tokens.
    length: usize,
}

/// Runs the variations. `open` gives a fresh backend with the model's weights ready, on so many threads where it is said.
///
/// # Errors
/// A prompt whose stages do not fit memory, or is shorter than what is asked for, or the backend's.
pub fn vary(
    model: &Model,
    tokens: &[u32],
    what: &Vary,
    mut open: impl FnMut(Option<usize>) -> Result<AnyBackend>,
) -> Result<Varied> {
    let plain = |name: String| Setting { name, chunk: WHOLE, threads: None, length: tokens.len() };
    let settings: Vec<Setting> = match what {
        Vary::Rows(sizes) => {
            let (variations, stages) = rows::vary_rows(model, tokens, sizes, open(None)?)?;
            if variations.is_empty() {
                return Err(nothing(tokens));
            }
            return Ok(Varied { variations, stages });
        }
        Vary::Reuse => return Ok(Varied { variations: reuse(model, tokens, open)?, stages: Vec::new() }),
        Vary::Order if tokens.len() < 2 => return Err(nothing(tokens)),
        Vary::Order => return Ok(Varied { variations: order(model, tokens, open)?, stages: Vec::new() }),
        Vary::Chunk(sizes) => {
            let named = |&chunk: &usize| Setting { chunk, ..plain(format!("chunk={chunk}")) };
            // A chunk as long as the prompt is one chunk, whatever its size: the same run again.
            let in_one = |n: usize| n.min(tokens.len());
            let (first, others) = sizes.split_first().expect("two sizes at least");
            std::iter::once(first).chain(others.iter().filter(|n| in_one(**n) != in_one(*first))).map(named).collect()
        }
        Vary::Threads(numbers) => {
            numbers.iter().map(|&n| Setting { threads: Some(n), ..plain(format!("threads={n}")) }).collect()
        }
        Vary::Repeat(runs) => (1..=*runs).map(|i| plain(format!("run {i}"))).collect(),
        Vary::Length([from, to]) if *to > tokens.len() => {
            return Err(Error::usage(format!("--vary length={from}..{to}: the prompt has {} tokens", tokens.len())));
        }
        Vary::Length([from, to]) => {
            let shorter = (*from..=*to).filter(|n| *n < tokens.len());
            let named = shorter.map(|length| Setting { length, ..plain(format!("length={length}")) });
            std::iter::once(plain("the whole prompt".into())).chain(named).collect()
        }
    };
    let mut base = None;
    let mut variations = Vec::new();
    for Setting { name, chunk, threads, length } in settings {
        let run = record(model, &tokens[..length], chunk, &mut open(threads)?)?;
        match &base {
            None => base = Some(run),
            Some(base) => variations.push(against(name, base, &run, length, what.is_exact())),
        }
    }
    match variations.is_empty() {
        true => Err(nothing(tokens)),
        false => Ok(Varied { variations, stages: Vec::new() }),
    }
}

fn nothing(tokens: &[u32]) -> Error {
    Error::usage(format!(
        "--vary: nothing that is asked for changes anything in a prompt of this length, {} tokens",
        tokens.len()
    ))
}

/// The prompt on a backend that has been used, against a fresh one.
fn reuse(
    model: &Model,
    tokens: &[u32],
    mut open: impl FnMut(Option<usize>) -> Result<AnyBackend>,
) -> Result<Vec<Variation>> {
    let base = record(model, tokens, WHOLE, &mut open(None)?)?;
    let mut used = open(None)?;
    let other: Vec<u32> = tokens.iter().rev().copied().collect();
    let decode = DECODED.min(model.config.context - tokens.len());
    let mut variations = Vec::new();
    for (name, before, decode) in [("used before", tokens, decode), ("another prompt before", &other[..], 0)] {
        let mut lent = Lent::new(&mut used);
        let calls = Calls { prompt: before, chunk: before.len(), decode, forced: &[] };
        let mut runner = Runner::new(&mut lent, model, calls, LogitRows::Last)?;
        while runner.step(&mut lent)? {}
        let run = record(model, tokens, WHOLE, &mut used)?;
        variations.push(against(name.into(), &base, &run, tokens.len(), true));
    }
    Ok(variations)
}

/// The prompt after its first half, and the half after the whole, each against itself on a fresh backend: what is kept from one run to the
/// next has another size in each order.
fn order(
    model: &Model,
    tokens: &[u32],
    mut open: impl FnMut(Option<usize>) -> Result<AnyBackend>,
) -> Result<Vec<Variation>> {
    let half = &tokens[..tokens.len() / 2];
    let mut variations = Vec::new();
    for (name, prompts) in [("after a shorter prompt", [half, tokens]), ("after a longer prompt", [tokens, half])] {
        let fresh = record(model, prompts[1], WHOLE, &mut open(None)?)?;
        let mut used = open(None)?;
        record(model, prompts[0], WHOLE, &mut used)?;
        let run = record(model, prompts[1], WHOLE, &mut used)?;
        variations.push(against(name.into(), &fresh, &run, prompts[1].len(), true));
    }
    Ok(variations)
}

/// The stages of one run, in order of execution, each put together over its chunks.
struct Recording {
    order: Vec<Site>,
    values: HashMap<Site, HostTensor>,
}

/// Holds a run of the first `length` tokens against one of all.
fn against(name: String, base: &Recording, run: &Recording, length: usize, exact: bool) -> Variation {
    let mut variation = Variation::new(name, base.order.len());
    for site in &base.order {
        let (a, b) = (first_rows(site.stage, &base.values[site], 0, length), &run.values[site]);
        if bits_equal(&a, b) {
            variation.equal += 1;
            continue;
        }
        let measured = measure(&a, b, Mask::of(site.stage, 0));
        variation.add(Difference::new(*site, &a, b, measured), exact);
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
        let over = match &measured {
            Ok(m) => !Tolerances::default().judge(site.stage, None, m, None).iter().all(|j| j.passed),
            Err(_) => true,
        };
        let axis = site.stage.position_axis();
        let (x, y) = (a.to_f64(), b.to_f64());
        let first = x.iter().zip(&y).position(|(x, y)| x.to_bits() != y.to_bits()).unwrap_or_default();
        let inner: usize = a.shape[axis + 1..].iter().product();
        let position_of = |i: usize| i / inner.max(1) % a.shape[axis].max(1);
        let size = |i: &usize| (x[*i] - y[*i]).abs();
        let largest = (0..x.len().min(y.len())).max_by(|i, j| size(i).total_cmp(&size(j))).unwrap_or_default();
        let (position, largest_at) = (position_of(first), position_of(largest));
        let (layer, stage) = (site.layer, site.stage.name());
        match measured {
            Ok(m) => Self {
                layer,
                stage,
                position,
                largest_at,
                nmse: Some(m.nmse),
                max_abs: Some(m.max_abs),
                max_ulp: Some(m.max_ulp),
                why: "values differ".into(),
                over,
            },
            Err(e) => Self {
                layer,
                stage,
                position,
                largest_at,
                nmse: None,
                max_abs: None,
                max_ulp: None,
                why: e.to_string(),
                over,
            },
        }
    }

    /// Its nmse; what has none is worse than everything.
    fn size(&self) -> f64 {
        self.nmse.unwrap_or(f64::INFINITY)
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

fn record(model: &Model, tokens: &[u32], chunk: usize, backend: &mut AnyBackend) -> Result<Recording> {
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
    let mut traced = Traced::new(Lent::new(backend), Collector { tokens: tokens.len(), recording });
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
        assert_eq!("chunk".parse::<Vary>().unwrap(), Vary::Chunk(vec![WHOLE, 1, 2, 3, 5, 8]));
        assert_eq!("rows=2".parse::<Vary>().unwrap(), Vary::Rows(vec![2]));
        assert_eq!("length=3..9".parse::<Vary>().unwrap(), Vary::Length([3, 9]));
        assert_eq!("threads=1,2".parse::<Vary>().unwrap(), Vary::Threads(vec![1, 2]));
        assert_eq!("repeat=3".parse::<Vary>().unwrap(), Vary::Repeat(3));
        assert_eq!("reuse".parse::<Vary>().unwrap(), Vary::Reuse);
        assert_eq!("order".parse::<Vary>().unwrap(), Vary::Order);
        for bad in [
            "chunk=4",
            "chunk=0,1",
            "repeat=1",
            "repeat=2,3",
            "repeat",
            "seed=1",
            "seed",
            "chunk=a,b",
            "length=9..3",
            "length=4",
            "threads=2",
            "rows=",
            "reuse=1",
            "order=2",
        ] {
            let message = bad.parse::<Vary>().unwrap_err().to_string();
            assert!(message.contains(bad) && message.contains("expected chunk[="), "{message}");
        }
    }
}
