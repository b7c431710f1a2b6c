//! The kernels: one table, and the pipelines made from it.
//!
//! Design:
//! - A kernel is a file in `shaders/`; its name is the file's name and the pipeline's label. The table gives the parts that
//!   are put in front of the file, its bindings, its parameters and its workgroup.
//! - Kernels that read quantized weights exist once for each type: the type's parts are put in front of them too. No WGSL is made
//!   by printing strings: sizes that the host needs to know are constants of `shaders/lib/sizes.wgsl`, which both sides read.
//! - Matrix products have a second file for subgroups of 8 lanes, with the same parameters and the same bindings, of which weights and
//!   activations are textures. A row of the table is both files, and so one kernel.
//! - Parameters are immediates: every native API has them, and they need no buffer and no bind group. A [`Kernel`] is typed by its
//!   struct of parameters, so a dispatch with another kernel's does not compile.
//! - A pipeline is made on first use and kept.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

use super::layout::WeightLayout;
use super::params::{self, Member, Params};
use super::{COLUMNS, GROUPS, KEPT, LANES, PITCH, SIDE, SUBGROUPS, THREADS, TILE, WIDTH, wgsl};
use crate::op::GgmlType;

/// Changes a kernel's source before it is compiled: kernel name, source → source.
pub type Patch = Arc<dyn Fn(&str, String) -> String>;

/// What a kernel does with a storage buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads weights, in the layout of their type: from a buffer, or from a texture where the kernels do that.
    Weights,
    /// Reads activations: from a buffer, or from a texture as with weights.
    Activations,
    /// Read only.
    Read,
    /// Written, and read where a kernel updates it.
    Write,
}

/// A file of the kernel table.
#[derive(Debug)]
pub struct Spec {
    /// File name, pipeline label.
    pub name: &'static str,
    /// What goes in front of its source, besides the sizes and the parts of a quantization type.
    parts: &'static [&'static str],
    source: &'static str,
    /// Storage buffers, in order of binding.
    pub bindings: &'static [Access],
    /// The members of its parameters, and the bytes that they take.
    pub params: &'static [Member],
    /// Bytes of its parameters.
    pub immediate_size: u32,
    /// Invocations of a workgroup, in x and y.
    pub workgroup: [u32; 2],
    /// Bytes of workgroup memory.
    pub storage: u32,
}

/// A kernel that takes parameters `P`: a row of the table.
pub struct Kernel<P> {
    /// The file, and where there is a second one, that for subgroups of 8 lanes.
    files: &'static [Spec],
    params: PhantomData<P>,
}

// Derived, these would ask as much of the parameters.
impl<P> Clone for Kernel<P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P> Copy for Kernel<P> {}

const SIZES: &str = wgsl!("lib/sizes");
const WEIGHT: &str = wgsl!("lib/weight");
const WEIGHT_BUFFER: &str = wgsl!("lib/weight_buffer");
const WEIGHT_TEXTURE: &str = wgsl!("lib/weight_texture");
const HALF: &str = wgsl!("lib/half");
const UNPACK: &str = wgsl!("lib/unpack");

const COMBINED: &str = wgsl!("lib/combine");
const DOT: &str = wgsl!("lib/dot");
const EXPERT: &str = wgsl!("lib/expert");
const GEMV: &str = wgsl!("lib/gemv");
const NUMERIC: &str = wgsl!("lib/numeric");
const READS: &str = wgsl!("lib/reads");
const RMS: &str = wgsl!("lib/rms");
const ROW: &str = wgsl!("lib/row");
const SOFTMAX: &str = wgsl!("lib/softmax");
const STACK: &str = wgsl!("lib/stack");
const SUBGROUP: &str = wgsl!("lib/lanes");
const TILES: &str = wgsl!("lib/tile");
const TOP_K: &str = wgsl!("lib/top_k");
const WEIGH: &str = wgsl!("lib/router_weights");

use Access::{Activations, Read, Weights, Write};

macro_rules! kernels {
    ($($id:ident: $params:ident $bindings:tt
       $($name:literal [$($part:ident),*] $workgroup:expr, $storage:expr);+;)*) => {
        $(pub const $id: Kernel<params::$params> = Kernel {
            files: &[$(Spec {
                name: $name,
                parts: &[$($part),*],
                source: wgsl!($name),
                bindings: &$bindings,
                params: params::$params::MEMBERS,
                immediate_size: size_of::<params::$params>() as u32,
                workgroup: $workgroup,
                storage: $storage,
            }),+],
            params: PhantomData,
        };)*

        /// The files of every kernel.
        pub static KERNELS: &[&[Spec]] = &[$($id.files),*];
    };
}

// Name: parameters, bindings; then for each file its parts, its workgroup and its workgroup memory.
kernels! {
    ADD: Elementwise [Read, Read, Write]
        "add" [] [THREADS, 1], 0;
    ADD_NORM: AddNorm [Read, Read, Read, Write, Write]
        "add_norm" [ROW, RMS] [THREADS, 1], 4 * THREADS;
    ATTENTION: AttnScores [Read, Read, Read, Write]
        "attention" [NUMERIC, ROW] [THREADS, 1], 4 * KEPT + 16 * THREADS + 4 * THREADS;
    ATTN_CONTEXT: AttnContext [Read, Read, Write]
        "attn_context" [] [COLUMNS, LANES], 16 * COLUMNS * LANES;
    ATTN_PROBS: AttnProbs [Read, Write]
        "attn_probs" [NUMERIC, ROW, SOFTMAX] [THREADS, 1], 4 * THREADS;
    ATTN_PROBS_SINKS: AttnProbs [Read, Read, Write]
        "attn_probs_sinks" [NUMERIC, ROW] [THREADS, 1], 4 * THREADS;
    ATTN_SCORES: AttnScores [Read, Read, Write]
        "attn_scores" [] [THREADS, 1], 0;
    BIAS: Bias [Read, Read, Write]
        "bias" [] [THREADS, 1], 0;
    CLAMPED_SWISH: Elementwise [Read, Read, Write]
        "clamped_swish" [NUMERIC] [THREADS, 1], 0;
    COMBINE: Combine [Read, Read, Write]
        "combine" [COMBINED] [THREADS, 1], 0;
    COMBINE_ADD: Combine [Read, Read, Read, Write]
        "combine_add" [COMBINED] [THREADS, 1], 0;
    COMBINE_ADD_NORM: CombineAddNorm [Read, Read, Read, Read, Write, Write]
        "combine_add_norm" [COMBINED, ROW, RMS] [THREADS, 1], 4 * THREADS;
    CONV: Conv [Read, Read, Read, Write]
        "conv" [NUMERIC] [THREADS, 1], 0;
    COPY: Copy [Read, Write]
        "copy" [] [THREADS, 1], 0;
    DECAY: Decay [Read, Read, Write]
        "decay" [NUMERIC] [THREADS, 1], 0;
    DELTA_RULE: DeltaRule [Read, Read, Read, Read, Read, Read, Write, Write]
        "delta_rule" [NUMERIC] [COLUMNS, LANES], 2 * 4 * LANES * COLUMNS;
    EMBED: Embed [Weights, Read, Write]
        "embed" [] [THREADS, 1], 0;
    EXPERT_BIAS: ExpertBias [Read, Read, Read, Write]
        "expert_bias" [NUMERIC] [THREADS, 1], 0;
    EXPERT_MATMUL: ExpertMatmul [Weights, Activations, Read, Write]
        "expert_matmul" [NUMERIC, STACK, EXPERT, DOT, TILES] [SIDE, SIDE], 2 * 16 * TILE * PITCH;
        "expert_matmul_lanes" [NUMERIC, STACK, EXPERT, DOT, SUBGROUP] [WIDTH * TILE / 4, 1], 0;
    EXPERT_MATVEC: ExpertMatvec [Weights, Activations, Read, Write]
        "expert_matvec" [NUMERIC, STACK, EXPERT, DOT, GEMV] [LANES, GROUPS], 16 * LANES * GROUPS;
        "expert_matvec_lanes" [NUMERIC, STACK, EXPERT, DOT, SUBGROUP] [WIDTH * SUBGROUPS, 1], 0;
    EXPERT_PLAN: ExpertPlan [Read, Write]
        "expert_plan" [] [THREADS, 1], 0;
    GEGLU: Elementwise [Read, Read, Write]
        "geglu" [NUMERIC] [THREADS, 1], 0;
    HEAD_MATMUL: HeadMatmul [Weights, Activations, Write]
        "head_matmul" [STACK, DOT, TILES] [SIDE, SIDE], 2 * 16 * TILE * PITCH;
        "head_matmul_lanes" [STACK, DOT, SUBGROUP] [WIDTH * TILE / 4, 1], 0;
    HEAD_MATVEC: HeadMatmul [Weights, Activations, Write]
        "head_matvec" [STACK, DOT, GEMV] [LANES, GROUPS], 16 * LANES * GROUPS;
        "head_matvec_lanes" [STACK, DOT, SUBGROUP] [WIDTH * SUBGROUPS, 1], 0;
    L2_NORM: L2Norm [Read, Write]
        "l2_norm" [ROW] [THREADS, 1], 4 * THREADS;
    MATMUL: Matmul [Weights, Activations, Write]
        "matmul" [DOT, TILES] [SIDE, SIDE], 2 * 16 * TILE * PITCH;
        "matmul_lanes" [DOT, SUBGROUP] [WIDTH * TILE / 4, 1], 0;
    MATVEC: Matvec [Weights, Activations, Write]
        "matvec" [DOT, GEMV] [LANES, GROUPS], 16 * LANES * GROUPS;
        "matvec_lanes" [DOT, SUBGROUP] [WIDTH * SUBGROUPS, 1], 0;
    NORM_ROPE: NormRope [Read, Read, Read, Write]
        "norm_rope" [ROW, RMS] [THREADS, 1], 4 * THREADS;
    NORM_ROPES: NormRopes [Read, Read, Read, Read, Read, Write, Write]
        "norm_ropes" [ROW, RMS] [THREADS, 1], 4 * THREADS;
    PROBE_FMA: ProbeFma [Write]
        "probe_fma" [] [THREADS, 1], 0;
    PROBE_READ: ProbeRead [Activations, Write]
        "probe_read" [READS] [THREADS, 1], 0;
        "probe_read_lanes" [READS] [THREADS, 1], 0;
    RMS_NORM: RmsNorm [Read, Read, Write]
        "rms_norm" [ROW, RMS] [THREADS, 1], 4 * THREADS;
    ROPE: Rope [Read, Read, Write]
        "rope" [] [THREADS, 1], 0;
    ROUTER: Router [Read, Write, Write, Write]
        "router" [NUMERIC, ROW, SOFTMAX, TOP_K, WEIGH] [THREADS, 1], 3 * 4 * THREADS;
    ROUTER_PROBS: RouterProbs [Read, Write]
        "router_probs" [NUMERIC, ROW, SOFTMAX] [THREADS, 1], 4 * THREADS;
    ROUTER_SIGMOIDS: RouterSigmoids [Read, Write]
        "router_sigmoids" [NUMERIC] [THREADS, 1], 0;
    ROUTER_SOFTMAX: RouterSoftmax [Read, Read, Write]
        "router_softmax" [NUMERIC] [THREADS, 1], 0;
    ROUTER_TOPK: RouterTopK [Read, Write]
        "router_topk" [NUMERIC, TOP_K] [THREADS, 1], 2 * 4 * THREADS;
    ROUTER_TOPK_GROUPS: RouterTopKGroups [Read, Write]
        "router_topk_groups" [NUMERIC, TOP_K] [THREADS, 1], 2 * 4 * THREADS;
    ROUTER_WEIGHTS: RouterWeights [Read, Read, Write]
        "router_weights" [NUMERIC, WEIGH] [THREADS, 1], 0;
    SIGMOID_GATE: SigmoidGate [Read, Read, Write]
        "sigmoid_gate" [NUMERIC] [THREADS, 1], 0;
    SIGMOID_GLU: Elementwise [Read, Read, Write]
        "sigmoid_glu" [NUMERIC] [THREADS, 1], 0;
    SWIGLU: Elementwise [Read, Read, Write]
        "swiglu" [NUMERIC] [THREADS, 1], 0;
}

impl<P> Kernel<P> {
    /// The file that is run; `lanes`: on an adapter whose subgroups have 8 lanes.
    pub fn spec(&self, lanes: bool) -> &'static Spec {
        if lanes { self.files.last() } else { self.files.first() }.expect("a kernel has a file")
    }
}

/// Whether a file of this name is the one of its kernel for subgroups of 8 lanes; `None` if its kernel has one file only.
pub fn for_lanes(name: &str) -> Option<bool> {
    KERNELS.iter().filter(|files| files.len() == 2).find_map(|files| {
        let lanes = files.iter().position(|file| file.name == name)?;
        Some(lanes == 1)
    })
}

/// The 32-bit words of parameters that the kernel in the file of this name takes; `None` if there is no such file.
pub fn parameter_words(name: &str) -> Option<usize> {
    let file = KERNELS.iter().flat_map(|files| files.iter()).find(|file| file.name == name)?;
    Some(file.immediate_size as usize / 4)
}

impl Spec {
    /// Whether it reads quantized weights, and so exists for each of their types.
    pub fn quantized(&self) -> bool {
        self.bindings[0] == Access::Weights
    }

    /// The whole source, for one type of weights where it reads any, in textures or in buffers.
    fn source(&self, layout: Option<&WeightLayout>, textures: bool) -> String {
        let mut parts = vec![SIZES];
        if let Some(layout) = layout {
            parts.extend([WEIGHT, if textures { WEIGHT_TEXTURE } else { WEIGHT_BUFFER }, HALF, UNPACK]);
            parts.extend(layout.parts());
        }
        parts.extend(self.parts);
        parts.push(self.source);
        parts.join("\n")
    }

    fn full_name(&self, layout: Option<&WeightLayout>) -> String {
        match layout {
            Some(layout) => format!("{}/{}", self.name, layout.ty()),
            None => self.name.to_string(),
        }
    }
}

/// Every shader as the device gets it, with its file in the table, its name (`kernel`, or `kernel/TYPE` for each type of weights)
/// and its source.
pub fn shader_sources() -> impl Iterator<Item = (&'static Spec, String, String)> {
    KERNELS.iter().copied().flatten().flat_map(|spec| {
        let layouts: Vec<_> = if spec.quantized() { WeightLayout::all().map(Some).collect() } else { vec![None] };
        let textures = for_lanes(spec.name) == Some(true);
        layouts.into_iter().map(move |l| (spec, spec.full_name(l.as_ref()), spec.source(l.as_ref(), textures)))
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
    /// With the bounds and loop checks that wgpu adds to shaders that it does not trust.
    pub checked: bool,
    /// Whether weights, and the activations of matrix products, are in textures.
    textures: bool,
    made: HashMap<(&'static str, Option<GgmlType>), Arc<Pipeline>>,
    /// The first patched kernel that the device made no pipeline of, and what it said.
    pub refused: Option<(String, String)>,
}

impl Pipelines {
    /// `checks`: see [`super::GpuOptions`]. What a patch makes of the sources is never trusted.
    pub fn new(device: &wgpu::Device, patch: Option<Patch>, checks: Option<bool>, textures: bool) -> Self {
        let checked = patch.is_some() || checks.unwrap_or(cfg!(debug_assertions));
        Self { device: device.clone(), patch, checked, textures, made: HashMap::new(), refused: None }
    }

    /// The pipeline of a kernel's file; `layout` is the weights' where it reads any.
    pub fn get(&mut self, spec: &'static Spec, layout: Option<&WeightLayout>) -> Arc<Pipeline> {
        let key = (spec.name, layout.map(WeightLayout::ty));
        if let Some(made) = self.made.get(&key) {
            return made.clone();
        }
        // What is patched may be anything: which source the device refuses is for the one to know who wrote it.
        let scope = self.patch.as_ref().map(|_| self.device.push_error_scope(wgpu::ErrorFilter::Validation));
        let made = Arc::new(self.make(spec, layout));
        if let Some(error) = scope.and_then(|scope| pollster::block_on(scope.pop())) {
            self.refused.get_or_insert_with(|| (made.name.clone(), error.to_string()));
        }
        self.made.insert(key, made.clone());
        made
    }

    /// Whether a kernel's file has been run on weights of this type.
    pub fn has(&self, spec: &Spec, ty: GgmlType) -> bool {
        self.made.contains_key(&(spec.name, Some(ty)))
    }

    fn make(&self, spec: &Spec, weights: Option<&WeightLayout>) -> Pipeline {
        let name = spec.full_name(weights);
        let mut source = spec.source(weights, self.textures);
        if let Some(patch) = &self.patch {
            source = patch(&name, source);
        }
        let source: Arc<str> = source.into();
        let wgsl = wgpu::ShaderSource::Wgsl(source.to_string().into());
        let desc = wgpu::ShaderModuleDescriptor { label: Some(&name), source: wgsl };
        let module = if self.checked {
            self.device.create_shader_module(desc)
        } else {
            // SAFETY: the sources are this crate's own, since a patch implies the checks. Every index into a buffer is below a bound that the host derives
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
                ty: match access {
                    Access::Weights | Access::Activations if self.textures => wgpu::BindingType::Texture {
                        sample_type: wgpu::TextureSampleType::Uint,
                        view_dimension: wgpu::TextureViewDimension::D2,
                        multisampled: false,
                    },
                    _ => wgpu::BindingType::Buffer {
                        ty: wgpu::BufferBindingType::Storage { read_only: *access != Access::Write },
                        has_dynamic_offset: false,
                        min_binding_size: None,
                    },
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
            immediate_size: spec.immediate_size,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[], // sizes are in the source: see lib/sizes.wgsl
                // Kernels write workgroup memory before they read it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        Pipeline { pipeline, layout, name, source, bindings: spec.bindings }
    }
}
