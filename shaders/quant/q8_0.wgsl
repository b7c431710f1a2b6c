// Q8_0: blocks of 32. Body 2 vec4: 32 int8. Tail 2 bytes: the scale d. weight = d·q
const PAIRS: u32 = 1u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    return Block(row + b * 2u, plane_half(tail, b));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let q = stored(s.at + h);
    let d = s.d;
    return mat4x4<f32>(d * signed_bytes(q.x), d * signed_bytes(q.y), d * signed_bytes(q.z), d * signed_bytes(q.w));
}
