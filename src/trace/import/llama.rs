//! Logits of llama.cpp's llama-debug: `NAME.bin`, f32, with `NAME-tokens.bin`, i32, and `NAME-prompt.txt` beside it.
//!
//! - The logits are the last token's, so the vocabulary is as long as the file. The text file starts with `prompt: TEXT`.
//! - No file says what it is, and any bytes are numbers. So the name has to be that of logits, and the values have to be
//!   such as logits are: token ids and text, read as f32, are recognised and refused.

use std::path::{Path, PathBuf};

use super::{About, Item, Source};
use crate::error::{Error, Result};
use crate::files::{FileKind, is_there};
use crate::op::HostTensor;

const TOKENS: &str = "-tokens";

pub struct Logits {
    about: About,
    items: Vec<Item>,
    values: Vec<f32>,
}

impl Logits {
    /// Reads `path`, or the only `.bin` file with a `-tokens.bin` in the directory `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { only_pair(path)? } else { path.to_path_buf() };
        let wrong = |path: &Path, what: String| Error::input(format!("{}: {what}", path.display()));
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_none_or(|e| e != "bin") || stem.ends_with(TOKENS) {
            let found = if stem.ends_with(TOKENS) { "that of token ids" } else { "another ending" };
            return Err(wrong(&path, format!("the name of logits, NAME.bin, expected, found {found}")));
        }
        let bytes = FileKind::LLAMA_DEBUG.read(&path)?;
        let values = words(&path, &bytes)?.into_iter().map(f32::from_bits).collect::<Vec<_>>();
        if let Some(what) = other_than_logits(&bytes, &values) {
            return Err(wrong(&path, format!("logits (f32) expected, found {what}")));
        }
        let mut about =
            About { model: stem.clone(), program: "llama.cpp".into(), last_row_only: true, ..About::default() };
        let beside = path.with_file_name(format!("{stem}{TOKENS}.bin"));
        if is_there(&beside)? {
            for (position, word) in words(&beside, &FileKind::LLAMA_DEBUG.read(&beside)?)?.into_iter().enumerate() {
                // A vocabulary has as many ids as there are logits.
                if word as usize >= values.len() {
                    return Err(wrong(
                        &beside,
                        format!(
                            "position {position}: a token id below {}, the number of logits, expected, found {}",
                            values.len(),
                            word as i32
                        ),
                    ));
                }
                about.tokens.push(word);
            }
        } else {
            about.other.push(format!("{}: not there, so no tokens", beside.display()));
        }
        let prompt = path.with_file_name(format!("{stem}-prompt.txt"));
        if is_there(&prompt)? {
            let text = FileKind::LLAMA_DEBUG.read_text(&prompt)?;
            // The prompt may have lines of its own: it ends where the next entry starts.
            about.prompt = (text.strip_prefix("prompt: "))
                .and_then(|rest| rest.rsplit_once("\nn_tokens:"))
                .map(|(prompt, _)| prompt.to_string());
            if about.prompt.is_none() {
                about.other.push(format!("{}: not `prompt: TEXT` and `n_tokens:`, so no prompt", prompt.display()));
            }
        } else {
            about.other.push(format!("{}: not there, so no prompt", prompt.display()));
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

/// The 4-byte words of a file.
fn words(path: &Path, bytes: &[u8]) -> Result<Vec<u32>> {
    let (words, rest) = bytes.as_chunks::<4>();
    if words.is_empty() || !rest.is_empty() {
        let length = bytes.len();
        return Err(Error::input(format!(
            "{}: one or more words of 4 bytes expected, found {length} bytes",
            path.display()
        )));
    }
    Ok(words.iter().map(|b| u32::from_le_bytes(*b)).collect())
}

/// What the bytes are, where they cannot be logits. NaN and infinities may be a fault of the engine, and are no sign of
/// another kind of file; neither are zeros.
fn other_than_logits(bytes: &[u8], values: &[f32]) -> Option<&'static str> {
    let numbers = || values.iter().filter(|x| x.is_finite() && **x != 0.0);
    if numbers().next().is_some() && numbers().all(|x| x.is_subnormal()) {
        return Some("whole numbers (i32), such as token ids");
    }
    if std::str::from_utf8(bytes).is_ok_and(|text| text.chars().all(|c| !c.is_control() || c.is_whitespace())) {
        return Some("text");
    }
    // Of arbitrary bytes, one word in four is of such a size.
    let plausible = numbers().filter(|x| (1e-12..1e6).contains(&x.abs())).count();
    (2 * plausible < numbers().count()).then_some("bytes that are mostly no number of the size of a logit")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn error(name: &str, bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Logits::open(&path).map(|_| ()).unwrap_err().to_string().replace(&dir.path().display().to_string(), "DIR")
    }
    fn bytes<T: bytemuck::Pod>(values: &[T]) -> &[u8] {
        bytemuck::cast_slice(values)
    }

    #[test]
    fn what_is_not_logits_is_refused_by_its_name_or_its_bytes() {
        let name = "the name of logits, NAME.bin, expected, found";
        assert_eq!(error("run-tokens.bin", &[0; 8]), format!("DIR/run-tokens.bin: {name} that of token ids"));
        assert_eq!(error("run.txt", &[0; 8]), format!("DIR/run.txt: {name} another ending"));
        let logits = "DIR/run.bin: logits (f32) expected, found";
        let ids = error("run.bin", bytes(&[785, 0, 374, 151_643]));
        assert_eq!(ids, format!("{logits} whole numbers (i32), such as token ids"));
        assert_eq!(error("run.bin", b"prompt: 0123 0123.\nn_tokens: 3\n\n"), format!("{logits} text"));
        // Multiples of an odd number: every byte takes every value.
        let words: Vec<u32> = (1..5000u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let found = error("run.bin", bytes(&words));
        assert_eq!(found, format!("{logits} bytes that are mostly no number of the size of a logit"));
        assert_eq!(error("run.bin", &[0; 6]), "DIR/run.bin: one or more words of 4 bytes expected, found 6 bytes");
        assert_eq!(error("run.bin", &[]), "DIR/run.bin: one or more words of 4 bytes expected, found 0 bytes");
    }

    #[test]
    fn a_broken_engines_logits_are_logits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.bin");
        for values in [[f32::NAN; 4], [0.0; 4], [-3.5, f32::INFINITY, 0.25, 1e30]] {
            std::fs::write(&path, bytes(&values)).unwrap();
            assert_eq!(Logits::open(&path).unwrap().values.len(), 4);
        }
    }

    #[test]
    fn a_token_id_beyond_the_logits_is_no_token() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("run.bin"), bytes(&[1.5f32, -2.0, 0.5])).unwrap();
        let tokens = dir.path().join("run-tokens.bin");
        for (id, found) in [(3, "3"), (-1, "-1")] {
            std::fs::write(&tokens, bytes(&[0, 2, id])).unwrap();
            let error = Logits::open(dir.path()).map(|_| ()).unwrap_err().to_string();
            let what = "position 2: a token id below 3, the number of logits, expected, found";
            assert_eq!(error, format!("{}: {what} {found}", tokens.display()));
        }
        std::fs::write(&tokens, bytes(&[0, 2])).unwrap();
        assert_eq!(Logits::open(dir.path()).unwrap().about.tokens, [0, 2]);
    }
}
