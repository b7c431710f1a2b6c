//! What an adapter allows: bytes read, floating-point operations a second, and what a dispatch and a submission cost by
//! themselves.
//!
//! Design:
//! - A limit is the best of several rounds, as on the CPU: everything that disturbs a round makes it slower.
//! - A round is timed by timestamps where the adapter has them. Where it has none, it is the wall time of a submission
//!   less that of an empty one.

use std::time::{Duration, Instant};

use super::device::Bound;
use super::kernels::{self, Kernel};
use super::params::{self, Params};
use super::texture::{self, WordTexture};
use super::{GpuBackend, THREADS};
use crate::backend::Backend;
use crate::error::Result;
use crate::op::{At, HostTensor, Op, Site, Stage};

/// The most bytes that the read probe reads: several times a cache of the GPUs at hand.
const MOST_BYTES: u64 = 512 << 20;
/// vec4 that one thread of the read probe adds up, and rounds of multiply-adds that one thread of the FMA probe does;
/// the multiply-adds of a round are those that `shaders/probe_fma.wgsl` writes out.
const READS: u32 = 64;
const ROUNDS: u32 = 64;
const FMA_PER_ROUND: u32 = 64;
/// Workgroups of the FMA probe: enough to fill the largest GPUs several times.
const FMA_GROUPS: u32 = 4096;
/// After this much time no further round starts.
const TIME: Duration = Duration::from_millis(400);

/// Where a probe's dispatches stand: at no stage of a model, but every dispatch has a site.
const SITE: Site = Site { layer: None, stage: Stage::Embedding };

/// What is paid for a dispatch and for a submission, whatever they do, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct LaunchCosts {
    /// The host's time to record one dispatch.
    pub encode: f64,
    /// From one small dispatch to the next on the device, each waiting for the one before.
    pub dispatch: f64,
    /// Submitting one small dispatch and waiting for it, less the dispatch.
    pub submission: f64,
}

impl GpuBackend {
    /// Bytes a second that a kernel which does nothing else reads from the adapter's memory: from a buffer, or from a texture where
    /// matrix products read those.
    ///
    /// # Errors
    /// The device's.
    pub fn read_bandwidth(&mut self) -> Result<f64> {
        let group = u64::from(THREADS * READS) * 16;
        let limits = &self.device.limits;
        let most = match self.lanes {
            true => texture::most_bytes(limits),
            false => limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
        };
        let most = most.min(MOST_BYTES);
        let groups = (most / group).min(u64::from(limits.max_compute_workgroups_per_dimension)).max(1);
        let bytes = groups * group;
        let what = "the read probe's values";
        let (buffer, texture);
        let values = if self.lanes {
            texture = WordTexture::new(&self.device, what, bytes)?; // wgpu clears it before it is read
            Bound::Texture(&texture)
        } else {
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
            buffer = self.device.create_buffer(what, bytes, usage)?;
            self.device.encoder().clear_buffer(&buffer, 0, None); // so that every page is there
            Bound::buffer(&buffer, bytes)
        };
        let sums = self.tensor("the read probe's sums", &[groups as usize * THREADS as usize], false)?;
        let bindings = [values, sums.binding()];
        let grid = [groups as u32, 1, 1];
        let seconds = self.best_round(kernels::PROBE_READ, &bindings, params::ProbeRead { reads: READS }, grid)?;
        Ok(bytes as f64 / seconds)
    }

    /// Floating-point operations a second (a multiply-add is two) of a kernel that does nothing else.
    ///
    /// # Errors
    /// The device's.
    pub fn arithmetic_peak(&mut self) -> Result<f64> {
        // A software adapter has one CPU to fill.
        let software = super::is_software(&self.device.info);
        let most = self.device.limits.max_compute_workgroups_per_dimension;
        let groups = if software { 256 } else { FMA_GROUPS }.min(most);
        let threads = groups * THREADS;
        let sums = self.tensor("the FMA probe's sums", &[threads as usize], false)?;
        let params = params::ProbeFma { rounds: ROUNDS, x: 0.5, y: 1.0 };
        let seconds = self.best_round(kernels::PROBE_FMA, &[sums.binding()], params, [groups, 1, 1])?;
        Ok(2.0 * f64::from(threads) * f64::from(ROUNDS * FMA_PER_ROUND) / seconds)
    }

    /// What dispatches and submissions cost by themselves.
    ///
    /// # Errors
    /// The device's.
    pub fn launch_costs(&mut self) -> Result<LaunchCosts> {
        const MANY: u32 = 32; // fewer than are recorded before they are submitted
        let x = self.upload(&HostTensor::f32(&[1, 4], vec![0.0; 4]))?;
        let (mut encode, mut one, mut many) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
        let begin = Instant::now();
        let mut round = 0;
        while round < 3 || begin.elapsed() < TIME / 2 {
            for (count, best) in [(1, &mut one), (MANY, &mut many)] {
                self.sync()?;
                let start = Instant::now();
                let mut y = x.clone();
                for _ in 0..count {
                    y = self.run(At::new(SITE, 0), &Op::Add { a: y.clone(), b: y })?;
                }
                self.run_waiting()?;
                let recorded = start.elapsed().as_secs_f64();
                self.sync()?;
                *best = best.min(start.elapsed().as_secs_f64() - recorded);
                if count == MANY {
                    encode = encode.min(recorded / f64::from(MANY));
                }
            }
            round += 1;
        }
        let dispatch = ((many - one) / f64::from(MANY - 1)).max(0.0);
        Ok(LaunchCosts { encode, dispatch, submission: (one - dispatch).max(0.0) })
    }

    /// Seconds of the shortest round of one dispatch.
    fn best_round<P: Params>(
        &mut self,
        kernel: Kernel<P>,
        bindings: &[Bound<'_>],
        params: P,
        grid: [u32; 3],
    ) -> Result<f64> {
        let timer = self.kernel_timer();
        let empty = if timer.available() { 0.0 } else { self.launch_costs()?.submission };
        timer.switch(true);
        let timed = self.rounds(kernel, bindings, params, grid, empty);
        timer.switch(false);
        timed
    }

    fn rounds<P: Params>(
        &mut self,
        kernel: Kernel<P>,
        bindings: &[Bound<'_>],
        params: P,
        grid: [u32; 3],
        empty: f64,
    ) -> Result<f64> {
        let timer = self.kernel_timer();
        let begin = Instant::now();
        let (mut best, mut round) = (f64::INFINITY, 0);
        // The first round compiles the kernel and touches the memory.
        while round < 3 || begin.elapsed() < TIME {
            self.sync()?;
            timer.take();
            let start = Instant::now();
            self.dispatch(SITE, kernel, bindings, params, grid)?;
            self.sync()?;
            let wall = start.elapsed().as_secs_f64() - empty;
            let seconds = match &timer.take()[..] {
                [time] if time.end > time.begin => time.end - time.begin,
                _ => wall,
            };
            if round > 0 {
                best = best.min(seconds);
            }
            round += 1;
        }
        // A clock too coarse for the round is no reason to divide by 0.
        Ok(best.max(1e-9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::gpu::{AdapterSelector, GpuOptions};

    #[test]
    fn limits_are_positive_and_finite() {
        let mut gpu = GpuBackend::new(&AdapterSelector::Best, GpuOptions::default()).unwrap();
        for limit in [gpu.read_bandwidth().unwrap(), gpu.arithmetic_peak().unwrap()] {
            assert!(limit.is_finite() && limit > 1e6, "{limit}");
        }
        let costs = gpu.launch_costs().unwrap();
        assert!([costs.encode, costs.dispatch, costs.submission].iter().all(|c| (0.0..1.0).contains(c)), "{costs:?}");
    }
}
