//! Tensors on the host.

/// The elements of a tensor on the host, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    U32(Vec<u32>),
}

/// A tensor on the host. The last axis is contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    pub shape: Vec<usize>,
    pub data: Data,
}

impl HostTensor {
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::F32(data) }
    }
    pub fn f64(shape: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::F64(data) }
    }
    pub fn u32(shape: &[usize], data: Vec<u32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::U32(data) }
    }
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The length of the contiguous axis.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
    pub fn dtype(&self) -> &'static str {
        match self.data {
            Data::F32(_) => "f32",
            Data::F64(_) => "f64",
            Data::U32(_) => "u32",
        }
    }
    /// The values as f64, whatever they are stored as (exact: f32 and u32 both fit).
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(v) => v.iter().map(|&x| x as f64).collect(),
            Data::F64(v) => v.clone(),
            Data::U32(v) => v.iter().map(|&x| x as f64).collect(),
        }
    }
    /// The values as f32; f64 values are rounded.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(v) => v.clone(),
            Data::F64(v) => v.iter().map(|&x| x as f32).collect(),
            Data::U32(v) => v.iter().map(|&x| x as f32).collect(),
        }
    }
    /// The ids in a u32 tensor.
    ///
    /// # Panics
    /// If the tensor is not u32: which stages are ids is fixed by the stage table.
    pub fn ids(&self) -> &[u32] {
        match &self.data {
            Data::U32(v) => v,
            _ => panic!("a {} tensor where expert ids were expected", self.dtype()),
        }
    }
}
