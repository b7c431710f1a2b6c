//! Malformed GGUF files: each is one clear error, none a panic, and none makes the reader allocate more than a small
//! multiple of the file's size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use twinscope::gguf::{self, Array, Gguf, Metadata, TensorSpec, Value};
use twinscope::op::GgmlType;

// ---------------------------------------------------------------------------------------------------------------------
// Memory that a thread holds

struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that is ending has no counters any more, and nothing to measure.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system allocator as it came; the counters neither allocate nor touch memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's contract is `System`'s own.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's contract is `System`'s own, and `pointer` is from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `run` gives, and the most bytes that it held at any moment, of this thread.
pub(crate) fn most_held<R>(run: impl FnOnce() -> R) -> (R, isize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = run();
    (result, PEAK.get() - before)
}

/// Reads `bytes`; fails if that takes more than 24 times their size (and 64 KiB, for messages) at any moment. The densest
/// table, of keys, takes 12 times: 14 bytes become a pair of 64 and an index entry of 33, in vectors that double.
fn read(bytes: Vec<u8>) -> twinscope::Result<Gguf> {
    let limit = 24 * bytes.len() as isize + (64 << 10);
    let owner = Arc::new(bytes);
    let (result, peak) = most_held(|| Gguf::from_bytes("f.gguf", owner));
    assert!(peak <= limit, "{peak} bytes held at once, over {limit}");
    result
}

// ---------------------------------------------------------------------------------------------------------------------
// Files from bytes

/// A header put together field by field.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, keys: u64) -> Self {
        Raw(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn u8(self, x: u8) -> Self {
        self.bytes(&[x])
    }
    fn u32(self, x: u32) -> Self {
        self.bytes(&x.to_le_bytes())
    }
    fn u64(self, x: u64) -> Self {
        self.bytes(&x.to_le_bytes())
    }
    fn str(self, s: &str) -> Self {
        self.u64(s.len() as u64).bytes(s.as_bytes())
    }
    /// A key with a u32.
    fn key(self, key: &str, value: u32) -> Self {
        self.str(key).u32(4).u32(value)
    }
    /// A row of the tensor directory.
    fn tensor(mut self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        self = self.str(name).u32(dims.len() as u32);
        for &d in dims {
            self = self.u64(d);
        }
        self.u32(ty).u64(offset)
    }
    /// Zeros to a multiple of 32, then `n` more.
    fn data(mut self, n: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self.0
    }
}

/// One F32 tensor "t" of this shape, at this offset, with 64 bytes of data.
fn one(dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    Raw::new(3, 1, 0).tensor("t", dims, ty, offset).data(64)
}

#[test]
fn each_malformed_file_is_one_clear_error() {
    let v3 = Raw::new;
    let deep = |n: u32| (0..n).fold(v3(3, 0, 1).str("k").u32(9), |raw, _| raw.u32(9).u64(1)).u32(0).u64(0).0;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        // header
        (vec![], "header: expected a GGUF file, found an empty one"),
        (b"GG".to_vec(), "header: expected 4 bytes of the magic at offset 0, found 2 before the end of the file"),
        (b"\x89PNG\r\n\x1a\n".to_vec(), r#"header: expected magic "GGUF", found "\x89PNG""#),
        (b"FUGG\0\0\0\x03".to_vec(), r#"expected magic "GGUF", found "FUGG": a byte-swapped file"#),
        (b"tjgg\x03\0\0\0".to_vec(), r#"found "tjgg": a format older than GGUF"#),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "this looks like a Git LFS pointer"),
        (v3(1, 0, 0).0, "header: expected GGUF version 2 or 3, found 1"),
        (v3(4, 0, 0).0, "header: expected GGUF version 2 or 3, found 4"),
        (v3(0, 0, 0).0, "header: expected GGUF version 2 or 3, found 0"),
        (
            v3(3u32.swap_bytes(), 0, 0).0,
            "header: expected a little-endian file, found version 3 byte-swapped: this file is big-endian",
        ),
        (v3(3, u64::MAX, 0).0, "header: expected at most 1048576 tensors, found 18446744073709551615"),
        (v3(3, 0, 1 << 63).0, "header: expected at most 1048576 keys, found 9223372036854775808"),
        (
            v3(3, 1000, 0).data(0),
            "header: expected 1000 tensors of at least 24 bytes each, found 8 bytes before the end of the file",
        ),
        (
            v3(3, 0, 2).key("k", 1).0,
            "header: expected 2 keys of at least 13 bytes each, found 17 bytes before the end of the file",
        ),
        // keys
        (v3(3, 0, 1).str("").u32(4).u32(0).u64(0).0, "key number 0: expected a key, found an empty one"),
        (
            v3(3, 0, 1).u64(u64::MAX).u64(0).0,
            "key number 0: expected a key of at most 65535 bytes at offset 24, found 18446744073709551615",
        ),
        (
            v3(3, 0, 1).u64(100).u64(0).0,
            "key number 0: expected 100 bytes of a key at offset 32, found 8 before the end of the file",
        ),
        (
            v3(3, 0, 1).u64(2).bytes(b"a\xff").u32(0).u8(0).0,
            "key number 0: expected a key in UTF-8, found byte 0xff at its byte 1",
        ),
        (v3(3, 0, 2).key("k", 1).key("k", 1).0, "key k: expected each key once, found it twice"),
        (v3(3, 0, 1).key("a\x1b[2J", 1).0[..40].to_vec(), "key a\\u{1b}[2J: expected 4 bytes of a value type"),
        (v3(3, 0, 1).str("k").u32(13).u64(0).0, "key k: expected a value type from 0 to 12, found 13"),
        (v3(3, 0, 1).str("k").u32(7).u8(2).0, "key k: expected bool 0 or 1, found 2"),
        (v3(3, 0, 1).str("k").u32(10).u32(0).0, "key k: expected 8 bytes of u64 at offset 37, found 4"),
        (v3(3, 0, 1).str("k").u32(8).u64(u64::MAX).0, "key k: expected 18446744073709551615 bytes of a string"),
        // arrays
        (v3(3, 0, 1).str("k").u32(9).u32(99).u64(0).0, "key k: expected a value type from 0 to 12, found 99"),
        (
            v3(3, 0, 1).str("k").u32(9).u32(6).u64(1 << 62).u32(0).0,
            "key k: expected 4611686018427387904 f32 array elements of at least 4 bytes each, found 4 bytes before the end",
        ),
        (
            v3(3, 0, 1).str("k").u32(9).u32(8).u64(3).u64(0).u64(0).0,
            "key k: expected 3 string array elements of at least 8 bytes each, found 16 bytes before the end",
        ),
        (v3(3, 0, 1).str("k").u32(9).u32(8).u64(2).u64(0).u64(9).0, "key k: expected 9 bytes of a string"),
        (v3(3, 0, 1).str("k").u32(9).u32(7).u64(2).u8(1).u8(7).0, "key k: expected bool 0 or 1, found 7"),
        (deep(4), "key k: expected arrays nested at most 4 deep"),
        (deep(5000), "key k: expected arrays nested at most 4 deep"),
        // alignment
        (
            v3(3, 0, 1).key("general.alignment", 0).0,
            "key general.alignment: expected a power of two from 1 to 16777216, found 0",
        ),
        (v3(3, 0, 1).key("general.alignment", 48).0, "expected a power of two from 1 to 16777216, found 48"),
        (
            v3(3, 0, 1).key("general.alignment", 1 << 31).0,
            "expected a power of two from 1 to 16777216, found 2147483648",
        ),
        (
            v3(3, 0, 1).str("general.alignment").u32(8).str("32").0,
            "key general.alignment: expected an integer that fits u64, found string \"32\"",
        ),
        // tensors
        (Raw::new(3, 1, 0).tensor("", &[1], 0, 0).data(64), "tensor number 0: expected a name, found an empty one"),
        (one(&[1, 1, 1, 1, 1], 0, 0), "tensor t: expected at most 4 dimensions, found 5"),
        (
            Raw::new(3, 1, 0).str("t").u32(u32::MAX).data(64),
            "tensor t: expected at most 4 dimensions, found 4294967295",
        ),
        (one(&[4, 0], 0, 0), "tensor t: expected dimensions of at least 1, found [4, 0] (dimension 1 is 0)"),
        (one(&[33], 2, 0), "tensor t: expected rows of whole Q4_0 blocks of 32, found shape [33]"),
        (
            one(&[1 << 62, 8], 0, 0),
            "tensor t: expected a size that fits 63 bits, found shape [4611686018427387904, 8] of F32",
        ),
        (
            one(&[1 << 61], 0, 0),
            "tensor t: expected a size that fits 63 bits, found shape [2305843009213693952] of F32",
        ),
        (one(&[4], 99, 0), "tensor t: expected a ggml type, found the unknown type 99"),
        (one(&[4], 4, 0), "tensor t: expected a ggml type, found 4, Q4_2, which ggml removed"),
        (one(&[4], 0, 8), "tensor t: expected an offset that is a multiple of the alignment 32, found 8"),
        (
            one(&[17], 0, 0),
            "tensor t: expected 68 bytes of data at offset 0 of the file's data, which starts at 64; found the end of the file at 128",
        ),
        (one(&[8], 0, 64), "tensor t: expected 32 bytes of data at offset 64 of the file's data"),
        (
            one(&[8], 0, u64::MAX - 31),
            "tensor t: expected 32 bytes of data at offset 18446744073709551584 of the file's data",
        ),
        (
            Raw::new(3, 2, 0).tensor("t", &[4], 0, 0).tensor("t", &[4], 0, 32).data(64),
            "tensor t: expected each tensor once, found it twice",
        ),
        (
            Raw::new(3, 2, 0).tensor("a", &[9], 0, 0).tensor("b", &[4], 0, 32).data(64),
            "tensor b: expected data after that of tensor a, which ends at 132, found it at 128: the two overlap",
        ),
        (Raw::new(3, 2, 0).tensor("a", &[4], 0, 32).tensor("b", &[4], 0, 32).data(64), "the two overlap"),
        (v3(3, 0, 1).key("split.count", 3).0, "key split.count: expected a whole model in memory, found a part of 3"),
    ];
    for (bytes, expected) in cases {
        let e = read(bytes).expect_err(expected);
        let message = e.to_string();
        assert!(message.contains(expected), "expected: {expected}\nfound:    {message}");
        assert!(message.starts_with("f.gguf: "), "names the file: {message}");
        assert!(!message.contains('\n') && !message.chars().any(char::is_control), "one line: {message:?}");
        assert_eq!(e.exit_code(), 2);
    }
}

/// What is unusual but right is read.
#[test]
fn unusual_files_are_read() {
    assert_eq!(read(Raw::new(2, 0, 0).0).unwrap().version(), 2);
    assert_eq!(read(Raw::new(3, 0, 1).key("k", 1).0).unwrap().metadata.u32("k").unwrap(), 1);
    // gguf-py writes a scalar with no dimensions; ggml reads it as one of length 1.
    assert_eq!(read(one(&[], 0, 0)).unwrap().tensor("t").unwrap().dims, [1]);
    // Directory order need not be data order, and there may be gaps.
    let bytes = Raw::new(3, 2, 0).tensor("b", &[4], 0, 32).tensor("a", &[2], 0, 0).data(48);
    assert_eq!(read(bytes).unwrap().tensor("b").unwrap().bytes, 16);
    // A merged file keeps split keys, with a count of 0.
    assert!(read(Raw::new(3, 0, 2).key("split.count", 0).key("split.no", 0).0).is_ok());
    let nested = Raw::new(3, 0, 1).str("k").u32(9).u32(9).u64(1).u32(9).u64(1).u32(9).u64(1).u32(0).u64(1).u8(5).0;
    let array = Array::Array(vec![Array::Array(vec![Array::Array(vec![Array::U8(vec![5])])])]);
    assert_eq!(read(nested).unwrap().metadata.get("k"), Some(&Value::Array(array)));
    let alignment = Raw::new(3, 0, 1).str("general.alignment").u32(10).u64(64).0;
    assert_eq!(read(alignment).unwrap().alignment(), 64);
}

// ---------------------------------------------------------------------------------------------------------------------
// Damage to a valid file

/// A small valid file with every kind of key and several tensors, the last one's padding included.
fn valid() -> Vec<u8> {
    let mut m = Metadata::new("f.gguf");
    m.set("general.architecture", Value::String("test".into()));
    m.set("general.alignment", Value::U32(16));
    m.set("u8", Value::U8(1));
    m.set("f64", Value::F64(1.5));
    m.set("bool", Value::Bool(true));
    m.set("strings", Value::Array(Array::String(vec!["a".into(), "".into(), "bc".into()])));
    m.set("numbers", Value::Array(Array::I32(vec![1, -2, 3])));
    m.set("nested", Value::Array(Array::Array(vec![Array::Bool(vec![true]), Array::U64(vec![7])])));
    let tensors = [
        TensorSpec::new("a", GgmlType::F32, &[3]),
        TensorSpec::new("b.weight", GgmlType::Q4_0, &[32, 2, 1, 1]),
        TensorSpec::new("c", GgmlType::I8, &[5]),
    ];
    let mut out = Vec::new();
    gguf::write_to(&mut out, &m, &tensors, |t, sink| sink.put(&vec![0x5a; t.bytes()? as usize])).unwrap();
    out
}

/// Looks at everything that a file says, as a program would.
fn use_all(g: &Gguf) {
    for (key, value) in g.metadata.iter() {
        let _ = (value.to_string(), g.metadata.u32(key), g.metadata.i32_array(key), g.metadata.str(key));
    }
    for t in g.tensors() {
        assert_eq!(g.data(t).len() as u64, t.bytes);
        assert!(t.elements() > 0);
    }
    g.fingerprint();
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = valid();
    let g = read(bytes.clone()).unwrap();
    let end = g.tensors().iter().map(|t| (t.offset + t.bytes) as usize).max().unwrap();
    assert!(end < bytes.len(), "the last tensor is padded");
    for n in 0..bytes.len() {
        match read(bytes[..n].to_vec()) {
            Ok(g) => {
                assert!(n >= end, "cut to {n} bytes, with data up to {end}");
                use_all(&g);
            }
            Err(e) => assert!(n < end, "{n} bytes: only padding is missing, yet: {e}"),
        }
    }
}

/// Each position of the header, field or not, replaced by each of the numbers that break arithmetic.
#[test]
fn extreme_numbers_anywhere_never_panic() {
    let bytes = valid();
    let header = read(bytes.clone()).unwrap().tensors()[0].offset as usize;
    let len = bytes.len() as u64;
    let small = [0u32, 1, 4, 5, 9, 12, 13, 0x7fff_ffff, 0x8000_0000, u32::MAX, len as u32];
    let large = [
        0u64,
        1,
        len - 1,
        len,
        1 << 20,
        u32::MAX.into(),
        1 << 32,
        1 << 61,
        (1 << 63) - 1,
        1 << 63,
        u64::MAX - 15,
        u64::MAX,
    ];
    for at in 0..header {
        for field in
            small.iter().map(|x| x.to_le_bytes().to_vec()).chain(large.iter().map(|x| x.to_le_bytes().to_vec()))
        {
            let mut bytes = bytes.clone();
            let end = (at + field.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&field[..end - at]);
            if let Ok(g) = read(bytes) {
                use_all(&g);
            }
        }
    }
}

/// The files that make the most of each byte: `read` measures what they cost.
#[test]
fn dense_tables_cost_a_small_multiple_of_the_file() {
    let n = 20_000;
    let keys = (0..n).fold(Raw::new(3, 0, n), |raw, i| raw.str(&format!("{i:x}")).u32(0).u8(0)).0;
    assert_eq!(read(keys).unwrap().metadata.len(), n as usize);
    // A name is short, the rest is the least that a row takes.
    let tensors = (0..n).fold(Raw::new(3, n, 0), |raw, i| raw.tensor(&format!("{i:x}"), &[], 24, i * 32));
    assert_eq!(read(tensors.data(n as usize * 32)).unwrap().tensors().len(), n as usize);
    let strings = (0..n).fold(Raw::new(3, 0, 1).str("k").u32(9).u32(8).u64(n), |raw, _| raw.u64(0)).0;
    assert_eq!(read(strings).unwrap().metadata.str_array("k").unwrap().len(), n as usize);
    let arrays = (0..n).fold(Raw::new(3, 0, 1).str("k").u32(9).u32(9).u64(n), |raw, _| raw.u32(12).u64(0)).0;
    assert!(read(arrays).is_ok());
    let without_data = (0..n).fold(Raw::new(3, n, 0), |raw, i| raw.tensor(&format!("{i:x}"), &[], 24, 0)).data(32);
    assert!(read(without_data).unwrap_err().to_string().ends_with("the two overlap"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_damage_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = valid();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(g) = read(bytes) {
            use_all(&g);
        }
    }

    #[test]
    fn random_bytes_after_a_header_never_panic(tensors in 0u64..4, keys in 0u64..4, tail in prop::collection::vec(0u8..14, 0..200)) {
        if let Ok(g) = read(Raw::new(3, tensors, keys).bytes(&tail).0) {
            use_all(&g);
        }
    }

    #[test]
    fn what_is_written_is_read(
        keys in prop::collection::btree_map("[a-z.]{1,12}", prop_oneof![
            any::<u64>().prop_map(Value::U64),
            any::<i8>().prop_map(Value::I8),
            ".{0,20}".prop_map(Value::String),
            prop::collection::vec(".{0,5}", 0..5).prop_map(|v| Value::Array(Array::String(v))),
            prop::collection::vec(any::<i16>(), 0..5).prop_map(|v| Value::Array(Array::I16(v))),
        ], 0..8),
        tensors in prop::collection::btree_map("[a-z.]{1,12}", (0..GgmlType::ALL.len(), 1u64..3, prop::collection::vec(1u64..4, 0..3)), 0..6),
    ) {
        let mut m = Metadata::new("f.gguf");
        for (key, value) in keys {
            m.set(&key, value);
        }
        let specs: Vec<_> = tensors.into_iter().map(|(name, (ty, blocks, rest))| {
            let ty = GgmlType::ALL[ty];
            let mut dims = vec![blocks * ty.block_len() as u64];
            dims.extend(rest);
            TensorSpec { name, ty, dims }
        }).collect();
        let mut out = Vec::new();
        gguf::write_to(&mut out, &m, &specs, |t, sink| sink.put(&vec![t.name.len() as u8; t.bytes()? as usize])).unwrap();
        let g = read(out).unwrap();
        prop_assert_eq!(&g.metadata, &m);
        prop_assert_eq!(g.tensors().len(), specs.len());
        for (t, spec) in g.tensors().iter().zip(&specs) {
            prop_assert_eq!((&t.name, t.ty, &t.dims, t.bytes), (&spec.name, spec.ty, &spec.dims, spec.bytes().unwrap()));
            prop_assert_eq!(t.elements(), t.dims.iter().product::<u64>());
            prop_assert!(g.data(t).iter().all(|&b| b == t.name.len() as u8));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Files on disk, and split files

fn error(path: &Path) -> String {
    let message = Gguf::open(path).expect_err("malformed").to_string();
    assert!(!message.contains('\n'), "{message:?}");
    message
}

#[test]
fn what_is_no_file_is_said() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error(dir.path()).ends_with("expected a GGUF file, found a directory"));
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, "").unwrap();
    assert!(error(&empty).ends_with("empty.gguf: expected a GGUF file, found an empty one"));
    assert!(error(&dir.path().join("none.gguf")).contains("none.gguf: "));
    #[cfg(unix)]
    assert!(
        error(Path::new("/dev/null")).ends_with("expected a GGUF file, found something that is not a regular file")
    );
}

/// Writes part `number` (from 1) of `count`, with the split keys given and a tensor of each name.
fn part(dir: &Path, number: u16, count: u16, total: i32, names: &[&str]) -> std::path::PathBuf {
    let mut m = Metadata::new("part");
    if number == 1 {
        m.set("general.architecture", Value::String("test".into()));
    }
    m.set("split.no", Value::U16(number - 1));
    m.set("split.count", Value::U16(count));
    m.set("split.tensors.count", Value::I32(total));
    write_part(dir, number, count, &m, names)
}

fn write_part(dir: &Path, number: u16, count: u16, m: &Metadata, names: &[&str]) -> std::path::PathBuf {
    let path = dir.join(format!("m-{number:05}-of-{count:05}.gguf"));
    let specs: Vec<_> = names.iter().map(|n| TensorSpec::new(n, GgmlType::I8, &[8])).collect();
    gguf::write(&path, m, &specs, |t, sink| sink.put(&[t.name.as_bytes()[0]; 8])).unwrap();
    path
}

#[test]
fn any_part_opens_all() {
    let dir = tempfile::tempdir().unwrap();
    let first = part(dir.path(), 1, 3, 3, &["a"]);
    let second = part(dir.path(), 2, 3, 3, &["b", "c"]);
    let third = part(dir.path(), 3, 3, 3, &[]);
    let g = Gguf::open(&first).unwrap();
    assert_eq!((g.parts(), g.tensors().len()), (3, 3));
    assert_eq!(g.metadata.str("general.architecture").unwrap(), "test");
    let c = g.tensor("c").unwrap();
    assert_eq!((c.part, g.data(c)), (1, &[b'c'; 8][..]));
    let (owner, start) = g.tensor_bytes(c);
    assert_eq!(&(*owner).as_ref()[start..start + 8], [b'c'; 8]);
    let lens = [&first, &second, &third].map(|p| std::fs::metadata(p).unwrap().len());
    assert_eq!(g.file_len(), lens.iter().sum::<u64>());
    use_all(&g);

    for later in [&second, &third] {
        let same = Gguf::open(later).unwrap();
        assert_eq!((same.name(), same.fingerprint()), (g.name(), g.fingerprint()), "opened by a later part");
    }
    std::fs::remove_file(&first).unwrap();
    let e = error(&second);
    assert!(e.contains("part 2 of 3 was named") && e.contains("m-00001-of-00003.gguf: "), "{e}");
    // A first part by its name that is another by its metadata is not looked for again.
    std::fs::copy(&second, &first).unwrap();
    let e = error(&third);
    assert!(e.contains("part 2 of 3 by its metadata: expected a name that ends in -00002-of-00003.gguf"), "{e}");
}

/// Text is no reason not to run a model; names are.
#[test]
fn text_that_is_not_utf8_is_read_and_said() {
    let raw = Raw::new(3, 0, 3).str("k").u32(8).u64(3).bytes(b"a\xc3b").str("whole").u32(8).str("\u{e9}");
    let raw = raw.str("many").u32(9).u32(8).u64(2).u64(1).u8(0xff).str("b");
    let g = Gguf::from_bytes("m", std::sync::Arc::new(raw.0)).unwrap();
    assert_eq!(g.metadata.not_utf8(), ["k", "many"]);
    assert_eq!((g.metadata.str("k").unwrap(), g.metadata.str("whole").unwrap()), ("a\u{fffd}b", "\u{e9}"));
    assert_eq!(g.metadata.str_array("many").unwrap(), ["\u{fffd}", "b"]);
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = part(dir.path(), 1, 2, 2, &["a"]);

    let e = error(&first);
    assert!(e.contains("part 2 of 2") && e.contains("m-00002-of-00002.gguf: "), "a missing part: {e}");

    part(dir.path(), 2, 2, 2, &["a"]);
    let e = error(&first);
    assert!(
        e.ends_with("m-00002-of-00002.gguf: tensor a: expected each tensor once, found it in an earlier part too"),
        "{e}"
    );

    part(dir.path(), 2, 2, 2, &["b", "c"]);
    let e = error(&first);
    assert!(e.ends_with("key split.tensors.count: expected 3 tensors, as the 2 parts have together, found 2"), "{e}");

    let mut m = Metadata::new("part");
    m.set("split.no", Value::U16(0));
    m.set("split.count", Value::U16(2));
    let second = write_part(dir.path(), 2, 2, &m, &["b"]);
    assert!(error(&first).ends_with("m-00002-of-00002.gguf: key split.no: expected 1, found 0"));
    let e = error(&second);
    assert!(e.contains("part 1 of 2 by its metadata: expected a name that ends in -00001-of-00002.gguf"), "{e}");

    m.set("split.no", Value::U16(1));
    m.set("split.count", Value::U16(5));
    write_part(dir.path(), 2, 2, &m, &["b"]);
    assert!(error(&first).ends_with("m-00002-of-00002.gguf: key split.count: expected 2, found 5"));

    m.set("split.count", Value::U16(2));
    m.set("general.architecture", Value::String("other".into()));
    write_part(dir.path(), 2, 2, &m, &["b"]);
    let e = error(&first);
    assert!(
        e.contains("key general.architecture: expected string \"test\"") && e.ends_with("parts of different models"),
        "{e}"
    );

    std::fs::write(&second, "GGUF").unwrap();
    let e = error(&first);
    assert!(e.contains("m-00002-of-00002.gguf: header: expected 4 bytes of the version"), "{e}");

    // A part that lost its name, and a whole file with a part's name.
    let renamed = dir.path().join("renamed.gguf");
    std::fs::rename(&first, &renamed).unwrap();
    let e = error(&renamed);
    assert!(e.contains("part 1 of 2 by its metadata: expected a name that ends in -00001-of-00002.gguf"), "{e}");
    let whole = write_part(dir.path(), 1, 2, &Metadata::new("m"), &["a"]);
    let e = error(&whole);
    assert!(
        e.ends_with("key split.count: expected 2, as the file's name says that it is part 1 of 2, found no such key"),
        "{e}"
    );
}
