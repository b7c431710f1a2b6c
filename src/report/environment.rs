//! What a document was made with and on: the program, its command line, the machine. Every verb's JSON document carries
//! this record, so that whoever gets the document can tell what to run again, and where.
//!
//! Design:
//! - The drivers of a GPU stand at the backend that used them, and the model's fingerprint at the model. Here is what
//!   does not depend on either.
//! - There is no time, no host name and no user name in it: the same command on the same machine gives the same record.

use std::sync::OnceLock;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::backend::Backend;
use crate::backend::cpu::{CpuBackend, Level};
use crate::error::{Error, Result};

/// The record.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// `twinscope` and its version.
    pub program: &'static str,
    /// How it was compiled: `release` or `debug`, and for what.
    pub build: String,
    /// The command line, quoted as a shell takes it.
    pub command: String,
    /// The machine.
    pub machine: Machine,
}

/// A computer and its system.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Threads that the process may run at once.
    pub cores: usize,
    /// Main memory; `None` where the system does not tell it in a way known here.
    pub memory_bytes: Option<u64>,
    /// The operating system and its kernel.
    pub system: String,
}

impl Environment {
    /// Of this process.
    pub fn here() -> &'static Self {
        static HERE: OnceLock<Environment> = OnceLock::new();
        HERE.get_or_init(|| {
            let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
            let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
            // A nul byte cannot be in an argument; if one is, the arguments are better unquoted than lost.
            let command = shlex::try_join(arguments.iter().map(String::as_str)).unwrap_or_else(|_| arguments.join(" "));
            // The plain level is on every machine, and one thread starts no other.
            let processor = CpuBackend::new(Some(Level::Scalar), Some(1)).map(|cpu| cpu.info().adapter);
            Self {
                program: concat!("twinscope ", env!("CARGO_PKG_VERSION")),
                build: format!("{profile}, {}-{}", std::env::consts::ARCH, std::env::consts::OS),
                command,
                machine: Machine {
                    processor: processor.unwrap_or_else(|_| "unknown".into()),
                    cores: std::thread::available_parallelism().map_or(1, usize::from),
                    memory_bytes: memory_bytes(),
                    system: system(),
                },
            }
        })
    }

    /// `document` with the record under `environment`, behind its first key, which is its schema. What is no object, or
    /// has a record already, stays as it is.
    ///
    /// # Errors
    /// If the document has a map whose keys are not strings.
    pub fn with(document: &impl Serialize) -> Result<Value> {
        let json = |e: serde_json::Error| Error::input(format!("json: {e}"));
        let mut value = serde_json::to_value(document).map_err(json)?;
        if let Value::Object(object) = &mut value
            && !object.contains_key("environment")
        {
            let here = serde_json::to_value(Self::here()).map_err(json)?;
            let mut rest = std::mem::replace(object, Map::new()).into_iter();
            object.extend(rest.next());
            object.insert("environment".into(), here);
            object.extend(rest);
        }
        Ok(value)
    }
}

/// Linux's `MemTotal`, which is in KiB whatever it says.
fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// `Debian GNU/Linux 12 (bookworm), kernel 6.1.0`; elsewhere the system's name.
fn system() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = name.map_or(std::env::consts::OS, |name| name.trim_matches('"'));
    match std::fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(kernel) => format!("{name}, kernel {}", kernel.trim()),
        Err(_) => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_record_stands_behind_the_schema_and_is_not_written_twice() {
        let document = Environment::with(&json!({"schema": "s", "b": 1, "a": 2})).unwrap();
        let keys: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["schema", "environment", "b", "a"]);
        assert_eq!(Environment::with(&document).unwrap(), document);
        assert_eq!(Environment::with(&json!([1])).unwrap(), json!([1]));
        let machine = &document["environment"]["machine"];
        assert!(machine["cores"].as_u64().unwrap() >= 1 && !machine["system"].as_str().unwrap().is_empty());
        assert!(!document["environment"]["command"].as_str().unwrap().is_empty());
    }
}
