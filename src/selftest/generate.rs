//! Faults that nobody listed: a kind of mistake, with numbers, a place and a strength drawn from a seed.
//!
//! Each kind says, as a row of the table does, which hypotheses explain it rightly. A fault is remade from its seed alone, and its name says
//! what was drawn.

use std::rc::Rc;

use super::case::Trial;
use super::faults::{By, FAULT, Fault, FaultPlace, FaultySide, Generated};
use super::faulty::{Engine, HostOp, Mistake, Strength};
use super::shader::{Edit, Shader};
use crate::diff::locate::PatternKind;
use crate::error::{Error, Result};
use crate::op::{HostTensor, Op, Rotation, Stage};
use crate::quant::random::Rng;

/// `n` trials from a seed; the first of them are those of a smaller `n`.
pub fn trials(n: usize, seed: u64) -> Vec<Trial> {
    (0..n).map(|i| trial(i, &mut Draw(Rng::new(seed, i as u64)))).collect()
}

/// What is drawn from.
struct Draw(Rng);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0.below(n.max(1) as u64) as usize
    }
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// A kind of mistake with its numbers.
struct Kind {
    what: String,
    stage: Stage,
    by: By,
    explained: &'static [&'static str],
    /// Its error grows with its strength.
    graded: bool,
}

fn trial(i: usize, draw: &mut Draw) -> Trial {
    let test_model = draw.below(2);
    let kinds: [fn(&mut Draw) -> Kind; 11] =
        [written, written, rounded, terms, rotated, normalised, attended, heads, weighted, chosen, embedded];
    let kind = kinds[i % kinds.len()](draw);
    let layers = [draw.below(4), draw.below(2)];
    let strength = match draw.below(3) {
        0 if kind.graded => Strength::UpTo(draw.of(&[24.0, 64.0, 200.0])),
        _ => Strength::Full,
    };
    let shader = matches!(kind.by, By::Shader(_));
    let subject = if shader || draw.below(2) == 0 { FaultySide::Gpu } else { FaultySide::Cpu };
    let name: &'static str = format!("{i}: {}", kind.what).leak();
    let fault = Fault {
        name,
        what: name,
        by: kind.by,
        subject,
        stage: kind.stage,
        layers,
        patterns: ANY,
        explained: kind.explained,
        ..FAULT
    };
    let fault: &'static Fault = Box::leak(Box::new(fault));
    Trial { name, faults: vec![fault], test_model, strength }
}

/// What is drawn is a place, but which words are right for it depends on what else is wrong there.
const ANY: &[PatternKind] = {
    use PatternKind::*;
    &[
        Element,
        Position,
        LastPosition,
        PositionRange,
        AllButPosition,
        PositionResidue,
        Expert,
        Experts,
        AllButExpert,
        Slot,
        Head,
        Heads,
        AllButHead,
        WithinHead,
        Column,
        ColumnRange,
        AllButColumn,
        ColumnBlock,
        SubBlock,
        ColumnResidue,
        LastPartialTile,
        Diagonal,
        Scattered,
        WholeTensor,
    ]
};

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

fn misplaced(op: &HostOp<'_>) -> Error {
    Error::usage(format!("{:?} is planted with a fault of another operation", op.kind()))
}

/// A part of a result [.., columns] of `rows` rows.
#[derive(Clone, Copy)]
enum Place {
    Row(usize),
    RowsFrom(usize),
    RowsOf(usize, usize),
    Column(usize),
    ColumnsFrom(usize),
    ColumnsOf(usize, usize),
}

impl Place {
    /// Of a result of 7 positions and `cols` columns.
    fn drawn(draw: &mut Draw, cols: usize) -> Self {
        match draw.below(6) {
            0 => Self::Row(draw.below(7)),
            1 => Self::RowsFrom(1 + draw.below(6)),
            2 => {
                let modulus = 2 + draw.below(2);
                Self::RowsOf(modulus, draw.below(modulus))
            }
            3 => Self::Column(draw.below(cols)),
            4 => Self::ColumnsFrom(cols / 2 + draw.below(cols / 2 - 1)),
            _ => {
                let modulus = draw.of(&[2, 4, 8, 16, 32]);
                Self::ColumnsOf(modulus, draw.below(modulus))
            }
        }
    }
    fn holds(self, row: usize, column: usize) -> bool {
        match self {
            Self::Row(n) => row == n,
            Self::RowsFrom(n) => row >= n,
            Self::RowsOf(modulus, n) => row % modulus == n,
            Self::Column(n) => column == n,
            Self::ColumnsFrom(n) => column >= n,
            Self::ColumnsOf(modulus, n) => column % modulus == n,
        }
    }
    fn words(self) -> String {
        match self {
            Self::Row(n) => format!("row {n}"),
            Self::RowsFrom(n) => format!("rows from {n}"),
            Self::RowsOf(modulus, n) => format!("rows {n} mod {modulus}"),
            Self::Column(n) => format!("column {n}"),
            Self::ColumnsFrom(n) => format!("columns from {n}"),
            Self::ColumnsOf(modulus, n) => format!("columns {n} mod {modulus}"),
        }
    }
}

/// Values of a part of a result that are not written, scaled, or off by a number.
fn written(draw: &mut Draw) -> Kind {
    let (stage, cols) = draw.of(&[
        (Stage::QProj, 512),
        (Stage::KProj, 128),
        (Stage::AttnNorm, 256),
        (Stage::AttnContext, 512),
        (Stage::AttnOut, 256),
        (Stage::FfnNorm, 256),
        (Stage::MoeOut, 256),
        (Stage::LayerOut, 256),
    ]);
    let place = Place::drawn(draw, cols);
    let factor = draw.of(&[0.5, 2.0, -1.0, 1.25, 0.9, 1.01]);
    /// What becomes of a value, by the factor.
    type Change = fn(f32, f32) -> f32;
    let (f, what, explained): (Change, String, &'static [&'static str]) = match draw.below(3) {
        0 => (|_, _| 0.0, "zeros".into(), &["zero"]),
        1 => (|x, by| x * by, format!("{factor} times"), &["factor"]),
        _ => (|x, by| x + by, format!("{factor} added"), &["offset"]),
    };
    let graded = what != "zeros";
    let mistake = by(move |engine, op| {
        let right = engine.run(op)?;
        let n = right.cols();
        let each = |(i, x): (usize, &f32)| if place.holds(i / n, i % n) { f(*x, factor) } else { *x };
        Ok(HostTensor::f32(&right.shape, right.to_f32().iter().enumerate().map(each).collect()))
    });
    Kind { what: format!("{what} at {stage}, {}", place.words()), stage, by: mistake, explained, graded }
}

/// One operand in a coarser format.
fn rounded(draw: &mut Draw) -> Kind {
    let (stage, operand) = draw.of(&[
        (Stage::AttnScores, 0),
        (Stage::AttnScores, 1),
        (Stage::AttnContext, 0),
        (Stage::AttnContext, 1),
        (Stage::QProj, 0),
        (Stage::AttnOut, 0),
        (Stage::ExpertDown, 0),
        (Stage::AttnNorm, 0),
        (Stage::ExpertAct, 1),
    ]);
    let (format, round): (&str, fn(f32) -> f32) = draw.of(&[
        ("f16", (|x| half::f16::from_f32(x).to_f32()) as fn(f32) -> f32),
        ("bf16", |x| half::bf16::from_f32(x).to_f32()),
        ("bf16, cut off", |x| f32::from_bits(x.to_bits() & 0xffff_0000)),
    ]);
    let mistake = by(move |engine, op| {
        let mut n = 0;
        let changed = op.try_map(|t| {
            n += 1;
            Ok(match n - 1 == operand {
                true => Rc::new(HostTensor::f32(&t.shape, t.to_f32().into_iter().map(round).collect())),
                false => t.clone(),
            })
        })?;
        engine.run(&changed)
    });
    let what = format!("operand {operand} of {stage} in {format}");
    Kind { what, stage, by: mistake, explained: &["input-precision"], graded: true }
}

/// Terms of a sum that are left out: of products, of norms.
fn terms(draw: &mut Draw) -> Kind {
    let explained = &["k-skipped", "lanes", "scale-one"];
    if draw.below(2) == 0 {
        let kept = draw.of(&[1, 2, 4, 8, 16, 32]);
        let edit = format!("cells[lane] += select(0.0, cells[lane + step], step < {kept}u);");
        let by = in_kernels(vec![("rms_norm", vec![("cells[lane] += cells[lane + step];", edit)])]);
        let stage = draw.of(&[Stage::AttnNorm, Stage::FfnNorm]);
        return Kind { what: format!("{kept} lanes of {stage}"), stage, by, explained, graded: true };
    }
    let (stage, k) = draw.of(&[(Stage::QProj, 256), (Stage::AttnOut, 512), (Stage::RouterLogits, 256)]);
    let (run, lanes) = (draw.of(&[1, 4, 8]), draw.of(&[8, 16]));
    let (tail, summed) = (8 * (1 + draw.below(k / 16)), lanes / 2);
    let by_lanes = draw.below(2) == 0;
    let keeps = move |i: usize| if by_lanes { i / run % lanes < summed } else { i < k - tail };
    let mistake = by(move |engine, op| {
        let Op::MatMul { x, weight } = op else { return Err(misplaced(op)) };
        let values = x.to_f32().iter().enumerate().map(|(i, x)| if keeps(i % k) { *x } else { 0.0 }).collect();
        engine.run(&Op::MatMul { x: Rc::new(HostTensor::f32(&x.shape, values)), weight })
    });
    let what = match by_lanes {
        true => format!("{summed} of {lanes} lanes of {run} terms of {stage}"),
        false => format!("the last {tail} terms of {stage}"),
    };
    Kind { what, stage, by: mistake, explained, graded: true }
}

/// Positions and bases of the rotary embedding.
fn rotated(draw: &mut Draw) -> Kind {
    let stage = draw.of(&[Stage::QRope, Stage::KRope]);
    let n = 2 + draw.below(5);
    let base = draw.of(&[2e4, 5e5, 1e7, 123456.0]);
    let index = "(p.start + head / p.heads) * p.turned";
    let table = |to: String| in_kernels(vec![("rope", vec![(index, to)])]);
    let (what, by, explained): (String, By, &'static [&'static str]) = match draw.below(4) {
        0 => (
            format!("positions from {n} on are {}", n - 1),
            table(format!("min(p.start + head / p.heads, {}u) * p.turned", n - 1)),
            &["rope-table"],
        ),
        1 => (
            format!("positions modulo {n}"),
            table(format!("(p.start + head / p.heads) % {n}u * p.turned")),
            &["rope-table"],
        ),
        2 => (format!("positions {n} too high"), later(n), &["rope-position"]),
        _ => {
            let mistake = by(move |engine, op| {
                let Op::Rope { ref x, start, head_dim, rotation } = *op else { return Err(misplaced(op)) };
                let rotation = Rotation { base, ..rotation };
                engine.run(&Op::Rope { x: x.clone(), start, head_dim, rotation })
            });
            (format!("base {base}"), mistake, &["rope-base"])
        }
    };
    Kind { what: format!("{what} at {stage}"), stage, by, explained, graded: false }
}

/// Positions that are too high.
fn later(off: usize) -> By {
    by(move |engine, op| {
        let Op::Rope { ref x, start, head_dim, rotation } = *op else { return Err(misplaced(op)) };
        engine.run(&Op::Rope { x: x.clone(), start: start + off, head_dim, rotation })
    })
}

/// The eps of a norm.
fn normalised(draw: &mut Draw) -> Kind {
    let stage = draw.of(&[Stage::AttnNorm, Stage::FfnNorm]);
    let wrong = draw.of(&[1e-3f32, 2e-3, 5e-2, 0.1]);
    let mistake = by(move |engine, op| {
        let Op::RmsNorm { ref x, weight, .. } = *op else { return Err(misplaced(op)) };
        engine.run(&Op::RmsNorm { x: x.clone(), weight, eps: wrong })
    });
    Kind { what: format!("eps {wrong:e} at {stage}"), stage, by: mistake, explained: &["norm-eps"], graded: false }
}

/// Keys that are not seen, or not summed.
fn attended(draw: &mut Draw) -> Kind {
    let n = 1 + draw.below(5);
    let stage = Stage::AttnProbs;
    match draw.below(2) {
        0 => {
            let e = format!("let e = select(0.0, exp_f32(x[start + i] - largest), i + {n}u >= n);");
            let edit = ("let e = exp_f32(x[start + i] - largest);", e);
            let by = in_kernels(vec![("attn_probs", vec![edit])]);
            Kind { what: format!("a window of {n} keys"), stage, by, explained: &["window", "mask"], graded: false }
        }
        _ => {
            let by = in_kernels(vec![("attn_probs", vec![("sum += e;", format!("sum += select(0.0, e, i < {n}u);"))])]);
            Kind {
                what: format!("a softmax over {n} keys"),
                stage,
                by,
                explained: &["k-skipped", "lanes"],
                graded: false,
            }
        }
    }
}

/// KV heads.
fn heads(draw: &mut Draw) -> Kind {
    let (kernel, stage) = draw.of(&[("attn_scores", Stage::AttnScores), ("attn_context", Stage::AttnContext)]);
    let n = draw.of(&[2, 3, 5, 6, 7]);
    let edit = ("head / (p.heads / p.kv_heads)", format!("min(head / {n}u, p.kv_heads - 1u)"));
    let by = in_kernels(vec![(kernel, vec![edit])]);
    Kind { what: format!("KV head h / {n} at {stage}"), stage, by, explained: &["kv-head"], graded: false }
}

/// The sum of the chosen experts' weights.
fn weighted(draw: &mut Draw) -> Kind {
    let eps = draw.of(&[1e-4, 3e-3, 0.05]);
    let (what, divisor) = match draw.below(2) {
        0 => (format!("weights divided by their sum and {eps}"), format!("(sum + {eps})")),
        _ => ("only slot 1 renormalised".into(), "select(1.0, sum, k == 1u)".to_string()),
    };
    let edit = ("chosen(t, k) / sum", format!("chosen(t, k) / {divisor}"));
    let by = in_kernels(vec![("router_weights", vec![edit])]);
    Kind { what, stage: Stage::RouterWeights, by, explained: &["renormalisation"], graded: false }
}

/// Experts' weights of others.
fn chosen(draw: &mut Draw) -> Kind {
    let off = 1 + draw.below(7) as u32;
    let stage = draw.of(&[Stage::ExpertGate, Stage::ExpertUp, Stage::ExpertDown]);
    let from = draw.below(4);
    let mistake = by(move |engine, op| {
        let Op::ExpertMatMul { ref x, ref ids, weight } = *op else { return Err(misplaced(op)) };
        let (k, experts) = (ids.cols(), weight.experts as u32);
        let id = |(i, id): (usize, &u32)| if i / k >= from { (id + off) % experts } else { *id };
        let ids = HostTensor::u32(&ids.shape, ids.ids().iter().enumerate().map(id).collect());
        engine.run(&Op::ExpertMatMul { x: x.clone(), ids: Rc::new(ids), weight })
    });
    let what = format!("expert e + {off} at {stage}, rows from {from}");
    Kind { what, stage, by: mistake, explained: &["expert-offset"], graded: true }
}

/// Embeddings of other tokens.
fn embedded(draw: &mut Draw) -> Kind {
    let (a, b) = (draw.below(3), 3 + draw.below(4));
    let modulus = draw.of(&[128u32, 64, 200]);
    let exchanged = draw.below(2) == 0;
    let mistake = by(move |engine, op| {
        let Op::Embed { table, tokens, scale } = *op else { return Err(misplaced(op)) };
        let mut others = tokens.to_vec();
        match exchanged {
            true => others.swap(a, b),
            false => others.iter_mut().for_each(|t| *t %= modulus),
        }
        engine.run(&Op::Embed { table, tokens: &others, scale })
    });
    let (what, explained): (_, &'static [&'static str]) = match exchanged {
        true => (format!("the embeddings of positions {a} and {b} exchanged"), &["misplaced"]),
        false => (format!("the embeddings of tokens modulo {modulus}"), &["wrapped"]),
    };
    Kind { what, stage: Stage::Embedding, by: mistake, explained, graded: false }
}
