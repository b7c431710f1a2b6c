//! `selftest`: plants faults in running kernels and checks that each is found where it is; measures the floors.

use crate::Result;
use crate::backend::gpu::AdapterSelector;
use crate::cli::common::{ONE_BY_ONE, progress_bar, tell};
use crate::cli::{Outcome, output};
use crate::diff::sweep::Shard;
use crate::error::Error;
use crate::report::selftest::MadeUp;
use crate::selftest::calibrate::{self, calibrate};
use crate::selftest::faults::FaultySide;
use crate::selftest::{BESIDES, SelfTestOptions, list, run as plant};
use crate::trace::select::stages_in;

/// Plant faults in the kernels and check that each is located; or measure the rounding floors.
///
/// A run of the whole table plants a few besides that it makes up, other ones each time, and says how to plant them again.
/// Exit code 0 only if every fault is detected at its stage and on its side, and nothing else is blamed.
#[derive(clap::Args)]
pub struct Args {
    /// Only the faults with these names, such as 'rope*'
    #[arg(long, value_name = "GLOB", conflicts_with = "calibrate")]
    only: Option<String>,
    /// List the faults and plant none
    #[arg(long, conflicts_with = "calibrate")]
    list: bool,
    /// Only the faults that are planted on this backend [default: both]
    #[arg(long, value_name = "BACKEND", value_parser = ["cpu", "gpu"])]
    subject: Option<String>,
    /// Of those, every N-th from the I-th on: so that several machines share them, or one takes a sample
    #[arg(long, value_name = "I/N", conflicts_with = "calibrate")]
    shard: Option<Shard>,
    /// Show the comparison only these stages of the subject, such as 'layer_out': the faults are then sought in the segments between
    #[arg(long, value_name = "STAGES", conflicts_with = "calibrate")]
    shows: Option<String>,
    /// Make up so many faults instead of those listed: kinds of mistakes with numbers, places and strengths from --seed
    #[arg(long, value_name = "N", conflicts_with_all = ["calibrate", "shows"], value_parser = clap::value_parser!(u32).range(1..=10_000))]
    generate: Option<u32>,
    /// What --generate makes up, or a run of the whole table besides it [default: of --generate 1, else another each time]
    #[arg(long, value_name = "S", conflicts_with = "calibrate")]
    seed: Option<u64>,
    /// The adapter to plant on: a number or a name, as `devices` lists them
    #[arg(long, value_name = "ADAPTER")]
    adapter: Option<String>,
    /// Measure what correct kernels come to against their floors, over types, shapes and seeds
    #[arg(long)]
    calibrate: bool,
    /// Operations that --calibrate judges in all
    #[arg(long, value_name = "N", default_value_t = 100_000, requires = "calibrate", value_parser = clap::value_parser!(u64).range(1..))]
    evaluations: u64,
    /// Whole runs of a model of each family, over random tokens, that --calibrate judges on the best CPU level and on the GPU
    #[arg(long, value_name = "N", default_value_t = 2, requires = "calibrate", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    runs: u64,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let adapter = args.adapter.as_deref().map_or(AdapterSelector::Best, AdapterSelector::parse);
    let subject = args.subject.as_deref().map(|s| if s == "gpu" { FaultySide::Gpu } else { FaultySide::Cpu });
    if args.calibrate {
        let options =
            calibrate::CalibrationOptions { evaluations: args.evaluations, runs: args.runs, subject, adapter };
        let bar = progress_bar(ONE_BY_ONE);
        let result = calibrate(&options, |name, done, total| tell(&bar, name, done, total));
        bar.finish_and_clear();
        let calibration = result?;
        if args.json {
            output::print_json(&calibration.to_json())?;
        } else {
            output::print(&calibration.render())?;
        }
        return Ok(if calibration.passed() { Outcome::Ok } else { Outcome::Diverged });
    }
    let shows = args.shows.as_deref().map(stages_in).transpose().map_err(|e| e.within("--shows"))?;
    let (listed, made_up) = (args.generate.is_none(), made_up(args)?);
    let shard = args.shard.unwrap_or(Shard::WHOLE);
    let options = SelfTestOptions { only: args.only.clone(), subject, adapter, shard, shows, listed, made_up };
    if args.list {
        return print_list(&options, args.json);
    }
    let bar = progress_bar(ONE_BY_ONE);
    let result = plant(&options, |name, done, total| tell(&bar, name, done, total));
    bar.finish_and_clear();
    let report = result?;
    if args.json {
        output::print_json(&report.to_json())?;
    } else {
        output::print(&report.render())?;
    }
    Ok(if report.passed() { Outcome::Ok } else { Outcome::Diverged })
}

/// What is made up: what is asked for, or besides the whole table a few.
fn made_up(args: &Args) -> Result<Option<MadeUp>> {
    if let Some(count) = args.generate {
        return Ok(Some(MadeUp { count: count as usize, seed: args.seed.unwrap_or(1) }));
    }
    let whole = args.only.is_none() && args.shows.is_none() && !args.list;
    match args.seed {
        Some(_) if !whole => Err(Error::usage(
            "--seed says what is made up: by --generate, or by a run of the whole table, without --only, --shows and --list",
        )),
        seed => Ok(whole.then(|| MadeUp { count: BESIDES, seed: seed.unwrap_or_else(of_the_clock) })),
    }
}

/// A seed that is another in each run, and short enough to be typed again.
fn of_the_clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64 % 1_000_000_000)
}

fn print_list(options: &SelfTestOptions, json: bool) -> Result<Outcome> {
    let faults = list(options)?;
    if json {
        let rows: Vec<_> = faults
            .iter()
            .map(|(name, subject, what)| serde_json::json!({"name": name, "subject": subject.name(), "what": what}))
            .collect();
        output::print_json(&serde_json::json!({"schema": "twinscope.selftest.list/1", "faults": rows}))?;
    } else {
        let line =
            |(name, subject, what): &(&str, FaultySide, String)| format!("{name:22} {:4} {what}\n", subject.name());
        output::print(&faults.iter().map(line).collect::<String>())?;
    }
    Ok(Outcome::Ok)
}
