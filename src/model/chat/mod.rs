//! A prompt as a server makes it: what the chat template of a model's file makes of messages.
//!
//! - A template is a program of whoever made the file. What it may do and how much it may make is bounded by [`FUEL`], what comes out
//!   by [`MOST_TEXT`]; it reaches no file, and of the machine the date alone.
//! - Templates are written for transformers, which runs them with Python's jinja2: blocks are trimmed, `tojson` does not escape for HTML, and
//!   strings, lists and maps have Python's methods. What transformers hands to a template is here, too: `raise_exception`,
//!   `strftime_now`, `{% generation %}`. What a caller did not say (tools, documents, thinking) is undefined, as there; llama-server says
//!   `enable_thinking` itself, true where it is not told otherwise (`common_chat_template_direct_apply_impl` in its `common/chat.cpp`).

mod python;

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context};
use regex::Regex;

use python::{date, from_json, method, to_json};

use crate::text::message;

/// Steps that a template may take, one of them for each 64 bytes that it makes: real ones take a few thousand.
const FUEL: u64 = 1 << 20;
/// Bytes that a template may add to the messages.
const MOST_TEXT: usize = 1 << 20;
/// Bytes of a template: the longest of published ones have 30 thousand.
const MOST_TEMPLATE: usize = 1 << 18;
/// How long a template may run: what it prints of a list that has another twice, which has another twice, costs no step.
const LONGEST: Duration = Duration::from_secs(10);
/// Stack of the thread that renders: a template of [`MOST_TEMPLATE`] is parsed and dropped by recursion.
const STACK: usize = 1 << 28;

/// What every template is given.
pub(super) const OWN: [&str; 4] = ["messages", "bos_token", "eos_token", "add_generation_prompt"];

/// What a template is given.
pub(super) struct Chat {
    /// The template.
    pub template: String,
    /// The text of the file's token of the beginning; empty where it names none.
    pub bos: String,
    /// That of its end.
    pub eos: String,
    /// What the system says before the user does.
    pub system: Option<String>,
    /// What the user says.
    pub user: String,
    /// What else the template may read, by name.
    pub variables: Vec<(String, serde_json::Value)>,
    /// Seconds since 1970, of the date that a template may ask for.
    pub now: u64,
}

impl Chat {
    /// The text of the messages, up to where the model answers.
    ///
    /// # Errors
    /// One line: what is wrong with the template, or what it says.
    pub fn render(self) -> Result<String, String> {
        if self.template.len() > MOST_TEMPLATE {
            return Err(format!("expected at most {MOST_TEMPLATE} bytes, found {}", self.template.len()));
        }
        let most = MOST_TEXT + self.said();
        let (send, receive) = std::sync::mpsc::channel();
        // One that does not end in time is left to itself: the process ends with this error.
        let work = move || drop(send.send(self.rendered()));
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK).spawn(work);
        thread.map_err(|e| format!("cannot start a thread: {e}"))?;
        let rendered = match receive.recv_timeout(LONGEST) {
            Ok(rendered) => rendered?,
            Err(RecvTimeoutError::Timeout) => return Err(format!("it has not ended after {LONGEST:?}")),
            Err(RecvTimeoutError::Disconnected) => return Err("it could not be run".to_string()),
        };
        match rendered.len() > most {
            true => Err(format!("it makes more than {MOST_TEXT} bytes of text beside the messages")),
            false => Ok(rendered),
        }
    }

    /// Bytes of the messages.
    fn said(&self) -> usize {
        let variables = self.variables.iter().map(|(_, value)| value.to_string().len());
        self.user.len() + self.system.as_ref().map_or(0, String::len) + variables.sum::<usize>()
    }

    fn rendered(self) -> Result<String, String> {
        let mut environment = Environment::new();
        // Messages may be long; a template goes over them a few times.
        environment.set_fuel(Some(FUEL + self.said() as u64));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(method);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| why(&e))?);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |said: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, format!("{SAYS}{said}")))
        });
        let now = self.now;
        environment.add_function("strftime_now", move |format: &str| date(now, format));
        let template = without_generation(&self.template);
        let template = environment.template_from_str(&template).map_err(|e| why(&e))?;
        let message = |role: &str, content: String| context! { role, content };
        let system = self.system.map(|text| message("system", text));
        let messages: Vec<Value> = system.into_iter().chain([message("user", self.user)]).collect();
        let (bos_token, eos_token) = (self.bos, self.eos);
        let own = context! { messages, bos_token, eos_token, add_generation_prompt => true };
        let said = Value::from_pairs(self.variables.into_iter().map(|(name, value)| (name, from_json(value))));
        template.render(context! { ..own, ..said }).map_err(|e| why(&e))
    }
}

/// How the detail of an error begins that the template raised by itself.
const SAYS: &str = "it says: ";

/// A template without the statement that marks what a model said, which transformers has for training: what is inside stays.
fn without_generation(template: &str) -> String {
    let tag = |name: &str| Regex::new(&format!(r"(\{{%[-+]?\s*){name}(\s*[-+]?%\}})")).expect("a valid pattern");
    let begun = tag("generation").replace_all(template, "${1}if true${2}");
    tag("endgeneration").replace_all(&begun, "${1}endif${2}").into_owned()
}

/// What went wrong, and where, in one line.
fn why(error: &Error) -> String {
    // The innermost says what; those around it only through which macro it was reached.
    let mut innermost = error;
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        if let Some(source) = source.downcast_ref::<Error>() {
            innermost = source;
        }
        next = source.source();
    }
    let line = innermost.line().or(error.line()).map_or(String::new(), |line| format!("line {line}: "));
    let what = match (innermost.kind(), innermost.detail()) {
        (ErrorKind::OutOfFuel, _) => "it does not end, or makes too much".to_string(),
        (ErrorKind::InvalidOperation, Some(detail)) if detail.starts_with(SAYS) => detail.to_string(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    message(&format!("{line}{what}"))
}

#[cfg(test)]
mod tests;
