//! A directory of aprender's `apr trace --save-tensor`: `layer-N/STAGE.bin` and `trace.json`.
//!
//! A .bin file is the magic `APRT`, u32 layer, u32 count, then as many f32, all little-endian: the row of the last token.
//! Expert ids come as f32. `trace.json` has the tokens, and statistics that this program makes itself.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{About, Item, Source};
use crate::error::{Error, Result};
use crate::files::{FileKind, is_there, open_regular};
use crate::op::HostTensor;

const HEADER: u64 = 12;

pub struct Aprt {
    about: About,
    items: Vec<Item>,
    paths: Vec<PathBuf>,
}

/// The part of trace.json that is used.
#[derive(serde::Deserialize)]
struct Json {
    #[serde(default)]
    architecture: String,
    prompt: Option<String>,
    #[serde(default)]
    encoded_tokens: Vec<u32>,
}

impl Aprt {
    pub fn open(dir: &Path) -> Result<Self> {
        let mut about = About { program: "aprender".into(), last_row_only: true, ..About::default() };
        let json = dir.join("trace.json");
        if is_there(&json)? {
            let parsed: Json = FileKind::APRT_JSON.read_json(&json)?;
            about.architecture = parsed.architecture;
            about.prompt = parsed.prompt;
            about.tokens = parsed.encoded_tokens;
            about.other.push("trace.json: its statistics; those of the tensors are made anew".into());
        } else {
            about.other.push("trace.json: not there, so no tokens".into());
        }
        let mut found = Vec::new();
        for entry in sorted(dir)? {
            let name = file_name(&entry);
            if entry.is_dir() {
                for path in sorted(&entry)? {
                    let file = file_name(&path);
                    match file.strip_suffix(".bin") {
                        Some(stage) => found.push((format!("{name}/{stage}"), path)),
                        None => about.other.push(format!("{name}/{file}: not a .bin file")),
                    }
                }
            } else if let Some(stage) = name.strip_suffix(".bin") {
                found.push((stage.to_string(), entry));
            } else if name != "trace.json" {
                about.other.push(format!("{name}: neither a layer's directory nor a .bin file"));
            }
        }
        let (mut items, mut paths) = (Vec::new(), Vec::new());
        for (label, path) in found {
            let count = open(&path, &label)?.1;
            items.push(Item { label, shape: vec![count], ..Item::default() });
            paths.push(path);
        }
        Ok(Self { about, items, paths })
    }
}

/// The file behind its header, and the number of values in it.
fn open(path: &Path, label: &str) -> Result<(File, usize)> {
    let wrong = |what: String| Error::input(format!("{}: {what}", path.display()));
    let mut file = open_regular(path, "a file of values")?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut header = [0; HEADER as usize];
    file.read_exact(&mut header).map_err(|_| wrong(format!("{length} bytes, an APRT header has {HEADER}")))?;
    let word = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
    if header[..4] != *b"APRT" {
        return Err(wrong(format!("the magic APRT expected, found {:?}", String::from_utf8_lossy(&header[..4]))));
    }
    let (layer, count) = (word(4), word(8) as u64);
    let directory = label.strip_prefix("layer-").and_then(|l| l.split_once('/')).map(|(n, _)| n);
    if directory.is_some_and(|n| n != layer.to_string()) {
        return Err(wrong(format!("its header says layer {layer}")));
    }
    if length != HEADER + 4 * count {
        return Err(wrong(format!("{length} bytes where {count} values need {}", HEADER + 4 * count)));
    }
    Ok((file, count as usize))
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    let paths: std::io::Result<Vec<_>> = entries.map(|e| e.map(|e| e.path())).collect();
    let mut paths = paths.map_err(|e| Error::io(dir, e))?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Source for Aprt {
    fn about(&self) -> &About {
        &self.about
    }
    fn items(&self) -> &[Item] {
        &self.items
    }
    fn read(&mut self, i: usize) -> Result<HostTensor> {
        let path = &self.paths[i];
        let (mut file, count) = open(path, &self.items[i].label)?;
        file.seek(SeekFrom::Start(HEADER)).map_err(|e| Error::io(path, e))?;
        let mut bytes = Vec::new();
        file.take(4 * count as u64).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        if bytes.len() != 4 * count {
            return Err(Error::input(format!("{}: it changed while it was read", path.display())));
        }
        Ok(HostTensor::f32(&[count], bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
    }
}
