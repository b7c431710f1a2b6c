//! How far a tensor is from another: one pass, in f64, over every element.
//!
//! Design:
//! - **A comparison that cannot be made is a [`Mismatch`], never agreement.** Unequal shapes, ids where numbers belong,
//!   NaN or infinity on either side, one side all zero, nothing compared: each has its own variant and message.
//! - The **reference** is the denominator of every relative number.
//! - Sums are taken in f64 over values scaled by a power of two, so squares neither overflow nor vanish, and in fixed
//!   chunks added in order, so the result does not depend on the number of threads.
//! - Above the diagonal of attention scores and probabilities a trace holds zeros. Under [`Mask::Causal`] such an element
//!   counts only when a side holds something else there, so a leaking mask is seen and an honest one adds no agreement.

use rayon::prelude::*;

use crate::op::{Data, HostTensor, Stage, unravel};

/// How many of the worst elements are kept.
pub const WORST: usize = 5;
/// Elements per task, and per partial sum.
const CHUNK: usize = 1 << 13;

/// Which elements take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// `[heads, T, S]` where row t may look at columns s ≤ start + t; an element beyond is left out if both sides are 0 there.
    /// An attention matrix [heads, T, S], of which row t means nothing beyond column start + t.
    Causal {
        /// Of the call's first row.
        start: usize,
    },
}

impl Mask {
    /// That of a stage's values in a call from position `start` on.
    pub fn of(stage: Stage, start: usize) -> Self {
        if stage.is_attention_matrix() { Self::Causal { start } } else { Self::None }
    }
}

/// One element on both sides.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ElementError {
    /// One coordinate per axis.
    pub index: Vec<usize>,
    /// The reference's value.
    pub reference: f64,
    /// The subject's value.
    pub subject: f64,
}

impl ElementError {
    /// |subject − reference|
    pub fn error(&self) -> f64 {
        (self.subject - self.reference).abs()
    }
}

/// The distance of a subject from its reference over all compared elements.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Metrics {
    /// Elements compared; at least 1.
    pub elements: usize,
    /// Elements left out by the mask.
    pub masked: usize,
    /// Σ(subject − reference)² / Σreference²; 0 when both are all zero.
    pub nmse: f64,
    /// √nmse
    pub rel_l2: f64,
    /// Cosine of the angle between the two; 1 when both are all zero.
    pub cosine: f64,
    /// The largest |subject − reference|.
    pub max_abs: f64,
    /// The element it is at, and the next worst ones, in descending order of error; empty when every element is equal.
    pub worst: Vec<ElementError>,
    /// The largest distance in units in the last place of f32, after rounding both sides to f32.
    pub max_ulp: u64,
    /// ‖subject‖ / ‖reference‖; 1 when both are all zero.
    pub norm_ratio: f64,
    /// ‖reference‖₂
    pub reference_norm: f64,
    /// ‖subject − reference‖₂
    pub error_norm: f64,
}

impl Metrics {
    /// The signal-to-error ratio in decibels, −10·log10(nmse); infinite when equal.
    pub fn sqnr_db(&self) -> f64 {
        -10.0 * self.nmse.log10()
    }
    /// Whether every compared element is the same number (0 and −0 are).
    pub fn is_equal(&self) -> bool {
        self.worst.is_empty()
    }
}

/// Non-finite elements of one side.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct NonFinite {
    /// Elements that are NaN.
    pub nan: usize,
    /// Elements that are infinite.
    pub inf: usize,
    /// The first of them in row-major order.
    pub first: Option<Vec<usize>>,
}

impl NonFinite {
    /// Of values of one shape.
    pub fn of(values: &[f64], shape: &[usize]) -> Self {
        Self {
            nan: values.iter().filter(|x| x.is_nan()).count(),
            inf: values.iter().filter(|x| x.is_infinite()).count(),
            first: values.iter().position(|x| !x.is_finite()).map(|i| unravel(i, shape)),
        }
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.first.is_some()
    }
}

impl std::fmt::Display for NonFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.first {
            None => f.write_str("all finite"),
            Some(first) => write!(f, "{} NaN and {} infinite, the first at {first:?}", self.nan, self.inf),
        }
    }
}

/// Which of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The side that is compared with.
    Reference,
    /// The side that is asked about.
    Subject,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Side::Reference => "reference",
            Side::Subject => "subject",
        })
    }
}

/// Why two tensors have no distance. Each is a failed comparison.
#[allow(missing_docs)] // the fields are what the message says
#[derive(Clone, Debug, PartialEq, thiserror::Error, serde::Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Mismatch {
    /// The shapes differ.
    #[error("the reference has shape {reference:?}, the subject {subject:?}")]
    Shape { reference: Vec<usize>, subject: Vec<usize> },
    /// The types of the elements differ.
    #[error("the reference is {reference}, the subject {subject}")]
    Dtype { reference: &'static str, subject: &'static str },
    /// Ids were given where numbers are compared.
    #[error("expert ids have no numeric distance; they are compared as sets")]
    Ids,
    /// No element is left to compare.
    #[error("no element was compared: shape {shape:?}, {masked} masked")]
    Nothing { shape: Vec<usize>, masked: usize },
    /// A side has values that are not finite.
    #[error("not finite; reference: {reference}; subject: {subject}")]
    NonFinite { reference: NonFinite, subject: NonFinite },
    /// A side is all zeros, so that no error is relative to it.
    #[error("the {side} is zero at all {elements} elements, the other side has norm {other_norm:e}")]
    ZeroNorm { side: Side, elements: usize, other_norm: f64 },
    /// A router chose an expert that is not there.
    #[error("the {side} chose expert {id} at position {position}, slot {slot}; the layer has {experts}")]
    NoSuchExpert { side: Side, position: usize, slot: usize, id: u32, experts: usize },
    /// A router chose an expert twice.
    #[error("the {side} chose expert {id} twice at position {position}")]
    RepeatedExpert { side: Side, position: usize, id: u32 },
    /// A token that the vocabulary does not have.
    #[error("the token after position {position} is {token}; the vocabulary has {vocabulary}")]
    NoSuchToken { position: usize, token: u32, vocabulary: usize },
    /// The mask does not fit the shape.
    #[error("the mask is for [heads, T, S], the shape is {shape:?}")]
    Mask { shape: Vec<usize> },
}

/// Distance between two f32 values in units in the last place: how many f32 values lie between them, plus one if they
/// differ. 0 and −0 are the same value. Finite values only.
pub fn ulp_distance(a: f32, b: f32) -> u64 {
    // Negative floats are mapped so that the integers are in the order of the floats, with both zeros at 0.
    let ordered = |x: f32| {
        let bits = x.to_bits();
        if bits >> 31 == 1 { -i64::from(bits & 0x7fff_ffff) } else { i64::from(bits) }
    };
    ordered(a).abs_diff(ordered(b))
}

/// Compares `subject` with `reference` element by element.
///
/// f32 and f64 compare with each other (the oracle is f64); the ULP distance rounds both to f32 first.
///
/// # Errors
/// The [`Mismatch`] that makes the comparison impossible.
pub fn measure(reference: &HostTensor, subject: &HostTensor, mask: Mask) -> Result<Metrics, Mismatch> {
    check(reference, subject)?;
    let columns = mask_columns(&reference.shape, mask)?;
    let pair = |i: usize| (value(&reference.data, i), value(&subject.data, i));
    let read = |sides: &mut [Vec<f64>; 2], from: usize| {
        for (values, of) in sides.iter_mut().zip([reference, subject]) {
            values.resize(CHUNK.min(of.len() - from), 0.0);
            of.read_f64(from, values);
        }
    };
    let masked_out = |i: usize, (a, b): (f64, f64)| {
        a == 0.0 && b == 0.0 && columns.is_some_and(|(t, s, start)| i % s > start + i / s % t)
    };
    let n = reference.len();

    // First pass: non-finite values and the largest magnitude, which fixes the scale.
    let chunks = n.div_ceil(CHUNK);
    let scan: Vec<[SideScan; 2]> = (0..chunks)
        .into_par_iter()
        .map_init(Default::default, |values, c| {
            read(values, c * CHUNK);
            let scan = |values: &Vec<f64>| {
                let mut scan = SideScan::default();
                values.iter().enumerate().for_each(|(i, x)| scan.add(c * CHUNK + i, *x));
                scan
            };
            values.each_ref().map(scan)
        })
        .collect();
    let [reference_scan, subject_scan] = scan.into_iter().fold([SideScan::default(), SideScan::default()], |a, b| {
        let [a0, a1] = a;
        let [b0, b1] = b;
        [a0.merge(b0), a1.merge(b1)]
    });
    if reference_scan.first.is_some() || subject_scan.first.is_some() {
        return Err(Mismatch::NonFinite {
            reference: reference_scan.non_finite(&reference.shape),
            subject: subject_scan.non_finite(&reference.shape),
        });
    }
    let scale = Scale::new(reference_scan.largest, subject_scan.largest);

    // Second pass: the sums, of values scaled to magnitude ≤ 2.
    let sums = (0..chunks)
        .into_par_iter()
        .map_init(Default::default, |values, c| {
            read(values, c * CHUNK);
            let mut sums = Sums::default();
            for (i, (a, b)) in (c * CHUNK..).zip(values[0].iter().copied().zip(values[1].iter().copied())) {
                if masked_out(i, (a, b)) {
                    sums.masked += 1;
                } else {
                    sums.add(i, a, b, scale);
                }
            }
            sums
        })
        .collect::<Vec<_>>()
        .into_iter()
        .fold(Sums::default(), Sums::merge);

    if sums.elements == 0 {
        return Err(Mismatch::Nothing { shape: reference.shape.clone(), masked: sums.masked });
    }
    let (reference_norm, subject_norm) = (sums.aa.sqrt() / scale.a, sums.bb.sqrt() / scale.b);
    let (reference_zero, subject_zero) = (reference_scan.largest == 0.0, subject_scan.largest == 0.0);
    if reference_zero != subject_zero {
        let (side, other_norm) =
            if reference_zero { (Side::Reference, subject_norm) } else { (Side::Subject, reference_norm) };
        return Err(Mismatch::ZeroNorm { side, elements: sums.elements, other_norm });
    }
    let zero = reference_zero;
    let nmse = if zero { 0.0 } else { sums.dd / sums.aa * (scale.a / scale.d).powi(2) };
    let worst: Vec<ElementError> = sums
        .worst
        .iter()
        .map(|&(_, i)| {
            let (reference_value, subject_value) = pair(i);
            ElementError { index: unravel(i, &reference.shape), reference: reference_value, subject: subject_value }
        })
        .collect();
    Ok(Metrics {
        elements: sums.elements,
        masked: sums.masked,
        nmse,
        rel_l2: nmse.sqrt(),
        cosine: if zero { 1.0 } else { (sums.ab / sums.aa.sqrt() / sums.bb.sqrt()).clamp(-1.0, 1.0) },
        max_abs: worst.first().map_or(0.0, ElementError::error),
        worst,
        max_ulp: sums.max_ulp,
        norm_ratio: if zero { 1.0 } else { subject_norm / reference_norm },
        reference_norm,
        error_norm: sums.dd.sqrt() / scale.d,
    })
}

/// The checks that need no look at the values.
fn check(reference: &HostTensor, subject: &HostTensor) -> Result<(), Mismatch> {
    if reference.shape != subject.shape {
        return Err(Mismatch::Shape { reference: reference.shape.clone(), subject: subject.shape.clone() });
    }
    match (&reference.data, &subject.data) {
        (Data::U32(_), Data::U32(_)) => Err(Mismatch::Ids),
        (Data::U32(_), _) | (_, Data::U32(_)) => {
            Err(Mismatch::Dtype { reference: reference.dtype(), subject: subject.dtype() })
        }
        _ => Ok(()),
    }
}

/// (T, S, start) of a causal mask.
fn mask_columns(shape: &[usize], mask: Mask) -> Result<Option<(usize, usize, usize)>, Mismatch> {
    match (mask, shape) {
        (Mask::None, _) => Ok(None),
        // An axis of length 0 leaves no element to divide by it.
        (Mask::Causal { start }, &[_, t, s]) => Ok(Some((t.max(1), s.max(1), start))),
        (Mask::Causal { .. }, _) => Err(Mismatch::Mask { shape: shape.to_vec() }),
    }
}

/// Element `i` as f64.
fn value(data: &Data, i: usize) -> f64 {
    match data {
        Data::F32(v) => f64::from(v[i]),
        Data::F64(v) => v[i],
        Data::U32(v) => f64::from(v[i]),
    }
}

/// A power of two that brings `largest` into [1, 2), so that squares neither overflow nor vanish; exact to multiply by.
fn power_of_two_scale(largest: f64) -> f64 {
    if largest == 0.0 {
        return 1.0;
    }
    // ±1000 keeps both the scale and its inverse normal; a subnormal `largest` is then still far above underflow.
    let exponent = (largest.log2().floor() as i32).clamp(-1000, 1000);
    2f64.powi(-exponent)
}

/// Exact factors for the reference, the subject and their difference.
#[derive(Clone, Copy)]
struct Scale {
    a: f64,
    b: f64,
    d: f64,
}

impl Scale {
    fn new(largest_a: f64, largest_b: f64) -> Self {
        Self {
            a: power_of_two_scale(largest_a),
            b: power_of_two_scale(largest_b),
            d: power_of_two_scale(largest_a.max(largest_b)),
        }
    }
}

#[derive(Default)]
struct SideScan {
    nan: usize,
    inf: usize,
    first: Option<usize>,
    largest: f64,
}

impl SideScan {
    fn add(&mut self, i: usize, x: f64) {
        if x.is_finite() {
            self.largest = self.largest.max(x.abs());
            return;
        }
        if x.is_nan() {
            self.nan += 1;
        } else {
            self.inf += 1;
        }
        self.first = self.first.or(Some(i));
    }
    /// `later` holds higher indices.
    fn merge(self, later: Self) -> Self {
        Self {
            nan: self.nan + later.nan,
            inf: self.inf + later.inf,
            first: self.first.or(later.first),
            largest: self.largest.max(later.largest),
        }
    }
    fn non_finite(&self, shape: &[usize]) -> NonFinite {
        NonFinite { nan: self.nan, inf: self.inf, first: self.first.map(|i| unravel(i, shape)) }
    }
}

#[derive(Default)]
struct Sums {
    elements: usize,
    masked: usize,
    /// Σa², Σb², Σab, Σ(b−a)², each of scaled values.
    aa: f64,
    bb: f64,
    ab: f64,
    dd: f64,
    max_ulp: u64,
    /// (error, flat index), by error descending, then index; at most [`WORST`].
    worst: Vec<(f64, usize)>,
}

impl Sums {
    fn add(&mut self, i: usize, a: f64, b: f64, scale: Scale) {
        self.elements += 1;
        let (a_scaled, b_scaled) = (a * scale.a, b * scale.b);
        // Scaled before subtracting: b − a of two huge f64 values may not be finite.
        let d = b * scale.d - a * scale.d;
        self.aa += a_scaled * a_scaled;
        self.bb += b_scaled * b_scaled;
        self.ab += a_scaled * b_scaled;
        self.dd += d * d;
        if a != b {
            self.max_ulp = self.max_ulp.max(ulp_distance(a as f32, b as f32));
            self.keep_worst(d.abs(), i);
        }
    }
    fn keep_worst(&mut self, error: f64, i: usize) {
        if self.worst.len() == WORST && error <= self.worst[WORST - 1].0 {
            return;
        }
        let at = self.worst.partition_point(|&(e, j)| e > error || (e == error && j < i));
        self.worst.insert(at, (error, i));
        self.worst.truncate(WORST);
    }
    /// `later` holds higher indices.
    fn merge(mut self, later: Self) -> Self {
        for &(error, i) in &later.worst {
            self.keep_worst(error, i);
        }
        Self {
            elements: self.elements + later.elements,
            masked: self.masked + later.masked,
            aa: self.aa + later.aa,
            bb: self.bb + later.bb,
            ab: self.ab + later.ab,
            dd: self.dd + later.dd,
            max_ulp: self.max_ulp.max(later.max_ulp),
            worst: self.worst,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(data: &[f32]) -> HostTensor {
        HostTensor::f32(&[data.len()], data.to_vec())
    }

    #[test]
    fn values_by_hand() {
        let m = measure(&vector(&[3.0, 4.0, 0.0]), &vector(&[3.0, 4.0, 1.0]), Mask::None).unwrap();
        assert_eq!((m.elements, m.nmse, m.rel_l2), (3, 1.0 / 25.0, 0.2));
        assert_eq!(m.norm_ratio, 26f64.sqrt() / 5.0);
        assert!((m.cosine - 25.0 / (5.0 * 26f64.sqrt())).abs() < 1e-15);
        assert_eq!((m.max_abs, m.worst.len()), (1.0, 1));
        assert_eq!(m.worst[0], ElementError { index: vec![2], reference: 0.0, subject: 1.0 });
        assert_eq!(m.max_ulp, u64::from(1f32.to_bits()));
        assert_eq!((m.reference_norm, m.error_norm), (5.0, 1.0));
    }

    #[test]
    fn every_impossible_comparison_is_a_mismatch() {
        let ids = HostTensor::u32(&[2], vec![1, 2]);
        let x = vector(&[1.0, 2.0]);
        assert!(matches!(measure(&x, &vector(&[1.0]), Mask::None), Err(Mismatch::Shape { .. })));
        let rows = HostTensor::f32(&[2, 1], vec![1.0, 2.0]);
        assert!(matches!(measure(&x, &rows, Mask::None), Err(Mismatch::Shape { .. })), "same length, other shape");
        assert!(matches!(measure(&x, &ids, Mask::None), Err(Mismatch::Dtype { .. })));
        assert_eq!(measure(&ids, &ids, Mask::None), Err(Mismatch::Ids));
        let empty = HostTensor::f32(&[0, 4], vec![]);
        assert!(matches!(measure(&empty, &empty, Mask::None), Err(Mismatch::Nothing { .. })));
        assert!(matches!(measure(&x, &x, Mask::Causal { start: 0 }), Err(Mismatch::Mask { .. })));
        let zero = vector(&[0.0, -0.0]);
        let Err(Mismatch::ZeroNorm { side: Side::Reference, .. }) = measure(&zero, &x, Mask::None) else { panic!() };
        let Err(Mismatch::ZeroNorm { side: Side::Subject, .. }) = measure(&x, &zero, Mask::None) else { panic!() };
    }

    #[test]
    fn non_finite_is_counted_on_both_sides_and_never_agrees() {
        let a = HostTensor::f32(&[2, 2], vec![1.0, f32::INFINITY, 2.0, f32::NAN]);
        let Err(e @ Mismatch::NonFinite { .. }) = measure(&a, &a, Mask::None) else { panic!() };
        let Mismatch::NonFinite { reference, subject } = &e else { unreachable!() };
        assert_eq!(reference, subject);
        assert_eq!(*subject, NonFinite { nan: 1, inf: 1, first: Some(vec![0, 1]) });
        assert_eq!(
            e.to_string(),
            "not finite; reference: 1 NaN and 1 infinite, the first at [0, 1]; \
             subject: 1 NaN and 1 infinite, the first at [0, 1]"
        );
        let finite = HostTensor::f32(&[2, 2], vec![1.0; 4]);
        let Err(Mismatch::NonFinite { reference, subject }) = measure(&finite, &a, Mask::None) else { panic!() };
        assert!(!reference.any() && subject.any());
    }

    #[test]
    fn both_zero_agree_and_signed_zeros_are_equal() {
        let m = measure(&vector(&[0.0, -0.0]), &vector(&[-0.0, 0.0]), Mask::None).unwrap();
        assert_eq!((m.nmse, m.cosine, m.norm_ratio, m.max_ulp), (0.0, 1.0, 1.0, 0));
        assert!(m.is_equal());
    }

    #[test]
    fn squares_neither_overflow_nor_vanish() {
        let big = HostTensor::f64(&[2], vec![1e300, -1e300]);
        let m = measure(&big, &HostTensor::f64(&[2], vec![1e300, -2e300]), Mask::None).unwrap();
        assert!((m.nmse - 0.5).abs() < 1e-15, "{m:?}");
        assert!((m.error_norm / 1e300 - 1.0).abs() < 1e-15);
        let opposite =
            measure(&HostTensor::f64(&[1], vec![f64::MAX]), &HostTensor::f64(&[1], vec![-f64::MAX]), Mask::None)
                .unwrap();
        assert_eq!((opposite.nmse, opposite.cosine), (4.0, -1.0));
        let tiny = f32::from_bits(1); // the smallest subnormal
        let m = measure(&vector(&[tiny]), &vector(&[2.0 * tiny]), Mask::None).unwrap();
        assert_eq!((m.nmse, m.max_ulp, m.norm_ratio), (1.0, 1, 2.0));
        let least = HostTensor::f64(&[1], vec![f64::from_bits(1)]);
        assert_eq!(measure(&least, &least, Mask::None).unwrap().nmse, 0.0);
    }

    #[test]
    fn ulps_cross_zero() {
        assert_eq!(ulp_distance(0.0, -0.0), 0);
        assert_eq!(ulp_distance(f32::from_bits(1), -f32::from_bits(1)), 2);
        assert_eq!(ulp_distance(1.0, 1.0 + f32::EPSILON), 1);
        assert_eq!(ulp_distance(f32::MAX, -f32::MAX), 2 * u64::from(f32::MAX.to_bits()));
    }

    #[test]
    fn worst_are_in_order_whatever_the_chunks() {
        let n = 3 * CHUNK + 17;
        let a = vec![1.0f32; n];
        let mut b = a.clone();
        for (k, i) in [5, CHUNK, 2 * CHUNK + 1, n - 1, 77, 78, 3 * CHUNK].into_iter().enumerate() {
            b[i] += (k / 2) as f32 + 1.0; // pairs of equal errors: ties go to the lower index
        }
        let m = measure(&vector(&a), &vector(&b), Mask::None).unwrap();
        let at: Vec<usize> = m.worst.iter().map(|e| e.index[0]).collect();
        assert_eq!(at, [3 * CHUNK, 77, 78, 2 * CHUNK + 1, n - 1]);
        assert_eq!(m.max_abs, 4.0);
    }

    #[test]
    fn a_causal_mask_hides_honest_zeros_only() {
        // [1 head, T 2, S 3], start 1: row 0 sees columns 0–1, row 1 all.
        let a = HostTensor::f32(&[1, 2, 3], vec![1.0, 1.0, 0.0, 1.0, 1.0, 1.0]);
        let m = measure(&a, &a, Mask::Causal { start: 1 }).unwrap();
        assert_eq!((m.elements, m.masked), (5, 1));
        let leak = HostTensor::f32(&[1, 2, 3], vec![1.0, 1.0, 0.5, 1.0, 1.0, 1.0]);
        let m = measure(&a, &leak, Mask::Causal { start: 1 }).unwrap();
        assert_eq!((m.elements, m.masked, m.worst[0].index.clone()), (6, 0, vec![0, 0, 2]));
        let zeros = HostTensor::f32(&[1, 1, 2], vec![0.0, 0.0]);
        assert_eq!(measure(&zeros, &zeros, Mask::Causal { start: 0 }).unwrap().elements, 1, "visible zeros do count");
    }

    #[test]
    fn f32_compares_with_the_f64_oracle() {
        let oracle = HostTensor::f64(&[2], vec![0.1, 0.2]);
        let m = measure(&oracle, &vector(&[0.1, 0.2]), Mask::None).unwrap();
        assert_eq!(m.max_ulp, 0, "the nearest f32 is 0 ULP away");
        assert!(m.nmse > 0.0 && m.nmse < 1e-15);
    }
}
