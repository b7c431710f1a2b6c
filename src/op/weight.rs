//! Weights: bytes with a type and a shape, wherever they come from.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::memory::{may_not_stay, read_ahead};
use crate::op::GgmlType;

/// Bytes that a weight borrows from: a mapped file, or memory.
pub type WeightOwner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A quantized matrix, or a stack of one per expert: `[experts, rows, cols]`, rows of whole blocks, as ggml stores it.
pub struct Weight {
    /// Unique in this process: backends key their own copies by it.
    pub id: usize,
    /// The GGUF tensor name, for messages.
    pub name: String,
    /// The type of its blocks.
    pub ty: GgmlType,
    /// Inputs: the length of the dot products. GGUF's dimension 0.
    pub cols: usize,
    /// Outputs. GGUF's dimension 1; 1 for a vector.
    pub rows: usize,
    /// GGUF's dimension 2; 1 for a plain matrix.
    pub experts: usize,
    /// Offset of the tensor's first byte in its file, for reports.
    pub file_offset: u64,
    /// What a product with the weight is multiplied by, one for each expert, as the last thing: NVFP4's second scale. Empty where there is none.
    pub scales: Vec<f32>,
    owner: WeightOwner,
    start: usize,
    /// Bytes from one expert's first row to the next one's: those of its rows, or more where experts are parts of others.
    apart: usize,
}

static NEXT_WEIGHT: AtomicUsize = AtomicUsize::new(0);

impl Weight {
    /// A weight over `owner[start..]`, of exactly `experts·rows` rows of `cols` weights.
    ///
    /// # Errors
    /// If `cols` is not a whole number of blocks or the bytes are not there.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        name: &str,
        ty: GgmlType,
        [cols, rows, experts]: [usize; 3],
        owner: WeightOwner,
        start: usize,
        file_offset: u64,
    ) -> Result<Arc<Self>> {
        let row = ty.row_bytes(cols).ok_or_else(|| {
            Error::input(format!(
                "tensor {name}: rows of {cols} weights are not whole {ty} blocks of {}",
                ty.block_len()
            ))
        })?;
        let bytes = row.checked_mul(rows).and_then(|b| b.checked_mul(experts));
        let have = (*owner).as_ref().len();
        bytes.filter(|b| start.checked_add(*b).is_some_and(|end| end <= have)).ok_or_else(|| {
            Error::input(format!(
                "tensor {name}: [{cols}, {rows}, {experts}] {ty} does not fit the {have} bytes it is in"
            ))
        })?;
        let id = NEXT_WEIGHT.fetch_add(1, Ordering::Relaxed);
        let apart = row * rows;
        let scales = Vec::new();
        Ok(Arc::new(Self { id, name: name.into(), ty, cols, rows, experts, file_offset, scales, owner, start, apart }))
    }

    /// The weight of some rows of each expert of this one, read where they lie.
    ///
    /// # Errors
    /// If an expert has no such rows.
    pub fn part(&self, name: &str, rows: std::ops::Range<usize>) -> Result<Arc<Self>> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(Error::input(format!(
                "tensor {}: rows {rows:?} of {} are no part of it",
                self.name, self.rows
            )));
        }
        let before = rows.start * self.row_bytes();
        Ok(Arc::new(Self {
            id: NEXT_WEIGHT.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            rows: rows.len(),
            file_offset: self.file_offset + before as u64,
            scales: self.scales.clone(),
            owner: self.owner.clone(),
            start: self.start + before,
            ..*self
        }))
    }

    /// A weight that owns its bytes, for tests and for planted faults.
    pub fn from_vec(name: &str, ty: GgmlType, dims: [usize; 3], bytes: Vec<u8>) -> Result<Arc<Self>> {
        Self::new(name, ty, dims, Arc::new(bytes), 0, 0)
    }

    /// The same weight, whose products are multiplied by these scales.
    ///
    /// # Errors
    /// If they are not as many as the weight has experts, or none.
    pub fn scaled(&self, scales: Vec<f32>) -> Result<Arc<Self>> {
        if !scales.is_empty() && scales.len() != self.experts {
            return Err(Error::input(format!(
                "tensor {}: {} scales for {} experts",
                self.name,
                scales.len(),
                self.experts
            )));
        }
        let id = NEXT_WEIGHT.fetch_add(1, Ordering::Relaxed);
        let (name, owner) = (self.name.clone(), self.owner.clone());
        Ok(Arc::new(Self { id, name, scales, owner, ..*self }))
    }

    /// What a product with an expert is multiplied by, if by anything.
    pub fn scale(&self, expert: usize) -> Option<f32> {
        self.scales.get(expert).copied()
    }

    /// How many bytes its rows are.
    pub fn size(&self) -> usize {
        self.experts * self.expert_bytes()
    }
    /// All bytes, in ggml's layout: copied together where other rows lie between.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        self.span(0, self.size())
    }
    /// Bytes `at..at + len` of all, or as many as there are.
    pub fn span(&self, at: usize, len: usize) -> Cow<'_, [u8]> {
        let size = self.size();
        let (at, end) = (at.min(size), at.saturating_add(len).min(size));
        if at == end {
            return Cow::Borrowed(&[]);
        }
        let (each, owner) = (self.expert_bytes(), (*self.owner).as_ref());
        if self.apart == each {
            return Cow::Borrowed(&owner[self.start..][at..end]);
        }
        let of = |expert: usize| {
            let (from, to) = (at.max(expert * each) - expert * each, end.min((expert + 1) * each) - expert * each);
            &self.expert(expert)[from..to]
        };
        match (at / each, (end - 1) / each) {
            (first, last) if first == last => Cow::Borrowed(of(first)),
            (first, last) => Cow::Owned((first..=last).flat_map(of).copied().collect()),
        }
    }
    /// The bytes of one expert's rows.
    pub fn expert(&self, expert: usize) -> &[u8] {
        assert!(expert < self.experts, "{self:?} has no expert {expert}");
        &(*self.owner).as_ref()[self.start + expert * self.apart..][..self.expert_bytes()]
    }
    fn expert_bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }
    /// Has the system read the rows `first..first + count`, counted through all experts, where they lie in a file that memory may not keep.
    pub(crate) fn read_ahead(&self, first: usize, count: usize) {
        if may_not_stay((*self.owner).as_ref().len()) {
            self.runs(first, count).for_each(read_ahead);
        }
    }
    /// The rows `first..first + count`, counted through all experts, as they lie: one expert's after the other's.
    fn runs(&self, first: usize, count: usize) -> impl Iterator<Item = &[u8]> {
        let (end, bytes) = (first + count, self.row_bytes());
        (first / self.rows..end.div_ceil(self.rows)).map(move |expert| {
            let of_expert = |row: usize| row.saturating_sub(expert * self.rows).min(self.rows) * bytes;
            &self.expert(expert)[of_expert(first)..of_expert(end)]
        })
    }
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.ty.block_len() * self.ty.block_bytes()
    }
    /// The bytes of one row of one expert. Rows count on through the experts that follow.
    pub fn row(&self, expert: usize, row: usize) -> &[u8] {
        let (expert, row) = match row < self.rows {
            true => (expert, row), // no division where there is nothing to divide
            false => (expert + row / self.rows, row % self.rows),
        };
        &self.expert(expert)[row * self.row_bytes()..][..self.row_bytes()]
    }
    /// The values of a weight of type F32; of another type, none.
    pub fn f32s(&self) -> impl Iterator<Item = f32> {
        let experts = if self.ty == GgmlType::F32 { self.experts } else { 0 };
        let values = |expert| self.expert(expert).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        (0..experts).flat_map(values)
    }
    /// `[cols, rows]` or `[cols, rows, experts]`, in GGUF's order.
    pub fn dims(&self) -> Vec<usize> {
        if self.experts > 1 { vec![self.cols, self.rows, self.experts] } else { vec![self.cols, self.rows] }
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.ty, self.dims())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two experts of four rows of two, whose bytes count up.
    fn whole() -> Arc<Weight> {
        Weight::from_vec("w", GgmlType::F32, [2, 4, 2], (0..64).collect()).unwrap()
    }

    #[test]
    fn a_part_has_the_rows_of_each_expert() {
        let whole = whole();
        let part = whole.part("w (part)", 1..3).unwrap();
        assert_eq!((part.dims(), part.size(), part.file_offset), (vec![2, 2, 2], 32, 8));
        assert_ne!(part.id, whole.id);
        for (expert, row) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            assert_eq!(part.row(expert, row), whole.row(expert, row + 1));
            assert_eq!(part.row(0, 2 * expert + row), part.row(expert, row));
        }
        let together: Vec<u8> = (8..24).chain(40..56).collect();
        assert_eq!(*part.bytes(), together);
        assert_eq!(part.f32s().count(), 8);
        assert_eq!(*part.span(12, 8), together[12..20]);
        assert!(matches!(part.span(16, 8), Cow::Borrowed(b) if *b == together[16..24]));
        assert_eq!((&*part.span(30, 8), part.span(33, 1).len()), (&together[30..], 0));
        assert!(matches!(whole.bytes(), Cow::Borrowed(_)));
        assert!(whole.part("w", 3..5).is_err());
    }

    #[test]
    fn rows_lie_in_a_run_for_each_expert() {
        let whole = whole();
        for weight in [&whole, &whole.part("w (part)", 1..3).unwrap()] {
            let rows = weight.rows * weight.experts;
            for (first, count) in (0..=rows).flat_map(|first| (0..=rows - first).map(move |count| (first, count))) {
                let row = weight.row_bytes();
                let runs: Vec<u8> = weight.runs(first, count).flatten().copied().collect();
                assert_eq!(runs, weight.bytes()[first * row..][..count * row], "{first} and {count} more");
            }
        }
    }
}
