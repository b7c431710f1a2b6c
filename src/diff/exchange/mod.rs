//! Two files of one model: what each part of the one costs at the logits of the other.
//!
//! - **Measured, not estimated**: the reference's file is run with the weights of one part, and of no other, from the subject's file
//!   (*alone*), and the subject's file with those weights from the reference's (*kept*). The logits of both are held against those
//!   of the reference's file. Costs do not add up: what two parts do to the logits depends on each other.
//! - A part is a layer, a kind of tensor in all layers, a pair of types, or a tensor.
//! - All runs are on one backend, so that its rounding is on both sides.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backend::AnyBackend;
use crate::diff::measure::logits::{LogitsAt, LogitsComparison, compare_logits};
use crate::error::{Error, Result};
use crate::memory::available_memory;
use crate::model::{Calls, LogitRows, Model, Runner, WeightPair, WeightPlace, Weights};
use crate::op::{GgmlType, HostTensor, Weight};

/// Logits of one call, at most: the reference's are kept, and two calls' are compared in f64.
const LOGITS_OF_A_CALL: usize = 16 << 20;
/// Multiplications that a ranking of tensors may take unless it is asked for.
pub const MOST_WORK: f64 = 1e12;
/// Prompt tokens that are run at a time, at most.
const CHUNK: usize = 512;

/// What weights are put together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum PartBy {
    /// Everything in a layer
    Layer,
    /// Tensors of one name in all layers, such as ffn_down_exps.weight
    Kind,
    /// Tensors of one type in the one file and one in the other
    Types,
    /// Each tensor
    Tensor,
}

/// Weights that are exchanged together.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ExchangedPart {
    /// What it is a part by.
    pub by: PartBy,
    /// `layer 2`, `attn_q.weight`, `Q8_0 → Q4_K`, `blk.2.attn_q.weight`.
    pub name: String,
    /// Where they are all in one.
    pub layer: Option<usize>,
    /// The types in the reference's file and in the subject's, each pair once.
    pub types: Vec<[String; 2]>,
    /// How many tensors.
    pub tensors: usize,
    /// Their bytes in the two files.
    pub bytes: [u64; 2],
    #[serde(skip)]
    places: Vec<WeightPlace>,
}

/// How far logits are from those of the reference's file.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LogitsCost {
    /// Σ (l − l_ref)² / Σ l_ref²
    pub nmse: f64,
    /// KL divergence in nats: its mean over all positions.
    pub kld_mean: f64,
    /// Its 99.9th percentile.
    pub kld_p999: f64,
    /// Its maximum.
    pub kld_max: f64,
    /// Positions with the same most probable token.
    pub same_top: usize,
    /// The share of them.
    pub same_top_rate: f64,
    /// √(mean Δp²) of the next token's probability.
    pub rms_delta_p: f64,
}

/// A part and what it costs; `None` where logits are not finite.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PartCost {
    /// The part.
    #[serde(flatten)]
    pub part: ExchangedPart,
    /// The reference's file with this part from the subject's.
    pub alone: Option<LogitsCost>,
    /// The subject's file with this part from the reference's.
    pub kept: Option<LogitsCost>,
    /// By how much that lowers the mean KL divergence of the subject's file, as a share of it.
    pub regained: Option<f64>,
}

/// What the parts of a file cost.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Exchange {
    /// Tensors of the model, and those that are the same in both files.
    pub tensors: usize,
    /// Those that are the same to the bit.
    pub same: usize,
    /// Bytes of the weights in the two files.
    pub bytes: [u64; 2],
    /// Positions at which logits were compared.
    pub positions: usize,
    /// The subject's file as it is.
    pub whole: Option<LogitsCost>,
    /// By kind of part, then from the most expensive alone to the least.
    pub parts: Vec<PartCost>,
    /// What must be said besides.
    pub notes: Vec<String>,
}

/// The parts by which a ranking is made where nobody says which: tensors only where that is not much work.
pub fn usual_parts(model: &Model, pairs: &[WeightPair], tokens: usize) -> (Vec<PartBy>, Option<String>) {
    let weights: usize = model.weights.all().iter().map(|w| w.cols * w.rows * w.experts.min(8)).sum();
    let tensors = pairs.iter().filter(|pair| !pair.same).count();
    let mut by = vec![PartBy::Layer, PartBy::Kind, PartBy::Types];
    if weights as f64 * tokens as f64 * 2.0 * tensors as f64 <= MOST_WORK {
        by.push(PartBy::Tensor);
        return (by, None);
    }
    let runs = 2 * tensors;
    (
        by,
        Some(format!("single tensors were not exchanged: --by tensor makes {runs} runs more, of {tokens} tokens each")),
    )
}

/// The parts of two files that differ.
///
/// # Errors
/// If the files are the same in every weight: there is nothing to exchange.
pub fn parts(pairs: &[WeightPair], by: &[PartBy]) -> Result<Vec<ExchangedPart>> {
    let mut found: BTreeMap<(PartBy, Option<usize>, String), ExchangedPart> = BTreeMap::new();
    for pair in pairs.iter().filter(|pair| !pair.same) {
        let WeightPair { place, weights: [a, b], .. } = pair;
        for &by in by {
            let (layer, name) = match by {
                PartBy::Layer => match place.layer {
                    Some(layer) => (Some(layer), format!("layer {layer}")),
                    None => (None, place.kind.clone()),
                },
                PartBy::Kind => (None, place.kind.clone()),
                PartBy::Types => (None, format!("{} → {}", a.ty, b.ty)),
                PartBy::Tensor => (place.layer, place.to_string()),
            };
            let part = found.entry((by, layer, name.clone())).or_insert_with(|| ExchangedPart {
                by,
                name,
                layer,
                types: Vec::new(),
                tensors: 0,
                bytes: [0; 2],
                places: Vec::new(),
            });
            let types = [a.ty.to_string(), b.ty.to_string()];
            if !part.types.contains(&types) {
                part.types.push(types);
            }
            part.tensors += 1;
            part.bytes[0] += a.size() as u64;
            part.bytes[1] += b.size() as u64;
            part.places.push(place.clone());
        }
    }
    if found.is_empty() {
        return Err(Error::usage("the two files have the same weights to the bit: there is nothing to exchange"));
    }
    Ok(found.into_values().collect())
}

/// Runs every exchange, of which `progress` is told the name, how many are done, and of how many.
///
/// # Errors
/// The backend's, a prompt that does not fit, and a reference whose logits are not finite.
pub fn exchange(
    [reference, subject]: [&mut Model; 2],
    backend: &mut AnyBackend,
    prompts: &[Vec<u32>],
    pairs: &[WeightPair],
    parts: Vec<ExchangedPart>,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Exchange> {
    let [ours, theirs] = [&*reference, &*subject].map(|model| model.weights.clone());
    let of = 2 + 2 * parts.len();
    let positions: usize = prompts.iter().map(Vec::len).sum();
    room_for_logits(reference, positions)?;
    progress("the reference's file", 0, of);
    let mut exact = Vec::new();
    let mut keep = |logits: HostTensor, _: usize| {
        exact.push(logits);
        Ok(())
    };
    for prompt in prompts {
        run(reference, backend, prompt, &mut keep)?;
    }
    if exact.iter().any(|logits| logits.to_f64().iter().any(|x| !x.is_finite())) {
        return Err(Error::input(format!(
            "{}: its logits are not finite, so nothing can be held against them; `twinscope trace` shows where that begins",
            reference.gguf.name()
        )));
    }
    // The forward pass is that of the reference's model throughout: its hyperparameters are those of both.
    let mut cost = |weights: Weights, name: &str, done: usize| {
        progress(name, done, of);
        reference.weights = weights;
        let cost = cost(reference, backend, prompts, &exact);
        reference.weights = ours.clone();
        cost
    };
    let whole = cost(theirs.clone(), "the subject's file", 1)?;
    let mut costs = Vec::new();
    for (n, part) in parts.into_iter().enumerate() {
        let is_in = |place: &WeightPlace| part.places.contains(place);
        let alone = cost(ours.mixed(&theirs, &is_in), &part.name, 2 + 2 * n)?;
        let kept = cost(theirs.mixed(&ours, &is_in), &part.name, 3 + 2 * n)?;
        let regained = match (&whole, &kept) {
            (Some(whole), Some(kept)) if whole.kld_mean > 0.0 => Some(1.0 - kept.kld_mean / whole.kld_mean),
            _ => None,
        };
        costs.push(PartCost { part, alone, kept, regained });
    }
    // What has no number is worst.
    let kld = |cost: &PartCost| cost.alone.as_ref().map_or(f64::INFINITY, |cost| cost.kld_mean);
    costs.sort_by(|a, b| a.part.by.cmp(&b.part.by).then(kld(b).total_cmp(&kld(a))));
    let size = |side: usize| pairs.iter().map(|pair| pair.weights[side].size() as u64).sum();
    let mut notes = Vec::new();
    if types_differ(pairs) == 0 {
        notes.push("the files have the same types everywhere: it is values that differ".to_string());
    }
    if positions < 64 {
        notes.push(format!(
            "{positions} positions are few: a ranking that is to hold for a use takes text of that use (--prompt-file, --prompts)"
        ));
    }
    Ok(Exchange {
        tensors: pairs.len(),
        same: pairs.iter().filter(|pair| pair.same).count(),
        bytes: [size(0), size(1)],
        positions,
        whole,
        parts: costs,
        notes,
    })
}

/// Refuses more positions than there is memory for the logits of: those of the reference's file are kept, f32 [positions, V].
fn room_for_logits(model: &Model, positions: usize) -> Result<()> {
    let bytes = (positions as u64).saturating_mul(4 * model.config.vocab as u64);
    match available_memory() {
        Some(available) if bytes > available => Err(Error::cannot_run(format!(
            "the logits of {positions} positions, {} tokens each, take {bytes} bytes of memory, {available} are available: rank with less text",
            model.config.vocab
        ))),
        _ => Ok(()),
    }
}

fn types_differ(pairs: &[WeightPair]) -> usize {
    let ty = |weight: &Arc<Weight>| -> GgmlType { weight.ty };
    pairs.iter().filter(|pair| ty(&pair.weights[0]) != ty(&pair.weights[1])).count()
}

/// Runs a prompt, and gives the logits of each call to `take`, with the position of their first row.
fn run(
    model: &Model,
    backend: &mut AnyBackend,
    prompt: &[u32],
    take: &mut dyn FnMut(HostTensor, usize) -> Result<()>,
) -> Result<()> {
    let chunk = (LOGITS_OF_A_CALL / model.config.vocab.max(1)).clamp(1, CHUNK);
    let calls = Calls { prompt, chunk, decode: 0, forced: &[] };
    let mut runner = Runner::new(backend, model, calls, LogitRows::All)?;
    while let Some(call) = runner.upcoming() {
        if !runner.step(backend)? {
            break;
        }
        if let Some(logits) = runner.unread() {
            take(crate::backend::Backend::read(backend, logits)?, call.start)?;
        }
    }
    Ok(())
}

/// Runs the prompts and holds the logits against `exact`, those of the reference's calls; `None` where some are not finite.
fn cost(
    model: &Model,
    backend: &mut AnyBackend,
    prompts: &[Vec<u32>],
    exact: &[HostTensor],
) -> Result<Option<LogitsCost>> {
    let mut at: Vec<LogitsAt> = Vec::new();
    let (mut error, mut energy, mut finite) = (0.0, 0.0, true);
    let mut exact = exact.iter();
    for prompt in prompts {
        let mut take = |logits: HostTensor, start: usize| {
            let reference = exact.next().ok_or_else(|| Error::cannot_run("a run made more calls than the first"))?;
            let rows = reference.shape.first().copied().unwrap_or(0);
            let next: Vec<Option<u32>> = (start..start + rows).map(|p| prompt.get(p + 1).copied()).collect();
            match compare_logits(reference, &logits, &next, start) {
                Ok(compared) => at.extend(compared.at),
                Err(_) => finite = false,
            }
            let (a, b) = (reference.to_f64(), logits.to_f64());
            error += a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
            energy += a.iter().map(|a| a * a).sum::<f64>();
            Ok(())
        };
        run(model, backend, prompt, &mut take)?;
    }
    if !finite || at.is_empty() {
        return Ok(None);
    }
    let all = LogitsComparison::from_positions(at);
    Ok(Some(LogitsCost {
        nmse: if energy > 0.0 { error / energy } else { 0.0 },
        kld_mean: all.kld_mean,
        kld_p999: all.kld_p999,
        kld_max: all.kld_max,
        same_top: all.same_top,
        same_top_rate: all.same_top_rate,
        rms_delta_p: all.rms_delta_p,
    }))
}
