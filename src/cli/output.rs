//! Where text leaves the program: results on stdout, everything else on stderr.
//!
//! - Names in a file, a driver's words and messages of libraries may hold anything. What is for people passes `text` here, once
//!   and for all, so that a terminal shows it and does nothing else.
//! - stderr is for words beside the result: nothing fails because they cannot be written.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;

use crate::environment::Environment;
use crate::text::{count, message, printable, printable_json, printable_lines};
use crate::{Error, Result};

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR (no-color.org) is set
    #[default]
    Auto,
    /// Into files and pipes, too
    Always,
    /// Nowhere
    Never,
}

/// How the command line wants things said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// `--color`.
    pub color: Color,
    /// `-q`: errors and results only.
    pub quiet: bool,
    /// `-v`: what is opened, and how long it takes.
    pub verbose: bool,
}

static MANNER: OnceLock<Manner> = OnceLock::new();

/// Decides how things are said, once.
pub fn set_manner(manner: Manner) {
    let _ = MANNER.set(manner); // a second command line in one process is only in tests
}

/// How things are said.
pub fn manner() -> Manner {
    MANNER.get().copied().unwrap_or_default()
}

/// Whether text that goes to a terminal, or not, is coloured.
pub fn colored(color: Color, terminal: bool) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    }
}

/// Whether results are coloured.
pub fn stdout_is_colored() -> bool {
    colored(manner().color, std::io::stdout().is_terminal())
}

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

/// Lines of an excerpt that are written.
const LONGEST_EXCERPT: usize = 24;

/// Writes lines to stderr that are somebody else's in part: indented, so that none can pass for one of this program's.
pub fn say_excerpt(text: &str) {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.iter().take(LONGEST_EXCERPT).for_each(|line| say(&format!("  {}", printable(line))));
    if lines.len() > LONGEST_EXCERPT {
        say(&format!("  … {} more", count(lines.len() - LONGEST_EXCERPT, "line")));
    }
}

/// Writes a remark to stderr, unless `-q` asks for none.
pub fn remark(line: &str) {
    if !manner().quiet {
        say(line);
    }
}

/// Writes to stderr what only `-v` asks for.
pub fn detail(line: &str) {
    if manner().verbose {
        say(line);
    }
}

/// Writes what clap has to say where it belongs, and gives the exit code: 0 for `--help` and `--version`, 2 for a wrong command line.
pub fn print_usage(usage: &clap::Error) -> u8 {
    let to_stderr = usage.use_stderr();
    let terminal = if to_stderr { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
    // The command line was not understood, or not read to its end: only what can be seen in it is heeded.
    let never = std::env::args_os().any(|arg| arg == "--color=never");
    let asked = if never { Color::Never } else { Color::Auto };
    let text = usage.render();
    let text = printable_lines(&if colored(asked, terminal) { text.ansi().to_string() } else { text.to_string() });
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
