// Q4_1: blocks of 32. Body 1 vec4: low nibbles are weights 0 to 15, high nibbles 16 to 31. Tail 4 bytes: d, m.
// weight = d·q + m
fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

fn weights(row: u32, tail: u32, i: u32, h: u32) -> mat4x4<f32> {
    let q = (weight_data[row + i] >> vec4<u32>(4u * h)) & vec4<u32>(0x0f0f0f0fu);
    let dm = halves(weight_data[tail + (i >> 2u)][i & 3u]);
    let m = vec4<f32>(dm.y);
    return mat4x4<f32>(
        dm.x * vec4<f32>(bytes(q.x)) + m,
        dm.x * vec4<f32>(bytes(q.y)) + m,
        dm.x * vec4<f32>(bytes(q.z)) + m,
        dm.x * vec4<f32>(bytes(q.w)) + m,
    );
}
