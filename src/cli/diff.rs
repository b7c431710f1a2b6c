//! `diff`: two backends in lockstep over one prompt; the first stage whose own error is more than rounding explains.

use crate::Result;
use crate::backend::{AnyBackend, Backend, OpKind};
use crate::cli::Outcome;
use crate::cli::common::{BackendArgs, ModelArg, Prompt, PromptArgs, argmax, prepare};
use crate::diff::judge::{Contracts, Judge};
use crate::diff::lockstep::{Lockstep, LockstepOptions};
use crate::diff::logits::LogitsComparison;
use crate::diff::outcome::{Comparison, Kind, ModelSummary, SideSummary};
use crate::diff::tolerance::Tolerances;
use crate::error::Error;
use crate::model::{LogitRows, Model, Session, forward};

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
    let comparison = compare(args, &model, &prompt, tolerances)?;
    for s in &comparison.stages {
        let own = s.own().metrics().map_or(f64::NAN, |m| m.nmse);
        println!(
            "{} {:24} {:?} own nmse {own:.2e} ratio {:.3e} {:?} {}",
            s.step,
            s.site.to_string(),
            s.shape,
            s.ratio.unwrap_or(f64::NAN),
            s.judged,
            s.verdict
        );
    }
    Ok(if comparison.agrees() { Outcome::Ok } else { Outcome::Diverged })
}

fn compare(args: &Args, model: &Model, prompt: &Prompt, tolerances: Tolerances) -> Result<Comparison> {
    let capacity = prompt.tokens.len().saturating_add(args.decode);
    if capacity > model.config.context {
        return Err(Error::usage(format!(
            "{} prompt tokens and --decode {} are {capacity} positions; the context length of {} is {}",
            prompt.tokens.len(),
            args.decode,
            model.config.name,
            model.config.context
        )));
    }
    let open = |name: &str| -> Result<AnyBackend> {
        let mut backend = args.backends.open(name)?;
        prepare(&mut backend, model)?;
        Ok(backend)
    };
    let (reference, subject) = (open(&args.reference)?, open(&args.subject)?);
    let oracle = if args.no_oracle { None } else { Some(open("oracle")?) };

    let mut comparison = Comparison {
        kind: Kind::Diff,
        model: summary(model),
        tokens: prompt.tokens.len(),
        prompt: prompt.text.clone(),
        decode: args.decode,
        reference: SideSummary { info: reference.info(), trace: None },
        subject: SideSummary { info: subject.info(), trace: None },
        judge: oracle.as_ref().map(|o| o.info().backend),
        stages: Vec::new(),
        first_fault: None,
        first_visible: None,
        routing: Vec::new(),
        logits: None,
        notes: notes(&reference, &subject),
        next: None,
    };
    let (contracts_c, contracts_g) = (Contracts::of(&reference), Contracts::of(&subject));
    let mut judge =
        Judge::new(&model.config, contracts_c, contracts_g, tolerances, &prompt.tokens, prompt.tokens.len(), None);
    let options = LockstepOptions { force_routing: args.routing == "reference", ..Default::default() };
    let mut lockstep = Lockstep::new(reference, subject, oracle, options, &mut judge);
    let mut session = Session::new(&mut lockstep, &model.config, capacity)?;
    let mut next = 0;
    for chunk in prompt.tokens.chunks(args.chunk as usize) {
        let logits = forward(&mut lockstep, model, &mut session, chunk, LogitRows::All)?;
        next = argmax(&lockstep.read(&logits)?)?;
    }
    for _ in 0..args.decode {
        let logits = forward(&mut lockstep, model, &mut session, &[next], LogitRows::All)?;
        next = argmax(&lockstep.read(&logits)?)?;
    }
    drop((session, lockstep));

    comparison.stages = judge.stages;
    comparison.routing = judge.routing;
    comparison.logits = (!judge.logits.is_empty()).then(|| LogitsComparison::from_positions(judge.logits));
    comparison.conclude();
    Ok(comparison)
}

pub fn summary(model: &Model) -> ModelSummary {
    let moe = model.config.moe.as_ref();
    ModelSummary {
        name: model.gguf.name().to_string(),
        architecture: model.config.architecture.name().to_string(),
        layers: model.config.layers,
        experts: moe.map_or(0, |m| m.experts),
        experts_used: moe.map_or(0, |m| m.used),
    }
}

/// What must be said of the two sides before their numbers are read.
fn notes(reference: &AnyBackend, subject: &AnyBackend) -> Vec<String> {
    let mut notes = Vec::new();
    for side in [reference, subject] {
        let info = side.info();
        if info.software {
            notes.push(format!("{} runs on {}, a software adapter: a CPU, not a GPU", info.backend, info.adapter));
        }
    }
    let differ = |op: &OpKind| {
        let (c, g) = (reference.contract(*op), subject.contract(*op));
        c.activations != g.activations || c.accumulator != g.accumulator
    };
    if OpKind::ALL.iter().any(differ) {
        let (c, g) = (reference.info().contract, subject.info().contract);
        notes.push(format!("the sides compute in different precision: {c}; {g}"));
    }
    notes
}
