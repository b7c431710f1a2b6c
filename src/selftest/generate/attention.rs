//! Mistakes of attention: positions, masks, heads, scales.

use super::{Draw, Kind, by, in_kernels, misplaced};
use crate::op::{HostTensor, Op, Rotation, Stage};
use crate::selftest::faults::By;
use crate::selftest::test_model::POSITIONS;

/// Positions, bases and pairs of the rotary embedding.
pub(super) fn rotated(draw: &mut Draw) -> Kind {
    let stage = draw.of(&[Stage::QRope, Stage::KRope]);
    let n = 2 + draw.below(POSITIONS - 2);
    let base = draw.of(&[2e4, 5e5, 1e7, 123456.0]);
    let index = "(p.start + head / p.heads) * p.turned";
    let table = |to: String| in_kernels(vec![("rope", vec![(index, to)])]);
    let (what, by, explained, says): (String, By, &'static [&'static str], String) = match draw.below(6) {
        0 => (
            format!("positions from {n} on are {}", n - 1),
            table(format!("min(p.start + head / p.heads, {}u) * p.turned", n - 1)),
            &["rope-table"],
            format!("rope with positions from {n} on taken as {}", n - 1),
        ),
        1 => (
            format!("positions modulo {n}"),
            table(format!("(p.start + head / p.heads) % {n}u * p.turned")),
            &["rope-table"],
            format!("rope with positions modulo {n}"),
        ),
        2 => {
            let says = format!("rope with positions off by +{n}");
            (format!("positions {n} too high"), later(n), &["rope-position"], says)
        }
        3 => {
            let (format, round) = draw.of(&[
                ("f16", (|x| half::f16::from_f64(x).to_f64()) as fn(f64) -> f64),
                ("bf16", |x| half::bf16::from_f64(x).to_f64()),
            ]);
            let says = format!("rope with frequencies in {format}");
            (format!("frequencies in {format}"), with_frequencies(round), &["rope-precision"], says)
        }
        _ => {
            let mistake = by(move |engine, op| {
                let Op::Rope { ref x, start, head_dim, rotation } = *op else { return Err(misplaced(op)) };
                let rotation = Rotation { base, ..rotation };
                engine.run(&Op::Rope { x: x.clone(), start, head_dim, rotation })
            });
            (format!("base {base}"), mistake, &["rope-base"], format!("rope with base {base} for"))
        }
    };
    Kind::new(format!("{what} at {stage}"), stage, by, explained).says([says])
}

/// Positions that are too high.
fn later(off: usize) -> By {
    by(move |engine, op| {
        let Op::Rope { ref x, start, head_dim, rotation } = *op else { return Err(misplaced(op)) };
        engine.run(&Op::Rope { x: x.clone(), start: start + off, head_dim, rotation })
    })
}

/// Angles from frequencies that were rounded.
fn with_frequencies(round: fn(f64) -> f64) -> By {
    by(move |_, op| {
        let Op::Rope { ref x, start, head_dim, rotation } = *op else { return Err(misplaced(op)) };
        let (half, cols, values) = (head_dim / 2, x.cols(), x.to_f32());
        let turned = |n: usize| {
            let (row, within) = (n / cols, n % head_dim);
            let frequency = round(rotation.base.powf(-2.0 * (within % half) as f64 / head_dim as f64));
            let (sin, cos) = ((start + row) as f64 * frequency).sin_cos();
            let (sin, cos) = (sin as f32, cos as f32);
            match within < half {
                true => values[n] * cos - values[n + half] * sin,
                false => values[n] * cos + values[n - half] * sin,
            }
        };
        Ok(HostTensor::f32(&x.shape, (0..values.len()).map(turned).collect()))
    })
}

/// Keys that are not seen, or not summed.
pub(super) fn attended(draw: &mut Draw) -> Kind {
    let n = 1 + draw.below(5);
    let stage = Stage::AttnProbs;
    let edits: (&str, String, String, &'static [&'static str], _) = match draw.below(3) {
        0 => (
            "let e = exp_f32(x[start + i] - largest);",
            format!("let e = select(0.0, exp_f32(x[start + i] - largest), i + {n}u >= n);"),
            format!("a window of {n} keys"),
            &["window", "mask"],
            vec![format!("a window of {n} keys"), "a mask that hides".into()],
        ),
        1 => (
            "sum += e;",
            format!("sum += select(0.0, e, i < {n}u);"),
            format!("a softmax over {n} keys"),
            &["k-skipped", "lanes"],
            vec![format!("only the first {n} of "), format!("only lanes 0–{} of ", n - 1)],
        ),
        _ => (
            "sum += e;",
            format!("sum += select(0.0, e, i >= {n}u);"),
            format!("a softmax without the first {n} keys"),
            // Of a position whose every key is left out nothing finite is left.
            &["k-skipped", "not-finite"],
            vec![format!("the {POSITIONS} exponentials of the sum without the first {n}"), "NaN whatever".into()],
        ),
    };
    let (from, to, what, explained, says) = edits;
    let kind = Kind::new(what, stage, in_kernels(vec![("attn_probs", vec![(from, to)])]), explained).says(says);
    Kind { finite: from != "sum += e;", ..kind }
}

/// KV heads.
pub(super) fn heads(draw: &mut Draw) -> Kind {
    let (kernel, stage) = draw.of(&[("attn_scores", Stage::AttnScores), ("attn_context", Stage::AttnContext)]);
    let n = draw.of(&[2, 3, 5, 6, 7]);
    let (what, map, says) = match draw.below(3) {
        0 => ("KV head h mod kv_heads".to_string(), "head % p.kv_heads".to_string(), "KV head h mod kv_heads".into()),
        1 => ("KV head 0 for all".into(), "0u * head".into(), "KV head 0 for every query head".into()),
        _ => (
            format!("KV head h / {n}"),
            format!("min(head / {n}u, p.kv_heads - 1u)"),
            format!("KV head h / {n}, up to the last"),
        ),
    };
    let mut says: Vec<String> = vec![says];
    // Of two KV heads that is their number.
    if what == "KV head h / 2" {
        says.push("KV head h / kv_heads for query head h".into());
    }
    let by = in_kernels(vec![(kernel, vec![("head / (p.heads / p.kv_heads)", map)])]);
    Kind::new(format!("{what} at {stage}"), stage, by, &["kv-head"]).says(says)
}

/// Scores with another scale.
pub(super) fn scaled(draw: &mut Draw) -> Kind {
    let (what, other) = draw.of(&[("no scale", 1.0), ("the scale twice", 1.0 / 64.0), ("1/D", 1.0 / 64.0)]);
    // Heads have 64 dimensions: that is 8 times the right scores, or an eighth.
    let says = match what {
        "no scale" => ["no scale at all", "8 times the right values", "√D times the right values"],
        _ => ["the scale applied twice", "0.125 times the right values", "1/√D times the right values"],
    };
    let stage = Stage::AttnScores;
    let mistake = by(move |engine, op| {
        let Op::AttnScores { ref q, ref k, start, head_dim, window, .. } = *op else { return Err(misplaced(op)) };
        let (q, k) = (q.clone(), k.clone());
        engine.run(&Op::AttnScores { q, k, start, head_dim, scale: Some(other), window })
    });
    Kind::new(format!("{what} at {stage}"), stage, mistake, &["attention-scale", "factor"])
        .says(says)
        .graded()
        .in_decoding_too()
}
