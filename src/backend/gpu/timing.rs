//! How long each dispatch takes on the device, by timestamp queries.
//!
//! Design:
//! - Off unless a [`KernelTimer`] is started. While it runs, every dispatch has a compute pass of its own, at whose two
//!   ends the device writes a timestamp. Passes cost something of their own, so whatever is timed as a whole is timed
//!   with the timer off.
//! - Timestamps stay in GPU memory until [`Device::collect_times`], which
//!   [`Backend::sync`](crate::backend::Backend::sync) calls.
//! - A dispatch counts for the site whose operation recorded it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use super::device::Device;
use crate::error::Result;
use crate::op::Site;

/// Dispatches that one query set has room for: two queries each, of the 4096 that WebGPU allows.
const TIMED_PER_SET: u32 = 1024;

/// What the device needs to write timestamps.
pub const FEATURE: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY;

/// The time of one dispatch.
#[derive(Clone, Debug)]
pub struct KernelTime {
    /// `kernel`, or `kernel/TYPE`.
    pub kernel: Rc<str>,
    /// The operation that it belongs to.
    pub site: Site,
    /// When it began and ended, in seconds of the device's own clock.
    pub begin: f64,
    /// See `begin`.
    pub end: f64,
}

/// A handle to a backend's timer, which stays usable when the backend's type is hidden.
#[derive(Clone)]
pub struct KernelTimer(Rc<Shared>);

struct Shared {
    available: bool,
    on: Cell<bool>,
    /// Since the device was made.
    dispatches: Cell<u64>,
    submissions: Cell<u64>,
    done: RefCell<Vec<KernelTime>>,
}

impl KernelTimer {
    fn new(available: bool) -> Self {
        let (on, dispatches, submissions, done) = Default::default();
        Self(Rc::new(Shared { available, on, dispatches, submissions, done }))
    }

    /// Whether the adapter writes timestamps; a timer without them stays off.
    pub fn available(&self) -> bool {
        self.0.available
    }

    /// Times every dispatch from now on, or none.
    pub fn switch(&self, on: bool) {
        self.0.on.set(on && self.0.available);
    }

    /// The times collected since the last call, in the order of the dispatches.
    pub fn take(&self) -> Vec<KernelTime> {
        self.0.done.take()
    }

    /// Dispatches and submissions so far, timed or not.
    pub fn counts(&self) -> [u64; 2] {
        [self.0.dispatches.get(), self.0.submissions.get()]
    }
}

/// The dispatches whose timestamps go to one query set.
struct TimedSet {
    queries: wgpu::QuerySet,
    dispatches: Vec<(Rc<str>, Site)>,
}

/// The timing state of a device.
pub struct Timing {
    timer: KernelTimer,
    /// The site of the dispatches that are recorded from now on.
    site: Option<Site>,
    open: Option<TimedSet>,
    /// Resolved into a mappable buffer, not yet read.
    pending: Vec<(TimedSet, wgpu::Buffer)>,
    /// One string a kernel.
    names: std::collections::HashMap<String, Rc<str>>,
}

impl Timing {
    pub fn new(device: &wgpu::Device) -> Self {
        let timer = KernelTimer::new(device.features().contains(FEATURE));
        Self { timer, site: None, open: None, pending: Vec::new(), names: Default::default() }
    }

    pub fn timer(&self) -> &KernelTimer {
        &self.timer
    }

    /// Dispatches that are recorded from now on belong to `site`.
    pub fn at(&mut self, site: Site) {
        self.site = Some(site);
    }

    pub fn count_dispatch(&self) {
        let count = &self.timer.0.dispatches;
        count.set(count.get() + 1);
    }

    pub fn count_submission(&self) {
        let count = &self.timer.0.submissions;
        count.set(count.get() + 1);
    }
}

impl Device {
    /// Begins the compute pass of a dispatch that is timed; `None` while the timer is off.
    pub(super) fn begin_timed_pass(&mut self, kernel: &str) -> Option<wgpu::ComputePass<'static>> {
        let site = self.timing.site.filter(|_| self.timing.timer.0.on.get())?;
        if self.timing.open.as_ref().is_some_and(|open| open.dispatches.len() as u32 == TIMED_PER_SET) {
            self.submit();
        }
        let kernel = self.timing.names.entry(kernel.to_string()).or_insert_with(|| kernel.into()).clone();
        let open = self.timing.open.get_or_insert_with(|| TimedSet {
            queries: self.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("dispatch times"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * TIMED_PER_SET,
            }),
            dispatches: Vec::new(),
        });
        let first = 2 * open.dispatches.len() as u32;
        open.dispatches.push((kernel, site));
        let queries = open.queries.clone();
        let writes = wgpu::ComputePassTimestampWrites {
            query_set: &queries,
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        };
        let desc = wgpu::ComputePassDescriptor { label: None, timestamp_writes: Some(writes) };
        Some(self.encoder().begin_compute_pass(&desc).forget_lifetime())
    }

    /// Before a submission: the timestamps of what it runs are copied to where the host can read them.
    pub(super) fn resolve_times(&mut self) {
        let Some(set) = self.timing.open.take() else { return };
        let count = 2 * set.dispatches.len() as u32;
        let size = count as u64 * 8;
        let buffer = |usage| {
            let label = Some("dispatch times");
            self.device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
        };
        let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let readable = buffer(wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ);
        let encoder = self.encoder();
        encoder.resolve_query_set(&set.queries, 0..count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &readable, 0, size);
        self.timing.pending.push((set, readable));
    }

    /// Brings every timestamp of the work submitted so far to the timer.
    ///
    /// # Errors
    /// If the device is lost or a buffer cannot be read.
    pub(super) fn collect_times(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.timing.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let mapped: Vec<_> = pending
            .iter()
            .map(|(_, buffer)| {
                let mapped = Arc::new(OnceLock::new());
                let tell = mapped.clone();
                buffer.map_async(wgpu::MapMode::Read, .., move |result| {
                    // The one callback of this mapping.
                    let _ = tell.set(result.map_err(|e| e.to_string()));
                });
                mapped
            })
            .collect();
        self.wait(None)?;
        let period = self.queue.get_timestamp_period() as f64 * 1e-9;
        let mut done = self.timing.timer.0.done.borrow_mut();
        for ((set, buffer), mapped) in pending.into_iter().zip(mapped) {
            let fail = |e: String| self.fail(format!("reading timestamps back: {e}"));
            let result = mapped.get().cloned().unwrap_or_else(|| Err("they were not mapped".into()));
            result.map_err(fail)?;
            let view = buffer.get_mapped_range(..).map_err(|e| fail(e.to_string()))?;
            let ticks: Vec<f64> =
                view.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b) as f64 * period).collect();
            for ((kernel, site), ticks) in set.dispatches.into_iter().zip(ticks.as_chunks::<2>().0) {
                done.push(KernelTime { kernel, site, begin: ticks[0], end: ticks[1].max(ticks[0]) });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::Backend;
    use crate::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
    use crate::op::{At, HostTensor, Op, Stage};

    #[test]
    fn dispatches_are_timed_in_order_and_only_while_the_timer_is_on() {
        let mut gpu = GpuBackend::new(&AdapterSelector::Best, GpuOptions::default()).unwrap();
        let timer = gpu.kernel_timer();
        if !timer.available() {
            return; // the adapter has no timestamps, and a timer without them stays off
        }
        let x = gpu.upload(&HostTensor::f32(&[1, 4], vec![1.0; 4])).unwrap();
        let mut add = |layer| {
            let at = At::layer(layer, Stage::LayerOut, 0);
            let y = gpu.run(at, &Op::Add { a: x.clone(), b: x.clone() }).unwrap();
            let values = gpu.read(&y).unwrap();
            gpu.sync().unwrap();
            values
        };
        let untimed = add(0);
        assert!(timer.take().is_empty());
        timer.switch(true);
        let [before, _] = timer.counts();
        for layer in 1..4 {
            assert_eq!(add(layer), untimed);
        }
        timer.switch(false);
        add(4);
        let times = timer.take();
        assert_eq!(timer.counts()[0] - before, 4);
        assert_eq!(times.iter().map(|t| t.site.layer).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
        assert!(times.iter().all(|t| &*t.kernel == "add" && t.end >= t.begin), "{times:?}");
        assert!(times.windows(2).all(|pair| pair[1].begin >= pair[0].begin), "{times:?}");
    }

    #[test]
    fn more_dispatches_than_a_query_set_holds_are_all_timed() {
        let mut gpu = GpuBackend::new(&AdapterSelector::Best, GpuOptions::default()).unwrap();
        let timer = gpu.kernel_timer();
        timer.switch(true);
        let mut x = gpu.upload(&HostTensor::f32(&[1, 4], vec![1.0; 4])).unwrap();
        let count = super::TIMED_PER_SET as usize + 100;
        for _ in 0..count {
            x = gpu.run(At::model(Stage::Embedding, 0), &Op::Add { a: x.clone(), b: x }).unwrap();
        }
        gpu.sync().unwrap();
        assert_eq!(timer.take().len(), if timer.available() { count } else { 0 });
    }
}
