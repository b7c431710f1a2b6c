//! Faults in what only `deepseek2` has: latent attention in both its forms, products by heads, rope on the last dimensions of each head, YaRN in
//! the scale of q·k, and groups of experts.

use std::rc::Rc;
use std::sync::Arc;

use super::super::faulty::Mistake;
use super::attention::{misplaced, operation};
use super::families::WITHIN_HEADS;
use super::{By, FAULT, Fault, FaultPlace, FaultySide};
use crate::diff::locate::PatternKind as P;
use crate::error::Result;
use crate::model::{LatentHeads, LatentWeights, Mixer};
use crate::op::{GgmlType, GroupScore, Groups, HostTensor, Op, OpKind, Pairing, Rotation, Stage, Weight};

/// Absorbed, with YaRN, sigmoids, a bias and groups by their two best; and plain, with a softmax and groups by their best.
const ABSORBED: &[usize] = &[19];
const PLAIN: &[usize] = &[20];
const BOTH: &[usize] = &[19, 20];

/// The last columns of the row that is stored of a key.
const OF_KEYS: &[P] =
    &[P::WithinHead, P::ColumnRange, P::Column, P::PositionRange, P::AllButPosition, P::ColumnResidue, P::WholeTensor];
/// Experts where the choice differs, in some positions and slots.
const OTHER_CHOICE: &[P] = &[
    P::WholeTensor,
    P::Scattered,
    P::Position,
    P::LastPosition,
    P::Slot,
    P::PositionRange,
    P::AllButPosition,
    P::Element,
];
/// What each head keeps, or is made of.
const OF_HEADS: &[P] = &[P::WholeTensor, P::WithinHead, P::Heads, P::AllButHead];

/// The weights of a layer's attention.
fn latent<'a>(place: &FaultPlace<'a>) -> Option<&'a LatentWeights> {
    match &place.weights().mixer {
        Mixer::Latent(latent) => Some(latent),
        _ => None,
    }
}

/// Matrices of heads, each of another head.
fn of_heads(weight: &Weight, of: fn(usize, usize) -> usize) -> Result<Arc<Weight>> {
    let rows = (0..weight.experts).flat_map(|h| (0..weight.rows).map(move |row| (of(h, weight.experts), row)));
    let bytes = rows.flat_map(|(head, row)| weight.row(head, row).to_vec()).collect();
    Weight::from_vec("heads.weight", weight.ty, [weight.cols, weight.rows, weight.experts], bytes)
}

/// A product with the matrices of other heads.
fn other_heads(of: fn(usize, usize) -> usize) -> Mistake {
    Box::new(move |engine, op| {
        let Op::HeadMatMul { x, weight, head_dim, keep } = op else { return Err(misplaced(op)) };
        let weight = &of_heads(weight, of)?;
        engine.run(&Op::HeadMatMul { x: x.clone(), weight, head_dim: *head_dim, keep: *keep })
    })
}

/// The right result, with each head's columns changed: those of the products, and those that are kept.
fn columns(change: fn(&mut [f32], usize)) -> Mistake {
    Box::new(move |engine, op| {
        let Op::HeadMatMul { weight, head_dim, keep: true, .. } = op else { return Err(misplaced(op)) };
        let right = engine.run(op)?;
        let mut values = right.to_f32();
        values.chunks_exact_mut(weight.rows + head_dim - weight.cols).for_each(|head| change(head, weight.rows));
        Ok(HostTensor::f32(&right.shape, values))
    })
}

/// A product with rows of the weight that holds keys and values, each at another place: from head, row, and numbers of heads, keys and values.
fn other_rows(place: &FaultPlace<'_>, keys: bool, at: fn(usize, usize, [usize; 3]) -> usize) -> Mistake {
    let heads = latent(place).map(|latent| latent.heads.clone());
    Box::new(move |engine, op| {
        let (Op::HeadMatMul { x, weight, head_dim, keep }, Some(LatentHeads::Plain { k, v })) = (op, &heads) else {
            return Err(misplaced(op));
        };
        let sizes = [k.experts, k.rows, v.rows];
        let row = |joint: usize| match (joint / (k.rows + v.rows), joint % (k.rows + v.rows)) {
            (head, within) if within < k.rows => k.row(head, within),
            (head, within) => v.row(head, within - k.rows),
        };
        let own = if keys { k.rows } else { v.rows };
        let places = (0..k.experts).flat_map(|head| (0..own).map(move |n| at(head, n, sizes)));
        let bytes = places.flat_map(|joint| row(joint).to_vec()).collect();
        let dims = [weight.cols, weight.rows, weight.experts];
        let weight = &Weight::from_vec("rows.weight", weight.ty, dims, bytes)?;
        engine.run(&Op::HeadMatMul { x: x.clone(), weight, head_dim: *head_dim, keep: *keep })
    })
}

/// q·k with another scale, from the stated one, D as it is multiplied, and the one of a head's width.
fn scaled(place: &FaultPlace<'_>, to: fn(f64, usize, f64) -> f64) -> Mistake {
    let own = 1.0 / (place.model.config.head_dim as f64).sqrt();
    Box::new(move |engine, op| {
        let Op::AttnScores { q, k, start, head_dim, scale, window } = op else { return Err(misplaced(op)) };
        let scale = Some(to(scale.unwrap_or(own), *head_dim, own));
        let (q, k) = (q.clone(), k.clone());
        engine.run(&Op::AttnScores { q, k, start: *start, head_dim: *head_dim, scale, window: *window })
    })
}

/// The operand itself.
fn as_it_was(_: &FaultPlace<'_>) -> Mistake {
    Box::new(|_, op| match op {
        Op::RmsNorm { x, .. } | Op::Rope { x, .. } => Ok(HostTensor::f32(&x.shape, x.to_f32())),
        _ => Err(misplaced(op)),
    })
}

/// A choice from other groups.
fn grouped(to: fn(Groups) -> Option<Groups>) -> Mistake {
    Box::new(move |engine, op| {
        let Op::RouterTopK { probs, k, groups: Some(groups) } = op else { return Err(misplaced(op)) };
        engine.run(&Op::RouterTopK { probs: probs.clone(), k: *k, groups: to(*groups) })
    })
}

/// Of rows of heads, the columns of each moved on, the last to the front.
fn last_first(x: &HostTensor, head_dim: usize, by: usize) -> Rc<HostTensor> {
    let mut values = x.to_f32();
    values.chunks_exact_mut(head_dim).for_each(|head| head.rotate_left(by));
    Rc::new(HostTensor::f32(&x.shape, values))
}

/// One of latent attention's, on the CPU where it does not say otherwise.
const LATENT: Fault = Fault { subject: FaultySide::Cpu, models: BOTH, layers: [1, 1], ..FAULT };
const CHOICE: Fault =
    Fault { stage: Stage::RouterIds, patterns: OTHER_CHOICE, explained: &["router-groups"], ..LATENT };

pub(super) static FAULTS: &[Fault] = &[
    Fault {
        name: "deepseek-rope-first",
        what: "the first dimensions of each head turn, not the last",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Rope { x, start, head_dim, rotation } => {
                    Some(Op::Rope { x, start, head_dim, rotation: Rotation { first: 0, ..rotation } })
                }
                _ => None,
            })
        }),
        stage: Stage::QRope,
        patterns: WITHIN_HEADS,
        explained: &["rope-part"],
        says: &["rope on the first 32 of a head's 96 dimensions, not on the last"],
        subject: FaultySide::Gpu,
        ..LATENT
    },
    Fault {
        name: "deepseek-rope-neox",
        what: "of the part of a key that turns value i turns with i + R/2 (NEOX) where it is 2i with 2i + 1 (NORM)",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Rope { x, start, head_dim, rotation } => {
                    let rotation = Rotation { pairing: Pairing::Neox, ..rotation };
                    Some(Op::Rope { x, start, head_dim, rotation })
                }
                _ => None,
            })
        }),
        stage: Stage::KRope,
        layers: [0, 0],
        patterns: OF_KEYS,
        explained: &["rope-pairing"],
        ..LATENT
    },
    Fault {
        name: "deepseek-rope-whole",
        what: "all of each head turns where its last third does",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::Rope { x, start, head_dim, rotation } => {
                    let rotation = Rotation { dims: None, first: 0, ..rotation };
                    Some(Op::Rope { x, start, head_dim, rotation })
                }
                _ => None,
            })
        }),
        models: PLAIN,
        stage: Stage::QRope,
        patterns: WITHIN_HEADS,
        explained: &["rope-part"],
        says: &["rope on all 96 dimensions of a head, of which 32 turn"],
        ..LATENT
    },
    Fault {
        name: "deepseek-key-unturned",
        what: "the part of a key that has a position is not turned",
        by: By::Operation(as_it_was),
        stage: Stage::KRope,
        patterns: OF_KEYS,
        explained: &["rope-missing"],
        ..LATENT
    },
    Fault {
        name: "deepseek-scale-of-the-row",
        what: "q·k is divided by the root of how many columns are multiplied, without YaRN's magnitude",
        by: By::Operation(|place| scaled(place, |_, d, _| 1.0 / (d as f64).sqrt())),
        models: ABSORBED,
        stage: Stage::AttnScores,
        explained: &["attention-scale"],
        says: &["the scale 1/√160, of what is stored of a key, without YaRN's"],
        ..LATENT
    },
    Fault {
        name: "deepseek-scale-without-yarn",
        what: "q·k is not multiplied by YaRN's magnitude",
        by: By::Operation(|place| scaled(place, |_, _, own| own)),
        models: ABSORBED,
        stage: Stage::AttnScores,
        explained: &["attention-scale"],
        says: &["the scale 1/√96 without YaRN's"],
        ..LATENT
    },
    Fault {
        name: "deepseek-scale-yarn-once",
        what: "q·k is multiplied by YaRN's magnitude once, not twice",
        by: By::Operation(|place| scaled(place, |stated, _, own| (stated * own).sqrt())),
        models: ABSORBED,
        stage: Stage::AttnScores,
        layers: [0, 0],
        explained: &["attention-scale"],
        says: &["YaRN's magnitude"],
        ..LATENT
    },
    Fault {
        name: "deepseek-scale-unturned",
        what: "q·k is divided by the root of how many columns do not turn",
        by: By::Operation(|place| scaled(place, |stated, _, own| stated / own / 8.0)),
        models: PLAIN,
        stage: Stage::AttnScores,
        explained: &["attention-scale"],
        says: &["the scale 1/√64, of the columns that do not turn"],
        ..LATENT
    },
    Fault {
        name: "deepseek-latent-norm-missing",
        what: "the latent is not normalised",
        by: By::Operation(as_it_was),
        stage: Stage::KvNorm,
        patterns: OF_KEYS,
        explained: &["norm-missing"],
        ..LATENT
    },
    Fault {
        name: "deepseek-latent-norm-whole",
        what: "latent and key are normalised as one row",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let Op::RmsNorm { x, weight, eps, keep } = op else { return Err(misplaced(op)) };
                let ones = std::iter::repeat_n(1f32, *keep);
                let bytes = weight.f32s().chain(ones).flat_map(f32::to_le_bytes).collect();
                let weight = &Weight::from_vec("whole.weight", GgmlType::F32, [weight.cols + keep, 1, 1], bytes)?;
                engine.run(&Op::RmsNorm { x: x.clone(), weight, eps: *eps, keep: 0 })
            })
        }),
        stage: Stage::KvNorm,
        explained: &["norm-group"],
        says: &["one norm over the whole row, of the 32 last columns, too"],
        ..LATENT
    },
    Fault {
        name: "deepseek-latent-norm-eps",
        what: "the latent's norm has eps 1e-3",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::RmsNorm { x, weight, keep, .. } => Some(Op::RmsNorm { x, weight, eps: 1e-3, keep }),
                _ => None,
            })
        }),
        stage: Stage::KvNorm,
        layers: [0, 0],
        patterns: OF_KEYS,
        explained: &["norm-eps"],
        says: &["the norm with eps 1e-3 for"],
        ..LATENT
    },
    Fault {
        name: "deepseek-query-norm-missing",
        what: "what queries are projected through is not normalised",
        by: By::Operation(as_it_was),
        models: ABSORBED,
        stage: Stage::QANorm,
        explained: &["norm-missing"],
        ..LATENT
    },
    Fault {
        name: "deepseek-next-head",
        what: "queries are taken to the latents by the matrix of the next head",
        by: By::Operation(|_| other_heads(|h, n| (h + 1) % n)),
        models: ABSORBED,
        stage: Stage::QAbsorbed,
        patterns: OF_HEADS,
        explained: &["head-matrix"],
        says: &["the matrix of the next head"],
        subject: FaultySide::Gpu,
        ..LATENT
    },
    Fault {
        name: "deepseek-heads-reversed",
        what: "the latents' sums are taken to values by the matrices of the heads in reverse",
        by: By::Operation(|_| other_heads(|h, n| n - 1 - h)),
        models: ABSORBED,
        stage: Stage::AttnContext,
        op: Some(OpKind::HeadMatMul),
        patterns: OF_HEADS,
        explained: &["head-matrix"],
        says: &["the matrix of the heads in reverse"],
        ..LATENT
    },
    Fault {
        name: "deepseek-turned-in-front",
        what: "the columns of a query that turn are in front of those of the latent",
        by: By::Operation(|_| columns(|head, products| head.rotate_left(products))),
        models: ABSORBED,
        stage: Stage::QAbsorbed,
        patterns: OF_HEADS,
        explained: &["head-kept"],
        says: &["the query's columns that turn in front of the others"],
        ..LATENT
    },
    Fault {
        name: "deepseek-turned-lost",
        what: "the columns of a key that turn are zeros",
        by: By::Operation(|_| columns(|head, products| head[products..].fill(0.0))),
        models: PLAIN,
        stage: Stage::KUp,
        patterns: OF_HEADS,
        explained: &["head-kept", "zero"],
        ..LATENT
    },
    Fault {
        name: "deepseek-keys-then-values",
        what: "rows of the weight of keys and values are taken as all keys and then all values: keys",
        by: By::Operation(|place| other_rows(place, true, |head, n, [_, keys, _]| head * keys + n)),
        models: PLAIN,
        stage: Stage::KUp,
        patterns: OF_HEADS,
        explained: &["head-matrix"],
        says: &["rows of the weight of keys and values as all heads' keys and then all values"],
        ..LATENT
    },
    Fault {
        name: "deepseek-values-after-keys",
        what: "rows of the weight of keys and values are taken as all keys and then all values: values",
        by: By::Operation(|place| {
            other_rows(place, false, |head, n, [heads, keys, values]| heads * keys + head * values + n)
        }),
        models: PLAIN,
        stage: Stage::VUp,
        layers: [0, 0],
        patterns: OF_HEADS,
        explained: &["head-matrix"],
        says: &["rows of the weight of keys and values as all heads' keys and then all values"],
        ..LATENT
    },
    Fault {
        name: "deepseek-values-of-the-key",
        what: "values are made of the last columns of latent and key",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let Op::HeadMatMul { x, weight, head_dim, keep } = op else { return Err(misplaced(op)) };
                let x = last_first(x, *head_dim, head_dim - weight.cols);
                engine.run(&Op::HeadMatMul { x, weight, head_dim: *head_dim, keep: *keep })
            })
        }),
        models: PLAIN,
        stage: Stage::VUp,
        explained: &["head-matrix"],
        says: &["the last 128 of a head's 160 columns for its first"],
        ..LATENT
    },
    Fault {
        name: "deepseek-latent-of-the-key",
        what: "the last columns of latent and key are stored for the latent",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let Op::Store { cache, x, start } = op else { return Err(misplaced(op)) };
                let x = last_first(x, x.cols(), x.cols() - cache.cols());
                engine.run(&Op::Store { cache: cache.clone(), x, start: *start })
            })
        }),
        models: ABSORBED,
        stage: Stage::KvNorm,
        op: Some(OpKind::Store),
        seen_at: Some(Stage::AttnLatent),
        explained: &["attention-operand"],
        says: &["the last 128 columns of latent and key for the first, before rope"],
        ..LATENT
    },
    Fault {
        name: "deepseek-groups-ignored",
        what: "experts are chosen among all, not among those of some groups",
        by: By::Operation(|_| grouped(|_| None)),
        models: BOTH,
        says: &["a choice among all experts, without groups"],
        ..CHOICE
    },
    Fault {
        name: "deepseek-groups-by-one",
        what: "groups are kept by their best expert, not by their two best",
        by: By::Operation(|_| grouped(|groups| Some(Groups { by: GroupScore::Max, ..groups }))),
        models: ABSORBED,
        says: &["groups kept by their largest, not by the sum of two"],
        ..CHOICE
    },
    Fault {
        name: "deepseek-groups-one-fewer",
        what: "a group fewer is kept than should be",
        by: By::Operation(|_| grouped(|groups| Some(Groups { used: groups.used - 1, ..groups }))),
        models: PLAIN,
        says: &["1 of the groups kept for 2"],
        ..CHOICE
    },
    Fault {
        name: "deepseek-groups-one-more",
        what: "a group more is kept than should be",
        by: By::Operation(|_| grouped(|groups| Some(Groups { used: groups.used + 1, ..groups }))),
        models: BOTH,
        says: &["3 of the groups kept for 2"],
        ..CHOICE
    },
    Fault {
        name: "deepseek-weights-unscaled",
        what: "the experts' weights are not multiplied by their scale",
        by: By::Operation(|_| {
            operation(|op| match op {
                Op::RouterWeights { probs, ids, renormalise, softmax, .. } => {
                    Some(Op::RouterWeights { probs, ids, renormalise, softmax, scale: 1.0 })
                }
                _ => None,
            })
        }),
        models: BOTH,
        stage: Stage::RouterWeights,
        explained: &["weights-scale"],
        says: &["weights that are not multiplied by"],
        ..LATENT
    },
];
