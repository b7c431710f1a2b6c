//! Each reader of untrusted files as a function of bytes, and the bytes to begin with. A reader may refuse; whatever else it does but
//! return, a panic, a hang or an allocation that the input does not pay for, is a finding.
//!
//! Readers of directories get one file: the first byte says which, the rest is what it holds. Everything else is as it should be.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use tempfile::TempDir;
use twinscope::gguf::{self, Array, Gguf, Metadata, TensorSpec, Value};
use twinscope::model::{Model, check_bytes};
use twinscope::trace::import::{ImportOptions, Importer, import};
use twinscope::trace::store::file::TensorFile;
use twinscope::trace::store::{MANIFEST, Trace};

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    // Of the package itself where these functions are part of its tests, of `fuzz` beside it otherwise.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    [package.join(path), package.join("..").join(path)].into_iter().find(|path| path.exists()).expect("a repository")
}

/// A place for files that costs nothing, where there is one.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a place for files")
}

/// A directory whose files are replaced one at a time.
pub struct Replaced {
    dir: TempDir,
    /// In order of their names.
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Replaced {
    /// What `fill` puts into a new directory.
    fn new(fill: impl FnOnce(&Path)) -> Self {
        let dir = scratch();
        let place = dir.path().join("files");
        fs::create_dir(&place).expect("a directory");
        fill(&place);
        let mut files = Vec::new();
        list(&place, &mut files);
        files.sort();
        Self { dir, files }
    }

    /// What is replaced.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    /// Somewhere else.
    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Runs `read` while one file holds what the input says.
    fn with(&self, input: &[u8], read: impl FnOnce(&Self)) {
        let Some((which, bytes)) = input.split_first() else { return };
        let (file, original) = &self.files[usize::from(*which) % self.files.len()];
        fs::write(file, bytes).expect("a file can be replaced");
        read(self);
        fs::write(file, original).expect("a file can be put back");
    }

    /// Inputs that replace each file by itself.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        // Files beyond what a byte can say, or of more bytes than mutations get anywhere with, stay as they are.
        let small = |(i, (_, bytes)): (usize, &(PathBuf, Vec<u8>))| {
            (i < 256 && bytes.len() <= 1 << 14).then(|| [&[i as u8][..], bytes].concat())
        };
        self.files.iter().enumerate().filter_map(small).collect()
    }
}

fn list(dir: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => list(&path, files),
            false => files.push((path.clone(), fs::read(&path).expect("a file"))),
        }
    }
}

/// Copies a directory of the repository.
pub fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory") {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).expect("an entry");
        match path.is_dir() {
            true => {
                fs::create_dir_all(to.join(&name)).expect("a directory");
                copy(&path, &to.join(&name));
            }
            false => drop(fs::copy(&path, to.join(&name)).expect("a file can be copied")),
        }
    }
}

thread_local! {
    // Removed when the thread ends.
    static DIRECTORIES: RefCell<HashMap<&'static str, Rc<Replaced>>> = RefCell::default();
}

/// The directory of a target, made by `fill` when a thread first needs it.
pub fn directory(target: &'static str, fill: impl FnOnce(&Path)) -> Rc<Replaced> {
    let made = DIRECTORIES.with_borrow(|all| all.get(target).cloned());
    made.unwrap_or_else(|| {
        let made = Rc::new(Replaced::new(fill));
        DIRECTORIES.with_borrow_mut(|all| all.insert(target, made.clone()));
        made
    })
}

impl Replaced {
    /// As [`Self::with`], for whoever reads the directory alone.
    pub fn read(&self, input: &[u8], read: impl FnOnce(&Path)) {
        self.with(input, |this| read(&this.path()));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// GGUF

/// A GGUF file, looked at in everything that it says.
pub fn gguf(data: &[u8]) {
    let checked = check_bytes("fuzzed.gguf", Arc::new(data.to_vec()));
    assert!(checked.found.all().len() < 200, "a list of findings that nobody reads");
    let Ok(file) = checked.gguf else { return };
    for (key, value) in file.metadata.iter() {
        let _ = (value.to_string(), file.metadata.u32(key), file.metadata.i32_array(key), file.metadata.str(key));
    }
    for tensor in file.tensors() {
        assert_eq!(file.data(tensor).len() as u64, tensor.bytes);
    }
    file.fingerprint();
}

/// The model in a GGUF file: keys, shapes, the tokenizer.
pub fn model(data: &[u8]) {
    let Ok(file) = Gguf::from_bytes("fuzzed.gguf", Arc::new(data.to_vec())) else { return };
    if let Ok(model) = Model::from_gguf(file) {
        let _ = (model.needs(), model.tokenizer());
    }
}

fn families() -> Vec<PathBuf> {
    let dir = fs::read_dir(repository("tests/families")).expect("families");
    let mut paths: Vec<PathBuf> = dir.map(|entry| entry.expect("a file").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "gguf"));
    paths.sort();
    paths
}

/// The families' files.
pub fn model_seeds() -> Vec<Vec<u8>> {
    families().iter().map(|path| fs::read(path).expect("a family's file")).collect()
}

/// The keys and tensors of the families' files, arrays cut to a few elements and tensors to a row; the files that are small as they are.
pub fn gguf_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for path in families() {
        let bytes = fs::read(&path).expect("a family's file");
        let whole = Gguf::open(&path).expect("a family's file");
        if bytes.len() <= 1 << 14 {
            seeds.push(bytes);
        }
        let mut metadata = Metadata::new("seed.gguf");
        for (key, value) in whole.metadata.iter() {
            metadata.set(key, cut(value.clone()));
        }
        // Of each kind of layer one, so that the seed is small; then it is a model no longer, but for the reader it is a file.
        let first = |name: &str| !name.starts_with("blk.") || name.starts_with("blk.0.");
        let specs: Vec<TensorSpec> = whole
            .tensors()
            .iter()
            .filter(|t| first(&t.name))
            .map(|t| TensorSpec::new(&t.name, t.ty, &[t.ty.block_len() as u64, 1]))
            .collect();
        let mut seed = Vec::new();
        let zeros = |t: &TensorSpec, sink: &mut gguf::Sink<'_>| sink.put(&vec![0; t.bytes()? as usize]);
        gguf::write_to(&mut seed, &metadata, &specs, zeros).expect("a seed");
        seeds.push(seed);
    }
    seeds
}

fn cut(value: Value) -> Value {
    const KEPT: usize = 4;
    match value {
        Value::Array(Array::String(mut v)) => {
            v.truncate(KEPT);
            Value::Array(Array::String(v))
        }
        Value::Array(Array::F32(mut v)) => {
            v.truncate(KEPT);
            Value::Array(Array::F32(v))
        }
        Value::Array(Array::I32(mut v)) => {
            v.truncate(KEPT);
            Value::Array(Array::I32(v))
        }
        other => other,
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// safetensors

/// A safetensors file, every tensor of it.
pub fn safetensors(data: &[u8]) {
    let place = directory("safetensors", |dir| fs::write(dir.join("f.safetensors"), []).expect("a file"));
    let path = place.path().join("f.safetensors");
    fs::write(&path, data).expect("a file");
    if let Ok(mut file) = TensorFile::open(&path) {
        for key in file.keys() {
            let _ = (file.info(&key).is_some(), file.metadata(&key).is_some(), file.read(&key).is_ok());
        }
    }
}

/// The tensors of a repro folder, and a file of each type of values.
pub fn safetensors_seeds() -> Vec<Vec<u8>> {
    let folders =
        ["attn_context", "expert_down"].map(|name| format!("tests/data/repro_folders/{name}/tensors.safetensors"));
    let mut seeds: Vec<Vec<u8>> =
        folders.iter().map(|path| fs::read(repository(path)).expect("a folder's file")).collect();
    for (ty, bytes) in
        [("F64", 8), ("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("I32", 4), ("U32", 4), ("BOOL", 1)]
    {
        let header = format!(r#"{{"a":{{"dtype":"{ty}","shape":[2,3],"data_offsets":[0,{}]}}}}"#, 6 * bytes);
        seeds.push([&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![1; 6 * bytes]].concat());
    }
    seeds
}

// ---------------------------------------------------------------------------------------------------------------------
// Traces of other programs, and this one's

fn imported(kind: Importer, path: PathBuf, out: &Path) {
    let options = ImportOptions { tokens: None, contract: None, rules: None, model: None, force: true };
    if import(kind, &[path], &options, out).is_ok() {
        // What was taken over is a trace.
        read_trace(out).expect("what an importer writes is read");
    }
}

/// One file of a kind that is imported alone.
fn file_of(kind: Importer, target: &'static str, name: &str, data: &[u8]) {
    let place = directory(target, |dir| fs::write(dir.join(name), []).expect("a file"));
    let path = place.path().join(name);
    fs::write(&path, data).expect("a file");
    imported(kind, path, &place.out());
}

/// A capture: names of stages, of llama.cpp's nodes or of transformers' modules, and a header.
pub fn capture(data: &[u8]) {
    file_of(Importer::Capture, "capture", "f.safetensors", data);
}

/// Two tensors by each kind of name, with and without a header; and a capture of transformers.
pub fn capture_seeds() -> Vec<Vec<u8>> {
    let values = |name: &str, shape: &str, bytes: usize, at: usize| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{at},{}]}}"#, at + bytes)
    };
    let run = r#""{\"schema\":\"twinscope.capture/1\",\"engine\":\"a\",\"engine_version\":\"1\",\"device\":\"\",\"command\":\"\",\"model\":{},\"tokens\":[1,2]}""#;
    let mut seeds = vec![fs::read(repository("tests/data/captures/transformers-bf16.safetensors")).expect("a capture")];
    for names in
        [["embedding", "layers.0.attn_norm"], ["inp_embd", "l_out-0"], ["model.embed_tokens", "model.layers.0"]]
    {
        let tensors = [values(names[0], "[2,4]", 32, 0), values(names[1], "[2,4]", 32, 32)].join(",");
        for header in
            [format!("{{{tensors}}}"), format!(r#"{{"__metadata__":{{"twinscope.capture":{run}}},{tensors}}}"#)]
        {
            seeds.push([&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 64]].concat());
        }
    }
    seeds
}

/// A .npz file.
pub fn npz(data: &[u8]) {
    file_of(Importer::Npz, "npz", "f.npz", data);
}

/// Those of the tests: stored and deflated.
pub fn npz_seeds() -> Vec<Vec<u8>> {
    ["stored", "deflated", "big-id"]
        .map(|name| fs::read(repository(&format!("tests/data/{name}.npz"))).expect("a file"))
        .into()
}

fn aprt_directory() -> Rc<Replaced> {
    directory("aprt", |dir| copy(&repository("tests/data/aprt"), dir))
}

/// A directory of aprender's, of which one file is replaced.
pub fn aprt(data: &[u8]) {
    aprt_directory().with(data, |place| imported(Importer::Aprt, place.path(), &place.out()));
}

/// Its files.
pub fn aprt_seeds() -> Vec<Vec<u8>> {
    aprt_directory().seeds()
}

fn trace_directory() -> Rc<Replaced> {
    directory("trace", |dir| {
        let options = ImportOptions { tokens: None, contract: None, rules: None, model: None, force: true };
        let from = repository("tests/data/aprt");
        // The directory is there already, which an importer would take for somebody's.
        fs::remove_dir(dir).expect("an empty directory");
        import(Importer::Aprt, &[from], &options, dir).expect("the repository's trace is imported");
        let path = dir.join(MANIFEST);
        let manifest = fs::read(&path).expect("a manifest");
        fs::write(&path, anywhere(&manifest)).expect("a manifest");
    })
}

/// A manifest as it would be written at any time, by any command, on any machine: inputs made of it are the same everywhere.
fn anywhere(manifest: &[u8]) -> Vec<u8> {
    let mut manifest: serde_json::Value = serde_json::from_slice(manifest).expect("a manifest");
    let environment = &mut manifest["environment"];
    for text in ["program", "build", "date", "command"] {
        environment[text] = text.into();
    }
    environment["machine"] = serde_json::json!({
        "processor": "a processor", "cores": 2, "memory_bytes": 1 << 30, "system": "a system", "adapters": [],
    });
    environment["models"] = serde_json::json!([]);
    manifest["imported"]["path"] = "aprt".into();
    serde_json::to_vec_pretty(&manifest).expect("a manifest")
}

fn read_trace(dir: &Path) -> twinscope::Result<()> {
    let trace = Trace::open(dir)?;
    for (site, _) in trace.tensors() {
        trace.tensor(site)?;
    }
    for layer in 0..4 {
        trace.expert_rows(layer)?;
    }
    Ok(())
}

/// A trace directory, of which the manifest or a file of tensors is replaced.
pub fn trace(data: &[u8]) {
    trace_directory().read(data, |dir| drop(read_trace(dir)));
}

/// Its files.
pub fn trace_seeds() -> Vec<Vec<u8>> {
    trace_directory().seeds()
}
