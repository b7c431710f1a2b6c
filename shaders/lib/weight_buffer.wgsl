// The weights of a piece in a storage buffer.
@group(0) @binding(0) var<storage, read> weight_data: array<vec4<u32>>;

fn stored(at: u32) -> vec4<u32> {
    return weight_data[at];
}
