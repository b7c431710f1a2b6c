//! `run`: greedy text from one backend, streamed.

use std::time::Instant;

use crate::backend::{AnyBackend, Backend};
use crate::cli::common::{BackendArgs, ModelArg, Prompt, PromptArgs, prepare};
use crate::cli::{Outcome, output};
use crate::model::{Calls, LogitRows, Model, Runner, Tokenizer};
use crate::text::count;
use crate::{Error, Result};

/// Generate text greedily, and say how fast.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    prompt: PromptArgs,
    /// How many tokens to generate
    #[arg(short, long = "predict", value_name = "N", default_value_t = 32)]
    n: usize,
    /// The backend: cpu, cpu:scalar, cpu:avx2, cpu:avx512, cpu:neon, cpu:int8, gpu, gpu:N, gpu:NAME, oracle
    #[arg(long, value_name = "BACKEND", default_value = "cpu")]
    backend: String,
    /// Prompt tokens run at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    #[command(flatten)]
    backends: BackendArgs,
}

pub fn run(args: &Args) -> Result<Outcome> {
    args.backends.check(&[&args.backend])?;
    let model = args.model.open()?;
    let prompt = args.prompt.resolve(&model)?;
    let calls = Calls { prompt: &prompt.tokens, chunk: args.chunk as usize, decode: args.n, forced: &[] };
    calls.positions(&model.config)?; // before the weights are loaded
    let mut backend = args.backends.open(&args.backend)?;
    prepare(&mut backend, &model)?;
    let mut runner = Runner::new(&mut backend, &model, calls, LogitRows::Last)?;
    let info = backend.info();
    let software = if info.software { " (software adapter)" } else { "" };
    output::remark(&format!("{} · {}{software}", info.backend, info.adapter));

    for remark in model.remarks() {
        output::remark(&format!("note: {remark}"));
    }
    for tensor in model.weights.not_finite() {
        output::remark(&format!(
            "warning: {}: tensor {tensor}; what is computed with it means nothing",
            model.gguf.name()
        ));
    }
    let mut stream = Stream::new(&model, &prompt)?;
    let began = Instant::now();
    while runner.position() < prompt.tokens.len() {
        runner.step(&mut backend)?;
    }
    let mut next = choice(&mut runner, &mut backend, &model)?;
    let prefill = began.elapsed();
    let logits = runner.logits(&mut backend)?;
    if logits.len() > 1 && logits.iter().all(|x| *x == logits[0]) {
        output::remark("warning: all logits are equal: nothing that the model computes is in them");
    }
    let began = Instant::now();
    for i in 0..args.n {
        if !stream.push(next)? {
            return Ok(Outcome::Ok); // whoever read the text has seen enough
        }
        if model.tokenizer()?.eos == Some(next) || i + 1 == args.n {
            break;
        }
        runner.step(&mut backend)?;
        next = choice(&mut runner, &mut backend, &model)?;
    }
    output::print("\n")?;
    let rate = |tokens: usize, time: std::time::Duration| tokens as f64 / time.as_secs_f64();
    let tokens = prompt.tokens.len();
    output::remark(&format!("prefill {}, {:.1} tokens/s", count(tokens, "token"), rate(tokens, prefill)));
    let decoded = runner.decoded();
    if decoded > 0 {
        let rate = rate(decoded, began.elapsed());
        output::remark(&format!("decode  {}, {rate:.1} tokens/s", count(decoded, "token")));
    }
    Ok(Outcome::Ok)
}

/// The token that follows. Where there is none because a weight of the file is not finite, that is named.
fn choice(runner: &mut Runner<'_, AnyBackend>, backend: &mut AnyBackend, model: &Model) -> Result<u32> {
    if runner.logits(backend)?.iter().any(|x| x.is_nan())
        && let Some(place) = model.weights.first_not_finite()?
    {
        return Err(Error::input(format!(
            "{}: {place} is not finite, nor are the logits: there is no next token",
            model.gguf.name()
        )));
    }
    runner.choice(backend)
}

/// Prints text as tokens arrive, holding back bytes that are not yet whole characters.
struct Stream<'m> {
    tokenizer: &'m Tokenizer,
    tokens: Vec<u32>,
    printed: usize,
}

impl<'m> Stream<'m> {
    fn new(model: &'m Model, prompt: &Prompt) -> Result<Self> {
        let without = |e: &_| Error::input(format!("{e}; `run` writes text, `trace` and `diff` take token ids alone"));
        let tokenizer = model.tokenizer.as_ref().map_err(without)?;
        match &prompt.text {
            Some(text) => output::print_generated(text)?,
            None => output::print_generated(&tokenizer.decode(&prompt.tokens)?)?,
        };
        Ok(Self { tokenizer, tokens: Vec::new(), printed: 0 })
    }

    /// Prints what `token` completes; false once nobody reads it.
    fn push(&mut self, token: u32) -> Result<bool> {
        let mut read = true;
        self.tokens.push(token);
        let text = self.tokenizer.decode(&self.tokens)?;
        let whole = text.trim_end_matches('\u{fffd}').len();
        if whole > self.printed {
            read = output::print_generated(&text[self.printed..whole])?;
            self.printed = whole;
        }
        if whole == text.len() {
            // Nothing is held back: what follows decodes on its own.
            self.tokens.clear();
            self.printed = 0;
        }
        Ok(read)
    }
}
