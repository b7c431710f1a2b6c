//! The command that goes on from a fault.

use std::path::PathBuf;

use super::{Args, SIDES};
use crate::cli::common::{BackendArgs, PromptArgs};
use crate::diff::measure::metrics;
use crate::diff::outcome::{StageResult, Verdict};
use crate::diff::run::driver::{CHUNK, DiffOptions};
use crate::diff::run::infer::INFERRED;
use crate::trace::select::has_expert_rows;
use crate::trace::store::Imported;

/// The command that takes the first fault apart: the side that is wrong is its subject. Of a segment, the comparison with every stage shown.
/// `None` where a side is a trace, of which no stage can be run again, or is held to a contract that has no name.
pub(super) fn next(args: &Args, options: &DiffOptions, fault: &StageResult) -> Option<String> {
    let sides = [&args.reference, &args.subject];
    let wrong = usize::from(fault.verdict.side() != Some(metrics::Side::Reference));
    let (reference, subject) = (sides[1 - wrong], sides[wrong]);
    if sides.iter().any(|side| side.starts_with("trace:")) {
        return None;
    }
    if fault.segment.as_ref().is_some_and(|segment| !segment.hidden.is_empty()) {
        return whole(args, options);
    }
    let mut command = "twinscope repro".to_string() + &run_flags(args, options);
    if let Some(layer) = fault.site.layer {
        command += &format!(" --layer {layer}");
    }
    command += &format!(" --stage {}", fault.site.stage);
    if let Some(expert) = fault.expert.filter(|_| has_expert_rows(fault.site.stage)) {
        command += &format!(" --expert {expert}");
    }
    command += &side_flags(reference, subject);
    for (name, value, default) in [("--decode", fault.step, 0), ("--chunk", options.chunk, CHUNK)] {
        if value != default {
            command += &format!(" {name} {value}");
        }
    }
    if let Some(name) = contract_of(args, options, wrong)? {
        command += &flag("--contract", &name);
    }
    command += &backend_flags(&args.backends);
    if fault.verdict == Verdict::Differs {
        command += " --keep"; // over a limit, and perhaps not over its floor, which decides there
    }
    Some(command + " --out repro")
}

/// The same comparison of a side that shows everything, up to where it is wrong.
fn whole(args: &Args, options: &DiffOptions) -> Option<String> {
    let mut command = "twinscope diff".to_string() + &run_flags(args, options);
    command += &side_flags(&args.reference, &args.subject);
    if let Some(decode) = args.decode {
        command += &format!(" --decode {decode}");
    }
    if options.chunk != CHUNK {
        command += &format!(" --chunk {}", options.chunk);
    }
    for (side, of) in SIDES.iter().enumerate() {
        if let Some(name) = contract_of(args, options, side)? {
            command += &flag("--contract", &format!("{of}={name}"));
        }
    }
    args.tol.iter().for_each(|tol| command += &flag("--tol", tol));
    Some(command + &backend_flags(&args.backends) + " --stop-at first")
}

/// What was run: the model, and the prompt.
fn run_flags(args: &Args, options: &DiffOptions) -> String {
    let mut flags =
        args.model.model.as_ref().map_or(String::new(), |m| format!(" {}", quoted(&m.display().to_string())));
    let PromptArgs { prompt, prompt_file, tokens, chat, system, variables } = &args.prompt;
    // What came through a pipe is gone, and what is repeated is no text that can be said.
    let gone = |path: &PathBuf| path.as_os_str() == "-" || path.starts_with("/dev") || path.starts_with("/proc");
    let piped = prompt_file.as_ref().is_some_and(gone);
    // Nor is text with what a terminal is not shown: it would be escaped.
    let unsaid = [prompt, system].into_iter().flatten().any(|text| text.contains(char::is_control));
    if args.cover || piped || unsaid {
        return flags + &tokens_flag(&options.tokens);
    }
    if let Some(text) = prompt {
        flags += &flag("--prompt", text);
    }
    if let Some(path) = prompt_file {
        flags += &flag("--prompt-file", &path.display().to_string());
    }
    if let Some(tokens) = tokens {
        flags += &tokens_flag(tokens);
    }
    if *chat {
        flags += " --chat";
    }
    if let Some(text) = system {
        flags += &flag("--system", text);
    }
    for (name, value) in variables {
        flags += &format!(" --chat-var {name}={}", quoted(&value.to_string()));
    }
    flags
}

/// The sides, but for those that are taken anyway.
fn side_flags(reference: &str, subject: &str) -> String {
    let sides = [("--reference", reference, "cpu:scalar"), ("--subject", subject, "gpu")];
    sides.iter().filter(|(_, value, default)| value != default).map(|(name, value, _)| flag(name, value)).collect()
}

/// What backends are opened with.
fn backend_flags(BackendArgs { threads, gpu_memory, poison }: &BackendArgs) -> String {
    let mut flags = String::new();
    if let Some(threads) = threads {
        flags += &format!(" --threads {threads}");
    }
    if let Some(bytes) = gpu_memory {
        flags += &format!(" --gpu-memory {bytes}");
    }
    if *poison {
        flags += " --poison";
    }
    flags
}

/// What the command line says that a side is held to: of one that was inferred, the engine that it is. `None` where that is none.
fn contract_of(args: &Args, options: &DiffOptions, side: usize) -> Option<Option<String>> {
    let Some((_, name)) = args.contract.iter().find(|(of, _)| *of == side) else { return Some(None) };
    match name.as_str() {
        "infer" => {
            options.contracts[side].as_ref().map(|found| found.name.clone()).filter(|name| name != INFERRED).map(Some)
        }
        name => Some(Some(name.to_string())),
    }
}

/// A flag with its value as a shell takes it, behind an equals sign where it would be taken for a flag itself.
fn flag(name: &str, value: &str) -> String {
    let between = if value.starts_with('-') { '=' } else { ' ' };
    format!(" {name}{between}{}", quoted(value))
}

fn tokens_flag(tokens: &[u32]) -> String {
    let tokens: Vec<String> = tokens.iter().map(u32::to_string).collect();
    format!(" --tokens {}", tokens.join(","))
}

/// The command that captures what would tell most of a wrong segment, for the engine that the capture is of.
pub(super) fn capture_next(
    args: &Args,
    imported: &Imported,
    options: &DiffOptions,
    fault: &StageResult,
) -> Option<String> {
    let segment = fault.segment.as_ref().filter(|segment| !segment.capture.is_empty())?;
    let engine = imported.engine.as_deref().unwrap_or_default();
    let tokens: Vec<String> = options.tokens.iter().map(u32::to_string).collect();
    let tokens = tokens.join(",");
    let mut layers: Vec<String> = segment.capture.iter().filter_map(|site| site.layer).map(|n| n.to_string()).collect();
    layers.dedup();
    let stages: Vec<&str> = segment.capture.iter().map(|site| site.stage.name()).collect();
    let model =
        args.model.model.as_ref().map_or("MODEL.gguf".into(), |m| quoted(&m.display().to_string()).into_owned());
    let mut command = if engine.starts_with("llama.cpp") {
        // A node has the stage's own name or one of its aliases.
        let names = segment
            .capture
            .iter()
            .flat_map(|s| [s.stage.name()].into_iter().chain(s.stage.info().aliases.iter().copied()));
        let names: Vec<&str> = names.collect();
        format!("python3 capture/llama_cpp.py {model} --tokens {tokens} --nodes '^({})(-|$)'", names.join("|"))
    } else if engine.starts_with("transformers") {
        format!("python3 capture/hf_transformers.py MODEL --tokens {tokens} --stages {}", stages.join(","))
    } else {
        let keys: Vec<String> = segment.capture.iter().map(|site| site.key()).collect();
        let position = fault.position.map_or(String::new(), |p| format!(", at position {p} at least"));
        return Some(format!("capture {} of the same run{position}", keys.join(", ")));
    };
    if !layers.is_empty() {
        command += &format!(" --layers {}", layers.join(","));
    }
    if let Some(position) = fault.position {
        command += &format!(" --positions {position}");
    }
    Some(command + " --out more.safetensors")
}

/// `text` as a shell takes it for one word.
fn quoted(text: &str) -> std::borrow::Cow<'_, str> {
    shlex::try_quote(text).unwrap_or(text.into()) // refused is only NUL, which no argument of a program has
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::diff::measure::metrics::Mismatch;
    use crate::diff::outcome::{Measured, SegmentSummary};
    use crate::op::{Site, Stage};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        diff: Args,
    }

    #[test]
    fn the_next_command_reruns_the_stage_on_the_side_that_is_wrong() {
        let total = Measured::Failed(Mismatch::Ids);
        let mut fault = StageResult::new(0, Site::layer(2, Stage::ExpertDown), &[4, 2, 8], total);
        (fault.verdict, fault.expert) = (Verdict::SubjectWrong, Some(3));
        let next = |fault: &StageResult, args: &[&str]| {
            let args = Cli::parse_from([&["diff"], args].concat()).diff;
            let options = DiffOptions { chunk: args.chunk as usize, ..DiffOptions::new(vec![1, 2, 1]) };
            super::next(&args, &options, fault)
        };
        let plain = "twinscope repro --layer 2 --stage expert_down --expert 3 --out repro";
        assert_eq!(next(&fault, &[]).as_deref(), Some(plain));
        fault.step = 2;
        let full = ["a b.gguf", "--prompt", "it's", "--subject", "gpu:1", "--decode", "5", "--chunk", "7"];
        assert_eq!(
            next(&fault, &full).as_deref(),
            Some(
                r#"twinscope repro 'a b.gguf' --prompt "it's" --layer 2 --stage expert_down --expert 3 --subject gpu:1 --decode 2 --chunk 7 --out repro"#
            )
        );
        (fault.verdict, fault.step) = (Verdict::ReferenceWrong, 0);
        let sides = "twinscope repro --tokens 1,2 --layer 2 --stage expert_down --expert 3 --reference gpu --subject cpu:scalar --out repro";
        assert_eq!(next(&fault, &["--tokens", "1,2"]).as_deref(), Some(sides));
        assert_eq!(next(&fault, &["--subject", "trace:run"]), None, "a trace cannot be run again");
        let chat = [
            "--chat",
            "--prompt",
            "x",
            "--system",
            "be brief",
            "--chat-var",
            "thinking=false",
            "--chat-var",
            "mode=fast",
        ];
        let chat = next(&fault, &chat).unwrap();
        let expected = r#"repro --prompt x --chat --system 'be brief' --chat-var thinking=false --chat-var mode='"fast"' --layer 2"#;
        assert!(chat.contains(expected), "{chat}");
        let files = [&["--prompt-file", "-", "--chat"][..], &["--prompt-file", "/dev/fd/63"], &["--prompt", "x\ny"]];
        for piped in [&["--prompt", "x", "--cover"][..]].into_iter().chain(files) {
            let piped = next(&fault, piped).unwrap();
            assert!(
                piped.contains("--tokens 1,2,1 ") && !piped.contains("--prompt") && !piped.contains("--chat"),
                "{piped}"
            );
        }
        let dashed = next(&fault, &["--prompt=-x y"]).unwrap();
        assert!(dashed.contains("--prompt='-x y' "), "{dashed}");
    }
    /// Whatever decides the result is in the command: contracts, what backends are opened with, a limit that stands for a floor.
    #[test]
    fn the_next_command_has_what_decides_the_result() {
        let total = Measured::Failed(Mismatch::Ids);
        let mut fault = StageResult::new(0, Site::layer(2, Stage::QProj), &[4, 8], total);
        fault.verdict = Verdict::SubjectWrong;
        let next = |fault: &StageResult, args: &[&str]| {
            let args = Cli::parse_from([&["diff"], args].concat()).diff;
            super::next(&args, &DiffOptions::new(vec![1, 2, 1]), fault)
        };
        let held = ["--contract", "subject=my f32.json", "--contract", "reference=f32", "--threads", "2"];
        let held = [&held[..], &["--gpu-memory", "1MiB", "--poison"]].concat();
        let flags =
            |contract: &str| format!("--contract {contract} --threads 2 --gpu-memory 1048576 --poison --out repro");
        let subject = next(&fault, &held).unwrap();
        assert!(subject.ends_with(&flags("'my f32.json'")), "{subject}");
        fault.verdict = Verdict::ReferenceWrong;
        let reference = next(&fault, &held).unwrap();
        assert!(reference.ends_with(&flags("f32")), "{reference}");
        assert_eq!(next(&fault, &["--contract", "reference=infer"]), None, "what was inferred has no name");

        // Over a limit that was given, which the folder's floors are not.
        fault.verdict = Verdict::Differs;
        let limit = next(&fault, &["--tol", "q_proj:max_abs<=0"]).unwrap();
        assert!(limit.ends_with("--stage q_proj --keep --out repro"), "{limit}");

        // A segment has no folder: first it is looked into.
        let hidden = vec![Site::layer(2, Stage::AttnNorm)];
        fault.segment = Some(SegmentSummary { hidden, ..Default::default() });
        let shown = ["--shows", "q_proj", "--subject", "cpu", "--contract", "subject=f32", "--decode", "0"];
        let expected = "twinscope diff --subject cpu --decode 0 --contract 'subject=f32' --stop-at first";
        assert_eq!(next(&fault, &shown).as_deref(), Some(expected));
    }
}
