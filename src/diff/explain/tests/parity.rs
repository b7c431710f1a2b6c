//! One formula a stage: over the whole table of operations, the stated formula has the oracle's values, and its floor where hypotheses
//! ask for it, element by element, is the floor that verdicts are made with, which is made of all elements in one pass.

use super::super::case::Evidence;
use super::*;
use crate::backend::Precision;
use crate::backend::cases;
use crate::formula::attention::{Context, Scores};
use crate::formula::delta::Delta;
use crate::formula::embed::Embedding;
use crate::formula::exact::exact;
use crate::formula::floor::floors_of;
use crate::formula::linear::Linear;
use crate::formula::linear_attention::{Convolution, Decay};
use crate::formula::norm::Norm;
use crate::formula::pointwise::{Gated, Sum};
use crate::formula::rope::Rope;
use crate::formula::routing::{ChosenExperts, Combined, ExpertWeights};
use crate::formula::softmax::Softmax;
use crate::op::Data;

/// The stage as its operation says, as a variant; `None` for operations that make no stage.
fn stated<'a>(case: &'a Evidence<'a>) -> Option<Variant<'a>> {
    macro_rules! first_of {
        ($($formula:ident),*) => {
            None$(.or_else(|| case.changed("", |_: &mut $formula<'a>| ()).unwrap()))*
        };
    }
    first_of!(
        Linear,
        Embedding,
        Norm,
        Rope,
        Scores,
        Softmax,
        Context,
        Convolution,
        Decay,
        Delta,
        Sum,
        ChosenExperts,
        ExpertWeights,
        Gated,
        Combined
    )
}

/// How far two floors are apart, relative to the second.
fn apart(a: f64, b: f64) -> f64 {
    if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a / b - 1.0).abs() }
}

/// The two are evaluated in float64 by different code. Each of their values is within the floor of float64 arithmetic, which is that of
/// f32 arithmetic times 2⁻²⁹ (2⁻⁵³ for 2⁻²⁴), so they differ by at most twice that. A floor is the same number whichever way it is
/// asked for: with others, alone, and under one contract or several.
#[test]
fn the_stated_formula_is_the_oracle_and_its_floor_is_the_floor() {
    let model = Model::open(None).unwrap();
    let mut failures = std::collections::BTreeMap::<String, (usize, f64, f64, String)>::new();
    let ieee = Contract::ieee_f32(Order::Sequential);
    let contracts = [CONTRACT, ieee, Contract { activations: Precision::Int8 { block: 32 }, ..ieee }];
    for (n, row) in cases::table().into_iter().enumerate() {
        let operands = row.build(n as u64).unwrap();
        let host = operands.op();
        let exacts = contracts.map(|c| exact(&host, &c).unwrap());
        let slack = floor_of(&host, &ieee, &exacts[1]).unwrap();
        // As they come from a backend, and as they come from a float64 trace.
        for wide in [false, true] {
            let op = host
                .try_map(|t| {
                    let wide = wide && !matches!(t.data, Data::U32(_));
                    Ok(Rc::new(if wide { HostTensor::f64(&t.shape, t.to_f64()) } else { (*t).clone() }))
                })
                .unwrap();
            let borrowed = op.try_map(|t| Ok(&**t)).unwrap();
            let floors = floors_of(&borrowed, [&contracts[0], &contracts[1], &contracts[2]], &exacts[1]).unwrap();
            for ((contract, floor), exact) in contracts.into_iter().zip(&floors).zip(&exacts) {
                let expected = exact.to_f64();
                let scene = StageEval {
                    site: row.at().site,
                    start: 0,
                    op: &op,
                    output: exact,
                    exact,
                    floor,
                    contract,
                    earlier: &Upstream::new(),
                    config: &model.config,
                    weights: &model.weights,
                };
                let case = Evidence::new(&scene).unwrap();
                let Some(variant) = stated(&case) else {
                    assert!(!host.makes_stage(), "{row}");
                    continue;
                };
                let mut worst = (0f64, 0f64);
                for step in [1, 7] {
                    let indices: Vec<usize> = (0..exact.len()).step_by(step).collect();
                    let points = variant.at(&indices).unwrap();
                    for (i, p) in indices.into_iter().zip(points) {
                        let off = (p.value - expected[i]).abs();
                        let values = if off == 0.0 { 0.0 } else { off / (2.0 * 2f64.powi(-29) * slack[i]) };
                        worst = (worst.0.max(values), worst.1.max(apart(p.floor, floor[i])));
                    }
                }
                if !(worst.0 <= 1.0 && worst.1 <= 1e-15) {
                    let f = failures.entry(format!("{:?} f64 {wide}", row.kind())).or_default();
                    *f = (f.0 + 1, f.1.max(worst.0), f.2.max(worst.1), row.to_string());
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
