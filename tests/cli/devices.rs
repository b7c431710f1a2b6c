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
