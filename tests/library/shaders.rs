//! Every shader, for every quantization type, is valid WGSL with the capabilities that the GPU backend asks a device for.
//! Needs no GPU.

use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use twinscope::backend::gpu::shader_sources;

#[test]
fn every_shader_is_valid() {
    let mut names = Vec::new();
    for (name, source) in shader_sources() {
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{name} does not parse:\n{}", e.emit_to_string_with_path(&source, &name)));
        Validator::new(ValidationFlags::all(), Capabilities::IMMEDIATES | Capabilities::SUBGROUP)
            .subgroup_stages(ShaderStages::COMPUTE)
            .subgroup_operations(SubgroupOperationSet::all())
            .validate(&module)
            .unwrap_or_else(|e| panic!("{name} is not valid:\n{}", e.emit_to_string_with_path(&source, &name)));
        assert_eq!(module.entry_points.len(), 1, "{name}");
        assert_eq!(module.entry_points[0].name, "main", "{name}");
        names.push(name);
    }
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
    // 9 kernels for each of 16 types, and those without weights.
    assert_eq!(names.iter().filter(|n| n.contains('/')).count(), 9 * 16);
}
