//! What a case's result is worth: its error against the float64 oracle, over the floor of the contract.

use serde::{Deserialize, Serialize};

use super::case::{ElementPlace, FailingCall};
use crate::backend::Contract;
use crate::diff::locate::Pattern;
use crate::diff::locate::{self, Geometry};
use crate::diff::run::verdicts::error;
use crate::error::{Error, Result};
use crate::formula::exact::exact;
use crate::formula::floor::{Ratio, floor_of, injected_ratio};
use crate::op::HostTensor;

/// A result with what it is held against.
#[derive(Clone, Debug)]
pub struct RerunCheck {
    pub output: HostTensor,
    /// The oracle's result on the same operands, rounded as the contract says.
    pub exact: HostTensor,
    /// For each element, the error that the contract allows.
    pub floor: Vec<f64>,
    pub ratio: Ratio,
}

impl RerunCheck {
    /// Judges `output` as a comparison does: the oracle computes the case on operands that are rounded as `contract` says.
    ///
    /// # Errors
    /// If the oracle cannot compute the case, or `output` has another shape than its result.
    pub fn new(case: &FailingCall, contract: &Contract, output: HostTensor) -> Result<Self> {
        let op = case.op();
        let exact = exact(&op, contract)?;
        let floor = floor_of(&op, contract, &exact)?;
        Self::against(case, exact, floor, output)
    }

    /// Judges `output` by an oracle's result and floors that are known already.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn against(case: &FailingCall, exact: HostTensor, floor: Vec<f64>, output: HostTensor) -> Result<Self> {
        if output.shape != exact.shape {
            return Err(Error::cannot_run(format!(
                "{}: the result is {:?}, the oracle's is {:?}",
                case.site, output.shape, exact.shape
            )));
        }
        let ratio = injected_ratio(&error(&output, &exact), &floor);
        Ok(Self { output, exact, floor, ratio })
    }

    /// Whether some element is off by more than its floor.
    pub fn fails(&self) -> bool {
        !self.ratio.explained()
    }

    /// Where in the result the error sits, in the coordinates of the case.
    pub fn pattern(&self, case: &FailingCall, head_dim: usize) -> Option<Pattern> {
        let ids: Vec<u32> = case.kept.rows.iter().flat_map(|row| row.slots.iter().map(|s| s.expert)).collect();
        let geometry = Geometry {
            stage: case.site.stage,
            shape: &self.output.shape,
            start: case.params.start().unwrap_or(case.kept.rows[0].position),
            ids: Some(&ids),
            head_dim: Some(head_dim),
            qtype: case.weight.as_ref().map(|w| w.ty),
        };
        locate::find(&geometry, &self.exact.to_f64(), &self.output.to_f64(), Some(&self.floor))
    }

    /// The element that is furthest beyond its floor.
    pub fn worst(&self, case: &FailingCall) -> Option<Worst> {
        let index = self.ratio.index?;
        let finite = |x: f64| x.is_finite().then_some(x);
        Some(Worst {
            place: case.place(index),
            expected: finite(self.exact.to_f64()[index]),
            found: finite(self.output.to_f64()[index]),
            floor: finite(self.floor[index]),
        })
    }

    pub fn figures(&self, case: &FailingCall) -> Figures {
        Figures {
            verdict: if self.fails() { "subject_wrong" } else { "ok" }.into(),
            ratio: self.ratio.max.is_finite().then_some(self.ratio.max),
            elements: self.floor.len(),
            beyond: self.ratio.beyond,
            non_finite: self.ratio.non_finite,
            worst: self.worst(case),
        }
    }
}

/// A judgement in figures, as files and documents have it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// `subject_wrong` or `ok`.
    pub verdict: String,
    /// The largest |error| / floor; `null` where it is infinite: an error that may not be, or one that is not a number.
    pub ratio: Option<f64>,
    pub elements: usize,
    /// Elements off by more than their floor, and those of them whose error is not finite.
    pub beyond: usize,
    pub non_finite: usize,
    pub worst: Option<Worst>,
}

/// An element in figures; `null` where a number is not finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worst {
    /// In the whole stage.
    pub place: ElementPlace,
    pub expected: Option<f64>,
    pub found: Option<f64>,
    pub floor: Option<f64>,
}

impl std::fmt::Display for Worst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |x: Option<f64>| x.map_or("not finite".into(), |x| format!("{x:.7e}"));
        let (expected, found) = (number(self.expected), number(self.found));
        let floor = self.floor.map_or("none".into(), |x| format!("{x:.1e}"));
        write!(f, "{}: expected {expected}, found {found}; floor {floor}", self.place)
    }
}
