//! Planted shaders: a real kernel's source with a few strings exchanged.
//!
//! The kernels have no switch for faults. A plant names the exact text that it changes, and text that does not occur exactly once in
//! the kernel that runs is an error: an edit that no longer applies would plant nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::faulty::Mistake;
use crate::backend::gpu::{AdapterSelector, GpuBackend, GpuOptions};
use crate::backend::{AnyBackend, Erased};
use crate::error::{Error, Result};

/// Text of a kernel and what to put in its place, where `{expert}` stands for the number of an expert.
pub type Edit = (&'static str, &'static str);

/// A shader made wrong.
#[derive(Clone, Copy, Debug)]
pub struct Shader {
    /// The kernel's name: that of its file in `shaders/`.
    pub kernel: &'static str,
    pub edits: &'static [Edit],
}

impl Shader {
    /// The source with all edits made.
    ///
    /// # Errors
    /// If the text of an edit does not occur exactly once.
    pub fn plant(&self, kernel: &str, source: &str, expert: u32) -> Result<String> {
        let mut source = source.to_string();
        for (from, to) in self.edits {
            let found = source.matches(from).count();
            if found != 1 {
                return Err(Error::usage(format!(
                    "a planted fault of kernel {kernel}: expected the text {from:?} once in its source, found it {found} times"
                )));
            }
            source = source.replacen(from, &to.replace("{expert}", &expert.to_string()), 1);
        }
        Ok(source)
    }

    /// Whether `full_name`, `kernel` or `kernel/TYPE`, is the kernel that this changes.
    pub fn changes(&self, full_name: &str) -> bool {
        full_name.split('/').next() == Some(self.kernel)
    }
}

/// The mistake of running the operation through a planted shader, on a device of its own that is opened when it first has to.
/// Of `shaders` the adapter runs one: kernels for different adapters are different kernels.
pub fn mistake(shaders: &'static [Shader], adapter: AdapterSelector) -> Mistake {
    let mut gpu: Option<AnyBackend> = None;
    // Whether a kernel was planted, or why it was not.
    let planted: Arc<Mutex<Result<bool>>> = Arc::new(Mutex::new(Ok(false)));
    Box::new(move |engine, op| {
        if gpu.is_none() {
            let (outcome, expert) = (planted.clone(), engine.expert);
            let patch = move |name: &str, source: String| {
                let Some(shader) = shaders.iter().find(|s| s.changes(name)) else { return source };
                let wrong = shader.plant(name, &source, expert);
                let source = wrong.as_ref().map_or(source, String::clone);
                *lock(&outcome) = wrong.map(|_| true);
                source
            };
            let options = GpuOptions { patch: Some(Arc::new(patch)), ..Default::default() };
            gpu = Some(Box::new(Erased(GpuBackend::new(&adapter, options)?)));
        }
        let wrong = engine.on(gpu.as_mut().expect("opened above")).run(op)?;
        match std::mem::replace(&mut *lock(&planted), Ok(true)) {
            Ok(true) => Ok(wrong),
            Ok(false) => {
                let (kernels, kind): (Vec<&str>, _) = (shaders.iter().map(|s| s.kernel).collect(), op.kind());
                let kernels = kernels.join(" or ");
                Err(Error::usage(format!("{}: {kind:?} did not run the planted kernel {kernels}", engine.at.site)))
            }
            Err(e) => Err(e),
        }
    })
}

/// What is behind a lock that only one thread ever takes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    use super::*;
    use crate::backend::gpu::shader_sources;
    use crate::selftest::faults::{self, By};

    /// Without a GPU: every edit applies to the kernels as they are now, for at least one type of weights, and leaves valid WGSL. Who
    /// changes a kernel and breaks this finds the edit in `selftest/faults/`, by the name of the kernel.
    #[test]
    fn every_planted_shader_applies_and_is_valid() {
        let sources: Vec<(String, String)> = shader_sources().map(|(_, name, source)| (name, source)).collect();
        // Besides what the kernels need: halves packed in words, with which f16 sums are imitated.
        let can = Capabilities::IMMEDIATES | Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        for fault in faults::all() {
            let By::Shader(shaders) = fault.by else { continue };
            assert!(!shaders.is_empty(), "{}", fault.name);
            for shader in shaders {
                let planted: Vec<_> = sources.iter().filter(|(name, _)| shader.changes(name)).collect();
                let wrong: Vec<Result<String>> = planted.iter().map(|(name, s)| shader.plant(name, s, 3)).collect();
                assert!(wrong.iter().any(Result::is_ok), "{}: {:?}", fault.name, wrong.first());
                for wrong in wrong.iter().flatten() {
                    let module = naga::front::wgsl::parse_str(wrong)
                        .unwrap_or_else(|e| panic!("{}: {}", fault.name, e.emit_to_string(wrong)));
                    Validator::new(ValidationFlags::all(), can)
                        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
                        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
                        .validate(&module)
                        .unwrap_or_else(|e| panic!("{}: {}", fault.name, e.emit_to_string(wrong)));
                }
            }
        }
    }

    #[test]
    fn an_edit_that_no_longer_applies_is_an_error() {
        let shader = Shader { kernel: "add", edits: &[("a + b", "a - b")] };
        assert_eq!(shader.plant("add", "y = a + b;", 0).unwrap(), "y = a - b;");
        for source in ["y = b + a;", "y = a + b + (a + b);"] {
            let error = shader.plant("add", source, 0).unwrap_err().to_string();
            assert!(error.contains("add") && error.contains("a + b"), "{error}");
        }
        assert!(shader.changes("add") && shader.changes("add/Q4_K") && !shader.changes("add_lanes"));
    }
}
