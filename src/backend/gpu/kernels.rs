//! The kernels: one table, and the pipelines made from it.
//!
//! Design:
//! - A kernel is a file in `shaders/`; its name is the file's name and the pipeline's label. The table gives the parts that
//!   are put in front of the file, its bindings and the number of its parameters.
//! - Kernels that read quantized weights exist once for each type: the type's file from `shaders/quant/` is one of the parts.
//!   Nothing else varies, and no WGSL is made by printing strings.
//! - Parameters are immediates: every native API has them, and they need no buffer and no bind group.
//! - A pipeline is made on first use and kept.

use std::collections::HashMap;
use std::sync::Arc;

use super::layout::Layout;
use crate::op::GgmlType;

/// Changes a kernel's source before it is compiled: kernel name, source → source.
pub type Patch = Arc<dyn Fn(&str, String) -> String>;

/// Whether a kernel writes a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// A row of the kernel table.
#[derive(Debug)]
pub struct Spec {
    /// File name, pipeline label.
    pub name: &'static str,
    /// Whether it reads quantized weights, at binding 0.
    pub quantized: bool,
    /// What goes in front of its source, besides the quantization type.
    parts: &'static [&'static str],
    source: &'static str,
    /// Storage buffers, in order of binding.
    pub bindings: &'static [Access],
    /// 32-bit immediates.
    pub params: u32,
}

const NUMERIC: &str = include_str!("../../../shaders/lib/numeric.wgsl");
const HALF: &str = include_str!("../../../shaders/lib/half.wgsl");
const UNPACK: &str = include_str!("../../../shaders/lib/unpack.wgsl");
const WEIGHT: &str = include_str!("../../../shaders/lib/weight.wgsl");
const IQ4: &str = include_str!("../../../shaders/lib/iq4.wgsl");
const GEMV: &str = include_str!("../../../shaders/lib/gemv.wgsl");
const LANES: &str = include_str!("../../../shaders/lib/lanes.wgsl");
const TILE: &str = include_str!("../../../shaders/lib/tile.wgsl");
const ROW: &str = include_str!("../../../shaders/lib/row.wgsl");

macro_rules! kernels {
    ($($id:ident $name:literal $quantized:literal [$($part:ident),*] [$($access:ident),*] $params:literal;)*) => {
        /// A kernel of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kernel { $($id),* }

        /// The table, in the order of [`Kernel`].
        pub static KERNELS: &[Spec] = &[$(Spec {
            name: $name,
            quantized: $quantized,
            parts: &[$($part),*],
            source: include_str!(concat!("../../../shaders/", $name, ".wgsl")),
            bindings: &[$(Access::$access),*],
            params: $params,
        }),*];
    };
}

kernels! {
    Add               "add"                 false []               [Read, Read, Write]       1;
    AttnContext       "attn_context"        false []               [Read, Read, Write]       5;
    AttnProbs         "attn_probs"          false [NUMERIC, ROW]   [Read, Write]             2;
    AttnScores        "attn_scores"         false []               [Read, Read, Write]       6;
    Combine           "combine"             false []               [Read, Read, Write]       3;
    Copy              "copy"                false []               [Read, Write]             5;
    Embed             "embed"               true  []               [Read, Read, Write]       6;
    ExpertMatmul      "expert_matmul"       true  [NUMERIC, TILE]  [Read, Read, Read, Write] 9;
    ExpertMatmulLanes "expert_matmul_lanes" true  [NUMERIC, LANES] [Read, Read, Read, Write] 9;
    ExpertMatvec      "expert_matvec"       true  [NUMERIC, GEMV]  [Read, Read, Read, Write] 8;
    ExpertMatvecLanes "expert_matvec_lanes" true  [NUMERIC, LANES] [Read, Read, Read, Write] 8;
    ExpertPlan        "expert_plan"         false []               [Read, Write]             4;
    Matmul            "matmul"              true  [TILE]           [Read, Read, Write]       7;
    MatmulLanes       "matmul_lanes"        true  [LANES]          [Read, Read, Write]       7;
    Matvec            "matvec"              true  [GEMV]           [Read, Read, Write]       6;
    MatvecLanes       "matvec_lanes"        true  [LANES]          [Read, Read, Write]       6;
    RmsNorm           "rms_norm"            false [ROW]            [Read, Read, Write]       3;
    Rope              "rope"                false []               [Read, Read, Write]       4;
    RouterProbs       "router_probs"        false [NUMERIC, ROW]   [Read, Write]             1;
    RouterTopK        "router_topk"         false [NUMERIC]        [Read, Write]             2;
    RouterWeights     "router_weights"      false [NUMERIC]        [Read, Read, Write]       4;
    SwiGlu            "swiglu"              false [NUMERIC]        [Read, Read, Write]       1;
}

impl Kernel {
    pub fn spec(self) -> &'static Spec {
        &KERNELS[self as usize]
    }
}

impl Spec {
    /// The whole source, for one type of weights where it reads any.
    fn source(&self, layout: Option<&Layout>) -> String {
        let mut parts = Vec::new();
        if let Some(layout) = layout {
            parts.extend([WEIGHT, HALF, UNPACK]);
            if matches!(layout.ty(), GgmlType::IQ4_NL | GgmlType::IQ4_XS) {
                parts.push(IQ4);
            }
            parts.push(layout.shader());
        }
        parts.extend(self.parts);
        parts.push(self.source);
        parts.join("\n")
    }

    fn full_name(&self, layout: Option<&Layout>) -> String {
        match layout {
            Some(layout) => format!("{}/{}", self.name, layout.ty()),
            None => self.name.to_string(),
        }
    }
}

/// Every shader as the device gets it: each kernel, or each kernel for each type, named `kernel` or `kernel/TYPE`.
pub fn shader_sources() -> impl Iterator<Item = (String, String)> {
    KERNELS.iter().flat_map(|spec| {
        let layouts: Vec<Option<Layout>> = if spec.quantized { Layout::all().map(Some).collect() } else { vec![None] };
        layouts.into_iter().map(move |l| (spec.full_name(l.as_ref()), spec.source(l.as_ref())))
    })
}

/// A compiled kernel with the layout of its bindings.
pub struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    /// `kernel` or `kernel/TYPE`, its source as it was compiled, and what it does with each binding.
    pub name: String,
    pub source: Arc<str>,
    pub bindings: &'static [Access],
}

/// The pipelines of one device.
pub struct Pipelines {
    device: wgpu::Device,
    patch: Option<Patch>,
    checked: bool,
    made: HashMap<(Kernel, Option<GgmlType>), Arc<Pipeline>>,
}

impl Pipelines {
    /// `checked`: with the bounds and loop checks that wgpu adds for shaders it does not trust.
    pub fn new(device: &wgpu::Device, patch: Option<Patch>, checked: bool) -> Self {
        Self { device: device.clone(), patch, checked, made: HashMap::new() }
    }

    /// The pipeline of a kernel; `layout` is the weights' where it reads any.
    pub fn get(&mut self, kernel: Kernel, layout: Option<&Layout>) -> Arc<Pipeline> {
        let key = (kernel, layout.map(Layout::ty));
        if let Some(made) = self.made.get(&key) {
            return made.clone();
        }
        let made = Arc::new(self.make(kernel.spec(), layout));
        self.made.insert(key, made.clone());
        made
    }

    fn make(&self, spec: &Spec, weights: Option<&Layout>) -> Pipeline {
        let name = spec.full_name(weights);
        let mut source = spec.source(weights);
        if let Some(patch) = &self.patch {
            source = patch(&name, source);
        }
        let source: Arc<str> = source.into();
        let wgsl = wgpu::ShaderSource::Wgsl(source.to_string().into());
        let desc = wgpu::ShaderModuleDescriptor { label: Some(&name), source: wgsl };
        let module = if self.checked {
            self.device.create_shader_module(desc)
        } else {
            // SAFETY: the sources are this crate's own. Every index into a buffer is below a bound that the host derives
            // from that buffer's size (ids from a router are compared with the number of experts, tokens with the table's
            // rows), every loop counts up to a parameter, and divisors are parameters that the host checks are not 0. The
            // test suite runs the same kernels with the checks on.
            unsafe { self.device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let entries: Vec<_> = spec
            .bindings
            .iter()
            .enumerate()
            .map(|(i, access)| wgpu::BindGroupLayoutEntry {
                binding: i as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: *access == Access::Read },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&name), entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: spec.params * 4,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                // Kernels write workgroup memory before they read it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        Pipeline { pipeline, layout, name, source, bindings: spec.bindings }
    }
}
