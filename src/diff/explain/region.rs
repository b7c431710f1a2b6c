//! Where a mistake is made: the simplest region that holds every wrong element.
//!
//! An element has coordinates: its position and column, and where the stage has them its expert, head and slot. A region restricts
//! one or two of them. It is read off the wrong elements, so a mistake made in one expert only needs no hypothesis of its own.

use std::rc::Rc;

use super::case::Case;
use crate::op::Stage;

/// A coordinate of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    Expert,
    Head,
    Position,
    Slot,
    Column,
}

/// The coordinates of every element of a stage.
struct Layout<'a> {
    cols: usize,
    /// T.
    tokens: usize,
    /// [heads, T, S] rather than [T, …].
    matrix: bool,
    /// Rows in a position: K of a [T, K, N] stage.
    slots: usize,
    /// Columns of a head, where the columns are heads.
    head_dim: Option<usize>,
    ids: Option<&'a [u32]>,
    rows: usize,
    start: usize,
}

impl<'a> Layout<'a> {
    fn of(case: &'a Case<'a>) -> Self {
        use Stage::*;
        let shape = &case.scene.output.shape;
        let matrix = case.is_attention_matrix();
        let per_slot = shape.len() == 3 && !matrix;
        let heads =
            matches!(case.scene.site.stage, QProj | KProj | VProj | QNorm | KNorm | QRope | KRope | AttnContext);
        let rows = case.output.len() / case.cols();
        let ids = per_slot.then(|| case.ids()).flatten().map(|t| t.ids()).filter(|ids| ids.len() == rows);
        Self {
            cols: case.cols(),
            tokens: case.tokens().max(1),
            matrix,
            slots: if per_slot { shape[1].max(1) } else { 1 },
            head_dim: heads.then_some(case.scene.config.head_dim.max(1)),
            ids,
            rows,
            start: case.scene.start,
        }
    }

    /// How many values a coordinate can take; 0 where the stage does not have it.
    fn extent(&self, axis: Axis) -> usize {
        match axis {
            Axis::Expert => self.ids.and_then(|ids| ids.iter().max()).map_or(0, |id| *id as usize + 1),
            Axis::Head if self.matrix => self.rows / self.tokens,
            Axis::Head => self.head_dim.map_or(0, |d| self.cols / d),
            Axis::Position => self.tokens,
            Axis::Slot if self.slots == 1 => 0,
            Axis::Slot => self.slots,
            Axis::Column => self.cols,
        }
    }

    fn coordinate(&self, axis: Axis, i: usize) -> usize {
        let (row, column) = (i / self.cols, i % self.cols);
        match axis {
            Axis::Expert => self.ids.map_or(0, |ids| ids[row] as usize),
            Axis::Head if self.matrix => row / self.tokens,
            Axis::Head => self.head_dim.map_or(0, |d| column / d),
            Axis::Position if self.matrix => row % self.tokens,
            Axis::Position => row / self.slots,
            Axis::Slot => row % self.slots,
            Axis::Column => column,
        }
    }

    /// What is wrong along one axis, if it is a part of it and a simple one.
    fn restriction(&self, axis: Axis, wrong: &[usize]) -> Option<Restriction> {
        let extent = self.extent(axis);
        let mut holds = vec![false; extent];
        if extent > 0 {
            wrong.iter().for_each(|i| holds[self.coordinate(axis, *i)] = true);
        }
        // Experts that nobody chose are neither right nor wrong.
        let mut present = vec![axis != Axis::Expert; extent];
        if let (Axis::Expert, Some(ids)) = (axis, self.ids) {
            ids.iter().for_each(|id| present[*id as usize] = true);
        }
        let offset = if axis == Axis::Position { self.start } else { 0 };
        let with = |value: bool| -> Vec<usize> {
            (0..extent).filter(|v| present[*v] && holds[*v] == value).map(|v| v + offset).collect()
        };
        let (inside, outside) = (with(true), with(false));
        let (first, last) = (*inside.first()?, *inside.last()?);
        let whole = outside.iter().all(|v| !(first..=last).contains(v));
        let name = match axis {
            Axis::Expert => "expert",
            Axis::Head => "head",
            Axis::Position => "position",
            Axis::Slot => "slot",
            Axis::Column if self.matrix => "key",
            Axis::Column => "column",
        };
        let list = |of: &[usize]| of.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let words = match (inside.len(), outside.len()) {
            (_, 0) => return None,
            (1, _) => format!("only {name} {first}"),
            (_, 1) => format!("all {name}s but {}", outside[0]),
            _ if whole => format!("only {name}s {first}–{last}"),
            (2..=8, _) if matches!(axis, Axis::Expert | Axis::Head) => format!("only {name}s {}", list(&inside)),
            _ => return None,
        };
        Some(Restriction { axis, words, holds })
    }
}

struct Restriction {
    axis: Axis,
    words: String,
    /// By coordinate.
    holds: Vec<bool>,
}

/// A part of a stage.
pub struct Region<'a> {
    /// "only expert 3".
    pub what: String,
    layout: Rc<Layout<'a>>,
    parts: Vec<Rc<Restriction>>,
}

impl Region<'_> {
    pub fn contains(&self, i: usize) -> bool {
        self.parts.iter().all(|p| p.holds[self.layout.coordinate(p.axis, i)])
    }
    /// Its elements, ascending.
    pub fn elements(&self) -> Vec<usize> {
        (0..self.layout.rows * self.layout.cols).filter(|i| self.contains(*i)).collect()
    }
    /// How many coordinates it restricts.
    pub fn restricted(&self) -> usize {
        self.parts.len()
    }
}

/// The regions that hold every wrong element and not the whole stage, simplest first.
pub fn regions<'a>(case: &'a Case<'a>) -> Vec<Region<'a>> {
    let layout = Rc::new(Layout::of(case));
    let axes = [Axis::Expert, Axis::Head, Axis::Position, Axis::Slot, Axis::Column];
    let found: Vec<Rc<Restriction>> =
        axes.into_iter().filter_map(|axis| layout.restriction(axis, &case.wrong)).map(Rc::new).collect();
    let region = |parts: &[&Rc<Restriction>]| Region {
        what: parts.iter().map(|p| p.words.clone()).collect::<Vec<_>>().join(", "),
        layout: layout.clone(),
        parts: parts.iter().map(|p| (*p).clone()).collect(),
    };
    let mut regions: Vec<Region<'a>> = found.iter().map(|r| region(&[r])).collect();
    for (i, a) in found.iter().enumerate() {
        regions.extend(found[i + 1..].iter().map(|b| region(&[a, b])));
    }
    regions
}
