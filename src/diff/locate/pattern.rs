//! The name of an error's geometry: which elements of a tensor hold it, in words and as data.

use crate::diff::measure::metrics::NonFinite;

/// What kind of region holds the error. The names are stable: programs match on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, strum::VariantArray)]
#[serde(rename_all = "snake_case")]
pub enum PatternKind {
    /// One element.
    Element,
    /// One position that is not the last.
    Position,
    /// The last position only.
    LastPosition,
    /// Positions from one on, up to one, or between two.
    PositionRange,
    /// Every position but one.
    AllButPosition,
    /// Every so many positions.
    PositionResidue,
    /// One expert.
    Expert,
    /// A few experts, or a range of them.
    Experts,
    /// Every expert but one.
    AllButExpert,
    /// One or a few of the places that the chosen experts have at a token.
    Slot,
    /// One head.
    Head,
    /// A few heads, or a range of them.
    Heads,
    /// Every head but one.
    AllButHead,
    /// Part of every head: its second half, its odd dimensions…
    WithinHead,
    /// One column.
    Column,
    /// A range of columns.
    ColumnRange,
    /// Every column but one.
    AllButColumn,
    /// A range of columns that is one aligned block.
    ColumnBlock,
    /// The same sub-block of every quantization block.
    SubBlock,
    /// Columns at the same place of a period: odd ones, those that one lane computes…
    ColumnResidue,
    /// The rest of the columns (or positions) behind the last whole tile.
    LastPartialTile,
    /// Elements of the attention matrix by key minus query: above the diagonal, on it.
    Diagonal,
    /// Elements without a common place.
    Scattered,
    /// Nothing smaller than all of it.
    WholeTensor,
}

/// The elements of a pattern, as data; a field is absent where the pattern does not restrict that axis. Ranges include both
/// ends.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Region {
    /// Positions in the sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<Span>,
    /// Ids of experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<Vec<usize>>,
    /// Places among a token's chosen experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<Vec<usize>>,
    /// Heads, of queries or of keys and values as the stage has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<Vec<usize>>,
    /// Columns of the stage's rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Span>,
    /// Dimensions within every head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within_head: Option<Span>,
    /// Key positions, the columns of attention scores and probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<Span>,
    /// Key position minus query position, lowest and highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_minus_query: Option<[i64; 2]>,
}

/// The coordinates of one axis that a pattern takes in: those from `from` to `to` (both included) whose remainder by
/// `modulus` lies in `residues` (both included), all but those in `except`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Span {
    /// The first coordinate.
    pub from: usize,
    /// The last coordinate.
    pub to: usize,
    /// The period, where only some remainders by it are taken in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modulus: Option<usize>,
    /// The first and the last of these remainders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residues: Option<[usize; 2]>,
    /// Coordinates that are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<usize>,
}

/// A simple function of the expected values that the subject's values are, where the error is.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Relation {
    /// Which function.
    pub kind: RelationKind,
    /// Of a scale: subject / expected. Of an offset: subject − expected.
    pub value: Option<f64>,
    /// Share of the error's energy that remains after undoing it.
    pub residual: f64,
    /// For people: "0.5 times the right values".
    pub description: String,
}

/// Which function of the expected values. The names are stable: programs match on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RelationKind {
    /// Zeros, or next to nothing.
    Zero,
    /// The negative.
    SignFlip,
    /// By one factor.
    Scale,
    /// Each row, or each head of it, by a factor of its own.
    GroupScale,
    /// A constant added.
    Offset,
    /// The halves of every head in each other's place.
    HalvesExchanged,
    /// Neighbouring columns in each other's place.
    PairsExchanged,
    /// Another row's values.
    ShiftedRow,
    /// Another column's values.
    ShiftedColumn,
}

/// Where a stage's error is.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Pattern {
    /// The first restriction.
    pub kind: PatternKind,
    /// All restrictions, in the order expert, head, position, slot, columns.
    pub kinds: Vec<PatternKind>,
    /// For people: "expert 93 only (11 of 34 rows); columns 224–255, the last block of 32".
    pub description: String,
    /// Share of the error's energy in the region, 0 to 1.
    pub share: f64,
    /// Elements in the region.
    pub elements: usize,
    /// Their share of all compared, 0 to 1.
    pub elements_share: f64,
    /// The region, as data.
    pub region: Region,
    /// What the subject's values are there, where that is a simple function of the expected ones.
    pub relation: Option<Relation>,
    /// Set when the pattern is that of NaN and infinite values rather than of an error's size.
    pub non_finite: Option<NonFinite>,
}
