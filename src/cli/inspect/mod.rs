//! `inspect`: what is in a model file, what memory it takes and what can run it.
//!
//! Works on any valid GGUF file, whatever its architecture: what no backend can run is said under `runnable`, it is not an
//! error.

mod runnable;

use std::path::Path;

use crate::Result;
use crate::backend::Backend;
use crate::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use crate::cli::common::ModelArg;
use crate::cli::{Outcome, output};
use crate::environment::Environment;
use crate::memory::memory_bytes;
use crate::model::{self, Model};
use crate::report::inspect::{self, Adapter, CheckDocument, CheckVerdict, InspectDocument};

/// Show what is in a model file, the memory that it takes and which backends can run it.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// Say what llama.cpp would refuse in the file, or read otherwise than it is written: exit code 1 if there is something, 2 if the file
    /// cannot be read to its end
    #[arg(long)]
    check: bool,
    /// Print one JSON document (schema twinscope.inspect/1, or twinscope.check/1)
    #[arg(long)]
    json: bool,
}

fn check(path: Option<&Path>, json: bool) -> Result<Outcome> {
    let checked = model::check(path)?;
    if let Ok(gguf) = &checked.gguf {
        Environment::used_model(gguf.name(), gguf.fingerprint());
    }
    let document = CheckDocument::new(&checked);
    match json {
        true => output::print_json(&document)?,
        false => output::print(&document.render())?,
    }
    Ok(match document.verdict {
        CheckVerdict::Sound => Outcome::Ok,
        CheckVerdict::Refused | CheckVerdict::Misread => Outcome::Diverged,
        CheckVerdict::Unreadable => Outcome::Unreadable,
    })
}

pub fn run(args: &Args) -> Result<Outcome> {
    let path = args.model.model.as_deref();
    if args.check {
        return check(path, args.json);
    }
    // A file that is no model for the forward pass is still a file to look at: then it is opened a second time without it.
    let (gguf, needs) = match Model::open(path) {
        Ok(model) => {
            let needs = model.needs();
            (model.gguf, Ok(needs))
        }
        Err(e) => (model::open_gguf(path)?, Err(e.to_string())),
    };
    Environment::used_model(gguf.name(), gguf.fingerprint());
    let gpu = GpuBackend::new(&AdapterSelector::Best, GpuOptions::default());
    if let Ok(gpu) = &gpu {
        Environment::used_backend(&gpu.info());
    }
    let runnable = runnable::runnable(&needs, &gpu);
    let document = InspectDocument::new(&gguf, runnable, gpu.ok().as_ref().map(Adapter::of), memory_bytes());
    if args.json {
        output::print_json(&document)?;
    } else {
        output::print(&inspect::render(&document))?;
    }
    Ok(Outcome::Ok)
}
