//! The GPU backend: wgpu and WGSL.
//!
//! Design:
//! - `adapter` chooses, `device` records and submits, `kernels` is the table of kernels, `layout` and `weights` put quantized
//!   weights into GPU memory, `residents` says which are there, `ops` turns operations into dispatches, `tensor` pools activations,
//!   `readback` brings them home.
//! - A forward pass is recorded and submitted a few dozen dispatches at a time; the host never waits for the GPU and touches
//!   no activation. Only a readback waits.
//! - Arithmetic is f32 throughout, with sums whose order each .wgsl file states and which depends neither on timing nor on the
//!   subgroup size: two runs agree bitwise. Weights are dequantized to the same values as on the CPU before they are
//!   multiplied (see `tests/gpu/dequant.rs`).
//! - What depends on sin and cos is a table made on the host in f64: WGSL's own are only good to 2⁻¹¹. exp is written out in
//!   `shaders/lib/numeric.wgsl`, because the built-in may do anything with NaN.
//! - No error of the device panics: the next call returns it.

mod adapter;
mod attention;
mod copies;
mod coverage;
mod device;
mod experts;
mod fuse;
mod heads;
mod kernels;
mod layout;
mod linear_attention;
mod ops;
mod params;
mod poison;
mod probe;
mod readback;
mod record;
mod residents;
mod tensor;
mod texture;
mod timing;
pub mod tuning;
mod weights;

/// The WGSL of a file in `shaders/`.
macro_rules! wgsl {
    ($name:expr) => {
        include_str!(concat!("../../../shaders/", $name, ".wgsl"))
    };
}
use wgsl;

// The sizes that shaders and host share: Rust too.
include!("../../../shaders/lib/sizes.wgsl");

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

pub use adapter::{AdapterSelector, PACKAGES, adapters, best, is_software, missing};
pub use kernels::{Access, Patch, Spec, for_lanes, parameter_words, shader_sources};
pub use layout::WeightLayout;
pub use ops::contract;
pub use params::Member;
pub use probe::LaunchCosts;
pub use record::{Binding, Dispatch};
pub use residents::{LEAST_WEIGHT_MEMORY, WeightMemory};
pub use tensor::GpuTensor;
pub use timing::{KernelTime, KernelTimer};

use self::device::Device;
use self::fuse::Waiting;
use self::kernels::Pipelines;
use self::linear_attention::DeltaStates;
use self::poison::Poison;
use self::readback::Readback;
use self::residents::Residents;
use self::tensor::{Pool, Pooled};
use self::texture::TexturePool;
use self::tuning::file::TunedAdapter;
use self::tuning::{Tuning, TuningSource};
use self::weights::{GpuWeight, Piece};
use super::{Backend, BackendInfo, Contract, FusedKernel, KernelUse, Need, Ticket, TuningUsed};
use crate::error::{Error, Result};
use crate::op::{AngleKey, At, Data, GgmlType, HostTensor, Op, OpKind, Operation, Rotation, Site, Weight};

/// Bytes of a streamed piece from which on what is recorded before it is submitted first: repacking them takes longer than a submission.
const BYTES_TO_RUN_BESIDE: u64 = 256 << 10;

/// How a [`GpuBackend`] is built.
#[derive(Clone, Default)]
pub struct GpuOptions {
    /// Bytes of a weight that one binding may hold, below what the adapter allows. Tests use it to cut small weights.
    pub weight_binding: Option<u64>,
    /// Bytes of GPU memory that weights may take, at least [`LEAST_WEIGHT_MEMORY`]; those that do not fit are streamed through it.
    /// Unless said, all stay.
    pub weight_memory: Option<u64>,
    /// Bytes of mappable memory for copies to the host.
    pub staging_bytes: Option<u64>,
    /// Changes kernels' sources before they are compiled.
    pub patch: Option<Patch>,
    /// Whether kernels run with the bounds and loop checks that wgpu adds to shaders it does not trust. Unless said, they do in
    /// builds with debug assertions, which are those that tests run. Patched kernels always do.
    pub checks: Option<bool>,
    /// Whether matrix products use the kernels that share activations by subgroup broadcast. Unless said, they do on software
    /// adapters whose subgroups are 8 wide.
    pub lanes: Option<bool>,
    /// Whether memory is poisoned before a kernel writes it, and every kernel held to what it was to write: one that leaves an element
    /// out, or writes to the 8 KiB behind its output, is an [`Error::Fault`] that names it. Beyond an activation whoever reads finds NaN;
    /// behind weights and tables nothing is put. Values are the same; it waits for every kernel.
    pub poison: bool,
    /// Where the table is from that says which kernels products run. Unless said, it is the built-in one.
    pub tuning: TuningSource,
}

/// A GPU, or a CPU that pretends to be one.
pub struct GpuBackend {
    device: Device,
    pipelines: Pipelines,
    pool: Rc<Pool>,
    textures: Rc<TexturePool>,
    /// Operations that have not been recorded yet; see [`fuse`].
    waiting: Vec<Waiting>,
    /// Copies to the host of results of operations that wait: they are made when the operations have run.
    asked: Vec<(Ticket, GpuTensor)>,
    readback: Readback,
    /// How weights are cut, by id.
    weights: HashMap<usize, Rc<GpuWeight>>,
    /// Their pieces.
    residents: Residents,
    /// cos and sin by (bits of the base, head_dim), with the number of positions.
    angles: HashMap<AngleKey, (wgpu::Buffer, usize)>,
    /// What delta rules ended with.
    states: DeltaStates,
    weight_binding: u64,
    tuning: Tuning,
    tuning_used: TuningUsed,
    /// Whether matrix products run the files for subgroups of 8 lanes, and find weights and activations in textures.
    lanes: bool,
    name: String,
}

/// A driver and its version, as one text.
fn driver(info: &wgpu::AdapterInfo) -> String {
    format!("{} {}", info.driver, info.driver_info).trim().to_string()
}

fn tuned_adapter(info: &wgpu::AdapterInfo, lanes: bool) -> TunedAdapter {
    let subgroup_sizes = [info.subgroup_min_size, info.subgroup_max_size];
    TunedAdapter { name: info.name.clone(), driver: driver(info), subgroup_sizes, lanes }
}

impl GpuBackend {
    /// The patched kernel that the device made no pipeline of, if there is such a one, and what it said.
    pub(crate) fn refused_kernel(&self) -> Option<&(String, String)> {
        self.pipelines.refused.as_ref()
    }

    /// # Errors
    /// `Usage` for a budget of weights that is too small, `CannotRun` if there is no such adapter, it lacks a feature or a limit, or
    /// it gives no device.
    pub fn new(selector: &AdapterSelector, options: GpuOptions) -> Result<Self> {
        if let Some(budget) = options.weight_memory.filter(|&budget| budget < LEAST_WEIGHT_MEMORY) {
            return Err(Error::usage(format!(
                "{selector}: weights take at least {LEAST_WEIGHT_MEMORY} bytes of GPU memory, {budget} are given"
            )));
        }
        let adapter = adapter::select(selector)?;
        let mut device = Device::new(&adapter)?;
        if options.poison {
            device.poison = Some(Poison::new(&device.device, &device.queue));
        }
        let limit = device.limits.max_storage_buffer_binding_size;
        // A kernel that broadcasts within 8 lanes needs subgroups of exactly 8, which only the adapter can promise.
        let eight = device.device.features().contains(wgpu::Features::SUBGROUP)
            && (device.info.subgroup_min_size, device.info.subgroup_max_size) == (8, 8);
        let lanes = options.lanes.unwrap_or(eight && is_software(&device.info));
        if lanes && !eight {
            return Err(Error::cannot_run(format!("{selector}: {} has no subgroups of 8 lanes", device.info.name)));
        }
        let (tuning, tuning_used) = tuning::of_source(options.tuning, &tuned_adapter(&device.info, lanes))?;
        let limit = if lanes { limit.min(texture::most_bytes(&device.limits)) } else { limit };
        Ok(Self {
            pipelines: Pipelines::new(&device.device, options.patch, options.checks, lanes),
            pool: Rc::default(),
            textures: Rc::default(),
            waiting: Vec::new(),
            asked: Vec::new(),
            readback: Readback::new(options.staging_bytes.unwrap_or(readback::STAGING_BYTES)),
            weights: HashMap::new(),
            residents: Residents::new(options.weight_memory),
            angles: HashMap::new(),
            states: DeltaStates::default(),
            tuning,
            tuning_used,
            weight_binding: options.weight_binding.unwrap_or(limit).min(limit),
            lanes,
            name: selector.to_string(),
            device,
        })
    }

    /// What a tuning table of this adapter is of.
    pub fn tuned_adapter(&self) -> TunedAdapter {
        tuned_adapter(&self.device.info, self.lanes)
    }

    /// Chooses kernels by another table from now on.
    ///
    /// # Errors
    /// Those of the operations before it.
    pub fn set_tuning(&mut self, tuning: Tuning) -> Result<()> {
        self.run_waiting()?;
        (self.tuning, self.tuning_used) = (tuning, TuningUsed::given());
        Ok(())
    }

    /// Bytes of a weight that one binding may hold here.
    pub fn weight_binding(&self) -> u64 {
        self.weight_binding
    }

    /// The adapter, and the limits that its device has.
    pub fn adapter(&self) -> (&wgpu::AdapterInfo, &wgpu::Limits) {
        (&self.device.info, &self.device.limits)
    }

    /// Keeps every dispatch from now on, with its source, parameters and the contents of its bindings.
    ///
    /// # Errors
    /// Those of the operations before it.
    pub fn record(&mut self) -> Result<()> {
        self.run_waiting()?;
        self.device.record();
        Ok(())
    }

    /// The dispatches since [`Self::record`], in order; recording ends.
    ///
    /// # Errors
    /// If the device is lost or a buffer cannot be read.
    pub fn recorded(&mut self) -> Result<Vec<Dispatch>> {
        self.run_waiting()?;
        self.device.recorded()
    }

    /// How many dispatches have been recorded in all.
    pub fn dispatches(&self) -> u64 {
        self.device.timing.timer().counts()[0]
    }

    /// The handle that switches the timing of single dispatches; [`Backend::sync`] brings their times to it.
    pub fn kernel_timer(&self) -> KernelTimer {
        self.device.timing.timer().clone()
    }

    /// Gives back the GPU memory of a weight; a later operation uploads it again.
    pub fn forget(&mut self, weight: &Weight) {
        self.residents.forget(weight.id);
        self.weights.remove(&weight.id);
    }

    /// Why a need cannot be met, if it cannot.
    fn refusal(&self, need: &Need) -> Option<String> {
        let &Need { op, ty, cols, ref name, .. } = need;
        match op {
            OpKind::AttnScores | OpKind::AttnContext => (!cols.is_multiple_of(attention::QUAD)).then(|| {
                format!(
                    "{name}: the GPU has attention with a head_dim that is a multiple of {}, not {cols}",
                    attention::QUAD
                )
            }),
            OpKind::DeltaRule => linear_attention::refusal(name, cols),
            OpKind::Rope => None, // its factors become part of a table on the host
            OpKind::RmsNorm if ty != GgmlType::F32 => {
                Some(format!("tensor {name}: the GPU has norms with F32 weights, not {ty}"))
            }
            _ => GpuWeight::layout(name, ty, cols, self.weight_binding).err(),
        }
    }

    /// What weights take of GPU memory, and have taken.
    pub fn weight_memory(&self) -> WeightMemory {
        self.residents.memory()
    }

    /// How a weight lies in GPU memory, and the pieces that it is cut into.
    fn weight(&mut self, weight: &Weight) -> Result<Rc<GpuWeight>> {
        if let Some(planned) = self.weights.get(&weight.id) {
            return Ok(planned.clone());
        }
        let limit = self.residents.most_a_piece(self.weight_binding);
        let planned = Rc::new(GpuWeight::plan(weight, limit, self.residents.streams())?);
        self.weights.insert(weight.id, planned.clone());
        Ok(planned)
    }

    /// A piece of a weight in GPU memory, uploaded now if it was not there; in a texture, or in a buffer as norms read it.
    fn piece(&mut self, weight: &Arc<Weight>, number: usize, texture: bool, stays: bool) -> Result<Rc<Piece>> {
        let key = (weight.id, texture, number);
        if let Some(ready) = self.residents.get(key, &self.device) {
            return Ok(ready);
        }
        let planned = self.weight(weight)?;
        let piece = &planned.pieces[number];
        let bytes = planned.bytes(piece, texture);
        // What is recorded runs while the host repacks this.
        if self.residents.streams() && bytes >= BYTES_TO_RUN_BESIDE {
            self.device.submit();
        }
        self.residents.make_room(&mut self.device, bytes)?;
        let ready = Rc::new(Piece::upload(&mut self.device, weight, &planned, number, texture)?);
        self.residents.put(key, &ready, bytes, stays, &self.device);
        Ok(ready)
    }

    /// A weight of one row in a buffer, as norms read it: one piece.
    fn norm_weight(&mut self, weight: &Arc<Weight>) -> Result<Rc<Piece>> {
        self.piece(weight, 0, false, !self.residents.streams())
    }

    /// Uploads what an operation will read, so that a failure is said before it waits; weights that are streamed come later.
    fn upload_weight(&mut self, weight: &Arc<Weight>, texture: bool) -> Result<()> {
        let pieces = self.weight(weight)?.pieces.len();
        if !self.residents.streams() {
            for number in 0..pieces {
                self.piece(weight, number, texture, true)?;
            }
        }
        Ok(())
    }

    /// A tensor whose values are yet to be written.
    fn tensor(&mut self, what: impl std::fmt::Display, shape: &[usize], ids: bool) -> Result<GpuTensor> {
        Ok(GpuTensor::new(shape, ids, Some(self.tensor_memory(what, shape)?), false))
    }

    /// Gives a tensor that a kernel is about to write its memory.
    fn make(&mut self, what: impl std::fmt::Display, tensor: &GpuTensor) -> Result<()> {
        if tensor.0.memory.get().is_none() {
            let _ = tensor.0.memory.set(self.tensor_memory(what, tensor.shape())?); // it was empty
        }
        Ok(())
    }

    fn tensor_memory(&mut self, what: impl std::fmt::Display, shape: &[usize]) -> Result<Pooled> {
        self.memory(what, shape.iter().product::<usize>() as u64)
    }

    /// cos and sin, times YaRN's magnitude, of the angles of positions 0 to `positions` at least, for the pairs that turn: [positions, pairs, 2]. Computed in f64 and
    /// rounded, because WGSL's own functions are only good to 2⁻¹¹; grown by doubling.
    fn angles(
        &mut self,
        site: Site,
        head_dim: usize,
        rotation: &Rotation<&Arc<Weight>>,
        positions: usize,
    ) -> Result<wgpu::Buffer> {
        let key = rotation.angle_key(head_dim);
        if let Some((buffer, have)) = self.angles.get(&key)
            && *have >= positions
        {
            return Ok(buffer.clone());
        }
        let positions = positions.next_power_of_two().max(256);
        let turned = rotation.turned(head_dim);
        let half = turned / 2;
        let bytes = (positions * half * 8) as u64;
        if bytes > self.device.limits.max_storage_buffer_binding_size {
            return Err(Error::cannot_run(format!(
                "{site}: a table of {positions} positions takes {bytes} bytes, over the adapter's binding limit"
            )));
        }
        let mut frequency = rotation.scales(head_dim); // [D/2]
        let power = |i: usize| rotation.base.powf(-2.0 * i as f64 / turned as f64);
        frequency.iter_mut().enumerate().for_each(|(i, f)| *f *= power(i));
        if let Some(factors) = rotation.factors {
            frequency.iter_mut().zip(factors.f32s()).for_each(|(f, factor)| *f /= f64::from(factor));
        }
        let magnitude = rotation.magnitude();
        let mut table = Vec::with_capacity(positions * half * 2);
        for position in 0..positions {
            for f in &frequency {
                let (sin, cos) = (position as f64 * f).sin_cos();
                table.extend([cos, sin].map(|x| (x * magnitude) as f32));
            }
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = self.device.create_buffer("rope angles", bytes, usage)?;
        self.device.write(&buffer, 0, bytemuck::cast_slice(&table));
        self.angles.insert(key, (buffer.clone(), positions));
        Ok(buffer)
    }
}

impl Backend for GpuBackend {
    type Tensor = GpuTensor;

    fn info(&self) -> BackendInfo {
        let info = &self.device.info;
        BackendInfo {
            backend: self.name.clone(),
            adapter: info.name.clone(),
            driver: driver(info),
            software: is_software(info),
            contract: "f32 activations, f32 sums in WGSL arithmetic, matrices in blocks of 32".to_string(),
            tuning: Some(self.tuning_used.clone()),
        }
    }

    fn contract(&self, op: OpKind) -> Contract {
        ops::contract(op)
    }

    fn unsupported(&self, needs: &[Need]) -> Vec<String> {
        needs.iter().filter_map(|need| self.refusal(need)).collect()
    }

    fn fused(&self) -> &'static [FusedKernel] {
        fuse::FUSED
    }

    fn kernels(&self, needs: &[Need]) -> Vec<KernelUse> {
        self.kernel_uses(needs)
    }

    fn covering(&self, experts: Option<[usize; 2]>) -> usize {
        coverage::positions(experts)
    }

    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        // Weights of one row are those of norms, and experts' biases and the weights of convolutions are read as these are.
        let lanes = self.lanes;
        let plain = |name: &str| name.ends_with(".bias") || name.ends_with("conv1d.weight");
        let texture = |w: &Weight| lanes && w.rows * w.experts > 1 && !plain(&w.name);
        let mut bytes = 0;
        for weight in weights {
            let planned = GpuWeight::plan(weight, self.weight_binding, false)?;
            bytes += planned.pieces.iter().map(|piece| planned.bytes(piece, texture(weight))).sum::<u64>();
        }
        self.residents.expect(bytes);
        let mut order = Vec::from_iter(weights);
        if self.residents.streams() {
            order.sort_by_key(|weight| weight.experts > 1); // stable
        }
        let mut done = 0;
        for weight in order {
            let planned = self.weight(weight)?;
            for (number, piece) in planned.pieces.iter().enumerate() {
                if self.residents.may_stay(planned.bytes(piece, texture(weight))) {
                    self.piece(weight, number, texture(weight), true)?;
                }
                done += u64::from(piece.count) * weight.row_bytes() as u64;
                progress(done);
            }
        }
        Ok(())
    }

    fn alloc(&mut self, shape: &[usize]) -> Result<GpuTensor> {
        self.device.check()?;
        let limit = self.device.limits.max_storage_buffer_binding_size;
        let bytes = |axes: &[usize]| axes.iter().fold(4u64, |bytes, n| bytes.saturating_mul(*n as u64));
        // Of a cache no smaller calls make less.
        if let [rows, row @ ..] = shape
            && bytes(shape) > limit
        {
            let (row, fit) = (bytes(row), limit.checked_div(bytes(row)).unwrap_or(0));
            return Err(Error::cannot_run(format!(
                "a cache of {rows} positions of {row} bytes is over the adapter's max_storage_buffer_binding_size of {limit}, which holds {fit} \
                 of them"
            )));
        }
        self.states.tidy(); // a new sequence begins
        let memory = self.tensor_memory("a cache", shape)?;
        // What nobody has stored is nobody's to read.
        match self.device.poison {
            Some(_) => self.device.unstore(&memory.buffer, shape.iter().product::<usize>() as u64),
            None => self.device.encoder().clear_buffer(&memory.buffer, 0, None),
        }
        Ok(GpuTensor::new(shape, false, Some(memory), true))
    }

    fn upload(&mut self, values: &HostTensor) -> Result<GpuTensor> {
        self.device.check()?;
        let ids = matches!(values.data, Data::U32(_));
        let tensor = self.tensor("an uploaded tensor", &values.shape, ids)?;
        let rounded;
        let bytes = match &values.data {
            Data::F32(v) => bytemuck::cast_slice(v),
            Data::U32(v) => bytemuck::cast_slice(v),
            Data::F64(_) => {
                rounded = values.to_f32();
                bytemuck::cast_slice(&rounded)
            }
        };
        self.device.write(tensor.buffer(), 0, bytes);
        Ok(tensor)
    }

    fn shape(&self, tensor: &GpuTensor) -> Vec<usize> {
        tensor.shape().to_vec()
    }

    fn run(&mut self, at: At, op: &Op<'_, GpuTensor>) -> Result<GpuTensor> {
        self.device.check()?;
        self.run_op(at.site, op)
    }

    fn fetch(&mut self, tensor: &GpuTensor) -> Result<Ticket> {
        self.device.check()?;
        // A result that waits is copied when it is made: whoever asks for it takes no group apart that has it to write anyway. A cache
        // is copied as it is now.
        let waits = |w: &Waiting| w.result.same(tensor) && !matches!(w.op, Operation::Store { .. });
        if self.waiting.iter().any(waits) {
            let ticket = self.readback.ticket();
            self.asked.push((ticket, tensor.clone()));
            return Ok(ticket);
        }
        self.run_waiting()?;
        if tensor.0.memory.get().is_none() {
            return Err(Error::cannot_run("a value was asked for whose operation has failed"));
        }
        let ticket = self.readback.ticket();
        self.readback.fetch(&mut self.device, ticket, tensor)?;
        Ok(ticket)
    }

    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        if self.asked.iter().any(|(asked, _)| *asked == ticket) {
            self.run_waiting()?;
        }
        self.readback.take(&mut self.device, ticket)
    }

    fn sync(&mut self) -> Result<()> {
        self.run_waiting()?;
        self.device.submit();
        self.device.wait(None)?;
        self.device.collect_times()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Stage;

    #[test]
    fn a_patch_implies_checks() {
        let checked = |patch, checks| {
            let options = GpuOptions { patch, checks, ..Default::default() };
            GpuBackend::new(&AdapterSelector::Best, options).unwrap().pipelines.checked
        };
        let patch: Patch = Arc::new(|_, source| source);
        assert!(checked(Some(patch), Some(false)), "WGSL from elsewhere is never trusted");
        assert!(!checked(None, Some(false)) && checked(None, Some(true)) && checked(None, None));
    }

    #[test]
    fn a_lost_device_is_an_error_at_the_next_call() {
        let mut gpu = GpuBackend::new(&AdapterSelector::Best, GpuOptions::default()).unwrap();
        let tensor = gpu.upload(&HostTensor::f32(&[1, 4], vec![1.0; 4])).unwrap();
        let ticket = gpu.fetch(&tensor).unwrap();
        gpu.device.device.destroy();
        assert_eq!(gpu.take(ticket).unwrap_err().exit_code(), 125);
        let op = Op::Add { a: tensor.clone(), b: tensor.clone() };
        for error in [gpu.run(At::model(Stage::Embedding, 0), &op).err(), gpu.sync().err(), gpu.fetch(&tensor).err()] {
            let error = error.expect("the device is gone");
            assert_eq!(error.exit_code(), 125);
        }
    }
}
