//! Where text leaves the program: results on stdout, everything else on stderr.
//!
//! - Names in a file, a driver's words and messages of libraries may hold anything. What is for people passes `text` here, once
//!   and for all, so that a terminal shows it and does nothing else.
//! - stderr is for words beside the result: nothing fails because they cannot be written.

use std::io::{ErrorKind, IsTerminal, Write};

use crate::report::environment::Environment;
use crate::text::{message, printable_json, printable_lines};
use crate::{Error, Result};

/// Writes lines for people to stdout. A reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// If stdout cannot take it for another reason, such as a full disk.
pub fn print(text: &str) -> Result<()> {
    print_data(&printable_lines(text)).map(|_| ())
}

/// Writes what a model generated: as lines for people on a terminal, as it is to a file or a pipe. False once the reader is gone.
///
/// # Errors
/// Like [`print()`].
pub fn print_generated(text: &str) -> Result<bool> {
    if std::io::stdout().is_terminal() { print_data(&printable_lines(text)) } else { print_data(text) }
}

/// Writes text for programs to stdout as it is. False once the reader is gone.
///
/// # Errors
/// Like [`print()`].
pub fn print_data(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::io_of("stdout", &e)),
    }
}

/// Writes one JSON document to stdout, indented, with the [`Environment`] in it and a newline at its end.
///
/// # Errors
/// Like [`print()`]; also if the document has a map whose keys are not strings.
pub fn print_json(document: &impl serde::Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(&Environment::with(document)?).map_err(|e| Error::input(format!("json: {e}")))?;
    print_data(&(printable_json(&text) + "\n")).map(|_| ())
}

/// Writes a line to stderr.
pub fn say(line: &str) {
    // Nothing is left to say it to if this fails: stderr may be closed, or a file on a full disk.
    let _ = writeln!(std::io::stderr(), "{}", message(line));
}

/// Writes what clap has to say where it belongs, and gives the exit code: 0 for `--help` and `--version`, 2 for a wrong command line.
pub fn print_usage(usage: &clap::Error) -> u8 {
    let to_stderr = usage.use_stderr();
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let terminal = !plain && if to_stderr { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
    let text = usage.render();
    let text = printable_lines(&if terminal { text.ansi().to_string() } else { text.to_string() });
    if to_stderr {
        let _ = std::io::stderr().write_all(text.as_bytes());
        return Error::usage("").exit_code();
    }
    match print_data(&text) {
        Ok(_) => 0,
        Err(e) => {
            say(&format!("error: {e}"));
            e.exit_code()
        }
    }
}
