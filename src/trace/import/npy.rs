//! numpy arrays: a directory of .npy files, or an .npz archive of them as `numpy.savez` and `numpy.savez_compressed` write it.
//!
//! - Read are little-endian arrays of the [`TYPES`], in C or in Fortran order. An array called `tokens` is the token ids.
//! - What an archive says of sizes is not believed: a member is read as a stream, nothing is allocated before its bytes are
//!   there, and its length and checksum have to be the stated ones at its end. What all members unpack to has a limit.
//! - Names of members are compared with names of stages. They never become paths.
//!
//! The format is numpy.lib.format, versions 1 to 3; rawzip reads the archive's structure and flate2 inflates.

use std::fmt::Display;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use flate2::read::DeflateDecoder;
use half::{bf16, f16};
use rawzip::{CompressionMethod, FileReader, RECOMMENDED_BUFFER_SIZE, ZipArchive, ZipArchiveEntryWayfinder};

use super::{About, Item, Source, whole};
use crate::error::{Error, Result};
use crate::files::open_regular;
use crate::op::{Data, HostTensor};
use crate::text::{printable, printable_whole};

/// How many members an archive may have.
const MAX_MEMBERS: usize = 100_000;
/// Bytes that the arrays of any archive may unpack to.
const MAX_UNPACKED: u64 = 256 << 20;
/// Beyond that, how many times its own size an archive may unpack to. Deflate can reach 1032, activations hardly 2.
const MAX_RATIO: u64 = 100;
/// The longest header that is read; numpy itself refuses one over 10,000 bytes.
const MAX_HEADER: usize = 65_536;
const MAX_DIMENSIONS: usize = 8;

/// An element type: numpy's name, bytes an element, and how little-endian bytes become values.
type Type = (&'static str, usize, fn(&[u8]) -> Data);

/// The types that are read. Ids go through f64, which holds every u32; what is no id is refused where it is used.
/// numpy knows no bfloat16, and calls what the package ml_dtypes adds two bytes of no type, `V2`.
const TYPES: [Type; 8] = [
    ("<f8", 8, |bytes| Data::F64(each(bytes, f64::from_le_bytes))),
    ("<f4", 4, |bytes| Data::F32(each(bytes, f32::from_le_bytes))),
    ("<f2", 2, |bytes| Data::F32(each(bytes, |b| f16::from_le_bytes(b).to_f32()))),
    ("<V2", 2, |bytes| Data::F32(each(bytes, |b| bf16::from_le_bytes(b).to_f32()))),
    ("|V2", 2, |bytes| Data::F32(each(bytes, |b| bf16::from_le_bytes(b).to_f32()))),
    ("<i4", 4, |bytes| Data::F64(each(bytes, |b| i32::from_le_bytes(b) as f64))),
    ("<i8", 8, |bytes| Data::F64(each(bytes, |b| i64::from_le_bytes(b) as f64))),
    ("<u4", 4, |bytes| Data::U32(each(bytes, u32::from_le_bytes))),
];

fn each<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|b| value(*b)).collect()
}

pub struct Arrays {
    about: About,
    items: Vec<Item>,
    arrays: Vec<Array>,
}

/// A .npy file, alone or in an archive.
struct Member {
    /// For messages: the file, and the member if it is an archive.
    name: String,
    place: Place,
    /// How many bytes it says it has.
    length: u64,
}

enum Place {
    File(PathBuf),
    Archive { archive: Rc<ZipArchive<FileReader>>, at: ZipArchiveEntryWayfinder, deflated: bool },
}

struct Array {
    member: Member,
    /// Of the first value, in the member.
    offset: u64,
    ty: &'static Type,
    shape: Vec<usize>,
    fortran_order: bool,
}

impl Arrays {
    pub fn open(path: &Path) -> Result<Self> {
        let mut about = About { program: "numpy".into(), ..About::default() };
        let members = if path.is_dir() { files(path, &mut about)? } else { archive(path, &mut about)? };
        let (mut items, mut arrays) = (Vec::new(), Vec::new());
        for (label, member) in members {
            match Array::open(member)? {
                Ok(array) if label == "tokens" => match array.tokens() {
                    Ok(tokens) => about.tokens = tokens,
                    Err(e) => about.other.push(format!("tokens: {e}")),
                },
                Ok(array) => {
                    items.push(Item { label, shape: array.shape.clone(), ..Item::default() });
                    arrays.push(array);
                }
                Err(why) => about.other.push(format!("{label}: {why}")),
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

/// The .npy files of a directory, with their labels.
fn files(dir: &Path, about: &mut About) -> Result<Vec<(String, Member)>> {
    let mut members = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match name.strip_suffix(".npy") {
            Some(label) => {
                let length = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
                let name = printable_whole(&path.display().to_string());
                members.push((label.to_string(), Member { name, place: Place::File(path), length }));
            }
            None => about.other.push(format!("{name}: not a .npy file")),
        }
    }
    members.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(members)
}

/// The .npy members of an archive, with their labels.
fn archive(path: &Path, about: &mut About) -> Result<Vec<(String, Member)>> {
    let name = printable_whole(&path.display().to_string());
    let wrong = |what: &dyn Display| Error::input(format!("{name}: not an .npz archive: {what}"));
    let file = open_regular(path, "an .npz archive")?;
    let limit = file.metadata().map_err(|e| Error::io(path, e))?.len().saturating_mul(MAX_RATIO).max(MAX_UNPACKED);
    let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
    let archive = Rc::new(ZipArchive::from_file(file, &mut buffer).map_err(|e| wrong(&e))?);
    let mut members = Vec::new();
    let mut unpacked = 0u64;
    let mut entries = archive.entries(&mut buffer);
    while let Some(entry) = entries.next_entry().map_err(|e| wrong(&e))? {
        let label = String::from_utf8_lossy(entry.file_path().as_ref()).into_owned();
        let method = entry.compression_method();
        let Some(stem) = label.strip_suffix(".npy") else {
            about.other.push(format!("{label}: not a .npy file"));
            continue;
        };
        let encrypted = if entry.flags().is_encrypted() { ", encrypted" } else { "" };
        if !encrypted.is_empty() || ![CompressionMethod::STORE, CompressionMethod::DEFLATE].contains(&method) {
            about
                .other
                .push(format!("{label}: expected a stored or deflated member, found method {method}{encrypted}"));
            continue;
        }
        let (at, length) = (entry.wayfinder(), entry.uncompressed_size_hint());
        let deflated = method == CompressionMethod::DEFLATE;
        unpacked = unpacked.saturating_add(length);
        let place = Place::Archive { archive: archive.clone(), at, deflated };
        members.push((stem.to_string(), Member { name: format!("{name}: {}", printable(&label)), place, length }));
        if unpacked > limit || members.len() > MAX_MEMBERS {
            return Err(Error::input(format!(
                "{name}: expected at most {MAX_MEMBERS} arrays that unpack to at most {limit} bytes, found {} of {unpacked} \
                 bytes and perhaps more; if they are what was meant, save them with numpy.savez, which does not compress",
                members.len(),
            )));
        }
    }
    Ok(members)
}

impl Member {
    fn wrong(&self, what: impl Display) -> Error {
        Error::input(format!("{}: {what}", self.name))
    }

    /// Its bytes, of which those of an archive end in an error unless they are as long as stated and have the checksum.
    fn bytes(&self) -> Result<Box<dyn Read + '_>> {
        Ok(match &self.place {
            Place::File(path) => Box::new(open_regular(path, "a .npy file")?),
            Place::Archive { archive, at, deflated } => {
                let entry = archive.get_entry(*at).map_err(|e| self.wrong(e))?;
                match deflated {
                    true => Box::new(entry.verifying_reader(DeflateDecoder::new(entry.reader()))),
                    false => Box::new(entry.verifying_reader(entry.reader())),
                }
            }
        })
    }
}

/// A .npy header, which is a Python dictionary such as `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
#[derive(serde::Deserialize)]
struct Header {
    /// A type's name, or a list of fields.
    descr: serde_json::Value,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads it as the JSON that it is but for quotes, constants, tuples and a comma behind the last entry.
    fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let mut json = String::with_capacity(text.len());
        for part in text.split(',') {
            if !json.is_empty() && !part.trim_start().starts_with([')', ']', '}']) {
                json.push(',');
            }
            json += part;
        }
        let json = json.replace('\'', "\"").replace('(', "[").replace(')', "]");
        serde_json::from_str(&json.replace("False", "false").replace("True", "true"))
    }
}

impl Array {
    /// Reads the header of a member; the inner error is a reason to leave this array out.
    fn open(member: Member) -> Result<Result<Self, String>> {
        let cut_short =
            |e: io::Error| member.wrong(format_args!("a .npy file of {} bytes is expected: {e}", member.length));
        let mut bytes = member.bytes()?;
        let mut take = |n: usize| {
            let mut taken = vec![0; n];
            bytes.read_exact(&mut taken).map(|()| taken).map_err(cut_short)
        };
        let magic = take(8)?;
        if magic[..6] != *b"\x93NUMPY" {
            return Err(member.wrong("it does not start as a .npy file does"));
        }
        // Version 1 has a u16 for the header's length, later versions a u32.
        let width = match magic[6] {
            1 => 2,
            2 | 3 => 4,
            v => return Ok(Err(format!("expected format version 1 to 3, found {v}"))),
        };
        let size = take(width)?.iter().rev().fold(0, |n, byte| n << 8 | *byte as usize);
        if size > MAX_HEADER {
            return Err(member.wrong(format_args!("expected a header of at most {MAX_HEADER} bytes, found {size}")));
        }
        let text = take(size)?;
        drop(bytes);
        let header = match Header::parse(&String::from_utf8_lossy(&text)) {
            Ok(header) => header,
            Err(e) => return Ok(Err(format!("its header is not a numpy array's: {e}"))),
        };
        let Some(ty) = TYPES.iter().find(|ty| header.descr == ty.0) else {
            let names = TYPES.map(|ty| ty.0).join(", ");
            return Ok(Err(format!("expected one of the types {names}, found {}", header.descr)));
        };
        let Header { shape, fortran_order, .. } = header;
        if shape.len() > MAX_DIMENSIONS {
            return Ok(Err(format!("expected at most {MAX_DIMENSIONS} dimensions, found {}", shape.len())));
        }
        let offset = (8 + width + size) as u64;
        let expected = shape.iter().try_fold(ty.1 as u64, |n, d| n.checked_mul(*d as u64));
        if expected.and_then(|n| n.checked_add(offset)) != Some(member.length) {
            let found = member.length.saturating_sub(offset);
            return Err(member.wrong(format_args!("expected the values of {} {shape:?}, found {found} bytes", ty.0)));
        }
        Ok(Ok(Self { member, offset, ty, shape, fortran_order }))
    }

    fn read(&self) -> Result<HostTensor> {
        let mut bytes = self.member.bytes()?;
        let mut read = |n: u64, out: &mut dyn io::Write| match io::copy(&mut bytes.by_ref().take(n), out) {
            Ok(found) if found == n => Ok(()),
            Ok(found) => Err(self.member.wrong(format_args!("expected {n} more bytes, found {found}"))),
            Err(e) => Err(self.member.wrong(e)),
        };
        let mut values = Vec::new();
        read(self.offset, &mut io::sink())?;
        read(self.member.length - self.offset, &mut values)?;
        if self.fortran_order {
            values = row_major(&values, self.ty.1, &self.shape);
        }
        Ok(HostTensor { shape: self.shape.clone(), data: self.ty.2(&values) })
    }

    fn tokens(&self) -> Result<Vec<u32>> {
        let id = |x: f64| whole(x).ok_or_else(|| Error::input(format!("{x} is no token id")));
        self.read()?.to_f64().into_iter().map(id).collect()
    }
}

/// Elements of `size` bytes, whose first index runs fastest, in the order in which the last one does.
fn row_major(bytes: &[u8], size: usize, shape: &[usize]) -> Vec<u8> {
    let count = bytes.len() / size;
    let mut out = Vec::with_capacity(bytes.len());
    for mut row_major in 0..count {
        let (mut column_major, mut stride) = (0, count);
        for extent in shape.iter().rev() {
            stride /= extent;
            column_major += row_major % extent * stride;
            row_major /= extent;
        }
        out.extend_from_slice(&bytes[column_major * size..][..size]);
    }
    out
}
