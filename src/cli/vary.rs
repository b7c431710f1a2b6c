//! `diff --vary`: one backend against itself.

use crate::backend::{Backend, OpenOptions};
use crate::cli::common::{BackendArgs, Prompt, cores, prepare};
use crate::cli::{Outcome, output};
use crate::diff::run::vary::{Vary, vary};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::vary::{VaryDocument, render};

/// Runs `what` on the backend called `name` and prints what differs.
pub fn run(
    model: &Model,
    prompt: &Prompt,
    what: &Vary,
    name: &str,
    backends: &BackendArgs,
    json: bool,
) -> Result<Outcome> {
    if let Vary::Threads(numbers) = what {
        if !name.starts_with("cpu") {
            let why = "only a CPU backend runs on threads";
            return Err(Error::usage(format!("--vary threads with --subject {name}: {why}")));
        }
        if let Some(n) = numbers.iter().find(|n| **n > cores()) {
            return Err(Error::usage(format!("--vary threads: this machine has no cores for {n} threads")));
        }
    }
    let open = |threads: Option<usize>| {
        let options = backends.options();
        let mut backend = backends.open_with(name, OpenOptions { threads: threads.or(options.threads), ..options })?;
        prepare(&mut backend, model)?;
        Ok(backend)
    };
    let info = open(None)?.info();
    let varied = vary(model, &prompt.tokens, what, open)?;
    let named = (model.gguf.name(), model.gguf.fingerprint());
    let document = VaryDocument::new(named, prompt.tokens.len(), &info, &varied);
    if json {
        output::print_json(&document)?
    } else {
        output::print(&render(&document, what))?
    }
    Ok(if varied.failed() { Outcome::Diverged } else { Outcome::Ok })
}
