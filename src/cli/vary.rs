//! `diff --vary`: one backend against itself.

use serde::Serialize;

use crate::Result;
use crate::backend::{Backend, BackendInfo};
use crate::cli::common::{BackendArgs, Prompt, prepare};
use crate::cli::{Outcome, output};
use crate::diff::run::vary::{Difference, Variation, Vary, vary};
use crate::model::Model;
use crate::report::format::{clean, scientific};

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    verdict: &'static str,
    model: &'a str,
    tokens: usize,
    subject: &'a BackendInfo,
    variations: &'a [Variation],
}

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
    if json {
        output::print_json(&Document {
            schema: "twinscope.vary/1",
            verdict: if failed { "diverged" } else { "agree" },
            model: model.gguf.name(),
            tokens: prompt.tokens.len(),
            subject: &info,
            variations: &variations,
        })?;
    } else {
        output::print(&text(model, prompt, what, &info, &variations))?;
    }
    Ok(if failed { Outcome::Diverged } else { Outcome::Ok })
}

fn text(model: &Model, prompt: &Prompt, what: &Vary, info: &BackendInfo, variations: &[Variation]) -> String {
    let software = if info.software { ", software adapter" } else { "" };
    let mut text = format!(
        "{} · {} tokens\nsubject    {} · {}{software}\nagainst    {}\n\n",
        clean(model.gguf.name()),
        prompt.tokens.len(),
        info.backend,
        info.adapter,
        match what {
            Vary::Chunk(sizes) => format!("itself with chunk={}", sizes[0]),
            Vary::Repeat(_) => "its first run".into(),
        }
    );
    for v in variations {
        text += &format!("{:10} {} of {} stages equal to the bit", v.name, v.equal, v.stages);
        for (what, difference) in [("first", &v.first_difference), ("worst", &v.worst)] {
            if let Some(d) = difference {
                text += &format!("\n           {what}  {}", describe(d));
            }
        }
        text += if v.failed { "\n           FAILED\n" } else { "\n" };
    }
    text
}

fn describe(d: &Difference) -> String {
    let place = match d.layer {
        Some(n) => format!("layer {n} · {} · position {}", d.stage, d.position),
        None => format!("{} · position {}", d.stage, d.position),
    };
    match (d.nmse, d.max_abs, d.max_ulp) {
        (Some(nmse), Some(abs), Some(ulp)) => {
            format!("{place} · nmse {}, at most {} or {ulp} ULP", scientific(nmse), scientific(abs))
        }
        _ => format!("{place} · {}", d.why),
    }
}
