//! What is written for other places: `completions` for a shell, `man` for man pages, `report-issue` for a bug tracker.

use std::io::Write;
use std::path::PathBuf;

use clap::CommandFactory;

use crate::atomic::file::AtomicFile;
use crate::cli::{Cli, Outcome, diff, output};
use crate::error::{Error, Result};
use crate::report::markdown;

/// Write the completions of a shell to standard output.
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub fn completions(args: &CompletionsArgs) -> Result<Outcome> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "twinscope", &mut text);
    output::print_data(&String::from_utf8_lossy(&text))?;
    Ok(Outcome::Ok)
}

/// Write the man pages: the program's to standard output, or that and every verb's into a folder.
#[derive(clap::Args)]
pub struct ManArgs {
    /// The folder for twinscope.1, twinscope-diff.1 and so on
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn man(args: &ManArgs) -> Result<Outcome> {
    let page = |command: clap::Command| -> Result<Vec<u8>> {
        let mut text = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut text)
            .map_err(|e| Error::cannot_run(format!("the man page: {e}")))?;
        Ok(text)
    };
    let mut command = Cli::command();
    command.build();
    let Some(dir) = &args.out else {
        output::print_data(&String::from_utf8_lossy(&page(command)?))?;
        return Ok(Outcome::Ok);
    };
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let write = |name: &str, text: &[u8]| {
        let path = dir.join(format!("{name}.1"));
        let mut file = AtomicFile::create(&path)?;
        file.write_all(text).map_err(|e| Error::io(&path, e))?;
        file.commit()
    };
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        let name = format!("twinscope-{}", verb.get_name());
        write(&name, &page(verb.clone())?)?;
    }
    write("twinscope", &page(command)?)?;
    Ok(Outcome::Ok)
}

/// Compare two backends as `diff` does, and print what an issue needs, as Markdown to paste: the fault, how to make it again, versions,
/// adapter, driver.
///
/// Exit code 0 whatever the comparison comes to.
#[derive(clap::Args)]
pub struct IssueArgs {
    #[command(flatten)]
    diff: diff::Args,
}

pub fn report_issue(args: &IssueArgs) -> Result<Outcome> {
    args.diff.is_of_one_comparison("report-issue")?;
    diff::run_and(&args.diff, |comparison| output::print(&markdown::issue(comparison)))?;
    Ok(Outcome::Ok)
}
