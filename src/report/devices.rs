//! What `devices` prints: processors and adapters, what they have and what they lack.

use std::fmt::Write;

use serde::Serialize;

use crate::backend::gpu::PACKAGES;
use crate::text::{count, printable};

#[derive(Serialize)]
pub struct DevicesDocument {
    pub schema: &'static str,
    pub cpu: CpuDevice,
    pub adapters: Vec<AdapterDevice>,
}

#[derive(Serialize)]
pub struct CpuDevice {
    pub processor: String,
    pub threads: usize,
    pub levels: Vec<CpuLevel>,
}

#[derive(Serialize)]
pub struct CpuLevel {
    /// What `--backend` takes.
    pub name: &'static str,
    pub available: bool,
    /// Whether `cpu` means this one.
    pub default: bool,
    pub missing: Vec<&'static str>,
}

#[derive(Serialize)]
pub struct AdapterDevice {
    /// What `--backend` takes.
    pub backend: String,
    pub index: usize,
    pub name: String,
    pub api: &'static str,
    pub driver: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub software: bool,
    /// Whether `gpu` means this one.
    pub default: bool,
    pub limits: AdapterLimits,
    pub features: AdapterFeatures,
    /// What it lacks to run the kernels.
    pub missing: Vec<String>,
}

#[derive(Serialize)]
pub struct AdapterLimits {
    pub max_buffer_size: u64,
    pub max_storage_buffer_binding_size: u64,
    pub max_compute_workgroups_per_dimension: u32,
    pub max_compute_workgroup_storage_size: u32,
    pub max_compute_invocations_per_workgroup: u32,
    pub max_immediate_size: u32,
    pub subgroup_min_size: u32,
    pub subgroup_max_size: u32,
}

#[derive(Serialize)]
pub struct AdapterFeatures {
    /// Needed: the kernels take their parameters so.
    pub immediates: bool,
    pub subgroup: bool,
    pub shader_f16: bool,
    pub timestamp_query: bool,
}

/// For people: one block a device, the default ones marked.
pub fn render(document: &DevicesDocument) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{text}");
    };
    let cpu = &document.cpu;
    line(format!("cpu    {} · {}", printable(&cpu.processor), count(cpu.threads, "thread")));
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
        line(format!("{}  {}{software}{default}", a.backend, printable(&a.name)));
        line(format!("  driver      {} · {} · {}", printable(&a.driver), a.api, a.kind));
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
        line(format!("gpu    no adapter · {}", PACKAGES));
    }
    out
}
