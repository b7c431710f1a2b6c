//! Adapters: which there are, which one a name means, and what one lacks for us.
//!
//! Design:
//! - Adapters are listed in one stable order: by API, then real before software, then by name and bus. `gpu:N` is a place in it.
//! - `gpu` is the first real adapter that lacks nothing, else the first software one that lacks nothing.
//! - What is required is one table, [`missing`]; an adapter that lacks something is refused with the list of it.

use super::kernels::{KERNELS, Spec};
use crate::error::{Error, Result};

/// Which adapter to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdapterSelector {
    /// The best: a real GPU before a software adapter.
    Best,
    /// The place in the list that `devices` shows.
    Index(usize),
    /// Part of the name or the driver's name, in any case.
    Name(String),
}

impl AdapterSelector {
    /// What follows `gpu:` on the command line: a number, or part of a name.
    pub fn parse(text: &str) -> Self {
        match text.parse() {
            Ok(index) => Self::Index(index),
            Err(_) => Self::Name(text.to_string()),
        }
    }
}

impl std::fmt::Display for AdapterSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Best => write!(f, "gpu"),
            Self::Index(n) => write!(f, "gpu:{n}"),
            Self::Name(name) => write!(f, "gpu:{name}"),
        }
    }
}

/// How to make a software Vulkan adapter appear.
pub const PACKAGES: &str = "on Debian and Ubuntu, the packages mesa-vulkan-drivers and libvulkan1 bring a software adapter that works everywhere";

/// Every adapter, in the order of `gpu:N`.
pub fn adapters() -> Vec<wgpu::Adapter> {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // An indirect dispatch is never used; its validation would cost a dispatch of its own. No debug layers: wgpu validates.
    desc.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(desc);
    let mut all = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    all.sort_by_cached_key(|adapter| {
        let info = adapter.get_info();
        (info.backend as u8, is_software(&info), info.name, info.device_pci_bus_id)
    });
    all
}

/// Whether the adapter is a CPU in disguise.
pub fn is_software(info: &wgpu::AdapterInfo) -> bool {
    info.device_type == wgpu::DeviceType::Cpu
}

/// The features that every device is asked for.
pub const FEATURES: wgpu::Features = wgpu::Features::IMMEDIATES;

/// The features that a device is asked for where the adapter has them.
pub const OPTIONAL_FEATURES: wgpu::Features = wgpu::Features::SUBGROUP.union(super::timing::FEATURE);

/// What the kernels need of an adapter's limits: name, what the adapter has, what the kernel needs that needs most.
fn needed(limits: &wgpu::Limits) -> [(&'static str, u32, u32); 6] {
    /// A limit's name, what the adapter has, and what one kernel needs of it.
    type Row = (&'static str, u32, fn(&Spec) -> u32);
    let rows: [Row; 6] = [
        ("max_immediate_size", limits.max_immediate_size, |s| s.immediate_size),
        ("max_storage_buffers_per_shader_stage", limits.max_storage_buffers_per_shader_stage, |s| {
            s.bindings.len() as u32
        }),
        ("max_compute_workgroup_storage_size", limits.max_compute_workgroup_storage_size, |s| s.storage),
        ("max_compute_invocations_per_workgroup", limits.max_compute_invocations_per_workgroup, |s| {
            s.workgroup.iter().product()
        }),
        ("max_compute_workgroup_size_x", limits.max_compute_workgroup_size_x, |s| s.workgroup[0]),
        ("max_compute_workgroup_size_y", limits.max_compute_workgroup_size_y, |s| s.workgroup[1]),
    ];
    rows.map(|(name, has, of)| (name, has, KERNELS.iter().copied().flatten().map(of).max().unwrap_or(0)))
}

/// Every feature and limit that the adapter lacks, one line each. Empty: it can run everything.
pub fn missing(adapter: &wgpu::Adapter) -> Vec<String> {
    let mut lines: Vec<String> =
        (FEATURES - adapter.features()).iter_names().map(|(name, _)| format!("feature {name}")).collect();
    if !adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        lines.push("compute shaders".to_string());
    }
    for (name, has, needs) in needed(&adapter.limits()) {
        if has < needs {
            lines.push(format!("{name} is {has}, {needs} is needed"));
        }
    }
    lines
}

/// The place of the adapter that `gpu` means, of those that lack nothing: the first real one, else the first.
pub fn best(all: &[wgpu::Adapter]) -> Option<usize> {
    let able = |a: &wgpu::Adapter| missing(a).is_empty();
    let real = all.iter().position(|a| able(a) && !is_software(&a.get_info()));
    real.or_else(|| all.iter().position(able))
}

/// The adapter that `selector` means.
///
/// # Errors
/// `CannotRun` if there is none, or it lacks what the kernels need.
pub fn select(selector: &AdapterSelector) -> Result<wgpu::Adapter> {
    let mut all = adapters();
    if all.is_empty() {
        return Err(Error::cannot_run(format!("{selector}: no Vulkan, Metal or DX12 adapter was found; {PACKAGES}")));
    }
    let names = || {
        let list: Vec<String> = all.iter().enumerate().map(|(i, a)| format!("gpu:{i} {}", a.get_info().name)).collect();
        list.join(", ")
    };
    let place = match selector {
        AdapterSelector::Index(n) => (*n < all.len()).then_some(*n),
        AdapterSelector::Name(part) => {
            let part = part.to_lowercase();
            all.iter().position(|a| {
                let info = a.get_info();
                info.name.to_lowercase().contains(&part) || info.driver.to_lowercase().contains(&part)
            })
        }
        // Nothing able: take the first, whose list of what is missing then says why.
        AdapterSelector::Best => Some(best(&all).unwrap_or(0)),
    };
    let place =
        place.ok_or_else(|| Error::cannot_run(format!("{selector}: no such adapter; there are {}", names())))?;
    let adapter = all.swap_remove(place);
    let missing = missing(&adapter);
    if !missing.is_empty() {
        let name = adapter.get_info().name;
        return Err(Error::cannot_run(format!("{selector}: {name} cannot run the kernels: {}", missing.join("; "))));
    }
    Ok(adapter)
}
