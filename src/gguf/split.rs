//! Split files: `NAME-00001-of-0000N.gguf` and its sisters, as one model.
//!
//! The metadata decides, names only find: `split.count` above 1 makes a file a part, `split.no` (from 0) says which, and
//! `split.tensors.count` is the sum over all parts.

use std::path::{Path, PathBuf};

use super::value::Metadata;
use super::{Gguf, map, read};
use crate::text::{printable, printable_whole};
use crate::{Error, Result};

/// Parts that the file is one of: `split.count`, where 0 (as a merged file has) and absence mean 1.
pub(super) fn count(metadata: &Metadata) -> Result<u64> {
    Ok(metadata.u64_opt("split.count")?.unwrap_or(1).max(1))
}

/// What a part's name says: `PREFIX-00002-of-00003.gguf` is ("PREFIX", 2, 3).
pub(super) fn parse_name(path: &Path) -> Option<(&str, u64, u64)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let five = |s: &str| (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok()).flatten();
    Some((prefix, five(number)?, five(count)?))
}

/// Part `number` (from 1) of `count`, beside `path`.
pub(super) fn sister(path: &Path, prefix: &str, number: u64, count: u64) -> PathBuf {
    path.with_file_name(format!("{prefix}-{number:05}-of-{count:05}.gguf"))
}

/// See [`Gguf::open`].
pub(super) fn open(path: &Path) -> Result<Gguf> {
    let mut gguf = Gguf::single(&path.display().to_string(), map(path)?)?;
    gguf.path = Some(path.to_path_buf());
    let name = gguf.name.clone();
    let error = |message: String| Error::input(format!("{name}: {message}"));

    let count = count(&gguf.metadata)?;
    let named = parse_name(path);
    if count == 1 {
        return match named {
            Some((_, number, parts)) if parts > 1 => Err(error(format!(
                "key split.count: expected {parts}, as the file's name says that it is part {number} of {parts}, found {}",
                gguf.metadata.get("split.count").map_or("no such key".to_string(), ToString::to_string)
            ))),
            _ => Ok(gguf),
        };
    }
    let number = gguf.metadata.u64("split.no")?;
    let Some((prefix, _, _)) = named.filter(|&(_, n, of)| of == count && n.checked_sub(1) == Some(number)) else {
        return Err(error(format!(
            "part {} of {count} by its metadata: expected a name that ends in -{:05}-of-{count:05}.gguf, by which the \
             other parts are found",
            number.saturating_add(1),
            number.saturating_add(1)
        )));
    };
    if number != 0 {
        // Once, and not again: its name says 1, so its metadata has to say 0.
        let first = sister(path, prefix, 1, count);
        return open(&first).map_err(|e| e.map(|m| format!("part {} of {count} was named, {name}: {m}", number + 1)));
    }
    for i in 2..=count {
        add(&mut gguf, &sister(path, prefix, i, count), i, count)?;
    }
    let total = gguf.metadata.u64("split.tensors.count")?;
    if total != gguf.tensors.len() as u64 {
        return Err(error(format!(
            "key split.tensors.count: expected {} tensors, as the {count} parts have together, found {total}",
            gguf.tensors.len()
        )));
    }
    Ok(gguf)
}

/// Appends part `number` (from 1) after checking that it belongs to the first.
fn add(gguf: &mut Gguf, path: &Path, number: u64, count: u64) -> Result<()> {
    let name = printable_whole(&path.display().to_string());
    let owner = map(path).map_err(|e| e.map(|m| format!("part {number} of {count} of {}: {m}", gguf.name)))?;
    let header = read::header(&name, (*owner).as_ref())?;
    for (key, expected) in [("split.no", number - 1), ("split.count", count)] {
        let found = header.metadata.u64(key)?;
        if found != expected {
            return Err(Error::input(format!("{name}: key {key}: expected {expected}, found {found}")));
        }
    }
    // Later parts usually carry the split keys only; what else they carry must be the same model's.
    for (key, value) in header.metadata.iter().filter(|(k, _)| !matches!(*k, "split.no" | "general.alignment")) {
        if let Some(first) = gguf.metadata.get(key).filter(|first| *first != value) {
            return Err(Error::input(format!(
                "{name}: key {}: expected {first}, as in {}, found {value}: parts of different models",
                printable(key),
                gguf.name
            )));
        }
    }
    match gguf.add_part(owner, header.len, header.tensors) {
        None => Ok(()),
        Some(tensor) => Err(Error::input(format!(
            "{name}: tensor {}: expected each tensor once, found it in an earlier part too",
            printable(&tensor)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let parse = |s: &'static str| parse_name(Path::new(s));
        assert_eq!(parse("/m/a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
        assert_eq!(parse("a-2-of-3.gguf"), None);
        assert_eq!(parse("a-0000+2-of-00003.gguf"), None);
        assert_eq!(parse("model.gguf"), None);
        assert_eq!(sister(Path::new("/m/x.gguf"), "a", 1, 12), Path::new("/m/a-00001-of-00012.gguf"));
    }
}
