//! Reading a repro folder that somebody else may have written, and may have edited the shaders of.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::case::FailingCall;
use super::manifest::{FileEntry, MANIFEST, ReproManifest, SCHEMA, TENSORS, TensorEntry, WEIGHT};
use super::verdict::RerunCheck;
use crate::backend::{Contract, Need};
use crate::error::{Error, Result};
use crate::files::{FileKind, open_regular};
use crate::formula::exact::exact;
use crate::formula::floor::floor_of;
use crate::op::{GgmlType, HostTensor, Scope, Site, Stage, Weight};
use crate::trace::store::file::TensorFile;

/// A folder, checked.
pub struct Folder {
    pub dir: PathBuf,
    pub manifest: ReproManifest,
    pub case: FailingCall,
    /// The oracle's result, the floors of the subject's contract, and what the subject made of it.
    pub exact: HostTensor,
    pub floor: Vec<f64>,
    pub subject: HostTensor,
    /// WGSL by kernel name, as it is in the folder now.
    pub shaders: BTreeMap<String, String>,
}

impl Folder {
    /// Opens the folder and holds what is in it against each other.
    ///
    /// # Errors
    /// [`Error::Input`] naming the file and what does not fit.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let wrong = |what: String| Error::input(format!("{}: {what}", path.display()));
        let json: serde_json::Value = FileKind::REPRO_MANIFEST.read_json(&path)?;
        match json.get("schema").and_then(|s| s.as_str()) {
            Some(SCHEMA) => {}
            Some(other) => return Err(wrong(format!("schema {SCHEMA:?} expected, found {other:?}"))),
            None => return Err(wrong(format!("schema {SCHEMA:?} expected, found none"))),
        }
        let manifest: ReproManifest = serde_json::from_value(json).map_err(|e| wrong(e.to_string()))?;
        for needed in [Some(TENSORS), manifest.weight.as_ref().map(|_| WEIGHT)].into_iter().flatten() {
            if !manifest.files.iter().any(|f| f.name == needed) {
                return Err(wrong(format!("{needed} is not among its files")));
            }
        }
        for file in &manifest.files {
            check_file(dir, file).map_err(|e| match e {
                Ok(e) => e,
                Err(what) => wrong(what),
            })?;
        }

        let stage = Stage::from_name(&manifest.stage)
            .filter(|stage| (stage.info().scope == Scope::Model) == manifest.layer.is_none());
        let stage =
            stage.ok_or_else(|| wrong(format!("{:?} in layer {:?}: no such stage", manifest.stage, manifest.layer)))?;
        let site = Site { layer: manifest.layer, stage };
        let contract = &manifest.subject.contract;
        contract.check().map_err(|what| wrong(format!("contract of the subject: {what}")))?;
        if manifest.head_dim == 0 {
            return Err(wrong("head_dim of 1 or more expected, found 0".into())); // columns are read as heads of so many
        }
        let names: Vec<&str> = manifest.inputs.iter().map(|t| t.name.as_str()).collect();
        if names != manifest.op.names() {
            return Err(wrong(format!("operands {names:?}, expected {:?}", manifest.op.names())));
        }
        let mut tensors = TensorFile::open(&dir.join(TENSORS))?;
        let mut read = |key: &str, entry: Option<&TensorEntry>| {
            let tensor = tensors.read(key)?;
            match entry {
                Some(e) if e.shape != tensor.shape || e.dtype != tensor.dtype() => Err(wrong(format!(
                    "{key} is {} {:?}, in {TENSORS} it is {} {:?}",
                    e.dtype,
                    e.shape,
                    tensor.dtype(),
                    tensor.shape
                ))),
                _ => Ok(tensor),
            }
        };
        let inputs: Result<Vec<HostTensor>> =
            manifest.inputs.iter().map(|e| read(&format!("input.{}", e.name), Some(e))).collect();
        let inputs = inputs?;
        let weight = manifest.weight.as_ref().map(|w| {
            let ty =
                GgmlType::from_name(&w.ty).ok_or_else(|| wrong(format!("weight type {:?}: no such type", w.ty)))?;
            let path = dir.join(WEIGHT);
            let bytes = FileKind::REPRO_WEIGHT.read(&path)?;
            let found = bytes.len();
            let weight = Weight::new(&w.name, ty, [w.cols, w.rows, w.experts], Arc::new(bytes), 0, w.file_offset)
                .and_then(|weight| if w.scales.is_empty() { Ok(weight) } else { weight.scaled(w.scales.clone()) })
                .map_err(|e| e.map(|what| format!("{}: {what}", path.display())))?;
            match weight.size() {
                expected if expected == found => Ok(weight),
                expected => Err(wrong(format!("{WEIGHT} has {found} bytes, {:?} {ty} has {expected}", weight.dims()))),
            }
        });
        let case = FailingCall::new(site, manifest.op, inputs, weight.transpose()?, manifest.kept.clone())
            .map_err(|e| wrong(e.to_string()))?;
        if !stage.is_made_by(case.op().kind()) {
            return Err(wrong(format!("{stage} is made by {:?}, not by {:?}", stage.info().op, case.op().kind())));
        }
        let (exact, floor, subject) =
            (read("oracle", None)?, read("floor", None)?, read("subject", Some(&manifest.output))?);
        for (name, tensor) in [("oracle", &exact), ("floor", &floor), ("subject", &subject)] {
            if tensor.shape != case.shape() {
                return Err(wrong(format!("{name} is {:?}, the operation gives {:?}", tensor.shape, case.shape())));
            }
        }
        let shaders = read_shaders(dir, &manifest, &wrong)?;
        Ok(Self { dir: dir.into(), floor: floor.to_f64(), manifest, case, exact, subject, shaders })
    }

    /// What a backend must be able to do to run it.
    pub fn needs(&self) -> Vec<Need> {
        let need = |w: &Arc<Weight>| Need {
            op: self.case.op().kind(),
            ty: w.ty,
            cols: w.cols,
            name: w.name.clone(),
            experts: None,
        };
        self.case.weight.iter().map(need).collect()
    }

    /// Judges `output` by the oracle, which computes the operation again: what the folder has must be the same. Under another contract
    /// than the folder's both the oracle's result and the floors are that contract's.
    ///
    /// # Errors
    /// [`Error::Input`] if the oracle's result or the floors are not what the operands give.
    pub fn judge(&self, contract: &Contract, output: HostTensor) -> Result<RerunCheck> {
        let stale = |what: &str, i: usize, found: f64, expected: f64| {
            Error::input(format!(
                "{}: {what} has {found:e} at {i} where the operands give {expected:e}",
                self.dir.join(TENSORS).display()
            ))
        };
        let op = self.case.op();
        let (of_folder, same) = (&self.manifest.subject.contract, self.same_contract(contract));
        let mut exact = exact(&op, of_folder).map_err(|e| Error::input(format!("{}: {e}", self.dir.display())))?;
        let mut floor = floor_of(&op, of_folder, &exact)?;
        // exp, sin and pow differ between machines by a few 2⁻⁵³; a thousandth of a floor is far above and changes no verdict.
        let close = |a: f64, b: f64, slack: f64| a == b || (a - b).abs() <= slack || (a.is_nan() && b.is_nan());
        for (i, (found, expected)) in self.exact.to_f64().into_iter().zip(exact.to_f64()).enumerate() {
            if !close(found, expected, 1e-3 * floor[i]) {
                return Err(stale("oracle", i, found, expected));
            }
        }
        if same {
            for (i, (found, expected)) in self.floor.iter().zip(&floor).enumerate() {
                if !close(*found, *expected, 1e-6 * expected.abs()) {
                    return Err(stale("floor", i, *found, *expected));
                }
            }
        } else {
            exact = crate::formula::exact::exact(&op, contract)?;
            floor = floor_of(&op, contract, &exact)?;
        }
        RerunCheck::against(&self.case, exact, floor, output)
    }

    /// Whether `contract` is the one that the folder's floors are derived from.
    pub fn same_contract(&self, contract: &Contract) -> bool {
        // Through JSON, as the folder's went: decimal numbers may be read one unit in the last place off.
        let text = serde_json::to_string(contract).ok();
        text.and_then(|t| serde_json::from_str::<Contract>(&t).ok()) == Some(self.manifest.subject.contract)
    }
}

/// A path inside the folder, from a name that may be anything.
fn inside(dir: &Path, name: &str) -> Result<PathBuf, String> {
    let plain = !name.is_empty() && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    if plain { Ok(dir.join(name)) } else { Err(format!("{name:?} is not the name of a file in the folder")) }
}

/// A file's length and hash. The outer error is about the file, the inner about the manifest's entry.
fn check_file(dir: &Path, entry: &FileEntry) -> Result<(), Result<Error, String>> {
    let path = inside(dir, &entry.name).map_err(Err)?;
    let io = |e| Ok(Error::io(&path, e));
    let mut file = open_regular(&path, "a file of the folder").map_err(Ok)?;
    let length = file.metadata().map_err(io)?.len();
    if length != entry.bytes {
        return Err(Err(format!("{} has {length} bytes, expected {}", entry.name, entry.bytes)));
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    match hex(&hash.finalize()) {
        found if found == entry.sha256 => Ok(()),
        found => Err(Err(format!("{} is damaged: SHA-256 {found}, expected {}", entry.name, entry.sha256))),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn read_shaders(
    dir: &Path,
    manifest: &ReproManifest,
    wrong: &dyn Fn(String) -> Error,
) -> Result<BTreeMap<String, String>> {
    let mut files: BTreeMap<&str, &str> = BTreeMap::new();
    for dispatch in &manifest.dispatches {
        match files.insert(&dispatch.kernel, &dispatch.shader) {
            Some(other) if other != dispatch.shader => {
                return Err(wrong(format!(
                    "kernel {} has two shaders, {other} and {}",
                    dispatch.kernel, dispatch.shader
                )));
            }
            _ => {}
        }
    }
    let mut shaders = BTreeMap::new();
    for (kernel, name) in files {
        let path = inside(dir, name).map_err(wrong)?;
        shaders.insert(kernel.to_string(), FileKind::SHADER.read_text(&path)?);
    }
    Ok(shaders)
}
