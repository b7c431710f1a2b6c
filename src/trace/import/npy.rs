//! numpy arrays: a directory of .npy files, or an .npz archive of them.
//!
//! Read are C-ordered arrays of f8, f4, f2, i4, u4 and i8, little-endian, in archives that `numpy.savez` wrote; a compressed
//! member is listed as such. An array called `tokens` is the token ids.
//! Formats: numpy.lib.format (versions 1 to 3) and PKWARE's APPNOTE (central directory, zip64).

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{About, Item, Source, whole};
use crate::error::{Error, Result};
use crate::op::{Data, HostTensor};
use crate::trace::store::file::open_regular;

pub struct Arrays {
    about: About,
    items: Vec<Item>,
    arrays: Vec<Array>,
}

/// Where an array's values are.
struct Array {
    path: PathBuf,
    offset: u64,
    dtype: Type,
    shape: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Type {
    F64,
    F32,
    F16,
    I32,
    U32,
    I64,
}

/// A region of a file that should be a .npy file.
struct Member {
    label: String,
    path: PathBuf,
    offset: u64,
    length: u64,
}

impl Arrays {
    pub fn open(path: &Path) -> Result<Self> {
        let mut about = About { program: "numpy".into(), ..About::default() };
        let members = if path.is_dir() { files(path, &mut about)? } else { archive(path, &mut about)? };
        let (mut items, mut arrays) = (Vec::new(), Vec::new());
        for member in members {
            match Array::open(&member)? {
                Ok(array) if member.label == "tokens" => match array.tokens() {
                    Ok(tokens) => about.tokens = tokens,
                    Err(e) => about.other.push(format!("tokens: {e}")),
                },
                Ok(array) => {
                    items.push(Item { label: member.label, shape: array.shape.clone() });
                    arrays.push(array);
                }
                Err(why) => about.other.push(format!("{}: {why}", member.label)),
            }
        }
        Ok(Self { about, items, arrays })
    }
}

impl Source for Arrays {
    fn about(&self) -> &About {
        &self.about
    }
    fn items(&self) -> &[Item] {
        &self.items
    }
    fn read(&mut self, i: usize) -> Result<HostTensor> {
        self.arrays[i].read()
    }
}

fn files(dir: &Path, about: &mut About) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match name.strip_suffix(".npy") {
            Some(label) => {
                let length = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
                members.push(Member { label: label.into(), path, offset: 0, length });
            }
            None => about.other.push(format!("{name}: not a .npy file")),
        }
    }
    members.sort_by(|a, b| a.label.cmp(&b.label));
    Ok(members)
}

// ---------------------------------------------------------------------------------------------------------------------
// .npy

impl Array {
    /// Reads the header of a member; the inner error is a reason to leave this array out.
    fn open(member: &Member) -> Result<Result<Self, String>> {
        let path = &member.path;
        let mut file = open_regular(path)?;
        let wrong = |what: &str| Error::input(format!("{}: {}: {what}", path.display(), member.label));
        let mut head = [0; 12];
        let take = member.length.min(12) as usize;
        file.seek(SeekFrom::Start(member.offset)).map_err(|e| Error::io(path, e))?;
        file.read_exact(&mut head[..take]).map_err(|e| Error::io(path, e))?;
        if take < 12 || head[..6] != *b"\x93NUMPY" {
            return Err(wrong("does not start as a .npy file does"));
        }
        // Version 1 has a u16 for the header's length, later versions a u32.
        let (size, start) = match head[6] {
            1 => (u16::from_le_bytes([head[8], head[9]]) as u64, 10),
            2 | 3 => (u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as u64, 12),
            v => return Ok(Err(format!("format version {v}; read are 1 to 3"))),
        };
        // numpy itself refuses headers over 10,000 bytes.
        if size > 65_536 || start + size > member.length {
            return Err(wrong(&format!("a header of {size} bytes in {} bytes", member.length)));
        }
        let mut text = vec![0; size as usize];
        file.seek(SeekFrom::Start(member.offset + start)).map_err(|e| Error::io(path, e))?;
        file.read_exact(&mut text).map_err(|e| Error::io(path, e))?;
        let text = String::from_utf8_lossy(&text);
        let (dtype, shape) = match parse(&text) {
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        let count = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
        let bytes = count.and_then(|n| n.checked_mul(dtype.bytes()));
        let have = member.length - start - size;
        if bytes != Some(have) {
            return Err(wrong(&format!("{dtype:?} {shape:?} in {have} bytes of values")));
        }
        Ok(Ok(Self { path: path.clone(), offset: member.offset + start + size, dtype, shape }))
    }

    fn read(&self) -> Result<HostTensor> {
        let io = |e| Error::io(&self.path, e);
        let count: usize = self.shape.iter().product();
        let mut file = open_regular(&self.path)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(io)?;
        let mut bytes = Vec::new();
        let wanted = count as u64 * self.dtype.bytes();
        file.take(wanted).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 != wanted {
            return Err(Error::input(format!("{}: it changed while it was read", self.path.display())));
        }
        let (by2, by4, by8) = (bytes.as_chunks::<2>().0, bytes.as_chunks::<4>().0, bytes.as_chunks::<8>().0);
        // Ids go through f64, which holds every one of them; what is no id is refused where it is used.
        let data = match self.dtype {
            Type::F64 => Data::F64(by8.iter().map(|b| f64::from_le_bytes(*b)).collect()),
            Type::F32 => Data::F32(by4.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Type::F16 => Data::F32(by2.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()),
            Type::I32 => Data::F64(by4.iter().map(|b| i32::from_le_bytes(*b) as f64).collect()),
            Type::I64 => Data::F64(by8.iter().map(|b| i64::from_le_bytes(*b) as f64).collect()),
            Type::U32 => Data::U32(by4.iter().map(|b| u32::from_le_bytes(*b)).collect()),
        };
        Ok(HostTensor { shape: self.shape.clone(), data })
    }

    fn tokens(&self) -> Result<Vec<u32>> {
        let values = self.read()?.to_f64();
        let id = |x: f64| whole(x).ok_or_else(|| Error::input(format!("{x} is no token id")));
        values.into_iter().map(id).collect()
    }
}

impl Type {
    fn bytes(self) -> u64 {
        match self {
            Type::F16 => 2,
            Type::F32 | Type::I32 | Type::U32 => 4,
            Type::F64 | Type::I64 => 8,
        }
    }
}

/// Type and shape from a header such as `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
fn parse(text: &str) -> Result<(Type, Vec<usize>), String> {
    let after = |key: &str| {
        let rest = text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
        rest.ok_or_else(|| format!("its header has no {key}"))
    };
    let descr: String = after("descr")?.chars().take_while(|c| !matches!(c, ',' | '}')).collect();
    let dtype = match descr.trim().trim_matches('\'') {
        "<f8" => Type::F64,
        "<f4" => Type::F32,
        "<f2" => Type::F16,
        "<i4" => Type::I32,
        "<u4" => Type::U32,
        "<i8" => Type::I64,
        other => return Err(format!("type {other}; read are <f8, <f4, <f2, <i4, <u4 and <i8")),
    };
    let inside = after("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).map(|(inside, _)| inside);
    let inside = inside.ok_or("its shape is no tuple")?;
    let dims = inside.split(',').map(str::trim).filter(|d| !d.is_empty());
    let shape: Vec<usize> =
        dims.map(|d| d.parse().map_err(|_| format!("`{d}` is no dimension"))).collect::<Result<_, _>>()?;
    if shape.len() > 8 {
        return Err(format!("{} dimensions", shape.len()));
    }
    if after("fortran_order")?.starts_with("True") && shape.len() > 1 {
        return Err("Fortran order; save it with numpy.ascontiguousarray".into());
    }
    Ok((dtype, shape))
}

// ---------------------------------------------------------------------------------------------------------------------
// .npz: a zip archive whose members are stored

/// The largest central directory that is read: a hundred thousand members.
const MAX_DIRECTORY: u64 = 16 << 20;

/// Little-endian numbers out of bytes; `None` past their end.
struct Bytes<'a>(&'a [u8]);
impl Bytes<'_> {
    fn number(&self, at: usize, size: usize) -> Option<u64> {
        let bytes = self.0.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |n, b| n << 8 | *b as u64))
    }
}

fn archive(path: &Path, about: &mut About) -> Result<Vec<Member>> {
    let io = |e| Error::io(path, e);
    let wrong = |what: &str| Error::input(format!("{}: not an .npz archive: {what}", path.display()));
    let mut file = open_regular(path)?;
    let length = file.metadata().map_err(io)?.len();
    let mut read = |at: u64, size: u64| -> Result<Vec<u8>> {
        if size > MAX_DIRECTORY || at.checked_add(size).is_none_or(|end| end > length) {
            return Err(wrong(&format!("{size} bytes at {at} of {length}")));
        }
        let mut bytes = vec![0; size as usize];
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)).map_err(io)?;
        Ok(bytes)
    };

    // The end record is the last 22 bytes, or further up if a comment follows it.
    let tail_at = length.saturating_sub(22 + 65_535);
    let tail = read(tail_at, length - tail_at)?;
    let end = tail.windows(4).rposition(|w| w == b"PK\x05\x06").ok_or_else(|| wrong("no end record"))?;
    let record = Bytes(&tail[end..]);
    let short = || wrong("cut short");
    let mut size = record.number(12, 4).ok_or_else(short)?;
    let mut at = record.number(16, 4).ok_or_else(short)?;
    record.number(20, 2).ok_or_else(short)?;
    if at == u32::MAX as u64 || size == u32::MAX as u64 {
        let locator = end.checked_sub(20).map(|at| Bytes(&tail[at..end])).ok_or_else(short)?;
        let record = read(locator.number(8, 8).ok_or_else(short)?, 56)?;
        size = Bytes(&record).number(40, 8).ok_or_else(short)?;
        at = Bytes(&record).number(48, 8).ok_or_else(short)?;
    }

    let directory = read(at, size)?;
    let mut members = Vec::new();
    let mut rest = &directory[..];
    while rest.starts_with(b"PK\x01\x02") {
        let entry = Bytes(rest);
        let n = |at, size| entry.number(at, size).ok_or_else(short);
        let (flags, method) = (n(8, 2)?, n(10, 2)?);
        let (name, extra, comment) = (n(28, 2)? as usize, n(30, 2)? as usize, n(32, 2)? as usize);
        let (mut packed, mut full, mut local) = (n(20, 4)?, n(24, 4)?, n(42, 4)?);
        let text = rest.get(46..46 + name).ok_or_else(short)?;
        let label = String::from_utf8_lossy(text).into_owned();
        let extras = rest.get(46 + name..46 + name + extra).ok_or_else(short)?;
        widen(extras, [&mut full, &mut packed, &mut local]);
        rest = rest.get(46 + name + extra + comment..).ok_or_else(short)?;
        let Some(stem) = label.strip_suffix(".npy") else {
            about.other.push(format!("{label}: not a .npy file"));
            continue;
        };
        if method != 0 || flags & 1 != 0 {
            about.other.push(format!("{label}: compressed; read are archives of numpy.savez, not of savez_compressed"));
            continue;
        }
        // The local header repeats the name and has extras of its own; the values follow it.
        let header = read(local, 30)?;
        let header = Bytes(&header);
        let (name, extra) = (header.number(26, 2).ok_or_else(short)?, header.number(28, 2).ok_or_else(short)?);
        let offset = local + 30 + name + extra;
        if packed != full || offset.checked_add(full).is_none_or(|end| end > length) {
            return Err(wrong(&format!("{label}: {full} bytes at {offset} of {length}")));
        }
        members.push(Member { label: stem.to_string(), path: path.into(), offset, length: full });
    }
    Ok(members)
}

/// Replaces those of `fields` that do not fit 32 bits by what the zip64 extra field says, which lists them in this order.
fn widen(extras: &[u8], fields: [&mut u64; 3]) {
    let extras = Bytes(extras);
    let mut at = 0;
    while let (Some(id), Some(size)) = (extras.number(at, 2), extras.number(at + 2, 2)) {
        if id == 1 {
            let mut from = at + 4;
            for field in fields {
                if *field == u32::MAX as u64
                    && let Some(wide) = extras.number(from, 8)
                {
                    *field = wide;
                    from += 8;
                }
            }
            return;
        }
        at += 4 + size as usize;
    }
}
