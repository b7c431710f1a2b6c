//! `selftest` on the built binary: every planted fault found where it is, on a real adapter; the floors calibrated.

use std::process::{Command, Output};

use serde_json::Value as Json;

fn selftest(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinscope")).arg("selftest").args(args).output().unwrap()
}

/// The JSON document of a run, held against its schema, and the exit code.
fn document(args: &[&str]) -> (Json, Option<i32>) {
    let out = selftest(&[args, &["--json"]].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    let document: Json =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&out.stderr)));
    let schema: Json = serde_json::from_str(include_str!("../../schemas/selftest.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    (document, out.status.code())
}

/// The whole table, and a few besides that are made up, here from a seed that stays: those may be open, but not wrongly explained or located.
/// A planted fault that is not found fails the build.
#[test]
fn every_planted_fault_is_found_where_it_is() {
    let (document, code) = document(&["--seed", "24"]);
    let (made_up, faults): (Vec<&Json>, Vec<&Json>) =
        document["faults"].as_array().unwrap().iter().partition(|f| f["made_up"] == true);
    assert_eq!(document["made_up"], serde_json::json!({"count": 6, "seed": 24}));
    assert_eq!(made_up.len(), 6, "{made_up:#?}");
    let missed: Vec<&Json> = faults
        .iter()
        .copied()
        .filter(|f| {
            !(f["detected"] == true
                && f["located"] == true
                && f["side_ok"] == true
                && f["pattern_ok"] == true
                && f["explained_ok"] == true)
        })
        .collect();
    assert!(missed.is_empty(), "{missed:#?}");
    assert_eq!(document["false_alarms"], 0, "{:#?}", document["controls"]);
    assert_eq!(document["totals"]["wrongly_explained"], 0);
    assert_eq!((code, &document["passed"]), (Some(0), &Json::Bool(true)));

    let names: std::collections::BTreeSet<&str> = faults.iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert!(names.len() >= 24, "{names:?}");
    for model in ["demo", "wide"] {
        for subject in ["cpu", "gpu"] {
            assert!(faults.iter().any(|f| f["model"] == model && f["subject"] == subject), "{model} {subject}");
        }
        for strength in [8.0, 64.0] {
            assert!(faults.iter().any(|f| f["model"] == model && f["strength"] == strength), "{model} {strength}");
        }
    }
    for control in document["controls"].as_array().unwrap() {
        assert_eq!(control["agrees"], true, "{control}");
    }
}

/// Faults that nobody listed: other ones with every seed. Each is found at its stage and on its side, and none is explained wrongly.
#[test]
fn faults_that_are_made_up_are_found_and_none_is_explained_wrongly() {
    let (document, code) = document(&["--generate", "11", "--seed", "7"]);
    let (totals, passed) = (&document["totals"], &document["passed"]);
    assert_eq!(document["made_up"], serde_json::json!({"count": 11, "seed": 7}));
    assert!(document["faults"].as_array().unwrap().iter().all(|f| f["made_up"] == true));
    assert_eq!((code, passed), (Some(0), &Json::Bool(true)), "{document:#}");
    assert_eq!((&totals["planted"], &totals["wrongly_explained"]), (&11.into(), &0.into()), "{document:#}");
    assert!(totals["explained_ok"].as_u64().unwrap() >= 9, "{document:#}");
}

#[test]
fn correct_kernels_stay_below_their_floors() {
    let (document, code) = document(&["--calibrate", "--evaluations", "2000"]);
    assert_eq!((code, &document["passed"]), (Some(0), &Json::Bool(true)), "{document:#}");
    assert!(document["evaluations"].as_u64().unwrap() >= 2000);
}

#[test]
fn faults_are_listed_and_chosen_by_name() {
    let (listed, code) = document(&["--list"]);
    assert_eq!(code, Some(0));
    assert!(listed["faults"].as_array().unwrap().len() >= 24);
    let (rope, _) = document(&["--list", "--only", "rope-*"]);
    let rope = rope["faults"].as_array().unwrap();
    assert!(!rope.is_empty() && rope.iter().all(|f| f["name"].as_str().unwrap().starts_with("rope-")));

    // Every second of them, and the others.
    let names = |args: &[&str]| -> Vec<String> {
        let (listed, _) = document(&[&["--list", "--only", "rope-*"], args].concat());
        let names = listed["faults"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap().to_string());
        names.collect()
    };
    let mut both = [names(&["--shard", "1/2"]), names(&["--shard", "2/2"])].concat();
    both.sort();
    both.dedup();
    assert_eq!(both.len(), rope.len(), "{both:?}");

    for (args, said) in [
        (&["--only", "one-row", "--shard", "99/99"][..], "none is left"),
        (&["--only", "rope-pairings"], "rope-pairing"),
        (&["--generate", "2", "--only", "x*"], "none of the 2 that --generate makes up from --seed 1"),
        (&["--only", "rope-pairing", "--subject", "cpu"][..], "planted on a cpu"),
        (&["--evaluations", "5"][..], "--calibrate"),
        (&["--seed", "5", "--only", "one-row"][..], "--generate"),
        (&["--seed", "5", "--list"][..], "--generate"),
    ] {
        let out = selftest(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&out.stderr).contains(said), "{out:?}");
    }
    let out = selftest(&["--only", "rope-pairing", "--adapter", "no-such-adapter"]);
    assert_eq!(out.status.code(), Some(125), "{out:?}");
}

#[test]
fn the_table_is_for_people() {
    let out = selftest(&["--only", "one-row"]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.lines().all(|l| l.chars().count() <= 120), "{text}");
    assert!(text.contains("one-row") && text.contains("layer 3 · attn_out") && text.contains("2 planted · 2 detected"));
}

/// Some of the table where only a part of the stages is seen: the segment is right, and what is named of it. The whole takes hours of a
/// debug build.
#[test]
fn faults_in_segments_are_found_from_what_is_shown() {
    for (shown, only) in
        [("layer_out", "rope-base"), ("layer_out", "both-wrong"), ("attn_out,moe_out,layer_out", "scale-twice")]
    {
        let (document, code) = document(&["--shows", shown, "--only", only]);
        assert_eq!((code, &document["passed"]), (Some(0), &Json::Bool(true)), "{shown}: {document:#}");
        assert_eq!(document["faults"].as_array().unwrap().len(), 2, "{shown}: {document:#}");
    }
}
