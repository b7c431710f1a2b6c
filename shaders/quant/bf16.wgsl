// BF16: 32 weights in 4 vec4; each is the upper half of an f32.
const PAIRS: u32 = 1u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

fn widen(a: u32, b: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
}

struct Block {
    at: u32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    return Block(row + b * 4u);
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let at = s.at + h * 2u;
    let a = stored(at);
    let b = stored(at + 1u);
    return mat4x4<f32>(widen(a.x, a.y), widen(a.z, a.w), widen(b.x, b.y), widen(b.z, b.w));
}
