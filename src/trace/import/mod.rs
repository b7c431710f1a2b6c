//! Traces of other programs.
//!
//! Design:
//! - A `Source` lists what it has and reads one tensor at a time; [`import()`] maps names to stages through the user's
//!   rules, the names of llama.cpp's nodes and transformers' modules, and the stage table's own names and aliases. It fits
//!   shapes to the table, joins the calls of a run, and writes an ordinary trace directory.
//! - Nothing is dropped in silence: what has no stage here, or could be several, is listed with the reason, in the result
//!   and in the manifest. So is every assumption, such as which position a lone row is, and what looks wrong.
//! - A trace that shows some stages or some positions is as good as any: what it does not show is not in it.
//! - Files from elsewhere are untrusted: lengths are checked before anything is allocated.

mod aprt;
mod fragment;
mod header;
mod llama;
mod names;
mod npy;
mod rules;
mod sizes;
mod tensors;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::backend::BackendInfo;
use crate::backend::contract::{self, named};
use crate::error::{Error, Result};
use crate::model::{Config, tokens_sha256};
use crate::op::{At, Data, HostTensor, Site, Stage};
use crate::text::{printable, printable_whole};

use self::fragment::Fragment;
pub use self::header::Call;
use self::header::CaptureHeader;
use self::names::{Name, NodeKind};
use self::rules::Rules;
use self::sizes::ModelSizes;
use super::MOST_EXPERTS;
use super::select::Selected;
use super::stats::Statistics;
use super::store::file::le_bytes;
use super::store::{Imported, ModelInfo, Run, SiteStats, TraceManifest, TraceWriter, contracts};

/// Whose trace it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importer {
    /// A directory of `apr trace --save-tensor`: layer-N/STAGE.bin and trace.json
    Aprt,
    /// A capture, or any safetensors files whose keys are names of stages, llama.cpp's nodes or transformers' modules
    Capture,
    /// Logits of llama.cpp's llama-debug: NAME.bin with NAME-tokens.bin beside it
    LlamaCpp,
    /// A .npz file, or a directory of .npy files, named like the keys of a safetensors file
    Npz,
}

impl Importer {
    /// Every importer.
    pub const ALL: [Importer; 4] = [Importer::Aprt, Importer::Capture, Importer::LlamaCpp, Importer::Npz];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Importer::Aprt => "aprt",
            Importer::Capture => "capture",
            Importer::LlamaCpp => "llama.cpp",
            Importer::Npz => "npz",
        }
    }
}

/// What an import is told beside the files.
#[derive(Default)]
pub struct ImportOptions<'a> {
    /// The token ids of the run, where the source does not say.
    pub tokens: Option<Vec<u32>>,
    /// The name of the engine's arithmetic contract, instead of the one that the source states.
    pub contract: Option<String>,
    /// A rules file.
    pub rules: Option<&'a Path>,
    /// The model that ran and its fingerprint: names and shapes are held against it.
    pub model: Option<(&'a Config, String)>,
    /// Replace a trace that is there already.
    pub force: bool,
}

/// A tensor that a source has.
#[derive(Default)]
pub struct Item {
    /// As the source calls it, for messages.
    pub label: String,
    /// Its axes.
    pub shape: Vec<usize>,
    /// Which call of the run made it, if the source says so.
    pub call: Option<usize>,
    /// The position of each row, if the source says so.
    pub positions: Option<Vec<usize>>,
    /// llama.cpp's operation that made it, and that operation's operands; empty if not said.
    pub op: String,
    /// See `op`.
    pub inputs: Vec<String>,
}

/// What a source says of itself.
#[derive(Default)]
pub struct About {
    /// The model's name.
    pub model: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Tells two models apart; empty if the source does not say.
    pub fingerprint: String,
    /// The program that made it, with its version and device.
    pub program: String,
    /// The command that made it.
    pub command: Option<String>,
    /// The name of its arithmetic contract.
    pub contract: Option<String>,
    /// The prompt as text.
    pub prompt: Option<String>,
    /// Empty if the source does not say.
    pub tokens: Vec<u32>,
    /// How many of the tokens are the prompt, if the source says so.
    pub prompt_tokens: Option<usize>,
    /// The calls that the run was made of; empty if the source does not say.
    pub calls: Vec<Call>,
    /// Every tensor is one row, that of the last token.
    pub last_row_only: bool,
    /// What else is there and is not a tensor of a stage.
    pub other: Vec<String>,
}

impl About {
    fn of_capture(header: &mut CaptureHeader) -> Self {
        let said = match header.engine_version.starts_with(&header.engine) {
            true => header.engine_version.clone(), // "transformers 5.24.0, torch 2.15.0" says it itself
            false => format!("{} {}", header.engine, header.engine_version),
        };
        let device = if header.device.is_empty() { String::new() } else { format!(" on {}", header.device) };
        Self {
            model: header.model.name.take().unwrap_or_default(),
            architecture: header.model.architecture.take().unwrap_or_default(),
            fingerprint: header.model.fingerprint.take().unwrap_or_default(),
            program: said.trim().to_string() + &device,
            command: Some(std::mem::take(&mut header.command)).filter(|c| !c.is_empty()),
            contract: header.contract.take(),
            prompt: header.prompt.take(),
            tokens: std::mem::take(&mut header.tokens),
            prompt_tokens: header.prompt_tokens,
            calls: std::mem::take(&mut header.calls),
            last_row_only: false,
            other: Vec::new(),
        }
    }

    /// Takes in what another file of the same dump says of itself. What both say has to be the same run.
    fn join(&mut self, other: Self) -> Result<(), String> {
        if !self.tokens.is_empty() && !other.tokens.is_empty() {
            same_tokens(&self.tokens, &other.tokens)
                .map_err(|what| format!("of another run than the files before it: {what}"))?;
        }
        if !self.fingerprint.is_empty() && !other.fingerprint.is_empty() && self.fingerprint != other.fingerprint {
            return Err("of another model than the files before it".into());
        }
        let first = |ours: &mut String, theirs| {
            if ours.is_empty() {
                *ours = theirs;
            }
        };
        first(&mut self.model, other.model);
        first(&mut self.architecture, other.architecture);
        first(&mut self.fingerprint, other.fingerprint);
        first(&mut self.program, other.program);
        if self.tokens.is_empty() {
            (self.tokens, self.prompt_tokens) = (other.tokens, other.prompt_tokens);
        }
        if self.calls.is_empty() {
            self.calls = other.calls;
        }
        self.command = self.command.take().or(other.command);
        self.contract = self.contract.take().or(other.contract);
        self.prompt = self.prompt.take().or(other.prompt);
        self.other.extend(other.other);
        Ok(())
    }
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

/// Writes what `paths` have as a trace directory `out`. Only a capture may be in several files.
///
/// # Errors
/// If the source is unreadable, nothing of it is a stage, or it is of another run or model than the options say.
pub fn import(kind: Importer, paths: &[PathBuf], options: &ImportOptions<'_>, out: &Path) -> Result<Report> {
    TraceWriter::check(out, options.force)?;
    if kind == Importer::Capture {
        return take(kind, paths, tensors::Tensors::open(paths)?, options, out);
    }
    let [path] = paths else {
        return Err(Error::usage(format!("import {}: one path expected, found {}", kind.name(), paths.len())));
    };
    match kind {
        Importer::Aprt => take(kind, paths, aprt::Aprt::open(path)?, options, out),
        Importer::LlamaCpp => take(kind, paths, llama::Logits::open(path)?, options, out),
        Importer::Npz => take(kind, paths, npy::Arrays::open(path)?, options, out),
        Importer::Capture => unreachable!("read above"),
    }
}

fn take(
    kind: Importer,
    paths: &[PathBuf],
    mut source: impl Source,
    options: &ImportOptions<'_>,
    out: &Path,
) -> Result<Report> {
    let path = paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
    let wrong = |what: String| Error::input(format!("{path}: {what}"));
    let rules = options.rules.map_or_else(|| Ok(Rules::default()), Rules::open)?;
    let about = source.about();
    let tokens = tokens(about, options).map_err(wrong)?;
    let mut notes = Notes { unmapped: about.other.clone(), ..Notes::default() };
    let mut left = BTreeSet::new(); // the calls of a run have the same names
    let sizes = ModelSizes::of(source.items(), about, &rules, options);

    let unscaled = unscaled(source.items());
    let mut found: BTreeMap<Site, Vec<Fragment>> = BTreeMap::new();
    for (i, item) in source.items().iter().enumerate() {
        // Where a name is of several nodes, operands are of the first.
        let node = item.label.strip_suffix(".0").unwrap_or(&item.label);
        if unscaled.contains(&(item.call, node)) {
            if left.insert(item.label.as_str()) {
                notes.unmapped.push(format!("{}: a product before it meets the scale of its weight", item.label));
            }
            continue;
        }
        let call = item.call.and_then(|call| about.calls.get(call)).map(|call| call.tokens);
        let rows = item.positions.as_ref().map(Vec::len).or(call);
        let made = NodeKind { op: &item.op, inputs: &item.inputs };
        let readings = rules.readings(&item.label, &sizes);
        let pieces = readings.unwrap_or_else(|| Name::of(&item.label).readings(made, &sizes)).and_then(|readings| {
            readings.into_iter().map(|reading| Fragment::new(i, item, reading, rows)).collect::<Result<Vec<_>, _>>()
        });
        match pieces {
            Ok(pieces) => {
                for piece in pieces {
                    match options.model.as_ref().map_or(Ok(()), |(config, _)| piece.suits(config)) {
                        Ok(()) => found.entry(piece.site()).or_default().push(piece),
                        Err(why) => notes.unmapped.push(format!("{}: {why}", item.label)),
                    }
                }
            }
            Err(why) if left.insert(item.label.as_str()) => notes.unmapped.push(format!("{}: {why}", item.label)),
            Err(_) => {}
        }
    }
    let run = RunShape {
        positions: match tokens.len() {
            0 => found
                .values()
                .map(|pieces| pieces.iter().map(Fragment::rows).fold(0, usize::saturating_add))
                .max()
                .unwrap_or(0),
            n => n,
        },
        calls: &about.calls,
        last_row_only: about.last_row_only,
    };
    for (site, pieces) in &mut found {
        run.place(*site, pieces, source.items(), &mut notes);
    }
    found.retain(|_, pieces| !pieces.is_empty());
    if !notes.lone.is_empty() {
        let lone = format!("the one row of {} is the last of {} positions", notes.lone.join(", "), run.positions);
        notes.assumed.push(lone);
    }
    if found.is_empty() {
        return Err(wrong(format!(
            "nothing in it is a stage of a run; {}",
            match &notes.unmapped[..] {
                [] => "it is empty".to_string(),
                unmapped => printable_whole(&unmapped.join("; ")),
            }
        )));
    }

    let stated = options.contract.clone().or_else(|| about.contract.clone());
    let known = stated.as_deref().and_then(named);
    let names = || contract::names().join(", ");
    match (&stated, &known, &options.contract) {
        (Some(name), None, Some(_)) => {
            return Err(Error::usage(format!("--contract {name:?}: no contract has this name; known are {}", names())));
        }
        (Some(name), None, None) => notes.assumed.push(format!(
            "nothing of the arithmetic: no contract is called {name:?}; known are {} (--contract says which)",
            names()
        )),
        _ => {}
    }
    let prompt_tokens = about.prompt_tokens.unwrap_or(tokens.len()).min(tokens.len());
    let manifest_run = Run {
        model: ModelInfo {
            name: about.model.clone(),
            architecture: about.architecture.clone(),
            fingerprint: about.fingerprint.clone(),
            hyperparameters: serde_json::Map::new(),
        },
        prompt: about.prompt.clone(),
        prompt_tokens,
        tokens_sha256: Some(tokens_sha256(&tokens[..prompt_tokens])),
        backend: BackendInfo {
            backend: "imported".into(),
            adapter: about.program.clone(),
            driver: String::new(),
            software: false,
            contract: known.as_ref().map_or_else(|| "not stated".into(), |c| format!("{}: {}", c.name, c.text)),
            tuning: None,
        },
        contracts: known.as_ref().map(contracts).unwrap_or_default(),
        tokens,
    };
    let mut imported = Imported {
        kind: kind.name().into(),
        path: path.clone(),
        engine: Some(about.program.clone()).filter(|p| !p.is_empty()),
        command: about.command.clone(),
        contract: stated,
        unmapped: notes.unmapped,
        assumed: notes.assumed,
        warnings: Vec::new(),
    };
    let mut writer = TraceWriter::create(out, options.force, Selected::of(found.keys().copied(), run.positions))?;
    let mut statistics = Statistics::default();
    let mut mapped = Vec::new();
    let mut same = SameValues::default();
    let moe = options.model.as_ref().and_then(|(config, _)| config.moe.as_ref());
    let experts = found.values().flatten().filter_map(Fragment::experts).chain(moe.map(|moe| moe.experts));
    let experts = experts.min().unwrap_or(MOST_EXPERTS);
    for (site, pieces) in found {
        let mut labels = Vec::new();
        let mut hash = Sha256::new();
        let mut telling = false;
        for piece in pieces {
            let label = source.items()[piece.item].label.clone();
            let values = piece
                .values(source.read(piece.item)?)
                .map_err(|what| wrong(format!("{}: {what}", printable(&label))))?;
            if site.stage.is_ids()
                && let Some((row, id)) = values.id_beyond(experts)
            {
                let position = piece.positions.as_ref().map_or(row, |positions| positions[row]);
                let key = site.key();
                let of = if label == key { key } else { format!("{}: {key}", printable(&label)) };
                return Err(wrong(format!(
                    "{of}: position {position}: an expert id below {experts} expected, found {id}"
                )));
            }
            telling |= is_telling(&values);
            hash.update(le_bytes(&values.data, 0..values.len()));
            for (start, rows) in piece.runs() {
                let at = At::new(site, start);
                let whole = rows.len() == piece.rows();
                let part = if whole { None } else { Some(values.take(site.stage.position_axis(), &rows)) };
                let part = part.as_ref().unwrap_or(&values);
                statistics.add(at, part);
                writer.add(at, part)?;
            }
            if !labels.contains(&label) {
                labels.push(label);
            }
        }
        if telling {
            same.add(site, hash.finalize().into());
        }
        mapped.push((labels.join(", "), site));
    }
    imported.warnings = same.warnings();
    let manifest = writer.finish(manifest_run, Some(imported), statistics.sites().map(SiteStats::new).collect())?;
    Ok(Report { manifest, mapped })
}

/// The nodes that llama.cpp multiplies by the scale of the weight that they are products of, each with its call: what comes of that is the stage.
fn unscaled(items: &[Item]) -> HashSet<(Option<usize>, &str)> {
    // Experts' scales are looked up first, which leaves the operand without a name; the result has one.
    let scales = |item: &&Item| {
        item.op == "MUL"
            && (item.inputs.iter().any(|input| input.ends_with(".scale"))
                || names::SCALED_EXPERTS.iter().any(|(name, _)| Name::of(&item.label).bare == *name))
    };
    items.iter().filter(scales).filter_map(|item| Some((item.call, item.inputs.first()?.as_str()))).collect()
}

/// What is said of an import beside the values.
#[derive(Default)]
struct Notes {
    unmapped: Vec<String>,
    assumed: Vec<String>,
    /// Labels of tensors of one row that were taken to be the last position.
    lone: Vec<String>,
}

/// The token ids of the run. What the user says and what the source says must not contradict each other, or the model.
fn tokens(about: &About, options: &ImportOptions<'_>) -> Result<Vec<u32>, String> {
    let tokens = match &options.tokens {
        Some(given) if !about.tokens.is_empty() => {
            same_tokens(given, &about.tokens)
                .map_err(|what| format!("it is of another run than --tokens says: {what}"))?;
            given.clone()
        }
        Some(given) => given.clone(),
        None => about.tokens.clone(),
    };
    if let Some((config, fingerprint)) = &options.model {
        if !about.fingerprint.is_empty() && about.fingerprint != *fingerprint {
            return Err(format!("it is of another model than {}: of {}", config.name, printable(&about.model)));
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= config.vocab) {
            return Err(format!(
                "token ids below {}, the vocabulary of {}, expected, found {id}",
                config.vocab, config.name
            ));
        }
    }
    Ok(tokens)
}

/// Where two lists of ids differ, if they do.
fn same_tokens(expected: &[u32], found: &[u32]) -> Result<(), String> {
    if let Some(i) = expected.iter().zip(found).position(|(a, b)| a != b) {
        return Err(format!("at position {i}, token {} expected, found {}", expected[i], found[i]));
    }
    match expected.len() == found.len() {
        true => Ok(()),
        false => Err(format!("{} tokens expected, found {}", expected.len(), found.len())),
    }
}

/// What is known of the run's positions.
struct RunShape<'a> {
    positions: usize,
    calls: &'a [Call],
    last_row_only: bool,
}

impl RunShape<'_> {
    /// Finds out which positions the rows of a site's pieces are, and puts the pieces in order. What has no place goes to the notes.
    fn place(&self, site: Site, pieces: &mut Vec<Fragment>, items: &[Item], notes: &mut Notes) {
        let outer = matches!(site.stage, Stage::FinalNorm | Stage::Logits);
        pieces.sort_by_key(|p| p.call); // stable: of one call, the first that was found is taken
        let several = pieces.iter().any(|p| p.call != pieces[0].call);
        let mut next = 0; // the first position that no piece has taken
        let mut placed: Vec<Fragment> = Vec::new();
        for mut piece in std::mem::take(pieces) {
            let label = &items[piece.item].label;
            let rows = piece.rows();
            let call = self.calls.get(piece.call.unwrap_or(0)).filter(|_| !self.calls.is_empty());
            if let Some(first) = placed.iter().find(|p| p.call == piece.call) {
                let first = &items[first.item].label;
                notes.unmapped.push(format!("{label}: {first} is the same stage and was taken"));
                continue;
            }
            let from = |start: usize| (start..start.saturating_add(rows)).collect();
            let positions: Vec<usize> = match (&piece.positions, call) {
                (Some(positions), _) => positions.clone(),
                _ if piece.ruled() => Vec::new(),
                (None, Some(call)) if rows == call.tokens => from(call.start),
                (None, Some(call)) if rows == 1 && outer => from(call.start + call.tokens - 1),
                (None, Some(call)) => {
                    notes.unmapped.push(format!("{label}: {rows} rows where the call has {} positions", call.tokens));
                    continue;
                }
                (None, None) if several && rows <= self.positions - next.min(self.positions) => from(next),
                (None, None) if rows == self.positions && rows > 0 => from(0),
                (None, None) if rows == 1 && (outer || self.last_row_only) && self.positions > 0 => {
                    notes.lone.push(label.clone());
                    from(self.positions - 1)
                }
                (None, None) => {
                    notes.unmapped.push(format!("{label}: {rows} rows where the run has {} positions", self.positions));
                    continue;
                }
            };
            match piece.at(positions, next, self.positions) {
                Ok(()) => {
                    next = piece.end();
                    placed.push(piece);
                }
                Err(why) => notes.unmapped.push(format!("{label}: {why}")),
            }
        }
        if several && self.calls.is_empty() && placed.iter().all(|p| p.positions.is_some()) && placed.len() > 1 {
            let line = format!("the calls of {} follow each other from position 0 on", items[placed[0].item].label);
            if !notes.assumed.contains(&line) {
                notes.assumed.push(line);
            }
        }
        *pieces = placed;
    }
}

/// Whether equal values of two sites would say something: ids, zeros alone and ones alone may well be the same.
fn is_telling(values: &HostTensor) -> bool {
    match &values.data {
        Data::F32(v) => v.iter().any(|x| *x != 0.0 && *x != 1.0),
        Data::F64(v) => v.iter().any(|x| *x != 0.0 && *x != 1.0),
        Data::U32(_) => false,
    }
}

/// Sites by the hash of their values.
#[derive(Default)]
struct SameValues(BTreeMap<[u8; 32], Vec<Site>>);

impl SameValues {
    fn add(&mut self, site: Site, hash: [u8; 32]) {
        self.0.entry(hash).or_default().push(site);
    }
    fn warnings(&self) -> Vec<String> {
        let same = self.0.values().filter(|sites| sites.len() > 1);
        same.map(|sites| {
            let keys: Vec<_> = sites.iter().map(Site::key).collect();
            format!(
                "{} are bit for bit the same values: one of them was probably captured under a wrong name",
                keys.join(" and ")
            )
        })
        .collect()
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
