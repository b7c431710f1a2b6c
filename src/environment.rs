//! What a document was made with and on: the program, the date, its command line, the machine, its GPUs, the models. Every verb's
//! JSON document, every report, every trace and every repro folder carries this record, so that whoever gets one can tell what to
//! run again, and where.
//!
//! Design:
//! - It is the only part of a document that says when it was made: without it, the same command on the same machine gives the same
//!   bytes. `SOURCE_DATE_EPOCH` (reproducible-builds.org), where it is set, is taken for the date.
//! - There is no host name and no user name in it.
//! - A process notes which GPUs and models it opens ([`Environment::used_backend`], [`Environment::used_model`]), each once.

use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::backend::cpu::{CpuBackend, Level};
use crate::backend::{Backend, BackendInfo, TuningUsed};
use crate::error::{Error, Result};
use crate::memory::memory_bytes;

/// The record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// `twinscope` and its version.
    pub program: String,
    /// How it was compiled: `release` or `debug`, and for what.
    pub build: String,
    /// When the process began: UTC, as RFC 3339 writes it.
    pub date: String,
    /// The command line, quoted as a shell takes it.
    pub command: String,
    /// The machine.
    pub machine: Machine,
    /// The models that were opened.
    pub models: Vec<ModelUsed>,
}

/// A computer and its system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Threads that the process may run at once.
    pub cores: usize,
    /// Main memory; `None` where the system does not tell it in a way known here.
    pub memory_bytes: Option<u64>,
    /// The operating system and its kernel.
    pub system: String,
    /// The GPUs that were used.
    pub adapters: Vec<AdapterUsed>,
}

/// A GPU, or what passes for one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterUsed {
    /// As the command line calls it.
    pub backend: String,
    /// Its name.
    pub adapter: String,
    /// Its driver, with its version.
    pub driver: String,
    /// Whether it is a CPU in disguise.
    pub software: bool,
    /// The table by which it chose among kernels; documents made before there were any do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning: Option<TuningUsed>,
}

/// A model's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelUsed {
    /// The file's name.
    pub name: String,
    /// Tells two files apart, as `inspect` gives it.
    pub fingerprint: String,
}

/// What the process has opened so far, in that order.
static USED: Mutex<(Vec<AdapterUsed>, Vec<ModelUsed>)> = Mutex::new((Vec::new(), Vec::new()));

/// Adds `what` if it is not there yet.
fn note<T: PartialEq>(list: &mut Vec<T>, what: T) {
    if !list.contains(&what) {
        list.push(what);
    }
}

impl Environment {
    /// Of this process, with what it has used so far.
    pub fn here() -> Self {
        static HERE: OnceLock<Environment> = OnceLock::new();
        let mut here = HERE.get_or_init(Self::begin).clone();
        // Lists that are only added to are whole even where a thread died while it held them.
        let used = USED.lock().unwrap_or_else(PoisonError::into_inner);
        (here.machine.adapters, here.models) = used.clone();
        here
    }

    /// Notes a backend that was opened: of GPUs the adapter and driver, for that of a CPU the machine stands.
    pub fn used_backend(info: &BackendInfo) {
        if info.backend == "gpu" || info.backend.starts_with("gpu:") {
            let BackendInfo { backend, adapter, driver, software, tuning, .. } = info.clone();
            let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
            note(&mut used.0, AdapterUsed { backend, adapter, driver, software, tuning });
        }
    }

    /// Notes a model that was opened.
    pub fn used_model(name: &str, fingerprint: String) {
        let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
        note(&mut used.1, ModelUsed { name: name.to_string(), fingerprint });
    }

    fn begin() -> Self {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
        // A nul byte cannot be in an argument; if one is, the arguments are better unquoted than lost.
        let command = shlex::try_join(arguments.iter().map(String::as_str)).unwrap_or_else(|_| arguments.join(" "));
        // The plain level is on every machine, and one thread starts no other.
        let processor = CpuBackend::new(Some(Level::Scalar), Some(1)).map(|cpu| cpu.info().adapter);
        Self {
            program: concat!("twinscope ", env!("CARGO_PKG_VERSION")).into(),
            build: format!("{profile}, {}-{}", std::env::consts::ARCH, std::env::consts::OS),
            date: now(),
            command,
            machine: Machine {
                processor: processor.unwrap_or_else(|_| "unknown".into()),
                cores: std::thread::available_parallelism().map_or(1, usize::from),
                memory_bytes: memory_bytes(),
                system: system(),
                adapters: Vec::new(),
            },
            models: Vec::new(),
        }
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

/// Now, in UTC, to the second; or what `SOURCE_DATE_EPOCH` says.
fn now() -> String {
    utc(seconds_now())
}

/// Seconds since 1970; or what `SOURCE_DATE_EPOCH` says.
pub fn seconds_now() -> u64 {
    let set = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    set.unwrap_or_else(|| since.map_or(0, |d| d.as_secs()))
}

/// Seconds since 1970 as RFC 3339 writes them.
fn utc(seconds: u64) -> String {
    let (year, month, day) = civil(seconds / 86_400);
    let rest = seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Year, month and day, of days since 1970. The calendar is Howard Hinnant's `civil_from_days`.
pub fn civil(days: u64) -> (u64, u64, u64) {
    let days = days.saturating_add(719_468);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153; // months from March
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
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

    #[test]
    fn dates_are_those_of_the_calendar() {
        let dates = [0, 951_782_399, 951_782_400, 1_709_251_199, 4_107_542_399].map(utc);
        let expected = [
            "1970-01-01T00:00:00Z",
            "2000-02-28T23:59:59Z",
            "2000-02-29T00:00:00Z",
            "2024-02-29T23:59:59Z",
            "2100-02-28T23:59:59Z",
        ];
        assert_eq!(dates, expected);
    }

    #[test]
    fn what_was_used_is_noted_once() {
        let gpu = |backend: &str| BackendInfo {
            backend: backend.into(),
            adapter: "a card".into(),
            driver: "1.0".into(),
            software: false,
            contract: String::new(),
            tuning: None,
        };
        for backend in ["gpu:7", "cpu:scalar", "gpu:7"] {
            Environment::used_backend(&gpu(backend));
            Environment::used_model("a model of this test", "0123".into());
        }
        let here = Environment::here();
        let adapters: Vec<_> = here.machine.adapters.iter().filter(|a| a.adapter == "a card").collect();
        assert_eq!(adapters.len(), 1, "{adapters:?}");
        assert_eq!(here.models.iter().filter(|m| m.name == "a model of this test").count(), 1);
    }
}
