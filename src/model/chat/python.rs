//! What templates have from Python: its JSON, and its dates.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::MOST_TEXT;

/// How deep JSON nests.
const DEEPEST: usize = 64;

/// The methods of Python's strings, lists and maps. `format` of a width is not one of them: it could be any.
pub(super) fn method(state: &mut State<'_, '_>, of: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if name == "format" && of.as_str().is_some_and(|text| text.contains(':') && text.contains('{')) {
        return Err(Error::new(ErrorKind::InvalidOperation, "format: fields with a : are not supported"));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, of, name, args)
}

/// `json.dumps`, as transformers has it: what HTML means stays as it is, and so does what is not ASCII, unless it is to be escaped.
pub(super) fn to_json(state: &State<'_, '_>, value: &Value, args: Kwargs) -> Result<Value, Error> {
    let ascii: Option<bool> = args.get("ensure_ascii")?;
    let indent: Option<usize> = args.get("indent")?;
    args.assert_all_used()?;
    let mut json = Json { out: String::new(), ascii: ascii.unwrap_or(false), indent };
    json.value(value, 0)?;
    state.consume_fuel((json.out.len() / 64) as u64)?;
    Ok(Value::from(json.out))
}

/// What JSON says, as a template reads it.
pub(super) fn from_json(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(yes) => Value::from(yes),
        Json::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => Value::from(n),
            (None, n) => Value::from(n.unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text),
        Json::Array(all) => all.into_iter().map(from_json).collect(),
        Json::Object(all) => Value::from_pairs(all.into_iter().map(|(name, value)| (name, from_json(value)))),
    }
}

struct Json {
    out: String,
    ascii: bool,
    indent: Option<usize>,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        // A list that has another twice, which has another twice, is short to write and long to read.
        if self.out.len() > MOST_TEXT || depth > DEEPEST {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is too large"));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Map => {
                let keys: Vec<Value> = value.try_iter()?.collect();
                self.list(['{', '}'], &keys, depth, |json, key| {
                    json.text(&key.to_string());
                    json.out.push_str(": ");
                    json.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(['[', ']'], &items, depth, |json, item| json.value(item, depth + 1))?;
            }
            ValueKind::Number => self.out.push_str(&value.to_string()),
            _ => match value.as_str() {
                Some(text) => self.text(text),
                None => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: expected a value")),
            },
        }
        Ok(())
    }

    fn list(
        &mut self,
        [open, close]: [char; 2],
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            match self.indent {
                Some(_) if i > 0 => self.out.push(','),
                None if i > 0 => self.out.push_str(", "),
                _ => {}
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    /// A line's beginning, where the text has lines.
    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent.min(64) * depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    self.out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `strftime` of a moment in UTC, for what templates ask for.
pub(super) fn date(now: u64, format: &str) -> Result<String, Error> {
    let (year, month, day) = crate::environment::civil(now / 86_400);
    let seconds = now % 86_400;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let (weekday, name) = (DAYS[(now / 86_400 % 7) as usize], MONTHS[month as usize - 1]);
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut letter = chars.next();
        let bare = letter == Some('-');
        if bare {
            letter = chars.next();
        }
        let number = |n: u64| if bare { n.to_string() } else { format!("{n:02}") };
        out += &match letter {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100),
            Some('m') => number(month),
            Some('d') => number(day),
            Some('e') => format!("{day:2}"),
            Some('B') => name.to_string(),
            Some('b' | 'h') => name[..3].to_string(),
            Some('A') => weekday.to_string(),
            Some('a') => weekday[..3].to_string(),
            Some('H') => number(hour),
            Some('I') => number(hour12),
            Some('M') => number(minute),
            Some('S') => number(second),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_string(),
            Some('z') => "+0000".to_string(),
            Some('%') => "%".to_string(),
            other => {
                let other = other.map_or(String::new(), String::from);
                let what = format!("strftime_now: %{other} of {format:?} is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        };
    }
    Ok(out)
}
