//! Backends by the names that the command line, traces and reports use.

use super::cpu::{CpuBackend, Level};
#[cfg(feature = "gpu")]
use super::gpu::tuning::TuningSource;
#[cfg(feature = "gpu")]
use super::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use super::oracle::OracleBackend;
use super::{AnyBackend, Erased};
use crate::error::{Error, Result};

/// What backends are opened with, beside their names.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Threads of a CPU backend; one a core unless said.
    pub threads: Option<usize>,
    /// Bytes of GPU memory that weights may take, those that do not fit being streamed; all of it unless said.
    pub gpu_memory: Option<u64>,
    /// Whether a GPU's memory is poisoned before a kernel writes it, and every kernel held to what it was to write.
    pub poison: bool,
}

/// Opens the backend called `name`: `oracle`, `cpu` (the best that the processor has), `cpu:LEVEL`, `cpu:int8`, `gpu` (the best adapter), `gpu:N` or
/// `gpu:NAME`.
///
/// # Errors
/// [`Error::Usage`] for an unknown name, [`Error::CannotRun`] for a processor or an adapter that cannot run it.
pub fn open(name: &str, options: OpenOptions) -> Result<AnyBackend> {
    let OpenOptions { threads, .. } = options;
    let (kind, detail) = name.split_once(':').map_or((name, None), |(kind, detail)| (kind, Some(detail)));
    match (kind, detail) {
        ("oracle", None) => Ok(Box::new(Erased(OracleBackend::new()))),
        ("cpu", None) => Ok(Box::new(Erased(CpuBackend::new(None, threads)?))),
        ("cpu", Some("int8")) => Ok(Box::new(Erased(CpuBackend::int8(None, threads)?))),
        ("cpu", Some(level)) => {
            let level = Level::from_name(level).ok_or_else(|| unknown(name))?;
            Ok(Box::new(Erased(CpuBackend::new(Some(level), threads)?)))
        }
        #[cfg(feature = "gpu")]
        _ => match gpu_selector(name) {
            Some(selector) => Ok(Box::new(Erased(GpuBackend::new(&selector, options.of_gpu())?))),
            None => Err(unknown(name)),
        },
        #[cfg(not(feature = "gpu"))]
        ("gpu", _) => Err(Error::cannot_run(format!("{name}: this build has no GPU backend (feature `gpu`)"))),
        #[cfg(not(feature = "gpu"))]
        _ => Err(unknown(name)),
    }
}

#[cfg(feature = "gpu")]
impl OpenOptions {
    /// Those of a GPU, with the tuning table that was saved for it.
    pub fn of_gpu(&self) -> GpuOptions {
        GpuOptions {
            weight_memory: self.gpu_memory,
            poison: self.poison,
            tuning: TuningSource::Saved,
            ..Default::default()
        }
    }
}

/// The adapter that a backend called `name` is: of `gpu`, `gpu:N` and `gpu:NAME`.
#[cfg(feature = "gpu")]
pub fn gpu_selector(name: &str) -> Option<AdapterSelector> {
    match name.split_once(':') {
        None if name == "gpu" => Some(AdapterSelector::Best),
        Some(("gpu", detail)) if !detail.is_empty() => Some(AdapterSelector::parse(detail)),
        _ => None,
    }
}

fn unknown(name: &str) -> Error {
    Error::usage(format!(
        "unknown backend {name:?}; backends are oracle, cpu, cpu:scalar, cpu:avx2, cpu:avx512, cpu:neon, cpu:int8, gpu, \
         gpu:N, gpu:NAME (`twinscope devices` lists them)"
    ))
}
