//! The command line: one file a verb, each with an `Args` and a `run`.
//!
//! Exit codes: 0 agree or done · 1 diverged, or a kernel caught by --poison · 2 usage or unreadable input · 125 could not run here.
//! Results go to stdout, everything else to stderr.

use std::process::ExitCode;
use std::time::Instant;

use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{Error, Result};

mod bench;
mod common;
mod compare;
mod devices;
mod diff;
mod documents;
mod examples;
mod export;
mod import;
mod inspect;
mod merge;
mod output;
mod probe;
mod reports;
mod repro;
mod run;
mod selftest;
mod sweep;
mod synth;
mod trace;
mod vary;

/// What a verb found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or: the two sides agree. Exit code 0.
    Ok,
    /// The two sides differ, or a check failed. Exit code 1.
    Diverged,
    /// What was to be looked at cannot be read, and that is said in the result. Exit code 2.
    Unreadable,
}

/// Finds the first stage where two runs of a quantized model differ by more than rounding, and the side that is wrong.
#[derive(Parser)]
#[command(name = "twinscope", version, about, arg_required_else_help = true)]
struct Cli {
    /// When to colour: auto, always or never
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value_t,
        hide_possible_values = true,
        help_heading = "Everywhere"
    )]
    color: output::Color,
    /// Say what is opened, and how long it takes
    #[arg(short, long, global = true, action = ArgAction::SetTrue, conflicts_with = "quiet", help_heading = "Everywhere")]
    verbose: bool,
    /// Only results and errors: no remarks beside them, no bars; a report's notes are part of it
    #[arg(short, long, global = true, action = ArgAction::SetTrue, help_heading = "Everywhere")]
    quiet: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    #[command(after_help = examples::BENCH)]
    Bench(Box<bench::Args>),
    #[command(after_help = examples::COMPARE)]
    Compare(Box<compare::Args>),
    #[command(after_help = examples::COMPLETIONS)]
    Completions(documents::CompletionsArgs),
    #[command(after_help = examples::DEVICES)]
    Devices(devices::Args),
    #[command(after_help = examples::DIFF)]
    Diff(Box<diff::Args>),
    #[command(after_help = examples::EXPORT)]
    Export(export::Args),
    #[command(after_help = examples::IMPORT)]
    Import(import::Args),
    #[command(after_help = examples::INSPECT)]
    Inspect(inspect::Args),
    #[command(after_help = examples::MAN)]
    Man(documents::ManArgs),
    #[command(after_help = examples::MERGE)]
    Merge(merge::Args),
    #[command(after_help = examples::PROBE)]
    Probe(Box<probe::Args>),
    #[command(after_help = examples::REPORT_ISSUE)]
    ReportIssue(Box<documents::IssueArgs>),
    #[command(after_help = examples::REPRO)]
    Repro(Box<repro::Args>),
    #[command(after_help = examples::RUN)]
    Run(run::Args),
    #[command(after_help = examples::SELFTEST)]
    Selftest(selftest::Args),
    #[command(after_help = examples::SYNTH)]
    Synth(Box<synth::Args>),
    #[command(after_help = examples::TRACE)]
    Trace(Box<trace::Args>),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let parsed = Cli::command().try_get_matches().and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(usage) => return ExitCode::from(output::print_usage(&usage)),
    };
    output::set_manner(output::Manner { color: cli.color, quiet: cli.quiet, verbose: cli.verbose });
    let began = Instant::now();
    let outcome = common::start_threads().and_then(|()| run(cli));
    output::detail(&format!("took {:.1?}", began.elapsed()));
    match outcome {
        Ok(Outcome::Ok) => ExitCode::SUCCESS,
        Ok(Outcome::Diverged) => ExitCode::from(1),
        Ok(Outcome::Unreadable) => ExitCode::from(2),
        Err(e) => {
            if let Error::Fault(fault) = &e
                && asks_for_a_document(&matches)
                && let Err(e) = output::print_json(&CaughtKernel::new(fault))
            {
                output::say(&format!("error: {e}"));
            }
            output::say(&format!("error: {e}"));
            if let Error::Source { excerpt, .. } = &e {
                output::say_excerpt(excerpt);
            }
            ExitCode::from(e.exit_code())
        }
    }
}

/// The document of a run that ended with a kernel that `--poison` caught, of schema `twinscope.fault/1`.
#[derive(serde::Serialize)]
struct CaughtKernel<'a> {
    schema: &'static str,
    verdict: &'static str,
    /// Device, stage, kernel, and what it did.
    fault: &'a str,
}

impl<'a> CaughtKernel<'a> {
    fn new(fault: &'a str) -> Self {
        Self { schema: "twinscope.fault/1", verdict: "diverged", fault }
    }
}

/// Whether the verb was asked for one JSON document: with --prompts it writes lines, which end early; but of `compare`, which ranks over all of them.
fn asks_for_a_document(matches: &ArgMatches) -> bool {
    let given = |matches: &ArgMatches, id: &str| matches.try_contains_id(id).is_ok_and(|has| has);
    let flag = |matches: &ArgMatches| matches.try_get_one::<bool>("json").ok().flatten() == Some(&true);
    let mut verb = matches.subcommand();
    while let Some((name, matches)) = verb {
        if flag(matches) {
            return name == "compare" || !given(matches, "prompts");
        }
        verb = matches.subcommand();
    }
    false
}

fn run(cli: Cli) -> Result<Outcome> {
    match cli.verb {
        Verb::Bench(args) => bench::run(&args),
        Verb::Compare(args) => compare::run(&args),
        Verb::Completions(args) => documents::completions(&args),
        Verb::Devices(args) => devices::run(&args),
        Verb::Diff(args) => diff::run(&args),
        Verb::Export(args) => export::run(&args),
        Verb::Import(args) => import::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Man(args) => documents::man(&args),
        Verb::Merge(args) => merge::run(&args),
        Verb::Probe(args) => probe::run(&args),
        Verb::ReportIssue(args) => documents::report_issue(&args),
        Verb::Repro(args) => repro::run(&args),
        Verb::Run(args) => run::run(&args),
        Verb::Selftest(args) => selftest::run(&args),
        Verb::Synth(args) => synth::run(&args),
        Verb::Trace(args) => trace::run(&args),
    }
}
