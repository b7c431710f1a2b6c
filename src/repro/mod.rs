//! A failing stage as a folder that fails alone.
//!
//! Design:
//! - **A [`case::FailingCall`] is one operation with its operands on the host.** [`capture`] takes it out of a run, [`cut`] makes it
//!   smaller, [`verdict`] judges what a backend makes of it, [`mod@shrink`] looks for the smallest one that still fails.
//! - **A [`folder`] is a case on disk**, with the oracle's result, the floors, what the subject made of it and, where that
//!   was a GPU, every dispatch with its WGSL source and the contents of its bindings.
//! - **What runs again is the operation**, through the same [`crate::backend::Backend`] as in a model. On a GPU the
//!   kernels' sources come from the folder, so that editing them there is how a kernel is mended.
//! - A folder is untrusted: sizes, shapes, ids and names are checked before anything is allocated or run, and kernels from it
//!   run with wgpu's bounds checks.

pub mod capture;
pub mod case;
pub mod cut;
pub mod folder;
pub mod make;
pub mod manifest;
pub mod shaders;
pub mod shrink;
pub mod verdict;
mod write;

use capture::{CapturedCall, Target};
use case::FailingCall;
use shrink::{Shrunk, shrink};
use verdict::RerunCheck;

use crate::backend::gpu::GpuBackend;
use crate::backend::{AnyBackend, Backend, Contract};
use crate::error::Result;
use crate::op::{HostTensor, Weight};

pub use folder::Folder;
pub use make::{Made, ReproOptions, ReproVerdict, check_out, held, make};
pub use write::RecordedCall;

/// Runs that a search for the smallest failing case may take.
pub const RUNS: usize = 200;

/// What came of running a stage alone.
pub enum Isolation {
    /// It fails alone; this is the smallest case that was found.
    Fails(Box<Shrunk>),
    /// It fails in the run only: its judgement alone, on the operands that it had there.
    Agrees(Box<RerunCheck>),
}

/// A backend whose stage is looked at.
pub trait Subject: Backend {
    /// Gives back what it keeps of a weight that is not needed again.
    fn forget(&mut self, weight: &Weight);

    /// Runs a case, and says what ran where that can be recorded.
    ///
    /// # Errors
    /// The backend's.
    fn run_recorded(&mut self, case: &FailingCall) -> Result<(HostTensor, Option<RecordedCall>)>;
}

impl Subject for GpuBackend {
    fn forget(&mut self, weight: &Weight) {
        GpuBackend::forget(self, weight);
    }
    fn run_recorded(&mut self, case: &FailingCall) -> Result<(HostTensor, Option<RecordedCall>)> {
        self.record()?;
        let output = case.run(self)?;
        let dispatches = self.recorded()?;
        Ok((output, Some(RecordedCall::new(self, dispatches))))
    }
}

impl Subject for AnyBackend {
    /// What a backend keeps behind this type is its own affair; the CPU and the oracle keep nothing.
    fn forget(&mut self, _: &Weight) {}

    fn run_recorded(&mut self, case: &FailingCall) -> Result<(HostTensor, Option<RecordedCall>)> {
        Ok((case.run(self)?, None))
    }
}

/// Runs what was found alone, holds it to `contract`, and makes it small in at most `most` runs. `target` narrows it to a position or an
/// expert first, unless the error goes away with that.
///
/// # Errors
/// The subject's.
pub fn isolate<S: Subject>(
    subject: &mut S,
    found: &CapturedCall,
    target: &Target,
    contract: &Contract,
    most: usize,
) -> Result<Isolation> {
    let mut run = |case: &FailingCall| {
        let output = case.run(subject);
        if let Some(weight) = &case.weight {
            subject.forget(weight);
        }
        output
    };
    let whole = run(&found.case)?;
    let whole = RerunCheck::against(&found.case, found.judged.exact.clone(), found.judged.floor.clone(), whole)?;
    let mut judge = |case: &FailingCall| RerunCheck::new(case, contract, run(case)?);
    if let Some(narrow) = narrow(&found.case, target)? {
        let judged = judge(&narrow)?;
        if judged.fails() {
            return Ok(Isolation::Fails(Box::new(shrink(narrow, judged, most, &mut judge)?)));
        }
    }
    if !whole.fails() {
        return Ok(Isolation::Agrees(Box::new(whole)));
    }
    Ok(Isolation::Fails(Box::new(shrink(found.case.clone(), whole, most, &mut judge)?)))
}

/// The rows of `case` of the target; `None` where all of them are.
fn narrow(case: &FailingCall, target: &Target) -> Result<Option<FailingCall>> {
    if target.position.is_none() && target.expert.is_none() {
        return Ok(None);
    }
    let flat = match (target.expert, case.flat()) {
        (Some(_), Some(flat)) => flat?,
        _ => case.clone(),
    };
    let keep: Vec<usize> = (flat.kept.rows.iter().enumerate())
        .filter(|(_, row)| target.position.is_none_or(|p| row.position == p))
        .filter(|(_, row)| target.expert.is_none_or(|e| row.slots.iter().any(|s| s.expert == e)))
        .map(|(i, _)| i)
        .collect();
    if keep.is_empty() { Ok(None) } else { Ok(Some(flat.cut(cut::CutAxis::Rows, &keep)?)) }
}
