//! Which part of a result is wrong.

use super::Draw;
use crate::diff::locate::PatternKind as P;
use crate::selftest::test_model::POSITIONS;

/// A part of a result [T, (K,) columns].
#[derive(Clone, Copy)]
pub(super) enum Place {
    Row(usize),
    RowsFrom(usize),
    RowsOf(usize, usize),
    Slot(usize),
    Column(usize),
    TwoColumns(usize, usize),
    ColumnsFrom(usize),
    ColumnsOf(usize, usize),
    /// So many columns, from the i-th block of them.
    Block(usize, usize),
    Cell(usize, usize),
    /// A row's columns from one on.
    Corner(usize, usize),
}

impl Place {
    /// Of a result of `cols` columns, with `slots` rows for each position.
    pub fn drawn(draw: &mut Draw, cols: usize, slots: usize) -> Self {
        match draw.below(if slots > 1 { 11 } else { 10 }) {
            0 => Self::Row(draw.below(POSITIONS)),
            1 => Self::RowsFrom(1 + draw.below(POSITIONS - 1)),
            2 => {
                let modulus = 2 + draw.below(2);
                Self::RowsOf(modulus, draw.below(modulus))
            }
            3 => Self::Column(draw.below(cols)),
            4 => Self::ColumnsFrom(cols / 2 + draw.below(cols / 2 - 1)),
            5 => {
                let modulus = draw.of(&[2, 4, 8, 16, 32]);
                Self::ColumnsOf(modulus, draw.below(modulus))
            }
            6 => {
                let first = draw.below(cols - 2);
                Self::TwoColumns(first, first + 2 + draw.below(cols - first - 2))
            }
            7 => {
                let width = draw.of(&[32, 64]);
                Self::Block(width, draw.below(cols / width))
            }
            8 => Self::Cell(draw.below(POSITIONS), draw.below(cols)),
            9 => Self::Corner(draw.below(POSITIONS), cols / 2 + draw.below(cols / 2 - 1)),
            _ => Self::Slot(draw.below(slots)),
        }
    }

    /// Whether an element belongs to it; `slots` rows are a position's.
    pub fn holds(self, row: usize, column: usize, slots: usize) -> bool {
        let position = row / slots;
        match self {
            Self::Row(n) => position == n,
            Self::RowsFrom(n) => position >= n,
            Self::RowsOf(modulus, n) => position % modulus == n,
            Self::Slot(n) => row % slots == n,
            Self::Column(n) => column == n,
            Self::TwoColumns(a, b) => column == a || column == b,
            Self::ColumnsFrom(n) => column >= n,
            Self::ColumnsOf(modulus, n) => column % modulus == n,
            Self::Block(width, i) => column / width == i,
            Self::Cell(at, n) => row == at * slots && column == n,
            Self::Corner(at, n) => position == at && column >= n,
        }
    }

    /// Whether a decoded token, whose row is the first of its call, has it as well.
    pub fn in_every_call(self) -> bool {
        use Place::*;
        matches!(self, Column(_) | TwoColumns(..) | ColumnsFrom(_) | ColumnsOf(..) | Block(..) | Slot(_))
    }

    /// Whether it is so small that what is wrong there may be told from chance by nothing.
    pub fn is_small(self) -> bool {
        matches!(self, Self::Cell(..) | Self::Column(_) | Self::TwoColumns(..) | Self::Corner(..))
    }

    /// Kinds of geometry that restrict what it restricts: one must be among those named.
    pub fn patterns(self) -> &'static [P] {
        match self {
            Self::Row(_) | Self::RowsFrom(_) | Self::RowsOf(..) => ROWS,
            Self::Slot(_) => &[P::Slot],
            Self::Column(_) | Self::TwoColumns(..) | Self::ColumnsFrom(_) | Self::ColumnsOf(..) | Self::Block(..) => {
                COLUMNS
            }
            Self::Cell(..) | Self::Corner(..) => ROWS_AND_COLUMNS,
        }
    }

    pub fn words(self) -> String {
        match self {
            Self::Row(n) => format!("position {n}"),
            Self::RowsFrom(n) => format!("positions from {n}"),
            Self::RowsOf(modulus, n) => format!("positions {n} mod {modulus}"),
            Self::Slot(n) => format!("slot {n}"),
            Self::Column(n) => format!("column {n}"),
            Self::TwoColumns(a, b) => format!("columns {a} and {b}"),
            Self::ColumnsFrom(n) => format!("columns from {n}"),
            Self::ColumnsOf(modulus, n) => format!("columns {n} mod {modulus}"),
            Self::Block(width, i) => format!("block {i} of {width} columns"),
            Self::Cell(row, column) => format!("one element, {row}, {column}"),
            Self::Corner(row, column) => format!("position {row}, columns from {column}"),
        }
    }
}

/// What says that only some positions are wrong.
pub(super) const ROWS: &[P] =
    &[P::Position, P::LastPosition, P::PositionRange, P::AllButPosition, P::PositionResidue, P::LastPartialTile];
/// The same of a result of one row, of which a column is an element.
pub(super) fn of_one_row(patterns: &'static [P]) -> &'static [P] {
    if patterns == COLUMNS { COLUMNS_OF_ONE_ROW } else { patterns }
}

/// What says that only some columns are. Heads are columns.
const COLUMNS: &[P] = COLUMNS_OF_ONE_ROW.split_at(1).1;
const COLUMNS_OF_ONE_ROW: &[P] = &[
    P::Element,
    P::Column,
    P::ColumnRange,
    P::AllButColumn,
    P::ColumnBlock,
    P::SubBlock,
    P::ColumnResidue,
    P::LastPartialTile,
    P::Head,
    P::Heads,
    P::AllButHead,
    P::WithinHead,
];
/// A part of a position, which either may say.
const ROWS_AND_COLUMNS: &[P] = &[P::Element, P::Position, P::LastPosition, P::Column, P::ColumnRange, P::ColumnBlock];
