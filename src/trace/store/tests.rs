//! Round trips through the directory, and everything that may be wrong with one.

use std::path::{Path, PathBuf};

use super::*;
use crate::backend::Order;
use crate::error::Result;
use crate::op::{At, Dim, HostTensor, LayerLayout, Scope};
use crate::trace::select::Selection;
use crate::trace::stats::Statistics;

const LAYERS: usize = 2;
const T: usize = 7;
const EXPERTS: usize = 4;

fn run() -> Run {
    let contract = Contract::ieee_f32(Order::Lanes { lanes: 16 });
    let text = |s: &str| s.to_string();
    Run {
        model: ModelInfo {
            name: text("m"),
            architecture: text("qwen3moe"),
            fingerprint: text("f"),
            hyperparameters: Default::default(),
        },
        prompt: None,
        tokens: (0..T as u32).collect(),
        prompt_tokens: T,
        tokens_sha256: None,
        backend: BackendInfo {
            backend: text("cpu"),
            adapter: text("a"),
            driver: text("d"),
            software: false,
            contract: text("c"),
            tuning: None,
        },
        contracts: [
            ("mat_mul".into(), contract),
            ("rope".into(), Contract::wgsl_f32(Order::Sequential)),
            ("add".into(), Contract::f64()),
        ]
        .into(),
    }
}

/// What expert slot k of position t is.
fn expert(layer: usize, t: usize, k: usize) -> u32 {
    ((layer + t + 2 * k) % EXPERTS) as u32
}

/// The whole value of a stage for positions `rows`; a value says where it belongs.
fn value(site: Site, rows: std::ops::Range<usize>, wide: bool) -> HostTensor {
    let layer = site.layer.unwrap_or(9) as usize;
    let n = rows.len();
    let number = |head: usize, t: usize, i: usize| (1000 * layer + 100 * head + 10 * t + i) as f64 + 0.5;
    let mut shape = Vec::new();
    let mut data = Vec::new();
    match site.stage.info().shape {
        [Dim::T, Dim::K] if site.stage.is_ids() => {
            let ids = rows.flat_map(|t| (0..2).map(move |k| expert(layer, t, k))).collect();
            return HostTensor::u32(&[n, 2], ids);
        }
        [Dim::T, dim] => {
            let width = if *dim == Dim::E { EXPERTS } else { 3 }; // ids are held against the router's width
            shape.extend([n, width]);
            data.extend(rows.flat_map(|t| (0..width).map(move |i| number(0, t, i))));
        }
        [Dim::T, Dim::K, _] => {
            shape.extend([n, 2, 3]);
            data.extend(rows.flat_map(|t| (0..6).map(move |i| number(0, t, i))));
        }
        _ => {
            shape.extend([2, n, rows.end]);
            for head in 0..2 {
                for t in rows.clone() {
                    data.extend((0..rows.end).map(|s| if s <= t { number(head, t, s) } else { 0.0 }));
                }
            }
        }
    }
    if wide { HostTensor::f64(&shape, data) } else { HostTensor::f32(&shape, data.iter().map(|&x| x as f32).collect()) }
}

fn all_sites() -> Vec<Site> {
    let mut sites = vec![Site::model(Stage::Embedding)];
    for layer in 0..LAYERS {
        let here = STAGES.iter().filter(|s| s.scope != Scope::Model && s.scope.occurs(LayerLayout::QWEN3MOE));
        sites.extend(here.map(|s| Site::layer(layer, s.stage)));
    }
    sites.extend([Site::model(Stage::FinalNorm), Site::model(Stage::Logits)]);
    sites
}

fn write(dir: &Path, selection: [&str; 4], chunks: &[usize], wide: bool, force: bool) -> Result<TraceManifest> {
    let [stages, layers, positions, experts] = selection;
    let selected =
        Selection::parse(stages, layers, positions, experts)?.resolve(LAYERS, T, EXPERTS, LayerLayout::QWEN3MOE)?;
    let mut writer = TraceWriter::create(dir, force, selected)?;
    let mut statistics = Statistics::default();
    let mut start = 0;
    for &n in chunks {
        for site in all_sites() {
            let values = value(site, start..start + n, wide);
            statistics.add(At::new(site, start), &values);
            if writer.wants(site) {
                writer.add(At::new(site, start), &values)?;
            }
        }
        start += n;
    }
    writer.finish(run(), None, statistics.sites().map(SiteStats::new).collect())
}

fn temp() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    (dir, path)
}

const ALL: [&str; 4] = ["all", "all", "all", "all"];

#[test]
fn what_is_written_is_read_however_it_was_chunked() {
    for wide in [false, true] {
        for chunks in [&[7][..], &[1, 3, 2, 1], &[1; 7]] {
            let (_guard, dir) = temp();
            let manifest = write(&dir, ALL, chunks, wide, false).unwrap();
            let trace = Trace::open(&dir).unwrap();
            assert_eq!(trace.manifest(), &manifest, "the manifest survives, contracts and statistics to the last bit");
            assert_eq!(manifest.missing, []);
            assert_eq!(trace.tensors().count(), all_sites().len());
            for site in all_sites() {
                assert_eq!(trace.tensor(site).unwrap().unwrap(), value(site, 0..T, wide), "{site} in {chunks:?}");
            }
            assert_eq!(trace.tensor(Site::layer(0, Stage::FfnGate)).unwrap(), None);
            let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(files.len(), LAYERS + 2, "{files:?}");
            let beside = std::fs::read_dir(dir.parent().unwrap()).unwrap().count();
            assert_eq!(beside, 1, "nothing is left beside it");
        }
    }
}

#[test]
fn the_crate_reads_our_files_and_they_are_aligned() {
    for (wide, chunks) in [(false, &[7][..]), (true, &[7]), (true, &[3, 4])] {
        let (_guard, dir) = temp();
        write(&dir, ALL, chunks, wide, false).unwrap();
        let bytes = std::fs::read(dir.join("layer-1.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let scores = file.tensor("layers.1.attn_scores").unwrap();
        assert_eq!(scores.shape(), [2, T, T]);
        for (key, view) in file.iter() {
            let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert!(offset.is_multiple_of(view.dtype().bitsize() / 8), "{key} at {offset}");
        }
    }
}

#[test]
fn positions_and_experts_keep_what_was_chosen() {
    for chunks in [&[7][..], &[2, 4, 1]] {
        let (_guard, dir) = temp();
        write(&dir, ["all", "1", "0,3-4", "2"], chunks, false, false).unwrap();
        let trace = Trace::open(&dir).unwrap();
        let norm = Site::layer(1, Stage::FfnNorm);
        let whole = value(norm, 0..T, false).to_f32();
        let rows = [0, 3, 4].map(|t| &whole[t * 3..][..3]).concat();
        assert_eq!(trace.tensor(norm).unwrap().unwrap(), HostTensor::f32(&[3, 3], rows));
        assert_eq!(trace.stored(norm).unwrap().positions.to_string(), "0,3-4");

        // Scores end at the last position kept, whatever the chunks were.
        let scores = trace.tensor(Site::layer(1, Stage::AttnScores)).unwrap().unwrap();
        assert_eq!(scores.shape, [2, 3, 5]);
        let zeros = [0.0; 5];
        let mut expected = Vec::new();
        for head in 0..2 {
            for t in [0, 3, 4] {
                let row = (0..=t).map(|s| (1000 + 100 * head + 10 * t + s) as f32 + 0.5);
                expected.extend(row.chain(zeros).take(5));
            }
        }
        assert_eq!(scores.to_f32(), expected);

        let kept = trace.expert_rows(1).unwrap().unwrap();
        let mut wanted = Vec::new();
        for t in [0, 3, 4] {
            for k in 0..2 {
                if expert(1, t, k) == 2 {
                    wanted.push([t as u32, k as u32, 2]);
                }
            }
        }
        assert_eq!(kept, wanted);
        assert!(!kept.is_empty());
        let down = Site::layer(1, Stage::ExpertDown);
        let whole = value(down, 0..T, false).to_f32();
        let rows: Vec<f32> =
            kept.iter().flat_map(|[t, k, _]| whole[(t * 2 + k) as usize * 3..][..3].to_vec()).collect();
        assert_eq!(trace.tensor(down).unwrap().unwrap(), HostTensor::f32(&[kept.len(), 3], rows));
        assert!(trace.stored(down).unwrap().limited);
        assert!(trace.tensor(Site::layer(0, Stage::FfnNorm)).unwrap().is_none());
        assert_eq!(trace.manifest().experts, Some(vec![2]));
    }
}

#[test]
fn experts_alone_need_no_saved_router_ids() {
    let (_guard, dir) = temp();
    let manifest = write(&dir, ["expert_act", "all", "all", "1,3"], &[7], false, false).unwrap();
    assert_eq!(manifest.tensors.len(), LAYERS);
    assert!(Trace::open(&dir).unwrap().expert_rows(0).unwrap().unwrap().iter().all(|[_, _, e]| *e == 1 || *e == 3));
    // Position 0 of layer 0 goes to experts 0 and 2: nothing is kept, and that is said.
    let (_guard, dir) = temp();
    let error = write(&dir, ["expert_act", "0", "0", "1"], &[7], false, false).unwrap_err();
    assert!(error.to_string().contains("--experts [1]") && !dir.exists(), "{error}");
}

#[test]
fn nothing_but_a_trace_is_replaced() {
    let (guard, dir) = temp();
    write(&dir, ALL, &[7], false, false).unwrap();
    let refused = |force| write(&dir, ALL, &[7], false, force).unwrap_err();
    assert!(refused(false).to_string().contains("--force replaces it"));
    write(&dir, ["logits", "all", "last", "all"], &[7], false, true).unwrap();
    assert_eq!(Trace::open(&dir).unwrap().tensors().count(), 1);

    std::fs::write(dir.join("thesis.tex"), "years of work").unwrap();
    assert!(refused(true).to_string().contains("is no trace"), "a trace with foreign files in it stays");
    let file = guard.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(write(&file, ALL, &[7], false, true).unwrap_err().to_string().contains("not a directory"));
    let empty = guard.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    write(&empty, ALL, &[7], false, false).unwrap();
}

#[test]
fn an_unfinished_trace_leaves_nothing() {
    let (guard, dir) = temp();
    let selected = Selection::all().resolve(LAYERS, T, EXPERTS, LayerLayout::QWEN3MOE).unwrap();
    let mut writer = TraceWriter::create(&dir, false, selected).unwrap();
    let site = Site::layer(0, Stage::FfnNorm);
    writer.add(At::new(site, 0), &value(site, 0..3, false)).unwrap();
    let twice = writer.add(At::new(site, 2), &value(site, 2..4, false)).unwrap_err();
    assert!(twice.to_string().contains("position 2 came twice"));
    assert!(writer.add(At::new(site, 3), &HostTensor::f32(&[4], vec![0.0; 4])).is_err());
    assert!(!dir.exists(), "nothing bears the name before it is whole");
    drop(writer);
    assert_eq!(std::fs::read_dir(guard.path()).unwrap().count(), 0);
}

#[test]
fn what_was_not_seen_is_listed() {
    let (_guard, dir) = temp();
    let selected = Selection::all().resolve(LAYERS, T, EXPERTS, LayerLayout::QWEN3MOE).unwrap();
    let mut writer = TraceWriter::create(&dir, false, selected).unwrap();
    let site = Site::layer(0, Stage::FfnNorm);
    writer.add(At::new(site, 0), &value(site, 0..T, false)).unwrap();
    let manifest = writer.finish(run(), None, vec![]).unwrap();
    assert_eq!(manifest.tensors.len(), 1);
    assert_eq!(manifest.missing.len(), all_sites().len() - 1);
}

#[test]
fn a_damaged_trace_is_refused_with_its_reason() {
    let (_guard, dir) = temp();
    write(&dir, ["all", "all", "all", "2"], &[7], false, false).unwrap();
    let path = dir.join(MANIFEST);
    let good = std::fs::read_to_string(&path).unwrap();
    let json: serde_json::Value = serde_json::from_str(&good).unwrap();
    let refused = |change: &dyn Fn(&mut serde_json::Value), reason: &str| {
        let mut json = json.clone();
        change(&mut json);
        std::fs::write(&path, json.to_string()).unwrap();
        let message = Trace::open(&dir).err().expect(reason).to_string();
        assert!(message.contains(reason), "{message} does not say {reason}");
    };
    refused(&|j| j["schema"] = "twinscope.trace-manifest/2".into(), "trace-manifest/1");
    refused(&|j| j["prompt_tokens"] = 8.into(), "8 prompt tokens of 7");
    refused(&|j| j["tokens_sha256"] = "ab".into(), "which is that of its prompt's tokens, found \"ab\"");
    refused(&|j| j["tensors"][0]["stage"] = "noise".into(), "no such stage");
    refused(&|j| j["tensors"][0]["layer"] = 0.into(), "no such stage");
    refused(&|j| j["tensors"][0]["file"] = "../../etc/passwd".into(), "is expected");
    refused(&|j| j["tensors"][0]["key"] = "logits".into(), "make the key embedding");
    refused(&|j| j["tensors"][0]["dtype"] = "u32".into(), "does not suit");
    refused(&|j| j["tensors"][0]["dtype"] = "f64".into(), "the manifest says f64");
    refused(&|j| j["tensors"][0]["shape"][1] = 5.into(), "the manifest says f32 [7, 5]");
    refused(&|j| j["tensors"][0]["shape"] = serde_json::json!([1u64 << 60, 3]), "with 7 positions");
    refused(&|j| j["tensors"][0]["positions"] = "0-99999999".into(), "no position 99999999");
    refused(&|j| j["tensors"][0]["positions"] = "x".into(), "neither a number");
    refused(&|j| j["tensors"][0]["rows"] = "layers.0.expert_rows".into(), "only expert stages");
    refused(&|j| j["tensors"][1] = j["tensors"][0].clone(), "listed twice");
    refused(&|j| j["statistics"][0]["stage"] = "noise".into(), "statistics of noise");
    refused(&|j| j["tokens"] = "none".into(), "invalid type");
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(Trace::open(&dir).is_err());
    std::fs::write(&path, "[".repeat(1 << 20)).unwrap();
    assert!(Trace::open(&dir).is_err(), "deep nesting is no stack overflow");

    std::fs::write(&path, &good).unwrap();
    assert!(Trace::open(&dir).is_ok());
    let file = dir.join("layer-1.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for cut in [0, 7, 8, 100, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..cut]).unwrap();
        let message = Trace::open(&dir).err().expect("a cut file").to_string();
        assert!(message.contains("layer-1.safetensors"), "{message}");
    }
    std::fs::write(&file, [&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat()).unwrap();
    assert!(Trace::open(&dir).is_err());
    std::fs::remove_file(&file).unwrap();
    assert!(Trace::open(&dir).is_err());
}

#[test]
fn manifests_keep_their_schema() {
    let schema: serde_json::Value =
        serde_json::from_str(include_str!("../../../schemas/manifest.schema.json")).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    for selection in [ALL, ["expert_down,logits", "0", "last,0", "0"]] {
        let (_guard, dir) = temp();
        write(&dir, selection, &[7], false, false).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join(MANIFEST)).unwrap()).unwrap();
        let faults: Vec<_> = schema.iter_errors(&json).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert_eq!(faults, [] as [String; 0]);
        let mut other = json.clone();
        other["statistics"][0]["all"]["mean"] = "nan".into();
        assert!(!schema.is_valid(&other));
    }
}
