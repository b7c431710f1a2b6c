//! Two files of one model: the parts of the second, ranked by what they cost at the logits of the first.

use std::collections::BTreeSet;

use super::Args;
use crate::backend::Backend;
use crate::cli::common::{ONE_BY_ONE, open_model, prepare_all, progress_bar, tell};
use crate::cli::reports::Reports;
use crate::cli::sweep::Prompts;
use crate::cli::{Outcome, output};
use crate::diff::exchange::{exchange, parts, usual_parts};
use crate::diff::run::driver::summary;
use crate::diff::sweep::Shard;
use crate::error::{Error, Result};
use crate::model::WeightPlace;
use crate::report::exchange::ExchangeDocument;

pub fn run(args: &Args, reports: Reports) -> Result<Outcome> {
    for (flag, given) in [("--tol", !args.tol.is_empty()), ("--require", args.require.is_some())] {
        if given {
            let file = args.reference.display();
            return Err(Error::usage(format!(
                "{flag}: of two traces, which are judged; {file} is a file, whose parts are ranked"
            )));
        }
    }
    reports.formats().try_for_each(ExchangeDocument::check)?;
    let files = &args.files;
    let backend = files.backend.as_deref().unwrap_or("cpu");
    files.backends.check(&[backend])?;
    let mut reference = open_model(Some(&args.reference))?;
    let mut subject = open_model(Some(&args.subject))?;
    let pairs = reference.pairs(&subject)?;
    let prompts: Vec<Vec<u32>> = match &files.prompts {
        Some(path) => Prompts::read(path, Shard::WHOLE, &reference, 0, &files.prompt)?
            .here
            .into_iter()
            .map(|prompt| prompt.tokens)
            .collect(),
        None => vec![files.prompt.resolve(&reference)?.tokens],
    };
    let tokens = prompts.iter().map(Vec::len).sum();
    let (by, note) = match files.by.is_empty() {
        true => usual_parts(&reference, &pairs, tokens),
        false => (files.by.clone(), None),
    };
    let by: Vec<_> = by.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let parts = parts(&pairs, &by)?;
    let mut backend = files.backends.open(backend)?;
    // What is the same in both is one weight.
    let same: Vec<&WeightPlace> = pairs.iter().filter(|pair| pair.same).map(|pair| &pair.place).collect();
    subject.weights = subject.weights.mixed(&reference.weights, &|place| same.contains(&place));
    prepare_all(&mut backend, &[&reference, &subject])?;
    let info = backend.info();
    let bar = progress_bar(ONE_BY_ONE);
    let mut progress = |name: &str, done: usize, of: usize| tell(&bar, name, done, of);
    let models = [summary(&reference), summary(&subject)];
    let found = exchange([&mut reference, &mut subject], &mut backend, &prompts, &pairs, parts, &mut progress);
    bar.finish_and_clear();
    let mut found = found?;
    found.notes.extend(note);
    let document = ExchangeDocument::new(models, &info, prompts.len(), &found);
    if !reports.write(|format| document.render(format))? {
        match args.json {
            true => output::print_json(&document)?,
            false => output::print(&document.text(args.full))?,
        }
    }
    Ok(Outcome::Ok)
}
