// Q4_1: blocks of 32. Body 1 vec4: low nibbles are weights 0 to 15, high nibbles 16 to 31. Tail 4 bytes: d, m.
// weight = d·q + m
const PAIRS: u32 = 1u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
    dm: vec2<f32>,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    return Block(row + b, halves(stored(tail + (b >> 2u))[b & 3u]));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let q = (stored(s.at) >> vec4<u32>(4u * h)) & vec4<u32>(0x0f0f0f0fu);
    let m = vec4<f32>(s.dm.y);
    return mat4x4<f32>(
        s.dm.x * numbers(q.x) + m,
        s.dm.x * numbers(q.y) + m,
        s.dm.x * numbers(q.z) + m,
        s.dm.x * numbers(q.w) + m,
    );
}
