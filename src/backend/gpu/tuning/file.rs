//! A table in a file: `devices --tune` writes it, and a backend on the same adapter, with the same driver, reads it.
//!
//! - The file is `twinscope/tuning/KEY.json` in the user's directory of settings, where KEY is of the adapter, its driver and its subgroup
//!   sizes; or what TWINSCOPE_TUNING names. With `TWINSCOPE_TUNING=built-in` none is read.
//! - It is untrusted as any other: what is no such file is an error that names it. One of another adapter or driver is not used, which the
//!   environment of every document says.

use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Tuning;
use crate::backend::TuningUsed;
use crate::error::{Error, Result};
use crate::files::FileKind;

/// The schema of a file.
pub const SCHEMA: &str = "twinscope.tuning/1";
/// The variable that names a file, or says that none is read.
pub const VARIABLE: &str = "TWINSCOPE_TUNING";
/// What the variable is where no file is to be read.
const BUILT_IN: &str = "built-in";

/// What a table is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunedAdapter {
    /// Its name.
    pub name: String,
    /// Its driver, with its version.
    pub driver: String,
    /// Least and most lanes of a subgroup.
    pub subgroup_sizes: [u32; 2],
    /// Whether its matrix kernels are those for subgroups of 8 lanes.
    pub lanes: bool,
}

impl TunedAdapter {
    fn key(&self) -> String {
        let Self { name, driver, subgroup_sizes: [least, most], lanes } = self;
        let hash = Sha256::digest(format!("{name}\0{driver}\0{least}\0{most}\0{lanes}"));
        format!("{hash:x}")[..16].to_string()
    }
}

/// A case of `devices --tune`: both kernels on the same operands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuningSample {
    /// `mat_mul`, `head_mat_mul` or `expert_mat_mul`.
    pub op: String,
    /// The weights' type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Columns, rows and matrices of the weight.
    pub dims: [usize; 3],
    /// Positions of the call.
    pub positions: usize,
    /// Experts that a position uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<usize>,
    /// Seconds of a call by the matrix-vector kernel.
    pub vector_seconds: f64,
    /// The same by the tiled one.
    pub tiled_seconds: f64,
}

/// A file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuningFile {
    /// [`SCHEMA`].
    pub schema: String,
    /// What it was made with and on.
    #[serde(default, skip_serializing, rename = "environment")]
    _environment: IgnoredAny,
    /// What it is of.
    pub adapter: TunedAdapter,
    /// The table.
    pub tuning: Tuning,
    /// What it was chosen by.
    pub measured: Vec<TuningSample>,
}

impl TuningFile {
    /// One that is to be written.
    pub fn new(adapter: TunedAdapter, tuning: Tuning, measured: Vec<TuningSample>) -> Self {
        Self { schema: SCHEMA.into(), _environment: IgnoredAny, adapter, tuning, measured }
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let file: Self = serde_json::from_slice(bytes).map_err(|e| format!("no tuning table: {e}"))?;
        if file.schema != SCHEMA {
            let found = crate::text::printable(&file.schema).to_string();
            return Err(format!("schema: expected {SCHEMA:?}, found {found:?}"));
        }
        file.tuning.check()?;
        Ok(file)
    }
}

/// Where the table of an adapter is kept; `None` where the system says no place for settings.
pub fn place(adapter: &TunedAdapter) -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let settings = absolute("XDG_CONFIG_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".config")))
        .or_else(|| absolute("APPDATA"))?;
    Some(settings.join("twinscope").join("tuning").join(format!("{}.json", adapter.key())))
}

/// The table that was saved for an adapter, and what is used.
///
/// # Errors
/// A file that cannot be read, or is none.
pub fn saved(adapter: &TunedAdapter) -> Result<(Option<Tuning>, TuningUsed)> {
    let path = match std::env::var_os(VARIABLE) {
        Some(name) if name.is_empty() || name == BUILT_IN => return Ok((None, TuningUsed::built_in())),
        Some(name) => PathBuf::from(name),
        None => match place(adapter).filter(|path| path.symlink_metadata().is_ok()) {
            Some(path) => path,
            None => return Ok((None, TuningUsed::built_in())),
        },
    };
    of_file(&path, adapter)
}

fn of_file(path: &Path, adapter: &TunedAdapter) -> Result<(Option<Tuning>, TuningUsed)> {
    let bytes = FileKind::TUNING.read(path)?;
    let file = TuningFile::parse(&bytes).map_err(|what| Error::input(format!("{}: {what}", path.display())))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned(); // the directory may be a person's
    if file.adapter != *adapter {
        let TunedAdapter { name: of, driver, subgroup_sizes: [least, most], lanes } = &file.adapter;
        let set = if *lanes { "subgroups of 8" } else { "any subgroups" };
        let not_used = format!("{name} is of {of}, {driver}, subgroups of {least} to {most}, kernels for {set}");
        return Ok((None, TuningUsed { not_used: Some(not_used), ..TuningUsed::built_in() }));
    }
    let sha256 = format!("{:x}", Sha256::digest(&bytes));
    Ok((Some(file.tuning), TuningUsed { table: name, sha256: Some(sha256), not_used: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter() -> TunedAdapter {
        TunedAdapter { name: "a card".into(), driver: "1.0".into(), subgroup_sizes: [4, 8], lanes: false }
    }

    #[test]
    fn a_file_is_of_its_adapter_and_its_driver() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        let file = TuningFile::new(adapter(), Tuning::built_in(true), Vec::new());
        std::fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
        let (table, used) = of_file(&path, &adapter()).unwrap();
        assert_eq!((table, used.table.as_str()), (Some(Tuning::built_in(true)), "t.json"));
        assert_eq!(used.sha256.unwrap().len(), 64);
        for other in [
            TunedAdapter { driver: "1.1".into(), ..adapter() },
            TunedAdapter { subgroup_sizes: [8, 8], ..adapter() },
            TunedAdapter { lanes: true, ..adapter() },
        ] {
            let (table, used) = of_file(&path, &other).unwrap();
            assert_eq!((table, used.table.as_str()), (None, BUILT_IN));
            assert_eq!(
                used.not_used.unwrap(),
                "t.json is of a card, 1.0, subgroups of 4 to 8, kernels for any subgroups"
            );
            assert_ne!(other.key(), adapter().key());
        }
    }

    #[test]
    fn what_is_no_table_is_refused_by_name() {
        let good = serde_json::to_value(TuningFile::new(adapter(), Tuning::built_in(false), Vec::new())).unwrap();
        let with = |pointer: &str, value: serde_json::Value| {
            let mut changed = good.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            TuningFile::parse(&serde_json::to_vec(&changed).unwrap()).map(|_| ()).unwrap_err()
        };
        for (pointer, value, words) in [
            ("/schema", "twinscope.tuning/9".into(), "schema: expected \"twinscope.tuning/1\""),
            ("/tuning/mat_mul/positions", 0.into(), "tuning.mat_mul.positions: expected 1 to 64, found 0"),
            ("/tuning/head_mat_mul/positions", 65.into(), "expected 1 to 64, found 65"),
            ("/tuning/expert_mat_mul/rows", 32.into(), "tuning.expert_mat_mul.rows: expected 0 to 31, found 32"),
            ("/tuning/mat_mul/types", serde_json::json!({"Q9": 1}), "expected the name of a type, found \"Q9\""),
            ("/tuning/mat_mul/types", serde_json::json!({"F16": 99}), "tuning.mat_mul.types.F16: expected 1 to 64"),
            ("/tuning/mat_mul/positions", (-1).into(), "no tuning table"),
            ("/adapter", serde_json::json!({"name": "a card"}), "no tuning table"),
        ] {
            let found = with(pointer, value);
            assert!(found.contains(words), "{pointer}: {found}");
        }
        assert!(TuningFile::parse(b"[]").is_err() && TuningFile::parse(b"").is_err());
    }
}
