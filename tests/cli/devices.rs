//! `devices` on the built binary: the list for people, and JSON against its schema.

use std::process::Command;

use serde_json::Value as Json;

fn devices(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_twinscope"))
        .arg("devices")
        .args(args)
        .env("SOURCE_DATE_EPOCH", "0") // when it was asked is no part of the list
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn json_keeps_its_schema_and_the_list_says_the_same() {
    let text = devices(&["--json"]);
    assert_eq!(text, devices(&["--json"]), "the order is stable");
    let document: Json = serde_json::from_str(&text).unwrap();
    let schema: Json = serde_json::from_str(include_str!("../../schemas/devices.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");

    let list = devices(&[]);
    let one_default = |of: &Json| of.as_array().unwrap().iter().filter(|d| d["default"] == true).count() == 1;
    assert!(one_default(&document["cpu"]["levels"]));
    assert!(
        one_default(&document["adapters"]),
        "no adapter that can run the kernels (apt install mesa-vulkan-drivers libvulkan1)"
    );
    for level in document["cpu"]["levels"].as_array().unwrap() {
        assert!(list.contains(level["name"].as_str().unwrap()), "{list}");
    }
    for (i, adapter) in document["adapters"].as_array().unwrap().iter().enumerate() {
        assert_eq!(adapter["index"], i);
        let line = list.lines().find(|l| l.starts_with(adapter["backend"].as_str().unwrap())).unwrap();
        assert!(line.contains(adapter["name"].as_str().unwrap()), "{line}");
        assert_eq!(line.contains("software adapter"), adapter["software"] == true, "{line}");
    }
}

/// Measures an adapter, and runs by what was saved, until it is of another driver or broken.
#[test]
fn a_tuning_table_is_measured_saved_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str], table: Option<&std::path::Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinscope"));
        command.args(args).current_dir(dir.path()).env("XDG_CONFIG_HOME", dir.path()).env_remove("TWINSCOPE_TUNING");
        if let Some(table) = table {
            command.env("TWINSCOPE_TUNING", table);
        }
        let out = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    };
    let (code, text, err) = run(&["devices", "--tune", "--quick", "--json"], None);
    assert_eq!(code, Some(0), "{err}");
    let document: Json = serde_json::from_str(&text).unwrap();
    let schema: Json = serde_json::from_str(include_str!("../../schemas/tuning.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let saved: Vec<_> =
        std::fs::read_dir(dir.path().join("twinscope/tuning")).unwrap().map(|f| f.unwrap().path()).collect();
    let [saved] = &saved[..] else { panic!("{saved:?}") };
    assert_eq!(serde_json::from_slice::<Json>(&std::fs::read(saved).unwrap()).unwrap(), document);

    let diff =
        ["diff", "--tokens", "414,20,7", "--layers", "0", "--reference", "cpu:scalar", "--subject", "gpu", "--json"];
    let used = |table: Option<&std::path::Path>| {
        let (code, text, err) = run(&diff, table);
        assert_eq!(code, Some(0), "{err}");
        let document: Json = serde_json::from_str(&text).unwrap();
        // Once is enough: in the report, not before it as well.
        assert!(!err.contains("tuning table"), "{err}");
        (document["environment"]["machine"]["adapters"][0]["tuning"].clone(), document["notes"].to_string())
    };
    let name = saved.file_name().unwrap().to_str().unwrap();
    let (tuning, notes) = used(None);
    assert_eq!((tuning["table"].as_str(), tuning["sha256"].as_str().map(str::len)), (Some(name), Some(64)));
    assert_eq!(notes.matches(&format!("by the tuning table {name}")).count(), 1, "{notes}");
    assert_eq!(used(Some("built-in".as_ref())).0, serde_json::json!({"table": "built-in"}));

    let with = |pointer: &str, value: Json| {
        let mut changed = document.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        let path = dir.path().join("changed.json");
        std::fs::write(&path, serde_json::to_vec(&changed).unwrap()).unwrap();
        path
    };
    let (tuning, notes) = used(Some(&with("/adapter/driver", "another".into())));
    assert_eq!(tuning["table"], "built-in");
    assert!(tuning["not_used"].as_str().unwrap().starts_with("changed.json is of "), "{tuning}");
    assert!(notes.contains("built-in tuning table: changed.json is of "), "{notes}");
    let (code, _, err) = run(&diff, Some(&with("/tuning/mat_mul/positions", 9999.into())));
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("changed.json: tuning.mat_mul.positions: expected 1 to 64, found 9999"), "{err}");
    let (code, _, err) = run(&diff, Some(&dir.path().join("absent.json")));
    assert!(code == Some(2) && err.contains("absent.json"), "{code:?} {err}");

    let (code, text, err) =
        run(&["devices", "--tune", "--quick", "--out", dir.path().join("x.json").to_str().unwrap()], None);
    assert!(
        code == Some(0) && text.contains("matrix-vector kernels run up to") && err.contains("x.json"),
        "{text}{err}"
    );
    assert!(dir.path().join("x.json").is_file());
    // `-` is standard output, as elsewhere, and no file of that name.
    let (code, text, err) = run(&["devices", "--tune", "--quick", "--out", "-"], None);
    let printed: Json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(code == Some(0) && validator.is_valid(&printed) && !err.contains("saved as"), "{err}");
    assert!(!dir.path().join("-").exists());
    let (code, _, err) = run(&["devices", "--tune", "--quick", "--json", "--out", "-"], None);
    assert!(code == Some(2) && err.contains("--json and --out -"), "{code:?} {err}");
    let (code, _, err) = run(&["devices", "--tune", "--adapter", "cpu"], None);
    assert!(code == Some(2) && err.contains("--adapter: expected gpu, gpu:N or gpu:NAME, found \"cpu\""), "{err}");
}
