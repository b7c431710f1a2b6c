mod emulation;
mod linear_attention;

use super::exact::exact;
use super::floor::*;
use super::rounding::TINY;
use super::sum::*;
use super::{Formula, Point, first_of};
use crate::backend::{Contract, Order, Precision};
use crate::op::{HostTensor, Op, Weight};

const U: f64 = f32::EPSILON as f64 / 2.0;

fn f32s(shape: &[usize], v: &[f32]) -> HostTensor {
    HostTensor::f32(shape, v.to_vec())
}

/// Numbers in (−1, 1), from a 64-bit linear congruential generator (Knuth's MMIX constants).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / 2f64.powi(52) - 1.0
    }
    /// Roughly normal, of variance 1: a sum of four.
    fn normal(&mut self) -> f64 {
        (0..4).map(|_| self.next()).sum::<f64>() * 0.75f64.sqrt()
    }
}

#[test]
fn addition_is_bounded_by_half_an_ulp_of_the_sum() {
    let (a, b) = (f32s(&[1, 2], &[1.0, -3.0]), f32s(&[1, 2], &[2.0, 3.0]));
    let contract = Contract::ieee_f32(Order::Sequential);
    let floor = floor(&Op::Add { a: &a, b: &b }, &contract).unwrap();
    assert_eq!(floor, [3.0 * U + TINY, TINY]);
}

#[test]
fn short_sums_take_the_worst_case_and_long_ones_the_probable() {
    let contract = Contract::ieee_f32(Order::Sequential);
    let one = Terms::dot(&[3.0], &[2.0]);
    assert_eq!(one, Terms { n: 1, sum: 6.0, absolute: 6.0, squares: 36.0, range: 6.0 });
    let m = (1 + ROUNDINGS + 1) as f64 * U;
    assert_eq!(one.bound(&contract, 8.0), m / (1.0 - m) * 6.0);

    let ones = vec![1.0; 4096];
    let alternating: Vec<f64> = (0..4096).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let same = Terms::dot(&ones, &ones).bound(&contract, 8.0);
    let both = Terms::dot(&ones, &alternating).bound(&contract, 8.0);
    assert!(same < 4096.0 * 4096.0 * U, "not above n·u·Σ|p|");
    assert!(both < same / 100.0, "terms that cancel on the way never make a large partial sum: {both:e}, {same:e}");
}

#[test]
fn eight_columns_are_each_what_one_is() {
    let mut noise = Noise(3);
    for n in [0, 1, 7, 8, 9, 40, 131] {
        let x: Vec<f64> = (0..n).map(|_| noise.normal()).collect();
        let w: Vec<f64> = (0..(n + 1) * (COLUMNS + 3)).map(|_| noise.normal()).collect();
        let rows: Vec<Option<usize>> = (0..n).map(|i| (i % 5 != 3).then_some((n - i) * (COLUMNS + 3))).collect();
        for (j, (terms, magnitudes)) in Terms::columns(&x, &w, &rows).into_iter().enumerate() {
            let column: Vec<f64> = rows.iter().map(|row| row.map_or(0.0, |at| w[at + j])).collect();
            assert_eq!(terms, Terms::dot(&x, &column), "{n} terms, column {j}");
            assert_eq!(magnitudes, column.iter().map(|w| w.abs()).sum::<f64>());
        }
    }
}

/// What spares floors from being computed is below them, over the whole table of operations and at sizes that f32 cannot hold.
#[test]
fn least_floors_are_no_more_than_floors() {
    let contracts = [
        Contract::ieee_f32(Order::Blocked { block: 32 }),
        Contract::wgsl_f32(Order::Lanes { lanes: 64 }),
        Contract { output: Precision::F16, ..Contract::ieee_f32(Order::Unknown) },
    ];
    let contracts = [&contracts[0], &contracts[1], &contracts[2]];
    let (mut known, mut tight) = (0, 0);
    for (n, row) in crate::backend::cases::table().into_iter().enumerate() {
        let operands = row.build(n as u64).unwrap();
        for scale in [1.0, 1e-30, 1e25] {
            let scaled = |t: &&&HostTensor| match &t.data {
                crate::op::Data::F32(v) => HostTensor::f32(&t.shape, v.iter().map(|x| x * scale).collect()),
                _ => HostTensor::clone(t),
            };
            let inputs: Vec<HostTensor> = operands.op().inputs().iter().map(scaled).collect();
            let mut at = 0..;
            let op = operands.op().try_map(|_| Ok(&inputs[at.next().unwrap()])).unwrap();
            let right = exact(&op, contracts[0]).unwrap();
            let x: Vec<Vec<f64>> = op.inputs().iter().map(|t| t.to_f64()).collect();
            let indices: Vec<usize> = (0..right.len()).filter(|i| i % 3 != 1).collect();
            let least = || -> crate::error::Result<_> {
                Ok(first_of!(&op, &x, |f| (
                    f.least_floors(&indices, &right.to_f64(), contracts)?,
                    f.floors(contracts)?
                )))
            };
            let Some((Some(least), floors)) = least().unwrap() else { continue };
            for (i, least) in indices.iter().zip(least) {
                for (floor, least) in floors.iter().zip(least) {
                    let floor = floor[*i];
                    assert!(least <= floor || floor.is_nan(), "{row} at {scale:e}: {least:e} of {floor:e}");
                    if scale == 1.0 {
                        (known, tight) = (known + 1, tight + usize::from(least > 0.4 * floor));
                    }
                }
            }
        }
    }
    assert!(tight > known / 2, "only {tight} of {known} are near the floor");
}

#[test]
fn a_deeper_order_allows_more() {
    let mut noise = Noise(1);
    let v: Vec<f64> = (0..4096).map(|_| noise.normal()).collect();
    let terms = Terms::dot(&v, &vec![1.0; 4096]);
    let bound = |order| terms.bound(&Contract::ieee_f32(order), 8.0);
    let sequential = bound(Order::Sequential);
    let blocked = bound(Order::Blocked { block: 32 });
    let lanes = bound(Order::Lanes { lanes: 256 });
    assert!(sequential > blocked && blocked > lanes, "{sequential:e} {blocked:e} {lanes:e}");
    assert_eq!(terms.bound(&Contract::wgsl_f32(Order::Sequential), 8.0), 2.0 * sequential);
}

#[test]
fn confidence_grows_with_the_number_of_elements() {
    assert!((confidence(1) - 6.54).abs() < 0.01, "{}", confidence(1));
    assert!((confidence(1_000_000) - 8.40).abs() < 0.01, "{}", confidence(1_000_000));
}

#[test]
fn int8_activations_are_rounded_and_leave_the_floor_of_f32() {
    let x = f32s(&[1, 32], &std::array::from_fn::<f32, 32, _>(|i| (127 - i) as f32 + 0.25));
    let w = Weight::from_vec("w", crate::op::GgmlType::F32, [32, 1, 1], 1f32.to_le_bytes().repeat(32)).unwrap();
    let ieee = Contract::ieee_f32(Order::Sequential);
    let op = Op::MatMul { x: &x, weight: &w };
    let int8 = Contract { activations: Precision::Int8 { block: 32 }, ..ieee };
    // A scale of 127.25 / 127, of which 127.25 − i is the code 127 − i.
    let y = exact(&op, &int8).unwrap().to_f64()[0];
    assert!((y - (127.25f32 / 127.0) as f64 * (96..=127).sum::<i32>() as f64).abs() < 1e-9, "{y}");
    let (f32_floor, int8_floor) = (floor(&op, &ieee).unwrap()[0], floor(&op, &int8).unwrap()[0]);
    assert!((int8_floor / f32_floor - 1.0).abs() < 0.01, "{int8_floor:e} {f32_floor:e}");
}

#[test]
fn a_code_that_could_be_either_has_its_step() {
    // The largest is 127, so that the codes are the values: 0.5 is undecided.
    let x = f32s(&[1, 2], &[127.0, 0.5]);
    let w = Weight::from_vec("w", crate::op::GgmlType::F32, [2, 1, 1], 3f32.to_le_bytes().repeat(2)).unwrap();
    let int8 = Contract { activations: Precision::Int8 { block: 32 }, ..Contract::ieee_f32(Order::Sequential) };
    let op = Op::MatMul { x: &x, weight: &w };
    assert_eq!(exact(&op, &int8).unwrap().to_f64(), [381.0]);
    let floor = floor(&op, &int8).unwrap()[0];
    assert!((floor - 3.0).abs() < 1e-3, "{floor}");
}

#[test]
fn what_is_stored_coarser_has_half_a_step_more() {
    let (a, b) = (f32s(&[1, 2], &[1.0, 3.0]), f32s(&[1, 2], &[0.5, 1.0]));
    let contract = Contract { output: Precision::Bf16, ..Contract::ieee_f32(Order::Sequential) };
    let op = Op::Add { a: &a, b: &b };
    let floor = floor(&op, &contract).unwrap();
    // 1.5 has neighbours 1/128 apart, 4 (and what is just above) 1/32.
    assert!((floor[0] - 1.0 / 256.0).abs() < 1e-6 && (floor[1] - 1.0 / 64.0).abs() < 1e-6, "{floor:?}");
}

#[test]
fn ratios_find_the_element_and_count_what_is_not_finite() {
    let r = injected_ratio(&[0.0, 0.5, -3.0], &[0.0, 1.0, 1.5]);
    assert_eq!(r, Ratio { max: 2.0, index: Some(2), beyond: 1, non_finite: 0 });
    let r = injected_ratio(&[1e-9, f64::NAN], &[0.0, 1.0]);
    assert_eq!((r.max, r.beyond, r.non_finite), (f64::INFINITY, 2, 1));
    assert!(!injected_ratio(&[], &[]).explained());
    assert!(injected_ratio(&[0.0], &[0.0]).explained());
}

/// Σx² of (1.5e19, 1.5e19) is 4.5e38, beyond f32's 3.4e38, though each square is not; that of (3, 4) is 25. A double holds the first.
#[test]
fn a_sum_beyond_its_accumulator_has_no_bound() {
    let weight = Weight::from_vec(
        "w",
        crate::op::GgmlType::F32,
        [2, 1, 1],
        [1f32; 2].iter().flat_map(|w| w.to_le_bytes()).collect(),
    );
    let x = f32s(&[2, 2], &[1.5e19, 1.5e19, 3.0, 4.0]);
    let op = Op::RmsNorm { x: &x, weight: &weight.unwrap(), eps: 1e-6, keep: 0 };
    let single = Contract::ieee_f32(Order::Sequential);
    assert_eq!(
        floor(&op, &single).unwrap().iter().map(|f| f.is_infinite()).collect::<Vec<_>>(),
        [true, true, false, false]
    );
    let double = Contract { accumulator: Precision::F64, ..single };
    assert!(floor(&op, &double).unwrap().iter().all(|f| f.is_finite()));

    // Two squares of 60000: their sum, and not each, is beyond a half's 65504.
    let half = Contract { accumulator: Precision::F16, ..single };
    let sum = |p: &[f64], contract: &Contract| Terms::one_sign(p.iter().copied()).bound_under_root(contract, 8.0);
    assert_eq!(sum(&[60000.0, 60000.0], &half), f64::INFINITY);
    assert!(sum(&[60000.0], &half).is_finite() && sum(&[60000.0, 60000.0], &single).is_finite());
    assert!(sum(&[f64::INFINITY, 1.0], &single).is_nan(), "what came in is no overflow of the sum");
    // A norm's weight of 0 makes 0 of whatever comes out of it.
    let none = Weight::from_vec("w", crate::op::GgmlType::F32, [2, 1, 1], vec![0; 8]).unwrap();
    let op = Op::RmsNorm { x: &x, weight: &none, eps: 1e-6, keep: 0 };
    assert!(floor(&op, &single).unwrap()[0].is_infinite());
}

/// 60000 + 10000 is no half: infinity, which is an error; a finite number there is within its rounding or wrong. Nor is an error pardoned where an
/// infinity came in.
#[test]
fn what_overflows_elsewhere_stays_an_error() {
    let (a, b) = (f32s(&[1, 3], &[60000.0, f32::INFINITY, 1.0]), f32s(&[1, 3], &[10000.0, 1.0, 2.0]));
    let half = Contract { output: Precision::F16, ..Contract::ieee_f32(Order::Sequential) };
    let floors = floor(&Op::Add { a: &a, b: &b }, &half).unwrap();
    assert!(floors[0].is_finite() && floors[1].is_nan() && floors[2].is_finite(), "{floors:?}");
    assert!(!injected_ratio(&[f64::INFINITY, 0.0, 0.0], &floors).explained());
    assert!(!injected_ratio(&[0.0, f64::INFINITY, 0.0], &floors).explained(), "an infinity that was dropped");
    assert!(!injected_ratio(&[30000.0, 0.0, 0.0], &floors).explained());

    let r = injected_ratio(&[f64::NAN, 3.0, f64::INFINITY], &[f64::INFINITY, 1.5, f64::INFINITY]);
    assert_eq!((r.max, r.index, r.beyond), (2.0, Some(1), 1));
}

/// Near 0 a floor reaches over many halves: a result that was rounded once may be each of them, and no number between.
#[test]
fn a_value_near_zero_is_rounded_to_any_that_its_floor_reaches() {
    let half = crate::formula::precision::FORMATS[0].round;
    let (step, near) = (2f64.powi(-24), Point::new(0.4e-6, 2e-6));
    for n in [-20.0, -3.0, 0.0, 7.0, 40.0] {
        assert_eq!(near.rounded(half, n * step).residual(n * step), 0.0, "{n} steps");
    }
    for wrong in [0.5 * step, 60.0 * step, -40.0 * step] {
        assert!(near.rounded(half, wrong).residual(wrong) > 1.0, "{wrong:e}");
    }
    // Where the floor is less than a step there is one, or two about a middle.
    let one = Point::new(1.0001, 1e-7);
    assert!(
        one.rounded(half, 1.0).residual(1.0) == 0.0
            && one.rounded(half, 1.0 + 2f64.powi(-10)).residual(1.0 + 2f64.powi(-10)) > 1.0
    );
}

#[test]
fn a_logit_is_bounded_by_its_own_floor_and_what_the_softmax_adds() {
    let z = f32s(&[1, 2], &[0.0, -4.0]);
    let bounds = logit_bounds(&z, &[1e-7; 2], &Contract::ieee_f32(Order::Sequential)).unwrap();
    let ulp = f32::EPSILON as f64;
    assert_eq!(bounds, [1e-7 + 1.5 * ulp, 1e-7 + (4.0 * ulp + ulp) + 0.5 * ulp]);
}

/// f32 sums as kernels take them.
type Kernel = fn(&[f32], &[f32]) -> f32;

fn running(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(0.0, |s, (x, w)| s + x * w)
}

fn fused(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(0.0, |s, (x, w)| x.mul_add(*w, s))
}

fn blocks_of_32(x: &[f32], w: &[f32]) -> f32 {
    x.chunks(32).zip(w.chunks(32)).map(|(x, w)| running(x, w)).fold(0.0, |a, b| a + b)
}

fn lanes<const L: usize>(x: &[f32], w: &[f32]) -> f32 {
    let mut sums = [0f32; L];
    for (i, (x, w)) in x.iter().zip(w).enumerate() {
        sums[i % L] = x.mul_add(*w, sums[i % L]);
    }
    let mut n = L;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            sums[i] += sums[i + n];
        }
    }
    sums[0]
}

/// Kinds of data: the terms' signs, sizes and arrangement.
fn data(kind: usize, n: usize, noise: &mut Noise) -> (Vec<f32>, Vec<f32>) {
    let mut x: Vec<f32> = (0..n).map(|_| noise.normal() as f32).collect();
    let mut w: Vec<f32> = (0..n).map(|_| noise.normal() as f32).collect();
    match kind {
        0 => {}
        1 => (x, w) = (x.iter().map(|x| x.abs()).collect(), w.iter().map(|w| w.abs()).collect()), // one sign
        2 => x[n / 3] = 1e4,                                                                      // an outlier channel
        3 => x.iter_mut().for_each(|x| *x += 3.0),                                                // a mean
        4 => w.iter_mut().enumerate().for_each(|(i, w)| *w = w.abs() * if i < n / 2 { 1.0 } else { -1.0 }), // cancels late
        5 => (x[0], x[n - 1], w[0], w[n - 1]) = (1e4, -1e4, 1.0, 1.0), // two outliers that cancel
        _ => x.iter_mut().enumerate().for_each(|(i, x)| *x *= ((i % 64) as f32 / 7.0).exp2()), // scales that differ
    }
    (x, w)
}

/// Over orders, lengths and kinds of data: no sum exceeds its floor, and the floor is not far above.
#[test]
fn f32_sums_in_every_order_stay_below_their_floor_and_near_it() {
    let kernels: [(Kernel, Order); 7] = [
        (running, Order::Sequential),
        (fused, Order::Sequential),
        (blocks_of_32, Order::Blocked { block: 32 }),
        (lanes::<8>, Order::Lanes { lanes: 8 }),
        (lanes::<16>, Order::Lanes { lanes: 16 }),
        (lanes::<64>, Order::Lanes { lanes: 64 }),
        (lanes::<256>, Order::Lanes { lanes: 64 }), // a contract may promise less than it keeps
    ];
    let mut noise = Noise(7);
    let (mut stages, rows) = (Vec::new(), 128);
    for (kernel, order) in kernels {
        let contract = Contract::ieee_f32(order);
        for n in [1, 2, 31, 64, 256, 257, 2048] {
            for kind in 0..7 {
                let lambda = confidence(rows);
                let (error, floor): (Vec<f64>, Vec<f64>) = (0..rows)
                    .map(|_| {
                        let (x, w) = data(kind, n, &mut noise);
                        let (x64, w64): (Vec<f64>, Vec<f64>) =
                            (x.iter().map(|x| *x as f64).collect(), w.iter().map(|w| *w as f64).collect());
                        let exact: f64 = x64.iter().zip(&w64).map(|(x, w)| x * w).sum();
                        (kernel(&x, &w) as f64 - exact, Terms::dot(&x64, &w64).bound(&contract, lambda))
                    })
                    .unzip();
                let ratio = injected_ratio(&error, &floor);
                assert!(ratio.explained(), "{order:?}, n {n}, kind {kind}: {ratio:?}");
                stages.push(ratio.max);
            }
        }
    }
    stages.sort_by(f64::total_cmp);
    let (median, largest) = (stages[stages.len() / 2], stages[stages.len() - 1]);
    println!("{} stages: median {median:.3}, least {:.4}, largest {largest:.3}", stages.len(), stages[0]);
    assert!(median >= 0.01, "a floor that never bites: median {median}");
}

#[test]
fn a_choice_of_groups_is_any_that_rounding_of_their_scores_allows() {
    use crate::formula::floor::check_against_oracle;
    use crate::formula::routing::undecided;
    use crate::op::{GroupScore, Groups};
    // Groups of two, of which two are kept: of scores 3, 1 + 2⁻²⁵, 1 + 2⁻²⁶ and 0.5.
    let probs = [2.0, 1.0, 1.0, 2f32.powi(-25), 1.0, 2f32.powi(-26), 0.25, 0.25];
    let p = f32s(&[1, 8], &probs);
    let groups = Groups { count: 4, used: 2, by: GroupScore::TopTwo };
    let contract = Contract::ieee_f32(Order::Sequential);
    let wide = Contract {
        unit_roundoff: 2f64.powi(-53),
        activations: Precision::F64,
        accumulator: Precision::F64,
        ..contract
    };
    let is_right = |contract: &Contract, groups, ids: [u32; 3]| {
        let op = Op::RouterTopK { probs: &p, k: 3, groups: Some(groups) };
        check_against_oracle(&op, contract, &HostTensor::u32(&[1, 3], ids.to_vec())).unwrap().ratio.max <= 1.0
    };
    for (ids, narrow, in_f64) in [
        ([0, 1, 2], true, true),
        // The groups' f32 sums are both 1: the lower group, or by another order of the same sums the other.
        ([0, 1, 4], true, false),
        ([0, 1, 5], false, false),
        ([0, 1, 6], false, false),
        ([0, 2, 4], false, false),
    ] {
        assert_eq!((is_right(&contract, groups, ids), is_right(&wide, groups, ids)), (narrow, in_f64), "{ids:?}");
        // The largest of a group is no sum.
        let largest = Groups { by: GroupScore::Max, ..groups };
        assert_eq!(is_right(&contract, largest, ids), ids == [0, 1, 2], "{ids:?}");
    }
    let op = Op::RouterTopK { probs: &p, k: 3, groups: Some(groups) };
    let others = undecided(&op, &contract, &exact(&op, &contract).unwrap());
    assert_eq!(others, [HostTensor::u32(&[1, 3], vec![0, 1, 4])]);
}

#[test]
fn of_equal_experts_any_is_right_where_a_contract_says_so() {
    use crate::formula::routing::undecided;
    use crate::op::{GroupScore, Groups};
    // The second to fourth are equal, and two of them are chosen.
    let p = HostTensor::f32(&[1, 6], vec![0.5, 0.125, 0.125, 0.125, 0.0625, 0.0625]);
    let lowest = Contract::ieee_f32(Order::Unknown);
    let any = Contract { any_tie: true, ..lowest };
    let op = |groups| Op::RouterTopK { probs: &p, k: 3, groups };
    let is_right = |contract: &Contract, groups, ids: [u32; 3]| {
        check_against_oracle(&op(groups), contract, &HostTensor::u32(&[1, 3], ids.to_vec())).unwrap().ratio.max <= 1.0
    };
    let halves = Groups { count: 2, used: 1, by: GroupScore::Max };
    for (ids, is_any, in_first_half) in [
        ([0, 1, 2], true, true),
        ([0, 2, 1], true, true),
        ([0, 3, 2], true, false), // 3 is of the other half
        ([0, 1, 3], true, false),
        ([1, 0, 2], false, false), // not by their values
        ([0, 1, 1], false, false),
        ([0, 1, 4], false, false), // less than the others
        ([1, 2, 3], false, false),
        ([0, 1, 9], false, false), // no expert
    ] {
        assert_eq!(is_right(&lowest, None, ids), ids == [0, 1, 2], "{ids:?}");
        assert_eq!((is_right(&any, None, ids), is_right(&any, Some(halves), ids)), (is_any, in_first_half), "{ids:?}");
    }
    let exact_ids = exact(&op(None), &any).unwrap();
    let of = |ids: [u32; 3]| HostTensor::u32(&[1, 3], ids.to_vec());
    assert_eq!(undecided(&op(None), &any, &exact_ids), [of([0, 1, 3]), of([0, 2, 3])]);
    assert_eq!(undecided(&op(None), &lowest, &exact_ids), []);
}
