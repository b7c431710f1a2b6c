use std::path::PathBuf;

use super::*;
use crate::trace::store::Trace;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn imported(kind: Kind, name: &str) -> (Report, Trace, tempfile::TempDir) {
    let guard = tempfile::tempdir().unwrap();
    let out = guard.path().join("trace");
    let report = import(kind, &data(name), None, &out, false).unwrap();
    let trace = Trace::open(&out).unwrap();
    assert_eq!(trace.manifest(), &report.manifest);
    (report, trace, guard)
}

fn unmapped(report: &Report) -> &[String] {
    &report.manifest.imported.as_ref().unwrap().unmapped
}

#[test]
fn golden_safetensors_come_over_whole() {
    let (report, trace, _guard) = imported(Kind::Safetensors, "golden/main.safetensors");
    assert_eq!(unmapped(&report), [] as [String; 0]);
    assert_eq!(trace.manifest().run.tokens.len(), 11);
    let mut golden = crate::trace::store::file::TensorFile::open(&data("golden/main.safetensors")).unwrap();
    assert_eq!(report.mapped.len(), golden.keys().len());
    for (key, site) in &report.mapped {
        assert_eq!(*key, site.key());
        let tensor = trace.tensor(*site).unwrap().unwrap();
        assert_eq!(tensor, golden.read(key).unwrap(), "{key}");
        assert_eq!(tensor.dtype(), if site.stage.is_ids() { "u32" } else { "f64" });
    }
}

#[test]
fn aprt_is_the_last_token_of_three_stages() {
    let (report, trace, _guard) = imported(Kind::Aprt, "data/aprt");
    assert_eq!(report.mapped.len(), 12);
    let run = &trace.manifest().run;
    assert_eq!((run.model.architecture.as_str(), run.prompt.as_deref()), ("qwen3moe", Some("What is 2+2?")));
    assert_eq!(run.tokens.len(), 9);
    let ids = trace.tensor(Site::layer(0, Stage::RouterIds)).unwrap().unwrap();
    assert_eq!(ids, HostTensor::u32(&[1, 2], vec![2, 7]));
    let weights = trace.tensor(Site::layer(0, Stage::RouterWeights)).unwrap().unwrap();
    assert_eq!(weights.shape, [1, 2]);
    assert!((weights.to_f64().iter().sum::<f64>() - 1.0).abs() < 1e-6);
    assert_eq!(trace.tensor(Site::layer(3, Stage::MoeOut)).unwrap().unwrap().shape, [1, 256]);
    let stored = trace.stored(Site::layer(3, Stage::MoeOut)).unwrap();
    assert_eq!(stored.positions.to_string(), "8");
    let imported = trace.manifest().imported.clone().unwrap();
    assert_eq!(imported.assumed.len(), 1, "which position it is, is an assumption");
    assert!(imported.assumed[0].starts_with("the one row of layer-0/moe_router_indices, "), "{:?}", imported.assumed);
    assert_eq!(imported.unmapped.len(), 1);
    assert!(imported.unmapped[0].contains("statistics"));
}

#[test]
fn llama_logits_are_the_last_token() {
    for path in ["data/llama.cpp", "data/llama.cpp/llamacpp-demo-moe-Q4_K_M.bin"] {
        let (report, trace, _guard) = imported(Kind::LlamaCpp, path);
        assert_eq!(unmapped(&report), [] as [String; 0]);
        let run = &trace.manifest().run;
        assert_eq!((run.tokens.len(), run.tokens[0], run.tokens[20]), (21, 703, 16));
        assert!(
            run.prompt.as_ref().is_some_and(|p| p.starts_with("In Rust") && p.ends_with("memory.")),
            "{:?}",
            run.prompt
        );
        let logits = trace.tensor(Site::model(Stage::Logits)).unwrap().unwrap();
        assert_eq!(logits.shape, [1, 2048]);
        assert_eq!(trace.stored(Site::model(Stage::Logits)).unwrap().positions.to_string(), "20");
    }
}

#[test]
fn npz_arrays_are_fitted_and_the_rest_is_said() {
    let (report, trace, _guard) = imported(Kind::Npz, "data/stored.npz");
    let get = |site| trace.tensor(site).unwrap().unwrap();
    assert_eq!(trace.manifest().run.tokens, [5, 6]);
    assert_eq!(get(Site::layer(0, Stage::AttnNorm)), HostTensor::f32(&[2, 3], (0..6).map(|x| x as f32).collect()));
    assert_eq!(get(Site::layer(1, Stage::QRope)), HostTensor::f64(&[2, 4], (0..8).map(|x| x as f64).collect()));
    assert_eq!(get(Site::layer(1, Stage::RouterIds)), HostTensor::u32(&[2, 2], vec![3, 1, 0, 2]));
    assert_eq!(get(Site::model(Stage::Logits)), HostTensor::f32(&[1, 3], vec![0.5, -1.0, 2.0]));
    assert_eq!(report.mapped.len(), 4);
    let unmapped = unmapped(&report);
    assert!(unmapped.iter().any(|u| u.contains("layers.0.Qcur: `Qcur` could be q_proj or q_rope")), "{unmapped:?}");
    assert!(unmapped.iter().any(|u| u.contains("loss: no stage is called `loss`; the nearest: ")), "{unmapped:?}");
    assert_eq!(unmapped.len(), 2);
}

#[test]
fn what_has_no_stage_at_all_is_an_error_that_says_why() {
    let refused = |kind, path: PathBuf| {
        let out = tempfile::tempdir().unwrap();
        let error = import(kind, &path, None, &out.path().join("t"), false).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(!out.path().join("t").exists());
        error.to_string()
    };
    assert!(refused(Kind::Npz, data("data/deflated.npz")).contains("compressed"));
    assert!(refused(Kind::Safetensors, data("golden/dequant.safetensors")).contains("no stage is called"));
    assert!(refused(Kind::Safetensors, data("golden/prompts.json")).contains("not a safetensors file"));
    assert!(refused(Kind::Npz, data("golden/prompts.json")).contains("not an .npz archive"));
    assert!(refused(Kind::Aprt, data("golden")).contains("neither a layer's directory"));
    assert!(refused(Kind::LlamaCpp, data("golden")).contains("0 pairs"));
    for kind in [Kind::Npz, Kind::Safetensors, Kind::Aprt, Kind::LlamaCpp] {
        assert!(refused(kind, data("absent")).contains("absent"));
    }
}

#[test]
fn damaged_sources_are_errors_not_panics() {
    let guard = tempfile::tempdir().unwrap();
    let path = guard.path().join("a.npz");
    let try_npz = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let mut arrays = npy::Arrays::open(&path)?;
        (0..arrays.items().len()).try_for_each(|i| arrays.read(i).map(|_| ()))
    };
    let npz = std::fs::read(data("data/stored.npz")).unwrap();
    try_npz(&npz).unwrap();
    for cut in (0..npz.len()).step_by(17).chain(npz.len() - 30..npz.len()) {
        assert!(try_npz(&npz[..cut]).is_err(), "cut at {cut}");
    }
    // Bytes changed: an error or another reading, never a panic. The directory of the archive is its last 700 bytes.
    for at in (0..npz.len() - 700).step_by(11).chain(npz.len() - 700..npz.len()) {
        for value in [0, 0xff] {
            let mut bytes = npz.clone();
            bytes[at] = value;
            let _ = try_npz(&bytes);
        }
    }
    let aprt = std::fs::read(data("data/aprt/layer-0/moe_ffn_out.bin")).unwrap();
    let layer = guard.path().join("run/layer-0");
    std::fs::create_dir_all(&layer).unwrap();
    let try_aprt = |bytes: &[u8]| {
        std::fs::write(layer.join("moe_ffn_out.bin"), bytes).unwrap();
        let out = tempfile::tempdir().unwrap();
        import(Kind::Aprt, &guard.path().join("run"), None, &out.path().join("t"), false).map(|_| ())
    };
    try_aprt(&aprt).unwrap();
    for cut in [0, 3, 11, 12, 1035] {
        assert!(try_aprt(&aprt[..cut]).is_err());
    }
    for (at, value) in [(0, b'X'), (4, 1), (8, 1), (11, 0xff)] {
        let mut bytes = aprt.clone();
        bytes[at] = value;
        assert!(try_aprt(&bytes).is_err(), "byte {at}");
    }
}

#[test]
fn names_of_other_programs() {
    let key = |label: &str| site_named(label).map(|s| s.key());
    assert_eq!(key("model.layers.3.input_layernorm").unwrap(), "layers.3.attn_norm");
    assert_eq!(key("blk.2.ffn_moe_out").unwrap(), "layers.2.moe_out");
    assert_eq!(key("kq_soft_max-1").unwrap(), "layers.1.attn_probs");
    assert_eq!(key("result_output").unwrap(), "logits");
    assert!(key("attn_norm").unwrap_err().contains("which layer"));
    assert!(key("layers.1.logits").unwrap_err().contains("no layer"));
    assert!(key("layers.1.*").unwrap_err().contains("no stage"));
    assert!(key("").is_err() && key("-").is_err() && key("layers..").is_err());
    assert_eq!(fit(Stage::QRope, &[1, 5, 8, 64]).unwrap(), [5, 512]);
    assert_eq!(fit(Stage::AttnScores, &[1, 8, 5, 5]).unwrap(), [8, 5, 5]);
    assert_eq!(fit(Stage::ExpertAct, &[2, 256]).unwrap(), [1, 2, 256]);
    assert!(fit(Stage::Logits, &[2, 3, 4]).is_err());
    assert!(fit(Stage::Logits, &[]).is_err());
    assert!(fit(Stage::QRope, &[0, usize::MAX, 3]).is_err());
}
