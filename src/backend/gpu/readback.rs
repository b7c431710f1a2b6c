//! Tensors to the host, without stopping the GPU.
//!
//! Design:
//! - [`Readback::fetch`] records a copy into a mappable buffer, in order with everything else, and asks for the mapping as soon
//!   as that is submitted. [`Readback::take`] waits for that submission only, which has often finished by then.
//! - The mappable buffers are bounded in bytes. When a copy would exceed the bound, the oldest copies are finished first and
//!   their values kept on the host.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use super::device::{Device, Submission};
use super::tensor::{GpuTensor, Pool};
use crate::backend::Ticket;
use crate::error::{Error, Result};
use crate::op::{Data, HostTensor};

/// Bytes of mappable memory that copies may hold at a time, unless the options say otherwise.
pub const STAGING_BYTES: u64 = 256 << 20;

/// A copy under way.
struct Copy {
    buffer: wgpu::Buffer,
    shape: Vec<usize>,
    ids: bool,
    submission: Submission,
    mapped: Arc<OnceLock<Result<(), String>>>,
}

pub struct Readback {
    limit: u64,
    /// Bytes of the buffers in `copies`.
    held: u64,
    next: u64,
    copies: HashMap<u64, Copy>,
    /// Tickets of `copies`, oldest first; some may be taken already.
    order: VecDeque<u64>,
    done: HashMap<u64, HostTensor>,
    unused: Vec<wgpu::Buffer>,
}

impl Readback {
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            held: 0,
            next: 0,
            copies: HashMap::new(),
            order: VecDeque::new(),
            done: HashMap::new(),
            unused: Vec::new(),
        }
    }

    /// A ticket for a copy that is to be made.
    pub fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    /// Makes the copy of `ticket`.
    ///
    /// # Errors
    /// If the device is lost or has no memory for the copy.
    pub fn fetch(&mut self, device: &mut Device, Ticket(ticket): Ticket, tensor: &GpuTensor) -> Result<()> {
        let bytes = tensor.len() as u64 * 4;
        if bytes == 0 {
            self.done.insert(ticket, host_tensor(tensor.shape(), tensor.0.ids, &[]));
            return Ok(());
        }
        let size = Pool::rounded(bytes);
        while self.held + size > self.limit {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(copy) = self.copies.remove(&oldest) {
                let values = self.finish(device, copy)?;
                self.done.insert(oldest, values);
            }
        }
        let buffer = match self.unused.iter().position(|b| b.size() == size) {
            Some(at) => self.unused.swap_remove(at),
            None => {
                // Buffers of other sizes make room for this one.
                let unused: u64 = self.unused.iter().map(|b| b.size()).sum();
                if self.held + unused + size > self.limit {
                    self.unused.clear();
                }
                let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
                device.create_buffer("readback", size, usage)?
            }
        };
        self.held += size;
        let mapped = Arc::new(OnceLock::new());
        let tell = mapped.clone();
        let encoder = device.encoder();
        encoder.copy_buffer_to_buffer(tensor.buffer(), 0, &buffer, 0, bytes);
        encoder.map_buffer_on_submit(&buffer, wgpu::MapMode::Read, 0..bytes, move |result| {
            // The one callback of this mapping.
            let _ = tell.set(result.map_err(|e| e.to_string()));
        });
        let submission = device.submission();
        let shape = tensor.shape().to_vec();
        self.copies.insert(ticket, Copy { buffer, shape, ids: tensor.0.ids, submission, mapped });
        self.order.push_back(ticket);
        Ok(())
    }

    /// # Errors
    /// If the ticket was taken already or is another backend's, or the device is lost.
    pub fn take(&mut self, device: &mut Device, ticket: Ticket) -> Result<HostTensor> {
        if let Some(values) = self.done.remove(&ticket.0) {
            return Ok(values);
        }
        let copy = self.copies.remove(&ticket.0).ok_or_else(|| {
            Error::cannot_run(format!(
                "ticket {} was taken already, is another backend's, or its operation has failed",
                ticket.0
            ))
        })?;
        while self.order.front().is_some_and(|t| !self.copies.contains_key(t)) {
            self.order.pop_front();
        }
        self.finish(device, copy)
    }

    /// Waits for a copy and gives its buffer back.
    fn finish(&mut self, device: &mut Device, copy: Copy) -> Result<HostTensor> {
        self.held -= copy.buffer.size();
        if copy.submission.get().is_none() {
            device.submit();
        }
        device.wait(copy.submission.get())?;
        let fail = |e: String| device.fail(format!("reading a tensor back: {e}"));
        copy.mapped.get().cloned().unwrap_or_else(|| Err("it was not mapped".into())).map_err(fail)?;
        let bytes = copy.shape.iter().product::<usize>() as u64 * 4;
        let view = copy.buffer.get_mapped_range(0..bytes).map_err(|e| fail(e.to_string()))?;
        let values = host_tensor(&copy.shape, copy.ids, &view);
        drop(view);
        copy.buffer.unmap();
        self.unused.push(copy.buffer);
        Ok(values)
    }
}

fn host_tensor(shape: &[usize], ids: bool, bytes: &[u8]) -> HostTensor {
    let words = bytes.as_chunks::<4>().0;
    let data = if ids {
        Data::U32(words.iter().map(|b| u32::from_le_bytes(*b)).collect())
    } else {
        Data::F32(words.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    HostTensor { shape: shape.to_vec(), data }
}
