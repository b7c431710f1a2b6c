//! A file that appears whole or not at all: written under a temporary name beside its place, synced, renamed.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::left;
use crate::{Error, Result};

/// A file being written. Dropped before [`AtomicFile::commit`], it leaves nothing; a killed process leaves at most a file
/// whose name begins with a dot and ends in `.tmp`, which the next run that writes there removes, and never touches what was at
/// `path`. Errors name `path`.
pub struct AtomicFile {
    path: PathBuf,
    out: BufWriter<File>,
    temporary: Temporary,
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
        // Elsewhere it is standard output, which a file that appears whole cannot be.
        if path == Path::new("-") {
            return Err(Error::usage(
                "-: expected the name of a file to write, found standard output; ./- is a file of that name",
            ));
        }
        // A rename would replace a device or a pipe rather than write to it.
        if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            return Err(Error::usage(format!(
                "{}: expected a file to write, found a directory or a device",
                path.display()
            )));
        }
        if let Some(name) = name.to_str() {
            left::remove(directory(path), name);
        }
        // The name of a dead process of our number may be there still.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (file, temporary) = loop {
            let mut temporary = OsString::from(".");
            temporary.push(name);
            temporary.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            let temporary = directory(path).join(temporary);
            match File::options().read(true).write(true).create_new(true).open(&temporary) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(path, e)),
                Ok(file) => break (file, Temporary(Some(temporary))),
            }
        };
        let _ = file.try_lock(); // says that a living process writes it; not every system has locks
        Ok(Self { path: path.into(), out: BufWriter::with_capacity(1 << 20, file), temporary })
    }

    /// The place that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file in its place: after this it survives a crash of the machine.
    ///
    /// # Errors
    /// If the disk is full or fails; then nothing changed at the file's place.
    pub fn commit(self) -> Result<()> {
        let failed = |e| Error::io(&self.path, e);
        let file = self.out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)?;
        self.temporary.persist(&self.path).map_err(failed)?;
        // The rename itself is in the directory. Not every system lets a directory be opened; those sync it themselves.
        #[cfg(unix)]
        {
            let directory = directory(&self.path);
            File::open(directory).and_then(|d| d.sync_all()).map_err(|e| Error::io(directory, e))?;
        }
        Ok(())
    }
}

/// A file that is removed unless it was given its name.
struct Temporary(Option<PathBuf>);

impl Temporary {
    fn persist(mut self, path: &Path) -> io::Result<()> {
        if let Some(temporary) = &self.0 {
            std::fs::rename(temporary, path)?;
        }
        self.0 = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path); // a hidden file that stays behind does no harm
        }
    }
}

/// The directory that the file at `path` is in.
fn directory(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
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
    fn standard_output_is_no_file() {
        let error = AtomicFile::create(Path::new("-")).map(drop).unwrap_err();
        assert!(error.to_string().contains("./- is a file of that name") && error.exit_code() == 2, "{error}");
        assert!(!Path::new("-").exists());
    }

    #[cfg(unix)]
    #[test]
    fn has_the_permissions_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        AtomicFile::create(&dir.path().join("x")).unwrap().commit().unwrap();
        std::fs::write(dir.path().join("y"), "").unwrap();
        let mode = |name| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("x"), mode("y"));
    }

    #[test]
    fn refuses_what_is_not_a_file() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path(), Path::new("/")] {
            assert!(matches!(AtomicFile::create(path), Err(Error::Usage(_))), "{}", path.display());
        }
        let path = dir.path().join("no/such");
        let error = AtomicFile::create(&path).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Input(_)));
        #[cfg(unix)]
        assert_eq!(error.to_string(), format!("{}: No such file or directory (os error 2)", path.display()));
    }
}
