//! Kernels from a folder in place of this program's own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::folder::Folder;
use super::manifest::DispatchEntry;
use crate::backend::gpu::tuning::{Tuning, TuningSource};
use crate::backend::gpu::{GpuOptions, Patch, for_lanes, parameter_words};
use crate::error::{Error, Result};
use wgpu::naga::front::wgsl::parse_str;
use wgpu::naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use wgpu::naga::{AddressSpace, Module, WithSpan};

/// Sources by kernel name, and which kernels a backend asked for.
#[derive(Default)]
pub struct FolderShaders {
    sources: BTreeMap<String, String>,
    /// The kernels that were compiled, and whether the source was the folder's.
    compiled: Mutex<BTreeMap<String, bool>>,
}

impl FolderShaders {
    pub fn new(sources: BTreeMap<String, String>) -> Arc<Self> {
        Arc::new(Self { sources, compiled: Mutex::default() })
    }

    /// Holds the folder's dispatches against the kernels that this program would give its shaders parameters of.
    ///
    /// # Errors
    /// [`Error::CannotRun`] if a shader of the folder takes other parameters than this program's kernel of that name: the folder
    /// is of another version, and its shaders cannot be run.
    pub fn check(dispatches: &[DispatchEntry]) -> Result<()> {
        for DispatchEntry { kernel, shader, immediates, .. } in dispatches {
            let here = parameter_words(kernel.split('/').next().unwrap_or_default());
            if here != Some(immediates.len()) {
                let here = here.map_or("there is no such kernel".into(), |n| format!("its kernel {kernel} takes {n}"));
                return Err(Error::cannot_run(format!(
                    "{shader} takes {} words of parameters where, in this version, {here}: the folder is of another version; \
                     --shaders built-in runs this program's own",
                    immediates.len()
                )));
            }
        }
        Ok(())
    }

    /// Compiles the folder's shaders as far as that is the same on every machine: what an adapter lacks is said when it is asked.
    ///
    /// # Errors
    /// [`Error::Source`] with the place in the first one that is no valid WGSL.
    pub fn compile(folder: &Folder) -> Result<()> {
        for DispatchEntry { kernel, shader, immediates, .. } in &folder.manifest.dispatches {
            let Some(source) = folder.shaders.get(kernel) else { continue };
            let path = folder.dir.join(shader).display().to_string();
            let wrong = |why: String, excerpt: String| Error::Source {
                what: format!("{path}: expected WGSL that compiles: {why}; --shaders built-in runs this program's own"),
                excerpt,
            };
            let module = parse_str(source)
                .map_err(|e| wrong(e.message().to_string(), e.emit_to_string_with_path(source, shader)))?;
            // What is beyond them is no kernel's, and naga's validator counts words that it has no bits for.
            let too_large = parameters(&module, immediates.len());
            if let Some(too_large) = too_large {
                let excerpt = too_large.emit_to_string_with_path(source, shader);
                return Err(wrong(format!("{}{}", too_large.as_inner(), line(&too_large, source)), excerpt));
            }
            let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
            validator.subgroup_stages(ShaderStages::all()).subgroup_operations(SubgroupOperationSet::all());
            validator
                .validate(&module)
                .map_err(|e| wrong(e.as_inner().to_string(), e.emit_to_string_with_path(source, shader)))?;
            if !module.entry_points.iter().any(|entry| entry.name == "main") {
                return Err(wrong("no entry point is called main".into(), String::new()));
            }
        }
        Ok(())
    }

    /// What a device says of a shader of the folder's that compiles and that it makes no pipeline of: that the error, of whatever came of it, is
    /// of this file.
    pub fn refused(folder: &Folder, kernel: &str, why: &str) -> Option<Error> {
        let entry = folder.manifest.dispatches.iter().find(|entry| entry.kernel == kernel)?;
        folder.shaders.get(kernel)?;
        let path = folder.dir.join(&entry.shader).display().to_string();
        let last = why.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        Some(Error::Source {
            what: format!(
                "{path}: expected a kernel that this adapter can run: {last}; --shaders built-in runs this program's own"
            ),
            excerpt: why.to_string(),
        })
    }

    /// How a GPU backend is built that runs these: with their sources, and with the kind of matrix kernels that they are, for few positions
    /// or for many, whatever kind the adapter and its tuning table would have chosen.
    pub fn options(self: &Arc<Self>) -> GpuOptions {
        let shaders = self.clone();
        let patch: Patch = Arc::new(move |kernel, built_in| {
            let source = shaders.sources.get(kernel);
            shaders.compiled().insert(kernel.to_string(), source.is_some());
            source.cloned().unwrap_or(built_in)
        });
        let kind = |name: &String| for_lanes(name.split('/').next().unwrap_or_default());
        let lanes = self.sources.keys().filter_map(kind).max();
        let of = |part: &str| self.sources.keys().any(|name| name.contains(part));
        let tuning = match (of("matvec"), of("matmul")) {
            (false, false) => TuningSource::BuiltIn,
            (vectors, _) => TuningSource::Given(Tuning::forced(vectors)),
        };
        GpuOptions { patch: Some(patch), lanes, tuning, ..Default::default() }
    }

    /// The kernels that ran with this program's own source, because the folder has none for them.
    ///
    /// # Errors
    /// [`Error::CannotRun`] if that is so for all of them: then nothing of the folder was tried.
    pub fn not_replaced(&self) -> Result<Vec<String>> {
        let compiled = self.compiled();
        let own: Vec<String> = compiled.iter().filter(|(_, replaced)| !**replaced).map(|(k, _)| k.clone()).collect();
        if own.len() == compiled.len() {
            let list = |names: Vec<&String>| names.into_iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::cannot_run(format!(
                "this adapter runs the kernels {} for the operation, the folder has {}; --shaders built-in runs this program's own",
                list(compiled.keys().collect()),
                list(self.sources.keys().collect())
            )));
        }
        Ok(own)
    }

    fn compiled(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        // A poisoned lock still holds a valid map.
        self.compiled.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Parameters that are more than a kernel takes.
#[derive(Debug, thiserror::Error)]
#[error("expected parameters of {expected} bytes at most in var<immediate>, found {found}")]
struct ParametersTooLarge {
    expected: u64,
    found: u64,
}

/// Whether a shader declares more than so many words of parameters.
fn parameters(module: &Module, words: usize) -> Option<WithSpan<ParametersTooLarge>> {
    let expected = 4 * words as u64;
    module.global_variables.iter().filter(|(_, variable)| variable.space == AddressSpace::Immediate).find_map(
        |(handle, variable)| {
            // No size: larger than any.
            let size = module.types[variable.ty].inner.try_size(module.to_ctx());
            let found = size.map_or(u64::MAX, u64::from);
            let too_large = ParametersTooLarge { expected, found };
            let span = module.global_variables.get_span(handle);
            (found > expected).then(|| WithSpan::new(too_large).with_span(span, "these"))
        },
    )
}

/// ` in line N`, where that is known.
fn line<E>(error: &WithSpan<E>, source: &str) -> String {
    error.location(source).map_or(String::new(), |at| format!(" in line {}", at.line_number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_matrix_kernels_is_that_of_the_folder() {
        let lanes = |kernel: &str| FolderShaders::new(BTreeMap::from([(kernel.into(), String::new())])).options().lanes;
        assert_eq!(
            (lanes("matmul/Q4_K"), lanes("expert_matvec_lanes/Q6_K"), lanes("swiglu")),
            (Some(false), Some(true), None)
        );
    }

    #[test]
    fn few_positions_or_many_are_as_the_folder_has_them() {
        let tuning =
            |kernel: &str| FolderShaders::new(BTreeMap::from([(kernel.into(), String::new())])).options().tuning;
        for (kernel, expected) in [
            ("matmul/Q4_K", TuningSource::Given(Tuning::forced(false))),
            ("expert_matvec_lanes/Q6_K", TuningSource::Given(Tuning::forced(true))),
            ("swiglu", TuningSource::BuiltIn),
        ] {
            assert_eq!(tuning(kernel), expected, "{kernel}");
        }
    }

    #[test]
    fn parameters_beyond_a_kernel_s_are_refused_before_naga_counts_them() {
        let of = |words: usize| {
            let source = format!(
                "struct P {{ a: array<vec4<u32>, {words}> }}\n\nvar<immediate> p: P;\n@compute @workgroup_size(1) fn main() {{ _ = p.a[0]; }}"
            );
            let found = parameters(&parse_str(&source).unwrap(), 64);
            found.map(|error| format!("{}{}", error.as_inner(), line(&error, &source)))
        };
        assert_eq!(of(16), None);
        let expected = "expected parameters of 256 bytes at most in var<immediate>, found 272 in line 3";
        assert_eq!(of(17).as_deref(), Some(expected));
        assert!(of(usize::pow(2, 26)).unwrap().contains("at most"));
    }

    #[test]
    fn kernels_that_the_folder_lacks_are_said() {
        let shaders = FolderShaders::new(BTreeMap::from([("a".to_string(), "mine".to_string())]));
        let patch = shaders.options().patch.unwrap();
        assert_eq!((patch("b", "own".into()), shaders.not_replaced().unwrap_err().exit_code()), ("own".into(), 125));
        assert_eq!((patch("a", "own".into()), shaders.not_replaced().unwrap()), ("mine".into(), vec!["b".to_string()]));
    }
}
