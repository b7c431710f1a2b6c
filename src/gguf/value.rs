//! Metadata: ordered, typed key/value pairs, and getters whose errors name the key, the type expected and what was found.

use std::collections::HashMap;
use std::fmt;

use crate::text::printable;
use crate::{Error, Result};

/// The types of metadata values, with GGUF's own numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)] // GGUF's names
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [Self; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    /// The type with GGUF's number `id`.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u32 == id)
    }

    /// GGUF's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// The fewest bytes that a value takes in a file: its size, or that of an empty string or array.
    pub(super) fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // GGUF's names
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array value. All elements are of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // GGUF's names
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Array {
    /// The type of its elements.
    pub fn element_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
            Self::Array(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of an integer array, as `T`; `None` if the elements are not integers, or one does not fit.
    fn integers<T: TryFrom<i128>>(&self) -> Option<Vec<T>> {
        fn fit<S: Copy + Into<i128>, T: TryFrom<i128>>(v: &[S]) -> Option<Vec<T>> {
            v.iter().map(|&x| T::try_from(x.into()).ok()).collect()
        }
        match self {
            Self::U8(v) => fit(v),
            Self::I8(v) => fit(v),
            Self::U16(v) => fit(v),
            Self::I16(v) => fit(v),
            Self::U32(v) => fit(v),
            Self::I32(v) => fit(v),
            Self::U64(v) => fit(v),
            Self::I64(v) => fit(v),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) | Self::Array(_) => None,
        }
    }
}

impl Value {
    /// Its type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    pub(crate) fn as_integer(&self) -> Option<i128> {
        match *self {
            Self::U8(x) => Some(x.into()),
            Self::I8(x) => Some(x.into()),
            Self::U16(x) => Some(x.into()),
            Self::I16(x) => Some(x.into()),
            Self::U32(x) => Some(x.into()),
            Self::I32(x) => Some(x.into()),
            Self::U64(x) => Some(x.into()),
            Self::I64(x) => Some(x.into()),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) | Self::Array(_) => None,
        }
    }
}

/// The type and the value, short enough for a message: `u32 7`, `string "qwen3moe"`, `array of 2048 string`.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(x) => write!(f, "u8 {x}"),
            Self::I8(x) => write!(f, "i8 {x}"),
            Self::U16(x) => write!(f, "u16 {x}"),
            Self::I16(x) => write!(f, "i16 {x}"),
            Self::U32(x) => write!(f, "u32 {x}"),
            Self::I32(x) => write!(f, "i32 {x}"),
            Self::F32(x) => write!(f, "f32 {x}"),
            Self::Bool(x) => write!(f, "bool {x}"),
            Self::String(x) => write!(f, "string \"{}\"", printable(x)),
            Self::Array(x) => write!(f, "array of {} {}", x.len(), x.element_type().name()),
            Self::U64(x) => write!(f, "u64 {x}"),
            Self::I64(x) => write!(f, "i64 {x}"),
            Self::F64(x) => write!(f, "f64 {x}"),
        }
    }
}

/// The key/value pairs of a file, in the file's order.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// Where they come from, for messages.
    source: String,
    pairs: Vec<(String, Value)>,
    /// Keys with text that is not UTF-8 in the file.
    pub(super) not_utf8: Vec<String>,
    index: HashMap<String, usize>,
}

/// Equal pairs in equal order; the source does not count.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.pairs == other.pairs
    }
}

/// Declares `name(key) -> Result<T>` and `name_opt(key) -> Result<Option<T>>`.
macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident, $opt:ident -> $ty:ty, $expected:literal, |$v:ident| $convert:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// If the key is missing, or its value is of another type or does not fit.
        pub fn $name(&self, key: &str) -> Result<$ty> {
            self.$opt(key)?.ok_or_else(|| self.missing(key, $expected))
        }
        #[doc = concat!("Like [`Metadata::", stringify!($name), "`], but `None` where the key is missing.")]
        ///
        /// # Errors
        /// If the value is of another type or does not fit.
        pub fn $opt(&self, key: &str) -> Result<Option<$ty>> {
            self.get(key).map(|$v| $convert.ok_or_else(|| self.mismatch(key, $expected, $v))).transpose()
        }
    )*};
}

impl Metadata {
    /// No pairs yet; `source` is what errors call the file.
    pub fn new(source: &str) -> Self {
        Self { source: source.into(), ..Self::default() }
    }

    /// Adds a pair, or gives an existing key another value.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.index.get(key) {
            Some(&i) => self.pairs[i].1 = value,
            None => {
                self.index.insert(key.into(), self.pairs.len());
                self.pairs.push((key.into(), value));
            }
        }
    }

    /// Where the pairs come from, as messages call it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.pairs[i].1)
    }

    /// Whether there is a value of `key`.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// Keys and values, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Keys with text that is not UTF-8 in the file: U+FFFD stands there for what is not.
    pub fn not_utf8(&self) -> &[String] {
        &self.not_utf8
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    fn missing(&self, key: &str, expected: &str) -> Error {
        Error::input(format!("{}: key {}: expected {expected}, found no such key", self.source, printable(key)))
    }

    fn mismatch(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::input(format!("{}: key {}: expected {expected}, found {found}", self.source, printable(key)))
    }

    getters! {
        /// An integer of any type whose value fits.
        u32, u32_opt -> u32, "an integer that fits u32", |v| v.as_integer().and_then(|x| u32::try_from(x).ok());
        /// An integer of any type whose value fits.
        u64, u64_opt -> u64, "an integer that fits u64", |v| v.as_integer().and_then(|x| u64::try_from(x).ok());
        /// An integer of any type whose value fits.
        i32, i32_opt -> i32, "an integer that fits i32", |v| v.as_integer().and_then(|x| i32::try_from(x).ok());
        /// An f32, or an f64 rounded to f32.
        f32, f32_opt -> f32, "f32", |v| match v { Value::F32(x) => Some(*x), Value::F64(x) => Some(*x as f32), _ => None };
        bool, bool_opt -> bool, "bool", |v| match v { Value::Bool(x) => Some(*x), _ => None };
        str, str_opt -> &str, "string", |v| match v { Value::String(x) => Some(x.as_str()), _ => None };
        str_array, str_array_opt -> &[String], "array of string",
            |v| match v { Value::Array(Array::String(x)) => Some(x.as_slice()), _ => None };
        /// Integers of any type whose values fit.
        i32_array, i32_array_opt -> Vec<i32>, "array of integers that fit i32",
            |v| match v { Value::Array(x) => x.integers(), _ => None };
        /// Integers of any type whose values fit.
        u32_array, u32_array_opt -> Vec<u32>, "array of integers that fit u32",
            |v| match v { Value::Array(x) => x.integers(), _ => None };
        /// f32 values, or f64 values rounded to f32.
        f32_array, f32_array_opt -> Vec<f32>, "array of f32", |v| match v {
            Value::Array(Array::F32(x)) => Some(x.clone()),
            Value::Array(Array::F64(x)) => Some(x.iter().map(|&x| x as f32).collect()),
            _ => None,
        };
        bool_array, bool_array_opt -> &[bool], "array of bool",
            |v| match v { Value::Array(Array::Bool(x)) => Some(x.as_slice()), _ => None };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let mut m = Metadata::new("f.gguf");
        m.set("u", Value::U8(7));
        m.set("i", Value::I64(-1));
        m.set("f", Value::F64(0.5));
        m.set("s", Value::String("a\u{1b}b".into()));
        m.set("a", Value::Array(Array::U16(vec![1, 65535])));
        m
    }

    #[test]
    fn integers_of_any_type_are_read_when_they_fit() {
        let m = sample();
        assert_eq!(m.u32("u").unwrap(), 7);
        assert_eq!(m.i32("i").unwrap(), -1);
        assert_eq!(m.i32_array("a").unwrap(), [1, 65535]);
        assert_eq!(m.f32("f").unwrap(), 0.5);
        assert_eq!(
            m.u32("i").unwrap_err().to_string(),
            "f.gguf: key i: expected an integer that fits u32, found i64 -1"
        );
    }

    #[test]
    fn errors_name_key_expected_and_found() {
        let m = sample();
        assert_eq!(m.f32("none").unwrap_err().to_string(), "f.gguf: key none: expected f32, found no such key");
        assert_eq!(m.f32("s").unwrap_err().to_string(), "f.gguf: key s: expected f32, found string \"a\\u{1b}b\"");
        assert_eq!(
            m.str_array("a").unwrap_err().to_string(),
            "f.gguf: key a: expected array of string, found array of 2 u16"
        );
        assert_eq!(m.str_opt("none").unwrap(), None);
        assert!(m.str_opt("u").is_err(), "a wrong type is an error even where the key is optional");
    }
}
