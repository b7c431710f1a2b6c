//! The smallest case that still fails.
//!
//! Design:
//! - Along each axis the place of the worst element is tried alone first; mostly that is enough. If not, delta debugging
//!   (Zeller and Hildebrandt's ddmin) over what the axis may be cut into, or bisection from both ends where rows must stay
//!   consecutive.
//! - A cut counts only if the error stays what it was: at least a sixteenth of its ratio, and not a number where it was not
//!   one. Otherwise one would end with another, weaker fault.
//! - The number of runs is bounded; what is reached by then is kept.

use super::case::FailingCall;
use super::cut::{CutAxis, CutChoice};
use super::verdict::RerunCheck;
use crate::error::Result;

/// How much of its ratio an error must keep.
const KEPT_RATIO: f64 = 1.0 / 16.0;

/// A case, its judgement, and how it was found.
pub struct Shrunk {
    pub case: FailingCall,
    pub judged: RerunCheck,
    pub runs: usize,
    /// Whether it is the bound on runs that ended the search.
    pub stopped: bool,
}

/// Shrinks a failing `case`, running at most `most` others; `run` runs and judges one.
///
/// # Errors
/// What `run` reports.
pub fn shrink(
    case: FailingCall,
    judged: RerunCheck,
    most: usize,
    run: &mut dyn FnMut(&FailingCall) -> Result<RerunCheck>,
) -> Result<Shrunk> {
    let least = if judged.ratio.max.is_finite() { judged.ratio.max * KEPT_RATIO } else { f64::INFINITY };
    let mut search = Search { case, judged, runs: 0, most, least: least.max(1.0), run };
    // An axis that could not be cut may be once another is: until nothing changes.
    loop {
        let before = search.case.clone();
        for axis in [
            CutAxis::Rows,
            CutAxis::Slots,
            CutAxis::Columns,
            CutAxis::Heads,
            CutAxis::Group,
            CutAxis::Keys,
            CutAxis::Experts,
            CutAxis::Blocks,
        ] {
            search.cut(axis)?;
            if axis == CutAxis::Rows && search.flatten()? {
                search.cut(CutAxis::Rows)?;
            }
        }
        let same = before.kept == search.case.kept && before.params == search.case.params;
        if same || search.spent() {
            break;
        }
    }
    Ok(Shrunk { stopped: search.spent(), case: search.case, judged: search.judged, runs: search.runs })
}

struct Search<'r> {
    case: FailingCall,
    judged: RerunCheck,
    runs: usize,
    most: usize,
    /// The least ratio that still counts.
    least: f64,
    run: &'r mut dyn FnMut(&FailingCall) -> Result<RerunCheck>,
}

impl Search<'_> {
    fn spent(&self) -> bool {
        self.runs >= self.most
    }

    /// Takes `candidate` if it fails as well.
    fn take(&mut self, candidate: FailingCall) -> Result<bool> {
        if self.spent() {
            return Ok(false);
        }
        self.runs += 1;
        let judged = (self.run)(&candidate)?;
        let fails = judged.fails() && judged.ratio.max >= self.least;
        if fails {
            (self.case, self.judged) = (candidate, judged);
        }
        Ok(fails)
    }

    fn keep(&mut self, axis: CutAxis, keep: &[usize]) -> Result<bool> {
        let candidate = self.case.cut(axis, keep)?;
        self.take(candidate)
    }

    fn flatten(&mut self) -> Result<bool> {
        match self.case.flat() {
            Some(flat) => self.take(flat?),
            None => Ok(false),
        }
    }

    fn cut(&mut self, axis: CutAxis) -> Result<()> {
        let Some((_, choice)) = self.case.axes().into_iter().find(|(a, _)| *a == axis) else { return Ok(()) };
        let worst = self.judged.ratio.index.and_then(|i| self.case.coordinate(axis, i));
        let alone = match choice {
            CutChoice::Suffix | CutChoice::AnyOrNone => Some(vec![]),
            CutChoice::Any | CutChoice::Range => worst.map(|w| vec![w]),
        };
        if let Some(keep) = alone
            && self.keep(axis, &keep)?
        {
            return Ok(());
        }
        match choice {
            CutChoice::Any | CutChoice::AnyOrNone => self.minimize(axis),
            CutChoice::Range => self.trim(axis, true).and_then(|()| self.trim(axis, false)),
            CutChoice::Suffix => self.trim(axis, true),
        }
    }

    /// ddmin: halves, then quarters and all but a quarter, and so on.
    fn minimize(&mut self, axis: CutAxis) -> Result<()> {
        let mut parts = 2;
        loop {
            let n = self.case.count(axis);
            if n <= 1 || self.spent() {
                return Ok(());
            }
            parts = parts.min(n);
            let of = parts;
            let part = |p: usize| p * n / of..(p + 1) * n / of;
            let mut progress = false;
            // The part with the worst element first, and dropped last: the error stays the same one while it can.
            let worst = self.judged.ratio.index.and_then(|i| self.case.coordinate(axis, i));
            let mut order: Vec<usize> = (0..of).collect();
            order.sort_by_key(|p| !worst.is_some_and(|w| part(*p).contains(&w)));
            for &p in &order {
                if self.keep(axis, &part(p).collect::<Vec<_>>())? {
                    (parts, progress) = (2, true);
                    break;
                }
            }
            if !progress && of > 2 {
                for &p in order.iter().rev() {
                    let rest: Vec<usize> = (0..n).filter(|i| !part(p).contains(i)).collect();
                    if self.keep(axis, &rest)? {
                        (parts, progress) = (parts - 1, true);
                        break;
                    }
                }
            }
            if !progress {
                if parts == n {
                    return Ok(());
                }
                parts *= 2;
            }
        }
    }

    /// Cuts from one end, by halves of what is left, then by less and less.
    fn trim(&mut self, axis: CutAxis, front: bool) -> Result<()> {
        let mut step = self.case.count(axis) / 2;
        while step > 0 {
            let n = self.case.count(axis);
            let keep: Vec<usize> =
                if front { (step.min(n)..n).collect() } else { (0..n.saturating_sub(step)).collect() };
            if keep.is_empty() || !self.keep(axis, &keep)? {
                step /= 2;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::{CpuBackend, Level};
    use crate::backend::{Backend, Contract};
    use crate::op::{GgmlType, HostTensor, OpKind, OpParams, Site, Stage, Weight};
    use crate::quant::random::Rng;
    use crate::repro::case::{KeptRow, Provenance, Slot};

    fn normal(rng: &mut Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| rng.normal()).collect()
    }

    fn contract(op: OpKind) -> Contract {
        CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap().contract(op)
    }

    fn rows(positions: std::ops::Range<usize>, slots: &[u32]) -> Vec<KeptRow> {
        let k = slots.len() / positions.len();
        positions
            .enumerate()
            .map(|(t, position)| {
                let slots = (0..k).map(|slot| Slot { slot, expert: slots[t * k + slot] });
                KeptRow { position, slots: slots.collect() }
            })
            .collect()
    }

    /// Shrinks a case whose fault `wrong` puts into the right result, told by the places of its elements.
    fn shrunk(case: FailingCall, wrong: impl Fn(&FailingCall, &crate::repro::case::ElementPlace) -> bool) -> Shrunk {
        let mut cpu = CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap();
        let contract = contract(case.op().kind());
        let mut run = |case: &FailingCall| {
            let mut output = case.run(&mut cpu)?;
            let faulty = output.to_f32().into_iter().enumerate();
            let values = faulty.map(|(i, x)| if wrong(case, &case.place(i)) { x + 1.0 + x.abs() } else { x }).collect();
            output = HostTensor::f32(&output.shape, values);
            RerunCheck::new(case, &contract, output)
        };
        let judged = run(&case).unwrap();
        assert!(judged.fails());
        shrink(case, judged, 300, &mut run).unwrap()
    }

    fn experts() -> FailingCall {
        let mut rng = Rng::new(7, 0);
        let ids: Vec<u32> = (0..17).flat_map(|t| [t % 5, 5 + t % 2]).collect();
        let weight: Vec<u8> = normal(&mut rng, 8 * 24 * 96).iter().flat_map(|x| x.to_le_bytes()).collect();
        let weight = Weight::from_vec("blk.1.ffn_down_exps.weight", GgmlType::F32, [96, 24, 8], weight).unwrap();
        let kept = Provenance {
            rows: rows(3..20, &ids),
            columns: (0..24).collect(),
            experts: (0..8).collect(),
            blocks: (0..3).collect(),
            ..Provenance::default()
        };
        let x = HostTensor::f32(&[17, 2, 96], normal(&mut rng, 17 * 2 * 96));
        let inputs = vec![x, HostTensor::u32(&[17, 2], ids)];
        FailingCall::new(
            Site::layer(1, Stage::ExpertDown),
            OpParams::ExpertMatMul { x: (), ids: (), weight: () },
            inputs,
            Some(weight),
            kept,
        )
        .unwrap()
    }

    #[test]
    fn one_wrong_element_ends_as_one_element() {
        let s = shrunk(experts(), |_, place| place.position == 9 && place.column == 17 && place.slot == Some(1));
        assert_eq!(s.case.shape(), [1, 1, 1]);
        assert_eq!(s.case.kept.rows, [KeptRow { position: 9, slots: vec![Slot { slot: 1, expert: 5 }] }]);
        let kept = &s.case.kept;
        assert_eq!((&kept.columns[..], &kept.experts[..], kept.blocks.len()), (&[17][..], &[5][..], 1));
        assert_eq!(s.case.weight.as_ref().unwrap().dims(), [32, 1]);
        assert!(!s.stopped && s.runs < 20, "{} runs", s.runs);
    }

    #[test]
    fn what_the_fault_needs_stays() {
        // Wrong only where at least three rows and expert 7, which nobody chose, are there.
        let s = shrunk(experts(), |case, place| {
            place.column == 2 && case.positions() >= 3 && case.kept.experts.contains(&7)
        });
        assert_eq!(s.case.positions(), 3);
        assert_eq!(s.case.kept.columns, [2]);
        assert!(s.case.kept.experts.contains(&7) && s.case.kept.experts.len() <= 4, "{:?}", s.case.kept.experts);
    }

    #[test]
    fn attention_keeps_positions_in_place() {
        let (t, start, head_dim) = (6, 5, 8);
        let mut rng = Rng::new(3, 0);
        let q = HostTensor::f32(&[t, 4 * head_dim], normal(&mut rng, t * 4 * head_dim));
        let k = HostTensor::f32(&[start + t, 2 * head_dim], normal(&mut rng, (start + t) * 2 * head_dim));
        let kept = Provenance {
            rows: rows(start..start + t, &[]),
            columns: (0..start + t).collect(),
            heads: (0..4).collect(),
            ..Provenance::default()
        };
        let params = OpParams::AttnScores { q: (), k: (), start, head_dim, scale: None, window: None };
        let case = FailingCall::new(Site::layer(0, Stage::AttnScores), params, vec![q, k], None, kept).unwrap();
        let s = shrunk(case, |_, place| place.head == Some(3) && place.position == 8 && place.column == 6);
        assert_eq!((s.case.kept.heads.as_slice(), s.case.kept.rows[0].position), (&[3][..], 8));
        assert_eq!(s.case.kept.rows.len(), 1);
        assert!(
            s.case.kept.columns.contains(&6) && s.case.kept.columns.last() == Some(&8),
            "{:?}",
            s.case.kept.columns
        );
        assert!(s.case.kept.columns.len() <= 3, "{:?}", s.case.kept.columns);
    }

    /// Of a product by heads that keeps what it does not multiply: from one element of head 2 to that row, that head and one block.
    #[test]
    fn a_product_by_heads_ends_as_one_element_of_a_head() {
        let (k, n, heads, beyond) = (96, 5, 4, 3);
        let mut rng = Rng::new(11, 0);
        let weight: Vec<u8> = normal(&mut rng, heads * n * k).iter().flat_map(|x| x.to_le_bytes()).collect();
        let weight = Weight::from_vec("blk.1.attn_k_b.weight", GgmlType::F32, [k, n, heads], weight).unwrap();
        for of_x in [1, heads] {
            let width = of_x * (k + beyond);
            let x = HostTensor::f32(&[7, width], normal(&mut rng, 7 * width));
            let columns = heads * (n + beyond);
            let kept = Provenance {
                rows: rows(2..9, &[]),
                columns: (0..columns).collect(),
                blocks: (0..3).collect(),
                ..Provenance::default()
            };
            let params = OpParams::HeadMatMul { x: (), weight: (), head_dim: k + beyond, keep: true };
            let site = Site::layer(1, Stage::QAbsorbed);
            let case = FailingCall::new(site, params, vec![x], Some(weight.clone()), kept).unwrap();
            let wrong = 2 * (n + beyond) + 4;
            let s = shrunk(case.clone(), |_, place| place.position == 6 && place.column == wrong);
            assert_eq!((s.case.kept.rows[0].position, s.case.positions()), (6, 1), "{of_x} heads of x");
            let tail = (2 * (n + beyond) + n)..3 * (n + beyond);
            assert_eq!(s.case.kept.columns, [wrong].into_iter().chain(tail).collect::<Vec<_>>());
            let weight = s.case.weight.as_ref().unwrap();
            assert_eq!(
                ([weight.cols, weight.rows, weight.experts], s.case.inputs[0].cols()),
                ([32, 1, 1], 32 + beyond)
            );
            assert!(!s.stopped && s.runs < 20, "{} runs", s.runs);
            // One that is kept has no row of a matrix, and stays whatever else goes.
            let wrong = 2 * (n + beyond) + n + 1;
            let s = shrunk(case, |_, place| place.position == 3 && place.column == wrong);
            assert!(s.case.kept.columns.contains(&wrong) && s.case.weight.as_ref().unwrap().rows == 1);
            assert_eq!((s.case.weight.as_ref().unwrap().experts, s.case.positions()), (1, 1));
        }
    }

    /// Of a norm what it keeps as it is stays, whichever of its groups do.
    #[test]
    fn a_norm_that_keeps_columns_is_cut_in_its_groups() {
        let mut rng = Rng::new(12, 0);
        let weight: Vec<u8> = normal(&mut rng, 64).iter().flat_map(|x| x.to_le_bytes()).collect();
        let weight = Weight::from_vec("blk.1.attn_kv_a_norm.weight", GgmlType::F32, [64, 1, 1], weight).unwrap();
        let x = HostTensor::f32(&[4, 3 * 64 + 70], normal(&mut rng, 4 * (3 * 64 + 70)));
        let kept = Provenance {
            rows: rows(0..4, &[]),
            columns: (0..3 * 64 + 70).collect(),
            blocks: (0..2).collect(),
            ..Provenance::default()
        };
        let params = OpParams::RmsNorm { x: (), weight: (), eps: 1e-6, keep: 70 };
        let case = FailingCall::new(Site::layer(1, Stage::KvNorm), params, vec![x], Some(weight), kept).unwrap();
        let s = shrunk(case, |_, place| place.position == 2 && place.column == 100);
        assert_eq!((s.case.kept.rows.len(), s.case.shape()), (1, &[1, 32 + 70][..]));
        assert_eq!(s.case.kept.columns, (96..128).chain(192..262).collect::<Vec<_>>());
    }

    #[test]
    fn the_number_of_runs_is_bounded() {
        let case = experts();
        let contract = contract(OpKind::ExpertMatMul);
        let mut cpu = CpuBackend::new(Some(Level::Scalar), Some(1)).unwrap();
        let mut runs = 0;
        let mut run = |case: &FailingCall| {
            runs += 1;
            let output = case.run(&mut cpu)?;
            let wrong = output.to_f32().into_iter().map(|x| 2.0 * x + 1.0).collect();
            RerunCheck::new(case, &contract, HostTensor::f32(&output.shape, wrong))
        };
        let judged = run(&case).unwrap();
        let s = shrink(case, judged, 3, &mut run).unwrap();
        assert!(s.stopped && s.judged.fails());
        assert_eq!((s.runs, runs), (3, 4));
    }
}
