// F16: 32 weights in 4 vec4.
const PAIRS: u32 = 1u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
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
    return mat4x4<f32>(
        vec4<f32>(halves(a.x), halves(a.y)),
        vec4<f32>(halves(a.z), halves(a.w)),
        vec4<f32>(halves(b.x), halves(b.y)),
        vec4<f32>(halves(b.z), halves(b.w)),
    );
}
