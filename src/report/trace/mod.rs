//! What `trace` prints: every stage's statistics, as text and as JSON.

mod text;

pub use text::{line, render};

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::model::{Model, tokens_sha256};
use crate::op::Site;
use crate::trace::capture::Captured;
use crate::trace::stats::StageStats;
use crate::trace::store::TraceManifest;

/// Logits that a report lists.
const TOP: usize = 10;

/// Everything that the two reports are made of.
pub struct TraceReport<'m> {
    pub model: &'m Model,
    pub prompt: Option<String>,
    pub prompt_tokens: usize,
    pub captured: Captured,
    pub statistics: Vec<(Site, StageStats)>,
    pub top: Vec<LikelyToken>,
    pub saved: Option<(PathBuf, TraceManifest)>,
}

/// A likely next token.
pub struct LikelyToken {
    pub id: u32,
    /// `None` without a tokenizer.
    pub text: Option<String>,
    pub logit: f64,
    pub prob: f64,
}

/// The largest logits and their share of the softmax; a logit that is not finite takes no part.
pub fn top(logits: &[f64], model: &Model) -> Vec<LikelyToken> {
    let mut order: Vec<usize> = (0..logits.len()).filter(|&i| logits[i].is_finite()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let Some(&first) = order.first() else { return vec![] };
    let total: f64 = order.iter().map(|&i| (logits[i] - logits[first]).exp()).sum();
    let entry = |&i: &usize| LikelyToken {
        id: i as u32,
        text: model.tokenizer().ok().and_then(|t| t.decode(&[i as u32]).ok()),
        logit: logits[i],
        prob: (logits[i] - logits[first]).exp() / total,
    };
    order.iter().take(TOP).map(entry).collect()
}

impl TraceReport<'_> {
    /// How many positions each stage was seen at, if that is the same number for all.
    fn equal_positions(&self) -> Option<u64> {
        let first = self.statistics.first()?.1.positions;
        self.statistics.iter().all(|(_, s)| s.positions == first).then_some(first)
    }

    fn of_layer(&self, layer: Option<u32>) -> impl Iterator<Item = &(Site, StageStats)> {
        self.statistics.iter().filter(move |(site, _)| site.layer == layer)
    }

    /// The document of schema `twinscope.trace/1`.
    pub fn json(&self) -> Value {
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
                "architecture": config.architecture.name,
                "fingerprint": self.model.gguf.fingerprint(),
                "hyperparameters": config,
            },
            "backend": captured.backend,
            "contracts": captured.contracts,
            "prompt": self.prompt,
            "tokens": captured.tokens,
            "prompt_tokens": self.prompt_tokens,
            "tokens_sha256": tokens_sha256(&captured.tokens[..self.prompt_tokens.min(captured.tokens.len())]),
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
