//! What a killed process left behind: whoever writes at the same place next removes it.
//!
//! A name says which process made it. It is removed only where no such process runs here and nobody holds its lock, so that a run
//! on another machine that shares the directory keeps its own.

use std::fs::File;
use std::path::Path;

/// Removes what dead processes left beside their target `name` in `parent`. What cannot be removed stays: it does no harm.
pub fn remove(parent: &Path, name: &str) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let Some(rest) = file_name.to_str().and_then(|f| f.strip_prefix('.')?.strip_prefix(name)?.strip_prefix('.'))
        else {
            continue;
        };
        let (path, target) = (entry.path(), parent.join(name));
        let Ok(kind) = entry.file_type() else { continue };
        if let Some(pid) = rest.strip_prefix("partial-").filter(|_| kind.is_dir()) {
            if is_left(pid, &path) {
                let _ = std::fs::remove_dir_all(&path);
            }
        } else if let Some(pid) = rest.strip_prefix("replaced-").filter(|_| kind.is_dir()) {
            // What stepped aside comes back if nothing came in its place.
            if is_left(pid, &path) {
                let _ = match std::fs::symlink_metadata(&target) {
                    Ok(_) => std::fs::remove_dir_all(&path),
                    Err(_) => std::fs::rename(&path, &target),
                };
            }
        } else if let Some((pid, _)) = rest.strip_suffix(".tmp").and_then(|r| r.split_once('-'))
            && kind.is_file()
            && is_left(pid, &path)
        {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Locks what is being written for as long as the handle lives. Not every system has locks of directories.
pub fn lock(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    file.try_lock().is_ok().then_some(file)
}

/// Whether the process that made `path` is gone. A process of our own number is an earlier one, as there are in containers, if
/// nobody has the lock.
fn is_left(pid: &str, path: &Path) -> bool {
    let Some(pid) = pid.parse().ok().filter(|pid| *pid > 0) else { return false };
    (pid == std::process::id() || is_dead(pid)) && lock(path).is_some()
}

#[cfg(unix)]
fn is_dead(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    // SAFETY: signal 0 is sent to nobody: the call only asks whether the process is there.
    let answer = unsafe { libc::kill(pid, 0) };
    answer != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

#[cfg(not(unix))]
fn is_dead(_: u32) -> bool {
    false
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// The number of a process that has ended.
    fn dead() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn what_the_dead_left_goes_and_what_the_living_write_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (dead, alive) = (dead(), std::os::unix::process::parent_id());
        for name in [".t.partial", ".t.replaced", ".other.partial"] {
            for pid in [dead, alive] {
                std::fs::create_dir_all(dir.path().join(format!("{name}-{pid}")).join("sub")).unwrap();
            }
        }
        std::fs::create_dir(dir.path().join("t")).unwrap();
        for name in [format!(".t.{dead}-ab.tmp"), format!(".t.{alive}-ab.tmp"), ".t.x-ab.tmp".into(), "t.tmp".into()] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        // Of this process, one that is being written and one of an earlier process with its number.
        let own = dir.path().join(format!(".t.{}-own.tmp", std::process::id()));
        std::fs::write(&own, "").unwrap();
        std::fs::write(dir.path().join(format!(".t.{}-earlier.tmp", std::process::id())), "").unwrap();
        let held = lock(&own).unwrap();
        remove(dir.path(), "t");
        let mut left: Vec<String> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        let mut expected = [
            format!(".other.partial-{dead}"),
            format!(".other.partial-{alive}"),
            format!(".t.partial-{alive}"),
            format!(".t.replaced-{alive}"),
            format!(".t.{alive}-ab.tmp"),
            format!(".t.{}-own.tmp", std::process::id()),
            ".t.x-ab.tmp".into(),
            "t".into(),
            "t.tmp".into(),
        ];
        expected.sort();
        assert_eq!(left, expected);
        drop(held);
    }

    #[test]
    fn what_stepped_aside_comes_back_if_nothing_took_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let aside = dir.path().join(format!(".t.replaced-{}", dead()));
        std::fs::create_dir(&aside).unwrap();
        std::fs::write(aside.join("notes"), "1").unwrap();
        remove(dir.path(), "t");
        assert_eq!(std::fs::read(dir.path().join("t/notes")).unwrap(), b"1");
        assert!(!aside.exists());
    }
}
