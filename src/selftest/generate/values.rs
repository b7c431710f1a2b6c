//! What is done to values: of a result, of an operand, of a table.

use super::place::Place;
use super::{Draw, Kind, by, changed, each, misplaced};
use crate::op::{HostTensor, Op, Stage};
use crate::selftest::test_model::POSITIONS;

/// Stages with a row for each position, or for each of its slots, and their columns on every model; of the logits, as many as all have.
const ROWS: &[(Stage, usize)] = &[
    (Stage::QProj, 512),
    (Stage::KProj, 128),
    (Stage::VProj, 128),
    (Stage::QNorm, 512),
    (Stage::AttnNorm, 256),
    (Stage::AttnContext, 512),
    (Stage::AttnOut, 256),
    (Stage::FfnNorm, 256),
    (Stage::ExpertUp, 256),
    (Stage::ExpertAct, 256),
    (Stage::ExpertDown, 256),
    (Stage::MoeOut, 256),
    (Stage::LayerOut, 256),
    (Stage::FinalNorm, 256),
    (Stage::Logits, 512),
];

fn slots_of(draw: &Draw, stage: Stage) -> usize {
    match stage {
        Stage::ExpertUp | Stage::ExpertAct | Stage::ExpertDown => draw.slots(),
        _ => 1,
    }
}

/// Values of a part of a result that are not written, scaled, off by a number, or not finite.
pub(super) fn written(draw: &mut Draw) -> Kind {
    let (stage, cols) = draw.of(ROWS);
    let slots = slots_of(draw, stage);
    let place = Place::drawn(draw, cols, slots);
    let factor = draw.of(&[0.5, 2.0, -1.0, 1.25, 0.9, 1.01]);
    /// What becomes of a value, by the factor.
    type Change = fn(f32, f32) -> f32;
    let (f, what, explained): (Change, String, &'static [&'static str]) = match draw.below(8) {
        0..=2 => (|_, _| 0.0, "zeros".into(), &["zero"]),
        3..=4 => (|x, by| x * by, format!("{factor} times"), &["factor"]),
        5..=6 => (|x, by| x + by, format!("{factor} added"), &["offset"]),
        _ => (|_, _| f32::NAN, "NaN".into(), &["not-finite"]),
    };
    let finite = what != "NaN";
    let says = match explained {
        ["factor"] if factor == -1.0 => vec!["the sign flipped".to_string()],
        ["factor"] => vec![format!("{factor} times the right values")],
        ["offset"] => vec![format!("{factor} added to the right values")],
        _ => vec![],
    };
    let graded = finite && what != "zeros";
    let mistake = by(move |engine, op| {
        let right = engine.run(op)?;
        Ok(each(&right, |row, column, x| if place.holds(row, column, slots) { f(x, factor) } else { x }))
    });
    Kind {
        graded,
        decoded: place.in_every_call(),
        may_be_open: place.is_small(),
        patterns: place.patterns(),
        finite,
        ..Kind::new(format!("{what} at {stage}, {}", place.words()), stage, mistake, explained).says(says)
    }
}

/// Right values in other places.
pub(super) fn moved(draw: &mut Draw) -> Kind {
    let (stage, cols) =
        draw.of(&[(Stage::AttnNorm, 256), (Stage::AttnContext, 512), (Stage::FfnNorm, 256), (Stage::MoeOut, 256)]);
    let (a, b) = (draw.below(3), 3 + draw.below(POSITIONS - 3));
    let by_columns = draw.of(&[1usize, 2, 4, 8, 16, 32, 64]);
    let (one, other) = (draw.below(cols / 2), cols / 2 + draw.below(cols / 2));
    /// The row and the column whose value comes there.
    type From = Box<dyn Fn(usize, usize) -> Option<(usize, usize)> + Sync>;
    let (what, says, from): (String, String, From) = match draw.below(5) {
        0 => (format!("position {a} in the place of {b}"), format!("row {b} holds row {a}"), {
            Box::new(move |row, column| Some((if row == b { a } else { row }, column)))
        }),
        1 => (format!("positions {a} and {b} exchanged"), format!("rows {a} and {b} exchanged"), {
            let to = move |row| if row == a { b } else { row };
            Box::new(move |row, column| Some((if row == b { a } else { to(row) }, column)))
        }),
        2 => (format!("columns {by_columns} too far right"), format!("columns {by_columns} too far right"), {
            Box::new(move |row, column: usize| column.checked_sub(by_columns).map(|column| (row, column)))
        }),
        3 => (format!("columns {one} and {other} exchanged"), format!("columns {one} and {other} exchanged"), {
            let to = move |column| if column == one { other } else { column };
            Box::new(move |row, column| Some((row, if column == other { one } else { to(column) })))
        }),
        _ => (
            format!("columns modulo {}", 2 * by_columns),
            format!("the columns of columns modulo {}", 2 * by_columns),
            { Box::new(move |row, column| Some((row, column % (2 * by_columns)))) },
        ),
    };
    let from: &'static From = Box::leak(Box::new(from));
    let mistake = by(move |engine, op| {
        let right = engine.run(op)?;
        let (n, values) = (right.cols(), right.to_f32());
        Ok(each(&right, |row, column, _| from(row, column).map_or(0.0, |(row, column)| values[row * n + column])))
    });
    let mut says = vec![says];
    // Of one row it is as true that rows wrap or end somewhere, or that each is the one before it.
    if what.starts_with("position ") {
        let wraps = (a + 1..=b).filter(|n| b % n == a);
        says.extend(wraps.map(|n| format!("the rows of rows modulo {n}")));
        says.push(format!("the rows of rows from {} on taken as {a}", a + 1));
        says.extend((a == 0).then(|| "the first row in every row".to_string()));
        says.extend((b == a + 1).then(|| "every row in the place of the next".to_string()));
    }
    Kind::new(format!("{what} at {stage}"), stage, mistake, &["misplaced"]).says(says)
}

/// One operand, or the result, in a coarser format.
pub(super) fn rounded(draw: &mut Draw) -> Kind {
    let (stage, operand) = draw.of(&[
        (Stage::AttnScores, 0),
        (Stage::AttnScores, 1),
        (Stage::AttnContext, 0),
        (Stage::AttnContext, 1),
        (Stage::QProj, 0),
        (Stage::VProj, 0),
        (Stage::AttnOut, 0),
        (Stage::ExpertGate, 0),
        (Stage::ExpertDown, 0),
        (Stage::AttnNorm, 0),
        (Stage::ExpertAct, 1),
        (Stage::Logits, 0),
        (Stage::KProj, usize::MAX),
        (Stage::AttnContext, usize::MAX),
        (Stage::AttnProbs, usize::MAX),
        (Stage::FfnNorm, usize::MAX),
    ]);
    let result = operand == usize::MAX;
    type Rounds = fn(f32) -> f32;
    let formats: &[(&str, Rounds)] = &[
        ("f16", |x| half::f16::from_f32(x).to_f32()),
        ("bf16", |x| half::bf16::from_f32(x).to_f32()),
        ("bf16, cut off", |x| f32::from_bits(x.to_bits() & 0xffff_0000)),
    ];
    // Results are stored rounded, and operands cut off as well.
    let (format, round) = draw.of(if result { &formats[..2] } else { formats });
    let mistake = by(move |engine, op| {
        if result {
            return Ok(each(&engine.run(op)?, |_, _, x| round(x)));
        }
        let mut n = 0;
        let rounded = op.try_map(|t| {
            n += 1;
            Ok(if n - 1 == operand { changed(t, |_, _, x| round(x)) } else { t.clone() })
        })?;
        engine.run(&rounded)
    });
    let (what, explained): (_, &'static [&'static str]) = match result {
        true => (format!("the result of {stage} in {format}"), &["output-precision"]),
        false => (format!("operand {operand} of {stage} in {format}"), &["input-precision"]),
    };
    let rounded = match (stage, operand) {
        (_, usize::MAX) => "the result",
        (Stage::AttnScores, 0) => "q",
        (Stage::AttnScores, _) => "k",
        (Stage::AttnContext, 0) => "probabilities",
        (Stage::AttnContext, _) => "v",
        (Stage::ExpertAct, _) => "up",
        _ => "inputs",
    };
    let how = if format == "bf16, cut off" { "cut off to bf16".into() } else { format!("rounded to {format}") };
    Kind::new(what, stage, mistake, explained).says([format!("{rounded} {how}")]).graded().in_decoding_too()
}

/// Embeddings of other tokens.
pub(super) fn embedded(draw: &mut Draw) -> Kind {
    let (a, b) = (draw.below(3), 3 + draw.below(POSITIONS - 3));
    let modulus = draw.of(&[128u32, 64, 200, 100, 150, 192, 255, 77]);
    let distance = draw.of(&[1u32, 2, 3, 17, 100]);
    let end = draw.of(&[100u32, 128, 40]);
    let which = draw.below(4);
    let mistake = by(move |engine, op| {
        let Op::Embed { table, tokens, scale } = *op else { return Err(misplaced(op)) };
        let mut others = tokens.to_vec();
        match which {
            0 => others.swap(a, b),
            1 => others.iter_mut().for_each(|t| *t %= modulus),
            2 => others.iter_mut().for_each(|t| *t = t.saturating_sub(distance)),
            _ => others.iter_mut().for_each(|t| *t = (*t).min(end - 1)),
        }
        engine.run(&Op::Embed { table, tokens: &others, scale })
    });
    let last = end - 1;
    let (what, explained, says): (_, &'static [&'static str], _) = match which {
        0 => {
            let says = format!("rows {a} and {b} exchanged");
            (format!("the embeddings of positions {a} and {b} exchanged"), &["misplaced"], says)
        }
        // Which other moduli the prompt allows is said with it, and may be said before it.
        1 => (format!("the embeddings of tokens modulo {modulus}"), &["wrapped"], "the rows of tokens modulo".into()),
        2 => {
            let by = if distance == 1 { String::new() } else { format!("{distance} ") };
            let says = format!("the row {by}before the token's");
            (format!("the embeddings of tokens {distance} before"), &["embedding-row"], says)
        }
        _ => {
            let says = format!("the rows of tokens from {end} on taken as {last}");
            (format!("the embedding of token {last} for all from there on"), &["wrapped"], says)
        }
    };
    Kind::new(what, Stage::Embedding, mistake, explained).says([says])
}

/// A residual that is dropped, or added twice.
pub(super) fn residual(draw: &mut Draw) -> Kind {
    let stage = draw.of(&[Stage::AttnResidual, Stage::LayerOut]);
    let place = Place::drawn(draw, 256, 1);
    let (what, factors, says) = draw.of(&[
        ("only what is added", [0.0, 1.0], "the residual dropped"),
        ("only the residual", [1.0, 0.0], "only the residual"),
        ("the residual twice", [2.0, 1.0], "the residual added twice"),
        ("the addend twice", [1.0, 2.0], "the addend added twice"),
    ]);
    let mistake = by(move |_, op| {
        let Op::Add { a, b } = op else { return Err(misplaced(op)) };
        let (n, a, b) = (a.cols(), a, b.to_f32());
        let sum = |row: usize, column: usize, x: f32| {
            let [f, g] = if place.holds(row, column, 1) { factors } else { [1.0f32, 1.0] };
            f * x + g * b[row * n + column]
        };
        let sum: HostTensor = each(a, sum);
        Ok(sum)
    });
    let kind = Kind::new(format!("{what} at {stage}, {}", place.words()), stage, mistake, &["residual"]).says([says]);
    let (may_be_open, patterns) = (place.is_small(), place.patterns());
    Kind { graded: true, decoded: place.in_every_call(), may_be_open, patterns, ..kind }
}
