//! One stage alone, at any number of rows.
//!
//! Design:
//! - **The call is a real one, made longer.** A short run gives the operation with its weight and its parameters; its operands are grown
//!   to as many rows as are asked for ([`rows`]), each of another captured row's values times a seeded factor a value, so that scales,
//!   outliers and signs are a model's and no two rows are alike.
//! - **All rows are compared, and some are judged.** Subject and reference run all of them, and every element of the one is held against
//!   the other. The float64 oracle judges rows that cannot all be judged in reasonable time: the first and the last, those beside powers of
//!   two, beside multiples of 65,535 and beside byte offsets where sizes end ([`sample`]), seeded ones, and those in which the sides are
//!   furthest apart. So an error in few rows is seen by the comparison, and its side is told by the judge.
//! - **Memory is counted before it is taken**, and too little is said in numbers.

mod found;
mod rows;
mod sample;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rayon::prelude::*;

use crate::backend::{AnyBackend, Backend, BackendInfo};
use crate::diff::locate::Pattern;
use crate::diff::outcome::{Cause, Verdict};
use crate::diff::run::verdicts::error;
use crate::error::{Error, Result};
use crate::formula::floor::{OracleCheck, check_against_oracle, injected_ratio};
use crate::memory::available_memory;
use crate::model::Model;
use crate::op::{HostTensor, OpParams, Site};
use crate::repro::capture::call_of;
use crate::repro::case::FailingCall;

pub use found::Misplaced;
pub use sample::MOST_LISTED;

/// What to run.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Rows of the call.
    pub tokens: usize,
    /// The position of the first, for stages that depend on it.
    pub start: usize,
    /// Of the operands, and of the rows that are judged by chance.
    pub seed: u64,
    /// How many rows are judged by chance.
    pub random_rows: usize,
    /// Multiplications of one side's oracle up to which every row is judged.
    pub judge_all: f64,
}

impl ProbeOptions {
    /// So many rows, the rest as the command line has it unless told otherwise.
    pub fn new(tokens: usize) -> Self {
        Self { tokens, start: 0, seed: 0, random_rows: 64, judge_all: 5e8 }
    }
}

/// Rows from one to another, both counted.
pub type RowRange = [usize; 2];

/// One side of a probe.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProbedSide {
    #[serde(flatten)]
    pub info: BackendInfo,
    /// The largest |error| / floor among the judged rows; `None` where it is not finite.
    pub ratio: Option<f64>,
    /// Rows that were judged wrong, ascending; not more than [`MOST_LISTED`].
    pub wrong_rows: Vec<usize>,
    /// How many.
    pub wrong: usize,
    /// Seconds from the operands on the host to the result on the host.
    pub seconds: f64,
}

/// What a probe found.
#[derive(Clone, Debug)]
pub struct Probed {
    pub site: Site,
    pub op: OpParams,
    /// Of the result.
    pub shape: Vec<usize>,
    pub weight: Option<ProbedWeight>,
    pub memory: ProbeMemory,
    /// Rows that the oracle judged: how many, and whether that is all.
    pub judged: usize,
    pub judged_all: bool,
    /// Which, as ranges; not more than [`MOST_LISTED`].
    pub judged_rows: Vec<RowRange>,
    pub reference: ProbedSide,
    pub subject: ProbedSide,
    /// `ok`, `subject wrong`, `reference wrong` or `both wrong`.
    pub verdict: Verdict,
    /// The first row that is judged wrong on the side that is wrong.
    pub first_wrong: Option<usize>,
    /// Rows in which the sides differ by more than in any that was judged right on both.
    pub differing: usize,
    /// Which, as ranges; not more than [`MOST_LISTED`].
    pub differing_rows: Vec<RowRange>,
    /// What wrong rows hold instead, where that is other rows' values or nothing.
    pub misplaced: Option<Misplaced>,
    /// Where in wrong rows the error is.
    pub pattern: Option<Pattern>,
    /// The mistake that makes them, where one does.
    pub cause: Option<Cause>,
    /// What must be said besides.
    pub notes: Vec<String>,
}

/// The weight that the stage reads.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProbedWeight {
    pub name: String,
    #[serde(rename = "type")]
    pub ty: String,
    pub dims: Vec<usize>,
}

/// What the host needs.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct ProbeMemory {
    /// Operands, their copies on a side, and the results.
    pub needed_bytes: u64,
    /// What the system says is to be had; `None` where it says nothing.
    pub available_bytes: Option<u64>,
}

impl Probed {
    pub fn agrees(&self) -> bool {
        self.verdict == Verdict::Ok
    }
}

/// The two sides.
pub struct ProbeSides<'a> {
    pub reference: &'a mut AnyBackend,
    pub subject: &'a mut AnyBackend,
}

/// Runs the stage at `site` alone on grown operands of a run of `prompt`, which is made on the reference.
///
/// # Errors
/// Too little memory ([`Error::CannotRun`]), a stage that no rows can be made for, and the backends'.
pub fn probe(
    model: &Model,
    sides: ProbeSides<'_>,
    prompt: &[u32],
    site: Site,
    options: &ProbeOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Probed> {
    progress("a short run, for its operands");
    let ProbeSides { reference, subject } = sides;
    let short = call_of(reference, model, prompt, site)?;
    let memory = memory(&short, options)?;
    progress("operands");
    let call = rows::grown(&short, options)?;
    drop(short);
    let run = |backend: &mut AnyBackend| -> Result<(HostTensor, f64)> {
        let began = Instant::now();
        let result = call.run(backend)?;
        Ok((result, began.elapsed().as_secs_f64()))
    };
    progress("the subject");
    let (g, subject_seconds) = run(subject)?;
    progress("the reference");
    let (c, reference_seconds) = run(reference)?;
    for (side, result) in [("subject", &g), ("reference", &c)] {
        if result.shape != call.shape() {
            let (found, expected) = (&result.shape, call.shape());
            return Err(Error::cannot_run(format!("{site}: the {side}'s result is {found:?}, expected {expected:?}")));
        }
    }
    progress("the rows of both, against each other");
    let apart = rows::apart(&call, &c, &g);
    let kind = call.op().kind();
    let contracts = [reference.contract(kind), subject.contract(kind)];
    let judge = Judge { call: &call, results: [&c, &g], contracts: &contracts, unbounded: AtomicUsize::new(0) };
    progress("the oracle");
    let all = sample::work_of_a_row(&call) * options.tokens as f64 <= options.judge_all;
    let mut judged = judge.rows(&sample::rows(&call, &apart, options, all))?;
    // Differences that are larger than in any row that is right on both sides are looked at from the first on.
    let differing = found::differing(&apart, &judged);
    if let Some(&first) = differing.first() {
        let more: Vec<usize> = [first.saturating_sub(1), first].into_iter().filter(|r| !judged.has(*r)).collect();
        judged.add(judge.rows(&more)?);
    }
    let [wrong_c, wrong_g] = [0, 1].map(|side| judged.wrong(side));
    let verdict = match (wrong_c.is_empty(), wrong_g.is_empty()) {
        (true, true) => Verdict::Ok,
        (true, false) => Verdict::SubjectWrong,
        (false, true) => Verdict::ReferenceWrong,
        (false, false) => Verdict::BothWrong,
    };
    let side = usize::from(!wrong_g.is_empty());
    let wrong = if side == 1 { &wrong_g } else { &wrong_c };
    progress("the cause");
    let found = found::WrongRows::of(&judge, model, side, wrong, &differing)?;
    let listed = |rows: &[usize]| rows.iter().copied().take(MOST_LISTED).collect::<Vec<_>>();
    let describe = |info: BackendInfo, side: usize, wrong: &[usize], seconds: f64| ProbedSide {
        info,
        ratio: Some(judged.ratio(side)).filter(|ratio| ratio.is_finite()),
        wrong_rows: listed(wrong),
        wrong: wrong.len(),
        seconds,
    };
    let mut notes = Vec::new();
    let unbounded = judge.unbounded.load(Ordering::Relaxed);
    if unbounded > 0 {
        notes.push(format!(
            "{unbounded} elements of judged rows, of both sides, have no bound, since the arithmetic of the contract may overflow there: nothing is said of them"
        ));
    }
    if verdict == Verdict::Ok && !differing.is_empty() {
        notes.push(format!(
            "{} rows differ by more than the others, within what rounding allows both sides",
            differing.len()
        ));
    }
    Ok(Probed {
        site,
        op: call.params,
        shape: call.shape().to_vec(),
        weight: call.weight.as_ref().map(|w| ProbedWeight {
            name: w.name.clone(),
            ty: w.ty.to_string(),
            dims: w.dims(),
        }),
        memory,
        judged: judged.len(),
        judged_all: judged.len() == call.positions(),
        judged_rows: sample::ranges(&judged.listed()),
        reference: describe(reference.info(), 0, &wrong_c, reference_seconds),
        subject: describe(subject.info(), 1, &wrong_g, subject_seconds),
        verdict,
        first_wrong: wrong.first().copied(),
        differing: differing.len(),
        differing_rows: sample::ranges(&differing),
        misplaced: found.misplaced,
        pattern: found.pattern,
        cause: found.cause,
        notes,
    })
}

/// What the host needs for the call, refused where it is not there.
fn memory(short: &FailingCall, options: &ProbeOptions) -> Result<ProbeMemory> {
    let overflow = || Error::usage(format!("--tokens {}: its size is beyond what can be counted", options.tokens));
    let (operands, result) = rows::bytes(short, options).ok_or_else(overflow)?;
    // The operands here, and once more on a side that runs; the results of both sides, and one being copied.
    let needed = operands.checked_mul(2).zip(result.checked_mul(3)).and_then(|(a, b)| a.checked_add(b));
    let needed_bytes = needed.ok_or_else(overflow)?;
    let available_bytes = available_memory();
    match available_bytes {
        Some(available) if needed_bytes > available => Err(Error::cannot_run(format!(
            "{} at {} rows needs {needed_bytes} bytes of memory (operands of {operands} bytes, a result of {result}), {available} are \
             available",
            short.site, options.tokens
        ))),
        _ => Ok(ProbeMemory { needed_bytes, available_bytes }),
    }
}

/// Rows that are judged in one call.
const TOGETHER: usize = 32;

/// A call of some rows, the check of a side's result, and that result.
type RowsCheck = (FailingCall, OracleCheck, HostTensor);

/// What judges rows.
struct Judge<'a> {
    call: &'a FailingCall,
    /// The reference's result and the subject's.
    results: [&'a HostTensor; 2],
    contracts: &'a [crate::backend::Contract; 2],
    /// Elements of judged rows that no bound is known of.
    unbounded: AtomicUsize,
}

/// Judged rows, ascending: each side's largest error over its floor.
#[derive(Default)]
struct Judged(Vec<(usize, [f64; 2])>);

impl Judge<'_> {
    /// Judges rows: many in a call where their positions do not matter, since each call reads the whole weight.
    fn rows(&self, rows: &[usize]) -> Result<Judged> {
        let together = if self.call.params.start().is_some() { 1 } else { TOGETHER };
        let judged = rows.par_chunks(together).map(|rows| {
            let [c, g] = self.checks(rows)?.map(|(_, check, output)| {
                let error = error(&output, &check.exact);
                // An attention matrix comes alone, and then all of it is the row.
                let len = (error.len() / rows.len()).max(1);
                let unbounded = check.floor.iter().filter(|floor| **floor == f64::INFINITY).count();
                self.unbounded.fetch_add(unbounded, Ordering::Relaxed);
                let each =
                    error.chunks(len).zip(check.floor.chunks(len)).map(|(error, floor)| injected_ratio(error, floor));
                // Beyond by however little is beyond.
                each.map(|r| if r.explained() { r.max } else { r.max.max(1.0 + f64::EPSILON) }).collect::<Vec<f64>>()
            });
            Ok(rows.iter().zip(c.into_iter().zip(g)).map(|(row, (c, g))| (*row, [c, g])).collect::<Vec<_>>())
        });
        let judged: Result<Vec<_>> = judged.collect();
        Ok(Judged(judged?.concat()))
    }

    /// The call of some rows, for stages that depend on a position of one, and each side's check of it.
    fn checks(&self, rows: &[usize]) -> Result<[RowsCheck; 2]> {
        let [c, g] = [0, 1].map(|side| {
            let case = rows::of(self.call, rows)?;
            let result = rows::result(self.call, self.results[side], rows);
            let check = check_against_oracle(&case.op(), &self.contracts[side], &result)?;
            Ok::<_, Error>((case, check, result))
        });
        Ok([c?, g?])
    }
}

impl Judged {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn has(&self, row: usize) -> bool {
        self.0.binary_search_by_key(&row, |(row, _)| *row).is_ok()
    }
    fn add(&mut self, other: Judged) {
        self.0.extend(other.0);
        self.0.sort_by_key(|(row, _)| *row);
    }
    fn listed(&self) -> Vec<usize> {
        self.0.iter().map(|(row, _)| *row).collect()
    }
    fn ratio(&self, side: usize) -> f64 {
        self.0.iter().map(|(_, ratios)| ratios[side]).fold(0.0, f64::max)
    }
    fn wrong(&self, side: usize) -> Vec<usize> {
        self.0.iter().filter(|(_, ratios)| ratios[side] > 1.0).map(|(row, _)| *row).collect()
    }
    /// Those that are right on both sides.
    fn right(&self) -> impl Iterator<Item = usize> {
        self.0.iter().filter(|(_, ratios)| ratios.iter().all(|r| *r <= 1.0)).map(|(row, _)| *row)
    }
}
