//! Tensors on the host.

use std::borrow::Cow;

use rayon::prelude::*;

/// Elements from which on they are converted by all threads.
const MANY: usize = 1 << 16;

/// The elements of a tensor on the host, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Single precision.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
    /// Ids.
    U32(Vec<u32>),
}

/// A tensor on the host. The last axis is contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// The axes, the contiguous one last.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Data,
}

impl HostTensor {
    /// A tensor of f32.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::F32(data) }
    }
    /// A tensor of f64.
    pub fn f64(shape: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::F64(data) }
    }
    /// A tensor of ids.
    pub fn u32(shape: &[usize], data: Vec<u32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?}");
        Self { shape: shape.to_vec(), data: Data::U32(data) }
    }
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The length of the contiguous axis.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
    /// `f32`, `f64` or `u32`.
    pub fn dtype(&self) -> &'static str {
        match self.data {
            Data::F32(_) => "f32",
            Data::F64(_) => "f64",
            Data::U32(_) => "u32",
        }
    }
    /// The values as f64, whatever they are stored as (exact: f32 and u32 both fit).
    pub fn to_f64(&self) -> Vec<f64> {
        self.f64s().into_owned()
    }
    /// The same, copied only if they are not stored so.
    pub fn f64s(&self) -> Cow<'_, [f64]> {
        fn wide<T: Copy + Sync + Into<f64>>(values: &[T]) -> Cow<'_, [f64]> {
            let many = values.len() >= MANY;
            Cow::Owned(match many {
                true => values.par_iter().with_min_len(MANY / 4).map(|x| (*x).into()).collect(),
                false => values.iter().map(|x| (*x).into()).collect(),
            })
        }
        match &self.data {
            Data::F32(v) => wide(v),
            Data::F64(v) => Cow::Borrowed(v),
            Data::U32(v) => wide(v),
        }
    }
    /// Elements `from`.. as f64, as many as `out` holds.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn read_f64(&self, from: usize, out: &mut [f64]) {
        fn read<T: Copy + Into<f64>>(values: &[T], out: &mut [f64]) {
            out.iter_mut().zip(values).for_each(|(out, x)| *out = (*x).into());
        }
        let elements = from..from + out.len();
        match &self.data {
            Data::F32(v) => read(&v[elements], out),
            Data::F64(v) => out.copy_from_slice(&v[elements]),
            Data::U32(v) => read(&v[elements], out),
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
    /// The parts `keep` along `axis`, in that order and as often as they are named: […, n, …] → […, keep.len(), …].
    ///
    /// # Panics
    /// If there is no such axis, or it has no such part.
    pub fn take(&self, axis: usize, keep: &[usize]) -> Self {
        let n = self.shape[axis];
        if let Some(part) = keep.iter().find(|part| **part >= n) {
            panic!("part {part} of axis {axis} of a tensor of shape {:?}", self.shape);
        }
        let (outer, inner): (usize, usize) =
            (self.shape[..axis].iter().product(), self.shape[axis + 1..].iter().product());
        let mut shape = self.shape.clone();
        shape[axis] = keep.len();
        self.gather(shape, inner, (0..outer).flat_map(|o| keep.iter().map(move |part| (o * n + part) * inner)))
    }
    /// The `len` elements from each of `starts` on, one run after the other, as a tensor of `shape`.
    ///
    /// # Panics
    /// If a run ends past the tensor's elements, or the runs do not fill `shape`.
    pub fn gather(&self, shape: Vec<usize>, len: usize, starts: impl Iterator<Item = usize>) -> Self {
        fn runs<T: Copy>(of: &[T], shape: &[usize], len: usize, starts: impl Iterator<Item = usize>) -> Vec<T> {
            let mut out = Vec::with_capacity(shape.iter().product());
            starts.for_each(|start| out.extend_from_slice(&of[start..start + len]));
            assert_eq!(out.len(), shape.iter().product::<usize>(), "shape {shape:?}");
            out
        }
        let data = match &self.data {
            Data::F32(v) => Data::F32(runs(v, &shape, len, starts)),
            Data::F64(v) => Data::F64(runs(v, &shape, len, starts)),
            Data::U32(v) => Data::U32(runs(v, &shape, len, starts)),
        };
        Self { shape, data }
    }
    /// The first id that is not below `n`, and the row of the last axis that it is in.
    ///
    /// # Panics
    /// As [`HostTensor::ids`].
    pub fn id_beyond(&self, n: usize) -> Option<(usize, u32)> {
        let at = self.ids().iter().position(|id| *id as usize >= n)?;
        Some((at / self.cols(), self.ids()[at]))
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

/// Row-major coordinates of flat index `i`.
pub fn unravel(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (x, &n) in index.iter_mut().zip(shape).rev() {
        *x = i % n.max(1);
        i /= n.max(1);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_taken_along_any_axis_in_the_order_asked_for() {
        let x = HostTensor::u32(&[2, 3, 2], (0..12).collect());
        assert_eq!(x.take(0, &[1]), HostTensor::u32(&[1, 3, 2], (6..12).collect()));
        assert_eq!(x.take(1, &[2, 0]), HostTensor::u32(&[2, 2, 2], vec![4, 5, 0, 1, 10, 11, 6, 7]));
        assert_eq!(x.take(2, &[1, 1]).ids()[..4], [1, 1, 3, 3]);
        assert_eq!(x.take(1, &[]), HostTensor::u32(&[2, 0, 2], vec![]));
        assert_eq!(x.gather(vec![3], 1, [11, 0, 5].into_iter()).ids(), [11, 0, 5]);
    }

    #[test]
    fn an_id_beyond_the_last_is_found_with_its_row() {
        let ids = HostTensor::u32(&[3, 2], vec![0, 1, 7, 2, 9, 8]);
        assert_eq!(ids.id_beyond(7), Some((1, 7)));
        assert_eq!(ids.id_beyond(8), Some((2, 9)));
        assert_eq!(ids.id_beyond(10), None);
    }

    #[test]
    #[should_panic(expected = "part 3 of axis 1 of a tensor of shape [2, 3]")]
    fn a_part_that_is_not_there_is_not_taken() {
        HostTensor::f32(&[2, 3], vec![0.0; 6]).take(1, &[0, 3]);
    }
}
