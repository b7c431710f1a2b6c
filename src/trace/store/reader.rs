//! Reading a trace that somebody else may have written.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use super::file::TensorFile;
use super::{MANIFEST, Run, SCHEMA, TraceManifest, TraceTensor, expert_rows_key, file_name, site_of};
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::model::tokens_sha256;
use crate::op::{HostTensor, Site, Stage};
use crate::trace::select::{Ranges, has_expert_rows};
use crate::trace::{MOST_EXPERTS, MOST_LAYERS, MOST_POSITIONS};

/// A trace directory, checked.
pub struct Trace {
    dir: PathBuf,
    manifest: TraceManifest,
    tensors: BTreeMap<Site, Stored>,
    files: RefCell<BTreeMap<String, TensorFile>>,
    /// How many experts a layer has: no more than the manifest states and than the router's values have columns.
    experts: usize,
}

/// What is known of a stored tensor before its values are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// `f32`, `f64` or `u32`.
    pub dtype: String,
    /// As the stage table says, with `T` the positions below; or `[rows, F or H]` where `limited`.
    pub shape: Vec<usize>,
    /// Which positions the rows are.
    pub positions: Ranges,
    /// Rows were kept of some experts only; [`Trace::expert_rows`] says which rows these are.
    pub limited: bool,
}

impl Trace {
    /// Opens the trace in `dir` and checks its manifest and the headers of its files against the stage table and each other.
    ///
    /// # Errors
    /// [`Error::Input`] naming the file and what does not fit.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let wrong = |what: String| Error::input(format!("{}: {what}", path.display()));
        let json: serde_json::Value = FileKind::TRACE_MANIFEST.read_json(&path)?;
        match json.get("schema").and_then(|s| s.as_str()) {
            Some(SCHEMA) => {}
            Some(other) => return Err(wrong(format!("schema {SCHEMA:?} expected, found {other:?}"))),
            None => return Err(wrong(format!("schema {SCHEMA:?} expected, found none"))),
        }
        let manifest: TraceManifest = serde_json::from_value(json).map_err(|e| wrong(e.to_string()))?;
        if manifest.run.prompt_tokens > manifest.run.tokens.len() {
            let (prompt, all) = (manifest.run.prompt_tokens, manifest.run.tokens.len());
            return Err(wrong(format!("{prompt} prompt tokens of {all} tokens")));
        }
        let of_prompt = tokens_sha256(&manifest.run.tokens[..manifest.run.prompt_tokens]);
        if let Some(stated) = manifest.run.tokens_sha256.as_ref().filter(|stated| **stated != of_prompt) {
            return Err(wrong(format!(
                "tokens_sha256 {of_prompt} expected, which is that of its prompt's tokens, found {stated:?}"
            )));
        }
        for (op, contract) in &manifest.run.contracts {
            contract.check().map_err(|what| wrong(format!("contract of {op}: {what}")))?;
        }
        for row in &manifest.statistics {
            site_of(row.layer, &row.stage)
                .ok_or_else(|| wrong(format!("statistics of {} in layer {:?}: no such stage", row.stage, row.layer)))?;
        }
        let experts = stated_sizes(&manifest.run).map_err(wrong)?;
        let mut trace = Self {
            dir: dir.into(),
            tensors: BTreeMap::new(),
            files: RefCell::default(),
            manifest: manifest.clone(),
            experts: experts.unwrap_or(MOST_EXPERTS),
        };
        for entry in &manifest.tensors {
            let name = file_name(entry.layer);
            let mut files = trace.files.borrow_mut();
            let file = dir.join(&name);
            if let Entry::Vacant(entry) = files.entry(name) {
                entry.insert(TensorFile::open(&file)?);
            }
            drop(files);
            let (site, stored) = trace.check(entry).map_err(|what| wrong(format!("tensor {}: {what}", entry.key)))?;
            if matches!(site.stage, Stage::RouterLogits | Stage::RouterBias | Stage::RouterProbs | Stage::RouterChoice)
            {
                trace.experts = trace.experts.min(stored.shape[1]);
            }
            if trace.tensors.insert(site, stored).is_some() {
                return Err(wrong(format!("tensor {} is listed twice", entry.key)));
            }
        }
        Ok(trace)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// What it says of itself.
    pub fn manifest(&self) -> &TraceManifest {
        &self.manifest
    }
    /// How many experts a layer has at most: as the manifest or the router's values say, or the most that any model has.
    pub fn experts(&self) -> usize {
        self.experts
    }
    /// The trace, held to a model of so many experts.
    pub fn of_experts(self, experts: usize) -> Self {
        Self { experts: self.experts.min(experts), ..self }
    }
    /// What is stored, whole-model stages first, then layer by layer in order of execution.
    pub fn tensors(&self) -> impl Iterator<Item = (Site, &Stored)> {
        self.tensors.iter().map(|(site, stored)| (*site, stored))
    }
    /// What is saved of `site`.
    pub fn stored(&self, site: Site) -> Option<&Stored> {
        self.tensors.get(&site)
    }

    /// The values of `site`; `None` if the trace does not have them.
    ///
    /// # Errors
    /// If the file has become unreadable, an id is that of no expert, or memory runs out.
    pub fn tensor(&self, site: Site) -> Result<Option<HostTensor>> {
        let Some(stored) = self.tensors.get(&site) else { return Ok(None) };
        let values = self.read(&file_name(site.layer), &site.key())?;
        if site.stage.is_ids()
            && let Some((row, id)) = values.id_beyond(self.experts)
        {
            let position = stored.positions.iter().nth(row).unwrap_or(row);
            return Err(Error::input(format!(
                "{}: {}: position {position}: an expert id below {} expected, found {id}",
                self.dir.join(file_name(site.layer)).display(),
                site.key(),
                self.experts
            )));
        }
        Ok(Some(values))
    }

    /// `[position, slot, expert]` of each row of `layer`'s expert tensors, where rows were kept of some experts only.
    pub fn expert_rows(&self, layer: u32) -> Result<Option<Vec<[u32; 3]>>> {
        let limited = self.tensors.iter().any(|(site, s)| site.layer == Some(layer) && s.limited);
        if !limited {
            return Ok(None);
        }
        let rows = self.read(&file_name(Some(layer)), &expert_rows_key(layer))?;
        Ok(Some(rows.ids().as_chunks::<3>().0.to_vec()))
    }

    fn read(&self, file: &str, key: &str) -> Result<HostTensor> {
        let mut files = self.files.borrow_mut();
        let file = files.get_mut(file).expect("a tensor that was checked has an open file");
        file.read(key)
    }

    /// Holds an entry of the manifest against the stage table and its file.
    fn check(&self, entry: &TraceTensor) -> Result<(Site, Stored), String> {
        let site = site_of(entry.layer, &entry.stage)
            .ok_or_else(|| format!("stage {} in layer {:?}: no such stage", entry.stage, entry.layer))?;
        if entry.key != site.key() {
            return Err(format!("its layer and stage make the key {}", site.key()));
        }
        let name = file_name(site.layer);
        if entry.file != name {
            return Err(format!("in file {:?}, where {name:?} is expected", entry.file));
        }
        let fits = match site.stage.is_ids() {
            true => entry.dtype == "u32",
            false => entry.dtype == "f32" || entry.dtype == "f64",
        };
        if !fits {
            return Err(format!("type {:?} does not suit the stage", entry.dtype));
        }
        if let Some(n) = site.layer.filter(|n| *n >= MOST_LAYERS) {
            return Err(format!("layer {n}: a layer below {MOST_LAYERS} expected"));
        }
        // Rows without values would be as many as one likes in a file of no length.
        if entry.shape.iter().skip(entry.rows.is_some().into()).any(|n| *n == 0) {
            return Err(format!("shape {:?}: one or more values expected", entry.shape));
        }
        let tokens = self.manifest.run.tokens.len();
        let n = if tokens == 0 { MOST_POSITIONS } else { tokens };
        let positions = Ranges::parse(&entry.positions, n).map_err(|e| e.to_string())?;
        let dims = site.stage.info().shape;
        let limited = entry.rows.is_some();
        if limited {
            let key = site.layer.filter(|_| has_expert_rows(site.stage)).map(expert_rows_key);
            if entry.rows != key || entry.shape.len() != 2 {
                return Err(format!(
                    "rows {:?} of shape {:?}; only expert stages have rows of their own",
                    entry.rows, entry.shape
                ));
            }
        } else {
            let axis = site.stage.position_axis();
            if entry.shape.len() != dims.len() || entry.shape[axis] != positions.count() {
                return Err(format!(
                    "shape {:?} where {dims:?} with {} positions is expected",
                    entry.shape,
                    positions.count()
                ));
            }
        }
        let files = self.files.borrow();
        let file = &files[&name];
        let agree = |key: &str, dtype: &str, shape: &[usize]| {
            let info = file.info(key).ok_or_else(|| format!("{name} has no {key}"))?;
            let found = format!("{:?}", info.dtype).to_lowercase();
            if found != dtype || info.shape != shape {
                return Err(format!(
                    "{name} has {key} as {found} {:?}, the manifest says {dtype} {shape:?}",
                    info.shape
                ));
            }
            Ok(())
        };
        agree(&entry.key, &entry.dtype, &entry.shape)?;
        if let Some(rows) = &entry.rows {
            agree(rows, "u32", &[entry.shape[0], 3])?;
        }
        Ok((site, Stored { dtype: entry.dtype.clone(), shape: entry.shape.clone(), positions, limited }))
    }
}

/// How many experts a layer of the model has, where the manifest states it.
///
/// # Errors
/// A number of layers or experts that no model has: whoever reads the trace makes room for as many.
fn stated_sizes(run: &Run) -> Result<Option<usize>, String> {
    let sizes = &run.model.hyperparameters;
    let moe = |key: &str| sizes.get("moe").and_then(|moe| moe.get(key));
    let stated = |found: Option<&serde_json::Value>, key: &str, most: u64| match found {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(n) => match n.as_u64() {
            Some(found) if found <= most => Ok(Some(found as usize)),
            _ => Err(format!("hyperparameters: {key} of at most {most} expected, found {n}")),
        },
    };
    stated(sizes.get("layers"), "layers", MOST_LAYERS.into())?;
    stated(moe("used"), "used", MOST_EXPERTS as u64)?;
    stated(moe("experts"), "experts", MOST_EXPERTS as u64)
}
