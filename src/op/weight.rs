//! Weights: bytes with a type and a shape, wherever they come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};
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
    bytes: usize,
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
        let bytes = bytes.filter(|b| start.checked_add(*b).is_some_and(|end| end <= have)).ok_or_else(|| {
            Error::input(format!(
                "tensor {name}: [{cols}, {rows}, {experts}] {ty} does not fit the {have} bytes it is in"
            ))
        })?;
        let id = NEXT_WEIGHT.fetch_add(1, Ordering::Relaxed);
        let scales = Vec::new();
        Ok(Arc::new(Self { id, name: name.into(), ty, cols, rows, experts, file_offset, scales, owner, start, bytes }))
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
        let Self { ref name, ty, cols, rows, experts, file_offset, ref owner, start, bytes, .. } = *self;
        let id = NEXT_WEIGHT.fetch_add(1, Ordering::Relaxed);
        let (name, owner) = (name.clone(), owner.clone());
        Ok(Arc::new(Self { id, name, ty, cols, rows, experts, file_offset, scales, owner, start, bytes }))
    }

    /// What a product with an expert is multiplied by, if by anything.
    pub fn scale(&self, expert: usize) -> Option<f32> {
        self.scales.get(expert).copied()
    }

    /// All bytes, in ggml's layout.
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.start..self.start + self.bytes]
    }
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.ty.block_len() * self.ty.block_bytes()
    }
    /// The bytes of one row of one expert.
    pub fn row(&self, expert: usize, row: usize) -> &[u8] {
        let n = self.row_bytes();
        &self.bytes()[(expert * self.rows + row) * n..][..n]
    }
    /// The values of a weight of type F32; of another type, none.
    pub fn f32s(&self) -> impl Iterator<Item = f32> {
        let bytes = if self.ty == GgmlType::F32 { self.bytes() } else { &[] };
        bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))
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
