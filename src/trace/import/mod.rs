//! Traces of other programs.
//!
//! Design:
//! - A `Source` lists what it has and reads one tensor at a time; [`import()`] maps names to stages through the stage
//!   table's own names and aliases, fits shapes to the table, and writes an ordinary trace directory.
//! - Nothing is dropped in silence: what has no stage here, or could be several, is listed with the reason, in the result
//!   and in the manifest. So is every assumption, such as which position a lone row is.
//! - Files from elsewhere are untrusted: lengths are checked before anything is allocated.

mod aprt;
mod llama;
mod npy;
mod tensors;

use std::collections::BTreeMap;
use std::path::Path;

use crate::backend::BackendInfo;
use crate::error::{Error, Result};
use crate::op::{At, Data, Dim, HostTensor, Scope, Site, Stage};
use crate::text::{printable, printable_whole};

use super::select::{Selected, nearest, stages_named};
use super::stats::Statistics;
use super::store::{Imported, ModelInfo, Run, SiteStats, TraceManifest, TraceWriter};

/// Whose trace it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importer {
    /// A directory of `apr trace --save-tensor`: layer-N/STAGE.bin and trace.json
    Aprt,
    /// A safetensors file with keys `layers.N.STAGE` and `STAGE`, as transformers hooks write it
    Safetensors,
    /// Logits of llama.cpp's llama-debug: NAME.bin with NAME-tokens.bin beside it
    LlamaCpp,
    /// A .npz file, or a directory of .npy files, named like the keys of a safetensors file
    Npz,
}

impl Importer {
    /// Every importer.
    pub const ALL: [Importer; 4] = [Importer::Aprt, Importer::Safetensors, Importer::LlamaCpp, Importer::Npz];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Importer::Aprt => "aprt",
            Importer::Safetensors => "safetensors",
            Importer::LlamaCpp => "llama.cpp",
            Importer::Npz => "npz",
        }
    }
}

/// A tensor that a source has.
pub struct Item {
    /// As the source calls it, for messages.
    pub label: String,
    /// Its axes.
    pub shape: Vec<usize>,
}

/// What a source says of itself.
#[derive(Default)]
pub struct About {
    /// The model's name.
    pub model: String,
    /// `general.architecture`.
    pub architecture: String,
    /// The program that made it.
    pub program: String,
    /// The prompt as text.
    pub prompt: Option<String>,
    /// Empty if the source does not say.
    pub tokens: Vec<u32>,
    /// Every tensor is one row, that of the last token.
    pub last_row_only: bool,
    /// What else is there and is not a tensor of a stage.
    pub other: Vec<String>,
}

/// Something that has tensors of a run.
trait Source {
    fn about(&self) -> &About;
    fn items(&self) -> &[Item];
    /// The values of item `i`, in the shape that the item has.
    fn read(&mut self, i: usize) -> Result<HostTensor>;
}

/// What an import did.
#[derive(Debug)]
pub struct Report {
    /// The trace that was written.
    pub manifest: TraceManifest,
    /// The source's name of each tensor that was taken over, and the site that it is.
    pub mapped: Vec<(String, Site)>,
}

/// Writes what `path` has as a trace directory `out`. `tokens` overrides what the source says, or stands in where it does not.
///
/// # Errors
/// If the source is unreadable, or nothing of it is a stage.
pub fn import(kind: Importer, path: &Path, tokens: Option<Vec<u32>>, out: &Path, force: bool) -> Result<Report> {
    match kind {
        Importer::Aprt => take(kind, path, aprt::Aprt::open(path)?, tokens, out, force),
        Importer::Safetensors => take(kind, path, tensors::Tensors::open(path)?, tokens, out, force),
        Importer::LlamaCpp => take(kind, path, llama::Logits::open(path)?, tokens, out, force),
        Importer::Npz => take(kind, path, npy::Arrays::open(path)?, tokens, out, force),
    }
}

/// An item that is a stage, with the shape that the stage table gives it.
struct Mapped {
    item: usize,
    site: Site,
    shape: Vec<usize>,
}

fn take(
    kind: Importer,
    path: &Path,
    mut source: impl Source,
    tokens: Option<Vec<u32>>,
    out: &Path,
    force: bool,
) -> Result<Report> {
    let about = source.about();
    let tokens = tokens.unwrap_or_else(|| about.tokens.clone());
    let mut unmapped = about.other.clone();
    let mut lone = Vec::new();

    let mut found: BTreeMap<Site, Mapped> = BTreeMap::new();
    for (i, item) in source.items().iter().enumerate() {
        let mapped = site_named(&item.label)
            .and_then(|site| fit(site.stage, &item.shape).map(|shape| Mapped { item: i, site, shape }));
        match mapped {
            Ok(mapped) => match found.get(&mapped.site) {
                Some(first) => {
                    let first = &source.items()[first.item].label;
                    unmapped.push(format!("{}: {first} is the same stage and was taken", item.label));
                }
                None => found.extend([(mapped.site, mapped)]),
            },
            Err(why) => unmapped.push(format!("{}: {why}", item.label)),
        }
    }

    // How many positions the run has, and where a tensor's first row stands among them.
    let rows_of = |m: &Mapped| m.shape[m.site.stage.position_axis()];
    let positions = if tokens.is_empty() { found.values().map(rows_of).max().unwrap_or(0) } else { tokens.len() };
    let mut starts = BTreeMap::new();
    for (site, mapped) in &found {
        let (rows, label) = (rows_of(mapped), &source.items()[mapped.item].label);
        let outer = matches!(site.stage, Stage::FinalNorm | Stage::Logits);
        if rows == positions && rows > 0 {
            starts.insert(*site, 0);
        } else if rows == 1 && (outer || about.last_row_only) && positions > 0 {
            lone.push(label.as_str());
            starts.insert(*site, positions - 1);
        } else {
            unmapped.push(format!("{label}: {rows} rows where the run has {positions} positions"));
        }
    }
    let assumed = match &lone[..] {
        [] => vec![],
        labels => vec![format!("the one row of {} is the last of {positions} positions", labels.join(", "))],
    };
    if starts.is_empty() {
        return Err(Error::input(format!(
            "{}: nothing in it is a stage of a run; {}",
            path.display(),
            if unmapped.is_empty() { "it is empty".to_string() } else { printable_whole(&unmapped.join("; ")) }
        )));
    }

    let selected = Selected::of(starts.keys().copied(), positions);
    let run = Run {
        model: ModelInfo {
            name: about.model.clone(),
            architecture: about.architecture.clone(),
            fingerprint: String::new(),
            hyperparameters: serde_json::Map::new(),
        },
        prompt: about.prompt.clone(),
        prompt_tokens: tokens.len(),
        tokens,
        backend: BackendInfo {
            backend: "imported".into(),
            adapter: about.program.clone(),
            driver: String::new(),
            software: false,
            contract: "not stated".into(),
        },
        contracts: BTreeMap::new(),
    };
    let mut writer = TraceWriter::create(out, force, selected)?;
    let mut statistics = Statistics::default();
    let mut mapped = Vec::new();
    for (site, start) in starts {
        let Mapped { item, shape, .. } = found.remove(&site).expect("every start is of a mapped item");
        let label = source.items()[item].label.clone();
        let data = suit(site.stage, source.read(item)?.data)
            .map_err(|what| Error::input(format!("{}: {}: {what}", path.display(), printable(&label))))?;
        let values = HostTensor { shape, data };
        let at = At::new(site, start);
        statistics.add(at, &values);
        writer.add(at, &values)?;
        mapped.push((label, site));
    }
    let imported = Imported { kind: kind.name().into(), path: path.display().to_string(), unmapped, assumed };
    let manifest = writer.finish(run, Some(imported), statistics.sites().map(SiteStats::new).collect())?;
    Ok(Report { manifest, mapped })
}

/// The site that a foreign name means: `layers.3.NAME`, `model.layers.3.NAME`, `blk.3.NAME`, `layer-3/NAME`, `NAME-3` or `NAME`,
/// where NAME is a stage's own name or an alias of one stage only.
fn site_named(label: &str) -> Result<Site, String> {
    let bare = label.strip_prefix("model.").unwrap_or(label);
    let prefixed = [("layers.", '.'), ("blk.", '.'), ("layer-", '/')].iter().find_map(|(prefix, end)| {
        let (number, name) = bare.strip_prefix(prefix)?.split_once(*end)?;
        Some((number.parse().ok()?, name))
    });
    let (layer, name): (Option<u32>, &str) = match prefixed {
        Some((layer, name)) => (Some(layer), name),
        None => match bare.rsplit_once('-').and_then(|(name, n)| Some((n.parse().ok()?, name))) {
            Some((layer, name)) => (Some(layer), name),
            None => (None, bare),
        },
    };
    let stages = if name.contains(['*', '?']) { vec![] } else { stages_named(name) };
    let stage = match stages[..] {
        [stage] => stage,
        [] => return Err(format!("no stage is called `{name}`; the nearest: {}", nearest_stage(name))),
        _ => {
            let names: Vec<_> = stages.iter().map(|s| s.name()).collect();
            return Err(format!("`{name}` could be {}", names.join(" or ")));
        }
    };
    match (stage.info().scope, layer) {
        (Scope::Model, None) => Ok(Site::model(stage)),
        (Scope::Model, Some(_)) => Err(format!("{stage} belongs to no layer")),
        (_, Some(_)) => Ok(Site { layer, stage }),
        (_, None) => Err(format!("{stage} of which layer is not said")),
    }
}

fn nearest_stage(name: &str) -> String {
    let names = crate::op::STAGES.iter().flat_map(|s| std::iter::once(s.name).chain(s.aliases.iter().copied()));
    nearest(name, names)
}

/// The stage's shape for values of `shape`, without moving any: a batch of one is dropped, heads and head size are merged,
/// and a single position's missing axis is put in.
fn fit(stage: Stage, shape: &[usize]) -> Result<Vec<usize>, String> {
    let dims = stage.info().shape;
    let mut fitted = shape.to_vec();
    while fitted.len() > dims.len() && fitted[0] == 1 {
        fitted.remove(0);
    }
    if let ([_, Dim::Q | Dim::Kv], &[t, heads, size]) = (dims, &fitted[..]) {
        let width = heads.checked_mul(size).ok_or_else(|| format!("shape {shape:?} is too large"))?;
        fitted = vec![t, width];
    }
    if fitted.len() + 1 == dims.len() {
        fitted.insert(stage.position_axis(), 1);
    }
    if fitted.len() != dims.len() {
        return Err(format!("shape {shape:?} where {dims:?} is expected"));
    }
    Ok(fitted)
}

/// The values in a type that suits the stage: expert ids are u32, whatever whole number they came as; others are not whole.
fn suit(stage: Stage, data: Data) -> Result<Data, String> {
    let id = |x: f64| whole(x).ok_or_else(|| format!("{x} is no expert id"));
    match (stage.is_ids(), data) {
        (true, Data::F32(v)) => Ok(Data::U32(v.into_iter().map(|x| id(x as f64)).collect::<Result<_, _>>()?)),
        (true, Data::F64(v)) => Ok(Data::U32(v.into_iter().map(id).collect::<Result<_, _>>()?)),
        (false, Data::U32(_)) => Err(format!("whole numbers where the values of {stage} are expected")),
        (_, data) => Ok(data),
    }
}

/// `x` as an id, if it is one.
fn whole(x: f64) -> Option<u32> {
    (x >= 0.0 && x <= u32::MAX as f64 && x.fract() == 0.0).then_some(x as u32)
}

/// Token ids written as `1,2,3`; a note of what is wrong with them otherwise.
fn token_list(text: &str) -> Result<Vec<u32>, String> {
    if text.trim().is_empty() {
        return Ok(vec![]);
    }
    text.split(',').map(|t| t.trim().parse().map_err(|_| format!("`{t}` is no token id"))).collect()
}

#[cfg(test)]
mod tests;
