//! `probe`: one stage alone, at any number of rows.

use crate::cli::common::{BackendArgs, ModelArg, PromptArgs, check_layer, prepare, progress_bar, stage_called};
use crate::cli::{Outcome, output};
use crate::diff::run::driver::summary;
use crate::error::{Error, Result};
use crate::op::{Scope, Site};
use crate::probe::{ProbeOptions, ProbeSides, probe};
use crate::report::probe::ProbeDocument;

/// Positions beyond which no rows are made: no model has so many.
const MOST_ROWS: u64 = 1 << 20;

/// Run one stage alone on synthetic operands of any number of rows, and hold both sides and the oracle against each other.
///
/// The operands are those of a short run, grown: each row has another captured row's values times a seeded factor a value. All rows are
/// compared; where the oracle would take too long it judges the first and the last, those beside powers of two, multiples of 65,535
/// and byte offsets where sizes end, some by chance, and those in which the sides are furthest apart. Exit code 1: a side is wrong.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// The stage, by its name or an alias
    #[arg(long, value_name = "STAGE")]
    stage: String,
    /// The layer [default: the first that has the stage]
    #[arg(long, value_name = "N")]
    layer: Option<u32>,
    /// Rows of the call
    #[arg(long = "rows", visible_alias = "tokens", value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=MOST_ROWS))]
    rows: u64,
    /// The position of the first row, for stages that depend on it: of attention, so many keys are seen before it
    #[arg(long, value_name = "P", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..MOST_ROWS))]
    start: u64,
    /// Of the operands, and of the rows that are judged by chance
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Rows that are judged by chance, where not all are
    #[arg(long, value_name = "N", default_value_t = 64)]
    judge: usize,
    /// The side to compare with, which also makes the short run; not the cpu:scalar of `diff`, which takes several times as long over many rows
    #[arg(long, value_name = "BACKEND", default_value = "cpu")]
    reference: String,
    /// The side to examine
    #[arg(long, value_name = "BACKEND", default_value = "gpu")]
    subject: String,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backends: BackendArgs,
}

pub fn run(args: &Args) -> Result<Outcome> {
    args.backends.check(&[&args.reference, &args.subject])?;
    let model = args.model.open()?;
    let stage = stage_called(&args.stage, &model)?;
    check_layer(args.layer, stage, &model)?;
    let layout = model.config.layout();
    let has = |n: &u32| stage.info().scope.occurs(layout.of(Some(*n)));
    let layer = match stage.info().scope {
        Scope::Model => None,
        _ => args.layer.or_else(|| (0..model.config.layers as u32).find(has)),
    };
    let options = ProbeOptions {
        start: args.start as usize,
        seed: args.seed,
        random_rows: args.judge,
        ..ProbeOptions::new(args.rows as usize)
    };
    if args.start + args.rows > MOST_ROWS {
        let (start, rows) = (args.start, args.rows);
        return Err(Error::usage(format!(
            "--start {start} and --rows {rows}: expected at most {MOST_ROWS} positions together, found {}",
            start + rows
        )));
    }
    let prompt = PromptArgs { tokens: short_run(&model), ..PromptArgs::default() }.resolve(&model)?;
    let mut reference = args.backends.open(&args.reference)?;
    let mut subject = args.backends.open(&args.subject)?;
    prepare(&mut reference, &model)?;
    if let [first, ..] = &subject.unsupported(&model.needs())[..] {
        return Err(Error::cannot_run(format!("{} cannot run {}: {first}", args.subject, model.config.name)));
    }
    let bar = progress_bar("{spinner} {msg}");
    let site = Site { layer, stage };
    let sides = ProbeSides { reference: &mut reference, subject: &mut subject };
    let mut tell = |what: &str| bar.set_message(what.to_string());
    let found = probe(&model, sides, &prompt.tokens, site, &options, &mut tell);
    bar.finish_and_clear();
    let (found, model) = (found?, summary(&model));
    let document = ProbeDocument::new(&model, &options, &found);
    match args.json {
        true => output::print_json(&document)?,
        false => output::print(&document.text())?,
    }
    Ok(if found.agrees() { Outcome::Ok } else { Outcome::Diverged })
}

/// Token ids of the short run where a model has no tokenizer for a text: its operands need no meaning.
fn short_run(model: &crate::model::Model) -> Option<Vec<u32>> {
    let vocab = model.config.vocab as u32;
    model.tokenizer.is_err().then(|| (0..11u32).map(|n| n * 7919 % vocab.max(1)).collect())
}
