// Q5_1: blocks of 32. Body 1 vec4: low nibbles are weights 0 to 15, high nibbles 16 to 31. Tail 8 bytes: bit n of the
// first word is the fifth bit of weight n; the second word is d, m. weight = d·q + m
const PAIRS: u32 = 1u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

// Weights n to n + 3: nibbles from `q`, fifth bits from `high` at bit n.
fn five(q: u32, high: u32, n: u32) -> vec4<f32> {
    let bit = ((vec4<u32>(high) >> (vec4<u32>(n) + vec4<u32>(0u, 1u, 2u, 3u))) & vec4<u32>(1u)) << vec4<u32>(4u);
    return vec4<f32>(bitcast<vec4<i32>>(bytes(q) | bit));
}

struct Block {
    at: u32,
    high: u32,
    dm: vec2<f32>,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let at = tail + (b >> 1u);
    let word = (b & 1u) * 2u;
    return Block(row + b, stored(at)[word], halves(stored(at)[word + 1u]));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let q = (stored(s.at) >> vec4<u32>(4u * h)) & vec4<u32>(0x0f0f0f0fu);
    let high = s.high >> (16u * h);
    let m = vec4<f32>(s.dm.y);
    return mat4x4<f32>(
        s.dm.x * five(q.x, high, 0u) + m,
        s.dm.x * five(q.y, high, 4u) + m,
        s.dm.x * five(q.z, high, 8u) + m,
        s.dm.x * five(q.w, high, 12u) + m,
    );
}
