//! Which of two kernels a product runs: a table, built in, or measured on the adapter and saved.
//!
//! Design:
//! - A matrix-vector kernel reads a matrix once for each position, a tiled one once for a tile of them. Up to how many the first is faster depends
//!   on the adapter, its driver and the type of the weights. Of experts it is the rows that one has that count, on average.
//! - What runs depends on this table and on shapes alone: two runs with one table agree bitwise. Both kernels keep the backend's contract, so
//!   that no verdict depends on the table.
//! - The built-in table is one for each set of matrix kernels. Another is measured by `devices --tune` and read by [`mod@file`].

pub mod file;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::file::TunedAdapter;
use super::{THREADS, TILE};
use crate::backend::TuningUsed;
use crate::error::Result;
use crate::op::{GgmlType, OpKind};

/// The most positions that a table may give to matrix-vector kernels, and the most rows of an expert: calls that cover every kernel have more.
const MOST_POSITIONS: usize = THREADS as usize;
const MOST_ROWS: usize = TILE as usize - 1;

/// Where a backend's table is from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum TuningSource {
    /// That of the set of kernels.
    #[default]
    BuiltIn,
    /// This one.
    Given(Tuning),
    /// That which was saved for the adapter, if one was: see [`file::saved`].
    Saved,
}

/// Up to where matrix-vector kernels run, by operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Of one matrix.
    pub mat_mul: PositionLimits,
    /// By heads.
    pub head_mat_mul: PositionLimits,
    /// Of experts.
    pub expert_mat_mul: ExpertLimits,
}

/// Up to so many positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PositionLimits {
    /// Of types that have no limit of their own.
    pub positions: usize,
    /// By type of the weights.
    #[serde(default)]
    pub types: BTreeMap<String, usize>,
}

/// Up to so many positions, or so many rows of an expert on average.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertLimits {
    /// Positions, however many experts there are.
    pub positions: usize,
    /// Rows of an expert, of types that have no limit of their own; 0: positions alone count.
    pub rows: usize,
    /// The same by type of the weights.
    #[serde(default)]
    pub types: BTreeMap<String, usize>,
}

/// The table of an adapter, and what is said of it.
pub(super) fn of_source(source: TuningSource, adapter: &TunedAdapter) -> Result<(Tuning, TuningUsed)> {
    let built_in = || Tuning::built_in(adapter.lanes);
    Ok(match source {
        TuningSource::BuiltIn => (built_in(), TuningUsed::built_in()),
        TuningSource::Given(tuning) => (tuning, TuningUsed::given()),
        TuningSource::Saved => {
            let (tuning, used) = file::saved(adapter)?;
            (tuning.unwrap_or_else(built_in), used)
        }
    })
}

impl Tuning {
    /// That of a set of kernels: few positions seldom share an expert; where lanes have rows to themselves, sharing pays from the second
    /// position on.
    pub fn built_in(lanes: bool) -> Self {
        let limits = || PositionLimits { positions: if lanes { 1 } else { 4 }, types: BTreeMap::new() };
        let expert_mat_mul = ExpertLimits { positions: 4, rows: 0, types: BTreeMap::new() };
        Self { mat_mul: limits(), head_mat_mul: limits(), expert_mat_mul }
    }

    /// One that always chooses matrix-vector kernels, or never.
    pub fn forced(vectors: bool) -> Self {
        let positions = if vectors { usize::MAX } else { 0 };
        let limits = || PositionLimits { positions, types: BTreeMap::new() };
        let expert_mat_mul = ExpertLimits { positions, rows: 0, types: BTreeMap::new() };
        Self { mat_mul: limits(), head_mat_mul: limits(), expert_mat_mul }
    }

    /// Up to how many positions a product runs its matrix-vector kernel; `experts`: how many there are, and how many a position uses.
    pub fn vectors(&self, op: OpKind, ty: GgmlType, experts: Option<[usize; 2]>) -> usize {
        let of = |types: &BTreeMap<String, usize>| types.get(ty.name()).copied();
        match op {
            OpKind::ExpertMatMul => {
                let limits = &self.expert_mat_mul;
                let rows = of(&limits.types).unwrap_or(limits.rows);
                let shared = experts.map_or(0, |[experts, used]| rows.saturating_mul(experts) / used.max(1));
                limits.positions.max(shared)
            }
            OpKind::HeadMatMul => of(&self.head_mat_mul.types).unwrap_or(self.head_mat_mul.positions),
            _ => of(&self.mat_mul.types).unwrap_or(self.mat_mul.positions),
        }
    }

    /// What is wrong with a table from elsewhere, if anything is.
    fn check(&self) -> std::result::Result<(), String> {
        let limit = |what: String, least: usize, most: usize, found: usize| match (least..=most).contains(&found) {
            true => Ok(()),
            false => Err(format!("{what}: expected {least} to {most}, found {found}")),
        };
        let types = |of: &str, types: &BTreeMap<String, usize>, least, most| {
            for (name, &found) in types {
                let shown = crate::text::printable(name).to_string();
                if GgmlType::from_name(name).is_none_or(|ty| ty.name() != name) {
                    return Err(format!("tuning.{of}.types: expected the name of a type, found {shown:?}"));
                }
                limit(format!("tuning.{of}.types.{shown}"), least, most, found)?;
            }
            Ok(())
        };
        for (of, limits) in [("mat_mul", &self.mat_mul), ("head_mat_mul", &self.head_mat_mul)] {
            limit(format!("tuning.{of}.positions"), 1, MOST_POSITIONS, limits.positions)?;
            types(of, &limits.types, 1, MOST_POSITIONS)?;
        }
        let of_experts = &self.expert_mat_mul;
        limit("tuning.expert_mat_mul.positions".into(), 1, MOST_POSITIONS, of_experts.positions)?;
        limit("tuning.expert_mat_mul.rows".into(), 0, MOST_ROWS, of_experts.rows)?;
        types("expert_mat_mul", &of_experts.types, 0, MOST_ROWS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_that_of_the_type_and_of_the_rows_of_an_expert() {
        let mut tuning = Tuning::built_in(false);
        assert_eq!(tuning.vectors(OpKind::MatMul, GgmlType::Q4_K, None), 4);
        assert_eq!(tuning.vectors(OpKind::ExpertMatMul, GgmlType::Q4_K, Some([128, 8])), 4);
        assert_eq!(Tuning::built_in(true).vectors(OpKind::HeadMatMul, GgmlType::F16, None), 1);
        tuning.mat_mul.types.insert("F16".into(), 9);
        tuning.expert_mat_mul.rows = 1;
        tuning.expert_mat_mul.types.insert("Q6_K".into(), 3);
        assert_eq!(tuning.vectors(OpKind::MatMul, GgmlType::F16, None), 9);
        assert_eq!(tuning.vectors(OpKind::ExpertMatMul, GgmlType::F16, Some([128, 8])), 16);
        assert_eq!(tuning.vectors(OpKind::ExpertMatMul, GgmlType::Q6_K, Some([128, 8])), 48);
        assert_eq!(tuning.vectors(OpKind::ExpertMatMul, GgmlType::Q6_K, Some([8, 8])), 4);
        assert_eq!(tuning.check(), Ok(()));
        for vectors in [false, true] {
            let limit = Tuning::forced(vectors).vectors(OpKind::ExpertMatMul, GgmlType::F32, Some([8, 2]));
            assert_eq!(limit, if vectors { usize::MAX } else { 0 });
        }
    }
}
