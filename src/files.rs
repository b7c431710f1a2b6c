//! Reading files that somebody else wrote: regular files with an end, of a size that their kind has.
//!
//! - Whoever reads a small file whole reads it here. Its kind is a row below, which states the most bytes that such a file has.
//! - A pipe, a device or a link to one is refused before it is opened, and once more when it is open: neither waiting for a
//!   writer nor reading without end is possible.
//! - What is read is counted. The length that a file system states is believed for no more than the room that is made.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;
#[cfg(test)]
use std::path::PathBuf;

use crate::error::{Error, Result};

/// A kind of file that is read whole.
#[derive(Clone, Copy, Debug)]
pub struct FileKind {
    /// What it is called in messages, with its article.
    name: &'static str,
    /// The most bytes that one has.
    most: u64,
    /// Whether `-` is standard input.
    stdin: bool,
}

/// The kinds, and the most bytes that are read of each.
impl FileKind {
    /// `manifest.json` of a trace. That of 94 layers with every stage saved has 3 MB, a million tokens have 13.
    pub const TRACE_MANIFEST: Self = Self::new("a trace's manifest", 32 << 20);
    /// `manifest.json` of a repro folder, with the limits of an adapter and a dozen dispatches.
    pub const REPRO_MANIFEST: Self = Self::new("a repro folder's manifest", 32 << 20);
    /// `weight.bin` of a repro folder: one tensor.
    pub const REPRO_WEIGHT: Self = Self::new("a weight", 4 << 30);
    /// One kernel in WGSL, with what is put in front of it.
    pub const SHADER: Self = Self::new("a shader", 4 << 20);
    /// The rules of an import.
    pub const RULES: Self = Self::new("a rules file", 1 << 20);
    /// An arithmetic contract.
    pub const CONTRACT: Self = Self::new("a contract", 1 << 20);
    /// A table of kernels that `devices --tune` wrote.
    pub const TUNING: Self = Self::new("a tuning table", 1 << 20);
    /// What `bench --json` wrote.
    pub const BENCH: Self = Self::new("a document of `bench`", 64 << 20);
    /// `model.safetensors.index.json`.
    pub const INDEX: Self = Self::new("an index of safetensors files", 64 << 20);
    /// aprender's `trace.json`, which has statistics of every stage.
    pub const APRT_JSON: Self = Self::new("a trace.json", 64 << 20);
    /// llama.cpp's `NAME.bin`, `NAME-tokens.bin` and `NAME-prompt.txt`: a million tokens of vocabulary or of prompt.
    pub const LLAMA_DEBUG: Self = Self::new("a file of llama-debug", 4 << 20);

    /// Prompts, one a line.
    pub const PROMPTS: Self = Self::new("a file of prompts", 256 << 20);
    /// A sweep, or a shard of one: what `diff --prompts --json` wrote.
    pub const SWEEP: Self = Self::new("a sweep", 256 << 20);

    const fn new(name: &'static str, most: u64) -> Self {
        Self { name, most, stdin: false }
    }

    /// The same, where somebody names the file on a command line: `-` is standard input, of which no more is read than of a file.
    pub const fn or_stdin(self) -> Self {
        Self { stdin: true, ..self }
    }

    /// What the file is called in messages.
    pub fn called(self, path: &Path) -> &Path {
        if self.is_stdin(path) { Path::new("standard input") } else { path }
    }

    fn is_stdin(self, path: &Path) -> bool {
        self.stdin && path == Path::new("-")
    }

    /// The bytes of the file at `path`.
    ///
    /// # Errors
    /// What is no regular file, has more bytes than the kind, or cannot be read.
    pub fn read(self, path: &Path) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if self.is_stdin(path) {
            let path = self.called(path);
            std::io::stdin().take(self.most + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
            let Self { name, most, .. } = self;
            return match bytes.len() as u64 {
                found if found > most => {
                    Err(wrong(path, format!("expected {name} of at most {most} bytes, found more")))
                }
                _ => Ok(bytes),
            };
        }
        let file = open_regular(path, self.name)?;
        let stated = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if stated <= self.most {
            bytes
                .try_reserve_exact(stated as usize)
                .map_err(|e| Error::cannot_run(format!("{}: no memory for {stated} bytes: {e}", path.display())))?;
            file.take(self.most + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        }
        let found = stated.max(bytes.len() as u64);
        if found > self.most {
            let Self { name, most, .. } = self;
            return Err(wrong(path, format!("expected {name} of at most {most} bytes, found {found}")));
        }
        Ok(bytes)
    }

    /// The text of the file at `path`.
    ///
    /// # Errors
    /// As [`FileKind::read`], and what is not UTF-8.
    pub fn read_text(self, path: &Path) -> Result<String> {
        String::from_utf8(self.read(path)?)
            .map_err(|e| wrong(self.called(path), format!("expected text in UTF-8: {}", e.utf8_error())))
    }

    /// The JSON document in the file at `path`.
    ///
    /// # Errors
    /// As [`FileKind::read`], and what is not such a document, or is one of more than [`MOST_VALUES`].
    pub fn read_json<T: serde::de::DeserializeOwned>(self, path: &Path) -> Result<T> {
        let bytes = self.read(path)?;
        check_values(&bytes)
            .and_then(|()| serde_json::from_slice(&bytes).map_err(|e| e.to_string()))
            .map_err(|what| wrong(self.called(path), format!("expected {}: {what}", self.name)))
    }
}

fn wrong(path: &Path, what: impl Display) -> Error {
    Error::input(format!("{}: {what}", path.display()))
}

/// The most values in a JSON document. A value of two bytes takes up to a hundred in memory, so that bytes alone are no bound.
pub const MOST_VALUES: usize = 4 << 20;

/// Refuses a JSON document of more than [`MOST_VALUES`], before any of them is made.
///
/// # Errors
/// What was expected and what was found.
pub fn check_values(json: &[u8]) -> Result<(), String> {
    match most_values(json) {
        values if values > MOST_VALUES => Err(format!("at most {MOST_VALUES} values expected, found {values}")),
        _ => Ok(()),
    }
}

/// No fewer than the values of a JSON document: every one but the first comes behind one of these characters.
fn most_values(json: &[u8]) -> usize {
    1 + json.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{' | b':')).count()
}

/// Opens a file that has an end, where `what` ("a GGUF file") is expected.
///
/// # Errors
/// A file that cannot be opened, or that is a directory, a pipe or a device.
pub fn open_regular(path: &Path, what: &str) -> Result<File> {
    // Asked before opening: opening a pipe would wait for its other end, opening a device may do anything.
    check_regular(path, what, &std::fs::metadata(path).map_err(|e| Error::io(path, e))?)?;
    let mut options = File::options();
    options.read(true);
    // And if it became a pipe in between: opened in this way, none is waited for. It makes no difference to a regular file.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| Error::io(path, e))?;
    check_regular(path, what, &file.metadata().map_err(|e| Error::io(path, e))?)?;
    Ok(file)
}

/// Whether something is at `path`, whatever it is.
///
/// # Errors
/// If that cannot be known: a directory on the way that may not be looked into is no answer.
pub fn is_there(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|e| Error::io(path, e))
}

fn check_regular(path: &Path, what: &str, found: &std::fs::Metadata) -> Result<()> {
    if found.is_file() {
        return Ok(());
    }
    let kind = if found.is_dir() { "a directory" } else { "something that is not a regular file" };
    Err(wrong(path, format!("expected {what}, found {kind}")))
}

/// A file beside the sources, for a unit test: of the repository, or of the package where that is what the tests are run in.
#[cfg(test)]
pub(crate) fn beside_the_sources(path: impl AsRef<Path>) -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTE: FileKind = FileKind::new("a note", 8);

    #[test]
    fn a_file_is_read_up_to_the_size_that_its_kind_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        std::fs::write(&path, "12345678").unwrap();
        assert_eq!(NOTE.read_text(&path).unwrap(), "12345678");
        std::fs::write(&path, "123456789").unwrap();
        let error = NOTE.read(&path).unwrap_err();
        let expected = format!("{}: expected a note of at most 8 bytes, found 9", path.display());
        assert_eq!((error.to_string(), error.exit_code()), (expected, 2));
        std::fs::write(&path, b"\xff").unwrap();
        assert!(NOTE.read_text(&path).unwrap_err().to_string().contains("expected text in UTF-8"));
        std::fs::write(&path, "[1").unwrap();
        let error = NOTE.read_json::<Vec<u32>>(&path).unwrap_err().to_string();
        assert!(error.contains("expected a note: EOF while parsing a list at line 1 column 2"), "{error}");
    }

    #[test]
    fn values_are_counted_before_any_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        let many = FileKind::new("a note", 1 << 30);
        std::fs::write(&path, format!("[{}1]", "1,".repeat(MOST_VALUES))).unwrap();
        let error = many.read_json::<serde_json::Value>(&path).unwrap_err().to_string();
        assert!(error.ends_with("expected a note: at most 4194304 values expected, found 4194306"), "{error}");
        assert_eq!(most_values(br#"{"a":[1,2]}"#), 5);
    }

    #[cfg(unix)]
    #[test]
    fn what_has_no_end_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, link) = (dir.path().join("pipe"), dir.path().join("link"));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for path in [&pipe, &link] {
            let expected = format!("{}: expected a note, found something that is not a regular file", path.display());
            assert_eq!(NOTE.read(path).unwrap_err().to_string(), expected);
        }
        assert!(NOTE.read(dir.path()).unwrap_err().to_string().ends_with("expected a note, found a directory"));
    }
}
