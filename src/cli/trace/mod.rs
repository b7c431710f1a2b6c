//! `trace`: statistics of every stage of a run, and the values of chosen ones on disk.

mod text;

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::Result;
use crate::cli::Outcome;
use crate::cli::common::{BackendArgs, ModelArg, PromptArgs, prepare};
use crate::cli::output::{print, print_json};
use crate::error::Error;
use crate::model::Model;
use crate::op::Site;
use crate::trace::capture::{Captured, Recorder, capture};
use crate::trace::select::Selection;
use crate::trace::stats::StageStats;
use crate::trace::store::{Manifest, SiteStats, TraceWriter};

/// Logits that a report lists.
const TOP: usize = 10;

/// Show every stage of a run in figures, and save the values of chosen stages.
///
/// Statistics are of all stages of all layers, over the last position and over all positions. They are over finite values;
/// NaN and infinities are counted apart.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    prompt: PromptArgs,
    /// The backend: cpu, cpu:scalar, cpu:avx2, cpu:avx512, gpu, gpu:N, gpu:NAME, oracle
    #[arg(long, value_name = "BACKEND", default_value = "cpu")]
    backend: String,
    /// Prompt tokens run at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// Tokens to decode greedily after the prompt, one at a time
    #[arg(long, value_name = "N", default_value_t = 0)]
    decode: usize,
    #[command(flatten)]
    backends: BackendArgs,
    /// Print every figure of every stage; so it is for models of up to 8 layers
    #[arg(long, conflicts_with = "json")]
    full: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,

    /// Stages to save: names, aliases and globs such as 'router*,moe_out', with -N for one layer; or `all`
    #[arg(long, value_name = "STAGES", requires = "out", help_heading = "Saving")]
    save: Option<String>,
    /// The trace directory to write
    #[arg(long, value_name = "DIR", requires = "save", help_heading = "Saving")]
    out: Option<PathBuf>,
    /// Layers to save, such as 0-3,7,-1
    #[arg(long, value_name = "LAYERS", default_value = "all", requires = "save", allow_hyphen_values = true)]
    #[arg(help_heading = "Saving")]
    layers: String,
    /// Positions to save: `last`, `all`, or a list such as 0,5-9
    #[arg(long, value_name = "POSITIONS", default_value = "all", requires = "save", allow_hyphen_values = true)]
    #[arg(help_heading = "Saving")]
    positions: String,
    /// Experts whose rows of the expert stages to save, such as 3,17
    #[arg(long, value_name = "EXPERTS", default_value = "all", requires = "save", allow_hyphen_values = true)]
    #[arg(help_heading = "Saving")]
    experts: String,
    /// Replace the trace in DIR
    #[arg(long, requires = "out", help_heading = "Saving")]
    force: bool,
}

/// Everything that the two reports are made of.
struct Report {
    model: Model,
    prompt: Option<String>,
    prompt_tokens: usize,
    captured: Captured,
    statistics: Vec<(Site, StageStats)>,
    top: Vec<Top>,
    saved: Option<(PathBuf, Manifest)>,
}

/// A likely next token.
struct Top {
    id: u32,
    /// `None` without a tokenizer.
    text: Option<String>,
    logit: f64,
    prob: f64,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let model = args.model.open()?;
    let prompt = args.prompt.resolve(&model)?;
    let config = &model.config;
    let positions = prompt.tokens.len().saturating_add(args.decode);
    if positions > config.context {
        return Err(Error::usage(format!(
            "{} prompt tokens and --decode {} are {positions} positions; the context length of {} is {}",
            prompt.tokens.len(),
            args.decode,
            config.name,
            config.context
        )));
    }
    // Before the model is loaded, so that a wrong name costs no time.
    let writer = match (&args.save, &args.out) {
        (Some(stages), Some(out)) => {
            let selection = Selection::parse(stages, &args.layers, &args.positions, &args.experts)?;
            let experts = config.moe.as_ref().map_or(0, |m| m.experts);
            let selected = selection.resolve(config.layers, positions, experts, config.moe.is_some())?;
            Some(TraceWriter::create(out, args.force, selected)?)
        }
        _ => None,
    };
    let mut backend = args.backends.open(&args.backend)?;
    prepare(&mut backend, &model)?;

    let bar = ProgressBar::new(positions as u64).with_style(
        ProgressStyle::with_template("tracing {bar:30} {pos}/{len} positions, {eta} left").expect("a valid template"),
    );
    bar.tick();
    let recorder = Recorder::new(writer);
    let mut captured =
        capture(backend, &model, &prompt.tokens, args.chunk as usize, args.decode, recorder, &mut |done| {
            bar.set_position(done as u64)
        })?;
    bar.finish_and_clear();
    if let Some(why) = &captured.stopped {
        eprintln!("note: {why}");
    }

    let statistics: Vec<_> = captured.recorder.statistics.sites().collect();
    let saved = match (captured.recorder.writer.take(), &args.out) {
        (Some(writer), Some(out)) => {
            let run = captured.run(&model, prompt.text.clone(), prompt.tokens.len());
            let rows = statistics.iter().cloned().map(SiteStats::new).collect();
            Some((out.clone(), writer.finish(run, None, rows)?))
        }
        _ => None,
    };
    let top = top(&captured.logits, &model);
    let (prompt_tokens, prompt) = (prompt.tokens.len(), prompt.text);
    let report = Report { model, prompt, prompt_tokens, captured, statistics, top, saved };
    if args.json {
        print_json(&report.json())?;
    } else {
        print(&text::render(&report, args.full || report.model.config.layers <= 8))?;
    }
    Ok(Outcome::Ok)
}

/// The largest logits and their share of the softmax; a logit that is not finite takes no part.
fn top(logits: &[f64], model: &Model) -> Vec<Top> {
    let mut order: Vec<usize> = (0..logits.len()).filter(|&i| logits[i].is_finite()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let Some(&first) = order.first() else { return vec![] };
    let total: f64 = order.iter().map(|&i| (logits[i] - logits[first]).exp()).sum();
    let entry = |&i: &usize| Top {
        id: i as u32,
        text: model.tokenizer().ok().and_then(|t| t.decode(&[i as u32]).ok()),
        logit: logits[i],
        prob: (logits[i] - logits[first]).exp() / total,
    };
    order.iter().take(TOP).map(entry).collect()
}

impl Report {
    /// How many positions each stage was seen at, if that is the same number for all.
    fn equal_positions(&self) -> Option<u64> {
        let first = self.statistics.first()?.1.positions;
        self.statistics.iter().all(|(_, s)| s.positions == first).then_some(first)
    }

    fn of_layer(&self, layer: Option<u32>) -> impl Iterator<Item = &(Site, StageStats)> {
        self.statistics.iter().filter(move |(site, _)| site.layer == layer)
    }

    fn json(&self) -> Value {
        let (config, captured) = (&self.model.config, &self.captured);
        let stages = |layer| -> Map<String, Value> {
            self.of_layer(layer).map(|(site, stats)| (site.stage.name().to_string(), json!(stats))).collect()
        };
        let layers: Vec<Value> = (0..config.layers as u32)
            .map(|n| {
                let mut layer = json!({ "layer": n, "stages": stages(Some(n)) });
                if let Some(routing) = captured.recorder.routing.get(&n) {
                    let chosen = routing.experts.iter().zip(&routing.weights);
                    let finite = |w: &f64| Some(*w).filter(|w| w.is_finite());
                    layer["experts"] =
                        chosen.map(|(id, w)| json!({ "id": id, "weight": finite(w) })).collect::<Vec<_>>().into();
                }
                layer
            })
            .collect();
        let top: Vec<Value> = (self.top.iter())
            .map(|t| json!({ "id": t.id, "text": t.text, "logit": t.logit, "prob": t.prob }))
            .collect();
        let not_finite = captured.recorder.not_finite.as_ref().map(|n| {
            json!({
                "layer": n.site.layer, "stage": n.site.stage.name(), "position": n.position,
                "nan_count": n.nan, "inf_count": n.inf, "count": n.count,
            })
        });
        let saved = self.saved.as_ref().map(|(out, manifest)| {
            json!({
                "out": out.display().to_string(),
                "tensors": manifest.tensors.len(),
                "missing": manifest.missing,
            })
        });
        json!({
            "schema": "twinscope.trace/1",
            "program": concat!("twinscope ", env!("CARGO_PKG_VERSION")),
            "model": {
                "name": config.name,
                "architecture": config.architecture.name(),
                "fingerprint": self.model.gguf.fingerprint(),
                "hyperparameters": config,
            },
            "backend": captured.backend,
            "contracts": captured.contracts,
            "prompt": self.prompt,
            "tokens": captured.tokens,
            "prompt_tokens": self.prompt_tokens,
            "stopped": captured.stopped,
            "positions": captured.tokens.len(),
            "equal_positions": self.equal_positions().is_some(),
            "first_not_finite": not_finite,
            "layers": layers,
            "whole": stages(None),
            "logits": { "position": captured.tokens.len() - 1, "top": top },
            "saved": saved,
        })
    }
}
