//! A file that appears whole or not at all: written under a temporary name beside its place, synced, renamed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file being written. Dropped before [`AtomicFile::commit`], it leaves nothing; a killed process leaves at most a file
/// whose name begins with a dot and ends in `.tmp`, and never touches what was at `path`.
pub struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    /// `None` once committed.
    out: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Begins a file that [`AtomicFile::commit`] will put at `path`, over a regular file that may be there.
    ///
    /// # Errors
    /// If `path` names something other than a file, or its directory cannot be written to.
    pub fn create(path: &Path) -> Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(Error::usage(format!("{}: expected the name of a file to write", path.display())));
        };
        // A rename would replace a device or a pipe rather than write to it.
        if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            return Err(Error::usage(format!(
                "{}: expected a file to write, found a directory or a device",
                path.display()
            )));
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(hidden);
        let file = File::create_new(&temporary).map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.into(), temporary, out: Some(BufWriter::with_capacity(1 << 20, file)) })
    }

    /// The place that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file in its place: after this it survives a crash of the machine.
    ///
    /// # Errors
    /// If the disk is full or fails; then nothing changed at the file's place.
    pub fn commit(mut self) -> Result<()> {
        // `out` stays until the rename is done, so that an early return removes the temporary file.
        let finish = |out: &mut BufWriter<File>| {
            out.flush()?;
            out.get_ref().sync_all()
        };
        if let Some(out) = &mut self.out {
            finish(out).map_err(|e| Error::io(&self.path, e))?;
        }
        std::fs::rename(&self.temporary, &self.path).map_err(|e| Error::io(&self.path, e))?;
        self.out = None;
        // The rename itself is in the directory. Not every system lets a directory be opened; those sync it themselves.
        #[cfg(unix)]
        {
            let parent = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent).and_then(|d| d.sync_all()).map_err(|e| Error::io(parent, e))?;
        }
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.out {
            Some(out) => out.write(bytes),
            None => Err(io::Error::other("written after the end")),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(out) = self.out.take() {
            // Without into_parts the drop would flush megabytes into a file that is about to go.
            drop(out.into_parts());
            // Nothing better to do if it fails: the name says what it is.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "before").unwrap();

        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file is gone");

        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"after").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"after");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuses_what_is_not_a_file() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path(), Path::new("/")] {
            assert!(matches!(AtomicFile::create(path), Err(Error::Usage(_))), "{}", path.display());
        }
        assert!(matches!(AtomicFile::create(&dir.path().join("no/such")), Err(Error::Input(_))));
    }
}
