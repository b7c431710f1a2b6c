// Q4_0: blocks of 32. Body 1 vec4: low nibbles are weights 0 to 15, high nibbles 16 to 31. Tail 2 bytes: d.
// weight = d·(q − 8)
fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

fn weights(row: u32, tail: u32, i: u32, h: u32) -> mat4x4<f32> {
    let q = (weight_data[row + i] >> vec4<u32>(4u * h)) & vec4<u32>(0x0f0f0f0fu);
    let d = plane_half(tail, i);
    let eight = vec4<f32>(8.0);
    return mat4x4<f32>(
        d * (vec4<f32>(bytes(q.x)) - eight),
        d * (vec4<f32>(bytes(q.y)) - eight),
        d * (vec4<f32>(bytes(q.z)) - eight),
        d * (vec4<f32>(bytes(q.w)) - eight),
    );
}
