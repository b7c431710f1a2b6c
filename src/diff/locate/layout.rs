//! The coordinates of a stage's elements, along the axes that the stage table gives it.

use super::axis::{Axis, Marginal, Tally, Words};
use crate::op::{Dim, GgmlType, OpKind, Stage};

/// A stage's shape, and what is known of its axes.
#[derive(Clone, Copy, Debug)]
pub struct Geometry<'a> {
    /// The stage.
    pub stage: Stage,
    /// Its tensor's shape, outermost first.
    pub shape: &'a [usize],
    /// Position of the first row.
    pub start: usize,
    /// Expert ids `[T, K]`. They are read where the stage is `[T, K, n]`.
    pub ids: Option<&'a [u32]>,
    /// Columns of a head. It is read where the stage has `heads·head_dim` columns.
    pub head_dim: Option<usize>,
    /// Type of the weight that the stage reads.
    pub qtype: Option<GgmlType>,
}

/// The coordinates of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub position: usize,
    pub slot: usize,
    pub expert: usize,
    pub head: usize,
}

/// A stage as rows and columns: an axis runs along the one or the other.
#[derive(Debug)]
pub(super) struct Layout {
    pub rows: Vec<Row>,
    pub cols: usize,
    /// 0 where the columns are not those of heads.
    pub head_dim: usize,
    /// Position of the first row.
    pub start: usize,
    pub words: Words,
    stage: Stage,
    by_expert: bool,
}

impl Layout {
    pub fn new(g: &Geometry<'_>) -> Self {
        let (info, cols) = (g.stage.info(), g.shape.last().copied().unwrap_or(1));
        let matrix = info.shape.len() == 3;
        let n_rows = g.shape.iter().product::<usize>() / cols.max(1);
        let inner = if matrix { g.shape[1].max(1) } else { 1 };
        let along = |dim, row: usize| match info.axis(dim) {
            Some(0) => row / inner,
            Some(1) if matrix => row % inner,
            _ => 0,
        };
        let ids = g.ids.filter(|ids| matrix && info.axis(Dim::K).is_some() && ids.len() == n_rows);
        let row = |r: usize| Row {
            position: along(Dim::T, r),
            slot: along(Dim::K, r),
            expert: ids.map_or(0, |ids| ids[r] as usize),
            head: along(Dim::Heads, r),
        };
        let of_heads = info.shape.last().is_some_and(|dim| dim.is_of_heads());
        Self {
            rows: (0..n_rows).map(row).collect(),
            cols,
            head_dim: g.head_dim.filter(|d| of_heads && *d > 0 && cols.is_multiple_of(*d)).unwrap_or(0),
            start: g.start,
            words: Words { qtype: g.qtype, columns_of_weight: info.op == OpKind::Embed },
            stage: g.stage,
            by_expert: ids.is_some(),
        }
    }

    /// The sides of the tiles that kernels make of this stage: matrix products are made in tiles of 32, here and in most engines; no
    /// other operation is made in tiles.
    pub fn tiles(&self) -> &'static [usize] {
        match self.stage.info().op {
            OpKind::MatMul | OpKind::HeadMatMul | OpKind::ExpertMatMul => &[32],
            _ => &[],
        }
    }

    /// Whether this is an attention matrix, `[heads, T, S]`.
    pub fn is_attention_matrix(&self) -> bool {
        self.stage.is_attention_matrix()
    }

    /// Whether an axis runs along columns rather than rows.
    pub fn along_columns(&self, axis: Axis) -> bool {
        match axis {
            Axis::Position => false,
            Axis::Slot | Axis::Expert => self.stage.info().shape.len() < 3,
            Axis::Head => self.head_dim > 0,
            Axis::WithinHead | Axis::Column | Axis::Key => true,
        }
    }

    /// The coordinate on an axis of row `i` or, where the axis runs along columns, of column `i`.
    pub fn coordinate(&self, axis: Axis, i: usize) -> usize {
        match axis {
            Axis::Slot | Axis::Expert if self.along_columns(axis) => i,
            Axis::Position => self.rows[i].position,
            Axis::Slot => self.rows[i].slot,
            Axis::Expert => self.rows[i].expert,
            Axis::Head if self.head_dim == 0 => self.rows[i].head,
            Axis::Head => i / self.head_dim,
            Axis::WithinHead => i % self.head_dim,
            Axis::Column | Axis::Key => i,
        }
    }

    /// The axes that this stage has and that have more than one coordinate, with their lengths; that of whole columns is the last.
    pub fn axes(&self) -> Vec<(Axis, usize)> {
        let info = self.stage.info();
        let longest = |f: fn(&Row) -> usize| self.rows.iter().map(f).max().map_or(0, |m| m + 1);
        let mut axes = vec![(Axis::Position, longest(|r| r.position))];
        if self.by_expert {
            axes.push((Axis::Expert, longest(|r| r.expert)));
        }
        // Of a single position each expert has one slot: the slot then says nothing that the expert does not say better.
        if longest(|r| r.position) > 1 || !self.by_expert {
            axes.push((Axis::Slot, longest(|r| r.slot)));
        }
        axes.push((Axis::Head, longest(|r| r.head)));
        if let Some(heads) = self.cols.checked_div(self.head_dim) {
            axes.push((Axis::Head, heads));
            axes.push((Axis::WithinHead, self.head_dim));
        }
        let columns = match info.shape.last() {
            Some(Dim::E) => Axis::Expert,
            Some(Dim::K) => Axis::Slot,
            Some(Dim::S) => Axis::Key,
            _ => Axis::Column,
        };
        axes.push((columns, self.cols));
        axes.retain(|(_, n)| *n > 1);
        axes
    }

    /// The tallies of rows and of columns, by coordinate on each axis.
    pub fn marginals(&self, rows: &[Tally], columns: &[Tally]) -> Vec<Marginal> {
        let marginal = |(axis, n)| {
            let mut tallies = vec![Tally::default(); n];
            for (i, tally) in if self.along_columns(axis) { columns } else { rows }.iter().enumerate() {
                let at = &mut tallies[self.coordinate(axis, i)];
                *at = at.plus(*tally);
            }
            Marginal { axis, origin: if axis == Axis::Position { self.start } else { 0 }, tallies }
        };
        self.axes().into_iter().map(marginal).collect()
    }
}
