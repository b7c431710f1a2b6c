//! Groups of experts, of which a router keeps some before it chooses.

use serde::{Deserialize, Serialize};

/// Experts are in `count` runs of as many each; those of the `used` runs of the largest scores, of equal ones the first, can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// `expert_group_count`.
    pub count: usize,
    /// `expert_group_used_count`.
    pub used: usize,
    /// What a group's score is.
    pub by: GroupScore,
}

/// The score of a group of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// The largest of its experts' values (`group_limited_greedy`, DeepSeek V2).
    Max,
    /// The sum of the two largest (`noaux_tc`, DeepSeek V3).
    TopTwo,
}

impl Groups {
    /// How many of `experts` are left to choose from.
    pub fn left(&self, experts: usize) -> usize {
        (experts / self.count).saturating_mul(self.used)
    }
}
