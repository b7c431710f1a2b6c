// F32: 32 weights in 8 vec4.
const PAIRS: u32 = 1u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    return Block(row + b * 8u);
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let at = s.at + h * 4u;
    return mat4x4<f32>(
        bitcast<vec4<f32>>(stored(at)),
        bitcast<vec4<f32>>(stored(at + 1u)),
        bitcast<vec4<f32>>(stored(at + 2u)),
        bitcast<vec4<f32>>(stored(at + 3u)),
    );
}
