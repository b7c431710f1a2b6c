//! Which backends can run a model, and why not.

use crate::Result;
use crate::backend::{Backend, Need};
use crate::cli::common::BackendArgs;

/// The backends that are asked, by the names that the command line knows them by.
const BACKENDS: &[&str] = &["oracle", "cpu"];

/// Whether one backend can run the model.
#[derive(Debug, PartialEq, serde::Serialize)]
pub struct Runnable {
    pub backend: String,
    pub ok: bool,
    /// What is missing; `None` if nothing is.
    pub why: Option<String>,
}

/// Asks each backend. `needs` is what the model asks of one, or why the file is no model for the forward pass.
pub fn runnable(needs: &Result<Vec<Need>, String>) -> Vec<Runnable> {
    BACKENDS.iter().map(|name| one(name, needs, |n| Ok(BackendArgs::default().open(name)?.unsupported(n)))).collect()
}

fn one(
    backend: &str,
    needs: &Result<Vec<Need>, String>,
    unsupported: impl Fn(&[Need]) -> Result<Vec<String>>,
) -> Runnable {
    let why = match needs {
        Err(why) => Some(why.clone()),
        Ok(needs) => match unsupported(needs) {
            Err(e) => Some(e.to_string()),
            Ok(missing) if missing.is_empty() => None,
            Ok(missing) => Some(some(&missing)),
        },
    };
    Runnable { backend: backend.into(), ok: why.is_none(), why }
}

/// The first few of many lines that differ in a layer number only, and how many more there are.
fn some(missing: &[String]) -> String {
    const SHOWN: usize = 3;
    let more = missing.len().saturating_sub(SHOWN);
    let shown = missing[..missing.len() - more].join("; ");
    if more > 0 { format!("{shown}; and {more} more tensors") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn whatever_is_missing_is_said() {
        let why = |needs: &Result<Vec<Need>, String>, answer: fn(&[Need]) -> Result<Vec<String>>| {
            let row = one("x", needs, answer);
            assert_eq!(row.ok, row.why.is_none());
            row.why
        };
        let model = Ok(vec![]);
        assert_eq!(why(&model, |_| Ok(vec![])), None);
        assert_eq!(why(&model, |_| Ok(vec!["a".into(), "b".into()])).as_deref(), Some("a; b"));
        let five = |_: &[Need]| Ok((0..5).map(|i| format!("t{i}")).collect());
        assert_eq!(why(&model, five).as_deref(), Some("t0; t1; t2; and 2 more tensors"));
        assert_eq!(why(&model, |_| Err(Error::cannot_run("no adapter"))).as_deref(), Some("no adapter"));
        assert_eq!(why(&Err("no model".into()), |_| Ok(vec![])).as_deref(), Some("no model"));
    }
}
