//! `devices`: what this machine can run a model on, and what is missing.

use std::fmt::Write;

use serde::Serialize;

use crate::Result;
use crate::backend::Backend;
use crate::backend::cpu::{CpuBackend, Level};
use crate::backend::gpu;
use crate::cli::{Outcome, output};

/// List the CPU levels and the GPU adapters that a backend can be chosen from.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON document (schema twinscope.devices/1)
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    cpu: Cpu,
    adapters: Vec<Adapter>,
}

#[derive(Serialize)]
struct Cpu {
    processor: String,
    threads: usize,
    levels: Vec<CpuLevel>,
}

#[derive(Serialize)]
struct CpuLevel {
    /// What `--backend` takes.
    name: &'static str,
    available: bool,
    /// Whether `cpu` means this one.
    default: bool,
    missing: Vec<&'static str>,
}

#[derive(Serialize)]
struct Adapter {
    /// What `--backend` takes.
    backend: String,
    index: usize,
    name: String,
    api: &'static str,
    driver: String,
    #[serde(rename = "type")]
    kind: &'static str,
    software: bool,
    /// Whether `gpu` means this one.
    default: bool,
    limits: Limits,
    features: Features,
    /// What it lacks to run the kernels.
    missing: Vec<String>,
}

#[derive(Serialize)]
struct Limits {
    max_buffer_size: u64,
    max_storage_buffer_binding_size: u64,
    max_compute_workgroups_per_dimension: u32,
    max_compute_workgroup_storage_size: u32,
    max_compute_invocations_per_workgroup: u32,
    max_immediate_size: u32,
    subgroup_min_size: u32,
    subgroup_max_size: u32,
}

#[derive(Serialize)]
struct Features {
    /// Needed: the kernels take their parameters so.
    immediates: bool,
    subgroup: bool,
    shader_f16: bool,
    timestamp_query: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let document = Document { schema: "twinscope.devices/1", cpu: cpu()?, adapters: adapters() };
    if args.json {
        output::print_json(&document)?;
    } else {
        output::print(&render(&document))?;
    }
    Ok(Outcome::Ok)
}

fn cpu() -> Result<Cpu> {
    let processor = CpuBackend::new(None, Some(1))?.info().adapter;
    let best = Level::detect();
    let level = |&level: &Level| CpuLevel {
        name: level.backend_name(),
        available: level.missing().is_empty(),
        default: level == best,
        missing: level.missing(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Cpu { processor, threads, levels: Level::ALL.iter().map(level).collect() })
}

fn adapters() -> Vec<Adapter> {
    let all = gpu::adapters();
    let best = gpu::best(&all);
    let describe = |(index, adapter): (usize, &wgpu::Adapter)| {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let has = |feature| adapter.features().contains(feature);
        Adapter {
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
            limits: Limits {
                max_buffer_size: limits.max_buffer_size,
                max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
                max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
                max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size,
                max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
                max_immediate_size: limits.max_immediate_size,
                subgroup_min_size: info.subgroup_min_size,
                subgroup_max_size: info.subgroup_max_size,
            },
            features: Features {
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

/// For people: one block a device, the default ones marked.
fn render(document: &Document) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{text}");
    };
    let cpu = &document.cpu;
    line(format!("cpu    {} · {} threads", cpu.processor, cpu.threads));
    line("  oracle      float64, the judge".to_string());
    for level in &cpu.levels {
        let state = match (level.available, level.default) {
            (_, true) => "available · what `cpu` means".to_string(),
            (true, false) => "available".to_string(),
            (false, _) => format!("missing: {}", level.missing.join(", ")),
        };
        line(format!("  {:10}  {state}", level.name));
    }
    for a in &document.adapters {
        let software = if a.software { " · software adapter" } else { "" };
        let default = if a.default { " · what `gpu` means" } else { "" };
        line(format!("{}  {}{software}{default}", a.backend, a.name));
        line(format!("  driver      {} · {} · {}", a.driver, a.api, a.kind));
        let l = &a.limits;
        let mib = |bytes: u64| bytes >> 20;
        line(format!(
            "  limits      binding {} MiB · buffer {} MiB · workgroup {} invocations, {} KiB · immediates {} B · subgroup {}",
            mib(l.max_storage_buffer_binding_size),
            mib(l.max_buffer_size),
            l.max_compute_invocations_per_workgroup,
            l.max_compute_workgroup_storage_size >> 10,
            l.max_immediate_size,
            if l.subgroup_min_size == l.subgroup_max_size {
                l.subgroup_min_size.to_string()
            } else {
                format!("{} to {}", l.subgroup_min_size, l.subgroup_max_size)
            },
        ));
        let f = &a.features;
        let all = [
            ("immediates", f.immediates),
            ("subgroup", f.subgroup),
            ("shader_f16", f.shader_f16),
            ("timestamp_query", f.timestamp_query),
        ];
        let names = |have: bool| all.iter().filter(|(_, h)| *h == have).map(|(n, _)| *n).collect::<Vec<_>>().join(", ");
        let without = if names(false).is_empty() { String::new() } else { format!(" · without {}", names(false)) };
        line(format!("  features    {}{without}", names(true)));
        let missing = if a.missing.is_empty() { "nothing".to_string() } else { a.missing.join("; ") };
        line(format!("  missing     {missing}"));
    }
    if document.adapters.is_empty() {
        line(format!("gpu    no adapter · {}", gpu::PACKAGES));
    }
    out
}
