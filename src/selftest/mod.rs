//! The instrument, tested: faults are planted in running kernels, and each must be found where it was planted.
//!
//! Design:
//! - [`faults`] is the table of what is planted; [`faulty`] plants it, in a backend that errs at one site, and [`shader`] in the
//!   WGSL of a real kernel. `case` says what must be found, and whether it was.
//! - Every fault is planted on two models (`test_model`), or on the one whose family has what it spoils; those that have a strength at 8 and 64 times the rounding floor too, and
//!   some together.
//! - `generate` makes up others from a seed: a kind of mistake, with numbers, a place and a strength that nobody listed. A run of the whole
//!   table plants some besides, from a seed that is another each time and is said.
//! - Nothing else may be blamed: runs without a fault must agree, and in runs with one every other stage must be innocent.
//! - [`calibrate`] measures the floors themselves: what correct kernels come to, over many operands.

pub mod calibrate;
mod case;
pub mod faults;
pub mod faulty;
mod generate;
pub mod shader;
mod test_model;

use std::cell::RefCell;
use std::rc::Rc;

use crate::backend::cpu::{CpuBackend, Level};
use crate::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use crate::backend::{AnyBackend, Backend, Erased, Showing};
use crate::diff::measure::metrics::Side;
use crate::diff::outcome::Comparison;
use crate::diff::run::driver::{DiffOptions, Sides, diff};
use crate::diff::sweep::Shard;
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::op::Stage;
use crate::report::selftest::{Control, FaultResult, MadeUp, SelftestReport, TrialOutcome};
use crate::trace::select::{glob, nearest};
use case::{Trial, cases, check, describe};
use faults::FaultySide;
use faulty::{Faulty, PlantedFaults, PlantedRecord, Strength};
use test_model::TestModel;

/// What to run.
#[derive(Clone, Debug)]
pub struct SelfTestOptions {
    /// Names of faults, with `*` and `?`; all of them if absent.
    pub only: Option<String>,
    /// Only cases with this backend beside the reference.
    pub subject: Option<FaultySide>,
    pub adapter: AdapterSelector,
    /// Of the cases chosen so, every so-many-th.
    pub shard: Shard,
    /// The stages of the subject that can be seen; all of them if absent.
    pub shows: Option<Vec<Stage>>,
    /// Plant the faults of the table.
    pub listed: bool,
    /// Faults that are made up, from a seed.
    pub made_up: Option<MadeUp>,
}

/// How many faults a run of the whole table makes up besides.
pub const BESIDES: usize = 6;

impl SelfTestOptions {
    /// The cases chosen, in order.
    ///
    /// # Errors
    /// If there are none.
    fn cases(&self) -> Result<Vec<Trial>> {
        let pattern = self.only.as_deref().unwrap_or("*");
        let all = || {
            let listed = if self.listed { cases() } else { Vec::new() };
            let made_up = self.made_up.iter().flat_map(|made_up| generate::trials(made_up.count, made_up.seed));
            listed.into_iter().chain(made_up).collect::<Vec<Trial>>()
        };
        let named: Vec<Trial> = all().into_iter().filter(|c| glob(pattern.as_bytes(), c.name.as_bytes())).collect();
        if named.is_empty() {
            let all = all();
            let what = match &self.made_up {
                // Their names are sentences, of which none is near a word.
                Some(MadeUp { count: n, seed }) => format!(
                    "none of the {n} that --generate makes up from --seed {seed} has such a name; --list lists them, such as {:?}",
                    all.first().map_or("", |c| c.name)
                ),
                None => {
                    let known = nearest(pattern, all.iter().map(|c| c.name));
                    format!("no fault has such a name; the nearest are {known}")
                }
            };
            return Err(Error::usage(format!("--only {pattern}: {what}")));
        }
        let chosen: Vec<Trial> =
            named.into_iter().filter(|c| self.subject.is_none_or(|subject| c.subject() == subject)).collect();
        // What is weaker than it is may be too weak to be seen at the end of a segment.
        let chosen: Vec<Trial> = match self.shows {
            Some(_) => chosen.into_iter().filter(|c| c.strength == Strength::Full).collect(),
            None => chosen,
        };
        if let (true, Some(subject)) = (chosen.is_empty(), self.subject.map(FaultySide::name)) {
            return Err(Error::usage(format!(
                "--only {pattern} --subject {subject}: none of these is planted on a {subject}"
            )));
        }
        let n = chosen.len();
        let here = chosen.into_iter().enumerate().filter(|(i, _)| self.shard.has(*i)).map(|(_, case)| case);
        match here.collect::<Vec<Trial>>() {
            here if here.is_empty() && n > 0 => {
                Err(Error::usage(format!("--shard {}: {n} faults are chosen, none is left for it", self.shard)))
            }
            here => Ok(here),
        }
    }
}

/// The faults chosen, each once: name, subject, what is wrong.
///
/// # Errors
/// If there are none.
pub fn list(options: &SelfTestOptions) -> Result<Vec<(&'static str, FaultySide, String)>> {
    let mut all: Vec<(&'static str, FaultySide, String)> = Vec::new();
    for case in options.cases()? {
        if !all.iter().any(|(name, ..)| *name == case.name) {
            let what: Vec<&str> = case.faults.iter().map(|f| f.what).collect();
            all.push((case.name, case.subject(), what.join("; and ")));
        }
    }
    Ok(all)
}

/// A backend that several runs use.
type Shared = Rc<RefCell<AnyBackend>>;

fn shared<B: Backend + 'static>(backend: B) -> Shared
where
    B::Tensor: 'static,
{
    Environment::used_backend(&backend.info());
    Rc::new(RefCell::new(Box::new(Erased(backend)) as AnyBackend))
}

/// The backends of all runs, opened once.
struct Backends {
    reference: Shared,
    cpu: Option<Shared>,
    gpu: Option<Shared>,
    adapter: AdapterSelector,
    shows: Option<Vec<Stage>>,
}

impl Backends {
    fn open(cases: &[Trial], adapter: &AdapterSelector, shows: Option<Vec<Stage>>) -> Result<Self> {
        let needed = |subject: FaultySide| cases.iter().any(|c| c.subject() == subject);
        Ok(Self {
            reference: shared(CpuBackend::new(Some(Level::Scalar), None)?),
            cpu: needed(FaultySide::Cpu).then(|| CpuBackend::new(None, None).map(shared)).transpose()?,
            gpu: needed(FaultySide::Gpu)
                .then(|| GpuBackend::new(adapter, GpuOptions::default()).map(shared))
                .transpose()?,
            adapter: adapter.clone(),
            shows,
        })
    }

    fn subject(&self, subject: FaultySide) -> &Shared {
        let backend = match subject {
            FaultySide::Cpu => &self.cpu,
            FaultySide::Gpu => &self.gpu,
        };
        backend.as_ref().expect("opened for the cases that there are")
    }

    /// Compares the two sides, each with its plants.
    fn diff(
        &mut self,
        test_model: &TestModel,
        subject: FaultySide,
        decode: usize,
        production: bool,
        plants: [PlantedFaults; 2],
    ) -> Result<Comparison> {
        let [of_reference, of_subject] = plants;
        let mut reference: AnyBackend = Box::new(Faulty::new(self.reference.clone(), of_reference));
        let mut faulty: AnyBackend = Box::new(Faulty::new(self.subject(subject).clone(), of_subject));
        if let Some(stages) = &self.shows {
            faulty = Box::new(Showing::new(faulty, stages));
        }
        let options = DiffOptions { decode, production, shares: false, ..DiffOptions::new(test_model.tokens.clone()) };
        let sides = Sides { reference: &mut reference, subject: &mut faulty, judged: true };
        diff(&test_model.model, sides, &options)
    }

    /// A run without a fault, which must agree.
    fn control(
        &mut self,
        test_model: &mut TestModel,
        subject: FaultySide,
        decode: usize,
        tied: Option<usize>,
    ) -> Result<Control> {
        let router = tied.map(|layer| test_model.tie(layer)).transpose()?;
        let comparison = self.diff(test_model, subject, decode, true, Default::default());
        if let (Some(layer), Some(router)) = (tied, router) {
            test_model.untie(layer, router);
        }
        let comparison = comparison?;
        let blamed = comparison.stages.iter().filter(|s| s.verdict.is_fault());
        Ok(Control {
            model: test_model.name,
            reference: comparison.reference.info.backend.clone(),
            subject: comparison.subject.info.backend.clone(),
            adapter: comparison.subject.info.adapter.clone(),
            software: comparison.subject.info.software,
            decode,
            tied: tied.is_some(),
            agrees: comparison.agrees(),
            evaluations: comparison.counts().0,
            false_alarms: blamed.map(describe).collect(),
        })
    }

    /// A run with the case's faults.
    fn run(&mut self, test_model: &mut TestModel, case: &Trial) -> Result<(TrialOutcome, Vec<PlantedRecord>)> {
        let router = case.tied().map(|layer| test_model.tie(layer)).transpose()?;
        let plants = |side| Rc::new(RefCell::new(case.plants(side, test_model, &self.adapter)));
        let (of_reference, of_subject) = (plants(Side::Reference), plants(Side::Subject));
        // What is planted errs whether anybody looks or not.
        let plants = [of_reference.clone(), of_subject.clone()];
        let comparison = self.diff(test_model, case.subject(), case.decode(), false, plants);
        if let (Some(layer), Some(router)) = (case.tied(), router) {
            test_model.untie(layer, router);
        }
        let comparison = comparison.map_err(|e| e.map(|m| format!("{}: {m}", case.name)))?;
        let (of_reference, of_subject) = (of_reference.borrow(), of_subject.borrow());
        let (mut references, mut subjects) = (of_reference.iter(), of_subject.iter());
        let mut done = Vec::new();
        for fault in &case.faults {
            let plant = match fault.side {
                Side::Reference => references.next(),
                Side::Subject => subjects.next(),
            };
            let plant = plant.expect("a plant for each fault");
            if plant.done.calls == 0 {
                let message = format!("{}: {} never ran, so nothing was planted", fault.name, plant.site);
                return Err(Error::usage(message));
            }
            done.push(plant.done);
        }
        Ok((check(case, &done, &comparison), done))
    }
}

/// Plants everything that `options` chooses. `progress` is told the name of each run, its number, and how many there are.
///
/// # Errors
/// If a fault cannot be planted, or a backend cannot run.
pub fn run(options: &SelfTestOptions, mut progress: impl FnMut(&str, usize, usize)) -> Result<SelftestReport> {
    let cases = options.cases()?;
    let mut backends = Backends::open(&cases, &options.adapter, options.shows.clone())?;
    let mut test_models = TestModel::all()?;

    // A control for every configuration that a case runs in.
    let mut configurations: Vec<(usize, FaultySide, usize, Option<usize>)> =
        cases.iter().map(|c| (c.test_model, c.subject(), c.decode(), c.tied())).collect();
    configurations.sort();
    configurations.dedup();
    let total = configurations.len() + cases.len();
    let mut report = SelftestReport { made_up: options.made_up, ..SelftestReport::default() };
    for (n, (test_model, subject, decode, tied)) in configurations.into_iter().enumerate() {
        progress(&format!("control, {}", test_models[test_model].name), n, total);
        report.controls.push(backends.control(&mut test_models[test_model], subject, decode, tied)?);
    }
    let controls = report.controls.len();
    for (n, case) in cases.iter().enumerate() {
        progress(case.name, controls + n, total);
        let test_model = &mut test_models[case.test_model];
        let (outcome, done) = backends.run(test_model, case)?;
        let first = case.first();
        let (step, site) = case.seen_at(first);
        let place = case.faults.iter().position(|f| f.name == first.name).expect("one of them");
        report.faults.push(FaultResult {
            name: case.name,
            model: test_model.name,
            subject: case.subject().name(),
            layer: site.layer,
            stage: site.stage,
            step,
            expert: done[place].expert,
            position: done[place].position,
            strength: match case.strength {
                Strength::Full => None,
                Strength::Floors(times) | Strength::UpTo(times) => Some(times),
            },
            planted_ratio: done[place].ratio,
            made_up: case.made_up,
            outcome,
        });
    }
    Ok(report)
}
