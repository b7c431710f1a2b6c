// Q1_0: blocks of 128. Body 1 vec4: a bit a weight, neighbours from the lowest up. Tail 2 bytes: d. weight = d where the bit is set, else −d
const PAIRS: u32 = 4u;

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

// Four weights by the lowest four bits.
fn plus_minus(d: f32, bits: u32) -> vec4<f32> {
    return select(vec4<f32>(-d), vec4<f32>(d), (vec4<u32>(bits) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>(0u));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let bits = stored(s.at)[c] >> (16u * h);
    return mat4x4<f32>(
        plus_minus(s.d, bits),
        plus_minus(s.d, bits >> 4u),
        plus_minus(s.d, bits >> 8u),
        plus_minus(s.d, bits >> 12u),
    );
}
