//! Which of two kernels a product should run on an adapter: both are timed, over types and rows, and the limits chosen between them.
//!
//! Design:
//! - A case is one that [`super::ops`] times, run twice: with a table that always chooses the matrix-vector kernel, and with one that never does.
//! - A limit is the one whose choices lose least, as the sum over the measured cases of the logarithms of time over the better time: one noisy
//!   case does not move it far.

use super::Progress;
use super::op_cases::{Beside, CaseWeights, OpBenchCase};
use super::ops::{OpBenchResult, time};
use crate::backend::gpu::tuning::file::{TunedAdapter, TuningFile, TuningSample};
use crate::backend::gpu::tuning::{ExpertLimits, PositionLimits, Tuning};
use crate::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use crate::error::Result;
use crate::op::{GgmlType, OpKind, Stage, Weight};

/// How much is measured.
struct Effort {
    types: &'static [GgmlType],
    /// Columns, rows and matrices of a weight, by operation.
    dims: [(OpKind, [usize; 3]); 3],
    positions: &'static [usize],
    /// Rows of an expert.
    rows: &'static [usize],
    /// About how long each kernel of a case is run.
    seconds: f64,
}

const WHOLE: Effort = Effort {
    types: &[GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0, GgmlType::F16],
    dims: [
        (OpKind::MatMul, [2048, 2048, 1]),
        (OpKind::HeadMatMul, [256, 512, 16]),
        (OpKind::ExpertMatMul, [1024, 512, 32]),
    ],
    positions: &[1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64],
    rows: &[1, 2, 4, 8, 16, 31],
    seconds: 0.1,
};

const QUICK: Effort = Effort {
    types: &[GgmlType::Q4_K, GgmlType::Q8_0],
    dims: [(OpKind::MatMul, [256, 128, 1]), (OpKind::HeadMatMul, [256, 32, 4]), (OpKind::ExpertMatMul, [256, 32, 8])],
    positions: &[1, 2, 4, 8],
    rows: &[1, 2, 4],
    seconds: 0.0,
};

/// Experts that a position uses.
const USED: usize = 4;
/// Positions of which few share an expert.
const FEW: &[usize] = &[1, 2, 3, 4];

/// A point of a choice: what is limited, and the seconds of both kernels.
type Point = (usize, [f64; 2]);

/// Measures an adapter.
///
/// # Errors
/// As [`GpuBackend::new`], and the device's.
pub fn tune(selector: &AdapterSelector, quick: bool, progress: Progress<'_>) -> Result<TuningFile> {
    let effort = if quick { QUICK } else { WHOLE };
    let mut gpu = GpuBackend::new(selector, GpuOptions::default())?;
    let adapter: TunedAdapter = gpu.tuned_adapter();
    let cases: Vec<(OpKind, GgmlType, usize)> = (effort.dims.iter())
        .flat_map(|&(op, [.., experts])| {
            let positions = match op {
                OpKind::ExpertMatMul => {
                    let of_rows = effort.rows.iter().map(|rows| rows * experts / USED);
                    FEW.iter().copied().chain(of_rows.filter(|n| !FEW.contains(n))).collect()
                }
                _ => effort.positions.to_vec(),
            };
            effort.types.iter().flat_map(move |&ty| positions.clone().into_iter().map(move |n| (op, ty, n)))
        })
        .collect();
    let mut measured = Vec::new();
    for (n, &(op, ty, positions)) in cases.iter().enumerate() {
        let dims = effort.dims.iter().find(|(of, _)| *of == op).map_or([0; 3], |(_, dims)| *dims);
        let case = case(op, ty, dims, positions);
        progress(&case.name(), n, cases.len());
        let mut seconds = [0.0; 2];
        for (seconds, vectors) in seconds.iter_mut().zip([true, false]) {
            gpu.set_tuning(Tuning::forced(vectors))?;
            let mut result = OpBenchResult::of(&case);
            time(&mut gpu, &case, effort.seconds, &|gpu: &mut GpuBackend, w: &Weight| gpu.forget(w), &mut result)?;
            result.seconds.sort_by(f64::total_cmp);
            *seconds = result.seconds[result.seconds.len() / 2];
        }
        let used = (op == OpKind::ExpertMatMul).then_some(USED);
        let [vector_seconds, tiled_seconds] = seconds;
        let (op, ty) = (op.name().to_string(), ty.name().to_string());
        measured.push(TuningSample { op, ty, dims, positions, used, vector_seconds, tiled_seconds });
    }
    Ok(TuningFile::new(adapter, chosen(&measured, effort.types), measured))
}

fn case(op: OpKind, ty: GgmlType, dims: [usize; 3], tokens: usize) -> OpBenchCase {
    let [cols, rows, experts] = dims;
    let (stage, beside, used) = match op {
        OpKind::ExpertMatMul => (Stage::ExpertUp, Beside::default(), USED),
        OpKind::HeadMatMul => (Stage::QAbsorbed, Beside { head_dim: cols, ..Beside::default() }, 0),
        _ => (Stage::QProj, Beside::default(), 0),
    };
    let shape = match op {
        OpKind::MatMul => format!("[{rows}, {cols}]"),
        _ => format!("[{experts}, {rows}, {cols}]"),
    };
    let weights = Some(CaseWeights::Random { ty, dims });
    OpBenchCase { op, stages: vec![stage], tokens, shape, weights, table: None, used, beside }
}

/// The table that loses least.
fn chosen(measured: &[TuningSample], types: &[GgmlType]) -> Tuning {
    let points = |op: OpKind, ty: Option<GgmlType>, place: fn(&TuningSample) -> Option<usize>| -> Vec<Point> {
        (measured.iter())
            .filter(|s| s.op == op.name() && ty.is_none_or(|ty| s.ty == ty.name()))
            .filter_map(|s| Some((place(s)?, [s.vector_seconds, s.tiled_seconds])))
            .collect()
    };
    let positions: fn(&TuningSample) -> Option<usize> = |s| Some(s.positions);
    let of_product = |op| PositionLimits {
        positions: limit(&points(op, None, positions), 1),
        types: types.iter().map(|&ty| (ty.name().into(), limit(&points(op, Some(ty), positions), 1))).collect(),
    };
    let few: fn(&TuningSample) -> Option<usize> = |s| FEW.contains(&s.positions).then_some(s.positions);
    let rows: fn(&TuningSample) -> Option<usize> = |s| {
        let slots = s.positions * s.used?;
        (slots % s.dims[2] == 0).then_some(slots / s.dims[2])
    };
    let experts = OpKind::ExpertMatMul;
    Tuning {
        mat_mul: of_product(OpKind::MatMul),
        head_mat_mul: of_product(OpKind::HeadMatMul),
        expert_mat_mul: ExpertLimits {
            positions: limit(&points(experts, None, few), 1),
            rows: limit(&points(experts, None, rows), 0),
            types: types.iter().map(|&ty| (ty.name().into(), limit(&points(experts, Some(ty), rows), 0))).collect(),
        },
    }
}

/// The place up to which the first kernel runs, `least` or a measured one, so that the least is lost; the lowest of equals.
fn limit(points: &[Point], least: usize) -> usize {
    let lost = |limit: usize| -> f64 {
        let of = |&(at, [first, second]): &Point| {
            let taken = if at <= limit { first } else { second };
            (taken.max(1e-12) / first.min(second).max(1e-12)).ln()
        };
        points.iter().map(of).sum()
    };
    let mut places: Vec<usize> = points.iter().map(|(at, _)| *at).chain([least]).filter(|at| *at >= least).collect();
    places.sort_unstable();
    places.dedup();
    places.into_iter().min_by(|a, b| lost(*a).total_cmp(&lost(*b))).unwrap_or(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_where_the_kernels_change_places() {
        let at = |points: &[(usize, f64, f64)], least| {
            limit(&points.iter().map(|&(at, a, b)| (at, [a, b])).collect::<Vec<_>>(), least)
        };
        assert_eq!(at(&[(1, 1.0, 3.0), (2, 2.0, 3.0), (4, 4.0, 3.0), (8, 8.0, 3.5)], 1), 2);
        assert_eq!(at(&[(1, 5.0, 3.0), (2, 9.0, 3.0)], 1), 1, "the least, if that is too many already");
        assert_eq!(at(&[(1, 5.0, 3.0), (2, 9.0, 3.0)], 0), 0);
        assert_eq!(at(&[(1, 1.0, 3.0), (2, 3.1, 3.0), (4, 2.0, 3.0), (8, 8.0, 3.0)], 1), 4, "one case is noise");
        assert_eq!(at(&[], 1), 1);
    }

    #[test]
    fn the_limits_are_by_type_and_by_the_rows_of_an_expert() {
        let sample = |op: OpKind, ty: &str, positions, used, vector_seconds| TuningSample {
            op: op.name().into(),
            ty: ty.into(),
            dims: [256, 32, if used > 0 { 8 } else { 1 }],
            positions,
            used: (used > 0).then_some(used),
            vector_seconds,
            tiled_seconds: 3.0,
        };
        let measured: Vec<_> = [1, 2, 4, 8]
            .into_iter()
            .flat_map(|n| {
                [
                    sample(OpKind::MatMul, "Q4_K", n, 0, n as f64),
                    sample(OpKind::MatMul, "Q8_0", n, 0, n as f64 / 2.0),
                    sample(OpKind::ExpertMatMul, "Q4_K", n, 4, n as f64),
                    sample(OpKind::ExpertMatMul, "Q8_0", n, 4, n as f64 / 2.0),
                ]
            })
            .collect();
        let tuning = chosen(&measured, &[GgmlType::Q4_K, GgmlType::Q8_0]);
        assert_eq!(tuning.vectors(OpKind::MatMul, GgmlType::Q4_K, None), 2);
        assert_eq!(tuning.vectors(OpKind::MatMul, GgmlType::Q8_0, None), 4);
        // 2 positions are a row of each of 8 experts.
        assert_eq!((tuning.expert_mat_mul.types["Q4_K"], tuning.expert_mat_mul.types["Q8_0"]), (1, 2));
    }
}
