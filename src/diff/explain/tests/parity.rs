//! One formula a stage: over the whole table of operations, what an explanation takes for the stated stage has the oracle's values,
//! and its floor is the floor that verdicts are made with.

use super::super::case::Case;
use super::super::{attention, linear, norm, pointwise, rope, routing, weights};
use super::*;
use crate::backend::cases::{self, Shape};
use crate::op::Data;

/// The stage as its operation says, as a variant; `None` for operations that make no stage.
fn stated<'a>(case: &'a Case<'a>) -> Option<Variant<'a>> {
    let (contract, lambda) = (case.scene.contract, case.lambda);
    let one = |variants: Vec<Variant<'a>>| variants.into_iter().next();
    match case.scene.op {
        Op::Embed { table, tokens } => {
            let rows = tokens.iter().map(|t| *t as usize).collect();
            Some(weights::embedding(case, "", rows, linear::as_it_is(table)))
        }
        Op::MatMul { .. } | Op::ExpertMatMul { .. } => Some(linear::Linear::stated(case)?.0.variant(case, "")),
        Op::RmsNorm { .. } => Some(norm::Norm::stated(case).unwrap()?.variant(case, "")),
        Op::Rope { .. } => {
            one(rope::angles(case, "", |stated, place| rope::position(stated, place) * stated.step(place.pair)))
        }
        Op::AttnScores { .. } => Some(attention::Scores::stated(case)?.variant(case, "")),
        Op::AttnProbs { .. } => {
            one(attention::probs(case, "", move |row, own| attention::softmax(&row[..own], &contract, lambda)))
        }
        Op::AttnContext { .. } => Some(attention::Context::stated(case)?.variant(case, "")),
        Op::Add { .. } => {
            let (a, b) = (&case.inputs[0], &case.inputs[1]);
            Some(Variant::each("", move |i| pointwise::sum(case, a[i], b[i])))
        }
        Op::SwiGlu { .. } => one(pointwise::activation(
            case,
            "",
            |g, u| pointwise::silu(g) * u,
            |g, u| pointwise::silu(g) * u * pointwise::sigmoid(-g),
        )),
        Op::RouterProbs { .. } => {
            let cols = case.cols();
            let row = move |t: usize| attention::softmax(&case.inputs[0][t * cols..][..cols], &contract, lambda);
            Some(Variant::rows("", cols, row))
        }
        Op::RouterTopK { .. } => one(routing::choice(case, "", |row, k, _| routing::largest(row, k))),
        Op::RouterWeights { renormalise, .. } => {
            let renormalise = *renormalise;
            one(routing::weights(case, "", move |p, ids| {
                let chosen: Vec<f64> = ids.iter().map(|e| p[*e]).collect();
                if renormalise {
                    routing::renormalised(&chosen, case)
                } else {
                    chosen.into_iter().map(|p| case::Point::new(p, crate::formula::rounding::TINY)).collect()
                }
            }))
        }
        Op::Combine { .. } => one(routing::combined(case, "", |_, w| w.to_vec())),
        Op::Store { .. } | Op::Rows { .. } => None,
    }
}

/// The two are evaluated in float64 by different code. Each of their values is within the floor of float64 arithmetic, which is that of
/// f32 arithmetic times 2⁻²⁹ (2⁻⁵³ for 2⁻²⁴), so they differ by at most twice that. Floors are smooth functions of values that differ by
/// so little: to 1e-12.
#[test]
fn the_stated_variant_is_the_oracle_and_its_floor_is_the_floor() {
    let model = Model::open(None).unwrap();
    let mut failures = std::collections::BTreeMap::<String, (usize, f64, f64, String)>::new();
    let ieee = Contract::ieee_f32(Order::Sequential);
    for (n, row) in cases::table().into_iter().enumerate() {
        let operands = row.build(n as u64).unwrap();
        let host = operands.op();
        let exact = evaluate(&host).unwrap();
        let slack = floor_of(&host, &ieee, &exact).unwrap();
        for contract in
            [CONTRACT, ieee, Contract { activations: crate::backend::Precision::Int8 { block: 32 }, ..ieee }]
        {
            // As they come from a backend, and as they come from a float64 trace.
            for wide in [false, true] {
                let op = host
                    .try_map(|t| {
                        let wide = wide && !matches!(t.data, Data::U32(_));
                        Ok(Rc::new(if wide { HostTensor::f64(&t.shape, t.to_f64()) } else { (*t).clone() }))
                    })
                    .unwrap();
                let borrowed = op.try_map(|t| Ok(&**t)).unwrap();
                let floor = floor_of(&borrowed, &contract, &exact).unwrap();
                let mut config = model.config.clone();
                if let Shape::Rope { head_dim, .. }
                | Shape::AttnScores { head_dim, .. }
                | Shape::AttnContext { head_dim, .. } = row.shape
                {
                    config.head_dim = head_dim;
                }
                let (site, earlier) = (row.at().site, Earlier::new());
                let (output, exact, weights) = (&exact, &exact, &model.weights);
                let scene = Scene {
                    site,
                    start: 0,
                    op: &op,
                    output,
                    exact,
                    floor: &floor,
                    contract,
                    earlier: &earlier,
                    config: &config,
                    weights,
                };
                let case = Case::new(&scene).unwrap();
                let Some(variant) = stated(&case) else {
                    assert!(!host.makes_stage(), "{row}");
                    continue;
                };
                let all: Vec<usize> = (0..exact.len()).collect();
                let points = variant.at(&all).unwrap();
                let expected = exact.to_f64();
                let mut worst = (0f64, 0f64);
                for (i, p) in points.iter().enumerate() {
                    let off = (p.value - expected[i]).abs();
                    let values = if off == 0.0 { 0.0 } else { off / (2.0 * 2f64.powi(-29) * slack[i]) };
                    let floors = if p.floor == floor[i] { 0.0 } else { (p.floor / floor[i] - 1.0).abs() };
                    worst = (worst.0.max(values), worst.1.max(floors));
                }
                if !(worst.0 <= 1.0 && worst.1 <= 1e-12) {
                    let f = failures.entry(format!("{:?} f64 {wide}", row.kind())).or_default();
                    *f = (f.0 + 1, f.1.max(worst.0), f.2.max(worst.1), row.to_string());
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
