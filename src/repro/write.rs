//! Writing a repro folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::tensor::TensorInfo;
use sha2::{Digest, Sha256};

use super::capture::CapturedCall;
use super::case::FailingCall;
use super::folder::{Folder, hex};
use super::manifest::*;
use super::verdict::RerunCheck;
use crate::atomic::dir::{AtomicDir, DirKind};
use crate::backend::gpu::{Dispatch, GpuBackend};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::model::{Calls, Model};
use crate::op::{HostTensor, Weight};
use crate::trace::store::file::{dtype, header, le_bytes};

/// What may be replaced by another one.
pub const KIND: DirKind = DirKind { name: "repro folder", is_one: is_repro };

/// What a GPU ran.
pub struct RecordedCall {
    pub adapter: AdapterEntry,
    pub dispatches: Vec<Dispatch>,
}

impl RecordedCall {
    pub fn new(gpu: &GpuBackend, dispatches: Vec<Dispatch>) -> Self {
        let (info, limits) = gpu.adapter();
        let limit = |name: &str, value: u64| (name.to_string(), value);
        let limits = BTreeMap::from([
            limit("max_buffer_size", limits.max_buffer_size),
            limit("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size),
            limit("max_storage_buffers_per_shader_stage", limits.max_storage_buffers_per_shader_stage.into()),
            limit("max_compute_workgroups_per_dimension", limits.max_compute_workgroups_per_dimension.into()),
            limit("max_compute_workgroup_storage_size", limits.max_compute_workgroup_storage_size.into()),
            limit("max_compute_invocations_per_workgroup", limits.max_compute_invocations_per_workgroup.into()),
            limit("max_immediate_size", limits.max_immediate_size.into()),
        ]);
        let adapter = AdapterEntry {
            name: info.name.clone(),
            api: info.backend.to_str().into(),
            kind: format!("{:?}", info.device_type),
            driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
            vendor: info.vendor,
            device: info.device,
            subgroup_sizes: [info.subgroup_min_size, info.subgroup_max_size],
            limits,
        };
        Self { adapter, dispatches }
    }
}

/// Where a case comes from.
pub struct Origin<'a> {
    pub model: &'a Model,
    /// Whose decoded tokens are all forced.
    pub calls: Calls<'a>,
    pub found: &'a CapturedCall,
}

/// What goes into a folder.
pub struct Contents<'a> {
    pub case: &'a FailingCall,
    /// Of the case, run alone on the subject.
    pub judged: &'a RerunCheck,
    pub shrinking: Shrinking,
    pub subject: SideEntry,
    pub reference: Reference,
    /// `None` unless the subject is a GPU.
    pub recorded: Option<RecordedCall>,
    pub origin: Origin<'a>,
}

/// Writes a folder and gives it its name.
///
/// # Errors
/// If it cannot be written, or does not read back as what was written.
pub fn write(dir: AtomicDir, contents: Contents<'_>) -> Result<ReproManifest> {
    let Contents { case, judged, shrinking, subject, reference, recorded, origin } = contents;
    let mut files = Vec::new();
    let mut put = |name: String, bytes: &[u8]| -> Result<()> {
        dir.write(&name, bytes)?;
        files.push(FileEntry { name, bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) });
        Ok(())
    };
    put(TENSORS.into(), &tensors(case, judged)?)?;
    if let Some(weight) = &case.weight {
        put(WEIGHT.into(), &weight.bytes())?;
    }
    let (adapter, dispatches) = recorded.map_or((None, Vec::new()), |r| (Some(r.adapter), r.dispatches));
    let mut entries = Vec::new();
    let mut shaders = BTreeSet::new();
    for (i, dispatch) in dispatches.iter().enumerate() {
        let shader = format!("shaders/{}.wgsl", dispatch.kernel.replace('/', "."));
        if shaders.insert(shader.clone()) {
            dir.write(&shader, dispatch.source.as_bytes())?;
        }
        let kernel = dispatch.kernel.split('/').next().unwrap_or_default();
        let mut bindings = Vec::new();
        for (binding, buffer) in dispatch.bindings.iter().enumerate() {
            let file = format!("buffers/{i:02}-{kernel}-{binding}.bin");
            put(file.clone(), &buffer.bytes)?;
            bindings.push(BindingEntry {
                binding: binding as u32,
                access: if buffer.written { "write" } else { "read" }.into(),
                bytes: buffer.bytes.len() as u64,
                file,
            });
        }
        let Dispatch { kernel, params, grid, .. } = dispatch.clone();
        entries.push(DispatchEntry { kernel, shader, immediates: params, workgroups: grid, bindings });
    }
    let found = origin.found;
    let head_dim = origin.model.config.head_dim;
    let manifest = ReproManifest {
        schema: SCHEMA.into(),
        program: concat!("twinscope ", env!("CARGO_PKG_VERSION")).into(),
        environment: Some(Environment::here()),
        layer: case.site.layer,
        stage: case.site.stage.name().into(),
        op: case.params,
        inputs: case.params.names().iter().zip(&case.inputs).map(|(name, t)| entry(name, t)).collect(),
        output: entry("subject", &judged.output),
        weight: case.weight.as_deref().map(weight_entry),
        kept: case.kept.clone(),
        head_dim,
        subject,
        reference,
        alone: judged.figures(case),
        in_the_run: InTheRun::new(found, head_dim),
        shrinking,
        origin: OriginEntry {
            model: origin.model.config.name.clone(),
            architecture: origin.model.config.architecture.name.into(),
            fingerprint: origin.model.gguf.fingerprint(),
            tokens: [origin.calls.prompt, origin.calls.forced].concat(),
            prompt_tokens: origin.calls.prompt.len(),
            chunk: origin.calls.chunk,
        },
        adapter,
        dispatches: entries,
        files,
    };
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::cannot_run(format!("the manifest: {e}")))?;
    dir.write(MANIFEST, &text)?;
    dir.write(README, readme(&manifest).as_bytes())?;
    // A folder that does not read back as the case that failed would send somebody after another fault.
    let back = Folder::open(dir.path())?;
    if (back.case.params, &back.case.kept, &back.subject) != (case.params, &case.kept, &judged.output)
        && judged.ratio.non_finite == 0
    {
        return Err(Error::cannot_run(format!(
            "{}: the folder does not read back as it was written",
            dir.target().display()
        )));
    }
    dir.commit()?;
    Ok(manifest)
}

fn entry(name: &str, t: &HostTensor) -> TensorEntry {
    TensorEntry { name: name.into(), dtype: t.dtype().into(), shape: t.shape.clone() }
}

fn weight_entry(w: &Weight) -> WeightEntry {
    WeightEntry {
        name: w.name.clone(),
        ty: w.ty.name().into(),
        cols: w.cols,
        rows: w.rows,
        experts: w.experts,
        file_offset: w.file_offset,
        scales: w.scales.clone(),
    }
}

/// The safetensors file: operands, the oracle's result, the floors, the subject's result.
fn tensors(case: &FailingCall, judged: &RerunCheck) -> Result<Vec<u8>> {
    let floor = HostTensor::f64(case.shape(), judged.floor.clone());
    let inputs = case.params.names().into_iter().zip(&case.inputs).map(|(name, t)| (format!("input.{name}"), t));
    let results = [("oracle", &judged.exact), ("floor", &floor), ("subject", &judged.output)];
    let all: Vec<(String, &HostTensor)> = inputs.chain(results.map(|(name, t)| (name.to_string(), t))).collect();
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    // Wide types first, so that every tensor is aligned.
    let mut sorted = all;
    sorted.sort_by_key(|(_, t)| t.dtype() != "f64");
    for (name, t) in sorted {
        let start = data.len();
        data.extend_from_slice(&le_bytes(&t.data, 0..t.len()));
        infos.push((
            name,
            TensorInfo { dtype: dtype(&t.data), shape: t.shape.clone(), data_offsets: (start, data.len()) },
        ));
    }
    let mut bytes = header(infos, None)?.unwrap_or_default();
    bytes.extend(data);
    Ok(bytes)
}

/// Whether the directory is a repro folder and nothing else.
fn is_repro(dir: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct Schema {
        schema: String,
    }
    let schema: Option<Schema> = FileKind::REPRO_MANIFEST.read_json(&dir.join(MANIFEST)).ok();
    let ours = |name: &str| [MANIFEST, README, TENSORS, WEIGHT, "shaders", "buffers"].contains(&name);
    let only_ours = std::fs::read_dir(dir)
        .is_ok_and(|mut entries| entries.all(|e| e.is_ok_and(|e| e.file_name().to_str().is_some_and(ours))));
    schema.is_some_and(|s| s.schema == SCHEMA) && only_ours
}

fn readme(m: &ReproManifest) -> String {
    let layer = m.layer.map_or(String::new(), |n| format!("layer {n}, "));
    let ratio = m.alone.ratio.map_or("without bound".into(), |r| format!("by {r:.3e} times what rounding allows"));
    let what = match m.alone.verdict.as_str() {
        "ok" => "which agrees with the float64 oracle".to_string(),
        _ => format!("which is wrong {ratio}"),
    };
    let how = if m.shrinking.runs > 0 { ", cut down to as little as still shows the error" } else { "" };
    let mut text = format!(
        "{layer}{stage} of {model}, as {backend} ({adapter}) computes it,\n{what}.\nOne operation with its operands{how}.\n\n\
         Run it:\n\n    twinscope repro run .\n    twinscope repro run . --subject cpu:scalar\n\n\
         exits with 1 while it is wrong, 0 when it agrees, 125 when it cannot run here, 2 when this\nfolder cannot be read, or a shader in it does not compile. git's bisect takes 2 \
         for wrong too; this stops instead:\n\n    git bisect run sh -c 'twinscope repro run .; code=$?; [ $code = 2 ] && exit 128; exit $code'\n\n\
         manifest.json        what is here: operation, operands, verdict, dispatches\n\
         tensors.safetensors  operands (input.*), the float64 oracle's result (oracle), the error that\n\
         \x20                    rounding may leave in each element (floor), the subject's result (subject)\n",
        stage = m.stage,
        model = crate::text::printable(&m.origin.model),
        backend = m.subject.info.backend,
        adapter = crate::text::printable(&m.subject.info.adapter),
    );
    if m.weight.is_some() {
        text += "weight.bin           the weight's blocks as ggml stores them, [experts, rows, cols]\n";
    }
    if !m.dispatches.is_empty() {
        text += "shaders/             each kernel's whole WGSL source. Edit it and run again: the files here are\n\
                 \x20                    what is compiled (--shaders built-in: the program's own instead)\n\
                 buffers/             what each binding of each dispatch held, for other tools: read ones before\n\
                 \x20                    it, written ones after it; immediates and workgroups are in the manifest\n";
    }
    text
}
