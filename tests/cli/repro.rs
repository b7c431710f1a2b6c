//! `repro`: a fault planted in a kernel ends as a folder that fails alone, and mending the folder's shader mends it.

use crate::common;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::Value as Json;
use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions, Patch};
use twinscope::backend::{Backend, BackendInfo, Contract, Erased, Need, Ticket};
use twinscope::error::Result;
use twinscope::model::{Calls, Model};
use twinscope::op::{At, HostTensor, Op, OpKind, Site, Stage, Weight};
use twinscope::repro::capture::Target;
use twinscope::repro::case::FailingCall;
use twinscope::repro::manifest::ReproManifest;
use twinscope::repro::shaders::FolderShaders;
use twinscope::repro::verdict::RerunCheck;
use twinscope::repro::{Folder, Made, RecordedCall, ReproOptions, ReproVerdict, Subject, make};

fn gpu(options: GpuOptions) -> GpuBackend {
    GpuBackend::new(&AdapterSelector::Best, options)
        .expect("an adapter that can run the kernels (apt install mesa-vulkan-drivers libvulkan1)")
}

/// A kernel's source, edited: every kernel of that name, whatever the type of its weights. An edit that does not apply fails.
fn edit(kernel: &'static str, from: &'static str, to: &'static str) -> Patch {
    Arc::new(move |name, source| {
        if name.split('/').next() != Some(kernel) {
            return source;
        }
        assert_eq!(source.matches(from).count(), 1, "{kernel}: {from}");
        source.replace(from, to)
    })
}

/// A planted fault and where to look for it.
struct Fault {
    kernel: &'static str,
    from: &'static str,
    to: &'static str,
    target: Target,
    /// The tokens of this golden prompt are run…
    tokens: Vec<u32>,
    /// …of which so many are the prompt.
    prompt: usize,
}

fn at(layer: usize, stage: Stage) -> Target {
    Target { site: Site::layer(layer, stage), position: None, expert: None }
}

impl Fault {
    fn new(kernel: &'static str, from: &'static str, to: &'static str, target: Target) -> Self {
        Self { kernel, from, to, target, tokens: common::golden("main").tokens, prompt: usize::MAX }
    }

    fn make(&self, dir: &Path, options: ReproOptions) -> Made {
        let model = Model::open(None).unwrap();
        let (prompt, forced) = self.tokens.split_at(self.prompt.min(self.tokens.len()));
        let calls = Calls { prompt, chunk: 512, decode: forced.len(), forced };
        let patch = Some(edit(self.kernel, self.from, self.to));
        // The kernels that every adapter can run.
        let mut subject = gpu(GpuOptions { patch, lanes: Some(false), ..Default::default() });
        let mut reference = CpuBackend::new(Some(Level::Scalar), None).unwrap();
        make(&mut subject, &mut reference, &model, calls, &self.target, options, (dir, false)).unwrap()
    }

    /// Makes the folder, and checks what holds of every such folder.
    fn folder(&self, dir: &Path) -> (Made, Folder) {
        let made = self.make(dir, ReproOptions::default());
        assert_eq!(made.verdict, ReproVerdict::SubjectWrong);
        let folder = Folder::open(dir).unwrap();
        check_schema(
            &std::fs::read(dir.join("manifest.json")).unwrap(),
            include_str!("../../schemas/repro.schema.json"),
        );
        let alone = made.alone.clone().unwrap();
        assert_eq!(folder.manifest.alone, alone);
        assert_eq!(folder.manifest.reference.figures.verdict, "ok", "the reference agrees on the same operands");

        // Alone, on another device: the same verdict, to the bit.
        let (again, judged) = run(&folder, false);
        assert_eq!(again, alone);
        assert_eq!(bits(&judged.output.to_f64()), bits(&folder.subject.to_f64()));
        // This program's own kernels agree, and so does the folder once its shader is mended.
        assert_eq!(run(&folder, true).0.verdict, "ok");
        for shader in self.shaders(&folder.manifest) {
            let path = dir.join(shader);
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.matches(self.to).count(), 1, "{}", path.display());
            std::fs::write(&path, text.replace(self.to, self.from)).unwrap();
        }
        let mended = Folder::open(dir).unwrap();
        assert_eq!(run(&mended, false).0.verdict, "ok");
        (made, folder)
    }

    fn shaders(&self, m: &ReproManifest) -> Vec<String> {
        let of_kernel = |kernel: &str| kernel.split('/').next() == Some(self.kernel);
        let mut files: Vec<String> =
            m.dispatches.iter().filter(|d| of_kernel(&d.kernel)).map(|d| d.shader.clone()).collect();
        files.sort();
        files.dedup();
        assert!(!files.is_empty(), "{} is among the dispatches", self.kernel);
        files
    }
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Runs a folder on the GPU, with its shaders or this program's own.
fn run(folder: &Folder, built_in: bool) -> (twinscope::repro::verdict::Figures, RerunCheck) {
    let shaders = FolderShaders::new(folder.shaders.clone());
    let options = shaders.options();
    let patch = options.patch.filter(|_| !built_in);
    let mut gpu = gpu(GpuOptions { patch, ..options });
    let (output, recorded) = gpu.run_recorded(&folder.case).unwrap();
    if !built_in {
        assert!(shaders.not_replaced().unwrap().is_empty());
    }
    let ran: Vec<String> = recorded.unwrap().dispatches.into_iter().map(|d| d.kernel).collect();
    let kept: Vec<String> = folder.manifest.dispatches.iter().map(|d| d.kernel.clone()).collect();
    assert_eq!(ran, kept);
    let judged = folder.judge(&gpu.contract(folder.case.op().kind()), output).unwrap();
    (judged.figures(&folder.case), judged)
}

fn check_schema(document: &[u8], schema: &str) -> Json {
    let document: Json = serde_json::from_slice(document).unwrap();
    let schema: Json = serde_json::from_str(schema).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    document
}

#[test]
fn an_elementwise_fault_ends_as_one_value() {
    let dir = tempfile::tempdir().unwrap();
    // The sigmoid of a positive number taken as that of its negative.
    let fault = Fault::new("swiglu", "g >= 0.0", "g >= 9.0", at(2, Stage::ExpertAct));
    let (made, folder) = fault.folder(&dir.path().join("repro"));
    assert_eq!(folder.case.shape(), [1, 1, 1]);
    assert_eq!(made.in_the_run.shape[0], common::golden("main").tokens.len());
    assert!(made.in_the_run.figures.beyond > 1000);
    // The buffers are there as the kernel saw them: gate, up, and what it made of them.
    let dispatch = &folder.manifest.dispatches[0];
    assert_eq!(dispatch.workgroups, [1, 1, 1]);
    let buffer = |i: usize| std::fs::read(folder.dir.join(&dispatch.bindings[i].file)).unwrap();
    assert_eq!(buffer(0)[..4], folder.case.inputs[0].to_f32()[0].to_le_bytes());
    assert_eq!(buffer(2)[..4], folder.subject.to_f32()[0].to_le_bytes());
    assert_eq!(dispatch.bindings.iter().map(|b| b.access.as_str()).collect::<Vec<_>>(), ["read", "read", "write"]);
}

#[test]
fn one_experts_last_columns_end_as_one_expert_and_one_column() {
    let dir = tempfile::tempdir().unwrap();
    // The last 32 outputs of expert 0, only in the kernel for more than four positions.
    let fault = Fault {
        tokens: common::golden("ownership").tokens,
        ..Fault::new(
            "expert_matmul",
            "y[slot * p.piece.rows + row] = value;",
            "y[slot * p.piece.rows + row] = value * select(1.0, 1.5, e.base == 0u && row + 32u >= p.piece.rows);",
            at(1, Stage::ExpertDown),
        )
    };
    let (made, folder) = fault.folder(&dir.path().join("repro"));
    // Five rows at least: up to four go to another kernel.
    assert_eq!((folder.case.positions(), folder.case.shape()[1], folder.case.shape()[2]), (5, 1, 1));
    let worst = made.alone.as_ref().unwrap().worst.as_ref().unwrap();
    let expert = folder.case.kept.experts[0] as u32;
    assert_eq!(worst.place.expert, Some(expert));
    assert!(made.in_the_run.pattern.as_ref().unwrap().contains("expert 0"), "{:?}", made.in_the_run.pattern);
    assert!(folder.case.weight.as_ref().unwrap().bytes().len() < 10_000);
    assert!(!made.written.unwrap().shrinking.stopped);
}

#[test]
fn attention_at_a_decoded_position_keeps_its_cache() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = common::golden("main").tokens.len();
    // The oldest key is not seen, from the second call on.
    let fault = Fault {
        prompt: tokens - 2,
        ..Fault::new(
            "attn_scores",
            "p.seen + s] = score;",
            "p.seen + s] = select(score, 0.0, p.start > 0u && s == 0u);",
            at(0, Stage::AttnScores),
        )
    };
    let (made, folder) = fault.folder(&dir.path().join("repro"));
    let worst = made.alone.unwrap().worst.unwrap();
    assert_eq!(worst.place.position, tokens - 2, "the first decoded position, not the prompt's");
    assert_eq!(worst.place.column, folder.case.kept.columns[0]);
    assert_eq!(folder.case.shape()[..2], [1, 1]);
    let start = folder.manifest.op.start().unwrap();
    assert!(start > 0 && start < tokens - 2, "some of the {start} older keys are needed");
    assert_eq!(folder.manifest.dispatches.len(), 3, "older keys are stored, this one is, both are read");
}

#[test]
fn a_wrong_cache_write_is_part_of_the_stage_that_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = common::golden("main").tokens.len();
    // A write that does not begin at the cache's start flips a bit.
    let fault = Fault {
        prompt: tokens - 1,
        ..Fault::new(
            "copy",
            "y[at] = word;",
            "y[at] = select(word, word ^ 0x400000u, p.to > 0u);",
            at(3, Stage::AttnContext),
        )
    };
    let (made, folder) = fault.folder(&dir.path().join("repro"));
    let kernels: Vec<&str> = folder.manifest.dispatches.iter().map(|d| d.kernel.as_str()).collect();
    assert_eq!(kernels, ["copy", "copy", "attn_context"], "older values are stored, this one is, both are read");
    assert_eq!(made.alone.unwrap().worst.unwrap().place.position, tokens - 1);
}

#[test]
fn a_position_and_an_expert_narrow_it() {
    let dir = tempfile::tempdir().unwrap();
    let target = Target { position: Some(3), ..at(2, Stage::ExpertAct) };
    let fault = Fault::new("swiglu", "g >= 0.0", "g >= 9.0", target);
    let (made, _) = fault.folder(&dir.path().join("position"));
    let place = made.alone.unwrap().worst.unwrap().place;
    assert_eq!(place.position, 3);
    let target = Target { expert: place.expert, ..at(2, Stage::ExpertAct) };
    let (made, folder) = Fault { target, ..fault }.folder(&dir.path().join("expert"));
    assert_eq!(made.alone.unwrap().worst.unwrap().place.expert, place.expert);
    assert_eq!(folder.case.shape(), [1, 1, 1]);
}

#[test]
fn nothing_is_written_where_nothing_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let fault = Fault::new("swiglu", "g >= 0.0", "g >= 9.0", at(0, Stage::AttnOut));
    let made = fault.make(&dir.path().join("repro"), ReproOptions::default());
    assert_eq!((made.verdict, made.alone, made.written.is_none()), (ReproVerdict::Ok, None, true));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The CPU, wrong the first time that a stage is run.
struct WrongOnce {
    cpu: CpuBackend,
    site: Site,
    done: bool,
}

impl Backend for WrongOnce {
    type Tensor = <CpuBackend as Backend>::Tensor;
    fn info(&self) -> BackendInfo {
        self.cpu.info()
    }
    fn contract(&self, op: OpKind) -> Contract {
        self.cpu.contract(op)
    }
    fn unsupported(&self, needs: &[Need]) -> Vec<String> {
        self.cpu.unsupported(needs)
    }
    fn prepare(&mut self, weights: &[Arc<Weight>], progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.cpu.prepare(weights, progress)
    }
    fn alloc(&mut self, shape: &[usize]) -> Result<Self::Tensor> {
        self.cpu.alloc(shape)
    }
    fn upload(&mut self, values: &HostTensor) -> Result<Self::Tensor> {
        self.cpu.upload(values)
    }
    fn shape(&self, tensor: &Self::Tensor) -> Vec<usize> {
        self.cpu.shape(tensor)
    }
    fn run(&mut self, at: At, op: &Op<'_, Self::Tensor>) -> Result<Self::Tensor> {
        let result = self.cpu.run(at, op)?;
        if at.site != self.site || std::mem::replace(&mut self.done, true) {
            return Ok(result);
        }
        let right = self.cpu.read(&result)?;
        self.cpu.upload(&HostTensor::f32(&right.shape, right.to_f32().iter().map(|x| x + 1.0).collect()))
    }
    fn fetch(&mut self, tensor: &Self::Tensor) -> Result<Ticket> {
        self.cpu.fetch(tensor)
    }
    fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.cpu.take(ticket)
    }
    fn sync(&mut self) -> Result<()> {
        self.cpu.sync()
    }
}

impl Subject for WrongOnce {
    fn forget(&mut self, _: &Weight) {}
    fn run_recorded(&mut self, case: &FailingCall) -> Result<(HostTensor, Option<RecordedCall>)> {
        Ok((case.run(self)?, None))
    }
}

#[test]
fn what_is_wrong_in_the_run_only_is_said_to_be_so() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::open(None).unwrap();
    let tokens = common::golden("main").tokens;
    let calls = Calls { prompt: &tokens, chunk: 512, decode: 0, forced: &[] };
    let target = at(1, Stage::AttnOut);
    let out = dir.path().join("repro");
    for keep in [false, true] {
        let cpu = || CpuBackend::new(Some(Level::Scalar), None).unwrap();
        let mut subject = WrongOnce { cpu: cpu(), site: target.site, done: false };
        let options = ReproOptions { keep, ..ReproOptions::default() };
        let made = make(&mut subject, &mut cpu(), &model, calls, &target, options, (&out, false)).unwrap();
        assert_eq!((made.verdict, made.written.is_some()), (ReproVerdict::OnlyInTheRun, keep));
        assert_eq!(made.in_the_run.figures.verdict, "subject_wrong");
        assert_eq!(made.alone.unwrap().verdict, "ok");
    }
    assert_eq!(Folder::open(&out).unwrap().manifest.in_the_run.figures.verdict, "subject_wrong");
}

#[test]
fn every_kind_of_stage_makes_a_folder() {
    folders_of_every_stage(None, &common::golden("one").tokens, |_| true);
}

/// Rope with frequency factors, which are a weight, and with biases.
#[test]
fn so_do_the_stages_of_other_families() {
    use twinscope::op::OpKind;
    for (family, op) in [("llama3", OpKind::Rope), ("llama", OpKind::Rope), ("qwen2", OpKind::Bias)] {
        let model = format!("{}/tests/families/{family}.gguf", env!("CARGO_MANIFEST_DIR"));
        folders_of_every_stage(Some(model.as_ref()), &[5, 17, 93], |kind| kind == op);
    }
}

fn folders_of_every_stage(model: Option<&Path>, tokens: &[u32], wanted: impl Fn(twinscope::op::OpKind) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::open(model).unwrap();
    let calls = Calls { prompt: tokens, chunk: 512, decode: 0, forced: &[] };
    let scalar = || CpuBackend::new(Some(Level::Scalar), None).unwrap();
    let mut subject: twinscope::backend::AnyBackend = Box::new(Erased(scalar()));
    let layout = model.config.layout();
    for row in twinscope::op::STAGES.iter().filter(|row| row.scope.occurs(layout) && wanted(row.op)) {
        let site = match row.scope {
            twinscope::op::Scope::Model => Site::model(row.stage),
            _ => Site::layer(1, row.stage),
        };
        let out = dir.path().join(row.name);
        let target = Target { site, position: None, expert: None };
        let options = ReproOptions { keep: true, ..ReproOptions::default() };
        let made = make(&mut subject, &mut scalar(), &model, calls, &target, options, (&out, false)).unwrap();
        assert_eq!(made.verdict, ReproVerdict::Ok, "{site}");
        let folder = Folder::open(&out).unwrap();
        let output = folder.case.run(&mut scalar()).unwrap();
        assert_eq!(output, folder.subject, "{site}");
        let judged = folder.judge(&scalar().contract(row.op), output).unwrap();
        assert!(!judged.fails(), "{site}");
        check_schema(
            &std::fs::read(out.join("manifest.json")).unwrap(),
            include_str!("../../schemas/repro.schema.json"),
        );
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Folders that somebody else wrote

/// A whole folder of one stage, made on the CPU.
fn kept(dir: &Path, stage: Stage) -> PathBuf {
    let model = Model::open(None).unwrap();
    let tokens = common::golden("one").tokens;
    let calls = Calls { prompt: &tokens, chunk: 512, decode: 0, forced: &[] };
    let mut cpu: twinscope::backend::AnyBackend = Box::new(Erased(CpuBackend::new(Some(Level::Scalar), None).unwrap()));
    let mut reference = CpuBackend::new(Some(Level::Scalar), None).unwrap();
    let out = dir.join(stage.name());
    let options = ReproOptions { keep: true, ..ReproOptions::default() };
    make(&mut cpu, &mut reference, &model, calls, &at(1, stage), options, (&out, false)).unwrap();
    out
}

#[test]
fn a_damaged_folder_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let good = kept(dir.path(), Stage::ExpertDown);
    let manifest: Json = serde_json::from_slice(&std::fs::read(good.join("manifest.json")).unwrap()).unwrap();
    // Opens a copy with one thing changed, and judges the subject's own result by it.
    let broken = |what: &str, change: &dyn Fn(&Path, &mut Json)| {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&good).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        let mut json = manifest.clone();
        change(copy.path(), &mut json);
        if copy.path().join("manifest.json").is_file() && json != manifest {
            std::fs::write(copy.path().join("manifest.json"), serde_json::to_vec(&json).unwrap()).unwrap();
        }
        let contract = CpuBackend::new(Some(Level::Scalar), None).unwrap().contract(OpKind::ExpertMatMul);
        let result = Folder::open(copy.path()).and_then(|f| f.judge(&contract, f.subject.clone()));
        let error = result.map(|_| ()).expect_err(what);
        assert_eq!(error.exit_code(), 2, "{what}: {error}");
        assert!(error.to_string().contains(what), "expected {what:?} in: {error}");
        let folder = copy.path().display().to_string();
        assert!(error.to_string().starts_with(&folder), "expected the folder in: {error}");
    };
    // The hash of a file that was changed on purpose.
    let rehash = |path: &Path, name: &str, json: &mut Json| {
        use sha2::Digest;
        let bytes = std::fs::read(path.join(name)).unwrap();
        let hash: String = sha2::Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        let files = json["files"].as_array_mut().unwrap();
        let entry = files.iter_mut().find(|f| f["name"] == name).unwrap();
        entry["sha256"] = hash.into();
        entry["bytes"] = bytes.len().into();
    };
    let write = |path: PathBuf, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    };

    broken("manifest.json", &|dir, _| std::fs::remove_file(dir.join("manifest.json")).unwrap());
    broken("manifest.json", &|dir, _| write(dir.join("manifest.json"), &|b| b.truncate(b.len() / 2)));
    broken("schema \"twinscope.repro/1\" expected", &|_, m| m["schema"] = "twinscope.repro/2".into());
    broken("unknown field `extra`", &|_, m| m["extra"] = 1.into());
    broken("weight.bin", &|dir, _| std::fs::remove_file(dir.join("weight.bin")).unwrap());
    broken("weight.bin is damaged", &|dir, _| write(dir.join("weight.bin"), &|b| b[100] ^= 1));
    broken("tensors.safetensors has", &|dir, _| write(dir.join("tensors.safetensors"), &|b| b.truncate(1000)));
    for name in ["../weight.bin", "/etc/passwd", ""] {
        broken("is not the name of a file in the folder", &|_, m| {
            let entry = serde_json::json!({ "name": name, "bytes": 1, "sha256": "0".repeat(64) });
            m["files"].as_array_mut().unwrap().push(entry);
        });
    }
    broken("weight.bin is not among its files", &|_, m| {
        m["files"].as_array_mut().unwrap().retain(|f| f["name"] != "weight.bin");
    });
    broken("no such stage", &|_, m| m["stage"] = "expert_sideways".into());
    broken("no such stage", &|_, m| m["layer"] = Json::Null);
    broken("is made by SwiGlu, not by ExpertMatMul", &|_, m| m["stage"] = "expert_act".into());
    broken("unknown variant", &|_, m| m["op"]["kind"] = "fry".into());
    broken("operands", &|_, m| m["op"]["kind"] = "mat_mul".into());
    broken("input.x is f32", &|_, m| m["inputs"][0]["shape"] = vec![1, 1, 1].into());
    broken("no such type", &|_, m| m["weight"]["type"] = "Q9_Z".into());
    broken("does not fit", &|_, m| m["weight"]["rows"] = (1u64 << 60).into());
    broken("are not whole", &|_, m| m["weight"]["cols"] = 100.into());
    broken("where [1, 512] or [1, 2, 512]", &|_, m| {
        m["weight"]["cols"] = 512.into();
        m["weight"]["rows"] = (m["weight"]["rows"].as_u64().unwrap() / 2).into();
    });
    broken("weight.bin has", &|_, m| m["weight"]["experts"] = 7.into());
    for (key, number) in [("rows", u64::MAX), ("experts", u64::MAX), ("cols", u64::MAX - 255)] {
        broken("weight.bin: tensor blk.1.ffn_down_exps.weight: ", &|_, m| m["weight"][key] = number.into());
    }
    broken("head_dim of 1 or more expected", &|_, m| m["head_dim"] = 0.into());
    broken("input.x is f32", &|_, m| m["inputs"][0]["shape"] = vec![1u64 << 63, 1 << 63].into());
    broken("rows are said to be kept", &|_, m| m["kept"]["rows"] = Json::Array(vec![]));
    broken("no model has so many", &|_, m| m["kept"]["rows"][0]["position"] = (1u64 << 40).into());
    broken("0 slots are said", &|_, m| {
        m["kept"]["rows"][0].as_object_mut().unwrap().remove("slots");
    });
    broken("where the operands give", &|dir, m| {
        // The last tensor but the oracle's and the floors is the subject's; the oracle's is first.
        let header = |b: &[u8]| 8 + u64::from_le_bytes(b[..8].try_into().unwrap()) as usize;
        write(dir.join("tensors.safetensors"), &|b| {
            let at = header(b);
            b[at..at + 8].copy_from_slice(&1.0f64.to_le_bytes());
        });
        rehash(dir, "tensors.safetensors", m);
    });
    broken("one of the 8 experts", &|dir, m| {
        write(dir.join("tensors.safetensors"), &|b| {
            let file = safetensors::SafeTensors::deserialize(b).unwrap();
            let ids = file.tensor("input.ids").unwrap().data().as_ptr() as usize - b.as_ptr() as usize;
            b[ids..ids + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        });
        rehash(dir, "tensors.safetensors", m);
    });
    let rope = kept(dir.path(), Stage::KRope);
    let mut json: Json = serde_json::from_slice(&std::fs::read(rope.join("manifest.json")).unwrap()).unwrap();
    for (start, head_dim, what) in
        [(u64::MAX, 64, "a position with room for"), (0, 0, "head_dim is 0"), (0, 63, "head_dim is 63")]
    {
        (json["op"]["start"], json["op"]["head_dim"]) = (start.into(), head_dim.into());
        std::fs::write(rope.join("manifest.json"), serde_json::to_vec(&json).unwrap()).unwrap();
        let error = Folder::open(&rope).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(what) && error.exit_code() == 2, "{error}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The binary

fn twinscope(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinscope")).arg("repro").args(args).output().unwrap()
}

fn code(args: &[&str]) -> (i32, String) {
    let out = twinscope(args);
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    (out.status.code().unwrap(), text)
}

#[test]
fn the_command_line_makes_runs_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("repro");
    let out = out.to_str().unwrap();
    let stage = ["--tokens", "1,2,3,4,5,6", "--layer", "0", "--stage", "ffn_moe_swiglu", "--out", out];

    let (status, text) = code(&stage);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("there is nothing to reproduce") && !Path::new(out).exists(), "{text}");
    let kept = twinscope(&[&stage[..], &["--keep", "--json"]].concat());
    assert_eq!(kept.status.code(), Some(0), "{kept:?}");
    let schema = include_str!("../../schemas/repro-result.schema.json");
    let json = check_schema(&kept.stdout, schema);
    assert_eq!((&json["verdict"], &json["kernels"][0]), (&"ok".into(), &"swiglu".into()));
    let (status, text) = code(&[&stage[..], &["--keep"]].concat());
    assert!(status == 2 && text.contains("--force replaces it"), "{status}: {text}");

    let json = check_schema(&twinscope(&["run", out, "--json"]).stdout, schema);
    assert_eq!((&json["verdict"], &json["action"]), (&"ok".into(), &"run".into()));
    assert_eq!(code(&["run", out]).0, 0);
    let (status, text) = code(&["run", out, "--subject", "cpu:scalar"]);
    assert!(status == 0 && text.contains("the floors are its own"), "{status}: {text}");
    assert_eq!(code(&["run", out, "--subject", "gpu:99"]).0, 125);

    // An author breaks the kernel, then the syntax, then mends both.
    let shader = Path::new(out).join("shaders/swiglu.wgsl");
    let good = std::fs::read_to_string(&shader).unwrap();
    std::fs::write(&shader, good.replace("g >= 0.0", "g >= 9.0")).unwrap();
    let (status, text) = code(&["run", out]);
    assert!(status == 1 && text.contains("layer 0 · expert_act · the subject is wrong"), "{status}: {text}");
    assert_eq!(code(&["run", out, "--shaders", "built-in"]).0, 0);
    std::fs::write(&shader, good.replace("fn main", "fun main")).unwrap();
    let (status, text) = code(&["run", out]);
    // What does not compile cannot run, and `git bisect run` skips it; it is shown line by line.
    assert!(status == 125 && text.contains("swiglu.wgsl: expected WGSL that compiles"), "{status}: {text}");
    assert!(text.lines().any(|line| line.starts_with("  ") && line.contains("fun main(")), "{text}");
    std::fs::write(&shader, good).unwrap();
    assert_eq!(code(&["run", out]).0, 0);
    std::fs::remove_file(&shader).unwrap();
    let (status, text) = code(&["run", out]);
    assert!(status == 2 && text.contains("swiglu.wgsl"), "{status}: {text}");

    let refused = [
        (&["--layer", "0", "--stage", "expert_akt"][..], "nearest: expert_act"),
        (&["--layer", "0", "--stage", "qkv_matmul"], "one of q_proj, k_proj, v_proj"),
        (&["--layer", "0", "--stage", "ffn_gate"], "no such stage"),
        (&["--layer", "4", "--stage", "q_proj"], "layers 0 to 3"),
        (&["--stage", "q_proj"], "--layer is needed"),
        (&["--layer", "0", "--stage", "logits"], "belongs to no layer"),
        (&["--layer", "0", "--stage", "q_proj", "--expert", "1"], "no rows of single experts"),
        (&["--layer", "0", "--stage", "expert_act", "--expert", "8"], "experts 0 to 7"),
        (&["--layer", "0", "--stage", "q_proj", "--position", "1000"], "--position 1000"),
        (&["--layer", "0", "--stage", "q_proj", "--subject", "tpu"], "unknown backend"),
        (&["--layer", "0"], "--stage"),
    ];
    for (args, what) in refused {
        let (status, text) = code(&[args, &["--out", dir.path().join("none").to_str().unwrap()]].concat());
        assert!(status == 2 && text.contains(what), "{args:?}: {status}: {text}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else was written");
}

/// Folders are sent around, and outlive the version that wrote them: what one holds is read and written without a loss and runs, and
/// shaders for other parameters than today's kernels take are refused by name, not run.
#[test]
fn folders_of_an_earlier_version_are_read() {
    let folder = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/repro_folders").join(name);
    let run = |name: &str, subject: &[&str]| {
        let dir = folder(name);
        twinscope(&[&["run", dir.to_str().unwrap()], subject].concat())
    };
    for name in ["attn_context", "expert_down"] {
        let text = std::fs::read_to_string(folder(name).join("manifest.json")).unwrap();
        let json: Json = serde_json::from_str(&text).unwrap();
        let manifest: ReproManifest = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&manifest).unwrap(), json);
        let right = run(name, &["--subject", "cpu:scalar"]);
        assert_eq!(right.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&right.stderr));
    }
    for (name, kernel, words) in [("attn_context", "copy", 5), ("expert_down", "expert_plan", 4)] {
        let other = run(name, &["--subject", "gpu"]);
        let said = String::from_utf8_lossy(&other.stderr);
        let expected = format!(
            "shaders/{kernel}.wgsl takes {words} words of parameters where, in this version, its kernel {kernel} takes"
        );
        assert!(other.status.code() == Some(125) && said.contains(&expected), "{said}");
        assert_eq!(run(name, &["--subject", "gpu", "--shaders", "built-in"]).status.code(), Some(0));
    }
}
