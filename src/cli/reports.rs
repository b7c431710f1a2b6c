//! `--report`: where reports go, files or standard output.

use std::path::{Path, PathBuf};

use crate::cli::output;
use crate::error::{Error, Result};
use crate::report::{ReportFile, ReportFormat};

/// Where reports are written.
#[derive(clap::Args, Clone, Debug)]
pub struct ReportArgs {
    /// Also write a report to a file: .html, .xml (JUnit), .json, .md or .txt; several allowed. `-` is standard output, where the report
    /// stands for what would be printed
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,
    /// What `--report -` writes [default: md]
    #[arg(long, value_name = "FORMAT", requires = "report")]
    pub report_format: Option<ReportFormat>,
}

/// Reports that can be written.
pub struct Reports {
    files: Vec<ReportFile>,
    stdout: Option<ReportFormat>,
}

impl ReportArgs {
    /// Whether a report goes to standard output.
    pub fn to_stdout(&self) -> bool {
        self.report.iter().any(|path| path == Path::new("-"))
    }

    /// Begins every file before any work is done.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that no report has, for two things on standard output, and for a format of nothing; a file that cannot
    /// be made.
    pub fn open(&self, json: bool) -> Result<Reports> {
        let (stdout, files): (Vec<_>, Vec<_>) = self.report.iter().partition(|path| *path == Path::new("-"));
        match (stdout.len(), self.report_format) {
            (0, Some(_)) => {
                return Err(Error::usage(
                    "--report-format is of --report -, standard output: the name of a file says its format",
                ));
            }
            (0, None) => {}
            _ if json => {
                return Err(Error::usage(
                    "--json and --report -: both would write to standard output; give the report a file, or leave --json out \
                     (--report-format json is that document, with everything in it)",
                ));
            }
            (1, _) => {}
            (n, _) => return Err(Error::usage(format!("--report -: expected once, found {n} times"))),
        }
        Ok(Reports {
            files: files.into_iter().map(|path| ReportFile::new(path)).collect::<Result<_>>()?,
            stdout: (!stdout.is_empty()).then(|| self.report_format.unwrap_or(ReportFormat::Markdown)),
        })
    }
}

impl Reports {
    /// The formats that are asked for, each with what asks for it.
    pub fn formats(&self) -> impl Iterator<Item = ReportFormat> + '_ {
        self.files.iter().map(ReportFile::format).chain(self.stdout)
    }

    /// Writes each report as `render` makes it. True where one of them stands for what would be printed.
    ///
    /// # Errors
    /// What `render` says, and a file or a standard output that cannot be written.
    pub fn write(self, render: impl Fn(ReportFormat) -> Result<String>) -> Result<bool> {
        for file in self.files {
            let content = render(file.format())?;
            file.put(&content)?;
        }
        let Some(format) = self.stdout else { return Ok(false) };
        let content = render(format)?;
        match format {
            ReportFormat::Text => output::print(&content)?,
            _ => {
                let end = if content.ends_with('\n') { "" } else { "\n" };
                output::print_data(&(content + end)).map(|_| ())?;
            }
        }
        Ok(true)
    }
}
