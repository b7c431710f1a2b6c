//! `devices`: what this machine can run a model on, and what is missing.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::atomic::file::AtomicFile;
use crate::backend::cpu::{CpuBackend, Level};
use crate::backend::gpu::tuning::file;
use crate::backend::gpu::{self, GpuBackend, GpuOptions};
use crate::backend::{Backend, gpu_selector};
use crate::bench::tune::tune;
use crate::cli::common::{ONE_BY_ONE, progress_bar, tell};
use crate::cli::{Outcome, output};
use crate::environment::Environment;
use crate::report::devices::{
    AdapterDevice, AdapterFeatures, AdapterLimits, CpuDevice, CpuLevel, DevicesDocument, render,
};
use crate::report::tuning::render_tuning;
use crate::{Error, Result};

/// List the CPU levels and the GPU adapters that a backend can be chosen from; measure which kernels are the fastest on one.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON document (schema twinscope.devices/1; with --tune twinscope.tuning/1)
    #[arg(long)]
    json: bool,
    /// Measure up to how many rows an adapter's matrix-vector kernels are faster than its tiled ones, and save it: runs on that adapter, with
    /// that driver, choose by it from then on, unless TWINSCOPE_TUNING names another file or is `built-in`
    #[arg(long)]
    tune: bool,
    /// The adapter to measure: gpu, gpu:N or gpu:NAME
    #[arg(long, value_name = "ADAPTER", default_value = "gpu", requires = "tune")]
    adapter: String,
    /// Measure small shapes of two types: seconds instead of minutes, and coarse
    #[arg(long, requires = "tune")]
    quick: bool,
    /// Save it there, and not where every run looks for it; - for standard output
    #[arg(long, value_name = "FILE", requires = "tune")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    if args.tune {
        return tuned(args);
    }
    let document = DevicesDocument { schema: "twinscope.devices/1", cpu: cpu()?, adapters: adapters() };
    if args.json {
        output::print_json(&document)?;
    } else {
        output::print(&render(&document))?;
    }
    Ok(Outcome::Ok)
}

fn tuned(args: &Args) -> Result<Outcome> {
    let name = &args.adapter;
    let selector = gpu_selector(name)
        .ok_or_else(|| Error::usage(format!("--adapter: expected gpu, gpu:N or gpu:NAME, found {name:?}")))?;
    let of = GpuBackend::new(&selector, GpuOptions::default())?;
    Environment::used_backend(&of.info());
    let nowhere = "--tune: no directory of settings (XDG_CONFIG_HOME, HOME or APPDATA); expected --out FILE";
    let path = args.out.clone().or_else(|| file::place(&of.tuned_adapter())).ok_or_else(|| Error::usage(nowhere))?;
    drop(of);
    let to_stdout = path == Path::new("-");
    if to_stdout && args.json {
        return Err(Error::usage(
            "--json and --out -: both would write to standard output, and the same; leave one out",
        ));
    }
    if let Some(parent) = path.parent().filter(|_| args.out.is_none()) {
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    }
    // A wrong place is said before minutes are spent.
    let out = if to_stdout { None } else { Some(AtomicFile::create(&path)?) };
    let bar = progress_bar(ONE_BY_ONE);
    let found = tune(&selector, args.quick, &mut |name, done, of| tell(&bar, name, done, of))?;
    bar.finish_and_clear();
    let document = Environment::with(&found)?;
    let Some(mut out) = out else {
        output::print_json(&document)?;
        return Ok(Outcome::Ok);
    };
    let text = serde_json::to_string_pretty(&document).map_err(|e| Error::input(format!("json: {e}")))?;
    writeln!(out, "{text}").map_err(|e| Error::io(&path, e))?;
    out.commit()?;
    if args.json {
        output::print_json(&document)?;
    } else {
        output::print(&render_tuning(&found))?;
    }
    output::say(&format!("saved as {}", path.display()));
    Ok(Outcome::Ok)
}

fn cpu() -> Result<CpuDevice> {
    let processor = CpuBackend::new(None, Some(1))?.info().adapter;
    let best = Level::detect();
    let level = |&level: &Level| CpuLevel {
        name: level.backend_name(),
        available: level.missing().is_empty(),
        default: level == best,
        missing: level.missing(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let missing = Level::Avx2.missing(); // what any level of it needs
    let int8 = CpuLevel { name: "cpu:int8", available: missing.is_empty(), default: false, missing };
    Ok(CpuDevice { processor, threads, levels: Level::HERE.iter().map(level).chain([int8]).collect() })
}

fn adapters() -> Vec<AdapterDevice> {
    let all = gpu::adapters();
    let best = gpu::best(&all);
    let describe = |(index, adapter): (usize, &wgpu::Adapter)| {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let has = |feature| adapter.features().contains(feature);
        AdapterDevice {
            backend: format!("gpu:{index}"),
            index,
            api: info.backend.to_str(),
            kind: match info.device_type {
                wgpu::DeviceType::DiscreteGpu => "discrete",
                wgpu::DeviceType::IntegratedGpu => "integrated",
                wgpu::DeviceType::VirtualGpu => "virtual",
                wgpu::DeviceType::Cpu => "cpu",
                wgpu::DeviceType::Other => "other",
            },
            software: gpu::is_software(&info),
            default: best == Some(index),
            limits: AdapterLimits {
                max_buffer_size: limits.max_buffer_size,
                max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
                max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
                max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size,
                max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
                max_immediate_size: limits.max_immediate_size,
                subgroup_min_size: info.subgroup_min_size,
                subgroup_max_size: info.subgroup_max_size,
            },
            features: AdapterFeatures {
                immediates: has(wgpu::Features::IMMEDIATES),
                subgroup: has(wgpu::Features::SUBGROUP),
                shader_f16: has(wgpu::Features::SHADER_F16),
                timestamp_query: has(wgpu::Features::TIMESTAMP_QUERY),
            },
            missing: gpu::missing(adapter),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            name: info.name,
        }
    };
    all.iter().enumerate().map(describe).collect()
}
