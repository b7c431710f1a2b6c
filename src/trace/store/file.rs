//! safetensors files, one tensor at a time.
//!
//! Design:
//! - The header is the `safetensors` crate's, in both directions; it checks that the tensors fill the data without a gap
//!   and that each has the bytes that its shape needs. The data are streamed, so a file may be larger than memory.
//! - Reading is by plain reads, not by a mapping: a value is copied once either way, and a file that shrinks while it is
//!   read is an error instead of a signal.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{Error, Result};
use crate::files::{check_values, open_regular};
use crate::op::{Data, HostTensor};

/// The largest header that is read: the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// An open safetensors file whose header has been checked against its length.
pub struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Offset of the first byte of data.
    data: u64,
}

impl TensorFile {
    /// # Errors
    /// [`Error::Input`] if the file is unreadable or its header does not describe exactly the bytes that follow it.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let wrong = |what: String| Error::input(format!("{}: not a safetensors file: {what}", path.display()));
        let mut file = open_regular(path, "a safetensors file")?;
        let length = file.metadata().map_err(io)?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(|_| wrong(format!("{length} bytes, the length of its header needs 8")))?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER || size > length.saturating_sub(8) {
            return Err(wrong(format!("a header of {size} bytes in a file of {length}")));
        }
        let mut text = vec![0; size as usize];
        file.read_exact(&mut text).map_err(io)?;
        check_values(&text).map_err(|what| wrong(format!("a header of {size} bytes: {what}")))?;
        let header: Metadata = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let described = header.data_len() as u64;
        if described != length - 8 - size {
            return Err(wrong(format!("its header describes {described} bytes of data, it has {}", length - 8 - size)));
        }
        Ok(Self { path: path.into(), file, header, data: 8 + size })
    }

    /// The keys, in the order of the data.
    pub fn keys(&self) -> Vec<String> {
        self.header.offset_keys()
    }
    /// The text entries beside the tensors.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }
    pub fn info(&self, key: &str) -> Option<&TensorInfo> {
        self.header.info(key)
    }

    /// The values of `key`. f16 and bf16 become f32, which is exact; whole numbers become u32.
    ///
    /// # Errors
    /// If the key is absent, the type is none of these, a whole number is not a u32, or memory runs out.
    pub fn read(&mut self, key: &str) -> Result<HostTensor> {
        let Self { path, file, header, data } = self;
        let wrong = |what: String| Error::input(format!("{}: {key}: {what}", path.display()));
        let info = header.info(key).ok_or_else(|| wrong("no such tensor".into()))?;
        let mut raw = Raw { file, at: *data + info.data_offsets.0 as u64, count: info.shape.iter().product() };
        let failed = |e: std::io::Error| Error::io_of(format_args!("{}: {key}", path.display()), &e);
        let whole =
            |n: Option<u32>, found: String| n.ok_or_else(|| wrong(format!("{found} where ids (u32) are expected")));
        let values = match info.dtype {
            Dtype::F32 => {
                raw.read::<u32>().map(|v| Data::F32(v.into_iter().map(|b| f32::from_bits(b.to_le())).collect()))
            }
            Dtype::F64 => {
                raw.read::<u64>().map(|v| Data::F64(v.into_iter().map(|b| f64::from_bits(b.to_le())).collect()))
            }
            Dtype::U32 => raw.read::<u32>().map(|v| Data::U32(v.into_iter().map(u32::to_le).collect())),
            Dtype::F16 => raw
                .read::<u16>()
                .map(|v| Data::F32(v.into_iter().map(|b| half::f16::from_bits(b.to_le()).to_f32()).collect())),
            Dtype::BF16 => raw
                .read::<u16>()
                .map(|v| Data::F32(v.into_iter().map(|b| half::bf16::from_bits(b.to_le()).to_f32()).collect())),
            Dtype::I32 => {
                let ids = raw.read::<i32>().map_err(failed)?.into_iter().map(i32::to_le);
                let ids: Result<_> = ids.map(|i| whole(u32::try_from(i).ok(), i.to_string())).collect();
                Ok(Data::U32(ids?))
            }
            Dtype::I64 => {
                let ids = raw.read::<i64>().map_err(failed)?.into_iter().map(i64::to_le);
                let ids: Result<_> = ids.map(|i| whole(u32::try_from(i).ok(), i.to_string())).collect();
                Ok(Data::U32(ids?))
            }
            other => return Err(wrong(format!("type {other:?}; read are F64, F32, F16, BF16, U32, I32 and I64"))),
        };
        let data = values.map_err(failed)?;
        Ok(HostTensor { shape: info.shape.clone(), data })
    }
}

/// `count` numbers at `at`, as they lie in the file.
struct Raw<'f> {
    file: &'f mut File,
    at: u64,
    count: usize,
}

impl Raw<'_> {
    fn read<N: bytemuck::Pod>(&mut self) -> std::io::Result<Vec<N>> {
        let mut values: Vec<N> = Vec::new();
        values.try_reserve_exact(self.count).map_err(|e| std::io::Error::new(std::io::ErrorKind::OutOfMemory, e))?;
        values.resize(self.count, N::zeroed());
        self.file.seek(SeekFrom::Start(self.at))?;
        self.file.read_exact(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

/// The bytes in front of the data: the header's length and the header, padded with spaces to `room` bytes or, without one, to
/// a multiple of 8. `None` if it does not fit the room.
///
/// # Errors
/// If the tensors do not follow each other without a gap.
pub fn header(tensors: Vec<(String, TensorInfo)>, room: Option<usize>) -> Result<Option<Vec<u8>>> {
    let wrong = |e: &dyn std::fmt::Display| Error::cannot_run(format!("a safetensors header: {e}"));
    let metadata = Metadata::new(None, tensors).map_err(|e| wrong(&e))?;
    let text = serde_json::to_vec(&metadata).map_err(|e| wrong(&e))?;
    let size = 8 + text.len();
    let padded = room.unwrap_or_else(|| size.next_multiple_of(8));
    if size > padded {
        return Ok(None);
    }
    let mut bytes = ((padded - 8) as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes.resize(padded, b' ');
    Ok(Some(bytes))
}

/// The values as the file has them, little-endian.
pub fn le_bytes(data: &Data, range: std::ops::Range<usize>) -> std::borrow::Cow<'_, [u8]> {
    if cfg!(target_endian = "big") {
        std::borrow::Cow::Owned(match data {
            Data::F32(v) => v[range].iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::F64(v) => v[range].iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::U32(v) => v[range].iter().flat_map(|x| x.to_le_bytes()).collect(),
        })
    } else {
        std::borrow::Cow::Borrowed(match data {
            Data::F32(v) => bytemuck::cast_slice(&v[range]),
            Data::F64(v) => bytemuck::cast_slice(&v[range]),
            Data::U32(v) => bytemuck::cast_slice(&v[range]),
        })
    }
}

/// safetensors' name of the type.
pub fn dtype(data: &Data) -> Dtype {
    match data {
        Data::F32(_) => Dtype::F32,
        Data::F64(_) => Dtype::F64,
        Data::U32(_) => Dtype::U32,
    }
}
