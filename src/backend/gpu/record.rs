//! Dispatches, kept with everything they were made of: what a kernel author needs to run one again without this program.
//!
//! Design:
//! - Off unless asked for, and then for a few operations: what each binding holds is copied beside the dispatch, a binding that is
//!   read before it and one that is written after it, so a buffer that two dispatches share is seen at both times.
//! - The copies stay in GPU memory until [`Device::recorded`] brings them home; together they are bounded by [`MOST_BYTES`].

use std::sync::{Arc, OnceLock};

use super::device::{Bound, Device};
use super::kernels::{Access, Pipeline};
use crate::error::{Error, Result};

/// Bytes of bindings that a recording may hold.
const MOST_BYTES: u64 = 1 << 30;

/// One dispatch of a kernel.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// `kernel`, or `kernel/TYPE` where it reads quantized weights.
    pub kernel: String,
    /// The whole WGSL source, as it was compiled.
    pub source: Arc<str>,
    /// The immediates, 32 bits each.
    pub params: Vec<u32>,
    /// Workgroups in x, y and z.
    pub grid: [u32; 3],
    /// In order of `@binding`, all of `@group(0)`.
    pub bindings: Vec<Binding>,
}

/// What a binding of a dispatch held: a storage buffer, or a texture row by row.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Whether the dispatch wrote it.
    pub written: bool,
    /// What it held: before the dispatch where it is read, after it where it is written.
    pub bytes: Vec<u8>,
}

/// A dispatch whose bindings are still in GPU memory.
struct Pending {
    dispatch: Dispatch,
    copies: Vec<wgpu::Buffer>,
}

/// The dispatches since the recording began.
#[derive(Default)]
pub struct Recording {
    pending: Vec<Pending>,
    bytes: u64,
}

impl Device {
    /// Records from now on.
    pub fn record(&mut self) {
        self.recording = Some(Recording::default());
    }

    /// Before a dispatch: notes it, and copies what it reads. Does nothing unless recording.
    pub(super) fn record_reads(
        &mut self,
        pipeline: &Pipeline,
        bindings: &[Bound<'_>],
        params: &[u32],
        grid: [u32; 3],
    ) -> Result<()> {
        let Some(mut recording) = self.recording.take() else { return Ok(()) };
        let bytes: u64 = bindings.iter().map(Bound::size).sum();
        recording.bytes += bytes;
        if recording.bytes > MOST_BYTES {
            return Err(Error::cannot_run(format!(
                "{}: the buffers of the recorded dispatches take {} bytes, more than {MOST_BYTES}",
                pipeline.name, recording.bytes
            )));
        }
        let mut copies = Vec::new();
        for (bound, access) in bindings.iter().zip(pipeline.bindings) {
            let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
            let copy = self.create_buffer("a recorded binding", bound.size(), usage)?;
            match *bound {
                Bound::Buffer { buffer, offset, size, .. } if *access != Access::Write => {
                    self.encoder().copy_buffer_to_buffer(buffer, offset, &copy, 0, size);
                }
                Bound::Texture(texture) => texture.copy_to(self, &copy),
                Bound::Buffer { .. } => {}
            }
            copies.push(copy);
        }
        let empty = |access: &Access| Binding { written: *access == Access::Write, bytes: Vec::new() };
        let dispatch = Dispatch {
            kernel: pipeline.name.clone(),
            source: pipeline.source.clone(),
            params: params.to_vec(),
            grid,
            bindings: pipeline.bindings.iter().map(empty).collect(),
        };
        recording.pending.push(Pending { dispatch, copies });
        self.recording = Some(recording);
        Ok(())
    }

    /// After the dispatch that was noted last: copies what it wrote.
    pub(super) fn record_writes(&mut self, bindings: &[Bound<'_>]) {
        let Some(recording) = self.recording.take() else { return };
        if let Some(last) = recording.pending.last() {
            for ((bound, copy), binding) in bindings.iter().zip(&last.copies).zip(&last.dispatch.bindings) {
                if let Bound::Buffer { buffer, offset, size, .. } = *bound
                    && binding.written
                {
                    self.encoder().copy_buffer_to_buffer(buffer, offset, copy, 0, size);
                }
            }
        }
        self.recording = Some(recording);
    }

    /// The dispatches since [`Device::record`], in order; recording ends.
    ///
    /// # Errors
    /// If the device is lost or a buffer cannot be read.
    pub fn recorded(&mut self) -> Result<Vec<Dispatch>> {
        let recording = self.recording.take().unwrap_or_default();
        self.submit();
        let mapped: Vec<_> = (recording.pending.iter().flat_map(|p| &p.copies))
            .map(|copy| {
                let mapped = Arc::new(OnceLock::new());
                let tell = mapped.clone();
                copy.map_async(wgpu::MapMode::Read, .., move |result| {
                    // The one callback of this mapping.
                    let _ = tell.set(result.map_err(|e| e.to_string()));
                });
                mapped
            })
            .collect();
        self.wait(None)?;
        let mut mapped = mapped.into_iter();
        let mut dispatches = Vec::new();
        for Pending { mut dispatch, copies } in recording.pending {
            for (binding, copy) in dispatch.bindings.iter_mut().zip(&copies) {
                let fail = |e: String| self.fail(format!("reading a recorded binding back: {e}"));
                let result = mapped.next().and_then(|m| m.get().cloned());
                result.unwrap_or_else(|| Err("it was not mapped".into())).map_err(fail)?;
                binding.bytes = copy.get_mapped_range(..).map_err(|e| fail(e.to_string()))?.to_vec();
            }
            dispatches.push(dispatch);
        }
        Ok(dispatches)
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::Backend;
    use crate::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
    use crate::op::{At, HostTensor, Op, Stage};

    #[test]
    fn a_dispatch_is_kept_with_what_it_read_and_what_it_wrote() {
        let mut gpu = GpuBackend::new(&AdapterSelector::Best, GpuOptions::default()).unwrap();
        let x = gpu.upload(&HostTensor::f32(&[1, 4], vec![1.0, 2.0, 3.0, 4.0])).unwrap();
        let at = At::model(Stage::Embedding, 0);
        let before = gpu.run(at, &Op::Add { a: x.clone(), b: x.clone() }).unwrap();
        gpu.record().unwrap();
        let twice = gpu.run(at, &Op::Add { a: x.clone(), b: x }).unwrap();
        gpu.run(at, &Op::Add { a: twice.clone(), b: before }).unwrap();
        let dispatches = gpu.recorded().unwrap();
        let values = |i: usize, binding: usize| -> Vec<f32> {
            bytemuck::pod_collect_to_vec(&dispatches[i].bindings[binding].bytes)
        };
        assert_eq!(dispatches.len(), 2);
        assert_eq!((values(0, 0), values(0, 2)), (vec![1.0, 2.0, 3.0, 4.0], vec![2.0, 4.0, 6.0, 8.0]));
        assert_eq!((values(1, 0), values(1, 2)), (vec![2.0, 4.0, 6.0, 8.0], vec![4.0, 8.0, 12.0, 16.0]));
        for dispatch in &dispatches {
            assert_eq!((dispatch.kernel.as_str(), &dispatch.params[..], dispatch.grid), ("add", &[4][..], [1, 1, 1]));
            assert!(dispatch.source.contains("fn main"));
            assert_eq!(dispatch.bindings.iter().map(|b| b.written).collect::<Vec<_>>(), [false, false, true]);
        }
        gpu.run(at, &Op::Add { a: twice.clone(), b: twice }).unwrap();
        assert!(gpu.recorded().unwrap().is_empty(), "a recording ends when it is taken");
    }
}
