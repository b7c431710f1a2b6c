// F32: 32 weights in 8 vec4.
fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

fn weights(row: u32, tail: u32, i: u32, h: u32) -> mat4x4<f32> {
    let at = row + i * 8u + h * 4u;
    return mat4x4<f32>(
        bitcast<vec4<f32>>(weight_data[at]),
        bitcast<vec4<f32>>(weight_data[at + 1u]),
        bitcast<vec4<f32>>(weight_data[at + 2u]),
        bitcast<vec4<f32>>(weight_data[at + 3u]),
    );
}
