//! Logits of llama.cpp's llama-debug: `NAME.bin`, f32, with `NAME-tokens.bin`, i32, and `NAME-prompt.txt` beside it.
//!
//! The logits are the last token's, so the vocabulary is as long as the file. The text file starts with `prompt: TEXT`.

use std::path::{Path, PathBuf};

use super::{About, Item, Source};
use crate::error::{Error, Result};
use crate::op::HostTensor;

/// More than a million tokens of vocabulary, or of prompt, is no such file.
const MAX_BYTES: u64 = 4 << 20;

pub struct Logits {
    about: About,
    items: Vec<Item>,
    values: Vec<f32>,
}

impl Logits {
    /// Reads `path`, or the only `.bin` file with a `-tokens.bin` in the directory `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { only_pair(path)? } else { path.to_path_buf() };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let values = words(&path)?.into_iter().map(f32::from_bits).collect::<Vec<_>>();
        let mut about =
            About { model: stem.clone(), program: "llama.cpp".into(), last_row_only: true, ..About::default() };
        let beside = path.with_file_name(format!("{stem}-tokens.bin"));
        if beside.exists() {
            let ids = words(&beside)?.into_iter().map(|w| i32::try_from(w).map(|i| i as u32));
            let ids: std::result::Result<_, _> = ids.collect();
            about.tokens = ids.map_err(|_| Error::input(format!("{}: a negative token id", beside.display())))?;
        } else {
            about.other.push(format!("{}: not there, so no tokens", beside.display()));
        }
        let prompt = path.with_file_name(format!("{stem}-prompt.txt"));
        match std::fs::metadata(&prompt) {
            Ok(there) if there.len() <= MAX_BYTES => {
                let text = std::fs::read_to_string(&prompt).map_err(|e| Error::io(&prompt, e))?;
                // The prompt may have lines of its own: it ends where the next entry starts.
                about.prompt = (text.strip_prefix("prompt: "))
                    .and_then(|rest| rest.rsplit_once("\nn_tokens:"))
                    .map(|(prompt, _)| prompt.to_string());
            }
            _ => about.other.push(format!("{}: not there, so no prompt", prompt.display())),
        }
        let items = vec![Item { label: "logits".into(), shape: vec![values.len()], ..Item::default() }];
        Ok(Self { about, items, values })
    }
}

fn only_pair(dir: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(stem) = name.strip_suffix("-tokens.bin") {
            found.push(path.with_file_name(format!("{stem}.bin")));
        }
    }
    match &found[..] {
        [one] => Ok(one.clone()),
        _ => Err(Error::input(format!(
            "{}: {} pairs of NAME.bin and NAME-tokens.bin where one is expected; name the file",
            dir.display(),
            found.len()
        ))),
    }
}

/// A file of 4-byte words.
fn words(path: &Path) -> Result<Vec<u32>> {
    let length = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if length == 0 || length > MAX_BYTES || !length.is_multiple_of(4) {
        return Err(Error::input(format!(
            "{}: {length} bytes where a multiple of 4 up to {MAX_BYTES} is expected",
            path.display()
        )));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
}

impl Source for Logits {
    fn about(&self) -> &About {
        &self.about
    }
    fn items(&self) -> &[Item] {
        &self.items
    }
    fn read(&mut self, _: usize) -> Result<HostTensor> {
        Ok(HostTensor::f32(&[self.values.len()], self.values.clone()))
    }
}
