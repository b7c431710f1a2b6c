//! Contracts from a file: a named one, with some fields of some operations replaced.
//!
//! ```json
//! {"schema": "twinscope.contract/1", "base": "llama.cpp-cpu", "name": "my-engine", "text": "what it does differently",
//!  "ops": {"*": {"exp_base_ulp": 4}, "mat_mul": {"activations": {"int8": {"block": 128}}, "order": {"lanes": {"lanes": 8}}}}}
//! ```
//! `schemas/contract.schema.json` describes it. `*` stands for every operation and comes before the others, whatever their order.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Contract, KeptWeight, NamedContract, Order, Precision, named, names};
use crate::error::{Error, Result};
use crate::files::FileKind;
use crate::op::OpKind;
use crate::text::printable;

/// What a name or a text may come to.
const LONGEST: usize = 200;

/// Reads a contract file.
///
/// # Errors
/// The file, the key, what was expected and what was found.
pub fn from_file(path: &Path) -> Result<NamedContract> {
    let bytes = FileKind::CONTRACT.read(path)?;
    parse(&bytes).map_err(|what| Error::input(format!("{}: {what}", path.display())))
}

fn parse(bytes: &[u8]) -> std::result::Result<NamedContract, String> {
    let document: Value = serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?;
    let Value::Object(document) = document else {
        return Err(format!("expected an object, found {}", kind(&document)));
    };
    const KEYS: &[&str] = &["schema", "base", "name", "text", "ops"];
    if let Some(key) = document.keys().find(|key| !KEYS.contains(&&***key)) {
        return Err(format!("{}: no such key; expected {}", shown(key), KEYS.join(", ")));
    }
    let text = |key: &str| match document.get(key) {
        None => Ok(None),
        Some(Value::String(s)) if s.len() <= LONGEST => Ok(Some(s.as_str())),
        Some(Value::String(s)) => Err(format!("{key}: expected at most {LONGEST} bytes, found {}", s.len())),
        Some(other) => Err(format!("{key}: expected a string, found {}", kind(other))),
    };
    match text("schema")? {
        Some("twinscope.contract/1") => {}
        found => {
            return Err(format!(
                "schema: expected \"twinscope.contract/1\", found {}",
                found.map_or("none".into(), shown)
            ));
        }
    }
    let base = text("base")?.ok_or("base: expected the name of a contract, found none")?;
    let mut contract =
        named(base).ok_or_else(|| format!("base: expected one of {}, found {}", names().join(", "), shown(base)))?;
    let overrides = match document.get("ops") {
        None => &Map::new(),
        Some(Value::Object(ops)) => ops,
        Some(other) => return Err(format!("ops: expected an object, found {}", kind(other))),
    };
    for (name, fields) in overrides.iter().filter(|(n, _)| *n == "*").chain(overrides.iter().filter(|(n, _)| *n != "*"))
    {
        let Value::Object(fields) = fields else {
            return Err(format!("ops.{}: expected an object, found {}", shown(name), kind(fields)));
        };
        let ops: Vec<OpKind> = OpKind::ALL.iter().copied().filter(|op| name == "*" || op.name() == name).collect();
        if ops.is_empty() {
            let all: Vec<&str> = OpKind::ALL.iter().map(|op| op.name()).collect();
            return Err(format!("ops.{}: no such operation; expected *, {}", shown(name), all.join(", ")));
        }
        let of_ops = contract.ops.iter_mut().filter(|(op, _)| ops.contains(op)).map(|(_, of)| of);
        let of_stages = contract.stages.iter_mut().filter(|(stage, _)| ops.contains(&stage.info().op));
        for of in of_ops.chain(of_stages.map(|(_, of)| of)) {
            *of = replaced(of, fields).map_err(|what| format!("ops.{}.{what}", shown(name)))?;
        }
    }
    contract.text = match text("text")? {
        Some(text) => text.into(),
        None if overrides.is_empty() => contract.text,
        None => format!("{base}, changed in {}", overrides.keys().map(|k| shown(k)).collect::<Vec<_>>().join(", ")),
    };
    contract.name = text("name")?.unwrap_or(base).into();
    Ok(contract)
}

/// A contract with some of its fields replaced.
fn replaced(contract: &Contract, fields: &Map<String, Value>) -> std::result::Result<Contract, String> {
    let Ok(Value::Object(mut all)) = serde_json::to_value(contract) else {
        unreachable!("a contract is an object of numbers and names")
    };
    let known = every_field();
    let mut last = *contract;
    for (key, value) in fields {
        if !known.contains(key) {
            return Err(format!("{}: no such field; expected {}", shown(key), known.join(", ")));
        }
        all.insert(key.clone(), value.clone());
        // One field at a time, so that the message is of this one.
        last = serde_json::from_value(Value::Object(all.clone()))
            .map_err(|e| format!("{key}: {}, found {}", printable(&e.to_string()), shown(&value.to_string())))?;
    }
    last.check()?;
    Ok(last)
}

/// The names of all fields, those that are left out of documents where they are as ever included.
fn every_field() -> Vec<String> {
    let (format, output) = (Precision::F16, Precision::F16);
    let (weights, cache, inner, gelu, angles) = (format, format, format, format, format);
    let base = Contract::ieee_f32(Order::Unknown);
    let of_all = Contract {
        weights,
        cache,
        inner,
        gelu,
        angles,
        output,
        offsets_apart: true,
        any_tie: true,
        kept: KeptWeight::AboveOne,
        trig_ulp: 1.0,
        ..base
    };
    match serde_json::to_value(of_all) {
        Ok(Value::Object(fields)) => fields.into_iter().map(|(name, _)| name).collect(),
        _ => unreachable!("a contract is an object of numbers and names"),
    }
}

fn shown(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    let short = if short.len() < text.len() { format!("{short}…") } else { short };
    printable(&short).to_string()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_replaced_one_operation_at_a_time() {
        let text = br#"{"schema":"twinscope.contract/1","base":"llama.cpp-cpu","name":"mine",
            "ops":{"mat_mul":{"activations":{"int8":{"block":128}},"order":{"lanes":{"lanes":8}}},"*":{"exp_base_ulp":4}}}"#;
        let mine = parse(text).unwrap();
        let schema = serde_json::from_str(include_str!("../../../schemas/contract.schema.json")).unwrap();
        jsonschema::validate(&schema, &serde_json::from_slice(text).unwrap()).unwrap();
        let base = named("llama.cpp-cpu").unwrap();
        assert_eq!(mine.name, "mine");
        let expected = Contract {
            activations: Precision::Int8 { block: 128 },
            order: Order::Lanes { lanes: 8 },
            exp_base_ulp: 4.0,
            ..*base.get(OpKind::MatMul)
        };
        assert_eq!(*mine.get(OpKind::MatMul), expected);
        assert_eq!(*mine.get(OpKind::Rope), Contract { exp_base_ulp: 4.0, ..*base.get(OpKind::Rope) });
    }

    /// Also those that are as ever in the base, and so in none of its documents.
    #[test]
    fn every_field_of_the_schema_can_be_said() {
        let schema: Value = serde_json::from_str(include_str!("../../../schemas/contract.schema.json")).unwrap();
        let fields = schema["$defs"]["contract"]["properties"].as_object().unwrap();
        let mut names: Vec<&String> = fields.keys().collect();
        let mut known = every_field();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known.iter().collect::<Vec<_>>());
        let text =
            br#"{"schema":"twinscope.contract/1","base":"f32","ops":{"attn_scores":{"cache":"f16","inner":"bf16"},
            "mat_mul":{"activations":"q8_k","offsets_apart":true}}}"#;
        let mine = parse(text).unwrap();
        assert_eq!(mine.get(OpKind::AttnScores).cache, Precision::F16);
        assert_eq!(mine.get(OpKind::AttnScores).inner, Precision::Bf16);
        assert!(mine.get(OpKind::MatMul).offsets_apart);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let inside = |ops: &str| format!(r#"{{"schema":"twinscope.contract/1","base":"f32","ops":{ops}}}"#);
        for (text, expected) in [
            ("[".to_string(), "not JSON"),
            ("[]".into(), "expected an object, found an array"),
            ("{}".into(), "schema: expected \"twinscope.contract/1\", found none"),
            (r#"{"schema":"twinscope.contract/1"}"#.into(), "base: expected the name of a contract, found none"),
            (
                r#"{"schema":"twinscope.contract/1","base":"f31"}"#.into(),
                "base: expected one of oracle, transformers-f64, f32, ",
            ),
            (
                r#"{"schema":"twinscope.contract/1","base":"f32","op":{}}"#.into(),
                "op: no such key; expected schema, base",
            ),
            (inside("[]"), "ops: expected an object, found an array"),
            (inside(r#"{"matmul":{}}"#), "ops.matmul: no such operation; expected *, embed, "),
            (inside(r#"{"rope":{"angel":"f32"}}"#), "ops.rope.angel: no such field; expected activations, "),
            (inside(r#"{"rope":{"angles":"f8"}}"#), "ops.rope.angles: unknown variant"),
            (inside(r#"{"rope":{"angles":"q8_0"}}"#), "ops.rope.angles: expected f64, f32, f16 or bf16, found q8_0"),
            (inside(r#"{"*":{"unit_roundoff":1}}"#), "ops.*.unit_roundoff: expected 0 to 0.00390625, found 1"),
            (inside(r#"{"*":{"unit_roundoff":1e999}}"#), "not JSON"),
            (inside(r#"{"mat_mul":{"activations":{"int8":{"block":0}}}}"#), "expected blocks of 1 to 65536, found 0"),
            (
                inside(r#"{"mat_mul":{"order":{"lanes":{"lanes":99999999}}}}"#),
                "expected blocks or lanes from 1 to 65536",
            ),
            (inside(r#"{"mat_mul":{"activations":{"int8":{"block":-1}}}}"#), "ops.mat_mul.activations: invalid value"),
        ] {
            let found = parse(text.as_bytes()).unwrap_err();
            assert!(found.contains(expected), "{text}: expected {expected:?} in {found:?}");
        }
    }
}
