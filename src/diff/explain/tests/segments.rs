//! Searches inside a segment, and where they end.

use super::*;
use crate::backend::{NamedContract, Shown};
use crate::diff::explain::segment::{MOST_SPENT, SegmentEval, SegmentExplanation, explain_segment};
use crate::diff::segment::{Layers, Log, Step};

/// A projection whose norm was left out, where the norm is not shown: what a search finds that may cost so much.
fn without_its_norm(most_spent: u64) -> SegmentExplanation {
    let w = world();
    let contracts = NamedContract::of(&OracleBackend::new());
    let mut log = Log::new(Layers { layout: w.model.config.layout(), count: w.model.config.layers });
    let (norm, q) = (Site::layer(0, Stage::AttnNorm), Site::layer(0, Stage::QProj));
    for (site, shown) in [(Site::model(Stage::Embedding), Shown::All), (norm, Shown::Nothing), (q, Shown::All)] {
        let op = w.op(site);
        let (exact, floor) = judge(&op);
        let exact = Rc::new(exact);
        let at = At { site, start: 0 };
        log.push(Step {
            at,
            op: op.keep(),
            value: exact.clone(),
            exact,
            floor: floor.into(),
            shown,
            alternatives: Vec::new(),
        });
    }
    let output = made(&Op::MatMul { x: w.value(norm, Stage::LayerOut), weight: w.weight(q) });
    let last = log.steps.last().unwrap();
    let (exact, floor) = (last.exact.clone(), last.floor.clone());
    let eval = SegmentEval {
        log: &log,
        contracts: &contracts,
        output: &output,
        exact: &exact,
        allowed: &floor,
        ids: None,
        config: &w.model.config,
        weights: &w.model.weights,
        most_spent,
    };
    explain_segment(&eval).unwrap()
}

#[test]
fn a_search_ends_where_it_has_cost_what_it_may_and_says_what_it_left() {
    let whole = without_its_norm(MOST_SPENT);
    assert!(whole.fits.iter().any(|fit| fit.id == "norm-missing"), "{whole:?}");
    assert!(whole.tried > 10 && whole.untried == 0, "{whole:?}");
    // The first variant is tried, whatever it costs; it happens to be the mistake.
    let cut = without_its_norm(1);
    assert!(cut.tried == 1 && cut.untried > 10, "{cut:?}");
}
