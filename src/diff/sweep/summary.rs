//! What one prompt came to, and what all came to.

use serde::{Deserialize, Serialize};

use crate::diff::outcome::{Comparison, StageResult, Verdict};

/// What one prompt came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptResult {
    /// What it is called.
    pub id: String,
    /// Its place in the file, from 0.
    pub index: usize,
    /// Tokens of the prompt, and decoded ones.
    pub tokens: usize,
    /// Tokens decoded after it.
    pub decoded: usize,
    /// Whether the sides agree.
    pub agrees: bool,
    /// The first stage that is wrong.
    pub first_fault: Option<FaultLine>,
    /// Where no stage is at fault, the first at which the sides differ, or are not finite.
    #[serde(default)]
    pub first_difference: Option<FaultLine>,
    /// Why the sides do not agree, where no stage is at fault: one sentence.
    #[serde(default)]
    pub why: Option<String>,
    /// The stage with the largest ratio of an error to its floor, and that ratio: `layers.2.q_rope`.
    pub worst: Option<(String, f64)>,
    /// Tokens and layers where the sides chose other experts, and those of them that rounding does not explain.
    pub flips: usize,
    #[allow(missing_docs)] // said above
    pub unexplained_flips: usize,
    /// The logits, of all positions.
    pub logits: Option<LogitsLine>,
    /// What else must be said of it.
    pub notes: Vec<String>,
    /// What it took.
    pub seconds: f64,
}

/// The first stage that is wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultLine {
    /// `layers.2.q_rope`.
    pub stage: String,
    /// 0 for the prompt, n for the n-th decoded token.
    pub step: usize,
    /// What is wrong: `subject wrong`.
    pub verdict: String,
    /// The error over what is allowed.
    pub ratio: Option<f64>,
    /// The mistake, where one reproduces what was found.
    pub cause: Option<String>,
}

/// The logits of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogitsLine {
    /// Positions compared.
    pub positions: usize,
    /// KL(reference ‖ subject): mean and largest, nats.
    pub kld_mean: f64,
    #[allow(missing_docs)] // said above
    pub kld_max: f64,
    /// Positions with the same most probable token.
    pub same_top: usize,
}

impl PromptResult {
    /// Of a comparison.
    pub fn of(id: &str, index: usize, comparison: &Comparison, seconds: f64) -> Self {
        let routing = || comparison.routing.iter().filter_map(|r| r.routing.as_ref().ok());
        let ratio = |s: &StageResult| s.ratio.filter(|r| !r.is_nan()).map(|r| (s.site.key(), r));
        let worst = comparison.stages.iter().filter_map(ratio).max_by(|a, b| a.1.total_cmp(&b.1));
        let differs = !comparison.agrees() && comparison.fault().is_none();
        Self {
            id: id.to_string(),
            index,
            tokens: comparison.tokens,
            decoded: comparison.decode,
            agrees: comparison.agrees(),
            first_fault: comparison.fault().map(FaultLine::of),
            first_difference: differs.then(|| comparison.visible().map(FaultLine::of)).flatten(),
            why: differs.then(|| why(comparison)),
            // JSON has no infinity.
            worst: worst.map(|(stage, ratio)| (stage, ratio.min(f64::MAX))),
            flips: routing().map(|r| r.flips.len()).sum(),
            unexplained_flips: routing().map(|r| r.unexplained()).sum(),
            logits: comparison.logits.as_ref().map(|l| LogitsLine {
                positions: l.positions,
                kld_mean: l.kld_mean,
                kld_max: l.kld_max,
                same_top: l.same_top,
            }),
            notes: comparison.notes.clone(),
            seconds,
        }
    }
}

/// Why the sides do not agree though no stage is at fault.
fn why(comparison: &Comparison) -> String {
    let unexplained = comparison.routing.iter().filter_map(|r| Some((r.layer, r.routing.as_ref().ok()?)));
    let unexplained: Vec<(u32, usize)> =
        unexplained.map(|(layer, r)| (layer, r.unexplained())).filter(|(_, n)| *n > 0).collect();
    if let Some(stage) = comparison.visible().filter(|stage| stage.is_blamelessly_lost()) {
        return match stage.overflow {
            Some(_) => format!("overflow from {} on, which the contract allows", stage.site),
            None => format!("not finite from {} on, by nobody's fault", stage.site),
        };
    }
    if let Some((layer, _)) = unexplained.first() {
        let flips: usize = unexplained.iter().map(|(_, n)| n).sum();
        return format!(
            "flips of the router that rounding does not explain, {flips} of them, the first in layer {layer}"
        );
    }
    if let Some(routing) = comparison.routing.iter().find(|r| r.routing.is_err()) {
        return format!("the choices of experts in layer {} could not be compared", routing.layer);
    }
    match comparison.visible() {
        Some(stage) => format!("the first difference is at {}: {}", stage.site, stage.verdict),
        None => "nothing was compared, which is no agreement".to_string(),
    }
}

impl FaultLine {
    fn of(fault: &StageResult) -> Self {
        let cause = fault.cause.as_ref().filter(|cause| cause.reproduced);
        Self {
            stage: fault.site.key(),
            step: fault.step,
            verdict: Verdict::to_string(&fault.verdict),
            ratio: fault.ratio.filter(|r| r.is_finite()),
            cause: cause.map(|cause| cause.name.clone()),
        }
    }
}

/// What all prompts came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SweepSummary {
    /// Prompts, and those of them whose sides agree.
    pub prompts: usize,
    #[allow(missing_docs)] // said above
    pub agree: usize,
    /// Tokens run.
    pub tokens: usize,
    /// First faults that are alike, the most frequent first.
    pub faults: Vec<FaultCount>,
    /// The prompt with the largest ratio of an error to its floor: its id, the stage, the ratio.
    pub worst: Option<(String, String, f64)>,
    /// The prompt whose logits are furthest apart: its id and its largest KL divergence.
    pub worst_logits: Option<(String, f64)>,
    /// Flips in all, and those that rounding does not explain.
    pub flips: usize,
    #[allow(missing_docs)] // said above
    pub unexplained_flips: usize,
    /// Mean KL divergence over all positions, nats.
    pub kld_mean: Option<f64>,
    /// The share of positions with the same most probable token.
    pub same_top_rate: Option<f64>,
    /// Time of all prompts together.
    pub seconds: f64,
}

/// First faults at one stage, on one side, with one cause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultCount {
    /// The fault; its step and ratio are those of the first such prompt.
    #[serde(flatten)]
    pub fault: FaultLine,
    /// In how many prompts it is the first.
    pub prompts: usize,
    /// The first of them.
    pub first: String,
}

impl SweepSummary {
    /// Of prompts in the order of the file.
    pub fn of(results: &[PromptResult]) -> Self {
        let mut faults: Vec<FaultCount> = Vec::new();
        for result in results {
            let Some(fault) = &result.first_fault else { continue };
            let alike =
                |f: &FaultLine| (&f.stage, &f.verdict, &f.cause) == (&fault.stage, &fault.verdict, &fault.cause);
            match faults.iter_mut().find(|count| alike(&count.fault)) {
                Some(count) => count.prompts += 1,
                None => faults.push(FaultCount { fault: fault.clone(), prompts: 1, first: result.id.clone() }),
            }
        }
        faults.sort_by_key(|count| std::cmp::Reverse(count.prompts)); // stable
        let worst = results.iter().filter_map(|r| r.worst.as_ref().map(|(stage, ratio)| (&r.id, stage, *ratio)));
        let worst = worst.max_by(|a, b| a.2.total_cmp(&b.2)).map(|(id, stage, r)| (id.clone(), stage.clone(), r));
        let logits = || results.iter().filter_map(|r| r.logits.map(|logits| (&r.id, logits)));
        let furthest = logits().max_by(|a, b| a.1.kld_max.total_cmp(&b.1.kld_max));
        let positions = logits().map(|(_, l)| l.positions).sum::<usize>();
        let mean = |sum: f64| (positions > 0).then(|| sum / positions as f64);
        Self {
            prompts: results.len(),
            agree: results.iter().filter(|r| r.agrees).count(),
            tokens: results.iter().map(|r| r.tokens + r.decoded).sum(),
            faults,
            worst,
            worst_logits: furthest.map(|(id, l)| (id.clone(), l.kld_max)),
            flips: results.iter().map(|r| r.flips).sum(),
            unexplained_flips: results.iter().map(|r| r.unexplained_flips).sum(),
            kld_mean: mean(logits().map(|(_, l)| l.kld_mean * l.positions as f64).sum()),
            same_top_rate: mean(logits().map(|(_, l)| l.same_top as f64).sum()),
            seconds: results.iter().map(|r| r.seconds).sum(),
        }
    }

    /// Whether every prompt's sides agree.
    pub fn agrees(&self) -> bool {
        self.prompts > 0 && self.agree == self.prompts
    }
}
