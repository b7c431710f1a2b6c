//! A device, its queue, and what went wrong with them.
//!
//! Design:
//! - wgpu reports errors by callback, later than the call that caused them. The callbacks keep the first one; every entry
//!   point of the backend calls [`Device::check`] and returns it. Nothing panics.
//! - Commands are recorded into one encoder and one compute pass for as long as they go, and submitted every
//!   [`DISPATCHES_PER_SUBMIT`] dispatches, so that the GPU starts early and the host never waits.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use super::adapter;
use super::kernels::Pipeline;
use super::poison::Poison;
use super::record::Recording;
use super::texture::WordTexture;
use super::timing::Timing;
use crate::error::{Error, Result};

/// Dispatches recorded before they are submitted: enough to hide the cost of a submit, few enough to start the GPU early.
const DISPATCHES_PER_SUBMIT: u32 = 64;

/// Bytes written to the queue before it is submitted. Twice as many may be in the driver's staging memory at a time.
const STAGED_PER_SUBMIT: u64 = 64 << 20;

/// The submission that a recorded command went into, once it did.
pub type Submission = Rc<OnceCell<wgpu::SubmissionIndex>>;

/// What a binding of a kernel is bound to.
#[derive(Clone, Copy)]
pub enum Bound<'a> {
    /// Bytes of a storage buffer.
    Buffer {
        buffer: &'a wgpu::Buffer,
        offset: u64,
        size: u64,
        /// The words that have values: the rest fills up a vec4.
        words: u64,
        /// The axes of the tensor that they are of; none where they are of no tensor.
        shape: &'a [usize],
    },
    /// A texture of words.
    Texture(&'a WordTexture),
}

impl<'a> Bound<'a> {
    /// The first `size` bytes of a buffer.
    pub fn buffer(buffer: &'a wgpu::Buffer, size: u64) -> Self {
        Bound::Buffer { buffer, offset: 0, size, words: size / 4, shape: &[] }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Bound::Buffer { size, .. } => *size,
            Bound::Texture(texture) => texture.size(),
        }
    }
}

/// The first error of a device.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    fn note(&self, message: String) {
        // A poisoned lock still holds a valid message.
        self.0.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(message);
    }
}

pub struct Device {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    pub limits: wgpu::Limits,
    failure: Failure,
    encoder: Option<wgpu::CommandEncoder>,
    /// Open only while `encoder` is: no other command may be recorded meanwhile.
    pass: Option<wgpu::ComputePass<'static>>,
    /// Since the last submission.
    dispatches: u32,
    submission: Submission,
    /// Bytes written to the queue since it was last submitted for their sake, and that submission.
    staged: u64,
    staged_before: Option<wgpu::SubmissionIndex>,
    /// Set while dispatches are kept; see [`super::record`].
    pub(super) recording: Option<Recording>,
    /// Set where memory is poisoned.
    pub(super) poison: Option<Poison>,
    /// See [`super::timing`].
    pub(super) timing: Timing,
}

impl Device {
    /// # Errors
    /// `CannotRun` if the adapter gives no device.
    pub fn new(adapter: &wgpu::Adapter) -> Result<Self> {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("twinscope"),
            required_features: adapter::FEATURES | (adapter.features() & adapter::OPTIONAL_FEATURES),
            required_limits: limits.clone(),
            ..Default::default()
        }))
        .map_err(|e| Error::cannot_run(format!("{}: no device: {e}", info.name)))?;
        let failure = Failure::default();
        let note = failure.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            note.note(match e {
                wgpu::Error::OutOfMemory { .. } => "out of GPU memory".to_string(),
                other => other.to_string(),
            });
        }));
        let note = failure.clone();
        device
            .set_device_lost_callback(move |reason, message| note.note(format!("device lost ({reason:?}): {message}")));
        Ok(Self {
            timing: Timing::new(&device),
            device,
            queue,
            info,
            limits,
            failure,
            encoder: None,
            pass: None,
            dispatches: 0,
            submission: Submission::default(),
            staged: 0,
            staged_before: None,
            recording: None,
            poison: None,
        })
    }

    /// The first error that the device reported, if it did; it stays.
    pub fn check(&self) -> Result<()> {
        match &*self.failure.0.lock().unwrap_or_else(|e| e.into_inner()) {
            Some(message) => Err(Error::cannot_run(format!("{}: {message}", self.info.name))),
            None => Ok(()),
        }
    }

    /// Keeps a failure that no callback told of, and says it.
    pub fn fail(&self, message: String) -> Error {
        let error = Error::cannot_run(format!("{}: {message}", self.info.name));
        self.failure.note(message);
        error
    }

    /// A buffer of `size` bytes.
    ///
    /// # Errors
    /// `CannotRun` if the device has no memory for it; the device stays usable.
    pub fn create_buffer(&self, what: &str, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        self.check()?;
        if size > self.limits.max_buffer_size {
            return Err(Error::cannot_run(format!(
                "{}: {what} needs a buffer of {size} bytes, max_buffer_size is {}",
                self.info.name, self.limits.max_buffer_size
            )));
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let desc = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&desc);
        match pollster::block_on(scope.pop()) {
            Some(_) => {
                Err(Error::cannot_run(format!("{}: out of GPU memory: {size} bytes for {what}", self.info.name)))
            }
            None => Ok(buffer),
        }
    }

    /// Records one dispatch.
    ///
    /// # Errors
    /// Only while dispatches are kept: if their buffers do not fit.
    pub fn dispatch(
        &mut self,
        pipeline: &Pipeline,
        bindings: &[Bound<'_>],
        params: &[u32],
        grid: [u32; 3],
    ) -> Result<()> {
        self.record_reads(pipeline, bindings, params, grid)?;
        let entries: Vec<_> = bindings
            .iter()
            .enumerate()
            .map(|(i, bound)| wgpu::BindGroupEntry {
                binding: i as u32,
                resource: match *bound {
                    Bound::Buffer { buffer, offset, size, .. } => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer,
                        offset,
                        size: std::num::NonZeroU64::new(self.reach(buffer, offset, size)),
                    }),
                    Bound::Texture(texture) => wgpu::BindingResource::TextureView(&texture.view),
                },
            })
            .collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.layout,
            entries: &entries,
        });
        if let Some(pass) = self.begin_timed_pass(&pipeline.name) {
            self.pass = Some(pass);
        } else if self.pass.is_none() {
            let pass = self.encoder().begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime();
            self.pass = Some(pass);
        }
        if let Some(pass) = &mut self.pass {
            pass.set_pipeline(&pipeline.pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.set_immediates(0, bytemuck::cast_slice(params));
            pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
        }
        self.record_writes(bindings);
        self.timing.count_dispatch();
        self.dispatches += 1;
        if self.dispatches >= DISPATCHES_PER_SUBMIT {
            self.submit();
        }
        Ok(())
    }

    /// The encoder, for commands other than dispatches.
    pub fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        self.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()))
    }

    /// Where commands recorded from now on will go.
    pub fn submission(&self) -> Submission {
        self.submission.clone()
    }

    /// Submits what is recorded, if anything is.
    pub fn submit(&mut self) {
        self.resolve_times();
        self.pass = None;
        self.dispatches = 0;
        if let Some(encoder) = self.encoder.take() {
            let index = self.queue.submit([encoder.finish()]);
            self.timing.count_submission();
            // Set once: the cell is replaced together with the encoder.
            let _ = std::mem::take(&mut self.submission).set(index);
        }
    }

    /// Waits for a submission, or for everything submitted.
    pub fn wait(&self, submission: Option<&wgpu::SubmissionIndex>) -> Result<()> {
        self.device.poll(wgpu::PollType::Wait { submission_index: submission.cloned(), timeout: None }).map_err(
            |e| match self.check() {
                // What the device reported before is why there is nothing to wait for.
                Err(reported) => reported,
                Ok(()) => self.fail(format!("waiting for the device: {e}")),
            },
        )?;
        self.check()
    }

    /// Counts bytes that were written to the queue. Now and then the queue is submitted, and the submission before waited for: writes
    /// stay in the driver's staging memory until then.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn staged(&mut self, bytes: u64) -> Result<()> {
        self.staged += bytes;
        if self.staged >= STAGED_PER_SUBMIT {
            self.staged = 0;
            let before = self.staged_before.replace(self.queue.submit([]));
            if before.is_some() {
                self.wait(before.as_ref())?;
            }
        }
        Ok(())
    }

    /// Writes bytes to a buffer, after everything recorded so far.
    pub fn write(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        // A queue write overtakes commands that are recorded but not submitted.
        self.submit();
        self.queue.write_buffer(buffer, offset, bytes);
    }
}
