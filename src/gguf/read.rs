//! Reads one file's header: metadata and tensor directory. Every number is checked against the bytes that remain before
//! anything is allocated or read.

use std::collections::HashSet;
use std::fmt;

use super::value::{Array, Metadata, Value, ValueType};
use crate::op::GgmlType;
use crate::text::printable;
use crate::{Error, Result};

/// Arrays inside arrays, at most: a file cannot make the reader recurse further.
pub(super) const MAX_ARRAY_DEPTH: u32 = 4;
/// The specification's bound on a key; tensor names get the same.
pub(super) const MAX_NAME: u64 = 65_535;
/// The largest alignment accepted, 16 MiB: above any page size.
const MAX_ALIGNMENT: u64 = 1 << 24;
/// Keys, and tensors, at most: ten times what any model has, so that a hostile header cannot spend memory on tables.
pub(super) const MAX_ENTRIES: u64 = 1 << 20;
/// Alignment of a file that does not say.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;

/// What a header says.
pub(super) struct Header {
    pub version: u32,
    pub alignment: u64,
    /// Bytes of the header: magic to the end of the tensor directory, without padding.
    pub len: u64,
    pub metadata: Metadata,
    pub tensors: Vec<Entry>,
}

/// A row of the tensor directory.
pub(super) struct Entry {
    pub name: String,
    pub ty: GgmlType,
    pub dims: Vec<u64>,
    /// From the start of the file.
    pub offset: u64,
    pub bytes: u64,
}

/// A row of the tensor directory without its name, as it is written.
pub(super) struct RawEntry {
    pub dims: Vec<u64>,
    /// ggml's number of the type.
    pub ty: u32,
    /// From the start of the data.
    pub offset: u64,
}

/// What the reader is reading, for messages.
#[derive(Clone, Copy)]
pub(super) enum HeaderPlace<'a> {
    Header,
    /// A key whose name is not known yet.
    KeyAt(u64),
    Key(&'a str),
    /// A tensor whose name is not known yet.
    TensorAt(u64),
    Tensor(&'a str),
}

impl fmt::Display for HeaderPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "header"),
            Self::KeyAt(i) => write!(f, "key number {i}"),
            Self::Key(key) => write!(f, "key {}", printable(key)),
            Self::TensorAt(i) => write!(f, "tensor number {i}"),
            Self::Tensor(name) => write!(f, "tensor {}", printable(name)),
        }
    }
}

/// A number as the file stores it.
pub(super) trait FileNumber: Sized {
    const BYTES: usize;
    fn read(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($ty:ty),*) => {$(
        impl FileNumber for $ty {
            const BYTES: usize = size_of::<$ty>();
            fn read(bytes: &[u8]) -> Self {
                let mut le = [0; size_of::<$ty>()];
                le.copy_from_slice(bytes);
                Self::from_le_bytes(le)
            }
        }
    )*};
}
numbers!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

pub(super) struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    pub pos: usize,
    /// Whether a text since the last key was not UTF-8.
    pub lossy: bool,
    /// Whether a bool may be another number than 0 and 1, as it may in llama.cpp.
    pub any_bool: bool,
}

impl<'a> Cursor<'a> {
    pub fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Self { file, bytes, pos: 0, lossy: false, any_bool: false }
    }

    fn error(&self, place: HeaderPlace, message: impl fmt::Display) -> Error {
        Error::input(format!("{}: {place}: {message}", self.file))
    }

    fn remaining(&self) -> u64 {
        (self.bytes.len() - self.pos) as u64
    }

    fn take(&mut self, count: u64, place: HeaderPlace, what: &str) -> Result<&'a [u8]> {
        if count > self.remaining() {
            return Err(self.error(
                place,
                format_args!(
                    "expected {count} bytes of {what} at offset {}, found {} before the end of the file",
                    self.pos,
                    self.remaining()
                ),
            ));
        }
        let start = self.pos;
        self.pos += count as usize; // fits: at most the length of a slice
        Ok(&self.bytes[start..self.pos])
    }

    pub fn number<T: FileNumber>(&mut self, place: HeaderPlace, what: &str) -> Result<T> {
        Ok(T::read(self.take(T::BYTES as u64, place, what)?))
    }

    fn numbers<T: FileNumber>(&mut self, count: u64, place: HeaderPlace) -> Result<Vec<T>> {
        // The caller checked that count × BYTES remain, so the product does not overflow.
        let bytes = self.take(count * T::BYTES as u64, place, "array elements")?;
        Ok(bytes.chunks_exact(T::BYTES).map(T::read).collect())
    }

    /// A name, by which a thing is found: in UTF-8.
    fn name(&mut self, place: HeaderPlace, what: &str) -> Result<String> {
        String::from_utf8(self.string(place, what, MAX_NAME)?).map_err(|e| {
            let i = e.utf8_error().valid_up_to();
            self.error(
                place,
                format_args!("expected {what} in UTF-8, found byte {:#04x} at its byte {i}", e.as_bytes()[i]),
            )
        })
    }

    /// A text: U+FFFD stands for what is not UTF-8, as a model's words are no reason not to run it.
    fn text(&mut self, place: HeaderPlace) -> Result<String> {
        let bytes = self.string(place, "a string", u64::MAX)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| {
            self.lossy = true;
            String::from_utf8_lossy(e.as_bytes()).into_owned()
        }))
    }

    pub fn string(&mut self, place: HeaderPlace, what: &str, max: u64) -> Result<Vec<u8>> {
        let at = self.pos;
        let len: u64 = self.number(place, what)?;
        if len > max {
            return Err(
                self.error(place, format_args!("expected {what} of at most {max} bytes at offset {at}, found {len}"))
            );
        }
        Ok(self.take(len, place, what)?.to_vec()) // copied first, so that what is checked is what is kept
    }

    fn bool(&mut self, place: HeaderPlace) -> Result<bool> {
        match self.number::<u8>(place, "bool")? {
            0 => Ok(false),
            1 => Ok(true),
            _ if self.any_bool => Ok(true),
            x => Err(self.error(place, format_args!("expected bool 0 or 1, found {x}"))),
        }
    }

    fn value_type(&mut self, place: HeaderPlace) -> Result<ValueType> {
        let id: u32 = self.number(place, "a value type")?;
        ValueType::from_id(id)
            .ok_or_else(|| self.error(place, format_args!("expected a value type from 0 to 12, found {id}")))
    }

    pub fn value(&mut self, place: HeaderPlace) -> Result<Value> {
        Ok(match self.value_type(place)? {
            ValueType::U8 => Value::U8(self.number(place, "u8")?),
            ValueType::I8 => Value::I8(self.number(place, "i8")?),
            ValueType::U16 => Value::U16(self.number(place, "u16")?),
            ValueType::I16 => Value::I16(self.number(place, "i16")?),
            ValueType::U32 => Value::U32(self.number(place, "u32")?),
            ValueType::I32 => Value::I32(self.number(place, "i32")?),
            ValueType::F32 => Value::F32(self.number(place, "f32")?),
            ValueType::Bool => Value::Bool(self.bool(place)?),
            ValueType::String => Value::String(self.text(place)?),
            ValueType::Array => Value::Array(self.array(place, 1)?),
            ValueType::U64 => Value::U64(self.number(place, "u64")?),
            ValueType::I64 => Value::I64(self.number(place, "i64")?),
            ValueType::F64 => Value::F64(self.number(place, "f64")?),
        })
    }

    fn array(&mut self, place: HeaderPlace, depth: u32) -> Result<Array> {
        if depth > MAX_ARRAY_DEPTH {
            return Err(self.error(place, format_args!("expected arrays nested at most {MAX_ARRAY_DEPTH} deep")));
        }
        let ty = self.value_type(place)?;
        let n: u64 = self.number(place, "an array length")?;
        if n > self.remaining() / ty.min_bytes() {
            return Err(self.error(
                place,
                format_args!(
                    "expected {n} {} array elements of at least {} bytes each, found {} bytes before the end of the file",
                    ty.name(),
                    ty.min_bytes(),
                    self.remaining()
                ),
            ));
        }
        Ok(match ty {
            ValueType::U8 => Array::U8(self.numbers(n, place)?),
            ValueType::I8 => Array::I8(self.numbers(n, place)?),
            ValueType::U16 => Array::U16(self.numbers(n, place)?),
            ValueType::I16 => Array::I16(self.numbers(n, place)?),
            ValueType::U32 => Array::U32(self.numbers(n, place)?),
            ValueType::I32 => Array::I32(self.numbers(n, place)?),
            ValueType::F32 => Array::F32(self.numbers(n, place)?),
            ValueType::U64 => Array::U64(self.numbers(n, place)?),
            ValueType::I64 => Array::I64(self.numbers(n, place)?),
            ValueType::F64 => Array::F64(self.numbers(n, place)?),
            ValueType::Bool => Array::Bool((0..n).map(|_| self.bool(place)).collect::<Result<_>>()?),
            ValueType::String => Array::String((0..n).map(|_| self.text(place)).collect::<Result<_>>()?),
            ValueType::Array => Array::Array((0..n).map(|_| self.array(place, depth + 1)).collect::<Result<_>>()?),
        })
    }

    /// Magic, version, tensor count, key count.
    pub fn start(&mut self) -> Result<(u32, u64, u64)> {
        let magic = self.take(4, HeaderPlace::Header, "the magic")?;
        if magic != b"GGUF" {
            let hint = match magic {
                b"FUGG" => ": a byte-swapped file",
                b"vers" => ": this looks like a Git LFS pointer, not the file it points to",
                b"tjgg" | b"lmgg" | b"fmgg" => ": a format older than GGUF",
                b"PK\x03\x04" => ": a zip archive, as PyTorch writes",
                _ => "",
            };
            let found: String = magic.escape_ascii().to_string();
            return Err(
                self.error(HeaderPlace::Header, format_args!("expected magic \"GGUF\", found \"{found}\"{hint}"))
            );
        }
        let version: u32 = self.number(HeaderPlace::Header, "the version")?;
        match version {
            2 | 3 => {}
            _ if matches!(version.swap_bytes(), 1..=0xffff) => {
                return Err(self.error(
                    HeaderPlace::Header,
                    format_args!(
                        "expected a little-endian file, found version {} byte-swapped: this file is big-endian",
                        version.swap_bytes()
                    ),
                ));
            }
            _ => {
                return Err(
                    self.error(HeaderPlace::Header, format_args!("expected GGUF version 2 or 3, found {version}"))
                );
            }
        }
        let tensors: u64 = self.number(HeaderPlace::Header, "the tensor count")?;
        let keys: u64 = self.number(HeaderPlace::Header, "the key count")?;
        // Shortest entries: an empty name (8) + dimension count (4) + type (4) + offset (8); an empty key (8) + type (4) + u8 (1).
        for (what, count, min) in [("tensors", tensors, 24), ("keys", keys, 13)] {
            if count > MAX_ENTRIES {
                return Err(self
                    .error(HeaderPlace::Header, format_args!("expected at most {MAX_ENTRIES} {what}, found {count}")));
            }
            if count > self.remaining() / min {
                return Err(self.error(
                    HeaderPlace::Header,
                    format_args!(
                        "expected {count} {what} of at least {min} bytes each, found {} bytes before the end of the file",
                        self.remaining()
                    ),
                ));
            }
        }
        Ok((version, tensors, keys))
    }

    /// What follows a tensor's name in its row of the directory, which has so many dimensions at most.
    pub fn entry(&mut self, place: HeaderPlace, most: u32) -> Result<RawEntry> {
        let n_dims: u32 = self.number(place, "a dimension count")?;
        if n_dims > most {
            return Err(self.error(place, format_args!("expected at most {most} dimensions, found {n_dims}")));
        }
        let dims = (0..n_dims).map(|_| self.number(place, "a dimension")).collect::<Result<_>>()?;
        Ok(RawEntry { dims, ty: self.number(place, "a type")?, offset: self.number(place, "an offset")? })
    }

    /// A tensor's name and its row of the directory; the offset is still relative to the data.
    fn tensor(&mut self, index: u64) -> Result<Entry> {
        let name = self.name(HeaderPlace::TensorAt(index), "a name")?;
        if name.is_empty() {
            return Err(self.error(HeaderPlace::TensorAt(index), "expected a name, found an empty one"));
        }
        let place = HeaderPlace::Tensor(&name);
        let RawEntry { mut dims, ty: id, offset } = self.entry(place, 4)?;
        if dims.is_empty() {
            dims.push(1); // a scalar, as ggml reads it
        }
        let ty = GgmlType::from_id(id).ok_or_else(|| match removed(id) {
            Some(name) => {
                self.error(place, format_args!("expected a ggml type, found {id}, {name}, which ggml removed"))
            }
            None => self.error(place, format_args!("expected a ggml type, found the unknown type {id}")),
        })?;
        let bytes = tensor_bytes(ty, &dims).map_err(|e| self.error(place, e))?;
        Ok(Entry { name, ty, dims, offset, bytes })
    }
}

/// Types that older files used.
pub(super) fn removed(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "Q4_2",
        5 => "Q4_3",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => return None,
    })
}

/// Bytes of a tensor of this type and shape, or why there can be none.
pub(super) fn tensor_bytes(ty: GgmlType, dims: &[u64]) -> Result<u64, String> {
    if let Some(i) = dims.iter().position(|&d| d == 0) {
        return Err(format!("expected dimensions of at least 1, found {dims:?} (dimension {i} is 0)"));
    }
    let block = ty.block_len() as u64;
    if !dims[0].is_multiple_of(block) {
        return Err(format!("expected rows of whole {ty} blocks of {block}, found shape {dims:?}"));
    }
    dims[1..]
        .iter()
        .try_fold(dims[0], |n, &d| n.checked_mul(d))
        .and_then(|elements| (elements / block).checked_mul(ty.block_bytes() as u64))
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| format!("expected a size that fits 63 bits, found shape {dims:?} of {ty}"))
}

/// The alignment that the metadata states, checked.
pub(super) fn alignment(metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.u64_opt("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(Error::input(format!(
            "{}: key general.alignment: expected a power of two from 1 to {MAX_ALIGNMENT}, found {alignment}",
            metadata.source()
        )));
    }
    Ok(alignment)
}

/// Reads the header of `bytes` and checks every tensor against them; `file` is what errors call it.
pub(super) fn header(file: &str, bytes: &[u8]) -> Result<Header> {
    let mut cur = Cursor::new(file, bytes);
    if bytes.is_empty() {
        return Err(cur.error(HeaderPlace::Header, "expected a GGUF file, found an empty one"));
    }
    let (version, n_tensors, n_keys) = cur.start()?;

    let mut metadata = Metadata::new(file);
    for i in 0..n_keys {
        let key = cur.name(HeaderPlace::KeyAt(i), "a key")?;
        if key.is_empty() {
            return Err(cur.error(HeaderPlace::KeyAt(i), "expected a key, found an empty one"));
        }
        if metadata.contains(&key) {
            return Err(cur.error(HeaderPlace::Key(&key), "expected each key once, found it twice"));
        }
        let value = cur.value(HeaderPlace::Key(&key))?;
        metadata.set(&key, value);
        if std::mem::take(&mut cur.lossy) {
            metadata.not_utf8.push(key);
        }
    }
    let alignment = alignment(&metadata)?;

    let mut tensors: Vec<Entry> = Vec::new();
    for i in 0..n_tensors {
        tensors.push(cur.tensor(i)?);
    }
    let len = cur.pos as u64;
    // A file of metadata alone may end before the padding does; then no tensor starts there.
    let data = len.next_multiple_of(alignment);
    let end = bytes.len() as u64;
    let mut names = HashSet::new();
    for t in &mut tensors {
        let place = HeaderPlace::Tensor(&t.name);
        if !names.insert(t.name.as_str()) {
            return Err(cur.error(place, "expected each tensor once, found it twice"));
        }
        if !t.offset.is_multiple_of(alignment) {
            return Err(cur.error(
                place,
                format_args!("expected an offset that is a multiple of the alignment {alignment}, found {}", t.offset),
            ));
        }
        let start = t.offset.checked_add(data);
        t.offset = start.filter(|s| s.checked_add(t.bytes).is_some_and(|e| e <= end)).ok_or_else(|| {
            cur.error(
                place,
                format_args!(
                    "expected {} bytes of data at offset {} of the file's data, which starts at {data}; found the end of the file at {end}",
                    t.bytes, t.offset
                ),
            )
        })?;
    }
    disjoint(&cur, &tensors)?;
    Ok(Header { version, alignment, len, metadata, tensors })
}

/// Fails if two tensors share a byte.
fn disjoint(cur: &Cursor, tensors: &[Entry]) -> Result<()> {
    let mut order: Vec<&Entry> = tensors.iter().collect();
    order.sort_by_key(|t| t.offset);
    for pair in order.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        let end = a.offset + a.bytes; // checked to be within the file
        if b.offset < end {
            return Err(cur.error(
                HeaderPlace::Tensor(&b.name),
                format_args!(
                    "expected data after that of tensor {}, which ends at {end}, found it at {}: the two overlap",
                    printable(&a.name),
                    b.offset
                ),
            ));
        }
    }
    Ok(())
}
