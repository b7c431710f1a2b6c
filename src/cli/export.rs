//! `export`: one tensor of a GGUF file as numpy sees it, dequantized to f32.
//!
//! - Any tensor of any valid file, whatever its architecture. Quantized types and F16, BF16 are exact in f32. I8 to I64
//!   and F64 are given as their numeric values; what f32 must round is counted and said.
//! - Goes through the tensor in pieces of a few hundred KiB: memory does not grow with the tensor.
//! - The file appears whole or not at all.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::atomic::file::AtomicFile;
use crate::cli::common::ModelArg;
use crate::cli::{Outcome, output};
use crate::gguf::{Gguf, TensorInfo};
use crate::op::GgmlType;
use crate::quant;
use crate::text::printable;
use crate::trace::select::nearest;
use crate::{Error, Result, model};

/// Values that are converted at a time: a multiple of every block length.
const PIECE: usize = 1 << 16;

/// Write one tensor of a GGUF file as a numpy array of f32.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,
    /// The tensor's name in the file, such as blk.0.attn_q.weight
    #[arg(long, value_name = "NAME")]
    tensor: String,
    /// The .npy file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let gguf = model::open_gguf(args.model.model.as_deref())?;
    let tensor = gguf.tensor(&args.tensor).ok_or_else(|| unknown(&gguf, &args.tensor))?;
    if let Some(model) = gguf.path().filter(|model| same_file(model, &args.out)) {
        return Err(Error::usage(format!("--out {}: that is the model itself", model.display())));
    }
    let convert = converter(tensor.ty).ok_or_else(|| {
        Error::input(format!(
            "{}: tensor {}: expected a type that has a numeric value, found {}",
            gguf.name(),
            printable(&tensor.name),
            tensor.ty
        ))
    })?;
    let mut file = AtomicFile::create(&args.out)?;
    let rounded = write_npy(&mut file, tensor, gguf.data(tensor), convert, &args.out)?;
    file.commit()?;
    if rounded > 0 {
        output::remark(&format!(
            "warning: tensor {}: {rounded} of {} {} values are rounded: f32 does not hold them exactly",
            printable(&tensor.name),
            tensor.elements(),
            tensor.ty
        ));
    }
    Ok(Outcome::Ok)
}

fn unknown(gguf: &Gguf, name: &str) -> Error {
    let names: Vec<String> = gguf.tensors().iter().map(|t| printable(&t.name)).collect();
    let message = if names.is_empty() {
        "the file has no tensors".to_string()
    } else {
        format!("the nearest: {}", nearest(name, names.iter().map(String::as_str)))
    };
    Error::usage(format!("--tensor {}: no such tensor in {}; {message}", printable(name), gguf.name()))
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Converts whole blocks to f32 and counts the values that f32 does not hold exactly.
type Converter = fn(GgmlType, &[u8], &mut [f32]) -> Result<u64>;

fn converter(ty: GgmlType) -> Option<Converter> {
    use GgmlType::*;
    match ty {
        // Values up to 2^15 fit f32's 24 bits.
        I8 => Some(|_, bytes, out| Ok(numbers(bytes, out, |b| (i8::from_le_bytes(b).into(), true)))),
        I16 => Some(|_, bytes, out| Ok(numbers(bytes, out, |b| (i16::from_le_bytes(b).into(), true)))),
        I32 => Some(|_, bytes, out| {
            Ok(numbers(bytes, out, |b| {
                let x = i32::from_le_bytes(b);
                (x as f32, x as f32 as f64 == x as f64)
            }))
        }),
        I64 => Some(|_, bytes, out| {
            Ok(numbers(bytes, out, |b| {
                let x = i64::from_le_bytes(b);
                (x as f32, x as f32 as i128 == x as i128)
            }))
        }),
        F64 => Some(|_, bytes, out| {
            Ok(numbers(bytes, out, |b| {
                let x = f64::from_le_bytes(b);
                (x as f32, x.is_nan() || x as f32 as f64 == x)
            }))
        }),
        _ if quant::dequantize(ty, &[], &mut []).is_ok() => {
            Some(|ty, bytes, out| quant::dequantize(ty, bytes, out).map(|()| 0))
        }
        _ => None,
    }
}

/// Types without blocks: `N` bytes a value, which `value` turns into an f32 and whether that is exact.
fn numbers<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> (f32, bool)) -> u64 {
    let mut rounded = 0;
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        let (x, exact) = value(*b);
        *o = x;
        rounded += u64::from(!exact);
    }
    rounded
}

/// The header of a version 1.0 .npy file: the length of everything before the data is a multiple of 64.
/// Format: numpy.lib.format. `dims` are in GGUF's order, numpy's row-major shape is the reverse.
fn npy_header(dims: &[u64]) -> Vec<u8> {
    let order = if cfg!(target_endian = "little") { '<' } else { '>' };
    let mut shape: String = dims.iter().rev().map(|d| format!("{d}, ")).collect();
    if dims.len() > 1 {
        shape.truncate(shape.len() - 2); // a tuple of one keeps its comma
    } else {
        shape.truncate(shape.len() - 1);
    }
    let text = format!("{{'descr': '{order}f4', 'fortran_order': False, 'shape': ({shape}), }}");
    let total = (10 + text.len() + 1).next_multiple_of(64);
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(((total - 10) as u16).to_le_bytes()); // at most 4 numbers: fits
    header.extend(text.as_bytes());
    header.resize(total - 1, b' ');
    header.push(b'\n');
    header
}

/// Writes the whole array; returns how many values were rounded.
fn write_npy(out: &mut impl Write, tensor: &TensorInfo, data: &[u8], convert: Converter, path: &Path) -> Result<u64> {
    let io = |e| Error::io(path, e);
    out.write_all(&npy_header(&tensor.dims)).map_err(io)?;
    let ty = tensor.ty;
    let mut values = vec![0f32; PIECE.min(tensor.elements() as usize)];
    let mut progress = Progress::new(tensor.elements() * 4);
    let mut rounded = 0;
    for bytes in data.chunks(PIECE / ty.block_len() * ty.block_bytes()) {
        let values = &mut values[..bytes.len() / ty.block_bytes() * ty.block_len()];
        rounded += convert(ty, bytes, values)?;
        out.write_all(bytemuck::cast_slice(values)).map_err(io)?;
        progress.add(size_of_val(values) as u64);
    }
    Ok(rounded)
}

/// A bar on stderr, if that is a terminal, for what takes longer than a second.
struct Progress {
    bar: ProgressBar,
    began: Instant,
    shown: bool,
}

impl Progress {
    fn new(total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes} · {eta}") {
            bar.set_style(style);
        }
        Self { bar, began: Instant::now(), shown: false }
    }
    fn add(&mut self, bytes: u64) {
        if !self.shown && self.began.elapsed() > Duration::from_secs(1) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shown = true;
        }
        self.bar.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(ty: GgmlType, dims: &[u64]) -> TensorInfo {
        let blocks = dims.iter().product::<u64>() / ty.block_len() as u64;
        let bytes = blocks * ty.block_bytes() as u64;
        TensorInfo { name: "t".into(), ty, dims: dims.into(), offset: 0, bytes, part: 0 }
    }

    /// The values that are written, and how many of them were rounded.
    fn exported(tensor: &TensorInfo, data: &[u8]) -> (Vec<f32>, u64) {
        let mut out = Vec::new();
        let convert = converter(tensor.ty).unwrap();
        let rounded = write_npy(&mut out, tensor, data, convert, Path::new("x.npy")).unwrap();
        let values = &out[npy_header(&tensor.dims).len()..];
        (values.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect(), rounded)
    }

    #[test]
    fn header_is_numpys() {
        // Bytes that numpy 2 writes for zeros((3, 2), "<f4") and zeros(5, "<f4"), on a little-endian machine.
        let two = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }";
        let one = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (5,), }";
        for (dims, expected) in [(&[2u64, 3][..], &two[..]), (&[5], one)] {
            let header = npy_header(dims);
            assert_eq!(header.len(), 128);
            assert_eq!(&header[..expected.len()], expected);
            assert!(header[expected.len()..127].iter().all(|&b| b == b' ') && header[127] == b'\n');
        }
        assert_eq!(npy_header(&[u64::MAX; 4]).len() % 64, 0);
    }

    #[test]
    fn integers_and_f64_are_their_values_and_rounding_is_counted() {
        assert_eq!(exported(&info(GgmlType::I8, &[2]), &[0x80, 5]), (vec![-128.0, 5.0], 0));
        let i16s: Vec<u8> = [i16::MIN, 7].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(exported(&info(GgmlType::I16, &[2]), &i16s), (vec![-32768.0, 7.0], 0));
        let i32s: Vec<u8> = [i32::MIN, i32::MAX, (1 << 24) + 1].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(exported(&info(GgmlType::I32, &[3]), &i32s), (vec![-2147483648.0, 2147483648.0, 16777216.0], 2));
        let i64s: Vec<u8> = [i64::MIN, i64::MAX, -3].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(exported(&info(GgmlType::I64, &[3]), &i64s), (vec![-(2f32.powi(63)), 2f32.powi(63), -3.0], 1));
        let f64s: Vec<u8> = [0.1, 0.5, f64::INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(exported(&info(GgmlType::F64, &[3]), &f64s), (vec![0.1, 0.5, f32::INFINITY], 1));
    }

    #[test]
    fn pieces_join_without_a_seam() {
        // More than one piece, the last one short.
        let tensor = info(GgmlType::Q8_0, &[32, PIECE as u64 / 32 + 3]);
        let data: Vec<u8> = (0..tensor.bytes).map(|i| if i % 34 == 1 { 0x3c } else { (i % 31) as u8 }).collect();
        let mut whole = vec![0.0; tensor.elements() as usize];
        quant::dequantize(GgmlType::Q8_0, &data, &mut whole).unwrap();
        assert_eq!(exported(&tensor, &data), (whole, 0));
    }

    #[test]
    fn every_type_is_exported_or_refused() {
        for &ty in GgmlType::ALL {
            let refused = matches!(ty, GgmlType::Q8_1 | GgmlType::Q8_K); // activation formats, in no file
            assert_eq!(converter(ty).is_none(), refused, "{ty}");
            assert_eq!(PIECE % ty.block_len(), 0);
        }
    }
}
