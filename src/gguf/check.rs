//! What is wrong with a file, all of it: what llama.cpp would refuse, and what it would read otherwise than it is written.
//!
//! - Reading a file to run it stops at the first thing that is wrong ([`super::read`]); here a file is read on for as long as it says where its
//!   parts are, and each thing is noted. What is said of llama.cpp is what its `gguf.cpp` and `llama-model-loader.cpp` do, of llama-cpp-python
//!   0.3.36; `tests/library/checked` holds it against that.
//! - As many findings of a kind are kept as a person reads; the others are counted.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::read::{self, Cursor, DEFAULT_ALIGNMENT, HeaderPlace, MAX_NAME, RawEntry};
use super::value::{Array, Metadata, Value, ValueType};
use super::{Gguf, Owner, map, split};
use crate::op::GgmlType;
use crate::text::{message, printable, printable_whole};
use crate::{Error, Result};

/// What a finding means for who loads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingSeverity {
    /// Nobody can read on from there.
    Unreadable,
    /// llama.cpp does not load the file.
    Refused,
    /// llama.cpp loads the file, and what it runs is not what the file says.
    Misread,
    /// It is good to know, and changes nothing in llama.cpp.
    Note,
}

impl FindingSeverity {
    /// Its name, as documents have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Refused => "refused",
            Self::Misread => "misread",
            Self::Note => "note",
        }
    }
}

/// A thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What it means.
    pub severity: FindingSeverity,
    /// Which kind it is, such as `tensor-offset`.
    pub rule: &'static str,
    /// The tensor, key or part of a split file that it is about.
    pub at: String,
    /// What was expected, and what was found.
    pub what: String,
}

/// What was found in a file.
#[derive(Clone, Debug, Default)]
pub struct FoundInFile {
    all: Vec<Finding>,
    counts: BTreeMap<(FindingSeverity, &'static str), u64>,
}

impl FoundInFile {
    /// Findings of a kind that are kept.
    const MOST: u64 = 8;

    /// Notes a finding.
    pub fn add(&mut self, severity: FindingSeverity, rule: &'static str, at: &str, what: impl AsRef<str>) {
        let count = self.counts.entry((severity, rule)).or_default();
        *count += 1;
        if *count <= Self::MOST {
            self.all.push(Finding { severity, rule, at: printable(at), what: message(what.as_ref()) });
        }
    }

    /// The findings that are kept, the worst first, else in the order of the file.
    pub fn all(&self) -> Vec<&Finding> {
        let mut all: Vec<&Finding> = self.all.iter().collect();
        all.sort_by_key(|finding| finding.severity);
        all
    }

    /// How many there are of a severity.
    pub fn count(&self, severity: FindingSeverity) -> u64 {
        self.counts.iter().filter(|((of, _), _)| *of == severity).map(|(_, count)| count).sum()
    }

    /// Kinds of which more were found than are kept, and how many more.
    pub fn more(&self) -> Vec<(FindingSeverity, &'static str, u64)> {
        let over = self.counts.iter().filter(|(_, count)| **count > Self::MOST);
        over.map(|((severity, rule), count)| (*severity, *rule, count - Self::MOST)).collect()
    }

    fn refused(&mut self, rule: &'static str, at: &str, what: impl AsRef<str>) {
        self.add(FindingSeverity::Refused, rule, at, what);
    }

    fn note(&mut self, rule: &'static str, at: &str, what: impl AsRef<str>) {
        self.add(FindingSeverity::Note, rule, at, what);
    }
}

/// A file, or all parts of a split one, and what was found.
pub struct Checked {
    /// What messages call it.
    pub name: String,
    /// What is wrong.
    pub found: FoundInFile,
    /// The file as it is run, or why it cannot be.
    pub gguf: Result<Gguf>,
}

impl Checked {
    /// Reads the file at `path`, and the other parts if it is one of several.
    ///
    /// # Errors
    /// If it cannot be opened: what can be, is a matter of findings.
    pub fn open(path: &Path) -> Result<Self> {
        let owner = map(path)?;
        let name = printable_whole(&path.display().to_string());
        let mut found = FoundInFile::default();
        if let Some(first) = scan(&name, (*owner).as_ref(), &mut found) {
            parts(path, &first, &mut found);
        }
        Ok(Self::with(name, found, Gguf::open(path)))
    }

    /// Reads a file that is in memory; `name` is what messages call it.
    pub fn from_bytes(name: &str, owner: Owner) -> Self {
        let mut found = FoundInFile::default();
        scan(&printable_whole(name), (*owner).as_ref(), &mut found);
        Self::with(printable_whole(name), found, Gguf::from_bytes(name, owner))
    }

    fn with(name: String, mut found: FoundInFile, gguf: Result<Gguf>) -> Self {
        if let Err(e) = &gguf {
            found.note("not-run-here", "file", format!("this program does not run it: {}", without(&name, e)));
        }
        Self { name, found, gguf }
    }

    /// Whether all of it could be read.
    pub fn is_readable(&self) -> bool {
        self.found.count(FindingSeverity::Unreadable) == 0
    }
}

/// What an error says, without the file's name.
fn without(name: &str, e: &Error) -> String {
    let text = e.to_string();
    text.strip_prefix(&format!("{name}: ")).unwrap_or(&text).to_string()
}

/// What a file says of itself.
struct Scan {
    metadata: Metadata,
    tensors: Vec<String>,
}

/// Reads one file and notes what is wrong; `None` if it cannot be read to its end.
fn scan(file: &str, bytes: &[u8], found: &mut FoundInFile) -> Option<Scan> {
    let mut cur = Cursor::new(file, bytes);
    cur.any_bool = true;
    match read_on(file, &mut cur, bytes.len() as u64, found) {
        Ok(scan) => Some(scan),
        Err(e) => {
            found.add(FindingSeverity::Unreadable, "header", "file", without(file, &e));
            None
        }
    }
}

fn read_on(file: &str, cur: &mut Cursor<'_>, end: u64, found: &mut FoundInFile) -> Result<Scan> {
    let (_, n_tensors, n_keys) = cur.start()?;
    let mut metadata = Metadata::new(file);
    for i in 0..n_keys {
        let key = name(cur, HeaderPlace::KeyAt(i), "a key", found)?;
        let at = format!("key {key}");
        let value = cur.value(HeaderPlace::Key(&key))?;
        if std::mem::take(&mut cur.lossy) {
            found.note("not-utf8", &at, "text that is not UTF-8; U+FFFD stands for it here, llama.cpp takes the bytes");
        }
        if matches!(value, Value::Array(Array::Array(_))) {
            found.refused("key-type", &at, "an array of arrays, which llama.cpp does not read");
        }
        match (key.is_empty(), metadata.contains(&key)) {
            (true, _) => {
                found.refused("key-name", &format!("key number {i}"), "a name was expected, found an empty one")
            }
            (false, true) => found.refused("key-twice", &at, "each key was expected once"),
            (false, false) => metadata.set(&key, value),
        }
    }
    let alignment = alignment(&metadata, found);
    let mut names = HashSet::new();
    let mut tensors = Vec::new();
    let mut rows = Vec::new();
    for i in 0..n_tensors {
        let row = tensor(cur, i, found)?;
        if !names.insert(row.name.clone()) {
            found.refused("tensor-twice", &row.at(), "each tensor was expected once");
        }
        tensors.push(row.name.clone());
        rows.push(row);
    }
    scales(&rows, &names, found);
    let start = (cur.pos as u64).next_multiple_of(alignment);
    // ggml's buffers begin at multiples of its own, and the data are one.
    if !rows.is_empty() && !start.is_multiple_of(DEFAULT_ALIGNMENT) {
        let what = format!("data that start at a multiple of {DEFAULT_ALIGNMENT} were expected, found {start}");
        found.refused("alignment", "key general.alignment", what);
    }
    places(&rows, start, alignment, end, found);
    Ok(Scan { metadata, tensors })
}

/// A name, with U+FFFD for what is not UTF-8.
fn name(cur: &mut Cursor<'_>, place: HeaderPlace<'_>, what: &str, found: &mut FoundInFile) -> Result<String> {
    let bytes = cur.string(place, what, MAX_NAME)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| {
        let name = String::from_utf8_lossy(e.as_bytes()).into_owned();
        let what = "a name that is not UTF-8; U+FFFD stands for it here, llama.cpp takes the bytes";
        found.note("not-utf8", &format!("{what} {name}"), what);
        name
    }))
}

fn alignment(metadata: &Metadata, found: &mut FoundInFile) -> u64 {
    const KEY: &str = "general.alignment";
    let Some(value) = metadata.get(KEY) else { return DEFAULT_ALIGNMENT };
    let at = format!("key {KEY}");
    if value.value_type() != ValueType::U32 {
        found.refused("alignment", &at, format!("u32 was expected, found {value}"));
    }
    match value.as_integer().and_then(|n| u64::try_from(n).ok()) {
        Some(n) if n.is_power_of_two() && n <= u32::MAX.into() => n,
        _ => {
            found.refused("alignment", &at, format!("a power of two was expected, found {value}"));
            DEFAULT_ALIGNMENT
        }
    }
}

/// A row of the tensor directory, as it is written.
struct Row {
    name: String,
    /// ggml's number of its type.
    ty: u32,
    /// `None` where the row does not say it.
    bytes: Option<u64>,
    /// From the start of the data.
    offset: u64,
}

impl Row {
    fn at(&self) -> String {
        format!("tensor {}", self.name)
    }
}

/// Name, weights and bytes of a block of a type.
fn layout(id: u32) -> Option<(&'static str, u64, u64)> {
    GgmlType::from_id(id).map(|ty| (ty.name(), ty.block_len() as u64, ty.block_bytes() as u64))
}

fn tensor(cur: &mut Cursor<'_>, index: u64, found: &mut FoundInFile) -> Result<Row> {
    /// More dimensions are no tensor's, and what follows is not where it seems.
    const MOST_DIMS: u32 = 16;
    /// ggml's `GGML_MAX_NAME`, with the byte that ends it.
    const MAX_GGML_NAME: usize = 64;
    let name = name(cur, HeaderPlace::TensorAt(index), "a name", found)?;
    let (place, at) = (HeaderPlace::Tensor(&name), format!("tensor {name}"));
    match name.len() {
        0 => found.refused("tensor-name", &format!("tensor number {index}"), "a name was expected, found an empty one"),
        // What is not UTF-8 was longer or shorter, which nobody has.
        len if len >= MAX_GGML_NAME => {
            let what = format!("{} bytes at most were expected of a name, found {len}", MAX_GGML_NAME - 1);
            found.refused("tensor-name", &at, what);
        }
        _ => {}
    }
    let RawEntry { dims, ty: id, offset } = cur.entry(place, MOST_DIMS)?;
    if dims.len() > 4 {
        found.refused("tensor-shape", &at, format!("4 dimensions at most were expected, found {}", dims.len()));
    }
    let elements = dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| i64::try_from(*n).is_ok());
    let mut bytes = None;
    match (layout(id), elements) {
        (None, _) => {
            let what =
                read::removed(id).map_or("no type of ggml's".to_string(), |name| format!("{name}, which ggml removed"));
            found.refused("tensor-type", &at, format!("a ggml type was expected, found {id}: {what}"));
        }
        (_, None) => {
            found.refused("tensor-shape", &at, format!("fewer than 2^63 weights were expected, found {dims:?}"))
        }
        (Some((ty, len, block)), Some(elements)) => {
            let first = dims.first().copied().unwrap_or(1);
            if dims.contains(&0) {
                found.refused("tensor-shape", &at, format!("dimensions of 1 or more were expected, found {dims:?}"));
            } else if !first.is_multiple_of(len) {
                found.refused(
                    "tensor-shape",
                    &at,
                    format!("rows of whole {ty} blocks of {len} were expected, found {dims:?}"),
                );
            } else {
                bytes = (elements / len).checked_mul(block);
            }
        }
    }
    Ok(Row { name, ty: id, bytes, offset })
}

/// Weights of NVFP4 whose scale is not there.
fn scales(rows: &[Row], names: &HashSet<String>, found: &mut FoundInFile) {
    for row in rows.iter().filter(|row| GgmlType::from_id(row.ty) == Some(GgmlType::NVFP4)) {
        let scale = row.name.strip_suffix(".weight").map(|of| format!("{of}.scale"));
        if let Some(scale) = scale.filter(|scale| !names.contains(scale)) {
            let what =
                format!("NVFP4 without {scale}: its values are taken without the number that scales all of them");
            found.add(FindingSeverity::Misread, "nvfp4-scale", &row.at(), what);
        }
    }
}

/// ggml expects each tensor where the one before it ends, rounded up to the alignment.
fn places(rows: &[Row], start: u64, alignment: u64, end: u64, found: &mut FoundInFile) {
    let mut expected = Some(0u64);
    let mut before: Option<&Row> = None;
    for row in rows {
        let offset = row.offset;
        if let Some(expected) = expected.filter(|expected| *expected != offset) {
            let behind =
                before.map_or("the start of the data".to_string(), |row| format!("tensor {}", printable(&row.name)));
            let what = match before.and_then(|row| row.offset.checked_add(row.bytes?)) {
                _ if !offset.is_multiple_of(alignment) => format!("no multiple of the alignment {alignment}"),
                Some(ends) if before.is_some_and(|row| offset >= row.offset) && offset < ends => {
                    format!("the two share {} bytes or more", ends - offset)
                }
                _ if offset > expected => format!("{} bytes lie between", offset - expected),
                _ => "which is before it".to_string(),
            };
            found.refused(
                "tensor-offset",
                &row.at(),
                format!("offset {expected}, behind {behind}, was expected, found {offset}: {what}"),
            );
        }
        let ends = row.bytes.and_then(|bytes| offset.checked_add(bytes));
        if row.bytes.is_some() && ends.and_then(|ends| ends.checked_add(start)).is_none_or(|ends| ends > end) {
            let bytes = row.bytes.unwrap_or(0);
            let what =
                format!("{bytes} bytes at {offset} of the data, which starts at {start}, and the file has {end}");
            found.refused("truncated", &row.at(), what);
        }
        expected = ends.and_then(|ends| ends.checked_next_multiple_of(alignment));
        before = Some(row);
    }
}

/// The other parts of a split file.
fn parts(path: &Path, first: &Scan, found: &mut FoundInFile) {
    const COUNT: &str = "split.count";
    let number = |metadata: &Metadata, key: &str| {
        metadata.get(key).and_then(Value::as_integer).and_then(|n| u64::try_from(n).ok())
    };
    let typed = |metadata: &Metadata, at: &str, found: &mut FoundInFile| {
        for (key, ty) in
            [("split.no", ValueType::U16), (COUNT, ValueType::U16), ("split.tensors.count", ValueType::I32)]
        {
            if let Some(value) = metadata.get(key).filter(|value| value.value_type() != ty) {
                found.refused("split", at, format!("key {key}: {} was expected, found {value}", ty.name()));
            }
        }
    };
    let count = number(&first.metadata, COUNT).unwrap_or(1);
    let named = split::parse_name(path);
    if count <= 1 {
        if let Some((_, number, of)) = named.filter(|(_, _, of)| *of > 1) {
            let what = format!("its name says that it is part {number} of {of}, and it has no {COUNT} that says so");
            found.add(FindingSeverity::Misread, "split", "file", what);
        }
        return;
    }
    typed(&first.metadata, "file", found);
    let own = number(&first.metadata, "split.no");
    let fits = named.filter(|(_, n, of)| *of == count && n.checked_sub(1) == own);
    let Some((prefix, own, _)) = fits else {
        let name = own.map_or("…".into(), |n| format!("…-{:05}-of-{count:05}.gguf", n.saturating_add(1)));
        let what = format!("a name that ends in {name}, by which the other parts are found, was expected");
        return found.refused("split", "file", what);
    };
    if own != 1 {
        let first = split::sister(path, prefix, 1, count);
        found.note("split", "file", format!("part {own} of {count}: llama.cpp opens {}", first.display()));
    }
    let mut names: HashSet<String> = HashSet::new();
    let mut tensors = 0;
    let mut complete = true;
    let mut total = None;
    for n in 1..=count {
        let part = split::sister(path, prefix, n, count);
        let at = format!("part {n} of {count}");
        let other;
        let scanned = match n == own {
            true => Some(first),
            false => match map(&part) {
                Ok(owner) => {
                    other = scan(&printable_whole(&part.display().to_string()), (*owner).as_ref(), found);
                    other.as_ref()
                }
                Err(e) => {
                    found.refused("split", &at, format!("{e}"));
                    None
                }
            },
        };
        let Some(scanned) = scanned else {
            complete = false;
            continue;
        };
        if n != own {
            typed(&scanned.metadata, &at, found);
        }
        if n == 1 {
            total = number(&scanned.metadata, "split.tensors.count");
        }
        if number(&scanned.metadata, "split.no") != Some(n - 1) {
            let is = scanned.metadata.get("split.no").map_or("none".to_string(), ToString::to_string);
            found.refused("split", &at, format!("key split.no: {} was expected, found {is}", n - 1));
        }
        if number(&scanned.metadata, COUNT) != Some(count) {
            let is = scanned.metadata.get(COUNT).map_or("none".to_string(), ToString::to_string);
            found.note("split", &at, format!("key {COUNT}: {count} was expected, found {is}"));
        }
        let differs = |(key, value): &(&str, &Value)| first.metadata.get(key).is_some_and(|own| own != *value);
        let keys = scanned.metadata.iter().filter(|(key, _)| !matches!(*key, "split.no" | COUNT | "general.alignment"));
        for (key, value) in keys.filter(differs) {
            found.note("split", &at, format!("key {}: another value, {value}, than in part {own}", printable(key)));
        }
        for name in &scanned.tensors {
            if !names.insert(name.clone()) {
                found.refused("tensor-twice", &format!("tensor {name}"), format!("in {at} and in an earlier one"));
            }
        }
        tensors += scanned.tensors.len() as u64;
    }
    if complete && total != Some(tensors) {
        let is = total.map_or("none".to_string(), |total| total.to_string());
        found.refused("split", "file", format!("key split.tensors.count: {tensors} were expected, found {is}"));
    }
}
