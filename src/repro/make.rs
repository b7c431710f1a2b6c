//! From a stage of a run to a folder.

use std::path::Path;

use super::capture::{CapturedCall, Target, find};
use super::case::FailingCall;
use super::manifest::{InTheRun, Reference, Shrinking, SideEntry};
use super::verdict::{Figures, RerunCheck};
use super::write::{Contents, KIND, Origin, write};
use super::{Isolation, RUNS, Subject, isolate};
use crate::atomic::dir::AtomicDir;
use crate::backend::{Backend, BackendInfo, Contract, NamedContract};
use crate::diff::locate::Pattern;
use crate::error::Result;
use crate::model::{Calls, Model};

/// How a folder is made.
#[derive(Clone, Debug)]
pub struct ReproOptions {
    /// Runs that the search for the smallest failing case may take; 0 keeps all of it.
    pub runs: usize,
    /// Write the stage even if it does not fail alone.
    pub keep: bool,
    /// What the subject is held to, where it is not what it promises.
    pub contract: Option<NamedContract>,
}

impl Default for ReproOptions {
    fn default() -> Self {
        Self { runs: RUNS, keep: false, contract: None }
    }
}

/// What is wrong with a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReproVerdict {
    Ok,
    SubjectWrong,
    /// Wrong in the run, and right when the operation runs alone on the operands that it had there.
    OnlyInTheRun,
}

/// What was found, and whether it was written.
#[derive(Clone, Debug)]
pub struct Made {
    pub verdict: ReproVerdict,
    pub in_the_run: InTheRun,
    /// Shape of the result that was run alone.
    pub shape: Vec<usize>,
    /// Run alone; `None` where the stage does not fail in the run and is not kept.
    pub alone: Option<Figures>,
    pub pattern: Option<Pattern>,
    /// What the folder says besides, if it was written.
    pub written: Option<Written>,
}

#[derive(Clone, Debug)]
pub struct Written {
    pub reference: Reference,
    pub shrinking: Shrinking,
    /// In order of dispatch; empty unless the subject is a GPU.
    pub kernels: Vec<String>,
    /// What must be said besides, one line each.
    pub notes: Vec<String>,
}

/// Whether [`make`] can write a folder there: to be asked before long work, such as decoding, that comes before it.
///
/// # Errors
/// A directory that is there, is a file, or cannot be made.
pub fn check_out(dir: &Path, force: bool) -> Result<()> {
    AtomicDir::check(dir, KIND, force)
}

/// Looks for the call in which the stage fails, isolates it, makes it small, and writes it to `dir`, which is left alone if
/// there is nothing to write. `subject` has the model's weights prepared; `reference` runs the folder's operands too.
///
/// # Errors
/// The backends', and those of [`check_out`].
pub fn make<S: Subject, R: Backend>(
    subject: &mut S,
    reference: &mut R,
    model: &Model,
    calls: Calls<'_>,
    target: &Target,
    options: ReproOptions,
    dir: (&Path, bool),
) -> Result<Made> {
    // Before anything is run, so that a wrong place costs no time.
    let dir = AtomicDir::create(dir.0, KIND, dir.1)?;
    let contracts = options.contract.clone().unwrap_or_else(|| NamedContract::of(subject));
    let found = find(subject, model, calls, target, &contracts)?;
    let contract = contracts.at(target.site.stage, found.case.op().kind());
    let head_dim = model.config.head_dim_of(found.case.site.stage);
    let mut made = Made {
        verdict: ReproVerdict::Ok,
        in_the_run: InTheRun::new(&found, head_dim),
        shape: found.case.shape().to_vec(),
        alone: None,
        pattern: None,
        written: None,
    };
    let none = Shrinking { runs: 0, stopped: false };
    let (case, judged, shrinking) = if found.fails() {
        match isolate(subject, &found, target, contract, options.runs)? {
            Isolation::Fails(shrunk) => {
                made.verdict = ReproVerdict::SubjectWrong;
                (shrunk.case, shrunk.judged, Shrinking { runs: shrunk.runs, stopped: shrunk.stopped })
            }
            Isolation::Agrees(judged) => {
                made.verdict = ReproVerdict::OnlyInTheRun;
                (found.case.clone(), *judged, none)
            }
        }
    } else {
        (found.case.clone(), found.judged.clone(), none)
    };
    if made.verdict != ReproVerdict::Ok {
        made.alone = Some(judged.figures(&case));
    }
    if made.verdict != ReproVerdict::SubjectWrong && !options.keep {
        return Ok(made);
    }
    let origin = Origin { model, calls, found: &found };
    let parts = Parts { case, judged, shrinking, contract: *contract, held_to: options.contract.as_ref(), origin };
    parts.write(subject, reference, dir, made)
}

/// What is left to be run once more and written.
struct Parts<'a> {
    case: FailingCall,
    judged: RerunCheck,
    shrinking: Shrinking,
    contract: Contract,
    held_to: Option<&'a NamedContract>,
    origin: Origin<'a>,
}

impl Parts<'_> {
    fn write<S: Subject, R: Backend>(
        self,
        subject: &mut S,
        reference: &mut R,
        dir: AtomicDir,
        mut made: Made,
    ) -> Result<Made> {
        let Parts { case, judged, shrinking, contract, held_to, origin } = self;
        let kind = case.op().kind();
        let (output, recorded) = subject.run_recorded(&case)?;
        let judged = RerunCheck::against(&case, judged.exact, judged.floor, output)?;
        let other = RerunCheck::new(&case, &reference.contract(kind), case.run(reference)?)?;
        let mut notes = Vec::new();
        if made.verdict == ReproVerdict::SubjectWrong && !judged.fails() {
            notes.push("the last run agreed: the error does not come every time".into());
        }
        made.shape = case.shape().to_vec();
        made.alone = Some(judged.figures(&case));
        made.pattern = judged.pattern(&case, origin.model.config.head_dim_of(case.site.stage));
        let written = Written {
            reference: Reference { info: reference.info(), figures: other.figures(&case) },
            shrinking,
            kernels: recorded.iter().flat_map(|r| r.dispatches.iter().map(|d| d.kernel.clone())).collect(),
            notes,
        };
        let contents = Contents {
            case: &case,
            judged: &judged,
            shrinking,
            subject: SideEntry {
                info: held(subject.info(), held_to),
                contract,
                held_to: held_to.map(|contract| contract.name.clone()),
            },
            reference: written.reference.clone(),
            recorded,
            origin,
        };
        write(dir, contents)?;
        made.written = Some(written);
        Ok(made)
    }
}

/// What a side says of itself, with the contract that it is held to.
pub fn held(info: BackendInfo, to: Option<&NamedContract>) -> BackendInfo {
    let contract = to.map_or(info.contract, NamedContract::to_string);
    BackendInfo { contract, ..info }
}

/// The whole stage is what [`CapturedCall`] has.
impl InTheRun {
    pub fn new(found: &CapturedCall, head_dim: usize) -> Self {
        Self {
            shape: found.case.shape().to_vec(),
            figures: found.judged.figures(&found.case),
            pattern: found.judged.pattern(&found.case, head_dim).map(|p| p.description),
        }
    }
}
