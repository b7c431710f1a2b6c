//! A directory that appears whole or not at all: built under a hidden name beside its place, synced, renamed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::left;
use crate::{Error, Result};

/// What may be replaced.
#[derive(Clone, Copy)]
pub struct DirKind {
    /// What it is called: `trace`.
    pub name: &'static str,
    /// Whether a directory is one, and holds nothing else.
    pub is_one: fn(&Path) -> bool,
}

/// A directory being written. Dropped before [`AtomicDir::commit`], it leaves nothing; a killed process leaves at most a
/// directory whose name begins with a dot, which the next run that writes there removes. Errors name files by the places that
/// they will have.
pub struct AtomicDir {
    target: PathBuf,
    /// The hidden directory; `None` once it bears the target's name.
    partial: Option<PathBuf>,
    kind: DirKind,
    force: bool,
    /// The directories that were made for it to be in, the innermost first.
    made: Vec<PathBuf>,
    /// Says that a living process writes it.
    _lock: Option<File>,
}

impl AtomicDir {
    /// Begins the directory `target`, which must not exist, or be empty, or be of this kind if `force` is given.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is something there that must not be replaced, [`Error::Input`] if the directory cannot be made.
    pub fn create(target: &Path, kind: DirKind, force: bool) -> Result<Self> {
        let (parent, name) = parent_and_name(target)?;
        left::remove(parent, name);
        check_target(target, kind, force)?;
        let partial = parent.join(format!(".{name}.partial-{}", std::process::id()));
        let is_new = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
        let made: Vec<PathBuf> = parent.ancestors().take_while(is_new).map(Path::to_path_buf).collect();
        let begun = std::fs::create_dir_all(parent)
            .map_err(|e| Error::io(parent, e))
            .and_then(|()| std::fs::create_dir(&partial).map_err(|e| Error::io(target, e)));
        if begun.is_err() {
            remove_empty(&made);
        }
        begun?;
        let _lock = left::lock(&partial);
        Ok(Self { target: target.into(), partial: Some(partial), kind, force, made, _lock })
    }

    /// Whether [`AtomicDir::create`] can begin the directory: to be asked before long work of which it is to take the result.
    ///
    /// # Errors
    /// As [`AtomicDir::create`].
    pub fn check(target: &Path, kind: DirKind, force: bool) -> Result<()> {
        Self::create(target, kind, force).map(drop)
    }

    /// The place that the directory will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where its files are put meanwhile.
    pub fn path(&self) -> &Path {
        self.partial.as_deref().unwrap_or(&self.target)
    }

    /// Writes one file of it, in directories that are made as needed, and syncs it.
    ///
    /// # Errors
    /// If it exists or cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path().join(name);
        let failed = |e| Error::io(&self.target.join(name), e);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let mut file = File::create_new(&path).map_err(failed)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
    }

    /// Gives the finished directory its name; an older one steps aside first and is removed last.
    ///
    /// # Errors
    /// [`Error::Usage`] if the target has come to be something that must not be replaced, [`Error::Input`] if it cannot be renamed.
    pub fn commit(mut self) -> Result<()> {
        let Some(partial) = self.partial.clone() else { return Ok(()) };
        let target = &self.target;
        sync_tree(&partial).map_err(|e| Error::io(target, e))?;
        check_target(target, self.kind, self.force)?;
        let (parent, name) = parent_and_name(target)?;
        let mut old = None;
        if target.exists() {
            let aside = parent.join(format!(".{name}.replaced-{}", std::process::id()));
            std::fs::rename(target, &aside).map_err(|e| Error::io(target, e))?;
            old = Some(aside);
        }
        std::fs::rename(&partial, target).map_err(|e| Error::io(target, e))?;
        self.partial = None;
        sync_dir(parent).map_err(|e| Error::io(parent, e))?;
        if let Some(old) = old {
            std::fs::remove_dir_all(&old).map_err(|e| {
                Error::io_of(format_args!("{}: what it replaced, {}", target.display(), old.display()), &e)
            })?;
        }
        Ok(())
    }
}

impl Drop for AtomicDir {
    fn drop(&mut self) {
        if let Some(dir) = &self.partial {
            // Already on the way out with another error; a hidden directory that stays behind does no harm.
            let _ = std::fs::remove_dir_all(dir);
            remove_empty(&self.made);
        }
    }
}

/// Removes directories that nothing has come into, the innermost first.
fn remove_empty(dirs: &[PathBuf]) {
    for dir in dirs {
        let _ = std::fs::remove_dir(dir);
    }
}

fn parent_and_name(target: &Path) -> Result<(&Path, &str)> {
    let name = target.file_name().and_then(|n| n.to_str()).ok_or_else(|| {
        Error::usage(format!("--out {}: not a path that names a directory to make", target.display()))
    })?;
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent, name))
}

/// Refuses to replace anything but nothing, an empty directory, or with `force` one of this kind.
fn check_target(target: &Path, kind: DirKind, force: bool) -> Result<()> {
    let refuse = |what: String| Err(Error::usage(format!("--out {}: {what}", target.display())));
    if target == Path::new("-") {
        return refuse(
            "expected the name of a directory, found standard output; ./- is a directory of that name".into(),
        );
    }
    let there = match std::fs::symlink_metadata(target) {
        Ok(there) => there,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(target, e)),
    };
    if !there.is_dir() {
        return refuse("exists and is not a directory; it is left as it is".into());
    }
    let mut entries = std::fs::read_dir(target).map_err(|e| Error::io(target, e))?;
    if entries.next().is_none() {
        return Ok(());
    }
    if !(kind.is_one)(target) {
        return refuse(format!("a directory that has files in it and is no {}; it is left as it is", kind.name));
    }
    if !force {
        return refuse(format!("a {} is there already; --force replaces it", kind.name));
    }
    Ok(())
}

/// Makes the names in a directory and in those below it last.
fn sync_tree(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync_dir(dir)
}

/// Makes the names in a directory last. Windows has no such call, and none is needed there.
fn sync_dir(dir: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTES: DirKind = DirKind { name: "notebook", is_one: |dir| dir.join("notes").is_file() };

    #[test]
    fn appears_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("new/shelf/book");
        let dir = AtomicDir::create(&target, NOTES, false).unwrap();
        dir.write("notes", b"1").unwrap();
        dir.write("more/pages", b"2").unwrap();
        assert!(!target.exists());
        drop(dir);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0, "nothing is left, nor what it was to be in");
        AtomicDir::check(&target, NOTES, false).unwrap();
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0, "asking leaves nothing");

        let dir = AtomicDir::create(&target, NOTES, false).unwrap();
        dir.write("notes", b"1").unwrap();
        dir.commit().unwrap();
        let again = AtomicDir::create(&target, NOTES, false).map(|_| ()).unwrap_err();
        assert!(again.to_string().contains("a notebook is there already"), "{again}");
        let dir = AtomicDir::create(&target, NOTES, true).unwrap();
        dir.write("notes", b"2").unwrap();
        dir.commit().unwrap();
        assert_eq!(std::fs::read(target.join("notes")).unwrap(), b"2");
        assert_eq!(std::fs::read_dir(parent.path().join("new/shelf")).unwrap().count(), 1);
    }

    #[test]
    fn leaves_alone_what_is_something_else() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::write(parent.path().join("file"), "x").unwrap();
        for target in [parent.path(), &parent.path().join("file"), Path::new("/")] {
            let error = AtomicDir::create(target, NOTES, true).map(|_| ()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
        }
        assert_eq!(std::fs::read(parent.path().join("file")).unwrap(), b"x");
    }
}
