//! `bench ops`: single operations over the types and shapes of a real model.

use serde_json::json;

use super::{OutputArgs, SubjectArgs};
use crate::backend::OpenOptions;
use crate::bench::op_cases::{OpBenchCase, of_model, of_shape};
use crate::bench::ops::ops;
use crate::bench::subject::BenchSubject;
use crate::cli::common::{ModelArg, ONE_BY_ONE, progress_bar, say_tuning, tell};
use crate::cli::synth::parse_mix;
use crate::cli::{Outcome, output};
use crate::error::{Error, Result};
use crate::report::bench::ops::OpRow;
use crate::report::bench::{BenchDocument, BenchModel};
use crate::synth::{Mix, ModelShape};
use crate::trace::select::glob;

/// Time single operations: every operation, type and shape of a model, with its weights; or of a published shape, with
/// random ones.
///
/// Weights are read from memory rather than from a cache, as they are in a model. A case that a backend has no kernel
/// for is listed as refused.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// In place of a model, a published shape with random weights
    #[arg(long, conflicts_with = "model", value_parser = ModelShape::NAMES)]
    shape: Option<String>,
    /// The types of --shape, as llama.cpp's quantizer mixes them
    #[arg(long, default_value = "Q4_K_M", requires = "shape", value_parser = parse_mix)]
    quant: Mix,
    /// Positions that an operation is run on: 1 for decoding, more for prompts
    #[arg(short = 'p', long = "positions", value_name = "N,…", value_delimiter = ',', default_value = "1,512")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    positions: Vec<u32>,
    /// Positions in the cache before them, which attention sees as well
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    depth: u32,
    /// Only the operations whose line matches, such as 'mat_mul*', '*Q6_K*'
    #[arg(long, value_name = "GLOB")]
    only: Option<String>,
    /// About how long each is run, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0.2)]
    seconds: f64,
    #[command(flatten)]
    subjects: SubjectArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: &Args) -> Result<Outcome> {
    if !(args.seconds.is_finite() && args.seconds >= 0.0) {
        return Err(Error::usage(format!("--seconds: expected a time, found {}", args.seconds)));
    }
    if args.subjects.gpu_memory.is_some() {
        return Err(Error::usage("--gpu-memory: single operations are timed with their weights where they are used"));
    }
    let mut positions: Vec<usize> = args.positions.iter().map(|n| *n as usize).collect();
    positions.sort();
    positions.dedup();
    let depth = args.depth as usize;
    let (about, mut cases) = match &args.shape {
        None => {
            let model = args.model.open()?;
            (BenchModel::of(&model), of_model(&model, &positions, depth))
        }
        Some(name) => {
            let unknown = || Error::usage(format!("--shape: expected one of {:?}, found {name}", ModelShape::NAMES));
            let shape = ModelShape::named(name).ok_or_else(unknown)?;
            let about = BenchModel {
                file: format!("shape {name} {}", args.quant.name),
                name: format!("shape {name} {}", args.quant.name),
                architecture: shape.architecture().into(),
                fingerprint: None,
                bytes: None,
                parameters: None,
            };
            (about, of_shape(&shape, &args.quant, &positions, depth)?)
        }
    };
    if let Some(pattern) = &args.only {
        let whole = |case: &OpBenchCase| glob(pattern.as_bytes(), case.name().as_bytes());
        cases.retain(whole);
        if cases.is_empty() {
            return Err(Error::usage(format!(
                "--only {pattern}: no operation of {} matches; one is called, say, 'mat_mul Q4_K [2048, 4096] T=1'",
                about.name
            )));
        }
    }
    let settings = json!({"positions": positions, "depth": depth, "seconds": args.seconds, "only": args.only});
    let mut document: BenchDocument<OpRow> = BenchDocument::new(about, settings);
    let bar = progress_bar(ONE_BY_ONE);
    for (name, threads) in args.subjects.each() {
        // Before anything is measured.
        let named = BenchSubject::open(name, OpenOptions { threads, ..Default::default() }, false)?;
        say_tuning(&named.info);
        if document.has(&named.info, named.threads) {
            output::remark(&format!("note: {name} is {}, which is measured already", named.info.backend));
            continue;
        }
        let mut tell = |name: &str, done, of| tell(&bar, name, done, of);
        let result = ops(name, threads, !args.subjects.no_limits, &cases, args.seconds, &mut tell)?;
        document.add(&result);
    }
    bar.finish_and_clear();
    args.output.print(&document)?;
    Ok(Outcome::Ok)
}
