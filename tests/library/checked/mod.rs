//! `inspect --check` beside llama.cpp: files with one thing wrong each, what is found in them, and what llama.cpp did with them.
//!
//! `scripts/checked_files.py` recorded that: it loads the files that this test writes where TWINSCOPE_CHECKED_FILES names a folder.

mod keys;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;
use twinscope::gguf::{Array, FindingSeverity, Gguf, Value};
use twinscope::model::check;
use twinscope::op::GgmlType;
use twinscope::synth::{FfnShape, Mix, ModelShape, Moe, Plan};

/// A file in pieces, which need not fit together.
#[derive(Clone)]
struct Pieces {
    magic: [u8; 4],
    version: u32,
    /// Name, type and bytes of the value.
    keys: Vec<(Vec<u8>, u32, Vec<u8>)>,
    tensors: Vec<Piece>,
    alignment: usize,
    /// Bytes at the end that are left out; more, if below 0.
    cut: i64,
}

#[derive(Clone)]
struct Piece {
    name: Vec<u8>,
    dims: Vec<u64>,
    ty: u32,
    bytes: Vec<u8>,
    /// Added to its offset in the directory.
    moved: i64,
    /// Bytes left free in front of it.
    gap: usize,
}

fn array(all: &Array) -> (u32, Vec<u8>) {
    macro_rules! numbers {
        ($v:expr) => {
            $v.iter().flat_map(|x| x.to_le_bytes()).collect()
        };
    }
    let bytes = match all {
        Array::U8(v) => numbers!(v),
        Array::I8(v) => numbers!(v),
        Array::U16(v) => numbers!(v),
        Array::I16(v) => numbers!(v),
        Array::U32(v) => numbers!(v),
        Array::I32(v) => numbers!(v),
        Array::F32(v) => numbers!(v),
        Array::U64(v) => numbers!(v),
        Array::I64(v) => numbers!(v),
        Array::F64(v) => numbers!(v),
        Array::Bool(v) => v.iter().map(|x| u8::from(*x)).collect(),
        Array::String(v) => v.iter().flat_map(|x| text(x.as_bytes())).collect(),
        Array::Array(v) => v.iter().flat_map(|x| of_array(array(x), x.len())).collect(),
    };
    (all.element_type() as u32, bytes)
}

/// Type, length and elements.
fn of_array((ty, bytes): (u32, Vec<u8>), len: usize) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &(len as u64).to_le_bytes(), &bytes].concat()
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

fn value(value: &Value) -> (u32, Vec<u8>) {
    let bytes = match value {
        Value::U8(x) => x.to_le_bytes().to_vec(),
        Value::I8(x) => x.to_le_bytes().to_vec(),
        Value::U16(x) => x.to_le_bytes().to_vec(),
        Value::I16(x) => x.to_le_bytes().to_vec(),
        Value::U32(x) => x.to_le_bytes().to_vec(),
        Value::I32(x) => x.to_le_bytes().to_vec(),
        Value::F32(x) => x.to_le_bytes().to_vec(),
        Value::U64(x) => x.to_le_bytes().to_vec(),
        Value::I64(x) => x.to_le_bytes().to_vec(),
        Value::F64(x) => x.to_le_bytes().to_vec(),
        Value::Bool(x) => vec![u8::from(*x)],
        Value::String(x) => text(x.as_bytes()),
        Value::Array(x) => of_array(array(x), x.len()),
    };
    (value.value_type() as u32, bytes)
}

impl Pieces {
    fn of(gguf: &Gguf) -> Self {
        let key = |(name, v): (&str, &Value)| {
            let (ty, bytes) = value(v);
            (name.as_bytes().to_vec(), ty, bytes)
        };
        let tensor = |t: &twinscope::gguf::TensorInfo| Piece {
            name: t.name.as_bytes().to_vec(),
            dims: t.dims.clone(),
            ty: t.ty as u32,
            bytes: gguf.data(t).to_vec(),
            moved: 0,
            gap: 0,
        };
        let (keys, tensors) = (gguf.metadata.iter().map(key).collect(), gguf.tensors().iter().map(tensor).collect());
        Self { magic: *b"GGUF", version: 3, keys, tensors, alignment: 32, cut: 0 }
    }

    fn set(&mut self, name: &str, v: Value) {
        let (ty, bytes) = value(&v);
        self.drop_key(name);
        self.keys.push((name.into(), ty, bytes));
    }

    fn drop_key(&mut self, name: &str) {
        self.keys.retain(|(key, ..)| key != name.as_bytes());
    }

    fn tensor(&mut self, name: &str) -> &mut Piece {
        self.tensors.iter_mut().find(|t| t.name == name.as_bytes()).unwrap_or_else(|| panic!("{name}"))
    }

    fn drop_tensor(&mut self, name: &str) {
        self.tensors.retain(|t| t.name != name.as_bytes());
    }

    /// A vector of ones more.
    fn add(&mut self, name: &str, len: u64) {
        let bytes = 1f32.to_le_bytes().repeat(len as usize);
        self.tensors.push(Piece { name: name.into(), dims: vec![len], ty: 0, bytes, moved: 0, gap: 0 });
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (name, ty, bytes) in &self.keys {
            out.extend(text(name));
            out.extend(ty.to_le_bytes());
            out.extend(bytes);
        }
        let mut data: Vec<u8> = Vec::new();
        for t in &self.tensors {
            data.resize(data.len() + t.gap, 0);
            out.extend(text(&t.name));
            out.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.ty.to_le_bytes());
            out.extend((data.len() as u64).wrapping_add_signed(t.moved).to_le_bytes());
            data.extend(&t.bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out.resize(out.len().checked_add_signed(-self.cut as isize).unwrap(), 0);
        out
    }
}

/// A case: its name, its files, the first of which is opened, and the rule of which a finding is expected.
struct Case {
    name: String,
    files: Vec<(String, Vec<u8>)>,
    rule: Option<&'static str>,
}

/// A model of qwen3moe with a tokenizer, of random weights.
fn base() -> Pieces {
    let shape = ModelShape {
        hidden: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: FfnShape::Moe(Moe { experts: 8, used: 2, width: 64 }),
        vocab: 512,
        ..ModelShape::named("tiny").unwrap()
    };
    let plan = Plan::new("base", &shape, &Mix::pure(GgmlType::F32).unwrap(), 0).unwrap();
    Pieces::of(&Gguf::from_bytes("base", Arc::new(plan.to_bytes().unwrap())).unwrap())
}

fn tokens(change: impl Fn(&mut Vec<String>)) -> impl Fn(&mut Pieces) {
    move |p| {
        let gguf = Gguf::from_bytes("tokens", Arc::new(p.bytes())).unwrap();
        let mut all = gguf.metadata.str_array("tokenizer.ggml.tokens").unwrap().to_vec();
        change(&mut all);
        p.set("tokenizer.ggml.tokens", Value::Array(Array::String(all)));
    }
}

type Edit = Box<dyn Fn(&mut Pieces)>;

fn edits() -> Vec<(&'static str, Option<&'static str>, Edit)> {
    fn edit(
        name: &'static str,
        rule: impl Into<Option<&'static str>>,
        edit: impl Fn(&mut Pieces) + 'static,
    ) -> (&'static str, Option<&'static str>, Edit) {
        (name, rule.into(), Box::new(edit))
    }
    fn set(key: &'static str, value: Value) -> impl Fn(&mut Pieces) {
        move |p| p.set(key, value.clone())
    }
    fn drop_key(key: &'static str) -> impl Fn(&mut Pieces) {
        move |p| p.drop_key(key)
    }
    let u32s = |all: &[u32]| Value::Array(Array::U32(all.to_vec()));
    let text_value = |text: &str| Value::String(text.into());
    const Q: &str = "blk.0.attn_q.weight";
    const NORM: &str = "blk.0.attn_norm.weight";
    vec![
        edit("plain", None, |_| ()),
        edit("another magic", "header", |p| p.magic = *b"GGML"),
        edit("version 1", "header", |p| p.version = 1),
        edit("version 2", None, |p| p.version = 2),
        edit("version 4", "header", |p| p.version = 4),
        edit("big-endian", "header", |p| p.version = 3 << 24),
        edit("cut in the data", "truncated", |p| p.cut = 100),
        edit("cut in the header", "header", |p| p.cut = p.bytes().len() as i64 - 500),
        edit("without the last padding", None, |p| {
            p.add("blk.0.attn_q.bias", 64);
            p.tensors.last_mut().unwrap().bytes.truncate(256);
        }),
        edit("bytes behind the end", None, |p| p.cut = -77),
        edit("a key twice", "key-twice", |p| p.keys.push(p.keys[3].clone())),
        edit("an empty key", "key-name", |p| p.keys.push((vec![], 4, vec![0; 4]))),
        edit("a key that is not UTF-8", "not-utf8", |p| p.keys.push((b"a\xff".to_vec(), 4, vec![0; 4]))),
        edit("a name that is not UTF-8", "not-utf8", |p| {
            p.drop_key("general.name");
            p.keys.push((b"general.name".to_vec(), 8, text(b"a\xff")));
        }),
        edit("an array of arrays", "key-type", |p| {
            p.set("x.y", Value::Array(Array::Array(vec![Array::U8(vec![1])])));
        }),
        edit("a type of value that is none", "header", |p| p.keys.push((b"x.y".to_vec(), 13, vec![0; 4]))),
        edit("a bool of 2", None, |p| p.keys.push((b"x.y".to_vec(), 7, vec![2]))),
        edit("alignment 0", "alignment", set("general.alignment", Value::U32(0))),
        edit("alignment 24", "alignment", set("general.alignment", Value::U32(24))),
        edit("alignment as u64", "alignment", set("general.alignment", Value::U64(32))),
        edit("alignment 8", "alignment", |p| {
            p.set("general.alignment", Value::U32(8));
            p.alignment = 8;
        }),
        edit("alignment 64", None, |p| {
            p.set("general.alignment", Value::U32(64));
            p.alignment = 64;
        }),
        edit("a tensor's name of 64 bytes", "tensor-name", |p| p.add(&"n".repeat(64), 4)),
        edit("a tensor without a name", "tensor-name", |p| p.add("", 4)),
        edit("a tensor twice", "tensor-twice", |p| p.tensors.push(p.tensors[2].clone())),
        edit("a tensor of 5 dimensions", "tensor-shape", |p| p.tensor(NORM).dims = vec![64, 1, 1, 1, 1]),
        edit("a dimension of 0", "tensor-shape", |p| {
            let norm = p.tensor(NORM);
            (norm.dims, norm.bytes) = (vec![0], vec![]);
        }),
        edit("more than 2^63 weights", "tensor-shape", |p| p.tensor(NORM).dims = vec![1 << 40, 1 << 40]),
        edit("a type that ggml removed", "tensor-type", |p| p.tensor(Q).ty = 4),
        edit("a type that is none", "tensor-type", |p| p.tensor(Q).ty = 99),
        edit("rows of no whole blocks", "tensor-shape", |p| p.tensor(Q).ty = GgmlType::Q4_K as u32),
        edit("a gap between tensors", "tensor-offset", |p| p.tensor(Q).gap = 64),
        edit("tensors that overlap", "tensor-offset", |p| p.tensor(Q).moved = -32),
        edit("an offset that is not aligned", "tensor-offset", |p| p.tensor(Q).moved = 4),
        edit("tensors out of order", "tensor-offset", |p| {
            let size = p.tensor("blk.0.ffn_norm.weight").bytes.len() as i64;
            let at = p.tensors.iter().position(|t| t.name == b"blk.0.ffn_norm.weight").unwrap();
            p.tensors[at].moved = p.tensors[at + 1].bytes.len().next_multiple_of(32) as i64;
            p.tensors[at + 1].moved = -size;
        }),
        edit("no architecture", "architecture", drop_key("general.architecture")),
        edit("no context_length", "key-missing", drop_key("qwen3moe.context_length")),
        edit("no eps", "key-missing", drop_key("qwen3moe.attention.layer_norm_rms_epsilon")),
        edit("no block_count", "key-missing", drop_key("qwen3moe.block_count")),
        edit("no head_count", "key-missing", drop_key("qwen3moe.attention.head_count")),
        edit("block_count as u64", "key-type", set("qwen3moe.block_count", Value::U64(2))),
        edit("block_count as i32", "key-type", set("qwen3moe.block_count", Value::I32(2))),
        edit("rope.freq_base as f64", "key-type", set("qwen3moe.rope.freq_base", Value::F64(1e6))),
        edit("rope.freq_base as an array", "key-type", |p| {
            p.set("qwen3moe.rope.freq_base", Value::Array(Array::F32(vec![1e6; 2])));
        }),
        edit("head_count as u64", "key-type", set("qwen3moe.attention.head_count", Value::U64(4))),
        edit("head_count for each layer", None, set("qwen3moe.attention.head_count", u32s(&[4, 4]))),
        edit("head_count for other layers", "key-length", set("qwen3moe.attention.head_count", u32s(&[4, 4, 4]))),
        edit("block_count 0", "key-value", set("qwen3moe.block_count", Value::U32(0))),
        edit("block_count 513", "key-value", set("qwen3moe.block_count", Value::U32(513))),
        edit("block_count 4294967295", "key-value", set("qwen3moe.block_count", Value::U32(u32::MAX))),
        edit("one layer more than there is", "tensor-missing", set("qwen3moe.block_count", Value::U32(3))),
        edit("one layer fewer than there is", "tensor-unread", set("qwen3moe.block_count", Value::U32(1))),
        edit("embedding_length 32", "tensor-shape", set("qwen3moe.embedding_length", Value::U32(32))),
        edit("twice the heads", "tensor-shape", set("qwen3moe.attention.head_count", Value::U32(8))),
        edit("twice the KV heads", "tensor-shape", set("qwen3moe.attention.head_count_kv", Value::U32(4))),
        edit("3 KV heads", "key-value", set("qwen3moe.attention.head_count_kv", Value::U32(3))),
        edit("twice the experts", "tensor-shape", set("qwen3moe.expert_count", Value::U32(16))),
        edit("2000 experts", "key-value", set("qwen3moe.expert_count", Value::U32(2000))),
        edit("more experts used than there are", "key-value", set("qwen3moe.expert_used_count", Value::U32(9))),
        edit("no experts used", "key-value", set("qwen3moe.expert_used_count", Value::U32(0))),
        edit("experts of half the width", "tensor-shape", |p| {
            p.set("qwen3moe.expert_feed_forward_length", Value::U32(32));
        }),
        edit("heads of half the size", "tensor-shape", |p| {
            p.set("qwen3moe.attention.key_length", Value::U32(8));
            p.set("qwen3moe.attention.value_length", Value::U32(8));
        }),
        edit("rope on more than a head", "key-value", set("qwen3moe.rope.dimension_count", Value::U32(32))),
        edit("rope on half a head", "key-value", set("qwen3moe.rope.dimension_count", Value::U32(8))),
        edit("8 groups of 8 experts", "key-value", |p| {
            p.set("qwen3moe.expert_group_count", Value::U32(8));
            p.set("qwen3moe.expert_group_used_count", Value::U32(1));
        }),
        edit("3 groups of 8 experts", "key-value", |p| {
            p.set("qwen3moe.expert_group_count", Value::U32(3));
            p.set("qwen3moe.expert_group_used_count", Value::U32(1));
        }),
        edit("weights that are not renormalised", "key-ignored", |p| {
            p.set("qwen3moe.expert_weights_norm", Value::Bool(false));
        }),
        edit("an unknown key", "not-run-here", set("qwen3moe.a_key_of_next_year", Value::U32(1))),
        edit("a tensor that nothing reads", "tensor-unread", |p| p.add("blk.0.attn_nothing.weight", 64)),
        edit("a bias that nothing reads", "tensor-unread", |p| p.add("blk.0.attn_output.bias", 64)),
        edit("a bias of k alone", None, |p| p.add("blk.0.attn_k.bias", 32)),
        edit("a scale of a weight", None, |p| p.add("blk.0.attn_q.scale", 1)),
        edit("a scale of no weight", "tensor-unread", |p| p.add("blk.0.attn_nothing.scale", 1)),
        edit("NVFP4 without its scale", "nvfp4-scale", |p| {
            let q = p.tensor(Q);
            (q.ty, q.bytes) = (40, vec![0; q.bytes.len() / 4 / 64 * 36]);
        }),
        edit("a norm as F16", "tensor-type", |p| {
            let norm = p.tensor(NORM);
            (norm.ty, norm.bytes) = (1, vec![0; 128]);
        }),
        edit("a matrix turned", "tensor-shape", |p| p.tensor("blk.0.ffn_gate_inp.weight").dims.reverse()),
        edit("q, k and v in one tensor", "not-run-here", |p| {
            let parts = ["attn_q", "attn_k", "attn_v"].map(|part| format!("blk.0.{part}.weight"));
            let bytes = parts.iter().flat_map(|part| p.tensor(part).bytes.clone()).collect();
            parts.iter().for_each(|part| p.drop_tensor(part));
            let name = b"blk.0.attn_qkv.weight".to_vec();
            p.tensors.push(Piece { name, dims: vec![64, 128], ty: 0, bytes, moved: 0, gap: 0 });
        }),
        edit("no tokenizer.ggml.model", "tokenizer", drop_key("tokenizer.ggml.model")),
        edit("another tokenizer", "tokenizer", set("tokenizer.ggml.model", Value::String("words".into()))),
        edit("no tokens", "tokenizer", drop_key("tokenizer.ggml.tokens")),
        edit("a token fewer than rows", "tensor-shape", tokens(|all| drop(all.pop()))),
        edit("a token more than rows", "tensor-shape", tokens(|all| all.push("one more".into()))),
        edit("a token twice", "tokenizer", tokens(|all| all[300] = all[301].clone())),
        edit("an empty token", "tokenizer", tokens(|all| all[300].clear())),
        edit("no merges", "tokenizer", drop_key("tokenizer.ggml.merges")),
        edit("another pre-tokenizer", "tokenizer", set("tokenizer.ggml.pre", Value::String("words".into()))),
        edit("no pre-tokenizer", "tokenizer", drop_key("tokenizer.ggml.pre")),
        edit("scores of some tokens", "tokenizer", |p| {
            p.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0; 100])));
        }),
        edit("types of some tokens", "tokenizer", |p| {
            p.set("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1; 100])));
        }),
        edit("types of tokens as u32", "tokenizer", set("tokenizer.ggml.token_type", u32s(&[1; 512]))),
        edit("a bos token that is none", "tokenizer", set("tokenizer.ggml.bos_token_id", Value::U32(512))),
        edit("a bos token as i32", "key-type", set("tokenizer.ggml.bos_token_id", Value::I32(1))),
        edit("add_bos_token as u32", "key-type", set("tokenizer.ggml.add_bos_token", Value::U32(1))),
        edit("add_eos_token as u8", "key-type", set("tokenizer.ggml.add_eos_token", Value::U8(0))),
        edit("add_space_prefix as a string", "key-type", set("tokenizer.ggml.add_space_prefix", text_value("false"))),
        edit("a pre-tokenizer as u32", "key-type", set("tokenizer.ggml.pre", Value::U32(1))),
        edit("token_type_count as i32", "key-type", set("tokenizer.ggml.token_type_count", Value::I32(2))),
        edit("suppressed tokens as u32", "key-type", set("tokenizer.ggml.suppress_tokens", u32s(&[1]))),
        edit("suppressed tokens", None, set("tokenizer.ggml.suppress_tokens", Value::Array(Array::I32(vec![1])))),
        edit("general.name as u32", "key-type", set("general.name", Value::U32(1))),
        edit("general.file_type as a string", "key-type", set("general.file_type", text_value("Q4_K"))),
        edit("tensors for 4 bits", None, |p| {
            p.set("general.tensor_extra.name", Value::Array(Array::String(vec!["output.weight".into()])));
            p.set("general.tensor_extra.prec_a4", Value::Array(Array::Bool(vec![false])));
        }),
        edit("tensors for 4 bits, one of two said", "key-type", |p| {
            p.set("general.tensor_extra.name", Value::Array(Array::String(vec!["output.weight".into(); 2])));
            p.set("general.tensor_extra.prec_a4", Value::Array(Array::Bool(vec![false])));
        }),
        edit("tensors for 4 bits as numbers", "key-type", set("general.tensor_extra.name", u32s(&[1]))),
        edit("a tensor for 4 bits", None, set("general.tensor_extra.name", text_value("output.weight"))),
        edit("general.architecture as u32", "architecture", set("general.architecture", Value::U32(1))),
        edit("general.name as an array", "key-type", set("general.name", u32s(&[1]))),
        edit("general.quantization_version as a string", None, set("general.quantization_version", text_value("2"))),
        edit("a unknown token as i32", "key-type", set("tokenizer.ggml.unknown_token_id", Value::I32(1))),
        edit("a token of a kind that is none, as i32", None, set("tokenizer.ggml.eog_token_id", Value::I32(1))),
        edit("no vocabulary and no vocab_size", "key-missing", |p| {
            p.set("tokenizer.ggml.model", Value::String("none".into()));
            p.drop_key("qwen3moe.vocab_size");
        }),
        edit("no vocabulary and vocab_size as u64", "key-type", |p| {
            p.set("tokenizer.ggml.model", Value::String("none".into()));
            p.set("qwen3moe.vocab_size", Value::U64(512));
        }),
        edit("a token more than rows beside an unknown key", "tensor-shape", |p| {
            p.set("qwen3moe.a_key_of_next_year", Value::U32(1));
            tokens(|all| all.push("one more".into()))(p);
        }),
        edit("general.author as u32", None, set("general.author", Value::U32(1))),
        // Keys that this program does not understand as a whole, and one that contradicts the tensors.
        edit("heads of half the size beside an unknown key", "tensor-shape", |p| {
            p.set("qwen3moe.a_key_of_next_year", Value::U32(1));
            p.set("qwen3moe.attention.key_length", Value::U32(8));
            p.set("qwen3moe.rope.dimension_count", Value::U32(8));
        }),
        edit("embedding_length 32 beside an unknown key", "tensor-shape", |p| {
            p.set("qwen3moe.a_key_of_next_year", Value::U32(1));
            p.set("qwen3moe.embedding_length", Value::U32(32));
        }),
    ]
}

/// The model in two files.
fn split(first: impl Fn(&mut Pieces), second: impl Fn(&mut Pieces)) -> [Vec<u8>; 2] {
    let mut parts = [base(), base()];
    let n = parts[0].tensors.len();
    parts[0].tensors.truncate(n / 2);
    parts[1].tensors.drain(..n / 2);
    parts[1].keys.clear();
    for (i, part) in parts.iter_mut().enumerate() {
        part.set("split.no", Value::U16(i as u16));
        part.set("split.count", Value::U16(2));
        part.set("split.tensors.count", Value::I32(n as i32));
    }
    first(&mut parts[0]);
    second(&mut parts[1]);
    parts.map(|part| part.bytes())
}

fn splits() -> Vec<Case> {
    let names = ["s-00001-of-00002.gguf", "s-00002-of-00002.gguf"];
    let case = |name: &str, rule, of: [usize; 2], names: [&str; 2], files: [Vec<u8>; 2]| Case {
        name: name.into(),
        files: of.into_iter().map(|i| (names[i].to_string(), files[i].clone())).collect(),
        rule,
    };
    let none = |_: &mut Pieces| ();
    let all = [0, 1];
    let own = |p: &mut Pieces| p.tensors.truncate(3);
    vec![
        case("two parts", None, all, names, split(none, none)),
        case("two parts, the second opened", Some("split"), [1, 0], names, split(none, none)),
        Case {
            files: vec![(names[0].into(), split(none, none)[0].clone())],
            ..case("a part that is not there", Some("split"), all, names, split(none, none))
        },
        case("a part of another number", Some("split"), all, names, split(none, |p| p.set("split.no", Value::U16(2)))),
        case("parts without some tensors", Some("split"), all, names, split(none, own)),
        case("split.no as u32", Some("split"), all, names, split(|p| p.set("split.no", Value::U32(0)), none)),
        case("split.count as u32", Some("split"), all, names, split(|p| p.set("split.count", Value::U32(2)), none)),
        case("parts of another name", Some("split"), all, ["s-1.gguf", "s-2.gguf"], split(none, none)),
        case("a tensor in both parts", Some("tensor-twice"), all, names, {
            let twice = base().tensors[0].clone();
            split(none, move |p| p.tensors.push(twice.clone()))
        }),
        case("another count in the second part", Some("split"), all, names, {
            split(none, |p| p.set("split.count", Value::U16(3)))
        }),
    ]
}

/// A family's model, and its pieces without a tokenizer.
fn of_family(family: &str) -> (Gguf, Pieces) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/families/{family}.gguf"));
    let gguf = Gguf::open(&path).unwrap();
    let mut base = Pieces::of(&gguf);
    let architecture = gguf.metadata.str("general.architecture").unwrap();
    let vocabulary = gguf.tensor("token_embd.weight").unwrap().dims[1];
    base.set("tokenizer.ggml.model", Value::String("no_vocab".into()));
    base.set(&format!("{architecture}.vocab_size"), Value::U32(vocabulary as u32));
    (gguf, base)
}

/// Of each family each tensor left out, and with a row less. `None` for what is read of no file without it.
fn of_families() -> Vec<Case> {
    let mut all = Vec::new();
    for family in [
        "llama",
        "llama3",
        "mixtral",
        "mistral3",
        "qwen2",
        "qwen2moe",
        "qwen3-yarn",
        "olmoe",
        "gemma3",
        "glm4moe",
        "gpt-oss",
        "qwen3next",
        "qwen35",
        "qwen35moe",
        "deepseek3",
    ] {
        let (gguf, base) = of_family(family);
        let mut add = |what: &str, pieces: &Pieces, rule| {
            let name = format!("{family}: {what}");
            all.push(Case { name, files: vec![("family.gguf".into(), pieces.bytes())], rule });
        };
        add("plain", &base, None);
        let layers = ["blk.0.", "blk.1."];
        for t in gguf
            .tensors()
            .iter()
            .filter(|t| !t.name.starts_with("blk.") || layers.iter().any(|l| t.name.starts_with(l)))
        {
            let mut without = base.clone();
            without.drop_tensor(&t.name);
            add(&format!("no {}", t.name), &without, Some(""));
            let mut less = base.clone();
            let piece = less.tensor(&t.name);
            let last = piece.dims.len() - 1;
            if piece.dims[last] < 2 {
                continue;
            }
            let row = piece.bytes.len() / piece.dims[last] as usize;
            piece.dims[last] -= 1;
            piece.bytes.truncate(piece.bytes.len() - row);
            add(&format!("less of {}", t.name), &less, Some(""));
        }
    }
    all
}

fn cases() -> Vec<Case> {
    let of_edits = edits().into_iter().map(|(name, rule, edit)| {
        let mut pieces = base();
        edit(&mut pieces);
        Case { name: name.into(), files: vec![("model.gguf".into(), pieces.bytes())], rule }
    });
    of_edits.chain(splits()).chain(of_families()).chain(keys::of_keys()).collect()
}

/// What is said of a file and is not what llama.cpp does, and why.
const OTHERWISE: &[(&str, &str)] = &[(
    "two parts, the second opened",
    "the model is whole: only the first part's name opens it in llama.cpp, which is said",
)];

#[test]
fn what_is_found_is_what_llama_cpp_does() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/odd_files/checked.json");
    let keep = std::env::var_os("TWINSCOPE_CHECKED_FILES").map(PathBuf::from);
    let recorded: Json = match keep {
        None => serde_json::from_slice(&std::fs::read(recorded).unwrap()).unwrap(),
        Some(_) => Json::Null,
    };
    let loads: Vec<&str> = recorded["loads"].as_array().into_iter().flatten().map(|x| x.as_str().unwrap()).collect();
    let dir = tempfile::tempdir().unwrap();
    let mut list = String::new();
    let mut wrong = Vec::new();
    let mut counts = [0; 4];
    for (n, case) in cases().into_iter().enumerate() {
        let folder = keep.as_deref().unwrap_or(dir.path()).join(n.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        case.files.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
        let path = folder.join(&case.files[0].0);
        list += &format!("{}\t{}\n", case.name, path.display());
        let checked = check(Some(&path)).unwrap();
        let found = checked.found.all();
        let is = |severity| found.iter().any(|f| f.severity == severity);
        let refused = is(FindingSeverity::Refused) || is(FindingSeverity::Unreadable);
        let rules: Vec<&str> = found.iter().map(|f| f.rule).collect();
        match case.rule {
            _ if found.len() > 100 => wrong.push(format!("{}: {} findings", case.name, found.len())),
            Some("") => {}
            Some(rule) if !rules.contains(&rule) => {
                wrong.push(format!("{}: {rule} was expected of {found:#?}", case.name))
            }
            None if is(FindingSeverity::Misread) || refused => {
                wrong.push(format!("{}: nothing was expected of {found:#?}", case.name));
            }
            _ => {}
        }
        if keep.is_none() {
            let loaded = loads.contains(&case.name.as_str());
            let otherwise = OTHERWISE.iter().any(|(name, _)| *name == case.name);
            if loaded == refused && !otherwise {
                let did = if loaded { "loads it" } else { "refuses it" };
                wrong.push(format!("{}: llama.cpp {did}, found: {found:#?}", case.name));
            }
            counts[usize::from(refused) + 2 * usize::from(loaded)] += 1;
        }
        if !matches!(case.rule, Some("")) {
            let did = if loads.contains(&case.name.as_str()) { "loads" } else { "refuses" };
            let worst = found.first().map_or("sound", |f| f.severity.name());
            println!("{did:8} {worst:11} {:40} {}", case.name, rules.join(" "));
        }
    }
    if let Some(keep) = keep {
        std::fs::write(keep.join("list.txt"), list).unwrap();
    }
    println!(
        "{} files: llama.cpp refuses {}, and so it is found of {}; it loads {}, and nothing that it would refuse is found in {}",
        counts.iter().sum::<u32>(),
        counts[0] + counts[1],
        counts[1],
        counts[2] + counts[3],
        counts[2]
    );
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}
