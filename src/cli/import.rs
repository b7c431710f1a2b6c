//! `import`: another program's trace as a trace directory.

use std::path::PathBuf;

use serde_json::json;

use crate::Result;
use crate::cli::Outcome;
use crate::cli::output::{print, print_json};
use crate::text::printable; // names come from a file that somebody else wrote
use crate::trace::import::{Importer, import};

/// Take over the trace of another program, as a trace directory that `compare` and `diff --reference trace:DIR` read.
///
/// Names are mapped through the stages' own names and aliases; what has no stage here is listed.
#[derive(clap::Args)]
pub struct Args {
    /// Whose trace it is
    #[arg(value_enum)]
    kind: KindArg,
    /// The file or directory
    path: PathBuf,
    /// The trace directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace the trace in DIR
    #[arg(long)]
    force: bool,
    /// The token ids of the run, where the source does not say or says otherwise
    #[arg(long, value_name = "ID,ID,…", value_delimiter = ',')]
    tokens: Option<Vec<u32>>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum KindArg {
    /// A directory of aprender's `apr trace --save-tensor`: layer-N/STAGE.bin and trace.json
    Aprt,
    /// A file with keys `layers.N.STAGE` and `STAGE`, such as hooks on a transformers model write
    Safetensors,
    /// Logits of llama.cpp's llama-debug: NAME.bin with NAME-tokens.bin beside it
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// A .npz file, or a directory of .npy files, with names like the keys of a safetensors file
    Npz,
}

impl From<KindArg> for Importer {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Aprt => Importer::Aprt,
            KindArg::Safetensors => Importer::Safetensors,
            KindArg::LlamaCpp => Importer::LlamaCpp,
            KindArg::Npz => Importer::Npz,
        }
    }
}

pub fn run(args: &Args) -> Result<Outcome> {
    let report = import(args.kind.into(), &args.path, args.tokens.clone(), &args.out, args.force)?;
    let manifest = &report.manifest;
    let (unmapped, assumed) = match &manifest.imported {
        Some(imported) => (&imported.unmapped[..], &imported.assumed[..]),
        None => (&[][..], &[][..]),
    };
    if args.json {
        let mapped: Vec<_> =
            report.mapped.iter().map(|(name, site)| json!({ "name": name, "key": site.key() })).collect();
        print_json(&json!({
            "schema": "twinscope.import/1",
            "kind": Importer::from(args.kind).name(),
            "path": args.path.display().to_string(),
            "out": args.out.display().to_string(),
            "positions": manifest.run.tokens.len(),
            "mapped": mapped,
            "unmapped": unmapped,
            "assumed": assumed,
        }))?;
        return Ok(Outcome::Ok);
    }
    let mut text = String::new();
    for entry in &manifest.tensors {
        let name = report.mapped.iter().find(|(_, site)| site.key() == entry.key).map_or("", |(name, _)| name);
        text += &format!("{:<28} {} {:?} at {}", entry.key, entry.dtype, entry.shape, entry.positions);
        text += &if name == entry.key { "\n".to_string() } else { format!("  from {}\n", printable(name)) };
    }
    for line in assumed {
        text += &format!("assumed      {}\n", printable(line));
    }
    for line in unmapped {
        text += &format!("not mapped   {}\n", printable(line));
    }
    text += &format!(
        "{} tensors in {}; {} assumed, {} not mapped\n",
        manifest.tensors.len(),
        args.out.display(),
        assumed.len(),
        unmapped.len()
    );
    print(&text)?;
    Ok(Outcome::Ok)
}
