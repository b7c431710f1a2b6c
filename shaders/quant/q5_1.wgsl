// Q5_1: blocks of 32. Body 1 vec4: low nibbles are weights 0 to 15, high nibbles 16 to 31. Tail 8 bytes: bit n of the
// first word is the fifth bit of weight n; the second word is d, m. weight = d·q + m
fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

// Weights n to n + 3: nibbles from `q`, fifth bits from `high` at bit n.
fn five(q: u32, high: u32, n: u32) -> vec4<f32> {
    let bit = ((vec4<u32>(high) >> (vec4<u32>(n) + vec4<u32>(0u, 1u, 2u, 3u))) & vec4<u32>(1u)) << vec4<u32>(4u);
    return vec4<f32>(bytes(q) | bit);
}

fn weights(row: u32, tail: u32, i: u32, h: u32) -> mat4x4<f32> {
    let q = (weight_data[row + i] >> vec4<u32>(4u * h)) & vec4<u32>(0x0f0f0f0fu);
    let at = tail + (i >> 1u);
    let high = weight_data[at][(i & 1u) * 2u] >> (16u * h);
    let dm = halves(weight_data[at][(i & 1u) * 2u + 1u]);
    let m = vec4<f32>(dm.y);
    return mat4x4<f32>(
        dm.x * five(q.x, high, 0u) + m,
        dm.x * five(q.y, high, 4u) + m,
        dm.x * five(q.z, high, 8u) + m,
        dm.x * five(q.w, high, 12u) + m,
    );
}
