//! The table of operation cases, on every backend that this machine has, against the float64 oracle: each element within the rounding
//! floor that the backend's contract allows, ids equal.

use std::collections::BTreeMap;

use crate::gpu::common::each_choice;
use twinscope::backend::cases::{self, OpCase};
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use twinscope::backend::oracle::OracleBackend;
use twinscope::backend::{Backend, Need};
use twinscope::formula::floor::check_against_oracle;
use twinscope::op::OpKind;

/// Whether `backend` says that it cannot run the case's weight type.
fn refused<B: Backend>(backend: &B, case: &OpCase, operands: &cases::Operands) -> bool {
    let op = operands.op();
    op.weight().is_some_and(|w| {
        let need = Need { op: case.kind(), ty: w.ty, cols: w.cols, name: w.name.clone(), experts: None };
        !backend.unsupported(&[need]).is_empty()
    })
}

/// Runs every case on `backend`. Returns the ratios by kind of operation, and how many cases it refused by type.
fn check<B: Backend>(backend: &mut B, seed: u64) -> (BTreeMap<OpKind, Vec<f64>>, BTreeMap<String, usize>) {
    check_those(backend, seed, |_| true)
}

/// The same of some kinds.
fn check_those<B: Backend>(
    backend: &mut B,
    seed: u64,
    wanted: fn(OpKind) -> bool,
) -> (BTreeMap<OpKind, Vec<f64>>, BTreeMap<String, usize>) {
    let (mut ratios, mut refusals) = (BTreeMap::<OpKind, Vec<f64>>::new(), BTreeMap::new());
    let mut failures = Vec::new();
    let name = backend.info().backend;
    for (i, case) in cases::table().iter().enumerate().filter(|(_, case)| wanted(case.kind())) {
        let operands = case.build(seed + i as u64).unwrap();
        if refused(backend, case, &operands) {
            *refusals.entry(case.ty().map_or("?".into(), |ty| ty.to_string())).or_default() += 1;
            continue;
        }
        let result = cases::run(backend, case.at(), &operands);
        let checked = result.and_then(|r| check_against_oracle(&operands.op(), &backend.contract(case.kind()), &r));
        match checked {
            Ok(checked) if checked.ratio.explained() => ratios.entry(case.kind()).or_default().push(checked.ratio.max),
            Ok(checked) => failures.push(format!("{case}: {:?}", checked.ratio)),
            Err(e) => failures.push(format!("{case}: {e}")),
        }
    }
    for (kind, ratios) in &mut ratios {
        ratios.sort_by(f64::total_cmp);
        let (n, median, largest) = (ratios.len(), ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
        println!("{name:12} {kind:?}: {n} cases, median {median:.3}, largest {largest:.3}");
    }
    assert!(failures.is_empty(), "{name}: {} cases failed:\n{}", failures.len(), failures.join("\n"));
    (ratios, refusals)
}

/// Every operation was checked, and the floors of those that round are not far above what a correct kernel does. A case without
/// any error (one term, a copy) says nothing of its floor.
fn assert_bites(ratios: &BTreeMap<OpKind, Vec<f64>>) {
    assert_eq!(ratios.len(), OpKind::ALL.len());
    for (kind, ratios) in ratios {
        use OpKind::*;
        let rounded: Vec<f64> = ratios.iter().copied().filter(|r| *r > 0.0).collect();
        match kind {
            Store | Rows | RouterTopK => assert!(rounded.is_empty(), "{kind:?} moves values, exactly"),
            Embed => {} // exact, or rounded once as the oracle does
            _ => {
                assert!(rounded.len() * 4 > ratios.len(), "{kind:?}: hardly any case rounds");
                assert!(rounded[rounded.len() / 2] >= 0.01, "{kind:?}: median ratio {}", rounded[rounded.len() / 2]);
            }
        }
    }
}

#[test]
fn the_oracle_passes_its_own_judgement() {
    let (ratios, refusals) = check(&mut OracleBackend::new(), 1);
    assert!(ratios.values().flatten().all(|r| *r == 0.0), "the oracle differs from itself");
    assert!(refusals.is_empty(), "{refusals:?}");
}

#[test]
fn cpu_levels_stay_below_the_floor() {
    for &level in Level::HERE {
        // A level that this processor lacks cannot be tested here, which is said.
        let Ok(mut backend) = CpuBackend::new(Some(level), Some(2)) else {
            println!("{level:?}: not on this processor");
            continue;
        };
        let (ratios, refusals) = check(&mut backend, 100);
        assert_bites(&ratios);
        assert!(refusals.is_empty(), "{refusals:?}");
    }
}

/// int8 activations, at each level: the oracle rounds its own as the contract says.
#[test]
fn cpu_int8_stays_below_the_floor() {
    for level in [Level::Avx2, Level::Avx512] {
        let mut backend = match CpuBackend::int8(Some(level), Some(2)) {
            Ok(backend) => backend,
            Err(e) => {
                println!("{level:?}: not on this processor: {e}");
                continue;
            }
        };
        let (ratios, refusals) = check(&mut backend, 300);
        assert_bites(&ratios);
        assert!(refusals.is_empty(), "{refusals:?}");
    }
}

/// The best adapter of this machine; a software adapter is one, none at all fails the test.
#[test]
fn gpu_stays_below_the_floor() {
    let mut backend =
        GpuBackend::new(&AdapterSelector::Best, GpuOptions::default()).expect("a Vulkan, Metal or DX12 adapter");
    let (ratios, refusals) = check(&mut backend, 200);
    assert_bites(&ratios);
    assert!(refusals.is_empty(), "{refusals:?}");
}

/// Whatever a tuning table says: each kernel of products at any number of rows.
#[test]
fn gpu_products_stay_below_the_floor_by_either_kernel() {
    use OpKind::{ExpertMatMul, HeadMatMul, MatMul};
    for (choice, mut gpu) in each_choice() {
        println!("{choice}");
        let (ratios, refusals) = check_those(&mut gpu, 400, |kind| matches!(kind, MatMul | HeadMatMul | ExpertMatMul));
        assert!(ratios.len() == 3 && refusals.is_empty(), "{choice}: {refusals:?}");
    }
}
