//! A backend that is measured: with its limits, and with the timer of its kernels where it has one.

use super::limits::{self, MachineLimit};
use crate::backend::cpu::Level;
use crate::backend::gpu::{GpuBackend, KernelTimer, LaunchCosts};
use crate::backend::{self, AnyBackend, Backend, BackendInfo, Erased, OpenOptions, gpu_selector};
use crate::environment::Environment;
use crate::error::Result;

/// A backend and what is known of it.
pub struct BenchSubject {
    /// What runs.
    pub backend: AnyBackend,
    /// What it says of itself.
    pub info: BackendInfo,
    /// Threads that a CPU backend uses.
    pub threads: Option<usize>,
    /// Its limits, the one that it runs under last; empty where nothing was probed.
    pub limits: Vec<MachineLimit>,
    /// The timer of a GPU's kernels.
    pub timer: Option<KernelTimer>,
    /// What a GPU takes for a dispatch and a submission.
    pub launch: Option<LaunchCosts>,
}

impl BenchSubject {
    /// Opens the backend called `name`, as [`backend::open`] does, and probes its limits if `probe`. The oracle, which
    /// is there to be right, has none.
    ///
    /// # Errors
    /// [`backend::open`]'s and the probes'.
    pub fn open(name: &str, options: OpenOptions, probe: bool) -> Result<Self> {
        if let Some(selector) = gpu_selector(name) {
            let mut gpu = GpuBackend::new(&selector, options.of_gpu())?;
            let limits = if probe { vec![limits::of_gpu(&mut gpu)?] } else { Vec::new() };
            let launch = if probe { Some(gpu.launch_costs()?) } else { None };
            let (info, timer) = (gpu.info(), Some(gpu.kernel_timer()));
            Environment::used_backend(&info);
            return Ok(Self { backend: Box::new(Erased(gpu)), info, threads: None, limits, timer, launch });
        }
        let backend = backend::open(name, options)?;
        let info = backend.info();
        let mut subject = Self { backend, info, threads: None, limits: Vec::new(), timer: None, launch: None };
        if let Some(level) = subject.info.backend.strip_prefix("cpu:") {
            let threads =
                options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
            subject.threads = Some(threads);
            if probe {
                let level = Some(level)
                    .filter(|name| *name != "int8")
                    .map(|name| Level::from_name(name).unwrap_or_else(Level::detect));
                subject.limits = limits::of_cpu(level, threads)?;
            }
        }
        Ok(subject)
    }

    /// The limit that it runs under.
    pub fn limit(&self) -> Option<&MachineLimit> {
        self.limits.last()
    }
}
