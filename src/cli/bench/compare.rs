//! `bench compare`: two results, and whether what changed is more than noise.

use std::path::PathBuf;

use crate::bench::compare::compare;
use crate::cli::common::stdin_once;
use crate::cli::{Outcome, output};
use crate::error::{Error, Result};
use crate::report::bench::compare as report;

/// Compare two results of `bench` of one form, written with --json.
///
/// Exit code 0 if every row is in both and none is slower; 1 if one is slower by more than noise, or was not compared.
#[derive(clap::Args)]
pub struct Args {
    /// The result to compare with; - for standard input
    #[arg(value_name = "A.json")]
    a: PathBuf,
    /// The result to examine; - for standard input
    #[arg(value_name = "B.json")]
    b: PathBuf,
    /// How often, in comparisons of equal programs, chance alone may make a change: over all rows together
    #[arg(long, value_name = "P", default_value_t = 0.01)]
    alpha: f64,
    /// The smallest change that counts: two runs of one program may differ by more than the noise inside each
    #[arg(long, value_name = "SHARE", default_value_t = 0.03)]
    min_change: f64,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    stdin_once(&[&args.a, &args.b])?;
    if !(args.alpha > 0.0 && args.alpha < 1.0) {
        return Err(Error::usage(format!("--alpha: expected a number between 0 and 1, found {}", args.alpha)));
    }
    if !(args.min_change.is_finite() && args.min_change >= 0.0) {
        return Err(Error::usage(format!("--min-change: expected 0 or more, such as 0.03, found {}", args.min_change)));
    }
    let comparison = compare(&args.a, &args.b, args.alpha, args.min_change)?;
    let names = [&args.a, &args.b].map(|path| path.display().to_string());
    let names = [names[0].as_str(), names[1].as_str()];
    if args.json {
        output::print_json(&report::BenchComparisonDocument::new(&comparison, names))?;
    } else {
        output::print(&report::text(&comparison, names))?;
    }
    Ok(if comparison.agrees() { Outcome::Ok } else { Outcome::Diverged })
}
