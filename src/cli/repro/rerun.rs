//! `repro run`: a folder's operation alone, on any backend.

use std::path::PathBuf;

use super::emit;
use crate::Result;
use crate::backend::gpu::{GpuBackend, GpuOptions};
use crate::backend::gpu_selector;
use crate::backend::{Backend, NamedContract};
use crate::cli::Outcome;
use crate::cli::common::{BackendArgs, contract_called, say_tuning};
use crate::environment::Environment;
use crate::error::Error;
use crate::op::HostTensor;
use crate::report::repro::{ReproDocument, SCHEMA};
use crate::repro::shaders::FolderShaders;
use crate::repro::{Folder, ReproVerdict, Subject, held};

/// Run the operation in a repro folder and judge it. Exit code 1: it is still wrong; 0: it agrees; 2: the folder cannot be read;
/// 125: it cannot run here, or a shader in it does not compile.
#[derive(clap::Args)]
pub struct Args {
    /// The folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The backend [default: the one that the folder was made on]
    #[arg(long, value_name = "BACKEND")]
    subject: Option<String>,
    /// What its arithmetic is held to: a contract's NAME, or FILE.json [default: what the folder was made with, or else what it promises]
    #[arg(long, value_name = "NAME")]
    contract: Option<String>,
    /// Whose WGSL a GPU compiles: the folder's, which may have been edited, or this program's own
    #[arg(long, value_name = "WHOSE", default_value = "folder", value_parser = ["folder", "built-in"])]
    shaders: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backends: BackendArgs,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let folder = Folder::open(&args.dir)?;
    let origin = &folder.manifest.origin;
    Environment::used_model(&origin.model, origin.fingerprint.clone());
    let name = args.subject.as_deref().unwrap_or(&folder.manifest.subject.info.backend);
    args.backends.check(&[name])?;
    let held_to = args.contract.as_deref().map(|name| contract_called(name, &[])).transpose()?;
    match gpu_selector(name) {
        Some(selector) => {
            let shaders = (args.shaders == "folder" && !folder.shaders.is_empty())
                .then(|| FolderShaders::new(folder.shaders.clone()));
            if shaders.is_some() {
                FolderShaders::check(&folder.manifest.dispatches)?;
                FolderShaders::compile(&folder)?;
            }
            let asked = args.backends.options().of_gpu();
            let options = match shaders.as_ref().map(|shaders| shaders.options()) {
                Some(GpuOptions { patch, lanes, tuning, .. }) => GpuOptions { patch, lanes, tuning, ..asked },
                None => asked,
            };
            let mut gpu = GpuBackend::new(&selector, options)?;
            Environment::used_backend(&gpu.info());
            say_tuning(&gpu.info());
            let ran = run_on(&folder, &mut gpu);
            let refused = gpu.refused_kernel().and_then(|(kernel, why)| FolderShaders::refused(&folder, kernel, why));
            let (output, kernels) = ran.map_err(|e| refused.unwrap_or(e))?;
            let mut notes = Vec::new();
            match &shaders {
                Some(shaders) => notes.extend(
                    shaders
                        .not_replaced()?
                        .iter()
                        .map(|kernel| format!("kernel {kernel} is not in the folder: this program's own was run")),
                ),
                None if args.shaders == "folder" => {
                    notes.push("the folder has no shaders: this program's own were run".into());
                }
                None => {}
            }
            finish(args, &folder, &gpu, held_to, output, kernels, notes)
        }
        None => {
            let mut backend = args.backends.open(name)?;
            let (output, kernels) = run_on(&folder, &mut backend)?;
            finish(args, &folder, &backend, held_to, output, kernels, Vec::new())
        }
    }
}

/// The result, and the kernels that made it where that is known.
fn run_on<S: Subject>(folder: &Folder, subject: &mut S) -> Result<(HostTensor, Vec<String>)> {
    let missing = subject.unsupported(&folder.needs());
    if !missing.is_empty() {
        let name = subject.info().backend;
        return Err(Error::cannot_run(format!("{name} cannot run {}: {}", folder.case.site, missing.join("; "))));
    }
    let (output, recorded) = subject.run_recorded(&folder.case)?;
    Ok((output, recorded.into_iter().flat_map(|r| r.dispatches).map(|d| d.kernel).collect()))
}

fn finish<B: Backend>(
    args: &Args,
    folder: &Folder,
    subject: &B,
    held_to: Option<NamedContract>,
    output: HostTensor,
    kernels: Vec<String>,
    mut notes: Vec<String>,
) -> Result<Outcome> {
    let (m, (kind, stage)) = (&folder.manifest, (folder.case.op().kind(), folder.case.site.stage));
    let mut info = held(subject.info(), held_to.as_ref());
    let own = *NamedContract::of(subject).at(stage, kind);
    let contract = match (&held_to, &m.subject.held_to) {
        (Some(asked), _) => *asked.at(stage, kind),
        (None, Some(name)) => {
            notes.push(format!("held to {name}, as the folder was, and not to what {} promises", info.backend));
            info.contract = m.subject.info.contract.clone();
            m.subject.contract
        }
        (None, None) => own,
    };
    let judged = folder.judge(&contract, output)?;
    if !folder.same_contract(&contract) {
        let (whose, made_on) = match &held_to {
            Some(asked) => (asked.name.as_str(), "the folder"),
            None => (info.backend.as_str(), m.subject.info.backend.as_str()),
        };
        notes.push(format!(
            "{whose} has another contract than {made_on}: the oracle's values and the floors are its own"
        ));
    }
    let fails = judged.fails();
    let document = ReproDocument {
        schema: SCHEMA,
        action: "run",
        layer: m.layer,
        stage: m.stage.clone(),
        verdict: if fails { ReproVerdict::SubjectWrong } else { ReproVerdict::Ok },
        subject: info,
        shape: folder.case.shape().to_vec(),
        alone: Some(judged.figures(&folder.case)),
        pattern: judged.pattern(&folder.case, m.head_dim),
        in_the_run: m.in_the_run.clone(),
        reference: None,
        shrinking: None,
        kernels,
        folder: Some(args.dir.clone()),
        notes,
    };
    emit(&document, args.json)?;
    Ok(if fails { Outcome::Diverged } else { Outcome::Ok })
}
