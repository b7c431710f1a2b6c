use super::*;
use crate::diff::locate::{PatternKind as P, RelationKind};
use crate::op::{GgmlType, Stage};

/// A deterministic number in −1 to 1.
fn noise(seed: u64) -> f64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x1234_5678_9ABC_DEF1);
    x ^= x >> 30;
    x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^= x >> 31;
    x as f64 / u64::MAX as f64 * 2.0 - 1.0
}

struct Case {
    stage: Stage,
    shape: Vec<usize>,
    start: usize,
    ids: Option<Vec<u32>>,
    head_dim: Option<usize>,
    qtype: Option<GgmlType>,
    expected: Vec<f64>,
    subject: Vec<f64>,
    floor: Vec<f64>,
}

impl Case {
    /// Values of size 1 with noise up to the floor of 1e-6.
    fn new(stage: Stage, shape: &[usize]) -> Self {
        let n = shape.iter().product();
        let expected: Vec<f64> = (0..n).map(|i| noise(i as u64)).collect();
        let subject = expected.iter().enumerate().map(|(i, x)| x + 1e-6 * noise(!(i as u64))).collect();
        Self {
            stage,
            shape: shape.to_vec(),
            start: 0,
            ids: None,
            head_dim: None,
            qtype: None,
            expected,
            subject,
            floor: vec![1e-6; n],
        }
    }
    /// Adds an error of up to `strength` floors where `wrong(row, column)`.
    fn plant(mut self, strength: f64, wrong: impl Fn(usize, usize) -> bool) -> Self {
        let cols = self.shape[self.shape.len() - 1];
        for i in 0..self.subject.len() {
            if wrong(i / cols, i % cols) {
                self.subject[i] += strength * 1e-6 * noise(7 * i as u64 + 3);
            }
        }
        self
    }
    fn find(&self) -> Option<Pattern> {
        self.find_with(Some(&self.floor))
    }
    fn find_with(&self, floor: Option<&[f64]>) -> Option<Pattern> {
        find(&self.geometry(), &self.expected, &self.subject, floor)
    }
    fn geometry(&self) -> Geometry<'_> {
        Geometry {
            stage: self.stage,
            shape: &self.shape,
            start: self.start,
            ids: self.ids.as_deref(),
            head_dim: self.head_dim,
            qtype: self.qtype,
        }
    }
    /// The same pattern at three strengths.
    fn expect(
        stage: Stage,
        shape: &[usize],
        set: impl Fn(&mut Case),
        wrong: impl Fn(usize, usize) -> bool,
        kinds: &[P],
        says: &str,
    ) {
        for strength in [8.0, 64.0, 1e6] {
            let mut case = Case::new(stage, shape);
            set(&mut case);
            let case = case.plant(strength, &wrong);
            let pattern = case.find().unwrap_or_else(|| panic!("{says}: no pattern at {strength}"));
            assert_eq!(pattern.description, says, "at {strength}: {pattern:?}");
            assert_eq!(pattern.kinds, kinds, "{says} at {strength}");
            assert!(pattern.share >= 0.95 && pattern.share <= 1.0 + 1e-12, "{says}: {}", pattern.share);
        }
    }
}

/// The ids of 17 tokens with 2 of 128 experts each; expert 93 has 11 rows.
fn ids() -> Vec<u32> {
    (0..17).flat_map(|t| [if t % 3 == 2 { 40 + t } else { 93 }, 100 + t % 5]).map(|id| id as u32).collect()
}
fn with_ids(c: &mut Case) {
    c.ids = Some(ids());
    c.qtype = Some(GgmlType::Q6_K);
}
fn plain(_: &mut Case) {}

#[test]
fn noise_has_no_pattern() {
    assert_eq!(Case::new(Stage::MoeOut, &[17, 256]).find(), None);
    assert_eq!(Case::new(Stage::AttnScores, &[4, 9, 9]).find(), None);
}

#[test]
fn experts() {
    let is_93 = |r: usize, _| ids()[r] == 93;
    Case::expect(Stage::ExpertDown, &[17, 2, 256], with_ids, is_93, &[P::Expert], "expert 93 only (12 of 34 rows)");
    Case::expect(
        Stage::ExpertDown,
        &[17, 2, 256],
        with_ids,
        |r, c| ids()[r] == 93 && c >= 224,
        &[P::Expert, P::ColumnBlock],
        "expert 93 only (12 of 34 rows); columns 224–255, the last block of 32",
    );
    Case::expect(
        Stage::ExpertDown,
        &[17, 2, 1024],
        with_ids,
        |r, c| ids()[r] == 93 && (512..768).contains(&c),
        &[P::Expert, P::ColumnBlock],
        "expert 93 only (12 of 34 rows); columns 512–767, the 3rd block of 256, the length of a Q6_K block",
    );
    Case::expect(
        Stage::ExpertGate,
        &[17, 2, 256],
        with_ids,
        |r, _| [93, 100].contains(&ids()[r]),
        &[P::Experts],
        "experts 93 and 100 only (16 of 34 rows)",
    );
    Case::expect(Stage::ExpertUp, &[17, 2, 64], with_ids, |r, _| r % 2 == 1, &[P::Slot], "slot 1 only");
    Case::expect(Stage::RouterLogits, &[17, 128], plain, |_, c| c == 5, &[P::Expert], "expert 5 only");
}

#[test]
fn columns() {
    let shape = [17, 4050];
    let last = |_, c| c >= 4032;
    let says = "last partial tile of columns: columns ≥ 4032 (4050 in tiles of 32)";
    Case::expect(Stage::Logits, &shape, plain, last, &[P::LastPartialTile], says);
    let shape = [17, 1024];
    let k = |c: &mut Case| c.qtype = Some(GgmlType::Q4_K);
    let says = "sub-block 3 of every block: columns 96–127 of each 256";
    Case::expect(Stage::Embedding, &shape, k, |_, c| c % 256 / 32 == 3, &[P::SubBlock], says);
    let says = "columns 768–1023, the last Q4_K block";
    Case::expect(Stage::Embedding, &shape, k, |_, c| c >= 768, &[P::ColumnBlock], says);
    let says = "columns 992–1023, the last block of 32";
    Case::expect(Stage::AttnOut, &shape, plain, |_, c| c >= 992, &[P::ColumnBlock], says);
    Case::expect(Stage::AttnOut, &shape, plain, |_, c| c % 2 == 1, &[P::ColumnResidue], "odd columns");
    let says = "columns 8–31 of each 32";
    Case::expect(Stage::AttnOut, &shape, plain, |_, c| c % 32 >= 8, &[P::ColumnResidue], says);
    Case::expect(Stage::AttnOut, &shape, plain, |_, c| c == 77, &[P::Column], "column 77 only");
    Case::expect(Stage::AttnOut, &shape, plain, |_, c| c != 77, &[P::AllButColumn], "all but column 77");
    Case::expect(Stage::AttnOut, &shape, plain, |_, c| c >= 700, &[P::ColumnRange], "columns ≥ 700");
    let says = "columns 130–419";
    Case::expect(Stage::AttnOut, &shape, plain, |_, c| (130..420).contains(&c), &[P::ColumnRange], says);
}

#[test]
fn positions() {
    let shape = [130, 64];
    let from = |r, _| r >= 64;
    Case::expect(Stage::MoeOut, &shape, plain, from, &[P::PositionRange], "positions ≥ 64");
    Case::expect(Stage::MoeOut, &shape, plain, |r, _| r == 129, &[P::LastPosition], "last position only");
    let at_10 = |c: &mut Case| c.start = 10;
    Case::expect(Stage::MoeOut, &shape, at_10, |r, _| r == 5, &[P::Position], "position 15 only");
    Case::expect(Stage::QRope, &[17, 64], plain, |r, _| r > 0, &[P::PositionRange], "positions ≥ 1");
    // No kernel makes this stage in tiles; that of a product does, of 32.
    Case::expect(Stage::MoeOut, &[100, 64], plain, |r, _| r >= 96, &[P::PositionRange], "positions ≥ 96");
    Case::expect(Stage::AttnOut, &[100, 64], plain, |r, _| r >= 92, &[P::PositionRange], "positions ≥ 92");
    let says = "last partial tile of rows: positions ≥ 96 (100 in tiles of 32)";
    Case::expect(Stage::AttnOut, &[100, 64], plain, |r, _| r >= 96, &[P::LastPartialTile], says);
    Case::expect(Stage::MoeOut, &shape, plain, |r, _| r % 2 == 0, &[P::PositionResidue], "even positions");
    let says = "last position only; columns 32–63, the last block of 32";
    let kinds = [P::LastPosition, P::ColumnBlock];
    Case::expect(Stage::MoeOut, &shape, plain, |r, c| r == 129 && c >= 32, &kinds, says);
}

/// A few places far apart are those places, and not all that lies between them.
#[test]
fn few_places_and_strides() {
    let rows = [23, 80, 151, 222, 290];
    let says = "positions 23, 80, 151, 222 and 290 only";
    Case::expect(Stage::MoeOut, &[300, 64], plain, |r, _| rows.contains(&r), &[P::PositionRange], says);
    let says = "columns 0 mod 9";
    Case::expect(Stage::AttnOut, &[17, 256], plain, |_, c| c % 9 == 0, &[P::ColumnResidue], says);
    // With one more that is not of the stride.
    let mut case = Case::new(Stage::AttnOut, &[17, 512]).plant(1e4, |_, c| c % 9 == 0 || c == 100);
    case.subject.iter_mut().skip(100).step_by(512).for_each(|x| *x += 1e-5);
    let p = case.find().unwrap();
    assert_eq!(p.description, format!("{says}; elsewhere 17 elements, by up to 9.7e3 × floor"));
    let some = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38];
    let p = Case::new(Stage::AttnOut, &[17, 256]).plant(1e4, |_, c| some.contains(&c)).find().unwrap();
    assert_eq!(p.description, "10 columns only: 3, 14, 15, … 92");
}

/// What is not finite is not hidden by any floor: half of a tensor is not the whole of it.
#[test]
fn half_of_a_tensor_is_not_all_of_it() {
    for every in [2, 6] {
        let mut case = Case::new(Stage::MoeOut, &[44, 128]);
        let hash = |i: usize| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        case.subject.iter_mut().enumerate().filter(|(i, _)| hash(*i) % every == 0).for_each(|(_, x)| *x = f64::NAN);
        let p = case.find().unwrap();
        assert_eq!(p.kind, P::Scattered, "{p:?}");
        assert!(p.description.contains("of 5632 elements, without a common place"), "{}", p.description);
    }
}

/// An error that barely shows may have others beside it.
#[test]
fn what_the_floor_may_hide_is_said() {
    let p = Case::new(Stage::MoeOut, &[17, 256]).plant(3.0, |r, _| r == 4).find().unwrap();
    assert_eq!(p.description, "at least position 4 only");
    let p = Case::new(Stage::MoeOut, &[17, 256]).plant(30.0, |r, _| r == 4).find().unwrap();
    assert_eq!(p.description, "position 4 only");
}

/// Five rows are wrong, and all the others a little beyond their floor: those five are where the error is, and the rest is said.
#[test]
fn what_is_hardly_beyond_its_floor_widens_nothing() {
    let rows = [23, 80, 151, 222, 290];
    for strength in [1e3, 1e5] {
        let case = Case::new(Stage::MoeOut, &[300, 64]).plant(1.4, |r, _| !rows.contains(&r));
        let p = case.plant(strength, |r, _| rows.contains(&r)).find().unwrap();
        let (place, elsewhere) = p.description.split_once("; elsewhere ").unwrap_or_else(|| panic!("{p:?}"));
        assert_eq!(place, "positions 23, 80, 151, 222 and 290 only");
        assert!(elsewhere.contains(" elements, by up to 2.") && elsewhere.ends_with(" × floor"), "{elsewhere}");
        assert_eq!((p.kinds.len(), p.elements), (1, 5 * 64));
    }
    // What is as large elsewhere is no less wrong.
    let p = Case::new(Stage::MoeOut, &[300, 64]).plant(1e4, |_, _| true).find().unwrap();
    assert_eq!(p.description, "whole tensor");
}

/// Rounding of all of a tensor next to its floor, of which most that shows is at even positions: they are not where it is.
#[test]
fn what_goes_on_elsewhere_nearly_as_wrong_has_no_place() {
    let some = |r: usize, c: usize| (c * 7 + r * 3).is_multiple_of(5);
    let case = Case::new(Stage::MoeOut, &[4, 128]).plant(8.0, |r, _| r % 2 == 0);
    let p = case.plant(2.2, |r, c| r % 2 == 1 && some(r, c)).find().unwrap();
    assert!([P::Scattered, P::WholeTensor].contains(&p.kind), "{p:?}");
    // Of which there are few, or which is far larger, is one.
    let case = Case::new(Stage::MoeOut, &[4, 128]).plant(8.0, |r, _| r % 2 == 0);
    let p = case.plant(2.2, |r, c| r % 2 == 1 && c % 32 == 0).find().unwrap();
    assert!(p.description.starts_with("positions 0 and 2 only"), "{p:?}");
    let case = Case::new(Stage::MoeOut, &[4, 128]).plant(80.0, |r, _| r % 2 == 0);
    let p = case.plant(2.2, |r, c| r % 2 == 1 && some(r, c)).find().unwrap();
    assert!(p.description.starts_with("positions 0 and 2 only"), "{p:?}");
}

/// An error that grows with the position: the floor hides where it begins.
#[test]
fn where_an_error_fades_into_the_floor_is_no_end() {
    let mut case = Case::new(Stage::QRope, &[40, 256]);
    for i in 0..case.subject.len() {
        case.subject[i] += 1e-6 * 0.4 * (i / 256) as f64 * noise(7 * i as u64 + 3);
    }
    let p = case.find().unwrap();
    assert!(p.description.starts_with("at least positions ≥ "), "{p:?}");
}

#[test]
fn heads() {
    let shape = [17, 512];
    let d = |c: &mut Case| c.head_dim = Some(64);
    Case::expect(Stage::QRope, &shape, d, |_, c| c >= 64, &[P::AllButHead], "all but head 0");
    Case::expect(Stage::QRope, &shape, d, |_, c| c / 64 == 3, &[P::Head], "head 3 only");
    Case::expect(Stage::QRope, &shape, d, |_, c| c % 64 >= 32, &[P::WithinHead], "second half of each head");
    let says = "dimension 9 only of each head";
    Case::expect(Stage::QRope, &shape, d, |_, c| c % 64 == 9, &[P::WithinHead], says);
    let odd = |r: usize, c: usize| r / 9 % 2 == 1 && c <= r % 9;
    Case::expect(Stage::AttnScores, &[8, 9, 9], plain, odd, &[P::Heads], "odd heads");
    let one = |r: usize, c: usize| r / 9 == 2 && c <= r % 9;
    Case::expect(Stage::AttnScores, &[8, 9, 9], plain, one, &[P::Head], "head 2 only");
    let first_key = |_, c: usize| c == 0;
    Case::expect(Stage::AttnProbs, &[8, 9, 9], plain, first_key, &[P::Column], "key 0 only");
}

#[test]
fn a_leaking_mask_is_above_the_diagonal() {
    let mut case = Case::new(Stage::AttnScores, &[4, 9, 12]);
    case.start = 3;
    let case = case.plant(1e5, |r, c| c == r % 9 + 3 + 1);
    let p = case.find().unwrap();
    assert_eq!((p.kind, p.description.as_str()), (P::Diagonal, "above the diagonal: keys 1 after the query"));
    assert_eq!(p.region.key_minus_query, Some([1, 1]));
}

#[test]
fn remainders_are_those_of_positions_in_the_sequence() {
    let case = |wrong: &dyn Fn(usize) -> bool| {
        let mut case = Case::new(Stage::MoeOut, &[60, 64]);
        case.start = 7;
        case.plant(1e3, |r, _| wrong(r)).find().unwrap()
    };
    let p = case(&|r| r % 2 == 0);
    assert_eq!((p.kind, p.description.as_str()), (P::PositionResidue, "odd positions"));
    let p = case(&|r| r % 3 == 2);
    assert_eq!((p.kind, p.description.as_str()), (P::PositionResidue, "positions 0 mod 3"));
    let span = p.region.positions.unwrap();
    assert_eq!((span.from, span.to, span.modulus, span.residues), (9, 66, Some(3), Some([0, 0])));
}

#[test]
fn everywhere_nowhere_and_one_element() {
    Case::expect(Stage::MoeOut, &[17, 256], plain, |_, _| true, &[P::WholeTensor], "whole tensor");
    let case = Case::new(Stage::MoeOut, &[17, 256]).plant(1e3, |r, c| (r * 2654435761 + c * 40503) % 211 == 0);
    assert_eq!(case.find().unwrap().kind, P::Scattered);
    let case = Case::new(Stage::MoeOut, &[17, 256]).plant(1e3, |r, c| r == 4 && c == 200);
    let p = case.find().unwrap();
    assert_eq!((p.kind, p.elements), (P::Element, 1), "{p:?}");
}

#[test]
fn regions_are_data() {
    let mut case = Case::new(Stage::ExpertDown, &[17, 2, 256]);
    with_ids(&mut case);
    let p = case.plant(64.0, |r, c| ids()[r] == 93 && c >= 224).find().unwrap();
    assert_eq!(p.region.experts, Some(vec![93]));
    let columns = p.region.columns.unwrap();
    assert_eq!((columns.from, columns.to, p.elements), (224, 255, 12 * 32));
}

#[test]
fn without_a_floor_a_loud_error_still_has_a_place() {
    let case = Case::new(Stage::MoeOut, &[17, 256]).plant(1e4, |_, c| (64..128).contains(&c));
    assert_eq!(case.find_with(None).unwrap().description, "columns 64–127, the 2nd block of 64");
}

#[test]
fn non_finite_values_have_a_place_too() {
    let mut case = Case::new(Stage::ExpertDown, &[17, 2, 256]);
    with_ids(&mut case);
    for (i, x) in case.subject.iter_mut().enumerate() {
        if ids()[i / 256] == 93 {
            *x = f64::NAN;
        }
    }
    let p = case.find().unwrap();
    assert_eq!(p.kind, P::Expert);
    assert_eq!(p.non_finite.unwrap().first, Some(vec![0, 0, 0]));
    assert_eq!(p.description, "3072 NaN and 0 infinite, the first at [0, 0, 0]: expert 93 only (12 of 34 rows)");
}

#[test]
fn nan_that_came_in_is_not_this_stages_pattern() {
    let mut case = Case::new(Stage::MoeOut, &[17, 256]);
    for i in 0..256 {
        (case.expected[i], case.subject[i], case.floor[i]) = (f64::NAN, f64::NAN, f64::NAN);
    }
    assert_eq!(case.find(), None);
    let case = case.plant(1e3, |r, _| r == 16);
    assert_eq!(case.find().unwrap().description, "last position only");
    assert_eq!(case.find_with(None).unwrap().description, "last position only");
    let mut case = Case::new(Stage::MoeOut, &[2, 4]);
    case.expected[..4].fill(f64::INFINITY);
    let p = case.find().unwrap();
    assert_eq!(p.description, "finite where the expected value is not: position 0 only");
    case.expected.fill(f64::NAN);
    case.subject.fill(f64::NAN);
    assert_eq!(case.find_with(None), None);
}

/// The relation of a subject that is a function of the expected values, with noise.
fn relation(
    shape: &[usize],
    head_dim: Option<usize>,
    f: impl Fn(&[f64], usize, usize) -> f64,
) -> Option<(RelationKind, String)> {
    let mut case = Case::new(Stage::QNorm, shape);
    case.head_dim = head_dim;
    for i in 0..case.subject.len() {
        case.subject[i] = f(&case.expected, i / shape[1], i % shape[1]) + 1e-6 * noise(!(i as u64));
    }
    case.find().unwrap().relation.map(|r| (r.kind, r.description))
}

#[test]
fn relations() {
    let shape = [9, 64];
    let at = |x: &[f64], r: usize, c: usize| x[r * 64 + c];
    let kind = |f: &dyn Fn(&[f64], usize, usize) -> f64| relation(&shape, Some(16), f);
    let (k, text) = kind(&|x, r, c| at(x, r, c) * 2f64.sqrt()).unwrap();
    assert_eq!((k, text.as_str()), (RelationKind::Scale, "every element there is 1.41421 × expected"));
    let (_, text) = kind(&|x, r, c| at(x, r, c) * 4.0).unwrap();
    assert_eq!(text, "every element there is 4.000000 = √head_dim × expected");
    let (_, text) = kind(&|x, r, c| at(x, r, c) * (1.0 + 1e-4)).unwrap();
    assert!(text.starts_with("every element there is (1 + 9.99"), "{text}");
    assert_eq!(kind(&|x, r, c| -at(x, r, c)).unwrap().0, RelationKind::SignFlip);
    assert_eq!(kind(&|x, r, c| at(x, r, c) + 0.25).unwrap().0, RelationKind::Offset);
    let halves = kind(&|x, r, c| at(x, r, c / 16 * 16 + (c % 16 + 8) % 16)).unwrap();
    assert_eq!(halves.1, "the two halves of each head are exchanged");
    assert_eq!(kind(&|x, r, c| at(x, r, c ^ 1)).unwrap().0, RelationKind::PairsExchanged);
    // One column that holds its neighbour is no exchange; nor are halves of which one is right.
    let one = Case::new(Stage::MoeOut, &shape);
    let with = |wrong: &dyn Fn(usize) -> Option<usize>| {
        let mut case = Case { head_dim: Some(16), ..Case::new(Stage::MoeOut, &shape) };
        for (r, c) in (0..9).flat_map(|r| (0..64).map(move |c| (r, c))) {
            if let Some(from) = wrong(c) {
                case.subject[r * 64 + c] = one.expected[r * 64 + from];
            }
        }
        case.find().unwrap().relation.map(|relation| relation.kind)
    };
    assert_eq!(with(&|c| (c == 41).then_some(40)), Some(RelationKind::ShiftedColumn));
    assert_eq!(with(&|c| (c == 40 || c == 41).then_some(c ^ 1)), Some(RelationKind::PairsExchanged));
    assert_eq!(with(&|c| (c % 16 >= 8).then(|| c - 8)), None);
    let stale = kind(&|x, r, c| at(x, r.saturating_sub(1), c)).unwrap();
    assert_eq!(stale, (RelationKind::ShiftedRow, "each row there is the row before it".into()));
    let column = kind(&|x, r, c| at(x, r, (c + 1).min(63))).unwrap();
    assert_eq!(column.1, "each element there is the one after it");
    assert_eq!(kind(&|x, r, c| at(x, r, c) * (1.0 + r as f64)).unwrap().0, RelationKind::GroupScale);
    assert_eq!(kind(&|x, r, c| at(x, r, c) + noise((r * 64 + c) as u64 ^ 0xABCDEF)), None);
    let mut zero = Case::new(Stage::MoeOut, &[9, 64]);
    zero.subject.iter_mut().skip(8 * 64).for_each(|x| *x = 0.0);
    let p = zero.find().unwrap();
    assert_eq!((p.kind, p.relation.unwrap().kind), (P::LastPosition, RelationKind::Zero));
}

#[test]
fn an_empty_tensor_has_no_pattern_and_a_short_one_does_not_panic() {
    assert_eq!(Case::new(Stage::MoeOut, &[0, 256]).find(), None);
    for shape in [[1, 1], [1, 2], [2, 1], [3, 5]] {
        let _ = Case::new(Stage::MoeOut, &shape).plant(100.0, |_, _| true).find();
    }
    let _ = Case::new(Stage::AttnScores, &[1, 1, 1]).plant(100.0, |_, _| true).find();
}

/// Of a decoded token's row nothing is shorter than to list what is wrong, and of other rows neither: a few are named all the same.
#[test]
fn a_few_places_are_named_wherever_they_are() {
    let of_one_row = |c: usize| c == 109 || c == 213;
    let case = Case::new(Stage::AttnResidual, &[1, 256]).plant(1e6, |_, c| of_one_row(c));
    let p = case.find().unwrap();
    assert_eq!((&p.kinds[..], &p.description[..]), (&[P::ColumnRange][..], "columns 109 and 213 only"));
    assert_eq!((p.elements, p.share), (2, 1.0));
    let case = Case::new(Stage::MoeOut, &[9, 64]).plant(1e6, |r, c| [(0, 5), (3, 40), (7, 22)].contains(&(r, c)));
    let p = case.find().unwrap();
    assert_eq!(
        (p.kind, &p.description[..]),
        (P::Scattered, "scattered: 3 of 576 elements, [0, 5], [3, 40] and [7, 22]")
    );
    // What the floor may hide more of is not told place by place.
    let mut case = Case::new(Stage::AttnResidual, &[1, 256]);
    for c in [109, 213] {
        case.subject[c] = case.expected[c] + 3e-6;
    }
    assert_eq!(case.find().unwrap().description, "scattered: at least 2 of 256 elements, without a common place");
}

/// The regions that are offered where exactly the elements of `wrong(row, column)` are wrong.
fn offered(case: &Case, wrong: impl Fn(usize, usize) -> bool) -> Vec<ErrorRegion> {
    let cols = case.shape[case.shape.len() - 1];
    let all: Vec<usize> = (0..case.expected.len()).filter(|i| wrong(i / cols, i % cols)).collect();
    let offered = regions(&case.geometry(), &all);
    for region in &offered {
        let elements = region.elements();
        let contained: Vec<usize> = (0..case.expected.len()).filter(|i| region.contains(*i)).collect();
        assert_eq!(elements, contained, "{}", region.describe());
        assert!(all.iter().all(|i| elements.binary_search(i).is_ok()), "{}", region.describe());
        assert!(elements.len() < case.expected.len() && region.axes().next().is_some(), "{}", region.describe());
    }
    assert!(offered.is_sorted_by_key(|r| r.axes().count()) && offered.len() <= 32);
    offered
}

#[test]
fn regions_hold_every_wrong_element_and_the_simplest_comes_first() {
    let words = |case: &Case, wrong: &dyn Fn(usize, usize) -> bool| -> String {
        offered(case, wrong).first().map(ErrorRegion::describe).unwrap_or_default()
    };
    let mut case = Case::new(Stage::QRope, &[13, 256]);
    case.head_dim = Some(64);
    case.start = 7;
    assert_eq!(words(&case, &|r, _| r == 5), "position 12 only");
    assert_eq!(words(&case, &|r, _| r == 12), "last position only");
    assert_eq!(words(&case, &|r, _| r != 5), "all but position 12");
    assert_eq!(words(&case, &|r, _| r % 2 == 0), "odd positions");
    assert_eq!(words(&case, &|r, _| r % 3 == 1), "positions 2 mod 3");
    assert_eq!(words(&case, &|_, c| c == 3 || c == 190), "columns 3 and 190 only");
    assert_eq!(words(&case, &|_, c| c % 64 >= 32), "second half of each head");
    assert_eq!(words(&case, &|_, c| c / 64 == 2), "head 2 only");
    assert_eq!(words(&case, &|_, c| c / 64 != 0), "all but head 0");
    assert_eq!(words(&case, &|_, c| c % 64 == 9), "dimension 9 only of each head");
    assert_eq!(words(&case, &|_, c| c >= 250), "columns ≥ 250");
    let both = offered(&case, |r, c| r == 12 && c / 64 == 1);
    let both = both.iter().find(|r| r.axes().count() == 2).unwrap();
    assert_eq!((both.describe().as_str(), both.elements().len()), ("head 1 only; last position only", 64));
    assert!(offered(&case, |_, _| true).is_empty() && offered(&case, |_, _| false).is_empty());

    let mut case = Case::new(Stage::ExpertDown, &[17, 2, 64]);
    with_ids(&mut case);
    assert_eq!(words(&case, &|r, _| ids()[r] == 93), "expert 93 only");
    assert_eq!(words(&case, &|r, _| [93, 100].contains(&ids()[r])), "experts 93 and 100 only");
    // Experts 42, 45, 48, 51 and 54: those between them that nobody chose are neither right nor wrong.
    assert_eq!(words(&case, &|r, _| ids()[r] < 93), "experts 42, 45, 48, 51 and 54 only");
    assert_eq!(words(&case, &|r, _| r % 2 == 1), "slot 1 only");
    let case = Case::new(Stage::AttnScores, &[4, 9, 9]);
    assert_eq!(words(&case, &|r, _| r / 9 == 2), "head 2 only");
    assert_eq!(words(&case, &|_, c| c == 4), "key 4 only");
}

#[test]
fn a_set_that_holds_a_cheaper_one_is_not_offered() {
    let case = Case::new(Stage::MoeOut, &[8, 512]);
    let words: Vec<String> = offered(&case, |_, c| c == 77).iter().map(ErrorRegion::describe).collect();
    assert_eq!(words, ["column 77 only"]);
    // A few elements of a block are wrong: the block is cheaper to name than the range that holds them, and tried before it.
    let some = |r: usize, c: usize| (66..95).contains(&c) && (3 * r + c).is_multiple_of(11);
    let words: Vec<String> = offered(&case, some).iter().map(ErrorRegion::describe).collect();
    assert_eq!(words, ["columns 64–95, the 3rd block of 32", "columns 66–93", "columns 1–15 of each 16"]);
}
