//! What an error belongs to: the stage's own arithmetic or its inputs, and the type of weight that it went through.
//!
//! Design:
//! - **total = injected + propagated**, element by element: g(x_g) − c(x_c) = [g(x_g) − c(x_g)] + [c(x_g) − c(x_c)], with
//!   g the subject, c the reference and x their own inputs. [`Split`] measures all three and their angle in one pass.
//! - Amplification is how much a stage enlarges the error that reaches it, relative to the sizes of what carries it.
//! - Errors are pooled by quantization type over layers, so that one kernel's fault shows as one type.

use rayon::prelude::*;

use crate::diff::measure::metrics::{Mismatch, NonFinite};
use crate::diff::outcome::StageResult;
use crate::op::{GgmlType, HostTensor, STAGES, Site};

/// Elements that are added up by one thread; the parts are added in order.
const CHUNK: usize = 1 << 13;

/// The parts of a stage's error. Norms are Euclidean.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Split {
    /// Of g(x_g) − c(x_c).
    pub total_norm: f64,
    /// Of g(x_g) − c(x_g): the stage's own.
    pub injected_norm: f64,
    /// Of c(x_g) − c(x_c): what came in.
    pub propagated_norm: f64,
    /// Cosine of the angle between injected and propagated error; 0 when either is 0. total² = injected² + propagated² +
    /// 2·injected·propagated·cosine.
    pub cosine: f64,
    /// ‖c(x_c)‖
    pub reference_norm: f64,
}

/// Splits a stage's error. `reference` is c(x_c), `replayed` is c(x_g), `subject` is g(x_g).
///
/// # Errors
/// A [`Mismatch`] when shapes differ, there are no elements, they are ids, or a value is not finite (that of `replayed` is
/// reported as the reference's).
pub fn split(reference: &HostTensor, replayed: &HostTensor, subject: &HostTensor) -> Result<Split, Mismatch> {
    for other in [replayed, subject] {
        if other.shape != reference.shape {
            return Err(Mismatch::Shape { reference: reference.shape.clone(), subject: other.shape.clone() });
        }
    }
    if [reference, replayed, subject].iter().any(|x| x.dtype() == "u32") {
        return Err(Mismatch::Ids);
    }
    if reference.is_empty() {
        return Err(Mismatch::Nothing { shape: reference.shape.clone(), masked: 0 });
    }
    let n = reference.len();
    // Σ of the squares and of the product.
    let part = |[c, r, g]: &mut [Vec<f64>; 3], chunk: usize| {
        let from = chunk * CHUNK;
        for (values, of) in [&mut *c, r, g].into_iter().zip([reference, replayed, subject]) {
            values.resize(CHUNK.min(n - from), 0.0);
            of.read_f64(from, values);
        }
        let mut sums = [0.0; 5];
        for ((c, r), g) in c.iter().zip(r).zip(g) {
            let (injected, propagated) = (*g - *r, *r - c);
            let terms =
                [(*g - c) * (*g - c), injected * injected, propagated * propagated, injected * propagated, c * c];
            sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
        }
        sums
    };
    let sums: Vec<[f64; 5]> =
        (0..n.div_ceil(CHUNK)).into_par_iter().map_init(|| [const { Vec::new() }; 3], part).collect();
    // What is not finite makes a sum that is not; so may what is very large.
    if sums.iter().flatten().any(|sum| !sum.is_finite()) {
        let [c, r, g] = [reference, replayed, subject].map(|t| NonFinite::of(&t.f64s(), &reference.shape));
        if c.any() || r.any() || g.any() {
            return Err(Mismatch::NonFinite { reference: if c.any() { c } else { r }, subject: g });
        }
    }
    let [tt, ii, pp, ip, cc] = sums.into_iter().fold([0.0; 5], |all, part| std::array::from_fn(|i| all[i] + part[i]));
    let (injected_norm, propagated_norm) = (ii.sqrt(), pp.sqrt());
    let cosine = if ii == 0.0 || pp == 0.0 { 0.0 } else { (ip / injected_norm / propagated_norm).clamp(-1.0, 1.0) };
    Ok(Split { total_norm: tt.sqrt(), injected_norm, propagated_norm, cosine, reference_norm: cc.sqrt() })
}

/// The error that reaches a stage through one of its inputs, and that input's size on the reference's side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InputError {
    /// Norm of the error.
    pub error_norm: f64,
    /// Norm of the reference's values.
    pub reference_norm: f64,
}

impl Split {
    /// Relative propagated error out ÷ relative error in, the relative errors of several inputs taken together as the root
    /// of the sum of their squares; 1 is a stage that neither enlarges nor damps. `None` when no error comes in, or a size is 0.
    pub fn amplification(&self, inputs: &[InputError]) -> Option<f64> {
        let mut sum = 0.0;
        for input in inputs.iter().filter(|i| i.error_norm > 0.0) {
            sum += (input.error_norm / input.reference_norm).powi(2);
        }
        let ratio = self.propagated_norm / self.reference_norm / sum.sqrt();
        ratio.is_finite().then_some(ratio)
    }
}

/// All stages whose weight has one type.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct TypeError {
    /// `None`: stages without a weight.
    pub qtype: Option<&'static str>,
    /// Stages measured, and those of them with a fault of their own.
    pub stages: usize,
    /// Stages that inject.
    pub faults: usize,
    /// Σ‖own error‖² / Σ‖reference‖² over them, without those that could not be compared.
    pub nmse: Option<f64>,
    /// The largest ratio of own error to floor, and where it is.
    pub worst_ratio: Option<f64>,
    /// The layer of the worst stage; `None` for a whole-model stage.
    pub worst_layer: Option<u32>,
    /// The worst stage.
    pub worst_stage: Option<&'static str>,
}

/// Pools the stages' own errors by the type of their weight, in ggml's order of types, those without a weight last.
pub fn by_type(stages: &[StageResult]) -> Vec<TypeError> {
    let mut types: Vec<Option<GgmlType>> = stages.iter().map(StageResult::qtype).collect();
    types.sort_by_key(|t| t.map_or(u32::MAX, |t| t as u32));
    types.dedup();
    types
        .into_iter()
        .filter_map(|qtype| {
            let of_type: Vec<&StageResult> =
                stages.iter().filter(|s| s.qtype() == qtype && s.verdict.was_compared()).collect();
            if of_type.is_empty() {
                return None;
            }
            let (mut error, mut size, mut worst) = (0.0, 0.0, None::<(f64, Site)>);
            for s in &of_type {
                if let Some(m) = s.own().metrics() {
                    error += m.error_norm * m.error_norm;
                    size += m.reference_norm * m.reference_norm;
                }
                if let Some(ratio) = s.ratio
                    && worst.is_none_or(|(w, _)| ratio > w)
                {
                    worst = Some((ratio, s.site));
                }
            }
            Some(TypeError {
                qtype: qtype.map(GgmlType::name),
                stages: of_type.len(),
                faults: of_type.iter().filter(|s| s.verdict.is_fault()).count(),
                nmse: (size > 0.0).then(|| error / size),
                worst_ratio: worst.map(|w| w.0),
                worst_layer: worst.and_then(|w| w.1.layer),
                worst_stage: worst.map(|w| STAGES[w.1.stage as usize].name),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::outcome::tests::stage;
    use crate::diff::outcome::{Verdict, WeightSummary};
    use crate::op::Stage;
    use proptest::prelude::*;

    fn tensor(x: Vec<f32>) -> HostTensor {
        HostTensor::f32(&[x.len()], x)
    }

    proptest! {
        /// total = injected + propagated, in f64, for values of very different sizes.
        #[test]
        fn the_parts_make_the_whole(rows in prop::collection::vec((-1e6f32..1e6, -1e6f32..1e6, -1e-6f32..1e-6), 1..50)) {
            let c: Vec<f32> = rows.iter().map(|r| r.0).collect();
            let r: Vec<f32> = rows.iter().map(|r| r.1).collect();
            let g: Vec<f32> = rows.iter().map(|r| r.1 + r.2).collect();
            let s = split(&tensor(c), &tensor(r), &tensor(g)).unwrap();
            let sum = s.injected_norm.powi(2) + s.propagated_norm.powi(2)
                + 2.0 * s.injected_norm * s.propagated_norm * s.cosine;
            prop_assert!((s.total_norm.powi(2) - sum).abs() <= 1e-12 * (s.propagated_norm.powi(2) + s.injected_norm.powi(2)));
        }
    }

    #[test]
    fn split_by_hand() {
        let s = split(&tensor(vec![3.0, 0.0]), &tensor(vec![3.0, 4.0]), &tensor(vec![6.0, 4.0])).unwrap();
        assert_eq!(
            (s.total_norm, s.injected_norm, s.propagated_norm, s.cosine, s.reference_norm),
            (5.0, 3.0, 4.0, 0.0, 3.0)
        );
        // Relative error out 4/3; in 1/2.
        let input = InputError { error_norm: 1.0, reference_norm: 2.0 };
        assert_eq!(s.amplification(&[input]), Some(4.0 / 3.0 / 0.5));
        let two = s.amplification(&[input, input]).unwrap();
        assert!((two - 4.0 / 3.0 / 0.5f64.sqrt()).abs() < 1e-15);
        assert_eq!(s.amplification(&[]), None, "no error comes in");
    }

    #[test]
    fn parts_of_different_shape_or_without_numbers_are_mismatches() {
        let (a, b) = (tensor(vec![1.0]), tensor(vec![1.0, 2.0]));
        assert!(matches!(split(&a, &b, &a), Err(Mismatch::Shape { .. })));
        assert!(matches!(split(&a, &a, &tensor(vec![f32::NAN])), Err(Mismatch::NonFinite { .. })));
        assert!(matches!(split(&tensor(vec![]), &tensor(vec![]), &tensor(vec![])), Err(Mismatch::Nothing { .. })));
        let ids = HostTensor::u32(&[1], vec![1]);
        assert!(matches!(split(&ids, &ids, &ids), Err(Mismatch::Ids)));
    }

    #[test]
    fn errors_pool_by_type_over_layers() {
        let of = |layer, ty: Option<GgmlType>, error, ratio| {
            let mut s = stage(Site::layer(layer, Stage::ExpertDown), error);
            s.weight = ty.map(|ty| WeightSummary { name: "w".into(), ty, dims: vec![2, 2], file_offset: 0 });
            s.ratio = Some(ratio);
            if ratio > 1.0 {
                s.verdict = Verdict::SubjectWrong;
            }
            s
        };
        let (q4, q6) = (Some(GgmlType::Q4_K), Some(GgmlType::Q6_K));
        let all = [of(0, q6, 1.0, 40.0), of(0, q4, 0.0, 0.2), of(1, q6, 0.0, 0.3), of(1, None, 0.0, 0.1)];
        let groups = by_type(&all);
        let short: Vec<_> = groups.iter().map(|g| (g.qtype, g.stages, g.faults, g.worst_layer)).collect();
        assert_eq!(short, [(Some("Q4_K"), 1, 0, Some(0)), (Some("Q6_K"), 2, 1, Some(0)), (None, 1, 0, Some(1))]);
        // Each stage's reference has Σx² = 6.25; one of the two Q6_K stages is off by 1.
        assert_eq!(groups[1].nmse, Some(1.0 / 12.5));
    }
}
