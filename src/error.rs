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
    /// The input is fine, this machine cannot run it: no such adapter, a missing feature or kernel, out of memory, a lost
    /// device. Exit code 125, so that `git bisect run` skips.
    #[error("{0}")]
    CannotRun(String),
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
    /// An I/O failure on `path`, said with the path.
    pub fn io(path: &std::path::Path, error: std::io::Error) -> Self {
        Self::Input(format!("{}: {error}", path.display()))
    }
    /// The same error, said of `place`.
    pub fn within(self, place: &str) -> Self {
        match self {
            Self::Usage(what) => Self::Usage(format!("{place}: {what}")),
            Self::Input(what) => Self::Input(format!("{place}: {what}")),
            Self::CannotRun(what) => Self::CannotRun(format!("{place}: {what}")),
        }
    }
    /// The process exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Input(_) => 2,
            Self::CannotRun(_) => 125,
        }
    }
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
