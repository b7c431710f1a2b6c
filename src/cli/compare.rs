//! `compare`: the same judgement over two saved traces.

use std::path::PathBuf;

use crate::cli::Outcome;
use crate::cli::diff::{print_comparison, required};
use crate::diff::measure::tolerance::Tolerances;
use crate::diff::run::traces;
use crate::environment::Environment;
use crate::report::ReportFile;
use crate::trace::store::Trace;
use crate::{Error, Result};

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
    /// Stages that must have been compared, in every layer, for the sides to agree: `all`, or such as 'attn_*,moe_out'
    #[arg(long, value_name = "STAGES")]
    require: Option<String>,
    /// Every stage, not only the worst; in a document every position and router, too
    #[arg(long)]
    full: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
    /// Also write a report; its ending says which: .html, .xml (JUnit), .json, .md or .txt; several allowed
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let tolerances = Tolerances::parse(&args.tol)?;
    let reports = args.report.iter().map(|p| ReportFile::new(p)).collect::<Result<Vec<_>>>()?;
    let (reference, subject) = (Trace::open(&args.reference)?, Trace::open(&args.subject)?);
    let mut comparison = traces::compare(&reference, &subject, &tolerances)?;
    if let Some(stages) = &args.require {
        let model = traces::model_of(&reference).or_else(|| traces::model_of(&subject)).ok_or_else(|| {
            let dir = args.reference.display();
            Error::usage(format!(
                "--require {stages}: {dir} does not say which stages its model has; `import` with --model, or `diff` with the model, knows"
            ))
        })?;
        comparison.require(required(stages, model)?);
    }
    if let Some(fingerprint) = &comparison.model.fingerprint {
        Environment::used_model(&comparison.model.name, fingerprint.clone());
    }
    for report in reports {
        report.write(&comparison)?;
    }
    print_comparison(&comparison, args.json, args.full)?;
    Ok(if comparison.agrees() { Outcome::Ok } else { Outcome::Diverged })
}
