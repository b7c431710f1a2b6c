mod labels;

use std::io::Write;
use std::path::PathBuf;

use flate2::write::DeflateEncoder;
use rawzip::CompressionMethod;
use rawzip::path::EntryPath;

use super::fragment::fit;
use super::names::Reading;
use super::*;
use crate::trace::store::Trace;

fn data(name: &str) -> PathBuf {
    crate::files::beside_the_sources("tests").join(name)
}

fn imported(kind: Importer, name: &str) -> (Report, Trace, tempfile::TempDir) {
    let guard = tempfile::tempdir().unwrap();
    let out = guard.path().join("trace");
    let report = import(kind, &[data(name)], &ImportOptions::default(), &out).unwrap();
    let trace = Trace::open(&out).unwrap();
    assert_eq!(trace.manifest(), &report.manifest);
    (report, trace, guard)
}

fn unmapped(report: &Report) -> &[String] {
    &report.manifest.imported.as_ref().unwrap().unmapped
}

#[test]
fn golden_safetensors_come_over_whole() {
    let (report, trace, _guard) = imported(Importer::Capture, "golden/main.safetensors");
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
    let (report, trace, _guard) = imported(Importer::Aprt, "data/aprt");
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
        let (report, trace, _guard) = imported(Importer::LlamaCpp, path);
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
    let (report, trace, _guard) = imported(Importer::Npz, "data/stored.npz");
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
fn deflated_arrays_are_those_that_were_stored() {
    let logits = Site::model(Stage::Logits);
    let (_, deflated, _guard) = imported(Importer::Npz, "data/deflated.npz");
    let (_, stored, _guard) = imported(Importer::Npz, "data/stored.npz");
    assert_eq!(deflated.tensor(logits).unwrap(), stored.tensor(logits).unwrap());
}

/// A .npy file as numpy lays it out.
fn npy(descr: &str, order: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n");
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), values].concat()
}

/// An archive of members, each a name, its bytes, and how they are kept.
fn npz(members: &[(&str, &[u8], CompressionMethod)]) -> Vec<u8> {
    let mut archive = rawzip::ZipArchiveWriter::new(Vec::new());
    for (name, bytes, method) in members {
        let (mut entry, config) =
            archive.new_file(EntryPath::verbatim(name.as_bytes())).compression_method(*method).start().unwrap();
        let data = if *method == CompressionMethod::DEFLATE {
            let mut writer = config.wrap(DeflateEncoder::new(&mut entry, flate2::Compression::fast()));
            writer.write_all(bytes).unwrap();
            let (encoder, data) = writer.finish().unwrap();
            encoder.finish().unwrap();
            data
        } else {
            let mut writer = config.wrap(&mut entry);
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap().1
        };
        entry.finish(data).unwrap();
    }
    archive.finish().unwrap()
}

/// Reads every array of an archive, or of a directory if the bytes are one lone .npy file's.
fn read_arrays(bytes: &[u8]) -> crate::Result<(Vec<HostTensor>, Vec<String>)> {
    let dir = tempfile::tempdir().unwrap();
    let (file, path) = match bytes.starts_with(b"\x93NUMPY") {
        true => (dir.path().join("logits.npy"), dir.path().to_path_buf()),
        false => (dir.path().join("a.npz"), dir.path().join("a.npz")),
    };
    std::fs::write(&file, bytes).unwrap();
    let mut arrays = npy::Arrays::open(&path)?;
    let tensors = (0..arrays.items().len()).map(|i| arrays.read(i)).collect::<crate::Result<_>>()?;
    Ok((tensors, arrays.about().other.clone()))
}

#[test]
fn arrays_of_every_type_and_order() {
    let one = |bytes: Vec<u8>| {
        let (mut tensors, other) = read_arrays(&bytes).unwrap();
        assert_eq!((tensors.len(), other.len()), (1, 0), "{other:?}");
        tensors.remove(0)
    };
    let bits = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    for (descr, bytes, data) in [
        ("'<f8'", 0.1f64.to_le_bytes().to_vec(), Data::F64(vec![0.1])),
        ("'<f4'", 0.1f32.to_le_bytes().to_vec(), Data::F32(vec![0.1])),
        ("'<f2'", bits(&[0x3555]), Data::F32(vec![0.333_251_95])),
        ("'<V2'", bits(&[0x3eab]), Data::F32(vec![0.333_984_38])),
        ("'|V2'", bits(&[0xc000]), Data::F32(vec![-2.0])),
        ("'<i4'", (-7i32).to_le_bytes().to_vec(), Data::F64(vec![-7.0])),
        ("'<i8'", (1i64 << 40).to_le_bytes().to_vec(), Data::F64(vec![(1i64 << 40) as f64])),
        ("\"<u4\"", u32::MAX.to_le_bytes().to_vec(), Data::U32(vec![u32::MAX])),
    ] {
        assert_eq!(one(npy(descr, "False", "(1,)", &bytes)), HostTensor { shape: vec![1], data }, "{descr}");
    }
    // numpy.asfortranarray(numpy.arange(12.).reshape(2, 2, 3)): the first index runs fastest.
    let columns = [0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11].map(|x| f32::to_le_bytes(x as f32)).concat();
    let rows = (0..12).map(|x| x as f32).collect();
    assert_eq!(one(npy("'<f4'", "True", "(2, 2, 3)", &columns)), HostTensor::f32(&[2, 2, 3], rows));
    assert_eq!(one(npy("'<f4'", "True", "(0, 3)", &[])), HostTensor::f32(&[0, 3], vec![]));
    let version_3 = [b"\x93NUMPY\x03\x00\x3a\0\0\0", &npy("'<f4'", "False", "(1,)", &[0; 4])[10..]].concat();
    assert_eq!(one(version_3), HostTensor::f32(&[1], vec![0.0]));
}

#[test]
fn arrays_that_are_not_read_say_what_was_expected() {
    let left_out = |bytes: Vec<u8>| read_arrays(&bytes).unwrap().1.join("; ");
    assert!(left_out(npy("'>f4'", "False", "(1,)", &[0; 4])).contains("types <f8, <f4"));
    assert!(left_out(npy("[('a', '<f4')]", "False", "(1,)", &[0; 4])).contains(r#"found [["a","<f4"]]"#));
    assert!(
        left_out(npy("'<f4'", "False", "(1, 1, 1, 1, 1, 1, 1, 1, 1)", &[0; 4]))
            .contains("at most 8 dimensions, found 9")
    );
    for (order, shape) in
        [("1", "(1,)"), ("False", "1"), ("False", "(-1,)"), ("False", "(1e99,)"), ("False", "((1,),)")]
    {
        assert!(left_out(npy("'<f4'", order, shape, &[0; 4])).contains("its header"), "{order} {shape}");
    }
    assert!(left_out(npy(&"[".repeat(50_000), "False", "(1,)", &[])).contains("its header"), "nested without an end");

    let array = npy("'<f4'", "False", "(1, 1)", &[0; 4]);
    for (method, how) in [
        (CompressionMethod::LZMA, "found method 14 (LZMA)"),
        (CompressionMethod::new(1234), "found method 1234 (UNKNOWN)"),
    ] {
        assert!(left_out(npz(&[("logits.npy", &array, method)])).contains(how), "{how}");
    }
    let mut encrypted = npz(&[("logits.npy", &array, CompressionMethod::STORE)]);
    let entry = encrypted.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    encrypted[entry + 8] |= 1;
    assert!(left_out(encrypted).contains("found method 0 (STORE), encrypted"));

    let error = |bytes: Vec<u8>| read_arrays(&bytes).unwrap_err().to_string();
    let huge = usize::MAX.to_string();
    for shape in ["(2,)", "(0,)", &format!("({huge},)"), &format!("({huge}, {huge})"), &format!("({huge}, 2, 2, 0)")] {
        assert!(
            error(npy("'<f4'", "False", shape, &[0; 4])).contains("logits.npy: expected the values of <f4 "),
            "{shape}"
        );
    }
    let long = error([b"\x93NUMPY\x02\x00\xff\xff\xff\xff", &[0; 100][..]].concat());
    assert!(long.contains("at most 65536 bytes, found 4294967295"), "{long}");
}

#[test]
fn archives_that_lie_about_sizes_are_refused() {
    let values = vec![0; 1 << 20];
    let array = npy("'<f4'", "False", "(512, 512)", &values);
    let deflated = npz(&[("logits.npy", &array, CompressionMethod::DEFLATE)]);
    assert!(deflated.len() < 8192, "{} bytes", deflated.len());
    assert_eq!(read_arrays(&deflated).unwrap().0[0], HostTensor::f32(&[512, 512], vec![0.0; 1 << 18]));

    let entry = deflated.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    let patched = |at: usize, value: u32| {
        let mut bytes = deflated.clone();
        bytes[entry + at..][..4].copy_from_slice(&value.to_le_bytes());
        read_arrays(&bytes).unwrap_err().to_string()
    };
    // Which limit it is does not depend on what would really come out.
    let error = patched(24, (256 << 20) + 1);
    assert!(error.contains("at most 268435456 bytes, found 1 of 268435457 bytes"), "{error}");
    // A header that agrees with the directory, and a stream that goes on behind it or ends before.
    for (shape, claimed) in [("(2, 256)", 2048), ("(999, 512)", 999 * 2048)] {
        let header = npy("'<f4'", "False", shape, &[]);
        let mut bytes = npz(&[("logits.npy", &[&header[..], &values].concat(), CompressionMethod::DEFLATE)]);
        let entry = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
        bytes[entry + 24..][..4].copy_from_slice(&(header.len() as u32 + claimed).to_le_bytes());
        let error = read_arrays(&bytes).unwrap_err().to_string();
        assert!(error.contains("a.npz: logits.npy: "), "{error}");
    }
    assert!(patched(16, 0).contains("a.npz: logits.npy: "), "another checksum");
    assert!(patched(20, 9).contains("a.npz: logits.npy: "), "a stream cut short");
    assert!(patched(42, u32::MAX - 1).contains("a.npz: "), "beyond the end of the file");
}

#[test]
fn names_of_members_are_no_paths() {
    let array = npy("'<f4'", "False", "(1, 1)", &[0; 4]);
    let names = ["../logits.npy", "/logits.npy", "a/../logits.npy", "lo\x1b[2Jgits\n.npy", "\u{202e}stigol.npy"];
    let bytes = npz(&names.map(|name| (name, &array[..], CompressionMethod::STORE)));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.npz"), bytes).unwrap();
    let error = import(Importer::Npz, &[dir.path().join("a.npz")], &ImportOptions::default(), &dir.path().join("in/t"))
        .unwrap_err();
    let error = error.to_string();
    assert_eq!(error.matches("no stage is called").count(), 5, "{error}");
    assert!(!error.contains(['\x1b', '\n', '\u{202e}']) && error.contains(r"lo\u{1b}[2Jgits\n"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the archive is there");
}

#[test]
fn layers_and_positions_that_no_model_has_are_no_stages() {
    let refused = |name: &str, shape: &str, bytes: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{name}.npy")), npy("'<f4'", "False", shape, bytes)).unwrap();
        let out = dir.path().join("t");
        import(Importer::Npz, &[dir.path().to_path_buf()], &ImportOptions::default(), &out).unwrap_err().to_string()
    };
    for layer in [10_000, u32::MAX] {
        for name in [format!("layers.{layer}.layer_out"), format!("l_out-{layer}"), format!("blk.{layer}.moe_out")] {
            let error = refused(&name, "(1, 2)", &[0; 8]);
            assert!(error.contains(&format!("{name}: layer {layer}: a layer below 10000 expected")), "{error}");
        }
    }
    let error = refused("layers.0.layer_out", "(4294967295, 0)", &[]);
    assert!(error.contains("layers.0.layer_out: shape [4294967295, 0]: one or more values expected"), "{error}");
}

#[test]
fn ids_are_whole_numbers_of_experts_that_a_model_may_have() {
    let ids = |descr: &str, bytes: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        let array = npy(descr, "False", "(1, 2)", bytes);
        std::fs::write(dir.path().join("layers.0.router_ids.npy"), array).unwrap();
        let out = dir.path().join("t");
        import(Importer::Npz, &[dir.path().to_path_buf()], &ImportOptions::default(), &out)?;
        Trace::open(&out)?.tensor(Site::layer(0, Stage::RouterIds)).map(|ids| ids.unwrap())
    };
    let largest = HostTensor::u32(&[1, 2], vec![0, 65_535]);
    assert_eq!(ids("'<u4'", &[0u32, 65_535].map(u32::to_le_bytes).concat()).unwrap(), largest);
    assert_eq!(ids("'<i8'", &[0i64, 65_535].map(i64::to_le_bytes).concat()).unwrap(), largest);
    for beyond in [65_536, u32::MAX - 1] {
        let error = ids("'<u4'", &[0u32, beyond].map(u32::to_le_bytes).concat()).unwrap_err().to_string();
        assert!(error.ends_with(&format!("position 0: an expert id below 65536 expected, found {beyond}")), "{error}");
    }
    for wrong in [-1, 1 << 32, i64::MAX, i64::MIN] {
        let error = ids("'<i8'", &[0, wrong].map(i64::to_le_bytes).concat()).unwrap_err().to_string();
        assert!(error.contains("is no expert id"), "{error}");
    }
    assert!(ids("'<f8'", &[0.0, f64::NAN].map(f64::to_le_bytes).concat()).is_err());
}

#[test]
fn what_has_no_stage_at_all_is_an_error_that_says_why() {
    let refused = |kind, path: PathBuf| {
        let out = tempfile::tempdir().unwrap();
        let error = import(kind, &[path], &ImportOptions::default(), &out.path().join("t")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(!out.path().join("t").exists());
        error.to_string()
    };
    assert!(refused(Importer::Capture, data("golden/dequant.safetensors")).contains("no stage is called"));
    assert!(refused(Importer::Capture, data("golden/prompts.json")).contains("not a safetensors file"));
    assert!(refused(Importer::Npz, data("golden/prompts.json")).contains("not an .npz archive"));
    assert!(refused(Importer::Aprt, data("golden")).contains("neither a layer's directory"));
    assert!(refused(Importer::LlamaCpp, data("golden")).contains("0 pairs"));
    for kind in [Importer::Npz, Importer::Capture, Importer::Aprt, Importer::LlamaCpp] {
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
        import(Importer::Aprt, &[guard.path().join("run")], &ImportOptions::default(), &out.path().join("t"))
            .map(|_| ())
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
    let key = |label: &str| {
        let readings = Name::of(label).readings(NodeKind::default(), &ModelSizes::default())?;
        assert_eq!(readings, [Reading::whole(readings[0].site)], "{label}");
        Ok::<_, String>(readings[0].site.key())
    };
    assert_eq!(key("model.layers.3.input_layernorm").unwrap(), "layers.3.attn_norm");
    assert_eq!(key("blk.2.ffn_moe_out").unwrap(), "layers.2.moe_out");
    assert_eq!(key("kq_soft_max-1").unwrap(), "layers.1.attn_probs");
    assert_eq!(key("result_output").unwrap(), "logits");
    assert!(key("attn_norm").unwrap_err().contains("which layer"));
    assert!(key("layers.1.logits").unwrap_err().contains("no layer"));
    assert!(key("layers.1.*").unwrap_err().contains("no stage"));
    assert!(key("").is_err() && key("-").is_err() && key("layers..").is_err());
    assert_eq!(fit(Stage::QRope, &[1, 5, 8, 64], None).unwrap(), [5, 512]);
    assert_eq!(fit(Stage::AttnScores, &[1, 8, 5, 5], None).unwrap(), [8, 5, 5]);
    assert_eq!(fit(Stage::ExpertAct, &[2, 256], None).unwrap(), [1, 2, 256]);
    assert_eq!(fit(Stage::QRope, &[1, 8, 64], None).unwrap(), [8, 64]);
    assert_eq!(fit(Stage::QRope, &[1, 8, 64], Some(1)).unwrap(), [1, 512]);
    assert!(fit(Stage::Logits, &[2, 3, 4], None).is_err());
    assert!(fit(Stage::Logits, &[], None).is_err());
    assert!(fit(Stage::QRope, &[0, usize::MAX, 3], None).is_err());
}
