//! What several verbs take: a model, a prompt, a backend.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;

use indicatif::{ProgressBar, ProgressStyle};

use crate::backend::{self, AnyBackend, Backend, BackendInfo, NamedContract, OpenOptions, TuningUsed, contract};
use crate::cli::output::{detail, manner, remark};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::model::Model;
use crate::op::{STAGES, Scope, Stage, Weight};
use crate::text::{count, printable};
use crate::trace::select::{nearest, stages_named};

/// Bytes of text that are read of a prompt file: more than the longest context takes.
const MAX_PROMPT: u64 = 64 << 20;

/// What is run when no prompt is given.
pub const DEFAULT_PROMPT: &str = "fn main() {\n    let x = 5;";

#[derive(Args, Clone, Debug)]
pub struct ModelArg {
    /// A GGUF file (of a split model, any part); the bundled demo model if absent
    #[arg(value_name = "MODEL")]
    pub model: Option<PathBuf>,
}

impl ModelArg {
    pub fn open(&self) -> Result<Model> {
        open_model(self.model.as_deref())
    }
}

/// Opens a model and notes it among what was used.
pub fn open_model(path: Option<&Path>) -> Result<Model> {
    let began = Instant::now();
    let model = Model::open(path)?;
    let (name, weights) = (model.gguf.name(), model.weights.all().len());
    let (layers, weights) = (count(model.config.layers, "layer"), count(weights, "weight"));
    detail(&format!("opened {name}: {layers}, {weights}, in {:.1?}", began.elapsed()));
    if let Some(keys) = odd_texts(&model.gguf) {
        remark(&format!("{name}: {keys}"));
    }
    Environment::used_model(model.gguf.name(), model.gguf.fingerprint());
    Ok(model)
}

/// Which keys of a file have text that is not UTF-8, if one has.
fn odd_texts(gguf: &Gguf) -> Option<String> {
    let (first, others) = gguf.metadata.not_utf8().split_first()?;
    let others = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
    Some(format!("key {}{others}: text that is not UTF-8; U+FFFD stands for those bytes", printable(first)))
}

#[derive(Args, Clone, Debug, Default)]
pub struct PromptArgs {
    /// The text to run
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompt_file", "tokens"])]
    pub prompt: Option<String>,
    /// A file with the text to run, or a pipe; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    pub prompt_file: Option<PathBuf>,
    /// Token ids to run, instead of text
    #[arg(long, value_name = "ID,ID,…", value_delimiter = ',', action = clap::ArgAction::Set)]
    pub tokens: Option<Vec<u32>>,
    /// Make the text a user's message, in the model's chat template (tokenizer.chat_template), as a server does
    #[arg(long, conflicts_with = "tokens")]
    pub chat: bool,
    /// What the system says before the user's message
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// A variable that the template reads, such as enable_thinking=false, as JSON or else text; without it none is there, as in transformers,
    /// where llama-server has enable_thinking=true
    #[arg(long = "chat-var", value_name = "NAME=VALUE", requires = "chat", value_parser = chat_variable)]
    pub variables: Vec<(String, serde_json::Value)>,
}

/// `NAME=VALUE`: a name that a template can read, and JSON or else text.
fn chat_variable(said: &str) -> std::result::Result<(String, serde_json::Value), String> {
    let (name, value) = said.split_once('=').ok_or("NAME=VALUE expected")?;
    let fits = |(n, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (n > 0 && c.is_ascii_digit());
    if name.is_empty() || !name.chars().enumerate().all(fits) {
        return Err(format!("a name of letters, digits and _ expected, found {name:?}"));
    }
    let value = match serde_json::from_str(value) {
        Ok(value) => value,
        // Text is true, and a slip in JSON is no text that anybody means.
        Err(_) if matches!(value.to_lowercase().as_str(), "true" | "false" | "none" | "null") => {
            return Err(format!(
                "true, false or null expected, as JSON has them, found {value}; a text is in quotes: '\"{value}\"'"
            ));
        }
        Err(e) if value.starts_with(['[', '{', '"']) => return Err(format!("JSON expected, found {value}: {e}")),
        Err(_) => value.into(),
    };
    Ok((name.to_string(), value))
}

/// A prompt as it will be run.
pub struct Prompt {
    /// The text, where there was one.
    pub text: Option<String>,
    pub tokens: Vec<u32>,
}

impl PromptArgs {
    /// Whether the command line says what to run.
    pub fn is_given(&self) -> bool {
        self.prompt.is_some() || self.prompt_file.is_some() || self.tokens.is_some() || self.chat
    }

    /// The text that is run where `text` is given: itself, or under `--chat` what the model's template makes of it.
    ///
    /// # Errors
    /// A model without a template, or one that cannot be used.
    pub fn as_run(&self, model: &Model, text: String) -> Result<String> {
        if self.chat { model.chat(self.system.as_deref(), &text, &self.variables) } else { Ok(text) }
    }

    /// # Errors
    /// An unreadable file, a tokenizer that cannot be used, no tokens, or a token that is not in the vocabulary.
    pub fn resolve(&self, model: &Model) -> Result<Prompt> {
        let text = match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(path)) => Some(read_prompt(path)?),
            (None, None) if self.tokens.is_none() => Some(DEFAULT_PROMPT.to_string()),
            (None, None) => None,
        };
        let text = text.map(|text| self.as_run(model, text)).transpose()?;
        let tokens = match &text {
            Some(text) => model.tokenizer()?.encode(text)?,
            None => self.tokens.clone().unwrap_or_default(),
        };
        if tokens.is_empty() {
            return Err(Error::usage("the prompt is empty: at least one token is needed"));
        }
        let config = &model.config;
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= config.vocab) {
            return Err(Error::usage(format!(
                "token {token} is not in the vocabulary of {} (0 to {})",
                config.name,
                config.vocab - 1
            )));
        }
        if tokens.len() > config.context {
            return Err(Error::usage(format!(
                "the prompt has {} tokens; the context length of {} is {}",
                tokens.len(),
                config.name,
                config.context
            )));
        }
        Ok(Prompt { text, tokens })
    }
}

/// A prompt from a file or a pipe, of which no more is read than a prompt can have.
fn read_prompt(path: &Path) -> Result<String> {
    let mut text = String::new();
    let mut read = |from: &mut dyn Read| from.take(MAX_PROMPT + 1).read_to_string(&mut text);
    let read = match path.to_str() {
        Some("-") => read(&mut std::io::stdin()),
        _ => File::open(path).and_then(|mut file| read(&mut file)),
    };
    match read {
        Ok(bytes) if bytes as u64 > MAX_PROMPT => Err(Error::input(format!(
            "--prompt-file {}: expected at most {MAX_PROMPT} bytes, found more",
            path.display()
        ))),
        Ok(_) => Ok(text),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// Refuses `-`, standard input, more than once: the second would find nothing.
///
/// # Errors
/// [`Error::Usage`].
pub fn stdin_once(paths: &[impl AsRef<Path>]) -> Result<()> {
    match paths.iter().filter(|path| path.as_ref() == Path::new("-")).count() {
        0 | 1 => Ok(()),
        n => Err(Error::usage(format!("-: standard input can be read once, found it {n} times"))),
    }
}

/// Refuses `-` where a pipe cannot stand for what is read, which `what` says.
///
/// # Errors
/// [`Error::Usage`].
pub fn no_stdin(paths: &[impl AsRef<Path>], what: &str) -> Result<()> {
    match paths.iter().any(|path| path.as_ref() == Path::new("-")) {
        true => Err(Error::usage(format!("-: {what}, which standard input is not; a file called - is ./-"))),
        false => Ok(()),
    }
}

/// The one stage that `--stage` names, in a model that has it.
///
/// # Errors
/// [`Error::Usage`] with the nearest names, or with those that are meant.
pub fn stage_called(name: &str, model: &Model) -> Result<Stage> {
    let exists = |stage: &Stage| stage.info().scope.occurs(model.config.layout());
    let named: Vec<Stage> = stages_named(name).into_iter().filter(exists).collect();
    match named[..] {
        [stage] => Ok(stage),
        [] => {
            let names = nearest(name, STAGES.iter().filter(|s| exists(&s.stage)).map(|s| s.name));
            Err(Error::usage(format!("--stage {name:?}: this model has no such stage; the nearest: {names}")))
        }
        _ => {
            let names: Vec<&str> = named.iter().map(|s| s.name()).collect();
            Err(Error::usage(format!("--stage {name:?}: one of {}", names.join(", "))))
        }
    }
}

/// Refuses a layer that the model does not have, or that does not have the stage.
///
/// # Errors
/// [`Error::Usage`] naming both.
pub fn check_layer(layer: Option<u32>, stage: Stage, model: &Model) -> Result<()> {
    let (layers, layout) = (model.config.layers, model.config.layout());
    match layer {
        Some(n) if stage.info().scope == Scope::Model => {
            Err(Error::usage(format!("--layer {n}: {stage} belongs to no layer")))
        }
        Some(n) if n as usize >= layers => {
            Err(Error::usage(format!("--layer {n}: the model has layers 0 to {}", layers - 1)))
        }
        Some(n) if !stage.info().scope.occurs(layout.of(Some(n))) => {
            Err(Error::usage(format!("--layer {n}: {stage} does not occur there, in a model that has {layout}")))
        }
        _ => Ok(()),
    }
}

/// A contract by its name, or from a file. `besides` is what the flag takes where a name stands, too.
///
/// # Errors
/// [`Error::Usage`] for a name that none has, with those that are known, and what is wrong with a file.
pub fn contract_called(name: &str, besides: &[&str]) -> Result<NamedContract> {
    if name.ends_with(".json") {
        return contract::from_file(Path::new(name));
    }
    contract::named(name).ok_or_else(|| {
        let known = [contract::names(), besides].concat().join(", ");
        Error::usage(format!("--contract: no contract is called {name:?}; known are {known}, or a .json file"))
    })
}

/// Options of the backends that a verb opens.
#[derive(Args, Clone, Debug, Default)]
pub struct BackendArgs {
    /// Threads that a CPU backend uses, at most one a core [default: one a core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZero<usize>>,
    /// GPU memory that weights may take, such as 2GiB; those that do not fit are streamed from the file [default: all of it]
    #[arg(long, value_name = "BYTES", value_parser = gpu_memory)]
    pub gpu_memory: Option<u64>,
    /// Fill GPU memory with NaN before a kernel writes it, 8 KiB of guard words behind every output, and name the kernel that leaves an
    /// element out or writes past the end
    #[arg(long)]
    pub poison: bool,
}

/// Refuses a flag that only a GPU heeds where none of `sides` is one.
///
/// # Errors
/// [`Error::Usage`] naming the flag and the sides.
pub fn of_a_gpu<S: AsRef<str>>(flag: &str, given: bool, sides: &[S]) -> Result<()> {
    // By name alone: whether there is such an adapter is found out when it is opened.
    let gpu = |side: &S| side.as_ref().split(':').next() == Some("gpu");
    if !given || sides.iter().any(gpu) {
        return Ok(());
    }
    let sides: Vec<&str> = sides.iter().map(AsRef::as_ref).collect();
    Err(Error::usage(format!("{flag}: expected a GPU (gpu, gpu:N or gpu:NAME), found {}", sides.join(" and "))))
}

/// Reads a budget of bytes: `2GiB`, `500MB`, `1000000`.
pub fn gpu_memory(text: &str) -> std::result::Result<u64, String> {
    match text.parse::<bytesize::ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Ok(size.as_u64()),
        Ok(_) => Err("expected at least one byte".to_string()),
        Err(_) => Err("expected a number of bytes, such as 2GiB, 500MB or 1000000".to_string()),
    }
}

/// Threads that this machine runs at a time.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// As many threads as are asked for, or as there are cores, which is said once: more make nothing faster, and tens of thousands
/// take minutes to start.
pub fn at_most_cores(asked: NonZero<usize>) -> usize {
    static SAID: Once = Once::new();
    let (asked, cores) = (asked.get(), cores());
    if asked > cores {
        SAID.call_once(|| {
            remark(&format!("note: --threads {asked}: {}, one a core, are used", count(cores, "thread")))
        });
    }
    asked.min(cores)
}

/// Starts the threads that judge and compare, and those of the oracle. rayon would start them at the first use, and could only
/// panic if the system had none to give. Its own variable RAYON_NUM_THREADS is heeded, up to the number of cores.
///
/// # Errors
/// [`Error::CannotRun`] if they cannot be started.
pub fn start_threads() -> Result<()> {
    let cores = cores();
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    let threads = asked.map_or(cores, |n: usize| n.min(cores));
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    built.map_err(|e| Error::cannot_run(format!("cannot start {threads} threads: {e}")))
}

/// Says which table a GPU chooses its kernels by, if that is not the built-in one; once each.
pub fn say_tuning(info: &BackendInfo) {
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let Some(line) = tuning_note(info).map(|note| format!("note: {note}")) else { return };
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.contains(&line) {
        remark(&line);
        said.push(line);
    }
}

/// By which table a backend chooses kernels, where that is not, or might not have been, the built-in one.
pub fn tuning_note(BackendInfo { backend, tuning, .. }: &BackendInfo) -> Option<String> {
    let TuningUsed { table, sha256, not_used } = tuning.as_ref()?;
    match (sha256, not_used) {
        (Some(hash), _) => {
            Some(format!("{backend} chooses kernels by the tuning table {table} (sha256 {})", &hash[..12]))
        }
        (None, Some(other)) => Some(format!("{backend} chooses kernels by the built-in tuning table: {other}")),
        (None, None) => None,
    }
}

impl BackendArgs {
    /// What backends are opened with.
    pub fn options(&self) -> OpenOptions {
        let Self { threads, gpu_memory, poison } = *self;
        OpenOptions { threads: threads.map(at_most_cores), gpu_memory, poison }
    }

    /// Refuses what only a GPU heeds where none of the sides is one.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the flag and the sides.
    pub fn check<S: AsRef<str>>(&self, sides: &[S]) -> Result<()> {
        of_a_gpu("--gpu-memory", self.gpu_memory.is_some(), sides)?;
        of_a_gpu("--poison", self.poison, sides)
    }

    /// Opens the backend called `name`.
    ///
    /// # Errors
    /// As [`backend::open`].
    pub fn open(&self, name: &str) -> Result<AnyBackend> {
        self.open_with(name, self.options())
    }

    /// The same with other options.
    ///
    /// # Errors
    /// As [`backend::open`].
    pub fn open_with(&self, name: &str, options: OpenOptions) -> Result<AnyBackend> {
        let backend = opened(name, options)?;
        say_tuning(&backend.info());
        Ok(backend)
    }

    /// As [`BackendArgs::open`], for a report that says itself by which table a GPU chooses its kernels.
    ///
    /// # Errors
    /// As [`backend::open`].
    pub fn open_unsaid(&self, name: &str) -> Result<AnyBackend> {
        opened(name, self.options())
    }
}

fn opened(name: &str, options: OpenOptions) -> Result<AnyBackend> {
    let backend = backend::open(name, options)?;
    let info = backend.info();
    detail(&format!("opened {}: {}, {}; {}", info.backend, info.adapter, info.driver, info.contract));
    Environment::used_backend(&info);
    Ok(backend)
}

/// Makes a model's weights ready on a backend, with a progress bar on a terminal.
///
/// # Errors
/// A weight type that the backend has no kernel for, named with its tensor, and the backend's own.
pub fn prepare<B: Backend>(backend: &mut B, model: &Model) -> Result<()> {
    prepare_all(backend, &[model])
}

/// [`prepare`] of several models that are run in turn: all at once, as a budget of memory is for all of them. A weight that they share is loaded once.
pub fn prepare_all<B: Backend>(backend: &mut B, models: &[&Model]) -> Result<()> {
    models.iter().try_for_each(|model| runnable(backend, model))?;
    let mut weights: Vec<Arc<Weight>> = models.iter().flat_map(|model| model.weights.all()).collect();
    let mut seen = HashSet::new();
    weights.retain(|weight| seen.insert(weight.id));
    let total = weights.iter().map(|w| w.size() as u64).sum();
    let bar = progress_bar("loading {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
    bar.set_length(total);
    let result = backend.prepare(&weights, &mut |done| bar.set_position(done));
    bar.finish_and_clear();
    result
}

/// Refuses a model for which the backend lacks a kernel.
fn runnable<B: Backend>(backend: &B, model: &Model) -> Result<()> {
    let missing = backend.unsupported(&model.needs());
    if !missing.is_empty() {
        let name = backend.info().backend;
        let (first, rest) = missing.split_at(missing.len().min(3));
        let more = if rest.is_empty() { String::new() } else { format!("; and {} more", rest.len()) };
        return Err(Error::cannot_run(format!("{name} cannot run {}: {}{more}", model.config.name, first.join("; "))));
    }
    Ok(())
}

/// What a bar of things that are done one after another shows.
pub const ONE_BY_ONE: &str = "{bar:30} {pos}/{len} {msg}";

/// On a terminal only, where indicatif draws and a pipe gets nothing; and not where `-q` asks for quiet. A spinner in the template turns by
/// itself, and the time beside it: one step, such as a search for a cause, can take long.
pub fn progress_bar(template: &str) -> ProgressBar {
    if manner().quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(template).expect("a valid template"));
    if template.contains("{spinner}") {
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    bar
}

/// What is being done, and how far that is.
pub fn tell(bar: &ProgressBar, name: &str, done: usize, of: usize) {
    bar.set_length(of as u64);
    bar.set_position(done as u64);
    bar.set_message(name.to_string());
}
