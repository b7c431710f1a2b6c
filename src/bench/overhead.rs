//! What tracing costs: the same run watched by nothing, with statistics of every stage, and with every tensor saved.
//!
//! Design:
//! - What is timed as tracing is what `trace` does, down to the renamed directory.
//! - A trace has the logits of every position, which a run that is not traced need not make. So there are two runs
//!   without a trace: as `run` does it, with the last position's logits, and with those of all positions, against which
//!   tracing is measured.
//! - The four are timed in turn, repetition by repetition, so that a machine that slows down slows all of them.

use std::time::Instant;

use super::subject::BenchSubject;
use super::throughput::BenchTest;
use super::{Progress, stats};
use crate::backend::{Backend, Lent};
use crate::error::{Error, Result};
use crate::model::{Calls, LogitRows, Model, Runner};
use crate::quant::random::Rng;
use crate::trace::capture::{Recorder, capture};
use crate::trace::select::Selection;
use crate::trace::store::{SiteStats, TraceWriter};

/// How a run is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Watching {
    /// Not at all, with the logits of the last position.
    Run,
    /// Not at all, with the logits of every position.
    Untraced,
    /// Statistics of every stage.
    Statistics,
    /// Statistics of every stage, and every tensor on disk.
    Saved,
}

impl Watching {
    /// In the order in which they are timed.
    pub const ALL: [Self; 4] = [Self::Run, Self::Untraced, Self::Statistics, Self::Saved];
}

/// The times of one way of watching.
#[derive(Clone, Debug)]
pub struct WatchedTimes {
    /// The way.
    pub watching: Watching,
    /// Seconds of each repetition.
    pub seconds: Vec<f64>,
    /// By how much each repetition took longer than the untraced one beside it: 1.1 is 10 % longer.
    pub ratios: Vec<f64>,
}

/// What tracing costs on one backend.
#[derive(Clone, Debug)]
pub struct OverheadResult {
    /// Prompt tokens, and tokens decoded after them.
    pub prompt: usize,
    /// See `prompt`.
    pub decode: usize,
    /// By way of watching.
    pub times: Vec<WatchedTimes>,
    /// Bytes of a saved trace.
    pub saved_bytes: u64,
}

impl OverheadResult {
    /// The middle of the ratios of one way of watching: one slow moment does not move it.
    pub fn median_ratio(of: &WatchedTimes) -> f64 {
        let mut ratios = of.ratios.clone();
        ratios.sort_by(f64::total_cmp);
        let n = ratios.len();
        if n == 0 { f64::NAN } else { stats::mean(&ratios[(n - 1) / 2..=n / 2]) }
    }
}

/// Times a prompt and a decode in every way of watching, once to warm up and `repeat` times. Traces are saved in the
/// directory for temporary files.
///
/// # Errors
/// The model's, the backend's, and those of the temporary directory.
pub fn overhead(
    subject: &mut BenchSubject,
    model: &Model,
    [prompt, decode]: [usize; 2],
    chunk: usize,
    repeat: usize,
    progress: Progress<'_>,
) -> Result<OverheadResult> {
    let mut random = Rng::new(0, 0);
    let mut tokens = |n| (0..n).map(|_| random.below(model.config.vocab as u64) as u32).collect::<Vec<_>>();
    let (tokens, forced) = (tokens(prompt), tokens(decode));
    let calls = Calls { prompt: &tokens, chunk, decode, forced: &forced };
    calls.positions(&model.config)?;
    let name = format!("{} trace overhead", subject.info.backend);
    let temp = std::env::temp_dir();
    let dir = tempfile::tempdir_in(&temp).map_err(|e| Error::cannot_run(format!("{}: {e}", temp.display())))?;
    let mut times: Vec<WatchedTimes> = Watching::ALL
        .iter()
        .map(|&watching| WatchedTimes { watching, seconds: Vec::new(), ratios: Vec::new() })
        .collect();
    let mut saved_bytes = 0;
    for repetition in 0..=repeat {
        for (n, way) in times.iter_mut().enumerate() {
            progress(&name, repetition * Watching::ALL.len() + n, (repeat + 1) * Watching::ALL.len());
            let lent = Lent::new(&mut subject.backend);
            let out = dir.path().join("trace");
            let seconds = time(lent, model, calls, way.watching, &out)?;
            if way.watching == Watching::Saved {
                saved_bytes = bytes_in(&out)?;
                std::fs::remove_dir_all(&out).map_err(|e| Error::io(&out, e))?;
            }
            if repetition > 0 {
                way.seconds.push(seconds);
            }
        }
    }
    let untraced = times.iter().find(|t| t.watching == Watching::Untraced).map_or(Vec::new(), |t| t.seconds.clone());
    for way in &mut times {
        way.ratios = way.seconds.iter().zip(&untraced).map(|(a, b)| a / b).collect();
    }
    Ok(OverheadResult { prompt, decode, times, saved_bytes })
}

fn time(
    mut backend: Lent<'_>,
    model: &Model,
    calls: Calls<'_>,
    watching: Watching,
    out: &std::path::Path,
) -> Result<f64> {
    backend.sync()?;
    let began = Instant::now();
    match watching {
        Watching::Run | Watching::Untraced => {
            let rows = if watching == Watching::Run { LogitRows::Last } else { LogitRows::All };
            let mut runner = Runner::new(&mut backend, model, calls, rows)?;
            while runner.step(&mut backend)? {
                // Every token's logits are looked at, as they are where the token is chosen by them.
                if runner.position() >= calls.prompt.len() {
                    runner.logits(&mut backend)?;
                }
            }
        }
        Watching::Statistics | Watching::Saved => {
            let positions = calls.positions(&model.config)?;
            let moe = model.config.moe.as_ref();
            let writer = match watching {
                Watching::Saved => {
                    let selected = Selection::all().resolve(
                        model.config.layers,
                        positions,
                        moe.map_or(0, |m| m.experts),
                        model.config.layout(),
                    )?;
                    Some(TraceWriter::create(out, false, selected)?)
                }
                _ => None,
            };
            let (mut captured, _) = capture(backend, model, calls, Recorder::new(writer), &mut |_| ())?;
            if let Some(writer) = captured.recorder.writer.take() {
                let rows = captured.recorder.statistics.sites().map(SiteStats::new).collect();
                writer.finish(captured.run(model, None, calls.prompt.len()), None, rows)?;
            }
        }
    }
    Ok(began.elapsed().as_secs_f64())
}

fn bytes_in(dir: &std::path::Path) -> Result<u64> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    let mut bytes = 0;
    for entry in entries {
        let entry = entry.and_then(|e| e.metadata()).map_err(|e| Error::io(dir, e))?;
        bytes += entry.len();
    }
    Ok(bytes)
}

/// What a test's name would be, for reports: `pp128` or `pp128+tg4`.
pub fn overhead_name(prompt: usize, decode: usize) -> String {
    let prompt = BenchTest { prompt, decode: 0, depth: 0 };
    match decode {
        0 => prompt.to_string(),
        n => format!("{prompt}+{}", BenchTest { prompt: 0, decode: n, depth: 0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::OpenOptions;

    #[test]
    fn every_way_of_watching_is_timed_beside_the_untraced_run() {
        let model = Model::open(None).unwrap();
        let mut cpu = BenchSubject::open("cpu", OpenOptions { threads: Some(1), ..Default::default() }, false).unwrap();
        let result = overhead(&mut cpu, &model, [9, 2], 4, 2, &mut |_, _, _| ()).unwrap();
        assert_eq!(result.times.iter().map(|t| t.watching).collect::<Vec<_>>(), Watching::ALL);
        for way in &result.times {
            assert_eq!((way.seconds.len(), way.ratios.len()), (2, 2));
            assert!(way.seconds.iter().all(|s| *s > 0.0));
        }
        assert_eq!(result.times[1].ratios, [1.0, 1.0]);
        // Eleven positions: the hidden state alone is stored several times a layer.
        assert!(result.saved_bytes > 4 * 11 * 256 * 4 * 8, "{}", result.saved_bytes);
        assert_eq!(overhead_name(128, 0) + " " + &overhead_name(9, 2), "pp128 pp9+tg2");
        let odd = WatchedTimes { watching: Watching::Saved, seconds: vec![], ratios: vec![3.0, 1.0, 2.0] };
        assert_eq!(OverheadResult::median_ratio(&odd), 2.0);
        assert!(overhead(&mut cpu, &model, [0, 2], 4, 1, &mut |_, _, _| ()).is_err());
    }
}
