//! `--chat`: a prompt as a server makes it of a message, and the hash by which two engines are held to one input.

use std::path::Path;

use sha2::{Digest, Sha256};
use twinscope::gguf::{self, Gguf, TensorSpec, Value};
use twinscope::model::Model;

use super::diff::{expect, twinscope, valid};

const DEMO: &str = "models/demo-moe-Q4_K_M.gguf";
const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The demo with a chat template, and with a beginning-of-text token in front or without.
fn with_template(template: &str, add_bos: bool, to: &Path) -> String {
    let demo = Gguf::open(Path::new(DEMO)).unwrap();
    let mut metadata = demo.metadata.clone();
    metadata.set("tokenizer.chat_template", Value::String(template.into()));
    metadata.set("tokenizer.ggml.add_bos_token", Value::Bool(add_bos));
    let specs: Vec<TensorSpec> = demo.tensors().iter().map(|t| TensorSpec::new(&t.name, t.ty, &t.dims)).collect();
    gguf::write(to, &metadata, &specs, |spec, sink| sink.put(demo.data(demo.tensor(&spec.name).unwrap()))).unwrap();
    to.display().to_string()
}

fn sha256(tokens: &[u32]) -> String {
    format!("{:x}", Sha256::digest(tokens.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<u8>>()))
}

/// What is written to standard error by a command that exits with 2.
fn refusal(args: &[&str]) -> String {
    let out = twinscope(args);
    assert_eq!(out.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn a_message_is_run_in_the_models_own_template() {
    let dir = tempfile::tempdir().unwrap();
    let file = with_template(CHATML, false, &dir.path().join("chat.gguf"));
    let saved = dir.path().join("saved");
    let args =
        ["trace", &file, "--chat", "--prompt", "let x", "--system", "Rust", "--json", "--save", "logits", "--out"];
    let document = valid("trace.schema.json", &expect(0, &[&args[..], &[saved.to_str().unwrap()]].concat()));
    let text = "<|im_start|>system\nRust<|im_end|>\n<|im_start|>user\nlet x<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(document["prompt"], text);
    let tokens: Vec<u32> = serde_json::from_value(document["tokens"].clone()).unwrap();
    let model = Model::open(Some(Path::new(&file))).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    // The marks are tokens, not text that looks like them.
    let [begin, end] = ["<|im_start|>", "<|im_end|>"].map(|mark| tokenizer.encode(mark).unwrap()[0]);
    let count = |id: u32| tokens.iter().filter(|&&t| t == id).count();
    assert_eq!((count(begin), count(end)), (3, 2));
    assert_eq!(document["tokens_sha256"], sha256(&tokens));
    let manifest = std::fs::read_to_string(saved.join("manifest.json")).unwrap();
    assert_eq!(valid("manifest.schema.json", &manifest)["tokens_sha256"], sha256(&tokens));
    // Its ids alone are the same run.
    let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
    let diff =
        ["diff", &file, "--tokens", &ids.join(","), "--subject", "cpu", "--decode", "0", "--json", "--layers", "0"];
    let document = valid("diff.schema.json", &expect(0, &diff));
    assert_eq!(document["tokens_sha256"], sha256(&tokens));
    let inspected = valid("inspect.schema.json", &expect(0, &["inspect", &file, "--json"]));
    assert_eq!(inspected["tokenizer"]["chat_template"], true);
    // Of many prompts, each is a message.
    let prompts = dir.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"let x\"}\n").unwrap();
    let line = expect(0, &["trace", &file, "--chat", "--json", "--prompts", prompts.to_str().unwrap()]);
    let user = "<|im_start|>user\nlet x<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(valid("trace.schema.json", &line)["prompt"], user);
    std::fs::write(&prompts, "{\"tokens\": [1]}\n").unwrap();
    let refused = refusal(&["trace", &file, "--chat", "--prompts", prompts.to_str().unwrap()]);
    assert!(refused.contains("line 1: --chat makes a message of text, found token ids"), "{refused}");
}

/// What a template reads besides, as a caller of transformers or of llama-server says it.
#[test]
fn a_template_reads_the_variables_that_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let template = "{{ messages[0].content }}{% if enable_thinking is defined and enable_thinking is false %} quick{% endif %}\
                    {% if effort is defined %} {{ effort }}{% endif %}";
    let file = with_template(template, false, &dir.path().join("thinks.gguf"));
    let prompt = |variables: &[&str]| {
        let args = [&["trace", &file, "--chat", "--prompt", "let x", "--json"][..], variables].concat();
        valid("trace.schema.json", &expect(0, &args))["prompt"].as_str().unwrap().to_string()
    };
    assert_eq!(prompt(&[]), "let x");
    assert_eq!(prompt(&["--chat-var", "enable_thinking=true"]), "let x");
    assert_eq!(prompt(&["--chat-var", "enable_thinking=false"]), "let x quick");
    assert_eq!(prompt(&["--chat-var", "enable_thinking=false", "--chat-var", "effort=low"]), "let x quick low");
    assert_eq!(prompt(&["--chat-var", r#"effort="7""#]), "let x 7");
    for (variable, expected) in [
        ("enable_thinking", "NAME=VALUE expected"),
        ("2nd=1", "a name of letters, digits and _ expected"),
        ("messages=[]", "the chat template's variable \"messages\": another than messages, bos_token"),
    ] {
        let said = refusal(&["trace", &file, "--chat", "--prompt", "x", "--chat-var", variable]);
        assert!(said.contains(expected), "{variable}: {said}");
    }
    let without = refusal(&["trace", &file, "--prompt", "x", "--chat-var", "a=1"]);
    assert!(without.contains("--chat"), "{without}");
}

#[test]
fn a_beginning_of_text_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    for (i, template) in ["{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"].iter().enumerate() {
        let file = with_template(template, true, &dir.path().join(format!("{i}.gguf")));
        let document =
            valid("trace.schema.json", &expect(0, &["trace", &file, "--chat", "--prompt", "let x", "--json"]));
        let tokens: Vec<u32> = serde_json::from_value(document["tokens"].clone()).unwrap();
        assert_eq!((tokens[0], tokens[1..].contains(&0)), (0, false), "{template}");
    }
}

#[test]
fn what_cannot_be_a_message_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let none = refusal(&["trace", DEMO, "--chat", "--prompt", "x"]);
    assert!(none.contains("key tokenizer.chat_template is missing"), "{none}");
    for args in [["--chat", "--tokens", "1"], ["--system", "x", "--quiet"]] {
        refusal(&[&["trace", DEMO][..], &args].concat());
    }
    let file = with_template("\n{{ raise_exception('no \x1b[2J\nway') }}", false, &dir.path().join("raises.gguf"));
    let said = refusal(&["run", &file, "--chat", "--prompt", "x"]);
    assert!(said.contains("raises.gguf: tokenizer.chat_template: line 2: it says: no \\u{1b}[2J\\nway"), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "{said}");
}
