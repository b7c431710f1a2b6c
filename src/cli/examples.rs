//! The examples under each verb's `--help`. A test parses every one of them, so none can name a flag that is not there.

macro_rules! examples {
    ($($name:ident: $($line:literal)+;)*) => {
        $(pub const $name: &str = concat!("Examples:", $("\n  twinscope ", $line),+);)*
        /// All of them.
        #[cfg(test)]
        const ALL: &[&str] = &[$($name),*];
    };
}

examples! {
    DIFF:
        "diff MODEL.gguf --prompt 'text'"
        "diff MODEL.gguf --chat --prompt 'text' --system 'Be brief.'"
        "diff MODEL.gguf --decode 16 --report out.html"
        "diff MODEL.gguf --quiet --report - >> summary.md"
        "diff --subject gpu:1 --reference gpu:0 --require all"
        "diff --layers 2 --stages 'attn_*,moe_out' --stop-at first"
        "diff --subject trace:run --contract subject=llama.cpp-cpu";
    COMPARE:
        "compare here there --full"
        "compare here there --require moe_out --report out.xml"
        "compare MODEL-Q8_0.gguf MODEL-Q4_K_M.gguf --prompt-file text.txt --report ranking.md";
    TRACE:
        "trace MODEL.gguf --backend gpu --json"
        "trace MODEL.gguf --save 'router*,moe_out' --layers 0-3,-1 --positions last --out dir";
    IMPORT:
        "import capture run.safetensors --model MODEL.gguf --out run"
        "import llama.cpp llamacpp-MODEL.bin --out logits";
    BENCH:
        "bench MODEL.gguf -p 512 -n 128 --backend cpu --backend gpu"
        "bench --stages --perfetto trace.json"
        "bench ops --shape qwen3-30b-a3b --quant Q4_K_M"
        "bench compare before.json after.json";
    REPRO:
        "repro --layer 0 --stage q_rope --keep --out failing"
        "repro run failing --subject gpu";
    PROBE:
        "probe --stage expert_gate --rows 131072"
        "probe MODEL.gguf --stage q_rope --layer 3 --rows 1 --start 131071 --subject gpu:1";
    SELFTEST:
        "selftest --only 'rope*'"
        "selftest --generate 100 --seed 7";
    INSPECT:
        "inspect MODEL.gguf --json"
        "inspect MODEL.gguf --check";
    EXPORT:
        "export MODEL.gguf --tensor blk.0.attn_q.weight --out q.npy";
    SYNTH:
        "synth --shape qwen3-30b-a3b --layers 4 --quant Q4_K_M 30b.gguf";
    RUN:
        "run MODEL.gguf --prompt 'text' -n 64 --backend gpu"
        "run MODEL.gguf --chat --prompt 'text'";
    DEVICES:
        "devices --json";
    MERGE:
        "merge 1.jsonl 2.jsonl";
    REPORT_ISSUE:
        "report-issue MODEL.gguf --prompt 'text' > issue.md";
    COMPLETIONS:
        "completions bash > /usr/share/bash-completion/completions/twinscope";
    MAN:
        "man --out /usr/local/share/man/man1";
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::super::Cli;

    #[test]
    fn every_example_is_a_command_line_and_every_verb_has_one() {
        let mut shown: Vec<String> = Vec::new();
        for line in super::ALL.iter().flat_map(|text| text.lines().skip(1)) {
            let line = line.trim().split(" >").next().unwrap();
            let words = shlex::split(line).expect("words");
            shown.push(words[1].clone());
            if let Err(e) = Cli::try_parse_from(&words) {
                panic!("{line}: {e}");
            }
        }
        for verb in Cli::command().get_subcommands() {
            assert!(shown.iter().any(|name| name == verb.get_name()), "{} has no example", verb.get_name());
            assert!(verb.get_after_help().is_some(), "{} shows none", verb.get_name());
        }
    }
}
