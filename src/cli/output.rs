//! Results on stdout.

use std::io::{ErrorKind, Write};

use crate::report::environment::Environment;
use crate::{Error, Result};

/// Writes `text` to stdout as it is. A reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// If stdout cannot take it for another reason, such as a full disk.
pub fn print(text: &str) -> Result<()> {
    print_on(text).map(|_| ())
}

/// Like [`print()`]; also says whether the reader is still there.
///
/// # Errors
/// Like [`print()`].
pub fn print_on(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::input(format!("stdout: {e}"))),
    }
}

/// Writes one JSON document to stdout, indented, with the [`Environment`] in it and a newline at its end.
///
/// # Errors
/// Like [`print()`]; also if the document has a map whose keys are not strings.
pub fn print_json(document: &impl serde::Serialize) -> Result<()> {
    let mut text =
        serde_json::to_string_pretty(&Environment::with(document)?).map_err(|e| Error::input(format!("json: {e}")))?;
    text.push('\n');
    print(&text)
}
