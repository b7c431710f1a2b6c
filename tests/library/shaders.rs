//! Every shader, for every quantization type, is valid WGSL with the capabilities that the GPU backend asks a device for, and is what
//! the table of kernels says of it: bindings, parameters, workgroup. Needs no GPU.

use std::collections::BTreeSet;
use std::ffi::OsString;

use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, GlobalVariable, Module, StorageAccess, TypeInner};
use twinscope::backend::gpu::{Access, Member, shader_sources};

#[test]
fn every_shader_is_valid_and_what_the_table_says() {
    let (mut files, mut names) = (BTreeSet::new(), Vec::new());
    for (spec, name, source) in shader_sources() {
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{name} does not parse:\n{}", e.emit_to_string_with_path(&source, &name)));
        Validator::new(ValidationFlags::all(), Capabilities::IMMEDIATES | Capabilities::SUBGROUP)
            .subgroup_stages(ShaderStages::COMPUTE)
            .subgroup_operations(SubgroupOperationSet::all())
            .validate(&module)
            .unwrap_or_else(|e| panic!("{name} is not valid:\n{}", e.emit_to_string_with_path(&source, &name)));

        let [main] = &module.entry_points[..] else { panic!("{name}: one entry point expected") };
        let [x, y] = spec.workgroup;
        assert_eq!((main.name.as_str(), main.workgroup_size), ("main", [x, y, 1]), "{name}");
        let (mut bindings, mut textures) = (Vec::new(), Vec::new());
        let (mut parameters, mut workgroup_memory) = (None, 0);
        for (_, variable) in module.global_variables.iter() {
            match variable.space {
                AddressSpace::Storage { access } => bindings.push((place(variable), access)),
                AddressSpace::Handle => textures.push(place(variable)),
                AddressSpace::Immediate => parameters = Some(variable.ty),
                AddressSpace::WorkGroup => workgroup_memory += size(&module, variable.ty).next_multiple_of(16),
                ref other => panic!("{name}: {:?} in {other:?}", variable.name),
            }
        }
        bindings.sort_by_key(|(place, _)| *place);
        textures.sort_unstable();
        // The kernels for subgroups of 8 lanes read weights and activations from textures.
        let in_textures = spec.name.ends_with("_lanes");
        let place = |i| (0, i as u32);
        let (mut expected, mut expected_textures) = (Vec::new(), Vec::new());
        for (i, access) in spec.bindings.iter().enumerate() {
            match access {
                Access::Weights | Access::Activations if in_textures => expected_textures.push(place(i)),
                Access::Weights | Access::Activations | Access::Read => expected.push((place(i), StorageAccess::LOAD)),
                Access::Write => expected.push((place(i), StorageAccess::LOAD | StorageAccess::STORE)),
            }
        }
        assert_eq!((bindings, textures), (expected, expected_textures), "{name}: group, binding and access");
        assert_eq!(spec.bindings.contains(&Access::Weights), name.contains('/'), "{name}");
        assert_eq!(workgroup_memory, spec.storage, "{name}: bytes of workgroup memory");
        let parameters = parameters.unwrap_or_else(|| panic!("{name} has no parameters"));
        assert_eq!(size(&module, parameters), spec.immediate_size, "{name}: bytes of parameters");
        same_members(&name, &module, parameters, spec.params);

        files.insert(spec.name);
        names.push(name);
    }
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    // 13 kernels for each of 28 types, and those without weights.
    assert_eq!(names.iter().filter(|n| n.contains('/')).count(), 13 * 28);
    let in_folder = std::fs::read_dir("shaders").unwrap().map(|entry| entry.unwrap().path());
    let in_folder = in_folder.filter(|path| path.is_file()).map(|path| path.file_stem().unwrap().to_owned());
    let files: BTreeSet<_> = files.into_iter().map(OsString::from).collect();
    assert_eq!(in_folder.collect::<BTreeSet<_>>(), files, "a file in shaders/ is a kernel, and the other way round");
}

fn place(variable: &GlobalVariable) -> (u32, u32) {
    let binding = variable.binding.expect("a buffer or a texture has a binding");
    (binding.group, binding.binding)
}

fn size(module: &Module, ty: naga::Handle<naga::Type>) -> u32 {
    module.types[ty].inner.size(module.to_ctx())
}

/// The struct `ty` of the shader has the members that the host's has: names, types and offsets.
fn same_members(what: &str, module: &Module, ty: naga::Handle<naga::Type>, host: &[Member]) {
    let TypeInner::Struct { members, .. } = &module.types[ty].inner else { panic!("{what}: a struct was expected") };
    assert_eq!(members.len(), host.len(), "{what}: members");
    for (member, host) in members.iter().zip(host) {
        let what = format!("{what}: {}", host.name);
        let ty = match &module.types[member.ty] {
            naga::Type { name: Some(name), .. } => name.clone(),
            naga::Type { inner: TypeInner::Scalar(naga::Scalar::U32), .. } => "u32".into(),
            naga::Type { inner: TypeInner::Scalar(naga::Scalar::F32), .. } => "f32".into(),
            other => panic!("{what} is {other:?}"),
        };
        let found = (member.name.as_deref(), ty.as_str(), member.offset as usize);
        assert_eq!(found, (Some(host.name), host.ty, host.offset), "{what}");
        if !host.members.is_empty() {
            same_members(&what, module, member.ty, host.members);
        }
    }
}
