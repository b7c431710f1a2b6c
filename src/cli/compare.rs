//! `compare`: the same judgement over two saved traces.

use std::path::PathBuf;

use crate::Result;
use crate::cli::Outcome;
use crate::cli::diff::print_comparison;
use crate::diff::measure::tolerance::Tolerances;
use crate::diff::run::traces;
use crate::report::ReportFile;
use crate::trace::store::Trace;

/// Compare two saved traces stage by stage.
///
/// Without the model no stage can be replayed, so a difference may be inherited; `diff --reference trace:A --subject trace:B`
/// with the model tells injected from inherited errors.
#[derive(clap::Args)]
pub struct Args {
    /// The trace directory to compare with
    reference: PathBuf,
    /// The trace directory to examine
    subject: PathBuf,
    /// A limit in place of the default one, such as 'expert_down:nmse<=5e-4'; several allowed
    #[arg(long, value_name = "STAGE:METRIC<=VALUE")]
    tol: Vec<String>,
    /// Every stage, not only the worst
    #[arg(long)]
    full: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
    /// Also write a report; its ending says which: .html, .xml (JUnit), .json or .txt; several allowed
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let tolerances = Tolerances::parse(&args.tol)?;
    let reports = args.report.iter().map(|p| ReportFile::new(p)).collect::<Result<Vec<_>>>()?;
    let (reference, subject) = (Trace::open(&args.reference)?, Trace::open(&args.subject)?);
    let comparison = traces::compare(&reference, &subject, &tolerances)?;
    for report in reports {
        report.write(&comparison)?;
    }
    print_comparison(&comparison, args.json, args.full)?;
    Ok(if comparison.agrees() { Outcome::Ok } else { Outcome::Diverged })
}
