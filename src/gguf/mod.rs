//! GGUF files: metadata and tensor directory over a mapped file, and a writer.
//!
//! Design:
//! - **A file is untrusted.** Every count, length, offset, dimension, type and alignment is checked against the bytes that
//!   are there before anything is allocated or read. A [`Gguf`] that exists is sound: every tensor lies inside its file, is
//!   whole blocks, and overlaps no other. Memory taken is at most a small multiple of the header's size.
//! - **Weights are never copied.** A tensor is a range of a mapped file (or of memory), handed out with its owner.
//! - **Split files are one model.** Any part opens all of them.
//! - Metadata keeps its order and its types; getters convert only where no value changes, and say what they found.
//! - Names from a file are printed with control characters escaped (`text::printable`).
//! - Versions 2 and 3, little-endian. Version 1 and big-endian files are refused by name.
//!
//! Known limit: a mapped file that another process truncates ends this one with SIGBUS at the next read past the new end
//! (the program then says so and exits with 125), and one that is overwritten in place gives other weights. Replacing a file by rename, as the writer here and download
//! tools do, is safe.

mod check;
mod read;
mod split;
mod value;
mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::files::open_regular;
#[cfg(target_os = "linux")]
use crate::memory::may_not_stay;
use crate::op::GgmlType;
use crate::text::printable_whole;
use crate::{Error, Result};

pub use check::{Checked, Finding, FindingSeverity, FoundInFile};
pub use value::{Array, Metadata, Value, ValueType};
pub use write::{Sink, TensorSpec, write, write_to};

/// The bytes that tensors lie in: a mapped file, or memory.
pub type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A row of the tensor directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// Its type.
    pub ty: GgmlType,
    /// 1 to 4 dimensions, each at least 1, the contiguous one first: GGUF's order, the reverse of numpy's. A scalar is `[1]`.
    pub dims: Vec<u64>,
    /// Of the first byte, from the start of its file.
    pub offset: u64,
    /// Its size in the file.
    pub bytes: u64,
    /// Which part of a split file it is in; 0 in a single file.
    pub part: usize,
}

impl TensorInfo {
    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.bytes / self.ty.block_bytes() as u64 * self.ty.block_len() as u64
    }
}

/// One file.
struct Part {
    owner: Owner,
    header_len: u64,
}

impl Part {
    fn bytes(&self) -> &[u8] {
        (*self.owner).as_ref()
    }
}

/// An open GGUF file, or all the parts of a split one.
pub struct Gguf {
    /// The key/value pairs; of the first part, if it is split.
    pub metadata: Metadata,
    name: String,
    path: Option<PathBuf>,
    version: u32,
    alignment: u64,
    parts: Vec<Part>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Maps the file at `path` and reads its header; any part of a split file opens all parts.
    ///
    /// # Errors
    /// If a file cannot be mapped or is malformed, or if parts are missing or do not belong together.
    pub fn open(path: &Path) -> Result<Self> {
        split::open(path)
    }

    /// Reads a file that is in memory; `name` is what messages call it.
    ///
    /// # Errors
    /// If it is malformed, or a part of a split file, whose other parts could not be found.
    pub fn from_bytes(name: &str, owner: Owner) -> Result<Self> {
        let gguf = Self::single(name, owner)?;
        let count = split::count(&gguf.metadata)?;
        if count > 1 {
            return Err(Error::input(format!(
                "{}: key split.count: expected a whole model in memory, found a part of {count}",
                gguf.name
            )));
        }
        Ok(gguf)
    }

    /// One file, without a look at others.
    fn single(name: &str, owner: Owner) -> Result<Self> {
        let name = printable_whole(name);
        let header = read::header(&name, (*owner).as_ref())?;
        let mut gguf = Self {
            metadata: header.metadata,
            name,
            path: None,
            version: header.version,
            alignment: header.alignment,
            parts: Vec::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
        };
        gguf.add_part(owner, header.len, header.tensors);
        Ok(gguf)
    }

    /// Appends a file whose header was checked. On a tensor name that is there already: that name.
    fn add_part(&mut self, owner: Owner, header_len: u64, entries: Vec<read::Entry>) -> Option<String> {
        let part = self.parts.len();
        self.parts.push(Part { owner, header_len });
        for read::Entry { name, ty, dims, offset, bytes } in entries {
            if self.by_name.insert(name.clone(), self.tensors.len()).is_some() {
                return Some(name);
            }
            self.tensors.push(TensorInfo { name, ty, dims, offset, bytes, part });
        }
        None
    }

    /// What messages call it: the path as given to [`Gguf::open`], or the name given to [`Gguf::from_bytes`]; printable.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The path of the (first) file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
    /// GGUF version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }
    /// Alignment of tensor data in bytes, of the first part.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }
    /// Number of files.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }
    /// Bytes of all files.
    pub fn file_len(&self) -> u64 {
        self.parts.iter().map(|p| p.bytes().len() as u64).sum()
    }

    /// All tensors, in the order of the directory, part after part.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The bytes that a tensor of this file lies in, and where in them it starts; it is `tensor.bytes` long.
    ///
    /// # Panics
    /// If `tensor` is of a file with more parts.
    pub fn tensor_bytes(&self, tensor: &TensorInfo) -> (Owner, usize) {
        (self.parts[tensor.part].owner.clone(), tensor.offset as usize) // fits: the file is in memory
    }

    /// A tensor's data, in ggml's layout. Aligned to nothing more than the file's alignment.
    ///
    /// # Panics
    /// If `tensor` is of another file and lies outside this one.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        &self.parts[tensor.part].bytes()[tensor.offset as usize..][..tensor.bytes as usize]
    }

    /// Identifies the model: SHA-256, in hexadecimal, over each part's header and the first and last 4 KiB of each of its
    /// tensors. Not over all data: hashing 18 GB would take longer than the run that wants to know.
    pub fn fingerprint(&self) -> String {
        const END: usize = 4096;
        let mut hash = Sha256::new();
        for (i, part) in self.parts.iter().enumerate() {
            hash.update(&part.bytes()[..part.header_len as usize]);
            for tensor in self.tensors.iter().filter(|t| t.part == i) {
                let data = self.data(tensor);
                hash.update(&data[..data.len().min(END)]);
                hash.update(&data[data.len().saturating_sub(END)..]);
            }
        }
        format!("{:x}", hash.finalize())
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} (GGUF v{}, {} keys, {} tensors)",
            self.name,
            self.version,
            self.metadata.len(),
            self.tensors.len()
        )
    }
}

/// Maps a file for reading.
fn map(path: &Path) -> Result<Owner> {
    let file = open_regular(path, "a GGUF file")?;
    if file.metadata().map_err(|e| Error::io(path, e))?.len() == 0 {
        return Err(Error::input(format!("{}: expected a GGUF file, found an empty one", path.display())));
    }
    // SAFETY: a mapping is sound as long as the file keeps its length and nobody depends on its bytes staying equal.
    // The first is the caller's to keep (the module's documentation states the limit: SIGBUS if another process truncates
    // the file). The second is kept here: the header is copied out before it is checked, and tensor data are plain bytes,
    // of which every value is valid.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    // Of a file that memory does not hold as a whole, large pages would bring in what nobody asks for.
    #[cfg(target_os = "linux")]
    if !may_not_stay(map.len()) {
        let _ = map.advise(memmap2::Advice::HugePage); // a hint, which systems without such pages refuse
    }
    Ok(Arc::new(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMO: &[u8] = include_bytes!("../../models/demo-moe-Q4_K_M.gguf");

    fn demo() -> Gguf {
        Gguf::from_bytes("demo", Arc::new(DEMO)).unwrap()
    }

    #[test]
    fn demo_model_reads_as_gguf_py_reads_it() {
        let g = demo();
        assert_eq!((g.version(), g.alignment(), g.metadata.len(), g.tensors().len()), (3, 32, 28, 51));
        assert_eq!(g.file_len(), DEMO.len() as u64);
        assert_eq!(g.metadata.str("general.architecture").unwrap(), "qwen3moe");
        assert_eq!(g.metadata.u32("qwen3moe.attention.key_length").unwrap(), 64);
        assert_eq!(g.metadata.f32("qwen3moe.rope.freq_base").unwrap(), 1e6);
        assert_eq!(g.metadata.str_array("tokenizer.ggml.tokens").unwrap()[1], "<|im_start|>");
        assert_eq!(g.metadata.i32_array("tokenizer.ggml.token_type").unwrap().len(), 2048);
        assert!(!g.metadata.bool("tokenizer.ggml.add_bos_token").unwrap());
        // name, dims, type, offset, bytes: from gguf-py's reader
        let t = g.tensor("blk.0.attn_q.weight").unwrap();
        assert_eq!(
            (&t.dims[..], t.ty, t.offset, t.bytes, t.part),
            (&[256, 512][..], GgmlType::Q4_K, 915_744, 73_728, 0)
        );
        assert_eq!(t.elements(), 256 * 512);
        assert_eq!(g.tensors()[0].name, "output.weight");
        assert_eq!(g.tensors()[0].offset, 63_520);
    }

    #[test]
    fn tensor_bytes_and_data_are_the_same_range() {
        let g = demo();
        for t in g.tensors() {
            let (owner, start) = g.tensor_bytes(t);
            assert_eq!(&(*owner).as_ref()[start..][..t.bytes as usize], g.data(t));
        }
    }

    #[test]
    fn mapped_file_equals_memory() {
        let path = crate::files::beside_the_sources("models/demo-moe-Q4_K_M.gguf");
        let (a, b) = (Gguf::open(&path).unwrap(), demo());
        assert_eq!(a.tensors(), b.tensors());
        assert_eq!(a.metadata, b.metadata);
        assert_eq!(a.fingerprint(), b.fingerprint());
        assert_eq!(a.path(), Some(path.as_path()));
    }

    #[test]
    fn fingerprint_sees_header_and_both_ends_of_a_tensor() {
        let g = demo();
        let t = g.tensor("output.weight").unwrap();
        let last = (t.offset + t.bytes - 1) as usize;
        for at in [104 /* in the value of general.name */, t.offset as usize, last] {
            let mut bytes = DEMO.to_vec();
            bytes[at] ^= 1;
            let other = Gguf::from_bytes("demo", Arc::new(bytes));
            assert_ne!(other.unwrap().fingerprint(), g.fingerprint(), "byte {at}");
        }
    }
}
