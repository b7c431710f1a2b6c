//! `inspect`: what is in a model file.

use crate::Result;
use crate::cli::Outcome;

/// Show what is in a model file.
#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file; the bundled demo model if absent.
    pub model: Option<std::path::PathBuf>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    Err(crate::Error::cannot_run(format!("inspect {:?}: not written yet", args.model)))
}
