//! `compare`: the same judgement over two saved traces; of two files of one model, what each part of the one costs.

mod files;

use std::path::{Path, PathBuf};

use crate::cli::Outcome;
use crate::cli::common::{BackendArgs, PromptArgs, no_stdin};
use crate::cli::diff::{check_tolerances, print_comparison, required};
use crate::cli::reports::{ReportArgs, Reports};
use crate::diff::exchange::PartBy;
use crate::diff::measure::tolerance::Tolerances;
use crate::diff::run::traces;
use crate::environment::Environment;
use crate::trace::store::Trace;
use crate::{Error, Result};

/// Compare two saved traces stage by stage, or two GGUF files of one model part by part.
///
/// Traces: without the model no stage can be replayed, so a difference may be inherited; `diff --reference trace:A --subject trace:B`
/// with the model tells injected from inherited errors.
///
/// Files, such as two quantizations: the first is run with each layer, each kind of tensor, each type and each tensor of the second in
/// turn, and they are ranked by what that does to the logits. Exit code 0: nothing is judged.
#[derive(clap::Args)]
pub struct Args {
    /// The trace directory to compare with, or the GGUF file
    reference: PathBuf,
    /// The trace directory to examine, or the GGUF file
    subject: PathBuf,
    /// Of traces: a limit in place of the default one, such as 'expert_down:nmse<=5e-4'; several allowed
    #[arg(long, value_name = "STAGE:METRIC<=VALUE")]
    tol: Vec<String>,
    /// Of traces: stages that must have been compared, in every layer, for the sides to agree: `all`, or such as 'attn_*,moe_out'
    #[arg(long, value_name = "STAGES")]
    require: Option<String>,
    /// Everything, not only the worst; in a document of traces every position and router, too
    #[arg(long)]
    full: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reports: ReportArgs,
    // Last, as its heading is that of all that follows.
    #[command(flatten)]
    files: FilesArgs,
}

/// What only a comparison of files takes.
#[derive(clap::Args)]
#[command(next_help_heading = "Of two GGUF files")]
struct FilesArgs {
    #[command(flatten)]
    prompt: PromptArgs,
    /// Many prompts, one a line, as those of `diff`; - for standard input
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["prompt", "prompt_file", "tokens"])]
    prompts: Option<PathBuf>,
    /// The backend that all runs are on
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// What to rank: layer, kind, types, tensor [default: all; tensors only where that takes little time]
    #[arg(long, value_enum, value_name = "PARTS", value_delimiter = ',', hide_possible_values = true)]
    by: Vec<PartBy>,
    #[command(flatten)]
    backends: BackendArgs,
}

pub fn run(args: &Args) -> Result<Outcome> {
    no_stdin(&[&args.reference, &args.subject], "a trace is a directory, and of a GGUF file parts are read")?;
    let reports = args.reports.open(args.json)?;
    let is_file = |path: &Path| std::fs::metadata(path).map(|found| found.is_file()).map_err(|e| Error::io(path, e));
    match [is_file(&args.reference)?, is_file(&args.subject)?] {
        [true, true] => files::run(args, reports),
        [false, false] => of_traces(args, reports),
        [file, _] => {
            let (file, other) = if file { (&args.reference, &args.subject) } else { (&args.subject, &args.reference) };
            Err(Error::usage(format!(
                "expected two trace directories or two GGUF files, found one of each: {} is a file, {} is not",
                file.display(),
                other.display()
            )))
        }
    }
}

fn of_traces(args: &Args, reports: Reports) -> Result<Outcome> {
    let FilesArgs { prompt, prompts, backend, by, backends } = &args.files;
    let BackendArgs { threads, gpu_memory, poison } = backends;
    let given = [
        ("--prompt, --prompt-file and --tokens", prompt.is_given()),
        ("--prompts", prompts.is_some()),
        ("--backend", backend.is_some()),
        ("--by", !by.is_empty()),
        ("--threads", threads.is_some()),
        ("--gpu-memory", gpu_memory.is_some()),
        ("--poison", *poison),
    ];
    if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
        let dir = args.reference.display();
        return Err(Error::usage(format!("{flag}: of two GGUF files, which are run; {dir} is no file")));
    }
    let tolerances = Tolerances::parse(&args.tol)?;
    let (reference, subject) = (Trace::open(&args.reference)?, Trace::open(&args.subject)?);
    if let Some(model) = traces::model_of(&reference).or_else(|| traces::model_of(&subject)) {
        check_tolerances(&args.tol, model)?;
    }
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
    if !reports.write(|format| format.render(&comparison))? {
        print_comparison(&comparison, args.json, args.full)?;
    }
    Ok(if comparison.agrees() { Outcome::Ok } else { Outcome::Diverged })
}
