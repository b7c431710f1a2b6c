//! The one error type. Each variant decides the exit code, each message names the file, tensor, stage or flag, what was
//! expected and what was found.

/// Why a command could not do its job. A divergence between two backends is a result, not an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or an API argument is wrong. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A file is unreadable, malformed or not what it says. Exit code 2.
    #[error("{0}")]
    Input(String),
    /// A file of source text does not compile, on no machine. Exit code 125, so that `git bisect run` skips a commit with it.
    #[error("{what}")]
    Source {
        /// The file, and what was expected.
        what: String,
        /// The place in it, as compilers show it: lines of which some are the file's.
        excerpt: String,
    },
    /// The input is fine, this machine cannot run it: no such adapter, a missing feature or kernel, out of memory, a lost
    /// device, a full disk, no permission. Exit code 125, so that `git bisect run` skips.
    #[error("{0}")]
    CannotRun(String),
    /// What was run did something that nothing of its kind may do, caught in the act: a kernel that left elements of its output
    /// unwritten, or wrote outside of it. Exit code 1, as for what diverges.
    #[error("{0}")]
    Fault(String),
}

impl Error {
    /// An error in what was asked for.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }
    /// An error in a file.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }
    /// A lack of this machine.
    pub fn cannot_run(message: impl Into<String>) -> Self {
        Self::CannotRun(message.into())
    }
    /// A wrong that is seen before any value is compared.
    pub fn fault(message: impl Into<String>) -> Self {
        Self::Fault(message.into())
    }
    /// An I/O failure on `path`, said with the path: a lack of the machine, such as a full disk or a missing permission, or else
    /// something about the file.
    pub fn io(path: &std::path::Path, error: std::io::Error) -> Self {
        Self::io_of(path.display(), &error)
    }
    /// Like [`Error::io`], of what has a name but no path.
    pub fn io_of(name: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let message = format!("{name}: {error}");
        if is_lack(error) { Self::CannotRun(message) } else { Self::Input(message) }
    }
    /// The same error, with more said of where it happened.
    pub fn map(self, message: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Usage(m) => Self::Usage(message(m)),
            Self::Input(m) => Self::Input(message(m)),
            Self::Source { what, excerpt } => Self::Source { what: message(what), excerpt },
            Self::CannotRun(m) => Self::CannotRun(message(m)),
            Self::Fault(m) => Self::Fault(message(m)),
        }
    }
    /// The same error, said of `place`.
    pub fn within(self, place: &str) -> Self {
        self.map(|what| format!("{place}: {what}"))
    }
    /// The process exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Input(_) => 2,
            // A commit whose shader does not compile is none that `git bisect run` may call bad.
            Self::CannotRun(_) | Self::Source { .. } => 125,
            Self::Fault(_) => 1,
        }
    }
}

/// Whether the machine lacks something: the same command may do its job on another machine, or on this one tomorrow. Such a
/// failure says nothing of what was to be found out, and `git bisect run` must not take it for an answer.
fn is_lack(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::*;
    let kinds = [
        PermissionDenied,
        StorageFull,
        QuotaExceeded,
        FileTooLarge,
        ReadOnlyFilesystem,
        OutOfMemory,
        ResourceBusy,
        StaleNetworkFileHandle,
        TimedOut,
    ];
    // A failing device, and too many open files, have no kind of their own.
    let codes: &[i32] = if cfg!(unix) { &[5, 23, 24] } else { &[] };
    kinds.contains(&error.kind()) || error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use std::io::{Error as IoError, ErrorKind};

    use super::*;

    #[test]
    fn a_lack_of_the_machine_is_no_fault_of_the_file() {
        let code = |error: IoError| Error::io("x".as_ref(), error).exit_code();
        for kind in [ErrorKind::StorageFull, ErrorKind::PermissionDenied, ErrorKind::OutOfMemory] {
            assert_eq!(code(kind.into()), 125, "{kind}");
        }
        for kind in [ErrorKind::NotFound, ErrorKind::UnexpectedEof, ErrorKind::IsADirectory, ErrorKind::InvalidData] {
            assert_eq!(code(kind.into()), 2, "{kind}");
        }
        #[cfg(unix)]
        for (os, expected) in [(5 /* EIO */, 125), (24 /* EMFILE */, 125), (28 /* ENOSPC */, 125), (2 /* ENOENT */, 2)]
        {
            assert_eq!(code(IoError::from_raw_os_error(os)), expected, "{os}");
        }
    }
}
