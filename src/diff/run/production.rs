//! What the subject computes while nobody looks.
//!
//! Design:
//! - A comparison looks at every stage, and for whoever looks a kernel of that stage alone runs. A backend whose production runs other
//!   kernels, of several stages ([`Backend::fused`]), is therefore run once more, unwatched, over the same tokens.
//! - The same logits at every position, bit for bit: what was found of the stages holds of production too.
//! - Otherwise the values that production writes are recorded, and the recording is compared as a subject that hides the others is: a
//!   kernel of several stages is judged as the segment of these. Those of the single stages have been judged on the same tokens.

use super::driver::{DiffOptions, DiffProgress, Sides, Watched, compare};
use super::verdicts::row_bits;
use crate::backend::{AnyBackend, Backend, Erased, Lent, NamedContract};
use crate::diff::outcome::{Comparison, Production, ProductionVerdict, StageResult};
use crate::error::{Error, Result};
use crate::model::{Calls, LogitRows, Model, Runner, tokens_sha256};
use crate::op::{At, HostTensor, Site};
use crate::trace::capture::info;
use crate::trace::recorded::{Recorded, sites};
use crate::trace::select::Selected;
use crate::trace::store::{Run, Trace, TraceWriter, contracts};
use crate::trace::{StageObserver, Traced};

/// Runs the subject unwatched, and says in `looked_at`, a comparison of which `watched` is the subject's run, what came of it. Where only the
/// kernels of several stages are wrong, it is the comparison of production that comes back.
///
/// # Errors
/// `Fault` of a kernel that was caught. Every other error is said in a note, and what was found stands.
pub(super) fn hold(
    model: &Model,
    sides: Sides<'_>,
    options: &DiffOptions,
    progress: &mut dyn FnMut(DiffProgress),
    mut looked_at: Comparison,
    watched: &Watched,
) -> Result<Comparison> {
    let fused = sides.subject.fused();
    if !options.production || fused.is_empty() {
        return Ok(looked_at);
    }
    let (prompt, decoded) = watched.tokens.split_at(options.tokens.len());
    let calls = Calls { prompt, chunk: options.chunk, decode: decoded.len(), forced: decoded };
    let (positions, name) = (watched.logits.len(), sides.subject.info().backend);
    let kernels: Vec<&'static str> = fused.iter().map(|kernel| kernel.name).collect();
    let said = |comparison: &mut Comparison, verdict: ProductionVerdict, differing: usize, words: String| {
        comparison.notes.push(words);
        comparison.production = Some(Production { kernels: kernels.clone(), positions, differing, verdict });
    };
    // What was found so far stands, whatever becomes of the rest.
    let unwatched = match logit_bits(sides.subject, model, calls) {
        Ok(bits) => bits,
        // No lack of this run, but what it was to find.
        Err(e @ Error::Fault(_)) => return Err(e),
        Err(e) => {
            let words = format!("{name} could not be run once more while nobody looks: {e}");
            said(&mut looked_at, ProductionVerdict::NotJudged, 0, words);
            return Ok(looked_at);
        }
    };
    let differing =
        watched.logits.iter().zip(&unwatched).filter(|(a, b)| a != b).count() + positions.abs_diff(unwatched.len());
    let others = format!("{differing} of {positions} positions have other logits while nobody looks at the stages");
    if differing == 0 {
        let words =
            format!("{name} has the same logits, bit for bit, while nobody looks and kernels of several stages run");
        said(&mut looked_at, ProductionVerdict::Same, differing, words);
        return Ok(looked_at);
    }
    if !sides.judged {
        let words = format!("{name}: {others}; without the oracle nothing judges its kernels of several stages");
        said(&mut looked_at, ProductionVerdict::NotJudged, differing, words);
        return Ok(looked_at);
    }
    let of_recording = DiffOptions {
        decode: decoded.len(),
        forced: decoded.to_vec(),
        shares: false,
        explain: options.explain && looked_at.agrees(),
        ..options.clone()
    };
    let produced = recording(sides.subject, model, calls, options).and_then(|(mut recording, bits)| {
        let mut recorded = Sides { reference: sides.reference, subject: &mut recording, judged: true };
        Ok((compare(model, &mut recorded, &of_recording, progress)?.0, bits == unwatched))
    });
    let (mut produced, same) = match produced {
        Ok(produced) => produced,
        Err(e @ Error::Fault(_)) => return Err(e),
        Err(e) => {
            let words = format!("{name}: {others}; its kernels of several stages could not be judged: {e}");
            said(&mut looked_at, ProductionVerdict::NotJudged, differing, words);
            return Ok(looked_at);
        }
    };
    if !same && produced.agrees() {
        // A recording that is another run tells where it errs, and not that the other does not.
        let words = format!("{name}: {others}, and others again when it is recorded: what it computes is not judged");
        said(&mut looked_at, ProductionVerdict::NotJudged, differing, words);
        return Ok(looked_at);
    }
    match (looked_at.agrees(), produced.agrees()) {
        (true, true) => {
            let words =
                format!("{name}: {others}, by no more than rounding: its kernels of several stages are judged too");
            said(&mut looked_at, ProductionVerdict::WithinRounding, differing, words);
            Ok(looked_at)
        }
        (true, false) => {
            let stages = looked_at.counts().0;
            let words = format!(
                "only a kernel of several stages is wrong: each alone, all {stages} stages agree; this is {name} as it runs while nobody looks"
            );
            said(&mut produced, ProductionVerdict::OnlyFusedWrong, differing, words);
            Ok(produced)
        }
        (false, true) => {
            let words =
                format!("{name}: {others}, and nothing is wrong with those: only kernels of single stages are wrong");
            said(&mut looked_at, ProductionVerdict::OnlySinglesWrong, differing, words);
            Ok(looked_at)
        }
        (false, false) => {
            let first = produced
                .fault()
                .map_or(String::new(), |fault| format!("; there the first fault is at {}", place(fault)));
            said(&mut looked_at, ProductionVerdict::BothWrong, differing, format!("{name}: {others}{first}"));
            Ok(looked_at)
        }
    }
}

/// Where a fault of production is seen, with what is hidden before it.
fn place(fault: &StageResult) -> String {
    let step = if fault.step == 0 { String::new() } else { format!("decoded token {}, ", fault.step) };
    let hidden = fault.segment.as_ref().and_then(|segment| segment.hidden.first());
    let since = hidden.map_or(String::new(), |first| format!("{} … ", first.stage));
    match fault.site.layer {
        Some(layer) => format!("{step}layer {layer}, {since}{}", fault.site.stage),
        None => format!("{step}{since}{}", fault.site.stage),
    }
}

/// What tells the logits' bits at each position, of a run that nobody looks at.
fn logit_bits(subject: &mut AnyBackend, model: &Model, calls: Calls<'_>) -> Result<Vec<u64>> {
    let mut runner = Runner::new(subject, model, calls, LogitRows::All)?;
    let mut bits = Vec::new();
    while runner.step(subject)? {
        if let Some(logits) = runner.unread() {
            bits.extend(row_bits(&subject.read(logits)?));
        }
    }
    Ok(bits)
}

/// Saves what production writes.
struct Written(TraceWriter);

impl StageObserver for Written {
    fn wants(&self, site: Site) -> bool {
        self.0.wants(site)
    }
    fn observe(&mut self, at: At, values: HostTensor) -> Result<()> {
        self.0.add(at, &values)
    }
}

/// The subject's run of `calls`, of which the stages that its kernels write while nobody looks are shown, and what tells its logits' bits.
fn recording(
    subject: &mut AnyBackend,
    model: &Model,
    calls: Calls<'_>,
    options: &DiffOptions,
) -> Result<(AnyBackend, Vec<u64>)> {
    let hidden: Vec<_> = subject.fused().iter().flat_map(|kernel| kernel.hides).collect();
    let shown = sites(model).into_iter().filter(|site| !hidden.contains(&&site.stage));
    let selected = Selected::of(shown, calls.prompt.len() + calls.decode);
    let temp = std::env::temp_dir();
    let dir = tempfile::tempdir_in(&temp).map_err(|e| Error::cannot_run(format!("{}: {e}", temp.display())))?;
    let target = dir.path().join("production");
    let run = Run {
        model: info(model),
        prompt: options.prompt.clone(),
        tokens: [calls.prompt, calls.forced].concat(),
        prompt_tokens: calls.prompt.len(),
        tokens_sha256: Some(tokens_sha256(calls.prompt)),
        backend: subject.info(),
        contracts: contracts(&NamedContract::of(subject)),
    };
    let writer = TraceWriter::create(&target, false, selected)?;
    let mut traced = Traced::patient(Lent::new(subject), Written(writer));
    let mut runner = Runner::new(&mut traced, model, calls, LogitRows::All)?;
    let mut bits = Vec::new();
    while runner.step(&mut traced)? {
        if let Some(logits) = runner.unread() {
            bits.extend(row_bits(&traced.read(logits)?));
        }
    }
    let (_, Written(writer)) = traced.finish()?;
    writer.finish(run, None, Vec::new())?;
    Ok((Box::new(Erased(Recorded::kept(Trace::open(&target)?, model, dir)?)), bits))
}
