//! Faults that nobody listed: a kind of mistake, with numbers, a place, a strength, a side and a model drawn from a seed; one, or two or three at once.
//!
//! - Each kind says, as a row of the table does, which hypotheses explain it rightly. A fault is remade from its seed alone, and its name says
//!   what was drawn.
//! - `place` says which part of a result is wrong, [`values`], [`sums`], [`attention`] and [`experts`] what is.
//! - What is drawn may be no mistake on this prompt, or less than rounding: that is said, and counts as not to be seen.

mod attention;
mod experts;
mod place;
mod sums;
mod values;

use std::rc::Rc;

use strum::VariantArray;

use super::case::Trial;
use super::faults::{By, FAULT, Fault, FaultPlace, FaultySide, Generated};
use super::faulty::{Engine, FaultScope, HostOp, Mistake, Strength};
use super::shader::{Edit, Shader};
use super::test_model::TestModel;
use crate::diff::locate::PatternKind;
use crate::diff::measure::metrics::Side;
use crate::error::{Error, Result};
use crate::op::{HostTensor, Stage};
use crate::quant::random::Rng;

/// `n` trials from a seed; the first of them are those of a smaller `n`.
pub fn trials(n: usize, seed: u64) -> Vec<Trial> {
    (0..n).map(|i| trial(seed, i)).collect()
}

/// What is drawn from, for a model.
struct Draw {
    rng: Rng,
    test_model: usize,
}

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.rng.below(n.max(1) as u64) as usize
    }
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
    /// With a chance of one in `n`.
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    /// How many experts a position has on this model.
    fn slots(&self) -> usize {
        TestModel::experts_used(self.test_model)
    }
}

/// A kind of mistake with its numbers.
struct Kind {
    what: String,
    stage: Stage,
    by: By,
    explained: &'static [&'static str],
    /// How one of the causes that describe it begins; none: that it is one of those hypotheses says enough.
    says: Vec<String>,
    scope: FaultScope,
    /// Its error grows with its strength.
    graded: bool,
    /// A decoded token has it too.
    decoded: bool,
    /// It may be too little to be told from chance.
    may_be_open: bool,
    /// It leaves every value finite.
    finite: bool,
    /// Where it is confined to a part, the kinds of geometry that say so; else any.
    patterns: &'static [PatternKind],
}

impl Kind {
    fn new(what: impl Into<String>, stage: Stage, by: By, explained: &'static [&'static str]) -> Self {
        let what = what.into();
        let scope = FaultScope::All;
        let (graded, decoded, may_be_open, finite) = (false, false, false, true);
        Self {
            what,
            stage,
            by,
            explained,
            says: Vec::new(),
            scope,
            graded,
            decoded,
            may_be_open,
            finite,
            patterns: PatternKind::VARIANTS,
        }
    }
    fn says(self, says: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { says: says.into_iter().map(Into::into).collect(), ..self }
    }
    fn graded(self) -> Self {
        Self { graded: true, ..self }
    }
    fn in_decoding_too(self) -> Self {
        Self { decoded: true, ..self }
    }
    fn is_shader(&self) -> bool {
        matches!(self.by, By::Shader(_))
    }

    /// The fault, on a backend and a side.
    fn fault(self, name: String, layers: [usize; 2], subject: FaultySide, side: Side, step: usize) -> &'static Fault {
        let name: &'static str = name.leak();
        let may_be_open = self.may_be_open;
        let says: Vec<&'static str> = self.says.into_iter().map(|says| &*says.leak()).collect();
        Box::leak(Box::new(Fault {
            name,
            what: name,
            by: self.by,
            subject,
            side,
            stage: self.stage,
            layers,
            step,
            scope: self.scope,
            patterns: self.patterns,
            explained: self.explained,
            says: says.leak(),
            may_be_open,
            ..FAULT
        }))
    }
}

const KINDS: [fn(&mut Draw) -> Kind; 20] = [
    values::written,
    values::written,
    values::moved,
    values::rounded,
    values::embedded,
    values::residual,
    sums::terms,
    sums::twice,
    sums::decoded,
    sums::wrapped,
    sums::normalised,
    attention::rotated,
    attention::attended,
    attention::heads,
    attention::scaled,
    experts::weighted,
    experts::chosen,
    experts::combined,
    experts::slots,
    experts::activated,
];

fn trial(seed: u64, i: usize) -> Trial {
    let draw = &mut Draw { rng: Rng::new(seed, i as u64), test_model: 0 };
    draw.test_model = if draw.one_in(3) { draw.of(TestModel::OF_TYPES) } else { draw.below(2) };
    // Every kind in its turn; the seed says which begins, so that a few trials of many seeds have them all.
    let turn = (seed % KINDS.len() as u64) as usize + i;
    let first = KINDS[turn % KINDS.len()](draw);
    let mut kinds = vec![first];
    // With one in six comes another, and with every second of these a third.
    while kinds.len() < 3 && draw.one_in(if kinds.len() == 1 { 6 } else { 2 }) {
        let other = KINDS[draw.below(KINDS.len())](draw);
        // What is not finite hides whatever comes after it.
        if kinds.iter().all(|kind| other.stage != kind.stage && kind.finite && other.finite) {
            kinds.push(other);
        }
    }
    let graded = kinds.iter().all(|kind| kind.graded);
    let strength = match draw.below(3) {
        0 if graded => Strength::UpTo(draw.of(&[24.0, 64.0, 200.0])),
        _ => Strength::Full,
    };
    // Of an error that was made small the floor may hide the most, and with it its place.
    if strength != Strength::Full {
        kinds.iter_mut().for_each(|kind| kind.patterns = PatternKind::VARIANTS);
    }
    let shader = kinds.iter().any(Kind::is_shader);
    let subject = if shader || draw.one_in(2) { FaultySide::Gpu } else { FaultySide::Cpu };
    let step = usize::from(kinds.iter().all(|kind| kind.decoded) && draw.one_in(6));
    if step > 0 {
        kinds.iter_mut().for_each(|kind| kind.patterns = place::of_one_row(kind.patterns));
    }
    let mut whats = Vec::new();
    let faults: Vec<&'static Fault> = kinds
        .into_iter()
        .enumerate()
        .map(|(n, kind)| {
            let side = if !kind.is_shader() && draw.one_in(8) { Side::Reference } else { Side::Subject };
            let layers = [draw.below(4), draw.below(2)];
            let of = if side == Side::Reference { " of the reference" } else { "" };
            let scoped = if kind.scope == FaultScope::Expert { ", one expert" } else { "" };
            whats.push(format!("{}{scoped}{of}", kind.what));
            kind.fault(format!("{i}.{n}: {}", whats[n]), layers, subject, side, step)
        })
        .collect();
    let decoding = if step > 0 { ", in decoding" } else { "" };
    let name: &'static str = format!("{i}: {}{decoding}", whats.join("; and ")).leak();
    Trial { name, faults, test_model: draw.test_model, strength, made_up: true }
}

/// A mistake made by running operations.
fn by(f: impl Fn(&mut Engine<'_>, &HostOp<'_>) -> Result<HostTensor> + Clone + Sync + 'static) -> By {
    let make = move |_: &FaultPlace<'_>| -> Mistake {
        let f = f.clone();
        Box::new(move |engine, op| f(engine, op))
    };
    let made: &'static Generated = Box::leak(Box::new(make));
    By::Generated(made)
}

/// A mistake made in kernels: edits of each.
fn in_kernels(kernels: Vec<(&'static str, Vec<(&'static str, String)>)>) -> By {
    let shader = |(kernel, edits): (&'static str, Vec<(&'static str, String)>)| {
        let edits: Vec<Edit> = edits.into_iter().map(|(from, to)| (from, &*to.leak())).collect();
        Shader { kernel, edits: edits.leak() }
    };
    By::Shader(kernels.into_iter().map(shader).collect::<Vec<_>>().leak())
}

/// Values of the shape of `right`, each by its place in it: row, column, and the right value.
fn each(right: &HostTensor, f: impl Fn(usize, usize, f32) -> f32) -> HostTensor {
    let n = right.cols().max(1);
    let values = right.to_f32().iter().enumerate().map(|(i, x)| f(i / n, i % n, *x)).collect();
    HostTensor::f32(&right.shape, values)
}

/// An operand with its values changed.
fn changed(x: &HostTensor, f: impl Fn(usize, usize, f32) -> f32) -> Rc<HostTensor> {
    Rc::new(each(x, f))
}

fn misplaced(op: &HostOp<'_>) -> Error {
    Error::usage(format!("{:?} is planted with a fault of another operation", op.kind()))
}
