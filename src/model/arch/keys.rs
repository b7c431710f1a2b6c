//! The keys of an architecture's namespace: reading them, what stands for one that is absent, and what becomes of the others.
//!
//! - A key that changes the arithmetic has a default only where the architecture's definition has one, as llama.cpp reads it; `inspect`
//!   lists those that applied.
//! - Every key that is read is remembered. What is left is either known to change nothing, or known to change nothing with the value
//!   that it has, and listed as ignored; or else it is refused by name.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::gguf::{Array, Gguf, Value};
use crate::text::printable;

/// What a file leaves to the definition of its architecture, and what it says that changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct KeyReport {
    /// Absent keys, in the order in which they are asked for.
    pub defaults: Vec<DefaultKey>,
    /// Keys that are not read, in the order of the file.
    pub ignored: Vec<IgnoredKey>,
    /// Keys that are read, and of which there is something to know.
    pub remarks: Vec<KeyRemark>,
}

/// A key that is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DefaultKey {
    /// Without the architecture's name.
    pub key: String,
    /// What stands for it.
    pub value: serde_json::Value,
}

/// A key that is not read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IgnoredKey {
    /// Without the architecture's name.
    pub key: String,
    /// Why it changes nothing.
    pub why: &'static str,
}

/// What there is to know of a key that is read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeyRemark {
    /// Without the architecture's name.
    pub key: String,
    /// It.
    pub remark: String,
    /// Other engines compute something else.
    #[serde(skip)]
    pub differs: bool,
}

impl KeyReport {
    /// Of keys by which other engines compute something else, what is to be known.
    pub fn elsewhere(&self) -> Vec<String> {
        let differ = self.remarks.iter().filter(|remark| remark.differs);
        differ.map(|remark| format!("{}: {}", remark.key, remark.remark)).collect()
    }
}

/// Keys that no architecture here computes with.
const INFORMATION: &[(&str, &str)] = &[
    ("vocab_size", "token_embd.weight says how many tokens there are"),
    ("tensor_data_layout", "GGUF has one layout"),
    ("rope.scaling.finetuned", "it says how the model was trained"),
    ("rope.scaling.original_context_length", "only YaRN and LongRoPE scale by it"),
    ("rope.scaling.yarn_beta_fast", "only YaRN uses it"),
    ("rope.scaling.yarn_beta_slow", "only YaRN uses it"),
    ("rope.scaling.yarn_ext_factor", "only YaRN uses it"),
    ("rope.scaling.yarn_attn_factor", "only YaRN uses it"),
    ("rope.scaling.yarn_log_multiplier", "only YaRN uses it"),
    ("pooling_type", "logits are not pooled"),
    ("interleave_moe_layer_step", "the tensors say which layers have experts"),
    ("leading_dense_block_count", "the tensors say which layers have experts"),
    ("expert_feed_forward_length", "feed_forward_length is the experts' width"),
    ("feed_forward_length", "expert_feed_forward_length is the experts' width"),
];

/// Keys of variations that are computed nowhere here, and the numbers that switch them off.
const SWITCHED_OFF: &[(&str, &[f64])] = &[
    ("attention.sliding_window", &[0.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.scale", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("router_logit_softcapping", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("rope.scaling.attn_factor", &[1.0]),
    ("expert_count", &[0.0]),
    ("expert_used_count", &[0.0]),
    ("expert_shared_count", &[0.0]),
    ("expert_shared_feed_forward_length", &[0.0]),
    ("expert_group_count", &[0.0, 1.0]),
    ("expert_group_used_count", &[0.0, 1.0]),
    ("expert_weights_scale", &[0.0, 1.0]),
    // 1 is a softmax over all experts.
    ("expert_gating_func", &[0.0, 1.0]),
    ("nextn_predict_layers", &[0.0]),
];

/// The keys under an architecture's name.
pub struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'static str,
    read: RefCell<BTreeSet<&'static str>>,
    defaults: RefCell<Vec<DefaultKey>>,
    remarks: RefCell<Vec<KeyRemark>>,
}

impl<'a> Keys<'a> {
    pub fn new(gguf: &'a Gguf, architecture: &'static str) -> Self {
        Self { gguf, architecture, read: RefCell::default(), defaults: RefCell::default(), remarks: RefCell::default() }
    }

    /// The whole name of a key.
    pub fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// The architecture's name.
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// An error that names the file.
    pub fn bad(&self, what: String) -> Error {
        Error::input(format!("{}: {what}", self.gguf.name()))
    }

    fn value(&self, name: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(name);
        self.gguf.metadata.get(&self.full(name))
    }

    /// Notes what there is to know of `name`, which is read.
    pub fn remark(&self, name: &str, remark: impl Into<String>) {
        self.remarks.borrow_mut().push(KeyRemark { key: name.into(), remark: remark.into(), differs: false });
    }

    /// Notes of `name`, which is read, that other engines compute something else.
    pub fn differs(&self, name: &str, remark: impl Into<String>) {
        self.remarks.borrow_mut().push(KeyRemark { key: name.into(), remark: remark.into(), differs: true });
    }

    /// Notes that `value` stands for an absent key.
    fn default<T: Copy + Into<serde_json::Value>>(&self, name: &'static str, value: T) -> T {
        self.defaults.borrow_mut().push(DefaultKey { key: name.into(), value: value.into() });
        value
    }

    /// A number above 0, or an array of one such number for each layer if they are all the same.
    pub fn size_opt(&self, name: &'static str) -> Result<Option<usize>> {
        let key = self.full(name);
        let value = match self.value(name) {
            None => return Ok(None),
            Some(Value::Array(_)) => {
                let all = self.gguf.metadata.u32_array(&key)?;
                match all.iter().find(|x| **x != all[0]) {
                    Some(other) => {
                        let first = all[0];
                        return Err(self.bad(format!(
                            "{key} is {first} in one layer and {other} in another; all layers alike are supported"
                        )));
                    }
                    None => *all.first().ok_or_else(|| self.bad(format!("{key} is an empty array")))?,
                }
            }
            Some(_) => self.gguf.metadata.u32(&key)?,
        };
        if value == 0 {
            return Err(self.bad(format!("{key} is 0")));
        }
        Ok(Some(value as usize))
    }

    /// A number above 0 that the file must say.
    pub fn size(&self, name: &'static str) -> Result<usize> {
        match self.size_opt(name)? {
            Some(size) => Ok(size),
            None => self.gguf.metadata.u32(&self.full(name)).map(|n| n as usize), // which says that it is missing
        }
    }

    /// A number above 0, or what the definition has for it.
    pub fn size_or(&self, name: &'static str, default: impl FnOnce() -> Result<usize>) -> Result<usize> {
        match self.size_opt(name)? {
            Some(size) => Ok(size),
            None => Ok(self.default(name, default()?)),
        }
    }

    /// A count that may be 0 or absent, which is the same.
    pub fn count(&self, name: &'static str) -> Result<usize> {
        self.value(name);
        Ok(self.gguf.metadata.u32_opt(&self.full(name))?.unwrap_or(0) as usize)
    }

    /// A finite number above 0, if the file says one.
    pub fn positive_opt(&self, name: &'static str) -> Result<Option<f32>> {
        let value = match self.value(name) {
            Some(all @ Value::Array(Array::F32(_) | Array::F64(_))) => same_in_all(all).map(|x| x as f32),
            _ => None,
        };
        let value = match value {
            None => self.gguf.metadata.f32_opt(&self.full(name))?,
            value => value,
        };
        match value {
            Some(x) if !(x.is_finite() && x > 0.0) => {
                Err(self.bad(format!("{} is {x}; a positive number is expected", self.full(name))))
            }
            value => Ok(value),
        }
    }

    /// A finite number above 0, if the file says one: 0 switches off what it is about.
    pub fn positive_or_off(&self, name: &'static str) -> Result<Option<f32>> {
        match self.gguf.metadata.f32_opt(&self.full(name)) {
            Ok(Some(0.0)) => {
                self.value(name);
                Ok(None)
            }
            _ => self.positive_opt(name),
        }
    }

    /// A finite number above 0 that the file must say.
    pub fn positive(&self, name: &'static str) -> Result<f32> {
        match self.positive_opt(name)? {
            Some(x) => Ok(x),
            None => self.gguf.metadata.f32(&self.full(name)), // which says that it is missing
        }
    }

    /// A finite number above 0, or what the definition has for it.
    pub fn positive_or(&self, name: &'static str, default: f32) -> Result<f32> {
        Ok(self.positive_opt(name)?.unwrap_or_else(|| self.default(name, default)))
    }

    /// A number above 0, 0 or none of which say 1.
    pub fn scale_or_one(&self, name: &'static str) -> Result<f32> {
        match self.gguf.metadata.contains(&self.full(name)) {
            true => Ok(self.positive_or_off(name)?.unwrap_or(1.0)),
            false => self.positive_or(name, 1.0),
        }
    }

    pub fn bool_or(&self, name: &'static str, default: bool) -> Result<bool> {
        self.value(name);
        Ok(self.gguf.metadata.bool_opt(&self.full(name))?.unwrap_or_else(|| self.default(name, default)))
    }

    /// An array of bool, if there is one.
    pub fn bools_opt(&self, name: &'static str) -> Result<Option<&'a [bool]>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(Array::Bool(found))) => Ok(Some(found)),
            Some(other) => Err(self.bad(format!("{}: an array of bool was expected, found {other}", self.full(name)))),
        }
    }

    /// Numbers in an array, if there is one.
    pub fn counts_opt(&self, name: &'static str) -> Result<Option<Vec<u32>>> {
        match self.value(name) {
            None => Ok(None),
            Some(_) => self.gguf.metadata.u32_array(&self.full(name)).map(Some),
        }
    }

    pub fn str_opt(&self, name: &'static str) -> Result<Option<&'a str>> {
        self.read.borrow_mut().insert(name);
        self.gguf.metadata.str_opt(&self.full(name))
    }

    /// What the file left open, and what it says that is not read.
    ///
    /// # Errors
    /// A key that is not read and could change the result.
    pub fn finish(self) -> Result<KeyReport> {
        let prefix = self.full("");
        let read = self.read.borrow();
        let others = self.gguf.metadata.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value)));
        let mut ignored = Vec::new();
        for (key, value) in others.filter(|(key, _)| !read.contains(key)) {
            let why = harmless(key, value).ok_or_else(|| {
                let (key, architecture) = (printable(&self.full(key)), self.architecture);
                self.bad(format!("{key} is {value}; {architecture} with that is not supported, and leaving it out could change the result"))
            })?;
            ignored.push(IgnoredKey { key: key.into(), why });
        }
        drop(read);
        Ok(KeyReport { defaults: self.defaults.into_inner(), ignored, remarks: self.remarks.into_inner() })
    }
}

/// The number of an array in which it is the same for every layer.
fn same_in_all(value: &Value) -> Option<f64> {
    let Value::Array(array) = value else { return None };
    let mut numbers: Box<dyn Iterator<Item = f64> + '_> = match array {
        Array::F32(all) => Box::new(all.iter().map(|x| *x as f64)),
        Array::F64(all) => Box::new(all.iter().copied()),
        Array::U32(all) => Box::new(all.iter().map(|x| *x as f64)),
        Array::I32(all) => Box::new(all.iter().map(|x| *x as f64)),
        Array::Bool(all) => Box::new(all.iter().map(|x| f64::from(u8::from(*x)))),
        _ => return None,
    };
    let first = numbers.next()?;
    numbers.all(|x| x == first).then_some(first)
}

/// Why a key that is not read changes nothing; `None` if it could.
fn harmless(key: &str, value: &Value) -> Option<&'static str> {
    if let Some((_, why)) = INFORMATION.iter().find(|(name, _)| *name == key) {
        return Some(why);
    }
    let number = match *value {
        Value::F32(x) => Some(x as f64),
        Value::F64(x) => Some(x),
        Value::Bool(x) => Some(x.into()),
        Value::Array(_) => same_in_all(value),
        _ => value.as_integer().map(|x| x as f64),
    };
    const OFF: &str = "its value switches it off";
    if key == "attention.causal" {
        return (number == Some(1.0)).then_some("attention here is causal");
    }
    let off = match SWITCHED_OFF.iter().find(|(name, _)| *name == key) {
        Some((_, off)) => number.is_some_and(|x| off.contains(&x)),
        // Nobody here knows it: zero, false and an empty text say that there is nothing of the kind.
        None => number == Some(0.0) || matches!(value, Value::String(text) if text.is_empty()),
    };
    off.then_some(OFF)
}
