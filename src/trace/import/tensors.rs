//! safetensors files: a capture with its header, or any dump whose keys are names of stages, nodes or modules.
//!
//! A dump may be in several files: each is named, or a directory that has them, or the `*.safetensors.index.json` that lists
//! them. A key `NAME@CALL` is the value of one call of a run; without a header, calls are joined in their order. Of a file
//! without a header, the text entries `tokens`, `prompt`, `model` and `source` are read if there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::header::{CaptureHeader, KEY};
use super::{About, Item, Source, token_list};
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::op::HostTensor;
use crate::text::printable;
use crate::trace::store::file::TensorFile;

/// The most files of one dump.
const MAX_FILES: usize = 10_000;

pub struct Tensors {
    files: Vec<TensorFile>,
    about: About,
    items: Vec<Item>,
    /// For each item: its file, and its key there.
    places: Vec<(usize, String)>,
}

impl Tensors {
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let paths = files_of(paths)?;
        let mut about = About::default();
        let (mut files, mut items, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut keys: BTreeMap<String, PathBuf> = BTreeMap::new();
        for path in paths {
            let wrong = |what: String| Error::input(format!("{}: {what}", path.display()));
            let file = TensorFile::open(&path)?;
            let mut header = match file.metadata(KEY) {
                Some(text) => Some(CaptureHeader::parse(text).map_err(wrong)?),
                None => None,
            };
            let text = |key| file.metadata(key).unwrap_or_default().to_string();
            let here = match &mut header {
                Some(header) => About::of_capture(header),
                None => {
                    let mut here = About {
                        model: text("model"),
                        program: if text("source").is_empty() { text("engine") } else { text("source") },
                        prompt: Some(text("prompt")).filter(|p| !p.is_empty()),
                        ..About::default()
                    };
                    match token_list(&text("tokens")) {
                        Ok(tokens) => here.tokens = tokens,
                        Err(what) => here.other.push(format!("metadata tokens: {what}")),
                    }
                    here
                }
            };
            about.join(here).map_err(wrong)?;
            let mut here = file.keys();
            here.sort();
            for key in here {
                if let Some(first) = keys.insert(key.clone(), path.clone()) {
                    return Err(wrong(format!("{} is in {} already", printable(&key), first.display())));
                }
                let known = header.as_mut().and_then(|h| h.tensors.remove(&key)).unwrap_or_default();
                let shape = file.info(&key).map(|i| i.shape.clone()).unwrap_or_default();
                let (label, call) = match key.rsplit_once('@').and_then(|(label, n)| Some((label, n.parse().ok()?))) {
                    Some((label, call)) => (label.to_string(), Some(call)),
                    None => (key.clone(), None),
                };
                items.push(Item {
                    label,
                    shape,
                    call: known.call.or(call),
                    positions: known.positions,
                    op: known.op,
                    inputs: known.inputs,
                });
                places.push((files.len(), key));
            }
            if let Some(key) = header.and_then(|h| h.tensors.into_keys().next()) {
                return Err(wrong(format!("{KEY}: {}: no such tensor", printable(&key))));
            }
            files.push(file);
        }
        Ok(Self { files, about, items, places })
    }
}

impl Source for Tensors {
    fn about(&self) -> &About {
        &self.about
    }
    fn items(&self) -> &[Item] {
        &self.items
    }
    fn read(&mut self, i: usize) -> Result<HostTensor> {
        let (file, key) = &self.places[i];
        self.files[*file].read(key)
    }
}

/// The files that `paths` mean.
fn files_of(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = BTreeSet::new();
    for path in paths {
        let wrong = |what: String| Error::input(format!("{}: {what}", path.display()));
        if path.is_dir() {
            let before = files.len();
            for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
                let entry = entry.map_err(|e| Error::io(path, e))?.path();
                if entry.extension().is_some_and(|e| e == "safetensors") {
                    files.insert(entry);
                }
            }
            if files.len() == before {
                return Err(wrong("a directory with .safetensors files expected, found none in it".into()));
            }
        } else if path.to_string_lossy().ends_with(".index.json") {
            files.extend(listed(path)?);
        } else {
            files.insert(path.clone());
        }
        if files.len() > MAX_FILES {
            return Err(wrong(format!("at most {MAX_FILES} files expected")));
        }
    }
    Ok(files.into_iter().collect())
}

/// The files beside an index, `{"weight_map": {key: file}}`. Names of files are names, not paths.
fn listed(path: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let wrong = |what: String| Error::input(format!("{}: {what}", path.display()));
    let index: Index = FileKind::INDEX.read_json(path)?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if let Some(name) = names.iter().find(|n| n.contains(['/', '\\']) || n.starts_with('.') || n.is_empty()) {
        return Err(wrong(format!("the name of a file beside it expected, found {:?}", printable(name))));
    }
    Ok(names.into_iter().map(|name| path.with_file_name(name)).collect())
}
