//! The command that goes on from a fault.

use super::Args;
use crate::cli::common::PromptArgs;
use crate::diff::measure::metrics;
use crate::diff::outcome::StageResult;
use crate::diff::run::driver::{CHUNK, DiffOptions};
use crate::trace::select::has_expert_rows;
use crate::trace::store::Imported;

/// The command that takes the first fault apart: the side that is wrong is its subject. `None` where a side is a trace, of
/// which no stage can be run again.
pub(super) fn next(args: &Args, options: &DiffOptions, fault: &StageResult) -> Option<String> {
    let (mut reference, mut subject) = (&args.reference, &args.subject);
    if fault.verdict.side() == Some(metrics::Side::Reference) {
        (reference, subject) = (subject, reference);
    }
    if [reference, subject].iter().any(|side| side.starts_with("trace:")) {
        return None;
    }
    let mut command = "twinscope repro".to_string();
    if let Some(model) = &args.model.model {
        command += &format!(" {}", quoted(&model.display().to_string()));
    }
    match &args.prompt {
        _ if args.cover => command += &tokens_flag(&options.tokens),
        PromptArgs { prompt: Some(text), .. } => command += &format!(" --prompt {}", quoted(text)),
        PromptArgs { prompt_file: Some(path), .. } => {
            command += &format!(" --prompt-file {}", quoted(&path.display().to_string()));
        }
        PromptArgs { tokens: Some(tokens), .. } => command += &tokens_flag(tokens),
        _ => {}
    }
    if args.prompt.chat && !args.cover {
        command += " --chat";
        if let Some(text) = &args.prompt.system {
            command += &format!(" --system {}", quoted(text));
        }
        for (name, value) in &args.prompt.variables {
            command += &format!(" --chat-var {name}={}", quoted(&value.to_string()));
        }
    }
    if let Some(layer) = fault.site.layer {
        command += &format!(" --layer {layer}");
    }
    command += &format!(" --stage {}", fault.site.stage);
    if let Some(expert) = fault.expert.filter(|_| has_expert_rows(fault.site.stage)) {
        command += &format!(" --expert {expert}");
    }
    for (flag, value, default) in [("--reference", reference, "cpu:scalar"), ("--subject", subject, "gpu")] {
        if value != default {
            command += &format!(" {flag} {}", quoted(value));
        }
    }
    for (flag, value, default) in [("--decode", fault.step, 0), ("--chunk", options.chunk, CHUNK)] {
        if value != default {
            command += &format!(" {flag} {value}");
        }
    }
    Some(command + " --out repro")
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
    use crate::diff::outcome::{Measured, Verdict};
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
        let covering = next(&fault, &["--prompt", "x", "--cover"]).unwrap();
        assert!(covering.contains("--tokens 1,2,1 ") && !covering.contains("--prompt"), "{covering}");
    }
}
