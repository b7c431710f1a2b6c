//! `diff --vary`: one backend against itself.

use crate::Result;
use crate::backend::Backend;
use crate::cli::common::{BackendArgs, Prompt, prepare};
use crate::cli::{Outcome, output};
use crate::diff::run::vary::{Vary, vary};
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
    let open = || {
        let mut backend = backends.open(name)?;
        prepare(&mut backend, model)?;
        Ok(backend)
    };
    let info = open()?.info();
    let variations = vary(model, &prompt.tokens, what, open)?;
    let failed = variations.iter().any(|v| v.failed);
    let document = VaryDocument {
        schema: "twinscope.vary/1",
        verdict: if failed { "diverged" } else { "agree" },
        model: model.gguf.name(),
        fingerprint: model.gguf.fingerprint(),
        tokens: prompt.tokens.len(),
        subject: &info,
        variations: &variations,
    };
    if json {
        output::print_json(&document)?
    } else {
        output::print(&render(&document, what))?
    }
    Ok(if failed { Outcome::Diverged } else { Outcome::Ok })
}
