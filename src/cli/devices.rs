//! `devices`: what this machine can run a model on, and what is missing.

use crate::Result;
use crate::backend::Backend;
use crate::backend::cpu::{CpuBackend, Level};
use crate::backend::gpu;
use crate::cli::{Outcome, output};
use crate::report::devices::{
    AdapterDevice, AdapterFeatures, AdapterLimits, CpuDevice, CpuLevel, DevicesDocument, render,
};

/// List the CPU levels and the GPU adapters that a backend can be chosen from.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON document (schema twinscope.devices/1)
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let document = DevicesDocument { schema: "twinscope.devices/1", cpu: cpu()?, adapters: adapters() };
    if args.json {
        output::print_json(&document)?;
    } else {
        output::print(&render(&document))?;
    }
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
