//! What the verbs print, for people and for programs: one module a document.
//!
//! Design:
//! - A document for people and the one for programs say the same; neither computes anything.
//! - A JSON document says what it was made with and on ([`Environment`]), whatever the verb.

#[cfg(feature = "cli")]
pub(crate) mod bench;
#[cfg(feature = "cli")]
pub(crate) mod calibration;
#[cfg(feature = "cli")]
pub(crate) mod devices;
#[cfg(feature = "cli")]
pub(crate) mod exchange;
mod facts;
pub(crate) mod format;
mod grid;
pub mod html;
#[cfg(feature = "cli")]
pub(crate) mod inspect;
pub mod json;
pub mod junit;
pub mod markdown;
mod markup;
#[cfg(feature = "cli")]
pub(crate) mod probe;
#[cfg(feature = "gpu")]
pub(crate) mod repro;
#[cfg(test)]
mod sample;
#[cfg(feature = "cli")]
pub(crate) mod selftest;
#[cfg(feature = "cli")]
pub(crate) mod sweep;
#[cfg(feature = "cli")]
mod table;
pub mod text;
#[cfg(feature = "cli")]
pub(crate) mod trace;
#[cfg(feature = "cli")]
pub(crate) mod tuning;
#[cfg(feature = "cli")]
pub(crate) mod vary;

use std::io::Write;
use std::path::Path;

use crate::atomic::file::AtomicFile;
use crate::diff::outcome::Comparison;
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::text::printable_json;

/// A file that a report will be written to; its name's ending says which report.
pub struct ReportFile {
    file: AtomicFile,
    format: ReportFormat,
}

/// The kinds of reports, as `--report-format` names them and as the names of their files end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum ReportFormat {
    /// An offline page
    Html,
    /// JUnit's
    #[cfg_attr(feature = "cli", value(name = "xml"))]
    Junit,
    /// The document of --json --full
    Json,
    /// Markdown
    #[cfg_attr(feature = "cli", value(name = "md"))]
    Markdown,
    /// Text for people
    #[cfg_attr(feature = "cli", value(name = "txt"))]
    Text,
}

impl ReportFormat {
    /// What the name of such a file ends in.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Html => ".html",
            Self::Junit => ".xml",
            Self::Json => ".json",
            Self::Markdown => ".md",
            Self::Text => ".txt",
        }
    }

    /// The report on a comparison.
    ///
    /// # Errors
    /// If it has a map whose keys are not strings.
    pub fn render(self, c: &Comparison) -> Result<String> {
        Ok(match self {
            Self::Html => html::render(c),
            Self::Junit => junit::render(c),
            Self::Json => json_text(&json::Document::from(c))?,
            Self::Markdown => markdown::render(c),
            Self::Text => text::render(c, text::Style { color: false, full: true }) + "\n" + &text::made_with(c),
        })
    }
}

/// A document with what it was made with, indented.
fn json_text(document: &impl serde::Serialize) -> Result<String> {
    let json = |e: serde_json::Error| Error::input(format!("json: {e}"));
    let text = serde_json::to_string_pretty(&Environment::with(document)?).map_err(json)?;
    Ok(printable_json(&text))
}

impl ReportFile {
    /// Begins the file before any work is done, so that a wrong place costs no time. Nothing is there until it is written.
    ///
    /// # Errors
    /// [`Error::Usage`] if the name ends in none of .html, .xml, .json, .md and .txt; if no file can be made there.
    pub fn new(path: &Path) -> Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let format = match ending.as_str() {
            "html" => ReportFormat::Html,
            "xml" => ReportFormat::Junit,
            "json" => ReportFormat::Json,
            "md" => ReportFormat::Markdown,
            "txt" => ReportFormat::Text,
            _ => {
                return Err(Error::usage(format!(
                    "{}: a report's name ends in .html, .xml (JUnit), .json, .md or .txt",
                    path.display()
                )));
            }
        };
        Ok(Self { file: AtomicFile::create(path)?, format })
    }

    /// Writes the report, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(self, c: &Comparison) -> Result<()> {
        let content = self.format.render(c)?;
        self.put(&content)
    }

    /// Which report it is.
    pub fn format(&self) -> ReportFormat {
        self.format
    }

    /// Writes a report that has been rendered, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn put(mut self, content: &str) -> Result<()> {
        let path = self.file.path().to_path_buf();
        self.file.write_all(content.as_bytes()).map_err(|e| Error::io(&path, e))?;
        self.file.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_which_report() {
        let dir = tempfile::tempdir().unwrap();
        let c = sample::diverging();
        for (name, begins) in
            [("a.html", "<!doctype"), ("a.XML", "<?xml"), ("a.json", "{"), ("a.txt", "demo-moe"), ("a.md", "# ")]
        {
            let path = dir.path().join(name);
            ReportFile::new(&path).unwrap().write(&c).unwrap();
            assert!(std::fs::read_to_string(&path).unwrap().starts_with(begins), "{name}");
            let text = std::fs::read_to_string(&path).unwrap();
            let here = Environment::here();
            for what in [&here.program, &here.date, &here.machine.processor, c.model.fingerprint.as_ref().unwrap()] {
                assert!(text.contains(what.as_str()), "{name} does not say {what}");
            }
        }
        let error = ReportFile::new(&dir.path().join("report.pdf")).map(|_| ()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("ends in .html"));
        assert!(ReportFile::new(&dir.path().join("none/a.html")).is_err(), "before anything is run");
    }
}
