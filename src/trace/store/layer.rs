//! One file of a trace while it is being written.
//!
//! Values are appended as they arrive, behind room for a header. At the end the file is either whole as it stands, when
//! every tensor came in one piece, or it is copied in order, a bounded piece at a time.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::PathBuf;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::file;
use crate::atomic::dir::AtomicDir;
use crate::error::{Error, Result};
use crate::op::Data;

/// Room for a header in front of the data: a layer has at most 25 tensors of about 150 bytes of header each.
const ROOM: usize = 8192;
/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// A file under way.
pub struct LayerFile {
    spill: PathBuf,
    target: PathBuf,
    /// The place that the file will have, for messages.
    shown: PathBuf,
    file: File,
    /// Where the next chunk goes.
    end: u64,
    tensors: Vec<Growing>,
}

/// A tensor that grows by rows.
struct Growing {
    key: String,
    dtype: Dtype,
    layout: RowLayout,
    chunks: Vec<Chunk>,
}

/// How the rows of a tensor lie.
#[derive(Clone, Debug, PartialEq)]
pub enum RowLayout {
    /// `[rows, inner…]`
    Rows { inner: Vec<usize> },
    /// `[heads, rows, cols]`, where later chunks have more columns.
    Heads { heads: usize },
}

struct Chunk {
    offset: u64,
    rows: usize,
    /// Columns of a chunk with heads; elements of a row otherwise.
    cols: usize,
}

impl Growing {
    /// Bytes of an element.
    fn element(&self) -> usize {
        self.dtype.bitsize() / 8
    }
    fn rows(&self) -> usize {
        self.chunks.iter().map(|c| c.rows).sum()
    }
    /// The most columns that a chunk has.
    fn cols(&self) -> usize {
        self.chunks.iter().map(|c| c.cols).max().unwrap_or(0)
    }
    fn shape(&self) -> Vec<usize> {
        match &self.layout {
            RowLayout::Rows { inner } => [&[self.rows()], &inner[..]].concat(),
            RowLayout::Heads { heads } => vec![*heads, self.rows(), self.cols()],
        }
    }
    fn bytes(&self) -> usize {
        self.shape().iter().product::<usize>() * self.element()
    }
}

impl LayerFile {
    /// A file that will be `name` in the directory.
    pub fn create(dir: &AtomicDir, name: &str) -> Result<Self> {
        let (target, shown) = (dir.path().join(name), dir.target().join(name));
        let spill = target.with_extension("spill");
        let open = File::options().read(true).write(true).create_new(true).open(&spill);
        let mut file = open.map_err(|e| Error::io(&shown, e))?;
        file.seek(SeekFrom::Start(ROOM as u64)).map_err(|e| Error::io(&shown, e))?;
        Ok(Self { spill, target, shown, file, end: ROOM as u64, tensors: Vec::new() })
    }

    /// Appends `rows` rows to `key`: the parts of `data` in the order in which they are to lie, head by head if it has heads.
    ///
    /// # Errors
    /// If the values have another type or layout than before, or the disk is full.
    pub fn append(
        &mut self,
        key: &str,
        layout: RowLayout,
        (rows, cols): (usize, usize),
        data: &Data,
        parts: impl Iterator<Item = Range<usize>>,
    ) -> Result<()> {
        let dtype = file::dtype(data);
        let at = match self.tensors.iter().position(|t| t.key == key) {
            Some(at) => at,
            None => {
                let (key, layout, chunks) = (key.to_string(), layout.clone(), vec![]);
                self.tensors.push(Growing { key, dtype, layout, chunks });
                self.tensors.len() - 1
            }
        };
        let tensor = &mut self.tensors[at];
        if tensor.dtype != dtype || tensor.layout != layout {
            return Err(Error::cannot_run(format!(
                "{key}: {dtype:?} {layout:?} came after {:?} {:?}",
                tensor.dtype, tensor.layout
            )));
        }
        let offset = self.end;
        let mut out = BufWriter::new(&self.file);
        for part in parts {
            let bytes = file::le_bytes(data, part);
            out.write_all(&bytes).map_err(|e| Error::io(&self.shown, e))?;
            self.end += bytes.len() as u64;
        }
        out.flush().map_err(|e| Error::io(&self.shown, e))?;
        tensor.chunks.push(Chunk { offset, rows, cols });
        Ok(())
    }

    /// The shape and the type of each tensor so far.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Dtype, Vec<usize>)> {
        self.tensors.iter().map(|t| (t.key.as_str(), t.dtype, t.shape()))
    }

    /// Puts the file in order and on disk, under its name.
    pub fn finish(mut self) -> Result<()> {
        if !self.close_in_place()? {
            self.copy_in_order()?;
            std::fs::remove_file(&self.spill).map_err(|e| Error::io(&self.shown, e))?;
        }
        Ok(())
    }

    /// Writes the header in front if every tensor lies in one piece, aligned to its type.
    fn close_in_place(&mut self) -> Result<bool> {
        let mut header = Vec::new();
        for t in &self.tensors {
            let [chunk] = &t.chunks[..] else { return Ok(false) };
            let at = chunk.offset as usize - ROOM;
            if !at.is_multiple_of(t.element()) {
                return Ok(false);
            }
            header.push((
                t.key.clone(),
                TensorInfo { dtype: t.dtype, shape: t.shape(), data_offsets: (at, at + t.bytes()) },
            ));
        }
        let Some(header) = file::header(header, Some(ROOM))? else { return Ok(false) };
        let io = |e| Error::io(&self.shown, e);
        self.file.seek(SeekFrom::Start(0)).map_err(io)?;
        self.file.write_all(&header).map_err(io)?;
        self.file.sync_all().map_err(io)?;
        std::fs::rename(&self.spill, &self.target).map_err(io)?;
        Ok(true)
    }

    /// Copies every tensor's chunks behind each other; wider types first, so that all are aligned.
    fn copy_in_order(&mut self) -> Result<()> {
        self.tensors.sort_by_key(|t| std::cmp::Reverse(t.element()));
        let mut header = Vec::new();
        let mut at = 0;
        for t in &self.tensors {
            let end = at + t.bytes();
            header.push((t.key.clone(), TensorInfo { dtype: t.dtype, shape: t.shape(), data_offsets: (at, end) }));
            at = end;
        }
        let header = file::header(header, None)?.unwrap_or_default();
        let io = |e| Error::io(&self.shown, e);
        let mut out = BufWriter::with_capacity(PIECE, File::create_new(&self.target).map_err(io)?);
        out.write_all(&header).map_err(io)?;
        let mut buffer = Vec::new();
        for t in &self.tensors {
            let size = t.element();
            let (heads, cols) = match t.layout {
                RowLayout::Rows { .. } => (1, t.cols()),
                RowLayout::Heads { heads } => (heads, t.cols()),
            };
            for head in 0..heads {
                for chunk in &t.chunks {
                    let row = chunk.cols * size;
                    let rows_at_once = (PIECE / row.max(1)).max(1);
                    let mut from = chunk.offset + (head * chunk.rows * row) as u64;
                    for first in (0..chunk.rows).step_by(rows_at_once) {
                        let rows = rows_at_once.min(chunk.rows - first);
                        buffer.resize(rows * row, 0);
                        self.file.seek(SeekFrom::Start(from)).map_err(|e| Error::io(&self.shown, e))?;
                        self.file.read_exact(&mut buffer).map_err(|e| Error::io(&self.shown, e))?;
                        from += buffer.len() as u64;
                        if chunk.cols == cols {
                            out.write_all(&buffer).map_err(io)?;
                            continue;
                        }
                        // Positions that came later: this row does not reach them.
                        let beyond = vec![0; (cols - chunk.cols) * size];
                        for r in 0..rows {
                            out.write_all(&buffer[r * row..][..row]).map_err(io)?;
                            out.write_all(&beyond).map_err(io)?;
                        }
                    }
                }
            }
        }
        let file = out.into_inner().map_err(|e| Error::io(&self.target, e.into_error()))?;
        file.sync_all().map_err(io)
    }
}
