//! The command line: one file a verb, each with an `Args` and a `run`.
//!
//! Exit codes: 0 agree or done · 1 diverged · 2 usage or unreadable input · 125 could not run here.
//! Results go to stdout, everything else to stderr.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::Result;

mod bench;
mod common;
mod compare;
mod devices;
mod diff;
mod export;
mod import;
mod inspect;
mod merge;
mod output;
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
}

/// Finds the first stage where two runs of a quantized model differ by more than rounding, and the side that is wrong.
#[derive(Parser)]
#[command(name = "twinscope", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Bench(Box<bench::Args>),
    Compare(compare::Args),
    Devices(devices::Args),
    Diff(Box<diff::Args>),
    Export(export::Args),
    Import(import::Args),
    Inspect(inspect::Args),
    Merge(merge::Args),
    Repro(Box<repro::Args>),
    Run(run::Args),
    Selftest(selftest::Args),
    Synth(Box<synth::Args>),
    Trace(Box<trace::Args>),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => return ExitCode::from(output::print_usage(&usage)),
    };
    match common::start_threads().and_then(|()| run(cli)) {
        Ok(Outcome::Ok) => ExitCode::SUCCESS,
        Ok(Outcome::Diverged) => ExitCode::from(1),
        Err(e) => {
            output::say(&format!("error: {e}"));
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<Outcome> {
    match cli.verb {
        Verb::Bench(args) => bench::run(&args),
        Verb::Compare(args) => compare::run(&args),
        Verb::Devices(args) => devices::run(&args),
        Verb::Diff(args) => diff::run(&args),
        Verb::Export(args) => export::run(&args),
        Verb::Import(args) => import::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Merge(args) => merge::run(&args),
        Verb::Repro(args) => repro::run(&args),
        Verb::Run(args) => run::run(&args),
        Verb::Selftest(args) => selftest::run(&args),
        Verb::Synth(args) => synth::run(&args),
        Verb::Trace(args) => trace::run(&args),
    }
}
