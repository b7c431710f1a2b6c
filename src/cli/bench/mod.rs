//! `bench`: how fast a model runs here, how fast it could, and where the time goes.

mod compare;
mod ops;

use std::io::Write;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::atomic::file::AtomicFile;
use crate::backend::OpenOptions;
use crate::bench::overhead::overhead;
use crate::bench::stages::stages;
use crate::bench::subject::BenchSubject;
use crate::bench::throughput::{BenchTest, throughput};
use crate::cli::common::{
    ModelArg, ONE_BY_ONE, at_most_cores, gpu_memory, of_a_gpu, prepare, progress_bar, say_tuning, tell,
};
use crate::cli::{Outcome, output};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::report::bench::overhead::OverheadRow;
use crate::report::bench::perfetto::PerfettoTrace;
use crate::report::bench::rates::RateRow;
use crate::report::bench::stages::{StageRow, test_of};
use crate::report::bench::{BenchDocument, BenchFormat, BenchModel, BenchRow};
use crate::text::printable_json;

/// Measure speed: tokens per second beside what the machine allows, time by stage and kernel, the cost of tracing.
///
/// Prompts and decoding are timed as llama-bench does, after a run that warms up. The limits are read bandwidth and f32
/// multiply-adds, measured in the same run; the share of the limit is the least time that they allow over the time
/// taken.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    form: Option<Form>,
    #[command(flatten)]
    model: ModelArg,
    /// Tokens of the prompts that are run; 0 for none [default: 512; with --trace-overhead 128]
    #[arg(short = 'p', long = "n-prompt", value_name = "N,…", value_delimiter = ',')]
    prompt: Option<Vec<usize>>,
    /// Tokens that are decoded one by one; 0 for none [default: 128; with --trace-overhead 16]
    #[arg(short = 'n', long = "n-gen", value_name = "N,…", value_delimiter = ',')]
    decode: Option<Vec<usize>>,
    /// Positions that are in the cache before each test
    #[arg(
        short,
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "0",
        conflicts_with = "trace_overhead"
    )]
    depth: Vec<usize>,
    /// Prompt tokens run at a time
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// How often each test is timed
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,
    #[command(flatten)]
    subjects: SubjectArgs,
    #[command(flatten)]
    output: OutputArgs,

    /// Time every stage, layer and kernel, and what is spent around them
    #[arg(long, conflicts_with = "trace_overhead", help_heading = "Instead of rates")]
    stages: bool,
    /// With --stages, also write the timeline, for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE", requires = "stages", help_heading = "Instead of rates")]
    perfetto: Option<PathBuf>,
    /// Time a prompt untraced, with statistics of every stage, and with every tensor saved
    #[arg(long, help_heading = "Instead of rates")]
    trace_overhead: bool,
}

#[derive(clap::Subcommand)]
enum Form {
    Ops(ops::Args),
    Compare(compare::Args),
}

/// What is measured on.
#[derive(clap::Args, Clone, Debug)]
struct SubjectArgs {
    /// A backend: cpu, cpu:scalar, cpu:avx2, cpu:avx512, cpu:neon, cpu:int8, gpu, gpu:N, gpu:NAME; several allowed
    #[arg(long, value_name = "BACKEND", value_delimiter = ',', default_value = "cpu")]
    backend: Vec<String>,
    /// Threads of a CPU backend, at most one a core; several allowed [default: one a core]
    #[arg(short, long, value_name = "N,…", value_delimiter = ',')]
    threads: Vec<NonZero<usize>>,
    /// GPU memory that weights may take, such as 2GiB; those that do not fit are streamed from the file [default: all of it]
    #[arg(long, value_name = "BYTES", value_parser = gpu_memory)]
    gpu_memory: Option<u64>,
    /// Do not measure what the machine allows
    #[arg(long)]
    no_limits: bool,
}

impl SubjectArgs {
    /// Refuses what only a GPU heeds where none is measured.
    fn check(&self) -> Result<()> {
        of_a_gpu("--gpu-memory", self.gpu_memory.is_some(), &self.backend)
    }

    /// Each backend with each number of threads; a GPU has one row whatever the threads of the CPU.
    fn each(&self) -> Vec<(&str, Option<usize>)> {
        let mut threads: Vec<Option<usize>> = self.threads.iter().map(|n| Some(at_most_cores(*n))).collect();
        threads.sort();
        threads.dedup();
        let mut all = Vec::new();
        for name in &self.backend {
            // `cpu` and every `cpu:LEVEL`: nothing else has threads.
            let own = if name.starts_with("cpu") && !threads.is_empty() { &threads[..] } else { &[None] };
            all.extend(own.iter().map(|n| (name.as_str(), *n)));
        }
        all
    }
}

/// How the result is written.
#[derive(clap::Args, Clone, Debug)]
struct OutputArgs {
    /// How to write the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: BenchFormat,
    /// The same as --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

impl OutputArgs {
    fn print<R: BenchRow>(&self, document: &BenchDocument<R>) -> Result<()> {
        let format = if self.json { BenchFormat::Json } else { self.output };
        let text = document.render(format)?;
        match format {
            BenchFormat::Table | BenchFormat::Md => output::print(&text),
            BenchFormat::Json | BenchFormat::Jsonl => output::print_data(&printable_json(&text)).map(|_| ()),
            BenchFormat::Csv => output::print_data(&text).map(|_| ()),
        }
    }
}

pub fn run(args: &Args) -> Result<Outcome> {
    args.subjects.check()?;
    match &args.form {
        Some(Form::Ops(args)) => ops::run(args),
        Some(Form::Compare(args)) => compare::run(args),
        None if args.trace_overhead => measure_tracing(args),
        None if args.stages => measure_stages(args),
        None => measure_rates(args),
    }
}

impl Args {
    /// The tests that the command line asks for, at every depth.
    fn tests(&self) -> Result<Vec<BenchTest>> {
        let prompts = self.prompt.as_deref().unwrap_or(&[512]).iter().map(|&n| (n, 0));
        let decodes = self.decode.as_deref().unwrap_or(&[128]).iter().map(|&n| (0, n));
        let runs: Vec<(usize, usize)> = prompts.chain(decodes).filter(|&(p, n)| p + n > 0).collect();
        let mut tests: Vec<BenchTest> = Vec::new();
        for &depth in &self.depth {
            for &(prompt, decode) in &runs {
                let test = BenchTest { prompt, decode, depth };
                if !tests.contains(&test) {
                    tests.push(test);
                }
            }
        }
        if tests.is_empty() { Err(Error::usage("nothing to time: -p and -n are both 0")) } else { Ok(tests) }
    }

    fn document<R: BenchRow>(&self, model: &Model) -> BenchDocument<R> {
        let settings = json!({"repeat": self.repeat, "chunk": self.chunk, "warm_up": 1});
        BenchDocument::new(BenchModel::of(model), settings)
    }
}

/// Calls `measure` with every backend that is asked for, one after another, with the model's weights on it.
fn with_each<R: BenchRow>(
    args: &SubjectArgs,
    model: &Model,
    document: &mut BenchDocument<R>,
    mut measure: impl FnMut(&mut BenchSubject, &mut BenchDocument<R>) -> Result<()>,
) -> Result<()> {
    for (name, threads) in args.each() {
        let options = OpenOptions { threads, gpu_memory: args.gpu_memory, ..Default::default() };
        let mut subject = BenchSubject::open(name, options, !args.no_limits)?;
        say_tuning(&subject.info);
        // `cpu` beside `cpu:avx2` may be the same.
        if document.has(&subject.info, subject.threads) {
            output::remark(&format!("note: {name} is {}, which is measured already", subject.info.backend));
            continue;
        }
        prepare(&mut subject.backend, model)?;
        document.add_backend(&subject.info, subject.threads, &subject.limits, subject.launch);
        measure(&mut subject, document)?;
    }
    Ok(())
}

fn measure_rates(args: &Args) -> Result<Outcome> {
    let (model, tests) = (args.model.open()?, args.tests()?);
    let mut document: BenchDocument<RateRow> = args.document(&model);
    let bar = progress_bar(ONE_BY_ONE);
    with_each(&args.subjects, &model, &mut document, |subject, document| {
        for &test in &tests {
            let mut tell = |name: &str, done, of| tell(&bar, name, done, of);
            let result = throughput(subject, &model, test, args.chunk as usize, args.repeat as usize, &mut tell)?;
            document.results.push(RateRow::new(subject, &result));
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    args.output.print(&document)?;
    Ok(Outcome::Ok)
}

fn measure_stages(args: &Args) -> Result<Outcome> {
    // Before anything is read or measured, so that a wrong name costs no time.
    let file = args.perfetto.as_deref().map(AtomicFile::create).transpose()?;
    let (model, tests) = (args.model.open()?, args.tests()?);
    let mut document: BenchDocument<StageRow> = args.document(&model);
    let mut timeline = PerfettoTrace::default();
    let bar = progress_bar(ONE_BY_ONE);
    with_each(&args.subjects, &model, &mut document, |subject, document| {
        for &test in &tests {
            let mut tell = |name: &str, done, of| tell(&bar, name, done, of);
            let result = stages(subject, &model, test, args.chunk as usize, args.repeat as usize, &mut tell)?;
            document.tests.push(test_of(subject, &result));
            document.results.extend(StageRow::all(subject, &result));
            if file.is_some() {
                timeline.add(subject, &result);
            }
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    if let Some(mut file) = file {
        let path: &Path = args.perfetto.as_deref().unwrap_or(Path::new(""));
        file.write_all(timeline.json().to_string().as_bytes()).map_err(|e| Error::io(path, e))?;
        file.commit()?;
    }
    args.output.print(&document)?;
    Ok(Outcome::Ok)
}

fn measure_tracing(args: &Args) -> Result<Outcome> {
    let model = args.model.open()?;
    // Something has to come before a decoded token.
    let prompts = args.prompt.as_deref().unwrap_or(&[128]).iter().map(|&n| [n, 0]);
    let decodes = args.decode.as_deref().unwrap_or(&[16]).iter().filter(|n| **n > 0).map(|&n| [1, n]);
    let runs: Vec<[usize; 2]> = prompts.filter(|[n, _]| *n > 0).chain(decodes).collect();
    if runs.is_empty() {
        return Err(Error::usage("nothing to time: -p and -n are both 0"));
    }
    let mut document: BenchDocument<OverheadRow> = args.document(&model);
    let bar = progress_bar(ONE_BY_ONE);
    // What is compared is the same work with and without, so limits would tell nothing.
    let subjects = SubjectArgs { no_limits: true, ..args.subjects.clone() };
    with_each(&subjects, &model, &mut document, |subject, document| {
        for &run in &runs {
            let mut tell = |name: &str, done, of| tell(&bar, name, done, of);
            let result = overhead(subject, &model, run, args.chunk as usize, args.repeat as usize, &mut tell)?;
            document.results.extend(OverheadRow::all(subject, &result));
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    args.output.print(&document)?;
    Ok(Outcome::Ok)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::common::cores;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        bench: Args,
    }

    fn args(args: &[&str]) -> Args {
        Cli::parse_from([&["bench"], args].concat()).bench
    }

    #[test]
    fn tests_are_every_prompt_and_decode_at_every_depth_once() {
        let names = |a: &[&str]| args(a).tests().unwrap().iter().map(|t| t.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&[]), ["pp512", "tg128"]);
        assert_eq!(names(&["-p", "0", "-n", "4,4", "-d", "0,16"]), ["tg4", "tg4 @ d16"]);
        assert_eq!(names(&["-p", "8,16", "-n", "0"]), ["pp8", "pp16"]);
        assert!(args(&["-p", "0", "-n", "0"]).tests().is_err());
    }

    #[test]
    fn threads_belong_to_the_cpu_alone() {
        let mut counts = vec![1, cores()];
        counts.dedup();
        let a = args(&["--backend", "cpu,gpu", "--backend", "cpu:scalar", "-t", &format!("{},1,1", cores())]);
        let of = |name| counts.iter().map(move |n| (name, Some(*n)));
        let expected: Vec<_> = of("cpu").chain([("gpu", None)]).chain(of("cpu:scalar")).collect();
        assert_eq!(a.subjects.each(), expected);
        assert_eq!(args(&[]).subjects.each(), [("cpu", None)]);
        let a = args(&["-t", "18446744073709551615,65535"]);
        assert_eq!(a.subjects.each(), [("cpu", Some(cores()))], "one row, of as many threads as there are cores");
    }

    #[test]
    fn a_form_is_not_taken_for_a_model() {
        assert!(matches!(args(&["ops"]).form, Some(Form::Ops(_))));
        assert!(matches!(args(&["compare", "a", "b"]).form, Some(Form::Compare(_))));
        assert!(args(&["model.gguf", "-n", "1"]).form.is_none());
    }
}
