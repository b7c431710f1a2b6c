// Q2_0: blocks of 64. Body 1 vec4: 2 bits a weight, neighbours from the lowest up. Tail 2 bytes: d. weight = d·(q − 1)
const PAIRS: u32 = 2u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    return Block(row + b, plane_half(tail, b));
}

// Four weights over d, of the lowest eight bits.
fn quarters(word: u32) -> vec4<f32> {
    let q = (vec4<u32>(word) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(3u);
    return vec4<f32>(bitcast<vec4<i32>>(q)) - vec4<f32>(1.0);
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let word = stored(s.at)[2u * c + h];
    let d = s.d;
    return mat4x4<f32>(
        d * quarters(word),
        d * quarters(word >> 8u),
        d * quarters(word >> 16u),
        d * quarters(word >> 24u),
    );
}
