//! `diff`: two backends in lockstep over one prompt; the first stage whose own error is more than rounding explains.

use crate::Result;
use crate::backend::AnyBackend;
use crate::cli::common::{BackendArgs, ModelArg, PromptArgs, prepare};
use crate::cli::{Outcome, output};
use crate::diff::driver::{DiffOptions, Sides, diff};
use crate::diff::outcome::Comparison;
use crate::diff::tolerance::Tolerances;
use crate::report::json::Document;
use crate::report::text;

/// Compare two backends stage by stage.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    prompt: PromptArgs,
    /// The side to compare with
    #[arg(long, value_name = "BACKEND", default_value = "cpu:scalar")]
    reference: String,
    /// The side to examine
    #[arg(long, value_name = "BACKEND", default_value = "gpu")]
    subject: String,
    /// Decode this many tokens after the prompt, each the reference's choice
    #[arg(long, value_name = "N", default_value_t = 0)]
    decode: usize,
    /// Prompt tokens run at a time
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// A limit that decides for a stage in place of its rounding floor, such as 'expert_down:nmse<=5e-4'; several allowed
    #[arg(long, value_name = "STAGE:METRIC<=VALUE")]
    tol: Vec<String>,
    /// Judge by nmse thresholds alone, without the float64 oracle
    #[arg(long)]
    no_oracle: bool,
    /// Whose choice of experts the subject computes with
    #[arg(long, value_name = "SIDE", default_value = "own", value_parser = ["own", "reference"])]
    routing: String,
    /// Every stage, not only the worst
    #[arg(long)]
    full: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backends: BackendArgs,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let tolerances = Tolerances::parse(&args.tol)?;
    let model = args.model.open()?;
    let prompt = args.prompt.resolve(&model)?;
    let open = |name: &str| -> Result<AnyBackend> {
        let mut backend = args.backends.open(name)?;
        prepare(&mut backend, &model)?;
        Ok(backend)
    };
    let (mut reference, mut subject) = (open(&args.reference)?, open(&args.subject)?);
    let mut oracle = if args.no_oracle { None } else { Some(open("oracle")?) };
    let options = DiffOptions {
        prompt: prompt.text,
        decode: args.decode,
        chunk: args.chunk as usize,
        tolerances,
        force_routing: args.routing == "reference",
        ..DiffOptions::new(prompt.tokens)
    };
    let sides = Sides { reference: &mut reference, subject: &mut subject, judge: oracle.as_mut() };
    let comparison = diff(&model, sides, &options, None)?;
    print_comparison(&comparison, args.json, args.full)?;
    Ok(if comparison.agrees() { Outcome::Ok } else { Outcome::Diverged })
}

/// Prints a comparison: one JSON document, or the report for people.
pub fn print_comparison(comparison: &Comparison, json: bool, full: bool) -> Result<()> {
    if json {
        output::print_json(&Document::from(comparison))
    } else {
        output::print(&text::render(comparison, text::Style::for_stdout(full)))
    }
}
