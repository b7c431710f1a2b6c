//! The floors, measured: what correct kernels' errors come to, in units of what their contracts allow.
//!
//! - Every case of the table of operations once with each backend, then the small ones with new operands until there are as many
//!   evaluations as asked for. An evaluation is one operation's whole result: its ratio is that of its worst element.
//! - A floor is sound if no ratio exceeds 1, and bites if the median of those that round at all is not below 0.01.
//!   Operations that only move values, and embeddings, which are exact or rounded once as the oracle rounds, have no median
//!   to hold against that.
//! - Besides, every stage of whole runs of a model of each family, over random tokens.
//! - Segments, whose floors are carried by draws, are measured on whole runs of the demo model over random tokens, of which a
//!   few stages are shown.

use rayon::prelude::*;

use super::faults::FaultySide;
use super::faulty::Faulty;
use super::test_model::TestModel;
use super::{Shared, shared};
use crate::backend::cases::{self, OpCase};
use crate::backend::cpu::{CpuBackend, Level};
use crate::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use crate::backend::{AnyBackend, Backend, Erased, Need, Showing};
use crate::diff::run::driver::{DiffOptions, Sides, diff};
use crate::environment::Environment;
use crate::error::Result;
use crate::formula::floor::check_against_oracle;
use crate::model::Model;
use crate::op::Stage;
use crate::quant::random::Rng;
use crate::report::calibration::{Calibration, Evaluation, FloorOf};
use crate::trace::select::stages_in;

/// Multiply-adds, at the most, of a case that is drawn again and again: enough for products of dozens of rows, of every type and by heads as
/// well, since the worst of a few elements is not what the worst of a stage is. With 40,000, of the products by heads of types whose blocks
/// are long there were single elements alone.
const SMALL: u64 = 70_000;
/// Cases that are drawn before progress is told.
const BATCH: usize = 512;

#[derive(Clone, Debug)]
pub struct CalibrationOptions {
    /// Operations judged in all, shared by the backends; every case is judged once however few these are.
    pub evaluations: u64,
    /// Whole runs of a model of each family, on each of two backends.
    pub runs: u64,
    /// Only CPU levels, or only the GPU.
    pub subject: Option<FaultySide>,
    pub adapter: AdapterSelector,
}

/// Whether the backend has a kernel for the case's type of weights.
fn supports<B: Backend>(backend: &B, case: &OpCase) -> bool {
    let need = |ty| Need { op: case.kind(), ty, cols: ty.block_len(), name: case.to_string(), experts: None };
    case.ty().is_none_or(|ty| backend.unsupported(&[need(ty)]).is_empty())
}

fn evaluate<B: Backend>(backend: &mut B, case: &OpCase, seed: u64) -> Result<Evaluation> {
    let operands = case.build(seed)?;
    let result = cases::run(backend, case.at(), &operands)?;
    let checked = check_against_oracle(&operands.op(), &backend.contract(case.kind()), &result)?;
    Ok(Evaluation { of: FloorOf::Op(case.kind()), case: case.to_string(), seed, ratio: checked.ratio.max })
}

/// The cases of one backend: the whole table once, then its small cases again and again, each draw with a seed of its own.
struct Draws {
    table: Vec<OpCase>,
    small: Vec<OpCase>,
}

impl Draws {
    fn of<B: Backend>(backend: &B) -> Self {
        let table: Vec<OpCase> = cases::table().into_iter().filter(|case| supports(backend, case)).collect();
        let small = table.iter().copied().filter(|case| case.work() <= SMALL).collect();
        Self { table, small }
    }

    fn get(&self, n: usize) -> (OpCase, u64) {
        let again = n.checked_sub(self.table.len()).map(|n| self.small[n % self.small.len()]);
        (again.unwrap_or_else(|| self.table[n]), n as u64)
    }
}

/// What is shown where segments are measured.
const SHOWN: [&str; 3] = ["layer_out,logits", "attn_out,moe_out,layer_out", "logits"];
/// Runs of each.
const SEGMENT_RUNS: u64 = 12;

/// The ratios of a correct backend's segments, in runs over random tokens of which only `shown` is seen.
fn segments_to(shown: &'static str, model: &Model, backend: &Shared) -> Result<Vec<Evaluation>> {
    let stages: Vec<Stage> = stages_in(shown)?;
    let mut reference: AnyBackend = Box::new(Erased(CpuBackend::new(Some(Level::Scalar), None)?));
    let mut found = Vec::new();
    for seed in 0..SEGMENT_RUNS {
        let mut random = Rng::new(0x5e9, seed);
        let tokens = (0..1 + random.below(6)).map(|_| random.below(model.config.vocab as u64) as u32).collect();
        let options = DiffOptions { shares: false, explain: false, ..DiffOptions::new(tokens) };
        let mut subject: AnyBackend = Box::new(Showing::new(Faulty::new(backend.clone(), Default::default()), &stages));
        let sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
        for stage in diff(model, sides, &options)?.stages {
            if let (Some(_), Some(judged)) = (&stage.segment, stage.judged) {
                let case = format!("{} from {} stages before", stage.site, stage.segment.map_or(0, |s| s.hidden.len()));
                found.push(Evaluation { of: FloorOf::Segment(shown), case, seed, ratio: judged.subject });
            }
        }
    }
    Ok(found)
}

/// The ratios of a correct backend's stages, in whole runs of a model over random tokens, each of several positions and one decoded.
fn stages_of(test_model: &TestModel, backend: &Shared, runs: u64) -> Result<Vec<Evaluation>> {
    let mut reference: AnyBackend = Box::new(Erased(CpuBackend::new(Some(Level::Scalar), None)?));
    let mut found = Vec::new();
    for seed in 0..runs {
        let mut random = Rng::new(0xfa31, seed);
        let vocab = test_model.model.config.vocab as u64;
        let tokens = (0..5 + random.below(6)).map(|_| random.below(vocab) as u32).collect();
        let options = DiffOptions { decode: 1, shares: false, explain: false, ..DiffOptions::new(tokens) };
        let mut subject: AnyBackend = Box::new(Faulty::new(backend.clone(), Default::default()));
        let sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
        for stage in diff(&test_model.model, sides, &options)?.stages {
            if let Some(judged) = stage.judged {
                let case = format!("{} of {}", stage.site, test_model.name);
                found.push(Evaluation { of: FloorOf::Model(test_model.name), case, seed, ratio: judged.subject });
            }
        }
    }
    Ok(found)
}

/// Measures every backend of this machine that `options` chooses. `progress` is told the backend, evaluations done, and all.
///
/// # Errors
/// If there is no adapter where a GPU is asked for, or a backend cannot run.
pub fn calibrate(options: &CalibrationOptions, mut progress: impl FnMut(&str, usize, usize)) -> Result<Calibration> {
    let mut calibration = Calibration::default();
    let mut levels = Vec::new();
    if options.subject != Some(FaultySide::Gpu) {
        for &level in Level::HERE {
            match CpuBackend::new(Some(level), Some(1)) {
                Ok(backend) => levels.push((level, Draws::of(&backend))),
                Err(_) => calibration.missing.push(level.backend_name().to_string()),
            }
        }
    }
    let mut gpu = (options.subject != Some(FaultySide::Cpu))
        .then(|| GpuBackend::new(&options.adapter, GpuOptions::default()))
        .transpose()?;
    if let Some(gpu) = &gpu {
        Environment::used_backend(&gpu.info());
    }
    let backends = levels.len() + usize::from(gpu.is_some());
    let each = (options.evaluations as usize).div_ceil(backends).max(cases::table().len());
    let total = each * backends;
    let mut done = 0;

    for (level, draws) in levels {
        let name = level.backend_name();
        for first in (0..each).step_by(BATCH) {
            progress(name, done, total);
            let last = (first + BATCH).min(each);
            let judged: Vec<Evaluation> = (first..last)
                .into_par_iter()
                .map_init(
                    || CpuBackend::new(Some(level), Some(1)),
                    |backend, n| {
                        let backend = backend.as_mut().map_err(|e| crate::Error::cannot_run(e.to_string()))?;
                        let (case, seed) = draws.get(n);
                        evaluate(backend, &case, seed)
                    },
                )
                .collect::<Result<_>>()?;
            done += last - first;
            calibration.add(name, judged);
        }
    }
    if let Some(gpu) = &mut gpu {
        let (name, draws) = (gpu.info().backend, Draws::of(gpu));
        for n in 0..each {
            if n % BATCH == 0 {
                progress(&name, done + n, total);
            }
            let (case, seed) = draws.get(n);
            calibration.add(&name, [evaluate(gpu, &case, seed)?]);
        }
    }
    let model = Model::open(None)?;
    Environment::used_model(model.gguf.name(), model.gguf.fingerprint());
    let test_models = TestModel::all()?;
    let mut segments = |name: &str, backend: Shared| -> Result<()> {
        for test_model in test_models.iter().filter(|test_model| test_model.is_of_family()) {
            progress(&format!("{name}, {}", test_model.name), done, total);
            calibration.add(name, stages_of(test_model, &backend, options.runs)?);
        }
        progress(&format!("{name}, segments"), done, total);
        for shown in SHOWN {
            calibration.add(name, segments_to(shown, &model, &backend)?);
        }
        Ok(())
    };
    if options.subject != Some(FaultySide::Gpu) {
        let best = CpuBackend::new(None, None)?;
        segments(&best.info().backend, shared(best))?;
    }
    if let Some(gpu) = gpu {
        segments(&gpu.info().backend, shared(gpu))?;
    }
    for d in &mut calibration.distributions {
        d.ratios.sort_by(f64::total_cmp);
    }
    Ok(calibration)
}
