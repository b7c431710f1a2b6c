use std::sync::Arc;

use twinscope::backend::cpu::{CpuBackend, Level};
use twinscope::backend::gpu::GpuOptions;
use twinscope::backend::{AnyBackend, Erased};
use twinscope::diff::run::driver::{DiffOptions, Sides, diff};
use twinscope::model::Model;
use twinscope::report::text;

use crate::gpu::common::gpu_with;

#[test]
fn picture() {
    let patch = move |name: &str, source: String| match name {
        "rope" => source.replace("let norm = p.neighbours == 1u;", "let norm = true;"),
        "norm_rope" => {
            let edits = [
                ("let a = x[start + i] * scale * weight[i];", "let a = x[start + 2u * i] * scale * weight[2u * i];"),
                (
                    "let b = x[start + half_dim + i] * scale * weight[half_dim + i];",
                    "let b = x[start + 2u * i + 1u] * scale * weight[2u * i + 1u];",
                ),
                ("y[start + i] = ", "y[start + 2u * i] = "),
                ("y[start + half_dim + i] = ", "y[start + 2u * i + 1u] = "),
            ];
            let mut s = source;
            for (a, b) in edits {
                assert!(s.contains(a), "{a}");
                s = s.replace(a, b);
            }
            s
        }
        _ => source,
    };
    let options = GpuOptions { patch: Some(Arc::new(patch)), ..Default::default() };
    let mut subject: AnyBackend = Box::new(Erased(gpu_with(options)));
    let mut reference: AnyBackend = Box::new(Erased(CpuBackend::new(Some(Level::Scalar), Some(2)).unwrap()));
    let sides = Sides { reference: &mut reference, subject: &mut subject, judged: true };
    let model = Model::open(None).unwrap();
    let prompt = "fn main() {\n    let x = 5;";
    let tokens = model.tokenizer().unwrap().encode(prompt).unwrap();
    let options = DiffOptions { decode: 1, prompt: Some(prompt.into()), ..DiffOptions::new(tokens) };
    let mut c = diff(&model, sides, &options).unwrap();
    c.next = Some("twinscope repro --layer 0 --stage q_rope --out repro".into());
    println!("{}", text::render(&c, text::Style { color: false, full: false }));
}
