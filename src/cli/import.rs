//! `import`: another program's trace as a trace directory.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::json;

use crate::Result;
use crate::cli::Outcome;
use crate::cli::common::{no_stdin, open_model};
use crate::cli::output::{print, print_json};
use crate::text::printable; // names come from a file that somebody else wrote
use crate::trace::import::{ImportOptions, Importer, import};

/// Take over the trace of another program, as a trace directory that `compare` and `diff --reference trace:DIR` read.
///
/// Names are mapped by --rules, as nodes of llama.cpp's graph or modules of transformers, and through the stages' own names
/// and aliases. What has no stage here is listed with the reason. Some stages, or some positions, are enough.
#[derive(clap::Args)]
pub struct Args {
    /// Whose trace it is
    #[arg(value_enum)]
    kind: KindArg,
    /// The file or directory; of a capture also several files, or the .index.json that lists them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The trace directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace the trace in DIR
    #[arg(long)]
    force: bool,
    /// The token ids of the run, where the source does not say; where it says others, that is an error
    #[arg(long, value_name = "ID,ID,…", value_delimiter = ',', action = clap::ArgAction::Set)]
    tokens: Option<Vec<u32>>,
    /// A JSON file that says which names are which stages; capture/README.md describes it
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// The engine's arithmetic contract, instead of the one that the source states
    #[arg(long, value_name = "NAME")]
    contract: Option<String>,
    /// The GGUF file that ran: fingerprint, shapes and token ids are held against it
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum KindArg {
    /// A directory of aprender's `apr trace --save-tensor`: layer-N/STAGE.bin and trace.json
    Aprt,
    /// A capture, or any safetensors files with names of stages, llama.cpp's nodes or transformers' modules
    #[value(alias = "safetensors")]
    Capture,
    /// Logits of llama.cpp's llama-debug: NAME.bin with NAME-tokens.bin beside it
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// A .npz file, or a directory of .npy files, with names like the keys of a capture
    Npz,
}

impl From<KindArg> for Importer {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Aprt => Importer::Aprt,
            KindArg::Capture => Importer::Capture,
            KindArg::LlamaCpp => Importer::LlamaCpp,
            KindArg::Npz => Importer::Npz,
        }
    }
}

pub fn run(args: &Args) -> Result<Outcome> {
    no_stdin(&args.paths, "an import reads files here and there")?;
    let model = args.model.as_deref().map(|path| open_model(Some(path))).transpose()?;
    let options = ImportOptions {
        tokens: args.tokens.clone(),
        contract: args.contract.clone(),
        rules: args.rules.as_deref(),
        model: model.as_ref().map(|model| (&model.config, model.gguf.fingerprint())),
        force: args.force,
    };
    let report = import(args.kind.into(), &args.paths, &options, &args.out)?;
    let manifest = &report.manifest;
    let imported = manifest.imported.as_ref().expect("what was imported says so");
    if args.json {
        let mapped: Vec<_> =
            report.mapped.iter().map(|(name, site)| json!({ "name": name, "key": site.key() })).collect();
        print_json(&json!({
            "schema": "twinscope.import/1",
            "kind": imported.kind,
            "path": imported.path,
            "out": args.out.display().to_string(),
            "engine": imported.engine,
            "contract": imported.contract,
            "positions": manifest.run.tokens.len(),
            "mapped": mapped,
            "unmapped": imported.unmapped,
            "assumed": imported.assumed,
            "warnings": imported.warnings,
        }))?;
        return Ok(Outcome::Ok);
    }
    let mut text = String::new();
    for (what, said) in [("engine", &imported.engine), ("contract", &imported.contract)] {
        if let Some(said) = said {
            text += &format!("{what:<12} {}\n", printable(said));
        }
    }
    for entry in &manifest.tensors {
        let name = report.mapped.iter().find(|(_, site)| site.key() == entry.key).map_or("", |(name, _)| name);
        text += &format!("{:<28} {} {:?} at {}", entry.key, entry.dtype, entry.shape, entry.positions);
        text += &if name == entry.key { "\n".to_string() } else { format!("  from {}\n", printable(name)) };
    }
    let unmapped = grouped(&imported.unmapped);
    for (what, lines) in [("assumed", &imported.assumed), ("not mapped", &unmapped), ("warning", &imported.warnings)] {
        for line in lines {
            text += &format!("{what:<12} {}\n", printable(line));
        }
    }
    text += &format!(
        "{} tensors in {}; {} assumed, {} not mapped, {} warnings\n",
        manifest.tensors.len(),
        args.out.display(),
        imported.assumed.len(),
        imported.unmapped.len(),
        imported.warnings.len()
    );
    print(&text)?;
    Ok(Outcome::Ok)
}

/// Lines `NAME: WHY` with the same reason as one line: every layer of a graph has the same nodes. The JSON document has them all.
fn grouped(lines: &[String]) -> Vec<String> {
    const SHOWN: usize = 4;
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut places = HashMap::new();
    for line in lines {
        let (name, why) = line.split_once(": ").unwrap_or(("", line));
        let place = *places.entry(why).or_insert_with(|| {
            groups.push((why, Vec::new()));
            groups.len() - 1
        });
        groups[place].1.push(name);
    }
    let line = |(why, names): (&str, Vec<&str>)| {
        let more = names.len().saturating_sub(SHOWN);
        let shown = names[..names.len() - more].join(", ");
        match (shown.is_empty(), more) {
            (true, _) => why.to_string(),
            (false, 0) => format!("{shown}: {why}"),
            (false, more) => format!("{shown} and {more} more: {why}"),
        }
    };
    groups.into_iter().map(line).collect()
}
