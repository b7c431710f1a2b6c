// Q8_0: blocks of 32. Body 2 vec4: 32 int8. Tail 2 bytes: the scale d. weight = d·q
fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

fn weights(row: u32, tail: u32, i: u32, h: u32) -> mat4x4<f32> {
    let q = weight_data[row + i * 2u + h];
    let d = plane_half(tail, i);
    return mat4x4<f32>(d * signed_bytes(q.x), d * signed_bytes(q.y), d * signed_bytes(q.z), d * signed_bytes(q.w));
}
