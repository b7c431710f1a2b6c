//! Writes version 3 files: metadata and tensor descriptions first, then data as a callback produces it, so that gigabytes
//! never sit in memory. What it writes, the reader accepts: the same checks come before the first byte.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use super::read::{self, MAX_ARRAY_DEPTH, MAX_ENTRIES, MAX_NAME};
use super::value::{Array, Metadata, Value};
use crate::atomic::file::AtomicFile;
use crate::op::GgmlType;
use crate::text::{printable, printable_whole};
use crate::{Error, Result};

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The tensor's name.
    pub name: String,
    /// Its type.
    pub ty: GgmlType,
    /// 1 to 4 dimensions, the contiguous one first.
    pub dims: Vec<u64>,
}

impl TensorSpec {
    /// A tensor `name` of `dims`, the contiguous axis first.
    pub fn new(name: &str, ty: GgmlType, dims: &[u64]) -> Self {
        Self { name: name.into(), ty, dims: dims.into() }
    }

    /// Bytes of its data.
    ///
    /// # Errors
    /// If a dimension is 0, a row is not whole blocks, or the size overflows.
    pub fn bytes(&self) -> Result<u64> {
        read::tensor_bytes(self.ty, &self.dims).map_err(|e| error(self, e))
    }
}

/// A failure to write.
fn io(tensor: &TensorSpec, error: std::io::Error) -> Error {
    Error::io_of(format_args!("tensor {}", printable(&tensor.name)), &error)
}

fn error(tensor: &TensorSpec, message: impl std::fmt::Display) -> Error {
    Error::input(format!("tensor {}: {message}", printable(&tensor.name)))
}

/// Takes the data of one tensor, in ggml's layout, in pieces of any size.
pub struct Sink<'a> {
    out: &'a mut dyn Write,
    tensor: &'a TensorSpec,
    bytes: u64,
    left: u64,
}

impl Sink<'_> {
    /// Appends `data` to the tensor.
    ///
    /// # Errors
    /// If that is more than the tensor's shape takes, or writing fails.
    pub fn put(&mut self, data: &[u8]) -> Result<()> {
        self.left = self.left.checked_sub(data.len() as u64).ok_or_else(|| {
            error(
                self.tensor,
                format_args!("expected {} bytes of data, found {} more", self.bytes, data.len() as u64 - self.left),
            )
        })?;
        self.out.write_all(data).map_err(|e| io(self.tensor, e))
    }
}

/// Writes a file at `path`, whole or not at all. `fill` is called once a tensor, in order, and puts its data into the sink.
///
/// # Errors
/// If keys, names, shapes or the alignment are ones that the reader would refuse, if `fill` fails or puts another number of
/// bytes than the shape takes, or if writing fails. Nothing is left at `path` then but what was there.
pub fn write(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorSpec],
    fill: impl FnMut(&TensorSpec, &mut Sink) -> Result<()>,
) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    let named = |m: String| format!("{}: {m}", printable_whole(&path.display().to_string()));
    write_to(&mut file, metadata, tensors, fill).map_err(|e| if let Error::Usage(_) = e { e } else { e.map(named) })?;
    file.commit()
}

/// Like [`write()`], into anything.
///
/// # Errors
/// Like [`write()`]; what was written by then is no file.
pub fn write_to(
    out: &mut dyn Write,
    metadata: &Metadata,
    tensors: &[TensorSpec],
    mut fill: impl FnMut(&TensorSpec, &mut Sink) -> Result<()>,
) -> Result<()> {
    let alignment = read::alignment(metadata)?;
    let (header, sizes) = header(metadata, tensors, alignment)?;
    out.write_all(&header).map_err(|e| Error::io_of("header", &e))?;
    for (tensor, bytes) in tensors.iter().zip(sizes) {
        let mut sink = Sink { out, tensor, bytes, left: bytes };
        fill(tensor, &mut sink)?;
        if sink.left > 0 {
            return Err(error(tensor, format_args!("expected {bytes} bytes of data, found {}", bytes - sink.left)));
        }
        pad(out, bytes, alignment).map_err(|e| io(tensor, e))?;
    }
    out.flush().map_err(|e| Error::io_of("its end", &e))
}

/// The padded header, and the bytes of each tensor.
fn header(metadata: &Metadata, tensors: &[TensorSpec], alignment: u64) -> Result<(Vec<u8>, Vec<u64>)> {
    for (what, count) in [("tensors", tensors.len()), ("keys", metadata.len())] {
        if count as u64 > MAX_ENTRIES {
            return Err(Error::input(format!("expected at most {MAX_ENTRIES} {what}, found {count}")));
        }
    }
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        if key.is_empty() || key.len() as u64 > MAX_NAME {
            return Err(Error::input(format!(
                "key {}: expected 1 to {MAX_NAME} bytes, found {}",
                printable(key),
                key.len()
            )));
        }
        put_string(&mut out, key);
        put_value(&mut out, value).map_err(|e| Error::input(format!("key {}: {e}", printable(key))))?;
    }
    let mut sizes = Vec::new();
    let mut names = HashSet::new();
    let mut offset = 0u64;
    for t in tensors {
        if t.name.is_empty() || t.name.len() as u64 > MAX_NAME {
            return Err(error(t, format_args!("expected a name of 1 to {MAX_NAME} bytes, found {}", t.name.len())));
        }
        if !names.insert(t.name.as_str()) {
            return Err(error(t, "expected each tensor once, found it twice"));
        }
        if !(1..=4).contains(&t.dims.len()) {
            return Err(error(t, format_args!("expected 1 to 4 dimensions, found {}", t.dims.len())));
        }
        let bytes = t.bytes()?;
        put_string(&mut out, &t.name);
        out.extend((t.dims.len() as u32).to_le_bytes());
        t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend((t.ty as u32).to_le_bytes());
        out.extend(offset.to_le_bytes());
        sizes.push(bytes);
        offset = offset
            .checked_add(bytes)
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .filter(|&end| i64::try_from(end).is_ok())
            .ok_or_else(|| error(t, "expected a file whose size fits 63 bits"))?;
    }
    let len = out.len() as u64;
    out.resize(len.next_multiple_of(alignment) as usize, 0);
    Ok((out, sizes))
}

fn pad(out: &mut dyn Write, written: u64, alignment: u64) -> std::io::Result<()> {
    let zeros = [0; 4096];
    let mut left = written.next_multiple_of(alignment) - written;
    while left > 0 {
        let n = left.min(zeros.len() as u64);
        out.write_all(&zeros[..n as usize])?;
        left -= n;
    }
    Ok(())
}

fn put_string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) -> Result<(), String> {
    out.extend((value.value_type() as u32).to_le_bytes());
    match value {
        Value::U8(x) => out.extend(x.to_le_bytes()),
        Value::I8(x) => out.extend(x.to_le_bytes()),
        Value::U16(x) => out.extend(x.to_le_bytes()),
        Value::I16(x) => out.extend(x.to_le_bytes()),
        Value::U32(x) => out.extend(x.to_le_bytes()),
        Value::I32(x) => out.extend(x.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(x) => out.push((*x).into()),
        Value::String(x) => put_string(out, x),
        Value::Array(x) => put_array(out, x, 1)?,
        Value::U64(x) => out.extend(x.to_le_bytes()),
        Value::I64(x) => out.extend(x.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
    }
    Ok(())
}

fn put_array(out: &mut Vec<u8>, array: &Array, depth: u32) -> Result<(), String> {
    if depth > MAX_ARRAY_DEPTH {
        return Err(format!("expected arrays nested at most {MAX_ARRAY_DEPTH} deep"));
    }
    out.extend((array.element_type() as u32).to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::Bool(v) => v.iter().for_each(|&x| out.push(x.into())),
        Array::String(v) => v.iter().for_each(|x| put_string(out, x)),
        Array::Array(v) => v.iter().try_for_each(|x| put_array(out, x, depth + 1))?,
        Array::U64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::gguf::{Gguf, TensorInfo};

    fn to_vec(
        metadata: &Metadata,
        tensors: &[TensorSpec],
        fill: impl FnMut(&TensorSpec, &mut Sink) -> Result<()>,
    ) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        write_to(&mut out, metadata, tensors, fill).map(|()| out)
    }

    fn zeros(t: &TensorSpec, sink: &mut Sink) -> Result<()> {
        sink.put(&vec![0; t.bytes()? as usize])
    }

    #[test]
    fn demo_model_written_again_is_the_same_file() {
        let bytes: &[u8] = include_bytes!("../../models/demo-moe-Q4_K_M.gguf");
        let g = Gguf::from_bytes("demo", Arc::new(bytes)).unwrap();
        let specs: Vec<_> = g.tensors().iter().map(|t: &TensorInfo| TensorSpec::new(&t.name, t.ty, &t.dims)).collect();
        let again = to_vec(&g.metadata, &specs, |spec, sink| {
            for piece in g.data(g.tensor(&spec.name).unwrap()).chunks(1000) {
                sink.put(piece)?;
            }
            Ok(())
        });
        assert!(again.unwrap() == bytes, "ggml's writer and this one lay a file out alike");
    }

    #[test]
    fn every_value_type_comes_back() {
        let mut m = Metadata::new("m");
        let nested = Array::Array(vec![Array::Bool(vec![true, false]), Array::Array(vec![Array::U8(vec![])])]);
        for (i, value) in [
            Value::U8(u8::MAX),
            Value::I8(i8::MIN),
            Value::U16(u16::MAX),
            Value::I16(i16::MIN),
            Value::U32(u32::MAX),
            Value::I32(i32::MIN),
            Value::F32(f32::MIN_POSITIVE / 2.0),
            Value::Bool(true),
            Value::String("ü\0".into()),
            Value::U64(u64::MAX),
            Value::I64(i64::MIN),
            Value::F64(-0.0),
            Value::Array(Array::U8(vec![1, 2])),
            Value::Array(Array::I8(vec![-1])),
            Value::Array(Array::U16(vec![3])),
            Value::Array(Array::I16(vec![-3])),
            Value::Array(Array::U32(vec![4])),
            Value::Array(Array::I32(vec![-4])),
            Value::Array(Array::F32(vec![0.5, f32::INFINITY])),
            Value::Array(Array::String(vec!["".into(), "x".into()])),
            Value::Array(Array::U64(vec![5])),
            Value::Array(Array::I64(vec![-5])),
            Value::Array(Array::F64(vec![0.25])),
            Value::Array(nested),
        ]
        .into_iter()
        .enumerate()
        {
            m.set(&format!("k{i}"), value);
        }
        let bytes = to_vec(&m, &[TensorSpec::new("t", GgmlType::F32, &[3])], zeros).unwrap();
        assert_eq!(Gguf::from_bytes("m", Arc::new(bytes)).unwrap().metadata, m);
    }

    #[test]
    fn stated_alignment_is_kept() {
        let mut m = Metadata::new("m");
        m.set("general.alignment", Value::U32(8192));
        let specs = [TensorSpec::new("a", GgmlType::I8, &[5]), TensorSpec::new("b", GgmlType::Q4_0, &[32, 2])];
        let bytes = to_vec(&m, &specs, zeros).unwrap();
        assert_eq!(bytes.len(), 3 * 8192);
        let g = Gguf::from_bytes("m", Arc::new(bytes)).unwrap();
        assert_eq!(g.tensors().iter().map(|t| t.offset).collect::<Vec<_>>(), [8192, 16384]);
    }

    #[test]
    fn what_the_reader_would_refuse_is_not_written() {
        let good = Metadata::new("m");
        let mut odd = Metadata::new("m");
        odd.set("general.alignment", Value::U32(24));
        let mut deep = Array::U8(vec![]);
        for _ in 0..4 {
            deep = Array::Array(vec![deep]);
        }
        let mut nested = Metadata::new("m");
        nested.set("n", Value::Array(deep));
        let t = |name, ty, dims: &[u64]| TensorSpec::new(name, ty, dims);
        let twice = [t("a", GgmlType::F32, &[1]), t("a", GgmlType::F32, &[2])];
        let cases: [(&Metadata, &[TensorSpec], &str); 7] = [
            (&odd, &[], "m: key general.alignment: expected a power of two from 1 to 16777216, found 24"),
            (&nested, &[], "key n: expected arrays nested at most 4 deep"),
            (&good, &twice, "tensor a: expected each tensor once, found it twice"),
            (&good, &[t("", GgmlType::F32, &[1])], "tensor : expected a name of 1 to 65535 bytes, found 0"),
            (&good, &[t("a", GgmlType::F32, &[])], "tensor a: expected 1 to 4 dimensions, found 0"),
            (
                &good,
                &[t("a", GgmlType::Q4_0, &[33])],
                "tensor a: expected rows of whole Q4_0 blocks of 32, found shape [33]",
            ),
            (
                &good,
                &[t("a", GgmlType::F32, &[1 << 40, 1 << 40])],
                "tensor a: expected a size that fits 63 bits, found shape [1099511627776, 1099511627776] of F32",
            ),
        ];
        for (metadata, tensors, message) in cases {
            assert_eq!(to_vec(metadata, tensors, zeros).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn wrong_amounts_of_data_are_refused_and_leave_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let specs = [TensorSpec::new("t", GgmlType::F32, &[2])];
        for (n, message) in [(7, "expected 8 bytes of data, found 7"), (9, "expected 8 bytes of data, found 1 more")] {
            let e = write(&path, &Metadata::new("m"), &specs, |_, sink| sink.put(&vec![0; n])).unwrap_err();
            assert_eq!(e.to_string(), format!("{}: tensor t: {message}", path.display()));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        write(&path, &Metadata::new("m"), &specs, zeros).unwrap();
        assert_eq!(Gguf::open(&path).unwrap().tensors().len(), 1);
    }
}
