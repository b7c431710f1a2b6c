//! Which backends can run a model, and why not.

use crate::backend::gpu::GpuBackend;
use crate::backend::{Backend, Need};
use crate::cli::common::BackendArgs;
use crate::report::inspect::Runnable;
use crate::{Error, Result};

/// Asks each backend. `needs` is what the model asks of one, or why the file is no model for the forward pass; `gpu` is the
/// best adapter, or why there is none.
pub fn runnable(needs: &Result<Vec<Need>, String>, gpu: &Result<GpuBackend>) -> Vec<Runnable> {
    let on_host = |name| one(name, needs, |n| Ok(BackendArgs::default().open(name)?.unsupported(n)));
    let on_gpu = one("gpu", needs, |n| match gpu {
        Ok(gpu) => Ok(gpu.unsupported(n)),
        Err(e) => Err(Error::cannot_run(e.to_string())),
    });
    vec![on_host("oracle"), on_host("cpu"), on_gpu]
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
