//! One run with every stage watched: statistics of all of them, values of some of them on disk.

use std::collections::BTreeMap;

use crate::backend::{Backend, BackendInfo, Contract, NamedContract};
use crate::error::Result;
use crate::model::{Calls, LogitRows, Model, Runner, tokens_sha256};
use crate::op::{At, Data, HostTensor, Site, Stage};

use super::stats::{Statistics, Stats};
use super::store::{ModelInfo, Run, TraceWriter, contracts};
use super::{StageObserver, Traced, positions_in};

/// Keeps the statistics of every stage, gives the chosen ones to a writer, and notes what a report wants to say.
#[derive(Default)]
pub struct Recorder {
    /// Statistics of every stage.
    pub statistics: Statistics,
    /// Where chosen values are saved.
    pub writer: Option<TraceWriter>,
    /// The experts of the last position and their weights, by layer, in router_ids order.
    pub routing: BTreeMap<u32, RoutingRow>,
    /// The first value in the order of execution that is NaN or infinite.
    pub not_finite: Option<NotFinite>,
}

/// The experts of one layer at the last position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutingRow {
    /// Their ids.
    pub experts: Vec<u32>,
    /// Their weights.
    pub weights: Vec<f64>,
}

/// Where values that are not finite first appear.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    /// The layer and stage.
    pub site: Site,
    /// The position.
    pub position: usize,
    /// Of that stage at that position.
    pub nan: u64,
    /// Infinite values.
    pub inf: u64,
    /// All values.
    pub count: u64,
}

impl Recorder {
    /// A recorder that saves to `writer`, if there is one.
    pub fn new(writer: Option<TraceWriter>) -> Self {
        Self { writer, ..Self::default() }
    }
}

impl StageObserver for Recorder {
    fn wants(&self, _: Site) -> bool {
        true
    }

    fn observe(&mut self, at: At, values: HostTensor) -> Result<()> {
        let At { site, start } = at;
        let bad = self.statistics.add(at, &values);
        if bad > 0 && self.not_finite.is_none() {
            let rows = 0..positions_in(site.stage, &values);
            let first = rows.map(|t| (t, Stats::of_rows(at, &values, t..t + 1))).find(|(_, s)| s.non_finite() > 0);
            self.not_finite = first.map(|(t, stats)| {
                let s = stats.summary();
                NotFinite { site, position: start + t, nan: s.nan_count, inf: s.inf_count, count: s.count }
            });
        }
        if let Some(layer) = site.layer {
            let last = values.len() - values.cols().min(values.len());
            let routing = self.routing.entry(layer);
            match (site.stage, &values.data) {
                (Stage::RouterIds, Data::U32(ids)) => routing.or_default().experts = ids[last..].to_vec(),
                (Stage::RouterWeights, Data::F32(w)) => {
                    routing.or_default().weights = w[last..].iter().map(|&w| w as f64).collect();
                }
                (Stage::RouterWeights, Data::F64(w)) => routing.or_default().weights = w[last..].to_vec(),
                _ => {}
            }
        }
        match &mut self.writer {
            Some(writer) if writer.wants(site) => writer.add(at, &values),
            _ => Ok(()),
        }
    }
}

/// What was run and what came of it.
pub struct Captured {
    /// What was recorded.
    pub recorder: Recorder,
    /// Every token that went in: the prompt, then the decoded ones.
    pub tokens: Vec<u32>,
    /// The logits of the last position, `[V]`.
    pub logits: Vec<f64>,
    /// What ran.
    pub backend: BackendInfo,
    /// Its arithmetic, by operation.
    pub contracts: BTreeMap<String, Contract>,
    /// Why fewer tokens were decoded than were asked for.
    pub stopped: Option<String>,
}

impl Captured {
    /// What a manifest says of the run.
    pub fn run(&self, model: &Model, prompt: Option<String>, prompt_tokens: usize) -> Run {
        Run {
            model: info(model),
            prompt,
            tokens: self.tokens.clone(),
            prompt_tokens,
            tokens_sha256: self.tokens.get(..prompt_tokens).map(tokens_sha256),
            backend: self.backend.clone(),
            contracts: self.contracts.clone(),
        }
    }
}

/// What a manifest says of `model`.
pub fn info(model: &Model) -> ModelInfo {
    let hyperparameters = match serde_json::to_value(&model.config) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    ModelInfo {
        name: model.config.name.clone(),
        architecture: model.config.architecture.name.into(),
        fingerprint: model.gguf.fingerprint(),
        hyperparameters,
    }
}

/// Makes `calls` with the logits of every position; `recorder` watches, and `progress` is told the positions done so far. The backend
/// comes back for the next run.
///
/// # Errors
/// The model's, the backend's, and the writer's.
pub fn capture<B: Backend>(
    backend: B,
    model: &Model,
    calls: Calls<'_>,
    recorder: Recorder,
    progress: &mut dyn FnMut(usize),
) -> Result<(Captured, B)> {
    let (info, contracts) = (backend.info(), contracts(&NamedContract::of(&backend)));
    let mut traced = Traced::new(backend, recorder);
    let mut runner = Runner::new(&mut traced, model, calls, LogitRows::All)?;
    while runner.step(&mut traced)? {
        progress(runner.position());
    }
    let (done, asked) = (runner.decoded(), calls.decode);
    let stopped = (done < asked).then(|| format!("decoding ended after {done} of {asked} tokens: a logit is NaN"));
    let (tokens, logits) = (runner.tokens().to_vec(), runner.logits(&mut traced)?.to_vec());
    let (backend, recorder) = traced.finish()?;
    Ok((Captured { recorder, tokens, logits, backend: info, contracts, stopped }, backend))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::{CpuBackend, CpuTensor, Level};
    use crate::backend::pass_on;
    use crate::op::Op;

    /// A CPU that spoils one value of one stage of one call.
    struct Spoiled {
        inner: CpuBackend,
        site: Site,
        /// In which call of the site, and which element.
        call: usize,
        element: usize,
        calls: usize,
    }

    impl Backend for Spoiled {
        pass_on!(inner: CpuBackend);

        fn run(&mut self, at: At, op: &Op<'_, CpuTensor>) -> Result<CpuTensor> {
            let result = self.inner.run(at, op)?;
            if at.site != self.site || !op.makes_stage() {
                return Ok(result);
            }
            self.calls += 1;
            if self.calls != self.call {
                return Ok(result);
            }
            let mut values = self.inner.read(&result)?;
            if let Data::F32(v) = &mut values.data {
                v[self.element] = f32::NAN;
            }
            self.inner.upload(&values)
        }
    }

    #[test]
    fn the_first_nan_is_found_where_it_was_made() {
        let model = Model::open(None).unwrap();
        let tokens = [422, 472, 345, 339, 293, 473, 588];
        let site = Site::layer(2, Stage::MoeOut);
        let inner = CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap();
        // Chunks of 3: the second call has positions 3 to 5, its row 1 is position 4.
        let spoiled = Spoiled { inner, site, call: 2, element: 256 + 17, calls: 0 };
        let calls = Calls { prompt: &tokens, chunk: 3, decode: 5, forced: &[] };
        let (captured, _) = capture(spoiled, &model, calls, Recorder::default(), &mut |_| {}).unwrap();
        let found = captured.recorder.not_finite.clone().unwrap();
        assert_eq!(found, NotFinite { site, position: 4, nan: 1, inf: 0, count: 256 });
        // Later positions attend to it, so every logit is NaN, nothing can be decoded, and that is said.
        assert_eq!(captured.tokens, tokens);
        assert!(captured.stopped.is_some_and(|why| why.contains("0 of 5")));
        let of = |site| captured.recorder.statistics.sites().find(|(s, _)| *s == site).unwrap().1;
        let here = of(site);
        assert_eq!((here.all.nan_count, here.last.nan_count, here.positions), (1, 0, 7));
        assert!(of(Site::model(Stage::Logits)).last.nan_count > 0);
        assert_eq!(of(Site::layer(1, Stage::LayerOut)).all.nan_count, 0);
    }

    #[test]
    fn decoding_is_greedy_and_every_position_is_seen() {
        let model = Model::open(None).unwrap();
        let tokens = [422, 472, 345, 339, 293];
        let run = |prompt: &[u32], decode| {
            let backend = CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap();
            let calls = Calls { prompt, chunk: 2, decode, forced: &[] };
            capture(backend, &model, calls, Recorder::default(), &mut |_| {}).unwrap().0
        };
        let decoded = run(&tokens, 4);
        assert_eq!((decoded.tokens.len(), &decoded.tokens[..5]), (9, &tokens[..]));
        // The same tokens given as a prompt are the same run.
        let given = run(&decoded.tokens, 0);
        assert_eq!(given.logits, decoded.logits);
        let (a, b) = (given.recorder, decoded.recorder);
        assert_eq!(a.routing, b.routing);
        for ((site, a), (other, b)) in a.statistics.sites().zip(b.statistics.sites()) {
            assert_eq!((site, a.positions, a.last.count), (other, 9, b.last.count));
            assert_eq!((a.all.min, a.all.max), (b.all.min, b.all.max), "{site}");
        }
    }
}
