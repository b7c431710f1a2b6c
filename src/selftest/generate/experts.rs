//! Mistakes of routing and of experts: which are chosen, their weights, their sum, their activation.

use std::rc::Rc;

use super::{Draw, Kind, by, changed, each, in_kernels, misplaced, place};
use crate::diff::locate::PatternKind as P;
use crate::op::{HostTensor, Op, Stage};
use crate::selftest::faulty::FaultScope;
use crate::selftest::test_model::POSITIONS;

/// The sum of the chosen experts' weights.
pub(super) fn weighted(draw: &mut Draw) -> Kind {
    let eps = draw.of(&[1e-4, 3e-3, 0.05, 1.0]);
    let slot = draw.below(draw.slots());
    let (what, divisor, says) = match draw.below(3) {
        0 => (
            format!("weights divided by their sum and {eps}"),
            format!("(sum + {eps:?})"),
            format!("weights divided by their sum plus {eps:e}"),
        ),
        1 => {
            let what = format!("only slot {slot} renormalised");
            (what.clone(), format!("select(1.0, sum, k == {slot}u)"), what)
        }
        _ => ("weights not renormalised".into(), "1.0".to_string(), "weights that are not renormalised".into()),
    };
    let edit = ("chosen(t, k) / sum", format!("chosen(t, k) / {divisor}"));
    let by = in_kernels(vec![("router_weights", vec![edit])]);
    Kind::new(what, Stage::RouterWeights, by, &["renormalisation"]).says([says]).in_decoding_too()
}

/// Experts' weights of others.
pub(super) fn chosen(draw: &mut Draw) -> Kind {
    let off = 1 + draw.below(7) as u32;
    let stage = draw.of(&[Stage::ExpertGate, Stage::ExpertUp, Stage::ExpertDown]);
    let from = draw.below(4);
    let all = draw.one_in(4);
    let mistake = by(move |engine, op| {
        let Op::ExpertMatMul { ref x, ref ids, weight } = *op else { return Err(misplaced(op)) };
        let (k, experts) = (ids.cols(), weight.experts as u32);
        let id = |(i, id): (usize, &u32)| match i / k >= from {
            true if all => off % experts,
            true => (id + off) % experts,
            false => *id,
        };
        let ids = HostTensor::u32(&ids.shape, ids.ids().iter().enumerate().map(id).collect());
        engine.run(&Op::ExpertMatMul { x: x.clone(), ids: Rc::new(ids), weight })
    });
    let which = if all { format!("expert {off}") } else { format!("expert e + {off}") };
    let says = match all {
        true => vec![format!("the weights of expert {off} for whatever was chosen")],
        // Of 8 experts e + 5 is e − 3.
        false => vec![format!("the weights of expert e + {off}"), format!("the weights of expert e − {}", 8 - off)],
    };
    let kind =
        Kind::new(format!("{which} at {stage}, rows from {from}"), stage, mistake, &["expert-offset"]).says(says);
    let scope = if from == 0 && !all && draw.one_in(2) { FaultScope::Expert } else { FaultScope::All };
    if scope != FaultScope::Expert {
        return Kind { scope, ..kind }.graded();
    }
    // Of one expert no rule is seen.
    let says = [format!("the weights of expert {{e + {off}}} for those of expert {{e}}")];
    Kind { scope, patterns: ONE_EXPERT, ..kind.says(says) }.graded()
}

/// What says that only one expert is wrong: its rows may be a position's, or a slot's.
const ONE_EXPERT: &[P] = &[P::Expert, P::Position, P::LastPosition, P::Slot];

/// Experts' outputs with other weights, at some positions.
pub(super) fn combined(draw: &mut Draw) -> Kind {
    let modulus = 1 + draw.below(3);
    let at = draw.below(modulus);
    let k = draw.slots();
    type Changed = fn(&mut [f32]);
    let (what, change, says): (_, Changed, &str) = draw.of(&[
        ("the weights in reverse", (|w| w.reverse()) as Changed, "the weights in reverse order of the slots"),
        ("the weights of the next slot", |w| w.rotate_left(1), "the weights of the next slot"),
        ("no weights", |w| w.fill(1.0), "the experts' sum without their weights"),
        ("the first slot's weight for all", |w| w.fill(w[0]), "the weight of the first slot for every slot"),
        ("only the first expert", |w| w[1..].fill(0.0), "only the first chosen expert, with its weight"),
    ]);
    // Of two slots there is one other order.
    let says = if k == 2 && what == "the weights of the next slot" {
        "the weights in reverse order of the slots"
    } else {
        says
    };
    let mistake = by(move |engine, op| {
        let Op::Combine { down, weights } = op else { return Err(misplaced(op)) };
        let mut values = weights.to_f32();
        let rows = values.chunks_exact_mut(k).enumerate().filter(|(row, _)| row % modulus == at);
        rows.for_each(|(_, row)| change(row));
        let weights = Rc::new(HostTensor::f32(&weights.shape, values));
        engine.run(&Op::Combine { down: down.clone(), weights })
    });
    Kind::new(format!("{what}, positions {at} mod {modulus}"), Stage::MoeOut, mistake, &["combine"])
        .says([says])
        .graded()
}

/// Inputs of other rows or slots.
pub(super) fn slots(draw: &mut Draw) -> Kind {
    let (stage, per_slot) = draw.of(&[(Stage::ExpertGate, false), (Stage::ExpertUp, false), (Stage::ExpertDown, true)]);
    let n = 1 + draw.below(POSITIONS - 1);
    let k = draw.slots();
    let mistake = by(move |engine, op| {
        let Op::ExpertMatMul { ref x, ref ids, weight } = *op else { return Err(misplaced(op)) };
        let (cols, values) = (x.cols(), x.to_f32());
        let of = |row: usize| match per_slot {
            true => row / k * k + k - 1 - row % k,
            false => row % n,
        };
        let x = changed(x, |row, i, _| values[of(row) * cols + i]);
        engine.run(&Op::ExpertMatMul { x, ids: ids.clone(), weight })
    });
    let what = if per_slot { "the slots' inputs in reverse".into() } else { format!("the input of rows modulo {n}") };
    let mut says = vec![format!("the input of rows modulo {n}")];
    match (per_slot, n) {
        (true, _) => says = vec!["the inputs of the position's slots in reverse".into()],
        // Of the last row alone it is the first.
        (false, 1 | 6) => says.push("the input of the first row".into()),
        _ => {}
    }
    Kind::new(format!("{what} at {stage}"), stage, mistake, &["input-row", "wrapped", "misplaced"]).says(says)
}

/// Another activation, or gate and up exchanged.
pub(super) fn activated(draw: &mut Draw) -> Kind {
    type Activation = fn(f32) -> f32;
    let gelu: Activation = |x| 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044715 * x * x * x)).tanh());
    let relu: Activation = |x| x.max(0.0);
    let sigmoid: Activation = |x| 1.0 / (1.0 + (-x).exp());
    let none: Activation = |x| x;
    let silu: Activation = |x| x / (1.0 + (-x).exp());
    let (what, f, says) = draw.of(&[
        ("gelu", gelu, "gelu, by tanh, for"),
        ("relu", relu, "relu for"),
        ("a sigmoid", sigmoid, "sigmoid for"),
        ("no activation", none, "no activation"),
        ("gate and up exchanged", silu, "gate and up swapped"),
    ]);
    let exchanged = what == "gate and up exchanged";
    let stage = Stage::ExpertAct;
    let mistake = by(move |_, op| {
        let Op::SwiGlu { gate, up, .. } = op else { return Err(misplaced(op)) };
        let (gate, up) = if exchanged { (up, gate) } else { (gate, up) };
        let (n, up) = (gate.cols(), up.to_f32());
        Ok(each(gate, |row, column, x| f(x) * up[row * n + column]))
    });
    let explained: &'static [&'static str] = if exchanged { &["gate-up"] } else { &["activation"] };
    let kind =
        Kind::new(format!("{what} at {stage}"), stage, mistake, explained).says([says]).graded().in_decoding_too();
    let scope = if draw.one_in(3) { FaultScope::Row(draw.below(POSITIONS)) } else { FaultScope::All };
    let patterns = if scope == FaultScope::All { kind.patterns } else { place::ROWS };
    Kind { scope, patterns, decoded: scope == FaultScope::All, ..kind }
}
